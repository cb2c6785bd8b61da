//! One group's part of the log: changes are queued for the writer, reads come from memory or from the disk. A change must
//! never leave a hole behind.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use tidewall_env::disk::DiskFile;
use tidewall_mutant::{Mutant, active};

use super::memory::{GroupMemory, MovedEntry, Operation, Place, Slot, What};
use super::{Done, GroupLogState, Handle, LogEntry, LogError, LogPosition, PAYLOAD_BYTES_MAX, Vote, record};

/// One group's part of the node's log. Clones are handles of the same part.
///
/// Changes are visible to readers when the call returns and durable when `done` is called with `Ok`; `done`s of
/// a node are called in the order of the calls. After a failed write or sync every call gets the same error.
#[derive(Clone)]
pub struct GroupLog {
    pub(super) handle: Arc<Handle>,
    pub(super) group: u32,
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
            change(core.groups.entry(self.group).or_default(), &mut core.next_turn)
        };
        shared.submit(core, Operation { group: self.group, what, done });
    }

    /// Appends entries behind the last one.
    ///
    /// # Panics
    /// If the entries do not continue the log without a gap (the first entry of a group has index 0), or one is
    /// larger than [`PAYLOAD_BYTES_MAX`]: a log with a hole must not come into being.
    pub fn append(&self, entries: Vec<LogEntry>, done: Done) {
        self.change(done, |memory, next_turn| {
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
            let first_turn = *next_turn;
            for entry in &entries {
                let LogPosition { term, node, .. } = entry.position;
                memory.slots.push_back(Slot { term, node, place: Place::Waiting(*next_turn) });
                memory.cache.push_back(entry.payload.clone());
                memory.cache_bytes += entry.payload.len();
                memory.state.last = Some(entry.position);
                *next_turn += 1;
            }
            What::Append { entries, first_turn }
        });
    }

    /// Changes nothing: `done` says that all that was given before is durable.
    pub fn barrier(&self, done: Done) {
        self.change(done, |_, _| What::Nothing);
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

    /// The entry with its payload.
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

    /// Moves entries of this part, up to `max_bytes` of payload and at least one, from a segment to the newest one.
    pub(super) fn move_from(&self, segment: u64, max_bytes: usize, done: Done) -> Result<(), LogError> {
        let mut found = Vec::new();
        {
            let core = self.handle.shared.core.lock();
            let (memory, file) = match (core.groups.get(&self.group), core.segments.get(&segment)) {
                (Some(memory), Some(segment)) => (memory, &segment.file),
                _ => {
                    drop(core);
                    done(Ok(()));
                    return Ok(());
                }
            };
            let mut left = max_bytes;
            for (index, slot) in (memory.state.first_index()..).zip(&memory.slots) {
                if let Place::At { segment: in_segment, offset, length } = slot.place
                    && in_segment == segment
                {
                    if !found.is_empty() && length as usize > left {
                        break;
                    }
                    left = left.saturating_sub(length as usize);
                    let position = LogPosition { term: slot.term, node: slot.node, index };
                    found.push((
                        position,
                        slot.place,
                        Source::Disk { file: Arc::clone(file), segment, offset, length },
                    ));
                }
            }
        }
        let mut entries = Vec::with_capacity(found.len());
        for (position, from, source) in found {
            entries.push(MovedEntry { entry: self.load(position, source)?, from });
        }
        self.change(done, |memory, _| {
            // Only what still is where it was read: what has been truncated or purged meanwhile must not come back.
            let first = memory.state.first_index();
            let place = |memory: &GroupMemory, index: u64| {
                let at = index.checked_sub(first).and_then(|at| usize::try_from(at).ok())?;
                memory.slots.get(at).map(|slot| slot.place)
            };
            entries.retain(|moved| place(memory, moved.entry.position.index) == Some(moved.from));
            let last = entries.last().map(|moved| moved.entry.position.index);
            let stays = |(index, slot): (u64, &Slot)| {
                matches!(slot.place, Place::At { segment: other, .. } if other == segment)
                    && last.is_none_or(|last| index > last)
            };
            let all = !(first..).zip(&memory.slots).any(stays);
            What::Move { segment, entries, all }
        });
        Ok(())
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

/// Where a payload is read from.
enum Source {
    Cached(Bytes),
    Disk { file: Arc<dyn DiskFile>, segment: u64, offset: u64, length: u32 },
}
