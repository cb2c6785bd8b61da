//! Raft, as openraft does it, wired to our log, our state machine and our links.
//!
//! The only crate that names openraft. [`Group`] is what the rest of the node sees of it: propose an entry, confirm
//! leadership before a read, look at the state, checkpoint, move the leadership. [`PeerServer`] answers the
//! other replicas. What openraft calls a snapshot is a verified checkpoint on the local disk; when another replica
//! needs one, the whole state is frozen and streamed as a snapshot file.
//!
//! **Never here:** what a command means, and any decision that is not Raft's.

pub mod agreement;
mod appends;
mod come;
mod convert;
mod fail_stop;
mod group;
mod log_store;
mod network;
mod peer_server;
pub mod recovery;
mod runtime;
mod state;
#[cfg(test)]
mod tests;
mod types;

pub use come::Come;
pub use fail_stop::{FailStop, StorageFault};
pub use group::{
    ChangeError, CheckpointState, Group, GroupConfig, GroupStatus, ProposeError, ReadError, Role, StartError,
    Timing,
};
pub use network::{Peers, PeersConfig};
pub use peer_server::PeerServer;
pub use runtime::take_place;
pub use state::StateHandle;
pub use types::Payload;
