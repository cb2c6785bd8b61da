//! The gRPC service of the client port: the exchange stream, and what operators ask for.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tidewall_actors::Refusal;
use tidewall_consensus::{Group, Role};
use tidewall_env::tasks;
use tidewall_link::{ServeOptions, serve};
use tidewall_machine::snapshot::{self, SnapshotError};
use tidewall_machine::{Answer, Command, Machine, SENDS_MESSAGES, SystemCommand, parse_dead_letter_id};
use tidewall_messages::Rejection;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::internal::v1::shard_service_server::ShardService;
use tidewall_store::log::NodeLog;
use tonic::{Request, Response, Status, Streaming};

use crate::exchange::{ExchangeHandler, Served, Serving};
use crate::keyring::Keys;
use crate::lead::{self, TransferError};
use crate::members::{self, MembersError};
use crate::recovery::{Order, Orders};
use crate::standing::Standing;
use crate::{shard, views};

/// Bytes of an import in one command.
const IMPORT_CHUNK_BYTES: usize = 256 << 10;
/// How long the other nodes may take to hear of an order that concerns them.
const ANNOUNCE_PATIENCE: Duration = Duration::from_secs(1);
/// Largest file that can be imported, bytes: it passes through the log and is held in memory on the way.
const IMPORT_BYTES_MAX: usize = 256 << 20;

/// Serves the client port.
#[derive(Clone)]
pub struct ShardServer {
    shared: Arc<Shared>,
}

struct Shared {
    serving: Arc<Serving>,
    log: NodeLog,
    standing: Arc<Standing>,
    orders: Orders,
    keys: Keys,
}

impl ShardServer {
    /// Serves what the node serves.
    pub fn new(
        serving: Arc<Serving>,
        log: NodeLog,
        standing: Arc<Standing>,
        orders: Orders,
        keys: Keys,
    ) -> Self {
        Self { shared: Arc::new(Shared { serving, log, standing, orders, keys }) }
    }

    fn group(&self, number: u32) -> Result<&Group, Status> {
        match self.shared.serving.groups.get(&number) {
            Some(served) => Ok(&served.group),
            None => Err(Status::not_found(match self.shared.serving.faults.get(&number) {
                Some(why) => format!("this node does not serve group {number}: {why}"),
                None => format!("this node has no group {number}"),
            })),
        }
    }

    fn group_state(&self, served: &Served) -> pb::GroupState {
        let group = &served.group;
        let hot_rows = served.hot.lock().clone();
        let status = group.status();
        let checkpoint = group.checkpoint_state();
        let ((applied, digest), incarnation, rows, apply_version, time) = group.state().read(|machine| {
            let (rows, version) = (machine.rows(), machine.apply_version());
            (machine.settled(), machine.incarnation(), rows, version, machine.time())
        });
        let (dead_letters, (outbox_messages, _)) =
            group.state().read(|machine| (machine.dead_letters_count(), machine.under_way()));
        let clock_ms = self.shared.standing.now_ms();
        let (voters, learners) = group.members();
        let role = match status.role {
            Role::Leader => "leader",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Halted => "halted",
        };
        pb::GroupState {
            group: group.number(),
            role: role.to_owned(),
            leader_node: status.leader.unwrap_or(0),
            term: status.term,
            last_log_index: status.last_log,
            last_log_term: status.last_log_term,
            committed_index: status.committed,
            applied_index: applied,
            digest: digest.to_be_bytes().to_vec(),
            incarnation,
            rows,
            checkpoint_index: checkpoint.index,
            checkpoint_backlog_pages: checkpoint.pages,
            fault: status.fault.or_else(|| group.state().suspended()).unwrap_or_default(),
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            apply_version,
            hot_rows: if status.role == Role::Leader { hot_rows } else { Vec::new() },
            log_time_ahead_ms: (i128::from(time.log_ms()) - i128::from(clock_ms)) as i64,
            rebases: time.rebases,
            leap_unconfirmed: time.is_leap_unconfirmed(),
            dead_letters,
            outbox_messages,
        }
    }

