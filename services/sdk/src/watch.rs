//! Watching: what happens, as it happens, through failovers and over gateways. It goes on behind the last place that it was told, so
//! that nothing is missed and nothing is told twice; what cannot be told any more is an error, never a gap.

use std::time::Duration;

use tidewall_proto::v1;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Code, Status, Streaming};

use crate::error::{Error, NotDecided, Stop};
use crate::failure::Failure;
use crate::{Client, Reason};

/// A gateway says something at least every ten seconds: one that says nothing for so long is left.
const SILENCE_MAX: Duration = Duration::from_secs(25);

impl Client {
    /// Watches a region or an event. It connects when [`Watch::next`] is called.
    pub fn watch(&self, request: v1::WatchRequest) -> Watch {
        Watch { client: self.clone(), request, stream: None, failures: 0 }
    }
}

/// What happens in a region or to an event, as it happens.
///
/// Each change is told once and in order, whatever becomes of nodes, gateways and connections meanwhile.
pub struct Watch {
    client: Client,
    /// `after` is the last place that was told.
    request: v1::WatchRequest,
    stream: Option<Streaming<v1::WatchResponse>>,
    /// Streams that have ended since something was told.
    failures: u32,
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("request", &self.request).finish_non_exhaustive()
    }
}

impl Watch {
    /// What has happened since the last answer; one without changes now and then. Dropping the future loses nothing.
    ///
    /// # Errors
    /// [`Error::NotDecided`] with [`Reason::PlaceGone`] when what comes next is not kept any more: look at what is there, and watch
    /// anew, without a place. With another reason when the watch is refused. When no gateway told anything within the client's
    /// deadline: it may be called again then, and goes on.
    pub async fn next(&mut self) -> Result<v1::WatchResponse, Error> {
        let deadline = self.client.deadline();
        loop {
            let stream = match &mut self.stream {
                Some(stream) => stream,
                None => {
                    let stream = self.client.read(self.request.clone()).await?;
                    self.stream.insert(stream)
                }
            };
            let ended = match timeout(SILENCE_MAX, stream.message()).await {
                Ok(Ok(Some(answer))) => {
                    self.failures = 0;
                    if let (Some(place), false) = (answer.place, self.tells_state()) {
                        self.request.after = Some(place);
                    }
                    return Ok(answer);
                }
                Ok(Ok(None)) => Status::unavailable("the stream has ended"),
                Ok(Err(status)) => status,
                Err(_) => Status::unavailable("the gateway says nothing any more"),
            };
            self.stream = None;
            let failure = Failure::of_status(&ended, "");
            if !goes_on(&failure) {
                return Err(stopped(Stop::Refused, failure));
            }
            let pause = self.client.carrier.policy.backoff.pause(self.failures);
            self.failures = self.failures.saturating_add(1);
            // A stream that has come to its time is no failure: the first pause is for those that end at once.
            if Instant::now() + pause > deadline && self.failures > 1 {
                return Err(stopped(Stop::Deadline, failure));
            }
            sleep(pause).await;
        }
    }

    /// Everything up to here was told; `None` before anything was, and in the mode STATE.
    pub fn place(&self) -> Option<v1::Place> {
        self.request.after
    }

    fn tells_state(&self) -> bool {
        self.request.mode() == v1::WatchMode::State
    }
}

/// Whether a watch that has ended like this can go on behind the last place.
fn goes_on(failure: &Failure) -> bool {
    match &failure.reason {
        Some(Reason::NotRead | Reason::TokenInvalid) => true,
        // Where its time is over, or its connection.
        None if failure.code == Code::DeadlineExceeded => true,
        _ => failure.is_passing(),
    }
}

fn stopped(stop: Stop, last: Failure) -> Error {
    Error::NotDecided { request_id: None, why: NotDecided::Stopped { stop, last: Some(Box::new(last)) } }
}
