//! Request ids: sealed ones, ids over imports, first answers when the rows have changed since, expiries that nobody can mean.

use super::import::{chunk, commit};
use super::*;

fn seal(n: u64) -> Command {
    Command { op: Op::Seal, ..command(n, buy(1)) }
}

fn import_of(log: &mut Log, file: &[u8]) {
    log.one(T0, chunk(1, 0, file));
    assert_eq!(reason(&log.one(T0, commit(1, 1, true))), "done");
}

#[test]
fn nothing_is_decided_under_a_sealed_id_however_late_its_copies_come() {
    let mut log = Log::new();
    let sealed = log.one(T0, seal(1));
    assert_eq!((reason(&sealed).as_str(), sealed.replayed), ("Sealed", false));
    let rows = log.machine.tickets_digest();
    let late = log.one(T0 + 4_999, command(1, buy(1)));
    assert_eq!((reason(&late).as_str(), late.receipt, late.replayed), ("Sealed", sealed.receipt, true));
    assert_eq!(log.machine.tickets_digest(), rows);
    assert_eq!(reason(&log.machine.outcome("alice", id(T0, 1)).unwrap()), "Sealed");
    assert_eq!(reason(&log.machine.remembered(&command(1, buy(1))).unwrap()), "Sealed");
    // Somebody else's request under the same id is another one.
    let other = Command { principal: "bob".into(), ..command(1, buy(1)) };
    assert_eq!(reason(&log.one(T0, other)), "done");
    assert_eq!(reason(&log.one(T0, seal(1))), "Sealed");
}

#[test]
fn a_seal_that_comes_too_late_is_told_what_was_decided() {
    let mut log = Log::new();
    let bought = log.one(T0, command(1, buy(2)));
    let sealed = log.one(T0, seal(1));
    assert_eq!((&sealed.answer, sealed.receipt, sealed.replayed), (&bought.answer, bought.receipt, true));
    assert_eq!(reason(&log.one(T0, command(1, buy(2)))), "done", "and nothing is sealed");
    assert_eq!(log.machine.remembered(&seal(1)).unwrap().answer, bought.answer);
}

#[test]
fn a_seal_is_forgotten_only_behind_the_watermark_and_one_from_the_future_not_at_all() {
    let mut log = Log::new();
    assert_eq!(reason(&log.one(T0, seal(1))), "Sealed");
    let ahead = Command { request_id: id(T0 + 60_000, 2), ..seal(2) };
    assert_eq!(reason(&log.one(T0, ahead)), "Sealed");
    let much_ahead = Command { request_id: id(T0 + 60_001, 3), ..seal(3) };
    assert_eq!(reason(&log.one(T0, much_ahead)), "IdFromFuture");
    let later = T0 + REMEMBERED_MS + 1;
    log.entry(later, vec![tick()]);
    for (n, ms) in [(1, T0), (2, T0 + 60_000)] {
        let copy = Command { request_id: id(ms, n), expires_ms: later + 5_000, ..command(n, buy(1)) };
        assert_eq!(reason(&log.one(later, copy)), "IdForgotten", "{n}");
    }
}

#[test]
fn what_expires_later_than_any_deadline_is_refused_and_not_remembered() {
    let mut log = Log::new();
    let ask = |after| Command { expires_ms: T0 + after, ..command(1, buy(1)) };
    let refused = log.one(T0, ask(EXPIRY_AHEAD_MS_MAX + 1));
    assert!(matches!(refused.answer, Answer::Rejected(RejectReason::ExpiresTooLate { ahead_ms: 90_001 })));
    assert_eq!((refused.receipt, log.machine.outcome("alice", id(T0, 1))), (None, None));
    assert_eq!(reason(&log.one(T0, ask(EXPIRY_AHEAD_MS_MAX))), "done");
}

