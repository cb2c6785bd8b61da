//! A shard node: one process, one data directory, one replica of each shard group.
//!
//! Puts store, consensus and actors together behind two ports: one for gateways and operators ([`exchange`]), one for
//! the other nodes. Raft has threads of its own, so that no client load delays a heartbeat. There are no
//! business rules here: commands are translated, not judged.
//!
//! [`run`] starts a node and returns when it is told to stop, or when it must not go on.

mod admin;
pub mod assembly;
mod clock;
mod config;
mod convert;
mod courier;
mod data;
mod effects;
mod exchange;
#[cfg(test)]
mod fake;
mod feed;
mod files;
mod keeper;
mod keyring;
mod lead;
mod lives;
mod members;
mod metrics;
mod node;
mod reads;
mod recovery;
mod reports;
mod shard;
mod space;
mod standing;
mod threads;
mod views;

pub use config::{NodeConfig, NodeError};
pub use data::{Age, age, fork};
pub use node::run;
pub use space::room_for_new_nodes;
pub use tidewall_link::{Credentials, Met};
pub use tidewall_machine::APPLY_VERSION;
