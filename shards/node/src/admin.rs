//! The gRPC service of the client port: the exchange stream, and what operators ask for.

use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::Stream;
use tidewall_consensus::{Group, Role};
use tidewall_env::clock::Clock;
use tidewall_link::{ServeOptions, serve};
use tidewall_machine::{Answer, Command, SystemCommand, snapshot};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::internal::v1::shard_service_server::ShardService;
use tidewall_store::log::NodeLog;
use tonic::{Request, Response, Status, Streaming};

use crate::exchange::{ExchangeHandler, Served, Serving};
use crate::{shard, views};

/// Bytes of an import in one command.
const IMPORT_CHUNK_BYTES: usize = 256 << 10;
/// Largest file that can be imported, bytes: it passes through the log and is held in memory on the way.
const IMPORT_BYTES_MAX: usize = 256 << 20;

/// Serves the client port.
#[derive(Clone)]
pub struct ShardServer {
    shared: Arc<Shared>,
}

struct Shared {
    node: u64,
    serving: Arc<Serving>,
    log: NodeLog,
    clock: Arc<dyn Clock>,
}

impl ShardServer {
    /// Serves what the node serves.
    pub fn new(node: u64, serving: Arc<Serving>, log: NodeLog, clock: Arc<dyn Clock>) -> Self {
        Self { shared: Arc::new(Shared { node, serving, log, clock }) }
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
        let ((applied, digest), incarnation, rows) =
            group.state().read(|machine| (machine.settled(), machine.incarnation(), machine.rows()));
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
            committed_index: status.committed,
            applied_index: applied,
            digest: digest.to_be_bytes().to_vec(),
            incarnation,
            rows,
            checkpoint_index: checkpoint.index,
            checkpoint_backlog_pages: checkpoint.pages,
            fault: status.fault.unwrap_or_default(),
            hot_rows: if status.role == Role::Leader { hot_rows } else { Vec::new() },
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
        let checked =
            tokio::task::spawn_blocking(move || snapshot::read(&mut check.as_ref()).map(|l| l.header));
        if let Err(error) = checked.await.map_err(|e| Status::internal(e.to_string()))? {
            let message = error.to_string();
            return respond(R::Rejection(pb::RejectionView {
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
        let import = u128::from(self.shared.clock.unix_ms()) << 64 | u128::from(self.shared.node);
        let mut steps = vec![SystemCommand::ImportAbort];
        let chunks = file.chunks(IMPORT_CHUNK_BYTES);
        let count = chunks.len() as u32;
        steps.extend(chunks.enumerate().map(|(number, bytes)| SystemCommand::ImportChunk {
            import,
            number: number as u32,
            bytes: bytes.to_vec(),
        }));
        steps.push(SystemCommand::ImportCommit { import, chunks: count, replace: first.replace });
        for step in steps {
            let decided = shard::propose(&group, &*self.shared.clock, vec![Command::system(step)]).await;
            match decided.as_ref().map(|decisions| decisions.first().map(|decision| &decision.answer)) {
                Ok(Some(Answer::Done(_))) => {}
                Ok(Some(Answer::Rejected(why))) => {
                    return respond(R::Rejection(pb::RejectionView {
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

    async fn get_node_state(
        &self,
        _: Request<pb::GetNodeStateRequest>,
    ) -> Result<Response<pb::GetNodeStateResponse>, Status> {
        let serving = &self.shared.serving;
        let mut groups: Vec<_> = serving.groups.values().map(|served| self.group_state(served)).collect();
        groups.extend(serving.faults.iter().map(|(group, why)| pb::GroupState {
            group: *group,
            role: "halted".into(),
            fault: why.clone(),
            ..pb::GroupState::default()
        }));
        Ok(Response::new(pb::GetNodeStateResponse {
            node: self.shared.node,
            version: env!("CARGO_PKG_VERSION").into(),
            log_bytes: self.shared.log.disk_bytes(),
            groups,
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
        tokio::task::spawn_blocking(move || {
            for part in snapshot::encode(&frozen) {
                if sender.blocking_send(Ok(pb::ExportResponse { chunk: part.into() })).is_err() {
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
}
