//! Ordered tables of rows, held in memory in pages.
//!
//! A page is a run of neighbouring rows. It is the unit of copy-on-write: [`Table::freeze`] hands out
//! references to the pages that changed since the last freeze, without stopping whoever applies commands; a page
//! that changes while it is still referenced is copied first. It is also the unit that a checkpoint stores,
//! so that append-only rows cost a fraction of a key each.
//!
//! Every change goes through [`Table::set`], which keeps four things true at once: the digest (a wrapping sum of a
//! 128-bit hash of table, key and value over all rows: independent of history), the derived index
//! of the row type, the set of changed pages, and the undo log that lets a broken command be taken back.
//! Nothing here does I/O.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use crate::codec::{DecodeError, Reader, Writer};

/// Number of a table: that of its module, and its own within it. Part of every stored page and of the digest.
pub type TableId = u16;

/// The number of a module's table.
pub const fn table_id(module: u8, table: u8) -> TableId {
    (module as TableId) << 8 | table as TableId
}

/// The module of a table.
pub const fn module_of(table: TableId) -> u8 {
    (table >> 8) as u8
}

/// A kind of row.
pub trait Row: Clone + Debug + PartialEq + Send + Sync + 'static {
    /// Number of the table. Never reused.
    const TABLE: TableId;
    /// Key within the table. Its encoding must sort like the key itself.
    type Key: Clone + Ord + Debug + Send + Sync + 'static;
    /// Page of a key: must not decrease when the key increases.
    type Page: Clone + Ord + Debug + Send + Sync + 'static;
    /// Whatever is derived from the rows for look-ups; never stored.
    type Index: Default + Debug + Send + Sync;

    /// The page that a key belongs to.
    fn page(key: &Self::Key) -> Self::Page;
    /// Encodes a page's identity so that no two pages share an encoding.
    fn encode_page(page: &Self::Page, writer: &mut Writer);
    /// Encodes a key.
    fn encode_key(key: &Self::Key, writer: &mut Writer);
    /// Decodes a key.
    fn decode_key(reader: &mut Reader<'_>) -> Result<Self::Key, DecodeError>;
    /// Encodes the row without its key.
    fn encode(&self, writer: &mut Writer);
    /// Decodes a row.
    fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError>;
    /// Takes a new row into the index.
    fn index(_index: &mut Self::Index, _key: &Self::Key, _row: &Self) {}
    /// Takes a row out of the index; a changed row leaves before its new version enters.
    fn unindex(_index: &mut Self::Index, _key: &Self::Key, _row: &Self) {}
}

#[derive(Debug, Clone)]
struct Slot<R: Row> {
    key: R::Key,
    row: R,
    hash: u128,
}

type Slots<R> = Vec<Slot<R>>;

/// A page as it was at a freeze, to be encoded by whoever stores it.
pub struct FrozenPage {
    table: TableId,
    page: Vec<u8>,
    content: Option<Arc<dyn EncodePage>>,
}

impl Debug for FrozenPage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FrozenPage").field("table", &self.table).field("page", &self.page).finish()
    }
}

impl FrozenPage {
    /// Number of the table.
    pub fn table(&self) -> TableId {
        self.table
    }

    /// Identity of the page within the table.
    pub fn page(&self) -> &[u8] {
        &self.page
    }

    /// Rows in the page; 0 when it is gone.
    pub fn rows(&self) -> usize {
        self.content.as_ref().map_or(0, |content| content.rows())
    }

    /// Encodes the rows; `None` when the page is gone.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let content = self.content.as_ref()?;
        let mut writer = Writer::new();
        content.encode(&mut writer);
        Some(writer.into_bytes())
    }
}

trait EncodePage: Send + Sync {
    fn encode(&self, writer: &mut Writer);
    fn rows(&self) -> usize;
}

impl<R: Row> EncodePage for Slots<R> {
    fn encode(&self, writer: &mut Writer) {
        writer.seq(self, |writer, slot| {
            R::encode_key(&slot.key, writer);
            slot.row.encode(writer);
        });
    }

    fn rows(&self) -> usize {
        self.len()
    }
}

/// All rows of one kind.
#[derive(Debug)]
pub struct Table<R: Row> {
    pages: BTreeMap<R::Page, Arc<Slots<R>>>,
    changed: BTreeSet<R::Page>,
    index: R::Index,
    digest: u128,
    rows: u64,
    undo: Vec<(R::Key, Option<R>)>,
    scratch: Writer,
    /// Rows that were looked at or changed, for the tests that bound what commands cost.
    #[cfg(any(test, tidewall_mutants))]
    looked_at: std::sync::atomic::AtomicU64,
}

