//! Answers the other replicas.
//!
//! Calls of all groups arrive on shared streams; each is handed to its group and answered when that is done. Snapshot
//! files are received into a temporary file and verified before openraft hears of them. Who calls was checked before
//! ([`NodeIdentity`](tidewall_link::NodeIdentity)): this must never serve without it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use futures_util::future::BoxFuture;
use parking_lot::RwLock;
use tidewall_env::tasks;
use tidewall_link::{
    Handler, Lives, PeerProtocol, ReplySender, ReplyStream, ServeOptions, calling_node, serve,
};
use tidewall_machine::snapshot;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::internal::v1::peer_service_server::PeerService;
use tokio::io::AsyncWriteExt as _;
use tonic::{Request, Response, Status, Streaming};

use crate::convert::*;
use crate::group::Group;
use crate::state::SnapshotData;
use crate::types::*;

/// Serves the peer port of a node; clones share the groups.
#[derive(Clone)]
pub struct PeerServer {
    shared: Arc<Shared>,
}

/// Takes another node's report and gives this one's.
type Reporter = Box<dyn Fn(pb::NodeReport) -> pb::NodeReport + Send + Sync>;

/// Answers for this node's keyring.
type Keys = Box<dyn Fn(pb::KeyringRequest) -> BoxFuture<'static, pb::KeyringResponse> + Send + Sync>;

/// Takes in messages of other groups.
type Receiver = Box<dyn Fn(pb::Deliver) -> BoxFuture<'static, pb::Delivered> + Send + Sync>;

struct Shared {
    groups: RwLock<BTreeMap<u32, Group>>,
    /// Takes in messages of other groups.
    receiver: OnceLock<Receiver>,
    /// Answers for the keyring.
    keys: OnceLock<Keys>,
    /// Takes another node's report and gives this one's.
    reporter: OnceLock<Reporter>,
    /// Where snapshot files are received; `None`: in memory.
    incoming: Option<PathBuf>,
    received: AtomicU64,
    lives: Arc<Lives>,
}

impl PeerServer {
    /// Serves no group yet; `incoming` is an existing directory for files on their way. Without one they are received
    /// into memory, which is for simulation.
    pub fn new(incoming: Option<PathBuf>, lives: Arc<Lives>) -> Self {
        let (groups, reporter, keys) = (RwLock::default(), OnceLock::new(), OnceLock::new());
        let receiver = OnceLock::new();
        let shared =
            Shared { groups, receiver, keys, reporter, incoming, received: AtomicU64::new(0), lives };
        Self { shared: Arc::new(shared) }
    }

    /// Serves a group from now on.
    pub fn add(&self, group: Group) {
        self.shared.groups.write().insert(group.number(), group);
    }

    /// Answers the reports of other nodes with `reporter` from now on; only the first one given counts.
    pub fn on_report(&self, reporter: impl Fn(pb::NodeReport) -> pb::NodeReport + Send + Sync + 'static) {
        let _ = self.shared.reporter.set(Box::new(reporter));
    }

    /// Answers what other nodes ask of the keyring with `keys` from now on; only the first one given counts.
    pub fn on_keyring(
        &self,
        keys: impl Fn(pb::KeyringRequest) -> BoxFuture<'static, pb::KeyringResponse> + Send + Sync + 'static,
    ) {
        let _ = self.shared.keys.set(Box::new(keys));
    }

    /// Has `receiver` take in messages between groups from now on; only the first one given counts.
    pub fn on_deliver(
        &self,
        receiver: impl Fn(pb::Deliver) -> BoxFuture<'static, pb::Delivered> + Send + Sync + 'static,
    ) {
        let _ = self.shared.receiver.set(Box::new(receiver));
    }

    fn group(&self, number: u32) -> Result<Group, String> {
        let groups = self.shared.groups.read();
        groups.get(&number).cloned().ok_or_else(|| format!("this node does not serve group {number}"))
    }

