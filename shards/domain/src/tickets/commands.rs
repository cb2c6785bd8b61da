//! What can be asked of the ticket module, how it is decided, and what it changes.
//!
//! [`apply`] decides first, on unchanged rows, so that a rejection changes nothing; then it turns the events
//! of the decision into rows and checks the invariants of the rows it touched. A broken invariant is a
//! [`Fault`]: the caller takes the changes back. Deadlines are compared with log time only.

use crate::codec::{DecodeError, Reader, Writer};
use crate::{Caller, Context};

use super::model::*;

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

    /// Encodes the command.
    pub fn encode(&self, w: &mut Writer) {
        let strings = |w: &mut Writer, list: &[String]| w.seq(list, |w, s| w.str(s));
        match self {
            Self::CreateEvent { event, display_name, quota, opens_ms, closes_ms, tiers } => {
                w.u8(1);
                w.str(event);
                w.str(display_name);
                w.u32(*quota);
                w.u64(*opens_ms);
                w.u64(*closes_ms);
                TierSpec::encode_list(tiers, w);
            }
            Self::UpdateEvent {
                event,
                display_name,
                quota,
                opens_ms,
                closes_ms,
                tiers,
                expected_revision,
            } => {
                w.u8(2);
                w.str(event);
                w.option(display_name.as_ref(), |w, v| w.str(v));
                w.option(quota.as_ref(), |w, v| w.u32(*v));
                w.option(opens_ms.as_ref(), |w, v| w.u64(*v));
                w.option(closes_ms.as_ref(), |w, v| w.u64(*v));
                w.option(tiers.as_ref(), |w, v| TierSpec::encode_list(v, w));
                w.u64(*expected_revision);
            }
            Self::Hold { event, tier, quantity, seats, ttl_ms } => {
                w.u8(3);
                w.str(event);
                w.str(tier);
                w.u32(*quantity);
                strings(w, seats);
                w.u32(*ttl_ms);
            }
            Self::ConfirmHold { event, hold } => {
                w.u8(4);
                w.str(event);
                w.str(hold);
            }
            Self::ReleaseHold { event, hold } => {
                w.u8(5);
                w.str(event);
                w.str(hold);
            }
            Self::Buy { event, tier, quantity, seats, buyer } => {
                w.u8(6);
                w.str(event);
                w.str(tier);
                w.u32(*quantity);
                strings(w, seats);
                w.str(buyer);
            }
            Self::CancelTicket { event, ticket } => {
                w.u8(7);
                w.str(event);
                w.str(ticket);
            }
        }
    }

    /// Decodes a command.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = |r: &mut Reader<'_>| r.str().map(str::to_owned);
        Ok(match r.u8()? {
            1 => Self::CreateEvent {
                event: text(r)?,
                display_name: text(r)?,
                quota: r.u32()?,
                opens_ms: r.u64()?,
                closes_ms: r.u64()?,
                tiers: TierSpec::decode_list(r)?,
            },
            2 => Self::UpdateEvent {
                event: text(r)?,
                display_name: r.option(text)?,
                quota: r.option(Reader::u32)?,
                opens_ms: r.option(Reader::u64)?,
                closes_ms: r.option(Reader::u64)?,
                tiers: r.option(TierSpec::decode_list)?,
                expected_revision: r.u64()?,
            },
            3 => Self::Hold {
                event: text(r)?,
                tier: text(r)?,
                quantity: r.u32()?,
                seats: r.seq(text)?,
                ttl_ms: r.u32()?,
            },
            4 => Self::ConfirmHold { event: text(r)?, hold: text(r)? },
            5 => Self::ReleaseHold { event: text(r)?, hold: text(r)? },
            6 => Self::Buy {
                event: text(r)?,
                tier: text(r)?,
                quantity: r.u32()?,
                seats: r.seq(text)?,
                buyer: text(r)?,
            },
            7 => Self::CancelTicket { event: text(r)?, ticket: text(r)? },
            tag => return Err(DecodeError::Tag { what: "ticket command", tag: tag.into() }),
        })
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

    /// Encodes the outcome.
    pub fn encode(&self, w: &mut Writer) {
        match self {
            Self::EventSaved { event } => {
                w.u8(1);
                w.str(event);
            }
            Self::Held { event, tier, hold, quantity, seats, expires_ms } => {
                w.u8(2);
                w.str(event);
                w.u32((*tier).into());
                w.u64(*hold);
                w.u32(*quantity);
                w.seq(seats, |w, s| w.u32(*s));
                w.u64(*expires_ms);
            }
            Self::Purchased { event, tier, first, count, seats } => {
                w.u8(3);
                w.str(event);
                w.u32((*tier).into());
                w.u64(*first);
                w.u32(*count);
                w.seq(seats, |w, s| w.u32(*s));
            }
            Self::Released { event, hold } => {
                w.u8(4);
                w.str(event);
                w.str(hold);
            }
            Self::Cancelled { event, tier, ticket } => {
                w.u8(5);
                w.str(event);
                w.u32((*tier).into());
                w.u64(*ticket);
            }
        }
    }

    /// Decodes an outcome.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let event = |r: &mut Reader<'_>| r.str().map(str::to_owned);
        Ok(match r.u8()? {
            1 => Self::EventSaved { event: event(r)? },
            2 => Self::Held {
                event: event(r)?,
                tier: r.u16()?,
                hold: r.u64()?,
                quantity: r.u32()?,
                seats: r.seq(Reader::u32)?,
                expires_ms: r.u64()?,
            },
            3 => Self::Purchased {
                event: event(r)?,
                tier: r.u16()?,
                first: r.u64()?,
                count: r.u32()?,
                seats: r.seq(Reader::u32)?,
            },
            4 => Self::Released { event: event(r)?, hold: event(r)? },
            5 => Self::Cancelled { event: event(r)?, tier: r.u16()?, ticket: r.u64()? },
            tag => return Err(DecodeError::Tag { what: "ticket outcome", tag: tag.into() }),
        })
    }
}

