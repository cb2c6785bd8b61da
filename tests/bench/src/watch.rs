//! Many who watch one event while it sells: how much are they told in a second, how late, and what do buyers notice?
//!
//! All of them, the cluster and its buyers share the machine: the client's half of each answer is paid for here too.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tidewall_e2e::client::Session;
use tidewall_proto::v1::{WatchMode, WatchRequest};

use crate::cell::{Span, histogram, percentile_ms, record, stop};
use crate::machine;
use crate::open_loop::{Goods, drive, steady};
use crate::report::plain;
use crate::tidewall::Target;

/// Streams that share a connection.
const STREAMS_PER_CONNECTION: usize = 100;
/// Buyers, and how long one stays.
const BUYERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// A row of the measurement.
#[derive(Debug, Serialize)]
pub struct Watched {
    watchers: usize,
    mode: &'static str,
    /// Purchases a second that were asked for, and made.
    asked: f64,
    made: f64,
    /// Changes a second that were told, over all who watch.
    told: f64,
    /// From the log time of a change until somebody was told of it.
    lag_p50_ms: f64,
    lag_p99_ms: f64,
    purchase_p50_ms: f64,
    purchase_p99_ms: f64,
    load: String,
}

/// What all who watch have been told.
struct Heard {
    changes: AtomicU64,
    answers: AtomicU64,
    lag: Mutex<Histogram<u64>>,
    counts: AtomicBool,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

async fn watch(session: Session, request: WatchRequest, heard: Arc<Heard>) -> anyhow::Result<()> {
    let mut request = session.request(request);
    request.set_timeout(Duration::from_secs(600));
    let mut stream = session.changes().watch(request).await?.into_inner();
    while let Some(answer) = stream.message().await? {
        if !heard.counts.load(Ordering::Relaxed) {
            continue;
        }
        heard.answers.fetch_add(1, Ordering::Relaxed);
        heard.changes.fetch_add(answer.changes.len() as u64, Ordering::Relaxed);
        let mut times = answer.changes.iter().filter_map(|change| change.change_time.as_ref());
        if let Some(time) = times.next_back() {
            let told_ms = time.seconds as u64 * 1_000 + time.nanos as u64 / 1_000_000;
            record(&mut heard.lag.lock(), Duration::from_millis(now_ms().saturating_sub(told_ms)));
        }
    }
    Ok(())
}

/// Measures so many who watch at each of these rates of purchases.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn watched(
    target: &Target,
    span: Span,
    watchers: usize,
    state: bool,
    rates: &[f64],
) -> anyhow::Result<(String, Vec<Watched>)> {
    let region = target.regions().await?.into_iter().next().context("the cluster has no regions")?;
    let event = target.event(&region).await?;
    let mode = if state { WatchMode::State } else { WatchMode::Events };
    let heard = Arc::new(Heard {
        changes: AtomicU64::new(0),
        answers: AtomicU64::new(0),
        lag: Mutex::new(histogram()),
        counts: AtomicBool::new(false),
    });
    let request = WatchRequest { parent: event.clone(), mode: mode.into(), ..WatchRequest::default() };
    let mut tasks = Vec::new();
    for connection in 0..watchers.div_ceil(STREAMS_PER_CONNECTION) {
        let session = target.session("bench-operator", Some("operator"))?;
        let streams = STREAMS_PER_CONNECTION.min(watchers - connection * STREAMS_PER_CONNECTION);
        tasks.extend(
            (0..streams).map(|_| tokio::spawn(watch(session.clone(), request.clone(), Arc::clone(&heard)))),
        );
    }
    let (goods, buyers) = (Goods::new([(event, 0)]), target.buyers(BUYERS)?);
    let mut rows = Vec::new();
    for &rate in rates {
        let arrivals = steady(rate, span);
        let counting = async {
            tokio::time::sleep(span.warm_up).await;
            heard.changes.store(0, Ordering::Relaxed);
            heard.answers.store(0, Ordering::Relaxed);
            heard.lag.lock().reset();
            heard.counts.store(true, Ordering::Relaxed);
            tokio::time::sleep(span.measured).await;
            heard.counts.store(false, Ordering::Relaxed);
            match state {
                true => heard.answers.load(Ordering::Relaxed),
                false => heard.changes.load(Ordering::Relaxed),
            }
        };
        let load = machine::load();
        let (driven, told) = tokio::join!(drive(&buyers, &goods, arrivals, span, PATIENCE), counting);
        let seen = driven.seen.first();
        let percentile = |percentile| seen.map_or(0.0, |seen| seen.percentile_ms(percentile));
        let lag = heard.lag.lock();
        rows.push(Watched {
            watchers,
            mode: if state { "STATE" } else { "EVENTS" },
            asked: rate,
            made: seen.map_or(0.0, |seen| seen.served() as f64 / span.measured.as_secs_f64()),
            told: told as f64 / span.measured.as_secs_f64(),
            lag_p50_ms: percentile_ms(&lag, 50.0),
            lag_p99_ms: percentile_ms(&lag, 99.0),
            purchase_p50_ms: percentile(50.0),
            purchase_p99_ms: percentile(99.0),
            load,
        });
    }
    stop(tasks).await?;
    Ok((table(&rows), rows))
}

fn table(rows: &[Watched]) -> String {
    let row = |row: &Watched| {
        [
            row.watchers.to_string(),
            row.mode.to_owned(),
            format!("{:.0}", row.asked),
            format!("{:.0}", row.made),
            format!("{:.0}", row.told),
            format!("{:.1}", row.lag_p50_ms),
            format!("{:.1}", row.lag_p99_ms),
            format!("{:.1}", row.purchase_p50_ms),
            format!("{:.1}", row.purchase_p99_ms),
            row.load.clone(),
        ]
    };
    plain(
        [
            "watchers",
            "mode",
            "asked/s",
            "made/s",
            "told/s",
            "lag p50 ms",
            "p99",
            "purchase p50 ms",
            "p99",
            "load",
        ],
        rows.iter().map(row),
    )
}