    async fn restore(&self, mut parts: Streaming<pb::ImportRequest>) -> Result<pb::ImportResponse, Status> {
        use pb::import_response::Result as R;
        let respond = |result| Ok(pb::ImportResponse { result: Some(result) });
        let first = parts.message().await?.ok_or_else(|| Status::invalid_argument("the import is empty"))?;
        let group = self.group(first.group)?.clone();
        let mut file = first.chunk.to_vec();
        while let Some(part) = parts.message().await? {
            if file.len() + part.chunk.len() > IMPORT_BYTES_MAX {
                let what =
                    format!("an import has at most {IMPORT_BYTES_MAX} bytes: restore larger regions offline");
                return Err(Status::invalid_argument(what));
            }
            file.extend_from_slice(&part.chunk);
        }
        let file = Bytes::from(file);
        let check = file.clone();
        let version = group.state().read(Machine::apply_version);
        // All that the commit would refuse it for, before anything of it goes through the log.
        let checked = tasks::off_thread(move || {
            let loaded = snapshot::read(&mut check.as_ref())?;
            loaded.machine.supporting(version).map(drop).map_err(SnapshotError::from)
        });
        if let Err(error) = checked.await.map_err(Status::internal)? {
            let message = error.to_string();
            return respond(R::Rejection(Rejection {
                reason: "BAD_SNAPSHOT".into(),
                message,
                code: tonic::Code::InvalidArgument.into(),
                field: "chunk".into(),
            }));
        }
        if let Err(refusal) = shard::confirm(&group).await {
            return respond(R::Refusal(views::refusal(&refusal)));
        }
        tracing::warn!(
            group = first.group,
            principal = first.principal,
            replace = first.replace,
            "import begins"
        );
        let import =
            u128::from(self.shared.standing.now_ms()) << 64 | u128::from(self.shared.standing.node());
        let chunks = file.chunks(IMPORT_CHUNK_BYTES);
        let commit =
            SystemCommand::ImportCommit { import, chunks: chunks.len() as u32, replace: first.replace };
        let chunks = chunks.zip(0..).map(|(bytes, number)| {
            let bytes = bytes.to_vec();
            SystemCommand::ImportChunk { import, number, bytes }
        });
        for step in std::iter::once(SystemCommand::ImportAbort).chain(chunks).chain([commit]) {
            let decided = shard::propose(&group, &self.shared.standing, vec![Command::system(step)]).await;
            match decided.as_ref().map(|decisions| decisions.first().map(|decision| &decision.answer)) {
                Ok(Some(Answer::Done { .. } | Answer::System)) => {}
                Ok(Some(Answer::Rejected(why))) => {
                    return respond(R::Rejection(Rejection {
                        reason: "IMPORT_REFUSED".into(),
                        message: why.to_string(),
                        code: tonic::Code::FailedPrecondition.into(),
                        field: String::new(),
                    }));
                }
                Ok(None) => return Err(Status::internal("the import got no decision")),
                Err(refusal) => return respond(R::Refusal(views::refusal(refusal))),
            }
        }
        let done = group.state().read(|machine| pb::ImportDone {
            incarnation: machine.incarnation(),
            applied_index: machine.applied_index(),
            digest: machine.digest().to_be_bytes().to_vec(),
            rows: machine.rows(),
        });
        tracing::warn!(group = first.group, incarnation = done.incarnation, "import done: a new incarnation");
        respond(R::Done(done))
    }
}

/// A boxed response stream.
type Boxed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send + 'static>>;

#[tonic::async_trait]
impl ShardService for ShardServer {
    type ExchangeStream = Boxed<pb::ExchangeResponse>;
    type ExportStream = Boxed<pb::ExportResponse>;

    async fn exchange(
        &self,
        request: Request<Streaming<pb::ExchangeRequest>>,
    ) -> Result<Response<Self::ExchangeStream>, Status> {
        let handler = ExchangeHandler::new(Arc::clone(&self.shared.serving));
        Ok(Response::new(Box::pin(serve(request.into_inner(), ServeOptions::default(), handler))))
    }

    async fn keyring(
        &self,
        request: Request<pb::KeyringRequest>,
    ) -> Result<Response<pb::KeyringResponse>, Status> {
        Ok(Response::new(self.shared.keys.answer(request.into_inner()).await))
    }

