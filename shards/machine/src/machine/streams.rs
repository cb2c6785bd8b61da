//! Messages between groups: into the outbox with the rows that they follow from, out of it when the other group has them, and into the
//! rows of the receiver exactly once and in order.
//!
//! A message cannot be refused. One that would break an invariant becomes a dead letter, and those of its saga behind it wait; all others
//! go on. Whoever went back to an earlier state has a new incarnation: then both groups of a pair say again what they have, module by
//! module. **Never here:** what a message says.

use tidewall_domain::Context;
use tidewall_domain::outbox::{GroupNo, Outbox, Outgoing, Room, SAGA_MESSAGES_MAX};
use tidewall_domain::table::Table;
use tidewall_mutant::{Mutant, active};

use super::{Machine, no_module};
use crate::SENDS_MESSAGES;
use crate::effects::DeadEffect;
use crate::entry::Delivery;
use crate::streams::{DeadKey, DeadRow, Message, StreamRow};

/// Messages to one group that may wait for being acknowledged: no saga begins that could lead to more.
pub const OUTBOX_MAX: u64 = 65_536;
/// Dead letters of a group: when there are as many, streams stand still until somebody has looked at some.
pub const DEAD_LETTERS_MAX: u64 = 10_000;
/// Messages that are let go at a time.
const ACKNOWLEDGED_MAX: u64 = 4_096;
/// Messages of a delivery.
pub const DELIVERY_MESSAGES_MAX: usize = 256;
/// About the bytes of a delivery, beyond its first message.
pub const DELIVERY_BYTES_MAX: usize = 256 << 10;

/// Whether there is room for one more saga.
pub(super) struct StreamRoom<'a> {
    pub streams: &'a Table<StreamRow>,
    pub dead: &'a Table<DeadRow>,
}

impl Room for StreamRoom<'_> {
    fn admits(&self, peer: GroupNo) -> bool {
        let fits =
            |row: &StreamRow| row.queued() + (row.open + 1).saturating_mul(SAGA_MESSAGES_MAX) <= OUTBOX_MAX;
        // Who takes in no answers must ask for none.
        self.dead.len() < DEAD_LETTERS_MAX && self.streams.get(&peer).is_none_or(fits)
    }
}

impl Machine {
    /// How this group and the others stand to which it has told something, or they to it.
    pub fn streams(&self) -> impl Iterator<Item = (GroupNo, &StreamRow)> {
        self.streams.iter().map(|(group, row)| (*group, row))
    }

    /// How this group and another one stand.
    pub fn stream(&self, group: GroupNo) -> StreamRow {
        self.streams.get(&group).cloned().unwrap_or_default()
    }

    /// What is to be delivered to another group from message `position` on; 0 for the first of the pair. `from` is this group's number.
    pub fn delivery(&self, from: GroupNo, to: GroupNo, position: u64) -> Delivery {
        let row = self.stream(to);
        let first = position.clamp(row.first, row.next);
        let mut chain = row.first_chain;
        let (mut messages, mut bytes) = (Vec::new(), 0);
        let rows = self.outbox.range_from(&(to, row.first)).take_while(|((group, _), _)| *group == to);
        for ((_, number), message) in rows {
            if *number < first {
                chain = message.chain(chain);
                continue;
            }
            bytes += message.bytes();
            if messages.len() == DELIVERY_MESSAGES_MAX || (bytes > DELIVERY_BYTES_MAX && !messages.is_empty())
            {
                break;
            }
            messages.push(message.clone());
        }
        // Before this incarnation has noted the pair, nothing that the row says of it is true.
        let known = row.own == self.incarnation();
        Delivery {
            from,
            from_incarnation: self.incarnation(),
            to_incarnation: if known { row.peer } else { 0 },
            origin: row.origin,
            origin_chain: row.origin_chain,
            first,
            chain,
            received: if known { row.received } else { 0 },
            messages,
        }
    }

    /// Dead letters from `start` on, in order.
    pub fn dead_letters(&self, start: &DeadKey) -> impl Iterator<Item = (&DeadKey, &DeadRow)> {
        self.dead.range_from(start)
    }

    /// Messages that are not acknowledged, and sagas that have not ended, with all groups.
    pub fn under_way(&self) -> (u64, u64) {
        self.streams().fold((0, 0), |(messages, sagas), (_, row)| (messages + row.queued(), sagas + row.open))
    }

    /// Number of dead letters.
    pub fn dead_letters_count(&self) -> u64 {
        self.dead.len()
    }

    /// Whether anything was sent since this was asked last.
    pub fn take_sent(&mut self) -> bool {
        std::mem::take(&mut self.sent)
    }

