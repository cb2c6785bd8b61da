//! Accounts in the words of the public API, as far as `GetOutcome` shows them.

use prost::Message as _;
use tidewall_messages::accounts;
use tidewall_proto::v1;

use super::{Decider, mismatch};
use crate::errors::ApiError;

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
