//! Tickets: an organiser with a small event, a few who buy, hold, confirm, release and give back, one who watches, and perhaps one
//! with a webhook.
//!
//! Nobody else touches the event of a story, so that it knows what each answer must be.

mod changes;
mod webhooks;

use std::cell::Cell;
use std::collections::BTreeMap;

use tidewall_proto::v1;
use tidewall_proto::v1::change_service_client::ChangeServiceClient;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tidewall_proto::v1::webhook_service_client::WebhookServiceClient;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::transport::Channel;

use crate::{Over, Site, Story, Workload, ask, client};
use changes::Watcher;
use webhooks::Webhook;

/// The only tier.
const TIER: &str = "ga";
/// Buyers of an event.
const BUYERS: u64 = 3;
/// A hold of so long, seconds, outlives every story.
const HOLD_SECONDS: i64 = 3_600;
/// Tickets on a page.
const PAGE: i32 = 3;

/// The workload.
pub(crate) struct Tickets;

impl Workload for Tickets {
    const NAME: &'static str = "tickets";

    async fn story<S: Site>(story: &Story<'_, S>) -> Result<(), Over> {
        let site = story.site;
        let person = |subject: String, roles: &[&str]| Person { token: site.token(&subject, roles), subject };
        let mut sale = Sale {
            events: client!(story, EventServiceClient),
            tickets: client!(story, TicketServiceClient),
            outcomes: client!(story, OutcomeServiceClient),
            changes: client!(story, ChangeServiceClient),
            webhooks: client!(story, WebhookServiceClient),
            organiser: person(format!("organiser-{}", story.name), &["organiser"]),
            buyers: (0..BUYERS).map(|number| person(format!("buyer-{number}-{}", story.name), &[])).collect(),
            event: String::new(),
            capacity: 1 + story.below(8) as i64,
            quota: 1 + story.below(5) as i64,
            holds: Vec::new(),
            owned: BTreeMap::new(),
            touched: false,
            watcher: Watcher::new((story.below(2) == 0).then_some(0)),
            webhook: None,
            decided: Cell::default(),
            story,
        };
        sale.open().await?;
        sale.begin_to_watch().await?;
        sale.make_webhook().await?;
        // Some events are deleted before anything happens to them.
        let steps = if story.below(8) == 0 { 0 } else { 6 + story.below(20) };
        for _ in 0..steps {
            sale.step().await?;
        }
        sale.check_stock().await?;
        sale.check_tickets().await?;
        sale.check_changes().await?;
        sale.check_webhook().await?;
        sale.delete().await
    }
}

struct Person {
    subject: String,
    token: String,
}

/// A hold as its owner knows it.
struct Held {
    name: String,
    owner: usize,
    quantity: i64,
}

/// A ticket as its owner knows it.
struct Owned {
    owner: usize,
    cancelled: bool,
    /// Under which id it was bought.
    request_id: String,
}

struct Sale<'a, S: Site> {
    story: &'a Story<'a, S>,
    events: EventServiceClient<Channel>,
    tickets: TicketServiceClient<Channel>,
    outcomes: OutcomeServiceClient<Channel>,
    changes: ChangeServiceClient<Channel>,
    webhooks: WebhookServiceClient<Channel>,
    organiser: Person,
    buyers: Vec<Person>,
    /// Resource name.
    event: String,
    capacity: i64,
    quota: i64,
    holds: Vec<Held>,
    /// By name, whether they are still valid or not.
    owned: BTreeMap<String, Owned>,
    /// Something was held or sold.
    touched: bool,
    watcher: Watcher,
    webhook: Option<Webhook>,
    /// Incarnation and log index of the last of what is known here.
    decided: Cell<(u64, u64)>,
}

