//! `TicketService`: hold, confirm, release, buy, cancel; [`reads`] looks up.

mod reads;

use prost::Message as _;
use tidewall_client::seen_in;
use tidewall_messages::tickets;
use tidewall_messages::tickets::outcome::Result as Done;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::ticket_service_server::TicketService;
use tonic::{Request, Response, Status};

use super::{Ask, Services};
use crate::convert::Decided;
use crate::edge::{Call, Method, fingerprint};
use crate::errors::{ApiError, batch_refusal, is_undecided};
use crate::names::EventName;
use crate::{convert, names, request_id, validate};

/// An item of a batch costs about this part of a single call.
const BATCH_ITEMS_PER_WEIGHT: usize = 64;

/// One purchase of a batch as a command.
fn batch_command(
    call: &Call,
    name: EventName<'_>,
    position: usize,
    purchase: v1::BatchPurchase,
) -> Result<pb::Command, ApiError> {
    let prefix = format!("purchases[{position}].");
    validate::buyer(&format!("{prefix}buyer"), &purchase.buyer)?;
    let place = names::event(name.region, name.event);
    let fingerprint = fingerprint("BatchBuyTickets", &[place.as_bytes(), &purchase.encode_to_vec()]);
    let request_id = request_id::parse(&format!("{prefix}request_id"), &purchase.request_id, call.now_ms)?;
    let places = validate::places(&prefix, purchase.tier_id, purchase.quantity, Vec::new())?;
    let buy = tickets::Buy {
        event_id: name.event.to_owned(),
        tier_id: places.tier_id,
        quantity: places.quantity,
        seats: places.seats,
        buyer: purchase.buyer,
    };
    Ok(pb::Command {
        module: tickets::MODULE.into(),
        payload: tickets::Command::from(buy).encode_to_vec().into(),
        row: name.event.to_owned(),
        logged: true,
        ..call.command(request_id, fingerprint)
    })
}

/// The purchase that a command of the batch led to.
fn purchase(done: &[u8]) -> Option<tickets::PurchaseView> {
    match tickets::Outcome::decode(done).ok()?.result? {
        Done::Purchase(view) => Some(view),
        _ => None,
    }
}

fn batch_result(name: EventName<'_>, item: pb::BatchItem) -> v1::BatchBuyTicketsResult {
    use pb::outcome::Result as Stored;
    use v1::batch_buy_tickets_result::Result as Shown;
    let undecided = |refusal: &pb::Refusal| {
        let (code, reason, message) = batch_refusal(refusal);
        Shown::Undecided(v1::Rejection { code: code.into(), reason: reason.to_owned(), message })
    };
    let unknown = |message: &str| {
        undecided(&pb::Refusal {
            kind: pb::RefusalKind::Unknown.into(),
            message: message.to_owned(),
            ..Default::default()
        })
    };
    let (result, receipt) = match item.result {
        Some(pb::batch_item::Result::Outcome(outcome)) => {
            let result = match outcome.result {
                Some(Stored::Done(bytes)) => match purchase(&bytes) {
                    Some(view) => Shown::Purchase(convert::purchase(name.region, name.event, view)),
                    None => unknown("the region answered with something else than a purchase"),
                },
                Some(Stored::Rejection(view)) if is_undecided(&view) => {
                    Shown::Undecided(convert::rejection(view))
                }
                Some(Stored::Rejection(view)) => Shown::Rejection(convert::rejection(view)),
                None => unknown("the region answered with nothing"),
            };
            (result, outcome.receipt)
        }
        Some(pb::batch_item::Result::Refusal(refusal)) => (undecided(&refusal), None),
        None => (unknown("the region did not answer this purchase"), None),
    };
    v1::BatchBuyTicketsResult {
        result: Some(result),
        receipt: receipt.as_ref().map(|receipt| convert::receipt(name.region, receipt)),
    }
}

impl Services {
    /// Has a command about an event decided; its outcome is told by kind.
    pub(super) async fn tickets(
        &self,
        call: &Call,
        name: EventName<'_>,
        request_id: Vec<u8>,
        command: impl Into<tickets::Command>,
    ) -> Result<Decided<Done>, ApiError> {
        let ask = Ask { region: name.region, row: name.event, request_id, command: command.into() };
        let Decided { outcome, receipt } = self.command::<_, tickets::Outcome>(call, ask).await?;
        Ok(Decided { outcome: outcome.result.ok_or_else(convert::mismatch)?, receipt })
    }
}