impl<R: Row> Default for Table<R> {
    fn default() -> Self {
        Self {
            pages: BTreeMap::new(),
            changed: BTreeSet::new(),
            index: R::Index::default(),
            digest: 0,
            rows: 0,
            undo: Vec::new(),
            scratch: Writer::new(),
            #[cfg(any(test, tidewall_mutants))]
            looked_at: std::sync::atomic::AtomicU64::new(0),
        }
    }
}

impl<R: Row> Table<R> {
    /// The row with this key.
    pub fn get(&self, key: &R::Key) -> Option<&R> {
        self.look();
        let slots = self.pages.get(&R::page(key))?;
        let at = slots.binary_search_by(|slot| slot.key.cmp(key)).ok()?;
        Some(&slots[at].row)
    }

    /// What is derived from the rows.
    pub fn derived(&self) -> &R::Index {
        &self.index
    }

    /// Number of rows.
    pub fn len(&self) -> u64 {
        self.rows
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Wrapping sum of the hashes of all rows.
    pub fn digest(&self) -> u128 {
        self.digest
    }

    /// Rows from `start` on, inclusive, in key order.
    pub fn range_from<'a>(
        &'a self,
        start: &R::Key,
    ) -> impl Iterator<Item = (&'a R::Key, &'a R)> + use<'a, R> {
        let start = start.clone();
        self.pages
            .range(R::page(&start)..)
            .flat_map(|(_, slots)| slots.iter())
            .inspect(|_| self.look())
            .skip_while(move |slot| slot.key < start)
            .map(|slot| (&slot.key, &slot.row))
    }

    /// All rows in key order.
    pub fn iter(&self) -> impl Iterator<Item = (&R::Key, &R)> {
        let slots = self.pages.values().flat_map(|slots| slots.iter());
        slots.inspect(|_| self.look()).map(|slot| (&slot.key, &slot.row))
    }

    /// Sets or removes a row and remembers how to take that back.
    pub fn set(&mut self, key: R::Key, row: Option<R>) {
        self.look();
        let old = self.replace(&key, row);
        self.undo.push((key, old));
    }

    /// Makes the changes since the last commit or rollback permanent.
    pub fn commit(&mut self) {
        self.undo.clear();
    }

    /// Takes the changes since the last commit or rollback back.
    pub fn rollback(&mut self) {
        while let Some((key, row)) = self.undo.pop() {
            self.replace(&key, row);
        }
    }

    /// Keys that changed since the last commit or rollback, in order of change.
    pub fn touched(&self) -> impl Iterator<Item = &R::Key> {
        self.undo.iter().map(|(key, _)| key)
    }

    /// References to the pages that changed since the last freeze.
    pub fn freeze(&mut self, into: &mut Vec<FrozenPage>) {
        for page in std::mem::take(&mut self.changed) {
            let content = self.pages.get(&page).map(|slots| Arc::clone(slots) as Arc<dyn EncodePage>);
            into.push(FrozenPage { table: R::TABLE, page: page_bytes::<R>(&page), content });
        }
    }

    /// References to all pages; does not count as a freeze.
    pub fn freeze_all(&self, into: &mut Vec<FrozenPage>) {
        for (page, slots) in &self.pages {
            let content = Some(Arc::clone(slots) as Arc<dyn EncodePage>);
            into.push(FrozenPage { table: R::TABLE, page: page_bytes::<R>(page), content });
        }
    }

    /// Pages that changed since the last freeze.
    pub fn changed_pages(&self) -> usize {
        self.changed.len()
    }

    /// Takes in the rows of a stored page.
    pub fn load(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        let mut reader = Reader::new(bytes);
        let rows = reader.seq(|reader| Ok((R::decode_key(reader)?, R::decode(reader)?)))?;
        reader.finish()?;
        for (key, row) in rows {
            self.replace(&key, Some(row));
        }
        self.changed.clear();
        Ok(())
    }

    fn replace(&mut self, key: &R::Key, row: Option<R>) -> Option<R> {
        let page = R::page(key);
        let new = row.map(|row| {
            let hash = self.hash(key, &row);
            Slot { key: key.clone(), row, hash }
        });
        let slots = Arc::make_mut(self.pages.entry(page.clone()).or_default());
        let found = match slots.last() {
            // Append-only tables add behind the last row.
            Some(last) if last.key < *key => Err(slots.len()),
            _ => slots.binary_search_by(|slot| slot.key.cmp(key)),
        };
        // The old row leaves the index before the new one enters it.
        if let Ok(at) = found {
            R::unindex(&mut self.index, key, &slots[at].row);
            self.digest = self.digest.wrapping_sub(slots[at].hash);
            self.rows -= 1;
        }
        if let Some(new) = &new {
            R::index(&mut self.index, key, &new.row);
            self.digest = self.digest.wrapping_add(new.hash);
            self.rows += 1;
        }
        if found.is_ok() || new.is_some() {
            self.changed.insert(page.clone());
        }
        let old = match (found, new) {
            (Ok(at), Some(new)) => Some(std::mem::replace(&mut slots[at], new)),
            (Ok(at), None) => {
                let old = slots.remove(at);
                // Rows that go from the middle leave no room behind that nobody uses.
                if slots.len() * 4 <= slots.capacity() {
                    slots.shrink_to(slots.len() * 2);
                }
                Some(old)
            }
            (Err(at), Some(new)) => {
                slots.insert(at, new);
                None
            }
            (Err(_), None) => None,
        };
        if slots.is_empty() {
            self.pages.remove(&page);
        }
        old.map(|slot| slot.row)
    }

    /// Counts a row that is looked at.
    fn look(&self) {
        #[cfg(any(test, tidewall_mutants))]
        self.looked_at.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }

    /// How many rows were looked at or changed.
    #[cfg(any(test, tidewall_mutants))]
    fn looked_at(&self) -> u64 {
        self.looked_at.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn hash(&mut self, key: &R::Key, row: &R) -> u128 {
        self.scratch.clear();
        self.scratch.key_u16(R::TABLE);
        R::encode_key(key, &mut self.scratch);
        row.encode(&mut self.scratch);
        xxhash_rust::xxh3::xxh3_128(self.scratch.as_slice())
    }
}

