//! Which leaders of this node no majority acknowledges any more, judged in rounds. Pure: times come in as arguments.
//!
//! It must never judge by one look: a slow disk, a pause of this process or of the machine make any leader look
//! unacknowledged for a moment, and an offered lead decides nothing until somebody has taken it.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::Instant;

/// A leader that no majority has acknowledged for so long, and still has not in the next round, cannot decide anything, but
/// may still be heard: as long as it is, nobody else stands for election. The shortest silence after which followers do.
const UNACKNOWLEDGED: Duration = Duration::from_millis(660);
/// Rounds follow each other within this time; one that comes later says more about this node than about the others.
const ROUND_LATE: Duration = Duration::from_millis(800);
/// From one round to the next a silence grows by at least this, or something was acknowledged in between.
const GROWTH_MIN: Duration = Duration::from_millis(250);
/// How long a lead that came back is kept before it is offered again.
const OFFER_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of the leaders of this node.
#[derive(Default)]
pub(crate) struct Silences {
    looked: Option<Instant>,
    punctual: bool,
    /// By group, for how long nobody had acknowledged its leader in the last round.
    silent_for: BTreeMap<u32, Duration>,
    offered_at: BTreeMap<u32, Instant>,
}

impl Silences {
    /// A round begins.
    pub(crate) fn begin_round(&mut self, now: Instant) {
        let last = self.looked.replace(now);
        self.punctual = last.is_some_and(|last| now.saturating_duration_since(last) < ROUND_LATE);
    }

    /// Whether the lead of a group is to be offered, of which no majority has acknowledged the leader for so long; `None`
    /// when it is not led here.
    pub(crate) fn lasts(&mut self, group: u32, silence: Option<Duration>, now: Instant) -> bool {
        let Some(silence) = silence.filter(|silence| self.punctual && *silence > UNACKNOWLEDGED) else {
            self.silent_for.remove(&group);
            return false;
        };
        let before = self.silent_for.insert(group, silence);
        let offered = self.offered_at.get(&group);
        before.is_some_and(|before| silence > before + GROWTH_MIN)
            && offered.is_none_or(|at| now.saturating_duration_since(*at) >= OFFER_PATIENCE)
    }

    /// The lead of a group was offered.
    pub(crate) fn offered(&mut self, group: u32, now: Instant) {
        self.offered_at.insert(group, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// What comes out of rounds at these times, with these silences of group 1, ms.
    fn verdicts(rounds: &[(u64, Option<u64>)]) -> Vec<bool> {
        let (mut silences, began) = (Silences::default(), Instant::now());
        let mut round = |(at, silence): &(u64, Option<u64>)| {
            let now = began + ms(*at);
            silences.begin_round(now);
            let lasts = silences.lasts(1, silence.map(ms), now);
            if lasts {
                silences.offered(1, now);
            }
            lasts
        };
        rounds.iter().map(&mut round).collect()
    }

    #[test]
    fn a_silence_counts_that_goes_on_from_one_punctual_round_to_the_next() {
        assert_eq!(
            verdicts(&[(0, Some(100)), (500, Some(600)), (1_000, Some(1_100)), (1_500, Some(1_600))]),
            [false, false, false, true]
        );
        assert_eq!(
            verdicts(&[(0, Some(300)), (500, Some(800)), (1_000, Some(850)), (1_500, Some(700))]),
            [false; 4],
            "a slow disk: something was acknowledged in between"
        );
        assert_eq!(
            verdicts(&[(0, Some(100)), (500, Some(700)), (3_000, Some(3_200)), (3_500, Some(100))]),
            [false; 4],
            "this process stood still"
        );
        assert_eq!(
            verdicts(&[(0, Some(700)), (500, None), (1_000, Some(1_700))]),
            [false; 3],
            "not led here"
        );
    }

    #[test]
    fn a_lead_that_came_back_is_not_offered_again_at_once() {
        let rounds: Vec<(u64, Option<u64>)> = (0..40).map(|n| (n * 500, Some(700 + n * 500))).collect();
        let offers: Vec<usize> =
            verdicts(&rounds).iter().enumerate().filter(|(_, offer)| **offer).map(|(n, _)| n).collect();
        assert_eq!(offers, [2, 22]);
    }

    #[test]
    fn groups_are_judged_one_by_one() {
        let (mut silences, began) = (Silences::default(), Instant::now());
        for round in 0..4 {
            let now = began + ms(500) * round;
            silences.begin_round(now);
            let silent = silences.lasts(1, Some(ms(700) + ms(500) * round), now);
            assert_eq!(silent, round >= 2, "{round}");
            assert!(!silences.lasts(2, Some(ms(100)), now));
        }
    }
}
