//! How often passwords were tried for an e-mail, whether it has an account or not: who asks must not learn that.

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{Row, TableId, table_id};

use super::{ATTEMPTS_MAX, ATTEMPTS_WINDOW_MS, Digest, Due, MODULE, decode_digest};

/// Attempts since the last log-in, within the window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttemptsRow {
    /// How many.
    pub count: u32,
    /// Steady time of the first one, milliseconds.
    pub since_ms: u64,
    /// Its timer could not be carried out, and nothing is to be done about it.
    pub stuck: bool,
}

impl AttemptsRow {
    /// Steady time from which on they do not count any more, milliseconds.
    pub fn until_ms(&self) -> u64 {
        self.since_ms.saturating_add(ATTEMPTS_WINDOW_MS)
    }

    /// Whether no more may be made at `now_ms` of steady time.
    pub fn are_exhausted(&self, now_ms: u64) -> bool {
        self.count >= ATTEMPTS_MAX && now_ms < self.until_ms()
    }

    fn timer_ms(&self) -> Option<u64> {
        (!self.stuck).then(|| self.until_ms())
    }
}

impl Row for AttemptsRow {
    const TABLE: TableId = table_id(MODULE, 4);
    keyed_by_email!();
    type Index = Due<Digest>;

    fn encode(&self, w: &mut Writer) {
        w.u32(self.count);
        w.u64(self.since_ms);
        w.bool(self.stuck);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { count: r.u32()?, since_ms: r.u64()?, stuck: r.bool()? })
    }
    fn index(index: &mut Due<Digest>, key: &Digest, row: &Self) {
        index.put(row.timer_ms(), *key);
    }
    fn unindex(index: &mut Due<Digest>, key: &Digest, row: &Self) {
        index.take(row.timer_ms(), *key);
    }
}
