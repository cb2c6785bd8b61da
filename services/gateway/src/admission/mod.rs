//! Admission: how many calls per region may be under way, who waits, and when the refused ones shall come back.
//!
//! Up to an adaptive limit ([`limit`]) calls go to the region at once; as many as can be served before their deadlines
//! wait here, where rows take turns ([`room`], [`queue`]); what does not fit is refused at once with a time to come back
//! ([`pace`]). To wait costs less than to be refused and come back, and of one row who came first is served first. The
//! limit keeps batches as large as they need to be and queues in the shards short. Nobody waits here while the region could
//! take its call. This module is the part with clock and tasks; what it decides, [`gate`] decides.

mod gate;
mod limit;
mod pace;
mod queue;
mod room;
#[cfg(test)]
mod simulation;

use std::hash::{DefaultHasher, Hasher as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::errors::ApiError;
pub(crate) use gate::{End, GateState};
use gate::{Gate, longest_wait};
pub use limit::LimitOptions;
pub(crate) use room::Priority;
use room::{Arrival, Place, QueuePlace};

/// With no more calls under way than this in all regions together, by weight, what is slow is slow without load.
const CALM_CALLS: usize = 32;
/// So long after there were more: calls that are answered together leave a moment that looks calm.
const CALM_AFTER: Duration = Duration::from_millis(500);

/// Whoever waits is let in or told when to come back.
type Waiter = oneshot::Sender<Result<Permit, Duration>>;

/// How much is under way in all regions.
#[derive(Default)]
struct Load {
    /// Calls, by weight.
    under_way: AtomicUsize,
    /// When there were more than [`CALM_CALLS`], ms since the beginning.
    loaded_ms: AtomicU64,
}

impl Load {
    fn begin(&self, weight: usize, at: Duration) {
        if self.under_way.fetch_add(weight, Ordering::Relaxed) + weight > CALM_CALLS {
            self.loaded_ms.fetch_max(at.as_millis() as u64, Ordering::Relaxed);
        }
    }

    /// A call has ended; says whether hardly anything was under way of late.
    fn end(&self, weight: usize, at: Duration) -> bool {
        if self.under_way.fetch_sub(weight, Ordering::Relaxed) > CALM_CALLS {
            self.loaded_ms.fetch_max(at.as_millis() as u64, Ordering::Relaxed);
        }
        let loaded = Duration::from_millis(self.loaded_ms.load(Ordering::Relaxed));
        at.saturating_sub(loaded) >= CALM_AFTER
    }
}

struct Region {
    gate: Mutex<Gate<Waiter>>,
    load: Arc<Load>,
    /// Calls that wait in all regions, and most of them.
    waiting: Arc<AtomicUsize>,
    waiting_max: usize,
    closed: AtomicBool,
    began: Instant,
}

/// Admission of all regions.
pub(crate) struct Admission {
    regions: Vec<Arc<Region>>,
}

/// A call of which admission wants to know.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Arriving<'a> {
    /// Position of its region in the topology.
    pub(crate) region: usize,
    pub(crate) priority: Priority,
    /// Name of the row within the region; empty for what concerns no single row.
    pub(crate) row: &'a str,
    /// How many single calls it weighs.
    pub(crate) weight: usize,
    /// When it arrived.
    pub(crate) at: Instant,
    /// It waits no longer than this.
    pub(crate) deadline: Instant,
}

/// A call that is under way; ends when dropped.
#[must_use]
pub(crate) struct Permit {
    region: Arc<Region>,
    place: Place,
    since: Instant,
    /// When it ended, and how, if anybody said so.
    ended: Option<(Instant, End)>,
}

impl Permit {
    /// For how long the call has been under way.
    pub(crate) fn took(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.since)
    }

    /// Ends a call.
    pub(crate) fn end(mut self, now: Instant, end: End) {
        // A batch takes longer than a single call by its nature.
        let end = match end {
            End::Decided(_) if self.place.weight > 1 => End::Answered,
            end => end,
        };
        self.ended = Some((now, end));
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let (now, end) = self.ended.unwrap_or_else(|| (Instant::now(), End::Unanswered));
        self.region.end(self.place, end, now);
    }
}

/// A call that waits; leaves the queue when dropped.
struct Waiting {
    region: Arc<Region>,
    queued: QueuePlace,
}

