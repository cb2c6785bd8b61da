//! The actor of one hot row.
//!
//! The quick no is a linearizable read: leadership is confirmed after the request has arrived, and only then
//! are the rows looked at. It carries no receipt and is not remembered. Where the module is not certain, the log decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use actix::prelude::*;
use tidewall_machine::{Command, Decision, Machine};

use crate::directory::{Limits, RowStats};
use crate::proposer::{Offer, Proposer};
use crate::request::{Refusal, Reply, Request};
use crate::shard::Shard;

/// Requests for this row.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Requests(pub Vec<Request>);

/// Offers of this row that were decided or refused.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Settled {
    /// Ids of the requests in the offer, and what became of each.
    pub replies: Vec<(u128, Reply)>,
}

/// Forgets what is not in doubt any more.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Tidy;

/// Ends the actor when nothing is queued or on its way.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Retire;

/// Ends the actor as it stands, with everything in it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Abandon;

/// A request that the row has, wherever it is on its way; its copies wait with it.
struct Pending {
    first: Request,
    copies: Vec<Request>,
}

impl Pending {
    /// Whether the log must decide, whatever the answer is: for any of the copies.
    fn is_logged(&self) -> bool {
        self.first.is_logged() || self.copies.iter().any(Request::is_logged)
    }
}

/// Joins, refuses, queues: the actor of one row.
pub(crate) struct RowActor {
    name: Arc<str>,
    shard: Arc<dyn Shard>,
    proposer: Addr<Proposer>,
    limits: Limits,
    stats: Arc<RowStats>,
    /// Everything that has no answer yet, by request id: queued, in doubt, or with the proposer.
    pending: BTreeMap<u128, Pending>,
    /// Finish or undo what was started: goes first.
    finishing: VecDeque<u128>,
    starting: VecDeque<u128>,
    /// Waiting for a confirmation of leadership before a quick no.
    doubtful: Vec<u128>,
    confirming: bool,
    offers: usize,
    retrying: bool,
    /// Ids whose outcome is unknown, and until when a copy in the log can still be decided: no quick no for them.
    limbo: BTreeMap<u128, u64>,
    #[cfg(tidewall_mutants)]
    refused_once: Option<Decision>,
}

impl RowActor {
    pub(crate) fn new(
        name: Arc<str>,
        shard: Arc<dyn Shard>,
        proposer: Addr<Proposer>,
        limits: Limits,
        stats: Arc<RowStats>,
    ) -> Self {
        Self {
            name,
            shard,
            proposer,
            limits,
            stats,
            pending: BTreeMap::new(),
            finishing: VecDeque::new(),
            starting: VecDeque::new(),
            doubtful: Vec::new(),
            confirming: false,
            offers: 0,
            retrying: false,
            limbo: BTreeMap::new(),
            #[cfg(tidewall_mutants)]
            refused_once: None,
        }
    }

    fn queued(&self) -> usize {
        self.finishing.len() + self.starting.len() + self.doubtful.len()
    }

    fn overloaded(&self, what: &'static str) -> Refusal {
        Refusal::Overloaded { what, retry_after_ms: self.limits.retry_after_ms }
    }

    /// Puts a pending request into its queue.
    fn enqueue(&mut self, id: u128) {
        let Some(pending) = self.pending.get(&id) else { return };
        if pending.first.finishes {
            self.finishing.push_back(id);
        } else {
            self.starting.push_back(id);
        }
    }

