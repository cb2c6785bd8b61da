//! Typed client of the shard groups of a cluster.
//!
//! [`ShardClient`] finds the leader of a group, follows it when it moves, and holds and replays calls while
//! their deadlines last, so that a failover looks like a slow answer. Replaying is safe because every
//! mutation carries a request id that the group remembers.
//!
//! This crate must never turn *unknown* into *failed*: once an attempt may have reached a node, only an
//! answer of the group ends the doubt. It knows nothing of what commands mean, and opens no connection
//! but to the nodes of its topology.

mod admin;
mod call;
mod client;
mod clock;
mod error;
pub mod follow;
mod group;
mod keyring;
mod nodes;
mod reads;
pub mod topology;

pub use admin::Importer;
pub use client::{ShardClient, ShardClientOptions};
pub use clock::ClusterClock;
pub use error::ClientError;
pub use keyring::KeyringError;
pub use nodes::node_channel;
pub use reads::seen_in;
pub use topology::Topology;

/// The protocol of [`ShardClient`] and of the node's client port.
pub use tidewall_link::ExchangeProtocol;
/// What [`node_channel`] makes.
pub use tidewall_link::NodeChannel;
/// How ports take connections in, the same for gateways and nodes.
pub use tidewall_link::{AcceptLimits, Accepted, ConnectedFrom, Connections, accept};
/// What processes prove themselves with.
pub use tidewall_link::{Credentials, ProcessRole, TlsError};
