//! Between the messages of the shards and the words of the oracle.

use prost::Message as _;
use tidewall_messages::tickets;
use tidewall_proto::internal::v1 as pb;

use crate::history::{Ask, End, Receipt, Said, TicketSeen, TierSeen, Told};
use crate::traffic::SEAT_ROWS;

/// A command as a gateway sends it.
pub fn command(principal: &str, request_id: u128, expires_at_ms: u64, ask: &Ask) -> pb::Command {
    let mut finishes = false;
    let (row, op) = match ask.clone() {
        Ask::Create { event, quota, tiers } => {
            let tier = |(id, capacity, numbered): (String, u64, bool)| {
                let row = |label: &&str| tickets::SeatRowSpec { label: (*label).to_owned(), seats: 5 };
                tickets::TierSpec {
                    tier_id: id,
                    capacity,
                    currency_code: "EUR".to_owned(),
                    price_minor_units: 1_000,
                    seat_rows: if numbered { SEAT_ROWS.iter().map(row).collect() } else { Vec::new() },
                    ..tickets::TierSpec::default()
                }
            };
            let create = tickets::CreateEvent {
                display_name: event.clone(),
                event_id: event.clone(),
                quota_per_buyer: quota,
                tiers: tiers.into_iter().map(tier).collect(),
                ..tickets::CreateEvent::default()
            };
            (event, Some(create.into()))
        }
        Ask::Buy { event, tier, quantity, seats } => {
            let (event_id, tier_id) = (event.clone(), tier);
            (event, Some(tickets::Buy { event_id, tier_id, quantity, seats, buyer: String::new() }.into()))
        }
        Ask::Sell { event, tier, quantity, buyer } => {
            let (event_id, tier_id, seats) = (event.clone(), tier, Vec::new());
            (event, Some(tickets::Buy { event_id, tier_id, quantity, seats, buyer }.into()))
        }
        Ask::Hold { event, tier, quantity, ttl_ms } => {
            let (event_id, tier_id, seats) = (event.clone(), tier, Vec::new());
            (event, Some(tickets::Hold { event_id, tier_id, quantity, seats, ttl_ms }.into()))
        }
        Ask::Confirm { event, hold } => {
            finishes = true;
            let confirm = tickets::ConfirmHold { event_id: event.clone(), hold_id: hold };
            (event, Some(confirm.into()))
        }
        Ask::Release { event, hold } => {
            finishes = true;
            let release = tickets::ReleaseHold { event_id: event.clone(), hold_id: hold };
            (event, Some(release.into()))
        }
        Ask::Cancel { event, ticket } => {
            finishes = true;
            let cancel = tickets::CancelTicket { event_id: event.clone(), ticket_id: ticket };
            (event, Some(cancel.into()))
        }
        Ask::Seal => {
            finishes = true;
            (String::new(), None)
        }
    };
    // No module: a seal.
    let (module, payload) = match op {
        Some(op) => (tickets::MODULE, tickets::Command::encode_to_vec(&op)),
        None => (0, Vec::new()),
    };
    let fingerprint = tidewall_machine::hash_64(&payload);
    let payload = built_by(expires_at_ms, module, payload);
    pb::Command {
        principal: principal.to_owned(),
        request_id: request_id.to_be_bytes().to_vec(),
        expires_at_ms,
        module: module.into(),
        fingerprint,
        payload: payload.into(),
        row,
        finishes,
        logged: matches!(ask, Ask::Sell { .. }),
        ..pb::Command::default()
    }
}

/// The payload as one of two builds of a gateway makes it, which of them by the time: copies of a request differ. The later one has
/// a field that nobody here knows.
fn built_by(ms: u64, module: u8, mut payload: Vec<u8>) -> Vec<u8> {
    /// Field 1000, a varint: 1.
    const UNKNOWN: [u8; 3] = [0xc0, 0x3e, 0x01];
    if module != 0 && ms.is_multiple_of(2) {
        payload.extend_from_slice(&UNKNOWN);
    }
    payload
}

/// What an outcome says.
pub fn told(outcome: &pb::Outcome) -> Told {
    let receipt = outcome.receipt.as_ref().map(|receipt| Receipt {
        index: receipt.index,
        position: receipt.position,
        incarnation: receipt.incarnation,
        term: receipt.term,
        chain: receipt.chain_hash,
        decided_ms: receipt.decided_at_ms,
    });
    let said = match &outcome.result {
        Some(pb::outcome::Result::Done(bytes)) => done(bytes),
        Some(pb::outcome::Result::Rejection(rejection)) => Said::Rejected(rejection.reason.clone()),
        None => Said::Rejected("EMPTY_OUTCOME".to_owned()),
    };
    Told { receipt, said }
}

/// What the ticket module says it has done. A client that goes by the code alone takes any done for one, whatever it says.
fn done(bytes: &[u8]) -> Said {
    use tickets::outcome::Result as R;
    match tickets::Outcome::decode(bytes).unwrap_or_default().result {
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
        Some(R::ReleasedHoldId(_) | R::DeletedEventId(_)) | None => Said::Released,
    }
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
    module_query(tickets::GetEvent { event_id: event.to_owned() })
}

fn module_query(query: impl Into<tickets::Query>) -> pb::Query {
    let payload = query.into().encode_to_vec();
    let query = pb::ModuleQuery { module: tickets::MODULE.into(), payload };
    pb::Query { op: Some(pb::query::Op::Module(query)) }
}

/// What the ticket module answers.
fn answer(result: &pb::query_result::Result) -> Option<tickets::answer::Result> {
    let pb::query_result::Result::Module(bytes) = result else { return None };
    tickets::Answer::decode(&bytes[..]).ok()?.result
}

/// Asks what was decided for a request.
pub fn outcome_query(principal: &str, request_id: u128) -> pb::Query {
    let (principal, request_id) = (principal.to_owned(), request_id.to_be_bytes().to_vec());
    pb::Query { op: Some(pb::query::Op::GetOutcome(pb::GetOutcome { principal, request_id })) }
}

/// Asks for all tickets of an event.
pub fn tickets_query(event: &str) -> pb::Query {
    let event_id = event.to_owned();
    module_query(tickets::ListTickets { event_id, limit: 5_000, ..tickets::ListTickets::default() })
}

/// The tiers of an event that was read; none when it does not exist.
pub fn tiers(result: &pb::query_result::Result) -> Vec<TierSeen> {
    let Some(tickets::answer::Result::Event(event)) = answer(result) else { return Vec::new() };
    let tier = |view: &tickets::TierView| TierSeen {
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
    let Some(tickets::answer::Result::Tickets(list)) = answer(result) else { return Vec::new() };
    let ticket = |view: &tickets::TicketView| TicketSeen {
        ticket: view.ticket_id.clone(),
        owner: view.owner.clone(),
        seat: view.seat.clone(),
        cancelled: view.cancelled,
    };
    list.tickets.iter().map(ticket).collect()
}
