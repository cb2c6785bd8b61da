//! Checkpoints in sled 0.34.
//!
//! One database a node, one tree a group. A page is stored under (table, page, generation), so that nothing of the last
//! generation is overwritten before the next one is durable; older versions go afterwards. sled's `flush` is
//! not an fsync on Linux: every file of the database is synced here after it. sled loses damaged keys
//! without a word: every value carries a checksum and the whole state its digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tidewall_machine::{Frozen, Machine};

use tidewall_machine::domain::table::TableId;

use super::{CHECKPOINT_FORMAT, CheckpointError, CheckpointStore, Generation, StoredPage, assemble};

const IDENTITY: &[u8] = b"identity";
const RECORD: u8 = 0;
const PAGE: u8 = 1;
/// sled's page cache, bytes: checkpoints are written and seldom read.
const CACHE_BYTES: u64 = 8 << 20;
/// After a SIGKILL the file lock lingers for a while.
const OPEN_ATTEMPTS: u32 = 50;
const OPEN_PAUSE: Duration = Duration::from_millis(100);

/// The checkpoint store of a node.
pub struct SledCheckpoints {
    directory: PathBuf,
    identity: Vec<u8>,
    database: Option<sled::Db>,
    /// Last generation of each group.
    last: BTreeMap<u32, Generation>,
    /// Marks of pages that are gone, written with the last generation of each group: they may go with the next one, when
    /// the removal of what they hide is durable.
    tombstones: BTreeMap<u32, Vec<Vec<u8>>>,
    /// Hashes of what was written since the last verification.
    unverified: BTreeMap<(u32, Vec<u8>), u64>,
}

impl SledCheckpoints {
    /// Opens or creates the store in a directory.
    ///
    /// # Errors
    /// [`CheckpointError::Foreign`] when it belongs to another cluster, node or format.
    pub fn open(directory: &Path, cluster: [u8; 16], node: u64) -> Result<Self, CheckpointError> {
        let mut identity = CHECKPOINT_FORMAT.to_be_bytes().to_vec();
        identity.extend_from_slice(&cluster);
        identity.extend_from_slice(&node.to_be_bytes());
        let mut store = Self {
            directory: directory.to_owned(),
            identity,
            database: None,
            last: BTreeMap::new(),
            tombstones: BTreeMap::new(),
            unverified: BTreeMap::new(),
        };
        remove_unfinished(directory).map_err(|e| failed("opening", e))?;
        store.open_database()?;
        Ok(store)
    }

    fn open_database(&mut self) -> Result<(), CheckpointError> {
        let config = sled::Config::new()
            .path(&self.directory)
            .cache_capacity(CACHE_BYTES)
            .mode(sled::Mode::HighThroughput)
            .flush_every_ms(Some(2_000));
        let mut attempt = 0;
        let database = loop {
            // sled panics on some damaged files: that is damage, not a reason to abort the process.
            match std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| config.open())) {
                Ok(Ok(database)) => break database,
                Ok(Err(error)) => {
                    attempt += 1;
                    let locked = error.to_string().contains("lock");
                    if !locked || attempt >= OPEN_ATTEMPTS {
                        return Err(engine("opening", error));
                    }
                    std::thread::sleep(OPEN_PAUSE);
                }
                Err(_) => {
                    let what = "sled panicked".into();
                    return Err(CheckpointError::Corrupt { doing: "opening", what });
                }
            }
        };
        match database.get(IDENTITY).map_err(|e| engine("reading the identity", e))? {
            Some(found) if found == self.identity.as_slice() => {}
            None if database.tree_names().len() <= 1 && database.is_empty() => {
                let identity = self.identity.as_slice();
                database.insert(IDENTITY, identity).map_err(|e| engine("writing the identity", e))?;
            }
            found => return Err(self.foreign(found.as_deref())),
        }
        self.database = Some(database);
        Ok(())
    }

    fn foreign(&self, found: Option<&[u8]>) -> CheckpointError {
        let place = self.directory.display();
        let format = found.and_then(|bytes| bytes.first_chunk::<4>()).map(|bytes| u32::from_be_bytes(*bytes));
        CheckpointError::Foreign(match format {
            Some(format) if format != CHECKPOINT_FORMAT => format!(
                "the checkpoint in {place} has format {format}, this build reads format {CHECKPOINT_FORMAT}: \
                 use the build that wrote it"
            ),
            Some(_) => {
                format!("the checkpoint in {place} belongs to another cluster or node: use its own directory")
            }
            None => {
                format!("the checkpoint in {place} has lost its identity: it is damaged or not a checkpoint")
            }
        })
    }

    pub(super) fn tree(&self, group: u32) -> Result<sled::Tree, CheckpointError> {
        let database = self.database.as_ref().ok_or_else(|| failed("writing", "the store is closed"))?;
        database.open_tree(format!("group-{group:05}")).map_err(|e| engine("opening a group", e))
    }

    /// Makes everything written so far durable.
    fn sync(&self) -> Result<(), CheckpointError> {
        let database = self.database.as_ref().ok_or_else(|| failed("syncing", "the store is closed"))?;
        database.flush().map_err(|e| engine("flushing", e))?;
        sync_files(&self.directory).map_err(|e| failed("syncing", e))
    }
}

