//! Accounts: who there is, with which password, in which sessions, with which roles.
//!
//! Invariants, checked on the rows that a command touched before its changes stand:
//! A1 an e-mail belongs to one account, and each account to its e-mail; A2 a session belongs to an account, and nobody has more
//! than [`model::SESSIONS_MAX`]; A3 the generation of a session only grows; A4 an account has the role `user`, and no role that does
//! not exist.
//!
//! **Never here:** a password, a token, or anything personal in plain text. E-mails are keyed hashes, tokens are hashes, personal
//! fields are ciphertext under keys that this module never sees.
//!
//! * [`model`] — the rows and what is derived from them
//! * [`commands`] — how what can be asked for is decided, and what it changes
//! * [`queries`] — reads over the rows

pub mod commands;
pub mod model;
pub mod queries;
#[cfg(test)]
mod tests;

use tidewall_messages::accounts::command::Op;
use tidewall_messages::accounts::{Answer, Command, Outcome, Query};

use crate::module::{Decision, Fault, Module};
use crate::table::AnyTable;
use crate::{Caller, Context, Now};

use commands::Event;
use model::{AttemptsRow, Digest, SESSIONS_MAX, SessionKey, SessionRow};

pub use commands::Rejection;
pub use model::State;

/// Something that is to be done at a time that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A session has not been refreshed for too long.
    Session(SessionKey),
    /// Attempts are so long ago that they do not count any more.
    Attempts(Digest),
}

impl Module for State {
    const NAME: &'static str = "accounts";
    const SINCE: u32 = 3;
    type Command = Command;
    type Outcome = Outcome;
    type Rejection = Rejection;
    type Event = Event;
    type Timer = Timer;
    type Query = Query;
    const TIMER_ROWS_MAX: u64 = 16;

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        let Self { accounts, emails, sessions, attempts, counters } = self;
        let tables: [&'a dyn AnyTable; 5] = [accounts, emails, sessions, attempts, counters];
        tables.into_iter().for_each(show);
    }

    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        let Self { accounts, emails, sessions, attempts, counters } = self;
        let tables: [&mut dyn AnyTable; 5] = [accounts, emails, sessions, attempts, counters];
        tables.into_iter().for_each(show);
    }

    /// None is hot: an account has one owner. An actor for each that logs in would leave none for what is hot, and tell by the work that
    /// it makes whether an e-mail has an account.
    fn has_row(&self, _: &str) -> bool {
        false
    }

    /// What has ended stays so. A refresh is remembered, although a token's generation tells what was done with it: a copy that comes
    /// after two later ones would look like a thief's.
    fn is_remembered(command: &Command) -> bool {
        !matches!(command.op, Some(Op::EndSession(_)))
    }

    /// By the sessions that an account may have.
    fn rows_max(_: &Command) -> u64 {
        64 + 16 * SESSIONS_MAX as u64
    }

    fn decide(&self, context: &Context, caller: Caller<'_>, command: &Command) -> Decision<Self> {
        commands::decide(self, context, caller, command)
    }

    fn evolve(&mut self, context: &Context, event: &Event) -> Result<(), Fault> {
        commands::evolve(self, context, event)
    }

    fn check(&self, _: &Context, events: &[Event]) -> Result<(), Fault> {
        commands::check(self, events)
    }

    fn due_ms(&self) -> Option<u64> {
        let sessions = self.sessions.derived().next_ms();
        sessions.into_iter().chain(self.attempts.derived().next_ms()).min()
    }

    fn next_timer(&self, context: &Context) -> Option<Timer> {
        let now_ms = context.steady_ms;
        let session = self.sessions.derived().next(now_ms).map(Timer::Session);
        session.or_else(|| self.attempts.derived().next(now_ms).map(Timer::Attempts))
    }

    fn fire(&self, _: &Context, timer: Timer) -> Result<Vec<Event>, Fault> {
        Ok(vec![match timer {
            Timer::Session(session) => Event::SessionEnded { session },
            Timer::Attempts(email) => Event::AttemptsForgotten { email },
        }])
    }

    /// The row stays, and counts as what it is: an expired session, attempts of long ago.
    fn shelve(&mut self, timer: Timer) {
        match timer {
            Timer::Session(key) => {
                let row = self.sessions.get(&key).map(|row| SessionRow { stuck: true, ..row.clone() });
                self.sessions.set(key, row);
            }
            Timer::Attempts(key) => {
                let row = self.attempts.get(&key).map(|row| AttemptsRow { stuck: true, ..*row });
                self.attempts.set(key, row);
            }
        }
    }

    fn quick_no(&self, now: Now, command: &Command) -> Option<Rejection> {
        queries::quick_no(self, now, command)
    }

    fn query(&self, now: Now, query: &Query) -> Result<Answer, Rejection> {
        queries::query(self, now, query)
    }
}
