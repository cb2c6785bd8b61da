//! `OperatorService`: state of regions and nodes as the nodes report it, export and import.

mod dead_letters;

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use parking_lot::Mutex;
use tidewall_client::ClientError;
use tidewall_client::topology::Region;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::operator_service_server::OperatorService;
use tokio::time::timeout_at;
use tonic::{Request, Response, Status, Streaming};

use super::Services;
use crate::convert::{duration_ms, hex};
use crate::edge::{Call, Edge, Method};
use crate::errors::ApiError;
use crate::{names, page};

/// Most regions or nodes on a page; as many as are there when nothing is said.
const PAGE_MAX: u32 = 1_000;
/// A node that does not report within this time is shown as unreachable.
const NODE_TIMEOUT: Duration = Duration::from_secs(1);

/// What the nodes said; an error is why one did not.
type Reports = BTreeMap<u64, Result<pb::GetNodeStateResponse, String>>;

async fn reports(edge: &Edge, call: &Call) -> Reports {
    let states = edge.client.node_states(NODE_TIMEOUT.min(call.deadline.remaining())).await;
    let report =
        |(node, state): (u64, Result<_, ClientError>)| (node, state.map_err(|error| error.to_string()));
    states.into_iter().map(report).collect()
}

fn role(state: &pb::GroupState) -> v1::ReplicaRole {
    match state.role.as_str() {
        "leader" => v1::ReplicaRole::Leader,
        "follower" => v1::ReplicaRole::Follower,
        "candidate" => v1::ReplicaRole::Candidate,
        "learner" => v1::ReplicaRole::Learner,
        "halted" => v1::ReplicaRole::Halted,
        _ => v1::ReplicaRole::Unspecified,
    }
}

/// One region as its replicas see it.
fn region_status(region: &Region, reports: &Reports) -> v1::RegionStatus {
    let states: BTreeMap<u64, &pb::GroupState> = reports
        .iter()
        .filter_map(|(node, report)| {
            let state = report.as_ref().ok()?.groups.iter().find(|state| state.group == region.group)?;
            Some((*node, state))
        })
        .collect();
    // A deposed leader may not know it yet: the higher term is right.
    let leader = states
        .iter()
        .filter(|(_, state)| role(state) == v1::ReplicaRole::Leader)
        .max_by_key(|(_, state)| state.term)
        .map(|(node, state)| (*node, *state));
    let reference = leader
        .map(|(_, state)| state)
        .or_else(|| states.values().copied().max_by_key(|state| state.applied_index));
    let head = leader.map_or(0, |(_, state)| state.last_log_index);
    let replica = |(node, report): (&u64, &Result<pb::GetNodeStateResponse, String>)| match report {
        Ok(_) => states.get(node).map(|state| replica_status(*node, state, head)),
        Err(why) => Some(v1::ReplicaStatus {
            node: *node,
            role: v1::ReplicaRole::Unreachable.into(),
            fault: why.clone(),
            ..Default::default()
        }),
    };
    let reference = reference.cloned().unwrap_or_default();
    let hot_row = |row: pb::HotRowState| v1::HotRow {
        name: names::hot_row(&region.id, &row.row),
        commands_per_second: row.commands_per_second,
        queued: row.queued,
    };
    v1::RegionStatus {
        name: names::region(&region.id),
        display_name: region.display_name.clone(),
        leader_node: leader.map_or(0, |(node, _)| node),
        term: reference.term,
        applied_index: reference.applied_index,
        digest: hex(&reference.digest),
        incarnation: reference.incarnation,
        replicas: reports.iter().filter_map(replica).collect(),
        hot_rows: reference.hot_rows.into_iter().map(hot_row).collect(),
        rows: reference.rows,
        // An idle region's log time stands still, behind the clock: only ahead of it is anything to be told.
        log_time_ahead: leader.and_then(|(_, state)| duration_ms(state.log_time_ahead_ms.max(0))),
        log_time_rebases: reference.rebases.into(),
        leap_unconfirmed: reference.leap_unconfirmed,
        dead_letters: reference.dead_letters,
        outbox_messages: reference.outbox_messages,
    }
}