/// A table as those know it who do the same with all of them.
pub trait AnyTable {
    /// Its number.
    fn id(&self) -> TableId;
    /// Number of rows.
    fn len(&self) -> u64;
    /// Whether there are no rows.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Wrapping sum of the hashes of all rows.
    fn digest(&self) -> u128;
    /// Rows that changed since the last commit or rollback, with repetitions.
    fn touched_rows(&self) -> usize;
    /// Pages that changed since the last freeze.
    fn changed_pages(&self) -> usize;
    /// Makes the changes since the last commit or rollback permanent.
    fn commit(&mut self);
    /// Takes the changes since the last commit or rollback back.
    fn rollback(&mut self);
    /// References to the pages that changed since the last freeze.
    fn freeze(&mut self, into: &mut Vec<FrozenPage>);
    /// References to all pages; does not count as a freeze.
    fn freeze_all(&self, into: &mut Vec<FrozenPage>);
    /// Takes in the rows of a stored page.
    ///
    /// # Errors
    /// The page does not decode.
    fn load(&mut self, bytes: &[u8]) -> Result<(), DecodeError>;
    /// How many rows were looked at or changed.
    #[cfg(any(test, tidewall_mutants))]
    fn looked_at(&self) -> u64;
}

impl<R: Row> AnyTable for Table<R> {
    fn id(&self) -> TableId {
        R::TABLE
    }
    fn len(&self) -> u64 {
        self.rows
    }
    fn digest(&self) -> u128 {
        self.digest
    }
    fn touched_rows(&self) -> usize {
        self.undo.len()
    }
    fn changed_pages(&self) -> usize {
        self.changed.len()
    }
    fn commit(&mut self) {
        Self::commit(self);
    }
    fn rollback(&mut self) {
        Self::rollback(self);
    }
    fn freeze(&mut self, into: &mut Vec<FrozenPage>) {
        Self::freeze(self, into);
    }
    fn freeze_all(&self, into: &mut Vec<FrozenPage>) {
        Self::freeze_all(self, into);
    }
    fn load(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        Self::load(self, bytes)
    }
    #[cfg(any(test, tidewall_mutants))]
    fn looked_at(&self) -> u64 {
        Self::looked_at(self)
    }
}