    /// Takes what a change of a module's rows sends into the outbox.
    pub(super) fn transmit(&mut self, context: &Context, module: u8, outbox: Outbox) {
        if outbox.is_empty() {
            return;
        }
        let Outbox { begun, ended, messages, notices, effects, ended_queues } = outbox;
        for notice in notices {
            self.notice(context, module, notice, DEAD_LETTERS_MAX / 2);
        }
        for peer in begun {
            let row = self.stream(peer);
            self.streams.set(peer, Some(StreamRow { open: row.open + 1, ..row }));
        }
        for peer in ended {
            let row = self.stream(peer);
            self.streams.set(peer, Some(StreamRow { open: row.open.saturating_sub(1), ..row }));
        }
        ended_queues.into_iter().for_each(|queue| self.end_queue(module, queue));
        if !effects.is_empty() {
            self.keep_effects(context, module, effects);
        }
        self.sent |= !messages.is_empty();
        for Outgoing { to, saga, payload } in messages {
            let row = self.stream(to);
            self.outbox.set((to, row.next), Some(Message { module, saga, payload }));
            self.streams.set(to, Some(StreamRow { next: row.next + 1, ..row }));
        }
        self.streams.commit();
        self.outbox.commit();
    }

    /// Notes the incarnation of another group. A pair that is new begins its streams anew, and has the modules say again what they
    /// have.
    pub(super) fn meet(&mut self, group: GroupNo, peer: u64) {
        let (row, own) = (self.stream(group), self.incarnation());
        // What an earlier life of these rows knew of the other group may be of another cluster.
        if row.own == own && peer <= row.peer {
            return;
        }
        let first = self.module_after(0).map(|number| (number, Vec::new()));
        let row = StreamRow {
            peer,
            own,
            met: false,
            origin: row.first,
            origin_chain: row.first_chain,
            received: 0,
            // Who never heard of each other have nothing to say again.
            reconcile: if row.peer == 0 { None } else { first },
            ..row
        };
        self.streams.set(group, Some(row));
        self.streams.commit();
        self.sent = true;
    }

    /// Lets the messages go that another group has, if this is still the pair of which it says so.
    pub(super) fn acknowledge(&mut self, group: GroupNo, pair: (u64, u64), next: u64) {
        let mut row = self.stream(group);
        if (row.peer, row.own) != pair || next > row.next {
            return;
        }
        row.met = true;
        let next = if active(Mutant::OutboxTrimmedTooEarly) { row.next } else { next };
        let next = next.min(row.first + ACKNOWLEDGED_MAX);
        while row.first < next {
            if let Some(message) = self.outbox.get(&(group, row.first)) {
                row.first_chain = message.chain(row.first_chain);
            }
            self.outbox.set((group, row.first), None);
            row.first += 1;
        }
        self.streams.set(group, Some(row));
        self.streams.commit();
        self.outbox.commit();
    }

    /// Takes in what another group has told: each message once, in order.
    pub(super) fn receive(&mut self, delivery: &Delivery, context: &Context) {
        let (from, own) = (delivery.from, self.incarnation());
        if delivery.to_incarnation != own {
            return;
        }
        self.meet(from, delivery.from_incarnation);
        let pair = (delivery.from_incarnation, own);
        let row = self.stream(from);
        if (row.peer, row.own) != pair {
            return;
        }
        if delivery.received > 0 {
            self.acknowledge(from, pair, delivery.received);
        }
        let mut row = self.stream(from);
        // The other group has noted the pair, or it could not have named it.
        row.met = true;
        if row.received == 0 {
            (row.received, row.received_chain) = (delivery.origin, delivery.origin_chain);
        }
        self.streams.set(from, Some(row.clone()));
        self.streams.commit();
        let Some(known) = row.received.checked_sub(delivery.first).map(|known| known as usize) else {
            return;
        };
        let Some(new) = delivery.messages.get(known..) else { return };
        if !delivery.follows(row.received, row.received_chain) {
            // Neither side may go on as if nothing were wrong.
            self.faults += 1;
            return;
        }
        for message in new {
            if self.dead.len() >= DEAD_LETTERS_MAX {
                return;
            }
            self.take_in(context, from, message);
            if active(Mutant::MessageAppliedTwice) {
                self.take_in(context, from, message);
            }
        }
    }

    /// Takes in the next message, or sets it aside.
    fn take_in(&mut self, context: &Context, from: GroupNo, message: &Message) {
        let row = self.stream(from);
        let received = StreamRow {
            received: row.received + 1,
            received_chain: message.chain(row.received_chain),
            ..row
        };
        self.streams.set(from, Some(received));
        self.streams.commit();
        let saga = (from, message.module, message.saga);
        let before = self.dead.derived().0.get(&saga).and_then(|keys| keys.first().copied());
        let (reason, waits) = match before.filter(|_| !active(Mutant::DeadLetterPassed)) {
            Some(before) => (format!("it waits behind {}", dead_letter_id(&before)), true),
            None => match self.hand_over(context, from, message) {
                Ok(()) => return,
                Err(why) => {
                    self.faults += 1;
                    (why, false)
                }
            },
        };
        self.bury(
            context,
            DeadRow { from, message: message.clone(), reason, waits, since_ms: context.now_ms },
        );
    }

