//! Properties of the ticket module: whatever is asked in whatever order, the invariants hold over the whole
//! table, rejections change nothing, and the same commands give the same rows.
#![allow(clippy::unwrap_used)]

mod bounds;
mod cost;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::commands::*;
use super::model::*;
use super::queries::QuickNo;
use crate::codec::{Reader, Writer};
use crate::{Caller, Context};

fn tier(id: &str, capacity: u64, seat_rows: &[(&str, u32)]) -> TierSpec {
    TierSpec {
        id: id.into(),
        display_name: id.to_uppercase(),
        capacity,
        currency: "EUR".into(),
        price: 4_200,
        seat_rows: seat_rows
            .iter()
            .map(|(label, seats)| SeatRowSpec { label: (*label).into(), seats: *seats })
            .collect(),
    }
}

fn create(quota: u32) -> Command {
    Command::CreateEvent {
        event: "gala".into(),
        display_name: "Gala".into(),
        quota,
        opens_ms: 0,
        closes_ms: 0,
        tiers: vec![tier("ga", 12, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])],
    }
}

/// Log time and steady time differ, so that who takes one for the other is found out.
const STEADY_AHEAD_MS: u64 = 777_000;

fn context(now_ms: u64) -> Context {
    let steady_ms = now_ms + STEADY_AHEAD_MS;
    Context { now_ms, steady_ms, incarnation: 1, request_id: 0, index: 1, position: 0 }
}

struct World {
    state: State,
    context: Context,
}

impl World {
    fn new(quota: u32) -> Self {
        let context = context(1_000);
        let mut world = Self { state: State::default(), context };
        world.ask("organiser", &create(quota)).unwrap();
        world
    }

    fn ask(&mut self, principal: &str, command: &Command) -> Result<Outcome, Rejection> {
        self.context.index += 1;
        self.context.request_id += 1;
        let before = self.state.digest();
        let caller = Caller { principal, privileged: false };
        let answer = apply(&mut self.state, &self.context, caller, command).expect("no invariant breaks");
        if answer.is_err() {
            assert_eq!(self.state.digest(), before, "a rejection changed something: {command:?}");
        }
        self.state.commit();
        self.check();
        let mut w = Writer::new();
        match &answer {
            Ok(outcome) => outcome.encode(&mut w),
            Err(rejection) => rejection.encode(&mut w),
        }
        let bytes = w.into_bytes();
        let mut r = Reader::new(&bytes);
        let read =
            if answer.is_ok() { Outcome::decode(&mut r).map(Ok) } else { Rejection::decode(&mut r).map(Err) };
        assert_eq!((read.unwrap(), r.finish()), (answer.clone(), Ok(())));
        answer
    }

    fn wait(&mut self, ms: u64) {
        self.context.now_ms += ms;
        self.context.steady_ms += ms;
    }

    /// Fires what is due, this many timers at most.
    fn fire(&mut self, limit: usize) -> usize {
        for fired in 0..limit {
            let Some(timer) = next_timer(&self.state, &self.context) else { return fired };
            fire(&mut self.state, &self.context, timer).unwrap();
            self.state.commit();
            self.check();
        }
        limit
    }

    fn buy(&mut self, who: &str, tier: &str, quantity: u32) -> Result<Outcome, Rejection> {
        self.ask(who, &buy(tier, quantity, &[]))
    }

    fn stock(&self, tier: &str) -> StockRow {
        let event = self.state.event("gala").unwrap();
        let at = event.tiers.iter().position(|spec| spec.id == tier).unwrap();
        self.state.stock_of(event).nth(at).unwrap()
    }

    /// The seats that a purchase must get that names none: the lowest that nobody has, when no hold is due.
    fn lowest(&self, command: &Command) -> Option<Vec<String>> {
        let Command::Buy { tier, quantity, seats, .. } = command else { return None };
        let event = self.state.event("gala")?;
        let (no, spec) = event.tier(tier).filter(|(_, spec)| spec.numbered())?;
        let due = self.state.holds.derived().due((event.no, no), self.context.steady_ms).next();
        if !seats.is_empty() || due.is_some() {
            return None;
        }
        let free = (0..).filter(|seat| self.state.seats.get(&(event.no, no, *seat)).is_none());
        Some(spec.seat_names(&free.take(*quantity as usize).collect::<Vec<_>>()))
    }

