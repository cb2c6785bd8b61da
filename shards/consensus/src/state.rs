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
use tidewall_machine::{Decision, Frozen, GroupTime, Head, Machine, Seen, Stamp};
use tidewall_mutant::{Mutant, active};
use tidewall_store::checkpoint::{CheckpointError, CheckpointWriter, Generation};
use tidewall_store::log::LogError;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::agreement::{self, Ledger};
use crate::convert::*;
use crate::types::*;

/// Commands that apply decides before it lets readers in.
const COMMANDS_PER_LOCK: usize = 64;

/// What apply is assumed to take for 1024 bytes of payload before it was measured, ns.
const NANOS_PER_1024_BYTES_INITIAL: u64 = 20_000;
/// Entries smaller than this say nothing about the pace of apply, bytes.
const PACE_BYTES_MIN: usize = 512;

/// What is wrong under a node that must end, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StorageFault {
    /// The disk answered with an error: what it holds is unknown until it was checked and read anew.
    Disk(String),
    /// What was read back is not what had been written, or not the last of it: nothing in it can be trusted, however often it
    /// is read.
    Damage(String),
    /// Another process runs on the same data, or on a copy of them.
    InUse(String),
}

impl std::fmt::Display for StorageFault {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Disk(what) => write!(formatter, "storage has failed: {what}"),
            Self::Damage(what) => write!(formatter, "the data cannot be used: {what}"),
            Self::InUse(what) => formatter.write_str(what),
        }
    }
}

/// What to do when storage has failed under the whole node: the process ends with a code of its own. The first
/// report counts.
#[derive(Clone)]
pub struct FailStop {
    report: Arc<dyn Fn(StorageFault) + Send + Sync>,
}

impl FailStop {
    /// Calls `report` with what has failed.
    pub fn new(report: impl Fn(StorageFault) + Send + Sync + 'static) -> Self {
        Self { report: Arc::new(report) }
    }

    /// Reports what is wrong from outside of log and checkpoints.
    pub fn report(&self, fault: StorageFault) {
        (self.report)(fault);
    }

    pub(crate) fn log_failed(&self, error: &LogError) {
        match error {
            // A log that was closed is a node that is stopping.
            LogError::Closed => {}
            LogError::Corrupt { .. } => (self.report)(StorageFault::Damage(error.to_string())),
            _ => (self.report)(StorageFault::Disk(error.to_string())),
        }
    }

    fn checkpoint_failed(&self, error: &CheckpointError) {
        (self.report)(match error {
            CheckpointError::Failed { .. } => StorageFault::Disk(error.to_string()),
            _ => StorageFault::Damage(error.to_string()),
        });
    }
}

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
    /// How far the rows have come with the entry that is being applied, and the group's time then.
    begun: Mutex<(Seen, GroupTime)>,
    /// How far the rows have come, to the end of an entry.
    come: watch::Sender<Seen>,
}

/// How far rows have come, with the entry that is being applied.
fn begun(machine: &Machine) -> (Seen, GroupTime) {
    let (incarnation, index) = (machine.incarnation(), machine.applied_index());
    (Seen { incarnation, index, steady_ms: 0 }, machine.time())
}

/// How far rows have come between two entries. The time is theirs who look.
fn come(machine: &Machine) -> Seen {
    Seen { incarnation: machine.incarnation(), index: machine.settled().0, steady_ms: 0 }
}

