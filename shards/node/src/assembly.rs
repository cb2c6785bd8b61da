//! A node without ports, threads and directories: replicas, what serves them to clients, and what looks after them.
//!
//! Whoever runs a node brings along the log, the checkpoints, the clock and the connections. [`crate::run`] takes them
//! from the operating system; a simulation makes its own. **Never here:** sockets, files, threads, signals.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tidewall_actors::{Directory, Home, Limits};
use tidewall_client::topology::Topology;
use tidewall_consensus::{
    FailStop, Group, GroupConfig, PeerServer, Peers, StateHandle, StorageFault, Timing,
};
use tidewall_machine::Machine;
use tidewall_proto::internal::v1::peer_service_server::PeerServiceServer;
use tidewall_proto::internal::v1::shard_service_server::ShardServiceServer;
use tidewall_store::checkpoint::CheckpointWriter;
use tidewall_store::keyring::Keyring;
use tidewall_store::log::NodeLog;
use tokio::time::Instant;

use crate::admin::ShardServer;
use crate::courier::{self, Couriers};
use crate::exchange::{Served, Serving};
use crate::keeper;
use crate::keyring::Keys;
use crate::metrics::Metrics;
use crate::reports::Reports;
use crate::shard::GroupShard;
use crate::standing::Standing;

pub use crate::threads::RaftThreads;

pub use crate::clock::SteadyClock;
pub use crate::data::load as load_rows;
pub use crate::lives::{LifeOfNode, LivesStore};
pub use crate::recovery::Orders;
pub use crate::reports::Quarantine;
pub use crate::space::Space;
pub use crate::views::query_at_rest as look;

/// Largest message on either port, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long the end of an earlier life of this node is waited for: longer than others need to notice it.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(10);
/// How long a node that has served before compares its clock with the others before it stamps anything.
const CLOCK_PATIENCE: Duration = Duration::from_secs(1);

/// What the replicas of a node are made of.
pub struct Parts {
    /// The node.
    pub node: u64,
    /// The cluster.
    pub topology: Topology,
    /// Newest apply version to support.
    pub apply_version: u32,
    /// Stamps entries.
    pub clock: Arc<SteadyClock>,
    /// The Raft log of all groups.
    pub log: NodeLog,
    /// Writes checkpoints.
    pub writer: CheckpointWriter,
    /// The rows of each group, or why they cannot be used.
    pub machines: BTreeMap<u32, Result<Machine, String>>,
    /// Which replicas must not serve.
    pub quarantine: Quarantine,
    /// Where orders to recover a group are kept.
    pub orders: Orders,
    /// The node has never run before.
    pub fresh: bool,
    /// Its life on its data.
    pub life: LifeOfNode,
    /// Told when the disk fails.
    pub fail_stop: FailStop,
    /// Where the groups run.
    pub threads: RaftThreads,
    /// The keys of persons.
    pub keyring: Keyring,
    /// Free space of the node.
    pub space: Space,
}

/// The replicas of a node, running.
pub struct Replicas {
    /// By group number.
    pub groups: BTreeMap<u32, Group>,
    /// Why others do not run.
    pub faults: BTreeMap<u32, String>,
    /// The rows of each replica that began to run, also of those that halted at once.
    pub rows: BTreeMap<u32, StateHandle>,
    pub(crate) standing: Arc<Standing>,
    pub(crate) reports: Arc<Reports>,
    couriers: Arc<Couriers>,
    topology: Topology,
    log: NodeLog,
    writer: CheckpointWriter,
    orders: Orders,
    keys: Keys,
    _threads: RaftThreads,
}

