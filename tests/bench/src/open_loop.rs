//! Buyers who come at times of their own, whether those before them were answered or not, and what they get.
//!
//! Latency counts from the moment at which a purchase was due, so that a stall is not hidden by the purchases that it kept
//! from being sent. A buyer who is told to come back does, and gives up when its patience is over.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use parking_lot::Mutex;
use tidewall_e2e::client::{Session, request_id};
use tidewall_proto::v1::BuyTicketsRequest;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::cell::{Span, histogram, percentile_ms, record};

/// Kinds of failures that are told apart; the rest only counts.
const FAILURES_TOLD: usize = 4;

/// A buyer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// Since the beginning.
    pub due: Duration,
    /// What it wants, by position.
    pub event: usize,
}

/// So many a second of the first event, from the beginning of the warm-up on.
pub fn steady(rate: f64, span: Span) -> impl Iterator<Item = Arrival> {
    let count = ((span.warm_up + span.measured).as_secs_f64() * rate) as usize;
    (0..count).map(move |at| Arrival { due: Duration::from_secs_f64(at as f64 / rate), event: 0 })
}

/// What the buyers of one kind got who were due in the measured part.
#[derive(Debug)]
pub struct Seen {
    /// From when a purchase was due to its answer, returns included.
    pub latency: Histogram<u64>,
    /// Of the attempt that was answered.
    pub attempt: Histogram<u64>,
    /// Buyers who came.
    pub came: u64,
    /// Buyers who were told to come back at least once, and how often that was.
    pub refused: u64,
    pub returns: u64,
    /// Buyers whose patience was over.
    pub gave_up: u64,
    /// Failures by what they say.
    pub failures: BTreeMap<String, u64>,
    /// Failures for which a connection broke.
    pub broken: u64,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            latency: histogram(),
            attempt: histogram(),
            came: 0,
            refused: 0,
            returns: 0,
            gave_up: 0,
            failures: BTreeMap::new(),
            broken: 0,
        }
    }
}

impl Seen {
    /// Buyers who got what they came for.
    pub fn served(&self) -> u64 {
        self.latency.len()
    }

    /// A percentile of the latency, ms.
    pub fn percentile_ms(&self, percentile: f64) -> f64 {
        percentile_ms(&self.latency, percentile)
    }

    /// All failures, in words.
    pub fn failed(&self) -> String {
        let count: u64 = self.failures.values().sum();
        let mut kinds: Vec<_> = self.failures.iter().collect();
        kinds.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
        let kinds: Vec<String> =
            kinds.into_iter().take(FAILURES_TOLD).map(|(what, count)| format!("{count} × {what}")).collect();
        if kinds.is_empty() { "0".into() } else { format!("{count}: {}", kinds.join("; ")) }
    }

    /// How often a refused buyer was told to come back, on average.
    pub fn returns_each(&self) -> f64 {
        self.returns as f64 / self.refused.max(1) as f64
    }
}

/// What all of them got, and how late the generator was.
pub struct Driven {
    /// By kind.
    pub seen: Vec<Seen>,
    /// How late the generator itself was: part of the latency.
    pub late: Histogram<u64>,
}

/// How one buyer ended.
enum End {
    /// It has its ticket, after an attempt of this length.
    Served(Duration),
    GaveUp,
    Failed(Status),
}

/// What is sold: the names of the events, and the kind that the buyers of each belong to.
#[derive(Clone)]
pub struct Goods {
    events: Arc<Vec<String>>,
    kinds: Arc<Vec<usize>>,
}

impl Goods {
    /// Events with their kinds.
    pub fn new(goods: impl IntoIterator<Item = (String, usize)>) -> Self {
        let (events, kinds) = goods.into_iter().unzip();
        Self { events: Arc::new(events), kinds: Arc::new(kinds) }
    }
}

