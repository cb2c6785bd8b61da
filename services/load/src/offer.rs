//! Makes the events that a run sells. It must never take an answer without the event's name for a success.

use std::time::Duration;

use tidewall_proto::v1;
use tonic::{Code, Status};
use uuid::Uuid;

use crate::pool::{Pool, Token};
use crate::reading::{present, repeat};

/// What each place costs, in cents.
const PRICE: i64 = 4_900;

/// An event to be made.
#[derive(Debug, Clone)]
pub struct Offer<'a> {
    /// Resource name of the region.
    pub region: &'a str,
    /// Id; empty: the region chooses one.
    pub event_id: &'a str,
    /// Name for people.
    pub display_name: &'a str,
    /// Most places one buyer may have.
    pub quota: i32,
    /// Tiers by id, with their capacities.
    pub tiers: Vec<(&'a str, i64)>,
}

impl Offer<'_> {
    /// Makes the event, and repeats that for up to `patience` while nothing is decided. Returns its resource name.
    ///
    /// # Errors
    /// The last answer, or `DATA_LOSS` when the answer names no event.
    pub async fn make(&self, pool: &Pool, organiser: &Token, patience: Duration) -> Result<String, Status> {
        let message = self.message();
        let answer = repeat(patience, |slot| {
            let mut client = pool.events(slot);
            let request = pool.request(organiser, message.clone());
            async move { pool.bounded(client.create_event(request)).await }
        })
        .await?;
        named(present(answer.event)?)
    }

    /// The request, with an id that is the same for all repetitions.
    fn message(&self) -> v1::CreateEventRequest {
        let tier = |(id, capacity): &(&str, i64)| v1::Tier {
            tier_id: (*id).to_owned(),
            display_name: (*id).to_owned(),
            capacity: *capacity,
            price: Some(v1::Money { currency_code: "EUR".to_owned(), minor_units: PRICE }),
            ..v1::Tier::default()
        };
        v1::CreateEventRequest {
            parent: self.region.to_owned(),
            event_id: self.event_id.to_owned(),
            event: Some(v1::Event {
                display_name: self.display_name.to_owned(),
                tiers: self.tiers.iter().map(tier).collect(),
                quota_per_buyer: self.quota,
                ..v1::Event::default()
            }),
            request_id: Uuid::now_v7().to_string(),
        }
    }
}

/// Takes the name out of an event.
fn named(event: v1::Event) -> Result<String, Status> {
    if event.name.is_empty() {
        return Err(Status::new(Code::DataLoss, "the answer names no event"));
    }
    Ok(event.name)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_event_without_a_name_is_an_error() {
        assert_eq!(named(v1::Event::default()).unwrap_err().code(), Code::DataLoss);
        let event = v1::Event { name: "regions/east/events/gala".to_owned(), ..v1::Event::default() };
        assert_eq!(named(event).unwrap(), "regions/east/events/gala");
    }
}
