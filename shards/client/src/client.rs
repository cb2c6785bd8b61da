//! Calls to shard groups: attempt, follow, hold, replay. See the crate's documentation for what an error
//! may and may not say.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tidewall_link::{LinkError, LinkOptions};
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, sleep_until};

use crate::group::{Entry, Group, Refused};
use crate::nodes::{Lane, Nodes};
use crate::{ClientError, Topology};

/// A first probe may take so long; the next ones twice as long each, up to the attempt's timeout.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// Hints that are followed in a row without a pause.
const FOLLOWS_MAX: u32 = 2;

/// Timeouts and bounds of a [`ShardClient`].
#[derive(Debug, Clone)]
pub struct ShardClientOptions {
    /// Of each connection.
    pub link: LinkOptions,
    /// An attempt that has no reply after this time is repeated, at whatever node leads by then. Doubles
    /// with each repetition of the same call, so that a slow leader is not buried under copies.
    pub attempt_timeout: Duration,
    /// Shortest pause before another node is asked.
    pub backoff_min: Duration,
    /// Longest pause before another node is asked.
    pub backoff_max: Duration,
    /// Most calls per group that may wait for a leader to be found.
    pub held_max: usize,
}

impl Default for ShardClientOptions {
    fn default() -> Self {
        Self {
            link: LinkOptions::default(),
            attempt_timeout: Duration::from_secs(1),
            backoff_min: Duration::from_millis(10),
            backoff_max: Duration::from_millis(100),
            held_max: 16_384,
        }
    }
}

/// Calls the shard groups of one cluster. One per process: share it behind an `Arc`.
pub struct ShardClient {
    pub(crate) topology: Arc<Topology>,
    pub(crate) options: ShardClientOptions,
    pub(crate) nodes: Nodes,
    /// By group number, from 1.
    pub(crate) groups: Vec<Group>,
}

impl std::fmt::Debug for ShardClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardClient").field("cluster", &self.topology.cluster).finish_non_exhaustive()
    }
}

/// What is known of one call while it is attempted again and again.
#[derive(Default)]
struct Progress {
    /// An attempt may have reached a node that decides.
    in_doubt: bool,
    /// Hints followed in a row.
    follows: u32,
    /// Pauses of this call alone.
    pauses: u32,
    /// Attempts without a reply.
    timeouts: u32,
    /// A node that did not reply to the last attempt.
    silent: Option<usize>,
    /// The node that was asked last, when it said that it has halted.
    halted: Option<usize>,
    /// What happened to the last attempt.
    why: Option<String>,
}

impl Progress {
    /// Whom to ask now. A call whose last attempt stayed without a reply asks somebody else who leads; the
    /// others go on believing in the leader, who may be busy with that one row only.
    fn next_node(&mut self, group: &Group) -> usize {
        let node = self.silent.map_or_else(|| group.leader(), |silent| group.after(silent));
        // A late hint to another call may have brought the group's belief back to a halted node.
        if self.halted.take() == Some(node) { group.after(node) } else { node }
    }

    /// Draws the conclusions from the answer of a node that has halted.
    fn note_halted(&mut self, group: &Group, node: usize) {
        self.follows = 0;
        self.halted = Some(node);
        if let Some(silent) = self.silent.take() {
            // Before the halted node, which may be next in turn after the silent one: it is passed over too.
            group.doubt(silent);
        }
        group.doubt(node);
    }

    fn give_up(self) -> ClientError {
        let why = self.why.unwrap_or_else(|| "the deadline passed before the call could be sent".into());
        if self.in_doubt { ClientError::Unknown { why } } else { ClientError::Unavailable { why } }
    }
}

impl ShardClient {
    /// A client of all groups of a cluster. Connects when it is first used. A topology must have passed
    /// [`Topology::check`].
    pub fn new(topology: Arc<Topology>, options: ShardClientOptions) -> Self {
        let nodes = Nodes::new(&topology, options.link.clone());
        let groups = topology
            .regions
            .iter()
            .map(|region| {
                let leader = nodes.position(topology.preferred_leader(region.group)).unwrap_or(0);
                Group::new(topology.nodes.len(), leader)
            })
            .collect();
        Self { topology, options, nodes, groups }
    }

    /// The cluster that this client calls.
    pub fn topology(&self) -> &Arc<Topology> {
        &self.topology
    }

    /// Nodes have joined or left: calls under way go on, the next attempts know of it.
    pub fn adopt(&self, topology: &Topology) {
        let present = self.nodes.adopt(topology);
        for group in &self.groups {
            group.set_nodes(present);
        }
    }

    /// Ids and addresses of the nodes that belong to the cluster now.
    pub fn node_addresses(&self) -> BTreeMap<u64, std::net::SocketAddr> {
        self.nodes.present().into_iter().map(|(_, node)| (node.id, node.address)).collect()
    }

