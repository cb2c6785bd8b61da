//! Passwords and tokens on their way to and from a region: registering, logging in, refreshing, another password.
//!
//! Nothing that is answered, and no time that it takes, tells whether an e-mail has an account.

use std::sync::Arc;

use tidewall_client::ClientError;
use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, answer};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;

use super::email::{KeyOnTrial, erase_later};
use super::profile::{check_name, check_tag, field};
use super::{EmailHash, key_id};
use crate::accounts::passwords::Password;
use crate::accounts::{ACCESS_LIFETIME, RefreshToken};
use crate::auth::roles_of;
use crate::convert::{self, Decided, hex};
use crate::edge::Call;
use crate::errors::ApiError;
use crate::services::Services;
use crate::{names, request_id};

fn log_in_failed() -> ApiError {
    ApiError::unauthenticated("LOG_IN_FAILED", messages::LOG_IN_FAILED)
}

impl Services {
    /// Whether a request has been decided: then it is not checked again, because what it was checked against may have changed with it.
    /// Its fingerprint then has the region give the first answer, to copies of the first message alone, whatever the command.
    pub(super) async fn is_decided(&self, call: &Call, request_id: &[u8]) -> Result<bool, ApiError> {
        let principal = call.principal.subject.clone();
        let get = pb::GetOutcome { principal, request_id: request_id.to_vec() };
        match self.look(call, pb::query::Op::GetOutcome(get)).await? {
            pb::query_result::Result::Outcome(view) => Ok(view.outcome.is_some()),
            _ => Err(convert::mismatch()),
        }
    }

    /// Checks a password against the account of an e-mail, and counts the attempt before anybody learns how it ended. Takes as long when
    /// there is no such account. Nothing is written for a caller who did not wait for the hash: the log is not for those who only ask.
    pub(super) async fn attempt(
        &self,
        call: &Call,
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
        let step = accounts.secrets.step_id(request_id, "attempt");
        let count = messages::CountAttempt { email_hash: email.to_vec() };
        if found.exhausted {
            // A hash would be for nothing, unless this is a copy of an attempt that was counted.
            let counted = self.decide(call, region, &hex(email), step.clone(), count.clone()).await;
            counted.map_err(|why| why.of_request(request_id))?;
        }
        let right = {
            let place = accounts.passwords.place(call.peer)?;
            let check = place.check(&accounts.secrets, &password, found.credential.as_ref(), email);
            within(call, check).await?
        };
        if !found.exhausted {
            let counted = self.decide(call, region, &hex(email), step, count).await;
            counted.map_err(|why| why.of_request(request_id))?;
        }
        match right {
            true if !found.account_id.is_empty() => Ok(found),
            _ => Err(log_in_failed()),
        }
    }

    /// What `checked` comes to when it says that a password is wrong: a copy of the request may have been decided meanwhile, and have
    /// changed what it was checked against. `None` then.
    pub(super) async fn unless_decided<T>(
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
            access_expire_time: Some(convert::timestamp(expires_ms)),
            refresh_token: accounts.secrets.refresh_token(&refresh),
        })
    }

    pub(super) async fn register_as(
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
            claim_group: self.keeper(&email),
        };
        let decided = self.decide(&call, region, &hex(&email), id.clone(), register).await;
        if let Ok(Decided { outcome: Done::Claiming(claiming), receipt }) = decided {
            let edge = Arc::clone(&self.0);
            let claim_id = Some(claiming.claim_id);
            let trial = KeyOnTrial { edge, group: call.group, key: key_id, email, claim_id };
            self.registered(&call, &id, trial).await?;
            return Ok(v1::RegisterResponse { receipt });
        }
        // Where nobody will ever use the key it goes. In doubt it stays.
        let used = match &decided {
            Ok(Decided { outcome: Done::Registered(registered), .. }) => registered.key_id == key_id,
            Err(ApiError::Client { error: ClientError::Unknown { .. }, .. } | ApiError::Plain { .. }) => true,
            Ok(_) | Err(_) => false,
        };
        if !used {
            erase_later(&self.0, call.group, key_id);
        }
        Ok(v1::RegisterResponse { receipt: decided?.receipt })
    }

    /// The session that somebody may begin whose password is right.
    async fn session_for(
        &self,
        call: &Call,
        region: &str,
        request_id: &[u8],
        (email, message): (&EmailHash, &v1::LogInRequest),
    ) -> Result<messages::StartSession, ApiError> {
        let accounts = self.accounts()?;
        let found = self.attempt(call, region, request_id, email, &message.password).await?;
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

    pub(super) async fn log_in_as(
        &self,
        call: Call,
        message: v1::LogInRequest,
    ) -> Result<v1::LogInResponse, ApiError> {
        let accounts = self.accounts()?;
        let region = names::parse_region("parent", &message.parent)?;
        let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
        let (email, _) = self.email("email", &message.email)?;
        check_name("device", &message.device)?;
        accounts.passwords.check_room(call.peer)?;
        let call = call.in_name_of("email", &email);
        let start = match self.is_decided(&call, &id).await? {
            true => messages::StartSession::default(),
            false => {
                let session = self.session_for(&call, region, &id, (&email, &message)).await;
                self.unless_decided(&call, &id, session).await?.unwrap_or_default()
            }
        };
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

    pub(super) async fn refresh_as(
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

    pub(super) async fn change_password_as(
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
        accounts.passwords.check_room(call.peer)?;
        let mut change = messages::ChangePassword { account_id: account.to_owned(), ..Default::default() };
        if !self.is_decided(&call, &id).await? {
            let get = messages::GetAccount { account_id: account.to_owned() };
            let view = self.account_view(&call, get).await?;
            let email: EmailHash = view.email_hash.as_slice().try_into().map_err(|_| convert::mismatch())?;
            let old = &message.current_password;
            let attempt = self.attempt(&call, region, &id, &email, old).await;
            if let Some(found) = self.unless_decided(&call, &id, attempt).await? {
                change.credential_revision = found.credential_revision;
                let place = accounts.passwords.place(call.peer)?;
                change.credential = Some(within(&call, place.credential(&accounts.secrets, &new)).await?);
                change.kept_session_id = call.principal.session.map(Vec::from).unwrap_or_default();
            }
        }
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
