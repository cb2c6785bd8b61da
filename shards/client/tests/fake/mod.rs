//! Scripted nodes, and a client of them. No test depends on how fast the machine is, only on what must never be said.
#![allow(dead_code, reason = "each test file uses a part")]

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use tidewall_client::topology::{Node, Region};
use tidewall_client::{ExchangeProtocol, ShardClient, ShardClientOptions, Topology};
use tidewall_link::{Handler, NodeIdentity, ReplySender, ReplyStream, ServeOptions, serve, server_builder};
use tidewall_messages::{Rejection, Seen};
use tidewall_proto::internal::v1 as pb;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// How a node answers from now on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    Decide,
    Silent,
    /// Does not reply to the next call; decides afterwards.
    SilentOnce,
    NotLeader(u64),
    Refuse(pb::RefusalKind),
    /// Says "sold out": at once and without a receipt, unless the log is asked for.
    SoldOut,
    /// Decides the first half of a batch and loses the rest.
    DecideHalf,
}

/// A node that answers as it is told.
pub struct Fake {
    pub mode: Mutex<Mode>,
    pub calls: AtomicU64,
    /// Reads that it has answered though they were not for it as the leader.
    pub reads: AtomicU64,
    /// How far its rows have come.
    pub come: Mutex<Seen>,
    /// What it says to operators.
    pub admin: Mutex<Admin>,
}

/// What a node says to operators, and what it was asked. Orders are answered in turn; without an answer left it is silent.
#[derive(Default)]
pub struct Admin {
    pub state: Option<pb::GetNodeStateResponse>,
    pub transfers: VecDeque<Result<pb::TransferLeadResponse, Status>>,
    pub changes: VecDeque<Result<pb::ChangeReplicasResponse, Status>>,
    pub recoveries: VecDeque<Result<pb::RecoverResponse, Status>>,
    pub drains: VecDeque<Result<pb::DrainResponse, Status>>,
    pub imports: VecDeque<Result<pb::ImportResponse, Status>>,
    pub asked_to_transfer: Vec<pb::TransferLeadRequest>,
    pub asked_to_change: Vec<pb::ChangeReplicasRequest>,
    pub imported: Vec<pb::ImportRequest>,
    /// What the keyring has.
    pub keys: Vec<pb::KeyringEntry>,
    /// Why it answers nothing; `None`: it does.
    pub keyring_refuses: Option<pb::KeyringRefusal>,
    pub asked_of_keyring: usize,
}

/// The next answer, or none ever.
async fn told<T>(answers: Option<Result<T, Status>>) -> Result<Response<T>, Status> {
    match answers {
        Some(answer) => answer.map(Response::new),
        None => std::future::pending().await,
    }
}

impl Fake {
    pub fn new(mode: Mode) -> Arc<Self> {
        Arc::new(Self {
            mode: Mutex::new(mode),
            calls: AtomicU64::new(0),
            reads: AtomicU64::new(0),
            come: Mutex::default(),
            admin: Mutex::default(),
        })
    }

