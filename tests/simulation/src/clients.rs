//! A gateway's clients: where its clients ask and read, and where what they ask and are told is recorded.
//!
//! How they reach the groups, a [`Way`] says. **Never here:** what clients want.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use rand::Rng as _;
use rand::rngs::StdRng;
use tidewall_workloads::Book;

use crate::browser::Sessions;
use crate::buyer::Memory;
use crate::history::{Ask, Call, Cut, End, Freshness, History, Read, Saw, TicketSeen};
use crate::lines::Lines;
use crate::listener::Listener;
use crate::operator::TopologyFile;
use crate::oracle::Violation;
use crate::plan::Plan;
use crate::server::Servers;
use crate::trace::Trace;
use crate::way::{Request, Way};
use crate::world::{now_ms, now_us};

/// What the clients are to do, and what they report: shared with whoever runs the simulation.
#[derive(Default)]
pub struct Control {
    /// No new calls.
    pub stop: Cell<bool>,
    /// Calls that have not returned.
    pub open: Cell<usize>,
    /// The events exist.
    pub ready: Cell<bool>,
    /// Groups must show that they can decide.
    pub probe: Cell<bool>,
    /// Gateway and group of each probe that was answered.
    pub probed: RefCell<BTreeSet<(usize, u32)>>,
    /// Groups that have halted for good: nobody can read their end.
    pub halted: RefCell<BTreeSet<u32>>,
    /// Gather the end.
    pub finish: Cell<bool>,
    /// The end is gathered.
    pub finished: Cell<bool>,
    /// Gateway of each call that is under way, by its place in the history, and whether it goes through that.
    pub under_way: RefCell<BTreeMap<usize, (usize, bool)>>,
    /// What the clients of a gateway that has died do not know.
    pub orphans: RefCell<VecDeque<Orphan>>,
}

/// A request whose gateway has died: its client asks at another one what has become of it.
#[derive(Debug, Clone)]
pub struct Orphan {
    /// The gateway that has died.
    pub gateway: usize,
    /// It went through that: who repeats it otherwise asks for something else, by its fingerprint.
    pub through: bool,
    /// The group.
    pub group: u32,
    /// Who asked.
    pub principal: String,
    /// Its request id.
    pub request_id: u128,
    /// What was asked.
    pub ask: Ask,
}

/// Everything a gateway's clients share.
#[derive(Clone)]
pub struct Clients {
    /// Which gateway, from 1.
    pub number: usize,
    /// Which nodes there are.
    pub file: TopologyFile,
    /// The network.
    pub lines: Lines,
    /// What the seed means.
    pub plan: Rc<Plan>,
    /// What to do.
    pub control: Rc<Control>,
    /// What was asked and answered.
    pub history: Rc<RefCell<History>>,
    /// What its clients remember, whatever happens to the gateway.
    pub memories: Rc<Vec<RefCell<Memory>>>,
    /// Earlier states that groups were brought back to.
    pub cuts: Rc<RefCell<BTreeMap<u32, Vec<Cut>>>>,
    /// What visitors did, and found wrong.
    pub book: Rc<RefCell<Book>>,
    /// How often it was started.
    pub lives: Rc<Cell<u64>>,
    /// What those have heard who listen, whatever happens to the gateway.
    pub listeners: Rc<Vec<RefCell<Listener>>>,
    /// Those who browse, at whatever gateway.
    pub sessions: Rc<Sessions>,
    /// What webhooks call.
    pub servers: Servers,
    /// What must not have happened.
    pub violations: Rc<RefCell<Vec<Violation>>>,
    /// What happened.
    pub trace: Trace,
}

/// Counts a call as open while it lives.
pub struct Open(Rc<Control>);

