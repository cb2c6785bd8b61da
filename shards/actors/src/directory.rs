//! Finds the actor of a row, makes it when it is needed, and lets idle ones go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use actix::prelude::*;
use parking_lot::Mutex;
use tidewall_machine::Machine;

use crate::home::Home;
use crate::proposer::{AbandonProposer, Proposer};
use crate::request::{Refusal, Request};
use crate::row::{Abandon, Requests, Retire, RowActor, Tidy};
use crate::shard::Shard;

/// Bounds of the actors. Nothing here grows without one.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Messages in a mailbox; a message carries many requests.
    pub mailbox: usize,
    /// Requests waiting in a row.
    pub queue_max: usize,
    /// Offers of a row that the proposer has at a time.
    pub offers_max: usize,
    /// Commands in an offer.
    pub offer_commands_max: usize,
    /// Commands in a Raft entry: a light row waits for one that is on its way, and for the one that it rides in.
    pub entry_commands_max: usize,
    /// Bytes of commands in a Raft entry, about, beyond the first command.
    pub entry_bytes_max: usize,
    /// Commands that a row gets into an entry in one turn.
    pub portion_max: usize,
    /// Entries of a group on their way at a time.
    pub entries_in_flight: usize,
    /// A further entry goes out while others are on their way only when it has so many commands: small entries cost
    /// more than they gain.
    pub overlap_commands_min: usize,
    /// When a refused caller should come back.
    pub retry_after_ms: u32,
    /// Rows with an actor, per group.
    pub rows_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mailbox: 256,
            queue_max: 8_192,
            offers_max: 8,
            offer_commands_max: 512,
            entry_commands_max: 256,
            entry_bytes_max: 1 << 20,
            portion_max: 64,
            entries_in_flight: 3,
            overlap_commands_min: 256,
            retry_after_ms: 200,
            rows_max: 10_000,
        }
    }
}

/// What a row reports without being asked.
#[derive(Debug, Default)]
pub(crate) struct RowStats {
    pub commands: AtomicU64,
    pub queued: AtomicU64,
    /// Requests without an answer, and those whose outcome is in doubt: its actor must not be forgotten.
    pub open: AtomicU64,
}

/// A row and how busy it is.
#[derive(Debug, Clone, PartialEq)]
pub struct HotRow {
    /// Module and row: "module/row".
    pub row: String,
    /// Commands since the last call of [`Directory::sample`].
    pub commands: u64,
    /// Commands waiting now.
    pub queued: u64,
}

struct Known {
    address: Addr<RowActor>,
    stats: Arc<RowStats>,
    /// `commands` at the last sample.
    sampled: u64,
    /// Samples in a row without a command.
    idle_samples: u32,
}

/// The actors of a group.
struct Actors {
    proposer: Addr<Proposer>,
    rows: BTreeMap<String, Known>,
}

struct Inner {
    shard: Arc<dyn Shard>,
    limits: Limits,
    home: Home,
    actors: Mutex<Actors>,
}

/// The actors of one shard group; clones share them.
#[derive(Clone)]
pub struct Directory {
    inner: Arc<Inner>,
}

impl Directory {
    /// Starts the group's proposer at `home`, where its rows will live too.
    pub fn start(shard: Arc<dyn Shard>, limits: Limits, home: Home) -> Self {
        let proposer = Proposer::start_at(&home, &shard, limits);
        let actors = Mutex::new(Actors { proposer, rows: BTreeMap::new() });
        Self { inner: Arc::new(Inner { shard, limits, home, actors }) }
    }

    /// Hands requests for one row of a module to its actor. Every request is answered, sooner or later; this never blocks.
    pub fn submit(&self, module: u8, row: &str, requests: Vec<Request>) {
        if !self.inner.shard.leads() {
            let leader = self.inner.shard.leader();
            for request in requests {
                request.answer(Err(Refusal::NotLeader { leader }));
            }
            return;
        }
        let mut name = String::new();
        self.inner.shard.look(&mut |machine| name = actor_name(machine, module, row));
        let Some(address) = self.actor(&name) else {
            return self.refuse(requests, "too many rows are busy at once");
        };
        if let Err(SendError::Full(Requests(requests)) | SendError::Closed(Requests(requests))) =
            address.try_send(Requests(requests))
        {
            self.refuse(requests, "the row's mailbox is full");
        }
    }

