//! Commands of the platform itself: they go to no module, have no request id, and nothing of them is remembered.

use tidewall_domain::Context;

use super::Machine;
use crate::GIVES_IMPORTS_UP;
use crate::answer::{Answer, Decision, RejectReason};
use crate::entry::SystemCommand;
use crate::meta::{ImportRow, MetaKey, MetaRow};

impl Machine {
    pub(super) fn system(&mut self, op: &SystemCommand, row: MetaRow, context: &Context) -> Decision {
        let result = match op {
            SystemCommand::Tick => Ok(()),
            SystemCommand::ImportChunk { import, number, bytes } => {
                self.stage(*import, *number, bytes, row);
                Ok(())
            }
            SystemCommand::ImportAbort => {
                self.drop_staged();
                Ok(())
            }
            SystemCommand::ImportCommit { import, chunks, replace } => {
                self.import(*import, *chunks, *replace)
            }
            SystemCommand::RaiseVersion(version) => self.raise_version(*version, row),
            SystemCommand::Rebase { log_ms } => self.rebase(*log_ms, row),
            SystemCommand::Deliver(delivery) => {
                self.receive(delivery, context);
                Ok(())
            }
            SystemCommand::Acknowledge { group, pair, next } => {
                self.acknowledge(*group, *pair, *next);
                Ok(())
            }
            SystemCommand::Meet { group, incarnation } => {
                self.meet(*group, *incarnation);
                Ok(())
            }
            SystemCommand::Resolve { key, drop } => self.resolve(context, key, *drop),
            SystemCommand::EndEffects(ends) => {
                ends.iter().for_each(|end| self.end_effect(context, end));
                Ok(())
            }
        };
        match result {
            Ok(()) => Decision { receipt: None, answer: Answer::System, replayed: false },
            Err(why) => Decision::passing(RejectReason::System(why)),
        }
    }

    /// Corrects log time that is ahead of the world.
    fn rebase(&mut self, log_ms: u64, mut row: MetaRow) -> Result<(), String> {
        let now_ms = row.time.log_ms();
        let right = row.time.rebased(log_ms, self.applied_index());
        row.time = right.ok_or_else(|| format!("log time {now_ms} is not ahead of {log_ms}"))?;
        self.meta.set(MetaKey, Some(row));
        self.meta.commit();
        Ok(())
    }

    /// Raises the apply version of the rows. What is too new was found out when the entry was begun.
    fn raise_version(&mut self, version: u32, mut row: MetaRow) -> Result<(), String> {
        if version < row.apply_version {
            return Err(format!("apply version {version} cannot follow {}", row.apply_version));
        }
        if row.apply_version < GIVES_IMPORTS_UP && version >= GIVES_IMPORTS_UP {
            // Nobody knows when their latest part came: their time begins now.
            for import in self.staged_imports() {
                self.imports.set(import, Some(ImportRow { last_part_ms: row.time.steady_ms }));
            }
            self.imports.commit();
        }
        row.apply_version = version;
        self.meta.set(MetaKey, Some(row));
        self.meta.commit();
        Ok(())
    }
}
