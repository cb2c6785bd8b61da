//! What callers see while leaders move, die and fall silent. Two scripted nodes; no test depends on how fast
//! the machine is, only on what must never be said.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use parking_lot::Mutex;
use tidewall_client::topology::{Node, Region, TOPOLOGY_FORMAT};
use tidewall_client::{ClientError, ExchangeProtocol, ShardClient, ShardClientOptions, Topology};
use tidewall_link::{Handler, ReplySender, ReplyStream, ServeOptions, serve, server_builder};
use tidewall_proto::internal::v1 as pb;
use tokio::net::TcpListener;
use tokio::time::Instant;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// How a node answers from now on.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Decide,
    Silent,
    /// Does not reply to the next call; decides afterwards.
    SilentOnce,
    NotLeader(u64),
    Refuse(pb::RefusalKind),
}

struct Fake {
    mode: Mutex<Mode>,
    calls: AtomicU64,
}

impl Fake {
    fn new(mode: Mode) -> Arc<Self> {
        Arc::new(Self { mode: Mutex::new(mode), calls: AtomicU64::new(0) })
    }

    fn answer(&self, call: pb::Call) -> Option<pb::Reply> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        let refuse = |kind: pb::RefusalKind, leader_node| {
            pb::reply::Result::Refusal(pb::Refusal { kind: kind.into(), leader_node, ..Default::default() })
        };
        let mode = *self.mode.lock();
        let result = match (mode, call.op) {
            (Mode::Silent, _) => return None,
            (Mode::SilentOnce, _) => {
                *self.mode.lock() = Mode::Decide;
                return None;
            }
            (Mode::NotLeader(hint), _) => refuse(pb::RefusalKind::NotLeader, hint),
            (Mode::Refuse(kind), _) => refuse(kind, 0),
            (Mode::Decide, Some(pb::call::Op::Command(command))) => {
                // The outcome names the request that it answers.
                let id = command.principal;
                let result = Some(pb::outcome::Result::ReleasedHoldId(id));
                pb::reply::Result::Outcome(pb::Outcome { result, ..Default::default() })
            }
            (Mode::Decide, _) => pb::reply::Result::Query(pb::QueryResult::default()),
        };
        Some(pb::Reply { id: call.id, result: Some(result) })
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
        Err(Status::unimplemented("not part of these tests"))
    }

    type ExportStream = Boxed<pb::ExportResponse>;

    async fn export(&self, _: Request<pb::ExportRequest>) -> Result<Response<Self::ExportStream>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn import(
        &self,
        _: Request<Streaming<pb::ImportRequest>>,
    ) -> Result<Response<pb::ImportResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }

    async fn transfer_lead(
        &self,
        _: Request<pb::TransferLeadRequest>,
    ) -> Result<Response<pb::TransferLeadResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
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

    async fn recover(&self, _: Request<pb::RecoverRequest>) -> Result<Response<pb::RecoverResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}

