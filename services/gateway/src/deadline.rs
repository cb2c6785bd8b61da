//! Deadlines of calls, from `grpc-timeout`. What is sent to regions expires by the time of the cluster, which the caller gives.

use std::time::Duration;

use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::errors::ApiError;

/// Longest deadline that is honoured for a call; a longer one is cut to this.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// The same for export and import, which move whole regions.
const TRANSFER_DEADLINE_MAX: Duration = Duration::from_secs(3600);
/// The answer leaves so much before the deadline, or a tenth of it, so that the caller still gets it and
/// learns what is known.
const ANSWER_MARGIN_MAX: Duration = Duration::from_millis(20);

/// When a call must have been answered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline {
    /// Nothing is waited for any longer.
    pub(crate) at: Instant,
    /// Time of the cluster after which the caller no longer waits, Unix ms.
    pub(crate) expires_at_ms: u64,
}

impl Deadline {
    /// The deadline of a call.
    pub(crate) fn of_call(metadata: &MetadataMap, now_ms: u64) -> Result<Self, ApiError> {
        Self::from_metadata(metadata, DEADLINE_MAX, now_ms)
    }

    /// The deadline of an export or an import.
    pub(crate) fn of_transfer(metadata: &MetadataMap, now_ms: u64) -> Result<Self, ApiError> {
        Self::from_metadata(metadata, TRANSFER_DEADLINE_MAX, now_ms)
    }

    fn from_metadata(metadata: &MetadataMap, longest: Duration, now_ms: u64) -> Result<Self, ApiError> {
        let Some(value) = metadata.get("grpc-timeout") else {
            return Err(ApiError::Plain {
                code: tonic::Code::InvalidArgument,
                reason: "DEADLINE_REQUIRED",
                message: "the call has no deadline: set one in your gRPC client (grpc-timeout), for example \
                          5 seconds; up to 60 seconds are honoured"
                    .to_owned(),
            });
        };
        let timeout = parse_timeout(value.as_bytes()).ok_or_else(|| ApiError::Plain {
            code: tonic::Code::InvalidArgument,
            reason: "DEADLINE_INVALID",
            message: "grpc-timeout is not 1 to 8 digits and one of H, M, S, m, u, n: let your gRPC client \
                      set it from a deadline"
                .to_owned(),
        })?;
        let timeout = timeout.min(longest);
        Ok(Self {
            at: Instant::now() + (timeout - (timeout / 10).min(ANSWER_MARGIN_MAX)),
            expires_at_ms: now_ms.saturating_add(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)),
        })
    }

    /// An earlier deadline for a part of the call: three quarters of what is left, and no more than `longest`.
    pub(crate) fn within(&self, longest: Duration) -> Self {
        let left = (self.remaining() / 4 * 3).min(longest);
        Self { at: Instant::now() + left, ..*self }
    }

    /// Time that is left.
    pub(crate) fn remaining(&self) -> Duration {
        self.at.saturating_duration_since(Instant::now())
    }
}

pub(crate) fn parse_timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = digits.iter().fold(0u64, |sum, digit| sum * 10 + u64::from(digit - b'0'));
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_says() {
        assert_eq!(parse_timeout(b"2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse_timeout(b"3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse_timeout(b"1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse_timeout(b"250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout(b"99999999u"), Some(Duration::from_micros(99_999_999)));
        assert_eq!(parse_timeout(b"5n"), Some(Duration::from_nanos(5)));
        for wrong in ["", "S", "5", "999999999m", "-1S", "1.5S", "1s", "1 S"] {
            assert_eq!(parse_timeout(wrong.as_bytes()), None, "{wrong}");
        }
    }

    #[test]
    fn a_missing_deadline_is_refused_and_a_long_one_is_cut() {
        let mut metadata = MetadataMap::new();
        let now_ms = 1_700_000_000_000;
        let refused = Deadline::of_call(&metadata, now_ms).unwrap_err();
        assert!(matches!(refused, ApiError::Plain { reason: "DEADLINE_REQUIRED", .. }));
        metadata.insert("grpc-timeout", "10H".parse().unwrap());
        let deadline = Deadline::of_call(&metadata, now_ms).unwrap();
        assert!(deadline.remaining() <= DEADLINE_MAX);
        assert_eq!(deadline.expires_at_ms, now_ms + 60_000);
    }
}
