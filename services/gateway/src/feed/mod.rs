//! What happens in the regions: heard once a region, told to all who watch.
//!
//! While anybody watches a region, one task hears what happens there and keeps the last of it ([`Feed`]). Who watches takes from it
//! what comes behind its own place ([`Watch`]); who has fallen behind asks the region itself, a few at a time. So whoever does not
//! read holds up nobody, and nobody's place is known here but to its own stream. [`board`] is for those who want to know how an event
//! is, not each change of it.
//!
//! **Never here:** anything that a client could not do without: a place is good at any gateway.

mod batch;
mod board;
mod watch;

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use rand::Rng as _;
use tidewall_client::{ClientError, ShardClient};
use tidewall_mutant::{Mutant, active};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tokio::sync::{Semaphore, watch as channel};
use tokio::time::{Instant, sleep, timeout};

use crate::errors::ApiError;

use batch::Batch;
use board::Board;

pub(crate) use watch::{Filter, Limits, Responses, watch_changes, watch_state};

/// About the bytes of an answer of a region.
const ANSWER_BYTES: u32 = 256 << 10;
/// How long a region may let an answer wait.
const WAIT: Duration = Duration::from_millis(400);
/// How long a region may take to answer, failovers included, before it is asked anew.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A region is heard so long after the last one has stopped to watch it.
const LINGER: Duration = Duration::from_secs(10);
/// Pause before a region is asked again that did not answer.
const PAUSE: Duration = Duration::from_millis(200);
/// How many who have fallen behind ask a region at a time.
const BEHIND_AT_ONCE: usize = 16;
/// How long somebody waits for its turn to ask, before it looks again whether it must.
const TURN_MAX: Duration = Duration::from_secs(5);

/// How far a region's changes were heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) incarnation: u64,
    pub(crate) index: u64,
    pub(crate) changes: u32,
}

impl From<tidewall_messages::Place> for Place {
    fn from(place: tidewall_messages::Place) -> Self {
        Self { incarnation: place.incarnation, index: place.index, changes: place.changes }
    }
}

impl From<v1::Place> for Place {
    fn from(place: v1::Place) -> Self {
        Self { incarnation: place.incarnation, index: place.index, changes: place.changes }
    }
}

impl From<Place> for tidewall_messages::Place {
    fn from(place: Place) -> Self {
        Self { incarnation: place.incarnation, index: place.index, changes: place.changes }
    }
}

impl From<Place> for v1::Place {
    fn from(place: Place) -> Self {
        Self { incarnation: place.incarnation, index: place.index, changes: place.changes }
    }
}

/// Why there is nothing to hear.
#[derive(Debug)]
pub(crate) enum Silence {
    /// What comes next is not kept any more.
    Gone(Place),
    /// The region does not answer.
    Region(ApiError),
}

impl From<Silence> for ApiError {
    fn from(silence: Silence) -> Self {
        match silence {
            Silence::Gone(oldest) => Self::place_gone(oldest),
            Silence::Region(error) => error,
        }
    }
}

impl From<ClientError> for Silence {
    fn from(error: ClientError) -> Self {
        Self::Region(ApiError::Client { error, request_id: None })
    }
}

/// Bounds of the feeds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FeedLimits {
    /// How many may watch at this gateway.
    pub(crate) watchers_max: usize,
    /// Bytes of changes that are kept of a region for those who are a little behind.
    pub(crate) kept_bytes: usize,
    /// A watch ends after once to twice this: it would keep its connection for ever, whose client was asked to go elsewhere.
    pub(crate) watched_max: Duration,
}

/// The feeds of all regions.
pub(crate) struct Feeds {
    /// By position of the region in the topology.
    feeds: Vec<Arc<Feed>>,
    watchers: Arc<AtomicUsize>,
    stopping: channel::Sender<bool>,
    limits: FeedLimits,
}

