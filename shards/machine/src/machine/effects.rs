//! What is to be done outside: put into rows with what it follows from, out of them when it was done.
//!
//! Whoever carries effects out asks what is due ([`Machine::effects_due`]) and says by a command how each attempt has ended. An effect
//! that nobody could carry out in its time becomes a dead letter, and the next one of its queue goes on. **Never here:** what an effect
//! says, and any attempt at it.

use tidewall_domain::Context;
use tidewall_domain::feed::{HEARS_CHANGES, HeardChange};
use tidewall_domain::outbox::{Effect, Queued, Queues};
use tidewall_mutant::{Mutant, active};

use super::{DEAD_LETTERS_MAX, Machine, context};
use crate::effects::{DeadEffect, EffectIndex, EffectKey, EffectRow};
use crate::entry::EffectEnd;
use crate::streams::{DeadKey, DeadRow, Message};
use crate::time::Stamp;

/// Effects that an entry gives up at most.
const GIVEN_UP_MAX: usize = 64;
/// Effects of one queue among the dead letters; further ones are dropped.
pub const DEAD_OF_QUEUE_MAX: usize = 16;
/// Bytes of effects among the dead letters.
const DEAD_BYTES_MAX: u64 = 32 << 20;
/// Whoever becomes the first of its queue is tried for so long at least, milliseconds of steady time.
const TRIED_MS_MIN: u64 = 5 * 60_000;

/// An effect that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DueEffect {
    /// Its name.
    pub key: EffectKey,
    /// Attempts that have failed.
    pub attempts: u32,
    /// What its module says of it.
    pub call: Vec<u8>,
}

/// How a queue of effects is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct QueueState {
    /// Effects that wait, with those that are under way.
    pub waiting: u64,
    /// Attempts at the first one that have failed.
    pub attempts: u32,
    /// Why the last one has failed.
    pub failure: String,
    /// How long until the next attempt, milliseconds.
    pub next_in_ms: u64,
    /// Effects among the dead letters.
    pub dead: u64,
}

/// How much of a module is to be done.
struct OfModule<'a> {
    module: u8,
    index: &'a EffectIndex,
}

impl Queues for OfModule<'_> {
    fn queued(&self, queue: u128) -> Queued {
        self.index.queues.get(&(self.module, queue)).map(|index| index.queued).unwrap_or_default()
    }

    fn all(&self) -> Queued {
        self.index.modules.get(&self.module).copied().unwrap_or_default()
    }
}

impl Machine {
    /// Has the modules hear what was told in the entry that ends.
    pub(super) fn hear(&mut self) {
        let heard = std::mem::take(&mut self.heard);
        if heard.is_empty() {
            return;
        }
        let context =
            Context { position: u32::MAX, ..context(&self.row(), self.head.applied.unwrap_or_default()) };
        for at in 0..self.modules.len() {
            let module = &mut self.modules[at];
            if !module.hears() {
                continue;
            }
            let number = module.number();
            let queues = OfModule { module: number, index: self.effects.derived() };
            match module.hear(&context, &heard, &queues) {
                Ok(output) => self.transmit(&context, number, output.outbox),
                Err(fault) => {
                    self.faults += 1;
                    self.notice(&context, number, format!("what was told: {fault}"), DEAD_LETTERS_MAX);
                }
            }
        }
    }

    /// Keeps what was told for those who hear it at the end of the entry.
    pub(super) fn overhear(&mut self, told: tidewall_domain::feed::Told) {
        let number = self.told;
        if active(Mutant::OneChangeOfAnEntryHeard) && number > 1 {
            return;
        }
        self.heard.push(HeardChange { told, number });
    }

    /// Whether anybody wants to hear what is told.
    pub fn hears(&self) -> bool {
        self.apply_version() >= HEARS_CHANGES && self.modules.iter().any(|module| module.hears())
    }

