//! Whether this gateway can serve: it asks the nodes who leads, until every region has a leader, and now and then
//! afterwards. A gateway that reaches no leader at all says so; one region without a leader is not its fault.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidewall_proto::v1;
use tokio::time::sleep;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use crate::edge::Edge;
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

/// How many regions have no leader that answers.
pub(crate) struct Readiness {
    leaderless: AtomicUsize,
    regions: usize,
}

impl Readiness {
    pub(crate) fn new(regions: usize) -> Self {
        Self { leaderless: AtomicUsize::new(regions), regions }
    }

    /// Whether calls to some region can be answered, and how many regions have no leader.
    pub(crate) fn state(&self) -> (bool, usize) {
        let leaderless = self.leaderless.load(Ordering::Relaxed);
        (leaderless < self.regions, leaderless)
    }
}

async fn report(reporter: &HealthReporter, status: ServingStatus) {
    let names = [
        "",
        <v1::region_service_server::RegionServiceServer<Services> as NamedService>::NAME,
        <v1::event_service_server::EventServiceServer<Services> as NamedService>::NAME,
        <v1::account_service_server::AccountServiceServer<Services> as NamedService>::NAME,
        <v1::ticket_service_server::TicketServiceServer<Services> as NamedService>::NAME,
        <v1::outcome_service_server::OutcomeServiceServer<Services> as NamedService>::NAME,
        <v1::operator_service_server::OperatorServiceServer<Services> as NamedService>::NAME,
    ];
    for name in names {
        reporter.set_service_status(name, status).await;
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

/// Keeps the health service and `readiness` up to date; never returns.
pub(crate) async fn watch(edge: Arc<Edge>, readiness: Arc<Readiness>, reporter: HealthReporter) {
    let mut serving = false;
    // Every region had a leader once: the cluster is no longer starting.
    let mut complete = false;
    let mut clock_is_far = false;
    report(&reporter, ServingStatus::NotServing).await;
    loop {
        let leaderless = edge.client.discover(TIMEOUT).await;
        tell_clock(edge.client.clock().ahead_ms(), &mut clock_is_far);
        readiness.leaderless.store(leaderless, Ordering::Relaxed);
        let (reachable, _) = readiness.state();
        if reachable != serving {
            serving = reachable;
            let status = if serving { ServingStatus::Serving } else { ServingStatus::NotServing };
            tracing::info!(serving, leaderless, "health changed");
            report(&reporter, status).await;
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
