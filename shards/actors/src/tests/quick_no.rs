//! The quick no: when it may be said, and when the log is asked after all.

use super::*;

#[test]
fn a_quick_no_is_confirmed_costs_no_entry_and_carries_no_receipt() {
    run(async {
        let (fake, rows, asker, mut answers) = sold_out().await;
        let entries = fake.entries().len();
        for n in 2..12 {
            rows.submit(tickets::MODULE, "gala", vec![request(n, buy(n, "gala"), &asker)]);
            let reply = next(&mut answers).await.1;
            assert_eq!(reason(&reply), "SOLD_OUT");
            assert_eq!(reply.unwrap().receipt, None);
        }
        assert_eq!(fake.entries().len(), entries);
        assert!(fake.confirmed.load(Ordering::SeqCst) >= 10, "a no without a proof of leadership");
        assert!(fake.machine.lock().outcome("buyer-2", buy(2, "gala").request_id).is_none());
    });
}

#[test]
fn a_leader_that_was_deposed_says_no_more() {
    run(async {
        let (fake, rows, asker, mut answers) = sold_out().await;
        // It still believes to lead when the request comes in, and learns better when it asks for a proof.
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker)]);
        fake.leads.store(false, Ordering::SeqCst);
        assert_eq!(next(&mut answers).await.1, Err(Refusal::NotLeader { leader: Some(2) }));
        rows.submit(tickets::MODULE, "gala", vec![request(3, buy(3, "gala"), &asker)]);
        assert_eq!(next(&mut answers).await.1, Err(Refusal::NotLeader { leader: Some(2) }));
    });
}

