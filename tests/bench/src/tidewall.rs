//! Tidewall as a client sees it: through the gateway, three replicas in three processes, a token per buyer.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use tidewall_e2e::client::{Session, event_of, request_id, tier};
use tidewall_e2e::cluster::{Cluster, Endpoints, Options, run};
use tidewall_proto::v1::*;
use tonic::metadata::MetadataMap;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::cell::{Done, Job};

/// Calls that share one HTTP/2 connection, here and with the bare echo.
pub const CALLS_PER_CONNECTION: usize = 64;

/// Buyers with a token of their own; clients beyond them share theirs. A buyer may own 100,000 tickets of an
/// event, so nobody runs out within a cell.
const BUYERS: usize = 64;

/// The most that a tier may have: no cell sells it out.
const STOCK: i64 = 10_000_000;

/// A cluster to measure.
pub struct Target {
    endpoints: Endpoints,
    data: PathBuf,
    /// Ours, and stopped with this; `None` when somebody else runs it.
    _own: Option<(Cluster, tempfile::TempDir)>,
}

impl Target {
    /// Starts a cluster with one gateway in a temporary directory below `base`.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn start(base: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tidewall-bench-").tempdir_in(base)?;
        let data = directory.path().join("data");
        let cluster = Cluster::start(Options { data: Some(data.clone()), ..Options::default() }).await?;
        Ok(Self { endpoints: cluster.endpoints().clone(), data, _own: Some((cluster, directory)) })
    }

    /// A cluster that `tidewall up` runs on `data` already.
    ///
    /// # Errors
    /// When none does.
    pub fn running(data: &Path) -> anyhow::Result<Self> {
        let file = data.join("endpoints.json");
        let text = std::fs::read(&file).with_context(|| {
            format!("no cluster runs on {}: {} cannot be read", data.display(), file.display())
        })?;
        Ok(Self { endpoints: serde_json::from_slice(&text)?, data: data.to_owned(), _own: None })
    }

    /// Address of its first gateway.
    ///
    /// # Errors
    /// When it has none.
    pub fn gateway(&self) -> anyhow::Result<String> {
        Ok(self.endpoints.gateways.first().context("the cluster has no gateway")?.url.clone())
    }

    /// Addresses of its nodes, for metrics.
    pub fn nodes(&self) -> Vec<String> {
        self.endpoints.nodes.iter().map(|node| node.address.clone()).collect()
    }

    /// Its supervisor; all other processes are below it.
    pub fn root(&self) -> u32 {
        self.endpoints.supervisor_pid
    }

    /// Its data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// A token for `user`.
    fn token(&self, user: &str, role: Option<&str>) -> anyhow::Result<String> {
        let data = self.data.display().to_string();
        let mut arguments = vec!["token", "--data", &data, "--user", user];
        if let Some(role) = role {
            arguments.extend(["--role", role]);
        }
        let output = run(&arguments, Duration::from_secs(20))?;
        ensure!(output.status.success(), "no token: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// A session on a connection of its own.
    ///
    /// # Errors
    /// When no token can be minted.
    pub fn session(&self, user: &str, role: Option<&str>) -> anyhow::Result<Session> {
        Session::new(&self.gateway()?, &self.token(user, role)?)
    }

    /// Names of the regions.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn regions(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.session("bench", None)?.region_names().await?)
    }

    /// A fresh event with more stock than a cell can sell.
    ///
    /// # Errors
    /// When it cannot be created.
    pub async fn event(&self, region: &str) -> anyhow::Result<String> {
        let organiser = self.session("bench-organiser", Some("organiser"))?;
        Ok(organiser.create_event(region, event_of(vec![tier("ga", STOCK)])).await?.name)
    }

    /// Buyers, one session each, on as few connections as [`CALLS_PER_CONNECTION`] asks for.
    ///
    /// # Errors
    /// When a token cannot be minted.
    pub fn buyers(&self, clients: usize) -> anyhow::Result<Vec<Session>> {
        let tokens: Vec<String> = (0..clients.clamp(1, BUYERS))
            .map(|buyer| self.token(&format!("bench-{buyer}"), None))
            .collect::<Result<_, _>>()?;
        let connections: Vec<Session> = (0..clients.div_ceil(CALLS_PER_CONNECTION))
            .map(|_| self.session("bench", None))
            .collect::<Result<_, _>>()?;
        (0..clients)
            .map(|client| connections[client % connections.len()].with_token(&tokens[client % tokens.len()]))
            .collect()
    }

    /// One job per client, all on the same row.
    ///
    /// # Errors
    /// When a token cannot be minted.
    pub fn jobs(&self, event: &str, clients: usize) -> anyhow::Result<Vec<BuyJob>> {
        Ok(self
            .buyers(clients)?
            .into_iter()
            .map(|session| BuyJob { session, event: event.to_owned() })
            .collect())
    }

    /// One job per concurrent call, each of `size` purchases.
    ///
    /// # Errors
    /// When a token cannot be minted.
    pub fn batch_jobs(&self, event: &str, concurrency: usize, size: usize) -> anyhow::Result<Vec<BatchJob>> {
        let session = self.session("bench-seller", Some("seller"))?;
        let job =
            |number| BatchJob { session: session.clone(), event: event.to_owned(), size, number, round: 0 };
        Ok((0..concurrency).map(job).collect())
    }

    /// Status of a region as operators see it.
    ///
    /// # Errors
    /// When the call fails.
    pub async fn status(&self, operator: &Session, region: &str) -> anyhow::Result<RegionStatus> {
        let request = GetRegionStatusRequest { name: region.to_owned() };
        let response = operator.operator().get_region_status(operator.request(request)).await?;
        response.into_inner().region.context("the answer has no region")
    }

    /// Checks that the tier adds up.
    ///
    /// # Errors
    /// When it does not.
    pub async fn audit(&self, event: &str) -> anyhow::Result<()> {
        let row = self.session("bench", None)?.event(event).await?;
        for tier in row.tiers {
            ensure!(
                tier.free + tier.held + tier.sold == tier.capacity,
                "the stock does not add up: {tier:?}"
            );
        }
        Ok(())
    }
}

