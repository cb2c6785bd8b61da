//! The words of the log: entries, votes, what a group's part holds, how a log is opened and what was found. It must never
//! know how any of it is written.

use bytes::Bytes;
use tidewall_env::tasks::Later;

use super::LogError;
use super::record::Identity;

/// Largest payload of one entry, in bytes. Callers bound their entries far below.
pub const PAYLOAD_BYTES_MAX: usize = 64 << 20;

/// Where in a group's log an entry stands, and which leader put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LogPosition {
    /// Term of the leader that proposed the entry.
    pub term: u64,
    /// Node id of that leader.
    pub node: u64,
    /// Index of the entry; the first of a group is 0.
    pub index: u64,
}

/// One entry of a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogEntry {
    /// Its position.
    pub position: LogPosition,
    /// What the consensus layer wants to get back, byte for byte.
    pub payload: Bytes,
}

/// A vote of this replica, or the leader that it follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    /// The term voted in.
    pub term: u64,
    /// The node voted for.
    pub node: u64,
    /// Whether a majority is known to have granted it.
    pub committed: bool,
}

/// Called once, when a change is durable or never will be. Runs on the log's writer thread with no lock held:
/// it must not block.
pub type Done = Box<dyn FnOnce(Result<(), LogError>) + Send>;

/// How a log is opened.
#[derive(Clone, Debug)]
pub struct LogOptions {
    /// Size at which a new segment is begun, in bytes.
    pub segment_bytes: u64,
    /// Payload bytes of recent entries that are kept in memory for reads, all groups together. Entries that
    /// are not yet durable are kept besides.
    pub cache_bytes: usize,
    /// The cluster that the log must belong to.
    pub cluster: [u8; 16],
    /// The node that the log must belong to.
    pub node: u64,
    /// No writer thread: every call writes and syncs before it returns. For simulation on a single thread.
    pub inline: bool,
    /// With `inline`: calls only queue, and whoever this is writes and syncs some time later, as the writer thread
    /// would.
    pub later: Option<Later>,
}

impl LogOptions {
    /// Segments of 16 MiB, 16 MiB of cache, a writer thread.
    #[must_use]
    pub fn new(cluster: [u8; 16], node: u64) -> Self {
        Self { segment_bytes: 16 << 20, cache_bytes: 16 << 20, cluster, node, inline: false, later: None }
    }

    /// Whose log it is.
    pub(super) fn identity(&self) -> Identity {
        Identity { cluster: self.cluster, node: self.node }
    }
}

/// What opening the log has found and done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// There was no log: a new one was begun. On a node that has run before, this means a lost disk.
    pub fresh: bool,
    /// Segments in use.
    pub segments: u64,
    /// Records read.
    pub records: u64,
    /// Groups with any state.
    pub groups: usize,
    /// Entries alive, all groups together.
    pub entries: u64,
    /// The torn end of the last segment that was cut off, if there was one.
    pub torn: Option<TornTail>,
    /// A last segment that was begun but never used, and has been removed.
    pub unfinished_segment: Option<u64>,
}

/// Writes of a crashed process that no barrier had covered, cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Number of the segment.
    pub segment: u64,
    /// Where the valid records end, in bytes.
    pub offset: u64,
    /// How many bytes behind it were not zero, up to the last such byte.
    pub bytes: u64,
}

/// What a group's part of the log holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupLogState {
    /// The last entry that was purged.
    pub last_purged: Option<LogPosition>,
    /// The last entry, or the last purged one if there is none.
    pub last: Option<LogPosition>,
    /// The last vote saved.
    pub vote: Option<Vote>,
    /// The last committed position saved; after a crash it may be an older one.
    pub committed: Option<LogPosition>,
}

impl GroupLogState {
    /// The index that the next entry must have.
    pub(super) fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// The index of the first entry that may be alive.
    pub(super) fn first_index(&self) -> u64 {
        self.last_purged.map_or(0, |purged| purged.index + 1)
    }

    /// Notes that everything up to `upto` is purged.
    pub(super) fn purge(&mut self, upto: LogPosition) {
        if upto.index >= self.first_index() {
            self.last_purged = Some(upto);
            if upto.index >= self.next_index() {
                self.last = Some(upto);
            }
        }
    }
}
