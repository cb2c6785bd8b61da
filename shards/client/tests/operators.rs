//! What operators' orders become on the way to the nodes, and what their answers mean.
#![allow(clippy::unwrap_used)]

mod fake;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use fake::*;
use tidewall_client::{ClientError, ShardClient};
use tidewall_proto::internal::v1 as pb;
use tonic::Status;

const PATIENCE: Duration = Duration::from_secs(10);
/// For what is never answered.
const SHORT: Duration = Duration::from_millis(200);

/// How an order can end, as a word.
fn kind<T: std::fmt::Debug>(result: Result<T, ClientError>) -> &'static str {
    match result {
        Ok(_) => "done",
        Err(ClientError::Invalid(_)) => "invalid",
        Err(ClientError::Unavailable { .. }) => "unavailable",
        Err(ClientError::Unknown { .. }) => "unknown",
        Err(ClientError::Overloaded { .. }) => "overloaded",
    }
}

fn refusal(kind: pb::RefusalKind) -> Option<pb::Refusal> {
    Some(pb::Refusal { kind: kind.into(), message: "because".into(), ..Default::default() })
}

/// A node that says that it has this role in group 1, in this term.
fn role(node: u64, role: &str, term: u64) -> Option<pb::GetNodeStateResponse> {
    let groups = vec![pb::GroupState { group: 1, role: role.into(), term, ..Default::default() }];
    Some(pb::GetNodeStateResponse { node, groups, ..Default::default() })
}

/// Two nodes that decide; the second one leads.
async fn pair() -> (Arc<Fake>, Arc<Fake>, Arc<ShardClient>) {
    let (one, two) = (Fake::new(Mode::Decide), Fake::new(Mode::Decide));
    one.admin.lock().state = role(1, "follower", 7);
    two.admin.lock().state = role(2, "leader", 7);
    let client = client(&[start(&one, 1).await, start(&two, 2).await]);
    (one, two, client)
}

#[tokio::test]
async fn who_says_to_lead_in_the_newest_term_is_asked() {
    let (one, two, client) = pair().await;
    // A leader that was deposed may not know it yet.
    one.admin.lock().state = role(1, "leader", 6);
    assert_eq!(client.discover(PATIENCE).await, 0);
    assert_eq!(client.believed_leader(1), Some(2));
    client.command(1, command("ann"), after(10_000)).await.unwrap();
    assert_eq!((one.calls.load(Ordering::Relaxed), two.calls.load(Ordering::Relaxed)), (0, 1));
    one.admin.lock().state = role(1, "leader", 8);
    assert_eq!(client.discover(PATIENCE).await, 0);
    assert_eq!(client.believed_leader(1), Some(1));
    // Nobody leads: who was believed to is still asked.
    one.admin.lock().state = role(1, "candidate", 9);
    two.admin.lock().state = None;
    assert_eq!(client.discover(PATIENCE).await, 1);
    assert_eq!(client.believed_leader(1), Some(1));
    assert_eq!(client.believed_leader(2), None, "no such group");
}

#[tokio::test]
async fn each_node_is_asked_how_it_is_and_believed_about_the_time_unless_it_knows_better() {
    let (one, two, client) = pair().await;
    let told = |node, now_ms, clock_far| {
        let state = role(node, "follower", 1).unwrap();
        Some(pb::GetNodeStateResponse { now_ms, clock_far, ..state })
    };
    let then = 1_700_000_000_000;
    one.admin.lock().state = told(1, then, false);
    two.admin.lock().state = told(2, then + 3_600_000, true);
    let states = client.node_states(PATIENCE).await;
    let seen: Vec<_> = states.iter().map(|(id, state)| (*id, state.as_ref().unwrap().node)).collect();
    assert_eq!(seen, [(1, 1), (2, 2)]);
    assert_eq!(client.clock().ahead_ms(), None, "one of two clocks says nothing");
    two.admin.lock().state = told(2, 0, false);
    client.node_states(PATIENCE).await;
    assert_eq!(client.clock().ahead_ms(), None, "nor does a node that does not say it");
    two.admin.lock().state = told(2, then, false);
    client.node_states(PATIENCE).await;
    assert!(client.clock().unix_ms().abs_diff(then) < 600_000, "{}", client.clock().unix_ms());
    two.admin.lock().state = None;
    assert_eq!(kind(client.node_states(PATIENCE).await.remove(1).1), "unavailable");
}

