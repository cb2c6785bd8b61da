//! What a domain module is, and what the state machine sees of it.
//!
//! The author of a module implements [`Module`] over its own messages and rows and names it in [`crate::registry`]. Everybody
//! else knows modules as [`AnyModule`], which follows from it: bytes in, bytes out, and one transaction a command or timer.
//!
//! A command is *decided* on rows that nothing may change, so that a rejection changes nothing; its events then become rows; then
//! the invariants of the rows it touched are checked. What breaks one is taken back.
//!
//! **The bound.** A command may look at and change a number of rows that follows from its own size, never from how many there are:
//! apply runs for all regions, and who takes long holds up everybody. A module says with [`Module::rows_max`] how many; builds for
//! tests count, and panic where more were looked at.

mod any;
mod transaction;

use std::fmt::Debug;

use prost::Message;
use tidewall_messages::{ModuleCommand, ModuleMessage, ModuleQuery, Rejection};

use crate::feed::{Feed, HeardChange};
use crate::outbox::{GroupNo, Outbox, Queues};
use crate::table::{AnyTable, TableId};
use crate::{Caller, Context, Now};

pub use any::{AnyModule, Applied, Fired, ModuleError, NotUnderstood, Output, Reconciled};
#[cfg(test)]
pub(crate) use transaction::{apply, fire_next, looked_at};

/// An invariant is broken: the changes must be taken back.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// How a client shall understand a rejection; the numbers are those of gRPC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The request itself is wrong.
    InvalidArgument = 3,
    /// What it names does not exist.
    NotFound = 5,
    /// What it would make exists.
    AlreadyExists = 6,
    /// The caller may not.
    PermissionDenied = 7,
    /// The state does not allow it (now).
    FailedPrecondition = 9,
    /// Somebody else was faster.
    Aborted = 10,
    /// The caller has not proven who it is, or not any more.
    Unauthenticated = 16,
}

/// Why a command of a module is refused by decision; its words are those for people.
pub trait Reason: std::error::Error {
    /// Stable reason for programs, UPPER_SNAKE_CASE.
    fn reason(&self) -> &'static str;
    /// How a client shall understand it.
    fn code(&self) -> Code;
    /// The field to blame, if there is one.
    fn field(&self) -> &str;

    /// The rejection as it is remembered and answered.
    fn rejection(&self) -> Rejection {
        Rejection {
            reason: self.reason().to_owned(),
            message: self.to_string(),
            code: self.code() as i32,
            field: self.field().to_owned(),
        }
    }
}

/// The most rows that any command or timer may look at or change: some ten milliseconds.
pub const ROWS_MAX: u64 = 25_000;

/// What a decision of a module leads to.
pub type Decision<M> = Result<(Vec<<M as Module>::Event>, <M as Module>::Outcome), <M as Module>::Rejection>;

