//! An e-mail belongs to one account in all regions.
//!
//! The group that an e-mail's hash selects is its *keeper*: it has one claim for each e-mail. Whoever wants the e-mail, for a new account
//! or for one that changes its own, claims it there under an id that no other wish has.
//!
//! | step | action | undo |
//! |---|---|---|
//! | 1 | home: the wish is noted, `Claim` is sent | the wish ends as `Undone` or `Taken`, `Release` is sent |
//! | 2 | keeper: the claim is granted, `Claimed` is sent | the claim goes |
//! | 3, the pivot | home: the account has the e-mail, `Confirm` is sent, and `Release` for the e-mail before | none: only retried |
//! | 4 | keeper: the claim is confirmed | none |
//!
//! Every step is idempotent by its row. Home gives up a wish that is not answered within [`CLAIMING_MS`]; the keeper asks for what is not
//! confirmed within [`CLAIM_ASKED_AFTER_MS`], so that no claim stays that nobody wants. When one of the two went back to an earlier
//! state, both say again what they have ([`reconcile`]), by ids of claims. **Never here:** a decision by the order of messages alone.

use tidewall_messages::accounts as messages;
use tidewall_messages::accounts::message::Op;
use tidewall_mutant::{Mutant, active};

use crate::module::{Fault, Step};
use crate::outbox::{GroupNo, Outbox};
use crate::{Context, incarnation};

use super::super::commands::Event;
use super::super::model::*;

/// Rows that a step of [`reconcile`] looks at, at most.
const RECONCILED_MAX: usize = 128;

/// The most rows that a message or a timer of the saga costs.
pub(in crate::accounts) const ROWS_MAX: u64 = 64;
/// The most rows that a step of [`reconcile`] costs.
pub(in crate::accounts) const RECONCILE_ROWS_MAX: u64 = 3 * (RECONCILED_MAX as u64 + 32);

/// What is said between home and keeper, and what room is reserved for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Home wants an e-mail.
    Claim,
    /// Home has it, and makes use of it.
    Confirm,
    /// Home does not want it.
    Release,
    /// The keeper grants it.
    Claimed,
    /// The keeper does not.
    Taken,
    /// The keeper has given it to somebody else, although home has made use of it.
    Lost,
    /// The keeper asks whether it is wanted.
    Ask,
    /// Home answers that.
    Held(messages::Standing),
}

/// Step 1: an e-mail is wanted.
pub(in crate::accounts) fn begin(
    state: &State,
    context: &Context,
    email: Digest,
    keeper: GroupNo,
    wanted: Wanted,
) -> (ClaimId, Vec<Event>) {
    let number = state.counter(COUNTER_CLAIMS) + 1;
    let id = ClaimId::from(context.incarnation) << 64 | ClaimId::from(number);
    let until_ms = context.steady_ms.saturating_add(CLAIMING_MS);
    let row = ClaimingRow { email, keeper, wish: Wish::Open(wanted), until_ms, stuck: false };
    (id, vec![Event::Wished { id, number, row }, said(keeper, email, id, Said::Claim)])
}

fn said(to: GroupNo, email: Digest, id: ClaimId, said: Said) -> Event {
    Event::Said { to, email, id, said }
}

/// A wish ends.
fn ended(context: &Context, id: ClaimId, row: &ClaimingRow, wish: Wish) -> Event {
    let until_ms = context.steady_ms.saturating_add(CLAIMING_KNOWN_MS);
    Event::WishEnded { id, row: ClaimingRow { wish, until_ms, ..row.clone() } }
}