/// A "no": replicated, remembered for its request id, and answered to the client.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// No such event.
    #[error("there is no event {0:?} in this region: check the name, or list the region's events")]
    EventNotFound(String),
    /// The id is taken.
    #[error("an event {0:?} exists already: choose another id, or update that one")]
    EventExists(String),
    /// No such tier.
    #[error("the event has no tier {0:?}: get the event to see its tiers")]
    TierNotFound(String),
    /// Not enough places.
    #[error(
        "only {free} of the {asked} places asked for are free: ask for fewer, or try later for returned ones"
    )]
    SoldOut {
        /// Places asked for.
        asked: u32,
        /// Places free.
        free: u64,
    },
    /// Somebody has the seat.
    #[error("seat {0} is taken: choose another one")]
    SeatTaken(String),
    /// The tier has no such seat.
    #[error("the tier has no seat {0:?}: seats are called by row and number, for example \"A-12\"")]
    SeatNotFound(String),
    /// The buyer has enough.
    #[error("the buyer has {have} of at most {quota} places of this event, {asked} more are too many")]
    QuotaExceeded {
        /// Places allowed.
        quota: u32,
        /// Places held and owned.
        have: u32,
        /// Places asked for.
        asked: u32,
    },
    /// Too early.
    #[error("sales have not begun: they open at {0} ms since 1970")]
    SaleNotOpen(u64),
    /// Too late.
    #[error("sales are over: they closed at {0} ms since 1970")]
    SaleClosed(u64),
    /// No such hold, or it is gone.
    #[error("there is no hold {0:?}: it never existed, or it was confirmed, released or has expired")]
    HoldNotFound(String),
    /// The hold is void.
    #[error("hold {0:?} has expired: its places are on sale again, hold or buy anew")]
    HoldExpired(String),
    /// No such ticket.
    #[error("the event has no ticket {0:?}: check the name")]
    TicketNotFound(String),
    /// Cancelled before.
    #[error("ticket {0:?} was cancelled before: nothing is left to do")]
    TicketCancelled(String),
    /// It belongs to somebody else.
    #[error("{0} belongs to somebody else: use the token of its owner")]
    NotOwner(String),
    /// Somebody else changed the event.
    #[error("the event has revision {actual}, not {expected}: get it again and repeat the change")]
    RevisionMismatch {
        /// Revision expected by the caller.
        expected: u64,
        /// Revision of the row.
        actual: u64,
    },
    /// More places are taken than the new capacity has.
    #[error("tier {tier:?} has {taken} places held and sold: its capacity cannot be less")]
    CapacityTooSmall {
        /// The tier.
        tier: String,
        /// Places held and sold.
        taken: u64,
    },
    /// A tier is missing from the new list, or its seats would change.
    #[error(
        "tier {0:?} cannot be removed, moved or given other seats: list the existing tiers first and unchanged"
    )]
    TierFixed(String),
    /// A field makes no sense.
    #[error("{field}: {why}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong and what is expected.
        why: String,
    },
}

/// How a client shall understand a rejection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The request itself is wrong.
    InvalidArgument,
    /// What it names does not exist.
    NotFound,
    /// What it would make exists.
    AlreadyExists,
    /// The state does not allow it (now).
    FailedPrecondition,
    /// The caller may not.
    PermissionDenied,
    /// Somebody else was faster.
    Aborted,
}

