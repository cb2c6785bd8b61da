//! Decides what a command leads to: events and an outcome, or a rejection. It only reads rows, and never changes one.

use crate::{Caller, Context};

use super::super::model::*;
use super::{Command, Event, Outcome, Rejection, fields};

/// What a command leads to.
type Decision = Result<(Vec<Event>, Outcome), Rejection>;

/// Decides a command.
pub(super) fn decide(state: &State, context: &Context, caller: Caller<'_>, command: &Command) -> Decision {
    let case = Case { state, context, caller };
    match command {
        Command::CreateEvent { event, display_name, quota, opens_ms, closes_ms, tiers } => {
            let row = EventRow {
                no: state.counters.get(&COUNTER_EVENTS).map_or(1, |counter| counter.0 + 1),
                display_name: display_name.clone(),
                organiser: caller.principal.to_owned(),
                quota: *quota,
                opens_ms: *opens_ms,
                closes_ms: *closes_ms,
                revision: 1,
                tiers: tiers.clone(),
            };
            case.create(event, row)
        }
        Command::UpdateEvent {
            event,
            display_name,
            quota,
            opens_ms,
            closes_ms,
            tiers,
            expected_revision,
        } => {
            let old = case.event_to_update(event, *expected_revision)?;
            let stock = match tiers {
                Some(tiers) => case.changed_capacities(old, tiers)?,
                None => Vec::new(),
            };
            let row = EventRow {
                no: old.no,
                display_name: display_name.as_ref().unwrap_or(&old.display_name).clone(),
                organiser: old.organiser.clone(),
                quota: quota.unwrap_or(old.quota),
                opens_ms: opens_ms.unwrap_or(old.opens_ms),
                closes_ms: closes_ms.unwrap_or(old.closes_ms),
                revision: old.revision + 1,
                tiers: tiers.as_ref().unwrap_or(&old.tiers).clone(),
            };
            fields::check_event(event, &row)?;
            Ok(saved(event.clone(), row, stock))
        }
        Command::Hold { event, tier, quantity, seats, ttl_ms } => {
            case.hold(event, tier, *quantity, seats, *ttl_ms)
        }
        Command::Buy { event, tier, quantity, seats, buyer } => {
            let owner = if buyer.is_empty() { caller.principal } else { buyer };
            case.buy(owner, event, tier, *quantity, seats)
        }
        Command::ConfirmHold { event, hold } => case.confirm(event, hold),
        Command::ReleaseHold { event, hold } => case.release(event, hold),
        Command::CancelTicket { event, ticket } => case.cancel(event, ticket),
    }
}

/// The rows before the command, what the log says about it, and who asks.
pub(super) struct Case<'a> {
    pub(super) state: &'a State,
    pub(super) context: &'a Context,
    pub(super) caller: Caller<'a>,
}

impl<'a> Case<'a> {
    /// Makes an event; without an id of its own it gets one from its position in the log.
    fn create(&self, id: &str, row: EventRow) -> Decision {
        let id = match id {
            "" => format!("e{}-{}", self.context.index, self.context.position),
            id => id.to_owned(),
        };
        fields::check_event(&id, &row)?;
        if self.state.events.get(&id).is_some() {
            return Err(Rejection::EventExists(id));
        }
        let stock = row.tiers.iter().enumerate().map(|(no, tier)| (no as TierNo, tier.capacity)).collect();
        Ok(saved(id, row, stock))
    }

