//! What a gateway must be told. Defaults live here, limits of the API do not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use tidewall_client::{AcceptLimits, ShardClientOptions, Topology};

use crate::accounts::AccountsConfig;
use crate::admission::LimitOptions;
use crate::webhooks::{Network, Outside};

/// How a gateway delivers what webhooks are told.
#[derive(Debug, Clone, Default)]
pub struct WebhooksConfig {
    /// It makes deliveries. Webhooks can be made and changed in any case.
    pub delivers: bool,
    /// Networks that are not public and may be called all the same, without TLS too.
    pub allowed: Vec<Network>,
    /// Who makes the calls; `None`: this process, over real connections.
    pub outside: Option<Arc<dyn Outside>>,
}

/// Configuration of one gateway.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where to listen; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// The cluster behind this gateway; must have passed [`Topology::check`].
    pub topology: Arc<Topology>,
    /// Where later states of it appear: nodes then join and leave while the gateway runs.
    pub topology_path: Option<std::path::PathBuf>,
    /// Ed25519 public keys; a token signed with any of them is accepted.
    pub public_keys: Vec<[u8; 32]>,
    /// Calls per region that may be here at once, waiting ones included; more are refused with RESOURCE_EXHAUSTED.
    pub calls_max_per_region: usize,
    /// Calls of all regions that may wait at once: memory, about 8 KiB each.
    pub calls_waiting_max: usize,
    /// How many calls of a region may be on their way to the shards: bounds and tolerances of the adaptive limit.
    pub limit: LimitOptions,
    /// Verified tokens that are remembered.
    pub token_cache_entries: usize,
    /// Shortest age at which a client connection is asked to reconnect, so that new gateways receive
    /// load; the age of this process's connections is chosen between this and twice this. `None`: never.
    pub connection_age_min: Option<Duration>,
    /// How many may watch what happens at once.
    pub watchers_max: usize,
    /// Bytes of changes that are kept of a region for those who are a little behind; who is further behind asks the region.
    pub changes_kept_bytes: usize,
    /// Origins whose pages may call over gRPC-Web, as browsers name them (`https://shop.example`); a single `*` for all.
    pub web_origins: Vec<HeaderValue>,
    /// How many connections clients may have, and how long one may take to say what it wants.
    pub accept: AcceptLimits,
    /// How long calls are still taken after a shutdown began, while whoever asks is told that it has.
    pub lame_duck: Duration,
    /// How long calls under way may take to finish after that.
    pub grace: Duration,
    /// What it needs to serve accounts; none: AccountService refuses.
    pub accounts: Option<AccountsConfig>,
    /// How it delivers what webhooks are told; it does only if it serves accounts, whose secret signs.
    pub webhooks: WebhooksConfig,
    /// Timeouts and bounds towards the shard nodes.
    pub shard_client: ShardClientOptions,
}

impl GatewayConfig {
    /// The defaults for a cluster.
    pub fn new(listen: SocketAddr, topology: Arc<Topology>, public_keys: Vec<[u8; 32]>) -> Self {
        Self {
            listen,
            topology,
            topology_path: None,
            public_keys,
            calls_max_per_region: 32_768,
            calls_waiting_max: 65_536,
            limit: LimitOptions::default(),
            token_cache_entries: 131_072,
            connection_age_min: Some(Duration::from_secs(300)),
            watchers_max: 50_000,
            changes_kept_bytes: 4 << 20,
            web_origins: Vec::new(),
            accept: AcceptLimits::default(),
            lame_duck: Duration::ZERO,
            grace: Duration::from_secs(5),
            accounts: None,
            webhooks: WebhooksConfig { delivers: true, ..WebhooksConfig::default() },
            shard_client: ShardClientOptions::default(),
        }
    }
}
