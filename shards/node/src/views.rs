//! From decisions and rows to the wire. Reads rows; never changes or judges them.

use tidewall_actors::Refusal;
use tidewall_domain::tickets::commands::Class;
use tidewall_domain::tickets::model::{EventRow, StockRow, TierSpec};
use tidewall_domain::tickets::queries::TicketView;
use tidewall_domain::tickets::{self, Rejection, State};
use tidewall_machine::{Answer, Decision, Machine, Outcome, Receipt, Reject, Stamp};
use tidewall_proto::internal::v1 as pb;

const CODE_INVALID_ARGUMENT: i32 = 3;
const CODE_NOT_FOUND: i32 = 5;
const CODE_ALREADY_EXISTS: i32 = 6;
const CODE_PERMISSION_DENIED: i32 = 7;
const CODE_FAILED_PRECONDITION: i32 = 9;
const CODE_ABORTED: i32 = 10;
const CODE_INTERNAL: i32 = 13;
const CODE_DEADLINE_EXCEEDED: i32 = 4;
const CODE_UNAVAILABLE: i32 = 14;

/// What an answer with many items has at most, bytes: with room in every message that carries it.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Most events in a page.
const EVENTS_MAX: u32 = 1_000;
/// Most tickets in a page.
const TICKETS_MAX: u32 = 5_000;

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
        Reject::Sealed => ("REQUEST_ID_SEALED", CODE_FAILED_PRECONDITION),
        Reject::ExpiresTooLate { .. } => ("GATEWAY_CLOCK_AHEAD", CODE_UNAVAILABLE),
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

