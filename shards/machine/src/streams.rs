//! The rows of what groups tell each other: streams, messages on their way, and dead letters.
//!
//! A *stream* is what one group tells another, in order. Its messages are numbered, and each is bound to all before it by a hash. A
//! stream lives as long as the *pair* of incarnations does: when either group went back to an earlier state, it begins anew at the
//! oldest message that was not acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::outbox::GroupNo;
use tidewall_domain::table::{Row, TableId};

use crate::hash_64;

/// How this group and another one stand, by the other one's number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamRow {
    /// Incarnation of the other group; 0 before it is known.
    pub peer: u64,
    /// Incarnation of this group in which that was noted.
    pub own: u64,
    /// The other group has noted the pair as well.
    pub met: bool,
    /// First message of the pair.
    pub origin: u64,
    /// Hash over all messages before it.
    pub origin_chain: u64,
    /// Oldest message that was not acknowledged.
    pub first: u64,
    /// Hash over all messages before it.
    pub first_chain: u64,
    /// Number of the next message.
    pub next: u64,
    /// Number of the next message that is expected; 0: whichever the other group calls the first of the pair.
    pub received: u64,
    /// Hash over all messages before it.
    pub received_chain: u64,
    /// Sagas with the other group that have not ended.
    pub open: u64,
    /// Where the next step of reconciling begins: a module, and what it has told of its last step.
    pub reconcile: Option<(u8, Vec<u8>)>,
}

impl Default for StreamRow {
    fn default() -> Self {
        Self {
            peer: 0,
            own: 0,
            met: false,
            origin: 1,
            origin_chain: 0,
            first: 1,
            first_chain: 0,
            next: 1,
            received: 0,
            received_chain: 0,
            open: 0,
            reconcile: None,
        }
    }
}

impl StreamRow {
    /// Messages that were not acknowledged.
    pub fn queued(&self) -> u64 {
        self.next - self.first
    }
}

impl Row for StreamRow {
    const TABLE: TableId = 15;
    type Key = GroupNo;
    type Page = GroupNo;
    type Index = ();

    fn page(key: &GroupNo) -> GroupNo {
        *key
    }
    fn encode_page(page: &GroupNo, w: &mut Writer) {
        w.key_u64((*page).into());
    }
    fn encode_key(key: &GroupNo, w: &mut Writer) {
        w.key_u64((*key).into());
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<GroupNo, DecodeError> {
        GroupNo::try_from(r.key_u64()?).map_err(|_| DecodeError::Integer)
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.peer);
        w.u64(self.own);
        w.bool(self.met);
        w.u64(self.origin);
        w.key_u64(self.origin_chain);
        w.u64(self.first);
        w.key_u64(self.first_chain);
        w.u64(self.next);
        w.u64(self.received);
        w.key_u64(self.received_chain);
        w.u64(self.open);
        w.option(self.reconcile.as_ref(), |w, (module, after)| {
            w.u8(*module);
            w.bytes(after);
        });
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            peer: r.u64()?,
            own: r.u64()?,
            met: r.bool()?,
            origin: r.u64()?,
            origin_chain: r.key_u64()?,
            first: r.u64()?,
            first_chain: r.key_u64()?,
            next: r.u64()?,
            received: r.u64()?,
            received_chain: r.key_u64()?,
            open: r.u64()?,
            reconcile: r.option(|r| Ok((r.u8()?, r.bytes()?.to_vec())))?,
        })
    }
}

/// A message from one group to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Module that sends and receives it.
    pub module: u8,
    /// Its saga: when one of its messages is set aside, those behind it wait.
    pub saga: u128,
    /// In the module's own words.
    pub payload: Vec<u8>,
}

impl Message {
    /// About the bytes of its encoded form.
    pub fn bytes(&self) -> usize {
        32 + self.payload.len()
    }

    /// Hash over all messages up to this one, by that over those before it.
    pub fn chain(&self, before: u64) -> u64 {
        let mut w = Writer::over(Vec::with_capacity(32 + self.payload.len()));
        w.key_u64(before);
        self.encode(&mut w);
        hash_64(w.as_slice())
    }
}

impl Row for Message {
    const TABLE: TableId = 16;
    /// To which group, and its number in the stream.
    type Key = (GroupNo, u64);
    type Page = (GroupNo, u64);
    type Index = ();

