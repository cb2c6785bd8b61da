//! The ways in which a command can be refused by decision, with the words for people and the reasons for programs. It
//! decides nothing.

use crate::module::{Code, Reason};
use crate::webhooks::model::{WEBHOOKS_MAX, WEBHOOKS_OF_ALL_MAX};

/// A "no": replicated, remembered for its request id, and answered to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No such webhook.
    #[error("there is no webhook {0:?} in this region: list them")]
    WebhookNotFound(String),
    /// It belongs to somebody else.
    #[error("webhook {0} belongs to somebody else: use the token of its owner")]
    NotOwner(String),
    /// Enough is enough.
    #[error("{0} has {WEBHOOKS_MAX} webhooks in this region: delete one first")]
    TooManyWebhooks(String),
    /// Enough for all.
    #[error("this region has {WEBHOOKS_OF_ALL_MAX} webhooks, and has room for no more")]
    RegionFull,
    /// Somebody else changed the webhook.
    #[error("the webhook has revision {actual}, not {expected}: get it again and repeat the change")]
    RevisionMismatch {
        /// Revision expected by the caller.
        expected: u64,
        /// Revision of the row.
        actual: u64,
    },
    /// A field makes no sense.
    #[error("{field}: {why}")]
    Invalid {
        /// The field.
        field: &'static str,
        /// What is wrong and what is expected.
        why: String,
    },
}

impl Rejection {
    pub(in crate::webhooks) fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { field, why: why.into() }
    }
}

impl Reason for Rejection {
    fn reason(&self) -> &'static str {
        match self {
            Self::WebhookNotFound(_) => "WEBHOOK_NOT_FOUND",
            Self::NotOwner(_) => "NOT_OWNER",
            Self::TooManyWebhooks(_) | Self::RegionFull => "TOO_MANY_WEBHOOKS",
            Self::RevisionMismatch { .. } => "REVISION_MISMATCH",
            Self::Invalid { .. } => "INVALID_FIELD",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::WebhookNotFound(_) => Code::NotFound,
            Self::NotOwner(_) => Code::PermissionDenied,
            Self::TooManyWebhooks(_) | Self::RegionFull => Code::FailedPrecondition,
            Self::RevisionMismatch { .. } => Code::Aborted,
            Self::Invalid { .. } => Code::InvalidArgument,
        }
    }

    fn field(&self) -> &str {
        match self {
            Self::Invalid { field, .. } => field,
            _ => "",
        }
    }
}
