//! The retry budget of a client: a token bucket that stops retries when most attempts fail, so that a crowd of
//! clients does not bury a service that is down. It knows no clock and must never delay a first attempt.
//!
//! The rule is that of gRPC's retry throttling (gRFC A6, "Client Retries", section *Throttling Retry Attempts
//! and Hedged RPCs*): the bucket starts full; a failed attempt takes one token, a successful one gives a
//! fraction back; a retry is allowed only while the bucket is more than half full. Two kinds of failure take
//! nothing. An attempt that never left this process burdened nobody (A6 calls its repetition *transparent*).
//! And where A6 charges also what the server paced itself, we do not: Tidewall spreads the delays in
//! `RetryInfo` over the rate at which it can serve, and who keeps to them is no storm.

use std::sync::atomic::{AtomicU32, Ordering};

/// How many retries a client may make; shared by all its calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Tokens in a full bucket, 2 to 1000. Half of them may be lost in a row before retries stop.
    pub max_tokens: u32,
    /// Thousandths of a token that a success gives back, 1 to 1000.
    pub token_ratio_thousandths: u32,
}

impl Default for RetryBudget {
    /// 1000 tokens, a tenth back per success.
    fn default() -> Self {
        Self { max_tokens: 1000, token_ratio_thousandths: 100 }
    }
}

/// One token, in thousandths.
const TOKEN: u32 = 1000;

/// The bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    /// Thousandths of a token.
    level: AtomicU32,
    full: u32,
    ratio: u32,
}

impl Bucket {
    pub(crate) fn new(budget: RetryBudget) -> Self {
        let full = budget.max_tokens.saturating_mul(TOKEN);
        Self { level: AtomicU32::new(full), full, ratio: budget.token_ratio_thousandths }
    }

    /// An attempt got an answer.
    pub(crate) fn succeeded(&self) {
        self.change(|level| level.saturating_add(self.ratio).min(self.full));
    }

    /// An attempt failed and the server did not say when to come back.
    pub(crate) fn failed(&self) {
        self.change(|level| level.saturating_sub(TOKEN));
    }

    /// Whether a retry may be sent.
    pub(crate) fn allows(&self) -> bool {
        self.level.load(Ordering::Relaxed) > self.full / 2
    }

    fn change(&self, to: impl Fn(u32) -> u32) {
        // It always yields a value, so it cannot fail.
        let _ = self.level.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |level| Some(to(level)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retries_stop_when_half_is_spent_and_successes_bring_them_back() {
        let bucket = Bucket::new(RetryBudget { max_tokens: 10, token_ratio_thousandths: 500 });
        for spent in 0..5 {
            assert!(bucket.allows(), "after {spent}");
            bucket.failed();
        }
        assert!(!bucket.allows(), "half is not more than half");
        bucket.succeeded();
        assert!(bucket.allows());
        bucket.failed();
        assert!(!bucket.allows());
    }

    #[test]
    fn the_bucket_neither_overflows_nor_goes_below_empty() {
        let bucket = Bucket::new(RetryBudget { max_tokens: 2, token_ratio_thousandths: 1000 });
        for _ in 0..100 {
            bucket.succeeded();
        }
        bucket.failed();
        assert!(!bucket.allows(), "a full bucket holds two, whatever came before");
        for _ in 0..100 {
            bucket.failed();
        }
        bucket.succeeded();
        assert!(!bucket.allows());
        bucket.succeeded();
        assert!(bucket.allows(), "a hundred failures below empty are not remembered");
    }
}
