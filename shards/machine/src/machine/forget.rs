//! Forgetting outcomes: what is too old, and under the byte cap what takes too much. What goes raises a watermark, so that nothing
//! that was forgotten is ever decided again. It depends on rows and on the entry alone, and takes a bounded number of steps.

use super::Machine;
use crate::dedupe::{DedupeRow, Large, ShareRow};
use crate::meta::MetaRow;
use crate::{REMEMBERED_MS, id_time_ms};

/// A share of the principals may have this part of all remembered bytes before its own are forgotten first.
const SHARE_PARTS: u64 = 8;

impl Machine {
    /// Forgets at most `limit` outcomes. Under the cap it is the oldest of the share that has the most, if that is more than its
    /// part, else the oldest of all.
    pub(super) fn forget(&mut self, row: &mut MetaRow, limit: usize) {
        let part = self.remembered_bytes_max / SHARE_PARTS;
        let mut large = Large::default();
        for _ in 0..limit {
            // Those of large shares went before their turn.
            let oldest = self.dedupe.range_from(&row.dedupe_first).next();
            row.dedupe_first = oldest.map_or(row.dedupe_next, |(number, _)| *number);
            let Some((_, oldest)) = oldest else { break };
            let aged = oldest.steady_ms.saturating_add(REMEMBERED_MS) < row.time.steady_ms;
            if !aged && row.dedupe_bytes <= self.remembered_bytes_max {
                break;
            }
            let share = if aged { None } else { large.next(self.dedupe.derived(), part) };
            let number = share.map_or(row.dedupe_first, |(_, number)| number);
            let Some(goes) = self.dedupe.get(&number).cloned() else { break };
            // An id from the future must not make a watermark refuse everybody of the present, nor keep the others from being
            // forgotten: it goes behind them, and its share is passed over.
            if id_time_ms(goes.request_id) >= row.time.log_ms() {
                let later = DedupeRow { steady_ms: row.time.steady_ms, ..goes };
                self.dedupe.set(number, None);
                self.dedupe.set(row.dedupe_next, Some(later));
                row.dedupe_next += 1;
                large.pass_over();
                continue;
            }
            row.dedupe_bytes = row.dedupe_bytes.saturating_sub(goes.cost());
            let before_ms = id_time_ms(goes.request_id) + 1;
            match share {
                Some((share, _)) => {
                    let known = self.shares.get(&share).map_or(0, |share| share.forgotten_before_ms);
                    self.shares.set(share, Some(ShareRow { forgotten_before_ms: known.max(before_ms) }));
                }
                None => row.forgotten_before_ms = row.forgotten_before_ms.max(before_ms),
            }
            self.dedupe.set(number, None);
        }
    }
}