impl Feeds {
    /// Feeds of regions that nobody watches yet: ids and groups.
    pub(crate) fn new<'a>(regions: impl Iterator<Item = (&'a str, u32)>, limits: FeedLimits) -> Self {
        let feed = |(region, group): (&str, u32)| {
            Arc::new(Feed {
                region: region.to_owned(),
                group,
                kept_bytes: limits.kept_bytes,
                kept: Mutex::default(),
                news: channel::Sender::new(0),
                watchers: AtomicUsize::new(0),
                behind: Semaphore::new(BEHIND_AT_ONCE),
                boards: Mutex::default(),
            })
        };
        Self {
            feeds: regions.map(feed).collect(),
            watchers: Arc::default(),
            stopping: channel::Sender::new(false),
            limits,
        }
    }

    /// How long anybody may watch at a time.
    pub(crate) fn watched_max(&self) -> Duration {
        // Those who came together must not come back together.
        let spread = tidewall_env::random::rng().random_range(1.0..2.0);
        match self.limits.watched_max {
            Duration::MAX => Duration::MAX,
            least => least.mul_f64(spread),
        }
    }

    /// The feed of a region, for one who watches.
    ///
    /// # Errors
    /// As many watch as may.
    pub(crate) fn of(&self, region: usize, client: &Arc<ShardClient>) -> Result<Watching, ApiError> {
        let counted = Counted::new(&self.watchers);
        if self.watchers() > self.limits.watchers_max {
            return Err(ApiError::overloaded("as many watch at this gateway as may"));
        }
        let feed = self.feeds.get(region).ok_or_else(|| ApiError::internal("the region has no feed"))?;
        Ok(Watching::new(feed, client, Some(counted), self.stopping.subscribe()))
    }

    /// How many watch.
    pub(crate) fn watchers(&self) -> usize {
        self.watchers.load(Ordering::Relaxed)
    }

    /// Ends all watches: this gateway stops.
    pub(crate) fn close(&self) {
        self.stopping.send_replace(true);
    }
}

/// Counts somebody for as long as it lives.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What happens in a region.
pub(crate) struct Feed {
    region: String,
    group: u32,
    kept_bytes: usize,
    kept: Mutex<Kept>,
    /// Counts what was heard, so that whoever has heard everything can wait for more.
    news: channel::Sender<u64>,
    watchers: AtomicUsize,
    behind: Semaphore,
    /// By id of an event.
    boards: Mutex<HashMap<String, Arc<Board>>>,
}

/// The last of what was heard of a region.
#[derive(Default)]
struct Kept {
    /// A task hears what happens.
    heard_by_task: bool,
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    /// Everything between these is in the batches.
    range: Option<(Place, Place)>,
    /// Since when the region does not answer.
    silent_since: Option<Instant>,
}

impl Kept {
    fn forget(&mut self) {
        *self = Self { heard_by_task: self.heard_by_task, ..Self::default() };
    }

    fn keep(&mut self, batch: Batch, bytes_max: usize) {
        let begin = self.range.map_or(batch.from, |(begin, _)| begin);
        self.range = Some((begin, batch.to));
        if batch.changes.is_empty() {
            return;
        }
        self.bytes += batch.bytes;
        self.batches.push_back(Arc::new(batch));
        while self.bytes > bytes_max
            && self.batches.len() > 1
            && let Some(oldest) = self.batches.pop_front()
        {
            self.bytes -= oldest.bytes;
            self.range = self.range.map(|(_, end)| (oldest.to, end));
        }
    }
}

/// What is kept behind a place.
enum Next {
    /// These batches, and then everything up to the place was heard.
    Batches(Vec<Arc<Batch>>, Place),
    /// Nothing yet.
    Nothing,
    /// It may be more than is kept.
    Behind,
}

impl Feed {
    /// What is kept behind a place.
    fn next(&self, heard: Place) -> Next {
        let kept = self.kept.lock();
        let Some((begin, end)) = kept.range else { return Next::Behind };
        if heard.incarnation != end.incarnation || heard < begin && !active(Mutant::WatchSkipsAhead) {
            return Next::Behind;
        }
        if heard >= end {
            return Next::Nothing;
        }
        let mut batches: Vec<_> =
            kept.batches.iter().rev().take_while(|batch| batch.to > heard).map(Arc::clone).collect();
        batches.reverse();
        Next::Batches(batches, end)
    }

    /// Asks the region what comes behind a place, or for the place where it is now.
    async fn ask(
        &self,
        client: &ShardClient,
        after: Option<Place>,
        wait: Duration,
        deadline: Instant,
    ) -> Result<Batch, Silence> {
        let asked = pb::ListChanges {
            after: after.map(|after| match active(Mutant::WatchRepeats) {
                true => tidewall_messages::Place { changes: 0, ..after.into() },
                false => after.into(),
            }),
            bytes_max: ANSWER_BYTES,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
        };
        let answer = client.changes(self.group, asked, deadline).await?;
        let place =
            answer.place.map(Place::from).ok_or_else(|| Silence::Region(crate::convert::mismatch()))?;
        if answer.gone {
            return Err(Silence::Gone(place));
        }
        Batch::new(&self.region, after.unwrap_or(place), place, &answer).map_err(Silence::Region)
    }

    /// Forgets what was heard of an earlier incarnation: whoever begins anew must not begin there.
    fn outlive(&self, incarnation: u64) {
        let mut kept = self.kept.lock();
        if kept.range.is_some_and(|(_, end)| end.incarnation < incarnation) {
            kept.forget();
        }
    }