    /// Node id that is believed to lead a group now; `None` when there is no such group.
    pub fn believed_leader(&self, group: u32) -> Option<u64> {
        Some(self.nodes.at(self.group(group).ok()?.leader()).id)
    }

    /// Has a command decided. Replays it under the same request id, through failovers, while `deadline`
    /// lasts.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when it may have been decided; otherwise it was not.
    pub async fn command(
        &self,
        group: u32,
        command: pb::Command,
        deadline: Instant,
    ) -> Result<pb::Outcome, ClientError> {
        let op = || pb::call::Op::Command(command.clone());
        match self.call(group, Lane::Commands, op, Progress::default(), deadline).await? {
            pb::reply::Result::Outcome(outcome) => Ok(outcome),
            _ => Err(ClientError::Unknown { why: "the node answered a command with something else".into() }),
        }
    }

    /// Reads. Asks again, through failovers, while `deadline` lasts.
    ///
    /// # Errors
    /// Never [`ClientError::Unknown`]: a query that has no answer is [`ClientError::Unavailable`].
    pub async fn query(
        &self,
        group: u32,
        query: pb::Query,
        deadline: Instant,
    ) -> Result<pb::QueryResult, ClientError> {
        let op = || pb::call::Op::Query(query.clone());
        match self.call(group, Lane::Queries, op, Progress::default(), deadline).await {
            Ok(pb::reply::Result::Query(result)) => Ok(result),
            Ok(_) => {
                Err(ClientError::Unavailable { why: "the node answered a query with something else".into() })
            }
            Err(ClientError::Unknown { why }) => Err(ClientError::Unavailable { why }),
            Err(error) => Err(error),
        }
    }

    /// Has commands of one row decided, each on its own. What is not decided is replayed while `deadline`
    /// lasts. The answer has one item for each command, in order; an item that is a refusal was not
    /// decided, or, with kind UNKNOWN, may have been.
    ///
    /// # Errors
    /// Only when none of the commands can have been decided.
    pub async fn batch(
        &self,
        group: u32,
        batch: pb::CommandBatch,
        deadline: Instant,
    ) -> Result<pb::OutcomeBatch, ClientError> {
        let commands = batch.commands;
        let mut items: Vec<Option<pb::batch_item::Result>> = vec![None; commands.len()];
        let mut in_doubt = vec![false; commands.len()];
        let mut open: Vec<usize> = (0..commands.len()).collect();
        let mut pauses = 0;
        while !open.is_empty() {
            let op = || {
                let commands = open.iter().map(|position| commands[*position].clone()).collect();
                pb::call::Op::Batch(pb::CommandBatch { commands })
            };
            let progress =
                Progress { in_doubt: open.iter().any(|position| in_doubt[*position]), ..Progress::default() };
            let answer = match self.call(group, Lane::Bulk, op, progress, deadline).await {
                Ok(pb::reply::Result::Batch(answer)) if answer.items.len() == open.len() => answer,
                Ok(_) => {
                    let why = "the node did not answer the batch item by item".to_owned();
                    return finish(items, &ClientError::Unknown { why }, &in_doubt, true);
                }
                Err(error) => {
                    let all_in_doubt = matches!(error, ClientError::Unknown { .. });
                    return finish(items, &error, &in_doubt, all_in_doubt);
                }
            };
            let mut again = Vec::new();
            for (position, item) in open.iter().copied().zip(answer.items) {
                match item.result {
                    Some(result @ pb::batch_item::Result::Outcome(_)) => items[position] = Some(result),
                    Some(pb::batch_item::Result::Refusal(refusal)) => match refusal.kind() {
                        pb::RefusalKind::NotLeader | pb::RefusalKind::Halted => again.push(position),
                        pb::RefusalKind::Overloaded if in_doubt[position] => again.push(position),
                        pb::RefusalKind::Unknown => {
                            in_doubt[position] = true;
                            again.push(position);
                        }
                        pb::RefusalKind::Overloaded
                        | pb::RefusalKind::Invalid
                        | pb::RefusalKind::Unspecified => {
                            items[position] = Some(pb::batch_item::Result::Refusal(refusal));
                        }
                    },
                    None => {
                        in_doubt[position] = true;
                        again.push(position);
                    }
                }
            }
            open = again;
            if !open.is_empty() {
                self.pause(pauses, deadline).await;
                pauses += 1;
            }
        }
        Ok(pb::OutcomeBatch { items: items.into_iter().map(|result| pb::BatchItem { result }).collect() })
    }

    pub(crate) fn group(&self, group: u32) -> Result<&Group, ClientError> {
        (group as usize).checked_sub(1).and_then(|position| self.groups.get(position)).ok_or_else(|| {
            ClientError::Invalid(format!(
                "there is no shard group {group}: the cluster has {}",
                self.groups.len()
            ))
        })
    }

