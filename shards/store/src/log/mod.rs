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

mod record;
mod recovery;
mod segment;
mod writer;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex, MutexGuard};
use tidewall_env::disk::{Disk, DiskFile};
use tidewall_env::tasks::Later;
use tidewall_mutant::{Mutant, active};

use record::Identity;
use writer::Writer;

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

    fn identity(&self) -> Identity {
        Identity { cluster: self.cluster, node: self.node }
    }
}

/// Why the log refuses.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// Something that was durable is damaged or missing. Nothing was changed.
    #[error("the Raft log is damaged in {} at byte {offset}: {what}; {advice}", segment::name(*segment))]
    Corrupt {
        /// Number of the segment.
        segment: u64,
        /// Byte offset in it.
        offset: u64,
        /// What is wrong there.
        what: String,
        /// What to do.
        advice: &'static str,
    },
    /// The directory belongs to another cluster.
    #[error(
        "this Raft log belongs to cluster {}, not to {}; start the node with the data directory of its own cluster",
        hex(found),
        hex(expected)
    )]
    WrongCluster {
        /// The cluster in the files.
        found: [u8; 16],
        /// The cluster that was asked for.
        expected: [u8; 16],
    },
    /// The directory belongs to another node.
    #[error(
        "this Raft log belongs to node {found}, not to node {expected}; start each node with its own data directory, \
         and never copy one"
    )]
    WrongNode {
        /// The node in the files.
        found: u64,
        /// The node that was asked for.
        expected: u64,
    },
    /// The files are of a format that this build does not read.
    #[error(
        "this Raft log has format {found} and this build reads format {supported}; start the build that wrote it \
         (a newer one if the number is higher), nothing was changed"
    )]
    UnsupportedFormat {
        /// The format in the files.
        found: u32,
        /// The format of this build.
        supported: u32,
    },
    /// The disk answered with an error while the log was opened or read.
    #[error("the Raft log could not {operation}: {source}; check the disk and the directory's permissions")]
    Io {
        /// What was tried.
        operation: String,
        /// The disk's answer.
        source: Arc<io::Error>,
    },
    /// A write or sync failed: nobody knows what is on the disk. The log stays closed; the process must end.
    #[error(
        "the Raft log failed to {operation}: {source}; what is on the disk is unknown, so this process must stop; \
         check the disk before starting it again"
    )]
    Failed {
        /// What was tried.
        operation: String,
        /// The disk's answer.
        source: Arc<io::Error>,
    },
    /// A write failed because the disk is full. As [`LogError::Failed`], but the remedy is known.
    #[error(
        "the disk is full: the Raft log failed to {operation}; this process must stop; free space on the file \
         system of the data directory, then start it again (never delete log segments)"
    )]
    DiskFull {
        /// What was tried.
        operation: String,
    },
    /// The log has been closed.
    #[error("the Raft log is closed; this node is shutting down")]
    Closed,
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl LogError {
    fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source: Arc::new(source) }
    }

    fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { operation },
            _ => Self::Failed { operation, source: Arc::new(source) },
        }
    }

    fn corrupt(segment: u64, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt {
            segment,
            offset,
            what: what.into(),
            advice: "keep the files for a diagnosis and do not edit them; give the node an empty data directory and \
                     a new node id, so that it rejoins from its peers",
        }
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
    fn next_index(&self) -> u64 {
        self.last.map_or(0, |last| last.index + 1)
    }

    /// The index of the first entry that may be alive.
    fn first_index(&self) -> u64 {
        self.last_purged.map_or(0, |purged| purged.index + 1)
    }

    fn purge(&mut self, upto: LogPosition) {
        if upto.index >= self.first_index() {
            self.last_purged = Some(upto);
            if upto.index >= self.next_index() {
                self.last = Some(upto);
            }
        }
    }
}

/// Where the bytes of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Queued, in the cache only; the number is unique to this entry.
    Waiting(u64),
    /// Durable.
    At { segment: u64, offset: u64, length: u32 },
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    term: u64,
    node: u64,
    place: Place,
}

