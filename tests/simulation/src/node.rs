//! A node in the simulation: what outlives its process, and the process.
//!
//! The process is put together by the node's own assembly; only what the operating system would give comes from here.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::{DATE, HeaderValue};
use parking_lot::Mutex;
use rand::Rng as _;
use tidewall_actors::Home;
use tidewall_consensus::recovery::{Recovery, RecoveryError, recover};
use tidewall_consensus::{
    FailStop, Group, Payload, PeerServer, Peers, PeersConfig, StateHandle, StorageFault,
};
use tidewall_env::disk::{CrashMode, MemoryDisk};
use tidewall_node::assembly::{
    Front, LifeOfNode, LivesStore, Orders, Parts, Quarantine, RaftThreads, Replicas, Space, SteadyClock,
    load_rows, peer_service,
};
use tidewall_store::checkpoint::memory::{Faults, MemoryCheckpoints};
use tidewall_store::checkpoint::{CheckpointStore as _, CheckpointWriter};
use tidewall_store::keyring::Keyring;
use tidewall_store::log::{LogOptions, NodeLog};
use tokio::sync::mpsc;
use tonic::body::Body;
use tower::util::MapResponseLayer;

use crate::clerk::deliver_garbage;
use crate::fault::{Loss, Slot};
use crate::history::Cut;
use crate::inject::node_ip;
use crate::lines::Lines;
use crate::operator::TopologyFile;
use crate::oracle::Violation;
use crate::trace::Trace;
use crate::world::{Backlog, Pace, SkewedClock, device, now_us};

/// Port for gateways.
pub const CLIENT_PORT: u16 = 7_000;
/// Port for the other nodes.
pub const PEER_PORT: u16 = 7_001;
/// Small, so that segments are begun and removed.
const SEGMENT_BYTES: u64 = 16 << 10;
/// So that what halted replicas hold is moved.
const LOG_BYTES_MAX: u64 = 3 * SEGMENT_BYTES;

/// Something that a running node is asked to do.
#[derive(Debug, Clone, Copy)]
pub enum Order {
    /// Store a checkpoint.
    Checkpoint(u32),
    /// Hand a lead over.
    Transfer(u32, u64),
    /// End all row actors of a group.
    Actors(u32),
    /// End the proposer of a group.
    Proposer(u32),
    /// Have a group take in messages that it cannot carry out.
    Garbage(u32),
    /// Propose an entry that no replica can decode.
    Poison(u32),
}

/// A running process, as it can be seen from outside.
pub struct Life {
    /// Its replicas.
    pub groups: BTreeMap<u32, Group>,
    /// The rows of each replica, also of those that halted at once.
    pub rows: BTreeMap<u32, StateHandle>,
    orders: mpsc::UnboundedSender<Order>,
    log: Backlog,
    checkpoints: Backlog,
}

/// What all nodes of a cluster share.
#[derive(Clone)]
pub struct Ground {
    /// Which nodes there are: every process follows it.
    pub file: TopologyFile,
    /// The network.
    pub lines: Lines,
    /// Longest sync of a log, µs.
    pub sync_us: u64,
    /// Groups that may have been given an entry that no replica can decode.
    pub poisoned: Rc<RefCell<BTreeSet<u32>>>,
    /// Groups that get messages which nobody can carry out.
    pub garbage: Rc<RefCell<BTreeSet<u32>>>,
    /// Earlier states that groups were brought back to.
    pub cuts: Rc<RefCell<BTreeMap<u32, Vec<Cut>>>>,
    /// What must not have happened.
    pub violations: Rc<RefCell<Vec<Violation>>>,
    /// What has happened.
    pub trace: Trace,
}

impl Ground {
    /// Whether a halted replica is explained by a poison entry.
    pub fn explains(&self, group: u32, why: &str) -> bool {
        why.contains("does not decode") && self.poisoned.borrow().contains(&group)
    }
}

/// A node that all others have left for good.
#[derive(Debug, Clone)]
pub struct LastOne {
    /// The incarnation that begins.
    pub incarnation: u64,
    /// Term and index that some replica of each group had reached when the others died.
    pub furthest: BTreeMap<u32, (u64, u64)>,
}

