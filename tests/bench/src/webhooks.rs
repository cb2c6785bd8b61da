//! Webhooks of an organiser while an event sells: how many changes arrive in a second, in how many calls, how late, and what do buyers
//! notice?
//!
//! The servers that are called share the machine. Each takes a while to answer, as one that is far away does.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::Context as _;
use serde::Serialize;
use tidewall_proto::json::from_json;
use tidewall_proto::v1::{CreateWebhookRequest, Webhook, WebhookDelivery};
use tidewall_workloads::server::{Conduct, Server};

use crate::cell::{Span, histogram, percentile_ms, record};
use crate::machine;
use crate::open_loop::{Goods, drive, steady};
use crate::report::plain;
use crate::tidewall::Target;

/// Arrivals are looked at so often: as much later than it was do they seem to arrive, at the most.
const LOOK: Duration = Duration::from_millis(5);
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

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// What has arrived at a server.
#[derive(Default)]
struct Sum {
    calls: usize,
    changes: usize,
    /// From the log time of each change until it arrived.
    lag: Vec<Duration>,
}

/// Adds up what arrives at these addresses until `over`.
async fn count(server: &Server, urls: &[String], over: Duration) -> anyhow::Result<Sum> {
    let (began, mut sum) = (Instant::now(), Sum::default());
    while began.elapsed() < over {
        tokio::time::sleep(LOOK).await;
        let now = now_ms();
        for arrived in urls.iter().flat_map(|url| server.take(url)) {
            let delivery: WebhookDelivery = from_json("WebhookDelivery", &arrived.body)?;
            sum.calls += 1;
            sum.changes += delivery.changes.len();
            for time in delivery.changes.iter().filter_map(|change| change.change_time.as_ref()) {
                let told_ms = time.seconds as u64 * 1_000 + time.nanos as u64 / 1_000_000;
                sum.lag.push(Duration::from_millis(now.saturating_sub(told_ms)));
            }
        }
    }
    Ok(sum)
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
    let server = Server::start(Ipv4Addr::LOCALHOST.into(), Conduct { delay, ..Conduct::default() }).await?;
    let urls: Vec<String> = (0..webhooks).map(|number| server.url(&number.to_string())).collect();
    for url in &urls {
        let webhook = Webhook { url: url.clone(), event: event.clone(), ..Webhook::default() };
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
            count(&server, &urls, span.warm_up).await?;
            count(&server, &urls, span.measured).await
        };
        let load = machine::load();
        let (driven, sum) = tokio::join!(drive(&buyers, &goods, arrivals, span, PATIENCE), counting);
        let sum = sum?;
        let seen = driven.seen.first();
        let percentile = |percentile| seen.map_or(0.0, |seen| seen.percentile_ms(percentile));
        let mut lag = histogram();
        sum.lag.iter().for_each(|late| record(&mut lag, *late));
        rows.push(Delivered {
            webhooks,
            delay_ms: delay.as_millis() as u64,
            asked: rate,
            made: seen.map_or(0.0, |seen| seen.served() as f64 / span.measured.as_secs_f64()),
            arrived: sum.changes as f64 / span.measured.as_secs_f64(),
            calls: sum.calls as f64 / span.measured.as_secs_f64(),
            lag_p50_ms: percentile_ms(&lag, 50.0),
            lag_p99_ms: percentile_ms(&lag, 99.0),
            purchase_p50_ms: percentile(50.0),
            purchase_p99_ms: percentile(99.0),
            load,
        });
    }
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
