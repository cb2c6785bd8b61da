//! The client port: calls of gateways come in on streams, go to the actors or to the rows, and are answered on the
//! same stream. Nothing here waits: what cannot be taken is refused.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_actors::{Directory, Refusal, Reply, Request};
use tidewall_consensus::Group;
use tidewall_domain::module::{AnyModule, NotUnderstood};
use tidewall_domain::registry;
use tidewall_link::{ExchangeProtocol, Handler, ReplySender};
use tidewall_machine::{Answer, AsOf, Decision, Machine, Op, RejectReason};
use tidewall_messages::Seen;
use tidewall_proto::internal::v1 as pb;
use tokio::time::Instant;

use crate::effects::{self, UnderWay};
use crate::metrics::Metrics;
use crate::space::Space;
use crate::standing::Standing;
use crate::{convert, feed, reads, shard, views};

/// Refused work should come back after this when the disk is nearly full, ms.
const LOW_SPACE_RETRY_MS: u32 = 2_000;

/// Refused work should come back after this when too much is under way with another group, ms.
const FULL_RETRY_MS: u32 = 500;

/// Refused work should come back after this when checkpoints lag, ms.
const REPLAY_RETRY_MS: u32 = 500;

/// An answer that may take a while.
type Waiting = Pin<Box<dyn Future<Output = Result<pb::query_result::Result, pb::Refusal>> + Send>>;

/// What serves one group on this node.
#[derive(Clone)]
pub struct Served {
    /// The replica.
    pub group: Group,
    /// Its actors.
    pub rows: Directory,
    /// Its busiest rows, as the keeper saw them last.
    pub hot: Arc<Mutex<Vec<pb::HotRowState>>>,
}

/// What this node serves; shared by all streams.
pub struct Serving {
    /// By group number. A group that is missing here is quarantined: see `faults`.
    pub groups: BTreeMap<u32, Served>,
    /// Why groups are not served.
    pub faults: BTreeMap<u32, String>,
    /// What the node knows of its clock.
    pub standing: Arc<Standing>,
    /// Free space.
    pub space: Space,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// What no checkpoint covers would take too long to apply again.
    replay_behind: AtomicBool,
    /// The modules of this build, without rows: they know what they understand.
    modules: Vec<Box<dyn AnyModule>>,
    /// By group: what is being done outside.
    under_way: BTreeMap<u32, Arc<UnderWay>>,
    /// By group: reads that wait until this node has come as far as they want.
    waiting: BTreeMap<u32, reads::Waiting>,
}

impl Serving {
    /// Serves these groups; `faults` says why others are not served.
    pub fn new(
        groups: BTreeMap<u32, Served>,
        faults: BTreeMap<u32, String>,
        standing: Arc<Standing>,
        space: Space,
        metrics: Arc<Metrics>,
    ) -> Self {
        let (replay_behind, modules) = (AtomicBool::new(false), registry::modules());
        let under_way = groups.keys().map(|group| (*group, Arc::default())).collect();
        let waiting = groups.keys().map(|group| (*group, Default::default())).collect();
        Self { groups, faults, standing, space, metrics, replay_behind, modules, under_way, waiting }
    }

    /// Groups whose replica here has halted, or was never started.
    pub fn halted(&self) -> BTreeSet<u32> {
        let halted =
            |(number, served): (&u32, &Served)| served.group.state().halted().is_some().then_some(*number);
        self.groups.iter().filter_map(halted).chain(self.faults.keys().copied()).collect()
    }

