//! Accounts: who there is, with which password, in which sessions, with which roles.
//!
//! Invariants, checked on the rows that a command touched before its changes stand:
//! A1 an e-mail belongs to one account, and each account to its e-mail; A2 a session belongs to an account, and nobody has more
//! than [`model::SESSIONS_MAX`]; A3 the generation of a session only grows; A4 an account has the role `user`, and no role that does
//! not exist; A5 an account whose e-mail is claimed has it in all regions, as long as its keeper remembers that.
//!
//! **Never here:** a password, a token, or anything personal in plain text. E-mails are keyed hashes, tokens are hashes, personal
//! fields are ciphertext under keys that this module never sees.
//!
//! * [`model`] — the rows and what is derived from them
//! * [`commands`] — how what can be asked for is decided, and what it changes
//! * [`queries`] — reads over the rows
//! * `sagas` — what is done together with other regions

pub mod commands;
pub mod model;
pub mod queries;
mod sagas;
mod tell;
#[cfg(test)]
mod tests;

use tidewall_messages::accounts::command::Op;
use tidewall_messages::accounts::{Answer, Command, Message, Outcome, Query};

use crate::feed::Feed;
use crate::module::{Decision, Fault, Module, Step};
use crate::outbox::{GroupNo, Outbox};
use crate::table::{AnyTable, Row as _, TableId};
use crate::{Caller, Context, Now};

use commands::Event;
use model::{
    AttemptsRow, ClaimId, ClaimRow, ClaimedRow, ClaimingRow, Digest, Kept, SESSIONS_MAX, SessionKey,
    SessionRow,
};
use sagas::email;

pub use commands::Rejection;
pub use model::State;

/// Something that is to be done at a time that has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timer {
    /// A session has not been refreshed for too long.
    Session(SessionKey),
    /// Attempts are so long ago that they do not count any more.
    Attempts(Digest),
    /// The wish for an e-mail has waited for too long, or ended long ago.
    Claiming(ClaimId),
    /// An e-mail was granted, and nobody has said that it is used.
    Claim(Digest),
}

/// First apply version under which e-mails are claimed in all regions.
pub const CLAIMS_EMAILS: u32 = 6;

impl Module for State {
    const NAME: &'static str = "accounts";
    const SINCE: u32 = 3;
    type Command = Command;
    type Outcome = Outcome;
    type Rejection = Rejection;
    type Event = Event;
    type Timer = Timer;
    type Query = Query;
    type Message = Message;
    const TIMER_ROWS_MAX: u64 = email::ROWS_MAX;
    const MESSAGE_ROWS_MAX: u64 = email::ROWS_MAX;
    const RECONCILE_ROWS_MAX: u64 = email::RECONCILE_ROWS_MAX;

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        let Self { accounts, emails, sessions, attempts, counters, claims, claimings, claimed } = self;
        let tables: [&'a dyn AnyTable; 8] =
            [accounts, emails, sessions, attempts, counters, claims, claimings, claimed];
        tables.into_iter().for_each(show);
    }

    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        let Self { accounts, emails, sessions, attempts, counters, claims, claimings, claimed } = self;
        let tables: [&mut dyn AnyTable; 8] =
            [accounts, emails, sessions, attempts, counters, claims, claimings, claimed];
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

    fn since(command: &Command) -> u32 {
        match command.op {
            Some(Op::ChangeEmail(_)) => CLAIMS_EMAILS,
            _ => Self::SINCE,
        }
    }

    fn table_since(table: TableId) -> u32 {
        let claims = [ClaimRow::TABLE, ClaimingRow::TABLE, ClaimedRow::TABLE];
        if claims.contains(&table) { CLAIMS_EMAILS } else { Self::SINCE }
    }

    fn message_since(_: &Message) -> u32 {
        CLAIMS_EMAILS
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
        let due = [
            self.sessions.derived().next_ms(),
            self.attempts.derived().next_ms(),
            self.claimings.derived().due.next_ms(),
            self.claims.derived().next_ms(),
        ];
        due.into_iter().flatten().min()
    }

    fn next_timer(&self, context: &Context) -> Option<Timer> {
        let now_ms = context.steady_ms;
        let session = self.sessions.derived().next(now_ms).map(Timer::Session);
        let attempts = || self.attempts.derived().next(now_ms).map(Timer::Attempts);
        let claiming = || self.claimings.derived().due.next(now_ms).map(Timer::Claiming);
        let claim = || self.claims.derived().next(now_ms).map(Timer::Claim);
        session.or_else(attempts).or_else(claiming).or_else(claim)
    }

    fn fire(&self, context: &Context, timer: Timer) -> Result<Vec<Event>, Fault> {
        let missing = || Fault("a timer has no row".into());
        Ok(match timer {
            Timer::Session(session) => vec![Event::SessionEnded { session }],
            Timer::Attempts(email) => vec![Event::AttemptsForgotten { email }],
            Timer::Claiming(id) => email::give_up(context, id, self.claimings.get(&id).ok_or_else(missing)?),
            Timer::Claim(email) => email::ask(email, self.claims.get(&email).ok_or_else(missing)?),
        })
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
            Timer::Claiming(key) => {
                let row = self.claimings.get(&key).map(|row| ClaimingRow { stuck: true, ..row.clone() });
                self.claimings.set(key, row);
            }
            Timer::Claim(key) => {
                let row = self.claims.get(&key).map(|row| ClaimRow { kept: Kept::Asked, ..*row });
                self.claims.set(key, row);
            }
        }
    }

    fn send(&self, events: &[Event], outbox: &mut Outbox) {
        events.iter().for_each(|event| email::send(event, outbox));
    }

    fn receive(&self, context: &Context, from: GroupNo, message: &Message) -> Result<Vec<Event>, Fault> {
        email::receive(self, context, from, message)
    }

    fn reconcile(&self, _: &Context, peer: GroupNo, after: &[u8]) -> Step<Event> {
        email::reconcile(self, peer, after)
    }

    fn tell(&self, _: &Context, events: &[Event], feed: &mut Feed) {
        events.iter().for_each(|event| tell::tell(self, event, feed));
    }

    fn quick_no(&self, now: Now, command: &Command) -> Option<Rejection> {
        queries::quick_no(self, now, command)
    }

    fn query(&self, now: Now, query: &Query) -> Result<Answer, Rejection> {
        queries::query(self, now, query)
    }
}
