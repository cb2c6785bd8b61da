//! Worker processes: a process runs one simulation at a time, so that seeds on several cores need several of them.
//!
//! A worker tells of each seed in one line on its standard output, and of each panic in one line on its standard error:
//! the latter is all that is left of it when an assertion fails while another one is being unwound, which aborts.
//! **Never here:** what is made of it.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Write as _};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use tidewall_mutant::Mutant;

use super::{Options, TWICE_EVERY, run_with};

/// Between the fields of a line; no text of ours has it.
const FIELD: char = '\u{1f}';
/// Signal of an abort.
const SIGABRT: i32 = 6;
/// When no worker has told of anything for so long, a seed does not end: simulated time stands still while tasks keep each
/// other busy. A seed takes a second or two.
const SILENCE: Duration = Duration::from_secs(120);
/// Exit code of a Rust program that ends by a panic.
const PANICKED: i32 = 101;

/// What a worker tells of one seed.
pub struct Told {
    /// The seed.
    pub seed: u64,
    /// Commands that were asked.
    pub calls: u64,
    /// Stories that were told to their end.
    pub stories: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Virtual time, ms.
    pub virtual_ms: u64,
    /// What went wrong on purpose, by kind.
    pub tally: BTreeMap<String, u64>,
    /// Groups that a poison entry has halted.
    pub halted: u64,
    /// Check and text.
    pub violations: Vec<(String, String)>,
}

/// Why not all seeds were run.
#[derive(Debug, PartialEq, Eq)]
pub enum Broken {
    /// An assertion ended a worker's process.
    Assertion {
        /// The seed that was under way.
        seed: u64,
        /// Where and what it said.
        what: String,
    },
    /// Anything else: killed from outside, out of memory, not started. It says nothing about what was simulated.
    Outside(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Assertion { seed, what } => write!(f, "seed {seed} ended its worker: {what}"),
            Self::Outside(why) => f.write_str(why),
        }
    }
}

/// Runs every so-many-th seed in this process and tells of each.
pub fn work(options: &Options, stride: u64) -> i32 {
    let end = options.from + options.seeds.unwrap_or(0);
    let mut seed = options.from;
    while seed < end {
        // A panic is a violation of its seed, unless it ends the process: then this line is what is known.
        std::panic::set_hook(Box::new(move |info| {
            let text = info.to_string().replace('\n', " ");
            // Without a reader nobody wants to know.
            let _ = writeln!(std::io::stderr(), "{seed}{FIELD}{text}");
        }));
        let report = run_with(seed, options.mutant, false);
        let tally: Vec<String> = report.tally.iter().map(|(kind, count)| format!("{kind}={count}")).collect();
        let mut fields = vec![
            seed.to_string(),
            report.calls.to_string(),
            report.reads.to_string(),
            report.virtual_ms.to_string(),
            report.halted.to_string(),
            report.stories.to_string(),
            tally.join(" "),
        ];
        for violation in &report.violations {
            fields.push(violation.check.to_owned());
            fields.push(violation.what.replace('\n', " "));
        }
        let twice = options.mutant.is_none() && seed.is_multiple_of(TWICE_EVERY);
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
    let (seed, calls, reads) = (number()?, number()?, number()?);
    let (virtual_ms, halted, stories) = (number()?, number()?, number()?);
    let mut tally = BTreeMap::new();
    for part in fields.next()?.split_whitespace() {
        let (kind, count) = part.split_once('=')?;
        tally.insert(kind.to_owned(), count.parse().ok()?);
    }
    let mut violations = Vec::new();
    while let (Some(check), Some(what)) = (fields.next(), fields.next()) {
        violations.push((check.to_owned(), what.to_owned()));
    }
    Some(Told { seed, calls, stories, reads, virtual_ms, tally, halted, violations })
}

/// A worker and what it said of its panics.
struct Worker {
    process: Child,
    /// The seed that it runs next, or runs.
    seed: u64,
    /// The end of its seeds.
    end: u64,
    panics: std::thread::JoinHandle<Vec<(u64, String)>>,
}

/// Runs seeds in worker processes, and hands over what they tell until `take` says that it is enough.
///
/// # Errors
/// When a worker cannot be started, or ends before it has told of all its seeds.
pub fn with_workers(
    options: &Options,
    count: u64,
    mutant: Option<Mutant>,
    mut take: impl FnMut(Told) -> bool,
) -> Result<(), Broken> {
    let (sender, receiver) = mpsc::channel();
    let mut workers = Vec::new();
    let stride = options.jobs as u64;
    for number in 0..stride.min(count) {
        let started = start(options, number, count, mutant, sender.clone());
        workers.push(started.map_err(Broken::Outside)?);
    }
    drop(sender);
    let (mut enough, mut broken) = (false, Vec::new());
    loop {
        let (number, line) = match receiver.recv_timeout(SILENCE) {
            Ok(said) => said,
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let under_way = workers.iter().filter(|worker| worker.seed < worker.end);
                let seeds: Vec<String> = under_way.map(|worker| worker.seed.to_string()).collect();
                let seeds = seeds.join(" or ");
                broken.push(Broken::Outside(format!(
                    "nothing was told for {SILENCE:?}: seed {seeds} does not end"
                )));
                enough = true;
                break;
            }
        };
        let Some(told) = parse(&line) else {
            broken.push(Broken::Outside(format!("a worker said {line:?}")));
            enough = true;
            break;
        };
        workers[number].seed = told.seed + stride;
        if !take(told) {
            enough = true;
            break;
        }
    }
    // All are ended before anything is said about one of them.
    for mut worker in workers {
        let by_itself = matches!(worker.process.try_wait(), Ok(Some(_)));
        if enough && !by_itself {
            // One that has ended meanwhile cannot be ended: that is fine.
            let _ = worker.process.kill();
        }
        let status = worker.process.wait();
        let panics = worker.panics.join().unwrap_or_default();
        if worker.seed < worker.end && (by_itself || !enough) {
            broken.push(match status {
                Ok(status) => judge(status, worker.seed, &panics),
                Err(error) => Broken::Outside(format!("nobody knows how a worker ended: {error}")),
            });
        }
    }
    // An assertion says more than whatever else happened.
    broken.sort_by_key(|broken| matches!(broken, Broken::Outside(_)));
    broken.into_iter().next().map_or(Ok(()), Err)
}

