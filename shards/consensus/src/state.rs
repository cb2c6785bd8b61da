//! The rows of a group between openraft, which applies to them, and everybody who reads them.
//!
//! Apply holds the write lock for a few commands at a time, so that readers never wait for a whole entry; what they see
//! is committed at any moment. Freezes happen between entries only. An entry that cannot be applied, and a panic
//! in apply, halt this replica of this group: it answers nothing more, the process and the other groups go on.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use parking_lot::{Mutex, RwLock};
use tidewall_env::tasks;
use tidewall_machine::{Decision, Frozen, Head, Machine, Seen};
use tidewall_store::checkpoint::{CheckpointError, CheckpointWriter, Generation};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::agreement::{self, Ledger};
use crate::come::Come;
use crate::convert::*;
use crate::fail_stop::FailStop;
use crate::types::*;

/// Commands that apply decides before it lets readers in.
const COMMANDS_PER_LOCK: usize = 64;

/// What apply is assumed to take for 1024 bytes of payload before it was measured, ns.
const NANOS_PER_1024_BYTES_INITIAL: u64 = 20_000;
/// Entries smaller than this say nothing about the pace of apply, bytes.
const PACE_BYTES_MIN: usize = 512;

/// The rows of a group, and why it has halted if it has. Clones share them.
#[derive(Clone)]
pub struct StateHandle {
    shared: Arc<Shared>,
}

struct Shared {
    group: u32,
    machine: RwLock<Machine>,
    halted: Mutex<Option<String>>,
    checkpoint_index: AtomicU64,
    /// Payload bytes applied since the last freeze.
    bytes_since_freeze: AtomicU64,
    /// Payload bytes below freezes that are not durable yet.
    bytes_freezing: AtomicU64,
    /// How long apply takes for a byte of payload, ns, as a moving average in 1/1024.
    nanos_per_1024_bytes: AtomicU64,
    /// Digests at agreed indices, of this replica and of the others.
    ledger: Mutex<Ledger>,
    /// Why nothing may be proposed for now.
    suspended: Mutex<Option<String>>,
    /// Incarnations below this were left behind by a forced recovery.
    fence: AtomicU64,
    /// Told when the rows have something to send to other groups.
    sends: tokio::sync::Notify,
    /// Index of the last entry that told anything to whoever watches.
    told: watch::Sender<u64>,
    /// Changes whenever what is to be done outside does.
    effects: watch::Sender<u64>,
    /// How far the rows have come.
    come: Come,
}

impl StateHandle {
    /// Wraps the rows that a group starts from.
    pub fn new(group: u32, machine: Machine) -> Self {
        let checkpoint_index = AtomicU64::new(machine.applied_index());
        let told = watch::Sender::new(machine.told_up_to());
        let come = Come::new(&machine);
        let shared = Shared {
            group,
            machine: RwLock::new(machine),
            halted: Mutex::new(None),
            checkpoint_index,
            bytes_since_freeze: AtomicU64::new(0),
            bytes_freezing: AtomicU64::new(0),
            nanos_per_1024_bytes: AtomicU64::new(NANOS_PER_1024_BYTES_INITIAL),
            ledger: Mutex::default(),
            suspended: Mutex::new(None),
            fence: AtomicU64::new(0),
            sends: tokio::sync::Notify::new(),
            told,
            effects: watch::Sender::new(0),
            come,
        };
        Self { shared: Arc::new(shared) }
    }

    /// Looks at the rows. Keep it short: apply waits.
    pub fn read<T>(&self, look: impl FnOnce(&Machine) -> T) -> T {
        look(&self.shared.machine.read())
    }

    /// Waits until something was put into the rows that is to be sent to other groups. For one waiter at a time.
    pub async fn sends(&self) {
        self.shared.sends.notified().await;
    }

    /// Index of the last entry that told anything to whoever watches, as it changes. It can fall when a region is restored.
    pub fn told(&self) -> watch::Receiver<u64> {
        self.shared.told.subscribe()
    }

    /// Changes whenever what is to be done outside does.
    pub fn effects(&self) -> watch::Receiver<u64> {
        self.shared.effects.subscribe()
    }

    /// Notes how far the feed goes, and what effects there are.
    fn note(&self, told_up_to: u64, effects_changed: u64) {
        self.shared.told.send_if_modified(|told| std::mem::replace(told, told_up_to) != told_up_to);
        self.shared
            .effects
            .send_if_modified(|effects| std::mem::replace(effects, effects_changed) != effects_changed);
    }

    /// How far the rows have come.
    pub fn come(&self) -> &Come {
        &self.shared.come
    }

    /// Why this replica has halted.
    pub fn halted(&self) -> Option<String> {
        self.shared.halted.lock().clone()
    }

