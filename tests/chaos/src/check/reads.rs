//! No stale reads: a read of a hot event shows every sale that was acknowledged before it began, none that had not begun
//! when it ended, and never less than an earlier read. What may be old shows what was acknowledged, and what others saw, so long
//! before. Places of a hot event are never given back, so its sales only grow.

use std::collections::BTreeMap;

use super::{Evidence, Fate, Verdict};
use crate::history::{Answer, Ask, Micros, Traffic, Yes};

/// What happened to one tier.
#[derive(Default)]
struct Tier {
    /// When acknowledged purchases ended, and their size.
    ended: Vec<(Micros, i64)>,
    /// When purchases began that may have been decided, and their size.
    begun: Vec<(Micros, i64)>,
    /// Reads: since when everything may be missing, end, sold.
    reads: Vec<(Micros, Micros, i64)>,
}

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("reads: none stale, none ahead");
    let mut tiers: BTreeMap<(&str, &str), Tier> = BTreeMap::new();
    for op in
        evidence.ops.iter().filter(|op| matches!(op.traffic, Traffic::Sale | Traffic::Probe) && !op.again)
    {
        match (&op.ask, &op.answer) {
            (Ask::Buy { event, tier, quantity }, answer) => {
                let fate = evidence.fate(op);
                if fate == Fate::Not {
                    continue;
                }
                let tier = tiers.entry((event, tier)).or_default();
                tier.begun.push((op.start, i64::from(*quantity)));
                if matches!(answer, Answer::Yes { .. }) {
                    tier.ended.push((op.end, i64::from(*quantity)));
                }
            }
            (Ask::Read { event, age }, Answer::Yes { what: Yes::Stock(stock), .. }) => {
                for seen in stock {
                    let tier = tiers.entry((event, &seen.tier)).or_default();
                    tier.reads.push((op.start.saturating_sub(*age), op.end, seen.sold));
                }
            }
            _ => {}
        }
    }
    for ((event, name), tier) in &mut tiers {
        tier.check(&format!("{event} tier {name}"), &mut verdict);
    }
    verdict
}

/// Sums of sizes up to and including each moment.
fn running(moments: &mut [(Micros, i64)]) -> Vec<(Micros, i64)> {
    moments.sort_unstable();
    let mut sum = 0;
    let add = |(at, size): &(Micros, i64)| {
        sum += size;
        (*at, sum)
    };
    moments.iter().map(add).collect()
}

/// The sum of what lies before a moment.
fn before(sums: &[(Micros, i64)], moment: Micros) -> i64 {
    let count = sums.partition_point(|(at, _)| *at < moment);
    count.checked_sub(1).and_then(|last| sums.get(last)).map_or(0, |(_, sum)| *sum)
}

impl Tier {
    fn check(&mut self, name: &str, verdict: &mut Verdict) {
        let (ended, begun) = (running(&mut self.ended), running(&mut self.begun));
        let mut by_end: Vec<(Micros, i64)> = self.reads.iter().map(|(_, end, sold)| (*end, *sold)).collect();
        by_end.sort_unstable();
        let mut by_end = by_end.into_iter().peekable();
        self.reads.sort_unstable();
        let mut seen = 0;
        for (since, end, sold) in &self.reads {
            verdict.looked_at += 1;
            let (least, most) = (before(&ended, *since), before(&begun, end.saturating_add(1)));
            if *sold < least {
                verdict.add(|| {
                    format!("{name}: stale: a read showed {sold} sold, {least} were acknowledged before it")
                });
            }
            if *sold > most {
                verdict
                    .add(|| format!("{name}: a read showed {sold} sold, at most {most} had been asked for"));
            }
            while let Some((_, earlier)) = by_end.next_if(|(ended, _)| ended < since) {
                seen = seen.max(earlier);
            }
            if *sold < seen {
                verdict.add(|| format!("{name}: a read showed {sold} sold, an earlier one {seen}"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::example::{buy, op, ticket, yes};
    use crate::history::{Op, Stock};

    fn read(times: (Micros, Micros), sold: i64) -> Op {
        aged(0, times, sold)
    }

    fn aged(age: Micros, times: (Micros, Micros), sold: i64) -> Op {
        let stock = Stock { tier: "ga".into(), free: 9, held: 0, sold };
        op(
            Ask::Read { event: "e".into(), age },
            times,
            Answer::Yes { what: Yes::Stock(vec![stock]), receipt: None },
        )
    }

    fn evidence(reads: Vec<Op>) -> Evidence {
        let mut ops = vec![
            op(buy("e"), (10, 20), yes(ticket("a"), 1)),
            op(buy("e"), (30, 40), yes(ticket("b"), 2)),
            op(buy("e"), (50, 60), Answer::Unknown("late".into())),
            op(buy("e"), (50, 60), Answer::No("SOLD_OUT".into())),
        ];
        ops.extend(reads);
        Evidence { ops, ..Evidence::default() }
    }

    #[test]
    fn reads_that_can_be_explained_pass() {
        let verdict = check(&evidence(vec![
            read((0, 5), 0),
            read((12, 15), 1),
            read((15, 18), 1),
            read((31, 35), 1),
            read((41, 45), 2),
            read((70, 75), 3),
        ]));
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 6);
    }

    #[test]
    fn a_stale_read_is_found() {
        let verdict = check(&evidence(vec![read((21, 22), 0)]));
        assert!(verdict.examples.iter().any(|words| words.contains("stale")), "{verdict:?}");
    }

    #[test]
    fn a_read_from_the_future_is_found() {
        assert_eq!(check(&evidence(vec![read((21, 25), 2)])).violations, 1);
        assert_eq!(check(&evidence(vec![read((70, 75), 4)])).violations, 1, "a sure no sells nothing");
    }

    #[test]
    fn a_read_that_goes_back_is_found() {
        // Neither is stale by acknowledgements alone: both fall into the second purchase.
        let verdict = check(&evidence(vec![read((31, 33), 2), read((34, 36), 1)]));
        assert_eq!(verdict.violations, 1, "{verdict:?}");
    }

    #[test]
    fn what_may_be_old_is_no_older_and_not_ahead() {
        assert!(check(&evidence(vec![aged(15, (31, 32), 0), aged(15, (33, 34), 1)])).ok());
        assert!(check(&evidence(vec![aged(15, (31, 33), 2), aged(15, (34, 36), 1)])).ok(), "in any order");
        assert_eq!(check(&evidence(vec![aged(10, (31, 32), 0)])).violations, 1);
        assert_eq!(check(&evidence(vec![aged(15, (21, 25), 2)])).violations, 1, "nobody had asked for that");
        let later = evidence(vec![read((31, 33), 2), aged(2, (37, 38), 1)]);
        assert_eq!(check(&later).violations, 1, "others had seen more by then");
    }
}
