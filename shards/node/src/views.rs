//! From decisions and rows to the wire. Reads rows; never changes or judges them.

use tidewall_actors::Refusal;
use tidewall_domain::tickets::commands::Class;
use tidewall_domain::tickets::model::{EventRow, NumberKey, TicketRow, TierNo, TierSpec};
use tidewall_domain::tickets::{self, Rejection, State};
use tidewall_machine::{Answer, Decision, Machine, Outcome, Receipt, Reject};
use tidewall_proto::internal::v1 as pb;

const CODE_INVALID_ARGUMENT: i32 = 3;
const CODE_NOT_FOUND: i32 = 5;
const CODE_ALREADY_EXISTS: i32 = 6;
const CODE_PERMISSION_DENIED: i32 = 7;
const CODE_FAILED_PRECONDITION: i32 = 9;
const CODE_ABORTED: i32 = 10;
const CODE_INTERNAL: i32 = 13;
const CODE_DEADLINE_EXCEEDED: i32 = 4;

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

/// A rejection of the ticket module.
pub fn rejection(rejection: &Rejection) -> pb::RejectionView {
    let code = match rejection.class() {
        Class::InvalidArgument => CODE_INVALID_ARGUMENT,
        Class::NotFound => CODE_NOT_FOUND,
        Class::AlreadyExists => CODE_ALREADY_EXISTS,
        Class::FailedPrecondition => CODE_FAILED_PRECONDITION,
        Class::PermissionDenied => CODE_PERMISSION_DENIED,
        Class::Aborted => CODE_ABORTED,
    };
    pb::RejectionView {
        reason: rejection.reason().to_owned(),
        message: rejection.to_string(),
        code,
        field: rejection.field().to_owned(),
    }
}

fn reject(reject: &Reject) -> pb::RejectionView {
    let (reason, code) = match reject {
        Reject::Tickets(inner) => return rejection(inner),
        Reject::Expired => ("EXPIRED", CODE_DEADLINE_EXCEEDED),
        Reject::IdReused => ("REQUEST_ID_REUSED", CODE_INVALID_ARGUMENT),
        Reject::IdForgotten => ("REQUEST_ID_EXPIRED", CODE_INVALID_ARGUMENT),
        Reject::IdFromFuture => ("REQUEST_ID_INVALID", CODE_INVALID_ARGUMENT),
        Reject::InternalInvariant(_) => ("INTERNAL_INVARIANT", CODE_INTERNAL),
        Reject::System(_) => ("REFUSED", CODE_FAILED_PRECONDITION),
    };
    let field = if code == CODE_INVALID_ARGUMENT { "request_id" } else { "" };
    pb::RejectionView {
        reason: reason.to_owned(),
        message: reject.to_string(),
        code,
        field: field.to_owned(),
    }
}

fn tier_spec(spec: &TierSpec) -> pb::TierSpec {
    let seat_rows =
        spec.seat_rows.iter().map(|row| pb::SeatRowSpec { label: row.label.clone(), seats: row.seats });
    pb::TierSpec {
        tier_id: spec.id.clone(),
        display_name: spec.display_name.clone(),
        capacity: spec.capacity,
        currency_code: spec.currency.clone(),
        price_minor_units: spec.price,
        seat_rows: seat_rows.collect(),
    }
}

/// An event with its numbers.
pub fn event(rows: &State, id: &str, row: &EventRow) -> pb::EventView {
    let tiers = rows.tiers(row).map(|view| pb::TierView {
        spec: Some(pb::TierSpec { capacity: view.stock.capacity, ..tier_spec(view.spec) }),
        free: view.stock.free,
        held: view.stock.held,
        sold: view.stock.sold,
    });
    pb::EventView {
        event_id: id.to_owned(),
        display_name: row.display_name.clone(),
        organiser: row.organiser.clone(),
        quota_per_buyer: row.quota,
        sale_opens_at_ms: row.opens_ms,
        sale_closes_at_ms: row.closes_ms,
        revision: row.revision,
        tiers: tiers.collect(),
    }
}

