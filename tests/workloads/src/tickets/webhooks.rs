//! One whose server is told what happens to the event of a story: with what arrived there, each of it once and signed with a secret
//! that its owner was shown, it knows what is known. Meanwhile it has its server moved, its secret changed, itself listed and pinged.

use std::collections::BTreeMap;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_types::FieldMask;
use ring::hmac;
use tidewall_proto::json::from_json;
use tidewall_proto::v1;

use super::changes::Books;
use super::{Over, Sale, Site, ask};
use crate::server::Arrived;

/// What has happened is delivered within this time, however long a region stands still and a server fails.
const DELIVERED_WITHIN: Duration = Duration::from_secs(120);
/// Pause before somebody looks again what has arrived.
const PAUSE: Duration = Duration::from_millis(100);

/// A webhook, and what has arrived at its servers.
pub(super) struct Webhook {
    name: String,
    /// Where its servers are; the last one is called now.
    urls: Vec<String>,
    /// All that its owner was shown.
    secrets: Vec<String>,
    books: Books,
    /// Bodies by the ids of their deliveries.
    seen: BTreeMap<String, String>,
    /// How many deliveries were looked at, at each server.
    looked_at: Vec<usize>,
    /// Where the last change was.
    last: Option<(u64, u64, u32)>,
    /// Something was missed, which may be.
    missed: bool,
}

/// Whether a delivery is signed with this secret, as the Standard Webhooks specification says.
fn is_signed(arrived: &Arrived, secret: &str) -> bool {
    let key = secret.strip_prefix("whsec_").and_then(|key| STANDARD.decode(key).ok()).unwrap_or_default();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let signed = format!("{}.{}.{}", arrived.id, arrived.timestamp, arrived.body);
    let tags = arrived.signature.split(' ').filter_map(|tag| STANDARD.decode(tag.strip_prefix("v1,")?).ok());
    tags.into_iter().any(|tag| hmac::verify(&key, signed.as_bytes(), &tag).is_ok())
}

impl Webhook {
    /// Takes in what has arrived since, at one of its servers.
    ///
    /// # Errors
    /// What is wrong with it.
    fn take(&mut self, server: usize, arrived: &[Arrived]) -> Result<(), String> {
        for arrived in arrived.iter().skip(std::mem::replace(&mut self.looked_at[server], arrived.len())) {
            let Arrived { id, body, .. } = arrived;
            if !self.secrets.iter().any(|secret| is_signed(arrived, secret)) {
                return Err(format!("{arrived:?} is signed with none of {:?}", self.secrets));
            }
            if let Some(before) = self.seen.insert(id.clone(), body.clone()) {
                if before != *body {
                    return Err(format!("{id} was {before} and is {body}"));
                }
                continue;
            }
            let delivery: v1::WebhookDelivery =
                from_json("WebhookDelivery", body).map_err(|why| format!("{body}: {why}"))?;
            if delivery.webhook != self.name {
                return Err(format!("a delivery of {} at the server of {}", delivery.webhook, self.name));
            }
            self.missed |= delivery.missed.is_some();
            for change in delivery.changes {
                let place = change.place.unwrap_or_default();
                let at = Some((place.incarnation, place.index, place.changes));
                if at <= self.last {
                    return Err(format!("a change at {at:?} arrives behind {:?}", self.last));
                }
                self.last = at;
                self.books.take(change)?;
            }
        }
        Ok(())
    }
}

