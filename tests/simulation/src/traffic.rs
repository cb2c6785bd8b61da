//! The clients of a gateway: a flash sale with everything that goes with it, recorded as it is asked and answered.
//!
//! They use the client of the shards as a gateway does. Request ids are remembered before they are sent, some requests
//! are repeated on purpose.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tidewall_client::{ClientError, ShardClient, ShardClientOptions, Topology};
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, sleep};

use crate::convert;
use crate::history::{Ask, Call, End, History, Read, Said, Saw};
use crate::plan::Plan;
use crate::trace::Trace;
use crate::world::{now_ms, now_us};

/// Events of each group.
pub const EVENTS: [&str; 2] = ["sale-a", "sale-b"];
/// Who makes the events.
const ORGANISER: &str = "organiser";
/// Rows of five seats in the numbered tier.
pub const SEAT_ROWS: [&str; 4] = ["A", "B", "C", "D"];

/// What the clients are to do, and what they report: shared with whoever runs the simulation.
#[derive(Default)]
pub struct Control {
    /// No new calls.
    pub stop: Cell<bool>,
    /// Calls that have not returned.
    pub open: Cell<usize>,
    /// The events exist.
    pub ready: Cell<bool>,
    /// Groups that must show that they can decide.
    pub probe: Cell<bool>,
    /// Probes that were answered, of [`Control::probes_wanted`].
    pub probes: Cell<usize>,
    /// Gather the end.
    pub finish: Cell<bool>,
    /// The end is gathered.
    pub finished: Cell<bool>,
}

/// Everything a gateway's clients share.
#[derive(Clone)]
pub struct Desk {
    /// Which gateway, from 1.
    pub number: usize,
    /// The cluster.
    pub topology: Arc<Topology>,
    /// What the seed means.
    pub plan: Rc<Plan>,
    /// What to do.
    pub control: Rc<Control>,
    /// What was asked and answered.
    pub history: Rc<RefCell<History>>,
    /// What happened.
    pub trace: Trace,
}

/// Counts a call as open while it lives.
struct Open<'a>(&'a Control);

impl<'a> Open<'a> {
    fn new(control: &'a Control) -> Self {
        control.open.set(control.open.get() + 1);
        Self(control)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get() - 1);
    }
}

/// The software of a gateway's host.
pub async fn live(desk: Desk) -> turmoil::Result {
    // The host's clock runs only within a step of the simulation.
    sleep(Duration::from_millis(1)).await;
    let shards = Rc::new(ShardClient::new(Arc::clone(&desk.topology), ShardClientOptions::default()));
    if desk.number == 1 {
        tokio::task::spawn_local(prepare(desk.clone(), Rc::clone(&shards)));
        tokio::task::spawn_local(finish(desk.clone(), Rc::clone(&shards)));
    }
    tokio::task::spawn_local(probe(desk.clone(), Rc::clone(&shards)));
    tokio::task::spawn_local(watch(desk.clone(), Rc::clone(&shards)));
    for number in 0..desk.plan.clients {
        let random =
            StdRng::seed_from_u64(desk.plan.seed.wrapping_mul(31) + (desk.number * 100 + number) as u64);
        let client = Client {
            desk: desk.clone(),
            shards: Rc::clone(&shards),
            name: format!("g{}-c{number}", desk.number),
            random,
            holds: Vec::new(),
            tickets: Vec::new(),
            asked: Vec::new(),
        };
        tokio::task::spawn_local(client.live());
    }
    std::future::pending().await
}

/// A new request id: a UUIDv7 of the present.
fn request_id(random: &mut StdRng) -> u128 {
    let chance: u128 = random.random::<u128>() & ((1 << 74) - 1);
    let (high, low) = (chance >> 62, chance & ((1 << 62) - 1));
    u128::from(now_ms()) << 80 | 0x7 << 76 | high << 64 | 0b10 << 62 | low
}

