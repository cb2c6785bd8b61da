//! Measurements beside the comparison: bulk purchases, a steady rate over minutes, and a cluster that does nothing.
//!
//! Each prints figures and says what was asked of them; none is a test that a busy machine could break.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use comfy_table::{Table, presets};
use hdrhistogram::Histogram;
use serde::Serialize;
use tidewall_e2e::client::Session;

use crate::cell::{self, Measured, Span, histogram, percentile_ms, record};
use crate::machine;
use crate::tidewall::{Target, buy};

/// Growth below this share counts as flat.
const FLAT: f64 = 0.10;

fn table<const N: usize>(header: [&str; N]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::ASCII_MARKDOWN).set_header(header);
    table
}

/// Figures of one batch size at one concurrency.
#[derive(Debug, Serialize)]
pub struct BulkRow {
    size: usize,
    concurrency: usize,
    measured: Measured,
}

/// `BatchBuyTickets` of several sizes at several concurrencies on one row.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn bulk(target: &Target, span: Span) -> anyhow::Result<(String, Vec<BulkRow>)> {
    let region = target.regions().await?.into_iter().next().context("the cluster has no regions")?;
    let mut rows = Vec::new();
    for size in [64, 256, 1000] {
        for concurrency in [1, 4, 16] {
            eprintln!("bulk: {concurrency} × {size}");
            let event = target.event(&region).await?;
            let jobs = target.batch_jobs(&event, concurrency, size)?;
            let measured = cell::measure(jobs, span, &[target.root()]).await;
            target.audit(&event).await?;
            rows.push(BulkRow { size, concurrency, measured });
        }
    }
    let mut text =
        table(["purchases a call", "calls at once", "decided/s", "p50 ms", "p99 ms", "CPU µs", "errors"]);
    for row in &rows {
        let m = &row.measured;
        text.add_row([
            row.size.to_string(),
            row.concurrency.to_string(),
            format!("{:.0}", m.per_second),
            format!("{:.1}", m.p50_ms),
            format!("{:.1}", m.p99_ms),
            format!("{:.1}", m.server_cpu_us),
            m.first_error.clone().unwrap_or_else(|| "0".into()),
        ]);
    }
    Ok((format!("{text}\nAsked: 31,000 decided purchases/s on one row; aim 100,000."), rows))
}

/// One sample of a steady run.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    seconds: u64,
    /// Purchases so far.
    purchases: u64,
    /// Changed rows that no checkpoint has, at the replica with the most.
    backlog_rows: u64,
    /// Entries behind the last checkpoint, at the replica with the most.
    backlog_entries: u64,
    rss_mib: f64,
    disk_mib: f64,
    cpu_cores: f64,
    p99_ms: f64,
}

/// Buys at a steady rate and watches what grows.
///
/// # Errors
/// When the cluster cannot be reached or does not answer.
pub async fn steady(target: &Target, length: Duration, rate: u64) -> anyhow::Result<(String, Vec<Sample>)> {
    ensure!(rate > 0, "--rate must be at least 1");
    let region = target.regions().await?.into_iter().next().context("the cluster has no regions")?;
    let event = target.event(&region).await?;
    let operator = target.session("bench-operator", Some("operator"))?;
    let stop = Arc::new(AtomicBool::new(false));
    let workers = usize::try_from((rate / 20).clamp(8, 512))?;
    let buyers = target.buyers(workers)?;
    let clients = pace(buyers, &event, rate as f64, &stop);

    let start = Instant::now();
    let mut samples = Vec::<Sample>::new();
    let mut latencies = histogram();
    let step = (length / 30).clamp(Duration::from_secs(1), Duration::from_secs(10));
    let mut cpu = machine::cpu_seconds(target.root());
    let mut looked = Instant::now();
    while start.elapsed() < length {
        tokio::time::sleep(step).await;
        let mut recent = histogram();
        for client in &clients {
            let mut its = client.latencies.lock().await;
            recent.add(&*its).expect("all histograms have the same bounds");
            its.reset();
        }
        latencies.add(&recent).expect("all histograms have the same bounds");
        let status = target.status(&operator, &region).await?;
        let usage = machine::usage(target.root());
        let cores = (usage.cpu_seconds - cpu) / looked.elapsed().as_secs_f64();
        (cpu, looked) = (usage.cpu_seconds, Instant::now());
        let replicas = status.replicas.iter();
        let sample = Sample {
            seconds: start.elapsed().as_secs(),
            purchases: latencies.len(),
            backlog_rows: replicas.clone().map(|r| r.checkpoint_backlog_pages).max().unwrap_or(0),
            backlog_entries: replicas
                .map(|r| r.applied_index.saturating_sub(r.checkpoint_index))
                .max()
                .unwrap_or(0),
            rss_mib: usage.rss_mib,
            disk_mib: machine::disk_bytes(target.data()) as f64 / f64::from(1 << 20),
            cpu_cores: cores,
            p99_ms: percentile_ms(&recent, 99.0),
        };
        eprintln!("steady: {} s, {} purchases", sample.seconds, sample.purchases);
        samples.push(sample);
    }
    stop.store(true, Ordering::Relaxed);
    let mut errors = Vec::new();
    for client in clients {
        errors.extend(client.task.await?);
    }
    target.audit(&event).await?;

    let mut text = table([
        "s",
        "purchases",
        "backlog rows",
        "backlog entries",
        "RSS MiB",
        "disk MiB",
        "cores",
        "p99 ms",
    ]);
    for sample in &samples {
        text.add_row([
            sample.seconds.to_string(),
            sample.purchases.to_string(),
            sample.backlog_rows.to_string(),
            sample.backlog_entries.to_string(),
            format!("{:.0}", sample.rss_mib),
            format!("{:.0}", sample.disk_mib),
            format!("{:.2}", sample.cpu_cores),
            format!("{:.2}", sample.p99_ms),
        ]);
    }
    let mut said = format!("{text}\n{} purchases at {rate}/s, {} errors\n", latencies.len(), errors.len());
    said += &format!(
        "latency from the moment a purchase was due: p50 {:.2} ms, p99 {:.2} ms\n",
        percentile_ms(&latencies, 50.0),
        percentile_ms(&latencies, 99.0)
    );
    if let Some(error) = errors.first() {
        said += &format!("first error: {error}\n");
    }
    for (what, of) in [
        ("checkpoint backlog, rows", (|s: &Sample| s.backlog_rows as f64) as fn(&Sample) -> f64),
        ("checkpoint backlog, entries", |s| s.backlog_entries as f64),
        ("RSS, MiB", |s| s.rss_mib),
        ("disk, MiB", |s| s.disk_mib),
    ] {
        said += &format!("{what}: {}\n", trend(&samples, of));
    }
    Ok((said, samples))
}

