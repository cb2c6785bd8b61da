//! Clocks that are ahead: leaps that nobody confirms, corrections of log time, imports from the future, timers that break.

use super::import::{chunk, commit};
use super::*;

const MINUTES: u64 = 60_000;

impl Log {
    fn stamped(&mut self, stamp: Stamp, command: Command) -> Decision {
        let payload = Entry { stamp, commands: vec![command] }.encode();
        let position = Position { term: 1, node: 1, index: self.entries.len() as u64 };
        self.entries.push(payload.clone());
        self.machine.apply(position, &payload).unwrap().remove(0)
    }

    fn free(&self) -> u64 {
        let rows = self.machine.tickets();
        let event = rows.event("gala").unwrap();
        rows.stock_of(event).next().unwrap().free
    }
}

fn asked_at(n: u64, ms: u64, op: tickets::Command) -> Command {
    Command { request_id: id(ms, n), expires_ms: ms + 5_000, ..command(n, op) }
}

fn confirm(n: u64, ms: u64) -> Command {
    asked_at(
        n,
        ms,
        tickets::Command::from(tickets::ConfirmHold { event_id: "gala".into(), hold_id: "ga-h1".into() }),
    )
}

fn rebase(log_ms: u64) -> Command {
    Command::system(SystemCommand::Rebase { log_ms })
}

#[test]
fn a_clock_that_is_ten_minutes_ahead_ends_no_hold_and_expires_nothing_until_a_majority_confirms_it() {
    let mut log = Log::new();
    log.one(T0, command(1, hold(5, 2 * MINUTES as u32)));
    let ahead = |ms| Stamp::unconfirmed(T0 + 10 * MINUTES + ms);
    for passed in [0, 1_000, 3_000, 6_000] {
        log.stamped(ahead(passed), tick());
    }
    assert_eq!((log.machine.log_time_ms(), log.free()), (T0 + 6_000, 0));
    assert!(log.machine.time().is_leap_unconfirmed());
    // Writes go on meanwhile, with the expiries of right clocks.
    assert_eq!(reason(&log.stamped(ahead(7_000), confirm(2, T0 + 7_000))), "done");
}

#[test]
fn a_hold_lasts_as_long_as_it_should_under_a_clock_that_nobody_confirms() {
    let mut log = Log::new();
    log.one(T0, command(1, hold(5, 3_000)));
    let ahead = |ms| Stamp::unconfirmed(T0 + 10 * MINUTES + ms);
    for passed in [0, 2_999] {
        log.stamped(ahead(passed), tick());
    }
    assert_eq!(log.free(), 0);
    log.stamped(ahead(3_000), tick());
    assert_eq!(log.free(), 5);
}

#[test]
fn after_a_rebase_writes_go_on_at_once_and_holds_end_neither_early_nor_late() {
    let mut log = Log::new();
    // A majority was wrong: log time is ten minutes ahead when the hold is made.
    let wrong = T0 + 10 * MINUTES;
    log.one(wrong, asked_at(1, wrong, hold(5, 2 * MINUTES as u32)));
    let right = T0 + MINUTES;
    assert_eq!(
        reason(&log.one(right, asked_at(2, right, buy(1)))),
        "Expired",
        "as long as nobody corrects it"
    );
    assert_eq!(reason(&log.stamped(Stamp::confirmed(right), rebase(right))), "done");
    assert_eq!((log.machine.log_time_ms(), log.machine.time().rebases), (right, 1));
    assert_eq!(reason(&log.one(right, asked_at(3, right, buy(1)))), "SOLD_OUT", "decided, at once");
    log.one(right + 2 * MINUTES - 1, tick());
    assert_eq!(log.free(), 0);
    log.one(right + 2 * MINUTES, tick());
    assert_eq!(log.free(), 5);
    let refused = log.stamped(Stamp::confirmed(right), rebase(right + 5 * MINUTES));
    assert_eq!(reason(&refused), "System", "it is not ahead");
}

#[test]
fn rows_from_the_future_are_imported_into_the_present() {
    let mut ahead = Log::new();
    let future = T0 + 365 * 24 * 60 * MINUTES;
    ahead.one(future, asked_at(1, future, hold(5, 2 * MINUTES as u32)));
    let file = snapshot_of(&ahead.machine);
    let mut log = Log::new();
    log.one(T0, chunk(1, 0, &file));
    assert_eq!(reason(&log.one(T0, commit(1, 1, true))), "done");
    assert_eq!((log.machine.log_time_ms(), log.free()), (T0, 0));
    let now = T0 + 1;
    assert_eq!(
        reason(&log.one(now, asked_at(2, now, buy(1)))),
        "SOLD_OUT",
        "none is refused for the file's time"
    );
    log.one(T0 + 2 * MINUTES, tick());
    assert_eq!(log.free(), 5, "the hold has lasted its two minutes");
    // What the file remembers does not stay for a year.
    let later = T0 + REMEMBERED_MS + 3 * MINUTES;
    log.entry(later, vec![tick()]);
    assert!(log.machine.outcome("alice", id(future, 1)).is_some(), "its id is of the future");
    assert_eq!(log.machine.outcome("alice", id(now, 2)), None);
}

