//! `tidewall-bench`: measures the same job (one hot row, durable before the answer, unique request ids) in
//! Tidewall, PostgreSQL, Redis and a bare gRPC echo, in one run, on one machine.
//!
//! It prints and judges nothing by exit code but failure to measure. It links no part of the server.

mod cell;
mod echo;
mod isolation;
mod long;
mod machine;
mod mix;
mod open_loop;
mod postgres;
mod reads;
mod redis;
mod report;
mod tidewall;
mod timers;
mod watch;
mod webhooks;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::cell::{Job, Span, measure};
use crate::echo::EchoServer;
use crate::machine::Machine;
use crate::postgres::{Form, Postgres};
use crate::redis::Redis;
use crate::report::{Cell, Report, System};
use crate::tidewall::Target;

/// Measures Tidewall beside PostgreSQL, Redis and a bare gRPC echo. The binary under test is TIDEWALL_BIN or
/// `tidewall` beside this one.
#[derive(Debug, Parser)]
#[command(name = "tidewall-bench", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
    /// What to compare.
    #[arg(long, value_delimiter = ',', default_values_t = Subject::ALL)]
    only: Vec<Subject>,
    /// Clients at once, one cell each.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16, 64, 100, 256, 1024],
        value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=1024))]
    clients: Vec<usize>,
    /// Also draw the comparison into this SVG file.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Common {
    /// Measured seconds of each cell.
    #[arg(long, global = true, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Where data directories are made: a directory on the disk that you want to measure.
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Measure the cluster that `tidewall up --data DIR` runs already instead of one of our own.
    #[arg(long, global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Table,
    Json,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Subject {
    Tidewall,
    Postgres,
    Redis,
    Echo,
}

impl Subject {
    const ALL: [Self; 4] = [Self::Tidewall, Self::Postgres, Self::Redis, Self::Echo];
}

impl std::fmt::Display for Subject {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let name = match self {
            Self::Tidewall => "tidewall",
            Self::Postgres => "postgres",
            Self::Redis => "redis",
            Self::Echo => "echo",
        };
        f.write_str(name)
    }
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bulk purchases: BatchBuyTickets of 64, 256 and 1000 on one row.
    Bulk,
    /// A steady rate for minutes: do backlog, memory and disk grow?
    Steady {
        /// How long.
        #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=1440))]
        minutes: u64,
        /// Purchases a second.
        #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u64).range(1..=200_000))]
        rate: u64,
    },
    /// Buyers who all come at once, each with a token of its own, for a stock that does not suffice.
    Crowd {
        /// How many come.
        #[arg(long, default_value_t = 50_000)]
        buyers: u64,
        /// How many tickets there are.
        #[arg(long, default_value_t = 10_000)]
        stock: u64,
    },
    /// A flood on one row, alone and beside others: what does each of them get?
    Isolation {
        /// Clients that flood, one table each.
        #[arg(long = "clients", id = "flood", alias = "flood", value_delimiter = ',', default_values_t = [256, 4096],
            value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
        clients: Vec<usize>,
        /// Calls a second beside each of them, in turns.
        #[arg(long, value_delimiter = ',', default_values_t = [200, 2_000, 5_000],
            value_parser = clap::value_parser!(u32).range(1..=200_000))]
        others: Vec<u32>,
    },
    /// Buyers in all regions, half of them for a hot event that moves: at which rate does it end, and how?
    Mix {
        /// What the buyers choose.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Buyers a second, one row each; then three times the best goodput of them.
        #[arg(long, value_delimiter = ',', default_values_t = [4_000, 8_000, 12_000, 16_000],
            value_parser = clap::value_parser!(u32).range(1..=200_000))]
        rates: Vec<u32>,
    },
    /// Holds that all end at the same moment: when have they all been tidied up, and what do other regions notice?
    Timers {
        /// How many.
        #[arg(long, default_value_t = 50_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=60_000))]
        holds: usize,
    },
    /// Many who watch one event while it sells: how much are they told, and how late?
    Watch {
        /// How many watch.
        #[arg(long, default_value_t = 1_000, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=20_000))]
        watchers: usize,
        /// They look at how the event is, not at each change.
        #[arg(long)]
        state: bool,
        /// Purchases a second, one row each.
        #[arg(long, value_delimiter = ',', default_values_t = [50, 100, 200, 300],
            value_parser = clap::value_parser!(u32).range(1..=200_000))]
        rates: Vec<u32>,
    },
    /// Webhooks of an organiser while an event sells: how much arrives, and how late?
    Webhooks {
        /// How many.
        #[arg(long, default_value_t = 1, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=20))]
        webhooks: usize,
        /// How long a server takes to answer, milliseconds.
        #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(0..=2_000))]
        delay: u64,
        /// Purchases a second, one row each.
        #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 3_000],
            value_parser = clap::value_parser!(u32).range(1..=200_000))]
        rates: Vec<u32>,
    },
    /// Nine reads for each purchase of a hot row, under each consistency: how late, who answers, how far standbys lag behind?
    Reads {
        /// Clients at once.
        #[arg(long = "clients", id = "reading", default_value_t = 64,
            value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
        clients: usize,
        /// Instead: buyers alone, and beside so many who list all tickets of the row, over and over.
        #[arg(long, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=64))]
        lists: Option<usize>,
    },
    /// Memory and CPU of a cluster that does nothing.
    Idle {
        /// How long to look.
        #[arg(long = "for", value_name = "SECONDS", default_value_t = 30)]
        length: u64,
    },
    #[command(hide = true)]
    EchoServer,
    /// The flood of `isolation`: floods EVENT in a process of its own when it gets a line.
    #[command(hide = true)]
    Flood {
        #[arg(long)]
        event: String,
        #[arg(long = "clients", id = "flooding")]
        clients: usize,
    },
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    machine::raise_file_limit();
    // Three times as many buyers as can be served are more than one thread can be: one thread is the measure elsewhere.
    let mut runtime = match cli.command {
        Some(Command::Mix { .. }) => tokio::runtime::Builder::new_multi_thread(),
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    runtime.enable_all().build()?.block_on(run(cli))
}

