//! `tidewall serve`: one process of a cluster, a shard node or a gateway. The supervisor starts these;
//! so may any other process manager.
//!
//! This module only turns arguments into the configuration of the two crates that do the work. It never
//! makes a topology or a key: what it is given must exist.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use http::HeaderValue;
use rustix::process::{Resource, Rlimit, Signal, getpid, getrlimit, kill_process, setrlimit};
use tidewall_client::topology::Topology;
use tidewall_gateway::{AccountsConfig, Gateway, GatewayConfig, HashingOptions, LimitOptions, Network};
use tidewall_node::{APPLY_VERSION, Credentials, NodeConfig};

use crate::certificates;
use crate::datadir::Lock;
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::keys;
use crate::ports;
use crate::signals::Signals;
use crate::stderr;

/// How long a node's previous process may take to let go of its data.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(10);
/// Written last when a node makes its directory, so what proves that the directory was made.
const IDENTITY: &str = "node.json";
/// How often a starting node's directory is looked at, whether it was made.
const MADE_CHECK_EVERY: Duration = Duration::from_millis(10);
/// How long this process may take to end by itself once its supervisor is gone.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Arguments of `tidewall serve`.
#[derive(Debug, Args)]
pub struct ServeCommand {
    /// Which part to serve
    #[command(subcommand)]
    pub part: Part,
}

/// Parts of a cluster.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Serve one shard node: its replicas of all shard groups
    #[command(
        after_help = "Example:\n  tidewall serve shard --node 1 --data ./tidewall-data/node-1 --topology ./tidewall-data/topology.json"
    )]
    Shard(ShardArgs),
    /// Serve one gateway
    #[command(
        after_help = "Example:\n  tidewall serve gateway --listen 127.0.0.1:7500 --topology ./tidewall-data/topology.json --keys ./tidewall-data/keys/dev.pub"
    )]
    Gateway(GatewayArgs),
}

/// Arguments of `tidewall serve shard`.
#[derive(Debug, Args)]
pub struct ShardArgs {
    /// Id of the node in the topology
    #[arg(long, value_name = "N")]
    pub node: u64,
    /// Directory of the node's data; no other process may use it
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// Topology of the cluster
    #[arg(long, value_name = "FILE")]
    pub topology: PathBuf,
    /// Directory of certificates: ca.pem, node-N.pem, node-N.key [default: tls beside the topology]
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// The data need not outlive this run
    #[arg(long)]
    pub ephemeral: bool,
    /// Threads that run the replicas, so that a long apply in one region delays only those that share its thread; 0: the node's
    /// main thread, which costs least [default: half of the cores, 0 with less than four]
    #[arg(long, value_name = "N", env = "TIDEWALL_RAFT_THREADS",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(0..=256))]
    pub raft_threads: Option<usize>,
    /// Newest version of the rules of apply to support; lower than the default plays an older build
    #[arg(long, value_name = "N", default_value_t = APPLY_VERSION, env = "TIDEWALL_APPLY_VERSION", hide = true,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(APPLY_VERSION)))]
    pub apply_version: u32,
    /// Stop when standard input ends: its other end is held by the supervisor
    #[arg(long)]
    pub parent_pipe: bool,
}

