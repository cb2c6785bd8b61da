//! Decides what a command leads to: events and an outcome, or a rejection. It only reads rows, and never changes one.

use std::collections::BTreeMap;

use tidewall_messages::accounts::command::Op;
use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, Command, Outcome};

use tidewall_mutant::{Mutant, active};

use crate::{Caller, Context, Roles};

use super::super::CLAIMS_EMAILS;
use super::super::model::*;
use super::super::queries::views;
use super::super::sagas::email;
use super::{Event, Rejection};

/// What a command leads to.
type Decision = Result<(Vec<Event>, Outcome), Rejection>;

/// Decides a command.
pub(in crate::accounts) fn decide(
    state: &State,
    context: &Context,
    caller: Caller<'_>,
    command: &Command,
) -> Decision {
    let case = Case { state, context, caller };
    match &command.op {
        Some(Op::Register(register)) => case.register(register),
        Some(Op::CountAttempt(attempt)) => case.count_attempt(&attempt.email_hash),
        Some(Op::StartSession(start)) => case.start_session(start),
        Some(Op::RefreshSession(refresh)) => case.refresh(refresh),
        Some(Op::EndSession(end)) => case.end(end),
        Some(Op::UpdateProfile(update)) => case.update_profile(update),
        Some(Op::ChangePassword(change)) => case.change_password(change),
        Some(Op::ChangeRoles(change)) => case.change_roles(change),
        Some(Op::BootstrapAdmin(bootstrap)) => case.bootstrap_admin(&bootstrap.account_id),
        Some(Op::ChangeEmail(change)) => case.change_email(change),
        None => Err(Rejection::invalid("op", "the command asks for nothing")),
    }
}

fn done(result: Done) -> Outcome {
    Outcome { result: Some(result) }
}

/// Bytes of a fixed number.
fn fixed<const N: usize>(field: &'static str, bytes: &[u8]) -> Result<[u8; N], Rejection> {
    let wrong = |_| Rejection::invalid(field, format!("has {} bytes, not {N}", bytes.len()));
    bytes.try_into().map_err(wrong)
}

fn personal(sealed: &messages::Sealed) -> Result<Personal, Rejection> {
    match sealed.ciphertext.len() {
        1..=CIPHERTEXT_MAX if sealed.field > 0 => Ok(Personal::from(sealed)),
        bytes => {
            let why = format!("field {} has {bytes} bytes, not 1 to {CIPHERTEXT_MAX}", sealed.field);
            Err(Rejection::invalid("personal", why))
        }
    }
}

fn credential(message: Option<&messages::Credential>) -> Result<Credential, Rejection> {
    let credential = message.map(Credential::from);
    let sound = |credential: &Credential| {
        (8..=64).contains(&credential.salt.len()) && (16..=64).contains(&credential.hash.len())
    };
    credential.filter(sound).ok_or_else(|| Rejection::invalid("credential", "is missing or makes no sense"))
}

/// The rows before the command, what the log says about it, and who asks.
struct Case<'a> {
    state: &'a State,
    context: &'a Context,
    caller: Caller<'a>,
}

impl<'a> Case<'a> {
    /// Makes an account. Whoever asks for one that exists gets the same answer: it must not tell.
    fn register(&self, asked: &messages::Register) -> Decision {
        let email: Digest = fixed("email_hash", &asked.email_hash)?;
        let key_id = fixed("key_id", &asked.key_id)?;
        let credential = credential(asked.credential.as_ref())?;
        let fields = changed(&[], &asked.personal)?;
        if asked.region.is_empty() || asked.region.len() > 80 {
            return Err(Rejection::invalid("region", "is not the name of a region"));
        }
        let row = AccountRow {
            // Its id follows when it has a number.
            subject: format!("{}/accounts/", asked.region),
            email,
            key_id,
            personal: fields,
            credential,
            credential_revision: 1,
            roles: Roles::USER,
            revision: 1,
            created_ms: self.context.now_ms,
        };
        if asked.claim_group > 0 && self.context.apply_version >= CLAIMS_EMAILS {
            return Ok(self.wish(email, asked.claim_group, Wanted::Account(Box::new(row))));
        }
        if self.state.emails.get(&email).is_some() {
            return Ok((Vec::new(), done(Done::Registered(messages::Registered::default()))));
        }
        let account = email::next_account(self.state, self.context);
        let account_id = account_id(account);
        let row = AccountRow { subject: format!("{}{account_id}", row.subject), ..row };
        let registered = messages::Registered { account_id, key_id: key_id.to_vec() };
        Ok((vec![Event::Registered { account, row }], done(Done::Registered(registered))))
    }

