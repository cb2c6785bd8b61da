//! One shard group as the node sees it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use openraft::errors::{
    ChangeMembershipError, ClientWriteError, InitializeError, LinearizableReadError, RaftError,
};
use openraft::impls::{BasicNode, ProgressResponder};
use openraft::raft::ReadPolicy;
use openraft::{Config, ServerState, SnapshotPolicy};
use tidewall_machine::{Decision, Frozen};
use tidewall_store::checkpoint::CheckpointWriter;
use tidewall_store::log::GroupLog;

use crate::fail_stop::FailStop;
use crate::log_store::LogStore;
use crate::network::{Network, Peers};
use crate::state::{SnapshotData, StateHandle, StateMachine};
use crate::types::*;

/// Raft's clock.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// Between heartbeats, ms, rounded up to the grid on which all sleeps of Raft end; less than half of `election_min_ms`. A late
    /// tick can leave one out: followers wait several times as long.
    pub heartbeat_ms: u64,
    /// A follower stands for election after the length of a lease and a random time from this one, ms,
    pub election_min_ms: u64,
    /// to this one, ms; which is also the length of a leader's lease.
    pub election_max_ms: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self { heartbeat_ms: 108, election_min_ms: 220, election_max_ms: 440 }
    }
}

/// What a group needs to run.
pub struct GroupConfig {
    /// Its number, from 1.
    pub number: u32,
    /// This node.
    pub node: u64,
    /// The first members, as (node, peer address): used once, when the group is made.
    pub members: BTreeMap<u64, String>,
    /// Raft's clock.
    pub timing: Timing,
    /// Its part of the node's log.
    pub log: GroupLog,
    /// Its rows.
    pub state: StateHandle,
    /// Writes its checkpoints.
    pub writer: CheckpointWriter,
    /// Links to the other nodes.
    pub peers: Peers,
    /// What to do when the disk fails.
    pub fail_stop: FailStop,
}

/// Why a group could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings contradict each other.
    #[error("the Raft settings are not valid: {0}")]
    Config(String),
    /// openraft refused its storage.
    #[error("group {group} cannot start: {what}")]
    Raft {
        /// The group.
        group: u32,
        /// What openraft said.
        what: String,
    },
}

/// Why a proposal has no decisions.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended: this node does not lead.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<u64>,
    },
    /// The entry may or may not be decided.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// This replica has stopped.
    #[error("this replica has halted: {0}")]
    Halted(String),
}

/// Why the members of a group were not changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This node does not lead.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<u64>,
    },
    /// The change was refused, and nothing has changed.
    #[error("{0}")]
    Refused(String),
    /// An earlier change is not decided yet: a new leader may know of it without knowing that it was. Nothing has changed;
    /// as soon as that one is decided, it can.
    #[error("an earlier change of this group's replicas is not decided yet: ask again")]
    Pending,
    /// The change may or may not happen.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
}

fn change_result(result: Result<(), RaftError<Types, ClientWriteError<Types>>>) -> Result<(), ChangeError> {
    match result {
        Ok(()) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(to))) => {
            Err(ChangeError::NotLeader { leader: to.leader_id })
        }
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
            ChangeMembershipError::InProgress(_),
        ))) => Err(ChangeError::Pending),
        Err(RaftError::APIError(error @ ClientWriteError::ChangeMembershipError(_))) => {
            Err(ChangeError::Refused(error.to_string()))
        }
        Err(error) => Err(ChangeError::Unknown(error.to_string())),
    }
}

/// Why leadership was not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead, or could not confirm that it does.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<u64>,
    },
    /// This replica has stopped.
    #[error("this replica has halted: {0}")]
    Halted(String),
}

/// What a replica is at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Decides.
    Leader,
    /// Follows.
    Follower,
    /// Stands for election.
    Candidate,
    /// Receives, does not vote.
    Learner,
    /// Has stopped.
    Halted,
}

/// A replica's state at a glance.
#[derive(Debug, Clone)]
pub struct GroupStatus {
    /// What it is.
    pub role: Role,
    /// Who leads, as far as it knows.
    pub leader: Option<u64>,
    /// Its term.
    pub term: u64,
    /// Last index in its log.
    pub last_log: u64,
    /// Term of that entry.
    pub last_log_term: u64,
    /// Last index it knows to be committed.
    pub committed: u64,
    /// Last index it has applied.
    pub applied: u64,
    /// Why it has halted.
    pub fault: Option<String>,
}

/// How far a group's checkpoint lies behind.
#[derive(Debug, Clone, Copy)]
pub struct CheckpointState {
    /// Index of the last one.
    pub index: u64,
    /// Pages that changed since.
    pub pages: u64,
    /// Bytes of commands since.
    pub bytes: u64,
}

