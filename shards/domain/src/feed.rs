//! What a change of rows tells whoever watches.
//!
//! It is told with the change, in the same transaction, or not at all; what is told says how things are after all of it. Nothing in a
//! group waits for whoever hears it, and nothing is decided by what was told.

use prost::Message;
use tidewall_messages::Change;

/// First apply version under which anything is told.
pub const TELLS_CHANGES: u32 = 7;

/// What a change of rows tells, in order.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Feed {
    module: u8,
    /// What has happened.
    pub changes: Vec<Change>,
}

impl Feed {
    /// What a module tells.
    pub(crate) fn of(module: u8) -> Self {
        Self { module, changes: Vec::new() }
    }

    /// Tells what has happened to a hot row, and whom it concerns beside who answers for the row.
    pub fn tell(&mut self, row: &str, owner: &str, what: &impl Message) {
        let (row, owner, payload) = (row.to_owned(), owner.to_owned(), what.encode_to_vec());
        self.changes.push(Change { module: self.module.into(), row, owner, payload });
    }
}
