//! What a node thinks of the others and of its clock.

#![allow(clippy::unwrap_used)]
use super::*;
use std::sync::atomic::AtomicU64;
use tidewall_client::topology::{Node, Region};

impl Standing {
    /// Another clock is so far ahead of this one.
    fn ahead(&self, node: u64, ahead_ms: i64) {
        self.measured(node, self.now_ms().saturating_add_signed(ahead_ms));
    }
}

fn standing(node: u64) -> Standing {
    let address = "127.0.0.1:1".parse().unwrap();
    let region = |n: u32| Region { id: format!("r{n}"), display_name: format!("R{n}"), group: n };
    let topology = Topology::new(
        0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes(),
        (1..=3).map(region).collect(),
        (1..=3).map(|id| Node { id, address, peer_address: address }).collect(),
    );
    Standing::new(node, topology, Arc::new(SteadyClock::new()), 2)
}

#[test]
fn the_clock_that_is_alone_is_the_wrong_one() {
    let fast = standing(1);
    fast.ahead(2, -3_600_000);
    assert!(!fast.judge_clock(), "two clocks cannot tell who is wrong");
    fast.ahead(3, -3_600_050);
    assert!(fast.judge_clock() && fast.clock_is_far() && !fast.accepts_lead());
    assert_eq!(fast.clock_offset_ms(), 3_600_000);

    let right = standing(2);
    right.ahead(1, 3_600_000);
    right.ahead(3, -50);
    assert!(!right.judge_clock() && right.accepts_lead());
    assert_eq!(right.clock_offset_ms(), 0);

    // Set right again, and not flapping in between.
    fast.ahead(2, -400);
    fast.ahead(3, -400);
    assert!(!fast.judge_clock() && fast.clock_is_far());
    fast.ahead(2, -100);
    fast.ahead(3, -100);
    assert!(fast.judge_clock() && fast.accepts_lead());
}

#[tokio::test(start_paused = true)]
async fn a_clock_that_was_set_right_is_cleared_by_a_majority_without_the_third() {
    let once_fast = standing(1);
    once_fast.ahead(2, -5_000);
    once_fast.ahead(3, -5_000);
    assert!(once_fast.judge_clock() && once_fast.clock_is_far());
    // Node 3 dies, so that only one other clock is left.
    tokio::time::advance(FRESH).await;
    once_fast.ahead(2, -300);
    assert!(!once_fast.judge_clock() && once_fast.clock_is_far(), "not near enough");
    once_fast.ahead(2, -100);
    assert!(once_fast.judge_clock() && once_fast.accepts_lead());
    assert!(!once_fast.judge_clock(), "nothing has changed");
}

#[test]
fn a_slow_clock_that_was_set_right_is_believed_when_the_others_agree() {
    let (then, hour) = (1_000_000, 3_600_000);
    let hand = Arc::new(Hand(then.into()));
    let mut slow = standing(1);
    slow.clock = Arc::new(SteadyClock::over(hand.clone()));
    let round = |others_ms: u64| {
        for other in [2, 3] {
            slow.measured(other, others_ms);
        }
        slow.judge_clock();
        slow.clock_is_far()
    };
    assert!(round(then + hour));
    // Set to some other time: nobody vouches for that.
    hand.0.store(then + 2 * hour, Ordering::Relaxed);
    assert!(round(then + hour));
    assert!(round(then + hour));
    hand.0.store(then + hour, Ordering::Relaxed);
    assert!(round(then + hour), "found");
    assert!(!round(then + hour), "and believed");
}

#[tokio::test(start_paused = true)]
async fn a_clock_is_confirmed_while_those_of_a_majority_agree_with_it() {
    let one = standing(1);
    assert!(!one.stamp().confirmed, "nobody was asked");
    one.ahead(2, 100);
    one.judge_clock();
    assert!(one.stamp().confirmed, "two of three");
    one.ahead(2, -600_000);
    one.judge_clock();
    assert!(!one.stamp().confirmed, "one of two is wrong, and nobody knows which");
    one.ahead(3, -499);
    one.judge_clock();
    assert!(one.stamp().confirmed);
    tokio::time::advance(FRESH).await;
    one.judge_clock();
    assert!(!one.stamp().confirmed, "long ago");
}

#[test]
fn a_clock_that_was_set_since_is_not_the_one_that_was_confirmed() {
    let hand = Arc::new(Hand(10_000_000.into()));
    let mut one = standing(1);
    one.clock = Arc::new(SteadyClock::over(hand.clone()));
    one.ahead(2, 0);
    one.judge_clock();
    assert!(one.stamp().confirmed);
    hand.0.store(10_000_000 - 3_600_000, Ordering::Relaxed);
    assert!(!one.stamp().confirmed, "an hour behind, before anybody has noticed");
    // What was measured before says nothing about the clock as it is now.
    one.measured(3, 10_000_000);
    one.judge_clock();
    assert!(!one.stamp().confirmed && one.clock_is_far());
    hand.0.store(10_000_000, Ordering::Relaxed);
    one.judge_clock();
    assert!(one.stamp().confirmed);
    hand.0.store(10_001_500, Ordering::Relaxed);
    assert!(!one.stamp().confirmed, "ahead, if only as far as a step is followed");
}

/// A clock that is set by hand.
struct Hand(AtomicU64);

