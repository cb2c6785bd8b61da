//! Reads over the rows of the accounts module. Nothing here changes anything, and who may read is the gateway's business.

pub mod views;

use tidewall_messages::accounts::answer::Result as Found;
use tidewall_messages::accounts::command::Op as Asked;
use tidewall_messages::accounts::query::Op;
use tidewall_messages::accounts::{Answer, ClaimingView, Command, CredentialView, Query, SessionList};

use super::commands::Rejection;
use super::model::*;
use crate::Now;

/// Answers a query.
pub(super) fn query(state: &State, now: Now, query: &Query) -> Result<Answer, Rejection> {
    let missing = |what: &str| Rejection::AccountNotFound(what.to_owned());
    let found = match &query.op {
        // Who has no account is told the same as who has one, as far as it goes.
        Some(Op::GetCredential(asked)) => {
            let email = digest(&asked.email_hash)?;
            let attempts = state.attempts.get(&email);
            let exhausted = attempts.is_some_and(|row| row.are_exhausted(now.steady_ms));
            let found = state.account_of(&email);
            Found::Credential(match found {
                None => CredentialView { exhausted, ..Default::default() },
                Some((no, row)) => CredentialView {
                    account_id: account_id(no),
                    credential: Some((&row.credential).into()),
                    credential_revision: row.credential_revision,
                    key_id: row.key_id.to_vec(),
                    exhausted,
                },
            })
        }
        Some(Op::GetAccount(asked)) => {
            let (no, row) = state.account(&asked.account_id).ok_or_else(|| missing(&asked.account_id))?;
            Found::Account(views::account(no, row))
        }
        Some(Op::FindAccount(asked)) => {
            let found = state.account_of(&digest(&asked.email_hash)?);
            let (no, row) = found.ok_or_else(|| missing("with this e-mail"))?;
            Found::Account(views::account(no, row))
        }
        Some(Op::ListSessions(asked)) => {
            let (no, row) = state.account(&asked.account_id).ok_or_else(|| missing(&asked.account_id))?;
            let live = state.sessions_of(no).filter(|(_, session)| session.lives(now.steady_ms));
            let sessions = live.map(|(key, session)| views::session(key, session)).collect();
            Found::Sessions(SessionList { sessions, key_id: row.key_id.to_vec() })
        }
        Some(Op::GetClaiming(asked)) => {
            let id = asked.claim_id.as_slice().try_into().map(ClaimId::from_be_bytes);
            let id = id.map_err(|_| Rejection::invalid("claim_id", "has not 16 bytes"))?;
            let row = state.claimings.get(&id);
            Found::Claiming(ClaimingView { state: row.map(views::claiming).unwrap_or_default().into() })
        }
        None => return Err(Rejection::invalid("op", "the query asks for nothing that this build has")),
    };
    Ok(Answer { result: Some(found) })
}

fn digest(bytes: &[u8]) -> Result<Digest, Rejection> {
    bytes.try_into().map_err(|_| Rejection::invalid("email_hash", "has not 32 bytes"))
}

/// The rejection of an attempt that the log would certainly refuse as one too many.
pub(super) fn quick_no(state: &State, now: Now, command: &Command) -> Option<Rejection> {
    let Some(Asked::CountAttempt(attempt)) = &command.op else { return None };
    let email: Digest = attempt.email_hash.as_slice().try_into().ok()?;
    let row = state.attempts.get(&email).filter(|row| row.are_exhausted(now.steady_ms))?;
    let left_ms = row.until_ms().saturating_sub(now.steady_ms);
    Some(Rejection::TooManyAttempts(now.log_ms.saturating_add(left_ms)))
}
