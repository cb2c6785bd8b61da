//! Damages the files of a node that is down, at a place that a seed chooses, and can put them back.
//!
//! It knows as much of the formats (docs/FORMATS.md) as it takes to hit bytes that matter, and no more.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::Damage;

/// Bytes of a segment's header that mean something.
const HEADER: u64 = 64;
/// Where a segment's records begin.
const RECORDS: u64 = 96;
/// Bytes of a record in front of its payload.
const RECORD_HEADER: u64 = 24;
/// Records begin at multiples of this.
const ALIGNMENT: u64 = 8;
/// Most garbage that a torn write leaves, bytes.
const TORN_MAX: usize = 4_096;

/// What was damaged, and how to undo it: the files as they were before.
#[derive(Debug)]
pub struct Wound {
    directory: PathBuf,
    before: Vec<(PathBuf, Vec<u8>)>,
}

impl Wound {
    /// Remembers all files below a directory. sled repairs what it opens, also what it then refuses, so that putting the
    /// damaged byte back would not do.
    fn about_to_hit(directory: PathBuf) -> io::Result<Self> {
        let mut files = Vec::new();
        files_below(&directory, &mut files)?;
        let read = |path: PathBuf| std::fs::read(&path).map(|bytes| (path, bytes));
        let before = files.into_iter().map(read).collect::<io::Result<_>>()?;
        Ok(Self { directory, before })
    }

    /// Puts all files back, and removes what was not there.
    ///
    /// # Errors
    /// When files cannot be written.
    pub fn undo(&self) -> io::Result<()> {
        let mut files = Vec::new();
        files_below(&self.directory, &mut files)?;
        for path in files.iter().filter(|path| self.before.iter().all(|(known, _)| known != *path)) {
            std::fs::remove_file(path)?;
        }
        for (path, bytes) in &self.before {
            std::fs::write(path, bytes)?;
            File::open(path)?.sync_all()?;
        }
        Ok(())
    }
}

/// Damages a node's directory. Returns what was done in words, and how to undo it; `None` when there is nothing to hit.
///
/// # Errors
/// When files cannot be read or written.
pub fn inflict(directory: &Path, damage: Damage, seed: u64) -> io::Result<Option<(String, Wound)>> {
    let mut rng = StdRng::seed_from_u64(seed);
    let part = if damage == Damage::CheckpointBit { "checkpoint" } else { "log" };
    let wound = Wound::about_to_hit(directory.join(part))?;
    let what = match damage {
        Damage::LogBit => {
            let mut live = Vec::new();
            for path in segments(directory)? {
                let bytes = std::fs::read(&path)?;
                live.push((path.clone(), 0..HEADER.min(bytes.len() as u64)));
                live.extend(records(&bytes).into_iter().map(|range| (path.clone(), range)));
            }
            flip_one_of(&live, &mut rng)
        }
        Damage::CheckpointBit => {
            let mut files = Vec::new();
            files_below(&directory.join("checkpoint"), &mut files)?;
            files.sort();
            let live = files
                .into_iter()
                .map(|path| std::fs::metadata(&path).map(|data| (path, 0..data.len())))
                .collect::<io::Result<Vec<_>>>()?;
            flip_one_of(&live, &mut rng)
        }
        Damage::TornTail => tear(directory, &mut rng),
    };
    Ok(what?.map(|what| (what, wound)))
}

/// Flips one bit; every byte of the ranges is as likely as any other.
fn flip_one_of(live: &[(PathBuf, Range<u64>)], rng: &mut StdRng) -> io::Result<Option<String>> {
    let total: u64 = live.iter().map(|(_, range)| range.end - range.start).sum();
    if total == 0 {
        return Ok(None);
    }
    let mut chosen = rng.random_range(0..total);
    for (path, range) in live {
        let length = range.end - range.start;
        if chosen >= length {
            chosen -= length;
            continue;
        }
        let offset = range.start + chosen;
        let file = File::options().read(true).write(true).open(path)?;
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset)?;
        let bit = rng.random_range(0..8_u32);
        byte[0] ^= 1 << bit;
        file.write_all_at(&byte, offset)?;
        file.sync_all()?;
        return Ok(Some(format!("bit {bit} of byte {offset} of {} flipped", name(path))));
    }
    Ok(None)
}

