//! The data directory of a single-machine cluster: what is where, whose it is, and who may use it.
//!
//! ```text
//! DIR/topology.json    cluster id, regions, nodes and their ports: the authority
//! DIR/endpoints.json   where the running cluster can be reached (see `endpoints`)
//! DIR/keys/            development key pair that signs tokens (see `keys`)
//! DIR/tls/             certificates of the processes (see `certificates`)
//! DIR/node-N/          data of shard node N; only that node's process touches it
//! DIR/node-N.made      that shard node N once had data; DIR/node-N.lock is held by its process
//! DIR/logs/            output of the processes
//! DIR/lock             held by the supervisor
//! ```
//!
//! A directory that is refused is left exactly as it was: nothing is written before all checks passed.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tidewall_client::topology::{Node, Region, Topology};

use crate::ports::{self, Reservation};
use crate::regions_file;

/// Where a cluster keeps its data when nobody says otherwise.
pub const DEFAULT_DATA: &str = "./tidewall-data";

/// How many shard nodes a new cluster gets when nobody says otherwise.
pub const DEFAULT_NODES: u64 = 3;

/// How long another change of the topology is waited for.
const TOPOLOGY_PATIENCE: Duration = Duration::from_secs(5);

/// What a first start that was cut short, or making a file system, may have left behind.
const LEFT_BY_A_FIRST_START: [&str; 6] = ["lock", "logs", "keys", "tls", "topology.tmp", "lost+found"];

/// Why a data directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DataDirError {
    /// The system did not let us.
    #[error(
        "cannot {action} {path}: {source}. Choose a directory on a disk with room that you may write to, with --data"
    )]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is a file.
    #[error("{0} is not a directory: choose another with --data")]
    NotADirectory(String),
    /// It holds something that is not ours.
    #[error(
        "{directory} is not empty and not a Tidewall data directory (it has {found:?} and no topology.json); nothing was changed. Choose an empty directory with --data{hint}"
    )]
    Foreign {
        /// The data directory.
        directory: String,
        /// The first entry that does not belong.
        found: String,
        /// What else to think of.
        hint: &'static str,
    },
    /// Its topology cannot be read by this build.
    #[error(
        "{directory} cannot be used: {message}; nothing was changed. Choose another directory with --data"
    )]
    Topology {
        /// The data directory.
        directory: String,
        /// What is wrong with it.
        message: String,
    },
    /// It belongs to a cluster of another shape.
    #[error("{directory} holds the data of another cluster: {difference}; nothing was changed. {advice}")]
    OtherCluster {
        /// The data directory.
        directory: String,
        /// The first difference.
        difference: String,
        /// What to do.
        advice: &'static str,
    },
    /// There is no room for a new cluster.
    #[error(
        "{directory} has {free_mib} MiB of free space, and a new cluster of this size needs {needed_mib}, or it would \
         refuse all new work: free space, or choose another directory with --data"
    )]
    NoRoom {
        /// The data directory.
        directory: String,
        /// What is free, MiB.
        free_mib: u64,
        /// What is needed, MiB.
        needed_mib: u64,
    },
    /// Somebody else uses it now.
    #[error("{path} is in use{by}: stop that process first, or choose another directory with --data")]
    Locked {
        /// The lock file.
        path: String,
        /// " by process N", when it is known.
        by: String,
    },
}

/// The paths of a data directory; making one touches nothing.
#[derive(Debug, Clone)]
pub struct DataDir {
    root: PathBuf,
}

/// What was found in a data directory.
#[derive(Debug)]
pub enum Contents {
    /// There is no such directory.
    Missing,
    /// Nothing of value is in it.
    Fresh,
    /// It belongs to this cluster.
    Cluster(Topology),
}

/// The shape that the user asked for; `None` takes what is there, or the default.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Regions.
    pub regions: Option<Vec<Region>>,
    /// Number of shard nodes.
    pub nodes: Option<u64>,
}

