//! Resource names: `regions/{region}[/events/{event}[/tickets/{ticket}|/holds/{hold}]]`, parsed strictly and
//! written in one way. Whether the thing exists is not known here.

use tidewall_client::topology::valid_region_id;

use crate::errors::ApiError;

/// `regions/{region}/events/{event}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventName<'a> {
    pub(crate) region: &'a str,
    pub(crate) event: &'a str,
}

/// A ticket or a hold of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChildName<'a> {
    pub(crate) event: EventName<'a>,
    pub(crate) id: &'a str,
}

fn wrong(field: &str, text: &str, form: &str) -> ApiError {
    // What comes back is bounded: names of garbage may be as long as a message.
    let shown: String = text.chars().take(80).collect();
    ApiError::field_reason(field, "NAME_INVALID", format!("{shown:?} is not a name of the form {form}"))
}

/// The region id at the beginning of any resource name.
pub(crate) fn leading_region<'a>(field: &str, text: &'a str) -> Result<&'a str, ApiError> {
    text.strip_prefix("regions/")
        .map(|rest| rest.split_once('/').map_or(rest, |(region, _)| region))
        .filter(|region| valid_region_id(region))
        .ok_or_else(|| wrong(field, text, "regions/{region}, as RegionService.ListRegions gives them"))
}

/// What names the row in any resource name: the collection and the thing in it, such as `events/gala`, or nothing when the name
/// has none. Only a part of the text: whether it is valid is found out by whoever parses it.
pub(crate) fn row(text: &str) -> &str {
    let Some((_, rest)) = text.strip_prefix("regions/").and_then(|rest| rest.split_once('/')) else {
        return "";
    };
    let Some(id) = rest.find('/').map(|slash| slash + 1) else { return "" };
    rest[id..].find('/').map_or(rest, |end| &rest[..id + end])
}

/// The resource that a hot row of a region stands for, by module and row: `tickets/gala`. Rows that do not exist share actors,
/// and have no name.
pub(crate) fn hot_row(id: &str, row: &str) -> String {
    match row.split_once('/') {
        Some(("tickets", event)) if !event.starts_with('?') => self::event(id, event),
        Some((module, row)) if !row.starts_with('?') => format!("regions/{id}/{module}/{row}"),
        _ => format!("{}/-", region(id)),
    }
}

/// `regions/{region}` and nothing more.
pub(crate) fn parse_region<'a>(field: &str, text: &'a str) -> Result<&'a str, ApiError> {
    let region = leading_region(field, text)?;
    if text.len() != "regions/".len() + region.len() {
        return Err(wrong(field, text, "regions/{region}"));
    }
    Ok(region)
}

/// `regions/{region}/events/{event}`.
pub(crate) fn parse_event<'a>(field: &str, text: &'a str) -> Result<EventName<'a>, ApiError> {
    split_event(text)
        .and_then(|(name, rest)| rest.is_none().then_some(name))
        .ok_or_else(|| wrong(field, text, "regions/{region}/events/{event}"))
}

/// `regions/{region}/accounts/{account}`: the region and the account.
pub(crate) fn parse_account<'a>(field: &str, text: &'a str) -> Result<(&'a str, &'a str), ApiError> {
    split_account(text)
        .and_then(|(region, account, rest)| rest.is_none().then_some((region, account)))
        .ok_or_else(|| wrong(field, text, "regions/{region}/accounts/{account}"))
}

/// `regions/{region}/accounts/{account}/sessions/{session}`: the name of the account, the account and the session.
pub(crate) fn parse_session<'a>(
    field: &str,
    text: &'a str,
) -> Result<(&'a str, &'a str, [u8; 16]), ApiError> {
    let parsed = || {
        let (_, account, rest) = split_account(text)?;
        let session = rest?.strip_prefix("sessions/")?;
        let id = uuid::Uuid::try_parse(session).ok()?;
        let name = text.strip_suffix(session)?.strip_suffix("/sessions/")?;
        (id.simple().to_string() == session).then(|| (name, account, id.into_bytes()))
    };
    parsed().ok_or_else(|| wrong(field, text, "regions/{region}/accounts/{account}/sessions/{session}"))
}

