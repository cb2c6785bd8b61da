//! Counters of a module: numbers that are given once, ids that have them, and how many there are of something. Nothing here decides
//! what is counted.

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{Row, TableId};

/// The number of an id that is a letter and a number, such as "a12": one number has one spelling.
pub fn number_of(letter: char, id: &str) -> Option<u64> {
    let digits = id.strip_prefix(letter)?;
    let canonical =
        !digits.is_empty() && !digits.starts_with('0') && digits.bytes().all(|b| b.is_ascii_digit());
    canonical.then(|| digits.parse().ok())?
}

/// A counter, in the table of this number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Counter<const TABLE: TableId>(pub u64);

impl<const TABLE: TableId> Row for Counter<TABLE> {
    const TABLE: TableId = TABLE;
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
