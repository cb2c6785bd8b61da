//! Accounts, and which e-mail is whose. A log-in changes neither.

use tidewall_messages::accounts as messages;

use crate::Roles;
use crate::codec::{DecodeError, Reader, Writer};
use crate::counter::Counter;
use crate::table::{Row, TableId, table_id};

use super::{AccountNo, Digest, MODULE, decode_digest};

/// How a password is checked; see the message of this name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Version of the secret that the gateways add.
    pub pepper: u32,
    /// Memory that argon2id takes.
    pub memory_kib: u32,
    /// Passes over it.
    pub passes: u32,
    /// Lanes of it.
    pub lanes: u32,
    /// Random for each password.
    pub salt: Vec<u8>,
    /// What comes out.
    pub hash: Vec<u8>,
}

impl From<&messages::Credential> for Credential {
    fn from(message: &messages::Credential) -> Self {
        let messages::Credential { pepper, memory_kib, passes, lanes, salt, hash } = message.clone();
        Self { pepper, memory_kib, passes, lanes, salt, hash }
    }
}

impl From<&Credential> for messages::Credential {
    fn from(credential: &Credential) -> Self {
        let Credential { pepper, memory_kib, passes, lanes, salt, hash } = credential.clone();
        Self { pepper, memory_kib, passes, lanes, salt, hash }
    }
}

/// A personal field: its number, and nonce with ciphertext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Personal {
    /// Which field.
    pub field: u32,
    /// Nonce and ciphertext.
    pub ciphertext: Vec<u8>,
}

impl Personal {
    pub(super) fn encode(&self, w: &mut Writer) {
        w.u32(self.field);
        w.bytes(&self.ciphertext);
    }

    pub(super) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { field: r.u32()?, ciphertext: r.bytes()?.to_vec() })
    }
}

impl From<&messages::Sealed> for Personal {
    fn from(sealed: &messages::Sealed) -> Self {
        Self { field: sealed.field, ciphertext: sealed.ciphertext.clone() }
    }
}

impl From<&Personal> for messages::Sealed {
    fn from(personal: &Personal) -> Self {
        Self { field: personal.field, ciphertext: personal.ciphertext.clone() }
    }
}

/// An account.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRow {
    /// Subject of its tokens: its resource name.
    pub subject: String,
    /// Keyed hash of the normalised e-mail.
    pub email: Digest,
    /// Key of the person in the keyring.
    pub key_id: [u8; 16],
    /// Personal fields, by number.
    pub personal: Vec<Personal>,
    /// How its password is checked.
    pub credential: Credential,
    /// Raised by one with each new password.
    pub credential_revision: u64,
    /// What it may.
    pub roles: Roles,
    /// Raised by one with each change of this row.
    pub revision: u64,
    /// Log time of its registration, milliseconds.
    pub created_ms: u64,
}

impl Row for AccountRow {
    const TABLE: TableId = table_id(MODULE, 1);
    keyed_by_account!(16);
    type Index = ();

    fn encode(&self, w: &mut Writer) {
        w.str(&self.subject);
        w.raw(&self.email);
        w.raw(&self.key_id);
        w.seq(&self.personal, |w, personal| personal.encode(w));
        let Credential { pepper, memory_kib, passes, lanes, salt, hash } = &self.credential;
        for number in [pepper, memory_kib, passes, lanes] {
            w.u32(*number);
        }
        w.bytes(salt);
        w.bytes(hash);
        w.u64(self.credential_revision);
        w.u32(self.roles.0);
        w.u64(self.revision);
        w.u64(self.created_ms);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            subject: r.str()?.into(),
            email: decode_digest(r)?,
            key_id: r.raw(16)?.try_into().map_err(|_| DecodeError::Truncated)?,
            personal: r.seq(Personal::decode)?,
            credential: Credential {
                pepper: r.u32()?,
                memory_kib: r.u32()?,
                passes: r.u32()?,
                lanes: r.u32()?,
                salt: r.bytes()?.to_vec(),
                hash: r.bytes()?.to_vec(),
            },
            credential_revision: r.u64()?,
            roles: Roles(r.u32()?),
            revision: r.u64()?,
            created_ms: r.u64()?,
        })
    }
}

/// Whose an e-mail is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EmailRow(pub AccountNo);

impl Row for EmailRow {
    const TABLE: TableId = table_id(MODULE, 2);
    keyed_by_email!();
    type Index = ();

    fn encode(&self, w: &mut Writer) {
        w.u64(self.0);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.u64().map(Self)
    }
}

/// Counters of the group.
pub type CounterRow = Counter<{ table_id(MODULE, 5) }>;
