//! JSON Web Signature, compact form, EdDSA only (RFC 7515, 8037 and 9864; RFC 8725 for what to refuse). It says who signed what,
//! and nothing of what the claims mean.
//!
//! The one algorithm is ours, never the header's choice; keys come from the configuration, never from the token. Whatever the
//! header calls critical is not understood here, and refused.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{ED25519, Ed25519KeyPair, UnparsedPublicKey};
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::Value;

/// Why a token proves nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum JwsError {
    /// Not three parts of base64url.
    #[error("it is not a JWT in compact form")]
    Form,
    /// A part is no JSON object with unique names.
    #[error("its {0} is not a JSON object with unique names")]
    Json(&'static str),
    /// Another algorithm.
    #[error("it is not signed with EdDSA")]
    Algorithm,
    /// An extension that must be understood.
    #[error("its header calls extensions critical (crit), and this server has none")]
    Critical,
    /// A header parameter is of another kind than it must be.
    #[error("its header parameter {0:?} makes no sense for a token of this kind")]
    Header(&'static str),
    /// Nobody of ours signed it.
    #[error("it is not signed with a key that this cluster knows")]
    Signature,
}

/// A JSON object whose names are unique.
pub(super) struct Object(pub(super) BTreeMap<String, Value>);

impl<'de> serde::Deserialize<'de> for Object {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Object;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Object, A::Error> {
                let mut members = BTreeMap::new();
                while let Some((name, value)) = access.next_entry::<String, Value>()? {
                    if members.insert(name, value).is_some() {
                        return Err(A::Error::custom("a name is used twice"));
                    }
                }
                Ok(Object(members))
            }
        }
        deserializer.deserialize_map(Members)
    }
}

fn object(part: &str, what: &'static str) -> Result<Object, JwsError> {
    let bytes = URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Form)?;
    serde_json::from_slice(&bytes).map_err(|_| JwsError::Json(what))
}

/// Whether a value is this text, or one of these, whatever the case of its letters.
fn is_one_of(value: &Value, texts: &[&str]) -> bool {
    value.as_str().is_some_and(|value| texts.iter().any(|text| text.eq_ignore_ascii_case(value)))
}

fn check_header(Object(header): &Object) -> Result<(), JwsError> {
    // RFC 9864 gives EdDSA with this curve a name of its own.
    match header.get("alg").and_then(Value::as_str) {
        Some("EdDSA" | "Ed25519") => {}
        _ => return Err(JwsError::Algorithm),
    }
    if header.contains_key("crit") {
        return Err(JwsError::Critical);
    }
    // Media types of tokens that are meant for other ends must not pass for ours.
    if header
        .get("typ")
        .is_some_and(|typ| !is_one_of(typ, &["JWT", "application/jwt", "at+jwt", "application/at+jwt"]))
    {
        return Err(JwsError::Header("typ"));
    }
    // A token within a token.
    if header.contains_key("cty") {
        return Err(JwsError::Header("cty"));
    }
    if header.get("kid").is_some_and(|kid| !kid.is_string()) {
        return Err(JwsError::Header("kid"));
    }
    // What changes how the payload is to be read, and compression, are extensions.
    for extension in ["b64", "zip", "enc"] {
        if header.contains_key(extension) {
            return Err(JwsError::Header(extension));
        }
    }
    Ok(())
}

/// The payload of a token that one of the keys has signed.
pub(super) fn verify(token: &str, keys: &[[u8; 32]]) -> Result<Object, JwsError> {
    let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::Form)?;
    let (header, payload) =
        signed.split_once('.').filter(|(_, rest)| !rest.contains('.')).ok_or(JwsError::Form)?;
    check_header(&object(header, "header")?)?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| JwsError::Form)?;
    let signed_by =
        |key: &[u8; 32]| UnparsedPublicKey::new(&ED25519, key).verify(signed.as_bytes(), &signature);
    if !keys.iter().any(|key| signed_by(key).is_ok()) {
        return Err(JwsError::Signature);
    }
    object(payload, "payload")
}

/// A token of this header and payload, signed.
pub(super) fn sign(key: &Ed25519KeyPair, header: &[u8], payload: &[u8]) -> String {
    let signed = format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}
