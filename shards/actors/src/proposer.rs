//! The actor that merges the offers of all rows of a shard group into Raft entries, fairly by row.
//!
//! Rows take turns, a portion each, until the entry is full. While an entry is on its way the next one fills, so that load
//! makes entries larger, not queues longer; full ones overlap. **Never here:** waiting while there is something to propose
//! and nothing on its way.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use actix::prelude::*;
use tidewall_machine::{Command, Decision, SystemCommand};
use tokio::time::Instant;

use crate::directory::Limits;
use crate::home::Home;
use crate::request::{Refusal, Reply};
use crate::row::{RowActor, Settled};
use crate::shard::Shard;

/// How often the proposer looks whether something is due while nothing flows.
const TICK_INTERVAL: Duration = Duration::from_millis(250);
/// Entries follow each other within this time while nobody confirms this node's clock.
pub(crate) const UNCONFIRMED_TICK: Duration = Duration::from_secs(2);

/// Commands of one row, to be decided in this order.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct Offer {
    pub commands: Vec<Command>,
    pub row: Addr<RowActor>,
    /// The row's name.
    pub name: Arc<str>,
}

/// Ends the proposer as it stands, with everything in it.
#[derive(Message)]
#[rtype(result = "()")]
pub(crate) struct AbandonProposer;

/// An offer that is being worked off.
struct Waiting {
    row: Addr<RowActor>,
    commands: VecDeque<Command>,
    /// Commands that are in entries and not answered.
    proposed: usize,
    replies: Vec<(u128, Reply)>,
}

/// A proposed command: its offer and its request id.
struct Slot {
    offer: u64,
    request_id: u128,
}

/// What a row has that is in no entry yet.
#[derive(Default)]
struct Queue {
    /// Its offers, in the order in which they came.
    offers: VecDeque<u64>,
    /// Commands in them.
    commands: usize,
}

/// Merges the offers of a group's rows.
pub(crate) struct Proposer {
    shard: Arc<dyn Shard>,
    limits: Limits,
    /// Offers by number.
    offers: BTreeMap<u64, Waiting>,
    /// Rows with commands that are in no entry yet.
    queues: BTreeMap<Arc<str>, Queue>,
    /// The same rows; the first has the next turn.
    turns: VecDeque<Arc<str>>,
    entries: usize,
    /// Commands that are in no entry yet.
    queued: usize,
    next_offer: u64,
    /// When the last entry was proposed.
    proposed: Instant,
}

impl Proposer {
    /// A proposer of a shard group, running.
    pub(crate) fn start_at(home: &Home, shard: &Arc<dyn Shard>, limits: Limits) -> Addr<Self> {
        let shard = Arc::clone(shard);
        home.start(move || Self::new(shard, limits))
    }

    fn new(shard: Arc<dyn Shard>, limits: Limits) -> Self {
        Self {
            shard,
            limits,
            offers: BTreeMap::new(),
            queues: BTreeMap::new(),
            turns: VecDeque::new(),
            entries: 0,
            queued: 0,
            next_offer: 0,
            proposed: Instant::now(),
        }
    }

    /// Fills an entry: rows take turns, with a portion each that lets all of them in if possible.
    fn fill(&mut self) -> (Vec<Command>, Vec<Slot>) {
        let (mut commands, mut slots) = (Vec::new(), Vec::new());
        let room = self.limits.entry_commands_max;
        let portion = (room / self.turns.len().max(1)).clamp(1, self.limits.portion_max);
        let mut bytes_left = self.limits.entry_bytes_max;
        while commands.len() < room
            && bytes_left > 0
            && let Some(name) = self.turns.pop_front()
        {
            let Some(queue) = self.queues.get_mut(&name) else { continue };
            let mut take = portion.min(room - commands.len()).min(queue.commands);
            while take > 0
                && bytes_left > 0
                && let Some(number) = queue.offers.front().copied()
            {
                // Offers go only when all of their commands are in entries: it is there.
                let Some(offer) = self.offers.get_mut(&number) else { break };
                let before = commands.len();
                while commands.len() - before < take
                    && bytes_left > 0
                    && let Some(command) = offer.commands.pop_front()
                {
                    bytes_left = bytes_left.saturating_sub(command.bytes());
                    slots.push(Slot { offer: number, request_id: command.request_id });
                    commands.push(command);
                }
                let part = commands.len() - before;
                offer.proposed += part;
                queue.commands -= part;
                self.queued -= part;
                take -= part;
                if offer.commands.is_empty() {
                    queue.offers.pop_front();
                }
            }
            if queue.commands > 0 {
                self.turns.push_back(name);
            } else {
                self.queues.remove(&name);
            }
        }
        (commands, slots)
    }

