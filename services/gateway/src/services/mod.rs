//! The public gRPC services: each turns a request into a command or a query and the answer back. What all have
//! in common is in [`crate::edge`].

mod account;
mod change;
mod event;
mod operator;
mod outcome;
mod region;
mod ticket;
mod webhook;

use std::sync::Arc;

use prost::Message as _;
use tidewall_client::seen_in;
use tidewall_messages::{ModuleCommand, ModuleQuery};
use tidewall_proto::internal::v1 as pb;

use crate::convert::{self, Decided};
use crate::edge::{Call, Edge};
use crate::errors::ApiError;
use crate::request_id;

/// All services of the public API.
#[derive(Clone)]
pub(crate) struct Services(pub(crate) Arc<Edge>);

/// What is asked of a module: the name of the hot row that it is about, for its actor, and the command.
struct Ask<'a, C> {
    region: &'a str,
    row: &'a str,
    request_id: Vec<u8>,
    command: C,
}

impl Services {
    /// Has a command of a module decided in the region of the call.
    async fn command<C: ModuleCommand, T: prost::Message + Default>(
        &self,
        call: &Call,
        ask: Ask<'_, C>,
    ) -> Result<Decided<T>, ApiError> {
        let command = pb::Command {
            module: C::MODULE.into(),
            payload: ask.command.encode_to_vec().into(),
            row: ask.row.to_owned(),
            ..call.command(ask.request_id, call.fingerprint)
        };
        convert::decided(ask.region, C::MODULE, self.outcome(call, command).await?)
    }

    /// What the region of the call says to a command.
    async fn outcome(&self, call: &Call, command: pb::Command) -> Result<pb::Outcome, ApiError> {
        // The id is needed again only when something goes wrong; 16 bytes are copied cheaply.
        let id: Option<[u8; 16]> = command.request_id.as_slice().try_into().ok();
        let id = id.filter(|_| !call.idempotent);
        self.0
            .step(call, true, async {
                let decided = self.0.client.command(call.group, command, call.deadline.at).await;
                let request_id = || id.map(|id| request_id::format(&id));
                let outcome =
                    decided.map_err(|error| ApiError::Client { error, request_id: request_id() })?;
                if let Some(seen) = seen_in(&outcome) {
                    call.seen.note(call.group, seen);
                }
                Ok(outcome)
            })
            .await
    }

    /// Reads rows of a module in the region of the call.
    async fn query<Q: ModuleQuery>(&self, call: &Call, query: Q) -> Result<Q::Answer, ApiError> {
        let query = pb::ModuleQuery { module: Q::MODULE.into(), payload: query.encode_to_vec() };
        match self.look(call, pb::query::Op::Module(query)).await? {
            pb::query_result::Result::Module(answer) => {
                Q::Answer::decode(answer).map_err(|_| convert::mismatch())
            }
            _ => Err(convert::mismatch()),
        }
    }

    /// Looks at what a region has: at a standby, if it need not be the latest, else at the active.
    async fn look(&self, call: &Call, op: pb::query::Op) -> Result<pb::query_result::Result, ApiError> {
        let (query, edge) = (pb::Query { op: Some(op) }, &self.0);
        let failed = |error| ApiError::Client { error, request_id: None };
        let least = call.seen.least(call.group, call.reading);
        let mut found = None;
        if let Some(age) = call.reading.age {
            let _place = edge.reads.try_acquire().map_err(|_| {
                ApiError::overloaded("this gateway has as many reads at standbys under way as it may")
            })?;
            let read = edge.client.read_at_standbys(call.group, &query, age, least, call.deadline.at);
            found = read.await.map_err(failed)?;
        }
        let found = match found {
            Some(found) => found,
            None => {
                let query = edge.client.query_since(call.group, &query, least, call.deadline.at);
                edge.step(call, false, async { query.await.map_err(failed) }).await?
            }
        };
        if let Some(seen) = found.seen {
            call.seen.note(call.group, seen);
        }
        match found.result {
            Some(pb::query_result::Result::Rejection(rejection)) => {
                Err(ApiError::Rejected { rejection, receipt: None })
            }
            Some(result) => Ok(result),
            None => Err(convert::mismatch()),
        }
    }
}
