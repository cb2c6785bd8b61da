//! A disk in memory that behaves as badly as the contract allows.
//!
//! It keeps apart what is written and what is durable, so that [`MemoryDisk::crash`] can lose the
//! difference: all of it, or with torn and scattered sectors. It injects failed writes, failed syncs, a full
//! disk, flipped bits and a sync that lies. It never touches a real disk, and everything random comes from
//! the caller's seed.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::{Disk, DiskFile, check_name};

/// The unit in which a scattered crash keeps or loses bytes.
const SECTOR_BYTES: u64 = 512;

/// What a crash leaves of the unsynced changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CrashMode {
    /// Nothing.
    LoseUnsynced,
    /// The changes up to a random one, of which a random prefix (to the byte) remains.
    TornPrefix {
        /// Seed of the random choices.
        seed: u64,
    },
    /// Each 512-byte sector of each unsynced write remains or not, independently; name changes up to a
    /// random one remain.
    ScatteredSectors {
        /// Seed of the random choices.
        seed: u64,
    },
}

/// How often the disk was asked for something that costs time on a real one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DiskCounts {
    /// Calls of `write_at`.
    pub writes: u64,
    /// Calls of `sync_data`.
    pub syncs: u64,
    /// Calls of `sync_directory`.
    pub directory_syncs: u64,
}

/// A directory in memory. Clones share it: keep one to crash or damage what the code under test uses.
#[derive(Clone, Default)]
pub struct MemoryDisk {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    released: Condvar,
}

type Names = BTreeMap<String, Arc<Mutex<Inode>>>;

#[derive(Default)]
struct State {
    /// Counts crashes: handles of an earlier generation are dead, as are the processes that held them.
    generation: u64,
    names: Names,
    durable_names: Names,
    unsynced_names: Vec<NameChange>,
    counts: DiskCounts,
    writes_until_failure: Option<u64>,
    syncs_until_failure: Option<u64>,
    capacity_bytes: Option<u64>,
    sync_lies: bool,
    /// Syncs fail because power goes.
    power_goes: bool,
    /// How many syncs still pass before they are held; `None` if they are not held at all.
    syncs_until_held: Option<u64>,
    syncs_waiting: usize,
}

enum NameChange {
    Put(String, Arc<Mutex<Inode>>),
    Remove(String),
    Rename(String, String),
}

#[derive(Default)]
struct Inode {
    /// What a reader sees.
    current: Vec<u8>,
    /// What a crash leaves.
    durable: Vec<u8>,
    unsynced: Vec<Change>,
}

enum Change {
    Write { offset: u64, bytes: Vec<u8> },
    SetLen(u64),
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            Self::Put(name, inode) => {
                names.insert(name.clone(), Arc::clone(inode));
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Rename(from, to) => {
                if let Some(inode) = names.remove(from) {
                    names.insert(to.clone(), inode);
                }
            }
        }
    }
}

fn put(content: &mut Vec<u8>, offset: u64, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let start = usize::try_from(offset).expect("a file in memory is addressable");
    if content.len() < start + bytes.len() {
        content.resize(start + bytes.len(), 0);
    }
    content[start..start + bytes.len()].copy_from_slice(bytes);
}

fn set_len(content: &mut Vec<u8>, bytes: u64) {
    content.resize(usize::try_from(bytes).expect("a file in memory is addressable"), 0);
}

impl Change {
    fn apply(&self, content: &mut Vec<u8>) {
        match self {
            Self::Write { offset, bytes } => put(content, *offset, bytes),
            Self::SetLen(bytes) => set_len(content, *bytes),
        }
    }
}

impl Inode {
    fn sync(&mut self) {
        for change in std::mem::take(&mut self.unsynced) {
            change.apply(&mut self.durable);
        }
    }

