//! The file form of a whole state at one log index: for new replicas, exports and imports.
//!
//! Format 3: magic, format number, header (checksummed), pages (each checksummed), end mark with a BLAKE3 hash
//! over everything before it. [`encode`] yields the file in parts and never holds it whole; [`Parser`] takes it in
//! pieces and verifies the checksums, the hash, and at last the state digest. Nothing here touches a disk.

use std::io::Read;

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::table::TableId;

use crate::error::LoadError;
use crate::machine::{Frozen, Head, Loader, Machine, Position};

const MAGIC: &[u8; 8] = b"TIDESNAP";
/// Version of the file format that this build writes and reads.
pub const SNAPSHOT_FORMAT: u32 = 3;
/// Longest header or page; more is damage.
const PART_MAX: usize = 64 << 20;
/// Length and checksum of a header or page.
const PART_HEAD_BYTES: usize = 8;
/// Read from a file at a time.
const READ_BYTES: usize = 64 << 10;
const PAGE: u8 = 1;
const END: u8 = 2;

/// What stands at the head of a snapshot file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// What was applied.
    pub head: Head,
    /// State digest.
    pub digest: u128,
    /// Incarnation of the group.
    pub incarnation: u64,
    /// Apply version of the rows.
    pub apply_version: u32,
    /// Number of rows.
    pub rows: u64,
}

/// Why a snapshot file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// It could not be read.
    #[error("the snapshot cannot be read: {0}")]
    Io(#[from] std::io::Error),
    /// It is something else.
    #[error("this is not a Tidewall snapshot file")]
    Foreign,
    /// It is of another format.
    #[error(
        "the snapshot has format {0}, this build reads format {SNAPSHOT_FORMAT}: use the build that wrote it"
    )]
    Format(u32),
    /// It is damaged.
    #[error("the snapshot is damaged: {0}; fetch it again")]
    Damaged(&'static str),
    /// Its content does not decode.
    #[error("the snapshot does not decode: {0}")]
    Decode(#[from] DecodeError),
    /// Its rows are not a state.
    #[error("the snapshot holds no valid state: {0}")]
    Load(#[from] LoadError),
}

/// A state that was read from a snapshot file.
#[derive(Debug)]
pub struct Loaded {
    /// The file's header.
    pub header: Header,
    /// The state.
    pub machine: Machine,
}

/// Yields the file in parts of a page each.
pub fn encode(frozen: &Frozen) -> impl Iterator<Item = Vec<u8>> + '_ {
    let mut hasher = blake3::Hasher::new();
    let mut first = Writer::new();
    first.raw(MAGIC);
    first.raw(&SNAPSHOT_FORMAT.to_le_bytes());
    let mut header = Writer::new();
    let applied = frozen.head.applied;
    header.option(applied.as_ref(), |w, at| {
        w.u64(at.term);
        w.u64(at.node);
        w.u64(at.index);
    });
    header.raw(&frozen.head.chain);
    header.bytes(&frozen.head.membership);
    header.u128(frozen.digest);
    header.u64(frozen.incarnation);
    header.u32(frozen.apply_version);
    header.u64(frozen.rows);
    part(&mut first, &header.into_bytes());
    let first = first.into_bytes();
    hasher.update(&first);
    let mut pages = frozen.pages.iter();
    let mut ended = false;
    std::iter::once(first).chain(std::iter::from_fn(move || {
        if let Some((page, content)) = pages.by_ref().find_map(|page| Some((page, page.encode()?))) {
            let mut out = Writer::new();
            out.u8(PAGE);
            let mut body = Writer::new();
            body.key_u16(page.table());
            body.raw(&content);
            part(&mut out, &body.into_bytes());
            hasher.update(out.as_slice());
            return Some(out.into_bytes());
        }
        if ended {
            return None;
        }
        ended = true;
        let mut out = Writer::new();
        out.u8(END);
        hasher.update(out.as_slice());
        out.raw(hasher.finalize().as_bytes());
        Some(out.into_bytes())
    }))
}

/// Length, checksum, bytes.
fn part(w: &mut Writer, bytes: &[u8]) {
    w.raw(&(bytes.len() as u32).to_le_bytes());
    w.raw(&crc32c::crc32c(bytes).to_le_bytes());
    w.raw(bytes);
}

/// What a file goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Magic,
    Format,
    Header,
    Tag,
    Page,
    Hash,
    Nothing,
    /// What came is no snapshot file.
    Failed,
}

/// Takes a file in pieces of any size, in order, and builds its rows as they come in.
///
/// Holds what is incomplete of one header or page beside the rows. What it has built counts for nothing before
/// [`Parser::finish`] has said so.
#[derive(Debug)]
pub struct Parser {
    /// Over what has been read, but for the hash itself.
    hasher: blake3::Hasher,
    /// The beginning of something that is incomplete.
    pending: Vec<u8>,
    next: Next,
    header: Option<Header>,
    loader: Loader,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new()
    }
}

impl Parser {
    /// Begins a file.
    pub fn new() -> Self {
        Self {
            hasher: blake3::Hasher::new(),
            pending: Vec::new(),
            next: Next::Magic,
            header: None,
            loader: Machine::loader(),
        }
    }

