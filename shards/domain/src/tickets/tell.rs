//! What whoever watches is told of events, holds and tickets. It reads rows as they are after all that was decided together, and
//! changes none.

use tidewall_messages::tickets::change::What;
use tidewall_messages::tickets::{
    Change, EventDeleted, HoldEnded, HoldView, PurchaseView, Stock, TicketCancelled,
};

use crate::Context;
use crate::feed::Feed;

use super::commands::Event;
use super::model::*;
use super::queries::views;

/// Tells what has happened.
pub(super) fn tell(state: &State, context: &Context, event: &Event, feed: &mut Feed) {
    match event {
        Event::EventSaved { id, row, .. } => {
            let mut view = views::event(id, row, row.tiers.iter().zip(state.stock_of(row)));
            // They never change, and may be more than all else.
            view.tiers
                .iter_mut()
                .filter_map(|tier| tier.spec.as_mut())
                .for_each(|spec| spec.seat_rows.clear());
            feed.tell(id, &row.organiser, "", &Change::from(What::Event(view)));
        }
        Event::EventDeleted { id, organiser } => {
            feed.tell(id, organiser, "", &Change::from(What::Deleted(EventDeleted {})));
        }
        Event::Held { tier, number, hold } => {
            let key = (tier.0, tier.1, *number);
            of_tier(state, *tier, &hold.owner, feed, |row, spec| {
                What::Held(HoldView {
                    hold_id: views::hold_id(row, &key),
                    tier_id: spec.id.clone(),
                    quantity: hold.quantity,
                    seats: spec.seat_names(&hold.seats),
                    expires_at_ms: context
                        .now_ms
                        .saturating_add(hold.expires_ms.saturating_sub(context.steady_ms)),
                    ..HoldView::default()
                })
                .into()
            });
        }
        Event::HoldReleased { hold, owner, quantity } => {
            hold_ended(state, hold, owner, *quantity, false, feed);
        }
        // What is kept of it says whose it was.
        Event::HoldExpired { hold } => {
            if let Some(row) = state.holds.get(hold) {
                hold_ended(state, hold, &row.owner, row.quantity, true, feed);
            }
        }
        Event::HoldForgotten { .. } => {}
        Event::Sold { tier, first, count, seats, owner, from_hold, .. } => {
            of_tier(state, *tier, owner, feed, |row, spec| Change {
                from_hold_id: from_hold
                    .map_or_else(String::new, |number| views::hold_id(row, &(tier.0, tier.1, number))),
                ..Change::from(What::Sold(PurchaseView {
                    tier_id: spec.id.clone(),
                    first_number: *first,
                    count: *count,
                    seats: spec.seat_names(seats),
                }))
            });
        }
        Event::TicketCancelled { ticket } => {
            let Some(row) = state.tickets.get(ticket) else { return };
            of_tier(state, (ticket.0, ticket.1), &row.owner, feed, |_, spec| {
                let ticket_id = format!("{}-{}", spec.id, ticket.2);
                What::Cancelled(TicketCancelled { ticket_id, tier_id: spec.id.clone() }).into()
            });
        }
    }
}

fn hold_ended(state: &State, key: &NumberKey, owner: &str, quantity: u32, expired: bool, feed: &mut Feed) {
    of_tier(state, (key.0, key.1), owner, feed, |row, spec| {
        let hold_id = views::hold_id(row, key);
        What::HoldEnded(HoldEnded { hold_id, tier_id: spec.id.clone(), quantity, expired }).into()
    });
}

/// Tells what has happened in a tier, with its numbers.
fn of_tier(
    state: &State,
    tier: TierKey,
    owner: &str,
    feed: &mut Feed,
    what: impl FnOnce(&EventRow, &TierSpec) -> Change,
) {
    let Some(id) = state.events.derived().get(&tier.0) else { return };
    let Some(row) = state.event(id) else { return };
    let Some(spec) = row.tiers.get(usize::from(tier.1)) else { return };
    let stock = state.stock.get(&tier).copied().unwrap_or_default();
    let StockRow { free, held, sold, .. } = stock;
    let change = Change { stock: Some(Stock { free, held, sold }), ..what(row, spec) };
    feed.tell(id, &row.organiser, owner, &change);
}
