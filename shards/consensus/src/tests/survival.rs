//! Crashes: what was acknowledged survives, replicas come back from log, checkpoint or snapshot, and agree.

use openraft::async_runtime::watch::WatchReceiver as _;
use tidewall_machine::Machine;
use tidewall_proto::internal::v1 as pb;

use super::*;

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
        assert!(remembers(&group, n), "purchase {n} was acknowledged and is lost");
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
    let digest =
        cluster.leader(1).await.1.state().read(|machine| machine.module(tickets::MODULE).unwrap().digest());
    for node in 1..=3 {
        cluster.crash(node).await;
    }
    for node in 1..=3 {
        cluster.start(node).await;
    }
    let (_, group) = cluster.leader(1).await;
    assert_eq!(group.state().read(|machine| machine.module(tickets::MODULE).unwrap().digest()), digest);
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
    until("the log was not purged", || leader.raft().metrics().borrow_watched().purged.is_some()).await;
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

/// What a replica has applied it need not have stored yet, and a snapshot of no more than that changes nothing. The leader takes
/// the answer for the log's all the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_is_answered_when_the_log_is_durable_and_no_earlier() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (leader, group) = cluster.leader(1).await;
    let slow = leader % 3 + 1;
    let disk = cluster.disks[&slow].log.clone();
    disk.hold_syncs_after(0);
    let last = cluster.buy(1, 1).await;
    let rows = cluster.running[&slow].groups[&1].state();
    until("it does not apply", || rows.read(Machine::applied_index) >= last).await;

    let frozen = group.freeze().await.unwrap();
    let vote = Some(pb::RaftVote { term: group.status().term, node: leader, committed: true });
    let head = pb::SnapshotHead { group: 1, vote, incarnation: 1 };
    let chunks = tidewall_machine::snapshot::encode(&frozen).flatten().collect::<Vec<u8>>();
    let whole = pb::InstallSnapshotRequest { head: Some(head), chunk: chunks.into() };
    let mut client = members::peer_client(&cluster, leader, slow).await;
    let answer = tokio::spawn(async move { client.install_snapshot(tokio_stream::once(whole)).await });
    sleep(Duration::from_millis(800)).await;
    assert!(!answer.is_finished(), "it was answered while its log was not durable");
    disk.release_syncs();
    let answered = tokio::time::timeout(PATIENCE, answer).await.expect("an answer in time");
    assert_eq!(answered.unwrap().unwrap().into_inner().error, "");
    cluster.agree(1, last).await;
    cluster.stop().await;
}
