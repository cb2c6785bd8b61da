//! The state machine: entries in, decisions out.
//!
//! [`Machine::begin`] opens an entry, [`Machine::command`] decides its commands one by one, [`Machine::end`] closes it.
//! A reader may look between two commands: every command that was decided belongs to a committed
//! entry. A freeze or a snapshot may only be taken between entries.

mod effects;
mod feed;
mod forget;
mod freeze;
mod import;
mod load;
#[cfg(tidewall_mutants)]
mod mutants;
mod reads;
mod streams;
mod system;

use std::collections::BTreeMap;

use tidewall_domain::codec::Writer;
use tidewall_domain::feed::HeardChange;
use tidewall_domain::module::{AnyModule, Applied, ModuleError, Output};
use tidewall_domain::registry;
use tidewall_domain::table::{AnyTable, FrozenPage, Table};
use tidewall_domain::{Caller, Context};
use tidewall_mutant::{Mutant, active};

use crate::answer::{Answer, Decision, Receipt, RejectReason};
use crate::dedupe::{self, DedupeRow, ShareRow};
use crate::effects::EffectRow;
use crate::entry::{Command, Entry, Op};
use crate::error::ApplyError;
use crate::feed::FeedRow;
use crate::meta::{ImportRow, MetaKey, MetaRow, StagedRow};
use crate::streams::{DeadRow, Message, StreamRow};
use crate::{
    APPLY_VERSION, EXPIRY_AHEAD_MS_MAX, GIVES_IMPORTS_UP, ID_AHEAD_MS_MAX, LOOKS_AT_NO_ID_IN_VAIN,
    REMEMBERED_BYTES_MAX, REMEMBERS_WHAT_IT_MUST, SENDS_MESSAGES, id_time_ms,
};

use streams::StreamRoom;

pub use effects::{DEAD_OF_QUEUE_MAX, DueEffect, QueueState};
pub use feed::{FEED_BYTES_MAX, FEED_MS_MAX, Heard, Told};
pub use import::Replaced;
pub use load::Loader;
pub use streams::{
    DEAD_LETTERS_MAX, DELIVERY_MESSAGES_MAX, OUTBOX_MAX, dead_letter_id, parse_dead_letter_id,
};

/// What the timers change that an entry fires, rows, before no further one is fired; four times its commands if that is more, so
/// that ending keeps up with filling.
const FIRED_MAX: usize = 2_048;
/// Remembered outcomes that an entry forgets or passes over at most; three times its commands if that is more.
const FORGET_MAX: usize = 256;

/// A place in the Raft log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Position {
    /// Raft term.
    pub term: u64,
    /// Node that led that term.
    pub node: u64,
    /// Log index.
    pub index: u64,
}

/// What the machine has applied, beside its rows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Head {
    /// Last applied entry.
    pub applied: Option<Position>,
    /// Hash over the log up to there.
    pub chain: [u8; 32],
    /// Place of the membership in force, and the membership, as the consensus layer encodes it.
    pub membership: Vec<u8>,
}

/// Frozen pages with what belongs to them.
#[derive(Debug)]
pub struct Frozen {
    /// What was applied.
    pub head: Head,
    /// State digest.
    pub digest: u128,
    /// Incarnation of the group.
    pub incarnation: u64,
    /// Apply version of the rows.
    pub apply_version: u32,
    /// All rows.
    pub rows: u64,
    /// The pages are everything there is: what is stored beside them must go.
    pub full: bool,
    /// Pages.
    pub pages: Vec<FrozenPage>,
}

/// The rows of a group and what was applied to them.
#[derive(Debug)]
pub struct Machine {
    head: Head,
    meta: Table<MetaRow>,
    dedupe: Table<DedupeRow>,
    shares: Table<ShareRow>,
    staged: Table<StagedRow>,
    /// Empty under apply version 1.
    imports: Table<ImportRow>,
    /// Empty under apply versions before 6, as the next two.
    streams: Table<StreamRow>,
    /// Messages on their way to other groups.
    outbox: Table<Message>,
    /// What could not be carried out.
    dead: Table<DeadRow>,
    /// What has happened, for a while. Empty under apply versions before 7.
    feed: Table<FeedRow>,
    /// What is to be done outside. Empty under apply versions before 8.
    effects: Table<EffectRow>,
    /// In the order of their numbers.
    modules: Vec<Box<dyn AnyModule>>,
    /// By import, what its staged parts make so far. Derived.
    shadows: BTreeMap<u128, import::Shadow>,
    /// Remembered outcomes take at most about this many bytes. The same in every build: replicas decide alike.
    remembered_bytes_max: u64,
    /// What the last entry has replaced.
    leftover: Replaced,
    /// Highest apply version that this build, or the one that it plays, supports.
    supported: u32,
    /// Nothing of what was stored before is part of the rows any more.
    replaced: bool,
    /// Changes are kept up to about this many bytes. The same in every build.
    feed_bytes_max: u64,
    scratch: Writer,
    /// What was told in the entry that is open.
    telling: Vec<u8>,
    /// How many changes that were.
    told: u32,
    /// Those that modules hear at its end.
    heard: Vec<HeardChange>,
    /// Incarnation and index of the last entry that has made effects, and how many.
    effected: ((u64, u64), u32),
    /// Changes whenever effects do.
    effects_changed: u64,
    /// Incarnation and index of the last entry that has set something aside, and how much.
    buried: ((u64, u64), u32),
    /// Something was sent that nobody has been told of.
    sent: bool,
    /// Index and digest as of the end of the last entry.
    settled: (u64, u128),
    /// Commands taken back because of a broken invariant, since the start.
    faults: u64,
}

