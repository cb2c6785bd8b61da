//! The one seam between scenarios and the place where a cluster runs. A driver starts and ends processes and does harm to
//! them; it never decides when, and it knows nothing of regions, leaders or load.

pub mod damage;
pub mod disks;
pub mod local;
pub mod network;
pub mod process;
mod site;
pub mod tools;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use tidewall_load::{Mint, Target};

use crate::ChaosError;

pub use site::Site;

/// A process of the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Member {
    /// A shard node, by its id.
    Node(u64),
    /// A gateway, by its number from 1.
    Gateway(u64),
}

impl std::fmt::Display for Member {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Gateway(id) => write!(f, "gateway {id}"),
        }
    }
}

/// What a driver may be unable to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ability {
    /// Cut members off from each other.
    Partition,
    /// Fill a node's disk.
    FillDisk,
    /// Make a node's writes or syncs fail.
    FailStorage,
    /// Give a node a wrong clock.
    SkewClock,
}

/// Packets from one member to another that get lost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cut {
    /// Whose packets.
    pub from: Vec<Member>,
    /// To whom.
    pub to: Vec<Member>,
}

/// What fails of a node's storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StorageFault {
    /// Writes.
    Write,
    /// Syncs.
    Sync,
}

/// What is done to the files of a node that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// One bit of a record in the Raft log.
    LogBit,
    /// The last bytes of the log, as a crash in the middle of a write leaves them.
    TornTail,
    /// One bit of the checkpoint.
    CheckpointBit,
}

impl Damage {
    /// In words.
    pub fn name(self) -> &'static str {
        match self {
            Self::LogBit => "log bit",
            Self::TornTail => "torn tail",
            Self::CheckpointBit => "checkpoint bit",
        }
    }
}

/// How a process ended by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// The end of its log.
    pub last_words: String,
}

/// Where the members of a cluster shall have their addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hosts {
    /// One for each node; empty for the loopback interface with free ports.
    pub nodes: Vec<IpAddr>,
    /// One for each gateway; empty for one gateway on the loopback interface.
    pub gateways: Vec<IpAddr>,
}

/// A shard node that can be started.
#[derive(Debug, Clone)]
pub struct NodePlan {
    /// Its id.
    pub id: u64,
    /// Its data.
    pub directory: PathBuf,
    /// Client port.
    pub address: SocketAddr,
    /// Peer port.
    pub peer_address: SocketAddr,
}

/// A cluster that is laid out on disk and can be started.
pub struct Blueprint {
    /// The program that runs every member.
    pub program: PathBuf,
    /// The cluster's directory.
    pub root: PathBuf,
    /// Its topology.
    pub topology: PathBuf,
    /// The key that gateways check tokens against.
    pub public_key: PathBuf,
    /// Key with which gateways sign access tokens.
    pub signing_key: PathBuf,
    /// Secret of accounts.
    pub account_key: PathBuf,
    /// Its nodes, by id.
    pub nodes: Vec<NodePlan>,
    /// Where gateways listen.
    pub gateways: Vec<SocketAddr>,
    /// Resource names of its regions.
    pub regions: Vec<String>,
    /// Makes tokens.
    pub mint: Mint,
}

impl std::fmt::Debug for Blueprint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Blueprint")
            .field("root", &self.root)
            .field("nodes", &self.nodes)
            .finish_non_exhaustive()
    }
}

/// A place where a cluster runs.
#[async_trait]
pub trait Driver: Send {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Whether it can do something; otherwise why not, and what would help.
    ///
    /// # Errors
    /// The reason.
    fn supports(&self, ability: Ability) -> Result<(), String>;

    /// Ids of the nodes.
    fn nodes(&self) -> Vec<u64>;

    /// Regions of the cluster.
    fn regions(&self) -> Vec<String>;

    /// The gateway that clients use, and how to make tokens.
    fn target(&self) -> Target;

    /// A second gateway that shares the fate of a node: partitions cut it off together with that one. `None` when the
    /// driver has no such thing.
    fn companion(&self, node: u64) -> Option<Target>;

    /// Process id of a member that runs.
    fn pid(&self, member: Member) -> Option<u32>;

    /// Where logs are.
    fn logs(&self) -> PathBuf;

    /// Starts a member that does not run. Returns when the process was made, not when it serves.
    ///
    /// # Errors
    /// When it cannot be started.
    async fn start(&mut self, member: Member) -> Result<(), ChaosError>;

    /// SIGKILL, or what is like it; returns when the member is gone.
    ///
    /// # Errors
    /// When it cannot be killed.
    async fn kill(&mut self, member: Member) -> Result<(), ChaosError>;

    /// Asks a member to stop in order, and returns when it has.
    ///
    /// # Errors
    /// When it has not within `limit`.
    async fn stop(&mut self, member: Member, limit: Duration) -> Result<Ended, ChaosError>;

    /// Waits for a member to end by itself; `None` when it has not after `limit`.
    ///
    /// # Errors
    /// When it cannot be waited for.
    async fn ended(&mut self, member: Member, limit: Duration) -> Result<Option<Ended>, ChaosError>;

    /// Stops a member in its tracks, without its noticing.
    ///
    /// # Errors
    /// When it cannot be paused.
    async fn pause(&mut self, member: Member) -> Result<(), ChaosError>;

    /// Lets a paused member go on.
    ///
    /// # Errors
    /// When it cannot be resumed.
    async fn resume(&mut self, member: Member) -> Result<(), ChaosError>;

    /// Loses packets from now on, in addition to what is lost already.
    ///
    /// # Errors
    /// When the driver has no network of its own, or it refuses.
    async fn cut(&mut self, cuts: &[Cut]) -> Result<(), ChaosError>;

    /// Loses no packets any more.
    ///
    /// # Errors
    /// When the network refuses.
    async fn heal(&mut self) -> Result<(), ChaosError>;

    /// Leaves this many bytes free on a node's disk.
    ///
    /// # Errors
    /// When the node has no disk of its own.
    async fn fill_disk(&mut self, node: u64, free_bytes: u64) -> Result<(), ChaosError>;

    /// Takes away what [`Driver::fill_disk`] wrote.
    ///
    /// # Errors
    /// When it cannot be removed.
    async fn free_disk(&mut self, node: u64) -> Result<(), ChaosError>;

    /// Makes the storage of a running node fail until it ends.
    ///
    /// # Errors
    /// When that cannot be done.
    async fn fail_storage(&mut self, node: u64, fault: StorageFault) -> Result<(), ChaosError>;

    /// Damages the files of a node that is down; `seed` chooses the place. Returns what was done, in words; `None` when
    /// there is nothing to damage yet.
    ///
    /// # Errors
    /// When files cannot be read or written.
    async fn damage(&mut self, node: u64, damage: Damage, seed: u64) -> Result<Option<String>, ChaosError>;

    /// Undoes [`Driver::damage`]. Only for a node that refused to start and so changed nothing.
    ///
    /// # Errors
    /// When files cannot be written.
    async fn repair(&mut self, node: u64) -> Result<(), ChaosError>;

    /// Gives a node a clock that is wrong by this much, running or not.
    ///
    /// # Errors
    /// When the driver cannot.
    async fn skew_clock(&mut self, node: u64, by_ms: i64) -> Result<(), ChaosError>;

    /// Makes the next starts of a node those of an older build, or of this one again.
    fn set_older_build(&mut self, node: u64, older: bool);

    /// Ends every process and takes everything away that the driver made. Afterwards nothing can be started.
    async fn tear_down(&mut self);
}