#[test]
fn after_a_refund_the_log_decides_again() {
    run(async {
        let (_, rows, asker, mut answers) = sold_out().await;
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "SOLD_OUT");
        let mut cancel = command(
            3,
            tickets::Command::from(tickets::CancelTicket {
                event_id: "gala".into(),
                ticket_id: "ga-1".into(),
            }),
        );
        cancel.principal = "buyer-1".into();
        rows.submit(tickets::MODULE, "gala", vec![request(3, cancel, &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
        // The refused request again, under its own id: it was not remembered, and now there is a place.
        rows.submit(tickets::MODULE, "gala", vec![request(4, buy(2, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
    });
}

#[test]
fn a_copy_of_a_queued_request_waits_with_it_and_is_not_refused_as_sold_out() {
    run(async {
        let fake = Fake::new(&["gala"], 1);
        fake.close();
        let limits = Limits { offers_max: 1, offer_commands_max: 1, ..limits() };
        let rows = started(&fake, limits);
        let (asker, mut answers) = channel();
        // The first takes the only place; the second waits behind it in the queue when its copy comes.
        rows.submit(
            tickets::MODULE,
            "gala",
            vec![request(1, buy(1, "gala"), &asker), request(2, buy(2, "gala"), &asker)],
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
        fake.gate.add_permits(1);
        assert_eq!(next(&mut answers).await.0, 1);
        rows.submit(tickets::MODULE, "gala", vec![request(22, buy(2, "gala"), &asker)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(answers.try_recv().is_err(), "a quick no for a request that is on its way");
        fake.gate.add_permits(10);
        let (one, other) = (next(&mut answers).await.1.unwrap(), next(&mut answers).await.1.unwrap());
        assert_eq!(one.receipt, other.receipt);
        assert!(one.receipt.is_some());
    });
}

#[test]
fn after_an_unknown_outcome_there_is_no_quick_no_until_the_request_expires() {
    run(async {
        let (fake, rows, asker, mut answers) = sale(1, limits());
        fake.fail_next.store(true, Ordering::SeqCst);
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        assert!(matches!(next(&mut answers).await.1, Err(Refusal::Unknown(_))));
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
        // Sold out now, but the first copy may still be in the log: only the log may say no.
        rows.submit(tickets::MODULE, "gala", vec![request(1, buy(1, "gala"), &asker)]);
        assert!(next(&mut answers).await.1.unwrap().receipt.is_some());
    });
}

#[test]
fn a_logged_request_is_decided_in_the_log_also_when_nothing_is_left() {
    run(async {
        let (_, rows, asker, mut answers) = sold_out().await;
        rows.submit(tickets::MODULE, "gala", vec![request(2, buy(2, "gala"), &asker).logged()]);
        let decided = next(&mut answers).await.1.unwrap();
        assert!(decided.receipt.is_some(), "a quick no: {decided:?}");
        // One that needs no record, and a copy of it that does.
        let (plain, logged) =
            (request(3, buy(3, "gala"), &asker), request(4, buy(3, "gala"), &asker).logged());
        rows.submit(tickets::MODULE, "gala", vec![plain, logged]);
        for _ in 0..2 {
            assert!(next(&mut answers).await.1.unwrap().receipt.is_some());
        }
    });
}

/// What others do while leadership is being confirmed is part of what the quick no must know.
#[test]
fn a_quick_no_looks_again_after_its_confirmation() {
    run(async {
        let (fake, rows, asker, mut answers) = sold_out().await;
        let cancel = |n: u64, ticket: &str, of: u64| {
            let op = tickets::Command::from(tickets::CancelTicket {
                event_id: "gala".into(),
                ticket_id: ticket.into(),
            });
            Command { principal: format!("buyer-{of}"), ..command(n, op) }
        };
        // A place comes back.
        let refund = cancel(2, "ga-1", 1);
        fake.meanwhile(move |fake| drop(fake.apply(&[refund])));
        rows.submit(tickets::MODULE, "gala", vec![request(3, buy(3, "gala"), &asker)]);
        assert_eq!(reason(&next(&mut answers).await.1), "done");
        // A copy of the request itself is decided, by a way that does not pass this actor: it bought the place, which is
        // sold again by now.
        let (refund, copy) = (cancel(4, "ga-2", 3), buy(5, "gala"));
        fake.meanwhile(move |fake| drop(fake.apply(&[refund, copy])));
        rows.submit(tickets::MODULE, "gala", vec![request(5, buy(5, "gala"), &asker)]);
        let decided = next(&mut answers).await.1;
        assert_eq!(reason(&decided), "done");
        assert!(decided.unwrap().replayed);
    });
}

#[test]
fn what_the_log_would_answer_otherwise_gets_no_quick_no() {
    let seated = |n| {
        let (event_id, tier_id) = ("gala".into(), "ga".into());
        let seats = vec!["A-1".into()];
        command(n, tickets::Buy { event_id, tier_id, quantity: 1, seats, buyer: String::new() }.into())
    };
    let expiring = |n, expires_ms| Command { expires_ms, ..buy(n, "gala") };
    // Older than anything that is remembered.
    let forgotten = |n| Command { request_id: 5, ..expiring(n, T0 + DAYS_MS + 60_000) };
    let cases = [
        (T0, expiring(2, T0), true),
        (T0, expiring(3, T0 - 1), false),
        (T0, seated(4), false),
        (T0 + DAYS_MS, expiring(6, T0 + DAYS_MS + 60_000), false),
        (T0 + DAYS_MS, forgotten(7), false),
    ];
    for (now_ms, asked, quick) in cases {
        run(async {
            let (fake, rows, asker, mut answers) = sold_out().await;
            fake.now_ms.store(now_ms, Ordering::SeqCst);
            fake.apply(&[Command::system(SystemCommand::Tick)]);
            let entries = fake.entries().len();
            rows.submit(tickets::MODULE, "gala", vec![request(9, asked.clone(), &asker)]);
            let (_, reply) = next(&mut answers).await;
            assert_eq!(fake.entries().len() - entries, usize::from(!quick), "{asked:?}: {reply:?}");
        });
    }
}