    fn hold_state(&self, number: u64) -> Option<HoldState> {
        self.state.holds.get(&(1, 0, number)).map(|hold| hold.state)
    }

    /// The invariants over everything, found by counting rows; shares no code with the checks in `commands`.
    fn check(&self) {
        let Some(event) = self.state.event("gala") else { return };
        let mut places: BTreeMap<String, u64> = BTreeMap::new();
        let mut seats = BTreeSet::new();
        let views = self.state.tiers(event, self.context.steady_ms).collect::<Vec<_>>();
        for (no, (view, stock)) in views.iter().zip(self.state.stock_of(event)).enumerate() {
            let tickets =
                self.state.tickets.iter().filter(|(key, row)| key.1 as usize == no && !row.cancelled);
            let holds = self
                .state
                .holds
                .iter()
                .filter(|(key, hold)| key.1 as usize == no && hold.state == HoldState::Live);
            let (mut sold, mut held, mut due) = (0, 0, 0);
            for (_, ticket) in tickets {
                sold += 1;
                *places.entry(ticket.owner.to_string()).or_default() += 1;
                if let Some(seat) = ticket.seat {
                    assert!(seats.insert((no, seat)), "seat {seat} has two holders");
                }
                assert_eq!(ticket.seat.is_some(), view.spec.numbered());
            }
            for (_, hold) in holds {
                held += u64::from(hold.quantity);
                if hold.expires_ms > self.context.steady_ms {
                    *places.entry(hold.owner.to_string()).or_default() += u64::from(hold.quantity);
                } else {
                    due += u64::from(hold.quantity);
                }
                for seat in &hold.seats {
                    assert!(seats.insert((no, *seat)), "seat {seat} has two holders");
                }
            }
            assert_eq!((stock.sold, stock.held), (sold, held));
            assert_eq!(stock.capacity, stock.free + sold + held);
            assert_eq!(view.spec.capacity, stock.capacity);
            // What is due counts for nothing in what is shown.
            assert_eq!((view.stock.held, view.stock.free), (held - due, stock.free + due));
            let free = self.state.seats.derived().free((event.no, no as TierNo)).take(8);
            let expected = (0..).filter(|seat| !seats.contains(&(no, *seat))).take(8);
            assert!(free.eq(expected), "the free seats of tier {no} are not those that nobody has");
        }
        for (who, places) in places {
            assert!(places <= event.quota.into(), "{who} has {places}");
        }
        let rows: usize = self.state.seats.iter().count();
        assert_eq!(rows, seats.len(), "a seat row has no holder");
    }
}

fn buy(tier: &str, quantity: u32, seats: &[&str]) -> Command {
    let seats = seats.iter().map(|s| (*s).into()).collect();
    Command::Buy { event: "gala".into(), tier: tier.into(), quantity, seats, buyer: String::new() }
}

fn hold(tier: &str, quantity: u32, seats: &[&str], ttl_ms: u32) -> Command {
    let seats = seats.iter().map(|s| (*s).into()).collect();
    Command::Hold { event: "gala".into(), tier: tier.into(), quantity, seats, ttl_ms }
}

