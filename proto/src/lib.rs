//! Generated code of Tidewall's protocols.
//!
//! [`v1`] is the public API (documented in the .proto files under `proto/proto`), [`internal`] is
//! spoken between our own processes. [`Method`] is the table of the API's
//! methods with the policies that they declare. Nothing but generated code and its descriptors lives here.

/// The public API, package `tidewall.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("tidewall.v1");
}

/// Protocols between our own processes.
pub mod internal {
    /// Package `tidewall.internal.v1`.
    #[allow(missing_docs, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("tidewall.internal.v1");
    }
}

/// Encoded `FileDescriptorSet` of all files.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Encoded `FileDescriptorSet` of what clients see: the public packages, with what they import.
pub const PUBLIC_DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/public.bin"));

pub mod json;
mod methods;

pub use methods::{Asks, Declared, Method, Policy};
/// How far the rows of a group were seen.
pub use tidewall_messages::Seen;
