//! The limits that the .proto comments promise, checked before anything is sent. The domain checks them again:
//! this is for early and exact answers, not for safety.

use std::collections::BTreeSet;

use prost_types::{Duration, FieldMask, Timestamp};
use tidewall_messages::tickets;
use tidewall_proto::v1;

use crate::auth::{SUBJECT_BYTES_MAX, valid_subject};
use crate::errors::ApiError;
use crate::names::{valid_event_id, valid_tier_id};

const DISPLAY_NAME_BYTES_MAX: usize = 200;
const TIERS_MAX: usize = 32;
const CAPACITY_MAX: i64 = 10_000_000;
const SEATS_PER_ROW_MAX: i32 = 10_000;
const SEATS_PER_TIER_MAX: u64 = 100_000;
const QUOTA_MAX: i32 = 100_000;
const QUOTA_DEFAULT: u32 = 10;
const QUANTITY_MAX: u32 = 100;
const TTL_MS: std::ops::RangeInclusive<u32> = 1_000..=3_600_000;
const TTL_MS_DEFAULT: u32 = 300_000;
/// Most purchases of one batch.
pub(crate) const BATCH_MAX: usize = 1000;

/// The tier and the places that somebody wants.
pub(crate) struct Places {
    pub(crate) tier_id: String,
    pub(crate) quantity: u32,
    pub(crate) seats: Vec<String>,
}

/// Checks what is to be held or bought. `prefix` goes before field names.
pub(crate) fn places(
    prefix: &str,
    tier_id: String,
    quantity: i32,
    seats: Vec<String>,
) -> Result<Places, ApiError> {
    if !valid_tier_id(&tier_id) {
        return Err(ApiError::field(
            format!("{prefix}tier_id"),
            "must be the id of a tier of the event: 1 to 32 of [a-z0-9], starting with a letter",
        ));
    }
    if seats.len() > QUANTITY_MAX as usize {
        return Err(ApiError::field(
            format!("{prefix}seats"),
            format!("at most {QUANTITY_MAX} seats per request"),
        ));
    }
    let mut seen = BTreeSet::new();
    for (position, seat) in seats.iter().enumerate() {
        let field = || format!("{prefix}seats[{position}]");
        if !valid_seat(seat) {
            return Err(ApiError::field(field(), "must be a row's label and a number, for example A-12"));
        }
        if !seen.insert(seat.as_str()) {
            return Err(ApiError::field(field(), "names a seat that is already in the list"));
        }
    }
    let named = seats.len() as u32;
    let quantity = match u32::try_from(quantity) {
        Ok(0) if named > 0 => named,
        Ok(quantity @ 1..=QUANTITY_MAX) if named == 0 || named == quantity => quantity,
        Ok(1..=QUANTITY_MAX) => {
            return Err(ApiError::field(
                format!("{prefix}quantity"),
                format!("must be 0 or the number of seats, {named}"),
            ));
        }
        _ => {
            return Err(ApiError::field(format!("{prefix}quantity"), format!("must be 1 to {QUANTITY_MAX}")));
        }
    };
    Ok(Places { tier_id, quantity, seats })
}

fn valid_seat(seat: &str) -> bool {
    let Some((label, number)) = seat.split_once('-') else {
        return false;
    };
    valid_row_label(label)
        && (1..=5).contains(&number.len())
        && number.bytes().all(|b| b.is_ascii_digit())
        && !number.starts_with('0')
        && number.parse().is_ok_and(|number: i32| number <= SEATS_PER_ROW_MAX)
}

fn valid_row_label(label: &str) -> bool {
    (1..=8).contains(&label.len()) && label.bytes().all(|b| b.is_ascii_alphanumeric())
}

/// How long a hold lasts, ms.
pub(crate) fn ttl_ms(ttl: Option<&Duration>) -> Result<u32, ApiError> {
    let Some(Duration { seconds, nanos }) = ttl else { return Ok(TTL_MS_DEFAULT) };
    let ms = u32::try_from(*seconds).ok().and_then(|seconds| seconds.checked_mul(1_000));
    let ms = ms
        .filter(|_| (0..1_000_000_000).contains(nanos))
        .map(|ms| ms.saturating_add(*nanos as u32 / 1_000_000));
    ms.filter(|ms| TTL_MS.contains(ms))
        .ok_or_else(|| ApiError::field("ttl", "must be 1 s to 1 h, or absent for 5 minutes"))
}

