//! How fresh answers are, and how far callers have seen the regions.

use tidewall_messages::Seen;
use tonic::metadata::MetadataMap;

use super::*;
use crate::fake::{Cluster, query_seen};

const SEEN: &str = "tidewall-seen";

fn seen(index: u64, steady_ms: u64) -> Seen {
    Seen { incarnation: 1, index, steady_ms }
}

/// A node finds the event, in rows that have come so far.
fn gala(seen: Seen) -> Action {
    let view = tickets::EventView { event_id: "gala".into(), ..Default::default() };
    let answer = tickets::Answer { result: Some(tickets::answer::Result::Event(view)) };
    query_seen(pb::query_result::Result::Module(answer.encode_to_vec().into()), Some(seen))
}

fn get(consistency: v1::ReadConsistency) -> v1::GetEventRequest {
    v1::GetEventRequest { name: GALA.into(), consistency: consistency.into(), ..Default::default() }
}

/// Asks for the event; gives what the answer says of what was seen.
async fn ask(cluster: &Cluster, message: v1::GetEventRequest, brought: &str) -> Result<String, Status> {
    let mut request = cluster.request("alice", &[], message);
    if !brought.is_empty() {
        request.metadata_mut().insert(SEEN, brought.parse().unwrap());
    }
    let answer = EventServiceClient::new(cluster.channel().await).get_event(request).await?;
    Ok(carried(answer.metadata()))
}

fn carried(metadata: &MetadataMap) -> String {
    metadata.get(SEEN).map(|seen| seen.to_str().unwrap().to_owned()).unwrap_or_default()
}

#[tokio::test]
async fn every_answer_says_how_far_its_caller_has_seen_the_region() {
    let cluster = cluster().await;
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let no = pb::Outcome { seen: Some(seen(8, 0)), ..rejection("SOLD_OUT") };
    cluster.nodes[0].plan([outcome(sold(1, 1)), outcome(no)]);
    let sold = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap();
    assert_eq!(carried(sold.metadata()), "north=1.3.0", "as its receipt");
    let refused = tickets.buy_tickets(cluster.request("alice", &[], buy())).await.unwrap_err();
    assert_eq!(
        (reason(&refused).as_str(), carried(refused.metadata()).as_str()),
        ("SOLD_OUT", "north=1.8.0")
    );
    // What is brought along comes back, with more in it; what no region of this cluster has is left out.
    cluster.nodes[0].plan([gala(seen(5, 70))]);
    let latest = get(v1::ReadConsistency::Linearizable);
    assert_eq!(ask(&cluster, latest, "north=1.8.60,atlantis=1.1.1").await.unwrap(), "north=1.8.70");
}

#[tokio::test]
async fn standbys_are_told_what_their_caller_has_seen_and_what_must_be_known() {
    let cluster = cluster().await;
    let latest = get(v1::ReadConsistency::Linearizable);
    cluster.nodes[0].plan([gala(seen(5, 70))]);
    assert_eq!(ask(&cluster, latest, "").await.unwrap(), "north=1.5.70");
    // The other node is the standby.
    cluster.nodes[1].plan([gala(seen(6, 80)), gala(seen(9, 90))]);
    assert_eq!(ask(&cluster, get(v1::ReadConsistency::Stale), "north=1.9.85").await.unwrap(), "north=1.9.85");
    assert_eq!(
        ask(&cluster, get(v1::ReadConsistency::Session), "north=1.9.85").await.unwrap(),
        "north=1.9.90"
    );
    assert_eq!(*cluster.nodes[1].reads.lock(), [(Some(seen(5, 70)), true), (Some(seen(9, 85)), true)]);
    assert_eq!(*cluster.nodes[0].reads.lock(), [(None, false)]);
    // A standby that has not come so far sends its caller to the leader, who is told the time that was seen.
    cluster.nodes[1].plan([refuse(RefusalKind::Behind, 0, 0)]);
    cluster.nodes[0].plan([gala(seen(10, 99))]);
    assert_eq!(
        ask(&cluster, get(v1::ReadConsistency::Session), "north=1.10.95").await.unwrap(),
        "north=1.10.99"
    );
    assert_eq!(cluster.nodes[0].reads.lock().last(), Some(&(Some(seen(10, 95)), false)));
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_and_asks_nobody() {
    let cluster = cluster().await;
    let field = |status: Status| status.get_details_bad_request().unwrap().field_violations[0].field.clone();
    let stale = get(v1::ReadConsistency::Stale);
    let refused = ask(&cluster, stale.clone(), "north=1").await.unwrap_err();
    assert_eq!((refused.code(), field(refused).as_str()), (Code::InvalidArgument, SEEN));
    let age = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let aged = v1::GetEventRequest { max_age: age(-1), ..stale.clone() };
    assert_eq!(field(ask(&cluster, aged, "").await.unwrap_err()), "max_age");
    let aged = v1::GetEventRequest { max_age: age(1), ..get(v1::ReadConsistency::Linearizable) };
    assert_eq!(field(ask(&cluster, aged, "").await.unwrap_err()), "max_age");
    let unknown = v1::GetEventRequest { consistency: 99, ..stale };
    assert_eq!(field(ask(&cluster, unknown, "").await.unwrap_err()), "consistency");
    assert!(cluster.nodes.iter().all(|node| node.queries.lock().is_empty()));
}

#[tokio::test]
async fn reads_at_standbys_take_no_place_at_the_active_and_wait_for_one_when_they_go_there() {
    let cluster = cluster_with(|config| config.calls_max_per_region = 1).await;
    cluster.nodes[0].plan([gala(seen(5, 70)), Action::Silence]);
    // Whoever calls for the first time has proven nothing, and waits like everybody.
    ask(&cluster, get(v1::ReadConsistency::Linearizable), "").await.unwrap();
    let mut tickets = TicketServiceClient::new(cluster.channel().await);
    let stuck = cluster.request("alice", &[], buy());
    let stuck = tokio::spawn(async move { tickets.buy_tickets(stuck).await });
    while cluster.nodes[0].request_ids().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    cluster.nodes[1].plan([gala(seen(6, 80)), refuse(RefusalKind::Behind, 0, 0)]);
    let stale = || ask(&cluster, get(v1::ReadConsistency::Stale), "");
    assert_eq!(stale().await.unwrap(), "north=1.6.80");
    let refused = stale().await.unwrap_err();
    assert_eq!(reason(&refused), "OVERLOADED", "the active's only place is taken");
    assert_eq!(cluster.nodes[0].reads.lock().len(), 1, "and was not asked");
    stuck.abort();
}
