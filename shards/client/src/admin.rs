//! Calls that are not multiplexed: state of nodes, export and import. They go to one node, once: nothing is
//! replayed here, because a stream of chunks cannot be.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{BoxFuture, join_all};
use tidewall_link::{NodeChannel, connect_lazy};
use tidewall_proto::internal::v1 as pb;
use tokio::time::Instant;
use tonic::{Code, Status, Streaming};

use crate::{ClientError, ShardClient};

type NodeClient = pb::shard_service_client::ShardServiceClient<NodeChannel>;

/// Time to ask all nodes who leads.
const DISCOVERY_TIMEOUT: Duration = Duration::from_secs(1);

/// Pause before a change of replicas is asked for again.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Largest message of these calls, bytes: node states with many hot rows, chunks of a snapshot.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

/// What a leader says to an order: why nothing was done, and what was.
type Ordered<T> = BoxFuture<'static, Result<(Option<pb::Refusal>, T), ClientError>>;

impl ShardClient {
    pub(crate) fn node_client(&self, position: usize) -> NodeClient {
        let node = self.nodes.at(position);
        let channel = node.channel.get_or_init(|| {
            let link = &self.options.link;
            let channel = connect_lazy(node.address, link.connect_timeout, link.credentials.as_ref());
            NodeChannel::new(channel, node.address, node.parties.clone())
        });
        NodeClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// State of all nodes of the cluster, asked at the same time. A node that does not
    /// answer within `timeout` is [`ClientError::Unavailable`].
    pub async fn node_states(
        &self,
        timeout: Duration,
    ) -> Vec<(u64, Result<pb::GetNodeStateResponse, ClientError>)> {
        let mut asked = Vec::new();
        for (position, node) in self.nodes.present() {
            let client = self.node_client(position);
            asked.push(async move {
                let began = Instant::now();
                let (node, state) = ask(node.id, client, timeout).await;
                // A node that knows its clock to be wrong is no witness.
                if let Ok(state) = &state
                    && !state.clock_far
                    && state.now_ms > 0
                {
                    self.clock.read(node, state.now_ms, began);
                }
                (node, state)
            });
        }
        join_all(asked).await
    }

    /// Asks all nodes who leads and remembers it. Returns how many groups have no leader that answers.
    pub async fn discover(&self, timeout: Duration) -> usize {
        // Term and position of the newest leader by group: a deposed one may not know it yet.
        let mut leaders: Vec<Option<(u64, usize)>> = vec![None; self.groups.len()];
        for (node, state) in self.node_states(timeout).await {
            let (Some(position), Ok(state)) = (self.node_position(node), state) else {
                continue;
            };
            for replica in state.groups.iter().filter(|replica| replica.role == "leader") {
                let slot = (replica.group as usize).checked_sub(1).and_then(|at| leaders.get_mut(at));
                if let Some(slot) = slot {
                    *slot = (*slot).max(Some((replica.term, position)));
                }
            }
        }
        for (group, leader) in self.groups.iter().zip(&leaders) {
            if let Some((_, position)) = leader {
                group.settle(*position);
            }
        }
        leaders.iter().filter(|leader| leader.is_none()).count()
    }

    /// Streams a snapshot file of a group from its leader.
    ///
    /// # Errors
    /// [`ClientError::Unavailable`] when the leader cannot be asked.
    pub async fn export(
        &self,
        group: u32,
        timeout: Duration,
    ) -> Result<Streaming<pb::ExportResponse>, ClientError> {
        self.discover(timeout).await;
        let leader = self.group(group)?.leader();
        let opened = self.node_client(leader).export(pb::ExportRequest { group }).await;
        opened
            .map(tonic::Response::into_inner)
            .map_err(|status| ClientError::Unavailable { why: status.message().to_owned() })
    }

    /// Hands the lead of a group to node `to`. Follows the lead to whoever has it when the order comes.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when that node cannot lead, [`ClientError::Unavailable`] when no leader took the order,
    /// [`ClientError::Unknown`] when what came of it was not seen.
    pub async fn transfer_lead(
        &self,
        group: u32,
        to: u64,
        principal: String,
        timeout: Duration,
    ) -> Result<pb::TransferLeadResponse, ClientError> {
        let give = |mut node: NodeClient, timeout: Duration| -> Ordered<_> {
            let (timeout_ms, principal) = (granted(timeout), principal.clone());
            let request = pb::TransferLeadRequest { group, to_node: to, timeout_ms, principal };
            Box::pin(async move {
                let response = order(timeout, node.transfer_lead(request)).await?;
                Ok((response.refusal.clone(), response))
            })
        };
        let response = self.order_leader(group, timeout, give).await?;
        self.discover(timeout.min(DISCOVERY_TIMEOUT)).await;
        Ok(response)
    }

    /// Gives an order to whoever leads a group; to the next one when the lead has moved since it was asked for, and nothing was done.
    async fn order_leader<T>(
        &self,
        group: u32,
        timeout: Duration,
        give: impl Fn(NodeClient, Duration) -> Ordered<T>,
    ) -> Result<T, ClientError> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.discover(left.min(DISCOVERY_TIMEOUT)).await;
            let leader = self.group(group)?.leader();
            let (refusal, done) = give(self.node_client(leader), left).await?;
            let Some(pb::Refusal { message, kind, .. }) = refusal else { return Ok(done) };
            match pb::RefusalKind::try_from(kind) {
                Ok(pb::RefusalKind::Invalid) => return Err(ClientError::Invalid(message)),
                Ok(pb::RefusalKind::Unknown) => return Err(ClientError::Unknown { why: message }),
                Ok(pb::RefusalKind::NotLeader) if Instant::now() + AGAIN_AFTER < deadline => {
                    tokio::time::sleep(AGAIN_AFTER).await;
                }
                _ => return Err(ClientError::Unavailable { why: message }),
            }
        }
    }

    /// Carries a dead letter of a group out once more, or drops it; says how many the group has then. Follows the lead.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it cannot be done, [`ClientError::Unavailable`] when no leader took the order,
    /// [`ClientError::Unknown`] when what came of it was not seen: a repetition finds the dead letter, or not.
    pub async fn resolve_dead_letter(
        &self,
        group: u32,
        id: &str,
        drop: bool,
        principal: &str,
        timeout: Duration,
    ) -> Result<u64, ClientError> {
        let give = |mut node: NodeClient, timeout: Duration| -> Ordered<_> {
            let (id, principal) = (id.to_owned(), principal.to_owned());
            let request = pb::ResolveDeadLetterRequest { group, id, drop, principal };
            Box::pin(async move {
                let response = order(timeout, node.resolve_dead_letter(request)).await?;
                Ok((response.refusal, response.remaining))
            })
        };
        self.order_leader(group, timeout, give).await
    }

    /// Moves all leads away from a node and keeps new ones away, or accepts them again. Harmless when repeated.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when the topology has no such node, [`ClientError::Unavailable`] or
    /// [`ClientError::Unknown`] when it does not answer.
    pub async fn drain(
        &self,
        node: u64,
        drained: bool,
        principal: String,
        timeout: Duration,
    ) -> Result<pb::DrainResponse, ClientError> {
        let position = self.node_position(node).ok_or_else(|| self.no_such_node(node))?;
        let timeout_ms = granted(timeout);
        let request = pb::DrainRequest { drained, timeout_ms, principal };
        let mut client = self.node_client(position);
        let response = order(timeout, client.drain(request)).await?;
        self.discover(timeout.min(DISCOVERY_TIMEOUT)).await;
        Ok(response)
    }

    /// Makes `add` vote in a group and `remove` leave it; follows the lead, which may move on the way. May be repeated
    /// until it succeeds.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when it cannot be done, [`ClientError::Unknown`] when it is not done yet.
    pub async fn change_replicas(
        &self,
        group: u32,
        add: &[u64],
        remove: &[u64],
        principal: &str,
        timeout: Duration,
    ) -> Result<pb::ChangeReplicasResponse, ClientError> {
        let deadline = Instant::now() + timeout;
        let mut why = "no node leads the group".to_owned();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(ClientError::Unknown { why });
            }
            self.discover(left.min(DISCOVERY_TIMEOUT)).await;
            let leader = self.group(group)?.leader();
            let request = pb::ChangeReplicasRequest {
                group,
                add_nodes: add.to_vec(),
                remove_nodes: remove.to_vec(),
                timeout_ms: granted(left),
                principal: principal.to_owned(),
            };
            let mut client = self.node_client(leader);
            match order(left, client.change_replicas(request)).await {
                Ok(pb::ChangeReplicasResponse { refusal: Some(refusal), .. }) => match refusal.kind() {
                    pb::RefusalKind::Invalid => return Err(ClientError::Invalid(refusal.message)),
                    _ => why = refusal.message,
                },
                Ok(response) => return Ok(response),
                Err(ClientError::Unavailable { why: now } | ClientError::Unknown { why: now }) => why = now,
                Err(error) => return Err(error),
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }

    /// Asks one node about a forced recovery of a group from its replica, or orders it.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when the node is not known, others when it does not answer. A refusal is in the response.
    pub async fn recover(
        &self,
        node: u64,
        request: pb::RecoverRequest,
        timeout: Duration,
    ) -> Result<pb::RecoverResponse, ClientError> {
        let position = self.node_position(node).ok_or_else(|| self.no_such_node(node))?;
        order(timeout, self.node_client(position).recover(request)).await
    }

    fn no_such_node(&self, node: u64) -> ClientError {
        let known: Vec<String> = self.node_addresses().keys().map(u64::to_string).collect();
        ClientError::Invalid(format!("there is no node {node}: this cluster has {}", known.join(", ")))
    }

    /// Finds the leader of a group for an import.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when there is no such group.
    pub async fn importer(&self, group: u32, timeout: Duration) -> Result<Importer, ClientError> {
        self.discover(timeout).await;
        let leader = self.group(group)?.leader();
        Ok(Importer { group, client: self.node_client(leader) })
    }
}

