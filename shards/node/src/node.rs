//! Puts the parts of a node together, and takes them apart again.
//!
//! Threads: one for the client port and the actors, one runtime for Raft and the peer port, one writer for the log, one
//! for checkpoints. The order of a start: directory, log, checkpoints, groups, ports. The order of a stop is the
//! reverse; what was acknowledged is on disk at any moment, so that a kill loses nothing either.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_actors::{Directory, Limits};
use tidewall_consensus::{FailStop, Group, GroupConfig, PeerServer, Peers, PeersConfig, StateHandle, Timing};
use tidewall_env::clock::Clock;
use tidewall_proto::internal::v1::peer_service_server::PeerServiceServer;
use tidewall_proto::internal::v1::shard_service_server::ShardServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tonic::transport::server::TcpIncoming;

use crate::admin::ShardServer;
use crate::clock::SteadyClock;
use crate::config::{NodeConfig, NodeError};
use crate::data::{self, Data};
use crate::exchange::{Served, Serving};
use crate::keeper;
use crate::metrics::Metrics;
use crate::shard::GroupShard;
use crate::space::Space;

/// Largest message on the client port, bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 20;
/// How long open calls may take to end when the node stops.
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
    std::fs::create_dir_all(&config.data_dir).map_err(NodeError::system(format!(
        "cannot create {}; choose a directory that can be written",
        config.data_dir.display()
    )))?;
    // Ports first: a second node on the same ports must not touch the data.
    let client_port = bind(me.address)?;
    let peer_port = bind(me.peer_address)?;
    let space = Space::new(&config.data_dir)
        .map_err(NodeError::system(format!("cannot lay out space in {}", config.data_dir.display())))?;
    let data = data::open(&config)?;
    // One thread for all groups: no wake-ups between threads, which cost more than what a group does in between.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(NodeError::system("cannot start the Raft runtime"))?;
    let result = runtime.block_on(serve(config, data, space, client_port, peer_port));
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