/// Arguments of `tidewall serve gateway`.
#[derive(Debug, Args)]
pub struct GatewayArgs {
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", value_parser = ports::address)]
    pub listen: SocketAddr,
    /// Topology of the cluster
    #[arg(long, value_name = "FILE")]
    pub topology: PathBuf,
    /// Directory of certificates: ca.pem, gateway.pem, gateway.key [default: tls beside the topology]
    #[arg(long, value_name = "DIR")]
    pub tls: Option<PathBuf>,
    /// Public keys (PEM) that tokens are checked against; may be given several times
    #[arg(long, value_name = "FILE", required = true)]
    pub keys: Vec<PathBuf>,
    /// File with the secret that all gateways of a cluster share to serve accounts; without it AccountService refuses
    #[arg(long, value_name = "FILE", requires = "signing_key")]
    pub account_key: Option<PathBuf>,
    /// Private key (PEM) that signs the access tokens of accounts; its public half must be among --keys
    #[arg(long, value_name = "FILE", requires = "account_key")]
    pub signing_key: Option<PathBuf>,
    /// Threads that serve calls; 0 means one for each core
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Calls per region that may always be under way at once, however slow the region is
    #[arg(long, value_name = "N", default_value_t = LimitOptions::default().floor, env = "TIDEWALL_ADMISSION_FLOOR",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub admission_floor: usize,
    /// Calls per region that may be under way at once at the most; further ones wait
    #[arg(long, value_name = "N", default_value_t = LimitOptions::default().ceiling,
          env = "TIDEWALL_ADMISSION_CEILING",
          value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(1..=4096))]
    pub admission_ceiling: usize,
    /// Origin whose pages may call over gRPC-Web, for example https://shop.example; may be given several times, `*` for all
    #[arg(long, value_name = "ORIGIN", env = "TIDEWALL_WEB_ORIGIN", value_delimiter = ',')]
    pub web_origin: Vec<HeaderValue>,
    /// Network that is not public and that webhooks may call all the same, without TLS too, for example 10.1.0.0/16; may be given
    /// several times
    #[arg(long, value_name = "NETWORK", env = "TIDEWALL_WEBHOOK_ALLOW", value_delimiter = ',')]
    pub webhook_allow: Vec<Network>,
    /// Make no deliveries of webhooks here: other gateways do
    #[arg(long, env = "TIDEWALL_NO_DELIVERIES")]
    pub no_deliveries: bool,
    /// How long calls are still taken after it was told to stop, while health and /readyz say so: as long as whoever routes calls
    /// here needs to notice
    #[arg(long, value_name = "TIME", value_parser = duration::parse, default_value = "500ms")]
    pub lame_duck: Duration,
    /// Stop when standard input ends: its other end is held by the supervisor
    #[arg(long)]
    pub parent_pipe: bool,
}

/// Runs the command until the process is told to stop.
pub fn run(command: &ServeCommand) -> Result<(), Failure> {
    raise_file_limit();
    // A supervised process was started through /proc/self/exe; give it the name that `ps` should show.
    if let Err(error) = rustix::thread::set_name(c"tidewall") {
        tracing::debug!("cannot set the name of the process: {error}");
    }
    match &command.part {
        Part::Shard(arguments) => shard(arguments),
        Part::Gateway(arguments) => gateway(arguments),
    }
}

fn shard(arguments: &ShardArgs) -> Result<(), Failure> {
    let topology = load_topology(&arguments.topology)?;
    if topology.node(arguments.node).is_none() {
        let known: Vec<String> = topology.nodes.iter().map(|node| node.id.to_string()).collect();
        return Err(Failure::new(
            Exit::Usage,
            format!(
                "{} has no node {}; it has {}",
                arguments.topology.display(),
                arguments.node,
                known.join(", ")
            ),
        ));
    }
    let name = certificates::node(arguments.node);
    let credentials = credentials(arguments.tls.as_deref(), &arguments.topology, &name, &topology)?;
    watch_parent(arguments.parent_pipe)?;
    // Beside the data, not in them: the node alone decides what is in its directory.
    let _lock = Lock::take(&lock_file(&arguments.data)?, PREDECESSOR_PATIENCE)
        .map_err(|e| Failure::new(Exit::Environment, e))?;
    let config = NodeConfig {
        node: arguments.node,
        data_dir: arguments.data.clone(),
        topology,
        topology_path: Some(arguments.topology.clone()),
        ephemeral: arguments.ephemeral,
        create: may_create(&arguments.data)?,
        credentials: Some(credentials),
        raft_threads: arguments.raft_threads.unwrap_or_else(|| raft_threads(1)),
        apply_version: arguments.apply_version,
    };
    tidewall_node::run(config)
        .map_err(|error| Failure::with_code(error.exit_code(), format!("node {}: {error}", arguments.node)))
}

