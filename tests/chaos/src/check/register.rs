//! Linearizability of small stocks: is there an order of all calls on an event, in keeping with real time, in which every
//! answer is right? porcupine searches for it, event by event.

use std::collections::BTreeMap;
use std::time::Duration;

use porcupine_rs::{CheckResult, Model, Operation};

use super::{Evidence, Fate, Verdict};
use crate::history::{Answer, Ask, Op, Traffic, Yes};

/// Places of a small stock.
pub const CAPACITY: i64 = 6;
/// How long one event is searched, at most. A search that was cut short is a violation: nothing was shown.
const SEARCH_MAX: Duration = Duration::from_secs(30);

/// What a call did to the free places of a stock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Took one.
    Bought,
    /// Found none.
    SoldOut,
    /// Nobody knows whether it took one.
    MayHaveBought,
    /// Gave one back.
    Cancelled,
    /// Nobody knows whether it gave one back.
    MayHaveCancelled,
    /// Saw this many.
    Read(i64),
}

#[derive(Debug, Clone)]
struct FewPlaces;

impl Model for FewPlaces {
    /// Free places, and how many lost cancellations have taken effect unseen is not part of it.
    type State = i64;
    type Op = Step;
    type Metadata = ();

    fn init() -> i64 {
        CAPACITY
    }

    fn step(free: &i64, step: &Step) -> (bool, i64) {
        match step {
            Step::Bought => (*free > 0, free - 1),
            Step::SoldOut => (*free == 0, *free),
            // One that was refused, or never arrived, may stand at the end, where nobody sees what it did.
            Step::MayHaveBought => (true, (free - 1).max(0)),
            Step::Cancelled | Step::MayHaveCancelled => (*free < CAPACITY, (free + 1).min(CAPACITY)),
            Step::Read(seen) => (free == seen, *free),
        }
    }
}

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    check_within(evidence, SEARCH_MAX)
}

fn check_within(evidence: &Evidence, limit: Duration) -> Verdict {
    let mut verdict = Verdict::new("small stocks are linearizable");
    let mut histories: BTreeMap<&str, Vec<Operation<FewPlaces>>> = BTreeMap::new();
    // Cancellations name a ticket, whose name begins with its event's.
    let events: Vec<&str> = evidence
        .planned
        .iter()
        .filter(|event| matches!(event.traffic, Traffic::Register(_)))
        .map(|event| event.name.as_str())
        .collect();
    for op in &evidence.ops {
        let Traffic::Register(client) = op.traffic else { continue };
        let named = match &op.ask {
            Ask::Buy { event, .. } | Ask::Read { event, .. } => event,
            Ask::Cancel { ticket } => ticket,
            _ => continue,
        };
        let Some(event) = events.iter().find(|event| within(named, event)) else { continue };
        let Some((step, open)) = step(evidence, op) else { continue };
        histories.entry(event).or_default().push(Operation {
            client_id: Some(client),
            call_time: i64::try_from(op.start).unwrap_or(i64::MAX),
            // What was never answered may have happened at any time after it was sent.
            return_time: if open { i64::MAX } else { i64::try_from(op.end).unwrap_or(i64::MAX) },
            op: step,
            metadata: None,
        });
    }
    for (event, history) in &histories {
        verdict.looked_at += history.len() as u64;
        judge(event, history.len(), porcupine_rs::check_operations_timeout(history, limit), &mut verdict);
    }
    verdict
}

fn judge(event: &str, calls: usize, result: CheckResult, verdict: &mut Verdict) {
    match result {
        CheckResult::Ok => {}
        CheckResult::Illegal => verdict.add(|| format!("{event}: no order explains its {calls} calls")),
        CheckResult::Unknown => {
            verdict.add(|| format!("{event}: the search over {calls} calls ran out of time"))
        }
    }
}

