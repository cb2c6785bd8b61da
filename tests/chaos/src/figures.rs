//! Figures of a scenario, from the calls of all its episodes: how long a region was silent after a injection, what clients saw
//! of it, and what the others felt. Pure.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::history::{Ask, Injection, Micros, Op, Traffic};
use crate::stage::Outcome;

/// What the others felt is compared over this long before and after a injection, microseconds.
const WINDOW: Micros = 3_000_000;
/// The first second after a injection does not count for the others.
const FIRST: Micros = 1_000_000;
/// Errors that are spelled out.
const ERRORS_MAX: usize = 8;
/// The longest waits after faults that are spelled out.
const SLOWEST_MAX: usize = 3;

/// A distribution in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// How many there are.
    pub count: usize,
    /// Half were at most this.
    pub p50_ms: f64,
    /// All but one in a hundred were at most this.
    pub p99_ms: f64,
    /// The longest.
    pub max_ms: f64,
}

/// A figure that has a target.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figure {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: f64,
    /// What it is counted in, such as `ms`.
    pub unit: &'static str,
    /// It should be at most this; `None` for what is only reported.
    pub at_most: Option<f64>,
}

impl Figure {
    /// Whether the target was met; what has none cannot miss it.
    pub fn met(&self) -> bool {
        self.at_most.is_none_or(|limit| self.value <= limit)
    }
}

/// What was measured in all episodes of a scenario.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Measured {
    /// Calls of the load.
    pub calls: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// Calls that ended with an error.
    pub errors: u64,
    /// The errors by their words, the most frequent first.
    pub errors_by_kind: Vec<(String, u64)>,
    /// When and where the first errors of each episode were.
    pub first_errors: Vec<String>,
    /// Calls that were refused for load until their deadline.
    pub refused: u64,
    /// Calls that were sent again because their connection was closed.
    pub resent: u64,
    /// The longest that a call of the load was sent late: the client itself, or the machine, stood still.
    pub client_stall_ms: f64,
    /// From a injection to the next acknowledged write in each region that it hit.
    pub next_write_ms: Vec<f64>,
    /// The slowest of these, with what had been done, the slowest first.
    pub slowest: Vec<(f64, String)>,
    /// Latencies of the regions that a injection did not hit, before and after it.
    pub others_before_ms: Vec<f64>,
    /// The same, from one second after the injection on.
    pub others_after_ms: Vec<f64>,
    /// From a injection until all replicas are up again and leaders spread, the time counted from when it was undone.
    pub healed_ms: Vec<f64>,
    /// Times that the scenario took.
    pub samples: BTreeMap<String, Vec<f64>>,
    /// What the scenario counted.
    pub counts: BTreeMap<String, u64>,
}

fn ms(micros: Micros) -> f64 {
    micros as f64 / 1_000.0
}

/// The value that a share of all values does not exceed; 0 without values.
pub fn quantile(values: &[f64], share: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (share * sorted.len() as f64).ceil().max(1.0);
    // The rank is at most the length, which fits.
    sorted.get(rank as usize - 1).copied().unwrap_or(0.0)
}

/// The distribution of values; `None` without any.
pub fn spread(values: &[f64]) -> Option<Spread> {
    (!values.is_empty()).then(|| Spread {
        count: values.len(),
        p50_ms: quantile(values, 0.5),
        p99_ms: quantile(values, 0.99),
        max_ms: quantile(values, 1.0),
    })
}

