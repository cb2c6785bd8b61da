//! Reads events and their tickets back through the API, page by page. Only queries; it must never take an answer that
//! lacks what was asked for as an empty one: a check of nothing finds nothing.

use std::time::Duration;

use tidewall_proto::v1;
use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::audit::{SeenTicket, SeenTier, Stamp};
use crate::meaning;
use crate::pool::{Pool, Token};

/// Tickets on a page, the most that the API gives.
const PAGE: i32 = 5_000;
/// Pause before a call is repeated, when the answer names none.
const REPEAT_PAUSE: Duration = Duration::from_millis(100);

/// Repeats a call, each time on the next connection, until it is answered, it cannot succeed, or time is up. `call` gets
/// the number of the connection to use.
///
/// # Errors
/// The last answer.
pub async fn repeat<T, F>(patience: Duration, mut call: impl FnMut(u64) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let until = Instant::now() + patience;
    for slot in 0_u64.. {
        let status = match call(slot).await {
            Ok(answer) => return Ok(answer),
            Err(status) => status,
        };
        let pause = status.get_details_retry_info().and_then(|info| info.retry_delay).unwrap_or(REPEAT_PAUSE);
        if !meaning::worth_repeating(&status) || Instant::now() + pause > until {
            return Err(status);
        }
        tokio::time::sleep(pause).await;
    }
    Err(Status::deadline_exceeded("repeated too often"))
}

/// Takes the event out of an answer.
///
/// # Errors
/// `DATA_LOSS` when the answer carries none.
pub(crate) fn present(event: Option<v1::Event>) -> Result<v1::Event, Status> {
    event.ok_or_else(|| Status::new(Code::DataLoss, "the answer carries no event"))
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
            .decide_time
            .as_ref()
            .map(|at| at.seconds.saturating_mul(1_000).saturating_add(i64::from(at.nanos / 1_000_000)))
            .unwrap_or_default(),
    }
}

/// The tiers of an event in the audit's words; `planned` says with which capacity a tier was created, 0 when that does not
/// matter.
pub fn seen_tiers(event: &v1::Event, planned: impl Fn(&str) -> i64) -> Vec<SeenTier> {
    event
        .tiers
        .iter()
        .map(|tier| SeenTier {
            tier_id: tier.tier_id.clone(),
            capacity: tier.capacity,
            planned: planned(&tier.tier_id),
            free: tier.free,
            held: tier.held,
            sold: tier.sold,
        })
        .collect()
}

/// Reads as one caller, and repeats what was not answered.
#[derive(Debug, Clone, Copy)]
pub struct Reader<'a> {
    pool: &'a Pool,
    token: &'a Token,
    patience: Duration,
}

impl<'a> Reader<'a> {
    /// Reads with this token; each call is repeated for up to `patience`.
    pub fn new(pool: &'a Pool, token: &'a Token, patience: Duration) -> Self {
        Self { pool, token, patience }
    }

    /// The event of this resource name, as its region has it now.
    ///
    /// # Errors
    /// The last answer, or `DATA_LOSS` when the answer carries no event.
    pub async fn event(&self, name: &str) -> Result<v1::Event, Status> {
        let message = v1::GetEventRequest {
            name: name.to_owned(),
            consistency: v1::ReadConsistency::Linearizable as i32,
            max_age: None,
        };
        let answer = repeat(self.patience, |slot| {
            let mut client = self.pool.events(slot);
            let request = self.pool.request(self.token, message.clone());
            async move { self.pool.bounded(client.get_event(request)).await }
        })
        .await?;
        present(answer.event)
    }

