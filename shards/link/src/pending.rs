//! The calls of a link that have no reply yet: a table of reused slots, so that adding and finding one costs
//! no hashing and no allocation. It never wakes anybody while the link's lock is held: whatever it takes
//! out is handed back to the caller.

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::LinkError;

/// Somebody who waits for a reply.
pub(crate) struct Waiter<R> {
    pub(crate) sender: oneshot::Sender<Result<R, LinkError>>,
    deadline: Instant,
    /// The call was handed to the transport.
    sent: bool,
}

impl<R> Waiter<R> {
    /// Ends the wait without a reply: `sent` or `unsent`, by whether the call may have arrived.
    pub(crate) fn fail(self, sent: LinkError, unsent: LinkError) {
        // The caller may have gone; then nobody needs to know.
        let _ = self.sender.send(Err(if self.sent { sent } else { unsent }));
    }
}

struct Slot<R> {
    /// Counts the uses of the slot, so that the reply to an earlier call is not taken for this one's.
    sequence: u32,
    waiter: Option<Waiter<R>>,
}

/// All calls of a link that have no reply yet.
pub(crate) struct Pending<R> {
    slots: Vec<Slot<R>>,
    free: Vec<u32>,
    limit: usize,
}

impl<R> Pending<R> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), limit: limit.min(u32::MAX as usize) }
    }

    /// Adds a waiter and returns the id of its call, never 0; `None` when the table is full.
    pub(crate) fn insert(
        &mut self,
        sender: oneshot::Sender<Result<R, LinkError>>,
        deadline: Instant,
    ) -> Option<u64> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.limit => {
                self.slots.push(Slot { sequence: 0, waiter: None });
                (self.slots.len() - 1) as u32
            }
            None => return None,
        };
        let slot = &mut self.slots[index as usize];
        slot.sequence = slot.sequence.wrapping_add(1).max(1);
        slot.waiter = Some(Waiter { sender, deadline, sent: false });
        Some((u64::from(slot.sequence) << 32) | u64::from(index))
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot<R>> {
        let slot = self.slots.get_mut((id & u64::from(u32::MAX)) as usize)?;
        (u64::from(slot.sequence) == id >> 32).then_some(slot)
    }

    /// Notes that the call is about to be written; `false` when nobody waits for it any more.
    pub(crate) fn mark_sent(&mut self, id: u64) -> bool {
        match self.slot(id).and_then(|slot| slot.waiter.as_mut()) {
            Some(waiter) => {
                waiter.sent = true;
                true
            }
            None => false,
        }
    }

    /// Takes the waiter of a call out; `None` when it has gone (a late reply).
    pub(crate) fn take(&mut self, id: u64) -> Option<Waiter<R>> {
        let waiter = self.slot(id)?.waiter.take()?;
        self.free.push((id & u64::from(u32::MAX)) as u32);
        Some(waiter)
    }

    /// Takes out all whose deadline has passed; also returns the earliest deadline of the others.
    pub(crate) fn expire(&mut self, now: Instant) -> (Vec<Waiter<R>>, Option<Instant>) {
        let mut expired = Vec::new();
        let mut earliest: Option<Instant> = None;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(deadline) = slot.waiter.as_ref().map(|waiter| waiter.deadline) else {
                continue;
            };
            if deadline <= now {
                expired.extend(slot.waiter.take());
                self.free.push(index as u32);
            } else {
                earliest = Some(earliest.map_or(deadline, |other| other.min(deadline)));
            }
        }
        (expired, earliest)
    }

    /// Takes everybody out.
    pub(crate) fn drain(&mut self) -> Vec<Waiter<R>> {
        let mut all = Vec::new();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if let Some(waiter) = slot.waiter.take() {
                all.push(waiter);
                self.free.push(index as u32);
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use super::*;

    fn add(pending: &mut Pending<u32>, deadline: Instant) -> Option<u64> {
        pending.insert(oneshot::channel().0, deadline)
    }

    #[test]
    fn a_reused_slot_ignores_the_reply_to_its_earlier_call() {
        let mut pending = Pending::new(1);
        let now = Instant::now();
        let first = add(&mut pending, now).unwrap();
        assert!(add(&mut pending, now).is_none(), "the table holds one");
        assert!(pending.take(first).is_some());
        let second = add(&mut pending, now).unwrap();
        assert_ne!(first, second);
        assert!(pending.take(first).is_none(), "a late reply finds nobody");
        assert!(pending.take(second).is_some());
        assert!(pending.take(second).is_none());
    }

    #[test]
    fn only_passed_deadlines_expire_and_the_next_is_known() {
        let mut pending = Pending::new(8);
        let now = Instant::now();
        let second = |n| now + Duration::from_secs(n);
        let early = add(&mut pending, second(1)).unwrap();
        let late = add(&mut pending, second(5)).unwrap();
        add(&mut pending, second(9)).unwrap();
        let (expired, next) = pending.expire(second(2));
        assert_eq!((expired.len(), next), (1, Some(second(5))));
        assert!(!pending.mark_sent(early), "an expired call must not be written");
        assert!(pending.mark_sent(late));
        assert_eq!(pending.drain().len(), 2);
        assert_eq!(pending.expire(second(99)).1, None);
    }
}