    /// Index of the last checkpoint on disk.
    pub fn checkpoint_index(&self) -> u64 {
        self.shared.checkpoint_index.load(Ordering::Relaxed)
    }

    /// Bytes of commands applied since the last checkpoint was begun.
    pub fn bytes_since_freeze(&self) -> u64 {
        self.shared.bytes_since_freeze.load(Ordering::Relaxed)
    }

    /// How long a restart would take to apply again what no durable checkpoint covers, as apply was measured here.
    pub fn replay_time(&self) -> Duration {
        let shared = &self.shared;
        let bytes =
            shared.bytes_since_freeze.load(Ordering::Relaxed) + shared.bytes_freezing.load(Ordering::Relaxed);
        Duration::from_nanos(bytes / 1024 * shared.nanos_per_1024_bytes.load(Ordering::Relaxed))
    }

    /// Digests at agreed indices, of this replica and of the others.
    pub fn ledger(&self) -> parking_lot::MutexGuard<'_, Ledger> {
        self.shared.ledger.lock()
    }

    /// Notes where this replica stands now, so that replicas of an idle group can be compared as well.
    pub fn note_settled(&self) {
        // A group whose apply is busy is not idle, and notes by itself; whoever asks must not wait for it.
        let standing = self.shared.machine.try_read().and_then(|machine| {
            // Who has applied nothing has nothing to compare: index 0 is that of a group's first entry, and a node that
            // joins would be found to differ there from all the others.
            machine.head().applied.map(|_| (machine.incarnation(), machine.settled()))
        });
        if let Some((incarnation, settled)) = standing {
            self.ledger().note(incarnation, settled);
        }
    }

    /// Incarnations below this were left behind by a forced recovery: they are not listened to.
    pub fn fence(&self) -> u64 {
        self.shared.fence.load(Ordering::Relaxed)
    }

    /// Raises the fence; it never falls.
    pub fn raise_fence(&self, fence: u64) {
        self.shared.fence.fetch_max(fence, Ordering::Relaxed);
    }

    /// Why nothing may be proposed for now.
    pub fn suspended(&self) -> Option<String> {
        self.shared.suspended.lock().clone()
    }

    /// Stops or allows proposals. What was proposed before goes on.
    pub fn suspend(&self, why: Option<String>) {
        let mut suspended = self.shared.suspended.lock();
        match (&*suspended, &why) {
            (None, Some(why)) => tracing::error!(group = self.shared.group, %why, "this group stops writing"),
            (Some(_), None) => tracing::info!(group = self.shared.group, "this group writes again"),
            _ => {}
        }
        *suspended = why;
    }

    /// Stops this replica of this group for good: it answers and applies nothing more.
    pub fn quarantine(&self, why: String) {
        let _ = self.halt(why);
    }

    /// Notes the digest at the end of an entry, where replicas compare.
    fn settled(&self) {
        let (incarnation, settled) = self.read(|machine| (machine.incarnation(), machine.settled()));
        if settled.0.is_multiple_of(agreement::EVERY) {
            self.ledger().note(incarnation, settled);
        }
    }

    fn paced(&self, bytes: usize, took: Duration) {
        if bytes < PACE_BYTES_MIN {
            return;
        }
        let measured = took.as_nanos() as u64 * 1024 / bytes as u64;
        let pace = &self.shared.nanos_per_1024_bytes;
        // One task applies: nobody else writes here.
        let old = pace.load(Ordering::Relaxed);
        pace.store((old * 31 + measured) / 32, Ordering::Relaxed);
    }

    /// All rows as they are now, between entries of this replica's apply as far as its lock can tell.
    ///
    /// Called by the state machine's own task only, where no entry is half applied.
    fn freeze_all(&self) -> Frozen {
        self.shared.machine.read().freeze_all()
    }

    fn halt(&self, why: String) -> io::Error {
        tracing::error!(group = self.shared.group, %why, "this replica has halted; the other groups go on");
        let mut halted = self.shared.halted.lock();
        io::Error::other(halted.get_or_insert(why).clone())
    }

    fn apply_commands(&self, id: &LogId, payload: &[u8]) -> Result<Vec<Decision>, io::Error> {
        let began = Instant::now();
        let machine = &self.shared.machine;
        let guarded = |work: &mut dyn FnMut() -> Result<(), tidewall_machine::ApplyError>| match catch_unwind(
            AssertUnwindSafe(work),
        ) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(self.halt(error.to_string())),
            Err(panic) => Err(self.halt(format!("apply panicked at {id}: {}", panic_text(&*panic)))),
        };
        let mut entry = None;
        guarded(&mut || {
            let mut machine = machine.write();
            entry = Some(machine.begin(position(id), payload)?);
            self.shared.come.begin(&machine);
            Ok(())
        })?;
        let Some(entry) = entry else { return Err(self.halt(format!("entry {id} was not begun"))) };
        let mut decisions = Vec::with_capacity(entry.commands.len());
        let mut next = 0;
        while next < entry.commands.len() {
            let end = entry.commands.len().min(next + COMMANDS_PER_LOCK);
            guarded(&mut || {
                let mut machine = machine.write();
                while next < end {
                    decisions.push(machine.command(&entry, next)?);
                    next += 1;
                }
                Ok(())
            })?;
        }
        let (mut replaced, mut sent, mut told_up_to, mut effects) = (None, false, 0, 0);
        let mut ended = Seen::default();
        guarded(&mut || {
            let mut machine = machine.write();
            machine.end();
            ended = self.shared.come.end(&machine);
            (told_up_to, effects) = (machine.told_up_to(), machine.effects_changed());
            (replaced, sent) = (machine.take_replaced(), machine.take_sent());
            Ok(())
        })?;
        self.shared.come.tell(ended);
        self.note(told_up_to, effects);
        if sent {
            self.shared.sends.notify_one();
        }
        if let Some(replaced) = replaced {
            // Freeing many rows takes a while: not on the thread that heartbeats need.
            tasks::drop_off_thread(replaced);
        }
        self.settled();
        self.shared.bytes_since_freeze.fetch_add(payload.len() as u64, Ordering::Relaxed);
        self.paced(payload.len(), began.elapsed());
        Ok(decisions)
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "without a message".to_owned())
}

