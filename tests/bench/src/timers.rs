//! Holds of one region that all end at the same moment: until when have their timers fired, and what do buyers elsewhere notice?
//!
//! What is due counts for nothing from then on, whether its timer has fired or not: what is measured is tidying up. While it goes on
//! the region's log grows; it is over when that stands still.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, ensure};
use serde::Serialize;
use tidewall_e2e::client::{Session, request_id};
use tidewall_proto::v1::HoldTicketsRequest;
use tokio::time::Instant;

use crate::cell::Span;
use crate::machine;
use crate::open_loop::{Arrival, Goods, drive};
use crate::report::plain;
use crate::tidewall::Target;

/// Clients that hold.
const CLIENTS: usize = 256;
/// Holds of one client a second, as assumed when the end is planned.
const HOLDS_A_SECOND: f64 = 2_000.0;
/// Calls a second of others.
const OTHERS: f64 = 200.0;
/// Buyers among them, and how long one stays.
const BUYERS: usize = 64;
const PATIENCE: Duration = Duration::from_secs(10);
/// The log is looked at this often, and stands still when it has not grown for so long.
const LOOK: Duration = Duration::from_millis(50);
const STILL: Duration = Duration::from_secs(2);
/// Others are watched for so long before the holds end, and afterwards.
const BEFORE: Duration = Duration::from_secs(5);
const AFTER: Duration = Duration::from_secs(10);
/// What is asked for: all have fired within this, and others wait no longer.
const ASKED: (f64, f64) = (2_000.0, 25.0);

/// A whole measurement.
#[derive(Debug, Serialize)]
pub struct Timers {
    holds: usize,
    /// Between the first end and the last one.
    spread_ms: u64,
    /// From the last end until the log stood still.
    fired_ms: f64,
    fired_asked_ms: f64,
    /// Of buyers in other regions, before and afterwards.
    before_p99_ms: f64,
    after_p99_ms: f64,
    after_asked_ms: f64,
    load: String,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

/// Holds a place until `end_ms`; when that is by the region's clock.
async fn hold(session: &Session, event: &str, end_ms: u64) -> anyhow::Result<u64> {
    let ttl = Duration::from_millis(end_ms.saturating_sub(now_ms()));
    let request = HoldTicketsRequest {
        parent: event.to_owned(),
        tier_id: "ga".into(),
        quantity: 1,
        seats: Vec::new(),
        ttl: Some(prost_types::Duration { seconds: ttl.as_secs() as i64, nanos: ttl.subsec_nanos() as i32 }),
        request_id: request_id(),
    };
    let answer = session.tickets().hold_tickets(session.request(request)).await?.into_inner();
    let end = answer.hold.and_then(|hold| hold.expire_time).context("a hold has an end")?;
    Ok(end.seconds as u64 * 1_000 + end.nanos as u64 / 1_000_000)
}

/// Measures so many holds.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn timers(target: &Target, holds: usize) -> anyhow::Result<(String, Timers)> {
    let regions = target.regions().await?;
    ensure!(regions.len() >= 2, "this needs two regions");
    let event = target.event(&regions[0]).await?;
    let mut elsewhere = Vec::new();
    for region in &regions[1..] {
        elsewhere.push((target.event(region).await?, 0));
    }
    let (rows, goods) = (elsewhere.len(), Goods::new(elsewhere));
    let others = target.buyers(BUYERS)?;
    let end_ms = now_ms() + 5_000 + (holds as f64 / HOLDS_A_SECOND * 1e3) as u64;
    eprintln!("timers: {holds} holds are made");
    let tasks: Vec<_> = target
        .buyers(CLIENTS)?
        .into_iter()
        .enumerate()
        .map(|(at, session)| {
            let (event, count) = (event.clone(), holds / CLIENTS + usize::from(at < holds % CLIENTS));
            tokio::spawn(async move {
                let mut ends = Vec::new();
                for _ in 0..count {
                    ends.push(hold(&session, &event, end_ms).await?);
                }
                anyhow::Ok(ends)
            })
        })
        .collect();
    let mut ends = Vec::new();
    for task in tasks {
        ends.extend(task.await??);
    }
    let (first, last) = (ends.iter().min().copied().unwrap_or(0), ends.iter().max().copied().unwrap_or(0));
    let left = Duration::from_millis(first.saturating_sub(now_ms()));
    ensure!(left > BEFORE, "making the holds took too long: they end in {left:?}");
    tokio::time::sleep(left - BEFORE).await;
    let arrivals = |length: Duration| {
        let count = (length.as_secs_f64() * OTHERS) as usize;
        let due = |at| Duration::from_secs_f64(at as f64 / OTHERS);
        (0..count).map(move |at| Arrival { due: due(at), event: at % rows })
    };
    let span = |measured| Span { warm_up: Duration::ZERO, measured };
    let load = machine::load();
    let before = drive(&others, &goods, arrivals(BEFORE), span(BEFORE), PATIENCE).await;
    eprintln!("timers: they end");
    let (after, fired_ms) = tokio::join!(
        drive(&others, &goods, arrivals(AFTER), span(AFTER), PATIENCE),
        still(target, &regions[0], last)
    );
    let p99 =
        |driven: &crate::open_loop::Driven| driven.seen.first().map_or(0.0, |seen| seen.percentile_ms(99.0));
    let result = Timers {
        holds: ends.len(),
        spread_ms: last - first,
        fired_ms: fired_ms?,
        fired_asked_ms: ASKED.0,
        before_p99_ms: p99(&before),
        after_p99_ms: p99(&after),
        after_asked_ms: ASKED.1,
        load,
    };
    Ok((table(&result), result))
}

/// When the log of a region has stopped growing, ms since `from_ms`.
async fn still(target: &Target, region: &str, from_ms: u64) -> anyhow::Result<f64> {
    let operator = target.session("bench-operator", Some("operator"))?;
    let (mut index, mut grew, mut grew_ms) = (0, Instant::now(), now_ms());
    while grew.elapsed() < STILL || now_ms() < from_ms + STILL.as_millis() as u64 {
        let now = target.status(&operator, region).await?.applied_index;
        if now > index {
            (index, grew, grew_ms) = (now, Instant::now(), now_ms());
        }
        tokio::time::sleep(LOOK).await;
    }
    Ok(grew_ms as f64 - from_ms as f64)
}

fn table(timers: &Timers) -> String {
    plain(
        ["holds", "ends within ms", "fired after ms", "asked", "others p99 before", "after", "asked", "load"],
        [[
            timers.holds.to_string(),
            timers.spread_ms.to_string(),
            format!("{:.0}", timers.fired_ms),
            format!("{:.0}", timers.fired_asked_ms),
            format!("{:.1}", timers.before_p99_ms),
            format!("{:.1}", timers.after_p99_ms),
            format!("{:.0}", timers.after_asked_ms),
            timers.load.clone(),
        ]],
    )
}