    fn page(key: &Self::Key) -> Self::Page {
        (key.0, key.1 >> 4)
    }
    fn encode_page(page: &Self::Page, w: &mut Writer) {
        w.key_u64(page.0.into());
        w.key_u64(page.1);
    }
    fn encode_key(key: &Self::Key, w: &mut Writer) {
        w.key_u64(key.0.into());
        w.key_u64(key.1);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<Self::Key, DecodeError> {
        Ok((GroupNo::try_from(r.key_u64()?).map_err(|_| DecodeError::Integer)?, r.key_u64()?))
    }
    fn encode(&self, w: &mut Writer) {
        w.u8(self.module);
        w.u128(self.saga);
        w.bytes(&self.payload);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { module: r.u8()?, saga: r.u128()?, payload: r.bytes()?.to_vec() })
    }
}

/// Names a dead letter: incarnation, log index of the entry, and number in the entry.
pub type DeadKey = (u64, u64, u32);

/// What could not be carried out, and is there for somebody to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadRow {
    /// Group that sent the message; 0 for a timer, an effect, and for what somebody should know.
    pub from: GroupNo,
    /// The message; of what is none only the module counts.
    pub message: Message,
    /// Why it could not be carried out; of one that waits behind another one, that.
    pub reason: String,
    /// It waits behind another one of its saga.
    pub waits: bool,
    /// Log time, milliseconds.
    pub since_ms: u64,
}

/// A saga as its receiver knows it: group that sends, module, saga.
pub type SagaKey = (GroupNo, u8, u128);

impl DeadRow {
    /// No message: a timer that faulted, which its module has set aside, or what somebody should know.
    pub fn is_notice(&self) -> bool {
        self.from == 0 && self.message.payload.is_empty()
    }

    /// An effect that was given up: the message says which.
    pub fn is_effect(&self) -> bool {
        self.from == 0 && !self.message.payload.is_empty()
    }

    /// The saga of a message; of an effect its queue.
    pub fn saga(&self) -> Option<SagaKey> {
        (!self.is_notice()).then_some((self.from, self.message.module, self.message.saga))
    }
}

/// Dead letters of each saga, in order, and about the bytes of those that are effects.
#[derive(Debug, Default, PartialEq)]
pub struct BySaga(pub BTreeMap<SagaKey, BTreeSet<DeadKey>>, pub u64);

impl Row for DeadRow {
    const TABLE: TableId = 17;
    type Key = DeadKey;
    type Page = (u64, u64);
    type Index = BySaga;

    fn page(key: &DeadKey) -> Self::Page {
        (key.0, key.1)
    }
    fn encode_page(page: &Self::Page, w: &mut Writer) {
        w.key_u64(page.0);
        w.key_u64(page.1);
    }
    fn encode_key(key: &DeadKey, w: &mut Writer) {
        w.key_u64(key.0);
        w.key_u64(key.1);
        w.key_u64(key.2.into());
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<DeadKey, DecodeError> {
        let (incarnation, index) = (r.key_u64()?, r.key_u64()?);
        Ok((incarnation, index, u32::try_from(r.key_u64()?).map_err(|_| DecodeError::Integer)?))
    }
    fn encode(&self, w: &mut Writer) {
        w.u32(self.from);
        self.message.encode(w);
        w.str(&self.reason);
        w.bool(self.waits);
        w.u64(self.since_ms);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            from: r.u32()?,
            message: Message::decode(r)?,
            reason: r.str()?.to_owned(),
            waits: r.bool()?,
            since_ms: r.u64()?,
        })
    }
    fn index(index: &mut BySaga, key: &DeadKey, row: &Self) {
        if let Some(saga) = row.saga() {
            index.0.entry(saga).or_default().insert(*key);
        }
        if row.is_effect() {
            index.1 += row.message.payload.len() as u64;
        }
    }
    fn unindex(index: &mut BySaga, key: &DeadKey, row: &Self) {
        if row.is_effect() {
            index.1 -= row.message.payload.len() as u64;
        }
        let Some(saga) = row.saga() else { return };
        if let Some(keys) = index.0.get_mut(&saga) {
            keys.remove(key);
            if keys.is_empty() {
                index.0.remove(&saga);
            }
        }
    }
}
