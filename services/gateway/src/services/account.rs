//! `AccountService`: register, log in, refresh, log out; sessions, profiles, passwords, roles.
//!
//! Regions decide; what they must not see (passwords, tokens, personal fields) is turned into hashes and ciphertext here. Nothing that
//! is answered, and no time that it takes, tells whether an e-mail has an account.

use std::sync::Arc;

use prost_types::FieldMask;
use tidewall_client::ClientError;
use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, answer};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::account_service_server::AccountService;
use tonic::{Request, Response, Status};

use super::event::check_consistency;
use super::{Ask, Services};
use crate::accounts::passwords::{Password, Place};
use crate::accounts::persons::KeyId;
use crate::accounts::{ACCESS_LIFETIME, Accounts, PersonKey, RefreshToken, email};
use crate::auth::{Role, bit, roles_of};
use crate::convert::{self, Decided, hex};
use crate::edge::{Call, Method};
use crate::errors::ApiError;
use crate::{names, request_id};

/// Longest display name and device name, characters.
const NAME_CHARACTERS_MAX: usize = 100;
/// Longest locale and time zone, bytes.
const TAG_BYTES_MAX: usize = 64;
/// How long erasing a key that nobody uses may take.
const ERASE_WITHIN: std::time::Duration = std::time::Duration::from_secs(5);

/// Numbers of personal fields; never used again.
mod field {
    pub(super) const EMAIL: u32 = 1;
    pub(super) const DISPLAY_NAME: u32 = 2;
    pub(super) const LOCALE: u32 = 3;
    pub(super) const TIME_ZONE: u32 = 4;
    pub(super) const DEVICE: u32 = 5;
}

/// What an e-mail is known by.
type EmailHash = [u8; 32];

fn log_in_failed() -> ApiError {
    ApiError::unauthenticated("LOG_IN_FAILED", messages::LOG_IN_FAILED)
}

/// A name for people.
fn check_name(field: &str, text: &str) -> Result<(), ApiError> {
    if text.chars().count() > NAME_CHARACTERS_MAX || text.chars().any(char::is_control) {
        let why = format!("must have at most {NAME_CHARACTERS_MAX} characters, and no control characters");
        return Err(ApiError::field(field, why));
    }
    Ok(())
}

/// A tag for programs, such as `de-AT` or `Europe/Vienna`; may be empty.
fn check_tag(field: &str, text: &str) -> Result<(), ApiError> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/' | b'+');
    if text.len() > TAG_BYTES_MAX || !text.bytes().all(sound) {
        let why = format!(
            "must have at most {TAG_BYTES_MAX} of [A-Za-z0-9-_/+], for example de-AT or Europe/Vienna"
        );
        return Err(ApiError::field(field, why));
    }
    Ok(())
}

/// The personal fields that a mask names.
fn masked<'a>(account: &'a v1::Account, mask: Option<&FieldMask>) -> Result<Vec<(u32, &'a str)>, ApiError> {
    const PATHS: &str = "display_name, locale, time_zone";
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        return Err(ApiError::field("update_mask", format!("must name what changes: {PATHS}")));
    }
    let mut fields = Vec::new();
    for path in paths {
        let (number, text) = match path.as_str() {
            "display_name" => {
                check_name("account.display_name", &account.display_name)?;
                (field::DISPLAY_NAME, account.display_name.as_str())
            }
            "locale" => {
                check_tag("account.locale", &account.locale)?;
                (field::LOCALE, account.locale.as_str())
            }
            "time_zone" => {
                check_tag("account.time_zone", &account.time_zone)?;
                (field::TIME_ZONE, account.time_zone.as_str())
            }
            _ => return Err(ApiError::field("update_mask", format!("{path:?} is none of {PATHS}"))),
        };
        if fields.iter().any(|(known, _)| *known == number) {
            return Err(ApiError::field("update_mask", format!("names {path:?} twice")));
        }
        fields.push((number, text));
    }
    Ok(fields)
}

/// Whether a caller may see an account.
fn check_may_see(call: &Call, account: &str) -> Result<(), ApiError> {
    let caller = &call.principal;
    if caller.subject == account || caller.has(Role::Support) || caller.has(Role::Admin) {
        return Ok(());
    }
    let why = format!("{} may not see this account: only its owner, support and admins may", caller.subject);
    Err(ApiError::denied("NOT_YOUR_ACCOUNT", why))
}

