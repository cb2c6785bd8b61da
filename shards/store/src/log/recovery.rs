//! Opening a log: reads every segment, decides what damage means, repairs what a crash has torn.
//!
//! It reads and judges everything first and changes files only after that, so that a log that is refused stays
//! as it was found. The rules are in the documentation of [`super`].

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use tidewall_env::disk::{Disk, DiskFile};

use super::memory::{GroupMemory, Place, Segment, Slot};
use super::record::{self, Body, Record};
use super::segment::{self, Header, RECORDS_AT, Seal};
use super::writer::{self, Writer};
use super::{GroupLogState, LogError, LogOptions, RecoveryReport, TornTail};

/// A log that can be written to.
pub(super) struct Recovered {
    pub(super) groups: BTreeMap<u32, GroupMemory>,
    pub(super) segments: BTreeMap<u64, Segment>,
    pub(super) writer: Writer,
    pub(super) report: RecoveryReport,
}

/// A segment as it was found.
struct Found {
    number: u64,
    file: Arc<dyn DiskFile>,
    header: Option<Header>,
    seal: Seal,
}

impl Found {
    fn open(disk: &dyn Disk, options: &LogOptions, number: u64) -> Result<Self, LogError> {
        let failed = || LogError::io(format!("read segment {number}"));
        let file = disk.open(&segment::name(number)).map_err(failed())?;
        let length = file.len().map_err(failed())?.min(RECORDS_AT);
        let mut head = vec![0; to_usize(length)];
        file.read_exact_at(0, &mut head).map_err(failed())?;
        let header = Header::decode(&head, number, options)?;
        // A head that ends early has no seal: a crash has torn the making of the segment.
        let seal = if head.len() < to_usize(RECORDS_AT) {
            Seal::Open
        } else {
            segment::seal(&head, options.identity(), number)
        };
        Ok(Self { number, file, header, seal })
    }

    fn content(&self) -> Result<Vec<u8>, LogError> {
        let failed = || LogError::io(format!("read segment {}", self.number));
        let mut bytes = vec![0; to_usize(self.file.len().map_err(failed())?)];
        self.file.read_exact_at(0, &mut bytes).map_err(failed())?;
        Ok(bytes)
    }

    /// Whether any mark in it proves that it was in use.
    fn was_used(&self, options: &LogOptions) -> Result<bool, LogError> {
        let bytes = self.content()?;
        let records = bytes.get(to_usize(RECORDS_AT)..).unwrap_or_default();
        Ok(record::highest_mark(records, options.identity().seed(self.number), RECORDS_AT).is_some())
    }
}

/// Offsets in a segment that is read into memory as a whole.
fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a segment fits into memory")
}

/// Reads the log in `disk`, or begins one.
pub(super) fn recover(disk: &dyn Disk, options: &LogOptions) -> Result<Recovered, LogError> {
    let names = disk.list().map_err(LogError::io("list its directory"))?;
    let mut numbers: Vec<u64> = names.iter().filter_map(|name| segment::number(name)).collect();
    numbers.sort_unstable();
    for pair in numbers.windows(2) {
        if pair[1] != pair[0] + 1 {
            return Err(LogError::corrupt(pair[0] + 1, 0, "this segment is missing"));
        }
    }
    let mut found = Vec::new();
    for number in numbers {
        found.push(Found::open(disk, options, number)?);
    }
    let Some(last) = found.last() else {
        return begin(disk, options);
    };

    // A first segment that was never finished holds nothing.
    if found.len() == 1 && last.number == 1 && !is_begun(last, options)? {
        if last.was_used(options)? {
            return Err(LogError::corrupt(1, 0, "the start of the segment is damaged, though it was in use"));
        }
        let failed = || LogError::failed("remove an unfinished first segment");
        disk.remove(&segment::name(1)).map_err(failed())?;
        disk.sync_directory().map_err(failed())?;
        return begin(disk, options);
    }

    let unfinished = take_unfinished(&mut found, options)?;
    check_chain(&found, unfinished.is_some())?;
    let mut replay = Replay::default();
    let mut end = None;
    for (position, segment) in found.iter().enumerate() {
        let next = found.get(position + 1).and_then(|next| next.header).map(|header| header.first_sequence);
        end = Some(replay.segment(segment, next, options)?);
    }
    let end = end.expect("there is a last segment");
    replay.check_complete()?;

    repair(disk, options, &found, unfinished.as_ref(), &end)?;
    Ok(replay.finish(&found, unfinished.map(|segment| segment.number), end))
}

/// Whether a first segment has both its header and its state record.
fn is_begun(segment: &Found, options: &LogOptions) -> Result<bool, LogError> {
    let bytes = segment.content()?;
    let records = bytes.get(to_usize(RECORDS_AT)..).unwrap_or_default();
    let state = record::decode(records, options.identity().seed(segment.number), RECORDS_AT);
    Ok(segment.header.is_some() && state.is_ok())
}

