//! The replicated state machine around the domain modules.
//!
//! A Raft entry carries many commands ([`entry`]). [`Machine`] runs them in order against rows in memory, keeps
//! log time, remembers outcomes by request id ([`dedupe`]), hashes the log into a chain and the rows into a
//! digest, and hands out frozen pages for checkpoints and snapshots ([`snapshot`]).
//!
//! Like the domain it is pure: no clock, no network, no disk, no randomness, no hash order, no floats. It
//! performs no effect; it returns decisions. A command that breaks an invariant is taken back and answered
//! with `INTERNAL_INVARIANT`; an entry that does not decode is an [`ApplyError`], which halts the replica.
#![deny(clippy::float_arithmetic)]

pub mod dedupe;
pub mod entry;
mod machine;
mod meta;
pub mod snapshot;
#[cfg(test)]
mod tests;

pub use entry::{Command, Entry, Op, SystemCommand};
pub use machine::{
    Answer, ApplyError, Decision, Frozen, Head, LoadError, Loader, Machine, Outcome, Position, Receipt,
    Reject,
};
pub use tidewall_domain as domain;

/// Behaviour of apply that this build has. Raised only together with a replicated command, when every member
/// supports it; the old behaviour stays in the code until then. A build that meets a higher one
/// refuses to run.
pub const APPLY_VERSION: u32 = 1;

/// Outcomes are remembered this long by log time, milliseconds.
pub const REMEMBERED_MS: u64 = 24 * 3_600_000;

/// Outcomes of one group take at most about this many bytes; the oldest go first.
pub const REMEMBERED_BYTES_MAX: u64 = 512 << 20;

/// A request id may be this far ahead of log time, milliseconds. Small, because what is ahead cannot be forgotten.
pub const ID_AHEAD_MS_MAX: u64 = 60_000;

/// Time in a UUIDv7, milliseconds since 1970.
pub fn id_time_ms(request_id: u128) -> u64 {
    (request_id >> 80) as u64
}

/// The 64-bit hash that guards payloads and stored pages (XXH3).
pub fn hash_64(bytes: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(bytes)
}