    /// Begins to change the e-mail of an account. Whether somebody else has it is told to nobody.
    fn change_email(&self, asked: &messages::ChangeEmail) -> Decision {
        let (account, row) = self.own_account(&asked.account_id)?;
        let email: Digest = fixed("email_hash", &asked.email_hash)?;
        let sealed = asked.email.as_ref().map(personal).transpose()?;
        let sealed = sealed.filter(|sealed| sealed.field == FIELD_EMAIL);
        let sealed = sealed.ok_or_else(|| Rejection::invalid("email", "is missing"))?;
        if asked.claim_group == 0 {
            return Err(Rejection::invalid("claim_group", "is missing"));
        }
        if asked.credential_revision != row.credential_revision {
            return Err(Rejection::PasswordChanged);
        }
        // Who has lost the claim of its e-mail can claim it anew.
        if row.email == email && self.state.claimed.get(&account).is_some() {
            return Err(Rejection::invalid("email", "is the account's already"));
        }
        if self.state.claimings.derived().changing.contains_key(&account) {
            return Err(Rejection::EmailChanging);
        }
        Ok(self.wish(email, asked.claim_group, Wanted::Email { account, sealed }))
    }

    fn wish(&self, email: Digest, keeper: u32, wanted: Wanted) -> (Vec<Event>, Outcome) {
        let (id, events) = email::begin(self.state, self.context, email, keeper, wanted);
        (events, done(Done::Claiming(messages::Claiming { claim_id: id.to_be_bytes().to_vec() })))
    }

    /// Counts an attempt before it is made: however many are made at once, no more than are allowed are.
    fn count_attempt(&self, email: &[u8]) -> Decision {
        let email = fixed("email_hash", email)?;
        let now_ms = self.context.steady_ms;
        let fresh = AttemptsRow { count: 0, since_ms: now_ms, stuck: false };
        let so_far = self.state.attempts.get(&email).copied();
        let so_far = so_far.filter(|row| now_ms < row.until_ms()).unwrap_or(fresh);
        if so_far.are_exhausted(now_ms) {
            let left_ms = so_far.until_ms() - now_ms;
            return Err(Rejection::TooManyAttempts(self.context.now_ms.saturating_add(left_ms)));
        }
        let more = if active(Mutant::AttemptNotCounted) { 0 } else { 1 };
        let row = AttemptsRow { count: so_far.count + more, ..so_far };
        let counted = done(Done::AttemptCounted(messages::AttemptCounted {}));
        Ok((vec![Event::AttemptCounted { email, row }], counted))
    }

    /// Begins a session for a password that a gateway has checked.
    fn start_session(&self, asked: &messages::StartSession) -> Decision {
        let email: Digest = fixed("email_hash", &asked.email_hash)?;
        let id = u128::from_be_bytes(fixed("session_id", &asked.session_id)?);
        let token = fixed("token_hash", &asked.token_hash)?;
        let device = asked.device.as_ref().map(personal).transpose()?;
        let (account, row) = self.state.account_of(&email).ok_or(Rejection::LogInFailed)?;
        if row.credential_revision != asked.credential_revision {
            return Err(Rejection::LogInFailed);
        }
        let key = (account, id);
        if self.state.sessions.get(&key).is_some() {
            return Err(Rejection::invalid("session_id", "is taken"));
        }
        let mut events = Vec::new();
        let mut sessions: Vec<_> = self.state.sessions_of(account).collect();
        if sessions.len() >= SESSIONS_MAX {
            sessions.sort_by_key(|(key, row)| (row.refreshed_steady_ms, key.1));
            let (session, _) = sessions[0];
            events.push(Event::SessionEnded { session });
        }
        if self.state.attempts.get(&email).is_some() {
            events.push(Event::AttemptsForgotten { email });
        }
        let Context { now_ms, steady_ms, .. } = *self.context;
        let session = SessionRow {
            generation: 1,
            token,
            previous: token,
            device,
            created_ms: now_ms,
            refreshed_ms: now_ms,
            began_steady_ms: steady_ms,
            refreshed_steady_ms: steady_ms,
            stuck: false,
        };
        let granted = self.granted(key, 1, row);
        events.push(Event::SessionGranted { session: key, row: session });
        Ok((events, granted))
    }

