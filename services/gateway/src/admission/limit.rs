//! How many calls of a region may be under way at once: as many as its rate needs, and no more.
//!
//! Once a window, the limit is multiplied by *tolerated latency / measured latency*: a gradient controller in the manner of
//! Netflix' *concurrency-limits* (Gradient2) and of TCP Vegas (Brakmo and Peterson, 1995). For a service that merges what
//! waits into batches, latency is about `T0 + calls / rate`, so that this settles where the latency is the tolerated multiple
//! of `T0`, the latency without load: a tolerance of 8 keeps 7/8 of the rate that an endless queue would give, and more calls
//! would only make everybody's answers late and come in bursts. What other regions do is no business of a limit: where all of
//! them make the latency, a region that yields makes smaller batches and gains nobody anything; there its floor counts. Pure:
//! no clock, no task, no lock; time comes in as arguments.

use std::time::Duration;

/// How much of a measured deviation one window corrects, at most: halving, or growing by a quarter.
const STEP: (f64, f64) = (0.5, 1.5);
/// A window with no more calls under way than this, on average, shows the latency without load.
const QUIET_CALLS: f64 = 8.0;
/// Samples that replace half of what is believed of the latency without load.
const QUIET_SAMPLES: f64 = 64.0;
/// What one quiet window can make of the latency without load, at most: a stall is not the new normal.
const QUIET_GROWTH: f64 = 2.0;
/// Samples without which a loaded window tells nothing about the latency without load: one answer may be a replay.
const LOADED_SAMPLES_MIN: u64 = 8;
/// The limit begins at so many times its floor, and goes there while windows have no samples. It does not rise above before
/// the latency without load was seen.
const BEGINS_AT_FLOORS: usize = 4;

/// Bounds of the controller, and what it tolerates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitOptions {
    /// The limit never falls below this, calls, however slow the region is. What a batch costs is spread over its calls: at a
    /// hundred, what remains of it is a tenth of what a call costs by itself, on a fast machine and on a slow one.
    pub floor: usize,
    /// The limit never rises above this, calls.
    pub ceiling: usize,
    /// Latency that is tolerated, in multiples of the latency without load: the price of throughput.
    pub tolerance: f64,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self { floor: 128, ceiling: 4096, tolerance: 8.0 }
    }
}

/// What happened in a region during one window.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    /// Answers of which the latency counts.
    pub(crate) samples: u64,
    /// Sum of their latencies, from the moment at which a call was let in.
    pub(crate) total: Duration,
    /// Most calls under way at once.
    pub(crate) peak: usize,
    /// Calls under way, averaged over the window's samples.
    pub(crate) mean_calls: f64,
    /// Hardly anything is under way in any region: what is slow now is slow without load.
    pub(crate) calm: bool,
}

impl Window {
    /// Mean latency, s; `None` without samples.
    fn mean(&self) -> Option<f64> {
        (self.samples > 0).then(|| self.total.as_secs_f64() / self.samples as f64)
    }
}

/// The limit and what it is derived from.
#[derive(Debug, Clone)]
pub(crate) struct Limit {
    options: LimitOptions,
    limit: f64,
    /// Latency without load, s.
    no_load: Option<f64>,
    /// It was seen without load, and is not merely the least that was seen under load.
    seen_calm: bool,
}

impl Limit {
    /// Starts near the floor: it takes few windows to rise.
    pub(crate) fn new(options: LimitOptions) -> Self {
        let floor = options.floor.max(1);
        let options = LimitOptions { floor, ceiling: options.ceiling.max(floor), ..options };
        Self { limit: Self::beginning(&options), options, no_load: None, seen_calm: false }
    }

    fn beginning(options: &LimitOptions) -> f64 {
        (options.floor * BEGINS_AT_FLOORS).min(options.ceiling) as f64
    }

    /// The limit, calls.
    pub(crate) fn get(&self) -> usize {
        self.limit as usize
    }

    /// The latency without load, as far as it is known.
    pub(crate) fn no_load(&self) -> Option<Duration> {
        self.no_load.map(Duration::from_secs_f64)
    }

