//! Rows of the ticket module, their keys, and the indexes derived from them.
//!
//! Names of people and things live in [`EventRow`], which changes seldom; what every sale changes is the small
//! [`StockRow`]. Quotas and due holds are derived from tickets and holds, so that they cannot disagree with them.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{FrozenPage, Row, Table};

/// Most tiers an event can have.
pub const TIERS_MAX: usize = 32;
/// Most places a tier can have.
pub const CAPACITY_MAX: u64 = 10_000_000;
/// Most numbered seats a tier can have.
pub const SEATS_MAX: u64 = 100_000;
/// Most places that one command can take.
pub const QUANTITY_MAX: u32 = 100;
/// Longest hold, milliseconds.
pub const HOLD_MS_MAX: u32 = 3_600_000;
/// A hold is swept this long after it fell due, so that who confirms too late is told why. Milliseconds.
pub const SWEEP_GRACE_MS: u64 = 5_000;
/// Highest quota per buyer.
pub const QUOTA_MAX: u32 = 100_000;

/// Number of an event within its group.
pub type EventNo = u64;
/// Number of a tier within its event, in the order of the event's list.
pub type TierNo = u16;
/// (event, tier).
pub type TierKey = (EventNo, TierNo);
/// (event, tier, number), for tickets and holds.
pub type NumberKey = (EventNo, TierNo, u64);

/// A row of numbered seats.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeatRowSpec {
    /// Label such as "A".
    pub label: String,
    /// Seats, numbered from 1.
    pub seats: u32,
}

/// What a tier is; its numbers are in [`StockRow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierSpec {
    /// Id within the event.
    pub id: String,
    /// Name for people.
    pub display_name: String,
    /// Places.
    pub capacity: u64,
    /// ISO 4217 code of the price; may be empty for free tiers.
    pub currency: String,
    /// Price in the currency's smallest unit.
    pub price: u64,
    /// Numbered seats; empty for a tier without numbers.
    pub seat_rows: Vec<SeatRowSpec>,
}

impl TierSpec {
    /// Whether places have seats.
    pub fn numbered(&self) -> bool {
        !self.seat_rows.is_empty()
    }

    /// Name of a seat, for example "A-12".
    pub fn seat_name(&self, seat: u32) -> String {
        let mut rest = seat;
        for row in &self.seat_rows {
            if rest < row.seats {
                return format!("{}-{}", row.label, rest + 1);
            }
            rest -= row.seats;
        }
        format!("?-{seat}")
    }

    /// Position of a seat by its name.
    pub fn seat_number(&self, name: &str) -> Option<u32> {
        let (label, number) = name.rsplit_once('-')?;
        if number.starts_with('0') || !number.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let number: u32 = number.parse().ok()?;
        let mut before = 0;
        for row in &self.seat_rows {
            if row.label == label {
                return (1..=row.seats).contains(&number).then(|| before + number - 1);
            }
            before += row.seats;
        }
        None
    }

