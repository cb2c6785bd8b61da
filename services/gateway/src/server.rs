//! Puts the edge behind one port: gRPC with health and reflection, `/metrics` and `/healthz`, over HTTP/2 and
//! HTTP/1.1. Limits of the transport are set here.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::routing::get;
use futures_util::Stream;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use rand::Rng as _;
use tidewall_client::follow::follow;
use tidewall_client::{Connections, ShardClient, Topology, accept};
use tidewall_proto::PUBLIC_DESCRIPTORS;
use tidewall_proto::v1::account_service_server::AccountServiceServer;
use tidewall_proto::v1::change_service_server::ChangeServiceServer;
use tidewall_proto::v1::event_service_server::EventServiceServer;
use tidewall_proto::v1::operator_service_server::OperatorServiceServer;
use tidewall_proto::v1::outcome_service_server::OutcomeServiceServer;
use tidewall_proto::v1::region_service_server::RegionServiceServer;
use tidewall_proto::v1::ticket_service_server::TicketServiceServer;
use tidewall_proto::v1::webhook_service_server::WebhookServiceServer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot, watch};
use tokio::time::Instant;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::HealthServer;
use tower::util::option_layer;
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::accounts::Accounts;
use crate::admission::Admission;
use crate::auth::Authenticator;
use crate::budget::Budget;
use crate::config::GatewayConfig;
use crate::edge::Edge;
use crate::feed::{FeedLimits, Feeds};
use crate::health::{self, HealthService, Readiness, State};
use crate::metrics::Metrics;
use crate::reads::{READS_MAX, SEEN};
use crate::services::Services;
use crate::transport::OnlyGrpc;
use crate::webhooks::{self, Http, Outside};

/// Largest message of requests about tickets, bytes: a batch of 1000 purchases fits.
const TICKETS_BYTES_MAX: usize = 512 << 10;
/// Largest message about an event, bytes: all its tiers with all rows of seats fit.
const EVENT_BYTES_MAX: usize = 256 << 10;
/// Largest message that carries little more than names, bytes.
const NAMES_BYTES_MAX: usize = 16 << 10;
/// Largest message of operators, bytes: a part of an import.
const OPERATOR_BYTES_MAX: usize = 4 << 20;
/// Metadata of a call, bytes. Above what is allowed: a call that has somewhat more is told so, instead of having its connection cut.
const HEADER_LIST_BYTES_MAX: u32 = 64 * 1024;
const STREAMS_PER_CONNECTION_MAX: u32 = 10_000;
/// Calls that a connection may cancel in one go (a crowd that gives up) before it is closed as an attack.
const PENDING_RESETS_MAX: usize = 10_000;
const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const CONNECTION_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// Webhooks that are pinged at a time.
const PINGS_MAX: usize = 32;
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a gateway could not start or stopped.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// Somebody else listens there.
    #[error("port {} of {} is in use: stop the process that listens there, or choose another port", .0.port(), .0.ip())]
    PortInUse(SocketAddr),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// No token could ever be accepted.
    #[error("no public key is configured: every call would be refused; give the cluster's public key")]
    NoPublicKey,
    /// The key for access tokens is none.
    #[error("access tokens cannot be signed: {0}")]
    SigningKey(#[from] crate::auth::TokenError),
    /// TLS towards the servers of webhooks cannot be set up.
    #[error("TLS towards the servers of webhooks cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
    /// The reflection service rejected our own descriptors.
    #[error("the built-in API description is damaged: {0}")]
    Descriptors(#[from] tonic_reflection::server::Error),
    /// The server failed while serving.
    #[error("the server failed: {0}")]
    Serve(#[from] tonic::transport::Error),
}

/// A service that takes messages up to a size, after they were decompressed, and compresses what is worth it for who accepts that.
macro_rules! service {
    ($server:ident, $services:ident, $bytes_max:expr) => {
        $server::new($services.clone())
            .max_decoding_message_size($bytes_max)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Deflate)
            .send_compressed(CompressionEncoding::Gzip)
            .send_compressed(CompressionEncoding::Deflate)
    };
}

/// A gateway that has taken its port and does not answer yet.
#[derive(Debug)]
pub struct Gateway {
    listener: TcpListener,
    /// Where it listens, with the actual port.
    pub local_addr: SocketAddr,
    core: GatewayCore,
}

/// Binds and serves until `shutdown` completes.
pub async fn run(config: GatewayConfig, shutdown: impl Future<Output = ()>) -> Result<(), GatewayError> {
    Gateway::bind(config).await?.serve(shutdown).await
}

impl Gateway {
    /// Takes the port.
    pub async fn bind(config: GatewayConfig) -> Result<Self, GatewayError> {
        let core = GatewayCore::new(config)?;
        let address = core.config.listen;
        let failed = |source: io::Error| match source.kind() {
            io::ErrorKind::AddrInUse => GatewayError::PortInUse(address),
            _ => GatewayError::Listen { address, source },
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let local_addr = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, local_addr, core })
    }

    /// Answers calls until `shutdown` completes; then lets calls under way finish, for the configured grace.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) -> Result<(), GatewayError> {
        let Self { listener, local_addr, core } = self;
        let path = core.config.topology_path.clone();
        let _following = AbortOnDrop(tokio::spawn(following(path, Arc::clone(&core.edge))));
        tracing::info!(address = %local_addr, regions = core.config.topology.regions.len(), "gateway serves");
        let connections = core.edge.connections.clone();
        let no_delay = |stream: &TcpStream| stream.set_nodelay(true);
        let incoming = accept(listener, core.config.accept, connections, no_delay);
        core.serve(incoming, shutdown).await
    }
}

