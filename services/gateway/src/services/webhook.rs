//! `WebhookService`: who is told outside what happens.

use std::sync::Arc;
use std::time::Duration;

use tidewall_messages::webhooks::outcome::Result as Done;
use tidewall_messages::webhooks::{self as messages, answer};
use tidewall_messages::{ModuleCommand, tickets};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::webhook_service_server::WebhookService;
use tokio::time::timeout_at;
use tonic::{Request, Response, Status};

use super::{Ask, Services};
use crate::auth::Role;
use crate::convert::{self, Decided};
use crate::edge::{Call, Method};
use crate::errors::ApiError;
use crate::names;
use crate::page;
use crate::request_id;
use crate::services::change::kinds;
use crate::validate;
use crate::webhooks::call::{self, Signer};
use crate::webhooks::{Answered, Post};

const PAGE_DEFAULT: u32 = 50;
const PAGE_MAX: u32 = 1000;
/// How long a ping may take.
const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Asks for the webhooks of everybody.
const EVERYBODY: &str = "-";

impl Services {
    async fn webhook_command<C: Into<messages::Command>>(
        &self,
        call: &Call,
        region: &str,
        request_id: Vec<u8>,
        command: C,
    ) -> Result<Decided<Done>, ApiError> {
        let command: messages::Command = command.into();
        let ask = Ask { region, row: "", request_id, command };
        let Decided { outcome, receipt } = self.command::<_, messages::Outcome>(call, ask).await?;
        Ok(Decided { outcome: outcome.result.ok_or_else(convert::mismatch)?, receipt })
    }

    /// A webhook that the caller may see.
    async fn webhook_seen(
        &self,
        call: &Call,
        name: &str,
        may: fn(&Call) -> bool,
    ) -> Result<messages::WebhookView, ApiError> {
        let (_, id) = names::parse_webhook("name", name)?;
        let get = messages::GetWebhook { webhook_id: id.to_owned() };
        let found = self.query(call, messages::Query::from(get)).await?.result;
        let Some(answer::Result::Webhook(view)) = found else { return Err(convert::mismatch()) };
        if view.owner != call.principal.subject && !may(call) {
            return Err(ApiError::denied("NOT_YOUR_WEBHOOK", format!("{name} belongs to somebody else")));
        }
        Ok(view)
    }

    fn signer(&self) -> Result<&Arc<Signer>, ApiError> {
        let accounts = self.0.accounts.as_ref().ok_or_else(ApiError::accounts_not_served)?;
        Ok(&accounts.signer)
    }

    /// An address of a webhook, written in one way.
    fn checked_url(&self, url: &str) -> Result<String, ApiError> {
        let checked = crate::webhooks::check_url(url, &self.0.webhook_networks);
        checked.map(String::from).map_err(|why| ApiError::field("webhook.url", why))
    }

    /// What a webhook is for, as far as a mask names it.
    fn settings(
        &self,
        region: &str,
        webhook: &v1::Webhook,
        has: impl Fn(&str) -> bool,
    ) -> Result<messages::Settings, ApiError> {
        let mut settings = messages::Settings::default();
        if has("url") {
            settings.url = self.checked_url(&webhook.url)?;
        }
        if has("kinds") {
            let kinds = kinds("webhook.kinds", &webhook.kinds)?;
            settings.kinds = kinds.into_iter().filter_map(|kind| u32::try_from(kind as i32).ok()).collect();
        }
        if has("event") && !webhook.event.is_empty() {
            let name = names::parse_event("webhook.event", &webhook.event)?;
            if name.region != region {
                let why = "is in another region: a webhook is told what happens in its own";
                return Err(ApiError::field("webhook.event", why));
            }
            (settings.module, settings.row) = (tickets::MODULE.into(), name.event.to_owned());
        }
        Ok(settings)
    }
}

fn sees_all(call: &Call) -> bool {
    [Role::Operator, Role::Auditor, Role::Support].iter().any(|role| call.principal.has(*role))
}

fn saved(done: Done) -> Result<messages::WebhookView, ApiError> {
    match done {
        Done::Webhook(view) => Ok(view),
        Done::DeletedId(_) => Err(convert::mismatch()),
    }
}

