//! The rows of a group's feed: what has happened in each entry, for a while.
//!
//! They are rows as all others, so that the feed goes on where it was after a crash, a change of lead or a snapshot. A [`Place`] says
//! how far somebody has heard it.

use std::sync::Arc;

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::table::{Row, TableId};

pub use tidewall_domain::feed::Place;

/// What has happened in one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedRow {
    /// Between this entry and its own nothing was told.
    pub previous: u64,
    /// Log time, Unix milliseconds.
    pub log_ms: u64,
    /// Steady time, milliseconds.
    pub steady_ms: u64,
    /// The changes, in order: each as its length and its bytes, as protobuf writes them one after the other.
    pub changes: Arc<[u8]>,
}

/// How much the feed has. The last entry is never given up.
#[derive(Debug, Default, PartialEq)]
pub struct FeedIndex {
    /// About what its rows cost, bytes.
    pub bytes: u64,
    /// Index of the last entry that told anything.
    pub last: Option<u64>,
}

impl FeedRow {
    /// About what it costs, bytes.
    pub(crate) fn cost(&self) -> u64 {
        128 + self.changes.len() as u64
    }
}

impl Row for FeedRow {
    const TABLE: TableId = 18;
    /// Log index of the entry.
    type Key = u64;
    type Page = u64;
    type Index = FeedIndex;

    fn page(key: &u64) -> u64 {
        key >> 4
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
        w.u64(self.previous);
        w.u64(self.log_ms);
        w.u64(self.steady_ms);
        w.bytes(&self.changes);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { previous: r.u64()?, log_ms: r.u64()?, steady_ms: r.u64()?, changes: r.bytes()?.into() })
    }
    fn index(index: &mut FeedIndex, key: &u64, row: &Self) {
        index.bytes += row.cost();
        index.last = index.last.max(Some(*key));
    }
    fn unindex(index: &mut FeedIndex, key: &u64, row: &Self) {
        index.bytes -= row.cost();
        if index.last == Some(*key) {
            index.last = None;
        }
    }
}
