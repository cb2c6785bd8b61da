//! A delivery as it is sent: JSON, signed as the Standard Webhooks specification says, under an id that is the same for every attempt.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message as _;
use ring::hmac;
use tidewall_messages::{Change, webhooks as messages};
use tidewall_mutant::{Mutant, active};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::json::to_json;
use tidewall_proto::v1;

use super::outside::Post;
use crate::convert;
use crate::feed::Place;
use crate::names;

/// Signs deliveries. Secrets are derived: nothing that is stored has one.
pub(crate) struct Signer(hmac::Key);

impl Signer {
    /// Of a key that the gateways of a cluster share.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, key))
    }

    fn key(&self, region: &str, webhook: &messages::WebhookView, generation: u64) -> [u8; 32] {
        let mut context = hmac::Context::with_key(&self.0);
        // The owner too: rows of another cluster may call a webhook of somebody else the same.
        let (id, owner) = (webhook.webhook_id.as_bytes(), webhook.owner.as_bytes());
        for part in [region.as_bytes(), id, owner, &generation.to_be_bytes()] {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part);
        }
        context.sign().as_ref().try_into().expect("SHA-256 has 32 bytes")
    }

    /// The secret of a webhook, as its owner is shown it.
    pub(crate) fn secret(&self, region: &str, webhook: &messages::WebhookView) -> String {
        format!("whsec_{}", STANDARD.encode(self.key(region, webhook, webhook.generation)))
    }

    /// Headers of a delivery.
    fn headers(
        &self,
        region: &str,
        webhook: &messages::WebhookView,
        id: &str,
        now_s: u64,
        body: &str,
    ) -> Vec<(&'static str, String)> {
        let generations = [webhook.generation, webhook.previous_generation];
        let signature = |generation: u64| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key(region, webhook, generation));
            let tag = hmac::sign(&key, format!("{id}.{now_s}.{body}").as_bytes());
            format!("v1,{}", STANDARD.encode(tag))
        };
        let signatures: Vec<String> =
            generations.into_iter().filter(|generation| *generation > 0).map(signature).collect();
        vec![
            ("content-type", "application/json".to_owned()),
            ("user-agent", format!("tidewall/{}", env!("CARGO_PKG_VERSION"))),
            ("webhook-id", id.to_owned()),
            ("webhook-timestamp", now_s.to_string()),
            ("webhook-signature", signatures.join(" ")),
        ]
    }
}

/// What is sent of an effect; nothing when nothing need be sent any more.
///
/// # Errors
/// It means nothing to this build.
pub(crate) fn post(
    region: &str,
    effect: &pb::Effect,
    signer: &Signer,
    now_s: u64,
) -> Result<Option<Post>, String> {
    let unknown = || "the delivery means nothing to this gateway: another build has made it".to_owned();
    let key = effect.key.as_ref().ok_or_else(unknown)?;
    if key.module != u32::from(messages::MODULE) {
        return Err(unknown());
    }
    if effect.call.is_empty() {
        return Ok(None);
    }
    let call = messages::Call::decode(effect.call.clone()).map_err(|_| unknown())?;
    let (Some(delivery), Some(webhook)) = (call.delivery, call.webhook) else { return Err(unknown()) };
    let mut changes = Vec::new();
    for told in &delivery.changes {
        let change = Change::decode(told.change.as_slice()).map_err(|_| unknown())?;
        let place = Place::from(told.place.unwrap_or_default());
        // What a later build tells is passed over, as for whoever watches.
        changes.extend(convert::change(region, &change, place, told.log_ms).map_err(|_| unknown())?);
    }
    let attempt = if active(Mutant::EffectRenamed) { format!("-{}", effect.attempts) } else { String::new() };
    let id =
        format!("{region}-{}-{}-{}-{}{attempt}", webhook.webhook_id, key.incarnation, key.index, key.number);
    sent(
        region,
        &webhook,
        &id,
        signer,
        now_s,
        v1::WebhookDelivery { webhook: String::new(), changes, missed: delivery.missed.map(missed) },
    )
    .map(Some)
}