fn replica_status(node: u64, state: &pb::GroupState, head: u64) -> v1::ReplicaStatus {
    v1::ReplicaStatus {
        node,
        role: role(state).into(),
        term: state.term,
        last_log_index: state.last_log_index,
        committed_index: state.committed_index,
        applied_index: state.applied_index,
        lag_entries: head.saturating_sub(state.applied_index),
        digest: hex(&state.digest),
        checkpoint_index: state.checkpoint_index,
        checkpoint_backlog_pages: state.checkpoint_backlog_pages,
        fault: state.fault.clone(),
    }
}

fn node_status(edge: &Edge, node: u64, report: &Result<pb::GetNodeStateResponse, String>) -> v1::NodeStatus {
    let address = edge.client.node_addresses().get(&node).map(ToString::to_string).unwrap_or_default();
    match report {
        Ok(state) => v1::NodeStatus {
            node,
            address,
            reachable: true,
            leads: state
                .groups
                .iter()
                .filter(|group| role(group) == v1::ReplicaRole::Leader)
                .filter_map(|group| edge.topology.region_of_group(group.group))
                .map(|region| names::region(&region.id))
                .collect(),
            replicas: state.groups.len() as u64,
            log_bytes: state.log_bytes,
            version: state.version.clone(),
            fault: String::new(),
            drained: state.drained,
            clock_offset: duration_ms(state.clock_offset_ms),
            clock_far: state.clock_far,
            clock_confirmed: state.clock_confirmed,
        },
        Err(why) => v1::NodeStatus { node, address, fault: why.clone(), ..Default::default() },
    }
}

/// What an import came to.
fn imported(response: pb::ImportResponse) -> Result<v1::ImportRegionResponse, ApiError> {
    let client = |error| Err(ApiError::Client { error, request_id: None });
    match response.result {
        Some(pb::import_response::Result::Done(done)) => Ok(v1::ImportRegionResponse {
            incarnation: done.incarnation,
            applied_index: done.applied_index,
            digest: hex(&done.digest),
            rows: done.rows,
        }),
        Some(pb::import_response::Result::Rejection(rejection)) => {
            Err(ApiError::Rejected { rejection, receipt: None })
        }
        Some(pb::import_response::Result::Refusal(refusal)) => match refusal.kind() {
            pb::RefusalKind::Unknown => client(ClientError::Unknown { why: refusal.message }),
            pb::RefusalKind::Overloaded => client(ClientError::Overloaded {
                retry_after: Duration::from_millis(u64::from(refusal.retry_after_ms)),
                message: refusal.message,
            }),
            pb::RefusalKind::Invalid | pb::RefusalKind::Unspecified => {
                client(ClientError::Invalid(refusal.message))
            }
            pb::RefusalKind::NotLeader
            | pb::RefusalKind::Behind
            | pb::RefusalKind::Halted
            | pb::RefusalKind::NotYet => {
                let why = format!("the region's leader moved: {}", refusal.message);
                client(ClientError::Unavailable { why })
            }
        },
        None => client(ClientError::Unknown { why: "the node sent an empty answer".to_owned() }),
    }
}

/// Why a caller's stream of chunks ended early.
type Broken = Arc<Mutex<Option<Status>>>;

fn cut_short(status: &Status) -> ApiError {
    ApiError::Plain {
        code: status.code(),
        reason: "IMPORT_CUT_SHORT",
        message: format!("the stream of chunks broke: {}: import the file again", status.message()),
    }
}