    /// Whether every replica here runs, has applied what it knows to be committed, and has a leader that is heard, or is one.
    pub fn readiness(&self) -> Result<(), String> {
        if let Some((group, why)) = self.faults.iter().next() {
            return Err(format!("the replica of group {group} was not started: {why}"));
        }
        for (group, served) in &self.groups {
            let members = served.group.members();
            if members.0.is_empty() && members.1.is_empty() {
                // It was placed here and is no member yet: nobody counts on it.
                continue;
            }
            let status = served.group.status();
            if let Some(why) = status.fault {
                return Err(format!("the replica of group {group} has stopped: {why}"));
            }
            // A leader without a majority does not know that it is none any more, and neither do those who believe in it.
            let leads = match status.leader {
                None => false,
                Some(leader) if leader != self.standing.node() => self.standing.is_heard(leader),
                Some(_) => {
                    let alone = members.0.len() == 1;
                    alone
                        || served
                            .group
                            .unacknowledged_for()
                            .is_some_and(|silence| silence < QUORUM_SILENCE_MAX)
                }
            };
            if !leads {
                return Err(format!("the replica of group {group} has no leader that is heard"));
            }
            let lag = served.group.behind();
            if lag > READY_LAG_MAX {
                return Err(format!("the replica of group {group} lags {lag} entries behind"));
            }
        }
        Ok(())
    }

    /// Refuses new work while checkpoints lag so far that a restart would take too long, or takes it again.
    pub fn set_replay_behind(&self, behind: bool) {
        if self.replay_behind.swap(behind, Ordering::Relaxed) != behind {
            if behind {
                tracing::warn!("checkpoints lag: new work is refused until they have caught up");
            } else {
                tracing::info!("checkpoints have caught up: new work is accepted");
            }
        }
    }

    /// Whether a payload is a command of a module of this build; gives the apply version under which all members have it.
    fn understood(&self, module: u8, payload: &[u8]) -> Result<u32, NotUnderstood> {
        let known = self.modules.iter().find(|known| known.number() == module);
        known.ok_or(NotUnderstood::Later)?.understands(payload)
    }

    /// Whether a query is one of a later build.
    fn is_later(&self, query: &pb::Query) -> bool {
        let Some(pb::query::Op::Module(query)) = &query.op else { return query.op.is_none() };
        let known = self.modules.iter().find(|known| u32::from(known.number()) == query.module);
        known.is_none_or(|known| known.is_later_query(&query.payload))
    }

    /// The answer to a query that may wait until something happens; nobody waits for it.
    fn waiting(&self, number: u32, group: &Group, query: &pb::Query, came: Instant) -> Option<Waiting> {
        use pb::query::Op;
        use pb::query_result::Result as R;
        let (group, standing) = (group.clone(), Arc::clone(&self.standing));
        let under_way = Arc::clone(self.under_way.get(&number)?);
        let waiting: Waiting = match query.op.as_ref()? {
            Op::Changes(asked) => {
                let asked = *asked;
                Box::pin(async move { feed::hear(&group, asked).await.map(R::Changes) })
            }
            Op::TakeEffects(asked) => {
                let asked = *asked;
                Box::pin(async move {
                    effects::take(&group, &standing, &under_way, asked, came).await.map(R::Effects)
                })
            }
            Op::EndEffects(asked) => {
                let asked = asked.clone();
                Box::pin(async move {
                    effects::end(&group, &standing, &under_way, asked).await.map(R::EffectsEnded)
                })
            }
            _ => return None,
        };
        Some(waiting)
    }

    /// Why new work must be refused now, and when to come back, ms.
    fn pressure(&self) -> Option<(&'static str, u32)> {
        if self.space.is_low() {
            Some(("the disk of the region's active node is nearly full", LOW_SPACE_RETRY_MS))
        } else if self.replay_behind.load(Ordering::Relaxed) {
            Some(("the checkpoints of the region's active node lag behind", REPLAY_RETRY_MS))
        } else {
            None
        }
    }
}

/// Reads that came together are answered in one go for so long.
const TURN: Duration = Duration::from_micros(200);
/// A leader that no majority has answered for longer is not ready.
const QUORUM_SILENCE_MAX: Duration = Duration::from_secs(3);
/// A replica that has more committed entries to apply is not ready: it was away.
const READY_LAG_MAX: u64 = 1_000;

/// Commands for the actors, by group, module and row, collected from one message.
type ByRow = BTreeMap<(u32, u8, String), Vec<Request>>;

/// A read, and what its caller has seen.
struct Asked {
    call: u64,
    query: pb::Query,
    seen: Seen,
}

