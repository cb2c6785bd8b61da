//! Whether this gateway can serve: it asks the nodes who leads, until every region has a leader, and now and then
//! afterwards. A gateway that reaches no leader at all says so; one region without a leader is not its fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::{BoxFuture, ready};
use futures_util::stream::BoxStream;
use tidewall_proto::v1;
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_stream::wrappers::WatchStream;
use tonic::server::NamedService;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::edge::Edge;
use crate::errors::ApiError;
use crate::services::Services;

/// Pause between two questions until every region had a leader once.
const PAUSE_STARTING: Duration = Duration::from_millis(50);
/// Pause between two questions while regions lack a leader later on.
const PAUSE_PARTIAL: Duration = Duration::from_millis(500);
/// Pause between two questions while all regions have a leader.
const PAUSE_SERVING: Duration = Duration::from_secs(5);
/// A clock that is further than this from those of the nodes is told, ms.
const CLOCK_FAR_MS: u64 = 500;
/// How long the nodes may take to answer.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Whether calls can be answered here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Those to some region.
    Ready {
        /// Regions without a leader that answers.
        leaderless: usize,
    },
    /// No region has a leader.
    Leaderless,
    /// It is about to end.
    Stopping,
}

/// How many regions have no leader that answers, and whether this gateway goes on.
pub(crate) struct Readiness {
    leaderless: AtomicUsize,
    regions: usize,
    stopping: AtomicBool,
}

impl Readiness {
    pub(crate) fn new(regions: usize) -> Self {
        Self { leaderless: AtomicUsize::new(regions), regions, stopping: AtomicBool::new(false) }
    }

    /// It is about to end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
    }

    /// Whether calls can be answered.
    pub(crate) fn state(&self) -> State {
        match self.leaderless.load(Ordering::Relaxed) {
            _ if self.stopping.load(Ordering::Relaxed) => State::Stopping,
            leaderless if leaderless < self.regions => State::Ready { leaderless },
            _ => State::Leaderless,
        }
    }
}

/// What can be asked for by name.
const NAMES: [&str; 9] = [
    "",
    <v1::region_service_server::RegionServiceServer<Services> as NamedService>::NAME,
    <v1::event_service_server::EventServiceServer<Services> as NamedService>::NAME,
    <v1::account_service_server::AccountServiceServer<Services> as NamedService>::NAME,
    <v1::ticket_service_server::TicketServiceServer<Services> as NamedService>::NAME,
    <v1::change_service_server::ChangeServiceServer<Services> as NamedService>::NAME,
    <v1::webhook_service_server::WebhookServiceServer<Services> as NamedService>::NAME,
    <v1::outcome_service_server::OutcomeServiceServer<Services> as NamedService>::NAME,
    <v1::operator_service_server::OperatorServiceServer<Services> as NamedService>::NAME,
];

/// What those who ask are told: `None`: they need not ask any more.
pub(crate) type Told = Option<ServingStatus>;

/// `grpc.health.v1.Health`: all services are served, or none.
pub(crate) struct HealthService {
    told: watch::Receiver<Told>,
    /// A watch ends after so long: it would keep its connection for ever, whose client was asked to go elsewhere.
    watched_max: Option<Duration>,
}

impl HealthService {
    pub(crate) fn new(told: watch::Receiver<Told>, watched_max: Option<Duration>) -> Self {
        Self { told, watched_max }
    }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        if !NAMES.contains(&service.as_str()) {
            let why = format!("there is no service {service:?} here: leave the name empty to ask for all");
            return Err(ApiError::not_found("SERVICE_NOT_FOUND", why).into());
        }
        let status = self.told.borrow().unwrap_or(ServingStatus::NotServing);
        Ok(Response::new(HealthCheckResponse { status: status as i32 }))
    }

    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let known = NAMES.contains(&request.into_inner().service.as_str());
        let told = WatchStream::new(self.told.clone());
        let status = move |status: ServingStatus| if known { status } else { ServingStatus::ServiceUnknown };
        let mut last = None;
        let statuses = told.take_while(|told| ready(told.is_some())).filter_map(move |told| {
            let status = told.map(status);
            let changed = last != status;
            last = status;
            ready(status.filter(|_| changed).map(|status| Ok(HealthCheckResponse { status: status as i32 })))
        });
        let end: BoxFuture<'static, ()> = match self.watched_max {
            Some(age) => Box::pin(sleep(age)),
            None => Box::pin(std::future::pending()),
        };
        Ok(Response::new(statuses.take_until(end).boxed()))
    }
}

/// Says so when this machine's clock is far from those of the nodes, or is not any more. Calls go by the nodes' clocks; logs and
/// whatever else runs here do not.
fn tell_clock(ahead_ms: Option<i64>, is_far: &mut bool) {
    let Some(ahead_ms) = ahead_ms else { return };
    let far = ahead_ms.unsigned_abs() > CLOCK_FAR_MS;
    if far && !*is_far {
        tracing::error!(ahead_ms, "this machine's clock is far from the nodes': set it; calls go by theirs");
    } else if *is_far && !far {
        tracing::info!(ahead_ms, "this machine's clock agrees with the nodes' again");
    }
    *is_far = far;
}

/// Keeps what is told of health and `readiness` up to date; never returns.
pub(crate) async fn follow(edge: Arc<Edge>, readiness: Arc<Readiness>, tell: Arc<watch::Sender<Told>>) {
    let mut serving = false;
    // Every region had a leader once: the cluster is no longer starting.
    let mut complete = false;
    let mut clock_is_far = false;
    loop {
        let leaderless = edge.client.discover(TIMEOUT).await;
        tell_clock(edge.client.clock().ahead_ms(), &mut clock_is_far);
        readiness.leaderless.store(leaderless, Ordering::Relaxed);
        let reachable = matches!(readiness.state(), State::Ready { .. });
        if reachable != serving {
            serving = reachable;
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            tracing::info!(serving, leaderless, "health changed");
            // Who stops this gateway has the last word.
            tell.send_if_modified(|told| {
                readiness.state() != State::Stopping && told.is_some() && told.replace(status) != Some(status)
            });
        }
        complete |= leaderless == 0;
        sleep(match leaderless {
            0 => PAUSE_SERVING,
            _ if !complete => PAUSE_STARTING,
            _ => PAUSE_PARTIAL,
        })
        .await;
    }
}
