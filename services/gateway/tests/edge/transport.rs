//! What is not gRPC executes nothing, and is told so in the words of HTTP; what only looks like it is refused.

use std::time::Duration;

use http::{HeaderMap, Request as HttpRequest, Response as HttpResponse};
use tidewall_proto::v1;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tonic::body::Body;
use tonic::client::GrpcService as _;
use tonic::{Code, Request, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::fake::{Cluster, cluster, cluster_with};
use super::{buy, http, reason};

const BUY: &str = "/tidewall.v1.TicketService/BuyTickets";

/// A message as it travels: not compressed, with its length in front.
fn framed(message: &impl prost::Message) -> Vec<u8> {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
    [&[0][..], &length, &bytes].concat()
}

/// A purchase with the token of somebody, over HTTP/2, with a body and a content type of the test's choice.
async fn post(cluster: &Cluster, content_type: &str, body: Vec<u8>) -> HttpResponse<Body> {
    post_encoded(cluster, content_type, "identity", body).await
}

async fn post_encoded(
    cluster: &Cluster,
    content_type: &str,
    encoding: &str,
    body: Vec<u8>,
) -> HttpResponse<Body> {
    let token = cluster.request("alice", &[], ()).metadata().get("authorization").unwrap().clone();
    let request = HttpRequest::post(BUY)
        .header("content-type", content_type)
        .header("authorization", token.to_str().unwrap())
        .header("grpc-timeout", "5S")
        .header("te", "trailers")
        .header("grpc-encoding", encoding)
        .body(Body::new(http_body_util::Full::new(bytes::Bytes::from(body))))
        .unwrap();
    let mut channel = cluster.channel().await;
    std::future::poll_fn(|context| channel.poll_ready(context)).await.unwrap();
    channel.call(request).await.unwrap()
}

fn status(headers: &HeaderMap) -> Status {
    Status::from_header_map(headers).expect("a status among the headers")
}

#[tokio::test]
async fn only_grpc_executes() {
    let cluster = cluster().await;
    let body = framed(&buy());
    for content_type in
        ["text/plain", "application/json", "application/grpc-web+json", "application/grpc+json"]
    {
        let answer = post(&cluster, content_type, body.clone()).await;
        assert_eq!(answer.status(), 415, "{content_type}");
    }
    let lines = |verb: &str, path: &str, content_type: &str| {
        let length = body.len();
        let head = format!(
            "{verb} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {content_type}\r\ncontent-length: {length}\r\n\r\n"
        );
        [head.as_bytes(), &body].concat()
    };
    for (verb, content_type, expected) in [
        ("POST", "application/grpc", "505"),
        ("POST", "text/plain", "415"),
        ("GET", "application/grpc", "405"),
        ("PUT", "application/grpc", "405"),
    ] {
        let answer = http(&cluster, &lines(verb, BUY, content_type)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{verb} {content_type}: {answer}");
    }
    assert!(cluster.nodes.iter().all(|node| node.commands.lock().is_empty()), "nothing was executed");
    let answer = post(&cluster, "application/grpc", body).await;
    assert_eq!((answer.status().as_u16(), answer.headers().get("grpc-status")), (200, None));
    assert_eq!(cluster.nodes[0].commands.lock().len(), 1);
}

#[tokio::test]
async fn a_second_message_is_refused_before_the_first_is_executed() {
    let cluster = cluster().await;
    let twice = [framed(&buy()), framed(&buy())].concat();
    let answer = post(&cluster, "application/grpc", twice).await;
    let status = status(answer.headers());
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "MORE_THAN_ONE_MESSAGE"));
    assert!(cluster.nodes.iter().all(|node| node.commands.lock().is_empty()));
}

#[tokio::test]
async fn too_much_metadata_is_told_and_costs_no_connection() {
    let cluster = cluster().await;
    let channel = cluster.channel().await;
    let mut tickets = TicketServiceClient::new(channel);
    let mut request = cluster.request("alice", &[], buy());
    request.metadata_mut().insert("x-note", "x".repeat(20_000).parse().unwrap());
    let refused = tickets.buy_tickets(request).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "METADATA_TOO_LARGE"));
    tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
}

