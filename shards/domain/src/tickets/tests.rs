//! Properties of the ticket module: whatever is asked in whatever order, the invariants hold over the whole
//! table, rejections change nothing, and the same commands give the same rows.
#![allow(clippy::unwrap_used)]

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

struct World {
    state: State,
    context: Context,
}

impl World {
    fn new(quota: u32) -> Self {
        let context = Context { now_ms: 1_000, request_id: 0, index: 1, position: 0 };
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
        answer
    }

    fn buy(&mut self, who: &str, tier: &str, quantity: u32) -> Result<Outcome, Rejection> {
        self.ask(who, &buy(tier, quantity, &[]))
    }

    fn stock(&self, tier: &str) -> StockRow {
        let event = self.state.event("gala").unwrap();
        self.state.tiers(event).find(|view| view.spec.id == tier).unwrap().stock
    }

    /// The invariants over everything, found by counting rows; shares no code with the checks in `commands`.
    fn check(&self) {
        let Some(event) = self.state.event("gala") else { return };
        let mut places: BTreeMap<String, u64> = BTreeMap::new();
        let mut seats = BTreeSet::new();
        for (no, view) in self.state.tiers(event).enumerate() {
            let tickets =
                self.state.tickets.iter().filter(|(key, row)| key.1 as usize == no && !row.cancelled);
            let holds = self.state.holds.iter().filter(|(key, _)| key.1 as usize == no);
            let (mut sold, mut held) = (0, 0);
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
                if hold.expires_ms > self.context.now_ms {
                    *places.entry(hold.owner.to_string()).or_default() += u64::from(hold.quantity);
                }
                for seat in &hold.seats {
                    assert!(seats.insert((no, *seat)), "seat {seat} has two holders");
                }
            }
            assert_eq!((view.stock.sold, view.stock.held), (sold, held));
            assert_eq!(view.stock.capacity, view.stock.free + sold + held);
            assert_eq!(view.spec.capacity, view.stock.capacity);
            for seat in 0..view.stock.seat_cursor {
                assert!(seats.contains(&(no, seat)), "seat {seat} below the cursor is free");
            }
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
    Sweep(usize),
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
        1 => Just(Step::Wait(SWEEP_GRACE_MS)),
        1 => (0..4usize).prop_map(Step::Sweep),
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
                        world.state.sold_out("gala", tier, *quantity, world.context.now_ms)
                    }
                    _ => QuickNo::AskTheLog,
                };
                let answer = world.ask(WHO[*who], command);
                assert!(
                    quick == QuickNo::AskTheLog || answer.is_err(),
                    "a quick no where the log said {answer:?} to {command:?}"
                );
            }
            Step::Wait(ms) => world.context.now_ms += ms,
            Step::Sweep(limit) => {
                sweep(&mut world.state, &world.context, *limit).unwrap();
                world.state.commit();
                world.check();
            }
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
fn a_due_hold_gives_way_to_a_purchase_before_any_sweep() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 12, &[], 50)).unwrap();
    assert_eq!(world.buy("bob", "ga", 1).unwrap_err().reason(), "SOLD_OUT");
    assert!(matches!(world.state.sold_out("gala", "ga", 1, 1_000), QuickNo::Certain(_)));
    world.context.now_ms += 50;
    assert_eq!(world.state.sold_out("gala", "ga", 1, 1_050), QuickNo::AskTheLog);
    world.buy("bob", "ga", 1).unwrap();
    assert_eq!((world.stock("ga").sold, world.stock("ga").free), (1, 11));
    let late = world.ask("alice", &Command::ConfirmHold { event: "gala".into(), hold: "ga-h1".into() });
    assert_eq!(late.unwrap_err().reason(), "HOLD_NOT_FOUND");
}

#[test]
fn a_hold_is_confirmed_only_in_time_and_by_its_owner() {
    let mut world = World::new(100);
    world.ask("alice", &hold("vip", 0, &["A-2", "B-1"], 50)).unwrap();
    let confirm = Command::ConfirmHold { event: "gala".into(), hold: "vip-h1".into() };
    assert_eq!(world.ask("bob", &confirm).unwrap_err().reason(), "NOT_OWNER");
    assert_eq!(world.ask("bob", &buy("vip", 0, &["A-2"])).unwrap_err().reason(), "SEAT_TAKEN");
    world.context.now_ms += 49;
    let Outcome::Purchased { seats, .. } = world.ask("alice", &confirm).unwrap() else { panic!() };
    assert_eq!(seats, vec![1, 4]);
    assert_eq!(world.ask("alice", &confirm).unwrap_err().reason(), "HOLD_NOT_FOUND");

    world.ask("alice", &hold("vip", 1, &[], 50)).unwrap();
    world.context.now_ms += 50;
    let late = Command::ConfirmHold { event: "gala".into(), hold: "vip-h2".into() };
    // Told why for a while, sweeps or not; then the hold is gone.
    sweep(&mut world.state, &world.context, 10).unwrap();
    assert_eq!(world.ask("alice", &late).unwrap_err().reason(), "HOLD_EXPIRED");
    world.context.now_ms += SWEEP_GRACE_MS;
    assert_eq!(sweep(&mut world.state, &world.context, 10), Ok(1));
    world.state.commit();
    world.check();
    assert_eq!(world.ask("alice", &late).unwrap_err().reason(), "HOLD_NOT_FOUND");
}

#[test]
fn a_quota_counts_holds_and_tickets_but_not_void_holds() {
    let mut world = World::new(3);
    world.buy("alice", "ga", 1).unwrap();
    world.ask("alice", &hold("ga", 2, &[], 50)).unwrap();
    let rejected = world.buy("alice", "ga", 1).unwrap_err();
    assert_eq!(rejected, Rejection::QuotaExceeded { quota: 3, have: 3, asked: 1 });
    world.context.now_ms += 50;
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
}
