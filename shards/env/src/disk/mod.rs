//! One directory of files on a disk that may fail: what the log and the snapshots need, and no more.
//!
//! The contract is POSIX at its strictest. Written bytes are durable after [`DiskFile::sync_data`] has
//! returned `Ok`, names after [`Disk::sync_directory`] has. After a failed sync nobody knows which of the
//! unsynced bytes are on the disk, reading them back proves nothing, and a second sync that succeeds
//! promises nothing about them: a caller must stop. This module never retries and never hides an error.

mod memory;
mod real;

use std::io;
use std::sync::Arc;

pub use memory::{CrashMode, DiskCounts, MemoryDisk};
pub use real::RealDisk;

/// One directory. File names are plain names: no separators, not `.` or `..`.
pub trait Disk: Send + Sync + 'static {
    /// Creates an empty file and opens it for reading and writing.
    ///
    /// # Errors
    /// `AlreadyExists` if the name is taken; what the file system says otherwise.
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// Opens an existing file for reading and writing.
    ///
    /// # Errors
    /// `NotFound` if there is none; what the file system says otherwise.
    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>>;

    /// The names of all files in the directory, sorted. Sub-directories are left out.
    ///
    /// # Errors
    /// What the file system says.
    fn list(&self) -> io::Result<Vec<String>>;

    /// Removes a name. Files that are open stay readable through their handles.
    ///
    /// # Errors
    /// `NotFound` if there is none; what the file system says otherwise.
    fn remove(&self, name: &str) -> io::Result<()>;

    /// Renames a file, replacing what had the new name, atomically.
    ///
    /// # Errors
    /// `NotFound` if there is no `from`; what the file system says otherwise.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;

    /// Makes all creations, removals and renames so far durable.
    ///
    /// # Errors
    /// What the file system says; the names changed since the last success are then unknown.
    fn sync_directory(&self) -> io::Result<()>;

    /// Bytes that an unprivileged process can still write to the file system.
    ///
    /// # Errors
    /// What the file system says.
    fn free_bytes(&self) -> io::Result<u64>;
}

/// An open file. Handles may be shared by threads: every access names its offset.
pub trait DiskFile: Send + Sync {
    /// Writes all of `bytes` at `offset`, growing the file (a gap reads as zeros). Not durable before a sync.
    ///
    /// # Errors
    /// `StorageFull` on a full disk; what the file system says otherwise. Some of the bytes may be written.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads into `buffer` from `offset`; returns how many bytes there were, 0 at and behind the end.
    ///
    /// # Errors
    /// What the file system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize>;

    /// Length in bytes.
    ///
    /// # Errors
    /// What the file system says.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or extends it with zeros. Durable with the next sync.
    ///
    /// # Errors
    /// What the file system says.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Makes everything written so far durable, and of the metadata what is needed to read it (fdatasync).
    ///
    /// # Errors
    /// What the file system says. What was unsynced is then lost or unknown, also if a later sync succeeds.
    fn sync_data(&self) -> io::Result<()>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Writes all of `bytes` at the end and returns the offset they start at. Only one writer may append.
    ///
    /// # Errors
    /// As [`DiskFile::write_at`].
    fn append(&self, bytes: &[u8]) -> io::Result<u64> {
        let offset = self.len()?;
        self.write_at(offset, bytes)?;
        Ok(offset)
    }

    /// Fills all of `buffer` from `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if the file ends before; what the file system says otherwise.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.read_at(offset + filled as u64, &mut buffer[filled..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(read) => filled += read,
                // A signal, not an error of the disk.
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// Refuses a name that would leave the directory.
fn check_name(name: &str) -> io::Result<()> {
    if name.is_empty() || name == "." || name == ".." || name.contains(['/', '\\', '\0']) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{name:?} is not a plain file name; give a name without a path"),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