    /// Sorts new requests into: joined, answered from memory, doubtful, queued.
    fn take(&mut self, requests: Vec<Request>) {
        let shard = Arc::clone(&self.shard);
        let stamp = shard.stamp();
        let mut fresh = Vec::with_capacity(requests.len());
        let mut seen = BTreeMap::new();
        for request in requests {
            let id = request.command.request_id;
            if let Some(pending) = self.pending.get_mut(&id) {
                // The same request again, while its first copy is on its way: they get one answer.
                if same(&pending.first.command, &request.command) {
                    pending.copies.push(request);
                } else {
                    request.answer(Err(self.overloaded("another request with this id is being decided")));
                }
            } else if let Some(at) = seen.get(&id) {
                let pending: &mut Pending = &mut fresh[*at];
                if same(&pending.first.command, &request.command) {
                    pending.copies.push(request);
                } else {
                    request.answer(Err(self.overloaded("another request with this id is being decided")));
                }
            } else {
                seen.insert(id, fresh.len());
                fresh.push(Pending { first: request, copies: Vec::new() });
            }
        }
        let mut verdicts: Vec<(Option<Decision>, Option<Decision>)> = Vec::with_capacity(fresh.len());
        let limbo = &mut self.limbo;
        shard.look(&mut |machine| {
            forget_void(limbo, machine);
            verdicts.extend(fresh.iter().map(|pending| {
                let command = &pending.first.command;
                let known = machine.remembered(command);
                let log_decides =
                    known.is_some() || pending.is_logged() || limbo.contains_key(&command.request_id);
                let no = if log_decides { None } else { machine.quick_no(command, stamp) };
                (known, no)
            }));
        });
        for (pending, (known, no)) in fresh.into_iter().zip(verdicts) {
            let id = pending.first.command.request_id;
            let hopeless = no.is_some();
            #[cfg(tidewall_mutants)]
            let known = known.or_else(|| mutants::by_memory(&mut self.refused_once, &pending.first, no));
            if let Some(decision) = known {
                answer(pending, Ok(decision));
            } else if self.queued() >= self.limits.queue_max {
                let refusal = self.overloaded("the row's queue is full");
                answer(pending, Err(refusal));
            } else {
                self.pending.insert(id, pending);
                if hopeless {
                    self.doubtful.push(id);
                } else {
                    self.enqueue(id);
                }
            }
        }
    }

    fn confirm(&mut self, context: &mut Context<Self>) {
        if self.confirming || self.doubtful.is_empty() {
            return;
        }
        self.confirming = true;
        let ids = std::mem::take(&mut self.doubtful);
        let confirmed = self.shard.confirm().into_actor(self);
        context.spawn(confirmed.map(move |confirmed, row, context| {
            row.confirming = false;
            match confirmed {
                Ok(()) => row.refuse_the_hopeless(ids),
                Err(refusal) => {
                    // Never proposed: this node has decided nothing about them.
                    for pending in ids.iter().filter_map(|id| row.pending.remove(id)).collect::<Vec<_>>() {
                        answer(pending, Err(refusal.clone()));
                    }
                }
            }
            row.confirm(context);
            row.offer(context);
        }));
    }

    /// Leadership was confirmed after these requests arrived: what the rows say now is linearizable.
    fn refuse_the_hopeless(&mut self, ids: Vec<u128>) {
        let shard = Arc::clone(&self.shard);
        let stamp = shard.stamp();
        let mut verdicts = Vec::with_capacity(ids.len());
        let pending = &self.pending;
        shard.look(&mut |machine| {
            verdicts.extend(ids.iter().map(|id| {
                let pending = pending.get(id)?;
                let command = &pending.first.command;
                let no = || if pending.is_logged() { None } else { machine.quick_no(command, stamp) };
                machine.remembered(command).or_else(no)
            }));
        });
        for (id, verdict) in ids.into_iter().zip(verdicts) {
            match verdict {
                Some(decision) => self.settle(id, Ok(decision)),
                None => self.enqueue(id),
            }
        }
    }

    /// Offers what is queued to the proposer, as far as this row's share allows.
    fn offer(&mut self, context: &mut Context<Self>) {
        while self.offers < self.limits.offers_max && !(self.finishing.is_empty() && self.starting.is_empty())
        {
            let mut commands = Vec::new();
            while commands.len() < self.limits.offer_commands_max {
                let Some(id) = self.finishing.pop_front().or_else(|| self.starting.pop_front()) else {
                    break;
                };
                if let Some(pending) = self.pending.get(&id) {
                    commands.push(pending.first.command.clone());
                }
            }
            if commands.is_empty() {
                break;
            }
            match self.proposer.try_send(Offer {
                commands,
                row: context.address(),
                name: Arc::clone(&self.name),
            }) {
                Ok(()) => self.offers += 1,
                Err(SendError::Full(offer) | SendError::Closed(offer)) => {
                    let refusal = self.overloaded("the shard group's queue is full");
                    for command in offer.commands {
                        self.settle(command.request_id, Err(refusal.clone()));
                    }
                    self.offer_later(context);
                    break;
                }
            }
        }
        self.report();
    }

