//! Calls to the other replicas, over links that all groups of a pair of nodes share.
//!
//! Appends have one link, heartbeats and votes another, messages between groups a third, so that a large append never delays a
//! heartbeat. Snapshots go over a connection of their own. A peer that cannot be reached is reported as unreachable, which makes
//! openraft back off instead of retrying in a hot loop. Every call has a deadline.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use openraft::base::{BoxFuture, BoxStream};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::impls::BasicNode;
use openraft::network::v2::RaftNetworkV2;
use openraft::network::{RPCOption, RaftNetworkFactory, stream_append_sequential};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use parking_lot::{Mutex, RwLock};
use tidewall_env::tasks;
use tidewall_link::{Credentials, Link, LinkOptions, Lives, NodeChannel, Parties, PeerProtocol};
use tidewall_machine::snapshot;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::internal::v1::peer_service_client::PeerServiceClient;
use tokio::time::Instant;

use crate::appends;
use crate::convert::*;
use crate::state::{SnapshotData, StateHandle};
use crate::types::*;

/// Time for a snapshot to be sent and installed.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(600);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Who the peers of a node are.
#[derive(Debug, Clone)]
pub struct PeersConfig {
    /// The cluster: calls of another one are refused.
    pub cluster: [u8; 16],
    /// This node's life, and those of the others that it has met.
    pub lives: Arc<Lives>,
    /// What this node proves itself with; `None` where there is no TLS.
    pub credentials: Option<Credentials>,
    /// Peer ports by node id.
    pub addresses: BTreeMap<u64, SocketAddr>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Lane {
    Appends,
    Control,
    Messages,
}

/// Links by node and lane.
type Links = BTreeMap<(u64, Lane), Link<PeerProtocol>>;

/// Links to all peers of this node; clones share them.
#[derive(Clone)]
pub struct Peers {
    addresses: Arc<RwLock<BTreeMap<u64, SocketAddr>>>,
    links: Arc<Mutex<Links>>,
    cluster: [u8; 16],
    lives: Arc<Lives>,
    credentials: Option<Credentials>,
    /// Where the links are at home: no group's work keeps those of others waiting.
    runtime: Option<tokio::runtime::Handle>,
}

impl Peers {
    /// No link is opened before it is used; all of them are served by the runtime that this is called in.
    pub fn new(config: PeersConfig) -> Self {
        let PeersConfig { cluster, lives, credentials, addresses } = config;
        let addresses = Arc::new(RwLock::new(addresses));
        let runtime = tokio::runtime::Handle::try_current().ok();
        Self { addresses, links: Arc::default(), cluster, lives, credentials, runtime }
    }

    /// Nodes have joined, left or moved.
    pub fn adopt(&self, addresses: BTreeMap<u64, SocketAddr>) {
        let mut known = self.addresses.write();
        self.links.lock().retain(|(node, _), _| addresses.get(node) == known.get(node));
        *known = addresses;
    }

    /// This node's life, and those of the others.
    pub fn lives(&self) -> &Arc<Lives> {
        &self.lives
    }

    /// Where a node's peer port is.
    pub fn address(&self, node: u64) -> Option<SocketAddr> {
        self.addresses.read().get(&node).copied()
    }

    fn parties(&self, to: u64) -> Parties {
        Parties::new(self.cluster, Some(Arc::clone(&self.lives)), to)
    }

    fn link(&self, node: u64, lane: Lane) -> Option<Link<PeerProtocol>> {
        let address = self.address(node)?;
        let mut links = self.links.lock();
        let link = links.entry((node, lane));
        // Short pauses: a follower that comes back should be heard within an election timeout.
        let options = LinkOptions {
            backoff_min: Duration::from_millis(20),
            backoff_max: Duration::from_millis(200),
            credentials: self.credentials.clone(),
            runtime: self.runtime.clone(),
            ..LinkOptions::default()
        };
        Some(link.or_insert_with(|| Link::connect_lazy(address, self.parties(node), options)).clone())
    }

    /// Lets another node and this one recognise, or refuse, each other.
    ///
    /// # Errors
    /// Why the node did not answer.
    pub async fn meet(&self, node: u64, timeout: Duration) -> Result<(), String> {
        let rpc = pb::peer_call::Rpc::Meet(pb::Meet {});
        let met = self.call(node, Lane::Control, 0, 0, rpc, timeout).await;
        met.map(drop).map_err(|error| error.to_string())
    }