async fn run(cli: Cli) -> anyhow::Result<()> {
    if matches!(cli.command, Some(Command::EchoServer)) {
        return echo::serve().await;
    }
    let base = cli.common.dir.clone().unwrap_or_else(std::env::temp_dir);
    std::fs::create_dir_all(&base).with_context(|| format!("cannot use {}", base.display()))?;
    let span = Span {
        warm_up: Duration::from_secs(cli.common.seconds.div_ceil(3).min(3)),
        measured: Duration::from_secs(cli.common.seconds),
    };
    let common = &cli.common;
    match &cli.command {
        None => compare(&cli, &base, span).await,
        Some(Command::Bulk) => {
            let (target, mut machine) = target(common, &base).await?;
            let (text, rows) = long::bulk(&target, span).await?;
            print(common, &mut machine, &text, &rows)
        }
        Some(Command::Steady { minutes, rate }) => {
            let (target, mut machine) = target(common, &base).await?;
            let (text, samples) = long::steady(&target, Duration::from_secs(minutes * 60), *rate).await?;
            print(common, &mut machine, &text, &samples)
        }
        Some(Command::Timers { holds }) => {
            let (target, mut machine) = target(common, &base).await?;
            let (text, result) = timers::timers(&target, *holds).await?;
            print(common, &mut machine, &text, &result)
        }
        Some(Command::Isolation { clients, others }) => {
            let (target, mut machine) = target(common, &base).await?;
            let rates: Vec<f64> = others.iter().copied().map(f64::from).collect();
            let (text, result) = isolation::isolation(&target, span, clients, &rates).await?;
            print(common, &mut machine, &text, &result)
        }
        Some(Command::Mix { seed, rates }) => {
            let (target, mut machine) = target(common, &base).await?;
            let rates: Vec<f64> = rates.iter().copied().map(f64::from).collect();
            let (text, result) = mix::mix(&target, span, *seed, &rates).await?;
            print(common, &mut machine, &text, &result)
        }
        Some(Command::Watch { watchers, state, rates }) => {
            let (target, mut machine) = target(common, &base).await?;
            let rates: Vec<f64> = rates.iter().copied().map(f64::from).collect();
            let (text, rows) = watch::watched(&target, span, *watchers, *state, &rates).await?;
            print(common, &mut machine, &text, &rows)
        }
        Some(Command::Webhooks { webhooks, delay, rates }) => {
            let (target, mut machine) = target(common, &base).await?;
            let rates: Vec<f64> = rates.iter().copied().map(f64::from).collect();
            let delay = Duration::from_millis(*delay);
            let (text, rows) = webhooks::delivered(&target, span, *webhooks, delay, &rates).await?;
            print(common, &mut machine, &text, &rows)
        }
        Some(Command::Reads { clients, lists: None }) => {
            let (target, mut machine) = target(common, &base).await?;
            let (text, rows) = reads::mixed(&target, span, *clients).await?;
            print(common, &mut machine, &text, &rows)
        }
        Some(Command::Reads { clients, lists: Some(lists) }) => {
            let (target, mut machine) = target(common, &base).await?;
            let (text, rows) = reads::beside_lists(&target, span, *clients, *lists).await?;
            print(common, &mut machine, &text, &rows)
        }
        Some(Command::Flood { event, clients }) => {
            let data = common.data.as_deref().context("--data is missing")?;
            isolation::flood(&Target::running(data)?, event, *clients, span).await
        }
        Some(Command::Idle { length }) => {
            let (target, mut machine) = target(common, &base).await?;
            let (text, result) = long::idle(&target, Duration::from_secs(*length)).await;
            print(common, &mut machine, &text, &result)
        }
        Some(Command::Crowd { buyers, stock }) => crowd(common, &base, *buyers, *stock),
        Some(Command::EchoServer) => unreachable!("handled above"),
    }
}