    /// Tells the directory how busy this row is.
    fn report(&self) {
        self.stats.queued.store(self.queued() as u64, Ordering::Relaxed);
        self.stats.open.store((self.pending.len() + self.limbo.len()) as u64, Ordering::Relaxed);
    }

    /// What is still queued must not wait for the next request to be offered.
    fn offer_later(&mut self, context: &mut Context<Self>) {
        if !std::mem::replace(&mut self.retrying, true) {
            let pause = Duration::from_millis(self.limits.retry_after_ms.into());
            context.run_later(pause, |row, context| {
                row.retrying = false;
                row.offer(context);
            });
        }
    }

    fn settle(&mut self, id: u128, reply: Reply) {
        let Some(pending) = self.pending.remove(&id) else { return };
        if matches!(reply, Err(Refusal::Unknown(_))) {
            self.limbo.insert(id, pending.first.command.expires_ms);
        }
        answer(pending, reply);
    }
}

/// Forgets ids of which no copy can be decided any more. Log time tells, not this node's clock.
fn forget_void(limbo: &mut BTreeMap<u128, u64>, machine: &Machine) {
    let applied_ms = machine.log_time_ms();
    limbo.retain(|_, until_ms| *until_ms >= applied_ms);
}

/// Whether two commands are copies of one request, whoever built them.
fn same(one: &Command, other: &Command) -> bool {
    one.principal == other.principal && one.fingerprint == other.fingerprint
}

fn answer(pending: Pending, reply: Reply) {
    for copy in pending.copies {
        copy.answer(reply.clone().map(|decision| Decision { replayed: true, ..decision }));
    }
    pending.first.answer(reply);
}

#[cfg(tidewall_mutants)]
mod mutants {
    use super::*;

    /// A refusal by what was true once.
    pub fn by_memory(
        once: &mut Option<Decision>,
        request: &Request,
        no: Option<Decision>,
    ) -> Option<Decision> {
        if request.finishes || !tidewall_mutant::active(tidewall_mutant::Mutant::StockDecidedOutsideApply) {
            return None;
        }
        *once = once.take().or(no);
        once.clone()
    }
}

impl Actor for RowActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(self.limits.mailbox);
    }
}

impl Handler<Requests> for RowActor {
    type Result = ();

    fn handle(&mut self, Requests(requests): Requests, context: &mut Self::Context) {
        self.stats.commands.fetch_add(requests.len() as u64, Ordering::Relaxed);
        if !self.shard.leads() {
            let leader = self.shard.leader();
            for request in requests {
                request.answer(Err(Refusal::NotLeader { leader }));
            }
            return;
        }
        self.take(requests);
        self.confirm(context);
        self.offer(context);
    }
}

impl Handler<Settled> for RowActor {
    type Result = ();

    fn handle(&mut self, Settled { replies }: Settled, context: &mut Self::Context) {
        self.offers -= 1;
        for (id, reply) in replies {
            self.settle(id, reply);
        }
        self.offer(context);
    }
}

impl Handler<Abandon> for RowActor {
    type Result = ();

    fn handle(&mut self, _: Abandon, context: &mut Self::Context) {
        context.terminate();
    }
}

impl Handler<Tidy> for RowActor {
    type Result = ();

    fn handle(&mut self, _: Tidy, _: &mut Self::Context) {
        let shard = Arc::clone(&self.shard);
        shard.look(&mut |machine| forget_void(&mut self.limbo, machine));
        self.report();
    }
}

impl Handler<Retire> for RowActor {
    type Result = ();

    fn handle(&mut self, _: Retire, context: &mut Self::Context) {
        if self.pending.is_empty() && self.limbo.is_empty() {
            context.stop();
        }
    }
}
