//! One region's admission as a whole: its room, its limit, the order of return, and the windows that are measured.
//! Pure: no clock, no task, no lock; times are since the same, arbitrary beginning.

use std::time::Duration;

use super::limit::{Limit, LimitOptions, Window};
use super::pace::{Pace, RETURN_MAX, RETURN_STANDING_MAX};
use super::room::{Arrival, Place, Priority, QueuePlace, Room, RowKey};

/// The limit is looked at once in so long a time.
const WINDOW: Duration = Duration::from_millis(100);
/// Nobody waits longer for its turn, whatever its deadline.
const WAIT_MAX: Duration = Duration::from_secs(8);
/// When calls have waited without a break for so long, it is no crowd that will be served soon: more come than the region can
/// serve. To wait long then gains nobody anything: the same number is served, each of them late.
const STANDS_AFTER: Duration = Duration::from_secs(10);
/// Nobody waits longer behind a queue that stands.
const STANDING_WAIT: Duration = Duration::from_millis(300);
/// Part of the time up to its deadline that a call may wait: who is let in later could not hear the answer any more.
const WAIT_PART: f64 = 0.9;
/// Part of that time after which it must expect its turn when it comes: estimates err.
const EXPECTED_PART: f64 = 0.9;

/// How long a call may wait for its turn that must be answered within `patience`.
pub(crate) fn longest_wait(patience: Duration) -> Duration {
    patience.mul_f64(WAIT_PART).min(WAIT_MAX)
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Decided and written to the log after so long: only such a call tells how fast the region is.
    Decided(Duration),
    /// Answered in a shorter way, or a longer one: a read, a quick no, a batch.
    Answered,
    /// The region was not asked, or did not answer.
    Unanswered,
}

/// Admission of one region. `W` is whoever waits.
pub(crate) struct Gate<W> {
    room: Room<W>,
    limit: Limit,
    pace: Pace,
    window: Window,
    window_began: Duration,
    /// Calls that ended in this window.
    ended: u64,
    /// Calls under way when each of them ended, added up.
    calls_sum: u64,
    /// Calls that were answered in this window, by weight, and whether any waited when it began.
    completed: u64,
    waited: bool,
    /// Since when calls have waited without a break, as far as windows tell, and whether that is long.
    waits_since: Option<Duration>,
    stands: bool,
    refused: u64,
}

/// What can be seen of a region's admission.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct GateState {
    /// Calls that may be under way.
    pub(crate) limit: usize,
    /// Calls under way, by weight.
    pub(crate) in_flight: usize,
    /// Calls that wait, by weight.
    pub(crate) waiting: usize,
    /// Refusals so far.
    pub(crate) refused: u64,
    /// Latency without load.
    pub(crate) no_load: Option<Duration>,
}

impl<W> Gate<W> {
    /// A gate for at most `calls_max` calls, waiting ones included.
    pub(crate) fn new(options: LimitOptions, calls_max: usize) -> Self {
        let calls_max = calls_max.max(1);
        let (floor, ceiling) = (options.floor.min(calls_max), options.ceiling.min(calls_max));
        let limit = Limit::new(LimitOptions { floor, ceiling, ..options });
        Self {
            room: Room::new(limit.get(), calls_max),
            limit,
            pace: Pace::new(),
            window: Window::default(),
            window_began: Duration::ZERO,
            ended: 0,
            calls_sum: 0,
            completed: 0,
            waited: false,
            waits_since: None,
            stands: false,
            refused: 0,
        }
    }

    /// A call comes that must be answered within `patience`; see [`Room::arrive`]. Who cannot expect its turn early enough
    /// is refused at once, and can still make use of the time; so is who would make this region have more than
    /// `waiting_max` calls waiting.
    pub(crate) fn arrive(
        &mut self,
        priority: Priority,
        row: RowKey,
        weight: usize,
        patience: Duration,
        waiting_max: usize,
        waiter: impl FnOnce() -> W,
    ) -> Arrival<W> {
        let expected = longest_wait(patience).mul_f64(EXPECTED_PART);
        let ahead_max = match (self.room.waiting() < waiting_max, self.stands) {
            (true, false) => self.pace.completed_in(expected),
            (true, true) => self.pace.completed_in(expected.min(STANDING_WAIT)),
            (false, _) => 0,
        };
        let arrival = self.room.arrive(priority, row, weight, ahead_max, waiter);
        self.window.peak = self.window.peak.max(self.room.under_way());
        arrival
    }

