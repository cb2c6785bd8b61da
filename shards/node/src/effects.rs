//! What is to be done outside is taken here by whoever carries it out, and here they say how that has ended.
//!
//! What was taken is given to nobody else for a while: only a convenience, known to this node alone. Who leads next gives it out anew, so
//! that it may be done twice under one name, and never not at all.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_actors::Refusal;
use tidewall_consensus::{Group, StateHandle};
use tidewall_domain::feed::HEARS_CHANGES;
use tidewall_machine::effects::EffectKey;
use tidewall_machine::{Command, DueEffect, EffectEnd, Failure, Machine, Stamp, SystemCommand};
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, timeout_at};

use crate::standing::Standing;
use crate::{shard, views};

/// No answer waits longer: whoever asks for more asks again.
const WAIT_MAX: Duration = Duration::from_millis(500);
/// What was taken is given to nobody else for so long: longer than an attempt may take.
const TAKEN_FOR: Duration = Duration::from_secs(20);
/// Whoever asks waits no longer than a second for an answer: what it is given must reach it.
const ANSWERED_WITHIN: Duration = Duration::from_millis(700);
/// Effects of an answer.
const EFFECTS_MAX: u32 = 64;
/// Bytes of their payloads, beyond the last one.
const BYTES_MAX: usize = 1 << 20;
/// Characters of the reason of a failure.
const WHY_MAX: usize = 200;
/// Ends of a call.
const ENDS_MAX: usize = 1_000;

/// Which effects of a group are under way, as far as this node knows: by name, which attempt, and until when it counts.
#[derive(Debug, Default)]
pub struct UnderWay(Mutex<HashMap<EffectKey, (u32, Instant)>>);

/// Effects that are due, as soon as there are some; none when there are none for as long as may be waited from when the question came.
///
/// # Errors
/// Refusals, as of any query.
pub async fn take(
    group: &Group,
    standing: &Standing,
    under_way: &UnderWay,
    asked: pb::TakeEffects,
    came: Instant,
) -> Result<pb::Effects, pb::Refusal> {
    let state = group.state();
    let until = came + Duration::from_millis(asked.wait_ms.into()).min(WAIT_MAX);
    let mut changed = state.effects();
    loop {
        changed.borrow_and_update();
        // Who has waited for too long has gone, and would not get what it is given.
        if state.read(Machine::apply_version) >= HEARS_CHANGES && came.elapsed() < ANSWERED_WITHIN {
            if standing.clock_is_far() {
                // How it ends could not be noted here.
                return Err(views::refusal(&Refusal::NotLeader { leader: None }));
            }
            let effects = select(state, standing.stamp(), under_way, asked);
            if !effects.is_empty() {
                return Ok(pb::Effects { effects, none: false });
            }
        }
        let now = Instant::now();
        if now >= until {
            let none = state.read(|machine| machine.effects_count() == 0 && !machine.hears());
            return Ok(pb::Effects { effects: Vec::new(), none });
        }
        let next = next_in(state, standing.stamp(), under_way, asked).map(|next| now + next);
        let _ = timeout_at(next.unwrap_or(until).min(until), changed.changed()).await;
        if let Some(why) = state.halted() {
            return Err(views::refusal(&Refusal::Halted(why)));
        }
        if !group.believes_to_lead() {
            return Err(views::refusal(&Refusal::NotLeader { leader: group.believed_leader() }));
        }
    }
}

/// Chooses effects that are due, and has them count as under way.
fn select(
    state: &StateHandle,
    stamp: Stamp,
    under_way: &UnderWay,
    asked: pb::TakeEffects,
) -> Vec<pb::Effect> {
    let mut first = asked.first_attempts.min(EFFECTS_MAX);
    let mut further = asked.further_attempts.min(EFFECTS_MAX);
    let mut bytes = 0;
    let now = Instant::now();
    let mut under_way = under_way.0.lock();
    // Whoever has not come back by now does not count.
    under_way.retain(|_, (_, until)| *until > now);
    let due = state.read(|machine| {
        machine.effects_due(stamp, &mut |key, attempts, size| {
            if (first, further) == (0, 0) || bytes >= BYTES_MAX {
                return None;
            }
            let left = if attempts == 0 { &mut first } else { &mut further };
            let wanted = *left > 0 && !under_way.contains_key(key);
            if wanted {
                *left -= 1;
                bytes += size;
            }
            Some(wanted)
        })
    });
    under_way.extend(due.iter().map(|due| (due.key, (due.attempts, now + TAKEN_FOR))));
    due.into_iter().map(effect).collect()
}

