//! Watching: who is told what, from where on, and how it ends.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidewall_gateway::auth::{Role, mint};
use tidewall_messages::tickets::{self, answer, change::What};
use tidewall_proto::v1;
use tidewall_proto::v1::change_service_client::ChangeServiceClient;
use tokio::time::timeout;
use tonic::{Code, Status, Streaming};

use super::fake::{Cluster, cluster, cluster_with, found};
use super::{GALA, reason};

type Stream = Streaming<v1::WatchResponse>;

fn sold(first_number: u64) -> What {
    What::Sold(tickets::PurchaseView { tier_id: "ga".into(), first_number, count: 1, seats: vec![] })
}

fn view(free: u64) -> tickets::EventView {
    let spec = tickets::TierSpec { tier_id: "ga".into(), capacity: 100, ..Default::default() };
    let tier = tickets::TierView { spec: Some(spec), free, held: 0, sold: 100 - free };
    tickets::EventView {
        event_id: "gala".into(),
        organiser: "olga".into(),
        tiers: vec![tier],
        ..Default::default()
    }
}

async fn watch_as(
    cluster: &Cluster,
    (subject, roles): (&str, &[Role]),
    message: v1::WatchRequest,
) -> Result<Stream, Status> {
    let mut changes = ChangeServiceClient::new(cluster.channel().await);
    Ok(changes.watch(cluster.request(subject, roles, message)).await?.into_inner())
}

/// A watch of gala, whose organiser is looked up.
async fn watch_gala(cluster: &Cluster, subject: &str, message: v1::WatchRequest) -> Result<Stream, Status> {
    cluster.nodes[0].plan([found(answer::Result::Event(view(100)))]);
    watch_as(cluster, (subject, &[]), v1::WatchRequest { parent: GALA.into(), ..message }).await
}

async fn next(stream: &mut Stream) -> Result<v1::WatchResponse, Status> {
    let answer = timeout(Duration::from_secs(20), stream.message()).await.expect("it is told in time")?;
    Ok(answer.expect("the stream goes on"))
}

/// The first answer, which says from where on everything is told.
async fn begun(mut stream: Stream) -> (Stream, v1::Place) {
    let first = next(&mut stream).await.unwrap();
    assert!(first.changes.is_empty(), "{first:?}");
    (stream, first.place.unwrap())
}

/// The owners of what is told until so many changes were.
async fn owners(stream: &mut Stream, count: usize) -> Vec<String> {
    let mut owners = Vec::new();
    while owners.len() < count {
        owners.extend(next(stream).await.unwrap().changes.into_iter().map(|change| change.owner));
    }
    owners
}

#[tokio::test]
async fn each_change_is_told_with_its_place_and_a_later_watch_goes_on_behind_it() {
    let cluster = cluster().await;
    let feed = &cluster.nodes[0].feed;
    let (mut stream, _) =
        begun(watch_gala(&cluster, "olga", v1::WatchRequest::default()).await.unwrap()).await;
    let index = feed.tell([("ann", sold(1), 99), ("bob", sold(2), 98)]);
    let answer = next(&mut stream).await.unwrap();
    let [first, second] = &answer.changes[..] else { panic!("{answer:?}") };
    let place = |changes| v1::Place { incarnation: 1, index, changes };
    assert_eq!(
        (first.place, second.place, answer.place),
        (Some(place(1)), Some(place(2)), Some(place(u32::MAX)))
    );
    let stock = v1::TierStock { tier_id: "ga".into(), free: 98, held: 0, sold: 2 };
    assert_eq!(
        (second.stock.as_ref(), second.kind(), second.event.as_str()),
        (Some(&stock), v1::ChangeKind::TicketsSold, GALA)
    );
    let Some(v1::change::What::Purchase(purchase)) = &second.what else { panic!("{second:?}") };
    assert_eq!(purchase.tickets, [format!("{GALA}/tickets/ga-2")]);
    drop(stream);
    feed.tell([("eve", sold(3), 97)]);
    // Behind the first of two changes, in the middle of an entry; and behind the answer.
    for (after, expected) in [(first.place, vec!["bob", "eve"]), (answer.place, vec!["eve"])] {
        let request = v1::WatchRequest { after, ..Default::default() };
        let mut stream = watch_gala(&cluster, "olga", request).await.unwrap();
        assert_eq!(owners(&mut stream, expected.len()).await, expected);
    }
}

