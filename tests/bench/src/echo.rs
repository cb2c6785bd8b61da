//! The ceiling: a unary gRPC call that does nothing, in a process of its own, through the same library and
//! with messages like those of a purchase.

use std::process::{Child, Command, Stdio};

use anyhow::Context as _;
use tidewall_proto::v1::get_outcome_response::Result as Decided;
use tidewall_proto::v1::outcome_service_client::OutcomeServiceClient;
use tidewall_proto::v1::outcome_service_server::{OutcomeService, OutcomeServiceServer};
use tidewall_proto::v1::{
    GetOutcomeRequest, GetOutcomeResponse, Purchase, SealRequestIdRequest, SealRequestIdResponse,
};
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Response, Status};

use crate::cell::{Done, Job};
use crate::tidewall::CALLS_PER_CONNECTION;

struct Echo;

#[tonic::async_trait]
impl OutcomeService for Echo {
    async fn get_outcome(
        &self,
        request: Request<GetOutcomeRequest>,
    ) -> Result<Response<GetOutcomeResponse>, Status> {
        let purchase = Purchase { tickets: vec![request.into_inner().request_id], ..Purchase::default() };
        Ok(Response::new(GetOutcomeResponse {
            result: Some(Decided::Purchase(purchase)),
            ..GetOutcomeResponse::default()
        }))
    }

    async fn seal_request_id(
        &self,
        _: Request<SealRequestIdRequest>,
    ) -> Result<Response<SealRequestIdResponse>, Status> {
        Err(Status::unimplemented("the echo decides nothing"))
    }
}

/// Serves until standard input closes; prints its address first.
///
/// # Errors
/// When no port can be had.
pub async fn serve() -> anyhow::Result<()> {
    let incoming = TcpIncoming::bind("127.0.0.1:0".parse()?)?.with_nodelay(Some(true));
    println!("{}", incoming.local_addr()?);
    let end = async {
        let mut input = tokio::io::stdin();
        // Whatever is read, the end of it is the end of the parent.
        let _ = tokio::io::copy(&mut input, &mut tokio::io::sink()).await;
    };
    Server::builder()
        .add_service(OutcomeServiceServer::new(Echo))
        .serve_with_incoming_shutdown(incoming, end)
        .await
        .context("the echo server failed")
}

/// The echo process.
pub struct EchoServer {
    child: Child,
    address: String,
}

impl EchoServer {
    /// Starts this binary again as an echo server.
    ///
    /// # Errors
    /// When that fails.
    pub fn start() -> anyhow::Result<Self> {
        use std::io::BufRead as _;
        let mut child = Command::new(std::env::current_exe()?)
            .arg("echo-server")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the child's output was to be a pipe")?;
        let mut address = String::new();
        std::io::BufReader::new(output).read_line(&mut address)?;
        Ok(Self { child, address: address.trim().to_owned() })
    }

    /// Its process.
    pub fn root(&self) -> u32 {
        self.child.id()
    }

    /// One job per client.
    ///
    /// # Errors
    /// When nobody listens.
    pub async fn jobs(&self, clients: usize) -> anyhow::Result<Vec<impl Job + use<>>> {
        let mut channels = Vec::new();
        for _ in 0..clients.div_ceil(CALLS_PER_CONNECTION) {
            channels
                .push(Endpoint::new(format!("http://{}", self.address))?.tcp_nodelay(true).connect().await?);
        }
        let job =
            |client: usize| EchoJob(OutcomeServiceClient::new(channels[client % channels.len()].clone()));
        Ok((0..clients).map(job).collect())
    }
}

impl Drop for EchoServer {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

struct EchoJob(OutcomeServiceClient<Channel>);

impl Job for EchoJob {
    async fn once(&mut self) -> anyhow::Result<Done> {
        let request = GetOutcomeRequest {
            parent: "regions/north/events/gala".into(),
            request_id: uuid::Uuid::now_v7().to_string(),
        };
        self.0.get_outcome(request).await?;
        Ok(Done { purchases: 1, overloaded: 0 })
    }
}
