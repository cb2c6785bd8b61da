//! The asynchronous runtime that openraft runs on: tokio's, with one difference.
//!
//! Each replica has a ticker of its own; a node has twelve. Left alone they wake the node some 700 times a second, and
//! what an idle node costs is those wake-ups. Here the sleeps of tickers end on a common grid, so that all tickers of a
//! node fire in one wake-up and their heartbeats share messages. Whatever else openraft waits for, a pause
//! before it tries a silent replica again, is rounded up with them. A sleep is never shorter than asked for, except that
//! openraft's waits of a microsecond, which tokio would stretch to two milliseconds, are none: they only give others a
//! turn.
//!
//! Processes that run one node each give their grids places of their own within the same period of the system's clock
//! ([`take_place`]): two standbys that miss a leader then ask for votes one after the other instead of at once. In a
//! simulation, where a wake-up costs nothing, the grid is fine and begins with the run; chance is the simulation's.

use std::convert::Infallible;
use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use openraft::AsyncRuntime;
use openraft::OptionalSend;
use openraft::impls::TokioRuntime;
use rand::RngCore as _;
use tidewall_env::{random, simulation};
use tokio::time::Instant;

/// Sleeps end at multiples of this after the origin: the interval of heartbeats, as it then turns out.
const GRID: Duration = Duration::from_millis(150);
/// The grid of a process that has taken no place, and of a simulation.
const FINE_GRID: Duration = Duration::from_millis(25);
/// Shorter sleeps are not slept at all. openraft waits so long to let events gather; a ticker hardly ever does.
const NOTHING: Duration = Duration::from_micros(10);
/// Further back than a timer's resolution.
const LONG_AGO: Duration = Duration::from_millis(10);

/// Where the grid of this process lies, and how wide it is.
static PLACE: OnceLock<(Instant, Duration)> = OnceLock::new();

/// Puts the ticks of this process, which runs node `node` and no other, in a place of their own within the common
/// period. Call it before the first group starts; without it the process has a finer grid that begins anywhere.
pub fn take_place(node: u64) {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let until_period = GRID.as_nanos() - since.as_nanos() % GRID.as_nanos();
    let wait = Duration::from_nanos(u64::try_from(until_period).unwrap_or_default()) + offset(node);
    // A place that was taken before stays.
    let _ = PLACE.set((Instant::now() + wait, GRID));
}

/// How far into the period a node ticks: multiples of the golden ratio, which keep any few numbers well apart (Knuth,
/// "The Art of Computer Programming", volume 3, 6.4: Fibonacci hashing).
fn offset(node: u64) -> Duration {
    // 32 bits of fraction; the product below stays within 64.
    let part = node.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
    Duration::from_nanos((GRID.as_nanos() as u64 * part) >> 32)
}

/// Tokio with sleeps on a grid.
#[derive(Debug)]
pub struct RaftRuntime(TokioRuntime);

/// Where openraft's random waits come from.
#[derive(Debug)]
pub struct Chance;

impl rand_core::TryRng for Chance {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(random::rng().next_u32())
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(random::rng().next_u64())
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        random::rng().fill_bytes(bytes);
        Ok(())
    }
}

/// When a sleep ends that begins `now`.
fn end(now: Instant, duration: Duration) -> Instant {
    let deadline = now + duration;
    if duration < NOTHING {
        // In a simulation time stands still while anybody runs: who would not sleep at all might wait for it forever.
        // What lies back needs no timer at all; what ends now would wait for the timer's next millisecond.
        return if simulation::is_active() { deadline } else { now.checked_sub(LONG_AGO).unwrap_or(now) };
    }
    match simulation::began() {
        Some(origin) => on_grid(deadline, origin, FINE_GRID),
        None => {
            let (origin, grid) = *PLACE.get_or_init(|| (Instant::now(), FINE_GRID));
            on_grid(deadline, origin, grid)
        }
    }
}

/// The first grid point that is not before `deadline`.
fn on_grid(deadline: Instant, origin: Instant, grid: Duration) -> Instant {
    let Some(since) = deadline.checked_duration_since(origin) else { return origin };
    let points = since.as_nanos().div_ceil(grid.as_nanos());
    match u32::try_from(points).ok().and_then(|points| grid.checked_mul(points)) {
        Some(offset) => origin + offset,
        // Years away: its exact place does not matter.
        None => deadline,
    }
}

impl AsyncRuntime for RaftRuntime {
    type JoinError = <TokioRuntime as AsyncRuntime>::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::JoinHandle<T>;
    type Sleep = <TokioRuntime as AsyncRuntime>::Sleep;
    type Instant = <TokioRuntime as AsyncRuntime>::Instant;
    type TimeoutError = <TokioRuntime as AsyncRuntime>::TimeoutError;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = <TokioRuntime as AsyncRuntime>::Timeout<R, T>;
    type ThreadLocalRng = Chance;
    type Mpsc = <TokioRuntime as AsyncRuntime>::Mpsc;
    type Watch = <TokioRuntime as AsyncRuntime>::Watch;
    type Oneshot = <TokioRuntime as AsyncRuntime>::Oneshot;
    type Mutex<T: OptionalSend + 'static> = <TokioRuntime as AsyncRuntime>::Mutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        TokioRuntime::spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        tokio::time::sleep_until(end(Instant::now(), duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        let now = <Self::Instant as openraft::Instant>::now();
        let left = if deadline > now { deadline - now } else { Duration::ZERO };
        Self::sleep(left)
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        TokioRuntime::is_panic(join_error)
    }

    fn thread_rng() -> Self::ThreadLocalRng {
        Chance
    }

    fn new(threads: usize) -> Self {
        Self(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleeps_end_together_and_never_early() {
        let origin = Instant::now();
        let mut points = std::collections::BTreeSet::new();
        for ms in 0..500 {
            let asked = origin + Duration::from_millis(ms);
            let given = on_grid(asked, origin, GRID);
            assert!(given >= asked && given < asked + GRID, "{ms}");
            points.insert(given);
        }
        assert_eq!(points.len(), 5, "{points:?}");
    }

    #[test]
    fn what_is_meant_to_give_others_a_turn_does_not_wait_for_the_grid() {
        let now = Instant::now();
        assert!(end(now, Duration::from_micros(1)) < now);
        let tick = Duration::from_millis(21);
        assert!(end(now, tick) >= now + tick);
        assert_eq!(end(now, tick), end(now, tick), "one grid");
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_for_others_costs_no_time_and_a_tick_its_own() {
        let before = Instant::now();
        RaftRuntime::sleep(Duration::from_micros(1)).await;
        assert_eq!(Instant::now(), before);
        let tick = Duration::from_millis(21);
        RaftRuntime::sleep(tick).await;
        assert!((tick..tick + GRID + LONG_AGO).contains(&before.elapsed()), "{:?}", before.elapsed());
    }

    #[test]
    fn nodes_tick_apart() {
        for first in 1..40_u64 {
            let mut offsets: Vec<_> = (first..first + 3).map(offset).collect();
            offsets.sort();
            let mut gaps: Vec<_> = offsets.windows(2).map(|pair| pair[1] - pair[0]).collect();
            gaps.push(GRID - (offsets[2] - offsets[0]));
            assert!(gaps.iter().all(|gap| *gap > Duration::from_millis(16)), "{first}: {gaps:?}");
        }
    }
}
