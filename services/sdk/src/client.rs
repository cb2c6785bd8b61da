//! The client: a method for each method of the API. Reads are repeated; mutations get an id, are written down, and
//! are then repeated with that id. No mutation is ever sent with two ids, nor before it is in the journal.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use tidewall_proto::v1;
use tokio::time::Instant;

use crate::RequestId;
use crate::budget::Bucket;
use crate::endpoints::Endpoints;
use crate::error::{ConnectError, Error, NotDecided};
use crate::journal::{RequestJournal, Sent, region_of};
use crate::options::Options;
use crate::pursuit::{Certainty, Doubt, Failed, Policy, pursue};
use crate::rpc::{Mutation, Rpc};
use crate::seen::SeenRegions;
use crate::token::TokenSource;
use crate::wire::{Carrier, Course, Unary};

/// About 300 kB.
const TICKETS_PER_PAGE: i32 = 1000;

/// What a mutation yielded.
#[derive(Debug, Clone, PartialEq)]
pub struct Done<T> {
    /// Its id.
    pub request_id: RequestId,
    /// The answer, with the receipt in it.
    pub answer: T,
    /// How often it was sent; it was executed once.
    pub attempts: u32,
}

/// A client of a Tidewall cluster, for one principal. Cloning it is cheap; clones share connections, retry
/// budget and journal.
///
/// Requests are the messages of [`api`](crate::api). Of mutations `request_id` is best left empty: the client makes
/// one and keeps it. One that is set (to go on with an earlier request) is used as it is.
///
/// A call whose future is dropped ends in doubt like any other: the journal goes on listing it.
#[derive(Clone)]
pub struct Client {
    pub(crate) carrier: Arc<Carrier>,
    pub(crate) journal: Arc<dyn RequestJournal>,
    deadline: Duration,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("deadline", &self.deadline).finish_non_exhaustive()
    }
}

