//! What a run shall do, and what it says while it does it. Plain data; nothing here calls anybody.

use std::time::Duration;

use crate::LoadError;

/// Most connections that a run opens.
const CONNECTIONS_MAX: usize = 1_024;
/// Most buyers of one run; each has a token in memory.
const BUYERS_MAX: u64 = 5_000_000;
/// Most purchases in one `BatchBuyTickets` call, a limit of the API.
const BATCH_MAX: usize = 1_000;
/// Longest deadline that gateways honour.
const DEADLINE_MAX: Duration = Duration::from_secs(60);
/// Longest patience and longest timed run.
const WAIT_MAX: Duration = Duration::from_secs(24 * 3600);
/// Highest quota that an event may have, a limit of the API.
pub(crate) const QUOTA_MAX: u64 = 100_000;
/// Largest capacity of a tier, a limit of the API.
pub(crate) const CAPACITY_MAX: u64 = 10_000_000;
/// How many subjects share the work when buyers do not have tokens of their own.
pub(crate) const SHARED_SUBJECTS: u64 = 256;

/// How intents arrive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// A fixed number of workers; each takes the next intent when its last one has ended.
    Closed {
        /// Calls in flight, at most.
        concurrency: usize,
    },
    /// Intents arrive at a steady rate, whether or not earlier ones have ended. Latency counts from the
    /// moment an intent was due.
    Open {
        /// Intents a second.
        rate_per_second: f64,
    },
    /// Everybody at the same moment. Latency counts from that moment.
    AllAtOnce,
}

/// Plan of a sale of one hot event.
#[derive(Debug, Clone, PartialEq)]
pub struct FlashSale {
    /// Home region of the event, as `regions/eu-west` or `eu-west`; `None` lets `seed` choose one.
    pub region: Option<String>,
    /// How many people want tickets. Each has one intent; with `duration`, they come in turn.
    pub buyers: u64,
    /// Tickets on sale.
    pub stock: u64,
    /// Tickets that each intent asks for.
    pub quantity: u32,
    /// How intents arrive.
    pub mode: Mode,
    /// Connections to the gateways.
    pub connections: usize,
    /// Deadline of each single call.
    pub deadline: Duration,
    /// How long an intent is pursued, repetitions included; the last call may take `deadline` longer.
    pub patience: Duration,
    /// Whether a refusal for overload is repeated after the delay that it names; otherwise it ends the intent.
    pub honour_retry: bool,
    /// Quota per buyer of the event; `None` sets one that nobody in this run can reach.
    pub quota: Option<u32>,
    /// Whether each buyer has a token of its own; otherwise 256 subjects share the work.
    pub distinct_tokens: bool,
    /// Decides what is left to chance: the region, and the jitter of repetitions.
    pub seed: u64,
    /// Sell through `BatchBuyTickets` with a seller's token, this many purchases in a call.
    pub batch: Option<usize>,
    /// Go on for this long instead of until every buyer has come once. Not for [`Mode::AllAtOnce`].
    pub duration: Option<Duration>,
}

impl Default for FlashSale {
    fn default() -> Self {
        Self {
            region: None,
            buyers: 5_000,
            stock: 1_000,
            quantity: 1,
            mode: Mode::Closed { concurrency: 64 },
            connections: 4,
            deadline: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            honour_retry: true,
            quota: None,
            distinct_tokens: true,
            seed: 1,
            batch: None,
            duration: None,
        }
    }
}

impl FlashSale {
    /// Checks the plan before anything is sent.
    ///
    /// # Errors
    /// [`LoadError::Plan`] names the value and what it may be.
    pub fn check(&self) -> Result<(), LoadError> {
        within("buyers", self.buyers, 1, BUYERS_MAX)?;
        within("stock", self.stock, 1, CAPACITY_MAX)?;
        within("quantity", u64::from(self.quantity), 1, 100)?;
        check_calls(self.connections, self.deadline, self.patience)?;
        if let Some(quota) = self.quota {
            within("quota", u64::from(quota), 1, QUOTA_MAX)?;
        }
        if let Some(batch) = self.batch {
            within("batch", batch as u64, 1, BATCH_MAX as u64)?;
        }
        match self.mode {
            Mode::Closed { concurrency } => within("concurrency", concurrency as u64, 1, 100_000)?,
            Mode::Open { rate_per_second } => {
                if !(0.001..=1_000_000.0).contains(&rate_per_second) {
                    return Err(LoadError::Plan(format!(
                        "the rate is {rate_per_second} a second; it must be from 0.001 to 1000000"
                    )));
                }
            }
            Mode::AllAtOnce if self.duration.is_some() => {
                return Err(LoadError::Plan(
                    "a crowd that comes all at once has no duration: leave the duration away, or give a rate \
                     or a concurrency"
                        .to_owned(),
                ));
            }
            Mode::AllAtOnce => {}
        }
        match self.duration {
            Some(duration) if duration.is_zero() || duration > WAIT_MAX => Err(LoadError::Plan(format!(
                "the duration is {duration:?}; it must be more than 0 and at most 24 hours"
            ))),
            _ => Ok(()),
        }
    }
}

