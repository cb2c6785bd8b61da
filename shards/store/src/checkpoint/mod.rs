//! Checkpoints: exactly the state at one log index, on disk, so that a restart replays only what came after.
//!
//! [`CheckpointStore`] is what the rest of the system knows; [`sled_store`] is the engine in use,
//! [`memory`] a double for tests and simulation. A checkpoint is written in *generations*: only changed pages, then a
//! record with index and digest. A generation that was cut short is recognised by its digest and
//! discarded in favour of the one before it. The log is purged only behind a generation that was synced and, after
//! the store was opened anew, read back and verified.
//!
//! Nothing here decides anything: a state that does not have its digest is an error, never a guess.

pub mod memory;
pub mod sled_store;
#[cfg(test)]
mod tests;
mod writer;

use tidewall_machine::domain::codec::{DecodeError, Reader, Writer};
use tidewall_machine::domain::table::TableId;
use tidewall_machine::{Frozen, Head, LoadError, Machine, Position};

pub use writer::{CheckpointWriter, Written};

/// Version of the checkpoint format that this build reads and writes.
pub const CHECKPOINT_FORMAT: u32 = 2;

/// A stored generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Numbered from 1.
    pub number: u64,
    /// Pages of earlier generations than this one are not part of the state.
    pub base: u64,
    /// What was applied.
    pub head: Head,
    /// State digest.
    pub digest: u128,
    /// Number of rows.
    pub rows: u64,
}

/// Why a checkpoint cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// The store failed to write or to sync: what it holds is unknown until it was opened anew.
    #[error(
        "the checkpoint store failed while {doing}: {what}; stop this node, check the disk, then start it again"
    )]
    Failed {
        /// What was being done.
        doing: &'static str,
        /// What the engine said.
        what: String,
    },
    /// The store finds its own files damaged: nothing in it can be trusted, whichever group it is of.
    #[error(
        "the checkpoint store is damaged, as was found while {doing}: {what}; this node must not serve: remove its \
         data directory and let it rejoin under a new id"
    )]
    Corrupt {
        /// What was being done.
        doing: &'static str,
        /// What the engine said.
        what: String,
    },
    /// The stored state of one group is damaged.
    #[error(
        "the checkpoint of group {group} is damaged: {what}; this replica must not serve: remove the node's \
         data directory and let the node rejoin under a new id"
    )]
    Damaged {
        /// The group.
        group: u32,
        /// What is wrong.
        what: String,
    },
    /// The store belongs to something else, or another build.
    #[error("{0}")]
    Foreign(String),
}

/// Where the checkpoints of a node's groups are kept.
pub trait CheckpointStore: Send {
    /// Stores a freeze of a group as its next generation; durable on return.
    fn write(&mut self, group: u32, frozen: &Frozen) -> Result<Generation, CheckpointError>;
    /// The newest whole state of a group; `None` when there has never been one.
    fn load(&mut self, group: u32) -> Result<Option<(Generation, Machine)>, CheckpointError>;
    /// Forgets everything stored of a group, whole or not; durable on return.
    fn discard(&mut self, group: u32) -> Result<(), CheckpointError>;
    /// Opens the store anew and reads back what was written since the last verification, for all groups.
    fn verify(&mut self) -> Result<(), CheckpointError>;
    /// Bytes on disk.
    fn disk_bytes(&self) -> u64;
}

impl Generation {
    fn encode(&self) -> Vec<u8> {
        let mut w = Writer::new();
        w.u32(CHECKPOINT_FORMAT);
        w.u64(self.number);
        w.u64(self.base);
        w.option(self.head.applied.as_ref(), |w, at| {
            w.u64(at.term);
            w.u64(at.node);
            w.u64(at.index);
        });
        w.raw(&self.head.chain);
        w.bytes(&self.head.membership);
        w.u128(self.digest);
        w.u64(self.rows);
        w.into_bytes()
    }

    fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let format = r.u32()?;
        if format != CHECKPOINT_FORMAT {
            return Err(DecodeError::Tag { what: "checkpoint format", tag: format.into() });
        }
        let (number, base) = (r.u64()?, r.u64()?);
        let applied = r.option(|r| Ok(Position { term: r.u64()?, node: r.u64()?, index: r.u64()? }))?;
        let mut chain = [0; 32];
        chain.copy_from_slice(r.raw(32)?);
        let membership = r.bytes()?.to_vec();
        let generation = Self {
            number,
            base,
            head: Head { applied, chain, membership },
            digest: r.u128()?,
            rows: r.u64()?,
        };
        r.finish()?;
        Ok(generation)
    }
}

/// One stored version of a page, as the engines see it.
struct StoredPage<'a> {
    generation: u64,
    table: TableId,
    page: &'a [u8],
    /// `None`: the page is gone since this generation.
    content: Option<&'a [u8]>,
}

/// Builds the state of a generation from stored pages, which must come ordered by (table, page, generation).
fn assemble<'a>(
    generation: &Generation,
    pages: impl Iterator<Item = StoredPage<'a>>,
) -> Result<Machine, LoadError> {
    let mut loader = Machine::loader();
    let mut newest: Option<StoredPage<'a>> = None;
    let mut take = |page: Option<StoredPage<'a>>| match page {
        Some(StoredPage { table, content: Some(content), .. }) => loader.page(table, content),
        _ => Ok(()),
    };
    for page in pages {
        if page.generation > generation.number || page.generation < generation.base {
            continue;
        }
        let same = newest.as_ref().is_some_and(|n| (n.table, n.page) == (page.table, page.page));
        if !same {
            take(newest.take())?;
        }
        newest = Some(page);
    }
    take(newest)?;
    loader.finish(generation.head.clone(), generation.digest)
}