    /// Takes what a transaction of a module has done outside.
    pub(super) fn keep_effects(&mut self, context: &Context, module: u8, effects: Vec<Effect>) {
        let made = (context.incarnation, context.index);
        for effect in effects {
            if self.join(context, module, &effect) {
                continue;
            }
            let Effect { queue, payload, lasts_ms, joined_max } = effect;
            let number = if self.effected.0 == made { self.effected.1 } else { 0 };
            self.effected = (made, number + 1);
            let key = EffectKey { module, queue, incarnation: made.0, index: made.1, number };
            let until_ms = context.steady_ms.saturating_add(lasts_ms);
            let next_ms = self.first_of(module, queue).is_none().then_some(context.steady_ms);
            let next_ms = if active(Mutant::QueueOvertaken) { Some(context.steady_ms) } else { next_ms };
            let open = next_ms.is_none() && joined_max > 0;
            let failure = String::new();
            let row = EffectRow { payload, lasts_ms, until_ms, attempts: 0, next_ms, failure, open };
            // What waits behind another one is nothing to be told of.
            self.effects_changed += u64::from(next_ms.is_some());
            self.effects.set(key, Some(row));
        }
        self.effects.commit();
    }

    /// Drops what a queue still has, and what of it was given up.
    pub(super) fn end_queue(&mut self, module: u8, queue: u128) {
        while let Some(key) = self.first_of(module, queue) {
            self.effects.set(key, None);
        }
        for key in self.dead_of(module, queue) {
            self.dead.set(key, None);
        }
        self.dead.commit();
        self.effects.commit();
        self.effects_changed += 1;
    }

    fn first_of(&self, module: u8, queue: u128) -> Option<EffectKey> {
        self.index_of_effects().first_of(module, queue)
    }

    /// Adds an effect to the last one of its queue, if nobody knows of that yet and both are small enough.
    fn join(&mut self, context: &Context, module: u8, effect: &Effect) -> bool {
        let Some(last) = self.index_of_effects().last_of(module, effect.queue) else { return false };
        // In a life that was lost it may have become something else under its name.
        if last.incarnation != context.incarnation {
            return false;
        }
        let Some(row) = self.effects.get(&last).filter(|row| row.open) else { return false };
        if (row.payload.len() + effect.payload.len()) as u64 > effect.joined_max {
            return false;
        }
        let mut row = row.clone();
        row.payload.extend_from_slice(&effect.payload);
        self.effects.set(last, Some(row));
        true
    }

    fn index_of_effects(&self) -> &EffectIndex {
        self.effects.derived()
    }

    /// Effects of a queue among the dead letters.
    fn dead_of(&self, module: u8, queue: u128) -> Vec<DeadKey> {
        let dead = self.dead.derived().0.get(&(0, module, queue));
        dead.map(|keys| keys.iter().copied().collect()).unwrap_or_default()
    }

    /// Takes in how an attempt has ended, unless that is known already.
    pub(super) fn end_effect(&mut self, context: &Context, end: &EffectEnd) {
        let Some(row) = self.effects.get(&end.key).cloned() else {
            if end.failure.is_none() {
                self.done_after_all(&end.key);
            }
            return;
        };
        if row.attempts != end.attempts {
            return;
        }
        self.effects_changed += 1;
        let Some(failure) = end.failure.as_ref().filter(|_| !active(Mutant::FailedEffectDone)) else {
            let next = || self.effects.range_from(&end.key).nth(1).map(|(key, _)| *key);
            let done = active(Mutant::AnotherEffectDone).then(next).flatten().unwrap_or(end.key);
            self.effects.set(done, None);
            self.go_on(context, done.module, done.queue);
            return;
        };
        let next_ms = context.steady_ms.saturating_add(row.pause_ms(&end.key, failure.after_ms));
        let row = EffectRow {
            attempts: row.attempts.saturating_add(1),
            // One before it may have been revived meanwhile.
            next_ms: row.next_ms.map(|_| next_ms),
            failure: failure.why.clone(),
            ..row
        };
        if next_ms >= row.until_ms {
            self.give_up(context, end.key, row);
            return;
        }
        self.effects.set(end.key, Some(row));
        self.effects.commit();
    }

