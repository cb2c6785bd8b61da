//! A gateway in memory with faults that can be switched on, and a proxy that cuts connections. It sells
//! honestly unless it is told otherwise, so that each test shows one fault and nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tidewall_load::Target;
use tidewall_proto::v1;
use tidewall_proto::v1::event_service_server::{EventService, EventServiceServer};
use tidewall_proto::v1::outcome_service_server::{OutcomeService, OutcomeServiceServer};
use tidewall_proto::v1::region_service_server::{RegionService, RegionServiceServer};
use tidewall_proto::v1::ticket_service_server::{TicketService, TicketServiceServer};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt};
use uuid::Uuid;

/// What the gateway does wrong.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Sells this many tickets more than there are.
    pub oversell: u64,
    /// Names the first ticket of an event twice in lists.
    pub list_twice: bool,
    /// Forgets request ids: a repetition buys again.
    pub forgetful: bool,
    /// Every so many purchases: acknowledged, never stored.
    pub lose_every: Option<u64>,
    /// Refuses the first calls of each request id for overload.
    pub overload_first: u32,
    /// Says after which time to come back.
    pub retry_after: Option<Duration>,
    /// The first answers of each request id are lost after it was decided.
    pub lose_answers: u32,
    /// No purchase is decided; every call is UNAVAILABLE.
    pub undecided: bool,
    /// No purchase is answered before this time after the first one arrived.
    pub stall: Duration,
    /// Says "sold out" to every so many buyers, whatever the stock.
    pub refuse_every: Option<u64>,
    /// Leaves every so many purchases of a batch undecided at first.
    pub undecided_items_every: Option<u64>,
    /// Tickets on a page; 40 when nothing is said.
    pub page: Option<usize>,
    /// Goes silent from this purchase call on, and wakes who waits for `died`.
    pub die_after: Option<u64>,
}

