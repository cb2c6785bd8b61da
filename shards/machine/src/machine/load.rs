//! A machine from stored pages: all of them, with the digest that was stored with them, or none.

use tidewall_domain::feed::{HEARS_CHANGES, TELLS_CHANGES};
#[cfg(test)]
use tidewall_domain::module::AnyModule;
use tidewall_domain::table::{Row, TableId, module_of};

use super::{Head, Machine};
use crate::dedupe::{DedupeRow, ShareRow};
use crate::effects::EffectRow;
use crate::error::LoadError;
use crate::feed::FeedRow;
use crate::meta::{ImportRow, MetaKey, MetaRow, StagedRow};
use crate::streams::{DeadRow, Message, StreamRow};
use crate::{APPLY_VERSION, GIVES_IMPORTS_UP, SENDS_MESSAGES};

/// Builds a machine from stored pages.
#[derive(Debug)]
pub struct Loader {
    machine: Machine,
}

impl Machine {
    /// A machine that has applied nothing and plays a build that supports no apply version above `supported`
    /// ([`APPLY_VERSION`] at most, 1 at least).
    pub fn with_supported(supported: u32) -> Self {
        Self { supported: cap(supported), ..Self::default() }
    }

    /// The same rows in a build that supports no apply version above `supported`.
    ///
    /// # Errors
    /// [`LoadError::TooNew`] when the rows are of a later version.
    pub fn supporting(mut self, supported: u32) -> Result<Self, LoadError> {
        self.supported = cap(supported);
        let rows = self.apply_version();
        if rows > self.supported {
            return Err(LoadError::TooNew { rows, supported: self.supported });
        }
        Ok(self)
    }

    /// What this process has counted goes on with these rows.
    #[must_use]
    pub fn counting_on_from(mut self, before: &Self) -> Self {
        self.faults = before.faults;
        self
    }

    /// Highest apply version that this machine can follow.
    pub fn supported(&self) -> u32 {
        self.supported
    }

    /// A machine with other modules than this build has.
    #[cfg(test)]
    pub(crate) fn with_modules(modules: Vec<Box<dyn AnyModule>>) -> Self {
        Self { modules, ..Self::default() }
    }

    /// A machine that remembers no more than so many bytes of outcomes.
    #[cfg(test)]
    pub(crate) fn remembering(bytes_max: u64) -> Self {
        Self { remembered_bytes_max: bytes_max, ..Self::default() }
    }

    /// A machine that keeps no more than so many bytes of changes.
    #[cfg(test)]
    pub(crate) fn telling(feed_bytes_max: u64) -> Self {
        Self { feed_bytes_max, ..Self::default() }
    }

    /// A machine without rows, to be filled with stored pages.
    pub fn loader() -> Loader {
        Self::default().into_loader()
    }

    /// The same machine without rows, to be filled with stored pages.
    pub(crate) fn into_loader(self) -> Loader {
        let modules = self.modules.iter().map(|module| module.fresh()).collect();
        let mut machine = Self { modules, supported: self.supported, ..Self::default() };
        machine.meta.set(MetaKey, None);
        machine.meta.commit();
        machine.clear_changes();
        Loader { machine }
    }
}

/// No build supports more than it has, and every one supports the first version.
fn cap(supported: u32) -> u32 {
    supported.clamp(1, APPLY_VERSION)
}

impl Loader {
    /// Plays a build that supports no apply version above `supported`; see [`Machine::with_supported`].
    #[must_use]
    pub fn with_supported(mut self, supported: u32) -> Self {
        self.machine.supported = cap(supported);
        self
    }

    /// Takes in a stored page.
    ///
    /// # Errors
    /// [`LoadError::Table`] or [`LoadError::Page`] when it means nothing to this build.
    pub fn page(&mut self, table: TableId, bytes: &[u8]) -> Result<(), LoadError> {
        let machine = &mut self.machine;
        let mut loaded = match table {
            MetaRow::TABLE => Some(machine.meta.load(bytes)),
            DedupeRow::TABLE => Some(machine.dedupe.load(bytes)),
            ShareRow::TABLE => Some(machine.shares.load(bytes)),
            StagedRow::TABLE => Some(machine.staged.load(bytes)),
            ImportRow::TABLE => Some(machine.imports.load(bytes)),
            StreamRow::TABLE => Some(machine.streams.load(bytes)),
            Message::TABLE => Some(machine.outbox.load(bytes)),
            FeedRow::TABLE => Some(machine.feed.load(bytes)),
            EffectRow::TABLE => Some(machine.effects.load(bytes)),
            DeadRow::TABLE => Some(machine.dead.load(bytes)),
            _ => None,
        };
        if let Some(module) = machine.modules.iter_mut().find(|module| module.number() == module_of(table)) {
            module.tables_mut(&mut |known| {
                if known.id() == table {
                    loaded = Some(known.load(bytes));
                }
            });
        }
        match loaded {
            Some(Ok(())) => Ok(()),
            Some(Err(source)) => Err(LoadError::Page { table, source }),
            None => Err(LoadError::Table(table)),
        }
    }

    /// The machine, if its rows have the digest that was stored with them and this build can apply to them.
    ///
    /// Takes as long as reading the file of an import does, if one is under way in the rows.
    ///
    /// # Errors
    /// [`LoadError::Digest`] or [`LoadError::TooNew`].
    pub fn finish(self, head: Head, digest: u128) -> Result<Machine, LoadError> {
        self.verify(digest, self.machine.supported)?;
        let mut machine = self.machine;
        machine.head = head;
        machine.settle();
        machine.resume_imports();
        Ok(machine)
    }

    /// Whether the rows are those of `digest` and of no later apply version than `supported`.
    pub(crate) fn verify(&self, digest: u128, supported: u32) -> Result<(), LoadError> {
        let machine = &self.machine;
        if machine.digest() != digest {
            return Err(LoadError::Digest { found: machine.digest(), expected: digest });
        }
        let rows = machine.apply_version();
        if rows > supported {
            return Err(LoadError::TooNew { rows, supported });
        }
        // A build that has only their version does not know the table: take them nowhere, as it does.
        if rows < GIVES_IMPORTS_UP && !machine.imports.is_empty() {
            return Err(LoadError::Table(ImportRow::TABLE));
        }
        if rows < SENDS_MESSAGES
            && !(machine.streams.is_empty() && machine.outbox.is_empty() && machine.dead.is_empty())
        {
            return Err(LoadError::Table(StreamRow::TABLE));
        }
        if rows < TELLS_CHANGES && !machine.feed.is_empty() {
            return Err(LoadError::Table(FeedRow::TABLE));
        }
        if rows < HEARS_CHANGES && !machine.effects.is_empty() {
            return Err(LoadError::Table(EffectRow::TABLE));
        }
        // Nor does such a build know what a module has later tables for.
        for module in &machine.modules {
            let mut later = None;
            module.tables(&mut |table| {
                if !table.is_empty() && module.table_since(table.id()) > rows {
                    later = Some(table.id());
                }
            });
            if let Some(table) = later {
                return Err(LoadError::Table(table));
            }
        }
        Ok(())
    }

    /// The bare rows, verified or not: whoever takes them gives them a head.
    pub(crate) fn into_rows(self) -> Machine {
        self.machine
    }
}