fn key_id(bytes: &[u8]) -> Result<KeyId, ApiError> {
    bytes.try_into().map_err(|_| convert::mismatch())
}

fn shown_roles(bits: u32) -> Vec<i32> {
    roles_of(bits).into_iter().map(i32::from).collect()
}

impl Services {
    fn accounts(&self) -> Result<&Accounts, ApiError> {
        self.0.accounts.as_ref().ok_or_else(ApiError::accounts_not_served)
    }

    /// What an e-mail in a field is known by, and its one spelling.
    fn email(&self, field: &str, text: &str) -> Result<(EmailHash, String), ApiError> {
        let normalised = email::normalised(text).map_err(|why| ApiError::field(field, why))?;
        Ok((self.accounts()?.secrets.email_hash(&normalised), normalised))
    }

    /// Has a command about accounts decided; its outcome is told by kind.
    async fn decide(
        &self,
        call: &Call,
        region: &str,
        row: &str,
        request_id: Vec<u8>,
        command: impl Into<messages::Command>,
    ) -> Result<Decided<Done>, ApiError> {
        let ask = Ask { region, row, request_id, command: command.into() };
        let Decided { outcome, receipt } = self.command::<_, messages::Outcome>(call, ask).await?;
        Ok(Decided { outcome: outcome.result.ok_or_else(convert::mismatch)?, receipt })
    }

    /// Whether a request has been decided: then it is not checked again, because what it was checked against may have changed with it.
    /// Its fingerprint then has the region give the first answer, to copies of the first message alone, whatever the command.
    async fn is_decided(&self, call: &Call, request_id: &[u8]) -> Result<bool, ApiError> {
        let principal = call.principal.subject.clone();
        let get = pb::GetOutcome { principal, request_id: request_id.to_vec() };
        match self.look(call, pb::query::Op::GetOutcome(get)).await? {
            pb::query_result::Result::Outcome(view) => Ok(view.outcome.is_some()),
            _ => Err(convert::mismatch()),
        }
    }

    async fn account_view(
        &self,
        call: &Call,
        query: impl Into<messages::Query>,
    ) -> Result<messages::AccountView, ApiError> {
        match self.query(call, query.into()).await?.result {
            Some(answer::Result::Account(view)) => Ok(view),
            _ => Err(convert::mismatch()),
        }
    }

    /// Checks a password against the account of an e-mail, and counts the attempt before anybody learns how it ended. Takes as long when
    /// there is no such account. Nothing is written for a caller who did not wait for the hash: the log is not for those who only ask.
    async fn attempt(
        &self,
        call: &Call,
        place: &Place<'_>,
        region: &str,
        request_id: &[u8],
        email: &EmailHash,
        password: &str,
    ) -> Result<messages::CredentialView, ApiError> {
        let accounts = self.accounts()?;
        // No account has a password that cannot be one, and that is no secret.
        let password = Password::new(password).map_err(|_| log_in_failed())?;
        let get = messages::GetCredential { email_hash: email.to_vec() };
        let Some(answer::Result::Credential(found)) =
            self.query(call, messages::Query::from(get)).await?.result
        else {
            return Err(convert::mismatch());
        };
        let right = match found.exhausted {
            // The region will say so.
            true => false,
            false => {
                let check = place.check(&accounts.secrets, &password, found.credential.as_ref(), email);
                within(call, check).await?
            }
        };
        let step = accounts.secrets.step_id(request_id, "attempt");
        let count = messages::CountAttempt { email_hash: email.to_vec() };
        self.decide(call, region, &hex(email), step, count).await?;
        match right {
            true if !found.account_id.is_empty() => Ok(found),
            _ => Err(log_in_failed()),
        }
    }

    /// What `checked` comes to when it says that a password is wrong: a copy of the request may have been decided meanwhile, and have
    /// changed what it was checked against. `None` then.
    async fn unless_decided<T>(
        &self,
        call: &Call,
        request_id: &[u8],
        checked: Result<T, ApiError>,
    ) -> Result<Option<T>, ApiError> {
        match checked {
            Err(ApiError::Plain { reason: "LOG_IN_FAILED", .. })
                if self.is_decided(call, request_id).await? =>
            {
                Ok(None)
            }
            checked => checked.map(Some),
        }
    }

