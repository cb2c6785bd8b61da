//! What is asked of servers outside, and by whom. Nothing here knows a network.

use std::pin::Pin;
use std::time::Duration;

/// A POST to somebody's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Post {
    /// Where to.
    pub url: String,
    /// Headers, by name.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: String,
}

/// What a server has answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answered {
    /// With a status.
    Status {
        /// Of HTTP.
        code: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It was not reached, or has not answered; why, for people. It may have got the call all the same.
    Failed(String),
}

/// Whoever makes calls to servers outside. It may be dropped at any time.
pub trait Outside: std::fmt::Debug + Send + Sync {
    /// Makes a call, once, and follows no redirect.
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Answered> + Send + '_>>;
}
