//! A module as everybody but its author knows it: bytes in, bytes out. Nothing here decides or changes rows.

use std::any::Any;
use std::fmt::Debug;

use prost::Message;
use tidewall_messages::{ModuleCommand, ModuleMessage, ModuleQuery, Rejection};

use crate::feed::{Feed, HeardChange};
use crate::outbox::{GroupNo, Outbox, Queues, Room};
use crate::table::{AnyTable, FrozenPage, TableId};
use crate::{Caller, Context, Now};

use super::transaction::{dropped, fire_next, hear, receive, reconcile, transact};
use super::{Fault, Module, Reason as _};

/// Why a module cannot go on with a command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// An invariant would have been broken; everything was taken back.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The bytes are no command of this build. Another build may carry it out, so that passing over it would part the replicas.
    #[error("the command means nothing to this build: {0}")]
    Undecodable(String),
    /// It begins a saga, and there is no room for one more; nothing has changed.
    #[error("too much is under way with group {0}")]
    Full(GroupNo),
}

/// Why bytes are no command of this build.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUnderstood {
    /// They are no command of any build.
    #[error("{0}")]
    Malformed(String),
    /// A later build has what they ask for.
    #[error("it asks for something that this build does not have")]
    Later,
}

/// What a transaction puts out beside its rows.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Output {
    /// For other groups.
    pub outbox: Outbox,
    /// For whoever watches.
    pub feed: Feed,
}

/// What firing a timer came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Fired {
    /// Rows that changed.
    pub rows: usize,
    /// It would have broken an invariant, and was shelved: why.
    pub fault: Option<String>,
    /// What it puts out.
    pub output: Output,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The outcome's bytes, or the rejection.
    pub answer: Result<Vec<u8>, Rejection>,
    /// A copy is to get the same answer: see [`Module::is_remembered`].
    pub remembered: bool,
    /// What it puts out.
    pub output: Output,
}

/// What a step of reconciling came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Reconciled {
    /// What it puts out.
    pub output: Output,
    /// Where the next step begins; `None` when there is none.
    pub next: Option<Vec<u8>>,
    /// It would have broken an invariant.
    pub fault: Option<String>,
}

/// A module as everybody but its author knows it.
pub trait AnyModule: Any + Debug + Send + Sync {
    /// Its number; never reused.
    fn number(&self) -> u8;
    /// Its name, in names of rows.
    fn name(&self) -> &'static str;
    /// The same module without rows.
    fn fresh(&self) -> Box<dyn AnyModule>;
    /// Shows every table.
    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable));
    /// Shows every table, to be changed as a whole.
    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable));
    /// The first apply version under which it may be asked for something.
    fn module_since(&self) -> u32;
    /// The first apply version under which a table may have rows.
    fn table_since(&self, table: TableId) -> u32;
    /// Whether the hot row of this name exists.
    fn has_row(&self, name: &str) -> bool;
    /// Whether bytes are a command of this module; gives the first apply version under which it may be asked for.
    ///
    /// # Errors
    /// [`NotUnderstood`].
    fn understands(&self, payload: &[u8]) -> Result<u32, NotUnderstood>;
    /// Whether bytes are a query of a later build.
    fn is_later_query(&self, payload: &[u8]) -> bool;
    /// Whether bytes are a message to this module; gives the first apply version under which it may be told.
    ///
    /// # Errors
    /// [`NotUnderstood`].
    fn understands_message(&self, payload: &[u8]) -> Result<u32, NotUnderstood>;
    /// Decides a command and changes the rows accordingly, or not at all.
    ///
    /// # Errors
    /// [`ModuleError`]; nothing has changed.
    fn apply(
        &mut self,
        context: &Context,
        caller: Caller<'_>,
        payload: &[u8],
        room: &dyn Room,
    ) -> Result<Applied, ModuleError>;
    /// Takes a message of another group in, as a transaction of its own.
    ///
    /// # Errors
    /// A broken invariant, or bytes that are no message; nothing has changed.
    fn receive(&mut self, context: &Context, from: GroupNo, payload: &[u8]) -> Result<Output, Fault>;
    /// A step of what [`Module::reconcile`] does, as a transaction of its own.
    fn reconcile(&mut self, context: &Context, peer: GroupNo, after: &[u8]) -> Reconciled;
    /// See [`Module::hears`].
    fn hears(&self) -> bool;
    /// Hears what was told in an entry, as a transaction of its own.
    ///
    /// # Errors
    /// A broken invariant; nothing has changed.
    fn hear(
        &mut self,
        context: &Context,
        heard: &[HeardChange],
        queues: &dyn Queues,
    ) -> Result<Output, Fault>;
    /// See [`Module::call`].
    fn call(&self, now: Now, effect: &[u8]) -> Option<Vec<u8>>;
    /// See [`Module::dropped`]; a transaction of its own.
    ///
    /// # Errors
    /// A broken invariant; nothing has changed.
    fn dropped(&mut self, context: &Context, queue: u128, effect: &[u8]) -> Result<Output, Fault>;
    /// Whether what is decided of a command is remembered; also when nobody here knows the command.
    fn is_remembered(&self, payload: &[u8]) -> bool;
    /// Steady time of the earliest timer, milliseconds.
    fn due_ms(&self) -> Option<u64>;
    /// Fires the earliest timer that is due, as a transaction of its own.
    fn fire_next(&mut self, context: &Context) -> Option<Fired>;
    /// The rejection that the log would certainly give now.
    fn quick_no(&self, now: Now, payload: &[u8]) -> Option<Rejection>;
    /// Answers a query: the answer's bytes, or a rejection.
    ///
    /// # Errors
    /// The bytes are no query of this build.
    fn query(&self, now: Now, payload: &[u8]) -> Result<Result<Vec<u8>, Rejection>, String>;
}

