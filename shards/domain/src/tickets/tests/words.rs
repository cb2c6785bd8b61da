//! What is remembered of a "no" is rows: its words are part of them.

use prost::Message as _;

use super::*;

fn all() -> Vec<Rejection> {
    let id = || "gala".to_owned();
    vec![
        Rejection::EventNotFound(id()),
        Rejection::EventExists(id()),
        Rejection::TierNotFound(id()),
        Rejection::SoldOut { asked: 3, free: 2 },
        Rejection::SeatTaken(id()),
        Rejection::SeatNotFound(id()),
        Rejection::QuotaExceeded { quota: 4, have: 3, asked: 2 },
        Rejection::SaleNotOpen(5),
        Rejection::SaleClosed(6),
        Rejection::HoldNotFound(id()),
        Rejection::HoldExpired(id()),
        Rejection::TicketNotFound(id()),
        Rejection::TicketCancelled(id()),
        Rejection::NotOwner(id()),
        Rejection::RevisionMismatch { expected: 7, actual: 8 },
        Rejection::CapacityTooSmall { tier: id(), taken: 9 },
        Rejection::TierFixed(id()),
        Rejection::Invalid { field: id(), why: id() },
        Rejection::TooManyHolds { holds: 10 },
    ]
}

/// Those that came with a later apply version.
fn later() -> Vec<Rejection> {
    vec![Rejection::EventInUse("gala".to_owned())]
}

/// Replicas of two builds that word a rejection differently have different rows, and stop. A figure here changes only together with
/// an apply version, under which the new words begin.
#[test]
fn rejections_have_the_bytes_that_they_always_had() {
    let rejections = [all(), later()].concat();
    let mut reasons: Vec<_> = rejections.iter().map(|rejection| rejection.reason()).collect();
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), rejections.len(), "each has a reason of its own");
    for (rejections, hash) in [(all(), 16_248_161_722_343_493_903), (later(), 4_876_570_763_094_458_469)] {
        let bytes: Vec<u8> =
            rejections.iter().flat_map(|rejection| rejection.rejection().encode_to_vec()).collect();
        assert_eq!(xxhash_rust::xxh3::xxh3_64(&bytes), hash, "see above before you change this");
    }
}
