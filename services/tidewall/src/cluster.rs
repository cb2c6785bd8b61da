//! A whole cluster on this machine: its data directory, its node and gateway processes, and where to reach
//! them. `up` keeps one in the foreground; `load` and `demo` borrow one for a run.
//!
//! The processes are this same binary. This module decides which there are and with which arguments;
//! `supervisor` keeps them running.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tempfile::TempDir;
use tidewall_client::Credentials;
use tidewall_client::follow::follow;
use tidewall_client::topology::{Node, Topology};
use tidewall_gateway::auth::Role;
use tokio::sync::watch;

use crate::certificates::{self, Authority};
use crate::datadir::{DataDir, Lock, Wanted};
use crate::endpoints::{ENDPOINTS_FORMAT, Endpoints, GatewayEndpoint, NodeEndpoint};
use crate::exit::{Exit, Failure};
use crate::gateway::Caller;
use crate::keys::{self, PrivateKey};
use crate::ports::{self, Reservation};
use crate::readiness::{self, Progress};
use crate::supervisor::{Change, ChildSpec, Crew, Report};
use crate::token;

/// How long a child may take to end in order, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// After an unclean end, how long ports may still be held by processes that are about to notice it.
const LEFTOVER_PATIENCE: Duration = Duration::from_secs(3);
/// How long the token lives with which the supervisor asks whether gateways answer.
const OWN_TOKEN_TTL: Duration = Duration::from_secs(3_600);

/// What to start.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Data directory; `None` makes a temporary one that goes at the end.
    pub data: Option<PathBuf>,
    /// Shape of the cluster.
    pub wanted: Wanted,
    /// Number of gateways.
    pub gateways: u16,
    /// Where the first gateway listens; the others on the following ports. With port 0 the system chooses.
    pub listen: SocketAddr,
    /// Log filter for the processes; `None` leaves it to them.
    pub log: Option<String>,
}

/// A cluster whose processes were started. Dropping it kills them.
pub struct Cluster {
    // The order of the fields is the order of dropping: processes before the directory they use.
    gateways: Crew,
    nodes: Crew,
    board: Board,
    given_up: watch::Receiver<Vec<GivenUp>>,
    report: Report,
    program: PathBuf,
    log: Option<String>,
    topology: Topology,
    key: PrivateKey,
    authority: Option<Authority>,
    credentials: Credentials,
    directory: DataDir,
    _lock: Lock,
    temporary: Option<TempDir>,
}

/// A process that will not be started again.
#[derive(Debug, Clone)]
pub struct GivenUp {
    /// Which.
    pub name: String,
    /// The exit code that says why.
    pub code: u8,
    /// How it ended and what to do.
    pub message: String,
}

impl GivenUp {
    /// What happened in one line, without the end of the log, which was shown when it happened.
    pub fn summary(&self) -> &str {
        self.message.lines().next().unwrap_or(&self.name)
    }
}

/// The endpoints file, kept up to date as processes come and go.
#[derive(Clone)]
struct Board {
    path: PathBuf,
    endpoints: Arc<Mutex<Endpoints>>,
}

impl Board {
    fn change(&self, change: impl FnOnce(&mut Endpoints)) {
        let mut endpoints = self.endpoints.lock();
        change(&mut endpoints);
        if let Err(error) = endpoints.write(&self.path) {
            tracing::warn!("other commands may not find this cluster: {error}");
        }
    }

    fn set_pid(&self, name: &str, pid: Option<u32>) {
        self.change(|endpoints| {
            for node in endpoints.nodes.iter_mut().filter(|node| node_name(node.id) == name) {
                node.pid = pid;
            }
            for gateway in endpoints.gateways.iter_mut().filter(|gateway| gateway_name(gateway.id) == name) {
                gateway.pid = pid;
            }
        });
    }
}

fn node_name(id: u64) -> String {
    format!("node-{id}")
}

fn gateway_name(id: u64) -> String {
    format!("gateway-{id}")
}

