//! Request ids: made once per intent, kept over all attempts. An id must never be made for a repetition.

use std::fmt;
use std::str::FromStr;

use uuid::Uuid;

/// The id of one intent of one principal: a UUID of version 7. The region that decides remembers it for 24
/// hours, so that however often it is sent, it is executed once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(Uuid);

impl RequestId {
    /// A fresh id for a new intent, from the system's clock and random numbers.
    pub fn fresh() -> Self {
        Self(Uuid::now_v7())
    }

    /// Its 16 bytes, most significant first.
    pub fn as_bytes(&self) -> &[u8; 16] {
        self.0.as_bytes()
    }

    /// An id from its 16 bytes; `None` when they are no UUID of version 7.
    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        Self::checked(Uuid::from_bytes(bytes))
    }

    fn checked(id: Uuid) -> Option<Self> {
        let sound = id.get_version_num() == 7 && id.get_variant() == uuid::Variant::RFC4122;
        sound.then_some(Self(id))
    }
}

/// A text that is not a request id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{text:?} is not a request id: it must be a UUID of version 7 in canonical form (8-4-4-4-12 hexadecimal \
     digits, lower case); leave the field empty to have one made"
)]
pub struct InvalidRequestId {
    text: String,
}

impl FromStr for RequestId {
    type Err = InvalidRequestId;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        // One intent has one spelling: the parser alone would also take braces, URNs and capitals.
        let id = Uuid::try_parse(text).ok().and_then(Self::checked).filter(|id| id.to_string() == text);
        id.ok_or_else(|| InvalidRequestId { text: text.chars().take(64).collect() })
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(f)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn an_id_survives_its_text_and_its_bytes_and_no_two_are_alike() {
        let id = RequestId::fresh();
        assert_eq!(id.to_string().parse::<RequestId>().unwrap(), id);
        assert_eq!(RequestId::from_bytes(*id.as_bytes()), Some(id));
        assert_ne!(id, RequestId::fresh());
    }

    #[test]
    fn other_spellings_and_other_versions_are_refused() {
        let id = RequestId::fresh().to_string();
        let other_version = "f47ac10b-58cc-4372-a567-0e02b2c3d479";
        // A digit says nothing about case: the first hexadecimal letter of a real id may be missing.
        let capitals = "0198A0B2-7C11-7A10-8F00-ABCDEFABCDEF";
        for wrong in ["", "7", &id.replace('-', ""), &format!("{{{id}}}"), capitals, other_version] {
            let error = wrong.parse::<RequestId>().unwrap_err();
            assert!(error.to_string().contains("version 7"), "{error}");
        }
        assert!(capitals.to_lowercase().parse::<RequestId>().is_ok());
        assert_eq!(RequestId::from_bytes([0; 16]), None);
    }
}
