//! Follows the topology file, so that nodes can join and leave while processes run.
//!
//! The file is looked at once a second; there is nothing to be missed by looking late. What is not a later state of
//! the same cluster is reported and ignored: a process never follows a file to another cluster, and never back.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::topology::Topology;

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);

/// Which file it is, its length and the time of its last change: enough to tell that it was replaced. Times alone are
/// too coarse.
type Mark = Option<(u64, u64, SystemTime)>;

fn mark(path: &Path) -> Mark {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.len(), found.modified().ok()?))
}

/// Calls `adopt` with every later state of `current` that appears in the file. Never returns.
pub async fn follow(
    path: &Path,
    mut current: Topology,
    mut adopt: impl FnMut(&Topology),
) -> std::convert::Infallible {
    // Nothing was seen yet: the file may have changed since `current` was read from it.
    let mut seen = None;
    loop {
        let now = mark(path);
        if now != seen {
            seen = now;
            look(path, &mut current, &mut adopt);
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Looks once. Returns whether something was adopted.
fn look(path: &Path, current: &mut Topology, adopt: &mut impl FnMut(&Topology)) -> bool {
    match Topology::load(path) {
        Ok(found) if current.is_followed_by(&found) => {
            tracing::info!(
                generation = found.generation,
                nodes = found.nodes.len(),
                "the topology has changed"
            );
            adopt(&found);
            *current = found;
            true
        }
        Ok(found) if found.cluster == current.cluster && found.generation == current.generation => false,
        Ok(found) => {
            tracing::warn!(
                path = %path.display(), cluster = found.cluster, generation = found.generation,
                "the topology file is not a later state of this cluster: it is ignored"
            );
            false
        }
        Err(error) => {
            tracing::warn!(%error, "the topology file cannot be followed");
            false
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::topology::{Node, Region, TOPOLOGY_FORMAT};

    fn topology(cluster: &str, generation: u64) -> Topology {
        let address = "127.0.0.1:1".parse().unwrap();
        Topology {
            format: TOPOLOGY_FORMAT,
            cluster: cluster.repeat(32),
            generation,
            retired: Default::default(),
            fences: Default::default(),
            regions: vec![Region { id: "north".into(), display_name: "North".into(), group: 1 }],
            nodes: vec![Node { id: 1, address, peer_address: address }],
        }
    }

    #[test]
    fn only_later_states_of_the_same_cluster_are_adopted() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("topology.json");
        let mut current = topology("a", 1);
        let mut adopted = Vec::new();
        let mut look = |content: Option<&Topology>| {
            match content {
                Some(content) => content.save(&path).unwrap(),
                None => std::fs::write(&path, "{").unwrap(),
            }
            super::look(&path, &mut current, &mut |found| adopted.push(found.generation))
        };
        assert!(!look(Some(&topology("a", 1))));
        assert!(look(Some(&topology("a", 3))));
        assert!(!look(Some(&topology("a", 2))), "an older state");
        assert!(!look(Some(&topology("b", 9))), "another cluster");
        assert!(!look(None), "half a file");
        assert!(look(Some(&topology("a", 4))));
        assert_eq!(adopted, [3, 4]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_is_noticed_while_following() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("topology.json");
        topology("a", 0).save(&path).unwrap();
        let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
        let following = tokio::spawn({
            let path = path.clone();
            async move { follow(&path, topology("a", 0), |found| sender.send(found.generation).unwrap()).await }
        });
        tokio::time::sleep(3 * EVERY).await;
        topology("a", 1).save(&path).unwrap();
        let noticed = tokio::time::timeout(60 * EVERY, receiver.recv()).await;
        assert_eq!(noticed.unwrap(), Some(1));
        following.abort();
    }
}
