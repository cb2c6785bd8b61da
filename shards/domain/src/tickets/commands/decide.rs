//! Decides what a command leads to: events and an outcome, or a rejection. It only reads rows, and never changes one.

use tidewall_messages::tickets::command::Op;
use tidewall_messages::tickets::outcome::Result as Done;
use tidewall_messages::tickets::{self as messages, Command, Outcome};

use tidewall_mutant::{Mutant, active};

use crate::{Caller, Context, incarnation};

use super::super::model::*;
use super::super::queries::views;
use super::{Event, Rejection, fields};

/// What a command leads to.
type Decision = Result<(Vec<Event>, Outcome), Rejection>;

/// Due holds that must end, and then the capacities of tiers that are new or changed.
type Capacities = (Vec<Event>, Vec<(TierNo, u64)>);

/// Decides a command.
pub(in crate::tickets) fn decide(
    state: &State,
    context: &Context,
    caller: Caller<'_>,
    command: &Command,
) -> Decision {
    let case = Case { state, context, caller };
    match &command.op {
        Some(Op::CreateEvent(create)) => case.create(create),
        Some(Op::UpdateEvent(update)) => case.update(update),
        Some(Op::Hold(hold)) => case.hold(hold),
        Some(Op::Buy(buy)) => case.buy(buy),
        Some(Op::ConfirmHold(confirm)) => case.confirm(&confirm.event_id, &confirm.hold_id),
        Some(Op::ReleaseHold(release)) => case.release(&release.event_id, &release.hold_id),
        Some(Op::CancelTicket(cancel)) => case.cancel(&cancel.event_id, &cancel.ticket_id),
        Some(Op::DeleteEvent(delete)) => case.delete(&delete.event_id, delete.expected_revision),
        None => Err(Rejection::invalid("op", "the command asks for nothing")),
    }
}

/// What was done to an event.
fn done(event: &str, result: Done) -> Outcome {
    Outcome { event_id: event.to_owned(), result: Some(result) }
}

/// The rows before the command, what the log says about it, and who asks.
pub(super) struct Case<'a> {
    pub(super) state: &'a State,
    pub(super) context: &'a Context,
    pub(super) caller: Caller<'a>,
}

impl<'a> Case<'a> {
    /// Makes an event; without an id of its own it gets one that no other event of the group has or has ever had.
    fn create(&self, create: &messages::CreateEvent) -> Decision {
        let row = EventRow {
            no: self.state.counters.get(&COUNTER_EVENTS).map_or(1, |counter| counter.0 + 1),
            display_name: create.display_name.clone(),
            organiser: self.caller.principal.to_owned(),
            quota: create.quota_per_buyer,
            opens_ms: create.sale_opens_at_ms,
            closes_ms: create.sale_closes_at_ms,
            // Above that of any event that was deleted: who has seen another one of this id is told.
            revision: self.state.counters.get(&COUNTER_REVISIONS).map_or(0, |counter| counter.0) + 1,
            tiers: create.tiers.iter().map(TierSpec::from).collect(),
        };
        let id = match create.event_id.as_str() {
            "" => format!("e{}-{}", self.context.incarnation, row.no),
            id if is_given_id(id) => {
                let why =
                    format!("ids like {id:?} are given by the region: choose another one, or leave it empty");
                return Err(Rejection::invalid("event_id", why));
            }
            id => id.to_owned(),
        };
        fields::check_event(&id, &row, self.context.apply_version)?;
        if self.state.event(&id).is_some() {
            return Err(Rejection::EventExists(id));
        }
        let stock = row.tiers.iter().enumerate().map(|(no, tier)| (no as TierNo, tier.capacity)).collect();
        Ok(saved(id, row, Vec::new(), stock))
    }

    /// Changes an event; tiers can be added and changed, never removed.
    fn update(&self, update: &messages::UpdateEvent) -> Decision {
        let old = self.event_to_update(&update.event_id, update.expected_revision)?;
        let tiers: Option<Vec<TierSpec>> =
            update.set_tiers.then(|| update.tiers.iter().map(TierSpec::from).collect());
        let (ended, stock) = match &tiers {
            Some(tiers) => self.changed_capacities(old, tiers)?,
            None => (Vec::new(), Vec::new()),
        };
        let row = EventRow {
            no: old.no,
            display_name: update.display_name.as_ref().unwrap_or(&old.display_name).clone(),
            organiser: old.organiser.clone(),
            quota: update.quota_per_buyer.unwrap_or(old.quota),
            opens_ms: update.sale_opens_at_ms.unwrap_or(old.opens_ms),
            closes_ms: update.sale_closes_at_ms.unwrap_or(old.closes_ms),
            revision: old.revision + 1,
            tiers: tiers.unwrap_or_else(|| old.tiers.clone()),
        };
        fields::check_event(&update.event_id, &row, self.context.apply_version)?;
        Ok(saved(update.event_id.clone(), row, ended, stock))
    }

