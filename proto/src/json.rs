//! Messages of the public API as JSON, as the specification of protobuf has it.

use std::sync::LazyLock;

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, MessageDescriptor};

use crate::PUBLIC_DESCRIPTORS;

static POOL: LazyLock<Option<DescriptorPool>> =
    LazyLock::new(|| DescriptorPool::decode(PUBLIC_DESCRIPTORS).ok());

/// Why something is no message of the public API.
#[derive(Debug)]
pub struct NotJson(String);

impl std::fmt::Display for NotJson {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for NotJson {}

fn descriptor(name: &str) -> Result<MessageDescriptor, NotJson> {
    let pool = POOL.as_ref().ok_or_else(|| NotJson("the built-in API description is damaged".into()))?;
    let full = format!("tidewall.v1.{name}");
    pool.get_message_by_name(&full).ok_or_else(|| NotJson(format!("there is no message {full}")))
}

/// A message as JSON; `name` is that of its type, such as `Change`.
///
/// # Errors
/// It is no such message.
pub fn to_json(name: &str, message: &impl Message) -> Result<String, NotJson> {
    let bytes = message.encode_to_vec();
    let message = DynamicMessage::decode(descriptor(name)?, bytes.as_slice());
    let message = message.map_err(|why| NotJson(format!("no {name}: {why}")))?;
    serde_json::to_string(&message).map_err(|why| NotJson(format!("{name} as JSON: {why}")))
}

/// A message from JSON; `name` is that of its type.
///
/// # Errors
/// It is no such message.
pub fn from_json<M: Message + Default>(name: &str, json: &str) -> Result<M, NotJson> {
    let mut reader = serde_json::Deserializer::from_str(json);
    let message = DynamicMessage::deserialize(descriptor(name)?, &mut reader);
    let message = message.map_err(|why| NotJson(format!("no JSON of {name}: {why}")))?;
    reader.end().map_err(|why| NotJson(format!("behind the JSON of {name}: {why}")))?;
    M::decode(message.encode_to_vec().as_slice()).map_err(|why| NotJson(format!("no {name}: {why}")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::v1;

    #[test]
    fn a_message_is_the_same_after_it_was_json() {
        let delivery = v1::WebhookDelivery {
            webhook: "regions/north/webhooks/w1".into(),
            changes: vec![v1::Change {
                place: Some(v1::Place { incarnation: 1, index: u64::MAX, changes: 3 }),
                kind: v1::ChangeKind::TicketCancelled.into(),
                what: Some(v1::change::What::CancelledTicket("ga-1 \u{1f600} \" \n".into())),
                ..Default::default()
            }],
            missed: None,
        };
        let json = to_json("WebhookDelivery", &delivery).unwrap();
        assert!(json.contains("\"CHANGE_KIND_TICKET_CANCELLED\""), "{json}");
        assert!(json.contains("\"18446744073709551615\""), "{json}");
        assert_eq!(from_json::<v1::WebhookDelivery>("WebhookDelivery", &json).unwrap(), delivery);
        assert!(from_json::<v1::WebhookDelivery>("WebhookDelivery", "{} {}").is_err());
        assert!(to_json("NoSuchMessage", &delivery).is_err());
    }
}