    fn crash(&mut self, mode: CrashMode, random: &mut StdRng) {
        let unsynced = std::mem::take(&mut self.unsynced);
        match mode {
            CrashMode::LoseUnsynced => {}
            CrashMode::TornPrefix { .. } => {
                let reached = random.random_range(0..=unsynced.len());
                for (position, change) in unsynced.iter().take(reached).enumerate() {
                    match change {
                        Change::Write { offset, bytes } if position + 1 == reached => {
                            put(&mut self.durable, *offset, &bytes[..random.random_range(0..=bytes.len())]);
                        }
                        change => change.apply(&mut self.durable),
                    }
                }
            }
            CrashMode::ScatteredSectors { .. } => {
                for change in &unsynced {
                    match change {
                        Change::Write { offset, bytes } => {
                            for (at, piece) in sectors(*offset, bytes) {
                                if random.random_bool(0.5) {
                                    put(&mut self.durable, at, piece);
                                }
                            }
                        }
                        Change::SetLen(_) if random.random_bool(0.5) => change.apply(&mut self.durable),
                        Change::SetLen(_) => {}
                    }
                }
            }
        }
        self.current.clone_from(&self.durable);
    }
}

/// Cuts a write at the sector boundaries of the file.
fn sectors(mut offset: u64, mut bytes: &[u8]) -> Vec<(u64, &[u8])> {
    let mut pieces = Vec::new();
    while !bytes.is_empty() {
        let left_in_sector = SECTOR_BYTES - offset % SECTOR_BYTES;
        let take = usize::try_from(left_in_sector).map_or(bytes.len(), |left| left.min(bytes.len()));
        let (piece, rest) = bytes.split_at(take);
        pieces.push((offset, piece));
        offset += take as u64;
        bytes = rest;
    }
    pieces
}

impl State {
    fn used_bytes(&self) -> u64 {
        self.names.values().map(|inode| inode.lock().current.len() as u64).sum()
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.unsynced_names.push(change);
    }

    fn existing(&self, name: &str) -> io::Result<&Arc<Mutex<Inode>>> {
        check_name(name)?;
        self.names
            .get(name)
            .ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("there is no file {name}")))
    }
}

/// Counts down to an injected event; true when it is due, and from then on.
fn due(countdown: &mut Option<u64>) -> bool {
    match countdown {
        None => false,
        Some(0) => true,
        Some(left) => {
            *left -= 1;
            false
        }
    }
}

impl MemoryDisk {
    /// An empty disk without limits or faults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Power is cut: unsynced changes are lost as `mode` says, every open handle is dead, and all injected
    /// faults except the capacity are over. The directory can be used again at once, as after a reboot.
    pub fn crash(&self, mode: CrashMode) {
        let mut state = self.shared.state.lock();
        let mut random = StdRng::seed_from_u64(match mode {
            CrashMode::LoseUnsynced => 0,
            CrashMode::TornPrefix { seed } | CrashMode::ScatteredSectors { seed } => seed,
        });
        state.generation += 1;
        let changes = std::mem::take(&mut state.unsynced_names);
        let kept = match mode {
            CrashMode::LoseUnsynced => 0,
            CrashMode::TornPrefix { .. } | CrashMode::ScatteredSectors { .. } => {
                random.random_range(0..=changes.len())
            }
        };
        let mut names = std::mem::take(&mut state.durable_names);
        for change in &changes[..kept] {
            change.apply(&mut names);
        }
        for inode in names.values() {
            inode.lock().crash(mode, &mut random);
        }
        state.durable_names.clone_from(&names);
        state.names = names;
        state.writes_until_failure = None;
        state.syncs_until_failure = None;
        state.sync_lies = false;
        state.power_goes = false;
        state.syncs_until_held = None;
        drop(state);
        self.shared.released.notify_all();
    }

    /// The next `successes` writes succeed; all later ones fail without writing anything.
    pub fn fail_writes_after(&self, successes: u64) {
        self.shared.state.lock().writes_until_failure = Some(successes);
    }