    /// Tells another node this one's report and hears that one's, in bounded time.
    ///
    /// # Errors
    /// Why the node did not answer.
    pub async fn report(
        &self,
        node: u64,
        report: pb::NodeReport,
        timeout: Duration,
    ) -> Result<pb::NodeReport, String> {
        let rpc = pb::peer_call::Rpc::Report(report);
        match self.call(node, Lane::Control, 0, 0, rpc, timeout).await.map_err(|error| error.to_string())? {
            pb::peer_reply::Result::Report(report) => Ok(report),
            _ => Err("the peer answered another call than was made".into()),
        }
    }

    /// Asks for another node's keyring.
    ///
    /// # Errors
    /// That the node does not answer.
    pub async fn keyring(
        &self,
        node: u64,
        request: pb::KeyringRequest,
        timeout: Duration,
    ) -> Result<pb::KeyringResponse, String> {
        let rpc = pb::peer_call::Rpc::Keyring(request);
        // Parts may be large: no heartbeat is to wait behind one.
        match self.call(node, Lane::Appends, 0, 0, rpc, timeout).await.map_err(|error| error.to_string())? {
            pb::peer_reply::Result::Keyring(response) => Ok(response),
            _ => Err("the peer answered another call than was made".into()),
        }
    }

    /// Brings messages of one group to another one, on a node that should lead it.
    ///
    /// # Errors
    /// That the node does not answer. It may have taken them in all the same.
    pub async fn deliver(
        &self,
        node: u64,
        deliver: pb::Deliver,
        timeout: Duration,
    ) -> Result<pb::Delivered, String> {
        let rpc = pb::peer_call::Rpc::Deliver(deliver);
        match self.call(node, Lane::Messages, 0, 0, rpc, timeout).await.map_err(|error| error.to_string())? {
            pb::peer_reply::Result::Delivered(delivered) => Ok(delivered),
            _ => Err("the peer answered another call than was made".into()),
        }
    }

    async fn call(
        &self,
        node: u64,
        lane: Lane,
        group: u32,
        incarnation: u64,
        rpc: pb::peer_call::Rpc,
        timeout: Duration,
    ) -> Result<pb::peer_reply::Result, RPCError<Types>> {
        let Some(link) = self.link(node, lane) else {
            return Err(unreachable(&format!("node {node} is not in the topology")));
        };
        let call = pb::PeerCall { id: 0, group, rpc: Some(rpc), incarnation, reached: self.lives.reached() };
        let reply = link
            .call(call, Instant::now() + timeout)
            .await
            .map_err(|error| unreachable(&error.to_string()))?;
        // Before anybody counts what the peer has stored.
        self.lives.hear(node, reply.reached);
        match reply.result {
            Some(pb::peer_reply::Result::Error(error)) => Err(unreachable(&error)),
            Some(result) => Ok(result),
            None => Err(unreachable("the peer sent an empty reply")),
        }
    }
}

fn unreachable(why: &str) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(why))
}

fn unexpected() -> RPCError<Types> {
    unreachable("the peer answered another call than was made")
}

/// The way of one group to one of its peers, in one of the lanes.
pub struct Way {
    peers: Peers,
    target: u64,
    group: u32,
    lane: Lane,
    state: StateHandle,
}

impl Way {
    async fn call(
        &self,
        lane: Lane,
        rpc: pb::peer_call::Rpc,
        option: &RPCOption,
    ) -> Result<pb::peer_reply::Result, RPCError<Types>> {
        // Of the rows that speak.
        let incarnation = self.state.read(tidewall_machine::Machine::incarnation);
        self.peers.call(self.target, lane, self.group, incarnation, rpc, option.soft_ttl()).await
    }
}

