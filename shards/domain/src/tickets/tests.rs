//! Properties of the ticket module: whatever is asked in whatever order, the invariants hold over the whole
//! table, rejections change nothing, and the same commands give the same rows.
#![allow(clippy::unwrap_used)]

mod bounds;
mod cost;
mod events;
mod holds;
mod words;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use tidewall_messages::tickets::command::Op;
use tidewall_messages::tickets::outcome::Result as Done;
use tidewall_messages::tickets::{
    Buy, CancelTicket, Command, ConfirmHold, CreateEvent, DeleteEvent, GetHold, Hold, HoldView, ListHolds,
    PurchaseView, ReleaseHold, SearchTickets, UpdateEvent, answer,
};

use super::commands::*;
use super::model::*;
use super::queries;
use crate::module::{AnyModule, Module, Reason as _, apply, fire_next};
use crate::{Caller, Context, Now, Roles};

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

fn created(event: &str, display_name: &str, quota: u32, tiers: Vec<TierSpec>) -> CreateEvent {
    CreateEvent {
        event_id: event.into(),
        display_name: display_name.into(),
        quota_per_buyer: quota,
        sale_opens_at_ms: 0,
        sale_closes_at_ms: 0,
        tiers: tiers.iter().map(Into::into).collect(),
    }
}

fn gala(quota: u32) -> CreateEvent {
    created("gala", "Gala", quota, vec![tier("ga", 12, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])])
}

fn create(quota: u32) -> Command {
    gala(quota).into()
}

/// The same event under another id.
fn create_as(event: &str) -> Command {
    CreateEvent { event_id: event.into(), ..gala(9) }.into()
}

/// What changes about the event; `None` leaves a field as it is.
#[derive(Default)]
struct Change {
    display_name: Option<String>,
    quota: Option<u32>,
    opens_ms: Option<u64>,
    closes_ms: Option<u64>,
    tiers: Option<Vec<TierSpec>>,
    expected_revision: u64,
}

fn change(change: Change) -> Command {
    UpdateEvent {
        event_id: "gala".into(),
        display_name: change.display_name,
        quota_per_buyer: change.quota,
        sale_opens_at_ms: change.opens_ms,
        sale_closes_at_ms: change.closes_ms,
        set_tiers: change.tiers.is_some(),
        tiers: change.tiers.iter().flatten().map(Into::into).collect(),
        expected_revision: change.expected_revision,
    }
    .into()
}

fn confirm(hold: impl Into<String>) -> Command {
    ConfirmHold { event_id: "gala".into(), hold_id: hold.into() }.into()
}

fn release(hold: impl Into<String>) -> Command {
    ReleaseHold { event_id: "gala".into(), hold_id: hold.into() }.into()
}

fn cancel(ticket: impl Into<String>) -> Command {
    CancelTicket { event_id: "gala".into(), ticket_id: ticket.into() }.into()
}

/// The rows as everybody but their module sees them.
fn all(state: &State) -> &dyn AnyModule {
    state
}

fn caller(principal: &str) -> Caller<'_> {
    Caller { principal, roles: Roles::NONE, on_behalf_of: None }
}

/// Log time and steady time differ, so that who takes one for the other is found out.
const STEADY_AHEAD_MS: u64 = 777_000;