impl Cluster {
    /// Checks everything that can be checked, then starts all processes. When it fails, nothing runs, and a
    /// directory that was refused is as it was. Blocks the thread for the checks, which are short.
    pub async fn start(plan: &Plan) -> Result<Self, Failure> {
        let environment = |error: &dyn std::fmt::Display| Failure::new(Exit::Environment, error);
        let program =
            own_program().map_err(|e| environment(&format!("cannot find this program's own file: {e}")))?;
        let temporary = match plan.data {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("tidewall-")
                    .tempdir()
                    .map_err(|e| environment(&format!("cannot make a temporary directory: {e}")))?,
            ),
        };
        let chosen = match (&plan.data, &temporary) {
            (Some(path), _) => path.as_path(),
            (None, Some(temporary)) => temporary.path(),
            (None, None) => return Err(environment(&"no data directory")),
        };
        let root = std::path::absolute(chosen)
            .map_err(|e| environment(&format!("cannot use {}: {e}", chosen.display())))?;
        let directory = DataDir::new(root);

        // Nothing is changed before all of this is known to be possible.
        directory.check(&plan.wanted).map_err(|e| environment(&e))?;
        let unclean = directory.endpoints().exists();
        let patience = if unclean { LEFTOVER_PATIENCE } else { Duration::ZERO };
        let mut reservation = Reservation::default();
        let listens = gateway_addresses(plan, &directory, &mut reservation, patience)?;
        let (lock, topology, node_ports) =
            directory.prepare(&plan.wanted, patience).map_err(|e| environment(&e))?;
        check_account_key(&directory, &topology)?;
        let key = keys::ensure(&directory.keys()).map_err(|e| environment(&e))?;
        let cluster = topology.cluster_bytes().unwrap_or_default();
        let authority = Authority::ensure(&directory.certificates(), cluster).map_err(|e| environment(&e))?;
        if let Some(authority) = &authority {
            authority.issue_all(&topology).map_err(|e| environment(&e))?;
        }
        let credentials = certificates::load(&directory.certificates(), certificates::OPERATOR, cluster)
            .map_err(|e| environment(&e))?;

