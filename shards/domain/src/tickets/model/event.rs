//! Events and what their tiers are. They change seldom: what a sale changes is elsewhere.

use std::collections::BTreeMap;

use tidewall_messages::tickets as messages;

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{Row, TableId, table_id};

use super::{Currency, EventNo, MODULE, Price, TierNo};

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

    /// What a place costs.
    pub fn price(&self) -> Price {
        Price {
            minor_units: self.price,
            // Checked when the event was saved.
            currency: Currency::parse(&self.currency).unwrap_or_default(),
        }
    }

    /// Names of seats.
    pub fn seat_names(&self, seats: &[u32]) -> Vec<String> {
        // Where each row ends: a tier may have thousands of rows, and a hold a hundred seats.
        let mut ends = Vec::with_capacity(self.seat_rows.len());
        for row in &self.seat_rows {
            ends.push(ends.last().copied().unwrap_or(0) + row.seats);
        }
        let name = |seat: &u32| {
            let at = ends.partition_point(|end| end <= seat);
            let Some(row) = self.seat_rows.get(at) else { return format!("?-{seat}") };
            let begin = at.checked_sub(1).map_or(0, |before| ends[before]);
            format!("{}-{}", row.label, seat - begin + 1)
        };
        seats.iter().map(name).collect()
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

impl From<&messages::TierSpec> for TierSpec {
    fn from(spec: &messages::TierSpec) -> Self {
        let row = |row: &messages::SeatRowSpec| SeatRowSpec { label: row.label.clone(), seats: row.seats };
        Self {
            id: spec.tier_id.clone(),
            display_name: spec.display_name.clone(),
            capacity: spec.capacity,
            currency: spec.currency_code.clone(),
            price: spec.price_minor_units,
            seat_rows: spec.seat_rows.iter().map(row).collect(),
        }
    }
}

impl From<&TierSpec> for messages::TierSpec {
    fn from(spec: &TierSpec) -> Self {
        let row = |row: &SeatRowSpec| messages::SeatRowSpec { label: row.label.clone(), seats: row.seats };
        Self {
            tier_id: spec.id.clone(),
            display_name: spec.display_name.clone(),
            capacity: spec.capacity,
            currency_code: spec.currency.clone(),
            price_minor_units: spec.price,
            seat_rows: spec.seat_rows.iter().map(row).collect(),
        }
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
    const TABLE: TableId = table_id(MODULE, 1);
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
