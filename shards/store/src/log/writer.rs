//! The one writer of a node's log: takes what is queued, writes it as one buffer, pays one barrier, tells.
//!
//! It never writes after a failure, never calls a callback with a lock held, and never removes a segment before
//! what made its entries dead is durable.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tidewall_env::disk::DiskFile;

use super::memory::{Core, Operation, Place, Segment, What};
use super::record::{self, Body, Encoder};
use super::{Done, GroupLogState, LogEntry, LogError, LogPosition, Shared, segment};

/// A batch is closed at this size, so that one barrier does not wait for everything that a flood has queued.
const BATCH_BYTES_MAX: usize = 4 << 20;
/// By how much a segment grows at a time. Measured: larger steps make the batch that pays for one wait longer,
/// smaller ones make more batches pay.
const GROWTH_BYTES: u64 = 1 << 20;
/// More than any record takes that is not an entry or a state.
const SMALL_RECORD_BYTES: usize = 64;

/// What only the writer knows: the log as it has been written so far.
pub(super) struct Writer {
    /// Number of the segment that is written to.
    pub(super) active: u64,
    pub(super) file: Arc<dyn DiskFile>,
    /// Where the next record goes.
    pub(super) end: u64,
    /// Where the first batch of the segment went: up to here it holds only its state.
    pub(super) begin: u64,
    /// Length of the file; behind `end` it is zero.
    pub(super) length: u64,
    pub(super) next_sequence: u64,
    /// Highest durable sequence.
    pub(super) synced: u64,
    /// What the last mark says of it.
    pub(super) marked: u64,
    /// Whether something (a mark) was written that no barrier has covered.
    pub(super) dirty: bool,
    /// All groups by what has been written, for the next state record.
    pub(super) groups: BTreeMap<u32, GroupLogState>,
    pub(super) buffer: Vec<u8>,
    /// [`Self::synced`], for who must not wait for the writer.
    pub(super) durable: Arc<AtomicU64>,
}

struct Batch {
    operations: Vec<Operation>,
    committed: BTreeMap<u32, Option<LogPosition>>,
}

impl Batch {
    fn take(core: &mut Core) -> Self {
        let mut operations = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES_MAX
            && let Some(operation) = core.queue.pop_front()
        {
            bytes += operation.bytes();
            operations.push(operation);
        }
        // A committed position may name an entry that is queued: it must not overtake it.
        let committed =
            if core.queue.is_empty() { std::mem::take(&mut core.committed) } else { BTreeMap::new() };
        Self { operations, committed }
    }

    fn changes_nothing(&self) -> bool {
        self.committed.is_empty()
            && self.operations.iter().all(|operation| matches!(operation.what, What::Nothing))
    }

    /// An upper bound of what its records take.
    fn bytes(&self) -> usize {
        let operations: usize = self.operations.iter().map(Operation::bytes).sum();
        operations + SMALL_RECORD_BYTES * (1 + self.committed.len())
    }
}

impl Operation {
    fn bytes(&self) -> usize {
        match &self.what {
            What::Append { entries, .. } => {
                entries.iter().map(|entry| record::entry_bytes(entry.payload.len())).sum()
            }
            What::Move { entries, .. } => {
                entries.iter().map(|moved| record::entry_bytes(moved.entry.payload.len())).sum()
            }
            _ => SMALL_RECORD_BYTES,
        }
    }
}

impl Shared {
    /// The writer thread.
    pub(super) fn run(&self) {
        if catch_unwind(AssertUnwindSafe(|| self.write_until_closed())).is_err() {
            // A defect of this module. Nobody may wait for ever because of it.
            let failure =
                LogError::failed("keep its writer thread alive")(io::Error::other("it has panicked"));
            let abandoned = {
                let mut core = self.core.lock();
                core.failed.get_or_insert_with(|| failure.clone());
                core.closing = true;
                std::mem::take(&mut core.queue)
            };
            for operation in abandoned {
                call(operation.done, Err(failure.clone()));
            }
        }
    }

    fn write_until_closed(&self) {
        loop {
            let batch = {
                let mut core = self.core.lock();
                while core.queue.is_empty() && !core.closing {
                    self.wake.wait(&mut core);
                }
                if core.queue.is_empty() {
                    break;
                }
                Batch::take(&mut core)
            };
            let outcome = self.commit(&mut self.writer.lock(), &batch);
            for operation in batch.operations {
                call(operation.done, outcome.clone());
            }
            if self.core.lock().queue.is_empty() {
                // Behind the callbacks: nobody waits for it. A failure is kept for the next caller.
                let _ = self.leave_mark(&mut self.writer.lock());
            }
        }
        self.finish();
    }