        let board = Board {
            path: directory.endpoints(),
            endpoints: Arc::new(Mutex::new(endpoints(&topology, &listens))),
        };
        board.endpoints.lock().write(&board.path).map_err(|e| environment(&e))?;
        let (give_up, given_up) = watch::channel(Vec::new());
        let report: Report = {
            let board = board.clone();
            Arc::new(move |change| match change {
                Change::Started { name, pid } => board.set_pid(&name, Some(pid)),
                Change::Ended { name } => board.set_pid(&name, None),
                Change::GaveUp { name, code, message } => {
                    give_up.send_modify(|all| all.push(GivenUp { name, code, message }));
                }
            })
        };
        let maker = SpecMaker { program: program.clone(), directory: &directory, log: plan.log.as_deref() };
        let ephemeral = temporary.is_some();
        // The ports are free again from here on, for the processes that they were kept for.
        drop((node_ports, reservation));
        let nodes = topology.nodes.iter().map(|node| maker.node(node.id, node.address, ephemeral)).collect();
        let nodes = Crew::start(nodes, &report);
        let gateways = (1..).zip(&listens).map(|(id, listen)| maker.gateway(id, *listen)).collect();
        let gateways = Crew::start(gateways, &report);
        let log = plan.log.clone();
        Ok(Self {
            gateways,
            nodes,
            board,
            given_up,
            report,
            program,
            log,
            topology,
            key,
            authority,
            credentials,
            directory,
            _lock: lock,
            temporary,
        })
    }

    /// Waits until every region has a leader and every gateway answers. Never returns before; the caller
    /// bounds it.
    pub async fn ready(&self, told: impl FnMut(Progress)) -> Result<(), Failure> {
        let token = token::mint(&self.key, "supervisor", &[Role::Operator], OWN_TOKEN_TTL)?;
        let callers =
            self.urls().iter().map(|url| Caller::lazy(url, &token)).collect::<Result<Vec<_>, _>>()?;
        readiness::wait(&self.topology, &self.credentials, &callers, told).await;
        self.board.change(|endpoints| endpoints.ready = true);
        Ok(())
    }

    /// Follows the topology file: starts nodes that were added there, stops those that were removed. Never returns.
    pub async fn follow(&self) -> std::convert::Infallible {
        let path = self.directory.topology();
        let known = Mutex::new(self.topology.clone());
        follow(&path, self.topology.clone(), |topology| {
            self.adopt(&known.lock(), topology);
            *known.lock() = topology.clone();
        })
        .await
    }

    fn adopt(&self, old: &Topology, new: &Topology) {
        self.board.change(|endpoints| {
            endpoints.nodes.retain(|node| new.node(node.id).is_some());
            for node in new.nodes.iter().filter(|node| old.node(node.id).is_none()) {
                endpoints.nodes.push(node_endpoint(node));
            }
        });
        for node in old.nodes.iter().filter(|node| new.node(node.id).is_none()) {
            tracing::info!(
                "{} was removed: it is stopped, and {} is not needed any more",
                node_name(node.id),
                self.directory.node(node.id).display()
            );
            self.nodes.remove(&node_name(node.id));
        }
        let maker =
            SpecMaker { program: self.program.clone(), directory: &self.directory, log: self.log.as_deref() };
        for node in new.nodes.iter().filter(|node| old.node(node.id).is_none()) {
            tracing::info!("{} was added: it is started", node_name(node.id));
            let issued = self.authority.as_ref().map(|authority| authority.issue_to_node(node));
            if let Some(Err(error)) = issued {
                tracing::error!("{} cannot start: {error}", node_name(node.id));
            }
            self.nodes.add(maker.node(node.id, node.address, self.temporary.is_some()), &self.report);
        }
    }

    /// Returns when so many processes have been given up that nothing can be done here any more: no node is left, or
    /// no gateway. Without a majority of nodes the others go on: they are needed for a forced failover. The result is
    /// the one that was given up last.
    pub async fn broken(&self) -> GivenUp {
        let mut given_up = self.given_up.clone();
        loop {
            if let Some(last) = beyond_repair(&given_up.borrow_and_update(), &self.endpoints()) {
                return last;
            }
            if given_up.changed().await.is_err() {
                // The crews hold the sender as long as this cluster lives.
                return std::future::pending().await;
            }
        }
    }

    /// Ends gateways, then nodes, and returns when all have ended; at the latest after two graces. When
    /// `hurry` completes, what still runs is killed.
    pub async fn stop(mut self, hurry: impl Future<Output = ()>) {
        let mut hurry = std::pin::pin!(hurry);
        let mut hurried = false;
        for crew in [&mut self.gateways, &mut self.nodes] {
            if !hurried {
                hurried = tokio::select! {
                    biased;
                    () = crew.stop() => false,
                    () = &mut hurry => true,
                };
            }
            if hurried {
                crew.kill();
                crew.stop().await;
            }
        }
        if let Err(error) = std::fs::remove_file(&self.board.path) {
            tracing::warn!("cannot remove {}: {error}", self.board.path.display());
        }
        if let Some(temporary) = self.temporary.take() {
            let path = temporary.path().to_owned();
            if let Err(error) = temporary.close() {
                tracing::warn!("cannot remove the temporary directory {}: {error}", path.display());
            }
        }
    }

    /// The cluster as other commands find it.
    pub fn endpoints(&self) -> Endpoints {
        self.board.endpoints.lock().clone()
    }

    /// URLs of the gateways.
    pub fn urls(&self) -> Vec<String> {
        self.board.endpoints.lock().urls()
    }

    /// Regions and nodes.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The key that signs tokens of this cluster.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// Its data directory.
    pub fn directory(&self) -> &DataDir {
        &self.directory
    }
}

/// Makes the command lines of the processes.
struct SpecMaker<'a> {
    program: PathBuf,
    directory: &'a DataDir,
    log: Option<&'a str>,
}

impl SpecMaker<'_> {
    fn spec(&self, name: String, probe: SocketAddr, arguments: Vec<OsString>) -> ChildSpec {
        let mut all: Vec<OsString> = vec!["serve".into()];
        all.extend(arguments);
        all.push("--parent-pipe".into());
        if let Some(log) = self.log {
            all.extend(["--log".into(), log.into()]);
        }
        let log = self.directory.logs().join(format!("{name}.log"));
        ChildSpec {
            name,
            program: self.program.clone(),
            title: "tidewall".into(),
            arguments: all,
            log,
            probe: Some(probe),
            grace: GRACE,
        }
    }

    fn node(&self, id: u64, address: SocketAddr, ephemeral: bool) -> ChildSpec {
        let mut arguments: Vec<OsString> = vec!["shard".into(), "--node".into(), id.to_string().into()];
        arguments.extend(["--data".into(), self.directory.node(id).into()]);
        arguments.extend(["--topology".into(), self.directory.topology().into()]);
        if ephemeral {
            arguments.push("--ephemeral".into());
        }
        // Who says it in the environment is not overruled.
        if std::env::var_os("TIDEWALL_RAFT_THREADS").is_none() {
            let threads = crate::serve::raft_threads(NODES_ON_A_MACHINE);
            arguments.extend(["--raft-threads".into(), threads.to_string().into()]);
        }
        self.spec(node_name(id), address, arguments)
    }

    fn gateway(&self, id: u64, listen: SocketAddr) -> ChildSpec {
        let mut arguments: Vec<OsString> =
            vec!["gateway".into(), "--listen".into(), listen.to_string().into()];
        arguments.extend(["--topology".into(), self.directory.topology().into()]);
        arguments.extend(["--keys".into(), keys::public_path(&self.directory.keys()).into()]);
        arguments.extend(["--account-key".into(), keys::account_path(&self.directory.keys()).into()]);
        arguments.extend(["--signing-key".into(), keys::private_path(&self.directory.keys()).into()]);
        arguments.extend(["--threads".into(), crate::serve::half_the_cores().to_string().into()]);
        // Nobody routes to the gateways of one machine by their health.
        arguments.extend(["--lame-duck".into(), "50ms".into()]);
        self.spec(gateway_name(id), ports::reachable(listen), arguments)
    }
}

