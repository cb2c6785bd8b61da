//! One cell of the table: a number of clients does the same job over and over, each call is timed.
//!
//! Closed loop: a client sends its next call when the last one was answered, as connections to a database do.
//! The clock of a call starts before its first attempt and ends with its answer, repetitions included.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::machine;

/// Longest latency that a histogram can hold, microseconds; longer ones count as this.
const LATENCY_US_MAX: u64 = 120_000_000;

/// What one client does once.
pub trait Job: Send + 'static {
    /// Does it, and says how many purchases were decided.
    fn once(&mut self) -> impl Future<Output = anyhow::Result<Done>> + Send;
}

/// What one call did.
#[derive(Debug, Clone, Copy, Default)]
pub struct Done {
    /// Purchases decided.
    pub purchases: u64,
    /// How often the service asked to come back later.
    pub overloaded: u64,
}

/// How long to measure.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    /// Not counted.
    pub warm_up: Duration,
    /// Counted.
    pub measured: Duration,
}

/// What was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Measured {
    /// Decided purchases a second.
    pub per_second: f64,
    /// Calls counted.
    pub calls: u64,
    /// Median latency of a call, ms.
    pub p50_ms: f64,
    /// 99th percentile, ms.
    pub p99_ms: f64,
    /// Longest, ms.
    pub max_ms: f64,
    /// Processor time of all server processes per purchase, microseconds.
    pub server_cpu_us: f64,
    /// Processor time of this process, the client, per purchase, microseconds.
    pub client_cpu_us: f64,
    /// Memory of all server processes at the end, MiB, shared pages counted once.
    pub memory_mib: f64,
    /// Times that the service asked a client to come back later.
    pub overloaded: u64,
    /// Calls that failed; any makes the cell worthless.
    pub errors: u64,
    /// The first failure.
    pub first_error: Option<String>,
}

const WARM_UP: u8 = 0;
const MEASURE: u8 = 1;
const STOP: u8 = 2;

/// Empty histogram for latencies in microseconds.
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_US_MAX, 3).expect("the bounds are constants that make sense")
}

/// Stops what runs beside a measurement.
///
/// # Errors
/// What has stopped by itself, and why.
pub async fn stop(tasks: Vec<tokio::task::JoinHandle<anyhow::Result<()>>>) -> anyhow::Result<()> {
    for task in tasks {
        if task.is_finished() {
            task.await??;
        } else {
            task.abort();
        }
    }
    Ok(())
}

/// Adds a latency.
pub fn record(histogram: &mut Histogram<u64>, latency: Duration) {
    let us = u64::try_from(latency.as_micros()).unwrap_or(LATENCY_US_MAX);
    histogram.saturating_record(us.max(1));
}

/// A percentile in ms.
pub fn percentile_ms(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1000.0
}

/// Runs one job per client and measures; `servers` are the root processes whose cost is counted.
pub async fn measure<J: Job>(jobs: Vec<J>, span: Span, servers: &[u32]) -> Measured {
    let phase = Arc::new(AtomicU8::new(WARM_UP));
    let purchases = Arc::new(AtomicU64::new(0));
    let mut clients = Vec::with_capacity(jobs.len());
    for mut job in jobs {
        let (phase, purchases) = (phase.clone(), purchases.clone());
        clients.push(tokio::spawn(async move {
            let mut latencies = histogram();
            let (mut overloaded, mut errors, mut first_error) = (0, 0, None);
            loop {
                let started_in = phase.load(Ordering::Relaxed);
                if started_in == STOP {
                    break (latencies, overloaded, errors, first_error);
                }
                let start = Instant::now();
                let result = job.once().await;
                // Throughput counts what ends within the window; latency also what began in it.
                let ended_in = phase.load(Ordering::Relaxed);
                match result {
                    Ok(done) => {
                        if ended_in == MEASURE {
                            purchases.fetch_add(done.purchases, Ordering::Relaxed);
                        }
                        if started_in == MEASURE {
                            record(&mut latencies, start.elapsed());
                            overloaded += done.overloaded;
                        }
                    }
                    Err(error) => {
                        errors += 1;
                        first_error.get_or_insert_with(|| format!("{error:#}"));
                        // A server that refuses at once must not make this a busy loop.
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            }
        }));
    }
    let own = std::process::id();
    let cpu = || servers.iter().map(|root| machine::cpu_seconds(*root)).sum::<f64>();
    tokio::time::sleep(span.warm_up).await;
    // Our own children may be the servers, so only this process itself is the client.
    let (server_before, client_before) = (cpu(), own_cpu_seconds(own));
    let start = Instant::now();
    phase.store(MEASURE, Ordering::Relaxed);
    tokio::time::sleep(span.measured).await;
    phase.store(STOP, Ordering::Relaxed);
    let seconds = start.elapsed().as_secs_f64();
    let decided = purchases.load(Ordering::Relaxed);
    let (server_after, client_after) = (cpu(), own_cpu_seconds(own));
    let memory_mib = servers.iter().map(|root| machine::usage(*root).pss_mib).sum();

    let mut latencies = histogram();
    let (mut overloaded, mut errors, mut first_error) = (0, 0, None);
    for client in clients {
        match client.await {
            Ok((its, over, failed, first)) => {
                latencies.add(its).expect("all histograms have the same bounds");
                overloaded += over;
                errors += failed;
                first_error = first_error.or(first);
            }
            Err(error) => {
                errors += 1;
                first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }
    let each = |seconds: f64| {
        if decided == 0 { 0.0 } else { seconds * 1e6 / decided as f64 }
    };
    Measured {
        per_second: decided as f64 / seconds,
        calls: latencies.len(),
        p50_ms: percentile_ms(&latencies, 50.0),
        p99_ms: percentile_ms(&latencies, 99.0),
        max_ms: latencies.max() as f64 / 1000.0,
        server_cpu_us: each(server_after - server_before),
        client_cpu_us: each(client_after - client_before),
        memory_mib,
        overloaded,
        errors,
        first_error,
    }
}

/// Processor seconds of one process without its children, from its threads' common counters.
fn own_cpu_seconds(id: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit_once(") ").map_or(Vec::new(), |(_, rest)| rest.split(' ').collect());
    let ticks: u64 =
        fields.get(11..13).unwrap_or_default().iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    ticks as f64 / 100.0
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Sleeper(u64);

    impl Job for Sleeper {
        async fn once(&mut self) -> anyhow::Result<Done> {
            self.0 += 1;
            anyhow::ensure!(!self.0.is_multiple_of(5), "every fifth fails");
            tokio::time::sleep(Duration::from_millis(10)).await;
            Ok(Done { purchases: 3, overloaded: 1 })
        }
    }

    #[tokio::test]
    async fn a_cell_counts_purchases_errors_and_refusals() {
        let span = Span { warm_up: Duration::from_millis(50), measured: Duration::from_millis(400) };
        let measured = measure(vec![Sleeper(0), Sleeper(0)], span, &[std::process::id()]).await;
        assert!(measured.calls > 0 && measured.errors > 0, "{measured:?}");
        assert!(measured.overloaded > 0 && measured.per_second > 0.0, "{measured:?}");
        assert!(measured.p50_ms >= 9.9 && measured.max_ms >= measured.p50_ms, "{measured:?}");
        assert_eq!(measured.first_error.as_deref(), Some("every fifth fails"));
        assert!(measured.memory_mib > 0.0, "{measured:?}");
    }
}
