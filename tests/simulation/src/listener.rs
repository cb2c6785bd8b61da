//! Those who watch: they hear what happens in a group, keep books of it, and object when the books do not add up: something was
//! missed, told twice, or told to somebody whom it does not concern.
//!
//! What a listener has heard outlives its gateway: it goes on behind its place, wherever it comes back.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidewall_machine::Machine;
use tidewall_machine::domain::feed::TELLS_CHANGES;
use tidewall_machine::domain::tickets::State;
use tidewall_proto::v1;
use tidewall_proto::v1::change_service_client::ChangeServiceClient;
use tokio::time::{sleep, timeout};
use tonic::{Request, Status};
use tonic_types::StatusExt as _;

use crate::api::{self, Api};
use crate::clients::Clients;
use crate::traffic::EVENTS;
use crate::world::now_us;

/// What a watch is made for at a time.
const LASTS: Duration = Duration::from_secs(30);
/// Who hears nothing for so long comes again: gateways say something every ten seconds.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// How long somebody stays away at most, ms, before it listens again.
const AWAY_MS_MAX: u64 = 400;

/// What somebody listens to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Everything that happens in a group.
    Everything,
    /// What concerns this one.
    Own(String),
    /// How an event is.
    Event(&'static str),
}

/// The numbers of a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Numbers {
    free: i64,
    held: i64,
    sold: i64,
}

/// Event and tier.
type TierName = (String, String);

/// One who listens.
#[derive(Debug)]
pub struct Listener {
    /// To which group.
    pub group: u32,
    kind: Kind,
    place: Option<v1::Place>,
    /// By event and tier, what follows from what was heard; nothing before anything was.
    books: BTreeMap<TierName, Numbers>,
    /// What the last change of each tier said, in the entry that is being heard.
    said: BTreeMap<TierName, Numbers>,
    /// Changes heard.
    pub heard: u64,
}

fn order(place: &v1::Place) -> (u64, u64, u32) {
    (place.incarnation, place.index, place.changes)
}

impl Listener {
    /// One who has heard nothing yet.
    pub fn new(group: u32, kind: Kind) -> Self {
        let (books, said) = (BTreeMap::new(), BTreeMap::new());
        Self { group, kind, place: None, books, said, heard: 0 }
    }

    /// Takes an answer in.
    ///
    /// # Errors
    /// What is wrong with it.
    fn hear(&mut self, answer: v1::WatchResponse) -> Result<(), String> {
        let place = answer.place.ok_or("an answer without a place")?;
        if let Kind::Event(event) = self.kind {
            let stocks = answer.event.into_iter().flat_map(|event| event.tiers).map(|tier| {
                let v1::Tier { tier_id, free, held, sold, .. } = tier;
                v1::TierStock { tier_id, free, held, sold }
            });
            for v1::TierStock { tier_id, free, held, sold } in stocks.chain(answer.stocks) {
                self.books.insert((event.to_owned(), tier_id), Numbers { free, held, sold });
            }
            self.place = Some(place);
            return Ok(());
        }
        for change in answer.changes {
            let at = change.place.ok_or("a change without a place")?;
            if self.place.as_ref().is_some_and(|place| order(&at) <= order(place)) {
                return Err(format!("{at:?} is told behind {:?}", self.place));
            }
            if self.place.as_ref().is_some_and(|place| place.index != at.index) {
                self.settle()?;
            }
            self.place = Some(at);
            self.heard += 1;
            match &self.kind {
                Kind::Own(owner) if !change.owner.is_empty() && change.owner != *owner => {
                    return Err(format!("{owner} is told what concerns {}: {change:?}", change.owner));
                }
                Kind::Everything => self.book(&change)?,
                _ => {}
            }
        }
        if self.place.as_ref().is_some_and(|last| order(&place) < order(last)) {
            return Err(format!("an answer ends at {place:?}, before {:?}", self.place));
        }
        if place.changes == u32::MAX {
            self.settle()?;
        }
        self.place = Some(place);
        Ok(())
    }

    fn book(&mut self, change: &v1::Change) -> Result<(), String> {
        use v1::change::What;
        let event = change.event.rsplit('/').next().unwrap_or_default().to_owned();
        if let Some(What::SavedEvent(saved)) = &change.what {
            for tier in &saved.tiers {
                let numbers = Numbers { free: tier.free, held: tier.held, sold: tier.sold };
                self.books.insert((event.clone(), tier.tier_id.clone()), numbers);
            }
            return Ok(());
        }
        let Some(stock) = &change.stock else { return Ok(()) };
        let name = (event, stock.tier_id.clone());
        let said = Numbers { free: stock.free, held: stock.held, sold: stock.sold };
        self.said.insert(name.clone(), said);
        let Some(numbers) = self.books.get_mut(&name) else { return Ok(()) };
        match &change.what {
            Some(What::Hold(hold)) => {
                numbers.free -= i64::from(hold.quantity);
                numbers.held += i64::from(hold.quantity);
            }
            Some(What::EndedHold(hold)) => {
                numbers.held -= i64::from(hold.quantity);
                numbers.free += i64::from(hold.quantity);
            }
            Some(What::Purchase(purchase)) => {
                let count = purchase.tickets.len() as i64;
                let from = if change.from_hold.is_empty() { &mut numbers.free } else { &mut numbers.held };
                *from -= count;
                numbers.sold += count;
            }
            Some(What::CancelledTicket(_)) => {
                numbers.sold -= 1;
                numbers.free += 1;
            }
            other => return Err(format!("a change of a tier that is none: {other:?}")),
        }
        Ok(())
    }

