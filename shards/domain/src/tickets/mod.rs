//! Events, their tiers, and who has a place.
//!
//! Invariants, checked on the rows that a command touched before its changes stand:
//! T1 capacity = free + held + sold in every tier; T2 a seat has at most one holder; T3 nobody has more
//! places of an event, held and valid together, than its quota; T4 ticket and hold numbers are never reused.
//!
//! * [`model`] — the rows and the indexes derived from them
//! * [`commands`] — how what can be asked for is decided, and what it changes
//! * [`queries`] — reads over the rows
//! * `tell` — what whoever watches is told
//!
//! This module never looks at anything but its rows, the command and the [`Context`].

pub mod commands;
pub mod model;
pub mod queries;
mod tell;
#[cfg(test)]
mod tests;

use tidewall_messages::NoMessage;
use tidewall_messages::tickets::command::Op;
use tidewall_messages::tickets::outcome::Result as Done;
use tidewall_messages::tickets::{Answer, Command, Outcome, Query};

use crate::feed::Feed;
use crate::module::{Decision, Fault, Module};
use crate::table::AnyTable;
use crate::{Caller, Context, Now};

use commands::Event;
use model::{ENDED_MAX, HoldRow, HoldState, NumberKey, QUANTITY_MAX, TIERS_MAX};
use queries::views;

pub use commands::Rejection;
pub use model::State;

/// Something that is to be done about a hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timer(NumberKey);

/// The most rows that taking places costs. Each seat that is named may be in another due hold, which ends as a whole.
fn taken(quantity: u32, named: usize) -> u64 {
    let (hold, named) = (QUANTITY_MAX as u64, named.min(QUANTITY_MAX as usize) as u64);
    let places = u64::from(quantity.min(QUANTITY_MAX)).max(named);
    rows_max(places + hold) + named * (16 + 2 * hold)
}

/// First apply version under which events can be deleted, and under which fields of events are named as the API names them since.
const DELETES_EVENTS: u32 = 5;

/// The most rows that so many places cost.
const fn rows_max(places: u64) -> u64 {
    64 + 8 * places
}

impl Module for State {
    const NAME: &'static str = "tickets";
    type Command = Command;
    type Outcome = Outcome;
    type Rejection = Rejection;
    type Event = Event;
    type Timer = Timer;
    type Query = Query;
    type Message = NoMessage;
    const TIMER_ROWS_MAX: u64 = rows_max(QUANTITY_MAX as u64);

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        let Self { events, stock, tickets, holds, seats, counters } = self;
        let tables: [&'a dyn AnyTable; 6] = [events, stock, tickets, holds, seats, counters];
        tables.into_iter().for_each(show);
    }

    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        let Self { events, stock, tickets, holds, seats, counters } = self;
        let tables: [&mut dyn AnyTable; 6] = [events, stock, tickets, holds, seats, counters];
        tables.into_iter().for_each(show);
    }

    /// A hot row is an event with its tiers.
    fn has_row(&self, name: &str) -> bool {
        self.event(name).is_some()
    }

    fn since(command: &Command) -> u32 {
        match command.op {
            Some(Op::DeleteEvent(_)) => DELETES_EVENTS,
            _ => Self::SINCE,
        }
    }

    /// By the places that it asks for, and those of due holds that may have to give way.
    fn rows_max(command: &Command) -> u64 {
        let hold = QUANTITY_MAX as u64;
        match &command.op {
            Some(Op::Hold(asked)) => taken(asked.quantity, asked.seats.len()),
            Some(Op::Buy(asked)) => taken(asked.quantity, asked.seats.len()),
            Some(Op::ConfirmHold(_) | Op::ReleaseHold(_)) => rows_max(2 * hold),
            Some(Op::CancelTicket(_)) => rows_max(1),
            Some(Op::CreateEvent(_) | Op::DeleteEvent(_)) => rows_max(TIERS_MAX as u64),
            Some(Op::UpdateEvent(_)) => rows_max((TIERS_MAX + ENDED_MAX) as u64),
            None => 0,
        }
    }

    fn decide(&self, context: &Context, caller: Caller<'_>, command: &Command) -> Decision<Self> {
        commands::decide(self, context, caller, command)
    }

    fn evolve(&mut self, context: &Context, event: &Event) -> Result<(), Fault> {
        commands::evolve(self, context, event)
    }

    fn check(&self, context: &Context, events: &[Event]) -> Result<(), Fault> {
        commands::check(self, context, events)
    }

    fn complete(&self, outcome: &mut Outcome) {
        if let Some(Done::Event(view)) = &mut outcome.result
            && let Some(row) = self.event(&outcome.event_id)
        {
            *view = views::event(&outcome.event_id, row, row.tiers.iter().zip(self.stock_of(row)));
        }
    }

    fn due_ms(&self) -> Option<u64> {
        self.holds.derived().next_timer_ms()
    }

    fn next_timer(&self, context: &Context) -> Option<Timer> {
        self.holds.derived().next_timer(context.steady_ms).map(Timer)
    }

    fn fire(&self, _: &Context, Timer(hold): Timer) -> Result<Vec<Event>, Fault> {
        let row = self.holds.get(&hold).ok_or_else(|| Fault(format!("hold {hold:?} is missing")))?;
        match row.state {
            HoldState::Live => Ok(vec![Event::HoldExpired { hold }]),
            HoldState::Expired => Ok(vec![Event::HoldForgotten { hold }]),
            HoldState::Stuck => Err(Fault(format!("hold {hold:?} is stuck and has no timer"))),
        }
    }

    /// The hold keeps its places until somebody has looked at it.
    fn shelve(&mut self, Timer(hold): Timer) {
        if let Some(row) = self.holds.get(&hold) {
            let row = HoldRow { state: HoldState::Stuck, ..row.clone() };
            self.holds.set(hold, Some(row));
        }
    }

    fn tell(&self, context: &Context, events: &[Event], feed: &mut Feed) {
        events.iter().for_each(|event| tell::tell(self, context, event, feed));
    }

    fn quick_no(&self, now: Now, command: &Command) -> Option<Rejection> {
        queries::quick_no(self, now, command)
    }

    fn query(&self, now: Now, query: &Query) -> Result<Answer, Rejection> {
        queries::query(self, now, query)
    }
}
