//! The checkers: from what clients saw and what was read back at the end they conclude whether Tidewall kept its promises.
//! Pure, so that every violation can be shown to them in a test; none of them calls anybody.

pub mod digests;
pub mod ledger;
pub mod outcomes;
pub mod reads;
pub mod receipts;
pub mod register;
pub mod sale;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use tidewall_load::audit::{SeenEvent, Stamp};
use uuid::Uuid;

use crate::history::{Answer, Op, Planned, Yes};

/// Examples that are kept of a checker's findings.
const EXAMPLES_MAX: usize = 8;

/// What `GetOutcome`, or the seal of a request that nobody knew about, said at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolved {
    /// Decided so.
    Done(Yes, Option<Stamp>),
    /// Never decided, and sealed against it.
    Never,
}

/// A replica as its region's status showed it at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenReplica {
    /// Its node.
    pub node: u64,
    /// Index of the last entry that it applied.
    pub applied: u64,
    /// State digest there.
    pub digest: String,
    /// Why it has stopped or cannot be reached; empty when all is well.
    pub fault: String,
}

/// Everything that checkers look at.
#[derive(Debug, Clone, Default)]
pub struct Evidence {
    /// All calls.
    pub ops: Vec<Op>,
    /// All events that the run made.
    pub planned: Vec<Planned>,
    /// The same events, read back at the end.
    pub seen: Vec<SeenEvent>,
    /// Outcomes that were asked for at the end, by request id.
    pub resolved: BTreeMap<Uuid, Resolved>,
    /// Replicas by region, all looks until they agreed, or the time was up; the last one counts as the end.
    pub replicas: BTreeMap<String, Vec<Vec<SeenReplica>>>,
    /// Replicas, as region and node, that a scenario broke on purpose beyond its own repair.
    pub lost_replicas: BTreeSet<(String, u64)>,
    /// What could not be read back.
    pub unread: Vec<String>,
}

/// What became of a write in the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate<'a> {
    /// It was decided so.
    Done(&'a Yes, Option<&'a Stamp>),
    /// It changed nothing.
    Not,
    /// Nobody knows.
    Open,
}

impl Evidence {
    /// What became of a write.
    pub fn fate<'a>(&'a self, op: &'a Op) -> Fate<'a> {
        match &op.answer {
            Answer::Yes { what, receipt } => Fate::Done(what, receipt.as_ref()),
            Answer::No(_) | Answer::Refused(_) | Answer::Undecided(_) => Fate::Not,
            Answer::Unknown(_) | Answer::Nonsense(_) => {
                match op.request_id.and_then(|id| self.resolved.get(&id)) {
                    Some(Resolved::Done(Yes::Rejected(_), _) | Resolved::Never) => Fate::Not,
                    Some(Resolved::Done(what, receipt)) => Fate::Done(what, receipt.as_ref()),
                    None => Fate::Open,
                }
            }
        }
    }
}

/// What one checker found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The checker.
    pub checker: &'static str,
    /// How many things it looked at; one that looked at nothing has shown nothing.
    pub looked_at: u64,
    /// How many violations it found.
    pub violations: u64,
    /// The first few, in words.
    pub examples: Vec<String>,
}

impl Verdict {
    /// A verdict without findings yet.
    pub fn new(checker: &'static str) -> Self {
        Self { checker, looked_at: 0, violations: 0, examples: Vec::new() }
    }

    /// Whether nothing is wrong.
    pub fn ok(&self) -> bool {
        self.violations == 0
    }

    /// Adds a violation.
    pub fn add(&mut self, words: impl FnOnce() -> String) {
        self.violations += 1;
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(words());
        }
    }

    /// Adds what the same checker found in another episode.
    pub fn merge(&mut self, other: Self) {
        self.looked_at += other.looked_at;
        self.violations += other.violations;
        let room = EXAMPLES_MAX.saturating_sub(self.examples.len());
        self.examples.extend(other.examples.into_iter().take(room));
    }
}

