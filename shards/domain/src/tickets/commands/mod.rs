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
pub(super) mod evolve;
mod fields;
mod rejection;
mod take;

use crate::{Caller, Context};

use super::model::*;
use super::queries::TicketView;

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

    /// About the bytes of its encoded form: what its strings and lists take.
    pub fn bytes(&self) -> usize {
        let strings = |list: &[String]| list.iter().map(|text| text.len() + 1).sum::<usize>();
        self.event().len()
            + match self {
                Self::CreateEvent { display_name, tiers, .. } => display_name.len() + TierSpec::bytes(tiers),
                Self::UpdateEvent { display_name, tiers, .. } => {
                    display_name.as_ref().map_or(0, String::len)
                        + tiers.as_ref().map_or(0, |tiers| TierSpec::bytes(tiers))
                }
                Self::Hold { tier, seats, .. } => tier.len() + strings(seats),
                Self::Buy { tier, seats, buyer, .. } => tier.len() + strings(seats) + buyer.len(),
                Self::ConfirmHold { hold, .. } | Self::ReleaseHold { hold, .. } => hold.len(),
                Self::CancelTicket { ticket, .. } => ticket.len(),
            }
    }

    /// Finishes or undoes what was started, rather than starting something new: goes on when a node is short
    /// of space.
    pub fn finishes(&self) -> bool {
        matches!(self, Self::ConfirmHold { .. } | Self::ReleaseHold { .. } | Self::CancelTicket { .. })
    }
}

/// What a command achieved, with all that an answer says: it is remembered for its request id, and a repeated request gets
/// the same answer, whatever the rows say by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The event was created or changed.
    EventSaved {
        /// Its id.
        event: String,
        /// The event as it was afterwards.
        row: Box<EventRow>,
        /// The numbers of its tiers, in their order.
        stock: Vec<StockRow>,
    },
    /// Places are held.
    Held {
        /// The event.
        event: String,
        /// Id of the tier.
        tier: String,
        /// Number of the hold.
        hold: u64,
        /// Places.
        quantity: u32,
        /// Names of seats, in a tier with numbers.
        seats: Vec<String>,
        /// Void from this time on, by log time as it was when it was held.
        expires_ms: u64,
    },
    /// Places were sold.
    Purchased {
        /// The event.
        event: String,
        /// Id of the tier.
        tier: String,
        /// Number of the first ticket; the others follow.
        first: u64,
        /// Tickets.
        count: u32,
        /// Names of seats, in a tier with numbers.
        seats: Vec<String>,
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
        /// The ticket as it was afterwards.
        ticket: Box<TicketView>,
    },
}

impl Outcome {
    /// The event that it is about.
    pub fn event(&self) -> &str {
        match self {
            Self::EventSaved { event, .. }
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
    /// A hold was given up: its places are free again.
    HoldReleased {
        /// The hold.
        hold: NumberKey,
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
    let (events, mut outcome) = match decide::decide(state, context, caller, command) {
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
    if let Outcome::EventSaved { row, stock, .. } = &mut outcome {
        *stock = state.stock_of(row).collect();
    }
    Ok(Ok(outcome))
}

/// Something that is to be done at a time that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer(NumberKey);

/// The earliest timer that is due.
pub fn next_timer(state: &State, context: &Context) -> Option<Timer> {
    state.holds.derived().next_timer(context.steady_ms).map(Timer)
}

/// Does what a timer is for, and says about how much that was: rows that changed.
///
/// A fault is one of this timer alone: the caller must roll the state back and [`shelve`] the timer, so that it delays no other
/// one. Changes are not committed here.
pub fn fire(state: &mut State, context: &Context, Timer(hold): Timer) -> Result<usize, Fault> {
    let row = state.holds.get(&hold).ok_or_else(|| Fault(format!("hold {hold:?} is missing")))?;
    let cost = 1 + row.seats.len();
    let event = match row.state {
        HoldState::Live => Event::HoldExpired { hold },
        HoldState::Expired => Event::HoldForgotten { hold },
        HoldState::Stuck => return Err(Fault(format!("hold {hold:?} is stuck and has no timer"))),
    };
    evolve::evolve(state, context, event)?;
    evolve::check_stock(state)?;
    Ok(cost)
}

/// Takes a timer that cannot be carried out out of the way. Its hold keeps its places until somebody has looked at it.
pub fn shelve(state: &mut State, Timer(hold): Timer) {
    if let Some(row) = state.holds.get(&hold) {
        let row = HoldRow { state: HoldState::Stuck, ..row.clone() };
        state.holds.set(hold, Some(row));
    }
}