    /// The event, if the caller may change it and has seen its last revision.
    fn event_to_update(&self, id: &str, expected_revision: u64) -> Result<&'a EventRow, Rejection> {
        let old = self.event(id)?;
        if !self.caller.privileged && old.organiser != self.caller.principal {
            return Err(Rejection::NotOwner(format!("event {id:?}")));
        }
        if expected_revision != 0 && expected_revision != old.revision {
            return Err(Rejection::RevisionMismatch { expected: expected_revision, actual: old.revision });
        }
        Ok(old)
    }

    /// Capacities of tiers that are new or changed. The old ones must stay where they are, with their seats and with
    /// room for what is held and sold.
    fn changed_capacities(
        &self,
        old: &EventRow,
        tiers: &[TierSpec],
    ) -> Result<Vec<(TierNo, u64)>, Rejection> {
        let mut stock = Vec::new();
        for (at, tier) in old.tiers.iter().enumerate() {
            let fixed = || Rejection::TierFixed(tier.id.clone());
            let new = tiers.get(at).filter(|new| new.id == tier.id).ok_or_else(fixed)?;
            if new.seat_rows != tier.seat_rows {
                return Err(fixed());
            }
            let key = (old.no, at as TierNo);
            let numbers = self.stock(key)?;
            let taken = numbers.held + numbers.sold;
            if new.capacity < taken {
                return Err(Rejection::CapacityTooSmall { tier: tier.id.clone(), taken });
            }
            if new.capacity != numbers.capacity {
                stock.push((key.1, new.capacity));
            }
        }
        for (at, tier) in tiers.iter().enumerate().skip(old.tiers.len()) {
            stock.push((at as TierNo, tier.capacity));
        }
        Ok(stock)
    }

    /// Takes places out of the stock until `ttl_ms` from now.
    fn hold(&self, event: &str, tier: &str, quantity: u32, seats: &[String], ttl_ms: u32) -> Decision {
        if ttl_ms == 0 || ttl_ms > HOLD_MS_MAX {
            return Err(Rejection::invalid("ttl_seconds", "a hold lasts 1 to 3600 seconds"));
        }
        let take = self.take(self.caller.principal, event, tier, quantity, seats)?;
        let expires_ms = self.context.now_ms.saturating_add(ttl_ms.into());
        let hold = HoldRow {
            owner: self.caller.principal.into(),
            quantity: take.quantity,
            seats: take.seats.clone(),
            expires_ms,
            price: take.price,
        };
        let mut events = take.ended;
        events.push(Event::Held { tier: take.tier, number: take.stock.next_hold, hold });
        let outcome = Outcome::Held {
            event: event.to_owned(),
            tier: take.tier.1,
            hold: take.stock.next_hold,
            quantity: take.quantity,
            seats: take.seats,
            expires_ms,
        };
        Ok((events, outcome))
    }

    /// Sells places out of the stock.
    fn buy(&self, owner: &str, event: &str, tier: &str, quantity: u32, seats: &[String]) -> Decision {
        let take = self.take(owner, event, tier, quantity, seats)?;
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
            event: event.to_owned(),
            tier: take.tier.1,
            first,
            count: take.quantity,
            seats: take.seats,
        };
        Ok((events, outcome))
    }

    /// Sells the places of a hold to its owner.
    fn confirm(&self, event: &str, id: &str) -> Decision {
        let (key, hold) = self.hold_of_caller(event, id)?;
        if hold.expires_ms <= self.context.now_ms {
            return Err(Rejection::HoldExpired(id.to_owned()));
        }
        let tier = (key.0, key.1);
        let first = self.stock(tier)?.next_ticket;
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
            event: event.to_owned(),
            tier: key.1,
            first,
            count: hold.quantity,
            seats: hold.seats.clone(),
        };
        Ok((vec![sold], outcome))
    }

    /// Gives the places of a hold back.
    fn release(&self, event: &str, id: &str) -> Decision {
        let (key, _) = self.hold_of_caller(event, id)?;
        let outcome = Outcome::Released { event: event.to_owned(), hold: id.to_owned() };
        Ok((vec![Event::HoldEnded { hold: key }], outcome))
    }

    /// Gives the place of a ticket back; its owner may, and the organiser of the event.
    fn cancel(&self, event: &str, id: &str) -> Decision {
        let row = self.event(event)?;
        let missing = || Rejection::TicketNotFound(id.to_owned());
        let key = parse_ticket_id(row, id).ok_or_else(missing)?;
        let ticket = self.state.tickets.get(&key).ok_or_else(missing)?;
        let Caller { principal, privileged } = self.caller;
        if !privileged && &*ticket.owner != principal && row.organiser != principal {
            return Err(Rejection::NotOwner(format!("ticket {id:?}")));
        }
        if ticket.cancelled {
            return Err(Rejection::TicketCancelled(id.to_owned()));
        }
        let outcome = Outcome::Cancelled { event: event.to_owned(), tier: key.1, ticket: key.2 };
        Ok((vec![Event::TicketCancelled { ticket: key }], outcome))
    }

    /// The event of this id.
    pub(super) fn event(&self, id: &str) -> Result<&'a EventRow, Rejection> {
        self.state.event(id).ok_or_else(|| Rejection::EventNotFound(id.to_owned()))
    }

    /// The stock of a tier.
    pub(super) fn stock(&self, tier: TierKey) -> Result<StockRow, Rejection> {
        let stock = self.state.stock.get(&tier).copied();
        stock.ok_or_else(|| Rejection::TierNotFound(format!("number {}", tier.1)))
    }

    /// The hold of this id, if it is the caller's.
    fn hold_of_caller(&self, event: &str, id: &str) -> Result<(NumberKey, &'a HoldRow), Rejection> {
        let row = self.event(event)?;
        let missing = || Rejection::HoldNotFound(id.to_owned());
        let key = parse_hold_id(row, id).ok_or_else(missing)?;
        let hold = self.state.holds.get(&key).ok_or_else(missing)?;
        if !self.caller.privileged && &*hold.owner != self.caller.principal {
            return Err(Rejection::NotOwner(format!("hold {id:?}")));
        }
        Ok((key, hold))
    }
}

/// What writing an event's row leads to.
fn saved(id: String, row: EventRow, stock: Vec<(TierNo, u64)>) -> (Vec<Event>, Outcome) {
    (vec![Event::EventSaved { id: id.clone(), row, stock }], Outcome::EventSaved { event: id })
}

/// Key of a ticket by its id, for example "ga-12".
pub fn parse_ticket_id(row: &EventRow, id: &str) -> Option<NumberKey> {
    parse_number_id(row, id, "")
}

/// Key of a hold by its id, for example "ga-h12".
pub fn parse_hold_id(row: &EventRow, id: &str) -> Option<NumberKey> {
    parse_number_id(row, id, "h")
}

fn parse_number_id(row: &EventRow, id: &str, prefix: &str) -> Option<NumberKey> {
    let (tier, number) = id.rsplit_once('-')?;
    let digits = number.strip_prefix(prefix)?;
    if digits.is_empty() || digits.starts_with('0') || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((row.no, row.tier(tier)?.0, digits.parse().ok()?))
}
