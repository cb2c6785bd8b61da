//! What can go wrong, in the words of a plan.
//!
//! A plan is made before it is known which nodes there will be, so it speaks of slots: nodes 1 to 3 begin in slots 1 to 3,
//! who replaces a node takes over its slot, and who is added the lowest free one. **Never here:** when something goes wrong, and how.

use std::fmt;

/// Where a node is in the cluster, from 1; whoever is there at the moment.
pub type Slot = u64;

/// A machine in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    /// The node, or while one is being replaced the nodes, in a slot.
    Node(Slot),
    /// A gateway with its clients, from 1.
    Gateway(usize),
}

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Everything,
    /// Some writes, the last one torn.
    Torn(u64),
    /// Some sectors of some writes.
    Scattered(u64),
}

/// How messages do not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Between these hosts and all others; messages arrive after it, as TCP would bring them.
    Stall(Vec<Host>),
    /// Between these hosts and all others; messages are lost, and with them the connections.
    Lose(Vec<Host>),
    /// From one host to another only; messages are lost.
    OneWay(Host, Host),
    /// On and off, between these hosts and all others.
    Flap(Vec<Host>),
}

/// Something that goes wrong, or is done while other things go wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node dies and comes back.
    Crash {
        /// The node.
        node: Slot,
        /// How long it stays away, ms.
        down_ms: u64,
        /// What its disk loses.
        loss: Loss,
    },
    /// All nodes die at once and come back.
    CrashAll {
        /// How long they stay away, ms.
        down_ms: u64,
        /// What their disks lose.
        loss: Loss,
    },
    /// A gateway dies, with all that it knows, and comes back.
    CrashGateway {
        /// The gateway.
        gateway: usize,
        /// How long it stays away, ms.
        down_ms: u64,
    },
    /// Messages do not arrive.
    Cut {
        /// Which.
        cut: Cut,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// The few messages of some milliseconds are lost, in one direction. Nobody sends them again, so that what was under
    /// way on these connections never arrives, and is noticed by silence only.
    LoseMessages {
        /// From.
        from: Host,
        /// To.
        to: Host,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// All connections between two hosts are reset, and what was under way on them is lost in both directions; when both
    /// are one gateway, those of its clients.
    Reset {
        /// One end.
        one: Host,
        /// The other one.
        other: Host,
    },
    /// All messages are slow.
    Slow {
        /// At most so long, ms.
        latency_ms: u64,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// A node's clock jumps.
    Clock {
        /// The node.
        node: Slot,
        /// By how much, ms.
        by_ms: i64,
    },
    /// A node's log takes long to sync.
    SlowDisk {
        /// The node.
        node: Slot,
        /// At most so long, ms.
        sync_ms: u64,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// A node's next sync fails.
    FailingDisk {
        /// The node.
        node: Slot,
    },
    /// A node dies and comes back with an older state of its disk.
    OldState {
        /// The node.
        node: Slot,
        /// How much older, ms.
        older_ms: u64,
    },
    /// A copy of a node is started beside it.
    Twin {
        /// The node.
        node: Slot,
    },
    /// A lead is handed over.
    Transfer {
        /// The group.
        group: u32,
        /// To this node.
        to: Slot,
    },
    /// A node stores a checkpoint and purges its log.
    Checkpoint {
        /// The node.
        node: Slot,
        /// The group.
        group: u32,
    },
    /// A node dies while it stores a checkpoint, which is left unfinished.
    TornCheckpoint {
        /// The node.
        node: Slot,
        /// The group.
        group: u32,
    },
    /// A node dies, and a part of a checkpoint is gone when it comes back.
    DamagedCheckpoint {
        /// The node.
        node: Slot,
        /// The group.
        group: u32,
    },
    /// All row actors of a group die.
    Actors {
        /// The group.
        group: u32,
    },
    /// The proposer of a group dies.
    Proposer {
        /// The group.
        group: u32,
    },
    /// A node is added.
    AddNode,
    /// A node is removed, if more than three would be left without it.
    RemoveNode {
        /// The node.
        node: Slot,
    },
    /// A node is replaced by a new one.
    ReplaceNode {
        /// The node.
        node: Slot,
        /// It has died, and its disk with it, before anybody does something about it.
        dead: bool,
    },
    /// All nodes but one die, and their disks with them. Somebody orders that one to go on alone, by force, and gives it
    /// new companions.
    Disaster {
        /// The node that is left.
        survivor: Slot,
        /// When the order comes, ms later.
        after_ms: u64,
    },
    /// A group gets the state back that it was exported in before.
    Restore {
        /// The group.
        group: u32,
        /// How much older that state is at least, ms.
        older_ms: u64,
    },
    /// A group gets messages that it cannot carry out.
    Garbage {
        /// The group.
        group: u32,
    },
    /// The leader of a group proposes an entry that no replica can decode.
    Poison {
        /// The group.
        group: u32,
    },
}

impl Fault {
    /// What kind of fault it is, for whoever counts them.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Crash { .. } => "crash",
            Self::CrashAll { .. } => "crash-of-all",
            Self::CrashGateway { .. } => "gateway-crash",
            Self::Cut { .. } => "cut",
            Self::LoseMessages { .. } => "lost-messages",
            Self::Reset { .. } => "reset",
            Self::Slow { .. } => "slow-network",
            Self::Clock { .. } => "clock",
            Self::SlowDisk { .. } => "slow-disk",
            Self::FailingDisk { .. } => "failing-disk",
            Self::OldState { .. } => "old-state",
            Self::Twin { .. } => "twin",
            Self::Transfer { .. } => "transfer",
            Self::Checkpoint { .. } => "checkpoint",
            Self::TornCheckpoint { .. } => "torn-checkpoint",
            Self::DamagedCheckpoint { .. } => "damaged-checkpoint",
            Self::Actors { .. } => "dead-actors",
            Self::Proposer { .. } => "dead-proposer",
            Self::AddNode => "node-add",
            Self::RemoveNode { .. } => "node-remove",
            Self::ReplaceNode { .. } => "node-replace",
            Self::Disaster { .. } => "disaster",
            Self::Restore { .. } => "restore",
            Self::Garbage { .. } => "garbage",
            Self::Poison { .. } => "poison",
        }
    }

    /// Whether it changes the members of the groups.
    pub fn changes_members(&self) -> bool {
        matches!(
            self,
            Self::AddNode | Self::RemoveNode { .. } | Self::ReplaceNode { .. } | Self::Disaster { .. }
        )
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