/// A way to restore a snapshot file into one group.
pub struct Importer {
    group: u32,
    client: NodeClient,
}

impl Importer {
    /// Sends the file to the leader. A file that is cut short is refused by the node, which verifies it
    /// before the first row changes.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when the leader may have imported it and did not say so.
    pub fn run(
        mut self,
        replace: bool,
        principal: String,
        chunks: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
    ) -> BoxFuture<'static, Result<pb::ImportResponse, ClientError>> {
        let head = pb::ImportRequest { group: self.group, replace, principal, chunk: Bytes::new() };
        let requests = ImportRequests { head: Some(head), chunks };
        // Behind a pointer: callers cannot prove the bare future to be `Send` for every lifetime.
        Box::pin(async move {
            match self.client.import(requests).await {
                Ok(response) => Ok(response.into_inner()),
                Err(status) => Err(import_failure(&status)),
            }
        })
    }
}

impl std::fmt::Debug for Importer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Importer").field("group", &self.group).finish_non_exhaustive()
    }
}

/// The messages of an import: the head, then the chunks.
struct ImportRequests {
    head: Option<pb::ImportRequest>,
    chunks: Pin<Box<dyn Stream<Item = Bytes> + Send>>,
}

impl Stream for ImportRequests {
    type Item = pb::ImportRequest;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<pb::ImportRequest>> {
        if let Some(head) = self.head.take() {
            return Poll::Ready(Some(head));
        }
        let next = self.chunks.as_mut().poll_next(context);
        next.map(|chunk| chunk.map(|chunk| pb::ImportRequest { chunk, ..pb::ImportRequest::default() }))
    }
}