/// How long until the next effect is due that could be taken.
fn next_in(
    state: &StateHandle,
    stamp: Stamp,
    under_way: &UnderWay,
    asked: pb::TakeEffects,
) -> Option<Duration> {
    let under_way = under_way.0.lock();
    let wanted = |key: &EffectKey, attempts| {
        let places = if attempts == 0 { asked.first_attempts } else { asked.further_attempts };
        places > 0 && !under_way.contains_key(key)
    };
    let next = state.read(|machine| machine.next_effect_in_ms(stamp, &wanted));
    next.map(|next| Duration::from_millis(next.max(1)))
}

/// Notes how attempts have ended.
///
/// # Errors
/// Refusals: it is not known whether that was noted, and can be said again.
pub async fn end(
    group: &Group,
    standing: &Standing,
    under_way: &UnderWay,
    asked: pb::EndEffects,
) -> Result<pb::EffectsEnded, pb::Refusal> {
    if group.state().read(Machine::apply_version) < HEARS_CHANGES {
        return Err(views::not_yet());
    }
    if asked.ends.len() > ENDS_MAX {
        return Err(views::invalid(format!("{} ends: at most {ENDS_MAX} at a time", asked.ends.len())));
    }
    let ends: Option<Vec<EffectEnd>> = asked.ends.into_iter().map(effect_end).collect();
    let ends = ends.ok_or_else(|| views::invalid("an end names no effect"))?;
    let ended: Vec<(EffectKey, u32)> = ends.iter().map(|end| (end.key, end.attempts)).collect();
    let command = Command::system(SystemCommand::EndEffects(ends));
    let noted = shard::propose(group, standing, vec![command]).await;
    noted.map_err(|refusal| views::refusal(&refusal))?;
    // Only now: what is not known to have ended is given out to nobody meanwhile.
    under_way.0.lock().retain(|key, (attempts, _)| !ended.contains(&(*key, *attempts)));
    Ok(pb::EffectsEnded {})
}

/// How a queue is, when this node's clock shows `stamp`.
///
/// # Errors
/// It is none.
pub fn queue(machine: &Machine, stamp: Stamp, asked: &pb::GetQueue) -> Result<pb::QueueState, String> {
    let queue = asked.queue.as_slice().try_into().map(u128::from_be_bytes);
    let (Ok(module), Ok(queue)) = (u8::try_from(asked.module), queue) else {
        return Err("that is no queue".into());
    };
    let state = machine.queue(module, queue, stamp);
    Ok(pb::QueueState {
        waiting: state.waiting,
        attempts: state.attempts,
        failure: state.failure,
        next_in_ms: state.next_in_ms,
        dead: state.dead,
    })
}

fn effect(due: DueEffect) -> pb::Effect {
    let DueEffect { key, attempts, call } = due;
    let key = pb::EffectKey {
        module: key.module.into(),
        queue: key.queue.to_be_bytes().to_vec(),
        incarnation: key.incarnation,
        index: key.index,
        number: key.number,
    };
    pb::Effect { key: Some(key), attempts, call: call.into() }
}

fn effect_end(end: pb::EffectEnd) -> Option<EffectEnd> {
    let key = end.key?;
    let key = EffectKey {
        module: u8::try_from(key.module).ok()?,
        queue: u128::from_be_bytes(key.queue.as_slice().try_into().ok()?),
        incarnation: key.incarnation,
        index: key.index,
        number: key.number,
    };
    let why = end.why.chars().take(WHY_MAX).collect();
    let failure = end.failed.then_some(Failure { why, after_ms: end.after_ms });
    Some(EffectEnd { key, attempts: end.attempts, failure })
}

#[cfg(test)]
mod tests;
