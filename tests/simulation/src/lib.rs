//! The whole cluster on one thread, by seed.
//!
//! Three nodes with their real Raft groups, actors, links and rows, two real gateways, and a network, disks and clocks that
//! behave as badly as they may. Everything follows from the seed: a failing one is replayed by
//! `./simulate --seed N`. After each run the [`oracle`] judges what clients were told; [`history`] and [`model`] are what
//! it knows.
//!
//! Without `--cfg tokio_unstable`, which `./simulate` sets, only the oracle is compiled.
//!
//! **Never here:** anything that Tidewall needs to run.

pub mod history;
pub mod model;
pub mod oracle;
#[cfg(test)]
mod oracle_tests;

#[cfg(tokio_unstable)]
mod api;
#[cfg(tokio_unstable)]
mod browser;
#[cfg(tokio_unstable)]
mod buyer;
#[cfg(tokio_unstable)]
mod clerk;
#[cfg(tokio_unstable)]
mod clients;
#[cfg(tokio_unstable)]
mod convert;
#[cfg(tokio_unstable)]
pub mod fault;
#[cfg(tokio_unstable)]
mod inject;
#[cfg(tokio_unstable)]
mod lines;
#[cfg(tokio_unstable)]
mod listener;
#[cfg(tokio_unstable)]
mod messages;
#[cfg(tokio_unstable)]
mod node;
#[cfg(tokio_unstable)]
mod operator;
#[cfg(tokio_unstable)]
pub mod plan;
#[cfg(tokio_unstable)]
pub mod run;
#[cfg(tokio_unstable)]
mod server;
#[cfg(tokio_unstable)]
mod site;
#[cfg(tokio_unstable)]
mod trace;
#[cfg(tokio_unstable)]
mod traffic;
#[cfg(tokio_unstable)]
mod watch;
#[cfg(tokio_unstable)]
mod way;
#[cfg(tokio_unstable)]
mod world;
