//! What can be asked of the ticket module, how it is decided, and what it changes.
//!
//! [`apply`] decides first, on unchanged rows, so that a rejection changes nothing; then it turns the events
//! of the decision into rows and checks the invariants of the rows it touched. A broken invariant is a
//! [`Fault`]: the caller takes the changes back. Deadlines are compared with log time only.
//!
//! `decide` chooses events (`take` the places among them, `fields` checks what an event is made of), `evolve` makes rows
//! of them, `codec` has the byte forms.

mod codec;
mod decide;
mod evolve;
mod fields;
mod rejection;
mod take;

use crate::{Caller, Context};

use super::model::*;

pub use decide::{parse_hold_id, parse_ticket_id};
pub use rejection::{Class, Rejection};

/// A request to the module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make an event.
    CreateEvent {
        /// Its id; empty: chosen from the log position.
        event: String,
        /// Name for people.
        display_name: String,
        /// Most places one buyer may have.
        quota: u32,
        /// Sales start (ms of log time), 0: at once.
        opens_ms: u64,
        /// Sales end (ms of log time), 0: never.
        closes_ms: u64,
        /// Its tiers.
        tiers: Vec<TierSpec>,
    },
    /// Change an event; `None` leaves a field as it is.
    UpdateEvent {
        /// The event.
        event: String,
        /// New name for people.
        display_name: Option<String>,
        /// New quota.
        quota: Option<u32>,
        /// New start of sales.
        opens_ms: Option<u64>,
        /// New end of sales.
        closes_ms: Option<u64>,
        /// All tiers as they shall be; tiers can be added and changed, never removed.
        tiers: Option<Vec<TierSpec>>,
        /// Refuse unless this is the current revision; 0: whatever it is.
        expected_revision: u64,
    },
    /// Take places out of the stock for a while.
    Hold {
        /// The event.
        event: String,
        /// The tier's id.
        tier: String,
        /// Places; ignored when seats are named.
        quantity: u32,
        /// Seats by name; empty: any.
        seats: Vec<String>,
        /// How long, milliseconds.
        ttl_ms: u32,
    },
    /// Turn a hold into tickets.
    ConfirmHold {
        /// The event.
        event: String,
        /// Id of the hold, for example "ga-h12".
        hold: String,
    },
    /// Give a hold's places back.
    ReleaseHold {
        /// The event.
        event: String,
        /// Id of the hold.
        hold: String,
    },
    /// Hold and confirm in one step.
    Buy {
        /// The event.
        event: String,
        /// The tier's id.
        tier: String,
        /// Places; ignored when seats are named.
        quantity: u32,
        /// Seats by name; empty: any.
        seats: Vec<String>,
        /// Owner of the tickets; empty: the principal.
        buyer: String,
    },
    /// Give a ticket's place back.
    CancelTicket {
        /// The event.
        event: String,
        /// Id of the ticket, for example "ga-12".
        ticket: String,
    },
}

impl Command {
    /// The event that the command is about: its hot row. Empty for an event that is still to be named.
    pub fn event(&self) -> &str {
        match self {
            Self::CreateEvent { event, .. }
            | Self::UpdateEvent { event, .. }
            | Self::Hold { event, .. }
            | Self::ConfirmHold { event, .. }
            | Self::ReleaseHold { event, .. }
            | Self::Buy { event, .. }
            | Self::CancelTicket { event, .. } => event,
        }
    }

    /// Finishes or undoes what was started, rather than starting something new: goes on when a node is short
    /// of space.
    pub fn finishes(&self) -> bool {
        matches!(self, Self::ConfirmHold { .. } | Self::ReleaseHold { .. } | Self::CancelTicket { .. })
    }
}

/// What a command achieved; compact, because it is remembered for its request id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The event was created or changed.
    EventSaved {
        /// Its id.
        event: String,
    },
    /// Places are held.
    Held {
        /// The event.
        event: String,
        /// The tier.
        tier: TierNo,
        /// Number of the hold.
        hold: u64,
        /// Places.
        quantity: u32,
        /// Seats, in a tier with numbers.
        seats: Vec<u32>,
        /// Void from this log time on.
        expires_ms: u64,
    },
    /// Places were sold.
    Purchased {
        /// The event.
        event: String,
        /// The tier.
        tier: TierNo,
        /// Number of the first ticket; the others follow.
        first: u64,
        /// Tickets.
        count: u32,
        /// Seats, in a tier with numbers.
        seats: Vec<u32>,
    },
    /// A hold's places were given back.
    Released {
        /// The event.
        event: String,
        /// Id of the hold.
        hold: String,
    },
    /// A ticket's place was given back.
    Cancelled {
        /// The event.
        event: String,
        /// The tier.
        tier: TierNo,
        /// Number of the ticket.
        ticket: u64,
    },
}

impl Outcome {
    /// The event that it is about.
    pub fn event(&self) -> &str {
        match self {
            Self::EventSaved { event }
            | Self::Held { event, .. }
            | Self::Purchased { event, .. }
            | Self::Released { event, .. }
            | Self::Cancelled { event, .. } => event,
        }
    }
}

/// An invariant is broken: the command's changes must be taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

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
    /// Places went out of the stock into a hold.
    Held {
        /// The tier.
        tier: TierKey,
        /// Number of the hold.
        number: u64,
        /// The hold.
        hold: HoldRow,
    },
    /// A hold ended without a sale: its places are free again.
    HoldEnded {
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
        price: u64,
        /// The hold that they come from.
        from_hold: Option<u64>,
    },
    /// A ticket was cancelled: its place is free again.
    TicketCancelled {
        /// The ticket.
        ticket: NumberKey,
    },
}

/// Decides a command and changes the rows accordingly.
///
/// The outer error is a broken invariant: the caller must roll the state back. An inner rejection has
/// changed nothing. Changes are not committed here.
pub fn apply(
    state: &mut State,
    context: &Context,
    caller: Caller<'_>,
    command: &Command,
) -> Result<Result<Outcome, Rejection>, Fault> {
    let (events, outcome) = match decide::decide(state, context, caller, command) {
        Ok(decision) => decision,
        Err(rejection) => return Ok(Err(rejection)),
    };
    let mut gained = None;
    for event in events {
        match &event {
            Event::Held { tier, hold, .. } => gained = Some((tier.0, hold.owner.clone())),
            Event::Sold { tier, owner, from_hold: None, .. } => gained = Some((tier.0, owner.clone())),
            _ => {}
        }
        evolve::evolve(state, context, event)?;
    }
    evolve::check_stock(state)?;
    if let Some((event, owner)) = gained {
        evolve::check_quota(state, context, event, &owner)?;
    }
    Ok(Ok(outcome))
}

/// Ends at most `limit` holds that fell due [`SWEEP_GRACE_MS`] ago: tidying, not deciding. Returns how many.
pub fn sweep(state: &mut State, context: &Context, limit: usize) -> Result<usize, Fault> {
    let due: Vec<NumberKey> = state
        .holds
        .derived()
        .due
        .iter()
        .take(limit)
        .take_while(|(due, ..)| due.saturating_add(SWEEP_GRACE_MS) <= context.now_ms)
        .map(|(_, event, tier, number)| (*event, *tier, *number))
        .collect();
    for hold in &due {
        evolve::evolve(state, context, Event::HoldEnded { hold: *hold })?;
    }
    evolve::check_stock(state)?;
    Ok(due.len())
}
