//! `./chaos`: does harm to clusters of its own and checks whether every promise was kept.
//!
//! It never touches a cluster that it has not started. Exit codes are those of `tidewall`.

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use comfy_table::{ContentArrangement, Table, presets};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::ChaosError;
use crate::driver::Site;
use crate::report::Report;
use crate::run::{Kind, Options, run as run_chaos};
use crate::scenario::Scenario;

/// A checker is not satisfied, or the run was interrupted.
const FAILED: u8 = 1;
/// The command line makes no sense.
const USAGE: u8 = 2;
/// The cluster does not answer.
const UNAVAILABLE: u8 = 3;
/// This machine does not allow it.
const ENVIRONMENT: u8 = 5;

/// How long what was killed may take to be gone when a run ends, before the data go.
const GONE_WITHIN: Duration = Duration::from_millis(300);

/// Does harm to clusters of its own, and checks whether every promise was kept.
#[derive(Debug, Parser)]
#[command(
    name = "chaos",
    version,
    after_help = "Examples:\n  ./chaos list\n  ./chaos run --scenario leader-kill --count 5",
    max_term_width = 110
)]
struct Cli {
    /// What to do
    #[command(subcommand)]
    verb: Verb,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,
    /// What is logged to standard error, as a tracing filter
    #[arg(long, global = true, value_name = "FILTER", env = "RUST_LOG", default_value = "warn")]
    log: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// For people
    Table,
    /// For programs: one JSON document
    Json,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run scenarios against clusters of its own, and judge them
    #[command(after_help = "Examples:\n  ./chaos run --scenario leader-kill --count 5\n  \
                      ./chaos run --scenario transfer,drain-restart --report ./report -o json\n  \
                      sudo ./chaos run --scenario partition --driver netns --count 10\n\n\
                      The exit code is 0 only if every checker is satisfied; with --strict only if every target was met, too. \
                      Partitions, full disks and disk errors need root; `list` says what each scenario does.")]
    Run(RunArgs),
    /// Say which scenarios there are
    #[command(after_help = "Example:\n  ./chaos list -o json")]
    List,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum DriverName {
    /// Processes on the loopback interface
    Process,
    /// Each process in a network namespace of its own; needs root
    Netns,
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Scenarios, in order; see `list`
    #[arg(long, value_name = "NAME", value_delimiter = ',', required = true)]
    scenario: Vec<Scenario>,
    /// Faults of each scenario [default: as many as docs/CHAOS.md asks for]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Where clusters run; a scenario that needs namespaces gets them in any case
    #[arg(long, value_enum, default_value_t = DriverName::Process)]
    driver: DriverName,
    /// Directory for the clusters' data, which must not exist yet; kept when a promise was broken [default: a temporary one]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Do no more harm after this many seconds, for each scenario
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    duration: Option<u64>,
    /// Calls a second, over all regions
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(12..=100_000))]
    rate: u32,
    /// Decides what is left to chance
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
    /// Directory for the report: chaos.txt, chaos.json, a timeline for each cluster
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
    /// Program under test [default: `tidewall` beside this one]
    #[arg(long, value_name = "FILE", env = "TIDEWALL_BIN")]
    program: Option<PathBuf>,
    /// Missed targets fail the run, too
    #[arg(long)]
    strict: bool,
}

/// Why the command did not do its work, and the code to end with.
#[derive(Debug)]
struct Failure(u8, String);

impl Failure {
    fn environment(why: impl std::fmt::Display) -> Self {
        Self(ENVIRONMENT, why.to_string())
    }
}

impl From<ChaosError> for Failure {
    fn from(error: ChaosError) -> Self {
        let code = match &error {
            ChaosError::Usage(_) => USAGE,
            ChaosError::Load(_) | ChaosError::Late { .. } | ChaosError::Call { .. } => UNAVAILABLE,
            ChaosError::Unsupported { .. }
            | ChaosError::System { .. }
            | ChaosError::Command { .. }
            | ChaosError::Plot { .. }
            | ChaosError::Site(_) => ENVIRONMENT,
        };
        Self(code, error.to_string())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let logging = tracing_subscriber::EnvFilter::try_new(&cli.log)
        .map_err(|error| Failure(USAGE, format!("{:?} is not a log filter: {error}", cli.log)));
    let done = logging.and_then(|filter| {
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal())
            .init();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
        runtime.map_err(Failure::environment)?.block_on(act(&cli))
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, why)) => {
            eprintln!("error: {why}");
            ExitCode::from(code)
        }
    }
}

async fn act(cli: &Cli) -> Result<(), Failure> {
    match &cli.verb {
        Verb::Run(arguments) => run(arguments, cli.output).await,
        Verb::List => print(&list(cli.output)?),
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure(FAILED, error.to_string()))?;
    Ok(text + "\n")
}

/// Prints to standard output. A reader that has gone away is no error.
fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::environment(error)),
        _ => Ok(()),
    }
}

#[derive(Debug, Serialize)]
struct ScenarioView {
    name: &'static str,
    about: &'static str,
    full_count: u64,
}

