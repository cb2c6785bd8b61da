//! A buyer: holds, buys, confirms, gives back, looks, and repeats itself, at one gateway.
//!
//! Request ids are remembered before they are sent, some requests are repeated on purpose. What a buyer remembers outlives
//! the gateway.

use std::cell::RefMut;
use std::collections::BTreeMap;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use tokio::time::sleep;

use crate::clients::{Clients, ask, read_event, read_outcome, request_id, sell};
use crate::history::{Ask, End, Said};
use crate::traffic::{EVENTS, SEAT_ROWS, SELLER};
use crate::way::{Request, Way};

/// What a buyer remembers.
#[derive(Default)]
pub struct Memory {
    /// Group, event, hold.
    holds: Vec<(u32, String, String)>,
    /// Group, event, ticket.
    tickets: Vec<(u32, String, String)>,
    /// Requests made lately.
    asked: Vec<(u32, u128, Ask)>,
    /// The batch of sales that was sent last, and to which group.
    batch: Option<(u32, Vec<(u128, Ask)>)>,
    /// How often each group was brought back to an earlier state, as far as is known.
    cuts: BTreeMap<u32, usize>,
}

/// One buyer, for as long as its gateway lives.
pub struct Buyer {
    clients: Clients,
    way: Way,
    number: usize,
    name: String,
    random: StdRng,
}

impl Buyer {
    /// The buyer of this number at a gateway.
    pub fn new(clients: Clients, way: Way, number: usize) -> Self {
        let salt = (clients.number * 100 + number) as u64 + clients.lives.get() * 1_000;
        let random = StdRng::seed_from_u64(clients.plan.seed.wrapping_mul(31) + salt);
        let name = format!("g{}-c{number}", clients.number);
        Self { clients, way, number, name, random }
    }

    /// Acts until the sale ends.
    pub async fn live(mut self) {
        while !self.clients.control.ready.get() {
            sleep(Duration::from_millis(10)).await;
        }
        loop {
            sleep(Duration::from_micros(self.random.random_range(0..=self.clients.plan.pause_ms * 1_000)))
                .await;
            if self.clients.control.stop.get() {
                return;
            }
            self.repeat_what_was_undone().await;
            self.act().await;
        }
    }

    /// Asks a group once more for everything that was asked of it lately, when it has gone back to an earlier state: the ids are
    /// as they were.
    async fn repeat_what_was_undone(&mut self) {
        let cuts: BTreeMap<u32, usize> =
            self.clients.cuts.borrow().iter().map(|(group, cuts)| (*group, cuts.len())).collect();
        let known = std::mem::replace(&mut self.memory().cuts, cuts.clone());
        let asked = self.memory().asked.clone();
        for (group, id, what) in asked {
            if cuts.get(&group) > known.get(&group) {
                self.ask(group, id, what).await;
            }
        }
    }

    async fn act(&mut self) {
        let group = self.random.random_range(1..=self.clients.plan.regions);
        let event = (*EVENTS.choose(&mut self.random).unwrap_or(&EVENTS[0])).to_owned();
        let tier = if self.random.random_bool(0.7) { "ga" } else { "seat" }.to_owned();
        let quantity = self.random.random_range(1..=3);
        match self.random.random_range(0..100) {
            0..4 => self.sell(group, &event).await,
            4..45 => {
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
                // The public API counts in seconds.
                let ttl_ms = match self.way {
                    Way::Api(_) => self.random.random_range(1..=4) * 1_000,
                    Way::Shards(_) => self.random.random_range(100..=4_000),
                };
                self.ask_new(group, Ask::Hold { event, tier, quantity, ttl_ms }).await;
            }
            62..72 => {
                if let Some((group, event, hold)) = self.pick(|memory| &mut memory.holds) {
                    self.ask_new(group, Ask::Confirm { event, hold }).await;
                }
            }
            72..77 => {
                if let Some((group, event, hold)) = self.pick(|memory| &mut memory.holds) {
                    self.ask_new(group, Ask::Release { event, hold }).await;
                }
            }
            77..87 => {
                if let Some((group, event, ticket)) = self.pick(|memory| &mut memory.tickets) {
                    self.ask_new(group, Ask::Cancel { event, ticket }).await;
                }
            }
            87..93 => {
                let patience = Duration::from_secs(3);
                read_event(&self.clients, &self.way, group, &event, patience).await;
            }
            93..95 => {
                let asked = self.asked();
                if let Some((group, id, _)) = asked {
                    let patience = Duration::from_secs(3);
                    let request = Request { group, principal: &self.name, id };
                    read_outcome(&self.clients, &self.way, request, patience).await;
                }
            }
            95..97 => {
                let asked = self.asked();
                if let Some((group, id, _)) = asked {
                    self.ask(group, id, Ask::Seal).await;
                }
            }
            _ => {
                let asked = self.asked();
                if let Some((group, id, again)) = asked {
                    self.ask(group, id, again).await;
                }
            }
        }
    }

