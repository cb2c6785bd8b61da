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