/// What a node stores.
#[derive(Clone)]
struct Media {
    disk: MemoryDisk,
    checkpoints: MemoryCheckpoints,
    lives: LivesStore,
    keys: MemoryDisk,
}

impl Media {
    fn new() -> Self {
        let (disk, checkpoints) = (MemoryDisk::new(), MemoryCheckpoints::new());
        Self { disk, checkpoints, lives: LivesStore::in_memory(), keys: MemoryDisk::new() }
    }
}

/// A node: what outlives its process.
pub struct SimNode {
    /// Its number.
    pub id: u64,
    /// Where it is in the cluster.
    pub slot: Slot,
    /// What it shares with the others.
    pub ground: Ground,
    media: RefCell<Media>,
    /// A copy of them that was made a while ago.
    older: RefCell<Option<Media>>,
    /// What they really are, while the node runs on such a copy.
    aside: RefCell<Option<Media>>,
    quarantine: Quarantine,
    clock: SkewedClock,
    pace: Pace,
    fresh: Cell<bool>,
    /// The process, when it is up.
    pub life: RefCell<Option<Life>>,
    /// Its disk has failed: somebody must look after it.
    pub failed: Arc<Mutex<Option<StorageFault>>>,
    /// Its disk was made to fail.
    disk_fails: Cell<bool>,
    /// Groups whose replica here may refuse to serve, because its checkpoint was damaged.
    pub damaged: RefCell<BTreeSet<u32>>,
    /// It is to go on alone when it starts the next time.
    last_one: Cell<Option<LastOne>>,
    /// Its last crash left a checkpoint unfinished.
    torn: Cell<bool>,
    /// It is a copy of another one, which runs.
    twin: bool,
    /// It never comes back, and nobody reads its disk any more.
    pub gone: Cell<bool>,
}

impl SimNode {
    /// A node that has never run.
    pub fn new(id: u64, slot: Slot, ground: Ground) -> Self {
        Self {
            id,
            slot,
            media: RefCell::new(Media::new()),
            older: RefCell::default(),
            aside: RefCell::default(),
            quarantine: Quarantine::in_memory(),
            clock: SkewedClock::default(),
            pace: Pace::new(ground.sync_us),
            fresh: Cell::new(true),
            life: RefCell::default(),
            failed: Arc::default(),
            disk_fails: Cell::new(false),
            damaged: RefCell::default(),
            last_one: Cell::new(None),
            torn: Cell::new(false),
            twin: false,
            gone: Cell::new(false),
            ground,
        }
    }

    /// Copies what it has stored. What it has met is left out: that recognises others.
    pub fn copy_media(&self) {
        let media = self.media.borrow();
        let (disk, checkpoints) = (media.disk.copy(), media.checkpoints.copy());
        let (lives, keys) = (LivesStore::in_memory(), media.keys.copy());
        *self.older.borrow_mut() = Some(Media { disk, checkpoints, lives, keys });
    }

    /// Whether it would know, also after a restart, that the copy of another node's log is not its last state.
    pub fn would_recognise(&self, other: &Self) -> bool {
        let met = self.media.borrow().lives.load().unwrap_or_default();
        met.get(&other.id).is_some_and(|met| other.has_copy_before(met.reached))
    }

    fn has_copy_before(&self, reached: u64) -> bool {
        self.older.borrow().as_ref().is_some_and(|copy| {
            let options = LogOptions { inline: true, ..self.log_options() };
            NodeLog::open(Arc::new(copy.disk.copy()), options).is_ok_and(|(log, _)| log.opened_at() < reached)
        })
    }

    /// Puts the copy in the place of what is stored, while the process is down.
    pub fn go_back(&self) {
        if let Some(older) = self.older.borrow_mut().take() {
            *self.aside.borrow_mut() = Some(self.media.replace(older));
        }
    }

    /// Lets it go on alone when it starts the next time.
    pub fn goes_on_alone(&self, last_one: LastOne) {
        self.last_one.set(Some(last_one));
    }

