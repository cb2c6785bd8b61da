//! Damaged files. A node is killed, a place in its files is damaged, and it is started again: it must refuse, set the
//! replica aside, or prove that it is none the worse; the group goes on meanwhile.

use std::time::Duration;

use rand::Rng as _;

use super::kill::breathe;
use crate::ChaosError;
use crate::driver::{Damage, Member};
use crate::stage::Stage;

/// How long a node may take to find out that its data are damaged, before it is taken to be well.
const REFUSE_WITHIN: Duration = Duration::from_secs(4);
/// Exit codes on which nobody restarts a node blindly: its storage failed, its data are damaged. sled reports a damaged
/// page as an error of its own while it is read, which a node takes for the former.
const STORAGE_FAILED: i32 = 70;
const DATA_UNUSABLE: i32 = 71;
/// Checkpoints are due after a minute; those that damage needs are waited for this long.
const CHECKPOINT_WITHIN: Duration = Duration::from_secs(100);
/// Expected of every damaged node.
const DETECTED: &str = "a damaged node refuses with 71 or 70, sets the replica aside, or is none the worse";

/// Faults on one cluster; a replica that was set aside ends its use.
pub(super) async fn damage(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    let kinds = [Damage::LogBit, Damage::LogBit, Damage::TornTail, Damage::CheckpointBit];
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        let nodes = stage.driver.nodes();
        let node = nodes[stage.rng.random_range(0..nodes.len())];
        // The remainder fits: it comes from a length.
        let kind = kinds[(number % kinds.len() as u64) as usize];
        if kind == Damage::CheckpointBit {
            wait_checkpoint(stage, node).await?;
        }
        let leaders = stage.leaders().await?;
        let led: Vec<String> =
            leaders.into_iter().filter(|(_, leader)| *leader == node).map(|(region, _)| region).collect();
        let terms = stage.terms(&led);
        let injection = stage.injection(format!("SIGKILL node {node}, then {}", kind.name()), led);
        stage.driver.kill(Member::Node(node)).await?;
        stage.wait_new_terms(&terms).await?;
        let seed = stage.rng.random();
        let what = stage.driver.damage(node, kind, seed).await?.unwrap_or_else(|| "nothing to hit".into());
        stage.driver.start(Member::Node(node)).await?;
        let result = match stage.driver.ended(Member::Node(node), REFUSE_WITHIN).await? {
            Some(ended) => {
                let refused = matches!(ended.code, Some(DATA_UNUSABLE | STORAGE_FAILED));
                stage.expect(DETECTED, refused, || format!("node {node}, {what}: {ended:?}"));
                // It never ran, so its own undamaged files are not older than what others know of it.
                stage.driver.repair(node).await?;
                stage.driver.start(Member::Node(node)).await?;
                match ended.code {
                    Some(DATA_UNUSABLE) => "refused with 71",
                    Some(STORAGE_FAILED) => "refused with 70",
                    _ => "ended otherwise",
                }
            }
            None if set_aside(stage, node).await? => "replica set aside",
            None => "none the worse",
        };
        stage.undone(injection);
        stage.healed_again().await?;
        stage.healed(injection);
        stage.count(format!("{}: {result}", kind.name()));
        if matches!(result, "replica set aside" | "none the worse") {
            // The digests at the end show whether that is true.
            stage.expect(DETECTED, true, String::new);
        }
        stage.say(&format!("damage {number} of {count}: node {node}, {what}: {result}"));
        if !stage.outcome.evidence.lost_replicas.is_empty() {
            return Ok(number);
        }
        breathe(stage).await;
    }
    Ok(count)
}

/// Whether replicas of a node that runs stand aside; they are remembered as lost.
async fn set_aside(stage: &mut Stage, node: u64) -> Result<bool, ChaosError> {
    let statuses = stage.statuses().await?;
    let mut found = false;
    for region in statuses {
        let halted = region.replicas.iter().any(|replica| {
            replica.node == node
                && !replica.fault.is_empty()
                && replica.role != tidewall_proto::v1::ReplicaRole::Unreachable as i32
        });
        if halted {
            stage.outcome.evidence.lost_replicas.insert((region.name, node));
            found = true;
        }
    }
    Ok(found)
}

/// Waits until a node has checkpoints, so that there is something to damage.
async fn wait_checkpoint(stage: &mut Stage, node: u64) -> Result<(), ChaosError> {
    let begun = tokio::time::Instant::now();
    stage.say(&format!("waiting for a checkpoint of node {node}"));
    loop {
        let statuses = stage.statuses().await?;
        let of_node = |region: &&tidewall_proto::v1::RegionStatus| {
            region.replicas.iter().any(|replica| replica.node == node && replica.checkpoint_index > 0)
        };
        if statuses.iter().filter(of_node).count() == statuses.len() {
            return Ok(());
        }
        if begun.elapsed() > CHECKPOINT_WITHIN {
            return Err(stage.late("node has no checkpoint", begun.elapsed()));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}
