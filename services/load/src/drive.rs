//! The measured part: pursues every intent from its first call to its end, in closed or open loop.
//!
//! An intent keeps its request id over all repetitions; it must never be given a second one, or a lost
//! answer could buy twice. An intent that may have been decided must never be reported as undecided.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_proto::v1;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use uuid::Uuid;

use crate::audit::Stamp;
use crate::pool::{Pool, Token};
use crate::verdict::{self, Verdict};
use crate::{LoadError, Mode, Phase, Progress};

/// Intents in flight at most, in open loop. When it is reached arrivals wait, and the wait counts as
/// latency, because latency counts from the moment an intent was due.
const IN_FLIGHT_MAX: usize = 100_000;
/// First pause after an unknown answer; doubled each time up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Pause after an overload answer that names no delay.
const RETRY_DEFAULT: Duration = Duration::from_millis(100);
/// How often progress is told.
pub(crate) const PROGRESS_EVERY: Duration = Duration::from_millis(100);
/// Longest sleep of the open loop before it looks whether the run was stopped.
const SLEEP_SLICE: Duration = Duration::from_secs(1);
/// Added to patience and deadline before a run without any decision is stopped.
const SILENCE_GRACE: Duration = Duration::from_secs(2);

/// A tier on sale.
#[derive(Debug, Clone)]
pub(crate) struct LotTier {
    pub(crate) tier_id: String,
    pub(crate) capacity: u64,
}

/// An event on sale.
#[derive(Debug, Clone)]
pub(crate) struct Lot {
    /// Resource name.
    pub(crate) name: String,
    /// Name for people.
    pub(crate) display_name: String,
    /// Resource name of the region.
    pub(crate) region: String,
    pub(crate) quota: u32,
    pub(crate) tiers: Vec<LotTier>,
}

/// What somebody wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Intent {
    /// Number of the buyer in `Run::subjects`.
    pub(crate) subject: u32,
    /// Number of the event in `Run::lots`.
    pub(crate) lot: u32,
    /// Number of the tier in the lot.
    pub(crate) tier: u32,
    pub(crate) quantity: u32,
    /// When it is due after the start; for recorded arrivals.
    pub(crate) offset: Duration,
}

/// All intents of a run.
#[derive(Debug, Clone)]
pub(crate) enum Intents {
    /// One event, one tier; buyers come in turn. Without a count, for as long as the run lasts.
    Uniform { subjects: u32, quantity: u32, count: Option<u64> },
    /// As recorded.
    Listed(Vec<Intent>),
}

impl Intents {
    /// How many there are, when known.
    pub(crate) fn count(&self) -> Option<u64> {
        match self {
            Intents::Uniform { count, .. } => *count,
            Intents::Listed(list) => Some(list.len() as u64),
        }
    }

    fn get(&self, index: u64) -> Option<Intent> {
        match self {
            Intents::Uniform { count: Some(count), .. } if index >= *count => None,
            Intents::Uniform { subjects, quantity, .. } => Some(Intent {
                // The remainder fits: `subjects` is a u32.
                subject: (index % u64::from(*subjects)) as u32,
                lot: 0,
                tier: 0,
                quantity: *quantity,
                offset: Duration::ZERO,
            }),
            Intents::Listed(list) => list.get(usize::try_from(index).ok()?).copied(),
        }
    }
}

/// How an intent ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Sold {
        tickets: Vec<Box<str>>,
        receipt: Option<Stamp>,
    },
    SoldOut,
    /// Decided "no" for another reason.
    Refused(Box<str>),
    /// Neither decided nor worth repeating.
    Failed(Box<str>),
    /// Gave up; no call was let in.
    Overloaded,
    /// Gave up, and `GetOutcome` says that nothing was decided.
    Undecided,
    Unknown,
}

/// The story of one intent.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) intent: Intent,
    pub(crate) request_id: Uuid,
    pub(crate) end: End,
    /// Calls made.
    pub(crate) attempts: u32,
    /// When it was due, after the start of the run.
    pub(crate) due: Duration,
    /// When it ended.
    pub(crate) ended: Duration,
    /// When its last call was given up, by the clock; what may still be under way is older.
    pub(crate) last_call: Instant,
    /// Settled later by `GetOutcome`.
    pub(crate) resolved: bool,
}

/// Counts that progress is told from.
#[derive(Debug, Default)]
pub(crate) struct Live {
    pub(crate) done: AtomicU64,
    sold: AtomicU64,
    sold_out: AtomicU64,
    overloaded: AtomicU64,
    unknown: AtomicU64,
    errors: AtomicU64,
    retries: AtomicU64,
    begun: AtomicU64,
    /// Microseconds after the start at which something useful was last heard.
    heard_us: AtomicU64,
}

