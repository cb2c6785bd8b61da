//! A shard node that answers what a test tells it to, and a gateway in front of two of them.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, stream};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prost::Message as _;
use tidewall_client::{ExchangeProtocol, Topology};
use tidewall_gateway::auth::{KeyPair, Role, generate_key, mint};
use tidewall_gateway::{Gateway, GatewayConfig};
use tidewall_link::{Handler, NodeIdentity, ReplySender, ServeOptions, serve, server_builder};
use tidewall_messages::{Change, Seen, accounts, tickets};
use tidewall_proto::internal::v1 as pb;
use tokio::net::TcpListener;
use tokio::sync::{Notify, oneshot};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

/// What a node does with one call.
pub enum Action {
    /// Replies.
    Answer(Box<pb::reply::Result>),
    /// Never replies.
    Silence,
    /// Ends the stream without a reply.
    Break,
}

/// The script and the memory of a fake node.
#[derive(Default)]
pub struct Node {
    pub script: Mutex<VecDeque<Action>>,
    pub commands: Mutex<Vec<pb::Command>>,
    pub batches: Mutex<Vec<pb::CommandBatch>>,
    pub queries: Mutex<Vec<pb::Query>>,
    /// Of each query: what its caller had seen, and whether it was for any replica.
    pub reads: Mutex<Vec<(Option<Seen>, bool)>>,
    pub imported: Mutex<Vec<pb::ImportRequest>>,
    pub resolved: Mutex<Vec<pb::ResolveDeadLetterRequest>>,
    pub feed: Arc<Feed>,
    leads: AtomicBool,
    broken: Arc<Notify>,
}

/// What has happened in a region, and how often somebody asked.
pub struct Feed {
    entries: Mutex<BTreeMap<u64, Vec<Change>>>,
    /// Incarnation, index of the last entry, and from where on everything is kept.
    stands: Mutex<(u64, u64, u64)>,
    pub asked: AtomicU32,
    news: Notify,
}

impl Default for Feed {
    fn default() -> Self {
        let (entries, stands) = (Mutex::default(), Mutex::new((1, 1, 0)));
        Self { entries, stands, asked: AtomicU32::new(0), news: Notify::new() }
    }
}

impl Feed {
    /// An entry tells this of gala: of whom, what, and how many are free then.
    pub fn tell(&self, told: impl IntoIterator<Item = (&'static str, tickets::change::What, u64)>) -> u64 {
        let change = |(owner, what, free): (&str, tickets::change::What, u64)| {
            let stock = Some(tickets::Stock { free, held: 0, sold: 100 - free });
            let change = tickets::Change { what: Some(what), stock, ..Default::default() };
            let (row, owner, payload) = ("gala".to_owned(), owner.to_owned(), change.encode_to_vec());
            Change { module: tickets::MODULE.into(), row, owner, payload }
        };
        let mut stands = self.stands.lock();
        stands.1 += 1;
        self.entries.lock().insert(stands.1, told.into_iter().map(change).collect());
        self.news.notify_waiters();
        stands.1
    }

    /// An entry tells that an account was changed.
    pub fn tell_account(&self, id: &str, subject: &str) {
        let what = accounts::change::What::Saved(accounts::AccountSaved { revision: 2 });
        let payload = accounts::Change { what: Some(what) }.encode_to_vec();
        let (row, owner) = (id.to_owned(), subject.to_owned());
        let change = Change { module: accounts::MODULE.into(), row, owner, payload };
        let mut stands = self.stands.lock();
        stands.1 += 1;
        self.entries.lock().insert(stands.1, vec![change]);
        self.news.notify_waiters();
    }

    /// What was told up to an entry is not kept any more.
    pub fn forget(&self, index: u64) {
        self.stands.lock().2 = index;
    }

    /// The region goes back to another state.
    pub fn restore(&self) {
        let mut stands = self.stands.lock();
        *stands = (stands.0 + 1, stands.1 + 1, stands.1);
        self.entries.lock().clear();
        self.news.notify_waiters();
    }

    async fn answer(&self, asked: pb::ListChanges) -> pb::Changes {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let until = tokio::time::Instant::now() + Duration::from_millis(asked.wait_ms.into());
        loop {
            let news = self.news.notified();
            let (incarnation, index, since) = *self.stands.lock();
            let end = tidewall_messages::Place { incarnation, index, changes: u32::MAX };
            let after = asked.after.unwrap_or(end);
            if after.incarnation != incarnation || after.index < since {
                let place = Some(tidewall_messages::Place { index: since, ..end });
                return pb::Changes { entries: vec![], place, gone: true };
            }
            let kept = self.entries.lock().clone();
            let entries = kept.range(after.index..).filter_map(|(index, changes)| {
                let first = if *index == after.index { after.changes } else { 0 };
                let changes = changes.get(first as usize..).filter(|changes| !changes.is_empty())?;
                let changes: Vec<u8> =
                    changes.iter().flat_map(|change| change.encode_length_delimited_to_vec()).collect();
                Some(pb::EntryChanges { index: *index, log_ms: 1_000, first, changes: changes.into() })
            });
            let entries: Vec<_> = entries.collect();
            if !entries.is_empty() || tokio::time::timeout_at(until, news).await.is_err() {
                return pb::Changes { entries, place: Some(end), gone: false };
            }
        }
    }
}

impl Node {
    pub fn plan(&self, actions: impl IntoIterator<Item = Action>) {
        self.script.lock().extend(actions);
    }

