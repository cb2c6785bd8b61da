//! When refused calls shall come back: each gets a place in the order of return, at the rate at which calls end now.
//! Pure: time and randomness come in as arguments.

use std::time::Duration;

/// Nobody is told to come back earlier.
pub(crate) const RETURN_MIN: Duration = Duration::from_millis(50);
/// Nobody is told to come back later.
pub(crate) const RETURN_MAX: Duration = Duration::from_secs(2);
/// The rate of completions is measured over windows of this length.
const WINDOW: Duration = Duration::from_millis(100);
/// A longer time without a refusal says nothing about capacity.
const WINDOW_STALE: Duration = Duration::from_secs(1);
/// Completions a second that are assumed before any were measured.
const RATE_INITIAL: f64 = 4_000.0;
/// Bounds of what a measurement is believed, completions a second.
const RATE_RANGE: (f64, f64) = (500.0, 200_000.0);

/// Gives each refused call a place in the order of return, at the rate at which calls complete. All times are since
/// the same, arbitrary beginning.
pub(crate) struct Pace {
    window_began: Duration,
    completed_then: u64,
    rate: f64,
    /// The next free place.
    next: Duration,
}

impl Pace {
    pub(crate) fn new() -> Self {
        Self { window_began: Duration::ZERO, completed_then: 0, rate: RATE_INITIAL, next: Duration::ZERO }
    }

    /// How long to stay away. `jitter` is uniform in [0, 1).
    pub(crate) fn next_return(&mut self, now: Duration, completed: u64, jitter: f64) -> Duration {
        let elapsed = now.saturating_sub(self.window_began);
        if elapsed >= WINDOW {
            if elapsed < WINDOW_STALE {
                let measured = (completed - self.completed_then) as f64 / elapsed.as_secs_f64();
                self.rate = (self.rate + measured) / 2.0;
            }
            (self.window_began, self.completed_then) = (now, completed);
        }
        let step = Duration::from_secs_f64(1.0 / self.rate.clamp(RATE_RANGE.0, RATE_RANGE.1));
        self.next = self.next.max(now + RETURN_MIN);
        let wait = self.next - now;
        if wait >= RETURN_MAX {
            // More wait than can be served until then: they share the second half of the time.
            return RETURN_MAX.mul_f64(0.5 + jitter / 2.0);
        }
        self.next += step;
        wait.mul_f64(0.9 + jitter / 5.0).clamp(RETURN_MIN, RETURN_MAX)
    }
}
