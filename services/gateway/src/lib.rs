//! The edge of a Tidewall cluster: stateless, any number of them, at any time.
//!
//! A call enters here, is authenticated, checked, admitted and routed by the id it carries; the shard
//! client holds and replays it while its deadline lasts. [`Gateway::bind`] takes the port,
//! [`Gateway::serve`] answers; [`GatewayCore`] is the same without port and files; [`auth`] also mints the
//! development tokens.
//!
//! This crate must never decide about stock, keep state that a restart would lose, or read a field of a
//! request to learn who calls: that is the token's subject.

mod accounts;
mod admission;
pub mod auth;
mod budget;
mod config;
mod convert;
mod deadline;
mod edge;
mod errors;
mod feed;
mod health;
mod metrics;
mod names;
mod page;
mod reads;
mod request_id;
mod server;
mod services;
mod transport;
mod validate;
mod webhooks;

pub use accounts::{AccountsConfig, HashingOptions};
pub use admission::LimitOptions;
pub use config::{GatewayConfig, WebhooksConfig};
pub use server::{Gateway, GatewayCore, GatewayError, run};
pub use webhooks::{Answered, Http, Network, NotANetwork, Outside, Post};