/// Has a command decided and records it.
async fn ask(
    desk: &Desk,
    shards: &ShardClient,
    principal: &str,
    group: u32,
    request_id: u128,
    ask: &Ask,
    patience: Duration,
) -> Option<End> {
    let _open = Open::new(&desk.control);
    let invoked_us = now_us();
    let call = Call {
        group,
        principal: principal.to_owned(),
        request_id,
        ask: ask.clone(),
        invoked_us,
        returned: None,
    };
    let at = {
        let mut history = desk.history.borrow_mut();
        history.calls.push(call);
        history.calls.len() - 1
    };
    let expires_ms = now_ms() + patience.as_millis() as u64;
    let command = convert::command(principal, request_id, expires_ms, ask);
    desk.trace.note(invoked_us, principal, format_args!("#{at} group {group} {ask:?}"));
    let answer = shards.command(group, command, Instant::now() + patience).await;
    let end = match answer {
        Ok(outcome) => End::Told(convert::told(&outcome)),
        Err(ClientError::Unknown { .. }) => End::Unknown,
        Err(ClientError::Unavailable { .. } | ClientError::Overloaded { .. } | ClientError::Invalid(_)) => {
            End::NotDecided
        }
    };
    let returned_us = now_us();
    desk.trace.note(returned_us, principal, format_args!("#{at} {end:?}"));
    desk.history.borrow_mut().calls[at].returned = Some((returned_us, end.clone()));
    Some(end)
}

/// Reads and records it; `None` without an answer.
async fn read(
    desk: &Desk,
    shards: &ShardClient,
    group: u32,
    query: pb::query::Op,
    patience: Duration,
) -> Option<pb::query_result::Result> {
    let _open = Open::new(&desk.control);
    let query = pb::Query { op: Some(query) };
    shards.query(group, query, Instant::now() + patience).await.ok()?.result
}

async fn read_event(
    desk: &Desk,
    shards: &ShardClient,
    group: u32,
    event: &str,
    patience: Duration,
) -> Option<Saw> {
    let invoked_us = now_us();
    let query = pb::query::Op::GetEvent(pb::GetEvent { event_id: event.to_owned() });
    let result = read(desk, shards, group, query, patience).await?;
    let saw = Saw::Event { event: event.to_owned(), tiers: convert::tiers(&result) };
    let returned_us = now_us();
    desk.trace.note(returned_us, "read", format_args!("group {group} since {invoked_us} {saw:?}"));
    let entry = Read { group, invoked_us, returned_us, saw: saw.clone() };
    desk.history.borrow_mut().reads.push(entry);
    Some(saw)
}

async fn read_outcome(
    desk: &Desk,
    shards: &ShardClient,
    group: u32,
    principal: &str,
    id: u128,
    patience: Duration,
) -> Option<Saw> {
    let invoked_us = now_us();
    let query = pb::query::Op::GetOutcome(pb::GetOutcome {
        principal: principal.to_owned(),
        request_id: id.to_be_bytes().to_vec(),
    });
    let result = read(desk, shards, group, query, patience).await?;
    let key = (principal.to_owned(), id);
    let saw = Saw::Outcome { key, told: convert::remembered(&result) };
    let entry = Read { group, invoked_us, returned_us: now_us(), saw: saw.clone() };
    desk.history.borrow_mut().reads.push(entry);
    Some(saw)
}

/// Makes the events.
async fn prepare(desk: Desk, shards: Rc<ShardClient>) {
    let mut random = StdRng::seed_from_u64(desk.plan.seed ^ 0x65_7665_6e74);
    for group in 1..=desk.plan.regions {
        for event in EVENTS {
            let create = Ask::Create {
                event: event.to_owned(),
                quota: random.random_range(4..=40),
                tiers: vec![
                    ("ga".to_owned(), random.random_range(10..=90), false),
                    ("seat".to_owned(), SEAT_ROWS.len() as u64 * 5, true),
                ],
            };
            let id = request_id(&mut random);
            let patience = Duration::from_secs(5);
            while !matches!(
                ask(&desk, &shards, ORGANISER, group, id, &create, patience).await,
                Some(End::Told(_))
            ) {}
        }
    }
    desk.control.ready.set(true);
}

