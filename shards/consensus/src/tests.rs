//! Three replicas with real links on 127.0.0.1, over disks in memory that lose what was not synced.
#![allow(clippy::unwrap_used)]

mod leading;
mod members;
mod survival;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidewall_env::disk::{CrashMode, MemoryDisk};
use tidewall_link::{Life, Lives};
use tidewall_machine::{Answer, Command, Decision, Entry};
use tidewall_messages::tickets;
use tidewall_proto::internal::v1::peer_service_server::PeerServiceServer;
use tidewall_store::checkpoint::memory::MemoryCheckpoints;
use tidewall_store::checkpoint::{CheckpointStore, CheckpointWriter};
use tidewall_store::log::{LogOptions, NodeLog};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

use crate::*;

const CLUSTER: [u8; 16] = [9; 16];
const T0: u64 = 1_700_000_000_000;
const PATIENCE: Duration = Duration::from_secs(30);
const GROUPS: [u32; 2] = [1, 2];

/// What survives a crash of a node.
#[derive(Clone)]
struct Disks {
    log: MemoryDisk,
    checkpoints: MemoryCheckpoints,
}

struct Running {
    groups: BTreeMap<u32, Group>,
    log: NodeLog,
    writer: CheckpointWriter,
    lives: Arc<Lives>,
    /// All tasks of the node: they end with it, connections included.
    runtime: tokio::runtime::Runtime,
}

struct Cluster {
    addresses: BTreeMap<u64, SocketAddr>,
    disks: BTreeMap<u64, Disks>,
    running: BTreeMap<u64, Running>,
    incoming: tempfile::TempDir,
}

impl Cluster {
    async fn new(start: &[u64]) -> Self {
        let mut addresses = BTreeMap::new();
        // Node 4 is not a member at first.
        for node in 1..=4 {
            let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            addresses.insert(node, port.local_addr().unwrap());
        }
        let disks = |_| Disks { log: MemoryDisk::new(), checkpoints: MemoryCheckpoints::new() };
        let disks = (1..=4).map(|node| (node, disks(node))).collect();
        let mut cluster =
            Self { addresses, disks, running: BTreeMap::new(), incoming: tempfile::tempdir().unwrap() };
        for node in start {
            cluster.start(*node).await;
        }
        for number in GROUPS {
            cluster.running[&start[0]].groups[&number].initialize().await.unwrap();
        }
        cluster
    }

    async fn start(&mut self, node: u64) {
        let disks = self.disks[&node].clone();
        let (log, _) = NodeLog::open(Arc::new(disks.log.clone()), LogOptions::new(CLUSTER, node)).unwrap();
        let own = Life { id: tidewall_env::random::number(), began_at: log.opened_at() };
        let progress = log.clone();
        let reached = move || progress.reached();
        let lives = Arc::new(Lives::new(node, own, BTreeMap::new(), reached, |why| panic!("{why}")));
        let addresses = self.addresses.clone();
        let peers = Peers::new(PeersConfig {
            cluster: CLUSTER,
            lives: Arc::clone(&lives),
            credentials: None,
            addresses,
        });
        let incoming = self.incoming.path().join(format!("node-{node}"));
        std::fs::create_dir_all(&incoming).unwrap();
        let server = PeerServer::new(Some(incoming), Arc::clone(&lives));
        let mut store = disks.checkpoints.clone();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let machines: Vec<_> = GROUPS
            .iter()
            .map(|number| {
                (*number, store.load(*number).unwrap().map(|(_, machine)| machine).unwrap_or_default())
            })
            .collect();
        let writer = CheckpointWriter::start(Box::new(store)).unwrap();
        let mut groups = BTreeMap::new();
        for (number, machine) in machines {
            let group = Group::start(GroupConfig {
                number,
                node,
                members: self.addresses.iter().take(3).map(|(node, at)| (*node, at.to_string())).collect(),
                timing: Timing { heartbeat_ms: 50, election_min_ms: 300, election_max_ms: 600 },
                log: log.group(number),
                state: StateHandle::new(number, machine),
                writer: writer.clone(),
                peers: peers.clone(),
                fail_stop: FailStop::new(|what| eprintln!("storage failed: {what:?}")),
            });
            let group = runtime.spawn(group).await.unwrap().unwrap();
            server.add(group.clone());
            groups.insert(number, group);
        }
        let address = self.addresses[&node];
        let deadline = Instant::now() + PATIENCE;
        let listener = loop {
            match tokio::net::TcpListener::bind(address).await {
                Ok(listener) => break listener,
                Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
            }
            sleep(Duration::from_millis(20)).await;
        };
        let port_lives = Arc::clone(&lives);
        runtime.spawn(async move {
            let served = tidewall_link::server_builder()
                .layer(tidewall_link::NodeIdentity::peer_port(CLUSTER, port_lives, false))
                .add_service(PeerServiceServer::new(server))
                .serve_with_incoming(TcpListenerStream::new(listener));
            served.await.unwrap();
        });
        self.running.insert(node, Running { groups, log, writer, lives, runtime });
    }

