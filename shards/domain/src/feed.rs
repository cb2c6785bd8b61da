//! What a change of rows tells whoever watches.
//!
//! It is told with the change, in the same transaction, or not at all; what is told says how things are after all of it. Nothing in a
//! group waits for whoever hears it, and nothing is decided by what was told.

use tidewall_messages::{Change, ModuleChange};

/// First apply version under which anything is told.
pub const TELLS_CHANGES: u32 = 7;

/// How far a feed was heard: everything up to here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Place {
    /// Incarnation of the group. Places of different ones cannot be compared.
    pub incarnation: u64,
    /// Log index of the entry.
    pub index: u64,
    /// Changes of that entry, from its first one on.
    pub changes: u32,
}

impl From<Place> for tidewall_messages::Place {
    fn from(place: Place) -> Self {
        Self { incarnation: place.incarnation, index: place.index, changes: place.changes }
    }
}

impl From<tidewall_messages::Place> for Place {
    fn from(place: tidewall_messages::Place) -> Self {
        Self { incarnation: place.incarnation, index: place.index, changes: place.changes }
    }
}

impl Place {
    /// Behind all that an entry tells.
    pub fn behind(incarnation: u64, index: u64) -> Self {
        Self { incarnation, index, changes: u32::MAX }
    }
}

/// First apply version under which modules hear what is told.
pub const HEARS_CHANGES: u32 = 8;

/// Something that has happened.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// As it is told.
    pub change: Change,
    /// Who answers for the row, whoever else it concerns; empty: nobody.
    pub answerable: String,
    /// Number of its kind.
    pub kind: u32,
}

/// Something that has happened, and where it is in the feed.
#[derive(Debug, Clone, PartialEq)]
pub struct HeardChange {
    /// What has happened.
    pub told: Told,
    /// Number of the change within its entry, from 1.
    pub number: u32,
}

/// What a change of rows tells, in order.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Feed {
    module: u8,
    /// What has happened.
    pub changes: Vec<Told>,
}

impl Feed {
    /// What a module tells.
    pub(crate) fn of(module: u8) -> Self {
        Self { module, changes: Vec::new() }
    }

    /// Tells what has happened to a hot row, for which `answerable` answers, and whom else it concerns.
    pub fn tell(&mut self, row: &str, answerable: &str, owner: &str, what: &impl ModuleChange) {
        let (row, owner, payload) = (row.to_owned(), owner.to_owned(), what.encode_to_vec());
        let change = Change { module: self.module.into(), row, owner, payload };
        self.changes.push(Told { change, answerable: answerable.to_owned(), kind: what.kind() });
    }
}
