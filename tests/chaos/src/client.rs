//! One caller of the public API: makes a call with its token and a deadline, and says what came of it.
//!
//! A call goes to the gateway once. It is sent again, with the same request id, only after a refusal that names a time to
//! come back, and when the gateway has closed its connection, which is counted: holding and repeating through a
//! failover is the gateway's work, and what it fails at must be seen.

use std::time::Duration;

use tidewall_load::audit::Stamp;
use tidewall_load::meaning::{Meaning, connection_closed, of_status, reason};
use tidewall_load::pool::{Pool, Token, bearer};
use tidewall_load::{LoadError, Target, stamp};
use tidewall_proto::v1;
use tidewall_proto::v1::get_outcome_response::Result as Outcome;
use tokio::time::Instant;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::history::{Answer, Ask, Stock, Yes};

/// Pause after a refusal that names no time.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// A call whose connection was closed under it is sent again at most so often.
const RESENT_MAX: u32 = 2;
/// How long a hold lasts, seconds: longer than any run with it.
const HOLD_SECONDS: i64 = 3_600;

/// Calls as one subject.
#[derive(Debug, Clone)]
pub struct Client {
    pool: Pool,
    token: Token,
    subject: String,
}

impl Client {
    /// A client with a token of its own.
    ///
    /// # Errors
    /// [`LoadError`] when the token cannot be sent.
    pub fn new(pool: &Pool, target: &Target, subject: &str, roles: &[&str]) -> Result<Self, LoadError> {
        let token = bearer(subject, &(target.mint)(subject, roles))?;
        Ok(Self { pool: pool.clone(), token, subject: subject.to_owned() })
    }

    /// The token's subject.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The token.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// Makes a call; after a refusal for load it comes back until the deadline that the pool has for one call.
    pub async fn call(&self, ask: &Ask, request_id: Option<Uuid>, region: &str, slot: u64) -> Answer {
        self.call_counted(ask, request_id, region, slot).await.0
    }