/// Who will own the tickets of a batch's purchase.
pub(crate) fn buyer(field: &str, buyer: &str) -> Result<(), ApiError> {
    if valid_subject(buyer) {
        return Ok(());
    }
    Err(ApiError::field(
        field,
        format!("must be 1 to {SUBJECT_BYTES_MAX} bytes without control characters, and not *"),
    ))
}

/// The id of a new event, empty when the region shall choose.
pub(crate) fn new_event_id(event_id: &str) -> Result<(), ApiError> {
    if event_id.is_empty() || valid_event_id(event_id) {
        return Ok(());
    }
    Err(ApiError::field("event_id", "must be empty or 4 to 40 of [a-z0-9-], starting with a letter"))
}

fn display_name(field: &str, text: &str, least: usize) -> Result<(), ApiError> {
    if (least..=DISPLAY_NAME_BYTES_MAX).contains(&text.len()) && !text.chars().any(char::is_control) {
        return Ok(());
    }
    Err(ApiError::field(
        field,
        format!("must be {least} to {DISPLAY_NAME_BYTES_MAX} bytes without control characters"),
    ))
}

fn quota(quota: i32, least: i32) -> Result<u32, ApiError> {
    if (least..=QUOTA_MAX).contains(&quota) {
        return Ok(if quota == 0 { QUOTA_DEFAULT } else { quota as u32 });
    }
    Err(ApiError::field("event.quota_per_buyer", format!("must be {least} to {QUOTA_MAX}")))
}

/// Unix ms; 0 when absent.
fn time_ms(field: &str, time: Option<&Timestamp>) -> Result<u64, ApiError> {
    let Some(time) = time else { return Ok(0) };
    let ms = u64::try_from(time.seconds)
        .ok()
        .filter(|seconds| *seconds <= 253_402_300_799 && (0..1_000_000_000).contains(&time.nanos))
        .map(|seconds| seconds * 1000 + time.nanos as u64 / 1_000_000);
    // 0 would silently mean "absent".
    ms.filter(|ms| *ms > 0).ok_or_else(|| {
        ApiError::field(field, "must be a valid time after 1970 and before the year 10000, or absent")
    })
}

fn sale_window(opens_at_ms: u64, closes_at_ms: u64) -> Result<(), ApiError> {
    if closes_at_ms != 0 && closes_at_ms <= opens_at_ms {
        return Err(ApiError::field("event.sale_close_time", "must be after sale_open_time"));
    }
    Ok(())
}

fn tiers(tiers: &[v1::Tier]) -> Result<Vec<tickets::TierSpec>, ApiError> {
    if !(1..=TIERS_MAX).contains(&tiers.len()) {
        return Err(ApiError::field("event.tiers", format!("must be 1 to {TIERS_MAX} tiers")));
    }
    let mut seen = BTreeSet::new();
    let mut specs = Vec::with_capacity(tiers.len());
    for (position, tier) in tiers.iter().enumerate() {
        let field = |name: &str| format!("event.tiers[{position}].{name}");
        if !valid_tier_id(&tier.tier_id) {
            return Err(ApiError::field(
                field("tier_id"),
                "must be 1 to 32 of [a-z0-9], starting with a letter",
            ));
        }
        if !seen.insert(tier.tier_id.as_str()) {
            return Err(ApiError::field(field("tier_id"), "is the id of an earlier tier"));
        }
        display_name(&field("display_name"), &tier.display_name, 0)?;
        let seat_rows = seat_rows(&field, &tier.seat_rows)?;
        let seats: u64 = seat_rows.iter().map(|row| u64::from(row.seats)).sum();
        let capacity = match tier.capacity {
            0 if seats > 0 => seats,
            capacity @ 1..=CAPACITY_MAX if seats == 0 || capacity as u64 == seats => capacity as u64,
            1..=CAPACITY_MAX => {
                return Err(ApiError::field(
                    field("capacity"),
                    format!("must be 0 or the number of seats in seat_rows, {seats}"),
                ));
            }
            _ => {
                return Err(ApiError::field(field("capacity"), format!("must be 1 to {CAPACITY_MAX}")));
            }
        };
        let (currency_code, price_minor_units) = price(&field, tier.price.as_ref())?;
        specs.push(tickets::TierSpec {
            tier_id: tier.tier_id.clone(),
            display_name: tier.display_name.clone(),
            capacity,
            currency_code,
            price_minor_units,
            seat_rows,
        });
    }
    Ok(specs)
}