    /// A person's key; an error when it was erased.
    async fn person(&self, call: &Call, id: &[u8]) -> Result<Arc<PersonKey>, ApiError> {
        self.person_unless_erased(call, id).await?.ok_or_else(|| {
            ApiError::precondition("PERSON_ERASED", "what was personal of this account was erased for ever")
        })
    }

    async fn person_unless_erased(&self, call: &Call, id: &[u8]) -> Result<Option<Arc<PersonKey>>, ApiError> {
        let Accounts { persons, secrets, .. } = self.accounts()?;
        persons.key(&self.0.client, secrets, call.group, key_id(id)?, call.deadline.at).await
    }

    /// An account as its owner sees it.
    async fn shown(&self, call: &Call, view: messages::AccountView) -> Result<v1::Account, ApiError> {
        let key = self.person_unless_erased(call, &view.key_id).await?;
        let text = |number: u32| -> Result<String, ApiError> {
            let sealed = view.personal.iter().find(|sealed| sealed.field == number);
            match (sealed, &key) {
                (Some(sealed), Some(key)) => key.open(number, &sealed.ciphertext).map_err(|_| {
                    ApiError::internal(format!("field {number} of account {} does not open", view.account_id))
                }),
                _ => Ok(String::new()),
            }
        };
        Ok(v1::Account {
            name: view.subject.clone(),
            email: text(field::EMAIL)?,
            display_name: text(field::DISPLAY_NAME)?,
            locale: text(field::LOCALE)?,
            time_zone: text(field::TIME_ZONE)?,
            roles: shown_roles(view.roles),
            revision: view.revision,
            created_at: Some(convert::timestamp(view.created_at_ms)),
            erased: key.is_none(),
        })
    }

    /// The tokens of a session that a region has granted.
    fn tokens(&self, region: &str, granted: &messages::SessionGranted) -> Result<v1::Tokens, ApiError> {
        let accounts = self.accounts()?;
        let session = key_id(&granted.session_id)?;
        let account = granted.account_id.as_str();
        let (subject, roles) = (names::account(region, account), roles_of(granted.roles));
        // From the decision on, not from now on: an old answer that is given again opens nothing.
        let granted_ms = granted.granted_at_ms;
        let access_token = accounts
            .minter
            .mint_access(&subject, &roles, granted_ms, ACCESS_LIFETIME, session)
            .map_err(|error| ApiError::internal(format!("an access token cannot be made: {error}")))?;
        let refresh = RefreshToken { region, account, session, generation: granted.generation };
        let expires_ms = granted_ms.saturating_add(ACCESS_LIFETIME.as_millis() as u64);
        Ok(v1::Tokens {
            access_token,
            access_expires_at: Some(convert::timestamp(expires_ms)),
            refresh_token: accounts.secrets.refresh_token(&refresh),
        })
    }

    /// Has roles changed by an admin.
    async fn change_roles(
        &self,
        call: &Call,
        name: &str,
        request_id: &str,
        (granted, withdrawn): (u32, u32),
    ) -> Result<(Vec<i32>, Option<v1::Receipt>), ApiError> {
        let (region, account) = names::parse_account("name", name)?;
        let id = request_id::parse("request_id", request_id, call.now_ms)?;
        let change = messages::ChangeRoles { account_id: account.to_owned(), granted, withdrawn };
        match self.decide(call, region, account, id, change).await? {
            Decided { outcome: Done::Account(view), receipt } => Ok((shown_roles(view.roles), receipt)),
            _ => Err(convert::mismatch()),
        }
    }

    /// Erases a key that no account has, without anybody waiting for it.
    fn erase_later(&self, group: u32, id: KeyId) {
        let edge = Arc::clone(&self.0);
        tokio::spawn(async move {
            if let Err(error) = edge.client.erase_key(group, id, ERASE_WITHIN).await {
                tracing::debug!(%error, "a key that no account has stays in the keyring");
            }
        });
    }