fn begin(disk: &dyn Disk, options: &LogOptions) -> Result<Recovered, LogError> {
    let made = segment::make(disk, options, 1, 1, Vec::new())?;
    let segment = Segment { file: Arc::clone(&made.file), bytes: made.end, ranges: BTreeMap::new() };
    Ok(Recovered {
        groups: BTreeMap::new(),
        segments: BTreeMap::from([(1, segment)]),
        writer: Writer {
            active: 1,
            file: made.file,
            end: made.end,
            begin: made.end,
            next_sequence: 2,
            synced: 1,
            marked: 0,
            length: made.end,
            dirty: false,
            groups: BTreeMap::new(),
            buffer: Vec::new(),
            durable: Arc::default(),
        },
        report: RecoveryReport {
            fresh: true,
            segments: 1,
            records: 0,
            groups: 0,
            entries: 0,
            torn: None,
            unfinished_segment: None,
        },
    })
}

/// Takes a last segment off that its predecessor does not know of yet.
fn take_unfinished(found: &mut Vec<Found>, options: &LogOptions) -> Result<Option<Found>, LogError> {
    let [.., before, last] = found.as_slice() else {
        return Ok(None);
    };
    if before.seal == Seal::Sealed {
        return Ok(None);
    }
    if last.was_used(options)? {
        return Err(LogError::corrupt(
            before.number,
            64,
            format!("its seal is damaged, though segment {} was in use", last.number),
        ));
    }
    Ok(found.pop())
}

/// All segments have headers, and each but the last is sealed.
fn check_chain(found: &[Found], has_unfinished: bool) -> Result<(), LogError> {
    for (position, segment) in found.iter().enumerate() {
        let is_last = position + 1 == found.len();
        if segment.header.is_none() {
            return Err(LogError::corrupt(segment.number, 0, "its header is damaged"));
        }
        match (segment.seal, is_last) {
            (Seal::Sealed, false) | (Seal::Open, true) => {}
            (Seal::Sealed, true) => {
                let missing = segment.number + 1;
                return Err(LogError::corrupt(
                    missing,
                    0,
                    "this segment is missing: its predecessor is sealed",
                ));
            }
            // A crash may tear the seal while the successor is durable, but not in use.
            (Seal::Damaged, true) if has_unfinished => {}
            (Seal::Damaged | Seal::Open, _) => {
                return Err(LogError::corrupt(segment.number, 64, "its seal is damaged"));
            }
        }
    }
    Ok(())
}

/// The end of the last segment.
struct End {
    bytes: Vec<u8>,
    /// Where the valid records end.
    offset: usize,
    /// Where records begin that no mark vouches for.
    unmarked: usize,
    /// What the last mark says.
    marked: u64,
    /// Where the segment's first batch begins.
    begin: usize,
    torn: Option<TornTail>,
}

#[derive(Default)]
struct ReplayedGroup {
    state: GroupLogState,
    /// The last entries up to `state.last`. While older segments are gone, it may lack some that died later.
    slots: VecDeque<Slot>,
    /// Entries in front of these whose segments are gone, and that were moved before, by index.
    moved: BTreeMap<u64, Slot>,
}

#[derive(Default)]
struct Replay {
    groups: BTreeMap<u32, ReplayedGroup>,
    segments: BTreeMap<u64, Segment>,
    next_sequence: u64,
    records: u64,
}