impl StateHandle {
    /// Wraps the rows that a group starts from.
    pub fn new(group: u32, machine: Machine) -> Self {
        let checkpoint_index = AtomicU64::new(machine.applied_index());
        let told = watch::Sender::new(machine.told_up_to());
        let begun = Mutex::new(begun(&machine));
        let come = watch::Sender::new(come(&machine));
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
            begun,
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

    /// How far whoever has looked at the rows before this call, when the clock showed `stamp`, can have seen them. Waits for nobody.
    pub fn seen(&self, stamp: Stamp) -> Seen {
        let (seen, time) = *self.shared.begun.lock();
        Seen { steady_ms: time.at(stamp).steady_ms, ..seen }
    }

    /// Whether the rows show no less than what was seen. An entry that is half applied does not count.
    pub fn has(&self, seen: Seen) -> bool {
        active(Mutant::StandbyReadsBehind) || seen.is_within(self.come())
    }

    /// Waits until the rows show no less than what was seen.
    pub async fn wait_for(&self, seen: Seen) {
        let mut come = self.shared.come.subscribe();
        // Whoever waits holds the sender.
        let _ = come.wait_for(|come| seen.is_within(*come)).await;
    }

    /// Notes that something of an entry is in the rows. Called before anybody can see it.
    fn note_begun(&self, machine: &Machine) {
        *self.shared.begun.lock() = begun(machine);
    }

    /// Notes that an entry has ended. Called before anybody can see the next one; what is returned is to be told to those who
    /// wait, when the rows are free.
    #[must_use]
    fn note_ended(&self, machine: &Machine) -> Seen {
        self.note_begun(machine);
        come(machine)
    }

    /// Tells those who wait how far the rows have come.
    fn tell_come(&self, come: Seen) {
        self.shared.come.send_replace(come);
    }

    /// How far the rows have come, to the end of an entry. The time is theirs who look.
    pub fn come(&self) -> Seen {
        *self.shared.come.borrow()
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
            self.note_begun(&machine);
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
        let mut come = Seen::default();
        guarded(&mut || {
            let mut machine = machine.write();
            machine.end();
            come = self.note_ended(&machine);
            (told_up_to, effects) = (machine.told_up_to(), machine.effects_changed());
            (replaced, sent) = (machine.take_replaced(), machine.take_sent());
            Ok(())
        })?;
        self.tell_come(come);
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
        let (old, come) = {
            let mut current = self.state.shared.machine.write();
            let machine = machine.counting_on_from(&current);
            let old = std::mem::replace(&mut *current, machine);
            (old, self.state.note_ended(&current))
        };
        self.state.tell_come(come);
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
        let come = {
            let mut machine = self.state.shared.machine.write();
            let applied = machine.apply_other(position(id), membership);
            applied.map_err(|error| self.state.halt(error.to_string()))?;
            self.state.note_ended(&machine)
        };
        self.state.tell_come(come);
        self.state.settled();
        Ok(Vec::new())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tidewall_machine::{Entry, Position};

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

    #[tokio::test(start_paused = true)]
    async fn an_entry_that_is_half_applied_was_seen_and_is_not_there() {
        let state = StateHandle::new(1, Machine::new());
        let first = Position { term: 1, node: 1, index: 0 };
        state.shared.machine.write().apply_other(first, Some(vec![1])).unwrap();
        state.tell_come(state.note_ended(&state.shared.machine.read()));
        let now = || state.seen(Stamp::confirmed(1_000));
        let seen = |index| Seen { index, ..now() };
        assert!(state.has(now()) && now().index == 0 && !state.has(seen(1)));
        let payload = Payload::new(&Entry { stamp: Stamp::confirmed(1_000), commands: Vec::new() });
        {
            let mut machine = state.shared.machine.write();
            machine.begin(Position { index: 1, ..first }, &payload.0[1..]).unwrap();
            state.note_begun(&machine);
        }
        assert_eq!((now().index, now().steady_ms), (1, 1_000), "whoever looks now may see a part of it");
        assert!(!state.has(seen(1)), "and nobody else is shown that part as the whole");
        let waits = tokio::time::timeout(Duration::from_secs(1), state.wait_for(seen(1)));
        assert!(waits.await.is_err());
        let waits = tokio::spawn({
            let (state, seen) = (state.clone(), seen(1));
            async move { state.wait_for(seen).await }
        });
        tokio::task::yield_now().await;
        {
            let mut machine = state.shared.machine.write();
            machine.end();
            state.tell_come(state.note_ended(&machine));
        }
        waits.await.unwrap();
        assert!(state.has(seen(1)));
        // What was seen of a later incarnation is not here, whatever its index; of an earlier one, everything is.
        let here = now().incarnation;
        assert!(!state.has(Seen { incarnation: here + 1, ..seen(0) }));
        assert!(here == 0 || state.has(Seen { incarnation: here - 1, ..seen(9) }));
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

    #[test]
    fn damage_is_told_from_a_failing_disk() {
        let faults = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&faults);
        let stop = FailStop::new(move |fault| seen.lock().push(fault));
        let what = String::new;
        stop.log_failed(&LogError::Closed);
        stop.log_failed(&LogError::Corrupt { segment: 1, offset: 2, what: what(), advice: "" });
        stop.log_failed(&LogError::DiskFull { operation: what() });
        stop.checkpoint_failed(&CheckpointError::Failed { doing: "syncing", what: what() });
        stop.checkpoint_failed(&CheckpointError::Corrupt { doing: "verifying", what: what() });
        stop.checkpoint_failed(&CheckpointError::Damaged { group: 1, what: what() });
        let damage = |fault: &StorageFault| matches!(fault, StorageFault::Damage(_));
        assert_eq!(faults.lock().iter().map(damage).collect::<Vec<_>>(), [true, false, false, true, true]);
    }
}
