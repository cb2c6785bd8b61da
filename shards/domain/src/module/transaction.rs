//! One command, message or timer is one transaction: what it changes stands as a whole, or not at all. Builds for tests count the rows
//! that it looks at.

use std::fmt::Debug;

use crate::feed::{Feed, HeardChange, TELLS_CHANGES};
use crate::outbox::{GroupNo, Outbox, Queues, Room};
use tidewall_messages::ModuleCommand;

use crate::{Caller, Context};

use super::{Fault, Fired, Module, ModuleError, Output, ROWS_MAX, Reconciled, Step};

/// What a command of a module led to, and what it puts out.
pub(super) type Transacted<M> = (Result<<M as Module>::Outcome, <M as Module>::Rejection>, Output);

/// Decides a command and makes its changes permanent, or takes all of them back.
///
/// # Errors
/// A broken invariant, or no room. An inner rejection has changed nothing.
pub(super) fn transact<M: Module>(
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
            return Ok((Err(rejection), Output::default()));
        }
    };
    let mut outbox = Outbox::default();
    module.send(&events, &mut outbox);
    if let Some(full) = outbox.begun.iter().find(|peer| !room.admits(**peer)) {
        return Err(ModuleError::Full(*full));
    }
    evolve(module, context, &events)?;
    module.complete(&mut outcome);
    let output = Output { outbox, feed: tell(module, context, &events) };
    commit(module);
    count.end(module, M::rows_max(command), command);
    Ok((Ok(outcome), output))
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
pub(super) fn receive<M: Module>(
    module: &mut M,
    context: &Context,
    from: GroupNo,
    message: &M::Message,
) -> Result<Output, Fault> {
    let count = Count::begin(module);
    let events = Module::receive(module, context, from, message)?;
    let output = change(module, context, &events)?;
    count.end(module, M::MESSAGE_ROWS_MAX, message);
    Ok(output)
}

/// A step of what a module says again to another group.
pub(super) fn reconcile<M: Module>(
    module: &mut M,
    context: &Context,
    peer: GroupNo,
    after: &[u8],
) -> Reconciled {
    let count = Count::begin(module);
    let Step { events, next } = Module::reconcile(module, context, peer, after);
    let changed = change(module, context, &events);
    count.end(module, M::RECONCILE_ROWS_MAX, &"a step of reconciling");
    let (output, fault) = match changed {
        Ok(output) => (output, None),
        Err(fault) => (Output::default(), Some(format!("reconciling with group {peer}: {fault}"))),
    };
    Reconciled { output, next, fault }
}

/// Hears what was told in an entry.
///
/// # Errors
/// A broken invariant.
pub(super) fn hear<M: Module>(
    module: &mut M,
    context: &Context,
    heard: &[HeardChange],
    queues: &dyn Queues,
) -> Result<Output, Fault> {
    let count = Count::begin(module);
    let events = Module::hear(module, context, heard, queues)?;
    let output = change(module, context, &events)?;
    count.end(module, M::HEARD_ROWS_MAX.saturating_mul(heard.len() as u64).min(ROWS_MAX), &"what was told");
    Ok(output)
}

/// An effect was given up and dropped.
///
/// # Errors
/// A broken invariant.
pub(super) fn dropped<M: Module>(
    module: &mut M,
    context: &Context,
    queue: u128,
    effect: &[u8],
) -> Result<Output, Fault> {
    let count = Count::begin(module);
    let events = Module::dropped(module, context, queue, effect)?;
    let output = change(module, context, &events)?;
    count.end(module, M::HEARD_ROWS_MAX, &"an effect that was dropped");
    Ok(output)
}

/// Makes what events change permanent, or takes all of it back.
fn change<M: Module>(module: &mut M, context: &Context, events: &[M::Event]) -> Result<Output, Fault> {
    let mut outbox = Outbox::default();
    module.send(events, &mut outbox);
    evolve(module, context, events)?;
    let feed = tell(module, context, events);
    commit(module);
    Ok(Output { outbox, feed })
}

/// What events tell whoever watches, now that the rows are as they say.
fn tell<M: Module>(module: &M, context: &Context, events: &[M::Event]) -> Feed {
    let mut feed = Feed::of(M::Command::MODULE);
    if context.apply_version >= TELLS_CHANGES {
        module.tell(context, events, &mut feed);
    }
    feed
}

/// Fires the earliest timer that is due, or shelves it: what is wrong with one delays no other.
pub(crate) fn fire_next<M: Module>(module: &mut M, context: &Context) -> Option<Fired> {
    let count = Count::begin(module);
    let timer = module.next_timer(context)?;
    let fired = module.fire(context, timer).and_then(|events| {
        let mut outbox = Outbox::default();
        module.send(&events, &mut outbox);
        evolve(module, context, &events)?;
        Ok(Output { outbox, feed: tell(module, context, &events) })
    });
    if fired.is_err() {
        module.shelve(timer);
    }
    let mut rows = 0;
    Module::tables(module, &mut |table| rows += table.touched_rows());
    commit(module);
    count.end(module, M::TIMER_ROWS_MAX, &"a timer");
    let (output, fault) = match fired {
        Ok(output) => (output, None),
        Err(fault) => (Output::default(), Some(fault.0)),
    };
    Some(Fired { rows, fault, output })
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
