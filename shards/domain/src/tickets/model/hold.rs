//! Holds, when they fall due, and who has how many places in them: the index is derived, and must never say anything that
//! the rows do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::Row;

use super::{EventNo, NumberKey, TierKey, TierNo, decode_number_key, encode_number_key};

/// Places taken out of the stock for a while.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HoldRow {
    /// Who has it.
    pub owner: Box<str>,
    /// Places.
    pub quantity: u32,
    /// Seats, in a tier with numbers.
    pub seats: Vec<u32>,
    /// Void from this log time on, milliseconds.
    pub expires_ms: u64,
    /// Price of each place when it was held, in the smallest unit of the tier's currency.
    pub price: u64,
}

/// Holds by when they fall due, and places held by owner.
#[derive(Debug, Default, PartialEq)]
pub struct HoldIndex {
    /// (due, event, tier, number) over all tiers.
    pub due: BTreeSet<(u64, EventNo, TierNo, u64)>,
    /// (event, tier, due, number).
    pub due_by_tier: BTreeSet<(EventNo, TierNo, u64, u64)>,
    held: BTreeMap<EventNo, BTreeMap<Box<str>, OwnerHolds>>,
}

/// The holds of one owner in one event: (due, tier, number) and places.
type OwnerHolds = BTreeMap<(u64, TierNo, u64), u32>;

impl HoldIndex {
    /// Places that an owner holds in an event, not counting holds that are due by `now_ms`.
    pub fn held(&self, event: EventNo, owner: &str, now_ms: u64) -> u32 {
        let holds = self.held.get(&event).and_then(|owners| owners.get(owner));
        holds.map_or(0, |holds| {
            holds.range((now_ms.saturating_add(1), 0, 0)..).map(|(_, places)| places).sum()
        })
    }

    /// The earliest hold of a tier: when it falls due, and its number.
    pub fn earliest(&self, tier: TierKey) -> Option<(u64, u64)> {
        let first = self.due_by_tier.range((tier.0, tier.1, 0, 0)..).next()?;
        ((first.0, first.1) == tier).then_some((first.2, first.3))
    }
}

impl Row for HoldRow {
    const TABLE: u8 = 4;
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
        w.u64(self.price);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: r.str()?.into(),
            quantity: r.u32()?,
            seats: r.seq(Reader::u32)?,
            expires_ms: r.u64()?,
            price: r.u64()?,
        })
    }
    fn index(index: &mut HoldIndex, key: &NumberKey, row: &Self) {
        index.due.insert((row.expires_ms, key.0, key.1, key.2));
        index.due_by_tier.insert((key.0, key.1, row.expires_ms, key.2));
        let owners = index.held.entry(key.0).or_default();
        owners.entry(row.owner.clone()).or_default().insert((row.expires_ms, key.1, key.2), row.quantity);
    }
    fn unindex(index: &mut HoldIndex, key: &NumberKey, row: &Self) {
        index.due.remove(&(row.expires_ms, key.0, key.1, key.2));
        index.due_by_tier.remove(&(key.0, key.1, row.expires_ms, key.2));
        let Some(owners) = index.held.get_mut(&key.0) else { return };
        let Some(holds) = owners.get_mut(&row.owner) else { return };
        holds.remove(&(row.expires_ms, key.1, key.2));
        if holds.is_empty() {
            owners.remove(&row.owner);
            if owners.is_empty() {
                index.held.remove(&key.0);
            }
        }
    }
}
