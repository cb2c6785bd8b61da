//! Seams to the world: what the storage tier may know of clocks, disks, chance, threads and connections.
//!
//! Each seam has a real implementation and a double that tests and simulation drive.
//! This crate must never know a domain, a shard group or a wire format.

pub mod clock;
pub mod disk;
pub mod random;
pub mod simulation;
pub mod tasks;