    pub fn request_ids(&self) -> Vec<Vec<u8>> {
        self.commands.lock().iter().map(|command| command.request_id.clone()).collect()
    }
}

pub fn refusal(kind: pb::RefusalKind, leader_node: u64, retry_after_ms: u32) -> pb::Refusal {
    pb::Refusal { kind: kind.into(), leader_node, retry_after_ms, message: "as scripted".into(), come: None }
}

pub fn refuse(kind: pb::RefusalKind, leader_node: u64, retry_after_ms: u32) -> Action {
    let refusal = refusal(kind, leader_node, retry_after_ms);
    Action::Answer(Box::new(pb::reply::Result::Refusal(refusal)))
}

pub fn sold(first_number: u64, count: u32) -> pb::Outcome {
    let view = tickets::PurchaseView { tier_id: "ga".into(), first_number, count, seats: vec![] };
    let receipt = Some(pb::Receipt { incarnation: 1, term: 2, index: 3, ..Default::default() });
    pb::Outcome { receipt, ..done(tickets::outcome::Result::Purchase(view)) }
}

/// What the ticket module says of an event called gala.
pub fn done(result: tickets::outcome::Result) -> pb::Outcome {
    let outcome = tickets::Outcome { event_id: "gala".into(), result: Some(result) };
    pb::Outcome {
        module: tickets::MODULE.into(),
        result: Some(pb::outcome::Result::Done(outcome.encode_to_vec().into())),
        ..Default::default()
    }
}

/// What a query of the ticket module finds.
pub fn found(result: tickets::answer::Result) -> Action {
    let answer = tickets::Answer { result: Some(result) };
    query(pb::query_result::Result::Module(answer.encode_to_vec().into()))
}

pub fn outcome(outcome: pb::Outcome) -> Action {
    Action::Answer(Box::new(pb::reply::Result::Outcome(outcome)))
}

pub fn query(result: pb::query_result::Result) -> Action {
    query_seen(result, None)
}

/// The same, from rows that have come so far.
pub fn query_seen(result: pb::query_result::Result, seen: Option<Seen>) -> Action {
    Action::Answer(Box::new(pb::reply::Result::Query(pb::QueryResult { result: Some(result), seen })))
}

struct Scripted(Arc<Node>);

impl Handler<ExchangeProtocol> for Scripted {
    fn on_calls(&mut self, calls: Vec<pb::Call>, replies: &ReplySender<ExchangeProtocol>) {
        for call in calls {
            if let Some(pb::call::Op::Query(pb::Query { op: Some(pb::query::Op::Changes(asked)) })) = call.op
            {
                let (feed, replies) = (Arc::clone(&self.0.feed), replies.clone());
                tokio::spawn(async move {
                    let changes = pb::query_result::Result::Changes(feed.answer(asked).await);
                    let result =
                        pb::reply::Result::Query(pb::QueryResult { result: Some(changes), seen: None });
                    replies.send(pb::Reply { id: call.id, result: Some(result) });
                });
                continue;
            }
            match call.op {
                Some(pb::call::Op::Command(command)) => self.0.commands.lock().push(command),
                Some(pb::call::Op::Batch(batch)) => self.0.batches.lock().push(batch),
                Some(pb::call::Op::Query(query)) => {
                    self.0.queries.lock().push(query);
                    self.0.reads.lock().push((call.at_least, call.anywhere));
                }
                None => panic!("an empty call"),
            }
            let action = self.0.script.lock().pop_front();
            match action.unwrap_or_else(|| outcome(sold(1, 1))) {
                Action::Answer(result) => replies.send(pb::Reply { id: call.id, result: Some(*result) }),
                Action::Silence => {}
                Action::Break => self.0.broken.notify_one(),
            }
        }
    }

    fn refuse(&mut self, _: pb::Call) -> pb::Reply {
        panic!("no test sends so much")
    }
}

struct Server(Arc<Node>, u64);

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::shard_service_server::ShardService for Server {
    type ExchangeStream = Boxed<pb::ExchangeResponse>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let replies = serve(request.into_inner(), ServeOptions::default(), Scripted(Arc::clone(&self.0)));
        let broken = Arc::clone(&self.0.broken);
        let end = Box::pin(async move { broken.notified().await });
        Ok(Response::new(Box::pin(replies.take_until(end))))
    }

    async fn get_node_state(
        &self,
        _: Request<pb::GetNodeStateRequest>,
    ) -> Result<Response<pb::GetNodeStateResponse>, Status> {
        let role = if self.0.leads.load(Ordering::Relaxed) { "leader" } else { "follower" };
        let group = |group| pb::GroupState { group, role: role.into(), term: self.1, ..Default::default() };
        let state =
            pb::GetNodeStateResponse { node: self.1, groups: vec![group(1), group(2)], ..Default::default() };
        Ok(Response::new(state))
    }

