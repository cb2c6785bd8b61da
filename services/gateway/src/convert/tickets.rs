//! Events, holds and tickets in the words of the public API.

use prost::Message as _;
use prost_types::Timestamp;
use tidewall_messages::{Change, tickets};
use tidewall_proto::v1;

use super::{Decider, mismatch, timestamp};
use crate::errors::ApiError;
use crate::{names, request_id};

/// Absent for 0.
pub(super) fn optional_timestamp(ms: u64) -> Option<Timestamp> {
    (ms != 0).then(|| timestamp(ms))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn small(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Absent where nothing is to be paid.
fn price(currency_code: String, minor_units: u64) -> Option<v1::Money> {
    let free = currency_code.is_empty() && minor_units == 0;
    (!free).then(|| v1::Money { currency_code, minor_units: signed(minor_units) })
}

pub(crate) fn event(region: &str, view: tickets::EventView) -> v1::Event {
    v1::Event {
        name: names::event(region, &view.event_id),
        display_name: view.display_name,
        organiser: view.organiser,
        tiers: view.tiers.into_iter().map(tier).collect(),
        quota_per_buyer: small(view.quota_per_buyer),
        sale_open_time: optional_timestamp(view.sale_opens_at_ms),
        sale_close_time: optional_timestamp(view.sale_closes_at_ms),
        revision: view.revision,
    }
}

fn tier(view: tickets::TierView) -> v1::Tier {
    let spec = view.spec.unwrap_or_default();
    let seat_row = |row: tickets::SeatRowSpec| v1::SeatRow { label: row.label, seats: small(row.seats) };
    v1::Tier {
        tier_id: spec.tier_id,
        display_name: spec.display_name,
        capacity: signed(spec.capacity),
        price: price(spec.currency_code, spec.price_minor_units),
        seat_rows: spec.seat_rows.into_iter().map(seat_row).collect(),
        free: signed(view.free),
        held: signed(view.held),
        sold: signed(view.sold),
    }
}

/// A hold of `owner`: outcomes leave it to us to say who that is.
pub(crate) fn hold(region: &str, event: &str, owner: &str, view: tickets::HoldView) -> v1::Hold {
    v1::Hold {
        name: names::hold(region, event, &view.hold_id),
        owner: owner.to_owned(),
        tier_id: view.tier_id,
        quantity: small(view.quantity),
        seats: view.seats,
        expire_time: Some(timestamp(view.expires_at_ms)),
    }
}

pub(crate) fn purchase(region: &str, event: &str, view: tickets::PurchaseView) -> v1::Purchase {
    let first = view.first_number;
    let ticket = |offset: u32| {
        let number = first.saturating_add(u64::from(offset));
        format!("regions/{region}/events/{event}/tickets/{}-{number}", view.tier_id)
    };
    v1::Purchase { tickets: (0..view.count).map(ticket).collect(), tier_id: view.tier_id, seats: view.seats }
}

pub(crate) fn ticket(region: &str, event: &str, view: tickets::TicketView) -> v1::Ticket {
    let state = if view.cancelled { v1::TicketState::Cancelled } else { v1::TicketState::Valid };
    v1::Ticket {
        name: names::ticket(region, event, &view.ticket_id),
        owner: view.owner,
        tier_id: view.tier_id,
        seat: view.seat,
        price: price(view.currency_code, view.price_minor_units),
        state: state.into(),
        create_time: Some(timestamp(view.sold_at_ms)),
        request_id: request_id::format(&view.request_id),
    }
}

/// What the ticket module decided for a request of `caller`.
pub(super) fn show(
    Decider { region, caller }: Decider<'_>,
    outcome: &[u8],
) -> Result<Option<v1::get_outcome_response::Result>, ApiError> {
    use tickets::outcome::Result as Done;
    use v1::get_outcome_response::Result as Shown;
    let outcome = tickets::Outcome::decode(outcome).map_err(|_| mismatch())?;
    let event_id = outcome.event_id;
    Ok(Some(match outcome.result.ok_or_else(mismatch)? {
        Done::Event(view) => Shown::Event(event(region, view)),
        Done::Hold(view) => Shown::Hold(hold(region, &event_id, caller, view)),
        Done::Purchase(view) => Shown::Purchase(purchase(region, &event_id, view)),
        Done::Cancelled(view) => Shown::CancelledTicket(names::ticket(region, &event_id, &view.ticket_id)),
        Done::DeletedEventId(id) => Shown::DeletedEvent(names::event(region, &id)),
        Done::ReleasedHoldId(id) => Shown::ReleasedHold(names::hold(region, &event_id, &id)),
    }))
}

/// What has happened to an event, a hold or a ticket.
pub(super) fn change(region: &str, change: &Change) -> Result<Option<v1::Change>, ApiError> {
    use tickets::change::What;
    use v1::ChangeKind as Kind;
    use v1::change::What as Shown;
    let id = change.row.as_str();
    let tickets::Change { what, stock, from_hold_id } =
        tickets::Change::decode(change.payload.as_slice()).map_err(|_| mismatch())?;
    let Some(what) = what else { return Ok(None) };
    let tier_id = match &what {
        What::Event(_) | What::Deleted(_) => String::new(),
        What::Held(view) => view.tier_id.clone(),
        What::HoldEnded(view) => view.tier_id.clone(),
        What::Sold(view) => view.tier_id.clone(),
        What::Cancelled(view) => view.tier_id.clone(),
    };
    let (kind, what) = match what {
        What::Event(view) => (Kind::EventSaved, Some(Shown::SavedEvent(event(region, view)))),
        What::Deleted(_) => (Kind::EventDeleted, None),
        What::Held(view) => (Kind::HoldPlaced, Some(Shown::Hold(hold(region, id, &change.owner, view)))),
        What::HoldEnded(view) => {
            let ended = v1::Hold {
                name: names::hold(region, id, &view.hold_id),
                owner: change.owner.clone(),
                tier_id: view.tier_id,
                quantity: small(view.quantity),
                ..v1::Hold::default()
            };
            let kind = if view.expired { Kind::HoldExpired } else { Kind::HoldReleased };
            (kind, Some(Shown::EndedHold(ended)))
        }
        What::Sold(view) => (Kind::TicketsSold, Some(Shown::Purchase(purchase(region, id, view)))),
        What::Cancelled(view) => {
            (Kind::TicketCancelled, Some(Shown::CancelledTicket(names::ticket(region, id, &view.ticket_id))))
        }
    };
    let from_hold =
        if from_hold_id.is_empty() { String::new() } else { names::hold(region, id, &from_hold_id) };
    let stock = stock.map(|stock| v1::TierStock {
        tier_id,
        free: signed(stock.free),
        held: signed(stock.held),
        sold: signed(stock.sold),
    });
    let event = names::event(region, id);
    Ok(Some(v1::Change { kind: kind.into(), event, what, from_hold, stock, ..v1::Change::default() }))
}