    async fn register_as(
        &self,
        call: Call,
        message: v1::RegisterRequest,
    ) -> Result<v1::RegisterResponse, ApiError> {
        let accounts = self.accounts()?;
        let region = names::parse_region("parent", &message.parent)?;
        let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
        let (email, spelling) = self.email("email", &message.email)?;
        let password = Password::new(&message.password).map_err(|why| ApiError::field("password", why))?;
        if message.password.trim().to_lowercase() == spelling {
            return Err(ApiError::field("password", "is the e-mail: choose another one"));
        }
        check_name("display_name", &message.display_name)?;
        check_tag("locale", &message.locale)?;
        check_tag("time_zone", &message.time_zone)?;
        let place = accounts.passwords.place(call.peer)?;
        let call = call.in_name_of("email", &email);
        let credential = within(&call, place.credential(&accounts.secrets, &password)).await?;
        drop(place);
        let made = accounts.persons.make(&self.0.client, &accounts.secrets, call.group, call.deadline.at);
        let (key_id, key) = made.await?;
        let fields = [
            (field::EMAIL, message.email.trim()),
            (field::DISPLAY_NAME, &message.display_name),
            (field::LOCALE, &message.locale),
            (field::TIME_ZONE, &message.time_zone),
        ];
        let sealed = |(number, text): (u32, &str)| messages::Sealed {
            field: number,
            ciphertext: key.seal(number, text),
        };
        let register = messages::Register {
            email_hash: email.to_vec(),
            key_id: key_id.to_vec(),
            personal: fields.into_iter().map(sealed).collect(),
            credential: Some(credential),
            region: names::region(region),
        };
        let decided = self.decide(&call, region, &hex(&email), id, register).await;
        // Where nobody will ever use the key it goes. In doubt it stays.
        let used = match &decided {
            Ok(Decided { outcome: Done::Registered(registered), .. }) => registered.key_id == key_id,
            Err(ApiError::Client { error: ClientError::Unknown { .. }, .. } | ApiError::Plain { .. }) => true,
            Ok(_) | Err(_) => false,
        };
        if !used {
            self.erase_later(call.group, key_id);
        }
        Ok(v1::RegisterResponse { receipt: decided?.receipt })
    }

    /// The session that somebody may begin whose password is right.
    async fn session_for(
        &self,
        call: &Call,
        place: &Place<'_>,
        region: &str,
        request_id: &[u8],
        (email, message): (&EmailHash, &v1::LogInRequest),
    ) -> Result<messages::StartSession, ApiError> {
        let accounts = self.accounts()?;
        let found = self.attempt(call, place, region, request_id, email, &message.password).await?;
        let device = match message.device.as_str() {
            "" => None,
            device => {
                let key = self.person(call, &found.key_id).await?;
                Some(messages::Sealed { field: field::DEVICE, ciphertext: key.seal(field::DEVICE, device) })
            }
        };
        let (account, session) = (found.account_id.as_str(), tidewall_env::random::secret());
        let first = RefreshToken { region, account, session, generation: 1 };
        Ok(messages::StartSession {
            email_hash: email.to_vec(),
            credential_revision: found.credential_revision,
            session_id: session.to_vec(),
            token_hash: accounts.secrets.refresh_hash(&first).to_vec(),
            device,
        })
    }

    async fn log_in_as(&self, call: Call, message: v1::LogInRequest) -> Result<v1::LogInResponse, ApiError> {
        let accounts = self.accounts()?;
        let region = names::parse_region("parent", &message.parent)?;
        let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
        let (email, _) = self.email("email", &message.email)?;
        check_name("device", &message.device)?;
        let place = accounts.passwords.place(call.peer)?;
        let call = call.in_name_of("email", &email);
        let start = match self.is_decided(&call, &id).await? {
            true => messages::StartSession::default(),
            false => {
                let session = self.session_for(&call, &place, region, &id, (&email, &message)).await;
                self.unless_decided(&call, &id, session).await?.unwrap_or_default()
            }
        };
        drop(place);
        let Decided { outcome: Done::SessionGranted(granted), receipt } =
            self.decide(&call, region, &hex(&email), id, start).await?
        else {
            return Err(convert::mismatch());
        };
        Ok(v1::LogInResponse {
            account: names::account(region, &granted.account_id),
            session: names::session(region, &granted.account_id, &granted.session_id),
            tokens: Some(self.tokens(region, &granted)?),
            receipt,
        })
    }

