//! The way every call takes before its service sees it: token, deadline, region, admission, signature, role;
//! and after it: metrics and the one mapping of errors. Nothing here knows what a method does.

use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tidewall_client::{ConnectedFrom, Connections, ShardClient, Topology};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1::{Effect, Priority};
use tidewall_proto::{Asks, Declared, Policy};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use crate::accounts::Accounts;
use crate::admission::{self, Admission, Arriving, End, Permit};
use crate::auth::{Authenticator, Caller, Principal};
use crate::budget::{Budget, Held};
use crate::deadline::Deadline;
use crate::errors::ApiError;
use crate::feed::Feeds;
use crate::metrics::Metrics;
use crate::names;
use crate::reads::{Reading, SEEN, SeenRegions};
use crate::webhooks::{Network, Outside};

pub(crate) use tidewall_proto::Method;

/// Who goes first in admission.
fn turn(priority: Priority) -> admission::Priority {
    match priority {
        Priority::Finish => admission::Priority::Finish,
        Priority::Start => admission::Priority::Start,
        Priority::Unspecified | Priority::Browse => admission::Priority::Browse,
    }
}

/// Whether success means that a single command went through the region's log.
fn writes(policy: &Policy) -> bool {
    matches!(policy.effect, Effect::Command | Effect::Idempotent)
}

fn deadline_of(policy: &Policy, metadata: &MetadataMap, now_ms: u64) -> Result<Deadline, ApiError> {
    if policy.transfers {
        Deadline::of_transfer(metadata, now_ms)
    } else {
        Deadline::of_call(metadata, now_ms)
    }
}

/// What a service gets to know of an admitted call.
pub(crate) struct Call {
    pub(crate) principal: Arc<Principal>,
    pub(crate) deadline: Deadline,
    /// When it arrived, by the time of the cluster, Unix ms.
    pub(crate) now_ms: u64,
    /// Shard group of the region; 0 for calls without one.
    pub(crate) group: u32,
    /// Hash of what the client sent; 0 for a method that writes nothing.
    pub(crate) fingerprint: u64,
    /// Where it came from.
    pub(crate) peer: Option<IpAddr>,
    /// It has no request id: whoever does not know what became of it sends it again.
    pub(crate) idempotent: bool,
    /// How fresh its answer must be.
    pub(crate) reading: Reading,
    /// How far its caller has seen the regions.
    pub(crate) seen: Arc<SeenRegions>,
    /// Finishes or undoes what was started.
    finishes: bool,
    /// It was not admitted as a whole: each of its steps waits for its turn in this region, as what it is.
    steps_in: Option<(usize, admission::Priority)>,
}

impl Call {
    /// The same call in the name of somebody who has no token: of an e-mail, or of a session. No token has such a subject by accident:
    /// what follows is a hash under a key, or random.
    pub(crate) fn in_name_of(self, kind: &str, id: &[u8]) -> Self {
        let subject = format!("?{kind}-{}", crate::convert::hex(id));
        Self { principal: Arc::new(Principal::nobody(subject)), ..self }
    }

    /// A part of a call for all regions: it looks at what one of them has, in its turn there.
    pub(crate) fn look_in(&self, position: usize, group: u32, deadline: Deadline) -> Self {
        let (principal, seen) = (Arc::clone(&self.principal), Arc::clone(&self.seen));
        let steps_in = Some((position, admission::Priority::Browse));
        Self { principal, seen, group, deadline, steps_in, ..*self }
    }

    /// What every command of the caller has in common; without a module it is a seal.
    pub(crate) fn command(&self, request_id: Vec<u8>, fingerprint: u64) -> pb::Command {
        pb::Command {
            principal: self.principal.subject.clone(),
            request_id,
            expires_at_ms: self.deadline.expires_at_ms,
            finishes: self.finishes,
            fingerprint,
            roles: self.principal.role_bits(),
            ..Default::default()
        }
    }
}

/// What guards a request id: the method, and the message as the client sent it. Whoever builds a command of it, and however, copies
/// of a request have the same one.
pub(crate) fn fingerprint(method: &str, parts: &[&[u8]]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
    for part in [method.as_bytes()].iter().chain(parts) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.digest()
}

/// What all services share.
pub(crate) struct Edge {
    pub(crate) topology: Arc<Topology>,
    pub(crate) client: Arc<ShardClient>,
    pub(crate) authenticator: Authenticator,
    pub(crate) admission: Admission,
    pub(crate) budget: Budget,
    pub(crate) connections: Connections,
    pub(crate) metrics: Metrics,
    /// What happens in the regions.
    pub(crate) feeds: Feeds,
    /// What it needs to serve accounts; none: it does not.
    pub(crate) accounts: Option<Accounts>,
    /// Networks that are not public and that webhooks may call all the same.
    pub(crate) webhook_networks: Vec<Network>,
    /// Who calls the servers of webhooks.
    pub(crate) outside: Arc<dyn Outside>,
    /// Places of those who have a webhook pinged.
    pub(crate) pings: Semaphore,
    /// Places of reads at standbys.
    pub(crate) reads: Semaphore,
}

