//! How records stand in a segment: encoding, checking, decoding.
//!
//! Never trusts a byte: whatever is in a file, decoding answers with a reason, it does not panic.

use bytes::Bytes;
use tidewall_env::disk::DiskFile;

use super::{GroupLogState, LogError, LogPosition, Vote};

/// Bytes of a record in front of its payload: checksum 4, payload length 4, sequence 8, group 4, kind 1, zero 3.
pub(super) const HEADER_BYTES: usize = 24;
/// Bytes of an entry's payload in front of the caller's: term, node, index.
const POSITION_BYTES: usize = 24;
const ALIGNMENT: usize = 8;

/// Whose log it is. Part of every checksum.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) cluster: [u8; 16],
    pub(super) node: u64,
}

impl Identity {
    /// What the checksums in one segment start from.
    pub(super) fn seed(self, segment: u64) -> u32 {
        let seed = crc32c::crc32c(&self.cluster);
        let seed = crc32c::crc32c_append(seed, &self.node.to_le_bytes());
        crc32c::crc32c_append(seed, &segment.to_le_bytes())
    }
}

/// A decoded record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Body<'a> {
    /// Everything up to and including this sequence is durable.
    Mark {
        synced: u64,
    },
    /// All groups as of here; the first record of each segment.
    State(Vec<(u32, GroupLogState)>),
    Entry {
        position: LogPosition,
        payload: &'a [u8],
    },
    Vote(Vote),
    Committed(Option<LogPosition>),
    Truncate(Option<LogPosition>),
    Purge(LogPosition),
    Reset(LogPosition),
    /// An entry of an older segment again, so that the older one can go. It changes the place and nothing else.
    Moved {
        position: LogPosition,
        payload: &'a [u8],
    },
}

const MARK: u8 = 1;
const STATE: u8 = 2;
const ENTRY: u8 = 3;
const VOTE: u8 = 4;
const COMMITTED: u8 = 5;
const TRUNCATE: u8 = 6;
const PURGE: u8 = 7;
const RESET: u8 = 8;
const MOVED: u8 = 9;

impl Body<'_> {
    fn kind(&self) -> u8 {
        match self {
            Self::Mark { .. } => MARK,
            Self::State(_) => STATE,
            Self::Entry { .. } => ENTRY,
            Self::Vote(_) => VOTE,
            Self::Committed(_) => COMMITTED,
            Self::Truncate(_) => TRUNCATE,
            Self::Purge(_) => PURGE,
            Self::Reset(_) => RESET,
            Self::Moved { .. } => MOVED,
        }
    }

    fn put(&self, buffer: &mut Vec<u8>) {
        match self {
            Self::Mark { synced } => buffer.extend_from_slice(&synced.to_le_bytes()),
            Self::State(groups) => {
                for (group, state) in groups {
                    buffer.extend_from_slice(&group.to_le_bytes());
                    put_vote(buffer, state.vote);
                    put_optional(buffer, state.last_purged);
                    put_optional(buffer, state.last);
                    put_optional(buffer, state.committed);
                }
            }
            Self::Entry { position, payload } | Self::Moved { position, payload } => {
                put_position(buffer, *position);
                buffer.extend_from_slice(payload);
            }
            Self::Vote(vote) => put_vote(buffer, Some(*vote)),
            Self::Committed(position) | Self::Truncate(position) => put_optional(buffer, *position),
            Self::Purge(position) | Self::Reset(position) => put_position(buffer, *position),
        }
    }
}

fn put_position(buffer: &mut Vec<u8>, position: LogPosition) {
    for number in [position.term, position.node, position.index] {
        buffer.extend_from_slice(&number.to_le_bytes());
    }
}

fn put_optional(buffer: &mut Vec<u8>, position: Option<LogPosition>) {
    buffer.push(u8::from(position.is_some()));
    if let Some(position) = position {
        put_position(buffer, position);
    }
}

