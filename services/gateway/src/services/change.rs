//! `ChangeService`: what happens, as it happens.

use std::time::Duration;

use tidewall_messages::tickets::{self, answer};
use tidewall_proto::v1;
use tidewall_proto::v1::change_service_server::ChangeService;
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Services;
use crate::auth::Role;
use crate::convert;
use crate::edge::{Call, Method};
use crate::errors::ApiError;
use crate::feed::{Filter, Limits, Place, Responses, watch_changes, watch_state};
use crate::names::{self, EventName};
use crate::validate;

/// How long a watch may take to begin.
const START_TIMEOUT: Duration = Duration::from_secs(10);
/// Kinds of a request, at most.
const KINDS_MAX: usize = 16;

/// What is watched: a region, or an event of it.
fn parent(text: &str) -> Result<Option<EventName<'_>>, ApiError> {
    match names::row(text) {
        "" => names::parse_region("parent", text).map(|_| None),
        _ => names::parse_event("parent", text).map(Some),
    }
}

/// Kinds of changes by their numbers.
pub(super) fn kinds(field: &str, numbers: &[i32]) -> Result<Vec<v1::ChangeKind>, ApiError> {
    let known = |number: &i32| match v1::ChangeKind::try_from(*number) {
        Ok(kind) if kind != v1::ChangeKind::Unspecified => Ok(kind),
        _ => Err(ApiError::field(field, format!("{number} is no kind of change that this server has"))),
    };
    if numbers.len() > KINDS_MAX {
        return Err(ApiError::field(field, format!("{} kinds: at most {KINDS_MAX}", numbers.len())));
    }
    numbers.iter().map(known).collect()
}

impl Services {
    async fn watch_as(&self, call: Call, message: v1::WatchRequest) -> Result<Responses, ApiError> {
        let edge = &self.0;
        let region = edge.region("parent", &message.parent)?;
        let event = parent(&message.parent)?;
        let mode = v1::WatchMode::try_from(message.mode)
            .map_err(|_| ApiError::field("mode", "is no mode that this server has: use EVENTS or STATE"))?;
        let kinds = kinds("kinds", &message.kinds)?;
        let now = Instant::now();
        let caller = &call.principal;
        let limits = Limits {
            until: call.deadline.at.min(now + call.deadline.remaining().min(edge.feeds.watched_max())),
            token_until: now
                + caller.expires_in(edge.client.clock().unix_ms()).min(call.deadline.remaining()),
        };
        let deadline = call.deadline.within(START_TIMEOUT).at;
        let watching = edge.feeds.of(region, &edge.client)?;
        if mode == v1::WatchMode::State {
            let event = event.ok_or_else(|| {
                ApiError::field("parent", "names a region: in the mode STATE one event is watched, name it")
            })?;
            if message.after.is_some() || !kinds.is_empty() || !message.owner.is_empty() {
                let field = match &message.after {
                    Some(_) => "after",
                    None if message.owner.is_empty() => "kinds",
                    None => "owner",
                };
                return Err(ApiError::field(field, "is for the mode EVENTS: STATE tells how the event is"));
            }
            return watch_state(watching, event.event, limits, deadline).await;
        }
        let mut sees_all =
            [Role::Operator, Role::Auditor, Role::Support].iter().any(|role| caller.has(*role));
        if let Some(name) = event {
            let get = tickets::GetEvent { event_id: name.event.to_owned() };
            let Some(answer::Result::Event(view)) =
                self.query(&call, tickets::Query::from(get)).await?.result
            else {
                return Err(convert::mismatch());
            };
            sees_all |= view.organiser == caller.subject;
        }
        let owner = match message.owner.as_str() {
            "" => None,
            owner => {
                validate::buyer("owner", owner)?;
                if !sees_all && owner != caller.subject {
                    let why = "may not watch what concerns others: only the event's organiser, auditors, support and \
                               operators may";
                    return Err(ApiError::denied("NOT_YOUR_CHANGES", format!("{} {why}", caller.subject)));
                }
                Some(owner.to_owned())
            }
        };
        let filter = Filter {
            event: event.map(|name| name.event.to_owned()),
            kinds,
            owner,
            only_of: (!sees_all).then(|| caller.subject.clone()),
        };
        watch_changes(watching, filter, message.after.map(Place::from), limits, deadline).await
    }
}

#[tonic::async_trait]
impl ChangeService for Services {
    type WatchStream = Responses;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let handler = |call: Call, message| async move { self.watch_as(call, message).await };
        self.0.run(Method::Watch, request, handler).await
    }
}
