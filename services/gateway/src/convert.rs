//! What the regions answer, in the words of the public API. Only translation: nothing is decided and nothing is
//! checked here but that an answer has the shape its command asks for.

use prost::Message as _;
use prost_types::Timestamp;
use tidewall_messages::{Rejection, accounts, tickets};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;

use crate::errors::ApiError;
use crate::{names, request_id};

/// What a module achieved.
pub(crate) struct Decided<T> {
    pub(crate) outcome: T,
    pub(crate) receipt: Option<v1::Receipt>,
}

/// The outcome of a command of module `module`, or its rejection as an error.
pub(crate) fn decided<T: prost::Message + Default>(
    region: &str,
    module: u8,
    outcome: pb::Outcome,
) -> Result<Decided<T>, ApiError> {
    let receipt = outcome.receipt.as_ref().map(|receipt| self::receipt(region, receipt));
    match outcome.result {
        Some(pb::outcome::Result::Rejection(rejection)) => {
            Err(ApiError::Rejected { rejection, receipt: receipt.map(Box::new) })
        }
        Some(pb::outcome::Result::Done(bytes)) if outcome.module == u32::from(module) => {
            Ok(Decided { outcome: T::decode(bytes).map_err(|_| mismatch())?, receipt })
        }
        _ => Err(mismatch()),
    }
}

/// The answer is not of the kind that the command asks for.
pub(crate) fn mismatch() -> ApiError {
    ApiError::internal(
        "the region answered with something else than was asked for: gateway and nodes run builds that do \
         not fit together; the request may have been executed, ask OutcomeService.GetOutcome",
    )
}

