//! What the regions of a gateway know of each other: how the lightly loaded ones fare, and how late the gateway's timer
//! wakes. When the first get slower, or the timer is late, the gateway, a node or the machine below is saturated, and
//! the region with most of the calls yields to the others.
//!
//! The timer runs only while a region is loaded: an idle gateway must not wake for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::gate::{MEMORY, NEIGHBOUR_RATE_MIN, Report};
use super::limit::{Around, QUIET_CALLS};

/// How often the timer is looked at while a region is loaded.
const LAG_TICK: Duration = Duration::from_millis(10);
/// A region with so many calls at once is loaded.
const LOADED_CALLS: f64 = 32.0;
/// A gateway is calm, and nobody looks at the timer, so long after the last loaded window.
const LINGER: Duration = Duration::from_millis(500);
/// Part of the mean that one look at the timer is.
const LAG_WEIGHT: f64 = 1.0 / 16.0;
/// Part of the mean that one window of a region is.
const INFLATION_WEIGHT: f64 = 1.0 / 4.0;
/// More than this is not the doing of a neighbour.
const INFLATION_MAX: f64 = 4.0;

/// The heaviest region yields while the others have no more than this part of its answers a second: where many regions
/// are busy, all of them make the latency, and it would yield for nothing.
const OTHERS_PART_MAX: f64 = 1.0 / 3.0;

/// What a region said last of itself.
#[derive(Debug, Clone, Copy)]
struct Word {
    /// Calls it had on average, waiting ones included.
    calls: f64,
    /// Calls that ended a second.
    rate: f64,
    /// Its latency in multiples of that without load, on average of late, if it was lightly loaded.
    inflation: Option<f64>,
    at: Duration,
}

/// The regions of a gateway.
pub(crate) struct Neighbours {
    words: Mutex<Vec<Option<Word>>>,
    /// When a region was loaded last, ms since the beginning; 0 is never.
    loaded_ms: AtomicU64,
    lag_us: AtomicU64,
    wake: Notify,
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The middle one, the lower one of two: one region that is slow for reasons of its own is not believed against others.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied()
}

impl Neighbours {
    pub(crate) fn new(regions: usize) -> Self {
        Self {
            words: Mutex::new(vec![None; regions]),
            loaded_ms: AtomicU64::new(0),
            lag_us: AtomicU64::new(0),
            wake: Notify::new(),
        }
    }

    /// A region reports at the end of a window and learns how the others fare; of their troubles only if it has at
    /// least half of all calls, and gives most of the answers.
    pub(crate) fn tell(&self, region: usize, report: Report, now: Duration) -> Around {
        let calls = report.under_way + report.waiting as f64;
        if calls >= LOADED_CALLS {
            self.loaded_ms.store(ms(now).max(1), Ordering::Relaxed);
            self.wake.notify_one();
        }
        let loaded_ms = self.loaded_ms.load(Ordering::Relaxed);
        let calm = loaded_ms == 0 || ms(now).saturating_sub(loaded_ms) > ms(LINGER);
        let mut words = self.words.lock();
        let before = words[region].and_then(|word| word.inflation);
        let inflation = report.inflation.filter(|_| calls <= QUIET_CALLS).map(|inflation| {
            let (inflation, before) = (inflation.min(INFLATION_MAX), before.unwrap_or(1.0));
            before + (inflation - before) * INFLATION_WEIGHT
        });
        words[region] = Some(Word { calls, rate: report.rate, inflation: inflation.or(before), at: now });
        let others = words.iter().enumerate().filter(|(other, _)| *other != region);
        let recent = |word: &Word| now.saturating_sub(word.at) <= MEMORY;
        let others: Vec<Word> = others.filter_map(|(_, word)| word.filter(recent)).collect();
        let sum = |of: fn(&Word) -> f64| others.iter().map(of).sum::<f64>();
        let rate = sum(|word| word.rate);
        let is_heaviest = sum(|word| word.calls) <= calls && rate <= report.rate * OTHERS_PART_MAX;
        if rate < NEIGHBOUR_RATE_MIN || !is_heaviest {
            return Around { calm, lag: None, others: None };
        }
        let light = others.iter().filter(|word| word.calls <= QUIET_CALLS);
        Around {
            calm,
            lag: Some(self.lag()),
            others: median(light.filter_map(|word| word.inflation).collect()),
        }
    }

    /// How late the timer was on average of late; zero while no region is loaded.
    pub(crate) fn lag(&self) -> Duration {
        Duration::from_micros(self.lag_us.load(Ordering::Relaxed))
    }