    /// Sells to several buyers at once, or sends the last batch again as it was.
    async fn sell(&mut self, group: u32, event: &str) {
        let last = self.memory().batch.clone();
        let again = last.filter(|_| self.random.random_bool(0.3));
        let (group, batch) = again.unwrap_or_else(|| {
            let items = (0..self.random.random_range(1..=8)).map(|_| {
                let sale = Ask::Sell {
                    event: event.to_owned(),
                    tier: if self.random.random_bool(0.7) { "ga" } else { "seat" }.to_owned(),
                    quantity: self.random.random_range(1..=3),
                    buyer: format!("g{}-c{}", self.clients.number, self.random.random_range(0..4)),
                };
                (request_id(&mut self.random), sale)
            });
            (group, items.collect())
        });
        self.memory().batch = Some((group, batch.clone()));
        let patience = Duration::from_millis(self.random.random_range(1_500..=8_000));
        let seller = format!("{}{SELLER}", self.name);
        sell(&self.clients, &self.way, (group, &seller), &batch, patience).await;
    }

    fn memory(&self) -> RefMut<'_, Memory> {
        self.clients.memories[self.number].borrow_mut()
    }

    /// One of the requests made lately.
    fn asked(&mut self) -> Option<(u32, u128, Ask)> {
        self.clients.memories[self.number].borrow().asked.choose(&mut self.random).cloned()
    }

    fn pick<T>(&mut self, from: impl Fn(&mut Memory) -> &mut Vec<T>) -> Option<T> {
        let count = from(&mut self.memory()).len();
        let at = (count > 0).then(|| self.random.random_range(0..count))?;
        Some(from(&mut self.memory()).swap_remove(at))
    }

    async fn ask_new(&mut self, group: u32, what: Ask) {
        let id = request_id(&mut self.random);
        {
            let mut memory = self.memory();
            if memory.asked.len() >= 24 {
                memory.asked.remove(0);
            }
            memory.asked.push((group, id, what.clone()));
        }
        self.ask(group, id, what).await;
    }

    async fn ask(&mut self, group: u32, id: u128, what: Ask) {
        let patience = Duration::from_millis(self.random.random_range(1_500..=8_000));
        let request = Request { group, principal: &self.name, id };
        let end = ask(&self.clients, &self.way, request, &what, patience).await;
        let End::Told(told) = end else { return };
        let event = match &what {
            // What was decided before, whoever made it knows.
            Ask::Seal | Ask::Sell { .. } => return,
            Ask::Create { event, .. }
            | Ask::Buy { event, .. }
            | Ask::Hold { event, .. }
            | Ask::Confirm { event, .. }
            | Ask::Release { event, .. }
            | Ask::Cancel { event, .. } => event.clone(),
        };
        match told.said {
            Said::Held { hold, .. } => self.memory().holds.push((group, event, hold)),
            Said::Sold { tier, first, count, .. } => {
                for number in first..first + u64::from(count) {
                    self.memory().tickets.push((group, event.clone(), format!("{tier}-{number}")));
                }
            }
            _ => {}
        }
    }
}
