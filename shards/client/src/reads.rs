//! Reads that any replica may answer: which one is asked, and how far it must have come.
//!
//! An answer of the leader shows everything that was acknowledged before it was asked. So whoever may be told what is
//! ten seconds old is told so by any replica that has come as far as an answer for which the leader was asked within these
//! ten seconds. Only this process's own clock is needed, and what the leader says anyhow: it is asked for nothing else as long
//! as it answers anything. What no replica can answer, the leader does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_link::LinkError;
use tidewall_mutant::{Mutant, active};
use tidewall_proto::Seen;
use tidewall_proto::internal::v1 as pb;
use tokio::time::Instant;

use crate::ClientError;
use crate::client::ShardClient;
use crate::nodes::Lane;

/// Answers of the leader are remembered so far apart: a little older is as good, and replicas have come so far long ago.
const APART: Duration = Duration::from_millis(25);
/// And for so long.
const KEPT: Duration = Duration::from_secs(10);
/// A replica that does not reply within this time is passed over.
const REPLICA_TIMEOUT: Duration = Duration::from_millis(250);
/// While somebody asks the leader so that others need not, nobody else does, for so long.
const RENEWAL_MAX: Duration = Duration::from_secs(1);
/// A replica that lacks something, or does not answer, is asked again after this time; twice as long each time that it
/// happens again,
const SHUNNED_MIN: Duration = Duration::from_millis(100);
/// up to this.
const SHUNNED_MAX: Duration = Duration::from_secs(2);
/// A replica has its turn for so long: what comes together goes to one of them, in one message.
const TURN: Duration = Duration::from_millis(1);
/// Replicas that are asked before the leader is.
const REPLICAS_ASKED: usize = 2;

/// Everything that was acknowledged before a time is within what was seen.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Sample {
    before: Instant,
    seen: Seen,
}

/// What is known of the replicas of a group.
#[derive(Default)]
pub(crate) struct Replicas {
    shown: Mutex<Shown>,
    turns: Mutex<Turns>,
}

/// What the leader has shown.
#[derive(Default)]
struct Shown {
    /// Oldest first, apart.
    samples: VecDeque<Sample>,
    latest: Option<Sample>,
    /// Since when somebody asks the leader so that others need not.
    renewing: Option<Instant>,
}

/// Who is asked.
#[derive(Default)]
struct Turns {
    /// Replicas that are not asked, until when, and how often in a row that happened.
    shunned: BTreeMap<usize, (Instant, u32)>,
    /// Whose turn it is.
    last: usize,
    /// And until when.
    until: Option<Instant>,
}

impl Replicas {
    /// The leader, asked at a time, has shown this.
    pub(crate) fn note(&self, asked: Instant, seen: Seen) {
        let shown = &mut *self.shown.lock();
        if active(Mutant::AlwaysFresh) && shown.latest.is_some() {
            return;
        }
        let seen = match shown.latest {
            Some(latest) if asked <= latest.before => return,
            Some(latest) => latest.seen.and(seen),
            None => seen,
        };
        let sample = Sample { before: asked, seen };
        (shown.latest, shown.renewing) = (Some(sample), None);
        if shown.samples.back().is_none_or(|last| asked >= last.before + APART) {
            shown.samples.push_back(sample);
            while shown.samples.front().is_some_and(|oldest| oldest.before + KEPT < asked) {
                shown.samples.pop_front();
            }
        }
    }

    /// How far a replica must have come that shows everything that was acknowledged `age` ago; `None`: only the leader can say.
    fn needed(&self, now: Instant, age: Duration) -> Option<Seen> {
        let shown = self.shown.lock();
        let age = age.min(KEPT);
        let is_old = |sample: &Sample| sample.before + age < now && !active(Mutant::AlwaysFresh);
        let oldest = shown.samples.get(shown.samples.partition_point(is_old)).copied();
        let fresh = oldest.or(shown.latest.filter(|latest| !is_old(latest)))?;
        Some(fresh.seen)
    }

