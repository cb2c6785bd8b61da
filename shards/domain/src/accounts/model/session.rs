//! Sessions: what a refresh token is checked against. The rows have hashes of tokens, never a token.

use crate::codec::{DecodeError, Reader, Writer};
use crate::table::{Row, TableId, table_id};

use super::{AccountNo, Digest, Due, MODULE, Personal, SESSION_IDLE_MS, SESSION_MAX_MS, decode_digest};

/// (account, session). The session's half is random.
pub type SessionKey = (AccountNo, u128);

/// A session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRow {
    /// Of the token that is valid now; raised by one with each refresh.
    pub generation: u64,
    /// Hash of that token.
    pub token: Digest,
    /// Hash of the one before.
    pub previous: Digest,
    /// Name of the device, encrypted.
    pub device: Option<Personal>,
    /// Log time of the log-in, milliseconds.
    pub created_ms: u64,
    /// Log time of the last refresh, milliseconds.
    pub refreshed_ms: u64,
    /// Steady time of the log-in, milliseconds.
    pub began_steady_ms: u64,
    /// Steady time of the last refresh, milliseconds.
    pub refreshed_steady_ms: u64,
    /// Its timer could not be carried out: it has ended, and nothing is to be done about it.
    pub stuck: bool,
}

impl SessionRow {
    /// Steady time from which on it has ended, milliseconds.
    pub fn ends_ms(&self) -> u64 {
        let idle = self.refreshed_steady_ms.saturating_add(SESSION_IDLE_MS);
        idle.min(self.began_steady_ms.saturating_add(SESSION_MAX_MS))
    }

    /// Whether it has not ended by `now_ms` of steady time, whether its timer has fired or not.
    pub fn lives(&self, now_ms: u64) -> bool {
        !self.stuck && now_ms < self.ends_ms()
    }

    fn timer_ms(&self) -> Option<u64> {
        (!self.stuck).then(|| self.ends_ms())
    }
}

impl Row for SessionRow {
    const TABLE: TableId = table_id(MODULE, 3);
    type Key = SessionKey;
    type Page = u64;
    type Index = Due<SessionKey>;

    fn page(key: &SessionKey) -> u64 {
        key.0 >> 3
    }
    fn encode_page(page: &u64, w: &mut Writer) {
        w.key_u64(*page);
    }
    fn encode_key(key: &SessionKey, w: &mut Writer) {
        w.key_u64(key.0);
        w.u128(key.1);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<SessionKey, DecodeError> {
        Ok((r.key_u64()?, r.u128()?))
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.generation);
        w.raw(&self.token);
        w.raw(&self.previous);
        w.option(self.device.as_ref(), |w, device| device.encode(w));
        for time in [self.created_ms, self.refreshed_ms, self.began_steady_ms, self.refreshed_steady_ms] {
            w.u64(time);
        }
        w.bool(self.stuck);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            generation: r.u64()?,
            token: decode_digest(r)?,
            previous: decode_digest(r)?,
            device: r.option(Personal::decode)?,
            created_ms: r.u64()?,
            refreshed_ms: r.u64()?,
            began_steady_ms: r.u64()?,
            refreshed_steady_ms: r.u64()?,
            stuck: r.bool()?,
        })
    }
    fn index(index: &mut Due<SessionKey>, key: &SessionKey, row: &Self) {
        index.put(row.timer_ms(), *key);
    }
    fn unindex(index: &mut Due<SessionKey>, key: &SessionKey, row: &Self) {
        index.take(row.timer_ms(), *key);
    }
}
