//! What this node knows of itself and of the other nodes: whether it may lead, whose clocks agree, who supports which
//! apply version, and where operators want leads to be.
//!
//! It knows no network: [`crate::reports`] fills it. A node whose clock is far from the median of the nodes' clocks
//! neither stamps entries nor takes leads, because log time never goes back: one fast clock would expire every
//! hold.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tidewall_client::topology::Topology;
use tidewall_env::clock::Clock as _;
use tidewall_machine::Stamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use crate::clock::SteadyClock;

/// A clock that is further than this from the median must not stamp entries, ms.
const CLOCK_FAR_MS: i64 = 500;
/// It counts as near again within this distance, so that the state does not flap.
const CLOCK_NEAR_MS: i64 = 250;
/// What a node has said counts for so long.
const FRESH: Duration = Duration::from_secs(5);
/// Fewer clocks than this have no median that would tell who is wrong.
const CLOCKS_MIN: usize = 3;

/// What another node said last.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    accepts_lead: bool,
    apply_version: u32,
}

/// What a clock showed at a moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    ms: u64,
}

impl Reading {
    /// What it shows now, if nobody has set it since.
    fn now_ms(&self) -> u64 {
        self.ms.saturating_add(self.at.elapsed().as_millis() as u64)
    }
}

#[derive(Debug, Default)]
struct Known {
    heard: BTreeMap<u64, Heard>,
    /// What the other nodes' clocks showed. Not how far they were from this one: that is another clock once it was set.
    clocks: BTreeMap<u64, Reading>,
    /// Node and time of an operator's wish, by group.
    placements: BTreeMap<u32, (u64, u64)>,
}

/// What a node knows of itself and the others; shared by all its parts.
pub struct Standing {
    node: u64,
    started: Instant,
    topology: RwLock<Topology>,
    clock: Arc<SteadyClock>,
    /// Newest apply version that this build, or its configuration, supports.
    apply_version: u32,
    drained: AtomicBool,
    clock_far: AtomicBool,
    /// What this node's clock showed when a majority agreed with it last.
    clock_confirmed: Mutex<Option<Reading>>,
    clock_offset_ms: AtomicI64,
    /// Set when the node is to be started again.
    restart: Notify,
    /// Set when the others are to be told at once, and how often they were told.
    tell: Notify,
    told: watch::Sender<u64>,
    known: Mutex<Known>,
}

impl Standing {
    /// A node that has heard of nobody.
    pub fn new(node: u64, topology: Topology, clock: Arc<SteadyClock>, apply_version: u32) -> Self {
        Self {
            node,
            started: Instant::now(),
            topology: RwLock::new(topology),
            clock,
            apply_version,
            drained: AtomicBool::new(false),
            clock_far: AtomicBool::new(false),
            clock_confirmed: Mutex::new(None),
            clock_offset_ms: AtomicI64::new(0),
            restart: Notify::new(),
            tell: Notify::new(),
            told: watch::Sender::new(0),
            known: Mutex::default(),
        }
    }

    /// This node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// The other nodes of the cluster.
    pub fn others(&self) -> Vec<u64> {
        self.topology.read().nodes.iter().map(|node| node.id).filter(|id| *id != self.node).collect()
    }

    /// Nodes have joined or left, or a group was fenced.
    pub fn adopt(&self, topology: &Topology) {
        *self.topology.write() = topology.clone();
    }

    /// Where a node's peer port is.
    pub fn peer_address(&self, node: u64) -> Option<SocketAddr> {
        self.topology.read().node(node).map(|node| node.peer_address)
    }

    /// Replicas of a group below this incarnation were left behind by a forced recovery.
    pub fn fence(&self, group: u32) -> u64 {
        self.topology.read().fences.get(&group).copied().unwrap_or(0)
    }

    /// How long a node has been silent, and whether it was ever heard; since this node's start when it was not.
    pub fn silence(&self, node: u64) -> (Duration, bool) {
        match self.known.lock().heard.get(&node) {
            Some(heard) => (heard.at.elapsed(), true),
            None => (self.started.elapsed(), false),
        }
    }

    /// Whether a node was heard lately; this one always was.
    pub fn is_heard(&self, node: u64) -> bool {
        let fresh = |heard: &Heard| heard.at.elapsed() < FRESH;
        node == self.node || self.known.lock().heard.get(&node).is_some_and(fresh)
    }

