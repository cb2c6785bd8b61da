//! Webhooks of an organiser while an event sells: how many changes arrive in a second, in how many calls, how late, and what do buyers
//! notice?
//!
//! The servers that are called share the machine. Each takes a while to answer, as one that is far away does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;
use tidewall_proto::json::from_json;
use tidewall_proto::v1::{CreateWebhookRequest, Webhook, WebhookDelivery};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::cell::{Span, histogram, percentile_ms, record};
use crate::machine;
use crate::open_loop::{Goods, drive, steady};
use crate::report::plain;
use crate::tidewall::Target;

/// Buyers, and how long one stays.
const BUYERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);

/// A row of the measurement.
#[derive(Debug, Serialize)]
pub struct Delivered {
    webhooks: usize,
    /// How long a server takes to answer.
    delay_ms: u64,
    /// Purchases a second that were asked for, and made.
    asked: f64,
    made: f64,
    /// Changes a second that arrived, over all webhooks, and calls.
    arrived: f64,
    calls: f64,
    /// From the log time of a change until it arrived.
    lag_p50_ms: f64,
    lag_p99_ms: f64,
    purchase_p50_ms: f64,
    purchase_p99_ms: f64,
    load: String,
}

/// What has arrived.
struct Arrived {
    delay: Duration,
    calls: AtomicU64,
    changes: AtomicU64,
    lag: Mutex<Histogram<u64>>,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

async fn serve(stream: TcpStream, arrived: &Arrived) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut length, mut line) = (0, String::new());
    while stream.read_line(&mut line).await? > 2 {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse()?;
        }
        line.clear();
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let now = now_ms();
    let delivery: WebhookDelivery = from_json("WebhookDelivery", std::str::from_utf8(&body)?)?;
    arrived.calls.fetch_add(1, Ordering::Relaxed);
    arrived.changes.fetch_add(delivery.changes.len() as u64, Ordering::Relaxed);
    {
        let mut lag = arrived.lag.lock();
        for time in delivery.changes.iter().filter_map(|change| change.change_time.as_ref()) {
            let told_ms = time.seconds as u64 * 1_000 + time.nanos as u64 / 1_000_000;
            record(&mut lag, Duration::from_millis(now.saturating_sub(told_ms)));
        }
    }
    tokio::time::sleep(arrived.delay).await;
    stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await?;
    Ok(())
}

/// Measures so many webhooks, whose servers take so long to answer, at each of these rates of purchases.
///
/// # Errors
/// When the cluster cannot be reached, or calls no server on this machine.
pub async fn delivered(
    target: &Target,
    span: Span,
    webhooks: usize,
    delay: Duration,
    rates: &[f64],
) -> anyhow::Result<(String, Vec<Delivered>)> {
    let region = target.regions().await?.into_iter().next().context("the cluster has no regions")?;
    let event = target.event(&region).await?;
    let organiser = target.session("bench-organiser", Some("organiser"))?;
    let (calls, changes) = (AtomicU64::new(0), AtomicU64::new(0));
    let arrived = Arc::new(Arrived { delay, calls, changes, lag: Mutex::new(histogram()) });
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let taking = Arc::clone(&arrived);
    let serving = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let taking = Arc::clone(&taking);
            // What breaks is delivered once more, and counts then.
            tokio::spawn(async move { drop(serve(stream, &taking).await) });
        }
    });
    for number in 0..webhooks {
        let webhook = Webhook { url: format!("{url}{number}"), event: event.clone(), ..Webhook::default() };
        let create = CreateWebhookRequest {
            parent: region.clone(),
            webhook: Some(webhook),
            request_id: uuid::Uuid::now_v7().to_string(),
        };
        let made = organiser.webhooks().create_webhook(organiser.request(create)).await;
        made.context("the cluster must run with TIDEWALL_WEBHOOK_ALLOW=127.0.0.0/8")?;
    }
    let (goods, buyers) = (Goods::new([(event, 0)]), target.buyers(BUYERS)?);
    let mut rows = Vec::new();
    for &rate in rates {
        let arrivals = steady(rate, span);
        let counting = async {
            tokio::time::sleep(span.warm_up).await;
            let before = [&arrived.changes, &arrived.calls].map(|count| count.load(Ordering::Relaxed));
            arrived.lag.lock().reset();
            tokio::time::sleep(span.measured).await;
            let after = [&arrived.changes, &arrived.calls].map(|count| count.load(Ordering::Relaxed));
            [after[0] - before[0], after[1] - before[1]]
        };
        let load = machine::load();
        let (driven, [changes, calls]) =
            tokio::join!(drive(&buyers, &goods, arrivals, span, PATIENCE), counting);
        let seen = driven.seen.first();
        let percentile = |percentile| seen.map_or(0.0, |seen| seen.percentile_ms(percentile));
        let lag = arrived.lag.lock();
        rows.push(Delivered {
            webhooks,
            delay_ms: delay.as_millis() as u64,
            asked: rate,
            made: seen.map_or(0.0, |seen| seen.served() as f64 / span.measured.as_secs_f64()),
            arrived: changes as f64 / span.measured.as_secs_f64(),
            calls: calls as f64 / span.measured.as_secs_f64(),
            lag_p50_ms: percentile_ms(&lag, 50.0),
            lag_p99_ms: percentile_ms(&lag, 99.0),
            purchase_p50_ms: percentile(50.0),
            purchase_p99_ms: percentile(99.0),
            load,
        });
    }
    serving.abort();
    Ok((table(&rows), rows))
}

fn table(rows: &[Delivered]) -> String {
    let row = |row: &Delivered| {
        [
            row.webhooks.to_string(),
            row.delay_ms.to_string(),
            format!("{:.0}", row.asked),
            format!("{:.0}", row.made),
            format!("{:.0}", row.arrived),
            format!("{:.0}", row.calls),
            format!("{:.1}", row.lag_p50_ms),
            format!("{:.1}", row.lag_p99_ms),
            format!("{:.1}", row.purchase_p50_ms),
            format!("{:.1}", row.purchase_p99_ms),
            row.load.clone(),
        ]
    };
    plain(
        [
            "webhooks",
            "delay ms",
            "asked/s",
            "made/s",
            "arrived/s",
            "calls/s",
            "lag p50 ms",
            "p99",
            "purchase p50 ms",
            "p99",
            "load",
        ],
        rows.iter().map(row),
    )
}
