//! The command line of the simulation: which seeds, on how many threads, and what to print.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use tidewall_mutant::Mutant;
use tidewall_simulation::run::{Report, run};

mod workers;

use workers::{Broken, with_workers};

const HELP: &str = "\
Runs the whole cluster on one thread, by seed.

  ./simulate --seeds 200 [--from 0] [--jobs 2]   runs seeds; stops with exit code 1 if one of them fails
  ./simulate --seed 4711 [--trace]               replays one seed, twice, and compares the two
  ./simulate --mutants [--seeds 50] [--jobs 2]   shows that every mutant is caught within so many seeds
  ./simulate --mutant NAME --seed 4711           replays a seed with a mutant
  ./simulate --seeds 10000                       the long form

What is printed for a failing seed is the command that replays it.";

/// Seeds in which some story must come to its end.
const STORIES_WITHIN: u64 = 20;
/// Every so many seeds one is run twice and the traces are compared.
const TWICE_EVERY: u64 = 20;
/// A mutant gets so many seeds.
const MUTANT_SEEDS: u64 = 50;

#[derive(Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<u64>,
    from: u64,
    jobs: usize,
    trace: bool,
    /// Print the trace of the second run as well.
    twice: bool,
    mutants: bool,
    mutant: Option<Mutant>,
    /// This process is a worker: it runs every so-many-th seed.
    worker: Option<u64>,
}

fn options() -> Result<Options, String> {
    let mut options =
        Options { jobs: std::thread::available_parallelism().map_or(1, usize::from), ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<u64>().map_err(|_| format!("{text:?} is not a number"));
        match argument.as_str() {
            "--seed" => options.seed = Some(number(value()?)?),
            "--seeds" => options.seeds = Some(number(value()?)?),
            "--from" => options.from = number(value()?)?,
            "--jobs" => options.jobs = number(value()?)?.clamp(1, 256) as usize,
            "--worker" => options.worker = Some(number(value()?)?.max(1)),
            "--trace" => options.trace = true,
            "--trace-both" => (options.trace, options.twice) = (true, true),
            "--mutants" => options.mutants = true,
            "--mutant" => {
                let name = value()?;
                let found = Mutant::ALL.into_iter().find(|mutant| format!("{mutant:?}") == name);
                options.mutant = Some(found.ok_or_else(|| format!("there is no mutant {name:?}"))?);
            }
            "--help" | "-h" => return Err(String::new()),
            other => return Err(format!("{other:?} is not known")),
        }
    }
    Ok(options)
}

/// Runs what the command line says; the exit code.
pub fn main() -> i32 {
    let options = match options() {
        Ok(options) => options,
        Err(what) if what.is_empty() => {
            println!("{HELP}");
            return 0;
        }
        Err(what) => {
            eprintln!("{what}\n\n{HELP}");
            return 2;
        }
    };
    if let Some(stride) = options.worker {
        return workers::work(&options, stride);
    }
    if options.mutants {
        return mutants(&options);
    }
    match options.seed {
        Some(seed) => one(seed, &options),
        None => many(&options),
    }
}

fn run_with(seed: u64, mutant: Option<Mutant>, print: bool) -> Report {
    tidewall_mutant::activate(mutant);
    let report = run(seed, print);
    tidewall_mutant::activate(None);
    report
}

fn describe(report: &Report) -> String {
    let (lines, hash) = &report.trace;
    format!(
        "seed {}: {} calls, {} reads, {} faults, {:.1} s of virtual time, trace {hash} ({lines} lines)",
        report.seed,
        report.calls,
        report.reads,
        report.tally.values().sum::<u64>(),
        report.virtual_ms as f64 / 1_000.0
    )
}