#[tokio::test]
async fn probes_are_told_apart_and_nothing_else_is_there() {
    let cluster = cluster().await;
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes();
    for (path, expected) in [
        ("/livez", "200"),
        ("/metrics", "200"),
        ("/", "404"),
        ("/ready", "404"),
        ("/livez/", "404"),
        (BUY, "405"),
    ] {
        let answer = http(&cluster, &get(path)).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected}")), "{path}: {answer}");
    }
    let accepting = |kind: &str| {
        format!("GET /metrics HTTP/1.1\r\nhost: x\r\naccept: {kind}\r\nconnection: close\r\n\r\n")
            .into_bytes()
    };
    let open = http(&cluster, &accepting("application/openmetrics-text")).await;
    assert!(open.contains("application/openmetrics-text") && open.trim_end().ends_with("# EOF"), "{open}");
    let older = http(&cluster, &accepting("text/plain")).await;
    assert!(older.contains("version=0.0.4") && !older.contains("# EOF"), "{older}");
}

#[tokio::test]
async fn a_gateway_that_stops_tells_who_watches_and_then_ends() {
    let mut cluster = cluster_with(|config| config.lame_duck = Duration::from_secs(3)).await;
    let mut health = HealthClient::new(cluster.channel().await);
    let ask = |service: &str| Request::new(HealthCheckRequest { service: service.into() });
    let mut all = health.watch(ask("")).await.unwrap().into_inner();
    let mut unknown = health.watch(ask("no.such.Service")).await.unwrap().into_inner();
    let told = unknown.message().await.unwrap().unwrap();
    assert_eq!(told.status(), ServingStatus::ServiceUnknown);
    let nobody = health.check(ask("no.such.Service")).await.unwrap_err();
    assert_eq!((nobody.code(), reason(&nobody).as_str()), (Code::NotFound, "SERVICE_NOT_FOUND"));
    while all.message().await.unwrap().unwrap().status() != ServingStatus::Serving {}
    cluster.stop();
    assert_eq!(all.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // Who has not heard of it yet is still served.
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
    let get = b"GET /readyz HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    assert!(http(&cluster, get).await.starts_with("HTTP/1.1 503"));
    // Both streams end, and are nothing that the end waits for.
    assert!(all.message().await.unwrap().is_none() && unknown.message().await.unwrap().is_none());
}

/// What a browser sends: a purchase over HTTP/1.1, its message in a frame, the answer's trailers in the body.
#[tokio::test]
async fn a_page_buys_over_grpc_web_if_its_origin_may() {
    let page = "https://shop.example";
    let cluster = cluster_with(|config| config.web_origins = vec![page.parse().unwrap()]).await;
    let token = cluster.request("alice", &[], ()).metadata().get("authorization").unwrap().clone();
    let body = framed(&buy());
    let post = |origin: &str| {
        let head = format!(
            "POST {BUY} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: application/grpc-web+proto\r\n\
             x-grpc-web: 1\r\ngrpc-timeout: 5S\r\norigin: {origin}\r\nauthorization: {}\r\ncontent-length: {}\r\n\r\n",
            token.to_str().unwrap(),
            body.len()
        );
        [head.as_bytes(), &body].concat()
    };
    let answer = http(&cluster, &post(page)).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status:0"), "{answer}");
    assert!(answer.contains(&format!("access-control-allow-origin: {page}")), "{answer}");
    assert_eq!(cluster.nodes[0].commands.lock().len(), 1);
    let ask = |origin: &str| {
        format!(
            "OPTIONS {BUY} HTTP/1.1\r\nhost: x\r\nconnection: close\r\norigin: {origin}\r\n\
             access-control-request-method: POST\r\naccess-control-request-headers: authorization,x-grpc-web\r\n\r\n"
        )
        .into_bytes()
    };
    let may = http(&cluster, &ask(page)).await;
    assert!(may.contains("access-control-allow-headers: authorization,x-grpc-web"), "{may}");
    let may_not = http(&cluster, &ask("https://elsewhere.example")).await;
    assert!(!may_not.contains("access-control-allow-origin"), "{may_not}");
}

#[tokio::test]
async fn requests_may_be_compressed_within_the_limit_and_other_encodings_are_named() {
    use tonic::codec::CompressionEncoding::{Deflate, Gzip};
    let cluster = cluster().await;
    for encoding in [Gzip, Deflate] {
        let tickets = TicketServiceClient::new(cluster.channel().await);
        let mut tickets = tickets.send_compressed(encoding).accept_compressed(encoding);
        tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
        // What would be far too large when it is decompressed is never made.
        let bomb = v1::BuyTicketsRequest { tier_id: "x".repeat(64 << 20), ..buy() };
        let refused = tickets.buy_tickets(cluster.request("alice", &[], bomb)).await.unwrap_err();
        assert_eq!(reason(&refused), "MESSAGE_TOO_LARGE", "{refused:?}");
    }
    assert_eq!(cluster.nodes[0].commands.lock().len(), 2);
    let mut snappy = framed(&buy());
    snappy[0] = 1;
    let answer = post_encoded(&cluster, "application/grpc", "snappy", snappy).await;
    let refused = status(answer.headers());
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unimplemented, "ENCODING_NOT_SUPPORTED"));
    assert!(answer.headers()["grpc-accept-encoding"].to_str().unwrap().contains("gzip"), "{answer:?}");
}