impl RaftNetworkV2<Types> for Way {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        match self.call(self.lane, pb::peer_call::Rpc::Append(pb_append(rpc)), &option).await? {
            pb::peer_reply::Result::Append(reply) => from_pb_append_reply(reply).map_err(|e| unreachable(&e)),
            _ => Err(unexpected()),
        }
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<
        's,
        Result<BoxStream<'s, Result<StreamAppendResult<Types>, RPCError<Types>>>, RPCError<Types>>,
    >
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    {
        match self.lane {
            Lane::Appends => appends::send(self, input, option),
            // A heartbeat is without entries, and must not wait for any.
            Lane::Control | Lane::Messages => stream_append_sequential(self, input, option),
        }
    }

    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let rpc = pb::peer_call::Rpc::Vote(pb_vote_request(&rpc));
        match self.call(Lane::Control, rpc, &option).await? {
            pb::peer_reply::Result::Vote(reply) => from_pb_vote_reply(reply).map_err(|e| unreachable(&e)),
            _ => Err(unexpected()),
        }
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        let rpc = pb::peer_call::Rpc::PreVote(pb_vote_request(&rpc));
        match self.call(Lane::Control, rpc, &option).await? {
            pb::peer_reply::Result::Vote(reply) => from_pb_vote_reply(reply).map_err(|e| unreachable(&e)),
            _ => Err(unexpected()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + Send + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            biased;
            closed = cancel => Err(StreamingError::Closed(closed)),
            sent = tokio::time::timeout(SNAPSHOT_TIMEOUT, self.send_snapshot(vote, snapshot)) => {
                let sent = sent.unwrap_or_else(|_| Err("the peer took too long to install the snapshot".into()));
                sent.map_err(|why| StreamingError::Unreachable(Unreachable::from_string(why)))
            }
        }
    }

    async fn transfer_leader(
        &mut self,
        req: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let rpc = pb::peer_call::Rpc::Transfer(pb_transfer(&req));
        match self.call(Lane::Control, rpc, &option).await? {
            pb::peer_reply::Result::Transfer(reply) if reply.error.is_empty() => Ok(Ok(())),
            pb::peer_reply::Result::Transfer(reply) => Err(unreachable(&reply.error)),
            _ => Err(unexpected()),
        }
    }
}

impl Way {
    async fn send_snapshot(&self, vote: Vote, snapshot: Snapshot) -> Result<SnapshotResponse<Types>, String> {
        let SnapshotData::Frozen(frozen) = snapshot.snapshot else {
            return Err("this snapshot is a checkpoint on the local disk, not a state to send".into());
        };
        let (target, group) = (self.target, self.group);
        let address =
            self.peers.address(target).ok_or_else(|| format!("node {target} is not in the topology"))?;
        let channel = tidewall_link::connect(address, CONNECT_TIMEOUT, self.peers.credentials.as_ref()).await;
        let channel = channel.map_err(|e| e.to_string())?;
        let channel = NodeChannel::new(channel, address, self.peers.parties(target));
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        let head = pb::SnapshotHead { group, vote: Some(pb_vote(&vote)), incarnation: frozen.incarnation };
        // Encoding is CPU work that can take long: not on a thread that heartbeats need.
        tasks::produce(sender, move |send| {
            let mut head = Some(head);
            for part in snapshot::encode(&frozen) {
                if !send(pb::InstallSnapshotRequest { head: head.take(), chunk: part.into() }) {
                    return;
                }
            }
        });
        let mut client = PeerServiceClient::new(channel);
        let stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let reply =
            client.install_snapshot(stream).await.map_err(|status| status.message().to_owned())?.into_inner();
        match (reply.error.as_str(), reply.vote) {
            ("", Some(vote)) => Ok(SnapshotResponse::new(from_pb_vote(&vote))),
            ("", None) => Err("the peer sent an empty reply".into()),
            (error, _) => Err(error.to_owned()),
        }
    }
}

/// Makes one group's connections.
#[derive(Clone)]
pub struct Network {
    pub peers: Peers,
    pub group: u32,
    pub state: StateHandle,
}

impl Network {
    fn way(&self, target: u64, lane: Lane) -> Way {
        Way { peers: self.peers.clone(), target, group: self.group, lane, state: self.state.clone() }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Way;

    async fn new_client(&mut self, target: u64, _: &BasicNode) -> Self::Network {
        self.way(target, Lane::Appends)
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &BasicNode) -> Self::Network {
        self.way(target, Lane::Control)
    }
}
