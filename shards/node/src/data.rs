//! What lies in a node's data directory, and whether it may be used.
//!
//! `node.json` names the cluster, the node and the format: it is the last thing written when the directory is made,
//! and checked before anything else is opened. `log/` is the Raft log, `checkpoint/` the rows, `incoming/` snapshot
//! files on their way, `keyring/` the keys of persons. A directory of something else is refused and not touched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tidewall_client::topology;
use tidewall_consensus::recovery::RecoveryError;
use tidewall_env::disk::RealDisk;
use tidewall_link::Met;
use tidewall_machine::Machine;
use tidewall_store::checkpoint::sled_store::SledCheckpoints;
use tidewall_store::checkpoint::{CheckpointError, CheckpointStore, CheckpointWriter};
use tidewall_store::keyring::{Keyring, KeyringError};
use tidewall_store::log::{LogError, LogOptions, NodeLog};

use crate::config::{NodeConfig, NodeError};
use crate::files;
use crate::lives::LivesStore;
use crate::recovery::{Orders, Survivor};
use crate::reports::Quarantine;

/// Version of a node's data directory: its layout, and the form of what the log and the rows hold. 2: outcomes that say
/// everything themselves, prices with their currency, steady time.
const DATA_FORMAT: u32 = 3;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Identity {
    format: u32,
    cluster: String,
    node: u64,
    /// The cluster that the log and the checkpoints name, when it was forked since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    written_as: Option<String>,
}

impl Identity {
    fn written_as(&self) -> &str {
        self.written_as.as_deref().unwrap_or(&self.cluster)
    }
}

/// The opened data of a node.
pub struct Data {
    /// The Raft log of all groups.
    pub log: NodeLog,
    /// Writes checkpoints.
    pub writer: CheckpointWriter,
    /// The rows of each group, or why they cannot be used.
    pub machines: BTreeMap<u32, Result<Machine, String>>,
    /// Which replicas must not serve.
    pub quarantine: Quarantine,
    /// Which lives of the other nodes were met.
    pub lives: LivesStore,
    /// Where orders to recover a group are kept.
    pub orders: Orders,
    /// Where snapshot files are received.
    pub incoming: PathBuf,
    /// The keys of persons.
    pub keyring: Keyring,
    /// The directory was made just now.
    pub fresh: bool,
}

