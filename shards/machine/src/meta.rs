//! The group's own rows: its time, its versions, and imports under way with their parts.
//!
//! Rows of apply version 1 keep their bytes for ever: what later versions know besides is in tables of its own.

use std::collections::BTreeSet;
use std::sync::Arc;

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::table::{Row, TableId};

use crate::time::GroupTime;

/// The one row about the group itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaRow {
    /// Where time stands.
    pub time: GroupTime,
    /// Behaviour of apply.
    pub apply_version: u32,
    /// Raised by a restore or a forced recovery.
    pub incarnation: u64,
    /// Number of the next remembered outcome.
    pub dedupe_next: u64,
    /// Number of the oldest remembered outcome.
    pub dedupe_first: u64,
    /// About what remembered outcomes cost, bytes.
    pub dedupe_bytes: u64,
    /// Request ids with an earlier time may have been forgotten.
    pub forgotten_before_ms: u64,
    /// Latest time of a request id under which anything was decided or sealed.
    pub latest_id_ms: u64,
}

impl Default for MetaRow {
    fn default() -> Self {
        Self {
            time: GroupTime::default(),
            apply_version: 1,
            incarnation: 1,
            dedupe_next: 1,
            dedupe_first: 1,
            dedupe_bytes: 0,
            forgotten_before_ms: 0,
            latest_id_ms: 0,
        }
    }
}

/// Key of the one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct MetaKey;

impl Row for MetaRow {
    const TABLE: TableId = 10;
    type Key = MetaKey;
    type Page = MetaKey;
    type Index = ();

    fn page(key: &MetaKey) -> MetaKey {
        *key
    }
    fn encode_page(_: &MetaKey, _: &mut Writer) {}
    fn encode_key(_: &MetaKey, _: &mut Writer) {}
    fn decode_key(_: &mut Reader<'_>) -> Result<MetaKey, DecodeError> {
        Ok(MetaKey)
    }
    fn encode(&self, w: &mut Writer) {
        self.time.encode(w);
        w.u32(self.apply_version);
        w.u64(self.incarnation);
        w.u64(self.dedupe_next);
        w.u64(self.dedupe_first);
        w.u64(self.dedupe_bytes);
        w.u64(self.forgotten_before_ms);
        w.u64(self.latest_id_ms);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            time: GroupTime::decode(r)?,
            apply_version: r.u32()?,
            incarnation: r.u64()?,
            dedupe_next: r.u64()?,
            dedupe_first: r.u64()?,
            dedupe_bytes: r.u64()?,
            forgotten_before_ms: r.u64()?,
            latest_id_ms: r.u64()?,
        })
    }
}

/// A part of an import under way. Shared, because it is dropped elsewhere than where it is taken out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StagedRow(pub Arc<[u8]>);

impl Row for StagedRow {
    const TABLE: TableId = 12;
    type Key = (u128, u32);
    type Page = (u128, u32);
    type Index = ();

    fn page(key: &Self::Key) -> Self::Page {
        *key
    }
    fn encode_page(page: &Self::Page, w: &mut Writer) {
        Self::encode_key(page, w);
    }
    fn encode_key(key: &Self::Key, w: &mut Writer) {
        w.u128(key.0);
        w.key_u64(key.1.into());
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<Self::Key, DecodeError> {
        Ok((r.u128()?, u32::try_from(r.key_u64()?).map_err(|_| DecodeError::Integer)?))
    }
    fn encode(&self, w: &mut Writer) {
        w.bytes(&self.0);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self(r.bytes()?.into()))
    }
}

/// An import under way. Kept under apply version 2 and later only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImportRow {
    /// Steady time of its latest part, milliseconds.
    pub last_part_ms: u64,
}

/// (steady time of the latest part, import) of all rows.
#[derive(Debug, Default, PartialEq)]
pub struct ByLastPart(pub BTreeSet<(u64, u128)>);

impl Row for ImportRow {
    const TABLE: TableId = 13;
    type Key = u128;
    type Page = u128;
    type Index = ByLastPart;

    fn page(key: &u128) -> u128 {
        *key
    }
    fn encode_page(page: &u128, w: &mut Writer) {
        w.u128(*page);
    }
    fn encode_key(key: &u128, w: &mut Writer) {
        w.u128(*key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<u128, DecodeError> {
        r.u128()
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.last_part_ms);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { last_part_ms: r.u64()? })
    }
    fn index(index: &mut ByLastPart, key: &u128, row: &Self) {
        index.0.insert((row.last_part_ms, *key));
    }
    fn unindex(index: &mut ByLastPart, key: &u128, row: &Self) {
        index.0.remove(&(row.last_part_ms, *key));
    }
}
