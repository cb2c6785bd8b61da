//! Typed client of shard groups.
pub mod topology;