impl Client {
    /// A client of the cluster behind these gateways (`http://host:port` each). It connects with the first call and
    /// reconnects by itself, so it may be made before the cluster is up. Call it within a tokio runtime.
    ///
    /// # Errors
    /// When an address or an option cannot work.
    pub fn connect<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
        tokens: impl TokenSource + 'static,
        options: Options,
    ) -> Result<Self, ConnectError> {
        options.check()?;
        let addresses: Vec<String> = endpoints.into_iter().map(Into::into).collect();
        let endpoints = Arc::new(Endpoints::new(&addresses, &options)?);
        let policy = Arc::new(Policy {
            attempt_timeout: options.attempt_timeout,
            backoff: options.backoff,
            bucket: Bucket::new(options.budget),
        });
        let (tokens, seen) = (Arc::new(tokens), SeenRegions::default());
        let carrier = Arc::new(Carrier { endpoints, policy, tokens, seen });
        Ok(Self { carrier, journal: options.journal, deadline: options.deadline })
    }

    /// The same client with another deadline for its calls, all attempts and pauses together.
    #[must_use]
    pub fn within(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// A client of another principal over the same connections and with the same retry budget. It needs a journal of
    /// its own: ids belong to the principal.
    #[must_use]
    pub fn of_principal(
        &self,
        tokens: impl TokenSource + 'static,
        journal: impl RequestJournal + 'static,
    ) -> Self {
        let carrier = Carrier {
            endpoints: self.carrier.endpoints.clone(),
            policy: self.carrier.policy.clone(),
            tokens: Arc::new(tokens),
            seen: SeenRegions::default(),
        };
        Self { carrier: Arc::new(carrier), journal: Arc::new(journal), deadline: self.deadline }
    }

    /// When a call that begins now must end.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.deadline
    }

    /// What the journal says of requests that begin now.
    pub(crate) fn sent(&self, request_id: RequestId, method: &str, resource: &str) -> Sent {
        Sent {
            request_id,
            method: method.to_owned(),
            resource: resource.to_owned(),
            expires_at_unix_ms: unix_ms(SystemTime::now() + self.deadline),
        }
    }

    /// A call that changes nothing.
    pub(crate) async fn read<R: Rpc>(&self, message: R) -> Result<R::Answer, Error> {
        let course = Mutex::new(Course::default());
        let wire = Unary { carrier: &self.carrier, message, identity: None, course };
        match pursue(&wire, &self.carrier.policy, self.deadline(), false, Doubt::default()).await {
            Ok(reached) => Ok(reached.answer),
            Err(failed) => Err(ended(failed, None)),
        }
    }

    /// A call that changes something: id, journal, then attempts.
    async fn mutate<R: Mutation>(&self, mut message: R) -> Result<Done<R::Answer>, Error> {
        let deadline = self.deadline();
        let doubt = Doubt::of_a_request_with(message.request_id());
        let request_id = take_id(message.request_id())?;
        let resource = message.resource().to_owned();
        let begun = self.journal.begin(&[self.sent(request_id, R::METHOD, &resource)]).await;
        begun.map_err(|error| Error::NotDecided { request_id: Some(request_id), why: error.into() })?;
        let identity = Some((region_of(&resource).to_owned(), request_id));
        let course = Mutex::new(Course::default());
        let wire = Unary { carrier: &self.carrier, message, identity, course };
        let result = pursue(&wire, &self.carrier.policy, deadline, true, doubt).await;
        if !matches!(&result, Err(Failed { certainty: Certainty::Unknown, .. })) {
            self.journal.end(&[request_id]);
        }
        match result {
            Ok(reached) => Ok(Done { request_id, answer: reached.answer, attempts: reached.attempts }),
            Err(failed) => Err(ended(failed, Some(request_id))),
        }
    }

    /// Creates an event in its home region. Needs the role `organiser`.
    ///
    /// # Errors
    /// As every mutation: decided "no", not decided, or unknown.
    pub async fn create_event(
        &self,
        request: v1::CreateEventRequest,
    ) -> Result<Done<v1::CreateEventResponse>, Error> {
        self.mutate(request).await
    }

    /// Changes the fields of an event that the mask names. Without an `event.revision`, a change that somebody
    /// else makes between two attempts is not noticed.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn update_event(
        &self,
        request: v1::UpdateEventRequest,
    ) -> Result<Done<v1::UpdateEventResponse>, Error> {
        self.mutate(request).await
    }

    /// Deletes an event of which nothing was ever held or sold.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn delete_event(
        &self,
        request: v1::DeleteEventRequest,
    ) -> Result<Done<v1::DeleteEventResponse>, Error> {
        self.mutate(request).await
    }

    /// Takes places out of the stock for a while.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn hold_tickets(
        &self,
        request: v1::HoldTicketsRequest,
    ) -> Result<Done<v1::HoldTicketsResponse>, Error> {
        self.mutate(request).await
    }

    /// Turns a hold into tickets.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn confirm_hold(
        &self,
        request: v1::ConfirmHoldRequest,
    ) -> Result<Done<v1::ConfirmHoldResponse>, Error> {
        self.mutate(request).await
    }

    /// Gives the places of a hold back.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn release_hold(
        &self,
        request: v1::ReleaseHoldRequest,
    ) -> Result<Done<v1::ReleaseHoldResponse>, Error> {
        self.mutate(request).await
    }

    /// Buys: hold and confirm in one step.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn buy_tickets(
        &self,
        request: v1::BuyTicketsRequest,
    ) -> Result<Done<v1::BuyTicketsResponse>, Error> {
        self.mutate(request).await
    }

    /// Cancels a ticket; its place is on sale again.
    ///
    /// # Errors
    /// As every mutation.
    pub async fn cancel_ticket(
        &self,
        request: v1::CancelTicketRequest,
    ) -> Result<Done<v1::CancelTicketResponse>, Error> {
        self.mutate(request).await
    }

    /// An event as it is now.
    ///
    /// # Errors
    /// [`Error::Decided`] when there is none, [`Error::NotDecided`] when nobody could say.
    pub async fn get_event(&self, request: v1::GetEventRequest) -> Result<v1::GetEventResponse, Error> {
        self.read(request).await
    }

    /// One page of the events of a region.
    ///
    /// # Errors
    /// As every read.
    pub async fn list_events(&self, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Error> {
        self.read(request).await
    }

    /// A hold that lives.
    ///
    /// # Errors
    /// As every read.
    pub async fn get_hold(&self, request: v1::GetHoldRequest) -> Result<v1::GetHoldResponse, Error> {
        self.read(request).await
    }

    /// One page of the holds of an event that live.
    ///
    /// # Errors
    /// As every read.
    pub async fn list_holds(&self, request: v1::ListHoldsRequest) -> Result<v1::ListHoldsResponse, Error> {
        self.read(request).await
    }

    /// One page of the tickets that somebody has anywhere. Look at `unreachable`: the tickets of those regions are missing.
    ///
    /// # Errors
    /// As every read.
    pub async fn search_tickets(
        &self,
        request: v1::SearchTicketsRequest,
    ) -> Result<v1::SearchTicketsResponse, Error> {
        self.read(request).await
    }

    /// A ticket as it is now.
    ///
    /// # Errors
    /// As every read.
    pub async fn get_ticket(&self, request: v1::GetTicketRequest) -> Result<v1::GetTicketResponse, Error> {
        self.read(request).await
    }

    /// One page of tickets of an event.
    ///
    /// # Errors
    /// As every read.
    pub async fn list_tickets(
        &self,
        request: v1::ListTicketsRequest,
    ) -> Result<v1::ListTicketsResponse, Error> {
        self.read(request).await
    }

    /// All tickets of an event that the caller may see, page by page, each page within the client's deadline.
    /// `owner` as in [`v1::ListTicketsRequest`].
    ///
    /// # Errors
    /// As every read; pages that came before are dropped.
    pub async fn all_tickets(&self, event: &str, owner: &str) -> Result<Vec<v1::Ticket>, Error> {
        let mut tickets = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListTicketsRequest {
                parent: event.to_owned(),
                owner: owner.to_owned(),
                page_size: TICKETS_PER_PAGE,
                page_token: page_token.clone(),
                ..v1::ListTicketsRequest::default()
            };
            let page = self.read(request).await?;
            tickets.extend(page.tickets);
            if !turn_page(&mut page_token, page.next_page_token)? {
                return Ok(tickets);
            }
        }
    }

    /// All regions of the cluster, by name.
    ///
    /// # Errors
    /// As every read.
    pub async fn regions(&self) -> Result<Vec<v1::Region>, Error> {
        let mut regions = Vec::new();
        let mut page_token = String::new();
        loop {
            let request = v1::ListRegionsRequest { page_size: 0, page_token: page_token.clone() };
            let page = self.read(request).await?;
            regions.extend(page.regions);
            if !turn_page(&mut page_token, page.next_page_token)? {
                return Ok(regions);
            }
        }
    }

    /// One region.
    ///
    /// # Errors
    /// As every read.
    pub async fn get_region(&self, request: v1::GetRegionRequest) -> Result<v1::GetRegionResponse, Error> {
        self.read(request).await
    }

    /// What a region remembers of a request of this principal. [`resolve`](Self::resolve) says it in terms of what
    /// this client sent.
    ///
    /// # Errors
    /// As every read.
    pub async fn get_outcome(&self, request: v1::GetOutcomeRequest) -> Result<v1::GetOutcomeResponse, Error> {
        self.read(request).await
    }
}

