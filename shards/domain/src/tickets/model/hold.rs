//! Holds, when they fall due, and who has how many places in them: the index is derived, and must never say anything that
//! the rows do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{Row, TableId, table_id};

use super::{
    EXPIRED_KEPT_MS, EventNo, MODULE, NumberKey, Price, TierKey, TierNo, decode_number_key, encode_number_key,
};

/// What became of a hold whose row is still there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HoldState {
    /// Its places are out of the stock.
    Live,
    /// It fell due and its places are in the stock again. Kept for [`EXPIRED_KEPT_MS`], so that who confirms too late is told
    /// why.
    Expired,
    /// Ending it would have broken an invariant: it keeps its places until somebody has looked at it.
    Stuck,
}

/// Places taken out of the stock for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRow {
    /// Who has it.
    pub owner: Box<str>,
    /// Places.
    pub quantity: u32,
    /// Seats, in a tier with numbers.
    pub seats: Vec<u32>,
    /// Void from this steady time on, milliseconds.
    pub expires_ms: u64,
    /// Price of each place when it was held.
    pub price: Price,
    /// What became of it.
    pub state: HoldState,
}

/// The live holds of one owner in one event.
#[derive(Debug, Default, PartialEq)]
struct OwnerHolds {
    places: u32,
    /// Places by (due, tier, number).
    by_due: BTreeMap<(u64, TierNo, u64), u32>,
}

/// Holds by when something is to be done about them, and places held by owner.
#[derive(Debug, Default, PartialEq)]
pub struct HoldIndex {
    /// (time, event, tier, number): when a live hold expires, and when the row of an expired one goes.
    timers: BTreeSet<(u64, EventNo, TierNo, u64)>,
    /// Places of live holds by (event, tier, due, number).
    due_by_tier: BTreeMap<(EventNo, TierNo, u64, u64), u32>,
    owners: BTreeMap<EventNo, BTreeMap<Box<str>, OwnerHolds>>,
}

impl HoldIndex {
    /// Places that an owner holds in an event, not counting holds that are due by `now_ms` of steady time.
    pub fn held(&self, event: EventNo, owner: &str, now_ms: u64) -> u32 {
        self.of(event, owner).map_or(0, |holds| {
            let due: u32 = holds.by_due.range(..=(now_ms, TierNo::MAX, u64::MAX)).map(|(_, n)| n).sum();
            holds.places - due
        })
    }

    /// Live holds of an owner in an event, due or not: how many, and the one that falls due first.
    pub fn count(&self, event: EventNo, owner: &str) -> (usize, Option<(u64, NumberKey)>) {
        self.of(event, owner).map_or((0, None), |holds| {
            let first = holds.by_due.first_key_value();
            (holds.by_due.len(), first.map(|((due, tier, number), _)| (*due, (event, *tier, *number))))
        })
    }

    /// Live holds of an owner in an event that are not due by `now_ms` of steady time, ordered by tier and number.
    pub fn live(&self, event: EventNo, owner: &str, now_ms: u64) -> Vec<NumberKey> {
        let holds = self.of(event, owner).into_iter();
        let live = holds.flat_map(|holds| holds.by_due.range((now_ms.saturating_add(1), 0, 0)..));
        let mut keys: Vec<_> = live.map(|((_, tier, number), _)| (event, *tier, *number)).collect();
        keys.sort_unstable();
        keys
    }

    fn of(&self, event: EventNo, owner: &str) -> Option<&OwnerHolds> {
        self.owners.get(&event)?.get(owner)
    }

    /// Live holds of a tier that are due by `now_ms` of steady time, the first first: their numbers and places.
    pub fn due(&self, tier: TierKey, now_ms: u64) -> impl Iterator<Item = (u64, u32)> {
        let due = self.due_by_tier.range((tier.0, tier.1, 0, 0)..=(tier.0, tier.1, now_ms, u64::MAX));
        due.map(|((.., number), places)| (*number, *places))
    }