/// Everything the calls of one run share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) pool: Pool,
    pub(crate) lots: Vec<Lot>,
    pub(crate) subjects: Vec<String>,
    /// One for each subject; empty when a seller buys for them.
    pub(crate) tokens: Vec<Token>,
    pub(crate) seller: Option<Token>,
    /// Purchases in a call.
    pub(crate) batch: usize,
    pub(crate) intents: Intents,
    pub(crate) honour_retry: bool,
    pub(crate) patience: Duration,
    pub(crate) seed: u64,
    pub(crate) start: Instant,
    pub(crate) live: Live,
    /// Answers other than success by `CODE/REASON`.
    pub(crate) answers: Mutex<BTreeMap<String, u64>>,
    pub(crate) transport_errors: AtomicU64,
    pub(crate) missing_retry_info: AtomicU64,
    /// Set when the rest of the run makes no sense any more.
    stop: AtomicBool,
    sink: Mutex<Vec<Record>>,
}

/// What a [`Run`] is made of.
#[derive(Debug)]
pub(crate) struct RunParts {
    pub(crate) pool: Pool,
    pub(crate) lots: Vec<Lot>,
    pub(crate) subjects: Vec<String>,
    pub(crate) tokens: Vec<Token>,
    pub(crate) seller: Option<Token>,
    pub(crate) batch: usize,
    pub(crate) intents: Intents,
    pub(crate) honour_retry: bool,
    pub(crate) patience: Duration,
    pub(crate) seed: u64,
}

/// When intents come.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Arrivals {
    Closed {
        concurrency: usize,
        until: Option<Duration>,
    },
    Rate {
        per_second: f64,
        until: Option<Duration>,
    },
    /// At the offsets that the intents carry.
    Recorded,
}

impl Arrivals {
    pub(crate) fn of(mode: Mode, until: Option<Duration>) -> Self {
        match mode {
            Mode::Closed { concurrency } => Arrivals::Closed { concurrency, until },
            Mode::Open { rate_per_second } => Arrivals::Rate { per_second: rate_per_second, until },
            // A crowd at once is a record in which everybody has the offset 0.
            Mode::AllAtOnce => Arrivals::Recorded,
        }
    }

    /// When an intent of this number is due; `None` when the time is over.
    fn due(self, index: u64, intent: Intent) -> Option<Duration> {
        match self {
            Arrivals::Rate { per_second, until } => {
                let due = Duration::try_from_secs_f64(index as f64 / per_second).ok()?;
                until.is_none_or(|until| due < until).then_some(due)
            }
            Arrivals::Recorded | Arrivals::Closed { .. } => Some(intent.offset),
        }
    }
}

/// What the measured part yields.
#[derive(Debug)]
pub(crate) struct Driven {
    pub(crate) records: Vec<Record>,
    /// Why the run was stopped early.
    pub(crate) aborted: Option<String>,
}

impl Run {
    /// A run whose clock starts now.
    pub(crate) fn begin(parts: RunParts) -> Arc<Self> {
        let RunParts { pool, lots, subjects, tokens, seller, batch, intents, honour_retry, patience, seed } =
            parts;
        Arc::new(Self {
            pool,
            lots,
            subjects,
            tokens,
            seller,
            batch,
            intents,
            honour_retry,
            patience,
            seed,
            start: Instant::now(),
            live: Live::default(),
            answers: Mutex::default(),
            transport_errors: AtomicU64::new(0),
            missing_retry_info: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            sink: Mutex::default(),
        })
    }

    /// The token that an intent's calls carry, also when its outcome is asked for.
    pub(crate) fn token(&self, intent: Intent) -> &Token {
        self.seller.as_ref().unwrap_or_else(|| &self.tokens[intent.subject as usize])
    }

