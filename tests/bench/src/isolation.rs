//! A flood on one row and others who buy beside it: what each of them gets.
//!
//! First the flood is alone; then others come at several rates, half of them for other rows of the flooded region, half for
//! all other regions. While anything is left of the machine, nobody should rest: the flood keeps most of what it had alone,
//! and the others notice little.
//!
//! The flood is a process of its own at a low priority, so that the queues of the load generator are not taken for
//! the service's. Its clients come back when they are told to.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use crate::cell::{self, Span, percentile_ms};
use crate::machine;
use crate::open_loop::{Arrival, Driven, Goods, Seen, drive};
use crate::tidewall::Target;

/// Priority of the flood's process: the system gives it what the others leave.
const FLOOD_NICE: i32 = 10;
/// What is asked beside so many calls a second: the part of what the flood has alone.
const ASKED: [(f64, f64); 2] = [(200.0, 0.75), (2_000.0, 0.5)];
/// Rows of the others in the flooded region; elsewhere they have one in each region.
const ROWS: usize = 8;
/// Buyers among the others.
const BUYERS: usize = 512;
/// How long one of them stays.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause after a flood.
const SETTLE: Duration = Duration::from_secs(3);
/// Kinds of buyers among the others: in the flooded region, and elsewhere.
const PLACES: [&str; 2] = ["same region", "other regions"];

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

/// What the others of one place got.
#[derive(Debug, Serialize)]
pub struct Others {
    place: &'static str,
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
    refused: u64,
    failures: String,
}

/// One flood with the others at one rate beside it.
#[derive(Debug, Serialize)]
pub struct Beside {
    /// Clients that flood; 0 is the control without a flood.
    clients: usize,
    /// Calls a second of the others.
    rate: f64,
    flood: Flood,
    /// Part of what the flood had alone.
    part: f64,
    asked: Option<f64>,
    others: Vec<Others>,
    late_p99_ms: f64,
    load: String,
}

/// A whole measurement.
#[derive(Debug, Serialize)]
pub struct Isolation {
    seconds: u64,
    rows: Vec<Beside>,
}

/// Others who come at random times and choose among so many rows alike.
fn others(rate: f64, rows: usize) -> impl Iterator<Item = Arrival> {
    let (mut random, mut now) = (StdRng::seed_from_u64(rate as u64), 0.0);
    std::iter::from_fn(move || {
        now += -random.random_range(f64::MIN_POSITIVE..1.0_f64).ln() / rate;
        Some(Arrival { due: Duration::try_from_secs_f64(now).ok()?, event: random.random_range(0..rows) })
    })
}

/// For each number of clients a flood on one row, alone and beside others at these rates, calls a second.
///
/// # Errors
/// When the cluster cannot be reached or the flood's process fails.
pub async fn isolation(
    target: &Target,
    span: Span,
    floods: &[usize],
    rates: &[f64],
) -> anyhow::Result<(String, Isolation)> {
    let regions = target.regions().await?;
    ensure!(regions.len() >= 2, "this needs two regions");
    let hot = target.event(&regions[0]).await?;
    let mut goods = Vec::new();
    for _ in 0..ROWS {
        goods.push((target.event(&regions[0]).await?, 0));
    }
    for region in &regions[1..] {
        goods.push((target.event(region).await?, 1));
    }
    let (rows, goods) = (goods.len(), Goods::new(goods));
    let buyers = target.buyers(BUYERS)?;
    let watch = async |rate: f64| drive(&buyers, &goods, others(rate, rows), span, PATIENCE).await;

    let mut measured = Vec::new();
    for &rate in rates {
        eprintln!("isolation: others at {rate}/s without a flood");
        let load = machine::load();
        let driven = watch(rate).await;
        measured.push(Beside::new(0, rate, Flood::default(), driven, span, load));
    }
    for &clients in floods {
        let mut alone = 0.0;
        for rate in std::iter::once(0.0).chain(rates.iter().copied()) {
            let asked = ASKED.iter().find_map(|(beside, part)| (*beside == rate).then_some(*part));
            // Checkpoints and limits of the flood before are not what this one begins with.
            tokio::time::sleep(SETTLE).await;
            let flooder = Flooder::start(target, &hot, clients, span).await?;
            eprintln!("isolation: {clients} clients flood one row, others at {rate}/s");
            let load = machine::load();
            let (flood, driven) = if rate > 0.0 {
                let (flood, driven) = tokio::join!(flooder.flood(), watch(rate));
                (flood?, driven)
            } else {
                let nobody = Driven { seen: Vec::new(), late: cell::histogram() };
                (flooder.flood().await?, nobody)
            };
            let served = flood.served_per_second;
            if rate == 0.0 {
                alone = served;
            }
            let row = Beside::new(clients, rate, flood, driven, span, load);
            measured.push(Beside { part: served / f64::max(alone, f64::MIN_POSITIVE), asked, ..row });
        }
    }
    target.audit(&hot).await?;
    let result = Isolation { seconds: span.measured.as_secs(), rows: measured };
    Ok((result.text(), result))
}

