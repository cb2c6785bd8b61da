//! Keeps what this node knows of lives: its own, and those of the other nodes that it has met.
//!
//! `lives.json` in the data directory remembers over restarts which life of each other node was met last, and how far its
//! data had come. It is written within a second after a node shows up with a new life, and otherwise every two seconds and when
//! the node stops:
//! whatever is lost with a crash makes a stale copy harder to recognise, and never a sound node suspect. `stale` says
//! that another node has proven this directory stale; a node never starts on it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tidewall_consensus::{FailStop, StorageFault};
use tidewall_env::{random, tasks};
use tidewall_link::{Life, Lives, Met};
use tidewall_store::log::NodeLog;
use tokio::time::Instant;

use crate::files;

/// Version of `lives.json`.
const FORMAT: u32 = 1;
/// How often progress of the others is written down.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// By node, what was met last.
type AllMet = BTreeMap<u64, Met>;

/// What `lives.json` holds.
#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    met: BTreeMap<u64, KeptMet>,
}

#[derive(Serialize, Deserialize)]
struct KeptMet {
    /// Hexadecimal: numbers of this size are not safe in JSON.
    life: String,
    reached: u64,
}

/// Where it is kept over restarts.
#[derive(Debug, Clone)]
pub struct LivesStore {
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    /// With what keeps two from writing at once.
    Directory(PathBuf, Arc<Mutex<()>>),
    Memory(Arc<Mutex<(AllMet, Option<String>)>>),
}

impl LivesStore {
    /// In the node's data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { place: Place::Directory(data_dir.to_owned(), Arc::default()) }
    }

    /// In memory, shared by clones: for simulation, which keeps one over restarts of the node.
    pub fn in_memory() -> Self {
        Self { place: Place::Memory(Arc::default()) }
    }

    /// Why the directory must never be used again, if it must not. A mark that cannot be read counts.
    pub fn why_stale(&self) -> Option<String> {
        match &self.place {
            Place::Memory(memory) => memory.lock().1.clone(),
            Place::Directory(directory, _) => match std::fs::read_to_string(directory.join("stale")) {
                Ok(why) => Some(why),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
                Err(error) => Some(format!("the mark that the data are stale cannot be read: {error}")),
            },
        }
    }

    fn mark_stale(&self, why: &str) -> std::io::Result<()> {
        match &self.place {
            Place::Memory(memory) => {
                memory.lock().1 = Some(why.to_owned());
                Ok(())
            }
            Place::Directory(directory, writing) => {
                let _one_at_a_time = writing.lock();
                files::replace(directory, "stale", why.as_bytes())
            }
        }
    }

    /// What was met.
    ///
    /// # Errors
    /// That it cannot be read.
    pub fn load(&self) -> Result<AllMet, String> {
        let directory = match &self.place {
            Place::Memory(memory) => return Ok(memory.lock().0.clone()),
            Place::Directory(directory, _) => directory,
        };
        let path = directory.join("lives.json");
        let damaged = |what: &dyn std::fmt::Display| {
            format!(
                "{} cannot be used: {what}. It only serves to recognise stale copies of other nodes' data: if there are none, \
                 remove it",
                path.display()
            )
        };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(AllMet::new()),
            Err(error) => return Err(damaged(&error)),
        };
        let kept: Kept = serde_json::from_slice(&bytes).map_err(|error| damaged(&error))?;
        if kept.format != FORMAT {
            return Err(damaged(&format!("it has format {}, this build reads {FORMAT}", kept.format)));
        }
        let met = kept.met.into_iter().map(|(node, met)| {
            let life = u64::from_str_radix(&met.life, 16).map_err(|error| damaged(&error))?;
            Ok((node, Met { life, reached: met.reached }))
        });
        met.collect()
    }

    /// Forgets everything: the data are to be those of another cluster.
    ///
    /// # Errors
    /// What the system said.
    pub(crate) fn forget(&self) -> std::io::Result<()> {
        match &self.place {
            Place::Memory(memory) => {
                *memory.lock() = Default::default();
                Ok(())
            }
            Place::Directory(directory, writing) => {
                let _one_at_a_time = writing.lock();
                files::remove(&directory.join("lives.json"))?;
                files::remove(&directory.join("stale"))?;
                files::sync_directory(directory)
            }
        }
    }

    fn save(&self, met: &AllMet) -> std::io::Result<()> {
        match &self.place {
            Place::Memory(memory) => {
                memory.lock().0 = met.clone();
                Ok(())
            }
            Place::Directory(directory, writing) => {
                let _one_at_a_time = writing.lock();
                let kept = |met: &Met| KeptMet { life: format!("{:016x}", met.life), reached: met.reached };
                let met = met.iter().map(|(node, met)| (*node, kept(met))).collect();
                let bytes = serde_json::to_vec_pretty(&Kept { format: FORMAT, met })?;
                files::replace(directory, "lives.json", &bytes)
            }
        }
    }
}

/// This node's life on its data, and what it knows of the others'. Clones share it.
#[derive(Clone)]
pub struct LifeOfNode {
    lives: Arc<Lives>,
    store: LivesStore,
    saved: Arc<Mutex<Saved>>,
}

struct Saved {
    at: Instant,
    met: AllMet,
}