#[derive(Debug, Clone)]
enum Step {
    Ask(usize, Command),
    Wait(u64),
    Fire(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let tiers = prop_oneof![Just("ga"), Just("vip"), Just("none")];
    let names = prop_oneof![Just("A-1"), Just("A-2"), Just("A-4"), Just("B-1"), Just("B-2"), Just("A-9")];
    let seats = prop_oneof![3 => Just(Vec::new()), 1 => proptest::collection::vec(names, 1..3)];
    let who = 0..4usize;
    let number = 1..9u64;
    let id = (tiers.clone(), number, any::<bool>())
        .prop_map(|(tier, n, hold)| format!("{tier}-{}{n}", if hold { "h" } else { "" }));
    let ask = prop_oneof![
        4 => (tiers.clone(), 0..5u32, seats.clone()).prop_map(|(t, q, s)| buy(t, q, &s)),
        4 => (tiers, 0..5u32, seats, 0..60u32).prop_map(|(t, q, s, ttl)| hold(t, q, &s, ttl)),
        2 => id.clone().prop_map(|hold| Command::ConfirmHold { event: "gala".into(), hold }),
        1 => id.clone().prop_map(|hold| Command::ReleaseHold { event: "gala".into(), hold }),
        2 => id.prop_map(|ticket| Command::CancelTicket { event: "gala".into(), ticket }),
        1 => (10..16u64).prop_map(|capacity| Command::UpdateEvent {
            event: "gala".into(), display_name: None, quota: None, opens_ms: None, closes_ms: None,
            tiers: Some(vec![tier("ga", capacity, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])]),
            expected_revision: 0,
        }),
    ];
    prop_oneof![
        10 => (who, ask).prop_map(|(who, command)| Step::Ask(who, command)),
        2 => (1..80u64).prop_map(Step::Wait),
        1 => Just(Step::Wait(EXPIRED_KEPT_MS)),
        2 => (0..4usize).prop_map(Step::Fire),
    ]
}

const WHO: [&str; 4] = ["organiser", "alice", "bob", "carol"];

