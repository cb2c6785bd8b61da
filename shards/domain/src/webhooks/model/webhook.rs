//! Webhooks: which changes go where.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_messages::webhooks as messages;

use crate::codec::{DecodeError, Reader, Writer};
use crate::feed::Place;
use crate::table::{Row, TableId, table_id};

use super::MODULE;

/// Number of a webhook within its group.
pub type WebhookNo = u64;

/// Changes that a webhook was not told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MissedRow {
    /// The first.
    pub first: Place,
    /// The last.
    pub last: Place,
    /// How many.
    pub count: u64,
}

/// A webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebhookRow {
    /// Subject of whose it is.
    pub owner: String,
    /// Where changes go.
    pub url: String,
    /// Kinds of changes that count, a bit each; 0: all.
    pub kinds: u64,
    /// Module and name of the only row whose changes count.
    pub row: Option<(u8, String)>,
    /// Of its secret: higher in a later incarnation, so that none that was shown before a restore is made once more.
    pub generation: u64,
    /// Of the secret before; 0: there was none.
    pub previous_generation: u64,
    /// The secret before goes on until then, milliseconds of steady time.
    pub rotating_until_ms: u64,
    /// Raised by one with each change.
    pub revision: u64,
    /// Log time at which it was made, milliseconds.
    pub created_ms: u64,
    /// What it was not told, and does not know of.
    pub missed: Option<MissedRow>,
}

impl WebhookRow {
    /// Whether a change of this kind, of this row, counts.
    pub fn wants(&self, kind: u32, module: u32, row: &str) -> bool {
        let kind = self.kinds == 0 || 1u64.checked_shl(kind).is_some_and(|bit| self.kinds & bit != 0);
        kind && self.row.as_ref().is_none_or(|(of, name)| u32::from(*of) == module && name == row)
    }
}

impl From<MissedRow> for messages::Missed {
    fn from(missed: MissedRow) -> Self {
        Self { first: Some(missed.first.into()), last: Some(missed.last.into()), count: missed.count }
    }
}

fn encode_place(place: Place, w: &mut Writer) {
    w.u64(place.incarnation);
    w.u64(place.index);
    w.u32(place.changes);
}

fn decode_place(r: &mut Reader<'_>) -> Result<Place, DecodeError> {
    Ok(Place { incarnation: r.u64()?, index: r.u64()?, changes: r.u32()? })
}

/// Numbers of the webhooks of each owner.
#[derive(Debug, Default, PartialEq)]
pub struct ByOwner(pub BTreeMap<String, BTreeSet<WebhookNo>>);

impl Row for WebhookRow {
    const TABLE: TableId = table_id(MODULE, 1);
    type Key = WebhookNo;
    type Page = u64;
    type Index = ByOwner;

    fn page(key: &WebhookNo) -> u64 {
        key >> 4
    }
    fn encode_page(page: &u64, w: &mut Writer) {
        w.key_u64(*page);
    }
    fn encode_key(key: &WebhookNo, w: &mut Writer) {
        w.key_u64(*key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<WebhookNo, DecodeError> {
        r.key_u64()
    }
    fn encode(&self, w: &mut Writer) {
        w.str(&self.owner);
        w.str(&self.url);
        w.u64(self.kinds);
        w.option(self.row.as_ref(), |w, (module, name)| {
            w.u8(*module);
            w.str(name);
        });
        w.u64(self.generation);
        w.u64(self.previous_generation);
        w.u64(self.rotating_until_ms);
        w.u64(self.revision);
        w.u64(self.created_ms);
        w.option(self.missed.as_ref(), |w, missed| {
            encode_place(missed.first, w);
            encode_place(missed.last, w);
            w.u64(missed.count);
        });
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            owner: r.str()?.to_owned(),
            url: r.str()?.to_owned(),
            kinds: r.u64()?,
            row: r.option(|r| Ok((r.u8()?, r.str()?.to_owned())))?,
            generation: r.u64()?,
            previous_generation: r.u64()?,
            rotating_until_ms: r.u64()?,
            revision: r.u64()?,
            created_ms: r.u64()?,
            missed: r.option(|r| {
                Ok(MissedRow { first: decode_place(r)?, last: decode_place(r)?, count: r.u64()? })
            })?,
        })
    }
    fn index(index: &mut ByOwner, key: &WebhookNo, row: &Self) {
        index.0.entry(row.owner.clone()).or_default().insert(*key);
    }
    fn unindex(index: &mut ByOwner, key: &WebhookNo, row: &Self) {
        if let Some(numbers) = index.0.get_mut(&row.owner) {
            numbers.remove(key);
            if numbers.is_empty() {
                index.0.remove(&row.owner);
            }
        }
    }
}
