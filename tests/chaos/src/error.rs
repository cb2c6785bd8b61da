//! Why a run could not take place. What goes wrong *with the cluster* during a run is no error: it is what the
//! run is there to see, and stands in its report.

use std::path::PathBuf;
use std::time::Duration;

use tidewall_load::LoadError;

/// Why a run could not take place.
#[derive(Debug, thiserror::Error)]
pub enum ChaosError {
    /// The command line makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The driver cannot do what the scenario needs.
    #[error("scenario {scenario} cannot run with the {driver} driver here: {why}")]
    Unsupported {
        /// The scenario.
        scenario: &'static str,
        /// The driver.
        driver: &'static str,
        /// What is missing, and what to do.
        why: String,
    },
    /// The machine refused something.
    #[error("cannot {doing}: {source}")]
    System {
        /// What was tried, to what.
        doing: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A program that a driver needs failed.
    #[error(
        "`{command}` failed ({status}): {said}. Chaos with namespaces, mounts or clocks needs root and the packages iproute2, nftables, strace and faketime"
    )]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: String,
        /// The end of what it said.
        said: String,
    },
    /// A process of the cluster did not do what it was expected to in time.
    #[error("{what} after {waited:?}; the logs are in {}", logs.display())]
    Late {
        /// What did not happen.
        what: String,
        /// How long it was waited for.
        waited: Duration,
        /// Where to look.
        logs: PathBuf,
    },
    /// The load could not be prepared.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// An answer that the preparation, or the reading back, needs was refused.
    #[error("{doing} failed: {message}")]
    Call {
        /// What was asked.
        doing: String,
        /// What came back.
        message: String,
    },
    /// The report could not be written.
    #[error("cannot draw {}: {message}", path.display())]
    Plot {
        /// The file.
        path: PathBuf,
        /// What the drawing library said.
        message: String,
    },
    /// The data directory could not be laid out.
    #[error("{0}")]
    Site(String),
}

impl ChaosError {
    /// An error of the system while doing something.
    pub(crate) fn system(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::System { doing, source }
    }
}