/// A group as its callers see it: all changes so far, durable or queued.
#[derive(Default)]
struct GroupMemory {
    state: GroupLogState,
    /// One for each index from `state.first_index()` to `state.last`.
    slots: VecDeque<Slot>,
    /// Payloads of the last `cache.len()` slots; covers every waiting one.
    cache: VecDeque<Bytes>,
    cache_bytes: usize,
}

impl GroupMemory {
    fn position(&self, index: u64) -> Option<LogPosition> {
        if let Some(purged) = self.state.last_purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        let at = index.checked_sub(self.state.first_index()).and_then(|at| usize::try_from(at).ok())?;
        self.slots.get(at).map(|slot| LogPosition { term: slot.term, node: slot.node, index })
    }

    fn pop_front(&mut self) {
        self.slots.pop_front();
        if self.cache.len() > self.slots.len() {
            self.uncache_front();
        }
    }

    fn pop_back(&mut self) {
        self.slots.pop_back();
        if let Some(payload) = self.cache.pop_back() {
            self.cache_bytes -= payload.len();
        }
    }

    fn uncache_front(&mut self) -> usize {
        let freed = self.cache.pop_front().map_or(0, |payload| payload.len());
        self.cache_bytes -= freed;
        freed
    }

    /// Whether the oldest cached entry can be read from the disk instead.
    fn may_uncache(&self) -> bool {
        !self.cache.is_empty()
            && matches!(self.slots[self.slots.len() - self.cache.len()].place, Place::At { .. })
    }

    fn clear(&mut self) {
        self.slots.clear();
        self.cache.clear();
        self.cache_bytes = 0;
    }
}

/// A segment that readers may need.
struct Segment {
    file: Arc<dyn DiskFile>,
    /// Bytes on the disk.
    bytes: u64,
    /// Per group the lowest and highest index of entries in it that may be alive, by what is durable.
    ranges: BTreeMap<u32, (u64, u64)>,
}

enum What {
    Append {
        entries: Vec<LogEntry>,
        first_ticket: u64,
    },
    Vote(Vote),
    /// The position of what remains the last entry.
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
    Reset(LogPosition),
    /// Changes nothing, keeps its place in the order.
    Nothing,
}

struct Operation {
    group: u32,
    what: What,
    done: Done,
}

#[derive(Default)]
struct Core {
    groups: BTreeMap<u32, GroupMemory>,
    segments: BTreeMap<u64, Segment>,
    queue: VecDeque<Operation>,
    /// Committed positions that wait for a barrier to ride on.
    committed: BTreeMap<u32, Option<LogPosition>>,
    next_ticket: u64,
    failed: Option<LogError>,
    /// Somebody was asked to write what is queued, later.
    asked: bool,
    closing: bool,
    closed: bool,
}

impl Core {
    /// Forgets cached payloads until they fit, first of the group that has most.
    fn trim_cache(&mut self, limit: usize) {
        let mut total: usize = self.groups.values().map(|group| group.cache_bytes).sum();
        while total > limit {
            let largest = self
                .groups
                .values_mut()
                .filter(|group| group.may_uncache())
                .max_by_key(|group| group.cache_bytes);
            let Some(group) = largest else { return };
            // Not one by one: finding the largest group costs a pass over all of them.
            for _ in 0..64 {
                if total <= limit || !group.may_uncache() {
                    break;
                }
                total -= group.uncache_front();
            }
        }
    }
}

struct Shared {
    disk: Arc<dyn Disk>,
    options: LogOptions,
    core: Mutex<Core>,
    wake: Condvar,
    writer: Mutex<Writer>,
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
        let core = Core { groups: recovered.groups, segments: recovered.segments, ..Core::default() };
        let shared = Arc::new(Shared {
            disk,
            options,
            core: Mutex::new(core),
            wake: Condvar::new(),
            writer: Mutex::new(recovered.writer),
        });
        // From here on the last batch of the previous process is vouched for.
        shared.leave_mark(&mut shared.writer.lock())?;
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

/// One group's part of the node's log. Clones are handles of the same part.
///
/// Changes are visible to readers when the call returns and durable when `done` is called with `Ok`; `done`s of
/// a node are called in the order of the calls. After a failed write or sync every call gets the same error.
#[derive(Clone)]
pub struct GroupLog {
    handle: Arc<Handle>,
    group: u32,
}

impl fmt::Debug for GroupLog {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("GroupLog").field("group", &self.group).finish_non_exhaustive()
    }
}

