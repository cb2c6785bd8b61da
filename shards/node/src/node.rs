//! Puts the parts of a node together, and takes them apart again.
//!
//! Threads: one for the client port and the actors, one for the peer port and what has no thread of its own, as many for Raft as
//! are asked for, one writer for the log, one for checkpoints. The order of a start: directory, log, checkpoints, groups, ports. The order of a stop is the
//! reverse; what was acknowledged is on disk at any moment, so that a kill loses nothing either.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use axum::routing::get;
use futures_util::Stream;
use parking_lot::Mutex;
use tidewall_actors::Home;
use tidewall_client::follow::follow;
use tidewall_client::topology::Topology;
use tidewall_consensus::{FailStop, Group, PeerServer, Peers, PeersConfig, StorageFault};
use tidewall_link::{AcceptLimits, Accepted, Connections, Credentials, NodeIdentity};
use tidewall_proto::internal::v1::shard_service_server::ShardServiceServer;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use crate::admin::ShardServer;
use crate::assembly::{self, Front, LifeOfNode, Parts, Replicas};
use crate::clock::SteadyClock;
use crate::config::{NodeConfig, NodeError};
use crate::data::{self, Data};
use crate::reports::Reports;
use crate::space::Space;
use crate::standing::Standing;
use crate::threads::RaftThreads;
use crate::{keeper, lead};

/// How long handing over leads may take before a stop.
const DRAIN_PATIENCE: Duration = Duration::from_secs(2);
/// How long the threads may take to end when the node stops.
const STOP_PATIENCE: Duration = Duration::from_secs(3);

/// Runs a node until SIGTERM or SIGINT.
///
/// # Errors
/// See [`NodeError`]; its exit code tells whether a restart makes sense.
pub fn run(config: NodeConfig) -> Result<(), NodeError> {
    config.topology.check().map_err(|error| NodeError::Config(error.to_string()))?;
    let me = config
        .topology
        .node(config.node)
        .cloned()
        .ok_or_else(|| NodeError::Config(format!("the topology has no node {}", config.node)))?;
    // Ports first: a second node on the same ports must not touch the data.
    let client_port = bind(me.address)?;
    let peer_port = bind(me.peer_address)?;
    // Connections and the peer port live here, and all groups where they have no threads of their own: on few cores wake-ups between
    // threads cost more than what a group does in between.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NodeError::system("cannot start the Raft runtime"))?;
    let signals = {
        let _entered = runtime.enter();
        Signals::new()?
    };
    // Nothing is written into a directory before it is known to be this node's.
    let data = data::open(&config)?;
    let space = Space::new(&config.data_dir)
        .map_err(NodeError::system(format!("cannot lay out space in {}", config.data_dir.display())))?;
    tidewall_consensus::take_place(config.node);
    let result = runtime.block_on(serve(config, data, space, client_port, peer_port, signals));
    runtime.shutdown_timeout(STOP_PATIENCE);
    result
}

fn bind(address: SocketAddr) -> Result<std::net::TcpListener, NodeError> {
    let listener = std::net::TcpListener::bind(address).map_err(NodeError::system(format!(
        "cannot listen on {address}; another process may use the port: stop it, or give the node another port"
    )))?;
    listener.set_nonblocking(true).map_err(NodeError::system(format!("cannot use {address}")))?;
    Ok(listener)
}

/// The first report that storage has failed, and how to wait for it.
fn fail_stop() -> (FailStop, watch::Receiver<Option<StorageFault>>) {
    let (sender, receiver) = watch::channel(None);
    let first = Mutex::new(Some(sender));
    let report = move |fault: StorageFault| {
        if let Some(sender) = first.lock().take() {
            tracing::error!(%fault, "this node stops at once");
            // The receiver lives as long as the node.
            let _ = sender.send(Some(fault));
        }
    };
    (FailStop::new(report), receiver)
}

