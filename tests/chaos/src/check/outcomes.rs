//! One outcome per request id: whoever asks again, by the same request or by `GetOutcome`, hears the same.

use std::collections::BTreeMap;

use tidewall_load::audit::Stamp;
use uuid::Uuid;

use super::{Evidence, Resolved, Verdict};
use crate::history::{Answer, Ask, Op, Yes};

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("one outcome per request id");
    let mut first: BTreeMap<Uuid, &Op> = BTreeMap::new();
    let mut writes: Vec<&Op> = evidence.ops.iter().filter(|op| op.ask.is_write()).collect();
    writes.sort_by_key(|op| op.end);
    for op in writes {
        let Some(id) = op.request_id else { continue };
        let Answer::Yes { what, receipt } = &op.answer else {
            // "No" after "yes" for the same request.
            if first.contains_key(&id) && !op.answer.is_error() && !matches!(op.answer, Answer::Refused(_)) {
                verdict.add(|| format!("request {id} was decided, and later answered with {:?}", op.answer));
            }
            continue;
        };
        match first.get(&id) {
            None => {
                first.insert(id, op);
            }
            Some(earlier) => same(&mut verdict, id, earlier, what, receipt.as_ref()),
        }
    }
    for op in &evidence.ops {
        let (Ask::Outcome { of }, Answer::Yes { what: Yes::Outcome(said), receipt }) = (&op.ask, &op.answer)
        else {
            continue;
        };
        let Some(earlier) = first.get(of) else { continue };
        match said {
            Some(what) => same(&mut verdict, *of, earlier, what, receipt.as_ref()),
            None if earlier.end < op.start => {
                verdict.add(|| format!("request {of} was acknowledged, and later has no outcome"));
            }
            None => {}
        }
    }
    for (id, resolved) in &evidence.resolved {
        let Some(earlier) = first.get(id) else { continue };
        match resolved {
            Resolved::Done(what, receipt) => same(&mut verdict, *id, earlier, what, receipt.as_ref()),
            Resolved::Never => {
                verdict.add(|| format!("request {id} was acknowledged, and has no outcome at the end"));
            }
        }
    }
    verdict
}

fn same(verdict: &mut Verdict, id: Uuid, earlier: &Op, what: &Yes, receipt: Option<&Stamp>) {
    verdict.looked_at += 1;
    let Answer::Yes { what: before, receipt: stamp } = &earlier.answer else { return };
    if before != what || stamp.as_ref() != receipt {
        verdict.add(|| {
            format!("request {id} was answered with {before:?} at {stamp:?}, and then with {what:?} at {receipt:?}")
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::example::{buy, op, stamp, ticket, yes};

    fn bought() -> (Evidence, Uuid) {
        let op = op(buy("e"), (0, 5), yes(ticket("t1"), 3));
        let id = op.request_id.unwrap_or_default();
        (Evidence { ops: vec![op], ..Evidence::default() }, id)
    }

    fn again(of: &Op, answer: Answer) -> Op {
        Op { again: true, start: 10, end: 12, answer, ..of.clone() }
    }

    #[test]
    fn the_same_answer_again_is_what_is_wanted() {
        let (mut evidence, id) = bought();
        evidence.ops.push(again(&evidence.ops[0], yes(ticket("t1"), 3)));
        let asked = Yes::Outcome(Some(Box::new(ticket("t1"))));
        evidence.ops.push(op(Ask::Outcome { of: id }, (20, 21), yes(asked, 3)));
        evidence.resolved.insert(id, Resolved::Done(ticket("t1"), Some(stamp(3, 0))));
        let verdict = check(&evidence);
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 3);
    }

    #[test]
    fn another_ticket_or_place_for_the_same_request_is_found() {
        for other in [yes(ticket("t2"), 3), yes(ticket("t1"), 4), Answer::No("SOLD_OUT".into())] {
            let (mut evidence, _) = bought();
            evidence.ops.push(again(&evidence.ops[0], other));
            assert_eq!(check(&evidence).violations, 1);
        }
        let (mut evidence, _) = bought();
        evidence.ops.push(again(&evidence.ops[0], Answer::Unknown("late".into())));
        assert!(check(&evidence).ok(), "an error is not an answer");
    }

    #[test]
    fn a_forgotten_outcome_is_found() {
        let (mut evidence, id) = bought();
        evidence.ops.push(op(
            Ask::Outcome { of: id },
            (1, 2),
            Answer::Yes { what: Yes::Outcome(None), receipt: None },
        ));
        assert!(check(&evidence).ok(), "it was asked before the answer came");
        evidence.ops.push(op(
            Ask::Outcome { of: id },
            (6, 7),
            Answer::Yes { what: Yes::Outcome(None), receipt: None },
        ));
        assert_eq!(check(&evidence).violations, 1);
        evidence.resolved.insert(id, Resolved::Never);
        assert_eq!(check(&evidence).violations, 2);
    }
}
