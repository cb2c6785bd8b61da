//! Bad input: each gets an error that says what to do, and changes nothing.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use tidewall_e2e::client::{Session, buy_request, event_of, expect_refusal, request_id, tier};
use tidewall_proto::v1::*;
use tonic::{Code, Status};

use crate::{alone, buyer, first_region, organiser, shared, someone};

/// Everything a refused call must leave as it was.
async fn state(organiser: &Session, event: &str) -> (Event, Vec<Ticket>) {
    (organiser.event(event).await.unwrap(), organiser.tickets_of(event, "*").await.unwrap())
}

async fn sale() -> (Session, String) {
    let organiser = organiser().await;
    let region = first_region(&organiser).await;
    let event = organiser.create_event(&region, event_of(vec![tier("ga", 1000)])).await.unwrap();
    (organiser, event.name)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_purchase_is_refused_and_changes_nothing() {
    let (organiser, event) = sale().await;
    let (_, alice) = buyer().await;
    alice.buy(&event, "ga", 1, &request_id()).await.unwrap();
    let before = state(&organiser, &event).await;
    let region = tidewall_e2e::client::region_of(&event).to_owned();
    let good = || buy_request(&event, "ga", 1, &request_id());

    let old_uuid = "00000000-0000-4000-8000-000000000000";
    let table: Vec<(&str, BuyTicketsRequest, Code, &str)> = vec![
        (
            "an event that is not there",
            BuyTicketsRequest { parent: format!("{region}/events/nowhere"), ..good() },
            Code::NotFound,
            "EVENT_NOT_FOUND",
        ),
        (
            "a region that is not there",
            BuyTicketsRequest { parent: "regions/atlantis/events/gala".into(), ..good() },
            Code::NotFound,
            "REGION_NOT_FOUND",
        ),
        (
            "a malformed name",
            BuyTicketsRequest { parent: "gala".into(), ..good() },
            Code::InvalidArgument,
            "NAME_INVALID",
        ),
        (
            "a name with upper case and a slash too many",
            BuyTicketsRequest { parent: format!("{event}/GALA"), ..good() },
            Code::InvalidArgument,
            "NAME_INVALID",
        ),
        (
            "an empty name",
            BuyTicketsRequest { parent: String::new(), ..good() },
            Code::InvalidArgument,
            "NAME_INVALID",
        ),
        (
            "a tier that is not there",
            BuyTicketsRequest { tier_id: "balcony".into(), ..good() },
            Code::NotFound,
            "TIER_NOT_FOUND",
        ),
        ("no tickets", BuyTicketsRequest { quantity: 0, ..good() }, Code::InvalidArgument, "INVALID_FIELD"),
        (
            "less than none",
            BuyTicketsRequest { quantity: -1, ..good() },
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            "101 tickets",
            BuyTicketsRequest { quantity: 101, ..good() },
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            "as many as fit a number",
            BuyTicketsRequest { quantity: i32::MAX, ..good() },
            Code::InvalidArgument,
            "INVALID_FIELD",
        ),
        (
            "seats in a tier without numbers",
            BuyTicketsRequest { seats: vec!["A-1".into()], ..good() },
            Code::NotFound,
            "SEAT_NOT_FOUND",
        ),
        (
            "no request id",
            BuyTicketsRequest { request_id: String::new(), ..good() },
            Code::InvalidArgument,
            "REQUEST_ID_REQUIRED",
        ),
        (
            "a request id that is no UUID",
            BuyTicketsRequest { request_id: "order-1".into(), ..good() },
            Code::InvalidArgument,
            "REQUEST_ID_INVALID",
        ),
        (
            "a request id of another version",
            BuyTicketsRequest { request_id: old_uuid.into(), ..good() },
            Code::InvalidArgument,
            "REQUEST_ID_INVALID",
        ),
    ];
    for (what, request, code, reason) in table {
        let answer = alice.tickets().buy_tickets(alice.request(request)).await;
        expect_refusal(what, answer, code, reason).unwrap();
    }

    // Ids of holds and tickets.
    for (what, name, code, reason) in [
        ("a hold that is not there", format!("{event}/holds/ga-h999"), Code::NotFound, "HOLD_NOT_FOUND"),
        ("a malformed hold", format!("{event}/holds/"), Code::InvalidArgument, "NAME_INVALID"),
        ("a ticket for a hold", format!("{event}/tickets/ga-1"), Code::InvalidArgument, "NAME_INVALID"),
    ] {
        let request = ConfirmHoldRequest { name, request_id: request_id() };
        let answer = alice.tickets().confirm_hold(alice.request(request)).await;
        expect_refusal(what, answer, code, reason).unwrap();
    }
    for (what, name, code, reason) in [
        ("a ticket that is not there", format!("{event}/tickets/ga-999"), Code::NotFound, "TICKET_NOT_FOUND"),
        ("a malformed ticket", format!("{event}/tickets/../x"), Code::InvalidArgument, "NAME_INVALID"),
    ] {
        let request = CancelTicketRequest { name, request_id: request_id() };
        let answer = alice.tickets().cancel_ticket(alice.request(request)).await;
        expect_refusal(what, answer, code, reason).unwrap();
    }
    assert_eq!(state(&organiser, &event).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_event_is_refused() {
    let organiser = organiser().await;
    let region = first_region(&organiser).await;
    let good = || event_of(vec![tier("ga", 10)]);
    let cases: Vec<(&str, &str, Event)> = vec![
        ("no tiers", "", event_of(Vec::new())),
        ("33 tiers", "", event_of((0..33).map(|n| tier(&format!("t{n}"), 1)).collect())),
        ("a tier twice", "", event_of(vec![tier("ga", 1), tier("ga", 1)])),
        ("a capacity of none", "", event_of(vec![tier("ga", 0)])),
        ("a capacity below none", "", event_of(vec![tier("ga", -5)])),
        ("too large a capacity", "", event_of(vec![tier("ga", 10_000_001)])),
        ("a tier id with a slash", "", event_of(vec![tier("g/a", 1)])),
        ("no name", "", Event { display_name: String::new(), ..good() }),
        ("a name of 201 bytes", "", Event { display_name: "x".repeat(201), ..good() }),
        ("a negative quota", "", Event { quota_per_buyer: -1, ..good() }),
        ("a huge quota", "", Event { quota_per_buyer: 100_001, ..good() }),
        ("too short an id", "abc", good()),
        ("an id with capitals", "GALA-2026", good()),
    ];
    for (what, event_id, event) in cases {
        let request = CreateEventRequest {
            parent: region.clone(),
            event_id: event_id.into(),
            event: Some(event),
            request_id: request_id(),
        };
        let answer = organiser.events().create_event(organiser.request(request)).await;
        expect_refusal(what, answer, Code::InvalidArgument, "INVALID_FIELD").unwrap();
    }
    // An id can be taken once.
    let id = format!("taken-{}", std::process::id());
    let request = |request_id| CreateEventRequest {
        parent: region.clone(),
        event_id: id.clone(),
        event: Some(good()),
        request_id,
    };
    organiser.events().create_event(organiser.request(request(request_id()))).await.unwrap();
    let again = organiser.events().create_event(organiser.request(request(request_id()))).await;
    expect_refusal("an id that is taken", again, Code::AlreadyExists, "EVENT_EXISTS").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_who_is_not_known_or_not_allowed_is_refused() {
    let cluster = shared().await;
    let (organiser, event) = sale().await;
    let before = state(&organiser, &event).await;
    let gateway = &cluster.endpoints().gateways[0].url;
    let (_, alice) = buyer().await;

    let mut request = alice.request(buy_request(&event, "ga", 1, &request_id()));
    request.metadata_mut().remove("authorization");
    let answer = alice.tickets().buy_tickets(request).await;
    expect_refusal("no token", answer, Code::Unauthenticated, "TOKEN_REQUIRED").unwrap();

    let good = cluster.token("mallory", &[]).unwrap();
    let (head, signature) = good.rsplit_once('.').unwrap();
    let claims = head.split_once('.').unwrap().1;
    // {"alg":"none"} and the claims of a good token: nothing vouches for them.
    let unsigned = format!("eyJhbGciOiJub25lIn0.{claims}.");
    let mut forged: Vec<char> = signature.chars().collect();
    forged[10] = if forged[10] == 'A' { 'B' } else { 'A' };
    let forged = format!("{head}.{}", forged.iter().collect::<String>());
    for (what, token) in
        [("no JWT at all", "hello"), ("a forged token", &forged), ("an unsigned token", &unsigned)]
    {
        let caller = Session::new(gateway, token).unwrap();
        let answer =
            caller.tickets().buy_tickets(caller.request(buy_request(&event, "ga", 1, &request_id()))).await;
        expect_refusal(what, answer, Code::Unauthenticated, "TOKEN_INVALID").unwrap();
    }

    // An organiser's or an operator's calls need the role.
    let create = CreateEventRequest {
        parent: tidewall_e2e::client::region_of(&event).into(),
        event_id: String::new(),
        event: Some(event_of(vec![tier("ga", 1)])),
        request_id: request_id(),
    };
    let answer = alice.events().create_event(alice.request(create)).await;
    expect_refusal("create without the role", answer, Code::PermissionDenied, "ROLE_REQUIRED").unwrap();
    let answer = alice.operator().list_nodes(alice.request(ListNodesRequest::default())).await;
    expect_refusal("operate without the role", answer, Code::PermissionDenied, "ROLE_REQUIRED").unwrap();
    let everybody = ListTicketsRequest { parent: event.clone(), owner: "*".into(), ..Default::default() };
    let answer = alice.tickets().list_tickets(alice.request(everybody)).await;
    assert_eq!(answer.map(|_| ()).map_err(|status| status.code()), Err(Code::PermissionDenied));

    // A token that was good a moment ago. The gateway may allow for clocks that differ, so it is asked until
    // it refuses.
    let short = cluster.token_with(&someone("guest"), &[], &["--ttl", "1s"]).unwrap();
    let guest = Session::new(gateway, &short).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(120);
    let refused = loop {
        let request = GetEventRequest { name: event.clone(), ..Default::default() };
        match guest.events().get_event(guest.request(request)).await {
            Err(status) if status.code() == Code::Unauthenticated => break Err::<(), Status>(status),
            _ => assert!(tokio::time::Instant::now() < deadline, "an expired token is good for ever"),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    };
    expect_refusal("an expired token", refused, Code::Unauthenticated, "TOKEN_INVALID").unwrap();
    assert_eq!(state(&organiser, &event).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_without_deadline_or_of_too_many_bytes_is_refused() {
    let (organiser, event) = sale().await;
    let before = state(&organiser, &event).await;
    let (_, alice) = buyer().await;
    let request = alice.request_without_deadline(buy_request(&event, "ga", 1, &request_id()));
    let answer = alice.tickets().buy_tickets(request).await;
    expect_refusal("no deadline", answer, Code::InvalidArgument, "DEADLINE_REQUIRED").unwrap();

    let huge = buy_request(&event, &"x".repeat(16 << 20), 1, &request_id());
    let answer = alice.tickets().buy_tickets(alice.request(huge)).await;
    expect_refusal("16 MiB", answer, Code::InvalidArgument, "MESSAGE_TOO_LARGE").unwrap();
    assert_eq!(state(&organiser, &event).await, before);

    let many = BatchBuyTicketsRequest {
        parent: event.clone(),
        purchases: (0..1001)
            .map(|_| BatchPurchase {
                buyer: "ann".into(),
                tier_id: "ga".into(),
                quantity: 1,
                request_id: request_id(),
            })
            .collect(),
    };
    let seller = shared().await.session(&someone("seller"), &["seller"]).unwrap();
    for (what, purchases) in [("1001 purchases", many.purchases.clone()), ("none", Vec::new())] {
        let request = BatchBuyTicketsRequest { purchases, ..many.clone() };
        let answer = seller.tickets().batch_buy_tickets(seller.request(request)).await;
        expect_refusal(what, answer, Code::InvalidArgument, "INVALID_FIELD").unwrap();
    }
    assert_eq!(state(&organiser, &event).await, before);
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_on_any_port_harms_nobody() {
    // A process that dies of it must not take the other tests along, and its id must be ours to watch.
    let _alone = alone().await;
    let cluster = tidewall_e2e::cluster::Cluster::start(Default::default()).await.unwrap();
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let region = first_region(&organiser).await;
    let event = organiser.create_event(&region, event_of(vec![tier("ga", 1000)])).await.unwrap().name;
    let before = state(&organiser, &event).await;
    let processes = cluster.processes();
    assert!(processes.len() >= 4, "{processes:?}");

    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    // Noise that is the same in every run.
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let noise: Vec<u8> = (0..65_536)
        .map(|_| {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            word.to_le_bytes()[3]
        })
        .collect();
    let garbage: Vec<(&str, Vec<u8>)> = vec![
        ("noise", noise.clone()),
        ("zeros", vec![0; 4096]),
        ("HTTP/1.1", b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()),
        ("a TLS hello", [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3], &noise[..500]].concat()),
        ("noise behind the preface", [&preface[..], &noise[..]].concat()),
        ("a frame of 16 MiB", [&preface[..], &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat()),
        ("settings, then nothing", [&preface[..], &[0, 0, 0, 4, 0, 0, 0, 0, 0]].concat()),
    ];
    let endpoints = cluster.endpoints();
    let mut ports: Vec<String> = endpoints
        .gateways
        .iter()
        .map(|gateway| gateway.url.trim_start_matches("http://").to_owned())
        .collect();
    for node in &endpoints.nodes {
        ports.extend([node.address.clone(), node.peer_address.clone()]);
    }
    assert!(ports.len() >= 7, "{ports:?}");
    let sent = tokio::task::spawn_blocking(move || {
        for port in &ports {
            for (what, bytes) in &garbage {
                let mut stream = TcpStream::connect(port).unwrap_or_else(|error| panic!("{port}: {error}"));
                stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                // The other side may hang up in the middle, and should.
                let _ = (what, stream.write_all(bytes));
                let _ = stream.read(&mut [0; 1024]);
            }
        }
    });
    sent.await.unwrap();

    assert_eq!(cluster.processes(), processes, "a process died of garbage\n{}", cluster.log_tail());
    assert_eq!(state(&organiser, &event).await, before);
    let alice = cluster.session("alice", &[]).unwrap();
    alice.buy(&event, "ga", 1, &request_id()).await.unwrap();
}

/// A script that asks for JSON is told in JSON, also when it has written a command line that cannot be read.
#[test]
fn a_wrong_command_line_is_told_in_the_form_that_was_asked_for() {
    let told = |arguments: &[&str]| {
        let output = tidewall_e2e::cluster::run(arguments, Duration::from_secs(20)).unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        assert!(output.stdout.is_empty(), "{output:?}");
        String::from_utf8(output.stderr).unwrap()
    };
    let json: serde_json::Value = serde_json::from_str(&told(&["region", "lost", "-o", "json"])).unwrap();
    assert_eq!(json["error"]["exit_code"], 2);
    assert!(json["error"]["message"].as_str().unwrap().contains("lost"), "{json}");
    assert!(told(&["region", "lost"]).contains("error: unrecognized subcommand 'lost'"));
}
