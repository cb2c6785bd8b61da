//! Who may go in: the calls of one region that are under way, the calls that wait, and whose turn is next.
//!
//! Up to the limit, calls go in at once. Beyond it they wait, up to a bound, and rows take turns, so that a flood on one
//! row queues behind itself only; a row that has little under way does not wait at all, but uses a reserve beside the
//! limit. When the bound is reached the row that waits most is refused first, and nobody waits behind more calls than it
//! has time for. Pure: no clock, no task, no lock; whoever waits is a `W` that comes back when it is let in or pushed out.

use std::collections::BTreeMap;

use super::queue::{Queue, Waiter};

/// What is let in first when a region is full: finishing what was started frees stock, browsing does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Confirm, release, cancel, and asking for a lost outcome.
    Finish,
    /// Hold, buy, create.
    Start,
    /// Reads.
    Browse,
}

impl Priority {
    /// In the order in which they are let in.
    const ALL: [Self; 3] = [Self::Finish, Self::Start, Self::Browse];

    /// This priority's part of a bound.
    pub(crate) fn share(self, bound: usize) -> usize {
        match self {
            Self::Finish => bound + bound / 8,
            Self::Start => bound,
            Self::Browse => bound - bound / 8,
        }
        .max(1)
    }
}

/// With more rows waiting than this, nobody is pushed out: there is no heaviest row worth looking for.
const PUSH_OUT_ROWS_MAX: usize = 64;

/// A row, by a hash of its name. Rows that collide share their turns, and nothing worse.
pub(crate) type RowKey = u64;
/// What concerns no single row.
pub(crate) const NO_ROW: RowKey = 0;

/// A place among the calls under way, to be given back with [`Room::leave`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) row: RowKey,
    pub(crate) weight: usize,
    /// Beside the limit.
    reserve: bool,
}

/// A place in the queue, for [`Room::withdraw`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QueuePlace {
    priority: Priority,
    row: RowKey,
    number: u64,
}

/// What became of an arrival.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<W> {
    /// It is under way.
    In(Place),
    /// It waits; if there was no room for it, `pushed_out` has to go instead.
    Waits { queued: QueuePlace, pushed_out: Option<W> },
    /// There is no room for it.
    Full,
}

#[derive(Debug, Default)]
struct RowCalls {
    under_way: usize,
    waiting: usize,
}

/// The calls of one region.
pub(crate) struct Room<W> {
    limit: usize,
    /// Calls that may be here at once, waiting ones included.
    calls_max: usize,
    /// Rows that have calls here: never more than calls.
    rows: BTreeMap<RowKey, RowCalls>,
    /// By [`Priority`].
    queues: [Queue<W>; 3],
    /// Under way within the limit.
    under_way: usize,
    /// Under way beside it.
    reserved: usize,
    waiting: usize,
    next_number: u64,
}

impl<W> Room<W> {
    /// An empty room for `calls_max` calls.
    pub(crate) fn new(limit: usize, calls_max: usize) -> Self {
        Self {
            limit: limit.max(1),
            calls_max: calls_max.max(1),
            rows: BTreeMap::new(),
            queues: Priority::ALL.map(|_| Queue::new()),
            under_way: 0,
            reserved: 0,
            waiting: 0,
            next_number: 0,
        }
    }

    /// Calls under way, by weight.
    pub(crate) fn under_way(&self) -> usize {
        self.under_way + self.reserved
    }

