//! `EventService`: events and their tiers.

use tidewall_messages::tickets::outcome::Result as Done;
use tidewall_messages::tickets::{self, answer};
use tidewall_proto::v1;
use tidewall_proto::v1::event_service_server::EventService;
use tonic::{Request, Response, Status};

use super::Services;
use crate::edge::{Call, Method};
use crate::errors::ApiError;
use crate::names::EventName;
use crate::{convert, names, page, request_id, validate};

const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 1000;

#[tonic::async_trait]
impl EventService for Services {
    async fn create_event(
        &self,
        request: Request<v1::CreateEventRequest>,
    ) -> Result<Response<v1::CreateEventResponse>, Status> {
        let handler = |call: Call, message: v1::CreateEventRequest| async move {
            let region = names::parse_region("parent", &message.parent)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let create = validate::create_event(message.event_id, message.event.as_ref())?;
            let event = create.event_id.clone();
            let name = EventName { region, event: &event };
            let decided = self.tickets(&call, name, id, create).await?;
            let Done::Event(view) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::CreateEventResponse {
                event: Some(convert::event(region, view)),
                receipt: decided.receipt,
            })
        };
        self.0.run(Method::CreateEvent, request, handler).await
    }

    async fn get_event(
        &self,
        request: Request<v1::GetEventRequest>,
    ) -> Result<Response<v1::GetEventResponse>, Status> {
        let handler = |call: Call, message: v1::GetEventRequest| async move {
            let name = names::parse_event("name", &message.name)?;
            let get = tickets::GetEvent { event_id: name.event.to_owned() };
            match self.query(&call, tickets::Query::from(get)).await?.result {
                Some(answer::Result::Event(view)) => {
                    Ok(v1::GetEventResponse { event: Some(convert::event(name.region, view)) })
                }
                _ => Err(convert::mismatch()),
            }
        };
        self.0.run(Method::GetEvent, request, handler).await
    }

    async fn list_events(
        &self,
        request: Request<v1::ListEventsRequest>,
    ) -> Result<Response<v1::ListEventsResponse>, Status> {
        let handler = |call: Call, message: v1::ListEventsRequest| async move {
            let region = names::parse_region("parent", &message.parent)?;
            let limit = page::size(message.page_size, PAGE_DEFAULT, PAGE_MAX)?;
            let after_event_id = page::decode(&message.parent, &message.page_token)?;
            let query = tickets::Query::from(tickets::ListEvents { after_event_id, limit });
            let Some(answer::Result::Events(list)) = self.query(&call, query).await?.result else {
                return Err(convert::mismatch());
            };
            let next_page_token = match list.events.last() {
                Some(last) if list.more => page::encode(&message.parent, &last.event_id),
                _ => String::new(),
            };
            let events = list.events.into_iter().map(|view| convert::event(region, view)).collect();
            Ok(v1::ListEventsResponse { events, next_page_token })
        };
        self.0.run(Method::ListEvents, request, handler).await
    }

    async fn delete_event(
        &self,
        request: Request<v1::DeleteEventRequest>,
    ) -> Result<Response<v1::DeleteEventResponse>, Status> {
        let handler = |call: Call, message: v1::DeleteEventRequest| async move {
            let name = names::parse_event("name", &message.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let delete =
                tickets::DeleteEvent { event_id: name.event.to_owned(), expected_revision: message.revision };
            let decided = self.tickets(&call, name, id, delete).await?;
            let Done::DeletedEventId(_) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::DeleteEventResponse { receipt: decided.receipt })
        };
        self.0.run(Method::DeleteEvent, request, handler).await
    }

    async fn update_event(
        &self,
        request: Request<v1::UpdateEventRequest>,
    ) -> Result<Response<v1::UpdateEventResponse>, Status> {
        let handler = |call: Call, message: v1::UpdateEventRequest| async move {
            let event = message.event.as_ref().ok_or_else(|| ApiError::field("event", "is missing"))?;
            let name = names::parse_event("event.name", &event.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let update = validate::update_event(name.event.to_owned(), event, message.update_mask.as_ref())?;
            let decided = self.tickets(&call, name, id, update).await?;
            let Done::Event(view) = decided.outcome else {
                return Err(convert::mismatch());
            };
            Ok(v1::UpdateEventResponse {
                event: Some(convert::event(name.region, view)),
                receipt: decided.receipt,
            })
        };
        self.0.run(Method::UpdateEvent, request, handler).await
    }
}
