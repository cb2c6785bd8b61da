//! A nation that buys: events in all regions, some wanted more than others, and one hot event that moves.
//!
//! Half of all buyers want the hot event, which is another one every ten seconds; the others choose among all events by
//! Zipf's law. They come at random times at a given rate, whatever the service does. One run goes through several rates,
//! and then offers three times the best goodput that it has seen.

use std::time::Duration;

use anyhow::ensure;
use comfy_table::{Table, presets};
use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;

use crate::cell::{Span, percentile_ms};
use crate::machine;
use crate::open_loop::{Arrival, Goods, Seen, drive};
use crate::tidewall::Target;

/// Events.
const EVENTS: usize = 120;
/// Share of the buyers who want the hot event.
const HOT_PART: f64 = 0.5;
/// How long an event stays hot.
const HOT_FOR: Duration = Duration::from_secs(10);
/// Connections are shared by 64 of them each.
const BUYERS: usize = 4_096;
/// How long a buyer stays.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two rates.
const SETTLE: Duration = Duration::from_secs(3);
/// How much more than the plateau is offered at the end.
const OVERLOAD: f64 = 3.0;

/// Who comes when, and wants what.
pub struct Arrivals {
    random: StdRng,
    rate: f64,
    now: f64,
    /// Sum of the weights of the events up to each, 1 at the last; events are in the order of how much they are wanted.
    cumulative: Vec<f64>,
    /// The event at each place of that order.
    order: Vec<usize>,
    hot: usize,
    hot_until: f64,
}

impl Arrivals {
    /// Buyers of `events` events, so many a second on average.
    pub fn new(seed: u64, events: usize, rate: f64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let mut order: Vec<usize> = (0..events).collect();
        order.shuffle(&mut random);
        let total: f64 = (1..=events).map(|rank| 1.0 / rank as f64).sum();
        let mut sum = 0.0;
        let cumulative = (1..=events).map(|rank| {
            sum += 1.0 / rank as f64 / total;
            sum
        });
        let cumulative = cumulative.collect();
        Self { random, rate, now: 0.0, cumulative, order, hot: 0, hot_until: 0.0 }
    }
}

impl Iterator for Arrivals {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let chance: f64 = self.random.random_range(f64::MIN_POSITIVE..1.0);
        self.now += -chance.ln() / self.rate;
        while self.now >= self.hot_until {
            self.hot = self.random.random_range(0..self.order.len());
            self.hot_until += HOT_FOR.as_secs_f64();
        }
        let event = if self.random.random_bool(HOT_PART) {
            self.hot
        } else {
            let at: f64 = self.random.random_range(0.0..1.0);
            let rank = self.cumulative.partition_point(|sum| *sum <= at).min(self.order.len() - 1);
            self.order[rank]
        };
        Some(Arrival { due: Duration::from_secs_f64(self.now), event })
    }
}

/// What came of one rate.
#[derive(Debug, Serialize)]
pub struct AtRate {
    /// Buyers a second.
    rate: f64,
    /// Purchases a second.
    goodput: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of the attempt that was let in.
    admitted_p99_ms: f64,
    /// Share of the buyers who were told to come back, and how often, on average.
    refused: f64,
    returns_each: f64,
    /// Share of the buyers who gave up.
    gave_up: f64,
    /// Processor time of all server processes per purchase, µs.
    server_cpu_us: f64,
    broken: u64,
    failures: String,
    /// How late the generator itself was, part of the latencies.
    late_p99_ms: f64,
    load: String,
}

/// A whole measurement.
#[derive(Debug, Serialize)]
pub struct Mix {
    seed: u64,
    seconds: u64,
    rows: Vec<AtRate>,
    /// Best goodput of the given rates, and the part of it that was left at three times as many buyers.
    plateau: f64,
    left: f64,
}

/// Offers these rates, one after the other, and then [`OVERLOAD`] times the best goodput.
///
/// # Errors
/// When the cluster cannot be reached.
pub async fn mix(target: &Target, span: Span, seed: u64, rates: &[f64]) -> anyhow::Result<(String, Mix)> {
    ensure!(rates.iter().all(|rate| *rate >= 1.0), "a rate must be at least 1 a second");
    let regions = target.regions().await?;
    let mut events = Vec::new();
    for number in 0..EVENTS {
        events.push(target.event(&regions[number % regions.len()]).await?);
    }
    let goods = Goods::new(events.iter().map(|event| (event.clone(), 0)));
    let buyers = target.buyers(BUYERS)?;
    let mut rows: Vec<AtRate> = Vec::new();
    let mut plateau = 0.0_f64;
    for rate in rates.iter().copied().map(Some).chain([None]) {
        let rate = rate.unwrap_or(plateau * OVERLOAD);
        let load = machine::load();
        let before = machine::cpu_seconds(target.root());
        let arrivals = Arrivals::new(seed, EVENTS, rate);
        let driven = drive(&buyers, &goods, arrivals, span, PATIENCE).await;
        let cpu = machine::cpu_seconds(target.root()) - before;
        let Some(seen) = driven.seen.first() else { continue };
        let seconds = span.measured.as_secs_f64();
        let whole = seconds + span.warm_up.as_secs_f64();
        let row = AtRate {
            load,
            late_p99_ms: percentile_ms(&driven.late, 99.0),
            // Of the whole run, as its purchases are about evenly spread.
            server_cpu_us: cpu * 1e6 / (seen.served() as f64 * whole / seconds).max(1.0),
            ..AtRate::of(rate, seen, seconds)
        };
        let (served, p99, cpu) = (row.goodput, row.p99_ms, row.server_cpu_us);
        eprintln!(
            "mix: {rate:.0}/s offered, {served:.0}/s served, p99 {p99:.1} ms, {cpu:.0} µs of the servers each"
        );
        plateau = plateau.max(row.goodput);
        rows.push(row);
        tokio::time::sleep(SETTLE).await;
    }
    for event in &events {
        target.audit(event).await?;
    }
    let best =
        rows.split_last().map_or(0.0, |(_, given)| given.iter().map(|row| row.goodput).fold(0.0, f64::max));
    let left = rows.last().map_or(0.0, |row| row.goodput) / best.max(f64::MIN_POSITIVE);
    let result = Mix { seed, seconds: span.measured.as_secs(), rows, plateau: best, left };
    Ok((result.text(), result))
}