    /// Carries that out for all groups, as a node does before it starts.
    fn recover(&self, incarnation: u64, furthest: &BTreeMap<u32, (u64, u64)>) -> Result<(), RecoveryError> {
        let Media { disk, mut checkpoints, .. } = self.media.borrow().clone();
        // Nothing else runs yet: every sync is waited for.
        let (log, _) = NodeLog::open(Arc::new(disk), LogOptions { inline: true, ..self.log_options() })?;
        for (&group, &furthest) in furthest {
            let rows = load_rows(&mut checkpoints, &log, group, tidewall_node::APPLY_VERSION);
            let rows = rows.map_err(|error| RecoveryError::Unusable(error.to_string()))?;
            let rows = rows.map_err(RecoveryError::Unusable)?;
            let logged = log.group(group).state().last.map(|last| (last.term, last.index));
            let applied = rows.head().applied.map(|at| (at.term, at.index));
            let kept = logged.max(applied).unwrap_or_default();
            let address = SocketAddr::new(node_ip(self.id), PEER_PORT).to_string();
            recover(
                &Recovery { group, node: self.id, address, incarnation },
                &log.group(group),
                &mut checkpoints,
                rows,
            )?;
            // Nobody was told of anything that is not kept, if no replica had got further.
            let lost = furthest.0 > kept.0 || furthest.1 > kept.1;
            let seen_until_us = if lost { now_us() } else { 0 };
            let cut = Cut { incarnation, kept, seen_until_us, forgets_ids: false, taken_us: 0 };
            self.ground.trace.note(
                now_us(),
                &self.name(),
                format_args!("goes on alone: group {group}: {cut:?}"),
            );
            self.ground.cuts.borrow_mut().entry(group).or_default().push(cut);
        }
        Ok(())
    }

    /// Whether it runs on such a copy.
    pub fn is_stale(&self) -> bool {
        self.aside.borrow().is_some()
    }

    /// Puts back what is really stored, once the copy was refused.
    pub fn come_forward(&self) {
        if let Some(media) = self.aside.borrow_mut().take() {
            *self.media.borrow_mut() = media;
        }
        *self.failed.lock() = None;
    }

    fn log_options(&self) -> LogOptions {
        let cluster = self.ground.file.read().cluster_bytes().unwrap_or_default();
        LogOptions { segment_bytes: SEGMENT_BYTES, ..LogOptions::new(cluster, self.id) }
    }

    /// A copy of it, as it is now, to be run beside it.
    pub fn twin(&self) -> Self {
        self.copy_media();
        let copy = self.older.take().unwrap_or_else(Media::new);
        let sim_node = Self::new(self.id, self.slot, self.ground.clone());
        Self { media: RefCell::new(copy), fresh: Cell::new(false), twin: true, ..sim_node }
    }

    fn name(&self) -> String {
        format!("n{}{}", self.id, if self.twin { "-twin" } else { "" })
    }

    fn object(&self, check: &'static str, what: String) {
        self.ground.trace.note(now_us(), &self.name(), format_args!("VIOLATION {check}: {what}"));
        self.ground
            .violations
            .borrow_mut()
            .push(Violation { check, what: format!("{}: {what}", self.name()) });
    }

    /// Gives a running process an order.
    pub fn order(&self, order: Order) {
        if let Some(life) = &*self.life.borrow() {
            // Without a receiver it is going down.
            let _ = life.orders.send(order);
        }
    }

    /// Sets its clock ahead, or back.
    pub fn shift_clock(&self, by_ms: i64) {
        self.clock.ahead_ms.fetch_add(by_ms, std::sync::atomic::Ordering::Relaxed);
    }

    /// Sets its clock right.
    pub fn set_clock_right(&self) {
        self.clock.ahead_ms.store(0, std::sync::atomic::Ordering::Relaxed);
    }

    /// How long its log takes to sync from now on; `None`: as usual.
    pub fn set_pace(&self, sync_us: Option<u64>) {
        self.pace.set(sync_us.unwrap_or(self.ground.sync_us));
    }

    /// The next sync of its log fails.
    pub fn fail_disk(&self) {
        self.disk_fails.set(true);
        self.media.borrow().disk.fail_syncs_after(0);
    }

    /// Whether its disk was made to fail.
    pub fn disk_was_made_to_fail(&self) -> bool {
        self.disk_fails.get()
    }

    /// Loses a part of a group's checkpoint, while the process is down.
    pub fn damage_checkpoint(&self, group: u32) -> bool {
        let lost = self.media.borrow().checkpoints.lose_a_page(group);
        if lost {
            self.damaged.borrow_mut().insert(group);
        }
        lost
    }