fn price(field: &dyn Fn(&str) -> String, price: Option<&v1::Money>) -> Result<(String, u64), ApiError> {
    let Some(price) = price else {
        return Ok((String::new(), 0));
    };
    let units = u64::try_from(price.minor_units)
        .map_err(|_| ApiError::field(field("price.minor_units"), "must not be negative"))?;
    let code = &price.currency_code;
    let named = code.len() == 3 && code.bytes().all(|b| b.is_ascii_uppercase());
    let free = code.is_empty() && units == 0;
    if !named && !free {
        return Err(ApiError::field(
            field("price.currency_code"),
            "must be three capital letters as in ISO 4217, for example EUR",
        ));
    }
    Ok((code.clone(), units))
}

fn seat_rows(
    field: &dyn Fn(&str) -> String,
    rows: &[v1::SeatRow],
) -> Result<Vec<tickets::SeatRowSpec>, ApiError> {
    let mut seen = BTreeSet::new();
    let mut total = 0u64;
    let mut specs = Vec::with_capacity(rows.len());
    for (position, row) in rows.iter().enumerate() {
        let field = |name: &str| field(&format!("seat_rows[{position}].{name}"));
        if !valid_row_label(&row.label) {
            return Err(ApiError::field(field("label"), "must be 1 to 8 of [A-Za-z0-9]"));
        }
        if !seen.insert(row.label.as_str()) {
            return Err(ApiError::field(field("label"), "is the label of an earlier row"));
        }
        if !(1..=SEATS_PER_ROW_MAX).contains(&row.seats) {
            return Err(ApiError::field(field("seats"), format!("must be 1 to {SEATS_PER_ROW_MAX}")));
        }
        total += row.seats as u64;
        if total > SEATS_PER_TIER_MAX {
            return Err(ApiError::field(
                field("seats"),
                format!("the tier has more than {SEATS_PER_TIER_MAX} seats up to here"),
            ));
        }
        specs.push(tickets::SeatRowSpec { label: row.label.clone(), seats: row.seats as u32 });
    }
    Ok(specs)
}

/// A new event.
pub(crate) fn create_event(
    event_id: String,
    event: Option<&v1::Event>,
) -> Result<tickets::CreateEvent, ApiError> {
    new_event_id(&event_id)?;
    let Some(event) = event else {
        return Err(ApiError::field("event", "is missing"));
    };
    display_name("event.display_name", &event.display_name, 1)?;
    let opens = time_ms("event.sale_open_time", event.sale_open_time.as_ref())?;
    let closes = time_ms("event.sale_close_time", event.sale_close_time.as_ref())?;
    sale_window(opens, closes)?;
    Ok(tickets::CreateEvent {
        event_id,
        display_name: event.display_name.clone(),
        quota_per_buyer: quota(event.quota_per_buyer, 0)?,
        sale_opens_at_ms: opens,
        sale_closes_at_ms: closes,
        tiers: tiers(&event.tiers)?,
    })
}