async fn start(fake: &Arc<Fake>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = pb::shard_service_server::ShardServiceServer::new(Server(Arc::clone(fake)));
    tokio::spawn(server_builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
    address
}

/// An address on which nobody listens.
fn nobody() -> SocketAddr {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// One group, led by node 1 at first.
fn client(addresses: &[SocketAddr]) -> Arc<ShardClient> {
    let options = ShardClientOptions { attempt_timeout: Duration::from_millis(100), ..Default::default() };
    client_with(addresses, options)
}

fn client_with(addresses: &[SocketAddr], options: ShardClientOptions) -> Arc<ShardClient> {
    let topology = Topology {
        format: TOPOLOGY_FORMAT,
        cluster: "00112233445566778899aabbccddeeff".into(),
        generation: 0,
        retired: Default::default(),
        fences: Default::default(),
        regions: vec![Region { id: "north".into(), display_name: "North".into(), group: 1 }],
        nodes: (1..)
            .zip(addresses)
            .map(|(id, address)| Node { id, address: *address, peer_address: *address })
            .collect(),
    };
    Arc::new(ShardClient::new(Arc::new(topology), options))
}

fn command(principal: &str) -> pb::Command {
    pb::Command { principal: principal.into(), ..Default::default() }
}

fn after(ms: u64) -> Instant {
    Instant::now() + Duration::from_millis(ms)
}

fn decided_for(outcome: pb::Outcome) -> String {
    match outcome.result {
        Some(pb::outcome::Result::ReleasedHoldId(id)) => id,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_dead_node_does_not_stall_calls() {
    let second = Fake::new(Mode::Decide);
    let client = client(&[nobody(), start(&second).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(2), "and it is remembered");
    client.command(1, command("b"), after(20_000)).await.unwrap();
    assert!(second.calls.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn a_silent_leader_is_replaced_by_the_one_that_answers() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::Decide));
    let client = client(&[start(&first).await, start(&second).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(2));
}

#[tokio::test]
async fn a_deadline_after_silence_is_unknown_and_after_refusals_it_is_not() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::NotLeader(1)));
    let client = client(&[start(&first).await, start(&second).await]);
    let outcome = loop {
        let before = first.calls.load(Ordering::Relaxed);
        let outcome = client.command(1, command("a"), after(400)).await;
        // On a busy machine the deadline may pass before the call was sent at all.
        if first.calls.load(Ordering::Relaxed) > before {
            break outcome;
        }
    };
    assert!(matches!(outcome, Err(ClientError::Unknown { .. })), "{outcome:?}");
    let query = client.query(1, pb::Query::default(), after(400)).await;
    assert!(matches!(query, Err(ClientError::Unavailable { .. })), "a query is never unknown: {query:?}");
}

#[tokio::test]
async fn a_call_that_only_nonleaders_saw_is_unavailable() {
    let (first, second) = (Fake::new(Mode::NotLeader(0)), Fake::new(Mode::NotLeader(1)));
    // Attempts must not time out here, however slow the machine: that would be a doubt of its own.
    let client = client_with(
        &[start(&first).await, start(&second).await],
        ShardClientOptions { attempt_timeout: Duration::from_secs(60), ..Default::default() },
    );
    // A deadline that falls into the moment between sending and the refusal leaves a doubt, rightly; that
    // does not happen every time.
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        outcomes.push(client.command(1, command("b"), after(500)).await);
    }
    let refused = |outcome: &Result<_, ClientError>| matches!(outcome, Err(ClientError::Unavailable { .. }));
    assert!(outcomes.iter().any(refused), "nobody took it: {outcomes:?}");
    assert!(outcomes.iter().all(Result::is_err));
    assert!(first.calls.load(Ordering::Relaxed) + second.calls.load(Ordering::Relaxed) >= 2);
}

#[tokio::test]
async fn a_halted_node_is_left_alone() {
    let (first, second) = (Fake::new(Mode::Refuse(pb::RefusalKind::Halted)), Fake::new(Mode::Decide));
    let client = client(&[start(&first).await, start(&second).await]);
    for name in ["a", "b", "c"] {
        assert_eq!(decided_for(client.command(1, command(name), after(20_000)).await.unwrap()), name);
    }
    assert_eq!(client.believed_leader(1), Some(2));
}

#[tokio::test]
async fn a_halted_neighbour_of_a_slow_leader_is_not_asked_until_the_deadline() {
    let (first, second) = (Fake::new(Mode::SilentOnce), Fake::new(Mode::Refuse(pb::RefusalKind::Halted)));
    let client = client(&[start(&first).await, start(&second).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(1));
    // Each attempt at the leader in between takes 100 ms, or decides; it is silent for one more at most.
    let asked = second.calls.load(Ordering::Relaxed);
    assert!((1..=202).contains(&asked), "{asked} questions to a halted node");
}

#[tokio::test]
async fn a_slow_leader_and_a_halted_node_do_not_hide_the_one_that_leads() {
    let (first, second) = (Fake::new(Mode::Silent), Fake::new(Mode::Refuse(pb::RefusalKind::Halted)));
    let third = Fake::new(Mode::Decide);
    let client = client(&[start(&first).await, start(&second).await, start(&third).await]);
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(3));
}

#[tokio::test]
async fn an_overloaded_neighbour_is_not_taken_for_the_leader() {
    let (first, second) = (Fake::new(Mode::SilentOnce), Fake::new(Mode::Refuse(pb::RefusalKind::Overloaded)));
    let client = client(&[start(&first).await, start(&second).await]);
    // The first attempt may have been decided, so that the neighbour's "nothing was decided" is no answer.
    assert_eq!(decided_for(client.command(1, command("a"), after(20_000)).await.unwrap()), "a");
    assert_eq!(client.believed_leader(1), Some(1));
}

#[tokio::test]
async fn an_overloaded_node_does_not_end_the_search_for_the_leader() {
    let (second, third) = (Fake::new(Mode::Refuse(pb::RefusalKind::Overloaded)), Fake::new(Mode::Decide));
    let client = client(&[nobody(), start(&second).await, start(&third).await]);
    let mut outcomes = Vec::new();
    for _ in 0..10 {
        outcomes.push(client.command(1, command("a"), after(20_000)).await);
    }
    assert!(outcomes.iter().any(Result::is_ok), "{outcomes:?}");
    assert_eq!(client.believed_leader(1), Some(3));
}

#[tokio::test]
async fn nonsense_is_refused_without_asking_anybody_again() {
    let first = Fake::new(Mode::Refuse(pb::RefusalKind::Invalid));
    let options = ShardClientOptions { attempt_timeout: Duration::from_secs(60), ..Default::default() };
    let client = client_with(&[start(&first).await], options);
    assert!(matches!(client.command(1, command("a"), after(20_000)).await, Err(ClientError::Invalid(_))));
    assert_eq!(first.calls.load(Ordering::Relaxed), 1);
    for group in [0, 2, u32::MAX] {
        let refused = client.command(group, command("a"), after(20_000)).await;
        assert!(matches!(refused, Err(ClientError::Invalid(_))), "group {group}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_waits_for_the_election_without_a_storm_and_then_gets_through() {
    const CROWD: u64 = 1000;
    let (first, second) = (Fake::new(Mode::NotLeader(0)), Fake::new(Mode::NotLeader(0)));
    let options = ShardClientOptions { attempt_timeout: Duration::from_secs(5), ..Default::default() };
    let client = client_with(&[start(&first).await, start(&second).await], options);
    // The group is known to have no leader before the crowd comes.
    client.command(1, command("scout"), after(300)).await.unwrap_err();
    let asked = || first.calls.load(Ordering::Relaxed) + second.calls.load(Ordering::Relaxed);
    let before = asked();
    let crowd: Vec<_> = (0..CROWD)
        .map(|number| {
            let client = Arc::clone(&client);
            tokio::spawn(async move {
                let name = number.to_string();
                let outcome = client.command(1, command(&name), after(60_000)).await.unwrap();
                assert_eq!(decided_for(outcome), name, "everybody gets their own answer");
            })
        })
        .collect();
    while asked() < before + 5 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    *second.mode.lock() = Mode::Decide;
    for call in crowd {
        call.await.unwrap();
    }
    let attempts = asked() - before;
    assert!(attempts < 2 * CROWD, "one probes while the others wait: {attempts} attempts for {CROWD} calls");
    assert_eq!(client.believed_leader(1), Some(2));
}
