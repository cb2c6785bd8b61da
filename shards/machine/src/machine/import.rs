//! Imports: the rows of a group replaced by those of a snapshot file that came through the log in parts.
//!
//! The parts are rows until the commit. Beside them each import has a *shadow*: what its parts make so far, read
//! as they come in, so that every entry costs about one part's work and the commit only compares hash and digest
//! and swaps. A shadow is derived: it is never stored, is no part of the digest, and must never decide what the
//! parts alone would decide otherwise. It stands for the parts `0..next` as they are in the rows; when one of
//! those changes or goes, so does the shadow, and the commit reads the parts instead.
//!
//! Nothing large is freed here: it goes to [`Replaced`], which the caller drops where nobody waits.

use tidewall_domain::incarnation::IMPORTS_MAX;
use tidewall_domain::table::Table;
use tidewall_mutant::{Mutant, active};

use super::Machine;
use crate::feed::FeedRow;
use crate::meta::{ImportRow, MetaKey, MetaRow, StagedRow};
use crate::snapshot::{Parser, SnapshotError};
use crate::{GIVES_IMPORTS_UP, IMPORT_IDLE_MS};

/// Parts that a shadow takes in at most with each that arrives: itself, and some that it is behind.
const PARTS_PER_ARRIVAL: u32 = 4;
/// Parts of an import that was given up which an entry drops at most.
const DROPPED_MAX: usize = 16;

/// What the parts of an import make so far.
#[derive(Debug, Default)]
pub(super) struct Shadow {
    /// Parts before this one were taken in.
    next: u32,
    parser: Parser,
    /// The parts are no snapshot file; what follows does not matter.
    fault: Option<SnapshotError>,
}

impl Shadow {
    /// Takes in staged parts before `end`, `limit` at most, as far as they are there without a gap.
    fn feed(&mut self, staged: &Table<StagedRow>, import: u128, end: u32, limit: u32) {
        for _ in 0..limit.min(end.saturating_sub(self.next)) {
            let Some(part) = staged.get(&(import, self.next)) else { break };
            if self.fault.is_none() {
                self.fault = self.parser.push(&part.0).err();
            }
            self.next += 1;
        }
    }

    /// Whether the parts are a whole file, with rows of no later apply version than `supported`.
    fn verify(&mut self, supported: u32) -> Result<(), SnapshotError> {
        self.fault.take().map_or_else(|| self.parser.verify(supported), Err)
    }
}

/// Rows that are no part of the state any more. Freeing many of them takes a while: drop it where nobody waits.
#[derive(Debug, Default)]
pub struct Replaced {
    machines: Vec<Machine>,
    shadows: Vec<Shadow>,
    parts: Vec<StagedRow>,
    feeds: Vec<Table<FeedRow>>,
}

impl Replaced {
    fn is_empty(&self) -> bool {
        let Self { machines, shadows, parts, feeds } = self;
        machines.is_empty() && shadows.is_empty() && parts.is_empty() && feeds.is_empty()
    }
}

impl Machine {
    /// What the last entry has replaced, to be dropped on a thread that nothing waits for. What nobody takes is
    /// dropped when the next entry begins.
    pub fn take_replaced(&mut self) -> Option<Replaced> {
        let replaced = std::mem::take(&mut self.leftover);
        (!replaced.is_empty()).then_some(replaced)
    }

    /// Steady time at which something is to be done though nothing flows, milliseconds: a tick is due then.
    pub fn next_due_ms(&self) -> Option<u64> {
        let idle = self.imports.derived().0.first().map(|(last, _)| last.saturating_add(IMPORT_IDLE_MS));
        // What is to be said again is due at once.
        let again = self.unreconciled().map(|_| 0);
        self.modules
            .iter()
            .filter_map(|module| module.due_ms())
            .chain(idle)
            .chain(again)
            .chain(self.effects_until_ms())
            .min()
    }

    /// Reads the parts of imports that stood in stored rows.
    pub(super) fn resume_imports(&mut self) {
        for import in self.staged_imports() {
            self.feed(import, u32::MAX);
        }
    }

    /// Imports that have parts, in order.
    pub(super) fn staged_imports(&self) -> Vec<u128> {
        let mut imports: Vec<_> = self.staged.iter().map(|((import, _), _)| *import).collect();
        imports.dedup();
        imports
    }

    fn feed(&mut self, import: u128, limit: u32) {
        if self.staged.get(&(import, 0)).is_some() {
            self.shadows.entry(import).or_default().feed(&self.staged, import, u32::MAX, limit);
        }
    }

    /// Takes in one part; a later copy of a part replaces the earlier one.
    pub(super) fn stage(&mut self, import: u128, number: u32, bytes: &[u8], row: MetaRow) {
        let part = StagedRow(bytes.into());
        let read = self.shadows.get(&import).is_some_and(|shadow| number < shadow.next);
        if read && self.staged.get(&(import, number)) != Some(&part) {
            self.discard_shadow(import);
        }
        self.staged.set((import, number), Some(part));
        self.staged.commit();
        if row.apply_version >= GIVES_IMPORTS_UP {
            self.imports.set(import, Some(ImportRow { last_part_ms: row.time.steady_ms }));
            self.imports.commit();
        }
        self.feed(import, PARTS_PER_ARRIVAL);
    }

