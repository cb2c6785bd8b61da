//! What stands in the log, module by module: commands, outcomes and rejections as protobuf, without a transport.
//!
//! Gateways build the commands, apply reads them, and nobody between them does. **Never here:** rules, services, and anything
//! that a stored byte could come to mean otherwise: messages only ever grow.

/// Makes a whole of each of its parts.
macro_rules! parts {
    ($whole:ident, $of:ident: $($part:ident),* $(,)?) => {$(
        impl From<$part> for $whole {
            fn from(part: $part) -> Self {
                Self { op: Some($of::Op::$part(part)) }
            }
        }
    )*};
}

pub mod accounts;
mod seen;
pub mod tickets;
pub mod webhooks;

#[allow(missing_docs, clippy::all)]
mod v1 {
    include!(concat!(env!("OUT_DIR"), "/tidewall.log.v1.rs"));
}

pub use seen::NotSeen;
pub use v1::{Change, Place, Rejection, Seen};

/// What has happened, in the words of a module.
pub trait ModuleChange: prost::Message {
    /// Number of its kind, among those of all modules. Never reused: whoever asks for some kinds names them by number.
    fn kind(&self) -> u32;
}

/// A command of a module.
pub trait ModuleCommand: prost::Message + Default + std::fmt::Debug {
    /// Number of the module; never reused.
    const MODULE: u8;

    /// Whether it asks for something that this build has. An operation of a later build decodes to none.
    fn is_known(&self) -> bool;
}

/// What a module tells its like in another group.
pub trait ModuleMessage: prost::Message + Default + std::fmt::Debug {
    /// Whether it says something that this build understands. A message of a later build decodes to none.
    fn is_known(&self) -> bool;
}

/// The message of a module that sends none.
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct NoMessage {}

impl ModuleMessage for NoMessage {
    fn is_known(&self) -> bool {
        false
    }
}

/// A read of a module.
pub trait ModuleQuery: prost::Message {
    /// Number of the module.
    const MODULE: u8;
    /// What it finds.
    type Answer: prost::Message + Default;

    /// Whether it asks for something that this build has. A query of a later build decodes to none.
    fn is_known(&self) -> bool;
}
