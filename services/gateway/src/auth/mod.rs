//! Who calls: EdDSA JWTs, verified locally against configured public keys, and the minting of development
//! tokens. Never asks another service and never trusts a request field.

mod cache;
mod token;

use std::sync::Arc;

use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use tidewall_env::clock::unix_ms;
use tonic::metadata::MetadataMap;

use crate::errors::ApiError;

pub(crate) use cache::TokenCache;
pub use token::{KeyPair, Minter, TokenError, generate_key, mint, public_key_of};

/// Audience that tokens must name.
pub const AUDIENCE: &str = "tidewall";
/// Longest subject, bytes.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// Longest token, bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the clocks of issuer and gateway may differ, seconds.
const LEEWAY_S: u64 = 5;

/// What a principal may do beyond buying for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Creates and changes events.
    Organiser,
    /// Sells on behalf of many buyers.
    Seller,
    /// Runs the platform; may touch what is not its own.
    Operator,
}

impl Role {
    /// All roles.
    pub const ALL: [Role; 3] = [Role::Organiser, Role::Seller, Role::Operator];

    /// Its name in the token's `roles` claim.
    pub fn name(self) -> &'static str {
        match self {
            Self::Organiser => "organiser",
            Self::Seller => "seller",
            Self::Operator => "operator",
        }
    }

    fn bit(self) -> u8 {
        match self {
            Self::Organiser => 1,
            Self::Seller => 2,
            Self::Operator => 4,
        }
    }
}

/// Whether a string can be the subject of a token, and so the owner of a ticket: 1 to 128 bytes, no control
/// characters, and not `*`, which means everybody in a request.
pub fn valid_subject(subject: &str) -> bool {
    (1..=SUBJECT_BYTES_MAX).contains(&subject.len())
        && subject != "*"
        && !subject.chars().any(char::is_control)
}

/// A verified caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) subject: String,
    roles: u8,
    /// Unix seconds; the token is void from then on.
    expires_at_s: u64,
}

impl Principal {
    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles & role.bit() != 0
    }

    /// Refuses who lacks the role.
    pub(crate) fn require(&self, role: Role) -> Result<(), ApiError> {
        if self.has(role) {
            return Ok(());
        }
        Err(ApiError::denied(
            "ROLE_REQUIRED",
            format!(
                "this call needs the role {0}, which the token of {1} does not have: use a token with {0} in \
                 its roles claim (tidewall token --user {1} --role {0} mints one for development)",
                role.name(),
                self.subject
            ),
        ))
    }
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
    exp: u64,
    #[serde(default)]
    roles: Vec<String>,
}

/// A caller as far as it is known without checking a signature.
pub(crate) enum Caller<'a> {
    Known(Arc<Principal>),
    /// A token that was not seen before.
    Unverified(&'a str),
}

/// Verifies tokens and remembers those it has verified.
pub(crate) struct Authenticator {
    keys: Vec<DecodingKey>,
    validation: Validation,
    cache: TokenCache,
}

impl Authenticator {
    pub(crate) fn new(public_keys: &[[u8; 32]], cache_entries: usize) -> Self {
        let mut validation = Validation::new(Algorithm::EdDSA);
        validation.set_audience(&[AUDIENCE]);
        validation.set_required_spec_claims(&["exp", "sub", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY_S;
        Self {
            keys: public_keys.iter().map(|key| DecodingKey::from_ed_der(key)).collect(),
            validation,
            cache: TokenCache::new(cache_entries),
        }
    }

    /// Finds the token. Cheap: a signature check costs more than the rest of a call, so it is left for
    /// [`Authenticator::verify`], after the call was admitted.
    pub(crate) fn look_up<'a>(&self, metadata: &'a MetadataMap) -> Result<Caller<'a>, ApiError> {
        let Some(value) = metadata.get("authorization") else {
            return Err(ApiError::unauthenticated(
                "TOKEN_REQUIRED",
                "the call carries no token: send metadata `authorization: Bearer <token>` (tidewall token \
                 --user NAME mints one for development)",
            ));
        };
        let token = value.to_str().ok().and_then(|text| {
            let (scheme, token) = text.split_once(' ')?;
            (scheme.eq_ignore_ascii_case("bearer") && !token.is_empty()).then_some(token)
        });
        let token = token.filter(|token| token.len() <= TOKEN_BYTES_MAX).ok_or_else(|| {
            ApiError::unauthenticated(
                "TOKEN_MALFORMED",
                format!(
                    "the authorization metadata is not `Bearer <token>` of at most {TOKEN_BYTES_MAX} bytes"
                ),
            )
        })?;
        Ok(match self.cache.get(token) {
            Some(principal) if unix_ms() / 1000 < principal.expires_at_s.saturating_add(LEEWAY_S) => {
                Caller::Known(principal)
            }
            _ => Caller::Unverified(token),
        })
    }

    /// Makes sure who the caller is.
    pub(crate) fn verify(&self, caller: Caller<'_>) -> Result<Arc<Principal>, ApiError> {
        let token = match caller {
            Caller::Known(principal) => return Ok(principal),
            Caller::Unverified(token) => token,
        };
        let claims = self.decode(token)?;
        if !valid_subject(&claims.sub) {
            return Err(ApiError::unauthenticated(
                "TOKEN_INVALID",
                format!(
                    "the token's subject must be 1 to {SUBJECT_BYTES_MAX} bytes without control characters, \
                     and not *"
                ),
            ));
        }
        let roles = Role::ALL
            .into_iter()
            .filter(|role| claims.roles.iter().any(|name| name == role.name()))
            .fold(0, |bits, role| bits | role.bit());
        let principal = Arc::new(Principal { subject: claims.sub, roles, expires_at_s: claims.exp });
        self.cache.put(token, &principal);
        Ok(principal)
    }

