//! `tidewall chaos`: does harm to clusters of its own and checks whether every promise was kept. A thin shell around
//! `tidewall-chaos`, which does the work from outside; this module only lays clusters out and words results.
//!
//! It never touches a cluster that it has not started.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use parking_lot::Mutex;
use serde::Serialize;
use tidewall_chaos::ChaosError;
use tidewall_chaos::driver::{Blueprint, Hosts, NodePlan, Site};
use tidewall_chaos::report::Report;
use tidewall_chaos::run::{Kind, Options, run as run_chaos};
use tidewall_chaos::scenario::Scenario;

use crate::borrowed;
use crate::certificates::Authority;
use crate::datadir::{DataDir, Wanted};
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::keys;
use crate::output::{self, Format, ProgressLine};
use crate::ports::{self, Reservation};
use crate::signals::Signals;

/// Ports of members that have an address of their own: client port, peer port, gateway.
const OWN_PORTS: (u16, u16, u16) = (7_001, 7_002, 7_400);
/// How long what was killed may take to be gone when a run is interrupted, before the data go.
const GONE_WITHIN: Duration = Duration::from_millis(300);

/// Arguments of `tidewall chaos`.
#[derive(Debug, Args)]
pub struct ChaosCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Run scenarios against clusters of its own, and judge them
    #[command(after_help = "Examples:\n  tidewall chaos run --scenario leader-kill --count 5\n  \
                      tidewall chaos run --scenario transfer,drain-restart --report ./chaos -o json\n  \
                      sudo tidewall chaos run --scenario partition --driver netns --count 10\n\n\
                      The exit code is 0 only if every checker is satisfied; with --strict only if every target was met, too. \
                      Partitions, full disks and disk errors need root; `chaos list` says what each scenario does.")]
    Run(RunArgs),
    /// Say which scenarios there are
    #[command(after_help = "Example:\n  tidewall chaos list -o json")]
    List,
}

/// Drivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DriverName {
    /// Processes on the loopback interface
    Process,
    /// Each process in a network namespace of its own; needs root
    Netns,
}

/// Arguments of `tidewall chaos run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Scenarios, in order; see `chaos list`
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    pub scenario: Vec<Scenario>,
    /// Faults of each scenario [default: as many as docs/CHAOS.md asks for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub count: Option<u64>,
    /// Where clusters run; a scenario that needs namespaces gets them in any case
    #[arg(long, value_enum, default_value_t = DriverName::Process)]
    pub driver: DriverName,
    /// Directory for the clusters' data, which must not exist yet; kept when a promise was broken [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// Do no more harm after this time, for each scenario
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub duration: Option<Duration>,
    /// Calls a second, over all regions
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(12..=100_000))]
    pub rate: u32,
    /// Decides what is left to chance
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Directory for the report: chaos.txt, chaos.json, a timeline for each cluster
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Program that runs every member, to put another build to the test [default: this one]
    #[arg(long, value_name = "FILE")]
    pub program: Option<PathBuf>,
    /// Missed targets fail the run, too
    #[arg(long)]
    pub strict: bool,
}

#[derive(Debug, Serialize)]
struct ScenarioView {
    name: &'static str,
    about: &'static str,
    full_count: u64,
}

/// Runs the command.
pub async fn run(command: &ChaosCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::Run(arguments) => start(arguments, format).await,
        Verb::List => list(format),
    }
}

fn list(format: Format) -> Result<(), Failure> {
    let views = Scenario::ALL.map(|scenario| ScenarioView {
        name: scenario.name(),
        about: scenario.about(),
        full_count: scenario.full_count(),
    });
    if format == Format::Json {
        return output::json(&views);
    }
    let rows = views.map(|view| vec![view.name.into(), view.full_count.to_string(), view.about.into()]);
    output::text(&output::table(&["SCENARIO", "COUNT", "WHAT"], rows.into()))
}

