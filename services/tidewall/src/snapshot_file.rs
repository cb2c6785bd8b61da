//! What an export file looks like from outside: whether it is one, and whether it is whole.
//!
//! A snapshot file begins with a magic and ends with a BLAKE3 hash over everything before that hash
//! (docs/FORMATS.md). This module checks those two and never looks at what is between them: whether the rows
//! make a state is for the shard nodes to judge.

use std::io::{self, Read};

const MAGIC: &[u8; 8] = b"TIDESNAP";
const HASH_BYTES: usize = 32;

/// Why a file is not a whole export.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFileError {
    /// It could not be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not a file made by `tidewall region export`")]
    Foreign,
    /// It is cut short or damaged.
    #[error("it is cut short or damaged: its hash does not match its content")]
    Damaged,
}

/// Checks a file while it passes by, in any parts.
#[derive(Debug, Default)]
pub struct Verifier {
    hasher: blake3::Hasher,
    /// The last bytes, which may be the hash itself.
    held: Vec<u8>,
    /// The first bytes, up to the length of the magic.
    head: Vec<u8>,
}

impl Verifier {
    /// Takes the next part of the file.
    pub fn update(&mut self, part: &[u8]) {
        let missing = MAGIC.len() - self.head.len();
        self.head.extend_from_slice(&part[..missing.min(part.len())]);
        // Only the last 32 bytes of everything so far are held back.
        let keep = part.len().min(HASH_BYTES);
        let (passed, kept) = part.split_at(part.len() - keep);
        let surplus = (self.held.len() + keep).saturating_sub(HASH_BYTES);
        self.hasher.update(&self.held[..surplus]);
        self.held.drain(..surplus);
        // `passed` is not empty only if `kept` is a full hash, and then nothing is held any more.
        self.hasher.update(passed);
        self.held.extend_from_slice(kept);
    }

    /// The verdict, when all parts have passed.
    pub fn finish(self) -> Result<(), SnapshotFileError> {
        if self.head != MAGIC {
            return Err(SnapshotFileError::Foreign);
        }
        if self.hasher.finalize().as_bytes()[..] == self.held[..] {
            Ok(())
        } else {
            Err(SnapshotFileError::Damaged)
        }
    }
}

/// Checks a whole file.
pub fn verify(mut from: impl Read) -> Result<(), SnapshotFileError> {
    let mut verifier = Verifier::default();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match from.read(&mut buffer)? {
            0 => return verifier.finish(),
            read => verifier.update(&buffer[..read]),
        }
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A file that passes.
    pub fn whole(content: &[u8]) -> Vec<u8> {
        let mut file = [&MAGIC[..], content].concat();
        let hash = blake3::hash(&file);
        file.extend_from_slice(hash.as_bytes());
        file
    }

    #[test]
    fn a_whole_file_passes_in_any_parts() {
        let file = whole(&[7; 200]);
        for size in [1, 5, 31, 32, 33, 64, 1000] {
            let mut verifier = Verifier::default();
            for part in file.chunks(size) {
                verifier.update(part);
                verifier.update(&[]);
            }
            assert!(verifier.finish().is_ok(), "in parts of {size}");
        }
        assert!(verify(&file[..]).is_ok());
        assert!(verify(&whole(b"")[..]).is_ok());
    }

    #[test]
    fn a_cut_changed_or_foreign_file_does_not() {
        let file = whole(&[7; 200]);
        for length in 8..file.len() {
            assert!(matches!(verify(&file[..length]), Err(SnapshotFileError::Damaged)), "cut at {length}");
        }
        for position in 8..file.len() {
            let mut changed = file.clone();
            changed[position] ^= 1;
            assert!(matches!(verify(&changed[..]), Err(SnapshotFileError::Damaged)), "changed at {position}");
        }
        assert!(matches!(verify(&b"something else"[..]), Err(SnapshotFileError::Foreign)));
        assert!(matches!(verify(&b""[..]), Err(SnapshotFileError::Foreign)));
        assert!(verify(&[&file[..], b"x"].concat()[..]).is_err());
    }
}