/// Says how a figure went between the second fifth of a run, when it is warm, and the last.
fn trend(samples: &[Sample], of: impl Fn(&Sample) -> f64) -> String {
    let fifth = samples.len() / 5;
    if fifth == 0 {
        return "too short a run to say".into();
    }
    let mean = |part: &[Sample]| part.iter().map(&of).sum::<f64>() / part.len() as f64;
    let purchases =
        |part: &[Sample]| part.iter().map(|s| s.purchases as f64).sum::<f64>() / part.len() as f64;
    let (early, late) = (&samples[fifth..2 * fifth], &samples[samples.len() - fifth..]);
    let (from, to) = (mean(early), mean(late));
    let growth = if from > 0.0 { (to - from) / from } else { to };
    if growth.abs() <= FLAT {
        return format!("flat ({from:.1} → {to:.1})");
    }
    let per_million = (to - from) / (purchases(late) - purchases(early)).max(1.0) * 1e6;
    let verb = if growth > 0.0 { "grew" } else { "shrank" };
    format!("{verb} from {from:.1} to {to:.1}: {per_million:.1} a million purchases")
}

struct Paced {
    latencies: Arc<tokio::sync::Mutex<Histogram<u64>>>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

/// Buyers who together buy `rate` times a second; latency counts from when a purchase was due, so that a
/// stall is not hidden by the purchases that it kept from being sent.
fn pace(buyers: Vec<Session>, event: &str, rate: f64, stop: &Arc<AtomicBool>) -> Vec<Paced> {
    let interval = Duration::from_secs_f64(buyers.len() as f64 / rate);
    let start = tokio::time::Instant::now();
    let count = buyers.len() as u32;
    buyers
        .into_iter()
        .zip(0u32..)
        .map(|(session, number)| {
            let latencies = Arc::new(tokio::sync::Mutex::new(histogram()));
            let (event, stop, own) = (event.to_owned(), stop.clone(), latencies.clone());
            let mut due = start + interval * number / count;
            let task = tokio::spawn(async move {
                let mut errors = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    tokio::time::sleep_until(due).await;
                    match buy(&session, &event).await {
                        Ok(_) => record(&mut *own.lock().await, due.elapsed()),
                        Err(error) => errors.push(format!("{error:#}")),
                    }
                    due += interval;
                }
                errors
            });
            Paced { latencies, task }
        })
        .collect()
}

/// Cost of doing nothing.
#[derive(Debug, Serialize)]
pub struct Idle {
    seconds: f64,
    /// Share of one core, percent.
    cpu_percent: f64,
    usage: machine::Usage,
}

/// Lets a cluster stand still and looks at what it costs.
pub async fn idle(target: &Target, length: Duration) -> (String, Idle) {
    // Elections and first checkpoints are not idleness.
    tokio::time::sleep(Duration::from_secs(10)).await;
    let (start, before) = (Instant::now(), machine::cpu_seconds(target.root()));
    tokio::time::sleep(length).await;
    let seconds = start.elapsed().as_secs_f64();
    let usage = machine::usage(target.root());
    let cpu_percent = (usage.cpu_seconds - before) / seconds * 100.0;
    let said = format!(
        "{} processes, idle for {seconds:.0} s: {cpu_percent:.1} % of one core (asked: below 5), \
         RSS {:.0} MiB added up (asked: below 300), {:.0} MiB with shared pages counted once",
        usage.processes, usage.rss_mib, usage.pss_mib
    );
    (said, Idle { seconds, cpu_percent, usage })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn samples(of: impl Fn(u64) -> f64) -> Vec<Sample> {
        (0..20)
            .map(|n| Sample {
                seconds: n,
                purchases: n * 1000,
                backlog_rows: 0,
                backlog_entries: 0,
                rss_mib: of(n),
                disk_mib: 0.0,
                cpu_cores: 0.0,
                p99_ms: 0.0,
            })
            .collect()
    }

    #[test]
    fn a_trend_is_flat_or_says_how_it_grew() {
        assert!(trend(&samples(|n| 100.0 + (n % 3) as f64), |s| s.rss_mib).starts_with("flat"));
        assert!(trend(&samples(|n| if n < 3 { 10.0 } else { 100.0 }), |s| s.rss_mib).starts_with("flat"));
        let grown = trend(&samples(|n| 100.0 + 10.0 * n as f64), |s| s.rss_mib);
        // 10 MiB a thousand purchases are 10,000 a million.
        assert!(grown.starts_with("grew") && grown.contains("10000.0 a million"), "{grown}");
        assert!(trend(&samples(|_| 1.0)[..3], |s| s.rss_mib).starts_with("too short"));
    }
}