/// Whether a resource is an event or something of it.
fn within(name: &str, event: &str) -> bool {
    name.strip_prefix(event).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// What a call did, and whether its answer never came; `None` when it did nothing.
fn step(evidence: &Evidence, op: &Op) -> Option<(Step, bool)> {
    let open = !matches!(op.answer, Answer::Yes { .. } | Answer::No(_));
    let step = match (&op.ask, &op.answer, evidence.fate(op)) {
        (Ask::Read { .. }, Answer::Yes { what: Yes::Stock(stock), .. }, _) => Step::Read(stock.first()?.free),
        (Ask::Buy { .. }, Answer::No(reason), _) if reason == "SOLD_OUT" => Step::SoldOut,
        (Ask::Buy { .. }, _, Fate::Done(..)) => Step::Bought,
        (Ask::Buy { .. }, _, Fate::Open) => Step::MayHaveBought,
        (Ask::Cancel { .. }, _, Fate::Done(..)) => Step::Cancelled,
        (Ask::Cancel { .. }, _, Fate::Open) => Step::MayHaveCancelled,
        _ => return None,
    };
    Some((step, open))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::example::{buy, op, ticket, yes};
    use crate::history::{Micros, Planned, Stock};

    const LONG: Duration = Duration::from_secs(60);

    fn of(client: u32, op: Op) -> Op {
        Op { traffic: Traffic::Register(client), ..op }
    }

    fn bought(client: u32, times: (Micros, Micros)) -> Op {
        of(client, op(buy("e"), times, yes(ticket("e/tickets/1"), 1)))
    }

    fn read(client: u32, times: (Micros, Micros), free: i64) -> Op {
        let stock = Stock { tier: "ga".into(), free, held: 0, sold: CAPACITY - free };
        let answer = Answer::Yes { what: Yes::Stock(vec![stock]), receipt: None };
        of(client, op(Ask::Read { event: "e".into(), age: 0 }, times, answer))
    }

    fn evidence(ops: Vec<Op>) -> Evidence {
        let event = Planned {
            name: "e".into(),
            region: "regions/r".into(),
            tiers: vec![("ga".into(), CAPACITY)],
            traffic: Traffic::Register(0),
        };
        Evidence { ops, planned: vec![event], ..Evidence::default() }
    }

    #[test]
    fn a_history_with_an_order_passes() {
        let cancel = op(Ask::Cancel { ticket: "e/tickets/1".into() }, (20, 30), yes(Yes::Undone, 2));
        let verdict = check_within(
            &evidence(vec![bought(0, (0, 10)), read(1, (5, 8), 5), of(0, cancel), read(1, (31, 32), 6)]),
            LONG,
        );
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 4);
    }

    #[test]
    fn a_stale_read_has_no_order() {
        let verdict = check_within(&evidence(vec![bought(0, (0, 10)), read(1, (11, 12), 6)]), LONG);
        assert_eq!(verdict.violations, 1, "{verdict:?}");
    }

    #[test]
    fn sold_out_with_places_left_has_no_order() {
        let no = of(1, op(buy("e"), (11, 12), Answer::No("SOLD_OUT".into())));
        assert_eq!(check_within(&evidence(vec![bought(0, (0, 10)), no]), LONG).violations, 1);
    }

    #[test]
    fn more_sales_than_places_have_no_order() {
        let all = (0..7).map(|n| bought(0, (n * 10, n * 10 + 5))).collect();
        assert_eq!(check_within(&evidence(all), LONG).violations, 1);
    }

    #[test]
    fn a_lost_answer_may_have_happened_late_or_never_but_not_early() {
        let lost = || of(1, op(buy("e"), (5, 6), Answer::Unknown("late".into())));
        let seen_late = evidence(vec![lost(), read(0, (10, 11), 6), read(0, (20, 21), 5)]);
        assert!(check_within(&seen_late, LONG).ok());
        assert!(check_within(&evidence(vec![lost(), read(0, (10, 11), 6)]), LONG).ok());
        let seen_early = evidence(vec![read(0, (1, 2), 5), lost()]);
        assert_eq!(check_within(&seen_early, LONG).violations, 1);
    }

    #[test]
    fn a_search_that_ran_out_of_time_has_shown_nothing() {
        let mut verdict = Verdict::new("x");
        judge("e", 400, CheckResult::Unknown, &mut verdict);
        assert_eq!(verdict.violations, 1, "{verdict:?}");
    }
}
