//! The ticket shop's morning: makes the sample trace `tests/traces/ticket-shop-morning.csv`.
//!
//! 50,000 requests in 30 s for eight events. Sales open at 0 s with the headline act; most people come in
//! the first seconds, and the crowd thins out slowly (a power law, not a bell). The second act opens at
//! 12 s, the third at 20 s. One buyer in six comes back. Most ask for one or two tickets, a few for many.
//!
//! Everything is computed with integers from a fixed seed: the same bytes on every machine. It must never
//! depend on the time, the platform's mathematics library or a random number generator's version.

use std::fmt::Write as _;

use crate::chance::mix;
use crate::trace::HEADER;

/// Requests in the trace.
pub const REQUESTS: usize = 50_000;
/// Length of the trace, milliseconds.
pub const LENGTH_MS: u64 = 30_000;
/// Decides everything that is left to chance.
const SEED: u64 = 0x0071_c4e7;
/// Width of the steps in which the crowd's strength is constant, milliseconds.
const STEP_MS: u64 = 50;
/// Different buyers; requests beyond them are of people who come back.
const BUYERS: u64 = 41_000;

/// An act: name, when its sale opens, its share of the crowd, its tiers with their shares.
struct Act {
    name: &'static str,
    opens_ms: u64,
    share: u64,
    tiers: &'static [(&'static str, u64)],
}

const ACTS: [Act; 8] = [
    Act { name: "aurora", opens_ms: 0, share: 460, tiers: &[("stand", 60), ("seat", 30), ("vip", 10)] },
    Act { name: "harbour", opens_ms: 12_000, share: 200, tiers: &[("stand", 70), ("seat", 30)] },
    Act { name: "jazz", opens_ms: 20_000, share: 110, tiers: &[("ga", 80), ("box", 20)] },
    Act { name: "derby", opens_ms: 0, share: 90, tiers: &[("north", 50), ("south", 50)] },
    Act { name: "opera", opens_ms: 0, share: 60, tiers: &[("stalls", 60), ("circle", 30), ("box", 10)] },
    Act { name: "comedy", opens_ms: 0, share: 40, tiers: &[("ga", 100)] },
    Act { name: "circus", opens_ms: 0, share: 25, tiers: &[("ga", 85), ("front", 15)] },
    Act { name: "lecture", opens_ms: 0, share: 15, tiers: &[("ga", 100)] },
];

/// A stream of numbers from a seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(1);
        // The bias of a remainder is far below what 50,000 draws can show.
        mix(self.0 ^ SEED) % bound.max(1)
    }

    /// An index, chosen in proportion to the weights.
    fn weighted(&mut self, weights: impl Iterator<Item = u64> + Clone) -> usize {
        let mut draw = self.below(weights.clone().sum());
        for (index, weight) in weights.enumerate() {
            if draw < weight {
                return index;
            }
            draw -= weight;
        }
        0
    }
}

/// Strength of an act's crowd in a step: nothing before its sale opens, then a power law.
fn strength(act: &Act, step: u64) -> u64 {
    let Some(since) = (step * STEP_MS).checked_sub(act.opens_ms) else {
        return 0;
    };
    // Half of the opening's strength after 1.5 s, a tenth after 13.5 s.
    act.share * 1_000_000 / (1_500 + since)
}

/// The trace as text.
pub fn morning() -> String {
    let mut numbers = Numbers(0);
    let steps = LENGTH_MS / STEP_MS;
    let cells: Vec<(u64, usize, u64)> = (0..steps)
        .flat_map(|step| ACTS.iter().enumerate().map(move |(act, it)| (step, act, strength(it, step))))
        .collect();
    let total: u64 = cells.iter().map(|(_, _, weight)| weight).sum();
    // Largest-remainder by running sums: exactly REQUESTS requests, each cell within one of its share.
    let mut requests: Vec<(u64, usize)> = Vec::with_capacity(REQUESTS);
    let mut seen = 0_u64;
    for (step, act, weight) in cells {
        seen += weight;
        let target = (u128::from(seen) * REQUESTS as u128 / u128::from(total)) as usize;
        while requests.len() < target {
            requests.push((step * STEP_MS + numbers.below(STEP_MS), act));
        }
    }
    requests.sort_unstable_by_key(|(offset_ms, _)| *offset_ms);

    let mut text = String::with_capacity(REQUESTS * 28);
    text.push_str(HEADER);
    text.push('\n');
    let mut newcomers = 0_u64;
    for (offset_ms, act) in requests {
        // Somebody who was here already, or the next newcomer while there are any.
        let again = newcomers > 0 && (newcomers == BUYERS || numbers.below(6) == 0);
        let buyer = if again {
            numbers.below(newcomers)
        } else {
            newcomers += 1;
            newcomers - 1
        };
        let act = &ACTS[act];
        let tier = act.tiers[numbers.weighted(act.tiers.iter().map(|(_, share)| *share))].0;
        let quantity = [1, 2, 3, 4, 6, 8][numbers.weighted([46, 38, 6, 7, 2, 1].into_iter())];
        // Writing into a String cannot fail.
        let _ = writeln!(text, "{offset_ms},b{buyer},{},{tier},{quantity}", act.name);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::trace;

    #[test]
    fn the_repository_carries_exactly_this_morning() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/traces/ticket-shop-morning.csv");
        let file = std::fs::read_to_string(path).unwrap();
        assert!(file == morning(), "{path} differs: make it anew with the example ticket_shop_morning");
    }

    #[test]
    fn the_morning_has_the_shape_that_it_claims() {
        let text = morning();
        assert!(text.len() <= 1_600_000, "{} bytes", text.len());
        let trace = trace::parse(text.as_bytes()).unwrap();
        assert_eq!(trace.arrivals.len(), REQUESTS);
        assert_eq!(trace.events.len(), ACTS.len());
        assert!(trace.events.iter().any(|event| event.tiers.len() == 3));
        assert!(trace.buyers.len() > 35_000 && trace.buyers.len() < REQUESTS);
        let last = trace.arrivals.last().unwrap().offset;
        assert!(last.as_millis() < u128::from(LENGTH_MS) && last.as_millis() > u128::from(LENGTH_MS) - 1_000);
        let within = |from: u128, to: u128| {
            trace.arrivals.iter().filter(|a| (from..to).contains(&a.offset.as_millis())).count()
        };
        let opening = within(0, 1_000);
        assert!(opening > 4 * within(10_000, 11_000), "a burst at the opening");
        assert!(within(12_000, 13_000) > 2 * within(11_000, 12_000), "a second burst");
        assert!(within(29_000, 30_000) > 300, "a heavy tail");
    }
}
