//! Bytes of a journal file, and how to read them after a crash. Pure: no file is touched here.
//!
//! ```text
//! file    "TWREQJ1\n" record*
//! record  length u32 · crc32c u32 · batch u64 · body       little endian; length counts batch and body,
//!                                                          the checksum covers length, batch and body
//! body    1 · id 16 · expires u64 · method u16 + text · resource u16 + text      begun
//!         2 · id 16                                                              ended
//! ```
//!
//! What is written together (a *batch*) is made safe together, and the next batch is written only then. Each
//! record names the offset at which its batch begins. So when a record does not read well, the rest tells
//! what happened: if a later record of a later batch is whole, then the bad one was safe before, and the file
//! is damaged; if there is none, the last batch was cut short by a crash, nobody was told that it was safe, and
//! it is dropped. (A bit that flips in the very last batch looks like the second.)

use std::collections::BTreeMap;

use super::{JournalError, Sent};
use crate::RequestId;

/// How every journal file begins.
pub(super) const MAGIC: &[u8; 8] = b"TWREQJ1\n";
/// Longest method or resource name. The longest that exist have about 150 bytes.
const TEXT_MAX: usize = 1024;
/// Length, checksum.
const PREFIX: usize = 8;
/// Batch, kind, id.
const BODY_MIN: usize = 8 + 1 + 16;
/// As much as a begun record can have.
const BODY_MAX: usize = BODY_MIN + 8 + 2 * (2 + TEXT_MAX);

const BEGUN: u8 = 1;
const ENDED: u8 = 2;

/// One record.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    Begun(Sent),
    Ended(RequestId),
}

/// Refuses what would not fit.
pub(super) fn check(sent: &Sent) -> Result<(), JournalError> {
    for (what, text) in [("the method", &sent.method), ("the resource name", &sent.resource)] {
        if text.len() > TEXT_MAX {
            return Err(JournalError::TooLong { what, bytes: text.len(), max: TEXT_MAX });
        }
    }
    Ok(())
}

/// Appends the record of a request that begins; its names have been [`check`]ed.
pub(super) fn put_begun(out: &mut Vec<u8>, batch: u64, sent: &Sent) {
    put(out, batch, BEGUN, sent.request_id, |out| {
        out.extend(sent.expires_at_unix_ms.to_le_bytes());
        for text in [&sent.method, &sent.resource] {
            let length = u16::try_from(text.len()).expect("names were checked against a smaller bound");
            out.extend(length.to_le_bytes());
            out.extend(text.as_bytes());
        }
    });
}

/// Appends the record of a request that has ended.
pub(super) fn put_ended(out: &mut Vec<u8>, batch: u64, id: RequestId) {
    put(out, batch, ENDED, id, |_| {});
}

fn put(out: &mut Vec<u8>, batch: u64, kind: u8, id: RequestId, rest: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend([0; PREFIX]);
    out.extend(batch.to_le_bytes());
    out.push(kind);
    out.extend(id.as_bytes());
    rest(out);
    let length = u32::try_from(out.len() - start - PREFIX).expect("a record is shorter than BODY_MAX");
    let length = length.to_le_bytes();
    let sum = checksum(length, &out[start + PREFIX..]).to_le_bytes();
    out[start..start + 4].copy_from_slice(&length);
    out[start + 4..start + PREFIX].copy_from_slice(&sum);
}

fn checksum(length: [u8; 4], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&length), body)
}

/// Bytes that a request takes in a file.
pub(super) fn size_of(sent: &Sent) -> u64 {
    (PREFIX + BODY_MIN + 8 + 4 + sent.method.len() + sent.resource.len()) as u64
}

/// What a file holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    /// Requests that have begun and not ended.
    pub(super) open: BTreeMap<RequestId, Sent>,
    /// Length of the part that is whole; what follows was cut short by a crash.
    pub(super) whole: u64,
}

/// Why a file cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    /// It does not begin like a journal.
    Foreign,
    /// A record at this offset was safe once and is not any more.
    Damaged(u64),
}

/// Reads a file.
pub(super) fn read(bytes: &[u8]) -> Result<Contents, Unreadable> {
    let Some(after) = bytes.strip_prefix(MAGIC.as_slice()) else {
        // A crash while the file was made; nothing was ever in it.
        return if MAGIC.starts_with(bytes) { Ok(Contents::default()) } else { Err(Unreadable::Foreign) };
    };
    let mut open = BTreeMap::new();
    let mut at = bytes.len() - after.len();
    while at < bytes.len() {
        match record(bytes, at) {
            Some((Entry::Begun(sent), _, next)) => {
                open.insert(sent.request_id, sent);
                at = next;
            }
            Some((Entry::Ended(id), _, next)) => {
                open.remove(&id);
                at = next;
            }
            None => {
                let later = |from| record(bytes, from).is_some_and(|(_, batch, _)| batch > at as u64);
                if (at + 1..bytes.len()).any(later) {
                    return Err(Unreadable::Damaged(at as u64));
                }
                break;
            }
        }
    }
    Ok(Contents { open, whole: at as u64 })
}

