//! Who calls: EdDSA JWTs, verified locally against configured public keys, and the minting of development
//! tokens. Never asks another service and never trusts a request field.

mod cache;
mod claims;
mod jws;
mod token;

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::errors::ApiError;

pub(crate) use cache::TokenCache;
pub use tidewall_proto::v1::Role;
pub use token::{KeyPair, Minter, TokenError, generate_key, mint, public_key_of};

/// Audience that tokens must name.
pub const AUDIENCE: &str = "tidewall";
/// Longest subject, bytes.
pub const SUBJECT_BYTES_MAX: usize = 128;
/// Longest token, bytes.
const TOKEN_BYTES_MAX: usize = 8 * 1024;
/// How far the clocks of issuer and gateway may differ, seconds.
const LEEWAY_S: f64 = 5.0;

/// All roles.
pub const ROLES: [Role; 7] =
    [Role::Organiser, Role::Seller, Role::Operator, Role::User, Role::Support, Role::Auditor, Role::Admin];

/// A role's name in the token's `roles` claim.
pub fn role_name(role: Role) -> &'static str {
    match role {
        Role::Unspecified => "none",
        Role::Organiser => "organiser",
        Role::Seller => "seller",
        Role::Operator => "operator",
        Role::User => "user",
        Role::Support => "support",
        Role::Auditor => "auditor",
        Role::Admin => "admin",
    }
}

/// As the rules of the regions know it: 1 organiser, 2 seller, 4 operator, and so on.
pub(crate) fn bit(role: Role) -> u8 {
    (1u8 << role as u8) >> 1
}

/// The roles that these bits stand for.
pub(crate) fn roles_of(bits: u32) -> Vec<Role> {
    ROLES.into_iter().filter(|role| bits & u32::from(bit(*role)) != 0).collect()
}

/// Whether a string can be the subject of a token, and so the owner of a ticket: 1 to 128 bytes, no control
/// characters, and not `*`, which means everybody in a request.
pub fn valid_subject(subject: &str) -> bool {
    (1..=SUBJECT_BYTES_MAX).contains(&subject.len())
        && subject != "*"
        && !subject.chars().any(char::is_control)
}

/// A verified caller.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Principal {
    pub(crate) subject: String,
    roles: u8,
    /// Unix seconds; the token is void from then on.
    expires_at_s: f64,
    /// The session that the token belongs to, 16 bytes; none: it was not made for one.
    pub(crate) session: Option<[u8; 16]>,
}

impl Principal {
    /// Somebody without a token.
    pub(crate) fn nobody(subject: String) -> Self {
        Self { subject, roles: 0, expires_at_s: 0.0, session: None }
    }

    /// How long the token is still good.
    pub(crate) fn expires_in(&self, now_ms: u64) -> Duration {
        let left_s = self.expires_at_s - now_ms as f64 / 1_000.0;
        Duration::try_from_secs_f64(left_s.max(0.0)).unwrap_or(Duration::MAX)
    }

    pub(crate) fn has(&self, role: Role) -> bool {
        self.roles & bit(role) != 0
    }

    /// All roles, a bit each, as regions see them.
    pub(crate) fn role_bits(&self) -> u32 {
        self.roles.into()
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
                role_name(role),
                self.subject
            ),
        ))
    }
}

/// A caller as far as it is known without checking a signature.
pub(crate) enum Caller<'a> {
    Known(Arc<Principal>),
    /// None is needed.
    Nobody,
    /// A token that was not seen before.
    Unverified(&'a str),
}

/// Verifies tokens and remembers those it has verified.
pub(crate) struct Authenticator {
    keys: Vec<[u8; 32]>,
    cache: TokenCache,
    early: Mutex<Early>,
}

/// How many signatures may be checked before their calls have waited for their turn.
struct Early {
    left: f64,
    at: Option<Instant>,
}

/// So many signatures a second may be checked early, and so many at once: about a twentieth of a core.
const EARLY_PER_SECOND: f64 = 1_000.0;

