//! A gateway of the simulation, as the site of workloads.
//!
//! **Never here:** what clients want, or whether an answer is right.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidewall_workloads::server::Arrived;
use tidewall_workloads::{Book, NAMES, Site, tell};
use tokio::time::sleep;
use tonic::transport::Channel;

use crate::api::{Api, region, uuid};
use crate::clients::{Clients, Open, request_id};
use crate::world::now_us;

/// Longest pause between two stories, ms.
const PAUSE_MS: u64 = 200;

/// Clients of a gateway who tell stories, for as long as the gateway lives.
pub struct Storytellers {
    clients: Clients,
    api: Rc<Api>,
    random: RefCell<StdRng>,
    regions: Vec<String>,
    life: u64,
}

impl Storytellers {
    /// Those of a gateway.
    pub fn new(clients: Clients, api: Rc<Api>) -> Self {
        let life = clients.lives.get();
        let salt = clients.number as u64 * 7 + life * 1_009;
        let random = RefCell::new(StdRng::seed_from_u64(clients.plan.seed.wrapping_mul(17) ^ salt));
        let regions = (1..=clients.plan.regions).map(region).collect();
        Self { clients, api, random, regions, life }
    }

    /// Tells stories until the sale ends.
    pub async fn live(self) {
        while !self.clients.control.ready.get() {
            sleep(Duration::from_millis(10)).await;
        }
        tell(&self, NAMES, PAUSE_MS, || self.clients.control.stop.get()).await;
    }
}

impl Site for Storytellers {
    type Call = Open;

    fn gateway(&self) -> Channel {
        self.api.channel()
    }

    fn token(&self, subject: &str, roles: &[&str]) -> String {
        self.api.token(subject, roles)
    }

    fn regions(&self) -> &[String] {
        &self.regions
    }

    fn name(&self) -> String {
        format!("g{}-{}", self.clients.number, self.life)
    }

    fn below(&self, count: u64) -> u64 {
        self.random.borrow_mut().random_range(0..count.max(1))
    }

    fn request_id(&self) -> String {
        uuid(request_id(&mut self.random.borrow_mut()))
    }

    fn now(&self) -> Duration {
        Duration::from_micros(now_us())
    }

    fn is_over(&self, region: &str) -> bool {
        let halted = self.clients.control.halted.borrow().iter().any(|group| self::region(*group) == region);
        halted || self.clients.control.stop.get()
    }

    fn returns(&self, region: &str) -> usize {
        let cuts = self.clients.cuts.borrow();
        cuts.iter().find(|(group, _)| self::region(**group) == region).map_or(0, |(_, cuts)| cuts.len())
    }

    fn is_own(&self) -> bool {
        true
    }

    fn begin(&self) -> Open {
        Open::new(&self.clients.control)
    }

    fn note(&self, what: fmt::Arguments<'_>) {
        self.clients.trace.note(now_us(), "story", what);
    }

    fn server(&self, name: &str) -> Option<String> {
        (self.below(2) == 0).then(|| format!("https://servers.example/{name}"))
    }

    fn arrived(&self, url: &str) -> Vec<Arrived> {
        self.clients.servers.arrived(url)
    }

    fn book(&self) -> &RefCell<Book> {
        &self.clients.book
    }
}
