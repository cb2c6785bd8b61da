//! What the neighbours of a flooded row notice: latency on another row of the same region and in another region, in
//! turns without and with a flood.
//!
//! A round has two phases without a flood, in front of the one with it: how much they differ tells how much of a
//! difference is the machine's.
//!
//! The flood is a process of its own at a low priority, so that the queues of the load generator are not taken for
//! the service's; a call of a neighbour counts from the moment at which it was sent, and how late that was is told
//! beside it. Both kinds of client come back when they are told to.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidewall_e2e::client::Session;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinSet;

use crate::cell::{self, Span, histogram, percentile_ms, record};
use crate::machine;
use crate::tidewall::{Target, buy};

/// Priority of the flood's process: the system gives it what the others leave.
const FLOOD_NICE: i32 = 10;
/// Calls a second of each neighbour.
const NEIGHBOUR_RATE: f64 = 100.0;
/// Buyers of each neighbour.
const NEIGHBOUR_BUYERS: usize = 8;
/// Pause after a flood, before the next round.
const SETTLE: Duration = Duration::from_secs(3);
/// What is asked: times the p99 without a flood.
const ASKED: [(&str, f64); 2] = [("same region, another row", 3.0), ("another region", 1.5)];

/// Latency of one neighbour without and with a flood.
#[derive(Debug, Serialize)]
pub struct Neighbour {
    place: &'static str,
    before_p50_ms: f64,
    before_p99_ms: f64,
    during_p50_ms: f64,
    during_p99_ms: f64,
    /// p99 during the flood by p99 before, over all rounds.
    times: f64,
    /// p99 of each phase, ms, by round: without, without again, with a flood.
    rounds_p99_ms: Vec<[f64; 3]>,
    /// The median of the p99 with a flood by the median of those without: a hiccup of the machine that hits one phase
    /// moves it little.
    times_typical: f64,
    /// The same of the second phase without a flood by the first: 1, but for the machine.
    times_control: f64,
    asked: f64,
}

/// What a flood was.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Flood {
    /// Attempts a second.
    offered_per_second: f64,
    /// Purchases a second.
    served_per_second: f64,
    /// Times a second that a client was told to come back later.
    refused_per_second: f64,
    /// Of a purchase, returns included.
    p50_ms: f64,
    p99_ms: f64,
    errors: u64,
    first_error: Option<String>,
}

/// A whole measurement.
#[derive(Debug, Serialize)]
pub struct Isolation {
    clients: usize,
    rounds: usize,
    neighbours: Vec<Neighbour>,
    /// How late the neighbours' own timer was, p99: not part of their latency.
    client_late_p99_ms: f64,
    /// Mean over the rounds.
    flood: Flood,
    /// Load averages before each round.
    loads: Vec<String>,
    errors: usize,
    first_error: Option<String>,
}

/// What the neighbours saw in one phase.
struct Seen {
    latencies: [Histogram<u64>; 2],
    late: Histogram<u64>,
    errors: Vec<String>,
}

impl Seen {
    fn new() -> Self {
        Self { latencies: [histogram(), histogram()], late: histogram(), errors: Vec::new() }
    }

    fn p99_ms(&self, position: usize) -> f64 {
        percentile_ms(&self.latencies[position], 99.0)
    }

    /// All phases as one.
    fn all<'a>(phases: impl Iterator<Item = &'a Self>) -> anyhow::Result<Self> {
        let mut all = Self::new();
        for phase in phases {
            for (sum, part) in all.latencies.iter_mut().zip(&phase.latencies) {
                sum.add(part)?;
            }
            all.late.add(&phase.late)?;
            all.errors.extend_from_slice(&phase.errors);
        }
        Ok(all)
    }
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.get(middle) {
        Some(upper) if values.len().is_multiple_of(2) => (values[middle - 1] + upper) / 2.0,
        Some(middle) => *middle,
        None => 0.0,
    }
}

