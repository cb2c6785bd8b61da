//! The clock that stamps entries: the system's, but it does not jump ahead.
//!
//! Log time never goes back, so one stamp far in the future would expire every hold and refuse every request until real
//! time caught up. A step ahead of the system's clock is held back instead, until somebody who has compared it with
//! other clocks vouches for it ([`SteadyClock::catch_up`]); how far clocks may drift apart between nodes is not this
//! module's business.

use std::sync::Arc;

use parking_lot::Mutex;
use tidewall_env::clock::{Clock, SystemClock};
use tokio::time::Instant;

/// How far a stamp may be ahead of what the monotonic clock makes of the node's start, ms.
const AHEAD_MS_MAX: u64 = 2_000;

/// A wall clock that is bounded by the monotonic one.
pub struct SteadyClock {
    wall: Arc<dyn Clock>,
    anchor: Mutex<Anchor>,
}

/// A moment whose wall-clock time is believed.
#[derive(Clone, Copy)]
struct Anchor {
    unix_ms: u64,
    at: Instant,
}

impl Default for SteadyClock {
    fn default() -> Self {
        Self::new()
    }
}

impl SteadyClock {
    /// Starts at the system's time.
    pub fn new() -> Self {
        Self::over(Arc::new(SystemClock))
    }

    /// Starts at the time of another wall clock.
    pub fn over(wall: Arc<dyn Clock>) -> Self {
        Self { anchor: Mutex::new(Anchor { unix_ms: wall.unix_ms(), at: Instant::now() }), wall }
    }

    /// How much of the system's time is held back, ms.
    pub fn held_back_ms(&self) -> u64 {
        let wall_ms = self.wall.unix_ms();
        wall_ms - self.bounded(wall_ms)
    }

    /// Believes the system's clock as it is now. Only for who has compared it with the clocks of a majority.
    pub fn catch_up(&self) {
        *self.anchor.lock() = Anchor { unix_ms: self.wall.unix_ms(), at: Instant::now() };
    }

    fn bounded(&self, wall_ms: u64) -> u64 {
        let anchor = *self.anchor.lock();
        anchor.bounded(wall_ms, anchor.at.elapsed().as_millis() as u64)
    }
}

impl Anchor {
    fn bounded(&self, wall_ms: u64, elapsed_ms: u64) -> u64 {
        // A clock that runs a thousandth fast is within what crystals and time services do.
        let allowance = AHEAD_MS_MAX.saturating_add(elapsed_ms / 1_000);
        wall_ms.min(self.unix_ms.saturating_add(elapsed_ms).saturating_add(allowance))
    }
}

impl Clock for SteadyClock {
    fn unix_ms(&self) -> u64 {
        self.bounded(self.wall.unix_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ahead_is_not_followed_at_once() {
        let clock = Anchor { unix_ms: 1_000_000, at: Instant::now() };
        assert_eq!(clock.bounded(1_010_000, 10_000), 1_010_000);
        assert_eq!(clock.bounded(1_011_500, 10_000), 1_011_500);
        let hour = 3_600_000;
        assert_eq!(clock.bounded(1_010_000 + hour, 10_000), 1_012_010);
        // Backwards is no danger: log time is clamped where entries are applied.
        assert_eq!(clock.bounded(900_000, 10_000), 900_000);
    }

    #[test]
    fn what_was_held_back_is_caught_up_with_when_somebody_vouches_for_it() {
        struct Hand(std::sync::atomic::AtomicU64);
        impl Clock for Hand {
            fn unix_ms(&self) -> u64 {
                self.0.load(std::sync::atomic::Ordering::Relaxed)
            }
        }
        let hand = Arc::new(Hand(1_000_000.into()));
        let clock = SteadyClock::over(hand.clone());
        assert_eq!((clock.unix_ms(), clock.held_back_ms()), (1_000_000, 0));
        let hour = 3_600_000;
        hand.0.store(1_000_000 + hour, std::sync::atomic::Ordering::Relaxed);
        assert!(clock.unix_ms() < 1_000_000 + hour && clock.held_back_ms() > 0);
        clock.catch_up();
        assert_eq!((clock.unix_ms(), clock.held_back_ms()), (1_000_000 + hour, 0));
    }
}
