//! The clock that stamps entries: the system's, but it does not jump ahead.
//!
//! Log time never goes back, so one stamp far in the future would expire every hold and refuse every request until real
//! time caught up. A step of the system's clock is followed at a bounded pace instead; how far clocks may
//! drift apart between nodes is not this module's business.

use std::sync::Arc;

use tidewall_env::clock::{Clock, SystemClock};
use tokio::time::Instant;

/// How far a stamp may be ahead of what the monotonic clock makes of the node's start, ms.
const AHEAD_MS_MAX: u64 = 2_000;

/// A wall clock that is bounded by the monotonic one.
pub struct SteadyClock {
    wall: Arc<dyn Clock>,
    started_ms: u64,
    started: Instant,
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
        Self { started_ms: wall.unix_ms(), started: Instant::now(), wall }
    }

    fn bounded(&self, wall_ms: u64, elapsed_ms: u64) -> u64 {
        // A clock that runs a thousandth fast is within what crystals and time services do.
        let allowance = AHEAD_MS_MAX.saturating_add(elapsed_ms / 1_000);
        wall_ms.min(self.started_ms.saturating_add(elapsed_ms).saturating_add(allowance))
    }
}

impl Clock for SteadyClock {
    fn unix_ms(&self) -> u64 {
        self.bounded(self.wall.unix_ms(), self.started.elapsed().as_millis() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_ahead_is_not_followed_at_once() {
        let clock =
            SteadyClock { wall: Arc::new(SystemClock), started_ms: 1_000_000, started: Instant::now() };
        assert_eq!(clock.bounded(1_010_000, 10_000), 1_010_000);
        assert_eq!(clock.bounded(1_011_500, 10_000), 1_011_500);
        let hour = 3_600_000;
        assert_eq!(clock.bounded(1_010_000 + hour, 10_000), 1_012_010);
        // Backwards is no danger: log time is clamped where entries are applied.
        assert_eq!(clock.bounded(900_000, 10_000), 900_000);
    }
}
