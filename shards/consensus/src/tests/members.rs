//! Replicas that are replaced, and groups that go on after a forced recovery.

use std::collections::BTreeSet;

use tidewall_machine::Machine;
use tidewall_proto::internal::v1 as pb;

use super::*;

/// Recovers group 1 from the disks of node 1 alone, as its second incarnation.
fn recover_first(cluster: &Cluster) -> (Machine, NodeLog) {
    let disks = cluster.disks[&1].clone();
    let (log, _) = NodeLog::open(Arc::new(disks.log), LogOptions::new(CLUSTER, 1)).unwrap();
    let mut store = disks.checkpoints;
    let machine = store.load(1).unwrap().map(|(_, machine)| machine).unwrap_or_default();
    let address = cluster.addresses[&1].to_string();
    let order = recovery::Recovery { group: 1, node: 1, address, incarnation: 2 };
    let machine = recovery::recover(&order, &log.group(1), &mut store, machine).unwrap();
    (machine, log)
}

/// Calls a node's peer port as another node does.
pub(super) async fn peer_client(
    cluster: &Cluster,
    from: u64,
    to: u64,
) -> pb::peer_service_client::PeerServiceClient<tidewall_link::NodeChannel> {
    let address = cluster.addresses[&to];
    let channel = tidewall_link::connect(address, PATIENCE, None).await.unwrap();
    let lives = Arc::clone(&cluster.running[&from].lives);
    let parties = tidewall_link::Parties::new(CLUSTER, Some(lives), to);
    let channel = tidewall_link::NodeChannel::new(channel, address, parties);
    pb::peer_service_client::PeerServiceClient::new(channel)
}

/// Offers node 1 a snapshot of this incarnation of group 1, under a vote higher than any. Returns why it is refused.
async fn offer_snapshot(cluster: &Cluster, incarnation: u64) -> String {
    let vote = Some(pb::RaftVote { term: 1_000, node: 2, committed: true });
    let head = pb::SnapshotHead { group: 1, vote, incarnation };
    let first = pb::InstallSnapshotRequest { head: Some(head), chunk: Vec::new().into() };
    let mut client = peer_client(cluster, 2, 1).await;
    client.install_snapshot(tokio_stream::once(first)).await.unwrap().into_inner().error
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
    bring_up(&cluster, &group, 4).await;
    let voters: BTreeSet<u64> = (1..=4).filter(|node| *node != lost).collect();
    group.set_voters(voters.clone()).await.unwrap();
    assert_eq!(group.members(), (voters, BTreeSet::new()));
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
    // Crashes in between change nothing: the second time finds the new incarnation.
    for crash in [true, false] {
        let (machine, log) = recover_first(&cluster);
        assert_eq!((machine.incarnation(), machine.applied_index() > last), (2, true));
        if crash {
            cluster.disks[&1].log.crash(CrashMode::LoseUnsynced);
        }
        let _ = log.close();
    }
    cluster.start(1).await;
    let (leader, group) = cluster.leader(1).await;
    assert_eq!(leader, 1);
    assert_eq!(group.members().0, [1].into());
    for n in 1..=20 {
        assert!(remembers(&group, n), "purchase {n} was in the survivor's log and is lost");
    }
    cluster.buy(1, 21).await;
    // A new replica takes the place of a lost one.
    cluster.start(4).await;
    bring_up(&cluster, &group, 4).await;
    group.set_voters([1, 4].into()).await.unwrap();
    let last = cluster.buy(1, 22).await;
    cluster.agree(1, last).await;
    // An order that is found again, however late, empties nothing: what was acknowledged since is in the log only.
    cluster.crash(4).await;
    cluster.crash(1).await;
    let _ = recover_first(&cluster).1.close();
    cluster.start(1).await;
    cluster.start(4).await;
    let (_, group) = cluster.leader(1).await;
    assert!(remembers(&group, 22), "a purchase after the recovery is lost");
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
    let _ = recover_first(&cluster).1.close();
    cluster.start(1).await;
    let (_, survivor) = cluster.leader(1).await;
    survivor.state().raise_fence(2);
    // The others come back and do not know yet: they elect, in ever higher terms, and call the survivor a member.
    cluster.start(2).await;
    cluster.start(3).await;
    let elected = |node: u64| cluster.running[&node].groups[&1].believes_to_lead();
    until("the others elect nobody: this tests nothing", || elected(2) || elected(3)).await;
    for n in 10..30 {
        let payload = Payload::new(&Entry {
            stamp: tidewall_machine::Stamp::confirmed(T0),
            commands: vec![purchase(n)],
        });
        let decided = tokio::time::timeout(PATIENCE, survivor.propose(payload)).await.unwrap();
        assert!(decided.is_ok(), "the survivor was deposed by those it has left behind: {decided:?}");
        sleep(Duration::from_millis(50)).await;
    }
    // Told of the fence, they answer nobody either.
    for node in [2, 3] {
        cluster.running[&node].groups[&1].state().raise_fence(2);
    }
    assert_eq!(survivor.members().0, [1].into());
    let refused = offer_snapshot(&cluster, 1).await;
    assert!(refused.contains("left behind by a forced recovery"), "{refused}");
    cluster.stop().await;
}