impl Authenticator {
    pub(crate) fn new(public_keys: &[[u8; 32]], cache_entries: usize) -> Self {
        let early = Mutex::new(Early { left: EARLY_PER_SECOND, at: None });
        Self { keys: public_keys.to_vec(), cache: TokenCache::new(cache_entries), early }
    }

    /// Whether a signature may be checked now, before its call has waited for its turn.
    pub(crate) fn may_verify_early(&self, now: Instant) -> bool {
        let mut early = self.early.lock();
        let passed = early.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        early.left = (early.left + passed * EARLY_PER_SECOND).min(EARLY_PER_SECOND);
        early.at = early.at.max(Some(now));
        let may = early.left >= 1.0;
        if may {
            early.left -= 1.0;
        }
        may
    }

    /// Finds the token. Cheap: a signature check costs more than the rest of a call, so it is left for
    /// [`Authenticator::verify`], after the call was admitted.
    pub(crate) fn look_up<'a>(&self, metadata: &'a MetadataMap, now_ms: u64) -> Result<Caller<'a>, ApiError> {
        let mut values = metadata.get_all("authorization").iter();
        let Some(value) = values.next() else {
            return Err(ApiError::unauthenticated(
                "TOKEN_REQUIRED",
                "the call carries no token: send metadata `authorization: Bearer <token>` (tidewall token \
                 --user NAME mints one for development)",
            ));
        };
        if values.next().is_some() {
            // Proxies and servers that pick different ones of two would see different callers.
            return Err(ApiError::unauthenticated(
                "TOKEN_MALFORMED",
                "the call carries more than one authorization metadata: send one",
            ));
        }
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
            Some(principal) if (now_ms as f64) < (principal.expires_at_s + LEEWAY_S) * 1_000.0 => {
                Caller::Known(principal)
            }
            _ => Caller::Unverified(token),
        })
    }

    /// Makes sure who the caller is.
    pub(crate) fn verify(&self, caller: Caller<'_>, now_ms: u64) -> Result<Arc<Principal>, ApiError> {
        let token = match caller {
            Caller::Known(principal) => return Ok(principal),
            Caller::Nobody => return Ok(Arc::new(Principal::nobody(String::new()))),
            Caller::Unverified(token) => token,
        };
        let refused = |why: String| {
            ApiError::unauthenticated("TOKEN_INVALID", format!("the token is not accepted: {why}"))
        };
        let payload = jws::verify(token, &self.keys).map_err(|error| refused(error.to_string()))?;
        let claims = claims::check(&payload, now_ms).map_err(|error| refused(error.to_string()))?;
        let claims::Claims { subject, roles, expires_at_s, session } = claims;
        let principal = Arc::new(Principal { subject, roles, expires_at_s, session });
        self.cache.put(token, &principal);
        Ok(principal)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::time::Duration;

    use base64::Engine as _;
    use base64::engine::general_purpose::URL_SAFE_NO_PAD;
    use ring::signature::Ed25519KeyPair;
    use serde_json::{Value, json};
    use tidewall_env::clock::unix_ms;

    use super::*;

    /// The time of the table below, Unix seconds.
    const NOW_S: u64 = 1_800_000_000;

    fn metadata(text: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", text.parse().unwrap());
        metadata
    }

    fn check_at(authenticator: &Authenticator, token: &str, now_ms: u64) -> Result<Arc<Principal>, String> {
        let metadata = metadata(&format!("Bearer {token}"));
        let caller = authenticator.look_up(&metadata, now_ms).map_err(|error| format!("{error:?}"))?;
        authenticator.verify(caller, now_ms).map_err(|error| format!("{error:?}"))
    }

    fn signed(key: &KeyPair, header: &str, payload: &str) -> String {
        let key = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&key.pkcs8).unwrap();
        jws::sign(&key, header.as_bytes(), payload.as_bytes())
    }

    #[test]
    fn a_minted_token_is_accepted_and_remembered() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[generate_key().unwrap().public, key.public], 100);
        let token = mint(&key.pkcs8, "alice", &[Role::Seller], Duration::from_secs(60)).unwrap();
        let alice = check_at(&authenticator, &token, unix_ms()).unwrap();
        assert_eq!(alice.subject, "alice");
        assert!(alice.has(Role::Seller) && !alice.has(Role::Operator));
        assert_eq!(ROLES.map(bit), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(bit(Role::Unspecified), 0);
        assert_eq!(roles_of(65), [Role::Organiser, Role::Admin]);
        assert!(alice.require(Role::Operator).is_err());
        let metadata = metadata(&format!("bearer {token}"));
        assert!(matches!(authenticator.look_up(&metadata, unix_ms()).unwrap(), Caller::Known(_)));
    }

    const HEADER: &str = r#"{"alg":"EdDSA"}"#;

    fn with(changes: Value) -> String {
        let mut claims = json!({"sub": "alice", "aud": "tidewall", "exp": NOW_S + 60});
        for (name, value) in changes.as_object().unwrap() {
            match value {
                // "absent" takes a claim out, so that null can be a value.
                Value::String(text) if text == "absent" => drop(claims.as_object_mut().unwrap().remove(name)),
                value => claims[name] = value.clone(),
            }
        }
        claims.to_string()
    }

    /// RFC 7515, 7519 and 8725, header by header and claim by claim: what must be accepted.
    fn accepted() -> Vec<(&'static str, String)> {
        vec![
            // The header.
            (HEADER, with(json!({}))),
            (r#"{"alg":"Ed25519"}"#, with(json!({}))),
            (r#"{"alg":"EdDSA","typ":"JWT"}"#, with(json!({}))),
            (r#"{"typ":"jwt","alg":"EdDSA"}"#, with(json!({}))),
            (r#"{"alg":"EdDSA","typ":"at+jwt","kid":"2026-11"}"#, with(json!({}))),
            (r#"{"alg":"EdDSA","typ":"application/at+JWT"}"#, with(json!({}))),
            // What is not understood and not critical is ignored, and never followed.
            (
                r#"{"alg":"EdDSA","jku":"https://evil.example","x5u":"x","jwk":{"kty":"OKP"}}"#,
                with(json!({})),
            ),
            (r#"{ "alg" : "EdDSA" , "private" : [1, {"a": null}] }"#, with(json!({}))),
            // Dates, with the leeway for clocks.
            (HEADER, with(json!({"exp": NOW_S - 4}))),
            (HEADER, with(json!({"exp": NOW_S as f64 + 0.5}))),
            (HEADER, with(json!({"exp": 1e30}))),
            (HEADER, with(json!({"nbf": NOW_S + 5, "iat": NOW_S}))),
            (HEADER, with(json!({"nbf": 0, "iat": 1.5}))),
            (HEADER, with(json!({"nbf": -5}))),
            // Others.
            (HEADER, with(json!({"aud": ["other", "tidewall"]}))),
            (HEADER, with(json!({"iss": "https://id.example", "jti": "7", "scope": {"any": "thing"}}))),
            (HEADER, with(json!({"roles": []}))),
            (HEADER, with(json!({"roles": ["organiser", "not-of-ours"]}))),
            (HEADER, with(json!({"sub": "\u{1F3AB} Zo\u{eb}"}))),
        ]
    }

    /// What must not, and why.
    fn refused() -> Vec<(&'static str, String, &'static str)> {
        vec![
            (r#"{"alg":"none"}"#, with(json!({})), "EdDSA"),
            (r#"{"alg":"HS256"}"#, with(json!({})), "EdDSA"),
            (r#"{"alg":"eddsa"}"#, with(json!({})), "EdDSA"),
            (r#"{"alg":["EdDSA"]}"#, with(json!({})), "EdDSA"),
            ("{}", with(json!({})), "EdDSA"),
            (r#"{"alg":"EdDSA","crit":["exp"],"exp":1}"#, with(json!({})), "crit"),
            (r#"{"alg":"EdDSA","crit":["tidewall"],"tidewall":1}"#, with(json!({})), "crit"),
            (r#"{"alg":"EdDSA","crit":[]}"#, with(json!({})), "crit"),
            (r#"{"alg":"EdDSA","crit":null}"#, with(json!({})), "crit"),
            (r#"{"alg":"EdDSA","b64":false}"#, with(json!({})), "b64"),
            (r#"{"alg":"EdDSA","zip":"DEF"}"#, with(json!({})), "zip"),
            (r#"{"alg":"EdDSA","enc":"A128GCM"}"#, with(json!({})), "enc"),
            (r#"{"alg":"EdDSA","cty":"JWT"}"#, with(json!({})), "cty"),
            (r#"{"alg":"EdDSA","typ":"dpop+jwt"}"#, with(json!({})), "typ"),
            (r#"{"alg":"EdDSA","typ":7}"#, with(json!({})), "typ"),
            (r#"{"alg":"EdDSA","kid":7}"#, with(json!({})), "kid"),
            (r#"{"alg":"none","alg":"EdDSA"}"#, with(json!({})), "unique"),
            (r#"["EdDSA"]"#, with(json!({})), "object"),
            ("not json", with(json!({})), "object"),
            (HEADER, r#"{"sub":"alice","sub":"bob","aud":"tidewall","exp":1900000000}"#.into(), "unique"),
            (HEADER, "[]".into(), "object"),
            (HEADER, "{".into(), "object"),
            (HEADER, with(json!({"exp": NOW_S - 5})), "expired"),
            (HEADER, with(json!({"exp": -1})), "expired"),
            (HEADER, with(json!({"exp": "absent"})), "exp"),
            (HEADER, with(json!({"exp": (NOW_S + 60).to_string()})), "exp"),
            (HEADER, with(json!({"exp": null})), "exp"),
            (HEADER, with(json!({"exp": {}})), "exp"),
            (HEADER, with(json!({"exp": [NOW_S + 60]})), "exp"),
            (HEADER, with(json!({"exp": true})), "exp"),
            (HEADER, with(json!({"nbf": NOW_S + 6})), "yet"),
            (HEADER, with(json!({"nbf": 1e30})), "yet"),
            (HEADER, with(json!({"nbf": (NOW_S - 60).to_string()})), "nbf"),
            (HEADER, with(json!({"nbf": {}})), "nbf"),
            (HEADER, with(json!({"nbf": null})), "nbf"),
            (HEADER, with(json!({"iat": "today"})), "iat"),
            (HEADER, with(json!({"aud": "absent"})), "aud"),
            (HEADER, with(json!({"aud": "Tidewall"})), "audience"),
            (HEADER, with(json!({"aud": []})), "audience"),
            (HEADER, with(json!({"aud": ["tidewall", 7]})), "aud"),
            (HEADER, with(json!({"aud": {"tidewall": true}})), "aud"),
            (HEADER, with(json!({"aud": null})), "aud"),
            (HEADER, with(json!({"iss": 7})), "iss"),
            (HEADER, with(json!({"jti": 7})), "jti"),
            (HEADER, with(json!({"sub": "absent"})), "sub"),
            (HEADER, with(json!({"sub": 7})), "sub"),
            (HEADER, with(json!({"sub": ""})), "subject"),
            (HEADER, with(json!({"sub": "*"})), "subject"),
            (HEADER, with(json!({"sub": "a\nb"})), "subject"),
            (HEADER, with(json!({"sub": "x".repeat(129)})), "subject"),
            (HEADER, with(json!({"roles": "operator"})), "roles"),
            (HEADER, with(json!({"roles": ["seller", 7]})), "roles"),
            (HEADER, with(json!({"roles": null})), "roles"),
        ]
    }

    #[test]
    fn tokens_are_accepted_and_refused_by_the_book() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[key.public], 100);
        let check = |header: &str, payload: &str| {
            check_at(&authenticator, &signed(&key, header, payload), NOW_S * 1_000)
        };
        for (header, payload) in accepted() {
            let checked = check(header, &payload);
            assert!(checked.is_ok(), "{header} {payload}: {checked:?}");
        }
        for (header, payload, why) in refused() {
            let checked = check(header, &payload);
            assert!(
                checked.as_ref().is_err_and(|error| error.contains(why)),
                "{header} {payload}: {checked:?}"
            );
        }
        let organiser = check(HEADER, &with(json!({"roles": ["organiser"]}))).unwrap();
        assert!(organiser.has(Role::Organiser) && !organiser.has(Role::Operator));
    }

    #[test]
    fn what_nobody_of_ours_has_signed_or_what_was_changed_since_is_refused() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[key.public], 100);
        let now_ms = NOW_S * 1_000;
        let token = signed(&key, HEADER, &with(json!({})));
        let stranger = signed(&generate_key().unwrap(), HEADER, &with(json!({})));
        assert!(check_at(&authenticator, &stranger, now_ms).unwrap_err().contains("signed with a key"));
        let none = Authenticator::new(&[], 100);
        assert!(check_at(&none, &token, now_ms).unwrap_err().contains("signed with a key"));
        let parts: Vec<&str> = token.split('.').collect();
        let other = URL_SAFE_NO_PAD.encode(with(json!({"sub": "mallory"})));
        let changed = [
            format!("{}.{}.{}", parts[0], other, parts[2]),
            format!("{}.{}.", parts[0], parts[1]),
            format!("{}.{}", parts[0], parts[1]),
            format!("{token}.{}", parts[2]),
            format!(".{token}"),
            format!("{token}="),
            format!("{}.{}.{}", parts[0], parts[1], &parts[2][..parts[2].len() - 2]),
            format!("{}.{}.{}A", parts[0], parts[1], parts[2]),
            format!("{} .{}.{}", parts[0], parts[1], parts[2]),
            token.replace('.', ","),
        ];
        for token in changed {
            assert!(check_at(&authenticator, &token, now_ms).is_err(), "{token}");
        }
        assert!(check_at(&authenticator, &token, now_ms).is_ok());
    }

    #[test]
    fn a_remembered_token_expires_all_the_same() {
        let key = generate_key().unwrap();
        let authenticator = Authenticator::new(&[key.public], 100);
        let token = signed(&key, HEADER, &with(json!({})));
        check_at(&authenticator, &token, NOW_S * 1_000).unwrap();
        check_at(&authenticator, &token, (NOW_S + 64) * 1_000).unwrap();
        assert!(check_at(&authenticator, &token, (NOW_S + 65) * 1_000).unwrap_err().contains("expired"));
    }

    #[test]
    fn signatures_are_checked_early_up_to_a_rate() {
        let authenticator = Authenticator::new(&[], 100);
        let now = Instant::now();
        let checked = |now| (0..5_000).filter(|_| authenticator.may_verify_early(now)).count();
        assert_eq!(checked(now), 1_000);
        assert_eq!(checked(now + Duration::from_millis(100)), 100);
        assert_eq!(checked(now + Duration::from_secs(60)), 1_000);
        assert_eq!(checked(now), 0, "time that seems to go back gives nothing");
    }

    #[test]
    fn what_is_not_one_bearer_token_is_refused() {
        let authenticator = Authenticator::new(&[], 100);
        assert!(authenticator.look_up(&MetadataMap::new(), 0).is_err());
        for text in ["Bearer", "Bearer ", "Basic abc"] {
            assert!(authenticator.look_up(&metadata(text), 0).is_err(), "{text:?}");
        }
        let long = format!("Bearer {}", "x".repeat(TOKEN_BYTES_MAX + 1));
        assert!(authenticator.look_up(&metadata(&long), 0).is_err());
        let mut two = metadata("Bearer a");
        assert!(authenticator.look_up(&two, 0).is_ok());
        two.append("authorization", "Bearer b".parse().unwrap());
        assert!(authenticator.look_up(&two, 0).is_err());
    }
}