fn context(now_ms: u64) -> Context {
    let steady_ms = now_ms + STEADY_AHEAD_MS;
    Context { now_ms, steady_ms, incarnation: 1, request_id: 0, index: 1, position: 0, apply_version: 1 }
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

    fn ask(&mut self, principal: &str, command: &Command) -> Result<Done, Rejection> {
        self.context.index += 1;
        self.context.request_id += 1;
        let before = all(&self.state).digest();
        let caller = caller(principal);
        let answer = apply(&mut self.state, &self.context, caller, command).expect("no invariant breaks");
        if answer.is_err() {
            assert_eq!(all(&self.state).digest(), before, "a rejection changed something: {command:?}");
        }
        self.check();
        answer.map(|outcome| outcome.result.expect("an outcome says something"))
    }

    /// Whether a purchase would be refused at once.
    fn quick_no(&self, command: &Command) -> bool {
        let Context { now_ms: log_ms, steady_ms, .. } = self.context;
        Module::quick_no(&self.state, Now { log_ms, steady_ms }, command).is_some()
    }

    fn wait(&mut self, ms: u64) {
        self.context.now_ms += ms;
        self.context.steady_ms += ms;
    }

    /// Fires what is due, this many timers at most.
    fn fire(&mut self, limit: usize) -> usize {
        for fired in 0..limit {
            let Some(timer) = fire_next(&mut self.state, &self.context) else { return fired };
            assert!(timer.fault.is_none() && timer.rows > 0, "{timer:?}");
            self.check();
        }
        limit
    }

    fn buy(&mut self, who: &str, tier: &str, quantity: u32) -> Result<Done, Rejection> {
        self.ask(who, &buy(tier, quantity, &[]))
    }

    fn stock(&self, tier: &str) -> StockRow {
        let event = self.state.event("gala").unwrap();
        let at = event.tiers.iter().position(|spec| spec.id == tier).unwrap();
        self.state.stock_of(event).nth(at).unwrap()
    }

    /// The seats that a purchase must get that names none: the lowest that nobody has, when no hold is due.
    fn lowest(&self, command: &Command) -> Option<Vec<String>> {
        let Some(Op::Buy(Buy { tier_id: tier, quantity, seats, .. })) = &command.op else { return None };
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
    Buy { event_id: "gala".into(), tier_id: tier.into(), quantity, seats, buyer: String::new() }.into()
}

fn hold(tier: &str, quantity: u32, seats: &[&str], ttl_ms: u32) -> Command {
    let seats = seats.iter().map(|s| (*s).into()).collect();
    Hold { event_id: "gala".into(), tier_id: tier.into(), quantity, seats, ttl_ms }.into()
}

/// Number of a hold by its id.
fn hold_number(id: &str) -> u64 {
    id.rsplit_once("-h").unwrap().1.parse().unwrap()
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
        2 => id.clone().prop_map(confirm),
        1 => id.clone().prop_map(release),
        2 => id.prop_map(cancel),
        1 => (10..16u64).prop_map(|capacity| change(Change { tiers: Some(vec![tier("ga", capacity, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])]), ..Change::default() })),
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
                let quick = world.quick_no(command);
                let lowest = world.lowest(command);
                let answer = world.ask(WHO[*who], command);
                if let (Ok(Done::Purchase(PurchaseView { seats, .. })), Some(lowest)) = (&answer, lowest) {
                    assert_eq!(*seats, lowest, "not the lowest free seats");
                }
                assert!(!quick || answer.is_err(), "a quick no where the log said {answer:?} to {command:?}");
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
        prop_assert_eq!(all(&first.state).digest(), all(&run(&steps).state).digest());
        // The pages hold everything: rebuilt from them, the state is the same.
        let mut pages = Vec::new();
        all(&first.state).freeze_all(&mut pages);
        let mut rebuilt = State::default();
        for page in &pages {
            Module::tables_mut(&mut rebuilt, &mut |table| {
                if table.id() == page.table() {
                    table.load(&page.encode().unwrap()).unwrap();
                }
            });
        }
        prop_assert_eq!(all(&rebuilt).digest(), all(&first.state).digest());
        prop_assert_eq!(rebuilt.tickets.derived(), first.state.tickets.derived());
        prop_assert_eq!(rebuilt.holds.derived(), first.state.holds.derived());
        prop_assert_eq!(rebuilt.seats.derived(), first.state.seats.derived());
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
    world.ask("alice", &cancel("ga-3")).unwrap();
    let Done::Purchase(PurchaseView { first_number: first, count, .. }) = world.buy("bob", "ga", 1).unwrap()
    else {
        panic!()
    };
    assert_eq!((first, count), (13, 1));
    let again = world.ask("alice", &cancel("ga-3"));
    assert_eq!(again, Err(Rejection::TicketCancelled("ga-3".into())));
    let not_mine = world.ask("alice", &cancel("ga-13"));
    assert_eq!(not_mine.unwrap_err().reason(), "NOT_OWNER");
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
fn a_broken_invariant_is_a_fault_that_can_be_taken_back() {
    let mut world = World::new(9);
    // A stock row that lies about what is free: the purchase passes the decision and must fail the check.
    let mut stock = world.stock("ga");
    stock.free += 1;
    world.state.stock.set((1, 0), Some(stock));
    world.state.stock.commit();
    let before = all(&world.state).digest();
    let caller = caller("alice");
    let fault = apply(&mut world.state, &world.context, caller, &buy("ga", 1, &[])).unwrap_err();
    assert!(fault.0.starts_with("T1"), "{fault}");
    assert_eq!(all(&world.state).digest(), before);
}