    fn refuse(&self, requests: Vec<Request>, what: &'static str) {
        let retry_after_ms = self.inner.limits.retry_after_ms;
        for request in requests {
            request.answer(Err(Refusal::Overloaded { what, retry_after_ms }));
        }
    }

    fn actor(&self, row: &str) -> Option<Addr<RowActor>> {
        let mut actors = self.inner.actors.lock();
        self.revive(&mut actors);
        if let Some(known) = actors.rows.get(row)
            && known.address.connected()
        {
            return Some(known.address.clone());
        }
        if actors.rows.len() >= self.inner.limits.rows_max {
            return None;
        }
        let stats = Arc::new(RowStats::default());
        let (shard, proposer) = (Arc::clone(&self.inner.shard), actors.proposer.clone());
        let (limits, shared, name) = (self.inner.limits, Arc::clone(&stats), Arc::from(row));
        let address = self.inner.home.start(move || RowActor::new(name, shard, proposer, limits, shared));
        let known = Known { address: address.clone(), stats, sampled: 0, idle_samples: 0 };
        actors.rows.insert(row.to_owned(), known);
        Some(address)
    }

    /// Makes the proposer anew if it has died of a defect. What it had is lost with it, and so are the rows that wait for
    /// it: their callers are told that the outcome is unknown.
    fn revive(&self, actors: &mut Actors) {
        if actors.proposer.connected() {
            return;
        }
        tracing::error!("the proposer of a group died of a defect and is made anew: report this");
        abandon_all(&mut actors.rows);
        actors.proposer = Proposer::start_at(&self.inner.home, &self.inner.shard, self.inner.limits);
    }

    /// Ends all row actors at once, as a defect of theirs would. For tests and simulation.
    pub fn abandon(&self) {
        abandon_all(&mut self.inner.actors.lock().rows);
    }

    /// Ends the proposer, as a defect of its would. For tests and simulation.
    pub fn abandon_proposer(&self) {
        // A full mailbox spares it.
        let _ = self.inner.actors.lock().proposer.try_send(AbandonProposer);
    }

    /// Rows with an actor.
    #[cfg(test)]
    pub(crate) fn actors(&self) -> usize {
        self.inner.actors.lock().rows.len()
    }

    /// The busiest rows since the last call, busiest first. Actors that were idle over ten calls end, and a proposer that has
    /// died is made anew.
    pub fn sample(&self, count: usize) -> Vec<HotRow> {
        let mut hot = Vec::new();
        let mut actors = self.inner.actors.lock();
        self.revive(&mut actors);
        actors.rows.retain(|row, known| {
            let commands = known.stats.commands.load(Ordering::Relaxed);
            let queued = known.stats.queued.load(Ordering::Relaxed);
            let recent = commands - known.sampled;
            known.sampled = commands;
            known.idle_samples = if recent == 0 && queued == 0 { known.idle_samples + 1 } else { 0 };
            if recent > 0 || queued > 0 {
                hot.push(HotRow { row: row.clone(), commands: recent, queued });
            }
            if known.idle_samples <= 10 {
                return true;
            }
            if known.stats.open.load(Ordering::Relaxed) > 0 {
                let _ = known.address.try_send(Tidy);
                return true;
            }
            // A full mailbox means that it is not idle after all.
            known.address.try_send(Retire).is_err()
        });
        hot.sort_by(|a, b| (b.commands, b.queued, &a.row).cmp(&(a.commands, a.queued, &b.row)));
        hot.truncate(count);
        hot
    }
}

/// Actors of rows that do not exist, a module: names are free, actors are not.
pub(crate) const ABSENT_ROWS: u64 = 16;

/// The actor of a row: its own, or one that it shares with others that do not exist (yet).
fn actor_name(machine: &Machine, module: u8, row: &str) -> String {
    match machine.module(module) {
        Some(module) if module.has_row(row) => format!("{}/{row}", module.name()),
        Some(module) => {
            let shared = tidewall_machine::hash_64(row.as_bytes()) % ABSENT_ROWS;
            format!("{}/?{shared}", module.name())
        }
        None => "?".to_owned(),
    }
}

/// Ends these actors with everything in them.
fn abandon_all(rows: &mut BTreeMap<String, Known>) {
    for (_, known) in std::mem::take(rows) {
        // A full mailbox spares its actor: it goes when nobody knows its address any more.
        let _ = known.address.try_send(Abandon);
    }
}