/// Shows that every group decides again, seen from this gateway.
async fn probe(desk: Desk, shards: Rc<ShardClient>) {
    while !desk.control.probe.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let mut random = StdRng::seed_from_u64(desk.plan.seed ^ 0x70_726f_6265 ^ desk.number as u64);
    for group in 1..=desk.plan.regions {
        let cancel = Ask::Cancel { event: EVENTS[0].to_owned(), ticket: "ga-999999".to_owned() };
        let (name, patience) = (format!("g{}-probe", desk.number), Duration::from_secs(5));
        loop {
            let id = request_id(&mut random);
            if let Some(End::Told(_)) = ask(&desk, &shards, &name, group, id, &cancel, patience).await {
                break;
            }
        }
        while read_event(&desk, &shards, group, EVENTS[0], patience).await.is_none() {}
        desk.control.probes.set(desk.control.probes.get() + 1);
    }
}

/// Somebody who only looks, all the time: the one who would notice that a lead was lost and reads go on.
async fn watch(desk: Desk, shards: Rc<ShardClient>) {
    let mut random = StdRng::seed_from_u64(desk.plan.seed ^ 0x77_6174_6368 ^ desk.number as u64);
    while !desk.control.stop.get() {
        sleep(Duration::from_millis(random.random_range(5..=60))).await;
        if desk.control.ready.get() {
            let group = random.random_range(1..=desk.plan.regions);
            let event = EVENTS.choose(&mut random).unwrap_or(&EVENTS[0]);
            read_event(&desk, &shards, group, event, Duration::from_millis(400)).await;
        }
    }
}

/// Gathers the end, when nothing else is under way any more.
async fn finish(desk: Desk, shards: Rc<ShardClient>) {
    while !desk.control.finish.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let patience = Duration::from_secs(5);
    let mut keys: Vec<(u32, String, u128)> = {
        let history = desk.history.borrow();
        history.calls.iter().map(|call| (call.group, call.principal.clone(), call.request_id)).collect()
    };
    keys.sort();
    keys.dedup();
    // A batch at a time: each read costs a round trip.
    for batch in keys.chunks(64) {
        let reads = batch.iter().map(|(group, principal, id)| {
            let (desk, shards) = (&desk, &shards);
            async move {
                loop {
                    let saw = read_outcome(desk, shards, *group, principal, *id, patience).await;
                    if let Some(Saw::Outcome { key, told }) = saw {
                        break ((*group, key), told);
                    }
                }
            }
        });
        let found = futures_util::future::join_all(reads).await;
        desk.history.borrow_mut().at_end.outcomes.extend(found);
    }
    for group in 1..=desk.plan.regions {
        for event in EVENTS {
            let tiers = loop {
                if let Some(Saw::Event { tiers, .. }) =
                    read_event(&desk, &shards, group, event, patience).await
                {
                    break tiers;
                }
            };
            let tickets = loop {
                let query = pb::query::Op::ListTickets(pb::ListTickets {
                    event_id: event.to_owned(),
                    limit: 5_000,
                    ..pb::ListTickets::default()
                });
                if let Some(result) = read(&desk, &shards, group, query, patience).await {
                    break convert::tickets(&result);
                }
            };
            let mut history = desk.history.borrow_mut();
            history.at_end.events.insert((group, event.to_owned()), tiers);
            history.at_end.tickets.insert((group, event.to_owned()), tickets);
        }
    }
    desk.control.finished.set(true);
}

/// One buyer.
struct Client {
    desk: Desk,
    shards: Rc<ShardClient>,
    name: String,
    random: StdRng,
    /// Group, event, hold.
    holds: Vec<(u32, String, String)>,
    /// Group, event, ticket.
    tickets: Vec<(u32, String, String)>,
    /// Requests made lately.
    asked: Vec<(u32, u128, Ask)>,
}

