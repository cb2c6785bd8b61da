//! Chaos on real processes: starts clusters of the real binary, sells on them, does harm to them, and checks from outside
//! whether every promise was kept.
//!
//! It sees what any client sees and, for doing harm, processes and files; it must never link a crate of the storage tier,
//! or it would believe what it is there to doubt. What it measures stands in docs/CHAOS.md.
//!
//! [`run::run`] is the entry. A *scenario* ([`scenario`]) decides what is done, a *driver* ([`driver`]) does it, the *load*
//! ([`load`], [`register`]) calls all the while, and the *checkers* ([`check`]) judge the recorded [`history`].

pub mod check;
pub mod cli;
pub mod client;
pub mod driver;
mod error;
pub mod figures;
pub mod history;
pub mod load;
mod plot;
pub mod prepare;
pub mod readback;
pub mod register;
pub mod report;
pub mod run;
pub mod scenario;
pub mod stage;
mod stories;
mod tokens;

pub use error::ChaosError;
