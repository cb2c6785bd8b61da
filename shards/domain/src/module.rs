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

use std::any::Any;
use std::fmt::Debug;

use prost::Message;
use tidewall_messages::{ModuleCommand, ModuleMessage, ModuleQuery, Rejection};

use crate::outbox::{GroupNo, Outbox, Room};
use crate::table::{AnyTable, FrozenPage, TableId};
use crate::{Caller, Context, Now};

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

/// What firing a timer came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fired {
    /// Rows that changed.
    pub rows: usize,
    /// It would have broken an invariant, and was shelved: why.
    pub fault: Option<String>,
    /// What it sends.
    pub outbox: Outbox,
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// The outcome's bytes, or the rejection.
    pub answer: Result<Vec<u8>, Rejection>,
    /// A copy is to get the same answer: see [`Module::is_remembered`].
    pub remembered: bool,
    /// What it sends.
    pub outbox: Outbox,
}

/// What a step of reconciling came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reconciled {
    /// What it sends.
    pub outbox: Outbox,
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
    fn receive(&mut self, context: &Context, from: GroupNo, payload: &[u8]) -> Result<Outbox, Fault>;
    /// A step of what [`Module::reconcile`] does, as a transaction of its own.
    fn reconcile(&mut self, context: &Context, peer: GroupNo, after: &[u8]) -> Reconciled;
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
        let (answer, outbox) = transact(self, context, caller, &command, room)?;
        let answer = answer.map(|outcome| outcome.encode_to_vec()).map_err(|why| why.rejection());
        Ok(Applied { answer, remembered: M::is_remembered(&command), outbox })
    }

    fn receive(&mut self, context: &Context, from: GroupNo, payload: &[u8]) -> Result<Outbox, Fault> {
        // The words are kept in rows: they must be our own.
        let message = M::Message::decode(payload).map_err(|_| Fault("the message does not decode".into()))?;
        receive(self, context, from, &message)
    }

    fn reconcile(&mut self, context: &Context, peer: GroupNo, after: &[u8]) -> Reconciled {
        let count = Count::begin(self);
        let Step { events, next } = Module::reconcile(self, context, peer, after);
        let changed = change(self, context, &events);
        count.end(self, M::RECONCILE_ROWS_MAX, &"a step of reconciling");
        let (outbox, fault) = match changed {
            Ok(outbox) => (outbox, None),
            Err(fault) => (Outbox::default(), Some(format!("reconciling with group {peer}: {fault}"))),
        };
        Reconciled { outbox, next, fault }
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

/// What a command of a module led to, and what it sends.
type Transacted<M> = (Result<<M as Module>::Outcome, <M as Module>::Rejection>, Outbox);

/// Decides a command and makes its changes permanent, or takes all of them back.
///
/// # Errors
/// A broken invariant, or no room. An inner rejection has changed nothing.
fn transact<M: Module>(
    module: &mut M,
    context: &Context,
    caller: Caller<'_>,
    command: &M::Command,
    room: &dyn Room,
) -> Result<Transacted<M>, ModuleError> {
    let count = Count::begin(module);
    let (events, mut outcome) = match module.decide(context, caller, command) {
        Ok(decision) => decision,
        Err(rejection) => {
            count.end(module, M::rows_max(command), command);
            return Ok((Err(rejection), Outbox::default()));
        }
    };
    let mut outbox = Outbox::default();
    module.send(&events, &mut outbox);
    if let Some(full) = outbox.begun.iter().find(|peer| !room.admits(**peer)) {
        return Err(ModuleError::Full(*full));
    }
    evolve(module, context, &events)?;
    module.complete(&mut outcome);
    commit(module);
    count.end(module, M::rows_max(command), command);
    Ok((Ok(outcome), outbox))
}

/// What a command leads to where there is room for everything.
///
/// # Errors
/// A broken invariant.
#[cfg(test)]
pub(crate) fn apply<M: Module>(
    module: &mut M,
    context: &Context,
    caller: Caller<'_>,
    command: &M::Command,
) -> Result<Result<M::Outcome, M::Rejection>, Fault> {
    match transact(module, context, caller, command, &crate::outbox::Unlimited) {
        Ok((answer, _)) => Ok(answer),
        Err(ModuleError::Fault(fault)) => Err(fault),
        Err(other) => panic!("{other}"),
    }
}

/// Takes a message in, and makes what it leads to permanent, or takes all of it back.
///
/// # Errors
/// A broken invariant.
pub fn receive<M: Module>(
    module: &mut M,
    context: &Context,
    from: GroupNo,
    message: &M::Message,
) -> Result<Outbox, Fault> {
    let count = Count::begin(module);
    let events = Module::receive(module, context, from, message)?;
    let outbox = change(module, context, &events)?;
    count.end(module, M::MESSAGE_ROWS_MAX, message);
    Ok(outbox)
}

/// Makes what events change permanent, or takes all of it back.
fn change<M: Module>(module: &mut M, context: &Context, events: &[M::Event]) -> Result<Outbox, Fault> {
    let mut outbox = Outbox::default();
    module.send(events, &mut outbox);
    evolve(module, context, events)?;
    commit(module);
    Ok(outbox)
}

/// Fires the earliest timer that is due, or shelves it: what is wrong with one delays no other.
pub fn fire_next<M: Module>(module: &mut M, context: &Context) -> Option<Fired> {
    let count = Count::begin(module);
    let timer = module.next_timer(context)?;
    let mut outbox = Outbox::default();
    let fired = module.fire(context, timer).and_then(|events| {
        module.send(&events, &mut outbox);
        evolve(module, context, &events)
    });
    if fired.is_err() {
        module.shelve(timer);
        outbox = Outbox::default();
    }
    let mut rows = 0;
    Module::tables(module, &mut |table| rows += table.touched_rows());
    commit(module);
    count.end(module, M::TIMER_ROWS_MAX, &"a timer");
    let fault = fired.err().map(|fault| fault.0);
    Some(Fired { rows, fault, outbox })
}

/// Counts the rows that a command looks at, in builds for tests.
struct Count {
    #[cfg(any(test, tidewall_mutants))]
    before: u64,
}

impl Count {
    #[cfg(any(test, tidewall_mutants))]
    fn begin<M: Module>(module: &M) -> Self {
        Self { before: looked_at(module) }
    }

    #[cfg(not(any(test, tidewall_mutants)))]
    fn begin<M: Module>(_: &M) -> Self {
        Self {}
    }

    /// Panics where a command looked at more rows than its module promises.
    #[cfg(any(test, tidewall_mutants))]
    fn end<M: Module>(self, module: &M, rows_max: u64, what: &dyn Debug) {
        let rows = looked_at(module) - self.before;
        assert!(
            rows_max <= ROWS_MAX,
            "{}: {rows_max} rows are promised for {what:?}, {ROWS_MAX} may be",
            M::NAME
        );
        assert!(rows <= rows_max, "{}: {what:?} looks at {rows} rows, {rows_max} are promised", M::NAME);
    }

    #[cfg(not(any(test, tidewall_mutants)))]
    fn end<M: Module>(self, _: &M, _: u64, _: &dyn Debug) {}
}

/// How many rows were looked at or changed so far.
#[cfg(any(test, tidewall_mutants))]
pub(crate) fn looked_at<M: Module>(module: &M) -> u64 {
    let mut looked_at = 0;
    Module::tables(module, &mut |table| looked_at += table.looked_at());
    looked_at
}

/// Turns events into rows that keep the invariants, or into none.
fn evolve<M: Module>(module: &mut M, context: &Context, events: &[M::Event]) -> Result<(), Fault> {
    let evolved = events.iter().try_for_each(|event| module.evolve(context, event));
    let kept = evolved.and_then(|()| module.check(context, events));
    if kept.is_err() {
        Module::tables_mut(module, &mut |table| table.rollback());
    }
    kept
}

fn commit<M: Module>(module: &mut M) {
    Module::tables_mut(module, &mut |table| table.commit());
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
