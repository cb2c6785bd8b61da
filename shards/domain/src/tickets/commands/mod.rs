//! How what is asked of the module is decided, and what it changes.
//!
//! `decide` chooses events (`take` the places among them, `fields` checks what an event is made of), `evolve` makes rows
//! of them and checks the invariants of what they touched.

mod decide;
pub(super) mod evolve;
mod fields;
mod rejection;
mod take;

use super::model::*;

pub(super) use decide::decide;
pub use decide::{parse_hold_id, parse_ticket_id};
pub(super) use evolve::{check, evolve};
pub use rejection::Rejection;

/// What a decision changes, past tense; rows follow from it and from nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// An event row was written: new, or changed.
    EventSaved {
        /// Its id.
        id: String,
        /// The row as it is now.
        row: EventRow,
        /// Capacities of the tiers whose stock is new or changed.
        stock: Vec<(TierNo, u64)>,
    },
    /// An event of which nothing was ever held or sold is gone.
    EventDeleted {
        /// Its id.
        id: String,
        /// Who could change it.
        organiser: String,
    },
    /// Places went out of the stock into a hold.
    Held {
        /// The tier.
        tier: TierKey,
        /// Number of the hold.
        number: u64,
        /// The hold.
        hold: HoldRow,
    },
    /// A hold was given up: its places are free again.
    HoldReleased {
        /// The hold.
        hold: NumberKey,
        /// Who had it.
        owner: Box<str>,
        /// Its places.
        quantity: u32,
    },
    /// A hold fell due: its places are free again.
    HoldExpired {
        /// The hold.
        hold: NumberKey,
    },
    /// What was kept of an expired hold is not needed any more.
    HoldForgotten {
        /// The hold.
        hold: NumberKey,
    },
    /// Places were sold, out of the stock or out of a hold.
    Sold {
        /// The tier.
        tier: TierKey,
        /// Number of the first ticket.
        first: u64,
        /// Tickets.
        count: u32,
        /// Seats, in a tier with numbers.
        seats: Vec<u32>,
        /// Who has them.
        owner: Box<str>,
        /// Price of each.
        price: Price,
        /// The hold that they come from.
        from_hold: Option<u64>,
    },
    /// A ticket was cancelled: its place is free again.
    TicketCancelled {
        /// The ticket.
        ticket: NumberKey,
    },
}
