//! Commands, queries and batches to shard groups. See the crate's documentation for what an error may and may not say;
//! `call` has how a call is attempted.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tidewall_link::LinkOptions;
use tidewall_proto::Seen;
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, sleep_until};

use crate::call::{Answer, Call, ends_doubt};
use crate::clock::ClusterClock;
use crate::group::Group;
use crate::nodes::{Lane, Nodes};
use crate::{ClientError, Topology};

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
    pub(crate) clock: Arc<ClusterClock>,
}

impl std::fmt::Debug for ShardClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ShardClient").field("cluster", &self.topology.cluster).finish_non_exhaustive()
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
        let clock = Arc::new(ClusterClock::new(topology.nodes.iter().map(|node| node.id)));
        Self { topology, options, nodes, groups, clock }
    }

    /// The time by the clocks of the nodes, as far as they were asked.
    pub fn clock(&self) -> &Arc<ClusterClock> {
        &self.clock
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
        self.clock.adopt(topology.nodes.iter().map(|node| node.id));
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
        // Once a copy may have been decided, only the log can say what became of the request.
        let op = |in_doubt| {
            pb::call::Op::Command(pb::Command { logged: command.logged || in_doubt, ..command.clone() })
        };
        match self.call(group, Lane::Commands, op, deadline).await?.result {
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
        self.query_over(Lane::Queries, group, query, deadline).await
    }

    /// Asks what has happened behind a place; the answer may wait until something does. Asks again, through failovers, while
    /// `deadline` lasts.
    ///
    /// # Errors
    /// As [`ShardClient::query`].
    pub async fn changes(
        &self,
        group: u32,
        asked: pb::ListChanges,
        deadline: Instant,
    ) -> Result<pb::Changes, ClientError> {
        let query = pb::Query { op: Some(pb::query::Op::Changes(asked)) };
        match self.query_over(Lane::Changes, group, query, deadline).await?.result {
            Some(pb::query_result::Result::Changes(changes)) => Ok(changes),
            _ => Err(ClientError::Unavailable { why: "the node answered with something else".into() }),
        }
    }

    /// Takes what is to be done outside; the answer may wait until something is due. Asks again, through failovers, while `deadline`
    /// lasts.
    ///
    /// # Errors
    /// As [`ShardClient::query`].
    pub async fn take_effects(
        &self,
        group: u32,
        asked: pb::TakeEffects,
        deadline: Instant,
    ) -> Result<pb::Effects, ClientError> {
        let query = pb::Query { op: Some(pb::query::Op::TakeEffects(asked)) };
        match self.query_over(Lane::Changes, group, query, deadline).await?.result {
            Some(pb::query_result::Result::Effects(effects)) => Ok(effects),
            _ => Err(ClientError::Unavailable { why: "the node answered with something else".into() }),
        }
    }

    /// Says how that has ended. Says it again, through failovers, while `deadline` lasts.
    ///
    /// # Errors
    /// As [`ShardClient::query`]: it may be known all the same.
    pub async fn end_effects(
        &self,
        group: u32,
        ends: Vec<pb::EffectEnd>,
        deadline: Instant,
    ) -> Result<(), ClientError> {
        let query = pb::Query { op: Some(pb::query::Op::EndEffects(pb::EndEffects { ends })) };
        self.query_over(Lane::Changes, group, query, deadline).await.map(drop)
    }

    pub(crate) async fn query_over(
        &self,
        lane: Lane,
        group: u32,
        query: pb::Query,
        deadline: Instant,
    ) -> Result<pb::QueryResult, ClientError> {
        self.query_at_least(lane, group, &query, Seen::default(), deadline).await
    }

    /// Reads at the leader; the time does not go back behind what was seen.
    pub(crate) async fn query_at_least(
        &self,
        lane: Lane,
        group: u32,
        query: &pb::Query,
        seen: Seen,
        deadline: Instant,
    ) -> Result<pb::QueryResult, ClientError> {
        let op = |_| pb::call::Op::Query(query.clone());
        let call = Call::new(self, group, lane, op, deadline)?.at_least(seen);
        match call.run().await.map(|answer| answer.result) {
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
            let op = |_| {
                let commands = open.iter().map(|position| commands[*position].clone()).collect();
                pb::call::Op::Batch(pb::CommandBatch { commands })
            };
            let answer = match self.call(group, Lane::Bulk, op, deadline).await {
                Ok(answer) => answer,
                Err(error) => {
                    let doubted = matches!(error, ClientError::Unknown { .. });
                    open.iter().for_each(|position| in_doubt[*position] |= doubted);
                    return finish(items, &error, &in_doubt);
                }
            };
            // An attempt before the one that was answered may have had any of them decided.
            open.iter().for_each(|position| in_doubt[*position] |= answer.in_doubt);
            let answered = match answer.result {
                pb::reply::Result::Batch(batch) if batch.items.len() == open.len() => batch.items,
                _ => {
                    open.iter().for_each(|position| in_doubt[*position] = true);
                    let why = "the node did not answer the batch item by item".to_owned();
                    return finish(items, &ClientError::Unknown { why }, &in_doubt);
                }
            };
            let mut again = Vec::new();
            for (position, item) in open.iter().copied().zip(answered) {
                match settled(item, &mut in_doubt[position]) {
                    Some(result) => items[position] = Some(result),
                    None => again.push(position),
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

    /// One call until it has an answer that is not about who leads.
    async fn call(
        &self,
        group: u32,
        lane: Lane,
        op: impl Fn(bool) -> pb::call::Op,
        deadline: Instant,
    ) -> Result<Answer, ClientError> {
        Call::new(self, group, lane, op, deadline)?.run().await
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
    pub(crate) fn pause_length(&self, count: u32) -> Duration {
        let full = self.options.backoff_min.saturating_mul(1 << count.min(16)).min(self.options.backoff_max);
        full.mul_f64(tidewall_env::random::rng().random_range(0.5..=1.0))
    }

    /// Waits for pause number `count` of a series, or until the deadline.
    pub(crate) async fn pause(&self, count: u32, deadline: Instant) {
        sleep_until((Instant::now() + self.pause_length(count)).min(deadline)).await;
    }

    /// A refusal of our own: nothing was sent.
    pub(crate) fn overloaded(&self, message: &str) -> ClientError {
        let jitter = tidewall_env::random::rng().random_range(0.5..=1.5);
        ClientError::Overloaded {
            retry_after: Duration::from_millis(200).mul_f64(jitter),
            message: message.to_owned(),
        }
    }
}

/// What has become of an item of a batch; `None` when it must be asked again. `in_doubt` says, before and after, that a copy of
/// it may have been decided without our knowledge.
fn settled(item: pb::BatchItem, in_doubt: &mut bool) -> Option<pb::batch_item::Result> {
    let refusal = match item.result {
        Some(pb::batch_item::Result::Outcome(outcome)) => {
            let known = !*in_doubt || ends_doubt(&outcome);
            return known.then_some(pb::batch_item::Result::Outcome(outcome));
        }
        Some(pb::batch_item::Result::Refusal(refusal)) => refusal,
        None => {
            *in_doubt = true;
            return None;
        }
    };
    match refusal.kind() {
        pb::RefusalKind::Unknown => {
            *in_doubt = true;
            None
        }
        pb::RefusalKind::NotLeader | pb::RefusalKind::Behind | pb::RefusalKind::Halted => None,
        // Nothing was decided by this attempt: that is an answer only if no other one may have been.
        pb::RefusalKind::Overloaded
        | pb::RefusalKind::NotYet
        | pb::RefusalKind::Invalid
        | pb::RefusalKind::Unspecified
            if *in_doubt =>
        {
            None
        }
        pb::RefusalKind::Overloaded
        | pb::RefusalKind::NotYet
        | pb::RefusalKind::Invalid
        | pb::RefusalKind::Unspecified => Some(pb::batch_item::Result::Refusal(refusal)),
    }
}

/// Ends a batch with what is decided; what is not gets a refusal that says what is known of it.
fn finish(
    items: Vec<Option<pb::batch_item::Result>>,
    error: &ClientError,
    in_doubt: &[bool],
) -> Result<pb::OutcomeBatch, ClientError> {
    if items.iter().all(Option::is_none) && !in_doubt.contains(&true) {
        return Err(error.clone());
    }
    let items = items.into_iter().zip(in_doubt).map(|(item, in_doubt)| {
        let result = item.unwrap_or_else(|| {
            let (kind, retry_after) = match error {
                _ if *in_doubt => (pb::RefusalKind::Unknown, Duration::ZERO),
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
                come: None,
            })
        });
        pb::BatchItem { result: Some(result) }
    });
    Ok(pb::OutcomeBatch { items: items.collect() })
}
