//! Why a call to a shard group has no answer. Nothing is mapped to gRPC here.

use std::time::Duration;

/// Why a call to a shard group has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClientError {
    /// The call may have been decided, and nobody said how before the deadline.
    #[error("the outcome is unknown: {why}")]
    Unknown {
        /// What happened to the last attempt.
        why: String,
    },
    /// The call was provably not decided: it never reached a leader before the deadline. For a query:
    /// there is no answer.
    #[error("no leader answered before the deadline: {why}")]
    Unavailable {
        /// What happened to the last attempt.
        why: String,
    },
    /// The call was refused at a bound and not decided.
    #[error("overloaded, come back in {} ms: {message}", retry_after.as_millis())]
    Overloaded {
        /// When to send the same call again.
        retry_after: Duration,
        /// Which bound was reached.
        message: String,
    },
    /// The call makes no sense to the node; sending it again does not help.
    #[error("{0}")]
    Invalid(String),
}