    /// Where the run stands.
    pub(crate) fn progress(
        &self,
        phase: Phase,
        elapsed: Duration,
        done: u64,
        total: Option<u64>,
    ) -> Progress {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Progress {
            phase,
            elapsed,
            done,
            total,
            sold: read(&self.live.sold),
            sold_out: read(&self.live.sold_out),
            overloaded: read(&self.live.overloaded),
            unknown: read(&self.live.unknown),
            errors: read(&self.live.errors),
            retries: read(&self.live.retries),
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Notes that intents begin. When nothing was in flight, silence is counted from here.
    fn note_begun(&self, number: u64) {
        let begun = self.live.begun.fetch_add(number, Ordering::Relaxed);
        if begun == self.live.done.load(Ordering::Relaxed) {
            self.live.heard_us.store(self.now_us(), Ordering::Relaxed);
        }
    }

    fn note_heard(&self) {
        self.live.heard_us.store(self.now_us(), Ordering::Relaxed);
    }

    fn note_answer(&self, key: &str, transport: bool) {
        let mut answers = self.answers.lock();
        match answers.get_mut(key) {
            Some(number) => *number += 1,
            None => {
                answers.insert(key.to_owned(), 1);
            }
        }
        drop(answers);
        if transport {
            self.transport_errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note_end(&self, record: &Record) {
        let counter = match record.end {
            End::Sold { .. } => &self.live.sold,
            End::SoldOut => &self.live.sold_out,
            End::Refused(_) | End::Failed(_) => &self.live.errors,
            End::Overloaded | End::Undecided => &self.live.overloaded,
            End::Unknown => &self.live.unknown,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        self.live.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Why the run should be stopped, when for a long time nobody has got a decision.
    fn silence(&self) -> Option<String> {
        let waiting = self.live.begun.load(Ordering::Relaxed) > self.live.done.load(Ordering::Relaxed);
        let silent =
            Duration::from_micros(self.now_us().saturating_sub(self.live.heard_us.load(Ordering::Relaxed)));
        let bound = self.patience + self.pool.deadline() + SILENCE_GRACE;
        (waiting && silent > bound).then(|| {
            format!(
                "stopped early: nobody got a decision for {} s (gateways: {}); look whether the cluster is up",
                silent.as_secs(),
                self.pool.endpoints()
            )
        })
    }
}

/// One intent on its way.
struct Pursuit {
    index: u64,
    intent: Intent,
    request_id: Uuid,
    due: Duration,
    attempts: u32,
    /// Some call may have been decided without our knowing.
    maybe: bool,
    gives_up: Instant,
    last_call: Instant,
    end: Option<(End, Duration)>,
}

impl Pursuit {
    fn begin(run: &Run, index: u64, intent: Intent, due: Duration) -> Self {
        let now = Instant::now();
        Self {
            index,
            intent,
            // Before the first call, kept to the end.
            request_id: Uuid::now_v7(),
            due,
            attempts: 0,
            maybe: false,
            gives_up: now + run.patience,
            last_call: now,
            end: None,
        }
    }

    fn note_call(&mut self, run: &Run) {
        if self.attempts > 0 {
            run.live.retries.fetch_add(1, Ordering::Relaxed);
        }
        self.attempts += 1;
    }

    fn finish(&mut self, run: &Run, end: End) {
        if matches!(end, End::Sold { .. } | End::SoldOut | End::Refused(_)) {
            run.note_heard();
        }
        self.end = Some((end, run.start.elapsed()));
    }

    fn bought(&mut self, run: &Run, purchase: Option<v1::Purchase>, receipt: Option<v1::Receipt>) {
        // An answer without a purchase acknowledges nothing; the audit reports the wrong quantity.
        let tickets = purchase.map(|p| p.tickets.into_iter().map(String::into_boxed_str).collect());
        let end = End::Sold { tickets: tickets.unwrap_or_default(), receipt: receipt.as_ref().map(stamp) };
        self.finish(run, end);
    }

    /// Takes an answer that is no success. Returns how long to wait before the next call, or `None` when
    /// the intent has ended.
    fn answered(&mut self, run: &Run, answer: &verdict::Answer) -> Option<Duration> {
        run.note_answer(&answer.key, answer.transport);
        self.last_call = Instant::now();
        let wait = match answer.verdict {
            Verdict::SoldOut => {
                self.finish(run, End::SoldOut);
                return None;
            }
            Verdict::Refused => {
                self.finish(run, End::Refused(answer.key.as_str().into()));
                return None;
            }
            Verdict::Failed => {
                // An earlier call may have been decided: then this refusal says nothing about it.
                let end = if self.maybe { End::Unknown } else { End::Failed(answer.key.as_str().into()) };
                self.finish(run, end);
                return None;
            }
            Verdict::Overloaded { after } => {
                if after.is_none() {
                    run.missing_retry_info.fetch_add(1, Ordering::Relaxed);
                }
                if run.honour_retry {
                    Some(after.unwrap_or(RETRY_DEFAULT))
                } else {
                    run.note_heard();
                    None
                }
            }
            Verdict::Unknown => {
                self.maybe = true;
                let doubled = BACKOFF_FIRST * 2_u32.saturating_pow(self.attempts.saturating_sub(1).min(16));
                Some(doubled.min(BACKOFF_MAX))
            }
        };
        // Never earlier than asked; up to a fifth later, so that a crowd does not come back as one.
        let wait = wait.map(|wait| wait + jitter(run.seed, self.index, self.attempts, wait / 5));
        match wait {
            Some(wait) if !run.stopped() && Instant::now() + wait <= self.gives_up => Some(wait),
            _ => {
                self.finish(run, if self.maybe { End::Unknown } else { End::Overloaded });
                None
            }
        }
    }

    fn into_record(self, run: &Run) -> Record {
        let (end, ended) = self.end.unwrap_or_else(|| (End::Unknown, run.start.elapsed()));
        let record = Record {
            intent: self.intent,
            request_id: self.request_id,
            end,
            attempts: self.attempts,
            due: self.due,
            ended,
            last_call: self.last_call,
            resolved: false,
        };
        run.note_end(&record);
        record
    }
}

/// Reduces a receipt to what the audit compares.
pub fn stamp(receipt: &v1::Receipt) -> Stamp {
    Stamp {
        incarnation: receipt.incarnation,
        index: receipt.index,
        position: receipt.position,
        term: receipt.term,
        chain_hash: u64::from_str_radix(&receipt.chain_hash, 16).unwrap_or_default(),
        decided_at_ms: receipt
            .decided_at
            .as_ref()
            .map(|at| at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos / 1_000_000)))
            .unwrap_or_default(),
    }
}

/// A pause from 0 to `most` that only depends on its arguments.
fn jitter(seed: u64, index: u64, attempt: u32, most: Duration) -> Duration {
    let mixed = mix(seed ^ mix(index) ^ mix(u64::from(attempt) << 32));
    most.mul_f64((mixed >> 11) as f64 / (1_u64 << 53) as f64)
}

/// SplitMix64's finaliser: spreads every bit of its argument over the result.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Pursues one intent with `BuyTickets`.
async fn pursue_one(run: &Run, index: u64, intent: Intent, due: Duration) -> Record {
    let mut pursuit = Pursuit::begin(run, index, intent, due);
    let lot = &run.lots[intent.lot as usize];
    let request_id = pursuit.request_id.to_string();
    loop {
        let message = v1::BuyTicketsRequest {
            parent: lot.name.clone(),
            tier_id: lot.tiers[intent.tier as usize].tier_id.clone(),
            // At most 100: the plan and the trace were checked.
            quantity: intent.quantity as i32,
            seats: Vec::new(),
            request_id: request_id.clone(),
        };
        let mut client = run.pool.tickets(index.wrapping_add(u64::from(pursuit.attempts)));
        let request = run.pool.request(run.token(intent), message);
        pursuit.note_call(run);
        match run.pool.bounded(client.buy_tickets(request)).await {
            Ok(response) => {
                pursuit.bought(run, response.purchase, response.receipt);
                break;
            }
            Err(status) => match pursuit.answered(run, &verdict::of_status(&status)) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => break,
            },
        }
    }
    pursuit.into_record(run)
}

/// Pursues several intents of one event with `BatchBuyTickets`; what stays undecided is sent again.
async fn pursue_batch(run: &Run, items: Vec<(u64, Intent, Duration)>) -> Vec<Record> {
    let Some((first, lot)) = items.first().map(|(index, intent, _)| (*index, &run.lots[intent.lot as usize]))
    else {
        return Vec::new();
    };
    let mut pursuits: Vec<Pursuit> =
        items.into_iter().map(|(index, intent, due)| Pursuit::begin(run, index, intent, due)).collect();
    for round in 0_u64.. {
        let mut open: Vec<&mut Pursuit> =
            pursuits.iter_mut().filter(|pursuit| pursuit.end.is_none()).collect();
        let Some(intent) = open.first().map(|pursuit| pursuit.intent) else {
            break;
        };
        for pursuit in &mut open {
            pursuit.note_call(run);
        }
        let purchases = open
            .iter()
            .map(|pursuit| v1::BatchPurchase {
                buyer: run.subjects[pursuit.intent.subject as usize].clone(),
                tier_id: lot.tiers[pursuit.intent.tier as usize].tier_id.clone(),
                quantity: pursuit.intent.quantity as i32,
                request_id: pursuit.request_id.to_string(),
            })
            .collect();
        let message = v1::BatchBuyTicketsRequest { parent: lot.name.clone(), purchases };
        let mut client = run.pool.tickets((first / run.batch.max(1) as u64).wrapping_add(round));
        let answer =
            run.pool.bounded(client.batch_buy_tickets(run.pool.request(run.token(intent), message))).await;
        let mut wait: Option<Duration> = None;
        match answer {
            Ok(response) => {
                let mut results = response.results.into_iter();
                for pursuit in open {
                    let result = results.next();
                    let receipt = result.as_ref().and_then(|result| result.receipt.clone());
                    let answer = match result.and_then(|result| result.result) {
                        Some(v1::batch_buy_tickets_result::Result::Purchase(purchase)) => {
                            pursuit.bought(run, Some(purchase), receipt);
                            continue;
                        }
                        Some(v1::batch_buy_tickets_result::Result::Rejection(no)) => {
                            verdict::of_item(no.code, &no.reason, true)
                        }
                        Some(v1::batch_buy_tickets_result::Result::Undecided(no)) => {
                            verdict::of_item(no.code, &no.reason, false)
                        }
                        // A result that is missing says nothing about its purchase.
                        None => verdict::of_item(tonic::Code::Unknown as i32, "MISSING_RESULT", false),
                    };
                    wait = wait.max(pursuit.answered(run, &answer));
                }
            }
            Err(status) => {
                let answer = verdict::of_status(&status);
                for pursuit in open {
                    wait = wait.max(pursuit.answered(run, &answer));
                }
            }
        }
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
    }
    pursuits.into_iter().map(|pursuit| pursuit.into_record(run)).collect()
}

/// Pursues the intents of one call.
async fn pursue(run: &Run, items: Vec<(u64, Intent, Duration)>) -> Vec<Record> {
    run.note_begun(items.len() as u64);
    if run.seller.is_some() {
        return pursue_batch(run, items).await;
    }
    let mut records = Vec::with_capacity(items.len());
    for (index, intent, due) in items {
        records.push(pursue_one(run, index, intent, due).await);
    }
    records
}

/// A worker of the closed loop: takes the next intents when its last ones have ended.
async fn worker(run: Arc<Run>, next: Arc<AtomicU64>, until: Option<Duration>) {
    let step = run.batch.max(1) as u64;
    let mut records = Vec::new();
    loop {
        let due = run.start.elapsed();
        if run.stopped() || until.is_some_and(|until| due >= until) {
            break;
        }
        let first = next.fetch_add(step, Ordering::Relaxed);
        if run.seller.is_none() {
            let Some(intent) = run.intents.get(first) else {
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
    range.map_while(|index| run.intents.get(index).map(|intent| (index, intent)))
}

/// The open loop: starts each call when its last intent is due, whatever became of the earlier ones.
async fn schedule(run: Arc<Run>, arrivals: Arrivals) -> Result<(), LoadError> {
    let step = run.batch.max(1) as u64;
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
        progress(run.progress(Phase::Sell, run.start.elapsed(), done, run.intents.count()));
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
                    run.stop.store(true, Ordering::Relaxed);
                    aborted = Some(why);
                }
            }
        }
    }
    tell();
    let records = std::mem::take(&mut *run.sink.lock());
    Ok(Driven { records, aborted })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn intents_at_a_steady_rate_are_due_at_equal_distances_until_the_time_is_over() {
        let arrivals = Arrivals::of(Mode::Open { rate_per_second: 200.0 }, Some(Duration::from_millis(20)));
        let intents = Intents::Uniform { subjects: 3, quantity: 2, count: None };
        let due: Vec<_> = (0..9).map_while(|n| arrivals.due(n, intents.get(n).unwrap())).collect();
        assert_eq!(due, [0, 5, 10, 15].map(Duration::from_millis));
        assert_eq!(intents.get(7).unwrap().subject, 1, "buyers come in turn");
    }

    #[test]
    fn a_crowd_at_once_is_due_at_the_start_and_ends_with_its_last_buyer() {
        let arrivals = Arrivals::of(Mode::AllAtOnce, None);
        let intents = Intents::Uniform { subjects: 5, quantity: 1, count: Some(5) };
        assert_eq!(arrivals.due(4, intents.get(4).unwrap()), Some(Duration::ZERO));
        assert!(intents.get(5).is_none());
    }

    #[test]
    fn jitter_depends_on_the_seed_alone_and_stays_in_its_bounds() {
        let most = Duration::from_millis(10);
        let row = |seed| (0..200).map(move |n| jitter(seed, n, 1, most)).collect::<Vec<_>>();
        assert_eq!(row(7), row(7));
        assert_ne!(row(7), row(8));
        assert!(row(7).iter().all(|pause| *pause <= most));
        assert!(row(7).iter().any(|pause| *pause > most / 2) && row(7).iter().any(|pause| *pause < most / 2));
    }
}