/// Rounds of two quiet phases and a flood of `clients` clients on one row, each as long as `span`.
///
/// # Errors
/// When the cluster cannot be reached or the flood's process fails.
pub async fn isolation(
    target: &Target,
    span: Span,
    clients: usize,
    rounds: usize,
) -> anyhow::Result<(String, Isolation)> {
    let regions = target.regions().await?;
    ensure!(regions.len() >= 2, "this needs two regions");
    let hot = target.event(&regions[0]).await?;
    let neighbours = [
        (target.buyers(NEIGHBOUR_BUYERS)?, target.event(&regions[0]).await?),
        (target.buyers(NEIGHBOUR_BUYERS)?, target.event(&regions[1]).await?),
    ];
    let (mut phases, mut floods, mut loads) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=rounds {
        if round > 1 {
            // Checkpoints and limits of the flood before are not the quiet that this round begins with.
            tokio::time::sleep(SETTLE).await;
        }
        let flooder = Flooder::start(target, &hot, clients, span).await?;
        loads.push(machine::load());
        eprintln!("isolation: round {round} of {rounds}, without a flood");
        let before = [watch(&neighbours, span).await?, watch(&neighbours, span).await?];
        eprintln!("isolation: round {round} of {rounds}, {clients} clients flood one row");
        let (flood, during) = tokio::join!(flooder.flood(), watch(&neighbours, span));
        phases.push((before, during?));
        floods.push(flood?);
    }
    target.audit(&hot).await?;

    let before = Seen::all(phases.iter().flat_map(|(before, _)| before))?;
    let during = Seen::all(phases.iter().map(|(_, during)| during))?;
    let row = |(position, (place, asked)): (usize, (&'static str, f64))| {
        let (before_p99_ms, during_p99_ms) = (before.p99_ms(position), during.p99_ms(position));
        let p99_ms = |(before, during): &([Seen; 2], Seen)| {
            [before[0].p99_ms(position), before[1].p99_ms(position), during.p99_ms(position)]
        };
        let rounds_p99_ms: Vec<_> = phases.iter().map(p99_ms).collect();
        let typical = |phase: usize| median(rounds_p99_ms.iter().map(|round| round[phase]));
        let quiet = median(rounds_p99_ms.iter().flat_map(|round| [round[0], round[1]]));
        Neighbour {
            place,
            before_p50_ms: percentile_ms(&before.latencies[position], 50.0),
            before_p99_ms,
            during_p50_ms: percentile_ms(&during.latencies[position], 50.0),
            during_p99_ms,
            times: during_p99_ms / before_p99_ms.max(0.001),
            times_typical: typical(2) / quiet.max(0.001),
            times_control: typical(1) / typical(0).max(0.001),
            rounds_p99_ms,
            asked,
        }
    };
    let result = Isolation {
        clients,
        rounds,
        neighbours: ASKED.into_iter().enumerate().map(row).collect(),
        client_late_p99_ms: percentile_ms(&during.late, 99.0),
        flood: Flood::mean(floods),
        loads,
        errors: before.errors.len() + during.errors.len(),
        first_error: before.errors.first().or(during.errors.first()).cloned(),
    };
    Ok((result.text(), result))
}

impl Isolation {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "where",
            "p50 ms before",
            "during",
            "p99 ms before",
            "during",
            "times",
            "typical",
            "control",
            "asked",
        ]);
        for row in &self.neighbours {
            table.add_row([
                row.place.to_owned(),
                format!("{:.2}", row.before_p50_ms),
                format!("{:.2}", row.during_p50_ms),
                format!("{:.2}", row.before_p99_ms),
                format!("{:.2}", row.during_p99_ms),
                format!("{:.2}", row.times),
                format!("{:.2}", row.times_typical),
                format!("{:.2}", row.times_control),
                format!("≤ {}", row.asked),
            ]);
        }
        let flood = &self.flood;
        let errors = |count: u64, first: &Option<String>| match first {
            Some(first) => format!("{count} errors, first: {first}"),
            None => format!("{count} errors"),
        };
        format!(
            "{table}\n\
             typical: the median p99 of the phases with a flood by that of the phases without; control: the same of the \
             second phase of a round by the first, both without a flood, which is the machine's doing\n\
             {} rounds of two phases without and one with a flood; load averages before each: {}\n\
             flood: {} clients on one row, from another process at nice {FLOOD_NICE}, in a closed loop, who come back \
             when they are told to:\n\
             {:.0} attempts/s, {:.0} served/s, {:.0} told to come back/s, p50 {:.1} ms, p99 {:.1} ms with returns, {}\n\
             neighbours: {NEIGHBOUR_RATE:.0} calls/s each, from this process at nice 0, {}; latency counts from when a \
             call was sent;\n\
             this process's own timer was up to {:.2} ms late (p99), which is not counted",
            self.rounds,
            self.loads.join(" · "),
            self.clients,
            flood.offered_per_second,
            flood.served_per_second,
            flood.refused_per_second,
            flood.p50_ms,
            flood.p99_ms,
            errors(flood.errors, &flood.first_error),
            errors(self.errors as u64, &self.first_error),
            self.client_late_p99_ms,
        )
    }
}

