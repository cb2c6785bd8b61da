//! The nodes that a client may call, and their connections. Nodes join and leave while calls are under way; a
//! position in the list stays the same node for the life of the client.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::RwLock;
use tidewall_link::{Credentials, ExchangeProtocol, Link, LinkOptions, NodeChannel, Parties, connect_lazy};

use crate::topology::{Node, Topology};

/// Positions that a client can tell apart over its life: as many bits as its groups remember.
const POSITIONS_MAX: usize = 64;

/// A channel to a node of this cluster and to nobody else. It connects when it is used, and again when it must.
pub fn node_channel(
    topology: &Topology,
    node: &Node,
    connect_timeout: Duration,
    credentials: Option<&Credentials>,
) -> NodeChannel {
    let cluster = topology.cluster_bytes().unwrap_or_default();
    let parties = Parties::new(cluster, None, node.id);
    NodeChannel::new(connect_lazy(node.address, connect_timeout, credentials), node.address, parties)
}

/// Streams to one node are kept apart by what they carry, so that none starves another.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lane {
    /// Single commands.
    Commands,
    /// Reads.
    Queries,
    /// Batches.
    Bulk,
    /// What has happened, as it happens.
    Changes,
}

/// The connections to one node.
pub(crate) struct NodeLinks {
    pub(crate) id: u64,
    pub(crate) address: SocketAddr,
    /// Who calls whom over all of them.
    pub(crate) parties: Parties,
    commands: Link<ExchangeProtocol>,
    queries: Link<ExchangeProtocol>,
    bulk: Link<ExchangeProtocol>,
    changes: Link<ExchangeProtocol>,
    /// For the calls that are not multiplexed; made with the first of them.
    pub(crate) channel: OnceLock<NodeChannel>,
}

impl NodeLinks {
    fn new(cluster: [u8; 16], id: u64, address: SocketAddr, options: &LinkOptions) -> Arc<Self> {
        let parties = Parties::new(cluster, None, id);
        let link = || Link::connect_lazy(address, parties.clone(), options.clone());
        let (commands, queries, bulk, changes) = (link(), link(), link(), link());
        Arc::new(Self { id, address, parties, commands, queries, bulk, changes, channel: OnceLock::new() })
    }

    pub(crate) fn lane(&self, lane: Lane) -> &Link<ExchangeProtocol> {
        match lane {
            Lane::Commands => &self.commands,
            Lane::Queries => &self.queries,
            Lane::Bulk => &self.bulk,
            Lane::Changes => &self.changes,
        }
    }
}

/// All nodes that the client has ever known.
pub(crate) struct Nodes {
    options: LinkOptions,
    known: RwLock<Known>,
}

struct Known {
    nodes: Vec<Arc<NodeLinks>>,
    /// Bit by bit, which of them belong to the cluster now.
    present: u64,
}

impl Nodes {
    pub(crate) fn new(topology: &Topology, options: LinkOptions) -> Self {
        let known = RwLock::new(Known { nodes: Vec::new(), present: 0 });
        let nodes = Self { options, known };
        nodes.adopt(topology);
        nodes
    }

    /// Takes over the nodes of a topology; returns which positions are present now.
    pub(crate) fn adopt(&self, topology: &Topology) -> u64 {
        // A topology is checked before it comes here.
        let cluster = topology.cluster_bytes().unwrap_or_default();
        let mut known = self.known.write();
        known.present = 0;
        for node in &topology.nodes {
            let position = known.nodes.iter().position(|links| links.id == node.id);
            let position = match position {
                Some(position) => {
                    if known.nodes[position].address != node.address {
                        // Calls under way keep the old connections until they end.
                        known.nodes[position] = NodeLinks::new(cluster, node.id, node.address, &self.options);
                    }
                    position
                }
                None if known.nodes.len() < POSITIONS_MAX => {
                    known.nodes.push(NodeLinks::new(cluster, node.id, node.address, &self.options));
                    known.nodes.len() - 1
                }
                None => {
                    tracing::error!(
                        node = node.id,
                        "this process has seen {POSITIONS_MAX} nodes and cannot take in more: restart it"
                    );
                    continue;
                }
            };
            known.present |= 1 << position;
        }
        known.present
    }

    /// The node at a position.
    pub(crate) fn at(&self, position: usize) -> Arc<NodeLinks> {
        Arc::clone(&self.known.read().nodes[position])
    }

    /// Where a node of the cluster is.
    pub(crate) fn position(&self, id: u64) -> Option<usize> {
        let known = self.known.read();
        let position = known.nodes.iter().position(|node| node.id == id)?;
        (known.present >> position & 1 == 1).then_some(position)
    }

    /// The nodes that belong to the cluster now, with their positions.
    pub(crate) fn present(&self) -> Vec<(usize, Arc<NodeLinks>)> {
        let known = self.known.read();
        let present = known.present;
        let here = |(position, _): &(usize, &Arc<NodeLinks>)| present >> position & 1 == 1;
        known.nodes.iter().enumerate().filter(here).map(|(at, node)| (at, Arc::clone(node))).collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::topology::Node;

    fn topology(nodes: &[(u64, u16)]) -> Topology {
        let node = |(id, port): &(u64, u16)| {
            let address = SocketAddr::from(([127, 0, 0, 1], *port));
            Node { id: *id, address, peer_address: address }
        };
        Topology::new([0xaa; 16], Vec::new(), nodes.iter().map(node).collect())
    }

    #[test]
    fn positions_stay_while_nodes_come_and_go() {
        let nodes = Nodes::new(&topology(&[(1, 1), (2, 2), (3, 3)]), LinkOptions::default());
        assert_eq!(nodes.position(3), Some(2));
        let kept = nodes.at(0);
        assert_eq!(nodes.adopt(&topology(&[(4, 4), (1, 1), (3, 33)])), 0b1101);
        assert_eq!((nodes.position(1), nodes.position(2), nodes.position(4)), (Some(0), None, Some(3)));
        assert!(Arc::ptr_eq(&kept, &nodes.at(0)), "its connections are kept");
        assert_eq!(nodes.at(2).address.port(), 33, "it has moved");
        assert_eq!(nodes.present().iter().map(|(_, node)| node.id).collect::<Vec<_>>(), [1, 3, 4]);
    }
}