    fn hand_over(&mut self, context: &Context, from: GroupNo, message: &Message) -> Result<(), String> {
        let module = self.modules.iter_mut().find(|module| module.number() == message.module);
        let module = module.ok_or_else(|| no_module(message.module))?;
        let output = module.receive(context, from, &message.payload).map_err(|fault| fault.to_string())?;
        self.put_out(context, message.module, output);
        Ok(())
    }

    pub(super) fn bury(&mut self, context: &Context, row: DeadRow) {
        let (incarnation, index) = (context.incarnation, context.index);
        let number = if self.buried.0 == (incarnation, index) { self.buried.1 } else { 0 };
        self.buried = ((incarnation, index), number + 1);
        self.dead.set((incarnation, index, number), Some(row));
        self.dead.commit();
    }

    /// Notes something that somebody should know, such as a timer that its module has set aside, unless there are `most` dead letters.
    pub(super) fn notice(&mut self, context: &Context, module: u8, reason: String, most: u64) {
        if context.apply_version < SENDS_MESSAGES {
            return;
        }
        if self.dead.len() >= most {
            // It is counted, where nobody can look at it.
            self.faults += 1;
            return;
        }
        let message = Message { module, saga: 0, payload: Vec::new() };
        self.bury(context, DeadRow { from: 0, message, reason, waits: false, since_ms: context.now_ms });
    }

    /// Carries a dead letter out once more, or drops it; then those go on that waited behind it.
    pub(super) fn resolve(&mut self, context: &Context, key: &DeadKey, drop: bool) -> Result<(), String> {
        let id = dead_letter_id(key);
        let row = self.dead.get(key).cloned().ok_or_else(|| format!("there is no dead letter {id}"))?;
        if row.waits {
            return Err(format!("dead letter {id} cannot go first: {}", row.reason));
        }
        if !drop {
            if row.is_notice() {
                return Err(format!("dead letter {id} is no message that could be carried out: drop it"));
            }
            let done = match row.is_effect() {
                true => DeadEffect::from_bytes(&row.message.payload)
                    .map_err(|why| why.to_string())
                    .and_then(|dead| self.revive(context, dead)),
                false => self.hand_over(context, row.from, &row.message),
            };
            done.map_err(|why| format!("dead letter {id} cannot be carried out: {why}"))?;
        }
        if !active(Mutant::DroppedLetterStays) {
            self.dead.set(*key, None);
        }
        let Some(saga) = row.saga().filter(|_| !row.is_effect()) else {
            self.dead.commit();
            return Ok(());
        };
        let waiting: Vec<DeadKey> =
            self.dead.derived().0.get(&saga).map(|keys| keys.iter().copied().collect()).unwrap_or_default();
        for key in waiting {
            let Some(row) = self.dead.get(&key).cloned() else { continue };
            match self.hand_over(context, row.from, &row.message) {
                Ok(()) => self.dead.set(key, None),
                Err(why) => {
                    self.faults += 1;
                    self.dead.set(key, Some(DeadRow { reason: why, waits: false, ..row }));
                    break;
                }
            }
        }
        self.dead.commit();
        Ok(())
    }

    /// One step of saying again what a group may have lost; one group at a time.
    pub(super) fn reconcile(&mut self, context: &Context) {
        let Some((group, mut row)) = self.unreconciled().map(|(group, row)| (group, row.clone())) else {
            return;
        };
        let Some((number, after)) = row.reconcile.take() else { return };
        let mut next = self.module_after(number).map(|number| (number, Vec::new()));
        if let Some(module) = self.modules.iter_mut().find(|module| module.number() == number) {
            let step = module.reconcile(context, group, &after);
            self.put_out(context, number, step.output);
            if let Some(fault) = step.fault {
                self.faults += 1;
                self.notice(context, number, fault, DEAD_LETTERS_MAX);
            }
            if let Some(after) = step.next {
                next = Some((number, after));
            }
        }
        let row = StreamRow { reconcile: next, ..self.stream(group) };
        self.streams.set(group, Some(row));
        self.streams.commit();
    }

    /// The next module that all members have.
    fn module_after(&self, number: u8) -> Option<u8> {
        let version = self.apply_version();
        let had = self.modules.iter().filter(|module| module.module_since() <= version);
        had.map(|module| module.number()).find(|next| *next > number)
    }

    /// The first group to which something is to be said again, if there is room.
    pub(super) fn unreconciled(&self) -> Option<(GroupNo, &StreamRow)> {
        self.streams().find(|(_, row)| row.reconcile.is_some() && row.queued() < OUTBOX_MAX / 2)
    }
}

/// The id of a dead letter, for people.
pub fn dead_letter_id((incarnation, index, number): &DeadKey) -> String {
    format!("{incarnation}-{index}-{number}")
}

/// A dead letter by its id.
pub fn parse_dead_letter_id(id: &str) -> Option<DeadKey> {
    let mut parts = id.split('-');
    let key = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    (parts.next().is_none() && dead_letter_id(&key) == id).then_some(key)
}