    /// Gives the next token for the one that is valid, and once more for the one before as long as its answer may have been lost.
    /// Any other one was copied: the session ends.
    fn refresh(&self, asked: &messages::RefreshSession) -> Decision {
        let id = u128::from_be_bytes(fixed("session_id", &asked.session_id)?);
        let shown: Digest = fixed("token_hash", &asked.token_hash)?;
        let token = fixed("next_hash", &asked.next_hash)?;
        let (account, row) = self.state.account(&asked.account_id).ok_or(Rejection::SessionInvalid)?;
        let (key, now_ms) = ((account, id), self.context.steady_ms);
        let session = self.state.sessions.get(&key).filter(|session| session.lives(now_ms));
        let session = session.ok_or(Rejection::SessionInvalid)?;
        if asked.generation == session.generation {
            if shown != session.token {
                return Err(Rejection::SessionInvalid);
            }
            let generation = session.generation + 1;
            let session = SessionRow {
                generation,
                token,
                previous: shown,
                refreshed_ms: self.context.now_ms,
                refreshed_steady_ms: now_ms,
                ..session.clone()
            };
            let granted = self.granted(key, generation, row);
            return Ok((vec![Event::SessionGranted { session: key, row: session }], granted));
        }
        if asked.generation == 0 || asked.generation > session.generation {
            return Err(Rejection::SessionInvalid);
        }
        if asked.generation + 1 == session.generation {
            if shown != session.previous {
                return Err(Rejection::SessionInvalid);
            }
            if now_ms < session.refreshed_steady_ms.saturating_add(REFRESH_AGAIN_MS) {
                return Ok((Vec::new(), self.granted(key, session.generation, row)));
            }
        }
        if active(Mutant::CopiedTokenAccepted) {
            return Ok((Vec::new(), self.granted(key, session.generation, row)));
        }
        let ended = done(Done::SessionEnded(messages::SessionEnded { reused: true }));
        Ok((vec![Event::SessionEnded { session: key }], ended))
    }

    /// Ends a session: who has its token may, and who owns it. One that has ended stays so.
    fn end(&self, asked: &messages::EndSession) -> Decision {
        let id = u128::from_be_bytes(fixed("session_id", &asked.session_id)?);
        let ended = done(Done::SessionEnded(messages::SessionEnded { reused: false }));
        let account = match asked.token_hash.as_slice() {
            [] => Some(self.account_for(&asked.account_id, Roles::SUPPORT)?),
            _ => self.state.account(&asked.account_id),
        };
        let session = account.map(|(account, _)| (account, id));
        let found = session.and_then(|key| Some((key, self.state.sessions.get(&key)?)));
        let Some((session, row)) = found else { return Ok((Vec::new(), ended)) };
        let shown = asked.token_hash.as_slice();
        if !shown.is_empty() && shown != row.token && shown != row.previous {
            return Err(Rejection::SessionInvalid);
        }
        let events = if active(Mutant::EndedSessionLives) {
            Vec::new()
        } else {
            vec![Event::SessionEnded { session }]
        };
        Ok((events, ended))
    }

    fn update_profile(&self, asked: &messages::UpdateProfile) -> Decision {
        let (account, old) = self.own_account(&asked.account_id)?;
        if asked.expected_revision != 0 && asked.expected_revision != old.revision {
            let (expected, actual) = (asked.expected_revision, old.revision);
            return Err(Rejection::RevisionMismatch { expected, actual });
        }
        let personal = changed(&old.personal, &asked.personal)?;
        Ok(self.saved(account, AccountRow { personal, ..old.clone() }))
    }

    /// Sets another password, and ends all sessions but one: whoever has the old one is out.
    fn change_password(&self, asked: &messages::ChangePassword) -> Decision {
        let (account, old) = self.own_account(&asked.account_id)?;
        let credential = credential(asked.credential.as_ref())?;
        if asked.credential_revision != old.credential_revision {
            return Err(Rejection::PasswordChanged);
        }
        let kept = match asked.kept_session_id.as_slice() {
            [] => None,
            id => Some(u128::from_be_bytes(fixed("kept_session_id", id)?)),
        };
        let row = AccountRow { credential, credential_revision: old.credential_revision + 1, ..old.clone() };
        let (mut events, outcome) = self.saved(account, row);
        let others = self.state.sessions_of(account).filter(|(key, _)| Some(key.1) != kept);
        events.extend(others.map(|(session, _)| Event::SessionEnded { session }));
        if self.state.attempts.get(&old.email).is_some() {
            events.push(Event::AttemptsForgotten { email: old.email });
        }
        Ok((events, outcome))
    }

