//! Who has an e-mail in all regions: claims that this group keeps for others, those that it is waiting for, and where those of its
//! own accounts are kept.

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Reader, Writer};
use crate::outbox::GroupNo;
use crate::table::{Row, TableId, table_id};

use super::{AccountNo, AccountRow, Digest, Due, MODULE, Personal, decode_digest};

/// Names a claim among those of its group. The upper half is the incarnation in which it was made, so that no other one makes it again.
pub type ClaimId = u128;

/// How a claim stands with the group that keeps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// Granted, and not confirmed: its owner is asked at this steady time, milliseconds.
    Granted(u64),
    /// Its owner was asked, and has not answered.
    Asked,
    /// An account has the e-mail.
    Confirmed,
}

/// An e-mail that this group keeps for an account of some group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimRow {
    /// Whose account has it, or wants it.
    pub owner: GroupNo,
    /// Names the claim there.
    pub id: ClaimId,
    /// How it stands.
    pub kept: Kept,
}

impl ClaimRow {
    fn timer_ms(&self) -> Option<u64> {
        match self.kept {
            Kept::Granted(at) => Some(at),
            Kept::Asked | Kept::Confirmed => None,
        }
    }
}

impl Row for ClaimRow {
    const TABLE: TableId = table_id(MODULE, 6);
    keyed_by_email!();
    type Index = Due<Digest>;

    fn encode(&self, w: &mut Writer) {
        w.u32(self.owner);
        w.u128(self.id);
        match self.kept {
            Kept::Granted(at) => {
                w.u8(1);
                w.u64(at);
            }
            Kept::Asked => w.u8(2),
            Kept::Confirmed => w.u8(3),
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: r.u32()?,
            id: r.u128()?,
            kept: match r.u8()? {
                1 => Kept::Granted(r.u64()?),
                2 => Kept::Asked,
                3 => Kept::Confirmed,
                tag => return Err(DecodeError::Tag { what: "state of a claim", tag: tag.into() }),
            },
        })
    }
    fn index(index: &mut Due<Digest>, key: &Digest, row: &Self) {
        index.put(row.timer_ms(), *key);
    }
    fn unindex(index: &mut Due<Digest>, key: &Digest, row: &Self) {
        index.take(row.timer_ms(), *key);
    }
}

/// What is done once an e-mail is granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// An account is made, with this row.
    Account(Box<AccountRow>),
    /// An account changes its e-mail.
    Email {
        /// Which.
        account: AccountNo,
        /// The e-mail, encrypted.
        sealed: Personal,
    },
}

/// How the wish for an e-mail stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wish {
    /// The keeper has not answered.
    Open(Wanted),
    /// The e-mail is the account's.
    Done,
    /// Somebody else has the e-mail.
    Taken,
    /// The keeper did not answer in time: nothing was changed.
    Undone,
}

/// An e-mail that is wanted: the state of the saga that claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimingRow {
    /// Which e-mail.
    pub email: Digest,
    /// The group that keeps it.
    pub keeper: GroupNo,
    /// How it stands.
    pub wish: Wish,
    /// Steady time at which an open one is given up, and an ended one forgotten, milliseconds.
    pub until_ms: u64,
    /// Its timer could not be carried out, and nothing is to be done about it.
    pub stuck: bool,
}

impl ClaimingRow {
    fn timer_ms(&self) -> Option<u64> {
        (!self.stuck).then_some(self.until_ms)
    }

    /// The account whose e-mail is being changed.
    fn changing(&self) -> Option<AccountNo> {
        match &self.wish {
            Wish::Open(Wanted::Email { account, .. }) => Some(*account),
            _ => None,
        }
    }
}

/// What is derived from claims that are waited for.
#[derive(Debug, Default, PartialEq)]
pub struct Claimings {
    /// When something is to be done about them.
    pub due: Due<ClaimId>,
    /// The open one of each account that changes its e-mail.
    pub changing: BTreeMap<AccountNo, ClaimId>,
}

impl Row for ClaimingRow {
    const TABLE: TableId = table_id(MODULE, 7);
    type Key = ClaimId;
    type Page = u128;
    type Index = Claimings;

    fn page(key: &ClaimId) -> u128 {
        key >> 3
    }
    fn encode_page(page: &u128, w: &mut Writer) {
        w.u128(*page);
    }
    fn encode_key(key: &ClaimId, w: &mut Writer) {
        w.u128(*key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<ClaimId, DecodeError> {
        r.u128()
    }
    fn encode(&self, w: &mut Writer) {
        w.raw(&self.email);
        w.u32(self.keeper);
        match &self.wish {
            Wish::Open(Wanted::Account(row)) => {
                w.u8(1);
                row.encode(w);
            }
            Wish::Open(Wanted::Email { account, sealed }) => {
                w.u8(2);
                w.u64(*account);
                sealed.encode(w);
            }
            Wish::Done => w.u8(3),
            Wish::Taken => w.u8(4),
            Wish::Undone => w.u8(5),
        }
        w.u64(self.until_ms);
        w.bool(self.stuck);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            email: decode_digest(r)?,
            keeper: r.u32()?,
            wish: match r.u8()? {
                1 => Wish::Open(Wanted::Account(Box::new(AccountRow::decode(r)?))),
                2 => Wish::Open(Wanted::Email { account: r.u64()?, sealed: Personal::decode(r)? }),
                3 => Wish::Done,
                4 => Wish::Taken,
                5 => Wish::Undone,
                tag => {
                    return Err(DecodeError::Tag {
                        what: "state of a claim that is waited for",
                        tag: tag.into(),
                    });
                }
            },
            until_ms: r.u64()?,
            stuck: r.bool()?,
        })
    }
    fn index(index: &mut Claimings, key: &ClaimId, row: &Self) {
        index.due.put(row.timer_ms(), *key);
        index.changing.extend(row.changing().map(|account| (account, *key)));
    }
    fn unindex(index: &mut Claimings, key: &ClaimId, row: &Self) {
        index.due.take(row.timer_ms(), *key);
        if let Some(account) = row.changing() {
            index.changing.remove(&account);
        }
    }
}

/// Where the claim of an account's e-mail is kept. An account of before there were claims has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClaimedRow {
    /// The group that keeps it.
    pub keeper: GroupNo,
    /// Names the claim.
    pub id: ClaimId,
}

impl Row for ClaimedRow {
    const TABLE: TableId = table_id(MODULE, 8);
    keyed_by_account!(32);
    type Index = ();

    fn encode(&self, w: &mut Writer) {
        w.u32(self.keeper);
        w.u128(self.id);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { keeper: r.u32()?, id: r.u128()? })
    }
}