/// Opens the directory, making it if that is allowed.
pub fn open(config: &NodeConfig) -> Result<Data, NodeError> {
    let directory = &config.data_dir;
    let place = directory.display();
    let system = |what: String| NodeError::system(format!("{what}; check that the directory is writable"));
    let new = Identity {
        format: DATA_FORMAT,
        cluster: config.topology.cluster.clone(),
        node: config.node,
        written_as: None,
    };
    let found = check_identity(directory, &new, config.create)?;
    let fresh = found.is_none();
    let identity = found.unwrap_or(new);
    let lives = LivesStore::new(directory);
    if let Some(why) = lives.why_stale() {
        return Err(NodeError::Data(format!("{place} must not be used again: {why}")));
    }
    let incoming = directory.join("incoming");
    if incoming.exists() {
        std::fs::remove_dir_all(&incoming).map_err(system(format!("cannot empty {}", incoming.display())))?;
    }
    std::fs::create_dir_all(&incoming).map_err(system(format!("cannot create {}", incoming.display())))?;
    let written_as = identity.written_as();
    let cluster = topology::cluster_bytes(written_as).ok_or_else(|| {
        NodeError::Config(format!("the cluster id {written_as:?} is not 32 hexadecimal digits"))
    })?;
    let disk =
        RealDisk::open(directory.join("log")).map_err(system(format!("cannot open the log in {place}")))?;
    let (log, report) =
        NodeLog::open(Arc::new(disk), LogOptions::new(cluster, config.node)).map_err(log_error)?;
    tracing::info!(?report, "log opened");
    if report.fresh && !fresh {
        return Err(NodeError::Data(format!(
            "the Raft log in {place} is gone, though this node has served before: its votes are lost, so it must not \
             come back under its id. Remove the directory and let it rejoin under a new id"
        )));
    }
    let mut store = SledCheckpoints::open(&directory.join("checkpoint"), cluster, config.node)
        .map_err(checkpoint_error)?;
    let disk = RealDisk::open(directory.join("keyring"))
        .map_err(system(format!("cannot open the keyring in {place}")))?;
    // A node that joins later, or has lost its keyring, lacks what others have.
    let first = fresh && config.topology.generation == 0;
    let keyring = Keyring::open(&disk, cluster, config.node, first).map_err(|error| match error {
        KeyringError::Io { .. } => NodeError::Storage(error.to_string()),
        _ => NodeError::Data(format!("{place}: {error}")),
    })?;
    let mut machines = BTreeMap::new();
    let quarantine = Quarantine::new(directory);
    let orders = Orders::new(directory);
    let address = config.topology.node(config.node).map(|node| node.peer_address.to_string());
    let address = address.unwrap_or_default();
    for region in &config.topology.regions {
        let group = region.group;
        let machine = match quarantine.why(group) {
            Some(why) => Err(why),
            None => load(&mut store, &log, group, config.apply_version)?,
        };
        let machine = match machine {
            Ok(machine) => recovered(&orders, config, &address, &log, &mut store, group, machine)?,
            Err(why) => Err(why),
        };
        machines.insert(group, machine);
    }
    let writer =
        CheckpointWriter::start(Box::new(store)).map_err(NodeError::system("cannot start a thread"))?;
    if fresh {
        write_identity(directory, &identity).map_err(system(format!("cannot write to {place}")))?;
    }
    Ok(Data { log, writer, machines, quarantine, lives, orders, incoming, keyring, fresh })
}

/// Carries out a recovery that was ordered, and refuses a replica that another one's recovery has left behind.
fn recovered(
    orders: &Orders,
    config: &NodeConfig,
    address: &str,
    log: &NodeLog,
    store: &mut SledCheckpoints,
    group: u32,
    machine: Machine,
) -> Result<Result<Machine, String>, NodeError> {
    let fence = config.topology.fences.get(&group).copied().unwrap_or(0);
    let untouched = machine.head().applied.is_none() && log.group(group).state().last.is_none();
    let survivor = Survivor { node: config.node, address: address.to_owned(), group, fence };
    let result = orders.carry_out(survivor, log, store, machine);
    match result {
        // A replica that has nothing yet will receive the new incarnation.
        Ok(machine) if machine.incarnation() >= fence || untouched => Ok(Ok(machine)),
        Ok(machine) => Ok(Err(format!(
            "a forced recovery of group {group} began incarnation {fence} and left this replica, of incarnation {}, \
             behind: replace this node",
            machine.incarnation()
        ))),
        Err(RecoveryError::Unusable(why)) => Ok(Err(why)),
        Err(RecoveryError::Log(error)) => Err(log_error(error)),
        Err(RecoveryError::Checkpoint(error)) => Err(checkpoint_error(error)),
    }
}

/// The rows of a group, or why they cannot be used: they must be whole and reach as far as the log was purged.
///
/// # Errors
/// When the store itself fails: the node must stop.
pub fn load(
    store: &mut dyn CheckpointStore,
    log: &NodeLog,
    group: u32,
    apply_version: u32,
) -> Result<Result<Machine, String>, NodeError> {
    let purged = log.group(group).state().last_purged;
    let machine = match store.load(group) {
        Ok(Some((_, machine))) => machine,
        Ok(None) => Machine::new(),
        Err(error @ (CheckpointError::Failed { .. } | CheckpointError::Corrupt { .. })) => {
            return Err(checkpoint_error(error));
        }
        // The log still has everything that the rows were made of: a first checkpoint that a power cut tore is no loss.
        Err(CheckpointError::Damaged { what, .. }) if purged.is_none() => {
            tracing::warn!(
                group,
                what,
                "the checkpoint is damaged: the rows are made again from the whole log"
            );
            store.discard(group).map_err(checkpoint_error)?;
            Machine::new()
        }
        Err(error) => return Ok(Err(error.to_string())),
    };
    let applied = machine.head().applied.map(|at| at.index);
    if let Some(purged) = purged
        && applied.is_none_or(|applied| applied < purged.index)
    {
        return Ok(Err(format!(
            "the checkpoint of group {group} reaches index {applied:?}, but the log was purged up to {}: rows are \
             lost; remove the node's data directory and let it rejoin under a new id",
            purged.index
        )));
    }
    // The whole node refuses: a build that is too old for one group is not fit to serve any.
    machine.supporting(apply_version).map(Ok).map_err(|error| NodeError::Data(error.to_string()))
}

