//! Reads over the rows of the ticket module. Nothing here changes anything.

mod search;
pub mod views;

use prost::Message;
use tidewall_messages::tickets::answer::Result as Found;
use tidewall_messages::tickets::command::Op as Asked;
use tidewall_messages::tickets::query::Op;
use tidewall_messages::tickets::{
    Answer, Command, EventList, EventView, HoldList, ListHolds, ListTickets, Query, TicketList,
};

use super::commands::{Rejection, parse_hold_id, parse_ticket_id};
use super::model::*;
use crate::Now;
use crate::page::{PAGE_BYTES_MAX, PAGE_ITEMS_MAX, page};

/// Most events in a page.
const EVENTS_MAX: u32 = 200;
/// Most rows of holds that one query looks at.
const HOLDS_LOOKED_AT_MAX: usize = 4_000;

/// One tier with its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierView<'a> {
    /// What it is.
    pub spec: &'a TierSpec,
    /// Its numbers.
    pub stock: StockRow,
}

/// Answers a query.
pub(super) fn query(state: &State, now: Now, query: &Query) -> Result<Answer, Rejection> {
    let found = match &query.op {
        Some(Op::GetEvent(asked)) => {
            Found::Event(shown(state, now, &asked.event_id, state.known(&asked.event_id)?))
        }
        Some(Op::ListEvents(asked)) => {
            let events =
                state.events_after(&asked.after_event_id).map(|(id, row)| shown(state, now, id, row));
            let (events, more) = page(events, asked.limit, EVENTS_MAX);
            Found::Events(EventList { events, more })
        }
        Some(Op::GetTicket(asked)) => {
            let row = state.known(&asked.event_id)?;
            let key = parse_ticket_id(row, &asked.ticket_id);
            let found = key.and_then(|key| Some((key, state.ticket(&key)?)));
            let (key, ticket) = found.ok_or_else(|| Rejection::TicketNotFound(asked.ticket_id.clone()))?;
            Found::Ticket(views::ticket(row, &key, ticket))
        }
        Some(Op::ListTickets(asked)) => Found::Tickets(tickets(state, state.known(&asked.event_id)?, asked)?),
        Some(Op::GetHold(asked)) => {
            let row = state.known(&asked.event_id)?;
            let found =
                parse_hold_id(row, &asked.hold_id).and_then(|key| Some((key, state.holds.get(&key)?)));
            let found = found.filter(|(_, hold)| hold.lives(now.steady_ms));
            let (key, hold) = found.ok_or_else(|| Rejection::HoldNotFound(asked.hold_id.clone()))?;
            Found::Hold(views::hold(row, &key, hold, now))
        }
        Some(Op::ListHolds(asked)) => Found::Holds(holds(state, now, state.known(&asked.event_id)?, asked)?),
        Some(Op::SearchTickets(asked)) => Found::Found(search::tickets(state, asked)),
        None => return Err(Rejection::invalid("op", "the query asks for nothing that this build has")),
    };
    Ok(Answer { result: Some(found) })
}

fn shown(state: &State, now: Now, id: &str, row: &EventRow) -> EventView {
    views::event(id, row, state.tiers(row, now.steady_ms).map(|tier| (tier.spec, tier.stock)))
}

fn tickets(state: &State, row: &EventRow, asked: &ListTickets) -> Result<TicketList, Rejection> {
    let after = match asked.after_ticket_id.as_str() {
        "" => (0, 0),
        id => {
            let key = parse_ticket_id(row, id).ok_or_else(|| Rejection::TicketNotFound(id.to_owned()))?;
            (key.1, key.2)
        }
    };
    let owner = (!asked.owner.is_empty()).then_some(asked.owner.as_str());
    let found = state.tickets_after(row.no, owner, after, asked.limit.clamp(1, PAGE_ITEMS_MAX) as usize + 1);
    let found = found.into_iter().map(|(key, found)| views::ticket(row, &key, found));
    let (tickets, more) = page(found, asked.limit, PAGE_ITEMS_MAX);
    Ok(TicketList { tickets, more, organiser: row.organiser.clone() })
}

fn holds(state: &State, now: Now, row: &EventRow, asked: &ListHolds) -> Result<HoldList, Rejection> {
    let mut list = HoldList { organiser: row.organiser.clone(), ..HoldList::default() };
    if !asked.sees_all && asked.caller != asked.owner && asked.caller != row.organiser {
        return Ok(list);
    }
    let after = match asked.after_hold_id.as_str() {
        "" => (row.no, 0, 0),
        id => parse_hold_id(row, id).ok_or_else(|| Rejection::HoldNotFound(id.to_owned()))?,
    };
    let own;
    let rows: &mut dyn Iterator<Item = (NumberKey, &HoldRow)> = match asked.owner.as_str() {
        "" => &mut state
            .holds
            .range_from(&after)
            .take_while(|(key, _)| key.0 == row.no)
            .map(|(key, hold)| (*key, hold)),
        owner => {
            own = state.holds.derived().live(row.no, owner, now.steady_ms);
            &mut own.iter().filter_map(|key| Some((*key, state.holds.get(key)?)))
        }
    };
    let (mut last, mut bytes) = (after, 0);
    // What is over stays for a while: there may be more of that than of what lives.
    for (looked_at, (key, hold)) in rows.filter(|(key, _)| *key > after).enumerate() {
        let view = hold.lives(now.steady_ms).then(|| views::hold(row, &key, hold, now));
        bytes += view.as_ref().map_or(0, Message::encoded_len);
        let full = list.holds.len() >= asked.limit.clamp(1, PAGE_ITEMS_MAX) as usize
            || (bytes > PAGE_BYTES_MAX && !list.holds.is_empty());
        if (full && view.is_some()) || looked_at == HOLDS_LOOKED_AT_MAX {
            list.next_after_hold_id = views::hold_id(row, &last);
            return Ok(list);
        }
        list.holds.extend(view);
        last = key;
    }
    Ok(list)
}