    /// Stops a node as a power cut does: what was not synced is gone.
    async fn crash(&mut self, node: u64) {
        let running = self.running.remove(&node).unwrap();
        running.runtime.shutdown_background();
        self.disks[&node].log.crash(CrashMode::LoseUnsynced);
        running.writer.stop();
        // The log's own end meets a disk that is gone: that is what a crash looks like.
        let _ = running.log.close();
    }

    async fn leader(&self, number: u32) -> (u64, Group) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            for (node, running) in &self.running {
                let group = &running.groups[&number];
                if group.believes_to_lead() && group.confirm_leadership().await.is_ok() {
                    return (*node, group.clone());
                }
            }
            assert!(Instant::now() < deadline, "group {number} has no leader");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Proposes until it is decided, whoever leads, like a client that retries with the same request ids.
    async fn decide(&self, number: u32, commands: Vec<Command>) -> Vec<Decision> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let (_, group) = self.leader(number).await;
            let payload = Payload::new(&Entry {
                stamp: tidewall_machine::Stamp::confirmed(T0),
                commands: commands.clone(),
            });
            match tokio::time::timeout(Duration::from_secs(3), group.propose(payload)).await {
                Ok(Ok(decisions)) => return decisions,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
        }
    }

    /// Buys a ticket with request number `n`, and returns the index at which it was decided.
    async fn buy(&self, number: u32, n: u64) -> u64 {
        let decision = self.decide(number, vec![purchase(n)]).await.remove(0);
        assert!(matches!(decision.answer, Answer::Done { .. }), "{decision:?}");
        decision.receipt.unwrap().index
    }

    /// Returns when all running replicas have it: a majority may have decided it before the third one was reached.
    async fn create(&self, number: u32) {
        let tier = tickets::TierSpec {
            tier_id: "ga".into(),
            display_name: String::new(),
            capacity: 100_000,
            currency_code: "EUR".into(),
            price_minor_units: 1,
            seat_rows: vec![],
        };
        let op = tickets::Command::from(tickets::CreateEvent {
            event_id: "gala".into(),
            display_name: "Gala".into(),
            quota_per_buyer: 100_000,
            tiers: vec![tier],
            ..Default::default()
        });
        let decision = self.decide(number, vec![command(0, op)]).await.remove(0);
        self.agree(number, decision.receipt.unwrap().index).await;
    }

    /// Waits until all running replicas have applied an index, then compares their states.
    async fn agree(&self, number: u32, index: u64) {
        let deadline = Instant::now() + PATIENCE;
        let seen = loop {
            let seen: Vec<_> = self
                .running
                .values()
                .map(|running| {
                    let state = running.groups[&number].state();
                    state.read(|machine| (machine.applied_index(), machine.digest(), machine.head().chain))
                })
                .collect();
            let same = seen.iter().all(|state| state.0 == seen[0].0);
            if same && seen[0].0 >= index {
                break seen;
            }
            assert!(Instant::now() < deadline, "group {number} does not get to {index}: {seen:?}");
            sleep(Duration::from_millis(20)).await;
        };
        assert!(seen.iter().all(|state| *state == seen[0]), "replicas differ: {seen:?}");
    }

    async fn stop(mut self) {
        let nodes: Vec<u64> = self.running.keys().copied().collect();
        for node in nodes {
            self.crash(node).await;
        }
    }
}

/// Id of request number `n`.
fn request_id(n: u64) -> u128 {
    (u128::from(T0) << 80) | u128::from(n)
}

/// Alice's command with request number `n`.
fn command(n: u64, op: tickets::Command) -> Command {
    Command::asking("alice", request_id(n), T0 + 60_000, &op)
}

/// The purchase of a ticket with request number `n`.
fn purchase(n: u64) -> Command {
    let op = tickets::Command::from(tickets::Buy {
        event_id: "gala".into(),
        tier_id: "ga".into(),
        quantity: 1,
        seats: vec![],
        buyer: String::new(),
    });
    command(n, op)
}

/// Whether a replica remembers what became of request number `n`.
fn remembers(group: &Group, n: u64) -> bool {
    group.state().read(|machine| machine.outcome("alice", request_id(n))).is_some()
}

/// Waits until something is so; `otherwise` is what is wrong when it never is.
async fn until(otherwise: &str, mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < deadline, "{otherwise}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Makes `node` a learner of group 1 and waits until it lacks nothing.
async fn bring_up(cluster: &Cluster, group: &Group, node: u64) {
    group.add_learner(node, cluster.addresses[&node].to_string()).await.unwrap();
    until("the learner does not catch up", || group.lag(node) == Some(0)).await;
}