impl Measured {
    /// Adds an episode.
    pub fn add(&mut self, episode: &Outcome) {
        let ops: Vec<&Op> = episode.evidence.ops.iter().filter(|op| op.traffic != Traffic::Probe).collect();
        let mut kinds: BTreeMap<String, u64> = self.errors_by_kind.drain(..).collect();
        for op in &ops {
            self.calls += 1;
            self.acknowledged += u64::from(op.is_acknowledged_write() && !op.again);
            self.refused += u64::from(matches!(op.answer, crate::history::Answer::Refused(_)));
            self.resent += u64::from(op.resent > 0);
            self.client_stall_ms = self.client_stall_ms.max(ms(op.start.saturating_sub(op.due)));
            if op.answer.is_error() {
                self.errors += 1;
                *kinds.entry(words(op)).or_insert(0) += 1;
            }
        }
        let failed = ops.iter().filter(|op| op.answer.is_error()).take(ERRORS_MAX);
        self.first_errors.extend(failed.map(|op| place(op, &episode.injections)));
        self.first_errors.truncate(ERRORS_MAX);
        self.errors_by_kind = kinds.into_iter().collect();
        self.errors_by_kind.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        self.errors_by_kind.truncate(ERRORS_MAX);
        for (number, injection) in episode.injections.iter().enumerate() {
            for region in &injection.regions {
                let Some(wait) = next_write(&ops, injection, region).map(ms) else { continue };
                self.next_write_ms.push(wait);
                self.slowest
                    .push((wait, format!("in {region} after fault {} ({})", number + 1, injection.what)));
            }
            if let (Some(undone), Some(healed)) = (injection.undone, injection.healed) {
                self.healed_ms.push(ms(healed.saturating_sub(undone)));
            }
            if !injection.regions.is_empty() {
                let others = |from: Micros, until: Micros| {
                    let within = move |op: &&&Op| (from..until).contains(&op.due);
                    let apart =
                        |op: &&&Op| !injection.regions.contains(&op.region) && op.traffic == Traffic::Sale;
                    ops.iter().filter(within).filter(apart).map(|op| ms(op.latency())).collect::<Vec<f64>>()
                };
                self.others_before_ms.extend(others(injection.at.saturating_sub(WINDOW), injection.at));
                self.others_after_ms.extend(others(injection.at + FIRST, injection.at + FIRST + WINDOW));
            }
        }
        self.slowest.sort_by(|(one, _), (other, _)| other.total_cmp(one));
        self.slowest.truncate(SLOWEST_MAX);
        for (name, values) in &episode.samples {
            self.samples.entry((*name).to_owned()).or_default().extend(values);
        }
        for (name, count) in &episode.counts {
            *self.counts.entry(name.clone()).or_insert(0) += count;
        }
    }
}

/// The first words of an error, without what differs from call to call.
fn words(op: &Op) -> String {
    use crate::history::Answer;
    match &op.answer {
        Answer::Undecided(said) | Answer::Unknown(said) | Answer::Nonsense(said) => {
            said.chars().filter(|c| !c.is_ascii_digit()).take(160).collect()
        }
        _ => String::new(),
    }
}

/// When and where a call failed, and what had been done to the cluster last.
fn place(op: &Op, injections: &[Injection]) -> String {
    let asked = match op.ask {
        Ask::Buy { .. } => "purchase",
        Ask::Hold { .. } => "hold",
        Ask::Confirm { .. } => "confirmation",
        Ask::Release { .. } => "release",
        Ask::Cancel { .. } => "cancellation",
        Ask::Read { age: 0, .. } => "read",
        Ask::Read { .. } => "read what may be old",
        Ask::Outcome { .. } => "question for an outcome",
        Ask::Seal { .. } => "seal",
    };
    let last = injections.iter().enumerate().rfind(|(_, injection)| injection.at <= op.end);
    let after = last.map_or_else(String::new, |(number, injection)| {
        let hit = if injection.regions.contains(&op.region) { "hit" } else { "not hit" };
        let since = ms(op.due) - ms(injection.at);
        format!(", due {since:.0} ms after fault {} ({}; the region was {hit})", number + 1, injection.what)
    });
    format!("a {asked} in {} that took {:.0} ms{after}: {}", op.region, ms(op.latency()), words(op))
}