impl Rejection {
    fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), why: why.into() }
    }

    /// Stable reason for programs.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::EventNotFound(_) => "EVENT_NOT_FOUND",
            Self::EventExists(_) => "EVENT_EXISTS",
            Self::TierNotFound(_) => "TIER_NOT_FOUND",
            Self::SoldOut { .. } => "SOLD_OUT",
            Self::SeatTaken(_) => "SEAT_TAKEN",
            Self::SeatNotFound(_) => "SEAT_NOT_FOUND",
            Self::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            Self::SaleNotOpen(_) => "SALE_NOT_OPEN",
            Self::SaleClosed(_) => "SALE_CLOSED",
            Self::HoldNotFound(_) => "HOLD_NOT_FOUND",
            Self::HoldExpired(_) => "HOLD_EXPIRED",
            Self::TicketNotFound(_) => "TICKET_NOT_FOUND",
            Self::TicketCancelled(_) => "TICKET_CANCELLED",
            Self::NotOwner(_) => "NOT_OWNER",
            Self::RevisionMismatch { .. } => "REVISION_MISMATCH",
            Self::CapacityTooSmall { .. } => "CAPACITY_TOO_SMALL",
            Self::TierFixed(_) => "TIER_FIXED",
            Self::Invalid { .. } => "INVALID_FIELD",
        }
    }

    /// How a client shall understand it.
    pub fn class(&self) -> Class {
        match self {
            Self::EventNotFound(_)
            | Self::TierNotFound(_)
            | Self::SeatNotFound(_)
            | Self::HoldNotFound(_)
            | Self::TicketNotFound(_) => Class::NotFound,
            Self::EventExists(_) => Class::AlreadyExists,
            Self::SoldOut { .. }
            | Self::SeatTaken(_)
            | Self::QuotaExceeded { .. }
            | Self::SaleNotOpen(_)
            | Self::SaleClosed(_)
            | Self::HoldExpired(_)
            | Self::TicketCancelled(_)
            | Self::CapacityTooSmall { .. }
            | Self::TierFixed(_) => Class::FailedPrecondition,
            Self::NotOwner(_) => Class::PermissionDenied,
            Self::RevisionMismatch { .. } => Class::Aborted,
            Self::Invalid { .. } => Class::InvalidArgument,
        }
    }

    /// The field to blame, if there is one.
    pub fn field(&self) -> &str {
        match self {
            Self::Invalid { field, .. } => field,
            _ => "",
        }
    }

    /// Encodes the rejection.
    pub fn encode(&self, w: &mut Writer) {
        let text = |w: &mut Writer, tag: u8, value: &str| {
            w.u8(tag);
            w.str(value);
        };
        match self {
            Self::EventNotFound(v) => text(w, 1, v),
            Self::EventExists(v) => text(w, 2, v),
            Self::TierNotFound(v) => text(w, 3, v),
            Self::SoldOut { asked, free } => {
                w.u8(4);
                w.u32(*asked);
                w.u64(*free);
            }
            Self::SeatTaken(v) => text(w, 5, v),
            Self::SeatNotFound(v) => text(w, 6, v),
            Self::QuotaExceeded { quota, have, asked } => {
                w.u8(7);
                w.u32(*quota);
                w.u32(*have);
                w.u32(*asked);
            }
            Self::SaleNotOpen(v) => {
                w.u8(8);
                w.u64(*v);
            }
            Self::SaleClosed(v) => {
                w.u8(9);
                w.u64(*v);
            }
            Self::HoldNotFound(v) => text(w, 10, v),
            Self::HoldExpired(v) => text(w, 11, v),
            Self::TicketNotFound(v) => text(w, 12, v),
            Self::TicketCancelled(v) => text(w, 13, v),
            Self::NotOwner(v) => text(w, 14, v),
            Self::RevisionMismatch { expected, actual } => {
                w.u8(15);
                w.u64(*expected);
                w.u64(*actual);
            }
            Self::CapacityTooSmall { tier, taken } => {
                text(w, 16, tier);
                w.u64(*taken);
            }
            Self::TierFixed(v) => text(w, 17, v),
            Self::Invalid { field, why } => {
                text(w, 18, field);
                w.str(why);
            }
        }
    }

    /// Decodes a rejection.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = |r: &mut Reader<'_>| r.str().map(str::to_owned);
        Ok(match r.u8()? {
            1 => Self::EventNotFound(text(r)?),
            2 => Self::EventExists(text(r)?),
            3 => Self::TierNotFound(text(r)?),
            4 => Self::SoldOut { asked: r.u32()?, free: r.u64()? },
            5 => Self::SeatTaken(text(r)?),
            6 => Self::SeatNotFound(text(r)?),
            7 => Self::QuotaExceeded { quota: r.u32()?, have: r.u32()?, asked: r.u32()? },
            8 => Self::SaleNotOpen(r.u64()?),
            9 => Self::SaleClosed(r.u64()?),
            10 => Self::HoldNotFound(text(r)?),
            11 => Self::HoldExpired(text(r)?),
            12 => Self::TicketNotFound(text(r)?),
            13 => Self::TicketCancelled(text(r)?),
            14 => Self::NotOwner(text(r)?),
            15 => Self::RevisionMismatch { expected: r.u64()?, actual: r.u64()? },
            16 => Self::CapacityTooSmall { tier: text(r)?, taken: r.u64()? },
            17 => Self::TierFixed(text(r)?),
            18 => Self::Invalid { field: text(r)?, why: text(r)? },
            tag => return Err(DecodeError::Tag { what: "ticket rejection", tag: tag.into() }),
        })
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
    let (events, outcome) = match decide(state, context, caller, command) {
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
        evolve(state, context, event)?;
    }
    check_stock(state)?;
    if let Some((event, owner)) = gained {
        check_quota(state, context, event, &owner)?;
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
        evolve(state, context, Event::HoldEnded { hold: *hold })?;
    }
    check_stock(state)?;
    Ok(due.len())
}