fn checkpoint_error(error: CheckpointError) -> NodeError {
    match error {
        CheckpointError::Failed { .. } => NodeError::Storage(error.to_string()),
        _ => NodeError::Data(error.to_string()),
    }
}

fn log_error(error: LogError) -> NodeError {
    match error {
        LogError::Io { .. } | LogError::Failed { .. } | LogError::DiskFull { .. } => {
            NodeError::Storage(error.to_string())
        }
        _ => NodeError::Data(error.to_string()),
    }
}

/// Makes the data of a node those of another cluster: a copy that is to live on beside its original. What the node has met
/// is forgotten; everything else stays.
///
/// # Errors
/// That it is no directory of this node, or cannot be written.
pub fn fork(directory: &Path, node: u64, cluster: &str) -> Result<(), NodeError> {
    let system = |what: String| NodeError::system(format!("cannot write {what} in {}", directory.display()));
    let path = directory.join("node.json");
    let found = read_identity(&path)?.filter(|found| found.format == DATA_FORMAT && found.node == node);
    let Some(found) = found else {
        let place = directory.display();
        return Err(NodeError::Data(format!(
            "{place} holds no data of node {node} of this format: nothing was forked"
        )));
    };
    LivesStore::new(directory).forget().map_err(system("lives.json".into()))?;
    let written_as = Some(found.written_as().to_owned()).filter(|written_as| written_as != cluster);
    let forked = Identity { cluster: cluster.to_owned(), written_as, ..found };
    write_identity(directory, &forked).map_err(system("node.json".into()))
}

/// How old the data of a node are, as far as that can be seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Age {
    /// How far its log has come.
    pub reached: u64,
    /// How far the node knows the logs of the others to have come.
    pub met: BTreeMap<u64, Met>,
}

/// Looks how old the data of a stopped node are. Its log is opened, and repaired if a crash has torn it, as at a start.
///
/// # Errors
/// That it is no directory of this node, or cannot be read.
pub fn age(directory: &Path, node: u64) -> Result<Age, NodeError> {
    let place = directory.display();
    let identity = read_identity(&directory.join("node.json"))?;
    let cluster = identity.filter(|found| found.format == DATA_FORMAT && found.node == node);
    let cluster = cluster.and_then(|found| topology::cluster_bytes(found.written_as()));
    let cluster = cluster
        .ok_or_else(|| NodeError::Data(format!("{place} holds no data of node {node} of this format")))?;
    let met = LivesStore::new(directory).load().map_err(NodeError::Data)?;
    let failed = NodeError::system(format!("cannot open the log in {place}"));
    let disk = RealDisk::open(directory.join("log")).map_err(failed)?;
    let (log, _) = NodeLog::open(Arc::new(disk), LogOptions::new(cluster, node)).map_err(log_error)?;
    let reached = log.opened_at();
    log.close().map_err(log_error)?;
    Ok(Age { reached, met })
}

/// What `node.json` says, if there is one.
fn read_identity(path: &Path) -> Result<Option<Identity>, NodeError> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|error| {
            NodeError::Data(format!("{} is damaged or of another program: {error}", path.display()))
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NodeError::System { what: format!("cannot read {}", path.display()), source }),
    }
}

