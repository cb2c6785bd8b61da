//! A few clients that take turns on a small stock, one call at a time each, so that a search can tell whether the whole
//! history has an order in which it makes sense. Every now and then they move to a fresh event, because the search takes
//! more time the longer a history is.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::check::register::CAPACITY;
use crate::client::Client;
use crate::history::{Answer, Ask, Micros, Planned, Traffic, Yes};
use crate::load::{Recorder, call};
use crate::prepare;

/// Clients on one stock: the search has to try the orders of what they do at the same time.
const CLIENTS: u32 = 4;
/// How long they stay with one event.
const STAY: Micros = 40_000_000;
/// Mean pause between two calls of a client.
const PAUSE_MS: u64 = 120;

/// Traffic on small stocks that runs until it is stopped.
#[derive(Debug)]
pub struct Register {
    stop: Arc<AtomicBool>,
    clients: JoinSet<()>,
    made: Arc<Mutex<Vec<Planned>>>,
}

impl Register {
    /// Starts in these regions. `organiser` makes the events; clients act as `subjects`, in turn.
    pub fn start(
        recorder: &Arc<Recorder>,
        organiser: &Client,
        subjects: &[Client],
        regions: &[String],
        seed: u64,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let made = Arc::new(Mutex::new(Vec::new()));
        let mut clients = JoinSet::new();
        for (number, region) in (0_u64..).zip(regions) {
            let region = Region {
                recorder: Arc::clone(recorder),
                organiser: organiser.clone(),
                subjects: subjects.to_vec(),
                region: region.clone(),
                stop: Arc::clone(&stop),
                made: Arc::clone(&made),
            };
            clients.spawn(region.run(seed.wrapping_add(number)));
        }
        Self { stop, clients, made }
    }

    /// Sends nothing more, waits for what is in flight, and returns the events that were used.
    pub async fn stop(mut self) -> Vec<Planned> {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        std::mem::take(&mut self.made.lock())
    }
}

struct Region {
    recorder: Arc<Recorder>,
    organiser: Client,
    subjects: Vec<Client>,
    region: String,
    stop: Arc<AtomicBool>,
    made: Arc<Mutex<Vec<Planned>>>,
}

impl Region {
    async fn run(self, seed: u64) {
        let this = Arc::new(self);
        let mut generation = 0_u64;
        while !this.stop.load(Ordering::Relaxed) {
            let tiers = vec![("few".to_owned(), CAPACITY)];
            let made =
                prepare::create_event(&this.organiser, &this.region, Traffic::Register(0), tiers).await;
            let event = match made {
                Ok(event) => event,
                Err(error) => {
                    // A region that is down takes no events; the next attempt may do better.
                    tracing::debug!("no event for the register of {}: {error}", this.region);
                    continue;
                }
            };
            this.made.lock().push(event.clone());
            let until = this.recorder.now() + STAY;
            let mut clients = JoinSet::new();
            for client in 0..CLIENTS {
                let seed = seed ^ (generation << 16) ^ (u64::from(client) << 8);
                clients.spawn(Arc::clone(&this).client(event.name.clone(), client, until, seed));
            }
            while clients.join_next().await.is_some() {}
            generation += 1;
        }
    }

    async fn client(self: Arc<Self>, event: String, number: u32, until: Micros, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut identity = number;
        let mut own: Vec<String> = Vec::new();
        // The remainder is smaller than a length.
        let client = &self.subjects[number as usize % self.subjects.len()];
        while !self.stop.load(Ordering::Relaxed) && self.recorder.now() < until {
            let ask = match rng.random_range(0..4_u32) {
                0 => Ask::Read { event: event.clone(), age: 0 },
                1 if !own.is_empty() => Ask::Cancel { ticket: own.remove(0) },
                _ => Ask::Buy { event: event.clone(), tier: "few".to_owned(), quantity: 1 },
            };
            let request_id = ask.is_write().then(Uuid::now_v7);
            let (due, traffic) = (self.recorder.now(), Traffic::Register(identity));
            let slot = rng.random();
            let answer =
                call(&self.recorder, client, &self.region, traffic, &ask, request_id, due, false, slot).await;
            match answer {
                Answer::Yes { what: Yes::Tickets(tickets), .. } => own.extend(tickets),
                // The call may still be under way: somebody else goes on in its client's place.
                Answer::Unknown(_) => identity += CLIENTS,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(rng.random_range(PAUSE_MS / 2..PAUSE_MS * 3 / 2))).await;
        }
    }
}
