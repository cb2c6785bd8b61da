//! The keyring of a node: the keys under which personal data are encrypted, one for each person.
//!
//! It stands beside log, rows and their backups and never in them, so that who erases a key erases the person everywhere. Keys come
//! wrapped: what is here opens nothing without the secret of the gateways. A key is put once and never changed; erased, it leaves a
//! tombstone, which wins over the key wherever the two meet. So replicas need no log to agree: each takes over what another has.
//!
//! One file of slots that are written in place: an erased key is overwritten, and no earlier version of the file is kept. A slot
//! whose checksum is wrong is used again, and makes the keyring incomplete unless it is the last one, which a crash has torn. **Never here:** which copies count.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;
use tidewall_env::disk::{Disk, DiskFile};

/// Version of the file.
pub const KEYRING_FORMAT: u32 = 1;
/// Longest wrapped key, bytes.
pub const WRAPPED_MAX: usize = 80;
/// Into so many parts a keyring is divided for comparing, by the first byte of the keys' ids.
pub const PARTS: usize = 256;

const FILE: &str = "keys";
const NEW_FILE: &str = "keys.new";
const MAGIC: &[u8; 8] = b"TWKEYRNG";
/// Bytes of the header, and of each slot.
const SLOT: usize = 128;
/// Where the header says whether the keyring is complete.
const COMPLETE_AT: usize = 40;
const KEY: u8 = 1;
const ERASED: u8 = 2;

/// Id of a key.
pub type KeyId = [u8; 16];

/// What a keyring knows of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its id.
    pub id: KeyId,
    /// The group whose person it belongs to.
    pub group: u32,
    /// The wrapped key; `None`: it was erased, for ever.
    pub wrapped: Option<Vec<u8>>,
}

/// Why a keyring cannot be used, or does not take a key.
#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    /// The disk failed: what it holds is not known any more.
    #[error("the keyring cannot be {what}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// An earlier call failed.
    #[error("the keyring failed before: restart the node")]
    Failed,
    /// The file belongs to something else, or to another build.
    #[error("the keyring's file {0}")]
    Foreign(String),
    /// The id has another key.
    #[error("another key has this id")]
    Taken,
    /// The key was erased.
    #[error("the key was erased, and erased it stays")]
    Erased,
    /// A wrapped key of no or too many bytes.
    #[error("a wrapped key has 1 to {WRAPPED_MAX} bytes, not {0}")]
    Size(usize),
}

struct Slots {
    /// By id, the number of its slot and what it holds.
    entries: BTreeMap<KeyId, (u64, Entry)>,
    /// Numbers of slots that hold nothing.
    free: Vec<u64>,
    next: u64,
    /// Of each part.
    sums: Vec<u64>,
    complete: bool,
    failed: bool,
}

impl Slots {
    fn set(&mut self, number: u64, entry: Entry) {
        let (part, sum) = (usize::from(entry.id[0]), entry.sum());
        let old = self.entries.insert(entry.id, (number, entry)).map_or(0, |(_, old)| old.sum());
        self.sums[part] = self.sums[part].wrapping_sub(old).wrapping_add(sum);
    }
}

/// A keyring on a disk; clones are the same.
#[derive(Clone)]
pub struct Keyring {
    file: Arc<dyn DiskFile>,
    cluster: [u8; 16],
    node: u64,
    /// What is durable. Never held over a write.
    slots: Arc<Mutex<Slots>>,
    /// Held by who writes.
    writing: Arc<Mutex<()>>,
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keyring").field("keys", &self.len()).finish_non_exhaustive()
    }
}

fn failing(what: &'static str) -> impl Fn(io::Error) -> KeyringError {
    move |source| KeyringError::Io { what, source }
}

fn header(cluster: [u8; 16], node: u64, complete: bool) -> [u8; SLOT] {
    let mut bytes = [0; SLOT];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&KEYRING_FORMAT.to_le_bytes());
    bytes[16..32].copy_from_slice(&cluster);
    bytes[32..40].copy_from_slice(&node.to_le_bytes());
    bytes[COMPLETE_AT] = complete.into();
    checked(bytes)
}