/// A gateway apart from its port and its files: whoever has connections and later topologies gives it them.
pub struct GatewayCore {
    config: GatewayConfig,
    edge: Arc<Edge>,
}

impl std::fmt::Debug for GatewayCore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GatewayCore").field("config", &self.config).finish_non_exhaustive()
    }
}

impl GatewayCore {
    /// A gateway that answers nobody yet. Of the configuration, `listen` and `topology_path` mean nothing here.
    ///
    /// # Errors
    /// [`GatewayError::NoPublicKey`], [`GatewayError::SigningKey`], [`GatewayError::Tls`].
    pub fn new(config: GatewayConfig) -> Result<Self, GatewayError> {
        if config.public_keys.is_empty() {
            return Err(GatewayError::NoPublicKey);
        }
        let outside: Arc<dyn Outside> = match &config.webhooks.outside {
            Some(outside) => Arc::clone(outside),
            None => Arc::new(Http::new(&config.webhooks.allowed)?),
        };
        let edge = Arc::new(Edge {
            topology: Arc::clone(&config.topology),
            client: Arc::new(ShardClient::new(Arc::clone(&config.topology), config.shard_client.clone())),
            authenticator: Authenticator::new(&config.public_keys, config.token_cache_entries),
            admission: Admission::new(
                config.topology.regions.len(),
                config.limit,
                config.calls_max_per_region,
                config.calls_waiting_max,
            ),
            budget: Budget::default(),
            connections: Connections::default(),
            metrics: Metrics::new(&config.topology),
            feeds: Feeds::new(
                config.topology.regions.iter().map(|region| (region.id.as_str(), region.group)),
                FeedLimits {
                    watchers_max: config.watchers_max,
                    kept_bytes: config.changes_kept_bytes,
                    watched_max: config.connection_age_min.unwrap_or(Duration::MAX),
                },
            ),
            accounts: config.accounts.as_ref().map(Accounts::new).transpose()?,
            webhook_networks: config.webhooks.allowed.clone(),
            outside,
            pings: Semaphore::new(PINGS_MAX),
            reads: Semaphore::new(READS_MAX),
        });
        Ok(Self { config, edge })
    }

    /// Takes over later states of the topology: nodes join and leave, regions never change.
    pub fn adopting(&self) -> impl FnMut(&Topology) + use<> {
        let edge = Arc::clone(&self.edge);
        move |topology| edge.client.adopt(topology)
    }

    /// Answers calls that come over these connections until `shutdown` completes; then lets calls under way finish,
    /// for the configured grace.
    ///
    /// # Errors
    /// When the server fails.
    pub async fn serve<S, C>(
        self,
        connections: S,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), GatewayError>
    where
        S: Stream<Item = io::Result<C>>,
        C: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let Self { config, edge } = self;
        let readiness = Arc::new(Readiness::new(config.topology.regions.len()));
        let (tell, told) = watch::channel(Some(ServingStatus::NotServing));
        let tell = Arc::new(tell);
        let health_service = HealthServer::new(HealthService::new(told, config.connection_age_min));
        let following = health::follow(Arc::clone(&edge), Arc::clone(&readiness), Arc::clone(&tell));
        let following = AbortOnDrop(tokio::spawn(following));
        let signer = edge.accounts.as_ref().filter(|_| config.webhooks.delivers);
        let (stop_delivering, stopping) = watch::channel(false);
        let mut delivering = signer.map(|accounts| {
            let (signer, outside) = (Arc::clone(&accounts.signer), Arc::clone(&edge.outside));
            AbortOnDrop(tokio::spawn(webhooks::deliver(Arc::clone(&edge), outside, signer, stopping)))
        });
        let mut routes = routes(&edge, health_service)?;
        let router = std::mem::take(routes.axum_router_mut());
        *routes.axum_router_mut() = with_plain_pages(router, Arc::clone(&edge), Arc::clone(&readiness));

