//! Says what goes wrong again and again only once in a while: whoever is wrong goes on trying.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The same is logged once in this time.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// When something was said last.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<Option<Instant>>);

impl Said {
    /// Whether it is time to say it again; from now on it is said.
    pub(crate) fn is_due(&self) -> bool {
        let mut last = self.0.lock();
        let due = last.is_none_or(|at| at.elapsed() >= SAY_EVERY);
        if due {
            *last = Some(Instant::now());
        }
        due
    }
}
