//! What is wanted, and when: intents and their arrivals. Pure; it must never look at a clock.

use std::time::Duration;

use crate::Mode;

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Intent {
    /// Number of the buyer in `Run::subjects`.
    pub(crate) subject: u32,
    /// Number of the event in `Run::lots`.
    pub(crate) lot: u32,
    /// Number of the tier in the lot.
    pub(crate) tier: u32,
    pub(crate) quantity: u32,
    /// When it is due after the start; for recorded arrivals.
    pub(crate) offset: Duration,
}

/// All intents of a run.
#[derive(Debug, Clone)]
pub(crate) enum Intents {
    /// One event, one tier; buyers come in turn. Without a count, for as long as the run lasts.
    Uniform { subjects: u32, quantity: u32, count: Option<u64> },
    /// As recorded.
    Listed(Vec<Intent>),
}

impl Intents {
    /// How many there are, when known.
    pub(crate) fn count(&self) -> Option<u64> {
        match self {
            Intents::Uniform { count, .. } => *count,
            Intents::Listed(list) => Some(list.len() as u64),
        }
    }

    /// The intent of this number; `None` behind the last one.
    pub(crate) fn get(&self, index: u64) -> Option<Intent> {
        match self {
            Intents::Uniform { count: Some(count), .. } if index >= *count => None,
            Intents::Uniform { subjects, quantity, .. } => Some(Intent {
                // The remainder fits: `subjects` is a u32.
                subject: (index % u64::from(*subjects)) as u32,
                lot: 0,
                tier: 0,
                quantity: *quantity,
                offset: Duration::ZERO,
            }),
            Intents::Listed(list) => list.get(usize::try_from(index).ok()?).copied(),
        }
    }
}

/// When intents come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    Closed {
        concurrency: usize,
        until: Option<Duration>,
    },
    Rate {
        per_second: f64,
        until: Option<Duration>,
    },
    /// At the offsets that the intents carry.
    Recorded,
}

impl Arrivals {
    /// Arrivals of a run that ends after `until`.
    pub(crate) fn of(mode: Mode, until: Option<Duration>) -> Self {
        match mode {
            Mode::Closed { concurrency } => Arrivals::Closed { concurrency, until },
            Mode::Open { rate_per_second } => Arrivals::Rate { per_second: rate_per_second, until },
            // A crowd at once is a record in which everybody has the offset 0.
            Mode::AllAtOnce => Arrivals::Recorded,
        }
    }

    /// When an intent of this number is due; `None` when the time is over.
    pub(crate) fn due(self, index: u64, intent: Intent) -> Option<Duration> {
        match self {
            Arrivals::Rate { per_second, until } => {
                let due = Duration::try_from_secs_f64(index as f64 / per_second).ok()?;
                until.is_none_or(|until| due < until).then_some(due)
            }
            Arrivals::Recorded | Arrivals::Closed { .. } => Some(intent.offset),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn intents_at_a_steady_rate_are_due_at_equal_distances_until_the_time_is_over() {
        let arrivals = Arrivals::of(Mode::Open { rate_per_second: 200.0 }, Some(Duration::from_millis(20)));
        let intents = Intents::Uniform { subjects: 3, quantity: 2, count: None };
        let due: Vec<_> = (0..9).map_while(|n| arrivals.due(n, intents.get(n).unwrap())).collect();
        assert_eq!(due, [0, 5, 10, 15].map(Duration::from_millis));
        assert_eq!(intents.get(7).unwrap().subject, 1, "buyers come in turn");
    }

    #[test]
    fn a_crowd_at_once_is_due_at_the_start_and_ends_with_its_last_buyer() {
        let arrivals = Arrivals::of(Mode::AllAtOnce, None);
        let intents = Intents::Uniform { subjects: 5, quantity: 1, count: Some(5) };
        assert_eq!(arrivals.due(4, intents.get(4).unwrap()), Some(Duration::ZERO));
        assert!(intents.get(5).is_none());
    }
}
