//! What the gateway alone knows of accounts: how passwords are hashed, tokens made, and personal fields encrypted.
//!
//! Regions see hashes and ciphertext. All of it hangs on one secret that the gateways of a cluster share ([`Secrets`]) and on keys
//! of persons in the keyring ([`persons`]); neither opens anything without the other. **Never here:** who may do what.

pub(crate) mod email;
pub(crate) mod passwords;
pub(crate) mod persons;
mod secrets;

use std::sync::Arc;
use std::time::Duration;

use crate::auth::{Minter, TokenError};
use crate::webhooks::call::Signer;
pub use passwords::HashingOptions;
pub(crate) use secrets::{PersonKey, RefreshToken, Secrets};

/// How long an access token lives: as long as it takes until a session that was ended, or a role that was withdrawn, is so
/// everywhere.
pub(crate) const ACCESS_LIFETIME: Duration = Duration::from_secs(600);

/// What a gateway needs to serve accounts.
#[derive(Clone)]
pub struct AccountsConfig {
    /// The secret that all gateways of the cluster share.
    pub secret: [u8; 32],
    /// Private key that signs access tokens, PKCS #8; gateways must accept it.
    pub signing_key: Vec<u8>,
    /// How passwords are hashed.
    pub hashing: HashingOptions,
}

impl std::fmt::Debug for AccountsConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccountsConfig").field("hashing", &self.hashing).finish_non_exhaustive()
    }
}

/// A gateway's means to serve accounts.
pub(crate) struct Accounts {
    pub(crate) secrets: Secrets,
    pub(crate) minter: Minter,
    pub(crate) passwords: passwords::Passwords,
    pub(crate) persons: persons::Persons,
    /// Signs what webhooks deliver.
    pub(crate) signer: Arc<Signer>,
}

impl Accounts {
    pub(crate) fn new(config: &AccountsConfig) -> Result<Self, TokenError> {
        let secrets = Secrets::new(&config.secret);
        Ok(Self {
            signer: Arc::new(Signer::new(secrets.webhooks())),
            secrets,
            minter: Minter::new(&config.signing_key)?,
            passwords: passwords::Passwords::new(config.hashing.clone()),
            persons: persons::Persons::default(),
        })
    }
}