    /// An effect was given up while it was being done: nobody need look at it.
    fn done_after_all(&mut self, key: &EffectKey) {
        for letter in self.dead_of(key.module, key.queue) {
            let dead =
                self.dead.get(&letter).and_then(|row| DeadEffect::from_bytes(&row.message.payload).ok());
            if dead.is_some_and(|dead| dead.key == *key) {
                self.dead.set(letter, None);
            }
        }
        self.dead.commit();
    }

    /// Gives up what could not be carried out in its time.
    pub(super) fn give_effects_up(&mut self, context: &Context) {
        for _ in 0..GIVEN_UP_MAX {
            let Some((until, key)) = self.index_of_effects().until.first().copied() else { return };
            if until > context.steady_ms {
                return;
            }
            let Some(row) = self.effects.get(&key).cloned() else { return };
            self.give_up(context, key, row);
            self.effects_changed += 1;
        }
    }

    /// Has all effects tried for their whole time from now on: nobody could try them where they were kept.
    pub(super) fn renew_effects(&mut self, now_ms: u64) {
        let rows: Vec<(EffectKey, EffectRow)> =
            self.effects.iter().map(|(key, row)| (*key, row.clone())).collect();
        for (key, row) in rows {
            let until_ms = now_ms.saturating_add(row.lasts_ms);
            let next_ms = row.next_ms.map(|_| now_ms);
            self.effects.set(key, Some(EffectRow { until_ms, next_ms, ..row }));
        }
        self.effects.commit();
        self.effects_changed += 1;
    }

    /// An effect becomes a dead letter, if its queue has not too many of them.
    fn give_up(&mut self, context: &Context, key: EffectKey, row: EffectRow) {
        self.effects.set(key, None);
        self.go_on(context, key.module, key.queue);
        let reason = match row.failure.as_str() {
            "" => "nobody has tried it in its time".to_owned(),
            why => format!("{} attempts have failed, the last one: {why}", row.attempts),
        };
        let payload = DeadEffect { key, payload: row.payload.clone(), lasts_ms: row.lasts_ms }.to_bytes();
        let has_room = self.dead_of(key.module, key.queue).len() < DEAD_OF_QUEUE_MAX
            && self.dead.len() < DEAD_LETTERS_MAX / 2
            && self.dead.derived().1 + payload.len() as u64 <= DEAD_BYTES_MAX;
        if has_room {
            let message = Message { module: key.module, saga: key.queue, payload };
            self.bury(context, DeadRow { from: 0, message, reason, waits: false, since_ms: context.now_ms });
            return;
        }
        let Some(module) = self.modules.iter_mut().find(|module| module.number() == key.module) else {
            return;
        };
        match module.dropped(context, key.queue, &row.payload) {
            Ok(output) => self.put_out(context, key.module, output),
            Err(fault) => {
                self.faults += 1;
                self.notice(
                    context,
                    key.module,
                    format!("an effect that was dropped: {fault}"),
                    DEAD_LETTERS_MAX,
                );
            }
        }
    }

    /// Has the first one of a queue tried next, if it waits for that.
    fn go_on(&mut self, context: &Context, module: u8, queue: u128) {
        if let Some(key) = self.first_of(module, queue)
            && let Some(row) = self.effects.get(&key).filter(|row| row.next_ms.is_none()).cloned()
        {
            let next_ms = Some(context.steady_ms);
            let until_ms = row.until_ms.max(context.steady_ms.saturating_add(TRIED_MS_MIN));
            self.effects.set(key, Some(EffectRow { next_ms, until_ms, open: false, ..row }));
        }
        self.effects.commit();
    }

