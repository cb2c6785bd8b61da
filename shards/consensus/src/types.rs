//! openraft's generics, filled in once.

use bytes::Bytes;
use tidewall_machine::{Decision, Entry};

openraft::declare_raft_types!(
    /// The types of a shard group.
    pub Types:
        D = Payload,
        R = Vec<Decision>,
        Node = openraft::impls::BasicNode,
        AsyncRuntime = crate::runtime::RaftRuntime,
);

pub type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub type LogId = openraft::LogId<LeaderId>;
pub type Vote = openraft::impls::Vote<LeaderId>;
pub type RaftEntry = openraft::type_config::alias::EntryOf<Types>;
pub type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;
pub type Membership = openraft::Membership<u64, openraft::impls::BasicNode>;
pub type Raft = openraft::Raft<Types, crate::state::StateMachine>;
pub type SnapshotMeta = openraft::type_config::alias::SnapshotMetaOf<Types>;
pub type Snapshot = openraft::type_config::alias::SnapshotOf<Types, crate::state::SnapshotData>;

/// First byte of a log payload: nothing but an entry.
pub const KIND_BLANK: u8 = 0;
/// First byte of a log payload: commands follow.
pub const KIND_NORMAL: u8 = 1;
/// First byte of a log payload: a membership follows.
pub const KIND_MEMBERSHIP: u8 = 2;

/// The commands of an entry, in the form in which they go to disk and to the other replicas: the kind
/// byte, then the encoded [`Entry`].
#[derive(Clone, PartialEq, Eq)]
pub struct Payload(pub(crate) Bytes);

impl Payload {
    /// Encodes an entry.
    pub fn new(entry: &Entry) -> Self {
        let mut bytes = vec![KIND_NORMAL];
        bytes.extend_from_slice(&entry.encode());
        Self(bytes.into())
    }

    /// An entry that no build decodes: each replica that comes to apply it halts. For tests and simulation.
    pub fn poison() -> Self {
        const NO_SUCH_FORMAT: u8 = 200;
        Self(Bytes::from_static(&[KIND_NORMAL, NO_SUCH_FORMAT, 1, 2, 3]))
    }

    /// Bytes in the log.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none; never for a payload made by [`Payload::new`].
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Debug for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Payload({} bytes)", self.0.len())
    }
}

impl std::fmt::Display for Payload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}
