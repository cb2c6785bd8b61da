//! A small disk of its own for each node: a tmpfs that can be filled without harm to the machine. Needs root.
//!
//! Unmounted when dropped, also in a panic.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};

use super::tools;
use crate::ChaosError;

/// Size of a node's disk: a node's log, its checkpoint, the ballast and the low-water mark fit well.
const DISK_MIB: u64 = 384;
/// The file that takes the room.
const FILLER: &str = "filler";

/// Mounted disks.
#[derive(Debug, Default)]
pub struct Disks {
    mounted: BTreeMap<u64, PathBuf>,
}

impl Disks {
    /// Mounts a disk for a node.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn mount(&mut self, node: u64, at: &Path) -> Result<(), ChaosError> {
        std::fs::create_dir_all(at).map_err(ChaosError::system(format!("create {}", at.display())))?;
        let size = format!("size={DISK_MIB}m");
        let at_text = at.display().to_string();
        tools::run("mount", &["-t", "tmpfs", "-o", &size, "tidewall-chaos", &at_text]).await?;
        self.mounted.insert(node, at.to_owned());
        Ok(())
    }

    /// Leaves this many bytes free.
    ///
    /// # Errors
    /// When the node has no disk, or the file cannot be made.
    pub fn fill(&self, node: u64, free_bytes: u64) -> Result<(), ChaosError> {
        let path = self.filler(node)?;
        let failed = || ChaosError::system(format!("fill the disk of node {node}"));
        let file = std::fs::File::options().create(true).append(true).open(&path).map_err(failed())?;
        let space = statvfs(&path).map_err(|e| failed()(e.into()))?;
        let take = (space.f_bavail * space.f_frsize).saturating_sub(free_bytes);
        if take > 0 {
            let length = file.metadata().map_err(failed())?.len();
            fallocate(&file, FallocateFlags::empty(), length, take).map_err(|e| failed()(e.into()))?;
        }
        Ok(())
    }

    /// Takes away what [`Disks::fill`] wrote.
    ///
    /// # Errors
    /// When the file cannot be removed.
    pub fn free(&self, node: u64) -> Result<(), ChaosError> {
        let path = self.filler(node)?;
        match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(ChaosError::system(format!("remove {}", path.display()))(e))
            }
            _ => Ok(()),
        }
    }

    fn filler(&self, node: u64) -> Result<PathBuf, ChaosError> {
        self.mounted.get(&node).map(|at| at.join(FILLER)).ok_or_else(|| ChaosError::System {
            doing: format!("fill the disk of node {node}"),
            source: std::io::Error::other("it has no disk of its own"),
        })
    }
}

impl Drop for Disks {
    fn drop(&mut self) {
        for at in self.mounted.values() {
            // Lazily: a process that is about to end may still have a file open.
            let done = std::process::Command::new("umount").arg("-l").arg(at).status();
            if !done.is_ok_and(|status| status.success()) {
                tracing::error!("cannot unmount {}: do it by hand", at.display());
            }
        }
    }
}