    async fn answer(&self, call: pb::PeerCall) -> Result<pb::peer_reply::Result, String> {
        use pb::peer_call::Rpc;
        use pb::peer_reply::Result as Reply;
        if let Some(Rpc::Report(report)) = call.rpc {
            let reporter = self.shared.reporter.get().ok_or("this node is still starting")?;
            return Ok(Reply::Report(reporter(report)));
        }
        if let Some(Rpc::Keyring(request)) = call.rpc {
            let keys = self.shared.keys.get().ok_or("this node is still starting")?;
            return Ok(Reply::Keyring(keys(request).await));
        }
        if let Some(Rpc::Deliver(deliver)) = call.rpc {
            let receiver = self.shared.receiver.get().ok_or("this node is still starting")?;
            return Ok(Reply::Delivered(receiver(deliver).await));
        }
        if let Some(Rpc::Meet(_)) = call.rpc {
            return Ok(Reply::Meet(pb::Meet {}));
        }
        let group = self.group(call.group)?;
        fenced(&group, call.incarnation)?;
        let raft = group.raft();
        let failed = |error: &dyn std::fmt::Display| error.to_string();
        match call.rpc.ok_or("the call is empty")? {
            Rpc::Append(message) => {
                let response = raft.append_entries(from_pb_append(message)?).await.map_err(|e| failed(&e))?;
                Ok(Reply::Append(pb_append_reply(response)))
            }
            Rpc::Vote(message) => {
                let response = raft.vote(from_pb_vote_request(message)?).await.map_err(|e| failed(&e))?;
                Ok(Reply::Vote(pb_vote_reply(&response)))
            }
            Rpc::PreVote(message) => {
                let response = raft.pre_vote(from_pb_vote_request(message)?).await.map_err(|e| failed(&e))?;
                Ok(Reply::Vote(pb_vote_reply(&response)))
            }
            Rpc::Transfer(message) => {
                let response = raft.handle_transfer_leader(from_pb_transfer(&message)?).await;
                let error = match response.map_err(|e| failed(&e))? {
                    Ok(()) => String::new(),
                    Err(error) => error.to_string(),
                };
                Ok(Reply::Transfer(pb::TransferReply { error }))
            }
            Rpc::Report(_) | Rpc::Meet(_) | Rpc::Keyring(_) | Rpc::Deliver(_) => {
                Err("this call concerns no group".into())
            }
        }
    }

    async fn receive(&self, mut parts: Streaming<pb::InstallSnapshotRequest>) -> Result<Vote, String> {
        let first =
            parts.message().await.map_err(|e| e.to_string())?.ok_or("the snapshot stream is empty")?;
        let head = first.head.ok_or("the snapshot stream has no head")?;
        let group = self.group(head.group)?;
        fenced(&group, head.incarnation)?;
        // Before any of it is read: nothing would come of it, and it would be sent again and again.
        if let Some(why) = group.status().fault {
            return Err(format!("this replica has halted and takes no snapshot: {why}"));
        }
        let vote = from_pb_vote(&head.vote.ok_or("the snapshot stream has no vote")?);
        let number = self.shared.received.fetch_add(1, Ordering::Relaxed);
        let loaded = match &self.shared.incoming {
            Some(directory) => {
                let file = Incoming(directory.join(format!("group-{}-{number}.snapshot", head.group)));
                through_file(first.chunk, parts, &file.0).await?
            }
            None => through_memory(&first.chunk, parts).await?,
        };
        let meta = snapshot_meta(&loaded.header.head).map_err(|e| e.to_string())?;
        let snapshot = Snapshot { meta, snapshot: SnapshotData::Received(Box::new(loaded.machine)) };
        let response = group.raft().install_full_snapshot(vote, snapshot).await.map_err(|e| e.to_string())?;
        // A snapshot of what this replica has applied already is answered at once, and the leader takes the answer for the log's:
        // entries are applied before they are durable, and would be missed after a crash.
        group.log_is_durable().await?;
        Ok(response.vote)
    }
}

/// Refuses the calls of replicas that a forced recovery has left behind, and all calls to such a one: Raft itself would
/// follow any higher term.
fn fenced(group: &Group, incarnation: u64) -> Result<(), String> {
    let fence = group.state().fence();
    if incarnation < fence {
        return Err(format!(
            "incarnation {incarnation} was left behind by a forced recovery, which began {fence}"
        ));
    }
    if fence == 0 {
        // Nobody was ever left behind. Looking at the rows would wait for apply, and with it every other group's heartbeat.
        return Ok(());
    }
    let own = group.state().read(tidewall_machine::Machine::incarnation);
    // A replica that has nothing yet is about to receive the new incarnation.
    if own < fence && group.status().last_log > 0 {
        return Err(format!("this replica's incarnation {own} was left behind by a forced recovery"));
    }
    Ok(())
}

