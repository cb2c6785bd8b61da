//! Accounts in the words of the public API, as far as `GetOutcome` and `Watch` show them.

use prost::Message as _;
use tidewall_messages::{Change, accounts};
use tidewall_proto::v1;

use super::{Decider, mismatch};
use crate::errors::ApiError;
use crate::names;

/// What the accounts module decided for a request of somebody with a token. Others have no principal to ask as: they repeat.
pub(super) fn show(
    _: Decider<'_>,
    outcome: &[u8],
) -> Result<Option<v1::get_outcome_response::Result>, ApiError> {
    use accounts::outcome::Result as Done;
    use v1::get_outcome_response::Result as Shown;
    match accounts::Outcome::decode(outcome).map_err(|_| mismatch())?.result {
        Some(Done::Account(view)) => Ok(Some(Shown::ChangedAccount(view.subject))),
        // Remembered under an earlier apply version: it was done, and there is nothing to show of it.
        Some(Done::SessionEnded(_)) => Ok(None),
        // It is under way, or has ended: repeating the request tells which.
        Some(Done::Claiming(_)) => Ok(None),
        _ => Err(mismatch()),
    }
}

/// What has happened to an account.
pub(super) fn change(region: &str, change: &Change) -> Result<Option<v1::Change>, ApiError> {
    use accounts::change::What;
    use v1::ChangeKind as Kind;
    use v1::change::What as Shown;
    let id = change.row.as_str();
    let told = accounts::Change::decode(change.payload.as_slice()).map_err(|_| mismatch())?;
    let (kind, account_revision, what) = match told.what {
        Some(What::Saved(saved)) => (Kind::AccountSaved, saved.revision, None),
        Some(What::EndedSessionId(session)) => {
            (Kind::SessionEnded, 0, Some(Shown::EndedSession(names::session(region, id, &session))))
        }
        None => return Ok(None),
    };
    let account = names::account(region, id);
    Ok(Some(v1::Change { kind: kind.into(), account, account_revision, what, ..v1::Change::default() }))
}
