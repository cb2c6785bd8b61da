//! `tidewall node add|remove|replace`: which nodes have replicas.
//!
//! On the machine of a `tidewall up` this edits the topology file, which every process follows, and lets the
//! supervisor start or stop the node's process; elsewhere that is done by whoever runs the processes. The replicas are
//! changed region by region through a gateway. Every step may be repeated after a failure.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tidewall_client::topology::Node;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::region_service_client::RegionServiceClient;
use tidewall_proto::v1::{ChangeReplicasRequest, ListNodesRequest, ListRegionsRequest};
use tonic::transport::Channel;

use crate::datadir::DataDir;
use crate::exit::{Exit, Failure};
use crate::gateway::{self, Caller, TargetArgs, TokenArgs};
use crate::output::{self, Format, ProgressLine};
use crate::ports::{self, Reservation};

/// How long a node that was just added may take to answer.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long one region may take before it is asked again.
const REGION_PATIENCE: Duration = Duration::from_secs(60);
/// Regions on one page.
const PAGE: i32 = 1_000;

/// Arguments of `node add`.
#[derive(Debug, Args)]
pub struct AddArgs {
    /// A node that runs already, under this id of the topology
    #[arg(long, value_name = "NODE")]
    pub id: Option<u64>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `node remove`.
#[derive(Debug, Args)]
pub struct RemoveArgs {
    /// Id of the node, as `node list` shows it
    #[arg(value_name = "NODE")]
    pub node: u64,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `node replace`.
#[derive(Debug, Args)]
pub struct ReplaceArgs {
    /// Id of the node that goes, as `node list` shows it
    #[arg(value_name = "NODE")]
    pub node: u64,
    /// A node that runs already and takes over, under this id of the topology
    #[arg(long, value_name = "NODE")]
    pub with: Option<u64>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// What was done.
#[derive(Debug, Serialize)]
struct Changed {
    added: Vec<u64>,
    removed: Vec<u64>,
    regions: Vec<RegionVoters>,
    took_ms: u64,
}

#[derive(Debug, Serialize)]
struct RegionVoters {
    region: String,
    voters: Vec<u64>,
}

/// Adds a node.
pub async fn add(arguments: &AddArgs, format: Format) -> Result<(), Failure> {
    let change = Change::begin(&arguments.target, &arguments.token).await?;
    let node = change.node_to_add(arguments.id)?;
    change.run(&[node], &[], format).await
}

/// Removes a node.
pub async fn remove(arguments: &RemoveArgs, format: Format) -> Result<(), Failure> {
    let change = Change::begin(&arguments.target, &arguments.token).await?;
    change.knows(arguments.node).await?;
    change.run(&[], &[arguments.node], format).await
}

/// Replaces a node by another one.
pub async fn replace(arguments: &ReplaceArgs, format: Format) -> Result<(), Failure> {
    let change = Change::begin(&arguments.target, &arguments.token).await?;
    change.knows(arguments.node).await?;
    let node = change.node_to_add(arguments.with)?;
    change.run(&[node], &[arguments.node], format).await
}

/// A change that is under way.
struct Change {
    begun: Instant,
    limit: Duration,
    caller: Caller,
    /// The data directory of a cluster that `up` runs on this machine.
    local: Option<DataDir>,
}

impl Change {
    async fn begin(target: &TargetArgs, token: &TokenArgs) -> Result<Self, Failure> {
        let caller = gateway::operator(target, token).await?;
        let local = target.target.is_empty().then(|| DataDir::new(&target.data));
        Ok(Self { begun: Instant::now(), limit: token.for_transfer(), caller, local })
    }

    fn client(&self) -> OperatorServiceClient<Channel> {
        OperatorServiceClient::new(self.caller.channel())
    }

    fn left(&self) -> Duration {
        self.limit.saturating_sub(self.begun.elapsed())
    }

    /// Refuses a node that the cluster does not have.
    async fn knows(&self, node: u64) -> Result<(), Failure> {
        let known: Vec<u64> = match &self.local {
            Some(local) => {
                let topology = tidewall_client::Topology::load(&local.topology());
                let topology = topology.map_err(|e| Failure::new(Exit::Environment, e))?;
                topology.nodes.iter().map(|node| node.id).collect()
            }
            None => {
                let request = self.caller.request(ListNodesRequest::default(), self.left());
                let listed = self.client().list_nodes(request).await;
                let listed = listed.map_err(|e| Failure::from_status("list the nodes", &e))?;
                listed.into_inner().nodes.into_iter().map(|node| node.node).collect()
            }
        };
        if known.contains(&node) {
            return Ok(());
        }
        let known: Vec<String> = known.iter().map(u64::to_string).collect();
        let text =
            format!("this cluster has no node {node}; it has {}. Nothing was changed", known.join(", "));
        Err(Failure::new(Exit::Usage, text))
    }