type Decision = Result<(Vec<Event>, Outcome), Rejection>;

fn decide(state: &State, context: &Context, caller: Caller<'_>, command: &Command) -> Decision {
    match command {
        Command::CreateEvent { event, display_name, quota, opens_ms, closes_ms, tiers } => {
            let id = match event.as_str() {
                "" => format!("e{}-{}", context.index, context.position),
                id => id.to_owned(),
            };
            let no = state.counters.get(&COUNTER_EVENTS).map_or(1, |counter| counter.0 + 1);
            let row = EventRow {
                no,
                display_name: display_name.clone(),
                organiser: caller.principal.to_owned(),
                quota: *quota,
                opens_ms: *opens_ms,
                closes_ms: *closes_ms,
                revision: 1,
                tiers: tiers.clone(),
            };
            check_event(&id, &row)?;
            if state.events.get(&id).is_some() {
                return Err(Rejection::EventExists(id));
            }
            let stock = tiers.iter().enumerate().map(|(no, tier)| (no as TierNo, tier.capacity)).collect();
            Ok((vec![Event::EventSaved { id: id.clone(), row, stock }], Outcome::EventSaved { event: id }))
        }
        Command::UpdateEvent { event, .. } => decide_update(state, caller, event, command),
        Command::Hold { event, tier, quantity, seats, ttl_ms } => {
            if *ttl_ms == 0 || *ttl_ms > HOLD_MS_MAX {
                return Err(Rejection::invalid("ttl_seconds", "a hold lasts 1 to 3600 seconds"));
            }
            let take = decide_take(state, context, caller.principal, event, tier, *quantity, seats)?;
            let expires_ms = context.now_ms.saturating_add((*ttl_ms).into());
            let hold = HoldRow {
                owner: caller.principal.into(),
                quantity: take.quantity,
                seats: take.seats.clone(),
                expires_ms,
                price: take.price,
            };
            let mut events = take.ended;
            events.push(Event::Held { tier: take.tier, number: take.stock.next_hold, hold });
            let outcome = Outcome::Held {
                event: event.clone(),
                tier: take.tier.1,
                hold: take.stock.next_hold,
                quantity: take.quantity,
                seats: take.seats,
                expires_ms,
            };
            Ok((events, outcome))
        }
        Command::Buy { event, tier, quantity, seats, buyer } => {
            let owner = if buyer.is_empty() { caller.principal } else { buyer };
            let take = decide_take(state, context, owner, event, tier, *quantity, seats)?;
            let mut events = take.ended;
            let first = take.stock.next_ticket;
            events.push(Event::Sold {
                tier: take.tier,
                first,
                count: take.quantity,
                seats: take.seats.clone(),
                owner: owner.into(),
                price: take.price,
                from_hold: None,
            });
            let outcome = Outcome::Purchased {
                event: event.clone(),
                tier: take.tier.1,
                first,
                count: take.quantity,
                seats: take.seats,
            };
            Ok((events, outcome))
        }
        Command::ConfirmHold { event, hold: id } => {
            let (key, hold) = find_hold(state, caller, event, id)?;
            if hold.expires_ms <= context.now_ms {
                return Err(Rejection::HoldExpired(id.clone()));
            }
            let tier = (key.0, key.1);
            let first = stock_of(state, tier)?.next_ticket;
            let sold = Event::Sold {
                tier,
                first,
                count: hold.quantity,
                seats: hold.seats.clone(),
                owner: hold.owner.clone(),
                price: hold.price,
                from_hold: Some(key.2),
            };
            let outcome = Outcome::Purchased {
                event: event.clone(),
                tier: key.1,
                first,
                count: hold.quantity,
                seats: hold.seats.clone(),
            };
            Ok((vec![sold], outcome))
        }
        Command::ReleaseHold { event, hold: id } => {
            let (key, _) = find_hold(state, caller, event, id)?;
            let outcome = Outcome::Released { event: event.clone(), hold: id.clone() };
            Ok((vec![Event::HoldEnded { hold: key }], outcome))
        }
        Command::CancelTicket { event, ticket: id } => {
            let row = find_event(state, event)?;
            let missing = || Rejection::TicketNotFound(id.clone());
            let key = parse_ticket_id(row, id).ok_or_else(missing)?;
            let ticket = state.tickets.get(&key).ok_or_else(missing)?;
            if !caller.privileged && &*ticket.owner != caller.principal && row.organiser != caller.principal {
                return Err(Rejection::NotOwner(format!("ticket {id:?}")));
            }
            if ticket.cancelled {
                return Err(Rejection::TicketCancelled(id.clone()));
            }
            let outcome = Outcome::Cancelled { event: event.clone(), tier: key.1, ticket: key.2 };
            Ok((vec![Event::TicketCancelled { ticket: key }], outcome))
        }
    }
}