/// A change of the fields that the mask names.
pub(crate) fn update_event(
    event_id: String,
    event: &v1::Event,
    mask: Option<&FieldMask>,
) -> Result<tickets::UpdateEvent, ApiError> {
    let mask_error = |message: String| ApiError::field_reason("update_mask", "UPDATE_MASK_INVALID", message);
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        return Err(mask_error(
            "names no field: list what shall change, of display_name, quota_per_buyer, sale_open_time, \
             sale_close_time, tiers"
                .to_owned(),
        ));
    }
    let mut change =
        tickets::UpdateEvent { event_id, expected_revision: event.revision, ..Default::default() };
    for path in paths {
        match path.as_str() {
            "display_name" => {
                display_name("event.display_name", &event.display_name, 1)?;
                change.display_name = Some(event.display_name.clone());
            }
            "quota_per_buyer" => change.quota_per_buyer = Some(quota(event.quota_per_buyer, 1)?),
            "sale_open_time" => {
                change.sale_opens_at_ms =
                    Some(time_ms("event.sale_open_time", event.sale_open_time.as_ref())?);
            }
            "sale_close_time" => {
                change.sale_closes_at_ms =
                    Some(time_ms("event.sale_close_time", event.sale_close_time.as_ref())?);
            }
            "tiers" => {
                change.tiers = tiers(&event.tiers)?;
                change.set_tiers = true;
            }
            other => {
                let shown: String = other.chars().take(60).collect();
                return Err(mask_error(format!(
                    "{shown:?} cannot be changed: use display_name, quota_per_buyer, sale_open_time, \
                     sale_close_time, tiers"
                )));
            }
        }
    }
    if let (Some(opens), Some(closes)) = (change.sale_opens_at_ms, change.sale_closes_at_ms) {
        sale_window(opens, closes)?;
    }
    Ok(change)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn field<T>(result: Result<T, ApiError>) -> String {
        match result {
            Err(ApiError::Field { field, .. }) => field,
            Err(other) => panic!("{other:?}"),
            Ok(_) => panic!("must be refused"),
        }
    }

    fn seats(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn event() -> v1::Event {
        v1::Event {
            display_name: "Gala".into(),
            tiers: vec![v1::Tier {
                tier_id: "ga".into(),
                capacity: 100,
                price: Some(v1::Money { currency_code: "EUR".into(), minor_units: 4500 }),
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn quantities_and_seats_must_fit() {
        let places = |quantity, names: &[&str]| places("", "ga".into(), quantity, seats(names));
        assert_eq!(places(100, &[]).unwrap().quantity, 100);
        assert_eq!(places(0, &["A-1", "A-10000"]).unwrap().quantity, 2);
        assert_eq!(places(1, &["A-1"]).unwrap().quantity, 1);
        for quantity in [0, -1, 101, i32::MAX, i32::MIN] {
            assert_eq!(field(places(quantity, &[])), "quantity", "{quantity}");
        }
        assert_eq!(field(places(2, &["A-1"])), "quantity");
        for seat in ["", "A", "A-", "A-0", "A-01", "A-10001", "A-99999999999", "-1", "AAAAAAAAA-1", "A 1"] {
            assert_eq!(field(places(0, &["B-1", seat])), "seats[1]", "{seat}");
        }
        assert_eq!(field(places(0, &["A-1", "A-1"])), "seats[1]");
        let many: Vec<String> = (1..=101).map(|n| format!("A-{n}")).collect();
        assert_eq!(field(super::places("", "ga".into(), 0, many)), "seats");
        assert_eq!(field(super::places("purchases[3].", "GA".into(), 1, vec![])), "purchases[3].tier_id");
    }

    #[test]
    fn holds_last_a_bounded_time() {
        let ttl = |seconds, nanos| ttl_ms(Some(&Duration { seconds, nanos })).ok();
        assert_eq!(ttl_ms(None).unwrap(), 300_000);
        assert_eq!(
            (ttl(1, 0), ttl(2, 500_999_999), ttl(3_600, 0)),
            (Some(1_000), Some(2_500), Some(3_600_000))
        );
        for (seconds, nanos) in
            [(0, 999_999_999), (3_600, 1_000_000), (-1, 0), (5, -1), (5, i32::MAX), (i64::MAX, 0)]
        {
            assert_eq!(ttl(seconds, nanos), None, "{seconds} s and {nanos} ns");
        }
    }

    #[test]
    fn a_new_event_is_checked_field_by_field() {
        let made = create_event("gala".into(), Some(&event())).unwrap();
        assert_eq!((made.quota_per_buyer, made.tiers[0].capacity), (10, 100));
        let refused = |change: fn(&mut v1::Event)| {
            let mut event = event();
            change(&mut event);
            field(create_event(String::new(), Some(&event)))
        };
        assert_eq!(field(create_event("abc".into(), Some(&event()))), "event_id");
        assert_eq!(field(create_event(String::new(), None)), "event");
        assert_eq!(refused(|e| e.display_name.clear()), "event.display_name");
        assert_eq!(refused(|e| e.display_name = "x".repeat(201)), "event.display_name");
        assert_eq!(refused(|e| e.quota_per_buyer = -1), "event.quota_per_buyer");
        assert_eq!(refused(|e| e.tiers.clear()), "event.tiers");
        assert_eq!(refused(|e| e.tiers.push(e.tiers[0].clone())), "event.tiers[1].tier_id");
        assert_eq!(refused(|e| e.tiers[0].capacity = 0), "event.tiers[0].capacity");
        assert_eq!(refused(|e| e.tiers[0].capacity = 10_000_001), "event.tiers[0].capacity");
        assert_eq!(
            refused(|e| e.tiers[0].price.as_mut().unwrap().minor_units = -1),
            "event.tiers[0].price.minor_units"
        );
        assert_eq!(
            refused(|e| e.tiers[0].price.as_mut().unwrap().currency_code = "euro".into()),
            "event.tiers[0].price.currency_code"
        );
        assert_eq!(
            refused(|e| {
                e.sale_open_time = Some(Timestamp { seconds: 2_000_000_000, nanos: 0 });
                e.sale_close_time = e.sale_open_time;
            }),
            "event.sale_close_time"
        );
        assert_eq!(
            refused(|e| e.sale_open_time = Some(Timestamp { seconds: -1, nanos: 0 })),
            "event.sale_open_time"
        );
    }

    #[test]
    fn numbered_seats_make_the_capacity() {
        let mut event = event();
        let row = |label: &str, seats| v1::SeatRow { label: label.into(), seats };
        event.tiers[0].capacity = 0;
        event.tiers[0].seat_rows = vec![row("A", 12), row("B", 8)];
        assert_eq!(create_event(String::new(), Some(&event)).unwrap().tiers[0].capacity, 20);
        event.tiers[0].capacity = 21;
        assert_eq!(field(create_event(String::new(), Some(&event))), "event.tiers[0].capacity");
        event.tiers[0].seat_rows = vec![row("A", 12), row("A", 8)];
        assert_eq!(field(create_event(String::new(), Some(&event))), "event.tiers[0].seat_rows[1].label");
        event.tiers[0].seat_rows = (0..11).map(|n| row(&format!("R{n}"), 10_000)).collect();
        assert_eq!(field(create_event(String::new(), Some(&event))), "event.tiers[0].seat_rows[10].seats");
    }

    #[test]
    fn only_what_the_mask_names_changes() {
        let mask = |paths: &[&str]| FieldMask { paths: seats(paths) };
        let update = |paths: &[&str]| update_event("gala".into(), &event(), Some(&mask(paths)));
        let change = update(&["display_name", "sale_close_time"]).unwrap();
        assert_eq!(change.display_name.as_deref(), Some("Gala"));
        assert_eq!(change.sale_closes_at_ms, Some(0), "absent in the event: sales never end");
        assert_eq!((change.quota_per_buyer, change.sale_opens_at_ms, change.set_tiers), (None, None, false));
        assert!(update(&["tiers"]).unwrap().set_tiers);
        assert_eq!(field(update(&["quota_per_buyer"])), "event.quota_per_buyer");
        assert_eq!(field(update(&["organiser"])), "update_mask");
        assert_eq!(field(update(&[])), "update_mask");
        assert_eq!(field(update_event("gala".into(), &event(), None)), "update_mask");
    }
}