    /// Makes a call, and says how often it was sent again because its connection was closed.
    pub async fn call_counted(
        &self,
        ask: &Ask,
        request_id: Option<Uuid>,
        region: &str,
        slot: u64,
    ) -> (Answer, u32) {
        let until = Instant::now() + self.pool.deadline();
        let mut resent = 0;
        loop {
            let status = match self.once(ask, request_id, region, slot).await {
                Ok((what, receipt)) => return (Answer::Yes { what, receipt }, resent),
                Err(status) => status,
            };
            let answer = doubted(answer(&status), resent > 0 && ask.is_write());
            let pause = match (&answer, of_status(&status).meaning) {
                (_, Meaning::Overloaded { after }) => after.unwrap_or(REFUSED_PAUSE),
                _ if connection_closed(&status) && resent < RESENT_MAX && Instant::now() < until => {
                    resent += 1;
                    continue;
                }
                _ => return (answer, resent),
            };
            if Instant::now() + pause >= until {
                return (answer, resent);
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn once(
        &self,
        ask: &Ask,
        request_id: Option<Uuid>,
        region: &str,
        slot: u64,
    ) -> Result<(Yes, Option<Stamp>), Status> {
        let pool = &self.pool;
        let request_id = request_id.map(|id| id.to_string()).unwrap_or_default();
        let receipt = |receipt: &Option<v1::Receipt>| receipt.as_ref().map(stamp);
        match ask {
            Ask::Buy { event, tier, quantity } => {
                let message = v1::BuyTicketsRequest {
                    parent: event.clone(),
                    tier_id: tier.clone(),
                    quantity: i32::try_from(*quantity).unwrap_or(i32::MAX),
                    seats: Vec::new(),
                    request_id,
                };
                let mut client = pool.tickets(slot);
                let answer = pool.bounded(client.buy_tickets(pool.request(&self.token, message))).await?;
                Ok((tickets(answer.purchase), receipt(&answer.receipt)))
            }
            Ask::Hold { event, tier, quantity } => {
                let message = v1::HoldTicketsRequest {
                    parent: event.clone(),
                    tier_id: tier.clone(),
                    quantity: i32::try_from(*quantity).unwrap_or(i32::MAX),
                    seats: Vec::new(),
                    ttl: Some(prost_types::Duration { seconds: HOLD_SECONDS, nanos: 0 }),
                    request_id,
                };
                let mut client = pool.tickets(slot);
                let answer = pool.bounded(client.hold_tickets(pool.request(&self.token, message))).await?;
                Ok((Yes::Hold(answer.hold.unwrap_or_default().name), receipt(&answer.receipt)))
            }
            Ask::Confirm { hold, .. } => {
                let message = v1::ConfirmHoldRequest { name: hold.clone(), request_id };
                let mut client = pool.tickets(slot);
                let answer = pool.bounded(client.confirm_hold(pool.request(&self.token, message))).await?;
                Ok((tickets(answer.purchase), receipt(&answer.receipt)))
            }
            Ask::Release { hold } => {
                let message = v1::ReleaseHoldRequest { name: hold.clone(), request_id };
                let mut client = pool.tickets(slot);
                let answer = pool.bounded(client.release_hold(pool.request(&self.token, message))).await?;
                Ok((Yes::Undone, receipt(&answer.receipt)))
            }
            Ask::Cancel { ticket } => {
                let message = v1::CancelTicketRequest { name: ticket.clone(), request_id };
                let mut client = pool.tickets(slot);
                let answer = pool.bounded(client.cancel_ticket(pool.request(&self.token, message))).await?;
                Ok((Yes::Undone, receipt(&answer.receipt)))
            }
            Ask::Read { event, age } => {
                let max_age = prost_types::Duration::try_from(Duration::from_micros(*age)).ok();
                let (consistency, max_age) = match age {
                    0 => (v1::ReadConsistency::Linearizable, None),
                    _ => (v1::ReadConsistency::Stale, max_age),
                };
                let message =
                    v1::GetEventRequest { name: event.clone(), consistency: consistency.into(), max_age };
                let mut client = pool.events(slot);
                let answer = pool.bounded(client.get_event(pool.request(&self.token, message))).await?;
                let event = answer.event.ok_or_else(|| Status::data_loss("the answer has no event"))?;
                Ok((Yes::Stock(stock(&event)), None))
            }
            Ask::Outcome { of } => {
                let message = v1::GetOutcomeRequest { parent: region.to_owned(), request_id: of.to_string() };
                let mut client = pool.outcomes(slot);
                let answer = pool.bounded(client.get_outcome(pool.request(&self.token, message))).await?;
                Ok(decided(answer))
            }
            Ask::Seal { of } => {
                let message =
                    v1::SealRequestIdRequest { parent: region.to_owned(), request_id: of.to_string() };
                let mut client = pool.outcomes(slot);
                let answer = pool.bounded(client.seal_request_id(pool.request(&self.token, message))).await?;
                let outcome = answer.outcome.ok_or_else(|| Status::data_loss("the seal has no outcome"))?;
                match outcome.state() {
                    v1::OutcomeState::Decided | v1::OutcomeState::Sealed => Ok(decided(outcome)),
                    state => Err(Status::data_loss(format!("a seal left {state:?}"))),
                }
            }
        }
    }
}

/// Stock of all tiers of an event.
pub fn stock(event: &v1::Event) -> Vec<Stock> {
    event
        .tiers
        .iter()
        .map(|tier| Stock { tier: tier.tier_id.clone(), free: tier.free, held: tier.held, sold: tier.sold })
        .collect()
}

fn tickets(purchase: Option<v1::Purchase>) -> Yes {
    Yes::Tickets(purchase.unwrap_or_default().tickets)
}

/// What was decided under a request id, if anything.
fn decided(answer: v1::GetOutcomeResponse) -> (Yes, Option<Stamp>) {
    let decided = answer.state() == v1::OutcomeState::Decided;
    let receipt = answer.receipt.as_ref().map(stamp);
    let what = if decided { answer.result.map(outcome) } else { None };
    (Yes::Outcome(what.map(Box::new)), receipt)
}

fn outcome(outcome: Outcome) -> Yes {
    match outcome {
        Outcome::Purchase(purchase) => tickets(Some(purchase)),
        Outcome::Hold(hold) => Yes::Hold(hold.name),
        Outcome::Event(event) => Yes::Stock(stock(&event)),
        Outcome::CancelledTicket(_) | Outcome::ReleasedHold(_) => Yes::Undone,
        // What nobody here asks for: the checks have no place for it.
        Outcome::ChangedAccount(name) | Outcome::DeletedEvent(name) | Outcome::DeletedWebhook(name) => {
            Yes::Rejected(name)
        }
        Outcome::Webhook(webhook) => Yes::Rejected(webhook.name),
        Outcome::Rejection(rejection) => Yes::Rejected(rejection.reason),
    }
}

/// What is known of a call of which an earlier copy may have been decided: of the copies that were surely not decided
/// nothing follows.
fn doubted(answer: Answer, in_doubt: bool) -> Answer {
    match answer {
        Answer::Refused(said) | Answer::Undecided(said) if in_doubt => {
            Answer::Unknown(format!("an earlier copy may have been decided; {said}"))
        }
        answer => answer,
    }
}

/// What an answer other than success says about the call.
fn answer(status: &Status) -> Answer {
    let read = of_status(status);
    let said = || format!("{}: {}", read.key, status.message());
    match read.meaning {
        Meaning::SoldOut | Meaning::Refused => Answer::No(reason(status)),
        Meaning::Overloaded { .. } => Answer::Refused(said()),
        // The two errors of which the API says that nothing was decided.
        Meaning::Unknown if matches!(reason(status).as_str(), "REGION_UNAVAILABLE" | "EXPIRED") => {
            Answer::Undecided(said())
        }
        Meaning::Unknown => Answer::Unknown(said()),
        // A hold or ticket that was used up meanwhile.
        Meaning::Failed if status.code() == Code::NotFound => Answer::No(reason(status)),
        Meaning::Failed => Answer::Nonsense(said()),
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    fn status(code: Code, reason: &str) -> Status {
        let mut details = ErrorDetails::new();
        if !reason.is_empty() {
            details.set_error_info(reason, "tidewall", std::collections::HashMap::<String, String>::new());
        }
        Status::with_error_details(code, "words", details)
    }

    #[test]
    fn only_what_was_surely_not_decided_counts_as_that() {
        assert_eq!(answer(&status(Code::FailedPrecondition, "SOLD_OUT")), Answer::No("SOLD_OUT".into()));
        assert_eq!(answer(&status(Code::NotFound, "HOLD_NOT_FOUND")), Answer::No("HOLD_NOT_FOUND".into()));
        assert!(matches!(answer(&status(Code::ResourceExhausted, "OVERLOADED")), Answer::Refused(_)));
        assert!(matches!(answer(&status(Code::Unavailable, "REGION_UNAVAILABLE")), Answer::Undecided(_)));
        for unknown in [
            status(Code::DeadlineExceeded, "OUTCOME_UNKNOWN"),
            status(Code::Unavailable, ""),
            status(Code::Internal, ""),
            status(Code::Cancelled, ""),
        ] {
            assert!(matches!(answer(&unknown), Answer::Unknown(_)), "{unknown:?}");
            assert!(answer(&unknown).is_error());
        }
        assert!(matches!(answer(&status(Code::Unauthenticated, "TOKEN")), Answer::Nonsense(_)));
        assert!(!answer(&status(Code::ResourceExhausted, "OVERLOADED")).is_error());
        let refused = || answer(&status(Code::ResourceExhausted, "OVERLOADED"));
        assert_eq!(doubted(refused(), false), refused());
        assert!(matches!(doubted(refused(), true), Answer::Unknown(_)));
        assert_eq!(doubted(Answer::No("SOLD_OUT".into()), true), Answer::No("SOLD_OUT".into()));
        // An answer without what was asked for is no good answer.
        assert!(answer(&status(Code::DataLoss, "")).is_error());
    }
}
