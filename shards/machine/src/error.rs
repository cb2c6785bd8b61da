//! Why an entry cannot be applied, and why stored pages are not a state.
//!
//! Both mean that this replica must not go on. What a client may hear instead is a rejection ([`crate::RejectReason`]).

use tidewall_domain::codec::DecodeError;
use tidewall_domain::table::TableId;

/// Why an entry cannot be applied: the replica must halt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// The entry makes no sense to this build.
    #[error("entry {index} does not decode ({source}): it was written by another build or is damaged")]
    Undecodable {
        /// Its log index.
        index: u64,
        /// Why.
        source: DecodeError,
    },
    /// A command of the entry makes no sense to this build. Another one may carry it out, so that passing over it would part the
    /// replicas.
    #[error("command {position} of entry {index}, of module {module}: {why}: run the build that wrote it")]
    UnknownCommand {
        /// Log index of the entry.
        index: u64,
        /// Position of the command in it.
        position: u32,
        /// Number of the module.
        module: u8,
        /// Why.
        why: String,
    },
    /// The entry does not follow the last one.
    #[error("entry {index} does not follow entry {applied}")]
    Gap {
        /// Its log index.
        index: u64,
        /// Last applied index.
        applied: u64,
    },
    /// A remembered outcome does not decode.
    #[error("a remembered outcome is damaged: {0}")]
    Remembered(DecodeError),
    /// The entry raises the apply version beyond what this build supports. A newer build carries it out, so that
    /// refusing it here would part the replicas.
    #[error(
        "entry {index} raises the apply version to {version}, this build supports {supported}: run a newer \
         build, which goes on from here"
    )]
    TooNew {
        /// Its log index.
        index: u64,
        /// Version that it raises to.
        version: u32,
        /// Highest version supported here.
        supported: u32,
    },
}

/// Why stored pages are not a state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// A page does not decode.
    #[error("a page of table {table} does not decode: {source}")]
    Page {
        /// Its table.
        table: TableId,
        /// Why.
        source: DecodeError,
    },
    /// No table of this build has the number.
    #[error("table {0} is not known to this build: run a newer one")]
    Table(TableId),
    /// The rows are not those that were stored.
    #[error("the rows have digest {found:032x}, expected {expected:032x}: something is lost or damaged")]
    Digest {
        /// Digest of the rows.
        found: u128,
        /// Digest that was stored with them.
        expected: u128,
    },
    /// The rows are of a newer apply version.
    #[error(
        "the rows have apply version {rows}, at most {supported} can be used here: run a newer build on all nodes"
    )]
    TooNew {
        /// Version of the rows.
        rows: u32,
        /// Highest version that can be used.
        supported: u32,
    },
}