/// The file's parts. When the caller's stream breaks, the node sees only an end: the file's checksums, not
/// this end, say whether it is complete.
fn chunks(
    first: Bytes,
    messages: Streaming<v1::ImportRegionRequest>,
    broken: Broken,
) -> Pin<Box<dyn Stream<Item = Bytes> + Send>> {
    let rest = stream::unfold((messages, broken), |(mut messages, broken)| async move {
        match messages.message().await {
            Ok(Some(message)) => Some((message.chunk, (messages, broken))),
            Ok(None) => None,
            Err(status) => {
                *broken.lock() = Some(status);
                None
            }
        }
    });
    Box::pin(stream::iter((!first.is_empty()).then_some(first)).chain(rest))
}

/// Takes the file from the caller's stream and hands it to the region's leader.
async fn import(
    edge: Arc<Edge>,
    call: Call,
    mut messages: Streaming<v1::ImportRegionRequest>,
) -> Result<v1::ImportRegionResponse, ApiError> {
    let first = timeout_at(call.deadline.at, messages.message())
        .await
        .map_err(|_| ApiError::field("name", "no first message came before the deadline"))?
        .map_err(|status| cut_short(&status))?
        .ok_or_else(|| ApiError::field("name", "must be in the first message; the stream is empty"))?;
    names::parse_region("name", &first.name)?;
    let position = edge.region("name", &first.name)?;
    let group = edge.topology.regions[position].group;
    let importer = edge.client.importer(group, NODE_TIMEOUT).await;
    let importer = importer.map_err(|error| ApiError::Client { error, request_id: None })?;
    let broken = Broken::default();
    let chunks = chunks(first.chunk, messages, Arc::clone(&broken));
    let principal = call.principal.subject.clone();
    let importing = importer.run(first.replace, principal, chunks);
    let response = timeout_at(call.deadline.at, importing).await.unwrap_or_else(|_| {
        Err(ClientError::Unknown { why: "the import did not end before the deadline".to_owned() })
    });
    let result = response.map_err(|error| ApiError::Client { error, request_id: None }).and_then(imported);
    match (result, broken.lock().take()) {
        (Err(_), Some(status)) => Err(cut_short(&status)),
        (result, _) => result,
    }
}