    fn decode(&self, token: &str) -> Result<Claims, ApiError> {
        use jsonwebtoken::errors::ErrorKind;
        let mut why = "no public key is configured at this gateway".to_owned();
        for key in &self.keys {
            match jsonwebtoken::decode::<Claims>(token, key, &self.validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => {
                    why = match error.kind() {
                        ErrorKind::ExpiredSignature => "it has expired: get a new one".to_owned(),
                        ErrorKind::ImmatureSignature => "it is not valid yet (nbf)".to_owned(),
                        ErrorKind::InvalidAudience => format!("its audience (aud) is not {AUDIENCE:?}"),
                        ErrorKind::InvalidSignature => {
                            "it is not signed with a key that this cluster knows".to_owned()
                        }
                        ErrorKind::InvalidAlgorithm => "it is not signed with EdDSA".to_owned(),
                        ErrorKind::MissingRequiredClaim(claim) => format!("it has no claim {claim:?}"),
                        _ => "it is not a JWT of the expected form".to_owned(),
                    };
                    if !matches!(error.kind(), ErrorKind::InvalidSignature) {
                        break;
                    }
                }
            }
        }
        Err(ApiError::unauthenticated("TOKEN_INVALID", format!("the token is not accepted: {why}")))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    use super::*;

    fn metadata(text: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", text.parse().unwrap());
        metadata
    }

    fn check(authenticator: &Authenticator, token: &str) -> Result<Arc<Principal>, String> {
        let metadata = metadata(&format!("Bearer {token}"));
        let caller = authenticator.look_up(&metadata).map_err(|error| format!("{error:?}"))?;
        authenticator.verify(caller).map_err(|error| format!("{error:?}"))
    }

    fn signed(key: &KeyPair, claims: &Value) -> String {
        encode(&Header::new(Algorithm::EdDSA), claims, &EncodingKey::from_ed_der(&key.pkcs8)).unwrap()
    }

    fn now_s() -> u64 {
        unix_ms() / 1000
    }

    #[test]
    fn a_minted_token_is_accepted_and_remembered() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[generate_key().unwrap().public, key.public], 100);
        let token = mint(&key.pkcs8, "alice", &[Role::Seller], Duration::from_secs(60)).unwrap();
        let alice = check(&authenticator, &token).unwrap();
        assert_eq!(alice.subject, "alice");
        assert!(alice.has(Role::Seller) && !alice.has(Role::Operator));
        assert!(alice.require(Role::Operator).is_err());
        let metadata = metadata(&format!("bearer {token}"));
        assert!(matches!(authenticator.look_up(&metadata).unwrap(), Caller::Known(_)));
    }

    #[test]
    fn tokens_that_prove_nothing_are_refused_with_the_reason() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[key.public], 100);
        let refused = |claims: Value| check(&authenticator, &signed(&key, &claims)).unwrap_err();
        let exp = now_s() + 60;
        assert!(refused(json!({"sub": "a", "aud": "tidewall", "exp": now_s() - 60})).contains("expired"));
        assert!(refused(json!({"sub": "a", "aud": "tidewall"})).contains("exp"));
        assert!(refused(json!({"sub": "a", "aud": "other", "exp": exp})).contains("audience"));
        assert!(refused(json!({"sub": "a", "exp": exp})).contains("aud"));
        assert!(refused(json!({"aud": "tidewall", "exp": exp})).contains("form"));
        assert!(
            refused(json!({"sub": "a", "aud": "tidewall", "exp": exp, "nbf": now_s() + 50})).contains("yet")
        );
        for subject in ["", "*", "a\nb", &"x".repeat(129)] {
            let claims = json!({"sub": subject, "aud": "tidewall", "exp": exp});
            assert!(refused(claims).contains("subject"), "{subject:?}");
        }
        let stranger = generate_key().unwrap();
        let forged = signed(&stranger, &json!({"sub": "a", "aud": "tidewall", "exp": exp}));
        assert!(check(&authenticator, &forged).unwrap_err().contains("signed with a key"));
        let symmetric = encode(
            &Header::new(Algorithm::HS256),
            &json!({"sub": "a", "aud": "tidewall", "exp": exp}),
            &EncodingKey::from_secret(&key.public),
        )
        .unwrap();
        assert!(check(&authenticator, &symmetric).is_err(), "the public key is no secret");
    }

    #[test]
    fn a_remembered_token_expires_all_the_same() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[key.public], 100);
        let old = Principal { subject: "a".into(), roles: 0, expires_at_s: now_s() - 60 };
        authenticator.cache.put("old", &Arc::new(old));
        assert!(check(&authenticator, "old").is_err());
    }

    #[test]
    fn what_is_not_a_bearer_token_is_refused() {
        let authenticator = Authenticator::new(&[], 100);
        assert!(authenticator.look_up(&MetadataMap::new()).is_err());
        for text in ["Bearer", "Bearer ", "Basic abc"] {
            assert!(authenticator.look_up(&metadata(text)).is_err(), "{text:?}");
        }
        let long = format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX + 1));
        assert!(authenticator.look_up(&metadata(&long)).is_err());
    }
}
