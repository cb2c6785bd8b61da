//! The rows of what is to be done outside of all groups.
//!
//! What belongs to one queue is done one after the other: only its first effect is ever due. How often one was tried, and when it is
//! tried again, is in its row, so that whoever carries it out next goes on where another one has stopped.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::outbox::Queued;
use tidewall_domain::table::{Row, TableId};

use crate::hash_64;

/// The longest pause before the second attempt, milliseconds; it doubles with each that fails.
const PAUSE_MS: u64 = 1_000;
/// The longest pause, milliseconds, also where more is asked for.
const PAUSE_MAX_MS: u64 = 3_600_000;

/// Names an effect, for ever: nothing else that goes out has this name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct EffectKey {
    /// Module of which it is.
    pub module: u8,
    /// Its queue.
    pub queue: u128,
    /// Incarnation of the group that made it.
    pub incarnation: u64,
    /// Log index of the entry.
    pub index: u64,
    /// Number in the entry.
    pub number: u32,
}

impl EffectKey {
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u8(self.module);
        w.raw(&self.queue.to_be_bytes());
        w.key_u64(self.incarnation);
        w.key_u64(self.index);
        w.key_u64(self.number.into());
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let module = r.u8()?;
        let queue = u128::from_be_bytes(r.raw(16)?.try_into().map_err(|_| DecodeError::Truncated)?);
        let (incarnation, index) = (r.key_u64()?, r.key_u64()?);
        let number = u32::try_from(r.key_u64()?).map_err(|_| DecodeError::Integer)?;
        Ok(Self { module, queue, incarnation, index, number })
    }
}

/// Something that is to be done outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EffectRow {
    /// What, in the module's own words.
    pub payload: Vec<u8>,
    /// It is tried for so long, milliseconds of steady time.
    pub lasts_ms: u64,
    /// Until then, steady time, milliseconds.
    pub until_ms: u64,
    /// Attempts that have failed.
    pub attempts: u32,
    /// Steady time of the next attempt, milliseconds; `None`: it waits behind another one of its queue.
    pub next_ms: Option<u64>,
    /// Why the last attempt has failed; empty before one has.
    pub failure: String,
    /// Nobody knows of it yet: more may be added.
    pub open: bool,
}

impl EffectRow {
    /// About its bytes.
    pub(crate) fn bytes(&self) -> u64 {
        64 + (self.payload.len() + self.failure.len()) as u64
    }

    /// How long nobody tries after an attempt that failed, milliseconds: a half to the whole of what doubles each time, as the name of
    /// the effect decides, so that those that failed together are not tried together; at least what was asked for.
    pub(crate) fn pause_ms(&self, key: &EffectKey, asked_ms: u64) -> u64 {
        let whole = (PAUSE_MS << self.attempts.min(12)).min(PAUSE_MAX_MS);
        let mut w = Writer::new();
        key.encode(&mut w);
        w.u32(self.attempts);
        let spread = hash_64(w.as_slice()) % (whole / 2);
        (whole / 2 + spread).max(asked_ms.min(PAUSE_MAX_MS))
    }
}

/// What a queue has.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct QueueIndex {
    pub(crate) queued: Queued,
    pub(crate) keys: BTreeSet<EffectKey>,
}

/// What is derived from effects.
#[derive(Debug, Default, PartialEq)]
pub struct EffectIndex {
    /// By when they are to be tried next.
    pub(crate) due: BTreeSet<(u64, EffectKey)>,
    /// By when they are given up.
    pub(crate) until: BTreeSet<(u64, EffectKey)>,
    /// What each queue has.
    pub(crate) queues: BTreeMap<(u8, u128), QueueIndex>,
    /// How much each module has.
    pub(crate) modules: BTreeMap<u8, Queued>,
}

impl EffectIndex {
    /// The first effect of a queue.
    pub(crate) fn first_of(&self, module: u8, queue: u128) -> Option<EffectKey> {
        self.queues.get(&(module, queue))?.keys.first().copied()
    }

    /// The last effect of a queue.
    pub(crate) fn last_of(&self, module: u8, queue: u128) -> Option<EffectKey> {
        self.queues.get(&(module, queue))?.keys.last().copied()
    }
}

impl Row for EffectRow {
    const TABLE: TableId = 19;
    type Key = EffectKey;
    type Page = EffectKey;
    type Index = EffectIndex;

    fn page(key: &EffectKey) -> EffectKey {
        EffectKey { index: key.index >> 4, number: 0, ..*key }
    }
    fn encode_page(page: &EffectKey, w: &mut Writer) {
        page.encode(w);
    }
    fn encode_key(key: &EffectKey, w: &mut Writer) {
        key.encode(w);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<EffectKey, DecodeError> {
        EffectKey::decode(r)
    }
    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.payload);
        w.u64(self.lasts_ms);
        w.u64(self.until_ms);
        w.u32(self.attempts);
        w.option(self.next_ms.as_ref(), |w, next| w.u64(*next));
        w.str(&self.failure);
        w.bool(self.open);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            payload: r.bytes()?.to_vec(),
            lasts_ms: r.u64()?,
            until_ms: r.u64()?,
            attempts: r.u32()?,
            next_ms: r.option(Reader::u64)?,
            failure: r.str()?.to_owned(),
            open: r.bool()?,
        })
    }
    fn index(index: &mut EffectIndex, key: &EffectKey, row: &Self) {
        index.due.extend(row.next_ms.map(|next| (next, *key)));
        index.until.insert((row.until_ms, *key));
        let queue = index.queues.entry((key.module, key.queue)).or_default();
        queue.keys.insert(*key);
        for queued in [&mut queue.queued, index.modules.entry(key.module).or_default()] {
            (queued.count, queued.bytes) = (queued.count + 1, queued.bytes + row.bytes());
        }
    }
    fn unindex(index: &mut EffectIndex, key: &EffectKey, row: &Self) {
        if let Some(next) = row.next_ms {
            index.due.remove(&(next, *key));
        }
        index.until.remove(&(row.until_ms, *key));
        let (queue, module) = ((key.module, key.queue), key.module);
        if let (Some(of_queue), Some(of_module)) =
            (index.queues.get_mut(&queue), index.modules.get_mut(&module))
        {
            of_queue.keys.remove(key);
            for queued in [&mut of_queue.queued, &mut *of_module] {
                (queued.count, queued.bytes) = (queued.count - 1, queued.bytes - row.bytes());
            }
            if of_queue.keys.is_empty() {
                index.queues.remove(&queue);
            }
            if index.modules.get(&module).is_some_and(|queued| queued.count == 0) {
                index.modules.remove(&module);
            }
        }
    }
}

/// An effect that was given up, as it stands among the dead letters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadEffect {
    /// Its name.
    pub key: EffectKey,
    /// What was to be done.
    pub payload: Vec<u8>,
    /// It is tried for so long, milliseconds.
    pub lasts_ms: u64,
}

impl DeadEffect {
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut w = Writer::new();
        self.key.encode(&mut w);
        w.u64(self.lasts_ms);
        w.bytes(&self.payload);
        w.into_bytes()
    }

    /// What the payload of a dead letter says.
    ///
    /// # Errors
    /// It is none of an effect.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut r = Reader::new(bytes);
        let (key, lasts_ms) = (EffectKey::decode(&mut r)?, r.u64()?);
        let dead = Self { key, lasts_ms, payload: r.bytes()?.to_vec() };
        r.finish()?;
        Ok(dead)
    }
}