#[tonic::async_trait]
impl OperatorService for Services {
    async fn list_region_statuses(
        &self,
        request: Request<v1::ListRegionStatusesRequest>,
    ) -> Result<Response<v1::ListRegionStatusesResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::ListRegionStatusesRequest| async move {
            let wanted = (message.page_token.as_str(), page::size(message.page_size, PAGE_MAX, PAGE_MAX)?);
            // By their place in the topology.
            let regions: Vec<_> = edge.topology.regions.iter().enumerate().collect();
            let key = |(place, _): &(usize, _)| format!("{place:06}");
            let (regions, next_page_token) = page::of(regions, "statuses", wanted, key)?;
            let reports = reports(edge, &call).await;
            let regions = regions.into_iter().map(|(_, region)| region_status(region, &reports)).collect();
            Ok(v1::ListRegionStatusesResponse { regions, next_page_token })
        };
        edge.run(Method::ListRegionStatuses, request, handler).await
    }

    async fn get_region_status(
        &self,
        request: Request<v1::GetRegionStatusRequest>,
    ) -> Result<Response<v1::GetRegionStatusResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::GetRegionStatusRequest| async move {
            names::parse_region("name", &message.name)?;
            let position = edge.region("name", &message.name)?;
            let reports = reports(edge, &call).await;
            let region = region_status(&edge.topology.regions[position], &reports);
            Ok(v1::GetRegionStatusResponse { region: Some(region) })
        };
        edge.run(Method::GetRegionStatus, request, handler).await
    }

    async fn list_nodes(
        &self,
        request: Request<v1::ListNodesRequest>,
    ) -> Result<Response<v1::ListNodesResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::ListNodesRequest| async move {
            let wanted = (message.page_token.as_str(), page::size(message.page_size, PAGE_MAX, PAGE_MAX)?);
            let reports = reports(edge, &call).await;
            let key = |(node, _): &(&u64, _)| format!("{node:020}");
            let (nodes, next_page_token) = page::of(reports.iter().collect(), "nodes", wanted, key)?;
            let nodes = nodes.into_iter().map(|(node, report)| node_status(edge, *node, report)).collect();
            Ok(v1::ListNodesResponse { nodes, next_page_token })
        };
        edge.run(Method::ListNodes, request, handler).await
    }

    type ExportRegionStream = Pin<Box<dyn Stream<Item = Result<v1::ExportRegionResponse, Status>> + Send>>;

    async fn export_region(
        &self,
        request: Request<v1::ExportRegionRequest>,
    ) -> Result<Response<Self::ExportRegionStream>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::ExportRegionRequest| async move {
            names::parse_region("name", &message.name)?;
            let opened = timeout_at(call.deadline.at, edge.client.export(call.group, NODE_TIMEOUT)).await;
            let opened = opened.unwrap_or_else(|_| {
                Err(ClientError::Unavailable { why: "the leader did not begin to answer".to_owned() })
            });
            let chunks = opened.map_err(|error| ApiError::Client { error, request_id: None })?;
            let region = message.name;
            // The call stays counted as under way for as long as the stream lives.
            let stream = chunks.map(move |chunk| {
                let _ = &call;
                match chunk {
                    Ok(pb::ExportResponse { chunk }) => Ok(v1::ExportRegionResponse { chunk }),
                    Err(status) => Err(Status::from(ApiError::Client {
                        error: ClientError::Unavailable {
                            why: format!("the export of {region} was cut short: {}", status.message()),
                        },
                        request_id: None,
                    })),
                }
            });
            Ok(Box::pin(stream) as Self::ExportRegionStream)
        };
        edge.run(Method::ExportRegion, request, handler).await
    }

    async fn import_region(
        &self,
        request: Request<Streaming<v1::ImportRegionRequest>>,
    ) -> Result<Response<v1::ImportRegionResponse>, Status> {
        let edge = Arc::clone(&self.0);
        let handler = move |call, messages| import(edge, call, messages);
        self.0.run_stream(Method::ImportRegion, request, handler).await
    }

    async fn transfer_leader(
        &self,
        request: Request<v1::TransferLeaderRequest>,
    ) -> Result<Response<v1::TransferLeaderResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::TransferLeaderRequest| async move {
            names::parse_region("name", &message.name)?;
            if !edge.client.node_addresses().contains_key(&message.to_node) {
                return Err(unknown_node(edge, "to_node", message.to_node));
            }
            let (principal, left) = (call.principal.subject.clone(), call.deadline.remaining());
            let moved = edge.client.transfer_lead(call.group, message.to_node, principal, left).await;
            let moved = moved.map_err(|error| ApiError::Client { error, request_id: None })?;
            Ok(v1::TransferLeaderResponse {
                leader_node: moved.leader_node,
                elapsed: duration_ms(moved.took_ms.into()),
            })
        };
        edge.run(Method::TransferLeader, request, handler).await
    }

    async fn list_dead_letters(
        &self,
        request: Request<v1::ListDeadLettersRequest>,
    ) -> Result<Response<v1::ListDeadLettersResponse>, Status> {
        let handler = |call: Call, message| async move { dead_letters::list(&self.0, &call, message).await };
        self.0.run(Method::ListDeadLetters, request, handler).await
    }

    async fn get_dead_letter(
        &self,
        request: Request<v1::GetDeadLetterRequest>,
    ) -> Result<Response<v1::GetDeadLetterResponse>, Status> {
        let handler = |call: Call, message| async move { dead_letters::get(&self.0, &call, message).await };
        self.0.run(Method::GetDeadLetter, request, handler).await
    }

    async fn replay_dead_letter(
        &self,
        request: Request<v1::ReplayDeadLetterRequest>,
    ) -> Result<Response<v1::ReplayDeadLetterResponse>, Status> {
        let handler = |call: Call, message: v1::ReplayDeadLetterRequest| async move {
            let remaining = dead_letters::resolve(&self.0, &call, &message.name, false).await?;
            Ok(v1::ReplayDeadLetterResponse { remaining })
        };
        self.0.run(Method::ReplayDeadLetter, request, handler).await
    }

    async fn drop_dead_letter(
        &self,
        request: Request<v1::DropDeadLetterRequest>,
    ) -> Result<Response<v1::DropDeadLetterResponse>, Status> {
        let handler = |call: Call, message: v1::DropDeadLetterRequest| async move {
            let remaining = dead_letters::resolve(&self.0, &call, &message.name, true).await?;
            Ok(v1::DropDeadLetterResponse { remaining })
        };
        self.0.run(Method::DropDeadLetter, request, handler).await
    }

    async fn drain_node(
        &self,
        request: Request<v1::DrainNodeRequest>,
    ) -> Result<Response<v1::DrainNodeResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::DrainNodeRequest| async move {
            let drained = drain(edge, &call, message.node, true).await?;
            let region =
                |group: &u32| edge.topology.region_of_group(*group).map(|region| names::region(&region.id));
            Ok(v1::DrainNodeResponse {
                moved: drained.moved.iter().filter_map(region).collect(),
                kept: drained.kept.iter().filter_map(region).collect(),
            })
        };
        edge.run(Method::DrainNode, request, handler).await
    }

    async fn undrain_node(
        &self,
        request: Request<v1::UndrainNodeRequest>,
    ) -> Result<Response<v1::UndrainNodeResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::UndrainNodeRequest| async move {
            drain(edge, &call, message.node, false).await.map(|_| v1::UndrainNodeResponse {})
        };
        edge.run(Method::UndrainNode, request, handler).await
    }

    async fn change_replicas(
        &self,
        request: Request<v1::ChangeReplicasRequest>,
    ) -> Result<Response<v1::ChangeReplicasResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::ChangeReplicasRequest| async move {
            names::parse_region("name", &message.name)?;
            let known = edge.client.node_addresses();
            if let Some(unknown) = message.add_nodes.iter().find(|node| !known.contains_key(node)) {
                return Err(unknown_node(edge, "add_nodes", *unknown));
            }
            let (add, remove, left) = (&message.add_nodes, &message.remove_nodes, call.deadline.remaining());
            let changed = edge.client.change_replicas(call.group, add, remove, &call.principal.subject, left);
            let changed = changed.await.map_err(|error| ApiError::Client { error, request_id: None })?;
            Ok(v1::ChangeReplicasResponse { voters: changed.voters, learners: changed.learners })
        };
        edge.run(Method::ChangeReplicas, request, handler).await
    }

    async fn failover_region(
        &self,
        request: Request<v1::FailoverRegionRequest>,
    ) -> Result<Response<v1::FailoverRegionResponse>, Status> {
        let edge = &self.0;
        let handler = |call: Call, message: v1::FailoverRegionRequest| async move {
            names::parse_region("name", &message.name)?;
            failover(edge, &call, &message).await
        };
        edge.run(Method::FailoverRegion, request, handler).await
    }
}

