//! One whose server is told what happens to the event of a story: with what arrived there, each of it once, it knows what is known.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewall_proto::json::from_json;
use tidewall_proto::v1;

use super::changes::Books;
use super::{Over, Sale, Site, ask};

/// What has happened is delivered within this time, however long a region stands still and a server fails.
const DELIVERED_WITHIN: Duration = Duration::from_secs(120);
/// Pause before somebody looks again what has arrived.
const PAUSE: Duration = Duration::from_millis(100);

/// A webhook, and what has arrived at its server.
pub(super) struct Webhook {
    name: String,
    url: String,
    books: Books,
    /// Bodies by the ids of their deliveries.
    seen: BTreeMap<String, String>,
    /// How many deliveries were looked at.
    looked_at: usize,
    /// Where the last change was.
    last: Option<(u64, u64, u32)>,
    /// Something was missed, which may be.
    missed: bool,
}

impl Webhook {
    /// Takes in what has arrived since.
    ///
    /// # Errors
    /// What is wrong with it.
    fn take(&mut self, arrived: &[(String, String)]) -> Result<(), String> {
        for (id, body) in arrived.iter().skip(self.looked_at) {
            self.looked_at += 1;
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
        let made = self.story.yes("a webhook", told)?;
        if !made.secret.starts_with("whsec_") {
            return self.story.object("a webhook has no secret");
        }
        self.webhook = Some(Webhook {
            name: made.webhook.unwrap_or_default().name,
            url,
            books,
            seen: BTreeMap::new(),
            looked_at: 0,
            last: None,
            missed: false,
        });
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
        let get = v1::GetWebhookRequest { name: webhook.name.clone() };
        loop {
            // First this: what waits for nothing has arrived before.
            let told = ask!(self.story, self.webhooks, get_webhook, get.clone(), &owner);
            let status = self.story.yes("a webhook", told)?.status.unwrap_or_default();
            let arrived = self.story.site.arrived(&webhook.url);
            if let Err(wrong) = webhook.take(&arrived) {
                return self.story.object(wrong);
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
        let delete = v1::DeleteWebhookRequest { name: webhook.name.clone(), request_id: self.id() };
        let told = ask!(self.story, self.webhooks, delete_webhook, delete, &owner);
        self.story.yes("the end of a webhook", told)?;
        let told = ask!(self.story, self.webhooks, get_webhook, get, &owner);
        self.story.no("a webhook that has ended", told, "WEBHOOK_NOT_FOUND")
    }
}