    /// Writes what is queued, on the caller's thread.
    pub(super) fn work_off(&self) {
        loop {
            let mut writer = self.writer.lock();
            let batch = {
                let mut core = self.core.lock();
                core.asked = false;
                Batch::take(&mut core)
            };
            if batch.operations.is_empty() {
                // Committed positions without a barrier to ride on keep waiting.
                self.core.lock().committed.extend(batch.committed);
                return;
            }
            let outcome = self.commit(&mut writer, &batch);
            let _ = self.leave_mark(&mut writer);
            drop(writer);
            for operation in batch.operations {
                (operation.done)(outcome.clone());
            }
        }
    }

    /// The last barrier: committed positions and the last mark become durable.
    pub(super) fn finish(&self) {
        let mut writer = self.writer.lock();
        let batch = {
            let mut core = self.core.lock();
            if core.closed {
                return;
            }
            core.closed = true;
            Batch { operations: Vec::new(), committed: std::mem::take(&mut core.committed) }
        };
        // A failure is kept in `failed`, which `close` reports.
        let _ = self
            .commit(&mut writer, &batch)
            .and_then(|()| self.leave_mark(&mut writer))
            .and_then(|()| self.guard(sync(&mut writer)));
    }

    fn check(&self) -> Result<(), LogError> {
        self.core.lock().failed.clone().map_or(Ok(()), Err)
    }

    /// Keeps the first failure for ever.
    fn guard<T>(&self, outcome: Result<T, LogError>) -> Result<T, LogError> {
        if let Err(error) = &outcome {
            let mut core = self.core.lock();
            if core.failed.is_none() {
                tracing::error!(%error, "the Raft log has failed");
                core.failed = Some(error.clone());
            }
        }
        outcome
    }

    fn commit(&self, writer: &mut Writer, batch: &Batch) -> Result<(), LogError> {
        self.check()?;
        if batch.changes_nothing() {
            return Ok(());
        }
        self.guard(self.write(writer, batch))
    }

    fn write(&self, writer: &mut Writer, batch: &Batch) -> Result<(), LogError> {
        if writer.end + batch.bytes() as u64 > self.options.segment_bytes && writer.end > writer.begin {
            self.roll(writer)?;
        }
        let offsets = encode(writer, batch, self.options.identity().seed(writer.active));
        let end = writer.end + writer.buffer.len() as u64;
        let zeros = self.zeros_behind(writer, end);
        writer.buffer.resize(writer.buffer.len() + zeros, 0);
        writer
            .file
            .write_at(writer.end, &writer.buffer)
            .map_err(LogError::failed(format!("write to segment {}", writer.active)))?;
        writer.end = end;
        writer.length = writer.length.max(end + zeros as u64);
        writer.marked = writer.synced;
        sync(writer)?;
        self.publish(writer, batch, &offsets);
        self.remove_dead_segments()
    }

    /// How many zeros to write behind a batch that ends at `end`: whenever a batch grows the file, it grows it by
    /// some more, so that the barriers that follow have no metadata to write, which makes them much faster.
    fn zeros_behind(&self, writer: &Writer, end: u64) -> usize {
        if self.options.inline || end <= writer.length {
            return 0;
        }
        let ahead = end.next_multiple_of(GROWTH_BYTES).min(self.options.segment_bytes);
        usize::try_from(ahead.saturating_sub(end)).expect("growth is small")
    }

    /// Begins the next segment. The order of its steps is what recovery relies on.
    fn roll(&self, writer: &mut Writer) -> Result<(), LogError> {
        if writer.dirty {
            sync(writer)?;
        }
        let number = writer.active + 1;
        let groups = writer.groups.iter().map(|(group, state)| (*group, *state)).collect();
        let made = segment::make(self.disk.as_ref(), &self.options, number, writer.next_sequence, groups)?;
        segment::write_seal(writer.file.as_ref(), self.options.identity(), writer.active)?;
        let segment = Segment { file: Arc::clone(&made.file), bytes: made.end, ranges: BTreeMap::new() };
        self.core.lock().segments.insert(number, segment);
        writer.active = number;
        writer.file = made.file;
        writer.end = made.end;
        writer.begin = made.end;
        writer.length = made.end;
        writer.synced = writer.next_sequence;
        writer.next_sequence += 1;
        Ok(())
    }

