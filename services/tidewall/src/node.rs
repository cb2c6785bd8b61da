//! `tidewall node`: the shard nodes as a gateway sees them.

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{ListNodesRequest, NodeStatus};

use crate::exit::Failure;
use crate::gateway::{self, TargetArgs, TokenArgs};
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
    List(ListArgs),
}

/// Arguments of `node list`.
#[derive(Debug, Args)]
pub struct ListArgs {
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
}

#[derive(Debug, Serialize)]
struct NodeList {
    nodes: Vec<NodeView>,
}

/// Runs the command.
pub async fn run(command: &NodeCommand, format: Format) -> Result<(), Failure> {
    let Verb::List(arguments) = &command.verb;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let answer = client
        .list_nodes(caller.request(ListNodesRequest {}, arguments.token.for_question()))
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
        }
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
                if node.reachable { "up".into() } else { "UNREACHABLE".into() },
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
            fault: String::new(),
        };
        let gone = NodeStatus { node: 2, fault: "refused".into(), ..Default::default() };
        let text = table(&[NodeView::from(up), NodeView::from(gone)]);
        let rows: Vec<Vec<_>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["1", "127.0.0.1:1", "up", "2", "12", "2.0", "KiB", "0.1.0", "north", "east"]);
        assert!(rows[2].contains(&"UNREACHABLE") && rows[2].contains(&"refused"));
    }
}
