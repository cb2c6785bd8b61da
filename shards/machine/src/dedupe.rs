//! Outcomes by request id, so that a repeated request gets its first answer.
//!
//! Rows are numbered in the order of decision and stored append-only; the look-up by id is derived. The oldest are
//! forgotten by time, and under a byte cap; then a watermark rises, and ids older than it are refused instead of executed.
//!
//! Under the cap nobody pushes the outcomes of others out. Principals are spread over [`SHARES`] by their hash. While a share has
//! more than its part of the cap, the oldest of the largest one go, and its own watermark rises; who falls into one share with a
//! principal that decides that much has a watermark with it. Otherwise the oldest of all go.

use std::collections::{BTreeSet, VecDeque};

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

/// Shares over which principals are spread.
pub const SHARES: u16 = 4_096;

/// The share of a principal.
pub fn share_of(principal: &str) -> u16 {
    (crate::hash_64(principal.as_bytes()) % u64::from(SHARES)) as u16
}

/// What a share has.
#[derive(Debug, Default, Clone, PartialEq)]
struct Share {
    /// About what its outcomes cost, bytes.
    bytes: u64,
    /// Their numbers, in order: nearly always added at the end and taken from the front.
    numbers: VecDeque<u64>,
}

impl Share {
    fn add(&mut self, number: u64, cost: u64) {
        self.bytes += cost;
        match self.numbers.back() {
            Some(last) if *last > number => {
                let at = self.numbers.partition_point(|known| *known < number);
                self.numbers.insert(at, number);
            }
            _ => self.numbers.push_back(number),
        }
    }

    fn take(&mut self, number: u64, cost: u64) {
        if let Ok(at) = self.numbers.binary_search(&number) {
            self.bytes -= cost;
            self.numbers.remove(at);
        }
    }
}

/// Where outcomes are found: by id, and by share.
#[derive(Debug, Default, PartialEq)]
pub struct Lookup {
    /// (request id, number) of all rows.
    by_id: BTreeSet<(u128, u64)>,
    /// Empty as long as nothing was remembered.
    shares: Vec<Share>,
}

impl Lookup {
    fn share(&mut self, principal: &str) -> &mut Share {
        if self.shares.is_empty() {
            self.shares.resize(SHARES.into(), Share::default());
        }
        &mut self.shares[usize::from(share_of(principal))]
    }

    /// The largest share that has more than `bytes` and was not passed over. Looks at all of them.
    fn largest_above(&self, bytes: u64, passed: &BTreeSet<u16>) -> Option<u16> {
        let shares = (0..).zip(&self.shares).filter(|(number, _)| !passed.contains(number));
        let largest = shares.max_by_key(|(number, share)| (share.bytes, *number))?;
        (largest.1.bytes > bytes).then_some(largest.0)
    }

    /// The number of a share's oldest outcome, while it has more than `bytes`.
    fn oldest_above(&self, share: u16, bytes: u64) -> Option<u64> {
        let share = self.shares.get(usize::from(share)).filter(|share| share.bytes > bytes)?;
        share.numbers.front().copied()
    }
}

/// Finds the shares that have too much, one after the other, within one entry. Looking at all of them takes long: one that was found
/// stays it until it has less, and when there is none any more, there is none.
#[derive(Debug, Default)]
pub struct Large {
    found: Option<Option<u16>>,
    /// What is oldest in them cannot be forgotten yet.
    passed: BTreeSet<u16>,
}

impl Large {
    /// A share that has more than `bytes`, and the number of its oldest outcome.
    pub fn next(&mut self, lookup: &Lookup, bytes: u64) -> Option<(u16, u64)> {
        let oldest = |share: u16| Some((share, lookup.oldest_above(share, bytes)?));
        match self.found {
            Some(None) => return None,
            Some(Some(share)) => {
                if let Some(known) = oldest(share) {
                    return Some(known);
                }
            }
            None => {}
        }
        let largest = lookup.largest_above(bytes, &self.passed);
        self.found = Some(largest);
        largest.and_then(oldest)
    }

    /// Leaves out the share that was found last.
    pub fn pass_over(&mut self) {
        if let Some(Some(share)) = self.found {
            self.passed.insert(share);
            self.found = None;
        }
    }
}

/// Up to where a share was forgotten beyond the others. Rows are only for shares that ever had too much.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ShareRow {
    /// Request ids with an earlier time may have been forgotten.
    pub forgotten_before_ms: u64,
}

impl Row for ShareRow {
    const TABLE: TableId = 14;
    type Key = u16;
    type Page = u16;
    type Index = ();

    fn page(key: &u16) -> u16 {
        key >> 6
    }
    fn encode_page(page: &u16, w: &mut Writer) {
        w.key_u16(*page);
    }
    fn encode_key(key: &u16, w: &mut Writer) {
        w.key_u16(*key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<u16, DecodeError> {
        r.key_u16()
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.forgotten_before_ms);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { forgotten_before_ms: r.u64()? })
    }
}

impl Row for DedupeRow {
    const TABLE: TableId = 11;
    type Key = u64;
    type Page = u64;
    type Index = Lookup;

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
    fn index(index: &mut Lookup, key: &u64, row: &Self) {
        index.by_id.insert((row.request_id, *key));
        index.share(&row.principal).add(*key, row.cost());
    }
    fn unindex(index: &mut Lookup, key: &u64, row: &Self) {
        index.by_id.remove(&(row.request_id, *key));
        index.share(&row.principal).take(*key, row.cost());
    }
}

/// The row of a request id in the scope of a principal.
pub fn find<'a>(table: &'a Table<DedupeRow>, principal: &str, request_id: u128) -> Option<&'a DedupeRow> {
    let numbers = table.derived().by_id.range((request_id, 0)..=(request_id, u64::MAX));
    numbers.filter_map(|(_, number)| table.get(number)).find(|row| &*row.principal == principal)
}
