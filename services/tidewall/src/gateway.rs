//! Calls to a gateway, as every command makes them: which gateway, with which token, within what time.
//!
//! The only place that puts tokens into requests. A token is never printed here.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use tidewall_gateway::auth::Role;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::datadir::{DEFAULT_DATA, DataDir};
use crate::endpoints::Endpoints;
use crate::exit::{Exit, Failure};
use crate::keys::{self, PrivateKey};
use crate::{duration, token};

/// How long one attempt to connect may take.
const CONNECT_WITHIN: Duration = Duration::from_secs(1);
/// The longest --timeout; gateways honour less, an hour for exports and imports, a minute for other calls.
const TIMEOUT_MAX: Duration = Duration::from_secs(24 * 3_600);
/// How long a token lives that a command mints for its own calls.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(600);

/// Which cluster a command talks to.
#[derive(Debug, Clone, Args)]
pub struct TargetArgs {
    /// Gateway to call, such as http://127.0.0.1:7400; several are tried in turn [default: those of the
    /// cluster that runs on --data]
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    pub target: Vec<String>,
    /// Data directory of the cluster, for its gateways and its development key
    #[arg(long, value_name = "DIR", default_value = DEFAULT_DATA)]
    pub data: PathBuf,
    /// Private key that signs the tokens of this command [default: the development key in --data]
    #[arg(long, value_name = "FILE")]
    pub key: Option<PathBuf>,
}

/// A token given by the caller, for commands that need only one.
#[derive(Debug, Clone, Args)]
pub struct TokenArgs {
    /// Bearer token to use instead of minting one
    #[arg(long, value_name = "JWT", env = "TIDEWALL_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
    /// Give up after this time [default: 10s; 10m for export and import]
    #[arg(long, value_name = "TIME", value_parser = timeout)]
    pub timeout: Option<Duration>,
}

/// Arguments of a command that only asks.
#[derive(Debug, Args)]
pub struct AskArgs {
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

impl TokenArgs {
    /// Time for a call that asks.
    pub fn for_question(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(10))
    }

    /// Time for a call that moves a whole region.
    pub fn for_transfer(&self) -> Duration {
        self.timeout.unwrap_or(Duration::from_secs(600))
    }
}

/// A timeout as the gRPC header can carry it.
fn timeout(text: &str) -> Result<Duration, String> {
    match duration::parse(text)? {
        timeout if timeout > TIMEOUT_MAX => Err("a timeout is 24h at most".into()),
        timeout => Ok(timeout),
    }
}

impl TargetArgs {
    /// URLs of the gateways to call.
    pub fn urls(&self) -> Result<Vec<String>, Failure> {
        if self.target.is_empty() {
            let found = Endpoints::running(&DataDir::new(&self.data).endpoints())
                .map_err(|e| Failure::new(Exit::Unavailable, e))?;
            return Ok(found.urls());
        }
        self.target.iter().map(|url| checked_url(url)).collect()
    }

    /// The key that signs this command's tokens.
    pub fn private_key(&self) -> Result<PrivateKey, Failure> {
        let path = match &self.key {
            Some(path) => path.clone(),
            None => keys::private_path(&DataDir::new(&self.data).keys()),
        };
        load_key(&path)
    }
}

/// Reads a private key for a command.
pub fn load_key(path: &Path) -> Result<PrivateKey, Failure> {
    keys::load_private(path).map_err(|e| Failure::new(Exit::Environment, e))
}

/// A URL of a gateway with its scheme; refused when it cannot be one.
pub fn checked_url(text: &str) -> Result<String, Failure> {
    let url = if text.contains("://") { text.to_owned() } else { format!("http://{text}") };
    let usable = url.starts_with("http://")
        && Endpoint::from_shared(url.clone()).is_ok_and(|endpoint| {
            let uri = endpoint.uri();
            let port = uri.authority().and_then(|a| a.as_str().rsplit_once(':')).map(|(_, port)| port);
            let port_fits = port.is_none_or(|port| port.ends_with(']') || port.parse::<u16>().is_ok());
            uri.host().is_some_and(|host| !host.is_empty()) && port_fits
        });
    if usable {
        Ok(url)
    } else {
        Err(Failure::new(
            Exit::Usage,
            format!("{text:?} is not the address of a gateway: use the form http://127.0.0.1:7400"),
        ))
    }
}

/// A gateway and the token to call it with.
#[derive(Clone)]
pub struct Caller {
    url: String,
    channel: Channel,
    bearer: Option<MetadataValue<Ascii>>,
}

impl Caller {
    /// A caller that connects when it is used.
    pub fn lazy(url: &str, token: &str) -> Result<Self, Failure> {
        Ok(Self { url: url.into(), channel: endpoint(url)?.connect_lazy(), bearer: Some(bearer(token)?) })
    }