    /// The power fails: what was under way is lost, or half of it. The host must be crashed right after.
    pub fn lose_power(&self, loss: Loss) {
        let Some(life) = self.life.borrow_mut().take() else { return };
        let Media { disk, checkpoints, keys, .. } = self.media.borrow().clone();
        let work: Vec<_> = life.log.lock().drain(..).collect();
        if loss != Loss::Everything && tidewall_env::random::rng().random_bool(0.7) {
            // Written, and on its way to the disk when the power fails: nobody will hear of it.
            disk.lose_power_at_syncs();
            for write in work {
                write();
            }
        }
        let unfinished: Vec<_> = life.checkpoints.lock().drain(..).collect();
        self.torn.set(!unfinished.is_empty());
        for write in unfinished {
            // Begun, and left in the middle.
            checkpoints.set_faults(Faults { tear_next_write: true, ..Faults::default() });
            write();
        }
        checkpoints.set_faults(Faults::default());
        self.disk_fails.set(false);
        let mode = match loss {
            Loss::Everything => CrashMode::LoseUnsynced,
            Loss::Torn(seed) => CrashMode::TornPrefix { seed },
            Loss::Scattered(seed) => CrashMode::ScatteredSectors { seed },
        };
        disk.crash(mode);
        keys.crash(mode);
        *self.failed.lock() = None;
    }
}