    /// Deletes an event of which nothing was ever held or sold: another one of its id would give the same names again otherwise.
    fn delete(&self, id: &str, expected_revision: u64) -> Decision {
        let row = self.event_to_update(id, expected_revision)?;
        let untouched = self.state.stock_of(row).all(|stock| stock.is_untouched());
        if !untouched && !active(Mutant::UsedEventDeleted) {
            return Err(Rejection::EventInUse(id.to_owned()));
        }
        let deleted = done(id, Done::DeletedEventId(id.to_owned()));
        let organiser = row.organiser.clone();
        Ok((vec![Event::EventDeleted { id: id.to_owned(), organiser }], deleted))
    }

    /// The event, if the caller may change it and has seen its last revision.
    fn event_to_update(&self, id: &str, expected_revision: u64) -> Result<&'a EventRow, Rejection> {
        let old = self.event(id)?;
        if !self.caller.is_operator() && old.organiser != self.caller.principal {
            return Err(Rejection::NotOwner(format!("event {id:?}")));
        }
        if expected_revision != 0 && expected_revision != old.revision {
            return Err(Rejection::RevisionMismatch { expected: expected_revision, actual: old.revision });
        }
        Ok(old)
    }

    /// Capacities of tiers that are new or changed, and the due holds that must end for them. The old tiers must stay where
    /// they are, with their seats and with room for what is held and sold.
    fn changed_capacities(&self, old: &EventRow, tiers: &[TierSpec]) -> Result<Capacities, Rejection> {
        let (mut ended, mut stock, mut cost) = (Vec::new(), Vec::new(), 0);
        for (at, tier) in old.tiers.iter().enumerate() {
            let fixed = || Rejection::TierFixed(tier.id.clone());
            let new = tiers.get(at).filter(|new| new.id == tier.id).ok_or_else(fixed)?;
            if new.seat_rows != tier.seat_rows {
                return Err(fixed());
            }
            let key = (old.no, at as TierNo);
            let numbers = self.stock(key)?;
            let mut taken = numbers.held + numbers.sold;
            let mut due = self.state.holds.derived().due(key, self.context.steady_ms);
            while new.capacity < taken {
                let next = due.next().filter(|_| cost < ENDED_MAX);
                let (number, places) =
                    next.ok_or_else(|| Rejection::CapacityTooSmall { tier: tier.id.clone(), taken })?;
                cost += 1 + if tier.numbered() { places as usize } else { 0 };
                taken = taken.saturating_sub(places.into());
                ended.push(Event::HoldExpired { hold: (key.0, key.1, number) });
            }
            if new.capacity != numbers.capacity {
                stock.push((key.1, new.capacity));
            }
        }
        for (at, tier) in tiers.iter().enumerate().skip(old.tiers.len()) {
            stock.push((at as TierNo, tier.capacity));
        }
        Ok((ended, stock))
    }

    /// Takes places out of the stock for a while.
    fn hold(&self, asked: &messages::Hold) -> Decision {
        if asked.ttl_ms == 0 || asked.ttl_ms > HOLD_MS_MAX {
            return Err(Rejection::invalid("ttl", "a hold lasts 1 ms to 1 h"));
        }
        let messages::Hold { event_id, tier_id, quantity, seats, ttl_ms } = asked;
        let take = self.take(self.caller.principal, event_id, tier_id, *quantity, seats)?;
        let mut events = take.ended;
        self.check_holds(take.tier.0, &mut events)?;
        let number = self.number(take.stock.next_hold);
        let hold = HoldRow {
            owner: self.caller.principal.into(),
            quantity: take.quantity,
            seats: take.seats,
            expires_ms: self.context.steady_ms.saturating_add((*ttl_ms).into()),
            price: take.price,
            state: HoldState::Live,
        };
        let view = messages::HoldView {
            hold_id: format!("{tier_id}-h{number}"),
            // The holder is who asked; the gateway knows it from the token.
            owner: String::new(),
            organiser: String::new(),
            tier_id: tier_id.clone(),
            quantity: take.quantity,
            seats: take.spec.seat_names(&hold.seats),
            expires_at_ms: self.context.now_ms.saturating_add((*ttl_ms).into()),
        };
        events.push(Event::Held { tier: take.tier, number, hold });
        Ok((events, done(event_id, Done::Hold(view))))
    }

    /// Whether the caller may have one hold more of an event. A due one of its own gives way.
    fn check_holds(&self, event: EventNo, ended: &mut Vec<Event>) -> Result<(), Rejection> {
        let (holds, first) = self.state.holds.derived().count(event, self.caller.principal);
        if holds < HOLDS_MAX {
            return Ok(());
        }
        match first {
            Some((due, hold)) if due <= self.context.steady_ms => {
                let event = Event::HoldExpired { hold };
                if !ended.contains(&event) {
                    ended.push(event);
                }
                Ok(())
            }
            _ => Err(Rejection::TooManyHolds { holds: holds as u32 }),
        }
    }

    /// The next number of a ticket or hold: as the stock says, but never one that an earlier incarnation may have given.
    fn number(&self, next: u64) -> u64 {
        next.max(incarnation::first_number(self.context.incarnation))
    }

    /// Sells places out of the stock.
    fn buy(&self, asked: &messages::Buy) -> Decision {
        let messages::Buy { event_id, tier_id, quantity, seats, buyer } = asked;
        let owner = if buyer.is_empty() { self.caller.principal } else { buyer };
        let take = self.take(owner, event_id, tier_id, *quantity, seats)?;
        let mut events = take.ended;
        let first = self.number(take.stock.next_ticket);
        let view = messages::PurchaseView {
            tier_id: tier_id.clone(),
            first_number: first,
            count: take.quantity,
            seats: take.spec.seat_names(&take.seats),
        };
        events.push(Event::Sold {
            tier: take.tier,
            first,
            count: take.quantity,
            seats: take.seats,
            owner: owner.into(),
            price: take.price,
            from_hold: None,
        });
        Ok((events, done(event_id, Done::Purchase(view))))
    }

    /// Sells the places of a hold to its owner.
    fn confirm(&self, event: &str, id: &str) -> Decision {
        let (row, key, hold) = self.live_hold_of_caller(event, id)?;
        let tier = (key.0, key.1);
        let first = self.number(self.stock(tier)?.next_ticket);
        let sold = Event::Sold {
            tier,
            first,
            count: hold.quantity,
            seats: hold.seats.clone(),
            owner: hold.owner.clone(),
            price: hold.price,
            from_hold: Some(key.2),
        };
        let spec = row.tiers.get(usize::from(key.1));
        let view = messages::PurchaseView {
            tier_id: spec.map(|spec| spec.id.clone()).unwrap_or_default(),
            first_number: first,
            count: hold.quantity,
            seats: spec.map(|spec| spec.seat_names(&hold.seats)).unwrap_or_default(),
        };
        Ok((vec![sold], done(event, Done::Purchase(view))))
    }

    /// Gives the places of a hold back.
    fn release(&self, event: &str, id: &str) -> Decision {
        let (_, key, hold) = self.live_hold_of_caller(event, id)?;
        let released = Event::HoldReleased { hold: key, owner: hold.owner.clone(), quantity: hold.quantity };
        Ok((vec![released], done(event, Done::ReleasedHoldId(id.to_owned()))))
    }

    /// Gives the place of a ticket back; its owner may, and the organiser of the event.
    fn cancel(&self, event: &str, id: &str) -> Decision {
        let row = self.event(event)?;
        let missing = || Rejection::TicketNotFound(id.to_owned());
        let key = parse_ticket_id(row, id).ok_or_else(missing)?;
        let ticket = self.state.tickets.get(&key).ok_or_else(missing)?;
        let principal = self.caller.principal;
        if !self.caller.is_operator() && &*ticket.owner != principal && row.organiser != principal {
            return Err(Rejection::NotOwner(format!("ticket {id:?}")));
        }
        if ticket.cancelled {
            return Err(Rejection::TicketCancelled(id.to_owned()));
        }
        let cancelled = TicketRow { cancelled: true, ..ticket.clone() };
        let view = views::ticket(row, &key, &cancelled);
        Ok((vec![Event::TicketCancelled { ticket: key }], done(event, Done::Cancelled(view))))
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

    /// The hold of this id, if it is the caller's and not due.
    fn live_hold_of_caller(
        &self,
        event: &str,
        id: &str,
    ) -> Result<(&'a EventRow, NumberKey, &'a HoldRow), Rejection> {
        let row = self.event(event)?;
        let missing = || Rejection::HoldNotFound(id.to_owned());
        let key = parse_hold_id(row, id).ok_or_else(missing)?;
        let hold = self.state.holds.get(&key).ok_or_else(missing)?;
        let may = self.caller.is_operator() || &*hold.owner == self.caller.principal;
        if !may && !active(Mutant::HoldOfAnybody) {
            return Err(Rejection::NotOwner(format!("hold {id:?}")));
        }
        // Whether its timer has fired or not.
        if !hold.lives(self.context.steady_ms) {
            return Err(Rejection::HoldExpired(id.to_owned()));
        }
        Ok((row, key, hold))
    }
}

/// What writing an event's row leads to, once these due holds have ended. What the event is afterwards stands in the rows then.
fn saved(
    id: String,
    row: EventRow,
    mut events: Vec<Event>,
    stock: Vec<(TierNo, u64)>,
) -> (Vec<Event>, Outcome) {
    let outcome = done(&id, Done::Event(messages::EventView::default()));
    events.push(Event::EventSaved { id, row, stock });
    (events, outcome)
}

/// Whether an id has the form of those that the region gives: "e1-2".
fn is_given_id(id: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let numbers = id.strip_prefix('e').and_then(|numbers| numbers.split_once('-'));
    numbers.is_some_and(|(incarnation, number)| digits(incarnation) && digits(number))
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