fn run(steps: &[Step]) -> World {
    let mut world = World::new(7);
    for step in steps {
        match step {
            Step::Ask(who, command) => {
                let quick = match command {
                    Command::Buy { tier, quantity, seats, .. } if seats.is_empty() => {
                        let Context { now_ms, steady_ms, .. } = world.context;
                        world.state.sold_out("gala", tier, *quantity, now_ms, steady_ms)
                    }
                    _ => QuickNo::AskTheLog,
                };
                let lowest = world.lowest(command);
                let answer = world.ask(WHO[*who], command);
                if let (Ok(Outcome::Purchased { seats, .. }), Some(lowest)) = (&answer, lowest) {
                    assert_eq!(*seats, lowest, "not the lowest free seats");
                }
                assert!(
                    quick == QuickNo::AskTheLog || answer.is_err(),
                    "a quick no where the log said {answer:?} to {command:?}"
                );
            }
            Step::Wait(ms) => world.wait(*ms),
            Step::Fire(limit) => drop(world.fire(*limit)),
        }
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn invariants_hold_and_the_same_commands_give_the_same_rows(
        steps in proptest::collection::vec(step(), 0..80)
    ) {
        let first = run(&steps);
        prop_assert_eq!(first.state.digest(), run(&steps).state.digest());
        // The pages hold everything: rebuilt from them, the state is the same.
        let mut pages = Vec::new();
        first.state.freeze_all(&mut pages);
        let mut rebuilt = State::default();
        for page in &pages {
            prop_assert!(rebuilt.load(page.table(), &page.encode().unwrap()).unwrap());
        }
        prop_assert_eq!(rebuilt.digest(), first.state.digest());
        prop_assert_eq!(rebuilt.tickets.derived(), first.state.tickets.derived());
        prop_assert_eq!(rebuilt.holds.derived(), first.state.holds.derived());
        prop_assert_eq!(rebuilt.seats.derived(), first.state.seats.derived());
    }

    #[test]
    fn commands_have_one_byte_form(steps in proptest::collection::vec(step(), 1..20)) {
        for step in steps {
            let Step::Ask(_, command) = step else { continue };
            let mut w = Writer::new();
            command.encode(&mut w);
            let bytes = w.into_bytes();
            let mut r = Reader::new(&bytes);
            prop_assert_eq!(Command::decode(&mut r).unwrap(), command);
            r.finish().unwrap();
        }
    }
}

#[test]
fn a_tier_sells_out_exactly() {
    let mut world = World::new(100);
    assert!(world.buy("alice", "ga", 10).is_ok());
    assert_eq!(world.buy("bob", "ga", 3), Err(Rejection::SoldOut { asked: 3, free: 2 }));
    assert!(world.buy("bob", "ga", 2).is_ok());
    assert_eq!(world.buy("bob", "ga", 1), Err(Rejection::SoldOut { asked: 1, free: 0 }));
}

#[test]
fn a_cancelled_ticket_is_on_sale_again_under_a_new_number() {
    let mut world = World::new(100);
    world.buy("alice", "ga", 12).unwrap();
    world.ask("alice", &Command::CancelTicket { event: "gala".into(), ticket: "ga-3".into() }).unwrap();
    let Outcome::Purchased { first, count, .. } = world.buy("bob", "ga", 1).unwrap() else { panic!() };
    assert_eq!((first, count), (13, 1));
    let again = world.ask("alice", &Command::CancelTicket { event: "gala".into(), ticket: "ga-3".into() });
    assert_eq!(again, Err(Rejection::TicketCancelled("ga-3".into())));
    let not_mine =
        world.ask("alice", &Command::CancelTicket { event: "gala".into(), ticket: "ga-13".into() });
    assert_eq!(not_mine.unwrap_err().reason(), "NOT_OWNER");
}

#[test]
fn a_due_hold_gives_way_to_a_purchase_before_its_timer_fires() {
    let mut world = World::new(100);
    let sold_out = |world: &World| {
        let Context { now_ms, steady_ms, .. } = world.context;
        world.state.sold_out("gala", "ga", 1, now_ms, steady_ms)
    };
    world.ask("alice", &hold("ga", 12, &[], 50)).unwrap();
    assert_eq!(world.buy("bob", "ga", 1).unwrap_err().reason(), "SOLD_OUT");
    assert!(matches!(sold_out(&world), QuickNo::Certain(_)));
    world.wait(50);
    assert_eq!(sold_out(&world), QuickNo::AskTheLog);
    world.buy("bob", "ga", 1).unwrap();
    assert_eq!((world.stock("ga").sold, world.stock("ga").free), (1, 11));
    let late = world.ask("alice", &Command::ConfirmHold { event: "gala".into(), hold: "ga-h1".into() });
    assert_eq!(late.unwrap_err().reason(), "HOLD_EXPIRED");
}

#[test]
fn a_hold_is_confirmed_only_in_time_and_by_its_owner() {
    let mut world = World::new(100);
    world.ask("alice", &hold("vip", 0, &["A-2", "B-1"], 50)).unwrap();
    let confirm = Command::ConfirmHold { event: "gala".into(), hold: "vip-h1".into() };
    assert_eq!(world.ask("bob", &confirm).unwrap_err().reason(), "NOT_OWNER");
    assert_eq!(world.ask("bob", &buy("vip", 0, &["A-2"])).unwrap_err().reason(), "SEAT_TAKEN");
    world.wait(49);
    let Outcome::Purchased { seats, .. } = world.ask("alice", &confirm).unwrap() else { panic!() };
    assert_eq!(seats, ["A-2", "B-1"]);
    assert_eq!(world.ask("alice", &confirm).unwrap_err().reason(), "HOLD_NOT_FOUND");
}

/// At its due time a hold is over: its places are free, its owner is told why for a while, and then nobody knows of it.
#[test]
fn a_hold_ends_when_it_falls_due_and_is_remembered_for_a_while() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 12, &[], 50)).unwrap();
    let late = Command::ConfirmHold { event: "gala".into(), hold: "ga-h1".into() };
    let release = Command::ReleaseHold { event: "gala".into(), hold: "ga-h1".into() };
    world.wait(49);
    assert_eq!(world.fire(9), 0);
    world.wait(1);
    for command in [&late, &release] {
        assert_eq!(world.ask("alice", command).unwrap_err().reason(), "HOLD_EXPIRED", "fired or not");
    }
    assert_eq!((world.fire(9), world.hold_state(1)), (1, Some(HoldState::Expired)));
    assert_eq!((world.stock("ga").held, world.stock("ga").free), (0, 12));
    world.wait(EXPIRED_KEPT_MS - 1);
    for command in [&late, &release] {
        assert_eq!(world.ask("alice", command).unwrap_err().reason(), "HOLD_EXPIRED");
    }
    assert_eq!(world.fire(9), 0);
    world.wait(1);
    assert_eq!((world.fire(9), world.hold_state(1)), (1, None));
    assert_eq!(world.ask("alice", &late).unwrap_err().reason(), "HOLD_NOT_FOUND");
    assert_eq!(world.state.next_timer_ms(), None);
}

