//! Accounts: who registers, logs in and out, refreshes, changes a password, and sometimes steals.
//!
//! Nobody else touches the account of a story, so that it knows what each answer must be.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::time::Duration;

use tidewall_proto::v1;
use tidewall_proto::v1::account_service_client::AccountServiceClient;
use tonic::codec::CompressionEncoding::{Deflate, Gzip};
use tonic::transport::Channel;

use crate::{Over, Site, Story, Workload, ask, client};

/// A token that was used no longer ago gives its successor once more, without doubt.
const SURELY_AGAIN: Duration = Duration::from_secs(40);
/// What an admin grants and withdraws.
const ROLES: [v1::Role; 3] = [v1::Role::Organiser, v1::Role::Support, v1::Role::Auditor];
/// Passwords that may be tried, as the API says.
const ATTEMPTS: usize = 10;

/// The workload.
pub(crate) struct Accounts;

impl Workload for Accounts {
    const NAME: &'static str = "accounts";

    async fn story<S: Site>(story: &Story<'_, S>) -> Result<(), Over> {
        let accounts = client!(story, AccountServiceClient);
        let email = format!("{}@example.org", story.name);
        let region = RefCell::new(story.region.clone());
        Visitor { story, accounts, region, email: RefCell::new(email) }.visit().await
    }
}

/// A session as its owner knows it.
struct Held {
    name: String,
    account: String,
    access: String,
    /// The tokens that were given, the valid one last, each with when it was used.
    tokens: Vec<(String, Option<Duration>)>,
}

impl Held {
    fn refresh_token(&self) -> String {
        self.tokens.last().map(|(token, _)| token.clone()).unwrap_or_default()
    }
}

struct Visitor<'a, S: Site> {
    story: &'a Story<'a, S>,
    accounts: AccountServiceClient<Channel>,
    /// Where the account lives.
    region: RefCell<String>,
    email: RefCell<String>,
}

