//! Processes that die or stand still without a word.

use std::time::Duration;

use rand::Rng as _;

use crate::ChaosError;
use crate::driver::Member;
use crate::stage::Stage;

/// How long a killed node stays dead: the new leaders serve alone meanwhile.
const DEAD_FOR: Duration = Duration::from_millis(4_200);
/// Shortest and longest pause of a process, milliseconds. Drawn so that each order of magnitude is as likely.
const PAUSE_MS: (f64, f64) = (200.0, 30_000.0);
/// From the start of all processes until every region has acknowledged a write.
pub(super) const ALL_WRITABLE: &str = "start to every region writable";

/// A short time between faults, so that they do not all fall on the same beat of the cluster's timers.
pub(super) async fn breathe(stage: &mut Stage) {
    let pause = Duration::from_millis(stage.rng.random_range(300..1_500));
    tokio::time::sleep(pause).await;
}

pub(super) async fn leader(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let (node, led) = stage.some_leader().await?;
        let terms = stage.terms(&led);
        let injection = stage.injection(format!("SIGKILL node {node}"), led);
        stage.driver.kill(Member::Node(node)).await?;
        stage.wait_new_terms(&terms).await?;
        tokio::time::sleep(DEAD_FOR).await;
        stage.driver.start(Member::Node(node)).await?;
        stage.undone(injection);
        stage.healed_again().await?;
        stage.healed(injection);
        stage.say(&format!("kill {number} of {count}: node {node}"));
        breathe(stage).await;
    }
    Ok(count)
}

pub(super) async fn pause(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let (node, led) = stage.some_leader().await?;
        let (shortest, longest) = PAUSE_MS;
        let pause_ms = (shortest.ln() + stage.rng.random::<f64>() * (longest / shortest).ln()).exp();
        let injection = stage.injection(format!("SIGSTOP node {node} for {pause_ms:.0} ms"), led);
        stage.driver.pause(Member::Node(node)).await?;
        tokio::time::sleep(Duration::from_secs_f64(pause_ms / 1_000.0)).await;
        stage.driver.resume(Member::Node(node)).await?;
        stage.undone(injection);
        let resumed = stage.recorder.now();
        stage.wait_writes(resumed).await?;
        stage.healed_again().await?;
        stage.healed(injection);
        stage.say(&format!("pause {number} of {count}: node {node}, {pause_ms:.0} ms"));
        breathe(stage).await;
    }
    Ok(count)
}

pub(super) async fn cluster(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    let nodes = stage.driver.nodes();
    let members: Vec<Member> =
        nodes.iter().map(|node| Member::Node(*node)).chain([Member::Gateway(1)]).collect();
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let regions = stage.driver.regions();
        let injection = stage.injection("SIGKILL everything", regions);
        for member in &members {
            stage.driver.kill(*member).await?;
        }
        for member in &members {
            stage.driver.start(*member).await?;
        }
        stage.undone(injection);
        let started = stage.recorder.now();
        stage.wait_writes(started).await?;
        let writable = stage.recorder.now().saturating_sub(started);
        stage.sample(ALL_WRITABLE, writable as f64 / 1_000.0);
        stage.healed_again().await?;
        stage.healed(injection);
        stage.say(&format!("kill {number} of {count} of everything: writable after {} ms", writable / 1_000));
        breathe(stage).await;
    }
    Ok(count)
}
