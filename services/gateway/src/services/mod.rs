//! The public gRPC services: each turns a request into a command or a query and the answer back. What all have
//! in common is in [`crate::edge`].

mod event;
mod operator;
mod outcome;
mod region;
mod ticket;

use std::sync::Arc;

use tidewall_proto::internal::v1 as pb;

use crate::auth::Role;
use crate::convert::{self, Decided};
use crate::edge::{Call, Edge};
use crate::errors::ApiError;
use crate::request_id;

/// All services of the public API.
#[derive(Clone)]
pub(crate) struct Services(pub(crate) Arc<Edge>);

impl Services {
    /// Has a command decided in the region of the call.
    async fn command(
        &self,
        call: &Call,
        region: &str,
        request_id: Vec<u8>,
        op: pb::command::Op,
    ) -> Result<Decided, ApiError> {
        convert::decided(region, self.outcome(call, request_id, op).await?)
    }

    /// What the region of the call says to a command.
    async fn outcome(
        &self,
        call: &Call,
        request_id: Vec<u8>,
        op: pb::command::Op,
    ) -> Result<pb::Outcome, ApiError> {
        let command = pb::Command {
            principal: call.principal.subject.clone(),
            request_id,
            expires_at_ms: call.deadline.expires_at_ms,
            op: Some(op),
            privileged: call.principal.has(Role::Operator),
            logged: false,
        };
        // The id is needed again only when something goes wrong; 16 bytes are copied cheaply.
        let id: Option<[u8; 16]> = command.request_id.as_slice().try_into().ok();
        let decided = self.0.client.command(call.group, command, call.deadline.at).await;
        decided.map_err(|error| ApiError::Client { error, request_id: id.map(|id| request_id::format(&id)) })
    }

    /// Reads in the region of the call.
    async fn query(&self, call: &Call, op: pb::query::Op) -> Result<pb::query_result::Result, ApiError> {
        let query = pb::Query { op: Some(op) };
        let result = self.0.client.query(call.group, query, call.deadline.at).await;
        match result.map_err(|error| ApiError::Client { error, request_id: None })?.result {
            Some(pb::query_result::Result::Rejection(rejection)) => {
                Err(ApiError::Rejected { rejection, receipt: None })
            }
            Some(result) => Ok(result),
            None => Err(convert::mismatch()),
        }
    }
}