/// Buys one ticket.
pub struct BuyJob {
    session: Session,
    event: String,
}

impl Job for BuyJob {
    async fn once(&mut self) -> anyhow::Result<Done> {
        let overloaded = buy(&self.session, &self.event).await?;
        Ok(Done { purchases: 1, overloaded })
    }
}

/// Buys one ticket and comes back when it is told to; returns how often it was.
///
/// # Errors
/// Any other answer than a ticket.
pub async fn buy(session: &Session, event: &str) -> anyhow::Result<u64> {
    bought(session, event).await.map(|(_, overloaded)| overloaded)
}

/// The same, with the metadata of the answer.
///
/// # Errors
/// Any other answer than a ticket.
pub async fn bought(session: &Session, event: &str) -> anyhow::Result<(MetadataMap, u64)> {
    let request = BuyTicketsRequest {
        parent: event.to_owned(),
        tier_id: "ga".into(),
        quantity: 1,
        seats: Vec::new(),
        request_id: request_id(),
    };
    let mut overloaded = 0;
    loop {
        match session.tickets().buy_tickets(session.request(request.clone())).await {
            Ok(answer) => return Ok((answer.metadata().clone(), overloaded)),
            Err(status) => {
                come_back(status).await?;
                overloaded += 1;
            }
        }
    }
}

/// Waits as long as an overloaded service asks for.
async fn come_back(status: Status) -> anyhow::Result<()> {
    if status.code() != Code::ResourceExhausted {
        bail!("{:?}: {}", status.code(), status.message());
    }
    let delay = status.get_details_retry_info().and_then(|info| info.retry_delay);
    tokio::time::sleep(delay.context("RESOURCE_EXHAUSTED without RetryInfo")?).await;
    Ok(())
}

/// Sells many tickets to many buyers in one call.
pub struct BatchJob {
    session: Session,
    event: String,
    size: usize,
    number: usize,
    round: usize,
}

impl Job for BatchJob {
    async fn once(&mut self) -> anyhow::Result<Done> {
        use batch_buy_tickets_result::Result as Decided;
        self.round += 1;
        let mut left: Vec<BatchPurchase> = (0..self.size)
            .map(|position| BatchPurchase {
                buyer: format!("guest-{}-{}-{position}", self.number, self.round),
                tier_id: "ga".into(),
                quantity: 1,
                request_id: request_id(),
            })
            .collect();
        let mut done = Done::default();
        while !left.is_empty() {
            let request = BatchBuyTicketsRequest { parent: self.event.clone(), purchases: left.clone() };
            let results = match self.session.tickets().batch_buy_tickets(self.session.request(request)).await
            {
                Ok(response) => response.into_inner().results,
                Err(status) => {
                    come_back(status).await?;
                    done.overloaded += 1;
                    continue;
                }
            };
            ensure!(results.len() == left.len(), "{} results for {} purchases", results.len(), left.len());
            let mut undecided = Vec::new();
            for (purchase, result) in left.into_iter().zip(results) {
                match result.result {
                    Some(Decided::Purchase(_)) => done.purchases += 1,
                    Some(Decided::Undecided(_)) => undecided.push(purchase),
                    other => bail!("a purchase was refused: {other:?}"),
                }
            }
            if !undecided.is_empty() {
                done.overloaded += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            left = undecided;
        }
        Ok(done)
    }
}
