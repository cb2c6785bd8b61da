//! The gateway as its clients see it, in front of scripted shard nodes.
#![allow(clippy::unwrap_used)]

mod accounts;
mod changes;
mod fake;
mod reads;
mod transport;
mod webhooks;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use fake::{Action, cluster, cluster_with, done, found, outcome, query, refusal, refuse, sold};
use futures_util::stream;
use prost::Message as _;
use tidewall_gateway::auth::Role;
use tidewall_gateway::{Gateway, GatewayError};
use tidewall_messages::{Rejection, tickets};
use tidewall_proto::internal::v1::{self as pb, RefusalKind};
use tidewall_proto::v1;
use tidewall_proto::v1::event_service_client::EventServiceClient;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::region_service_client::RegionServiceClient;
use tidewall_proto::v1::ticket_service_client::TicketServiceClient;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

const GALA: &str = "regions/north/events/gala";
const GET_METRICS: &[u8] = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

/// What a call to buy tickets ends with.
type Bought = Result<Response<v1::BuyTicketsResponse>, Status>;

fn buy() -> v1::BuyTicketsRequest {
    v1::BuyTicketsRequest {
        parent: GALA.into(),
        tier_id: "ga".into(),
        quantity: 1,
        request_id: uuid::Uuid::now_v7().to_string(),
        ..Default::default()
    }
}

fn uuid_of(bytes: &[u8]) -> String {
    uuid::Uuid::from_slice(bytes).unwrap().to_string()
}

fn reason(status: &Status) -> String {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "tidewall");
    info.reason
}

fn rejection(reason: &str) -> pb::Outcome {
    let view = Rejection {
        reason: reason.into(),
        message: "no".into(),
        code: Code::FailedPrecondition.into(),
        field: String::new(),
    };
    pb::Outcome { result: Some(pb::outcome::Result::Rejection(view)), ..Default::default() }
}

