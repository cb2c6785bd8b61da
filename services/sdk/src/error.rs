//! How a call can end without a result. Three ways and never one for the other: above all, what is unknown must
//! never be told as failed.

use std::fmt;

use crate::failure::Failure;
use crate::journal::JournalError;
use crate::{InvalidRequestId, RequestId};

/// How a call ended without a result.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The region decided "no". For a mutation that is final: this request id will never be executed, and says
    /// the same again when it is repeated (a "sold out" that was answered at once is looked at anew).
    #[error("decided: no, {no}")]
    Decided {
        /// The request; `None` for a read.
        request_id: Option<RequestId>,
        /// The region's answer.
        no: Box<Failure>,
    },
    /// Nothing was executed, and no copy of the request is under way: it may be sent again, or not.
    #[error("not decided: {why}")]
    NotDecided {
        /// The request; `None` for a read, and when no id was made yet.
        request_id: Option<RequestId>,
        /// What stood in the way.
        why: NotDecided,
    },
    /// It may have been executed, or may be yet. Go on with the same id: repeat the same request with it, or
    /// [`Client::resolve`](crate::Client::resolve) it. The journal lists it.
    #[error(
        "unknown whether request {request_id} was decided ({}): send the same request with the same id again, or \
         resolve the id",
        Stopped(*stop, last.as_deref())
    )]
    Unknown {
        /// The request.
        request_id: RequestId,
        /// Why no more attempts were made.
        stop: Stop,
        /// What the last attempt ended with.
        last: Option<Box<Failure>>,
    },
}

impl Error {
    /// The request that it is about, if one was made.
    pub fn request_id(&self) -> Option<RequestId> {
        match self {
            Self::Decided { request_id, .. } | Self::NotDecided { request_id, .. } => *request_id,
            Self::Unknown { request_id, .. } => Some(*request_id),
        }
    }

    /// What the service or the transport said last, if anything.
    pub fn failure(&self) -> Option<&Failure> {
        match self {
            Self::Decided { no, .. } => Some(no),
            Self::NotDecided { why: NotDecided::Stopped { last, .. }, .. } | Self::Unknown { last, .. } => {
                last.as_deref()
            }
            Self::NotDecided { .. } => None,
        }
    }

    /// Why the service said no, if it did.
    pub fn reason(&self) -> Option<&crate::Reason> {
        self.failure().and_then(|failure| failure.reason.as_ref())
    }
}

/// What stood in the way of a decision.
#[derive(Debug, thiserror::Error)]
pub enum NotDecided {
    /// The attempts that were made were all refused, or found no gateway.
    #[error("{}", Stopped(*stop, last.as_deref()))]
    Stopped {
        /// Why no more attempts were made.
        stop: Stop,
        /// What the last attempt ended with.
        last: Option<Box<Failure>>,
    },
    /// The request could not be written down, so it was not sent.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The request names an id that is none.
    #[error(transparent)]
    RequestId(#[from] InvalidRequestId),
    /// The request cannot be sent as it is.
    #[error("{0}")]
    Invalid(String),
}

/// Why no more attempts were made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// The last answer was not one that a repetition could change.
    Refused,
    /// The caller's deadline was near, or the pause that the service asked for ends after it.
    Deadline,
    /// Too many attempts of this client failed lately (see [`RetryBudget`](crate::RetryBudget)).
    Budget,
}

/// A stop and what came before it, for people.
struct Stopped<'a>(Stop, Option<&'a Failure>);

impl fmt::Display for Stopped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (Stop::Refused, Some(last)) => write!(f, "{last}"),
            (Stop::Refused, None) => f.write_str("refused"),
            (Stop::Deadline, Some(last)) => write!(f, "the deadline ended it; the last attempt said {last}"),
            (Stop::Deadline, None) => f.write_str("the deadline left no time for an attempt"),
            (Stop::Budget, last) => {
                f.write_str("the retry budget is spent, most attempts fail: try again later")?;
                last.map_or(Ok(()), |last| write!(f, "; the last attempt said {last}"))
            }
        }
    }
}

/// Why a [`Client`](crate::Client) cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No gateway was named.
    #[error("no gateway is named: give at least one endpoint, such as http://127.0.0.1:7400")]
    NoEndpoint,
    /// An endpoint is not an address of a gateway.
    #[error("{endpoint:?} is not the address of a gateway: {why}; it looks like http://127.0.0.1:7400")]
    Endpoint {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        why: String,
    },
    /// An option has a value that cannot work.
    #[error("option {option} cannot be {value}: {why}")]
    Option {
        /// Its name in [`Options`](crate::Options).
        option: &'static str,
        /// Its value.
        value: String,
        /// What it must be.
        why: &'static str,
    },
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tonic::Code;

    use super::*;

    #[test]
    fn an_unknown_end_names_the_id_and_what_to_do() {
        let request_id = RequestId::fresh();
        let last = Some(Box::new(Failure::local(Code::Unavailable, "connection reset", "http://a")));
        let error = Error::Unknown { request_id, stop: Stop::Deadline, last };
        let text = error.to_string();
        for part in [&request_id.to_string(), "same id", "resolve", "connection reset"] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(error.request_id(), Some(request_id));
        assert_eq!(error.failure().unwrap().endpoint, "http://a");
        assert_eq!(error.reason(), None);
    }

    #[test]
    fn a_spent_budget_says_so() {
        let why = NotDecided::Stopped { stop: Stop::Budget, last: None };
        let error = Error::NotDecided { request_id: None, why };
        assert!(error.to_string().contains("retry budget"), "{error}");
    }
}