/// What a crash in the middle of a write leaves: either a part of a batch that nobody was told about, behind the last
/// record, or a last record that lost its end.
fn tear(directory: &Path, rng: &mut StdRng) -> io::Result<Option<String>> {
    let Some(path) = segments(directory)?.pop() else { return Ok(None) };
    let bytes = std::fs::read(&path)?;
    let Some(last) = records(&bytes).pop() else { return Ok(None) };
    let (offset, torn) = if rng.random_ratio(1, 2) {
        let offset = last.end.next_multiple_of(ALIGNMENT);
        let room = usize::try_from(bytes.len() as u64 - offset).unwrap_or(0);
        let length = rng.random_range(1..=TORN_MAX).min(room);
        (offset, (0..length).map(|_| rng.random()).collect::<Vec<u8>>())
    } else {
        let offset = rng.random_range(last.start..last.end);
        (offset, vec![0; usize::try_from(last.end - offset).unwrap_or(0)])
    };
    let file = File::options().write(true).open(&path)?;
    file.write_all_at(&torn, offset)?;
    file.sync_all()?;
    Ok(Some(format!("{} bytes at {offset} of {}, last record {last:?}", torn.len(), name(&path))))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The log's segments, oldest first.
fn segments(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    files_below(&directory.join("log"), &mut paths)?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    paths.sort();
    Ok(paths)
}

/// All files below a directory, which may be missing.
fn files_below(directory: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            files_below(&entry.path(), files)?;
        } else {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Where the records of a segment are, padding apart.
fn records(bytes: &[u8]) -> Vec<Range<u64>> {
    let number = |offset: u64, width: usize| {
        let start = usize::try_from(offset).ok()?;
        let field = bytes.get(start..start + width)?;
        Some(field.iter().rev().fold(0_u64, |sum, byte| sum << 8 | u64::from(*byte)))
    };
    let mut found = Vec::new();
    let mut offset = RECORDS;
    while let (Some(length), Some(sequence)) = (number(offset + 4, 4), number(offset + 8, 8)) {
        let end = offset + RECORD_HEADER + length;
        if sequence == 0 || end > bytes.len() as u64 {
            break;
        }
        found.push(offset..end);
        offset = end.next_multiple_of(ALIGNMENT);
    }
    found
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A segment with two records of 5 and 11 bytes, and room behind them.
    fn node() -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("log")).unwrap();
        std::fs::create_dir_all(directory.path().join("checkpoint/blobs")).unwrap();
        std::fs::write(directory.path().join("checkpoint/db"), [7; 50]).unwrap();
        let mut bytes = vec![1; 96];
        for (sequence, length) in [(1_u64, 5_u32), (2, 11)] {
            bytes.extend([9; 4]);
            bytes.extend(length.to_le_bytes());
            bytes.extend(sequence.to_le_bytes());
            bytes.extend([0; 8]);
            bytes.extend(vec![3; length as usize]);
            bytes.resize(bytes.len().next_multiple_of(8), 0);
        }
        bytes.resize(9_000, 0);
        let path = directory.path().join("log/log-0000000001.seg");
        std::fs::write(&path, bytes).unwrap();
        (directory, path)
    }

    #[test]
    fn records_are_found() {
        let (_directory, path) = node();
        assert_eq!(records(&std::fs::read(path).unwrap()), [96..125, 128..163]);
    }

    #[test]
    fn a_flip_changes_one_live_bit_and_can_be_undone() {
        let (directory, path) = node();
        let before = std::fs::read(&path).unwrap();
        for seed in 0..200 {
            let (_, wound) = inflict(directory.path(), Damage::LogBit, seed).unwrap().unwrap();
            let after = std::fs::read(&path).unwrap();
            let changed: Vec<usize> = (0..before.len()).filter(|n| before[*n] != after[*n]).collect();
            assert_eq!(changed.len(), 1, "seed {seed}");
            let at = changed[0];
            assert!(at < 64 || (96..125).contains(&at) || (128..163).contains(&at), "byte {at} is not live");
            assert_eq!((before[at] ^ after[at]).count_ones(), 1);
            wound.undo().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
    }

    #[test]
    fn a_torn_tail_leaves_the_records_before_it_alone() {
        let (directory, path) = node();
        let before = std::fs::read(&path).unwrap();
        let mut kinds = [false; 2];
        for seed in 0..50 {
            let (_, wound) = inflict(directory.path(), Damage::TornTail, seed).unwrap().unwrap();
            let after = std::fs::read(&path).unwrap();
            assert_eq!(after.len(), before.len());
            assert_eq!(after[..128], before[..128], "seed {seed}");
            kinds[usize::from(after[128..163] == before[128..163])] = true;
            wound.undo().unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), before);
        }
        assert_eq!(kinds, [true; 2], "both forms of a torn write occur");
    }

    #[test]
    fn a_checkpoint_is_hit_and_nothing_is_hit_where_there_is_nothing() {
        let (directory, _) = node();
        let db = directory.path().join("checkpoint/db");
        let (what, wound) = inflict(directory.path(), Damage::CheckpointBit, 1).unwrap().unwrap();
        assert!(what.contains("db"), "{what}");
        assert_ne!(std::fs::read(&db).unwrap(), [7; 50]);
        // What opens it may change more.
        std::fs::write(&db, "truncated").unwrap();
        let extra = directory.path().join("checkpoint/blobs/new");
        std::fs::write(&extra, "x").unwrap();
        wound.undo().unwrap();
        assert!(!extra.exists());
        assert_eq!(std::fs::read(&db).unwrap(), [7; 50]);
        let empty = tempfile::tempdir().unwrap();
        for damage in [Damage::LogBit, Damage::TornTail, Damage::CheckpointBit] {
            assert!(inflict(empty.path(), damage, 1).unwrap().is_none());
        }
    }
}
