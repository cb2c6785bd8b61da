//! The measured part: lets intents begin, in closed or open loop, and waits until all have ended. An open loop must never
//! wait for answers before the next arrival.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::arrivals::{Arrivals, Intent};
use crate::pursuit::{pursue, pursue_one};
use crate::run::{Record, Run};
use crate::{LoadError, Phase, Progress};

/// Intents in flight at most, in open loop. When it is reached arrivals wait, and the wait counts as
/// latency, because latency counts from the moment an intent was due.
const IN_FLIGHT_MAX: usize = 100_000;
/// How often progress is told.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Longest sleep of the open loop before it looks whether the run was stopped.
const SLEEP_SLICE: Duration = Duration::from_secs(1);

/// What the measured part yields.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) records: Vec<Record>,
    /// Why the run was stopped early.
    pub(crate) aborted: Option<String>,
}

/// A worker of the closed loop: takes the next intents when its last ones have ended.
async fn worker(run: Arc<Run>, next: Arc<AtomicU64>, until: Option<Duration>) {
    let step = run.parts.batch.max(1) as u64;
    let mut records = Vec::new();
    loop {
        let due = run.start.elapsed();
        if run.stopped() || until.is_some_and(|until| due >= until) {
            break;
        }
        let first = next.fetch_add(step, Ordering::Relaxed);
        if run.parts.seller.is_none() {
            let Some(intent) = run.parts.intents.get(first) else {
                break;
            };
            run.note_begun(1);
            records.push(pursue_one(&run, first, intent, due).await);
        } else {
            let items: Vec<_> =
                take(&run, first..first + step).map(|(index, intent)| (index, intent, due)).collect();
            if items.is_empty() {
                break;
            }
            records.extend(pursue(&run, items).await);
        }
    }
    run.sink.lock().append(&mut records);
}

fn take(run: &Run, range: Range<u64>) -> impl Iterator<Item = (u64, Intent)> + '_ {
    range.map_while(|index| run.parts.intents.get(index).map(|intent| (index, intent)))
}

/// The open loop: starts each call when its last intent is due, whatever became of the earlier ones.
async fn schedule(run: Arc<Run>, arrivals: Arrivals) -> Result<(), LoadError> {
    let step = run.parts.batch.max(1) as u64;
    let room = Arc::new(Semaphore::new(IN_FLIGHT_MAX));
    let mut calls: JoinSet<()> = JoinSet::new();
    let mut first = 0_u64;
    loop {
        let items: Vec<_> = take(&run, first..first + step)
            .map_while(|(index, intent)| arrivals.due(index, intent).map(|due| (index, intent, due)))
            .collect();
        let Some((_, _, due)) = items.last() else { break };
        let at = run.start + *due;
        // In slices, so that a stopped run does not wait for the next arrival of a quiet hour.
        while Instant::now() < at && !run.stopped() {
            tokio::time::sleep_until(at.min(Instant::now() + SLEEP_SLICE)).await;
        }
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else {
            break;
        };
        if run.stopped() {
            break;
        }
        first += step;
        let task = Arc::clone(&run);
        calls.spawn(async move {
            let mut records = pursue(&task, items).await;
            task.sink.lock().append(&mut records);
            drop(permit);
        });
        while let Some(ended) = calls.try_join_next() {
            ended.map_err(|error| LoadError::Task(error.to_string()))?;
        }
    }
    join(calls).await
}

async fn join(mut tasks: JoinSet<()>) -> Result<(), LoadError> {
    while let Some(ended) = tasks.join_next().await {
        ended.map_err(|error| LoadError::Task(error.to_string()))?;
    }
    Ok(())
}

/// Runs the measured part to its end and tells progress meanwhile.
pub(crate) async fn drive(
    run: &Arc<Run>,
    arrivals: Arrivals,
    progress: &(impl Fn(Progress) + Sync),
) -> Result<Driven, LoadError> {
    let work = async {
        if let Arrivals::Closed { concurrency, until } = arrivals {
            let next = Arc::new(AtomicU64::new(0));
            let mut workers = JoinSet::new();
            for _ in 0..concurrency {
                workers.spawn(worker(Arc::clone(run), Arc::clone(&next), until));
            }
            join(workers).await
        } else {
            // On a task of its own, so that arrivals do not wait for whoever polls us.
            let mut scheduler = JoinSet::new();
            scheduler.spawn(schedule(Arc::clone(run), arrivals));
            match scheduler.join_next().await {
                Some(Ok(result)) => result,
                Some(Err(error)) => Err(LoadError::Task(error.to_string())),
                None => Ok(()),
            }
        }
    };
    let mut aborted = None;
    let tell = || {
        let done = run.live.done.load(Ordering::Relaxed);
        progress(run.progress(Phase::Sell, run.start.elapsed(), done, run.parts.intents.count()));
    };
    tokio::pin!(work);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            result = &mut work => {
                result?;
                break;
            }
            _ = ticks.tick() => {
                tell();
                if aborted.is_none() && let Some(why) = run.silence() {
                    run.stop();
                    aborted = Some(why);
                }
            }
        }
    }
    tell();
    let records = std::mem::take(&mut *run.sink.lock());
    Ok(Driven { records, aborted })
}
