//! Events, tiers, holds and tickets.

use crate::{ModuleChange, ModuleCommand, ModuleQuery};

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tidewall.log.tickets.v1.rs"));
}

pub use generated::*;

/// Number of the module.
pub const MODULE: u8 = 1;

impl ModuleCommand for Command {
    const MODULE: u8 = MODULE;

    fn is_known(&self) -> bool {
        self.op.is_some()
    }
}

impl ModuleQuery for Query {
    const MODULE: u8 = MODULE;
    type Answer = Answer;

    fn is_known(&self) -> bool {
        self.op.is_some()
    }
}

parts!(Command, command: CreateEvent, UpdateEvent, Hold, ConfirmHold, ReleaseHold, Buy, CancelTicket, DeleteEvent);
parts!(Query, query: GetEvent, ListEvents, GetTicket, ListTickets, GetHold, ListHolds, SearchTickets);

impl From<change::What> for Change {
    fn from(what: change::What) -> Self {
        Self { what: Some(what), ..Self::default() }
    }
}

impl ModuleChange for Change {
    fn kind(&self) -> u32 {
        match &self.what {
            None => 0,
            Some(change::What::Event(_)) => 1,
            Some(change::What::Deleted(_)) => 2,
            Some(change::What::Held(_)) => 3,
            Some(change::What::HoldEnded(ended)) if !ended.expired => 4,
            Some(change::What::HoldEnded(_)) => 5,
            Some(change::What::Sold(_)) => 6,
            Some(change::What::Cancelled(_)) => 7,
        }
    }
}