/// What openraft moves around as a snapshot.
pub enum SnapshotData {
    /// The whole state, frozen, to be sent.
    Frozen(Arc<Frozen>),
    /// A state that was received and verified, to be installed.
    Received(Box<Machine>),
    /// A checkpoint on this node's disk: nothing to move.
    Checkpoint,
}

/// openraft's state machine on a group's rows.
pub struct StateMachine {
    state: StateHandle,
    writer: CheckpointWriter,
    fail_stop: FailStop,
}

impl StateMachine {
    pub fn new(state: StateHandle, writer: CheckpointWriter, fail_stop: FailStop) -> Self {
        Self { state, writer, fail_stop }
    }
}

/// A checkpoint that is being written.
struct Writing {
    done: oneshot::Receiver<Result<Generation, CheckpointError>>,
    /// Bytes of commands that a restart need not apply again once it is durable.
    bytes: u64,
}

/// Queues a freeze. Called by the state machine's own task only, so that checkpoints are written in the order in which
/// they were frozen: a change set behind a newer full state would undo it.
fn queue(state: &StateHandle, writer: &CheckpointWriter, frozen: Frozen) -> Writing {
    let (sender, receiver) = oneshot::channel();
    let bytes = state.shared.bytes_since_freeze.swap(0, Ordering::Relaxed);
    state.shared.bytes_freezing.fetch_add(bytes, Ordering::Relaxed);
    let done = Box::new(move |result| {
        // Nobody waits any more when the group is shutting down.
        let _ = sender.send(result);
    });
    writer.write(state.shared.group, frozen, true, done);
    Writing { done: receiver, bytes }
}

/// Waits until a checkpoint is durable and verified.
async fn stored(
    state: &StateHandle,
    fail_stop: &FailStop,
    writing: Writing,
) -> Result<Generation, io::Error> {
    let failed = |doing| CheckpointError::Failed { doing, what: "the checkpoint thread has stopped".into() };
    match writing.done.await.unwrap_or_else(|_| Err(failed("waiting for a checkpoint"))) {
        Ok(generation) => {
            let index = generation.head.applied.map_or(0, |at| at.index);
            state.shared.checkpoint_index.store(index, Ordering::Relaxed);
            state.shared.bytes_freezing.fetch_sub(writing.bytes, Ordering::Relaxed);
            Ok(generation)
        }
        Err(error) => {
            fail_stop.checkpoint_failed(&error);
            Err(io::Error::other(error.to_string()))
        }
    }
}

/// Waits for one checkpoint.
pub struct CheckpointBuilder {
    state: StateHandle,
    fail_stop: FailStop,
    head: Head,
    writing: Option<Writing>,
}

