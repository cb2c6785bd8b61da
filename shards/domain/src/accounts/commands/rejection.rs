//! The ways in which a command can be refused by decision, with the words for people and the reasons for programs. It
//! decides nothing. No words tell whether an e-mail has an account.

use tidewall_messages::accounts as messages;

use crate::module::{Code, Reason};

/// A "no": replicated, remembered for its request id, and answered to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No such account. Only said to those who may look at accounts.
    #[error("there is no account {0:?} in this region: check the name, or find it by its e-mail")]
    AccountNotFound(String),
    /// Too many passwords were tried.
    #[error("too many passwords were tried for this e-mail: try again after {0} ms since 1970")]
    TooManyAttempts(u64),
    /// E-mail and password do not belong together, or not any more.
    #[error("{}", messages::LOG_IN_FAILED)]
    LogInFailed,
    /// The session has ended, or there never was one.
    #[error("{}", messages::SESSION_INVALID)]
    SessionInvalid,
    /// The password was changed meanwhile.
    #[error("the password was changed meanwhile: repeat the change with the current one")]
    PasswordChanged,
    /// The e-mail is being changed already.
    #[error("the e-mail of this account is being changed already: wait until that is done")]
    EmailChanging,
    /// It belongs to somebody else.
    #[error("{0} belongs to somebody else: use the token of its owner")]
    NotOwner(String),
    /// Only some may.
    #[error("this needs the role {0}: ask an admin")]
    RoleRequired(&'static str),
    /// Somebody else changed the account.
    #[error("the account has revision {actual}, not {expected}: get it again and repeat the change")]
    RevisionMismatch {
        /// Revision expected by the caller.
        expected: u64,
        /// Revision of the row.
        actual: u64,
    },
    /// The region has an admin.
    #[error("the region has an admin already: have one of its admins grant the role")]
    AdminExists,
    /// Somebody must be left who can grant roles.
    #[error("{0} is the last admin of its region: make another one first")]
    LastAdmin(String),
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
    pub(in crate::accounts) fn invalid(field: &'static str, why: impl Into<String>) -> Self {
        Self::Invalid { field, why: why.into() }
    }
}

impl Reason for Rejection {
    fn reason(&self) -> &'static str {
        match self {
            Self::AccountNotFound(_) => "ACCOUNT_NOT_FOUND",
            Self::TooManyAttempts(_) => "TOO_MANY_ATTEMPTS",
            Self::LogInFailed => "LOG_IN_FAILED",
            Self::SessionInvalid => "SESSION_INVALID",
            Self::PasswordChanged => "PASSWORD_CHANGED",
            Self::EmailChanging => "EMAIL_CHANGING",
            Self::NotOwner(_) => "NOT_OWNER",
            Self::RoleRequired(_) => "ROLE_REQUIRED",
            Self::RevisionMismatch { .. } => "REVISION_MISMATCH",
            Self::AdminExists => "ADMIN_EXISTS",
            Self::LastAdmin(_) => "LAST_ADMIN",
            Self::Invalid { .. } => "INVALID_FIELD",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::AccountNotFound(_) => Code::NotFound,
            Self::LogInFailed | Self::SessionInvalid => Code::Unauthenticated,
            Self::NotOwner(_) | Self::RoleRequired(_) => Code::PermissionDenied,
            Self::TooManyAttempts(_) | Self::AdminExists | Self::LastAdmin(_) | Self::EmailChanging => {
                Code::FailedPrecondition
            }
            Self::PasswordChanged | Self::RevisionMismatch { .. } => Code::Aborted,
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
