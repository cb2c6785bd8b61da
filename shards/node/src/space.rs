//! Watches the free space under a node's data.
//!
//! Below the low-water mark new work is refused while finishing and undoing go on; a ballast file keeps room for what must
//! still be written. The check is made from time to time by the node, never on a request's path.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// New work stops when less than this is free, bytes.
pub const LOW_WATER_BYTES: u64 = 96 << 20;
/// Kept aside for the last checkpoint, bytes.
const BALLAST_BYTES: u64 = 16 << 20;
/// What a node writes before it is asked for anything, ballast included, bytes.
const BEGINNING_BYTES: u64 = BALLAST_BYTES + (8 << 20);

/// Free space that so many new nodes on one disk need in order to take up work, bytes.
pub fn room_for_new_nodes(nodes: u64) -> u64 {
    LOW_WATER_BYTES + nodes.saturating_mul(BEGINNING_BYTES)
}

/// Whether there is room for new work. Clones share it.
#[derive(Debug, Clone)]
pub struct Space {
    /// `None`: never short.
    directory: Option<PathBuf>,
    low: Arc<AtomicBool>,
}

impl Space {
    /// Lays the ballast out and looks for the first time.
    pub fn new(directory: &Path) -> std::io::Result<Self> {
        let space = Self { directory: Some(directory.to_owned()), low: Arc::default() };
        space.check()?;
        let ballast = directory.join("ballast");
        if !space.is_low() && !ballast.exists() {
            let file = std::fs::File::create(&ballast)?;
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, BALLAST_BYTES)
                .or_else(|_| file.set_len(BALLAST_BYTES).map_err(|_| rustix::io::Errno::IO))?;
        }
        Ok(space)
    }

    /// Never short: for simulation.
    pub fn unlimited() -> Self {
        Self { directory: None, low: Arc::default() }
    }

    /// Looks how much is free.
    pub fn check(&self) -> std::io::Result<()> {
        let Some(directory) = &self.directory else { return Ok(()) };
        let stat = rustix::fs::statvfs(directory)?;
        self.judge(stat.f_bavail * stat.f_frsize);
        Ok(())
    }

    /// Takes in how many bytes are free.
    pub(crate) fn judge(&self, free: u64) {
        let low = free < LOW_WATER_BYTES;
        if self.low.swap(low, Ordering::Relaxed) != low {
            if low {
                tracing::error!(
                    free,
                    "the disk is nearly full: new work is refused, finishing goes on; free space"
                );
            } else {
                tracing::info!(free, "there is space again: new work is accepted");
            }
        }
    }

    /// Frees the ballast, for a node that could not write otherwise.
    pub fn drop_ballast(&self) {
        let Some(directory) = &self.directory else { return };
        if let Err(error) = std::fs::remove_file(directory.join("ballast")) {
            tracing::debug!(%error, "there was no ballast to drop");
        }
    }

    /// Whether new work must be refused.
    pub fn is_low(&self) -> bool {
        self.low.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn new_work_stops_below_the_low_water_mark_and_goes_on_above_it() {
        let space = Space::unlimited();
        let of_its_keeper = space.clone();
        for (free, low) in [
            (LOW_WATER_BYTES, false),
            (LOW_WATER_BYTES - 1, true),
            (0, true),
            (LOW_WATER_BYTES - 1, true),
            (LOW_WATER_BYTES, false),
        ] {
            of_its_keeper.judge(free);
            assert_eq!(space.is_low(), low, "{free} bytes free");
        }
    }

    #[test]
    fn a_disk_is_looked_at_in_bytes() {
        let directory = tempfile::tempdir().unwrap();
        let space = Space { directory: Some(directory.path().to_owned()), low: Arc::default() };
        let stat = rustix::fs::statvfs(directory.path()).unwrap();
        for low in [true, false] {
            space.low.store(low, Ordering::Relaxed);
            space.check().unwrap();
            assert_eq!(space.is_low(), stat.f_bavail * stat.f_frsize < LOW_WATER_BYTES, "it was {low}");
        }
        let gone = Space { directory: Some(directory.path().join("gone")), low: Arc::default() };
        assert!(gone.check().is_err());
    }

    #[test]
    fn the_ballast_is_laid_out_once_and_given_up() {
        let directory = tempfile::tempdir().unwrap();
        let ballast = directory.path().join("ballast");
        let space = Space::new(directory.path()).unwrap();
        if space.is_low() {
            // Nothing is taken from a disk that is short already.
            return assert!(!ballast.exists());
        }
        assert_eq!(std::fs::metadata(&ballast).unwrap().len(), BALLAST_BYTES);
        space.drop_ballast();
        assert!(!ballast.exists());
        space.drop_ballast();
        Space::new(directory.path()).unwrap();
        assert!(ballast.exists());
        assert!(room_for_new_nodes(3) >= LOW_WATER_BYTES + 3 * BALLAST_BYTES);
    }
}
