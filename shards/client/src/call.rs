//! One call to a shard group: attempt, follow, hold, replay, until there is an answer that is not about who leads. It must
//! never call something undecided that an attempt may have had decided.

use std::time::Duration;

use tidewall_link::LinkError;
use tidewall_proto::Seen;
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, sleep_until};

use crate::ClientError;
use crate::client::ShardClient;
use crate::group::{Entry, Group, Refused};
use crate::nodes::Lane;
use crate::reads::shown;

/// A first probe may take so long; the next ones twice as long each, up to the attempt's timeout.
const PROBE_TIMEOUT: Duration = Duration::from_millis(250);
/// How long something is waited for that not all replicas know yet.
const NOT_YET_PATIENCE: Duration = Duration::from_secs(5);
/// Hints that are followed in a row without a pause.
const FOLLOWS_MAX: u32 = 2;

/// What a call ends with.
pub(crate) struct Answer {
    pub(crate) result: pb::reply::Result,
    /// An attempt before the one that was answered may have had something decided.
    pub(crate) in_doubt: bool,
}

/// Whether an outcome says what became of a request of which a copy may have been decided before. What carries a receipt was
/// decided in the log, once and for ever. A "no" without one was said by a leader who knew of no copy: one may still be on its
/// way. But what has expired has expired for all copies, and an id that was used for something else cannot be used for this.
///
/// The one place with this rule among the gateway's; applications have theirs in the SDK, for copies of their own.
pub(crate) fn ends_doubt(outcome: &pb::Outcome) -> bool {
    let reason = match &outcome.result {
        Some(pb::outcome::Result::Rejection(rejection)) => rejection.reason.as_str(),
        _ => "",
    };
    outcome.receipt.is_some() || matches!(reason, "EXPIRED" | "REQUEST_ID_REUSED")
}

/// What a node has said to a whole batch, when it has decided none of it: that is about who leads, not about the batch.
fn refusal_of_all(result: &pb::reply::Result) -> Option<pb::Refusal> {
    let pb::reply::Result::Batch(batch) = result else { return None };
    let refusal = |item: &pb::BatchItem| match &item.result {
        Some(pb::batch_item::Result::Refusal(refusal)) => Some(refusal.clone()),
        _ => None,
    };
    let elsewhere = |refusal: &pb::Refusal| {
        matches!(refusal.kind(), pb::RefusalKind::NotLeader | pb::RefusalKind::Halted)
    };
    let first = refusal(batch.items.first()?)?;
    batch.items.iter().all(|item| refusal(item).is_some_and(|refusal| elsewhere(&refusal))).then_some(first)
}

/// Whether an answer proves that the node leads.
fn proves_lead(result: &pb::reply::Result) -> bool {
    let pb::reply::Result::Batch(batch) = result else { return true };
    batch.items.iter().any(|item| matches!(item.result, Some(pb::batch_item::Result::Outcome(_))))
}

/// What is left of a doubt about earlier attempts.
enum Doubt {
    /// Nothing: the answer counts.
    Ended,
    /// It is as it was: ask again.
    Stays,
    /// Nobody can end it.
    ForEver,
}

/// A call, and what is known of it.
pub(crate) struct Call<'a, F> {
    client: &'a ShardClient,
    group_number: u32,
    group: &'a Group,
    lane: Lane,
    /// Makes the message, anew for each attempt; told whether an earlier one may have been decided.
    op: F,
    deadline: Instant,
    /// What the caller of a read has seen already.
    at_least: Seen,
    progress: Progress,
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
    /// Since when it is told that not all replicas know what it asks for.
    not_yet: Option<Instant>,
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

    /// Ends the call at its deadline.
    fn give_up(&mut self) -> ClientError {
        let why = self.why.take();
        let why = why.unwrap_or_else(|| "the deadline passed before the call could be sent".into());
        if self.in_doubt { ClientError::Unknown { why } } else { ClientError::Unavailable { why } }
    }
}

impl<'a, F: Fn(bool) -> pb::call::Op> Call<'a, F> {
    /// A call that is not yet attempted.
    ///
    /// # Errors
    /// [`ClientError::Invalid`] when there is no such group.
    pub(crate) fn new(
        client: &'a ShardClient,
        group_number: u32,
        lane: Lane,
        op: F,
        deadline: Instant,
    ) -> Result<Self, ClientError> {
        let group = client.group(group_number)?;
        let (at_least, progress) = (Seen::default(), Progress::default());
        Ok(Self { client, group_number, group, lane, op, deadline, at_least, progress })
    }

    /// What the caller of a read has seen already.
    pub(crate) fn at_least(self, at_least: Seen) -> Self {
        Self { at_least, ..self }
    }

