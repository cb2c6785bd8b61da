//! The log as it stands in memory: entries and their places, recent payloads, and changes that wait for the writer. It must
//! never touch a disk.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use tidewall_env::disk::DiskFile;

use super::{Done, GroupLogState, LogEntry, LogError, LogPosition, Vote};

/// Where the bytes of an entry are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Queued, in the cache only; the number is unique to this entry.
    Waiting(u64),
    /// Durable.
    At { segment: u64, offset: u64, length: u32 },
}

/// An entry without its payload.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slot {
    pub(super) term: u64,
    pub(super) node: u64,
    pub(super) place: Place,
}

/// A group as its callers see it: all changes so far, durable or queued.
#[derive(Default)]
pub(super) struct GroupMemory {
    pub(super) state: GroupLogState,
    /// One for each index from `state.first_index()` to `state.last`.
    pub(super) slots: VecDeque<Slot>,
    /// Payloads of the last `cache.len()` slots; covers every waiting one.
    pub(super) cache: VecDeque<Bytes>,
    pub(super) cache_bytes: usize,
}

impl GroupMemory {
    /// Position of the entry at `index`, or of the last purged one.
    pub(super) fn position(&self, index: u64) -> Option<LogPosition> {
        if let Some(purged) = self.state.last_purged.filter(|purged| purged.index == index) {
            return Some(purged);
        }
        let at = index.checked_sub(self.state.first_index()).and_then(|at| usize::try_from(at).ok())?;
        self.slots.get(at).map(|slot| LogPosition { term: slot.term, node: slot.node, index })
    }

    /// Forgets the first entry.
    pub(super) fn pop_front(&mut self) {
        self.slots.pop_front();
        if self.cache.len() > self.slots.len() {
            self.uncache_front();
        }
    }

    /// Forgets the last entry.
    pub(super) fn pop_back(&mut self) {
        self.slots.pop_back();
        if let Some(payload) = self.cache.pop_back() {
            self.cache_bytes -= payload.len();
        }
    }

    /// Forgets the oldest cached payload; returns its bytes.
    pub(super) fn uncache_front(&mut self) -> usize {
        let freed = self.cache.pop_front().map_or(0, |payload| payload.len());
        self.cache_bytes -= freed;
        freed
    }

    /// Whether the oldest cached entry can be read from the disk instead.
    pub(super) fn may_uncache(&self) -> bool {
        !self.cache.is_empty()
            && matches!(self.slots[self.slots.len() - self.cache.len()].place, Place::At { .. })
    }

    /// Forgets all entries.
    pub(super) fn clear(&mut self) {
        self.slots.clear();
        self.cache.clear();
        self.cache_bytes = 0;
    }
}

/// A segment that readers may need.
pub(super) struct Segment {
    pub(super) file: Arc<dyn DiskFile>,
    /// Bytes on the disk.
    pub(super) bytes: u64,
    /// Per group the lowest and highest index of entries in it that may be alive, by what is durable.
    pub(super) ranges: BTreeMap<u32, (u64, u64)>,
}

/// A change.
pub(super) enum What {
    Append {
        entries: Vec<LogEntry>,
        first_turn: u64,
    },
    Vote(Vote),
    /// The position of what remains the last entry.
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
    Reset(LogPosition),
    /// Entries of one segment to be written again, in the order of their indices.
    Move {
        segment: u64,
        entries: Vec<MovedEntry>,
        /// Nothing else of the group lives in that segment.
        all: bool,
    },
    /// Changes nothing, keeps its place in the order.
    Nothing,
}

/// An entry and where it was read.
pub(super) struct MovedEntry {
    pub(super) entry: LogEntry,
    pub(super) from: Place,
}

/// A change that waits for the writer.
pub(super) struct Operation {
    pub(super) group: u32,
    pub(super) what: What,
    pub(super) done: Done,
}

/// What all handles and the writer share, under one lock.
#[derive(Default)]
pub(super) struct Core {
    pub(super) groups: BTreeMap<u32, GroupMemory>,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) queue: VecDeque<Operation>,
    /// Committed positions that wait for a barrier to ride on.
    pub(super) committed: BTreeMap<u32, Option<LogPosition>>,
    pub(super) next_turn: u64,
    pub(super) failed: Option<LogError>,
    /// Somebody was asked to write what is queued, later.
    pub(super) asked: bool,
    pub(super) closing: bool,
    pub(super) closed: bool,
}

impl Core {
    /// Forgets cached payloads until they fit, first of the group that has most.
    pub(super) fn trim_cache(&mut self, limit: usize) {
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
