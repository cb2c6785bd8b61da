//! The file of an export. It must never leave half an export under the name that was asked for.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::exit::{Exit, Failure};
use crate::snapshot_file::Verifier;

/// A file that gets its name only when it is complete and on disk. Dropped before, it leaves nothing.
#[derive(Debug)]
pub(super) struct NewFile {
    path: PathBuf,
    temporary: tempfile::NamedTempFile,
    verifier: Verifier,
    overwrite: bool,
    bytes: u64,
}

impl NewFile {
    /// Begins the file `path`.
    pub(super) fn create(path: &Path, overwrite: bool) -> Result<Self, Failure> {
        if !overwrite && path.exists() {
            return Err(Self::exists(path));
        }
        let directory = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        // In the same directory, so that it can be renamed.
        let temporary = tempfile::Builder::new()
            .prefix(".tidewall-export-")
            .tempfile_in(directory)
            .map_err(|e| Self::failed(path, &e))?;
        Ok(Self { path: path.to_owned(), temporary, verifier: Verifier::default(), overwrite, bytes: 0 })
    }

    fn exists(path: &Path) -> Failure {
        Failure::new(
            Exit::Usage,
            format!("{} exists: choose another file, or replace it with --overwrite", path.display()),
        )
    }

    fn failed(path: &Path, error: &io::Error) -> Failure {
        Failure::new(Exit::Environment, format!("cannot write {}: {error}", path.display()))
    }

    /// Writes the next bytes.
    pub(super) fn write(&mut self, chunk: &[u8]) -> Result<(), Failure> {
        self.temporary.write_all(chunk).map_err(|e| Self::failed(&self.path, &e))?;
        self.verifier.update(chunk);
        self.bytes += chunk.len() as u64;
        Ok(())
    }

    /// Bytes written so far.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Checks that the file is whole, syncs the content, gives the file its name, and syncs that. Returns its
    /// size in bytes.
    pub(super) fn commit(self) -> Result<u64, Failure> {
        let Self { path, temporary, verifier, overwrite, bytes } = self;
        verifier.finish().map_err(|e| {
            Failure::new(
                Exit::Refused,
                format!(
                    "{} was not written: what the gateway sent is no whole export, {e}. Try again",
                    path.display()
                ),
            )
        })?;
        let failed = |e: io::Error| Self::failed(&path, &e);
        let length = temporary
            .as_file()
            .sync_all()
            .and_then(|()| temporary.as_file().metadata())
            .map_err(failed)?
            .len();
        if length != bytes {
            return Err(Failure::new(
                Exit::Environment,
                format!(
                    "{} has {length} bytes on disk, {bytes} were written: look at the disk",
                    path.display()
                ),
            ));
        }
        let directory = temporary.path().parent().map(Path::to_owned);
        if overwrite {
            temporary.persist(&path).map_err(|e| failed(e.error))?;
        } else {
            temporary.persist_noclobber(&path).map_err(|e| match e.error.kind() {
                io::ErrorKind::AlreadyExists => Self::exists(&path),
                _ => failed(e.error),
            })?;
        }
        if let Some(directory) = directory {
            File::open(directory).and_then(|d| d.sync_all()).map_err(failed)?;
        }
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::snapshot_file;

    fn names(path: &Path) -> Vec<String> {
        std::fs::read_dir(path).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn an_export_gets_its_name_only_when_complete() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("north.tidewall");
        let mut file = NewFile::create(&path, false).unwrap();
        file.write(b"half").unwrap();
        assert!(!path.exists());
        drop(file);
        assert!(names(directory.path()).is_empty());

        let whole = snapshot_file::tests::whole(b"rows");
        let mut cut = NewFile::create(&path, false).unwrap();
        cut.write(&whole[..whole.len() - 1]).unwrap();
        assert_eq!(cut.commit().unwrap_err().code(), 4);
        assert!(names(directory.path()).is_empty());

        let mut file = NewFile::create(&path, false).unwrap();
        file.write(&whole[..10]).unwrap();
        file.write(&whole[10..]).unwrap();
        assert_eq!(file.commit().unwrap(), whole.len() as u64);
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(names(directory.path()), ["north.tidewall"]);
    }

    #[test]
    fn an_existing_file_is_kept_unless_it_may_be_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("north.tidewall");
        let mut late = NewFile::create(&path, false).unwrap();
        late.write(&snapshot_file::tests::whole(b"late")).unwrap();
        std::fs::write(&path, "old").unwrap();
        assert_eq!(late.commit().unwrap_err().code(), 2);
        assert_eq!(NewFile::create(&path, false).unwrap_err().code(), 2);
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        let mut file = NewFile::create(&path, true).unwrap();
        let whole = snapshot_file::tests::whole(b"new");
        file.write(&whole).unwrap();
        file.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), whole);
        assert_eq!(names(directory.path()), ["north.tidewall"]);
    }

    #[test]
    fn an_impossible_place_is_refused() {
        let failure = NewFile::create(Path::new("/nonexistent/x"), false).unwrap_err();
        assert_eq!(failure.code(), 5);
        assert!(failure.to_string().contains("/nonexistent/x"));
    }
}