/// Refuses to go on with another secret of accounts than the one with which the keys of persons were made.
fn check_account_key(directory: &DataDir, topology: &Topology) -> Result<(), Failure> {
    let secret = keys::account_path(&directory.keys());
    let mut keyrings = topology.nodes.iter().map(|node| directory.node(node.id).join("keyring/keys"));
    match keyrings.find(|file| file.exists()) {
        Some(keyring) if !secret.exists() => Err(Failure::new(
            Exit::Environment,
            format!(
                "{} is gone, with which the keys in {} were made: put it back. With another one nobody could log in, and \
                 names and e-mails would be lost",
                secret.display(),
                keyring.display()
            ),
        )),
        _ => Ok(()),
    }
}

/// Nodes that share this machine, as long as nobody adds some.
const NODES_ON_A_MACHINE: usize = 3;

/// Whether too many processes are gone for good.
fn beyond_repair(given_up: &[GivenUp], endpoints: &Endpoints) -> Option<GivenUp> {
    let gone = |name: String| given_up.iter().any(|gone| gone.name == name);
    let no_node = endpoints.nodes.iter().all(|node| gone(node_name(node.id)));
    let no_gateway = endpoints.gateways.iter().all(|gateway| gone(gateway_name(gateway.id)));
    if no_node || no_gateway { given_up.last().cloned() } else { None }
}

/// This binary. On Linux through /proc, so that a restarted process is the same program even when the file
/// was replaced meanwhile (by a build, for example): a cluster never mixes versions by accident.
fn own_program() -> std::io::Result<PathBuf> {
    let link = Path::new("/proc/self/exe");
    if link.exists() { Ok(link.to_owned()) } else { std::env::current_exe() }
}

/// Reserves the addresses of the gateways.
fn gateway_addresses(
    plan: &Plan,
    directory: &DataDir,
    reservation: &mut Reservation,
    patience: Duration,
) -> Result<Vec<SocketAddr>, Failure> {
    (0..plan.gateways)
        .map(|number| {
            let id = number + 1;
            let port = match plan.listen.port() {
                0 => 0,
                first => first.checked_add(number).ok_or_else(|| {
                    let text = format!("gateway {id} would listen beyond port 65535: choose a lower --listen");
                    Failure::new(Exit::Usage, text)
                })?,
            };
            let address = SocketAddr::new(plan.listen.ip(), port);
            reservation.exactly(address, patience).map_err(|error| {
                // The likeliest reason: the user started the same cluster twice.
                let text = match Endpoints::running(&directory.endpoints()) {
                    Ok(running) => format!(
                        "the cluster on {} is already running (process {}, {}): use it, stop it first, or choose \
                         another directory with --data and another port with --listen",
                        directory.root().display(),
                        running.supervisor_pid,
                        running.urls().join(" ")
                    ),
                    Err(_) if error.kind() == std::io::ErrorKind::AddrInUse => format!(
                        "gateway {id} cannot listen on {address}: the port is in use. Stop the program that has \
                         it, or choose another with --listen (with port 0 the system chooses)"
                    ),
                    Err(_) => format!(
                        "gateway {id} cannot listen on {address}: {error}. Choose another address with --listen"
                    ),
                };
                Failure::new(Exit::Environment, text)
            })
        })
        .collect()
}

