//! Pauses between attempts: exponential, with full jitter, so that clients that failed together do not come back
//! together (M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015). A delay that the server
//! asked for never passes through here: it is kept exactly.

use std::time::Duration;

use rand::Rng as _;

/// How long to pause before a retry when the server does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// Upper bound of the first pause; doubled with each further one.
    pub first: Duration,
    /// Largest upper bound.
    pub max: Duration,
}

impl Default for Backoff {
    /// 50 ms, doubled up to 1 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(50), max: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// The upper bound of the pause after so many earlier ones.
    pub(crate) fn bound(&self, earlier: u32) -> Duration {
        self.first.saturating_mul(1u32.checked_shl(earlier).unwrap_or(u32::MAX)).min(self.max)
    }

    /// A pause: anything from nothing to the bound, each as likely.
    pub(crate) fn pause(&self, earlier: u32) -> Duration {
        self.bound(earlier).mul_f64(rand::rng().random_range(0.0..=1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_double_up_to_the_largest() {
        let backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };
        let bounds: Vec<_> = (0..7).map(|n| backoff.bound(n).as_millis()).collect();
        assert_eq!(bounds, [50, 100, 200, 400, 800, 1000, 1000]);
        assert_eq!(backoff.bound(u32::MAX), Duration::from_secs(1));
    }

    #[test]
    fn pauses_fill_the_whole_range() {
        let backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(1) };
        let pauses: Vec<_> = (0..1000).map(|_| backoff.pause(0)).collect();
        assert!(pauses.iter().all(|pause| *pause <= Duration::from_secs(1)));
        // With 1000 draws the chance that one of these fails by luck is below 1e-22.
        assert!(pauses.iter().any(|pause| *pause < Duration::from_millis(50)));
        assert!(pauses.iter().any(|pause| *pause > Duration::from_millis(950)));
    }
}