    async fn refresh_as(
        &self,
        call: Call,
        message: v1::RefreshRequest,
    ) -> Result<v1::RefreshResponse, ApiError> {
        let secrets = &self.accounts()?.secrets;
        let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
        let token =
            secrets.parse_refresh_token(&message.refresh_token).ok_or_else(ApiError::session_invalid)?;
        let next = RefreshToken { generation: token.generation.saturating_add(1), ..token.clone() };
        let refresh = messages::RefreshSession {
            account_id: token.account.to_owned(),
            session_id: token.session.to_vec(),
            generation: token.generation,
            token_hash: secrets.refresh_hash(&token).to_vec(),
            next_hash: secrets.refresh_hash(&next).to_vec(),
        };
        let call = call.in_name_of("session", &token.session);
        let decided = self.decide(&call, token.region, token.account, id, refresh).await?;
        match decided.outcome {
            Done::SessionGranted(granted) => {
                let tokens = Some(self.tokens(token.region, &granted)?);
                Ok(v1::RefreshResponse { tokens, receipt: decided.receipt })
            }
            // Somebody has a copy of the token.
            Done::SessionEnded(_) => Err(ApiError::session_invalid()),
            _ => Err(convert::mismatch()),
        }
    }

    async fn change_password_as(
        &self,
        call: Call,
        message: v1::ChangePasswordRequest,
    ) -> Result<v1::ChangePasswordResponse, ApiError> {
        let accounts = self.accounts()?;
        let (region, account) = names::parse_account("name", &message.name)?;
        let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
        let new = Password::new(&message.new_password).map_err(|why| ApiError::field("new_password", why))?;
        if call.principal.subject != message.name {
            let why = format!("{} may not change the password of another account", call.principal.subject);
            return Err(ApiError::denied("NOT_YOUR_ACCOUNT", why));
        }
        let place = accounts.passwords.place(call.peer)?;
        let mut change = messages::ChangePassword { account_id: account.to_owned(), ..Default::default() };
        if !self.is_decided(&call, &id).await? {
            let get = messages::GetAccount { account_id: account.to_owned() };
            let view = self.account_view(&call, get).await?;
            let email: EmailHash = view.email_hash.as_slice().try_into().map_err(|_| convert::mismatch())?;
            let old = &message.current_password;
            let attempt = self.attempt(&call, &place, region, &id, &email, old).await;
            if let Some(found) = self.unless_decided(&call, &id, attempt).await? {
                change.credential_revision = found.credential_revision;
                change.credential = Some(within(&call, place.credential(&accounts.secrets, &new)).await?);
                change.kept_session_id = call.principal.session.map(Vec::from).unwrap_or_default();
            }
        }
        drop(place);
        let decided = self.decide(&call, region, account, id, change).await?;
        Ok(v1::ChangePasswordResponse { receipt: decided.receipt })
    }
}

/// Waits no longer than the caller does.
async fn within<T>(
    call: &Call,
    hash: impl std::future::Future<Output = Result<T, ApiError>>,
) -> Result<T, ApiError> {
    let late = |_| ApiError::overloaded("the passwords that came before took until the deadline");
    tokio::time::timeout_at(call.deadline.at, hash).await.map_err(late)?
}

#[tonic::async_trait]
impl AccountService for Services {
    async fn register(
        &self,
        request: Request<v1::RegisterRequest>,
    ) -> Result<Response<v1::RegisterResponse>, Status> {
        self.0.run(Method::Register, request, |call, message| self.register_as(call, message)).await
    }

    async fn log_in(
        &self,
        request: Request<v1::LogInRequest>,
    ) -> Result<Response<v1::LogInResponse>, Status> {
        self.0.run(Method::LogIn, request, |call, message| self.log_in_as(call, message)).await
    }

    async fn refresh(
        &self,
        request: Request<v1::RefreshRequest>,
    ) -> Result<Response<v1::RefreshResponse>, Status> {
        self.0.run(Method::Refresh, request, |call, message| self.refresh_as(call, message)).await
    }

