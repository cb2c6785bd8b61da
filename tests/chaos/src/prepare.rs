//! What has to be there before a fault makes sense: connections, tokens, events. It repeats what was not decided, and never
//! records anything: nothing of it is part of a history.

use std::time::Duration;

use tidewall_load::Target;
use tidewall_load::pool::Pool;
use tidewall_load::verdict::worth_repeating;
use tidewall_proto::v1;
use tokio::time::Instant;
use tonic::Status;
use uuid::Uuid;

use crate::ChaosError;
use crate::client::Client;
use crate::history::{Planned, Traffic};

/// Deadline of a call of the load: what a client with patience gives.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of a call that asks about the state of things.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(3);
/// How long a step of the preparation is repeated.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Pause before a step is repeated.
const PAUSE: Duration = Duration::from_millis(100);
/// Connections to the gateway.
const CONNECTIONS: usize = 4;
/// Buyers of a run; they come again and again.
const SUBJECTS: usize = 48;
/// Quota of every event: nobody reaches it.
const QUOTA: i32 = 100_000;

/// Everybody who calls.
#[derive(Debug, Clone)]
pub struct People {
    /// Buyers.
    pub buyers: Vec<Client>,
    /// Who makes events and reads everything back.
    pub organiser: Client,
    /// Who looks at regions and nodes, and gives orders.
    pub operator: Client,
}

impl People {
    /// Makes tokens for everybody.
    ///
    /// # Errors
    /// When an endpoint or a token cannot be used.
    pub fn new(target: &Target) -> Result<Self, ChaosError> {
        let pool = Pool::new(target, CONNECTIONS, DEADLINE)?;
        let looks = Pool::new(target, 1, LOOK_DEADLINE)?;
        let buyers = (0..SUBJECTS)
            .map(|number| Client::new(&pool, target, &format!("chaos-{number:02}"), &[]))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            buyers,
            organiser: Client::new(&pool, target, "chaos-organiser", &["organiser"])?,
            operator: Client::new(&looks, target, "chaos-operator", &["operator"])?,
        })
    }
}

/// Repeats a call until it is answered, cannot succeed, or time is up.
///
/// # Errors
/// The last answer.
pub async fn repeat<T, F>(patience: Duration, mut call: impl FnMut(u64) -> F) -> Result<T, Status>
where
    F: Future<Output = Result<T, Status>>,
{
    let until = Instant::now() + patience;
    let mut slot = 0;
    loop {
        match call(slot).await {
            Ok(answer) => return Ok(answer),
            Err(status) if !worth_repeating(&status) || Instant::now() + PAUSE > until => return Err(status),
            Err(_) => tokio::time::sleep(PAUSE).await,
        }
        slot += 1;
    }
}

/// Creates an event with these tiers.
///
/// # Errors
/// When the region refuses, or does not answer within [`PATIENCE`].
pub async fn create_event(
    organiser: &Client,
    region: &str,
    traffic: Traffic,
    tiers: Vec<(String, i64)>,
) -> Result<Planned, ChaosError> {
    let id = Uuid::now_v7();
    let message = v1::CreateEventRequest {
        parent: region.to_owned(),
        event_id: String::new(),
        event: Some(v1::Event {
            display_name: format!("chaos {traffic:?}"),
            tiers: tiers
                .iter()
                .map(|(tier_id, capacity)| v1::Tier {
                    tier_id: tier_id.clone(),
                    display_name: tier_id.clone(),
                    capacity: *capacity,
                    price: Some(v1::Money { currency_code: "EUR".to_owned(), minor_units: 4_900 }),
                    ..v1::Tier::default()
                })
                .collect(),
            quota_per_buyer: QUOTA,
            ..v1::Event::default()
        }),
        request_id: id.to_string(),
    };
    let answer = repeat(PATIENCE, |slot| {
        let mut client = organiser.pool().events(slot);
        let request = organiser.pool().request(organiser.token(), message.clone());
        async move { organiser.pool().bounded(client.create_event(request)).await }
    })
    .await
    .map_err(|status| ChaosError::Call {
        doing: format!("creating an event in {region}"),
        message: format!("{:?}: {}", status.code(), status.message()),
    })?;
    let name = answer.event.unwrap_or_default().name;
    Ok(Planned { name, region: region.to_owned(), tiers, traffic })
}