    /// The time that stamps entries, Unix milliseconds.
    pub fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }

    /// What this node's clock shows, and whether a majority of the nodes agrees.
    pub fn stamp(&self) -> Stamp {
        let ms = self.now_ms();
        Stamp { ms, confirmed: self.confirms(ms) }
    }

    /// Whether the clocks of a majority of the nodes, this one among them, agree with it.
    pub fn clock_is_confirmed(&self) -> bool {
        self.confirms(self.now_ms())
    }

    /// Whether a reading of this node's clock is what a majority has confirmed lately and what has passed since: a clock that
    /// was set in between is another one.
    fn confirms(&self, now_ms: u64) -> bool {
        let confirmed = *self.clock_confirmed.lock();
        confirmed.is_some_and(|reading| {
            reading.at.elapsed() < FRESH && now_ms.abs_diff(reading.now_ms()) <= CLOCK_FAR_MS.unsigned_abs()
        })
    }

    /// Newest apply version that this node supports.
    pub fn apply_version(&self) -> u32 {
        self.apply_version
    }

    /// Whether this node takes leads.
    pub fn accepts_lead(&self) -> bool {
        !self.is_drained() && !self.clock_is_far()
    }

    /// Whether an operator, or a stop under way, keeps leads away.
    pub fn is_drained(&self) -> bool {
        self.drained.load(Ordering::Relaxed)
    }

    /// Keeps leads away, or not.
    pub fn set_drained(&self, drained: bool) {
        self.drained.store(drained, Ordering::Relaxed);
    }

    /// Whether this node's clock must not stamp entries.
    pub fn clock_is_far(&self) -> bool {
        self.clock_far.load(Ordering::Relaxed)
    }

    /// Distance of this node's clock from the median, ms; positive when it is ahead.
    pub fn clock_offset_ms(&self) -> i64 {
        self.clock_offset_ms.load(Ordering::Relaxed)
    }

    /// Has the others told at once what this node says of itself, and waits until they were, within `patience`.
    pub async fn announce(&self, patience: Duration) {
        let mut told = self.told.subscribe();
        // A round that is under way may have begun before the change: the one after it has certainly not.
        let enough = *told.borrow_and_update() + 2;
        let rounds = async {
            while *told.borrow_and_update() < enough {
                self.tell.notify_one();
                if told.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(patience, rounds).await.is_err() {
            tracing::debug!("not all nodes were told in time");
        }
    }

    /// Waits until somebody wants the others to be told.
    pub async fn announcement_wanted(&self) {
        self.tell.notified().await;
    }

    /// The others were told.
    pub fn announced(&self) {
        self.told.send_modify(|rounds| *rounds += 1);
    }

    /// Asks for this node to be started again, because something can be done only then.
    pub fn ask_for_restart(&self) {
        self.restart.notify_one();
    }

    /// Waits until the node is to be started again.
    pub async fn restart_asked(&self) {
        self.restart.notified().await;
    }

    /// Takes in what another node says of itself.
    pub fn hear(&self, node: u64, accepts_lead: bool, apply_version: u32) {
        let heard = Heard { at: Instant::now(), accepts_lead, apply_version };
        self.known.lock().heard.insert(node, heard);
    }

    /// Takes in what another node's clock shows now, Unix milliseconds.
    pub fn measured(&self, node: u64, unix_ms: u64) {
        self.known.lock().clocks.insert(node, Reading { at: Instant::now(), ms: unix_ms });
    }

    /// Whether another node has said lately that it takes leads; this node's own answer for itself.
    pub fn takes_lead(&self, node: u64) -> bool {
        if node == self.node {
            return self.accepts_lead();
        }
        self.known
            .lock()
            .heard
            .get(&node)
            .is_some_and(|heard| heard.at.elapsed() < FRESH && heard.accepts_lead)
    }

    /// Newest apply version that all `members` have said lately to support.
    pub fn supported_by<'a>(&self, members: impl IntoIterator<Item = &'a u64>) -> Option<u32> {
        let known = self.known.lock();
        let mut supported = self.apply_version;
        for member in members {
            if *member != self.node {
                let heard = known.heard.get(member).filter(|heard| heard.at.elapsed() < FRESH)?;
                supported = supported.min(heard.apply_version);
            }
        }
        Some(supported)
    }

    /// Compares the clocks that were measured lately. Returns whether this node's standing has changed.
    pub fn judge_clock(&self) -> bool {
        let now_ms = self.now_ms();
        let mut ahead: Vec<i64> = {
            let known = self.known.lock();
            let fresh = known.clocks.values().filter(|reading| reading.at.elapsed() < FRESH);
            let ahead = fresh.map(|reading| reading.now_ms() as i64 - now_ms as i64);
            std::iter::once(0).chain(ahead).collect()
        };
        let agreeing = ahead.iter().filter(|ms| ms.abs() <= CLOCK_FAR_MS).count();
        let confirmed = agreeing * 2 > self.topology.read().nodes.len();
        *self.clock_confirmed.lock() = confirmed.then(|| Reading { at: Instant::now(), ms: now_ms });
        let Some(offset) = distance(&mut ahead) else {
            // Too few clocks to accuse anybody: what was found before stands, unless this clock agrees with those of a
            // majority of all nodes, whatever the silent ones would say. Otherwise a clock that was set right could not
            // be cleared while a third node is down, and the group might have nobody else who can lead.
            let near = ahead.iter().filter(|ms| ms.abs() <= CLOCK_NEAR_MS).count();
            let cleared = self.clock_is_far() && near * 2 > self.topology.read().nodes.len();
            if cleared {
                self.clock_offset_ms.store(0, Ordering::Relaxed);
                self.clock_far.store(false, Ordering::Relaxed);
                tracing::info!("this node's clock agrees with those of a majority again");
            }
            return cleared;
        };
        self.clock_offset_ms.store(offset, Ordering::Relaxed);
        let was_far = self.clock_is_far();
        let is_far = offset.abs() > if was_far { CLOCK_NEAR_MS } else { CLOCK_FAR_MS };
        self.clock_far.store(is_far, Ordering::Relaxed);
        if is_far && offset.saturating_add_unsigned(self.clock.held_back_ms()).abs() <= CLOCK_NEAR_MS {
            // The node started with a slow clock, which was set right since: a majority vouches for it.
            tracing::info!(offset, "this node's clock was set right: it is believed again");
            self.clock.catch_up();
        }
        if is_far && !was_far {
            tracing::error!(
                offset,
                "this node's clock is far from the others': it gives up its leads; set the clock"
            );
        } else if was_far && !is_far {
            tracing::info!(offset, "this node's clock agrees with the others again");
        }
        is_far != was_far
    }

    /// Whether enough clocks were measured to tell who is wrong.
    pub fn clocks_compared(&self) -> bool {
        self.known.lock().clocks.len() + 1 >= CLOCKS_MIN.min(self.topology.read().nodes.len())
    }

    /// An operator's wish, made here.
    pub fn place(&self, group: u32, node: u64) {
        let made_ms = self.now_ms();
        self.known.lock().placements.insert(group, (node, made_ms));
    }

    /// An operator's wish that another node told; the newest counts.
    pub fn placed(&self, group: u32, node: u64, made_ms: u64) {
        let mut known = self.known.lock();
        let newest = known.placements.get(&group).is_none_or(|(_, known_ms)| *known_ms < made_ms);
        if newest {
            known.placements.insert(group, (node, made_ms));
        }
    }

    /// All wishes, as (group, node, made).
    pub fn placements(&self) -> Vec<(u32, u64, u64)> {
        let known = self.known.lock();
        known.placements.iter().map(|(group, (node, made_ms))| (*group, *node, *made_ms)).collect()
    }

    /// The node that should lead a group while it takes leads.
    pub fn preferred_leader(&self, group: u32) -> u64 {
        let placed = self.known.lock().placements.get(&group).map(|(node, _)| *node);
        match placed.filter(|node| self.takes_lead(*node)) {
            Some(node) => node,
            None => self.topology.read().preferred_leader(group),
        }
    }
}

/// How far the first clock, 0, is ahead of the median of all; `None` when there are too few.
fn distance(ahead: &mut [i64]) -> Option<i64> {
    if ahead.len() < CLOCKS_MIN {
        return None;
    }
    ahead.sort_unstable();
    // With an even number the nearer one of the two in the middle: two against two accuse nobody.
    let (low, high) = (ahead[(ahead.len() - 1) / 2], ahead[ahead.len() / 2]);
    let median = if low.abs() < high.abs() { low } else { high };
    Some(-median)
}

#[cfg(test)]
mod tests;
