//! Events, their tiers, and who has a place.
//!
//! Invariants, checked on the rows that a command touched before its changes stand:
//! T1 capacity = free + held + sold in every tier; T2 a seat has at most one holder; T3 nobody has more
//! places of an event, held and valid together, than its quota; T4 ticket and hold numbers are never reused.
//!
//! * [`model`] — the rows and the indexes derived from them
//! * [`commands`] — what can be asked for, how it is decided, what it changes
//! * [`queries`] — reads over the rows
//!
//! This module never looks at anything but its rows, the command and the [`Context`](crate::Context).

pub mod commands;
pub mod model;
pub mod queries;
#[cfg(test)]
mod tests;

pub use commands::{Command, Fault, Outcome, Rejection, apply};
pub use model::State;