/// Lets the neighbours call for one span and returns what they see after its warm-up.
async fn watch(neighbours: &[(Vec<Session>, String); 2], span: Span) -> anyhow::Result<Seen> {
    let seen = Arc::new(Mutex::new(Seen::new()));
    let start = tokio::time::Instant::now();
    let (counted_from, end) = (start + span.warm_up, start + span.warm_up + span.measured);
    let gap = Duration::from_secs_f64(1.0 / NEIGHBOUR_RATE);
    let mut calls = JoinSet::new();
    for (position, (buyers, event)) in neighbours.iter().enumerate() {
        let (buyers, event, seen) = (buyers.clone(), event.clone(), Arc::clone(&seen));
        calls.spawn(async move {
            // Each call is a task of its own: a slow one delays none of the others.
            let mut own = JoinSet::new();
            let mut due = start + gap.mul_f64(0.5 * position as f64);
            for session in buyers.iter().cycle() {
                tokio::time::sleep_until(due).await;
                let (late, counts) = (due.elapsed(), due >= counted_from);
                let (session, event, seen) = (session.clone(), event.clone(), Arc::clone(&seen));
                own.spawn(async move {
                    let sent = Instant::now();
                    let result = buy(&session, &event).await;
                    let mut seen = seen.lock();
                    match result {
                        Ok(_) if counts => record(&mut seen.latencies[position], sent.elapsed()),
                        Ok(_) => {}
                        Err(error) => seen.errors.push(format!("{error:#}")),
                    }
                    if counts {
                        record(&mut seen.late, late);
                    }
                });
                due += gap;
                if due >= end {
                    break;
                }
            }
            own.join_all().await;
        });
    }
    while let Some(ended) = calls.join_next().await {
        ended.context("a neighbour ended badly")?;
    }
    let seen = std::mem::replace(&mut *seen.lock(), Seen::new());
    Ok(seen)
}

/// The process that floods; ends with this.
struct Flooder {
    child: Child,
}

impl Flooder {
    /// Starts this binary again; returns when its clients have their tokens and wait.
    async fn start(target: &Target, event: &str, clients: usize, span: Span) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg("flood")
            .args(["--event", event])
            .args(["--clients", &clients.to_string()])
            .args(["--seconds", &span.measured.as_secs().to_string()])
            .arg("--data")
            .arg(target.data())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the flood's process")?;
        let output = child.stdout.take().context("the child's output was to be a pipe")?;
        let mut output = BufReader::new(output);
        let mut line = String::new();
        output.read_line(&mut line).await?;
        ensure!(line.trim() == READY, "the flood's process said {line:?} instead of {READY:?}");
        child.stdout = Some(output.into_inner());
        Ok(Self { child })
    }

    /// Lets it flood and returns what it did.
    async fn flood(mut self) -> anyhow::Result<Flood> {
        let mut input = self.child.stdin.take().context("the child's input was to be a pipe")?;
        input.write_all(b"go\n").await?;
        let mut output = self.child.stdout.take().context("the child's output was to be a pipe")?;
        let mut said = String::new();
        output.read_to_string(&mut said).await?;
        let status = self.child.wait().await?;
        ensure!(status.success(), "the flood's process ended with {status}");
        serde_json::from_str(&said).with_context(|| format!("the flood's process said {said:?}"))
    }
}

/// What the flood's process says when it is prepared.
const READY: &str = "ready";

