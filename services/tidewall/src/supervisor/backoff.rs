//! How long to wait before a child is started again. Knows no clock: the caller says how long it lived.

use std::time::Duration;

/// Wait after the first death.
pub const FIRST: Duration = Duration::from_millis(100);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(5);
/// A child that lived this long counts as healthy again.
pub const HEALTHY: Duration = Duration::from_secs(10);

/// Doubles from [`FIRST`] to [`LONGEST`], and starts over after a healthy life.
#[derive(Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// The wait after a child that lived for `lived` has died.
    pub fn after(&mut self, lived: Duration) -> Duration {
        if lived >= HEALTHY {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let mut backoff = Backoff::default();
        let waits: Vec<_> = (0..8).map(|_| backoff.after(Duration::ZERO).as_millis()).collect();
        assert_eq!(waits, [100, 200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_healthy_life_starts_over() {
        let mut backoff = Backoff::default();
        for _ in 0..8 {
            backoff.after(HEALTHY - Duration::from_millis(1));
        }
        assert_eq!(backoff.after(HEALTHY - Duration::from_millis(1)), LONGEST);
        assert_eq!(backoff.after(HEALTHY), FIRST);
        assert_eq!(backoff.after(Duration::ZERO), FIRST * 2);
    }
}