/// Whatever waits under this name has not proven who it is: no event can be called so.
const UNVERIFIED_ROW: &str = "?unverified";
/// And under this one the steps of those who log in or register.
const STEPS_ROW: &str = "?steps";

/// How large a request is.
struct Size {
    bytes: usize,
    weight: usize,
}

/// A request on its way through the edge.
struct Arrived<'a> {
    policy: Policy,
    metadata: &'a MetadataMap,
    /// Name of the resource that it is about; empty: none.
    resource: &'a str,
    /// How fresh its answer must be.
    freshness: (i32, Option<prost_types::Duration>),
    /// How many single calls it weighs.
    weight: usize,
    /// Bytes of its message.
    bytes: usize,
    /// The connection that it came by.
    peer: Option<SocketAddr>,
    began: Instant,
}

impl Edge {
    /// Position of a region in the topology.
    pub(crate) fn region(&self, field: &str, name: &str) -> Result<usize, ApiError> {
        let id = names::leading_region(field, name)?;
        self.topology.regions.iter().position(|region| region.id == id).ok_or_else(|| {
            ApiError::not_found(
                "REGION_NOT_FOUND",
                format!("this cluster has no region {id}: RegionService.ListRegions lists those it has"),
            )
        })
    }

    /// Refuses what no gateway of this cluster has made.
    fn check_refresh_token(&self, text: &str) -> Result<(), ApiError> {
        let accounts = self.accounts.as_ref().ok_or_else(ApiError::accounts_not_served)?;
        accounts.secrets.parse_refresh_token(text).map(drop).ok_or_else(ApiError::session_invalid)
    }

