//! A checkpoint store in memory, for tests and simulation: loses what was not synced when it crashes, and can be told
//! to fail, to lose a page silently, or to cut a generation short.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tidewall_machine::domain::table::TableId;
use tidewall_machine::{Frozen, Machine};

use super::{CheckpointError, CheckpointStore, Generation, StoredPage, assemble};

type PageKey = (TableId, Vec<u8>, u64);

#[derive(Debug, Default, Clone)]
struct Group {
    pages: BTreeMap<PageKey, Option<Vec<u8>>>,
    generations: BTreeMap<u64, Generation>,
}

/// Faults to inject.
#[derive(Debug, Default, Clone, Copy)]
pub struct Faults {
    /// The next write fails.
    pub fail_next_write: bool,
    /// The next write stores its record but only half of its pages, as a power cut can.
    pub tear_next_write: bool,
}

/// The disk, which outlives the store on it.
#[derive(Debug, Default, Clone)]
pub struct MemoryCheckpoints {
    groups: Arc<Mutex<BTreeMap<u32, Group>>>,
    faults: Arc<Mutex<Faults>>,
}

impl MemoryCheckpoints {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// A store of its own with the same content and no faults.
    pub fn copy(&self) -> Self {
        let groups = Arc::new(Mutex::new(self.groups.lock().clone()));
        Self { groups, faults: Arc::default() }
    }

    /// Injects faults.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock() = faults;
    }

    /// Loses one stored page of a group without a word, as a damaged engine does. Returns whether there was one.
    pub fn lose_a_page(&self, group: u32) -> bool {
        let mut groups = self.groups.lock();
        let Some(pages) = groups.get_mut(&group).map(|group| &mut group.pages) else { return false };
        // A whole page, or the latest state of one: then as many rows are there as should be.
        let mut pairs = pages.keys().rev().skip(1).zip(pages.keys().rev());
        let newer = pairs.find(|(one, next)| (one.0, &one.1) == (next.0, &next.1)).map(|(_, next)| next);
        let lost = newer.filter(|_| pages.len() % 2 == 0).or_else(|| pages.keys().last()).cloned();
        lost.is_some_and(|key| pages.remove(&key).is_some())
    }
}

impl CheckpointStore for MemoryCheckpoints {
    fn write(&mut self, group: u32, frozen: &Frozen) -> Result<Generation, CheckpointError> {
        let faults = std::mem::take(&mut *self.faults.lock());
        if faults.fail_next_write {
            return Err(CheckpointError::Failed { doing: "writing pages", what: "injected".into() });
        }
        let mut groups = self.groups.lock();
        let group = groups.entry(group).or_default();
        let last = group.generations.last_key_value().map(|(_, generation)| generation.clone());
        let number = last.as_ref().map_or(1, |last| last.number + 1);
        let base = if frozen.full { number } else { last.as_ref().map_or(1, |last| last.base) };
        let keep = if faults.tear_next_write { frozen.pages.len() / 2 } else { frozen.pages.len() };
        for page in &frozen.pages[..keep] {
            group.pages.insert((page.table(), page.page().to_vec(), number), page.encode());
        }
        let generation =
            Generation { number, base, head: frozen.head.clone(), digest: frozen.digest, rows: frozen.rows };
        group.generations.insert(number, generation.clone());
        if !faults.tear_next_write {
            group.generations.retain(|n, _| *n == number);
            let versions: Vec<PageKey> = group.pages.keys().cloned().collect();
            for pair in versions.windows(2) {
                if (pair[0].0, &pair[0].1) == (pair[1].0, &pair[1].1) {
                    group.pages.remove(&pair[0]);
                }
            }
            group.pages.retain(|(_, _, generation), _| *generation >= base);
        }
        Ok(generation)
    }

    fn load(&mut self, group_number: u32) -> Result<Option<(Generation, Machine)>, CheckpointError> {
        let mut groups = self.groups.lock();
        let Some(group) = groups.get_mut(&group_number) else {
            return Ok(None);
        };
        let mut why = None;
        while let Some((number, generation)) = group.generations.last_key_value() {
            let (number, generation) = (*number, generation.clone());
            let pages = group.pages.iter().map(|((table, page, generation), content)| StoredPage {
                generation: *generation,
                table: *table,
                page,
                content: content.as_deref(),
            });
            match assemble(&generation, pages) {
                Ok(machine) => {
                    group.pages.retain(|(_, _, generation), _| *generation <= number);
                    return Ok(Some((generation, machine)));
                }
                Err(error) => why = Some(error),
            }
            group.generations.remove(&number);
        }
        match why {
            None => Ok(None),
            Some(error) => Err(CheckpointError::Damaged { group: group_number, what: error.to_string() }),
        }
    }

    fn discard(&mut self, group: u32) -> Result<(), CheckpointError> {
        self.groups.lock().remove(&group);
        Ok(())
    }

    fn verify(&mut self) -> Result<(), CheckpointError> {
        Ok(())
    }

    fn disk_bytes(&self) -> u64 {
        let groups = self.groups.lock();
        let contents = groups.values().flat_map(|group| group.pages.values()).flatten();
        contents.map(|content| content.len() as u64).sum()
    }
}
