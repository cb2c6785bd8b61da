//! Tokens for clients: JSON Web Tokens (RFC 7519) with Ed25519 signatures (RFC 8037), signed with the development key of a cluster.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::Ed25519KeyPair;
use tidewall_load::Mint;

use crate::ChaosError;

/// Longer than any run.
const LIFETIME: Duration = Duration::from_secs(48 * 3_600);
/// Whom tokens are for.
const AUDIENCE: &str = "tidewall";

/// Makes tokens with the private key in a PEM file.
///
/// # Errors
/// When it cannot be read, or is no Ed25519 key in PKCS #8 form.
pub fn mint(key: &Path) -> Result<Mint, ChaosError> {
    let text = std::fs::read_to_string(key).map_err(ChaosError::system(format!("read {}", key.display())))?;
    let unusable = |why: String| ChaosError::Site(format!("{} is no key to sign with: {why}", key.display()));
    let pem = pem::parse(text).map_err(|error| unusable(error.to_string()))?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(pem.contents());
    let pair = pair.map_err(|error| unusable(error.to_string()))?;
    Ok(Arc::new(move |subject, roles| token(&pair, subject, roles)))
}

fn token(key: &Ed25519KeyPair, subject: &str, roles: &[&str]) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let claims = serde_json::json!({
        "aud": AUDIENCE,
        "sub": subject,
        "roles": roles,
        "iat": now.as_secs(),
        "exp": (now + LIFETIME).as_secs(),
    });
    let header = URL_SAFE_NO_PAD.encode(r#"{"typ":"JWT","alg":"EdDSA"}"#);
    let signed = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims.to_string()));
    let signature = URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()));
    format!("{signed}.{signature}")
}
