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

/// Names a request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Who decides it.
    pub group: u32,
    /// Who makes it.
    pub principal: &'a str,
    /// Its id.
    pub id: u128,
}

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
    pub async fn ask(&self, request: Request<'_>, ask: &Ask, patience: Duration) -> End {
        if matches!(ask, Ask::Sell { .. }) {
            let batch = [(request.id, ask.clone())];
            return self.sell(request.group, request.principal, &batch, patience).await.remove(0);
        }
        let shards = match self {
            Self::Api(api) => return api.ask(request, ask, patience).await,
            Self::Shards(shards) => shards,
        };
        let command = convert::command(request.principal, request.id, self.expires_ms(patience), ask);
        match shards.command(request.group, command, Instant::now() + patience).await {
            Ok(outcome) => End::Told(convert::told(&outcome)),
            Err(error) => failed(&error),
        }
    }

    /// Has a batch of sales decided; one end for each.
    pub async fn sell(
        &self,
        group: u32,
        seller: &str,
        batch: &[(u128, Ask)],
        patience: Duration,
    ) -> Vec<End> {
        let shards = match self {
            Self::Api(api) => return api.sell(group, seller, batch, patience).await,
            Self::Shards(shards) => shards,
        };
        let expires_ms = self.expires_ms(patience);
        let command = |(id, ask): &(u128, Ask)| convert::command(seller, *id, expires_ms, ask);
        let commands = pb::CommandBatch { commands: batch.iter().map(command).collect() };
        match shards.batch(group, commands, Instant::now() + patience).await {
            Ok(answer) => {
                assert_eq!(answer.items.len(), batch.len(), "one answer for each");
                answer.items.into_iter().map(|item| convert::item_end(&item)).collect()
            }
            Err(error) => vec![failed(&error); batch.len()],
        }
    }

    /// The tiers of an event, none when it does not exist; `None` without an answer.
    pub async fn tiers(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TierSeen>> {
        match self {
            Self::Api(api) => api.tiers(group, event, patience).await,
            Self::Shards(shards) => {
                read(shards, group, convert::event_query(event), patience, convert::tiers).await
            }
        }
    }

    /// What is remembered of a request; `None` without an answer.
    pub async fn outcome(&self, request: Request<'_>, patience: Duration) -> Option<Option<Told>> {
        match self {
            Self::Api(api) => api.outcome(request, patience).await,
            Self::Shards(shards) => {
                let query = convert::outcome_query(request.principal, request.id);
                read(shards, request.group, query, patience, convert::remembered).await
            }
        }
    }

    /// All tickets of an event; `None` without an answer.
    pub async fn tickets(&self, group: u32, event: &str, patience: Duration) -> Option<Vec<TicketSeen>> {
        match self {
            Self::Api(api) => api.tickets(group, event, patience).await,
            Self::Shards(shards) => {
                read(shards, group, convert::tickets_query(event), patience, convert::tickets).await
            }
        }
    }
}

/// What a client knows that got no decision.
fn failed(error: &ClientError) -> End {
    match error {
        ClientError::Unknown { .. } => End::Unknown,
        ClientError::Unavailable { .. } | ClientError::Overloaded { .. } | ClientError::Invalid(_) => {
            End::NotDecided
        }
    }
}

/// Reads with the client of the shards, and takes what is of interest.
async fn read<T>(
    shards: &ShardClient,
    group: u32,
    query: pb::Query,
    patience: Duration,
    take: impl FnOnce(&pb::query_result::Result) -> T,
) -> Option<T> {
    shards.query(group, query, Instant::now() + patience).await.ok()?.result.as_ref().map(take)
}
