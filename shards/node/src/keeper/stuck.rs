//! Whether apply stands still in a group that this node leads. Pure: states and times come in as arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A leader whose apply stands still for so long, with entries waiting, is not fit to lead.
const PATIENCE: Duration = Duration::from_secs(3);

/// Applied index of each group, and since when it is that.
#[derive(Default)]
pub(crate) struct Applied(BTreeMap<u32, (u64, Instant)>);

impl Applied {
    /// Whether a group has applied nothing for too long although entries wait. It is said once, and again when as much time has
    /// passed once more.
    pub(crate) fn stands_still(&mut self, group: u32, applied: u64, committed: u64, now: Instant) -> bool {
        let (last, since) = self.0.entry(group).or_insert((applied, now));
        if *last != applied || committed <= applied {
            (*last, *since) = (applied, now);
            return false;
        }
        let stands_still = now.saturating_duration_since(*since) >= PATIENCE;
        if stands_still {
            *since = now;
        }
        stands_still
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of a group with these applied and committed indices at these seconds.
    fn verdicts(rounds: &[(u64, u64, u64)]) -> Vec<bool> {
        let (mut state, began) = (Applied::default(), Instant::now());
        let round = |(s, applied, committed): &(u64, u64, u64)| {
            state.stands_still(1, *applied, *committed, began + Duration::from_secs(*s))
        };
        rounds.iter().map(round).collect()
    }

    #[test]
    fn apply_that_stands_still_is_noticed_and_idleness_is_not() {
        assert_eq!(
            verdicts(&[(0, 5, 9), (2, 5, 9), (3, 5, 9), (4, 5, 9), (6, 5, 9)]),
            [false, false, true, false, true]
        );
        assert_eq!(verdicts(&[(0, 5, 9), (2, 6, 9), (4, 7, 9), (6, 8, 9)]), [false; 4], "slow, not stuck");
        assert_eq!(verdicts(&[(0, 9, 9), (10, 9, 9), (11, 9, 12)]), [false; 3], "nothing waited until now");
    }

    #[test]
    fn groups_are_judged_one_by_one() {
        let (mut state, began) = (Applied::default(), Instant::now());
        state.stands_still(1, 5, 9, began);
        assert!(!state.stands_still(2, 5, 9, began + PATIENCE));
        assert!(state.stands_still(1, 5, 9, began + PATIENCE));
    }
}