    /// Parts of an import that were read already.
    #[cfg(test)]
    pub(crate) fn parts_read(&self, import: u128) -> u32 {
        self.shadows.get(&import).map_or(0, |shadow| shadow.next)
    }

    fn discard_shadow(&mut self, import: u128) {
        self.leftover.shadows.extend(self.shadows.remove(&import));
    }

    /// Drops the parts of all imports.
    pub(super) fn drop_staged(&mut self) {
        self.leftover.shadows.extend(std::mem::take(&mut self.shadows).into_values());
        let keys: Vec<_> = self.staged.iter().map(|(key, _)| *key).collect();
        self.drop_parts(&keys);
        let imports: Vec<_> = self.imports.iter().map(|(import, _)| *import).collect();
        for import in imports {
            self.imports.set(import, None);
        }
        self.imports.commit();
    }

    fn drop_parts(&mut self, keys: &[(u128, u32)]) {
        for key in keys {
            self.leftover.parts.extend(self.staged.get(key).cloned());
            self.staged.set(*key, None);
        }
        self.staged.commit();
    }

    /// Apply version 2: gives the import up that has waited longest for its next part, a bounded number of parts at
    /// a time. The lowest go first, so that its commit finds the first one missing.
    pub(super) fn give_imports_up(&mut self, now_ms: u64) {
        let Some(&(last, import)) = self.imports.derived().0.first() else { return };
        if now_ms < last.saturating_add(IMPORT_IDLE_MS) {
            return;
        }
        self.discard_shadow(import);
        let parts = self.staged.range_from(&(import, 0)).map(|(key, _)| *key);
        let mut keys: Vec<_> = parts.take_while(|key| key.0 == import).take(DROPPED_MAX + 1).collect();
        let all = keys.len() <= DROPPED_MAX;
        keys.truncate(DROPPED_MAX);
        self.drop_parts(&keys);
        if all {
            self.imports.set(import, None);
            self.imports.commit();
        }
    }

    /// Replaces the rows by those of a staged snapshot file, once all of it has been verified. Whatever comes of it,
    /// the parts of all imports are gone afterwards.
    pub(super) fn import(&mut self, import: u128, chunks: u32, replace: bool) -> Result<(), String> {
        match self.imported(import, chunks, replace) {
            Ok(restored) => {
                let mut old = std::mem::replace(self, restored);
                self.leftover = std::mem::take(&mut old.leftover);
                self.leftover.machines.push(old);
                Ok(())
            }
            Err(why) => {
                self.drop_staged();
                Err(why)
            }
        }
    }

    fn imported(&mut self, import: u128, chunks: u32, replace: bool) -> Result<Self, String> {
        if let Some(missing) = (0..chunks).find(|number| self.staged.get(&(import, *number)).is_none()) {
            return Err(format!("part {missing} of the import is missing: start it again"));
        }
        if !replace && self.modules.iter().any(|module| module.rows() > 0) {
            return Err("the region holds data: importing would replace it, which must be asked for".into());
        }
        if self.shadows.get(&import).is_some_and(|shadow| shadow.next > chunks) {
            self.discard_shadow(import);
        }
        let old = self.row();
        let mut shadow = self.shadows.remove(&import).unwrap_or_default();
        shadow.feed(&self.staged, import, chunks, u32::MAX);
        // Not what this build supports but what the group has: builds of every age decide alike.
        if let Err(why) = shadow.verify(old.apply_version) {
            self.leftover.shadows.push(shadow);
            return Err(why.to_string());
        }
        let mut restored = shadow.parser.into_rows();
        let mut row = restored.row();
        row.apply_version = old.apply_version;
        row.incarnation = row.incarnation.max(old.incarnation) + 1;
        if row.incarnation & u64::from(u32::MAX) > IMPORTS_MAX {
            return Err(format!(
                "{IMPORTS_MAX} imports were made, and more could not be told apart: what they number would be numbered like \
                 what was lost"
            ));
        }
        row.time = row.time.moved_to(old.time);
        // What was decided here and is not in the file must not be decided again, however far its id was ahead of time.
        if !active(Mutant::ImportForgetsIds) {
            row.forgotten_before_ms =
                row.forgotten_before_ms.max(old.forgotten_before_ms).max(old.latest_id_ms + 1);
        }
        row.latest_id_ms = row.latest_id_ms.max(old.latest_id_ms);
        restored.meta.set(MetaKey, Some(row));
        restored.meta.commit();
        // An import that was under way where the file was made is nothing to go on with here. All pages are stored
        // anew, so nothing has to know which are gone.
        self.leftover.parts.extend(restored.staged.iter().map(|(_, part)| part.clone()));
        restored.staged = Table::default();
        restored.imports = Table::default();
        restored.renew_effects(row.time.steady_ms);
        // What happened where the file was made is nothing that anybody here has heard a part of.
        self.leftover.feeds.push(std::mem::take(&mut restored.feed));
        restored.feed_bytes_max = self.feed_bytes_max;
        restored.head = std::mem::take(&mut self.head);
        restored.settled = self.settled;
        restored.faults = self.faults;
        restored.supported = self.supported;
        restored.remembered_bytes_max = self.remembered_bytes_max;
        restored.replaced = true;
        Ok(restored)
    }
}