/// A ticket.
pub fn ticket(event: &EventRow, key: &NumberKey, row: &TicketRow) -> pb::TicketView {
    let spec = event.tiers.get(usize::from(key.1));
    let tier_id = spec.map(|spec| spec.id.clone()).unwrap_or_default();
    pb::TicketView {
        ticket_id: format!("{tier_id}-{}", key.2),
        owner: row.owner.to_string(),
        seat: match (spec, row.seat) {
            (Some(spec), Some(seat)) => spec.seat_name(seat),
            _ => String::new(),
        },
        currency_code: spec.map(|spec| spec.currency.clone()).unwrap_or_default(),
        price_minor_units: row.price,
        cancelled: row.cancelled,
        sold_at_ms: row.sold_ms,
        request_id: row.request_id.to_be_bytes().to_vec(),
        organiser: event.organiser.clone(),
        tier_id,
    }
}

fn seat_names(event: &EventRow, tier: TierNo, seats: &[u32]) -> Vec<String> {
    let Some(spec) = event.tiers.get(usize::from(tier)) else { return Vec::new() };
    seats.iter().map(|seat| spec.seat_name(*seat)).collect()
}

/// Whether translating a decision needs the rows. A purchase of places without seats does not: it is what a hot row
/// sees most, and its tier's name stands in the command.
pub fn without_rows(decision: &Decision, tier_id: &str) -> Option<pb::Outcome> {
    let (result, event_id) = match &decision.answer {
        Answer::Rejected(why) => (pb::outcome::Result::Rejection(reject(why)), String::new()),
        Answer::Done(Outcome::Tickets(tickets::Outcome::Purchased {
            event, first, count, seats, ..
        })) if seats.is_empty() && !tier_id.is_empty() => {
            let purchase = pb::PurchaseView {
                tier_id: tier_id.to_owned(),
                first_number: *first,
                count: *count,
                seats: Vec::new(),
            };
            (pb::outcome::Result::Purchase(purchase), event.clone())
        }
        Answer::Done(_) => return None,
    };
    Some(pb::Outcome {
        receipt: decision.receipt.as_ref().map(receipt),
        result: Some(result),
        event_id,
        replayed: decision.replayed,
    })
}

/// A decision, with the names that the rows know.
pub fn outcome(machine: &Machine, decision: &Decision) -> pb::Outcome {
    if let Some(outcome) = without_rows(decision, "") {
        return outcome;
    }
    let rows = machine.tickets();
    let (result, event_id) = match &decision.answer {
        Answer::Done(Outcome::Tickets(outcome)) => {
            let id = outcome.event();
            (rows.event(id).map(|row| done(rows, row, outcome)), id.to_owned())
        }
        Answer::Rejected(why) => (Some(pb::outcome::Result::Rejection(reject(why))), String::new()),
        Answer::Done(Outcome::System) => (None, String::new()),
    };
    pb::Outcome {
        receipt: decision.receipt.as_ref().map(receipt),
        result,
        event_id,
        replayed: decision.replayed,
    }
}

