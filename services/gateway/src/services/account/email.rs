//! E-mails that are unique in all regions: which group keeps one, and waiting until it has said whether it is free.

use std::time::Duration;

use tidewall_client::ClientError;
use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, ClaimingState, answer};
use tidewall_proto::v1;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::EmailHash;
use super::profile::field;
use crate::convert::{self, Decided};
use crate::edge::Call;
use crate::errors::ApiError;
use crate::services::Services;
use crate::{names, request_id};

/// Pauses before it is asked again whether an e-mail is free: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(4);
const PAUSE_MAX: Duration = Duration::from_millis(200);

impl Services {
    /// The group that keeps who has an e-mail.
    pub(super) fn keeper(&self, email: &EmailHash) -> u32 {
        let regions = &self.0.topology.regions;
        let head = email.first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
        regions.get((head % regions.len().max(1) as u64) as usize).map_or(0, |region| region.group)
    }

    /// Waits until it is known what came of the claim of an e-mail.
    pub(super) async fn settled(
        &self,
        call: &Call,
        request_id: &[u8],
        claim_id: &[u8],
    ) -> Result<ClaimingState, ApiError> {
        let mut pause = PAUSE_MIN;
        loop {
            let get = messages::GetClaiming { claim_id: claim_id.to_vec() };
            let answer = self.query(call, messages::Query::from(get)).await;
            let Some(answer::Result::Claiming(view)) =
                answer.map_err(|why| why.of_request(request_id))?.result
            else {
                return Err(convert::mismatch());
            };
            if view.state() != ClaimingState::Open {
                return Ok(view.state());
            }
            if Instant::now() + pause >= call.deadline.at {
                let why = "the region that keeps the e-mail has not answered before the deadline".to_owned();
                let request_id = Some(request_id::format(request_id));
                return Err(ApiError::Client { error: ClientError::Unknown { why }, request_id });
            }
            sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    pub(super) async fn change_email_as(
        &self,
        call: Call,
        message: v1::ChangeEmailRequest,
    ) -> Result<v1::ChangeEmailResponse, ApiError> {
        let accounts = self.accounts()?;
        let (region, account) = names::parse_account("name", &message.name)?;
        let id = request_id::parse("request_id", &message.request_id, call.now_ms)?;
        let (email, _) = self.email("new_email", &message.new_email)?;
        if call.principal.subject != message.name {
            let why = format!("{} may not change the e-mail of another account", call.principal.subject);
            return Err(ApiError::denied("NOT_YOUR_ACCOUNT", why));
        }
        accounts.passwords.check_room(call.peer)?;
        let get = messages::GetAccount { account_id: account.to_owned() };
        let mut change = messages::ChangeEmail {
            account_id: account.to_owned(),
            email_hash: email.to_vec(),
            claim_group: self.keeper(&email),
            ..Default::default()
        };
        if !self.is_decided(&call, &id).await? {
            let view = self.account_view(&call, get.clone()).await?;
            let old: EmailHash = view.email_hash.as_slice().try_into().map_err(|_| convert::mismatch())?;
            let attempt = self.attempt(&call, region, &id, &old, &message.current_password).await;
            if let Some(found) = self.unless_decided(&call, &id, attempt).await? {
                let key = self.person(&call, &view.key_id).await?;
                let ciphertext = key.seal(field::EMAIL, message.new_email.trim());
                change.credential_revision = found.credential_revision;
                change.email = Some(messages::Sealed { field: field::EMAIL, ciphertext });
            }
        }
        let Decided { outcome: Done::Claiming(claiming), receipt } =
            self.decide(&call, region, account, id.clone(), change).await?
        else {
            return Err(convert::mismatch());
        };
        let changed = match self.settled(&call, &id, &claiming.claim_id).await? {
            ClaimingState::Done => true,
            ClaimingState::Taken => return Err(taken()),
            // It ended long ago: the account says how.
            ClaimingState::Unspecified | ClaimingState::Open => {
                self.account_view(&call, get).await?.email_hash == email
            }
            ClaimingState::Undone => false,
        };
        if changed { Ok(v1::ChangeEmailResponse { receipt }) } else { Err(not_changed()) }
    }
}

fn taken() -> ApiError {
    ApiError::Plain {
        code: Code::AlreadyExists,
        reason: "EMAIL_TAKEN",
        message: "another account has this e-mail: nothing was changed".to_owned(),
    }
}

fn not_changed() -> ApiError {
    ApiError::Plain {
        code: Code::Aborted,
        reason: "EMAIL_NOT_CHANGED",
        message: "whether the e-mail is free could not be found out in time, and nothing was changed: ask again, under a new request id"
            .to_owned(),
    }
}
