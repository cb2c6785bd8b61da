//! The adaptive limit of one region: how many calls may be on their way to its shard group at once.
//!
//! A gradient controller in the manner of Netflix' *concurrency-limits* (Gradient2) and of TCP Vegas (Brakmo and
//! Peterson, 1995): once a window, the limit is multiplied by *tolerated latency / measured latency*. For a service
//! that merges what waits into batches, latency is about `T0 + calls / rate`, so that this settles where the latency is
//! the tolerated multiple of `T0`, the latency without load: a tolerance of 8 keeps 7/8 of the rate that an endless
//! queue would give. Pure: no clock, no task, no lock; time comes in as arguments.

use std::time::Duration;

/// How much of a measured deviation one window corrects, at most: halving, or growing by a quarter.
const STEP: (f64, f64) = (0.5, 1.5);
/// A window with no more calls under way than this, on average, shows the latency without load.
pub(crate) const QUIET_CALLS: f64 = 8.0;
/// Samples that replace half of what is believed of the latency without load.
const QUIET_SAMPLES: f64 = 64.0;
/// The limit begins at so many times its floor, and goes there while windows have no samples.
const BEGINS_AT_FLOORS: usize = 4;

/// Bounds and tolerances of the controller.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LimitOptions {
    /// The limit never falls below this, calls. The floor is what a region keeps while its latency, or that of its
    /// neighbours, cannot be held, whatever the reason; batches below it are too small to be worth their cost.
    pub floor: usize,
    /// The limit never rises above this, calls.
    pub ceiling: usize,
    /// Latency that is tolerated while one row (or all rows alike) makes the load, in multiples of the latency without
    /// load: the price of throughput.
    pub tolerance_alone: f64,
    /// Latency of lightly loaded rows that share the region with a heavy one, in the same multiples. A call of theirs
    /// waits for a batch of the flood and goes before the next.
    pub tolerance_shared: f64,
    /// Latency of other, lightly loaded regions that the heaviest region may cause, in multiples of theirs without load;
    /// a mean: their slowest calls suffer more.
    pub tolerance_others: f64,
    /// How late the gateway's own timer may be, on average, before the heaviest region yields to the others.
    pub lag_max: Duration,
}

impl Default for LimitOptions {
    fn default() -> Self {
        Self {
            floor: 16,
            ceiling: 4096,
            tolerance_alone: 8.0,
            tolerance_shared: 1.7,
            tolerance_others: 1.25,
            lag_max: Duration::from_millis(2),
        }
    }
}

/// How the neighbours of a region fare.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Around {
    /// No region of the gateway is loaded: what is slow now is slow without load.
    pub(crate) calm: bool,
    /// How late the gateway's timer was, if this region has most of the gateway's calls and others have some, too.
    pub(crate) lag: Option<Duration>,
    /// The others' latency in multiples of theirs without load, under the same condition.
    pub(crate) others: Option<f64>,
}

/// What happened in a region during one window.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Window {
    /// Answers of which the latency counts.
    pub(crate) samples: u64,
    /// Sum of their latencies, from the moment at which a call was let in.
    pub(crate) total: Duration,
    /// The shortest of them.
    pub(crate) shortest: Option<Duration>,
    /// Most calls under way at once.
    pub(crate) peak: usize,
    /// Calls under way, averaged over the window's samples.
    pub(crate) mean_calls: f64,
    /// Latency of rows with few calls, s, on average of late, while one row had most of the calls.
    pub(crate) light: Option<f64>,
    /// How the others fare.
    pub(crate) around: Around,
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
}

