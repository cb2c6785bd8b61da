//! Which groups of a node have written lately. They share its disk, whoever leads them, so that a heavy one should know
//! when it is not alone.
//!
//! Looks at the groups' applied indices when somebody asks, at most a few times a second: nothing is counted while
//! entries are written.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_consensus::Group;
use tidewall_machine::Machine;
use tokio::time::Instant;

/// How often the groups are looked at.
const WINDOW: Duration = Duration::from_millis(250);
/// A longer time between two looks says nothing about now.
const STALE: Duration = Duration::from_secs(2);
/// Groups that write fewer entries a second, all together, need no room made for them.
const RATE_MIN: f64 = 10.0;

/// The groups of a node.
pub(crate) struct Neighbours {
    groups: BTreeMap<u32, Group>,
    seen: Mutex<Seen>,
}

/// What the last looks have shown.
#[derive(Default)]
struct Seen {
    at: Option<Instant>,
    applied: BTreeMap<u32, u64>,
    /// Entries a second, by group.
    rates: BTreeMap<u32, f64>,
}

impl Seen {
    fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| now.saturating_duration_since(at) >= WINDOW)
    }

    fn look(&mut self, now: Instant, applied: BTreeMap<u32, u64>) {
        let elapsed = self.at.map(|at| now.saturating_duration_since(at)).filter(|elapsed| *elapsed < STALE);
        self.rates = match elapsed {
            Some(elapsed) => {
                let rate = |(group, index): (&u32, &u64)| {
                    let before = self.applied.get(group).copied().unwrap_or(*index);
                    (*group, index.saturating_sub(before) as f64 / elapsed.as_secs_f64())
                };
                applied.iter().map(rate).collect()
            }
            None => BTreeMap::new(),
        };
        (self.at, self.applied) = (Some(now), applied);
    }

    fn others_write(&self, group: u32) -> bool {
        let others = self.rates.iter().filter(|(other, _)| **other != group);
        others.map(|(_, rate)| rate).sum::<f64>() >= RATE_MIN
    }
}

impl Neighbours {
    /// Knows these groups.
    pub(crate) fn new(groups: BTreeMap<u32, Group>) -> Self {
        Self { groups, seen: Mutex::default() }
    }

    /// Whether groups other than this one have written lately.
    pub(crate) fn others_write(&self, group: u32) -> bool {
        let mut seen = self.seen.lock();
        let now = Instant::now();
        if seen.is_due(now) {
            let applied =
                |(number, group): (&u32, &Group)| (*number, group.state().read(Machine::applied_index));
            seen.look(now, self.groups.iter().map(applied).collect());
        }
        seen.others_write(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_wrote_lately_counts() {
        let began = Instant::now();
        let mut seen = Seen::default();
        assert!(seen.is_due(began));
        seen.look(began, [(1, 1_000), (2, 5)].into());
        assert!(!seen.others_write(1) && !seen.others_write(2), "one look shows no rate");
        assert!(!seen.is_due(began + WINDOW / 2));
        let mut now = began + WINDOW;
        assert!(seen.is_due(now));
        seen.look(now, [(1, 1_500), (2, 7)].into());
        assert!(!seen.others_write(1), "8 entries a second");
        assert!(seen.others_write(2));
        now += WINDOW;
        seen.look(now, [(1, 1_500), (2, 10), (3, 900)].into());
        assert!(seen.others_write(1), "12 entries a second; what group 3 wrote when is not known");
        assert!(!seen.others_write(2));
        now += STALE;
        seen.look(now, [(1, 9_000), (2, 9_000)].into());
        assert!(!seen.others_write(1) && !seen.others_write(2), "long ago, perhaps");
    }
}
