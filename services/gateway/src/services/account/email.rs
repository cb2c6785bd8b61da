//! E-mails that are unique in all regions: which group keeps one, and waiting until it has said whether it is free.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tidewall_client::ClientError;
use tidewall_messages::ModuleQuery as _;
use tidewall_messages::accounts::outcome::Result as Done;
use tidewall_messages::accounts::{self as messages, ClaimingState, answer};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::EmailHash;
use super::profile::field;
use crate::accounts::persons::KeyId;
use crate::convert::{self, Decided};
use crate::edge::{Call, Edge};
use crate::errors::ApiError;
use crate::reads::SeenRegions;
use crate::services::Services;
use crate::{names, request_id};

/// Pauses before it is asked again whether an e-mail is free: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(4);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// What came of a claim is waited for so long when its caller has gone: longer than a region waits for another one.
const TRIAL_MAX: Duration = Duration::from_secs(120);
/// And asked so often.
const TRIAL_EVERY: Duration = Duration::from_secs(2);
/// How long one answer is waited for then.
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// How long erasing a key that nobody uses may take.
const ERASE_WITHIN: Duration = Duration::from_secs(5);

/// Asks a region about accounts, beside all other calls: whoever waits for another region has been let in, and asks for little.
async fn ask(
    edge: &Edge,
    group: u32,
    query: impl Into<messages::Query>,
    deadline: Instant,
    seen: &SeenRegions,
) -> Result<Option<answer::Result>, ClientError> {
    let query: messages::Query = query.into();
    let (module, payload) = (messages::Query::MODULE.into(), query.encode_to_vec());
    let query = pb::Query { op: Some(pb::query::Op::Module(pb::ModuleQuery { module, payload })) };
    let found = edge.client.query(group, query, deadline).await?;
    if let Some(shown) = found.seen {
        seen.note(group, shown);
    }
    Ok(match found.result {
        Some(pb::query_result::Result::Module(answer)) => {
            messages::Answer::decode(answer).ok().and_then(|answer| answer.result)
        }
        _ => None,
    })
}

/// How a claim stands; `None` when the region does not say.
async fn claiming(
    edge: &Edge,
    group: u32,
    claim_id: &[u8],
    deadline: Instant,
    seen: &SeenRegions,
) -> Option<ClaimingState> {
    let get = messages::GetClaiming { claim_id: claim_id.to_vec() };
    match ask(edge, group, get, deadline, seen).await {
        Ok(Some(answer::Result::Claiming(view))) => Some(view.state()),
        _ => None,
    }
}

/// The key of the account that has an e-mail, if there is one.
async fn key_of(
    edge: &Edge,
    group: u32,
    email: &EmailHash,
    deadline: Instant,
    seen: &SeenRegions,
) -> Result<Option<Vec<u8>>, ClientError> {
    let find = messages::FindAccount { email_hash: email.to_vec() };
    Ok(match ask(edge, group, find, deadline, seen).await? {
        Some(answer::Result::Account(view)) => Some(view.key_id),
        _ => None,
    })
}

/// Erases a key that no account has, without anybody waiting for it.
pub(super) fn erase_later(edge: &Arc<Edge>, group: u32, id: KeyId) {
    let edge = Arc::clone(edge);
    tokio::spawn(async move {
        if let Err(error) = edge.client.erase_key(group, id, ERASE_WITHIN).await {
            tracing::debug!(%error, "a key that no account has stays in the keyring");
        }
    });
}

/// A key that an account may get: erased once it is certain that none does, also when whoever asked has gone.
pub(super) struct KeyOnTrial {
    pub(super) edge: Arc<Edge>,
    pub(super) group: u32,
    pub(super) key: KeyId,
    pub(super) email: EmailHash,
    /// The claim that decides; `None` when it is known what came of it.
    pub(super) claim_id: Option<Vec<u8>>,
}

impl KeyOnTrial {
    /// Some account has the key, or may have it.
    fn keep(mut self) {
        self.claim_id = None;
    }

    /// No account has it.
    fn erase(mut self) {
        self.claim_id = None;
        erase_later(&self.edge, self.group, self.key);
    }
}