/// Whose the directory is; `None` when it is new. Refuses what belongs to something else.
fn check_identity(
    directory: &Path,
    expected: &Identity,
    create: bool,
) -> Result<Option<Identity>, NodeError> {
    let place = directory.display();
    let Some(found) = read_identity(&directory.join("node.json"))? else {
        if !create {
            return Err(NodeError::Data(format!(
                "{place} holds no data of node {}, which has served in this cluster before: its votes are lost, so \
                 it must not come back under its id. Put its directory back, or let it rejoin under a new id",
                expected.node
            )));
        }
        refuse_foreign_files(directory)?;
        return Ok(None);
    };
    if found.format != DATA_FORMAT {
        return Err(NodeError::Data(format!(
            "{place} has data format {}, this build reads format {DATA_FORMAT}: use the build that wrote it",
            found.format
        )));
    }
    if (&found.cluster, found.node) != (&expected.cluster, expected.node) {
        return Err(NodeError::Data(format!(
            "{place} belongs to node {} of cluster {}, not to node {} of cluster {}: use its own directory",
            found.node, found.cluster, expected.node, expected.cluster
        )));
    }
    Ok(Some(found))
}

/// A start that was cut short leaves its own directories; anything else belongs to somebody.
fn refuse_foreign_files(directory: &Path) -> Result<(), NodeError> {
    const OWN: [&str; 6] = ["log", "checkpoint", "incoming", "keyring", "node.tmp", "ballast"];
    let Ok(entries) = std::fs::read_dir(directory) else { return Ok(()) };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if !OWN.iter().any(|own| name == *own) {
            return Err(NodeError::Data(format!(
                "{} holds {name:?}, which is not a node's data: choose an empty directory",
                directory.display()
            )));
        }
    }
    Ok(())
}