    /// The next `successes` syncs of files succeed; all later ones fail. What a failed sync should have made
    /// durable never will be, though it still reads back until a crash, as on Linux.
    pub fn fail_syncs_after(&self, successes: u64) {
        self.shared.state.lock().syncs_until_failure = Some(successes);
    }

    /// Ends injected write and sync failures.
    pub fn heal(&self) {
        let mut state = self.shared.state.lock();
        state.writes_until_failure = None;
        state.syncs_until_failure = None;
    }

    /// Limits the sum of all file lengths; a write that does not fit writes what fits and fails with
    /// `StorageFull`.
    pub fn set_capacity_bytes(&self, capacity: Option<u64>) {
        self.shared.state.lock().capacity_bytes = capacity;
    }

    /// From now on syncs answer `Ok` and do nothing: the disk that a checker of durability must catch.
    pub fn lie_about_sync(&self, lie: bool) {
        self.shared.state.lock().sync_lies = lie;
    }

    /// From now on a sync of a file fails, and what it should have made durable is on its way: power goes while the disk
    /// writes. A crash decides what has arrived.
    pub fn lose_power_at_syncs(&self) {
        self.shared.state.lock().power_goes = true;
    }

    /// Flips bit `bit` (0–7) of the byte at `offset`, in what is read and in what is durable.
    ///
    /// # Errors
    /// `NotFound` without such a file, `UnexpectedEof` behind its end.
    pub fn flip_bit(&self, name: &str, offset: u64, bit: u8) -> io::Result<()> {
        let state = self.shared.state.lock();
        let mut inode = state.existing(name)?.lock();
        let at = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
        let mask = 1_u8 << (bit % 8);
        *inode.current.get_mut(at).ok_or(io::ErrorKind::UnexpectedEof)? ^= mask;
        if let Some(byte) = inode.durable.get_mut(at) {
            *byte ^= mask;
        }
        Ok(())
    }

    /// What has been asked of the disk so far.
    #[must_use]
    pub fn counts(&self) -> DiskCounts {
        self.shared.state.lock().counts
    }

    /// The next `passing` file syncs pass, later ones wait until this is called again or
    /// [`MemoryDisk::release_syncs`] is: a barrier that takes as long as a test needs. Syncs that wait already
    /// are the first to pass.
    pub fn hold_syncs_after(&self, passing: u64) {
        self.shared.state.lock().syncs_until_held = Some(passing);
        self.shared.released.notify_all();
    }

    /// Lets waiting and later syncs pass.
    pub fn release_syncs(&self) {
        self.shared.state.lock().syncs_until_held = None;
        self.shared.released.notify_all();
    }

    /// How many syncs wait at the moment and will not pass by themselves.
    #[must_use]
    pub fn syncs_waiting(&self) -> usize {
        let state = self.shared.state.lock();
        if state.syncs_until_held == Some(0) { state.syncs_waiting } else { 0 }
    }

    /// A disk of its own with the same content, as a cold copy of this one: all of it durable, no faults.
    #[must_use]
    pub fn copy(&self) -> Self {
        let state = self.shared.state.lock();
        let names: Names = state
            .names
            .iter()
            .map(|(name, inode)| {
                let current = inode.lock().current.clone();
                let inode = Inode { durable: current.clone(), current, unsynced: Vec::new() };
                (name.clone(), Arc::new(Mutex::new(inode)))
            })
            .collect();
        let copy = Self::default();
        {
            let mut target = copy.shared.state.lock();
            target.durable_names.clone_from(&names);
            target.names = names;
        }
        copy
    }

    fn handle(&self, state: &State, inode: &Arc<Mutex<Inode>>) -> Arc<dyn DiskFile> {
        Arc::new(MemoryFile {
            shared: Arc::clone(&self.shared),
            inode: Arc::clone(inode),
            generation: state.generation,
        })
    }
}