/// How a recorded sale is replayed.
#[derive(Debug, Clone, PartialEq)]
pub struct ReplayOptions {
    /// 2.0 replays twice as fast as recorded.
    pub speed: f64,
    /// Capacity of each tier as a fraction of what the trace asks of it, rounded up; 0.5 sells out.
    pub capacity_fraction: f64,
    /// Quota per buyer of every event; `None` sets one that nobody in this trace can reach.
    pub quota: Option<u32>,
    /// Connections to the gateways.
    pub connections: usize,
    /// Deadline of each single call.
    pub deadline: Duration,
    /// How long an intent is pursued, repetitions included; the last call may take `deadline` longer.
    pub patience: Duration,
    /// Whether a refusal for overload is repeated after the delay that it names.
    pub honour_retry: bool,
    /// Decides the jitter of repetitions.
    pub seed: u64,
}

impl Default for ReplayOptions {
    fn default() -> Self {
        Self {
            speed: 1.0,
            capacity_fraction: 0.5,
            quota: None,
            connections: 4,
            deadline: Duration::from_secs(5),
            patience: Duration::from_secs(30),
            honour_retry: true,
            seed: 1,
        }
    }
}

impl ReplayOptions {
    /// Checks the options before anything is sent.
    ///
    /// # Errors
    /// [`LoadError::Plan`] names the value and what it may be.
    pub fn check(&self) -> Result<(), LoadError> {
        if !(0.001..=1_000.0).contains(&self.speed) {
            return Err(LoadError::Plan(format!(
                "the speed is {}; it must be from 0.001 to 1000 (1 replays as recorded)",
                self.speed
            )));
        }
        if !(self.capacity_fraction > 0.0 && self.capacity_fraction <= 100.0) {
            return Err(LoadError::Plan(format!(
                "the capacity is {} of the demand; it must be more than 0 and at most 100",
                self.capacity_fraction
            )));
        }
        if let Some(quota) = self.quota {
            within("quota", u64::from(quota), 1, QUOTA_MAX)?;
        }
        check_calls(self.connections, self.deadline, self.patience)
    }
}

fn check_calls(connections: usize, deadline: Duration, patience: Duration) -> Result<(), LoadError> {
    within("connections", connections as u64, 1, CONNECTIONS_MAX as u64)?;
    if deadline < Duration::from_millis(1) || deadline > DEADLINE_MAX {
        return Err(LoadError::Plan(format!(
            "the deadline of a call is {deadline:?}; gateways honour 1 ms to 60 s"
        )));
    }
    if patience > WAIT_MAX {
        return Err(LoadError::Plan(format!(
            "the patience of a buyer is {patience:?}; it must be at most 24 hours"
        )));
    }
    Ok(())
}

fn within(what: &str, value: u64, min: u64, max: u64) -> Result<(), LoadError> {
    if (min..=max).contains(&value) {
        Ok(())
    } else {
        Err(LoadError::Plan(format!("{what} is {value}; it must be from {min} to {max}")))
    }
}

/// Part of a run that is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Connecting and creating events.
    Prepare,
    /// Making tokens.
    Mint,
    /// The measured part.
    Sell,
    /// Asking what was decided for intents whose answer was lost.
    Resolve,
    /// Reading everything back.
    Audit,
}

impl Phase {
    /// The phase as one word for people.
    pub fn word(self) -> &'static str {
        match self {
            Phase::Prepare => "preparing",
            Phase::Mint => "making tokens",
            Phase::Sell => "selling",
            Phase::Resolve => "resolving",
            Phase::Audit => "auditing",
        }
    }
}

/// Where a run stands. Sent some ten times a second and at the beginning of each phase.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// What is going on.
    pub phase: Phase,
    /// Time since the phase began.
    pub elapsed: Duration,
    /// Steps of this phase that are done: tokens made, intents ended, answers resolved, tickets read.
    pub done: u64,
    /// Steps of this phase in all, when known.
    pub total: Option<u64>,
    /// Purchases so far.
    pub sold: u64,
    /// Intents that were told "sold out" so far.
    pub sold_out: u64,
    /// Intents that gave up because of overload so far.
    pub overloaded: u64,
    /// Intents whose answer is unknown so far.
    pub unknown: u64,
    /// Intents that ended with another error so far.
    pub errors: u64,
    /// Repeated calls so far.
    pub retries: u64,
}
