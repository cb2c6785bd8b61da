//! A few connections, reused by all calls. A connection that breaks is made again by the next call on it;
//! callers go on to the next connection when one has failed them, so that a dead gateway costs one call.

use std::time::Duration;

use tidewall_proto::v1;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::region_service_client::RegionServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use crate::reading::Pages;
use crate::{LoadError, Target};

/// Bytes that may be under way to us on one stream.
const STREAM_WINDOW: u32 = 4 << 20;
/// Bytes that may be under way to us on one connection.
const CONNECTION_WINDOW: u32 = 16 << 20;
/// Requests that may wait for a connection's task.
const BUFFERED_REQUESTS: usize = 16_384;
/// Largest answer that is accepted: a page of 5000 tickets has about 1.5 MB.
const ANSWER_BYTES_MAX: usize = 32 << 20;
/// How much longer than its deadline a call is waited for. The server's own DEADLINE_EXCEEDED should
/// arrive first; this bound is for gateways that no longer answer at all.
const DEADLINE_GRACE: Duration = Duration::from_millis(250);

/// Message for a call whose deadline passed on our side.
const LATE: &str = "no answer came before the deadline";

/// A bearer token, ready to be put into requests; cloning it copies a reference only.
pub type Token = MetadataValue<Ascii>;

/// Makes the token of a subject ready to be sent.
///
/// # Errors
/// [`LoadError::Token`] when it has characters that no header can carry.
pub fn bearer(subject: &str, token: &str) -> Result<Token, LoadError> {
    format!("Bearer {token}").parse().map_err(|_| LoadError::Token { subject: subject.to_owned() })
}

/// Connections to the target.
#[derive(Debug, Clone)]
pub struct Pool {
    channels: Vec<Channel>,
    endpoints: Vec<String>,
    deadline: Duration,
}

impl Pool {
    /// Prepares connections; they are made by the first calls on them. Each call may take `deadline`.
    ///
    /// # Errors
    /// [`LoadError`] when there is no endpoint, or one is no URL.
    pub fn new(target: &Target, connections: usize, deadline: Duration) -> Result<Self, LoadError> {
        if target.endpoints.is_empty() {
            return Err(LoadError::Plan("no gateway is given: name at least one endpoint".to_owned()));
        }
        // At least one connection for each gateway, or a call could not go on to the next gateway.
        let count = connections.max(target.endpoints.len());
        let channels = (0..count)
            .map(|n| {
                let endpoint = &target.endpoints[n % target.endpoints.len()];
                let channel = Endpoint::from_shared(endpoint.clone())
                    .map_err(|source| LoadError::Endpoint { endpoint: endpoint.clone(), source })?
                    .tcp_nodelay(true)
                    .connect_timeout(Duration::from_secs(1))
                    .initial_stream_window_size(STREAM_WINDOW)
                    .initial_connection_window_size(CONNECTION_WINDOW)
                    .buffer_size(BUFFERED_REQUESTS)
                    .http2_keep_alive_interval(Duration::from_secs(5))
                    .keep_alive_timeout(Duration::from_secs(3))
                    .keep_alive_while_idle(true)
                    .connect_lazy();
                Ok(channel)
            })
            .collect::<Result<_, LoadError>>()?;
        Ok(Self { channels, endpoints: target.endpoints.clone(), deadline })
    }

    /// Deadline of each call.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Addresses for an error message.
    pub(crate) fn endpoints(&self) -> String {
        self.endpoints.join(", ")
    }

    /// How many connections there are.
    pub(crate) fn len(&self) -> usize {
        self.channels.len()
    }

    /// The connection of this slot.
    pub(crate) fn channel(&self, slot: u64) -> Channel {
        // The remainder is smaller than a usize: it comes from one.
        self.channels[(slot % self.channels.len() as u64) as usize].clone()
    }

    /// Client for buying, on the connection of this slot.
    pub fn tickets(&self, slot: u64) -> TicketServiceClient<Channel> {
        TicketServiceClient::new(self.channel(slot)).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Client for events, on the connection of this slot.
    pub fn events(&self, slot: u64) -> EventServiceClient<Channel> {
        EventServiceClient::new(self.channel(slot)).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// Client for outcomes, on the connection of this slot.
    pub fn outcomes(&self, slot: u64) -> OutcomeServiceClient<Channel> {
        OutcomeServiceClient::new(self.channel(slot))
    }

    /// Client for regions, on the connection of this slot.
    pub(crate) fn regions(&self, slot: u64) -> RegionServiceClient<Channel> {
        RegionServiceClient::new(self.channel(slot))
    }

    /// Client for operators, on the connection of this slot.
    pub fn operators(&self, slot: u64) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.channel(slot)).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    /// A request with token and deadline.
    pub fn request<T>(&self, token: &Token, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", token.clone());
        request.set_timeout(self.deadline);
        request
    }

    /// Waits for an answer, but never much longer than the deadline: a channel that cannot connect would
    /// otherwise hold its calls.
    ///
    /// # Errors
    /// What the gateway said, or DEADLINE_EXCEEDED.
    pub async fn bounded<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, Status> {
        let began = Instant::now();
        match tokio::time::timeout(self.deadline + DEADLINE_GRACE, call).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            // The channel's own clock reports an expired deadline as CANCELLED; it is no broken connection.
            Ok(Err(status)) if status.code() == Code::Cancelled && began.elapsed() >= self.deadline => {
                Err(Status::deadline_exceeded(LATE))
            }
            Ok(Err(status)) => Err(status),
            Err(_) => Err(Status::deadline_exceeded(LATE)),
        }
    }