    /// Hears what happens while anybody watches.
    async fn hear(self: Arc<Self>, client: Arc<ShardClient>) {
        let mut idle_since = None;
        loop {
            if self.watchers.load(Ordering::Acquire) > 0 {
                idle_since = None;
            } else if idle_since.get_or_insert_with(Instant::now).elapsed() > LINGER {
                let mut kept = self.kept.lock();
                // Whoever comes now finds that nobody hears, or is counted here.
                if self.watchers.load(Ordering::Acquire) == 0 {
                    *kept = Kept::default();
                    return;
                }
            }
            let after = self.kept.lock().range.map(|(_, end)| end);
            let wait = if after.is_some() { WAIT } else { Duration::ZERO };
            match self.ask(&client, after, wait, Instant::now() + TIMEOUT).await {
                Ok(batch) => {
                    let new = Some(batch.to) != after;
                    let mut kept = self.kept.lock();
                    kept.keep(batch, self.kept_bytes);
                    kept.silent_since = None;
                    drop(kept);
                    if new {
                        self.news.send_modify(|news| *news += 1);
                    }
                }
                Err(Silence::Gone(_)) => {
                    // Everybody asks the region then, and is told.
                    self.kept.lock().forget();
                    self.news.send_modify(|news| *news += 1);
                }
                Err(Silence::Region(_)) => {
                    self.kept.lock().silent_since.get_or_insert_with(Instant::now);
                    sleep(PAUSE).await;
                }
            }
        }
    }
}

/// One who watches a region.
pub(crate) struct Watching {
    feed: Arc<Feed>,
    client: Arc<ShardClient>,
    news: channel::Receiver<u64>,
    stopping: channel::Receiver<bool>,
    _counted: Option<Counted>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.feed.watchers.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Watching {
    fn new(
        feed: &Arc<Feed>,
        client: &Arc<ShardClient>,
        counted: Option<Counted>,
        stopping: channel::Receiver<bool>,
    ) -> Self {
        feed.watchers.fetch_add(1, Ordering::AcqRel);
        let news = feed.news.subscribe();
        if !std::mem::replace(&mut feed.kept.lock().heard_by_task, true) {
            tokio::spawn(Arc::clone(feed).hear(Arc::clone(client)));
        }
        Self { feed: Arc::clone(feed), client: Arc::clone(client), news, stopping, _counted: counted }
    }

    /// Another one, who is not counted at the gateway.
    fn another(&self) -> Self {
        Self::new(&self.feed, &self.client, None, self.stopping.clone())
    }

    /// Where the region is now, or was a moment ago.
    async fn place(&self, deadline: Instant) -> Result<Place, Silence> {
        let end = self.feed.kept.lock().range.map(|(_, end)| end);
        match end {
            Some(end) => Ok(end),
            None => Ok(self.feed.ask(&self.client, None, Duration::ZERO, deadline).await?.to),
        }
    }

    /// What comes behind a place, with the place up to which everything was heard then; none for the moment.
    async fn next(&mut self, heard: Place) -> Result<Option<(Vec<Arc<Batch>>, Place)>, Silence> {
        self.news.borrow_and_update();
        match self.feed.next(heard) {
            Next::Batches(batches, end) => Ok(Some((batches, end))),
            Next::Nothing => Ok(None),
            Next::Behind => {
                let Ok(_turn) = timeout(TURN_MAX, self.feed.behind.acquire()).await else { return Ok(None) };
                let until = Instant::now() + TIMEOUT;
                let batch = match self.feed.ask(&self.client, Some(heard), Duration::ZERO, until).await {
                    Err(Silence::Gone(oldest)) => {
                        self.feed.outlive(oldest.incarnation);
                        return Err(Silence::Gone(oldest));
                    }
                    asked => asked?,
                };
                let to = batch.to;
                // The region may have nothing new, and nobody hears it at the moment: then it is waited for.
                Ok((to != heard).then(|| (vec![Arc::new(batch)], to)))
            }
        }
    }

    /// How long the region has not answered.
    fn silent_for(&self) -> Duration {
        self.feed.kept.lock().silent_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Whether the region has been at a place.
    async fn has_been_at(&self, place: Place, deadline: Instant) -> Result<bool, Silence> {
        let end = self.feed.kept.lock().range.map(|(_, end)| end);
        if end.is_some_and(|end| place <= end) {
            return Ok(true);
        }
        Ok(place <= self.feed.ask(&self.client, None, Duration::ZERO, deadline).await?.to)
    }

    /// Waits for news.
    async fn news(&mut self) {
        // The sender lives as long as the feed.
        let _ = self.news.changed().await;
    }

    /// Waits until this gateway stops.
    async fn stopped(stopping: &mut channel::Receiver<bool>) {
        // When the sender is gone, so is the gateway.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}