fn page_bytes<R: Row>(page: &R::Page) -> Vec<u8> {
    let mut writer = Writer::new();
    R::encode_page(page, &mut writer);
    writer.into_bytes()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, Clone, PartialEq)]
    struct Number(u64);

    impl Row for Number {
        const TABLE: TableId = 200;
        type Key = u64;
        type Page = u64;
        type Index = BTreeMap<u64, u64>;
        fn page(key: &u64) -> u64 {
            key / 4
        }
        fn encode_page(page: &u64, writer: &mut Writer) {
            writer.key_u64(*page);
        }
        fn encode_key(key: &u64, writer: &mut Writer) {
            writer.key_u64(*key);
        }
        fn decode_key(reader: &mut Reader<'_>) -> Result<u64, DecodeError> {
            reader.key_u64()
        }
        fn encode(&self, writer: &mut Writer) {
            writer.u64(self.0);
        }
        fn decode(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
            reader.u64().map(Number)
        }
        fn index(index: &mut Self::Index, _: &u64, row: &Self) {
            *index.entry(row.0).or_default() += 1;
        }
        fn unindex(index: &mut Self::Index, _: &u64, row: &Self) {
            let count = index.get_mut(&row.0).unwrap();
            *count -= 1;
            if *count == 0 {
                index.remove(&row.0);
            }
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Set(u64, u64),
        Remove(u64),
        Commit,
        Rollback,
        Freeze,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..40u64, 0..5u64).prop_map(|(k, v)| Step::Set(k, v)),
            2 => (0..40u64).prop_map(Step::Remove),
            1 => Just(Step::Commit),
            1 => Just(Step::Rollback),
            1 => Just(Step::Freeze),
        ]
    }

    fn rebuilt(rows: &BTreeMap<u64, u64>) -> Table<Number> {
        let mut table = Table::default();
        for (key, value) in rows {
            table.set(*key, Some(Number(*value)));
        }
        table
    }

    proptest! {
        /// Against a plain map: contents, count, digest and index never depend on history, a rollback restores
        /// them, and the pages of all freezes laid over each other are the table.
        #[test]
        fn a_table_is_a_map(steps in proptest::collection::vec(step(), 0..120)) {
            let mut table = Table::<Number>::default();
            let (mut now, mut committed) = (BTreeMap::new(), BTreeMap::new());
            let mut stored: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
            let store = |table: &mut Table<Number>| {
                let mut frozen = Vec::new();
                table.freeze(&mut frozen);
                frozen
            };
            let keep = |frozen: Vec<FrozenPage>, stored: &mut BTreeMap<Vec<u8>, Vec<u8>>| {
                for page in frozen {
                    match page.encode() {
                        Some(bytes) => stored.insert(page.page().to_vec(), bytes),
                        None => stored.remove(page.page()),
                    };
                }
            };
            for step in steps {
                match step {
                    Step::Set(k, v) => { table.set(k, Some(Number(v))); now.insert(k, v); }
                    Step::Remove(k) => { table.set(k, None); now.remove(&k); }
                    Step::Commit => { table.commit(); committed = now.clone(); }
                    Step::Rollback => { table.rollback(); now = committed.clone(); }
                    Step::Freeze => {
                        // Changes after the freeze must not show in what was frozen.
                        let at_freeze = now.clone();
                        let frozen = store(&mut table);
                        table.set(1, Some(Number(9)));
                        table.rollback();
                        table.commit();
                        now = committed.clone();
                        prop_assert_eq!(table.len(), now.len() as u64);
                        keep(frozen, &mut stored);
                        let mut loaded = Table::<Number>::default();
                        for bytes in stored.values() { loaded.load(bytes).unwrap(); }
                        prop_assert_eq!(loaded.digest(), rebuilt(&at_freeze).digest());
                    }
                }
                let fresh = rebuilt(&now);
                prop_assert_eq!(table.digest(), fresh.digest());
                prop_assert_eq!(table.len(), now.len() as u64);
                prop_assert_eq!(table.derived(), fresh.derived());
                prop_assert!(table.iter().map(|(k, r)| (*k, r.0)).eq(now.iter().map(|(k, v)| (*k, *v))));
                prop_assert!(table.range_from(&17).map(|(k, _)| *k).eq(now.range(17..).map(|(k, _)| *k)));
            }
        }
    }

    #[test]
    fn the_digest_sees_key_value_and_table() {
        let digest = |k, v| rebuilt(&BTreeMap::from([(k, v)])).digest();
        assert_ne!(digest(1, 2), digest(1, 3));
        assert_ne!(digest(1, 2), digest(2, 2));
        assert_ne!(digest(1, 2), xxhash_rust::xxh3::xxh3_128(&[0, 0, 0, 0, 0, 0, 0, 1, 2]));
        assert_eq!(digest(1, 2), xxhash_rust::xxh3::xxh3_128(&[0, 200, 0, 0, 0, 0, 0, 0, 0, 1, 2]));
    }
}