/// Asks one replica, or the one with the longest log, about a forced recovery, or orders it.
async fn failover(
    edge: &Edge,
    call: &Call,
    message: &v1::FailoverRegionRequest,
) -> Result<v1::FailoverRegionResponse, ApiError> {
    let node = match message.node {
        0 => {
            let reports = reports(edge, call).await;
            let last = |(node, report): (&u64, &Result<pb::GetNodeStateResponse, String>)| {
                let groups = &report.as_ref().ok()?.groups;
                let fit = |state: &&pb::GroupState| {
                    state.group == call.group && state.last_log_index > 0 && state.role != "halted"
                };
                let state = groups.iter().find(fit)?;
                // As an election decides: the later term of the last entry first, then the longer log.
                Some(((state.last_log_term, state.last_log_index), *node))
            };
            let chosen = reports.iter().filter_map(last).max().map(|(_, node)| node);
            chosen.ok_or_else(|| ApiError::Client {
                error: ClientError::Unavailable {
                    why: "no node with a replica of the region answers".to_owned(),
                },
                request_id: None,
            })?
        }
        node if edge.client.node_addresses().contains_key(&node) => node,
        node => return Err(unknown_node(edge, "node", node)),
    };
    let request = pb::RecoverRequest {
        group: call.group,
        dry_run: message.dry_run,
        principal: call.principal.subject.clone(),
        seen_last_log_index: message.seen_last_log_index,
        seen_incarnation: message.seen_incarnation,
    };
    let found = edge.client.recover(node, request, call.deadline.remaining()).await;
    let found = found.map_err(|error| ApiError::Client { error, request_id: None })?;
    if let Some(refusal) = found.refusal {
        return Err(ApiError::precondition("FAILOVER_REFUSED", refusal.message));
    }
    let silent = |silence: pb::Silence| v1::SilentReplica {
        node: silence.node,
        silence: duration_ms(i64::try_from(silence.silent_ms).unwrap_or(i64::MAX)),
        never_heard: silence.never_heard,
    };
    Ok(v1::FailoverRegionResponse {
        node: found.node,
        term: found.term,
        last_log_index: found.last_log_index,
        committed_index: found.committed_index,
        applied_index: found.applied_index,
        incarnation: found.incarnation,
        voters: found.voters,
        silent_replicas: found.silences.into_iter().map(silent).collect(),
        digest: hex(&found.digest),
        new_incarnation: found.new_incarnation,
    })
}

