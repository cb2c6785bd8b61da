//! Log files of the children: opened for appending, kept from growing without bound, and their last lines.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

/// A log that has grown beyond this many bytes is moved to `NAME.old`, whose previous content goes.
pub const LOG_BYTES_MAX: u64 = 32 << 20;

/// The most bytes that are looked at for the last lines.
const TAIL_BYTES_MAX: u64 = 16 << 10;

/// Opens a log for appending, and creates it and its directory when needed.
pub fn open(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory)?;
    }
    OpenOptions::new().create(true).append(true).open(path)
}

/// Empties a log that has grown beyond `bytes_max`, keeping its content beside it. The process that writes it
/// need not know: it appends, so it goes on at the new end. Lines written in between may be lost.
pub fn rotate(path: &Path, bytes_max: u64) -> io::Result<()> {
    match std::fs::metadata(path) {
        Ok(found) if found.len() > bytes_max => {
            std::fs::copy(path, path.with_extension("log.old"))?;
            OpenOptions::new().write(true).open(path)?.set_len(0)
        }
        Ok(_) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

/// The last lines of a log from byte `from` on, at most `lines_max`; empty when it cannot be read.
pub fn tail(path: &Path, from: u64, lines_max: usize) -> Vec<String> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        // A log that was emptied meanwhile is shorter than `from`.
        let start = if from > length { 0 } else { from };
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(TAIL_BYTES_MAX))))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(lines_max)..].iter().map(|line| (*line).to_owned()).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_tail_is_the_last_lines_of_this_life() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("logs").join("node-1.log");
        assert!(tail(&path, 0, 3).is_empty());
        let mut file = open(&path).unwrap();
        writeln!(file, "old").unwrap();
        writeln!(file, "1\n2\n3\n4").unwrap();
        assert_eq!(tail(&path, 4, 3), ["2", "3", "4"]);
        assert_eq!(tail(&path, 4, 9), ["1", "2", "3", "4"]);
        assert_eq!(tail(&path, 999, 1), ["4"]);
    }

    #[test]
    fn a_long_log_is_emptied_under_its_writer() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("node-1.log");
        rotate(&path, 4).unwrap();
        let mut file = open(&path).unwrap();
        write!(file, "12345").unwrap();
        rotate(&path, 5).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"12345");
        rotate(&path, 4).unwrap();
        write!(file, "6").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"6");
        assert_eq!(std::fs::read(directory.path().join("node-1.log.old")).unwrap(), b"12345");
    }
}
