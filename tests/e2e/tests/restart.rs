//! What was acknowledged is there after a clean stop, after the death of everything at once, and for whoever
//! comes later.

use std::time::Duration;

use tidewall_e2e::audit::{Answer, Attempt, audit};
use tidewall_e2e::client::{event_of, region_of, request_id, tier};
use tidewall_e2e::cluster::{Cluster, Options};
use tidewall_proto::v1::OutcomeState;

use crate::alone;

/// Some purchases in several regions, so that more than one group has something to lose.
pub async fn sell(cluster: &Cluster) -> Vec<(String, Vec<Attempt>)> {
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let alice = cluster.session("alice", &[]).unwrap();
    let mut sales = Vec::new();
    for region in organiser.region_names().await.unwrap().into_iter().take(4) {
        let event = organiser.create_event(&region, event_of(vec![tier("ga", 25)])).await.unwrap().name;
        let mut history = Vec::new();
        for number in 0..30 {
            let (id, quantity) = (request_id(), 1 + number % 2);
            let answer = match alice.buy(&event, "ga", quantity, &id).await {
                Ok(response) => Answer::Bought(response.purchase.unwrap().tickets),
                Err(status) if status.code() == tonic::Code::FailedPrecondition => Answer::Refused,
                Err(status) => panic!("{status:?}"),
            };
            history.push(Attempt {
                buyer: "alice".into(),
                request_id: id,
                tier: "ga".into(),
                quantity: quantity as usize,
                answer,
            });
        }
        sales.push((event, history));
    }
    sales
}

pub async fn verify(cluster: &Cluster, sales: &[(String, Vec<Attempt>)]) {
    let organiser = cluster.session("olga", &["organiser"]).unwrap();
    let alice = cluster.session("alice", &[]).unwrap();
    for (name, history) in sales {
        let event = organiser.event(name).await.unwrap();
        let tickets = organiser.tickets_of(name, "*").await.unwrap();
        let wrong = audit(history, &event, &tickets);
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        // Outcomes are remembered, too: repeating a purchase repeats its answer.
        let first = &history[0];
        let again = alice.buy(name, "ga", first.quantity as i32, &first.request_id).await.unwrap();
        assert_eq!(Answer::Bought(again.purchase.unwrap().tickets), first.answer);
        let outcome = alice.outcome(region_of(name), &first.request_id).await.unwrap();
        assert_eq!(outcome.state, OutcomeState::Decided as i32);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_data_is_there_after_a_stop_and_after_the_death_of_everything() {
    let _alone = alone().await;
    let mut cluster = Cluster::start(Options { gateways: 2, ..Options::default() }).await.unwrap();
    assert_eq!(cluster.endpoints().gateways.len(), 2);
    let mut sales = sell(&cluster).await;

    let processes = cluster.processes();
    let status = cluster.stop().unwrap();
    assert!(status.success(), "a clean stop ended with {status}\n{}", cluster.log_tail());
    for (kind, id) in processes {
        assert!(
            !std::path::Path::new(&format!("/proc/{id}")).exists(),
            "{kind:?} {id} outlived the supervisor"
        );
    }
    cluster.restart().await.unwrap();
    verify(&cluster, &sales).await;

    sales.extend(sell(&cluster).await);
    // Nobody gets to flush or to say good-bye.
    cluster.kill_all();
    cluster.restart().await.unwrap();
    verify(&cluster, &sales).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_end_with_their_supervisor() {
    let _alone = alone().await;
    let cluster = Cluster::start(Options::default()).await.unwrap();
    let processes = cluster.processes();
    assert!(processes.len() >= 4, "{processes:?}");
    cluster.kill(cluster.supervisor()).unwrap();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    for (kind, id) in processes {
        // Reparented children are reaped by init; a zombie has no command line any more.
        while std::fs::read(format!("/proc/{id}/cmdline")).is_ok_and(|command| !command.is_empty()) {
            assert!(tokio::time::Instant::now() < deadline, "{kind:?} {id} lives on without its supervisor");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}