    /// Answers as a node does: a batch item by item, whatever is the matter.
    pub fn answer(&self, call: pb::Call) -> Option<pb::Reply> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let mode = {
            let mut mode = self.mode.lock();
            match *mode {
                Mode::Silent => return None,
                Mode::SilentOnce => {
                    *mode = Mode::Decide;
                    return None;
                }
                mode => mode,
            }
        };
        let result = match call.op {
            Some(pb::call::Op::Command(command)) => match self.command(mode, command) {
                Ok(outcome) => pb::reply::Result::Outcome(outcome),
                Err(refusal) => pb::reply::Result::Refusal(refusal),
            },
            Some(pb::call::Op::Batch(batch)) => {
                let half = batch.commands.len().div_ceil(2);
                let item = |(at, command)| {
                    let mode = match mode {
                        Mode::DecideHalf if at < half => Mode::Decide,
                        Mode::DecideHalf => Mode::Refuse(pb::RefusalKind::Unknown),
                        mode => mode,
                    };
                    let result = match self.command(mode, pb::Command { logged: true, ..command }) {
                        Ok(outcome) => pb::batch_item::Result::Outcome(outcome),
                        Err(refusal) => pb::batch_item::Result::Refusal(refusal),
                    };
                    pb::BatchItem { result: Some(result) }
                };
                let items = batch.commands.into_iter().enumerate().map(item).collect();
                pb::reply::Result::Batch(pb::OutcomeBatch { items })
            }
            _ if call.anywhere => self.read(mode, call.at_least.unwrap_or_default()),
            _ => match self.command(mode, pb::Command::default()) {
                Ok(_) => pb::reply::Result::Query(self.found()),
                Err(refusal) => pb::reply::Result::Refusal(refusal),
            },
        };
        Some(pb::Reply { id: call.id, result: Some(result) })
    }

    fn found(&self) -> pb::QueryResult {
        pb::QueryResult { seen: Some(*self.come.lock()), ..Default::default() }
    }

    /// Answers a read for which it need not lead.
    fn read(&self, mode: Mode, seen: Seen) -> pb::reply::Result {
        let kind = match mode {
            Mode::Refuse(kind) => kind,
            _ if seen.is_within(*self.come.lock()) => {
                self.reads.fetch_add(1, Ordering::Relaxed);
                return pb::reply::Result::Query(self.found());
            }
            _ => pb::RefusalKind::Behind,
        };
        let come = Some(*self.come.lock());
        pb::reply::Result::Refusal(pb::Refusal { kind: kind.into(), come, ..Default::default() })
    }

    pub fn command(&self, mode: Mode, command: pb::Command) -> Result<pb::Outcome, pb::Refusal> {
        let refuse = |kind: pb::RefusalKind, leader_node| {
            Err(pb::Refusal { kind: kind.into(), leader_node, ..Default::default() })
        };
        match mode {
            Mode::NotLeader(hint) => refuse(pb::RefusalKind::NotLeader, hint),
            Mode::Refuse(kind) => refuse(kind, 0),
            Mode::SoldOut => {
                let no = Rejection { reason: "SOLD_OUT".into(), ..Default::default() };
                let receipt = command.logged.then(pb::Receipt::default);
                let result = Some(pb::outcome::Result::Rejection(no));
                Ok(pb::Outcome { receipt, result, ..Default::default() })
            }
            Mode::Decide | Mode::DecideHalf | Mode::Silent | Mode::SilentOnce => {
                // The outcome names the request that it answers.
                let result = Some(pb::outcome::Result::Done(command.principal.into()));
                Ok(pb::Outcome { receipt: Some(pb::Receipt::default()), result, ..Default::default() })
            }
        }
    }
}

struct Answers(Arc<Fake>);

impl Handler<ExchangeProtocol> for Answers {
    fn on_calls(&mut self, calls: Vec<pb::Call>, replies: &ReplySender<ExchangeProtocol>) {
        replies.send_all(calls.into_iter().filter_map(|call| self.0.answer(call)).collect());
    }

    fn refuse(&mut self, _: pb::Call) -> pb::Reply {
        panic!("no test sends so much")
    }
}

struct Server(Arc<Fake>);