impl Client {
    async fn live(mut self) {
        while !self.desk.control.ready.get() {
            sleep(Duration::from_millis(10)).await;
        }
        loop {
            sleep(Duration::from_micros(self.random.random_range(0..=self.desk.plan.pause_ms * 1_000))).await;
            if self.desk.control.stop.get() {
                return;
            }
            self.act().await;
        }
    }

    async fn act(&mut self) {
        let group = self.random.random_range(1..=self.desk.plan.regions);
        let event = (*EVENTS.choose(&mut self.random).unwrap_or(&EVENTS[0])).to_owned();
        let tier = if self.random.random_bool(0.7) { "ga" } else { "seat" }.to_owned();
        let quantity = self.random.random_range(1..=3);
        match self.random.random_range(0..100) {
            0..45 => {
                let seats = if tier == "seat" && self.random.random_bool(0.3) {
                    let row = SEAT_ROWS.choose(&mut self.random).unwrap_or(&SEAT_ROWS[0]);
                    vec![format!("{row}-{}", self.random.random_range(1..=5))]
                } else {
                    Vec::new()
                };
                let quantity = if seats.is_empty() { quantity } else { 1 };
                self.ask_new(group, Ask::Buy { event, tier, quantity, seats }).await;
            }
            45..62 => {
                let ttl_ms = self.random.random_range(100..=4_000);
                self.ask_new(group, Ask::Hold { event, tier, quantity, ttl_ms }).await;
            }
            62..72 => {
                if let Some((group, event, hold)) = self.pick(|client| &mut client.holds) {
                    self.ask_new(group, Ask::Confirm { event, hold }).await;
                }
            }
            72..77 => {
                if let Some((group, event, hold)) = self.pick(|client| &mut client.holds) {
                    self.ask_new(group, Ask::Release { event, hold }).await;
                }
            }
            77..87 => {
                if let Some((group, event, ticket)) = self.pick(|client| &mut client.tickets) {
                    self.ask_new(group, Ask::Cancel { event, ticket }).await;
                }
            }
            87..93 => {
                let patience = Duration::from_secs(3);
                read_event(&self.desk, &self.shards, group, &event, patience).await;
            }
            93..96 => {
                if let Some((group, id, _)) = self.asked.choose(&mut self.random).cloned() {
                    let patience = Duration::from_secs(3);
                    read_outcome(&self.desk, &self.shards, group, &self.name, id, patience).await;
                }
            }
            _ => {
                if let Some((group, id, again)) = self.asked.choose(&mut self.random).cloned() {
                    self.ask(group, id, again).await;
                }
            }
        }
    }

    fn pick<T>(&mut self, from: impl Fn(&mut Self) -> &mut Vec<T>) -> Option<T> {
        let count = from(self).len();
        let at = (count > 0).then(|| self.random.random_range(0..count))?;
        Some(from(self).swap_remove(at))
    }

    async fn ask_new(&mut self, group: u32, what: Ask) {
        let id = request_id(&mut self.random);
        if self.asked.len() >= 24 {
            self.asked.remove(0);
        }
        self.asked.push((group, id, what.clone()));
        self.ask(group, id, what).await;
    }

    async fn ask(&mut self, group: u32, id: u128, what: Ask) {
        let patience = Duration::from_millis(self.random.random_range(1_500..=8_000));
        let end = ask(&self.desk, &self.shards, &self.name, group, id, &what, patience).await;
        let Some(End::Told(told)) = end else { return };
        let event = match &what {
            Ask::Create { event, .. }
            | Ask::Buy { event, .. }
            | Ask::Hold { event, .. }
            | Ask::Confirm { event, .. }
            | Ask::Release { event, .. }
            | Ask::Cancel { event, .. } => event.clone(),
        };
        match told.said {
            Said::Held { hold, .. } => self.holds.push((group, event, hold)),
            Said::Sold { tier, first, count, .. } => {
                for number in first..first + u64::from(count) {
                    self.tickets.push((group, event.clone(), format!("{tier}-{number}")));
                }
            }
            _ => {}
        }
    }
}