/// A replica of a shard group on this node; clones share it.
#[derive(Clone)]
pub struct Group {
    number: u32,
    raft: Raft,
    state: StateHandle,
    members: Arc<BTreeMap<u64, String>>,
    /// The lead is being offered.
    offering: Arc<AtomicBool>,
    /// The members are being changed.
    changing: Arc<tokio::sync::Mutex<()>>,
    log: GroupLog,
}

impl Group {
    /// Starts the replica from what its log and checkpoint hold.
    pub async fn start(config: GroupConfig) -> Result<Self, StartError> {
        let Timing { heartbeat_ms, election_min_ms, election_max_ms } = config.timing;
        let settings = Config {
            cluster_name: format!("group-{}", config.number),
            heartbeat_interval: heartbeat_ms,
            election_timeout_min: election_min_ms,
            election_timeout_max: election_max_ms,
            enable_pre_vote: Some(true),
            // Checkpoints are triggered by bytes and time, by the node: entries carry any number of commands.
            snapshot_policy: SnapshotPolicy::Never,
            // A simulation keeps little, so that replicas that were away need snapshots.
            max_in_snapshot_log_to_keep: if tidewall_env::simulation::is_active() { 8 } else { 256 },
            replication_lag_threshold: 100_000,
            max_payload_entries: 64,
            install_snapshot_timeout: 600_000,
            backoff: "50ms".into(),
            // openraft would let a leader that restarts go on in its old term. Its lease would be right, but the read
            // index that it derives from its last *saved* commit may lie below what it had acknowledged: a stale read.
            // A new election makes a new first entry, which covers everything before it.
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        let settings = settings.validate().map_err(|error| StartError::Config(error.to_string()))?;
        let log = config.log.clone();
        let store = LogStore::new(config.log, config.fail_stop.clone());
        let machine = StateMachine::new(config.state.clone(), config.writer, config.fail_stop);
        let network = Network { peers: config.peers, group: config.number, state: config.state.clone() };
        let raft = Raft::new(config.node, Arc::new(settings), network, store, machine);
        let raft =
            raft.await.map_err(|error| StartError::Raft { group: config.number, what: error.to_string() })?;
        Ok(Self {
            number: config.number,
            raft,
            state: config.state,
            members: Arc::new(config.members),
            offering: Arc::default(),
            changing: Arc::default(),
            log,
        })
    }

    /// Makes the group on its first start, with this node as its first candidate. Harmless when it exists.
    pub async fn initialize(&self) -> Result<(), StartError> {
        let members: BTreeMap<u64, BasicNode> =
            self.members.iter().map(|(node, address)| (*node, BasicNode::new(address))).collect();
        match self.raft.initialize(members).await {
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => Ok(()),
            Err(error) => Err(StartError::Raft { group: self.number, what: error.to_string() }),
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its rows.
    pub fn state(&self) -> &StateHandle {
        &self.state
    }

    pub(crate) fn raft(&self) -> &Raft {
        &self.raft
    }

    /// Proposes an entry and waits for its decisions, in the order of its commands.
    ///
    /// There is no timeout here: the caller has one, and treats it as an unknown outcome.
    pub async fn propose(&self, payload: Payload) -> Result<Vec<Decision>, ProposeError> {
        if let Some(why) = self.state.suspended() {
            return Err(ProposeError::Halted(why));
        }
        let (responder, answer) = ProgressResponder::complete_only();
        if let Err(error) = self.raft.client_write_ff(payload, Some(responder)).await {
            return Err(self.halted_or(error.to_string()));
        }
        match answer.await {
            Ok(Ok(response)) => Ok(response.data),
            Ok(Err(ClientWriteError::ForwardToLeader(to))) => {
                Err(ProposeError::NotLeader { leader: to.leader_id })
            }
            Ok(Err(error)) => Err(ProposeError::Unknown(error.to_string())),
            Err(_) => Err(self.halted_or("the replica stopped before it answered".into())),
        }
    }

    fn halted_or(&self, unknown: String) -> ProposeError {
        match self.state.halted() {
            // What was proposed may still be applied by the other replicas.
            Some(why) => ProposeError::Unknown(why),
            None => ProposeError::Unknown(unknown),
        }
    }

    /// Confirms that this node leads, by its lease or by asking a majority, and waits until everything that was
    /// acknowledged before the call is applied here: what is read afterwards is linearizable.
    pub async fn confirm_leadership(&self) -> Result<(), ReadError> {
        if let Some(why) = self.state.halted().or_else(|| self.state.suspended()) {
            return Err(ReadError::Halted(why));
        }
        if tidewall_mutant::active(tidewall_mutant::Mutant::ReadWithoutLease) && self.raft.is_leader() {
            return Ok(());
        }
        match self.raft.ensure_linearizable(ReadPolicy::LeaseRead).await {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to))) => {
                Err(ReadError::NotLeader { leader: to.leader_id })
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ReadError::NotLeader { leader: None })
            }
            Err(RaftError::Fatal(error)) => Err(ReadError::Halted(error.to_string())),
        }
    }

    /// Whether this node believes to lead. Belief is no proof: good for routing, not for reads.
    pub fn believes_to_lead(&self) -> bool {
        self.raft.is_leader() && self.state.halted().is_none()
    }

    /// Who leads, as far as this replica knows.
    pub fn believed_leader(&self) -> Option<u64> {
        use openraft::async_runtime::watch::WatchReceiver as _;
        self.raft.server_metrics().borrow_watched().current_leader
    }

    /// The replica's state.
    pub fn status(&self) -> GroupStatus {
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let fault =
            self.state.halted().or_else(|| metrics.running_state.as_ref().err().map(|e| e.to_string()));
        let role = match metrics.state {
            _ if fault.is_some() => Role::Halted,
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Halted,
        };
        GroupStatus {
            role,
            leader: metrics.current_leader,
            term: metrics.current_term,
            last_log: metrics.last_log_index.unwrap_or(0),
            last_log_term: self.log.state().last.map_or(0, |last| last.term),
            committed: metrics.local_committed.map_or(0, |id| id.index),
            applied: metrics.last_applied.map_or(0, |id| id.index),
            fault,
        }
    }

    /// Entries that a majority has, as far as this replica was told, and that it has not applied.
    pub fn behind(&self) -> u64 {
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let committed = metrics.cluster_committed.max(metrics.local_committed).map_or(0, |id| id.index);
        committed.saturating_sub(metrics.last_applied.map_or(0, |id| id.index))
    }

    /// How far the checkpoint lies behind.
    pub fn checkpoint_state(&self) -> CheckpointState {
        CheckpointState {
            index: self.state.checkpoint_index(),
            pages: self.state.read(|machine| machine.changed_pages() as u64),
            bytes: self.state.bytes_since_freeze(),
        }
    }

    /// Asks for a checkpoint; the log behind it is purged once it is durable and verified.
    pub async fn checkpoint(&self) {
        if let Err(error) = self.raft.trigger().snapshot().await {
            tracing::warn!(group = self.number, %error, "no checkpoint: the replica has stopped");
        }
    }

    /// Stands for election now, after a pre-vote.
    pub async fn stand_for_election(&self) {
        if let Err(error) = self.raft.trigger().elect(true).await {
            tracing::warn!(group = self.number, %error, "no election: the replica has stopped");
        }
    }

    /// Hands leadership to another voter that has everything. The caller watches for the result.
    ///
    /// A node that does not vote is not offered anything, nor this one what it has. openraft's leader never decides anything again once it has offered its
    /// lead. If the other one does not take it,
    /// because it has died, say, the lead is offered to the rest in turn until somebody does.
    pub async fn transfer_leadership(&self, to: u64) {
        let term = self.status().term;
        if self.believed_leader() == Some(to) || !self.members().0.contains(&to) {
            tracing::warn!(group = self.number, to, "no transfer: that node leads, or does not vote");
            return;
        }
        if let Err(error) = self.raft.trigger().transfer_leader(to).await {
            tracing::warn!(group = self.number, %error, "no transfer: the replica has stopped");
            return;
        }
        if !self.offering.swap(true, Ordering::AcqRel) {
            let group = self.clone();
            tokio::spawn(async move {
                group.offer_until_taken(term, to).await;
                group.offering.store(false, Ordering::Release);
            });
        }
    }

    /// Offers the lead of a term until this replica has lost it.
    async fn offer_until_taken(&self, mut term: u64, mut offered: u64) {
        /// Longer than an election takes that goes well.
        const PATIENCE: Duration = Duration::from_secs(1);
        loop {
            tokio::time::sleep(PATIENCE).await;
            let status = self.status();
            if status.role != Role::Leader {
                return;
            }
            if status.term != term {
                // The lead came back meanwhile, and may have been offered again: that offer is looked after, too.
                term = status.term;
                continue;
            }
            let (voters, _) = self.members();
            let fit = |peer: &&u64| self.caught_up(**peer);
            let Some(next) = voters.range(offered + 1..).chain(&voters).find(fit).copied() else { continue };
            tracing::warn!(
                group = self.number,
                offered,
                next,
                "the lead was not taken: it is offered to another node"
            );
            offered = next;
            if self.raft.trigger().transfer_leader(next).await.is_err() {
                return;
            }
        }
    }

    /// Who votes in the group, and who only receives, as far as this replica knows.
    pub fn members(&self) -> (BTreeSet<u64>, BTreeSet<u64>) {
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        (membership.voter_ids().collect(), membership.learner_ids().collect())
    }

    /// Whether a change of members has begun and is not done.
    pub fn is_changing(&self) -> bool {
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        metrics.membership_config.membership().get_joint_config().len() > 1
    }

    /// Waits until all that the log was given so far is durable.
    ///
    /// # Errors
    /// Why it will never be.
    pub async fn log_is_durable(&self) -> Result<(), String> {
        let (sender, receiver) = tokio::sync::oneshot::channel();
        self.log.barrier(Box::new(move |result| {
            // Whoever waited may have gone.
            let _ = sender.send(result);
        }));
        receiver.await.map_err(|_| "the log was closed".to_owned())?.map_err(|error| error.to_string())
    }

    /// Held by whoever changes the members, so that no change works with what another one has changed.
    pub async fn changing(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.changing).lock_owned().await
    }

    /// Whether this replica may stand for election. It votes and follows in either case.
    pub fn allow_election(&self, allowed: bool) {
        self.raft.runtime_config().elect(allowed);
    }

    /// Entries that a peer lacks of this leader's log; `None` when nothing of it is known.
    pub fn lag(&self, peer: u64) -> Option<u64> {
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let matched = metrics.replication.as_ref()?.get(&peer)?.as_ref()?;
        Some(last.saturating_sub(matched.index))
    }

    /// Lets a node receive the group's log without a vote. Harmless when it does already.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn add_learner(&self, node: u64, address: String) -> Result<(), ChangeError> {
        change_result(self.raft.add_learner(node, BasicNode::new(address), false).await.map(drop))
    }

    /// Lets exactly these nodes vote; who voted before and is not among them leaves the group. Each must be a member
    /// already. Ends when the change is committed by the old majority and by the new one.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn set_voters(&self, voters: BTreeSet<u64>) -> Result<(), ChangeError> {
        change_result(self.raft.change_membership(voters, false).await.map(drop))
    }

    /// Lets members leave that do not vote.
    ///
    /// # Errors
    /// See [`ChangeError`].
    pub async fn remove_learners(&self, learners: BTreeSet<u64>) -> Result<(), ChangeError> {
        let change = openraft::ChangeMembers::RemoveNodes(learners);
        change_result(self.raft.change_membership(change, false).await.map(drop))
    }

    /// Whether a peer has all but the last few entries of this leader, so that leadership can go there.
    pub fn caught_up(&self, peer: u64) -> bool {
        /// Under load the last entries are always on their way.
        const LAG_MAX: u64 = 16;
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let last = metrics.last_log_index.unwrap_or(0);
        let replication = metrics.replication.as_ref().and_then(|progress| progress.get(&peer));
        replication.is_some_and(|matched| matched.as_ref().is_some_and(|id| id.index + LAG_MAX >= last))
    }

    /// How long ago this leader sent what a majority acknowledged last; `None` when this replica does not lead, or was
    /// never acknowledged in this term.
    pub fn unacknowledged_for(&self) -> Option<Duration> {
        use openraft::Instant as _;
        use openraft::async_runtime::watch::WatchReceiver as _;
        let metrics = self.raft.metrics();
        let acknowledged = metrics.borrow_watched().last_quorum_acked?;
        Some(acknowledged.elapsed())
    }

    /// Everything there is at one index, to be exported.
    ///
    /// # Errors
    /// Why there is nothing to export.
    pub async fn freeze(&self) -> Result<Arc<Frozen>, String> {
        // openraft asks the state machine between two entries, where a freeze is whole.
        match self.raft.get_snapshot().await.map_err(|error| error.to_string())?.map(|found| found.snapshot) {
            Some(SnapshotData::Frozen(frozen)) => Ok(frozen),
            _ => Err("the group has decided nothing yet".into()),
        }
    }

    /// Stops the replica; what it has acknowledged is on disk.
    pub async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(group = self.number, %error, "the replica did not stop cleanly");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::errors::InProgress;

    /// Whoever asks for a change right after an election is to ask again, and not to give up.
    #[test]
    fn a_change_that_is_not_decided_yet_is_no_refusal() {
        let log_id = |index| Some(LogId::new(LeaderId { term: 1, node_id: 1 }, index));
        let pending = InProgress { committed: log_id(0), membership_log_id: log_id(151) };
        let refused =
            |error| change_result(Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))));
        assert_eq!(refused(ChangeMembershipError::InProgress(pending)), Err(ChangeError::Pending));
        let other = refused(ChangeMembershipError::EmptyMembership(openraft::errors::EmptyMembership {}));
        assert!(matches!(other, Err(ChangeError::Refused(_))), "{other:?}");
    }
}