impl Beside {
    fn new(clients: usize, rate: f64, flood: Flood, driven: Driven, span: Span, load: String) -> Self {
        let of = |(place, seen): (&'static str, &Seen)| Others {
            place,
            per_second: seen.served() as f64 / span.measured.as_secs_f64(),
            p50_ms: seen.percentile_ms(50.0),
            p99_ms: seen.percentile_ms(99.0),
            refused: seen.refused,
            failures: seen.failed(),
        };
        let others = PLACES.into_iter().zip(&driven.seen).map(of).collect();
        let late_p99_ms = percentile_ms(&driven.late, 99.0);
        Self { clients, rate, flood, part: 0.0, asked: None, others, late_p99_ms, load }
    }

    /// Purchases a second of all.
    fn sum(&self) -> f64 {
        self.flood.served_per_second + self.others.iter().map(|others| others.per_second).sum::<f64>()
    }
}

impl Isolation {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "flood, clients",
            "others/s",
            "flood served/s",
            "of alone",
            "asked",
            "all served/s",
            "same region p50, p99 ms",
            "other regions p50, p99 ms",
            "generator late p99 ms",
            "failures",
            "load before",
        ]);
        for row in &self.rows {
            let latency = |place: usize| {
                let others = row.others.get(place);
                others.map_or("–".into(), |others| format!("{:.1}, {:.1}", others.p50_ms, others.p99_ms))
            };
            let mut failures: Vec<String> = row.flood.first_error.iter().cloned().collect();
            failures
                .extend(row.others.iter().map(|others| others.failures.clone()).filter(|said| said != "0"));
            table.add_row([
                row.clients.to_string(),
                format!("{:.0}", row.rate),
                format!("{:.0}", row.flood.served_per_second),
                format!("{:.0} %", row.part * 100.0),
                row.asked.map_or("–".into(), |asked| format!("≥ {:.0} %", asked * 100.0)),
                format!("{:.0}", row.sum()),
                latency(0),
                latency(1),
                format!("{:.1}", row.late_p99_ms),
                if failures.is_empty() { "0".into() } else { failures.join("; ") },
                row.load.clone(),
            ]);
        }
        format!(
            "{table}\n\
             {} s each. The flood: clients on one row in a closed loop, from another process at nice {FLOOD_NICE}, who come back \
             when they are told to. The others: at random times, for {ROWS} rows of its region and one in each other region; \
             latency counts from when a call was due, and includes how late the generator was.\n\
             Asked: others' p99 ≤ 25 ms (aim 10); beside 5,000/s all together ≥ 90 % of the plateau of `tidewall-bench mix`.",
            self.seconds
        )
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_come_at_their_rate_and_want_all_rows_alike() {
        let came: Vec<Arrival> = others(1_000.0, 4).take(20_000).collect();
        let lasts = came.last().map_or(0.0, |last| last.due.as_secs_f64());
        assert!((18.0..22.0).contains(&lasts), "{lasts}");
        for row in 0..4 {
            let count = came.iter().filter(|at| at.event == row).count();
            assert!((4_500..5_500).contains(&count), "{count}");
        }
        assert!(others(0.0, 4).next().is_none(), "nobody comes");
    }

    #[test]
    fn the_text_tells_what_each_got() {
        let mut seen = vec![Seen::default(), Seen::default()];
        for (place, ms) in [(0, 4), (1, 2)] {
            cell::record(&mut seen[place].latency, Duration::from_millis(ms));
        }
        let flood =
            Flood { served_per_second: 12_345.0, first_error: Some("broken".into()), ..Flood::default() };
        let span = Span { warm_up: Duration::ZERO, measured: Duration::from_secs(1) };
        let driven = Driven { seen, late: cell::histogram() };
        let row = Beside::new(256, 200.0, flood, driven, span, "0.10".into());
        let row = Beside { part: 0.8, asked: Some(0.75), ..row };
        let text = Isolation { seconds: 1, rows: vec![row] }.text();
        for part in ["| 12345", "| 80 %", "≥ 75 %", "| 12347", "4.0, 4.0", "2.0, 2.0", "broken", "nice 10"]
        {
            assert!(text.contains(part), "{part} is missing in {text}");
        }
    }
}