/// With the checksum at its end.
fn checked(mut bytes: [u8; SLOT]) -> [u8; SLOT] {
    let sum = crc32c::crc32c(&bytes[..SLOT - 4]);
    bytes[SLOT - 4..].copy_from_slice(&sum.to_le_bytes());
    bytes
}

impl Entry {
    fn to_slot(&self) -> [u8; SLOT] {
        let mut bytes = [0; SLOT];
        bytes[0] = if self.wrapped.is_some() { KEY } else { ERASED };
        bytes[4..8].copy_from_slice(&self.group.to_le_bytes());
        bytes[8..24].copy_from_slice(&self.id);
        if let Some(wrapped) = &self.wrapped {
            bytes[24] = wrapped.len() as u8;
            bytes[25..25 + wrapped.len()].copy_from_slice(wrapped);
        }
        checked(bytes)
    }

    /// What a slot holds; `None`: nothing that was ever acknowledged.
    fn from_slot(bytes: &[u8; SLOT]) -> Option<Self> {
        if checked(*bytes) != *bytes {
            return None;
        }
        let (group, id) = (bytes[4..8].try_into().ok()?, bytes[8..24].try_into().ok()?);
        let wrapped = match bytes[0] {
            KEY => Some(bytes.get(25..25 + usize::from(bytes[24]))?.to_vec()),
            ERASED => None,
            _ => return None,
        };
        Some(Self { id, group: u32::from_le_bytes(group), wrapped })
    }

    fn sum(&self) -> u64 {
        xxhash_rust::xxh3::xxh3_64(&self.to_slot())
    }
}

