//! Looks after the groups of a node from time to time: checkpoints, the size of the log, who leads, which rows are hot.
//!
//! Leaders are spread by preference: a node that leads a group which another one should lead hands it over, once that
//! one has been caught up for a while. A node that must not lead, because it was drained, because its clock is wrong, or
//! because its apply stands still, hands everything over at once; so does one that no majority hears. Nothing here is needed
//! for correctness.

mod checkpoints;
mod preference;
mod silence;
mod stuck;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewall_env::tasks;
use tidewall_proto::internal::v1 as pb;
use tidewall_store::log::NodeLog;
use tokio::time::Instant;

use crate::exchange::Serving;
use crate::lead;
use crate::standing::Standing;
use checkpoints::{Ages, Behind, REPLAY_MAX};
use preference::Preference;
use silence::Silences;
use stuck::Applied;

const ROUND: Duration = Duration::from_millis(500);
/// How often hot rows are counted and idle actors let go.
const SAMPLE: Duration = Duration::from_secs(2);
/// Hot rows in a status.
const HOT_ROWS: usize = 5;
/// Groups that pin old segments are checkpointed when the log is larger than this, and entries of halted ones moved.
pub const LOG_BYTES_MAX: u64 = 192 << 20;
/// How much of what halted replicas hold is moved at a time, bytes, so that nobody waits long behind it, and how often in a
/// round.
const RELOCATION_BYTES: usize = 256 << 10;
const RELOCATIONS: usize = 8;
/// How long all leads may take to leave a node that must not have them, before it is tried again.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Memory {
    checkpoints: Ages,
    preference: Preference,
    silences: Silences,
    applied: Applied,
}

/// Runs until the node stops.
pub async fn keep(standing: Arc<Standing>, serving: Arc<Serving>, log: NodeLog, log_bytes_max: u64) {
    let mut memory = Memory::default();
    let mut sampled = Instant::now();
    loop {
        tokio::time::sleep(ROUND).await;
        if sampled.elapsed() >= SAMPLE {
            sample(&serving, sampled.elapsed().as_secs_f64());
            sampled = Instant::now();
        }
        if let Err(error) = serving.space.check() {
            tracing::warn!(%error, "cannot see how much space is free");
        }
        checkpoints(&serving, &log, log_bytes_max, &mut memory.checkpoints).await;
        make_room(&serving, &log, log_bytes_max).await;
        give_up_what_nobody_acknowledges(&standing, &serving, &mut memory.silences).await;
        give_up_what_is_stuck(&standing, &serving, &mut memory.applied).await;
        if standing.accepts_lead() {
            spread(&standing, &serving, &mut memory.preference).await;
        } else {
            let groups =
                serving.groups.iter().map(|(number, served)| (*number, served.group.clone())).collect();
            lead::leave_all(&groups, &standing, LEAVE_PATIENCE).await;
        }
    }
}

fn sample(serving: &Serving, seconds: f64) {
    for served in serving.groups.values() {
        let hot = served.rows.sample(HOT_ROWS).into_iter().map(|hot| pb::HotRowState {
            row: hot.row,
            commands_per_second: hot.commands as f64 / seconds,
            queued: hot.queued,
        });
        *served.hot.lock() = hot.collect();
    }
}

async fn checkpoints(serving: &Serving, log: &NodeLog, log_bytes_max: u64, ages: &mut Ages) {
    let pinning: BTreeMap<u32, u64> = log.purge_hints(log_bytes_max).into_iter().collect();
    let halted = serving.halted();
    // A replica that has halted applies nothing at a restart either, and takes no checkpoint: it must not hold up the others.
    let sound = serving.groups.iter().filter(|(number, _)| !halted.contains(number));
    let behind = sound.map(|(number, served)| {
        let state = served.group.checkpoint_state();
        let behind = Behind {
            index: state.index,
            bytes: state.bytes,
            pages: state.pages,
            replay: served.group.state().replay_time(),
            pinned: pinning.get(number).copied(),
        };
        (*number, behind)
    });
    let behind: BTreeMap<u32, Behind> = behind.collect();
    let replay: Duration = behind.values().map(|group| group.replay).sum();
    serving.set_replay_behind(replay > REPLAY_MAX);
    for number in ages.due(&behind, serving.groups.len(), Instant::now()) {
        serving.groups[&number].group.checkpoint().await;
    }
}

/// A replica that has halted keeps its part of the log and purges nothing: it must not keep the other groups' segments, or the
/// node would refuse all work in the end.
async fn make_room(serving: &Serving, log: &NodeLog, log_bytes_max: u64) {
    let halted = serving.halted();
    if halted.is_empty() || log.disk_bytes() <= log_bytes_max {
        return;
    }
    // Moving what is most of the log would go on for ever and free nothing.
    if log.live_bytes(&halted) > log_bytes_max / 2 {
        tracing::error!(?halted, "the log is full of what halted replicas hold: replace this node");
        return;
    }
    for _ in 0..RELOCATIONS {
        let (done, durable) = tokio::sync::oneshot::channel();
        let (log, stuck) = (log.clone(), halted.clone());
        let done = move |outcome| {
            // Whoever waited may have gone.
            let _ = done.send(outcome);
        };
        // It reads from the disk.
        let moved = tasks::off_thread(move || log.relocate(&stuck, RELOCATION_BYTES, Box::new(done)));
        match moved.await {
            Ok(Ok(true)) => {}
            Ok(Ok(false)) => return,
            Ok(Err(error)) => {
                tracing::error!(%error, ?halted, "entries of a halted replica cannot be moved");
                return;
            }
            Err(error) => {
                tracing::error!(%error, ?halted, "moving entries of a halted replica has failed");
                return;
            }
        }
        // Before it is durable, the same entries would be found and moved again.
        if !matches!(durable.await, Ok(Ok(()))) {
            return;
        }
    }
}