#[tokio::test]
async fn a_lead_is_handed_over_by_the_leader_in_less_than_the_time_granted() {
    let (one, two, client) = pair().await;
    let transfer = async |patience| client.transfer_lead(1, 1, "ann".into(), patience).await;
    two.admin
        .lock()
        .transfers
        .push_back(Ok(pb::TransferLeadResponse { leader_node: 1, ..Default::default() }));
    assert_eq!(transfer(PATIENCE).await.unwrap().leader_node, 1);
    let asked = two.admin.lock().asked_to_transfer.remove(0);
    assert_eq!((asked.group, asked.to_node, asked.principal.as_str()), (1, 1, "ann"));
    assert!((1..=8_000).contains(&asked.timeout_ms), "it answers before the caller gives up: {asked:?}");
    for (refused, means) in [
        (pb::RefusalKind::Invalid, "invalid"),
        (pb::RefusalKind::Unknown, "unknown"),
        (pb::RefusalKind::Overloaded, "unavailable"),
    ] {
        let response = pb::TransferLeadResponse { refusal: refusal(refused), ..Default::default() };
        two.admin.lock().transfers.push_back(Ok(response));
        assert_eq!(kind(transfer(PATIENCE).await), means);
    }
    // The lead has moved meanwhile: it is followed.
    let moved =
        pb::TransferLeadResponse { refusal: refusal(pb::RefusalKind::NotLeader), ..Default::default() };
    let done = pb::TransferLeadResponse { leader_node: 1, ..Default::default() };
    two.admin.lock().transfers.extend([Ok(moved), Ok(done)]);
    two.admin.lock().asked_to_transfer.clear();
    assert_eq!(transfer(PATIENCE).await.unwrap().leader_node, 1);
    assert_eq!(two.admin.lock().asked_to_transfer.len(), 2);
    assert_eq!(kind(transfer(SHORT).await), "unknown", "no answer");
    assert_eq!(one.admin.lock().asked_to_transfer.len(), 0);
    assert_eq!(kind(client.transfer_lead(2, 1, "ann".into(), PATIENCE).await), "invalid", "no such group");
}

#[tokio::test]
async fn a_status_says_whether_an_order_may_have_been_carried_out() {
    let (_, two, client) = pair().await;
    for (status, means) in [
        (Status::invalid_argument("no"), "invalid"),
        (Status::not_found("no"), "unavailable"),
        (Status::unimplemented("no"), "unavailable"),
        (Status::failed_precondition("no"), "unavailable"),
        (Status::internal("broken"), "unknown"),
    ] {
        two.admin.lock().recoveries.push_back(Err(status.clone()));
        assert_eq!(kind(client.recover(2, pb::RecoverRequest::default(), PATIENCE).await), means, "{status}");
    }
    two.admin.lock().drains.push_back(Ok(pb::DrainResponse { moved: vec![1], kept: Vec::new() }));
    assert_eq!(client.drain(2, true, "ann".into(), PATIENCE).await.unwrap().moved, [1]);
    assert_eq!(kind(client.drain(2, true, "ann".into(), SHORT).await), "unknown");
    let Err(ClientError::Invalid(why)) = client.drain(9, true, "ann".into(), PATIENCE).await else {
        panic!()
    };
    assert!(why.contains("no node 9") && why.contains("1, 2"), "{why}");
}

