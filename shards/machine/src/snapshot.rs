//! The file form of a whole state at one log index: for new replicas, exports and imports.
//!
//! Format 1: magic, format number, header (checksummed), pages (each checksummed), end mark with a BLAKE3 hash
//! over everything before it. [`encode`] yields the file in parts and never holds it whole; [`read`]
//! verifies the checksums, the hash, and at last the state digest. Nothing here touches a disk.

use std::io::Read;

use tidewall_domain::codec::{DecodeError, Reader, Writer};

use crate::machine::{Frozen, Head, LoadError, Machine, Position};

const MAGIC: &[u8; 8] = b"TIDESNAP";
/// Version of the file format that this build writes and reads.
pub const SNAPSHOT_FORMAT: u32 = 1;
/// Longest header or page; more is damage.
const PART_MAX: usize = 64 << 20;
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
            body.u8(page.table());
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

struct Source<'a, R> {
    from: &'a mut R,
    hasher: blake3::Hasher,
}

impl<R: Read> Source<'_, R> {
    fn take(&mut self, bytes: &mut [u8]) -> Result<(), SnapshotError> {
        self.from.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => SnapshotError::Damaged("it is cut short"),
            _ => error.into(),
        })?;
        self.hasher.update(bytes);
        Ok(())
    }

    fn u32(&mut self) -> Result<u32, SnapshotError> {
        let mut bytes = [0; 4];
        self.take(&mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn part(&mut self) -> Result<Vec<u8>, SnapshotError> {
        let length = self.u32()? as usize;
        let checksum = self.u32()?;
        if length > PART_MAX {
            return Err(SnapshotError::Damaged("a part is impossibly long"));
        }
        let mut bytes = vec![0; length];
        self.take(&mut bytes)?;
        if crc32c::crc32c(&bytes) != checksum {
            return Err(SnapshotError::Damaged("a checksum does not match"));
        }
        Ok(bytes)
    }

    fn header(&mut self) -> Result<Header, SnapshotError> {
        let mut magic = [0; 8];
        self.take(&mut magic).map_err(|_| SnapshotError::Foreign)?;
        if magic != *MAGIC {
            return Err(SnapshotError::Foreign);
        }
        let format = self.u32()?;
        if format != SNAPSHOT_FORMAT {
            return Err(SnapshotError::Format(format));
        }
        let bytes = self.part()?;
        let mut r = Reader::new(&bytes);
        let applied = r.option(|r| Ok(Position { term: r.u64()?, node: r.u64()?, index: r.u64()? }))?;
        let mut chain = [0; 32];
        chain.copy_from_slice(r.raw(32)?);
        let membership = r.bytes()?.to_vec();
        let header = Header {
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

/// Reads only the header; the rest is not verified.
pub fn read_header(from: &mut impl Read) -> Result<Header, SnapshotError> {
    Source { from, hasher: blake3::Hasher::new() }.header()
}

/// Reads and verifies a whole file.
pub fn read(from: &mut impl Read) -> Result<Loaded, SnapshotError> {
    let mut source = Source { from, hasher: blake3::Hasher::new() };
    let header = source.header()?;
    let mut loader = Machine::loader();
    loop {
        let mut tag = [0];
        source.take(&mut tag)?;
        match tag[0] {
            PAGE => {
                let bytes = source.part()?;
                let (table, content) =
                    bytes.split_first().ok_or(SnapshotError::Damaged("a page is empty"))?;
                loader.page(*table, content)?;
            }
            END => break,
            _ => return Err(SnapshotError::Damaged("a part is of no known kind")),
        }
    }
    let expected = source.hasher.finalize();
    let mut found = [0; 32];
    source.take(&mut found)?;
    if found != *expected.as_bytes() {
        return Err(SnapshotError::Damaged("its hash does not match"));
    }
    if source.from.read(&mut [0])? != 0 {
        return Err(SnapshotError::Damaged("something follows its end"));
    }
    let machine = loader.finish(header.head.clone(), header.digest)?;
    Ok(Loaded { header, machine })
}