fn put_vote(buffer: &mut Vec<u8>, vote: Option<Vote>) {
    match vote {
        None => buffer.push(0),
        Some(vote) => {
            buffer.push(if vote.committed { 2 } else { 1 });
            buffer.extend_from_slice(&vote.term.to_le_bytes());
            buffer.extend_from_slice(&vote.node.to_le_bytes());
        }
    }
}

/// Reads fields off the front of a payload.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*head)
    }

    fn number(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn position(&mut self) -> Option<LogPosition> {
        Some(LogPosition { term: self.number()?, node: self.number()?, index: self.number()? })
    }

    fn optional(&mut self) -> Option<Option<LogPosition>> {
        match self.array::<1>()?[0] {
            0 => Some(None),
            1 => self.position().map(Some),
            _ => None,
        }
    }

    fn vote(&mut self) -> Option<Option<Vote>> {
        let committed = match self.array::<1>()?[0] {
            0 => return Some(None),
            1 => false,
            2 => true,
            _ => return None,
        };
        Some(Some(Vote { term: self.number()?, node: self.number()?, committed }))
    }

    fn body(mut self, kind: u8) -> Option<Body<'a>> {
        let body = match kind {
            MARK => Body::Mark { synced: self.number()? },
            STATE => {
                let mut groups = Vec::new();
                while !self.0.is_empty() {
                    let group = self.array().map(u32::from_le_bytes)?;
                    let (vote, last_purged) = (self.vote()?, self.optional()?);
                    let (last, committed) = (self.optional()?, self.optional()?);
                    groups.push((group, GroupLogState { last_purged, last, vote, committed }));
                }
                Body::State(groups)
            }
            ENTRY => {
                let position = self.position()?;
                Body::Entry { position, payload: std::mem::take(&mut self.0) }
            }
            VOTE => Body::Vote(self.vote()??),
            COMMITTED => Body::Committed(self.optional()?),
            TRUNCATE => Body::Truncate(self.optional()?),
            PURGE => Body::Purge(self.position()?),
            RESET => Body::Reset(self.position()?),
            MOVED => {
                let position = self.position()?;
                Body::Moved { position, payload: std::mem::take(&mut self.0) }
            }
            _ => return None,
        };
        self.0.is_empty().then_some(body)
    }
}

/// Bytes that the record of an entry takes.
pub(super) fn entry_bytes(payload: usize) -> usize {
    (HEADER_BYTES + POSITION_BYTES + payload).next_multiple_of(ALIGNMENT)
}

/// Puts records together that will be written at one offset of one segment.
pub(super) struct Encoder<'a> {
    pub(super) buffer: &'a mut Vec<u8>,
    pub(super) seed: u32,
    /// Where in the segment the buffer will start.
    pub(super) base: u64,
    /// Sequence of the next record.
    pub(super) sequence: u64,
}

impl Encoder<'_> {
    /// Adds a record and returns its offset in the segment.
    pub(super) fn add(&mut self, group: u32, body: &Body<'_>) -> u64 {
        let start = self.buffer.len();
        let offset = self.base + start as u64;
        self.buffer.extend_from_slice(&[0; HEADER_BYTES]);
        body.put(self.buffer);
        let length = self.buffer.len() - start - HEADER_BYTES;
        let length = u32::try_from(length).expect("payloads are bounded far below 4 GiB");
        let header = &mut self.buffer[start..start + HEADER_BYTES];
        header[4..8].copy_from_slice(&length.to_le_bytes());
        header[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        header[16..20].copy_from_slice(&group.to_le_bytes());
        header[20] = body.kind();
        let checksum = checksum(self.seed, offset, &self.buffer[start + 4..]);
        self.buffer[start..start + 4].copy_from_slice(&checksum.to_le_bytes());
        self.buffer.resize(self.buffer.len().next_multiple_of(ALIGNMENT), 0);
        self.sequence += 1;
        offset
    }
}

fn checksum(seed: u32, offset: u64, bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(seed, &offset.to_le_bytes()), bytes)
}