    async fn get_node_state(
        &self,
        _: Request<pb::GetNodeStateRequest>,
    ) -> Result<Response<pb::GetNodeStateResponse>, Status> {
        let (serving, standing) = (&self.shared.serving, &self.shared.standing);
        let mut groups: Vec<_> = serving.groups.values().map(|served| self.group_state(served)).collect();
        groups.extend(serving.faults.iter().map(|(group, why)| pb::GroupState {
            group: *group,
            role: "halted".into(),
            fault: why.clone(),
            ..pb::GroupState::default()
        }));
        Ok(Response::new(pb::GetNodeStateResponse {
            node: standing.node(),
            version: env!("CARGO_PKG_VERSION").into(),
            log_bytes: self.shared.log.disk_bytes(),
            groups,
            drained: standing.is_drained(),
            clock_offset_ms: standing.clock_offset_ms(),
            clock_far: standing.clock_is_far(),
            clock_confirmed: standing.clock_is_confirmed(),
            now_ms: standing.now_ms(),
            apply_version: standing.apply_version(),
        }))
    }

    async fn export(
        &self,
        request: Request<pb::ExportRequest>,
    ) -> Result<Response<Self::ExportStream>, Status> {
        let group = self.group(request.into_inner().group)?.clone();
        if let Err(refusal) = shard::confirm(&group).await {
            return Err(Status::failed_precondition(refusal.to_string()));
        }
        let frozen = group.freeze().await.map_err(Status::unavailable)?;
        let (sender, receiver) = tokio::sync::mpsc::channel(4);
        tasks::produce(sender, move |send| {
            for part in snapshot::encode(&frozen) {
                if !send(Ok(pb::ExportResponse { chunk: part.into() })) {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))))
    }

    async fn import(
        &self,
        request: Request<Streaming<pb::ImportRequest>>,
    ) -> Result<Response<pb::ImportResponse>, Status> {
        self.restore(request.into_inner()).await.map(Response::new)
    }

    async fn transfer_lead(
        &self,
        request: Request<pb::TransferLeadRequest>,
    ) -> Result<Response<pb::TransferLeadResponse>, Status> {
        let request = request.into_inner();
        let group = self.group(request.group)?.clone();
        let patience = patience(request.timeout_ms);
        let (to, principal) = (request.to_node, request.principal);
        tracing::warn!(group = request.group, to, principal, "an operator moves the lead");
        let began = tokio::time::Instant::now();
        let result = lead::hand_over(&group, &self.shared.standing, to, patience).await;
        if result.is_ok() {
            // Told to the others with the next report: it is to stay there.
            self.shared.standing.place(request.group, to);
            self.shared.standing.announce(ANNOUNCE_PATIENCE).await;
        }
        let refusal = result.err().map(|error| match error {
            TransferError::NotLeader { leader } => views::refusal(&Refusal::NotLeader { leader }),
            TransferError::Unfit(why) => views::invalid(why),
            error @ TransferError::NotSeen { .. } => views::refusal(&Refusal::Unknown(error.to_string())),
        });
        Ok(Response::new(pb::TransferLeadResponse {
            leader_node: group.believed_leader().unwrap_or(0),
            took_ms: began.elapsed().as_millis() as u32,
            refusal,
        }))
    }

    async fn resolve_dead_letter(
        &self,
        request: Request<pb::ResolveDeadLetterRequest>,
    ) -> Result<Response<pb::ResolveDeadLetterResponse>, Status> {
        let pb::ResolveDeadLetterRequest { group, id, drop, principal } = request.into_inner();
        let group = self.group(group)?.clone();
        let key = parse_dead_letter_id(&id)
            .ok_or_else(|| Status::invalid_argument(format!("{id:?} is no id of a dead letter")))?;
        tracing::warn!(group = group.number(), id, drop, principal, "an operator resolves a dead letter");
        let refusal = if !group.believes_to_lead() {
            Some(views::refusal(&Refusal::NotLeader { leader: group.believed_leader() }))
        } else if group.state().read(Machine::apply_version) < SENDS_MESSAGES {
            Some(views::invalid(format!("there is no dead letter {id}")))
        } else {
            let resolve = Command::system(SystemCommand::Resolve { key, drop });
            match shard::propose(&group, &self.shared.standing, vec![resolve]).await {
                Ok(decisions) => match decisions.into_iter().next().map(|decision| decision.answer) {
                    Some(Answer::Rejected(why)) => Some(views::invalid(why.to_string())),
                    _ => None,
                },
                Err(refusal) => Some(views::refusal(&refusal)),
            }
        };
        let remaining = group.state().read(Machine::dead_letters_count);
        Ok(Response::new(pb::ResolveDeadLetterResponse { remaining, refusal }))
    }

