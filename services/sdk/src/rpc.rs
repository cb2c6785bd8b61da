//! The methods of the public API as types: which request goes to which service and yields which answer, and which
//! requests carry an id. Nothing here retries.

use std::future::Future;
use std::time::Duration;

use tidewall_proto::v1;
use tidewall_proto::v1::change_service_client::ChangeServiceClient;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::region_service_client::RegionServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

/// Largest answer that is accepted: a page of 5000 tickets has about 1.5 MB.
const ANSWER_BYTES_MAX: usize = 32 << 20;

/// A request that knows its method.
pub(crate) trait Rpc: Clone + Send + Sync + 'static {
    /// What a success yields.
    type Answer: Send + 'static;
    /// Service and method.
    const METHOD: &'static str;
    /// It asks for rows, which may be wanted no older than what was seen.
    const READS: bool = false;
    /// How long its answer may go on, when that is more than an attempt takes.
    const LASTS: Option<Duration> = None;

    /// Sends it once.
    fn send(
        channel: Channel,
        request: Request<Self>,
    ) -> impl Future<Output = Result<Response<Self::Answer>, Status>> + Send;
}

/// A request that changes something.
pub(crate) trait Mutation: Rpc {
    /// The resource that it is sent to; empty when the caller named none.
    fn resource(&self) -> &str;

    /// Its request id; empty until one is made.
    fn request_id(&mut self) -> &mut String;
}

macro_rules! rpc {
    ($reads:literal: $($request:ident => $answer:ident, $client:ident.$call:ident, $method:literal;)*) => {
        $(impl Rpc for v1::$request {
            type Answer = v1::$answer;
            const METHOD: &'static str = $method;
            const READS: bool = $reads;

            async fn send(
                channel: Channel,
                request: Request<Self>,
            ) -> Result<Response<Self::Answer>, Status> {
                $client::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).$call(request).await
            }
        })*
    };
}

rpc! { true:
    GetEventRequest => GetEventResponse, EventServiceClient.get_event,
        "tidewall.v1.EventService/GetEvent";
    ListEventsRequest => ListEventsResponse, EventServiceClient.list_events,
        "tidewall.v1.EventService/ListEvents";
    GetHoldRequest => GetHoldResponse, TicketServiceClient.get_hold,
        "tidewall.v1.TicketService/GetHold";
    ListHoldsRequest => ListHoldsResponse, TicketServiceClient.list_holds,
        "tidewall.v1.TicketService/ListHolds";
    SearchTicketsRequest => SearchTicketsResponse, TicketServiceClient.search_tickets,
        "tidewall.v1.TicketService/SearchTickets";
    GetTicketRequest => GetTicketResponse, TicketServiceClient.get_ticket,
        "tidewall.v1.TicketService/GetTicket";
    ListTicketsRequest => ListTicketsResponse, TicketServiceClient.list_tickets,
        "tidewall.v1.TicketService/ListTickets";
}

rpc! { false:
    ListRegionsRequest => ListRegionsResponse, RegionServiceClient.list_regions,
        "tidewall.v1.RegionService/ListRegions";
    GetRegionRequest => GetRegionResponse, RegionServiceClient.get_region,
        "tidewall.v1.RegionService/GetRegion";
    CreateEventRequest => CreateEventResponse, EventServiceClient.create_event,
        "tidewall.v1.EventService/CreateEvent";
    UpdateEventRequest => UpdateEventResponse, EventServiceClient.update_event,
        "tidewall.v1.EventService/UpdateEvent";
    DeleteEventRequest => DeleteEventResponse, EventServiceClient.delete_event,
        "tidewall.v1.EventService/DeleteEvent";
    HoldTicketsRequest => HoldTicketsResponse, TicketServiceClient.hold_tickets,
        "tidewall.v1.TicketService/HoldTickets";
    ConfirmHoldRequest => ConfirmHoldResponse, TicketServiceClient.confirm_hold,
        "tidewall.v1.TicketService/ConfirmHold";
    ReleaseHoldRequest => ReleaseHoldResponse, TicketServiceClient.release_hold,
        "tidewall.v1.TicketService/ReleaseHold";
    BuyTicketsRequest => BuyTicketsResponse, TicketServiceClient.buy_tickets,
        "tidewall.v1.TicketService/BuyTickets";
    BatchBuyTicketsRequest => BatchBuyTicketsResponse, TicketServiceClient.batch_buy_tickets,
        "tidewall.v1.TicketService/BatchBuyTickets";
    CancelTicketRequest => CancelTicketResponse, TicketServiceClient.cancel_ticket,
        "tidewall.v1.TicketService/CancelTicket";
    GetOutcomeRequest => GetOutcomeResponse, OutcomeServiceClient.get_outcome,
        "tidewall.v1.OutcomeService/GetOutcome";
    SealRequestIdRequest => SealRequestIdResponse, OutcomeServiceClient.seal_request_id,
        "tidewall.v1.OutcomeService/SealRequestId";
}

impl Rpc for v1::WatchRequest {
    type Answer = Streaming<v1::WatchResponse>;
    const METHOD: &'static str = "tidewall.v1.ChangeService/Watch";
    const LASTS: Option<Duration> = Some(Duration::from_secs(3_600));

    async fn send(channel: Channel, request: Request<Self>) -> Result<Response<Self::Answer>, Status> {
        ChangeServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX).watch(request).await
    }
}

macro_rules! mutation {
    ($($request:ident by $field:ident;)*) => {
        $(impl Mutation for v1::$request {
            fn resource(&self) -> &str {
                &self.$field
            }

            fn request_id(&mut self) -> &mut String {
                &mut self.request_id
            }
        })*
    };
}

mutation! {
    CreateEventRequest by parent;
    HoldTicketsRequest by parent;
    ConfirmHoldRequest by name;
    ReleaseHoldRequest by name;
    BuyTicketsRequest by parent;
    CancelTicketRequest by name;
    DeleteEventRequest by name;
}

impl Mutation for v1::UpdateEventRequest {
    fn resource(&self) -> &str {
        self.event.as_ref().map_or("", |event| &event.name)
    }

    fn request_id(&mut self) -> &mut String {
        &mut self.request_id
    }
}
