//! Three replicas with real links on 127.0.0.1, over disks in memory that lose what was not synced.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidewall_env::disk::{CrashMode, MemoryDisk};
use tidewall_machine::domain::tickets;
use tidewall_machine::domain::tickets::model::TierSpec;
use tidewall_machine::{Answer, Command, Decision, Entry, Op};
use tidewall_proto::internal::v1::peer_service_server::PeerServiceServer;
use tidewall_store::checkpoint::memory::MemoryCheckpoints;
use tidewall_store::checkpoint::{CheckpointStore, CheckpointWriter};
use tidewall_store::log::{LogOptions, NodeLog};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::TcpListenerStream;

use openraft::async_runtime::watch::WatchReceiver as _;

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
        let peers = Peers::new(PeersConfig { cluster: CLUSTER, addresses: self.addresses.clone() });
        let incoming = self.incoming.path().join(format!("node-{node}"));
        std::fs::create_dir_all(&incoming).unwrap();
        let server = PeerServer::new(CLUSTER, Some(incoming));
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
                fail_stop: FailStop::new(|what| eprintln!("disk failed: {what}")),
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
        runtime.spawn(async move {
            let served = tidewall_link::server_builder()
                .add_service(PeerServiceServer::new(server))
                .serve_with_incoming(TcpListenerStream::new(listener));
            served.await.unwrap();
        });
        self.running.insert(node, Running { groups, log, writer, runtime });
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
            let payload = Payload::new(&Entry { stamp_ms: T0, commands: commands.clone() });
            match tokio::time::timeout(Duration::from_secs(3), group.propose(payload)).await {
                Ok(Ok(decisions)) => return decisions,
                other => assert!(Instant::now() < deadline, "{other:?}"),
            }
        }
    }

    async fn buy(&self, number: u32, n: u64) -> u64 {
        let op = tickets::Command::Buy {
            event: "gala".into(),
            tier: "ga".into(),
            quantity: 1,
            seats: vec![],
            buyer: String::new(),
        };
        let decision = self.decide(number, vec![command(n, op)]).await.remove(0);
        assert!(matches!(decision.answer, Answer::Done(_)), "{decision:?}");
        decision.receipt.unwrap().index
    }

    async fn create(&self, number: u32) {
        let tier = TierSpec {
            id: "ga".into(),
            display_name: String::new(),
            capacity: 100_000,
            currency: "EUR".into(),
            price: 1,
            seat_rows: vec![],
        };
        let op = tickets::Command::CreateEvent {
            event: "gala".into(),
            display_name: "Gala".into(),
            quota: 100_000,
            opens_ms: 0,
            closes_ms: 0,
            tiers: vec![tier],
        };
        self.decide(number, vec![command(0, op)]).await;
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

fn command(n: u64, op: tickets::Command) -> Command {
    let request_id = (u128::from(T0) << 80) | u128::from(n);
    Command {
        principal: "alice".into(),
        request_id,
        expires_ms: u64::MAX,
        privileged: false,
        op: Op::Tickets(op),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_acknowledged_survives_the_death_of_its_leader() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    for n in 1..=20 {
        cluster.buy(1, n).await;
    }
    let (old, _) = cluster.leader(1).await;
    cluster.crash(old).await;
    let (new, group) = cluster.leader(1).await;
    assert_ne!(old, new);
    for n in 1..=20 {
        let known = group.state().read(|machine| machine.outcome("alice", (u128::from(T0) << 80) | n));
        assert!(known.is_some(), "purchase {n} was acknowledged and is lost");
    }
    let last = cluster.buy(1, 21).await;
    cluster.start(old).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_replicas_come_back_from_log_and_checkpoint() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let mut last = 0;
    for n in 1..=30 {
        last = cluster.buy(1, n).await;
        if n == 15 {
            for running in cluster.running.values() {
                running.groups[&1].checkpoint().await;
            }
        }
    }
    cluster.agree(1, last).await;
    let digest = cluster.leader(1).await.1.state().read(|machine| machine.tickets().digest());
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    let (_, group) = cluster.leader(1).await;
    assert_eq!(group.state().read(|machine| machine.tickets().digest()), digest);
    let again = cluster.buy(1, 30).await;
    assert!(again <= last, "a repeated request was decided anew");
    let last = cluster.buy(1, 31).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_replica_joins_from_a_snapshot() {
    let mut cluster = Cluster::new(&[1, 2]).await;
    cluster.create(1).await;
    let mut last = 0;
    for n in 1..=400 {
        last = cluster.buy(1, n).await;
    }
    // Everything before is purged: the log alone cannot bring the third replica up.
    let (_, leader) = cluster.leader(1).await;
    leader.checkpoint().await;
    let deadline = Instant::now() + PATIENCE;
    while leader.raft().metrics().borrow_watched().purged.is_none() {
        assert!(Instant::now() < deadline, "the log was not purged");
        sleep(Duration::from_millis(20)).await;
    }
    cluster.start(3).await;
    cluster.agree(1, last).await;
    let joined = &cluster.running[&3].groups[&1];
    assert!(joined.state().checkpoint_index() > 0, "it did not come by snapshot");
    // And what it was given survives its own crash.
    cluster.crash(3).await;
    cluster.start(3).await;
    let last = cluster.buy(1, 401).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_entry_halts_its_group_and_no_other() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    for number in GROUPS {
        cluster.create(number).await;
    }
    let (_, group) = cluster.leader(1).await;
    let before = group.state().read(|machine| machine.applied_index());
    let poison = Payload(bytes::Bytes::from_static(&[crate::types::KIND_NORMAL, 200, 1, 2, 3]));
    let answer = tokio::time::timeout(PATIENCE, group.propose(poison)).await.expect("an answer in time");
    assert!(matches!(answer, Err(ProposeError::Unknown(_) | ProposeError::Halted(_))), "{answer:?}");
    // The leader halts; so does whoever leads after it. The last one has no majority left to learn of the commit from.
    let deadline = Instant::now() + PATIENCE;
    let halted =
        || cluster.running.values().filter(|running| running.groups[&1].state().halted().is_some()).count();
    while halted() < 2 {
        assert!(Instant::now() < deadline, "a replica skipped the poison entry");
        sleep(Duration::from_millis(20)).await;
    }
    for running in cluster.running.values() {
        let applied = running.groups[&1].state().read(|machine| machine.applied_index());
        assert!(applied <= before, "somebody went on behind the poison entry");
    }
    assert!(matches!(group.confirm_leadership().await, Err(ReadError::Halted(_))));
    assert_eq!(group.status().role, Role::Halted);
    let last = cluster.buy(2, 1).await;
    cluster.agree(2, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_where_it_is_sent() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    for n in 1..=3 {
        let (from, group) = cluster.leader(1).await;
        let to = from % 3 + 1;
        let deadline = Instant::now() + PATIENCE;
        loop {
            if group.believes_to_lead() && group.caught_up(to) {
                group.transfer_leadership(to).await;
            }
            sleep(Duration::from_millis(300)).await;
            if cluster.leader(1).await.0 == to {
                break;
            }
            assert!(Instant::now() < deadline, "the lead did not go from {from} to {to}");
        }
        cluster.buy(1, n).await;
    }
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_cut_off_from_its_peers_confirms_nothing() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (old, group) = cluster.leader(1).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    for node in others {
        cluster.crash(node).await;
    }
    // Its lease runs out; from then on it must refuse, though nobody has told it of a new leader.
    sleep(Duration::from_millis(1_200)).await;
    let confirmed =
        tokio::time::timeout(PATIENCE, group.confirm_leadership()).await.expect("an answer in time");
    assert!(matches!(confirmed, Err(ReadError::NotLeader { .. })), "{confirmed:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_replica_is_replaced_under_a_new_id() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    for n in 1..=100 {
        cluster.buy(1, n).await;
    }
    let (leader, _) = cluster.leader(1).await;
    let lost = leader % 3 + 1;
    cluster.crash(lost).await;
    cluster.start(4).await;
    let (_, group) = cluster.leader(1).await;
    group.add_learner(4, cluster.addresses[&4].to_string()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while group.lag(4).is_none_or(|lag| lag > 0) {
        assert!(Instant::now() < deadline, "node 4 does not catch up");
        sleep(Duration::from_millis(20)).await;
    }
    let voters: std::collections::BTreeSet<u64> = (1..=4).filter(|node| *node != lost).collect();
    group.set_voters(voters.clone()).await.unwrap();
    assert_eq!(group.members(), (voters, std::collections::BTreeSet::new()));
    let last = cluster.buy(1, 101).await;
    cluster.agree(1, last).await;
    // The new one counts: with it and without the old leader there is a majority.
    cluster.crash(leader).await;
    let last = cluster.buy(1, 102).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_with_all_that_its_log_has() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let mut last = 0;
    for n in 1..=20 {
        last = cluster.buy(1, n).await;
    }
    cluster.agree(1, last).await;
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    let disks = cluster.disks[&1].clone();
    // Crashes in between change nothing: the second time finds the new incarnation.
    for crash in [true, false] {
        let (log, _) = NodeLog::open(Arc::new(disks.log.clone()), LogOptions::new(CLUSTER, 1)).unwrap();
        let mut store = disks.checkpoints.clone();
        let machine = store.load(1).unwrap().map(|(_, machine)| machine).unwrap_or_default();
        let recovery = recovery::Recovery {
            group: 1,
            node: 1,
            address: cluster.addresses[&1].to_string(),
            incarnation: 2,
        };
        let machine = recovery::recover(&recovery, &log.group(1), &mut store, machine).unwrap();
        assert_eq!((machine.incarnation(), machine.applied_index() > last), (2, true));
        if crash {
            disks.log.crash(CrashMode::LoseUnsynced);
        }
        let _ = log.close();
    }
    cluster.start(1).await;
    let (leader, group) = cluster.leader(1).await;
    assert_eq!(leader, 1);
    assert_eq!(group.members().0, [1].into());
    for n in 1..=20 {
        let known = group.state().read(|machine| machine.outcome("alice", (u128::from(T0) << 80) | n));
        assert!(known.is_some(), "purchase {n} was in the survivor's log and is lost");
    }
    cluster.buy(1, 21).await;
    // A new replica takes the place of a lost one.
    cluster.start(4).await;
    group.add_learner(4, cluster.addresses[&4].to_string()).await.unwrap();
    let deadline = Instant::now() + PATIENCE;
    while group.lag(4).is_none_or(|lag| lag > 0) {
        assert!(Instant::now() < deadline, "node 4 does not catch up");
        sleep(Duration::from_millis(20)).await;
    }
    group.set_voters([1, 4].into()).await.unwrap();
    let last = cluster.buy(1, 22).await;
    cluster.agree(1, last).await;
    // An order that is found again, however late, empties nothing: what was acknowledged since is in the log only.
    cluster.crash(4).await;
    cluster.crash(1).await;
    let (log, _) = NodeLog::open(Arc::new(disks.log.clone()), LogOptions::new(CLUSTER, 1)).unwrap();
    let mut store = disks.checkpoints.clone();
    let machine = store.load(1).unwrap().map(|(_, machine)| machine).unwrap();
    let recovery = recovery::Recovery { group: 1, node: 1, address: String::new(), incarnation: 2 };
    recovery::recover(&recovery, &log.group(1), &mut store, machine).unwrap();
    let _ = log.close();
    cluster.start(1).await;
    cluster.start(4).await;
    let (_, group) = cluster.leader(1).await;
    let known = group.state().read(|machine| machine.outcome("alice", (u128::from(T0) << 80) | 22));
    assert!(known.is_some(), "a purchase after the recovery is lost");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_left_behind_by_a_recovery_is_not_listened_to() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let last = cluster.buy(1, 1).await;
    cluster.agree(1, last).await;
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    let disks = cluster.disks[&1].clone();
    let (log, _) = NodeLog::open(Arc::new(disks.log.clone()), LogOptions::new(CLUSTER, 1)).unwrap();
    let mut store = disks.checkpoints.clone();
    let machine = store.load(1).unwrap().map(|(_, machine)| machine).unwrap_or_default();
    let address = cluster.addresses[&1].to_string();
    let recovery = recovery::Recovery { group: 1, node: 1, address, incarnation: 2 };
    recovery::recover(&recovery, &log.group(1), &mut store, machine).unwrap();
    let _ = log.close();
    cluster.start(1).await;
    let (_, survivor) = cluster.leader(1).await;
    survivor.state().raise_fence(2);
    // The others come back and do not know yet: they elect, in ever higher terms, and call the survivor a member.
    cluster.start(2).await;
    cluster.start(3).await;
    let deadline = Instant::now() + PATIENCE;
    let elected = |node: u64| cluster.running[&node].groups[&1].believes_to_lead();
    while !elected(2) && !elected(3) {
        assert!(Instant::now() < deadline, "the others elect nobody: this tests nothing");
        sleep(Duration::from_millis(20)).await;
    }
    for n in 10..30 {
        let op = tickets::Command::Buy {
            event: "gala".into(),
            tier: "ga".into(),
            quantity: 1,
            seats: vec![],
            buyer: String::new(),
        };
        let payload = Payload::new(&Entry { stamp_ms: T0, commands: vec![command(n, op)] });
        let decided = tokio::time::timeout(PATIENCE, survivor.propose(payload)).await.unwrap();
        assert!(decided.is_ok(), "the survivor was deposed by those it has left behind: {decided:?}");
        sleep(Duration::from_millis(50)).await;
    }
    // Told of the fence, they answer nobody either.
    for node in [2, 3] {
        cluster.running[&node].groups[&1].state().raise_fence(2);
    }
    assert_eq!(survivor.members().0, [1].into());
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_group_decides_nothing_until_it_may() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (_, group) = cluster.leader(1).await;
    group.state().suspend(Some("replicas differ".into()));
    let payload = Payload::new(&Entry { stamp_ms: T0, commands: vec![] });
    assert_eq!(group.propose(payload).await, Err(ProposeError::Halted("replicas differ".into())));
    assert_eq!(group.confirm_leadership().await, Err(ReadError::Halted("replicas differ".into())));
    group.state().suspend(None);
    let last = cluster.buy(1, 1).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_note_the_same_digests_where_they_compare() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let mut last = 0;
    for n in 1..=2 * agreement::EVERY {
        last = cluster.buy(1, n).await;
    }
    cluster.agree(1, last).await;
    let notes = |node: u64| cluster.running[&node].groups[&1].state().ledger().tell();
    let compared: Vec<_> = notes(1).into_iter().filter(|(index, _)| index % agreement::EVERY == 0).collect();
    assert!(compared.len() >= 2, "{compared:?}");
    for (note, node) in compared.iter().flat_map(|note| [(note, 2), (note, 3)]) {
        assert!(notes(node).contains(note), "node {node} has another digest than {note:?}");
    }
    cluster.stop().await;
}