    async fn drain(&self, request: Request<pb::DrainRequest>) -> Result<Response<pb::DrainResponse>, Status> {
        let pb::DrainRequest { drained, timeout_ms, principal } = request.into_inner();
        let standing = &self.shared.standing;
        tracing::warn!(drained, principal, "an operator drains this node, or ends that");
        standing.set_drained(drained);
        standing.announce(ANNOUNCE_PATIENCE).await;
        if !drained {
            return Ok(Response::new(pb::DrainResponse::default()));
        }
        let served = &self.shared.serving.groups;
        let groups = served.iter().map(|(number, served)| (*number, served.group.clone())).collect();
        let lead::Moved { moved, kept } = lead::leave_all(&groups, standing, patience(timeout_ms)).await;
        Ok(Response::new(pb::DrainResponse { moved, kept }))
    }

    async fn change_replicas(
        &self,
        request: Request<pb::ChangeReplicasRequest>,
    ) -> Result<Response<pb::ChangeReplicasResponse>, Status> {
        let request = request.into_inner();
        let group = self.group(request.group)?.clone();
        let (add, remove) =
            (request.add_nodes.into_iter().collect(), request.remove_nodes.into_iter().collect());
        tracing::warn!(
            group = request.group,
            ?add,
            ?remove,
            principal = request.principal,
            "an operator changes the replicas"
        );
        let patience = patience(request.timeout_ms);
        let changed = members::change(&group, &self.shared.standing, &add, &remove, patience).await;
        let (voters, learners) = group.members();
        Ok(Response::new(pb::ChangeReplicasResponse {
            voters: voters.into_iter().collect(),
            learners: learners.into_iter().collect(),
            refusal: changed.err().map(members_refusal),
        }))
    }

    async fn recover(
        &self,
        request: Request<pb::RecoverRequest>,
    ) -> Result<Response<pb::RecoverResponse>, Status> {
        let request = request.into_inner();
        let group = self.group(request.group)?.clone();
        let standing = &self.shared.standing;
        let status = group.status();
        let (incarnation, digest) =
            group.state().read(|machine| (machine.incarnation(), machine.settled().1));
        let (voters, _) = group.members();
        let silence = |node: &u64| {
            let (silent, heard) = standing.silence(*node);
            pb::Silence { node: *node, silent_ms: silent.as_millis() as u64, never_heard: !heard }
        };
        let silences: Vec<_> = voters.iter().filter(|node| **node != standing.node()).map(silence).collect();
        let mut response = pb::RecoverResponse {
            node: standing.node(),
            term: status.term,
            last_log_index: status.last_log,
            committed_index: status.committed,
            applied_index: status.applied,
            incarnation,
            new_incarnation: 0,
            voters: voters.iter().copied().collect(),
            silences,
            refusal: None,
            digest: digest.to_be_bytes().to_vec(),
        };
        let fence = standing.fence(request.group);
        response.refusal = match group.state().halted() {
            Some(why) => Some(views::invalid(format!("this replica must not go on: {why}"))),
            None => unrecoverable(&request, &response, fence),
        };
        if request.dry_run || response.refusal.is_some() {
            return Ok(Response::new(response));
        }
        let order = Order {
            group: request.group,
            incarnation: fence,
            principal: request.principal,
            given_ms: standing.now_ms(),
        };
        tracing::warn!(
            ?order,
            ?response,
            "a forced recovery is ordered: this node starts again to carry it out"
        );
        self.shared.orders.give(&order).map_err(|error| {
            Status::internal(format!("the order cannot be kept and was not given: {error}"))
        })?;
        standing.ask_for_restart();
        response.new_incarnation = fence;
        Ok(Response::new(response))
    }
}

