//! The asynchronous runtime that openraft runs on: tokio's, with one difference.
//!
//! Each replica has a ticker of its own; a node has twelve. Left alone they wake the node some 700 times a second, and
//! what an idle node costs is those wake-ups. Here every sleep ends on a common grid, so that all tickers of a node
//! fire in one wake-up and their heartbeats share messages. A sleep is never shorter than asked for. In a simulation
//! the grid begins with it, and chance is the simulation's.

use std::convert::Infallible;
use std::future::Future;
use std::sync::OnceLock;
use std::time::Duration;

use openraft::AsyncRuntime;
use openraft::OptionalSend;
use openraft::impls::TokioRuntime;
use rand::RngCore as _;
use tidewall_env::{random, simulation};
use tokio::time::Instant;

/// Sleeps end at multiples of this after the first one; a quarter of a heartbeat interval.
const GRID: Duration = Duration::from_millis(25);

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

/// The first grid point that is not before `deadline`.
fn on_grid(deadline: Instant) -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    let origin = simulation::began().unwrap_or_else(|| *ORIGIN.get_or_init(Instant::now));
    let Some(since) = deadline.checked_duration_since(origin) else { return deadline };
    let points = since.as_nanos().div_ceil(GRID.as_nanos());
    match u32::try_from(points).ok().and_then(|points| GRID.checked_mul(points)) {
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
        tokio::time::sleep_until(on_grid(Instant::now() + duration))
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
        let now = Instant::now();
        let mut points = std::collections::BTreeSet::new();
        for ms in 0..200 {
            let asked = now + Duration::from_millis(ms);
            let given = on_grid(asked);
            assert!(given >= asked && given < asked + GRID, "{ms}");
            points.insert(given);
        }
        assert!(points.len() <= 200 / 25 + 2, "{} wake-ups", points.len());
    }
}