impl Keyring {
    /// Opens the keyring in a directory of its own, making it when there is none. One that is made is complete if it is the `first`:
    /// then there are no others that could have what it lacks.
    ///
    /// # Errors
    /// [`KeyringError::Foreign`] when the file is not of this cluster and node or has another format, [`KeyringError::Io`].
    pub fn open(disk: &dyn Disk, cluster: [u8; 16], node: u64, first: bool) -> Result<Self, KeyringError> {
        let file = match disk.open(FILE) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(disk, header(cluster, node, first))?
            }
            opened => opened.map_err(failing("opened"))?,
        };
        let mut found = [0; SLOT];
        file.read_exact_at(0, &mut found).map_err(failing("read"))?;
        let complete = [true, false].into_iter().find(|complete| found == header(cluster, node, *complete));
        let Some(complete) = complete else {
            let format = u32::from_le_bytes([found[8], found[9], found[10], found[11]]);
            let what = if found[..8] != *MAGIC {
                "is no keyring".to_owned()
            } else if format != KEYRING_FORMAT {
                format!("has format {format}, this build reads {KEYRING_FORMAT}: use the build that wrote it")
            } else {
                "belongs to another node or cluster, or is damaged: put its own back".to_owned()
            };
            return Err(KeyringError::Foreign(what));
        };
        let slots = read(&*file, complete)?;
        Ok(Self { file, cluster, node, slots: Arc::new(Mutex::new(slots)), writing: Arc::default() })
    }

    /// Nothing that a majority of the nodes has kept can be missing here.
    pub fn is_complete(&self) -> bool {
        self.slots.lock().complete
    }

    /// Everything was taken over that others had: remembered over restarts.
    ///
    /// # Errors
    /// [`KeyringError::Io`] and [`KeyringError::Failed`].
    pub fn set_complete(&self) -> Result<(), KeyringError> {
        let _writing = self.writing.lock();
        if self.slots.lock().failed {
            return Err(KeyringError::Failed);
        }
        let header = header(self.cluster, self.node, true);
        let written = self.file.write_at(0, &header).and_then(|()| self.file.sync_data());
        let mut slots = self.slots.lock();
        slots.failed |= written.is_err();
        slots.complete |= written.is_ok();
        written.map_err(failing("made durable"))
    }

    /// Keys and tombstones.
    pub fn len(&self) -> usize {
        self.slots.lock().entries.len()
    }

    /// Whether it has neither keys nor tombstones.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What it knows of a key.
    ///
    /// # Errors
    /// [`KeyringError::Failed`].
    pub fn get(&self, id: &KeyId) -> Result<Option<Entry>, KeyringError> {
        let slots = self.slots.lock();
        if slots.failed {
            return Err(KeyringError::Failed);
        }
        Ok(slots.entries.get(id).map(|(_, entry)| entry.clone()))
    }

    /// Keeps a key, durably when it returns. The same key again is fine.
    ///
    /// # Errors
    /// [`KeyringError::Taken`], [`KeyringError::Erased`], [`KeyringError::Size`]; [`KeyringError::Io`] and
    /// [`KeyringError::Failed`] when it is not known whether it is kept.
    pub fn put(&self, entry: Entry) -> Result<(), KeyringError> {
        let wrapped = entry.wrapped.as_ref().map_or(0, Vec::len);
        if !(1..=WRAPPED_MAX).contains(&wrapped) {
            return Err(KeyringError::Size(wrapped));
        }
        match self.get(&entry.id)? {
            Some(known) if known == entry => return Ok(()),
            Some(Entry { wrapped: None, .. }) => return Err(KeyringError::Erased),
            Some(_) => return Err(KeyringError::Taken),
            None => {}
        }
        self.merge(vec![entry]).map(drop)
    }

    /// Erases a key, durably when it returns, whether it was there or not.
    ///
    /// # Errors
    /// [`KeyringError::Io`] and [`KeyringError::Failed`] when it is not known whether it is erased.
    pub fn erase(&self, group: u32, id: KeyId) -> Result<(), KeyringError> {
        self.merge(vec![Entry { id, group, wrapped: None }]).map(drop)
    }

    /// Takes over what another keyring has: keys that are unknown here, and every tombstone. Durable when it returns; gives how many
    /// there were. A key that differs from the one here is left: it was put under an id that is not random.
    ///
    /// # Errors
    /// [`KeyringError::Io`] and [`KeyringError::Failed`].
    pub fn merge(&self, entries: Vec<Entry>) -> Result<usize, KeyringError> {
        let _writing = self.writing.lock();
        // Only who writes changes what is read here.
        let (mut taken, mut appended) = (Vec::new(), 0);
        {
            let slots = self.slots.lock();
            if slots.failed {
                return Err(KeyringError::Failed);
            }
            // One slot for each id, whatever came twice; a tombstone wins.
            let mut distinct: BTreeMap<KeyId, Entry> = BTreeMap::new();
            for entry in entries {
                let size = entry.wrapped.as_ref().map(Vec::len);
                if size.is_some_and(|size| !(1..=WRAPPED_MAX).contains(&size)) {
                    continue;
                }
                if entry.wrapped.is_none() || !distinct.contains_key(&entry.id) {
                    distinct.insert(entry.id, entry);
                }
            }
            for entry in distinct.into_values() {
                match slots.entries.get(&entry.id) {
                    Some((_, known)) if known.wrapped.is_none() || entry.wrapped.is_some() => {}
                    Some((number, _)) => taken.push((*number, entry)),
                    None => {
                        let free = slots.free.len().checked_sub(appended + 1).map(|at| slots.free[at]);
                        let behind = (appended - slots.free.len().min(appended)) as u64;
                        taken.push((free.unwrap_or(slots.next + behind), entry));
                        appended += 1;
                    }
                }
            }
        }
        let mut full = None;
        for at in 0..taken.len() {
            let (number, entry) = &taken[at];
            let Err(source) = self.file.write_at(number * SLOT as u64, &entry.to_slot()) else { continue };
            // An erasure that was to be written over its key may have torn it.
            let known = self.slots.lock().entries.contains_key(&entry.id);
            if known || source.kind() != io::ErrorKind::StorageFull {
                self.slots.lock().failed = true;
                return Err(KeyringError::Io { what: "written", source });
            }
            // What was written before must be known, or a later erasure would not find it.
            full = Some(source);
            let lost = taken.split_off(at);
            let known = |entry: &Entry| self.slots.lock().entries.contains_key(&entry.id);
            appended -= lost.iter().filter(|(_, entry)| !known(entry)).count();
            break;
        }
        if !taken.is_empty()
            && let Err(source) = self.file.sync_data()
        {
            self.slots.lock().failed = true;
            return Err(KeyringError::Io { what: "made durable", source });
        }
        let mut slots = self.slots.lock();
        let free = slots.free.len();
        slots.free.truncate(free - appended.min(free));
        slots.next += (appended - appended.min(free)) as u64;
        let changed = taken.len();
        for (number, entry) in taken {
            slots.set(number, entry);
        }
        match full {
            Some(source) => Err(KeyringError::Io { what: "written", source }),
            None => Ok(changed),
        }
    }

    /// A sum over each part, equal where two keyrings have the same.
    ///
    /// # Errors
    /// [`KeyringError::Failed`].
    pub fn sums(&self) -> Result<Vec<u64>, KeyringError> {
        let slots = self.slots.lock();
        if slots.failed {
            return Err(KeyringError::Failed);
        }
        Ok(slots.sums.clone())
    }

    /// Everything of one part.
    ///
    /// # Errors
    /// [`KeyringError::Failed`].
    pub fn part(&self, number: u8) -> Result<Vec<Entry>, KeyringError> {
        let slots = self.slots.lock();
        if slots.failed {
            return Err(KeyringError::Failed);
        }
        let (mut first, mut last) = ([0; 16], [u8::MAX; 16]);
        (first[0], last[0]) = (number, number);
        Ok(slots.entries.range(first..=last).map(|(_, (_, entry))| entry.clone()).collect())
    }
}