/// What a message leads to.
///
/// # Errors
/// It names no claim.
pub(in crate::accounts) fn receive(
    state: &State,
    context: &Context,
    from: GroupNo,
    message: &messages::Message,
) -> Result<Vec<Event>, Fault> {
    let parse = |email: &[u8], id: &[u8]| -> Result<(Digest, ClaimId), Fault> {
        let unsound = || Fault(format!("a message of group {from} names no claim"));
        let id = id.try_into().map_err(|_| unsound())?;
        Ok((email.try_into().map_err(|_| unsound())?, ClaimId::from_be_bytes(id)))
    };
    macro_rules! claim {
        ($said:ident) => {
            parse(&$said.email_hash, &$said.claim_id)?
        };
    }
    match &message.op {
        Some(Op::Claim(said)) => Ok(keep(state, context, from, claim!(said))),
        Some(Op::Confirm(said)) => Ok(confirm(state, from, claim!(said))),
        Some(Op::Release(said)) => Ok(let_go(state, from, claim!(said))),
        Some(Op::Held(said)) => Ok(answered(state, context, from, claim!(said), said.standing())),
        Some(Op::Claimed(said)) => Ok(granted(state, context, from, claim!(said))),
        Some(Op::Taken(said)) if said.confirmed => Ok(lost(state, from, claim!(said))),
        Some(Op::Taken(said)) => Ok(taken(state, context, claim!(said).1)),
        Some(Op::Ask(said)) => Ok(asked(state, from, claim!(said))),
        None => Err(Fault(format!("a message of group {from} says nothing that this build knows"))),
    }
}

/// Step 2, at the keeper: who comes first has the e-mail.
fn keep(state: &State, context: &Context, from: GroupNo, (email, id): (Digest, ClaimId)) -> Vec<Event> {
    let granted = said(from, email, id, Said::Claimed);
    match state.claims.get(&email) {
        None => {
            let asked_ms = context.steady_ms.saturating_add(CLAIM_ASKED_AFTER_MS);
            let row = ClaimRow { owner: from, id, kept: Kept::Granted(asked_ms) };
            vec![Event::Kept { email, row: Some(row) }, granted]
        }
        Some(row) if (row.owner, row.id) == (from, id) || active(Mutant::EmailGrantedTwice) => vec![granted],
        Some(_) => vec![said(from, email, id, Said::Taken)],
    }
}

/// Undo of step 2, at the keeper.
fn let_go(state: &State, from: GroupNo, (email, id): (Digest, ClaimId)) -> Vec<Event> {
    match state.claims.get(&email) {
        Some(row) if (row.owner, row.id) == (from, id) && !active(Mutant::ClaimStays) => {
            vec![Event::Kept { email, row: None }]
        }
        _ => Vec::new(),
    }
}

/// Step 3, at home: the account gets the e-mail, or the keeper hears that nobody wants it any more.
fn granted(state: &State, context: &Context, from: GroupNo, (email, id): (Digest, ClaimId)) -> Vec<Event> {
    let wish = state.claimings.get(&id).filter(|row| (row.keeper, row.email) == (from, email));
    let Some((row, wanted)) = wish.and_then(|row| match &row.wish {
        Wish::Open(wanted) => Some((row, wanted)),
        _ => None,
    }) else {
        // A repetition, or too late.
        let said = match state.account_by_claim(&email, from, id) {
            Some(_) => Said::Confirm,
            None => Said::Release,
        };
        return vec![self::said(from, email, id, said)];
    };
    let claimed = |account| Event::Claimed { account, row: ClaimedRow { keeper: from, id } };
    let confirm = said(from, email, id, Said::Confirm);
    if let Some(EmailRow(account)) = state.emails.get(&email) {
        // An account of this region has the e-mail, from before there were claims or because the keeper has lost its claim: now it has
        // this one, and who else wanted the e-mail comes too late.
        let own = matches!(wanted, Wanted::Email { account: wishes, .. } if wishes == account);
        let wish = if own { Wish::Done } else { Wish::Taken };
        return vec![claimed(*account), confirm, ended(context, id, row, wish)];
    }
    match wanted {
        Wanted::Account(account_row) => {
            let account = next_account(state, context);
            let subject = format!("{}{}", account_row.subject, account_id(account));
            let account_row = AccountRow { subject, created_ms: context.now_ms, ..(**account_row).clone() };
            let registered = Event::Registered { account, row: account_row };
            vec![registered, claimed(account), confirm, ended(context, id, row, Wish::Done)]
        }
        Wanted::Email { account, sealed } => {
            let Some(old) = state.accounts.get(account) else {
                return vec![said(from, email, id, Said::Release), ended(context, id, row, Wish::Undone)];
            };
            let mut personal = old.personal.clone();
            personal.retain(|field| field.field != sealed.field);
            personal.insert(0, sealed.clone());
            personal.sort_by_key(|field| field.field);
            let changed = AccountRow { email, personal, revision: old.revision + 1, ..old.clone() };
            let mut events = vec![Event::EmailChanged { account: *account, old: old.email, row: changed }];
            if let Some(before) = state.claimed.get(account) {
                events.push(said(before.keeper, old.email, before.id, Said::Release));
            }
            events.extend([claimed(*account), confirm, ended(context, id, row, Wish::Done)]);
            events
        }
    }
}

