//! Outcomes by request id, so that a repeated request gets its first answer.
//!
//! Rows are numbered in the order of decision and stored append-only; the look-up by id is derived. The oldest are
//! forgotten by log time and under a byte cap; then the watermark rises, and ids older than it
//! are refused instead of executed.

use std::collections::BTreeSet;

use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_domain::table::{Row, Table, TableId};

use crate::answer::{Answer, Decision, Receipt, SEALED};

/// What was decided for a request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DedupeRow {
    /// Scope of the id.
    pub principal: Box<str>,
    /// UUIDv7 as a number.
    pub request_id: u128,
    /// Hash of what the client sent.
    pub fingerprint: u64,
    /// Where it was decided.
    pub receipt: Receipt,
    /// Steady time of the decision, milliseconds.
    pub steady_ms: u64,
    /// The encoded answer.
    pub answer: Box<[u8]>,
}

impl DedupeRow {
    /// About what the row costs in memory, bytes.
    pub fn cost(&self) -> u64 {
        168 + self.principal.len() as u64 + self.answer.len() as u64
    }

    /// Whether nothing was decided, and nothing may be.
    pub fn is_seal(&self) -> bool {
        self.answer.first() == Some(&SEALED)
    }

    /// The decision as it was.
    pub fn decision(&self) -> Result<Decision, DecodeError> {
        let mut r = Reader::new(&self.answer);
        let answer = Answer::decode(&mut r)?;
        Ok(Decision { receipt: Some(self.receipt), answer, replayed: true })
    }
}

/// (request id, number) of all rows.
#[derive(Debug, Default, PartialEq)]
pub struct ById(BTreeSet<(u128, u64)>);

impl Row for DedupeRow {
    const TABLE: TableId = 11;
    type Key = u64;
    type Page = u64;
    type Index = ById;

    fn page(key: &u64) -> u64 {
        key >> 6
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
        w.str(&self.principal);
        w.u128(self.request_id);
        w.key_u64(self.fingerprint);
        self.receipt.encode(w);
        w.u64(self.steady_ms);
        w.bytes(&self.answer);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            principal: r.str()?.into(),
            request_id: r.u128()?,
            fingerprint: r.key_u64()?,
            receipt: Receipt::decode(r)?,
            steady_ms: r.u64()?,
            answer: r.bytes()?.into(),
        })
    }
    fn index(index: &mut ById, key: &u64, row: &Self) {
        index.0.insert((row.request_id, *key));
    }
    fn unindex(index: &mut ById, key: &u64, row: &Self) {
        index.0.remove(&(row.request_id, *key));
    }
}

/// The row of a request id in the scope of a principal.
pub fn find<'a>(table: &'a Table<DedupeRow>, principal: &str, request_id: u128) -> Option<&'a DedupeRow> {
    let numbers = table.derived().0.range((request_id, 0)..=(request_id, u64::MAX));
    numbers.filter_map(|(_, number)| table.get(number)).find(|row| &*row.principal == principal)
}
