//! One multiplexed, flow-controlled gRPC stream between two processes.
//!
//! A [`Link`] is the calling half: it owns a connection, matches replies to calls by id, packs calls that
//! queue up into one message, fails everything in flight at once when the connection breaks, and connects
//! again. [`serve`] is the answering half. What the messages are is a [`Protocol`]: [`ExchangeProtocol`]
//! between gateways and shard nodes, [`PeerProtocol`] between shard nodes.
//!
//! This crate must never replay a call, choose another node or interpret an answer: whoever calls knows
//! whether that is safe. It never says that a call failed when it may have arrived: see [`LinkError`].

mod accept;
mod client;
mod error;
mod guarded;
mod identity;
mod lives;
mod options;
mod pending;
mod protocol;
mod said;
mod server;
mod socket;
mod tls;
mod wire;

pub use accept::{AcceptLimits, Accepted, ConnectedFrom, Connections, Incoming, accept};
pub use client::{CallStream, Link};
pub use error::LinkError;
pub use identity::{Identified, NodeChannel, NodeIdentity, Parties, calling_node};
pub use lives::{Claim, Life, Lives, Met, OpenStream, Refusal};
pub use options::{LinkOptions, ServeOptions, connect, connect_lazy, server_builder};
pub use protocol::{ExchangeProtocol, PeerProtocol, Protocol};
pub use server::{Handler, ReplySender, ReplyStream, serve};
pub use socket::incoming;
pub use tls::{Credentials, ProcessRole, TlsError};