    /// The next piece of the file. Costs what the piece costs, however large the file is.
    ///
    /// # Errors
    /// What is wrong with the file as far as it has come; nothing that follows can mend it.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), SnapshotError> {
        let mut pending = std::mem::take(&mut self.pending);
        let taken = if pending.is_empty() {
            self.items(bytes).map(|used| pending.extend_from_slice(&bytes[used..]))
        } else {
            pending.extend_from_slice(bytes);
            self.items(&pending).map(|used| drop(pending.drain(..used)))
        };
        self.pending = pending;
        if taken.is_err() {
            self.next = Next::Failed;
        }
        taken
    }

    /// Takes in what is complete; says how many bytes that were.
    fn items(&mut self, bytes: &[u8]) -> Result<usize, SnapshotError> {
        let mut rest = bytes;
        while let Some((item, after)) = self.length(rest)?.and_then(|length| rest.split_at_checked(length)) {
            self.item(item)?;
            rest = after;
        }
        Ok(bytes.len() - rest.len())
    }

    /// Length of what comes next, as soon as that is known.
    fn length(&self, bytes: &[u8]) -> Result<Option<usize>, SnapshotError> {
        Ok(match self.next {
            Next::Magic => Some(MAGIC.len()),
            Next::Format => Some(size_of::<u32>()),
            Next::Tag => Some(1),
            Next::Hash => Some(blake3::OUT_LEN),
            Next::Header | Next::Page if bytes.len() < PART_HEAD_BYTES => None,
            Next::Header | Next::Page => match le_u32(bytes) as usize {
                length if length > PART_MAX => {
                    return Err(SnapshotError::Damaged("a part is impossibly long"));
                }
                length => Some(PART_HEAD_BYTES + length),
            },
            Next::Nothing if bytes.is_empty() => None,
            Next::Nothing => return Err(SnapshotError::Damaged("something follows its end")),
            Next::Failed => return Err(SnapshotError::Damaged("what came before is not valid")),
        })
    }

    fn item(&mut self, item: &[u8]) -> Result<(), SnapshotError> {
        if self.next == Next::Hash {
            self.next = Next::Nothing;
            return if item == self.hasher.finalize().as_bytes() {
                Ok(())
            } else {
                Err(SnapshotError::Damaged("its hash does not match"))
            };
        }
        self.hasher.update(item);
        self.next = match self.next {
            Next::Magic if item == MAGIC => Next::Format,
            Next::Magic => return Err(SnapshotError::Foreign),
            Next::Format => match le_u32(item) {
                SNAPSHOT_FORMAT => Next::Header,
                other => return Err(SnapshotError::Format(other)),
            },
            Next::Header => {
                self.header = Some(Header::decode(part_content(item)?)?);
                Next::Tag
            }
            Next::Page => {
                let (table, content) = part_content(item)?
                    .split_first_chunk()
                    .ok_or(SnapshotError::Damaged("a page is empty"))?;
                self.loader.page(TableId::from_be_bytes(*table), content)?;
                Next::Tag
            }
            Next::Tag => match item {
                [PAGE] => Next::Page,
                [END] => Next::Hash,
                _ => return Err(SnapshotError::Damaged("a part is of no known kind")),
            },
            other @ (Next::Hash | Next::Nothing | Next::Failed) => other,
        };
        Ok(())
    }

    fn complete(&self) -> Result<&Header, SnapshotError> {
        match (self.next, &self.header) {
            (Next::Nothing, Some(header)) => Ok(header),
            (Next::Magic, _) => Err(SnapshotError::Foreign),
            (Next::Failed, _) => Err(SnapshotError::Damaged("what came before is not valid")),
            _ => Err(SnapshotError::Damaged("it is cut short")),
        }
    }

    /// Whether a whole file came, with rows of no later apply version than `supported`. Costs little.
    pub(crate) fn verify(&self, supported: u32) -> Result<(), SnapshotError> {
        Ok(self.loader.verify(self.complete()?.digest, supported)?)
    }

    /// The bare rows, verified or not.
    pub(crate) fn into_rows(self) -> Machine {
        self.loader.into_rows()
    }

    /// The state, if a whole file came and its rows have the digest of its header.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub fn finish(self) -> Result<Loaded, SnapshotError> {
        let header = self.complete()?.clone();
        let machine = self.loader.finish(header.head.clone(), header.digest)?;
        Ok(Loaded { header, machine })
    }
}

impl Header {
    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let applied = r.option(|r| Ok(Position { term: r.u64()?, node: r.u64()?, index: r.u64()? }))?;
        let mut chain = [0; 32];
        chain.copy_from_slice(r.raw(32)?);
        let membership = r.bytes()?.to_vec();
        let header = Self {
            head: Head { applied, chain, membership },
            digest: r.u128()?,
            incarnation: r.u64()?,
            apply_version: r.u32()?,
            rows: r.u64()?,
        };
        r.finish()?;
        Ok(header)
    }
}

/// The first four bytes, little endian; whoever asks has them.
fn le_u32(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).rev().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

/// What a whole part carries, if its checksum is right.
fn part_content(part: &[u8]) -> Result<&[u8], SnapshotError> {
    let (head, content) = part.split_at(PART_HEAD_BYTES);
    if crc32c::crc32c(content) != le_u32(&head[4..]) {
        return Err(SnapshotError::Damaged("a checksum does not match"));
    }
    Ok(content)
}

/// Reads and verifies a whole file.
///
/// # Errors
/// What is wrong with the file, or with reading it.
pub fn read(from: &mut impl Read) -> Result<Loaded, SnapshotError> {
    let mut parser = Parser::new();
    let mut piece = vec![0; READ_BYTES];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return parser.finish(),
            Ok(read) => parser.push(&piece[..read])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
}
