//! Which groups of a node have written lately, and how much. They share its disk, whoever leads them, so that a heavy one
//! should know when it is not alone, and whether the others make the load as well.
//!
//! Looks at what the groups have applied when somebody asks, at most a few times a second: nothing is counted by time
//! while entries are written.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_actors::Company;
use tidewall_consensus::Group;
use tokio::time::Instant;

/// How often the groups are looked at.
const WINDOW: Duration = Duration::from_millis(250);
/// A longer time between two looks says nothing about now.
const STALE: Duration = Duration::from_secs(2);
/// Groups that decide fewer commands a second, all together, need no room made for them.
const RATE_MIN: f64 = 10.0;
/// The others write little until all of them together decide more than this part of a group's own commands,
const HEAVY_PART: f64 = 1.0 / 3.0;
/// and again when they decide less than this part: a group that rests less decides more, and shall not go to and fro.
const LIGHT_PART: f64 = 1.0 / 10.0;

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
    /// Commands a second, by group.
    rates: BTreeMap<u32, f64>,
    /// Groups beside which the others write much.
    beside_heavy: BTreeSet<u32>,
}

impl Seen {
    fn is_due(&self, now: Instant) -> bool {
        self.at.is_none_or(|at| now.saturating_duration_since(at) >= WINDOW)
    }

    fn look(&mut self, now: Instant, applied: BTreeMap<u32, u64>) {
        let elapsed = self.at.map(|at| now.saturating_duration_since(at)).filter(|elapsed| *elapsed < STALE);
        self.rates = match elapsed {
            Some(elapsed) => {
                let rate = |(group, commands): (&u32, &u64)| {
                    let before = self.applied.get(group).copied().unwrap_or(*commands);
                    (*group, commands.saturating_sub(before) as f64 / elapsed.as_secs_f64())
                };
                applied.iter().map(rate).collect()
            }
            None => BTreeMap::new(),
        };
        (self.at, self.applied) = (Some(now), applied);
        let heavy = |group: &u32| {
            let part = if self.beside_heavy.contains(group) { LIGHT_PART } else { HEAVY_PART };
            self.others(*group) > self.own(*group) * part
        };
        self.beside_heavy = self.rates.keys().copied().filter(heavy).collect();
    }

    fn own(&self, group: u32) -> f64 {
        self.rates.get(&group).copied().unwrap_or_default()
    }

    fn others(&self, group: u32) -> f64 {
        self.rates.iter().filter(|(other, _)| **other != group).map(|(_, rate)| rate).sum()
    }

    fn company(&self, group: u32) -> Company {
        match () {
            () if self.others(group) < RATE_MIN => Company::None,
            () if self.beside_heavy.contains(&group) => Company::Heavy,
            () => Company::Light,
        }
    }
}

impl Neighbours {
    /// Knows these groups.
    pub(crate) fn new(groups: BTreeMap<u32, Group>) -> Self {
        Self { groups, seen: Mutex::default() }
    }

    /// What the groups other than this one have written lately.
    pub(crate) fn company(&self, group: u32) -> Company {
        let mut seen = self.seen.lock();
        let now = Instant::now();
        if seen.is_due(now) {
            let applied = |(number, group): (&u32, &Group)| (*number, group.state().commands_applied());
            seen.look(now, self.groups.iter().map(applied).collect());
        }
        seen.company(group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_others_wrote_lately_counts_and_in_proportion() {
        let began = Instant::now();
        let mut seen = Seen::default();
        assert!(seen.is_due(began));
        seen.look(began, [(1, 1_000), (2, 5)].into());
        assert_eq!([1, 2].map(|group| seen.company(group)), [Company::None; 2], "one look shows no rate");
        assert!(!seen.is_due(began + WINDOW / 2));
        let mut now = began + WINDOW;
        assert!(seen.is_due(now));
        seen.look(now, [(1, 1_500), (2, 7)].into());
        assert_eq!(seen.company(1), Company::None, "8 commands a second");
        assert_eq!(seen.company(2), Company::Heavy);
        now += WINDOW;
        seen.look(now, [(1, 1_509), (2, 10), (3, 900)].into());
        assert_eq!(seen.company(1), Company::Light, "12 beside 36; what group 3 decided when is not known");
        assert_eq!(seen.company(2), Company::Heavy, "36 beside 12");
        now += WINDOW;
        seen.look(now, [(1, 1_518), (2, 13), (3, 901)].into());
        assert_eq!(seen.company(1), Company::Heavy, "16 beside 36");
        now += WINDOW;
        seen.look(now, [(1, 1_618), (2, 23), (3, 902)].into());
        assert_eq!(seen.company(1), Company::Heavy, "44 beside 400: more than a tenth, so that it stays");
        now += WINDOW;
        seen.look(now, [(1, 1_718), (2, 32), (3, 902)].into());
        assert_eq!(seen.company(1), Company::Light, "36 beside 400");
        now += WINDOW;
        seen.look(now, [(1, 1_818), (2, 65), (3, 902)].into());
        assert_eq!(seen.company(1), Company::Light, "132 beside 400");
        now += STALE;
        seen.look(now, [(1, 9_000), (2, 9_000), (3, 9_000)].into());
        assert_eq!([1, 2, 3].map(|group| seen.company(group)), [Company::None; 3], "long ago, perhaps");
    }
}
