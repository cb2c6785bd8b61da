//! Accounts, their sessions and roles.

use crate::{ModuleChange, ModuleCommand, ModuleMessage, ModuleQuery};

#[allow(missing_docs, clippy::all)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/tidewall.log.accounts.v1.rs"));
}

pub use generated::*;

/// Number of the module.
pub const MODULE: u8 = 2;

/// Said by gateways and regions alike, so that nobody learns which of the two said it.
pub const LOG_IN_FAILED: &str = "e-mail and password do not belong together: check both";
/// Said by gateways and regions alike.
pub const SESSION_INVALID: &str = "the session has ended or its token is not valid: log in again";

impl ModuleCommand for Command {
    const MODULE: u8 = MODULE;

    fn is_known(&self) -> bool {
        self.op.is_some()
    }
}

impl ModuleMessage for Message {
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

parts!(Command, command: Register, CountAttempt, StartSession, RefreshSession, EndSession, UpdateProfile, ChangePassword,
    ChangeRoles, BootstrapAdmin, ChangeEmail);
parts!(Query, query: GetCredential, GetAccount, FindAccount, ListSessions, GetClaiming);
parts!(Message, message: Claim, Claimed, Taken, Confirm, Release, Ask, Held);

impl ModuleChange for Change {
    fn kind(&self) -> u32 {
        match &self.what {
            None => 0,
            Some(change::What::Saved(_)) => 8,
            Some(change::What::EndedSessionId(_)) => 9,
        }
    }
}