async fn start(arguments: &RunArgs, format: Format) -> Result<(), Failure> {
    let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
    let mut signals = Signals::new()?;
    let temporary = match &arguments.data {
        Some(data) if data.exists() => {
            let text = format!("{} exists: name a directory that does not, with --data", data.display());
            return Err(Failure::new(Exit::Usage, text));
        }
        Some(_) => None,
        None => Some(
            tempfile::Builder::new()
                .prefix("tidewall-chaos-")
                .tempdir()
                .map_err(|e| environment(&format!("cannot make a temporary directory: {e}")))?,
        ),
    };
    let data = match (&arguments.data, &temporary) {
        (Some(data), _) => std::path::absolute(data).map_err(|e| environment(&e))?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => return Err(environment(&"no data directory")),
    };
    let site = Here {
        program: match &arguments.program {
            Some(program) => std::path::absolute(program).map_err(|e| environment(&e))?,
            // The same program for every start, also when the file is replaced meanwhile.
            None => PathBuf::from(format!("/proc/{}/exe", std::process::id())),
        },
    };
    let line = Arc::new(Mutex::new(ProgressLine::default()));
    let shown = Arc::clone(&line);
    let options = Options {
        scenarios: arguments.scenario.clone(),
        count: arguments.count,
        kind: match arguments.driver {
            DriverName::Process => Kind::Process,
            DriverName::Netns => Kind::Netns,
        },
        data: data.clone(),
        duration: arguments.duration,
        rate: f64::from(arguments.rate),
        seed: arguments.seed,
        report: arguments.report.clone(),
        progress: Arc::new(move |words| shown.lock().show(words)),
    };
    // Dropping the run ends its processes and takes its network and mounts away.
    let result = tokio::select! {
        result = run_chaos(&site, &options) => result.map_err(failure),
        signal = signals.next() => {
            Err(Failure::new(Exit::Failed, format!("{signal}: the run was stopped and nothing was judged")))
        }
    };
    line.lock().clear();
    let keep = matches!(&result, Ok(report) if !report.correct());
    match (temporary, keep) {
        (Some(temporary), true) => {
            let path = temporary.keep();
            output::note(&format!(
                "the data and logs of clusters that broke a promise are kept in {}",
                path.display()
            ));
        }
        (Some(temporary), false) => {
            tokio::time::sleep(GONE_WITHIN).await;
            if let Err(error) = temporary.close() {
                tracing::warn!("cannot remove the temporary directory: {error}");
            }
        }
        (None, _) => {}
    }
    let report = result?;
    match format {
        Format::Json => output::json(&report)?,
        Format::Table => output::text(&report.to_string())?,
    }
    verdict(&report, arguments.strict)
}

/// Success only if every promise was kept.
fn verdict(report: &Report, strict: bool) -> Result<(), Failure> {
    if !report.correct() {
        return Err(Failure::new(
            Exit::Failed,
            "a checker is not satisfied, or a scenario was cut short: see above",
        ));
    }
    if strict && !report.on_target() {
        return Err(Failure::new(
            Exit::Failed,
            "a target was missed, which --strict does not allow: see above",
        ));
    }
    Ok(())
}

/// Which exit code an error of a run has.
fn failure(error: ChaosError) -> Failure {
    match error {
        ChaosError::Load(error) => crate::load::failure(error),
        ChaosError::Usage(_) => Failure::new(Exit::Usage, error),
        ChaosError::Late { .. } | ChaosError::Call { .. } => Failure::new(Exit::Unavailable, error),
        ChaosError::Unsupported { .. }
        | ChaosError::System { .. }
        | ChaosError::Command { .. }
        | ChaosError::Plot { .. }
        | ChaosError::Site(_) => Failure::new(Exit::Environment, error),
    }
}

/// Lays clusters out on this machine, as `up` does.
struct Here {
    program: PathBuf,
}

