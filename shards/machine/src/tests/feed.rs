//! The feed: each change is heard once, in order, by whoever goes on from a place, whatever became of the rows meanwhile; who is told
//! that something is gone has missed something.

use tidewall_domain::feed::TELLS_CHANGES;
use tidewall_messages::Change;
use tidewall_messages::tickets::change::What;

use super::*;
use crate::feed::{FeedRow, Place};

/// More than any test tells.
const WIDE: u64 = 1 << 30;

/// A log of a group that tells what happens.
fn telling(feed_bytes_max: u64) -> Log {
    let mut log = Log { machine: Machine::telling(feed_bytes_max), entries: Vec::new() };
    log.one(T0, Command::system(SystemCommand::RaiseVersion(APPLY_VERSION)));
    log.one(T0, command(0, create()));
    log
}

/// One who listens, and keeps books of what it hears.
#[derive(Debug, Clone, Default)]
struct Listener {
    heard: Place,
    changes: Vec<(Place, tickets::Change)>,
    free: i64,
    held: i64,
    sold: i64,
}

impl Listener {
    fn from_now(machine: &Machine) -> Self {
        Self { heard: machine.place(), ..Self::default() }
    }

    /// Hears what there is, in answers of this size.
    fn hear(&mut self, machine: &Machine, bytes_max: usize) -> Result<(), Place> {
        loop {
            let (told, place) = match machine.changes_after(self.heard, bytes_max) {
                Heard::Gone { oldest } => return Err(oldest),
                Heard::Changes { told, place } => (told, place),
            };
            assert!(place >= self.heard, "{place:?} behind {:?}", self.heard);
            let before = self.heard;
            for entry in told {
                let (mut bytes, mut number) = (entry.changes.as_slice(), entry.first);
                while !bytes.is_empty() {
                    let change = Change::decode_length_delimited(&mut bytes).unwrap();
                    assert_eq!((change.module, change.row.as_str()), (tickets::MODULE.into(), "gala"));
                    let what = tickets::Change::decode(change.payload.as_slice()).unwrap();
                    number += 1;
                    let at = Place { incarnation: place.incarnation, index: entry.index, changes: number };
                    assert!(at > self.heard, "{at:?} was heard before");
                    self.heard = at;
                    self.book(&what);
                    self.changes.push((at, what));
                }
            }
            self.heard = place;
            if place == before {
                return Ok(());
            }
        }
    }

    fn book(&mut self, change: &tickets::Change) {
        let what = change.what.as_ref().unwrap();
        let count = |count: u32| i64::from(count);
        match what {
            What::Event(view) => {
                let tier = &view.tiers[0];
                (self.free, self.held, self.sold) = (tier.free as i64, tier.held as i64, tier.sold as i64);
            }
            What::Held(view) => {
                self.free -= count(view.quantity);
                self.held += count(view.quantity);
            }
            What::HoldEnded(view) => {
                self.held -= count(view.quantity);
                self.free += count(view.quantity);
            }
            What::Sold(view) if change.from_hold_id.is_empty() => {
                self.free -= count(view.count);
                self.sold += count(view.count);
            }
            What::Sold(view) => {
                self.held -= count(view.count);
                self.sold += count(view.count);
            }
            What::Cancelled(_) => {
                self.sold -= 1;
                self.free += 1;
            }
            What::Deleted(_) => {}
        }
    }

    /// What was heard adds up to what is there.
    fn agrees_with(&self, machine: &Machine) {
        let row = machine.tickets().event("gala").unwrap();
        let stock = machine.tickets().stock_of(row).next().unwrap();
        let books = [self.free, self.held, self.sold];
        assert_eq!(books, [stock.free as i64, stock.held as i64, stock.sold as i64]);
    }
}

fn release(hold: u64) -> tickets::Command {
    tickets::Command::from(tickets::ReleaseHold { event_id: "gala".into(), hold_id: format!("ga-h{hold}") })
}

fn confirm(hold: u64) -> tickets::Command {
    tickets::Command::from(tickets::ConfirmHold { event_id: "gala".into(), hold_id: format!("ga-h{hold}") })
}