        let server = http_server(config.connection_age_min);
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = server
            .layer(option_layer(cors(&config.web_origins)))
            .layer(OnlyGrpc)
            .add_routes(routes.prepare())
            .serve_with_incoming_shutdown(connections, async {
                // A dropped sender stops the server as well.
                let _ = stopped.await;
            });
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return Ok(ended?),
            () = shutdown => {}
        }
        // Whoever asks is told to go elsewhere, while who has not asked yet is still served.
        readiness.stop();
        stop_delivering.send_replace(true);
        drop(following);
        tell.send_replace(Some(ServingStatus::NotServing));
        if !config.lame_duck.is_zero() {
            tokio::select! {
                ended = &mut serving => return Ok(ended?),
                () = tokio::time::sleep(config.lame_duck) => {}
            }
        }
        // They have been told, and are no calls that anybody waits for.
        tell.send_replace(None);
        edge.feeds.close();
        edge.admission.close();
        // The receiver is gone only when the server is.
        let _ = stop.send(());
        let grace = Instant::now() + config.grace;
        let served = tokio::time::timeout_at(grace, &mut serving).await;
        // What is under way outside would be done once more by others.
        if let Some(delivering) = &mut delivering {
            let _ = tokio::time::timeout_at(grace, &mut delivering.0).await;
        }
        match served {
            Ok(ended) => Ok(ended?),
            Err(_) => {
                tracing::warn!("calls were still under way after the grace of the shutdown");
                Ok(())
            }
        }
    }
}

/// Everything that answers gRPC here.
fn routes(edge: &Arc<Edge>, health_service: HealthServer<HealthService>) -> Result<Routes, GatewayError> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(PUBLIC_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let services = Services(Arc::clone(edge));
    let routes = Routes::new(service!(TicketServiceServer, services, TICKETS_BYTES_MAX))
        .add_service(service!(EventServiceServer, services, EVENT_BYTES_MAX))
        .add_service(service!(RegionServiceServer, services, NAMES_BYTES_MAX))
        .add_service(service!(AccountServiceServer, services, NAMES_BYTES_MAX))
        .add_service(service!(ChangeServiceServer, services, NAMES_BYTES_MAX))
        .add_service(service!(WebhookServiceServer, services, NAMES_BYTES_MAX))
        .add_service(service!(OutcomeServiceServer, services, NAMES_BYTES_MAX))
        // What operators send is large already, and snapshots are not worth compressing twice.
        .add_service(OperatorServiceServer::new(services).max_decoding_message_size(OPERATOR_BYTES_MAX))
        .add_service(health_service)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?);
    Ok(routes)
}

/// HTTP as gateways speak it: its limits, and when connections are to be renewed.
fn http_server(connection_age_min: Option<Duration>) -> Server {
    let mut server = Server::builder()
        .accept_http1(true)
        .tcp_nodelay(true)
        .http2_max_header_list_size(HEADER_LIST_BYTES_MAX)
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(Some(false))
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT));
    if let Some(age) = connection_age_min {
        // Gateways that started together must not send their clients away together. An old connection is asked to
        // go and ends with its last call, however long that may take. Never a grace beside it: with one, tonic
        // 0.14 asks nobody, and cuts the connection when age and grace are over.
        let age = age.mul_f64(tidewall_env::random::rng().random_range(1.0..2.0));
        server = server.max_connection_age(age);
    }
    server
}

/// How long a browser may remember what it may do.
const CORS_MAX_AGE: Duration = Duration::from_secs(7_200);
/// What pages may read of an answer beside its body.
const CORS_EXPOSED: [&str; 5] =
    ["grpc-status", "grpc-message", "grpc-status-details-bin", "grpc-retry-pushback-ms", SEEN];

/// What pages of these origins may do, `*` for all; none: browsers let no page call. Tokens are in a header, never in a cookie.
fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    let allowed = match origins {
        [] => return None,
        origins if origins.iter().any(|origin| origin == "*") => AllowOrigin::any(),
        origins => AllowOrigin::list(origins.iter().cloned()),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([http::Method::POST])
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(CORS_EXPOSED.map(HeaderName::from_static))
        .max_age(CORS_MAX_AGE);
    Some(layer)
}

/// Follows the topology file, if there is one: nodes join and leave, regions never change.
async fn following(path: Option<std::path::PathBuf>, edge: Arc<Edge>) {
    let Some(path) = path else { return };
    match follow(&path, Topology::clone(&edge.topology), |topology| edge.client.adopt(topology)).await {}
}

/// Ends a task with its owner.
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Adds the pages for machines that do not speak gRPC: [`transport::PAGES`].
fn with_plain_pages(router: axum::Router, edge: Arc<Edge>, readiness: Arc<Readiness>) -> axum::Router {
    let metrics = move |headers: HeaderMap| async move {
        let watchers = edge.feeds.watchers();
        let text = edge.metrics.render(&edge.admission, &edge.connections, edge.client.clock(), watchers);
        let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        tidewall_metrics::answer(accepted, text)
    };
    let ready = move || async move {
        match readiness.state() {
            State::Ready { leaderless: 0 } => (StatusCode::OK, "ok\n".to_owned()),
            State::Ready { leaderless } => {
                (StatusCode::OK, format!("ok, regions without a leader: {leaderless}\n"))
            }
            State::Leaderless => {
                (StatusCode::SERVICE_UNAVAILABLE, "no shard node answers as a leader yet\n".to_owned())
            }
            State::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "this gateway is stopping\n".to_owned()),
        }
    };
    let live = || async { (StatusCode::OK, "ok\n") };
    router
        .route("/metrics", get(metrics))
        .route("/readyz", get(ready.clone()))
        .route("/healthz", get(ready))
        .route("/livez", get(live))
}
