//! The numbers of tiers, who has which seat, and counters: what every sale changes. Nothing here decides.

use std::collections::BTreeMap;

use crate::codec::{DecodeError, Reader, Writer};
use crate::counter::Counter;
use crate::table::{Row, TableId, table_id};

use super::{EventNo, MODULE, TierKey, TierNo, decode_number_key, encode_number_key};

/// The numbers of a tier: the row that a sale is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StockRow {
    /// All places.
    pub capacity: u64,
    /// Places that nobody has.
    pub free: u64,
    /// Places in holds.
    pub held: u64,
    /// Places of valid tickets.
    pub sold: u64,
    /// Number of the next ticket, from 1.
    pub next_ticket: u64,
    /// Number of the next hold, from 1.
    pub next_hold: u64,
}

impl StockRow {
    /// Whether nothing of the tier was ever held or sold.
    pub fn is_untouched(&self) -> bool {
        self.next_ticket == 1 && self.next_hold == 1
    }
}

impl Row for StockRow {
    const TABLE: TableId = table_id(MODULE, 2);
    type Key = TierKey;
    type Page = EventNo;
    type Index = ();

    fn page(key: &TierKey) -> EventNo {
        key.0
    }
    fn encode_page(page: &EventNo, w: &mut Writer) {
        w.key_u64(*page);
    }
    fn encode_key(key: &TierKey, w: &mut Writer) {
        w.key_u64(key.0);
        w.key_u16(key.1);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<TierKey, DecodeError> {
        Ok((r.key_u64()?, r.key_u16()?))
    }
    fn encode(&self, w: &mut Writer) {
        for value in [self.capacity, self.free, self.held, self.sold, self.next_ticket, self.next_hold] {
            w.u64(value);
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            capacity: r.u64()?,
            free: r.u64()?,
            held: r.u64()?,
            sold: r.u64()?,
            next_ticket: r.u64()?,
            next_hold: r.u64()?,
        })
    }
}

/// Who has a seat. A seat without a row is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeatRow {
    /// Taken by the hold with this number.
    Held(u64),
    /// Taken by the ticket with this number.
    Sold(u64),
}

/// Runs of neighbouring seats that somebody has, by tier: the free ones lie between them, so that the lowest of them are
/// found in as many steps as are wanted, whatever was taken and given back before.
#[derive(Debug, Default, PartialEq)]
pub struct TakenSeats {
    /// First seat of a run, and the first one behind it. No two runs touch.
    runs: BTreeMap<TierKey, BTreeMap<u32, u32>>,
}

impl TakenSeats {
    /// Seats of a tier that nobody has, the lowest first. Endless: the caller knows how many seats there are.
    pub fn free(&self, tier: TierKey) -> impl Iterator<Item = u32> {
        let mut runs = self.runs.get(&tier).into_iter().flatten().peekable();
        let mut next = 0;
        std::iter::from_fn(move || {
            if let Some((_, end)) = runs.next_if(|(start, _)| **start == next) {
                next = *end;
            }
            let seat = next;
            next = next.checked_add(1)?;
            Some(seat)
        })
    }

    fn take(&mut self, tier: TierKey, seat: u32) {
        let runs = self.runs.entry(tier).or_default();
        let end = runs.remove(&(seat + 1)).unwrap_or(seat + 1);
        match runs.range_mut(..seat).next_back() {
            Some((_, before)) if *before == seat => *before = end,
            _ => {
                runs.insert(seat, end);
            }
        }
    }

    fn give_back(&mut self, tier: TierKey, seat: u32) {
        let Some(runs) = self.runs.get_mut(&tier) else { return };
        let Some((&start, &end)) = runs.range(..=seat).next_back() else { return };
        if start == seat {
            runs.remove(&start);
        } else {
            runs.insert(start, seat);
        }
        if seat + 1 < end {
            runs.insert(seat + 1, end);
        }
        if runs.is_empty() {
            self.runs.remove(&tier);
        }
    }
}

impl Row for SeatRow {
    const TABLE: TableId = table_id(MODULE, 5);
    type Key = (EventNo, TierNo, u32);
    type Page = (EventNo, TierNo, u32);
    type Index = TakenSeats;

    fn page(key: &Self::Key) -> Self::Page {
        (key.0, key.1, key.2 >> 8)
    }
    fn encode_page(page: &Self::Page, w: &mut Writer) {
        Self::encode_key(page, w);
    }
    fn encode_key(key: &Self::Key, w: &mut Writer) {
        encode_number_key(&(key.0, key.1, key.2.into()), w);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<Self::Key, DecodeError> {
        let (event, tier, seat) = decode_number_key(r)?;
        Ok((event, tier, u32::try_from(seat).map_err(|_| DecodeError::Integer)?))
    }
    fn encode(&self, w: &mut Writer) {
        match self {
            Self::Held(number) => {
                w.u8(1);
                w.u64(*number);
            }
            Self::Sold(number) => {
                w.u8(2);
                w.u64(*number);
            }
        }
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match r.u8()? {
            1 => Ok(Self::Held(r.u64()?)),
            2 => Ok(Self::Sold(r.u64()?)),
            tag => Err(DecodeError::Tag { what: "seat state", tag: tag.into() }),
        }
    }
    fn index(index: &mut TakenSeats, key: &Self::Key, _: &Self) {
        index.take((key.0, key.1), key.2);
    }
    fn unindex(index: &mut TakenSeats, key: &Self::Key, _: &Self) {
        index.give_back((key.0, key.1), key.2);
    }
}

/// Counters of the group.
pub type CounterRow = Counter<{ table_id(MODULE, 6) }>;

/// Key of the counter of events.
pub const COUNTER_EVENTS: u64 = 1;
/// Key of the highest revision of any event that was deleted.
pub const COUNTER_REVISIONS: u64 = 2;