    /// Watches the timer; never returns. `began` is the beginning of the times that [`Neighbours::tell`] gets.
    pub(crate) async fn watch(self: Arc<Self>, began: Instant) {
        loop {
            self.wake.notified().await;
            let mut mean_us = 0.0;
            loop {
                let due = Instant::now() + LAG_TICK;
                sleep_until(due).await;
                mean_us += (due.elapsed().as_micros() as f64 - mean_us) * LAG_WEIGHT;
                self.lag_us.store(mean_us as u64, Ordering::Relaxed);
                let loaded = Duration::from_millis(self.loaded_ms.load(Ordering::Relaxed));
                if began.elapsed().saturating_sub(loaded) > LINGER {
                    break;
                }
            }
            self.lag_us.store(0, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn report(calls: f64, inflation: f64) -> Report {
        Report { under_way: calls, waiting: 0, rate: calls * 10.0, inflation: Some(inflation) }
    }

    #[test]
    fn only_the_heaviest_region_hears_of_the_lag_and_only_with_neighbours() {
        let neighbours = Neighbours::new(3);
        neighbours.lag_us.store(5000, Ordering::Relaxed);
        let lag = Some(Duration::from_millis(5));
        let tell = |region, calls, ms| neighbours.tell(region, report(calls, 1.0), at(ms)).lag;
        assert_eq!(tell(0, 100.0, 1000), None, "nobody else is there");
        assert_eq!(tell(1, 2.0, 1100), None, "the light one does not yield");
        assert_eq!(tell(0, 100.0, 1200), lag);
        assert_eq!(tell(0, 100.0, 2101), None, "the neighbour has gone");
        tell(1, 90.0, 2150);
        tell(2, 90.0, 2150);
        assert_eq!(tell(0, 100.0, 2200), None, "it has not even half");
    }

    #[test]
    fn where_all_are_busy_nobody_yields() {
        let neighbours = Neighbours::new(2);
        for (rate, hears) in [(333.0, true), (334.0, false)] {
            neighbours.tell(1, Report { rate, ..report(2.0, 3.0) }, at(1000));
            assert_eq!(neighbours.tell(0, report(100.0, 1.0), at(1000)).others.is_some(), hears, "{rate}");
        }
    }

    #[test]
    fn the_heaviest_region_hears_how_most_light_ones_fare() {
        let neighbours = Neighbours::new(5);
        let tell = |region, calls, inflation, ms| neighbours.tell(region, report(calls, inflation), at(ms));
        for ms in 1000..1050 {
            tell(1, 2.0, 3.0, ms);
        }
        let others = tell(0, 100.0, 5.0, 1100).others.unwrap();
        assert!((2.9..=3.0).contains(&others), "{others}");
        for ms in 1100..1150 {
            tell(2, 2.0, 1.0, ms);
            tell(3, 2.0, 1.1, ms);
            // It has a load of its own: that it is slow proves nothing.
            tell(4, 20.0, 3.0, ms);
        }
        let others = tell(0, 100.0, 5.0, 1200).others.unwrap();
        assert!((1.0..=1.2).contains(&others), "region 1 alone is slow, for reasons of its own: {others}");
        for ms in 1200..1250 {
            tell(2, 2.0, 1000.0, ms);
        }
        let others = tell(0, 100.0, 5.0, 1250).others.unwrap();
        assert!((2.9..=3.0).contains(&others), "two of three: {others}");
    }

    #[test]
    fn a_gateway_is_calm_until_a_region_is_loaded_and_again_after_a_while() {
        let neighbours = Neighbours::new(2);
        let calm = |region, calls, ms| neighbours.tell(region, report(calls, 1.0), at(ms)).calm;
        assert!(calm(0, 2.0, 1000));
        assert!(!calm(1, 100.0, 1100));
        assert!(!calm(0, 2.0, 1200));
        assert!(calm(0, 2.0, 1601));
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_runs_only_under_load() {
        let neighbours = Arc::new(Neighbours::new(1));
        let began = Instant::now();
        let watching = tokio::spawn(Arc::clone(&neighbours).watch(began));
        tokio::time::sleep(at(100)).await;
        neighbours.lag_us.store(7, Ordering::Relaxed);
        tokio::time::sleep(at(10_000)).await;
        assert_eq!(neighbours.lag_us.load(Ordering::Relaxed), 7, "nobody has looked at the timer");
        neighbours.tell(0, report(LOADED_CALLS, 1.0), began.elapsed());
        // Time stands still but for the sleeps: the timer is on time, and stops being looked at.
        tokio::time::sleep(at(2_000)).await;
        assert_eq!(neighbours.lag(), Duration::ZERO);
        neighbours.lag_us.store(7, Ordering::Relaxed);
        tokio::time::sleep(at(2_000)).await;
        assert_eq!(neighbours.lag_us.load(Ordering::Relaxed), 7);
        watching.abort();
    }
}
