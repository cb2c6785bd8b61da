//! The byte form of commands, outcomes and rejections. What a log or a table of outcomes holds is read for ever: tags and
//! the order of fields must never change their meaning.

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::Row as _;

use super::super::model::{EventRow, Price, StockRow, TierSpec};
use super::super::queries::TicketView;
use super::{Command, Outcome, Rejection};

impl Command {
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

impl Outcome {
    /// Encodes the outcome.
    pub fn encode(&self, w: &mut Writer) {
        let strings = |w: &mut Writer, list: &[String]| w.seq(list, |w, s| w.str(s));
        match self {
            Self::EventSaved { event, row, stock } => {
                w.u8(1);
                w.str(event);
                row.encode(w);
                w.seq(stock, |w, stock| stock.encode(w));
            }
            Self::Held { event, tier, hold, quantity, seats, expires_ms } => {
                w.u8(2);
                w.str(event);
                w.str(tier);
                w.u64(*hold);
                w.u32(*quantity);
                strings(w, seats);
                w.u64(*expires_ms);
            }
            Self::Purchased { event, tier, first, count, seats } => {
                w.u8(3);
                w.str(event);
                w.str(tier);
                w.u64(*first);
                w.u32(*count);
                strings(w, seats);
            }
            Self::Released { event, hold } => {
                w.u8(4);
                w.str(event);
                w.str(hold);
            }
            Self::Cancelled { event, ticket } => {
                w.u8(5);
                w.str(event);
                ticket.encode(w);
            }
        }
    }

    /// Decodes an outcome.
    pub fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        let text = |r: &mut Reader<'_>| r.str().map(str::to_owned);
        Ok(match r.u8()? {
            1 => Self::EventSaved {
                event: text(r)?,
                row: Box::new(EventRow::decode(r)?),
                stock: r.seq(StockRow::decode)?,
            },
            2 => Self::Held {
                event: text(r)?,
                tier: text(r)?,
                hold: r.u64()?,
                quantity: r.u32()?,
                seats: r.seq(text)?,
                expires_ms: r.u64()?,
            },
            3 => Self::Purchased {
                event: text(r)?,
                tier: text(r)?,
                first: r.u64()?,
                count: r.u32()?,
                seats: r.seq(text)?,
            },
            4 => Self::Released { event: text(r)?, hold: text(r)? },
            5 => Self::Cancelled { event: text(r)?, ticket: Box::new(TicketView::decode(r)?) },
            tag => return Err(DecodeError::Tag { what: "ticket outcome", tag: tag.into() }),
        })
    }
}

impl TicketView {
    fn encode(&self, w: &mut Writer) {
        w.str(&self.id);
        w.str(&self.tier);
        w.str(&self.owner);
        w.str(&self.seat);
        self.price.encode(w);
        w.bool(self.cancelled);
        w.u64(self.sold_ms);
        w.u128(self.request_id);
        w.str(&self.organiser);
    }

    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            id: r.str()?.into(),
            tier: r.str()?.into(),
            owner: r.str()?.into(),
            seat: r.str()?.into(),
            price: Price::decode(r)?,
            cancelled: r.bool()?,
            sold_ms: r.u64()?,
            request_id: r.u128()?,
            organiser: r.str()?.into(),
        })
    }
}

impl Rejection {
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
            Self::TooManyHolds { holds } => {
                w.u8(19);
                w.u32(*holds);
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
            19 => Self::TooManyHolds { holds: r.u32()? },
            tag => return Err(DecodeError::Tag { what: "ticket rejection", tag: tag.into() }),
        })
    }
}