    /// Whether somebody should ask the leader, so that there is something fresh for the others in time.
    fn is_to_be_renewed(&self, now: Instant, age: Duration) -> bool {
        let shown = &mut *self.shown.lock();
        let ages = shown.latest.is_none_or(|latest| latest.before + age.min(KEPT) / 2 < now);
        let others = shown.renewing.is_some_and(|since| now < since + RENEWAL_MAX);
        if ages && !others {
            shown.renewing = Some(now);
        }
        ages && !others
    }

    /// The replica to be asked next, of those whose bit is set.
    fn next(&self, now: Instant, nodes: u64) -> Option<usize> {
        let turns = &mut *self.turns.lock();
        let shunned = turns.shunned.iter().filter(|(_, (until, _))| now < *until);
        let open = shunned.fold(nodes, |nodes, (node, _)| nodes & !(1 << node));
        if open >> turns.last & 1 == 1 && turns.until.is_some_and(|until| now < until) {
            return Some(turns.last);
        }
        let next = (1..=64).map(|step| (turns.last + step) % 64).find(|node| open >> node & 1 == 1)?;
        (turns.last, turns.until) = (next, Some(now + TURN));
        Some(next)
    }

    /// A replica has answered.
    fn answered(&self, node: usize) {
        self.turns.lock().shunned.remove(&node);
    }

    /// A replica could not answer what others will want as well.
    fn shun(&self, node: usize) {
        let (now, turns) = (Instant::now(), &mut *self.turns.lock());
        let (until, times) = turns.shunned.entry(node).or_insert((now, 0));
        // Those who were under way with the one that found it out say nothing new.
        if *until <= now {
            *until = now + SHUNNED_MIN.saturating_mul(1 << (*times).min(8)).min(SHUNNED_MAX);
            *times += 1;
        }
    }
}

/// What an answer of the leader shows; `None`: nothing that is sure to be new.
pub(crate) fn shown(result: &pb::reply::Result) -> Option<Seen> {
    match result {
        // What was decided earlier says nothing about now; and what stands nowhere in the log may come from somebody's memory who
        // does not lead any more.
        pb::reply::Result::Outcome(outcome) if outcome.replayed || outcome.receipt.is_none() => None,
        pb::reply::Result::Outcome(outcome) => seen_in(outcome),
        pb::reply::Result::Query(found) => found.seen,
        pb::reply::Result::Batch(_) | pb::reply::Result::Refusal(_) => None,
    }
}

/// What somebody has seen of a region who has got this answer.
pub fn seen_in(outcome: &pb::Outcome) -> Option<Seen> {
    let decided = |receipt: &pb::Receipt| Seen {
        incarnation: receipt.incarnation,
        index: receipt.index,
        // A receipt has log time.
        steady_ms: 0,
    };
    outcome.receipt.as_ref().map(decided).or(outcome.seen)
}

/// Why a replica did not answer.
enum Passed {
    /// Others would be sent on as well.
    Unfit,
    /// It lacks what this caller has seen: that says nothing about others.
    Behind,
    /// It has no room.
    Full(ClientError),
    /// Nobody need be asked any more.
    Over(ClientError),
}

impl ShardClient {
    /// Reads, at any replica that does not lead, what may be so old and is not less than what was `seen`; `None`: the leader must be
    /// asked.
    ///
    /// # Errors
    /// That no replica has room, that the deadline passed, or that the query makes no sense.
    pub async fn read_at_standbys(
        self: &Arc<Self>,
        group: u32,
        query: &pb::Query,
        age: Duration,
        seen: Seen,
        deadline: Instant,
    ) -> Result<Option<pb::QueryResult>, ClientError> {
        let (known, now) = (self.group(group)?, Instant::now());
        let Some(needed) = known.replicas.needed(now, age) else { return Ok(None) };
        if known.replicas.is_to_be_renewed(now, age) {
            self.renew(group);
        }
        let seen = if active(Mutant::SeenForgotten) { needed } else { needed.and(seen) };
        let op = Some(pb::call::Op::Query(query.clone()));
        let call = pb::Call { id: 0, group, op, at_least: Some(seen), anywhere: true };
        let mut nodes = known.standbys();
        let mut full = None;
        for _ in 0..REPLICAS_ASKED {
            let Some(node) = known.replicas.next(Instant::now(), nodes) else { break };
            nodes &= !(1 << node);
            match self.read_at(node, call.clone(), needed, deadline).await {
                Ok(found) => {
                    known.replicas.answered(node);
                    return Ok(Some(found));
                }
                Err(Passed::Unfit) => known.replicas.shun(node),
                Err(Passed::Behind) => {}
                Err(Passed::Full(error)) => full = Some(error),
                Err(Passed::Over(error)) => return Err(error),
            }
        }
        // The leader has enough to do: what is too much for replicas does not go there.
        full.map_or(Ok(None), Err)
    }