    /// The earliest timer, if it is due by `now_ms` of steady time.
    pub fn next_timer(&self, now_ms: u64) -> Option<NumberKey> {
        let (at, event, tier, number) = self.timers.first()?;
        (*at <= now_ms).then_some((*event, *tier, *number))
    }

    /// Steady time of the earliest timer, milliseconds.
    pub fn next_timer_ms(&self) -> Option<u64> {
        self.timers.first().map(|(at, ..)| *at)
    }
}

impl HoldRow {
    /// Whether it has its places at `now_ms` of steady time.
    pub fn lives(&self, now_ms: u64) -> bool {
        self.state == HoldState::Live && self.expires_ms > now_ms
    }

    /// When something is to be done about it.
    fn timer_ms(&self) -> Option<u64> {
        match self.state {
            HoldState::Live => Some(self.expires_ms),
            HoldState::Expired => Some(self.expires_ms.saturating_add(EXPIRED_KEPT_MS)),
            HoldState::Stuck => None,
        }
    }
}

impl Row for HoldRow {
    const TABLE: TableId = table_id(MODULE, 4);
    type Key = NumberKey;
    type Page = NumberKey;
    type Index = HoldIndex;

    fn page(key: &NumberKey) -> NumberKey {
        (key.0, key.1, key.2 >> 6)
    }
    fn encode_page(page: &NumberKey, w: &mut Writer) {
        encode_number_key(page, w);
    }
    fn encode_key(key: &NumberKey, w: &mut Writer) {
        encode_number_key(key, w);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<NumberKey, DecodeError> {
        decode_number_key(r)
    }
    fn encode(&self, w: &mut Writer) {
        w.str(&self.owner);
        w.u32(self.quantity);
        w.seq(&self.seats, |w, seat| w.u32(*seat));
        w.u64(self.expires_ms);
        self.price.encode(w);
        w.u8(match self.state {
            HoldState::Live => 1,
            HoldState::Expired => 2,
            HoldState::Stuck => 3,
        });
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: r.str()?.into(),
            quantity: r.u32()?,
            seats: r.seq(Reader::u32)?,
            expires_ms: r.u64()?,
            price: Price::decode(r)?,
            state: match r.u8()? {
                1 => HoldState::Live,
                2 => HoldState::Expired,
                3 => HoldState::Stuck,
                tag => return Err(DecodeError::Tag { what: "hold state", tag: tag.into() }),
            },
        })
    }
    fn index(index: &mut HoldIndex, key: &NumberKey, row: &Self) {
        if let Some(at) = row.timer_ms() {
            index.timers.insert((at, key.0, key.1, key.2));
        }
        if row.state != HoldState::Live {
            return;
        }
        index.due_by_tier.insert((key.0, key.1, row.expires_ms, key.2), row.quantity);
        let owners = index.owners.entry(key.0).or_default();
        let holds = owners.entry(row.owner.clone()).or_default();
        holds.by_due.insert((row.expires_ms, key.1, key.2), row.quantity);
        holds.places += row.quantity;
    }
    fn unindex(index: &mut HoldIndex, key: &NumberKey, row: &Self) {
        if let Some(at) = row.timer_ms() {
            index.timers.remove(&(at, key.0, key.1, key.2));
        }
        if row.state != HoldState::Live {
            return;
        }
        index.due_by_tier.remove(&(key.0, key.1, row.expires_ms, key.2));
        let Some(owners) = index.owners.get_mut(&key.0) else { return };
        let Some(holds) = owners.get_mut(&row.owner) else { return };
        if holds.by_due.remove(&(row.expires_ms, key.1, key.2)).is_some() {
            holds.places -= row.quantity;
        }
        if holds.by_due.is_empty() {
            owners.remove(&row.owner);
            if owners.is_empty() {
                index.owners.remove(&key.0);
            }
        }
    }
}