type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl pb::shard_service_server::ShardService for Server {
    type ExchangeStream = ReplyStream<ExchangeProtocol, Streaming<pb::ExchangeRequest>, Answers>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let handler = Answers(Arc::clone(&self.0));
        Ok(Response::new(serve(request.into_inner(), ServeOptions::default(), handler)))
    }

    async fn get_node_state(
        &self,
        _: Request<pb::GetNodeStateRequest>,
    ) -> Result<Response<pb::GetNodeStateResponse>, Status> {
        match self.0.admin.lock().state.clone() {
            Some(state) => Ok(Response::new(state)),
            None => Err(Status::unavailable("this node does not say how it is")),
        }
    }

    type ExportStream = Boxed<pb::ExportResponse>;

    async fn export(&self, _: Request<pb::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn import(
        &self,
        request: Request<Streaming<pb::ImportRequest>>,
    ) -> Result<Response<pb::ImportResponse>, Status> {
        let mut parts = request.into_inner();
        while let Some(part) = parts.message().await? {
            self.0.admin.lock().imported.push(part);
        }
        let answer = self.0.admin.lock().imports.pop_front();
        told(answer).await
    }

    async fn transfer_lead(
        &self,
        request: Request<pb::TransferLeadRequest>,
    ) -> Result<Response<pb::TransferLeadResponse>, Status> {
        let answer = {
            let mut admin = self.0.admin.lock();
            admin.asked_to_transfer.push(request.into_inner());
            admin.transfers.pop_front()
        };
        told(answer).await
    }

    async fn resolve_dead_letter(
        &self,
        _: Request<pb::ResolveDeadLetterRequest>,
    ) -> Result<Response<pb::ResolveDeadLetterResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn drain(&self, _: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        let answer = self.0.admin.lock().drains.pop_front();
        told(answer).await
    }

    async fn change_replicas(
        &self,
        request: Request<pb::ChangeReplicasRequest>,
    ) -> Result<Response<pb::ChangeReplicasResponse>, Status> {
        let answer = {
            let mut admin = self.0.admin.lock();
            admin.asked_to_change.push(request.into_inner());
            admin.changes.pop_front()
        };
        told(answer).await
    }

    async fn keyring(
        &self,
        request: Request<pb::KeyringRequest>,
    ) -> Result<Response<pb::KeyringResponse>, Status> {
        use pb::keyring_request::Op;
        let mut admin = self.0.admin.lock();
        admin.asked_of_keyring += 1;
        let mut response = pb::KeyringResponse::default();
        if let Some(refusal) = admin.keyring_refuses {
            response.refusal = refusal.into();
            return Ok(Response::new(response));
        }
        match request.into_inner().op.unwrap() {
            Op::Put(entry) => admin.keys.push(entry),
            Op::Erase(entry) => admin.keys.push(pb::KeyringEntry { erased: true, ..entry }),
            Op::Get(id) => response.entries.extend(admin.keys.iter().filter(|key| key.id == id).cloned()),
            op => panic!("{op:?}"),
        }
        Ok(Response::new(response))
    }

    async fn recover(&self, _: Request<pb::RecoverRequest>) -> Result<Response<pb::RecoverResponse>, Status> {
        let answer = self.0.admin.lock().recoveries.pop_front();
        told(answer).await
    }
}

/// The cluster of these tests.
pub const CLUSTER: [u8; 16] = [7; 16];

pub async fn start(fake: &Arc<Fake>, id: u64) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = pb::shard_service_server::ShardServiceServer::new(Server(Arc::clone(fake)));
    let identity = NodeIdentity::client_port(CLUSTER, id, false);
    tokio::spawn(
        server_builder()
            .layer(identity)
            .add_service(service)
            .serve_with_incoming(TcpIncoming::from(listener)),
    );
    address
}

/// An address on which nobody listens.
pub fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// One group, led by node 1 at first.
pub fn client(addresses: &[SocketAddr]) -> Arc<ShardClient> {
    let options = ShardClientOptions { attempt_timeout: Duration::from_millis(100), ..Default::default() };
    client_with(addresses, options)
}

pub fn client_with(addresses: &[SocketAddr], options: ShardClientOptions) -> Arc<ShardClient> {
    let topology = Topology::new(
        CLUSTER,
        vec![Region { id: "north".into(), display_name: "North".into(), group: 1 }],
        (1..)
            .zip(addresses)
            .map(|(id, address)| Node { id, address: *address, peer_address: *address })
            .collect(),
    );
    Arc::new(ShardClient::new(Arc::new(topology), options))
}

pub fn command(principal: &str) -> pb::Command {
    pb::Command { principal: principal.into(), ..Default::default() }
}

pub fn after(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

pub fn decided_for(outcome: pb::Outcome) -> String {
    match outcome.result {
        Some(pb::outcome::Result::Done(bytes)) => String::from_utf8(bytes.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}
