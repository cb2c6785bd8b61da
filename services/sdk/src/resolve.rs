//! What became of requests whose calls ended in doubt, also those of an earlier process. Asking executes nothing; sealing makes
//! the answer final.

use tidewall_proto::v1;
use tidewall_proto::v1::get_outcome_response::Result as Remembered;

use crate::client::Client;
use crate::error::{Error, NotDecided};
use crate::failure::Failure;
use crate::journal::Sent;
use crate::{RequestId, api};

/// What became of a request.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// It was executed.
    Executed {
        /// What it yielded. Of an event: the event as it was then.
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
    /// It was never decided and will not be: its id is sealed.
    NeverDecided,
    /// It was not decided so far; a copy that is still under way may be. [`Client::seal`] makes it final, or send the same
    /// request with the same id.
    Open,
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
    /// The event of this name was deleted.
    DeletedEvent(String),
    /// A webhook was made or changed: as it was then.
    Webhook(Box<v1::Webhook>),
    /// A webhook has ended: its name.
    DeletedWebhook(String),
    /// The account of this name was changed.
    ChangedAccount(String),
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
        let parent = self.listed(request_id)?.region().to_owned();
        let request = v1::GetOutcomeRequest { parent, request_id: request_id.to_string() };
        let answer = self.read(request).await?;
        self.conclude(request_id, answer)
    }

    /// Makes final what became of a request that [`unfinished`](Self::unfinished) lists, and takes it off that list: it says
    /// what was decided, or has the region decide that nothing ever will be under this id, whatever copies of the request are
    /// still under way. Never [`Resolution::Open`].
    ///
    /// # Errors
    /// As [`resolve`](Self::resolve).
    pub async fn seal(&self, request_id: RequestId) -> Result<Resolution, Error> {
        let parent = self.listed(request_id)?.region().to_owned();
        let request = v1::SealRequestIdRequest { parent, request_id: request_id.to_string() };
        let answer = self.read(request).await?;
        let nothing =
            || invalid(request_id, format!("the gateway sealed {request_id} and does not say more"));
        self.conclude(request_id, answer.outcome.ok_or_else(nothing)?)
    }

    /// A request that the journal lists.
    fn listed(&self, request_id: RequestId) -> Result<Sent, Error> {
        let sent = self.journal.unfinished().into_iter().find(|sent| sent.request_id == request_id);
        sent.ok_or_else(|| {
            let why = format!(
                "request {request_id} is not in the journal: `get_outcome` asks for any request if the region is \
                 known"
            );
            invalid(request_id, why)
        })
    }

    /// What an answer of the region means, and whether the journal is done with the request.
    fn conclude(&self, request_id: RequestId, answer: v1::GetOutcomeResponse) -> Result<Resolution, Error> {
        let resolution = match answer.state() {
            v1::OutcomeState::Undecided => return Ok(Resolution::Open),
            v1::OutcomeState::Sealed => Resolution::NeverDecided,
            v1::OutcomeState::Forgotten => Resolution::Forgotten,
            v1::OutcomeState::Decided => decided(answer).ok_or_else(|| {
                let why =
                    format!("the gateway says that {request_id} was decided, but not how: update this crate");
                invalid(request_id, why)
            })?,
            v1::OutcomeState::Unspecified => {
                let why = format!("the gateway does not say what became of {request_id}: report it");
                return Err(invalid(request_id, why));
            }
        };
        self.journal.end(&[request_id]);
        Ok(resolution)
    }
}

fn invalid(request_id: RequestId, why: String) -> Error {
    Error::NotDecided { request_id: Some(request_id), why: NotDecided::Invalid(why) }
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
        Remembered::DeletedEvent(name) => Executed::DeletedEvent(name),
        Remembered::Webhook(webhook) => Executed::Webhook(Box::new(webhook)),
        Remembered::DeletedWebhook(name) => Executed::DeletedWebhook(name),
        Remembered::ChangedAccount(name) => Executed::ChangedAccount(name),
    };
    Some(Resolution::Executed { result, receipt })
}
