//! What a node needs to start, and why it may end.

use std::path::PathBuf;

use tidewall_client::topology::Topology;
use tidewall_link::Credentials;

/// How to run a node.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Its id in the topology.
    pub node: u64,
    /// Its data directory; no other process may use it.
    pub data_dir: PathBuf,
    /// The cluster.
    pub topology: Topology,
    /// Where later states of it appear; nodes then join and leave while this one runs.
    pub topology_path: Option<PathBuf>,
    /// The data need not outlive this run. They are synced all the same.
    pub ephemeral: bool,
    /// The directory may be new. A node that has served before must never start on an empty one: its votes
    /// would be forgotten.
    pub create: bool,
    /// What the node proves itself with; `None` in tests without TLS.
    pub credentials: Option<Credentials>,
    /// Threads that run the groups; 0: the main thread, with the connections.
    pub raft_threads: usize,
    /// Newest apply version to support; lower than the build's own to play an older build in tests of upgrades.
    pub apply_version: u32,
}

/// Why a node could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The settings make no sense.
    #[error("{0}")]
    Config(String),
    /// The system refused something: a port, a thread, a directory.
    #[error("{what}: {source}")]
    System {
        /// What was refused, and what to do.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The disk failed: what it holds is unknown.
    #[error(
        "storage has failed, this node has stopped and must not be restarted before the disk was checked: {0}"
    )]
    Storage(String),
    /// Another process runs on the same data, or on a copy of them.
    #[error("{0}")]
    InUse(String),
    /// The data are damaged, stale, of another cluster, or of another format.
    #[error("{0}")]
    Data(String),
    /// Something was ordered that can be done at a start only.
    #[error("this node must be started again to carry out what was ordered")]
    Restart,
    /// A part failed that should not.
    #[error("{0}")]
    Internal(String),
}

impl NodeError {
    /// Exit code of the process: 70 and 71 must not be restarted blindly, 75 must be restarted.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Config(_) => 2,
            Self::System { .. } | Self::InUse(_) => 5,
            Self::Storage(_) => 70,
            Self::Data(_) => 71,
            Self::Internal(_) => 1,
            Self::Restart => 75,
        }
    }

    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::System { what, source }
    }
}