impl GroupLog {
    /// Queues `change` and updates memory by it, unless the log can take no more changes.
    fn change(&self, done: Done, change: impl FnOnce(&mut GroupMemory, &mut u64) -> What) {
        let shared = &self.handle.shared;
        let mut core = shared.core.lock();
        let what = if core.failed.is_some() || core.closing {
            What::Nothing
        } else {
            let core = &mut *core;
            change(core.groups.entry(self.group).or_default(), &mut core.next_ticket)
        };
        shared.submit(core, Operation { group: self.group, what, done });
    }

    /// Appends entries behind the last one.
    ///
    /// # Panics
    /// If the entries do not continue the log without a gap (the first entry of a group has index 0), or one is
    /// larger than [`PAYLOAD_BYTES_MAX`]: a log with a hole must not come into being.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) {
        self.change(done, |memory, next_ticket| {
            if entries.is_empty() {
                return What::Nothing;
            }
            // All checks first: a panic must leave nothing half done.
            for (entry, expected) in entries.iter().zip(memory.state.next_index()..) {
                assert!(
                    entry.position.index == expected,
                    "group {}: entry {} was appended where {expected} must follow",
                    self.group,
                    entry.position.index
                );
                assert!(
                    entry.payload.len() <= PAYLOAD_BYTES_MAX,
                    "group {}: entry {expected} has {} bytes, more than an entry may have",
                    self.group,
                    entry.payload.len()
                );
            }
            let first_ticket = *next_ticket;
            for entry in &entries {
                let LogPosition { term, node, .. } = entry.position;
                memory.slots.push_back(Slot { term, node, place: Place::Waiting(*next_ticket) });
                memory.cache.push_back(entry.payload.clone());
                memory.cache_bytes += entry.payload.len();
                memory.state.last = Some(entry.position);
                *next_ticket += 1;
            }
            What::Append { entries, first_ticket }
        });
    }

    /// Saves the vote; it holds when `done` says so.
    pub fn save_vote(&self, vote: Vote, done: Done) {
        self.change(done, |memory, _| {
            memory.state.vote = Some(vote);
            if active(Mutant::VoteAfterEntries) { What::Nothing } else { What::Vote(vote) }
        });
    }

    /// Notes what is committed. It costs no barrier and rides on the next: after a crash an older position may
    /// come back.
    pub fn save_committed(&self, committed: Option<LogPosition>) {
        let mut core = self.handle.shared.core.lock();
        if core.failed.is_none() && !core.closing {
            let memory = core.groups.entry(self.group).or_default();
            if memory.state.committed != committed {
                memory.state.committed = committed;
                core.committed.insert(self.group, committed);
            }
        }
    }

    /// Removes all entries behind `index`; `None` removes all that are not purged.
    pub fn truncate_after(&self, index: Option<u64>, done: Done) {
        self.change(done, |memory, _| {
            // What is purged was committed and cannot be taken back.
            let keep_below = index.map_or(0, |index| index.saturating_add(1)).max(memory.state.first_index());
            if keep_below >= memory.state.next_index() {
                return What::Nothing;
            }
            let last = keep_below.checked_sub(1).and_then(|index| memory.position(index));
            for _ in keep_below..memory.state.next_index() {
                memory.pop_back();
            }
            memory.state.last = last;
            What::Truncate(last)
        });
    }

    /// Removes all entries up to and including `upto`; segments without live entries are deleted by the time
    /// `done` is called. Nothing happens if that much is purged already.
    pub fn purge(&self, upto: LogPosition, done: Done) {
        self.change(done, |memory, _| {
            if upto.index < memory.state.first_index() {
                return What::Nothing;
            }
            for _ in memory.state.first_index()..memory.state.next_index().min(upto.index.saturating_add(1)) {
                memory.pop_front();
            }
            memory.state.purge(upto);
            What::Purge(upto)
        });
    }

    /// After a snapshot was installed: the log becomes empty and continues behind `upto`.
    ///
    /// # Panics
    /// If `upto` is below what is purged: a snapshot that takes the group back must not be installed.
    pub fn reset_to(&self, upto: LogPosition, done: Done) {
        self.change(done, |memory, _| {
            if let Some(purged) = memory.state.last_purged {
                assert!(
                    upto.index >= purged.index,
                    "group {}: a reset to {} would undo the purge up to {}",
                    self.group,
                    upto.index,
                    purged.index
                );
            }
            memory.clear();
            memory.state.last_purged = Some(upto);
            memory.state.last = Some(upto);
            What::Reset(upto)
        });
    }

    /// Entries from index `from` (inclusive) to `to_exclusive`, consecutive, and as many as fit into
    /// `max_bytes` of payload, but at least one if there is any. What is purged or not yet appended is left out
    /// at the ends: look at the first index that comes back.
    ///
    /// # Errors
    /// [`LogError::Corrupt`] or [`LogError::Io`] if an entry cannot be read back, and what has made the log fail.
    pub fn read(&self, from: u64, to_exclusive: u64, max_bytes: usize) -> Result<Vec<LogEntry>, LogError> {
        let shared = &self.handle.shared;
        let core = shared.core.lock();
        if let Some(error) = &core.failed {
            return Err(error.clone());
        }
        if core.closed {
            return Err(LogError::Closed);
        }
        let Some(memory) = core.groups.get(&self.group) else {
            return Ok(Vec::new());
        };
        let first = memory.state.first_index();
        let from = from.max(first);
        let to = to_exclusive.min(memory.state.next_index());
        let cached_from = memory.state.next_index() - memory.cache.len() as u64;
        let mut found = Vec::new();
        let mut left = max_bytes;
        for index in from..to {
            let at = usize::try_from(index - first).expect("an index of a slot in memory is addressable");
            let slot = memory.slots[at];
            let position = LogPosition { term: slot.term, node: slot.node, index };
            let (source, bytes) = match (index.checked_sub(cached_from), slot.place) {
                (Some(at), _) => {
                    let at = usize::try_from(at).expect("an index of a cached entry is addressable");
                    let payload = memory.cache[at].clone();
                    let bytes = payload.len();
                    (Source::Cached(payload), bytes)
                }
                (None, Place::At { segment, offset, length }) => {
                    let file = &core.segments.get(&segment).expect("a live entry pins its segment").file;
                    (Source::Disk { file: Arc::clone(file), segment, offset, length }, length as usize)
                }
                (None, Place::Waiting(_)) => unreachable!("a waiting entry is always cached"),
            };
            if !found.is_empty() && bytes > left {
                break;
            }
            left = left.saturating_sub(bytes);
            found.push((position, source));
        }
        drop(core);
        // Without the lock: the handles keep their files readable, and written bytes never change.
        found.into_iter().map(|(position, source)| self.load(position, source)).collect()
    }

    fn load(&self, position: LogPosition, source: Source) -> Result<LogEntry, LogError> {
        match source {
            Source::Cached(payload) => Ok(LogEntry { position, payload }),
            Source::Disk { file, segment, offset, length } => {
                let identity = self.handle.shared.options.identity();
                let payload = record::read_entry(
                    file.as_ref(),
                    identity,
                    segment,
                    offset,
                    length,
                    self.group,
                    position,
                )?;
                Ok(LogEntry { position, payload })
            }
        }
    }

    /// What this part of the log holds, with all changes so far, durable or not.
    #[must_use]
    pub fn state(&self) -> GroupLogState {
        self.handle
            .shared
            .core
            .lock()
            .groups
            .get(&self.group)
            .map_or_else(GroupLogState::default, |memory| memory.state)
    }
}

enum Source {
    Cached(Bytes),
    Disk { file: Arc<dyn DiskFile>, segment: u64, offset: u64, length: u32 },
}