/// A domain module: its rows, and the rules over them. Pure, as the whole crate is.
pub trait Module: Default + Debug + Send + Sync + 'static {
    /// Its name, in names of rows and in metrics: `[a-z]+`.
    const NAME: &'static str;
    /// The first apply version under which it may be asked for something: a build that lacks the module would halt on a command of it.
    const SINCE: u32 = 1;
    /// What can be asked for.
    type Command: ModuleCommand;
    /// What a command achieved, with all that an answer says.
    type Outcome: Message;
    /// Why a command is refused.
    type Rejection: Reason;
    /// What a decision changes, past tense; rows follow from it and from nothing else.
    type Event;
    /// Something that is to be done at a time that has come.
    type Timer: Copy;
    /// A read.
    type Query: ModuleQuery + Default;
    /// What it tells its like in other groups; [`tidewall_messages::NoMessage`] when it is nothing.
    type Message: ModuleMessage;
    /// The most rows that a timer looks at or changes, as with [`Module::rows_max`].
    const TIMER_ROWS_MAX: u64;
    /// The most rows that a message looks at or changes.
    const MESSAGE_ROWS_MAX: u64 = 0;
    /// The most rows that a step of [`Module::reconcile`] looks at or changes.
    const RECONCILE_ROWS_MAX: u64 = 0;
    /// The most rows that it looks at or changes for each change that it hears of.
    const HEARD_ROWS_MAX: u64 = 0;

    /// Shows every table.
    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable));
    /// Shows every table, to be changed as a whole.
    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable));

    /// Whether the hot row of this name exists: an actor of its own is only for what does.
    fn has_row(&self, name: &str) -> bool;

    /// Whether what is decided is remembered by request id, so that a copy gets the first answer for ever. `false` is for a command
    /// that is idempotent by its rows: executed once more, at any time before it expires, it changes nothing, and is answered by the
    /// rows as they are then. Nobody can ask what became of its request id.
    fn is_remembered(_command: &Self::Command) -> bool {
        true
    }

    /// The first apply version under which this may be asked for: a build that lacks the operation would halt on it.
    fn since(_command: &Self::Command) -> u32 {
        Self::SINCE
    }

    /// The first apply version under which a table may have rows: a build that lacks it refuses them.
    fn table_since(_table: TableId) -> u32 {
        Self::SINCE
    }

    /// The most rows that a command looks at or changes, those that it looks at again included. It follows from the command alone and
    /// is at most [`ROWS_MAX`].
    fn rows_max(command: &Self::Command) -> u64;

    /// Decides a command. Deadlines are compared with the context's times only.
    ///
    /// # Errors
    /// The rejection that is remembered and answered.
    fn decide(&self, context: &Context, caller: Caller<'_>, command: &Self::Command) -> Decision<Self>;

    /// Changes the rows as an event says. It decides nothing: what does not fit is a fault.
    ///
    /// # Errors
    /// A broken invariant.
    fn evolve(&mut self, context: &Context, event: &Self::Event) -> Result<(), Fault>;

    /// Checks the invariants of the rows that these events touched.
    ///
    /// # Errors
    /// A broken invariant.
    fn check(&self, context: &Context, events: &[Self::Event]) -> Result<(), Fault>;

    /// Completes an outcome by what the rows say once its events are in them.
    fn complete(&self, _outcome: &mut Self::Outcome) {}

    /// Steady time of the earliest timer, milliseconds.
    fn due_ms(&self) -> Option<u64>;
    /// The earliest timer that is due.
    fn next_timer(&self, context: &Context) -> Option<Self::Timer>;
    /// What a timer that is due leads to.
    ///
    /// # Errors
    /// A broken invariant, of this timer alone: it is shelved.
    fn fire(&self, context: &Context, timer: Self::Timer) -> Result<Vec<Self::Event>, Fault>;
    /// Takes a timer that cannot be carried out out of the way, so that it delays no other.
    fn shelve(&mut self, timer: Self::Timer);

    /// What events send to other groups. It is asked before they change the rows.
    fn send(&self, _events: &[Self::Event], _outbox: &mut Outbox) {}

    /// What events tell whoever watches. It is asked when they have changed the rows.
    fn tell(&self, _: &Context, _events: &[Self::Event], _feed: &mut Feed) {}

    /// The first apply version under which this may be told to a group.
    fn message_since(_message: &Self::Message) -> u32 {
        Self::SINCE
    }

    /// What a message of another group leads to. It cannot be refused: a no is an answer, and a message that was told before, or that
    /// nothing here fits to any more, changes nothing.
    ///
    /// # Errors
    /// A broken invariant: the message is set aside with those behind it in its saga, and the others go on.
    fn receive(
        &self,
        _: &Context,
        _from: GroupNo,
        _message: &Self::Message,
    ) -> Result<Vec<Self::Event>, Fault> {
        Err(Fault(format!("{} gets no messages", Self::NAME)))
    }

    /// Says once more to a group what it may have lost, or never have known, because it or this one went back to an earlier state: for
    /// the rows that concern it, some at a time. `after` is where the last step ended; at the beginning it is empty.
    fn reconcile(&self, _: &Context, _peer: GroupNo, _after: &[u8]) -> Step<Self::Event> {
        Step { events: Vec::new(), next: None }
    }

    /// Whether it wants to hear what the modules of its group tell.
    fn hears(&self) -> bool {
        false
    }

    /// What leads on from that which was told in an entry, at its end. It tells nothing itself.
    ///
    /// # Errors
    /// A broken invariant: nothing of it is heard, and somebody is told.
    fn hear(&self, _: &Context, _: &[HeardChange], _: &dyn Queues) -> Result<Vec<Self::Event>, Fault> {
        Ok(Vec::new())
    }

    /// What whoever carries an effect out must know, from its payload and the rows as they are; `None` when it need not be carried out
    /// any more.
    fn call(&self, _: Now, _effect: &[u8]) -> Option<Vec<u8>> {
        None
    }

    /// What leads on from an effect that was given up, and of which so many are among the dead letters that it is dropped.
    ///
    /// # Errors
    /// A broken invariant: somebody is told.
    fn dropped(&self, _: &Context, _queue: u128, _effect: &[u8]) -> Result<Vec<Self::Event>, Fault> {
        Ok(Vec::new())
    }

    /// The rejection that the log would certainly give to a command now; `None` when the log must decide.
    fn quick_no(&self, now: Now, command: &Self::Command) -> Option<Self::Rejection>;

    /// Answers a query. What is due by now counts for nothing, whether its timer has fired or not.
    ///
    /// # Errors
    /// A rejection such as *not found*.
    fn query(&self, now: Now, query: &Self::Query) -> Result<Answer<Self>, Self::Rejection>;
}

/// A step of what [`Module::reconcile`] does.
#[derive(Debug)]
pub struct Step<E> {
    /// What it leads to.
    pub events: Vec<E>,
    /// Where the next step begins; `None` when there is none.
    pub next: Option<Vec<u8>>,
}

/// What a query of a module finds.
pub type Answer<M> = <<M as Module>::Query as ModuleQuery>::Answer;
