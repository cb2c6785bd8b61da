//! `tidewall load`: the load generator, a thin shell around the crate that does the work.
//!
//! It aims at a running cluster, or starts one of its own for the run. Standard output carries the report and
//! nothing else.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand, ValueEnum};
use parking_lot::Mutex;
use tidewall_load::stories::{MethodFigures, Stories, StoriesPlan, Told};
use tidewall_load::{FlashSale, LoadError, Mode, Phase, Progress, ReplayOptions, Report, Target};

use crate::borrowed::{self, Source};
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::output::{self, Format, ProgressLine};

/// Arguments of `tidewall load`.
#[derive(Debug, Args)]
pub struct LoadCommand {
    /// What to send
    #[command(subcommand)]
    pub scenario: Scenario,
}

/// Kinds of load.
#[derive(Debug, Subcommand)]
pub enum Scenario {
    /// A crowd buys tickets of one hot event, or a recorded sale is replayed; then everything is audited
    #[command(
        name = "flash-sale",
        after_help = "Examples:\n  tidewall load flash-sale --buyers 50000 --stock 10000 --mode at-once\n  \
                      tidewall load flash-sale --mode open --rate 5000 --duration 60s --svg latency.svg -o json\n  \
                      tidewall load flash-sale --trace tests/traces/ticket-shop-morning.csv\n\n\
                      Without --target and without a cluster on --data it starts one of its own, on a temporary \
                      directory. The exit code is 0 only if the audit is ok."
    )]
    FlashSale(Box<FlashSaleArgs>),
    /// Clients of every domain do what clients do, and judge every answer by what they did before
    #[command(after_help = "Examples:\n  tidewall load stories --duration 60s\n  \
                      tidewall load stories --workload tickets --tellers 256 -o json\n\n\
                      Without --target and without a cluster on --data it starts one of its own, on a temporary \
                      directory. The exit code is 0 only if every answer was right.")]
    Stories(StoriesArgs),
}

/// Arguments of `tidewall load stories`.
#[derive(Debug, Args)]
pub struct StoriesArgs {
    /// Workloads, separated by commas [default: all]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub workload: Vec<String>,
    /// How many clients tell at the same time [default: 16]
    #[arg(long, value_name = "N")]
    pub tellers: Option<usize>,
    /// How long
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "30s")]
    pub duration: Duration,
    /// Connections to the gateways [default: 4]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Decides what is left to chance [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Which cluster
    #[command(flatten)]
    pub source: Source,
}

impl StoriesArgs {
    fn plan(&self) -> StoriesPlan {
        let base = StoriesPlan::default();
        StoriesPlan {
            workloads: if self.workload.is_empty() { base.workloads } else { self.workload.clone() },
            tellers: self.tellers.unwrap_or(base.tellers),
            connections: self.connections.unwrap_or(base.connections),
            seed: self.seed.unwrap_or(base.seed),
            pause: base.pause,
            own: false,
        }
    }
}

/// How buyers arrive.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Arrival {
    /// At a steady rate, whether or not earlier ones have been answered.
    Open,
    /// A fixed number at a time; the next comes when one has been answered.
    Closed,
    /// Everybody at the same moment.
    AtOnce,
}

