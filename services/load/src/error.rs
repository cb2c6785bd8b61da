//! Why a run could not take place. What goes wrong *during* a run is no error: it is counted in the
//! [`Report`](crate::Report), because a sale under trouble is what this crate is there to measure.

use std::path::PathBuf;
use std::time::Duration;

use crate::trace::TraceError;

/// Why a run could not take place, or its result not be written.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The plan makes no sense.
    #[error("the plan cannot be run: {0}")]
    Plan(String),
    /// An endpoint is no URL that a channel can be made of.
    #[error("endpoint {endpoint:?} is not a gateway's address: use the form http://127.0.0.1:7400")]
    Endpoint {
        /// The endpoint as it was given.
        endpoint: String,
        /// Why it was refused.
        #[source]
        source: tonic::transport::Error,
    },
    /// The minted token cannot be sent as metadata.
    #[error("the token made for {subject:?} contains characters that no header can carry")]
    Token {
        /// Subject of the token.
        subject: String,
    },
    /// No gateway answered.
    #[error(
        "no gateway answered within {waited:?} (tried {endpoints}); is the cluster up? Last answer: {last}"
    )]
    Unreachable {
        /// Addresses that were tried.
        endpoints: String,
        /// How long.
        waited: Duration,
        /// The last failure, in words.
        last: String,
    },
    /// A step of the preparation was refused or never answered.
    #[error("{doing} failed: {message} ({code:?}{})", reason_suffix(.reason))]
    Setup {
        /// What was being done, for example "creating event x in regions/y".
        doing: String,
        /// Code of the last answer.
        code: tonic::Code,
        /// Reason as in `google.rpc.ErrorInfo`, empty when the answer has none.
        reason: String,
        /// Message of the last answer.
        message: String,
    },
    /// The cluster has no region of that name, or none at all.
    #[error("the cluster has no region {wanted:?}; it has: {known}")]
    NoRegion {
        /// Region that was asked for.
        wanted: String,
        /// Regions that exist.
        known: String,
    },
    /// The trace is malformed.
    #[error("trace {}: {source}", path.display())]
    Trace {
        /// The file.
        path: PathBuf,
        /// Which line and field, and what was expected.
        source: TraceError,
    },
    /// A file could not be read or written.
    #[error("cannot {doing} {}: {source}", path.display())]
    File {
        /// "read" or "write".
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The plot could not be drawn.
    #[error("cannot draw the plot {}: {message}", path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// What the drawing library said.
        message: String,
    },
    /// The output that the demo writes to is gone.
    #[error("cannot write the demo's output: {0}")]
    Output(#[source] std::io::Error),
    /// A task of the generator itself ended abnormally.
    #[error("a task of the load generator ended abnormally: {0}")]
    Task(String),
}

fn reason_suffix(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(", reason {reason}") }
}