/// A delivery without changes.
///
/// # Errors
/// It cannot be written.
pub(crate) fn ping(
    region: &str,
    webhook: &messages::WebhookView,
    signer: &Signer,
    now_s: u64,
) -> Result<Post, String> {
    let id = format!(
        "{region}-{}-ping-{}",
        webhook.webhook_id,
        convert::hex(&tidewall_env::random::secret::<8>())
    );
    sent(region, webhook, &id, signer, now_s, v1::WebhookDelivery::default())
}

fn sent(
    region: &str,
    webhook: &messages::WebhookView,
    id: &str,
    signer: &Signer,
    now_s: u64,
    delivery: v1::WebhookDelivery,
) -> Result<Post, String> {
    let delivery = v1::WebhookDelivery { webhook: names::webhook(region, &webhook.webhook_id), ..delivery };
    let body = to_json("WebhookDelivery", &delivery).map_err(|why| why.to_string())?;
    let signed = if active(Mutant::SignedForNobody) { "" } else { region };
    let headers = signer.headers(signed, webhook, id, now_s, &body);
    let url = webhook.settings.clone().unwrap_or_default().url;
    Ok(Post { url, headers, body })
}

/// What was missed, in the words of the public API.
pub(crate) fn missed(missed: messages::Missed) -> v1::MissedChanges {
    let shown = |at: Option<tidewall_messages::Place>| at.map(|at| Place::from(at).into());
    v1::MissedChanges {
        first: shown(missed.first),
        last: shown(missed.last),
        count: i64::try_from(missed.count).unwrap_or(i64::MAX),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    fn webhook(generation: u64, previous_generation: u64) -> messages::WebhookView {
        messages::WebhookView {
            webhook_id: "w1".into(),
            generation,
            previous_generation,
            settings: Some(messages::Settings { url: "https://shop.example/".into(), ..Default::default() }),
            ..Default::default()
        }
    }

    /// What the specification's own example says.
    #[test]
    fn deliveries_are_signed_as_the_specification_says() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let key = hmac::Key::new(hmac::HMAC_SHA256, &secret);
        let tag = hmac::sign(&key, br#"msg_p5jXN8AQM9LWM0D4loKWxJek.1614265330.{"test": 2432232314}"#);
        assert_eq!(STANDARD.encode(tag), "g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_receiver_can_check_with_the_secret_that_its_owner_was_shown() {
        let signer = Signer::new(&[7; 32]);
        let post = ping("north", &webhook(2, 0), &signer, 1_000).unwrap();
        let header = |name: &str| {
            let found = post.headers.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| value.clone()).unwrap()
        };
        let signed = format!("{}.1000.{}", header("webhook-id"), post.body);
        let with = |generation| {
            let secret = signer.secret("north", &webhook(generation, 0));
            let key = STANDARD.decode(secret.strip_prefix("whsec_").unwrap()).unwrap();
            let tag = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &key), signed.as_bytes());
            format!("v1,{}", STANDARD.encode(tag))
        };
        assert_eq!(header("webhook-signature"), with(2));
        assert_ne!(with(2), with(1));
        let other = messages::WebhookView { owner: "eve".into(), ..webhook(1, 0) };
        let secrets = [("north", webhook(1, 0)), ("south", webhook(1, 0)), ("north", other)];
        let secrets = secrets.map(|(region, webhook)| signer.secret(region, &webhook));
        assert_eq!(BTreeSet::from(secrets).len(), 3);
        assert!(post.body.contains("regions/north/webhooks/w1"));
        // While secrets rotate, both are good.
        let post = ping("north", &webhook(2, 1), &signer, 1_000).unwrap();
        let signature = post.headers.iter().find(|(name, _)| *name == "webhook-signature").unwrap();
        assert_eq!(signature.1.split(' ').count(), 2);
    }
}