#[tokio::test]
async fn everybody_is_told_what_may_be_known_and_nobody_more() {
    let cluster = cluster().await;
    let feed = &cluster.nodes[0].feed;
    let region = || v1::WatchRequest { parent: "regions/north".into(), ..Default::default() };
    let all = ["", "ann", "bob"].as_slice();
    let cases: [(&str, &[Role], &[&str]); 6] = [
        ("ann", &[], &["", "ann"]),
        ("olga", &[Role::Organiser], &[""]),
        ("root", &[Role::Operator], all),
        ("audit", &[Role::Auditor], all),
        ("help", &[Role::Support], all),
        ("mallory", &[Role::Seller], &[""]),
    ];
    let mut streams = Vec::new();
    for (subject, roles, expected) in cases {
        streams
            .push((begun(watch_as(&cluster, (subject, roles), region()).await.unwrap()).await.0, expected));
    }
    for (subject, expected) in [("olga", all), ("ann", &["", "ann"])] {
        streams.push((
            begun(watch_gala(&cluster, subject, v1::WatchRequest::default()).await.unwrap()).await.0,
            expected,
        ));
    }
    let request = v1::WatchRequest { owner: "bob".into(), ..Default::default() };
    streams.push((begun(watch_gala(&cluster, "olga", request).await.unwrap()).await.0, &["bob"]));
    let kinds = vec![v1::ChangeKind::EventSaved.into()];
    let request = v1::WatchRequest { kinds, ..Default::default() };
    streams.push((begun(watch_gala(&cluster, "olga", request).await.unwrap()).await.0, &[""]));
    feed.tell([("", What::Event(view(100)), 100), ("ann", sold(1), 99), ("bob", sold(2), 98)]);
    let last = feed.tell([("", What::Event(view(98)), 98)]);
    for (mut stream, expected) in streams {
        let mut told = Vec::new();
        loop {
            let answer = next(&mut stream).await.unwrap();
            let place = answer.place.unwrap();
            told.extend(answer.changes.into_iter().filter(|change| change.place.unwrap().index < last));
            if place.index == last {
                break;
            }
        }
        let told: Vec<&str> = told.iter().map(|change| change.owner.as_str()).collect();
        assert_eq!(told, expected);
    }
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_anything_is_told() {
    let cluster = cluster().await;
    let state = v1::WatchMode::State.into();
    let request = |parent: &str| v1::WatchRequest { parent: parent.into(), ..Default::default() };
    let after = Some(v1::Place::default());
    let cases = [
        (request(""), "parent"),
        (request("regions/north/events/gala/tickets/ga-1"), "parent"),
        (request("regions/north/accounts/a1"), "parent"),
        (v1::WatchRequest { mode: 9, ..request(GALA) }, "mode"),
        (v1::WatchRequest { kinds: vec![99], ..request("regions/north") }, "kinds"),
        (v1::WatchRequest { kinds: vec![0], ..request("regions/north") }, "kinds"),
        (v1::WatchRequest { kinds: vec![1; 17], ..request("regions/north") }, "kinds"),
        (v1::WatchRequest { mode: state, ..request("regions/north") }, "parent"),
        (v1::WatchRequest { mode: state, after, ..request(GALA) }, "after"),
        (v1::WatchRequest { mode: state, kinds: vec![1], ..request(GALA) }, "kinds"),
        (v1::WatchRequest { mode: state, owner: "ann".into(), ..request(GALA) }, "owner"),
        (v1::WatchRequest { owner: "*".into(), ..request("regions/north") }, "owner"),
    ];
    for (request, field) in cases {
        let status = watch_as(&cluster, ("root", &[Role::Operator]), request.clone()).await.err().unwrap();
        assert_eq!(status.code(), Code::InvalidArgument, "{request:?}: {status:?}");
        assert!(status.message().starts_with(field), "{request:?}: {status:?}");
    }
    let after = Some(v1::Place { incarnation: 1, index: 1_000, changes: 1 });
    let status =
        watch_gala(&cluster, "olga", v1::WatchRequest { after, ..Default::default() }).await.err().unwrap();
    assert!(
        status.message().starts_with("after"),
        "whoever waits there would pass over what happens before: {status:?}"
    );
    let other = v1::WatchRequest { owner: "bob".into(), ..Default::default() };
    let status = watch_gala(&cluster, "ann", other).await.err().unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::PermissionDenied, "NOT_YOUR_CHANGES"));
    let status = watch_as(&cluster, ("ann", &[]), request("regions/nowhere")).await.err().unwrap();
    assert_eq!(reason(&status), "REGION_NOT_FOUND");
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_told_and_never_left_out() {
    let cluster = cluster_with(|config| config.changes_kept_bytes = 1).await;
    let feed = &cluster.nodes[0].feed;
    let (mut stream, begin) =
        begun(watch_gala(&cluster, "olga", v1::WatchRequest::default()).await.unwrap()).await;
    let mut after = Vec::new();
    for n in 1..=5 {
        feed.tell([("ann", sold(n), 100 - n)]);
        after.push(next(&mut stream).await.unwrap().place);
    }
    // The gateway keeps the last of them alone, the region all: whoever comes later is told all.
    let request = |after| v1::WatchRequest { after, ..Default::default() };
    let mut late = watch_gala(&cluster, "olga", request(Some(begin))).await.unwrap();
    assert_eq!(owners(&mut late, 5).await, ["ann"; 5]);
    feed.forget(after[2].unwrap().index);
    for gone in [Some(begin), after[1]] {
        let mut stream = watch_gala(&cluster, "olga", request(gone)).await.unwrap();
        let status = next(&mut stream).await.unwrap_err();
        assert_eq!((status.code(), reason(&status).as_str()), (Code::OutOfRange, "PLACE_GONE"));
    }
    let mut stream = watch_gala(&cluster, "olga", request(after[2])).await.unwrap();
    assert_eq!(owners(&mut stream, 2).await, ["ann"; 2]);
    // Whoever is there when the region goes back is told too, and whoever comes then begins where it is.
    feed.restore();
    for stream in [&mut stream, &mut late] {
        let status = next(stream).await.unwrap_err();
        assert_eq!(reason(&status), "PLACE_GONE");
    }
    let (mut stream, place) =
        begun(watch_gala(&cluster, "olga", v1::WatchRequest::default()).await.unwrap()).await;
    assert_eq!(place.incarnation, 2);
    feed.tell([("eve", sold(6), 94)]);
    assert_eq!(owners(&mut stream, 1).await, ["eve"]);
}

