//! The actors that serialise hot rows.
//!
//! A [`row::RowActor`] stands for one hot row of a module: it joins repeated requests, answers at once what can
//! only fail, and queues the rest, finishing before starting. A [`proposer::Proposer`] stands for the shard group: it
//! takes from all rows in turn, fairly, and merges what it takes into one Raft entry; while entries are on their
//! way, the next one fills. [`Directory`] finds the actor of a row and makes it when it is needed.
//!
//! Actors hold no authority: apply decides again. An actor that dies loses nothing but its queue, and everybody in it is
//! told (see [`request::Request`]). **Never here:** openraft, disks, sockets. Raft's timers never depend on an
//! actor.

mod directory;
mod home;
mod proposer;
mod request;
mod row;
mod shard;
#[cfg(test)]
mod tests;

pub use directory::{Directory, HotRow, Limits};
pub use home::Home;
pub use request::{Refusal, Reply, Request};
pub use shard::{BoxFuture, Shard};