/// Exclusive use of something; given up when dropped, also when the process is killed.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl DataDir {
    /// The data directory at `root`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The topology file.
    pub fn topology(&self) -> PathBuf {
        self.root.join("topology.json")
    }

    /// The endpoints file.
    pub fn endpoints(&self) -> PathBuf {
        self.root.join("endpoints.json")
    }

    /// The directory of keys.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// The directory of certificates.
    pub fn certificates(&self) -> PathBuf {
        self.root.join("tls")
    }

    /// The data of a shard node.
    pub fn node(&self, id: u64) -> PathBuf {
        self.root.join(format!("node-{id}"))
    }

    /// The directory of logs.
    pub fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    /// The supervisor's lock file.
    pub fn lock_file(&self) -> PathBuf {
        self.root.join("lock")
    }

    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DataDirError {
        move |source| DataDirError::Io { action, path: path.display().to_string(), source }
    }

    /// Looks at the directory without changing anything.
    pub fn examine(&self) -> Result<Contents, DataDirError> {
        let directory = || self.root.display().to_string();
        let entries = match std::fs::read_dir(&self.root) {
            Ok(entries) => entries,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Contents::Missing),
            Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => {
                return Err(DataDirError::NotADirectory(directory()));
            }
            Err(e) => return Err(Self::io("read", &self.root)(e)),
        };
        let topology = self.topology();
        if topology.exists() {
            return Topology::load(&topology)
                .map(Contents::Cluster)
                .map_err(|e| DataDirError::Topology { directory: directory(), message: e.to_string() });
        }
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Self::io("read", &self.root))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        match names.into_iter().find(|name| !LEFT_BY_A_FIRST_START.contains(&name.as_str())) {
            None => Ok(Contents::Fresh),
            Some(found) => {
                let hint = if found.starts_with("node-") {
                    ". If it was one, put its topology.json back: without it the data cannot be opened"
                } else {
                    ""
                };
                Err(DataDirError::Foreign { directory: directory(), found, hint })
            }
        }
    }

    /// Refuses a directory that cannot be what the user asked for, without changing anything.
    pub fn check(&self, wanted: &Wanted) -> Result<Contents, DataDirError> {
        let contents = self.examine()?;
        if let Contents::Cluster(topology) = &contents {
            let other = |difference, advice| {
                let directory = self.root.display().to_string();
                Err(DataDirError::OtherCluster { directory, difference, advice })
            };
            if let Some(difference) =
                wanted.regions.as_deref().and_then(|r| regions_differ(&topology.regions, r))
            {
                return other(
                    difference,
                    "The regions of a cluster never change: leave out --regions, or choose another directory with --data",
                );
            }
            let nodes = topology.nodes.len() as u64;
            if let Some(wanted) = wanted.nodes.filter(|wanted| *wanted != nodes) {
                return other(
                    format!("it has {nodes} nodes, --nodes asks for {wanted}"),
                    "Leave out --nodes, or choose another directory with --data",
                );
            }
        }
        Ok(contents)
    }

    /// Makes the directory ready for a start: checks it, locks it, and writes the topology with ports that
    /// are free now. Ports that are taken are waited for up to `patience` and then chosen anew. The
    /// reservation keeps them until it is dropped.
    pub fn prepare(
        &self,
        wanted: &Wanted,
        patience: Duration,
    ) -> Result<(Lock, Topology, Reservation), DataDirError> {
        self.check(wanted)?;
        std::fs::create_dir_all(&self.root).map_err(Self::io("create", &self.root))?;
        let lock = self.lock()?;
        // Again, now that nobody else can change it.
        let recorded = match self.check(wanted)? {
            Contents::Cluster(topology) => Some(topology),
            Contents::Missing | Contents::Fresh => None,
        };
        let mut topology = recorded.clone().unwrap_or_else(|| new_topology(wanted));
        if recorded.is_none() {
            self.check_room(topology.nodes.len() as u64)?;
        }
        let mut reservation = Reservation::default();
        for node in &mut topology.nodes {
            for address in [&mut node.address, &mut node.peer_address] {
                *address = reservation
                    .or_another(*address, patience)
                    .map_err(Self::io("find a free port for a node of", &self.root))?;
            }
        }
        if recorded.as_ref() != Some(&topology) {
            topology.save(&self.topology()).map_err(|e| DataDirError::Topology {
                directory: self.root.display().to_string(),
                message: e.to_string(),
            })?;
        }
        Ok((lock, topology, reservation))
    }

    /// Refuses a disk on which a new cluster could do nothing. One that holds data already starts whatever is free: what
    /// was begun on it can be finished.
    fn check_room(&self, nodes: u64) -> Result<(), DataDirError> {
        let unknown = |e: rustix::io::Errno| Self::io("find the free space of", &self.root)(e.into());
        let found = rustix::fs::statvfs(&self.root).map_err(unknown)?;
        let [free_mib, needed_mib] =
            [found.f_bavail.saturating_mul(found.f_frsize), tidewall_node::room_for_new_nodes(nodes)]
                .map(|bytes| bytes >> 20);
        if free_mib >= needed_mib {
            return Ok(());
        }
        Err(DataDirError::NoRoom { directory: self.root.display().to_string(), free_mib, needed_mib })
    }

    /// Changes the topology of a cluster that may be running; its processes follow the file. One change at a time.
    ///
    /// # Errors
    /// That there is no cluster, that it cannot be read or written, or what `change` says.
    pub fn change_topology(
        &self,
        change: impl FnOnce(&mut Topology) -> Result<(), String>,
    ) -> Result<Topology, DataDirError> {
        let failed =
            |message: String| DataDirError::Topology { directory: self.root.display().to_string(), message };
        let _lock = Lock::take(&self.root.join("topology.lock"), TOPOLOGY_PATIENCE)?;
        let mut topology = Topology::load(&self.topology()).map_err(|e| failed(e.to_string()))?;
        change(&mut topology).map_err(&failed)?;
        topology.generation += 1;
        topology.check().map_err(|e| failed(e.to_string()))?;
        topology.save(&self.topology()).map_err(|e| failed(e.to_string()))?;
        Ok(topology)
    }

    /// Takes the supervisor's lock.
    fn lock(&self) -> Result<Lock, DataDirError> {
        Lock::take(&self.lock_file(), Duration::ZERO)
    }
}

