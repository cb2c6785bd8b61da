//! Looking up tickets and holds: one, those of an event, those that somebody has anywhere.

use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, stream};
use prost::Message as _;
use tidewall_client::ClientError;
use tidewall_messages::tickets::{self, answer};
use tidewall_proto::v1;

use super::super::Services;
use crate::auth::Role;
use crate::edge::Call;
use crate::errors::ApiError;
use crate::names::EventName;
use crate::{convert, names, page, validate};

const PAGE_DEFAULT: u32 = 100;
const PAGE_MAX: u32 = 5000;
/// Most bytes of a page that several regions fill: each of them fills one alone.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// A region that does not answer a search within this time is left out.
const REGION_TIMEOUT: Duration = Duration::from_secs(3);
/// Regions that a search asks at once.
const REGIONS_AT_ONCE: usize = 4;
/// What page tokens of a search are bound to, before the owner.
const SEARCH: &str = "search";

/// The owner whose tickets or holds are asked for; `None` is everybody.
fn listed_owner<'a>(call: &'a Call, owner: &'a str) -> Result<Option<&'a str>, ApiError> {
    match owner {
        "" => Ok(Some(&call.principal.subject)),
        "*" => Ok(None),
        other => {
            validate::buyer("owner", other)?;
            Ok(Some(other))
        }
    }
}

/// Where a search goes on: in a region, at an event, after a ticket of it.
#[derive(Debug, Default, PartialEq)]
struct Place {
    region: String,
    event: String,
    ticket: String,
}

impl Place {
    fn encode(&self) -> String {
        format!("{}/{}/{}", self.region, self.event, self.ticket)
    }

    fn decode(text: &str) -> Option<Self> {
        let mut parts = text.split('/').map(str::to_owned);
        let place = Self { region: parts.next()?, event: parts.next()?, ticket: parts.next()? };
        parts.next().is_none().then_some(place)
    }
}

/// What a region has of what is searched for; `None`: it did not answer.
type FoundIn = Option<tickets::TicketsFound>;

impl Services {
    pub(super) async fn get_hold_as(
        &self,
        call: Call,
        message: v1::GetHoldRequest,
    ) -> Result<v1::GetHoldResponse, ApiError> {
        let name = names::parse_hold("name", &message.name)?;
        let EventName { region, event } = name.event;
        let get = tickets::GetHold { event_id: event.to_owned(), hold_id: name.id.to_owned() };
        let Some(answer::Result::Hold(view)) = self.query(&call, tickets::Query::from(get)).await?.result
        else {
            return Err(convert::mismatch());
        };
        let caller = &call.principal;
        let own = view.owner == caller.subject || view.organiser == caller.subject;
        if !own && !caller.has(Role::Support) && !caller.has(Role::Operator) {
            let why =
                "may not see this hold: only its owner, the event's organiser, support and operators may";
            return Err(ApiError::denied("NOT_YOUR_HOLD", format!("{} {why}", caller.subject)));
        }
        let owner = view.owner.clone();
        Ok(v1::GetHoldResponse { hold: Some(convert::hold(region, event, &owner, view)) })
    }