    /// Tells readers where the entries of a durable batch are, and notes which segments they live in.
    fn publish(&self, writer: &Writer, batch: &Batch, offsets: &[u64]) {
        let mut core = self.core.lock();
        let core = &mut *core;
        let mut offsets = offsets.iter();
        for operation in &batch.operations {
            let group = operation.group;
            match &operation.what {
                What::Append { entries, first_turn } => {
                    let memory = core.groups.get_mut(&group).expect("appending has made the group");
                    for ((entry, turn), offset) in entries.iter().zip(*first_turn..).zip(&mut offsets) {
                        let index = entry.position.index;
                        let at = index.checked_sub(memory.state.first_index());
                        let slot = at.and_then(|at| memory.slots.get_mut(usize::try_from(at).ok()?));
                        // By now the entry may be truncated or purged, and its index taken by another.
                        if let Some(slot) = slot.filter(|slot| slot.place == Place::Waiting(turn)) {
                            let length = u32::try_from(entry.payload.len()).expect("payloads are bounded");
                            slot.place = Place::At { segment: writer.active, offset: *offset, length };
                        }
                        add(&mut core.segments, writer.active, group, index);
                    }
                }
                What::Truncate(last) => truncate(&mut core.segments, group, *last),
                What::Purge(upto) => purge(&mut core.segments, group, *upto),
                What::Reset(_) => reset(&mut core.segments, group),
                What::Move { segment, entries, all } => {
                    let memory = core.groups.get_mut(&group).expect("what was moved had been appended");
                    for (moved, offset) in entries.iter().zip(&mut offsets) {
                        let index = moved.entry.position.index;
                        let at = index.checked_sub(memory.state.first_index());
                        let slot = at.and_then(|at| memory.slots.get_mut(usize::try_from(at).ok()?));
                        // By now it may be truncated or purged.
                        if let Some(slot) = slot.filter(|slot| slot.place == moved.from) {
                            let length =
                                u32::try_from(moved.entry.payload.len()).expect("payloads are bounded");
                            slot.place = Place::At { segment: writer.active, offset: *offset, length };
                        }
                        self::moved(&mut core.segments, *segment, group, index);
                        add(&mut core.segments, writer.active, group, index);
                    }
                    if *all && let Some(segment) = core.segments.get_mut(segment) {
                        segment.ranges.remove(&group);
                    }
                }
                What::Vote(_) | What::Nothing => {}
            }
        }
        if let Some(active) = core.segments.get_mut(&writer.active) {
            active.bytes = writer.length;
        }
        core.trim_cache(self.options.cache_bytes);
    }

    /// Removes the oldest segments while nothing in them lives. Only from the front, and each durably before the
    /// next, so that a crash leaves no gap in the numbers.
    fn remove_dead_segments(&self) -> Result<(), LogError> {
        loop {
            let number = {
                let core = self.core.lock();
                match core.segments.first_key_value() {
                    Some((number, oldest)) if oldest.ranges.is_empty() && core.segments.len() > 1 => *number,
                    _ => return Ok(()),
                }
            };
            self.disk
                .remove(&segment::name(number))
                .and_then(|()| self.disk.sync_directory())
                .map_err(LogError::failed(format!("remove segment {number}")))?;
            self.core.lock().segments.remove(&number);
        }
    }

    /// Leaves a durable record of this opening, so that two that began with the same log differ from here on. It also vouches
    /// for the last batch of the previous process.
    pub(super) fn leave_opening(&self, writer: &mut Writer) -> Result<(), LogError> {
        self.write_mark(writer)?;
        self.guard(sync(writer))
    }

    /// Vouches for the last batch without a barrier.
    pub(super) fn leave_mark(&self, writer: &mut Writer) -> Result<(), LogError> {
        self.check()?;
        if writer.marked == writer.synced {
            return Ok(());
        }
        self.write_mark(writer)
    }

    fn write_mark(&self, writer: &mut Writer) -> Result<(), LogError> {
        let seed = self.options.identity().seed(writer.active);
        encode(writer, &Batch { operations: Vec::new(), committed: BTreeMap::new() }, seed);
        writer.dirty = true;
        let written = writer.file.write_at(writer.end, &writer.buffer);
        self.guard(written.map_err(LogError::failed(format!("write to segment {}", writer.active))))?;
        writer.end += writer.buffer.len() as u64;
        writer.length = writer.length.max(writer.end);
        writer.marked = writer.synced;
        Ok(())
    }
}

/// The barrier.
fn sync(writer: &mut Writer) -> Result<(), LogError> {
    writer.file.sync_data().map_err(LogError::failed(format!("sync segment {}", writer.active)))?;
    writer.synced = writer.next_sequence - 1;
    writer.durable.store(writer.synced, Ordering::Relaxed);
    writer.dirty = false;
    Ok(())
}