    /// Calls that wait, by weight.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// Changes how many calls may be under way; who waits gets in with the next call of [`Room::next`].
    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.max(1);
    }

    /// Takes a call that weighs as much as `weight` single ones; `waiter` makes the one who waits, if it must. It waits
    /// only if at most about `ahead_max` calls, by weight, are let in before it.
    pub(crate) fn arrive(
        &mut self,
        priority: Priority,
        row: RowKey,
        weight: usize,
        ahead_max: usize,
        waiter: impl FnOnce() -> W,
    ) -> Arrival<W> {
        // A call heavier than the bound still gets in when it is alone.
        let weight = weight.clamp(1, priority.share(self.limit));
        let (own_under_way, own_waiting) =
            self.rows.get(&row).map_or((0, 0), |row| (row.under_way, row.waiting));
        let nobody_before = self.queues[..=priority as usize].iter().all(Queue::is_empty);
        if nobody_before && self.under_way + weight <= priority.share(self.limit) {
            return Arrival::In(self.let_in(row, weight, false));
        }
        let reserve = priority.share(self.limit) / 2;
        let part = (reserve / self.rows.len().max(1)).max(1);
        if own_waiting == 0 && own_under_way + weight <= part && self.reserved + weight <= reserve {
            return Arrival::In(self.let_in(row, weight, true));
        }
        if self.ahead(priority, row) > ahead_max {
            return Arrival::Full;
        }
        let mut pushed_out = None;
        if self.under_way() + self.waiting + weight > priority.share(self.calls_max) {
            pushed_out = self.push_out(priority, own_waiting);
            if pushed_out.is_none() {
                return Arrival::Full;
            }
        }
        let number = self.next_number;
        self.next_number += 1;
        self.waiting += weight;
        self.rows.entry(row).or_default().waiting += weight;
        self.queues[priority as usize].push(row, Waiter { number, weight, handle: waiter() });
        Arrival::Waits { queued: QueuePlace { priority, row, number }, pushed_out }
    }

    /// About how many calls, by weight, are let in before a new one of a row: all that wait in its priority and those before
    /// it, or, as rows take turns, as many of each row as of its own.
    fn ahead(&self, priority: Priority, row: RowKey) -> usize {
        let queues = &self.queues[..=priority as usize];
        let sum = |of: &dyn Fn(&Queue<W>) -> usize| queues.iter().map(of).sum::<usize>();
        let (weight, calls) = (sum(&Queue::weight), sum(&Queue::calls));
        let turns = sum(&Queue::rows).saturating_mul(sum(&|queue| queue.calls_of(row)) + 1);
        weight.min(turns.saturating_mul(weight) / calls.max(1))
    }

    /// Takes all who wait out, priority by priority.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        let mut all = Vec::with_capacity(self.queues.iter().map(Queue::calls).sum());
        for priority in Priority::ALL {
            while let Some((row, waiter)) = self.queues[priority as usize].next(|_| true) {
                self.no_longer_waits(row, waiter.weight);
                all.push(waiter.handle);
            }
        }
        all
    }

    /// A call has ended.
    pub(crate) fn leave(&mut self, place: Place) {
        if place.reserve {
            self.reserved -= place.weight;
        } else {
            self.under_way -= place.weight;
        }
        if let Some(row) = self.rows.get_mut(&place.row) {
            row.under_way -= place.weight;
        }
        self.forget_if_empty(place.row);
    }

    /// Lets in the next one who waits, if there is room.
    pub(crate) fn next(&mut self) -> Option<(Place, W)> {
        for priority in Priority::ALL {
            let (bound, under_way) = (priority.share(self.limit), self.under_way);
            let queue = &mut self.queues[priority as usize];
            if queue.is_empty() {
                continue;
            }
            // Who is first does not fit: nobody goes past, or a heavy call would never get in.
            let (row, waiter) = queue.next(|weight| under_way + weight <= bound || under_way == 0)?;
            self.no_longer_waits(row, waiter.weight);
            return Some((self.let_in(row, waiter.weight, false), waiter.handle));
        }
        None
    }

    /// Somebody no longer wants to wait; `None` if it is not waiting any more.
    pub(crate) fn withdraw(&mut self, queued: QueuePlace) -> Option<W> {
        let waiter = self.queues[queued.priority as usize].withdraw(queued.row, queued.number)?;
        self.no_longer_waits(queued.row, waiter.weight);
        Some(waiter.handle)
    }

    fn let_in(&mut self, row: RowKey, weight: usize, reserve: bool) -> Place {
        if reserve {
            self.reserved += weight;
        } else {
            self.under_way += weight;
        }
        self.rows.entry(row).or_default().under_way += weight;
        Place { row, weight, reserve }
    }

    fn no_longer_waits(&mut self, row: RowKey, weight: usize) {
        self.waiting -= weight;
        if let Some(entry) = self.rows.get_mut(&row) {
            entry.waiting -= weight;
        }
        self.forget_if_empty(row);
    }

    fn forget_if_empty(&mut self, row: RowKey) {
        if self.rows.get(&row).is_some_and(|row| row.under_way + row.waiting == 0) {
            self.rows.remove(&row);
        }
    }

    /// Makes room for a call of a row that has `own_waiting`: the newest call of the row that waits most goes, unless
    /// the new one would be the heaviest itself.
    fn push_out(&mut self, priority: Priority, own_waiting: usize) -> Option<W> {
        let queue = &mut self.queues[priority as usize];
        // A row with an even share cannot be far from the heaviest; only lighter ones are worth a search.
        if queue.rows() > PUSH_OUT_ROWS_MAX || own_waiting * queue.rows() >= self.waiting {
            return None;
        }
        let (count, heaviest) = queue.longest()?;
        if count <= own_waiting + 1 {
            return None;
        }
        let waiter = queue.take_newest(heaviest)?;
        self.no_longer_waits(heaviest, waiter.weight);
        Some(waiter.handle)
    }
}

#[cfg(test)]
mod tests;
