//! Incarnations of a group: each time that its rows are replaced by earlier ones, a new one begins.
//!
//! Its number counts forced recoveries in the upper half and imports since the last one in the lower half; the first one is 1.
//! What is numbered in an incarnation must never be numbered so in another one: what was sold in a life that was lost keeps its
//! number for itself.

/// So many imports between two forced recoveries are told apart: more are refused.
pub const IMPORTS_MAX: u64 = 999;
/// And so many forced recoveries.
const RECOVERIES_MAX: u64 = 18_000;

/// Things are numbered anew from a multiple of this in each incarnation.
pub const NUMBERS_PER_INCARNATION: u64 = 1_000_000_000_000;

/// The first number of an incarnation: nothing gets one that was given in a life that was lost.
pub fn first_number(incarnation: u64) -> u64 {
    ordinal(incarnation) * NUMBERS_PER_INCARNATION + 1
}

/// How many incarnations may have been before this one: different numbers for different ones, later ones higher.
pub fn ordinal(incarnation: u64) -> u64 {
    let (recoveries, imports) = (incarnation >> 32, incarnation & u64::from(u32::MAX));
    let imports = if recoveries == 0 { imports.saturating_sub(1) } else { imports };
    recoveries.min(RECOVERIES_MAX) * (IMPORTS_MAX + 1) + imports.min(IMPORTS_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_incarnations_have_different_ordinals_that_rise() {
        let imports = [0, 1, 2, 500, IMPORTS_MAX];
        // The first incarnation is 1.
        let first = imports.iter().skip(1).copied();
        let later =
            (1..=RECOVERIES_MAX).flat_map(|recoveries| imports.map(|imports| recoveries << 32 | imports));
        let ordinals: Vec<u64> = first.chain(later).map(ordinal).collect();
        assert!(ordinals.is_sorted_by(|one, next| one < next));
        assert_eq!(ordinals[0], 0);
        // Whatever it is, the number that follows from it exists.
        for incarnation in [0, u64::MAX, u64::MAX << 32, u64::from(u32::MAX)] {
            assert!(ordinal(incarnation) <= 18_000_999, "{incarnation:x}");
        }
    }
}
