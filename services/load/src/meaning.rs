//! What an answer means for an intent: the one place that reads status codes, reasons and retry delays.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// What one answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meaning {
    /// Decided "no": the stock is gone.
    SoldOut,
    /// Decided "no" for another reason (quota, sale window, …).
    Refused,
    /// Refused by overload, nothing decided; `after` is what RetryInfo names.
    Overloaded {
        /// Delay of RetryInfo; `None` when the answer lacks it, which breaks the API's promise.
        after: Option<Duration>,
    },
    /// May or may not have been decided: repeat with the same request id.
    Unknown,
    /// Not decided and not worth repeating (bad token, bad argument, …).
    Failed,
}

/// An answer with its words.
#[derive(Debug, Clone)]
pub struct Answer {
    /// What it means.
    pub meaning: Meaning,
    /// `CODE/REASON`, for counting.
    pub key: String,
    /// True when no gateway said this: the connection or the client's own clock did.
    pub transport: bool,
}

/// Reads a status.
pub fn of_status(status: &Status) -> Answer {
    let reason = reason(status);
    let ours = !reason.is_empty();
    let meaning = match meaning_of(status.code(), &reason) {
        Meaning::Overloaded { .. } => {
            Meaning::Overloaded { after: status.get_details_retry_info().and_then(|info| info.retry_delay) }
        }
        other => other,
    };
    let transport = !ours && matches!(meaning, Meaning::Unknown) && status.code() != Code::DeadlineExceeded;
    Answer { meaning, key: key(status.code(), &reason), transport }
}

/// Reads a rejection, or an undecided item, of a batch.
pub(crate) fn of_item(code: i32, reason: &str, decided: bool) -> Answer {
    let code = Code::from(code);
    let meaning = match (decided, meaning_of(code, reason)) {
        (true, Meaning::SoldOut) => Meaning::SoldOut,
        (true, _) => Meaning::Refused,
        // An item carries no RetryInfo of its own.
        (false, Meaning::Overloaded { .. }) => Meaning::Overloaded { after: Some(Duration::from_millis(50)) },
        (false, _) => Meaning::Unknown,
    };
    Answer { meaning, key: key(code, reason), transport: false }
}

fn meaning_of(code: Code, reason: &str) -> Meaning {
    match code {
        Code::FailedPrecondition if reason == "SOLD_OUT" => Meaning::SoldOut,
        Code::FailedPrecondition | Code::Aborted | Code::AlreadyExists => Meaning::Refused,
        // Transport libraries report ENHANCE_YOUR_CALM as RESOURCE_EXHAUSTED, also for calls that were
        // under way; a gateway that refuses gives a reason.
        Code::ResourceExhausted if reason.is_empty() => Meaning::Unknown,
        Code::ResourceExhausted => Meaning::Overloaded { after: None },
        Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => Meaning::Unknown,
        // Transport libraries report broken streams as INTERNAL; a gateway that means it gives a reason.
        Code::Internal if reason.is_empty() => Meaning::Unknown,
        Code::Internal => Meaning::Refused,
        _ => Meaning::Failed,
    }
}

/// Whether a call of the preparation or the audit should be repeated.
pub fn worth_repeating(status: &Status) -> bool {
    matches!(of_status(status).meaning, Meaning::Unknown | Meaning::Overloaded { .. })
}

/// Whether a call ended because its connection was closed under it, or before it was sent. A gateway that asks its clients
/// to reconnect closes a connection after its last answer; a call that is sent in that very moment meets this. gRPC
/// libraries that follow our service configuration send it again, with the same request id.
pub fn connection_closed(status: &Status) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    // What tonic says of a connection that closed while the call waited for its turn on it; it has no source.
    if status.code() == Code::Unknown && status.message().starts_with("Service was not ready") {
        return true;
    }
    let first = std::error::Error::source(status);
    std::iter::successors(first, |error| error.source()).any(|error| {
        if let Some(error) = error.downcast_ref::<std::io::Error>() {
            return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            // Sent after the gateway had asked its clients to go: it says that it has not looked at it.
            return error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR);
        }
        // Not sent: the connection closed before.
        error.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_canceled() || error.is_closed())
    })
}

/// Reason as in `google.rpc.ErrorInfo`; empty when the status has none.
pub fn reason(status: &Status) -> String {
    status.get_details_error_info().map(|info| info.reason).unwrap_or_default()
}

fn key(code: Code, reason: &str) -> String {
    if reason.is_empty() { code_name(code).to_owned() } else { format!("{}/{reason}", code_name(code)) }
}

/// The code as gRPC's documents write it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tonic_types::ErrorDetails;

    use super::*;

    fn status(code: Code, reason: &str, retry: Option<Duration>) -> Status {
        let mut details = ErrorDetails::new();
        if !reason.is_empty() {
            details.set_error_info(reason, "tidewall", std::collections::HashMap::<String, String>::new());
        }
        if retry.is_some() {
            details.set_retry_info(retry);
        }
        Status::with_error_details(code, "words", details)
    }

    #[test]
    fn a_no_is_told_from_an_overload_and_from_an_unknown() {
        let sold_out = of_status(&status(Code::FailedPrecondition, "SOLD_OUT", None));
        assert_eq!(sold_out.meaning, Meaning::SoldOut);
        assert_eq!(sold_out.key, "FAILED_PRECONDITION/SOLD_OUT");
        let quota = of_status(&status(Code::FailedPrecondition, "QUOTA_EXCEEDED", None));
        assert_eq!(quota.meaning, Meaning::Refused);
        let delay = Duration::from_millis(70);
        let overload = of_status(&status(Code::ResourceExhausted, "OVERLOADED", Some(delay)));
        assert_eq!(overload.meaning, Meaning::Overloaded { after: Some(delay) });
        let bare = of_status(&status(Code::ResourceExhausted, "OVERLOADED", None));
        assert_eq!(bare.meaning, Meaning::Overloaded { after: None });
        assert_eq!(of_status(&Status::unauthenticated("no")).meaning, Meaning::Failed);
    }

    #[test]
    fn broken_connections_are_unknown_and_counted_as_transport() {
        for code in
            [Code::Unavailable, Code::Unknown, Code::Internal, Code::Cancelled, Code::ResourceExhausted]
        {
            let answer = of_status(&Status::new(code, "h2 protocol error"));
            assert_eq!(answer.meaning, Meaning::Unknown, "{code:?}");
            assert!(answer.transport, "{code:?}");
        }
        let said = of_status(&status(Code::Unavailable, "OUTCOME_UNKNOWN", None));
        assert_eq!(said.meaning, Meaning::Unknown);
        assert!(!said.transport);
        let broken = of_status(&status(Code::Internal, "INTERNAL_INVARIANT", None));
        assert_eq!(broken.meaning, Meaning::Refused);
    }

    #[test]
    fn undecided_items_of_a_batch_are_repeated_and_rejections_are_not() {
        let over = of_item(Code::ResourceExhausted as i32, "OVERLOADED", false).meaning;
        assert!(matches!(over, Meaning::Overloaded { after: Some(_) }));
        assert_eq!(of_item(Code::Unavailable as i32, "", false).meaning, Meaning::Unknown);
        assert_eq!(of_item(Code::FailedPrecondition as i32, "SOLD_OUT", true).meaning, Meaning::SoldOut);
        assert_eq!(
            of_item(Code::FailedPrecondition as i32, "QUOTA_EXCEEDED", true).meaning,
            Meaning::Refused
        );
    }
}