/// The number of the next account. Those of an incarnation that was lost are not given again.
pub(in crate::accounts) fn next_account(state: &State, context: &Context) -> AccountNo {
    incarnation::first_number(context.incarnation).max(state.counter(COUNTER_ACCOUNTS) + 1)
}

/// Undo of step 1, at home: somebody else has the e-mail. Of a wish that has ended it says nothing: it may be an old answer.
fn taken(state: &State, context: &Context, id: ClaimId) -> Vec<Event> {
    let wish = state.claimings.get(&id).filter(|row| matches!(row.wish, Wish::Open(_)));
    wish.map(|row| vec![ended(context, id, row, Wish::Taken)]).unwrap_or_default()
}

/// At home: the keeper went back to a state in which somebody else had the e-mail, or has lost the claim and given it away. No rule says
/// who of the two is right.
fn lost(state: &State, from: GroupNo, (email, id): (Digest, ClaimId)) -> Vec<Event> {
    let lost = state.account_by_claim(&email, from, id);
    // The keeper may have learnt of the claim anew meanwhile: it is not to keep what nobody knows of.
    let events =
        |account| vec![Event::ClaimLost { account, keeper: from }, said(from, email, id, Said::Release)];
    lost.map(events).unwrap_or_default()
}

/// Undo of step 1, at home: the keeper has not answered in time.
pub(in crate::accounts) fn give_up(context: &Context, id: ClaimId, row: &ClaimingRow) -> Vec<Event> {
    match row.wish {
        Wish::Open(_) => {
            vec![said(row.keeper, row.email, id, Said::Release), ended(context, id, row, Wish::Undone)]
        }
        Wish::Done | Wish::Taken | Wish::Undone => vec![Event::WishForgotten { id }],
    }
}

/// Step 4, at the keeper. What it does not know any more it learns anew. Which of its own claims an e-mail has is home's to say.
fn confirm(state: &State, from: GroupNo, (email, id): (Digest, ClaimId)) -> Vec<Event> {
    match state.claims.get(&email) {
        Some(row) if row.owner != from => vec![said(from, email, id, Said::Lost)],
        Some(ClaimRow { kept: Kept::Confirmed, id: known, .. }) if *known == id => Vec::new(),
        _ => vec![Event::Kept { email, row: Some(ClaimRow { owner: from, id, kept: Kept::Confirmed }) }],
    }
}

/// At the keeper: a claim that is not confirmed is asked for.
pub(in crate::accounts) fn ask(email: Digest, row: &ClaimRow) -> Vec<Event> {
    let asked = Event::Kept { email, row: Some(ClaimRow { kept: Kept::Asked, ..*row }) };
    vec![asked, said(row.owner, email, row.id, Said::Ask)]
}

/// At home: whether a claim is wanted.
fn asked(state: &State, from: GroupNo, (email, id): (Digest, ClaimId)) -> Vec<Event> {
    let open = state.claimings.get(&id).is_some_and(|row| matches!(row.wish, Wish::Open(_)));
    let standing = match state.account_by_claim(&email, from, id) {
        Some(_) => messages::Standing::Confirmed,
        None if open => messages::Standing::Open,
        None => messages::Standing::Unspecified,
    };
    vec![said(from, email, id, Said::Held(standing))]
}

/// At the keeper: what home has answered.
fn answered(
    state: &State,
    context: &Context,
    from: GroupNo,
    (email, id): (Digest, ClaimId),
    standing: messages::Standing,
) -> Vec<Event> {
    let Some(row) = state.claims.get(&email).filter(|row| (row.owner, row.id) == (from, id)) else {
        return Vec::new();
    };
    let kept = match standing {
        messages::Standing::Confirmed => Kept::Confirmed,
        messages::Standing::Open => Kept::Granted(context.steady_ms.saturating_add(CLAIM_ASKED_AFTER_MS)),
        messages::Standing::Unspecified => return vec![Event::Kept { email, row: None }],
    };
    vec![Event::Kept { email, row: Some(ClaimRow { kept, ..*row }) }]
}

