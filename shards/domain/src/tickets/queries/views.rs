//! Rows as answers show them. Translates; decides nothing.

use tidewall_messages::tickets::{EventView, HoldView, TicketView, TierSpec as ShownSpec, TierView};

use super::super::model::*;
use crate::Now;

/// An event with the numbers of its tiers.
pub fn event<'a>(
    id: &str,
    row: &EventRow,
    tiers: impl Iterator<Item = (&'a TierSpec, StockRow)>,
) -> EventView {
    let tier = |(spec, stock): (&TierSpec, StockRow)| TierView {
        spec: Some(ShownSpec { capacity: stock.capacity, ..ShownSpec::from(spec) }),
        free: stock.free,
        held: stock.held,
        sold: stock.sold,
    };
    EventView {
        event_id: id.to_owned(),
        display_name: row.display_name.clone(),
        organiser: row.organiser.clone(),
        quota_per_buyer: row.quota,
        sale_opens_at_ms: row.opens_ms,
        sale_closes_at_ms: row.closes_ms,
        revision: row.revision,
        tiers: tiers.map(tier).collect(),
    }
}

/// A ticket with the names that belong to it.
pub fn ticket(event: &EventRow, key: &NumberKey, row: &TicketRow) -> TicketView {
    let spec = event.tiers.get(usize::from(key.1));
    let tier_id = spec.map(|spec| spec.id.clone()).unwrap_or_default();
    TicketView {
        ticket_id: format!("{tier_id}-{}", key.2),
        owner: row.owner.to_string(),
        seat: match (spec, row.seat) {
            (Some(spec), Some(seat)) => spec.seat_name(seat),
            _ => String::new(),
        },
        currency_code: row.price.currency.as_str().to_owned(),
        price_minor_units: row.price.minor_units,
        cancelled: row.cancelled,
        sold_at_ms: row.sold_ms,
        request_id: row.request_id.to_be_bytes().to_vec(),
        organiser: event.organiser.clone(),
        tier_id,
    }
}

/// Id of a hold within its event.
pub fn hold_id(event: &EventRow, key: &NumberKey) -> String {
    let tier_id = event.tiers.get(usize::from(key.1)).map_or("", |spec| &spec.id);
    format!("{tier_id}-h{}", key.2)
}

/// A hold that lives, with the names that belong to it.
pub fn hold(event: &EventRow, key: &NumberKey, row: &HoldRow, now: Now) -> HoldView {
    let spec = event.tiers.get(usize::from(key.1));
    let tier_id = spec.map(|spec| spec.id.clone()).unwrap_or_default();
    HoldView {
        hold_id: hold_id(event, key),
        owner: row.owner.to_string(),
        quantity: row.quantity,
        seats: spec.map(|spec| spec.seat_names(&row.seats)).unwrap_or_default(),
        // It falls due by steady time: this is when that is, as log time goes now.
        expires_at_ms: now.log_ms.saturating_add(row.expires_ms.saturating_sub(now.steady_ms)),
        organiser: event.organiser.clone(),
        tier_id,
    }
}