fn gateway(arguments: &GatewayArgs) -> Result<(), Failure> {
    let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
    let topology = load_topology(&arguments.topology)?;
    let credentials =
        credentials(arguments.tls.as_deref(), &arguments.topology, certificates::GATEWAY, &topology)?;
    let mut public_keys = Vec::new();
    for path in &arguments.keys {
        public_keys.extend(keys::load_public(path).map_err(|e| environment(&e))?);
    }
    let accounts = match (&arguments.account_key, &arguments.signing_key) {
        (Some(secret), Some(signing)) => Some(AccountsConfig {
            secret: keys::load_account_key(secret).map_err(|e| environment(&e))?,
            signing_key: keys::load_private(signing).map_err(|e| environment(&e))?.pkcs8().to_vec(),
            hashing: HashingOptions::default(),
        }),
        _ => None,
    };
    watch_parent(arguments.parent_pipe)?;
    let mut builder = match arguments.threads {
        1 => tokio::runtime::Builder::new_current_thread(),
        threads => {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            if threads > 0 {
                builder.worker_threads(threads);
            }
            builder
        }
    };
    let runtime = builder
        .enable_all()
        .thread_name("gateway")
        .build()
        .map_err(|e| environment(&format!("cannot start the runtime: {e}")))?;
    runtime.block_on(async {
        let mut signals = Signals::new()?;
        let mut config = GatewayConfig::new(arguments.listen, Arc::new(topology), public_keys);
        config.topology_path = Some(arguments.topology.clone());
        config.shard_client.link.credentials = Some(credentials);
        config.accounts = accounts;
        config.limit.floor = arguments.admission_floor;
        config.limit.ceiling = arguments.admission_ceiling;
        config.lame_duck = arguments.lame_duck;
        config.web_origins = arguments.web_origin.clone();
        config.webhooks.allowed = arguments.webhook_allow.clone();
        config.webhooks.delivers = !arguments.no_deliveries;
        let gateway = Gateway::bind(config).await.map_err(|e| environment(&e))?;
        tracing::info!("gateway listens on {}", gateway.local_addr);
        gateway
            .serve(async move {
                let signal = signals.next().await;
                tracing::info!("{signal}: the gateway stops");
            })
            .await
            .map_err(|e| environment(&e))
    })
}

/// Threads of Raft for each of so many nodes on this machine: on few cores, wake-ups between threads cost more than they gain.
pub fn raft_threads(nodes: usize) -> usize {
    threads_of(std::thread::available_parallelism().map_or(1, usize::from), nodes)
}

fn threads_of(cores: usize, nodes: usize) -> usize {
    match cores / nodes.max(1) {
        0..4 => 0,
        cores => cores / 2,
    }
}

/// Half of the cores, at least one: what a process may use that shares its machine with a whole cluster.
pub fn half_the_cores() -> usize {
    std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1))
}

fn load_topology(path: &Path) -> Result<Topology, Failure> {
    Topology::load(path).map_err(|e| Failure::new(Exit::Environment, e))
}

/// What a process proves itself with: from `directory`, or from `tls` beside the topology file.
fn credentials(
    directory: Option<&Path>,
    topology_path: &Path,
    name: &str,
    topology: &Topology,
) -> Result<Credentials, Failure> {
    let beside = topology_path.with_file_name("tls");
    let cluster = topology.cluster_bytes().unwrap_or_default();
    certificates::load(directory.unwrap_or(&beside), name, cluster)
        .map_err(|e| Failure::new(Exit::Environment, e))
}

