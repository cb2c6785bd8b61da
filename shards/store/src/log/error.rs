//! Why the log refuses: each error says what has happened, to what, and what to do.

use std::io;
use std::sync::Arc;

use super::segment;

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
    data_encoding::HEXLOWER.encode(bytes)
}

impl LogError {
    /// While the log was opened or read.
    pub(super) fn io(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| Self::Io { operation, source: Arc::new(source) }
    }

    /// While the log was written.
    pub(super) fn failed(operation: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let operation = operation.into();
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { operation },
            _ => Self::Failed { operation, source: Arc::new(source) },
        }
    }

    /// At this byte of this segment.
    pub(super) fn corrupt(segment: u64, offset: u64, what: impl Into<String>) -> Self {
        Self::Corrupt {
            segment,
            offset,
            what: what.into(),
            advice: "keep the files for a diagnosis and do not edit them; give the node an empty data directory and \
                     a new node id, so that it rejoins from its peers",
        }
    }
}
