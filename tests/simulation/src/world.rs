//! The simulated surroundings of a process: a clock that can be wrong, a disk that takes its time.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use tidewall_env::clock::Clock;
use tidewall_env::simulation::World;
use tidewall_env::tasks::{Later, Work};
use tokio::sync::Notify;

use crate::lines::Lines;

/// When the simulated world begins, seconds since 1970: any time will do, as long as it is always the same.
pub const EPOCH_SECONDS: u64 = 1_790_000_000;

/// What a simulated process finds in the place of the operating system.
pub fn world(lines: Lines) -> World {
    let elapsed = || turmoil::sim_elapsed().unwrap_or_default();
    World { connect: Arc::new(move |address| lines.connect(address)), elapsed, unix_ms: now_ms }
}

/// The right time, ms since 1970.
pub fn now_ms() -> u64 {
    turmoil::since_epoch().map_or(EPOCH_SECONDS * 1_000, |since| since.as_millis() as u64)
}

/// Virtual time since the simulation began, µs.
pub fn now_us() -> u64 {
    turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64
}

/// The clock of a machine: the world's time, and how far it is off.
#[derive(Clone, Default)]
pub struct SkewedClock {
    /// How far it is ahead, ms.
    pub ahead_ms: Arc<AtomicI64>,
}

impl Clock for SkewedClock {
    fn unix_ms(&self) -> u64 {
        now_ms().saturating_add_signed(self.ahead_ms.load(Ordering::Relaxed))
    }
}

/// How long a device takes, at most, µs.
#[derive(Clone)]
pub struct Pace(Arc<AtomicU64>);

impl Pace {
    /// A device of this pace.
    pub fn new(longest_us: u64) -> Self {
        Self(Arc::new(AtomicU64::new(longest_us)))
    }

    /// Changes its pace.
    pub fn set(&self, longest_us: u64) {
        self.0.store(longest_us, Ordering::Relaxed);
    }

    fn next(&self) -> Duration {
        let longest = self.0.load(Ordering::Relaxed).max(2);
        Duration::from_micros(tidewall_env::random::rng().random_range(longest / 4..=longest))
    }
}

/// What a device has been given and has not done.
pub type Backlog = Arc<Mutex<VecDeque<Work>>>;

/// A device that does one piece of work after the other, in the tasks of the host that runs at the moment. What it has
/// not done yet is lost when that host crashes.
pub fn device(pace: Pace) -> (Later, Backlog) {
    let backlog = Backlog::default();
    let bell = Arc::new(Notify::new());
    let (queue, rung) = (Arc::clone(&backlog), Arc::clone(&bell));
    tokio::spawn(async move {
        loop {
            while queue.lock().is_empty() {
                rung.notified().await;
            }
            tokio::time::sleep(pace.next()).await;
            let work = queue.lock().pop_front();
            if let Some(work) = work {
                work();
            }
        }
    });
    let queue = Arc::clone(&backlog);
    let later = Later::new(move |work| {
        queue.lock().push_back(work);
        bell.notify_one();
    });
    (later, backlog)
}