/// Goes to the next page; says whether there is one.
fn turn_page(current: &mut String, next: String) -> Result<bool, Error> {
    if !next.is_empty() && next == *current {
        let why = NotDecided::Invalid("the gateway names a page as its own next page: report it".to_owned());
        return Err(Error::NotDecided { request_id: None, why });
    }
    *current = next;
    Ok(!current.is_empty())
}

/// The id in a request, or a fresh one that is put there.
pub(crate) fn take_id(field: &mut String) -> Result<RequestId, Error> {
    if field.is_empty() {
        let id = RequestId::fresh();
        *field = id.to_string();
        return Ok(id);
    }
    field.parse().map_err(|error| Error::NotDecided { request_id: None, why: NotDecided::RequestId(error) })
}

/// The error of a call.
pub(crate) fn ended(failed: Failed, request_id: Option<RequestId>) -> Error {
    let Failed { certainty, stop, last } = failed;
    match (certainty, request_id, last) {
        (Certainty::Decided, request_id, Some(no)) => Error::Decided { request_id, no },
        (Certainty::Unknown, Some(request_id), last) => Error::Unknown { request_id, stop, last },
        (_, request_id, last) => Error::NotDecided { request_id, why: NotDecided::Stopped { stop, last } },
    }
}

/// Unix time, ms; 0 before 1970.
pub(crate) fn unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