fn list(format: Format) -> Result<String, Failure> {
    let views = Scenario::ALL.map(|scenario| ScenarioView {
        name: scenario.name(),
        about: scenario.about(),
        full_count: scenario.full_count(),
    });
    if format == Format::Json {
        return json(&views);
    }
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(["SCENARIO", "COUNT", "WHAT"]);
    table.add_rows(
        views.map(|view| vec![view.name.to_owned(), view.full_count.to_string(), view.about.to_owned()]),
    );
    Ok(table.trim_fmt() + "\n")
}

/// The program under test.
fn site(program: Option<&PathBuf>) -> Result<Site, Failure> {
    let program = match program {
        Some(program) => std::path::absolute(program),
        None => std::env::current_exe().map(|own| own.with_file_name("tidewall")),
    };
    let program = program.map_err(Failure::environment)?;
    if !program.is_file() {
        let why = format!("there is no program {}: build it, or name one with --program", program.display());
        return Err(Failure(USAGE, why));
    }
    Site::new(&program).map_err(Failure::environment)
}

/// Shows where a run stands: one line that replaces itself on a terminal, a line each elsewhere.
fn show(words: &str) {
    let mut err = std::io::stderr().lock();
    // A closed standard error is no reason to stop.
    let _ = if err.is_terminal() { write!(err, "\r\x1b[K{words}") } else { writeln!(err, "{words}") };
    let _ = err.flush();
}

async fn interrupted() -> &'static str {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => "interrupted",
        _ = terminate.recv() => "SIGTERM",
    }
}

async fn run(arguments: &RunArgs, format: Format) -> Result<(), Failure> {
    let site = site(arguments.program.as_ref())?;
    let temporary = match &arguments.data {
        Some(data) if data.exists() => {
            let why = format!("{} exists: name a directory that does not, with --data", data.display());
            return Err(Failure(USAGE, why));
        }
        Some(_) => None,
        None => {
            Some(tempfile::Builder::new().prefix("tidewall-chaos-").tempdir().map_err(Failure::environment)?)
        }
    };
    let data = match (&arguments.data, &temporary) {
        (Some(data), _) => std::path::absolute(data).map_err(Failure::environment)?,
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => return Err(Failure::environment("no data directory")),
    };
    let options = Options {
        scenarios: arguments.scenario.clone(),
        count: arguments.count,
        kind: match arguments.driver {
            DriverName::Process => Kind::Process,
            DriverName::Netns => Kind::Netns,
        },
        data,
        duration: arguments.duration.map(Duration::from_secs),
        rate: f64::from(arguments.rate),
        seed: arguments.seed,
        report: arguments.report.clone(),
        progress: Arc::new(show),
    };
    // Dropping the run ends its processes and takes its network and mounts away.
    let result = tokio::select! {
        result = run_chaos(&site, &options) => result.map_err(Failure::from),
        signal = interrupted() => {
            Err(Failure(FAILED, format!("{signal}: the run was stopped and nothing was judged")))
        }
    };
    if std::io::stderr().is_terminal() {
        show("");
    }
    let keep = matches!(&result, Ok(report) if !report.correct());
    match (temporary, keep) {
        (Some(temporary), true) => {
            let path = temporary.keep();
            eprintln!("the data and logs of clusters that broke a promise are kept in {}", path.display());
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
        Format::Json => print(&json(&report)?)?,
        Format::Table => print(&report.to_string())?,
    }
    verdict(&report, arguments.strict)
}

/// Success only if every promise was kept.
fn verdict(report: &Report, strict: bool) -> Result<(), Failure> {
    if !report.correct() {
        let why = "a checker is not satisfied, or a scenario was cut short: see above";
        return Err(Failure(FAILED, why.to_owned()));
    }
    if strict && !report.on_target() {
        let why = "a target was missed, which --strict does not allow: see above";
        return Err(Failure(FAILED, why.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_consistent_and_every_help_has_an_example() {
        Cli::command().debug_assert();
        let mut cli = Cli::command();
        for name in ["run", "list"] {
            let help = cli.find_subcommand_mut(name).unwrap().render_long_help().to_string();
            assert!(help.contains("Example"), "{help}");
        }
    }

    #[test]
    fn scenarios_are_listed_by_comma_and_unknown_ones_refused() {
        let parse = |names: &str| Cli::try_parse_from(["chaos", "run", "--scenario", names]);
        let Verb::Run(arguments) = parse("leader-kill,transfer").unwrap().verb else {
            panic!("another verb")
        };
        assert_eq!(arguments.scenario, [Scenario::LeaderKill, Scenario::Transfer]);
        assert!(parse("leader-kil").unwrap_err().to_string().contains("leader-kill"));
    }

    #[test]
    fn an_existing_directory_is_no_place_for_chaos_and_a_missing_program_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let run = |data: &str, program: &str| {
            let words = ["chaos", "run", "--scenario", "transfer", "--data", data, "--program", program];
            let Verb::Run(arguments) = Cli::try_parse_from(words).unwrap().verb else {
                panic!("another verb")
            };
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(run(&arguments, Format::Table)).unwrap_err()
        };
        let there = directory.path().display().to_string();
        let own = std::env::current_exe().unwrap().display().to_string();
        let Failure(code, why) = run(&there, &own);
        assert!(code == USAGE && why.contains("--data"), "{why}");
        let Failure(code, why) = run(&there, "/nowhere/tidewall");
        assert!(code == USAGE && why.contains("/nowhere/tidewall"), "{why}");
    }
}
