//! How what is asked of the module is decided, and what it changes.
//!
//! `decide` chooses events, `evolve` makes rows of them and checks the invariants of what they touched.

mod decide;
mod evolve;
mod rejection;

use super::model::*;

pub(super) use decide::decide;
pub(super) use evolve::{check, evolve};
pub use rejection::Rejection;

/// What a decision changes, past tense; rows follow from it and from nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An account was made.
    Registered {
        /// Its number.
        account: AccountNo,
        /// The account.
        row: AccountRow,
    },
    /// An account was changed: its fields, its password or its roles.
    AccountChanged {
        /// Its number.
        account: AccountNo,
        /// The account as it is now.
        row: AccountRow,
    },
    /// A password may be tried.
    AttemptCounted {
        /// For which e-mail.
        email: Digest,
        /// Attempts with this one.
        row: AttemptsRow,
    },
    /// Attempts do not count any more.
    AttemptsForgotten {
        /// For which e-mail.
        email: Digest,
    },
    /// A session was begun or refreshed.
    SessionGranted {
        /// Which.
        session: SessionKey,
        /// The session as it is now.
        row: SessionRow,
    },
    /// A session has ended.
    SessionEnded {
        /// Which.
        session: SessionKey,
    },
}
