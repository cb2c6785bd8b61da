//! A plain gRPC client as a customer would write it from the .proto files, and helpers to state what answer a
//! test expects.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use tidewall_proto::v1::account_service_client::AccountServiceClient;
use tidewall_proto::v1::change_service_client::ChangeServiceClient;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::region_service_client::RegionServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tidewall_proto::v1::webhook_service_client::WebhookServiceClient;
use tidewall_proto::v1::*;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

/// Deadline of a call unless the test sets another.
pub const CALL_WITHIN: Duration = Duration::from_secs(20);

/// A caller: a connection and a token.
#[derive(Clone)]
pub struct Session {
    channel: Channel,
    authorization: MetadataValue<Ascii>,
}

impl Session {
    /// A session with this gateway; it connects with the first call and reconnects by itself.
    ///
    /// # Errors
    /// When the address or the token cannot be used.
    pub fn new(gateway: &str, token: &str) -> anyhow::Result<Self> {
        let channel = Endpoint::new(gateway.to_owned())?
            .connect_timeout(Duration::from_secs(2))
            .tcp_nodelay(true)
            .connect_lazy();
        Ok(Self { channel, authorization: format!("Bearer {token}").parse()? })
    }

    /// Another caller on the same connection.
    ///
    /// # Errors
    /// When the token cannot be used.
    pub fn with_token(&self, token: &str) -> anyhow::Result<Self> {
        Ok(Self { channel: self.channel.clone(), authorization: format!("Bearer {token}").parse()? })
    }

    /// A request with token and deadline.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = self.request_without_deadline(message);
        request.set_timeout(CALL_WITHIN);
        request
    }

    /// A request with a token only.
    pub fn request_without_deadline<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", self.authorization.clone());
        request
    }

    /// The account service.
    pub fn accounts(&self) -> AccountServiceClient<Channel> {
        AccountServiceClient::new(self.channel.clone())
    }

    /// The event service.
    pub fn events(&self) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel.clone())
    }

    /// The ticket service.
    pub fn tickets(&self) -> TicketServiceClient<Channel> {
        TicketServiceClient::new(self.channel.clone())
    }

    /// The change service.
    pub fn changes(&self) -> ChangeServiceClient<Channel> {
        ChangeServiceClient::new(self.channel.clone())
    }

    /// The webhook service.
    pub fn webhooks(&self) -> WebhookServiceClient<Channel> {
        WebhookServiceClient::new(self.channel.clone())
    }

    /// The outcome service.
    pub fn outcomes(&self) -> OutcomeServiceClient<Channel> {
        OutcomeServiceClient::new(self.channel.clone())
    }

    /// The region service.
    pub fn regions(&self) -> RegionServiceClient<Channel> {
        RegionServiceClient::new(self.channel.clone())
    }

    /// The operator service.
    pub fn operator(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel.clone())
    }

    /// Status of all regions.
    ///
    /// # Errors
    /// The call's status.
    pub async fn region_statuses(&self) -> Result<Vec<RegionStatus>, Status> {
        let response =
            self.operator().list_region_statuses(self.request(ListRegionStatusesRequest::default())).await?;
        Ok(response.into_inner().regions)
    }

    /// Names of all regions.
    ///
    /// # Errors
    /// The call's status.
    pub async fn region_names(&self) -> Result<Vec<String>, Status> {
        let request = ListRegionsRequest { page_size: 0, page_token: String::new() };
        let response = self.regions().list_regions(self.request(request)).await?.into_inner();
        Ok(response.regions.into_iter().map(|region| region.name).collect())
    }

    /// Creates an event and returns it.
    ///
    /// # Errors
    /// The call's status.
    pub async fn create_event(&self, region: &str, event: Event) -> Result<Event, Status> {
        let request = CreateEventRequest {
            parent: region.into(),
            event_id: String::new(),
            event: Some(event),
            request_id: request_id(),
        };
        let response =
            retried(async || self.events().create_event(self.request(request.clone())).await).await?;
        response.into_inner().event.ok_or_else(|| Status::internal("the answer has no event"))
    }

    /// The event as it is now.
    ///
    /// # Errors
    /// The call's status.
    pub async fn event(&self, name: &str) -> Result<Event, Status> {
        let request = GetEventRequest { name: name.into(), ..Default::default() };
        let response = retried(async || self.events().get_event(self.request(request.clone())).await).await?;
        response.into_inner().event.ok_or_else(|| Status::internal("the answer has no event"))
    }

    /// Buys with a request id that the caller keeps, retrying as common.proto tells clients to.
    ///
    /// # Errors
    /// The status of the last attempt.
    pub async fn buy(
        &self,
        event: &str,
        tier: &str,
        quantity: i32,
        request_id: &str,
    ) -> Result<BuyTicketsResponse, Status> {
        let request = buy_request(event, tier, quantity, request_id);
        retried(async || self.tickets().buy_tickets(self.request(request.clone())).await)
            .await
            .map(Response::into_inner)
    }

    /// Holds places for five minutes.
    ///
    /// # Errors
    /// The call's status.
    pub async fn hold(&self, event: &str, tier: &str, quantity: i32) -> Result<Hold, Status> {
        let request = HoldTicketsRequest {
            parent: event.into(),
            tier_id: tier.into(),
            quantity,
            seats: Vec::new(),
            ttl: None,
            request_id: request_id(),
        };
        let response =
            retried(async || self.tickets().hold_tickets(self.request(request.clone())).await).await?;
        response.into_inner().hold.ok_or_else(|| Status::internal("the answer has no hold"))
    }

    /// All tickets of an event that this caller may see: its own, or with `owner` `*` everybody's.
    ///
    /// # Errors
    /// The status of the page that failed.
    pub async fn tickets_of(&self, event: &str, owner: &str) -> Result<Vec<Ticket>, Status> {
        let mut tickets = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = ListTicketsRequest {
                parent: event.into(),
                owner: owner.into(),
                page_size: 5000,
                page_token: page_token.clone(),
                ..ListTicketsRequest::default()
            };
            let page = retried(async || self.tickets().list_tickets(self.request(request.clone())).await)
                .await?
                .into_inner();
            tickets.extend(page.tickets);
            if page.next_page_token.is_empty() {
                return Ok(tickets);
            }
            page_token = page.next_page_token;
        }
    }

    /// What was decided for one of this caller's requests.
    ///
    /// # Errors
    /// The call's status.
    pub async fn outcome(&self, region: &str, request_id: &str) -> Result<GetOutcomeResponse, Status> {
        let request = GetOutcomeRequest { parent: region.into(), request_id: request_id.into() };
        retried(async || self.outcomes().get_outcome(self.request(request.clone())).await)
            .await
            .map(Response::into_inner)
    }
}