/// Whether a node may make its directory: only once. A node that comes back with nothing has forgotten its votes
/// and could elect a leader that knows nothing either, so `node-1.made` beside `node-1` remembers that
/// there was something, and an emptied directory is refused.
fn may_create(data: &Path) -> Result<bool, Failure> {
    let Some(marker) = unmade(data)? else { return Ok(false) };
    let data = data.to_owned();
    std::thread::Builder::new()
        .name("made".into())
        .spawn(move || {
            if let Err(error) = remember_when_made(&data, &marker) {
                tracing::error!(
                    "cannot write {}: {error}; this node must not go on without it",
                    marker.display()
                );
                stderr::flush();
                std::process::exit(i32::from(Exit::Environment.code()));
            }
        })
        .map_err(|e| Failure::new(Exit::Environment, format!("cannot start a thread: {e}")))?;
    Ok(true)
}

/// The marker that is to be written when a node has made its directory; `None` when it has already.
fn unmade(data: &Path) -> Result<Option<PathBuf>, Failure> {
    let marker = beside(data, ".made")?;
    if marker.exists() {
        return Ok(None);
    }
    if was_made(data) {
        remember(&marker).map_err(|e| {
            Failure::new(Exit::Environment, format!("cannot write {}: {e}", marker.display()))
        })?;
        return Ok(None);
    }
    Ok(Some(marker))
}

/// Waits until the node has made its directory, and writes the marker.
fn remember_when_made(data: &Path, marker: &Path) -> io::Result<()> {
    while !was_made(data) {
        std::thread::sleep(MADE_CHECK_EVERY);
    }
    remember(marker)
}

/// Makes an empty file that survives a power cut.
fn remember(path: &Path) -> io::Result<()> {
    File::create(path)?.sync_all()?;
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) => File::open(parent)?.sync_all(),
        None => File::open(".")?.sync_all(),
    }
}

/// Whether a node has made its directory.
pub fn was_made(data: &Path) -> bool {
    data.join(IDENTITY).exists()
}

/// The file that the process of a node holds.
pub fn lock_file(data: &Path) -> Result<PathBuf, Failure> {
    beside(data, ".lock")
}

/// A file that belongs to a node's directory and is not in it: `node-1.lock` beside `node-1`.
fn beside(data: &Path, suffix: &str) -> Result<PathBuf, Failure> {
    let Some(name) = data.file_name() else {
        let text = format!("{} cannot be a node's directory: name one below it with --data", data.display());
        return Err(Failure::new(Exit::Usage, text));
    };
    let mut name = name.to_os_string();
    name.push(suffix);
    let path = data.with_file_name(name);
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|e| {
            Failure::new(Exit::Environment, format!("cannot create {}: {e}", parent.display()))
        })?;
    }
    Ok(path)
}

/// With a parent pipe, asks this process to stop as soon as standard input ends, and makes it.
fn watch_parent(wanted: bool) -> Result<(), Failure> {
    if !wanted {
        return Ok(());
    }
    if std::io::stdin().is_terminal() {
        return Err(Failure::new(
            Exit::Usage,
            "--parent-pipe is for processes whose standard input is a pipe held by their supervisor",
        ));
    }
    let watch = || {
        let mut nothing = [0; 64];
        // Whatever is written is ignored; an error ends it like end-of-file.
        while matches!(std::io::stdin().read(&mut nothing), Ok(read) if read > 0) {}
        tracing::warn!("the supervisor is gone: this process stops");
        if let Err(error) = kill_process(getpid(), Signal::INT) {
            tracing::error!("cannot signal this process: {error}");
        }
        std::thread::sleep(ORPHAN_GRACE);
        tracing::error!("this process did not stop in {ORPHAN_GRACE:?}; it ends now");
        stderr::flush();
        std::process::exit(i32::from(Exit::Failed.code()));
    };
    std::thread::Builder::new()
        .name("parent-pipe".into())
        .spawn(watch)
        .map(|_| ())
        .map_err(|e| Failure::new(Exit::Environment, format!("cannot start a thread: {e}")))
}

