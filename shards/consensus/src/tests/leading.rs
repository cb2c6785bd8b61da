//! Who may lead, decide and answer, and who must not.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_entry_halts_its_group_and_no_other() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    for number in GROUPS {
        cluster.create(number).await;
    }
    let (_, group) = cluster.leader(1).await;
    let before = group.state().read(|machine| machine.applied_index());
    let proposed = group.propose(Payload::poison());
    let answer = tokio::time::timeout(PATIENCE, proposed).await.expect("an answer in time");
    assert!(matches!(answer, Err(ProposeError::Unknown(_) | ProposeError::Halted(_))), "{answer:?}");
    // The leader halts; so does whoever leads after it. The last one has no majority left to learn of the commit from.
    let halted =
        || cluster.running.values().filter(|running| running.groups[&1].state().halted().is_some()).count();
    until("a replica skipped the poison entry", || halted() >= 2).await;
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
    let heard = group.unacknowledged_for();
    assert!(heard.is_some_and(|silence| silence < PATIENCE), "{heard:?}");
    let others: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    for node in others {
        assert_eq!(cluster.running[&node].groups[&1].unacknowledged_for(), None, "it does not lead");
        cluster.crash(node).await;
    }
    // Its lease runs out; from then on it must refuse, though nobody has told it of a new leader.
    sleep(Duration::from_millis(1_200)).await;
    let confirmed =
        tokio::time::timeout(PATIENCE, group.confirm_leadership()).await.expect("an answer in time");
    assert!(matches!(confirmed, Err(ReadError::NotLeader { .. })), "{confirmed:?}");
    let heard = group.unacknowledged_for();
    assert!(heard.is_some_and(|silence| silence > Duration::from_secs(1)), "{heard:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_suspended_group_decides_nothing_until_it_may() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (_, group) = cluster.leader(1).await;
    group.state().suspend(Some("replicas differ".into()));
    let payload = Payload::new(&Entry { stamp: tidewall_machine::Stamp::confirmed(T0), commands: vec![] });
    assert_eq!(group.propose(payload).await, Err(ProposeError::Halted("replicas differ".into())));
    assert_eq!(group.confirm_leadership().await, Err(ReadError::Halted("replicas differ".into())));
    group.state().suspend(None);
    let last = cluster.buy(1, 1).await;
    cluster.agree(1, last).await;
    cluster.stop().await;
}

/// A node whose clock is wrong, or that was left behind, must not lead, whoever else is there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_stand_for_election_leads_nothing_and_later_may() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (old, _) = cluster.leader(1).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != old).collect();
    for node in &others {
        cluster.running[node].groups[&1].allow_election(false);
    }
    cluster.crash(old).await;
    // Several elections would have been held by now.
    sleep(Duration::from_secs(2)).await;
    for node in &others {
        assert!(!cluster.running[node].groups[&1].believes_to_lead(), "node {node} stood for election");
    }
    cluster.running[&others[0]].groups[&1].allow_election(true);
    assert_eq!(cluster.leader(1).await.0, others[0]);
    cluster.stop().await;
}

/// openraft's leader decides nothing any more once it has offered its lead.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lead_is_not_offered_to_itself_nor_to_who_does_not_vote_and_goes_on_when_its_taker_died() {
    let mut cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (from, group) = cluster.leader(1).await;
    for nobody in [from, 4] {
        group.transfer_leadership(nobody).await;
        let last = cluster.buy(1, nobody).await;
        cluster.agree(1, last).await;
        assert_eq!(cluster.leader(1).await.0, from);
    }
    // Whom it is offered to has died: somebody else gets it, and the group decides again.
    let to = from % 3 + 1;
    cluster.crash(to).await;
    group.transfer_leadership(to).await;
    until("the lead stays with who has offered it", || !group.believes_to_lead()).await;
    cluster.buy(1, 9).await;
    assert_ne!(cluster.leader(1).await.0, to);
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_that_was_stopped_leads_no_more_and_the_others_go_on() {
    let cluster = Cluster::new(&[1, 2, 3]).await;
    cluster.create(1).await;
    let (old, group) = cluster.leader(1).await;
    group.stop().await;
    let led_by_another = || {
        let others = cluster.running.iter().filter(|(node, _)| **node != old);
        others.into_iter().any(|(_, running)| running.groups[&1].believes_to_lead())
    };
    until("nobody takes over from a replica that was stopped", led_by_another).await;
    assert!(
        group
            .propose(Payload::new(&Entry { stamp: tidewall_machine::Stamp::confirmed(T0), commands: vec![] }))
            .await
            .is_err()
    );
    cluster.stop().await;
}