fn decide_update(state: &State, caller: Caller<'_>, id: &str, command: &Command) -> Decision {
    let Command::UpdateEvent { display_name, quota, opens_ms, closes_ms, tiers, expected_revision, .. } =
        command
    else {
        return Err(Rejection::invalid("command", "is not an update"));
    };
    let old = find_event(state, id)?;
    if !caller.privileged && old.organiser != caller.principal {
        return Err(Rejection::NotOwner(format!("event {id:?}")));
    }
    if *expected_revision != 0 && *expected_revision != old.revision {
        return Err(Rejection::RevisionMismatch { expected: *expected_revision, actual: old.revision });
    }
    let mut row = old.clone();
    row.revision += 1;
    if let Some(value) = display_name {
        row.display_name.clone_from(value);
    }
    row.quota = quota.unwrap_or(row.quota);
    row.opens_ms = opens_ms.unwrap_or(row.opens_ms);
    row.closes_ms = closes_ms.unwrap_or(row.closes_ms);
    let mut stock = Vec::new();
    if let Some(tiers) = tiers {
        for (at, tier) in old.tiers.iter().enumerate() {
            let fixed = || Rejection::TierFixed(tier.id.clone());
            let new = tiers.get(at).filter(|new| new.id == tier.id).ok_or_else(fixed)?;
            if new.seat_rows != tier.seat_rows {
                return Err(fixed());
            }
            let key = (old.no, at as TierNo);
            let numbers = stock_of(state, key)?;
            if new.capacity < numbers.held + numbers.sold {
                let taken = numbers.held + numbers.sold;
                return Err(Rejection::CapacityTooSmall { tier: tier.id.clone(), taken });
            }
            if new.capacity != numbers.capacity {
                stock.push((key.1, new.capacity));
            }
        }
        for (at, tier) in tiers.iter().enumerate().skip(old.tiers.len()) {
            stock.push((at as TierNo, tier.capacity));
        }
        row.tiers.clone_from(tiers);
    }
    check_event(id, &row)?;
    let saved = Event::EventSaved { id: id.to_owned(), row, stock };
    Ok((vec![saved], Outcome::EventSaved { event: id.to_owned() }))
}

/// Places that a hold or a purchase may take.
struct Take {
    tier: TierKey,
    stock: StockRow,
    quantity: u32,
    seats: Vec<u32>,
    price: u64,
    /// Due holds that must end first, so that their places are free.
    ended: Vec<Event>,
}

fn decide_take(
    state: &State,
    context: &Context,
    owner: &str,
    event: &str,
    tier: &str,
    quantity: u32,
    seat_names: &[String],
) -> Result<Take, Rejection> {
    let row = find_event(state, event)?;
    if context.now_ms < row.opens_ms {
        return Err(Rejection::SaleNotOpen(row.opens_ms));
    }
    if row.closes_ms != 0 && context.now_ms >= row.closes_ms {
        return Err(Rejection::SaleClosed(row.closes_ms));
    }
    let (tier_no, spec) = row.tier(tier).ok_or_else(|| Rejection::TierNotFound(tier.to_owned()))?;
    let quantity = if seat_names.is_empty() { quantity } else { seat_names.len() as u32 };
    if quantity == 0 || quantity > QUANTITY_MAX {
        let why = format!("{quantity} places: one request takes 1 to {QUANTITY_MAX}");
        return Err(Rejection::invalid("quantity", why));
    }
    if owner.is_empty() || owner.len() > 128 {
        return Err(Rejection::invalid("buyer", "a buyer's name has 1 to 128 bytes"));
    }
    let have = held_and_owned(state, context, row.no, owner);
    if u64::from(have) + u64::from(quantity) > row.quota.into() {
        return Err(Rejection::QuotaExceeded { quota: row.quota, have, asked: quantity });
    }
    let key = (row.no, tier_no);
    let stock = stock_of(state, key)?;
    let (ended, seats) = if !seat_names.is_empty() {
        take_named_seats(state, context, key, spec, seat_names)?
    } else {
        let ended = end_due_holds(state, context, key, &stock, quantity)?;
        let seats =
            if spec.numbered() { any_seats(state, key, &stock, spec, quantity, &ended)? } else { Vec::new() };
        (ended, seats)
    };
    let ended = ended.into_iter().map(|number| Event::HoldEnded { hold: (key.0, key.1, number) }).collect();
    Ok(Take { tier: key, stock, quantity, seats, price: spec.price, ended })
}

/// Places that somebody has, not counting holds that are void but not yet swept.
fn held_and_owned(state: &State, context: &Context, event: EventNo, owner: &str) -> u32 {
    let owned = state.tickets.derived().of(event, owner).map_or(0, |tickets| tickets.valid);
    owned + state.holds.derived().held(event, owner, context.now_ms)
}

