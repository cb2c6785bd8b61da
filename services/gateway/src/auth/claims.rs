//! What the claims of a token mean (RFC 7519): who, for whom, from when until when, with which roles. A claim of another kind
//! than it must be is never taken for an absent one.

use serde_json::Value;

use super::jws::Object;
use super::{AUDIENCE, LEEWAY_S, ROLES, SUBJECT_BYTES_MAX, bit, role_name, valid_subject};

/// Claims that were checked.
#[derive(Debug, PartialEq)]
pub(super) struct Claims {
    /// Who.
    pub(super) subject: String,
    /// What for, as bits.
    pub(super) roles: u8,
    /// Void from then on, Unix seconds.
    pub(super) expires_at_s: f64,
    /// In which session.
    pub(super) session: Option<[u8; 16]>,
}

/// Why claims are not accepted: what is wrong with which of them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum ClaimsError {
    /// A claim that must be there is not.
    #[error("it has no claim {0:?}")]
    Missing(&'static str),
    /// A claim is of another kind than it must be.
    #[error("its claim {name:?} is not {expected}")]
    Kind {
        /// The claim.
        name: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// For somebody else.
    #[error("its audience (aud) is not {AUDIENCE:?}")]
    Audience,
    /// Too late.
    #[error("it has expired: get a new one")]
    Expired,
    /// Too early.
    #[error("it is not valid yet (nbf)")]
    Early,
    /// Nobody can be called that.
    #[error(
        "the token's subject must be 1 to {SUBJECT_BYTES_MAX} bytes without control characters, and not *"
    )]
    Subject,
}

/// A date: seconds since 1970, with or without a fraction (RFC 7519, NumericDate).
fn date(object: &Object, name: &'static str) -> Result<Option<f64>, ClaimsError> {
    let Some(value) = object.0.get(name) else { return Ok(None) };
    let seconds = value.as_f64().filter(|seconds| seconds.is_finite());
    seconds.map(Some).ok_or(ClaimsError::Kind { name, expected: "a number of seconds since 1970" })
}

fn text<'a>(object: &'a Object, name: &'static str) -> Result<Option<&'a str>, ClaimsError> {
    let Some(value) = object.0.get(name) else { return Ok(None) };
    value.as_str().map(Some).ok_or(ClaimsError::Kind { name, expected: "a text" })
}

/// One text, or a list of texts.
fn texts<'a>(value: &'a Value, name: &'static str) -> Result<Vec<&'a str>, ClaimsError> {
    let wrong = ClaimsError::Kind { name, expected: "a text or a list of texts" };
    match value {
        Value::String(text) => Ok(vec![text]),
        Value::Array(list) => list.iter().map(|text| text.as_str().ok_or_else(|| wrong.clone())).collect(),
        _ => Err(wrong),
    }
}

/// Checks the claims of a token at a time, Unix milliseconds.
pub(super) fn check(object: &Object, now_ms: u64) -> Result<Claims, ClaimsError> {
    let now_s = now_ms as f64 / 1_000.0;
    let audience = object.0.get("aud").ok_or(ClaimsError::Missing("aud"))?;
    if !texts(audience, "aud")?.contains(&AUDIENCE) {
        return Err(ClaimsError::Audience);
    }
    let expires_at_s = date(object, "exp")?.ok_or(ClaimsError::Missing("exp"))?;
    if now_s >= expires_at_s + LEEWAY_S {
        return Err(ClaimsError::Expired);
    }
    if date(object, "nbf")?.is_some_and(|from_s| now_s + LEEWAY_S < from_s) {
        return Err(ClaimsError::Early);
    }
    // They decide nothing here, but must be what they are called.
    date(object, "iat")?;
    text(object, "iss")?;
    text(object, "jti")?;
    let subject = text(object, "sub")?.ok_or(ClaimsError::Missing("sub"))?;
    if !valid_subject(subject) {
        return Err(ClaimsError::Subject);
    }
    let names = match object.0.get("roles") {
        None => Vec::new(),
        Some(Value::Array(_)) => texts(&object.0["roles"], "roles")?,
        Some(_) => return Err(ClaimsError::Kind { name: "roles", expected: "a list of texts" }),
    };
    // A role that this build does not know gives nothing here.
    let known = ROLES.into_iter().filter(|role| names.contains(&role_name(*role)));
    let roles = known.fold(0, |bits, role| bits | bit(role));
    // Of another issuer it may be whatever that calls a session.
    let session =
        text(object, "sid")?.and_then(|sid| uuid::Uuid::try_parse(sid).ok()).map(uuid::Uuid::into_bytes);
    Ok(Claims { subject: subject.to_owned(), roles, expires_at_s, session })
}