/// Why a group must not be recovered by force from this replica now.
fn unrecoverable(
    request: &pb::RecoverRequest,
    found: &pb::RecoverResponse,
    fence: u64,
) -> Option<pb::Refusal> {
    /// Who was heard within this time is not lost.
    const SILENT_MS_MIN: u64 = 10_000;
    if found.last_log_index == 0 {
        return Some(views::invalid("this replica has never received anything"));
    }
    let alive: Vec<u64> = found
        .silences
        .iter()
        .filter(|silence| silence.silent_ms < SILENT_MS_MIN)
        .map(|silence| silence.node)
        .collect();
    let majority = found.voters.len() / 2 + 1;
    if alive.len() + 1 >= majority {
        return Some(views::invalid(format!(
            "the group has not lost its majority, as far as this node can know after {} s: {alive:?} may be alive. Let it elect \
             a leader, or replace single nodes",
            SILENT_MS_MIN / 1_000
        )));
    }
    if request.dry_run {
        return None;
    }
    if (request.seen_last_log_index, request.seen_incarnation) != (found.last_log_index, found.incarnation) {
        return Some(views::invalid(format!(
            "the replica has changed since it was looked at: its last index is {}, its incarnation {}; look again",
            found.last_log_index, found.incarnation
        )));
    }
    // The lower half counts imports, some of which only the lost replicas may know.
    if fence <= found.incarnation || fence & u64::from(u32::MAX) != 0 {
        return Some(views::invalid(format!(
            "the other replicas are not fenced: raise the fence of group {} above {} in the topology that all nodes \
             follow, to a multiple of 4294967296 that no recovery has used, and wait until this node has seen it",
            request.group, found.incarnation
        )));
    }
    None
}

/// The refusal that stands for a change of members that is not done.
fn members_refusal(error: MembersError) -> pb::Refusal {
    match error {
        MembersError::NotLeader { leader } => views::refusal(&Refusal::NotLeader { leader }),
        MembersError::Refused(why) => views::invalid(why),
        MembersError::Unfinished(why) => views::refusal(&Refusal::Unknown(why)),
    }
}

/// What a caller grants, within what an order may take.
fn patience(timeout_ms: u32) -> Duration {
    const PATIENCE_MAX_MS: u32 = 60_000;
    Duration::from_millis(timeout_ms.min(PATIENCE_MAX_MS).into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_group_is_recovered_by_force_only_when_it_is_lost_looked_at_and_fenced() {
        const FENCE: u64 = 1 << 32;
        let silence = |node, silent_ms| pb::Silence { node, silent_ms, never_heard: false };
        let found = pb::RecoverResponse {
            node: 1,
            last_log_index: 40,
            incarnation: 3,
            voters: vec![1, 2, 3],
            silences: vec![silence(2, 10_000), silence(3, 60_000)],
            ..Default::default()
        };
        let order = pb::RecoverRequest {
            group: 1,
            seen_last_log_index: 40,
            seen_incarnation: 3,
            ..Default::default()
        };
        let why = |order: &pb::RecoverRequest, found: &pb::RecoverResponse, fence| {
            unrecoverable(order, found, fence).map(|refusal| refusal.message)
        };
        assert_eq!(why(&order, &found, FENCE), None);
        let says = |why: Option<String>, what: &str| {
            assert!(why.as_ref().is_some_and(|why| why.contains(what)), "{why:?}")
        };
        let empty = pb::RecoverResponse { last_log_index: 0, ..found.clone() };
        says(why(&order, &empty, FENCE), "never received");
        let alive =
            pb::RecoverResponse { silences: vec![silence(2, 9_999), silence(3, 60_000)], ..found.clone() };
        says(why(&order, &alive, FENCE), "[2] may be alive");
        let dry_run = pb::RecoverRequest { group: 1, dry_run: true, ..Default::default() };
        assert_eq!(why(&dry_run, &found, 0), None, "looking needs no fence");
        for (index, incarnation) in [(39, 3), (40, 2)] {
            let seen = pb::RecoverRequest {
                seen_last_log_index: index,
                seen_incarnation: incarnation,
                ..order.clone()
            };
            says(why(&seen, &found, FENCE), "has changed since");
        }
        let recovered = pb::RecoverResponse { incarnation: FENCE, ..found.clone() };
        let seen = pb::RecoverRequest { seen_incarnation: FENCE, ..order.clone() };
        for (fence, fenced) in [(FENCE, false), (FENCE + 1, false), (2 * FENCE, true), (0, false)] {
            assert_eq!(why(&seen, &recovered, fence).is_none(), fenced, "{fence:x}");
        }
        says(why(&order, &found, 7), "not fenced");
    }

    #[test]
    fn an_order_takes_as_long_as_its_caller_grants_within_reason() {
        for (asked, granted) in [(0, 0), (59_999, 59_999), (60_000, 60_000), (u32::MAX, 60_000)] {
            assert_eq!(patience(asked), Duration::from_millis(granted));
        }
    }
}
