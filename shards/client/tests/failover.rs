//! What callers see while leaders move, die and fall silent. Two scripted nodes.
#![allow(clippy::unwrap_used)]

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fake::*;
use tidewall_client::{ClientError, ShardClientOptions};
use tidewall_proto::internal::v1 as pb;

#[tokio::test]
async fn a_dead_node_does_not_stall_calls() {
    let second = Fake::new(Mode::Decide);
    let client = client(&[nobody(), start(&second, 2).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(2), "and it is remembered");
    client.command(1, command("b"), after(20_000)).await.unwrap();
    assert!(second.calls.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn a_silent_leader_is_replaced_by_the_one_that_answers() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::Decide));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(2));
}

#[tokio::test]
async fn a_deadline_after_silence_is_unknown_and_after_refusals_it_is_not() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::NotLeader(1)));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    let outcome = loop {
        let before = first.calls.load(Ordering::Relaxed);
        let outcome = client.command(1, command("a"), after(400)).await;
        // On a busy machine the deadline may pass before the call was sent at all.
        if first.calls.load(Ordering::Relaxed) > before {
            break outcome;
        }
    };
    assert!(matches!(outcome, Err(ClientError::Unknown { .. })), "{outcome:?}");
    let query = client.query(1, pb::Query::default(), after(400)).await;
    assert!(matches!(query, Err(ClientError::Unavailable { .. })), "a query is never unknown: {query:?}");
}

#[tokio::test]
async fn a_call_that_only_nonleaders_saw_is_unavailable() {
    let (first, second) = (Fake::new(Mode::NotLeader(0)), Fake::new(Mode::NotLeader(1)));
    // Attempts must not time out here, however slow the machine: that would be a doubt of its own.
    let client = client_with(
        &[start(&first, 1).await, start(&second, 2).await],
        ShardClientOptions { attempt_timeout: Duration::from_secs(60), ..Default::default() },
    );
    // A deadline that falls into the moment between sending and the refusal leaves a doubt, rightly; that
    // does not happen every time.
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        outcomes.push(client.command(1, command("b"), after(500)).await);
    }
    let refused = |outcome: &Result<_, ClientError>| matches!(outcome, Err(ClientError::Unavailable { .. }));
    assert!(outcomes.iter().any(refused), "nobody took it: {outcomes:?}");
    assert!(outcomes.iter().all(Result::is_err));
    assert!(first.calls.load(Ordering::Relaxed) + second.calls.load(Ordering::Relaxed) >= 2);
}

/// What became of each item.
fn told(batch: pb::OutcomeBatch) -> Vec<String> {
    let item = |item: pb::BatchItem| match item.result {
        Some(pb::batch_item::Result::Outcome(outcome)) => decided_for(outcome),
        Some(pb::batch_item::Result::Refusal(refusal)) => format!("{:?}", refusal.kind()),
        None => "nothing".into(),
    };
    batch.items.into_iter().map(item).collect()
}

fn batch(names: &[&str]) -> pb::CommandBatch {
    pb::CommandBatch { commands: names.iter().map(|name| command(name)).collect() }
}

/// A leader took the batch and fell silent, and a follower knows nothing of it: nobody may say that nothing was decided.
#[tokio::test]
async fn a_batch_that_may_have_been_decided_is_unknown_whatever_a_follower_says() {
    for follower in
        [Mode::NotLeader(1), Mode::Refuse(pb::RefusalKind::Halted), Mode::Refuse(pb::RefusalKind::Overloaded)]
    {
        let (first, second) = (Fake::new(Mode::Silent), Fake::new(follower));
        let client = client(&[start(&first, 1).await, start(&second, 2).await]);
        let answer = loop {
            let before = [&first, &second].map(|fake| fake.calls.load(Ordering::Relaxed));
            let answer = client.batch(1, batch(&["a", "b"]), after(1_000)).await;
            let asked = [&first, &second].map(|fake| fake.calls.load(Ordering::Relaxed));
            // On a busy machine the deadline may pass before both were asked.
            if asked[0] > before[0] && asked[1] > before[1] {
                break answer;
            }
        };
        assert_eq!(told(answer.unwrap()), ["Unknown", "Unknown"], "{follower:?}");
    }
}