    pub(super) async fn list_holds_as(
        &self,
        call: Call,
        message: v1::ListHoldsRequest,
    ) -> Result<v1::ListHoldsResponse, ApiError> {
        let EventName { region, event } = names::parse_event("parent", &message.parent)?;
        let limit = page::size(message.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        let owner = listed_owner(&call, &message.owner)?;
        // A token of one owner's list must not continue another's.
        let scope = format!("holds {} {}", message.parent, owner.unwrap_or("*"));
        let caller = &call.principal;
        let sees_all = caller.has(Role::Support) || caller.has(Role::Operator);
        let query = tickets::Query::from(tickets::ListHolds {
            event_id: event.to_owned(),
            owner: owner.unwrap_or_default().to_owned(),
            after_hold_id: page::decode(&scope, &message.page_token)?,
            limit,
            caller: caller.subject.clone(),
            sees_all,
        });
        let Some(answer::Result::Holds(list)) = self.query(&call, query).await?.result else {
            return Err(convert::mismatch());
        };
        let own = owner == Some(caller.subject.as_str()) || list.organiser == caller.subject;
        if !own && !sees_all {
            let why = "may not list holds of others: only the event's organiser, support and operators may; \
                       leave owner empty for one's own";
            return Err(ApiError::denied("NOT_YOUR_HOLDS", format!("{} {why}", caller.subject)));
        }
        let next_page_token = match list.next_after_hold_id.as_str() {
            "" => String::new(),
            last => page::encode(&scope, last),
        };
        let shown = |view: tickets::HoldView| {
            let owner = view.owner.clone();
            convert::hold(region, event, &owner, view)
        };
        Ok(v1::ListHoldsResponse { holds: list.holds.into_iter().map(shown).collect(), next_page_token })
    }

    pub(super) async fn get_ticket_as(
        &self,
        call: Call,
        message: v1::GetTicketRequest,
    ) -> Result<v1::GetTicketResponse, ApiError> {
        let name = names::parse_ticket("name", &message.name)?;
        let EventName { region, event } = name.event;
        let get = tickets::GetTicket { event_id: event.to_owned(), ticket_id: name.id.to_owned() };
        let found = self.query(&call, tickets::Query::from(get)).await?.result;
        let Some(answer::Result::Ticket(view)) = found else {
            return Err(convert::mismatch());
        };
        let caller = &call.principal;
        let own = view.owner == caller.subject || view.organiser == caller.subject;
        if !own && !caller.has(Role::Seller) && !caller.has(Role::Operator) {
            let why =
                "may not see this ticket: only its owner, the event's organiser, sellers and operators may";
            return Err(ApiError::denied("NOT_YOUR_TICKET", format!("{} {why}", caller.subject)));
        }
        Ok(v1::GetTicketResponse { ticket: Some(convert::ticket(region, event, view)) })
    }

    pub(super) async fn list_tickets_as(
        &self,
        call: Call,
        message: v1::ListTicketsRequest,
    ) -> Result<v1::ListTicketsResponse, ApiError> {
        let name = names::parse_event("parent", &message.parent)?;
        let limit = page::size(message.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        let owner = listed_owner(&call, &message.owner)?;
        // A token of one owner's list must not continue another's.
        let scope = format!("{} {}", message.parent, owner.unwrap_or("*"));
        let query = tickets::Query::from(tickets::ListTickets {
            event_id: name.event.to_owned(),
            owner: owner.unwrap_or_default().to_owned(),
            after_ticket_id: page::decode(&scope, &message.page_token)?,
            limit,
        });
        let Some(answer::Result::Tickets(list)) = self.query(&call, query).await?.result else {
            return Err(convert::mismatch());
        };
        let caller = &call.principal;
        let own = owner == Some(caller.subject.as_str());
        if !own && list.organiser != caller.subject && !caller.has(Role::Operator) {
            let why = "may not list tickets of others: only the event's organiser and operators may; leave \
                       owner empty for one's own";
            return Err(ApiError::denied("NOT_YOUR_TICKETS", format!("{} {why}", caller.subject)));
        }
        let next_page_token = match list.tickets.last() {
            Some(last) if list.more => page::encode(&scope, &last.ticket_id),
            _ => String::new(),
        };
        let shown = |view| convert::ticket(name.region, name.event, view);
        Ok(v1::ListTicketsResponse {
            tickets: list.tickets.into_iter().map(shown).collect(),
            next_page_token,
        })
    }

    pub(super) async fn search_tickets_as(
        &self,
        call: Call,
        message: v1::SearchTicketsRequest,
    ) -> Result<v1::SearchTicketsResponse, ApiError> {
        let limit = page::size(message.page_size, PAGE_DEFAULT, PAGE_MAX)?;
        let caller = &call.principal;
        let owner = if message.owner.is_empty() { &caller.subject } else { &message.owner };
        validate::buyer("owner", owner)?;
        if *owner != caller.subject && !caller.has(Role::Operator) {
            let why =
                "may not search for tickets of others: only operators may; leave owner empty for one's own";
            return Err(ApiError::denied("NOT_YOUR_TICKETS", format!("{} {why}", caller.subject)));
        }
        let scope = format!("{SEARCH} {owner}");
        let from = match page::decode(&scope, &message.page_token)?.as_str() {
            "" => Place::default(),
            text => Place::decode(text).ok_or_else(page::refused)?,
        };
        let mut regions: Vec<(usize, &str)> =
            self.0.topology.regions.iter().map(|region| region.id.as_str()).enumerate().collect();
        regions.sort_unstable_by_key(|(_, id)| *id);
        regions.retain(|(_, id)| *id >= from.region.as_str());
        let mut searches = Vec::with_capacity(regions.len());
        for (position, id) in &regions {
            let begin = *id == from.region;
            let search = tickets::SearchTickets {
                owner: owner.clone(),
                from_event_id: if begin { from.event.clone() } else { String::new() },
                after_ticket_id: if begin { from.ticket.clone() } else { String::new() },
                limit,
            };
            searches.push(self.search_in(&call, *position, search).map(move |found| (*id, found)).boxed());
        }
        // Each region may fill the page alone: no more are asked at once than a gateway can hold pages of.
        let mut searches = stream::iter(searches).buffered(REGIONS_AT_ONCE);
        let mut page = Page::new(limit as usize);
        while let Some((region, found)) = searches.next().await {
            page.take(region, found?);
            if page.next.is_some() {
                break;
            }
        }
        // A page that begins later says nothing about the regions before it.
        if message.page_token.is_empty() && page.unreachable.len() == regions.len() && !regions.is_empty() {
            let why = "no region answered in time".to_owned();
            return Err(ApiError::Client { error: ClientError::Unavailable { why }, request_id: None });
        }
        let next_page_token =
            page.next.map(|place| page::encode(&scope, &place.encode())).unwrap_or_default();
        let unreachable = page.unreachable.into_iter().map(names::region).collect();
        Ok(v1::SearchTicketsResponse { tickets: page.tickets, next_page_token, unreachable })
    }

    /// What somebody has in one region.
    async fn search_in(
        &self,
        call: &Call,
        position: usize,
        search: tickets::SearchTickets,
    ) -> Result<FoundIn, ApiError> {
        let group = self.0.topology.regions[position].group;
        let call = call.look_in(position, group, call.deadline.within(REGION_TIMEOUT));
        match self.query(&call, tickets::Query::from(search)).await {
            Ok(tickets::Answer { result: Some(answer::Result::Found(found)) }) => Ok(Some(found)),
            Ok(_) => Err(convert::mismatch()),
            Err(error) if error.is_answer() => Err(error),
            Err(error) => {
                tracing::debug!(region = position, ?error, "a search goes on without a region");
                Ok(None)
            }
        }
    }
}

/// What regions have, put together in their order as far as a page goes.
struct Page<'a> {
    limit: usize,
    bytes: usize,
    tickets: Vec<v1::Ticket>,
    /// Regions that did not answer.
    unreachable: Vec<&'a str>,
    /// Where to go on, once the page is full.
    next: Option<Place>,
}

impl<'a> Page<'a> {
    fn new(limit: usize) -> Self {
        Self { limit, bytes: 0, tickets: Vec::new(), unreachable: Vec::new(), next: None }
    }