/// What a node is granted of a caller's time, ms: it must answer before the caller gives up.
fn granted(timeout: Duration) -> u32 {
    timeout.mul_f64(0.8).as_millis().min(u32::MAX.into()) as u32
}

/// Waits for the answer to an order.
async fn order<T>(
    timeout: Duration,
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> Result<T, ClientError> {
    match tokio::time::timeout(timeout, call).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(match status.code() {
            Code::InvalidArgument => ClientError::Invalid(status.message().to_owned()),
            Code::NotFound | Code::Unimplemented | Code::FailedPrecondition => {
                ClientError::Unavailable { why: status.message().to_owned() }
            }
            _ => ClientError::Unknown { why: status.message().to_owned() },
        }),
        Err(_) => Err(ClientError::Unknown { why: format!("no answer within {} ms", timeout.as_millis()) }),
    }
}

/// State of one node.
async fn ask(
    node: u64,
    mut client: NodeClient,
    timeout: Duration,
) -> (u64, Result<pb::GetNodeStateResponse, ClientError>) {
    let answer = tokio::time::timeout(timeout, client.get_node_state(pb::GetNodeStateRequest {}));
    let state = match answer.await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(ClientError::Unavailable { why: status.message().to_owned() }),
        Err(_) => {
            Err(ClientError::Unavailable { why: format!("no answer within {} ms", timeout.as_millis()) })
        }
    };
    (node, state)
}

/// A failed import is unknown unless the node itself said that it never began.
fn import_failure(status: &Status) -> ClientError {
    match status.code() {
        Code::InvalidArgument | Code::Unimplemented | Code::FailedPrecondition => {
            ClientError::Invalid(status.message().to_owned())
        }
        _ => ClientError::Unknown { why: status.message().to_owned() },
    }
}
