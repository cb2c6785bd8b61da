//! Tickets, and who has how many of them: the index is derived, and must never say anything that the rows do not.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{Row, TableId, table_id};

use super::{EventNo, MODULE, NumberKey, Price, TierNo, decode_number_key, encode_number_key};

/// A ticket: the right to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketRow {
    /// Who has it.
    pub owner: Box<str>,
    /// Seat, in a tier with numbers.
    pub seat: Option<u32>,
    /// Price paid.
    pub price: Price,
    /// Log time of the sale, milliseconds.
    pub sold_ms: u64,
    /// Request id of the sale.
    pub request_id: u128,
    /// Its place was given back.
    pub cancelled: bool,
}

/// Tickets by owner, per event.
#[derive(Debug, Default, PartialEq)]
pub struct TicketIndex {
    owners: BTreeMap<EventNo, BTreeMap<Box<str>, OwnerTickets>>,
}

/// The tickets of one owner in one event.
#[derive(Debug, Default, PartialEq)]
pub struct OwnerTickets {
    /// Not cancelled.
    pub valid: u32,
    /// All of them, in order.
    pub tickets: BTreeSet<(TierNo, u64)>,
}

impl TicketIndex {
    /// The tickets of an owner.
    pub fn of(&self, event: EventNo, owner: &str) -> Option<&OwnerTickets> {
        self.owners.get(&event)?.get(owner)
    }
}

impl Row for TicketRow {
    const TABLE: TableId = table_id(MODULE, 3);
    type Key = NumberKey;
    type Page = NumberKey;
    type Index = TicketIndex;

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
        w.option(self.seat.as_ref(), |w, seat| w.u32(*seat));
        self.price.encode(w);
        w.u64(self.sold_ms);
        w.u128(self.request_id);
        w.bool(self.cancelled);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: r.str()?.into(),
            seat: r.option(Reader::u32)?,
            price: Price::decode(r)?,
            sold_ms: r.u64()?,
            request_id: r.u128()?,
            cancelled: r.bool()?,
        })
    }
    fn index(index: &mut TicketIndex, key: &NumberKey, row: &Self) {
        let owners = index.owners.entry(key.0).or_default();
        if !owners.contains_key(&row.owner) {
            owners.insert(row.owner.clone(), OwnerTickets::default());
        }
        let tickets = owners.get_mut(&row.owner).expect("inserted above when it was absent");
        tickets.valid += u32::from(!row.cancelled);
        tickets.tickets.insert((key.1, key.2));
    }
    fn unindex(index: &mut TicketIndex, key: &NumberKey, row: &Self) {
        let Some(owners) = index.owners.get_mut(&key.0) else { return };
        let Some(tickets) = owners.get_mut(&row.owner) else { return };
        tickets.valid -= u32::from(!row.cancelled);
        tickets.tickets.remove(&(key.1, key.2));
        if tickets.tickets.is_empty() {
            owners.remove(&row.owner);
            if owners.is_empty() {
                index.owners.remove(&key.0);
            }
        }
    }
}