/// The software of a node's host.
pub async fn live(sim_node: Rc<SimNode>) -> turmoil::Result {
    // The host's clock runs only within a step of the simulation.
    tokio::time::sleep(Duration::from_millis(1)).await;
    let topology = sim_node.ground.file.read();
    let cluster = topology.cluster_bytes().unwrap_or_default();
    if let Some(LastOne { incarnation, furthest }) = sim_node.last_one.take()
        && let Err(error) = sim_node.recover(incarnation, &furthest)
    {
        sim_node.object("recovery", format!("it does not go on alone: {error}"));
        return std::future::pending().await;
    }
    let (later, backlog) = device(sim_node.pace.clone());
    let options = LogOptions { inline: true, later: Some(later), ..sim_node.log_options() };
    let media = sim_node.media.borrow().clone();
    let log = match NodeLog::open(Arc::new(media.disk), options) {
        Ok((log, report)) => {
            sim_node.ground.trace.note(now_us(), &sim_node.name(), format_args!("starts: {report:?}"));
            log
        }
        Err(error) => {
            sim_node.object("recovery", format!("the log does not open: {error}"));
            return std::future::pending().await;
        }
    };
    let fresh = sim_node.fresh.replace(false);
    let mut store = media.checkpoints;
    let mut machines = BTreeMap::new();
    for region in &topology.regions {
        let number = region.group;
        let state = log.group(number).state();
        let voted = state.vote.map_or((0, 0), |vote| (vote.term, vote.node));
        let last = state.last.map_or((0, 0), |last| (last.term, last.node));
        if voted < last {
            let what =
                format!("group {number}: entries of (term, leader) {last:?}, and the last vote is {voted:?}");
            sim_node.object("vote", what);
        }
        if let Err(error) = store.load(number)
            && !sim_node.torn.get()
            && !sim_node.damaged.borrow().contains(&number)
        {
            sim_node.object("checkpoint", format!("group {number}: {error}"));
        }
        let rows = match sim_node.quarantine.why(number) {
            Some(why) => Err(why),
            None => load_rows(&mut store, &log, number, tidewall_node::APPLY_VERSION)
                .map_err(|error| error.to_string())?,
        };
        machines.insert(number, rows);
    }
    let (later, checkpoint_backlog) = device(Pace::new(20_000));
    let writer = CheckpointWriter::without_thread(Box::new(store), later);
    let failed = Arc::clone(&sim_node.failed);
    let fail_stop = FailStop::new(move |fault| {
        failed.lock().get_or_insert(fault);
    });
    let life = LifeOfNode::begin(sim_node.id, &log, media.lives, &fail_stop)?;
    let (peers, server) = (
        Peers::new(PeersConfig {
            cluster,
            lives: Arc::clone(life.lives()),
            credentials: None,
            addresses: topology.nodes.iter().map(|node| (node.id, node.peer_address)).collect(),
        }),
        PeerServer::new(None, Arc::clone(life.lives())),
    );
    tokio::spawn(
        tidewall_link::server_builder()
            .layer(MapResponseLayer::new(dated))
            .layer(tidewall_link::NodeIdentity::peer_port(cluster, Arc::clone(life.lives()), false))
            .add_service(peer_service(server.clone()))
            .serve_with_incoming(sim_node.ground.lines.listen(PEER_PORT).await?),
    );
    let parts = Parts {
        node: sim_node.id,
        topology: topology.clone(),
        apply_version: tidewall_node::APPLY_VERSION,
        clock: Arc::new(SteadyClock::over(Arc::new(sim_node.clock.clone()))),
        log,
        writer,
        machines,
        quarantine: sim_node.quarantine.clone(),
        // Nobody orders a recovery here: nothing is ever written there.
        orders: Orders::new(Path::new("/nonexistent")),
        fresh,
        life,
        fail_stop,
        threads: RaftThreads::none(),
        keyring: Keyring::open(&media.keys, cluster, sim_node.id, fresh && topology.generation == 0)?,
        space: Space::unlimited(),
    };
    let replicas = Replicas::start(parts, &peers, &server).await;
    for (group, why) in &replicas.faults {
        if !sim_node.damaged.borrow().contains(group)
            && !sim_node.ground.explains(*group, why)
            && !sim_node.is_stale()
        {
            sim_node.object("quarantine", format!("the replica of group {group} refuses to serve: {why}"));
        }
    }
    tokio::spawn(replicas.reporting(&peers));
    tokio::spawn(replicas.couriers());
    tokio::task::spawn_local(sim_node.ground.file.clone().follow(topology, replicas.adopting(&peers)));
    let front = replicas.front(Space::unlimited(), Home::local());
    tokio::spawn(front.keeper(LOG_BYTES_MAX));
    tokio::spawn(
        tidewall_link::server_builder()
            .layer(MapResponseLayer::new(dated))
            .layer(tidewall_link::NodeIdentity::client_port(cluster, sim_node.id, false))
            .add_service(front.service())
            .serve_with_incoming(sim_node.ground.lines.listen(CLIENT_PORT).await?),
    );
    let (orders, inbox) = mpsc::unbounded_channel();
    *sim_node.life.borrow_mut() = Some(Life {
        groups: replicas.groups.clone(),
        rows: replicas.rows,
        orders,
        log: backlog,
        checkpoints: checkpoint_backlog,
    });
    sim_node.ground.trace.note(now_us(), &sim_node.name(), format_args!("is up"));
    // Whoever was told to died with it perhaps.
    for group in sim_node.ground.garbage.borrow().iter().filter_map(|number| replicas.groups.get(number)) {
        tokio::spawn(deliver_garbage(group.clone()));
    }
    obey(replicas.groups, front, inbox).await;
    std::future::pending().await
}

/// hyper would date a response by the machine's clock, and a date that changes makes other segments on the wire.
fn dated(mut response: http::Response<Body>) -> http::Response<Body> {
    response.headers_mut().insert(DATE, HeaderValue::from_static(tidewall_env::simulation::DATE));
    response
}

async fn obey(groups: BTreeMap<u32, Group>, front: Front, mut inbox: mpsc::UnboundedReceiver<Order>) {
    while let Some(order) = inbox.recv().await {
        match order {
            Order::Checkpoint(number) => {
                if let Some(group) = groups.get(&number) {
                    group.checkpoint().await;
                }
            }
            Order::Transfer(number, to) => {
                if let Some(group) = groups.get(&number).filter(|group| group.believes_to_lead()) {
                    group.transfer_leadership(to).await;
                }
            }
            Order::Actors(number) => front.abandon_rows(number),
            Order::Proposer(number) => front.abandon_proposer(number),
            Order::Garbage(number) => {
                if let Some(group) = groups.get(&number).cloned() {
                    tokio::spawn(deliver_garbage(group));
                }
            }
            Order::Poison(number) => {
                if let Some(group) = groups.get(&number).filter(|group| group.believes_to_lead()).cloned() {
                    // Nobody is told what comes of it.
                    tokio::spawn(async move { group.propose(Payload::poison()).await });
                }
            }
        }
    }
}