/// Runs all checkers.
pub fn all(evidence: &Evidence) -> Vec<Verdict> {
    let mut unread = Verdict::new("everything could be read back");
    unread.looked_at = evidence.seen.len() as u64;
    for what in &evidence.unread {
        unread.add(|| what.clone());
    }
    let mut answers = Verdict::new("every answer makes sense");
    for op in &evidence.ops {
        answers.looked_at += 1;
        if let Answer::Nonsense(what) = &op.answer {
            answers.add(|| format!("{:?} in {}: {what}", op.ask, op.region));
        }
    }
    let mut verdicts = vec![
        sale::check(evidence),
        ledger::check(evidence),
        outcomes::check(evidence),
        receipts::check(evidence),
        reads::check(evidence),
        register::check(evidence),
        digests::check(evidence),
        answers,
        unread,
    ];
    // Each cluster gets traffic of every kind: a checker that had nothing to look at has shown nothing.
    for verdict in verdicts.iter_mut().filter(|verdict| verdict.looked_at == 0) {
        verdict.add(|| "there was nothing to look at: nothing was shown".to_owned());
    }
    verdicts
}

#[cfg(test)]
pub(crate) mod example {
    //! Short histories for the tests of checkers.
    use super::*;
    use crate::history::{Ask, Micros, Traffic};

    pub(crate) fn stamp(index: u64, position: u32) -> Stamp {
        Stamp {
            incarnation: 1,
            index,
            position,
            term: 1 + index / 100,
            chain_hash: index * 7,
            decided_at_ms: i64::try_from(index).unwrap_or_default(),
        }
    }

    pub(crate) fn op(ask: Ask, times: (Micros, Micros), answer: Answer) -> Op {
        Op {
            region: "regions/r".into(),
            traffic: Traffic::Sale,
            request_id: ask.is_write().then(Uuid::now_v7),
            ask,
            subject: "ann".into(),
            due: times.0,
            start: times.0,
            end: times.1,
            again: false,
            resent: 0,
            answer,
        }
    }

    pub(crate) fn yes(what: Yes, index: u64) -> Answer {
        Answer::Yes { what, receipt: Some(stamp(index, 0)) }
    }

    pub(crate) fn buy(event: &str) -> Ask {
        Ask::Buy { event: event.into(), tier: "ga".into(), quantity: 1 }
    }

    pub(crate) fn ticket(name: &str) -> Yes {
        Yes::Tickets(vec![name.into()])
    }
}

#[cfg(test)]
mod tests {
    use super::example::{buy, op, ticket, yes};
    use super::*;

    #[test]
    fn an_unknown_call_is_what_its_outcome_says() {
        let unknown = op(buy("e"), (0, 5), Answer::Unknown("late".into()));
        let id = unknown.request_id.unwrap_or_default();
        let mut evidence = Evidence::default();
        assert_eq!(evidence.fate(&unknown), Fate::Open);
        evidence.resolved.insert(id, Resolved::Never);
        assert_eq!(evidence.fate(&unknown), Fate::Not);
        evidence.resolved.insert(id, Resolved::Done(ticket("t1"), None));
        assert_eq!(evidence.fate(&unknown), Fate::Done(&ticket("t1"), None));
        evidence.resolved.insert(id, Resolved::Done(Yes::Rejected("SOLD_OUT".into()), None));
        assert_eq!(evidence.fate(&unknown), Fate::Not);
        assert!(matches!(evidence.fate(&op(buy("e"), (0, 5), yes(ticket("t"), 3))), Fate::Done(..)));
    }

    #[test]
    fn no_evidence_is_a_violation_of_every_promise() {
        for verdict in all(&Evidence::default()) {
            assert_eq!((verdict.looked_at, verdict.violations), (0, 1), "{verdict:?}");
        }
    }

    #[test]
    fn nonsense_and_what_cannot_be_read_are_violations() {
        let mut evidence = Evidence { unread: vec!["event e".into()], ..Evidence::default() };
        evidence.ops.push(op(buy("e"), (0, 5), Answer::Nonsense("UNAUTHENTICATED".into())));
        let wrong: Vec<&str> = all(&evidence).iter().filter(|v| !v.ok()).map(|v| v.checker).collect();
        assert!(wrong.contains(&"every answer makes sense"), "{wrong:?}");
        assert!(wrong.contains(&"everything could be read back"), "{wrong:?}");
    }
}
