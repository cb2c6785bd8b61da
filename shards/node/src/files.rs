//! Small files that survive a power cut. **Never here:** what their contents mean.

use std::io::{self, Write as _};
use std::path::Path;

/// Writes a file so that a crash leaves either the old or the new one. Two must not write the same one at once.
pub(crate) fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(Path::new(name).with_extension("tmp"));
    let mut file = std::fs::File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}

/// The same in a directory that may have to be made.
pub(crate) fn replace_below(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    std::fs::create_dir_all(directory)?;
    replace(directory, name, bytes)?;
    directory.parent().map_or(Ok(()), sync_directory)
}

/// Makes what was renamed or removed in a directory durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    std::fs::File::open(directory)?.sync_all()
}

/// Removes a file, if it is there.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_replaced_as_a_whole_and_removed_once_or_not_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("below");
        replace_below(&below, "a.json", b"old").unwrap();
        replace(&below, "a.json", b"new").unwrap();
        assert_eq!(std::fs::read(below.join("a.json")).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(&below).unwrap().count(), 1, "nothing is left beside it");
        remove(&below.join("a.json")).unwrap();
        assert!(!below.join("a.json").exists());
        remove(&below.join("a.json")).unwrap();
        assert!(remove(&below).is_err(), "a directory is no file");
        assert!(replace(&directory.path().join("nowhere"), "a.json", b"").is_err());
        assert!(sync_directory(&directory.path().join("nowhere")).is_err());
    }
}