fn done(rows: &State, row: &EventRow, outcome: &tickets::Outcome) -> pb::outcome::Result {
    use pb::outcome::Result as R;
    let tier_id =
        |tier: TierNo| row.tiers.get(usize::from(tier)).map(|spec| spec.id.clone()).unwrap_or_default();
    match outcome {
        tickets::Outcome::EventSaved { event: id } => R::Event(event(rows, id, row)),
        tickets::Outcome::Held { tier, hold, quantity, seats, expires_ms, .. } => R::Hold(pb::HoldView {
            hold_id: format!("{}-h{hold}", tier_id(*tier)),
            // The holder is who asked; the gateway knows it from the token.
            owner: String::new(),
            tier_id: tier_id(*tier),
            quantity: *quantity,
            seats: seat_names(row, *tier, seats),
            expires_at_ms: *expires_ms,
        }),
        tickets::Outcome::Purchased { tier, first, count, seats, .. } => R::Purchase(pb::PurchaseView {
            tier_id: tier_id(*tier),
            first_number: *first,
            count: *count,
            seats: seat_names(row, *tier, seats),
        }),
        tickets::Outcome::Released { hold, .. } => R::ReleasedHoldId(hold.clone()),
        tickets::Outcome::Cancelled { tier, ticket: number, .. } => {
            let key = (row.no, *tier, *number);
            match rows.ticket(&key) {
                Some(found) => R::Cancelled(ticket(row, &key, found)),
                // It was cancelled, whatever an import has put in the place of the rows since.
                None => {
                    let tier_id = tier_id(*tier);
                    let ticket_id = format!("{tier_id}-{number}");
                    R::Cancelled(pb::TicketView { ticket_id, tier_id, cancelled: true, ..Default::default() })
                }
            }
        }
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

/// A call that makes no sense here.
pub fn invalid(message: impl Into<String>) -> pb::Refusal {
    let mut view = pb::Refusal { message: message.into(), ..pb::Refusal::default() };
    view.set_kind(pb::RefusalKind::Invalid);
    view
}

/// Answers a query from the rows.
pub fn query(machine: &Machine, query: &pb::Query) -> Result<pb::QueryResult, String> {
    use pb::query::Op;
    use pb::query_result::Result as R;
    let rows = machine.tickets();
    let no_event = |id: &str| R::Rejection(rejection(&Rejection::EventNotFound(id.to_owned())));
    let result = match query.op.as_ref().ok_or("the query asks for nothing")? {
        Op::GetEvent(q) => match rows.event(&q.event_id) {
            Some(row) => R::Event(event(rows, &q.event_id, row)),
            None => no_event(&q.event_id),
        },
        Op::ListEvents(q) => {
            let limit = q.limit.clamp(1, 1_000) as usize;
            let mut events: Vec<_> = rows
                .events_after(&q.after_event_id)
                .take(limit + 1)
                .map(|(id, row)| event(rows, id, row))
                .collect();
            let more = events.len() > limit;
            events.truncate(limit);
            R::Events(pb::EventList { events, more })
        }
        Op::GetTicket(q) => match rows.event(&q.event_id) {
            None => no_event(&q.event_id),
            Some(row) => {
                let key = tickets::commands::parse_ticket_id(row, &q.ticket_id);
                match key.and_then(|key| Some((key, rows.ticket(&key)?))) {
                    Some((key, found)) => R::Ticket(ticket(row, &key, found)),
                    None => R::Rejection(rejection(&Rejection::TicketNotFound(q.ticket_id.clone()))),
                }
            }
        },
        Op::ListTickets(q) => match rows.event(&q.event_id) {
            None => no_event(&q.event_id),
            Some(row) => list_tickets(rows, row, q)?,
        },
        Op::GetOutcome(q) => {
            let id = crate::convert::request_id(&q.request_id)?;
            let decided = machine.outcome(&q.principal, id);
            R::Outcome(pb::OutcomeView {
                forgotten: decided.is_none() && machine.forgotten(id),
                outcome: decided.map(|decision| outcome(machine, &decision)),
            })
        }
    };
    Ok(pb::QueryResult { result: Some(result) })
}

fn list_tickets(
    rows: &State,
    row: &EventRow,
    q: &pb::ListTickets,
) -> Result<pb::query_result::Result, String> {
    let limit = q.limit.clamp(1, 5_000) as usize;
    let after = match q.after_ticket_id.as_str() {
        "" => (0, 0),
        id => {
            let key = tickets::commands::parse_ticket_id(row, id);
            let key = key.ok_or_else(|| format!("{id:?} is no ticket of the event"))?;
            (key.1, key.2)
        }
    };
    let owner = (!q.owner.is_empty()).then_some(q.owner.as_str());
    let mut found = rows.tickets_after(row.no, owner, after, limit + 1);
    let more = found.len() > limit;
    found.truncate(limit);
    let tickets = found.into_iter().map(|(key, found)| ticket(row, &key, found)).collect();
    Ok(pb::query_result::Result::Tickets(pb::TicketList { tickets, more, organiser: row.organiser.clone() }))
}