fn split_account(text: &str) -> Option<(&str, &str, Option<&str>)> {
    let (region, rest) = text.strip_prefix("regions/")?.split_once("/accounts/")?;
    let (account, rest) = match rest.split_once('/') {
        Some((account, rest)) => (account, Some(rest)),
        None => (rest, None),
    };
    let number = account.strip_prefix('a')?;
    let valid = valid_region_id(region) && valid_number(number) && number != "0";
    valid.then_some((region, account, rest))
}

/// `regions/{region}/events/{event}/tickets/{ticket}`.
pub(crate) fn parse_ticket<'a>(field: &str, text: &'a str) -> Result<ChildName<'a>, ApiError> {
    parse_child(text, "tickets/", "")
        .ok_or_else(|| wrong(field, text, "regions/{region}/events/{event}/tickets/{ticket}"))
}

/// `regions/{region}/events/{event}/holds/{hold}`.
pub(crate) fn parse_hold<'a>(field: &str, text: &'a str) -> Result<ChildName<'a>, ApiError> {
    parse_child(text, "holds/", "h")
        .ok_or_else(|| wrong(field, text, "regions/{region}/events/{event}/holds/{hold}"))
}

/// `regions/{region}/deadLetters/{dead_letter}`: the id of the dead letter.
pub(crate) fn parse_dead_letter<'a>(field: &str, text: &'a str) -> Result<&'a str, ApiError> {
    let parsed = || {
        let (region, id) = text.strip_prefix("regions/")?.split_once("/deadLetters/")?;
        let parts: Vec<&str> = id.split('-').collect();
        let valid =
            valid_region_id(region) && parts.len() == 3 && parts.iter().all(|part| valid_number(part));
        valid.then_some(id)
    };
    parsed().ok_or_else(|| wrong(field, text, "regions/{region}/deadLetters/{dead_letter}"))
}

/// `regions/{region}/webhooks/{webhook}`: the region and the webhook.
pub(crate) fn parse_webhook<'a>(field: &str, text: &'a str) -> Result<(&'a str, &'a str), ApiError> {
    let parsed = || {
        let (region, webhook) = text.strip_prefix("regions/")?.split_once("/webhooks/")?;
        let number = webhook.strip_prefix('w')?;
        let valid = valid_region_id(region) && valid_number(number) && number != "0";
        valid.then_some((region, webhook))
    };
    parsed().ok_or_else(|| wrong(field, text, "regions/{region}/webhooks/{webhook}"))
}

fn split_event(text: &str) -> Option<(EventName<'_>, Option<&str>)> {
    let (region, rest) = text.strip_prefix("regions/")?.split_once("/events/")?;
    let (event, rest) = match rest.split_once('/') {
        Some((event, rest)) => (event, Some(rest)),
        None => (rest, None),
    };
    (valid_region_id(region) && valid_event_id(event)).then_some((EventName { region, event }, rest))
}

fn parse_child<'a>(text: &'a str, collection: &str, mark: &str) -> Option<ChildName<'a>> {
    let (event, rest) = split_event(text)?;
    let id = rest?.strip_prefix(collection)?;
    let (tier, number) = id.split_once('-')?;
    let number = number.strip_prefix(mark)?;
    (valid_tier_id(tier) && valid_number(number)).then_some(ChildName { event, id })
}

/// Decimal without sign and leading zeros: one ticket has one name.
fn valid_number(text: &str) -> bool {
    (1..=19).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_digit())
        && (text == "0" || !text.starts_with('0'))
}

