//! The actor of one hot row.
//!
//! The quick no is a linearizable read: leadership is confirmed after the request has arrived, and only then
//! are the rows looked at. It carries no receipt and is not remembered. When a hold is due, or anything but *sold out*
//! is possible, the log decides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use actix::prelude::*;
use tidewall_domain::codec::Writer;
use tidewall_domain::tickets;
use tidewall_domain::tickets::queries::QuickNo;
use tidewall_machine::{Answer, Command, Decision, Op};

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

/// Ends the actor when nothing is queued or on its way.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Retire;

/// Joins, refuses, queues: the actor of one row.
pub(crate) struct Row {
    shard: Arc<dyn Shard>,
    proposer: Addr<Proposer>,
    limits: Limits,
    stats: Arc<RowStats>,
    /// Finish or undo what was started: goes first.
    finishing: VecDeque<Request>,
    starting: VecDeque<Request>,
    /// Waiting for a confirmation of leadership before a quick no.
    doubtful: Vec<Request>,
    confirming: bool,
    /// Offered to the proposer and not settled, by request id; repetitions wait with the first.
    in_flight: BTreeMap<u128, (Request, Command, Vec<Request>)>,
    offers: usize,
    scratch: Writer,
}

impl Row {
    pub(crate) fn new(
        shard: Arc<dyn Shard>,
        proposer: Addr<Proposer>,
        limits: Limits,
        stats: Arc<RowStats>,
    ) -> Self {
        Self {
            shard,
            proposer,
            limits,
            stats,
            finishing: VecDeque::new(),
            starting: VecDeque::new(),
            doubtful: Vec::new(),
            confirming: false,
            in_flight: BTreeMap::new(),
            offers: 0,
            scratch: Writer::new(),
        }
    }

    fn queued(&self) -> usize {
        self.finishing.len() + self.starting.len() + self.doubtful.len()
    }

    fn admit(&mut self, request: Request) {
        if self.queued() >= self.limits.queue_max {
            let retry_after_ms = self.limits.retry_after_ms;
            request.answer(Err(Refusal::Overloaded { what: "the row's queue is full", retry_after_ms }));
            return;
        }
        match &request.command.op {
            Op::Tickets(command) if command.finishes() => self.finishing.push_back(request),
            _ => self.starting.push_back(request),
        }
    }

    /// Sorts new requests into: joined, answered from memory, doubtful, queued.
    fn take(&mut self, requests: Vec<Request>) {
        let shard = Arc::clone(&self.shard);
        let now_ms = shard.now_ms();
        let mut fresh = Vec::with_capacity(requests.len());
        for request in requests {
            match self.in_flight.get_mut(&request.command.request_id) {
                // The same request again, while its first copy is on its way: they get one answer.
                Some((_, first, joined))
                    if first.principal == request.command.principal && first.op == request.command.op =>
                {
                    joined.push(request);
                }
                _ => fresh.push(request),
            }
        }
        let mut verdicts: Vec<(Option<Decision>, bool)> = Vec::with_capacity(fresh.len());
        let scratch = &mut self.scratch;
        shard.look(&mut |machine| {
            verdicts.extend(fresh.iter().map(|request| {
                let known = machine.remembered(&request.command, scratch);
                let hopeless =
                    known.is_none() && sold_out(machine.tickets(), &request.command, now_ms).is_some();
                (known, hopeless)
            }));
        });
        for (request, (known, hopeless)) in fresh.into_iter().zip(verdicts) {
            match known {
                Some(decision) => request.answer(Ok(decision)),
                None if hopeless && self.queued() < self.limits.queue_max => self.doubtful.push(request),
                None => self.admit(request),
            }
        }
    }

    fn confirm(&mut self, context: &mut Context<Self>) {
        if self.confirming || self.doubtful.is_empty() {
            return;
        }
        self.confirming = true;
        let requests = std::mem::take(&mut self.doubtful);
        let confirmed = self.shard.confirm().into_actor(self);
        context.spawn(confirmed.map(move |confirmed, row, context| {
            row.confirming = false;
            match confirmed {
                Ok(()) => row.refuse_the_hopeless(requests),
                Err(refusal) => {
                    for request in requests {
                        request.answer(Err(refusal.clone()));
                    }
                }
            }
            row.confirm(context);
            row.offer(context);
        }));
    }

