//! Defects of the state machine that take more than a condition. Only in builds for the simulation.

#![allow(clippy::disallowed_types, reason = "one of the mistakes is what this lint forbids")]

use std::collections::HashMap;

use tidewall_domain::table::Row as _;
use tidewall_mutant::{Mutant, active};

use super::{Frozen, Head};
use crate::dedupe::DedupeRow;
use crate::entry::Entry;
use crate::time::Stamp;

/// An entry as a defective apply would see it.
pub fn entry(mut entry: Entry) -> Entry {
    if active(Mutant::ExpiryByWallClock) {
        entry.stamp = Stamp::confirmed(tidewall_mutant::wall_clock_ms());
    }
    if active(Mutant::LeapFollowed) {
        entry.stamp.confirmed = true;
    }
    if active(Mutant::HashOrderInApply) {
        let shuffled: HashMap<usize, _> = entry.commands.drain(..).enumerate().collect();
        entry.commands = shuffled.into_values().collect();
    }
    entry
}

/// A freeze as a defective one would be stored.
pub fn frozen(mut frozen: Frozen) -> Frozen {
    if active(Mutant::DedupeMissingFromSnapshot) {
        frozen.pages.retain(|page| page.table() != DedupeRow::TABLE);
    }
    if active(Mutant::FieldMissingInSnapshot) {
        frozen.head.chain = Head::default().chain;
    }
    frozen
}