    /// Reads at the leader; the time does not go back behind what was seen. Asks again, through failovers, while `deadline` lasts.
    ///
    /// # Errors
    /// As [`ShardClient::query`].
    pub async fn query_since(
        &self,
        group: u32,
        query: &pb::Query,
        seen: Seen,
        deadline: Instant,
    ) -> Result<pb::QueryResult, ClientError> {
        self.query_at_least(Lane::Queries, group, query, seen, deadline).await
    }

    /// Asks the leader for as little as can be, so that it is known what is fresh. Nobody waits for it.
    fn renew(self: &Arc<Self>, group: u32) {
        let client = Arc::clone(self);
        tokio::spawn(async move {
            let query = pb::Query { op: Some(pb::query::Op::Changes(pb::ListChanges::default())) };
            let until = Instant::now() + RENEWAL_MAX;
            if let Err(error) = client.query_over(Lane::Queries, group, query, until).await {
                tracing::debug!(group, %error, "the leader does not say what is fresh");
            }
        });
    }

    async fn read_at(
        &self,
        node: usize,
        call: pb::Call,
        needed: Seen,
        deadline: Instant,
    ) -> Result<pb::QueryResult, Passed> {
        let links = self.nodes.at(node);
        let until = deadline.min(Instant::now() + REPLICA_TIMEOUT);
        let result = match links.lane(Lane::Queries).call(call, until).await {
            Ok(reply) => reply.result,
            Err(LinkError::Full) => {
                return Err(Passed::Full(self.overloaded("the connection to a standby is full")));
            }
            // Its caller was in a hurry: that says nothing about the replica.
            Err(error) if Instant::now() >= deadline => {
                let why = format!("node {} at {}: {error}", links.id, links.address);
                return Err(Passed::Over(ClientError::Unavailable { why }));
            }
            Err(_) => return Err(Passed::Unfit),
        };
        let refusal = match result {
            Some(pb::reply::Result::Query(found)) => return Ok(found),
            Some(pb::reply::Result::Refusal(refusal)) => refusal,
            _ => return Err(Passed::Unfit),
        };
        Err(match refusal.kind() {
            pb::RefusalKind::Behind if refusal.come.is_some_and(|come| needed.is_within(come)) => {
                Passed::Behind
            }
            pb::RefusalKind::Overloaded => Passed::Full(ClientError::Overloaded {
                retry_after: Duration::from_millis(refusal.retry_after_ms.into()),
                message: refusal.message,
            }),
            pb::RefusalKind::Invalid => Passed::Over(ClientError::Invalid(refusal.message)),
            _ => Passed::Unfit,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn seen(index: u64) -> Seen {
        Seen { incarnation: 1, index, steady_ms: 7 }
    }

    fn needed(replicas: &Replicas, now: Instant, ms: u64) -> Option<u64> {
        replicas.needed(now, Duration::from_millis(ms)).map(|seen| seen.index)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_needed_is_the_oldest_that_is_fresh_enough() {
        let (replicas, t0) = (Replicas::default(), Instant::now());
        let at = |ms| t0 + Duration::from_millis(ms);
        assert_eq!(needed(&replicas, t0, 5_000), None);
        for ms in 0..200 {
            replicas.note(at(1_000 + ms), seen(100 + ms));
        }
        assert_eq!(needed(&replicas, at(1_200), 5_000), Some(100));
        assert_eq!(needed(&replicas, at(1_200), 100), Some(200), "they are kept apart");
        assert_eq!(needed(&replicas, at(1_200), 1), Some(299), "but the last is known");
        assert_eq!(needed(&replicas, at(1_200), 0), None);
        assert_eq!(needed(&replicas, at(6_170), 5_000), Some(275));
        assert_eq!(needed(&replicas, at(6_200), 5_000), None);
        // What is older than is kept is no longer known to be fresh.
        assert_eq!(needed(&replicas, at(11_250), 60_000), None);
        assert_eq!(replicas.needed(at(1_200), KEPT).unwrap().steady_ms, 7, "nor may its time be older");
    }

    #[tokio::test(start_paused = true)]
    async fn a_late_answer_takes_nothing_back() {
        let (replicas, t0) = (Replicas::default(), Instant::now());
        let at = |ms| t0 + Duration::from_millis(ms);
        replicas.note(at(100), seen(9));
        replicas.note(at(50), seen(12));
        assert_eq!(needed(&replicas, at(100), 0), Some(9), "it was asked earlier");
        replicas.note(at(200), seen(7));
        assert_eq!(needed(&replicas, at(200), 0), Some(9), "the leader had shown more before");
        replicas.note(at(300), Seen { incarnation: 2, index: 1, steady_ms: 0 });
        assert_eq!(needed(&replicas, at(300), 0), Some(1), "a region that was restored begins anew");
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_asks_the_leader_before_nothing_is_fresh() {
        let (replicas, t0) = (Replicas::default(), Instant::now());
        let at = |ms| t0 + Duration::from_millis(ms);
        let second = Duration::from_secs(1);
        replicas.note(t0, seen(1));
        assert!(!replicas.is_to_be_renewed(at(500), second));
        assert!(replicas.is_to_be_renewed(at(501), second));
        assert!(!replicas.is_to_be_renewed(at(900), second), "somebody does");
        assert!(replicas.is_to_be_renewed(at(1_501), second), "but not for ever");
        replicas.note(at(1_600), seen(1));
        assert!(!replicas.is_to_be_renewed(at(1_601), second));
    }

    #[tokio::test(start_paused = true)]
    async fn replicas_take_turns_and_who_lacks_something_has_none_for_longer_each_time() {
        let replicas = Replicas::default();
        let next = |nodes| replicas.next(Instant::now(), nodes);
        let wait = async |ms: u64| tokio::time::advance(Duration::from_millis(ms)).await;
        for node in [1, 2, 1] {
            assert_eq!(
                [next(0b110), next(0b110)],
                [Some(node), Some(node)],
                "what comes together goes together"
            );
            wait(1).await;
        }
        assert_eq!([next(0b110), next(0b010), next(0b110)], [Some(2), Some(1), Some(1)]);
        replicas.shun(2);
        // Found out by several at once.
        replicas.shun(2);
        assert_eq!([next(0b110), next(0b110), next(0b100)], [Some(1), Some(1), None]);
        wait(100).await;
        assert_eq!(next(0b110), Some(2));
        replicas.shun(2);
        wait(199).await;
        assert_eq!(next(0b100), None);
        wait(1).await;
        assert_eq!(next(0b100), Some(2));
        (0..9).for_each(|_| replicas.shun(2));
        for _ in 0..9 {
            wait(2_000).await;
            assert_eq!(next(0b100), Some(2), "never for longer");
            replicas.shun(2);
        }
        replicas.answered(2);
        replicas.shun(2);
        wait(100).await;
        assert_eq!((next(0b100), next(0)), (Some(2), None));
    }

    #[test]
    fn what_was_decided_earlier_is_not_fresh() {
        let receipt = pb::Receipt { incarnation: 2, index: 5, ..Default::default() };
        let decided = pb::Outcome { receipt: Some(receipt), ..Default::default() };
        let fresh = Some(Seen { incarnation: 2, index: 5, steady_ms: 0 });
        assert_eq!(shown(&pb::reply::Result::Outcome(decided.clone())), fresh);
        let replayed = pb::Outcome { replayed: true, ..decided };
        assert_eq!(seen_in(&replayed), fresh, "though it was seen");
        assert_eq!(shown(&pb::reply::Result::Outcome(replayed)), None);
        let no = pb::Outcome { seen: Some(seen(8)), ..Default::default() };
        assert_eq!(seen_in(&no), Some(seen(8)));
        assert_eq!(shown(&pb::reply::Result::Outcome(no)), None);
        assert_eq!(shown(&pb::reply::Result::Batch(pb::OutcomeBatch::default())), None);
    }
}