/// Parts of what is said once more, in this order.
const WISHES: u8 = 1;
const HELD: u8 = 2;
const KEPT: u8 = 3;

/// Says once more to a group what concerns it: what is wanted of it, what its claims are used for, and what it has claimed.
pub(in crate::accounts) fn reconcile(state: &State, peer: GroupNo, after: &[u8]) -> Step<Event> {
    let (part, key) = after.split_first().map_or((WISHES, &[][..]), |(part, key)| (*part, key));
    let mut events = Vec::new();
    let mut last = None;
    let mut looked = 0;
    match part {
        WISHES => {
            let first = key.try_into().map_or(0, |key| ClaimId::from_be_bytes(key).saturating_add(1));
            for (id, row) in state.claimings.range_from(&first).take(RECONCILED_MAX) {
                if row.keeper == peer && matches!(row.wish, Wish::Open(_)) {
                    events.push(said(peer, row.email, *id, Said::Claim));
                }
                (last, looked) = (Some(id.to_be_bytes().to_vec()), looked + 1);
            }
        }
        HELD => {
            let first = key.try_into().map_or(0, |key| AccountNo::from_be_bytes(key).saturating_add(1));
            for (account, row) in state.claimed.range_from(&first).take(RECONCILED_MAX) {
                if row.keeper == peer
                    && let Some(found) = state.accounts.get(account)
                {
                    events.push(said(peer, found.email, row.id, Said::Confirm));
                }
                (last, looked) = (Some(account.to_be_bytes().to_vec()), looked + 1);
            }
        }
        _ => {
            let first: Digest = key.try_into().unwrap_or_default();
            let rows =
                state.claims.range_from(&first).skip_while(|(email, _)| !key.is_empty() && **email == first);
            for (email, row) in rows.take(RECONCILED_MAX) {
                if row.owner == peer {
                    events.extend(ask(*email, row));
                }
                (last, looked) = (Some(email.to_vec()), looked + 1);
            }
        }
    }
    let next = match last {
        Some(key) if looked == RECONCILED_MAX => Some([&[part][..], &key].concat()),
        _ if part < KEPT => Some(vec![part + 1]),
        _ => None,
    };
    Step { events, next }
}

/// What an event sends, and the room that it needs.
pub(in crate::accounts) fn send(event: &Event, outbox: &mut Outbox) {
    match event {
        Event::Wished { row, .. } => outbox.begin(row.keeper),
        Event::WishEnded { row, .. } => outbox.end(row.keeper),
        Event::ClaimLost { account, keeper } => outbox.notice(format!(
            "A5: group {keeper} has given the e-mail of account {} to somebody else",
            account_id(*account)
        )),
        Event::Said { to, email, id, said } => {
            let (email_hash, claim_id) = (email.to_vec(), id.to_be_bytes().to_vec());
            let message: messages::Message = match said {
                Said::Claim => messages::Claim { email_hash, claim_id }.into(),
                Said::Confirm => messages::Confirm { email_hash, claim_id }.into(),
                Said::Release => messages::Release { email_hash, claim_id }.into(),
                Said::Claimed => messages::Claimed { email_hash, claim_id }.into(),
                Said::Taken => messages::Taken { email_hash, claim_id, confirmed: false }.into(),
                Said::Lost => messages::Taken { email_hash, claim_id, confirmed: true }.into(),
                Said::Ask => messages::Ask { email_hash, claim_id }.into(),
                Said::Held(standing) => {
                    messages::Held { email_hash, claim_id, standing: (*standing).into() }.into()
                }
            };
            // Home names the claim: one of this number may be another one's, if this is the keeper who speaks.
            let saga = match said {
                Said::Claim | Said::Confirm | Said::Release | Said::Held(_) => *id,
                Said::Claimed | Said::Taken | Said::Lost | Said::Ask => !*id,
            };
            outbox.send(*to, saga, &message);
        }
        _ => {}
    }
}