    /// An entry was heard to its end: what it said of tiers is what follows from all that was heard.
    fn settle(&mut self) -> Result<(), String> {
        for (name, said) in std::mem::take(&mut self.said) {
            let follows = *self.books.entry(name.clone()).or_insert(said);
            if follows != said {
                return Err(format!("{name:?}: {follows:?} follows from what was told, and it is {said:?}"));
            }
        }
        Ok(())
    }

    /// What is gone is found out anew.
    fn begin_anew(&mut self) {
        self.place = None;
        self.books.clear();
        self.said.clear();
    }

    /// Whether what was heard is what there is; `None`: nothing is known of it.
    pub fn agrees_with(&self, machine: &Machine) -> Option<String> {
        if machine.apply_version() < TELLS_CHANGES || matches!(self.kind, Kind::Own(_)) {
            return None;
        }
        let state = machine.rows_of::<State>()?;
        for ((event, tier), numbers) in &self.books {
            let row = state.event(event)?;
            let stocks = row.tiers.iter().zip(state.stock_of(row));
            let Some((_, stock)) = stocks.into_iter().find(|(spec, _)| spec.id == *tier) else { continue };
            let is = [stock.free as i64, stock.held as i64, stock.sold as i64];
            if is != [numbers.free, numbers.held, numbers.sold] {
                return Some(format!(
                    "{:?} of group {} has heard {numbers:?} of {event} {tier} up to {:?}, and it is {stock:?}",
                    self.kind, self.group, self.place
                ));
            }
        }
        None
    }
}

/// Listens through a gateway for as long as it lives.
pub async fn listen(clients: Clients, api: Rc<Api>, number: usize) {
    while !clients.control.ready.get() {
        sleep(Duration::from_millis(10)).await;
    }
    let salt = (clients.number * 10 + number) as u64 + clients.lives.get() * 1_000;
    let mut random = StdRng::seed_from_u64(clients.plan.seed ^ 0x68_6561_7264 ^ salt);
    loop {
        if let Err(status) = watch(&clients, &api, number).await {
            let mut listener = clients.listeners[number].borrow_mut();
            let reason = status.get_details_error_info().map(|info| info.reason).unwrap_or_default();
            let group = listener.group;
            match reason.as_str() {
                "PLACE_GONE" => {
                    if !is_gone(listener.place.as_ref(), status.message()) {
                        clients.object("feed", format!("group {group} has forgotten something: {status}"));
                    }
                    listener.begin_anew();
                }
                // A group that went back may have lost the event.
                "EVENT_NOT_FOUND" | "OVERLOADED" | "REGION_UNAVAILABLE" | "NOT_READ" | "" => {}
                _ => clients.object("feed", format!("group {group}: {reason}: {status}")),
            }
        }
        sleep(Duration::from_millis(random.random_range(1..=AWAY_MS_MAX))).await;
    }
}

/// Whether the group has gone back to an earlier state since a place, or keeps only what comes later.
fn is_gone(place: Option<&v1::Place>, message: &str) -> bool {
    let number = |behind: &str| {
        let text = message.split(behind).nth(1)?;
        text.split(|letter: char| !letter.is_ascii_digit()).next()?.parse::<u64>().ok()
    };
    let kept = number("since incarnation ").zip(number(", index "));
    place.zip(kept).is_some_and(|(place, kept)| (place.incarnation, place.index) <= kept)
}

async fn watch(clients: &Clients, api: &Api, number: usize) -> Result<(), Status> {
    let (group, kind, after) = {
        let listener = clients.listeners[number].borrow();
        (listener.group, listener.kind.clone(), listener.place)
    };
    let region = api::region(group);
    let (parent, mode, subject, roles): (_, _, _, &[&str]) = match &kind {
        Kind::Everything => (region, v1::WatchMode::Events, "auditor", &["auditor"]),
        Kind::Own(owner) => (region, v1::WatchMode::Events, owner.as_str(), &[]),
        Kind::Event(event) => (format!("{region}/events/{event}"), v1::WatchMode::State, "fan", &[]),
    };
    let after = after.filter(|_| mode == v1::WatchMode::Events);
    let message = v1::WatchRequest { parent, mode: mode.into(), after, ..Default::default() };
    let mut request = Request::new(message);
    request.set_timeout(LASTS);
    let bearer = format!("Bearer {}", api.token(subject, roles));
    request.metadata_mut().insert("authorization", bearer.parse().expect("a token is ASCII"));
    let silent = || Status::unavailable("nothing is heard");
    let began = timeout(SILENCE_MAX, ChangeServiceClient::new(api.channel()).watch(request)).await;
    let mut stream = began.map_err(|_| silent())??.into_inner();
    while let Some(answer) = timeout(SILENCE_MAX, stream.message()).await.map_err(|_| silent())?? {
        let mut listener = clients.listeners[number].borrow_mut();
        let changes = answer.changes.len();
        clients.trace.note(now_us(), "listener", format_args!("{number} {changes} up to {:?}", answer.place));
        if let Err(what) = listener.hear(answer) {
            clients.object("feed", format!("group {group}, {:?}: {what}", listener.kind));
        }
    }
    Ok(())
}

/// Those who listen at a gateway of this number.
pub fn listeners(gateway: usize, groups: u32) -> Vec<Listener> {
    let own = (gateway as u32 - 1) % groups + 1;
    let other = own % groups + 1;
    vec![
        Listener::new(own, Kind::Everything),
        Listener::new(other, Kind::Own(format!("g{gateway}-c0"))),
        Listener::new(other, Kind::Event(EVENTS[0])),
    ]
}
