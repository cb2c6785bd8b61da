//! Row actors: which there are, how much waits in them, and when they are let go.

use super::*;
use crate::directory::ABSENT_ROWS;

#[test]
fn invented_events_use_up_no_actors() {
    run(async {
        let (_, rows, asker, mut answers) =
            sale(100, Limits { rows_max: ABSENT_ROWS as usize + 1, ..limits() });
        for n in 0..200 {
            let event = format!("invented-{n}");
            rows.submit(tickets::MODULE, &event, vec![request(n, buy(n, &event), &asker)]);
            assert_eq!(reason(&next(&mut answers).await.1), "EVENT_NOT_FOUND");
        }
        rows.submit(tickets::MODULE, "gala", vec![request(999, buy(999, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
    });
}

#[test]
fn what_does_not_fit_is_refused_with_a_time_to_come_back() {
    run(async {
        let fake = Fake::new(&["gala"], 100_000);
        fake.close();
        let rows =
            started(&fake, Limits { queue_max: 50, offer_commands_max: 10, offers_max: 2, ..limits() });
        let (asker, mut answers) = channel();
        rows.submit(tickets::MODULE, "gala", (0..200).map(|n| request(n, buy(n, "gala"), &asker)).collect());
        let (_, reply) = next(&mut answers).await;
        let Err(Refusal::Overloaded { retry_after_ms, .. }) = reply else { panic!("{reply:?}") };
        assert!(retry_after_ms > 0);
        fake.gate.add_permits(1_000);
        let mut done = 0;
        for _ in 1..200 {
            done += usize::from(next(&mut answers).await.1.is_ok());
        }
        assert!((50..=70).contains(&done), "{done}");
    });
}

#[test]
fn finishing_goes_before_starting() {
    run(async {
        let fake = Fake::new(&["gala"], 100_000);
        let mut hold = command(
            1,
            tickets::Command::from(tickets::Hold {
                event_id: "gala".into(),
                tier_id: "ga".into(),
                quantity: 1,
                seats: vec![],
                ttl_ms: 50_000,
            }),
        );
        hold.principal = "alice".into();
        fake.apply(&[hold]);
        fake.close();
        let rows = started(&fake, Limits { offers_max: 1, offer_commands_max: 10, ..limits() });
        let (asker, mut answers) = channel();
        rows.submit(
            tickets::MODULE,
            "gala",
            (100..200).map(|n| request(n, buy(n, "gala"), &asker)).collect(),
        );
        let mut confirm = command(
            2,
            tickets::Command::from(tickets::ConfirmHold { event_id: "gala".into(), hold_id: "ga-h1".into() }),
        );
        confirm.principal = "alice".into();
        rows.submit(tickets::MODULE, "gala", vec![request(2, confirm, &asker).finishing(true)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        fake.gate.add_permits(1_000);
        let mut before = 0;
        loop {
            let (n, reply) = next(&mut answers).await;
            if n == 2 {
                assert_eq!(reason(&reply), "done");
                break;
            }
            before += 1;
        }
        assert!(before <= 10, "{before} starters went before the finisher");
    });
}

#[test]
fn a_row_with_something_in_doubt_does_not_retire() {
    run(async {
        let (fake, rows, asker, mut answers) = sale(1, limits());
        fake.fail_next.store(true, Ordering::SeqCst);
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        let _ = next(&mut answers).await;
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker)]);
        let _ = next(&mut answers).await;
        for _ in 0..15 {
            rows.sample(5);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        // A copy of the first may still be in the log: whichever actor answers, it must let the log decide.
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        assert!(next(&mut answers).await.1.unwrap().receipt.is_some(), "a quick no for what is in doubt");
        // Once no copy can be decided any more, the actor may go: nothing is kept for ever.
        fake.now_ms.fetch_add(61_000, Ordering::SeqCst);
        fake.apply(&[Command::system(SystemCommand::Tick)]);
        let began = std::time::Instant::now();
        while rows.actors() > 0 {
            rows.sample(5);
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert!(began.elapsed() < PATIENCE, "the row is never let go");
        }
    });
}

#[test]
fn a_mailbox_has_a_bound() {
    run(async {
        let (_, rows, asker, mut answers) = sale(100_000, Limits { mailbox: 4, ..limits() });
        // The actor lives on this thread: it reads nothing before this returns.
        for n in 0..300 {
            rows.submit(tickets::MODULE, "gala", vec![request(n, buy(n, "gala"), &asker)]);
        }
        let mut refused = 0;
        for _ in 0..300 {
            refused += usize::from(next(&mut answers).await.1.is_err());
        }
        assert!(refused > 200, "{refused} of 300 did not fit into a mailbox for 4");
    });
}

#[test]
fn hot_rows_are_reported_and_idle_ones_let_go() {
    run(async {
        let fake = Fake::new(&["blazing", "warm"], 100);
        let rows = started(&fake, limits());
        let (asker, mut answers) = channel();
        for n in 0..10 {
            rows.submit(
                tickets::MODULE,
                if n < 7 { "blazing" } else { "warm" },
                vec![request(n, buy(n, if n < 7 { "blazing" } else { "warm" }), &asker)],
            );
        }
        for _ in 0..10 {
            let _ = next(&mut answers).await;
        }
        let sample = rows.sample(5);
        assert_eq!(
            sample.iter().map(|hot| (hot.row.as_str(), hot.commands)).collect::<Vec<_>>(),
            [("tickets/blazing", 7), ("tickets/warm", 3)]
        );
        for _ in 0..10 {
            assert_eq!(rows.sample(5), []);
            assert_eq!(rows.actors(), 2);
        }
        assert_eq!((rows.sample(5), rows.actors()), (vec![], 0));
        // A new request finds a new actor.
        tokio::time::sleep(Duration::from_millis(50)).await;
        rows.submit(tickets::MODULE, "blazing", vec![request(50, buy(50, "blazing"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
    });
}

#[test]
fn a_row_whose_callers_wait_is_hot_and_is_not_let_go() {
    run(async {
        let fake = Fake::new(&["gala"], 100_000);
        fake.close();
        let rows = started(&fake, Limits { offer_commands_max: 4, offers_max: 1, ..limits() });
        let (asker, mut answers) = channel();
        rows.submit(tickets::MODULE, "gala", (0..10).map(|n| request(n, buy(n, "gala"), &asker)).collect());
        tokio::time::sleep(Duration::from_millis(50)).await;
        // Four are offered.
        for commands in [10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0] {
            let sample = rows.sample(5);
            let seen: Vec<_> =
                sample.iter().map(|hot| (hot.row.as_str(), hot.commands, hot.queued)).collect();
            assert_eq!(seen, [("tickets/gala", commands, 6)]);
            assert_eq!(rows.actors(), 1);
        }
        fake.gate.add_permits(100);
        for _ in 0..10 {
            assert_eq!(reason(&next(&mut answers).await.1), "done");
        }
    });
}

#[test]
fn who_waits_in_an_abandoned_row_is_told_that_nobody_knows() {
    run(async {
        let fake = Fake::new(&["gala"], 100);
        fake.close();
        let rows = started(&fake, limits());
        let (asker, mut answers) = channel();
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        rows.abandon();
        assert_eq!(reason(&next(&mut answers).await.1), "Unknown");
        assert_eq!(rows.actors(), 0);
    });
}

#[test]
fn an_actor_that_was_let_go_has_ended() {
    run(async {
        let fake = Fake::new(&["gala", "opera"], 100);
        let shard: Arc<dyn Shard> = Arc::new(Handle(Arc::clone(&fake)));
        let rows = started_on(Arc::clone(&shard), limits());
        let without = Arc::strong_count(&shard);
        let (asker, mut answers) = channel();
        for (n, row) in [(1, "gala"), (2, "opera")] {
            rows.submit(tickets::MODULE, row, vec![request(n, buy(n, row), &asker)]);
            let _ = next(&mut answers).await;
        }
        assert!(Arc::strong_count(&shard) > without);
        while rows.actors() > 0 {
            rows.sample(5);
        }
        timeout(PATIENCE, async {
            while Arc::strong_count(&shard) > without {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
        .expect("the actors end");
    });
}
