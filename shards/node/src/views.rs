//! From decisions and rows to the wire. Reads rows; never changes or judges them, and looks into nothing of a module.

use tidewall_actors::Refusal;
use tidewall_domain::page::{PAGE_BYTES_MAX, page};
use tidewall_machine::effects::DeadEffect;
use tidewall_machine::feed::Place;
use tidewall_machine::streams::DeadKey;
use tidewall_machine::{
    Answer, AsOf, Decision, Heard, Machine, Receipt, RejectReason, Stamp, Told, dead_letter_id,
    parse_dead_letter_id,
};
use tidewall_messages::{Rejection, Seen};
use tidewall_proto::internal::v1 as pb;

use crate::effects;

/// When to ask again what not all replicas know yet: in a region that has just been made that takes about a second.
const NOT_YET_MS: u32 = 100;

const CODE_INVALID_ARGUMENT: i32 = 3;
const CODE_DEADLINE_EXCEEDED: i32 = 4;
const CODE_FAILED_PRECONDITION: i32 = 9;
const CODE_INTERNAL: i32 = 13;
const CODE_UNAVAILABLE: i32 = 14;

fn receipt(receipt: &Receipt) -> pb::Receipt {
    pb::Receipt {
        incarnation: receipt.incarnation,
        term: receipt.term,
        index: receipt.index,
        position: receipt.position,
        chain_hash: receipt.chain,
        decided_at_ms: receipt.decided_ms,
    }
}

fn rejection(reject: RejectReason) -> Rejection {
    let (reason, code) = match &reject {
        RejectReason::Module(_) => ("", 0),
        RejectReason::Expired => ("EXPIRED", CODE_DEADLINE_EXCEEDED),
        RejectReason::IdReused => ("REQUEST_ID_REUSED", CODE_INVALID_ARGUMENT),
        RejectReason::IdForgotten => ("REQUEST_ID_EXPIRED", CODE_INVALID_ARGUMENT),
        RejectReason::IdFromFuture => ("REQUEST_ID_INVALID", CODE_INVALID_ARGUMENT),
        RejectReason::Sealed => ("REQUEST_ID_SEALED", CODE_FAILED_PRECONDITION),
        RejectReason::ExpiresTooLate { .. } => ("GATEWAY_CLOCK_AHEAD", CODE_UNAVAILABLE),
        RejectReason::InternalInvariant(_) => ("INTERNAL_INVARIANT", CODE_INTERNAL),
        RejectReason::Full(_) => ("TOO_MUCH_UNDER_WAY", CODE_UNAVAILABLE),
        RejectReason::System(_) => ("REFUSED", CODE_FAILED_PRECONDITION),
    };
    let field = if code == CODE_INVALID_ARGUMENT { "request_id" } else { "" };
    match reject {
        RejectReason::Module(rejection) => rejection,
        reject => Rejection {
            reason: reason.to_owned(),
            message: reject.to_string(),
            code,
            field: field.to_owned(),
        },
    }
}

/// A decision, as it was made: it says everything itself, so that a repeated request gets its first answer. One that stands nowhere
/// in the log was made from rows that were `seen`.
pub fn outcome(decision: Decision, seen: impl FnOnce() -> Seen) -> pb::Outcome {
    use pb::outcome::Result as R;
    let (result, module) = match decision.answer {
        Answer::Rejected(why) => (Some(R::Rejection(rejection(why))), 0),
        Answer::Done { module, outcome } => (Some(R::Done(outcome.into())), module.into()),
        Answer::System => (None, 0),
    };
    pb::Outcome {
        receipt: decision.receipt.as_ref().map(receipt),
        result,
        module,
        replayed: decision.replayed,
        seen: decision.receipt.is_none().then(seen),
    }
}

/// A refusal.
pub fn refusal(refusal: &Refusal) -> pb::Refusal {
    let mut view = pb::Refusal { message: refusal.to_string(), ..pb::Refusal::default() };
    match refusal {
        Refusal::NotLeader { leader } => {
            view.set_kind(pb::RefusalKind::NotLeader);
            view.leader_node = leader.unwrap_or(0);
        }
        Refusal::Overloaded { retry_after_ms, .. } => {
            view.set_kind(pb::RefusalKind::Overloaded);
            view.retry_after_ms = *retry_after_ms;
        }
        Refusal::Unknown(_) => view.set_kind(pb::RefusalKind::Unknown),
        Refusal::Halted(_) => view.set_kind(pb::RefusalKind::Halted),
    }
    view
}

/// Not all members of the group have a build that knows what is asked for.
pub fn not_yet() -> pb::Refusal {
    let message = "not all replicas of the region have a build that knows this".to_owned();
    pb::Refusal {
        kind: pb::RefusalKind::NotYet.into(),
        retry_after_ms: NOT_YET_MS,
        message,
        ..Default::default()
    }
}

