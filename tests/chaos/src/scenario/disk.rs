//! Disks that are full, and disks that fail.

use std::time::Duration;

use futures_util::future::join_all;
use rand::Rng as _;
use tidewall_load::pool::Pool;
use tokio::time::Instant;
use uuid::Uuid;

use super::kill::breathe;
use crate::ChaosError;
use crate::client::Client;
use crate::driver::{Member, StorageFault};
use crate::history::{Answer, Ask, Traffic, Yes};
use crate::load::call;
use crate::stage::Stage;

/// What is left on a full disk: below the low-water mark of 96 MiB, and enough to finish with.
const LEFT: u64 = 48 << 20;
/// How long new work may take to be refused, or let in again.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);
/// Deadline of a call of somebody who does not come back.
const IMPATIENT: Duration = Duration::from_millis(400);
/// Holds that are finished while disks are full.
const HOLDS: usize = 12;
/// How long disks stay full.
const FULL_FOR: Duration = Duration::from_secs(3);
/// How long a node may take to end after its disk failed.
const FAIL_WITHIN: Duration = Duration::from_secs(20);
/// How long a failed node stays down: nobody restarts it blindly.
const DOWN_FOR: Duration = Duration::from_secs(2);
/// Exit code of a node whose disk failed.
const STORAGE_FAILED: i32 = 70;

pub(super) async fn full(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let holds = hold_some(stage).await;
        stage.expect("holds can be made before disks fill", holds.len() == HOLDS, || format!("{holds:?}"));
        let injection = stage.injection("all disks full", Vec::new());
        for node in stage.driver.nodes() {
            stage.driver.fill_disk(node, LEFT).await?;
        }
        let begun = Instant::now();
        wait_buying(stage, false).await?;
        stage.sample("disks full to new work refused", begun.elapsed().as_secs_f64() * 1_000.0);
        for (region, hold) in &holds {
            let finish = if stage.rng.random_ratio(1, 2) {
                Ask::Confirm { hold: hold.clone(), quantity: 1 }
            } else {
                Ask::Release { hold: hold.clone() }
            };
            let answer = probe(stage, region, &finish).await;
            stage.expect(
                "what was begun is finished while disks are full",
                matches!(answer, Answer::Yes { .. }),
                || format!("{finish:?}: {answer:?}"),
            );
        }
        tokio::time::sleep(FULL_FOR).await;
        for node in stage.driver.nodes() {
            let ended = stage.driver.ended(Member::Node(node), Duration::ZERO).await?;
            stage.expect("nodes live on with full disks", ended.is_none(), || {
                format!("node {node}: {ended:?}")
            });
            stage.driver.free_disk(node).await?;
        }
        stage.undone(injection);
        let begun = Instant::now();
        wait_buying(stage, true).await?;
        stage.sample("space again to new work accepted", begun.elapsed().as_secs_f64() * 1_000.0);
        stage.healed_again().await?;
        stage.healed(injection);
        stage.say(&format!("full disks {number} of {count}"));
        breathe(stage).await;
    }
    Ok(count)
}

/// A call of the scenario itself, on the traffic whose books are kept by the ledger.
async fn probe(stage: &Stage, region: &str, ask: &Ask) -> Answer {
    let Some(client) = stage.people.buyers.first() else { return Answer::Nonsense("nobody calls".into()) };
    let due = stage.recorder.now();
    call(&stage.recorder, client, region, Traffic::Probe, ask, Some(Uuid::now_v7()), due, false, 0).await
}

async fn hold_some(stage: &Stage) -> Vec<(String, String)> {
    let mut holds = Vec::new();
    for region in stage.driver.regions().into_iter().take(HOLDS) {
        let ask = Ask::Hold { event: stage.event(&region, Traffic::Mix), tier: "ga".into(), quantity: 1 };
        if let Answer::Yes { what: Yes::Hold(hold), .. } = probe(stage, &region, &ask).await {
            holds.push((region, hold));
        }
    }
    holds
}

/// Waits until every region sells, or none.
async fn wait_buying(stage: &Stage, wanted: bool) -> Result<(), ChaosError> {
    // Somebody who does not come back after a refusal, as the load's clients do.
    let target = stage.driver.target();
    let subject = stage.people.buyers.first().map(|buyer| buyer.subject().to_owned()).unwrap_or_default();
    let client = Client::new(&Pool::new(&target, 1, IMPATIENT)?, &target, &subject, &[])?;
    let regions = stage.driver.regions();
    let waits = regions.iter().map(|region| {
        let ask = Ask::Buy { event: stage.event(region, Traffic::Sale), tier: "ga".into(), quantity: 1 };
        let client = &client;
        async move {
            let begun = Instant::now();
            loop {
                let (due, id) = (stage.recorder.now(), Some(Uuid::now_v7()));
                let answer =
                    call(&stage.recorder, client, region, Traffic::Probe, &ask, id, due, false, 0).await;
                let as_wanted = if wanted {
                    matches!(answer, Answer::Yes { .. })
                } else {
                    matches!(answer, Answer::Refused(_))
                };
                if as_wanted {
                    return Ok(());
                }
                if begun.elapsed() > NOTICED_WITHIN {
                    let what = format!("{region} sells: {answer:?}, wanted: {wanted}");
                    return Err(stage.late(&what, begun.elapsed()));
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    });
    join_all(waits).await.into_iter().collect()
}

pub(super) async fn storage_error(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let fault = if number.is_multiple_of(2) { StorageFault::Write } else { StorageFault::Sync };
        let (node, led) = stage.some_leader().await?;
        let terms = stage.terms(&led);
        let injection = stage.injection(format!("node {node}: {fault:?} fails"), led);
        let begun = Instant::now();
        stage.driver.fail_storage(node, fault).await?;
        let ended = stage.driver.ended(Member::Node(node), FAIL_WITHIN).await?;
        stage.sample("disk failed to the end of the process", begun.elapsed().as_secs_f64() * 1_000.0);
        let stopped = ended.as_ref().is_some_and(|ended| {
            ended.code == Some(STORAGE_FAILED) && ended.last_words.contains("storage has failed")
        });
        stage.expect("a node whose disk fails ends with 70 and says why", stopped, || {
            format!("node {node}, {fault:?}: {ended:?}")
        });
        if ended.is_none() {
            stage.driver.kill(Member::Node(node)).await?;
        }
        stage.wait_new_terms(&terms).await?;
        tokio::time::sleep(DOWN_FOR).await;
        // The operator has looked at the disk.
        stage.driver.start(Member::Node(node)).await?;
        stage.undone(injection);
        stage.healed_again().await?;
        stage.healed(injection);
        stage.count(format!("{fault:?} errors"));
        stage.say(&format!("disk error {number} of {count}: node {node}, {fault:?}"));
        breathe(stage).await;
    }
    Ok(count)
}