#[tonic::async_trait]
impl TicketService for Services {
    async fn hold_tickets(
        &self,
        request: Request<v1::HoldTicketsRequest>,
    ) -> Result<Response<v1::HoldTicketsResponse>, Status> {
        let handler = |call: Call, message: v1::HoldTicketsRequest| async move {
            let name = names::parse_event("parent", &message.parent)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let places = validate::places("", message.tier_id, message.quantity, message.seats)?;
            let hold = tickets::Hold {
                event_id: name.event.to_owned(),
                tier_id: places.tier_id,
                quantity: places.quantity,
                seats: places.seats,
                ttl_ms: validate::ttl_ms(message.ttl.as_ref())?,
            };
            let decided = self.tickets(&call, name, id, hold).await?;
            let Done::Hold(view) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::HoldTicketsResponse {
                hold: Some(convert::hold(name.region, name.event, &call.principal.subject, view)),
                receipt: decided.receipt,
            })
        };
        self.0.run(Method::HoldTickets, request, handler).await
    }

    async fn get_hold(
        &self,
        request: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        self.0.run(Method::GetHold, request, |call, message| self.get_hold_as(call, message)).await
    }

    async fn list_holds(
        &self,
        request: Request<v1::ListHoldsRequest>,
    ) -> Result<Response<v1::ListHoldsResponse>, Status> {
        self.0.run(Method::ListHolds, request, |call, message| self.list_holds_as(call, message)).await
    }

    async fn confirm_hold(
        &self,
        request: Request<v1::ConfirmHoldRequest>,
    ) -> Result<Response<v1::ConfirmHoldResponse>, Status> {
        let handler = |call: Call, message: v1::ConfirmHoldRequest| async move {
            let name = names::parse_hold("name", &message.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let EventName { region, event } = name.event;
            let confirm = tickets::ConfirmHold { event_id: event.to_owned(), hold_id: name.id.to_owned() };
            let decided = self.tickets(&call, name.event, id, confirm).await?;
            let Done::Purchase(view) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::ConfirmHoldResponse {
                purchase: Some(convert::purchase(region, event, view)),
                receipt: decided.receipt,
            })
        };
        self.0.run(Method::ConfirmHold, request, handler).await
    }

    async fn release_hold(
        &self,
        request: Request<v1::ReleaseHoldRequest>,
    ) -> Result<Response<v1::ReleaseHoldResponse>, Status> {
        let handler = |call: Call, message: v1::ReleaseHoldRequest| async move {
            let name = names::parse_hold("name", &message.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let event = name.event.event;
            let release = tickets::ReleaseHold { event_id: event.to_owned(), hold_id: name.id.to_owned() };
            let decided = self.tickets(&call, name.event, id, release).await?;
            let Done::ReleasedHoldId(_) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::ReleaseHoldResponse { receipt: decided.receipt })
        };
        self.0.run(Method::ReleaseHold, request, handler).await
    }

    async fn buy_tickets(
        &self,
        request: Request<v1::BuyTicketsRequest>,
    ) -> Result<Response<v1::BuyTicketsResponse>, Status> {
        let handler = |call: Call, message: v1::BuyTicketsRequest| async move {
            let name = names::parse_event("parent", &message.parent)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let places = validate::places("", message.tier_id, message.quantity, message.seats)?;
            let buy = tickets::Buy {
                event_id: name.event.to_owned(),
                tier_id: places.tier_id,
                quantity: places.quantity,
                seats: places.seats,
                buyer: String::new(),
            };
            let decided = self.tickets(&call, name, id, buy).await?;
            let Done::Purchase(view) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::BuyTicketsResponse {
                purchase: Some(convert::purchase(name.region, name.event, view)),
                receipt: decided.receipt,
            })
        };
        self.0.run(Method::BuyTickets, request, handler).await
    }

    async fn batch_buy_tickets(
        &self,
        request: Request<v1::BatchBuyTicketsRequest>,
    ) -> Result<Response<v1::BatchBuyTicketsResponse>, Status> {
        let handler = |call: Call, message: v1::BatchBuyTicketsRequest| async move {
            let name = names::parse_event("parent", &message.parent)?;
            let count = message.purchases.len();
            if !(1..=validate::BATCH_MAX).contains(&count) {
                return Err(ApiError::field(
                    "purchases",
                    format!("must be 1 to {} purchases, not {count}", validate::BATCH_MAX),
                ));
            }
            let commands: Result<Vec<_>, _> = message
                .purchases
                .into_iter()
                .enumerate()
                .map(|(position, purchase)| batch_command(&call, name, position, purchase))
                .collect();
            let batch = pb::CommandBatch { commands: commands? };
            let answer = self.0.client.batch(call.group, batch, call.deadline.at).await;
            let answer = answer.map_err(|error| ApiError::Client { error, request_id: None })?;
            for item in &answer.items {
                if let Some(pb::batch_item::Result::Outcome(outcome)) = &item.result
                    && let Some(seen) = seen_in(outcome)
                {
                    call.seen.note(call.group, seen);
                }
            }
            let results = answer.items.into_iter().map(|item| batch_result(name, item)).collect();
            Ok(v1::BatchBuyTicketsResponse { results })
        };
        // A batch counts for more than a single call.
        let weight = 1 + request.get_ref().purchases.len() / BATCH_ITEMS_PER_WEIGHT;
        self.0.run_weighing(Method::BatchBuyTickets, request, weight, handler).await
    }

    async fn cancel_ticket(
        &self,
        request: Request<v1::CancelTicketRequest>,
    ) -> Result<Response<v1::CancelTicketResponse>, Status> {
        let handler = |call: Call, message: v1::CancelTicketRequest| async move {
            let name = names::parse_ticket("name", &message.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let EventName { region, event } = name.event;
            let cancel = tickets::CancelTicket { event_id: event.to_owned(), ticket_id: name.id.to_owned() };
            let decided = self.tickets(&call, name.event, id, cancel).await?;
            let Done::Cancelled(view) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::CancelTicketResponse {
                ticket: Some(convert::ticket(region, event, view)),
                receipt: decided.receipt,
            })
        };
        self.0.run(Method::CancelTicket, request, handler).await
    }

    async fn get_ticket(
        &self,
        request: Request<v1::GetTicketRequest>,
    ) -> Result<Response<v1::GetTicketResponse>, Status> {
        self.0.run(Method::GetTicket, request, |call, message| self.get_ticket_as(call, message)).await
    }

    async fn list_tickets(
        &self,
        request: Request<v1::ListTicketsRequest>,
    ) -> Result<Response<v1::ListTicketsResponse>, Status> {
        self.0.run(Method::ListTickets, request, |call, message| self.list_tickets_as(call, message)).await
    }

    async fn search_tickets(
        &self,
        request: Request<v1::SearchTicketsRequest>,
    ) -> Result<Response<v1::SearchTicketsResponse>, Status> {
        self.0
            .run(Method::SearchTickets, request, |call, message| self.search_tickets_as(call, message))
            .await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_item_that_came_too_late_is_undecided_and_other_rejections_are_decided() {
        use v1::batch_buy_tickets_result::Result as Shown;
        let shown = |reason: &str, code: tonic::Code| {
            let view = tidewall_messages::Rejection {
                reason: reason.into(),
                code: code.into(),
                ..Default::default()
            };
            let outcome =
                pb::Outcome { result: Some(pb::outcome::Result::Rejection(view)), ..Default::default() };
            let item = pb::BatchItem { result: Some(pb::batch_item::Result::Outcome(outcome)) };
            batch_result(EventName { region: "north", event: "gala" }, item).result.unwrap()
        };
        let expired = shown("EXPIRED", tonic::Code::DeadlineExceeded);
        let late = i32::from(tonic::Code::DeadlineExceeded);
        assert!(
            matches!(&expired, Shown::Undecided(no) if (no.reason.as_str(), no.code) == ("EXPIRED", late)),
            "{expired:?}"
        );
        for reason in ["SOLD_OUT", "HOLD_EXPIRED", "REQUEST_ID_EXPIRED"] {
            let decided = shown(reason, tonic::Code::FailedPrecondition);
            assert!(matches!(&decided, Shown::Rejection(no) if no.reason == reason), "{decided:?}");
        }
    }
}
