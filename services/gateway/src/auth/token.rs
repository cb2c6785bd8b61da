//! Keys and tokens for development and tests: what `tidewall token` and the load generator use. A gateway only
//! ever needs the public key.

use std::time::Duration;

use ring::rand::SystemRandom;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use serde::Serialize;
use tidewall_env::clock::unix_ms;

use super::{AUDIENCE, Role, jws, role_name, valid_subject};

/// Header of the tokens that are minted here.
const HEADER: &[u8] = br#"{"typ":"JWT","alg":"EdDSA"}"#;

/// Why a key or token could not be made.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The system has no randomness to give.
    #[error("the system's random number generator failed")]
    Random,
    /// Not a private key.
    #[error("the key is not an Ed25519 private key in PKCS#8 form: make one with `tidewall up` or openssl")]
    Key,
    /// The subject cannot be used.
    #[error("the user name {0:?} must be 1 to 128 bytes without control characters, and not *")]
    Subject(String),
    /// The claims could not be written.
    #[error("the claims of the token could not be written: {0}")]
    Claims(#[from] serde_json::Error),
}

/// A key pair for signing tokens.
pub struct KeyPair {
    /// The private key, PKCS#8; a secret.
    pub pkcs8: Vec<u8>,
    /// The public key, for [`GatewayConfig::public_keys`](crate::GatewayConfig::public_keys).
    pub public: [u8; 32],
}

impl std::fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

/// Makes a new key pair.
pub fn generate_key() -> Result<KeyPair, TokenError> {
    let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| TokenError::Random)?;
    let pkcs8 = document.as_ref().to_vec();
    let public = public_key_of(&pkcs8)?;
    Ok(KeyPair { pkcs8, public })
}

/// The public key that belongs to a private one in PKCS#8 form.
pub fn public_key_of(pkcs8: &[u8]) -> Result<[u8; 32], TokenError> {
    pair(pkcs8)?.public_key().as_ref().try_into().map_err(|_| TokenError::Key)
}

fn pair(pkcs8: &[u8]) -> Result<Ed25519KeyPair, TokenError> {
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(pkcs8).map_err(|_| TokenError::Key)
}

/// Mints one token that is valid from now on for `lifetime`.
pub fn mint(pkcs8: &[u8], subject: &str, roles: &[Role], lifetime: Duration) -> Result<String, TokenError> {
    Minter::new(pkcs8)?.mint(subject, roles, lifetime)
}

/// Mints many tokens with one key.
pub struct Minter {
    key: Ed25519KeyPair,
}

impl std::fmt::Debug for Minter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Minter")
    }
}

#[derive(Serialize)]
struct Claims<'a> {
    sub: &'a str,
    aud: &'a str,
    iat: u64,
    exp: u64,
    roles: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sid: Option<String>,
}

impl Minter {
    /// A minter that signs with this private key, PKCS#8.
    pub fn new(pkcs8: &[u8]) -> Result<Self, TokenError> {
        Ok(Self { key: pair(pkcs8)? })
    }

    /// Mints one token that is valid from now on for `lifetime`.
    pub fn mint(&self, subject: &str, roles: &[Role], lifetime: Duration) -> Result<String, TokenError> {
        self.sign(subject, roles, unix_ms() / 1000, lifetime, None)
    }

    /// Mints the access token of a session that was granted at a time, Unix milliseconds.
    pub(crate) fn mint_access(
        &self,
        subject: &str,
        roles: &[Role],
        granted_ms: u64,
        lifetime: Duration,
        session: [u8; 16],
    ) -> Result<String, TokenError> {
        let session = uuid::Uuid::from_bytes(session).simple().to_string();
        self.sign(subject, roles, granted_ms / 1000, lifetime, Some(session))
    }

    fn sign(
        &self,
        subject: &str,
        roles: &[Role],
        iat: u64,
        lifetime: Duration,
        sid: Option<String>,
    ) -> Result<String, TokenError> {
        if !valid_subject(subject) {
            return Err(TokenError::Subject(subject.to_owned()));
        }
        let claims = Claims {
            sub: subject,
            aud: AUDIENCE,
            iat,
            exp: iat.saturating_add(lifetime.as_secs()),
            roles: roles.iter().map(|role| role_name(*role)).collect(),
            sid,
        };
        Ok(jws::sign(&self.key, HEADER, &serde_json::to_vec(&claims)?))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nonsense_is_refused_before_it_is_signed() {
        assert!(matches!(public_key_of(b"not a key"), Err(TokenError::Key)));
        let key = generate_key().unwrap();
        assert_eq!(public_key_of(&key.pkcs8).unwrap(), key.public);
        let minted = mint(&key.pkcs8, "", &[], Duration::from_secs(1));
        assert!(matches!(minted, Err(TokenError::Subject(_))));
        assert!(!format!("{key:?}").contains("pkcs8"), "a secret is not printed");
    }
}