impl<M: Module> AnyModule for M {
    fn number(&self) -> u8 {
        M::Command::MODULE
    }

    fn name(&self) -> &'static str {
        M::NAME
    }

    fn fresh(&self) -> Box<dyn AnyModule> {
        Box::<M>::default()
    }

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        Module::tables(self, show);
    }

    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        Module::tables_mut(self, show);
    }

    fn module_since(&self) -> u32 {
        M::SINCE
    }

    fn table_since(&self, table: TableId) -> u32 {
        M::table_since(table)
    }

    fn has_row(&self, name: &str) -> bool {
        Module::has_row(self, name)
    }

    fn understands(&self, payload: &[u8]) -> Result<u32, NotUnderstood> {
        let command = M::Command::decode(payload).map_err(|why| NotUnderstood::Malformed(why.to_string()))?;
        if command.is_known() { Ok(M::since(&command)) } else { Err(NotUnderstood::Later) }
    }

    fn is_later_query(&self, payload: &[u8]) -> bool {
        M::Query::decode(payload).is_ok_and(|query| !query.is_known())
    }

    fn understands_message(&self, payload: &[u8]) -> Result<u32, NotUnderstood> {
        let message = M::Message::decode(payload).map_err(|why| NotUnderstood::Malformed(why.to_string()))?;
        if message.is_known() { Ok(M::message_since(&message)) } else { Err(NotUnderstood::Later) }
    }

    fn apply(
        &mut self,
        context: &Context,
        caller: Caller<'_>,
        payload: &[u8],
        room: &dyn Room,
    ) -> Result<Applied, ModuleError> {
        let command = decode::<M>(payload).map_err(ModuleError::Undecodable)?;
        let (answer, output) = transact(self, context, caller, &command, room)?;
        let answer = answer.map(|outcome| outcome.encode_to_vec()).map_err(|why| why.rejection());
        Ok(Applied { answer, remembered: M::is_remembered(&command), output })
    }

    fn receive(&mut self, context: &Context, from: GroupNo, payload: &[u8]) -> Result<Output, Fault> {
        // The words are kept in rows: they must be our own.
        let message = M::Message::decode(payload).map_err(|_| Fault("the message does not decode".into()))?;
        receive(self, context, from, &message)
    }

    fn reconcile(&mut self, context: &Context, peer: GroupNo, after: &[u8]) -> Reconciled {
        reconcile(self, context, peer, after)
    }

    fn hears(&self) -> bool {
        Module::hears(self)
    }

    fn hear(
        &mut self,
        context: &Context,
        heard: &[HeardChange],
        queues: &dyn Queues,
    ) -> Result<Output, Fault> {
        hear(self, context, heard, queues)
    }

    fn call(&self, now: Now, effect: &[u8]) -> Option<Vec<u8>> {
        Module::call(self, now, effect)
    }

    fn dropped(&mut self, context: &Context, queue: u128, effect: &[u8]) -> Result<Output, Fault> {
        dropped(self, context, queue, effect)
    }

    fn is_remembered(&self, payload: &[u8]) -> bool {
        decode::<M>(payload).map_or(true, |command| M::is_remembered(&command))
    }

    fn due_ms(&self) -> Option<u64> {
        Module::due_ms(self)
    }

    fn fire_next(&mut self, context: &Context) -> Option<Fired> {
        fire_next(self, context)
    }

    fn quick_no(&self, now: Now, payload: &[u8]) -> Option<Rejection> {
        let command = M::Command::decode(payload).ok()?;
        Module::quick_no(self, now, &command).map(|why| why.rejection())
    }

    fn query(&self, now: Now, payload: &[u8]) -> Result<Result<Vec<u8>, Rejection>, String> {
        let query = M::Query::decode(payload).map_err(|why| why.to_string())?;
        let answer = Module::query(self, now, &query);
        Ok(answer.map(|answer| answer.encode_to_vec()).map_err(|why| why.rejection()))
    }
}

fn decode<M: Module>(payload: &[u8]) -> Result<M::Command, String> {
    let command = M::Command::decode(payload).map_err(|why| why.to_string())?;
    if command.is_known() { Ok(command) } else { Err("it asks for nothing that this build has".into()) }
}

/// What is the same for the tables of every module.
impl dyn AnyModule {
    /// Number of rows.
    pub fn rows(&self) -> u64 {
        self.sum(|table| table.len())
    }

    /// Wrapping sum of the hashes of all rows.
    pub fn digest(&self) -> u128 {
        let mut sum = 0u128;
        self.tables(&mut |table| sum = sum.wrapping_add(table.digest()));
        sum
    }

    /// Pages that changed since the last freeze.
    pub fn changed_pages(&self) -> usize {
        self.sum(|table| table.changed_pages() as u64) as usize
    }

    /// Pages that changed since the last freeze.
    pub fn freeze(&mut self, into: &mut Vec<FrozenPage>) {
        self.tables_mut(&mut |table| table.freeze(into));
    }

    /// All pages.
    pub fn freeze_all(&self, into: &mut Vec<FrozenPage>) {
        self.tables(&mut |table| table.freeze_all(into));
    }

    fn sum(&self, of: impl Fn(&dyn AnyTable) -> u64) -> u64 {
        let mut sum = 0;
        self.tables(&mut |table| sum += of(table));
        sum
    }
}