/// Removes what a process that was killed has left of an index of its log that sled was about to rename into its place. sled
/// 0.34.7 takes it for the newest index, finds it cut short, and opens the database never again; the one before it is whole.
fn remove_unfinished(directory: &Path) -> std::io::Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        let name = entry.file_name();
        let unfinished = name.to_str().is_some_and(|n| n.starts_with("snap.") && n.ends_with(".generating"));
        if unfinished {
            tracing::info!(file = %entry.path().display(), "an unfinished index of the checkpoint store is removed");
            std::fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn sync_files(directory: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let synced = match entry.file_type() {
            Ok(kind) if kind.is_dir() => sync_files(&entry.path()),
            Ok(_) => File::open(entry.path()).and_then(|file| file.sync_all()),
            Err(error) => Err(error),
        };
        match synced {
            // sled replaces its own helper files at any time; what is gone needs no sync.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            other => other?,
        }
    }
    File::open(directory)?.sync_all()
}

fn failed(doing: &'static str, what: impl ToString) -> CheckpointError {
    CheckpointError::Failed { doing, what: what.to_string() }
}

/// What a sled error means: the system refused a read or write, or the files are not what they should be.
fn engine(doing: &'static str, error: sled::Error) -> CheckpointError {
    let what = error.to_string();
    match error {
        sled::Error::Io(_) | sled::Error::Unsupported(_) => CheckpointError::Failed { doing, what },
        sled::Error::Corruption { .. }
        | sled::Error::CollectionNotFound(_)
        | sled::Error::ReportableBug(_) => CheckpointError::Corrupt { doing, what },
    }
}