fn cancel(ticket: u64) -> tickets::Command {
    tickets::Command::from(tickets::CancelTicket {
        event_id: "gala".into(),
        ticket_id: format!("ga-{ticket}"),
    })
}

#[derive(Debug, Clone)]
enum Step {
    Entry(Vec<(u8, u64)>, u64),
    Hear(usize),
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let asked = proptest::collection::vec((0..5u8, 1..8u64), 0..6);
    prop_oneof![
        6 => (asked, 0..300u64).prop_map(|(asked, ms)| Step::Entry(asked, ms)),
        2 => (1..400usize).prop_map(Step::Hear),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn who_listens_hears_each_change_once_and_can_keep_books_of_them(steps in proptest::collection::vec(step(), 1..60)) {
        let mut log = telling(WIDE);
        let begun = Listener { heard: Place::behind(1, 0), ..Listener::default() };
        let (mut one, mut now, mut n) = (begun.clone(), T0, 1);
        for step in steps {
            match step {
                Step::Entry(asked, ms) => {
                    now += ms;
                    let commands = asked.into_iter().map(|(kind, number)| {
                        n += 1;
                        let op = match kind {
                            0 => buy(1),
                            1 => hold(1 + (number % 2) as u32, 200),
                            2 => release(number),
                            3 => confirm(number),
                            _ => cancel(number),
                        };
                        let expires_ms = now + 5_000;
                        Command { expires_ms, ..command(n, op) }
                    }).collect();
                    log.entry(now, commands);
                }
                Step::Hear(bytes) => {
                    prop_assert!(one.hear(&log.machine, bytes).is_ok());
                    one.agrees_with(&log.machine);
                }
                Step::Reload => {
                    let loaded = snapshot::read(&mut snapshot_of(&log.machine).as_slice()).unwrap().machine;
                    prop_assert_eq!(loaded.place(), log.machine.place());
                    log.machine = loaded;
                }
            }
        }
        prop_assert!(one.hear(&log.machine, 1).is_ok());
        one.agrees_with(&log.machine);
        // Whoever hears all at once hears the same.
        let mut other = begun;
        prop_assert!(other.hear(&log.machine, 1 << 20).is_ok());
        prop_assert_eq!(one.changes, other.changes);
    }
}

#[test]
fn what_a_command_tells_says_who_and_what_and_how_many_are_left() {
    let mut log = telling(WIDE);
    let mut one = Listener::from_now(&log.machine);
    log.entry(T0, vec![command(1, buy(2)), command(2, hold(3, 100)), command(3, buy(9))]);
    log.one(T0 + 100, tick());
    one.hear(&log.machine, 1 << 20).unwrap();
    let told: Vec<_> =
        one.changes.iter().map(|(at, change)| (at.index, at.changes, change.clone())).collect();
    let stock = |free, held, sold| Some(tickets::Stock { free, held, sold });
    let sold = tickets::PurchaseView { tier_id: "ga".into(), first_number: 1, count: 2, seats: vec![] };
    let held = tickets::HoldView {
        hold_id: "ga-h1".into(),
        tier_id: "ga".into(),
        quantity: 3,
        expires_at_ms: T0 + 100,
        ..Default::default()
    };
    let (hold_id, tier_id) = ("ga-h1".to_owned(), "ga".to_owned());
    let ended = tickets::HoldEnded { hold_id, tier_id, quantity: 3, expired: true };
    let change = |what, stock| tickets::Change { what: Some(what), stock, ..Default::default() };
    assert_eq!(
        told,
        [
            (2, 1, change(What::Sold(sold), stock(3, 0, 2))),
            (2, 2, change(What::Held(held), stock(0, 3, 2))),
            (3, 1, change(What::HoldEnded(ended), stock(3, 0, 2))),
        ]
    );
    // A copy of a request, a refusal and a tick without anything to do tell nothing.
    log.entry(T0 + 101, vec![command(1, buy(2)), command(4, buy(9)), tick()]);
    let before = one.changes.len();
    one.hear(&log.machine, 1 << 20).unwrap();
    assert_eq!((one.changes.len(), one.heard.index), (before, 4));
}

#[test]
fn what_is_told_in_an_entry_is_heard_when_it_ends() {
    let mut log = telling(WIDE);
    let mut one = Listener::from_now(&log.machine);
    let payload = Entry { stamp: Stamp::confirmed(T0), commands: vec![command(1, buy(1))] }.encode();
    let entry = log.machine.begin(Position { term: 1, node: 1, index: 2 }, &payload).unwrap();
    log.machine.command(&entry, 0).unwrap();
    one.hear(&log.machine, 1 << 20).unwrap();
    assert_eq!((one.changes.len(), one.heard.index), (0, 1));
    log.machine.end();
    one.hear(&log.machine, 1 << 20).unwrap();
    assert_eq!((one.changes.len(), one.heard.index), (1, 2));
}

#[test]
fn the_oldest_goes_first_and_whoever_has_missed_it_is_told() {
    let mut log = telling(700);
    let mut slow = Listener::from_now(&log.machine);
    let begun = slow.heard;
    let mut fast = slow.clone();
    for n in 1..6 {
        log.one(T0, command(n, buy(1)));
        fast.hear(&log.machine, 1).unwrap();
    }
    assert_eq!(fast.changes.len(), 5);
    let oldest = slow.hear(&log.machine, 1 << 20).unwrap_err();
    assert!(oldest > begun && slow.heard == begun && slow.changes.is_empty());
    // From there on everything is heard.
    slow.heard = oldest;
    slow.hear(&log.machine, 1 << 20).unwrap();
    let missed = 5 - slow.changes.len();
    assert!(missed > 0 && slow.changes == fast.changes[missed..], "{missed}");
    // An idle group keeps the last of what it told; what follows it is heard from anywhere behind it.
    for n in 0..20 {
        log.one(T0 + FEED_MS_MAX * (2 + n), tick());
    }
    fast.hear(&log.machine, 1).unwrap();
    let later = log.machine.log_time_ms();
    let idle = fast.clone();
    log.one(later, Command { request_id: id(later, 9), expires_ms: later + 1_000, ..command(9, cancel(1)) });
    for mut listener in [fast, idle] {
        let before = listener.changes.len();
        listener.hear(&log.machine, 1).unwrap();
        assert_eq!(listener.changes.len(), before + 1);
    }
    let (mut log, mut last) = (telling(WIDE), None);
    for n in 0..4 {
        last = Some(Listener::from_now(&log.machine));
        log.one(T0 + n * FEED_MS_MAX / 2, tick());
        let now = log.machine.log_time_ms();
        let buy = Command { request_id: id(now, n + 1), expires_ms: now + 1_000, ..command(n, buy(1)) };
        log.one(now, buy);
    }
    let mut begun = Listener { heard: begun, ..Listener::default() };
    assert!(begun.hear(&log.machine, 1).is_err(), "what is older than the time that it is kept goes too");
    last.unwrap().hear(&log.machine, 1).unwrap();
}

#[test]
fn who_has_heard_a_part_of_an_entry_that_is_given_up_is_told_that_the_rest_is_gone() {
    let mut log = telling(200);
    let begun = Listener::from_now(&log.machine);
    log.entry(T0, vec![command(1, buy(1)), command(2, buy(1))]);
    let Heard::Changes { place, .. } = log.machine.changes_after(begun.heard, 1) else {
        panic!("it is kept")
    };
    assert_eq!((place.index, place.changes), (2, 1));
    let mut whole = begun.clone();
    whole.hear(&log.machine, 1).unwrap();
    log.entry(T0, vec![command(3, buy(1))]);
    let mut part = Listener { heard: place, ..Listener::default() };
    assert!(part.hear(&log.machine, 1).is_err(), "the second change of the entry is not kept");
    whole.hear(&log.machine, 1).unwrap();
    assert_eq!(whole.changes.len(), 3);
}

#[test]
fn the_feed_keeps_to_its_bound_however_many_small_entries_it_has_when_large_ones_come() {
    let mut log = telling(40_000);
    for n in 0..300 {
        log.one(T0, command(2 * n + 1, hold(1, 60_000)));
        log.one(T0, command(2 * n + 2, release(n + 1)));
    }
    for entry in 0..30 {
        // As much as many small ones at once.
        let commands = (0..40).map(|at| {
            let op = if at % 2 == 0 { hold(1, 60_000) } else { release(301 + entry * 20 + at / 2) };
            command(10_000 + entry * 40 + at, op)
        });
        assert!(log.entry(T0, commands.collect()).iter().all(|decision| reason(decision) == "done"));
        assert!(log.machine.feed_bytes() <= 44_000, "{}", log.machine.feed_bytes());
    }
}

#[test]
fn before_all_members_know_it_nothing_is_told_and_nobody_is_promised_what_came_before() {
    let mut log = Log::new();
    log.one(T0, Command::system(SystemCommand::RaiseVersion(TELLS_CHANGES - 1)));
    let before = log.machine.place();
    log.one(T0, command(1, buy(1)));
    let table =
        |machine: &Machine| machine.freeze_all().pages.iter().any(|page| page.table() == FeedRow::TABLE);
    assert!(!table(&log.machine));
    log.one(T0, Command::system(SystemCommand::RaiseVersion(TELLS_CHANGES)));
    assert!(table(&log.machine));
    assert!(matches!(log.machine.changes_after(before, 1), Heard::Gone { .. }), "a purchase was not told");
    let mut one = Listener::from_now(&log.machine);
    log.one(T0, command(2, buy(1)));
    one.hear(&log.machine, 1).unwrap();
    assert_eq!(one.changes.len(), 1);
}

#[test]
fn another_incarnation_is_another_feed() {
    let mut log = telling(WIDE);
    let mut one = Listener::from_now(&log.machine);
    log.one(T0, command(1, buy(1)));
    let file = snapshot_of(&log.machine);
    log.one(T0, import::chunk(9, 0, &file));
    assert_eq!(reason(&log.one(T0, import::commit(9, 1, true))), "done");
    assert_eq!(log.machine.incarnation(), 2);
    let oldest = one.hear(&log.machine, 1).unwrap_err();
    let mut other = Listener { heard: oldest, ..Listener::default() };
    let mut now = Listener::from_now(&log.machine);
    log.one(T0, Command { request_id: id(T0 + 1, 2), ..command(2, buy(1)) });
    for listener in [&mut other, &mut now] {
        listener.hear(&log.machine, 1).unwrap();
        assert_eq!(listener.changes.len(), 1, "only what has happened in this life");
    }
    // A forced recovery as well: what the others had decided is not known here.
    let next = Position { term: 9, node: 1, index: log.entries.len() as u64 };
    log.entries.push(Vec::new());
    log.machine.begin_incarnation(next, Vec::new(), 7);
    assert!(now.hear(&log.machine, 1).is_err());
    let mut again = Listener::from_now(&log.machine);
    log.one(T0, Command { request_id: id(T0 + 1, 3), ..command(3, buy(1)) });
    again.hear(&log.machine, 1).unwrap();
    assert_eq!(again.changes.len(), 1);
    let loaded = snapshot::read(&mut snapshot_of(&log.machine).as_slice()).unwrap().machine;
    assert_eq!(loaded.place(), log.machine.place());
}

#[test]
fn who_has_heard_more_than_a_replica_that_is_behind_waits_for_it() {
    let mut log = telling(WIDE);
    let behind = snapshot::read(&mut snapshot_of(&log.machine).as_slice()).unwrap().machine;
    let mut one = Listener::from_now(&log.machine);
    log.one(T0, command(1, buy(1)));
    one.hear(&log.machine, 1).unwrap();
    let (heard, changes) = (one.heard, one.changes.len());
    one.hear(&behind, 1).unwrap();
    assert_eq!((one.heard, one.changes.len()), (heard, changes));
}
