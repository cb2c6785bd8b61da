//! Rows of the ticket module, their keys, and the indexes derived from them.
//!
//! Names of people and things live in [`EventRow`], which changes seldom; what every sale changes is the small
//! [`StockRow`]. Quotas and due holds are derived from tickets and holds, so that they cannot disagree with them.

mod event;
mod hold;
mod money;
mod stock;
mod ticket;

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::Table;

pub use tidewall_messages::tickets::MODULE;

pub use event::{EventRow, SeatRowSpec, TierSpec};
pub use hold::{HoldIndex, HoldRow, HoldState};
pub use money::{Currency, Price};
pub use stock::{COUNTER_EVENTS, COUNTER_REVISIONS, CounterRow, SeatRow, StockRow, TakenSeats};
pub use ticket::{OwnerTickets, TicketIndex, TicketRow};

/// Most tiers an event can have.
pub const TIERS_MAX: usize = 32;
/// Most places a tier can have.
pub const CAPACITY_MAX: u64 = 10_000_000;
/// Most numbered seats a tier can have.
pub const SEATS_MAX: u64 = 100_000;
/// Most rows of numbered seats an event can have, over all tiers: what an event costs in apply and on the wire is bounded.
pub const SEAT_ROWS_MAX: usize = 2_000;
/// Most places that one command can take.
pub const QUANTITY_MAX: u32 = 100;
/// Longest hold, milliseconds.
pub const HOLD_MS_MAX: u32 = 3_600_000;
/// The row of an expired hold is kept so long, so that who confirms too late is told why. Milliseconds of steady time.
pub const EXPIRED_KEPT_MS: u64 = 60_000;
/// Most holds that one buyer can have in an event at a time.
pub const HOLDS_MAX: usize = 1_000;
/// What one command ends of due holds at most to make room for itself: holds and their seats together.
pub const ENDED_MAX: usize = 2_000;
/// Highest quota per buyer.
pub const QUOTA_MAX: u32 = 100_000;

/// Number of an event within its group.
pub type EventNo = u64;
/// Number of a tier within its event, in the order of the event's list.
pub type TierNo = u16;
/// (event, tier).
pub type TierKey = (EventNo, TierNo);
/// (event, tier, number), for tickets and holds.
pub type NumberKey = (EventNo, TierNo, u64);

fn encode_number_key(key: &NumberKey, w: &mut Writer) {
    w.key_u64(key.0);
    w.key_u16(key.1);
    w.key_u64(key.2);
}

fn decode_number_key(r: &mut Reader<'_>) -> Result<NumberKey, DecodeError> {
    Ok((r.key_u64()?, r.key_u16()?, r.key_u64()?))
}

/// All rows of the module.
#[derive(Debug, Default)]
pub struct State {
    pub(super) events: Table<EventRow>,
    pub(super) stock: Table<StockRow>,
    pub(super) tickets: Table<TicketRow>,
    pub(super) holds: Table<HoldRow>,
    pub(super) seats: Table<SeatRow>,
    pub(super) counters: Table<CounterRow>,
}