    /// Connects to the first of `urls` that can be reached within the time.
    async fn connect(urls: &[String], token: Option<&str>, timeout: Duration) -> Result<Self, Failure> {
        let begun = Instant::now();
        let bearer = token.map(bearer).transpose()?;
        let mut reasons = Vec::new();
        for url in urls {
            let left = timeout.saturating_sub(begun.elapsed());
            match tokio::time::timeout(left, endpoint(url)?.connect()).await {
                Ok(Ok(channel)) => {
                    return Ok(Self { url: url.clone(), channel, bearer });
                }
                Ok(Err(error)) => reasons.push(format!("{url}: {}", with_causes(&error))),
                Err(_) => reasons.push(format!("{url}: no answer in time")),
            }
        }
        Err(Failure::new(
            Exit::Unavailable,
            format!(
                "no gateway can be reached ({}): is the cluster up? Start one with `tidewall up`",
                reasons.join("; ")
            ),
        ))
    }

    /// The gateway's URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The connection.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// A request with token and deadline.
    pub fn request<T>(&self, message: T, deadline: Duration) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        if let Some(bearer) = &self.bearer {
            request.metadata_mut().insert("authorization", bearer.clone());
        }
        request
    }
}

/// Connects as an operator, within the time of a question: with the given token, or with one minted from the development key.
pub async fn operator(target: &TargetArgs, given: &TokenArgs) -> Result<Caller, Failure> {
    with_role(target, given, "operator", Role::Operator).await
}

/// The same as somebody with another role.
pub async fn with_role(
    target: &TargetArgs,
    given: &TokenArgs,
    subject: &str,
    role: Role,
) -> Result<Caller, Failure> {
    with_roles(target, given, subject, &[role]).await
}

/// The same as somebody with these roles.
pub async fn with_roles(
    target: &TargetArgs,
    given: &TokenArgs,
    subject: &str,
    roles: &[Role],
) -> Result<Caller, Failure> {
    let urls = target.urls()?;
    let token = match &given.token {
        Some(token) => token.trim().to_owned(),
        None => token::mint(&target.private_key()?, subject, roles, OWN_TOKEN_TTL)?,
    };
    Caller::connect(&urls, Some(&token), given.for_question()).await
}

/// Connects as somebody who has no token yet.
pub async fn nobody(target: &TargetArgs, timeout: Duration) -> Result<Caller, Failure> {
    Caller::connect(&target.urls()?, None, timeout).await
}

fn endpoint(url: &str) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::from_shared(url.to_owned())
        .map_err(|e| Failure::new(Exit::Usage, format!("{url:?} is not the address of a gateway: {e}")))?;
    Ok(endpoint.connect_timeout(CONNECT_WITHIN).tcp_nodelay(true))
}

fn bearer(token: &str) -> Result<MetadataValue<Ascii>, Failure> {
    let mut value: MetadataValue<Ascii> = format!("Bearer {token}")
        .parse()
        .map_err(|_| Failure::new(Exit::Usage, "the token contains characters that no token has"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// An error with its causes, which the transport's own text leaves out.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.contains(&part) {
            text = format!("{text}: {part}");
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn urls_are_completed_or_refused() {
        assert_eq!(checked_url("127.0.0.1:7400").unwrap(), "http://127.0.0.1:7400");
        assert_eq!(checked_url("http://shop.example:80").unwrap(), "http://shop.example:80");
        for bad in ["", "http://", "ftp://x", "https://x", "a b", "http://x:99999999"] {
            assert_eq!(checked_url(bad).err().map(|e| e.code()), Some(2), "{bad:?}");
        }
    }

    #[tokio::test]
    async fn requests_carry_token_and_deadline() {
        let caller = Caller::lazy("http://127.0.0.1:1", "abc").unwrap();
        let request = caller.request((), TIMEOUT_MAX);
        let metadata = request.metadata();
        assert_eq!(metadata.get("authorization").unwrap(), "Bearer abc");
        let deadline = metadata.get("grpc-timeout").unwrap().to_str().unwrap().to_owned();
        let (number, unit) = deadline.split_at(deadline.len() - 1);
        let unit_us = match unit {
            "u" => 1,
            "m" => 1_000,
            "S" => 1_000_000,
            "M" => 60_000_000,
            "H" => 3_600_000_000,
            other => panic!("unit {other}"),
        };
        assert_eq!(number.parse::<u64>().unwrap() * unit_us, 86_400_000_000);
        assert!(timeout("24h").is_ok() && timeout("25h").is_err());
        assert!(Caller::lazy("http://127.0.0.1:1", "a\nb").is_err());
    }

    #[tokio::test]
    async fn a_dead_gateway_is_unavailable() {
        // A port that was just free.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let failure = Caller::connect(&[format!("http://{port}")], Some("t"), Duration::from_secs(20))
            .await
            .err()
            .unwrap();
        assert_eq!(failure.code(), 3);
        assert!(failure.to_string().contains("tidewall up"), "{failure}");
    }
}