#[test]
fn what_is_due_is_in_the_way_of_no_smaller_capacity_and_is_shown_as_free() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 5, &[], 50)).unwrap();
    world.ask("bob", &hold("ga", 5, &[], 60)).unwrap();
    let smaller = |capacity| Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: None,
        opens_ms: None,
        closes_ms: None,
        tiers: Some(vec![tier("ga", capacity, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])]),
        expected_revision: 0,
    };
    world.wait(50);
    let event = world.state.event("gala").unwrap();
    let shown = world.state.tiers(event, world.context.steady_ms).next().unwrap().stock;
    assert_eq!((shown.held, shown.free), (5, 7));
    let refused = world.ask("organiser", &smaller(4)).unwrap_err();
    assert_eq!(refused, Rejection::CapacityTooSmall { tier: "ga".into(), taken: 5 });
    assert_eq!(world.hold_state(1), Some(HoldState::Live), "a refusal changes nothing");
    world.ask("organiser", &smaller(5)).unwrap();
    assert_eq!((world.stock("ga").held, world.stock("ga").free), (5, 0));
    assert_eq!(world.hold_state(1), Some(HoldState::Expired));
}

#[test]
fn a_timer_that_breaks_an_invariant_delays_no_other() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 2, &[], 50)).unwrap();
    world.ask("bob", &hold("ga", 3, &[], 60)).unwrap();
    // A hold that says more than the stock has in holds.
    let lie = HoldRow { quantity: 9, ..world.state.holds.get(&(1, 0, 1)).unwrap().clone() };
    world.state.holds.set((1, 0, 1), Some(lie));
    world.state.commit();
    world.wait(60);
    let timer = next_timer(&world.state, &world.context).unwrap();
    let before = world.state.digest();
    fire(&mut world.state, &world.context, timer).unwrap_err();
    world.state.rollback();
    assert_eq!(world.state.digest(), before);
    shelve(&mut world.state, timer);
    world.state.commit();
    assert_eq!(world.hold_state(1), Some(HoldState::Stuck));
    let next = next_timer(&world.state, &world.context).unwrap();
    assert_ne!(next, timer);
    fire(&mut world.state, &world.context, next).unwrap();
    assert_eq!(world.hold_state(2), Some(HoldState::Expired));
    assert_eq!(next_timer(&world.state, &world.context), None, "the stuck one has none any more");
}

#[test]
fn nobody_collects_holds_without_end_and_a_due_one_gives_way() {
    let mut world = World::new(QUOTA_MAX);
    let roomy = Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: None,
        opens_ms: None,
        closes_ms: None,
        tiers: Some(vec![tier("ga", 5_000, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])]),
        expected_revision: 0,
    };
    world.ask("organiser", &roomy).unwrap();
    let caller = Caller { principal: "alice", privileged: false };
    for n in 0..HOLDS_MAX {
        let hold = hold("ga", 1, &[], if n == 0 { 50 } else { 60 });
        apply(&mut world.state, &world.context, caller, &hold).unwrap().unwrap();
        world.state.commit();
    }
    let refused = world.ask("alice", &hold("ga", 1, &[], 50)).unwrap_err();
    assert_eq!(refused, Rejection::TooManyHolds { holds: HOLDS_MAX as u32 });
    world.ask("bob", &hold("ga", 1, &[], 50)).unwrap();
    world.wait(50);
    world.ask("alice", &hold("ga", 1, &[], 50)).unwrap();
    assert_eq!(world.hold_state(1), Some(HoldState::Expired));
    assert_eq!(world.ask("alice", &hold("ga", 1, &[], 50)).unwrap_err().reason(), "TOO_MANY_HOLDS");
}