    /// The node that is to get replicas: the given one, or a new one on this machine.
    fn node_to_add(&self, given: Option<u64>) -> Result<u64, Failure> {
        if let Some(node) = given {
            return Ok(node);
        }
        let Some(local) = &self.local else {
            return Err(Failure::new(
                Exit::Usage,
                "a gateway cannot start a node: start it, add it to the topology that all processes follow, and name \
                 its id (--id or --with)",
            ));
        };
        let mut reservation = Reservation::default();
        let mut port = || {
            reservation
                .exactly(ports::any_loopback(), Duration::ZERO)
                .map_err(|e| Failure::new(Exit::Environment, format!("cannot find a free port: {e}")))
        };
        let (address, peer_address) = (port()?, port()?);
        let mut id = 0;
        local
            .change_topology(|topology| {
                id = topology.next_node_id();
                topology.nodes.push(Node { id, address, peer_address });
                Ok(())
            })
            .map_err(|e| Failure::new(Exit::Environment, e))?;
        Ok(id)
    }

    async fn run(&self, add: &[u64], remove: &[u64], format: Format) -> Result<(), Failure> {
        let mut line = ProgressLine::default();
        for node in add {
            line.show(&format!("waiting for node {node} to start"));
            self.wait_for(*node).await?;
        }
        let names = self.regions().await?;
        let mut regions = Vec::new();
        for (number, name) in names.iter().enumerate() {
            line.show(&format!("changing the replicas of {name} ({} of {})", number + 1, names.len()));
            let voters = self.change(name, add, remove).await?;
            regions.push(RegionVoters { region: name.clone(), voters });
        }
        line.clear();
        if let Some(local) = self.local.as_ref().filter(|_| !remove.is_empty()) {
            let retire = |topology: &mut tidewall_client::Topology| {
                topology.nodes.retain(|node| !remove.contains(&node.id));
                topology.retired.extend(remove);
                Ok(())
            };
            local.change_topology(retire).map_err(|e| Failure::new(Exit::Environment, e))?;
        }
        let took_ms = self.begun.elapsed().as_millis() as u64;
        let changed = Changed { added: add.to_vec(), removed: remove.to_vec(), regions, took_ms };
        match format {
            Format::Json => output::json(&changed),
            Format::Table => output::text(&said(&changed, self.local.is_some())),
        }
    }

    /// Waits until the gateway reaches a node.
    async fn wait_for(&self, node: u64) -> Result<(), Failure> {
        let until = Instant::now() + START_PATIENCE.min(self.left());
        loop {
            let request = self.caller.request(ListNodesRequest::default(), Duration::from_secs(5));
            let listed = self.client().list_nodes(request).await;
            let up = listed.is_ok_and(|answer| {
                answer.into_inner().nodes.iter().any(|found| found.node == node && found.reachable)
            });
            if up {
                return Ok(());
            }
            if Instant::now() >= until {
                let text = format!(
                    "node {node} does not answer: look at its log, and repeat this with the id {node} once it runs"
                );
                return Err(Failure::new(Exit::Unavailable, text));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn regions(&self) -> Result<Vec<String>, Failure> {
        let mut client = RegionServiceClient::new(self.caller.channel());
        let (mut names, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListRegionsRequest { page_size: PAGE, page_token };
            let answer = client.list_regions(self.caller.request(request, self.left())).await;
            let page = answer.map_err(|e| Failure::from_status("list the regions", &e))?.into_inner();
            names.extend(page.regions.into_iter().map(|region| region.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return Ok(names);
            }
        }
    }

    /// Changes one region, asking again until the time is over: each attempt goes on where the last one ended.
    async fn change(&self, name: &str, add: &[u64], remove: &[u64]) -> Result<Vec<u64>, Failure> {
        loop {
            let request = ChangeReplicasRequest {
                name: name.to_owned(),
                add_nodes: add.to_vec(),
                remove_nodes: remove.to_vec(),
            };
            let patience = REGION_PATIENCE.min(self.left());
            let answer = self.client().change_replicas(self.caller.request(request, patience)).await;
            match answer {
                Ok(done) => return Ok(done.into_inner().voters),
                Err(status) => {
                    let failure =
                        Failure::from_status(format_args!("change the replicas of {name}"), &status);
                    if failure.code() != Exit::Unavailable.code() || self.left().is_zero() {
                        return Err(failure);
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }
}

fn said(changed: &Changed, local: bool) -> String {
    let list = |nodes: &[u64]| nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let mut text = String::new();
    if !changed.added.is_empty() {
        text += &format!("node {} votes in {} regions now\n", list(&changed.added), changed.regions.len());
    }
    if !changed.removed.is_empty() {
        text += &format!("node {} has no replica any more", list(&changed.removed));
        text += if local {
            "; its process is stopped and its directory can be deleted\n"
        } else {
            ": remove it from the topology that all processes follow, put its id among the retired ones, and stop it\n"
        };
    }
    text + &format!("it took {:.1} s\n", changed.took_ms as f64 / 1_000.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_said() {
        let regions = vec![RegionVoters { region: "regions/north".into(), voters: vec![1, 3, 4] }];
        let changed = Changed { added: vec![4], removed: vec![2], regions, took_ms: 1_500 };
        let text = said(&changed, true);
        assert!(
            text.contains("node 4 votes in 1 regions") && text.contains("node 2 has no replica"),
            "{text}"
        );
        assert!(text.contains("can be deleted") && text.contains("1.5 s"), "{text}");
        assert!(said(&changed, false).contains("topology"));
    }
}
