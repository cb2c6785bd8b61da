//! Calls that are not multiplexed: state of nodes, export and import. They go to one node, once: nothing is
//! replayed here, because a stream of chunks cannot be.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::future::{BoxFuture, join_all};
use tidewall_link::endpoint;
use tidewall_proto::internal::v1 as pb;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use crate::{ClientError, ShardClient};

type NodeClient = pb::shard_service_client::ShardServiceClient<Channel>;

/// Largest message of these calls, bytes: node states with many hot rows, chunks of a snapshot.
const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;

impl ShardClient {
    fn node_client(&self, position: usize) -> NodeClient {
        let node = &self.nodes[position];
        let channel = node
            .channel
            .get_or_init(|| endpoint(node.address, self.options.link.connect_timeout).connect_lazy());
        NodeClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// State of all nodes, in the order of the topology, asked at the same time. A node that does not
    /// answer within `timeout` is [`ClientError::Unavailable`].
    pub async fn node_states(
        &self,
        timeout: Duration,
    ) -> Vec<(u64, Result<pb::GetNodeStateResponse, ClientError>)> {
        let mut asked = Vec::with_capacity(self.nodes.len());
        for (position, node) in self.nodes.iter().enumerate() {
            asked.push(ask(node.id, self.node_client(position), timeout));
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