/// A replica that must not answer a read, or not yet; its rows have `come` so far.
pub fn behind(come: Seen, message: impl Into<String>) -> pb::Refusal {
    let kind = pb::RefusalKind::Behind.into();
    pb::Refusal { kind, message: message.into(), come: Some(come), ..Default::default() }
}

/// A call that makes no sense here.
pub fn invalid(message: impl Into<String>) -> pb::Refusal {
    let mut view = pb::Refusal { message: message.into(), ..pb::Refusal::default() };
    view.set_kind(pb::RefusalKind::Invalid);
    view
}

/// Answers a query from the rows, as they are as of a time.
///
/// # Errors
/// What makes no sense about the query.
pub fn query(machine: &Machine, as_of: AsOf, query: &pb::Query) -> Result<pb::QueryResult, String> {
    use pb::query::Op;
    use pb::query_result::Result as R;
    let result = match query.op.as_ref().ok_or("the query asks for nothing")? {
        Op::GetOutcome(asked) => R::Outcome(remembered(machine, asked)?),
        Op::Module(asked) => {
            let module = u8::try_from(asked.module).unwrap_or(0);
            match machine.query(module, &asked.payload, as_of)? {
                Ok(answer) => R::Module(answer.into()),
                Err(rejection) => R::Rejection(rejection),
            }
        }
        Op::DeadLetters(asked) => R::DeadLetters(dead_letters(machine, asked)?),
        Op::Changes(asked) => R::Changes(changes(machine, asked)),
        Op::GetQueue(asked) => R::Queue(effects::queue(machine, as_of.stamp, asked)?),
        Op::TakeEffects(_) | Op::EndEffects(_) => return Err("nobody asks rows at rest for that".into()),
    };
    Ok(pb::QueryResult { result: Some(result), seen: Some(machine.seen(as_of)) })
}

/// What somebody hears who has heard everything up to a place.
pub fn changes(machine: &Machine, asked: &pb::ListChanges) -> pb::Changes {
    let after = asked.after.as_ref().map_or_else(|| machine.place(), |after| Place::from(*after));
    match machine.changes_after(after, PAGE_BYTES_MAX.min(asked.bytes_max as usize).max(1)) {
        Heard::Gone { oldest } => pb::Changes { entries: Vec::new(), place: Some(oldest.into()), gone: true },
        Heard::Changes { told, place: up_to } => {
            let entry = |Told { index, log_ms, first, changes }| pb::EntryChanges {
                index,
                log_ms,
                first,
                changes: changes.into(),
            };
            let entries = told.into_iter().map(entry).collect();
            pb::Changes { entries, place: Some(up_to.into()), gone: false }
        }
    }
}

/// Dead letters, as many as fit into an answer.
fn dead_letters(machine: &Machine, asked: &pb::ListDeadLetters) -> Result<pb::DeadLetters, String> {
    const LETTERS_MAX: u32 = 1_000;
    let key = |id: &str| parse_dead_letter_id(id).ok_or_else(|| format!("{id:?} is no id of a dead letter"));
    let (first, limit) = match (asked.id.as_str(), asked.after.as_str()) {
        ("", "") => (DeadKey::default(), asked.limit),
        ("", after) => {
            let (incarnation, index, number) = key(after)?;
            ((incarnation, index, number.saturating_add(1)), asked.limit)
        }
        (id, _) => (key(id)?, 1),
    };
    let found = machine.dead_letters(&first).take_while(|(key, _)| asked.id.is_empty() || **key == first);
    let letters = found.map(|(key, row)| pb::DeadLetter {
        id: dead_letter_id(key),
        from: row.from,
        module: machine.module(row.message.module).map(|module| module.name().to_owned()).unwrap_or_default(),
        saga: row.message.saga.to_be_bytes().to_vec(),
        reason: row.reason.clone(),
        waits: row.waits,
        since_ms: row.since_ms,
        effect: row.is_effect(),
        payload: match row.is_effect() {
            true => DeadEffect::from_bytes(&row.message.payload).map(|dead| dead.payload).unwrap_or_default(),
            false => row.message.payload.clone(),
        },
    });
    let (letters, more) = page(letters, limit, LETTERS_MAX);
    Ok(pb::DeadLetters { letters, more })
}

/// Answers a query from rows that nobody stamps any more, as of their own time: for simulation.
///
/// # Errors
/// What makes no sense about the query.
pub fn query_at_rest(machine: &Machine, query: &pb::Query) -> Result<pb::QueryResult, String> {
    self::query(machine, Stamp::unconfirmed(machine.log_time_ms()).into(), query)
}

fn remembered(machine: &Machine, asked: &pb::GetOutcome) -> Result<pb::OutcomeView, String> {
    let id = crate::convert::request_id(&asked.request_id)?;
    let decided = machine.outcome(&asked.principal, id);
    Ok(pb::OutcomeView {
        forgotten: decided.is_none() && machine.forgotten(&asked.principal, id),
        outcome: decided.map(|decision| outcome(decision, Seen::default)),
    })
}