fn page_key(table: TableId, page: &[u8], generation: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(11 + page.len());
    key.push(PAGE);
    key.extend_from_slice(&table.to_be_bytes());
    key.extend_from_slice(page);
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

/// (table, page, generation) of a key.
fn split_page_key(key: &[u8]) -> Option<(TableId, &[u8], u64)> {
    let (head, generation) = key.split_last_chunk::<8>()?;
    let (&[PAGE, high, low], page) = head.split_first_chunk::<3>()? else {
        return None;
    };
    Some((TableId::from_be_bytes([high, low]), page, u64::from_be_bytes(*generation)))
}

fn record_key(generation: u64) -> Vec<u8> {
    let mut key = vec![RECORD];
    key.extend_from_slice(&generation.to_be_bytes());
    key
}

/// Checksum, then whether the page exists, then its content.
fn seal(live: bool, content: &[u8]) -> Vec<u8> {
    let mut value = vec![0; 4];
    value.push(u8::from(live));
    value.extend_from_slice(content);
    let checksum = crc32c::crc32c(&value[4..]);
    value[..4].copy_from_slice(&checksum.to_le_bytes());
    value
}

fn unseal(value: &[u8]) -> Option<(bool, &[u8])> {
    let (checksum, rest) = value.split_first_chunk::<4>()?;
    if crc32c::crc32c(rest) != u32::from_le_bytes(*checksum) {
        return None;
    }
    let (live, content) = rest.split_first()?;
    Some((*live == 1, content))
}

/// Removes versions of pages that newer ones hide, as far as a crash has left them. Returns the marks of pages that are
/// gone.
fn tidy_pages(
    tree: &sled::Tree,
    pages: &[(sled::IVec, sled::IVec)],
    generation: &Generation,
) -> Result<Vec<Vec<u8>>, CheckpointError> {
    let mut tombstones = Vec::new();
    for (at, (key, value)) in pages.iter().enumerate() {
        let Some((table, page, number)) = split_page_key(key) else { continue };
        if number > generation.number {
            continue;
        }
        let next = pages.get(at + 1).and_then(|(key, _)| split_page_key(key));
        let hidden = next.is_some_and(|(t, p, n)| (t, p) == (table, page) && n <= generation.number);
        if hidden || number < generation.base {
            tree.remove(key).map_err(|e| engine("tidying", e))?;
        } else if unseal(value).is_some_and(|(live, _)| !live) {
            tombstones.push(key.to_vec());
        }
    }
    Ok(tombstones)
}

impl CheckpointStore for SledCheckpoints {
    fn write(&mut self, group: u32, frozen: &Frozen) -> Result<Generation, CheckpointError> {
        let tree = self.tree(group)?;
        let last = self.last.get(&group);
        let index = |head: &tidewall_machine::Head| head.applied.map(|at| at.index);
        if let Some(last) = last
            && !frozen.full
            && index(&frozen.head) < index(&last.head)
        {
            return Err(failed("writing pages", "the changes are older than what is stored"));
        }
        let number = last.map_or(1, |last| last.number + 1);
        let base = if frozen.full { number } else { last.map_or(1, |last| last.base) };
        let mut written = Vec::with_capacity(frozen.pages.len());
        let mut tombstones = Vec::new();
        for page in &frozen.pages {
            let value = match page.encode() {
                Some(content) => seal(true, &content),
                None => seal(false, &[]),
            };
            let key = page_key(page.table(), page.page(), number);
            if page.rows() == 0 {
                tombstones.push(key.clone());
            }
            self.unverified.insert((group, key.clone()), xxhash(&value));
            tree.insert(&key, value).map_err(|e| engine("writing pages", e))?;
            written.push(key);
        }
        let generation =
            Generation { number, base, head: frozen.head.clone(), digest: frozen.digest, rows: frozen.rows };
        let record = seal(true, &generation.encode());
        tree.insert(record_key(number), record).map_err(|e| engine("writing the record", e))?;
        self.sync()?;
        for key in self.tombstones.insert(group, tombstones).unwrap_or_default() {
            self.unverified.remove(&(group, key.clone()));
            tree.remove(&key).map_err(|e| engine("tidying", e))?;
        }
        // Durable: what it replaces may go. Lost on a crash, these removals happen at the next load.
        for key in &written {
            let start = &key[..key.len() - 8];
            for older in tree.range(start.to_vec()..key.clone()).keys() {
                let older = older.map_err(|e| engine("tidying", e))?;
                if older.len() == key.len() {
                    self.unverified.remove(&(group, older.to_vec()));
                    tree.remove(&older).map_err(|e| engine("tidying", e))?;
                }
            }
        }
        if frozen.full {
            for key in tree.range([PAGE]..[PAGE + 1]).keys() {
                let key = key.map_err(|e| engine("tidying", e))?;
                if split_page_key(&key).is_some_and(|(_, _, generation)| generation < base) {
                    self.unverified.remove(&(group, key.to_vec()));
                    tree.remove(&key).map_err(|e| engine("tidying", e))?;
                }
            }
        }
        for key in tree.range(record_key(0)..record_key(number)).keys() {
            tree.remove(key.map_err(|e| engine("tidying", e))?).map_err(|e| engine("tidying", e))?;
        }
        self.last.insert(group, generation.clone());
        Ok(generation)
    }

    fn load(&mut self, group: u32) -> Result<Option<(Generation, Machine)>, CheckpointError> {
        let damaged = |what: String| CheckpointError::Damaged { group, what };
        let tree = self.tree(group)?;
        let (mut generations, mut pages) = (Vec::new(), Vec::new());
        let mut broken = None;
        for item in tree.iter() {
            let (key, value) = item.map_err(|e| engine("reading", e))?;
            match (key.first(), unseal(&value)) {
                (Some(&RECORD), Some((_, bytes))) => match Generation::decode(bytes) {
                    Ok(generation) => generations.push(generation),
                    Err(error) => broken = Some(format!("a generation record does not decode: {error}")),
                },
                (Some(&PAGE), Some(_)) => pages.push((key, value)),
                _ => broken = Some("a checksum does not match".into()),
            }
        }
        let Some(highest) = generations.last().map(|generation| generation.number) else {
            // Pages without any record: a first generation that was cut short, unless something is broken.
            return match (broken, pages.is_empty()) {
                (Some(what), _) => Err(damaged(what)),
                (None, true) => Ok(None),
                (None, false) => {
                    tree.clear().map_err(|e| engine("tidying", e))?;
                    Ok(None)
                }
            };
        };
        let mut why = broken.unwrap_or_default();
        for generation in generations.into_iter().rev() {
            let stored = pages.iter().filter_map(|(key, value)| {
                let (table, page, generation) = split_page_key(key)?;
                let (live, content) = unseal(value)?;
                Some(StoredPage { generation, table, page, content: live.then_some(content) })
            });
            match assemble(&generation, stored) {
                Ok(machine) => {
                    tracing::info!(group, generation = generation.number, highest, "checkpoint loaded");
                    for (key, _) in &pages {
                        if split_page_key(key).is_some_and(|(_, _, number)| number > generation.number) {
                            tree.remove(key).map_err(|e| engine("tidying", e))?;
                        }
                    }
                    self.tombstones.insert(group, tidy_pages(&tree, &pages, &generation)?);
                    for number in generation.number + 1..=highest {
                        tree.remove(record_key(number)).map_err(|e| engine("tidying", e))?;
                    }
                    self.last.insert(group, generation.clone());
                    return Ok(Some((generation, machine)));
                }
                Err(error) => why = format!("{why} {error}"),
            }
        }
        Err(damaged(why.trim().to_owned()))
    }

    fn discard(&mut self, group: u32) -> Result<(), CheckpointError> {
        self.tree(group)?.clear().map_err(|e| engine("discarding", e))?;
        self.last.remove(&group);
        self.tombstones.remove(&group);
        self.unverified.retain(|(of, _), _| *of != group);
        self.sync()
    }

    fn verify(&mut self) -> Result<(), CheckpointError> {
        self.sync()?;
        self.database = None;
        self.open_database()?;
        for ((group, key), expected) in std::mem::take(&mut self.unverified) {
            let value = self.tree(group)?.get(&key).map_err(|e| engine("verifying", e))?;
            if value.map(|value| xxhash(&value)) != Some(expected) {
                let what = "a page does not read back as it was written".into();
                return Err(CheckpointError::Damaged { group, what });
            }
        }
        for (group, generation) in &self.last {
            let value = self.tree(*group)?.get(record_key(generation.number));
            let value = value.map_err(|e| engine("verifying", e))?;
            let stored =
                value.as_deref().and_then(unseal).and_then(|(_, bytes)| Generation::decode(bytes).ok());
            if stored.as_ref() != Some(generation) {
                let what = "the generation record does not read back as it was written".into();
                return Err(CheckpointError::Damaged { group: *group, what });
            }
        }
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        self.database.as_ref().and_then(|database| database.size_on_disk().ok()).unwrap_or(0)
    }
}

fn xxhash(bytes: &[u8]) -> u64 {
    // A checksum of another kind than the one stored with the value.
    tidewall_machine::hash_64(bytes)
}

#[cfg(test)]
pub(super) mod tests_support {
    //! What tests need to lay a half-written generation on disk.

    pub fn page_key(table: super::TableId, page: &[u8], generation: u64) -> Vec<u8> {
        super::page_key(table, page, generation)
    }

    pub fn record_key(generation: u64) -> Vec<u8> {
        super::record_key(generation)
    }

    pub fn seal(content: &[u8]) -> Vec<u8> {
        super::seal(true, content)
    }
}