/// The answer to a read.
fn answered(call: u64, result: Result<pb::QueryResult, pb::Refusal>) -> pb::Reply {
    let result = result.map_or_else(pb::reply::Result::Refusal, pb::reply::Result::Query);
    pb::Reply { id: call, result: Some(result) }
}

/// Serves one stream.
pub struct ExchangeHandler {
    serving: Arc<Serving>,
}

impl ExchangeHandler {
    /// A handler for a new stream.
    pub fn new(serving: Arc<Serving>) -> Self {
        Self { serving }
    }

    fn served(&self, group: u32) -> Result<&Served, pb::Refusal> {
        if let Some(served) = self.serving.groups.get(&group) {
            return Ok(served);
        }
        match self.serving.faults.get(&group) {
            Some(why) => Err(views::refusal(&Refusal::Halted(why.clone()))),
            None => Err(views::invalid(format!("this node serves no group {group}"))),
        }
    }

    /// Sorts a command to its row, or refuses it.
    fn sort(
        &self,
        group: u32,
        mut message: pb::Command,
        by_row: &mut ByRow,
        answer: impl FnOnce(Answered) + Send + 'static,
    ) {
        let served = match self.served(group) {
            Ok(served) => served,
            Err(refusal) => return answer(Answered::Refused(refusal)),
        };
        let (logged, finishes) = (message.logged, message.finishes);
        let row = std::mem::take(&mut message.row);
        let command = match convert::command(message) {
            Ok(command) => command,
            Err(why) => return answer(Answered::Refused(views::invalid(why))),
        };
        let module = match &command.op {
            // What this build does not understand must not get into the log: it would halt the group.
            Op::Module { module, payload } => match self.serving.understood(*module, payload) {
                Err(NotUnderstood::Later) => return answer(Answered::Refused(not_yet(&served.group))),
                Ok(since) if since > 1 && served.group.state().read(Machine::apply_version) < since => {
                    return answer(Answered::Refused(not_yet(&served.group)));
                }
                Ok(_) => *module,
                Err(why) => return answer(Answered::Refused(views::invalid(why.to_string()))),
            },
            Op::Seal | Op::System(_) => 0,
        };
        // Only the active may speak for the region: a follower that is short of space sends callers on.
        if let Some((what, retry_after_ms)) = self.serving.pressure()
            && !finishes
            && served.group.believes_to_lead()
        {
            let refusal = Refusal::Overloaded { what, retry_after_ms };
            return answer(Answered::Refused(views::refusal(&refusal)));
        }
        let metrics = Arc::clone(&self.serving.metrics);
        let (state, standing) = (served.group.state().clone(), Arc::clone(&self.serving.standing));
        let request = Request::new(command, move |reply: Reply| {
            metrics.command(group, &reply);
            answer(match reply {
                // It was not decided, and may be later.
                Ok(Decision { answer: Answer::Rejected(RejectReason::Full(_)), .. }) => {
                    let what = "too much is under way between this region and another one";
                    Answered::Refused(views::refusal(&Refusal::Overloaded {
                        what,
                        retry_after_ms: FULL_RETRY_MS,
                    }))
                }
                Ok(decision) => {
                    Answered::Decided(views::outcome(decision, || state.come().seen(standing.stamp())))
                }
                Err(refusal) => Answered::Refused(views::refusal(&refusal)),
            });
        });
        let request = request.finishing(finishes);
        let request = if logged { request.logged() } else { request };
        by_row.entry((group, module, row)).or_default().push(request);
    }

