//! What became of requests whose calls ended in doubt, also those of an earlier process. Asking executes nothing.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidewall_proto::v1;
use tidewall_proto::v1::get_outcome_response::Result as Remembered;

use crate::client::{Client, unix_ms};
use crate::error::{Error, NotDecided};
use crate::failure::Failure;
use crate::journal::Sent;
use crate::pursuit::LATE_COPY_MARGIN;
use crate::{RequestId, api};

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// It was executed.
    Executed {
        /// What it yielded. Of an event: the event as it is now.
        result: Executed,
        /// Where it was decided.
        receipt: Option<api::Receipt>,
    },
    /// The region decided "no".
    Rejected {
        /// Its answer.
        no: Box<Failure>,
        /// Where it was decided.
        receipt: Option<api::Receipt>,
    },
    /// It was never decided and will not be: the deadlines of all its attempts have passed.
    NeverDecided,
    /// It was not decided so far; a copy that is still under way may be, until about then. Ask again later, or send
    /// the same request with the same id.
    Open {
        /// When a copy under way is void, by this machine's clock.
        until: SystemTime,
    },
    /// The region no longer remembers ids as old as this one: look at what the request was about instead.
    Forgotten,
}

/// What an executed request yielded.
#[derive(Debug, Clone, PartialEq)]
pub enum Executed {
    /// An event was created or updated.
    Event(Box<api::Event>),
    /// Places were held.
    Hold(api::Hold),
    /// Tickets were bought, or a hold was confirmed.
    Purchase(api::Purchase),
    /// The ticket of this name was cancelled.
    CancelledTicket(String),
    /// The hold of this name was released.
    ReleasedHold(String),
}

impl Client {
    /// Requests that were written down and have no known outcome, oldest first: of calls that ended in doubt, that
    /// were dropped, that are still running, or that an earlier process left behind.
    pub fn unfinished(&self) -> Vec<Sent> {
        self.journal.unfinished()
    }

    /// Asks what became of a request that [`unfinished`](Self::unfinished) lists, and takes it off that list unless
    /// the answer is [`Resolution::Open`]. Regions tell only the principal who sent it: with a token of another,
    /// the request looks as if it had never been decided.
    ///
    /// # Errors
    /// [`Error::NotDecided`] when the journal does not have it, or when nobody could say; it stays listed then.
    pub async fn resolve(&self, request_id: RequestId) -> Result<Resolution, Error> {
        let invalid =
            |why: String| Error::NotDecided { request_id: Some(request_id), why: NotDecided::Invalid(why) };
        let sent = self.journal.unfinished().into_iter().find(|sent| sent.request_id == request_id);
        let sent = sent.ok_or_else(|| {
            invalid(format!(
                "request {request_id} is not in the journal: `get_outcome` asks for any request if the region is \
                 known"
            ))
        })?;
        // Looked up before asking: what is void now cannot be decided between the answer and a later look.
        let until = UNIX_EPOCH + Duration::from_millis(sent.expires_at_unix_ms) + LATE_COPY_MARGIN;
        let is_void = unix_ms(SystemTime::now()) >= unix_ms(until);
        let request =
            v1::GetOutcomeRequest { parent: sent.region().to_owned(), request_id: request_id.to_string() };
        let answer = self.read(request).await?;
        let resolution = match answer.state() {
            v1::OutcomeState::Undecided if is_void => Resolution::NeverDecided,
            v1::OutcomeState::Undecided => return Ok(Resolution::Open { until }),
            v1::OutcomeState::Forgotten => Resolution::Forgotten,
            v1::OutcomeState::Decided => decided(answer).ok_or_else(|| {
                invalid(format!(
                    "the gateway says that {request_id} was decided, but not how: update this crate"
                ))
            })?,
            v1::OutcomeState::Unspecified => {
                return Err(invalid(format!(
                    "the gateway does not say what became of {request_id}: report it"
                )));
            }
        };
        self.journal.end(&[request_id]);
        Ok(resolution)
    }
}

fn decided(answer: v1::GetOutcomeResponse) -> Option<Resolution> {
    let receipt = answer.receipt;
    let result = match answer.result? {
        Remembered::Rejection(no) => {
            return Some(Resolution::Rejected { no: Box::new(Failure::of_rejection(&no, "")), receipt });
        }
        Remembered::Event(event) => Executed::Event(Box::new(event)),
        Remembered::Hold(hold) => Executed::Hold(hold),
        Remembered::Purchase(purchase) => Executed::Purchase(purchase),
        Remembered::CancelledTicket(name) => Executed::CancelledTicket(name),
        Remembered::ReleasedHold(name) => Executed::ReleasedHold(name),
    };
    Some(Resolution::Executed { result, receipt })
}