    fn change_roles(&self, asked: &messages::ChangeRoles) -> Decision {
        self.require_admin()?;
        let changed = asked.granted | asked.withdrawn;
        let changeable = ROLES.0 & !Roles::USER.0;
        if changed & !changeable != 0 || changed == 0 || asked.granted & asked.withdrawn != 0 {
            return Err(Rejection::invalid("role", "is not a role that can be granted or withdrawn"));
        }
        let (account, old) = self.known(&asked.account_id)?;
        let roles = Roles((old.roles.0 | asked.granted) & !asked.withdrawn);
        let loses = old.roles.contains(Roles::ADMIN) && !roles.contains(Roles::ADMIN);
        if loses && self.state.counter(COUNTER_ADMINS) <= 1 {
            return Err(Rejection::LastAdmin(old.subject.clone()));
        }
        Ok(self.saved(account, AccountRow { roles, ..old.clone() }))
    }

    /// Makes an account the first admin of the region.
    fn bootstrap_admin(&self, id: &str) -> Decision {
        self.require_admin()?;
        if self.state.counter(COUNTER_ADMINS) > 0 && !active(Mutant::SecondFirstAdmin) {
            return Err(Rejection::AdminExists);
        }
        let (account, old) = self.known(id)?;
        let roles = Roles(old.roles.0 | Roles::ADMIN.0);
        Ok(self.saved(account, AccountRow { roles, ..old.clone() }))
    }

    /// What a session gives: the generation that is valid, and what the account may.
    fn granted(&self, session: SessionKey, generation: u64, account: &AccountRow) -> Outcome {
        done(Done::SessionGranted(messages::SessionGranted {
            account_id: account_id(session.0),
            session_id: session.1.to_be_bytes().to_vec(),
            generation,
            roles: account.roles.0,
            granted_at_ms: self.context.now_ms,
        }))
    }

    /// What writing a changed account leads to.
    fn saved(&self, account: AccountNo, row: AccountRow) -> (Vec<Event>, Outcome) {
        let row = AccountRow { revision: row.revision + 1, ..row };
        let outcome = done(Done::Account(views::account(account, &row)));
        (vec![Event::AccountChanged { account, row }], outcome)
    }

    fn require_admin(&self) -> Result<(), Rejection> {
        let is_admin = self.caller.roles.contains(Roles::ADMIN);
        if is_admin { Ok(()) } else { Err(Rejection::RoleRequired("admin")) }
    }

    fn known(&self, id: &str) -> Result<(AccountNo, &'a AccountRow), Rejection> {
        self.state.account(id).ok_or_else(|| Rejection::AccountNotFound(id.to_owned()))
    }

    /// The caller's own account. Whether another one exists is not told.
    fn own_account(&self, id: &str) -> Result<(AccountNo, &'a AccountRow), Rejection> {
        let found = self.state.account(id).filter(|(_, row)| row.subject == self.caller.principal);
        found.ok_or_else(|| Rejection::NotOwner(format!("account {id:?}")))
    }

    /// An account that is the caller's own, or that its role lets it touch; admins may touch all.
    fn account_for(&self, id: &str, role: Roles) -> Result<(AccountNo, &'a AccountRow), Rejection> {
        let roles = self.caller.roles;
        if roles.contains(role) || roles.contains(Roles::ADMIN) {
            self.known(id)
        } else {
            self.own_account(id)
        }
    }
}

/// Personal fields after some of them have changed, by number.
fn changed(old: &[Personal], new: &[messages::Sealed]) -> Result<Vec<Personal>, Rejection> {
    let mut fields: BTreeMap<u32, Personal> = old.iter().map(|field| (field.field, field.clone())).collect();
    for sealed in new {
        let field = personal(sealed)?;
        fields.insert(field.field, field);
    }
    if fields.len() > PERSONAL_MAX {
        return Err(Rejection::invalid("personal", format!("an account has at most {PERSONAL_MAX} fields")));
    }
    Ok(fields.into_values().collect())
}
