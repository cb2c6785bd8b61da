//! Receipts: every write has one, no two share one, and within a region they follow real time: what had ended before
//! something else began was decided earlier. That, and that a log never forks, is what makes a region's sale fair.

use std::collections::BTreeMap;

use tidewall_load::audit::Stamp;

use super::{Evidence, Verdict};
use crate::history::{Answer, Op};

type Place = (u64, u64, u32);

fn place(stamp: &Stamp) -> Place {
    (stamp.incarnation, stamp.index, stamp.position)
}

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("receipts: unique, in order of real time, one log");
    let mut regions: BTreeMap<&str, Vec<(&Op, &Stamp)>> = BTreeMap::new();
    for op in evidence.ops.iter().filter(|op| op.is_acknowledged_write() && !op.again) {
        verdict.looked_at += 1;
        match &op.answer {
            Answer::Yes { receipt: Some(stamp), .. } => {
                regions.entry(&op.region).or_default().push((op, stamp))
            }
            _ => verdict.add(|| format!("request {:?} has no receipt", op.request_id)),
        }
    }
    for (region, decided) in &mut regions {
        real_time(region, decided, &mut verdict);
        one_log(region, decided, &mut verdict);
    }
    verdict
}

/// Goes through calls in the order in which they began, with the highest receipt of those that had ended by then.
fn real_time(region: &str, decided: &mut [(&Op, &Stamp)], verdict: &mut Verdict) {
    let mut by_end: Vec<(u64, Place)> = decided.iter().map(|(op, stamp)| (op.end, place(stamp))).collect();
    by_end.sort_unstable();
    decided.sort_by_key(|(op, _)| op.start);
    let mut ended = by_end.into_iter().peekable();
    let mut highest: Option<Place> = None;
    for (op, stamp) in decided.iter() {
        while let Some((_, place)) = ended.next_if(|(end, _)| *end < op.start) {
            highest = highest.max(Some(place));
        }
        if let Some(earlier) = highest.filter(|earlier| place(stamp) <= *earlier) {
            verdict.add(|| {
                format!(
                    "{region}: a call that began after {earlier:?} had been acknowledged was decided at {:?}",
                    place(stamp)
                )
            });
        }
    }
}

/// Looks at receipts in their own order.
fn one_log(region: &str, decided: &mut [(&Op, &Stamp)], verdict: &mut Verdict) {
    decided.sort_by_key(|(_, stamp)| place(stamp));
    for pair in decided.windows(2) {
        let [(_, earlier), (_, later)] = pair else { continue };
        if place(earlier) == place(later) {
            verdict.add(|| format!("{region}: two requests were decided at {:?}", place(later)));
        }
        let same_entry = (earlier.incarnation, earlier.index) == (later.incarnation, later.index);
        if same_entry && (earlier.term, earlier.chain_hash) != (later.term, later.chain_hash) {
            verdict.add(|| format!("{region}: two entries at index {}: the log was forked", later.index));
        }
        if earlier.incarnation == later.incarnation
            && (later.term < earlier.term || later.decided_at_ms < earlier.decided_at_ms)
        {
            verdict.add(|| {
                format!(
                    "{region}: term or log time goes back between {:?} and {:?}",
                    place(earlier),
                    place(later)
                )
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::example::{buy, op, stamp, ticket, yes};

    fn evidence(calls: &[(u64, u64, Stamp)]) -> Evidence {
        let ops = calls.iter().map(|(start, end, stamp)| {
            op(buy("e"), (*start, *end), Answer::Yes { what: ticket("t"), receipt: Some(*stamp) })
        });
        Evidence { ops: ops.collect(), ..Evidence::default() }
    }

    #[test]
    fn calls_that_overlap_may_be_decided_in_any_order() {
        let verdict = check(&evidence(&[(0, 10, stamp(7, 1)), (5, 12, stamp(7, 0)), (13, 15, stamp(8, 0))]));
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 3);
    }

    #[test]
    fn a_later_call_with_an_earlier_receipt_is_found() {
        let verdict = check(&evidence(&[(0, 10, stamp(7, 0)), (11, 12, stamp(6, 0))]));
        assert_eq!(verdict.violations, 1, "{verdict:?}");
        // Also when a call lies between them that hides it from its neighbours.
        let verdict = check(&evidence(&[(0, 10, stamp(7, 0)), (1, 100, stamp(3, 0)), (11, 12, stamp(6, 0))]));
        assert_eq!(verdict.violations, 1, "{verdict:?}");
    }

    #[test]
    fn one_place_for_two_requests_is_found() {
        assert!(!check(&evidence(&[(0, 10, stamp(7, 0)), (5, 12, stamp(7, 0))])).ok());
    }

    #[test]
    fn a_forked_log_is_found() {
        let other = Stamp { chain_hash: 1, ..stamp(7, 1) };
        assert!(!check(&evidence(&[(0, 10, stamp(7, 0)), (5, 12, other)])).ok());
        let older = Stamp { term: 0, ..stamp(8, 0) };
        assert!(!check(&evidence(&[(0, 10, stamp(7, 0)), (5, 12, older)])).ok());
        let earlier = Stamp { decided_at_ms: 1, ..stamp(8, 0) };
        assert!(!check(&evidence(&[(0, 10, stamp(7, 0)), (5, 12, earlier)])).ok());
    }

    #[test]
    fn a_missing_receipt_is_found_and_repetitions_do_not_count() {
        let mut evidence = evidence(&[(0, 10, stamp(7, 0))]);
        evidence.ops.push(Op { again: true, start: 20, end: 21, ..evidence.ops[0].clone() });
        assert!(check(&evidence).ok());
        evidence.ops.push(op(buy("e"), (0, 1), Answer::Yes { what: ticket("t"), receipt: None }));
        assert_eq!(check(&evidence).violations, 1);
        assert!(
            check(&Evidence { ops: vec![op(buy("e"), (0, 1), yes(ticket("t"), 1))], ..Evidence::default() })
                .ok()
        );
    }
}