impl<S: Site> Sale<'_, S> {
    fn id(&self) -> String {
        self.story.site.request_id()
    }

    fn below(&self, count: usize) -> usize {
        self.story.below(count as u64) as usize
    }

    fn sold(&self) -> i64 {
        self.owned.values().filter(|ticket| !ticket.cancelled).count() as i64
    }

    fn held(&self) -> i64 {
        self.holds.iter().map(|hold| hold.quantity).sum()
    }

    fn free(&self) -> i64 {
        self.capacity - self.held() - self.sold()
    }

    /// How many places somebody may have more.
    fn left_to(&self, buyer: usize) -> i64 {
        let held = self.holds.iter().filter(|hold| hold.owner == buyer).map(|hold| hold.quantity);
        let owned = self.owned.values().filter(|ticket| ticket.owner == buyer && !ticket.cancelled).count();
        self.quota - held.sum::<i64>() - owned as i64
    }

    /// Why somebody does not get so many places; empty when there is no reason.
    fn reasons(&self, buyer: usize, quantity: i64) -> Vec<&'static str> {
        let reasons =
            [(quantity > self.left_to(buyer), "QUOTA_EXCEEDED"), (quantity > self.free(), "SOLD_OUT")];
        reasons.into_iter().filter(|(holds, _)| *holds).map(|(_, reason)| reason).collect()
    }

    /// An answer that must be a no for one of these reasons.
    fn no_of<R>(&self, what: &str, told: Result<R, String>, reasons: &[&str]) -> Result<(), Over> {
        match told {
            Err(reason) if reasons.contains(&reason.as_str()) => Ok(()),
            Err(reason) => {
                self.story.object(format_args!("{what} is refused with {reason}, not one of {reasons:?}"))
            }
            Ok(_) => self.story.object(format_args!("{what} is accepted, not refused: {reasons:?}")),
        }
    }

    fn tier(&self) -> v1::Tier {
        v1::Tier {
            tier_id: TIER.to_owned(),
            display_name: "standing".to_owned(),
            capacity: self.capacity,
            price: Some(v1::Money { currency_code: "EUR".to_owned(), minor_units: 1_500 }),
            ..Default::default()
        }
    }

    async fn open(&mut self) -> Result<(), Over> {
        let event = v1::Event {
            display_name: self.story.name.clone(),
            tiers: vec![self.tier()],
            quota_per_buyer: self.quota as i32,
            ..Default::default()
        };
        let create = v1::CreateEventRequest {
            parent: self.story.region.clone(),
            event_id: String::new(),
            event: Some(event),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.events, create_event, create, &self.organiser.token);
        self.event = self.story.yes("a new event", told)?.event.unwrap_or_default().name;
        Ok(())
    }

    /// One thing that somebody does.
    async fn step(&mut self) -> Result<(), Over> {
        let (buyer, quantity) = (self.below(self.buyers.len()), 1 + self.below(3) as i64);
        match self.below(19) {
            0..3 => self.buy(buyer, quantity).await,
            3..5 => self.hold(buyer, quantity).await,
            5 | 6 if !self.holds.is_empty() => self.end_hold().await,
            7 | 8 if !self.owned.is_empty() => self.cancel().await,
            9 => self.race().await,
            10 => self.change_capacity().await,
            11 if !self.owned.is_empty() => self.check_outcome().await,
            12 => self.seal(buyer, quantity).await,
            13 => self.check_tickets().await,
            14 => self.check_holds(buyer).await,
            15 => self.check_search(buyer).await,
            16 => self.check_changes().await,
            17 | 18 => self.tend_webhook().await,
            _ => self.check_stock().await,
        }
    }

    fn bought(&mut self, owner: usize, quantity: i64, id: &str, names: Vec<String>) -> Result<(), Over> {
        if names.len() as i64 != quantity {
            return self.story.object(format_args!("{quantity} places were bought, and these: {names:?}"));
        }
        self.touched = true;
        for name in names {
            let ticket = Owned { owner, cancelled: false, request_id: id.to_owned() };
            if self.owned.insert(name.clone(), ticket).is_some() {
                return self.story.object(format_args!("{name} is sold twice"));
            }
        }
        Ok(())
    }

    /// Asks for places, and tells what became of it.
    async fn ask_for(
        &self,
        buyer: usize,
        quantity: i64,
        id: &str,
    ) -> Result<Result<Vec<String>, String>, Over> {
        let buy = v1::BuyTicketsRequest {
            parent: self.event.clone(),
            tier_id: TIER.to_owned(),
            quantity: quantity as i32,
            seats: Vec::new(),
            request_id: id.to_owned(),
        };
        let told = ask!(self.story, self.tickets, buy_tickets, buy, &self.buyers[buyer].token);
        Ok(told.map(|answer| {
            self.note(answer.receipt.as_ref());
            answer.purchase.unwrap_or_default().tickets
        }))
    }

    async fn buy(&mut self, buyer: usize, quantity: i64) -> Result<(), Over> {
        let (id, reasons) = (self.id(), self.reasons(buyer, quantity));
        let told = self.ask_for(buyer, quantity, &id).await?;
        if !reasons.is_empty() {
            return self.no_of("a purchase", told, &reasons);
        }
        let names = self.story.yes("a purchase", told)?;
        self.bought(buyer, quantity, &id, names)
    }

    /// Two want the last places at the same time: one has them.
    async fn race(&mut self) -> Result<(), Over> {
        let (one, other, all) = (0, 1, self.free());
        if all < 1 || self.left_to(one) < all || self.left_to(other) < all {
            return self.check_stock().await;
        }
        let ids = (self.id(), self.id());
        let (first, second) = tokio::join!(self.ask_for(one, all, &ids.0), self.ask_for(other, all, &ids.1));
        match (first?, second?) {
            (Ok(names), Err(no)) if no == "SOLD_OUT" => self.bought(one, all, &ids.0, names),
            (Err(no), Ok(names)) if no == "SOLD_OUT" => self.bought(other, all, &ids.1, names),
            told => self.story.object(format_args!("of two who want the last {all} places: {told:?}")),
        }
    }

    async fn hold(&mut self, owner: usize, quantity: i64) -> Result<(), Over> {
        let reasons = self.reasons(owner, quantity);
        let hold = v1::HoldTicketsRequest {
            parent: self.event.clone(),
            tier_id: TIER.to_owned(),
            quantity: quantity as i32,
            seats: Vec::new(),
            ttl: Some(prost_types::Duration { seconds: HOLD_SECONDS, nanos: 0 }),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.tickets, hold_tickets, hold, &self.buyers[owner].token);
        if !reasons.is_empty() {
            return self.no_of("a hold", told, &reasons);
        }
        let held = self.story.yes("a hold", told)?;
        self.note(held.receipt.as_ref());
        let hold = held.hold.unwrap_or_default();
        if i64::from(hold.quantity) != quantity || hold.owner != self.buyers[owner].subject {
            return self.story.object(format_args!("a hold of {quantity} places is {hold:?}"));
        }
        self.touched = true;
        self.holds.push(Held { name: hold.name, owner, quantity });
        Ok(())
    }

    /// Somebody else asks for a hold in vain; its owner confirms or releases it, and then it is gone.
    async fn end_hold(&mut self) -> Result<(), Over> {
        let hold = self.holds.swap_remove(self.below(self.holds.len()));
        let stranger = &self.buyers[(hold.owner + 1) % self.buyers.len()].token;
        let owner = &self.buyers[hold.owner].token;
        let confirm = |request_id| v1::ConfirmHoldRequest { name: hold.name.clone(), request_id };
        let told = ask!(self.story, self.tickets, confirm_hold, confirm(self.id()), stranger);
        self.story.no("a stranger's confirmation", told, "NOT_OWNER")?;
        if self.below(3) == 0 {
            let release = v1::ReleaseHoldRequest { name: hold.name.clone(), request_id: self.id() };
            let told = ask!(self.story, self.tickets, release_hold, release, owner);
            self.note(self.story.yes("a release", told)?.receipt.as_ref());
            let told = ask!(self.story, self.tickets, confirm_hold, confirm(self.id()), owner);
            return self.story.no("the confirmation of what was released", told, "HOLD_NOT_FOUND");
        }
        let id = self.id();
        let told = ask!(self.story, self.tickets, confirm_hold, confirm(id.clone()), owner);
        let confirmed = self.story.yes("a confirmation", told)?;
        self.note(confirmed.receipt.as_ref());
        let purchase = confirmed.purchase.unwrap_or_default();
        let told = ask!(self.story, self.tickets, confirm_hold, confirm(self.id()), owner);
        self.story.no("a second confirmation", told, "HOLD_NOT_FOUND")?;
        self.bought(hold.owner, hold.quantity, &id, purchase.tickets)
    }

    /// A ticket is given back; one that was given back before cannot be.
    async fn cancel(&mut self) -> Result<(), Over> {
        let at = self.below(self.owned.len());
        let Some((name, ticket)) = self.owned.iter().nth(at) else { return Ok(()) };
        let (name, cancelled, owner) = (name.clone(), ticket.cancelled, ticket.owner);
        let cancel = v1::CancelTicketRequest { name: name.clone(), request_id: self.id() };
        let told = ask!(self.story, self.tickets, cancel_ticket, cancel, &self.buyers[owner].token);
        if cancelled {
            return self.story.no("a second cancellation", told, "TICKET_CANCELLED");
        }
        self.note(self.story.yes("a cancellation", told)?.receipt.as_ref());
        if let Some(ticket) = self.owned.get_mut(&name) {
            ticket.cancelled = true;
        }
        Ok(())
    }

    /// The organiser makes the event larger or smaller, but never smaller than what is taken.
    async fn change_capacity(&mut self) -> Result<(), Over> {
        let (before, taken) = (self.capacity, self.held() + self.sold());
        self.capacity = 1 + self.below(8) as i64;
        let event = v1::Event { name: self.event.clone(), tiers: vec![self.tier()], ..Default::default() };
        let update = v1::UpdateEventRequest {
            event: Some(event),
            update_mask: Some(prost_types::FieldMask { paths: vec!["tiers".to_owned()] }),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.events, update_event, update, &self.organiser.token);
        if self.capacity < taken {
            self.capacity = before;
            return self.story.no("a capacity below what is taken", told, "CAPACITY_TOO_SMALL");
        }
        self.story.yes("another capacity", told).map(drop)
    }

    /// What is remembered of a purchase is what was answered, whatever became of its tickets.
    async fn check_outcome(&self) -> Result<(), Over> {
        let Some(ticket) = self.owned.values().nth(self.below(self.owned.len())) else { return Ok(()) };
        let of = &ticket.request_id;
        let get = v1::GetOutcomeRequest { parent: self.story.region.clone(), request_id: of.clone() };
        let told = ask!(self.story, self.outcomes, get_outcome, get, &self.buyers[ticket.owner].token);
        let outcome = self.story.yes("a look at an outcome", told)?;
        let Some(v1::get_outcome_response::Result::Purchase(purchase)) = outcome.result else {
            return self.story.object(format_args!("a purchase is remembered as {:?}", outcome.state()));
        };
        let mut bought: Vec<&String> =
            self.owned.iter().filter(|(_, ticket)| ticket.request_id == *of).map(|(name, _)| name).collect();
        let mut remembered: Vec<&String> = purchase.tickets.iter().collect();
        bought.sort();
        remembered.sort();
        if bought != remembered {
            return self.story.object(format_args!("{bought:?} were bought, {remembered:?} are remembered"));
        }
        Ok(())
    }

    /// Nothing is decided under a sealed id.
    async fn seal(&self, buyer: usize, quantity: i64) -> Result<(), Over> {
        let id = self.id();
        let seal = v1::SealRequestIdRequest { parent: self.story.region.clone(), request_id: id.clone() };
        let told = ask!(self.story, self.outcomes, seal_request_id, seal, &self.buyers[buyer].token);
        let outcome = self.story.yes("a seal", told)?.outcome.unwrap_or_default();
        if outcome.state() != v1::OutcomeState::Sealed {
            return self.story.object(format_args!("an unused id is sealed as {:?}", outcome.state()));
        }
        let told = self.ask_for(buyer, quantity, &id).await?;
        self.story.no("a purchase under a sealed id", told, "REQUEST_ID_SEALED")
    }

    /// The numbers of the event must be what is known.
    async fn check_stock(&self) -> Result<(), Over> {
        let get = v1::GetEventRequest {
            name: self.event.clone(),
            consistency: self.story.consistency(),
            max_age: None,
        };
        let told = ask!(self.story, self.events, get_event, get, &self.buyers[0].token);
        let event = self.story.yes("a look at the event", told)?.event.unwrap_or_default();
        let seen: Vec<_> =
            event.tiers.iter().map(|tier| (tier.capacity, tier.free, tier.held, tier.sold)).collect();
        let known = (self.capacity, self.free(), self.held(), self.sold());
        if seen != [known] {
            return self
                .story
                .object(format_args!("capacity, free, held and sold are {seen:?}, not {known:?}"));
        }
        Ok(())
    }

    /// The list of tickets must be what was bought, page by page.
    async fn check_tickets(&self) -> Result<(), Over> {
        let (mut seen, mut page_token) = (BTreeMap::new(), String::new());
        loop {
            let list = v1::ListTicketsRequest {
                parent: self.event.clone(),
                owner: "*".to_owned(),
                page_size: PAGE,
                page_token,
                consistency: self.story.consistency(),
                max_age: None,
            };
            let told = ask!(self.story, self.tickets, list_tickets, list, &self.organiser.token);
            let page = self.story.yes("a list of tickets", told)?;
            for ticket in page.tickets {
                let valid = ticket.state() == v1::TicketState::Valid;
                seen.insert(ticket.name, (ticket.owner, !valid));
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let known = self.owned.iter().map(|(name, ticket)| {
            (name.clone(), (self.buyers[ticket.owner].subject.clone(), ticket.cancelled))
        });
        let known: BTreeMap<_, _> = known.collect();
        if seen != known {
            return self.story.object(format_args!("the tickets are {seen:?}, not {known:?}"));
        }
        Ok(())
    }

    /// Holds as somebody is shown them, page by page.
    async fn listed_holds(&self, owner: &str, token: &str) -> Result<BTreeMap<String, i64>, Over> {
        let (mut seen, mut page_token) = (BTreeMap::new(), String::new());
        loop {
            let owner = owner.to_owned();
            let list = v1::ListHoldsRequest {
                parent: self.event.clone(),
                owner,
                page_size: PAGE,
                page_token,
                consistency: self.story.consistency(),
                max_age: None,
            };
            let told = ask!(self.story, self.tickets, list_holds, list, token);
            let page = self.story.yes("a list of holds", told)?;
            seen.extend(page.holds.into_iter().map(|hold| (hold.name, i64::from(hold.quantity))));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(seen);
            }
        }
    }

    /// What somebody holds, and what all do, must be what is known; nobody else sees it.
    async fn check_holds(&self, owner: usize) -> Result<(), Over> {
        let (token, stranger) =
            (&self.buyers[owner].token, &self.buyers[(owner + 1) % self.buyers.len()].token);
        let of = |whose: Option<usize>| -> BTreeMap<_, _> {
            let known = self.holds.iter().filter(|hold| whose.is_none_or(|owner| hold.owner == owner));
            known.map(|hold| (hold.name.clone(), hold.quantity)).collect()
        };
        let known = of(Some(owner));
        let shown =
            [self.listed_holds("", token).await?, self.listed_holds("*", &self.organiser.token).await?];
        if shown != [known.clone(), of(None)] {
            return self
                .story
                .object(format_args!("of the holds {known:?} and {:?}, {shown:?} are shown", of(None)));
        }
        let all =
            v1::ListHoldsRequest { parent: self.event.clone(), owner: "*".into(), ..Default::default() };
        let told = ask!(self.story, self.tickets, list_holds, all, stranger);
        self.story.no("a stranger's list of holds", told, "NOT_YOUR_HOLDS")?;
        let Some(name) = known.into_keys().next() else { return Ok(()) };
        let consistency = self.story.consistency();
        let get = || v1::GetHoldRequest { name: name.clone(), consistency, max_age: None };
        let told = ask!(self.story, self.tickets, get_hold, get(), token);
        let hold = self.story.yes("a look at a hold", told)?.hold.unwrap_or_default();
        if hold.name != name || hold.owner != self.buyers[owner].subject {
            return self.story.object(format_args!("the hold {name} is {hold:?}"));
        }
        let told = ask!(self.story, self.tickets, get_hold, get(), stranger);
        self.story.no("a stranger's look at a hold", told, "NOT_YOUR_HOLD")
    }

    /// What somebody has anywhere is what was bought here: nobody else has that name. A region that is not there now is named.
    async fn check_search(&self, owner: usize) -> Result<(), Over> {
        let (mut seen, mut page_token) = (BTreeMap::new(), String::new());
        loop {
            let search = v1::SearchTicketsRequest {
                page_size: PAGE,
                page_token,
                consistency: self.story.consistency(),
                ..v1::SearchTicketsRequest::default()
            };
            let told = ask!(self.story, self.tickets, search_tickets, search, &self.buyers[owner].token);
            let page = self.story.yes("a search", told)?;
            if page.unreachable.contains(&self.story.region) {
                return Ok(());
            }
            for ticket in page.tickets {
                let cancelled = ticket.state() == v1::TicketState::Cancelled;
                seen.insert(ticket.name, cancelled);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        let known = self.owned.iter().filter(|(_, ticket)| ticket.owner == owner);
        let known: BTreeMap<_, _> = known.map(|(name, ticket)| (name.clone(), ticket.cancelled)).collect();
        if seen != known {
            return self.story.object(format_args!("the tickets found are {seen:?}, not {known:?}"));
        }
        let search =
            v1::SearchTicketsRequest { owner: self.buyers[owner].subject.clone(), ..Default::default() };
        let stranger = &self.buyers[(owner + 1) % self.buyers.len()].token;
        let told = ask!(self.story, self.tickets, search_tickets, search, stranger);
        self.story.no("a search for another's tickets", told, "NOT_YOUR_TICKETS")
    }

    /// An event goes only while nothing of it has a name.
    async fn delete(&self) -> Result<(), Over> {
        let delete = v1::DeleteEventRequest { name: self.event.clone(), revision: 0, request_id: self.id() };
        let told = ask!(self.story, self.events, delete_event, delete, &self.organiser.token);
        if self.touched {
            return self.story.no("the end of an event with tickets or holds", told, "EVENT_IN_USE");
        }
        self.story.yes("the end of an event", told)?;
        let consistency = self.story.consistency();
        let get = v1::GetEventRequest { name: self.event.clone(), consistency, max_age: None };
        let told = ask!(self.story, self.events, get_event, get, &self.organiser.token);
        self.story.no("a look at an event that was deleted", told, "EVENT_NOT_FOUND")
    }
}