    fn batch(
        &self,
        call: u64,
        group: u32,
        batch: pb::CommandBatch,
        replies: &ReplySender<ExchangeProtocol>,
        by_row: &mut ByRow,
    ) {
        let count = batch.commands.len();
        if count == 0 {
            let result = pb::reply::Result::Batch(pb::OutcomeBatch::default());
            return replies.send(pb::Reply { id: call, result: Some(result) });
        }
        let gathered = Arc::new(Mutex::new((vec![None; count], count)));
        for (at, command) in batch.commands.into_iter().enumerate() {
            let (gathered, replies) = (Arc::clone(&gathered), replies.clone());
            // A seller repeats a whole batch because of one item: a "no" that nobody remembers would buy then.
            let command = pb::Command { logged: true, ..command };
            self.sort(group, command, by_row, move |answered| {
                let mut gathered = gathered.lock();
                gathered.0[at] = Some(answered);
                gathered.1 -= 1;
                if gathered.1 > 0 {
                    return;
                }
                let items = gathered.0.drain(..).flatten().map(|answered| pb::BatchItem {
                    result: Some(match answered {
                        Answered::Decided(outcome) => pb::batch_item::Result::Outcome(outcome),
                        Answered::Refused(refusal) => pb::batch_item::Result::Refusal(refusal),
                    }),
                });
                let result = pb::reply::Result::Batch(pb::OutcomeBatch { items: items.collect() });
                replies.send(pb::Reply { id: call, result: Some(result) });
            });
        }
    }

    /// The group that is asked; when it is not here, everybody is told so.
    fn group_asked(
        &self,
        number: u32,
        queries: &[Asked],
        replies: &ReplySender<ExchangeProtocol>,
    ) -> Option<Group> {
        let told = |refusal: pb::Refusal| {
            queries.iter().for_each(|asked| replies.send(answered(asked.call, Err(refusal.clone()))));
        };
        self.served(number).map(|served| served.group.clone()).map_err(told).ok()
    }

    /// Answers queries of one group after one confirmation of leadership.
    fn ask(&self, number: u32, queries: Vec<Asked>, replies: &ReplySender<ExchangeProtocol>) {
        let Some(group) = self.group_asked(number, &queries, replies) else { return };
        let (replies, metrics) = (replies.clone(), Arc::clone(&self.serving.metrics));
        let serving = Arc::clone(&self.serving);
        let came = Instant::now();
        tokio::spawn(async move {
            let confirmed = shard::confirm(&group).await;
            metrics.queries(number, queries.len() as u64, confirmed.is_ok());
            let stamp = serving.standing.stamp();
            for Asked { call, query, seen } in queries {
                if let (Ok(()), Some(waiting)) = (&confirmed, serving.waiting(number, &group, &query, came)) {
                    let (replies, seen) = (replies.clone(), group.state().come().seen(stamp));
                    tokio::spawn(async move {
                        let result = waiting.await;
                        let seen = Some(seen);
                        replies.send(answered(
                            call,
                            result.map(|result| pb::QueryResult { result: Some(result), seen }),
                        ));
                    });
                    continue;
                }
                let result = match &confirmed {
                    // Its caller waits for a leader of a later build, as for an election.
                    Ok(()) if serving.is_later(&query) => Err(views::not_yet()),
                    Ok(()) => group
                        .state()
                        .read(|machine| views::query(machine, AsOf { stamp, seen }, &query))
                        .map_err(views::invalid),
                    Err(refusal) => Err(views::refusal(refusal)),
                };
                replies.send(answered(call, result));
            }
        });
    }

    /// Answers queries of one group that any replica may answer.
    fn ask_here(&self, number: u32, queries: Vec<Asked>, replies: &ReplySender<ExchangeProtocol>) {
        let Some(group) = self.group_asked(number, &queries, replies) else { return };
        let (replies, serving) = (replies.clone(), Arc::clone(&self.serving));
        tokio::spawn(async move {
            let mut turn = Instant::now();
            for Asked { call, query, seen } in queries {
                let asked = reads::Asked { group: &group, standing: &serving.standing, query: &query, seen };
                if serving.is_later(&query) {
                    let refusal = views::behind(group.state().come().whole(), "this node has an older build");
                    serving.metrics.read(number, false);
                    replies.send(answered(call, Err(refusal)));
                } else if asked.is_ready() {
                    let result = asked.answer();
                    serving.metrics.read(number, result.is_ok());
                    replies.send(answered(call, result));
                    // Others of this thread want their turn, too.
                    if turn.elapsed() > TURN {
                        tokio::task::yield_now().await;
                        turn = Instant::now();
                    }
                } else {
                    let (group, replies, serving) = (group.clone(), replies.clone(), Arc::clone(&serving));
                    tokio::spawn(async move {
                        let standing = &serving.standing;
                        let asked = reads::Asked { group: &group, standing, query: &query, seen };
                        let result = match serving.waiting.get(&number) {
                            Some(waiting) => asked.answer_soon(waiting).await,
                            None => asked.answer(),
                        };
                        serving.metrics.read(number, result.is_ok());
                        replies.send(answered(call, result));
                    });
                }
            }
        });
    }
}