/// Receives a snapshot file and verifies it: read once, on a thread that no heartbeat needs.
async fn through_file(
    first: bytes::Bytes,
    mut parts: Streaming<pb::InstallSnapshotRequest>,
    path: &std::path::Path,
) -> Result<snapshot::Loaded, String> {
    let text = |error: std::io::Error| format!("cannot write {}: {error}", path.display());
    let mut file = tokio::fs::File::create(path).await.map_err(text)?;
    file.write_all(&first).await.map_err(text)?;
    while let Some(part) = parts.message().await.map_err(|e| e.to_string())? {
        file.write_all(&part.chunk).await.map_err(text)?;
    }
    file.sync_all().await.map_err(text)?;
    let from = path.to_owned();
    let loaded = tasks::off_thread(move || {
        let file = std::fs::File::open(&from).map_err(|e| e.to_string())?;
        let mut file = std::io::BufReader::with_capacity(1 << 20, file);
        snapshot::read(&mut file).map_err(|e| e.to_string())
    });
    loaded.await?
}

/// The same without a file.
async fn through_memory(
    first: &[u8],
    mut parts: Streaming<pb::InstallSnapshotRequest>,
) -> Result<snapshot::Loaded, String> {
    let mut file = first.to_vec();
    while let Some(part) = parts.message().await.map_err(|e| e.to_string())? {
        file.extend_from_slice(&part.chunk);
    }
    snapshot::read(&mut file.as_slice()).map_err(|e| e.to_string())
}

/// A file on its way: gone when it is not needed any more, whatever came of it.
struct Incoming(PathBuf);

impl Drop for Incoming {
    fn drop(&mut self) {
        // It may never have been made; a leftover is removed at the next start at the latest.
        let _ = std::fs::remove_file(&self.0);
    }
}

struct PeerHandler {
    server: PeerServer,
    /// The node that calls.
    from: u64,
}

impl Handler<PeerProtocol> for PeerHandler {
    fn on_calls(&mut self, calls: Vec<pb::PeerCall>, replies: &ReplySender<PeerProtocol>) {
        for call in calls {
            // Before anybody counts what the caller has stored.
            self.server.shared.lives.hear(self.from, call.reached);
            let (server, replies, id) = (self.server.clone(), replies.clone(), call.id);
            tokio::spawn(async move {
                let result = server.answer(call).await.unwrap_or_else(pb::peer_reply::Result::Error);
                let reached = server.shared.lives.reached();
                replies.send(pb::PeerReply { id, result: Some(result), reached });
            });
        }
    }

    fn refuse(&mut self, call: pb::PeerCall) -> pb::PeerReply {
        let error = "too many calls of this peer are without an answer".to_owned();
        let reached = self.server.shared.lives.reached();
        pb::PeerReply { id: call.id, result: Some(pb::peer_reply::Result::Error(error)), reached }
    }
}

/// The response stream of a conversation.
type Replies = ReplyStream<PeerProtocol, Streaming<pb::ConverseRequest>, PeerHandler>;

#[tonic::async_trait]
impl PeerService for PeerServer {
    type ConverseStream = std::pin::Pin<
        Box<dyn futures_util::Stream<Item = Result<pb::ConverseResponse, Status>> + Send + 'static>,
    >;

    async fn converse(
        &self,
        request: Request<Streaming<pb::ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        let from = calling_node(request.metadata().as_ref());
        let from = from.ok_or_else(|| Status::invalid_argument("a node has to say which one it is"))?;
        let handler = PeerHandler { server: self.clone(), from };
        let replies: Replies = serve(request.into_inner(), ServeOptions::default(), handler);
        Ok(Response::new(Box::pin(replies)))
    }

    async fn install_snapshot(
        &self,
        request: Request<Streaming<pb::InstallSnapshotRequest>>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        let reply = match self.receive(request.into_inner()).await {
            Ok(vote) => pb::InstallSnapshotResponse { vote: Some(pb_vote(&vote)), error: String::new() },
            Err(error) => pb::InstallSnapshotResponse { vote: None, error },
        };
        Ok(Response::new(reply))
    }
}
