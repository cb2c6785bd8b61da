//! Webhooks: who is told what, and where.

use crate::{ModuleCommand, ModuleQuery};

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tidewall.log.webhooks.v1.rs"));
}

pub use generated::*;

/// Number of the module.
pub const MODULE: u8 = 3;

impl ModuleCommand for Command {
    const MODULE: u8 = MODULE;

    fn is_known(&self) -> bool {
        self.op.is_some()
    }
}

impl ModuleQuery for Query {
    const MODULE: u8 = MODULE;
    type Answer = Answer;

    fn is_known(&self) -> bool {
        self.op.is_some()
    }
}

parts!(Command, command: CreateWebhook, UpdateWebhook, RotateSecret, DeleteWebhook);
parts!(Query, query: GetWebhook, ListWebhooks);
