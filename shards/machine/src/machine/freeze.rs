//! What a checkpoint or a snapshot takes of a machine between two entries. It changes no row.

use tidewall_domain::table::FrozenPage;

use super::{Frozen, Machine};

impl Machine {
    /// Index and digest at the end of the last entry: a pair that replicas can compare, also while an entry is open.
    pub fn settled(&self) -> (u64, u128) {
        self.settled
    }

    /// Pages that changed since the last freeze. Only between entries.
    pub fn freeze(&mut self) -> Frozen {
        if std::mem::take(&mut self.replaced) {
            let frozen = self.freeze_all();
            self.clear_changes();
            return frozen;
        }
        let mut pages = Vec::new();
        self.tables_mut(&mut |table| table.freeze(&mut pages));
        self.frozen(pages, false)
    }

    /// All pages. Only between entries. Does not count as a freeze.
    pub fn freeze_all(&self) -> Frozen {
        let mut pages = Vec::new();
        self.tables(&mut |table| table.freeze_all(&mut pages));
        self.frozen(pages, true)
    }

    /// A freeze was lost before it was stored: the next one carries everything.
    pub fn freeze_lost(&mut self) {
        self.replaced = true;
    }

    pub(super) fn clear_changes(&mut self) {
        let mut dropped = Vec::new();
        self.tables_mut(&mut |table| table.freeze(&mut dropped));
    }

    pub(super) fn frozen(&self, pages: Vec<FrozenPage>, full: bool) -> Frozen {
        let frozen = Frozen {
            head: self.head.clone(),
            digest: self.digest(),
            incarnation: self.incarnation(),
            apply_version: self.apply_version(),
            rows: self.rows(),
            full,
            pages,
        };
        #[cfg(tidewall_mutants)]
        let frozen = super::mutants::frozen(frozen);
        frozen
    }
}