    fn encode(&self, w: &mut Writer) {
        w.str(&self.id);
        w.str(&self.display_name);
        w.u64(self.capacity);
        w.str(&self.currency);
        w.u64(self.price);
        w.seq(&self.seat_rows, |w, row| {
            w.str(&row.label);
            w.u32(row.seats);
        });
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: r.str()?.into(),
            display_name: r.str()?.into(),
            capacity: r.u64()?,
            currency: r.str()?.into(),
            price: r.u64()?,
            seat_rows: r.seq(|r| Ok(SeatRowSpec { label: r.str()?.into(), seats: r.u32()? }))?,
        })
    }

    /// Encodes a list of tiers.
    pub fn encode_list(tiers: &[Self], w: &mut Writer) {
        w.seq(tiers, |w, tier| tier.encode(w));
    }

    /// Decodes a list of tiers.
    pub fn decode_list(r: &mut Reader<'_>) -> Result<Vec<Self>, DecodeError> {
        r.seq(Self::decode)
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventRow {
    /// Number within the group.
    pub no: EventNo,
    /// Name for people.
    pub display_name: String,
    /// Principal that may change it.
    pub organiser: String,
    /// Most places one buyer may have.
    pub quota: u32,
    /// Sales start at this log time (ms); 0: at once.
    pub opens_ms: u64,
    /// Sales end at this log time (ms); 0: never.
    pub closes_ms: u64,
    /// Raised by one with each change of this row.
    pub revision: u64,
    /// Tiers; only ever appended to.
    pub tiers: Vec<TierSpec>,
}

impl EventRow {
    /// Number and description of the tier with this id.
    pub fn tier(&self, id: &str) -> Option<(TierNo, &TierSpec)> {
        let at = self.tiers.iter().position(|tier| tier.id == id)?;
        Some((at as TierNo, &self.tiers[at]))
    }
}

impl Row for EventRow {
    const TABLE: u8 = 1;
    type Key = String;
    type Page = String;
    type Index = BTreeMap<EventNo, String>;

    fn page(key: &String) -> String {
        key.clone()
    }
    fn encode_page(page: &String, w: &mut Writer) {
        w.raw(page.as_bytes());
    }
    fn encode_key(key: &String, w: &mut Writer) {
        w.str(key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<String, DecodeError> {
        r.str().map(str::to_owned)
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.no);
        w.str(&self.display_name);
        w.str(&self.organiser);
        w.u32(self.quota);
        w.u64(self.opens_ms);
        w.u64(self.closes_ms);
        w.u64(self.revision);
        TierSpec::encode_list(&self.tiers, w);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            no: r.u64()?,
            display_name: r.str()?.into(),
            organiser: r.str()?.into(),
            quota: r.u32()?,
            opens_ms: r.u64()?,
            closes_ms: r.u64()?,
            revision: r.u64()?,
            tiers: TierSpec::decode_list(r)?,
        })
    }
    fn index(index: &mut Self::Index, key: &String, row: &Self) {
        index.insert(row.no, key.clone());
    }
    fn unindex(index: &mut Self::Index, _: &String, row: &Self) {
        index.remove(&row.no);
    }
}

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
    /// No seat below this one is free.
    pub seat_cursor: u32,
}

impl Row for StockRow {
    const TABLE: u8 = 2;
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
        w.u32(self.seat_cursor);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            capacity: r.u64()?,
            free: r.u64()?,
            held: r.u64()?,
            sold: r.u64()?,
            next_ticket: r.u64()?,
            next_hold: r.u64()?,
            seat_cursor: r.u32()?,
        })
    }
}

fn encode_number_key(key: &NumberKey, w: &mut Writer) {
    w.key_u64(key.0);
    w.key_u16(key.1);
    w.key_u64(key.2);
}

fn decode_number_key(r: &mut Reader<'_>) -> Result<NumberKey, DecodeError> {
    Ok((r.key_u64()?, r.key_u16()?, r.key_u64()?))
}

/// A ticket: the right to one place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketRow {
    /// Who has it.
    pub owner: Box<str>,
    /// Seat, in a tier with numbers.
    pub seat: Option<u32>,
    /// Price paid, in the smallest unit of the tier's currency.
    pub price: u64,
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
    const TABLE: u8 = 3;
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
        w.u64(self.price);
        w.u64(self.sold_ms);
        w.u128(self.request_id);
        w.bool(self.cancelled);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: r.str()?.into(),
            seat: r.option(Reader::u32)?,
            price: r.u64()?,
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

/// Who has a seat. A seat without a row is free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeatRow {
    /// Taken by the hold with this number.
    Held(u64),
    /// Taken by the ticket with this number.
    Sold(u64),
}

impl Row for SeatRow {
    const TABLE: u8 = 5;
    type Key = (EventNo, TierNo, u32);
    type Page = (EventNo, TierNo, u32);
    type Index = ();

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
}

/// Counters of the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CounterRow(pub u64);

/// Key of the counter of events.
pub const COUNTER_EVENTS: u64 = 1;

