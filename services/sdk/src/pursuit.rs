//! The attempts of one call: when to repeat, how long to pause, when to stop, and what is certain at the end. It
//! knows neither gRPC nor connections; a [`Wire`] makes the attempts. It must never report as failed what an
//! attempt may have executed, and never keep to less than the delay that the service asked for.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backoff::Backoff;
use crate::budget::Bucket;
use crate::error::Stop;
use crate::failure::Failure;

/// An attempt with less time than this is not worth sending.
const ATTEMPT_MIN: Duration = Duration::from_millis(5);
/// A copy of a request that was sent may be executed until its deadline, which gateways count from when they read it.
/// So much is added for the way there and for the difference between clocks (a leader whose clock is 500 ms
/// from the others' gives up). A gateway that is stopped for longer than this with the request unread, and
/// then goes on, is not covered: the protocol has no absolute deadline.
pub(crate) const LATE_COPY_MARGIN: Duration = Duration::from_secs(2);

/// The longest deadline that gateways honour.
const CALL_MAX: Duration = Duration::from_secs(60);

/// Makes the attempts of one call.
pub(crate) trait Wire: Sync {
    /// What a success yields.
    type Answer: Send;

    /// Sends the request once; ends within `timeout`.
    fn attempt(&self, timeout: Duration) -> impl Future<Output = Result<Self::Answer, Ended>> + Send;

    /// Has the region say once and for all what becomes of this request, whatever copies of it are under way; `None` when
    /// nobody could say.
    fn seal(&self, timeout: Duration) -> impl Future<Output = Option<Final>> + Send;
}

/// What is certain of a request, whatever copies of it are under way.
#[derive(Debug, Clone)]
pub(crate) enum Final {
    /// It was executed: sending it again yields what it was answered.
    Executed,
    /// The region had decided "no".
    No(Failure),
    /// Nothing was decided and nothing will be.
    Never,
}

/// How an attempt ended without an answer.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) ending: Ending,
    pub(crate) failure: Failure,
}

/// What an attempt's end means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The region decided "no".
    No,
    /// This attempt executed nothing.
    Refused(Again),
    /// This attempt may have been executed.
    Doubt(Again),
    /// The request never left this process.
    Unsent(Again),
}

/// Whether and when to send the same request again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// It would change nothing.
    Never,
    /// At once.
    Now,
    /// After a pause of our own.
    Backoff,
    /// After exactly this, because the service said so.
    After(Duration),
}

/// What all calls of a client have in common.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) attempt_timeout: Duration,
    pub(crate) backoff: Backoff,
    pub(crate) bucket: Bucket,
}

/// What is known of earlier attempts that may have been executed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Doubt {
    until: Option<Instant>,
}

impl Doubt {
    /// What is known before the first attempt: of a request whose id its caller gives, a copy may be on its way, of an earlier call
    /// that ended in doubt.
    pub(crate) fn of_a_request_with(id: &str) -> Self {
        let until = (!id.is_empty()).then(|| Instant::now() + CALL_MAX + LATE_COPY_MARGIN);
        Self { until }
    }

    /// An attempt that was sent then, with this timeout, may have been executed.
    pub(crate) fn note(&mut self, sent_at: Instant, timeout: Duration) {
        let until = sent_at + timeout + LATE_COPY_MARGIN;
        self.until = self.until.max(Some(until));
    }

    /// Whether any attempt may have been executed.
    pub(crate) fn exists(&self) -> bool {
        self.until.is_some()
    }

    /// Whether a "no" of the region to an attempt that was sent then is final. The region looks for remembered
    /// outcomes and for copies in its hands before it says no; but a "no" that it answered at once is not
    /// remembered, and a copy that is still under way could be executed after it.
    pub(crate) fn is_cleared_by(&self, sent_at: Instant) -> bool {
        self.until.is_none_or(|until| sent_at >= until)
    }
}

