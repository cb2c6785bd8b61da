//! How far the rows of a replica have come, so that nobody is shown less than was seen elsewhere.
//!
//! There are two answers. Whoever looks at rows may see a part of the entry that is being applied: it counts as seen. Whoever
//! asks for an entry gets it when it has ended. **Never:** the same answer for both, or less would be shown than was seen.

use parking_lot::Mutex;
use tidewall_machine::{GroupTime, Machine, Seen, Stamp};
use tidewall_mutant::{Mutant, active};
use tokio::sync::watch;

/// How far the rows of a replica have come.
#[derive(Debug)]
pub struct Come {
    /// With the entry that is being applied, and the group's time then.
    begun: Mutex<(Seen, GroupTime)>,
    /// To the end of an entry.
    ended: watch::Sender<Seen>,
}

fn begun(machine: &Machine) -> (Seen, GroupTime) {
    let (incarnation, index) = (machine.incarnation(), machine.applied_index());
    (Seen { incarnation, index, steady_ms: 0 }, machine.time())
}

fn ended(machine: &Machine) -> Seen {
    Seen { incarnation: machine.incarnation(), index: machine.settled().0, steady_ms: 0 }
}

impl Come {
    /// As far as rows have come between two entries.
    pub fn new(machine: &Machine) -> Self {
        Self { begun: Mutex::new(begun(machine)), ended: watch::Sender::new(ended(machine)) }
    }

    /// How far whoever has looked at the rows before this call, when the clock showed `stamp`, can have seen them. Waits for nobody.
    pub fn seen(&self, stamp: Stamp) -> Seen {
        let (seen, time) = *self.begun.lock();
        Seen { steady_ms: time.at(stamp).steady_ms, ..seen }
    }

    /// How far the rows have come, to the end of an entry. The time is theirs who look.
    pub fn whole(&self) -> Seen {
        *self.ended.borrow()
    }

    /// Whether the rows show no less than what was seen.
    pub fn has(&self, seen: Seen) -> bool {
        active(Mutant::StandbyReadsBehind) || seen.is_within(self.whole())
    }

    /// Waits until the rows show no less than what was seen.
    pub async fn wait_for(&self, seen: Seen) {
        let mut ended = self.ended.subscribe();
        // Whoever waits holds the sender.
        let _ = ended.wait_for(|ended| seen.is_within(*ended)).await;
    }

    /// Something of an entry is in the rows. Called before anybody can see it.
    pub(crate) fn begin(&self, machine: &Machine) {
        *self.begun.lock() = begun(machine);
    }

    /// An entry has ended. Called before anybody can see the next one; the result is for [`Come::tell`], when the rows are free.
    #[must_use]
    pub(crate) fn end(&self, machine: &Machine) -> Seen {
        self.begin(machine);
        ended(machine)
    }

    /// Tells those who wait.
    pub(crate) fn tell(&self, ended: Seen) {
        self.ended.send_replace(ended);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::time::Duration;

    use tidewall_machine::{Entry, Position};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_is_half_applied_was_seen_and_is_not_there() {
        let mut machine = Machine::new();
        let first = Position { term: 1, node: 1, index: 0 };
        machine.apply_other(first, Some(vec![1])).unwrap();
        let come = Arc::new(Come::new(&machine));
        let now = || come.seen(Stamp::confirmed(1_000));
        let seen = |index| Seen { index, ..now() };
        assert!(come.has(now()) && now().index == 0 && !come.has(seen(1)));
        let payload = Entry { stamp: Stamp::confirmed(1_000), commands: Vec::new() }.encode();
        machine.begin(Position { index: 1, ..first }, &payload).unwrap();
        come.begin(&machine);
        assert_eq!((now().index, now().steady_ms), (1, 1_000), "whoever looks now may see a part of it");
        assert!(!come.has(seen(1)), "and nobody else is shown that part as the whole");
        assert!(tokio::time::timeout(Duration::from_secs(1), come.wait_for(seen(1))).await.is_err());
        let waits = tokio::spawn({
            let (come, seen) = (Arc::clone(&come), seen(1));
            async move { come.wait_for(seen).await }
        });
        tokio::task::yield_now().await;
        machine.end();
        come.tell(come.end(&machine));
        waits.await.unwrap();
        assert!(come.has(seen(1)));
        // What was seen of a later incarnation is not here, whatever its index; of an earlier one, everything is.
        let here = now().incarnation;
        assert!(!come.has(Seen { incarnation: here + 1, ..seen(0) }));
        assert!(here == 0 || come.has(Seen { incarnation: here - 1, ..seen(9) }));
    }
}