    /// Everybody's tickets of the event of this resource name, in the order of the list; `tell` hears how many each page
    /// brought.
    ///
    /// # Errors
    /// The last answer, or `DATA_LOSS` when a page names itself as the next page.
    pub async fn tickets(&self, parent: &str, mut tell: impl FnMut(u64)) -> Result<Vec<SeenTicket>, Status> {
        let mut pages = Pages::default();
        loop {
            let message = v1::ListTicketsRequest {
                parent: parent.to_owned(),
                owner: "*".to_owned(),
                page_size: PAGE,
                page_token: pages.next.clone(),
                ..v1::ListTicketsRequest::default()
            };
            let page = repeat(self.patience, |slot| {
                let mut client = self.pool.tickets(slot);
                let request = self.pool.request(self.token, message.clone());
                async move { self.pool.bounded(client.list_tickets(request)).await }
            })
            .await?;
            tell(page.tickets.len() as u64);
            if !pages.take(page.tickets.into_iter().map(seen_ticket), page.next_page_token)? {
                return Ok(pages.items);
            }
        }
    }
}

/// A list, as far as its pages have come.
#[derive(Debug)]
pub(crate) struct Pages<T> {
    pub(crate) items: Vec<T>,
    /// Token of the page to ask for.
    pub(crate) next: String,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self { items: Vec::new(), next: String::new() }
    }
}

impl<T> Pages<T> {
    /// Takes what was on the page that was asked for, and says whether another one follows.
    ///
    /// # Errors
    /// `DATA_LOSS` when the page names itself as the next one.
    pub(crate) fn take(&mut self, items: impl IntoIterator<Item = T>, next: String) -> Result<bool, Status> {
        self.items.extend(items);
        if next.is_empty() {
            return Ok(false);
        }
        if next == self.next {
            return Err(Status::new(Code::DataLoss, "a page of a list names itself as the next page"));
        }
        self.next = next;
        Ok(true)
    }
}

/// A ticket in the audit's words.
fn seen_ticket(ticket: v1::Ticket) -> SeenTicket {
    SeenTicket {
        valid: ticket.state == v1::TicketState::Valid as i32,
        name: ticket.name,
        owner: ticket.owner,
        tier_id: ticket.tier_id,
        seat: ticket.seat,
        request_id: ticket.request_id,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_answer_without_an_event_is_an_error_and_no_empty_event() {
        assert_eq!(present(None).unwrap_err().code(), Code::DataLoss);
        let event = v1::Event { name: "regions/east/events/gala".to_owned(), ..v1::Event::default() };
        assert_eq!(present(Some(event.clone())).unwrap(), event);
    }

    #[test]
    fn pages_are_followed_to_the_last_one() {
        let mut pages = Pages::default();
        assert!(pages.take(["1"], "a".to_owned()).unwrap());
        assert_eq!(pages.next, "a");
        assert!(pages.take(["2"], "b".to_owned()).unwrap());
        assert_eq!(pages.next, "b");
        assert!(!pages.take(["3"], String::new()).unwrap());
        assert_eq!(pages.items, ["1", "2", "3"]);
    }

    #[test]
    fn a_page_that_names_itself_as_the_next_one_is_an_error_and_no_end() {
        let mut pages = Pages::default();
        assert!(pages.take(["1"], "a".to_owned()).unwrap());
        let error = pages.take(["2"], "a".to_owned()).unwrap_err();
        assert_eq!(error.code(), Code::DataLoss);
        assert!(error.message().contains("names itself"), "{error}");
    }

    #[tokio::test]
    async fn only_what_can_succeed_is_repeated_and_only_while_there_is_patience() {
        let patient = Duration::from_secs(60);
        let answered = repeat(patient, async |slot| match slot {
            0 | 1 => Err(Status::unavailable("not yet")),
            _ => Ok(slot),
        });
        assert_eq!(answered.await.unwrap(), 2, "each attempt is made on the next connection");
        for (patience, refusal) in
            [(patient, Status::not_found("no such event")), (Duration::ZERO, Status::unavailable("down"))]
        {
            let mut calls = 0;
            let refused = repeat::<(), _>(patience, |_| {
                calls += 1;
                std::future::ready(Err(refusal.clone()))
            });
            assert_eq!(refused.await.unwrap_err().code(), refusal.code());
            assert_eq!(calls, 1, "{refusal}");
        }
    }
}
