//! Wrong clocks. Leases run on a steady clock and must not notice; what stamps entries must not lead with a clock that is
//! far from the others'.

use std::time::Duration;

use rand::Rng as _;
use tokio::time::Instant;

use super::kill::breathe;
use crate::ChaosError;
use crate::prepare;
use crate::readback;
use crate::stage::Stage;

/// How wrong, milliseconds: from just beyond what is tolerated to far beyond what a hold lasts.
const OFF_MS: (f64, f64) = (800.0, 600_000.0);
/// How long a node with a wrong clock may keep leads before that is a violation.
const GIVEN_UP_WITHIN: Duration = Duration::from_secs(30);
/// How long the clock stays wrong afterwards.
const WRONG_FOR: Duration = Duration::from_secs(3);

pub(super) async fn skew(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let (node, led) = stage.some_leader().await?;
        let (least, most) = OFF_MS;
        let size = (least.ln() + stage.rng.random::<f64>() * (most / least).ln()).exp();
        // The value is far inside the type.
        let by_ms = if number.is_multiple_of(2) { -(size as i64) } else { size as i64 };
        let injection = stage.injection(format!("clock of node {node} off by {by_ms} ms"), led);
        stage.driver.skew_clock(node, by_ms).await?;
        let begun = Instant::now();
        let gave_up = loop {
            let leaders = stage.leaders().await?;
            if leaders.values().all(|leader| *leader != node) {
                break true;
            }
            if begun.elapsed() > GIVEN_UP_WITHIN {
                break false;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        stage.sample("clock wrong to no leads", begun.elapsed().as_secs_f64() * 1_000.0);
        stage.expect("a node whose clock is far off gives its leads up", gave_up, || {
            format!("node {node} still leads with a clock that is off by {by_ms} ms")
        });
        let nodes = prepare::repeat(prepare::PATIENCE, |_| readback::nodes(&stage.people)).await;
        let nodes = nodes.map_err(|status| crate::stage::call("asking for clocks", &status))?;
        let shown = nodes.iter().any(|status| status.node == node && status.clock_far);
        stage.expect("a wrong clock is shown", shown, || format!("{nodes:?}"));
        tokio::time::sleep(WRONG_FOR).await;
        stage.driver.skew_clock(node, 0).await?;
        stage.undone(injection);
        stage.healed_again().await?;
        stage.healed(injection);
        stage.say(&format!("clock {number} of {count}: node {node}, {by_ms} ms"));
        breathe(stage).await;
    }
    Ok(count)
}
