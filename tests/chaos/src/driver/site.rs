//! Lays clusters out: has the program under test do it, and reads from its answer where everything is.

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use super::{Blueprint, Hosts, NodePlan};
use crate::{ChaosError, tokens};

/// Ports of gateways that have an address of their own.
const GATEWAY_PORT: u16 = 7_400;

/// What `cluster init` answers.
#[derive(Debug, Deserialize)]
struct Layout {
    topology: PathBuf,
    public_key: PathBuf,
    signing_key: PathBuf,
    account_key: PathBuf,
    regions: Vec<String>,
    nodes: Vec<NodeLayout>,
}

#[derive(Debug, Deserialize)]
struct NodeLayout {
    id: u64,
    directory: PathBuf,
    address: SocketAddr,
    peer_address: SocketAddr,
}

/// The program under test, and how it lays clusters out.
#[derive(Debug)]
pub struct Site {
    /// The file itself, whatever its name stands for by now.
    program: PathBuf,
    _open: File,
}

impl Site {
    /// The same program for every start, also when the file is replaced meanwhile.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn new(program: &Path) -> std::io::Result<Self> {
        let open = File::open(program)?;
        let program = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), open.as_raw_fd()));
        Ok(Self { program, _open: open })
    }

    /// Makes a new cluster in a directory that does not exist yet.
    ///
    /// # Errors
    /// [`ChaosError`] says why not.
    pub(crate) fn prepare(&self, directory: &Path, hosts: &Hosts) -> Result<Blueprint, ChaosError> {
        let mut command = Command::new(&self.program);
        command.args(["cluster", "init", "-o", "json", "--data"]).arg(directory);
        for host in &hosts.nodes {
            command.args(["--host", &host.to_string()]);
        }
        let output =
            command.output().map_err(ChaosError::system(format!("run {}", self.program.display())))?;
        if !output.status.success() {
            return Err(ChaosError::Site(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let layout: Layout = serde_json::from_slice(&output.stdout).map_err(|error| {
            ChaosError::Site(format!("{} does not say what it laid out: {error}", self.program.display()))
        })?;
        let gateways = if hosts.gateways.is_empty() {
            vec![free_port().map_err(ChaosError::system("find a free port for a gateway"))?]
        } else {
            hosts.gateways.iter().map(|host| SocketAddr::new(*host, GATEWAY_PORT)).collect()
        };
        let node = |node: NodeLayout| NodePlan {
            id: node.id,
            directory: node.directory,
            address: node.address,
            peer_address: node.peer_address,
        };
        Ok(Blueprint {
            program: self.program.clone(),
            root: directory.to_owned(),
            topology: layout.topology,
            public_key: layout.public_key,
            mint: tokens::mint(&layout.signing_key)?,
            signing_key: layout.signing_key,
            account_key: layout.account_key,
            nodes: layout.nodes.into_iter().map(node).collect(),
            gateways,
            regions: layout.regions,
        })
    }
}

/// An address on the loopback interface that nobody listens on now.
fn free_port() -> std::io::Result<SocketAddr> {
    TcpListener::bind(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0))?.local_addr()
}