/// Chooses as many due holds of a tier as must end for `quantity` places to be free.
fn end_due_holds(
    state: &State,
    context: &Context,
    tier: TierKey,
    stock: &StockRow,
    quantity: u32,
) -> Result<Vec<u64>, Rejection> {
    let (mut free, mut ended) = (stock.free, Vec::new());
    let due = state.holds.derived().due_by_tier.range((tier.0, tier.1, 0, 0)..);
    let mut due = due.take_while(|(e, t, at, _)| (*e, *t) == tier && *at <= context.now_ms);
    // Each hold has a place at least: this ends after `quantity` steps.
    while free < quantity.into() {
        let Some((_, _, _, number)) = due.next() else {
            return Err(Rejection::SoldOut { asked: quantity, free });
        };
        free += state.holds.get(&(tier.0, tier.1, *number)).map_or(0, |hold| u64::from(hold.quantity));
        ended.push(*number);
    }
    Ok(ended)
}

fn take_named_seats(
    state: &State,
    context: &Context,
    tier: TierKey,
    spec: &TierSpec,
    names: &[String],
) -> Result<(Vec<u64>, Vec<u32>), Rejection> {
    let (mut ended, mut seats) = (Vec::new(), Vec::new());
    for name in names {
        let seat = spec.seat_number(name).ok_or_else(|| Rejection::SeatNotFound(name.clone()))?;
        if seats.contains(&seat) {
            return Err(Rejection::invalid("seats", format!("seat {name} is named twice")));
        }
        match state.seats.get(&(tier.0, tier.1, seat)) {
            None => {}
            Some(SeatRow::Held(number)) => {
                let hold = state.holds.get(&(tier.0, tier.1, *number));
                if hold.is_some_and(|hold| hold.expires_ms > context.now_ms) {
                    return Err(Rejection::SeatTaken(name.clone()));
                }
                if !ended.contains(number) {
                    ended.push(*number);
                }
            }
            Some(SeatRow::Sold(_)) => return Err(Rejection::SeatTaken(name.clone())),
        }
        seats.push(seat);
    }
    Ok((ended, seats))
}

/// The lowest free seats of a tier, counting those of the holds that are about to end.
fn any_seats(
    state: &State,
    tier: TierKey,
    stock: &StockRow,
    spec: &TierSpec,
    quantity: u32,
    ended: &[u64],
) -> Result<Vec<u32>, Rejection> {
    let all: u32 = spec.seat_rows.iter().map(|row| row.seats).sum();
    let mut seats: Vec<u32> = ended
        .iter()
        .filter_map(|number| state.holds.get(&(tier.0, tier.1, *number)))
        .flat_map(|hold| hold.seats.iter().copied())
        .collect();
    let wanted = quantity as usize;
    let free = (stock.seat_cursor..all).filter(|seat| state.seats.get(&(tier.0, tier.1, *seat)).is_none());
    seats.extend(free.take(wanted));
    seats.sort_unstable();
    seats.truncate(wanted);
    if seats.len() < wanted {
        return Err(Rejection::SoldOut { asked: quantity, free: seats.len() as u64 });
    }
    Ok(seats)
}

fn find_event<'a>(state: &'a State, id: &str) -> Result<&'a EventRow, Rejection> {
    state.event(id).ok_or_else(|| Rejection::EventNotFound(id.to_owned()))
}

fn stock_of(state: &State, tier: TierKey) -> Result<StockRow, Rejection> {
    state.stock.get(&tier).copied().ok_or_else(|| Rejection::TierNotFound(format!("number {}", tier.1)))
}

fn find_hold<'a>(
    state: &'a State,
    caller: Caller<'_>,
    event: &str,
    id: &str,
) -> Result<(NumberKey, &'a HoldRow), Rejection> {
    let row = find_event(state, event)?;
    let missing = || Rejection::HoldNotFound(id.to_owned());
    let key = parse_hold_id(row, id).ok_or_else(missing)?;
    let hold = state.holds.get(&key).ok_or_else(missing)?;
    if !caller.privileged && &*hold.owner != caller.principal {
        return Err(Rejection::NotOwner(format!("hold {id:?}")));
    }
    Ok((key, hold))
}

fn parse_number_id(row: &EventRow, id: &str, prefix: &str) -> Option<NumberKey> {
    let (tier, number) = id.rsplit_once('-')?;
    let digits = number.strip_prefix(prefix)?;
    if digits.is_empty() || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((row.no, row.tier(tier)?.0, digits.parse().ok()?))
}

/// Key of a ticket by its id, for example "ga-12".
pub fn parse_ticket_id(row: &EventRow, id: &str) -> Option<NumberKey> {
    parse_number_id(row, id, "")
}

/// Key of a hold by its id, for example "ga-h12".
pub fn parse_hold_id(row: &EventRow, id: &str) -> Option<NumberKey> {
    parse_number_id(row, id, "h")
}

