//! Calls of one priority that wait: rows take turns, and within a row who came first is first. It never decides who may wait
//! or how many are let in: that is the room's. Pure, and no operation looks at all rows, but for the longest of few.

use std::collections::{BTreeMap, VecDeque};

use super::room::RowKey;

/// Turns of rows that have gone are swept when there are so many more of them than of rows.
const STALE_TURNS: usize = 64;

/// A call that waits.
pub(crate) struct Waiter<W> {
    /// Grows from waiter to waiter of a room.
    pub(crate) number: u64,
    pub(crate) weight: usize,
    pub(crate) handle: W,
}

/// Calls of a row.
struct RowQueue<W> {
    /// The turn that counts: a row that goes and comes again has a new one.
    turn: u64,
    waiters: VecDeque<Waiter<W>>,
}

/// Calls of one priority that wait.
pub(crate) struct Queue<W> {
    /// Rows that have calls here.
    rows: BTreeMap<RowKey, RowQueue<W>>,
    /// A turn for each of `rows`, the next one first, and turns of rows that have gone: nobody searches for them.
    turns: VecDeque<(RowKey, u64)>,
    calls: usize,
    weight: usize,
}

impl<W> Queue<W> {
    pub(crate) fn new() -> Self {
        Self { rows: BTreeMap::new(), turns: VecDeque::new(), calls: 0, weight: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.calls == 0
    }

    /// Calls in it.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// What they weigh.
    pub(crate) fn weight(&self) -> usize {
        self.weight
    }

    /// Rows that have calls in it.
    pub(crate) fn rows(&self) -> usize {
        self.rows.len()
    }

    /// Calls of a row.
    pub(crate) fn calls_of(&self, row: RowKey) -> usize {
        self.rows.get(&row).map_or(0, |row| row.waiters.len())
    }

    /// The row with most calls, and how many it has. Looks at all rows.
    pub(crate) fn longest(&self) -> Option<(usize, RowKey)> {
        self.rows.iter().map(|(key, row)| (row.waiters.len(), *key)).max()
    }

    pub(crate) fn push(&mut self, row: RowKey, waiter: Waiter<W>) {
        self.calls += 1;
        self.weight += waiter.weight;
        let turn = waiter.number;
        let entry = self.rows.entry(row).or_insert_with(|| {
            self.turns.push_back((row, turn));
            RowQueue { turn, waiters: VecDeque::new() }
        });
        entry.waiters.push_back(waiter);
    }

    /// The first waiter of the row whose turn it is, if `fits` says so of its weight; the turn passes on.
    pub(crate) fn next(&mut self, fits: impl Fn(usize) -> bool) -> Option<(RowKey, Waiter<W>)> {
        let (row, turn, first) = loop {
            let (row, turn) = *self.turns.front()?;
            let current = self.rows.get(&row).filter(|row| row.turn == turn);
            match current.and_then(|row| row.waiters.front()) {
                Some(first) => break (row, turn, first),
                None => self.turns.pop_front(),
            };
        };
        if !fits(first.weight) {
            return None;
        }
        // Its turn goes first: what `take` sweeps is stale, and the first turn afterwards is somebody else's.
        self.turns.pop_front();
        let waiter = self.take(row, VecDeque::pop_front)?;
        if self.rows.contains_key(&row) {
            self.turns.push_back((row, turn));
        }
        Some((row, waiter))
    }

    /// Takes the waiter with this number out of a row.
    pub(crate) fn withdraw(&mut self, row: RowKey, number: u64) -> Option<Waiter<W>> {
        self.take(row, |waiters| {
            let position = waiters.binary_search_by_key(&number, |waiter| waiter.number).ok()?;
            waiters.remove(position)
        })
    }

    /// Takes the waiter out of a row that came last.
    pub(crate) fn take_newest(&mut self, row: RowKey) -> Option<Waiter<W>> {
        self.take(row, VecDeque::pop_back)
    }

    fn take(
        &mut self,
        key: RowKey,
        pick: impl FnOnce(&mut VecDeque<Waiter<W>>) -> Option<Waiter<W>>,
    ) -> Option<Waiter<W>> {
        let row = self.rows.get_mut(&key)?;
        let taken = pick(&mut row.waiters)?;
        self.calls -= 1;
        self.weight -= taken.weight;
        if row.waiters.is_empty() {
            self.rows.remove(&key);
            if self.turns.len() > 2 * self.rows.len() + STALE_TURNS {
                let rows = &self.rows;
                self.turns.retain(|(key, turn)| rows.get(key).is_some_and(|row| row.turn == *turn));
            }
        }
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn waiter(number: u64) -> Waiter<u64> {
        Waiter { number, weight: 2, handle: number }
    }

    fn order(queue: &mut Queue<u64>) -> Vec<u64> {
        std::iter::from_fn(|| queue.next(|_| true).map(|(_, waiter)| waiter.handle)).collect()
    }

    #[test]
    fn a_row_that_goes_and_comes_again_has_one_turn() {
        let mut queue = Queue::new();
        for (row, number) in [(1, 0), (2, 1), (1, 2), (2, 3)] {
            queue.push(row, waiter(number));
        }
        assert_eq!(queue.withdraw(1, 0).map(|waiter| waiter.handle), Some(0));
        assert_eq!(queue.withdraw(1, 2).map(|waiter| waiter.handle), Some(2));
        assert!(queue.withdraw(1, 2).is_none());
        assert_eq!((queue.rows(), queue.calls(), queue.weight(), queue.calls_of(1)), (1, 2, 4, 0));
        for number in 4..7 {
            queue.push(1, waiter(number));
        }
        assert_eq!(queue.longest(), Some((3, 1)));
        assert_eq!(order(&mut queue), [1, 4, 3, 5, 6], "behind the other row, and once a round");
        assert_eq!((queue.rows(), queue.turns.len(), queue.weight()), (0, 0, 0));
    }

    /// Callers of many rows go away, and the next turn empties a row: its sweep takes no turn of those that are left.
    #[test]
    fn a_sweep_takes_no_live_turn() {
        for gone in 0..3 * STALE_TURNS as u64 {
            for live in 1..4 {
                let mut queue = Queue::new();
                for row in 0..live {
                    queue.push(row, waiter(row));
                }
                for number in 100..100 + gone {
                    queue.push(number, waiter(number));
                    assert!(queue.withdraw(number, number).is_some());
                }
                assert_eq!(order(&mut queue), (0..live).collect::<Vec<_>>(), "{gone} gone");
                assert!(queue.is_empty());
            }
        }
    }

    /// Readers of ever other rows who go away while nobody is let in: what is left is what waits.
    #[test]
    fn who_goes_away_leaves_nothing_behind_however_long_nobody_is_let_in() {
        let mut queue = Queue::new();
        queue.push(0, waiter(0));
        for number in 1..10_000 {
            queue.push(number, waiter(number));
            assert!(queue.withdraw(number, number).is_some());
            assert!(queue.turns.len() <= 2 + STALE_TURNS + 1, "{}", queue.turns.len());
        }
        assert_eq!((queue.rows(), queue.calls()), (1, 1));
        assert_eq!(order(&mut queue), [0]);
    }
}
