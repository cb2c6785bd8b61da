//! The deterministic core: what a command does to rows, and nothing else.
//!
//! Everything here is a pure function of the rows and of what the log entry carries ([`Context`]). This crate
//! knows no clock, no network, no disk, no randomness, no hash order and no floats; a replica
//! that applies the same entries reaches the same rows, bit by bit.
//!
//! * [`table`] — ordered, paged, copy-on-write tables of rows with a running digest and an undo log
//! * [`codec`] — the byte form of rows and commands
//! * [`counter`] — rows that count
//! * [`incarnation`] — how lives of a group's rows are counted
//! * [`module`] — what a domain module is; [`registry`] — which there are
//! * [`outbox`] — what a change of rows sends to other groups; [`feed`] — what it tells whoever watches
//! * [`accounts`] — accounts, sessions and roles
//! * [`tickets`] — events, tiers, holds and tickets
//! * [`webhooks`] — who is told outside what happens
//!
//! A domain module is one folder: `model` (rows and their keys), `commands` (messages → decide → events → rows), `queries` (reads
//! over rows), `sagas` (what it does together with other groups) if it has any, and `tests`. docs/DOMAINS.md tells how to add one.
#![deny(clippy::float_arithmetic)]

pub mod accounts;
pub mod codec;
pub mod counter;
pub mod feed;
pub mod incarnation;
pub mod module;
pub mod outbox;
pub mod page;
pub mod registry;
pub mod table;
pub mod tickets;
pub mod webhooks;

/// Facts that the log entry carries for a command, the same on every replica.
#[derive(Debug, Clone, Copy)]
pub struct Context {
    /// Log time of the entry, Unix milliseconds: what is compared with times that people and clocks of others set. It goes back
    /// only when it was found to be wrong.
    pub now_ms: u64,
    /// Steady time of the entry, milliseconds: what durations are kept in. It never goes back, and no correction of log time
    /// changes it.
    pub steady_ms: u64,
    /// Life of the group's rows.
    pub incarnation: u64,
    /// Request id of the command (UUIDv7 as a number).
    pub request_id: u128,
    /// Raft log index of the entry.
    pub index: u64,
    /// Position of the command in its entry, from 0.
    pub position: u32,
    /// Behaviour of apply: what a later build does otherwise waits until all members support it.
    pub apply_version: u32,
}

/// The times of a look at the rows between entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Now {
    /// Log time, Unix milliseconds.
    pub log_ms: u64,
    /// Steady time, milliseconds.
    pub steady_ms: u64,
}

/// What a caller may beyond its own, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Roles(pub u32);

impl Roles {
    /// None.
    pub const NONE: Self = Self(0);
    /// Makes and changes events.
    pub const ORGANISER: Self = Self(1);
    /// Buys for others.
    pub const SELLER: Self = Self(2);
    /// Looks after the platform, and may touch what is not its own.
    pub const OPERATOR: Self = Self(4);
    /// Has an account.
    pub const USER: Self = Self(8);
    /// Helps others: sees accounts, and ends sessions.
    pub const SUPPORT: Self = Self(16);
    /// Looks at what was done, and changes nothing.
    pub const AUDITOR: Self = Self(32);
    /// Grants and withdraws roles.
    pub const ADMIN: Self = Self(64);

    /// Whether all of these are among them.
    pub fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

/// Who asks, as the gateway verified it.
#[derive(Debug, Clone, Copy)]
pub struct Caller<'a> {
    /// Subject of the token.
    pub principal: &'a str,
    /// What it may beyond its own.
    pub roles: Roles,
    /// For whom it acts, when not for itself.
    pub on_behalf_of: Option<&'a str>,
}

impl Caller<'_> {
    /// May touch what is not its own.
    pub fn is_operator(&self) -> bool {
        self.roles.contains(Roles::OPERATOR)
    }
}