impl Site for Here {
    fn prepare(&self, directory: &Path, hosts: &Hosts) -> Result<Blueprint, ChaosError> {
        let refused = |error: &dyn std::fmt::Display| ChaosError::Site(error.to_string());
        let data = DataDir::new(directory);
        let (lock, mut topology, node_ports) =
            data.prepare(&Wanted::default(), Duration::ZERO).map_err(|e| refused(&e))?;
        let key = keys::ensure(&data.keys()).map_err(|e| refused(&e))?;
        let (client_port, peer_port, gateway_port) = OWN_PORTS;
        if !hosts.nodes.is_empty() {
            for (node, host) in topology.nodes.iter_mut().zip(&hosts.nodes) {
                node.address = SocketAddr::new(*host, client_port);
                node.peer_address = SocketAddr::new(*host, peer_port);
            }
            topology.save(&data.topology()).map_err(|e| refused(&e))?;
        }
        let cluster = topology.cluster_bytes().unwrap_or_default();
        let authority = Authority::ensure(&data.certificates(), cluster).map_err(|e| refused(&e))?;
        if let Some(authority) = authority {
            authority.issue_all(&topology).map_err(|e| refused(&e))?;
        }
        let mut reservation = Reservation::default();
        let gateways = if hosts.gateways.is_empty() {
            vec![reservation.exactly(ports::any_loopback(), Duration::ZERO).map_err(|e| refused(&e))?]
        } else {
            hosts.gateways.iter().map(|host| SocketAddr::new(*host, gateway_port)).collect()
        };
        // The ports are free again from here on, for the processes that they were kept for.
        drop((node_ports, reservation));
        let nodes = topology.nodes.iter().map(|node| NodePlan {
            id: node.id,
            directory: data.node(node.id),
            address: node.address,
            peer_address: node.peer_address,
        });
        Ok(Blueprint {
            program: self.program.clone(),
            root: directory.to_owned(),
            topology: data.topology(),
            public_key: keys::public_path(&data.keys()),
            signing_key: keys::private_path(&data.keys()),
            account_key: keys::account_path(&data.keys()),
            nodes: nodes.collect(),
            gateways,
            regions: topology.regions.iter().map(|region| format!("regions/{}", region.id)).collect(),
            mint: borrowed::target(Vec::new(), &key).map_err(|e| refused(&e))?.mint,
            held: Box::new(lock),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::net::{IpAddr, Ipv4Addr};

    use tidewall_client::topology::Topology;

    use super::*;

    fn site() -> Here {
        Here { program: "/bin/false".into() }
    }

    #[test]
    fn a_cluster_is_laid_out_on_the_loopback_interface_or_where_it_is_told() {
        let parent = tempfile::tempdir().unwrap();
        let plan = site().prepare(&parent.path().join("a"), &Hosts::default()).unwrap();
        assert_eq!((plan.nodes.len(), plan.gateways.len(), plan.regions.len()), (3, 1, 12));
        assert!(plan.nodes.iter().all(|node| node.address.ip().is_loopback() && node.address.port() != 0));
        assert!(plan.public_key.exists());

        let host = |last| IpAddr::V4(Ipv4Addr::new(10, 9, 8, last));
        let hosts = Hosts { nodes: vec![host(1), host(2), host(3)], gateways: vec![host(4), host(1)] };
        let plan = site().prepare(&parent.path().join("b"), &hosts).unwrap();
        let topology = Topology::load(&plan.topology).unwrap();
        assert_eq!(topology.nodes[1].peer_address, "10.9.8.2:7002".parse().unwrap());
        assert_eq!(plan.gateways[1], "10.9.8.1:7400".parse().unwrap());
    }

    #[test]
    fn scenarios_are_listed_by_comma_and_unknown_ones_refused() {
        let parse = |names: &str| crate::parse(["tidewall", "chaos", "run", "--scenario", names]);
        let cli = parse("leader-kill,transfer").unwrap();
        let Some(crate::Command::Chaos(ChaosCommand { verb: Verb::Run(arguments) })) = cli.command else {
            panic!("another command")
        };
        assert_eq!(arguments.scenario, [Scenario::LeaderKill, Scenario::Transfer]);
        assert!(parse("leader-kil").unwrap_err().to_string().contains("leader-kill"));
    }

    #[test]
    fn an_existing_directory_is_no_place_for_chaos() {
        let directory = tempfile::tempdir().unwrap();
        let text = directory.path().display().to_string();
        let cli =
            crate::parse(["tidewall", "chaos", "run", "--scenario", "transfer", "--data", &text]).unwrap();
        let Some(crate::Command::Chaos(command)) = cli.command else { panic!("another command") };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let failure = runtime.block_on(run(&command, Format::Table)).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().contains("--data"), "{failure}");
    }
}