fn one(seed: u64, options: &Options) -> i32 {
    if options.trace {
        log_to_stderr();
    }
    let first = run_with(seed, options.mutant, options.trace);
    println!("{}", describe(&first));
    for violation in &first.violations {
        println!("  {violation}");
    }
    let second = run_with(seed, options.mutant, options.trace && options.twice);
    if first.trace != second.trace {
        println!("  not deterministic: a second run has trace {} ({} lines)", second.trace.1, second.trace.0);
        return 1;
    }
    i32::from(!first.violations.is_empty())
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("TIDEWALL_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).without_time().with_writer(std::io::stderr).init();
}

fn many(options: &Options) -> i32 {
    let count = options.seeds.unwrap_or(200);
    let began = Instant::now();
    let (mut done, mut calls, mut reads, mut virtual_ms, mut halted, mut stories) = (0_u64, 0, 0, 0, 0, 0);
    let mut tally: BTreeMap<String, u64> = BTreeMap::new();
    let mut failed = BTreeSet::new();
    let mut said = Instant::now();
    let ran = with_workers(options, count, options.mutant, |told| {
        done += 1;
        calls += told.calls;
        reads += told.reads;
        virtual_ms += told.virtual_ms;
        halted += told.halted;
        stories += told.stories;
        for (kind, count) in told.tally {
            *tally.entry(kind).or_default() += count;
        }
        if !told.violations.is_empty() {
            println!("seed {} failed; ./simulate --seed {} replays it", told.seed, told.seed);
            for (check, what) in told.violations.iter().take(3) {
                println!("  {check}: {what}");
            }
            failed.insert(told.seed);
        }
        if said.elapsed() > Duration::from_secs(10) {
            said = Instant::now();
            println!(
                "{done} of {count} seeds, {} failed, {:.0} s",
                failed.len(),
                began.elapsed().as_secs_f64()
            );
        }
        true
    });
    if let Err(why) = ran {
        println!("{done} of {count} seeds were run: {why}");
        return 1;
    }
    println!(
        "{done} seeds, {} failed: {calls} calls, {reads} reads, {stories} stories, {} faults, {:.0} s of virtual time in {:.0} s; \
         one in {TWICE_EVERY} was run twice",
        failed.len(),
        tally.values().sum::<u64>(),
        virtual_ms as f64 / 1_000.0,
        began.elapsed().as_secs_f64()
    );
    let kinds: Vec<String> = tally.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    println!("faults: {}; {halted} groups were halted by poison", kinds.join(", "));
    for seed in &failed {
        println!("./simulate --seed {seed}");
    }
    // With so many seeds some stories come to their end, or the check of them is blind.
    let blind = done >= STORIES_WITHIN && stories == 0;
    if blind {
        println!("no story came to its end");
    }
    i32::from(!failed.is_empty() || blind)
}

fn mutants(options: &Options) -> i32 {
    let count = options.seeds.unwrap_or(MUTANT_SEEDS);
    let mut not_caught = 0;
    println!("| mutant | caught at seed | by |\n|---|---|---|");
    for mutant in Mutant::ALL {
        if options.mutant.is_some_and(|only| only != mutant) {
            continue;
        }
        let mut caught: Option<(u64, String)> = None;
        let ran = with_workers(options, count, Some(mutant), |told| {
            if let Some((check, _)) = told.violations.first() {
                caught = Some((told.seed, check.clone()));
            }
            caught.is_none()
        });
        let verdict = match (caught, ran) {
            // A panic while another one is under way: it was noticed, though not by a check.
            (caught, Err(Broken::Assertion { seed, what }))
                if caught.as_ref().is_none_or(|(other, _)| seed < *other) =>
            {
                format!("{seed} | abort: {what}")
            }
            (Some((seed, check)), _) => format!("{seed} | {check}"),
            (None, Err(why)) => {
                not_caught += 1;
                format!("**nothing is known: run it again** | {why}")
            }
            (None, Ok(())) => {
                not_caught += 1;
                format!("**survived {count} seeds** | –")
            }
        };
        println!("| {mutant:?} | {verdict} |");
    }
    i32::from(not_caught > 0)
}