impl Waiting {
    fn new(region: Arc<Region>, queued: QueuePlace) -> Self {
        region.waiting.fetch_add(1, Ordering::Relaxed);
        Self { region, queued }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        drop(self.region.gate.lock().withdraw(self.queued));
        self.region.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

fn row_key(row: &str) -> room::RowKey {
    if row.is_empty() {
        return room::NO_ROW;
    }
    let mut hasher = DefaultHasher::new();
    hasher.write(row.as_bytes());
    hasher.finish()
}

impl Region {
    fn since_began(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.began)
    }

    fn permit(self: &Arc<Self>, place: Place, since: Instant) -> Permit {
        self.load.begin(place.weight, self.since_began(since));
        Permit { region: Arc::clone(self), place, since, ended: None }
    }

    fn end(self: &Arc<Self>, place: Place, end: End, now: Instant) {
        let at = self.since_began(now);
        let calm = self.load.end(place.weight, at);
        let admitted = self.gate.lock().end(at, place, end, calm);
        for (place, waiter) in admitted {
            // Not under the lock: a permit that nobody takes any more ends here, and lets the next one in.
            let _ = waiter.send(Ok(self.permit(place, now)));
        }
    }

    fn come_back(&self, now: Instant) -> Duration {
        let jitter = tidewall_env::random::rng().random_range(0.0..1.0);
        self.gate.lock().refuse(self.since_began(now), jitter)
    }

    /// Sends away all who wait, and who would have to from now on.
    fn close(&self) {
        self.closed.store(true, Ordering::Release);
        let waiting = self.gate.lock().drain();
        let now = Instant::now();
        for waiter in waiting {
            let _ = waiter.send(Err(self.come_back(now)));
        }
    }

    async fn enter(self: &Arc<Self>, call: &Arriving<'_>) -> Result<Permit, Duration> {
        let mut turn = None;
        // A region may have as many waiting as are free for others: however many regions have a crowd, there is room
        // left. What finishes something, and frees stock, is not counted.
        let waiting_max = match call.priority {
            Priority::Finish => usize::MAX,
            _ => self.waiting_max.saturating_sub(self.waiting.load(Ordering::Relaxed)),
        };
        let patience = call.deadline.saturating_duration_since(call.at);
        let row = row_key(call.row);
        let arrival = self.gate.lock().arrive(call.priority, row, call.weight, patience, waiting_max, || {
            let (waiter, receiver) = oneshot::channel();
            turn = Some(receiver);
            waiter
        });
        let (queued, pushed_out) = match arrival {
            Arrival::In(place) => return Ok(self.permit(place, call.at)),
            Arrival::Waits { queued, pushed_out } => (queued, pushed_out),
            Arrival::Full => return Err(self.come_back(call.at)),
        };
        let _waiting = Waiting::new(Arc::clone(self), queued);
        if let Some(pushed_out) = pushed_out {
            let _ = pushed_out.send(Err(self.come_back(call.at)));
        }
        let turn = turn.expect("who waits has made a waiter");
        if self.closed.load(Ordering::Acquire) {
            return Err(self.come_back(call.at));
        }
        match tokio::time::timeout_at(call.at + longest_wait(patience), turn).await {
            Ok(Ok(verdict)) => verdict,
            // Its time is over, or nobody will ever answer: it was never under way.
            Ok(Err(_)) | Err(_) => Err(self.come_back(Instant::now())),
        }
    }
}

impl Admission {
    /// Admission for so many regions; `calls_max` calls may be in one at once, waiting ones included, and about
    /// `waiting_max` may wait in all of them.
    pub(crate) fn new(regions: usize, options: LimitOptions, calls_max: usize, waiting_max: usize) -> Self {
        let began = Instant::now();
        let (load, waiting) = (Arc::<Load>::default(), Arc::<AtomicUsize>::default());
        let region = |_| {
            let gate = Mutex::new(Gate::new(options, calls_max));
            let (load, waiting) = (Arc::clone(&load), Arc::clone(&waiting));
            Arc::new(Region { gate, load, waiting, waiting_max, closed: AtomicBool::new(false), began })
        };
        Self { regions: (0..regions).map(region).collect() }
    }