    /// Attempts the call until it has an answer that is not about who leads.
    ///
    /// # Errors
    /// [`ClientError::Unknown`] when an attempt may have been decided; otherwise none was.
    pub(crate) async fn run(mut self) -> Result<Answer, ClientError> {
        loop {
            // Kept until the conclusions are drawn, pauses included: who probes goes on probing alone.
            let entry = self.enter().await?;
            let node = self.progress.next_node(self.group);
            let asked = Instant::now();
            match self.attempt(node, &entry).await {
                Ok(Some(pb::reply::Result::Refusal(refusal))) => self.refused(node, &entry, refusal).await?,
                Ok(Some(result)) => {
                    if let Some(refusal) = refusal_of_all(&result) {
                        self.refused(node, &entry, refusal).await?;
                        continue;
                    }
                    if proves_lead(&result) {
                        self.group.settle(node);
                    }
                    if let Some(seen) = shown(&result) {
                        self.group.replicas.note(asked, seen);
                    }
                    match self.doubt_after(&result) {
                        Doubt::Ended => {}
                        Doubt::Stays => {
                            self.pause().await;
                            continue;
                        }
                        Doubt::ForEver => return Err(self.progress.give_up()),
                    }
                    return Ok(Answer { result, in_doubt: self.progress.in_doubt });
                }
                Ok(None) => {
                    self.progress.in_doubt = true;
                    self.progress.why = Some(format!("node {} sent an empty reply", self.node_id(node)));
                    self.pause().await;
                }
                Err(error) => self.unanswered(node, &entry, error).await?,
            }
        }
    }

    /// What an answer says about an earlier attempt that may have been decided.
    fn doubt_after(&mut self, result: &pb::reply::Result) -> Doubt {
        let pb::reply::Result::Outcome(outcome) = result else { return Doubt::Ended };
        if !self.progress.in_doubt || ends_doubt(outcome) {
            return Doubt::Ended;
        }
        let Some(pb::outcome::Result::Rejection(rejection)) = &outcome.result else { return Doubt::Stays };
        self.progress.why = Some(format!("a later attempt was refused: {}", rejection.message));
        // What was decided under this id is forgotten: nobody will ever say what it was.
        if rejection.reason == "REQUEST_ID_EXPIRED" { Doubt::ForEver } else { Doubt::Stays }
    }

