//! Wall-clock time, as the number that goes into log entries.
//!
//! Nothing here measures durations: a wall clock may jump. Code that must be deterministic never holds a
//! [`Clock`]; it gets the time as a value.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::simulation;

/// A source of wall-clock time.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since 1970-01-01T00:00:00Z. May go backwards between two calls.
    fn unix_ms(&self) -> u64;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn unix_ms(&self) -> u64 {
        // A machine whose clock stands before 1970 reads as 0: far off, which the peers' skew check reports.
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX)
    }
}

/// Unix time of this process now, ms: the operating system's, or in a simulation the simulated one.
pub fn unix_ms() -> u64 {
    simulation::unix_ms().unwrap_or_else(|| SystemClock.unix_ms())
}

/// A clock that moves only when told to. Clones share the time.
#[derive(Clone, Debug, Default)]
pub struct ManualClock {
    now_ms: Arc<AtomicU64>,
}

impl ManualClock {
    /// A clock that stands at `unix_ms`.
    #[must_use]
    pub fn new(unix_ms: u64) -> Self {
        Self { now_ms: Arc::new(AtomicU64::new(unix_ms)) }
    }

    /// Sets the time, also backwards: a clock that jumps is a case to test.
    pub fn set(&self, unix_ms: u64) {
        self.now_ms.store(unix_ms, Ordering::SeqCst);
    }

    /// Moves the time forward by `by_ms` milliseconds and returns the new time.
    pub fn advance(&self, by_ms: u64) -> u64 {
        self.now_ms.fetch_add(by_ms, Ordering::SeqCst).wrapping_add(by_ms)
    }
}

impl Clock for ManualClock {
    fn unix_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told_and_is_shared_by_clones() {
        let clock = ManualClock::new(1_000);
        let seen_by_another: Arc<dyn Clock> = Arc::new(clock.clone());
        assert_eq!(seen_by_another.unix_ms(), 1_000);
        assert_eq!(clock.advance(500), 1_500);
        assert_eq!(seen_by_another.unix_ms(), 1_500);
        clock.set(10);
        assert_eq!(seen_by_another.unix_ms(), 10);
    }

    #[test]
    fn the_system_clock_is_in_this_era() {
        // 2025-01-01 to 2200-01-01.
        let now = SystemClock.unix_ms();
        assert!((1_735_689_600_000..7_258_118_400_000).contains(&now), "{now}");
    }
}
