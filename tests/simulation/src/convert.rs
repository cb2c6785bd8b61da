//! Between the messages of the shards and the words of the oracle.

use tidewall_proto::internal::v1 as pb;

use crate::history::{Ask, End, Receipt, Said, TicketSeen, TierSeen, Told};
use crate::traffic::SEAT_ROWS;

/// A command as a gateway sends it.
pub fn command(principal: &str, request_id: u128, expires_at_ms: u64, ask: &Ask) -> pb::Command {
    use pb::command::Op;
    let op = match ask.clone() {
        Ask::Create { event, quota, tiers } => {
            let tier = |(id, capacity, numbered): (String, u64, bool)| {
                let row = |label: &&str| pb::SeatRowSpec { label: (*label).to_owned(), seats: 5 };
                pb::TierSpec {
                    tier_id: id,
                    capacity,
                    currency_code: "EUR".to_owned(),
                    price_minor_units: 1_000,
                    seat_rows: if numbered { SEAT_ROWS.iter().map(row).collect() } else { Vec::new() },
                    ..pb::TierSpec::default()
                }
            };
            Op::CreateEvent(pb::CreateEvent {
                display_name: event.clone(),
                event_id: event,
                quota_per_buyer: quota,
                tiers: tiers.into_iter().map(tier).collect(),
                ..pb::CreateEvent::default()
            })
        }
        Ask::Buy { event, tier, quantity, seats } => {
            Op::Buy(pb::Buy { event_id: event, tier_id: tier, quantity, seats, buyer: String::new() })
        }
        Ask::Sell { event, tier, quantity, buyer } => {
            Op::Buy(pb::Buy { event_id: event, tier_id: tier, quantity, seats: Vec::new(), buyer })
        }
        Ask::Hold { event, tier, quantity, ttl_ms } => {
            Op::Hold(pb::Hold { event_id: event, tier_id: tier, quantity, seats: Vec::new(), ttl_ms })
        }
        Ask::Confirm { event, hold } => Op::ConfirmHold(pb::ConfirmHold { event_id: event, hold_id: hold }),
        Ask::Release { event, hold } => Op::ReleaseHold(pb::ReleaseHold { event_id: event, hold_id: hold }),
        Ask::Cancel { event, ticket } => {
            Op::CancelTicket(pb::CancelTicket { event_id: event, ticket_id: ticket })
        }
        Ask::Seal => Op::Seal(pb::Seal {}),
    };
    pb::Command {
        principal: principal.to_owned(),
        request_id: request_id.to_be_bytes().to_vec(),
        expires_at_ms,
        op: Some(op),
        privileged: false,
        logged: matches!(ask, Ask::Sell { .. }),
    }
}

/// What an outcome says.
pub fn told(outcome: &pb::Outcome) -> Told {
    use pb::outcome::Result as R;
    let receipt = outcome.receipt.as_ref().map(|receipt| Receipt {
        index: receipt.index,
        position: receipt.position,
        incarnation: receipt.incarnation,
        term: receipt.term,
        chain: receipt.chain_hash,
        decided_ms: receipt.decided_at_ms,
    });
    let said = match outcome.result.clone() {
        Some(R::Event(_)) => Said::Created,
        Some(R::Hold(hold)) => Said::Held {
            hold: hold.hold_id,
            quantity: hold.quantity,
            seats: hold.seats,
            expires_ms: hold.expires_at_ms,
        },
        Some(R::Purchase(sold)) => {
            Said::Sold { tier: sold.tier_id, first: sold.first_number, count: sold.count, seats: sold.seats }
        }
        Some(R::Cancelled(_)) => Said::Cancelled,
        Some(R::ReleasedHoldId(_)) => Said::Released,
        Some(R::Rejection(rejection)) => Said::Rejected(rejection.reason),
        None => Said::Rejected("EMPTY_OUTCOME".to_owned()),
    };
    Told { receipt, said }
}

/// How an item of a batch ended.
pub fn item_end(item: &pb::BatchItem) -> End {
    match &item.result {
        Some(pb::batch_item::Result::Outcome(outcome)) => End::Told(told(outcome)),
        Some(pb::batch_item::Result::Refusal(refusal)) if refusal.kind() != pb::RefusalKind::Unknown => {
            End::NotDecided
        }
        _ => End::Unknown,
    }
}

/// Asks for an event.
pub fn event_query(event: &str) -> pb::Query {
    pb::Query { op: Some(pb::query::Op::GetEvent(pb::GetEvent { event_id: event.to_owned() })) }
}

/// Asks what was decided for a request.
pub fn outcome_query(principal: &str, request_id: u128) -> pb::Query {
    let (principal, request_id) = (principal.to_owned(), request_id.to_be_bytes().to_vec());
    pb::Query { op: Some(pb::query::Op::GetOutcome(pb::GetOutcome { principal, request_id })) }
}

/// Asks for all tickets of an event.
pub fn tickets_query(event: &str) -> pb::Query {
    let list = pb::ListTickets { event_id: event.to_owned(), limit: 5_000, ..pb::ListTickets::default() };
    pb::Query { op: Some(pb::query::Op::ListTickets(list)) }
}

/// The tiers of an event that was read; none when it does not exist.
pub fn tiers(result: &pb::query_result::Result) -> Vec<TierSeen> {
    let pb::query_result::Result::Event(event) = result else { return Vec::new() };
    let tier = |view: &pb::TierView| TierSeen {
        tier: view.spec.as_ref().map(|spec| spec.tier_id.clone()).unwrap_or_default(),
        capacity: view.spec.as_ref().map_or(0, |spec| spec.capacity),
        free: view.free,
        held: view.held,
        sold: view.sold,
    };
    event.tiers.iter().map(tier).collect()
}

/// What is remembered of a request.
pub fn remembered(result: &pb::query_result::Result) -> Option<Told> {
    let pb::query_result::Result::Outcome(view) = result else { return None };
    view.outcome.as_ref().map(told)
}

/// The tickets of a list.
pub fn tickets(result: &pb::query_result::Result) -> Vec<TicketSeen> {
    let pb::query_result::Result::Tickets(list) = result else { return Vec::new() };
    let ticket = |view: &pb::TicketView| TicketSeen {
        ticket: view.ticket_id.clone(),
        owner: view.owner.clone(),
        seat: view.seat.clone(),
        cancelled: view.cancelled,
    };
    list.tickets.iter().map(ticket).collect()
}