#[test]
fn time_that_passed_since_the_export_has_passed_for_what_was_exported() {
    let mut old = Log::new();
    old.one(T0, command(1, hold(5, 2 * MINUTES as u32)));
    let file = snapshot_of(&old.machine);
    let mut log = Log::new();
    let now = T0 + 3 * MINUTES;
    log.one(now, chunk(1, 0, &file));
    assert_eq!(reason(&log.one(now, commit(1, 1, true))), "done");
    assert_eq!(reason(&log.one(now, asked_at(2, now, buy(1)))), "done", "the hold was over before");
}

/// 2,000 holds that fall due together and one among them that cannot end: all others end, a bounded number at a time.
#[test]
fn due_holds_end_at_once_a_bounded_number_an_entry_and_a_broken_one_delays_none() {
    let mut log = Log::new();
    let Some(tickets::command::Op::CreateEvent(mut roomy)) = create().op else { panic!() };
    (roomy.event_id, roomy.tiers[0].capacity, roomy.quota_per_buyer) = ("roomy".into(), 10_000, 100_000);
    let roomy = roomy.into();
    log.one(T0, command(1, roomy));
    let hold = |n: u64| {
        let event = "roomy".into();
        let op = tickets::Command::from(tickets::Hold {
            event_id: event,
            tier_id: "ga".into(),
            quantity: 1,
            seats: vec![],
            ttl_ms: 1_000,
        });
        Command { principal: format!("p{}", n % 4), ..command(n, op) }
    };
    for first in [2, 1_002] {
        log.entry(T0, (first..first + 1_000).map(hold).collect());
    }
    let held = |log: &Log| {
        let rows = log.machine.tickets();
        rows.stock_of(rows.event("roomy").unwrap()).next().unwrap().held
    };
    assert_eq!(held(&log), 2_000);
    log.one(T0 + 1_000, tick());
    assert_eq!(held(&log), 976, "an entry fires a bounded number");
    log.one(T0 + 1_000, tick());
    assert_eq!((held(&log), log.machine.faults()), (0, 0));
}

#[test]
fn what_goes_behind_the_others_because_it_is_from_the_future_is_remembered_from_then_on() {
    const HOUR: u64 = 3_600_000;
    let mut log = Log::new();
    let ahead = T0 + 25 * HOUR;
    assert_eq!(reason(&log.one(ahead, asked_at(1, ahead, buy(1)))), "done");
    log.one(T0, rebase(T0));
    assert_eq!(log.machine.log_time_ms(), T0);
    let remembered = |log: &Log| log.machine.outcome("alice", id(ahead, 1)).is_some();
    // It is as old as anything may get, and its time has not come.
    log.one(T0 + 24 * HOUR + HOUR / 2, tick());
    assert!(remembered(&log));
    log.one(ahead + 60_000, tick());
    assert!(remembered(&log), "its time begins when it went behind");
    log.one(ahead + 24 * HOUR, tick());
    assert!(!remembered(&log) && log.machine.forgotten("alice", id(ahead, 1)));
}

#[test]
fn no_reader_s_time_goes_back() {
    let mut log = Log::new();
    log.one(T0 + 10, command(1, hold(2, 1_000)));
    let held = |stamp_ms: u64, seen: Seen| {
        let get = tickets::Query::from(tickets::GetEvent { event_id: "gala".into() }).encode_to_vec();
        let as_of = AsOf { stamp: Stamp::confirmed(stamp_ms), seen };
        let answer = log.machine.query(tickets::MODULE, &get, as_of).unwrap().unwrap();
        let Some(tickets::answer::Result::Event(event)) =
            tickets::Answer::decode(&answer[..]).unwrap().result
        else {
            panic!("no event")
        };
        (event.tiers[0].held, log.machine.seen(as_of))
    };
    assert_eq!(held(T0 + 900, Seen::default()).0, 2);
    let (none, seen) = held(T0 + 1_200, Seen::default());
    assert_eq!((none, seen.index, seen.steady_ms), (0, 1, T0 + 1_200), "it is due");
    // Another node's clock is behind: what was seen to end does not come back, and what is seen then is no earlier.
    assert_eq!(held(T0 + 900, seen), (0, seen));
    assert_eq!(held(T0 + 1_300, seen).1.steady_ms, T0 + 1_300);
    // What was seen before a restore says nothing about the time after it; what is far ahead, nobody has seen.
    assert_eq!(held(T0 + 900, Seen { incarnation: seen.incarnation + 1, ..seen }).0, 2);
    assert_eq!(held(T0 + 900, Seen { steady_ms: u64::MAX, ..seen }).0, 2);
    assert_eq!(held(T0 + 900, Seen { steady_ms: T0 + 60_000, ..seen }).0, 2);
    // Who does not lead does not answer that.
    let knows = |stamp, seen| log.machine.knows_time(AsOf { stamp, seen });
    assert!(knows(Stamp::unconfirmed(T0 + 900), seen) && knows(Stamp::confirmed(T0 + 900_000), seen));
    assert!(!knows(Stamp::unconfirmed(T0 + 900_000), seen), "nobody else says that it is so late");
    assert!(!knows(Stamp::confirmed(T0 + 900), Seen { steady_ms: T0 + 60_000, ..seen }));
    assert!(knows(Stamp::confirmed(T0 + 900), Seen { incarnation: 9, steady_ms: T0 + 60_000, ..seen }));
}