impl Row for CounterRow {
    const TABLE: u8 = 6;
    type Key = u64;
    type Page = u64;
    type Index = ();

    fn page(_: &u64) -> u64 {
        0
    }
    fn encode_page(page: &u64, w: &mut Writer) {
        w.key_u64(*page);
    }
    fn encode_key(key: &u64, w: &mut Writer) {
        w.key_u64(*key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<u64, DecodeError> {
        r.key_u64()
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.0);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.u64().map(Self)
    }
}

/// All rows of the module.
#[derive(Debug, Default)]
pub struct State {
    pub(super) events: Table<EventRow>,
    pub(super) stock: Table<StockRow>,
    pub(super) tickets: Table<TicketRow>,
    pub(super) holds: Table<HoldRow>,
    pub(super) seats: Table<SeatRow>,
    pub(super) counters: Table<CounterRow>,
}

/// Does the same with every table: the one list of them.
macro_rules! each_table {
    ($state:expr, $table:ident => $body:expr) => {{
        {
            let $table = &mut $state.events;
            $body;
        }
        {
            let $table = &mut $state.stock;
            $body;
        }
        {
            let $table = &mut $state.tickets;
            $body;
        }
        {
            let $table = &mut $state.holds;
            $body;
        }
        {
            let $table = &mut $state.seats;
            $body;
        }
        {
            let $table = &mut $state.counters;
            $body;
        }
    }};
}

impl State {
    /// Makes the changes of the last command permanent.
    pub fn commit(&mut self) {
        each_table!(self, table => table.commit());
    }

    /// Takes the changes of the last command back.
    pub fn rollback(&mut self) {
        each_table!(self, table => table.rollback());
    }

    /// Pages that changed since the last freeze.
    pub fn freeze(&mut self, into: &mut Vec<FrozenPage>) {
        each_table!(self, table => table.freeze(into));
    }

    /// All pages.
    pub fn freeze_all(&self, into: &mut Vec<FrozenPage>) {
        self.events.freeze_all(into);
        self.stock.freeze_all(into);
        self.tickets.freeze_all(into);
        self.holds.freeze_all(into);
        self.seats.freeze_all(into);
        self.counters.freeze_all(into);
    }

    /// Marks everything as changed.
    pub fn touch_all(&mut self) {
        each_table!(self, table => table.touch_all());
    }

    /// Takes in a stored page; `Ok(false)` when the table is not one of this module.
    pub fn load(&mut self, number: u8, bytes: &[u8]) -> Result<bool, DecodeError> {
        fn load_if<R: Row>(table: &mut Table<R>, number: u8, bytes: &[u8]) -> Result<bool, DecodeError> {
            if R::TABLE == number { table.load(bytes).map(|()| true) } else { Ok(false) }
        }
        Ok(load_if(&mut self.events, number, bytes)?
            || load_if(&mut self.stock, number, bytes)?
            || load_if(&mut self.tickets, number, bytes)?
            || load_if(&mut self.holds, number, bytes)?
            || load_if(&mut self.seats, number, bytes)?
            || load_if(&mut self.counters, number, bytes)?)
    }

    /// Wrapping sum of the hashes of all rows.
    pub fn digest(&self) -> u128 {
        [
            self.events.digest(),
            self.stock.digest(),
            self.tickets.digest(),
            self.holds.digest(),
            self.seats.digest(),
            self.counters.digest(),
        ]
        .into_iter()
        .fold(0, u128::wrapping_add)
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.events.len()
            + self.stock.len()
            + self.tickets.len()
            + self.holds.len()
            + self.seats.len()
            + self.counters.len()
    }

    /// Number of pages that changed since the last freeze.
    pub fn changed_pages(&self) -> usize {
        self.events.changed_pages()
            + self.stock.changed_pages()
            + self.tickets.changed_pages()
            + self.holds.changed_pages()
            + self.seats.changed_pages()
            + self.counters.changed_pages()
    }

    /// Number of events.
    pub fn events_count(&self) -> u64 {
        self.events.len()
    }
}
