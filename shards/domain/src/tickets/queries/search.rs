//! What somebody has in all events of a region. It looks at a bounded number of events, and says where to go on.

use prost::Message as _;
use tidewall_messages::tickets::{SearchTickets, TicketFound, TicketsFound};

use tidewall_mutant::{Mutant, active};

use super::super::commands::parse_ticket_id;
use super::super::model::*;
use super::views;
use crate::page::{PAGE_BYTES_MAX, PAGE_ITEMS_MAX};

/// Most events that one search looks at.
const EVENTS_MAX: usize = 1_000;

/// The tickets of an owner, by event.
pub(super) fn tickets(state: &State, asked: &SearchTickets) -> TicketsFound {
    let limit = asked.limit.clamp(1, PAGE_ITEMS_MAX) as usize;
    let (mut tickets, mut bytes) = (Vec::new(), 0);
    for (looked_at, (id, row)) in state.events_from(&asked.from_event_id).enumerate() {
        let mut last = if id == asked.from_event_id { asked.after_ticket_id.clone() } else { String::new() };
        if looked_at == EVENTS_MAX {
            return TicketsFound { tickets, next_event_id: id.to_owned(), after_ticket_id: last };
        }
        let after = parse_ticket_id(row, &last).map_or((0, 0), |key| (key.1, key.2));
        for (key, ticket) in state.tickets_after(row.no, Some(&asked.owner), after, limit + 1 - tickets.len())
        {
            let found =
                TicketFound { event_id: id.to_owned(), ticket: Some(views::ticket(row, &key, ticket)) };
            bytes += found.encoded_len();
            if tickets.len() == limit || (bytes > PAGE_BYTES_MAX && !tickets.is_empty()) {
                if active(Mutant::SearchSkipsATicket) {
                    last = found.ticket.map(|ticket| ticket.ticket_id).unwrap_or_default();
                }
                return TicketsFound { tickets, next_event_id: id.to_owned(), after_ticket_id: last };
            }
            last = found.ticket.as_ref().map(|ticket| ticket.ticket_id.clone()).unwrap_or_default();
            tickets.push(found);
        }
    }
    TicketsFound { tickets, ..TicketsFound::default() }
}