impl Replay {
    /// Reads one segment; `next` is the first sequence of its successor.
    fn segment(&mut self, found: &Found, next: Option<u64>, options: &LogOptions) -> Result<End, LogError> {
        let number = found.number;
        let header = found.header.expect("check_chain has seen it");
        let is_oldest = self.segments.is_empty();
        if is_oldest {
            self.next_sequence = header.first_sequence;
        } else if self.next_sequence != header.first_sequence {
            return Err(LogError::corrupt(number, 48, "it does not continue the segment before it"));
        }
        let bytes = found.content()?;
        let segment =
            Segment { file: Arc::clone(&found.file), bytes: bytes.len() as u64, ranges: BTreeMap::new() };
        self.segments.insert(number, segment);

        let seed = options.identity().seed(number);
        // Its state record was durable before its predecessor was sealed.
        let mut marked = header.first_sequence;
        let mut offsets = Vec::new();
        let mut offset = to_usize(RECORDS_AT);
        let damage = loop {
            if next == Some(self.next_sequence) {
                break None;
            }
            let rest = &bytes[offset.min(bytes.len())..];
            let record = match record::decode(rest, seed, offset as u64) {
                Ok(record) if record.sequence == self.next_sequence => record,
                Ok(_) => break Some("a record with another sequence stands here"),
                Err(what) => break Some(what),
            };
            let body = record.body();
            if let Some(Body::Mark { synced }) = body {
                marked = marked.max(synced);
            }
            self.apply(number, offset as u64, &record, body, is_oldest && offsets.is_empty())?;
            offsets.push(offset);
            offset += record.bytes;
            self.next_sequence += 1;
            self.records += 1;
        };
        let mut end = End {
            offset: offset.min(bytes.len()),
            unmarked: offset.min(bytes.len()),
            marked,
            begin: offsets.get(1).copied().unwrap_or(offset),
            torn: None,
            bytes,
        };
        if let Some(what) = damage {
            let tail = &end.bytes[end.offset..];
            let proven = record::highest_mark(tail, seed, offset as u64).unwrap_or(0).max(marked);
            // In a segment that has a successor everything was durable.
            let proven = next.map_or(proven, |next| proven.max(next - 1));
            if self.next_sequence <= proven {
                return Err(LogError::corrupt(
                    number,
                    offset as u64,
                    format!(
                        "{what} (record {}), and everything up to record {proven} is known to have been durable",
                        self.next_sequence
                    ),
                ));
            }
            if let Some(last) = tail.iter().rposition(|byte| *byte != 0) {
                end.torn = Some(TornTail { segment: number, offset: offset as u64, bytes: last as u64 + 1 });
            }
        }
        let first_unmarked = marked.saturating_add(1).saturating_sub(header.first_sequence);
        if let Some(offset) = offsets.get(to_usize(first_unmarked)) {
            end.unmarked = *offset;
        }
        Ok(end)
    }

    fn apply(
        &mut self,
        number: u64,
        offset: u64,
        record: &Record<'_>,
        body: Option<Body<'_>>,
        starts_the_log: bool,
    ) -> Result<(), LogError> {
        let corrupt = |what: String| Err(LogError::corrupt(number, offset, what));
        let Some(body) = body else {
            return corrupt("the record is whole, but of a kind that this build does not know".to_owned());
        };
        if starts_the_log && !matches!(body, Body::State(_)) {
            return corrupt("the segment does not start with a state record".to_owned());
        }
        if let Body::State(states) = body {
            if starts_the_log {
                let group = |state| ReplayedGroup { state, ..ReplayedGroup::default() };
                self.groups = states.into_iter().map(|(id, state)| (id, group(state))).collect();
            } else if !states.iter().copied().eq(self.groups.iter().map(|(id, group)| (*id, group.state))) {
                return corrupt("its state record contradicts the segments before it".to_owned());
            }
            return Ok(());
        }
        self.change(number, offset, record.group, body)
    }

    /// Does to a group what a record says of it alone.
    fn change(&mut self, number: u64, offset: u64, id: u32, body: Body<'_>) -> Result<(), LogError> {
        if matches!(body, Body::Mark { .. }) {
            return Ok(());
        }
        let corrupt = |what: String| Err(LogError::corrupt(number, offset, what));
        let group = self.groups.entry(id).or_default();
        let next = group.state.next_index();
        match body {
            Body::Mark { .. } | Body::State(_) => {}
            Body::Entry { position, payload } => {
                if position.index != next {
                    return corrupt(format!(
                        "entry {} of group {id} stands where {next} must",
                        position.index
                    ));
                }
                let length = u32::try_from(payload.len()).expect("a record's length has 32 bits");
                let place = Place::At { segment: number, offset, length };
                group.slots.push_back(Slot { term: position.term, node: position.node, place });
                group.state.last = Some(position);
                writer::add(&mut self.segments, number, id, position.index);
            }
            Body::Vote(vote) => group.state.vote = Some(vote),
            Body::Committed(committed) => group.state.committed = committed,
            Body::Truncate(last) => {
                let keep = last.map_or(0, |last| last.index + 1);
                let Some(cut) = next.checked_sub(keep) else {
                    return corrupt(format!("group {id} is truncated behind its end"));
                };
                let left = group.slots.len().saturating_sub(usize::try_from(cut).unwrap_or(usize::MAX));
                group.slots.truncate(left);
                group.moved.retain(|index, _| *index < keep);
                group.state.last = last;
                writer::truncate(&mut self.segments, id, last);
            }
            Body::Purge(upto) => {
                group.state.purge(upto);
                let live = group.state.next_index() - group.state.first_index();
                while group.slots.len() as u64 > live {
                    group.slots.pop_front();
                }
                group.moved.retain(|index, _| *index > upto.index);
                writer::purge(&mut self.segments, id, upto);
            }
            Body::Reset(upto) => {
                group.slots.clear();
                group.moved.clear();
                (group.state.last_purged, group.state.last) = (Some(upto), Some(upto));
                writer::reset(&mut self.segments, id);
            }
            Body::Moved { position, payload } => {
                let index = position.index;
                if index < group.state.first_index() || index >= next {
                    return corrupt(format!("entry {index} of group {id} is moved, and is none"));
                }
                let length = u32::try_from(payload.len()).expect("a record's length has 32 bits");
                let place = Place::At { segment: number, offset, length };
                let slot = Slot { term: position.term, node: position.node, place };
                let before = match index.checked_sub(next - group.slots.len() as u64) {
                    Some(at) => {
                        group.slots.get_mut(to_usize(at)).map(|before| std::mem::replace(before, slot))
                    }
                    None => group.moved.insert(index, slot),
                };
                if let Some(before) = before {
                    if (before.term, before.node) != (slot.term, slot.node) {
                        return corrupt(format!("entry {index} of group {id} was moved, but is another one"));
                    }
                    if let Place::At { segment, .. } = before.place {
                        writer::moved(&mut self.segments, segment, id, index);
                    }
                }
                writer::add(&mut self.segments, number, id, index);
            }
        }
        Ok(())
    }