/// The first report of a disk failure, and how to wait for it.
fn fail_stop() -> (FailStop, watch::Receiver<Option<String>>) {
    let (sender, receiver) = watch::channel(None);
    let first = Mutex::new(Some(sender));
    let report = move |what: &str| {
        if let Some(sender) = first.lock().take() {
            tracing::error!(what, "storage has failed: this node stops at once");
            // The receiver lives as long as the node.
            let _ = sender.send(Some(what.to_owned()));
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
) -> Result<(), NodeError> {
    let topology = &config.topology;
    let cluster = topology.cluster_bytes().unwrap_or_default();
    let clock: Arc<dyn Clock> = Arc::new(SteadyClock::new());
    if !data.fresh {
        // This node's last process may have granted somebody a lease that it knows nothing of: no vote before that is over.
        tokio::time::sleep(Duration::from_millis(Timing::default().election_max_ms)).await;
    }
    let (fail_stop, mut failed) = fail_stop();
    let peers = Peers::new(PeersConfig {
        cluster,
        addresses: topology.nodes.iter().map(|node| (node.id, node.peer_address)).collect(),
    });
    let peer_server = PeerServer::new(cluster, data.incoming.clone());
    let (stop, stopped) = watch::channel(false);
    let peer_listener = listener(peer_port)?;
    let peer_task = tokio::spawn(
        tidewall_link::server_builder()
            .add_service(
                PeerServiceServer::new(peer_server.clone())
                    .max_decoding_message_size(MESSAGE_BYTES_MAX)
                    .max_encoding_message_size(MESSAGE_BYTES_MAX),
            )
            .serve_with_incoming_shutdown(incoming(peer_listener), until(stopped.clone())),
    );
    let (mut groups, mut faults) = (BTreeMap::new(), BTreeMap::new());
    let members: BTreeMap<u64, String> =
        topology.nodes.iter().map(|node| (node.id, node.peer_address.to_string())).collect();
    for (number, machine) in data.machines {
        let machine = match machine {
            Ok(machine) => machine,
            Err(why) => {
                tracing::error!(group = number, %why, "this replica is quarantined; the other groups go on");
                faults.insert(number, why);
                continue;
            }
        };
        let log = data.log.group(number);
        let virgin = log.state().vote.is_none() && log.state().last.is_none();
        let group = Group::start(GroupConfig {
            number,
            node: config.node,
            members: members.clone(),
            timing: Timing::default(),
            log,
            state: StateHandle::new(number, machine),
            writer: data.writer.clone(),
            peers: peers.clone(),
            fail_stop: fail_stop.clone(),
        });
        // What a group's log or rows do to it must not take the others down, at a start no more than later.
        let group = match group.await {
            Ok(group) => group,
            Err(error) => {
                tracing::error!(group = number, %error, "this replica cannot start; the other groups go on");
                faults.insert(number, error.to_string());
                continue;
            }
        };
        peer_server.add(group.clone());
        groups.insert(number, (group, virgin));
    }
    for (number, (group, virgin)) in &groups {
        // One candidate to begin with, so that the first leaders are where they belong.
        if *virgin
            && topology.preferred_leader(*number) == config.node
            && let Err(error) = group.initialize().await
        {
            tracing::error!(group = number, %error, "the group cannot be made");
        }
    }
    let groups: BTreeMap<u32, Group> =
        groups.into_iter().map(|(number, (group, _))| (number, group)).collect();
    let metrics = Arc::new(Metrics::new(topology));
    let edge = Edge {
        node: config.node,
        groups: groups.clone(),
        faults,
        space: space.clone(),
        metrics,
        log: data.log.clone(),
        writer: data.writer.clone(),
        clock,
        topology: topology.clone(),
    };
    let edge_stopped = stopped.clone();
    let edge_thread = std::thread::Builder::new()
        .name("edge".into())
        .spawn(move || edge.run(client_port, edge_stopped))
        .map_err(NodeError::system("cannot start the thread of the client port"))?;
    tracing::info!(node = config.node, groups = groups.len(), "node is up");
    let ended = tokio::select! {
        biased;
        what = failure(&mut failed) => {
            space.drop_ballast();
            // No clean stop: nothing that the disk says can be trusted any more.
            return Err(NodeError::Storage(what));
        }
        signal = signalled() => signal,
    };
    tracing::info!(node = config.node, "node stops");
    // The keeper, the ports and the actors see this and end.
    let _ = stop.send(true);
    for group in groups.values() {
        group.stop().await;
    }
    if tokio::time::timeout(STOP_PATIENCE, peer_task).await.is_err() {
        tracing::debug!("peers kept their connections");
    }
    let joined = tokio::task::spawn_blocking(move || edge_thread.join());
    match tokio::time::timeout(STOP_PATIENCE, joined).await {
        Ok(Ok(Ok(result))) => result?,
        Ok(_) => return Err(NodeError::Internal("the thread of the client port panicked".into())),
        Err(_) => tracing::debug!("clients kept their connections"),
    }
    data.writer.stop();
    data.log.close().map_err(|error| NodeError::Storage(error.to_string()))?;
    ended
}

/// What has failed, once something has.
async fn failure(failed: &mut watch::Receiver<Option<String>>) -> String {
    match failed.wait_for(Option::is_some).await {
        Ok(what) => what.clone().unwrap_or_default(),
        // Nobody is left who could report: the node is being taken apart.
        Err(_) => std::future::pending().await,
    }
}

fn listener(port: std::net::TcpListener) -> Result<TcpListener, NodeError> {
    TcpListener::from_std(port).map_err(NodeError::system("cannot use a port"))
}

/// Connections of a port. The server's own setting does not reach those that it is handed: without this, Nagle's
/// algorithm and delayed acknowledgements hold replies back for 40 ms.
fn incoming(listener: TcpListener) -> TcpIncoming {
    TcpIncoming::from(listener).with_nodelay(Some(true))
}

async fn until(mut stopped: watch::Receiver<bool>) {
    // A sender that is gone means stop, too.
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn signalled() -> Result<(), NodeError> {
    use tokio::signal::unix::{SignalKind, signal};
    let failed = NodeError::system("cannot listen for signals");
    let signals =
        signal(SignalKind::terminate()).and_then(|term| Ok((term, signal(SignalKind::interrupt())?)));
    let (mut terminate, mut interrupt) = signals.map_err(failed)?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// What lives on the thread of the client port.
struct Edge {
    node: u64,
    groups: BTreeMap<u32, Group>,
    faults: BTreeMap<u32, String>,
    space: Space,
    metrics: Arc<Metrics>,
    log: tidewall_store::log::NodeLog,
    writer: tidewall_store::checkpoint::CheckpointWriter,
    clock: Arc<dyn Clock>,
    topology: tidewall_client::topology::Topology,
}

impl Edge {
    fn run(self, port: std::net::TcpListener, stopped: watch::Receiver<bool>) -> Result<(), NodeError> {
        let system = actix::System::new();
        system.block_on(self.serve(port, stopped))
    }

    async fn serve(
        self,
        port: std::net::TcpListener,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), NodeError> {
        let arbiter = actix::Arbiter::current();
        let served = |group: &Group| {
            let shard = Arc::new(GroupShard::new(group.clone(), Arc::clone(&self.clock)));
            let rows = Directory::start(shard, Limits::default(), arbiter.clone());
            Served { group: group.clone(), rows, hot: Arc::default() }
        };
        let serving = Arc::new(Serving {
            groups: self.groups.iter().map(|(number, group)| (*number, served(group))).collect(),
            faults: self.faults,
            space: self.space,
            metrics: Arc::clone(&self.metrics),
        });
        let keeper = tokio::spawn(keeper::keep(
            self.node,
            self.topology.clone(),
            Arc::clone(&serving),
            self.log.clone(),
        ));
        let shards = ShardServer::new(self.node, Arc::clone(&serving), self.log.clone(), self.clock);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<ShardServiceServer<ShardServer>>().await;
        let routes = tonic::service::Routes::new(
            ShardServiceServer::new(shards)
                .max_decoding_message_size(MESSAGE_BYTES_MAX)
                .max_encoding_message_size(MESSAGE_BYTES_MAX),
        )
        .add_service(health_service);
        let (log, writer, metrics) = (self.log, self.writer, self.metrics);
        let text = move || {
            let text = metrics.text(&serving, &log, writer.disk_bytes());
            std::future::ready(text)
        };
        let router = routes.prepare().into_axum_router().route("/metrics", axum::routing::get(text));
        let served = tidewall_link::server_builder()
            .accept_http1(true)
            .add_routes(tonic::service::Routes::from(router))
            .serve_with_incoming_shutdown(incoming(listener(port)?), until(stopped.clone()));
        // Streams of gateways never end by themselves: the stop waits for none of them.
        let result = tokio::select! {
            result = served => result,
            () = until(stopped) => Ok(()),
        };
        keeper.abort();
        result.map_err(|error| NodeError::Internal(format!("the client port failed: {error}")))
    }
}