impl<S: Site> Visitor<'_, S> {
    fn id(&self) -> String {
        self.story.site.request_id()
    }

    fn below(&self, count: u64) -> u64 {
        self.story.below(count)
    }

    async fn register(&self, password: &str) -> Result<(), Over> {
        let (region, email) = (self.region.borrow().clone(), self.email.borrow().clone());
        self.register_at(&region, &email, password).await
    }

    /// Registers, again and again while nobody can tell whether the e-mail is free.
    async fn register_at(&self, region: &str, email: &str, password: &str) -> Result<(), Over> {
        loop {
            let message = v1::RegisterRequest {
                parent: region.to_owned(),
                email: email.to_owned(),
                password: password.to_owned(),
                display_name: "first".to_owned(),
                request_id: self.id(),
                ..Default::default()
            };
            let told = ask!(self.story, self.accounts, register, message);
            // Nobody knows how it ended when time has leapt meanwhile.
            let unknown = ["NOT_REGISTERED", "REQUEST_ID_EXPIRED"];
            if told.as_ref().is_err_and(|reason| unknown.contains(&reason.as_str())) {
                continue;
            }
            return self.story.yes("a registration", told).map(drop);
        }
    }

    /// A region that is not that of the story.
    fn another_region(&self) -> Option<String> {
        let others: Vec<&String> =
            self.story.site.regions().iter().filter(|region| **region != self.story.region).collect();
        if others.is_empty() { None } else { Some(others[self.below(others.len() as u64) as usize].clone()) }
    }

    /// Changes the e-mail to one that nobody has; who wants that of somebody else in another region is refused.
    async fn change_email(&self, held: &Held, password: &str, step: u64) -> Result<(), Over> {
        let email = format!("{}-{step}@example.org", self.story.name);
        if let Some(other) = self.another_region().filter(|_| self.below(3) == 0) {
            *self.story.abroad.borrow_mut() = Some(other.clone());
            self.register_at(&other, &email, "password of somebody else").await?;
            *self.story.abroad.borrow_mut() = None;
            let told = self.ask_for_email(held, password, &email).await?;
            return match told {
                Err(reason) if reason == "EMAIL_TAKEN" || reason == "TOO_MANY_ATTEMPTS" => Ok(()),
                told => self.story.object_anywhere(format_args!(
                    "the e-mail of somebody in {other} is not refused: {told:?}"
                )),
            };
        }
        let told = self.ask_for_email(held, password, &email).await?;
        self.story.yes("a new e-mail", told)?;
        *self.email.borrow_mut() = email;
        Ok(())
    }

    async fn ask_for_email(
        &self,
        held: &Held,
        password: &str,
        email: &str,
    ) -> Result<Result<(), String>, Over> {
        loop {
            let message = v1::ChangeEmailRequest {
                name: held.account.clone(),
                current_password: password.to_owned(),
                new_email: email.to_owned(),
                request_id: self.id(),
            };
            let told = ask!(self.story, self.accounts, change_email, message, &held.access);
            match told.as_ref().err().map(String::as_str) {
                Some("EMAIL_NOT_CHANGED") => continue,
                // Time has leapt meanwhile: nobody knows how it ended.
                Some("REQUEST_ID_EXPIRED") => return Err(Over),
                _ => {}
            }
            return Ok(told.map(drop));
        }
    }

    /// Two at once want the same e-mail, in two regions: one has it.
    async fn register_against(&self, other: &str, password: &str) -> Result<(), Over> {
        let (own, email) = (self.region.borrow().clone(), self.email.borrow().clone());
        *self.story.abroad.borrow_mut() = Some(other.to_owned());
        let (here, there) =
            tokio::join!(self.register_at(&own, &email, password), self.register_at(other, &email, password));
        here.and(there)?;
        let here = self.log_in(password).await?;
        *self.region.borrow_mut() = other.to_owned();
        let there = self.log_in(password).await?;
        match (here.is_ok(), there.is_ok()) {
            (true, false) => {
                *self.region.borrow_mut() = own;
                *self.story.abroad.borrow_mut() = None;
                Ok(())
            }
            // The story ends: it knows no more of the account than that it is there.
            (false, true) => Err(Over),
            _ => self.story.object_anywhere(format_args!(
                "registrations of one e-mail, here and in {other}, have made no account, or two"
            )),
        }
    }

    async fn log_in(&self, password: &str) -> Result<Result<Held, String>, Over> {
        let message = v1::LogInRequest {
            parent: self.region.borrow().clone(),
            email: self.email.borrow().clone(),
            password: password.to_owned(),
            device: "phone".to_owned(),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.accounts, log_in, message);
        Ok(told.map(|login| {
            let tokens = login.tokens.unwrap_or_default();
            let (name, account) = (login.session, login.account);
            Held { name, account, access: tokens.access_token, tokens: vec![(tokens.refresh_token, None)] }
        }))
    }

    async fn refresh(&self, token: &str) -> Result<Result<v1::Tokens, String>, Over> {
        let message = v1::RefreshRequest { refresh_token: token.to_owned(), request_id: self.id() };
        let told = ask!(self.story, self.accounts, refresh, message);
        Ok(told.map(|answer| answer.tokens.unwrap_or_default()))
    }

    /// Refreshes a session that lives.
    async fn refresh_held(&self, held: &mut Held) -> Result<(), Over> {
        let used_at = self.story.site.now();
        let told = self.refresh(&held.refresh_token()).await?;
        let tokens = self.story.yes("the refresh of a session that lives", told)?;
        if held.tokens.iter().any(|(token, _)| *token == tokens.refresh_token) {
            return self.story.object("a refresh gives a token that was given before");
        }
        if let Some((_, used)) = held.tokens.last_mut() {
            *used = Some(used_at);
        }
        held.access = tokens.access_token;
        held.tokens.push((tokens.refresh_token, None));
        Ok(())
    }

    /// Shows the token before the valid one once more, as who has lost its answer does.
    async fn refresh_again(&self, held: &Held) -> Result<(), Over> {
        let [.., (before, Some(used)), (valid, None)] = held.tokens.as_slice() else { return Ok(()) };
        let told = self.refresh(before).await?;
        if self.story.site.now().saturating_sub(*used) > SURELY_AGAIN {
            // It may have taken too long.
            return Err(Over);
        }
        let tokens = self.story.yes("a refresh whose answer was lost", told)?;
        if tokens.refresh_token != *valid {
            return self.story.object("a refresh whose answer was lost gives another token than before");
        }
        Ok(())
    }

    async fn sessions(&self, held: &Held) -> Result<Vec<String>, Over> {
        let consistency = self.story.consistency();
        let message =
            v1::ListSessionsRequest { parent: held.account.clone(), consistency, ..Default::default() };
        let told = ask!(self.story, self.accounts, list_sessions, message, &held.access);
        let mut names: Vec<String> = self
            .story
            .yes("a list of sessions", told)?
            .sessions
            .into_iter()
            .map(|session| session.name)
            .collect();
        names.sort();
        Ok(names)
    }

    /// The list must be what is known to live.
    async fn check_sessions(&self, live: &[Held]) -> Result<(), Over> {
        let Some(first) = live.first() else { return Ok(()) };
        let mut known: Vec<String> = live.iter().map(|held| held.name.clone()).collect();
        known.sort();
        let listed = self.sessions(first).await?;
        if listed != known {
            return self.story.object(format_args!("the sessions are {listed:?}, not {known:?}"));
        }
        Ok(())
    }

    async fn rename(&self, held: &Held, name: &str) -> Result<(), Over> {
        let account =
            v1::Account { name: held.account.clone(), display_name: name.to_owned(), ..Default::default() };
        let mask = prost_types::FieldMask { paths: vec!["display_name".to_owned()] };
        let message = v1::UpdateProfileRequest {
            account: Some(account),
            update_mask: Some(mask),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.accounts, update_profile, message, &held.access);
        self.story.yes("an update of the profile", told).map(drop)
    }

    /// Profile and roles must be what was written last.
    async fn check_profile(&self, held: &Held, name: &str, roles: &BTreeSet<i32>) -> Result<(), Over> {
        let consistency = self.story.consistency();
        let message = v1::GetAccountRequest { name: held.account.clone(), consistency, max_age: None };
        let told = ask!(self.story, self.accounts, get_account, message, &held.access);
        let account = self.story.yes("a look at one's own account", told)?.account.unwrap_or_default();
        let seen = (account.email.as_str(), account.display_name.as_str(), account.erased);
        let email = self.email.borrow().clone();
        if seen != (email.as_str(), name, false) {
            return self.story.object(format_args!("the account is {seen:?}, not with the name {name:?}"));
        }
        self.check_roles(roles, &account.roles)
    }

    fn check_roles(&self, known: &BTreeSet<i32>, seen: &[i32]) -> Result<(), Over> {
        match seen.iter().copied().collect::<BTreeSet<i32>>() == *known {
            true => Ok(()),
            false => self.story.object(format_args!("the roles are {seen:?}, not {known:?}")),
        }
    }

    /// An admin finds the account by its e-mail, and gives it a role or takes one.
    async fn change_role(&self, held: &Held, roles: &mut BTreeSet<i32>) -> Result<(), Over> {
        let admin = self.story.site.token("admin", &["admin"]);
        let find = v1::FindAccountRequest {
            parent: self.region.borrow().clone(),
            email: self.email.borrow().to_uppercase(),
            ..Default::default()
        };
        let told = ask!(self.story, self.accounts, find_account, find, &admin);
        let found = self.story.yes("a search by an admin", told)?.account.unwrap_or_default();
        if found.name != held.account {
            return self.story.object(format_args!("{} is found, not {}", found.name, held.account));
        }
        let role = i32::from(ROLES[self.below(ROLES.len() as u64) as usize]);
        let (name, request_id) = (found.name, self.id());
        let seen = if roles.remove(&role) {
            let told = ask!(
                self.story,
                self.accounts,
                withdraw_role,
                v1::WithdrawRoleRequest { name, role, request_id },
                &admin
            );
            self.story.yes("a withdrawal", told)?.roles
        } else {
            roles.insert(role);
            let told = ask!(
                self.story,
                self.accounts,
                grant_role,
                v1::GrantRoleRequest { name, role, request_id },
                &admin
            );
            self.story.yes("a grant", told)?.roles
        };
        self.check_roles(roles, &seen)
    }

    /// Asks to be the first admin of the region: one account is, and stays it.
    async fn be_first_admin(&self, held: &Held) -> Result<(), Over> {
        let admin = self.story.site.token("admin", &["admin"]);
        let bootstrap = v1::BootstrapAdminRequest { name: held.account.clone(), request_id: self.id() };
        if let Err(reason) = ask!(self.story, self.accounts, bootstrap_admin, bootstrap, &admin) {
            return self.story.no::<()>("a second first admin", Err(reason), "ADMIN_EXISTS");
        }
        self.story.once(&held.account);
        let (name, role) = (held.account.clone(), v1::Role::Admin.into());
        let withdraw = v1::WithdrawRoleRequest { name, role, request_id: self.id() };
        let told = ask!(self.story, self.accounts, withdraw_role, withdraw, &admin);
        self.story.no("the withdrawal of the last admin", told, "LAST_ADMIN")
    }

    async fn revoke(&self, held: &Held, other: &Held) -> Result<(), Over> {
        let message = v1::RevokeSessionRequest { name: other.name.clone() };
        let told = ask!(self.story, self.accounts, revoke_session, message, &held.access);
        self.story.yes("the revocation of an own session", told).map(drop)
    }

    async fn change_password(&self, held: &Held, old: &str, new: &str) -> Result<(), Over> {
        let message = v1::ChangePasswordRequest {
            name: held.account.clone(),
            current_password: old.to_owned(),
            new_password: new.to_owned(),
            request_id: self.id(),
        };
        let told = ask!(self.story, self.accounts, change_password, message, &held.access);
        self.story.yes("a new password", told).map(drop)
    }

    async fn log_out(&self, held: &Held) -> Result<(), Over> {
        let message = v1::LogOutRequest { refresh_token: held.refresh_token() };
        let told = ask!(self.story, self.accounts, log_out, message);
        self.story.yes("a log-out", told).map(drop)
    }

    /// One account, from its registration to its end.
    async fn visit(&self) -> Result<(), Over> {
        let mut password = "password one".to_owned();
        let abroad = self.another_region().filter(|_| self.below(4) == 0);
        if let Some(other) = abroad {
            self.register_against(&other, &password).await?;
        } else if self.below(3) == 0 {
            // Two at once want the same e-mail: one has it, and the other one is told nothing.
            let rival = "password of a rival".to_owned();
            let (one, other) = tokio::join!(self.register(&password), self.register(&rival));
            one.and(other)?;
            let (one, other) = (self.log_in(&password).await?, self.log_in(&rival).await?);
            match (one.is_ok(), other.is_ok()) {
                (true, false) => {}
                (false, true) => password = rival,
                _ => {
                    return self.story.object("two registrations of one e-mail have made no account, or two");
                }
            }
        } else {
            self.register(&password).await?;
            self.register("password of a stranger").await?;
        }
        let told = self.log_in("password of a stranger").await?;
        self.story.no("a wrong password", told, "LOG_IN_FAILED")?;
        let mut profile = "first".to_owned();
        let mut roles = BTreeSet::from([i32::from(v1::Role::User)]);
        // A rival's session may be there as well: the list begins with a new password.
        let told = self.log_in(&password).await?;
        let mut live = vec![self.story.yes("a log-in", told)?];
        self.change_password(&live[0], &password, "password two").await?;
        password = "password two".to_owned();
        self.check_sessions(&live).await?;
        for step in 0..self.below(14) {
            let at = self.below(live.len() as u64) as usize;
            match self.below(11) {
                0 | 1 => self.refresh_held(&mut live[at]).await?,
                2 => self.refresh_again(&live[at]).await?,
                3 => {
                    let told = self.log_in(&password).await?;
                    live.push(self.story.yes("a log-in", told)?);
                }
                4 => {
                    profile = format!("name {step}");
                    self.rename(&live[at], &profile).await?;
                }
                5 => self.check_profile(&live[at], &profile, &roles).await?,
                6 => self.check_sessions(&live).await?,
                7 if live.len() > 1 => {
                    let ended = live.swap_remove(at);
                    match self.below(2) {
                        0 => self.log_out(&ended).await?,
                        _ => self.revoke(&live[0], &ended).await?,
                    }
                    let told = self.refresh(&ended.refresh_token()).await?;
                    self.story.no("a session that was ended", told, "SESSION_INVALID")?;
                }
                10 => self.change_email(&live[at], &password, step).await?,
                9 if self.story.site.is_own() => self.change_role(&live[at], &mut roles).await?,
                8 if live.len() > 1 => {
                    // A thief has copied a token, and shows it when it is older than the one before the last.
                    let mut ended = live.swap_remove(at);
                    while ended.tokens.len() < 3 {
                        self.refresh_held(&mut ended).await?;
                    }
                    let told = self.refresh(&ended.tokens[0].0).await?;
                    self.story.no("a copied token", told, "SESSION_INVALID")?;
                    let told = self.refresh(&ended.refresh_token()).await?;
                    self.story.no("the session of a copied token", told, "SESSION_INVALID")?;
                }
                _ => {
                    let new = format!("password {step} of mine");
                    self.change_password(&live[at], &password, &new).await?;
                    live = vec![live.swap_remove(at)];
                    let told = self.log_in(&password).await?;
                    self.story.no("the password from before", told, "LOG_IN_FAILED")?;
                    password = new;
                }
            }
        }
        self.check_profile(&live[0], &profile, &roles).await?;
        self.check_sessions(&live).await?;
        if self.below(3) == 0 && self.story.site.is_own() {
            self.be_first_admin(&live[0]).await?;
        }
        // A right password forgets all attempts; then exactly so many wrong ones may be tried.
        let told = self.log_in(&password).await?;
        self.story.yes("a log-in", told)?;
        for _ in 1..ATTEMPTS {
            let told = self.log_in("password guessed").await?;
            self.story.no("a guess", told, "LOG_IN_FAILED")?;
        }
        let told = self.log_in(&password).await?;
        self.story.yes("the last attempt", told)?;
        for _ in 0..ATTEMPTS {
            let told = self.log_in("password guessed").await?;
            self.story.no("a guess", told, "LOG_IN_FAILED")?;
        }
        let told = self.log_in(&password).await?;
        self.story.no("one attempt too many", told, "TOO_MANY_ATTEMPTS")
    }
}
