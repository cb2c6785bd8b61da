//! `tidewall up`, also the command without a name: a whole cluster in the foreground, until it is told to
//! stop.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;

use crate::cluster::{Cluster, GivenUp, Plan};
use crate::datadir::{DEFAULT_DATA, Wanted};
use crate::endpoints::Endpoints;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, ProgressLine};
use crate::regions_file;
use crate::signals::Signals;

/// Where the first gateway listens when nobody says otherwise.
pub const DEFAULT_LISTEN: &str = "127.0.0.1:7400";
/// After this time without being ready, the user is told where to look.
const SLOW_AFTER: Duration = Duration::from_secs(15);

/// Arguments of `tidewall up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// Directory of the cluster's data, created when missing
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Keep the data in a temporary directory that is removed at the end
    #[arg(long, conflicts_with = "data")]
    pub ephemeral: bool,
    /// Regions of a new cluster, as TOML tables `[[regions]]` with `id` and `display_name` [default: 12
    /// regions, north to islands]
    #[arg(long, value_name = "FILE")]
    pub regions: Option<PathBuf>,
    /// Number of shard nodes of a new cluster; each has a replica of every region [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=7))]
    pub nodes: Option<u64>,
    /// Number of gateways
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub gateways: u16,
    /// Address of the first gateway; the others take the following ports. With port 0 the system chooses
    #[arg(long, value_name = "ADDRESS", default_value = DEFAULT_LISTEN)]
    pub listen: SocketAddr,
}

/// What `up -o json` prints once the cluster is ready.
#[derive(Serialize)]
struct Ready<'a> {
    ready_in_ms: u64,
    data: &'a Path,
    #[serde(flatten)]
    endpoints: &'a Endpoints,
}

impl UpArgs {
    /// What to start.
    fn plan(&self, log: Option<&str>) -> Result<Plan, Failure> {
        let regions = match &self.regions {
            Some(path) => Some(regions_file::load(path).map_err(|e| Failure::new(Exit::Usage, e))?),
            None => None,
        };
        Ok(Plan {
            data: (!self.ephemeral).then(|| self.data.clone()),
            wanted: Wanted { regions, nodes: self.nodes },
            gateways: self.gateways,
            listen: self.listen,
            log: log.map(str::to_owned),
        })
    }
}

/// Runs the command until a signal asks it to stop, or no node can run any more. `begun` is when this
/// process started.
pub async fn run(
    arguments: &UpArgs,
    format: Format,
    log: Option<&str>,
    begun: Instant,
) -> Result<(), Failure> {
    let mut signals = Signals::new()?;
    let mut cluster = Cluster::start(&arguments.plan(log)?).await?;
    let ending = match become_ready(&mut cluster, &mut signals, begun).await {
        Ok(Some(ending)) => Ok(ending),
        Ok(None) => match announce(&cluster, arguments, format, begun.elapsed()) {
            Ok(()) => Ok(watch(&mut cluster, &mut signals).await),
            Err(failure) => Err(failure),
        },
        Err(failure) => Err(failure),
    };
    let result = match ending {
        Ok(Ending::Asked(signal)) => {
            eprintln_quietly(&format!("{signal}: stopping gateways, then nodes (again to stop at once)"));
            Ok(())
        }
        Ok(Ending::Broken(given_up)) => {
            let text = format!("the cluster cannot run and was stopped: {}", given_up.message);
            Err(Failure::with_code(i32::from(given_up.code), text))
        }
        Err(failure) => Err(failure),
    };
    let kept = (!arguments.ephemeral).then(|| cluster.directory().root().to_owned());
    cluster
        .stop(async {
            signals.next().await;
        })
        .await;
    if result.is_ok() {
        match kept {
            Some(path) => eprintln_quietly(&format!("stopped; all data is in {}", path.display())),
            None => eprintln_quietly("stopped; the temporary data was removed"),
        }
    }
    result
}

/// Why a cluster ends.
enum Ending {
    /// A signal asked for it.
    Asked(&'static str),
    /// What cannot be restarted is needed.
    Broken(GivenUp),
}

/// Waits until the cluster serves; `Some` when it must end before.
async fn become_ready(
    cluster: &mut Cluster,
    signals: &mut Signals,
    begun: Instant,
) -> Result<Option<Ending>, Failure> {
    let mut line = ProgressLine::default();
    let mut slow_said = false;
    let logs = cluster.directory().logs();
    let mut broken = None;
    loop {
        // The questions start anew when a process is given up, which hardly ever happens.
        let ready = cluster.ready(|progress| {
            line.show(&format!("starting: {}", progress.line()));
            if !slow_said && begun.elapsed() > SLOW_AFTER {
                slow_said = true;
                line.clear();
                tracing::warn!(
                    "not ready after {SLOW_AFTER:?} ({}); the logs in {} may say why",
                    progress.line(),
                    logs.display()
                );
            }
        });
        tokio::select! {
            ready = ready => {
                line.clear();
                return ready.map(|()| None);
            }
            signal = signals.next() => {
                line.clear();
                return Ok(Some(Ending::Asked(signal)));
            }
            given_up = next_given_up(cluster) => broken = Some(given_up),
        }
        line.clear();
        if let Some(given_up) = broken.take().filter(|_| true) {
            // A cluster that never served is not left half running.
            return Ok(Some(Ending::Broken(given_up)));
        }
    }
}

async fn next_given_up(_cluster: &Cluster) -> GivenUp {
    std::future::pending().await
}

/// Prints where the cluster is and what to do with it.
fn announce(cluster: &Cluster, arguments: &UpArgs, format: Format, took: Duration) -> Result<(), Failure> {
    let endpoints = cluster.endpoints();
    match format {
        Format::Json => output::json(&Ready {
            ready_in_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            data: cluster.directory().root(),
            endpoints: &endpoints,
        }),
        Format::Table => {
            let program = std::env::args().next().unwrap_or_else(|| "tidewall".into());
            let data = if arguments.ephemeral {
                Some(cluster.directory().root())
            } else if arguments.data == Path::new(DEFAULT_DATA) {
                None
            } else {
                Some(arguments.data.as_path())
            };
            output::text(&welcome(&endpoints, cluster.topology().regions.len(), cluster.directory().root(), took, &program, data))
        }
    }
}