#[tokio::test]
async fn members_are_changed_again_until_it_is_done_or_cannot_be() {
    let (one, two, client) = pair().await;
    let change = async |patience| client.change_replicas(1, &[3], &[1], "ann", patience).await;
    let refused = |kind| pb::ChangeReplicasResponse { refusal: refusal(kind), ..Default::default() };
    two.admin.lock().changes.extend([
        Err(Status::failed_precondition("elsewhere")),
        Ok(refused(pb::RefusalKind::NotLeader)),
        Ok(pb::ChangeReplicasResponse { voters: vec![2, 3], ..Default::default() }),
    ]);
    assert_eq!(change(PATIENCE).await.unwrap().voters, [2, 3]);
    {
        let asked = &two.admin.lock().asked_to_change;
        assert_eq!(asked.len(), 3);
        assert_eq!((&asked[0].add_nodes[..], &asked[0].remove_nodes[..]), (&[3][..], &[1][..]));
        assert_eq!((asked[0].group, asked[0].principal.as_str()), (1, "ann"));
    }
    two.admin.lock().changes.push_back(Ok(refused(pb::RefusalKind::Invalid)));
    assert_eq!(kind(change(PATIENCE).await), "invalid");
    // The lead has moved meanwhile.
    one.admin.lock().state = role(1, "leader", 9);
    one.admin
        .lock()
        .changes
        .push_back(Ok(pb::ChangeReplicasResponse { voters: vec![1], ..Default::default() }));
    assert_eq!(change(PATIENCE).await.unwrap().voters, [1]);
    assert_eq!(kind(change(SHORT).await), "unknown", "not done yet");
}

#[tokio::test]
async fn a_file_is_sent_to_the_leader_behind_a_head_that_says_what_for() {
    let (_, two, client) = pair().await;
    let import = async || {
        let chunks = ["ab", "c"].map(|chunk| Bytes::from_static(chunk.as_bytes()));
        let chunks = Box::pin(futures_util::stream::iter(chunks));
        client.importer(1, PATIENCE).await.unwrap().run(true, "ann".into(), chunks).await
    };
    let done = pb::import_response::Result::Done(pb::ImportDone { incarnation: 4, ..Default::default() });
    two.admin.lock().imports.push_back(Ok(pb::ImportResponse { result: Some(done.clone()) }));
    assert_eq!(import().await.unwrap().result, Some(done));
    let parts = std::mem::take(&mut two.admin.lock().imported);
    assert_eq!((parts[0].group, parts[0].replace, parts[0].principal.as_str()), (1, true, "ann"));
    let sent: Vec<&[u8]> = parts.iter().map(|part| part.chunk.as_ref()).collect();
    assert_eq!(sent, [&b""[..], b"ab", b"c"]);
    assert!(parts[1..].iter().all(|part| part.group == 0 && part.principal.is_empty()));
    for (status, means) in [
        (Status::invalid_argument("no"), "invalid"),
        (Status::failed_precondition("no"), "invalid"),
        (Status::unavailable("gone"), "unknown"),
    ] {
        two.admin.lock().imports.push_back(Err(status));
        assert_eq!(kind(import().await), means);
    }
    assert!(client.importer(2, PATIENCE).await.is_err());
}

#[tokio::test]
async fn a_key_is_kept_on_a_majority_and_an_erasure_wins_over_it() {
    use tidewall_client::KeyringError;
    let nodes: Vec<_> = (0..3).map(|_| Fake::new(Mode::Decide)).collect();
    let mut addresses = Vec::new();
    for (node, id) in nodes.iter().zip(1..) {
        addresses.push(start(node, id).await);
    }
    let client = client(&addresses);
    let refuse = |node: usize, refusal| nodes[node].admin.lock().keyring_refuses = refusal;
    let unavailable = Some(pb::KeyringRefusal::Unavailable);
    let put = async |id: u8| client.put_key(1, [id; 16], vec![id; 60], PATIENCE).await;
    let get = async |id: u8| client.get_key([id; 16], PATIENCE).await;
    assert_eq!(get(1).await, Err(KeyringError::Missing), "not known is not erased");
    refuse(0, unavailable);
    put(1).await.unwrap();
    assert_eq!(get(1).await, Ok(Some(vec![1; 60])));
    refuse(1, unavailable);
    let few = put(2).await;
    assert!(matches!(few, Err(KeyringError::Unavailable { answered: 1, nodes: 3, .. })), "{few:?}");
    assert!(get(1).await.is_err(), "one node alone may have missed an erasure");
    refuse(1, None);
    client.erase_key(1, [1; 16], PATIENCE).await.unwrap();
    // Node 1 has neither the key nor its erasure, node 3 has both.
    refuse(0, None);
    refuse(1, unavailable);
    assert_eq!(get(1).await, Ok(None));
    refuse(0, Some(pb::KeyringRefusal::Taken));
    refuse(1, Some(pb::KeyringRefusal::Taken));
    assert_eq!(put(3).await, Err(KeyringError::Taken));
}
