//! Whether the fields of an event make sense. It must never look at other rows.

use std::collections::BTreeSet;

use super::super::model::*;
use super::Rejection;
use crate::tickets::DELETES_EVENTS;

/// Checks an event with its id and its tiers; the rejection names the field.
pub(super) fn check_event(id: &str, row: &EventRow, apply_version: u32) -> Result<(), Rejection> {
    let bad = |field: &str, why: String| Err(Rejection::invalid(field, why));
    let id_ok = (4..=40).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !id_ok {
        return bad("event_id", format!("{id:?} is not 4 to 40 of [a-z0-9-] starting with a letter"));
    }
    if row.display_name.is_empty() || row.display_name.len() > 200 {
        return bad("event.display_name", "must have 1 to 200 bytes".into());
    }
    if row.quota == 0 || row.quota > QUOTA_MAX {
        return bad("event.quota_per_buyer", format!("must be 1 to {QUOTA_MAX}"));
    }
    if row.closes_ms != 0 && row.closes_ms <= row.opens_ms {
        return match apply_version {
            ..DELETES_EVENTS => bad("event.sale_closes_at", "must be later than sale_opens_at".into()),
            _ => bad("event.sale_close_time", "must be later than sale_open_time".into()),
        };
    }
    if row.tiers.is_empty() || row.tiers.len() > TIERS_MAX {
        return bad("event.tiers", format!("an event has 1 to {TIERS_MAX} tiers"));
    }
    let seat_rows: usize = row.tiers.iter().map(|tier| tier.seat_rows.len()).sum();
    if seat_rows > SEAT_ROWS_MAX {
        return bad(
            "event.tiers",
            format!("an event has at most {SEAT_ROWS_MAX} rows of seats, not {seat_rows}"),
        );
    }
    for (at, tier) in row.tiers.iter().enumerate() {
        let field = |name: &str| format!("event.tiers[{at}].{name}");
        let id_ok = (1..=32).contains(&tier.id.len())
            && tier.id.starts_with(|c: char| c.is_ascii_lowercase())
            && tier.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !id_ok {
            return bad(&field("tier_id"), "must be 1 to 32 of [a-z0-9] starting with a letter".into());
        }
        if row.tiers[..at].iter().any(|other| other.id == tier.id) {
            return bad(&field("tier_id"), format!("{:?} is used twice", tier.id));
        }
        if tier.display_name.len() > 200 {
            return bad(&field("display_name"), "must have at most 200 bytes".into());
        }
        if tier.capacity == 0 || tier.capacity > CAPACITY_MAX {
            return bad(&field("capacity"), format!("must be 1 to {CAPACITY_MAX}"));
        }
        let currency = Currency::parse(&tier.currency);
        if currency.is_none_or(|currency| currency == Currency::default() && tier.price > 0) {
            return bad(
                &field("price.currency_code"),
                "must be three capital letters, for example EUR".into(),
            );
        }
        if tier.price > i64::MAX as u64 {
            return bad(&field("price.minor_units"), "is too large".into());
        }
        check_seat_rows(tier).or_else(|why| bad(&field("seat_rows"), why))?;
    }
    Ok(())
}

/// Checks the seat rows of a tier with numbers; the error says what is wrong with them.
fn check_seat_rows(tier: &TierSpec) -> Result<(), String> {
    if !tier.numbered() {
        return Ok(());
    }
    let mut labels = BTreeSet::new();
    for row in &tier.seat_rows {
        let label_ok =
            (1..=8).contains(&row.label.len()) && row.label.bytes().all(|b| b.is_ascii_alphanumeric());
        if !label_ok {
            return Err(format!("the label {:?} is not 1 to 8 of [A-Za-z0-9]", row.label));
        }
        if row.seats == 0 || row.seats > 10_000 {
            return Err(format!("row {:?} must have 1 to 10000 seats", row.label));
        }
        if !labels.insert(&row.label) {
            return Err(format!("row {:?} is listed twice", row.label));
        }
    }
    let all: u64 = tier.seat_rows.iter().map(|row| u64::from(row.seats)).sum();
    if all != tier.capacity || all > SEATS_MAX {
        return Err(format!("the rows have {all} seats: that must be the capacity, and at most {SEATS_MAX}"));
    }
    Ok(())
}
