//! openraft's log storage on a group's part of the node's log.
//!
//! An append is readable when it returns and reported only after the disk barrier. A failure of the log is final: it is
//! reported to [`FailStop`], because what the disk holds is unknown from then on.

use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::{LogState, OptionalSend};
use tidewall_store::log::{GroupLog, LogEntry, LogError};
use tokio::sync::oneshot;

use crate::convert::*;
use crate::fail_stop::FailStop;
use crate::types::*;

/// Bytes of entries that one replication request carries at most, beyond its first entry.
const REPLICATION_BYTES_MAX: usize = 2 << 20;

/// The log of one group.
#[derive(Clone)]
pub struct LogStore {
    log: GroupLog,
    fail_stop: FailStop,
}

impl LogStore {
    pub fn new(log: GroupLog, fail_stop: FailStop) -> Self {
        Self { log, fail_stop }
    }

    /// Waits for a change to be durable.
    async fn durable(&self, change: impl FnOnce(tidewall_store::log::Done)) -> Result<(), io::Error> {
        let (sender, receiver) = oneshot::channel();
        change(Box::new(move |result| {
            // Nobody waits any more when the group is shutting down.
            let _ = sender.send(result);
        }));
        let result = receiver.await.unwrap_or(Err(LogError::Closed));
        result.map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &LogError) -> io::Error {
        self.fail_stop.log_failed(error);
        io::Error::other(error.to_string())
    }

    fn read(&self, range: impl RangeBounds<u64>, max_bytes: usize) -> Result<Vec<RaftEntry>, io::Error> {
        let from = match range.start_bound() {
            Bound::Included(index) => *index,
            Bound::Excluded(index) => index + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(index) => index + 1,
            Bound::Excluded(index) => *index,
            Bound::Unbounded => u64::MAX,
        };
        let entries = self.log.read(from, to, max_bytes).map_err(|error| self.failed(&error))?;
        entries
            .into_iter()
            .map(|entry| {
                let id = from_log_position(entry.position);
                decode_entry(id, entry.payload).map_err(|error| undecodable(&id, &error))
            })
            .collect()
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<RaftEntry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
    {
        self.read(range, usize::MAX)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.log.state().vote.map(|saved| vote(saved.term, saved.node, saved.committed)))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<RaftEntry>, io::Error> {
        self.read(start..end, REPLICATION_BYTES_MAX)
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, io::Error> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.last_purged.map(from_log_position),
            last_log_id: state.last.map(from_log_position),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.durable(|done| self.log.save_vote(log_vote(vote), done)).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        self.log.save_committed(committed.as_ref().map(log_position));
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.state().committed.map(from_log_position))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = RaftEntry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries
            .into_iter()
            .map(|entry| LogEntry { position: log_position(&entry.log_id), payload: encode_payload(&entry) })
            .collect();
        let fail_stop = self.fail_stop.clone();
        self.log.append(
            entries,
            Box::new(move |result| {
                callback.io_completed(result.map_err(|error| {
                    fail_stop.log_failed(&error);
                    io::Error::other(error.to_string())
                }));
            }),
        );
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        self.durable(|done| self.log.truncate_after(last.map(|id| id.index), done)).await
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.durable(|done| self.log.purge(log_position(&upto), done)).await
    }
}