/// 4 to 40 of `[a-z0-9-]`, starting with a letter.
pub(crate) fn valid_event_id(id: &str) -> bool {
    (4..=40).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// 1 to 32 of `[a-z0-9]`, starting with a letter.
pub(crate) fn valid_tier_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

pub(crate) fn region(region: &str) -> String {
    format!("regions/{region}")
}

pub(crate) fn event(region: &str, event: &str) -> String {
    format!("regions/{region}/events/{event}")
}

pub(crate) fn account(region: &str, account: &str) -> String {
    format!("regions/{region}/accounts/{account}")
}

pub(crate) fn webhook(region: &str, webhook: &str) -> String {
    format!("regions/{region}/webhooks/{webhook}")
}

pub(crate) fn session(region: &str, account: &str, session: &[u8]) -> String {
    format!("regions/{region}/accounts/{account}/sessions/{}", crate::convert::hex(session))
}

pub(crate) fn ticket(region: &str, event: &str, ticket: &str) -> String {
    format!("regions/{region}/events/{event}/tickets/{ticket}")
}

pub(crate) fn dead_letter(region: &str, id: &str) -> String {
    format!("regions/{region}/deadLetters/{id}")
}

pub(crate) fn hold(region: &str, event: &str, hold: &str) -> String {
    format!("regions/{region}/events/{event}/holds/{hold}")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let gala = EventName { region: "north", event: "gala" };
        assert_eq!(parse_region("name", &region("north")).unwrap(), "north");
        assert_eq!(parse_event("name", &event("north", "gala")).unwrap(), gala);
        let name = ticket("north", "gala", "ga-12");
        assert_eq!(parse_ticket("name", &name).unwrap(), ChildName { event: gala, id: "ga-12" });
        let name = hold("north", "gala", "ga-h3");
        assert_eq!(parse_hold("name", &name).unwrap(), ChildName { event: gala, id: "ga-h3" });
        assert_eq!(leading_region("parent", &name).unwrap(), "north");
    }

    #[test]
    fn whatever_belongs_to_an_event_is_of_its_row() {
        for name in [event("north", "gala"), ticket("north", "gala", "ga-1"), hold("north", "gala", "ga-h1")]
        {
            assert_eq!(row(&name), "events/gala");
        }
        assert_eq!(row("regions/north/exams/gala"), "exams/gala", "another thing of the same name");
        for none in ["regions/north", "regions/north/events", "nonsense", ""] {
            assert_eq!(row(none), "", "{none}");
        }
    }

    #[test]
    fn a_hot_row_is_shown_as_the_resource_that_it_stands_for() {
        assert_eq!(hot_row("north", "tickets/gala"), event("north", "gala"));
        assert_eq!(hot_row("north", "exams/maths"), "regions/north/exams/maths");
        for shared in ["tickets/?3", "exams/?0", "?"] {
            assert_eq!(hot_row("north", shared), "regions/north/-", "{shared}");
        }
    }

    #[test]
    fn accounts_and_their_sessions_have_one_spelling() {
        let name = account("north", "a7");
        assert_eq!(parse_account("name", &name).unwrap(), ("north", "a7"));
        let full = session("north", "a7", &[0xab; 16]);
        assert_eq!(parse_session("name", &full).unwrap(), (name.as_str(), "a7", [0xab; 16]));
        assert_eq!(row(&full), "accounts/a7");
        for text in
            ["regions/north/accounts/7", "regions/north/accounts/a07", "regions/north/accounts/a0", &full]
        {
            assert!(parse_account("name", text).is_err(), "{text}");
        }
        for text in [&name, &full.to_uppercase(), &full.replace("abab", "ab-ab"), &format!("{full}/1")] {
            assert!(parse_session("name", text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in
            ["", "north", "regions/", "regions/North", "regions/north/", "/regions/north", "regions/a b"]
        {
            assert!(parse_region("name", text).is_err(), "{text}");
        }
        for text in [
            "regions/north",
            "regions/north/events/",
            "regions/north/events/abc",
            "regions/north/events/gala/",
        ] {
            assert!(parse_event("name", text).is_err(), "{text}");
        }
        for id in
            ["", "ga", "ga-", "ga-x", "ga-h1", "ga-01", "ga--1", "GA-1", "ga-1/2", "ga-99999999999999999999"]
        {
            assert!(parse_ticket("name", &ticket("north", "gala", id)).is_err(), "{id}");
        }
        assert!(parse_hold("name", &hold("north", "gala", "ga-1")).is_err());
    }

    #[test]
    fn the_error_names_the_field_and_bounds_what_it_repeats() {
        let long = "x".repeat(10_000);
        let Err(ApiError::Field { field, message, .. }) = parse_event("parent", &long) else { panic!() };
        assert_eq!(field, "parent");
        assert!(message.len() < 200);
    }
}
