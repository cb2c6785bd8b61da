//! `tidewall token`: mints bearer tokens with the development key.
//!
//! The token is the only thing on standard output, so that `TOKEN=$(tidewall token ...)` works.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::PossibleValuesParser;
use serde::Serialize;
use tidewall_gateway::auth::{self, Role};

use crate::datadir::{DEFAULT_DATA, DataDir};
use crate::exit::{Exit, Failure};
use crate::keys::{self, PrivateKey};
use crate::output::{self, Format};
use crate::{duration, gateway};

/// The longest life of a token from the command line.
const TTL_MAX: Duration = Duration::from_secs(365 * 86_400);

/// Arguments of `tidewall token`.
#[derive(Debug, Args)]
pub struct TokenCommand {
    /// Who the token speaks for: the buyer, organiser or operator
    #[arg(long, visible_alias = "user", value_name = "NAME", value_parser = subject)]
    pub subject: String,
    /// What the subject may do, beyond buying; may be given several times
    #[arg(long, value_name = "ROLE", value_delimiter = ',', value_parser = PossibleValuesParser::new(auth::ROLES.map(auth::role_name)))]
    pub role: Vec<String>,
    /// How long the token is valid
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "12h")]
    pub ttl: Duration,
    /// Data directory whose development key signs
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Private key that signs, instead of the one in --data
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

#[derive(Serialize)]
struct Minted<'a> {
    token: String,
    subject: &'a str,
    roles: &'a [String],
    ttl_s: u64,
}

/// Runs the command.
pub fn run(command: &TokenCommand, format: Format) -> Result<(), Failure> {
    if command.ttl > TTL_MAX {
        return Err(Failure::new(Exit::Usage, "a token may live 365d at most: choose a shorter --ttl"));
    }
    let path = match &command.key {
        Some(path) => path.clone(),
        None => keys::private_path(&DataDir::new(&command.data).keys()),
    };
    let roles: Vec<Role> = auth::ROLES
        .into_iter()
        .filter(|role| command.role.iter().any(|name| name == auth::role_name(*role)))
        .collect();
    let token = mint(&gateway::load_key(&path)?, &command.subject, &roles, command.ttl)?;
    match format {
        Format::Table => output::text(&(token + "\n")),
        Format::Json => output::json(&Minted {
            token,
            subject: &command.subject,
            roles: &command.role,
            ttl_s: command.ttl.as_secs(),
        }),
    }
}

/// Mints a token that is valid from now on for `ttl`.
pub fn mint(key: &PrivateKey, subject: &str, roles: &[Role], ttl: Duration) -> Result<String, Failure> {
    auth::mint(key.pkcs8(), subject, roles, ttl)
        .map_err(|e| Failure::new(Exit::Usage, format!("cannot mint a token for {subject:?}: {e}")))
}

/// A subject as gateways accept it.
pub fn subject(text: &str) -> Result<String, String> {
    if auth::valid_subject(text) {
        Ok(text.to_owned())
    } else {
        Err("a subject is 1 to 128 bytes without control characters, and not *".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_are_checked() {
        assert!(subject("alice").is_ok());
        assert!(subject("user:42@shop.example").is_ok());
        assert!(subject("").is_err());
        assert!(subject("*").is_err());
        assert!(subject("a\nb").is_err());
        assert!(subject(&"x".repeat(129)).is_err());
    }
}