    /// Leadership was confirmed after these requests arrived: what the rows say now is linearizable.
    fn refuse_the_hopeless(&mut self, requests: Vec<Request>) {
        let shard = Arc::clone(&self.shard);
        let now_ms = shard.now_ms();
        let mut verdicts = Vec::with_capacity(requests.len());
        let scratch = &mut self.scratch;
        shard.look(&mut |machine| {
            verdicts.extend(requests.iter().map(|request| {
                machine
                    .remembered(&request.command, scratch)
                    .or_else(|| sold_out(machine.tickets(), &request.command, now_ms))
            }));
        });
        for (request, verdict) in requests.into_iter().zip(verdicts) {
            match verdict {
                Some(decision) => request.answer(Ok(decision)),
                None => self.admit(request),
            }
        }
    }

    /// Offers what is queued to the proposer, as far as this row's share allows.
    fn offer(&mut self, context: &mut Context<Self>) {
        while self.offers < self.limits.offers_max && !(self.finishing.is_empty() && self.starting.is_empty())
        {
            let mut commands = Vec::new();
            while commands.len() < self.limits.offer_commands_max {
                let Some(mut request) = self.finishing.pop_front().or_else(|| self.starting.pop_front())
                else {
                    break;
                };
                let id = request.command.request_id;
                if self.in_flight.contains_key(&id) {
                    // The same id with other content, or of somebody else, while the first is on its way: after it.
                    request.answer(Err(Refusal::Overloaded {
                        what: "another request with this id is being decided",
                        retry_after_ms: self.limits.retry_after_ms,
                    }));
                    continue;
                }
                let command = request.take_command();
                commands.push(command.clone());
                self.in_flight.insert(id, (request, command, Vec::new()));
            }
            if commands.is_empty() {
                break;
            }
            let ids: Vec<u128> = commands.iter().map(|command| command.request_id).collect();
            let offer = Offer { commands, row: context.address() };
            match self.proposer.try_send(offer) {
                Ok(()) => self.offers += 1,
                Err(_) => {
                    let retry_after_ms = self.limits.retry_after_ms;
                    let what = "the shard group's queue is full";
                    self.settle(
                        ids.into_iter().map(|id| (id, Err(Refusal::Overloaded { what, retry_after_ms }))),
                    );
                    break;
                }
            }
        }
        self.stats.queued.store(self.queued() as u64, Ordering::Relaxed);
    }

    fn settle(&mut self, replies: impl Iterator<Item = (u128, Reply)>) {
        for (id, reply) in replies {
            let Some((request, _, joined)) = self.in_flight.remove(&id) else { continue };
            for request in joined {
                let reply = reply.clone().map(|decision| Decision { replayed: true, ..decision });
                request.answer(reply);
            }
            request.answer(reply);
        }
    }
}

/// The quick no to a command, if there is one.
fn sold_out(rows: &tickets::State, command: &Command, now_ms: u64) -> Option<Decision> {
    let Op::Tickets(op) = &command.op else { return None };
    let (event, tier, quantity, seats) = match op {
        tickets::Command::Buy { event, tier, quantity, seats, .. }
        | tickets::Command::Hold { event, tier, quantity, seats, .. } => (event, tier, *quantity, seats),
        _ => return None,
    };
    if command.expires_ms < now_ms || !seats.is_empty() {
        return None;
    }
    match rows.sold_out(event, tier, quantity, now_ms) {
        QuickNo::Certain(rejection) => {
            Some(Decision { receipt: None, answer: Answer::Rejected(rejection.into()), replayed: false })
        }
        QuickNo::AskTheLog => None,
    }
}

impl Actor for Row {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(self.limits.mailbox);
    }
}

impl Handler<Requests> for Row {
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

impl Handler<Settled> for Row {
    type Result = ();

    fn handle(&mut self, Settled { replies }: Settled, context: &mut Self::Context) {
        self.offers -= 1;
        self.settle(replies.into_iter());
        self.offer(context);
    }
}

impl Handler<Retire> for Row {
    type Result = ();

    fn handle(&mut self, _: Retire, context: &mut Self::Context) {
        if self.queued() == 0 && self.in_flight.is_empty() && !self.confirming {
            context.stop();
        }
    }
}
