//! Admission: how many calls per region may be under way, and when the refused ones shall come back. Nothing
//! queues here: what does not fit is refused at once, because a queue would only hide the overload.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rand::Rng as _;

use crate::errors::ApiError;

/// Nobody is told to come back earlier.
const RETURN_MIN: Duration = Duration::from_millis(50);
/// Nobody is told to come back later.
const RETURN_MAX: Duration = Duration::from_secs(2);
/// The rate of completions is measured over windows of this length.
const WINDOW: Duration = Duration::from_millis(100);
/// A longer time without a refusal says nothing about capacity.
const WINDOW_STALE: Duration = Duration::from_secs(1);
/// Completions a second that are assumed before any were measured.
const RATE_INITIAL: f64 = 4_000.0;
/// Bounds of what a measurement is believed, completions a second.
const RATE_RANGE: (f64, f64) = (500.0, 200_000.0);

/// What is let in first when a region is full: finishing what was started frees stock, browsing does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// Confirm, release, cancel, and asking for a lost outcome.
    Finish,
    /// Hold, buy, create.
    Start,
    /// Reads.
    Browse,
}

impl Class {
    /// Calls that may be under way, as a share of the region's limit.
    fn bound(self, limit: usize) -> usize {
        match self {
            Self::Finish => limit + limit / 8,
            Self::Start => limit,
            Self::Browse => limit - limit / 8,
        }
        .max(1)
    }
}

/// Gives each refused call a place in the order of return, at the rate at which calls complete.
struct Pace {
    window_began: Instant,
    completed_then: u64,
    rate: f64,
    /// The next free place.
    next: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { window_began: now, completed_then: 0, rate: RATE_INITIAL, next: now }
    }

    /// When to come back. `jitter` is uniform in [0, 1).
    fn next_return(&mut self, now: Instant, completed: u64, jitter: f64) -> Duration {
        let elapsed = now.saturating_duration_since(self.window_began);
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

struct Gate {
    limit: usize,
    in_flight: AtomicUsize,
    completed: AtomicU64,
    refused: AtomicU64,
    pace: Mutex<Pace>,
}

/// The gates of all regions.
pub(crate) struct Admission {
    gates: Vec<Arc<Gate>>,
}

/// A call that is under way; ends when dropped.
pub(crate) struct Permit {
    gate: Arc<Gate>,
    weight: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.in_flight.fetch_sub(self.weight, Ordering::AcqRel);
        self.gate.completed.fetch_add(self.weight as u64, Ordering::Relaxed);
    }
}

impl Admission {
    pub(crate) fn new(regions: usize, limit: usize) -> Self {
        let gate = || {
            Arc::new(Gate {
                limit: limit.max(1),
                in_flight: AtomicUsize::new(0),
                completed: AtomicU64::new(0),
                refused: AtomicU64::new(0),
                pace: Mutex::new(Pace::new(Instant::now())),
            })
        };
        Self { gates: (0..regions).map(|_| gate()).collect() }
    }

    /// Lets a call in that weighs as much as `weight` single ones, or says when to come back.
    pub(crate) fn enter(&self, region: usize, class: Class, weight: usize) -> Result<Permit, ApiError> {
        let gate = &self.gates[region];
        let bound = class.bound(gate.limit);
        // A call heavier than the bound still gets in when it is alone.
        let weight = weight.clamp(1, bound);
        let before = gate.in_flight.fetch_add(weight, Ordering::AcqRel);
        if before + weight <= bound {
            return Ok(Permit { gate: Arc::clone(gate), weight });
        }
        gate.in_flight.fetch_sub(weight, Ordering::AcqRel);
        gate.refused.fetch_add(1, Ordering::Relaxed);
        let completed = gate.completed.load(Ordering::Relaxed);
        let jitter = rand::rng().random_range(0.0..1.0);
        let retry_after = gate.pace.lock().next_return(Instant::now(), completed, jitter);
        Err(ApiError::Overloaded {
            retry_after,
            message: format!(
                "the region has as many calls under way as it may at this gateway: nothing was decided, send \
                 the same request again after {} ms",
                retry_after.as_millis()
            ),
        })
    }

    /// Calls under way in a region, and refusals so far.
    pub(crate) fn state(&self, region: usize) -> (usize, u64) {
        let gate = &self.gates[region];
        (gate.in_flight.load(Ordering::Relaxed), gate.refused.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cmp::Reverse;
    use std::collections::BinaryHeap;

    use super::*;

    #[test]
    fn the_limit_holds_and_finishing_comes_before_browsing() {
        let admission = Admission::new(2, 8);
        let mut permits: Vec<Permit> = (0..7).map(|_| admission.enter(0, Class::Start, 1).unwrap()).collect();
        assert!(admission.enter(0, Class::Browse, 1).is_err());
        permits.push(admission.enter(0, Class::Start, 1).unwrap());
        assert!(admission.enter(0, Class::Start, 1).is_err());
        permits.push(admission.enter(0, Class::Finish, 1).unwrap());
        assert!(admission.enter(0, Class::Finish, 1).is_err());
        assert!(admission.enter(1, Class::Browse, 1).is_ok(), "other regions do not notice");
        assert_eq!(admission.state(0), (9, 3));
        permits.clear();
        assert_eq!(admission.state(0), (0, 3));
        assert!(admission.enter(0, Class::Start, 1000).is_ok(), "a heavy call gets in alone");
    }

    #[test]
    fn a_refusal_says_when_to_come_back() {
        let admission = Admission::new(1, 1);
        let _permit = admission.enter(0, Class::Start, 1).unwrap();
        for _ in 0..20_000 {
            let Err(ApiError::Overloaded { retry_after, .. }) = admission.enter(0, Class::Start, 1) else {
                panic!("must refuse")
            };
            assert!((RETURN_MIN..=RETURN_MAX).contains(&retry_after), "{retry_after:?}");
        }
    }

    /// 50,000 buyers at once, of whom all honour the delay: how many are served within 10 s by a region
    /// that completes 8,000 calls a second?
    #[test]
    fn a_crowd_that_honours_the_delays_gets_through() {
        const LIMIT: usize = 4096;
        const TICK: Duration = Duration::from_millis(1);
        const PER_TICK: usize = 8;
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut arrivals: BinaryHeap<Reverse<Instant>> = (0..50_000).map(|_| Reverse(start)).collect();
        let (mut in_flight, mut completed, mut refusals) = (0usize, 0u64, 0u64);
        let mut now = start;
        while now < start + Duration::from_secs(10) {
            while arrivals.peek().is_some_and(|Reverse(at)| *at <= now) {
                arrivals.pop();
                if in_flight < LIMIT {
                    in_flight += 1;
                    continue;
                }
                refusals += 1;
                // A fixed sequence instead of randomness: the test must not depend on luck.
                let jitter = (refusals * 7919 % 1000) as f64 / 1000.0;
                arrivals.push(Reverse(now + pace.next_return(now, completed, jitter)));
            }
            let done = in_flight.min(PER_TICK);
            in_flight -= done;
            completed += done as u64;
            now += TICK;
        }
        assert!(completed >= 49_500, "{completed} served, {refusals} refusals");
        assert!(refusals < 5 * 50_000, "the crowd must not hammer: {refusals} refusals");
    }
}