/// A success.
#[derive(Debug)]
pub(crate) struct Reached<T> {
    pub(crate) answer: T,
    pub(crate) attempts: u32,
}

/// An end without success.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) certainty: Certainty,
    pub(crate) stop: Stop,
    pub(crate) last: Option<Box<Failure>>,
}

/// What is certain at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certainty {
    Decided,
    NotDecided,
    Unknown,
}

/// Sends a request until it has an answer, it cannot have one, or the time is up. `effects`: whether the
/// request changes anything; without, no end of it is ever in doubt. `doubt`: what is known of copies that were sent before.
pub(crate) async fn pursue<W: Wire>(
    wire: &W,
    policy: &Policy,
    deadline: Instant,
    effects: bool,
    mut doubt: Doubt,
) -> Result<Reached<W::Answer>, Failed> {
    let mut last = None;
    let mut attempts = 0;
    let mut pauses = 0;
    let end = |stop, last, doubt: &Doubt| {
        let certainty = if doubt.exists() { Certainty::Unknown } else { Certainty::NotDecided };
        Failed { certainty, stop, last }
    };
    let attempt_time = || deadline.saturating_duration_since(Instant::now()).min(policy.attempt_timeout);
    let decided =
        |no| Failed { certainty: Certainty::Decided, stop: Stop::Refused, last: Some(Box::new(no)) };
    loop {
        let (sent_at, timeout) = (Instant::now(), attempt_time());
        if timeout < ATTEMPT_MIN {
            return Err(end(Stop::Deadline, last, &doubt));
        }
        attempts += 1;
        let Ended { ending, failure } = match wire.attempt(timeout).await {
            Ok(answer) => {
                policy.bucket.succeeded();
                return Ok(Reached { answer, attempts });
            }
            Err(ended) => ended,
        };
        if effects && matches!(ending, Ending::Doubt(_)) {
            doubt.note(sent_at, timeout);
        }
        let pause = match ending {
            Ending::No => {
                policy.bucket.succeeded();
                if doubt.is_cleared_by(sent_at) {
                    return Err(decided(failure));
                }
                match wire.seal(attempt_time()).await {
                    // Nobody else will have it: what was said stands.
                    Some(Final::Never) => return Err(decided(failure)),
                    Some(Final::No(no)) => return Err(decided(no)),
                    Some(Final::Executed) => Duration::ZERO,
                    // An earlier copy may still be under way: ask again when it is void.
                    None => {
                        let void = |until: Instant| until.saturating_duration_since(Instant::now());
                        doubt.until.map_or(Duration::ZERO, void)
                    }
                }
            }
            Ending::Refused(again) | Ending::Doubt(again) | Ending::Unsent(again) => match again {
                Again::Never => {
                    // The region may know more than the last answer says.
                    let sealed = if doubt.exists() { wire.seal(attempt_time()).await } else { None };
                    let last = Some(Box::new(failure));
                    return Err(match sealed {
                        Some(Final::No(no)) => decided(no),
                        Some(Final::Never) => {
                            Failed { certainty: Certainty::NotDecided, stop: Stop::Refused, last }
                        }
                        Some(Final::Executed) | None => end(Stop::Refused, last, &doubt),
                    });
                }
                Again::Now => Duration::ZERO,
                Again::After(delay) => delay,
                Again::Backoff => {
                    if !matches!(ending, Ending::Unsent(_)) {
                        policy.bucket.failed();
                        if !policy.bucket.allows() {
                            return Err(end(Stop::Budget, Some(Box::new(failure)), &doubt));
                        }
                    }
                    pauses += 1;
                    policy.backoff.pause(pauses - 1)
                }
            },
        };
        last = Some(Box::new(failure));
        if deadline.saturating_duration_since(Instant::now()) < pause + ATTEMPT_MIN {
            return Err(end(Stop::Deadline, last, &doubt));
        }
        sleep(pause).await;
    }
}

#[cfg(test)]
#[path = "pursuit_test.rs"]
mod tests;