/// Arguments of `tidewall load flash-sale`.
#[derive(Debug, Args)]
pub struct FlashSaleArgs {
    /// How many people want tickets [default: 5000]
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    pub buyers: Option<u64>,
    /// Tickets on sale [default: 1000]
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    pub stock: Option<u64>,
    /// Tickets that each buyer asks for [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    pub quantity: Option<u32>,
    /// Region of the event [default: the seed chooses one]
    #[arg(long, value_name = "REGION", conflicts_with = "trace")]
    pub region: Option<String>,
    /// How buyers arrive [default: open with --rate, otherwise closed]
    #[arg(long, value_enum, conflicts_with = "trace")]
    pub mode: Option<Arrival>,
    /// Buyers a second, for --mode open
    #[arg(long, value_name = "PER_SECOND", conflicts_with_all = ["trace", "concurrency"])]
    pub rate: Option<f64>,
    /// Calls in flight, for --mode closed [default: 64]
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    pub concurrency: Option<usize>,
    /// Go on for this long; buyers come again in turn
    #[arg(long, value_name = "TIME", value_parser = duration::parse, conflicts_with = "trace")]
    pub duration: Option<Duration>,
    /// Buy through the bulk call, this many purchases at a time
    #[arg(long, value_name = "N", conflicts_with = "trace")]
    pub batch: Option<usize>,
    /// Let 256 subjects share the work instead of a token for each buyer
    #[arg(long, conflicts_with = "trace")]
    pub shared_tokens: bool,
    /// Replay the arrivals of a recorded sale: CSV of offset_ms, buyer, event, tier, quantity
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Replay faster (2) or slower (0.5) than recorded [default: 1]
    #[arg(long, value_name = "FACTOR", requires = "trace")]
    pub speed: Option<f64>,
    /// Capacity of each tier as a fraction of what the trace asks for [default: 0.5]
    #[arg(long, value_name = "FRACTION", requires = "trace")]
    pub capacity: Option<f64>,
    /// Quota per buyer of the events [default: one that nobody in the run reaches]
    #[arg(long, value_name = "N")]
    pub quota: Option<u32>,
    /// Connections to the gateways [default: 4]
    #[arg(long, value_name = "N")]
    pub connections: Option<usize>,
    /// Deadline of each call [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub timeout: Option<Duration>,
    /// How long a buyer keeps trying [default: 30s]
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    pub patience: Option<Duration>,
    /// Do not come back after a refusal for overload
    #[arg(long)]
    pub no_retry: bool,
    /// Decides what is left to chance [default: 1]
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Draw latency and throughput into this file
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
    /// Which cluster
    #[command(flatten)]
    pub source: Source,
}

impl FlashSaleArgs {
    /// The plan of a sale; what was not said is the load generator's default.
    fn plan(&self) -> Result<FlashSale, Failure> {
        let base = FlashSale::default();
        let arrival = self.mode.unwrap_or(if self.rate.is_some() { Arrival::Open } else { Arrival::Closed });
        let usage = |text: &str| Err(Failure::new(Exit::Usage, text));
        let mode = match (arrival, self.rate, self.concurrency) {
            (Arrival::Open, Some(rate_per_second), None) => Mode::Open { rate_per_second },
            (Arrival::Open, ..) => return usage("--mode open needs --rate, and no --concurrency"),
            (Arrival::Closed, None, Some(concurrency)) => Mode::Closed { concurrency },
            (Arrival::Closed, None, None) => match base.mode {
                Mode::Closed { .. } => base.mode,
                Mode::Open { .. } | Mode::AllAtOnce => Mode::Closed { concurrency: 64 },
            },
            (Arrival::Closed, ..) => return usage("--rate belongs to --mode open"),
            (Arrival::AtOnce, None, None) => Mode::AllAtOnce,
            (Arrival::AtOnce, ..) => return usage("--mode at-once takes neither --rate nor --concurrency"),
        };
        Ok(FlashSale {
            region: self.region.clone(),
            buyers: self.buyers.unwrap_or(base.buyers),
            stock: self.stock.unwrap_or(base.stock),
            quantity: self.quantity.unwrap_or(base.quantity),
            mode,
            connections: self.connections.unwrap_or(base.connections),
            deadline: self.timeout.unwrap_or(base.deadline),
            patience: self.patience.unwrap_or(base.patience),
            honour_retry: !self.no_retry,
            quota: self.quota,
            distinct_tokens: !self.shared_tokens,
            seed: self.seed.unwrap_or(base.seed),
            batch: self.batch,
            duration: self.duration,
        })
    }

    fn replay(&self) -> ReplayOptions {
        let base = ReplayOptions::default();
        ReplayOptions {
            speed: self.speed.unwrap_or(base.speed),
            capacity_fraction: self.capacity.unwrap_or(base.capacity_fraction),
            quota: self.quota,
            connections: self.connections.unwrap_or(base.connections),
            deadline: self.timeout.unwrap_or(base.deadline),
            patience: self.patience.unwrap_or(base.patience),
            honour_retry: !self.no_retry,
            seed: self.seed.unwrap_or(base.seed),
        }
    }
}

/// Runs the command.
pub async fn run(command: &LoadCommand, format: Format, log: Option<&str>) -> Result<(), Failure> {
    match &command.scenario {
        Scenario::FlashSale(arguments) => sell(arguments, format, log).await,
        Scenario::Stories(arguments) => tell(arguments, format, log).await,
    }
}