#[tokio::test]
async fn the_state_of_an_event_is_told_whole_and_then_as_it_changes() {
    let cluster = cluster().await;
    let feed = &cluster.nodes[0].feed;
    feed.tell([("ann", sold(1), 99)]);
    let state =
        || v1::WatchRequest { parent: GALA.into(), mode: v1::WatchMode::State.into(), ..Default::default() };
    cluster.nodes[0].plan([found(answer::Result::Event(view(99)))]);
    let mut one = watch_as(&cluster, ("fan", &[]), state()).await.unwrap();
    let free = |answer: &v1::WatchResponse| match &answer.event {
        Some(event) => Some(event.tiers[0].free),
        None => answer.stocks.first().map(|stock| stock.free),
    };
    let first = next(&mut one).await.unwrap();
    assert_eq!((first.event.as_ref().map(|event| event.name.as_str()), free(&first)), (Some(GALA), Some(99)));
    feed.tell([("ann", sold(2), 98), ("bob", sold(3), 97)]);
    let second = next(&mut one).await.unwrap();
    assert_eq!((second.event.is_none(), free(&second), second.changes.len()), (true, Some(97), 0));
    // Who comes later is told how it is now; nobody reads the event again.
    let mut two = watch_as(&cluster, ("fan", &[]), state()).await.unwrap();
    assert_eq!(free(&next(&mut two).await.unwrap()), Some(97));
    // Many changes at once are told as what has become of them.
    for n in 4..40 {
        feed.tell([("ann", sold(n), 100 - n)]);
    }
    for stream in [&mut one, &mut two] {
        let mut answers = 0;
        while free(&next(stream).await.unwrap()) != Some(61) {
            answers += 1;
        }
        assert!(answers < 20, "{answers}");
    }
    feed.tell([("", What::Event(tickets::EventView { display_name: "Gala 2".into(), ..view(61) }), 61)]);
    let changed = next(&mut one).await.unwrap();
    assert_eq!(changed.event.unwrap().display_name, "Gala 2");
    feed.tell([("", What::Deleted(tickets::EventDeleted {}), 61)]);
    let status = loop {
        if let Err(status) = next(&mut one).await {
            break status;
        }
    };
    assert_eq!((status.code(), reason(&status).as_str()), (Code::NotFound, "EVENT_NOT_FOUND"));
}