#[tonic::async_trait]
impl WebhookService for Services {
    async fn create_webhook(
        &self,
        request: Request<v1::CreateWebhookRequest>,
    ) -> Result<Response<v1::CreateWebhookResponse>, Status> {
        let handler = |call: Call, message: v1::CreateWebhookRequest| async move {
            let signer = self.signer()?;
            let region = names::parse_region("parent", &message.parent)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let webhook = message.webhook.ok_or_else(|| ApiError::field("webhook", "is missing"))?;
            let settings = Some(self.settings(region, &webhook, |_| true)?);
            let create = messages::CreateWebhook { settings };
            let decided = self.webhook_command(&call, region, id, create).await?;
            let view = saved(decided.outcome)?;
            let secret = signer.secret(region, &view);
            let webhook = Some(convert::webhook(region, view));
            Ok(v1::CreateWebhookResponse { webhook, secret, receipt: decided.receipt })
        };
        self.0.run(Method::CreateWebhook, request, handler).await
    }

    async fn get_webhook(
        &self,
        request: Request<v1::GetWebhookRequest>,
    ) -> Result<Response<v1::GetWebhookResponse>, Status> {
        let handler = |call: Call, message: v1::GetWebhookRequest| async move {
            let view = self.webhook_seen(&call, &message.name, sees_all).await?;
            let (region, _) = names::parse_webhook("name", &message.name)?;
            let queue = pb::GetQueue { module: messages::Command::MODULE.into(), queue: view.queue.clone() };
            let state = self.look(&call, pb::query::Op::GetQueue(queue)).await?;
            let pb::query_result::Result::Queue(state) = state else { return Err(convert::mismatch()) };
            let count = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
            let status = v1::WebhookStatus {
                waiting: count(state.waiting),
                failed_attempts: i32::try_from(state.attempts).unwrap_or(i32::MAX),
                last_failure: state.failure,
                pause: convert::duration_ms(count(state.next_in_ms)),
                given_up: count(state.dead),
            };
            let webhook = Some(convert::webhook(region, view));
            Ok(v1::GetWebhookResponse { webhook, status: Some(status) })
        };
        self.0.run(Method::GetWebhook, request, handler).await
    }

    async fn list_webhooks(
        &self,
        request: Request<v1::ListWebhooksRequest>,
    ) -> Result<Response<v1::ListWebhooksResponse>, Status> {
        let handler = |call: Call, message: v1::ListWebhooksRequest| async move {
            let region = names::parse_region("parent", &message.parent)?;
            let limit = page::size(message.page_size, PAGE_DEFAULT, PAGE_MAX)?;
            let owner = match message.owner.as_str() {
                "" => call.principal.subject.clone(),
                owner if owner == call.principal.subject => owner.to_owned(),
                _ if !sees_all(&call) => {
                    let why = "may list its own webhooks only: those of others are for operators, auditors and support";
                    return Err(ApiError::denied(
                        "NOT_YOUR_WEBHOOK",
                        format!("{} {why}", call.principal.subject),
                    ));
                }
                EVERYBODY => String::new(),
                owner => {
                    validate::buyer("owner", owner)?;
                    owner.to_owned()
                }
            };
            let scope = format!("{}/webhooks?owner={owner}", message.parent);
            let after = page::decode(&scope, &message.page_token)?;
            let list = messages::ListWebhooks { owner, after, limit };
            let found = self.query(&call, messages::Query::from(list)).await?.result;
            let Some(answer::Result::Webhooks(list)) = found else { return Err(convert::mismatch()) };
            let next_page_token = match list.webhooks.last() {
                Some(last) if list.more => page::encode(&scope, &last.webhook_id),
                _ => String::new(),
            };
            let webhooks = list.webhooks.into_iter().map(|view| convert::webhook(region, view)).collect();
            Ok(v1::ListWebhooksResponse { webhooks, next_page_token })
        };
        self.0.run(Method::ListWebhooks, request, handler).await
    }