/// What was decided is what is told for ever, and what was sold keeps its price, whatever becomes of the tier.
#[test]
fn what_was_decided_says_everything_and_keeps_its_price_and_currency() {
    let mut world = World::new(9);
    let Outcome::Purchased { tier: sold_in, first: 1, count: 1, seats, .. } =
        world.buy("alice", "vip", 1).unwrap()
    else {
        panic!()
    };
    assert_eq!((sold_in.as_str(), seats), ("vip", vec!["A-1".to_owned()]));
    world.ask("alice", &hold("ga", 1, &[], 1_000)).unwrap();
    let yen = |id: &str, capacity, seat_rows: &[(&str, u32)]| TierSpec {
        currency: "JPY".into(),
        price: 7,
        ..tier(id, capacity, seat_rows)
    };
    let dearer = Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: None,
        opens_ms: None,
        closes_ms: None,
        tiers: Some(vec![yen("ga", 10, &[]), yen("vip", 6, &[("A", 4), ("B", 2)])]),
        expected_revision: 0,
    };
    let Outcome::EventSaved { row, stock, .. } = world.ask("organiser", &dearer).unwrap() else { panic!() };
    assert_eq!((row.revision, row.tiers[1].currency.as_str()), (2, "JPY"));
    assert_eq!(
        stock.iter().map(|s| (s.capacity, s.free, s.held, s.sold)).collect::<Vec<_>>(),
        [(10, 9, 1, 0), (6, 5, 0, 1)]
    );
    let confirm = Command::ConfirmHold { event: "gala".into(), hold: "ga-h1".into() };
    world.ask("alice", &confirm).unwrap();
    for id in ["vip-1", "ga-1"] {
        let cancel = Command::CancelTicket { event: "gala".into(), ticket: id.into() };
        let Outcome::Cancelled { ticket, .. } = world.ask("alice", &cancel).unwrap() else { panic!() };
        assert_eq!((ticket.price.minor_units, ticket.price.currency.as_str()), (4_200, "EUR"), "{id}");
        assert!(ticket.cancelled && ticket.owner == "alice" && ticket.organiser == "organiser");
        assert_eq!((ticket.id.as_str(), ticket.seat.is_empty()), (id, id == "ga-1"));
    }
}

/// An import begins a new incarnation with older rows: what comes afterwards must not be named like what was lost.
#[test]
fn ids_and_numbers_of_a_new_incarnation_were_never_given_before() {
    let mut world = World::new(9);
    let given = |world: &mut World| {
        let mut create = create(9);
        if let Command::CreateEvent { event, .. } = &mut create {
            event.clear();
        }
        let Outcome::EventSaved { event, .. } = world.ask("organiser", &create).unwrap() else { panic!() };
        event
    };
    assert_eq!(given(&mut world), "e1-2");
    world.buy("alice", "ga", 1).unwrap();
    world.context.incarnation = 2;
    // The log begins anew: its places say nothing about what is taken.
    world.context.index = 0;
    assert_eq!(given(&mut world), "e2-3");
    let Outcome::Purchased { first, .. } = world.buy("alice", "ga", 2).unwrap() else { panic!() };
    assert_eq!(first, NUMBERS_PER_INCARNATION + 1);
    let one_place = hold("ga", 1, &[], 50);
    let Outcome::Held { hold, .. } = world.ask("alice", &one_place).unwrap() else { panic!() };
    assert_eq!(hold, NUMBERS_PER_INCARNATION + 1);
    let confirm = Command::ConfirmHold { event: "gala".into(), hold: format!("ga-h{hold}") };
    let Outcome::Purchased { first, .. } = world.ask("alice", &confirm).unwrap() else { panic!() };
    assert_eq!(first, NUMBERS_PER_INCARNATION + 3);
    // A forced recovery counts further up; imports follow it.
    let recovered = 1 << 32;
    for (incarnation, before) in [(recovered, 1_000), (recovered + 3, 1_003), (recovered * 2, 2_000)] {
        let mut world = World::new(9);
        world.context.incarnation = incarnation;
        for next in [1, 2] {
            let Outcome::Purchased { first, .. } = world.buy("bob", "ga", 1).unwrap() else { panic!() };
            assert_eq!(first, before * NUMBERS_PER_INCARNATION + next, "{incarnation:x}");
        }
        let Outcome::Held { hold: number, .. } = world.ask("bob", &one_place).unwrap() else { panic!() };
        assert_eq!(number, before * NUMBERS_PER_INCARNATION + 1);
    }
    for taken in ["e1-2", "e77-1"] {
        let mut create = create(9);
        if let Command::CreateEvent { event, .. } = &mut create {
            *event = taken.into();
        }
        assert_eq!(world.ask("organiser", &create).unwrap_err().field(), "event_id", "{taken}");
    }
}