    async fn enter<'a>(
        &'a self,
        arrived: &Arrived<'_>,
        region: &mut Option<usize>,
    ) -> Result<(Call, Option<Permit>, Held<'a>), ApiError> {
        let (policy, resource) = (arrived.policy, arrived.resource);
        let now_ms = self.client.clock().unix_ms();
        let caller = match policy.anonymous {
            true => Caller::Nobody,
            false => self.authenticator.look_up(arrived.metadata, now_ms)?,
        };
        let deadline = deadline_of(&policy, arrived.metadata, now_ms)?;
        let seen = match (SeenRegions::brought(arrived.metadata, &self.topology), policy.effect) {
            (seen, Effect::Read) => seen?,
            // Nothing that is decided depends on what was seen.
            (seen, _) => seen.unwrap_or_default(),
        };
        let seen = Arc::new(seen);
        let (consistency, age) = arrived.freshness;
        let reading = Reading::of(consistency, age)?;
        // What a token proves is known before anybody waits for it, and what it names is in no message about it.
        let shown =
            (policy.anonymous && !policy.stepwise).then(|| self.check_refresh_token(resource)).transpose()?;
        let routed = !policy.resource.is_empty();
        let position = routed.then(|| self.region(policy.resource, resource)).transpose()?;
        *region = position;
        let held = self.budget.hold(arrived.bytes, position, arrived.peer).ok_or_else(|| {
            ApiError::overloaded("this gateway holds as many bytes of large requests as it may")
        })?;
        // Who has proven who it is goes first as what it is. Proofs cost, so that not all can be looked at before the queue:
        // who comes beyond that waits, whatever it asks for, behind everybody who did.
        let caller = match caller {
            Caller::Unverified(_) if self.authenticator.may_verify_early(arrived.began) => {
                Caller::Known(self.authenticator.verify(caller, now_ms)?)
            }
            caller => caller,
        };
        let verified = matches!(caller, Caller::Known(_)) || shown.is_some();
        // What standbys answer takes no place at the active; it waits for one when it has to go there.
        let stepwise = policy.stepwise || (reading.age.is_some() && verified);
        let mut permit = None;
        let group = position.map_or(0, |position| self.topology.regions[position].group);
        if let Some(position) = position.filter(|_| !stepwise) {
            let turn = turn(policy.priority);
            let arriving = Arriving {
                region: position,
                priority: if turn == admission::Priority::Finish && !verified {
                    admission::Priority::Start
                } else {
                    turn
                },
                row: if verified { names::row(resource) } else { UNVERIFIED_ROW },
                weight: arrived.weight,
                at: arrived.began,
                deadline: deadline.at,
            };
            permit = Some(self.admission.enter(arriving).await?);
        }
        let principal = self.authenticator.verify(caller, now_ms)?;
        let roles = policy.roles;
        if let Some(first) = roles.first()
            && !roles.iter().any(|role| principal.has(*role))
        {
            principal.require(*first)?;
        }
        let call = Call {
            principal,
            deadline,
            now_ms,
            group,
            fingerprint: 0,
            peer: arrived.peer.map(|peer| peer.ip()),
            idempotent: policy.effect == Effect::Idempotent,
            reading,
            seen,
            finishes: policy.priority == Priority::Finish,
            steps_in: position.filter(|_| stepwise).map(|position| (position, turn(policy.priority))),
        };
        Ok((call, permit, held))
    }

    /// Has one step of a call done in its region, which waits for its turn if the call as a whole has not.
    pub(crate) async fn step<R>(
        &self,
        call: &Call,
        writes: bool,
        step: impl Future<Output = Result<R, ApiError>>,
    ) -> Result<R, ApiError> {
        let Some((region, priority)) = call.steps_in else { return step.await };
        let arriving = Arriving {
            region,
            priority,
            row: STEPS_ROW,
            weight: 1,
            at: Instant::now(),
            deadline: call.deadline.at,
        };
        let permit = self.admission.enter(arriving).await?;
        let result = step.await;
        let now = Instant::now();
        let end = end_of(writes, permit.took(now), &result);
        permit.end(now, end);
        result
    }

    /// What guards the request id of a message.
    fn fingerprint(&self, declared: &Declared, message: &impl prost::Message) -> u64 {
        let Declared { name, policy, .. } = declared;
        match &self.accounts {
            _ if !writes(policy) => 0,
            Some(accounts) if policy.secret => accounts.secrets.fingerprint(name, &message.encode_to_vec()),
            // Nothing is written then.
            None if policy.secret => 0,
            _ => fingerprint(name, &[&message.encode_to_vec()]),
        }
    }

    /// Runs one call that has a message.
    pub(crate) async fn run<T: prost::Message + Asks, R, Fut>(
        &self,
        method: Method,
        request: Request<T>,
        handler: impl FnOnce(Call, T) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        Fut: Future<Output = Result<R, ApiError>>,
    {
        self.run_weighing(method, request, 1, handler).await
    }

    /// Runs one call that stands for several.
    pub(crate) async fn run_weighing<T: prost::Message + Asks, R, Fut>(
        &self,
        method: Method,
        request: Request<T>,
        weight: usize,
        handler: impl FnOnce(Call, T) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        Fut: Future<Output = Result<R, ApiError>>,
    {
        let size = Size { bytes: request.get_ref().encoded_len(), weight };
        let declared = method.declared();
        let fingerprint = |message: &T| self.fingerprint(&declared, message);
        self.run_sized(method, request, size, (T::resource, T::freshness), fingerprint, handler).await
    }

    /// Runs one call whose request is a stream; the region is not known before its first message.
    pub(crate) async fn run_stream<T, R, Fut>(
        &self,
        method: Method,
        request: Request<T>,
        handler: impl FnOnce(Call, T) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        Fut: Future<Output = Result<R, ApiError>>,
    {
        let size = Size { bytes: 0, weight: 1 };
        self.run_sized(method, request, size, (|_: &T| "", |_: &T| (0, None)), |_| 0, handler).await
    }

    async fn run_sized<T, R, Fut>(
        &self,
        method: Method,
        request: Request<T>,
        Size { bytes, weight }: Size,
        (resource, freshness): (
            impl FnOnce(&T) -> &str,
            impl FnOnce(&T) -> (i32, Option<prost_types::Duration>),
        ),
        fingerprint: impl FnOnce(&T) -> u64,
        handler: impl FnOnce(Call, T) -> Fut,
    ) -> Result<Response<R>, Status>
    where
        Fut: Future<Output = Result<R, ApiError>>,
    {
        let peer = request.extensions().get::<ConnectedFrom>().and_then(ConnectedFrom::remote_addr);
        let (metadata, _, message) = request.into_parts();
        let began = Instant::now();
        let Declared { policy, .. } = method.declared();
        let deadline = deadline_of(&policy, &metadata, 0).ok().map(|deadline| deadline.at);
        let mut tally = Tally { metrics: &self.metrics, method, began, deadline, region: None, ended: false };
        let (metadata, resource, freshness) = (&metadata, resource(&message), freshness(&message));
        let arrived = Arrived { policy, metadata, resource, freshness, weight, bytes, peer, began };
        let mut seen = None;
        let (result, permit) = match self.enter(&arrived, &mut tally.region).await {
            Ok((call, permit, _held)) => {
                seen = Some(Arc::clone(&call.seen));
                // Only now: a call that is refused is not paid for.
                let call = Call { fingerprint: fingerprint(&message), ..call };
                (handler(call, message).await, permit)
            }
            Err(error) => (Err(error), None),
        };
        let now = Instant::now();
        if let Some(permit) = permit {
            let end = end_of(writes(&policy), permit.took(now), &result);
            permit.end(now, end);
        }
        tally.end(result.as_ref().map_or_else(ApiError::code, |_| Code::Ok), now);
        let seen = seen.and_then(|seen| seen.value(&self.topology));
        let mut response = match result {
            Ok(message) => Response::new(message),
            Err(error) => {
                let mut status = Status::from(error);
                if let Some(seen) = seen {
                    status.metadata_mut().insert(SEEN, seen);
                }
                return Err(status);
            }
        };
        if let Some(seen) = seen {
            response.metadata_mut().insert(SEEN, seen);
        }
        // Only lists are large enough for compression to save more than it costs.
        if !["List", "Search"].iter().any(|verb| method.declared().name.starts_with(verb)) {
            response.disable_compression();
        }
        Ok(response)
    }
}

/// Counts a call when it ends, also when its client gives it up.
struct Tally<'a> {
    metrics: &'a Metrics,
    method: Method,
    began: Instant,
    deadline: Option<Instant>,
    region: Option<usize>,
    ended: bool,
}

impl Tally<'_> {
    fn end(&mut self, code: Code, now: Instant) {
        self.ended = true;
        self.metrics.record(self.method, self.region, code, now.saturating_duration_since(self.began));
    }
}