/// Nothing would come of it, and the leader would send it again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_has_halted_takes_no_snapshot() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    cluster.running[&1].groups[&1].state().quarantine("its rows are wrong".into());
    let refused = offer_snapshot(&cluster, 1).await;
    assert!(refused.contains("has halted") && refused.contains("its rows are wrong"), "{refused}");
    cluster.stop().await;
}

/// A copy that was made a moment ago has all that its original has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_process_of_a_node_is_let_in_nowhere_while_the_first_one_runs() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    // Its streams to both others are open.
    let (leader, _) = cluster.leader(1).await;
    let began_at = cluster.running[&leader].lives.reached() + 1_000;
    let life = tidewall_link::Life { id: 99, began_at };
    let stale = |why: &str| panic!("{why}");
    let lives = Lives::new(leader, life, BTreeMap::new(), move || began_at + 1, stale);
    let (lives, addresses) = (Arc::new(lives), cluster.addresses.clone());
    let config = PeersConfig { cluster: CLUSTER, lives: Arc::clone(&lives), credentials: None, addresses };
    let twin = Peers::new(config);
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    for other in &others {
        assert!(twin.meet(*other, PATIENCE).await.is_err(), "node {other} talks to both");
        assert!(lives.is_awaited_by(*other));
    }
    cluster.crash(leader).await;
    let deadline = Instant::now() + PATIENCE;
    for other in others {
        while twin.meet(other, PATIENCE).await.is_err() {
            assert!(Instant::now() < deadline, "node {other} waits for who is gone");
            sleep(Duration::from_millis(20)).await;
        }
    }
    cluster.stop().await;
}

/// The fence names the lowest incarnation that may serve: who has it serves.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_of_the_incarnation_that_the_fence_names_is_not_left_behind() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let own = cluster.running[&1].groups[&1].state().read(Machine::incarnation);
    for running in cluster.running.values() {
        running.groups[&1].state().raise_fence(own);
    }
    let last = cluster.buy(1, 1).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_found_where_it_has_moved_to() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut addresses = cluster.addresses.clone();
    let moved = addresses.insert(2, nowhere).unwrap();
    let peers = Peers::new(PeersConfig {
        cluster: CLUSTER,
        lives: Arc::new(Lives::idle(4)),
        credentials: None,
        addresses: addresses.clone(),
    });
    peers.meet(1, PATIENCE).await.unwrap();
    let silent = Duration::from_millis(300);
    peers.meet(2, silent).await.unwrap_err();
    addresses.insert(2, moved);
    addresses.remove(&1);
    peers.adopt(addresses);
    assert_eq!((peers.address(2), peers.address(1)), (Some(moved), None));
    peers.meet(2, PATIENCE).await.unwrap();
    peers.meet(1, silent).await.unwrap_err();
    cluster.stop().await;
}
