//! Looks after the groups of a node from time to time: checkpoints, the size of the log, who leads, which rows are hot.
//!
//! Leaders are spread by preference: a node that leads a group which another one should lead hands it over, once that
//! one has been caught up for a while. A node that must not lead, because it was drained, because its clock is wrong, or
//! because its apply stands still, hands everything over at once; so does one that no majority hears. Nothing here is needed
//! for correctness.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tidewall_env::tasks;
use tidewall_proto::internal::v1 as pb;
use tidewall_store::log::NodeLog;
use tokio::time::Instant;

use crate::exchange::{Served, Serving};
use crate::lead;
use crate::silence::Silences;
use crate::standing::Standing;

const ROUND: Duration = Duration::from_millis(500);
/// How often hot rows are counted and idle actors let go.
const SAMPLE: Duration = Duration::from_secs(2);
/// Hot rows in a status.
const HOT_ROWS: usize = 5;
/// A checkpoint is due after so many bytes of commands.
const CHECKPOINT_BYTES: u64 = 16 << 20;
/// Or after so long, when anything has changed.
const CHECKPOINT_AGE: Duration = Duration::from_secs(60);
/// Groups that pin old segments are checkpointed when the log is larger than this, and entries of halted ones moved.
pub const LOG_BYTES_MAX: u64 = 192 << 20;
/// How much of what halted replicas hold is moved at a time, bytes, so that nobody waits long behind it, and how often in a
/// round.
const RELOCATION_BYTES: usize = 256 << 10;
const RELOCATIONS: usize = 8;
/// A restart shall not have to apply more than this again, over all groups of the node, as apply is measured here: at half
/// of it checkpoints are due, beyond it new work is refused.
const REPLAY_MAX: Duration = Duration::from_secs(5);
/// A leader whose apply stands still for so long, with entries waiting, is not fit to lead.
const APPLY_STUCK: Duration = Duration::from_secs(3);
/// How long all leads may take to leave a node that must not have them, before it is tried again.
const LEAVE_PATIENCE: Duration = Duration::from_secs(2);
/// How long the preferred leader must have been caught up before it is given the lead.
const STEADY: Duration = Duration::from_secs(3);
/// How long a handover is given before it is tried again.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);

#[derive(Default)]
struct Memory {
    checkpoint_at: BTreeMap<u32, (Instant, u64)>,
    steady_since: BTreeMap<u32, Instant>,
    transferred_at: BTreeMap<u32, Instant>,
    silences: Silences,
    /// Applied index and since when it is that.
    applied: BTreeMap<u32, (u64, Instant)>,
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
        checkpoints(&serving, &log, log_bytes_max, &mut memory).await;
        make_room(&serving, &log, log_bytes_max).await;
        give_up_what_nobody_acknowledges(&standing, &serving, &mut memory.silences).await;
        give_up_what_is_stuck(&standing, &serving, &mut memory).await;
        if standing.accepts_lead() {
            spread(&standing, &serving, &mut memory).await;
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
            event_id: hot.row,
            commands_per_second: hot.commands as f64 / seconds,
            queued: hot.queued,
        });
        *served.hot.lock() = hot.collect();
    }
}

async fn checkpoints(serving: &Serving, log: &NodeLog, log_bytes_max: u64, memory: &mut Memory) {
    let pinning: BTreeMap<u32, u64> = log.purge_hints(log_bytes_max).into_iter().collect();
    let halted = serving.halted();
    // A replica that has halted applies nothing at a restart either, and takes no checkpoint: it must not hold up the others.
    let sound = || serving.groups.iter().filter(|(number, _)| !halted.contains(number));
    let replay = |served: &Served| served.group.state().replay_time();
    let total: Duration = sound().map(|(_, served)| replay(served)).sum();
    serving.set_replay_behind(total > REPLAY_MAX);
    // The share of a group that is behind as much as the average when a checkpoint is due.
    let share = REPLAY_MAX / 2 / serving.groups.len().max(1) as u32;
    for (number, served) in sound() {
        let state = served.group.checkpoint_state();
        let (last, index) =
            memory.checkpoint_at.entry(*number).or_insert_with(|| (Instant::now(), state.index));
        if *index != state.index {
            (*last, *index) = (Instant::now(), state.index);
        }
        let aged = state.pages > 0 && last.elapsed() > CHECKPOINT_AGE;
        let pins = pinning.get(number).is_some_and(|upto| *upto > state.index);
        let behind = total > REPLAY_MAX / 2 && replay(served) > share;
        if state.bytes > CHECKPOINT_BYTES || aged || pins || (behind && state.bytes > 0) {
            served.group.checkpoint().await;
        }
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
async fn give_up_what_is_stuck(standing: &Standing, serving: &Serving, memory: &mut Memory) {
    for (number, served) in &serving.groups {
        let status = served.group.status();
        let (applied, since) = memory.applied.entry(*number).or_insert((status.applied, Instant::now()));
        if *applied != status.applied || status.committed <= status.applied {
            (*applied, *since) = (status.applied, Instant::now());
            continue;
        }
        if since.elapsed() < APPLY_STUCK || !served.group.believes_to_lead() {
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
        *since = Instant::now();
    }
}

async fn spread(standing: &Standing, serving: &Serving, memory: &mut Memory) {
    for (number, served) in &serving.groups {
        let preferred = standing.preferred_leader(*number);
        let should_go = preferred != standing.node()
            && served.group.believes_to_lead()
            && served.group.members().0.contains(&preferred)
            && standing.takes_lead(preferred)
            && served.group.caught_up(preferred);
        if !should_go {
            memory.steady_since.remove(number);
            continue;
        }
        let steady = memory.steady_since.entry(*number).or_insert_with(Instant::now).elapsed() > STEADY;
        let tried = memory.transferred_at.get(number).is_some_and(|at| at.elapsed() < TRANSFER_PATIENCE);
        if steady && !tried {
            tracing::info!(group = number, to = preferred, "handing the lead to the preferred node");
            memory.transferred_at.insert(*number, Instant::now());
            served.group.transfer_leadership(preferred).await;
        }
    }
}
