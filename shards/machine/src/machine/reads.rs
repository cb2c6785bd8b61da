//! Looks at a machine: its rows and times, what it remembers, and answers to queries. **Never here:** anything that changes it.

use std::any::Any;

use tidewall_domain::Now;
use tidewall_domain::module::{AnyModule, Module};
use tidewall_domain::table::{AnyTable, module_of};
use tidewall_messages::{Rejection, Seen};
use tidewall_mutant::{Mutant, active};

use super::{Head, Machine, answers, no_module};
use crate::answer::{Decision, RejectReason};
use crate::dedupe;
use crate::entry::{Command, Op};
use crate::id_time_ms;
use crate::meta::{MetaKey, MetaRow};
use crate::time::{AsOf, GroupTime, LEAP_MS_MIN, Stamp};

impl Machine {
    /// What was applied.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Index of the last applied entry; 0 when there is none.
    pub fn applied_index(&self) -> u64 {
        self.head.applied.map_or(0, |position| position.index)
    }

    /// The module of this number.
    pub fn module(&self, number: u8) -> Option<&dyn AnyModule> {
        self.modules.iter().find(|module| module.number() == number).map(|module| &**module)
    }

    /// The rows of a module, by its type: for tests and tools that know it.
    pub fn rows_of<M: Module>(&self) -> Option<&M> {
        self.modules.iter().find_map(|module| (&**module as &dyn Any).downcast_ref())
    }

    /// The rejection that a module would certainly give to a command when the clock shows `stamp`: linearizable when this node's
    /// lead was confirmed before. Carries no receipt and is not remembered.
    pub fn quick_no(&self, command: &Command, stamp: Stamp) -> Option<Decision> {
        let Op::Module { module, payload } = &command.op else { return None };
        // What log and timers would make of the time now.
        let now = self.now(stamp);
        // What the log would answer otherwise is the log's: a forgotten id, a late copy.
        if command.expires_ms < now.log_ms || self.forgotten(&command.principal, command.request_id) {
            return None;
        }
        let rejection = self.module(*module)?.quick_no(now, payload)?;
        Some(Decision::passing(RejectReason::Module(rejection)))
    }

    /// Answers a query of a module, as of a time: the answer's bytes, or a rejection.
    ///
    /// # Errors
    /// No such module, or no such query.
    pub fn query(
        &self,
        module: u8,
        payload: &[u8],
        as_of: AsOf,
    ) -> Result<Result<Vec<u8>, Rejection>, String> {
        let known = self.module(module).ok_or_else(|| no_module(module))?;
        known.query(self.time_of(as_of), payload)
    }

    /// How far whoever looks now sees the rows, the entry that is being applied included.
    pub fn seen(&self, as_of: AsOf) -> Seen {
        let steady_ms = self.time_of(as_of).steady_ms;
        Seen { incarnation: self.incarnation(), index: self.applied_index(), steady_ms }
    }

    /// Whether it is known what time it is: nothing that was seen, and no clock that nobody confirms, is far ahead of it. Only who
    /// leads makes the time whatever its clock shows.
    pub fn knows_time(&self, AsOf { stamp, seen }: AsOf) -> bool {
        let time = self.time().at(stamp);
        let seen_ms = if seen.incarnation == self.incarnation() { seen.steady_ms } else { 0 };
        !time.is_leap_unconfirmed() && seen_ms.saturating_sub(time.steady_ms) <= LEAP_MS_MIN
    }

    /// The time as of which is looked.
    fn time_of(&self, AsOf { stamp, seen }: AsOf) -> Now {
        let now = self.now(stamp);
        // Another incarnation has a time of its own. What is far ahead was seen nowhere.
        let behind_ms = match seen.incarnation == self.incarnation() && !active(Mutant::TimeSeenForgotten) {
            true => seen.steady_ms.saturating_sub(now.steady_ms),
            false => 0,
        };
        if behind_ms > LEAP_MS_MIN {
            return now;
        }
        Now {
            log_ms: now.log_ms.saturating_add(behind_ms),
            steady_ms: now.steady_ms.saturating_add(behind_ms),
        }
    }

    pub(super) fn now(&self, stamp: Stamp) -> Now {
        let time = self.time().at(stamp);
        Now { log_ms: time.log_ms(), steady_ms: time.steady_ms }
    }

    /// What every table of the group, its own and its modules', says.
    pub(super) fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        show(&self.meta);
        show(&self.dedupe);
        show(&self.shares);
        show(&self.staged);
        show(&self.imports);
        show(&self.streams);
        show(&self.outbox);
        show(&self.dead);
        show(&self.feed);
        show(&self.effects);
        for module in &self.modules {
            module.tables(show);
        }
    }

    /// Log time, Unix milliseconds.
    pub fn log_time_ms(&self) -> u64 {
        self.row().time.log_ms()
    }

    /// Where the group's time stands.
    pub fn time(&self) -> GroupTime {
        self.row().time
    }

    /// Incarnation of the group.
    pub fn incarnation(&self) -> u64 {
        self.row().incarnation
    }

    /// Apply version of the rows.
    pub fn apply_version(&self) -> u32 {
        self.row().apply_version
    }

    /// Commands taken back because of a broken invariant, since the start of the process: an alarm when not 0.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// State digest: wrapping sum of the hashes of all rows.
    pub fn digest(&self) -> u128 {
        let mut sum = 0u128;
        self.tables(&mut |table| {
            if module_of(table.id()) == 0 || !active(Mutant::DigestMissesModules) {
                sum = sum.wrapping_add(table.digest());
            }
        });
        sum
    }

    /// Number of rows.
    pub fn rows(&self) -> u64 {
        let mut rows = 0;
        self.tables(&mut |table| rows += table.len());
        rows
    }

    /// Pages that changed since the last freeze.
    pub fn changed_pages(&self) -> usize {
        let mut pages = 0;
        self.tables(&mut |table| pages += table.changed_pages());
        pages
    }

    /// What was decided for a request id, if that is remembered.
    pub fn outcome(&self, principal: &str, request_id: u128) -> Option<Decision> {
        dedupe::find(&self.dedupe, principal, request_id)?.decision().ok()
    }

    /// Like [`Machine::outcome`] for a command that is about to be proposed: also tells a reused id.
    pub fn remembered(&self, command: &Command) -> Option<Decision> {
        if active(Mutant::ReplayAppliedTwice) {
            return None;
        }
        let row = dedupe::find(&self.dedupe, &command.principal, command.request_id)?;
        if !answers(row, command) {
            return Some(Decision::passing(RejectReason::IdReused));
        }
        row.decision().ok()
    }

    /// Whether outcomes of a principal as old as this request id may have been forgotten.
    pub fn forgotten(&self, principal: &str, request_id: u128) -> bool {
        id_time_ms(request_id) < self.forgotten_before_ms(principal)
    }

    /// Request ids of a principal with an earlier time may have been forgotten.
    pub(super) fn forgotten_before_ms(&self, principal: &str) -> u64 {
        let share = if self.shares.is_empty() { None } else { self.shares.get(&dedupe::share_of(principal)) };
        self.row().forgotten_before_ms.max(share.map_or(0, |share| share.forgotten_before_ms))
    }

    pub(super) fn row(&self) -> MetaRow {
        self.meta.get(&MetaKey).copied().unwrap_or_default()
    }
}
