//! How what is asked of the module is decided, and what it changes.
//!
//! `decide` chooses events, `evolve` makes rows of them and checks the invariants of what they touched.

mod decide;
mod evolve;
mod rejection;

use super::model::*;
use super::sagas::email::Said;
use crate::outbox::GroupNo;

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
    /// An e-mail is wanted.
    Wished {
        /// Names the claim.
        id: ClaimId,
        /// Its number.
        number: u64,
        /// The wish.
        row: ClaimingRow,
    },
    /// The wish for an e-mail has ended.
    WishEnded {
        /// Names the claim.
        id: ClaimId,
        /// How.
        row: ClaimingRow,
    },
    /// How a wish ended is not known any more.
    WishForgotten {
        /// Names the claim.
        id: ClaimId,
    },
    /// An account has the claim of its e-mail.
    Claimed {
        /// Which account.
        account: AccountNo,
        /// Where the claim is kept.
        row: ClaimedRow,
    },
    /// An account has lost the claim of its e-mail to somebody else, and keeps the e-mail.
    ClaimLost {
        /// Which account.
        account: AccountNo,
        /// The group that kept the claim.
        keeper: GroupNo,
    },
    /// An account has another e-mail.
    EmailChanged {
        /// Its number.
        account: AccountNo,
        /// The e-mail before.
        old: Digest,
        /// The account as it is now.
        row: AccountRow,
    },
    /// Who has an e-mail in all regions has changed, or is not asked for any more.
    Kept {
        /// Which e-mail.
        email: Digest,
        /// Who has it now.
        row: Option<ClaimRow>,
    },
    /// Another group is told something about an e-mail. No row changes.
    Said {
        /// Which group.
        to: GroupNo,
        /// The e-mail.
        email: Digest,
        /// Names the claim.
        id: ClaimId,
        /// What is said.
        said: Said,
    },
}
