//! Load generator of Tidewall: sends a crowd to a gateway, measures what it gets, and audits the result.
//!
//! Everything goes through the public API (`tidewall.v1`), as any client's calls do: this crate must
//! never use a crate of the storage tier, look at a data directory, or believe a server's own statistics.
//! What it reports, it has seen in answers; what it audits, it has read back.
//!
//! A run has five phases: *prepare* (connect, create the events), *mint* (one token for each buyer, before
//! the clock starts), *sell* (the measured part), *resolve* (ask `GetOutcome` for what stayed unknown) and
//! *audit* (read everything back and check it). Every phase is bounded in time, also when gateways or
//! nodes die in the middle of it.
//!
//! Entry points: [`flash_sale`] for one hot event, [`replay_trace`] for somebody's recorded arrivals,
//! [`demo::flash_sale`] for a sale that a person watches.

mod arrivals;
pub mod audit;
mod chance;
pub mod demo;
mod drive;
mod error;
pub mod meaning;
mod measure;
pub mod offer;
mod plan;
mod plot;
pub mod pool;
mod pursuit;
mod readback;
pub mod reading;
mod report;
mod run;
mod sale;
mod setup;
pub mod stories;
mod target;
pub mod ticket_shop;
pub mod trace;

pub use error::LoadError;
pub use plan::{FlashSale, Mode, Phase, Progress, ReplayOptions};
pub use reading::stamp;
pub use report::{EventReport, PercentilePoint, Report, TimelinePoint};
pub use sale::{flash_sale, replay_trace};
pub use target::{Mint, Target};
