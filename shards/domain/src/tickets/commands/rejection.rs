//! The ways in which a command can be refused by decision, with the words for people and the reasons for programs. It
//! decides nothing.

use crate::module::{Code, Reason};

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
    /// The buyer has as many holds as anybody may have.
    #[error("the buyer has {holds} holds of this event: confirm or release some first")]
    TooManyHolds {
        /// Holds of the buyer.
        holds: u32,
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
    /// Something of the event was held or sold.
    #[error("places of event {0:?} were held or sold: their names stay; close its sale instead")]
    EventInUse(String),
    /// A field makes no sense.
    #[error("{field}: {why}")]
    Invalid {
        /// The field.
        field: String,
        /// What is wrong and what is expected.
        why: String,
    },
}

impl Rejection {
    pub(in crate::tickets) fn invalid(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), why: why.into() }
    }
}

impl Reason for Rejection {
    fn reason(&self) -> &'static str {
        match self {
            Self::EventNotFound(_) => "EVENT_NOT_FOUND",
            Self::EventExists(_) => "EVENT_EXISTS",
            Self::TierNotFound(_) => "TIER_NOT_FOUND",
            Self::SoldOut { .. } => "SOLD_OUT",
            Self::SeatTaken(_) => "SEAT_TAKEN",
            Self::SeatNotFound(_) => "SEAT_NOT_FOUND",
            Self::QuotaExceeded { .. } => "QUOTA_EXCEEDED",
            Self::TooManyHolds { .. } => "TOO_MANY_HOLDS",
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
            Self::EventInUse(_) => "EVENT_IN_USE",
            Self::Invalid { .. } => "INVALID_FIELD",
        }
    }

    fn code(&self) -> Code {
        match self {
            Self::EventNotFound(_)
            | Self::TierNotFound(_)
            | Self::SeatNotFound(_)
            | Self::HoldNotFound(_)
            | Self::TicketNotFound(_) => Code::NotFound,
            Self::EventExists(_) => Code::AlreadyExists,
            Self::SoldOut { .. }
            | Self::SeatTaken(_)
            | Self::QuotaExceeded { .. }
            | Self::TooManyHolds { .. }
            | Self::SaleNotOpen(_)
            | Self::SaleClosed(_)
            | Self::HoldExpired(_)
            | Self::TicketCancelled(_)
            | Self::CapacityTooSmall { .. }
            | Self::TierFixed(_)
            | Self::EventInUse(_) => Code::FailedPrecondition,
            Self::NotOwner(_) => Code::PermissionDenied,
            Self::RevisionMismatch { .. } => Code::Aborted,
            Self::Invalid { .. } => Code::InvalidArgument,
        }
    }

    fn field(&self) -> &str {
        match self {
            Self::Invalid { field, .. } => field,
            _ => "",
        }
    }
}
