//! The methods of the public API, with what the .proto files declare of them.

use crate::v1;

/// What a method declares of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Declared {
    /// Its name.
    pub name: &'static str,
    /// Its service, with the package.
    pub service: &'static str,
    /// Either side streams.
    pub streams: bool,
    /// The client streams.
    pub client_streams: bool,
    /// How it is authorised, admitted, repeated and routed.
    pub policy: Policy,
}

/// How a method is authorised, admitted, repeated and routed: `policy.proto` says what each part means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Roles of which the caller needs one; none: anybody with a token.
    pub roles: &'static [v1::Role],
    /// Who goes first.
    pub priority: v1::Priority,
    /// What a call does.
    pub effect: v1::Effect,
    /// Path of the field that names the resource; empty: none.
    pub resource: &'static str,
    /// It moves much data.
    pub transfers: bool,
    /// It needs no token.
    pub anonymous: bool,
    /// Its message carries a secret.
    pub secret: bool,
    /// It waits for its turn in the region step by step.
    pub stepwise: bool,
}

/// A request.
pub trait Asks {
    /// The name of the resource that it is about, where its method's policy says that it stands.
    fn resource(&self) -> &str;

    /// How fresh its answer must be: a `ReadConsistency`, and how old it may be.
    fn freshness(&self) -> (i32, Option<prost_types::Duration>) {
        (0, None)
    }
}

include!(concat!(env!("OUT_DIR"), "/methods.rs"));