/// Ids of events and of accounts may look alike, and an event may have another organiser than the one of its id before.
#[tokio::test]
async fn the_organiser_of_an_event_is_told_nothing_of_an_account_or_another_event_of_its_name() {
    let cluster = cluster().await;
    let feed = &cluster.nodes[0].feed;
    let (mut stream, _) =
        begun(watch_gala(&cluster, "olga", v1::WatchRequest::default()).await.unwrap()).await;
    feed.tell_account("gala", "regions/north/accounts/gala");
    feed.tell([
        ("ann", sold(1), 99),
        ("", What::Deleted(tickets::EventDeleted {}), 99),
        ("", What::Event(view(100)), 100),
        ("bob", sold(1), 99),
    ]);
    let mut told = Vec::new();
    let status = loop {
        match next(&mut stream).await {
            Ok(answer) => {
                told.extend(answer.changes.into_iter().map(|change| (change.owner, change.account)))
            }
            Err(status) => break status,
        }
    };
    assert_eq!(reason(&status), "EVENT_NOT_FOUND");
    assert_eq!(told, [("ann".into(), String::new()), (String::new(), String::new())]);
}

#[tokio::test]
async fn many_who_watch_cost_the_region_what_one_costs() {
    let cluster = cluster().await;
    let feed = &cluster.nodes[0].feed;
    let region = || v1::WatchRequest { parent: "regions/north".into(), ..Default::default() };
    let mut streams = Vec::new();
    for _ in 0..40 {
        streams.push(begun(watch_as(&cluster, ("root", &[Role::Operator]), region()).await.unwrap()).await.0);
    }
    let before = feed.asked.load(Ordering::Relaxed);
    for n in 1..=10 {
        feed.tell([("ann", sold(n), 100 - n)]);
        for stream in &mut streams {
            assert_eq!(owners(stream, 1).await, ["ann"]);
        }
    }
    let asked = feed.asked.load(Ordering::Relaxed) - before;
    // Once for each of them, and once in a while when nothing happens.
    assert!(asked < 200, "{asked} for 400 that were told");
}

#[tokio::test]
async fn as_many_may_watch_as_there_is_room_for() {
    let cluster = cluster_with(|config| config.watchers_max = 1).await;
    let region = || v1::WatchRequest { parent: "regions/north".into(), ..Default::default() };
    let stream = watch_as(&cluster, ("ann", &[]), region()).await.unwrap();
    let status = watch_as(&cluster, ("bob", &[]), region()).await.err().unwrap();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::ResourceExhausted, "OVERLOADED"));
    drop(stream);
    let again = async {
        while watch_as(&cluster, ("bob", &[]), region()).await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(20), again).await.expect("who goes leaves its place");
}

#[tokio::test]
async fn a_watch_ends_with_its_token_its_time_and_its_gateway() {
    let mut cluster = cluster().await;
    let region = || v1::WatchRequest { parent: "regions/north".into(), ..Default::default() };
    let mut changes = ChangeServiceClient::new(cluster.channel().await);
    let mut request = cluster.request("ann", &[], region());
    let token = mint(&cluster.key.pkcs8, "ann", &[], Duration::from_secs(2)).unwrap();
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let (mut stream, _) = begun(changes.watch(request).await.unwrap().into_inner()).await;
    let status = next(&mut stream).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unauthenticated, "TOKEN_INVALID"));
    let (mut stream, _) = begun(watch_as(&cluster, ("ann", &[]), region()).await.unwrap()).await;
    cluster.stop();
    let end =
        timeout(Duration::from_secs(4), stream.message()).await.expect("it does not hold the gateway up");
    assert!(matches!(end, Ok(None)), "{end:?}");
    let cluster = cluster_with(|config| config.connection_age_min = Some(Duration::from_millis(30))).await;
    let (mut stream, _) = begun(watch_as(&cluster, ("ann", &[]), region()).await.unwrap()).await;
    let end =
        timeout(Duration::from_secs(20), stream.message()).await.expect("its connection is to be renewed");
    assert!(matches!(end, Ok(None)), "{end:?}");
}