impl Limit {
    /// Starts near the floor: it takes few windows to rise, and the latency that is seen first is believed.
    pub(crate) fn new(options: LimitOptions) -> Self {
        let floor = options.floor.max(1);
        let options = LimitOptions { floor, ceiling: options.ceiling.max(floor), ..options };
        Self { limit: Self::beginning(&options), options, no_load: None }
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

    /// The latency of a window in multiples of that without load, as far as both are known.
    pub(crate) fn inflation(&self, window: &Window) -> Option<f64> {
        Some(window.mean()? / self.no_load?.max(f64::EPSILON))
    }

    /// Draws the conclusions from a window.
    pub(crate) fn update(&mut self, window: &Window) {
        let reached = window.peak * 2 >= self.get();
        let (Some(mean), Some(shortest)) = (window.mean(), window.shortest) else {
            let beginning = Self::beginning(&self.options);
            if reached && self.limit < beginning {
                self.limit = (self.limit * STEP.1).min(beginning);
            }
            return;
        };
        let no_load = self.learn(window, mean, shortest.as_secs_f64());
        if !reached {
            // A latency that so few calls meet is not of their making, and the limit would not change it.
            return;
        }
        let mut gradient = self.options.tolerance_alone * no_load / mean.max(f64::EPSILON);
        if let Some(light) = window.light {
            gradient = gradient.min(self.options.tolerance_shared * no_load / light.max(f64::EPSILON));
        }
        if let Some(others) = window.around.others.filter(|others| *others > self.options.tolerance_others) {
            gradient = gradient.min(self.options.tolerance_others / others);
        }
        if let Some(lag) = window.around.lag.filter(|lag| *lag > self.options.lag_max) {
            gradient = gradient.min(self.options.lag_max.as_secs_f64() / lag.as_secs_f64());
        }
        // Half of the way: what one window says is never the whole truth.
        let step = (1.0 + gradient.clamp(STEP.0, STEP.1)) / 2.0;
        self.limit = (self.limit * step).clamp(self.options.floor as f64, self.options.ceiling as f64);
    }

    /// The latency without load: seen while there is none; under load it can only turn out to be less.
    fn learn(&mut self, window: &Window, mean: f64, shortest: f64) -> f64 {
        let believed = match self.no_load {
            // The shortest call of a busy window came just before a batch was cut: that is close enough.
            None => shortest,
            Some(known) if window.mean_calls <= QUIET_CALLS && window.around.calm => {
                let samples = window.samples as f64;
                known + (mean - known) * samples / (samples + QUIET_SAMPLES)
            }
            Some(known) => known.min(mean),
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
            let latency = self.latency(calls);
            let samples = self.throughput(calls) * WINDOW;
            Window {
                samples: samples as u64,
                total: Duration::from_secs_f64(latency * (samples as u64) as f64),
                shortest: Some(Duration::from_secs_f64(latency * 0.7)),
                peak: calls as usize,
                mean_calls: calls,
                light: None,
                around: Around { calm: true, ..Around::default() },
            }
        }

        fn run(&self, limit: &mut Limit, offered: f64, windows: usize, change: impl Fn(&mut Window)) {
            for _ in 0..windows {
                let mut window = self.window(limit, offered);
                change(&mut window);
                limit.update(&window);
            }
        }
    }

    /// As measured: 1.3 ms alone, 28,000 purchases a second at the very most.
    const HOT_ROW: Service = Service { t0: 0.0013, rate: 28_000.0 };

    fn warm(service: &Service) -> Limit {
        let mut limit = Limit::new(LimitOptions::default());
        service.run(&mut limit, 2.0, 50, |_| ());
        limit
    }

    #[test]
    fn few_clients_are_never_in_its_way() {
        for offered in [1.0, 16.0, 64.0, 100.0, 200.0] {
            let mut limit = warm(&HOT_ROW);
            HOT_ROW.run(&mut limit, offered, 100, |_| ());
            assert!(limit.get() as f64 >= offered, "{offered} offered, limit {}", limit.get());
        }
    }

    #[test]
    fn an_overload_keeps_nine_tenths_of_the_peak() {
        let peak = HOT_ROW.throughput(256.0);
        let mut limit = warm(&HOT_ROW);
        HOT_ROW.run(&mut limit, 40_000.0, 40, |_| ());
        let goodput = HOT_ROW.throughput(limit.get() as f64);
        assert!(goodput >= 0.9 * peak, "{goodput} of {peak} at limit {}", limit.get());
        assert!(limit.get() <= 400, "more only waits: {}", limit.get());
        // It got there within two seconds and stays.
        let reached = limit.get();
        HOT_ROW.run(&mut limit, 40_000.0, 1000, |_| ());
        assert!(limit.get().abs_diff(reached) <= reached / 20, "{reached} became {}", limit.get());
    }

    #[test]
    fn a_neighbour_makes_a_hot_row_yield_and_gives_back_when_it_goes() {
        let mut limit = warm(&HOT_ROW);
        HOT_ROW.run(&mut limit, 1000.0, 60, |_| ());
        let alone = limit.get();
        HOT_ROW.run(&mut limit, 1000.0, 60, |window| window.light = window.mean());
        assert!(limit.get() <= 64 && alone >= 200, "{alone} alone, {} shared", limit.get());
        HOT_ROW.run(&mut limit, 1000.0, 60, |_| ());
        assert!(limit.get() * 10 >= alone * 9, "{} again", limit.get());
    }

    #[test]
    fn a_gateway_that_lags_takes_from_the_heaviest_region_down_to_the_floor() {
        let mut limit = warm(&HOT_ROW);
        HOT_ROW.run(&mut limit, 1000.0, 60, |_| ());
        let alone = limit.get();
        let lag = |ms| move |window: &mut Window| window.around.lag = Some(Duration::from_millis(ms));
        HOT_ROW.run(&mut limit, 1000.0, 5, lag(1));
        assert!(limit.get() * 10 >= alone * 9, "a little lag is no lag: {}", limit.get());
        HOT_ROW.run(&mut limit, 1000.0, 60, lag(8));
        assert_eq!(limit.get(), LimitOptions::default().floor);
    }

    #[test]
    fn the_heaviest_region_yields_until_the_others_are_well() {
        let mut limit = warm(&HOT_ROW);
        HOT_ROW.run(&mut limit, 1000.0, 60, |_| ());
        let alone = limit.get();
        // The others' latency grows with the calls that the heaviest region has under way.
        HOT_ROW.run(&mut limit, 1000.0, 60, |window| {
            window.around.others = Some(1.0 + window.mean_calls / 100.0);
        });
        // There it is tolerated.
        let tolerated = (LimitOptions::default().tolerance_others - 1.0) * 100.0;
        assert!((tolerated - limit.get() as f64).abs() < 10.0, "{} after {alone}", limit.get());
    }

    #[test]
    fn the_latency_without_load_is_learnt_from_quiet_windows_only() {
        let mut limit = warm(&HOT_ROW);
        let known = limit.no_load();
        HOT_ROW.run(&mut limit, 1000.0, 10_000, |_| ());
        assert_eq!(limit.no_load(), known, "a flood is not the new normal, however long it lasts");
        // Another disk, twice as slow: known after some quiet windows.
        let slower = Service { t0: 0.0026, ..HOT_ROW };
        slower.run(&mut limit, 2.0, 50, |_| ());
        let learnt = limit.no_load().map_or(0.0, |latency| latency.as_secs_f64());
        assert!((0.0025..0.0028).contains(&learnt), "{learnt}");
        // Slow because another region is loaded: that is not without load.
        let suffering = Service { t0: 0.0060, ..HOT_ROW };
        suffering.run(&mut limit, 2.0, 50, |window| window.around.calm = false);
        assert_eq!(limit.no_load().map_or(0.0, |latency| latency.as_secs_f64()), learnt);
    }

    #[test]
    fn a_flood_on_a_cold_gateway_is_held_as_well() {
        let mut limit = Limit::new(LimitOptions::default());
        HOT_ROW.run(&mut limit, 40_000.0, 600, |_| ());
        let goodput = HOT_ROW.throughput(limit.get() as f64);
        assert!(goodput >= 0.9 * HOT_ROW.throughput(256.0), "{goodput}");
        assert!(limit.get() <= 1024, "{}", limit.get());
    }

    #[test]
    fn a_stall_ends_at_the_floor_and_is_made_good() {
        let mut limit = warm(&HOT_ROW);
        HOT_ROW.run(&mut limit, 1000.0, 60, |_| ());
        let before = limit.get();
        let stalled = Service { t0: 2.0, rate: 100.0 };
        stalled.run(&mut limit, 1000.0, 30, |window| {
            (window.samples, window.total) = (10, Duration::from_secs(20));
        });
        assert_eq!(limit.get(), LimitOptions::default().floor);
        HOT_ROW.run(&mut limit, 1000.0, 40, |_| ());
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
        HOT_ROW.run(&mut limit, 1000.0, 100, |_| ());
        assert_eq!(limit.get(), 32);
    }
}