    async fn update_webhook(
        &self,
        request: Request<v1::UpdateWebhookRequest>,
    ) -> Result<Response<v1::UpdateWebhookResponse>, Status> {
        let handler = |call: Call, message: v1::UpdateWebhookRequest| async move {
            let webhook = message.webhook.ok_or_else(|| ApiError::field("webhook", "is missing"))?;
            let (region, id) = names::parse_webhook("webhook.name", &webhook.name)?;
            let request_id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let paths = message.update_mask.unwrap_or_default().paths;
            if paths.is_empty() {
                let why = "names no field: name those that are to change";
                return Err(ApiError::field_reason("update_mask", "UPDATE_MASK_INVALID", why));
            }
            if let Some(other) = paths.iter().find(|path| !["url", "kinds", "event"].contains(&path.as_str()))
            {
                let why = format!("{other:?} cannot be changed: url, kinds and event can");
                return Err(ApiError::field_reason("update_mask", "UPDATE_MASK_INVALID", why));
            }
            let has = |path: &str| paths.iter().any(|known| known == path);
            let update = messages::UpdateWebhook {
                webhook_id: id.to_owned(),
                settings: Some(self.settings(region, &webhook, has)?),
                revision: webhook.revision,
                set_url: has("url"),
                set_kinds: has("kinds"),
                set_row: has("event"),
            };
            let decided = self.webhook_command(&call, region, request_id, update).await?;
            let webhook = Some(convert::webhook(region, saved(decided.outcome)?));
            Ok(v1::UpdateWebhookResponse { webhook, receipt: decided.receipt })
        };
        self.0.run(Method::UpdateWebhook, request, handler).await
    }

    async fn rotate_webhook_secret(
        &self,
        request: Request<v1::RotateWebhookSecretRequest>,
    ) -> Result<Response<v1::RotateWebhookSecretResponse>, Status> {
        let handler = |call: Call, message: v1::RotateWebhookSecretRequest| async move {
            let signer = self.signer()?;
            let (region, id) = names::parse_webhook("name", &message.name)?;
            let request_id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let rotate = messages::RotateSecret { webhook_id: id.to_owned() };
            let decided = self.webhook_command(&call, region, request_id, rotate).await?;
            let view = saved(decided.outcome)?;
            // An operator may have a secret changed, and is not told it.
            let own = view.owner == call.principal.subject;
            let secret = signer.secret(region, &view);
            let secret = if own { secret } else { String::new() };
            let webhook = Some(convert::webhook(region, view));
            Ok(v1::RotateWebhookSecretResponse { webhook, secret, receipt: decided.receipt })
        };
        self.0.run(Method::RotateWebhookSecret, request, handler).await
    }

    async fn ping_webhook(
        &self,
        request: Request<v1::PingWebhookRequest>,
    ) -> Result<Response<v1::PingWebhookResponse>, Status> {
        let handler = |call: Call, message: v1::PingWebhookRequest| async move {
            let signer = self.signer()?;
            let looks_after = |call: &Call| call.principal.has(Role::Operator);
            let view = self.webhook_seen(&call, &message.name, looks_after).await?;
            let (region, _) = names::parse_webhook("name", &message.name)?;
            let _place =
                self.0.pings.try_acquire().map_err(|_| {
                    ApiError::overloaded("as many webhooks are pinged at this gateway as may")
                })?;
            let post: Post =
                call::ping(region, &view, signer, call.now_ms / 1_000).map_err(ApiError::internal)?;
            let until = call.deadline.within(PING_TIMEOUT).at;
            let failure = match timeout_at(until, self.0.outside.post(post)).await {
                Ok(Answered::Status { code, .. }) if (200..300).contains(&code) => String::new(),
                Ok(Answered::Status { code, .. }) => format!("answered with status {code}"),
                Ok(Answered::Failed(why)) => why,
                Err(_) => "no answer in time".to_owned(),
            };
            Ok(v1::PingWebhookResponse { delivered: failure.is_empty(), failure })
        };
        self.0.run(Method::PingWebhook, request, handler).await
    }

    async fn delete_webhook(
        &self,
        request: Request<v1::DeleteWebhookRequest>,
    ) -> Result<Response<v1::DeleteWebhookResponse>, Status> {
        let handler = |call: Call, message: v1::DeleteWebhookRequest| async move {
            let (region, id) = names::parse_webhook("name", &message.name)?;
            let request_id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let delete = messages::DeleteWebhook { webhook_id: id.to_owned() };
            let decided = self.webhook_command(&call, region, request_id, delete).await?;
            match decided.outcome {
                Done::DeletedId(_) => Ok(v1::DeleteWebhookResponse { receipt: decided.receipt }),
                Done::Webhook(_) => Err(convert::mismatch()),
            }
        };
        self.0.run(Method::DeleteWebhook, request, handler).await
    }
}
