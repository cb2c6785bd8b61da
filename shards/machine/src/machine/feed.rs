//! The feed: what was told in each entry, as a row of its own, and the oldest of them given up. What was told in an entry can be heard
//! when the entry is closed. **Never here:** what a change says.

use prost::Message as _;
use tidewall_domain::feed::{Feed, TELLS_CHANGES};

use tidewall_mutant::{Mutant, active};

use super::Machine;
use crate::feed::{FeedRow, Place};

/// Bytes of changes that are kept of a group. In the simulation little is kept, so that some come too late.
pub const FEED_BYTES_MAX: u64 = if cfg!(tidewall_mutants) { 8 << 10 } else { 32 << 20 };
/// Changes are kept so long, milliseconds of steady time.
pub const FEED_MS_MAX: u64 = 15 * 60_000;
/// Entries of which an entry gives the changes up at most: more than it adds.
const GIVEN_UP_MAX: usize = 8;
/// The same for an entry that adds as much as many of them.
const GIVEN_UP_LARGE_MAX: usize = 2_048;

/// What somebody hears who has heard everything up to a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// What comes next.
    Changes {
        /// By entry; of the first one perhaps not all.
        told: Vec<Told>,
        /// With this, everything up to here is heard.
        place: Place,
    },
    /// What came next is not kept any more, or these rows have never been at that place: look at the rows, and go on from there.
    Gone {
        /// The oldest place from which the feed can be heard.
        oldest: Place,
    },
}

/// What was told in an entry, or a part of it.
#[derive(Debug, PartialEq, Eq)]
pub struct Told {
    /// Log index of the entry.
    pub index: u64,
    /// Log time of the entry, Unix milliseconds.
    pub log_ms: u64,
    /// Number of the first change within the entry, from 0.
    pub first: u32,
    /// The changes, each as its length and its bytes.
    pub changes: Vec<u8>,
}

impl Machine {
    /// Takes what a transaction tells.
    pub(super) fn tell(&mut self, feed: Feed) {
        let heard = !feed.changes.is_empty() && self.hears();
        for told in feed.changes {
            // A vector takes whatever comes.
            let _ = told.change.encode_length_delimited(&mut self.telling);
            self.told += 1;
            if heard {
                self.overhear(told);
            }
        }
    }

    /// Makes a row of what was told in the entry that ends, and gives old ones up. The first row of all says from where on the feed is
    /// whole.
    pub(super) fn close_feed(&mut self) {
        let changes = std::mem::take(&mut self.telling);
        self.told = 0;
        let (row, index) = (self.row(), self.applied_index());
        let last = self.feed.derived().last;
        if row.apply_version < TELLS_CHANGES || (changes.is_empty() && last.is_some()) {
            return;
        }
        let told = FeedRow {
            // What was done in this entry before anything was told is told to nobody.
            previous: last.unwrap_or(index),
            log_ms: row.time.log_ms(),
            steady_ms: row.time.steady_ms,
            changes: changes.into(),
        };
        let added = told.cost();
        self.feed.set(index, Some(told));
        // More than it adds, in entries and in bytes: the feed shrinks whatever came before.
        let (mut entries, mut bytes) = (0, 0);
        while entries < GIVEN_UP_MAX || (bytes < 2 * added && entries < GIVEN_UP_LARGE_MAX) {
            let Some((oldest, told)) = self.feed.iter().next() else { break };
            let aged = told.steady_ms.saturating_add(FEED_MS_MAX) < row.time.steady_ms;
            let goes = *oldest;
            if goes == index || !(aged || self.feed.derived().bytes > self.feed_bytes_max) {
                break;
            }
            (entries, bytes) = (entries + 1, bytes + told.cost());
            self.feed.set(goes, None);
        }
        self.feed.commit();
    }

    /// Begins the feed anew: nothing that was told before can be heard any more.
    pub(super) fn begin_feed(&mut self) {
        let told: Vec<u64> = self.feed.iter().map(|(index, _)| *index).collect();
        for index in told.into_iter().rev() {
            self.feed.set(index, None);
        }
        self.feed.commit();
        (self.telling, self.told, self.heard) = (Vec::new(), 0, Vec::new());
    }

    /// About how much there is, bytes.
    #[cfg(test)]
    pub(crate) fn feed_bytes(&self) -> u64 {
        self.feed.derived().bytes
    }

    /// Index of the last entry that told anything; 0 when there is none.
    pub fn told_up_to(&self) -> u64 {
        self.feed.derived().last.unwrap_or(0)
    }

    /// The place behind everything that was told.
    pub fn place(&self) -> Place {
        Place::behind(self.incarnation(), self.settled.0)
    }

    /// What somebody hears who has heard everything up to a place: entries of about `bytes_max`, one change at least if there is any.
    pub fn changes_after(&self, heard: Place, bytes_max: usize) -> Heard {
        let end = self.place();
        let since = self.feed.iter().next().map_or(end.index, |(_, oldest)| oldest.previous);
        if heard.incarnation != end.incarnation
            || heard < Place::behind(end.incarnation, since) && !active(Mutant::GapIsPassedOver)
        {
            return Heard::Gone { oldest: Place::behind(end.incarnation, since) };
        }
        let (mut told, mut bytes, mut place) = (Vec::new(), 0, heard);
        for (index, row) in self.feed.range_from(&heard.index) {
            if bytes >= bytes_max {
                return Heard::Changes { told, place };
            }
            let first = if *index == heard.index { heard.changes } else { 0 };
            let (changes, count) = part(&row.changes, first, bytes_max - bytes);
            let changes_heard = first.saturating_add(count);
            if count > 0 {
                bytes += changes.len();
                told.push(Told { index: *index, log_ms: row.log_ms, first, changes: changes.to_vec() });
            }
            if !ends(&row.changes, changes_heard) {
                let place = Place { incarnation: end.incarnation, index: *index, changes: changes_heard };
                return Heard::Changes { told, place };
            }
            place = Place::behind(end.incarnation, *index);
        }
        // Somebody else has heard more than these rows have: they are behind, and it hears what comes.
        Heard::Changes { told, place: end.max(heard) }
    }
}

/// Where each of the changes ends, in order.
fn ends_of(mut changes: &[u8]) -> impl Iterator<Item = usize> {
    let all = changes.len();
    std::iter::from_fn(move || {
        if changes.is_empty() {
            return None;
        }
        let length = prost::decode_length_delimiter(&mut changes).ok()?;
        changes = changes.get(length..)?;
        Some(all - changes.len())
    })
}

/// The changes behind the first `passed` ones, one at least and as many as fit into `bytes`; and how many they are.
fn part(changes: &[u8], passed: u32, bytes: usize) -> (&[u8], u32) {
    let passed = passed as usize;
    let mut ends = ends_of(changes);
    let start = match passed {
        0 => Some(0),
        passed => ends.nth(passed - 1),
    };
    let Some(start) = start else { return (&[], 0) };
    let fitting = ends.enumerate().take_while(|(at, end)| *at == 0 || end - start <= bytes);
    let (count, end) = fitting.last().map_or((0, start), |(at, end)| (at as u32 + 1, end));
    (changes.get(start..end).unwrap_or_default(), count)
}

/// Whether an entry has no more changes than `count`.
fn ends(changes: &[u8], count: u32) -> bool {
    ends_of(changes).nth(count as usize).is_none()
}