impl Drop for Tally<'_> {
    fn drop(&mut self) {
        if !self.ended {
            // Dropped when its time is up, which its client is told elsewhere, or because its client does not wait any more.
            let now = Instant::now();
            let late = self.deadline.is_some_and(|deadline| now >= deadline);
            self.end(if late { Code::DeadlineExceeded } else { Code::Cancelled }, now);
        }
    }
}

/// What the end of a call that was under way for `took` tells of its region.
fn end_of<R>(writes: bool, took: Duration, result: &Result<R, ApiError>) -> End {
    match result {
        Ok(_) if writes => End::Decided(took),
        Ok(_) => End::Answered,
        Err(error) if error.is_answer() => End::Answered,
        // Whatever it was, it says nothing about how fast the region is.
        Err(_) => End::Unanswered,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::Role;

    /// A region that answers reads only, or only says no, is as fast as it is; one that is silent is not.
    #[test]
    fn answers_of_any_kind_count_and_failures_do_not() {
        let took = Duration::from_millis(7);
        assert_eq!(end_of(true, took, &Ok(())), End::Decided(took));
        assert_eq!(end_of(false, took, &Ok(())), End::Answered);
        let of = |error: ApiError| end_of::<()>(true, took, &Err(error));
        let plain = |code| ApiError::Plain { code, reason: "REASON", message: "message".to_owned() };
        assert_eq!(of(plain(Code::NotFound)), End::Answered);
        assert_eq!(of(plain(Code::FailedPrecondition)), End::Answered);
        assert_eq!(of(plain(Code::Unauthenticated)), End::Unanswered);
        assert_eq!(of(ApiError::field("tier", "is missing")), End::Unanswered);
        let unknown = tidewall_client::ClientError::Unknown { why: "nobody answered".to_owned() };
        assert_eq!(of(ApiError::Client { error: unknown, request_id: None }), End::Unanswered);
    }

    #[test]
    fn every_method_has_its_own_place_in_the_metrics() {
        for (position, method) in Method::ALL.into_iter().enumerate() {
            assert_eq!(method as usize, position, "{}", method.declared().name);
        }
    }

    /// What the .proto files say, for some that must never change without being noticed.
    #[test]
    fn who_may_do_what_and_who_goes_first() {
        let policy = |method: Method| method.declared().policy;
        for method in Method::ALL {
            let declared = method.declared();
            let operators = declared.service.ends_with("OperatorService");
            assert_eq!(declared.policy.roles == [Role::Operator], operators, "{}", declared.name);
            // A command without a region could be decided nowhere.
            assert!(!writes(&declared.policy) || !declared.policy.resource.is_empty(), "{}", declared.name);
        }
        assert_eq!(policy(Method::BatchBuyTickets).roles, [Role::Seller]);
        assert_eq!(policy(Method::UpdateEvent).roles, [Role::Organiser, Role::Operator]);
        assert_eq!(policy(Method::UpdateEvent).resource, "event.name");
        assert!(policy(Method::BuyTickets).roles.is_empty());
        let finish = [Method::ConfirmHold, Method::ReleaseHold, Method::CancelTicket, Method::SealRequestId];
        assert!(finish.iter().all(|method| policy(*method).priority == Priority::Finish));
        assert_eq!(policy(Method::BuyTickets).priority, Priority::Start);
    }
}