/// The cluster to measure, and the machine as it was before.
async fn target(common: &Common, base: &Path) -> anyhow::Result<(Target, Machine)> {
    let mut machine = Machine::look(base);
    machine.versions.push(machine::version_of(&tidewall_e2e::cluster::binary()?));
    let target = match &common.data {
        Some(data) => Target::running(data)?,
        None => Target::start(base).await?,
    };
    Ok((target, machine))
}

fn print<T: Serialize>(common: &Common, machine: &mut Machine, text: &str, result: &T) -> anyhow::Result<()> {
    machine.load_after = machine::load();
    match common.output {
        Output::Table => println!("{}\n\n{text}", machine.describe()),
        Output::Json => {
            let all = serde_json::json!({ "machine": machine, "result": result });
            println!("{}", serde_json::to_string_pretty(&all)?);
        }
    }
    Ok(())
}

/// Runs the load generator, whose audit and figures are the result.
fn crowd(common: &Common, base: &Path, buyers: u64, stock: u64) -> anyhow::Result<()> {
    let mut machine = Machine::look(base);
    let binary = tidewall_e2e::cluster::binary()?;
    machine.versions.push(machine::version_of(&binary));
    let mut command = std::process::Command::new(&binary);
    command.args(["load", "flash-sale", "--mode", "at-once", "-o", "json"]);
    command.args(["--buyers", &buyers.to_string(), "--stock", &stock.to_string()]);
    match &common.data {
        Some(data) => {
            let gateway = Target::running(data)?.gateway()?;
            command.args(["--target", &gateway, "--data"]).arg(data);
        }
        None => {
            command.arg("--own-cluster");
        }
    }
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output()?;
    let said = String::from_utf8(output.stdout)?;
    let result: serde_json::Value = serde_json::from_str(&said).with_context(|| {
        format!("`tidewall load` ended with {} and printed no JSON: {said}", output.status)
    })?;
    let mut text = serde_json::to_string_pretty(&result)?;
    let count = |field: &str| result[field].as_u64().unwrap_or(0);
    let answered = count("sold") + count("sold_out");
    text += &format!(
        "\n{answered} of {buyers} buyers have a business answer ({:.2} %), p99 {} ms (asked: 99 % within 10 s), \
         {} sold of {stock}, {} oversold, {} without an answer, audit {}",
        answered as f64 / buyers.max(1) as f64 * 100.0,
        result["p99_ms"],
        count("sold"),
        count("oversold"),
        count("unknown") + count("errors"),
        result["audit"]
    );
    print(common, &mut machine, &text, &result)?;
    ensure!(output.status.success(), "`tidewall load` ended with {}: see `audit`", output.status);
    Ok(())
}

