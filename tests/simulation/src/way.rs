//! How a client reaches the groups: through a gateway, as everybody does, or with the client of the shards, as a gateway
//! does. The first way counts the time of a hold in seconds.
//!
//! **Never here:** what is recorded of an answer.

use std::rc::Rc;
use std::time::Duration;

use tidewall_client::{ClientError, ShardClient};
use tidewall_proto::internal::v1 as pb;
use tokio::time::Instant;

use crate::api::Api;
use crate::convert;
use crate::history::{Ask, End, TicketSeen, TierSeen, Told};
use crate::world::now_ms;

/// A way to the groups; clones are the same.
#[derive(Clone)]
pub enum Way {
    /// Through the gateway of this machine, over a connection and with a token.
    Api(Rc<Api>),
    /// With the client of the shards.
    Shards(Rc<ShardClient>),
}

impl Way {
    /// Until when a command that is sent now may be executed, ms. A gateway counts from when it hears of it.
    pub fn expires_ms(&self, patience: Duration) -> u64 {
        let patience_ms = patience.as_millis() as u64;
        match self {
            Self::Api(_) => now_ms() + 2 * patience_ms,
            Self::Shards(_) => now_ms() + patience_ms,
        }
    }

    /// Has a command decided.
    pub async fn ask(
        &self,
        principal: &str,
        group: u32,
        request_id: u128,
        ask: &Ask,
        patience: Duration,
    ) -> End {
        let shards = match self {
            Self::Api(api) => return api.ask(principal, group, request_id, ask, patience).await,
            Self::Shards(shards) => shards,
        };
        let expires_ms = self.expires_ms(patience);
        let command = convert::command(principal, request_id, expires_ms, ask);
        match shards.command(group, command, Instant::now() + patience).await {
            Ok(outcome) => End::Told(convert::told(&outcome)),
            Err(ClientError::Unknown { .. }) => End::Unknown,
            Err(
                ClientError::Unavailable { .. } | ClientError::Overloaded { .. } | ClientError::Invalid(_),
            ) => End::NotDecided,
        }
    }

    /// The tiers of an event, none when it does not exist; `None` without an answer.
    pub async fn tiers(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TierSeen>> {
        match self {
            Self::Api(api) => api.tiers(group, event, patience).await,
            Self::Shards(shards) => {
                let query = convert::event_query(event);
                query_shards(shards, group, query, patience).await.as_ref().map(convert::tiers)
            }
        }
    }

    /// What is remembered of a request; `None` without an answer.
    pub async fn outcome(
        &self,
        principal: &str,
        group: u32,
        request_id: u128,
        patience: Duration,
    ) -> Option<Option<Told>> {
        match self {
            Self::Api(api) => api.outcome(principal, group, request_id, patience).await,
            Self::Shards(shards) => {
                let query = convert::outcome_query(principal, request_id);
                query_shards(shards, group, query, patience).await.as_ref().map(convert::remembered)
            }
        }
    }

    /// All tickets of an event; `None` without an answer.
    pub async fn tickets(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TicketSeen>> {
        match self {
            Self::Api(api) => api.tickets(group, event, patience).await,
            Self::Shards(shards) => {
                let query = convert::tickets_query(event);
                query_shards(shards, group, query, patience).await.as_ref().map(convert::tickets)
            }
        }
    }
}

async fn query_shards(
    shards: &ShardClient,
    group: u32,
    query: pb::Query,
    patience: Duration,
) -> Option<pb::query_result::Result> {
    shards.query(group, query, Instant::now() + patience).await.ok()?.result
}