impl Open {
    /// From now on.
    pub fn new(control: &Rc<Control>) -> Self {
        control.open.set(control.open.get() + 1);
        Self(Rc::clone(control))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// A new request id: a UUIDv7 of the present.
pub fn request_id(random: &mut StdRng) -> u128 {
    let chance: u128 = random.random::<u128>() & ((1 << 74) - 1);
    let (high, low) = (chance >> 62, chance & ((1 << 62) - 1));
    u128::from(now_ms()) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
}

impl Clients {
    /// Something has happened that must not.
    pub fn object(&self, check: &'static str, what: String) {
        self.trace.note(now_us(), "client", format_args!("VIOLATION {check}: {what}"));
        self.violations.borrow_mut().push(Violation { check, what });
    }

    /// Records that a command is asked; the result is its place in the history.
    fn begin(&self, way: &Way, request: Request<'_>, ask: &Ask, patience: Duration) -> usize {
        let Request { group, principal, id } = request;
        let invoked_us = now_us();
        let call = Call {
            group,
            principal: principal.to_owned(),
            request_id: id,
            ask: ask.clone(),
            invoked_us,
            expires_ms: way.expires_ms(patience),
            returned: None,
        };
        let at = {
            let mut history = self.history.borrow_mut();
            history.calls.push(call);
            history.calls.len() - 1
        };
        let through = matches!(way, Way::Api(_));
        self.control.under_way.borrow_mut().insert(at, (self.number, through));
        self.trace.note(invoked_us, principal, format_args!("#{at} group {group} {ask:?}"));
        at
    }

    /// Records how it ended.
    fn end(&self, at: usize, principal: &str, end: &End) {
        let returned_us = now_us();
        self.control.under_way.borrow_mut().remove(&at);
        self.trace.note(returned_us, principal, format_args!("#{at} {end:?}"));
        self.history.borrow_mut().calls[at].returned = Some((returned_us, end.clone()));
    }
}

/// Has a command decided and records it.
pub async fn ask(clients: &Clients, way: &Way, request: Request<'_>, ask: &Ask, patience: Duration) -> End {
    let _open = Open::new(&clients.control);
    let at = clients.begin(way, request, ask, patience);
    let end = way.ask(request, ask, patience).await;
    clients.end(at, request.principal, &end);
    end
}

/// Has a batch of sales decided, each under its own id, and records each.
pub async fn sell(
    clients: &Clients,
    way: &Way,
    (group, seller): (u32, &str),
    batch: &[(u128, Ask)],
    patience: Duration,
) {
    let _open = Open::new(&clients.control);
    let begin = |(id, ask): &(u128, Ask)| {
        clients.begin(way, Request { group, principal: seller, id: *id }, ask, patience)
    };
    let places: Vec<usize> = batch.iter().map(begin).collect();
    for (at, end) in places.into_iter().zip(way.sell(group, seller, batch, patience).await) {
        clients.end(at, seller, &end);
    }
}

/// Reads an event and records what was seen; `None` without an answer.
pub async fn read_event(
    clients: &Clients,
    way: &Way,
    group: u32,
    event: &str,
    patience: Duration,
) -> Option<Saw> {
    let invoked_us = now_us();
    let _open = Open::new(&clients.control);
    let tiers = way.tiers(group, event, patience).await?;
    let saw = Saw::Event { event: event.to_owned(), tiers };
    let returned_us = now_us();
    clients.trace.note(returned_us, "read", format_args!("group {group} since {invoked_us} {saw:?}"));
    let (freshness, session) = (Freshness::Latest, None);
    let entry = Read { group, invoked_us, returned_us, freshness, session, saw: saw.clone() };
    clients.history.borrow_mut().reads.push(entry);
    Some(saw)
}

/// Asks what was decided and records the answer; `None` without one.
pub async fn read_outcome(
    clients: &Clients,
    way: &Way,
    request: Request<'_>,
    patience: Duration,
) -> Option<Saw> {
    let invoked_us = now_us();
    let _open = Open::new(&clients.control);
    let told = way.outcome(request, patience).await?;
    let saw = Saw::Outcome { key: (request.principal.to_owned(), request.id), told };
    let (group, returned_us) = (request.group, now_us());
    let (freshness, session) = (Freshness::Latest, None);
    let entry = Read { group, invoked_us, returned_us, freshness, session, saw: saw.clone() };
    clients.history.borrow_mut().reads.push(entry);
    Some(saw)
}

/// Reads all tickets of an event; `None` without an answer.
pub async fn read_tickets(
    clients: &Clients,
    way: &Way,
    group: u32,
    event: &str,
    patience: Duration,
) -> Option<Vec<TicketSeen>> {
    let _open = Open::new(&clients.control);
    way.tickets(group, event, patience).await
}