#[test]
fn numbers_of_different_incarnations_never_meet() {
    let mut last = None;
    let halves = [0_u64, 1, 2, 17, 18_000, 18_001, u32::MAX.into()];
    for recoveries in halves {
        for imports in [0_u64, 1, 2, 999, 1_000, u32::MAX.into()] {
            let before = numbers_before(recoveries << 32 | imports);
            assert!(before.checked_add(NUMBERS_PER_INCARNATION).is_some(), "{recoveries} {imports}");
            // More than that share the last numbers, which go on where the stock is.
            if recoveries <= 18_000 {
                assert!(last.is_none_or(|last| before >= last), "{recoveries} {imports}");
            }
            if (1..=18_000).contains(&recoveries) && imports <= 999 {
                assert!(last < Some(before), "{recoveries} {imports}");
            }
            last = Some(before);
        }
    }
}

#[test]
fn a_quota_counts_holds_and_tickets_but_not_void_holds() {
    let mut world = World::new(3);
    world.buy("alice", "ga", 1).unwrap();
    world.ask("alice", &hold("ga", 2, &[], 50)).unwrap();
    let rejected = world.buy("alice", "ga", 1).unwrap_err();
    assert_eq!(rejected, Rejection::QuotaExceeded { quota: 3, have: 3, asked: 1 });
    world.wait(50);
    world.buy("alice", "ga", 2).unwrap();
}

#[test]
fn a_quota_lowered_later_breaks_nothing() {
    let mut world = World::new(5);
    world.ask("alice", &hold("ga", 5, &[], 50)).unwrap();
    let lower = Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: Some(2),
        opens_ms: None,
        closes_ms: None,
        tiers: None,
        expected_revision: 1,
    };
    let caller = Caller { principal: "organiser", privileged: false };
    apply(&mut world.state, &world.context, caller, &lower).unwrap().unwrap();
    world.state.commit();
    let caller = Caller { principal: "alice", privileged: false };
    let confirm = Command::ConfirmHold { event: "gala".into(), hold: "ga-h1".into() };
    apply(&mut world.state, &world.context, caller, &confirm).expect("no fault").unwrap();
    world.state.commit();
    let more = apply(&mut world.state, &world.context, caller, &buy("ga", 1, &[])).unwrap();
    assert_eq!(more.unwrap_err().reason(), "QUOTA_EXCEEDED");
}

#[test]
fn sales_happen_inside_their_window() {
    let mut world = World::new(9);
    let window = Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: None,
        opens_ms: Some(2_000),
        closes_ms: Some(3_000),
        tiers: None,
        expected_revision: 0,
    };
    world.ask("organiser", &window).unwrap();
    for (now, reason) in
        [(1_999, Some("SALE_NOT_OPEN")), (2_000, None), (2_999, None), (3_000, Some("SALE_CLOSED"))]
    {
        world.context.now_ms = now;
        assert_eq!(world.buy("alice", "ga", 1).err().map(|r| r.reason()), reason, "at {now}");
    }
}