fn check_event(id: &str, row: &EventRow) -> Result<(), Rejection> {
    let bad = |field: &str, why: String| Err(Rejection::invalid(field, why));
    let id_ok = (4..=40).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    if !id_ok {
        return bad("event_id", format!("{id:?} is not 4 to 40 of [a-z0-9-] starting with a letter"));
    }
    if row.display_name.is_empty() || row.display_name.len() > 200 {
        return bad("event.display_name", "must have 1 to 200 bytes".into());
    }
    if row.quota == 0 || row.quota > QUOTA_MAX {
        return bad("event.quota_per_buyer", format!("must be 1 to {QUOTA_MAX}"));
    }
    if row.closes_ms != 0 && row.closes_ms <= row.opens_ms {
        return bad("event.sale_closes_at", "must be later than sale_opens_at".into());
    }
    if row.tiers.is_empty() || row.tiers.len() > TIERS_MAX {
        return bad("event.tiers", format!("an event has 1 to {TIERS_MAX} tiers"));
    }
    for (at, tier) in row.tiers.iter().enumerate() {
        let field = |name: &str| format!("event.tiers[{at}].{name}");
        let id_ok = (1..=32).contains(&tier.id.len())
            && tier.id.starts_with(|c: char| c.is_ascii_lowercase())
            && tier.id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        if !id_ok {
            return bad(&field("tier_id"), "must be 1 to 32 of [a-z0-9] starting with a letter".into());
        }
        if row.tiers[..at].iter().any(|other| other.id == tier.id) {
            return bad(&field("tier_id"), format!("{:?} is used twice", tier.id));
        }
        if tier.display_name.len() > 200 {
            return bad(&field("display_name"), "must have at most 200 bytes".into());
        }
        if tier.capacity == 0 || tier.capacity > CAPACITY_MAX {
            return bad(&field("capacity"), format!("must be 1 to {CAPACITY_MAX}"));
        }
        let currency_ok = tier.currency.len() == 3 && tier.currency.bytes().all(|b| b.is_ascii_uppercase());
        let free_of_charge = tier.currency.is_empty() && tier.price == 0;
        if !currency_ok && !free_of_charge {
            return bad(
                &field("price.currency_code"),
                "must be three capital letters, for example EUR".into(),
            );
        }
        if tier.price > i64::MAX as u64 {
            return bad(&field("price.minor_units"), "is too large".into());
        }
        check_seat_rows(tier).or_else(|why| bad(&field("seat_rows"), why))?;
    }
    Ok(())
}

fn check_seat_rows(tier: &TierSpec) -> Result<(), String> {
    if !tier.numbered() {
        return Ok(());
    }
    for (at, row) in tier.seat_rows.iter().enumerate() {
        let label_ok =
            (1..=8).contains(&row.label.len()) && row.label.bytes().all(|b| b.is_ascii_alphanumeric());
        if !label_ok {
            return Err(format!("the label {:?} is not 1 to 8 of [A-Za-z0-9]", row.label));
        }
        if row.seats == 0 || row.seats > 10_000 {
            return Err(format!("row {:?} must have 1 to 10000 seats", row.label));
        }
        if tier.seat_rows[..at].iter().any(|other| other.label == row.label) {
            return Err(format!("row {:?} is listed twice", row.label));
        }
    }
    let all: u64 = tier.seat_rows.iter().map(|row| u64::from(row.seats)).sum();
    if all != tier.capacity || all > SEATS_MAX {
        return Err(format!("the rows have {all} seats: that must be the capacity, and at most {SEATS_MAX}"));
    }
    Ok(())
}

fn evolve(state: &mut State, context: &Context, event: Event) -> Result<(), Fault> {
    match event {
        Event::EventSaved { id, row, stock } => {
            let no = row.no;
            for (tier, capacity) in stock {
                let mut numbers = state.stock.get(&(no, tier)).copied().unwrap_or(StockRow {
                    next_ticket: 1,
                    next_hold: 1,
                    ..StockRow::default()
                });
                let taken = numbers.held + numbers.sold;
                numbers.capacity = capacity;
                numbers.free = take_off(capacity, taken, "capacity")?;
                state.stock.set((no, tier), Some(numbers));
            }
            if state.events.get(&id).is_none() {
                state.counters.set(COUNTER_EVENTS, Some(CounterRow(no)));
            }
            state.events.set(id, Some(row));
        }
        Event::Held { tier, number, hold } => {
            let quantity = u64::from(hold.quantity);
            let seats = hold.seats.clone();
            change_stock(state, tier, |stock| {
                stock.free = take_off(stock.free, quantity, "free")?;
                stock.held += quantity;
                stock.next_hold += 1;
                Ok(())
            })?;
            occupy(state, tier, &seats, None, |_| SeatRow::Held(number))?;
            state.holds.set((tier.0, tier.1, number), Some(hold));
        }
        Event::HoldEnded { hold: key } => {
            let hold =
                state.holds.get(&key).ok_or_else(|| Fault(format!("hold {key:?} is missing")))?.clone();
            let tier = (key.0, key.1);
            change_stock(state, tier, |stock| {
                stock.held = take_off(stock.held, hold.quantity.into(), "held")?;
                stock.free += u64::from(hold.quantity);
                Ok(())
            })?;
            vacate(state, tier, &hold.seats, SeatRow::Held(key.2))?;
            state.holds.set(key, None);
        }
        Event::Sold { tier, first, count, seats, owner, price, from_hold } => {
            change_stock(state, tier, |stock| {
                let from = if from_hold.is_some() { &mut stock.held } else { &mut stock.free };
                *from = take_off(*from, count.into(), "stock")?;
                stock.sold += u64::from(count);
                stock.next_ticket += u64::from(count);
                Ok(())
            })?;
            if let Some(number) = from_hold {
                state.holds.set((tier.0, tier.1, number), None);
            }
            let from = from_hold.map(SeatRow::Held);
            occupy(state, tier, &seats, from, |at| SeatRow::Sold(first + at as u64))?;
            for at in 0..count {
                let ticket = TicketRow {
                    owner: owner.clone(),
                    seat: seats.get(at as usize).copied(),
                    price,
                    sold_ms: context.now_ms,
                    request_id: context.request_id,
                    cancelled: false,
                };
                let key = (tier.0, tier.1, first + u64::from(at));
                if state.tickets.get(&key).is_some() {
                    return Err(Fault(format!("T4: ticket number {key:?} is taken")));
                }
                state.tickets.set(key, Some(ticket));
            }
        }
        Event::TicketCancelled { ticket: key } => {
            let mut ticket =
                state.tickets.get(&key).ok_or_else(|| Fault(format!("ticket {key:?} is missing")))?.clone();
            let tier = (key.0, key.1);
            change_stock(state, tier, |stock| {
                stock.sold = take_off(stock.sold, 1, "sold")?;
                stock.free += 1;
                Ok(())
            })?;
            if let Some(seat) = ticket.seat {
                vacate(state, tier, &[seat], SeatRow::Sold(key.2))?;
            }
            ticket.cancelled = true;
            state.tickets.set(key, Some(ticket));
        }
    }
    Ok(())
}