async fn tell(arguments: &StoriesArgs, format: Format, log: Option<&str>) -> Result<(), Failure> {
    let plan = arguments.plan();
    plan.check().map_err(failure)?;
    let told = borrowed::with_target(&arguments.source, log, async |target: &Target| {
        let stories = Stories::start(target, &plan).await.map_err(failure)?;
        let (mut line, began) = (ProgressLine::default(), Instant::now());
        while began.elapsed() < arguments.duration {
            let left = arguments.duration.saturating_sub(began.elapsed());
            tokio::time::sleep(left.min(Duration::from_secs(1))).await;
            line.show(&format!("{} s: {} answers", began.elapsed().as_secs(), stories.answers()));
        }
        line.clear();
        stories.stop().await.map_err(failure)
    })
    .await?;
    match format {
        Format::Json => output::json(&told)?,
        Format::Table => output::text(&story_table(&told))?,
    }
    match told.ok() {
        true => Ok(()),
        false if told.answers == 0 => Err(Failure::new(Exit::Failed, "nobody has answered")),
        false => {
            Err(Failure::new(Exit::Failed, format!("{} answers were wrong: see above", told.wrong.len())))
        }
    }
}

fn story_table(told: &Told) -> String {
    let row = |figures: &MethodFigures| {
        let times = [figures.p50_ms, figures.p99_ms, figures.max_ms].map(|ms| format!("{ms:.2}"));
        [vec![figures.method.clone(), figures.answers.to_string()], times.into()].concat()
    };
    let rows = told.methods.iter().map(row).collect();
    let wrong: String = told.wrong.iter().map(|wrong| format!("WRONG: {wrong}\n")).collect();
    let sum = format!(
        "{} stories told to their end, {} webhooks, {} answers in {:.1} s: {:.0}/s, {} wrong\n",
        told.stories,
        told.webhooks,
        told.answers,
        told.duration_s,
        told.answers_per_second,
        told.wrong.len()
    );
    output::table(&["METHOD", "ANSWERS", "P50 MS", "P99 MS", "MAX MS"], rows) + &wrong + &sum
}

async fn sell(arguments: &FlashSaleArgs, format: Format, log: Option<&str>) -> Result<(), Failure> {
    // What can be refused is refused before a cluster is started for it.
    let plan = arguments.plan()?;
    let replay = arguments.replay();
    if let Some(path) = &arguments.trace {
        replay.check().map_err(failure)?;
        check_trace(path)?;
    } else {
        plan.check().map_err(failure)?;
    }
    let report = borrowed::with_target(&arguments.source, log, async |target: &Target| {
        let screen = Mutex::new(Screen::default());
        let told = |progress: Progress| screen.lock().show(&progress);
        let result = match &arguments.trace {
            Some(path) => tidewall_load::replay_trace(target, path, &replay, told).await,
            None => tidewall_load::flash_sale(target, &plan, told).await,
        };
        screen.lock().line.clear();
        result.map_err(failure)
    })
    .await?;
    print(&report, format)?;
    if let Some(path) = &arguments.svg {
        report.write_svg(path).map_err(failure)?;
    }
    verdict(&report)
}

/// Refuses a trace that cannot be replayed before a cluster is started for it.
fn check_trace(path: &std::path::Path) -> Result<(), Failure> {
    let bytes = std::fs::read(path)
        .map_err(|source| failure(LoadError::File { doing: "read", path: path.to_owned(), source }))?;
    tidewall_load::trace::parse(&bytes)
        .map(|_| ())
        .map_err(|source| failure(LoadError::Trace { path: path.to_owned(), source }))
}

/// Prints a report to standard output.
pub fn print(report: &Report, format: Format) -> Result<(), Failure> {
    match format {
        Format::Json => output::text(&(report.to_json() + "\n")),
        Format::Table => output::text(&report.to_string()),
    }
}

/// Success only if the audit is.
pub fn verdict(report: &Report) -> Result<(), Failure> {
    if report.ok() {
        return Ok(());
    }
    let why = match &report.aborted {
        Some(why) => format!("the run was stopped early: {why}"),
        None if report.audit == "ok" => "the run does not add up".to_owned(),
        None => format!("the audit found: {}", report.audit),
    };
    Err(Failure::new(Exit::Failed, why))
}