impl Default for Machine {
    fn default() -> Self {
        let mut meta = Table::default();
        meta.set(MetaKey, Some(MetaRow::default()));
        meta.commit();
        Self {
            head: Head::default(),
            meta,
            dedupe: Table::default(),
            shares: Table::default(),
            staged: Table::default(),
            imports: Table::default(),
            streams: Table::default(),
            outbox: Table::default(),
            dead: Table::default(),
            feed: Table::default(),
            effects: Table::default(),
            modules: registry::modules(),
            shadows: BTreeMap::new(),
            leftover: Replaced::default(),
            supported: APPLY_VERSION,
            remembered_bytes_max: REMEMBERED_BYTES_MAX,
            replaced: false,
            feed_bytes_max: FEED_BYTES_MAX,
            scratch: Writer::new(),
            telling: Vec::new(),
            told: 0,
            heard: Vec::new(),
            effected: ((0, 0), 0),
            effects_changed: 0,
            buried: ((0, 0), 0),
            sent: false,
            settled: (0, 0),
            faults: 0,
        }
    }
}

impl Machine {
    /// A machine that has applied nothing.
    pub fn new() -> Self {
        Self::default()
    }

    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        show(&mut self.meta);
        show(&mut self.dedupe);
        show(&mut self.shares);
        show(&mut self.staged);
        show(&mut self.imports);
        show(&mut self.streams);
        show(&mut self.outbox);
        show(&mut self.dead);
        show(&mut self.feed);
        show(&mut self.effects);
        for module in &mut self.modules {
            module.tables_mut(show);
        }
    }

    fn check_next(&self, position: Position) -> Result<(), ApplyError> {
        let applied = self.applied_index();
        // openraft numbers its first entry 0: nothing applied and index 0 look alike, both come first.
        let expected = if self.head.applied.is_some() { applied + 1 } else { position.index };
        if position.index != expected {
            return Err(ApplyError::Gap { index: position.index, applied });
        }
        Ok(())
    }

    fn advance(&mut self, position: Position, payload: &[u8]) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.head.chain);
        hasher.update(&position.term.to_be_bytes());
        hasher.update(&position.node.to_be_bytes());
        hasher.update(&position.index.to_be_bytes());
        hasher.update(payload);
        self.head.chain = *hasher.finalize().as_bytes();
        self.head.applied = Some(position);
    }

    /// Applies an entry that carries no commands: a blank one, or a new membership in the consensus layer's form.
    pub fn apply_other(&mut self, position: Position, membership: Option<Vec<u8>>) -> Result<(), ApplyError> {
        self.check_next(position)?;
        self.advance(position, membership.as_deref().unwrap_or_default());
        if let Some(membership) = membership {
            self.head.membership = membership;
        }
        self.end();
        Ok(())
    }

    /// Begins a new incarnation of the group after a forced recovery, at a place in the log that no entry has.
    pub fn begin_incarnation(&mut self, position: Position, membership: Vec<u8>, incarnation: u64) {
        self.advance(position, &membership);
        self.head.membership = membership;
        let mut row = self.row();
        row.incarnation = row.incarnation.max(incarnation);
        self.meta.set(MetaKey, Some(row));
        self.meta.commit();
        self.begin_feed();
        self.end();
    }

    /// Opens an entry: advances the chain and log time, ends due holds, forgets old outcomes. An entry that cannot be
    /// opened changes nothing.
    ///
    /// # Errors
    /// Every [`ApplyError`] halts the replica.
    pub fn begin(&mut self, position: Position, payload: &[u8]) -> Result<Entry, ApplyError> {
        self.check_next(position)?;
        let entry = Entry::decode(payload)
            .map_err(|source| ApplyError::Undecodable { index: position.index, source })?;
        #[cfg(tidewall_mutants)]
        let entry = mutants::entry(entry);
        if let Some(version) = entry.raises_to().filter(|version| *version > self.supported) {
            return Err(ApplyError::TooNew { index: position.index, version, supported: self.supported });
        }
        self.leftover = Replaced::default();
        self.advance(position, payload);
        let mut row = self.row();
        row.time = row.time.at(entry.stamp);
        self.forget(&mut row, FORGET_MAX.max(3 * entry.commands.len()));
        self.meta.set(MetaKey, Some(row));
        self.meta.commit();
        self.dedupe.commit();
        self.shares.commit();
        if row.apply_version >= GIVES_IMPORTS_UP {
            self.give_imports_up(row.time.steady_ms);
        }
        let context = context(&row, position);
        self.fire_timers(&context, FIRED_MAX.max(4 * entry.commands.len()));
        if row.apply_version >= SENDS_MESSAGES {
            self.reconcile(&context);
        }
        self.give_effects_up(&context);
        Ok(entry)
    }

    /// Fires what is due, each timer as a transaction of its own: what is wrong with one delays no other. The modules take turns.
    fn fire_timers(&mut self, context: &Context, most: usize) {
        let mut changed = 0;
        let mut fired = true;
        while std::mem::take(&mut fired) {
            for at in 0..self.modules.len() {
                if changed >= most {
                    return;
                }
                let module = &mut self.modules[at];
                let number = module.number();
                if let Some(timer) = module.fire_next(context) {
                    fired = true;
                    changed += timer.rows.max(1);
                    let mut output = timer.output;
                    if active(Mutant::TimerNotTold) {
                        output.feed = Default::default();
                    }
                    self.put_out(context, number, output);
                    if let Some(fault) = timer.fault {
                        self.faults += 1;
                        self.notice(context, number, fault, DEAD_LETTERS_MAX);
                    }
                }
            }
        }
    }

    /// Decides command `at` of the entry that was begun last.
    ///
    /// # Panics
    /// When `at` is not a position of the entry.
    pub fn command(&mut self, entry: &Entry, at: usize) -> Result<Decision, ApplyError> {
        let command = &entry.commands[at];
        let position = self.head.applied.unwrap_or_default();
        let mut row = self.row();
        if let Op::System(op) = &command.op {
            return Ok(self.system(op, row, &Context { position: at as u32, ..context(&row, position) }));
        }
        if let Some(known) = dedupe::find(&self.dedupe, &command.principal, command.request_id)
            && !active(Mutant::ReplayAppliedTwice)
        {
            return if answers(known, command) {
                known.decision().map_err(ApplyError::Remembered)
            } else {
                Ok(Decision::passing(RejectReason::IdReused))
            };
        }
        if let Some(refused) = self.refused(command, &row) {
            return Ok(Decision::passing(refused));
        }
        let (answer, remembered) = match &command.op {
            Op::Module { module, payload } => {
                let context = Context {
                    request_id: command.request_id,
                    position: at as u32,
                    ..context(&row, position)
                };
                self.decide(&context, command.caller(), *module, payload)?
            }
            Op::Seal => (Answer::Rejected(RejectReason::Sealed), !active(Mutant::SealForgotten)),
            // Carried out above.
            Op::System(_) => (Answer::System, false),
        };
        if let Answer::Rejected(full @ RejectReason::Full(_)) = answer {
            return Ok(Decision::passing(full));
        }
        let receipt = Receipt {
            incarnation: row.incarnation,
            term: position.term,
            index: position.index,
            position: at as u32,
            chain: u64::from_be_bytes(first_8(&self.head.chain)),
            decided_ms: row.time.log_ms(),
        };
        if !remembered && row.apply_version >= REMEMBERS_WHAT_IT_MUST {
            return Ok(Decision { receipt: Some(receipt), answer, replayed: false });
        }
        self.scratch.clear();
        answer.encode(&mut self.scratch);
        let remembered = DedupeRow {
            principal: command.principal.as_str().into(),
            request_id: command.request_id,
            fingerprint: guard(command),
            receipt,
            steady_ms: row.time.steady_ms,
            answer: self.scratch.as_slice().into(),
        };
        row.dedupe_bytes += remembered.cost();
        self.dedupe.set(row.dedupe_next, Some(remembered));
        self.dedupe.commit();
        row.dedupe_next += 1;
        row.latest_id_ms = row.latest_id_ms.max(id_time_ms(command.request_id));
        self.meta.set(MetaKey, Some(row));
        self.meta.commit();
        Ok(Decision { receipt: Some(receipt), answer, replayed: false })
    }

    /// Why a command goes to no module: it comes too late, or its id says nothing about copies of it. The id of what is not remembered
    /// need not.
    fn refused(&self, command: &Command, row: &MetaRow) -> Option<RejectReason> {
        let (now_ms, id_ms) = (row.time.log_ms(), id_time_ms(command.request_id));
        let is_remembered = || {
            let Op::Module { module, payload } = &command.op else { return true };
            let module = self.module(*module);
            row.apply_version < LOOKS_AT_NO_ID_IN_VAIN
                || module.is_none_or(|module| module.is_remembered(payload))
        };
        if command.expires_ms < now_ms {
            Some(RejectReason::Expired)
        } else if command.expires_ms > now_ms.saturating_add(EXPIRY_AHEAD_MS_MAX) {
            Some(RejectReason::ExpiresTooLate { ahead_ms: command.expires_ms - now_ms })
        } else if self.forgotten(&command.principal, command.request_id) && is_remembered() {
            Some(RejectReason::IdForgotten)
        } else if id_ms > now_ms.saturating_add(ID_AHEAD_MS_MAX) && is_remembered() {
            Some(RejectReason::IdFromFuture)
        } else {
            None
        }
    }

    /// Has a module decide a command; says also whether that is remembered.
    fn decide(
        &mut self,
        context: &Context,
        caller: Caller<'_>,
        number: u8,
        payload: &[u8],
    ) -> Result<(Answer, bool), ApplyError> {
        let unknown = |why| ApplyError::UnknownCommand {
            index: context.index,
            position: context.position,
            module: number,
            why,
        };
        let module = self.modules.iter_mut().find(|module| module.number() == number);
        let module = module.ok_or_else(|| unknown(no_module(number)))?;
        let room = StreamRoom { streams: &self.streams, dead: &self.dead };
        match module.apply(context, caller, payload, &room) {
            Ok(Applied { answer: Ok(outcome), remembered, output }) => {
                self.put_out(context, number, output);
                Ok((Answer::Done { module: number, outcome }, remembered))
            }
            Ok(Applied { answer: Err(rejection), remembered, .. }) => {
                Ok((Answer::Rejected(RejectReason::Module(rejection)), remembered))
            }
            Err(ModuleError::Full(group)) => Ok((Answer::Rejected(RejectReason::Full(group)), false)),
            Err(ModuleError::Fault(fault)) => {
                self.faults += 1;
                Ok((Answer::Rejected(RejectReason::InternalInvariant(fault.0)), true))
            }
            Err(ModuleError::Undecodable(why)) => Err(unknown(why)),
        }
    }

    /// Takes what a transaction of a module puts out.
    fn put_out(&mut self, context: &Context, module: u8, output: Output) {
        self.transmit(context, module, output.outbox);
        self.tell(output.feed);
    }

    /// Applies a whole entry: [`Machine::begin`] and then every command in order.
    pub fn apply(&mut self, position: Position, payload: &[u8]) -> Result<Vec<Decision>, ApplyError> {
        let entry = self.begin(position, payload)?;
        let decisions = (0..entry.commands.len()).map(|at| self.command(&entry, at)).collect();
        self.end();
        decisions
    }

    /// Closes the entry that was begun last, after its last command.
    pub fn end(&mut self) {
        self.hear();
        self.close_feed();
        self.settle();
    }

    /// Notes where the rows stand between entries.
    fn settle(&mut self) {
        self.settled = (self.applied_index(), self.digest());
    }
}

/// What the modules are told of an entry.
fn context(row: &MetaRow, position: Position) -> Context {
    Context {
        now_ms: row.time.log_ms(),
        steady_ms: row.time.steady_ms,
        incarnation: row.incarnation,
        request_id: 0,
        index: position.index,
        position: 0,
        apply_version: row.apply_version,
    }
}

/// Whether what is remembered is the answer to this command: it was the same, or either of them is a seal.
fn answers(known: &DedupeRow, command: &Command) -> bool {
    known.is_seal() || command.op == Op::Seal || known.fingerprint == guard(command)
}

/// What guards the request id of a command against other content.
fn guard(command: &Command) -> u64 {
    match &command.op {
        Op::Module { payload, .. } if active(Mutant::IdGuardedByPayload) => crate::hash_64(payload),
        _ => command.fingerprint,
    }
}

fn no_module(number: u8) -> String {
    format!("this build has no module {number}")
}

fn first_8(bytes: &[u8; 32]) -> [u8; 8] {
    let mut first = [0; 8];
    first.copy_from_slice(&bytes[..8]);
    first
}
