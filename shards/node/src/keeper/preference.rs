//! When a lead goes back to the node that should have it. Pure: what may be, and times, come in as arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// How long the preferred leader must have been fit before it is given the lead.
const STEADY: Duration = Duration::from_secs(3);
/// How long a handover is given before it is tried again.
const TRANSFER_PATIENCE: Duration = Duration::from_secs(5);

/// Since when leads could go, and when they were sent, by group.
#[derive(Default)]
pub(crate) struct Preference {
    steady_since: BTreeMap<u32, Instant>,
    sent_at: BTreeMap<u32, Instant>,
}

impl Preference {
    /// Whether a lead is to be sent now; `could` says that another node should have it and could take it.
    pub(crate) fn sends(&mut self, group: u32, could: bool, now: Instant) -> bool {
        if !could {
            self.steady_since.remove(&group);
            return false;
        }
        let since = *self.steady_since.entry(group).or_insert(now);
        let patient = |sent: &Instant| now.saturating_duration_since(*sent) < TRANSFER_PATIENCE;
        if now.saturating_duration_since(since) <= STEADY || self.sent_at.get(&group).is_some_and(patient) {
            return false;
        }
        self.sent_at.insert(group, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// At which of these half seconds a lead is sent that could go at some of them.
    fn sent(could: impl Fn(u64) -> bool, rounds: u64) -> Vec<u64> {
        let (mut preference, began) = (Preference::default(), Instant::now());
        let mut at = |n: &u64| preference.sends(1, could(*n), began + Duration::from_millis(n * 500));
        (0..rounds).filter(|n| at(n)).collect()
    }

    #[test]
    fn a_lead_goes_when_its_taker_was_fit_for_a_while_and_again_when_it_did_not_arrive() {
        assert_eq!(sent(|_| true, 20), [7, 17]);
        assert_eq!(sent(|n| n != 5, 20), [13], "it has to be fit all the time");
        assert_eq!(sent(|n| n % 6 != 0, 60), [0; 0], "who comes and goes gets nothing");
        assert_eq!(sent(|_| false, 20), [0; 0]);
    }

    #[test]
    fn groups_go_one_by_one() {
        let (mut preference, began) = (Preference::default(), Instant::now());
        let later = began + STEADY + Duration::from_millis(1);
        preference.sends(1, true, began);
        assert!(!preference.sends(2, true, later));
        assert!(preference.sends(1, true, later));
    }
}
