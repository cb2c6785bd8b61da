//! What a run is aimed at: gateways, and a way to make tokens for them. Keys never enter this crate.

use std::fmt;
use std::sync::Arc;

/// Makes a bearer token for a subject with roles (`"organiser"`, `"seller"`, …).
///
/// Tokens must stay valid for the whole run, audit included. It is called from several threads at once.
pub type Mint = Arc<dyn Fn(&str, &[&str]) -> String + Send + Sync>;

/// Gateways to call and how to make tokens that they accept.
#[derive(Clone)]
pub struct Target {
    /// Addresses of gateways, `http://127.0.0.1:7400`. Connections are dealt out over them in turn, and a
    /// call that failed is repeated over the next connection.
    pub endpoints: Vec<String>,
    /// Makes the tokens.
    pub mint: Mint,
}

impl Target {
    /// A target of these endpoints and this mint.
    pub fn new(
        endpoints: Vec<String>,
        mint: impl Fn(&str, &[&str]) -> String + Send + Sync + 'static,
    ) -> Self {
        Self { endpoints, mint: Arc::new(mint) }
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The mint holds a signing key in its closure: it is never shown.
        f.debug_struct("Target").field("endpoints", &self.endpoints).finish_non_exhaustive()
    }
}