fn start(
    options: &Options,
    number: u64,
    count: u64,
    mutant: Option<Mutant>,
    sender: mpsc::Sender<(usize, String)>,
) -> Result<Worker, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let seed = options.from + number;
    let mut command = Command::new(program);
    command.args(["--worker", &options.jobs.to_string(), "--from", &seed.to_string()]);
    command.args(["--seeds", &(count - number).to_string()]);
    if let Some(mutant) = mutant {
        command.args(["--mutant", &format!("{mutant:?}")]);
    }
    let mut process = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a worker: {error}"))?;
    let (Some(output), Some(errors)) = (process.stdout.take(), process.stderr.take()) else {
        return Err("a worker has no output".to_owned());
    };
    std::thread::spawn(move || {
        for line in std::io::BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send((number as usize, line)).is_err() {
                return;
            }
        }
    });
    let panics = std::thread::spawn(move || {
        let lines = std::io::BufReader::new(errors).lines().map_while(Result::ok);
        let panic = |line: String| {
            let (seed, text) = line.split_once(FIELD)?;
            Some((seed.parse().ok()?, text.to_owned()))
        };
        lines.filter_map(panic).collect()
    });
    Ok(Worker { process, seed, end: options.from + count, panics })
}

/// What ended a worker in the middle of a seed. Only an assertion of ours has said so before.
fn judge(status: ExitStatus, seed: u64, panics: &[(u64, String)]) -> Broken {
    // The first one is the cause: what follows are its consequences.
    let first = panics.iter().find(|(of, _)| *of == seed).map(|(_, text)| text.clone());
    match (status.signal(), status.code(), first) {
        (Some(SIGABRT), _, Some(what)) | (_, Some(PANICKED), Some(what)) => Broken::Assertion { seed, what },
        (Some(SIGABRT), ..) => Broken::Outside(format!(
            "a worker aborted at seed {seed} without a failed assertion: out of memory, probably"
        )),
        (Some(signal), ..) => {
            Broken::Outside(format!("a worker was killed from outside at seed {seed}, by signal {signal}"))
        }
        (None, code, _) => Broken::Outside(format!("a worker ended at seed {seed} with code {code:?}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_failed_assertion_counts_as_one() {
        let said =
            [(3, "of an earlier seed".to_owned()), (7, "the cause".into()), (7, "what followed".into())];
        let abort = ExitStatus::from_raw(SIGABRT);
        assert_eq!(judge(abort, 7, &said), Broken::Assertion { seed: 7, what: "the cause".into() });
        assert!(matches!(judge(abort, 8, &said), Broken::Outside(why) if why.contains("memory")));
        for signal in [9, 15] {
            let killed = judge(ExitStatus::from_raw(signal), 7, &said);
            assert!(matches!(killed, Broken::Outside(why) if why.contains(&format!("signal {signal}"))));
        }
        let panicked = ExitStatus::from_raw(PANICKED << 8);
        assert!(matches!(judge(panicked, 7, &said), Broken::Assertion { .. }));
        assert!(matches!(judge(ExitStatus::from_raw(1 << 8), 7, &said), Broken::Outside(_)));
    }

    #[test]
    fn a_line_tells_what_was_put_into_it() {
        let line =
            ["5", "10", "20", "3000", "1", "4", "crash=2 poison=1", "digest", "rows differ"].join("\u{1f}");
        let told = parse(&line).expect("a whole line");
        assert_eq!((told.seed, told.calls, told.reads, told.virtual_ms, told.halted), (5, 10, 20, 3_000, 1));
        assert_eq!(told.stories, 4);
        assert_eq!(told.tally.get("poison"), Some(&1));
        assert_eq!(told.violations, [("digest".to_owned(), "rows differ".to_owned())]);
        assert!(parse("5\u{1f}10").is_none());
    }
}