impl RaftSnapshotBuilder<Types> for CheckpointBuilder {
    type SnapshotData = SnapshotData;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let writing = self.writing.take().ok_or_else(|| io::Error::other("a checkpoint is built once"))?;
        let meta = snapshot_meta(&self.head).map_err(io::Error::other)?;
        stored(&self.state, &self.fail_stop, writing).await?;
        Ok(Snapshot { meta, snapshot: SnapshotData::Checkpoint })
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = CheckpointBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let head = self.state.read(|machine| machine.head().clone());
        let membership = stored_membership(&head).map_err(io::Error::other)?;
        Ok((head.applied.map(from_position), membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<Types>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(item) = entries.next().await {
            let (entry, responder) = item?;
            if let Some(why) = self.state.halted() {
                return Err(io::Error::other(why));
            }
            let id = entry.log_id;
            let decisions = match &entry.payload {
                EntryPayload::Normal(payload) => self.state.apply_commands(&id, &payload.0[1..])?,
                EntryPayload::Blank => self.apply_other(&id, None)?,
                EntryPayload::Membership(membership) => {
                    self.apply_other(&id, Some(encode_stored_membership(&id, membership)))?
                }
            };
            if let Some(responder) = responder {
                responder.send(decisions);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> CheckpointBuilder {
        let frozen = self.state.shared.machine.write().freeze();
        CheckpointBuilder {
            state: self.state.clone(),
            fail_stop: self.fail_stop.clone(),
            head: frozen.head.clone(),
            writing: Some(queue(&self.state, &self.writer, frozen)),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, data: SnapshotData) -> Result<(), io::Error> {
        let SnapshotData::Received(machine) = data else {
            // The state is here already: openraft hands back what it got from `get_current_snapshot`.
            return Ok(());
        };
        // What this node supports may be less than what the sender does.
        let supported = self.state.read(Machine::supported);
        let machine = Box::new((*machine).supporting(supported).map_err(io::Error::other)?);
        let applied = machine.head().applied.map(from_position);
        if applied != meta.last_log_id {
            return Err(io::Error::other("the snapshot is not the one that was announced"));
        }
        // Durable before openraft purges the log up to it.
        let writing = queue(&self.state, &self.writer, machine.freeze_all());
        stored(&self.state, &self.fail_stop, writing).await?;
        let (old, ended) = {
            let mut current = self.state.shared.machine.write();
            let machine = machine.counting_on_from(&current);
            let old = std::mem::replace(&mut *current, machine);
            (old, self.state.shared.come.end(&current))
        };
        self.state.shared.come.tell(ended);
        let (told, effects) = self.state.read(|machine| (machine.told_up_to(), machine.effects_changed()));
        self.state.note(told, effects);
        tracing::info!(group = self.state.shared.group, index = ?applied.map(|id| id.index), "snapshot installed");
        // Freeing a large state takes a while: not on the thread that heartbeats need.
        tasks::drop_off_thread(old);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        let frozen = self.state.freeze_all();
        if frozen.head.applied.is_none() {
            return Ok(None);
        }
        let meta = snapshot_meta(&frozen.head).map_err(io::Error::other)?;
        Ok(Some(Snapshot { meta, snapshot: SnapshotData::Frozen(Arc::new(frozen)) }))
    }
}

impl StateMachine {
    fn apply_other(&self, id: &LogId, membership: Option<Vec<u8>>) -> Result<Vec<Decision>, io::Error> {
        let ended = {
            let mut machine = self.state.shared.machine.write();
            let applied = machine.apply_other(position(id), membership);
            applied.map_err(|error| self.state.halt(error.to_string()))?;
            self.state.shared.come.end(&machine)
        };
        self.state.shared.come.tell(ended);
        self.state.settled();
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tidewall_machine::Position;

    #[test]
    fn a_replica_that_has_applied_nothing_notes_nothing() {
        let state = StateHandle::new(1, Machine::new());
        state.note_settled();
        assert_eq!(state.ledger().tell(), []);
        let first = Position { term: 1, node: 1, index: 0 };
        state.shared.machine.write().apply_other(first, Some(vec![1])).unwrap();
        state.note_settled();
        assert_eq!(state.ledger().tell(), [state.read(Machine::settled)]);
    }

    #[test]
    fn what_a_restart_would_take_follows_what_apply_takes() {
        let state = StateHandle::new(1, Machine::new());
        let shared = &state.shared;
        shared.bytes_since_freeze.store(3 << 10, Ordering::Relaxed);
        shared.bytes_freezing.store(2 << 10, Ordering::Relaxed);
        let initial = state.replay_time();
        assert_eq!(initial, Duration::from_nanos(5 * NANOS_PER_1024_BYTES_INITIAL));
        // What is small says nothing; one measurement says little, many say it.
        state.paced(PACE_BYTES_MIN - 1, Duration::from_secs(9));
        assert_eq!(state.replay_time(), initial);
        let slower = 4 * NANOS_PER_1024_BYTES_INITIAL;
        state.paced(2 << 10, Duration::from_nanos(2 * slower));
        assert!(state.replay_time() > initial && state.replay_time() < 2 * initial);
        for _ in 0..500 {
            state.paced(2 << 10, Duration::from_nanos(2 * slower));
        }
        let (told, right) = (state.replay_time().as_nanos(), u128::from(5 * slower));
        assert!(told.abs_diff(right) < right / 10, "{told} for {right}");
    }
}