    /// Takes in what the next region has.
    fn take(&mut self, region: &'a str, found: FoundIn) {
        let Some(found) = found else {
            self.unreachable.push(region);
            return;
        };
        let place = |event: String, ticket: String| Some(Place { region: region.to_owned(), event, ticket });
        // Where nothing of a region was shown yet, its beginning is the place.
        let mut last = (String::new(), String::new());
        for found in found.tickets {
            let view = found.ticket.unwrap_or_default();
            let id = view.ticket_id.clone();
            let ticket = convert::ticket(region, &found.event_id, view);
            self.bytes += ticket.encoded_len();
            if self.tickets.len() == self.limit || (self.bytes > PAGE_BYTES_MAX && !self.tickets.is_empty()) {
                self.next = place(last.0, last.1);
                return;
            }
            last = (found.event_id, id);
            self.tickets.push(ticket);
        }
        if !found.next_event_id.is_empty() {
            self.next = place(found.next_event_id, found.after_ticket_id);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn found(tickets: &[(&str, u32)], next: &str) -> FoundIn {
        let ticket = |(event, number): &(&str, u32)| tickets::TicketFound {
            event_id: (*event).to_owned(),
            ticket: Some(tickets::TicketView {
                ticket_id: format!("ga-{number}"),
                ..tickets::TicketView::default()
            }),
        };
        let tickets = tickets.iter().map(ticket).collect();
        let next_event_id = next.to_owned();
        Some(tickets::TicketsFound { tickets, next_event_id, after_ticket_id: String::new() })
    }

    fn gathered(
        found: Vec<(&'static str, FoundIn)>,
        limit: usize,
    ) -> (Vec<String>, Vec<&'static str>, String) {
        let mut page = Page::new(limit);
        for (region, found) in found {
            page.take(region, found);
            if page.next.is_some() {
                break;
            }
        }
        let names = page.tickets.into_iter().map(|ticket| ticket.name).collect();
        (names, page.unreachable, page.next.map(|place| place.encode()).unwrap_or_default())
    }

    #[test]
    fn a_page_ends_where_the_next_one_begins() {
        let all = || {
            vec![
                ("east", found(&[("gala", 1), ("gala", 2)], "")),
                ("north", None),
                ("south", found(&[], "")),
                ("west", found(&[("ball", 7)], "")),
            ]
        };
        let one = "regions/east/events/gala/tickets/ga-1".to_owned();
        let two = "regions/east/events/gala/tickets/ga-2".to_owned();
        let three = "regions/west/events/ball/tickets/ga-7".to_owned();
        assert_eq!(gathered(all(), 9), (vec![one.clone(), two.clone(), three], vec!["north"], String::new()));
        assert_eq!(gathered(all(), 1), (vec![one.clone()], vec![], "east/gala/ga-1".to_owned()));
        assert_eq!(gathered(all(), 2), (vec![one, two], vec!["north"], "west//".to_owned()));
        // A region that has looked at enough for now ends the page, whatever it found.
        let some = vec![("east", found(&[], "mid")), ("west", found(&[("ball", 7)], ""))];
        assert_eq!(gathered(some, 9), (vec![], vec![], "east/mid/".to_owned()));
    }

    #[test]
    fn a_place_has_one_spelling() {
        let place = Place { region: "east".into(), event: "gala".into(), ticket: "ga-1".into() };
        assert_eq!(Place::decode(&place.encode()), Some(place));
        for text in ["", "east", "east/gala", "east/gala/ga-1/x"] {
            assert_eq!(Place::decode(text), None, "{text}");
        }
    }
}
