//! Turns events into rows, and checks the invariants of what they touched. It decides nothing: whatever does not fit is a
//! [`Fault`], and the caller takes the changes back.

use tidewall_mutant::{Mutant, active};

use crate::Context;
use crate::counter::Counter;
use crate::module::Fault;

use super::super::model::*;
use super::Event;
use super::take::held_and_owned;

/// Changes the rows as an event says.
pub(in crate::tickets) fn evolve(state: &mut State, context: &Context, event: &Event) -> Result<(), Fault> {
    match event {
        Event::EventSaved { id, row, stock } => event_saved(state, id, row, stock),
        Event::EventDeleted { id, .. } => event_deleted(state, id),
        Event::Held { tier, number, hold } => held(state, *tier, *number, hold),
        Event::HoldReleased { hold, .. } => hold_ended(state, *hold, None),
        Event::HoldExpired { hold } => hold_ended(state, *hold, Some(HoldState::Expired)),
        Event::HoldForgotten { hold } => {
            state.holds.set(*hold, None);
            Ok(())
        }
        Event::Sold { tier, first, count, seats, owner, price, from_hold } => {
            let ticket = TicketRow {
                owner: owner.clone(),
                seat: None,
                price: *price,
                sold_ms: context.now_ms,
                request_id: context.request_id,
                cancelled: false,
            };
            sold(state, *tier, *first, *count, seats, &ticket, *from_hold)
        }
        Event::TicketCancelled { ticket } => ticket_cancelled(state, *ticket),
    }
}

/// Checks the invariants of what events touched. T2 and T4 are checked where seats and tickets are written.
pub(in crate::tickets) fn check(state: &State, context: &Context, events: &[Event]) -> Result<(), Fault> {
    check_stock(state)?;
    for event in events {
        let gained = match event {
            Event::Held { tier, hold, .. } => Some((tier.0, &hold.owner)),
            Event::Sold { tier, owner, from_hold: None, .. } => Some((tier.0, owner)),
            _ => None,
        };
        if let Some((event, owner)) = gained {
            check_quota(state, context, event, owner)?;
        }
    }
    Ok(())
}

fn event_saved(state: &mut State, id: &str, row: &EventRow, stock: &[(TierNo, u64)]) -> Result<(), Fault> {
    let no = row.no;
    for &(tier, capacity) in stock {
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
    if state.event(id).is_none() {
        state.counters.set(COUNTER_EVENTS, Some(Counter(no)));
    }
    state.events.set(id.to_owned(), Some(row.clone()));
    Ok(())
}

fn event_deleted(state: &mut State, id: &str) -> Result<(), Fault> {
    let row = state.event(id).ok_or_else(|| Fault(format!("event {id:?} is missing")))?;
    let (no, tiers, revision) = (row.no, row.tiers.len(), row.revision);
    for tier in 0..tiers as TierNo {
        let untouched = state.stock.get(&(no, tier)).is_some_and(StockRow::is_untouched);
        if !untouched && !active(Mutant::UsedEventDeleted) {
            return Err(Fault(format!("T4: places of tier {tier} of event {id:?} have names")));
        }
        state.stock.set((no, tier), None);
    }
    let highest = state.counters.get(&COUNTER_REVISIONS).map_or(0, |counter| counter.0);
    state.counters.set(COUNTER_REVISIONS, Some(Counter(highest.max(revision))));
    state.events.set(id.to_owned(), None);
    Ok(())
}

fn held(state: &mut State, tier: TierKey, number: u64, hold: &HoldRow) -> Result<(), Fault> {
    let quantity = u64::from(hold.quantity);
    change_stock(state, tier, |stock| {
        stock.free = take_off(stock.free, quantity, "free")?;
        stock.held += quantity;
        stock.next_hold =
            number.checked_add(1).ok_or_else(|| Fault("no number is left for a hold".into()))?;
        Ok(())
    })?;
    occupy(state, tier, &hold.seats, None, |_| SeatRow::Held(number))?;
    state.holds.set((tier.0, tier.1, number), Some(hold.clone()));
    Ok(())
}

/// Puts the places of a live hold back; the row stays as `left`, or goes.
fn hold_ended(state: &mut State, key: NumberKey, left: Option<HoldState>) -> Result<(), Fault> {
    let hold = state.holds.get(&key).ok_or_else(|| Fault(format!("hold {key:?} is missing")))?.clone();
    if hold.state != HoldState::Live {
        return Err(Fault(format!("hold {key:?} has ended before")));
    }
    let tier = (key.0, key.1);
    change_stock(state, tier, |stock| {
        stock.held = take_off(stock.held, hold.quantity.into(), "held")?;
        stock.free += u64::from(hold.quantity);
        Ok(())
    })?;
    vacate(state, tier, &hold.seats, SeatRow::Held(key.2))?;
    state.holds.set(key, left.map(|state| HoldRow { seats: Vec::new(), state, ..hold }));
    Ok(())
}

/// Makes `count` tickets like `ticket`, each with its seat in a tier with numbers.
fn sold(
    state: &mut State,
    tier: TierKey,
    first: u64,
    count: u32,
    seats: &[u32],
    ticket: &TicketRow,
    from_hold: Option<u64>,
) -> Result<(), Fault> {
    change_stock(state, tier, |stock| {
        let from = if from_hold.is_some() { &mut stock.held } else { &mut stock.free };
        *from = take_off(*from, count.into(), "stock")?;
        stock.sold += u64::from(count);
        stock.next_ticket =
            first.checked_add(count.into()).ok_or_else(|| Fault("no number is left for a ticket".into()))?;
        Ok(())
    })?;
    if let Some(number) = from_hold {
        state.holds.set((tier.0, tier.1, number), None);
    }
    let from = from_hold.map(SeatRow::Held);
    occupy(state, tier, seats, from, |at| SeatRow::Sold(first + at as u64))?;
    for at in 0..count {
        let key = (tier.0, tier.1, first + u64::from(at));
        if state.tickets.get(&key).is_some() {
            return Err(Fault(format!("T4: ticket number {key:?} is taken")));
        }
        let ticket = TicketRow { seat: seats.get(at as usize).copied(), ..ticket.clone() };
        state.tickets.set(key, Some(ticket));
    }
    Ok(())
}

fn ticket_cancelled(state: &mut State, key: NumberKey) -> Result<(), Fault> {
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
    Ok(())
}

/// Subtracts places; that there are too few is a fault.
fn take_off(from: u64, quantity: u64, what: &str) -> Result<u64, Fault> {
    from.checked_sub(quantity).ok_or_else(|| Fault(format!("T1: {quantity} of {from} {what} places")))
}

/// Changes the stock of a tier.
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
    Ok(())
}

/// Checks T1 on the tiers that the command touched.
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
pub(in crate::tickets) fn check_quota(
    state: &State,
    context: &Context,
    event: EventNo,
    owner: &str,
) -> Result<(), Fault> {
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