    /// A call has ended; says who goes in now. `calm`: hardly anything is under way in any region.
    pub(crate) fn end(&mut self, now: Duration, place: Place, end: End, calm: bool) -> Vec<(Place, W)> {
        self.ended += 1;
        self.calls_sum += self.room.under_way() as u64;
        if end != End::Unanswered {
            self.completed += place.weight as u64;
        }
        if let End::Decided(latency) = end {
            self.window.samples += 1;
            self.window.total += latency;
        }
        self.room.leave(place);
        if now.saturating_sub(self.window_began) >= WINDOW {
            self.close_window(now, calm);
        }
        let admitted = std::iter::from_fn(|| self.room.next()).collect();
        self.note_empty();
        admitted
    }

    fn close_window(&mut self, now: Duration, calm: bool) {
        // Only while calls wait is what completes all that the region can do.
        let waits = self.room.waiting() > 0;
        if waits {
            let since = *self.waits_since.get_or_insert(now);
            self.stands = now.saturating_sub(since) >= STANDS_AFTER;
        }
        if self.waited && waits {
            self.pace.measured(self.completed, now.saturating_sub(self.window_began));
        }
        let mean_calls = self.calls_sum as f64 / self.ended.max(1) as f64;
        self.limit.update(&Window { mean_calls, calm, ..self.window });
        self.room.set_limit(self.limit.get());
        self.window = Window { peak: self.room.under_way(), ..Window::default() };
        (self.waited, self.completed, self.window_began) = (waits, 0, now);
        (self.ended, self.calls_sum) = (0, 0);
    }

    /// A queue that has gone stands no more, and the next one is a new one.
    fn note_empty(&mut self) {
        if self.room.waiting() == 0 {
            (self.waits_since, self.stands) = (None, false);
        }
    }

    /// All who wait must go.
    pub(crate) fn drain(&mut self) -> Vec<W> {
        let gone = self.room.drain();
        self.note_empty();
        gone
    }

    /// Somebody no longer wants to wait.
    pub(crate) fn withdraw(&mut self, queued: QueuePlace) -> Option<W> {
        let gone = self.room.withdraw(queued);
        self.note_empty();
        gone
    }

    /// Counts a refusal and says when to come back; `jitter` is uniform in [0, 1).
    pub(crate) fn refuse(&mut self, now: Duration, jitter: f64) -> Duration {
        self.refused += 1;
        let longest = if self.stands { RETURN_STANDING_MAX } else { RETURN_MAX };
        self.pace.next_return(now, longest, jitter)
    }

    /// What can be seen from outside.
    pub(crate) fn state(&self) -> GateState {
        GateState {
            limit: self.limit.get(),
            in_flight: self.room.under_way(),
            waiting: self.room.waiting(),
            refused: self.refused,
            no_load: self.limit.no_load(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Where a queue ends in any way, the next one begins anew.
    #[test]
    fn only_a_queue_without_a_break_stands() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let at = Duration::from_secs;
        for withdrawn in [false, true] {
            let mut gate = Gate::new(LimitOptions { floor: 1, ceiling: 1, ..LimitOptions::default() }, 100);
            let arrive =
                |gate: &mut Gate<()>| gate.arrive(Priority::Start, 1, 1, PATIENCE, usize::MAX, || ());
            let Arrival::In(mut place) = arrive(&mut gate) else { panic!("there is room") };
            let mut last = None;
            for _ in 0..30 {
                let Arrival::Waits { queued, .. } = arrive(&mut gate) else { panic!("the limit is one") };
                last = Some(queued);
            }
            for second in 1..30 {
                let admitted = gate.end(at(second), place, End::Decided(at(1)), false);
                place = admitted.first().expect("somebody waits").0;
                assert_eq!(gate.stands, second > 10, "at {second} s");
            }
            if withdrawn {
                gate.withdraw(last.expect("one is left"));
            } else {
                place = gate.end(at(30), place, End::Answered, false).first().expect("the last one").0;
            }
            assert!(!gate.stands && gate.state().waiting == 0);
            let Arrival::Waits { .. } = arrive(&mut gate) else { panic!("the limit is one") };
            gate.end(at(90), place, End::Answered, false);
            assert!(!gate.stands, "a minute later there is a new one");
        }
    }
}