    /// Has an effect among the dead letters tried anew, under its name: before all others of its queue that are younger.
    pub(super) fn revive(&mut self, context: &Context, dead: DeadEffect) -> Result<(), String> {
        let DeadEffect { key, payload, lasts_ms } = dead;
        let module = self.module(key.module).ok_or_else(|| super::no_module(key.module))?;
        let now = tidewall_domain::Now { log_ms: context.now_ms, steady_ms: context.steady_ms };
        if module.call(now, &payload).is_none() {
            return Err("nothing needs it any more: drop it".into());
        }
        let first = self.first_of(key.module, key.queue);
        let is_first = first.is_none_or(|first| key < first);
        // Whoever was the first waits: an attempt that is under way may end it all the same.
        if let Some(first) = first.filter(|_| is_first)
            && let Some(row) = self.effects.get(&first).cloned()
        {
            self.effects.set(first, Some(EffectRow { next_ms: None, ..row }));
        }
        let row = EffectRow {
            payload,
            lasts_ms,
            until_ms: context.steady_ms.saturating_add(lasts_ms),
            attempts: 0,
            next_ms: is_first.then_some(context.steady_ms),
            failure: String::new(),
            open: false,
        };
        self.effects.set(key, Some(row));
        self.effects.commit();
        self.effects_changed += 1;
        Ok(())
    }

    /// Effects that are due when a clock shows `stamp`, those first that are due longest: those that are wanted, by their names, how
    /// often they were tried and their bytes. `wanted` ends the search with `None`.
    pub fn effects_due(
        &self,
        stamp: Stamp,
        wanted: &mut dyn FnMut(&EffectKey, u32, usize) -> Option<bool>,
    ) -> Vec<DueEffect> {
        let now = self.now(stamp);
        let due = self.index_of_effects().due.iter().take_while(|(next, _)| *next <= now.steady_ms);
        let rows = due.filter_map(|(_, key)| Some((key, self.effects.get(key)?)));
        let open = rows.filter(|(_, row)| row.until_ms > now.steady_ms);
        let judged = open.map_while(|(key, row)| {
            wanted(key, row.attempts, row.payload.len()).map(|wanted| (wanted, key, row))
        });
        let taken = judged.filter(|(wanted, ..)| *wanted);
        let shown = taken.map(|(_, key, row)| {
            let call = self.module(key.module).and_then(|module| module.call(now, &row.payload));
            // What nobody needs any more is carried out by nobody: it ends as done.
            DueEffect { key: *key, attempts: row.attempts, call: call.unwrap_or_default() }
        });
        shown.collect()
    }

    /// How long, by a clock that shows `stamp`, until the next one that is wanted is due, milliseconds.
    pub fn next_effect_in_ms(&self, stamp: Stamp, wanted: &dyn Fn(&EffectKey, u32) -> bool) -> Option<u64> {
        let now_ms = self.now(stamp).steady_ms;
        let rows = self.index_of_effects().due.iter().filter_map(|(next, key)| {
            let row = self.effects.get(key)?;
            (row.until_ms > now_ms && wanted(key, row.attempts)).then_some(*next)
        });
        rows.map(|next| next.saturating_sub(now_ms)).next()
    }

    /// How a queue is when a clock shows `stamp`.
    pub fn queue(&self, module: u8, queue: u128, stamp: Stamp) -> QueueState {
        let index = self.index_of_effects();
        let first = self.first_of(module, queue).and_then(|key| self.effects.get(&key));
        let next_in_ms = first.and_then(|row| row.next_ms).unwrap_or_default();
        QueueState {
            waiting: index.queues.get(&(module, queue)).map_or(0, |index| index.queued.count),
            attempts: first.map_or(0, |row| row.attempts),
            failure: first.map(|row| row.failure.clone()).unwrap_or_default(),
            next_in_ms: next_in_ms.saturating_sub(self.now(stamp).steady_ms),
            dead: self.dead.derived().0.get(&(0, module, queue)).map_or(0, |keys| keys.len() as u64),
        }
    }

    /// Changes whenever effects do.
    pub fn effects_changed(&self) -> u64 {
        self.effects_changed
    }

    /// All effects, in order.
    pub fn effects(&self) -> impl Iterator<Item = (&EffectKey, &EffectRow)> {
        self.effects.iter()
    }

    /// How many effects there are.
    pub fn effects_count(&self) -> u64 {
        self.effects.len()
    }

    /// Steady time at which the first effect is given up, milliseconds.
    pub(super) fn effects_until_ms(&self) -> Option<u64> {
        self.index_of_effects().until.first().map(|(until, _)| *until)
    }
}