    fn propose(&mut self, context: &mut Context<Self>) {
        while self.entries < self.limits.entries_in_flight
            && (self.entries == 0 || self.queued >= self.limits.overlap_commands_min)
        {
            let (commands, slots) = self.fill();
            if commands.is_empty() {
                return;
            }
            self.entries += 1;
            self.proposed = Instant::now();
            let count = commands.len();
            let decided = self.shard.propose(commands).into_actor(self);
            context.spawn(decided.map(move |decided, proposer, context| {
                proposer.entries -= 1;
                proposer.settle(slots, count, decided);
                proposer.propose(context);
            }));
        }
    }

    /// Takes an offer in, behind the others of its row; a row without any is behind the other rows.
    fn enqueue(&mut self, number: u64, name: Arc<str>, count: usize) {
        self.queued += count;
        let queue = self.queues.entry(Arc::clone(&name)).or_insert_with(|| {
            self.turns.push_back(name);
            Queue::default()
        });
        queue.offers.push_back(number);
        queue.commands += count;
    }

    fn settle(&mut self, slots: Vec<Slot>, count: usize, decided: Result<Vec<Decision>, Refusal>) {
        let replies: Vec<Reply> = match decided {
            Ok(decisions) if decisions.len() == count => decisions.into_iter().map(Ok).collect(),
            Ok(decisions) => {
                let what = format!("{} decisions for {count} commands", decisions.len());
                vec![Err(Refusal::Unknown(what)); count]
            }
            Err(refusal) => vec![Err(refusal); count],
        };
        for (slot, reply) in slots.into_iter().zip(replies) {
            let Some(offer) = self.offers.get_mut(&slot.offer) else { continue };
            offer.proposed -= 1;
            offer.replies.push((slot.request_id, reply));
            if offer.commands.is_empty()
                && offer.proposed == 0
                && let Some(offer) = self.offers.remove(&slot.offer)
            {
                // A row waits for its own offers only, so this cannot outgrow `offers_max`; its mailbox bound is for
                // requests. A row that is gone has answered its callers in its last moment.
                #[expect(clippy::disallowed_methods, reason = "bounded by offers_max per row")]
                offer.row.do_send(Settled { replies: offer.replies });
            }
        }
    }

    /// When something is due and nothing flows, lets log time pass, until nothing is due any more.
    fn tick(&mut self, context: &mut Context<Self>) {
        if self.entries > 0 || !self.offers.is_empty() || !self.shard.leads() {
            return;
        }
        let stamp = self.shard.stamp();
        let mut due = false;
        self.shard.look(&mut |machine| {
            let now_ms = machine.time().at(stamp).steady_ms;
            due = machine.next_due_ms().is_some_and(|due_ms| due_ms <= now_ms);
        });
        // Log time that nobody confirms passes only while somebody stamps: it shall not stand still.
        let stale = !stamp.confirmed && self.proposed.elapsed() >= UNCONFIRMED_TICK;
        if due || stale {
            self.entries += 1;
            self.proposed = Instant::now();
            let ticked = self.shard.propose(vec![Command::system(SystemCommand::Tick)]).into_actor(self);
            context.spawn(ticked.map(move |ticked, proposer, context| {
                proposer.entries -= 1;
                proposer.propose(context);
                if ticked.is_ok() {
                    proposer.tick(context);
                }
            }));
        }
    }
}

impl Actor for Proposer {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        context.set_mailbox_capacity(self.limits.mailbox);
        context.run_interval(TICK_INTERVAL, Self::tick);
    }
}

impl Handler<AbandonProposer> for Proposer {
    type Result = ();

    fn handle(&mut self, _: AbandonProposer, context: &mut Self::Context) {
        context.terminate();
    }
}

impl Handler<Offer> for Proposer {
    type Result = ();

    fn handle(&mut self, offer: Offer, context: &mut Self::Context) {
        let number = self.next_offer;
        self.next_offer += 1;
        let replies = Vec::with_capacity(offer.commands.len());
        let Offer { commands, row, name } = offer;
        let count = commands.len();
        let waiting = Waiting { row, commands: commands.into(), proposed: 0, replies };
        self.offers.insert(number, waiting);
        self.enqueue(number, name, count);
        self.propose(context);
    }
}
