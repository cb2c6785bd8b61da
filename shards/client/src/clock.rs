//! The time of the cluster, as its nodes tell it. Gateways go by it: an expiry that a wrong clock made would give copies of a
//! request an hour of life, or none.
//!
//! Each answer of a node bounds its clock between the question and the answer; in between, this process's monotonic clock
//! counts. The median is believed, so that one wrong clock misleads nobody: of the nodes, and of this machine as one more witness,
//! because of two nodes nobody else could say which one is wrong. One node of several that is heard alone is believed as little.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_env::clock::unix_ms;
use tokio::time::Instant;

/// What a node has said counts for so long: clocks that count by themselves part slowly.
const FRESH: Duration = Duration::from_secs(60);
/// What enough nodes have agreed on counts for so long when too few are heard.
const AGREED: Duration = Duration::from_secs(600);
/// An answer that took longer says too little about the clock.
const ANSWER_MAX: Duration = Duration::from_millis(500);

/// A node's clock at a moment.
#[derive(Debug, Clone, Copy)]
struct Reading {
    at: Instant,
    unix_ms: u64,
}

/// The clocks of the nodes, as they were read last.
#[derive(Debug)]
pub struct ClusterClock {
    known: Mutex<Known>,
}

#[derive(Debug)]
struct Known {
    /// Nodes of the cluster.
    nodes: BTreeSet<u64>,
    readings: BTreeMap<u64, Reading>,
    /// What enough clocks said last.
    agreed: Option<Reading>,
}

impl ClusterClock {
    /// Of a cluster of these nodes.
    pub fn new(nodes: impl IntoIterator<Item = u64>) -> Self {
        let nodes = nodes.into_iter().collect();
        Self { known: Mutex::new(Known { nodes, readings: BTreeMap::new(), agreed: None }) }
    }

    /// Takes in what a node said of its clock, in an answer to a question that was asked at `asked`.
    pub(crate) fn read(&self, node: u64, node_ms: u64, asked: Instant) {
        let now = Instant::now();
        let took = now.saturating_duration_since(asked);
        if took > ANSWER_MAX {
            return;
        }
        // Whatever part of the way was the question's, it is off by half of the way at most.
        let reading = Reading { at: now, unix_ms: node_ms + took.as_millis() as u64 / 2 };
        self.known.lock().readings.insert(node, reading);
    }

    /// The nodes that belong to the cluster now.
    pub(crate) fn adopt(&self, nodes: impl IntoIterator<Item = u64>) {
        let mut known = self.known.lock();
        let Known { nodes: present, readings, .. } = &mut *known;
        *present = nodes.into_iter().collect();
        readings.retain(|node, _| present.contains(node));
    }

    /// The time by the clocks of the nodes, Unix milliseconds; by this machine's own while too few have told it.
    pub fn unix_ms(&self) -> u64 {
        self.told_ms().unwrap_or_else(unix_ms)
    }

    /// How far this machine's clock is ahead of those of the nodes, milliseconds; `None` while too few have told.
    pub fn ahead_ms(&self) -> Option<i64> {
        let told_ms = self.told_ms()?;
        i64::try_from(i128::from(unix_ms()) - i128::from(told_ms)).ok()
    }

    fn told_ms(&self) -> Option<u64> {
        let now = Instant::now();
        let passed = |reading: &Reading| now.saturating_duration_since(reading.at);
        let reads = |reading: &Reading| reading.unix_ms + passed(reading).as_millis() as u64;
        let mut known = self.known.lock();
        let fresh = known.readings.values().filter(|reading| passed(reading) < FRESH);
        let mut told: Vec<u64> = fresh.map(reads).collect();
        if told.is_empty() || (told.len() < 2 && known.nodes.len() > 1) {
            return known.agreed.filter(|agreed| passed(agreed) < AGREED).as_ref().map(reads);
        }
        if told.len() > 1 {
            told.push(unix_ms());
        }
        told.sort_unstable();
        // Of an even number the earlier one: a request that expires too early is asked again, one that expires too late haunts.
        let median = told.get(told.len().checked_sub(1)? / 2).copied()?;
        known.agreed = Some(Reading { at: now, unix_ms: median });
        Some(median)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_median_is_believed_and_time_passes_by_itself() {
        let clock = ClusterClock::new([1, 2, 3]);
        assert!(clock.ahead_ms().is_none());
        assert!(clock.unix_ms().abs_diff(unix_ms()) < 60_000, "nobody has told: this machine's own");
        // This machine's clock is of another year.
        let (right, hour) = (1_700_000_000_000, 3_600_000);
        clock.read(1, right, Instant::now());
        assert!(clock.unix_ms().abs_diff(unix_ms()) < 60_000, "one of three may be as wrong");
        clock.read(2, right + 20, Instant::now());
        assert_eq!(clock.unix_ms(), right + 20, "two against this machine");
        clock.read(3, right - hour, Instant::now());
        assert!(clock.unix_ms().abs_diff(right) <= 20);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert!(clock.unix_ms().abs_diff(right + 7_000) <= 20);
        assert!(clock.ahead_ms().is_some_and(|ahead| ahead > hour as i64));
        // Of the three only the wrong one is heard: what they agreed on goes on.
        tokio::time::advance(FRESH).await;
        clock.read(3, right - hour, Instant::now());
        assert!(clock.unix_ms().abs_diff(right + 67_000) <= 20);
        clock.adopt([3]);
        assert_eq!(clock.unix_ms(), right - hour, "it is the only one now");
        tokio::time::advance(FRESH + AGREED).await;
        assert!(clock.ahead_ms().is_none(), "long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_nodes_the_one_that_agrees_with_this_machine_is_believed() {
        for wrong in [-3_600_000, 3_600_000] {
            let clock = ClusterClock::new([1, 2]);
            clock.read(1, unix_ms().saturating_add_signed(wrong), Instant::now());
            clock.read(2, unix_ms(), Instant::now());
            assert!(clock.unix_ms().abs_diff(unix_ms()) < 60_000, "{wrong}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_took_long_says_nothing() {
        let clock = ClusterClock::new([1]);
        let asked = Instant::now();
        tokio::time::advance(Duration::from_millis(100)).await;
        clock.read(1, 1_700_000_000_000, asked);
        assert_eq!(clock.unix_ms(), 1_700_000_000_050);
        tokio::time::advance(Duration::from_millis(500)).await;
        clock.read(1, 1_800_000_000_000, asked);
        assert_eq!(clock.unix_ms(), 1_700_000_000_550);
    }
}