    /// Lets a call in, now or when it is its turn, or says when to come back. A call that is refused was never under
    /// way: nothing was decided.
    pub(crate) async fn enter(&self, call: Arriving<'_>) -> Result<Permit, ApiError> {
        let region = &self.regions[call.region];
        region.enter(&call).await.map_err(|retry_after| ApiError::Overloaded {
            retry_after,
            message: format!(
                "the region has more calls at this gateway than it can decide in time: nothing was decided, send the \
                 same request again after {} ms",
                retry_after.as_millis()
            ),
        })
    }

    /// The gateway stops: nobody waits any more, and whoever did knows that nothing was decided. Calls under way go on.
    pub(crate) fn close(&self) {
        for region in &self.regions {
            region.close();
        }
    }

    /// What can be seen of a region.
    pub(crate) fn state(&self, region: usize) -> GateState {
        self.regions[region].gate.lock().state()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// One region where one call may be under way and `calls_max` may be altogether.
    fn narrow(calls_max: usize) -> Arc<Admission> {
        let options = LimitOptions { floor: 1, ceiling: 1, ..LimitOptions::default() };
        Arc::new(Admission::new(1, options, calls_max, usize::MAX))
    }

    fn call(row: &str) -> Arriving<'_> {
        let deadline = Instant::now() + Duration::from_secs(10);
        Arriving { region: 0, priority: Priority::Start, row, weight: 1, at: Instant::now(), deadline }
    }

    /// A call on `row` that has to wait; returns when it does.
    async fn waiting(
        admission: &Arc<Admission>,
        row: &'static str,
    ) -> tokio::task::JoinHandle<Result<Permit, ApiError>> {
        let before = admission.state(0).waiting;
        let own = Arc::clone(admission);
        let task = tokio::spawn(async move { own.enter(call(row)).await });
        while admission.state(0).waiting == before {
            tokio::task::yield_now().await;
        }
        task
    }

    #[test]
    fn it_is_calm_half_a_second_after_much_was_under_way_and_no_earlier() {
        let ms = Duration::from_millis;
        let load = Load::default();
        load.begin(1, ms(900));
        assert!(load.end(1, ms(901)));
        // A batch weighs what it holds; what is answered at once leaves nothing under way, and is no calm.
        load.begin(20, ms(1_000));
        load.begin(13, ms(1_001));
        assert!(!load.end(20, ms(1_010)));
        assert!(!load.end(13, ms(1_010)));
        load.begin(32, ms(1_400));
        assert!(!load.end(32, ms(1_509)));
        load.begin(32, ms(1_509));
        assert!(load.end(32, ms(1_510)));
    }

