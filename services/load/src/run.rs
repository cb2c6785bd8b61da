//! What all calls of one run share: the sale, who buys, and what is noted while it goes on. It makes no call itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use uuid::Uuid;

use crate::arrivals::{Intent, Intents};
use crate::audit::Stamp;
use crate::pool::{Pool, Token};
use crate::{Phase, Progress};

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
    pub(crate) retries: AtomicU64,
    begun: AtomicU64,
    /// Microseconds after the start at which something useful was last heard.
    heard_us: AtomicU64,
}

/// Everything the calls of one run share.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) parts: RunParts,
    pub(crate) start: Instant,
    pub(crate) live: Live,
    /// Answers other than success by `CODE/REASON`.
    pub(crate) answers: Mutex<BTreeMap<String, u64>>,
    pub(crate) transport_errors: AtomicU64,
    pub(crate) missing_retry_info: AtomicU64,
    /// Set when the rest of the run makes no sense any more.
    stop: AtomicBool,
    /// Stories that have ended.
    pub(crate) sink: Mutex<Vec<Record>>,
}

/// What a [`Run`] is made of.
#[derive(Debug)]
pub(crate) struct RunParts {
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
}

impl Run {
    /// A run whose clock starts now.
    pub(crate) fn begin(parts: RunParts) -> Arc<Self> {
        Arc::new(Self {
            parts,
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
        self.parts.seller.as_ref().unwrap_or_else(|| &self.parts.tokens[intent.subject as usize])
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

    /// Microseconds since the start.
    fn now_us(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// Ends the run early: nothing new begins.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether the rest of the run makes no sense any more.
    pub(crate) fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Notes that intents begin. When nothing was in flight, silence is counted from here.
    pub(crate) fn note_begun(&self, number: u64) {
        let begun = self.live.begun.fetch_add(number, Ordering::Relaxed);
        if begun == self.live.done.load(Ordering::Relaxed) {
            self.live.heard_us.store(self.now_us(), Ordering::Relaxed);
        }
    }

    /// Notes that something useful was heard.
    pub(crate) fn note_heard(&self) {
        self.live.heard_us.store(self.now_us(), Ordering::Relaxed);
    }

    /// Notes an answer other than success.
    pub(crate) fn note_answer(&self, key: &str, transport: bool) {
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

    /// Notes that an intent has ended.
    pub(crate) fn note_end(&self, record: &Record) {
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
    pub(crate) fn silence(&self) -> Option<String> {
        let waiting = self.live.begun.load(Ordering::Relaxed) > self.live.done.load(Ordering::Relaxed);
        let silent =
            Duration::from_micros(self.now_us().saturating_sub(self.live.heard_us.load(Ordering::Relaxed)));
        let bound = self.parts.patience + self.parts.pool.deadline() + SILENCE_GRACE;
        (waiting && silent > bound).then(|| {
            format!(
                "stopped early: nobody got a decision for {} s (gateways: {}); look whether the cluster is up",
                silent.as_secs(),
                self.parts.pool.endpoints()
            )
        })
    }
}