impl LifeOfNode {
    /// Begins a life of `node` on the data whose log was just opened. Once another node proves them stale, `fail_stop` is told.
    ///
    /// # Errors
    /// Why it must not begin: what is known of the others cannot be read.
    pub fn begin(node: u64, log: &NodeLog, store: LivesStore, fail_stop: &FailStop) -> Result<Self, String> {
        let met = store.load()?;
        let own = Life { id: random::number(), began_at: log.opened_at() };
        let (marks, fail_stop) = (store.clone(), fail_stop.clone());
        let progress = log.clone();
        let reached = move || progress.reached();
        let lives = Lives::new(node, own, met.clone(), reached, move |why| {
            if let Err(error) = marks.mark_stale(why) {
                tracing::error!(%error, "it cannot be remembered over a restart that the data are stale");
            }
            fail_stop.report(StorageFault::Damage(why.to_owned()));
        });
        let saved = Arc::new(Mutex::new(Saved { at: Instant::now(), met }));
        Ok(Self { lives: Arc::new(lives), store, saved })
    }

    /// What is said and checked on connections between nodes.
    pub fn lives(&self) -> &Arc<Lives> {
        &self.lives
    }

    /// Whether another node has proven these data stale.
    pub fn is_stale(&self) -> bool {
        self.store.why_stale().is_some()
    }

    /// Writes down what was met, if it is time to.
    pub(crate) async fn save_if_due(&self) {
        let met = self.lives.met();
        let due = {
            let saved = self.saved.lock();
            let same_lives = met.len() == saved.met.len()
                && met.iter().all(|(node, met)| saved.met.get(node).is_some_and(|old| old.life == met.life));
            met != saved.met && (!same_lives || saved.at.elapsed() >= SAVE_EVERY)
        };
        if due {
            self.save().await;
        }
    }

    /// Writes down what was met.
    pub(crate) async fn save(&self) {
        let met = self.lives.met();
        let (store, writing) = (self.store.clone(), met.clone());
        match tasks::off_thread(move || store.save(&writing)).await {
            Ok(Ok(())) => *self.saved.lock() = Saved { at: Instant::now(), met },
            Ok(Err(error)) => tracing::warn!(%error, "the lives of the other nodes cannot be written down"),
            Err(error) => tracing::error!(%error, "writing down the lives of the other nodes has failed"),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tidewall_env::disk::MemoryDisk;
    use tidewall_link::Claim;
    use tidewall_store::log::LogOptions;

    fn log() -> NodeLog {
        NodeLog::open(Arc::new(MemoryDisk::new()), LogOptions::new([7; 16], 1)).unwrap().0
    }

    fn claim(id: u64, began_at: u64) -> Claim {
        Claim { life: Life { id, began_at }, reached: began_at + 1 }
    }

    fn ignored() -> FailStop {
        FailStop::new(|_| ())
    }

    #[tokio::test]
    async fn what_was_met_is_known_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let begin = || LifeOfNode::begin(1, &log(), LivesStore::new(directory.path()), &ignored()).unwrap();
        let first = begin();
        drop(first.lives().meet(2, claim(u64::MAX, 3)).unwrap());
        first.save().await;
        assert_eq!(begin().lives().met()[&2], Met { life: u64::MAX, reached: 4 });
        // Progress alone waits for its turn, a new life does not.
        first.lives().hear(2, 90);
        first.save_if_due().await;
        assert_eq!(begin().lives().met()[&2].reached, 4);
        drop(first.lives().meet(3, claim(1, 0)).unwrap());
        first.save_if_due().await;
        assert_eq!(begin().lives().met()[&2].reached, 90);
        assert_ne!(first.lives().own().id, begin().lives().own().id, "each start is a life of its own");
    }

    #[test]
    fn stale_data_stop_the_node_and_are_known_to_be() {
        let directory = tempfile::tempdir().unwrap();
        let store = LivesStore::new(directory.path());
        let told = Arc::new(Mutex::new(Vec::new()));
        let teller = Arc::clone(&told);
        let fail_stop = FailStop::new(move |fault| teller.lock().push(format!("{fault:?}")));
        let life = LifeOfNode::begin(1, &log(), store.clone(), &fail_stop).unwrap();
        assert!(!life.is_stale());
        life.lives().refused("node 2 knows better");
        life.lives().refused("again");
        assert!(life.is_stale());
        assert_eq!(store.why_stale().as_deref(), Some("node 2 knows better"));
        let told = told.lock();
        assert!(told.len() == 1 && told[0].contains("Damage"), "{told:?}");
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("lives.json");
        let begin = || LifeOfNode::begin(1, &log(), LivesStore::new(directory.path()), &ignored()).map(drop);
        for text in ["{", r#"{"format":9,"met":{}}"#, r#"{"format":1,"met":{"2":{"life":"x","reached":1}}}"#]
        {
            std::fs::write(&path, text).unwrap();
            let why = begin().unwrap_err();
            assert!(why.contains("lives.json"), "{why}");
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
        assert!(begin().unwrap_err().contains("lives.json"), "it is there, and cannot be read");
        std::fs::remove_dir(&path).unwrap();
        begin().unwrap();
        std::fs::create_dir(directory.path().join("stale")).unwrap();
        assert!(LivesStore::new(directory.path()).why_stale().unwrap().contains("cannot be read"));
    }
}