/// The record at an offset, the offset of its batch and that of the next record; `None` when there is no whole
/// record.
fn record(bytes: &[u8], at: usize) -> Option<(Entry, u64, usize)> {
    let rest = bytes.get(at..)?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<4>()?;
    let size = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    if !(BODY_MIN..=BODY_MAX).contains(&size) {
        return None;
    }
    let body = rest.get(..size)?;
    if checksum(*length, body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (batch, body) = body.split_first_chunk::<8>()?;
    let batch = u64::from_le_bytes(*batch);
    // A batch begins at or before its records.
    if batch > at as u64 {
        return None;
    }
    Some((entry(body)?, batch, at + PREFIX + size))
}

fn entry(body: &[u8]) -> Option<Entry> {
    let (kind, body) = body.split_first()?;
    let (id, body) = body.split_first_chunk::<16>()?;
    let request_id = RequestId::from_bytes(*id)?;
    match *kind {
        BEGUN => {
            let (expires, body) = body.split_first_chunk::<8>()?;
            let (method, body) = text(body)?;
            let (resource, body) = text(body)?;
            let expires_at_unix_ms = u64::from_le_bytes(*expires);
            body.is_empty().then_some(Entry::Begun(Sent { request_id, method, resource, expires_at_unix_ms }))
        }
        ENDED => body.is_empty().then_some(Entry::Ended(request_id)),
        _ => None,
    }
}

fn text(body: &[u8]) -> Option<(String, &[u8])> {
    let (length, body) = body.split_first_chunk::<2>()?;
    let (text, body) = body.split_at_checked(usize::from(u16::from_le_bytes(*length)))?;
    Some((String::from_utf8(text.to_vec()).ok()?, body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sent(resource: &str) -> Sent {
        Sent {
            request_id: RequestId::fresh(),
            method: "tidewall.v1.TicketService/BuyTickets".into(),
            resource: resource.into(),
            expires_at_unix_ms: 1_790_000_000_000,
        }
    }

    /// Three batches: two requests; the end of the first and a third request; the end of the third. Returns
    /// the bytes, the offset of each batch and the requests.
    fn sample() -> (Vec<u8>, [u64; 3], [Sent; 3]) {
        let requests = [sent("regions/a"), sent("regions/b/events/gala"), sent("regions/c")];
        let mut bytes = MAGIC.to_vec();
        let first = bytes.len() as u64;
        put_begun(&mut bytes, first, &requests[0]);
        put_begun(&mut bytes, first, &requests[1]);
        let second = bytes.len() as u64;
        put_ended(&mut bytes, second, requests[0].request_id);
        put_begun(&mut bytes, second, &requests[2]);
        let third = bytes.len() as u64;
        put_ended(&mut bytes, third, requests[2].request_id);
        (bytes, [first, second, third], requests)
    }

    #[test]
    fn what_was_written_is_read_again() {
        let (bytes, [first, ..], [a, b, _]) = sample();
        let contents = read(&bytes).unwrap();
        assert_eq!(contents.open.into_values().collect::<Vec<_>>(), [b]);
        assert_eq!(contents.whole, bytes.len() as u64);
        let mut one = MAGIC.to_vec();
        put_begun(&mut one, first, &a);
        assert_eq!(one.len() as u64, MAGIC.len() as u64 + size_of(&a));
    }

    #[test]
    fn cut_at_any_length_it_keeps_every_whole_batch() {
        let (bytes, [_, second, third], [a, b, c]) = sample();
        for length in 0..=bytes.len() {
            let contents = read(&bytes[..length]).unwrap_or_else(|error| panic!("{length}: {error:?}"));
            assert!(contents.whole <= length as u64);
            let open = |sent: &Sent| contents.open.contains_key(&sent.request_id);
            if length as u64 >= second {
                assert!(open(&b), "{length}");
            }
            if length as u64 >= third {
                assert!(open(&b) && !open(&a) && (open(&c) || length == bytes.len()), "{length}");
            }
        }
    }

    #[test]
    fn a_bit_that_flips_before_the_last_batch_is_found() {
        let (bytes, [_, _, third], _) = sample();
        for position in MAGIC.len()..third as usize {
            for bit in 0..8 {
                let mut flipped = bytes.clone();
                flipped[position] ^= 1 << bit;
                assert!(matches!(read(&flipped), Err(Unreadable::Damaged(_))), "{position}.{bit}");
            }
        }
        for position in 0..MAGIC.len() {
            let mut flipped = bytes.clone();
            flipped[position] ^= 1;
            assert_eq!(read(&flipped), Err(Unreadable::Foreign));
        }
    }

    #[test]
    fn a_torn_last_batch_is_dropped_although_a_later_part_of_it_reached_the_disk() {
        let (mut bytes, _, [_, b, c]) = sample();
        let (late, later) = (sent("regions/d"), sent("regions/e"));
        let batch = bytes.len() as u64;
        put_begun(&mut bytes, batch, &late);
        put_begun(&mut bytes, batch, &later);
        // The page with the first record was lost, the one with the second was not.
        bytes[batch as usize + 20] ^= 0xff;
        let contents = read(&bytes).unwrap();
        assert_eq!(contents.open.keys().copied().collect::<Vec<_>>(), [b.request_id]);
        assert_eq!(contents.whole, batch);
        assert!(!contents.open.contains_key(&c.request_id));
    }

    #[test]
    fn zeros_and_other_files_are_no_records() {
        let (mut bytes, _, _) = sample();
        let whole = bytes.len() as u64;
        bytes.extend([0; 4096]);
        assert_eq!(read(&bytes).unwrap().whole, whole);
        assert_eq!(read(b"#!/bin/sh\n"), Err(Unreadable::Foreign));
        assert_eq!(read(b""), Ok(Contents::default()));
    }

    #[test]
    fn names_that_do_not_fit_are_refused() {
        assert!(check(&sent(&"x".repeat(TEXT_MAX))).is_ok());
        let error = check(&sent(&"x".repeat(TEXT_MAX + 1))).unwrap_err();
        assert!(matches!(error, JournalError::TooLong { what: "the resource name", bytes: 1025, .. }));
    }
}