/// The peer port's service, to be served before [`Replicas::start`] so that the others find it.
pub fn peer_service(server: PeerServer) -> PeerServiceServer<PeerServer> {
    PeerServiceServer::new(server)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// Lets the other nodes get to see which life of its data this is, as far as they can be reached within `patience`; longer
/// while one of them is still connected to an earlier life. Always in the same order, so that of two copies that start at
/// once the same one is first everywhere. Returns a node that is connected to another process to the last.
async fn meet_all(peers: &Peers, mut others: Vec<u64>, patience: Duration) -> Option<u64> {
    const AGAIN_AFTER: Duration = Duration::from_millis(20);
    const ANSWER_MAX: Duration = Duration::from_millis(200);
    others.sort_unstable();
    let began = Instant::now();
    loop {
        let mut left = Vec::new();
        for node in others {
            if peers.meet(node, ANSWER_MAX).await.is_err() {
                left.push(node);
            }
        }
        let awaits = left.iter().copied().find(|node| peers.lives().is_awaited_by(*node));
        let patience = if awaits.is_some() { PREDECESSOR_PATIENCE } else { patience };
        if left.is_empty() || began.elapsed() >= patience {
            return awaits;
        }
        others = left;
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// This node's last process may have granted somebody a lease that it knows nothing of: no vote before that is over. Meanwhile the
/// others get to see which life of its data this is. It never returns while another process runs on the same data.
async fn follow_an_earlier_life(peers: &Peers, standing: &Standing, fail_stop: &FailStop) {
    let quiet = Duration::from_millis(Timing::default().election_max_ms);
    let ((), connected) = tokio::join!(tokio::time::sleep(quiet), meet_all(peers, standing.others(), quiet));
    if let Some(other) = connected {
        fail_stop.report(StorageFault::InUse(format!(
            "another process runs as this node on the same data, and is connected to node {other}: stop one of the two"
        )));
        std::future::pending::<()>().await;
    }
}

/// Makes the groups that never were, on a new cluster: one candidate to begin with, so that the first leaders are where they belong. A
/// node that joins later must never make a group of its own.
async fn make_groups(virgins: &[u32], groups: &BTreeMap<u32, Group>, topology: &Topology, node: u64) {
    for number in virgins {
        if topology.generation == 0
            && topology.preferred_leader(*number) == node
            && let Some(group) = groups.get(number)
            && let Err(error) = group.initialize().await
        {
            tracing::error!(group = number, %error, "the group cannot be made");
        }
    }
}

/// Hears what other nodes report, and tells them of this one.
fn exchange_reports(server: &PeerServer, reports: &Arc<Reports>) {
    let reports = Arc::clone(reports);
    server.on_report(move |report| {
        reports.hear(&report);
        reports.own()
    });
}

/// Takes in what other nodes bring of messages between groups.
fn receive_messages(server: &PeerServer, couriers: &Arc<Couriers>) {
    let couriers = Arc::clone(couriers);
    server.on_deliver(move |deliver| {
        let couriers = Arc::clone(&couriers);
        Box::pin(async move { couriers.receive(deliver).await })
    });
}

/// Answers what other nodes ask of the keyring.
fn serve_keys(server: &PeerServer, keys: &Keys) {
    let keys = keys.clone();
    server.on_keyring(move |request| {
        let keys = keys.clone();
        Box::pin(async move { keys.answer(request).await })
    });
}

impl Replicas {
    /// Starts the replicas from what log and checkpoints hold. What is wrong with one of them is no error: see `faults`. It
    /// never returns once the other nodes have refused the data, which the fail-stop then tells.
    pub async fn start(parts: Parts, peers: &Peers, server: &PeerServer) -> Self {
        let (node, topology, log) = (parts.node, parts.topology, parts.log);
        let (writer, fail_stop) = (parts.writer, parts.fail_stop);
        let standing = Arc::new(Standing::new(node, topology.clone(), parts.clock, parts.apply_version));
        if !parts.fresh {
            follow_an_earlier_life(peers, &standing, &fail_stop).await;
        }
        if parts.life.is_stale() {
            // The fail-stop has been told: nothing of these data may take part in anything meanwhile.
            std::future::pending::<()>().await;
        }
        let (mut groups, mut virgins, mut faults) = (BTreeMap::new(), Vec::new(), BTreeMap::new());
        let mut rows = BTreeMap::new();
        let members: BTreeMap<u64, String> =
            topology.nodes.iter().map(|node| (node.id, node.peer_address.to_string())).collect();
        for (number, machine) in parts.machines {
            let machine = match machine {
                Ok(machine) => machine,
                Err(why) => {
                    tracing::error!(group = number, %why, "this replica is quarantined; the other groups go on");
                    faults.insert(number, why);
                    continue;
                }
            };
            let part = log.group(number);
            let virgin = part.state().vote.is_none() && part.state().last.is_none();
            let state = StateHandle::new(number, machine);
            rows.insert(number, state.clone());
            let begins = Group::start(GroupConfig {
                number,
                node,
                members: members.clone(),
                timing: Timing::default(),
                log: part,
                state,
                writer: writer.clone(),
                peers: peers.clone(),
                fail_stop: fail_stop.clone(),
            });
            // What a group's log or rows do to it must not take the others down, at a start no more than later.
            let begun = parts.threads.begin(number, begins).await;
            let group = match begun.and_then(|begun| begun.map_err(|error| error.to_string())) {
                Ok(group) => group,
                Err(why) => {
                    tracing::error!(group = number, why, "this replica cannot start; the other groups go on");
                    faults.insert(number, why);
                    continue;
                }
            };
            group.state().raise_fence(standing.fence(number));
            server.add(group.clone());
            if virgin {
                virgins.push(number);
            }
            groups.insert(number, group);
        }
        let reports =
            Arc::new(Reports::new(Arc::clone(&standing), groups.clone(), parts.quarantine, parts.life));
        exchange_reports(server, &reports);
        let keys = Keys::new(parts.keyring, parts.space, fail_stop);
        serve_keys(server, &keys);
        let couriers = Arc::new(Couriers::new(groups.clone(), Arc::clone(&standing), peers.clone()));
        receive_messages(server, &couriers);
        if !parts.fresh {
            // Elections may be going on meanwhile; only what stamps entries waits: the client port.
            reports.compare_clocks(peers, CLOCK_PATIENCE).await;
        }
        make_groups(&virgins, &groups, &topology, node).await;
        let (orders, _threads) = (parts.orders, parts.threads);
        Self {
            groups,
            faults,
            rows,
            standing,
            reports,
            couriers,
            topology,
            log,
            writer,
            orders,
            keys,
            _threads,
        }
    }

    /// Takes in later states of the topology: nodes join, leave and move, and groups are fenced.
    pub fn adopting(&self, peers: &Peers) -> impl Fn(&Topology) + Send + use<> {
        let (standing, peers) = (Arc::clone(&self.standing), peers.clone());
        move |topology| {
            peers.adopt(topology.nodes.iter().map(|node| (node.id, node.peer_address)).collect());
            standing.adopt(topology);
        }
    }

    /// Tells the other nodes about this one and hears from them, and takes over the keys that they have, until the node stops.
    pub fn reporting(&self, peers: &Peers) -> impl Future<Output = ()> + Send + 'static {
        let (reports, peers) = (Arc::clone(&self.reports), peers.clone());
        let (keys, standing) = (self.keys.clone(), Arc::clone(&self.standing));
        async move {
            tokio::join!(reports.keep(&peers), keys.keep(&peers, &standing));
        }
    }

    /// Carries messages of the groups that this node leads to the others, until the node stops.
    pub fn couriers(&self) -> impl Future<Output = ()> + Send + use<> {
        courier::keep(Arc::clone(&self.couriers))
    }

    /// What serves clients. The actors live at `home`.
    pub fn front(&self, space: Space, home: Home) -> Front {
        let served = |group: &Group| {
            let standing = Arc::clone(&self.standing);
            let shard = Arc::new(GroupShard::new(group.clone(), standing));
            let rows = Directory::start(shard, Limits::default(), home.clone());
            Served { group: group.clone(), rows, hot: Arc::default() }
        };
        let groups = self.groups.iter().map(|(number, group)| (*number, served(group))).collect();
        let metrics = Arc::new(Metrics::new(&self.topology));
        Front {
            serving: Arc::new(Serving::new(
                groups,
                self.faults.clone(),
                Arc::clone(&self.standing),
                space,
                metrics,
            )),
            standing: Arc::clone(&self.standing),
            log: self.log.clone(),
            writer: self.writer.clone(),
            orders: self.orders.clone(),
            keys: self.keys.clone(),
        }
    }
}

/// What serves the replicas of a node to clients, and looks after them.
pub struct Front {
    serving: Arc<Serving>,
    standing: Arc<Standing>,
    log: NodeLog,
    writer: CheckpointWriter,
    orders: Orders,
    keys: Keys,
}

impl Front {
    /// The client port's service.
    pub fn service(&self) -> ShardServiceServer<ShardServer> {
        let (serving, standing) = (Arc::clone(&self.serving), Arc::clone(&self.standing));
        let (orders, keys) = (self.orders.clone(), self.keys.clone());
        ShardServiceServer::new(ShardServer::new(serving, self.log.clone(), standing, orders, keys))
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// Looks after checkpoints, leads, and a log of `log_bytes_max`, until the node stops.
    pub fn keeper(&self, log_bytes_max: u64) -> impl Future<Output = ()> + Send + use<> {
        let (standing, serving) = (Arc::clone(&self.standing), Arc::clone(&self.serving));
        keeper::keep(standing, serving, self.log.clone(), log_bytes_max)
    }

    /// The node's counters as text.
    pub fn metrics(&self) -> impl Fn() -> String + Clone + Send + Sync + use<> {
        let (serving, log, writer) = (Arc::clone(&self.serving), self.log.clone(), self.writer.clone());
        move || serving.metrics.text(&serving, &log, writer.disk_bytes())
    }

    /// Whether the node does its part in all its regions, or why not: what a rolling restart waits for. A node that was drained does,
    /// and one whose region has lost its majority does not.
    pub fn readiness(&self) -> impl Fn() -> Result<(), String> + Clone + Send + Sync + use<> {
        let serving = Arc::clone(&self.serving);
        move || serving.readiness()
    }

    /// Ends the proposer of a group, as a defect of its would.
    pub fn abandon_proposer(&self, group: u32) {
        if let Some(served) = self.serving.groups.get(&group) {
            served.rows.abandon_proposer();
        }
    }

    /// Ends all row actors of a group at once, as defects of theirs would: whoever waits in them is told that the
    /// outcome is unknown. For tests and simulation.
    pub fn abandon_rows(&self, group: u32) {
        if let Some(served) = self.serving.groups.get(&group) {
            served.rows.abandon();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::replicas;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn all_that_can_be_reached_are_met_and_nobody_is_waited_for_who_was_never_there() {
        let running = replicas(&[1, 2]).await;
        let peers = &running[0].peers;
        assert_eq!(meet_all(peers, vec![2], Duration::from_secs(20)).await, None);
        assert!(peers.lives().met().contains_key(&2));
        let began = Instant::now();
        assert_eq!(meet_all(peers, vec![3, 2], Duration::from_millis(100)).await, None);
        assert!(began.elapsed() >= Duration::from_millis(100), "node 3 has been given its time");
        for replica in running {
            replica.writer.stop();
            replica.log.close().expect("a disk in memory");
        }
    }
}
