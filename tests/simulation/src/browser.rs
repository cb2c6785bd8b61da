//! Those who browse: they read events at any gateway, the latest, no less than they have seen, or what may be old. They bring
//! along what they have seen, from gateway to gateway. The oracle judges what they are shown.

use std::cell::{Cell, RefCell};
use std::time::Duration;

use rand::prelude::*;
use rand::rngs::StdRng;
use tokio::time::sleep;

use crate::api::Api;
use crate::clients::{Clients, Open};
use crate::history::{Freshness, Read, Saw};
use crate::traffic::EVENTS;
use crate::world::now_us;

/// Browsers at a gateway.
pub const AT_A_GATEWAY: u64 = 3;
/// How long one waits for an answer.
const PATIENCE: Duration = Duration::from_millis(400);
/// What some take for fresh, ms.
const AGES_MS: [u64; 4] = [10, 100, 500, 2_000];

/// Somebody who browses.
struct Session {
    number: u64,
    /// How far it has seen the regions, as the last answer said.
    seen: Option<String>,
}

/// Those who browse. One who was at a gateway that died is gone.
#[derive(Default)]
pub struct Sessions {
    waiting: RefCell<Vec<Session>>,
    begun: Cell<u64>,
}

impl Sessions {
    /// Somebody comes: one who was elsewhere before, or somebody new.
    fn comes(&self, random: &mut StdRng) -> Session {
        let mut waiting = self.waiting.borrow_mut();
        if waiting.is_empty() || random.random_bool(0.02) {
            self.begun.set(self.begun.get() + 1);
            return Session { number: self.begun.get(), seen: None };
        }
        let at = random.random_range(0..waiting.len());
        waiting.swap_remove(at)
    }

    fn goes(&self, session: Session) {
        self.waiting.borrow_mut().push(session);
    }
}

/// Browses at a gateway until the end.
pub async fn browse(clients: Clients, api: std::rc::Rc<Api>, salt: u64) {
    let seed = clients.plan.seed ^ 0x62_726f_7773 ^ clients.number as u64 ^ salt << 8;
    let mut random = StdRng::seed_from_u64(seed);
    while !clients.control.stop.get() {
        sleep(Duration::from_millis(random.random_range(5..=60))).await;
        if !clients.control.ready.get() {
            continue;
        }
        let mut session = clients.sessions.comes(&mut random);
        let group = random.random_range(1..=clients.plan.regions);
        let event = EVENTS.choose(&mut random).unwrap_or(&EVENTS[0]);
        let age_us = 1_000 * AGES_MS.choose(&mut random).copied().unwrap_or_default();
        let freshness = match random.random_range(0..8) {
            0 => Freshness::Latest,
            1..3 => Freshness::Stale { age_us },
            _ => Freshness::Session { age_us },
        };
        let invoked_us = now_us();
        let _open = Open::new(&clients.control);
        let found = api.tiers_within(group, event, freshness, session.seen.as_deref(), PATIENCE).await;
        if let Some((tiers, seen)) = found {
            let returned_us = now_us();
            let saw = Saw::Event { event: (*event).to_owned(), tiers };
            let what = format_args!("group {group} since {invoked_us} {freshness:?} {saw:?}");
            clients.trace.note(returned_us, "browser", what);
            let number = Some(session.number);
            let read = Read { group, invoked_us, returned_us, freshness, session: number, saw };
            clients.history.borrow_mut().reads.push(read);
            session.seen = seen.or(session.seen);
        }
        clients.sessions.goes(session);
    }
}
