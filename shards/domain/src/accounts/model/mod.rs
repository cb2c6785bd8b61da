//! Rows of the accounts module, their keys, and what is derived from them.

/// Rows by e-mail, in pages by its first two bytes.
macro_rules! keyed_by_email {
    () => {
        type Key = Digest;
        type Page = u16;

        fn page(key: &Digest) -> u16 {
            u16::from_be_bytes([key[0], key[1]])
        }
        fn encode_page(page: &u16, w: &mut Writer) {
            w.key_u16(*page);
        }
        fn encode_key(key: &Digest, w: &mut Writer) {
            w.raw(key);
        }
        fn decode_key(r: &mut Reader<'_>) -> Result<Digest, DecodeError> {
            decode_digest(r)
        }
    };
}

/// Rows by account, in pages of so many accounts, a power of two.
macro_rules! keyed_by_account {
    ($accounts:literal) => {
        type Key = AccountNo;
        type Page = u64;

        fn page(key: &AccountNo) -> u64 {
            key / $accounts
        }
        fn encode_page(page: &u64, w: &mut Writer) {
            w.key_u64(*page);
        }
        fn encode_key(key: &AccountNo, w: &mut Writer) {
            w.key_u64(*key);
        }
        fn decode_key(r: &mut Reader<'_>) -> Result<AccountNo, DecodeError> {
            r.key_u64()
        }
    };
}

mod account;
mod attempts;
mod claim;
mod session;

use std::collections::BTreeSet;

use crate::Roles;
use crate::codec::{DecodeError, Reader};
use crate::counter::number_of;
use crate::outbox::GroupNo;
use crate::table::Table;

pub use tidewall_messages::accounts::MODULE;

pub use account::{AccountRow, CounterRow, Credential, EmailRow, Personal};
pub use attempts::AttemptsRow;
pub use claim::{ClaimId, ClaimRow, ClaimedRow, ClaimingRow, Kept, Wanted, Wish};
pub use session::{SessionKey, SessionRow};

/// Sessions that an account can have at a time; one more ends the one that was refreshed longest ago.
pub const SESSIONS_MAX: usize = 20;
/// A session ends when it was not refreshed for so long, milliseconds of steady time: 30 days.
pub const SESSION_IDLE_MS: u64 = 30 * 86_400_000;
/// A session ends so long after it began, whatever happens, milliseconds of steady time: 180 days.
pub const SESSION_MAX_MS: u64 = 180 * 86_400_000;
/// A token that was used before gives its successor once more for so long: the answer may have been lost. Milliseconds of steady
/// time.
pub const REFRESH_AGAIN_MS: u64 = 60_000;
/// Passwords that may be tried for an e-mail within a window.
pub const ATTEMPTS_MAX: u32 = 10;
/// How long attempts count from the first one on, milliseconds of steady time.
pub const ATTEMPTS_WINDOW_MS: u64 = 15 * 60_000;
/// Personal fields that an account can have.
pub const PERSONAL_MAX: usize = 16;
/// Bytes of one of them, encrypted.
pub const CIPHERTEXT_MAX: usize = 2_048;
/// A wish for an e-mail is given up when its keeper has not answered for so long, milliseconds of steady time.
pub const CLAIMING_MS: u64 = 60_000;
/// How the wish for an e-mail ended is known for so long, milliseconds of steady time: longer than anybody waits for it.
pub const CLAIMING_KNOWN_MS: u64 = 300_000;
/// Whoever was granted an e-mail and has not confirmed that it makes use of it is asked after so long, milliseconds of steady time.
pub const CLAIM_ASKED_AFTER_MS: u64 = 60_000;
/// Number of the personal field that is the e-mail.
pub const FIELD_EMAIL: u32 = 1;

/// Key of the counter of account numbers: the highest that was given.
pub const COUNTER_ACCOUNTS: u64 = 1;
/// Key of the counter of admins.
pub const COUNTER_ADMINS: u64 = 2;
/// Key of the counter of claims: the highest number that was given.
pub const COUNTER_CLAIMS: u64 = 3;

/// All roles that there are.
pub const ROLES: Roles = Roles(
    Roles::ORGANISER.0
        | Roles::SELLER.0
        | Roles::OPERATOR.0
        | Roles::USER.0
        | Roles::SUPPORT.0
        | Roles::AUDITOR.0
        | Roles::ADMIN.0,
);