impl Lock {
    /// Takes the lock file at `path`, creating it, and waits up to `patience` for who holds it.
    pub fn take(path: &Path, patience: Duration) -> Result<Self, DataDirError> {
        let deadline = Instant::now() + patience;
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(DataDir::io("write", path))?;
        loop {
            match file.try_lock() {
                Ok(()) => break,
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let mut holder = String::new();
                    // The content only makes the message better; the lock itself decides.
                    let _ = file.read_to_string(&mut holder);
                    let by = match holder.trim().parse::<u32>() {
                        Ok(pid) => format!(" by process {pid}"),
                        Err(_) => String::new(),
                    };
                    return Err(DataDirError::Locked { path: path.display().to_string(), by });
                }
                Err(TryLockError::Error(e)) => return Err(DataDir::io("lock", path)(e)),
            }
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .map_err(DataDir::io("write", path))?;
        Ok(Self { _file: file })
    }
}

/// A new cluster with ports still to be chosen.
fn new_topology(wanted: &Wanted) -> Topology {
    let any: SocketAddr = ports::any_loopback();
    Topology::new(
        uuid::Uuid::now_v7().into_bytes(),
        wanted.regions.clone().unwrap_or_else(regions_file::default_regions),
        (1..=wanted.nodes.unwrap_or(DEFAULT_NODES))
            .map(|id| Node { id, address: any, peer_address: any })
            .collect(),
    )
}