impl Disk for MemoryDisk {
    fn create(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        check_name(name)?;
        let mut state = self.shared.state.lock();
        if state.names.contains_key(name) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("there is a file {name} already"),
            ));
        }
        let inode = Arc::new(Mutex::new(Inode::default()));
        state.change_names(NameChange::Put(name.to_owned(), Arc::clone(&inode)));
        Ok(self.handle(&state, &inode))
    }

    fn open(&self, name: &str) -> io::Result<Arc<dyn DiskFile>> {
        let state = self.shared.state.lock();
        let inode = state.existing(name)?;
        Ok(self.handle(&state, inode))
    }

    fn list(&self) -> io::Result<Vec<String>> {
        Ok(self.shared.state.lock().names.keys().cloned().collect())
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.existing(name)?;
        state.change_names(NameChange::Remove(name.to_owned()));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_name(to)?;
        let mut state = self.shared.state.lock();
        state.existing(from)?;
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned()));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        state.counts.directory_syncs += 1;
        if !state.sync_lies {
            state.unsynced_names.clear();
            state.durable_names = state.names.clone();
        }
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let state = self.shared.state.lock();
        Ok(state.capacity_bytes.unwrap_or(u64::MAX).saturating_sub(state.used_bytes()))
    }
}

struct MemoryFile {
    shared: Arc<Shared>,
    inode: Arc<Mutex<Inode>>,
    generation: u64,
}

impl MemoryFile {
    /// A handle that was open when power was cut belongs to a process that no longer exists.
    fn check_alive(&self, state: &State) -> io::Result<()> {
        if state.generation == self.generation {
            Ok(())
        } else {
            Err(io::Error::other("the simulated machine has crashed; open the file again"))
        }
    }
}

impl DiskFile for MemoryFile {
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        self.check_alive(&state)?;
        state.counts.writes += 1;
        if due(&mut state.writes_until_failure) {
            return Err(io::Error::other("injected write failure"));
        }
        let fits = match state.capacity_bytes {
            None => bytes.len(),
            Some(capacity) => {
                let length = self.inode.lock().current.len() as u64;
                let room = length.saturating_add(capacity.saturating_sub(state.used_bytes()));
                usize::try_from(room.saturating_sub(offset)).unwrap_or(usize::MAX).min(bytes.len())
            }
        };
        let mut inode = self.inode.lock();
        put(&mut inode.current, offset, &bytes[..fits]);
        inode.unsynced.push(Change::Write { offset, bytes: bytes[..fits].to_vec() });
        if fits < bytes.len() {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"));
        }
        Ok(())
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let state = self.shared.state.lock();
        self.check_alive(&state)?;
        let inode = self.inode.lock();
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(inode.current.len());
        let read = buffer.len().min(inode.current.len() - start);
        buffer[..read].copy_from_slice(&inode.current[start..start + read]);
        Ok(read)
    }

    fn len(&self) -> io::Result<u64> {
        let state = self.shared.state.lock();
        self.check_alive(&state)?;
        Ok(self.inode.lock().current.len() as u64)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        let state = self.shared.state.lock();
        self.check_alive(&state)?;
        let mut inode = self.inode.lock();
        set_len(&mut inode.current, bytes);
        inode.unsynced.push(Change::SetLen(bytes));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.shared.state.lock();
        self.check_alive(&state)?;
        state.counts.syncs += 1;
        while due(&mut state.syncs_until_held) {
            state.syncs_waiting += 1;
            self.shared.released.wait(&mut state);
            state.syncs_waiting -= 1;
        }
        // Power may have gone while the barrier was under way.
        self.check_alive(&state)?;
        if state.power_goes {
            return Err(io::Error::other("power is gone"));
        }
        if due(&mut state.syncs_until_failure) {
            // The kernel has marked the pages clean: they read back, and no later sync writes them.
            self.inode.lock().unsynced.clear();
            return Err(io::Error::other("injected sync failure"));
        }
        if !state.sync_lies {
            self.inode.lock().sync();
        }
        Ok(())
    }
}
