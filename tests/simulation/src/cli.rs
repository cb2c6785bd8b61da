//! The command line of the simulation: which seeds, on how many threads, and what to print.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tidewall_mutant::Mutant;
use tidewall_simulation::run::{Report, run};

const HELP: &str = "\
Runs the whole cluster on one thread, by seed.

  ./simulate --seeds 200 [--from 0] [--jobs 2]   runs seeds; stops with exit code 1 if one of them fails
  ./simulate --seed 4711 [--trace]               replays one seed, twice, and compares the two
  ./simulate --mutants [--seeds 50] [--jobs 2]   shows that every mutant is caught within so many seeds
  ./simulate --mutant NAME --seed 4711           replays a seed with a mutant
  ./simulate --seeds 10000                       the long form

What is printed for a failing seed is the command that replays it.";

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
        return work(&options, stride);
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
        report.faults,
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

/// What a worker process tells of one seed, on a line of its own.
struct Told {
    seed: u64,
    calls: u64,
    reads: u64,
    faults: u64,
    virtual_ms: u64,
    /// Check and text.
    violations: Vec<(String, String)>,
}

/// Between the fields of a line; no text of ours has it.
const FIELD: char = '\u{1f}';

/// Runs every so-many-th seed in this process and tells of each: a process runs one simulation at a time.
fn work(options: &Options, stride: u64) -> i32 {
    use std::io::Write as _;
    // Panics are reported as violations.
    std::panic::set_hook(Box::new(|_| {}));
    let end = options.from + options.seeds.unwrap_or(0);
    let mut seed = options.from;
    while seed < end {
        let report = run_with(seed, options.mutant, false);
        let mut fields = vec![
            seed.to_string(),
            report.calls.to_string(),
            report.reads.to_string(),
            report.faults.to_string(),
            report.virtual_ms.to_string(),
        ];
        for violation in &report.violations {
            fields.push(violation.check.to_owned());
            fields.push(violation.what.replace('\n', " "));
        }
        let twice = options.mutant.is_none() && seed % TWICE_EVERY == 0;
        if twice && run_with(seed, None, false).trace != report.trace {
            fields.push("determinism".to_owned());
            fields.push("a second run had another trace".to_owned());
        }
        let line = fields.join(&FIELD.to_string());
        // Whoever started this has heard enough.
        if writeln!(std::io::stdout(), "{line}").is_err() {
            return 0;
        }
        seed += stride;
    }
    0
}

fn parse(line: &str) -> Option<Told> {
    let mut fields = line.split(FIELD);
    let mut number = || fields.next()?.parse::<u64>().ok();
    let (seed, calls, reads, faults, virtual_ms) = (number()?, number()?, number()?, number()?, number()?);
    let mut violations = Vec::new();
    while let (Some(check), Some(what)) = (fields.next(), fields.next()) {
        violations.push((check.to_owned(), what.to_owned()));
    }
    Some(Told { seed, calls, reads, faults, virtual_ms, violations })
}

/// Runs seeds in worker processes, and hands over what they tell until `take` says that it is enough.
///
/// # Errors
/// When a worker cannot be started, or ends before it has told of all its seeds.
fn with_workers(
    options: &Options,
    count: u64,
    mutant: Option<Mutant>,
    mut take: impl FnMut(Told) -> bool,
) -> Result<(), String> {
    use std::io::BufRead as _;
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let (sender, receiver) = mpsc::channel();
    let mut workers = Vec::new();
    for number in 0..options.jobs as u64 {
        let mut command = Command::new(&program);
        command.args(["--worker", &options.jobs.to_string(), "--from", &(options.from + number).to_string()]);
        command.args(["--seeds", &count.saturating_sub(number).to_string()]);
        if let Some(mutant) = mutant {
            command.args(["--mutant", &format!("{mutant:?}")]);
        }
        let mut worker = command
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("cannot start a worker: {error}"))?;
        let Some(output) = worker.stdout.take() else { return Err("a worker has no output".to_owned()) };
        let sender = sender.clone();
        std::thread::spawn(move || {
            for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        workers.push(worker);
    }
    drop(sender);
    let mut seen = 0;
    for line in receiver {
        seen += 1;
        let told = parse(&line).ok_or_else(|| format!("a worker said {line:?}"))?;
        if !take(told) {
            seen = count;
            break;
        }
    }
    for mut worker in workers {
        // One that has ended cannot be ended: that is fine.
        let _ = worker.kill();
        let _ = worker.wait();
    }
    if seen == count { Ok(()) } else { Err(format!("a worker died: {seen} of {count} seeds were run")) }
}

fn many(options: &Options) -> i32 {
    let count = options.seeds.unwrap_or(200);
    let began = Instant::now();
    let (mut done, mut calls, mut reads, mut faults, mut virtual_ms) = (0_u64, 0, 0, 0, 0);
    let mut failed = BTreeSet::new();
    let mut said = Instant::now();
    let ran = with_workers(options, count, options.mutant, |told| {
        done += 1;
        calls += told.calls;
        reads += told.reads;
        faults += told.faults;
        virtual_ms += told.virtual_ms;
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
        println!("{why}");
        return 1;
    }
    println!(
        "{done} seeds, {} failed: {calls} calls, {reads} reads, {faults} faults, {:.0} s of virtual time in {:.0} s; \
         one in {TWICE_EVERY} was run twice",
        failed.len(),
        virtual_ms as f64 / 1_000.0,
        began.elapsed().as_secs_f64()
    );
    for seed in &failed {
        println!("./simulate --seed {seed}");
    }
    i32::from(!failed.is_empty())
}

fn mutants(options: &Options) -> i32 {
    let count = options.seeds.unwrap_or(MUTANT_SEEDS);
    let mut survived = 0;
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
        if let Err(why) = ran
            && caught.is_none()
        {
            // A panic while another one is under way ends the worker: no seed to show, and caught all the same.
            eprintln!("{mutant:?}: {why}");
            println!("| {mutant:?} | – | abort |");
            continue;
        }
        match caught {
            Some((seed, check)) => println!("| {mutant:?} | {seed} | {check} |"),
            None => {
                survived += 1;
                println!("| {mutant:?} | **survived {count} seeds** | – |");
            }
        }
    }
    i32::from(survived > 0)
}