    /// Draws the conclusions from a window.
    pub(crate) fn update(&mut self, window: &Window) {
        let reached = window.peak * 2 >= self.get();
        let Some(mean) = window.mean() else {
            let beginning = Self::beginning(&self.options);
            if reached && self.limit < beginning {
                self.limit = (self.limit * STEP.1).min(beginning);
            }
            return;
        };
        let no_load = self.learn(window, mean);
        if !reached {
            // A latency that so few calls meet is not of their making, and the limit would not change it.
            return;
        }
        let gradient = self.options.tolerance * no_load / mean.max(f64::EPSILON);
        // Half of the way: what one window says is never the whole truth.
        let step = (1.0 + gradient.clamp(STEP.0, STEP.1)) / 2.0;
        let ceiling =
            if self.seen_calm { self.options.ceiling as f64 } else { Self::beginning(&self.options) };
        self.limit = (self.limit * step).clamp(self.options.floor as f64, ceiling);
    }

    /// The latency without load: seen while there is none; under load it can only turn out to be less.
    fn learn(&mut self, window: &Window, mean: f64) -> f64 {
        let known = self.no_load.unwrap_or(mean);
        let believed = if window.calm && window.mean_calls <= QUIET_CALLS {
            self.seen_calm = true;
            let samples = window.samples as f64;
            known + (mean.min(known * QUIET_GROWTH) - known) * samples / (samples + QUIET_SAMPLES)
        } else if window.samples >= LOADED_SAMPLES_MIN {
            known.min(mean)
        } else {
            known
        };
        self.no_load = Some(believed);
        believed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: f64 = 0.1;

    /// A service that merges what waits: a call takes `t0` and its share of a queue that is worked off at `rate`.
    struct Service {
        t0: f64,
        rate: f64,
    }

    impl Service {
        fn latency(&self, calls: f64) -> f64 {
            self.t0 + calls / self.rate
        }

        fn throughput(&self, calls: f64) -> f64 {
            calls / self.latency(calls)
        }

        /// One window with so many calls offered at once.
        fn window(&self, limit: &Limit, offered: f64) -> Window {
            let calls = offered.min(limit.get() as f64);
            let samples = (self.throughput(calls) * WINDOW) as u64;
            Window {
                samples,
                total: Duration::from_secs_f64(self.latency(calls) * samples as f64),
                peak: calls as usize,
                mean_calls: calls,
                calm: calls < 32.0,
            }
        }

        fn run(&self, limit: &mut Limit, offered: f64, windows: usize) {
            for _ in 0..windows {
                let window = self.window(limit, offered);
                limit.update(&window);
            }
        }
    }

    /// As measured in a quiet hour: 1.3 ms alone, 28,000 purchases a second at the very most.
    const HOT_ROW: Service = Service { t0: 0.0013, rate: 28_000.0 };

    fn warm(service: &Service) -> Limit {
        let mut limit = Limit::new(LimitOptions::default());
        service.run(&mut limit, 2.0, 50);
        limit
    }

    #[test]
    fn clients_in_a_closed_loop_are_not_in_its_way() {
        for offered in [1.0, 16.0, 64.0, 100.0, 250.0] {
            let mut limit = warm(&HOT_ROW);
            HOT_ROW.run(&mut limit, offered, 100);
            assert!(limit.get() as f64 >= offered, "{offered} offered, limit {}", limit.get());
        }
    }

    #[test]
    fn an_overload_keeps_seven_eighths_of_the_rate_on_any_machine() {
        // The machine of a quiet hour, one with a slow disk, and one that is a tenth as fast.
        for service in [HOT_ROW, Service { t0: 0.010, ..HOT_ROW }, Service { t0: 0.013, rate: 2_800.0 }] {
            let mut limit = warm(&service);
            service.run(&mut limit, 40_000.0, 60);
            let goodput = service.throughput(limit.get() as f64);
            assert!(goodput >= 0.85 * service.rate, "{goodput} at limit {}", limit.get());
            let latency = service.latency(limit.get() as f64);
            assert!(latency <= 8.5 * service.t0, "more only waits: {latency} s at limit {}", limit.get());
            let reached = limit.get();
            service.run(&mut limit, 40_000.0, 1_000);
            assert!(limit.get().abs_diff(reached) <= 1 + reached / 20, "{reached} became {}", limit.get());
        }
    }

    #[test]
    fn a_flood_on_a_cold_gateway_is_held_as_well() {
        let mut limit = Limit::new(LimitOptions::default());
        HOT_ROW.run(&mut limit, 40_000.0, 600);
        let goodput = HOT_ROW.throughput(limit.get() as f64);
        assert!(goodput >= 0.9 * HOT_ROW.throughput(256.0), "{goodput}");
        assert!(limit.get() <= 512, "{}", limit.get());
    }

    #[test]
    fn a_stall_in_a_quiet_hour_is_not_the_new_normal() {
        let mut limit = warm(&HOT_ROW);
        let known = limit.no_load().map_or(0.0, |latency| latency.as_secs_f64());
        let stall =
            Window { samples: 8, total: Duration::from_secs(16), peak: 8, mean_calls: 8.0, calm: true };
        limit.update(&stall);
        let after = limit.no_load().map_or(0.0, |latency| latency.as_secs_f64());
        assert!(known < after && after < 1.2 * known, "{known} became {after}");
    }

    /// Everybody is slow because everybody calls: to yield would help nobody.
    #[test]
    fn where_all_regions_are_busy_batches_stay_worth_their_cost() {
        let mut limit = warm(&HOT_ROW);
        Service { t0: 0.040, rate: 9_000.0 }.run(&mut limit, 40_000.0, 200);
        assert_eq!(limit.get(), LimitOptions::default().floor);
    }

    #[test]
    fn the_latency_without_load_is_learnt_from_quiet_windows_only() {
        let mut limit = warm(&HOT_ROW);
        let known = limit.no_load();
        HOT_ROW.run(&mut limit, 1000.0, 10_000);
        assert_eq!(limit.no_load(), known, "a flood is not the new normal, however long it lasts");
        // Another disk, twice as slow: known after some quiet windows.
        let slower = Service { t0: 0.0026, ..HOT_ROW };
        slower.run(&mut limit, 2.0, 50);
        let learnt = limit.no_load().map_or(0.0, |latency| latency.as_secs_f64());
        assert!((0.0025..0.0028).contains(&learnt), "{learnt}");
        // Slow because another region is loaded: that is not without load.
        let suffering = Service { t0: 0.0060, ..HOT_ROW };
        for _ in 0..50 {
            let window = suffering.window(&limit, 2.0);
            limit.update(&Window { calm: false, ..window });
        }
        assert_eq!(limit.no_load().map_or(0.0, |latency| latency.as_secs_f64()), learnt);
    }

    #[test]
    fn a_stall_ends_at_the_floor_and_is_made_good() {
        let mut limit = warm(&HOT_ROW);
        HOT_ROW.run(&mut limit, 1000.0, 60);
        let before = limit.get();
        let stalled = Window {
            samples: 10,
            total: Duration::from_secs(20),
            peak: before,
            mean_calls: before as f64,
            calm: false,
        };
        for _ in 0..30 {
            limit.update(&stalled);
        }
        assert_eq!(limit.get(), LimitOptions::default().floor);
        HOT_ROW.run(&mut limit, 1000.0, 40);
        assert!(limit.get() * 10 >= before * 9, "{before} before, {} after", limit.get());
    }

    #[test]
    fn windows_without_samples_neither_shrink_nor_run_away() {
        let options = LimitOptions::default();
        let mut limit = Limit::new(options);
        let beginning = limit.get();
        limit.limit = options.floor as f64;
        for _ in 0..100 {
            limit.update(&Window { peak: limit.get(), ..Window::default() });
        }
        assert_eq!(limit.get(), beginning);
        limit.update(&Window::default());
        assert_eq!(limit.get(), beginning);
    }

    #[test]
    fn the_bounds_hold_whatever_is_asked_for() {
        let odd = LimitOptions { floor: 0, ceiling: 0, ..LimitOptions::default() };
        assert_eq!(Limit::new(odd).get(), 1);
        let mut limit = Limit::new(LimitOptions { floor: 4, ceiling: 32, ..LimitOptions::default() });
        HOT_ROW.run(&mut limit, 2.0, 1);
        HOT_ROW.run(&mut limit, 1000.0, 100);
        assert_eq!(limit.get(), 32);
    }
}