    /// Every live entry was found: the moved ones in front of the others.
    fn check_complete(&mut self) -> Result<(), LogError> {
        let oldest = self.segments.first_key_value().map_or(0, |(number, _)| *number);
        for (id, group) in &mut self.groups {
            let (first, next) = (group.state.first_index(), group.state.next_index());
            let mut moved = std::mem::take(&mut group.moved);
            while let Some(before) = next.checked_sub(group.slots.len() as u64 + 1).filter(|at| *at >= first)
                && let Some(slot) = moved.remove(&before)
            {
                group.slots.push_front(slot);
            }
            let have = group.slots.len() as u64;
            if first > next || next - first != have {
                return Err(LogError::corrupt(
                    oldest.saturating_sub(1),
                    0,
                    format!(
                        "entries {first} to {} of group {id} are missing: a segment is gone",
                        next - have
                    ),
                ));
            }
        }
        Ok(())
    }

    fn finish(self, found: &[Found], unfinished_segment: Option<u64>, end: End) -> Recovered {
        let last = found.last().expect("there is a last segment");
        let report = RecoveryReport {
            fresh: false,
            segments: found.len() as u64,
            records: self.records,
            groups: self.groups.len(),
            entries: self.groups.values().map(|group| group.slots.len() as u64).sum(),
            torn: end.torn,
            unfinished_segment,
        };
        let writer = Writer {
            active: last.number,
            file: Arc::clone(&last.file),
            end: end.offset as u64,
            begin: end.begin as u64,
            next_sequence: self.next_sequence,
            synced: self.next_sequence - 1,
            marked: end.marked,
            length: end.bytes.len() as u64,
            dirty: false,
            groups: self.groups.iter().map(|(id, group)| (*id, group.state)).collect(),
            buffer: Vec::new(),
            durable: Arc::default(),
        };
        let groups = self
            .groups
            .into_iter()
            .map(|(id, group)| {
                (id, GroupMemory { state: group.state, slots: group.slots, ..GroupMemory::default() })
            })
            .collect();
        Recovered { groups, segments: self.segments, writer, report }
    }
}

/// Makes the files say what was decided, durably, before anybody builds on it.
fn repair(
    disk: &dyn Disk,
    options: &LogOptions,
    found: &[Found],
    unfinished: Option<&Found>,
    end: &End,
) -> Result<(), LogError> {
    let last = found.last().expect("there is a last segment");
    let failed = || LogError::failed(format!("repair segment {}", last.number));
    if let [.., before, _] = found {
        segment::write_seal(before.file.as_ref(), options.identity(), before.number)?;
    }
    // Header, seal slot and the unvouched end may be in the page cache only: written again, the next sync counts.
    let header_bytes = 64.min(end.bytes.len());
    last.file.write_at(0, &end.bytes[..header_bytes]).map_err(failed())?;
    last.file.write_at(64, &[0; 32]).map_err(failed())?;
    last.file.write_at(end.unmarked as u64, &end.bytes[end.unmarked..end.offset]).map_err(failed())?;
    if let Some(torn) = end.torn {
        tracing::warn!(
            segment = torn.segment,
            offset = torn.offset,
            bytes = torn.bytes,
            "cut off the end of the Raft log that a crash has torn; nothing of it had been acknowledged"
        );
        last.file.write_at(torn.offset, &vec![0; to_usize(torn.bytes)]).map_err(failed())?;
    }
    last.file.sync_data().map_err(failed())?;
    // Only now: a damaged seal without a successor would look like a missing segment.
    if let Some(unfinished) = unfinished {
        disk.remove(&segment::name(unfinished.number)).map_err(failed())?;
    }
    disk.sync_directory().map_err(failed())
}