/// A call whose message never comes. By itself, because the clients of the library watch the clock as well.
async fn begin(
    cluster: &Cluster,
    path: &str,
    encoding: &str,
) -> (h2::client::ResponseFuture, h2::SendStream<bytes::Bytes>) {
    let token = cluster.request("alice", &[], ()).metadata().get("authorization").unwrap().clone();
    let stream = tokio::net::TcpStream::connect(cluster.address).await.unwrap();
    let (mut client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let request = HttpRequest::post(format!("http://{}{path}", cluster.address))
        .header("content-type", "application/grpc")
        .header("authorization", token.to_str().unwrap())
        .header("grpc-timeout", if encoding == "identity" { "300m" } else { "60S" })
        .header("grpc-encoding", encoding)
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (answer, mut body) = client.send_request(request, false).unwrap();
    body.send_data(bytes::Bytes::from_static(&[0, 0, 0]), false).unwrap();
    (answer, body)
}

#[tokio::test]
async fn compressed_messages_that_never_come_keep_out_compressed_ones_alone() {
    use tonic::codec::CompressionEncoding::Gzip;
    let cluster = cluster().await;
    let plain = TicketServiceClient::new(cluster.channel().await);
    let mut compressed = plain.clone().send_compressed(Gzip);
    let mut open = Vec::new();
    let refused = loop {
        open.push(begin(&cluster, BUY, "gzip").await);
        assert!(open.len() <= 80, "{} messages are waited for", open.len());
        if let Err(refused) = compressed.buy_tickets(cluster.request("alice", &[], buy())).await {
            break refused;
        }
    };
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(open.len() >= 64, "{} were too many", open.len());
    plain.clone().buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
    // Who gives up makes room.
    drop(open);
    while compressed.buy_tickets(cluster.request("alice", &[], buy())).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// A client that never finishes its message is told when its deadline passes, in the words of the API.
#[tokio::test]
async fn a_deadline_that_passes_before_the_message_has_come_is_told() {
    let cluster = cluster().await;
    for (path, expected) in
        [(BUY, "OUTCOME_UNKNOWN"), ("/tidewall.v1.RegionService/ListRegions", "DEADLINE_EXCEEDED")]
    {
        let (answer, _body) = begin(&cluster, path, "identity").await;
        let answer = answer.await.unwrap();
        let status = status(answer.headers());
        assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, expected), "{path}");
    }
    assert!(cluster.nodes.iter().all(|node| node.commands.lock().is_empty()));
}