async fn serve(
    config: NodeConfig,
    data: Data,
    space: Space,
    client_port: std::net::TcpListener,
    peer_port: std::net::TcpListener,
    mut signals: Signals,
) -> Result<(), NodeError> {
    let topology = &config.topology;
    let cluster = topology.cluster_bytes().unwrap_or_default();
    let (fail_stop, mut failed) = fail_stop();
    let life = LifeOfNode::begin(config.node, &data.log, data.lives, &fail_stop).map_err(NodeError::Data)?;
    let credentials = config.credentials.as_ref();
    let peers = Peers::new(PeersConfig {
        cluster,
        lives: Arc::clone(life.lives()),
        credentials: credentials.cloned(),
        addresses: topology.nodes.iter().map(|node| (node.id, node.peer_address)).collect(),
    });
    let peer_server = PeerServer::new(Some(data.incoming.clone()), Arc::clone(life.lives()));
    let (stop, stopped) = watch::channel(false);
    let peer_listener = listener(peer_port)?;
    let peer_task = tokio::spawn(
        tidewall_link::server_builder()
            .layer(NodeIdentity::peer_port(cluster, Arc::clone(life.lives()), credentials.is_some()))
            .add_service(assembly::peer_service(peer_server.clone()))
            .serve_with_incoming_shutdown(incoming(peer_listener, credentials, true), until(stopped.clone())),
    );
    // Kept until the groups have ended: they run there.
    let threads = RaftThreads::start(config.raft_threads)
        .map_err(NodeError::system("cannot start the threads of Raft"))?;
    let parts = Parts {
        node: config.node,
        topology: topology.clone(),
        apply_version: config.apply_version,
        clock: Arc::new(SteadyClock::new()),
        log: data.log.clone(),
        writer: data.writer.clone(),
        machines: data.machines,
        quarantine: data.quarantine,
        orders: data.orders,
        fresh: data.fresh,
        life: life.clone(),
        fail_stop,
        threads: threads.clone(),
        keyring: data.keyring,
        space: space.clone(),
    };
    let replicas = tokio::select! {
        biased;
        // Nothing was begun yet that would have to be ended.
        error = failure(&mut failed) => return Err(error),
        _ = signals.next() => return Ok(()),
        replicas = Replicas::start(parts, &peers, &peer_server) => replicas,
    };
    let reporting = tokio::spawn(replicas.reporting(&peers));
    let couriers = tokio::spawn(replicas.couriers());
    let following = tokio::spawn(following(&config, replicas.adopting(&peers)));
    let (groups, standing) = (replicas.groups.clone(), Arc::clone(&replicas.standing));
    let reports = Arc::clone(&replicas.reports);
    let identity = NodeIdentity::client_port(cluster, config.node, credentials.is_some());
    let edge = ClientPort { replicas, space: space.clone(), identity, credentials: credentials.cloned() };
    let edge_stopped = stopped.clone();
    let (edge_runs, edge_ended) = tokio::sync::oneshot::channel::<()>();
    let edge_thread = std::thread::Builder::new()
        .name("edge".into())
        .spawn(move || {
            // Dropped when the thread ends, however it ends.
            let _edge_runs = edge_runs;
            edge.run(client_port, edge_stopped)
        })
        .map_err(NodeError::system("cannot start the thread of the client port"))?;
    tracing::info!(node = config.node, groups = groups.len(), "node is up");
    let ended = tokio::select! {
        biased;
        error = failure(&mut failed) => {
            space.drop_ballast();
            // No clean stop: nothing that the disk says can be trusted any more.
            return Err(error);
        }
        _ = edge_ended => {
            let why = "the thread of the client port ended by itself: see its messages above".to_owned();
            return Err(NodeError::Internal(why));
        }
        stop = signals.next() => stop,
        () = standing.restart_asked() => Stop::Restart,
    };
    if matches!(ended, Stop::Orderly | Stop::Restart) {
        leave(&standing, &reports, &peers, &groups).await;
    }
    reporting.abort();
    couriers.abort();
    following.abort();
    tracing::info!(node = config.node, "node stops");
    // The keeper, the ports and the actors see this and end.
    let _ = stop.send(true);
    for group in groups.values() {
        group.stop().await;
    }
    drop(threads);
    life.save().await;
    // Streams of other nodes never end by themselves, and there is nothing left that could answer them.
    peer_task.abort();
    let joined = tokio::task::spawn_blocking(move || edge_thread.join());
    match tokio::time::timeout(STOP_PATIENCE, joined).await {
        Ok(Ok(Ok(result))) => result?,
        Ok(_) => return Err(NodeError::Internal("the thread of the client port panicked".into())),
        Err(_) => tracing::debug!("clients kept their connections"),
    }
    data.writer.stop();
    data.log.close().map_err(|error| NodeError::Storage(error.to_string()))?;
    match ended {
        Stop::Orderly | Stop::AtOnce => Ok(()),
        Stop::Restart => Err(NodeError::Restart),
    }
}

/// Hands all leads over, in bounded time, so that clients wait for a transfer instead of an election.
async fn leave(standing: &Standing, reports: &Reports, peers: &Peers, groups: &BTreeMap<u32, Group>) {
    standing.set_drained(true);
    let drained = async {
        // The others must not hand leads to this node meanwhile.
        reports.round(peers).await;
        lead::leave_all(groups, standing, DRAIN_PATIENCE).await
    };
    match tokio::time::timeout(DRAIN_PATIENCE, drained).await {
        Ok(moved) => tracing::info!(moved = moved.moved.len(), kept = moved.kept.len(), "leads handed over"),
        Err(_) => tracing::warn!("not all leads could be handed over in time"),
    }
}

/// Follows the topology file, if there is one.
fn following<A: Fn(&Topology) + Send>(
    config: &NodeConfig,
    adopt: A,
) -> impl Future<Output = ()> + Send + use<A> {
    let (path, current) = (config.topology_path.clone(), config.topology.clone());
    async move {
        let Some(path) = path else { return };
        match follow(&path, current, adopt).await {}
    }
}

