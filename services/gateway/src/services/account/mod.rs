//! `AccountService`: register, log in, refresh, log out; sessions, profiles, passwords, roles.
//!
//! Regions decide; what they must not see is turned into hashes and ciphertext on the way: passwords and tokens in `log_in`, personal
//! fields in `profile`.

mod email;
mod log_in;
mod profile;

use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, answer};
use tidewall_proto::v1;
use tidewall_proto::v1::account_service_server::AccountService;
use tonic::{Request, Response, Status};

use super::{Ask, Services};
use crate::accounts::persons::KeyId;
use crate::accounts::{Accounts, email as spelling};
use crate::auth::bit;
use crate::convert::{self, Decided};
use crate::edge::{Call, Method};
use crate::errors::ApiError;
use crate::{names, page, request_id};

use profile::{check_may_see, field, masked, shown_roles};

/// Sessions on a page, unless told otherwise: all that an account can have.
const SESSIONS_DEFAULT: u32 = 20;
/// Most sessions on a page.
const SESSIONS_MAX: u32 = 1_000;

/// What an e-mail is known by.
type EmailHash = [u8; 32];

fn key_id(bytes: &[u8]) -> Result<KeyId, ApiError> {
    bytes.try_into().map_err(|_| convert::mismatch())
}

impl Services {
    fn accounts(&self) -> Result<&Accounts, ApiError> {
        self.0.accounts.as_ref().ok_or_else(ApiError::accounts_not_served)
    }

    /// What an e-mail in a field is known by, and its one spelling.
    fn email(&self, field: &str, text: &str) -> Result<(EmailHash, String), ApiError> {
        let normalised = spelling::normalised(text).map_err(|why| ApiError::field(field, why))?;
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
            let token =
                secrets.parse_refresh_token(&message.refresh_token).ok_or_else(ApiError::session_invalid)?;
            let end = messages::EndSession {
                account_id: token.account.to_owned(),
                session_id: token.session.to_vec(),
                token_hash: secrets.refresh_hash(&token).to_vec(),
            };
            let call = call.in_name_of("session", &token.session);
            let decided =
                self.decide(&call, token.region, token.account, request_id::fresh(call.now_ms), end).await?;
            Ok(v1::LogOutResponse { receipt: decided.receipt })
        };
        self.0.run(Method::LogOut, request, handler).await
    }

    async fn list_sessions(
        &self,
        request: Request<v1::ListSessionsRequest>,
    ) -> Result<Response<v1::ListSessionsResponse>, Status> {
        let handler = |call: Call, message: v1::ListSessionsRequest| async move {
            self.accounts()?;
            let (region, account) = names::parse_account("parent", &message.parent)?;
            let wanted =
                (message.page_token.as_str(), page::size(message.page_size, SESSIONS_DEFAULT, SESSIONS_MAX)?);
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
                create_time: Some(convert::timestamp(view.created_at_ms)),
                refresh_time: Some(convert::timestamp(view.refreshed_at_ms)),
                current: current.is_some_and(|current| current == *view.session_id),
            };
            let sessions: Vec<v1::Session> = list.sessions.into_iter().map(session).collect();
            let scope = format!("sessions {}", message.parent);
            let (sessions, next_page_token) =
                page::of(sessions, &scope, wanted, |session: &v1::Session| session.name.clone())?;
            Ok(v1::ListSessionsResponse { sessions, next_page_token })
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
            let end = messages::EndSession {
                account_id: account.to_owned(),
                session_id: session.to_vec(),
                token_hash: Vec::new(),
            };
            let decided = self.decide(&call, region, account, request_id::fresh(call.now_ms), end).await?;
            Ok(v1::RevokeSessionResponse { receipt: decided.receipt })
        };
        self.0.run(Method::RevokeSession, request, handler).await
    }

    async fn get_account(
        &self,
        request: Request<v1::GetAccountRequest>,
    ) -> Result<Response<v1::GetAccountResponse>, Status> {
        let handler = |call: Call, message: v1::GetAccountRequest| async move {
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

    async fn change_email(
        &self,
        request: Request<v1::ChangeEmailRequest>,
    ) -> Result<Response<v1::ChangeEmailResponse>, Status> {
        self.0.run(Method::ChangeEmail, request, |call, message| self.change_email_as(call, message)).await
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
