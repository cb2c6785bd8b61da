//! Which regions and nodes a cluster has, as one small file that every process reads at its start.
//!
//! The file names the cluster, so that a process never talks to, or opens the data of, another one. It
//! knows nothing of leaders: those are found by asking. This module never opens a connection.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Version of the topology file that this build reads and writes.
pub const TOPOLOGY_FORMAT: u32 = 1;

/// Why a topology cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TopologyError {
    /// The file could not be read or written.
    #[error("cannot access the topology file {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not valid JSON of the expected form.
    #[error("the topology file {path} is not valid: {source}")]
    Json {
        /// The file.
        path: String,
        /// Where and why.
        source: serde_json::Error,
    },
    /// The content makes no sense.
    #[error("{0}")]
    Invalid(String),
}

/// A cluster: its regions and its shard nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Topology {
    /// [`TOPOLOGY_FORMAT`].
    pub format: u32,
    /// Identity of the cluster: 32 lower-case hexadecimal digits.
    pub cluster: String,
    /// Counts the changes of the nodes: processes follow the file and adopt what is newer. Groups are made
    /// in generation 0 only, so that a node that joins later never makes one of its own.
    #[serde(default)]
    pub generation: u64,
    /// Ids of nodes that were removed: they are never used again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub retired: BTreeSet<u64>,
    /// By group: replicas of an incarnation below this were left behind by a forced recovery and must not serve.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fences: BTreeMap<u32, u64>,
    /// Regions; their group numbers are 1, 2, 3, … in order.
    pub regions: Vec<Region>,
    /// Shard nodes; ids are never reused.
    pub nodes: Vec<Node>,
}

/// A region and its shard group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Region {
    /// Id in resource names: 1 to 32 of `[a-z0-9-]`, starting with a letter.
    pub id: String,
    /// Name for people.
    pub display_name: String,
    /// Number of the shard group, from 1.
    pub group: u32,
}

/// A shard node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Raft node id, from 1.
    pub id: u64,
    /// Where gateways and operators reach it.
    pub address: SocketAddr,
    /// Where other nodes reach it.
    pub peer_address: SocketAddr,
}

/// A cluster id as bytes; `None` when it is malformed.
pub fn cluster_bytes(id: &str) -> Option<[u8; 16]> {
    let number = u128::from_str_radix(id, 16).ok().filter(|_| id.len() == 32)?;
    Some(number.to_be_bytes())
}

impl Topology {
    /// Reads and checks a topology file.
    pub fn load(path: &Path) -> Result<Self, TopologyError> {
        let text = std::fs::read(path)
            .map_err(|source| TopologyError::Io { path: path.display().to_string(), source })?;
        let topology: Self = serde_json::from_slice(&text)
            .map_err(|source| TopologyError::Json { path: path.display().to_string(), source })?;
        topology.check()?;
        Ok(topology)
    }

    /// Writes the file so that a crash leaves either the old or the new one.
    pub fn save(&self, path: &Path) -> Result<(), TopologyError> {
        use std::io::Write as _;
        let io = |source| TopologyError::Io { path: path.display().to_string(), source };
        let text = serde_json::to_vec_pretty(self)
            .map_err(|source| TopologyError::Json { path: path.display().to_string(), source })?;
        let temporary = path.with_extension("tmp");
        let mut file = std::fs::File::create(&temporary).map_err(io)?;
        file.write_all(&text).map_err(io)?;
        file.sync_all().map_err(io)?;
        std::fs::rename(&temporary, path).map_err(io)?;
        if let Some(parent) = path.parent().filter(|p| !p.as_os_str().is_empty()) {
            std::fs::File::open(parent).and_then(|d| d.sync_all()).map_err(io)?;
        }
        Ok(())
    }

    /// A new cluster, in which no node has joined or left yet.
    pub fn new(cluster: [u8; 16], regions: Vec<Region>, nodes: Vec<Node>) -> Self {
        Self {
            format: TOPOLOGY_FORMAT,
            cluster: format!("{:032x}", u128::from_be_bytes(cluster)),
            generation: 0,
            retired: BTreeSet::new(),
            fences: BTreeMap::new(),
            regions,
            nodes,
        }
    }

    /// Refuses what no process could work with.
    pub fn check(&self) -> Result<(), TopologyError> {
        let invalid = |message: String| Err(TopologyError::Invalid(message));
        if self.format != TOPOLOGY_FORMAT {
            return invalid(format!(
                "the topology has format {}, this build reads format {TOPOLOGY_FORMAT}: use the build that wrote it",
                self.format
            ));
        }
        if self.cluster_bytes().is_none() {
            return invalid(format!("the cluster id {:?} is not 32 hexadecimal digits", self.cluster));
        }
        if self.regions.is_empty() || self.nodes.is_empty() {
            return invalid("a cluster needs at least one region and one node".into());
        }
        for (position, region) in self.regions.iter().enumerate() {
            if !valid_region_id(&region.id) {
                return invalid(format!(
                    "region id {:?} is not 1 to 32 of [a-z0-9-] starting with a letter",
                    region.id
                ));
            }
            if region.group as usize != position + 1 {
                return invalid(format!("region {} must have group {}", region.id, position + 1));
            }
            if self.regions[..position].iter().any(|other| other.id == region.id) {
                return invalid(format!("region {} is listed twice", region.id));
            }
        }
        for (position, node) in self.nodes.iter().enumerate() {
            if node.id == 0 || self.nodes[..position].iter().any(|other| other.id == node.id) {
                return invalid(format!("node id {} is 0 or listed twice", node.id));
            }
            if self.retired.contains(&node.id) {
                return invalid(format!(
                    "node id {} was removed before: ids are never used again, give the node a new one",
                    node.id
                ));
            }
        }
        Ok(())
    }

