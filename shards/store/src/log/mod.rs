//! The Raft log of a node: one segmented, checksummed log that all its shard groups share, so that twelve
//! groups pay one disk barrier.
//!
//! It must never call something durable that no barrier has covered, never go on after a failed write or
//! sync, never pass over a damaged record, and never know what a payload means.
//!
//! # Why not raft-engine
//! It would do most of this. Three things made the difference: our damage policy has to tell a torn tail (a
//! crash; repaired) from corruption of what was acknowledged (refused), where raft-engine offers to tolerate
//! either both or neither; it panics when a sync fails, where we have to tell the callers and leave in order;
//! and it purges late, at 10 GB.
//!
//! # On disk
//! Segments `log-0000000001.seg` … with consecutive numbers. A segment starts with a header (magic, format,
//! cluster, node, number, first sequence, all checksummed) and a *seal* slot, then records, each aligned to
//! eight bytes: CRC-32C, length, sequence, group, kind, payload. The checksum also covers cluster, node,
//! segment number and offset, so that a record is valid only in its own place. Sequences grow by exactly one.
//!
//! What one barrier covers is a *batch*: a mark record with the highest sequence known to be durable, then
//! the records. When the queue runs dry the writer leaves another mark, without a barrier of its own, so that
//! also the last batch is vouched for.
//!
//! A segment grows ahead of its records by 1 MiB of zeros at a time. A barrier that has no metadata to write is
//! faster (one writer, median: 0.19 ms instead of 0.33 ms), and filling a whole segment at once makes everybody
//! wait at each new one (12 groups × 64 entries, p99 on a busy machine: 13–72 ms instead of 6–15 ms).
//!
//! Segments go from the front only. A group that has halted purges nothing any more and would pin all that follows: its
//! entries are moved, record by record, to the newest segment ([`NodeLog::relocate`]).
//!
//! A new segment starts with a state record (votes, ends, committed positions of all groups), which lets
//! older segments go as soon as none of their entries lives. It counts only once its predecessor's seal slot
//! says that it exists, which is written after the new segment is durable and before it is used.
//!
//! # Damage
//! The first bad record has sequence E. The highest durable sequence that any mark in the log proves is W.
//! E ≤ W: something acknowledged is damaged, [`LogError::Corrupt`], nothing is changed. E > W: a crash has
//! torn what no barrier had covered; it is cut off, also where later sectors of it arrived on the disk.
//! A batch that was acknowledged in the last moment before a power cut, and whose mark the cut took, cannot be
//! told from a torn one if it is damaged besides.
//!
//! Before a reopened log is used, what no mark vouches for is written again and synced: it may have been read
//! from a page cache that outlived the process that failed to sync it.

mod error;
mod group;
mod memory;
mod model;
mod record;
mod recovery;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex, MutexGuard};
use tidewall_env::disk::Disk;
use tidewall_mutant::{Mutant, active};

pub use error::LogError;
pub use group::GroupLog;
use memory::{Core, Operation, Place, Slot, What};
pub use model::{
    Done, GroupLogState, LogEntry, LogOptions, LogPosition, PAYLOAD_BYTES_MAX, RecoveryReport, TornTail, Vote,
};
use writer::Writer;

/// What the handles share with the writer.
struct Shared {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    core: Mutex<Core>,
    wake: Condvar,
    writer: Mutex<Writer>,
    /// Sequence of the last record that was found when the log was opened.
    opened_at: u64,
    /// Highest durable sequence.
    durable: Arc<AtomicU64>,
}

impl Shared {
    fn submit(self: &Arc<Self>, mut core: MutexGuard<'_, Core>, mut operation: Operation) {
        if core.closing {
            let error = core.failed.clone().unwrap_or(LogError::Closed);
            drop(core);
            (operation.done)(Err(error));
            return;
        }
        if active(Mutant::AcknowledgeBeforeFsync) && matches!(operation.what, What::Append { .. }) {
            std::mem::replace(&mut operation.done, Box::new(|_| ()))(Ok(()));
        }
        core.queue.push_back(operation);
        let first = !std::mem::replace(&mut core.asked, true);
        drop(core);
        if let Some(later) = &self.options.later {
            let shared = Arc::clone(self);
            if first {
                later.give(Box::new(move || shared.work_off()));
            }
        } else if self.options.inline {
            self.work_off();
        } else {
            self.wake.notify_one();
        }
    }
}

/// Stops the writer when the last handle goes.
struct Handle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Handle {
    fn close(&self) -> Result<(), LogError> {
        self.shared.core.lock().closing = true;
        if self.shared.options.inline {
            self.shared.finish();
        } else {
            self.shared.wake.notify_one();
            // A callback may hold the last handle: the writer thread cannot wait for itself.
            let thread = self.thread.lock().take();
            if let Some(thread) = thread
                && thread.thread().id() != std::thread::current().id()
                && thread.join().is_err()
            {
                tracing::error!("the thread of the Raft log has panicked");
            }
        }
        self.shared.core.lock().failed.clone().map_or(Ok(()), Err)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            // Every caller whose change was affected has been told already.
            tracing::debug!(%error, "the Raft log was closed after a failure");
        }
    }
}

/// The log of a node. Clones are handles of the same log.
#[derive(Clone)]
pub struct NodeLog {
    handle: Arc<Handle>,
}

