//! What the client believes about one shard group: who leads it, and whether that is in doubt.
//!
//! While it is in doubt, one call at a time probes and all others wait here: a failover must not turn every
//! waiting call into a storm of questions to nodes that are busy electing. When the doubt ends, the
//! waiting calls are let go over a short while, not all at once.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tidewall_mutant::Mutant;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until, timeout_at};

use crate::reads::Replicas;

/// How much longer the release of waiting calls is spread for each of them.
const RELEASE_SPREAD_EACH: Duration = Duration::from_micros(20);
/// Waiting calls are released within this time at the latest.
const RELEASE_SPREAD_MAX: Duration = Duration::from_millis(200);

/// One shard group as seen from here. Nodes are positions in the client's list of nodes.
pub(crate) struct Group {
    /// Bit by bit, which positions hold a node that still belongs to the cluster.
    nodes: AtomicU64,
    leader: AtomicUsize,
    in_doubt: AtomicBool,
    /// Somebody probes.
    probing: AtomicBool,
    /// Probes without an answer since the doubt began.
    failed_probes: AtomicU32,
    settled: Notify,
    held: AtomicUsize,
    /// How many calls the last settlement released.
    released: AtomicUsize,
    /// Who else can be asked, and for what.
    pub(crate) replicas: Replicas,
}

/// Leave to make an attempt.
pub(crate) enum Entry<'a> {
    /// Nothing is in doubt.
    Open,
    /// This call is the one that probes.
    Probe(Probe<'a>),
}

/// Why there is no leave.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The deadline passed while waiting.
    Deadline,
    /// As many calls wait as may.
    Full,
}

/// The right to probe; passes to another waiting call when dropped.
pub(crate) struct Probe<'a>(&'a Group);

impl Probe<'_> {
    /// How many probes in a row had no answer before this one.
    pub(crate) fn failures(&self) -> u32 {
        self.0.failed_probes.load(Ordering::Acquire)
    }
}

impl Drop for Probe<'_> {
    fn drop(&mut self) {
        self.0.probing.store(false, Ordering::Release);
        if self.0.in_doubt.load(Ordering::Acquire) {
            self.0.failed_probes.fetch_add(1, Ordering::AcqRel);
            self.0.settled.notify_one();
        }
    }
}

/// Counts a waiting call for as long as it waits.
struct Held<'a>(&'a AtomicUsize);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Group {
    /// A group of a cluster with `nodes` nodes, believed to be led by `leader`.
    pub(crate) fn new(nodes: usize, leader: usize) -> Self {
        Self {
            nodes: AtomicU64::new(u64::MAX >> (64 - nodes.clamp(1, 64))),
            leader: AtomicUsize::new(leader),
            in_doubt: AtomicBool::new(false),
            probing: AtomicBool::new(false),
            failed_probes: AtomicU32::new(0),
            settled: Notify::new(),
            held: AtomicUsize::new(0),
            released: AtomicUsize::new(0),
            replicas: Replicas::default(),
        }
    }

    pub(crate) fn leader(&self) -> usize {
        self.leader.load(Ordering::Acquire)
    }

    /// Bit by bit, the nodes that are not believed to lead.
    pub(crate) fn standbys(&self) -> u64 {
        self.nodes.load(Ordering::Acquire) & !(1 << self.leader())
    }

    /// The node after this one.
    pub(crate) fn after(&self, node: usize) -> usize {
        let nodes = self.nodes.load(Ordering::Acquire);
        let next = (1..=64).map(|step| (node + step) % 64).find(|position| nodes >> position & 1 == 1);
        next.unwrap_or(node)
    }

    /// Nodes have joined or left.
    pub(crate) fn set_nodes(&self, nodes: u64) {
        self.nodes.store(nodes, Ordering::Release);
        let leader = self.leader();
        if nodes >> leader & 1 == 0 {
            self.doubt(leader);
        }
    }

    /// A node answered as the leader.
    pub(crate) fn settle(&self, node: usize) {
        if self.leader.load(Ordering::Acquire) != node {
            self.leader.store(node, Ordering::Release);
        }
        if self.in_doubt.load(Ordering::Acquire) && self.in_doubt.swap(false, Ordering::AcqRel) {
            self.failed_probes.store(0, Ordering::Release);
            self.released.store(self.held.load(Ordering::Acquire), Ordering::Release);
            self.settled.notify_waiters();
        }
    }

    /// `asked` (or `silent`, which did not answer before) says that `hint` leads.
    pub(crate) fn learn(&self, asked: usize, silent: Option<usize>, hint: usize) {
        if tidewall_mutant::active(Mutant::StaleRouteServed) {
            return;
        }
        // Only whoever still believes in the old leader is corrected: a late answer must not undo what
        // others have found out since.
        let corrected = self.leader.compare_exchange(asked, hint, Ordering::AcqRel, Ordering::Acquire);
        if let (Err(_), Some(silent)) = (corrected, silent) {
            let _ = self.leader.compare_exchange(silent, hint, Ordering::AcqRel, Ordering::Acquire);
        }
    }

    /// A node cannot lead: the next one is asked, by one call at a time.
    pub(crate) fn doubt(&self, node: usize) {
        if tidewall_mutant::active(Mutant::StaleRouteServed) {
            self.in_doubt.store(true, Ordering::Release);
            return;
        }
        let next = self.after(node);
        if self.leader.compare_exchange(node, next, Ordering::AcqRel, Ordering::Acquire).is_ok() {
            self.in_doubt.store(true, Ordering::Release);
        }
    }

