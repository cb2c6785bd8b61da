//! What actors need of the shard group behind them.

use std::future::Future;
use std::pin::Pin;

use tidewall_machine::{Command, Decision, Machine, Stamp};

use crate::request::Refusal;

/// A future that stays on its thread or not, as it likes.
pub type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The shard group behind the actors: its log and its applied rows.
pub trait Shard: Send + Sync + 'static {
    /// Puts commands into one entry of the log and waits for their decisions, in order. Ends in bounded time.
    fn propose(&self, commands: Vec<Command>) -> BoxFuture<Result<Vec<Decision>, Refusal>>;

    /// Confirms that this node leads the group; rows looked at afterwards contain everything that was acknowledged
    /// before the call.
    fn confirm(&self) -> BoxFuture<Result<(), Refusal>>;

    /// Looks at the applied rows. Keep it short.
    fn look(&self, look: &mut dyn FnMut(&Machine));

    /// Whether this node believes to lead. No proof.
    fn leads(&self) -> bool;

    /// Who leads, as far as this node knows.
    fn leader(&self) -> Option<u64>;

    /// What this node's clock shows.
    fn stamp(&self) -> Stamp;
}