/// The rejection of a purchase or hold that the log would certainly refuse as sold out. When seats are named, or a hold of the
/// tier could be due by now, the log must decide.
pub(super) fn quick_no(state: &State, now: Now, command: &Command) -> Option<Rejection> {
    let (event, tier, quantity, seats) = match command.op.as_ref()? {
        Asked::Buy(buy) => (&buy.event_id, &buy.tier_id, buy.quantity, &buy.seats),
        Asked::Hold(hold) => (&hold.event_id, &hold.tier_id, hold.quantity, &hold.seats),
        _ => return None,
    };
    if seats.is_empty() { state.sold_out(event, tier, quantity, now) } else { None }
}

impl State {
    /// The event with this id.
    pub fn event(&self, id: &str) -> Option<&EventRow> {
        // The table's keys are owned strings; a page is one event, so this is one look-up.
        self.events.get(&id.to_owned())
    }

    /// The event with this id, or why there is none.
    fn known(&self, id: &str) -> Result<&EventRow, Rejection> {
        self.event(id).ok_or_else(|| Rejection::EventNotFound(id.to_owned()))
    }

    /// Events from an id on, ordered by id.
    pub fn events_from(&self, from: &str) -> impl Iterator<Item = (&str, &EventRow)> {
        self.events.range_from(&from.to_owned()).map(|(id, row)| (id.as_str(), row))
    }

    /// Events after an id (exclusive), ordered by id.
    pub fn events_after<'a>(&'a self, after: &'a str) -> impl Iterator<Item = (&'a str, &'a EventRow)> {
        self.events_from(after).filter(move |(id, _)| *id > after)
    }

    /// The numbers of an event's tiers, in their order, as the rows say.
    pub fn stock_of<'a>(&'a self, event: &'a EventRow) -> impl Iterator<Item = StockRow> + 'a {
        (0..event.tiers.len())
            .map(|no| self.stock.get(&(event.no, no as TierNo)).copied().unwrap_or_default())
    }

    /// The tiers of an event, with their numbers: what is due by `now_ms` of steady time is free, whether it was ended or not.
    pub fn tiers<'a>(&'a self, event: &'a EventRow, now_ms: u64) -> impl Iterator<Item = TierView<'a>> {
        event.tiers.iter().zip(self.stock_of(event)).enumerate().map(move |(no, (spec, mut stock))| {
            let due = self.holds.derived().due((event.no, no as TierNo), now_ms);
            let due: u64 = due.map(|(_, places)| u64::from(places)).sum();
            stock.held = stock.held.saturating_sub(due);
            stock.free += due;
            TierView { spec, stock }
        })
    }

    /// A ticket.
    pub fn ticket(&self, key: &NumberKey) -> Option<&TicketRow> {
        self.tickets.get(key)
    }

    /// Tickets of an event after a key (exclusive), of one owner or of all.
    pub fn tickets_after(
        &self,
        event: EventNo,
        owner: Option<&str>,
        after: (TierNo, u64),
        limit: usize,
    ) -> Vec<(NumberKey, &TicketRow)> {
        match owner {
            Some(owner) => {
                let Some(mine) = self.tickets.derived().of(event, owner) else { return Vec::new() };
                let from = (after.0, after.1.saturating_add(1));
                let keys = mine.tickets.range(from..).take(limit);
                keys.filter_map(|(tier, number)| {
                    let key = (event, *tier, *number);
                    Some((key, self.tickets.get(&key)?))
                })
                .collect()
            }
            None => self
                .tickets
                .range_from(&(event, after.0, after.1.saturating_add(1)))
                .take_while(|(key, _)| key.0 == event)
                .take(limit)
                .map(|(key, row)| (*key, row))
                .collect(),
        }
    }

    /// Why a purchase or hold of `quantity` places can only be refused as sold out now.
    fn sold_out(&self, event: &str, tier: &str, quantity: u32, now: Now) -> Option<Rejection> {
        let row = self.event(event)?;
        let (no, _) = row.tier(tier)?;
        let key = (row.no, no);
        let stock = self.stock.get(&key)?;
        let due = self.holds.derived().due(key, now.steady_ms).next().is_some();
        let open = now.log_ms >= row.opens_ms && (row.closes_ms == 0 || now.log_ms < row.closes_ms);
        let lasts = stock.free >= u64::from(quantity.max(1));
        (!lasts && !due && open).then_some(Rejection::SoldOut { asked: quantity, free: stock.free })
    }
}
