//! What has to be there before a fault makes sense: connections, tokens, events. It repeats what was not decided, and never
//! records anything: nothing of it is part of a history.

use std::time::Duration;

use tidewall_load::Target;
use tidewall_load::offer::Offer;
use tidewall_load::pool::Pool;
pub use tidewall_load::reading::repeat;

use crate::ChaosError;
use crate::client::Client;
use crate::history::{Planned, Traffic};

/// Deadline of a call of the load: what a client with patience gives.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// Deadline of a call that asks about the state of things.
pub const LOOK_DEADLINE: Duration = Duration::from_secs(3);
/// How long a step of the preparation is repeated.
pub const PATIENCE: Duration = Duration::from_secs(60);
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

/// Creates an event with these tiers.
///
/// # Errors
/// When the region refuses, does not answer within [`PATIENCE`], or answers without the event.
pub async fn create_event(
    organiser: &Client,
    region: &str,
    traffic: Traffic,
    tiers: Vec<(String, i64)>,
) -> Result<Planned, ChaosError> {
    let offer = Offer {
        region,
        event_id: "",
        display_name: &format!("chaos {traffic:?}"),
        quota: QUOTA,
        tiers: tiers.iter().map(|(tier_id, capacity)| (tier_id.as_str(), *capacity)).collect(),
    };
    let made = offer.make(organiser.pool(), organiser.token(), PATIENCE).await;
    let name = made.map_err(|status| ChaosError::Call {
        doing: format!("creating an event in {region}"),
        message: format!("{:?}: {}", status.code(), status.message()),
    })?;
    Ok(Planned { name, region: region.to_owned(), tiers, traffic })
}