/// One after the other, so that nothing is measured beside something else.
async fn compare(cli: &Cli, base: &Path, span: Span) -> anyhow::Result<()> {
    let mut report = Report { machine: Machine::look(base), seconds: cli.common.seconds, rows: Vec::new() };
    for subject in Subject::ALL.into_iter().filter(|subject| cli.only.contains(subject)) {
        match subject {
            Subject::Tidewall => {
                report.machine.versions.push(machine::version_of(&tidewall_e2e::cluster::binary()?));
                let target = match &cli.common.data {
                    Some(data) => Target::running(data)?,
                    None => Target::start(base).await?,
                };
                let region =
                    target.regions().await?.into_iter().next().context("the cluster has no regions")?;
                for &clients in &cli.clients {
                    // A fresh event for each cell, so that no cell inherits the rows of the one before.
                    let event = target.event(&region).await?;
                    let jobs = target.jobs(&event, clients);
                    report.rows.push(cell(System::Tidewall, clients, jobs, span, target.root()).await);
                    target.audit(&event).await?;
                }
            }
            Subject::Postgres => {
                let server = Postgres::start(base).await?;
                report.machine.versions.push(server.version.clone());
                for (system, form) in [
                    (System::PostgresTwoStatements, Form::TwoStatements),
                    (System::PostgresSingleStatement, Form::SingleStatement),
                ] {
                    for &clients in &cli.clients {
                        let jobs = server.jobs(form, clients).await;
                        report.rows.push(cell(system, clients, jobs, span, server.root()).await);
                    }
                }
                let jobs = server.jobs(Form::Batched, 1).await;
                report.rows.push(cell(System::PostgresBatched, 1, jobs, span, server.root()).await);
                server.audit().await?;
            }
            Subject::Redis => {
                let server = Redis::start(base).await?;
                report.machine.versions.push(server.version.clone());
                for &clients in &cli.clients {
                    let jobs = server.jobs(clients).await;
                    report.rows.push(cell(System::Redis, clients, jobs, span, server.root()).await);
                }
                server.audit().await?;
            }
            Subject::Echo => {
                let server = EchoServer::start()?;
                for &clients in &cli.clients {
                    let jobs = server.jobs(clients).await;
                    report.rows.push(cell(System::Echo, clients, jobs, span, server.root()).await);
                }
            }
        }
    }
    report.compare();
    report.machine.load_after = machine::load();
    if let Some(file) = &cli.svg {
        report.plot(file)?;
        eprintln!("plot: {}", file.display());
    }
    match cli.common.output {
        Output::Table => println!("{}", report.table()),
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
    }
    Ok(())
}

/// Measures one cell; what cannot be measured becomes a row that says why.
async fn cell<J: Job>(
    system: System,
    clients: usize,
    jobs: anyhow::Result<Vec<J>>,
    span: Span,
    root: u32,
) -> Cell {
    let mut row = Cell { system, clients, measured: None, times_postgres: None, note: None };
    match jobs {
        Ok(jobs) => {
            let measured = measure(jobs, span, &[root]).await;
            eprintln!("{}, {clients} clients: {:.0}/s", system.name(), measured.per_second);
            if measured.errors > 0 {
                let first = measured.first_error.as_deref().unwrap_or_default();
                row.note = Some(format!("{} errors, first: {first}", measured.errors));
            }
            row.measured = Some(measured);
        }
        Err(error) => row.note = Some(format!("{error:#}")),
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
        let cli = Cli::parse_from(["tidewall-bench"]);
        assert_eq!(cli.clients, [1, 16, 64, 100, 256, 1024]);
        assert_eq!(cli.only, Subject::ALL);
        assert!(Cli::try_parse_from(["tidewall-bench", "--clients", "0"]).is_err());
        assert!(Cli::try_parse_from(["tidewall-bench", "--only", "oracle"]).is_err());
    }
}
