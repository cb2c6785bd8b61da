//! The running sale: calls at a constant rate, whether or not earlier ones were answered, over all regions. Most buy tickets
//! of hot events; the rest hold, confirm, release, cancel, read and ask for outcomes.
//!
//! Open loop: latency counts from the moment a call was due, so that what waits behind a fault is seen. It never decides
//! what an answer is worth; it records.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::client::Client;
use crate::history::{Answer, Ask, Micros, Op, Planned, Traffic, Yes};

/// How old what some read may be.
const AGE: Micros = 1_000_000;
/// Most calls in flight; beyond that arrivals wait, and the wait counts as latency.
const IN_FLIGHT_MAX: usize = 20_000;
/// Names remembered for later calls, of each kind and region.
const REMEMBERED_MAX: usize = 256;

/// Where calls of a run are recorded.
#[derive(Debug)]
pub struct Recorder {
    epoch: Instant,
    ops: Mutex<Vec<Op>>,
    acknowledged: AtomicU64,
    errors: AtomicU64,
    /// Regions' latest acknowledged write: when it ended, and the term of its receipt.
    newest: Mutex<BTreeMap<String, (Micros, u64)>>,
}

impl Default for Recorder {
    fn default() -> Self {
        Self {
            epoch: Instant::now(),
            ops: Mutex::default(),
            acknowledged: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            newest: Mutex::default(),
        }
    }
}

impl Recorder {
    /// Time since the run began.
    pub fn now(&self) -> Micros {
        Micros::try_from(self.epoch.elapsed().as_micros()).unwrap_or(Micros::MAX)
    }

    /// Records a call.
    pub fn add(&self, op: Op) {
        if op.is_acknowledged_write() {
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            if let (Some(receipt), false) = (op.answer.receipt(), op.again) {
                let mut newest = self.newest.lock();
                let entry = newest.entry(op.region.clone()).or_default();
                *entry = (entry.0.max(op.end), entry.1.max(receipt.term));
            }
        }
        if op.answer.is_error() && op.traffic != Traffic::Probe {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
        self.ops.lock().push(op);
    }

    /// Acknowledged writes so far.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Calls that ended with an error so far, a scenario's own apart.
    pub fn errors(&self) -> u64 {
        self.errors.load(Ordering::Relaxed)
    }

    /// When the region's latest acknowledged write ended, and the highest term of a receipt.
    pub fn newest(&self, region: &str) -> (Micros, u64) {
        self.newest.lock().get(region).copied().unwrap_or_default()
    }

    /// Takes all calls out.
    pub fn take(&self) -> Vec<Op> {
        std::mem::take(&mut self.ops.lock())
    }
}

/// What is known of a region's events and can be used by later calls.
#[derive(Debug, Default)]
struct Known {
    /// Holds with the position of their owner among the clients.
    holds: VecDeque<(String, u32, usize)>,
    tickets: VecDeque<(String, usize)>,
    requests: VecDeque<(Uuid, usize)>,
}

/// A region on sale.
#[derive(Debug)]
struct Lot {
    region: String,
    sale: String,
    mix: String,
    known: Mutex<Known>,
}

/// Load that runs until it is stopped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    driver: tokio::task::JoinHandle<()>,
}

impl Load {
    /// Starts to send `rate` calls a second in all.
    pub fn start(
        recorder: &Arc<Recorder>,
        clients: Vec<Client>,
        events: &[Planned],
        rate: f64,
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let event = |region: &str, traffic| {
            let found = events.iter().find(|event| event.region == region && event.traffic == traffic);
            found.map(|event| event.name.clone())
        };
        let mut regions: Vec<&str> = events.iter().map(|event| event.region.as_str()).collect();
        regions.dedup();
        let lots = regions
            .iter()
            .filter_map(|region| {
                Some(Lot {
                    region: (*region).to_owned(),
                    sale: event(region, Traffic::Sale)?,
                    mix: event(region, Traffic::Mix)?,
                    known: Mutex::default(),
                })
            })
            .collect();
        let shared = Arc::new(Shared { recorder: Arc::clone(recorder), clients, lots });
        let driver = tokio::spawn(drive(shared, Arc::clone(&stop), rate, seed));
        Self { stop, driver }
    }

    /// Sends nothing more, and waits for what is in flight.
    pub async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(error) = self.driver.await {
            tracing::error!("the load ended abnormally: {error}");
        }
    }
}

#[derive(Debug)]
struct Shared {
    recorder: Arc<Recorder>,
    clients: Vec<Client>,
    lots: Vec<Lot>,
}

async fn drive(shared: Arc<Shared>, stop: Arc<AtomicBool>, rate: f64, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut calls = JoinSet::new();
    let begun = shared.recorder.now();
    for number in 0_u64.. {
        let offset = Duration::try_from_secs_f64(number as f64 / rate).unwrap_or(Duration::MAX);
        let due = begun + Micros::try_from(offset.as_micros()).unwrap_or(Micros::MAX);
        let now = shared.recorder.now();
        if due > now {
            tokio::time::sleep(Duration::from_micros(due - now)).await;
        }
        if stop.load(Ordering::Relaxed) {
            break;
        }
        while calls.try_join_next().is_some() {}
        if calls.len() >= IN_FLIGHT_MAX {
            calls.join_next().await;
        }
        // The remainder fits: it comes from a length.
        let lot = (number % shared.lots.len().max(1) as u64) as usize;
        let (dice, who) = (rng.random_range(0..100_u32), rng.random_range(0..shared.clients.len()));
        let again = rng.random_ratio(1, 30);
        calls.spawn(one(Arc::clone(&shared), lot, dice, who, again, due, number));
    }
    while calls.join_next().await.is_some() {}
}

