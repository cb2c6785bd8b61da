//! Who is let in by certificate, over real sockets, and what stays open to everybody.
#![allow(clippy::unwrap_used)]

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tidewall_link::{
    AcceptLimits, Connections, Credentials, ExchangeProtocol, Link, LinkOptions, Lives, NodeIdentity,
    Parties, ProcessRole, incoming, server_builder,
};
use tidewall_proto::internal::v1 as pb;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};
use tonic::{Request, Response, Status, Streaming};

const CLUSTER: [u8; 16] = [7; 16];
const HERE: [u8; 4] = [127, 0, 0, 1];
const PATIENCE: Duration = Duration::from_secs(20);

struct Authority {
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let certificate = params.self_signed(&key).unwrap().pem();
        Self { certificate, issuer: Issuer::new(params, key) }
    }

    fn credentials(&self, names: &[String]) -> Credentials {
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        let (certificate, key) = (certificate.pem(), key.serialize_pem());
        Credentials::from_pem(CLUSTER, self.certificate.as_bytes(), certificate.as_bytes(), key.as_bytes())
            .unwrap()
    }

    fn of(&self, role: ProcessRole, host: impl Into<IpAddr>) -> Credentials {
        self.credentials(&[role.certified(CLUSTER), host.into().to_string()])
    }
}

struct Server;

type Replies<T> = tokio_stream::Empty<Result<T, Status>>;

#[tonic::async_trait]
impl pb::peer_service_server::PeerService for Server {
    type ConverseStream = Replies<pb::ConverseResponse>;

    async fn converse(
        &self,
        _: Request<Streaming<pb::ConverseRequest>>,
    ) -> Result<Response<Self::ConverseStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn install_snapshot(
        &self,
        _: Request<Streaming<pb::InstallSnapshotRequest>>,
    ) -> Result<Response<pb::InstallSnapshotResponse>, Status> {
        let error = "served".to_owned();
        Ok(Response::new(pb::InstallSnapshotResponse { vote: None, error }))
    }
}

/// Node 2's port for other nodes.
async fn serve(credentials: Option<Credentials>) -> SocketAddr {
    serve_as(credentials, false).await
}

async fn serve_as(credentials: Option<Credentials>, tls_only: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = AcceptLimits { opening_max: Duration::from_millis(300), ..AcceptLimits::default() };
    let connections = incoming(listener, limits, Connections::default(), credentials.as_ref(), tls_only);
    let port = NodeIdentity::peer_port(CLUSTER, Arc::new(Lives::idle(2)), credentials.is_some());
    tokio::spawn(
        server_builder()
            .accept_http1(true)
            .layer(port)
            .add_service(pb::peer_service_server::PeerServiceServer::new(Server))
            .serve_with_incoming(connections),
    );
    address
}

/// Calls node 2 as node 1; what came of it.
async fn call(address: SocketAddr, credentials: Option<&Credentials>) -> String {
    let parties = Parties::new(CLUSTER, Some(Arc::new(Lives::idle(1))), 2);
    let channel = match tidewall_link::connect(address, PATIENCE, credentials).await {
        Ok(channel) => tidewall_link::NodeChannel::new(channel, address, parties),
        Err(error) => return format!("not connected: {error:?}"),
    };
    let mut client = pb::peer_service_client::PeerServiceClient::new(channel);
    match client.install_snapshot(tokio_stream::empty()).await {
        Ok(answer) => answer.into_inner().error,
        Err(status) => format!("{:?}: {}", status.code(), status.message()),
    }
}

#[tokio::test]
async fn a_node_of_the_cluster_is_served_and_nobody_else() {
    let (ours, other) = (Authority::new(), Authority::new());
    let address = serve(Some(ours.of(ProcessRole::Node, HERE))).await;
    assert_eq!(call(address, Some(&ours.of(ProcessRole::Node, HERE))).await, "served");
    for role in [ProcessRole::Gateway, ProcessRole::Operator] {
        let answer = call(address, Some(&ours.of(role, HERE))).await;
        assert!(answer.contains(role.name()) && answer.contains("refused"), "{answer}");
    }
    // Another authority is believed by neither side.
    assert_ne!(call(address, Some(&other.of(ProcessRole::Node, HERE))).await, "served");
    let answer = call(address, None).await;
    assert!(answer.contains("nobody of this cluster"), "{answer}");
}