/// Which exit code an error of the load generator has.
pub fn failure(error: LoadError) -> Failure {
    let exit = match &error {
        LoadError::Plan(_)
        | LoadError::Endpoint { .. }
        | LoadError::Token { .. }
        | LoadError::Trace { .. } => Exit::Usage,
        LoadError::Unreachable { .. } => Exit::Unavailable,
        LoadError::Setup { code, .. } => Exit::of_status(*code),
        LoadError::NoRegion { .. } => Exit::Refused,
        LoadError::File { .. } | LoadError::Plot { .. } | LoadError::Output(_) => Exit::Environment,
        LoadError::Task(_) => Exit::Failed,
    };
    Failure::new(exit, error)
}

/// The progress line: always current on a terminal, a line a second elsewhere.
#[derive(Default)]
struct Screen {
    line: ProgressLine,
    shown: Option<(Phase, Duration)>,
}

impl Screen {
    fn show(&mut self, progress: &Progress) {
        let due = match self.shown {
            Some((phase, at)) if phase == progress.phase && !self.line.on_terminal() => {
                progress.elapsed >= at + Duration::from_secs(1)
            }
            _ => true,
        };
        if due {
            self.shown = Some((progress.phase, progress.elapsed));
            self.line.show(&tidewall_load::demo::line(progress));
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::Command;

    fn plan(arguments: &[&str]) -> Result<FlashSale, u8> {
        let all = ["tidewall", "load", "flash-sale"].iter().chain(arguments);
        let cli = crate::parse(all).map_err(|_| 2)?;
        let Some(Command::Load(LoadCommand { scenario: Scenario::FlashSale(arguments) })) = cli.command
        else {
            panic!("another command")
        };
        arguments.plan().map_err(|failure| failure.code())
    }

    #[test]
    fn what_is_not_said_is_the_default() {
        assert_eq!(plan(&[]).unwrap(), FlashSale::default());
        let said = plan(&["--buyers", "50000", "--stock", "10000", "--no-retry", "--timeout", "2s"]).unwrap();
        assert_eq!((said.buyers, said.stock, said.honour_retry), (50_000, 10_000, false));
        assert_eq!(said.deadline, Duration::from_secs(2));
    }

    #[test]
    fn modes_take_their_own_figures_only() {
        assert_eq!(plan(&["--rate", "500"]).unwrap().mode, Mode::Open { rate_per_second: 500.0 });
        assert_eq!(
            plan(&["--mode", "open", "--rate", "5"]).unwrap().mode,
            Mode::Open { rate_per_second: 5.0 }
        );
        assert_eq!(plan(&["--concurrency", "9"]).unwrap().mode, Mode::Closed { concurrency: 9 });
        assert_eq!(plan(&["--mode", "at-once"]).unwrap().mode, Mode::AllAtOnce);
        for bad in [
            &["--mode", "open"][..],
            &["--mode", "closed", "--rate", "5"],
            &["--mode", "at-once", "--concurrency", "5"],
            &["--rate", "5", "--concurrency", "5"],
            &["--trace", "x.csv", "--buyers", "5"],
            &["--speed", "2"],
        ] {
            assert_eq!(plan(bad).err(), Some(2), "{bad:?}");
        }
    }

    #[test]
    fn only_an_audited_run_succeeds() {
        let good = Report { audit: "ok".into(), ..Report::default() };
        assert!(verdict(&good).is_ok());
        for bad in [
            Report { audit: "2 tickets sold twice".into(), ..good.clone() },
            Report { aborted: Some("nobody answers".into()), ..good.clone() },
            Report { oversold: 1, ..good.clone() },
        ] {
            assert_eq!(verdict(&bad).unwrap_err().code(), 1);
        }
    }

    #[test]
    fn a_bad_trace_is_refused_before_anything_starts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bad.csv");
        assert_eq!(check_trace(&path).unwrap_err().code(), 5);
        std::fs::write(&path, "offset_ms,buyer,event,tier,quantity\nsoon,a,e,t,1\n").unwrap();
        let failure = check_trace(&path).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().contains("bad.csv"), "{failure}");
    }
}