/// What the dice say, for a region with what is known of it.
fn choose(lot: &Lot, dice: u32, who: usize) -> (Traffic, Ask, usize) {
    let mut known = lot.known.lock();
    let buy = |tier: &str| Ask::Buy { event: lot.sale.clone(), tier: tier.to_owned(), quantity: 1 };
    let hold = || Ask::Hold { event: lot.mix.clone(), tier: "ga".to_owned(), quantity: 1 + dice % 3 };
    match dice {
        0..60 => (Traffic::Sale, buy("ga"), who),
        60..66 => (Traffic::Sale, buy("scarce"), who),
        66..74 => (Traffic::Mix, hold(), who),
        74..80 => match known.holds.pop_front() {
            Some((hold, quantity, owner)) => (Traffic::Mix, Ask::Confirm { hold, quantity }, owner),
            None => (Traffic::Mix, hold(), who),
        },
        80..83 => match known.holds.pop_front() {
            Some((hold, _, owner)) => (Traffic::Mix, Ask::Release { hold }, owner),
            None => (Traffic::Mix, hold(), who),
        },
        83..87 => match known.tickets.pop_front() {
            Some((ticket, owner)) => (Traffic::Mix, Ask::Cancel { ticket }, owner),
            None => (Traffic::Mix, hold(), who),
        },
        87..92 => (Traffic::Sale, Ask::Read { event: lot.sale.clone(), age: 0 }, who),
        92..96 => (Traffic::Sale, Ask::Read { event: lot.sale.clone(), age: AGE }, who),
        _ => match known.requests.pop_front() {
            Some((of, owner)) => (Traffic::Sale, Ask::Outcome { of }, owner),
            None => (Traffic::Sale, Ask::Read { event: lot.sale.clone(), age: 0 }, who),
        },
    }
}

async fn one(shared: Arc<Shared>, lot: usize, dice: u32, who: usize, again: bool, due: Micros, slot: u64) {
    let lot = &shared.lots[lot];
    let (traffic, ask, who) = choose(lot, dice, who);
    let client = &shared.clients[who];
    let request_id = ask.is_write().then(Uuid::now_v7);
    let first =
        call(&shared.recorder, client, &lot.region, traffic, &ask, request_id, due, false, slot).await;
    remember(lot, &ask, request_id, who, &first);
    // Now and then a client that has its answer sends the same request once more.
    if again && ask.is_write() && matches!(first, Answer::Yes { .. }) {
        let due = shared.recorder.now();
        call(&shared.recorder, client, &lot.region, traffic, &ask, request_id, due, true, slot).await;
    }
}

/// Makes one call and records it.
#[allow(clippy::too_many_arguments)]
pub async fn call(
    recorder: &Recorder,
    client: &Client,
    region: &str,
    traffic: Traffic,
    ask: &Ask,
    request_id: Option<Uuid>,
    due: Micros,
    again: bool,
    slot: u64,
) -> Answer {
    let start = recorder.now();
    let (answer, resent) = client.call_counted(ask, request_id, region, slot).await;
    recorder.add(Op {
        region: region.to_owned(),
        traffic,
        ask: ask.clone(),
        request_id,
        subject: client.subject().to_owned(),
        due,
        start,
        end: recorder.now(),
        again,
        resent,
        answer: answer.clone(),
    });
    answer
}

/// Keeps names for later calls.
fn remember(lot: &Lot, ask: &Ask, request_id: Option<Uuid>, who: usize, answer: &Answer) {
    let mut known = lot.known.lock();
    if let (Answer::Yes { what, .. }, Some(id)) = (answer, request_id) {
        if known.requests.len() < REMEMBERED_MAX {
            known.requests.push_back((id, who));
        }
        match (ask, what) {
            (Ask::Hold { quantity, .. }, Yes::Hold(hold)) if known.holds.len() < REMEMBERED_MAX => {
                known.holds.push_back((hold.clone(), *quantity, who));
            }
            (Ask::Confirm { .. }, Yes::Tickets(tickets)) if known.tickets.len() < REMEMBERED_MAX => {
                known.tickets.extend(tickets.iter().map(|ticket| (ticket.clone(), who)));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lot() -> Lot {
        Lot { region: "r".into(), sale: "sale".into(), mix: "mix".into(), known: Mutex::default() }
    }

    #[test]
    fn what_is_not_there_yet_is_made_first() {
        for dice in [75, 81, 84] {
            let (traffic, ask, who) = choose(&lot(), dice, 5);
            assert_eq!((traffic, who), (Traffic::Mix, 5));
            assert!(matches!(ask, Ask::Hold { .. }), "{ask:?}");
        }
    }

    #[test]
    fn a_hold_is_confirmed_by_its_owner_and_only_once() {
        let lot = lot();
        let hold = Answer::Yes { what: Yes::Hold("h1".into()), receipt: None };
        let ask = Ask::Hold { event: "mix".into(), tier: "ga".into(), quantity: 2 };
        remember(&lot, &ask, Some(Uuid::nil()), 7, &hold);
        let (_, ask, who) = choose(&lot, 75, 3);
        assert_eq!((ask, who), (Ask::Confirm { hold: "h1".into(), quantity: 2 }, 7));
        assert!(matches!(choose(&lot, 75, 3).1, Ask::Hold { .. }));
    }
}