#[tokio::test]
async fn a_purchase_carries_the_tokens_subject_and_names_its_tickets() {
    let cluster = cluster().await;
    cluster.nodes[0].plan([outcome(sold(41, 2))]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let message = v1::BuyTicketsRequest { quantity: 2, ..buy() };
    let before = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
    let answer =
        tickets.buy_tickets(cluster.request("alice", &[], message.clone())).await.unwrap().into_inner();
    assert_eq!(
        answer.purchase.unwrap().tickets,
        [format!("{GALA}/tickets/ga-41"), format!("{GALA}/tickets/ga-42")]
    );
    let receipt = answer.receipt.unwrap();
    assert_eq!((receipt.region.as_str(), receipt.term, receipt.index), ("regions/north", 2, 3));
    let commands = cluster.nodes[0].commands.lock();
    assert_eq!(commands.len(), 1);
    assert_eq!((commands[0].principal.as_str(), commands[0].roles), ("alice", 0));
    assert_eq!(commands[0].request_id, uuid::Uuid::parse_str(&message.request_id).unwrap().as_bytes());
    assert!(commands[0].expires_at_ms > before && commands[0].expires_at_ms <= before + 60_000);
    assert!(cluster.nodes[1].commands.lock().is_empty());
}

#[tokio::test]
async fn a_call_follows_the_leader_under_the_same_request_id() {
    let cluster = cluster().await;
    cluster.nodes[0].plan([refuse(RefusalKind::NotLeader, 2, 0)]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
    assert_eq!(cluster.nodes[0].request_ids().len(), 1);
    assert_eq!(cluster.nodes[0].request_ids(), cluster.nodes[1].request_ids());
    // What guards the id is of the message alone: the same for copies, another one for other content.
    let of = |node: usize| cluster.nodes[node].commands.lock()[0].fingerprint;
    assert!(of(0) == of(1) && of(0) != 0);
    let first = cluster.nodes[1].commands.lock()[0].clone();
    let more = v1::BuyTicketsRequest { quantity: 2, request_id: uuid_of(&first.request_id), ..buy() };
    tickets.buy_tickets(cluster.request("alice", &[], more)).await.unwrap();
    let again = cluster.nodes[1].commands.lock().last().cloned().unwrap();
    assert!(again.request_id == first.request_id && again.fingerprint != first.fingerprint);
}

#[tokio::test]
async fn a_call_whose_connection_breaks_is_held_and_replayed() {
    let cluster = cluster().await;
    cluster.nodes[0].plan([Action::Break]);
    // The other node is asked, does not lead and knows nobody; then it is elected.
    let not_leader = || refuse(RefusalKind::NotLeader, 0, 0);
    cluster.nodes[1].plan([not_leader(), refuse(RefusalKind::Unknown, 0, 0), outcome(sold(7, 1))]);
    cluster.nodes[0].plan((0..50).map(|_| refuse(RefusalKind::NotLeader, 2, 0)));
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let answer = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap().into_inner();
    assert_eq!(answer.purchase.unwrap().tickets, [format!("{GALA}/tickets/ga-7")]);
    let mut ids = cluster.nodes[0].request_ids();
    ids.extend(cluster.nodes[1].request_ids());
    assert!(ids.len() >= 4, "{} attempts", ids.len());
    ids.dedup();
    assert_eq!(ids.len(), 1, "one intent has one request id");
}

#[tokio::test]
async fn an_unknown_outcome_is_never_reported_as_a_failure() {
    let cluster = cluster().await;
    // The first attempt may have been decided; what follows is no answer.
    cluster.nodes[0].plan([Action::Break, refuse(RefusalKind::Invalid, 0, 0)]);
    cluster.nodes[1].plan([refuse(RefusalKind::Invalid, 0, 0)]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let message = buy();
    let status = tickets.buy_tickets(cluster.request("alice", &[], message.clone())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "OUTCOME_UNKNOWN"));
    assert_eq!(status.get_details_error_info().unwrap().metadata["request_id"], message.request_id);
}

#[tokio::test]
async fn overload_is_passed_on_at_once_and_not_replayed() {
    let cluster = cluster().await;
    cluster.nodes[0].plan([refuse(RefusalKind::Overloaded, 0, 70)]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let status = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(delay, Duration::from_millis(70));
    assert_eq!(cluster.nodes[0].request_ids().len(), 1);
    assert!(cluster.nodes[1].request_ids().is_empty());
}

#[tokio::test]
async fn overload_after_a_doubtful_attempt_is_not_called_undecided() {
    let cluster = cluster().await;
    cluster.nodes[0].plan([refuse(RefusalKind::Unknown, 0, 0), refuse(RefusalKind::Overloaded, 0, 10)]);
    cluster.nodes[0].plan([outcome(sold(5, 1))]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let answer = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap().into_inner();
    assert_eq!(answer.purchase.unwrap().tickets, [format!("{GALA}/tickets/ga-5")]);
    assert_eq!(cluster.nodes[0].request_ids().len(), 3);
}

#[tokio::test]
async fn a_rejection_keeps_its_code_reason_and_receipt() {
    let cluster = cluster().await;
    let receipt = Some(pb::Receipt { incarnation: 1, term: 2, index: 9, ..Default::default() });
    let decided = pb::Outcome { receipt, ..rejection("SOLD_OUT") };
    cluster.nodes[0].plan([outcome(decided), outcome(rejection("SOLD_OUT"))]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    // The second one is a quick no: it was not decided by the log.
    for index in [Some(9), None] {
        let status = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "SOLD_OUT"));
        let details = tonic_types::Status::decode(status.details()).unwrap().details;
        let receipt = details.iter().find(|any| any.type_url == "type.googleapis.com/tidewall.v1.Receipt");
        let receipt = receipt.map(|any| v1::Receipt::decode(any.value.as_slice()).unwrap());
        assert_eq!(receipt.as_ref().map(|receipt| receipt.index), index);
        assert!(receipt.is_none_or(|receipt| receipt.region == "regions/north"));
    }
}

#[tokio::test]
async fn bad_calls_are_refused_before_any_node_hears_of_them() {
    let cluster = cluster().await;
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let mut refused = async |request: Request<v1::BuyTicketsRequest>| {
        let status = tickets.buy_tickets(request).await.unwrap_err();
        (status.code(), reason(&status))
    };
    let mut anonymous = Request::new(buy());
    anonymous.set_timeout(Duration::from_secs(20));
    assert_eq!(refused(anonymous).await, (Code::Unauthenticated, "TOKEN_REQUIRED".into()));
    let mut timeless = cluster.request("alice", &[], buy());
    timeless.metadata_mut().remove("grpc-timeout");
    assert_eq!(refused(timeless).await, (Code::InvalidArgument, "DEADLINE_REQUIRED".into()));
    let changed = |change: fn(&mut v1::BuyTicketsRequest)| {
        let mut message = buy();
        change(&mut message);
        cluster.request("alice", &[], message)
    };
    let nowhere = changed(|m| m.parent = "regions/atlantis/events/gala".into());
    assert_eq!(refused(nowhere).await, (Code::NotFound, "REGION_NOT_FOUND".into()));
    let invalid = |reason: &str| (Code::InvalidArgument, reason.to_owned());
    assert_eq!(refused(changed(|m| m.parent = "gala".into())).await, invalid("NAME_INVALID"));
    assert_eq!(refused(changed(|m| m.parent = "regions/north".into())).await, invalid("NAME_INVALID"));
    assert_eq!(refused(changed(|m| m.request_id.clear())).await, invalid("REQUEST_ID_REQUIRED"));
    assert_eq!(refused(changed(|m| m.request_id = "1".into())).await, invalid("REQUEST_ID_INVALID"));
    assert_eq!(refused(changed(|m| m.quantity = 0)).await, invalid("INVALID_FIELD"));
    assert_eq!(refused(changed(|m| m.quantity = 101)).await, invalid("INVALID_FIELD"));
    let large = changed(|m| m.seats = vec!["A-1".repeat(1000); 2000]);
    assert_eq!(refused(large).await, invalid("MESSAGE_TOO_LARGE"));
    let mut events = EventServiceClient::new(cluster.channel().await);
    let create = v1::CreateEventRequest { parent: "regions/north".into(), ..Default::default() };
    let status = events.create_event(cluster.request("alice", &[Role::Seller], create)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "ROLE_REQUIRED"));
    for node in &cluster.nodes {
        assert!(node.commands.lock().is_empty());
    }
}

#[tokio::test]
async fn a_batch_keeps_what_is_decided_and_replays_the_rest() {
    use v1::batch_buy_tickets_result::Result as Shown;
    let cluster = cluster().await;
    let item = |result| pb::BatchItem { result: Some(result) };
    let answer = |items| Action::Answer(Box::new(pb::reply::Result::Batch(pb::OutcomeBatch { items })));
    let refused = |kind| item(pb::batch_item::Result::Refusal(refusal(kind, 0, 30)));
    let decided = |outcome| item(pb::batch_item::Result::Outcome(outcome));
    cluster.nodes[0].plan([
        answer(vec![
            decided(sold(1, 1)),
            refused(RefusalKind::Unknown),
            decided(rejection("SOLD_OUT")),
            refused(RefusalKind::Overloaded),
        ]),
        answer(vec![decided(sold(9, 1))]),
    ]);
    let purchase = |buyer: &str| v1::BatchPurchase {
        buyer: buyer.into(),
        tier_id: "ga".into(),
        quantity: 1,
        request_id: uuid::Uuid::now_v7().to_string(),
    };
    let purchases = ["ann", "ben", "cem", "dan"].map(purchase).to_vec();
    let message = v1::BatchBuyTicketsRequest { parent: GALA.into(), purchases };
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let denied = tickets.batch_buy_tickets(cluster.request("shop", &[], message.clone())).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let request = cluster.request("shop", &[Role::Seller], message);
    let results = tickets.batch_buy_tickets(request).await.unwrap().into_inner().results;
    let first = |position: usize| match &results[position].result {
        Some(Shown::Purchase(purchase)) => purchase.tickets[0].clone(),
        other => panic!("{other:?}"),
    };
    assert_eq!((first(0), first(1)), (format!("{GALA}/tickets/ga-1"), format!("{GALA}/tickets/ga-9")));
    assert!(matches!(&results[2].result, Some(Shown::Rejection(no)) if no.reason == "SOLD_OUT"));
    assert!(matches!(&results[3].result, Some(Shown::Undecided(no)) if no.reason == "OVERLOADED"));
    let batches = cluster.nodes[0].batches.lock();
    assert_eq!((batches[0].commands.len(), batches[1].commands.len()), (4, 1));
    assert_eq!(batches[1].commands[0], batches[0].commands[1], "replayed as it was");
    let second = &batches[0].commands[1];
    let asked = tickets::Command::decode(&second.payload[..]).unwrap().op;
    let Some(tickets::command::Op::Buy(buy)) = asked else { panic!("a purchase") };
    assert_eq!((second.principal.as_str(), buy.buyer.as_str()), ("shop", "ben"));
    assert_eq!(
        (second.module, second.row.as_str(), second.finishes),
        (u32::from(tickets::MODULE), "gala", false)
    );
    let fingerprints: std::collections::BTreeSet<_> =
        batches[0].commands.iter().map(|command| command.fingerprint).collect();
    assert_eq!(fingerprints.len(), 4, "each purchase has its own");
}

#[tokio::test]
async fn tickets_are_shown_to_those_who_may_see_them() {
    let cluster = cluster().await;
    let view = || tickets::TicketView {
        ticket_id: "ga-1".into(),
        owner: "alice".into(),
        organiser: "olga".into(),
        ..Default::default()
    };
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let cases: [(&str, &[Role], bool); 5] = [
        ("alice", &[], true),
        ("olga", &[], true),
        ("shop", &[Role::Seller], true),
        ("root", &[Role::Operator], true),
        ("mallory", &[Role::Organiser], false),
    ];
    for (subject, roles, seen) in cases {
        cluster.nodes[0].plan([found(tickets::answer::Result::Ticket(view()))]);
        let get = v1::GetTicketRequest { name: format!("{GALA}/tickets/ga-1"), ..Default::default() };
        let answer = tickets.get_ticket(cluster.request(subject, roles, get)).await;
        assert_eq!(answer.is_ok(), seen, "{subject}");
    }
    let list = |subject: &str, roles: &[Role], owner: &str, page_token: &str| {
        let (tickets, organiser) = (vec![view()], "olga".into());
        let list = tickets::TicketList { tickets, more: true, organiser };
        cluster.nodes[0].plan([found(tickets::answer::Result::Tickets(list))]);
        let message = v1::ListTicketsRequest {
            parent: GALA.into(),
            owner: owner.into(),
            page_size: 1,
            page_token: page_token.into(),
            ..Default::default()
        };
        cluster.request(subject, roles, message)
    };
    let own = tickets.list_tickets(list("alice", &[], "", "")).await.unwrap().into_inner();
    assert_eq!(own.tickets[0].name, format!("{GALA}/tickets/ga-1"));
    tickets.list_tickets(list("alice", &[], "", &own.next_page_token)).await.unwrap();
    let asked: Vec<_> = cluster.nodes[0].queries.lock().iter().rev().take(2).cloned().collect();
    let Some(pb::query::Op::Module(second)) = &asked[0].op else { panic!("a query of a module") };
    let Some(tickets::query::Op::ListTickets(second)) =
        tickets::Query::decode(&second.payload[..]).unwrap().op
    else {
        panic!("a list")
    };
    assert_eq!((second.owner.as_str(), second.after_ticket_id.as_str()), ("alice", "ga-1"));
    assert!(tickets.list_tickets(list("olga", &[], "*", "")).await.is_ok());
    assert!(tickets.list_tickets(list("root", &[Role::Operator], "*", "")).await.is_ok());
    for owner in ["*", "alice"] {
        let status = tickets.list_tickets(list("mallory", &[], owner, "")).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{owner}");
    }
    let foreign = tickets.list_tickets(list("bob", &[], "", &own.next_page_token)).await.unwrap_err();
    assert_eq!(reason(&foreign), "PAGE_TOKEN_INVALID");
}

#[tokio::test]
async fn a_lost_answer_can_be_asked_for() {
    let cluster = cluster().await;
    let view = pb::OutcomeView { outcome: Some(sold(3, 1)), forgotten: false };
    cluster.nodes[0].plan([query(pb::query_result::Result::Outcome(view))]);
    let mut outcomes = OutcomeServiceClient::new(cluster.channel().await);
    let message = v1::GetOutcomeRequest { parent: "regions/north".into(), request_id: buy().request_id };
    let answer = outcomes.get_outcome(cluster.request("alice", &[], message)).await.unwrap().into_inner();
    assert_eq!(answer.state(), v1::OutcomeState::Decided);
    let Some(v1::get_outcome_response::Result::Purchase(purchase)) = answer.result else {
        panic!("a purchase")
    };
    assert_eq!(purchase.tickets, [format!("{GALA}/tickets/ga-3")]);
}

#[tokio::test]
async fn a_hold_belongs_to_the_caller() {
    let cluster = cluster().await;
    // As a node answers: it leaves the owner to the gateway.
    let held = || {
        let (hold_id, tier_id) = ("ga-h3".into(), "ga".into());
        done(tickets::outcome::Result::Hold(tickets::HoldView {
            hold_id,
            tier_id,
            quantity: 2,
            ..Default::default()
        }))
    };
    cluster.nodes[0].plan([outcome(held())]);
    let request_id = buy().request_id;
    let message = v1::HoldTicketsRequest {
        parent: GALA.into(),
        tier_id: "ga".into(),
        quantity: 2,
        request_id: request_id.clone(),
        ..Default::default()
    };
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let made = tickets.hold_tickets(cluster.request("alice", &[], message)).await.unwrap().into_inner().hold;
    assert_eq!(made.as_ref().unwrap().owner, "alice");
    let view = pb::OutcomeView { outcome: Some(held()), forgotten: false };
    cluster.nodes[0].plan([query(pb::query_result::Result::Outcome(view))]);
    let mut outcomes = OutcomeServiceClient::new(cluster.channel().await);
    let message = v1::GetOutcomeRequest { parent: "regions/north".into(), request_id };
    let answer = outcomes.get_outcome(cluster.request("alice", &[], message)).await.unwrap().into_inner();
    assert_eq!(answer.result, made.map(v1::get_outcome_response::Result::Hold));
}

#[tokio::test]
async fn a_command_that_expired_is_not_unknown_even_after_a_doubtful_attempt() {
    let cluster = cluster().await;
    let view =
        Rejection { reason: "EXPIRED".into(), code: Code::DeadlineExceeded.into(), ..Default::default() };
    let expired = pb::Outcome { result: Some(pb::outcome::Result::Rejection(view)), ..Default::default() };
    cluster.nodes[0].plan([refuse(RefusalKind::Unknown, 0, 0), outcome(expired)]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let status = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::DeadlineExceeded, "EXPIRED"));
}

#[tokio::test]
async fn regions_are_listed_in_pages() {
    let cluster = cluster().await;
    let mut regions = RegionServiceClient::new(cluster.channel().await);
    let mut names = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = v1::ListRegionsRequest { page_size: 1, page_token };
        let page = regions.list_regions(cluster.request("alice", &[], message)).await.unwrap().into_inner();
        names.extend(page.regions.into_iter().map(|region| region.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, ["regions/north", "regions/south"]);
}

#[tokio::test]
async fn a_full_region_refuses_and_says_when_to_come_back() {
    let cluster = cluster_with(|config| config.calls_max_per_region = 1).await;
    cluster.nodes[0].plan([Action::Silence]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let stuck = tokio::spawn({
        let (mut tickets, request) = (tickets.clone(), cluster.request("alice", &[], buy()));
        async move { tickets.buy_tickets(request).await }
    });
    while cluster.nodes[0].request_ids().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let status = tickets.buy_tickets(cluster.request("bob", &[], buy())).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(status.get_details_retry_info().unwrap().retry_delay.unwrap() >= Duration::from_millis(50));
    let elsewhere = v1::BuyTicketsRequest { parent: "regions/south/events/gala".into(), ..buy() };
    tickets.buy_tickets(cluster.request("bob", &[], elsewhere)).await.unwrap();
    stuck.abort();
}

#[tokio::test]
async fn a_call_outlives_the_renewal_of_its_connection() {
    // Asked to go after 20 to 40 ms.
    let cluster = cluster_with(|config| config.connection_age_min = Some(Duration::from_millis(20))).await;
    // The gateway asks again after a second.
    cluster.nodes[0].plan([Action::Silence]);
    let connections = Arc::new(AtomicU32::new(0));
    let mut tickets = TicketServiceClient::new(cluster.counting_channel(Arc::clone(&connections)).await);
    let began = Instant::now();
    tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
    assert!(began.elapsed() > Duration::from_millis(500), "it was under way when its connection was to go");
    assert_eq!(connections.load(Ordering::Relaxed), 1);
    tickets.buy_tickets(cluster.request("bob", &[], buy())).await.unwrap();
    assert_eq!(connections.load(Ordering::Relaxed), 2, "the old one was not renewed");
}

#[tokio::test]
async fn a_watch_of_health_ends_when_its_connection_is_to_be_renewed() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;
    let cluster = cluster_with(|config| config.connection_age_min = Some(Duration::from_millis(20))).await;
    let mut health = HealthClient::new(cluster.channel().await);
    for _ in 0..3 {
        let mut watch = health.watch(HealthCheckRequest::default()).await.unwrap().into_inner();
        let whole = async {
            let mut told = 0;
            while let Some(_status) = watch.message().await.unwrap() {
                told += 1;
            }
            told
        };
        let told = tokio::time::timeout(Duration::from_secs(20), whole).await.expect("it ends");
        assert!(told > 0, "whoever watches is told how it is");
    }
}

/// A gateway that lets one call in at a time: Alice's, whose leader is silent, and Bob's, who waits.
async fn one_under_way_and_one_waiting() -> (fake::Cluster, [JoinHandle<Bought>; 2]) {
    let cluster = cluster_with(|config| (config.limit.floor, config.limit.ceiling) = (1, 1)).await;
    cluster.nodes[0].plan([Action::Silence]);
    let tickets = TicketServiceClient::new(cluster.channel().await);
    let call = |buyer: &str| {
        let (mut tickets, request) = (tickets.clone(), cluster.request(buyer, &[], buy()));
        tokio::spawn(async move { tickets.buy_tickets(request).await })
    };
    let stuck = call("alice");
    while cluster.nodes[0].request_ids().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let waiting = call("bob");
    let line = r#"tidewall_gateway_calls_waiting{region="north"} 1"#;
    while !http(&cluster, GET_METRICS).await.contains(line) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    (cluster, [stuck, waiting])
}

#[tokio::test]
async fn a_gateway_that_stops_sends_away_who_waits_and_finishes_what_is_under_way() {
    let (mut cluster, [stuck, waiting]) = one_under_way_and_one_waiting().await;
    cluster.stop();
    let status = waiting.await.unwrap().unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    assert!(!cluster.nodes.iter().any(|node| principals_of(node).iter().any(|who| who == "bob")));
    // The gateway asks again after a second.
    stuck.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_call_beyond_the_limit_waits_for_its_turn() {
    let (cluster, [stuck, waiting]) = one_under_way_and_one_waiting().await;
    let metrics = http(&cluster, GET_METRICS).await;
    assert!(metrics.contains(r#"tidewall_gateway_admission_limit{region="north"} 1"#), "{metrics}");
    // The stuck call may have been sent again meanwhile; nobody has heard of the other one.
    let principals = |cluster: &fake::Cluster| -> std::collections::BTreeSet<String> {
        cluster.nodes.iter().flat_map(|node| principals_of(node)).collect()
    };
    assert!(!principals(&cluster).contains("bob"));
    stuck.abort();
    waiting.await.unwrap().unwrap();
    assert!(principals(&cluster).contains("bob"));
}

fn principals_of(node: &fake::Node) -> Vec<String> {
    node.commands.lock().iter().map(|command| command.principal.clone()).collect()
}

#[tokio::test]
async fn operators_see_nodes_and_move_regions() {
    let cluster = cluster().await;
    let mut operator = OperatorServiceClient::new(cluster.channel().await);
    let denied = operator
        .list_nodes(cluster.request("alice", &[], v1::ListNodesRequest::default()))
        .await
        .unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    let root = [Role::Operator];
    let nodes =
        operator.list_nodes(cluster.request("root", &root, v1::ListNodesRequest::default())).await.unwrap();
    let nodes = nodes.into_inner().nodes;
    assert_eq!(nodes[0].leads, ["regions/north", "regions/south"]);
    assert!(nodes[1].reachable && nodes[1].leads.is_empty());
    let list = cluster.request("root", &root, v1::ListRegionStatusesRequest::default());
    let regions = operator.list_region_statuses(list).await.unwrap().into_inner().regions;
    assert_eq!((regions.len(), regions[1].leader_node, regions[1].replicas.len()), (2, 1, 2));

    let export = cluster.request("root", &root, v1::ExportRegionRequest { name: "regions/south".into() });
    let mut chunks = operator.export_region(export).await.unwrap().into_inner();
    let mut file = Vec::new();
    while let Some(message) = chunks.message().await.unwrap() {
        file.extend_from_slice(&message.chunk);
    }
    assert_eq!(file, b"rows of 2");

    let messages = [
        v1::ImportRegionRequest { name: "regions/south".into(), replace: true, chunk: "ab".into() },
        v1::ImportRegionRequest { chunk: "cd".into(), ..Default::default() },
    ];
    let import = cluster.request("root", &root, stream::iter(messages));
    let done = operator.import_region(import).await.unwrap().into_inner();
    assert_eq!((done.incarnation, done.rows, done.digest), (2, 5, "ab".repeat(16)));
    let imported = cluster.nodes[0].imported.lock();
    assert_eq!((imported[0].group, imported[0].replace, imported[0].principal.as_str()), (2, true, "root"));
    let file: Vec<u8> = imported.iter().flat_map(|message| message.chunk.to_vec()).collect();
    assert_eq!(file, b"abcd");
}

#[tokio::test]
async fn operators_look_at_dead_letters_and_resolve_them() {
    let cluster = cluster().await;
    let node = &cluster.nodes[0];
    let mut operator = OperatorServiceClient::new(cluster.channel().await);
    let root = [Role::Operator];
    let letter = |id: &str, from| pb::DeadLetter {
        effect: false,
        id: id.into(),
        from,
        module: "accounts".into(),
        saga: vec![0xab; 16],
        reason: "why".into(),
        waits: from == 0,
        since_ms: 1_500,
        payload: vec![1, 2],
    };
    let letters = |letters: Vec<pb::DeadLetter>, more| {
        let found = pb::DeadLetters { letters, more };
        fake::query(pb::query_result::Result::DeadLetters(found))
    };
    let list = |page_token: &str| v1::ListDeadLettersRequest {
        parent: "regions/south".into(),
        page_size: 2,
        page_token: page_token.into(),
    };
    let denied = operator.list_dead_letters(cluster.request("alice", &[], list(""))).await.unwrap_err();
    assert_eq!(denied.code(), Code::PermissionDenied);
    node.plan([letters(vec![letter("1-2-3", 1), letter("1-2-4", 0)], true), letters(vec![], false)]);
    let first =
        operator.list_dead_letters(cluster.request("root", &root, list(""))).await.unwrap().into_inner();
    let [one, other] = &first.dead_letters[..] else { panic!("{first:?}") };
    assert_eq!(
        (one.name.as_str(), one.from_region.as_str()),
        ("regions/south/deadLetters/1-2-3", "regions/north")
    );
    assert_eq!(
        (one.domain.as_str(), one.saga.clone(), one.message.as_slice()),
        ("accounts", "ab".repeat(16), &[1, 2][..])
    );
    let since = one.set_aside_time.unwrap();
    assert_eq!((since.seconds, since.nanos, one.waits), (1, 500_000_000, false));
    assert_eq!(
        (other.from_region.as_str(), other.waits),
        ("", true),
        "a timer, or what somebody should know"
    );
    let rest = operator.list_dead_letters(cluster.request("root", &root, list(&first.next_page_token))).await;
    assert_eq!(rest.unwrap().into_inner(), v1::ListDeadLettersResponse::default());
    let asked: Vec<_> = node.queries.lock().drain(..).filter_map(|query| query.op).collect();
    let ask = |after: &str| {
        pb::query::Op::DeadLetters(pb::ListDeadLetters {
            after: after.into(),
            limit: 2,
            ..Default::default()
        })
    };
    assert_eq!(asked, [ask(""), ask("1-2-4")]);

    let name = "regions/south/deadLetters/1-2-3".to_owned();
    let get = |name: &str| cluster.request("root", &root, v1::GetDeadLetterRequest { name: name.into() });
    node.plan([letters(vec![letter("1-2-3", 1)], false), letters(vec![], false)]);
    let got = operator.get_dead_letter(get(&name)).await.unwrap().into_inner().dead_letter.unwrap();
    assert_eq!(&got, one);
    let gone = operator.get_dead_letter(get(&name)).await.unwrap_err();
    assert_eq!((gone.code(), reason(&gone)), (Code::NotFound, "DEAD_LETTER_NOT_FOUND".to_owned()));
    for bad in ["regions/south/deadLetters/1-2", "regions/south/deadLetters/01-2-3", "regions/south", "x"] {
        assert_eq!(
            operator.get_dead_letter(get(bad)).await.unwrap_err().code(),
            Code::InvalidArgument,
            "{bad}"
        );
    }

    // The fake has it dropped, and not carried out.
    node.plan((0..2).map(|_| letters(vec![letter("1-2-3", 1)], false)));
    let replay = cluster.request("root", &root, v1::ReplayDeadLetterRequest { name: name.clone() });
    let refused = operator.replay_dead_letter(replay).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (Code::FailedPrecondition, "REFUSED".to_owned()));
    let drop = cluster.request("root", &root, v1::DropDeadLetterRequest { name: name.clone() });
    assert_eq!(operator.drop_dead_letter(drop).await.unwrap().into_inner().remaining, 4);
    node.plan([letters(vec![], false)]);
    let drop = cluster.request("root", &root, v1::DropDeadLetterRequest { name });
    assert_eq!(operator.drop_dead_letter(drop).await.unwrap_err().code(), Code::NotFound);
    let asked =
        |drop| pb::ResolveDeadLetterRequest { group: 2, id: "1-2-3".into(), drop, principal: "root".into() };
    assert_eq!(*node.resolved.lock(), [asked(false), asked(true)], "what is not there is not asked for");
}

/// One HTTP/1.1 exchange.
async fn http(cluster: &fake::Cluster, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(cluster.address).await.unwrap();
    // The server may hang up while we still write.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_call_that_its_client_gives_up_is_counted_as_that() {
    let cluster = cluster().await;
    cluster.nodes[0].plan([Action::Silence]);
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let request = cluster.request("alice", &[], buy());
    let call = tokio::spawn(async move { tickets.buy_tickets(request).await.map(drop) });
    while cluster.nodes[0].commands.lock().is_empty() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    call.abort();
    let line = r#"tidewall_gateway_calls_total{method="BuyTickets",region="north",code="CANCELLED"} 1"#;
    let give_up = Instant::now() + Duration::from_secs(20);
    loop {
        let metrics = http(&cluster, GET_METRICS).await;
        if metrics.contains(line) {
            break;
        }
        assert!(Instant::now() < give_up, "{metrics}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn machines_find_health_metrics_and_the_api() {
    use tonic_health::pb::health_client::HealthClient;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::{ServerReflectionRequest, server_reflection_response::MessageResponse};
    let cluster = cluster().await;
    let mut health = HealthClient::new(cluster.channel().await);
    for service in ["", "tidewall.v1.TicketService"] {
        loop {
            let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
            if health.check(request).await.unwrap().into_inner().status == 1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
    let get =
        |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").into_bytes();
    let answer = http(&cluster, &get("/healthz")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    let metrics = http(&cluster, &get("/metrics")).await;
    let line = r#"tidewall_gateway_calls_total{method="BuyTickets",region="north",code="OK"} 1"#;
    assert!(metrics.contains(line), "{metrics}");
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut reflection = ServerReflectionClient::new(cluster.channel().await);
    let mut answers = reflection.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("a list") };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    assert!(names.contains(&"tidewall.v1.TicketService"), "{names:?}");
    assert!(!names.iter().any(|name| name.contains("internal")), "{names:?}");
    // What is known of what is in the details of errors, and of what only our own processes say.
    for (symbol, known) in [("google.rpc.ErrorInfo", true), ("tidewall.internal.v1.Command", false)] {
        let request = ServerReflectionRequest {
            host: String::new(),
            message_request: Some(MessageRequest::FileContainingSymbol(symbol.to_owned())),
        };
        let mut answers =
            reflection.server_reflection_info(stream::iter([request])).await.unwrap().into_inner();
        let answer = answers.message().await;
        let found = answer.ok().flatten().and_then(|answer| answer.message_response);
        let found = matches!(found, Some(MessageResponse::FileDescriptorResponse(_)));
        assert_eq!(found, known, "{symbol}");
    }
}

#[tokio::test]
async fn garbage_on_the_port_harms_nobody() {
    let cluster = cluster().await;
    for garbage in
        [&[0u8; 512][..], &[0xff; 100_000][..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense that is no frame"]
    {
        http(&cluster, garbage).await;
    }
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let cluster = cluster().await;
    let mut config = cluster.config.clone();
    config.listen = cluster.address;
    let error = Gateway::bind(config.clone()).await.unwrap_err();
    assert!(matches!(error, GatewayError::PortInUse(_)));
    let text = error.to_string();
    assert!(text.contains(&cluster.address.port().to_string()) && text.contains("another port"), "{text}");
    config.public_keys.clear();
    assert!(matches!(Gateway::bind(config).await, Err(GatewayError::NoPublicKey)));
}
