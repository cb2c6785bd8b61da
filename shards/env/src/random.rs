//! Chance: the operating system's, or in a simulation what its seed says.
//!
//! For pauses, spreads and the like, and for keys and salts, which have a function of their own. Never where a decision must be the
//! same everywhere.

use rand::RngCore;

use crate::simulation;

/// A source of random numbers for the current thread.
#[derive(Debug, Clone, Copy, Default)]
pub struct Chance(());

/// The source of the current thread.
pub fn rng() -> Chance {
    Chance(())
}

/// Bytes that nobody can guess, for keys, salts and nonces: from a generator that the operating system seeds and seeds again. In a
/// simulation they are what its seed says.
pub fn secret<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rng().fill_bytes(&mut bytes);
    bytes
}

/// One number.
pub fn number() -> u64 {
    rng().next_u64()
}

impl RngCore for Chance {
    fn next_u32(&mut self) -> u32 {
        simulation::draw(RngCore::next_u32).unwrap_or_else(|| rand::rng().next_u32())
    }

    fn next_u64(&mut self) -> u64 {
        simulation::draw(RngCore::next_u64).unwrap_or_else(|| rand::rng().next_u64())
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        if simulation::draw(|chance| chance.fill_bytes(bytes)).is_none() {
            rand::rng().fill_bytes(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::Rng as _;

    #[test]
    fn numbers_differ() {
        let mut chance = rng();
        let first: u128 = chance.random();
        assert_ne!(first, chance.random());
        let mut bytes = [0; 32];
        chance.fill_bytes(&mut bytes);
        assert_ne!(bytes, [0; 32]);
    }
}