/// The flood's process: prepares, waits for a line on standard input, floods, prints a [`Flood`] as JSON.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn flood(target: &Target, event: &str, clients: usize, span: Span) -> anyhow::Result<()> {
    rustix::process::nice(FLOOD_NICE).context("cannot lower the priority of the flood")?;
    let jobs = target.jobs(event, clients)?;
    println!("{READY}");
    let mut line = String::new();
    BufReader::new(tokio::io::stdin()).read_line(&mut line).await?;
    ensure!(!line.is_empty(), "nobody waits for this flood any more");
    let measured = cell::measure(jobs, span, &[]).await;
    let seconds = span.measured.as_secs_f64();
    let refused_per_second = measured.overloaded as f64 / seconds;
    let flood = Flood {
        offered_per_second: measured.per_second + refused_per_second,
        served_per_second: measured.per_second,
        refused_per_second,
        p50_ms: measured.p50_ms,
        p99_ms: measured.p99_ms,
        errors: measured.errors,
        first_error: measured.first_error,
    };
    println!("{}", serde_json::to_string(&flood)?);
    Ok(())
}

impl Flood {
    fn mean(floods: Vec<Self>) -> Self {
        let count = floods.len().max(1) as f64;
        let mean = |of: fn(&Self) -> f64| floods.iter().map(of).sum::<f64>() / count;
        Self {
            offered_per_second: mean(|flood| flood.offered_per_second),
            served_per_second: mean(|flood| flood.served_per_second),
            refused_per_second: mean(|flood| flood.refused_per_second),
            p50_ms: mean(|flood| flood.p50_ms),
            p99_ms: mean(|flood| flood.p99_ms),
            errors: floods.iter().map(|flood| flood.errors).sum(),
            first_error: floods.into_iter().find_map(|flood| flood.first_error),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn flood(served_per_second: f64, error: Option<&str>) -> Flood {
        let errors = u64::from(error.is_some());
        Flood { served_per_second, errors, first_error: error.map(str::to_owned), ..Flood::default() }
    }

    #[test]
    fn rounds_are_averaged_and_no_error_is_lost() {
        let mean = Flood::mean(vec![flood(100.0, None), flood(300.0, Some("broken"))]);
        assert_eq!((mean.served_per_second, mean.errors), (200.0, 1));
        assert_eq!(mean.first_error.as_deref(), Some("broken"));
    }

    #[test]
    fn one_bad_round_moves_a_median_little() {
        assert!((median([4.0, 60.0, 3.0].into_iter()) - 4.0).abs() < 1e-9);
        assert!((median([3.0, 60.0, 4.0, 5.0].into_iter()) - 4.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).abs() < 1e-9);
    }

    #[test]
    fn phases_add_up() {
        let phase = |ms| {
            let mut seen = Seen::new();
            record(&mut seen.latencies[1], Duration::from_millis(ms));
            seen.errors.push(format!("{ms}"));
            seen
        };
        let all = Seen::all([phase(1), phase(9)].iter()).unwrap();
        assert_eq!((all.latencies[0].len(), all.latencies[1].len()), (0, 2));
        assert!((all.p99_ms(1) - 9.0).abs() < 0.1);
        assert_eq!(all.errors, ["1", "9"]);
    }

    #[test]
    fn the_text_tells_how_it_was_measured_and_what_came_out() {
        let neighbour = Neighbour {
            place: "another region",
            before_p50_ms: 1.0,
            before_p99_ms: 4.0,
            during_p50_ms: 2.0,
            during_p99_ms: 6.0,
            times: 1.5,
            rounds_p99_ms: vec![[4.0, 4.4, 6.0]],
            times_typical: 1.25,
            times_control: 1.1,
            asked: 1.5,
        };
        let result = Isolation {
            clients: 256,
            rounds: 3,
            neighbours: vec![neighbour],
            client_late_p99_ms: 1.25,
            flood: flood(12_345.0, Some("broken")),
            loads: vec!["0.10 0.20 0.30".into()],
            errors: 0,
            first_error: None,
        };
        let text = result.text();
        for part in [
            "| 1.50",
            "| 1.25",
            "| 1.10",
            "≤ 1.5",
            "nice 10",
            "12345 served/s",
            "1 errors, first: broken",
            "1.25 ms late",
        ] {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
