//! Gateways in this process that can be told to misbehave, in front of one region that remembers request ids as a
//! real one does. Each gateway has a runtime of its own, so that it can die with all its connections.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::stream::{self, BoxStream, StreamExt as _};
use parking_lot::Mutex;
use tidewall_sdk::api;
use tidewall_sdk::api::batch_buy_tickets_result::Result as ItemResult;
use tidewall_sdk::api::change_service_server::{ChangeService, ChangeServiceServer};
use tidewall_sdk::api::get_outcome_response::Result as Remembered;
use tidewall_sdk::api::outcome_service_server::{OutcomeService, OutcomeServiceServer};
use tidewall_sdk::api::ticket_service_server::{TicketService, TicketServiceServer};
use tokio::runtime::Runtime;
use tokio::sync::Notify;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// What happens to a call.
#[derive(Debug, Clone)]
pub enum Act {
    /// It is answered with this error and not executed.
    Fail(Status),
    /// It is executed and the answer never comes; who waits for `stuck` is woken.
    Swallow,
    /// It is not executed and the answer never comes.
    Hang,
    /// Of a batch: every second purchase is left undecided for this reason.
    LeaveHalf(Code, &'static str),
    /// Of a batch: every purchase is told this "no", with a receipt (so it is remembered) or without.
    Reject(&'static str, bool),
    /// It is answered with a page, an event and so on, as if nothing was wrong.
    Serve,
}

/// A call as it arrived.
#[derive(Debug, Clone)]
pub struct Arrival {
    pub gateway: usize,
    pub at: Instant,
    pub request_id: String,
    pub authorization: String,
    pub timeout: String,
}

/// Something that is called with a request id.
type Called = Box<dyn Fn(&str) + Send>;

/// The region behind the gateways.
#[derive(Default)]
pub struct Region {
    pub acts: Mutex<VecDeque<Act>>,
    pub arrivals: Mutex<Vec<Arrival>>,
    /// Executed purchases, by request id; `Err` is a remembered rejection.
    pub decided: Mutex<BTreeMap<String, Result<api::Purchase, api::Rejection>>>,
    /// How often something was executed.
    pub executed: Mutex<u32>,
    /// Ids under which nothing may be decided any more.
    pub sealed: Mutex<std::collections::BTreeSet<String>>,
    /// What GetOutcome says of ids that are not there.
    pub forgotten: Mutex<bool>,
    /// Woken when a call was swallowed or hangs.
    pub stuck: Notify,
    /// What the next watches are told, one after the other; nothing, for ever, when there is none left.
    pub told: Mutex<VecDeque<Vec<Result<api::WatchResponse, Status>>>>,
    /// What was asked of them.
    pub watched: Mutex<Vec<api::WatchRequest>>,
    /// Called with each request id when it arrives.
    pub on_arrival: Mutex<Option<Called>>,
}

impl Region {
    pub fn will(&self, acts: impl IntoIterator<Item = Act>) {
        self.acts.lock().extend(acts);
    }

    pub fn ids(&self) -> Vec<String> {
        self.arrivals.lock().iter().map(|arrival| arrival.request_id.clone()).collect()
    }

    fn outcome(&self, parent: &str, request_id: &str) -> Result<api::GetOutcomeResponse, Status> {
        if parent != "regions/north" {
            return Err(status(Code::NotFound, "REGION_NOT_FOUND", None));
        }
        let decided = self.decided.lock();
        let (state, result) = match decided.get(request_id) {
            Some(Ok(purchase)) => (api::OutcomeState::Decided, Some(Remembered::Purchase(purchase.clone()))),
            Some(Err(no)) => (api::OutcomeState::Decided, Some(Remembered::Rejection(no.clone()))),
            None if self.sealed.lock().contains(request_id) => (api::OutcomeState::Sealed, None),
            None if *self.forgotten.lock() => (api::OutcomeState::Forgotten, None),
            None => (api::OutcomeState::Undecided, None),
        };
        Ok(api::GetOutcomeResponse { state: state.into(), receipt: None, result })
    }

    fn buy(&self, request_id: &str) -> Result<api::Purchase, api::Rejection> {
        let mut decided = self.decided.lock();
        if let Some(known) = decided.get(request_id) {
            return known.clone();
        }
        if self.sealed.lock().contains(request_id) {
            return Err(api::Rejection {
                code: Code::FailedPrecondition.into(),
                reason: "REQUEST_ID_SEALED".into(),
                message: "sealed".into(),
            });
        }
        let mut executed = self.executed.lock();
        *executed += 1;
        let ticket = format!("regions/north/events/gala/tickets/ga-{executed}");
        let purchase = api::Purchase { tickets: vec![ticket], tier_id: "ga".into(), seats: vec![] };
        decided.insert(request_id.to_owned(), Ok(purchase.clone()));
        Ok(purchase)
    }
}

/// A status as the gateway words it.
pub fn status(code: Code, reason: &str, retry_after: Option<Duration>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "tidewall", std::collections::HashMap::new());
    if let Some(delay) = retry_after {
        details.set_retry_info(Some(delay));
    }
    Status::with_error_details(code, format!("{reason} was said"), details)
}

/// A gateway.
pub struct Gateway {
    runtime: Option<Runtime>,
    address: SocketAddr,
}

impl Gateway {
    pub fn start(number: usize, region: &Arc<Region>) -> Self {
        Self::on(number, region, std::net::TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// One at the address of another that has died, as soon as that is free.
    pub async fn start_at(number: usize, region: &Arc<Region>, address: &str) -> Self {
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            match std::net::TcpListener::bind(address) {
                Ok(listener) => return Self::on(number, region, listener),
                Err(error) => assert!(Instant::now() < give_up, "{address} does not become free: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn on(number: usize, region: &Arc<Region>, listener: std::net::TcpListener) -> Self {
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = Service { number, region: region.clone() };
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            tonic::transport::Server::builder()
                .add_service(TicketServiceServer::new(service.clone()))
                .add_service(OutcomeServiceServer::new(service.clone()))
                .add_service(ChangeServiceServer::new(service))
                .serve_with_incoming(TcpListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { runtime: Some(runtime), address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Ends it with all its connections, as SIGKILL does.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.kill();
    }
}

/// An address at which nobody listens.
pub fn nobody() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

#[derive(Clone)]
struct Service {
    number: usize,
    region: Arc<Region>,
}

impl Service {
    /// Notes the call and says what is to happen to it.
    fn arrive<T>(&self, request: &Request<T>, request_id: &str) -> Act {
        let header = |name: &str| {
            request.metadata().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default().to_owned()
        };
        self.region.arrivals.lock().push(Arrival {
            gateway: self.number,
            at: Instant::now(),
            request_id: request_id.to_owned(),
            authorization: header("authorization"),
            timeout: header("grpc-timeout"),
        });
        if let Some(called) = &*self.region.on_arrival.lock() {
            called(request_id);
        }
        self.region.acts.lock().pop_front().unwrap_or(Act::Serve)
    }

    async fn stuck<T>(&self) -> T {
        self.region.stuck.notify_one();
        std::future::pending().await
    }
}

fn rejected(no: &api::Rejection) -> Status {
    status(Code::from(no.code), &no.reason, None)
}

#[tonic::async_trait]
impl ChangeService for Service {
    type WatchStream = BoxStream<'static, Result<api::WatchResponse, Status>>;

    async fn watch(
        &self,
        request: Request<api::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if let Act::Fail(status) = self.arrive(&request, "") {
            return Err(status);
        }
        self.region.watched.lock().push(request.into_inner());
        Ok(Response::new(match self.region.told.lock().pop_front() {
            Some(told) => stream::iter(told).boxed(),
            None => stream::pending().boxed(),
        }))
    }
}

#[tonic::async_trait]
impl TicketService for Service {
    async fn get_hold(
        &self,
        _: Request<api::GetHoldRequest>,
    ) -> Result<Response<api::GetHoldResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_holds(
        &self,
        _: Request<api::ListHoldsRequest>,
    ) -> Result<Response<api::ListHoldsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn search_tickets(
        &self,
        _: Request<api::SearchTicketsRequest>,
    ) -> Result<Response<api::SearchTicketsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn buy_tickets(
        &self,
        request: Request<api::BuyTicketsRequest>,
    ) -> Result<Response<api::BuyTicketsResponse>, Status> {
        let id = request.get_ref().request_id.clone();
        match self.arrive(&request, &id) {
            Act::Fail(status) => return Err(status),
            Act::Hang => return self.stuck().await,
            Act::Swallow => {
                self.region.buy(&id).ok();
                return self.stuck().await;
            }
            Act::Serve | Act::LeaveHalf(..) | Act::Reject(..) => {}
        }
        let purchase = self.region.buy(&id).map_err(|no| rejected(&no))?;
        Ok(Response::new(api::BuyTicketsResponse { purchase: Some(purchase), receipt: None }))
    }

    async fn batch_buy_tickets(
        &self,
        request: Request<api::BatchBuyTicketsRequest>,
    ) -> Result<Response<api::BatchBuyTicketsResponse>, Status> {
        let ids: Vec<_> =
            request.get_ref().purchases.iter().map(|purchase| purchase.request_id.clone()).collect();
        let act = self.arrive(&request, &ids.join(" "));
        if let Act::Fail(status) = act {
            return Err(status);
        }
        let mut results = Vec::new();
        for (position, id) in ids.iter().enumerate() {
            let mut receipt = None;
            let result = match &act {
                Act::Reject(reason, remembered) => {
                    receipt = remembered.then(api::Receipt::default);
                    ItemResult::Rejection(api::Rejection {
                        code: Code::FailedPrecondition.into(),
                        reason: (*reason).to_owned(),
                        message: "rejected".into(),
                    })
                }
                Act::LeaveHalf(code, reason) if position % 2 == 1 => ItemResult::Undecided(api::Rejection {
                    code: (*code).into(),
                    reason: (*reason).to_owned(),
                    message: "left".into(),
                }),
                _ => match self.region.buy(id) {
                    Ok(purchase) => ItemResult::Purchase(purchase),
                    // Whatever a region says no to in a batch stands in its log.
                    Err(no) => {
                        receipt = Some(api::Receipt::default());
                        ItemResult::Rejection(no)
                    }
                },
            };
            results.push(api::BatchBuyTicketsResult { result: Some(result), receipt });
        }
        if matches!(act, Act::Swallow) {
            return self.stuck().await;
        }
        Ok(Response::new(api::BatchBuyTicketsResponse { results }))
    }

    async fn list_tickets(
        &self,
        request: Request<api::ListTicketsRequest>,
    ) -> Result<Response<api::ListTicketsResponse>, Status> {
        if let Act::Fail(status) = self.arrive(&request, "") {
            return Err(status);
        }
        // Three pages with one ticket each.
        let page: u32 = request.get_ref().page_token.parse().unwrap_or(0);
        let ticket = api::Ticket { name: format!("ticket-{page}"), ..Default::default() };
        let next_page_token = if page < 2 { (page + 1).to_string() } else { String::new() };
        Ok(Response::new(api::ListTicketsResponse { tickets: vec![ticket], next_page_token }))
    }

    async fn get_ticket(
        &self,
        request: Request<api::GetTicketRequest>,
    ) -> Result<Response<api::GetTicketResponse>, Status> {
        match self.arrive(&request, "") {
            Act::Fail(status) => Err(status),
            _ => Ok(Response::new(api::GetTicketResponse::default())),
        }
    }

    async fn hold_tickets(
        &self,
        _: Request<api::HoldTicketsRequest>,
    ) -> Result<Response<api::HoldTicketsResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn confirm_hold(
        &self,
        _: Request<api::ConfirmHoldRequest>,
    ) -> Result<Response<api::ConfirmHoldResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn release_hold(
        &self,
        _: Request<api::ReleaseHoldRequest>,
    ) -> Result<Response<api::ReleaseHoldResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }

    async fn cancel_ticket(
        &self,
        _: Request<api::CancelTicketRequest>,
    ) -> Result<Response<api::CancelTicketResponse>, Status> {
        Err(Status::unimplemented("not in these tests"))
    }
}

#[tonic::async_trait]
impl OutcomeService for Service {
    async fn get_outcome(
        &self,
        request: Request<api::GetOutcomeRequest>,
    ) -> Result<Response<api::GetOutcomeResponse>, Status> {
        let request = request.into_inner();
        self.region.outcome(&request.parent, &request.request_id).map(Response::new)
    }

    async fn seal_request_id(
        &self,
        request: Request<api::SealRequestIdRequest>,
    ) -> Result<Response<api::SealRequestIdResponse>, Status> {
        let request = request.into_inner();
        let known = self.region.outcome(&request.parent, &request.request_id)?;
        let outcome = match known.state() {
            api::OutcomeState::Undecided => {
                self.region.sealed.lock().insert(request.request_id);
                api::GetOutcomeResponse { state: api::OutcomeState::Sealed.into(), ..Default::default() }
            }
            _ => known,
        };
        Ok(Response::new(api::SealRequestIdResponse { outcome: Some(outcome) }))
    }
}
