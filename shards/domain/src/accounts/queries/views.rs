//! Rows as answers show them. Translates; decides nothing. No view has a credential but the one that is asked for by name.

use tidewall_messages::accounts::{AccountView, ClaimingState, SessionView};

use super::super::model::*;

/// An account without its credential.
pub fn account(no: AccountNo, row: &AccountRow) -> AccountView {
    AccountView {
        account_id: account_id(no),
        subject: row.subject.clone(),
        key_id: row.key_id.to_vec(),
        personal: row.personal.iter().map(Into::into).collect(),
        roles: row.roles.0,
        revision: row.revision,
        created_at_ms: row.created_ms,
        email_hash: row.email.to_vec(),
    }
}

/// A session without its tokens.
pub fn session(key: SessionKey, row: &SessionRow) -> SessionView {
    SessionView {
        session_id: key.1.to_be_bytes().to_vec(),
        device: row.device.as_ref().map(Into::into),
        created_at_ms: row.created_ms,
        refreshed_at_ms: row.refreshed_ms,
    }
}

/// How the wish for an e-mail stands.
pub fn claiming(row: &ClaimingRow) -> ClaimingState {
    match row.wish {
        Wish::Open(_) => ClaimingState::Open,
        Wish::Done => ClaimingState::Done,
        Wish::Taken => ClaimingState::Taken,
        Wish::Undone => ClaimingState::Undone,
    }
}
