//! One attempt of one call over gRPC: takes a token and a connection, sends, and reads what came back. It must
//! never send a request a second time by itself, nor change what is in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_proto::v1;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Request, Status};

use crate::endpoints::{Endpoints, Picked};
use crate::failure::{Execution, Failure, never_left};
use crate::pursuit::{Again, Ended, Ending, Final, Policy, Wire};
use crate::rpc::Rpc;
use crate::seen::{SEEN, SeenRegions};
use crate::token::TokenSource;
use crate::{Reason, RequestId};

/// How much longer than its deadline an attempt is waited for: the gateway's own answer, which says more,
/// should come first.
const GRACE: Duration = Duration::from_millis(100);

/// What the attempts of all calls of a client share.
pub(crate) struct Carrier {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) policy: Arc<Policy>,
    pub(crate) tokens: Arc<dyn TokenSource>,
    pub(crate) seen: SeenRegions,
}

/// What the attempts of one call have met.
#[derive(Default)]
pub(crate) struct Course {
    /// Gateways that failed.
    tried: BTreeSet<usize>,
    /// Another token was asked for.
    refreshed: bool,
}

impl Carrier {
    /// Sends a request once.
    pub(crate) async fn send<R: Rpc>(
        &self,
        message: R,
        timeout: Duration,
        course: &Mutex<Course>,
    ) -> Result<R::Answer, Ended> {
        let until = Instant::now() + timeout;
        let token = self.token(until).await?;
        let mut request = Request::new(message);
        let header = format!("Bearer {token}").parse().map_err(|_| Ended {
            ending: Ending::Unsent(Again::Never),
            failure: Failure::local(
                Code::Unauthenticated,
                "the token has characters that no header can carry: get one from `tidewall token`",
                "",
            ),
        })?;
        request.metadata_mut().insert("authorization", header);
        if R::READS
            && let Some(seen) = self.seen.value()
        {
            request.metadata_mut().insert(SEEN, seen);
        }
        // What the token took is gone: the region must not go on after we have stopped waiting.
        request.set_timeout(R::LASTS.unwrap_or_else(|| until.saturating_duration_since(Instant::now())));
        let picked = self.endpoints.pick(&course.lock().tried);
        let sent = timeout_at(until + GRACE, R::send(picked.channel.clone(), request)).await;
        let status = match sent {
            Ok(Ok(answer)) => {
                self.endpoints.answered(&picked);
                self.seen.note(answer.metadata());
                return Ok(answer.into_inner());
            }
            Ok(Err(status)) => {
                self.seen.note(status.metadata());
                status
            }
            Err(_) => Status::deadline_exceeded("no answer came before the deadline of the attempt"),
        };
        Err(self.read(&status, &picked, &token, &mut course.lock()))
    }

    async fn token(&self, until: Instant) -> Result<String, Ended> {
        let (code, why) = match timeout_at(until, self.tokens.token()).await {
            Ok(Ok(token)) => return Ok(token),
            Ok(Err(error)) => (Code::Unauthenticated, format!("the token source has no token: {error}")),
            Err(_) => (Code::DeadlineExceeded, "the token source did not answer in time".to_owned()),
        };
        let failure = Failure::local(code, why, "");
        Err(Ended { ending: Ending::Unsent(Again::Backoff), failure })
    }

    /// What an error means for the call.
    fn read(&self, status: &Status, picked: &Picked, token: &str, course: &mut Course) -> Ended {
        let failure = Failure::of_status(status, self.endpoints.address(picked));
        if !failure.blames_endpoint() {
            self.endpoints.answered(picked);
            let again = self.again(&failure, token, course);
            return Ended { ending: ending(&failure, again), failure };
        }
        self.endpoints.failed(picked);
        course.tried.insert(picked.index);
        let others = course.tried.len() < self.endpoints.count();
        if !others {
            // All had their chance in this call: from here on any will do.
            course.tried.clear();
        }
        let ending = match never_left(status) {
            true if others => Ending::Unsent(Again::Now),
            true => Ending::Unsent(Again::Backoff),
            false => Ending::Doubt(Again::Backoff),
        };
        Ended { ending, failure }
    }

    fn again(&self, failure: &Failure, token: &str, course: &mut Course) -> Again {
        if failure.reason == Some(Reason::TokenInvalid) && !course.refreshed {
            course.refreshed = true;
            return if self.tokens.refused(token) { Again::Now } else { Again::Never };
        }
        again(failure)
    }
}

/// What an answer of the service means, whether it stands in a status or in an item of a batch.
pub(crate) fn ending(failure: &Failure, again: Again) -> Ending {
    match failure.execution() {
        Execution::Decided => Ending::No,
        Execution::NotExecuted => Ending::Refused(again),
        Execution::Unknown => Ending::Doubt(again),
    }
}

/// When the same request may fare better. A delay of the service is taken as it is.
pub(crate) fn again(failure: &Failure) -> Again {
    match failure.retry_after {
        _ if !failure.is_passing() => Again::Never,
        Some(delay) if !delay.is_zero() => Again::After(delay),
        _ => Again::Backoff,
    }
}

/// Attempts of a call whose request is always the same.
pub(crate) struct Unary<'a, R> {
    pub(crate) carrier: &'a Carrier,
    pub(crate) message: R,
    /// Region and id with which to ask for the outcome; `None` for a read.
    pub(crate) identity: Option<(String, RequestId)>,
    pub(crate) course: Mutex<Course>,
}

impl<R: Rpc> Wire for Unary<'_, R> {
    type Answer = R::Answer;

    async fn attempt(&self, timeout: Duration) -> Result<R::Answer, Ended> {
        self.carrier.send(self.message.clone(), timeout, &self.course).await
    }

    async fn seal(&self, timeout: Duration) -> Option<Final> {
        let (region, id) = self.identity.as_ref()?;
        let request = v1::SealRequestIdRequest { parent: region.clone(), request_id: id.to_string() };
        let answer = self.carrier.send(request, timeout, &self.course).await.ok()?.outcome?;
        match answer.state() {
            v1::OutcomeState::Sealed => Some(Final::Never),
            v1::OutcomeState::Decided => Some(match answer.result? {
                v1::get_outcome_response::Result::Rejection(no) => Final::No(Failure::of_rejection(&no, "")),
                _ => Final::Executed,
            }),
            // Whatever was decided is forgotten.
            v1::OutcomeState::Forgotten | v1::OutcomeState::Undecided | v1::OutcomeState::Unspecified => None,
        }
    }
}