/// Offers leads that this node can no longer make use of to the others, who may hear the offer. An offer that is not taken
/// is repeated by itself.
async fn give_up_what_nobody_acknowledges(standing: &Standing, serving: &Serving, silences: &mut Silences) {
    silences.begin_round(Instant::now());
    for (number, served) in &serving.groups {
        let group = &served.group;
        let silence = group.unacknowledged_for().filter(|_| group.believes_to_lead());
        if !silences.lasts(*number, silence, Instant::now()) {
            continue;
        }
        let (voters, _) = group.members();
        // By what was heard of them last, and the first of equals: what they have now is not known. Who must not lead
        // would win all the same, and decide nothing.
        let others =
            voters.into_iter().filter(|voter| *voter != standing.node() && standing.takes_lead(*voter));
        let Some(to) = others.max_by_key(|peer| (group.caught_up(*peer), std::cmp::Reverse(*peer))) else {
            continue;
        };
        tracing::warn!(
            group = number,
            ?silence,
            to,
            "no majority acknowledges this leader: it offers its lead"
        );
        silences.offered(*number, Instant::now());
        group.transfer_leadership(to).await;
    }
}

/// A leader that does not apply what was committed answers nobody: another replica may do better.
async fn give_up_what_is_stuck(standing: &Standing, serving: &Serving, applied: &mut Applied) {
    for (number, served) in &serving.groups {
        let status = served.group.status();
        if !applied.stands_still(*number, status.applied, status.committed, Instant::now())
            || !served.group.believes_to_lead()
        {
            continue;
        }
        tracing::error!(
            group = number,
            applied = status.applied,
            committed = status.committed,
            "apply stands still"
        );
        let (voters, _) = served.group.members();
        let fit = voters.into_iter().find(|peer| {
            *peer != standing.node() && standing.takes_lead(*peer) && served.group.caught_up(*peer)
        });
        if let Some(peer) = fit {
            served.group.transfer_leadership(peer).await;
        }
    }
}

async fn spread(standing: &Standing, serving: &Serving, preference: &mut Preference) {
    for (number, served) in &serving.groups {
        let preferred = standing.preferred_leader(*number);
        let could = preferred != standing.node()
            && served.group.believes_to_lead()
            && served.group.members().0.contains(&preferred)
            && standing.takes_lead(preferred)
            && served.group.caught_up(preferred);
        if preference.sends(*number, could, Instant::now()) {
            tracing::info!(group = number, to = preferred, "handing the lead to the preferred node");
            served.group.transfer_leadership(preferred).await;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    use bytes::Bytes;
    use tidewall_env::disk::MemoryDisk;
    use tidewall_store::log::{LogEntry, LogOptions, LogPosition};

    const CLUSTER: [u8; 16] = [7; 16];

    /// A log in which group 1 has `own` entries, and group 2 had many that it has let go.
    fn log(own: u64) -> NodeLog {
        let options = LogOptions { segment_bytes: 2_048, inline: true, ..LogOptions::new(CLUSTER, 1) };
        let (log, _) = NodeLog::open(Arc::new(MemoryDisk::new()), options).unwrap();
        let done = || Box::new(|outcome: Result<(), _>| outcome.unwrap());
        let at = |index| LogPosition { term: 1, node: 1, index };
        let entry = |index| LogEntry { position: at(index), payload: Bytes::from_static(&[7; 50]) };
        log.group(1).append((0..own).map(entry).collect(), done());
        for index in 0..200 {
            log.group(2).append(vec![entry(index)], done());
        }
        log.group(2).purge(at(198), done());
        log
    }

    /// A node on which these groups have halted.
    fn serving(halted: &[u32]) -> Serving {
        let faults = halted.iter().map(|group| (*group, "it is damaged".to_owned())).collect();
        crate::fake::serving(faults, crate::space::Space::unlimited())
    }

    #[tokio::test]
    async fn a_halted_replica_pins_no_segments_of_the_others() {
        let log = log(20);
        let full = log.disk_bytes();
        make_room(&serving(&[]), &log, 6_000).await;
        make_room(&serving(&[1]), &log, full).await;
        assert_eq!(log.disk_bytes(), full, "nobody has halted, or there is room");
        make_room(&serving(&[1]), &log, 6_000).await;
        assert!(log.disk_bytes() < 6_000 && full > 12_000, "{} of {full} bytes", log.disk_bytes());
    }

    #[tokio::test]
    async fn what_is_most_of_the_log_is_not_moved() {
        let log = log(60);
        let full = log.disk_bytes();
        make_room(&serving(&[1]), &log, 6_000).await;
        assert_eq!(log.disk_bytes(), full);
    }
}