/// A repeated request is answered with what was decided, not with what became of the rows.
#[test]
fn first_answers_stay_when_the_rows_have_changed_since() {
    let mut log = Log::new();
    let update = |name: &str| {
        tickets::Command::from(tickets::UpdateEvent {
            event_id: "gala".into(),
            display_name: Some(name.into()),
            ..Default::default()
        })
    };
    let cancel =
        tickets::Command::from(tickets::CancelTicket { event_id: "gala".into(), ticket_id: "ga-1".into() });
    let asked =
        [command(0, create()), command(1, update("First")), command(2, buy(2)), command(3, cancel.clone())];
    let first: Vec<_> = asked[1..].iter().map(|ask| log.one(T0, ask.clone())).collect();
    log.entry(T0, vec![command(9, update("Second")), command(10, buy(1))]);
    for (ask, first) in asked[1..].iter().zip(first) {
        assert_eq!(reason(&first), "done");
        let again = log.one(T0, ask.clone());
        assert_eq!((&again.answer, again.receipt), (&first.answer, first.receipt));
        let known = log.machine.outcome("alice", ask.request_id).unwrap();
        assert_eq!((known.answer, known.receipt), (first.answer, first.receipt));
    }
    let created = log.one(T0, asked[0].clone());
    let Answer::Done { module: tickets::MODULE, outcome } = created.answer else { panic!() };
    let outcome = tickets::Outcome::decode(&outcome[..]).unwrap();
    let Some(tickets::outcome::Result::Event(event)) = outcome.result else { panic!() };
    assert_eq!((event.display_name.as_str(), event.revision, event.tiers[0].free), ("Gala", 1, 5));
}

fn anybody() -> impl Strategy<Value = (u64, u64, u8)> {
    // Ids up to the limit ahead of log time, which itself passes.
    (0..8u64, 0..=ID_AHEAD_MS_MAX, 0..4u8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    /// Whatever was decided or sealed before an import, under an id however far ahead of the clock, is not decided after it:
    /// it is known, or refused, whenever and how often it is sent.
    #[test]
    fn nothing_that_was_decided_before_an_import_is_decided_again(
        before in proptest::collection::vec(anybody(), 1..12),
        exported_after in 0..12usize,
        waits in proptest::collection::vec(0..80_000u64, 1..6),
    ) {
        let mut log = Log::new();
        let mut file = snapshot_of(&log.machine);
        let mut decided = Vec::new();
        for (at, (n, ahead, what)) in before.iter().enumerate() {
            if at == exported_after {
                file = snapshot_of(&log.machine);
            }
            let stamp = T0 + at as u64 * 1_000;
            let op = if *what == 0 { Op::Seal } else { Op::of(&buy(1)) };
            let ask = Command { request_id: id(stamp + ahead, *n), expires_ms: stamp + 5_000, op, ..command(*n, buy(1)) };
            if log.one(stamp, ask.clone()).receipt.is_some() {
                decided.push(ask);
            }
        }
        import_of(&mut log, &file);
        let mut stamp = T0 + 12_000;
        for wait in waits {
            stamp += wait;
            for ask in &decided {
                let again = Command { expires_ms: stamp + 5_000, ..ask.clone() };
                let decision = log.one(stamp, again);
                prop_assert!(decision.replayed || decision.receipt.is_none(), "{:?} became {:?}", ask, decision);
            }
        }
        // New ids work once the time has come that the ids of before were of.
        stamp += ID_AHEAD_MS_MAX + 12_000;
        let fresh = Command { request_id: id(stamp, 99), expires_ms: stamp, ..command(99, buy(1)) };
        prop_assert!(log.one(stamp, fresh).receipt.is_some());
    }
}

/// Two builds of a gateway make different payloads of one message: the request is the same, and gets its first answer.
#[test]
fn a_copy_that_another_build_made_is_the_same_request_and_what_the_client_changed_is_not() {
    let mut log = Log::new();
    let first = command(1, buy(2));
    let decided = log.one(T0, first.clone());
    let other_build = Command { op: Op::of(&buy(1)), ..first.clone() };
    let again = log.one(T0, other_build.clone());
    assert_eq!((&again.answer, again.receipt, again.replayed), (&decided.answer, decided.receipt, true));
    assert_eq!(log.machine.remembered(&other_build).unwrap().receipt, decided.receipt);
    let other_message = Command { fingerprint: first.fingerprint + 1, ..first };
    assert_eq!(reason(&log.one(T0, other_message)), "IdReused");
}
