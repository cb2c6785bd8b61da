//! The replicated state machine around the domain modules.
//!
//! A Raft entry carries many commands ([`entry`]). [`Machine`] runs them in order against rows in memory, keeps
//! log time, remembers outcomes by request id ([`dedupe`]), hashes the log into a chain and the rows into a
//! digest, and hands out frozen pages for checkpoints and snapshots ([`snapshot`]).
//!
//! Like the domain it is pure: no clock, no network, no disk, no randomness, no hash order, no floats. It
//! performs no effect; it returns decisions, keeps what is to be done outside ([`effects`]), and for a while what has happened ([`feed`]). A command that breaks an invariant is taken back and answered
//! with `INTERNAL_INVARIANT`; an entry that does not decode is an [`ApplyError`], which halts the replica.
#![deny(clippy::float_arithmetic)]

mod answer;
pub mod courier;
pub mod dedupe;
pub mod effects;
pub mod entry;
mod error;
pub mod feed;
mod machine;
mod meta;
pub mod snapshot;
pub mod streams;
#[cfg(test)]
mod tests;
pub mod time;

pub use answer::{Answer, Decision, Receipt, RejectReason};
pub use entry::{Command, Delivery, EffectEnd, Entry, Failure, Op, SystemCommand};
pub use error::{ApplyError, LoadError};
pub use machine::{
    DEAD_LETTERS_MAX, DEAD_OF_QUEUE_MAX, DELIVERY_MESSAGES_MAX, DueEffect, FEED_BYTES_MAX, FEED_MS_MAX,
    Frozen, Head, Heard, Loader, Machine, OUTBOX_MAX, Position, QueueState, Replaced, Told, dead_letter_id,
    parse_dead_letter_id,
};
pub use tidewall_domain as domain;
pub use tidewall_messages::Seen;
pub use time::{AsOf, GroupTime, Stamp};

/// Latest behaviour of apply that this build has. The rows begin at 1 and are raised by a replicated command, when
/// every member supports the next; the old behaviour stays in the code until then. A build that meets a higher one
/// refuses to run.
///
/// 1: the first. 2: the parts of an import that nobody goes on with are dropped after [`IMPORT_IDLE_MS`]. 3: there are accounts.
/// 4: what is idempotent by its rows is not remembered. 5: events can be deleted, and ids of what is not remembered may be of any
/// time. 6: groups send each other messages, and e-mails are claimed in all regions. 7: what happens is told
/// to whoever watches. 8: modules hear it as well, and what is to be done outside is kept: webhooks.
pub const APPLY_VERSION: u32 = 8;

/// An import that got no part for so long, milliseconds of log time, is given up: from apply version 2 on.
pub const IMPORT_IDLE_MS: u64 = 600_000;

/// First apply version under which imports are given up.
const GIVES_IMPORTS_UP: u32 = 2;

/// First apply version under which commands that are idempotent by their rows are not remembered.
const REMEMBERS_WHAT_IT_MUST: u32 = 4;

/// First apply version under which the ids of what is not remembered may be of any time.
const LOOKS_AT_NO_ID_IN_VAIN: u32 = 5;

/// First apply version under which groups send each other messages.
pub const SENDS_MESSAGES: u32 = 6;

/// Outcomes are remembered this long by log time, milliseconds.
pub const REMEMBERED_MS: u64 = 24 * 3_600_000;

/// Outcomes of one group take at most about this many bytes; the oldest go first.
pub const REMEMBERED_BYTES_MAX: u64 = 512 << 20;

/// A command may expire this much later than log time, milliseconds: the longest deadline that gateways honour, and some room
/// for clocks. What expires later comes from a clock that is wrong, and nobody could say when its copies are void.
pub const EXPIRY_AHEAD_MS_MAX: u64 = 90_000;

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