    pub(crate) fn node_position(&self, id: u64) -> Option<usize> {
        self.nodes.position(id)
    }

    /// Pause number `count` of a series: doubling, jittered by half.
    fn pause_length(&self, count: u32) -> Duration {
        let full = self.options.backoff_min.saturating_mul(1 << count.min(16)).min(self.options.backoff_max);
        full.mul_f64(tidewall_env::random::rng().random_range(0.5..=1.0))
    }

    async fn pause(&self, count: u32, deadline: Instant) {
        sleep_until((Instant::now() + self.pause_length(count)).min(deadline)).await;
    }

    /// One call until it has an answer that is not about who leads.
    async fn call(
        &self,
        group_number: u32,
        lane: Lane,
        op: impl Fn() -> pb::call::Op,
        mut progress: Progress,
        deadline: Instant,
    ) -> Result<pb::reply::Result, ClientError> {
        let group = self.group(group_number)?;
        loop {
            let probe_pause = |failures: u32| {
                if failures == 0 { Duration::ZERO } else { self.pause_length(failures - 1) }
            };
            let entry = match group.enter(deadline, self.options.held_max, probe_pause).await {
                Ok(entry) => entry,
                Err(Refused::Full) if !progress.in_doubt => {
                    return Err(self.overloaded("too many calls wait for the region's leader"));
                }
                Err(Refused::Full) => {
                    self.pause(progress.pauses, deadline).await;
                    progress.pauses += 1;
                    if Instant::now() >= deadline {
                        return Err(progress.give_up());
                    }
                    continue;
                }
                Err(Refused::Deadline) => return Err(progress.give_up()),
            };
            let now = Instant::now();
            if now >= deadline {
                return Err(progress.give_up());
            }
            let node = progress.next_node(group);
            let limit = match &entry {
                Entry::Open => self.options.attempt_timeout.saturating_mul(1 << progress.timeouts.min(6)),
                Entry::Probe(probe) => PROBE_TIMEOUT
                    .saturating_mul(1 << probe.failures().min(6))
                    .min(self.options.attempt_timeout),
            };
            let call = pb::Call { id: 0, group: group_number, op: Some(op()) };
            let sent = self.nodes.at(node).lane(lane).call(call, deadline.min(now + limit)).await;
            let refusal = match sent {
                Ok(pb::Reply { result: Some(pb::reply::Result::Refusal(refusal)), .. }) => refusal,
                Ok(pb::Reply { result: Some(result), .. }) => {
                    group.settle(node);
                    return Ok(result);
                }
                Ok(pb::Reply { result: None, .. }) => {
                    progress.in_doubt = true;
                    progress.why = Some(format!("node {} sent an empty reply", self.nodes.at(node).id));
                    self.pause(progress.pauses, deadline).await;
                    progress.pauses += 1;
                    continue;
                }
                Err(error) => {
                    self.note_failed_attempt(&mut progress, group, node, &entry, error);
                    if error == LinkError::Full {
                        if !progress.in_doubt {
                            return Err(self.overloaded("the connection to the region's leader is full"));
                        }
                        self.pause(progress.pauses, deadline).await;
                        progress.pauses += 1;
                    }
                    continue;
                }
            };
            match refusal.kind() {
                pb::RefusalKind::NotLeader => {
                    progress.why = Some(format!("node {} does not lead the region", self.nodes.at(node).id));
                    let hint = self.node_position(refusal.leader_node).filter(|hint| *hint != node);
                    match hint {
                        Some(hint) if progress.follows < FOLLOWS_MAX => {
                            progress.follows += 1;
                            group.learn(node, progress.silent.take(), hint);
                        }
                        _ => {
                            // Nodes that point at each other, or nowhere, are electing.
                            progress.follows = 0;
                            group.doubt(node);
                            if let Some(silent) = progress.silent.take() {
                                // Who hears from a leader names it: the silent one does not lead.
                                group.doubt(silent);
                            }
                            if matches!(entry, Entry::Open) {
                                self.pause(progress.pauses, deadline).await;
                                progress.pauses += 1;
                            }
                        }
                    }
                }
                pb::RefusalKind::Halted => {
                    progress.why =
                        Some(format!("node {} has halted: {}", self.nodes.at(node).id, refusal.message));
                    progress.note_halted(group, node);
                    if matches!(entry, Entry::Open) {
                        self.pause(progress.pauses, deadline).await;
                        progress.pauses += 1;
                    }
                }
                pb::RefusalKind::Unknown => {
                    progress.in_doubt = true;
                    progress.why = Some(refusal.message);
                    self.pause(progress.pauses, deadline).await;
                    progress.pauses += 1;
                }
                pb::RefusalKind::Overloaded => {
                    // A bound is reached before anybody looks who leads: this says nothing about that. So the
                    // next probe goes to another node, and a call that had asked around goes back to the
                    // believed leader; a full node that does not lead would keep both for itself.
                    if matches!(entry, Entry::Probe(_)) {
                        group.doubt(node);
                    }
                    progress.silent = None;
                    let retry_after = Duration::from_millis(u64::from(refusal.retry_after_ms));
                    if !progress.in_doubt {
                        return Err(ClientError::Overloaded { retry_after, message: refusal.message });
                    }
                    // An earlier attempt may have been decided, so that "nothing was decided" would be a
                    // guess: ask again until somebody knows.
                    progress.why = Some(refusal.message);
                    sleep_until((Instant::now() + retry_after.max(self.options.backoff_min)).min(deadline))
                        .await;
                }
                pb::RefusalKind::Invalid | pb::RefusalKind::Unspecified => {
                    return Err(if progress.in_doubt {
                        ClientError::Unknown { why: refusal.message }
                    } else {
                        ClientError::Invalid(refusal.message)
                    });
                }
            }
        }
    }