impl fmt::Debug for NodeLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NodeLog")
            .field("node", &self.handle.shared.options.node)
            .finish_non_exhaustive()
    }
}

impl NodeLog {
    /// Opens the log in `disk`'s directory, or begins one if there is none. Repairs what a crash has torn.
    /// The caller sees to it that no second process uses the directory.
    ///
    /// # Errors
    /// See [`LogError`]. On `Corrupt`, `WrongCluster`, `WrongNode` and `UnsupportedFormat` nothing was changed.
    pub fn open(disk: Arc<dyn Disk>, options: LogOptions) -> Result<(Self, RecoveryReport), LogError> {
        let recovered = recovery::recover(disk.as_ref(), &options)?;
        let opened_at = recovered.writer.next_sequence - 1;
        let durable = Arc::clone(&recovered.writer.durable);
        let core = Core { groups: recovered.groups, segments: recovered.segments, ..Core::default() };
        let shared = Arc::new(Shared {
            disk,
            options,
            core: Mutex::new(core),
            wake: Condvar::new(),
            writer: Mutex::new(recovered.writer),
            opened_at,
            durable,
        });
        shared.leave_opening(&mut shared.writer.lock())?;
        let thread = if shared.options.inline {
            None
        } else {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new().name("raft-log".to_owned()).spawn(move || shared.run());
            Some(thread.map_err(LogError::io("start its writer thread"))?)
        };
        Ok((Self { handle: Arc::new(Handle { shared, thread: Mutex::new(thread) }) }, recovered.report))
    }

    /// The part of `group`, empty if it has never been written.
    #[must_use]
    pub fn group(&self, group: u32) -> GroupLog {
        GroupLog { handle: Arc::clone(&self.handle), group }
    }

    /// How far the log had come when it was opened, counted in records of all groups. Opening adds one that is durable.
    #[must_use]
    pub fn opened_at(&self) -> u64 {
        self.handle.shared.opened_at
    }

    /// How far it has come durably: whoever opens the log later finds it at least here.
    #[must_use]
    pub fn reached(&self) -> u64 {
        self.handle.shared.durable.load(Ordering::Relaxed)
    }

    /// Bytes of all segments.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.handle.shared.core.lock().segments.values().map(|segment| segment.bytes).sum()
    }

    /// Writes what is queued, calls what waits, and stops the writer thread. Later calls through other handles
    /// get [`LogError::Closed`].
    ///
    /// # Errors
    /// What had made the log fail, if anything had.
    pub fn close(self) -> Result<(), LogError> {
        self.handle.close()
    }

    /// Bytes that the live entries of these groups take on the disk.
    #[must_use]
    pub fn live_bytes(&self, groups: &BTreeSet<u32>) -> u64 {
        let core = self.handle.shared.core.lock();
        let live = core.groups.iter().filter(|(group, _)| groups.contains(group));
        let bytes = |slot: &Slot| match slot.place {
            Place::At { length, .. } => record::entry_bytes(length as usize) as u64,
            Place::Waiting(_) => 0,
        };
        live.flat_map(|(_, memory)| &memory.slots).map(bytes).sum()
    }

    /// Helps the oldest segment to go that only groups of `stuck` pin, which will not purge: moves up to `max_bytes` of their
    /// entries, at least one, to the newest segment. When the last of them was moved, the old segment is removed. `done` is
    /// called once what was moved is durable. Returns whether there was anything to move.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] or [`LogError::Io`] if an entry cannot be read back; nothing was moved then.
    pub fn relocate(&self, stuck: &BTreeSet<u32>, max_bytes: usize, done: Done) -> Result<bool, LogError> {
        let pinned = {
            let core = self.handle.shared.core.lock();
            let oldest = core.segments.first_key_value().filter(|_| core.segments.len() > 1);
            oldest.filter(|(_, oldest)| oldest.ranges.keys().all(|group| stuck.contains(group))).and_then(
                |(number, oldest)| oldest.ranges.first_key_value().map(|(group, _)| (*number, *group)),
            )
        };
        let Some((segment, group)) = pinned else { return Ok(false) };
        self.group(group).move_from(segment, max_bytes, done)?;
        Ok(true)
    }

    /// What keeps the log above `above_bytes`: groups with live entries in the oldest segments that have to go
    /// for the log to fit, each with its last index there. When the caller has checkpointed and purged these,
    /// the segments are removed. Empty if the log fits, or if only the current segment is left.
    #[must_use]
    pub fn purge_hints(&self, above_bytes: u64) -> Vec<(u32, u64)> {
        let core = self.handle.shared.core.lock();
        let mut left: u64 = core.segments.values().map(|segment| segment.bytes).sum();
        let mut hints: BTreeMap<u32, u64> = BTreeMap::new();
        let removable = core.segments.len().saturating_sub(1);
        for segment in core.segments.values().take(removable) {
            if left <= above_bytes {
                break;
            }
            left -= segment.bytes;
            for (group, (_, last)) in &segment.ranges {
                let hint = hints.entry(*group).or_insert(*last);
                *hint = (*hint).max(*last);
            }
        }
        // What is purged already, though not yet durably, needs no hint.
        hints.retain(|group, last| {
            core.groups.get(group).is_some_and(|memory| *last >= memory.state.first_index())
        });
        hints.into_iter().collect()
    }
}