/// A fresh request id.
pub fn request_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

/// A request to buy.
pub fn buy_request(event: &str, tier: &str, quantity: i32, request_id: &str) -> BuyTicketsRequest {
    BuyTicketsRequest {
        parent: event.into(),
        tier_id: tier.into(),
        quantity,
        seats: Vec::new(),
        request_id: request_id.into(),
    }
}

/// A tier without numbered seats.
pub fn tier(id: &str, capacity: i64) -> Tier {
    Tier {
        tier_id: id.into(),
        display_name: format!("Tier {id}"),
        capacity,
        price: Some(Money { currency_code: "EUR".into(), minor_units: 4_500 }),
        ..Tier::default()
    }
}

/// An event of these tiers, on sale at once.
pub fn event_of(tiers: Vec<Tier>) -> Event {
    Event { display_name: "Gala".into(), tiers, quota_per_buyer: 100_000, ..Event::default() }
}

/// Home region of an event.
pub fn region_of(event: &str) -> &str {
    event.split_once("/events/").map_or(event, |(region, _)| region)
}

/// Whether the answer says "send the same request again".
pub fn is_retryable(status: &Status) -> bool {
    matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::ResourceExhausted)
        // A connection that broke in the middle of an answer: nobody decided this code.
        || (matches!(status.code(), Code::Unknown | Code::Cancelled) && status.get_details_error_info().is_none())
}

/// Makes a call again for up to a minute while its answer says so. Whoever passes a mutation passes the same
/// request id each time.
///
/// # Errors
/// The last status.
pub async fn retried<T>(mut call: impl AsyncFnMut() -> Result<T, Status>) -> Result<T, Status> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match call().await {
            Err(status) if is_retryable(&status) && Instant::now() < deadline => {
                let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
                tokio::time::sleep(wait.unwrap_or(Duration::from_millis(50)).min(Duration::from_secs(1)))
                    .await;
            }
            other => return other,
        }
    }
}

/// States that a call was refused with this code and reason, as common.proto promises: with the domain, the
/// reason and a message.
///
/// # Errors
/// Says what came instead.
pub fn expect_refusal<T: std::fmt::Debug>(
    what: &str,
    result: Result<T, Status>,
    code: Code,
    reason: &str,
) -> anyhow::Result<()> {
    let status = match result {
        Ok(answer) => anyhow::bail!("{what}: expected {code:?}/{reason}, was accepted: {answer:?}"),
        Err(status) => status,
    };
    let info = status.get_details_error_info().with_context(|| {
        format!("{what}: expected {code:?}/{reason}, got an error without ErrorInfo: {status:?}")
    })?;
    anyhow::ensure!(
        status.code() == code && info.reason == reason && info.domain == "tidewall",
        "{what}: expected {code:?}/{reason} of tidewall, got {:?}/{} of {}: {}",
        status.code(),
        info.reason,
        info.domain,
        status.message()
    );
    anyhow::ensure!(!status.message().trim().is_empty(), "{what}: the error has no message");
    Ok(())
}