#[derive(Debug, Clone)]
enum Decision {
    Bought(v1::Purchase, v1::Receipt),
    No(&'static str),
}

#[derive(Debug, Default)]
struct EventRow {
    event: v1::Event,
    owned: BTreeMap<String, i32>,
    tickets: Vec<v1::Ticket>,
}

#[derive(Debug, Default)]
struct State {
    events: BTreeMap<String, EventRow>,
    decisions: BTreeMap<(String, String), Decision>,
    calls: BTreeMap<String, (u32, Instant)>,
    gaps: Vec<Duration>,
    index: u64,
    purchases: u64,
    first_call: Option<Instant>,
    subjects: BTreeSet<String>,
}

/// The gateway.
#[derive(Clone)]
pub struct Fake {
    faults: Arc<Faults>,
    state: Arc<Mutex<State>>,
    buys: Arc<AtomicU64>,
    stop: Arc<tokio::sync::Notify>,
}

/// A gateway that listens; it is gone when this is dropped.
pub struct Running {
    pub fake: Fake,
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A target whose tokens are subject and roles in plain text.
pub fn target(address: SocketAddr) -> Target {
    Target::new(vec![format!("http://{address}")], |subject, roles| format!("{subject}|{}", roles.join(",")))
}

impl Running {
    pub fn target(&self) -> Target {
        target(self.address)
    }
}

pub async fn start(faults: Faults) -> Running {
    let fake = Fake {
        faults: Arc::new(faults),
        state: Arc::default(),
        buys: Arc::default(),
        stop: Arc::new(tokio::sync::Notify::new()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = tonic::transport::Server::builder()
        .add_service(RegionServiceServer::new(fake.clone()))
        .add_service(EventServiceServer::new(fake.clone()))
        .add_service(TicketServiceServer::new(fake.clone()))
        .add_service(OutcomeServiceServer::new(fake.clone()));
    let task = tokio::spawn(async move {
        router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
    });
    Running { fake, address, task }
}

fn no(code: Code, reason: &str, retry: Option<Duration>) -> Status {
    let mut details = ErrorDetails::new();
    details.set_error_info(reason, "tidewall", HashMap::<String, String>::new());
    if retry.is_some() {
        details.set_retry_info(retry);
    }
    Status::with_error_details(code, format!("the gateway says {reason}"), details)
}

/// Subject and roles of a call that keeps the API's rules.
fn caller<T>(request: &Request<T>) -> Result<(String, String), Status> {
    let header = |name: &str| request.metadata().get(name).and_then(|value| value.to_str().ok());
    header("grpc-timeout").ok_or_else(|| no(Code::InvalidArgument, "DEADLINE_MISSING", None))?;
    let token = header("authorization").and_then(|value| value.strip_prefix("Bearer "));
    let (subject, roles) = token
        .and_then(|token| token.split_once('|'))
        .ok_or_else(|| no(Code::Unauthenticated, "NO_TOKEN", None))?;
    Ok((subject.to_owned(), roles.to_owned()))
}

fn check_id(id: &str) -> Result<(), Status> {
    match Uuid::parse_str(id) {
        Ok(uuid) if uuid.get_version_num() == 7 && uuid.to_string() == id => Ok(()),
        _ => Err(no(Code::InvalidArgument, "REQUEST_ID_INVALID", None)),
    }
}

impl Fake {
    /// Waits until `die_after` is reached.
    pub async fn died(&self) {
        self.stop.notified().await;
    }

    /// Different request ids of purchases that were seen.
    pub fn request_ids(&self) -> u64 {
        self.state.lock().calls.len() as u64
    }

    /// Different subjects that called for purchases.
    pub fn subjects(&self) -> u64 {
        self.state.lock().subjects.len() as u64
    }

    /// The shortest time between two calls with the same request id.
    pub fn shortest_gap(&self) -> Option<Duration> {
        self.state.lock().gaps.iter().min().copied()
    }

    /// Events by region.
    pub fn events(&self) -> Vec<v1::Event> {
        self.state.lock().events.values().map(|row| row.event.clone()).collect()
    }

    /// Notes a call and says how many with this id came before it.
    fn note(&self, subject: &str, id: &str) -> u32 {
        let mut state = self.state.lock();
        state.subjects.insert(subject.to_owned());
        let now = Instant::now();
        let earlier = state.calls.get(id).copied();
        if let Some((_, at)) = earlier {
            state.gaps.push(now - at);
        }
        let number = earlier.map_or(0, |(number, _)| number);
        state.calls.insert(id.to_owned(), (number + 1, now));
        number
    }

    fn decide(&self, principal: &str, parent: &str, item: &v1::BatchPurchase) -> Result<Decision, Status> {
        let mut state = self.state.lock();
        let state = &mut *state;
        let key = (principal.to_owned(), item.request_id.clone());
        if !self.faults.forgetful
            && let Some(decision) = state.decisions.get(&key)
        {
            return Ok(decision.clone());
        }
        let row = state.events.get_mut(parent).ok_or_else(|| no(Code::NotFound, "EVENT_NOT_FOUND", None))?;
        let tier = row.event.tiers.iter_mut().find(|tier| tier.tier_id == item.tier_id);
        let tier = tier.ok_or_else(|| no(Code::NotFound, "TIER_NOT_FOUND", None))?;
        state.purchases += 1;
        let every = |every: Option<u64>| every.is_some_and(|every| state.purchases.is_multiple_of(every));
        let owned = row.owned.get(&item.buyer).copied().unwrap_or(0);
        let allowed = tier.capacity + self.faults.oversell as i64;
        let decision = if owned + item.quantity > row.event.quota_per_buyer {
            Decision::No("QUOTA_EXCEEDED")
        } else if tier.sold + i64::from(item.quantity) > allowed || every(self.faults.refuse_every) {
            Decision::No("SOLD_OUT")
        } else {
            state.index += 1;
            let lost = every(self.faults.lose_every);
            let mut names = Vec::new();
            for n in 0..i64::from(item.quantity) {
                let name = format!("{parent}/tickets/{}-{}", item.tier_id, state.index * 1_000 + n as u64);
                names.push(name.clone());
                if !lost {
                    row.tickets.push(v1::Ticket {
                        name,
                        owner: item.buyer.clone(),
                        tier_id: item.tier_id.clone(),
                        state: v1::TicketState::Valid as i32,
                        request_id: item.request_id.clone(),
                        ..v1::Ticket::default()
                    });
                }
            }
            if !lost {
                *row.owned.entry(item.buyer.clone()).or_insert(0) += item.quantity;
                tier.sold += i64::from(item.quantity);
                tier.free -= i64::from(item.quantity);
            }
            let receipt = v1::Receipt {
                incarnation: 1,
                term: 1,
                index: state.index,
                chain_hash: format!("{:016x}", state.index),
                decide_time: Some(prost_types::Timestamp { seconds: 1_000 + state.index as i64, nanos: 0 }),
                ..v1::Receipt::default()
            };
            Decision::Bought(
                v1::Purchase { tickets: names, tier_id: item.tier_id.clone(), seats: Vec::new() },
                receipt,
            )
        };
        state.decisions.insert(key, decision.clone());
        Ok(decision)
    }

    async fn trouble(&self) -> Result<(), Status> {
        let call = self.buys.fetch_add(1, Ordering::SeqCst) + 1;
        if self.faults.die_after.is_some_and(|after| call >= after) {
            self.stop.notify_one();
            // Nothing is said any more; whoever waits for `died` takes the connections away.
            std::future::pending::<()>().await;
        }
        let first = *self.state.lock().first_call.get_or_insert_with(Instant::now);
        let rest = self.faults.stall.saturating_sub(first.elapsed());
        tokio::time::sleep(rest).await;
        if self.faults.undecided {
            return Err(no(Code::Unavailable, "OUTCOME_UNKNOWN", None));
        }
        Ok(())
    }
}

#[tonic::async_trait]
impl RegionService for Fake {
    async fn list_regions(
        &self,
        request: Request<v1::ListRegionsRequest>,
    ) -> Result<Response<v1::ListRegionsResponse>, Status> {
        caller(&request)?;
        // One region a page, so that paging is used.
        let names = ["regions/east", "regions/north", "regions/west"];
        let at: usize = request.into_inner().page_token.parse().unwrap_or(0);
        Ok(Response::new(v1::ListRegionsResponse {
            regions: vec![v1::Region { name: names[at].to_owned(), display_name: String::new() }],
            next_page_token: if at + 1 < names.len() { (at + 1).to_string() } else { String::new() },
        }))
    }

    async fn get_region(
        &self,
        _: Request<v1::GetRegionRequest>,
    ) -> Result<Response<v1::GetRegionResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

#[tonic::async_trait]
impl EventService for Fake {
    async fn delete_event(
        &self,
        _: Request<v1::DeleteEventRequest>,
    ) -> Result<Response<v1::DeleteEventResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn create_event(
        &self,
        request: Request<v1::CreateEventRequest>,
    ) -> Result<Response<v1::CreateEventResponse>, Status> {
        let (subject, roles) = caller(&request)?;
        if !roles.contains("organiser") {
            return Err(no(Code::PermissionDenied, "ROLE_MISSING", None));
        }
        let request = request.into_inner();
        check_id(&request.request_id)?;
        let mut event = request.event.unwrap_or_default();
        event.name = format!("{}/events/{}", request.parent, request.event_id);
        event.organiser = subject;
        for tier in &mut event.tiers {
            tier.free = tier.capacity;
        }
        let row = EventRow { event: event.clone(), ..EventRow::default() };
        self.state.lock().events.insert(event.name.clone(), row);
        Ok(Response::new(v1::CreateEventResponse { event: Some(event), receipt: None }))
    }

    async fn get_event(
        &self,
        request: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        caller(&request)?;
        let state = self.state.lock();
        let row =
            state.events.get(&request.get_ref().name).ok_or_else(|| Status::not_found("no such event"))?;
        Ok(Response::new(v1::GetEventResponse { event: Some(row.event.clone()) }))
    }

    async fn list_events(
        &self,
        _: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn update_event(
        &self,
        _: Request<v1::UpdateEventRequest>,
    ) -> Result<Response<v1::UpdateEventResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

#[tonic::async_trait]
impl TicketService for Fake {
    async fn get_hold(
        &self,
        _: Request<v1::GetHoldRequest>,
    ) -> Result<Response<v1::GetHoldResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn list_holds(
        &self,
        _: Request<v1::ListHoldsRequest>,
    ) -> Result<Response<v1::ListHoldsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn search_tickets(
        &self,
        _: Request<v1::SearchTicketsRequest>,
    ) -> Result<Response<v1::SearchTicketsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn buy_tickets(
        &self,
        request: Request<v1::BuyTicketsRequest>,
    ) -> Result<Response<v1::BuyTicketsResponse>, Status> {
        let (subject, _) = caller(&request)?;
        let request = request.into_inner();
        check_id(&request.request_id)?;
        self.trouble().await?;
        let earlier = self.note(&subject, &request.request_id);
        if earlier < self.faults.overload_first {
            return Err(no(Code::ResourceExhausted, "OVERLOADED", self.faults.retry_after));
        }
        let item = v1::BatchPurchase {
            buyer: subject.clone(),
            tier_id: request.tier_id,
            quantity: request.quantity,
            request_id: request.request_id,
        };
        let decision = self.decide(&subject, &request.parent, &item)?;
        if earlier < self.faults.lose_answers {
            return Err(Status::unavailable("the connection broke"));
        }
        match decision {
            Decision::Bought(purchase, receipt) => {
                Ok(Response::new(v1::BuyTicketsResponse { purchase: Some(purchase), receipt: Some(receipt) }))
            }
            Decision::No(reason) => Err(no(Code::FailedPrecondition, reason, None)),
        }
    }

    async fn batch_buy_tickets(
        &self,
        request: Request<v1::BatchBuyTicketsRequest>,
    ) -> Result<Response<v1::BatchBuyTicketsResponse>, Status> {
        let (subject, roles) = caller(&request)?;
        if !roles.contains("seller") {
            return Err(no(Code::PermissionDenied, "ROLE_MISSING", None));
        }
        self.trouble().await?;
        let request = request.into_inner();
        let mut results = Vec::new();
        for (n, item) in (1_u64..).zip(&request.purchases) {
            check_id(&item.request_id)?;
            let earlier = self.note(&subject, &item.request_id);
            let rejection = |code: Code, reason: &str| v1::Rejection {
                code: code as i32,
                reason: reason.to_owned(),
                message: String::new(),
            };
            let held_back = self.faults.undecided_items_every.is_some_and(|every| n.is_multiple_of(every));
            use v1::batch_buy_tickets_result::Result as Item;
            let (result, receipt) = if held_back && earlier == 0 {
                (Item::Undecided(rejection(Code::ResourceExhausted, "OVERLOADED")), None)
            } else {
                match self.decide(&subject, &request.parent, item)? {
                    Decision::Bought(purchase, receipt) => (Item::Purchase(purchase), Some(receipt)),
                    Decision::No(reason) => {
                        (Item::Rejection(rejection(Code::FailedPrecondition, reason)), None)
                    }
                }
            };
            results.push(v1::BatchBuyTicketsResult { result: Some(result), receipt });
        }
        Ok(Response::new(v1::BatchBuyTicketsResponse { results }))
    }

    async fn list_tickets(
        &self,
        request: Request<v1::ListTicketsRequest>,
    ) -> Result<Response<v1::ListTicketsResponse>, Status> {
        caller(&request)?;
        let request = request.into_inner();
        if request.owner != "*" || !(1..=5_000).contains(&request.page_size) {
            return Err(Status::invalid_argument("the audit asks for everybody's tickets, 5000 a page"));
        }
        let state = self.state.lock();
        let row = state.events.get(&request.parent).ok_or_else(|| Status::not_found("no such event"))?;
        let mut all = row.tickets.clone();
        if self.faults.list_twice {
            all.extend(row.tickets.first().cloned());
        }
        // Shorter pages than asked for are allowed, and use paging.
        let at: usize = request.page_token.parse().unwrap_or(0);
        let end = (at + self.faults.page.unwrap_or(40)).min(all.len());
        Ok(Response::new(v1::ListTicketsResponse {
            tickets: all[at..end].to_vec(),
            next_page_token: if end < all.len() { end.to_string() } else { String::new() },
        }))
    }

    async fn hold_tickets(
        &self,
        _: Request<v1::HoldTicketsRequest>,
    ) -> Result<Response<v1::HoldTicketsResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn confirm_hold(
        &self,
        _: Request<v1::ConfirmHoldRequest>,
    ) -> Result<Response<v1::ConfirmHoldResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn release_hold(
        &self,
        _: Request<v1::ReleaseHoldRequest>,
    ) -> Result<Response<v1::ReleaseHoldResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn cancel_ticket(
        &self,
        _: Request<v1::CancelTicketRequest>,
    ) -> Result<Response<v1::CancelTicketResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }

    async fn get_ticket(
        &self,
        _: Request<v1::GetTicketRequest>,
    ) -> Result<Response<v1::GetTicketResponse>, Status> {
        Err(Status::unimplemented("not needed"))
    }
}

#[tonic::async_trait]
impl OutcomeService for Fake {
    async fn get_outcome(
        &self,
        request: Request<v1::GetOutcomeRequest>,
    ) -> Result<Response<v1::GetOutcomeResponse>, Status> {
        let (subject, _) = caller(&request)?;
        let request = request.into_inner();
        let state = self.state.lock();
        use v1::get_outcome_response::Result as Outcome;
        let (decided, receipt, result) = match state.decisions.get(&(subject, request.request_id)).cloned() {
            None => (v1::OutcomeState::Undecided, None, None),
            Some(Decision::Bought(purchase, receipt)) => {
                (v1::OutcomeState::Decided, Some(receipt), Some(Outcome::Purchase(purchase)))
            }
            Some(Decision::No(reason)) => {
                let no = v1::Rejection {
                    code: Code::FailedPrecondition as i32,
                    reason: reason.to_owned(),
                    message: String::new(),
                };
                (v1::OutcomeState::Decided, None, Some(Outcome::Rejection(no)))
            }
        };
        Ok(Response::new(v1::GetOutcomeResponse { state: decided as i32, receipt, result }))
    }

    async fn seal_request_id(
        &self,
        request: Request<v1::SealRequestIdRequest>,
    ) -> Result<Response<v1::SealRequestIdResponse>, Status> {
        let (subject, _) = caller(&request)?;
        let mut asked = Request::new(v1::GetOutcomeRequest {
            parent: request.get_ref().parent.clone(),
            request_id: request.get_ref().request_id.clone(),
        });
        *asked.metadata_mut() = request.metadata().clone();
        let mut outcome = self.get_outcome(asked).await?.into_inner();
        if outcome.state() == v1::OutcomeState::Undecided {
            let id = (subject, request.into_inner().request_id);
            self.state.lock().decisions.insert(id, Decision::No("REQUEST_ID_SEALED"));
            outcome.set_state(v1::OutcomeState::Sealed);
        }
        Ok(Response::new(v1::SealRequestIdResponse { outcome: Some(outcome) }))
    }
}

/// A proxy that cuts its first connections after some bytes of answers, and counts the cuts.
pub struct Cutter {
    pub address: SocketAddr,
    pub cuts: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Cutter {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub async fn cutter(to: SocketAddr, most_cuts: u64, after_bytes: usize) -> Cutter {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let cuts = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&cuts);
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        for number in 0_u64.. {
            let Ok((client, _)) = listener.accept().await else {
                return;
            };
            let limit = if number < most_cuts { after_bytes } else { usize::MAX };
            let counter = Arc::clone(&counter);
            connections.spawn(async move {
                if forward(client, to, limit).await {
                    counter.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    Cutter { address, cuts, task }
}

/// Copies both ways until one end is closed (false) or the limit is reached (true).
async fn forward(client: TcpStream, to: SocketAddr, limit: usize) -> bool {
    let Ok(server) = TcpStream::connect(to).await else {
        return false;
    };
    let (mut from_client, mut to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let up = async { tokio::io::copy(&mut from_client, &mut to_server).await };
    let down = async {
        let mut passed = 0;
        let mut buffer = vec![0; 2_048];
        loop {
            match from_server.read(&mut buffer).await {
                Ok(0) | Err(_) => return false,
                Ok(read) => {
                    passed += read;
                    if passed > limit {
                        return true;
                    }
                    if to_client.write_all(&buffer[..read]).await.is_err() {
                        return false;
                    }
                }
            }
        }
    };
    tokio::select! {
        _ = up => false,
        cut = down => cut,
    }
}
