//! `endpoints.json` in the data directory: where a running cluster can be reached, for other commands.
//!
//! It describes processes, not data: the supervisor writes it, replaces it whole on every change, and removes
//! it at a clean end. A file whose supervisor is gone is a leftover and means that nothing runs.

use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Version of the file that this build reads and writes.
pub const ENDPOINTS_FORMAT: u32 = 1;

/// Why no cluster was found.
#[derive(Debug, thiserror::Error)]
pub enum EndpointsError {
    /// The file could not be read or written.
    #[error("cannot access {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file was written by something else.
    #[error(
        "{path} is not a file of this version of tidewall ({message}): stop the cluster and start it with this binary"
    )]
    Foreign {
        /// The file.
        path: String,
        /// What is wrong.
        message: String,
    },
    /// There is no file, or it was left behind.
    #[error(
        "no cluster is running on {directory}: start one with `tidewall up`, or name a gateway with --target"
    )]
    NotRunning {
        /// The data directory.
        directory: String,
    },
}

/// A running cluster.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// [`ENDPOINTS_FORMAT`].
    pub format: u32,
    /// Identity of the cluster, as in its topology.
    pub cluster: String,
    /// Process id of the supervisor.
    pub supervisor_pid: u32,
    /// Whether all regions had a leader and all gateways answered once since the start.
    pub ready: bool,
    /// Gateways, by id.
    pub gateways: Vec<GatewayEndpoint>,
    /// Shard nodes, by id.
    pub nodes: Vec<NodeEndpoint>,
}

/// A gateway process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GatewayEndpoint {
    /// Its number, from 1.
    pub id: u64,
    /// Where clients on this machine reach it, such as `http://127.0.0.1:7400`.
    pub url: String,
    /// Its process id; `None` while it is down.
    pub pid: Option<u32>,
}

/// A shard node process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeEndpoint {
    /// Raft node id.
    pub id: u64,
    /// Where gateways reach it.
    pub address: SocketAddr,
    /// Where other nodes reach it.
    pub peer_address: SocketAddr,
    /// Its process id; `None` while it is down.
    pub pid: Option<u32>,
}

impl Endpoints {
    /// Writes the file whole: a reader sees the old or the new one. It is not synced, since it is worthless
    /// after a crash of the machine.
    pub fn write(&self, path: &Path) -> Result<(), EndpointsError> {
        let io = |source| EndpointsError::Io { path: path.display().to_string(), source };
        let text = serde_json::to_vec_pretty(self).map_err(|e| io(std::io::Error::other(e)))?;
        let temporary = path.with_extension("json.tmp");
        std::fs::write(&temporary, text).map_err(io)?;
        std::fs::rename(&temporary, path).map_err(io)
    }

    /// Reads the file, whether or not its cluster is still running; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, EndpointsError> {
        let name = || path.display().to_string();
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(EndpointsError::Io { path: name(), source }),
        };
        let found: Self = serde_json::from_slice(&text)
            .map_err(|e| EndpointsError::Foreign { path: name(), message: e.to_string() })?;
        if found.format != ENDPOINTS_FORMAT {
            let message = format!("format {}, this build reads format {ENDPOINTS_FORMAT}", found.format);
            return Err(EndpointsError::Foreign { path: name(), message });
        }
        Ok(Some(found))
    }

    /// The cluster that runs on a data directory now.
    pub fn running(path: &Path) -> Result<Self, EndpointsError> {
        match Self::read(path)? {
            Some(found) if alive(found.supervisor_pid) => Ok(found),
            _ => {
                let directory = path.parent().unwrap_or(Path::new(".")).display().to_string();
                Err(EndpointsError::NotRunning { directory })
            }
        }
    }

    /// URLs of all gateways.
    pub fn urls(&self) -> Vec<String> {
        self.gateways.iter().map(|gateway| gateway.url.clone()).collect()
    }
}

/// Whether a process with this id exists. An id can be reused, so this may say yes too often, never no
/// while the process lives.
pub fn alive(pid: u32) -> bool {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else {
        return false;
    };
    !matches!(rustix::process::test_kill_process(pid), Err(rustix::io::Errno::SRCH))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(supervisor_pid: u32) -> Endpoints {
        Endpoints {
            format: ENDPOINTS_FORMAT,
            cluster: "00112233445566778899aabbccddeeff".into(),
            supervisor_pid,
            ready: true,
            gateways: vec![GatewayEndpoint { id: 1, url: "http://127.0.0.1:7400".into(), pid: Some(7) }],
            nodes: vec![NodeEndpoint {
                id: 1,
                address: "127.0.0.1:1".parse().unwrap(),
                peer_address: "127.0.0.1:2".parse().unwrap(),
                pid: None,
            }],
        }
    }

    /// The id of a process that has ended and was reaped.
    fn dead_pid() -> u32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id()
    }

    #[test]
    fn a_written_file_is_read_the_same_and_leaves_no_other() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("endpoints.json");
        let written = sample(std::process::id());
        written.write(&path).unwrap();
        assert_eq!(Endpoints::running(&path).unwrap(), written);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
        assert_eq!(written.urls(), ["http://127.0.0.1:7400"]);
    }

    #[test]
    fn a_missing_file_and_a_leftover_mean_that_nothing_runs() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("endpoints.json");
        let message = Endpoints::running(&path).unwrap_err().to_string();
        assert!(message.contains("no cluster is running") && message.contains("tidewall up"), "{message}");
        sample(dead_pid()).write(&path).unwrap();
        assert!(matches!(Endpoints::running(&path), Err(EndpointsError::NotRunning { .. })));
        assert!(Endpoints::read(&path).unwrap().is_some());
    }

    #[test]
    fn another_format_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("endpoints.json");
        std::fs::write(&path, "{}").unwrap();
        assert!(matches!(Endpoints::read(&path), Err(EndpointsError::Foreign { .. })));
        Endpoints { format: 2, ..sample(1) }.write(&path).unwrap();
        assert!(Endpoints::read(&path).unwrap_err().to_string().contains("format 2"));
    }
}
