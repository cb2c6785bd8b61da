//! Segment files: their names, headers and seals, and how a new one comes into being.
//!
//! A header keeps its first 64 bytes and their checksum in every format, so that a later format is recognised
//! as such and never taken for damage.

use std::sync::Arc;

use tidewall_env::disk::{Disk, DiskFile};

use super::record::{Body, Encoder, Identity};
use super::{GroupLogState, LogError, LogOptions};

/// The format that this build reads and writes.
pub(super) const FORMAT: u32 = 2;
/// Where records start.
pub(super) const RECORDS_AT: u64 = 96;
const MAGIC: [u8; 8] = *b"TWRAFTLG";
const SEAL_AT: u64 = 64;
const SEAL: [u8; 8] = *b"TWSEALED";

/// The name of a segment's file.
pub(super) fn name(number: u64) -> String {
    format!("log-{number:010}.seg")
}

/// The number in the name of a segment's file; `None` for files that are not segments.
pub(super) fn number(name: &str) -> Option<u64> {
    let digits = name.strip_prefix("log-")?.strip_suffix(".seg")?;
    let number = digits.parse().ok()?;
    (self::name(number) == name).then_some(number)
}

/// A valid header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) number: u64,
    /// Sequence of its state record.
    pub(super) first_sequence: u64,
}

impl Header {
    fn encode(self, identity: Identity, format: u32) -> [u8; RECORDS_AT as usize] {
        let mut bytes = [0; RECORDS_AT as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&format.to_le_bytes());
        bytes[16..32].copy_from_slice(&identity.cluster);
        bytes[32..40].copy_from_slice(&identity.node.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.number.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.first_sequence.to_le_bytes());
        let checksum = header_checksum(&bytes);
        bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// `Ok(None)` if the bytes are not a whole header.
    ///
    /// # Errors
    /// If it is whole, but of another format, cluster or node.
    pub(super) fn decode(bytes: &[u8], number: u64, options: &LogOptions) -> Result<Option<Self>, LogError> {
        let Some(bytes) = bytes.get(..SEAL_AT as usize) else {
            return Ok(None);
        };
        let number_at =
            |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes were taken"));
        let word_at =
            |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes were taken"));
        if bytes[..8] != MAGIC || word_at(12) != header_checksum(bytes) {
            return Ok(None);
        }
        let format = word_at(8);
        if format != FORMAT {
            return Err(LogError::UnsupportedFormat { found: format, supported: FORMAT });
        }
        let cluster: [u8; 16] = bytes[16..32].try_into().expect("sixteen bytes were taken");
        if cluster != options.cluster {
            return Err(LogError::WrongCluster { found: cluster, expected: options.cluster });
        }
        if number_at(32) != options.node {
            return Err(LogError::WrongNode { found: number_at(32), expected: options.node });
        }
        let header = Self { number: number_at(40), first_sequence: number_at(48) };
        if header.number != number {
            return Err(LogError::corrupt(
                number,
                40,
                format!("the file calls itself segment {}; it was renamed or copied", header.number),
            ));
        }
        Ok(Some(header))
    }
}

/// Over the first 64 bytes without the checksum itself.
fn header_checksum(bytes: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..SEAL_AT as usize])
}

/// Whether a segment says that it has a successor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seal {
    /// It does not.
    Open,
    /// It does.
    Sealed,
    /// The slot is damaged.
    Damaged,
}

fn seal_bytes(identity: Identity, number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&SEAL);
    let checksum = crc32c::crc32c_append(identity.seed(number), &SEAL);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Reads the seal of segment `number` from the start of its bytes.
pub(super) fn seal(bytes: &[u8], identity: Identity, number: u64) -> Seal {
    match bytes.get(SEAL_AT as usize..RECORDS_AT as usize) {
        Some(slot) if slot.iter().all(|byte| *byte == 0) => Seal::Open,
        Some(slot) if slot[..16] == seal_bytes(identity, number) && slot[16..] == [0; 16] => Seal::Sealed,
        _ => Seal::Damaged,
    }
}

/// Writes the seal of segment `number` and makes it, and all of the segment, durable.
///
/// # Errors
/// The disk's; the log has failed then.
pub(super) fn write_seal(file: &dyn DiskFile, identity: Identity, number: u64) -> Result<(), LogError> {
    file.write_at(SEAL_AT, &seal_bytes(identity, number))
        .and_then(|()| file.sync_data())
        .map_err(LogError::failed(format!("seal segment {number}")))
}

/// A segment that was just made.
pub(super) struct Made {
    pub(super) file: Arc<dyn DiskFile>,
    /// Where the next record goes.
    pub(super) end: u64,
}

/// Makes segment `number` with its state record, whose sequence is `first_sequence`, durable with its name.
///
/// # Errors
/// The disk's; the log has failed then.
pub(super) fn make(
    disk: &dyn Disk,
    options: &LogOptions,
    number: u64,
    first_sequence: u64,
    groups: Vec<(u32, GroupLogState)>,
) -> Result<Made, LogError> {
    let identity = options.identity();
    let mut records = Vec::new();
    Encoder { buffer: &mut records, seed: identity.seed(number), base: RECORDS_AT, sequence: first_sequence }
        .add(0, &Body::State(groups));
    let header = Header { number, first_sequence }.encode(identity, FORMAT);
    let content = [header.as_slice(), &records].concat();
    let failed = || LogError::failed(format!("make segment {number}"));
    let file = disk.create(&name(number)).map_err(failed())?;
    file.write_at(0, &content).map_err(failed())?;
    let end = content.len() as u64;
    file.sync_data().map_err(failed())?;
    disk.sync_directory().map_err(failed())?;
    Ok(Made { file, end })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn only_names_as_we_write_them_are_segments() {
        assert_eq!(name(1), "log-0000000001.seg");
        assert_eq!(number("log-0000000001.seg"), Some(1));
        assert_eq!(number(&name(12_345_678_901)), Some(12_345_678_901));
        for other in ["log-1.seg", "log-0000000001.seg.bak", "log-+000000001.seg", "checkpoint", "log-.seg"] {
            assert_eq!(number(other), None, "{other}");
        }
    }

    #[test]
    fn a_header_of_another_owner_or_format_is_named_as_such() {
        let options = LogOptions::new([7; 16], 3);
        let header = Header { number: 5, first_sequence: 99 };
        let bytes = header.encode(options.identity(), FORMAT);
        assert_eq!(Header::decode(&bytes, 5, &options).unwrap(), Some(header));
        assert!(matches!(Header::decode(&bytes, 6, &options), Err(LogError::Corrupt { .. })));
        let other = LogOptions::new([8; 16], 3);
        assert!(matches!(Header::decode(&bytes, 5, &other), Err(LogError::WrongCluster { .. })));
        let other = LogOptions::new([7; 16], 4);
        assert!(matches!(
            Header::decode(&bytes, 5, &other),
            Err(LogError::WrongNode { found: 3, expected: 4 })
        ));
        let newer = header.encode(options.identity(), FORMAT + 1);
        let error = Header::decode(&newer, 5, &options).unwrap_err();
        assert!(matches!(error, LogError::UnsupportedFormat { found: 3, supported: 2 }), "{error}");
        assert_eq!(Header::decode(&bytes[..63], 5, &options).unwrap(), None);
    }
}
