//! `tidewall node`: the shard nodes as a gateway sees them, and draining them.

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{DrainNodeRequest, ListNodesRequest, NodeStatus, UndrainNodeRequest};

use crate::duration;
use crate::exit::{Exit, Failure};
use crate::gateway::{self, AskArgs, TargetArgs, TokenArgs};
use crate::members;
use crate::output::{self, Format};

/// Arguments of `tidewall node`.
#[derive(Debug, Args)]
pub struct NodeCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with nodes.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List all shard nodes: address, state, what they lead, log size
    #[command(
        after_help = "Example:\n  tidewall node list\n  tidewall node list -o json | jq '.nodes[] | select(.reachable | not)'"
    )]
    List(AskArgs),
    /// Move all leads away from a node, and keep new ones away
    #[command(
        after_help = "Example:\n  tidewall node drain 2\n  tidewall node drain 2 && kill -TERM $(pgrep -f 'serve shard --node 2')\n\nThe node goes on replicating. It leads again after `node undrain`, or after a restart. Exit code 1 if it still leads a region."
    )]
    Drain(NodeArgs),
    /// Add a node, with a replica of every region
    #[command(
        after_help = "Examples:\n  tidewall node add\n  tidewall node add --id 4\n\nWithout --id a node is started beside the others, by the `tidewall up` that runs on --data. With --id it must run already and be in the topology that all processes follow. Each replica first receives everything and only then votes. May be repeated."
    )]
    Add(members::AddArgs),
    /// Remove a node and its replicas; its id is never used again
    #[command(after_help = "Example:\n  tidewall node remove 4")]
    Remove(members::RemoveArgs),
    /// Replace a node, also a dead one, by a new one under a new id
    #[command(
        after_help = "Examples:\n  tidewall node replace 2\n  tidewall node replace 2 --with 4\n\nFor a node whose disk is lost or damaged, or whose replicas are quarantined. Needs a majority of each region without it. May be repeated."
    )]
    Replace(members::ReplaceArgs),
    /// Let a drained node lead again
    #[command(after_help = "Example:\n  tidewall node undrain 2")]
    Undrain(NodeArgs),
}

/// Arguments of `node drain` and `node undrain`.
#[derive(Debug, Args)]
pub struct NodeArgs {
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

#[derive(Debug, Serialize)]
struct NodeView {
    node: u64,
    address: String,
    reachable: bool,
    leads: Vec<String>,
    replicas: u64,
    log_bytes: u64,
    version: String,
    fault: String,
    drained: bool,
    clock_offset_ms: i64,
    clock_far: bool,
    clock_confirmed: bool,
}

#[derive(Debug, Serialize)]
struct Drained {
    node: u64,
    drained: bool,
    moved: Vec<String>,
    kept: Vec<String>,
}

#[derive(Debug, Serialize)]
struct NodeList {
    nodes: Vec<NodeView>,
}

/// Runs the command.
pub async fn run(command: &NodeCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::List(arguments) => list(arguments, format).await,
        Verb::Drain(arguments) => drain(arguments, format).await,
        Verb::Undrain(arguments) => undrain(arguments, format).await,
        Verb::Add(arguments) => members::add(arguments, format).await,
        Verb::Remove(arguments) => members::remove(arguments, format).await,
        Verb::Replace(arguments) => members::replace(arguments, format).await,
    }
}

async fn drain(arguments: &NodeArgs, format: Format) -> Result<(), Failure> {
    let node = arguments.node;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request = caller.request(DrainNodeRequest { node }, arguments.token.for_question());
    let answer = client.drain_node(request).await;
    let done = answer.map_err(|e| Failure::from_status(format_args!("drain node {node}"), &e))?.into_inner();
    let kept = done.kept.join(", ");
    let text = format!("node {node} takes no leads any more; {} were moved\n", done.moved.len());
    match format {
        Format::Json => {
            output::json(&Drained { node, drained: true, moved: done.moved, kept: done.kept })?;
        }
        Format::Table => output::text(&text)?,
    }
    if kept.is_empty() {
        return Ok(());
    }
    let what = format!(
        "node {node} still leads {kept}: no other replica could take over in time. It goes on trying; look with `region list`"
    );
    Err(Failure::new(Exit::Failed, what))
}

async fn undrain(arguments: &NodeArgs, format: Format) -> Result<(), Failure> {
    let node = arguments.node;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request = caller.request(UndrainNodeRequest { node }, arguments.token.for_question());
    client
        .undrain_node(request)
        .await
        .map_err(|e| Failure::from_status(format_args!("undrain node {node}"), &e))?;
    match format {
        Format::Json => output::json(&Drained { node, drained: false, moved: Vec::new(), kept: Vec::new() }),
        Format::Table => output::text(&format!("node {node} may lead again\n")),
    }
}

async fn list(arguments: &AskArgs, format: Format) -> Result<(), Failure> {
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let answer = client
        .list_nodes(caller.request(ListNodesRequest::default(), arguments.token.for_question()))
        .await
        .map_err(|e| Failure::from_status(format_args!("list the nodes at {}", caller.url()), &e))?;
    let nodes: Vec<NodeView> = answer.into_inner().nodes.into_iter().map(NodeView::from).collect();
    match format {
        Format::Json => output::json(&NodeList { nodes }),
        Format::Table => output::text(&table(&nodes)),
    }
}

impl From<NodeStatus> for NodeView {
    fn from(node: NodeStatus) -> Self {
        Self {
            node: node.node,
            address: node.address,
            reachable: node.reachable,
            leads: node.leads,
            replicas: node.replicas,
            log_bytes: node.log_bytes,
            version: node.version,
            fault: node.fault,
            drained: node.drained,
            clock_offset_ms: duration::millis(node.clock_offset),
            clock_far: node.clock_far,
            clock_confirmed: node.clock_confirmed,
        }
    }
}

fn state(node: &NodeView) -> &'static str {
    match node {
        NodeView { reachable: false, .. } => "UNREACHABLE",
        NodeView { clock_far: true, .. } => "WRONG CLOCK",
        NodeView { drained: true, .. } => "drained",
        _ => "up",
    }
}

fn table(nodes: &[NodeView]) -> String {
    let rows = nodes
        .iter()
        .map(|node| {
            let leads: Vec<&str> =
                node.leads.iter().map(|name| name.trim_start_matches("regions/")).collect();
            vec![
                node.node.to_string(),
                node.address.clone(),
                state(node).into(),
                leads.len().to_string(),
                node.replicas.to_string(),
                output::bytes(node.log_bytes),
                node.version.clone(),
                if node.fault.is_empty() { leads.join(" ") } else { node.fault.clone() },
            ]
        })
        .collect();
    output::table(&["NODE", "ADDRESS", "STATE", "LEADS", "REPLICAS", "LOG", "VERSION", "REGIONS LED"], rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_table_tells_who_leads_and_who_is_gone() {
        let up = NodeStatus {
            node: 1,
            address: "127.0.0.1:1".into(),
            reachable: true,
            leads: vec!["regions/north".into(), "regions/east".into()],
            replicas: 12,
            log_bytes: 2048,
            version: "0.1.0".into(),
            ..Default::default()
        };
        let gone = NodeStatus { node: 2, fault: "refused".into(), ..Default::default() };
        let text = table(&[NodeView::from(up), NodeView::from(gone)]);
        let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["1", "127.0.0.1:1", "up", "2", "12", "2.0", "KiB", "0.1.0", "north", "east"]);
        assert!(rows[2].contains(&"UNREACHABLE") && rows[2].contains(&"refused"));
    }
}
