//! Chance that a seed decides. It must never ask anything else, so that the same seed gives the same run.

use std::time::Duration;

/// A pause from 0 to `most` that only depends on its arguments.
pub(crate) fn jitter(seed: u64, index: u64, attempt: u32, most: Duration) -> Duration {
    let mixed = mix(seed ^ mix(index) ^ mix(u64::from(attempt) << 32));
    most.mul_f64((mixed >> 11) as f64 / (1_u64 << 53) as f64)
}

/// SplitMix64's finaliser: spreads every bit of its argument over the result.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_depends_on_the_seed_alone_and_stays_in_its_bounds() {
        let most = Duration::from_millis(10);
        let row = |seed| (0..200).map(move |n| jitter(seed, n, 1, most)).collect::<Vec<_>>();
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
        assert!(row(7).iter().all(|pause| *pause <= most));
        assert!(row(7).iter().any(|pause| *pause > most / 2) && row(7).iter().any(|pause| *pause < most / 2));
    }
}