#[test]
fn an_event_can_only_be_changed_by_its_organiser_and_within_reason() {
    let mut world = World::new(9);
    world.buy("alice", "ga", 5).unwrap();
    let update = |tiers: Option<Vec<TierSpec>>, expected_revision| Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: None,
        opens_ms: None,
        closes_ms: None,
        tiers,
        expected_revision,
    };
    let vip = || tier("vip", 6, &[("A", 4), ("B", 2)]);
    let mut reason = |who: &str, command: Command| world.ask(who, &command).err().map(|r| r.reason());
    assert_eq!(reason("alice", update(None, 0)), Some("NOT_OWNER"));
    assert_eq!(reason("organiser", update(None, 9)), Some("REVISION_MISMATCH"));
    assert_eq!(reason("organiser", update(Some(vec![tier("ga", 12, &[])]), 0)), Some("TIER_FIXED"));
    assert_eq!(
        reason("organiser", update(Some(vec![tier("ga", 4, &[]), vip()]), 0)),
        Some("CAPACITY_TOO_SMALL")
    );
    assert_eq!(
        reason("organiser", update(Some(vec![tier("ga", 5, &[]), vip(), tier("late", 3, &[])]), 1)),
        None
    );
    assert_eq!(world.buy("bob", "ga", 1).unwrap_err().reason(), "SOLD_OUT");
    world.buy("bob", "late", 3).unwrap();
}

#[test]
fn a_broken_invariant_is_a_fault_that_can_be_taken_back() {
    let mut world = World::new(9);
    // A stock row that lies about what is free: the purchase passes the decision and must fail the check.
    let mut stock = world.stock("ga");
    stock.free += 1;
    world.state.stock.set((1, 0), Some(stock));
    world.state.commit();
    let before = world.state.digest();
    let caller = Caller { principal: "alice", privileged: false };
    let fault = apply(&mut world.state, &world.context, caller, &buy("ga", 1, &[])).unwrap_err();
    assert!(fault.0.starts_with("T1"), "{fault}");
    world.state.rollback();
    assert_eq!(world.state.digest(), before);
}

#[test]
fn bad_fields_are_named() {
    let mut world = World::new(9);
    let mut field = |change: &dyn Fn(&mut Command)| {
        let mut command = create(3);
        if let Command::CreateEvent { event, .. } = &mut command {
            *event = "other".into();
        }
        change(&mut command);
        let Err(Rejection::Invalid { field, .. }) = world.ask("organiser", &command) else {
            panic!("accepted")
        };
        field
    };
    macro_rules! with {
        ($name:ident => $change:expr) => {
            field(&|c| {
                if let Command::CreateEvent { $name, .. } = c {
                    $change
                }
            })
        };
    }
    assert_eq!(with!(event => *event = "Gala".into()), "event_id");
    assert_eq!(with!(display_name => display_name.clear()), "event.display_name");
    assert_eq!(with!(quota => *quota = 0), "event.quota_per_buyer");
    assert_eq!(with!(tiers => tiers.clear()), "event.tiers");
    assert_eq!(with!(tiers => tiers[1].id = "ga".into()), "event.tiers[1].tier_id");
    assert_eq!(with!(tiers => tiers[0].capacity = 0), "event.tiers[0].capacity");
    assert_eq!(with!(tiers => tiers[1].capacity = 7), "event.tiers[1].seat_rows");
    assert_eq!(with!(tiers => tiers[0].currency = "euro".into()), "event.tiers[0].price.currency_code");
    assert_eq!(with!(tiers => tiers[0].currency.clear()), "event.tiers[0].price.currency_code");
    let row = |n| SeatRowSpec { label: format!("R{n}"), seats: 1 };
    let rows = |count: usize| (0..count).map(row).collect();
    assert_eq!(with!(tiers => tiers[1].seat_rows = rows(SEAT_ROWS_MAX + 1)), "event.tiers");
    assert_eq!(with!(tiers => tiers[1].seat_rows[1].label = "A".into()), "event.tiers[1].seat_rows");
}
