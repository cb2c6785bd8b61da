//! Turns events into rows, and checks the invariants of what they touched. It decides nothing: whatever does not fit is a
//! [`Fault`], and the caller takes the changes back.

use crate::counter::Counter;
use crate::module::Fault;
use crate::{Context, Roles};

use super::super::model::*;
use super::Event;

/// Changes the rows as an event says.
pub(in crate::accounts) fn evolve(state: &mut State, _: &Context, event: &Event) -> Result<(), Fault> {
    match event {
        Event::Registered { account, row } => {
            if state.accounts.get(account).is_some() || state.emails.get(&row.email).is_some() {
                return Err(Fault(format!("A1: account {account} or its e-mail is taken")));
            }
            state.counters.set(COUNTER_ACCOUNTS, Some(Counter(*account)));
            state.emails.set(row.email, Some(EmailRow(*account)));
            state.accounts.set(*account, Some(row.clone()));
        }
        Event::AccountChanged { account, row } => account_changed(state, *account, row)?,
        Event::AttemptCounted { email, row } => state.attempts.set(*email, Some(*row)),
        Event::AttemptsForgotten { email } => state.attempts.set(*email, None),
        Event::SessionGranted { session, row } => {
            if state.sessions.get(session).is_some_and(|old| old.generation >= row.generation) {
                return Err(Fault(format!(
                    "A3: session {session:?} is of generation {} or later",
                    row.generation
                )));
            }
            state.sessions.set(*session, Some(row.clone()));
        }
        Event::SessionEnded { session } => {
            if state.sessions.get(session).is_none() {
                return Err(Fault(format!("session {session:?} is missing")));
            }
            state.sessions.set(*session, None);
        }
        Event::Wished { id, number, row } => {
            state.counters.set(COUNTER_CLAIMS, Some(Counter(*number)));
            state.claimings.set(*id, Some(row.clone()));
        }
        Event::WishEnded { id, row } => state.claimings.set(*id, Some(row.clone())),
        Event::WishForgotten { id } => state.claimings.set(*id, None),
        Event::Claimed { account, row } => state.claimed.set(*account, Some(*row)),
        Event::ClaimLost { account, .. } => state.claimed.set(*account, None),
        Event::EmailChanged { account, old, row } => {
            if state.emails.get(old) != Some(&EmailRow(*account)) || state.emails.get(&row.email).is_some() {
                return Err(Fault(format!("A1: the e-mail of account {account} cannot be changed")));
            }
            state.emails.set(*old, None);
            state.emails.set(row.email, Some(EmailRow(*account)));
            state.accounts.set(*account, Some(row.clone()));
        }
        Event::Kept { email, row } => state.claims.set(*email, *row),
        Event::Said { .. } => {}
    }
    Ok(())
}

fn account_changed(state: &mut State, account: AccountNo, row: &AccountRow) -> Result<(), Fault> {
    let old = state.accounts.get(&account).ok_or_else(|| Fault(format!("account {account} is missing")))?;
    let (was, is) = (old.roles.contains(Roles::ADMIN), row.roles.contains(Roles::ADMIN));
    if was != is {
        let admins = state.counter(COUNTER_ADMINS);
        let admins = if is { admins.checked_add(1) } else { admins.checked_sub(1) };
        let admins = admins.ok_or_else(|| Fault("the number of admins does not fit".into()))?;
        state.counters.set(COUNTER_ADMINS, Some(Counter(admins)));
    }
    state.accounts.set(account, Some(row.clone()));
    Ok(())
}

/// Checks the invariants of what events touched. A3 is checked where sessions are written.
pub(in crate::accounts) fn check(state: &State, events: &[Event]) -> Result<(), Fault> {
    for event in events {
        match event {
            Event::Registered { account, .. }
            | Event::AccountChanged { account, .. }
            | Event::EmailChanged { account, .. }
            | Event::Claimed { account, .. } => check_account(state, *account)?,
            Event::SessionGranted { session, .. } => check_sessions(state, session.0)?,
            Event::AttemptCounted { .. }
            | Event::AttemptsForgotten { .. }
            | Event::SessionEnded { .. }
            | Event::Wished { .. }
            | Event::WishEnded { .. }
            | Event::WishForgotten { .. }
            | Event::ClaimLost { .. }
            | Event::Kept { .. }
            | Event::Said { .. } => {}
        }
    }
    Ok(())
}

fn check_account(state: &State, account: AccountNo) -> Result<(), Fault> {
    let row =
        state.accounts.get(&account).ok_or_else(|| Fault(format!("A1: account {account} has no row")))?;
    if state.emails.get(&row.email) != Some(&EmailRow(account)) {
        return Err(Fault(format!("A1: the e-mail of account {account} is not its own")));
    }
    if !row.roles.contains(Roles::USER) || !ROLES.contains(row.roles) {
        return Err(Fault(format!("A4: account {account} has {:?}", row.roles)));
    }
    Ok(())
}

fn check_sessions(state: &State, account: AccountNo) -> Result<(), Fault> {
    if state.accounts.get(&account).is_none() {
        return Err(Fault(format!("A2: account {account} of a session has no row")));
    }
    let sessions = state.sessions_of(account).take(SESSIONS_MAX + 1).count();
    if sessions > SESSIONS_MAX {
        return Err(Fault(format!("A2: account {account} has more than {SESSIONS_MAX} sessions")));
    }
    Ok(())
}