pub(crate) fn timestamp(ms: u64) -> Timestamp {
    Timestamp {
        seconds: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// Absent for 0.
fn optional_timestamp(ms: u64) -> Option<Timestamp> {
    (ms != 0).then(|| timestamp(ms))
}

fn signed(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

fn small(value: u32) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// Lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    data_encoding::HEXLOWER.encode(bytes)
}

pub(crate) fn receipt(region: &str, receipt: &pb::Receipt) -> v1::Receipt {
    v1::Receipt {
        region: names::region(region),
        incarnation: receipt.incarnation,
        term: receipt.term,
        index: receipt.index,
        position: receipt.position,
        chain_hash: format!("{:016x}", receipt.chain_hash),
        decided_at: Some(timestamp(receipt.decided_at_ms)),
    }
}

fn money(currency_code: String, minor_units: u64) -> v1::Money {
    v1::Money { currency_code, minor_units: signed(minor_units) }
}

pub(crate) fn event(region: &str, view: tickets::EventView) -> v1::Event {
    v1::Event {
        name: names::event(region, &view.event_id),
        display_name: view.display_name,
        organiser: view.organiser,
        tiers: view.tiers.into_iter().map(tier).collect(),
        quota_per_buyer: small(view.quota_per_buyer),
        sale_opens_at: optional_timestamp(view.sale_opens_at_ms),
        sale_closes_at: optional_timestamp(view.sale_closes_at_ms),
        revision: view.revision,
    }
}

fn tier(view: tickets::TierView) -> v1::Tier {
    let spec = view.spec.unwrap_or_default();
    let seat_row = |row: tickets::SeatRowSpec| v1::SeatRow { label: row.label, seats: small(row.seats) };
    v1::Tier {
        tier_id: spec.tier_id,
        display_name: spec.display_name,
        capacity: signed(spec.capacity),
        price: Some(money(spec.currency_code, spec.price_minor_units)),
        seat_rows: spec.seat_rows.into_iter().map(seat_row).collect(),
        free: signed(view.free),
        held: signed(view.held),
        sold: signed(view.sold),
    }
}

/// A hold of `caller`: regions answer only who made a hold about it, and leave it to us to say who that is.
pub(crate) fn hold(region: &str, event: &str, caller: &str, view: tickets::HoldView) -> v1::Hold {
    v1::Hold {
        name: names::hold(region, event, &view.hold_id),
        owner: caller.to_owned(),
        tier_id: view.tier_id,
        quantity: small(view.quantity),
        seats: view.seats,
        expires_at: Some(timestamp(view.expires_at_ms)),
    }
}

pub(crate) fn purchase(region: &str, event: &str, view: tickets::PurchaseView) -> v1::Purchase {
    let first = view.first_number;
    let ticket = |offset: u32| {
        let number = first.saturating_add(u64::from(offset));
        format!("regions/{region}/events/{event}/tickets/{}-{number}", view.tier_id)
    };
    v1::Purchase { tickets: (0..view.count).map(ticket).collect(), tier_id: view.tier_id, seats: view.seats }
}

pub(crate) fn ticket(region: &str, event: &str, view: tickets::TicketView) -> v1::Ticket {
    let state = if view.cancelled { v1::TicketState::Cancelled } else { v1::TicketState::Valid };
    v1::Ticket {
        name: names::ticket(region, event, &view.ticket_id),
        owner: view.owner,
        tier_id: view.tier_id,
        seat: view.seat,
        price: Some(money(view.currency_code, view.price_minor_units)),
        state: state.into(),
        sold_at: Some(timestamp(view.sold_at_ms)),
        request_id: request_id::format(&view.request_id),
    }
}

pub(crate) fn rejection(view: Rejection) -> v1::Rejection {
    v1::Rejection { code: view.code, reason: view.reason, message: view.message }
}

/// Reason of a request id under which nothing was decided and nothing will be.
const SEALED: &str = "REQUEST_ID_SEALED";
/// Reason of a request id that is older than what a region remembers.
const FORGOTTEN: &str = "REQUEST_ID_EXPIRED";

/// What a region says to the seal of a request id of `caller`: what is final.
pub(crate) fn sealed(
    region: &str,
    caller: &str,
    outcome: pb::Outcome,
) -> Result<v1::GetOutcomeResponse, ApiError> {
    match &outcome.result {
        // Refused without a decision: forgotten ids are never decided again, anything else is not final.
        Some(pb::outcome::Result::Rejection(no)) if outcome.receipt.is_none() => {
            if no.reason == FORGOTTEN {
                return remembered(region, caller, pb::OutcomeView { outcome: None, forgotten: true });
            }
            Err(ApiError::Rejected { rejection: no.clone(), receipt: None })
        }
        _ => remembered(region, caller, pb::OutcomeView { outcome: Some(outcome), forgotten: false }),
    }
}

/// What a region remembers of a request that `caller` made.
pub(crate) fn remembered(
    region: &str,
    caller: &str,
    view: pb::OutcomeView,
) -> Result<v1::GetOutcomeResponse, ApiError> {
    use pb::outcome::Result as Stored;
    use v1::get_outcome_response::Result as Shown;
    let empty =
        |state: v1::OutcomeState| v1::GetOutcomeResponse { state: state.into(), ..Default::default() };
    let Some(outcome) = view.outcome else {
        return Ok(empty(if view.forgotten {
            v1::OutcomeState::Forgotten
        } else {
            v1::OutcomeState::Undecided
        }));
    };
    if let Some(Stored::Rejection(no)) = &outcome.result
        && no.reason == SEALED
    {
        let receipt = outcome.receipt.as_ref().map(|receipt| self::receipt(region, receipt));
        return Ok(v1::GetOutcomeResponse { receipt, ..empty(v1::OutcomeState::Sealed) });
    }
    let result = match outcome.result.ok_or_else(mismatch)? {
        Stored::Rejection(view) => Some(Shown::Rejection(rejection(view))),
        Stored::Done(bytes) if outcome.module == u32::from(tickets::MODULE) => {
            Some(ticket_outcome(region, caller, tickets::Outcome::decode(bytes).map_err(|_| mismatch())?)?)
        }
        Stored::Done(bytes) if outcome.module == u32::from(accounts::MODULE) => {
            account_outcome(accounts::Outcome::decode(bytes).map_err(|_| mismatch())?)?
        }
        Stored::Done(_) => return Err(mismatch()),
    };
    Ok(v1::GetOutcomeResponse {
        state: v1::OutcomeState::Decided.into(),
        receipt: outcome.receipt.as_ref().map(|receipt| self::receipt(region, receipt)),
        result,
    })
}

/// What the ticket module decided for a request of `caller`.
fn ticket_outcome(
    region: &str,
    caller: &str,
    outcome: tickets::Outcome,
) -> Result<v1::get_outcome_response::Result, ApiError> {
    use tickets::outcome::Result as Done;
    use v1::get_outcome_response::Result as Shown;
    let event_id = outcome.event_id;
    Ok(match outcome.result.ok_or_else(mismatch)? {
        Done::Event(view) => Shown::Event(event(region, view)),
        Done::Hold(view) => Shown::Hold(hold(region, &event_id, caller, view)),
        Done::Purchase(view) => Shown::Purchase(purchase(region, &event_id, view)),
        Done::Cancelled(view) => Shown::CancelledTicket(names::ticket(region, &event_id, &view.ticket_id)),
        Done::ReleasedHoldId(id) => Shown::ReleasedHold(names::hold(region, &event_id, &id)),
    })
}

/// What the accounts module decided for a request of somebody with a token. Others have no principal to ask as: they repeat.
fn account_outcome(outcome: accounts::Outcome) -> Result<Option<v1::get_outcome_response::Result>, ApiError> {
    use accounts::outcome::Result as Done;
    use v1::get_outcome_response::Result as Shown;
    match outcome.result {
        Some(Done::Account(view)) => Ok(Some(Shown::ChangedAccount(view.subject))),
        // Remembered under an earlier apply version: it was done, and there is nothing to show of it.
        Some(Done::SessionEnded(_)) => Ok(None),
        _ => Err(mismatch()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn done(result: tickets::outcome::Result) -> pb::Outcome {
        let outcome = tickets::Outcome { event_id: "gala".into(), result: Some(result) };
        pb::Outcome {
            module: tickets::MODULE.into(),
            result: Some(pb::outcome::Result::Done(outcome.encode_to_vec().into())),
            ..Default::default()
        }
    }

    #[test]
    fn a_purchase_names_its_tickets_in_order() {
        let view = tickets::PurchaseView { tier_id: "ga".into(), first_number: 9, count: 2, seats: vec![] };
        let tickets = purchase("north", "gala", view).tickets;
        assert_eq!(
            tickets,
            ["regions/north/events/gala/tickets/ga-9", "regions/north/events/gala/tickets/ga-10"]
        );
    }

    #[test]
    fn an_outcome_is_undecided_decided_or_forgotten() {
        let state = |view| remembered("north", "alice", view).unwrap().state();
        assert_eq!(state(pb::OutcomeView::default()), v1::OutcomeState::Undecided);
        let forgotten = pb::OutcomeView { outcome: None, forgotten: true };
        assert_eq!(state(forgotten), v1::OutcomeState::Forgotten);
        let released = pb::Outcome {
            receipt: Some(pb::Receipt { chain_hash: 255, ..Default::default() }),
            ..done(tickets::outcome::Result::ReleasedHoldId("ga-h3".into()))
        };
        let view = pb::OutcomeView { outcome: Some(released), forgotten: false };
        let shown = remembered("north", "alice", view).unwrap();
        assert_eq!(shown.receipt.unwrap().chain_hash, "00000000000000ff");
        let name = "regions/north/events/gala/holds/ga-h3".to_owned();
        assert_eq!(shown.result, Some(v1::get_outcome_response::Result::ReleasedHold(name)));
        let foreign =
            pb::Outcome { module: 99, ..done(tickets::outcome::Result::ReleasedHoldId("x".into())) };
        for senseless in [pb::Outcome::default(), foreign] {
            assert!(decided::<tickets::Outcome>("north", tickets::MODULE, senseless.clone()).is_err());
            let view = pb::OutcomeView { outcome: Some(senseless), forgotten: false };
            assert!(remembered("north", "alice", view).is_err());
        }
    }

    #[test]
    fn a_seal_is_answered_with_what_is_final() {
        let no = |reason: &str, receipt: Option<pb::Receipt>| pb::Outcome {
            receipt,
            result: Some(pb::outcome::Result::Rejection(Rejection {
                reason: reason.into(),
                code: 9,
                ..Default::default()
            })),
            ..Default::default()
        };
        let state = |outcome| sealed("north", "alice", outcome).map(|outcome| outcome.state());
        let receipt = Some(pb::Receipt::default());
        assert_eq!(state(no("REQUEST_ID_SEALED", receipt)).unwrap(), v1::OutcomeState::Sealed);
        assert_eq!(state(no("SOLD_OUT", receipt)).unwrap(), v1::OutcomeState::Decided);
        assert_eq!(state(no("REQUEST_ID_EXPIRED", None)).unwrap(), v1::OutcomeState::Forgotten);
        for reason in ["EXPIRED", "REQUEST_ID_INVALID"] {
            assert!(state(no(reason, None)).is_err(), "{reason} is not final");
        }
    }

    #[test]
    fn a_remembered_hold_belongs_to_the_caller() {
        let view = tickets::HoldView { hold_id: "ga-h3".into(), ..Default::default() };
        let held = done(tickets::outcome::Result::Hold(view));
        let view = pb::OutcomeView { outcome: Some(held), forgotten: false };
        let Some(v1::get_outcome_response::Result::Hold(hold)) =
            remembered("north", "alice", view).unwrap().result
        else {
            panic!("a hold")
        };
        assert_eq!(hold.owner, "alice");
        assert_eq!(hold.name, "regions/north/events/gala/holds/ga-h3");
    }

    #[test]
    fn a_rejection_is_an_error_and_times_are_exact() {
        let rejected = pb::Outcome {
            result: Some(pb::outcome::Result::Rejection(Rejection::default())),
            ..Default::default()
        };
        assert!(matches!(
            decided::<tickets::Outcome>("north", 1, rejected),
            Err(ApiError::Rejected { receipt: None, .. })
        ));
        assert_eq!(timestamp(1_700_000_000_123), Timestamp { seconds: 1_700_000_000, nanos: 123_000_000 });
        assert_eq!(optional_timestamp(0), None);
    }
}