/// The endpoints file of a cluster of which nothing runs yet.
fn endpoints(topology: &Topology, listens: &[SocketAddr]) -> Endpoints {
    let gateway = |(id, listen): (u64, &SocketAddr)| GatewayEndpoint {
        id,
        url: format!("http://{}", ports::reachable(*listen)),
        pid: None,
    };
    Endpoints {
        format: ENDPOINTS_FORMAT,
        cluster: topology.cluster.clone(),
        supervisor_pid: std::process::id(),
        ready: false,
        gateways: (1..).zip(listens).map(gateway).collect(),
        nodes: topology.nodes.iter().map(node_endpoint).collect(),
    }
}

/// A node of which nothing runs yet.
fn node_endpoint(node: &Node) -> NodeEndpoint {
    NodeEndpoint { id: node.id, address: node.address, peer_address: node.peer_address, pid: None }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn plan(data: &Path, listen: SocketAddr, gateways: u16) -> Plan {
        Plan { data: Some(data.to_owned()), wanted: Wanted::default(), gateways, listen, log: None }
    }

    #[tokio::test]
    async fn a_taken_gateway_port_is_refused_and_nothing_is_made() {
        let parent = tempfile::tempdir().unwrap();
        let data = parent.path().join("data");
        let holder = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = holder.local_addr().unwrap();
        let failure = Cluster::start(&plan(&data, listen, 1)).await.err().unwrap();
        assert_eq!(failure.code(), 5);
        let text = failure.to_string();
        assert!(text.contains(&listen.to_string()) && text.contains("--listen"), "{text}");
        assert!(!data.exists());
    }

    #[test]
    fn gateways_listen_on_successive_ports() {
        let directory = DataDir::new("/nonexistent");
        let mut reservation = Reservation::default();
        let chosen = gateway_addresses(
            &plan(Path::new("x"), ports::any_loopback(), 3),
            &directory,
            &mut reservation,
            Duration::ZERO,
        )
        .unwrap();
        assert_eq!(chosen.len(), 3);
        assert!(chosen.iter().all(|address| address.port() != 0));
        let last = plan(Path::new("x"), "127.0.0.1:65535".parse().unwrap(), 2);
        let failure = gateway_addresses(&last, &directory, &mut reservation, Duration::ZERO).err().unwrap();
        assert_eq!(failure.code(), if failure.to_string().contains("in use") { 5 } else { 2 });
    }

    #[test]
    fn a_cluster_is_broken_without_any_node_or_any_gateway() {
        let parent = tempfile::tempdir().unwrap();
        let (_lock, topology, _ports) =
            DataDir::new(parent.path()).prepare(&Wanted::default(), Duration::ZERO).unwrap();
        let listens = ["127.0.0.1:7400".parse().unwrap(), "127.0.0.1:7401".parse().unwrap()];
        let endpoints = endpoints(&topology, &listens);
        let last = |names: &[&str]| {
            let gone: Vec<_> = names
                .iter()
                .map(|name| GivenUp { name: (*name).into(), code: 70, message: String::new() })
                .collect();
            beyond_repair(&gone, &endpoints).map(|gone| gone.name)
        };
        assert_eq!(last(&[]), None);
        assert_eq!(last(&["node-2"]), None);
        assert_eq!(last(&["node-2", "gateway-1"]), None);
        assert_eq!(last(&["node-2", "node-1"]), None);
        assert_eq!(last(&["node-2", "node-3", "node-1"]).as_deref(), Some("node-1"));
        assert_eq!(last(&["gateway-1", "gateway-2"]).as_deref(), Some("gateway-2"));
    }

    #[test]
    fn the_board_follows_processes() {
        let parent = tempfile::tempdir().unwrap();
        let directory = DataDir::new(parent.path());
        let (_lock, topology, _ports) = directory.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        let listens = ["127.0.0.1:7400".parse().unwrap(), "0.0.0.0:7401".parse().unwrap()];
        let board = Board {
            path: directory.endpoints(),
            endpoints: Arc::new(Mutex::new(endpoints(&topology, &listens))),
        };
        board.set_pid("node-2", Some(42));
        board.set_pid("gateway-2", Some(43));
        let read = Endpoints::running(&directory.endpoints()).unwrap();
        assert_eq!(read.urls(), ["http://127.0.0.1:7400", "http://127.0.0.1:7401"]);
        assert_eq!(read.nodes.iter().map(|n| n.pid).collect::<Vec<_>>(), [None, Some(42), None]);
        assert_eq!(read.gateways.iter().map(|g| g.pid).collect::<Vec<_>>(), [None, Some(43)]);
        board.set_pid("node-2", None);
        assert_eq!(Endpoints::running(&directory.endpoints()).unwrap().nodes[1].pid, None);
    }
}