    async fn log_out(
        &self,
        request: Request<v1::LogOutRequest>,
    ) -> Result<Response<v1::LogOutResponse>, Status> {
        let handler = |call: Call, message: v1::LogOutRequest| async move {
            let secrets = &self.accounts()?.secrets;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let token =
                secrets.parse_refresh_token(&message.refresh_token).ok_or_else(ApiError::session_invalid)?;
            let end = messages::EndSession {
                account_id: token.account.to_owned(),
                session_id: token.session.to_vec(),
                token_hash: secrets.refresh_hash(&token).to_vec(),
            };
            let call = call.in_name_of("session", &token.session);
            let decided = self.decide(&call, token.region, token.account, id, end).await?;
            Ok(v1::LogOutResponse { receipt: decided.receipt })
        };
        self.0.run(Method::LogOut, request, handler).await
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let handler = |call: Call, message: v1::ListSessionsRequest| async move {
            check_consistency(message.consistency)?;
            self.accounts()?;
            let (region, account) = names::parse_account("parent", &message.parent)?;
            check_may_see(&call, &message.parent)?;
            let list = messages::ListSessions { account_id: account.to_owned() };
            let Some(answer::Result::Sessions(list)) =
                self.query(&call, messages::Query::from(list)).await?.result
            else {
                return Err(convert::mismatch());
            };
            let key = self.person_unless_erased(&call, &list.key_id).await?;
            let device = |view: &messages::SessionView| {
                let (sealed, key) = (view.device.as_ref()?, key.as_ref()?);
                key.open(field::DEVICE, &sealed.ciphertext).ok()
            };
            let current = call.principal.session;
            let session = |view: messages::SessionView| v1::Session {
                name: names::session(region, account, &view.session_id),
                device: device(&view).unwrap_or_default(),
                created_at: Some(convert::timestamp(view.created_at_ms)),
                refreshed_at: Some(convert::timestamp(view.refreshed_at_ms)),
                current: current.is_some_and(|current| current == *view.session_id),
            };
            Ok(v1::ListSessionsResponse { sessions: list.sessions.into_iter().map(session).collect() })
        };
        self.0.run(Method::ListSessions, request, handler).await
    }