impl tidewall_env::clock::Clock for Hand {
    fn unix_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn medians_of_even_numbers_accuse_nobody_without_need() {
    assert_eq!(distance(&mut [0, 900]), None);
    assert_eq!(distance(&mut [0, 10, -20]), Some(0));
    assert_eq!(distance(&mut [0, 0, 900, 900]), Some(0));
    assert_eq!(distance(&mut [0, 900, 900, 900]), Some(-900));
    assert_eq!(distance(&mut [0, -700, -600, 0, -650]), Some(600));
}

#[test]
fn a_version_counts_when_every_member_supports_it() {
    let standing = standing(1);
    assert_eq!(standing.supported_by(&[1]), Some(2));
    assert_eq!(standing.supported_by(&[1, 2]), None, "node 2 was not heard");
    standing.hear(2, true, 1);
    assert_eq!(standing.supported_by(&[1, 2]), Some(1));
    standing.hear(2, true, 9);
    assert_eq!(standing.supported_by(&[1, 2]), Some(2), "not more than this node supports");
}

#[test]
fn leads_go_where_operators_put_them_while_that_node_takes_them() {
    let standing = standing(1);
    assert_eq!(standing.preferred_leader(1), 1);
    standing.place(1, 2);
    assert_eq!(standing.preferred_leader(1), 1, "node 2 was not heard");
    standing.hear(2, true, 2);
    assert_eq!(standing.preferred_leader(1), 2);
    standing.placed(1, 3, 1);
    assert_eq!(standing.preferred_leader(1), 2, "an older wish does not count");
    standing.hear(2, false, 2);
    assert_eq!(standing.preferred_leader(1), 1, "node 2 is drained");
    assert_eq!(standing.placements().len(), 1);
}

#[test]
fn a_drained_node_takes_no_leads() {
    let standing = standing(1);
    assert!(standing.takes_lead(1) && !standing.takes_lead(2));
    standing.set_drained(true);
    assert!(!standing.takes_lead(1));
    standing.hear(2, true, 2);
    assert!(standing.takes_lead(2));
}

#[tokio::test(start_paused = true)]
async fn what_was_heard_counts_until_it_is_old() {
    let one = standing(1);
    assert!(one.is_heard(1) && !one.is_heard(2), "this node always is");
    assert_eq!(one.silence(2), (Duration::ZERO, false));
    one.hear(2, true, 2);
    tokio::time::advance(FRESH - Duration::from_millis(1)).await;
    assert!(one.is_heard(2) && one.takes_lead(2));
    assert_eq!(one.supported_by(&[1, 2]), Some(2));
    assert_eq!(one.silence(2), (FRESH - Duration::from_millis(1), true));
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!one.is_heard(2) && !one.takes_lead(2));
    assert_eq!(one.supported_by(&[1, 2]), None);
}

#[tokio::test(start_paused = true)]
async fn the_others_are_told_by_a_round_that_began_after_the_change() {
    let one = Arc::new(standing(1));
    one.announced();
    let telling = tokio::spawn({
        let one = Arc::clone(&one);
        async move { one.announce(Duration::from_secs(60)).await }
    });
    for round in 0..2 {
        one.announcement_wanted().await;
        assert!(!telling.is_finished(), "after {round} rounds");
        one.announced();
    }
    telling.await.unwrap();
    let began = Instant::now();
    one.announce(Duration::from_secs(3)).await;
    assert_eq!(began.elapsed(), Duration::from_secs(3), "nobody tells them");
}

#[test]
fn what_a_node_follows_says_where_the_others_are_and_what_is_fenced() {
    let one = standing(1);
    let mut topology = one.topology.read().clone();
    assert_eq!((one.others(), one.fence(2), one.peer_address(9)), (vec![2, 3], 0, None));
    topology.fences.insert(2, 7);
    topology.nodes.remove(1);
    one.adopt(&topology);
    assert_eq!((one.others(), one.fence(2), one.fence(1)), (vec![3], 7, 0));
    assert_eq!(one.peer_address(3), Some("127.0.0.1:1".parse().unwrap()));
}

#[test]
fn clocks_are_compared_once_enough_were_measured() {
    let one = standing(1);
    assert!(!one.clocks_compared() && !one.clock_is_confirmed());
    one.ahead(2, 0);
    assert!(!one.clocks_compared(), "two of three cannot tell who is wrong");
    one.ahead(3, 0);
    one.judge_clock();
    assert!(one.clocks_compared() && one.clock_is_confirmed());
    // A node alone has nobody to ask.
    let alone = standing(1);
    let mut topology = alone.topology.read().clone();
    topology.nodes.truncate(1);
    alone.adopt(&topology);
    assert!(alone.clocks_compared());
}

#[test]
fn wishes_are_told_with_the_time_when_they_were_made() {
    let one = standing(1);
    let before = one.now_ms();
    one.place(2, 3);
    let [(2, 3, made_ms)] = one.placements()[..] else { panic!("{:?}", one.placements()) };
    assert!((before..=one.now_ms()).contains(&made_ms));
    one.placed(2, 1, made_ms);
    assert_eq!(one.placements(), [(2, 3, made_ms)], "as old as the one that is known");
    one.placed(2, 1, made_ms + 1);
    assert_eq!(one.placements(), [(2, 1, made_ms + 1)]);
}