    /// Opens every connection that can be opened, by listing regions on it, so that the measured part does
    /// not begin with handshakes. Succeeds when at least one gateway answers; returns the regions.
    pub(crate) async fn connect(
        &self,
        token: &Token,
        patience: Duration,
    ) -> Result<Vec<v1::Region>, LoadError> {
        let began = Instant::now();
        loop {
            let answers = futures_util::future::join_all(
                (0..self.len() as u64).map(|slot| self.list_regions(slot, token)),
            )
            .await;
            let mut last = None;
            for answer in answers {
                match answer {
                    Ok(regions) => return Ok(regions),
                    Err(status) => last = Some(status),
                }
            }
            let Some(status) = last else {
                return Err(LoadError::Plan("no connection is configured".to_owned()));
            };
            if began.elapsed() >= patience || !crate::meaning::worth_repeating(&status) {
                if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Unknown) {
                    return Err(LoadError::Unreachable {
                        endpoints: self.endpoints(),
                        waited: began.elapsed(),
                        last: status.message().to_owned(),
                    });
                }
                return Err(crate::setup::refused("listing the regions", &status));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn list_regions(&self, slot: u64, token: &Token) -> Result<Vec<v1::Region>, Status> {
        let mut pages = Pages::default();
        loop {
            let message = v1::ListRegionsRequest { page_size: 1_000, page_token: pages.next.clone() };
            let mut client = self.regions(slot);
            let page = self.bounded(client.list_regions(self.request(token, message))).await?;
            if !pages.take(page.regions, page.next_page_token)? {
                return Ok(pages.items);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures_util::StreamExt as _;
    use tidewall_proto::v1::region_service_server::{RegionService, RegionServiceServer};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::meaning::connection_closed;

    /// Connections are renewed every 20 ms here and a call takes 1 ms: that one call meets so many renewals in a row
    /// does not happen.
    const SENT_MAX: u32 = 20;

    struct Stub;

    #[tonic::async_trait]
    impl RegionService for Stub {
        async fn list_regions(
            &self,
            _: Request<v1::ListRegionsRequest>,
        ) -> Result<Response<v1::ListRegionsResponse>, Status> {
            tokio::time::sleep(Duration::from_millis(1)).await;
            Ok(Response::new(v1::ListRegionsResponse::default()))
        }

        async fn get_region(
            &self,
            _: Request<v1::GetRegionRequest>,
        ) -> Result<Response<v1::GetRegionResponse>, Status> {
            Err(Status::unimplemented("not asked for"))
        }
    }

    fn pool(endpoint: &std::net::SocketAddr) -> (Pool, Token) {
        let target =
            Target { endpoints: vec![format!("http://{endpoint}")], mint: Arc::new(|_, _| String::new()) };
        (Pool::new(&target, 2, Duration::from_secs(20)).unwrap(), bearer("alice", "token").unwrap())
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_call_that_met_a_renewed_connection_is_answered_when_it_is_sent_again() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (pool, token) = pool(&listener.local_addr().unwrap());
        let accepted = Arc::new(AtomicU32::new(0));
        let counting = Arc::clone(&accepted);
        let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
        let incoming = incoming.inspect(move |_| {
            counting.fetch_add(1, Ordering::Relaxed);
        });
        tokio::spawn(
            tonic::transport::Server::builder()
                .max_connection_age(Duration::from_millis(20))
                .add_service(RegionServiceServer::new(Stub))
                .serve_with_incoming(incoming),
        );
        let mut callers = tokio::task::JoinSet::new();
        for slot in 0..32 {
            let (pool, token) = (pool.clone(), token.clone());
            callers.spawn(async move {
                for _ in 0..60 {
                    let mut sent = 0;
                    while let Err(status) = pool.list_regions(slot, &token).await {
                        assert!(connection_closed(&status), "{status:?}");
                        sent += 1;
                        assert!(sent < SENT_MAX, "the last of {sent} attempts: {status:?}");
                    }
                }
            });
        }
        while let Some(ended) = callers.join_next().await {
            ended.unwrap();
        }
        let accepted = accepted.load(Ordering::Relaxed);
        assert!(accepted > pool.len() as u32, "{accepted} connections: none was renewed");
    }

    #[tokio::test]
    async fn a_connection_that_was_closed_is_told_from_one_that_was_never_made() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (pool, token) = pool(&address);
        let gateway = async {
            let (mut connection, _) = listener.accept().await.unwrap();
            // The preface and the first frames have come: the call is under way.
            connection.read_exact(&mut [0; 100]).await.unwrap();
        };
        let (status, ()) = tokio::join!(pool.list_regions(0, &token), gateway);
        let status = status.unwrap_err();
        assert!(connection_closed(&status), "{status:?}");
        drop(listener);
        let status = pool.list_regions(1, &token).await.unwrap_err();
        assert!(!connection_closed(&status), "{status:?}");
    }
}