/// How a node was told to stop.
enum Stop {
    /// SIGTERM: hand over first.
    Orderly,
    /// SIGINT: at once; everybody else is probably stopping, too.
    AtOnce,
    /// By itself, to be started again.
    Restart,
}

/// What the node ends with once storage has failed.
async fn failure(failed: &mut watch::Receiver<Option<StorageFault>>) -> NodeError {
    match failed.wait_for(Option::is_some).await.map(|fault| fault.clone()) {
        Ok(Some(StorageFault::Damage(what))) => NodeError::Data(what),
        Ok(Some(StorageFault::InUse(what))) => NodeError::InUse(what),
        Ok(Some(StorageFault::Disk(what))) => NodeError::Storage(what),
        // Nobody is left who could report: the node is being taken apart.
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

fn listener(port: std::net::TcpListener) -> Result<TcpListener, NodeError> {
    TcpListener::from_std(port).map_err(NodeError::system("cannot use a port"))
}

/// The connections of a port. Gateways, operators and nodes may all come from one address.
fn incoming(
    listener: TcpListener,
    credentials: Option<&Credentials>,
    tls_only: bool,
) -> impl Stream<Item = std::io::Result<Accepted>> + Send + Unpin + use<> {
    const CONNECTIONS_MAX: usize = 4_096;
    let defaults = AcceptLimits::default();
    let connections_max = defaults.connections_max.min(CONNECTIONS_MAX);
    let limits = AcceptLimits { connections_max, per_address_max: connections_max, ..defaults };
    tidewall_link::incoming(listener, limits, Connections::default(), credentials, tls_only)
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means stop, too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

/// What asks the node to stop. It listens from its creation on: as process 1 of a container, which the kernel protects from
/// signals that nobody listens to, a node is to hear them while it opens its data as well.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Must be called in a runtime.
    fn new() -> Result<Self, NodeError> {
        let listen = |kind| signal(kind).map_err(NodeError::system("cannot listen for signals"));
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> Stop {
        tokio::select! {
            _ = self.terminate.recv() => Stop::Orderly,
            _ = self.interrupt.recv() => Stop::AtOnce,
        }
    }
}

/// What lives on the thread of the client port.
struct ClientPort {
    replicas: Replicas,
    space: Space,
    identity: NodeIdentity,
    credentials: Option<Credentials>,
}

impl ClientPort {
    fn run(self, port: std::net::TcpListener, stopped: watch::Receiver<bool>) -> Result<(), NodeError> {
        let system = actix::System::new();
        system.block_on(self.serve(port, stopped))
    }

    async fn serve(
        self,
        port: std::net::TcpListener,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), NodeError> {
        let front = self.replicas.front(self.space, Home::arbiter(actix::Arbiter::current()));
        let keeper = tokio::spawn(front.keeper(keeper::LOG_BYTES_MAX));
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ShardServiceServer<ShardServer>>().await;
        let routes = tonic::service::Routes::new(front.service()).add_service(health_service);
        let router = with_pages(routes.prepare().into_axum_router(), &front);
        let served = tidewall_link::server_builder()
            .accept_http1(true)
            .layer(self.identity)
            .add_routes(tonic::service::Routes::from(router))
            .serve_with_incoming_shutdown(
                incoming(listener(port)?, self.credentials.as_ref(), false),
                until(stopped.clone()),
            );
        // Streams of gateways never end by themselves: the stop waits for none of them.
        let result = tokio::select! {
            result = served => result,
            () = until(stopped) => Ok(()),
        };
        keeper.abort();
        result.map_err(|error| NodeError::Internal(format!("the client port failed: {error}")))
    }
}

/// Adds the pages for machines that do not speak gRPC, for everybody.
fn with_pages(router: axum::Router, front: &Front) -> axum::Router {
    let (metrics, readiness) = (front.metrics(), front.readiness());
    let metrics = move |headers: HeaderMap| {
        let accepted = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        std::future::ready(tidewall_metrics::answer(accepted, metrics()))
    };
    let ready = move || {
        std::future::ready(match readiness() {
            Ok(()) => (StatusCode::OK, "ok\n".to_owned()),
            Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
        })
    };
    let live = || std::future::ready((StatusCode::OK, "ok\n"));
    router
        .route("/metrics", get(metrics))
        .route("/readyz", get(ready.clone()))
        .route("/healthz", get(ready))
        .route("/livez", get(live))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn damage_and_a_failing_disk_end_a_node_with_codes_of_their_own() {
        let faults = [
            (StorageFault::Disk("x".into()), 70),
            (StorageFault::Damage("x".into()), 71),
            (StorageFault::InUse("x".into()), 5),
        ];
        for (fault, code) in faults {
            let (sender, mut receiver) = watch::channel(None);
            sender.send(Some(fault)).unwrap();
            assert_eq!(failure(&mut receiver).await.exit_code(), code);
        }
    }
}