    /// An id that no node has or had.
    pub fn next_node_id(&self) -> u64 {
        let known = || self.nodes.iter().map(|node| node.id).chain(self.retired.iter().copied());
        let highest = known().max().unwrap_or(0);
        // Somebody may have used up the largest one by hand.
        let lowest_free = || (1..).find(|id| known().all(|other| other != *id));
        highest.checked_add(1).or_else(lowest_free).unwrap_or(u64::MAX)
    }

    /// Whether `newer` is a later state of the same cluster: only nodes and fences may have changed.
    pub fn is_followed_by(&self, newer: &Self) -> bool {
        self.cluster == newer.cluster && self.regions == newer.regions && self.generation < newer.generation
    }

    /// The cluster id as bytes; `None` when it is malformed.
    pub fn cluster_bytes(&self) -> Option<[u8; 16]> {
        cluster_bytes(&self.cluster)
    }

    /// The region with this id.
    pub fn region(&self, id: &str) -> Option<&Region> {
        self.regions.iter().find(|region| region.id == id)
    }

    /// The region of this group.
    pub fn region_of_group(&self, group: u32) -> Option<&Region> {
        self.regions.get((group as usize).checked_sub(1)?)
    }

    /// The node with this id.
    pub fn node(&self, id: u64) -> Option<&Node> {
        self.nodes.iter().find(|node| node.id == id)
    }

    /// The node that should lead this group while it is healthy: leaders are spread evenly.
    pub fn preferred_leader(&self, group: u32) -> u64 {
        self.nodes[(group as usize - 1) % self.nodes.len()].id
    }
}

/// Whether a string can be a region's id.
pub fn valid_region_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id.starts_with(|c: char| c.is_ascii_lowercase())
        && id.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample() -> Topology {
        let region = |n: u32| Region { id: format!("r{n}"), display_name: format!("Region {n}"), group: n };
        let node = |n: u64| Node {
            id: n,
            address: "127.0.0.1:1".parse().unwrap(),
            peer_address: "127.0.0.1:2".parse().unwrap(),
        };
        Topology::new(
            0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes(),
            (1..=12).map(region).collect(),
            (1..=3).map(node).collect(),
        )
    }

    #[test]
    fn a_saved_topology_loads_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("topology.json");
        sample().save(&path).unwrap();
        assert_eq!(Topology::load(&path).unwrap(), sample());
    }

    #[test]
    fn regions_and_nodes_are_found_by_their_names_and_nothing_else() {
        let topology = sample();
        assert_eq!(topology.region("r3").map(|region| region.group), Some(3));
        assert_eq!(topology.region_of_group(3).map(|region| region.id.as_str()), Some("r3"));
        assert_eq!(topology.node(2).map(|node| node.id), Some(2));
        assert!(topology.region("r13").is_none() && topology.region_of_group(0).is_none());
        assert!(topology.region_of_group(13).is_none() && topology.node(4).is_none());
        for good in ["a", "north-east-2", &"r".repeat(32)] {
            assert!(valid_region_id(good), "{good}");
        }
        for bad in ["", "2nd", "-a", "a_b", "aB", "nörd", &"r".repeat(33)] {
            assert!(!valid_region_id(bad), "{bad}");
        }
    }

    #[test]
    fn leaders_are_spread_evenly() {
        let topology = sample();
        for node in 1..=3 {
            assert_eq!((1..=12).filter(|g| topology.preferred_leader(*g) == node).count(), 4);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        let broken = |change: fn(&mut Topology)| {
            let mut topology = sample();
            change(&mut topology);
            topology.check().unwrap_err().to_string()
        };
        assert!(broken(|t| t.format = 2).contains("format 2"));
        assert!(broken(|t| t.cluster = "x".into()).contains("hexadecimal"));
        assert!(broken(|t| t.regions[1].id = "r1".into()).contains("twice"));
        assert!(broken(|t| t.regions[0].id = "North".into()).contains("North"));
        assert!(broken(|t| t.nodes[1].id = 1).contains("node id 1"));
        assert!(broken(|t| t.nodes.clear()).contains("at least"));
        assert!(broken(|t| t.retired = [3].into()).contains("never used again"));
    }

    #[test]
    fn ids_are_never_reused_and_only_later_generations_follow() {
        let mut topology = sample();
        assert_eq!(topology.next_node_id(), 4);
        topology.retired.insert(7);
        assert_eq!(topology.next_node_id(), 8);
        topology.retired.insert(u64::MAX);
        assert_eq!(topology.next_node_id(), 4, "there is none above the largest");
        topology.retired.remove(&u64::MAX);
        let mut newer = topology.clone();
        assert!(!topology.is_followed_by(&newer));
        newer.generation += 1;
        newer.nodes.remove(0);
        assert!(topology.is_followed_by(&newer) && !newer.is_followed_by(&topology));
        newer.cluster = "ff112233445566778899aabbccddeeff".into();
        assert!(!topology.is_followed_by(&newer));
    }

    #[test]
    fn a_file_of_before_membership_could_change_is_generation_0() {
        let mut old = serde_json::to_value(sample()).unwrap();
        old.as_object_mut().unwrap().remove("generation");
        assert_eq!(serde_json::from_value::<Topology>(old).unwrap(), sample());
    }
}
