//! Counters and latencies per method, region and outcome, in Prometheus' text form. Handles are resolved once per
//! combination; a call then costs an index and two additions.

use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tidewall_client::{ClusterClock, Connections, Topology};
use tonic::Code;

use crate::admission::Admission;
use crate::edge::Method;

/// Before the name of everything that a gateway counts.
const PREFIX: &str = "tidewall_gateway";
/// gRPC status codes are 0 to 16.
const CODES: usize = 17;
/// Upper bounds of the latency buckets, seconds.
const BUCKETS_S: [f64; 15] =
    [0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CallLabels {
    method: &'static str,
    region: String,
    code: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabels {
    region: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DeliveryLabels {
    region: String,
    result: &'static str,
}

/// How an attempt at a delivery of a webhook has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivered {
    Done,
    Failed,
}

fn latency() -> Histogram {
    Histogram::new(BUCKETS_S)
}

type Seconds = Gauge<f64, AtomicU64>;

/// What is shown of the admission of one region.
struct AdmissionGauges {
    limit: Gauge,
    in_flight: Gauge,
    waiting: Gauge,
    refused: Counter,
    no_load: Seconds,
}

type LatencyFamily = Family<CallLabels, Histogram, fn() -> Histogram>;

/// All metrics of a gateway.
pub(crate) struct Metrics {
    registry: Registry,
    latency: LatencyFamily,
    calls: Family<CallLabels, Counter>,
    admission: Vec<AdmissionGauges>,
    clock_ahead: Seconds,
    connections: Gauge,
    connections_refused: Counter,
    watchers: Gauge,
    deliveries: Family<DeliveryLabels, Counter>,
    regions: Vec<String>,
    /// By method, then region (the last one is "none"), then code.
    handles: Vec<OnceLock<(Counter, Histogram)>>,
}

impl Metrics {
    pub(crate) fn new(topology: &Topology) -> Self {
        let mut root = tidewall_metrics::registry(PREFIX, env!("CARGO_PKG_VERSION"));
        let registry = root.sub_registry_with_prefix(PREFIX);
        let latency = LatencyFamily::new_with_constructor(latency);
        let calls = Family::<CallLabels, Counter>::default();
        registry.register("calls", "Calls that were answered", calls.clone());
        registry.register("call_seconds", "Time from the arrival of a call to its answer", latency.clone());
        let refused = Family::<RegionLabels, Counter>::default();
        registry.register("admission_refusals", "Calls refused at admission", refused.clone());
        let mut per_region = |name: &str, help: &str| {
            let family = Family::<RegionLabels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let limit = per_region("admission_limit", "Calls that may be in flight, as it adapts itself");
        let in_flight = per_region("calls_in_flight", "Admitted calls that are not answered yet");
        let waiting = per_region("calls_waiting", "Calls that wait to be admitted");
        let no_load = Family::<RegionLabels, Seconds>::default();
        registry.register(
            "admission_no_load_seconds",
            "Latency of a purchase without load, as admission knows it; 0 before the first",
            no_load.clone(),
        );
        let clock_ahead = Seconds::default();
        registry.register(
            "clock_ahead_seconds",
            "How far this machine's clock is ahead of those of the nodes, by which the gateway goes",
            clock_ahead.clone(),
        );
        let connections = Gauge::default();
        registry.register("connections", "Connections of clients", connections.clone());
        let connections_refused = Counter::default();
        registry.register(
            "connections_refused",
            "Connections closed at once because there were too many",
            connections_refused.clone(),
        );
        let watchers = Gauge::default();
        registry.register("watchers", "Streams of those who watch what happens", watchers.clone());
        let deliveries = Family::<DeliveryLabels, Counter>::default();
        registry.register(
            "webhook_attempts",
            "Attempts at deliveries of webhooks, by how they ended",
            deliveries.clone(),
        );
        let mut regions: Vec<String> = topology.regions.iter().map(|region| region.id.clone()).collect();
        let admission = regions.iter().map(|region| {
            let labels = RegionLabels { region: region.clone() };
            let gauge = |family: &Family<RegionLabels, Gauge>| family.get_or_create_owned(&labels);
            AdmissionGauges {
                limit: gauge(&limit),
                in_flight: gauge(&in_flight),
                waiting: gauge(&waiting),
                refused: refused.get_or_create_owned(&labels),
                no_load: no_load.get_or_create_owned(&labels),
            }
        });
        let admission = admission.collect();
        regions.push("none".to_owned());
        let handles = (0..Method::ALL.len() * regions.len() * CODES).map(|_| OnceLock::new()).collect();
        Self {
            registry: root,
            latency,
            calls,
            admission,
            clock_ahead,
            connections,
            connections_refused,
            watchers,
            deliveries,
            regions,
            handles,
        }
    }

    /// Counts one answered call; `region` is its position in the topology.
    pub(crate) fn record(&self, method: Method, region: Option<usize>, code: Code, took: Duration) {
        let region = region.unwrap_or(self.regions.len() - 1);
        let code_index = (code as usize).min(CODES - 1);
        let index = (method as usize * self.regions.len() + region) * CODES + code_index;
        let (calls, latency) = self.handles[index].get_or_init(|| {
            let labels = CallLabels {
                method: method.declared().name,
                region: self.regions[region].clone(),
                code: code_name(code),
            };
            (self.calls.get_or_create_owned(&labels), self.latency.get_or_create_owned(&labels))
        });
        calls.inc();
        latency.observe(took.as_secs_f64());
    }

    /// Counts an attempt at a delivery of a webhook; `region` is its position in the topology.
    pub(crate) fn delivered(&self, region: usize, delivered: Delivered) {
        let region = self.regions.get(region).cloned().unwrap_or_default();
        let result = match delivered {
            Delivered::Done => "done",
            Delivered::Failed => "failed",
        };
        self.deliveries.get_or_create_owned(&DeliveryLabels { region, result }).inc();
    }

    /// Everything as text.
    pub(crate) fn render(
        &self,
        admission: &Admission,
        connections: &Connections,
        clock: &ClusterClock,
        watchers: usize,
    ) -> String {
        let count = |calls: usize| i64::try_from(calls).unwrap_or(i64::MAX);
        for (region, gauges) in self.admission.iter().enumerate() {
            let state = admission.state(region);
            gauges.limit.set(count(state.limit));
            gauges.in_flight.set(count(state.in_flight));
            gauges.waiting.set(count(state.waiting));
            tidewall_metrics::set_counter(&gauges.refused, state.refused);
            gauges.no_load.set(state.no_load.unwrap_or_default().as_secs_f64());
        }
        self.clock_ahead.set(clock.ahead_ms().unwrap_or_default() as f64 / 1_000.0);
        self.connections.set(count(connections.open()));
        self.watchers.set(count(watchers));
        tidewall_metrics::set_counter(&self.connections_refused, connections.refused());
        tidewall_metrics::text(&self.registry)
    }
}

/// The code's name as in the gRPC documentation.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