    async fn revoke_session(
        &self,
        request: Request<v1::RevokeSessionRequest>,
    ) -> Result<Response<v1::RevokeSessionResponse>, Status> {
        let handler = |call: Call, message: v1::RevokeSessionRequest| async move {
            let (name, account, session) = names::parse_session("name", &message.name)?;
            let (region, _) = names::parse_account("name", name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let end = messages::EndSession {
                account_id: account.to_owned(),
                session_id: session.to_vec(),
                token_hash: Vec::new(),
            };
            let decided = self.decide(&call, region, account, id, end).await?;
            Ok(v1::RevokeSessionResponse { receipt: decided.receipt })
        };
        self.0.run(Method::RevokeSession, request, handler).await
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        let handler = |call: Call, message: v1::GetAccountRequest| async move {
            check_consistency(message.consistency)?;
            self.accounts()?;
            let (_, account) = names::parse_account("name", &message.name)?;
            check_may_see(&call, &message.name)?;
            let get = messages::GetAccount { account_id: account.to_owned() };
            let view = self.account_view(&call, get).await?;
            Ok(v1::GetAccountResponse { account: Some(self.shown(&call, view).await?) })
        };
        self.0.run(Method::GetAccount, request, handler).await
    }

    async fn find_account(
        &self,
        request: Request<v1::FindAccountRequest>,
    ) -> Result<Response<v1::FindAccountResponse>, Status> {
        let handler = |call: Call, message: v1::FindAccountRequest| async move {
            check_consistency(message.consistency)?;
            names::parse_region("parent", &message.parent)?;
            let (email, _) = self.email("email", &message.email)?;
            let find = messages::FindAccount { email_hash: email.to_vec() };
            let view = self.account_view(&call, find).await?;
            Ok(v1::FindAccountResponse { account: Some(self.shown(&call, view).await?) })
        };
        self.0.run(Method::FindAccount, request, handler).await
    }

    async fn update_profile(
        &self,
        request: Request<v1::UpdateProfileRequest>,
    ) -> Result<Response<v1::UpdateProfileResponse>, Status> {
        let handler = |call: Call, message: v1::UpdateProfileRequest| async move {
            self.accounts()?;
            let account = message.account.ok_or_else(|| ApiError::field("account", "is missing"))?;
            let (region, account_id) = names::parse_account("account.name", &account.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let fields = masked(&account, message.update_mask.as_ref())?;
            if call.principal.subject != account.name {
                let why = format!("{} may not change another account", call.principal.subject);
                return Err(ApiError::denied("NOT_YOUR_ACCOUNT", why));
            }
            let get = messages::GetAccount { account_id: account_id.to_owned() };
            let key = self.person(&call, &self.account_view(&call, get).await?.key_id).await?;
            let sealed = |(number, text): (u32, &str)| messages::Sealed {
                field: number,
                ciphertext: key.seal(number, text),
            };
            let update = messages::UpdateProfile {
                account_id: account_id.to_owned(),
                personal: fields.into_iter().map(sealed).collect(),
                expected_revision: account.revision,
            };
            let Decided { outcome: Done::Account(view), receipt } =
                self.decide(&call, region, account_id, id, update).await?
            else {
                return Err(convert::mismatch());
            };
            Ok(v1::UpdateProfileResponse { account: Some(self.shown(&call, view).await?), receipt })
        };
        self.0.run(Method::UpdateProfile, request, handler).await
    }

    async fn change_password(
        &self,
        request: Request<v1::ChangePasswordRequest>,
    ) -> Result<Response<v1::ChangePasswordResponse>, Status> {
        self.0
            .run(Method::ChangePassword, request, |call, message| self.change_password_as(call, message))
            .await
    }

    async fn grant_role(
        &self,
        request: Request<v1::GrantRoleRequest>,
    ) -> Result<Response<v1::GrantRoleResponse>, Status> {
        let handler = |call: Call, message: v1::GrantRoleRequest| async move {
            let change = (bit(message.role()).into(), 0);
            let (roles, receipt) =
                self.change_roles(&call, &message.name, &message.request_id, change).await?;
            Ok(v1::GrantRoleResponse { roles, receipt })
        };
        self.0.run(Method::GrantRole, request, handler).await
    }

    async fn withdraw_role(
        &self,
        request: Request<v1::WithdrawRoleRequest>,
    ) -> Result<Response<v1::WithdrawRoleResponse>, Status> {
        let handler = |call: Call, message: v1::WithdrawRoleRequest| async move {
            let change = (0, bit(message.role()).into());
            let (roles, receipt) =
                self.change_roles(&call, &message.name, &message.request_id, change).await?;
            Ok(v1::WithdrawRoleResponse { roles, receipt })
        };
        self.0.run(Method::WithdrawRole, request, handler).await
    }

    async fn bootstrap_admin(
        &self,
        request: Request<v1::BootstrapAdminRequest>,
    ) -> Result<Response<v1::BootstrapAdminResponse>, Status> {
        let handler = |call: Call, message: v1::BootstrapAdminRequest| async move {
            let (region, account) = names::parse_account("name", &message.name)?;
            let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
            let bootstrap = messages::BootstrapAdmin { account_id: account.to_owned() };
            let decided = self.decide(&call, region, account, id, bootstrap).await?;
            Ok(v1::BootstrapAdminResponse { receipt: decided.receipt })
        };
        self.0.run(Method::BootstrapAdmin, request, handler).await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mask_names_each_field_once() {
        let account = v1::Account {
            display_name: "Ann".into(),
            locale: "de-AT".into(),
            time_zone: "Europe/Vienna".into(),
            ..Default::default()
        };
        let of = |paths: &[&str]| {
            let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
            masked(&account, Some(&mask)).map(|fields| fields.len())
        };
        assert_eq!(of(&["display_name", "time_zone"]).unwrap(), 2);
        for wrong in [&[][..], &["email"], &["roles"], &["locale", "locale"]] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
        assert!(masked(&account, None).is_err());
        let odd = [
            v1::Account { display_name: "x".repeat(101), ..Default::default() },
            v1::Account { display_name: "a\nb".into(), ..Default::default() },
        ];
        for account in odd {
            let mask = FieldMask { paths: vec!["display_name".into()] };
            assert!(masked(&account, Some(&mask)).is_err());
        }
        for tag in ["de AT", "\u{e4}", &"x".repeat(65)] {
            assert!(check_tag("locale", tag).is_err(), "{tag}");
        }
    }
}
