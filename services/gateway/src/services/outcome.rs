//! `OutcomeService`: what was decided for a request whose answer was lost. Executes nothing.

use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::outcome_service_server::OutcomeService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::edge::{Call, Method};
use crate::{convert, names, request_id};

#[tonic::async_trait]
impl OutcomeService for Services {
    async fn get_outcome(
        &self,
        request: Request<v1::GetOutcomeRequest>,
    ) -> Result<Response<v1::GetOutcomeResponse>, Status> {
        let handler = |call: Call, message: v1::GetOutcomeRequest| async move {
            let region = names::parse_region("parent", &message.parent)?;
            let request_id = request_id::parse_any_age("request_id", &message.request_id)?;
            let principal = call.principal.subject.clone();
            let query = pb::query::Op::GetOutcome(pb::GetOutcome { principal, request_id });
            match self.look(&call, query).await? {
                pb::query_result::Result::Outcome(view) => {
                    convert::remembered(region, &call.principal.subject, view)
                }
                _ => Err(convert::mismatch()),
            }
        };
        self.0.run(Method::GetOutcome, request, handler).await
    }

    async fn seal_request_id(
        &self,
        request: Request<v1::SealRequestIdRequest>,
    ) -> Result<Response<v1::SealRequestIdResponse>, Status> {
        let handler = |call: Call, message: v1::SealRequestIdRequest| async move {
            let region = names::parse_region("parent", &message.parent)?;
            let id = request_id::parse_any_age("request_id", &message.request_id)?;
            let outcome = self.outcome(&call, call.command(id, call.fingerprint)).await?;
            let outcome = convert::sealed(region, &call.principal.subject, outcome)?;
            Ok(v1::SealRequestIdResponse { outcome: Some(outcome) })
        };
        self.0.run(Method::SealRequestId, request, handler).await
    }
}
