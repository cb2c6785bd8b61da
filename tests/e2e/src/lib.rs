//! Harness of the end-to-end tests: starts the real binary, talks gRPC to it as any client would, and checks
//! recorded histories.
//!
//! It must never link a part of the server: what it knows of Tidewall is its command line and its .proto files.

pub mod audit;
pub mod client;
pub mod cluster;
pub mod process;