    /// Draws the conclusions from an attempt without a reply.
    fn note_failed_attempt(
        &self,
        progress: &mut Progress,
        group: &Group,
        node: usize,
        entry: &Entry<'_>,
        error: LinkError,
    ) {
        progress.in_doubt |= error.may_have_arrived();
        let links = self.nodes.at(node);
        progress.why = Some(format!("node {} at {}: {error}", links.id, links.address));
        progress.follows = 0;
        progress.silent = None;
        match error {
            LinkError::Deadline => {
                progress.timeouts += 1;
                match entry {
                    Entry::Open => progress.silent = Some(node),
                    Entry::Probe(_) => group.doubt(node),
                }
            }
            LinkError::Broken | LinkError::NotSent | LinkError::Unreachable => group.doubt(node),
            // A full connection says nothing about who leads: the next probe asks somebody else.
            LinkError::Full => {
                if matches!(entry, Entry::Probe(_)) {
                    group.doubt(node);
                }
            }
        }
    }

    fn overloaded(&self, message: &str) -> ClientError {
        let jitter = tidewall_env::random::rng().random_range(0.5..=1.5);
        ClientError::Overloaded {
            retry_after: Duration::from_millis(200).mul_f64(jitter),
            message: message.to_owned(),
        }
    }
}

/// Ends a batch with what is decided; what is not gets a refusal that says what is known of it.
fn finish(
    items: Vec<Option<pb::batch_item::Result>>,
    error: &ClientError,
    in_doubt: &[bool],
    all_in_doubt: bool,
) -> Result<pb::OutcomeBatch, ClientError> {
    if !all_in_doubt && items.iter().all(Option::is_none) && !in_doubt.contains(&true) {
        return Err(error.clone());
    }
    let items = items.into_iter().zip(in_doubt).map(|(item, in_doubt)| {
        let result = item.unwrap_or_else(|| {
            let (kind, retry_after) = match error {
                _ if all_in_doubt || *in_doubt => (pb::RefusalKind::Unknown, Duration::ZERO),
                ClientError::Overloaded { retry_after, .. } => (pb::RefusalKind::Overloaded, *retry_after),
                ClientError::Invalid(_) => (pb::RefusalKind::Invalid, Duration::ZERO),
                ClientError::Unavailable { .. } | ClientError::Unknown { .. } => {
                    (pb::RefusalKind::NotLeader, Duration::ZERO)
                }
            };
            pb::batch_item::Result::Refusal(pb::Refusal {
                kind: kind.into(),
                leader_node: 0,
                retry_after_ms: u32::try_from(retry_after.as_millis()).unwrap_or(u32::MAX),
                message: error.to_string(),
            })
        });
        pb::BatchItem { result: Some(result) }
    });
    Ok(pb::OutcomeBatch { items: items.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_halted_node_is_not_asked_twice_in_a_row() {
        let group = Group::new(3, 0);
        let mut progress = Progress { halted: Some(0), ..Progress::default() };
        assert_eq!(progress.next_node(&group), 1, "whatever the group believes");
        assert_eq!(progress.next_node(&group), 0, "but later again: it may have been restarted");
        let mut progress = Progress { silent: Some(0), halted: Some(1), ..Progress::default() };
        assert_eq!(progress.next_node(&group), 2);
    }

    #[test]
    fn after_a_silent_and_a_halted_node_the_third_is_asked() {
        let group = Group::new(3, 0);
        let mut progress = Progress { silent: Some(0), ..Progress::default() };
        let asked = progress.next_node(&group);
        assert_eq!(asked, 1);
        progress.note_halted(&group, asked);
        assert_eq!((group.leader(), progress.next_node(&group)), (2, 2));
    }
}