#[tokio::test]
async fn a_follower_that_is_asked_for_a_batch_is_not_believed_to_lead() {
    for follower in [Mode::NotLeader(2), Mode::NotLeader(0), Mode::Refuse(pb::RefusalKind::Halted)] {
        let (first, second) = (Fake::new(follower), Fake::new(Mode::Decide));
        let client = client(&[start(&first, 1).await, start(&second, 2).await]);
        let answer = client.batch(1, batch(&["a", "b"]), after(20_000)).await.unwrap();
        assert_eq!(told(answer), ["a", "b"]);
        assert_eq!(client.believed_leader(1), Some(2), "{follower:?}");
        // Single calls find the leader at once.
        let before = first.calls.load(Ordering::Relaxed);
        client.command(1, command("c"), after(20_000)).await.unwrap();
        assert_eq!(first.calls.load(Ordering::Relaxed), before);
    }
}

#[tokio::test]
async fn a_batch_that_nobody_took_is_not_in_doubt_and_what_is_decided_stays_decided() {
    let first = Fake::new(Mode::Refuse(pb::RefusalKind::Overloaded));
    let options = ShardClientOptions { attempt_timeout: Duration::from_secs(60), ..Default::default() };
    let client = client_with(&[start(&first, 1).await], options);
    let answer = client.batch(1, batch(&["a", "b"]), after(20_000)).await.unwrap();
    assert_eq!(told(answer), ["Overloaded", "Overloaded"]);
    // The leader decides one item and loses the other; then it is gone.
    *first.mode.lock() = Mode::DecideHalf;
    let asking = client.batch(1, batch(&["a", "b"]), after(2_000));
    let gone = async {
        while first.calls.load(Ordering::Relaxed) < 2 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        *first.mode.lock() = Mode::NotLeader(0);
    };
    let (answer, ()) = tokio::join!(asking, gone);
    let told = told(answer.unwrap());
    // Where the leader goes before it was asked, nobody took anything.
    assert!(told == ["a", "Unknown"] || told == ["NotLeader", "NotLeader"], "{told:?}");
}

/// The first copy may be under way to a leader that is about to decide it: only the log may say no.
#[tokio::test]
async fn a_quick_no_does_not_end_the_doubt_about_an_earlier_attempt() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::SoldOut));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    let outcome = client.command(1, command("a"), after(20_000)).await.unwrap();
    assert!(outcome.receipt.is_some(), "a no that nobody remembers: {outcome:?}");
    // Without such an attempt it is an answer.
    let outcome = client.command(1, command("b"), after(20_000)).await.unwrap();
    assert_eq!(outcome.receipt, None);
}

#[tokio::test]
async fn a_halted_node_is_left_alone() {
    let (first, second) = (Fake::new(Mode::Refuse(pb::RefusalKind::Halted)), Fake::new(Mode::Decide));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    for name in ["a", "b", "c"] {
        assert_eq!(decided_for(client.command(1, command(name), after(20_000)).await.unwrap()), name);
    }
    assert_eq!(client.believed_leader(1), Some(2));
}

#[tokio::test]
async fn a_halted_neighbour_of_a_slow_leader_is_not_asked_until_the_deadline() {
    let (first, second) = (Fake::new(Mode::SilentOnce), Fake::new(Mode::Refuse(pb::RefusalKind::Halted)));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(1));
    // Each attempt at the leader in between takes 100 ms, or decides; it is silent for one more at most.
    let asked = second.calls.load(Ordering::Relaxed);
    assert!((1..=202).contains(&asked), "{asked} questions to a halted node");
}

#[tokio::test]
async fn a_slow_leader_and_a_halted_node_do_not_hide_the_one_that_leads() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::Refuse(pb::RefusalKind::Halted)));
    let third = Fake::new(Mode::Decide);
    let client = client(&[start(&first, 1).await, start(&second, 2).await, start(&third, 3).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(3));
}

#[tokio::test]
async fn an_overloaded_neighbour_is_not_taken_for_the_leader() {
    let (first, second) = (Fake::new(Mode::SilentOnce), Fake::new(Mode::Refuse(pb::RefusalKind::Overloaded)));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    // The first attempt may have been decided, so that the neighbour's "nothing was decided" is no answer.
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(1));
}

#[tokio::test]
async fn an_overloaded_node_does_not_end_the_search_for_the_leader() {
    let (second, third) = (Fake::new(Mode::Refuse(pb::RefusalKind::Overloaded)), Fake::new(Mode::Decide));
    let client = client(&[nobody(), start(&second, 2).await, start(&third, 3).await]);
    let mut outcomes = Vec::new();
    for _ in 0..10 {
        outcomes.push(client.command(1, command("a"), after(20_000)).await);
    }
    assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    assert_eq!(client.believed_leader(1), Some(3));
}