fn unknown_node(edge: &Edge, field: &str, node: u64) -> ApiError {
    let known: Vec<String> = edge.client.node_addresses().keys().map(u64::to_string).collect();
    ApiError::field(field, format!("there is no node {node}: this cluster has {}", known.join(", ")))
}

async fn drain(edge: &Edge, call: &Call, node: u64, drained: bool) -> Result<pb::DrainResponse, ApiError> {
    if !edge.client.node_addresses().contains_key(&node) {
        return Err(unknown_node(edge, "node", node));
    }
    let (principal, left) = (call.principal.subject.clone(), call.deadline.remaining());
    let result = edge.client.drain(node, drained, principal, left).await;
    result.map_err(|error| ApiError::Client { error, request_id: None })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        Region { id: "north".into(), display_name: "North".into(), group: 1 }
    }

    fn state(role: &str, term: u64, applied_index: u64) -> pb::GetNodeStateResponse {
        let group = pb::GroupState {
            group: 1,
            role: role.into(),
            term,
            applied_index,
            last_log_index: applied_index,
            ..Default::default()
        };
        pb::GetNodeStateResponse { groups: vec![group], ..Default::default() }
    }

    #[test]
    fn the_newest_leader_counts_and_the_dead_are_shown() {
        let reports: Reports = [
            (1, Ok(state("leader", 3, 90))),
            (2, Ok(state("leader", 4, 100))),
            (3, Err("connection refused".to_owned())),
        ]
        .into();
        let status = region_status(&region(), &reports);
        assert_eq!((status.leader_node, status.term, status.applied_index), (2, 4, 100));
        assert_eq!(status.replicas.len(), 3);
        assert_eq!(status.replicas[0].lag_entries, 10);
        assert_eq!(status.replicas[2].role(), v1::ReplicaRole::Unreachable);
        assert!(status.replicas[2].fault.contains("refused"));
    }

    #[test]
    fn without_a_leader_the_furthest_replica_speaks() {
        let reports: Reports = [(1, Ok(state("follower", 3, 90))), (2, Ok(state("candidate", 4, 80)))].into();
        let status = region_status(&region(), &reports);
        assert_eq!((status.leader_node, status.applied_index), (0, 90));
    }
}