/// Allows this process as many open files as the system lets it: each client connection is one.
pub fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })
    {
        tracing::warn!("cannot raise the limit of open files beyond {:?}: {error}", limit.current);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_node_that_the_topology_does_not_know_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let data = crate::datadir::DataDir::new(directory.path());
        drop(data.prepare(&crate::datadir::Wanted::default(), Duration::ZERO).unwrap());
        let arguments = ShardArgs {
            node: 9,
            data: data.node(9),
            topology: data.topology(),
            tls: None,
            ephemeral: false,
            raft_threads: None,
            apply_version: APPLY_VERSION,
            parent_pipe: false,
        };
        let failure = shard(&arguments).unwrap_err();
        assert_eq!(failure.code(), 2);
        assert!(failure.to_string().contains("no node 9; it has 1, 2, 3"), "{failure}");
        assert!(!data.node(9).exists());
    }

    #[test]
    fn replicas_have_threads_of_their_own_where_there_are_cores_for_them() {
        for (cores, nodes, threads) in
            [(2, 1, 0), (3, 1, 0), (4, 1, 2), (16, 1, 8), (8, 3, 0), (16, 3, 2), (4, 0, 2)]
        {
            assert_eq!(threads_of(cores, nodes), threads, "{cores} cores, {nodes} nodes");
        }
    }

    #[test]
    fn every_node_directory_has_a_lock_of_its_own() {
        let parent = tempfile::tempdir().unwrap();
        let lock = |name: &str| beside(&parent.path().join("deep").join(name), ".lock").unwrap();
        assert_eq!(lock("node.1"), parent.path().join("deep/node.1.lock"));
        assert_ne!(lock("node.1"), lock("node.2"));
        assert!(parent.path().join("deep").is_dir());
        assert_eq!(beside(Path::new("/"), ".lock").unwrap_err().code(), 2);
    }

    #[test]
    fn a_node_may_make_its_directory_only_once() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("node-1");
        let marker = parent.path().join("node-1.made");
        let to_write = unmade(&data).unwrap().unwrap();
        assert_eq!(to_write, marker);
        assert_eq!(
            unmade(&data).unwrap(),
            Some(to_write.clone()),
            "a start that was cut off before anything was made is no obstacle"
        );
        let (made, wrote) = (data.clone(), to_write.clone());
        let remembering = std::thread::spawn(move || remember_when_made(&made, &wrote));
        std::fs::create_dir(&data).unwrap();
        std::fs::write(data.join(IDENTITY), "{}").unwrap();
        remembering.join().unwrap().unwrap();
        assert!(marker.exists());
        std::fs::remove_dir_all(&data).unwrap();
        assert!(!may_create(&data).unwrap(), "an emptied directory must not be started over");

        let restored = parent.path().join("node-2");
        std::fs::create_dir(&restored).unwrap();
        std::fs::write(restored.join(IDENTITY), "{}").unwrap();
        assert!(!may_create(&restored).unwrap());
        assert!(parent.path().join("node-2.made").exists());
    }

    #[test]
    fn a_gateway_needs_its_files() {
        let directory = tempfile::tempdir().unwrap();
        let arguments = GatewayArgs {
            listen: "127.0.0.1:0".parse().unwrap(),
            topology: directory.path().join("none.json"),
            tls: None,
            keys: vec![directory.path().join("none.pub")],
            account_key: None,
            signing_key: None,
            threads: 1,
            admission_floor: 16,
            admission_ceiling: 4096,
            web_origin: Vec::new(),
            webhook_allow: Vec::new(),
            no_deliveries: false,
            lame_duck: Duration::ZERO,
            parent_pipe: false,
        };
        let failure = gateway(&arguments).unwrap_err();
        assert_eq!(failure.code(), 5);
        assert!(failure.to_string().contains("none.json"), "{failure}");
    }
}