/// Encodes a mark and the batch into the writer's buffer; returns the offsets of the entries.
fn encode(writer: &mut Writer, batch: &Batch, seed: u32) -> Vec<u64> {
    writer.buffer.clear();
    // A flood's buffer is not kept for ever.
    writer.buffer.shrink_to(2 * BATCH_BYTES_MAX);
    let mut encoder =
        Encoder { buffer: &mut writer.buffer, seed, base: writer.end, sequence: writer.next_sequence };
    let mut offsets = Vec::new();
    encoder.add(0, &Body::Mark { synced: writer.synced });
    for operation in &batch.operations {
        let group = operation.group;
        let state = match operation.what {
            What::Nothing => continue,
            _ => writer.groups.entry(group).or_default(),
        };
        match &operation.what {
            What::Append { entries, .. } => {
                for entry in entries {
                    let body = Body::Entry { position: entry.position, payload: &entry.payload };
                    offsets.push(encoder.add(group, &body));
                    state.last = Some(entry.position);
                }
            }
            What::Vote(vote) => {
                state.vote = Some(*vote);
                encoder.add(group, &Body::Vote(*vote));
            }
            What::Truncate(last) => {
                state.last = *last;
                encoder.add(group, &Body::Truncate(*last));
            }
            What::Purge(upto) => {
                state.purge(*upto);
                encoder.add(group, &Body::Purge(*upto));
            }
            What::Reset(upto) => {
                (state.last_purged, state.last) = (Some(*upto), Some(*upto));
                encoder.add(group, &Body::Reset(*upto));
            }
            What::Move { entries, .. } => {
                for moved in entries {
                    let LogEntry { position, payload } = &moved.entry;
                    offsets.push(encoder.add(group, &Body::Moved { position: *position, payload }));
                }
            }
            What::Nothing => {}
        }
    }
    for (group, committed) in &batch.committed {
        writer.groups.entry(*group).or_default().committed = *committed;
        encoder.add(*group, &Body::Committed(*committed));
    }
    writer.next_sequence = encoder.sequence;
    offsets
}

/// Calls back from the writer thread. A callback that panics is a defect of its owner and must not take the
/// other groups' log along.
fn call(done: Done, outcome: Result<(), LogError>) {
    if catch_unwind(AssertUnwindSafe(|| done(outcome))).is_err() {
        tracing::error!("a callback of the Raft log has panicked");
    }
}

// Which segments live entries are in, as durable changes move it. Shared with recovery.

/// An entry was written to segment `number`.
pub(super) fn add(segments: &mut BTreeMap<u64, Segment>, number: u64, group: u32, index: u64) {
    if let Some(segment) = segments.get_mut(&number) {
        let range = segment.ranges.entry(group).or_insert((index, index));
        *range = (range.0.min(index), range.1.max(index));
    }
}

/// An entry lives in another segment now.
pub(super) fn moved(segments: &mut BTreeMap<u64, Segment>, from: u64, group: u32, index: u64) {
    if let Some(segment) = segments.get_mut(&from)
        && let Some(range) = segment.ranges.get_mut(&group)
    {
        // Only the lowest: an entry may be moved twice, and then this is not where all below it were moved away from.
        if range.0 == index {
            range.0 += 1;
        }
        if range.0 > range.1 {
            segment.ranges.remove(&group);
        }
    }
}

/// Entries behind `last` are dead.
pub(super) fn truncate(segments: &mut BTreeMap<u64, Segment>, group: u32, last: Option<LogPosition>) {
    let next = last.map_or(0, |last| last.index + 1);
    for segment in segments.values_mut() {
        if let Some(range) = segment.ranges.get_mut(&group) {
            if range.0 >= next {
                segment.ranges.remove(&group);
            } else {
                range.1 = range.1.min(next - 1);
            }
        }
    }
}

/// Entries up to `upto` are dead.
pub(super) fn purge(segments: &mut BTreeMap<u64, Segment>, group: u32, upto: LogPosition) {
    for segment in segments.values_mut() {
        if segment.ranges.get(&group).is_some_and(|range| range.1 <= upto.index) {
            segment.ranges.remove(&group);
        }
    }
}

/// All entries of the group are dead.
pub(super) fn reset(segments: &mut BTreeMap<u64, Segment>, group: u32) {
    for segment in segments.values_mut() {
        segment.ranges.remove(&group);
    }
}