/// An event with the numbers of its tiers.
fn event<'a>(
    id: &str,
    row: &EventRow,
    stock: impl IntoIterator<Item = (&'a TierSpec, StockRow)>,
) -> pb::EventView {
    let tiers = stock.into_iter().map(|(spec, stock)| pb::TierView {
        spec: Some(pb::TierSpec { capacity: stock.capacity, ..tier_spec(spec) }),
        free: stock.free,
        held: stock.held,
        sold: stock.sold,
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
fn ticket(ticket: TicketView) -> pb::TicketView {
    pb::TicketView {
        ticket_id: ticket.id,
        owner: ticket.owner,
        seat: ticket.seat,
        currency_code: ticket.price.currency.as_str().to_owned(),
        price_minor_units: ticket.price.minor_units,
        cancelled: ticket.cancelled,
        sold_at_ms: ticket.sold_ms,
        request_id: ticket.request_id.to_be_bytes().to_vec(),
        organiser: ticket.organiser,
        tier_id: ticket.tier,
    }
}

/// A decision, as it was made: it says everything itself, so that a repeated request gets its first answer.
pub fn outcome(decision: Decision) -> pb::Outcome {
    let (result, event_id) = match decision.answer {
        Answer::Rejected(why) => (Some(pb::outcome::Result::Rejection(reject(&why))), String::new()),
        Answer::Done(Outcome::Tickets(outcome)) => {
            let event_id = outcome.event().to_owned();
            (Some(done(outcome)), event_id)
        }
        Answer::Done(Outcome::System) => (None, String::new()),
    };
    pb::Outcome {
        receipt: decision.receipt.as_ref().map(receipt),
        result,
        event_id,
        replayed: decision.replayed,
    }
}

fn done(outcome: tickets::Outcome) -> pb::outcome::Result {
    use pb::outcome::Result as R;
    match outcome {
        tickets::Outcome::EventSaved { event: id, row, stock } => {
            R::Event(event(&id, &row, row.tiers.iter().zip(stock)))
        }
        tickets::Outcome::Held { tier, hold, quantity, seats, expires_ms, .. } => R::Hold(pb::HoldView {
            hold_id: format!("{tier}-h{hold}"),
            // The holder is who asked; the gateway knows it from the token.
            owner: String::new(),
            tier_id: tier,
            quantity,
            seats,
            expires_at_ms: expires_ms,
        }),
        tickets::Outcome::Purchased { tier, first, count, seats, .. } => {
            R::Purchase(pb::PurchaseView { tier_id: tier, first_number: first, count, seats })
        }
        tickets::Outcome::Released { hold, .. } => R::ReleasedHoldId(hold),
        tickets::Outcome::Cancelled { ticket: view, .. } => R::Cancelled(ticket(*view)),
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

/// The rows of a group, as they are when this node's clock shows `stamp`.
struct Look<'a> {
    machine: &'a Machine,
    rows: &'a State,
    /// What is due by this steady time counts for nothing.
    steady_ms: u64,
}

/// Takes items as long as they fit into a page: by count, and by bytes. Says whether there are more.
fn page<T: prost::Message>(items: impl Iterator<Item = T>, limit: u32, max: u32) -> (Vec<T>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        let full = page.len() >= limit.clamp(1, max) as usize || bytes > PAGE_BYTES_MAX;
        if full && !page.is_empty() {
            return (page, true);
        }
        page.push(item);
    }
    (page, false)
}

/// Answers a query from the rows.
pub fn query(machine: &Machine, stamp: Stamp, query: &pb::Query) -> Result<pb::QueryResult, String> {
    use pb::query::Op;
    use pb::query_result::Result as R;
    let rows = machine.tickets();
    let look = Look { machine, rows, steady_ms: machine.time().at(stamp).steady_ms };
    let result = match query.op.as_ref().ok_or("the query asks for nothing")? {
        Op::GetEvent(q) => match rows.event(&q.event_id) {
            Some(row) => R::Event(look.event(&q.event_id, row)),
            None => no_event(&q.event_id),
        },
        Op::ListEvents(q) => {
            let events = rows.events_after(&q.after_event_id).map(|(id, row)| look.event(id, row));
            let (events, more) = page(events, q.limit, EVENTS_MAX);
            R::Events(pb::EventList { events, more })
        }
        Op::GetTicket(q) => match rows.event(&q.event_id) {
            None => no_event(&q.event_id),
            Some(row) => {
                let key = tickets::commands::parse_ticket_id(row, &q.ticket_id);
                match key.and_then(|key| Some((key, rows.ticket(&key)?))) {
                    Some((key, found)) => R::Ticket(ticket(TicketView::of(row, &key, found))),
                    None => R::Rejection(rejection(&Rejection::TicketNotFound(q.ticket_id.clone()))),
                }
            }
        },
        Op::ListTickets(q) => match rows.event(&q.event_id) {
            None => no_event(&q.event_id),
            Some(row) => look.tickets(row, q)?,
        },
        Op::GetOutcome(q) => look.outcome(q)?,
    };
    Ok(pb::QueryResult { result: Some(result) })
}

/// Answers a query from rows that nobody stamps any more, as of their own time: for simulation.
pub fn query_at_rest(machine: &Machine, query: &pb::Query) -> Result<pb::QueryResult, String> {
    self::query(machine, Stamp::unconfirmed(machine.log_time_ms()), query)
}

fn no_event(id: &str) -> pb::query_result::Result {
    pb::query_result::Result::Rejection(rejection(&Rejection::EventNotFound(id.to_owned())))
}

impl Look<'_> {
    fn event(&self, id: &str, row: &EventRow) -> pb::EventView {
        let tiers = self.rows.tiers(row, self.steady_ms);
        event(id, row, tiers.map(|view| (view.spec, view.stock)))
    }

    fn tickets(&self, row: &EventRow, q: &pb::ListTickets) -> Result<pb::query_result::Result, String> {
        let after = match q.after_ticket_id.as_str() {
            "" => (0, 0),
            id => {
                let key = tickets::commands::parse_ticket_id(row, id);
                let key = key.ok_or_else(|| format!("{id:?} is no ticket of the event"))?;
                (key.1, key.2)
            }
        };
        let owner = (!q.owner.is_empty()).then_some(q.owner.as_str());
        let found = self.rows.tickets_after(row.no, owner, after, q.limit.clamp(1, TICKETS_MAX) as usize + 1);
        let found = found.into_iter().map(|(key, found)| ticket(TicketView::of(row, &key, found)));
        let (tickets, more) = page(found, q.limit, TICKETS_MAX);
        let organiser = row.organiser.clone();
        Ok(pb::query_result::Result::Tickets(pb::TicketList { tickets, more, organiser }))
    }

    fn outcome(&self, q: &pb::GetOutcome) -> Result<pb::query_result::Result, String> {
        let id = crate::convert::request_id(&q.request_id)?;
        let decided = self.machine.outcome(&q.principal, id);
        Ok(pb::query_result::Result::Outcome(pb::OutcomeView {
            forgotten: decided.is_none() && self.machine.forgotten(id),
            outcome: decided.map(outcome),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_by_count_and_by_bytes_and_has_one_item_at_least() {
        let item = |bytes: usize| pb::TicketView { owner: "x".repeat(bytes), ..Default::default() };
        let of = |bytes: usize, count: usize, limit: u32| {
            let (page, more) = page((0..count).map(|_| item(bytes)), limit, 1_000);
            (page.len(), more)
        };
        assert_eq!(of(10, 5, 3), (3, true));
        assert_eq!(of(10, 3, 3), (3, false));
        assert_eq!(of(10, 2_000, 5_000), (1_000, true), "whatever is asked for");
        assert_eq!(of(10, 5, 0), (1, true));
        let (length, more) = of(PAGE_BYTES_MAX / 4, 50, 1_000);
        assert!(more && (1..=4).contains(&length), "{length}");
        assert_eq!(of(2 * PAGE_BYTES_MAX, 3, 1_000), (1, true));
        assert_eq!(of(10, 0, 3), (0, false));
    }
}
