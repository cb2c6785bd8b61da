//! `tidewall up`, also the command without a name: a whole cluster in the foreground, until it is told to
//! stop.

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
use crate::ports;
use crate::readiness::Progress;
use crate::regions_file;
use crate::service_manager;
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
    #[arg(long, value_name = "ADDRESS", value_parser = ports::address, default_value = DEFAULT_LISTEN)]
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
    let cluster = Cluster::start(&arguments.plan(log)?).await?;
    // From here on, every way out leads through `stop`.
    let result = match keep(&cluster, &mut signals, arguments, format, begun).await {
        Ok(Ending::Asked(signal)) => {
            output::note(&format!("{signal}: stopping gateways, then nodes (again to stop at once)"));
            Ok(())
        }
        Ok(Ending::Broken(given_up)) => {
            let text = format!("the cluster cannot run and was stopped: {}", given_up.summary());
            Err(Failure::with_code(i32::from(given_up.code), text))
        }
        Err(failure) => Err(failure),
    };
    service_manager::stopping();
    let kept = (!arguments.ephemeral).then(|| cluster.directory().root().to_owned());
    cluster
        .stop(async {
            signals.next().await;
        })
        .await;
    if result.is_ok() {
        match kept {
            Some(path) => output::note(&format!("stopped; all data is in {}", path.display())),
            None => output::note("stopped; the temporary data was removed"),
        }
    }
    result
}

/// Sees a cluster through its life, up to the reason to end it.
async fn keep(
    cluster: &Cluster,
    signals: &mut Signals,
    arguments: &UpArgs,
    format: Format,
    begun: Instant,
) -> Result<Ending, Failure> {
    let life = async {
        if let Some(ending) = become_ready(cluster, signals, begun).await? {
            return Ok(ending);
        }
        service_manager::ready();
        let text = announcement(cluster, arguments, format, begun.elapsed())?;
        // Standard output may be a pipe that nobody reads: the cluster does not wait for it.
        let printed = tokio::task::spawn_blocking(move || output::text(&text));
        let told = async {
            match printed.await {
                Ok(Err(failure)) => failure,
                _ => std::future::pending().await,
            }
        };
        tokio::select! {
            failure = told => Err(failure),
            ending = watch(cluster, signals) => Ok(ending),
        }
    };
    tokio::select! {
        ending = life => ending,
        // Also while it is not ready: a node may have to be replaced before it can be.
        never = cluster.follow() => match never {},
    }
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
    cluster: &Cluster,
    signals: &mut Signals,
    begun: Instant,
) -> Result<Option<Ending>, Failure> {
    let mut line = ProgressLine::default();
    let mut slow_said = false;
    let told = |progress: Progress| {
        if !slow_said && begun.elapsed() > SLOW_AFTER {
            slow_said = true;
            line.clear();
            tracing::warn!(
                "not ready after {SLOW_AFTER:?} ({}); the logs in {} may say why",
                progress.line(),
                cluster.directory().logs().display()
            );
        }
        line.show(&format!("starting: {}", progress.line()));
    };
    let ending = tokio::select! {
        ready = cluster.ready(told) => ready.map(|()| None),
        signal = signals.next() => Ok(Some(Ending::Asked(signal))),
        given_up = cluster.broken() => Ok(Some(Ending::Broken(given_up))),
    };
    line.clear();
    ending
}

/// Keeps the cluster until it must end.
async fn watch(cluster: &Cluster, signals: &mut Signals) -> Ending {
    tokio::select! {
        signal = signals.next() => Ending::Asked(signal),
        given_up = cluster.broken() => Ending::Broken(given_up),
    }
}

/// Where the cluster is and what to do with it.
fn announcement(
    cluster: &Cluster,
    arguments: &UpArgs,
    format: Format,
    took: Duration,
) -> Result<String, Failure> {
    let endpoints = cluster.endpoints();
    let root = cluster.directory().root();
    match format {
        Format::Json => output::as_json_line(&Ready {
            ready_in_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX),
            data: root,
            endpoints: &endpoints,
        }),
        Format::Table => Ok(welcome(&Welcome {
            endpoints: &endpoints,
            regions: cluster.topology().regions.len(),
            root,
            took,
            program: &std::env::args().next().unwrap_or_else(|| "tidewall".into()),
            default_data: !arguments.ephemeral && arguments.data == Path::new(DEFAULT_DATA),
            ephemeral: arguments.ephemeral,
        })),
    }
}

