//! How fast a region is while calls wait for it, and when refused calls shall come back: each gets a place in the order of
//! return, at that rate. Pure: time and randomness come in as arguments.

use std::time::Duration;

/// Nobody is told to come back earlier.
pub(crate) const RETURN_MIN: Duration = Duration::from_millis(50);
/// Nobody of a crowd is told to come back later. Who comes back too early costs as much as a purchase; who comes back too late finds
/// nobody waiting.
pub(crate) const RETURN_MAX: Duration = Duration::from_secs(4);
/// Nor is anybody at all. Where more come than can be served, each return is in vain for most: let there be few.
pub(crate) const RETURN_STANDING_MAX: Duration = Duration::from_secs(8);
/// A longer window was an interruption, and says nothing about how fast the region is when it answers.
const WINDOW_STALE: Duration = Duration::from_secs(1);
/// Completions a second that are assumed before any were measured.
const RATE_INITIAL: f64 = 8_000.0;
/// Part of what is believed that a better measurement makes up, and a worse one. A crowd is slowest while it arrives, and
/// fast when there is nothing left to sell: to keep a call waiting that then has no turn costs less than to send many away.
const WEIGHTS: (f64, f64) = (0.5, 0.125);
/// Bounds of what a measurement is believed, completions a second.
const RATE_RANGE: (f64, f64) = (50.0, 200_000.0);

/// The rate at which calls complete, and the order of return. All times are since the same, arbitrary beginning.
pub(crate) struct Pace {
    rate: f64,
    /// The next free place.
    next: Duration,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { rate: RATE_INITIAL, next: Duration::ZERO }
    }

    /// So many calls were answered in a window of this length, while others waited all the time.
    pub(crate) fn measured(&mut self, completed: u64, window: Duration) {
        if window < WINDOW_STALE || completed == 0 {
            let rate = completed as f64 / window.as_secs_f64().max(f64::MIN_POSITIVE);
            let weight = if rate > self.rate { WEIGHTS.0 } else { WEIGHTS.1 };
            self.rate = (self.rate + (rate - self.rate) * weight).clamp(RATE_RANGE.0, RATE_RANGE.1);
        }
    }

    /// Calls that will complete in this time.
    pub(crate) fn completed_in(&self, time: Duration) -> usize {
        // Saturates, as conversions from floats do.
        (self.rate * time.as_secs_f64()) as usize
    }

    /// How long to stay away, at most `longest`. `jitter` is uniform in [0, 1).
    pub(crate) fn next_return(&mut self, now: Duration, longest: Duration, jitter: f64) -> Duration {
        self.next = self.next.max(now + RETURN_MIN);
        let wait = self.next - now;
        if wait >= longest {
            // More wait than can be served until then: they share the second half of the time.
            return longest.mul_f64(0.5 + jitter / 2.0);
        }
        self.next += Duration::from_secs_f64(1.0 / self.rate);
        wait.mul_f64(0.9 + jitter / 5.0).clamp(RETURN_MIN, longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interruption_is_no_measurement_and_no_measurement_is_believed_beyond_reason() {
        let mut pace = Pace::new();
        let before = pace.completed_in(Duration::from_secs(1));
        pace.measured(3, Duration::from_secs(5));
        assert_eq!(pace.completed_in(Duration::from_secs(1)), before);
        for _ in 0..50 {
            pace.measured(0, Duration::from_secs(5));
        }
        assert_eq!(pace.completed_in(Duration::from_secs(1)), 50, "a region that answers nobody is slow");
        pace.measured(1_005, Duration::from_millis(100));
        assert_eq!(pace.completed_in(Duration::from_secs(2)), 10_100);
    }

    #[test]
    fn refused_calls_come_back_one_after_the_other_at_the_measured_rate() {
        let mut pace = Pace::new();
        for _ in 0..200 {
            pace.measured(100, Duration::from_millis(100));
        }
        let returns: Vec<Duration> =
            (0..1_000).map(|_| pace.next_return(Duration::ZERO, RETURN_MAX, 0.5)).collect();
        assert!(returns.is_sorted());
        assert_eq!((returns[0], returns[999]), (RETURN_MIN, Duration::from_millis(1_049)));
        let late: Vec<Duration> =
            (0..10_000).map(|_| pace.next_return(Duration::ZERO, RETURN_MAX, 0.5)).collect();
        assert!(late.iter().all(|late| *late < RETURN_MAX));
        assert_eq!(late[9_999], RETURN_MAX.mul_f64(0.75), "beyond the order they share the second half");
    }
}
