//! `tidewall cluster init`: lays a cluster out without starting it: topology, keys, certificates.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use serde::Serialize;

use crate::certificates::Authority;
use crate::datadir::{Contents, DEFAULT_NODES, DataDir, Wanted};
use crate::exit::{Exit, Failure};
use crate::keys;
use crate::output::{self, Format};
use crate::regions_file;

/// Arguments of `cluster init`.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Directory of the new cluster
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Address of a node's host, once for each node [default: 3 nodes on the loopback interface, with free ports]
    #[arg(long, value_name = "IP", num_args = 1)]
    pub host: Vec<IpAddr>,
    /// Client port of nodes that have a host
    #[arg(long, value_name = "PORT", default_value_t = 7_001)]
    pub client_port: u16,
    /// Peer port of nodes that have a host
    #[arg(long, value_name = "PORT", default_value_t = 7_002)]
    pub peer_port: u16,
    /// Regions, as TOML tables `[[regions]]` with `id` and `display_name` [default: 12 regions, north to islands]
    #[arg(long, value_name = "FILE")]
    pub regions: Option<PathBuf>,
}

/// What was laid out.
#[derive(Debug, Serialize)]
struct Layout {
    cluster: String,
    topology: PathBuf,
    public_key: PathBuf,
    signing_key: PathBuf,
    account_key: PathBuf,
    regions: Vec<String>,
    nodes: Vec<NodeLayout>,
}

#[derive(Debug, Serialize)]
struct NodeLayout {
    id: u64,
    directory: PathBuf,
    address: SocketAddr,
    peer_address: SocketAddr,
}

/// Runs the command.
pub fn run(arguments: &InitArgs, format: Format) -> Result<(), Failure> {
    let layout = init(arguments)?;
    match format {
        Format::Json => output::json(&layout),
        Format::Table => {
            let rows = layout.nodes.iter().map(|node| {
                let addresses = [node.address.to_string(), node.peer_address.to_string()];
                [vec![node.id.to_string()], addresses.into(), vec![node.directory.display().to_string()]]
                    .concat()
            });
            let table = output::table(&["NODE", "CLIENT ADDRESS", "PEER ADDRESS", "DATA"], rows.collect());
            let regions = layout.regions.len();
            output::text(&format!("{table}cluster {} with {regions} regions\n", layout.cluster))
        }
    }
}

fn init(arguments: &InitArgs) -> Result<Layout, Failure> {
    let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
    let data = DataDir::new(std::path::absolute(&arguments.data).map_err(|e| environment(&e))?);
    if let Contents::Cluster(_) = data.examine().map_err(|e| environment(&e))? {
        let text = format!("{} holds a cluster already: nothing was changed", data.root().display());
        return Err(Failure::new(Exit::Usage, text));
    }
    let hosts: BTreeSet<IpAddr> = arguments.host.iter().copied().collect();
    if hosts.len() < arguments.host.len()
        || (!hosts.is_empty() && arguments.client_port == arguments.peer_port)
    {
        let text = "two nodes, or two ports of a node, would have one address: nothing was made";
        return Err(Failure::new(Exit::Usage, text));
    }
    let made = lay_out(arguments, &data);
    if made.is_err() {
        // What is half laid out is no cluster: it can be tried again.
        if let Err(error) = std::fs::remove_file(data.topology()) {
            tracing::debug!(%error, "no topology is left behind");
        }
    }
    made
}

fn lay_out(arguments: &InitArgs, data: &DataDir) -> Result<Layout, Failure> {
    let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
    let regions = arguments.regions.as_deref().map(regions_file::load).transpose();
    let regions = regions.map_err(|e| Failure::new(Exit::Usage, e))?;
    let nodes = if arguments.host.is_empty() { DEFAULT_NODES } else { arguments.host.len() as u64 };
    let wanted = Wanted { regions, nodes: Some(nodes) };
    let (_lock, mut topology, _ports) = data.prepare(&wanted, Duration::ZERO).map_err(|e| environment(&e))?;
    keys::ensure(&data.keys()).map_err(|e| environment(&e))?;
    if !arguments.host.is_empty() {
        for (node, host) in topology.nodes.iter_mut().zip(&arguments.host) {
            node.address = SocketAddr::new(*host, arguments.client_port);
            node.peer_address = SocketAddr::new(*host, arguments.peer_port);
        }
        topology.check().map_err(|e| Failure::new(Exit::Usage, e))?;
        topology.save(&data.topology()).map_err(|e| environment(&e))?;
    }
    let cluster = topology.cluster_bytes().unwrap_or_default();
    let authority = Authority::ensure(&data.certificates(), cluster).map_err(|e| environment(&e))?;
    if let Some(authority) = authority {
        authority.issue_all(&topology).map_err(|e| environment(&e))?;
    }
    let node = |node: &tidewall_client::topology::Node| NodeLayout {
        id: node.id,
        directory: data.node(node.id),
        address: node.address,
        peer_address: node.peer_address,
    };
    Ok(Layout {
        cluster: topology.cluster.clone(),
        topology: data.topology(),
        public_key: keys::public_path(&data.keys()),
        signing_key: keys::private_path(&data.keys()),
        account_key: keys::account_path(&data.keys()),
        regions: topology.regions.iter().map(|region| format!("regions/{}", region.id)).collect(),
        nodes: topology.nodes.iter().map(node).collect(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use tidewall_client::topology::Topology;

    use super::*;

    fn arguments(data: &Path, hosts: &[&str]) -> InitArgs {
        InitArgs {
            data: data.to_owned(),
            host: hosts.iter().map(|host| host.parse().unwrap()).collect(),
            client_port: 7_001,
            peer_port: 7_002,
            regions: None,
        }
    }

    #[test]
    fn a_cluster_is_laid_out_on_the_loopback_interface_or_where_it_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let layout = init(&arguments(&parent.path().join("a"), &[])).unwrap();
        assert_eq!((layout.nodes.len(), layout.regions.len()), (3, 12));
        assert!(layout.nodes.iter().all(|node| node.address.ip().is_loopback() && node.address.port() != 0));
        assert!(layout.public_key.exists() && layout.signing_key.exists() && layout.account_key.exists());

        let hosts = ["10.9.8.1", "10.9.8.2", "10.9.8.3", "10.9.8.4", "10.9.8.5"];
        let layout = init(&arguments(&parent.path().join("b"), &hosts)).unwrap();
        let topology = Topology::load(&layout.topology).unwrap();
        assert_eq!(
            (topology.nodes.len(), topology.nodes[1].peer_address),
            (5, "10.9.8.2:7002".parse().unwrap())
        );
    }

    #[test]
    fn what_cannot_work_is_refused_and_may_be_tried_again() {
        let parent = tempfile::tempdir().unwrap();
        for hosts in [&["10.9.8.1", "10.9.8.1"][..], &["10.9.8.1"]] {
            let arguments = InitArgs { peer_port: 7_001, ..arguments(parent.path(), hosts) };
            assert_eq!(init(&arguments).unwrap_err().code(), Exit::Usage.code(), "{hosts:?}");
        }
        init(&arguments(parent.path(), &[])).unwrap();
    }

    #[test]
    fn what_is_a_cluster_already_is_left_alone() {
        let parent = tempfile::tempdir().unwrap();
        let before = init(&arguments(parent.path(), &[])).unwrap();
        let failure = init(&arguments(parent.path(), &["10.9.8.1"])).unwrap_err();
        assert_eq!(failure.code(), Exit::Usage.code());
        let after = Topology::load(&before.topology).unwrap();
        assert_eq!((after.cluster, after.nodes.len()), (before.cluster, 3));
    }
}