    /// Waits until an attempt makes sense: at once when nothing is in doubt, else until somebody has found
    /// the leader or it is this call's turn to look for it.
    pub(crate) async fn enter(
        &self,
        deadline: Instant,
        held_max: usize,
        pause: impl Fn(u32) -> Duration,
    ) -> Result<Entry<'_>, Refused> {
        if !self.in_doubt.load(Ordering::Acquire) {
            return Ok(Entry::Open);
        }
        if self.held.fetch_add(1, Ordering::AcqRel) >= held_max {
            self.held.fetch_sub(1, Ordering::AcqRel);
            return Err(Refused::Full);
        }
        let _held = Held(&self.held);
        loop {
            let mut settled = std::pin::pin!(self.settled.notified());
            // Registers before the state is looked at, so that no notification falls in between.
            settled.as_mut().enable();
            if !self.in_doubt.load(Ordering::Acquire) {
                self.stagger(deadline).await?;
                return Ok(Entry::Open);
            }
            if !self.probing.swap(true, Ordering::AcqRel) {
                let probe = Probe(self);
                let until = Instant::now() + pause(probe.failures());
                if until >= deadline {
                    // Not counted as a probe: nothing was asked.
                    sleep_until(deadline).await;
                    return Err(Refused::Deadline);
                }
                sleep_until(until).await;
                return Ok(Entry::Probe(probe));
            }
            if timeout_at(deadline, settled).await.is_err() {
                return Err(Refused::Deadline);
            }
        }
    }

    /// Spreads released calls over time.
    async fn stagger(&self, deadline: Instant) -> Result<(), Refused> {
        let released = u32::try_from(self.released.load(Ordering::Acquire)).unwrap_or(u32::MAX);
        let spread = RELEASE_SPREAD_EACH.saturating_mul(released).min(RELEASE_SPREAD_MAX);
        if spread < Duration::from_millis(1) {
            return Ok(());
        }
        let until = Instant::now() + spread.mul_f64(tidewall_env::random::rng().random_range(0.0..1.0));
        if until >= deadline {
            return Err(Refused::Deadline);
        }
        sleep_until(until).await;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn at_once(_: u32) -> Duration {
        Duration::ZERO
    }

    #[test]
    fn a_late_hint_does_not_undo_what_was_found_out() {
        let group = Group::new(3, 0);
        group.learn(0, None, 2);
        assert_eq!(group.leader(), 2);
        group.learn(0, None, 1);
        assert_eq!(group.leader(), 2, "node 0 is no longer believed");
        group.learn(1, Some(2), 0);
        assert_eq!(group.leader(), 0, "2 was silent and 1 named its successor");
        group.doubt(2);
        assert!(!group.in_doubt.load(Ordering::Acquire), "nobody believes in node 2 any more");
    }

    #[test]
    fn nodes_that_left_are_passed_over() {
        let group = Group::new(3, 0);
        assert_eq!((group.after(0), group.after(2)), (1, 0));
        group.set_nodes(0b1101);
        assert_eq!((group.after(0), group.after(2), group.after(3)), (2, 3, 0));
        assert_eq!(group.leader(), 0);
        group.set_nodes(0b1100);
        assert_eq!(group.leader(), 2, "the believed leader has left");
        assert!(group.in_doubt.load(Ordering::Acquire));
    }

    #[tokio::test(start_paused = true)]
    async fn one_call_probes_and_the_others_wait_for_it() {
        let group = Arc::new(Group::new(3, 0));
        group.doubt(0);
        let Ok(Entry::Probe(probe)) = group.enter(soon(), 10, at_once).await else { panic!("must probe") };
        let waiting = tokio::spawn({
            let group = Arc::clone(&group);
            async move { matches!(group.enter(soon(), 10, at_once).await, Ok(Entry::Open)) }
        });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!waiting.is_finished());
        group.settle(1);
        drop(probe);
        assert!(waiting.await.unwrap());
        assert_eq!((group.leader(), group.held.load(Ordering::Acquire)), (1, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_probe_that_gives_up_passes_the_turn_on() {
        let group = Arc::new(Group::new(3, 0));
        group.doubt(0);
        let Ok(Entry::Probe(probe)) = group.enter(soon(), 10, at_once).await else { panic!("must probe") };
        let waiting = tokio::spawn({
            let group = Arc::clone(&group);
            async move {
                match group.enter(soon(), 10, at_once).await {
                    Ok(Entry::Probe(probe)) => probe.failures(),
                    _ => 0,
                }
            }
        });
        tokio::task::yield_now().await;
        drop(probe);
        assert_eq!(waiting.await.unwrap(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_is_bounded_in_number_and_time() {
        let group = Group::new(3, 0);
        group.doubt(0);
        assert_eq!(group.enter(soon(), 0, at_once).await.err(), Some(Refused::Full));
        let _probe = group.enter(soon(), 10, at_once).await.ok().unwrap();
        let short = Instant::now() + Duration::from_millis(30);
        assert_eq!(group.enter(short, 10, at_once).await.err(), Some(Refused::Deadline));
        assert_eq!(group.held.load(Ordering::Acquire), 0);
    }
}
