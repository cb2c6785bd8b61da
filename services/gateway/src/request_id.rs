//! Request ids: UUIDs of version 7 in canonical text form. The region decides about ids it has seen; here
//! only form and age are checked.

use uuid::Uuid;

use crate::errors::ApiError;

/// Ids are remembered for so long; an older one cannot be executed safely.
const AGE_MAX_MS: u64 = 24 * 3600 * 1000;
/// How far the caller's clock may be ahead of ours. The regions allow more by their own clocks, so that what
/// passes here is not refused there.
const AHEAD_MAX_MS: u64 = 30 * 1000;

/// A request id of whatever age: asking what became of an old one is fine.
pub(crate) fn parse_any_age(field: &str, text: &str) -> Result<Vec<u8>, ApiError> {
    Ok(parse_uuid(field, text)?.as_bytes().to_vec())
}

/// A new id for what the caller gives none, made at this time of the cluster.
pub(crate) fn fresh(now_ms: u64) -> Vec<u8> {
    let random: [u8; 10] = tidewall_env::random::secret();
    uuid::Builder::from_unix_timestamp_millis(now_ms, &random).into_uuid().as_bytes().to_vec()
}

/// The canonical text of 16 bytes; empty when there are none.
pub(crate) fn format(bytes: &[u8]) -> String {
    Uuid::from_slice(bytes).map(|id| id.to_string()).unwrap_or_default()
}

fn parse_uuid(field: &str, text: &str) -> Result<Uuid, ApiError> {
    if text.is_empty() {
        return Err(ApiError::field_reason(
            field,
            "REQUEST_ID_REQUIRED",
            "is missing: make a UUID of version 7 before the first attempt and keep it for every retry",
        ));
    }
    // The parser also takes braces, URNs and no hyphens: one intent must have one spelling.
    let parsed = (text.len() == 36).then(|| Uuid::try_parse(text).ok()).flatten();
    parsed.filter(|id| id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122).ok_or_else(
        || {
            ApiError::field_reason(
                field,
                "REQUEST_ID_INVALID",
                "is not a UUID of version 7 in canonical form (8-4-4-4-12 hexadecimal digits)",
            )
        },
    )
}

/// A request id that may be used at this time of the cluster, 16 bytes.
pub(crate) fn parse(field: &str, text: &str, now_ms: u64) -> Result<Vec<u8>, ApiError> {
    let id = parse_uuid(field, text)?;
    let bytes = id.as_bytes();
    let made_at_ms = bytes[..6].iter().fold(0u64, |sum, byte| (sum << 8) | u64::from(*byte));
    if made_at_ms > now_ms.saturating_add(AHEAD_MAX_MS) {
        return Err(ApiError::field_reason(
            field,
            "REQUEST_ID_INVALID",
            "was made more than 30 seconds in the future: correct the caller's clock and make a new one",
        ));
    }
    if made_at_ms < now_ms.saturating_sub(AGE_MAX_MS) {
        return Err(ApiError::field_reason(
            field,
            "REQUEST_ID_EXPIRED",
            "is older than 24 hours, longer than outcomes are remembered: make a new one if the request \
             was never sent, otherwise look at what it did",
        ));
    }
    Ok(bytes.to_vec())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const NOW_MS: u64 = 1_790_000_000_000;

    fn made_at(ms: u64) -> String {
        Uuid::new_v7(uuid::Timestamp::from_unix_time(ms / 1000, (ms % 1000) as u32 * 1_000_000, 0, 0))
            .to_string()
    }

    fn reason(text: &str) -> &'static str {
        match parse("request_id", text, NOW_MS) {
            Err(ApiError::Field { reason, .. }) => reason,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_fresh_id_of_version_7_is_taken() {
        for ms in [NOW_MS, NOW_MS - AGE_MAX_MS, NOW_MS + AHEAD_MAX_MS] {
            let text = made_at(ms);
            let bytes = parse("request_id", &text, NOW_MS).unwrap();
            assert_eq!(format(&bytes), text);
        }
    }

    #[test]
    fn a_callers_clock_may_be_half_a_minute_ahead() {
        assert!(parse("request_id", &made_at(NOW_MS + 30_000), NOW_MS).is_ok());
        let fresh = format(&fresh(NOW_MS));
        assert!(parse("request_id", &fresh, NOW_MS).is_ok(), "{fresh}");
        assert!(parse("request_id", &fresh, NOW_MS - 30_001).is_err(), "it was made then");
        assert_eq!(reason(&made_at(NOW_MS + 30_001)), "REQUEST_ID_INVALID");
    }

    #[test]
    fn other_ids_are_refused_by_reason() {
        assert_eq!(reason(""), "REQUEST_ID_REQUIRED");
        assert_eq!(reason("7"), "REQUEST_ID_INVALID");
        assert_eq!(reason("f47ac10b-58cc-4372-a567-0e02b2c3d479"), "REQUEST_ID_INVALID");
        assert_eq!(reason(&made_at(NOW_MS).replace('-', "")), "REQUEST_ID_INVALID");
        assert_eq!(reason(&made_at(NOW_MS - AGE_MAX_MS - 1)), "REQUEST_ID_EXPIRED");
    }
}