fn write_identity(directory: &Path, identity: &Identity) -> std::io::Result<()> {
    files::replace(directory, "node.json", &serde_json::to_vec_pretty(identity)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use bytes::Bytes;
    use tidewall_client::topology::{Node, Region, Topology};

    fn config(directory: &Path) -> NodeConfig {
        let address = "127.0.0.1:1".parse().unwrap();
        let topology = Topology::new(
            0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes(),
            vec![Region { id: "north".into(), display_name: "North".into(), group: 1 }],
            vec![
                Node { id: 1, address, peer_address: address },
                Node { id: 2, address, peer_address: address },
            ],
        );
        NodeConfig {
            raft_threads: 0,
            node: 1,
            data_dir: directory.to_owned(),
            topology,
            topology_path: None,
            ephemeral: false,
            create: true,
            credentials: None,
            apply_version: 1,
        }
    }

    fn refusal(config: &NodeConfig) -> (i32, String) {
        let error = open(config).map(drop).unwrap_err();
        (error.exit_code(), error.to_string())
    }

    #[test]
    fn a_directory_is_made_once_and_then_recognised() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        let data = open(&config).unwrap();
        data.writer.stop();
        data.log.close().unwrap();
        config.create = false;
        let data = open(&config).unwrap();
        data.writer.stop();
        data.log.close().unwrap();

        config.node = 2;
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("belongs to node 1"), "{text}");
        config.node = 1;
        config.topology.cluster = "ff112233445566778899aabbccddeeff".into();
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("cluster ff11"), "{text}");
    }

    #[test]
    fn forked_data_belong_to_another_cluster_and_hold_what_they_held() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        let close = |data: Data| {
            data.writer.stop();
            data.log.close().unwrap();
        };
        let data = open(&config).unwrap();
        let vote = tidewall_store::log::Vote { term: 7, node: 1, committed: false };
        data.log.group(1).save_vote(vote, Box::new(|done| done.unwrap()));
        close(data);
        std::fs::write(directory.path().join("lives.json"), "{}").unwrap();
        std::fs::write(directory.path().join("stale"), "node 2 says so").unwrap();
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("node 2 says so"), "{text}");
        assert_eq!(fork(directory.path(), 2, "1").unwrap_err().exit_code(), 71);

        let original =
            std::mem::replace(&mut config.topology.cluster, "0f112233445566778899aabbccddeeff".into());
        // Twice, and back: as often as somebody likes.
        for cluster in ["1f112233445566778899aabbccddeeff", config.topology.cluster.as_str()] {
            fork(directory.path(), 1, cluster).unwrap();
        }
        config.create = false;
        let data = open(&config).unwrap();
        assert_eq!(data.log.group(1).state().vote, Some(vote));
        assert_eq!(data.lives.load(), Ok(BTreeMap::new()));
        close(data);
        config.topology.cluster = original;
        assert_eq!(refusal(&config).0, 71);
        fork(directory.path(), 1, &config.topology.cluster).unwrap();
        close(open(&config).unwrap());
    }

    #[test]
    fn a_node_that_served_before_does_not_start_empty() {
        let directory = tempfile::tempdir().unwrap();
        let mut config = config(directory.path());
        config.create = false;
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("served in this cluster before"), "{text}");

        config.create = true;
        let data = open(&config).unwrap();
        data.writer.stop();
        data.log.close().unwrap();
        std::fs::remove_dir_all(directory.path().join("log")).unwrap();
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("Raft log"), "{text}");
    }

    #[test]
    fn a_damaged_checkpoint_is_no_loss_while_the_log_is_whole() {
        use tidewall_env::disk::MemoryDisk;
        use tidewall_store::checkpoint::memory::MemoryCheckpoints;
        use tidewall_store::log::{LogEntry, LogPosition};
        let options = LogOptions { inline: true, ..LogOptions::new([1; 16], 1) };
        let (log, _) = NodeLog::open(Arc::new(MemoryDisk::new()), options).unwrap();
        let position = LogPosition { term: 1, node: 1, index: 0 };
        log.group(1)
            .append(vec![LogEntry { position, payload: Bytes::new() }], Box::new(|done| done.unwrap()));
        let mut store = MemoryCheckpoints::new();
        let damage = |store: &mut MemoryCheckpoints| {
            store.write(1, &Machine::new().freeze_all()).unwrap();
            assert!(store.lose_a_page(1));
        };
        damage(&mut store);
        let machine = load(&mut store, &log, 1, tidewall_machine::APPLY_VERSION).unwrap().unwrap();
        assert_eq!(machine.head().applied, None);
        assert!(store.load(1).unwrap().is_none(), "nothing of it may be mixed with what comes");

        log.group(1).purge(position, Box::new(|done| done.unwrap()));
        damage(&mut store);
        let why = load(&mut store, &log, 1, tidewall_machine::APPLY_VERSION).unwrap().unwrap_err();
        assert!(why.contains("damaged"), "{why}");
    }

    #[test]
    fn another_format_and_foreign_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let config = config(directory.path());
        std::fs::write(directory.path().join("diary.txt"), "dear diary").unwrap();
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("diary.txt"), "{text}");
        std::fs::remove_file(directory.path().join("diary.txt")).unwrap();
        let cluster = config.topology.cluster.clone();
        let identity = Identity { format: 9, cluster, node: 1, written_as: None };
        write_identity(directory.path(), &identity).unwrap();
        let (code, text) = refusal(&config);
        assert!(code == 71 && text.contains("format 9"), "{text}");
        std::fs::write(directory.path().join("node.json"), "{").unwrap();
        assert_eq!(refusal(&config).0, 71);
    }

    #[test]
    fn a_directory_that_is_refused_stays_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        let notes = directory.path().join("notes.txt");
        std::fs::write(&notes, "mine").unwrap();
        let run = |data_dir: &Path, create| {
            let mut config = NodeConfig { create, ..config(data_dir) };
            for node in &mut config.topology.nodes {
                node.address.set_port(0);
                node.peer_address.set_port(0);
            }
            crate::node::run(config).unwrap_err().exit_code()
        };
        assert_eq!(run(directory.path(), true), 71);
        assert_eq!(run(&directory.path().join("missing"), false), 71);
        let left: Vec<_> =
            std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert_eq!(left, [notes]);
    }
}