/// Number of an account within its group.
pub type AccountNo = u64;
/// A hash, keyed where it is of something that can be guessed.
pub type Digest = [u8; 32];

/// All rows of the module.
#[derive(Debug, Default)]
pub struct State {
    pub(super) accounts: Table<AccountRow>,
    pub(super) emails: Table<EmailRow>,
    pub(super) sessions: Table<SessionRow>,
    pub(super) attempts: Table<AttemptsRow>,
    pub(super) counters: Table<CounterRow>,
    /// By e-mail: those that this group keeps.
    pub(super) claims: Table<ClaimRow>,
    pub(super) claimings: Table<ClaimingRow>,
    pub(super) claimed: Table<ClaimedRow>,
}

impl State {
    /// The account with this id, and its number.
    pub fn account(&self, id: &str) -> Option<(AccountNo, &AccountRow)> {
        let no = parse_id(id)?;
        Some((no, self.accounts.get(&no)?))
    }

    /// The account with this e-mail, and its number.
    pub fn account_of(&self, email: &Digest) -> Option<(AccountNo, &AccountRow)> {
        let no = self.emails.get(email)?.0;
        Some((no, self.accounts.get(&no)?))
    }

    /// Sessions of an account, in the order of their ids, ended or not.
    pub fn sessions_of(&self, account: AccountNo) -> impl Iterator<Item = (SessionKey, &SessionRow)> {
        let rows = self.sessions.range_from(&(account, 0));
        rows.take_while(move |(key, _)| key.0 == account).map(|(key, row)| (*key, row))
    }

    /// The account whose e-mail this is by this claim.
    pub fn account_by_claim(&self, email: &Digest, keeper: GroupNo, id: ClaimId) -> Option<AccountNo> {
        let no = self.emails.get(email)?.0;
        (self.claimed.get(&no)? == &ClaimedRow { keeper, id }).then_some(no)
    }

    /// All accounts, each with where the claim of its e-mail is kept.
    pub fn all(&self) -> impl Iterator<Item = (AccountNo, &AccountRow, Option<&ClaimedRow>)> {
        self.accounts.iter().map(|(no, row)| (*no, row, self.claimed.get(no)))
    }

    /// All e-mails that this group keeps for accounts of some group.
    pub fn kept(&self) -> impl Iterator<Item = (&Digest, &ClaimRow)> {
        self.claims.iter()
    }

    /// All wishes for an e-mail that are known.
    pub fn wishes(&self) -> impl Iterator<Item = (&ClaimId, &ClaimingRow)> {
        self.claimings.iter()
    }

    pub(super) fn counter(&self, key: u64) -> u64 {
        self.counters.get(&key).map_or(0, |counter| counter.0)
    }
}

/// Id of an account by its number.
pub fn account_id(no: AccountNo) -> String {
    format!("a{no}")
}

/// Number of an account by its id: "a12".
pub fn parse_id(id: &str) -> Option<AccountNo> {
    number_of('a', id)
}

/// Keys by when something is to be done about them, milliseconds of steady time.
#[derive(Debug, PartialEq)]
pub struct Due<K: Ord>(BTreeSet<(u64, K)>);

impl<K: Ord> Default for Due<K> {
    fn default() -> Self {
        Self(BTreeSet::new())
    }
}

impl<K: Ord + Copy> Due<K> {
    /// When the first is due.
    pub fn next_ms(&self) -> Option<u64> {
        self.0.first().map(|(at, _)| *at)
    }

    /// The first, if it is due by now.
    pub fn next(&self, now_ms: u64) -> Option<K> {
        self.0.first().filter(|(at, _)| *at <= now_ms).map(|(_, key)| *key)
    }

    fn put(&mut self, at: Option<u64>, key: K) {
        self.0.extend(at.map(|at| (at, key)));
    }

    fn take(&mut self, at: Option<u64>, key: K) {
        if let Some(at) = at {
            self.0.remove(&(at, key));
        }
    }
}

fn decode_digest(r: &mut Reader<'_>) -> Result<Digest, DecodeError> {
    r.raw(32)?.try_into().map_err(|_| DecodeError::Truncated)
}