/// What the welcome text is made of.
struct Welcome<'a> {
    endpoints: &'a Endpoints,
    regions: usize,
    root: &'a Path,
    took: Duration,
    program: &'a str,
    default_data: bool,
    ephemeral: bool,
}

/// The first screen of a new user: what runs where, and what to try next, ready to be copied.
fn welcome(about: &Welcome<'_>) -> String {
    let Welcome { endpoints, program, .. } = about;
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let mut text = format!(
        "Tidewall is ready after {:.1} s: {}, {}, {}.\n\n",
        about.took.as_secs_f64(),
        count(about.regions, "region"),
        count(endpoints.nodes.len(), "shard node"),
        count(endpoints.gateways.len(), "gateway"),
    );
    for gateway in &endpoints.gateways {
        text += &format!(
            "  gateway-{}  {}  (gRPC with reflection and health; {}/metrics)\n",
            gateway.id, gateway.url, gateway.url
        );
    }
    for node in &endpoints.nodes {
        text += &format!("  node-{}     {}\n", node.id, node.address);
    }
    let kept = if about.ephemeral { "removed at the end" } else { "found again at the next start" };
    text += &format!("  data       {}  ({kept})\n", about.root.display());
    text += &format!("  logs       {}\n\n", about.root.join("logs").display());
    let data = if about.default_data {
        String::new()
    } else {
        format!(" --data {}", quoted(&about.root.display().to_string()))
    };
    let program = quoted(program);
    text += "Try next, in another terminal:\n\n";
    text += &format!("  {program} demo flash-sale{data}    # a crowd buys out an event, with proof\n");
    text += &format!("  {program} region list{data}\n");
    text += &format!("  TOKEN=$({program} token --user alice{data})\n");
    if let Some(gateway) = endpoints.gateways.first() {
        let authority = gateway.url.trim_start_matches("http://");
        text += &format!(
            "  grpcurl -plaintext -max-time 5 -H \"authorization: Bearer $TOKEN\" {authority} tidewall.v1.RegionService/ListRegions\n"
        );
    }
    text + "\nCtrl-C stops everything.\n"
}

/// A word as a shell takes it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', "'\\''"))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::endpoints::{ENDPOINTS_FORMAT, GatewayEndpoint};

    #[test]
    fn the_welcome_names_what_to_try() {
        let endpoints = Endpoints {
            format: ENDPOINTS_FORMAT,
            cluster: "00112233445566778899aabbccddeeff".into(),
            supervisor_pid: 1,
            ready: true,
            gateways: vec![GatewayEndpoint { id: 1, url: "http://127.0.0.1:7400".into(), pid: None }],
            nodes: Vec::new(),
        };
        let mut about = Welcome {
            endpoints: &endpoints,
            regions: 12,
            root: Path::new("/tmp/my data"),
            took: Duration::from_millis(1_420),
            program: "tidewall",
            default_data: false,
            ephemeral: true,
        };
        let text = welcome(&about);
        assert!(text.contains("ready after 1.4 s: 12 regions, 0 shard nodes, 1 gateway."), "{text}");
        assert!(text.contains("tidewall token --user alice --data '/tmp/my data'"), "{text}");
        assert!(text.contains("$TOKEN\" 127.0.0.1:7400 tidewall.v1.RegionService/ListRegions"), "{text}");
        about.default_data = true;
        assert!(welcome(&about).contains("tidewall token --user alice)"));
    }

    #[test]
    fn shell_words_are_quoted_when_they_must_be() {
        assert_eq!(quoted("target/release/tidewall"), "target/release/tidewall");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), "'it'\\''s'");
        assert_eq!(quoted(""), "''");
    }
}