fn take_off(from: u64, quantity: u64, what: &str) -> Result<u64, Fault> {
    from.checked_sub(quantity).ok_or_else(|| Fault(format!("T1: {quantity} of {from} {what} places")))
}

fn change_stock(
    state: &mut State,
    tier: TierKey,
    change: impl FnOnce(&mut StockRow) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut stock =
        *state.stock.get(&tier).ok_or_else(|| Fault(format!("the stock of tier {tier:?} is missing")))?;
    change(&mut stock)?;
    state.stock.set(tier, Some(stock));
    Ok(())
}

/// Gives seats to a new holder; they must be free, or with `from`.
fn occupy(
    state: &mut State,
    tier: TierKey,
    seats: &[u32],
    from: Option<SeatRow>,
    to: impl Fn(usize) -> SeatRow,
) -> Result<(), Fault> {
    for (at, seat) in seats.iter().enumerate() {
        let key = (tier.0, tier.1, *seat);
        if state.seats.get(&key).copied() != from {
            return Err(Fault(format!("T2: seat {key:?} has another holder")));
        }
        state.seats.set(key, Some(to(at)));
    }
    // Everything below the first seat that was free stays taken.
    if let (Some(first), None) = (seats.first(), from) {
        let mut cursor = state.stock.get(&tier).map_or(0, |stock| stock.seat_cursor);
        if *first == cursor {
            cursor = seats.iter().zip(*first..).take_while(|(seat, expected)| *seat == expected).count()
                as u32
                + *first;
            change_stock(state, tier, |stock| {
                stock.seat_cursor = cursor;
                Ok(())
            })?;
        }
    }
    Ok(())
}

/// Frees seats; they must be with `from`.
fn vacate(state: &mut State, tier: TierKey, seats: &[u32], from: SeatRow) -> Result<(), Fault> {
    for seat in seats {
        let key = (tier.0, tier.1, *seat);
        if state.seats.get(&key) != Some(&from) {
            return Err(Fault(format!("T2: seat {key:?} is not with its holder")));
        }
        state.seats.set(key, None);
    }
    if let Some(lowest) = seats.iter().min() {
        change_stock(state, tier, |stock| {
            stock.seat_cursor = stock.seat_cursor.min(*lowest);
            Ok(())
        })?;
    }
    Ok(())
}

/// Checks T1 on the tiers that the command touched. T2 and T4 are checked where seats and tickets are written.
fn check_stock(state: &State) -> Result<(), Fault> {
    for key in state.stock.touched() {
        let Some(stock) = state.stock.get(key) else { continue };
        if stock.capacity != stock.free + stock.held + stock.sold {
            return Err(Fault(format!("T1: tier {key:?} has {stock:?}")));
        }
    }
    Ok(())
}

/// Checks T3 for somebody who gained places. (A quota may be lowered below what somebody has: then he gets no more.)
fn check_quota(state: &State, context: &Context, event: EventNo, owner: &str) -> Result<(), Fault> {
    let Some(row) = state.events.derived().get(&event).and_then(|id| state.event(id)) else {
        return Err(Fault(format!("event {event} has no row")));
    };
    let have = held_and_owned(state, context, event, owner);
    if have > row.quota {
        return Err(Fault(format!(
            "T3: {owner:?} has {have} of at most {} places of event {event}",
            row.quota
        )));
    }
    Ok(())
}