/// The first difference between recorded and wanted regions.
fn regions_differ(recorded: &[Region], wanted: &[Region]) -> Option<String> {
    if let Some((have, want)) = recorded.iter().zip(wanted).find(|(have, want)| have != want) {
        return Some(format!(
            "its region {} is {} ({:?}), the regions file has {} ({:?})",
            have.group, have.id, have.display_name, want.id, want.display_name
        ));
    }
    (recorded.len() != wanted.len())
        .then(|| format!("it has {} regions, the regions file lists {}", recorded.len(), wanted.len()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn names(path: &Path) -> Vec<String> {
        let mut names: Vec<_> = std::fs::read_dir(path)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    fn region(id: &str, group: u32) -> Region {
        Region { id: id.into(), display_name: id.into(), group }
    }

    #[test]
    fn a_first_start_makes_a_topology_and_a_later_one_keeps_it() {
        let parent = tempfile::tempdir().unwrap();
        let data = DataDir::new(parent.path().join("new"));
        assert!(matches!(data.examine().unwrap(), Contents::Missing));
        let (lock, first, ports) = data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        assert_eq!((first.regions.len(), first.nodes.len()), (12, 3));
        let mut all: Vec<u16> =
            first.nodes.iter().flat_map(|n| [n.address.port(), n.peer_address.port()]).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 6, "ports must differ");
        assert!(!all.contains(&0));
        drop((lock, ports));
        let (_lock, second, _ports) = data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        assert_eq!((&second.cluster, &second.regions), (&first.cluster, &first.regions));
        assert_eq!(Topology::load(&data.topology()).unwrap(), second);
    }

    #[test]
    fn a_taken_port_is_chosen_anew() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        let (lock, first, ports) = data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        drop(lock);
        // `ports` still holds every port of the first start.
        let (_lock, second, _ports) = data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        for (old, new) in first.nodes.iter().zip(&second.nodes) {
            assert_eq!(old.id, new.id);
            assert_ne!(old.address, new.address);
            assert_ne!(old.peer_address, new.peer_address);
        }
        assert_eq!(Topology::load(&data.topology()).unwrap(), second);
        drop(ports);
    }

    #[test]
    fn two_supervisors_cannot_share_a_directory() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        let first = data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
        let before = std::fs::read(data.topology()).unwrap();
        let message = data.prepare(&Wanted::default(), Duration::ZERO).unwrap_err().to_string();
        assert!(message.contains(&format!("in use by process {}", std::process::id())), "{message}");
        assert_eq!(std::fs::read(data.topology()).unwrap(), before);
        drop(first);
        data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
    }

    #[test]
    fn a_foreign_directory_is_left_as_it_was() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("thesis.txt"), "dear").unwrap();
        let data = DataDir::new(directory.path());
        let message = data.prepare(&Wanted::default(), Duration::ZERO).unwrap_err().to_string();
        assert!(message.contains("thesis.txt") && message.contains("--data"), "{message}");
        assert_eq!(names(directory.path()), ["thesis.txt"]);
    }

    #[test]
    fn node_data_without_a_topology_are_not_started_over() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir(directory.path().join("node-1")).unwrap();
        let data = DataDir::new(directory.path());
        let message = data.prepare(&Wanted::default(), Duration::ZERO).unwrap_err().to_string();
        assert!(message.contains("put its topology.json back"), "{message}");
        assert_eq!(names(directory.path()), ["node-1"]);
    }

    #[test]
    fn what_a_cut_off_first_start_left_is_no_obstacle() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("lock"), "").unwrap();
        std::fs::write(directory.path().join("topology.tmp"), "{").unwrap();
        let data = DataDir::new(directory.path());
        assert!(matches!(data.examine().unwrap(), Contents::Fresh));
        data.prepare(&Wanted::default(), Duration::ZERO).unwrap();
    }

    #[test]
    fn another_format_or_shape_is_refused_and_nothing_changes() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        drop(data.prepare(&Wanted::default(), Duration::ZERO).unwrap());
        let before = std::fs::read(data.topology()).unwrap();
        let refused = |wanted: Wanted| data.prepare(&wanted, Duration::ZERO).unwrap_err().to_string();

        let one = refused(Wanted { regions: Some(vec![region("x", 1)]), nodes: None });
        assert!(one.contains("its region 1 is north") && one.contains("--regions"), "{one}");
        let mut fewer = regions_file::default_regions();
        fewer.pop();
        let two = refused(Wanted { regions: Some(fewer), nodes: None });
        assert!(two.contains("12 regions") && two.contains("lists 11"), "{two}");
        let three = refused(Wanted { regions: None, nodes: Some(5) });
        assert!(three.contains("3 nodes") && three.contains("asks for 5"), "{three}");
        assert_eq!(std::fs::read(data.topology()).unwrap(), before);

        let newer = String::from_utf8(before).unwrap().replace("\"format\": 1", "\"format\": 9");
        std::fs::write(data.topology(), &newer).unwrap();
        assert!(refused(Wanted::default()).contains("format 9"));
        std::fs::write(data.topology(), "garbage").unwrap();
        assert!(refused(Wanted::default()).contains("topology.json"));
        assert_eq!(std::fs::read(data.topology()).unwrap(), b"garbage");
    }

    #[test]
    fn the_same_shape_may_be_asked_for_again() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        let wanted = Wanted { regions: Some(vec![region("x", 1), region("y", 2)]), nodes: Some(1) };
        drop(data.prepare(&wanted, Duration::ZERO).unwrap());
        let (_lock, topology, _ports) = data.prepare(&wanted, Duration::ZERO).unwrap();
        assert_eq!((topology.regions.len(), topology.nodes.len()), (2, 1));
    }

    #[test]
    fn a_file_and_an_impossible_place_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let refused = |path: PathBuf| {
            DataDir::new(path).prepare(&Wanted::default(), Duration::ZERO).unwrap_err().to_string()
        };
        assert!(refused(file.clone()).contains("not a directory"));
        assert!(refused(file.join("below")).contains("--data"));
        assert_eq!(std::fs::read(&file).unwrap(), b"x");
    }
}