/// What a caller is told who asks for what not all members have the build for.
fn not_yet(group: &Group) -> pb::Refusal {
    match group.believes_to_lead() {
        true => views::not_yet(),
        // Not on to the actors: they may lead by the time that they look.
        false => views::refusal(&Refusal::NotLeader { leader: group.believed_leader() }),
    }
}

/// What became of a command.
#[derive(Clone)]
enum Answered {
    Decided(pb::Outcome),
    Refused(pb::Refusal),
}

impl Handler<ExchangeProtocol> for ExchangeHandler {
    fn on_calls(&mut self, calls: Vec<pb::Call>, replies: &ReplySender<ExchangeProtocol>) {
        let mut by_row = ByRow::new();
        let mut queries: BTreeMap<(u32, bool), Vec<Asked>> = BTreeMap::new();
        for call in calls {
            let id = call.id;
            match call.op {
                Some(pb::call::Op::Command(command)) => {
                    let replies = replies.clone();
                    self.sort(call.group, command, &mut by_row, move |answered| {
                        let result = match answered {
                            Answered::Decided(outcome) => pb::reply::Result::Outcome(outcome),
                            Answered::Refused(refusal) => pb::reply::Result::Refusal(refusal),
                        };
                        replies.send(pb::Reply { id, result: Some(result) });
                    });
                }
                Some(pb::call::Op::Batch(batch)) => self.batch(id, call.group, batch, replies, &mut by_row),
                Some(pb::call::Op::Query(query)) => {
                    let asked = Asked { call: id, query, seen: call.at_least.unwrap_or_default() };
                    queries.entry((call.group, call.anywhere)).or_default().push(asked);
                }
                None => {
                    let refusal = views::invalid("the call asks for nothing");
                    replies.send(pb::Reply { id, result: Some(pb::reply::Result::Refusal(refusal)) });
                }
            }
        }
        for ((group, module, row), requests) in by_row {
            // `sort` has found the group; a request of one that is gone answers for itself.
            if let Some(served) = self.serving.groups.get(&group) {
                served.rows.submit(module, &row, requests);
            }
        }
        for ((group, anywhere), queries) in queries {
            match anywhere {
                true => self.ask_here(group, queries, replies),
                false => self.ask(group, queries, replies),
            }
        }
    }

    fn refuse(&mut self, call: pb::Call) -> pb::Reply {
        let refusal =
            Refusal::Overloaded { what: "too many calls of this gateway are open", retry_after_ms: 200 };
        pb::Reply { id: call.id, result: Some(pb::reply::Result::Refusal(views::refusal(&refusal))) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_says_why_it_takes_no_new_work() {
        let faults = BTreeMap::from([(1, "its rows are damaged".to_owned())]);
        let space = Space::unlimited();
        let serving = crate::fake::serving(faults, space.clone());
        assert_eq!(serving.halted(), BTreeSet::from([1]));
        assert_eq!(serving.pressure(), None);
        serving.set_replay_behind(true);
        assert!(serving.pressure().unwrap().0.contains("checkpoints"));
        // The disk comes first: it is what an operator can mend.
        space.judge(0);
        assert!(serving.pressure().unwrap().0.contains("disk"));
        space.judge(u64::MAX);
        serving.set_replay_behind(false);
        assert_eq!(serving.pressure(), None);

        assert!(serving.readiness().unwrap_err().contains("its rows are damaged"));
        assert_eq!(crate::fake::serving(BTreeMap::new(), space.clone()).readiness(), Ok(()));

        let handler = ExchangeHandler::new(Arc::new(serving));
        let refusal = |group| handler.served(group).err().unwrap();
        assert!(refusal(1).message.contains("its rows are damaged"));
        assert!(refusal(2).message.contains("no group 2"));
    }
}
