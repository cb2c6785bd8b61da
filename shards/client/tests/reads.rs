//! Which replica is asked for what need not be the latest. Three scripted nodes, of which the first leads.
#![allow(clippy::unwrap_used)]

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::*;
use tidewall_client::{ClientError, ShardClient};
use tidewall_messages::Seen;
use tidewall_proto::internal::v1 as pb;

/// Longer than any of these tests takes.
const OLD: Option<Duration> = Some(Duration::from_secs(10));

fn seen(index: u64) -> Seen {
    Seen { incarnation: 1, index, steady_ms: 0 }
}

/// Waits until it is another standby's turn.
async fn turn() {
    tokio::time::sleep(Duration::from_millis(2)).await;
}

/// A leader, two standbys, and their client.
struct Cluster {
    nodes: [Arc<Fake>; 3],
    client: Arc<ShardClient>,
}

impl Cluster {
    async fn new() -> Self {
        let nodes = [Mode::Decide, Mode::NotLeader(1), Mode::NotLeader(1)].map(Fake::new);
        let mut addresses = Vec::new();
        for (id, node) in (1..).zip(&nodes) {
            *node.come.lock() = seen(7);
            addresses.push(start(node, id).await);
        }
        Self { client: client(&addresses), nodes }
    }

    /// As a gateway does; what has no age must be the latest.
    async fn read(&self, age: Option<Duration>, least: Seen) -> Result<Seen, ClientError> {
        self.read_within(20_000, age, least).await
    }

    async fn read_within(&self, ms: u64, age: Option<Duration>, least: Seen) -> Result<Seen, ClientError> {
        let (query, deadline) = (pb::Query::default(), after(ms));
        if let Some(age) = age
            && let Some(found) = self.client.read_at_standbys(1, &query, age, least, deadline).await?
        {
            return Ok(found.seen.unwrap());
        }
        self.client.query_since(1, &query, least, deadline).await.map(|found| found.seen.unwrap())
    }

    /// Calls of any kind that each node had.
    fn calls(&self) -> [u64; 3] {
        self.nodes.each_ref().map(|node| node.calls.load(Ordering::Relaxed))
    }

    /// The leader was asked, but hardly more often than once: on a busy machine what it said may have become old.
    fn leader_was_hardly_asked(&self) -> bool {
        (1..=3).contains(&self.calls()[0])
    }

    /// Reads that each node has answered though it need not lead for them.
    fn reads(&self) -> [u64; 3] {
        self.nodes.each_ref().map(|node| node.reads.load(Ordering::Relaxed))
    }
}

#[tokio::test]
async fn what_may_be_old_is_read_at_standbys_once_the_leader_has_said_anything() {
    let cluster = Cluster::new().await;
    for _ in 0..21 {
        assert_eq!(cluster.read(OLD, Seen::default()).await, Ok(seen(7)));
        turn().await;
    }
    assert!(cluster.leader_was_hardly_asked());
    let reads = cluster.reads();
    assert!(reads[0] == 0 && reads[1] >= 5 && reads[2] >= 5, "they take turns: {reads:?}");
    for _ in 0..5 {
        cluster.read(None, Seen::default()).await.unwrap();
    }
    assert!(cluster.calls()[0] >= 6, "what must be the latest is the leader's");
    assert_eq!(cluster.reads(), reads);
}

#[tokio::test]
async fn nothing_is_fresh_without_age() {
    let cluster = Cluster::new().await;
    for _ in 0..5 {
        cluster.read(Some(Duration::ZERO), Seen::default()).await.unwrap();
    }
    assert_eq!((cluster.calls(), cluster.reads()), ([5, 0, 0], [0; 3]));
}

#[tokio::test]
async fn a_standby_that_lacks_what_was_seen_is_passed_over() {
    let cluster = Cluster::new().await;
    cluster.read(OLD, Seen::default()).await.unwrap();
    *cluster.nodes[2].come.lock() = seen(9);
    for _ in 0..4 {
        assert_eq!(cluster.read(OLD, seen(9)).await, Ok(seen(9)));
        turn().await;
    }
    assert_eq!(cluster.reads(), [0, 0, 4]);
    assert!(cluster.calls()[1] >= 1, "it was asked");
    // Whoever has seen what no standby has, by another gateway, is answered by the leader.
    *cluster.nodes[0].come.lock() = seen(12);
    assert_eq!(cluster.read(OLD, seen(12)).await, Ok(seen(12)));
}

#[tokio::test]
async fn neither_haste_nor_what_nobody_has_seen_takes_standbys_away_from_others() {
    let cluster = Cluster::new().await;
    cluster.read(OLD, Seen::default()).await.unwrap();
    for _ in 0..4 {
        let hasty = cluster.read_within(0, OLD, Seen::default()).await;
        assert!(matches!(hasty, Err(ClientError::Unavailable { .. })), "{hasty:?}");
        assert_eq!(cluster.read(OLD, seen(u64::MAX)).await, Ok(seen(7)), "the leader has the last word");
        turn().await;
    }
    let (asked, reads) = (cluster.calls()[0], cluster.reads());
    for _ in 0..4 {
        cluster.read(OLD, Seen::default()).await.unwrap();
        turn().await;
    }
    assert_eq!(cluster.reads().iter().sum::<u64>(), reads.iter().sum::<u64>() + 4);
    assert!(cluster.calls()[0] <= asked + 2);
}

#[tokio::test]
async fn standbys_answer_while_nobody_leads() {
    let cluster = Cluster::new().await;
    cluster.read(OLD, Seen::default()).await.unwrap();
    *cluster.nodes[0].mode.lock() = Mode::Silent;
    for _ in 0..4 {
        assert_eq!(cluster.read(OLD, Seen::default()).await, Ok(seen(7)));
    }
    // And one of them does while the other one is silent, or has halted.
    for mode in [Mode::Silent, Mode::Refuse(pb::RefusalKind::Halted)] {
        *cluster.nodes[1].mode.lock() = mode;
        for _ in 0..4 {
            assert_eq!(cluster.read(OLD, Seen::default()).await, Ok(seen(7)));
            turn().await;
        }
    }
    assert!(cluster.leader_was_hardly_asked() && cluster.reads()[2] >= 8, "{:?}", cluster.reads());
}

#[tokio::test]
async fn what_is_too_much_for_standbys_does_not_go_to_the_leader() {
    let cluster = Cluster::new().await;
    cluster.read(OLD, Seen::default()).await.unwrap();
    let full = Mode::Refuse(pb::RefusalKind::Overloaded);
    *cluster.nodes[1].mode.lock() = full;
    assert_eq!(cluster.read(OLD, Seen::default()).await, Ok(seen(7)), "the other one has room");
    *cluster.nodes[2].mode.lock() = full;
    let refused = cluster.read(OLD, Seen::default()).await;
    assert!(matches!(refused, Err(ClientError::Overloaded { .. })), "{refused:?}");
    assert!(cluster.leader_was_hardly_asked());
}

#[tokio::test]
async fn a_decision_says_how_far_standbys_must_have_come() {
    let cluster = Cluster::new().await;
    // The scripted receipt is of incarnation 0, and so is less than what the rows show.
    cluster.client.command(1, command("ann"), after(20_000)).await.unwrap();
    assert_eq!(cluster.read(OLD, Seen::default()).await, Ok(seen(7)));
    assert_eq!(cluster.reads().iter().sum::<u64>(), 1);
}