/// A record whose checksum holds.
#[derive(Debug)]
pub(super) struct Record<'a> {
    pub(super) sequence: u64,
    pub(super) group: u32,
    kind: u8,
    payload: &'a [u8],
    /// Bytes that it takes, with padding.
    pub(super) bytes: usize,
}

impl<'a> Record<'a> {
    /// What it says; `None` if this build does not know it, which is not damage of the bytes.
    pub(super) fn body(&self) -> Option<Body<'a>> {
        Fields(self.payload).body(self.kind)
    }
}

/// The record at the start of `bytes`, which stand at `offset` of the segment; otherwise what is wrong.
pub(super) fn decode(bytes: &[u8], seed: u32, offset: u64) -> Result<Record<'_>, &'static str> {
    let mut fields = Fields(bytes);
    let header = (|| {
        let stored = u32::from_le_bytes(fields.array()?);
        let length = u32::from_le_bytes(fields.array()?);
        let sequence = fields.number()?;
        let group = u32::from_le_bytes(fields.array()?);
        let [kind, zeros @ ..] = fields.array::<4>()?;
        Some((stored, length, sequence, group, kind, zeros))
    })();
    let Some((stored, length, sequence, group, kind, zeros)) = header else {
        return Err("the file ends within a record's header");
    };
    let length = length as usize;
    let Some(payload) = fields.0.get(..length) else {
        return Err("the record's length leads beyond the end of the file");
    };
    if zeros != [0; 3] || checksum(seed, offset, &bytes[4..HEADER_BYTES + length]) != stored {
        return Err("the record's checksum does not hold");
    }
    let taken = (HEADER_BYTES + length).next_multiple_of(ALIGNMENT);
    match bytes.get(HEADER_BYTES + length..taken) {
        Some(padding) if padding.iter().all(|byte| *byte == 0) => {}
        _ => return Err("the record's padding is not zero"),
    }
    Ok(Record { sequence, group, kind, payload, bytes: taken })
}

/// The highest durable sequence that a mark anywhere in `bytes` proves, whatever is between the marks.
pub(super) fn highest_mark(bytes: &[u8], seed: u32, offset: u64) -> Option<u64> {
    let mut highest = None;
    // Records are aligned, and so is where this starts: the length and kind rule out nearly every candidate.
    for start in (0..bytes.len()).step_by(ALIGNMENT) {
        let candidate = &bytes[start..];
        if candidate.get(20) == Some(&MARK)
            && candidate.get(4..8) == Some(&8_u32.to_le_bytes())
            && let Ok(record) = decode(candidate, seed, offset + start as u64)
            && let Some(Body::Mark { synced }) = record.body()
        {
            highest = highest.max(Some(synced));
        }
    }
    highest
}

/// Reads an entry back from the disk and checks that it is what was written.
pub(super) fn read_entry(
    file: &dyn DiskFile,
    identity: Identity,
    segment: u64,
    offset: u64,
    length: u32,
    group: u32,
    position: LogPosition,
) -> Result<Bytes, LogError> {
    let mut bytes = vec![0; entry_bytes(length as usize)];
    file.read_exact_at(offset, &mut bytes).map_err(LogError::io(format!(
        "read entry {} of group {group} from segment {segment}",
        position.index
    )))?;
    let start = HEADER_BYTES + POSITION_BYTES;
    let record = decode(&bytes, identity.seed(segment), offset).map_err(|what| {
        LogError::corrupt(segment, offset, format!("{what} (entry {} of group {group})", position.index))
    })?;
    match record.body() {
        Some(Body::Entry { position: found, payload } | Body::Moved { position: found, payload })
            if found == position && record.group == group && payload.len() == length as usize =>
        {
            Ok(Bytes::from(bytes).slice(start..start + length as usize))
        }
        _ => Err(LogError::corrupt(
            segment,
            offset,
            format!("another record stands where entry {} of group {group} was written", position.index),
        )),
    }
}
