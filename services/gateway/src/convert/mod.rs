//! What the regions answer, in the words of the public API. Only translation: nothing is decided and nothing is
//! checked here but that an answer has the shape its command asks for. Each module's part is a file of its own.

mod accounts;
mod tickets;
mod webhooks;

use prost_types::{Duration, Timestamp};
use tidewall_messages::{Change, Rejection};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;

use crate::errors::ApiError;
use crate::feed::Place;
use crate::names;

pub(crate) use tickets::{event, hold, purchase, ticket};
pub(crate) use webhooks::webhook;

/// Where and for whom something was decided.
#[derive(Clone, Copy)]
struct Decider<'a> {
    region: &'a str,
    caller: &'a str,
}

/// Shows what a module decided, from the bytes of its outcome. `None`: it was done, and there is nothing to show of it.
type Show = fn(Decider<'_>, &[u8]) -> Result<Option<v1::get_outcome_response::Result>, ApiError>;

/// Modules of which `GetOutcome` shows outcomes.
const MODULES: &[(u8, Show)] = &[
    (tidewall_messages::tickets::MODULE, tickets::show),
    (tidewall_messages::accounts::MODULE, accounts::show),
    (tidewall_messages::webhooks::MODULE, webhooks::show),
];

/// Shows a change that a module tells, from its bytes. `None`: there is nothing to show of it.
type Tell = fn(&str, &Change) -> Result<Option<v1::Change>, ApiError>;

/// Modules of which changes are shown.
const TELLING: &[(u8, Tell)] = &[
    (tidewall_messages::tickets::MODULE, tickets::change),
    (tidewall_messages::accounts::MODULE, accounts::change),
];

/// A change that a region tells.
pub(crate) fn change(
    region: &str,
    change: &Change,
    place: Place,
    log_ms: u64,
) -> Result<Option<v1::Change>, ApiError> {
    let tell = TELLING.iter().find(|(module, _)| u32::from(*module) == change.module);
    let Some((_, tell)) = tell else { return Ok(None) };
    let shown = tell(region, change)?;
    Ok(shown.map(|shown| v1::Change {
        place: Some(place.into()),
        change_time: Some(timestamp(log_ms)),
        owner: change.owner.clone(),
        ..shown
    }))
}

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
pub(crate) fn duration_ms(ms: i64) -> Option<Duration> {
    let nanos = i32::try_from(ms % 1_000 * 1_000_000).unwrap_or(0);
    (ms != 0).then_some(Duration { seconds: ms / 1_000, nanos })
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
        decide_time: Some(timestamp(receipt.decided_at_ms)),
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
        Stored::Done(bytes) => {
            let module = MODULES.iter().find(|(module, _)| outcome.module == u32::from(*module));
            let (_, show) = module.ok_or_else(mismatch)?;
            show(Decider { region, caller }, &bytes)?
        }
    };
    Ok(v1::GetOutcomeResponse {
        state: v1::OutcomeState::Decided.into(),
        receipt: outcome.receipt.as_ref().map(|receipt| self::receipt(region, receipt)),
        result,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use prost::Message as _;
    use tidewall_messages::tickets;

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
        assert_eq!(super::tickets::optional_timestamp(0), None);
    }
}