    type ExportStream = Boxed<pb::ExportResponse>;

    async fn export(
        &self,
        request: Request<pb::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let group = request.into_inner().group;
        let chunks = ["rows of ".to_owned(), group.to_string()];
        Ok(Response::new(Box::pin(stream::iter(
            chunks.map(|chunk| Ok(pb::ExportResponse { chunk: chunk.into() })),
        ))))
    }

    async fn import(
        &self,
        request: Request<Streaming<pb::ImportRequest>>,
    ) -> Result<Response<pb::ImportResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.message().await? {
            self.0.imported.lock().push(message);
        }
        let done = pb::ImportDone { incarnation: 2, applied_index: 7, digest: vec![0xab; 16], rows: 5 };
        Ok(Response::new(pb::ImportResponse { result: Some(pb::import_response::Result::Done(done)) }))
    }

    async fn transfer_lead(
        &self,
        _: Request<pb::TransferLeadRequest>,
    ) -> Result<Response<pb::TransferLeadResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn resolve_dead_letter(
        &self,
        request: Request<pb::ResolveDeadLetterRequest>,
    ) -> Result<Response<pb::ResolveDeadLetterResponse>, Status> {
        let request = request.into_inner();
        // It can be dropped, and not carried out.
        let refusal = (!request.drop).then(|| refusal(pb::RefusalKind::Invalid, 0, 0));
        self.0.resolved.lock().push(request);
        Ok(Response::new(pb::ResolveDeadLetterResponse { remaining: 4, refusal }))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn change_replicas(
        &self,
        _: Request<pb::ChangeReplicasRequest>,
    ) -> Result<Response<pb::ChangeReplicasResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn keyring(&self, _: Request<pb::KeyringRequest>) -> Result<Response<pb::KeyringResponse>, Status> {
        Ok(Response::new(pb::KeyringResponse::default()))
    }

    async fn recover(&self, _: Request<pb::RecoverRequest>) -> Result<Response<pb::RecoverResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}

/// The cluster of these tests.
const CLUSTER: [u8; 16] = [7; 16];

async fn serve_node(node: Arc<Node>, id: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = pb::shard_service_server::ShardServiceServer::new(Server(node, id));
    let identity = NodeIdentity::client_port(CLUSTER, id, false);
    tokio::spawn(
        server_builder()
            .layer(identity)
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    address
}

/// Two regions, two nodes, one gateway. Node 1 is the preferred leader of `regions/north`.
pub struct Cluster {
    pub nodes: [Arc<Node>; 2],
    pub address: SocketAddr,
    pub config: GatewayConfig,
    pub key: KeyPair,
    stop: Option<oneshot::Sender<()>>,
}

impl Cluster {
    /// Tells the gateway to stop.
    pub fn stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.stop();
    }
}

pub async fn cluster() -> Cluster {
    cluster_with(|_| ()).await
}

pub async fn cluster_with(change: impl FnOnce(&mut GatewayConfig)) -> Cluster {
    let nodes = [Arc::new(Node::default()), Arc::new(Node::default())];
    nodes[0].leads.store(true, Ordering::Relaxed);
    let mut listed = Vec::new();
    for (id, node) in (1..).zip(&nodes) {
        let address = serve_node(Arc::clone(node), id).await;
        listed.push(tidewall_client::topology::Node { id, address, peer_address: address });
    }
    let region = |id: &str, group| tidewall_client::topology::Region {
        id: id.into(),
        display_name: id.to_uppercase(),
        group,
    };
    let topology = Topology::new(CLUSTER, vec![region("north", 1), region("south", 2)], listed);
    topology.check().unwrap();
    let key = generate_key().unwrap();
    let listen = "127.0.0.1:0".parse().unwrap();
    let mut config = GatewayConfig::new(listen, Arc::new(topology), vec![key.public]);
    // Nodes answer what a test has planned for its own calls.
    config.webhooks.delivers = false;
    change(&mut config);
    let gateway = Gateway::bind(config.clone()).await.unwrap();
    let address = gateway.local_addr;
    let (stop, stopped) = oneshot::channel();
    tokio::spawn(gateway.serve(async {
        let _ = stopped.await;
    }));
    Cluster { nodes, address, config, key, stop: Some(stop) }
}

impl Cluster {
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    /// The same, counting its connections.
    pub async fn counting_channel(&self, connections: Arc<AtomicU32>) -> Channel {
        let address = self.address;
        let connector = tower::service_fn(move |_: tonic::transport::Uri| {
            connections.fetch_add(1, Ordering::Relaxed);
            async move { tokio::net::TcpStream::connect(address).await.map(TokioIo::new) }
        });
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address)).unwrap();
        endpoint.connect_with_connector(connector).await.unwrap()
    }

    /// A request with a token for `subject` and a deadline of 20 s.
    pub fn request<T>(&self, subject: &str, roles: &[Role], message: T) -> Request<T> {
        let token = mint(&self.key.pkcs8, subject, roles, Duration::from_secs(60)).unwrap();
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        request.set_timeout(Duration::from_secs(20));
        request
    }
}