#[tokio::test]
async fn nonsense_is_refused_without_asking_anybody_again() {
    let first = Fake::new(Mode::Refuse(pb::RefusalKind::Invalid));
    let options = ShardClientOptions { attempt_timeout: Duration::from_secs(60), ..Default::default() };
    let client = client_with(&[start(&first, 1).await], options);
    assert!(matches!(client.command(1, command("a"), after(20_000)).await, Err(ClientError::Invalid(_))));
    assert_eq!(first.calls.load(Ordering::Relaxed), 1);
    for group in [0, 2, u32::MAX] {
        let refused = client.command(group, command("a"), after(20_000)).await;
        assert!(matches!(refused, Err(ClientError::Invalid(_))), "group {group}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_waits_for_the_election_without_a_storm_and_then_gets_through() {
    const CROWD: u64 = 1000;
    let (first, second) = (Fake::new(Mode::NotLeader(0)), Fake::new(Mode::NotLeader(0)));
    let options = ShardClientOptions { attempt_timeout: Duration::from_secs(5), ..Default::default() };
    let client = client_with(&[start(&first, 1).await, start(&second, 2).await], options);
    // The group is known to have no leader before the crowd comes.
    client.command(1, command("scout"), after(300)).await.unwrap_err();
    let asked = || first.calls.load(Ordering::Relaxed) + second.calls.load(Ordering::Relaxed);
    let before = asked();
    let crowd: Vec<_> = (0..CROWD)
        .map(|number| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                let name = number.to_string();
                let outcome = client.command(1, command(&name), after(60_000)).await.unwrap();
                assert_eq!(decided_for(outcome), name, "everybody gets their own answer");
            })
        })
        .collect();
    while asked() < before + 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    *second.mode.lock() = Mode::Decide;
    for call in crowd {
        call.await.unwrap();
    }
    let attempts = asked() - before;
    assert!(attempts < 2 * CROWD, "one probes while the others wait: {attempts} attempts for {CROWD} calls");
    assert_eq!(client.believed_leader(1), Some(2));
}

/// There is room for nobody who waits, and yet nobody may be told that nothing was decided.
#[tokio::test]
async fn a_call_in_doubt_for_which_there_is_no_room_to_wait_is_unknown() {
    let (one, two) = (Fake::new(Mode::Silent), Fake::new(Mode::NotLeader(0)));
    let options =
        ShardClientOptions { attempt_timeout: Duration::from_millis(100), held_max: 0, ..Default::default() };
    let client = client_with(&[start(&one, 1).await, start(&two, 2).await], options);
    let deadline = after(1_500);
    let calls = (0..6).map(|n| {
        let client = Arc::clone(&client);
        async move { client.command(1, command(&format!("buyer-{n}")), deadline).await }
    });
    let ends = futures_util::future::join_all(calls).await;
    assert!(one.calls.load(Ordering::Relaxed) >= 6, "all of them were sent");
    for end in ends {
        assert!(matches!(end, Err(ClientError::Unknown { .. })), "{end:?}");
    }
}

/// A region that is being upgraded decides some things and not others: what waits for the rest holds up nobody.
#[tokio::test]
async fn what_a_leader_cannot_decide_yet_waits_and_makes_nobody_doubt_the_leader() {
    let (first, second) = (Fake::new(Mode::Refuse(pb::RefusalKind::NotYet)), Fake::new(Mode::NotLeader(1)));
    let client = client(&[start(&first, 1).await, start(&second, 2).await]);
    let waiting = {
        let client = std::sync::Arc::clone(&client);
        tokio::spawn(async move { client.command(1, command("early"), after(20_000)).await })
    };
    while first.calls.load(Ordering::Relaxed) < 3 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(client.believed_leader(1), Some(1));
    assert_eq!(second.calls.load(Ordering::Relaxed), 0, "nobody else is asked");
    *first.mode.lock() = Mode::Decide;
    assert_eq!(decided_for(waiting.await.unwrap().unwrap()), "early");
    *first.mode.lock() = Mode::Refuse(pb::RefusalKind::NotYet);
    let late = client.command(1, command("late"), after(300)).await;
    assert!(matches!(late, Err(ClientError::Unavailable { .. })), "{late:?}");
}