/// Lets buyers come until the span is over and waits for the last of them. `patience` is how long one stays.
pub async fn drive(
    buyers: &[Session],
    goods: &Goods,
    arrivals: impl Iterator<Item = Arrival>,
    span: Span,
    patience: Duration,
) -> Driven {
    let kinds = goods.kinds.iter().max().map_or(0, |last| last + 1);
    let all = Arc::new(Mutex::new((0..kinds).map(|_| Seen::default()).collect::<Vec<_>>()));
    let mut late = histogram();
    let start = Instant::now();
    let (counted_from, end) = (span.warm_up, span.warm_up + span.measured);
    // Nothing is sent: it is closed when the last of them has ended. A set of tasks would wake this thread for each.
    let (under_way, mut ended) = mpsc::channel::<()>(1);
    for (Arrival { due, event }, session) in arrivals.take_while(|at| at.due < end).zip(buyers.iter().cycle())
    {
        let at = start + due;
        if at > Instant::now() {
            tokio::time::sleep_until(at).await;
        }
        let counts = due >= counted_from;
        if counts {
            record(&mut late, at.elapsed());
        }
        let (session, goods, all) = (session.clone(), goods.clone(), Arc::clone(&all));
        let under_way = under_way.clone();
        tokio::spawn(async move {
            let (ended, returns) = buy(&session, &goods.events[event], at + patience).await;
            if counts {
                let seen = &mut all.lock()[goods.kinds[event]];
                seen.note(ended, returns, at.elapsed());
            }
            drop(under_way);
        });
    }
    drop(under_way);
    ended.recv().await;
    let seen = std::mem::take(&mut *all.lock());
    Driven { seen, late }
}

impl Seen {
    fn note(&mut self, end: End, returns: u64, latency: Duration) {
        self.came += 1;
        self.returns += returns;
        self.refused += u64::from(returns > 0);
        match end {
            End::Served(attempt) => {
                record(&mut self.latency, latency);
                record(&mut self.attempt, attempt);
            }
            End::GaveUp => self.gave_up += 1,
            End::Failed(status) => {
                let what = format!("{:?}: {}", status.code(), status.message());
                let at_transport = ["transport", "connection", "h2 ", "broken pipe", "GoAway"];
                self.broken += u64::from(at_transport.iter().any(|word| what.contains(word)));
                *self.failures.entry(what.chars().take(120).collect()).or_default() += 1;
            }
        }
    }
}

/// Whether a call has ended because its time was over, whoever noticed it first: tonic's client calls that cancelled.
fn is_late(status: &Status) -> bool {
    status.code() == Code::DeadlineExceeded
        || status.code() == Code::Cancelled && status.message().contains("Timeout expired")
}

/// Buys one ticket until a deadline; the count is how often the buyer was told to come back.
async fn buy(session: &Session, event: &str, deadline: Instant) -> (End, u64) {
    let message = BuyTicketsRequest {
        parent: event.to_owned(),
        tier_id: "ga".into(),
        quantity: 1,
        seats: Vec::new(),
        request_id: request_id(),
    };
    let mut returns = 0;
    loop {
        let sent = Instant::now();
        let left = deadline.saturating_duration_since(sent);
        if left.is_zero() {
            return (End::GaveUp, returns);
        }
        let mut request = session.request_without_deadline(message.clone());
        request.set_timeout(left);
        match session.tickets().buy_tickets(request).await {
            Ok(_) => return (End::Served(sent.elapsed()), returns),
            Err(status) if status.code() == Code::ResourceExhausted => {
                let Some(delay) = status.get_details_retry_info().and_then(|info| info.retry_delay) else {
                    return (End::Failed(status), returns);
                };
                returns += 1;
                let back = Instant::now() + delay;
                tokio::time::sleep_until(back.min(deadline)).await;
            }
            Err(status) if is_late(&status) => return (End::GaveUp, returns),
            Err(status) => return (End::Failed(status), returns),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_buyers_got_is_counted() {
        let mut seen = Seen::default();
        seen.note(End::Served(Duration::from_millis(2)), 1, Duration::from_millis(9));
        seen.note(End::GaveUp, 3, Duration::from_secs(10));
        seen.note(End::Failed(Status::unknown("transport error")), 0, Duration::from_secs(1));
        seen.note(End::Failed(Status::internal("a bug")), 0, Duration::from_secs(1));
        assert_eq!((seen.came, seen.served(), seen.gave_up, seen.broken), (4, 1, 1, 1));
        assert_eq!((seen.refused, seen.returns), (2, 4));
        assert!((seen.returns_each() - 2.0).abs() < 1e-9);
        assert!((seen.percentile_ms(99.0) - 9.0).abs() < 0.1);
        assert!(seen.failed().starts_with("2: 1 × "), "{}", seen.failed());
        assert!(
            is_late(&Status::cancelled("Timeout expired")) && !is_late(&Status::cancelled("by somebody"))
        );
        assert_eq!(Seen::default().failed(), "0");
    }
}
