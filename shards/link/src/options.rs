//! Limits and timeouts of links, and the transport settings that both ends share. No policy lives here.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tidewall_env::simulation;
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint, Server};

use crate::socket::{Dialled, dial};
use crate::tls::{Credentials, host};

/// HTTP/2 window of one stream, bytes.
const STREAM_WINDOW_BYTES: u32 = 4 * 1024 * 1024;
/// HTTP/2 window of one connection, bytes.
const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Time between HTTP/2 pings, also while nothing flows.
const PING_INTERVAL: Duration = Duration::from_secs(5);
/// A ping that is not answered for so long breaks the connection.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
/// Resets that a peer may cause before its connection is closed. The library's default of 20 is too few
/// for nodes that give up calls in bulk when leadership moves.
const PENDING_RESETS_MAX: usize = 4096;

/// Limits and timeouts of the calling half of a link.
#[derive(Debug, Clone)]
pub struct LinkOptions {
    /// How long one attempt to connect may take; opening the stream may take as long again.
    pub connect_timeout: Duration,
    /// Most calls that may wait for a reply at once.
    pub pending_max: usize,
    /// Most calls in one stream message.
    pub message_calls_max: usize,
    /// Calls are added to a stream message until it is about this large, bytes. A single larger call
    /// travels alone.
    pub message_bytes_max: usize,
    /// Shortest pause between two attempts to connect.
    pub backoff_min: Duration,
    /// Longest pause between two attempts to connect.
    pub backoff_max: Duration,
    /// What this process proves itself with; `None` where there is no TLS, as in a simulation.
    pub credentials: Option<Credentials>,
    /// Where the link's task runs; `None`: where its first call is made.
    pub runtime: Option<tokio::runtime::Handle>,
}

impl Default for LinkOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            pending_max: 16_384,
            message_calls_max: 1024,
            message_bytes_max: 256 * 1024,
            backoff_min: Duration::from_millis(50),
            backoff_max: Duration::from_secs(1),
            credentials: None,
            runtime: None,
        }
    }
}

/// Limits of the answering half of a link.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Most calls of one stream that may be without a reply; what comes on top is refused.
    pub outstanding_max: usize,
    /// Most replies in one stream message.
    pub message_replies_max: usize,
    /// Replies are added to a stream message until it is about this large, bytes.
    pub message_bytes_max: usize,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self { outstanding_max: 16_384, message_replies_max: 1024, message_bytes_max: 256 * 1024 }
    }
}

/// Where and how to connect: large windows, pings also while idle.
fn endpoint(address: SocketAddr, connect_timeout: Duration) -> Endpoint {
    // An IPv6 scope id has no place in a URI, so the text is put together from its parts.
    let uri = match address {
        SocketAddr::V4(v4) => format!("http://{v4}"),
        SocketAddr::V6(v6) => format!("http://[{}]:{}", v6.ip(), v6.port()),
    };
    Endpoint::from_shared(uri)
        .expect("an IP address and a port always make a valid URI")
        .connect_timeout(connect_timeout)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(false)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true)
}

/// Connects as [`endpoint`] says, with TLS if there are credentials; in a simulation, over its network and without.
///
/// # Errors
/// When nobody answers there in time, or somebody who is not certified as a node of the cluster.
pub async fn connect(
    address: SocketAddr,
    connect_timeout: Duration,
    credentials: Option<&Credentials>,
) -> Result<Channel, tonic::transport::Error> {
    let endpoint = endpoint(address, connect_timeout);
    match simulation::is_active() {
        true => endpoint.connect_with_connector(simulated(address)).await,
        false => endpoint.connect_with_connector(dialled(address, credentials)).await,
    }
}

/// Connects over the real network.
fn dialled(
    address: SocketAddr,
    credentials: Option<&Credentials>,
) -> impl tower::Service<tonic::transport::Uri, Response = TokioIo<Dialled>, Error = std::io::Error, Future: Send>
+ Clone
+ use<> {
    let connector = credentials.map(|credentials| TlsConnector::from(Arc::clone(&credentials.client)));
    tower::service_fn(move |_| {
        let connector = connector.clone();
        async move {
            let stream = dial(address).await?;
            Ok(TokioIo::new(match connector {
                None => Dialled::Left(stream),
                Some(connector) => Dialled::Right(Box::new(connector.connect(host(address), stream).await?)),
            }))
        }
    })
}

/// Connects over the network of the simulation.
fn simulated(
    address: SocketAddr,
) -> impl tower::Service<
    tonic::transport::Uri,
    Response = TokioIo<Box<dyn simulation::Connection>>,
    Error = std::io::Error,
    Future: Send,
> + Clone {
    tower::service_fn(move |_| async move {
        let gone = || std::io::Error::other("the simulation has ended");
        simulation::connect(address).ok_or_else(gone)?.await.map(TokioIo::new)
    })
}

/// The same with the first call, and again whenever the connection is lost.
pub fn connect_lazy(
    address: SocketAddr,
    connect_timeout: Duration,
    credentials: Option<&Credentials>,
) -> Channel {
    let endpoint = endpoint(address, connect_timeout);
    match simulation::is_active() {
        true => endpoint.connect_with_connector_lazy(simulated(address)),
        false => endpoint.connect_with_connector_lazy(dialled(address, credentials)),
    }
}

/// A server with transport settings that match [`endpoint`]; its connections are to come from [`incoming`](crate::incoming).
pub fn server_builder() -> Server {
    Server::builder()
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_adaptive_window(Some(false))
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(PING_TIMEOUT))
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .http2_max_header_list_size(16 * 1024)
        .max_concurrent_streams(1024)
}
