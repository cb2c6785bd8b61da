//! Those who browse: they read events at any gateway, the latest, no less than they have seen, or what may be old. They bring
//! along what they have seen, from gateway to gateway. The oracle judges what they are shown. And one at each gateway who holds a
//! place and watches it end: once it was seen to have ended, it must not come back, whatever the clock of whoever answers says.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use rand::prelude::*;
use rand::rngs::StdRng;
use tokio::time::{Instant, sleep};

use crate::api::{Api, HoldOf};
use crate::clients::{Clients, Open, ask, request_id};
use crate::history::{Ask, End, Freshness, Read, Said, Saw, Told};
use crate::traffic::EVENTS;
use crate::way::{Request, Way};
use crate::world::now_us;

/// Browsers at a gateway.
pub const AT_A_GATEWAY: u64 = 3;
/// How long a hold lasts whose end is watched, ms.
const HOLD_MS: u32 = 1_000;
/// It ends within so long, or it is not watched any more.
const ENDS_WITHIN: Duration = Duration::from_secs(4);
/// How often it is looked for once it was seen to have ended.
const LOOKS: usize = 12;
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
pub async fn browse(clients: Clients, api: Rc<Api>, salt: u64) {
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

/// Holds places, and watches the holds end, until the end.
pub async fn watch_holds(clients: Clients, api: Rc<Api>) {
    let mut random = StdRng::seed_from_u64(clients.plan.seed ^ 0x68_6f6c_6473 ^ clients.number as u64);
    let (owner, way) = (format!("g{}-holder", clients.number), Way::Api(Rc::clone(&api)));
    while !clients.control.stop.get() {
        sleep(Duration::from_millis(random.random_range(100..=600))).await;
        if !clients.control.ready.get() || clients.control.stop.get() {
            continue;
        }
        let group = random.random_range(1..=clients.plan.regions);
        let event = *EVENTS.choose(&mut random).unwrap_or(&EVENTS[0]);
        let request = Request { group, principal: &owner, id: request_id(&mut random) };
        let asked =
            Ask::Hold { event: event.to_owned(), tier: "ga".to_owned(), quantity: 1, ttl_ms: HOLD_MS };
        let patience = Duration::from_secs(2);
        let told = ask(&clients, &way, request, &asked, patience).await;
        let End::Told(Told { said: Said::Held { hold, .. }, .. }) = told else { continue };
        let _open = Open::new(&clients.control);
        let hold = HoldOf { group, event, id: &hold, owner: &owner };
        if let Some(what) = watch_end(&clients, &api, &hold, &mut random).await {
            clients.object("session-time", what);
        }
    }
}

/// Watches a hold end; says what is wrong.
async fn watch_end(clients: &Clients, api: &Api, hold: &HoldOf<'_>, random: &mut StdRng) -> Option<String> {
    // Where the session begins; what a restore makes of a hold nobody knows.
    let (_, begun) = api.has_hold(hold, Freshness::Latest, None, PATIENCE).await?;
    let incarnation = |seen: &Option<String>| {
        let part = seen.as_deref()?.split_once('=')?.1.split_once('.')?.0;
        part.parse::<u64>().ok()
    };
    let (mut seen, until) = (begun.clone(), Instant::now() + ENDS_WITHIN);
    let mut gone = 0;
    while gone <= LOOKS && Instant::now() < until && !clients.control.stop.get() {
        sleep(Duration::from_millis(random.random_range(2..=12))).await;
        let freshness = Freshness::Session { age_us: 2_000_000 };
        let Some((there, now)) = api.has_hold(hold, freshness, seen.as_deref(), PATIENCE).await else {
            continue;
        };
        seen = now.or(seen);
        if incarnation(&seen) != incarnation(&begun) {
            return None;
        }
        match there {
            true if gone > 0 => return Some(format!("{hold:?} had ended, and is there again: {seen:?}")),
            true => {}
            false => gone += 1,
        }
    }
    None
}
