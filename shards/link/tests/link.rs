//! Links against real servers on this machine: correlation, broken connections, deadlines, bounds.
#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidewall_link::{
    Handler, Link, LinkError, LinkOptions, Lives, NodeIdentity, Parties, PeerProtocol, ReplySender,
    ReplyStream, ServeOptions, serve, server_builder,
};
use tidewall_proto::internal::v1 as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

/// Answers every call with its group as text, except: group 0 is never answered (but counted), group 1 half a
/// millisecond later.
struct Echo {
    unanswered: Arc<AtomicU64>,
}

fn reply(id: u64, text: String) -> pb::PeerReply {
    pb::PeerReply { id, result: Some(pb::peer_reply::Result::Error(text)), reached: 0 }
}

impl Handler<PeerProtocol> for Echo {
    fn on_calls(&mut self, calls: Vec<pb::PeerCall>, replies: &ReplySender<PeerProtocol>) {
        for call in calls.into_iter().rev() {
            match call.group {
                0 => {
                    self.unanswered.fetch_add(1, Ordering::Relaxed);
                }
                1 => {
                    let replies = replies.clone();
                    tokio::spawn(async move {
                        sleep(Duration::from_micros(500)).await;
                        replies.send(reply(call.id, "1".into()));
                    });
                }
                group => replies.send(reply(call.id, group.to_string())),
            }
        }
    }

    fn refuse(&mut self, call: pb::PeerCall) -> pb::PeerReply {
        reply(call.id, "refused".into())
    }
}

/// The cluster of these tests.
const CLUSTER: [u8; 16] = [7; 16];

/// A node at its first start.
fn lives(node: u64) -> Arc<Lives> {
    Arc::new(Lives::idle(node))
}

/// Who calls whom in these tests.
fn parties() -> Parties {
    Parties::new(CLUSTER, Some(lives(1)), 2)
}

struct Server {
    options: ServeOptions,
    streams: Arc<AtomicU64>,
    unanswered: Arc<AtomicU64>,
}

#[tonic::async_trait]
impl pb::peer_service_server::PeerService for Server {
    type ConverseStream = ReplyStream<PeerProtocol, Streaming<pb::ConverseRequest>, Echo>;

    async fn converse(
        &self,
        request: Request<Streaming<pb::ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        self.streams.fetch_add(1, Ordering::Relaxed);
        let handler = Echo { unanswered: Arc::clone(&self.unanswered) };
        Ok(Response::new(serve(request.into_inner(), self.options.clone(), handler)))
    }

    async fn install_snapshot(
        &self,
        _: Request<Streaming<pb::InstallSnapshotRequest>>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        Err(Status::unimplemented("not part of these tests"))
    }
}

/// A server that dies with this value.
struct Running {
    address: SocketAddr,
    streams: Arc<AtomicU64>,
    unanswered: Arc<AtomicU64>,
    runtime: Option<tokio::runtime::Runtime>,
}

/// A port that was free a moment ago may be that of somebody's outgoing connection for a while.
fn listen(address: &str) -> std::net::TcpListener {
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        match std::net::TcpListener::bind(address) {
            Err(error) if error.kind() == std::io::ErrorKind::AddrInUse && Instant::now() < give_up => {
                std::thread::sleep(Duration::from_millis(20));
            }
            listener => return listener.unwrap(),
        }
    }
}

impl Running {
    fn start(address: &str, options: ServeOptions) -> Self {
        // A runtime of its own: dropping it closes all sockets, as a killed process would.
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = listen(address);
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let streams = Arc::new(AtomicU64::new(0));
        let unanswered = Arc::new(AtomicU64::new(0));
        let server = Server { options, streams: Arc::clone(&streams), unanswered: Arc::clone(&unanswered) };
        runtime.spawn(async move {
            let incoming = TcpIncoming::from(TcpListener::from_std(listener).unwrap());
            server_builder()
                .layer(NodeIdentity::peer_port(CLUSTER, lives(2), false))
                .add_service(pb::peer_service_server::PeerServiceServer::new(server))
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        });
        Self { address, streams, unanswered, runtime: Some(runtime) }
    }

    fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

fn call(group: u32) -> pb::PeerCall {
    pb::PeerCall { group, ..Default::default() }
}

fn text(reply: pb::PeerReply) -> String {
    match reply.result {
        Some(pb::peer_reply::Result::Error(text)) => text,
        other => panic!("{other:?}"),
    }
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn spawn_call(
    link: &Link<PeerProtocol>,
    group: u32,
    deadline: Instant,
) -> JoinHandle<Result<pb::PeerReply, LinkError>> {
    let link = link.clone();
    tokio::spawn(async move { link.call(call(group), deadline).await })
}

/// Waits until a condition holds; gives up after 20 s.
async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let give_up = soon();
    while !holds() {
        assert!(Instant::now() < give_up, "{what}");
        sleep(Duration::from_millis(2)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replies_find_their_calls_in_any_order() {
    let server = Running::start("127.0.0.1:0", ServeOptions::default());
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    let calls: Vec<_> = (1..=4000).map(|group| (group, spawn_call(&link, group, soon()))).collect();
    for (group, call) in calls {
        assert_eq!(text(call.await.unwrap().unwrap()), group.to_string());
    }
    assert_eq!(server.streams.load(Ordering::Relaxed), 1, "all calls share one stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_breaks_calls_at_once_and_a_new_one_is_found() {
    let mut server = Running::start("127.0.0.1:0", ServeOptions::default());
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    assert_eq!(text(link.call(call(7), soon()).await.unwrap()), "7");
    let deadline = Instant::now() + Duration::from_secs(3600);
    let waiting: Vec<_> = (0..100).map(|_| spawn_call(&link, 0, deadline)).collect();
    eventually("all calls arrive", || server.unanswered.load(Ordering::Relaxed) == 100).await;
    server.kill();
    for call in waiting {
        let result = timeout(Duration::from_secs(20), call).await.expect("not only at the deadline").unwrap();
        assert_eq!(result.unwrap_err(), LinkError::Broken);
    }
    // Nobody listens now: calls are refused, and provably were not sent.
    eventually("the link is down", || !link.is_connected() && link.last_error().is_some()).await;
    let refused = loop {
        match link.call(call(7), soon()).await {
            // The attempt right after the break may still be under way.
            Err(LinkError::NotSent) => {}
            other => break other,
        }
    };
    assert_eq!(refused.unwrap_err(), LinkError::Unreachable);
    let again = Running::start(&server.address.to_string(), ServeOptions::default());
    let give_up = soon();
    loop {
        match link.call(call(9), soon()).await {
            Ok(reply) => break assert_eq!(text(reply), "9"),
            Err(error) => assert!(Instant::now() < give_up && !error.may_have_arrived(), "{error}"),
        }
        sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(again.streams.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_deadline_ends_one_call_and_leaves_the_others() {
    let server = Running::start("127.0.0.1:0", ServeOptions::default());
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    link.call(call(2), soon()).await.unwrap();
    let patient = spawn_call(&link, 0, soon());
    let short = Instant::now() + Duration::from_millis(300);
    assert_eq!(link.call(call(0), short).await.unwrap_err(), LinkError::Deadline);
    assert!(Instant::now() >= short, "not before the deadline");
    assert_eq!(text(link.call(call(3), soon()).await.unwrap()), "3");
    assert!(!patient.is_finished());
    let past = Instant::now();
    assert_eq!(link.call(call(3), past).await.unwrap_err(), LinkError::NotSent);
    patient.abort();
}

#[tokio::test]
async fn the_number_of_pending_calls_is_bounded() {
    let server = Running::start("127.0.0.1:0", ServeOptions::default());
    let options = LinkOptions { pending_max: 3, ..LinkOptions::default() };
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), options);
    let short = Instant::now() + Duration::from_millis(300);
    let waiting: Vec<_> = (0..3).map(|_| spawn_call(&link, 0, short)).collect();
    tokio::task::yield_now().await;
    assert_eq!(link.call(call(2), soon()).await.unwrap_err(), LinkError::Full);
    for call in waiting {
        assert!(call.await.unwrap().is_err());
    }
    assert_eq!(text(link.call(call(2), soon()).await.unwrap()), "2", "room again");
}

#[tokio::test]
async fn calls_beyond_the_servers_bound_are_refused_and_not_executed() {
    let server =
        Running::start("127.0.0.1:0", ServeOptions { outstanding_max: 2, ..ServeOptions::default() });
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    let waiting: Vec<_> = (0..2).map(|_| spawn_call(&link, 0, soon())).collect();
    tokio::task::yield_now().await;
    assert_eq!(text(link.call(call(5), soon()).await.unwrap()), "refused");
    for call in waiting {
        call.abort();
    }
}

#[tokio::test]
async fn whoever_is_somebody_else_is_not_reached_and_hears_nothing() {
    let server = Running::start("127.0.0.1:0", ServeOptions::default());
    for (other, why) in [
        (Parties::new([8; 16], Some(lives(1)), 2), "not node 2 of cluster 0808"),
        (Parties::new(CLUSTER, Some(lives(1)), 3), "not node 3"),
        (Parties::new(CLUSTER, Some(lives(2)), 2), "another process calls itself node 2"),
    ] {
        let link: Link<PeerProtocol> = Link::connect_lazy(server.address, other, LinkOptions::default());
        assert_eq!(link.call(call(0), soon()).await.unwrap_err(), LinkError::Unreachable);
        let error = link.last_error().unwrap();
        assert!(error.contains(why), "{error}");
    }
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    assert_eq!(text(link.call(call(2), soon()).await.unwrap()), "2");
    assert_eq!((server.streams.load(Ordering::Relaxed), server.unanswered.load(Ordering::Relaxed)), (1, 0));
}

#[tokio::test]
async fn who_does_not_say_who_it_is_is_not_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let streams = Arc::new(AtomicU64::new(0));
    let unanswered = Arc::new(AtomicU64::new(0));
    let server = Server {
        options: ServeOptions::default(),
        streams: Arc::clone(&streams),
        unanswered: Arc::clone(&unanswered),
    };
    let service = pb::peer_service_server::PeerServiceServer::new(server);
    tokio::spawn(server_builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)));
    let link: Link<PeerProtocol> = Link::connect_lazy(address, parties(), LinkOptions::default());
    assert_eq!(link.call(call(0), soon()).await.unwrap_err(), LinkError::Unreachable);
    assert!(link.last_error().unwrap().contains("node unknown of cluster unknown"));
    assert_eq!(unanswered.load(Ordering::Relaxed), 0, "nothing was sent to it");
}

#[tokio::test]
async fn nobody_listening_is_not_sent() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let link: Link<PeerProtocol> = Link::connect_lazy(address, parties(), LinkOptions::default());
    assert_eq!(link.call(call(2), soon()).await.unwrap_err(), LinkError::Unreachable);
    assert!(link.last_error().is_some());
}

#[tokio::test]
async fn a_server_that_never_answers_is_unreachable_not_unknown() {
    // The kernel accepts, nobody ever speaks: like a stopped process.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let options = LinkOptions { connect_timeout: Duration::from_millis(100), ..LinkOptions::default() };
    let link: Link<PeerProtocol> = Link::connect_lazy(listener.local_addr().unwrap(), parties(), options);
    assert_eq!(link.call(call(2), soon()).await.unwrap_err(), LinkError::Unreachable);
    let late = Instant::now() + Duration::from_millis(20);
    assert!(!link.call(call(2), late).await.unwrap_err().may_have_arrived());
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let server = Running::start("127.0.0.1:0", ServeOptions::default());
    for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0u8; 4096][..], &[0xff; 100_000][..]] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        // The server may hang up while we still write.
        let _ = stream.write_all(garbage).await;
        let mut answer = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut answer)).await.expect("it hangs up");
    }
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    assert_eq!(text(link.call(call(6), soon()).await.unwrap()), "6");
}

#[tokio::test]
async fn dropping_the_last_clone_closes_the_connection() {
    let server = Running::start("127.0.0.1:0", ServeOptions::default());
    let link: Link<PeerProtocol> = Link::connect_lazy(server.address, parties(), LinkOptions::default());
    let other = link.clone();
    link.call(call(2), soon()).await.unwrap();
    drop(link);
    assert_eq!(text(other.call(call(3), soon()).await.unwrap()), "3", "a clone keeps it open");
    let before = tokio::runtime::Handle::current().metrics().num_alive_tasks();
    assert!(before > 0);
    drop(other);
    eventually("the link's tasks end", || tokio::runtime::Handle::current().metrics().num_alive_tasks() == 0)
        .await;
}