impl Drop for KeyOnTrial {
    fn drop(&mut self) {
        let Some(claim_id) = self.claim_id.take() else { return };
        let (edge, group, key) = (Arc::clone(&self.edge), self.group, self.key);
        tokio::spawn(async move {
            let until = Instant::now() + TRIAL_MAX;
            while Instant::now() < until {
                sleep(TRIAL_EVERY).await;
                let until = Instant::now() + ANSWER_MAX;
                // Nobody waits for it who could have seen anything.
                match claiming(&edge, group, &claim_id, until, &SeenRegions::default()).await {
                    Some(ClaimingState::Taken | ClaimingState::Undone) => {
                        return erase_later(&edge, group, key);
                    }
                    // In doubt it stays: whose the e-mail is now need not be whose it was then.
                    Some(ClaimingState::Done | ClaimingState::Unspecified) => return,
                    Some(ClaimingState::Open) | None => {}
                }
            }
        });
    }
}

impl Services {
    /// The group that keeps who has an e-mail.
    pub(super) fn keeper(&self, email: &EmailHash) -> u32 {
        let regions = &self.0.topology.regions;
        let head = email.first_chunk().map_or(0, |head| u64::from_be_bytes(*head));
        regions.get((head % regions.len().max(1) as u64) as usize).map_or(0, |region| region.group)
    }

    /// Waits until it is known what came of the claim of an e-mail. Whatever hinders that, the request has been decided: it is unknown.
    async fn settled(
        &self,
        call: &Call,
        request_id: &[u8],
        claim_id: &[u8],
    ) -> Result<ClaimingState, ApiError> {
        let mut pause = PAUSE_MIN;
        loop {
            match claiming(&self.0, call.group, claim_id, call.deadline.at, &call.seen).await {
                Some(ClaimingState::Open) | None => {}
                Some(ended) => return Ok(ended),
            }
            if Instant::now() + pause >= call.deadline.at {
                let why = "the region that keeps the e-mail has not answered before the deadline";
                return Err(unknown(why, request_id));
            }
            sleep(pause).await;
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    /// Waits until it is known whether an account was made, with the key that is on trial.
    pub(super) async fn registered(
        &self,
        call: &Call,
        request_id: &[u8],
        trial: KeyOnTrial,
    ) -> Result<(), ApiError> {
        let claim_id = trial.claim_id.clone().unwrap_or_default();
        let state = self.settled(call, request_id, &claim_id).await?;
        // Also when the answer is known: how long it takes must not tell what it is.
        let has = key_of(&self.0, call.group, &trial.email, call.deadline.at, &call.seen).await;
        let has = has.map_err(|error| unknown(&error.to_string(), request_id))?;
        match (state, has) {
            (ClaimingState::Taken, _) => trial.erase(),
            (ClaimingState::Undone, _) => {
                trial.erase();
                return Err(not_registered());
            }
            // It ended long ago, and nobody knows how.
            (ClaimingState::Unspecified, _) => {
                trial.keep();
                return Err(forgotten());
            }
            // Another copy of the request has brought another key.
            (ClaimingState::Done, Some(has)) if has != trial.key => trial.erase(),
            (ClaimingState::Done | ClaimingState::Open, _) => trial.keep(),
        }
        Ok(())
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
            let view = self.account_view(&call, get).await?;
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
        match self.settled(&call, &id, &claiming.claim_id).await? {
            ClaimingState::Done => Ok(v1::ChangeEmailResponse { receipt }),
            ClaimingState::Taken => Err(taken()),
            ClaimingState::Unspecified | ClaimingState::Open => Err(forgotten()),
            ClaimingState::Undone => Err(not_changed()),
        }
    }
}

/// A request was decided, and nobody knows what came of it.
fn unknown(why: &str, request_id: &[u8]) -> ApiError {
    let request_id = Some(request_id::format(request_id));
    ApiError::Client { error: ClientError::Unknown { why: why.to_owned() }, request_id }
}

/// Nothing was decided about the e-mail, for good.
fn not_registered() -> ApiError {
    ApiError::Plain {
        code: Code::Aborted,
        reason: "NOT_REGISTERED",
        message: "whether the e-mail is free could not be found out in time, and no account was made: register again, under a new \
                  request id"
            .to_owned(),
    }
}

/// A claim ended so long ago that nobody knows how.
fn forgotten() -> ApiError {
    let why = "is of a request that was decided, and how it ended is not known any more: log in, or look at the account, to see it";
    ApiError::field_reason("request_id", "REQUEST_ID_EXPIRED", why)
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
