//! Which groups of a node have written lately, and how much. They share its disk, whoever leads them, so that a heavy one
//! should know when it is not alone, and whether the others make the load as well.
//!
//! Looks at what the groups have applied when somebody asks, at most a few times a second: nothing is counted by time
//! while entries are written. It is advice: nothing that is decided may depend on it, and to be wrong may cost time only.

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
        use Company::{Heavy, Light, None};
        let mut seen = Seen::default();
        let mut now = Instant::now();
        assert!(seen.is_due(now));
        // Commands of groups 1 and 2 since the look before, and what then is beside each of them.
        let looks = [
            (WINDOW, [1_000, 5], [None, None], "one look shows no rate"),
            (WINDOW, [500, 2], [None, Heavy], "8 a second beside 2,000"),
            (WINDOW, [9, 3], [Light, Heavy], "12 beside 36"),
            (WINDOW, [9, 4], [Heavy, Heavy], "16 beside 36"),
            (WINDOW, [100, 11], [Heavy, Heavy], "44 beside 400: more than a tenth, so that it stays"),
            (WINDOW, [100, 9], [Light, Heavy], "36 beside 400"),
            (WINDOW, [100, 33], [Light, Heavy], "132 beside 400: less than a third, so that it stays"),
            (STALE, [7_000, 9_000], [None, None], "long ago, perhaps"),
        ];
        let mut commands = [0, 0];
        for (passed, more, company, what) in looks {
            now += passed;
            commands = [commands[0] + more[0], commands[1] + more[1]];
            seen.look(now, [(1, commands[0]), (2, commands[1])].into());
            assert_eq!([1, 2].map(|group| seen.company(group)), company, "{what}");
            assert!(!seen.is_due(now + WINDOW / 2) && seen.is_due(now + WINDOW));
        }
    }

    #[test]
    fn what_a_group_had_decided_before_it_was_seen_is_not_of_now() {
        let mut seen = Seen::default();
        let now = Instant::now();
        seen.look(now, [(1, 1_000)].into());
        seen.look(now + WINDOW, [(1, 1_100), (2, 90_000)].into());
        assert_eq!(seen.company(1), Company::None);
    }
}
