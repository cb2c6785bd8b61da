//! Real replicas of one group in one process, for tests of what looks after them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewall_client::topology::{Node, Region, Topology};
use tidewall_consensus::{FailStop, Group, GroupConfig, PeerServer, Peers, PeersConfig, StateHandle, Timing};
use tidewall_env::disk::MemoryDisk;
use tidewall_machine::Machine;
use tidewall_store::checkpoint::CheckpointWriter;
use tidewall_store::checkpoint::memory::MemoryCheckpoints;
use tidewall_store::log::{LogOptions, NodeLog};
use tonic::transport::server::TcpIncoming;

use crate::exchange::Serving;
use crate::lives::{LifeOfNode, LivesStore};
use crate::metrics::Metrics;
use crate::space::Space;
use crate::standing::Standing;

const CLUSTER: [u8; 16] = [7; 16];

/// A replica of group 1, and what it stands on.
pub struct Replica {
    pub group: Group,
    pub peers: Peers,
    pub log: NodeLog,
    pub writer: CheckpointWriter,
    pub life: LifeOfNode,
    pub server: PeerServer,
}

/// The replicas on these nodes of a group of three, node 1 among them, in this order. The others cannot be reached.
pub async fn replicas(present: &[u64]) -> Vec<Replica> {
    let mut listeners = BTreeMap::new();
    let mut addresses = BTreeMap::new();
    for node in 1..=3 {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.insert(node, listener.local_addr().unwrap());
        listeners.insert(node, listener);
    }
    let mut started = Vec::new();
    for &node in present {
        let (log, _) = NodeLog::open(Arc::new(MemoryDisk::new()), LogOptions::new(CLUSTER, node)).unwrap();
        let fail_stop = FailStop::new(|what| panic!("a disk in memory failed: {what:?}"));
        let life = LifeOfNode::begin(node, &log, LivesStore::in_memory(), &fail_stop).unwrap();
        let peers = Peers::new(PeersConfig {
            cluster: CLUSTER,
            lives: Arc::clone(life.lives()),
            credentials: None,
            addresses: addresses.clone(),
        });
        let server = PeerServer::new(None, Arc::clone(life.lives()));
        let writer = CheckpointWriter::start(Box::new(MemoryCheckpoints::new())).unwrap();
        let group = Group::start(GroupConfig {
            number: 1,
            node,
            members: addresses.iter().map(|(node, at)| (*node, at.to_string())).collect(),
            timing: Timing::default(),
            log: log.group(1),
            state: StateHandle::new(1, Machine::new()),
            writer: writer.clone(),
            peers: peers.clone(),
            fail_stop,
        });
        let group = group.await.unwrap();
        server.add(group.clone());
        let listener = listeners.remove(&node).unwrap();
        tokio::spawn(
            tidewall_link::server_builder()
                .layer(tidewall_link::NodeIdentity::peer_port(CLUSTER, Arc::clone(life.lives()), false))
                .add_service(crate::assembly::peer_service(server.clone()))
                .serve_with_incoming(TcpIncoming::from(listener)),
        );
        started.push(Replica { group, peers, log, writer, life, server });
    }
    let first = &started[0].group;
    first.initialize().await.unwrap();
    let known = async {
        while first.members().0.len() < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.unwrap();
    started
}

/// A group on three nodes.
pub fn topology() -> Topology {
    let address = "127.0.0.1:1".parse().unwrap();
    Topology::new(
        CLUSTER,
        vec![Region { id: "north".into(), display_name: "North".into(), group: 1 }],
        (1..=3).map(|id| Node { id, address, peer_address: address }).collect(),
    )
}

/// What node `node` of three thinks of the others.
pub fn standing(node: u64) -> Arc<Standing> {
    Arc::new(Standing::new(node, topology(), Arc::new(crate::clock::SteadyClock::new()), 2))
}

/// Node 1, where these groups are not served, and no others are.
pub fn serving(faults: BTreeMap<u32, String>, space: Space) -> Serving {
    let metrics = Arc::new(Metrics::new(&topology()));
    Serving::new(BTreeMap::new(), faults, standing(1), space, metrics)
}