impl<S: Site> Sale<'_, S> {
    /// In some stories the organiser or a buyer has a webhook.
    pub(super) async fn make_webhook(&mut self) -> Result<(), Over> {
        let Some(url) = self.story.site.server(&self.story.name) else { return Ok(()) };
        let books = Books::new((self.story.below(2) == 0).then_some(0));
        let owner = self.owner_of(&books);
        let webhook = v1::Webhook { url: url.clone(), event: self.event.clone(), ..v1::Webhook::default() };
        let create = v1::CreateWebhookRequest {
            parent: self.story.region.clone(),
            webhook: Some(webhook),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.webhooks, create_webhook, create, &owner);
        // A cluster that has not been told to call servers here.
        if url.starts_with("http:") && told.as_ref().is_err_and(|reason| reason == "INVALID_FIELD") {
            return Ok(());
        }
        let made = self.story.yes("a webhook", told)?;
        self.webhook = Some(Webhook {
            name: made.webhook.unwrap_or_default().name,
            urls: vec![url],
            secrets: vec![made.secret],
            books,
            seen: BTreeMap::new(),
            looked_at: vec![0],
            last: None,
            missed: false,
        });
        Ok(())
    }

    /// One thing that the owner of a webhook does with it.
    pub(super) async fn tend_webhook(&mut self) -> Result<(), Over> {
        let Some(mut webhook) = self.webhook.take() else { return self.check_stock().await };
        let (owner, name) = (self.owner_of(&webhook.books), webhook.name.clone());
        match self.story.below(4) {
            0 => {
                let moved = format!("{}-{}", self.story.name, webhook.urls.len());
                if let Some(url) = self.story.site.server(&moved) {
                    let update = v1::UpdateWebhookRequest {
                        webhook: Some(v1::Webhook { name, url: url.clone(), ..v1::Webhook::default() }),
                        update_mask: Some(FieldMask { paths: vec!["url".to_owned()] }),
                        request_id: self.id(),
                    };
                    let told = ask!(self.story, self.webhooks, update_webhook, update, &owner);
                    let now = self.story.yes("another server", told)?.webhook.unwrap_or_default();
                    if (&now.url, &now.event) != (&url, &self.event) {
                        return self
                            .story
                            .object(format_args!("a webhook that was moved to {url} is {now:?}"));
                    }
                    webhook.urls.push(url);
                    webhook.looked_at.push(0);
                }
            }
            1 => {
                let rotate = v1::RotateWebhookSecretRequest { name, request_id: self.id() };
                let told = ask!(self.story, self.webhooks, rotate_webhook_secret, rotate, &owner);
                let secret = self.story.yes("another secret", told)?.secret;
                if webhook.secrets.contains(&secret) {
                    return self.story.object(format_args!("the secret of {} is an old one", webhook.name));
                }
                webhook.secrets.push(secret);
            }
            2 => {
                let list = v1::ListWebhooksRequest {
                    parent: self.story.region.clone(),
                    consistency: self.story.consistency(),
                    ..v1::ListWebhooksRequest::default()
                };
                let told = ask!(self.story, self.webhooks, list_webhooks, list, &owner);
                let listed = self.story.yes("a list of webhooks", told)?.webhooks;
                let listed: Vec<&String> = listed.iter().map(|webhook| &webhook.name).collect();
                if listed != [&webhook.name] {
                    return self.story.object(format_args!("{listed:?} are listed, not {}", webhook.name));
                }
                let stranger = &self.buyers[1].token;
                let consistency = self.story.consistency();
                let get = v1::GetWebhookRequest { name, consistency, max_age: None };
                let told = ask!(self.story, self.webhooks, get_webhook, get.clone(), &owner);
                let shown = self.story.yes("a look at a webhook", told)?.webhook.unwrap_or_default();
                if webhook.urls.last() != Some(&shown.url) || shown.name != webhook.name {
                    return self.story.object(format_args!("{} is shown as {shown:?}", webhook.name));
                }
                let told = ask!(self.story, self.webhooks, get_webhook, get, stranger);
                self.story.no("a stranger's look at a webhook", told, "NOT_YOUR_WEBHOOK")?;
            }
            _ => {
                // Whatever its server makes of it: it is signed, and judged with what else arrives.
                let told =
                    ask!(self.story, self.webhooks, ping_webhook, v1::PingWebhookRequest { name }, &owner);
                self.story.yes("a ping", told)?;
            }
        }
        self.webhook = Some(webhook);
        Ok(())
    }

    /// Token of whose these books are.
    fn owner_of(&self, books: &Books) -> String {
        books.buyer.map_or(&self.organiser, |buyer| &self.buyers[buyer]).token.clone()
    }

    /// What arrives must be what is known, and nothing else. Then the webhook ends.
    pub(super) async fn check_webhook(&mut self) -> Result<(), Over> {
        let Some(mut webhook) = self.webhook.take() else { return Ok(()) };
        let began = self.story.site.now();
        let owner = self.owner_of(&webhook.books);
        // The latest: what waits for nothing has arrived.
        let get = v1::GetWebhookRequest { name: webhook.name.clone(), ..Default::default() };
        loop {
            // First this: what waits for nothing has arrived before.
            let told = ask!(self.story, self.webhooks, get_webhook, get.clone(), &owner);
            let status = self.story.yes("a webhook", told)?.status.unwrap_or_default();
            for server in 0..webhook.urls.len() {
                let arrived = self.story.site.arrived(&webhook.urls[server]);
                if let Err(wrong) = webhook.take(server, &arrived) {
                    return self.story.object(wrong);
                }
            }
            if webhook.missed || self.all_was_told(&webhook.books) {
                break;
            }
            let late = self.story.site.now().saturating_sub(began) > DELIVERED_WITHIN;
            if status.waiting == 0 || late {
                let difference = self.difference(&webhook.books);
                return self.story.object(format_args!("of {}, {status:?}: {difference}", webhook.name));
            }
            tokio::time::sleep(PAUSE).await;
        }
        self.story.site.book().borrow_mut().webhooks += 1;
        let delete = v1::DeleteWebhookRequest { name: webhook.name.clone(), request_id: self.id() };
        let told = ask!(self.story, self.webhooks, delete_webhook, delete, &owner);
        self.story.yes("the end of a webhook", told)?;
        let told = ask!(self.story, self.webhooks, get_webhook, get, &owner);
        self.story.no("a webhook that has ended", told, "WEBHOOK_NOT_FOUND")
    }
}
