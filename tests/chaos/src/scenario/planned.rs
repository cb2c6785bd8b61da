//! What operators do on purpose, and what clients must not notice: transfers, restarts in turn, upgrades.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use super::kill::breathe;
use crate::ChaosError;
use crate::driver::Member;
use crate::stage::Stage;

/// From the order to hand a lead over until the answer.
pub(super) const ORDER: &str = "order to hand over to done";
/// How long a node may take to hand over and stop. A bound, not a measure.
const STOP_WITHIN: Duration = Duration::from_secs(30);
/// How long a node that must refuse its data may take to do so.
const REFUSE_WITHIN: Duration = Duration::from_secs(5);
/// How long the raise of the apply version may take once every member supports it.
const RAISED_WITHIN: Duration = Duration::from_secs(20);
/// Expected of a node of an older build.
const TOO_OLD: &str = "a build that is older than the rows refuses";
/// Exit code of a node whose data are of another version, or damaged.
const DATA_UNUSABLE: i32 = 71;

pub(super) async fn transfer(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    let regions = stage.driver.regions();
    let nodes = stage.driver.nodes();
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let region = &regions[stage.rng.random_range(0..regions.len())];
        let leader = stage.leaders().await?.get(region).copied().unwrap_or(0);
        let others: Vec<u64> = nodes.iter().copied().filter(|node| *node != leader).collect();
        let to = others[stage.rng.random_range(0..others.len())];
        let injection = stage.injection(format!("{region} to node {to}"), vec![region.clone()]);
        let begun = Instant::now();
        let answer = stage.transfer(region, to).await;
        stage.sample(ORDER, begun.elapsed().as_secs_f64() * 1_000.0);
        stage.undone(injection);
        stage.expect("an order to hand over is carried out", answer.is_ok(), || {
            format!("{region} to node {to}: {answer:?}")
        });
        if number % 25 == 0 || number == count {
            stage.say(&format!("transfer {number} of {count}"));
        }
        let pause = Duration::from_millis(stage.rng.random_range(50..200));
        tokio::time::sleep(pause).await;
    }
    Ok(count)
}

pub(super) async fn drain_restart(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        for node in stage.driver.nodes() {
            restart(stage, node).await?;
        }
        stage.healed_again().await?;
        stage.say(&format!("round {number} of {count}"));
    }
    Ok(count)
}

/// SIGTERM, then a start; waits until every replica is up and has caught up.
async fn restart(stage: &mut Stage, node: u64) -> Result<(), ChaosError> {
    let led: Vec<String> = stage
        .leaders()
        .await?
        .into_iter()
        .filter(|(_, leader)| *leader == node)
        .map(|(region, _)| region)
        .collect();
    let injection = stage.injection(format!("SIGTERM node {node}"), led);
    let begun = Instant::now();
    let ended = stage.driver.stop(Member::Node(node), STOP_WITHIN).await?;
    stage.sample("SIGTERM to the end of the process", begun.elapsed().as_secs_f64() * 1_000.0);
    stage.expect("a node that is asked to stop ends with 0", ended.code == Some(0), || format!("{ended:?}"));
    stage.driver.start(Member::Node(node)).await?;
    stage.undone(injection);
    // As the loop of an operator does: the next node as soon as this one has caught up, wherever leaders are.
    stage.up_again().await?;
    stage.healed(injection);
    breathe(stage).await;
    Ok(())
}

/// One upgrade; the next needs a fresh cluster.
pub(super) async fn upgrade(stage: &mut Stage) -> Result<u64, ChaosError> {
    for node in stage.driver.nodes() {
        stage.driver.set_older_build(node, false);
        restart(stage, node).await?;
        stage.say(&format!("node {node} runs this build"));
    }
    // The version is raised by the leaders once every member has said that it supports the next. Who comes back too old
    // before that is welcome; so it is tried until it is refused.
    let node = stage.driver.nodes().last().copied().unwrap_or(1);
    let begun = Instant::now();
    let refused = loop {
        let injection = stage.injection(format!("node {node} comes back with the older build"), Vec::new());
        stage.driver.stop(Member::Node(node), STOP_WITHIN).await?;
        stage.driver.set_older_build(node, true);
        stage.driver.start(Member::Node(node)).await?;
        // The raise may lie in a checkpoint, which the node refuses as a whole, or in the log, at which replicas halt.
        let refusal = match stage.driver.ended(Member::Node(node), REFUSE_WITHIN).await? {
            Some(ended) if ended.code == Some(DATA_UNUSABLE) => Some("the node ends with 71"),
            Some(ended) => {
                stage.expect(TOO_OLD, false, || format!("node {node}: {ended:?}"));
                Some("the node ends otherwise")
            }
            None => {
                let refuses = all_halted(stage, node).await?;
                stage.driver.kill(Member::Node(node)).await?;
                refuses.then_some("every replica halts")
            }
        };
        stage.driver.set_older_build(node, false);
        stage.driver.start(Member::Node(node)).await?;
        stage.undone(injection);
        stage.healed_again().await?;
        stage.healed(injection);
        match refusal {
            Some(how) => break Some(how),
            None if begun.elapsed() > RAISED_WITHIN => break None,
            None => {}
        }
    };
    stage.expect(TOO_OLD, refused.is_some(), || {
        format!("node {node} serves, {RAISED_WITHIN:?} after the upgrade")
    });
    stage.count(format!("older build refused: {}", refused.unwrap_or("not")));
    Ok(1)
}

/// Whether all replicas of a node stand still because of the apply version.
async fn all_halted(stage: &Stage, node: u64) -> Result<bool, ChaosError> {
    let statuses = stage.statuses().await?;
    let mut replicas =
        statuses.iter().flat_map(|region| &region.replicas).filter(|replica| replica.node == node);
    Ok(!statuses.is_empty() && replicas.all(|replica| replica.fault.contains("apply version")))
}