#[test]
fn who_is_certified_for_nothing_here_has_no_credentials() {
    let ours = Authority::new();
    let load = |authority: &Authority, names: &[String]| {
        let key = KeyPair::generate().unwrap();
        let certificate =
            CertificateParams::new(names).unwrap().signed_by(&key, &authority.issuer).unwrap().pem();
        let (root, key) = (ours.certificate.as_bytes(), key.serialize_pem());
        Credentials::from_pem(CLUSTER, root, certificate.as_bytes(), key.as_bytes()).map(drop)
    };
    load(&ours, &[ProcessRole::Node.certified(CLUSTER)]).unwrap();
    let neighbour = load(&ours, &[ProcessRole::Node.certified([8; 16]), "127.0.0.1".to_owned()]);
    for refused in [neighbour, load(&ours, &["127.0.0.1".to_owned()])] {
        assert!(refused.unwrap_err().to_string().contains("another cluster"));
    }
    let stranger = load(&Authority::new(), &[ProcessRole::Node.certified(CLUSTER)]);
    assert!(stranger.unwrap_err().to_string().contains("not of the authority"));
}

#[tokio::test]
async fn only_a_node_at_its_own_host_is_called() {
    let ours = Authority::new();
    let caller = ours.of(ProcessRole::Node, HERE);
    for (server, why) in [
        (Some(ours.of(ProcessRole::Gateway, HERE)), "certified as gateway"),
        (Some(ours.of(ProcessRole::Node, [127, 0, 0, 2])), "NotValidForName"),
        (Some(Authority::new().of(ProcessRole::Node, HERE)), "InvalidCertificate"),
        (None, "not connected"),
    ] {
        let answer = call(serve(server).await, Some(&caller)).await;
        assert!(answer.contains(why), "{why}: {answer}");
    }
}

#[tokio::test]
async fn a_link_works_over_tls_and_says_why_it_does_not() {
    let ours = Authority::new();
    let address = serve(Some(ours.of(ProcessRole::Node, HERE))).await;
    let credentials = Some(Authority::new().of(ProcessRole::Gateway, HERE));
    let parties = Parties::new(CLUSTER, None, 2);
    let options = LinkOptions { credentials, ..LinkOptions::default() };
    let link: Link<ExchangeProtocol> = Link::connect_lazy(address, parties, options);
    link.call(pb::Call::default(), Instant::now() + PATIENCE).await.unwrap_err();
    let why = link.last_error().unwrap();
    assert!(why.contains("invalid peer certificate"), "{why}");
}

#[tokio::test]
async fn a_port_for_nothing_but_tls_closes_everything_else_unheard() {
    let ours = Authority::new();
    let node = ours.of(ProcessRole::Node, HERE);
    let address = serve_as(Some(node.clone()), true).await;
    for beginning in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\0"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut all = Vec::new();
        let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap();
        assert!(all.is_empty(), "{}", String::from_utf8_lossy(&all));
    }
    assert_eq!(call(address, Some(&node)).await, "served");
}

#[tokio::test]
async fn who_needs_no_certificate_shows_none_and_the_silent_are_sent_away() {
    let ours = Authority::new();
    let address = serve(Some(ours.of(ProcessRole::Node, HERE))).await;
    let read = async |mut stream: TcpStream| {
        let mut all = Vec::new();
        // Closed, in order or not: nobody waits for ever.
        let _ = timeout(PATIENCE, stream.read_to_end(&mut all)).await.unwrap();
        all
    };
    let mut probe = TcpStream::connect(address).await.unwrap();
    probe.write_all(b"GET /nothing HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    assert!(String::from_utf8_lossy(&read(probe).await).starts_with("HTTP/1.1 "));
    // Nothing, and the beginning of a handshake that does not go on.
    for beginning in [&b""[..], &[0x16, 3, 1][..]] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        read(stream).await;
    }
}