/// How long after a injection the region acknowledged a write that the old leader cannot have acknowledged: one that was sent
/// after the injection, or was decided in a later term than all before.
fn next_write(ops: &[&Op], injection: &Injection, region: &str) -> Option<Micros> {
    let writes = || {
        ops.iter()
            .filter(|op| op.region == region && op.is_acknowledged_write() && !op.again)
            .filter_map(|op| Some((op, op.answer.receipt()?.term)))
    };
    let term = writes().filter(|(op, _)| op.end <= injection.at).map(|(_, term)| term).max()?;
    let new = |(op, later): &(&&Op, u64)| op.end > injection.at && (op.start > injection.at || *later > term);
    writes().filter(new).map(|(op, _)| op.end - injection.at).min()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::check::example::stamp;
    use crate::check::example::{buy, op, ticket};
    use crate::history::Answer;

    fn write(times: (Micros, Micros), index: u64) -> Op {
        op(buy("e"), times, Answer::Yes { what: ticket("t"), receipt: Some(stamp(index, 0)) })
    }

    fn injection(at: Micros) -> Injection {
        Injection { at, what: "kill".into(), regions: vec!["regions/r".into()], undone: None, healed: None }
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        let values: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(
            (quantile(&values, 0.5), quantile(&values, 0.99), quantile(&values, 1.0)),
            (50.0, 99.0, 100.0)
        );
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(spread(&[]).is_none());
    }

    #[test]
    fn an_answer_of_the_dead_leader_does_not_end_the_silence() {
        // Decided before the injection in term 1, and answered just after it; then a held call, decided in term 2.
        let ops = [write((0, 50), 1), write((90, 101), 2), write((95, 900), 100), write((950, 960), 101)];
        let ops: Vec<&Op> = ops.iter().collect();
        assert_eq!(next_write(&ops, &injection(100), "regions/r"), Some(800));
        assert_eq!(next_write(&ops, &injection(100), "regions/other"), None);
    }

    #[test]
    fn errors_and_the_others_are_counted() {
        let mut outcome = Outcome { injections: vec![injection(5_000_000)], ..Outcome::default() };
        let other =
            |due: Micros, took: Micros| Op { region: "regions/o".into(), ..write((due, due + took), 1) };
        outcome.evidence.ops = vec![
            write((0, 1), 1),
            other(3_000_000, 2_000),
            other(5_500_000, 700_000),
            other(6_500_000, 4_000),
            write((5_900_000, 6_000_000), 2),
            op(buy("e"), (5_000_000, 5_100_000), Answer::Unknown("UNAVAILABLE after 10 ms".into())),
            op(buy("e"), (5_000_000, 5_100_000), Answer::No("SOLD_OUT".into())),
        ];
        let mut measured = Measured::default();
        measured.add(&outcome);
        assert_eq!((measured.calls, measured.acknowledged, measured.errors), (7, 5, 1));
        assert_eq!(measured.client_stall_ms, 0.0);
        outcome.evidence.ops[0].start = 500_000;
        measured.add(&outcome);
        assert_eq!(measured.client_stall_ms, 500.0);
        let mut measured = Measured::default();
        measured.add(&outcome);
        assert_eq!(measured.slowest, [(1_000.0, "in regions/r after fault 1 (kill)".to_owned())]);
        assert_eq!(measured.others_before_ms, [2.0]);
        assert_eq!(measured.others_after_ms, [4.0], "the first second does not count");
        assert_eq!(measured.errors_by_kind, [("UNAVAILABLE after  ms".to_owned(), 1)]);
        let place = "a purchase in regions/r that took 100 ms, due 0 ms after fault 1 (kill; the region was hit): \
                     UNAVAILABLE after  ms";
        assert_eq!(measured.first_errors, [place]);
        let figure = Figure { name: "x".into(), value: 3.0, unit: "ms", at_most: Some(2.5) };
        assert!(!figure.met());
    }
}