impl AtRate {
    fn of(rate: f64, seen: &Seen, seconds: f64) -> Self {
        let part = |count: u64| count as f64 / seen.came.max(1) as f64;
        Self {
            rate,
            goodput: seen.served() as f64 / seconds,
            p50_ms: seen.percentile_ms(50.0),
            p99_ms: seen.percentile_ms(99.0),
            admitted_p99_ms: percentile_ms(&seen.attempt, 99.0),
            refused: part(seen.refused),
            returns_each: seen.returns_each(),
            gave_up: part(seen.gave_up),
            server_cpu_us: 0.0,
            broken: seen.broken,
            failures: seen.failed(),
            late_p99_ms: 0.0,
            load: String::new(),
        }
    }
}

impl Mix {
    fn text(&self) -> String {
        let mut table = Table::new();
        table.load_preset(presets::ASCII_MARKDOWN).set_header([
            "offered/s",
            "served/s",
            "p50 ms",
            "p99 ms",
            "admitted p99 ms",
            "refused",
            "returns each",
            "gave up",
            "CPU µs",
            "generator late p99 ms",
            "failures",
            "load before",
        ]);
        for row in &self.rows {
            table.add_row([
                format!("{:.0}", row.rate),
                format!("{:.0}", row.goodput),
                format!("{:.1}", row.p50_ms),
                format!("{:.1}", row.p99_ms),
                format!("{:.1}", row.admitted_p99_ms),
                format!("{:.1} %", row.refused * 100.0),
                format!("{:.2}", row.returns_each),
                format!("{:.1} %", row.gave_up * 100.0),
                format!("{:.0}", row.server_cpu_us),
                format!("{:.1}", row.late_p99_ms),
                row.failures.clone(),
                row.load.clone(),
            ]);
        }
        let broken: u64 = self.rows.iter().map(|row| row.broken).sum();
        format!(
            "{table}\n\
             {EVENTS} events in all regions, seed {}, {} s each; {:.0} % of the buyers want an event that is another one every \
             {} s, the others choose by Zipf's law; a buyer stays {} s. Latency counts from when a purchase was due.\n\
             plateau {:.0}/s; {:.0} % of it at {OVERLOAD} times as many buyers; {broken} calls lost their connection\n\
             Asked: p99 ≤ 100 ms at 8,000/s; ≥ 90 % of the plateau at {OVERLOAD} times as many buyers, admitted p99 ≤ 500 ms, \
             at most two returns a refused buyer, no connection broken.",
            self.seed,
            self.seconds,
            HOT_PART * 100.0,
            HOT_FOR.as_secs(),
            PATIENCE.as_secs(),
            self.plateau,
            self.left * 100.0,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn half_of_the_buyers_want_what_is_hot_and_the_rest_some_events_more_than_others() {
        let arrivals: Vec<Arrival> = Arrivals::new(7, EVENTS, 1_000.0).take(40_000).collect();
        let again: Vec<Arrival> = Arrivals::new(7, EVENTS, 1_000.0).take(40_000).collect();
        assert_eq!(arrivals, again, "a seed says it all");
        assert!(arrivals.windows(2).all(|pair| pair[0].due <= pair[1].due));
        let lasts = arrivals.last().map_or(0.0, |last| last.due.as_secs_f64());
        assert!((38.0..42.0).contains(&lasts), "{lasts}");
        // In each ten seconds one event has half of all buyers, and not always the same one.
        let hottest = |from: usize| {
            let mut counts = vec![0; EVENTS];
            let in_turn = |at: &&Arrival| at.due.as_secs() as usize / 10 == from;
            arrivals.iter().filter(in_turn).for_each(|at| counts[at.event] += 1);
            let (event, most) = counts.iter().enumerate().max_by_key(|(_, count)| **count).unwrap_or((0, &0));
            (event, f64::from(*most) / f64::from(counts.iter().sum::<i32>().max(1)))
        };
        let turns: Vec<_> = (0..3).map(hottest).collect();
        assert!(turns.iter().all(|(_, part)| (0.45..0.65).contains(part)), "{turns:?}");
        assert!(turns.iter().any(|(event, _)| *event != turns[0].0), "{turns:?}");
        let mut counts = vec![0; EVENTS];
        arrivals.iter().for_each(|at| counts[at.event] += 1);
        assert!(counts.iter().all(|count| *count > 0), "everything is wanted by somebody");
    }
}