    #[tokio::test]
    async fn who_waits_gets_in_when_a_call_ends() {
        let admission = narrow(10);
        let first = admission.enter(call("hot")).await.unwrap();
        let (second, third) = (waiting(&admission, "hot").await, waiting(&admission, "hot").await);
        assert_eq!((admission.state(0).in_flight, admission.state(0).waiting), (1, 2));
        let now = Instant::now();
        let took = first.took(now);
        first.end(now, End::Decided(took));
        let second = second.await.unwrap().unwrap();
        assert_eq!((admission.state(0).in_flight, admission.state(0).waiting), (1, 1));
        drop(second);
        drop(third.await.unwrap().unwrap());
        assert_eq!((admission.state(0).in_flight, admission.state(0).refused), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn only_single_calls_tell_how_fast_a_region_is() {
        for (weight, tells) in [(1, true), (2, false)] {
            let admission = Arc::new(Admission::new(1, LimitOptions::default(), 100, usize::MAX));
            let permit = admission.enter(Arriving { weight, ..call("hot") }).await.unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
            let now = Instant::now();
            let took = permit.took(now);
            permit.end(now, End::Decided(took));
            assert_eq!(admission.state(0).no_load.is_some(), tells, "weight {weight}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_until_its_deadline_is_refused_and_was_never_under_way() {
        let admission = narrow(10);
        let _first = admission.enter(call("hot")).await.unwrap();
        let Err(ApiError::Overloaded { retry_after, .. }) = admission.enter(call("hot")).await else {
            panic!("must be refused")
        };
        assert!((pace::RETURN_MIN..=pace::RETURN_MAX).contains(&retry_after), "{retry_after:?}");
        assert_eq!((admission.state(0).waiting, admission.state(0).refused), (0, 1));
    }

    #[tokio::test]
    async fn who_cannot_have_its_turn_in_time_is_refused_at_once() {
        let admission = narrow(10_000);
        let _first = admission.enter(call("hot")).await.unwrap();
        let _second = waiting(&admission, "hot").await;
        let _third = waiting(&admission, "hot").await;
        let began = Instant::now();
        let hasty = Arriving { at: began, deadline: began, ..call("hot") };
        assert!(matches!(admission.enter(hasty).await, Err(ApiError::Overloaded { .. })));
        assert_eq!((admission.state(0).waiting, admission.state(0).refused), (2, 1));
    }

    #[tokio::test]
    async fn a_region_leaves_waiting_room_to_the_others() {
        let options = LimitOptions { floor: 1, ceiling: 1, ..LimitOptions::default() };
        let admission = Arc::new(Admission::new(2, options, 100, 4));
        let _first = admission.enter(call("hot")).await.unwrap();
        let (one, two) = (waiting(&admission, "hot").await, waiting(&admission, "hot").await);
        assert!(matches!(admission.enter(call("hot")).await, Err(ApiError::Overloaded { .. })));
        let elsewhere = || Arriving { region: 1, ..call("other") };
        let _elsewhere = admission.enter(elsewhere()).await.unwrap();
        let wait = |call: Arriving<'static>| {
            let admission = Arc::clone(&admission);
            tokio::spawn(async move { admission.enter(call).await })
        };
        let finish = wait(Arriving { priority: Priority::Finish, ..call("hot") });
        let other = wait(elsewhere());
        while (admission.state(0).waiting, admission.state(1).waiting) != (3, 1) {
            assert!(!finish.is_finished() && !other.is_finished(), "both have room to wait");
            tokio::task::yield_now().await;
        }
        for gone in [one, two, finish, other] {
            gone.abort();
            assert!(gone.await.err().unwrap().is_cancelled());
        }
        assert_eq!(admission.regions[0].waiting.load(Ordering::Relaxed), 0, "who has gone is not counted");
    }

    #[tokio::test]
    async fn a_gateway_that_stops_sends_away_who_waits_and_lets_nobody_wait() {
        let admission = narrow(100);
        let first = admission.enter(call("hot")).await.unwrap();
        let (one, two) = (waiting(&admission, "hot").await, waiting(&admission, "hot").await);
        admission.close();
        for waiter in [one, two] {
            assert!(matches!(waiter.await.unwrap(), Err(ApiError::Overloaded { .. })));
        }
        assert!(matches!(admission.enter(call("hot")).await, Err(ApiError::Overloaded { .. })));
        assert_eq!((admission.state(0).in_flight, admission.state(0).waiting), (1, 0));
        drop(first);
        assert!(admission.enter(call("hot")).await.is_ok(), "what need not wait still goes");
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_leaves_neither_queue_nor_place_behind() {
        let admission = narrow(10);
        let first = admission.enter(call("hot")).await.unwrap();
        let (gone, let_in) = (waiting(&admission, "hot").await, waiting(&admission, "hot").await);
        gone.abort();
        assert!(gone.await.err().unwrap().is_cancelled());
        assert_eq!(admission.state(0).waiting, 1);
        // Let in, and gone before it could notice: whoever is next must not wait for it.
        let last = waiting(&admission, "hot").await;
        drop(first);
        let_in.abort();
        drop(last.await.unwrap().unwrap());
        assert_eq!((admission.state(0).in_flight, admission.state(0).waiting), (0, 0));
    }

    #[tokio::test]
    async fn a_full_region_tells_the_heaviest_row_to_come_back() {
        let admission = narrow(3);
        let _first = admission.enter(call("hot")).await.unwrap();
        let (kept, pushed_out) = (waiting(&admission, "hot").await, waiting(&admission, "hot").await);
        assert!(matches!(admission.enter(call("hot")).await, Err(ApiError::Overloaded { .. })));
        let other = tokio::spawn({
            let admission = Arc::clone(&admission);
            async move { admission.enter(call("cold")).await.is_ok() }
        });
        assert!(matches!(pushed_out.await.unwrap(), Err(ApiError::Overloaded { .. })));
        assert_eq!((admission.state(0).waiting, admission.state(0).refused), (2, 2));
        kept.abort();
        other.abort();
    }
}
