//! Webhooks: whose changes are told to which address outside.
//!
//! A webhook is told what its owner may see: what concerns the owner, and what happens to the rows that the owner answers for. It
//! hears each entry at its end, and what is for it is queued in the same entry, so that nothing that happens is lost on its way.
//!
//! Invariants, checked on the rows that a command touched before its changes stand:
//! W1 nobody has more than [`model::WEBHOOKS_MAX`] webhooks; W2 the generation of a secret and the revision only grow.
//!
//! **Never here:** a secret, or a call to anywhere: whoever carries a delivery out knows how to sign it.
//!
//! * [`model`] — the rows and what is derived from them
//! * [`commands`] — how what can be asked for is decided, and what it changes
//! * [`queries`] — reads over the rows

pub mod commands;
mod hear;
pub mod model;
pub mod queries;
#[cfg(test)]
mod tests;

use prost::Message as _;
use tidewall_messages::NoMessage;
use tidewall_messages::webhooks::{Answer, Call, Command, Delivery, Outcome, Query};

use crate::feed::{HEARS_CHANGES, HeardChange};
use crate::module::{Decision, Fault, Module};
use crate::outbox::{Outbox, Queues};
use crate::table::AnyTable;
use crate::{Caller, Context, Now};

use commands::Event;
use model::WEBHOOKS_MAX;

pub use commands::Rejection;
pub use model::State;

/// A delivery is tried for so long, milliseconds of steady time: a day.
pub const DELIVERED_WITHIN_MS: u64 = 86_400_000;

impl Module for State {
    const NAME: &'static str = "webhooks";
    const SINCE: u32 = HEARS_CHANGES;
    type Command = Command;
    type Outcome = Outcome;
    type Rejection = Rejection;
    type Event = Event;
    type Timer = std::convert::Infallible;
    type Query = Query;
    type Message = NoMessage;
    const TIMER_ROWS_MAX: u64 = 0;
    /// The webhooks of two who may be told, each looked at twice and changed once.
    const HEARD_ROWS_MAX: u64 = 6 * WEBHOOKS_MAX as u64;

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        let Self { webhooks, counters } = self;
        let tables: [&'a dyn AnyTable; 2] = [webhooks, counters];
        tables.into_iter().for_each(show);
    }

    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        let Self { webhooks, counters } = self;
        let tables: [&mut dyn AnyTable; 2] = [webhooks, counters];
        tables.into_iter().for_each(show);
    }

    fn has_row(&self, _: &str) -> bool {
        false
    }

    fn rows_max(_: &Command) -> u64 {
        16
    }

    fn decide(&self, context: &Context, caller: Caller<'_>, command: &Command) -> Decision<Self> {
        commands::decide(self, context, caller, command)
    }

    fn evolve(&mut self, _: &Context, event: &Event) -> Result<(), Fault> {
        commands::evolve(self, event)
    }

    fn check(&self, _: &Context, events: &[Event]) -> Result<(), Fault> {
        commands::check(self, events)
    }

    fn due_ms(&self) -> Option<u64> {
        None
    }

    fn next_timer(&self, _: &Context) -> Option<Self::Timer> {
        None
    }

    fn fire(&self, _: &Context, timer: Self::Timer) -> Result<Vec<Event>, Fault> {
        match timer {}
    }

    fn shelve(&mut self, timer: Self::Timer) {
        match timer {}
    }

    fn send(&self, events: &[Event], outbox: &mut Outbox) {
        events.iter().for_each(|event| hear::send(event, outbox));
    }

    fn hears(&self) -> bool {
        !self.webhooks.is_empty()
    }

    fn hear(
        &self,
        context: &Context,
        heard: &[HeardChange],
        queues: &dyn Queues,
    ) -> Result<Vec<Event>, Fault> {
        Ok(hear::hear(self, context, heard, queues))
    }

    fn call(&self, now: Now, effect: &[u8]) -> Option<Vec<u8>> {
        // What no build here has made means nothing to whoever carries it out, and stays.
        let Ok(delivery) = Delivery::decode(effect) else { return Some(effect.to_vec()) };
        let (number, row) = self.webhook(&delivery.webhook_id)?;
        let webhook = Some(queries::view(number, row, now));
        Some(Call { webhook, delivery: Some(delivery) }.encode_to_vec())
    }

    fn dropped(&self, _: &Context, _queue: u128, effect: &[u8]) -> Result<Vec<Event>, Fault> {
        Ok(hear::dropped(self, effect))
    }

    fn quick_no(&self, _: Now, _: &Command) -> Option<Rejection> {
        None
    }

    fn query(&self, now: Now, query: &Query) -> Result<Answer, Rejection> {
        queries::query(self, now, query)
    }
}