/// Reads all slots. What cannot be read is free again: at the end of the file it was torn before it was acknowledged. Elsewhere it may
/// have been something, which others then have: such a keyring is not complete.
fn read(file: &dyn DiskFile, complete: bool) -> Result<Slots, KeyringError> {
    let sums = vec![0; PARTS];
    let mut slots =
        Slots { entries: BTreeMap::new(), free: Vec::new(), next: 1, sums, complete, failed: false };
    let end = file.len().map_err(failing("read"))?.div_ceil(SLOT as u64);
    for number in 1..end {
        slots.next = number + 1;
        let mut bytes = [0; SLOT];
        match file.read_exact_at(number * SLOT as u64, &mut bytes) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => bytes = [u8::MAX; SLOT],
            Err(error) => return Err(failing("read")(error)),
        }
        match Entry::from_slot(&bytes) {
            Some(entry) => slots.found(file, number, entry)?,
            None => {
                slots.complete &= bytes == [0; SLOT] || number + 1 == end;
                slots.free.push(number);
            }
        }
    }
    Ok(slots)
}

impl Slots {
    /// Takes in what a slot holds. Nothing is written twice; should it be there twice, a tombstone wins, and no key stays beside it.
    fn found(&mut self, file: &dyn DiskFile, number: u64, entry: Entry) -> Result<(), KeyringError> {
        let Some((other, known)) = self.entries.get(&entry.id).cloned() else {
            self.set(number, entry);
            return Ok(());
        };
        let ((kept, entry), lost) = match known.wrapped {
            None => ((other, known), number),
            Some(_) => ((number, entry), other),
        };
        file.write_at(lost * SLOT as u64, &[0; SLOT]).map_err(failing("mended"))?;
        file.sync_data().map_err(failing("mended"))?;
        self.free.push(lost);
        self.set(kept, entry);
        Ok(())
    }
}

/// Makes an empty file that is whole before it has its name.
fn make(disk: &dyn Disk, header: [u8; SLOT]) -> Result<Arc<dyn DiskFile>, KeyringError> {
    match disk.remove(NEW_FILE) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failing("made")(error)),
        _ => {}
    }
    let file = disk.create(NEW_FILE).map_err(failing("made"))?;
    file.write_at(0, &header).map_err(failing("made"))?;
    file.sync_data().map_err(failing("made"))?;
    disk.rename(NEW_FILE, FILE).map_err(failing("made"))?;
    disk.sync_directory().map_err(failing("made"))?;
    Ok(file)
}

#[cfg(test)]
mod tests;