    /// Waits for leave to make an attempt.
    async fn enter(&mut self) -> Result<Entry<'a>, ClientError> {
        let client = self.client;
        let probe_pause = |failures: u32| {
            if failures == 0 { Duration::ZERO } else { client.pause_length(failures - 1) }
        };
        loop {
            match self.group.enter(self.deadline, client.options.held_max, probe_pause).await {
                Ok(entry) if Instant::now() < self.deadline => return Ok(entry),
                Ok(_) | Err(Refused::Deadline) => return Err(self.progress.give_up()),
                Err(Refused::Full) if !self.progress.in_doubt => {
                    return Err(client.overloaded("too many calls wait for the region's leader"));
                }
                Err(Refused::Full) => {
                    self.pause().await;
                    if Instant::now() >= self.deadline {
                        return Err(self.progress.give_up());
                    }
                }
            }
        }
    }

    /// Asks a node once. `None` is a reply without content.
    async fn attempt(&self, node: usize, entry: &Entry<'_>) -> Result<Option<pb::reply::Result>, LinkError> {
        let timeout = self.client.options.attempt_timeout;
        let limit = match entry {
            Entry::Open => timeout.saturating_mul(1 << self.progress.timeouts.min(6)),
            Entry::Probe(probe) => PROBE_TIMEOUT.saturating_mul(1 << probe.failures().min(6)).min(timeout),
        };
        let until = self.deadline.min(Instant::now() + limit);
        let mut op = (self.op)(self.progress.in_doubt);
        // Others wait for the end of a probe: it waits for nothing that may happen.
        if let (Entry::Probe(_), pb::call::Op::Query(query)) = (entry, &mut op) {
            match &mut query.op {
                Some(pb::query::Op::Changes(asked)) => asked.wait_ms = 0,
                Some(pb::query::Op::TakeEffects(asked)) => asked.wait_ms = 0,
                _ => {}
            }
        }
        let at_least = (self.at_least != Seen::default()).then_some(self.at_least);
        let call = pb::Call { id: 0, group: self.group_number, op: Some(op), at_least, anywhere: false };
        let links = self.client.nodes.at(node);
        Ok(links.lane(self.lane).call(call, until).await?.result)
    }

    /// Draws the conclusions from an attempt without a reply.
    async fn unanswered(
        &mut self,
        node: usize,
        entry: &Entry<'_>,
        error: LinkError,
    ) -> Result<(), ClientError> {
        let Self { client, group, progress, .. } = self;
        progress.in_doubt |= error.may_have_arrived();
        let links = client.nodes.at(node);
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
            LinkError::Full => {
                // A full connection says nothing about who leads: the next probe asks somebody else.
                if matches!(entry, Entry::Probe(_)) {
                    group.doubt(node);
                }
                if !progress.in_doubt {
                    return Err(client.overloaded("the connection to the region's leader is full"));
                }
                self.pause().await;
            }
        }
        Ok(())
    }

    /// Draws the conclusions from a refusal.
    async fn refused(
        &mut self,
        node: usize,
        entry: &Entry<'_>,
        refusal: pb::Refusal,
    ) -> Result<(), ClientError> {
        match refusal.kind() {
            // Only replicas that were not asked as the leader say so.
            pb::RefusalKind::Behind => self.not_leader(node, entry, 0).await,
            pb::RefusalKind::NotLeader => self.not_leader(node, entry, refusal.leader_node).await,
            pb::RefusalKind::Halted => {
                let id = self.node_id(node);
                self.progress.why = Some(format!("node {id} has halted: {}", refusal.message));
                self.progress.note_halted(self.group, node);
                self.pause_unless_probing(entry).await;
            }
            pb::RefusalKind::Unknown => {
                self.progress.in_doubt = true;
                self.progress.why = Some(refusal.message);
                self.pause().await;
            }
            pb::RefusalKind::NotYet => return self.not_yet(node, entry, refusal).await,
            pb::RefusalKind::Overloaded => return self.node_overloaded(node, entry, refusal).await,
            pb::RefusalKind::Invalid | pb::RefusalKind::Unspecified => {
                return Err(if self.progress.in_doubt {
                    ClientError::Unknown { why: refusal.message }
                } else {
                    ClientError::Invalid(refusal.message)
                });
            }
        }
        Ok(())
    }

    /// A node does not lead; `leader_id` is the node that it believes in, 0 for none.
    async fn not_leader(&mut self, node: usize, entry: &Entry<'_>, leader_id: u64) {
        let Self { client, group, progress, .. } = self;
        progress.why = Some(format!("node {} does not lead the region", client.nodes.at(node).id));
        match client.node_position(leader_id).filter(|hint| *hint != node) {
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
                self.pause_unless_probing(entry).await;
            }
        }
    }

    /// A node that believes to lead cannot decide this yet. That is no proof that it leads, and no reason to doubt it; a region that has
    /// just been made is ready within a second, and what takes longer is not worth a place that others want.
    async fn not_yet(
        &mut self,
        node: usize,
        entry: &Entry<'_>,
        refusal: pb::Refusal,
    ) -> Result<(), ClientError> {
        // What nobody waits for makes nobody wait.
        if let pb::call::Op::Query(query) = (self.op)(false)
            && matches!(query.op, Some(pb::query::Op::TakeEffects(_)))
        {
            return Err(ClientError::Unavailable { why: refusal.message });
        }
        let since = *self.progress.not_yet.get_or_insert_with(Instant::now);
        if since.elapsed() > NOT_YET_PATIENCE && !self.progress.in_doubt {
            return Err(ClientError::Unavailable { why: refusal.message });
        }
        self.progress.why = Some(refusal.message);
        match entry {
            // Others wait for the end of a probe: somebody else is to be asked next.
            Entry::Probe(_) => self.group.doubt(node),
            Entry::Open => {
                let again = Instant::now() + Duration::from_millis(refusal.retry_after_ms.into());
                sleep_until(again.min(self.deadline)).await;
            }
        }
        Ok(())
    }

    /// A node has no room for the call.
    async fn node_overloaded(
        &mut self,
        node: usize,
        entry: &Entry<'_>,
        refusal: pb::Refusal,
    ) -> Result<(), ClientError> {
        // A bound is reached before anybody looks who leads: this says nothing about that. So the
        // next probe goes to another node, and a call that had asked around goes back to the
        // believed leader; a full node that does not lead would keep both for itself.
        if matches!(entry, Entry::Probe(_)) {
            self.group.doubt(node);
        }
        self.progress.silent = None;
        let retry_after = Duration::from_millis(u64::from(refusal.retry_after_ms));
        if !self.progress.in_doubt {
            return Err(ClientError::Overloaded { retry_after, message: refusal.message });
        }
        // An earlier attempt may have been decided, so that "nothing was decided" would be a
        // guess: ask again until somebody knows.
        self.progress.why = Some(refusal.message);
        let pause = retry_after.max(self.client.options.backoff_min);
        sleep_until((Instant::now() + pause).min(self.deadline)).await;
        Ok(())
    }

    /// Pauses before the next attempt, longer each time.
    async fn pause(&mut self) {
        self.client.pause(self.progress.pauses, self.deadline).await;
        self.progress.pauses += 1;
    }

    /// Likewise; who probes has its pauses when it enters.
    async fn pause_unless_probing(&mut self, entry: &Entry<'_>) {
        if matches!(entry, Entry::Open) {
            self.pause().await;
        }
    }

    fn node_id(&self, node: usize) -> u64 {
        self.client.nodes.at(node).id
    }
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
