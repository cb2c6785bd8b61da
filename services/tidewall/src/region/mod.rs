//! `tidewall region`: what can be asked of regions, and ordered, through a gateway. It never looks at a data directory.

mod backup;
mod new_file;
mod view;

use clap::{Args, Subcommand};
use serde::Serialize;
use tidewall_client::topology::valid_region_id;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{GetRegionStatusRequest, ListRegionStatusesRequest, TransferLeaderRequest};

use crate::duration;
use crate::exit::{Exit, Failure};
use crate::gateway::{self, AskArgs, TargetArgs, TokenArgs};
use crate::output::{self, Format};
use view::{RegionList, RegionView, list_table, status_text};

/// Arguments of `tidewall region`.
#[derive(Debug, Args)]
pub struct RegionCommand {
    /// What to do
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be done with regions.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// List all regions: leader, term, lag, applied index, digest, hottest row
    #[command(
        after_help = "Example:\n  tidewall region list\n  tidewall region list -o json | jq '.regions[].leader_node'"
    )]
    List(AskArgs),
    /// Show one region, or all: every replica and the hot rows
    #[command(after_help = "Example:\n  tidewall region status north")]
    Status(StatusArgs),
    /// Hand the lead of a region to another node
    #[command(
        name = "transfer-leader",
        after_help = "Example:\n  tidewall region transfer-leader north --to 2\n\nReturns when that node leads; calls of clients wait meanwhile. The region keeps that leader until the lead is moved again, or the node dies or is drained."
    )]
    TransferLeader(TransferArgs),
    /// Let one surviving replica go on alone, after a majority was lost for good
    #[command(after_help = crate::failover::HELP)]
    Failover(crate::failover::FailoverArgs),
    /// Save the rows of a region at one log index to a file
    #[command(
        after_help = "Example:\n  tidewall region export north north.tidewall\n\nThe file appears under its name only when it is complete and on disk."
    )]
    Export(backup::ExportArgs),
    /// Restore an exported file into a region
    #[command(
        after_help = "Example:\n  tidewall region import north north.tidewall\n  tidewall region import north north.tidewall --replace --yes\n\nWithout --replace the region must hold no event. The file is verified before the first row changes."
    )]
    Import(backup::ImportArgs),
}

/// Arguments of `region status`.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Region, such as north or regions/north; all when left out
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: Option<String>,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// Arguments of `region transfer-leader`.
#[derive(Debug, Args)]
pub struct TransferArgs {
    /// Region, such as north or regions/north
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// Node that is to lead
    #[arg(long, value_name = "NODE")]
    pub to: u64,
    /// Return only when that node leads; this is always so and may be said for clarity
    #[arg(long)]
    pub wait: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

#[derive(Debug, Serialize)]
struct Transferred<'a> {
    region: &'a str,
    leader_node: u64,
    took_ms: i64,
}

/// Runs the command.
pub async fn run(command: &RegionCommand, format: Format) -> Result<(), Failure> {
    match &command.verb {
        Verb::List(arguments) => list(arguments, format).await,
        Verb::Status(arguments) => status(arguments, format).await,
        Verb::TransferLeader(arguments) => transfer(arguments, format).await,
        Verb::Failover(arguments) => crate::failover::run(arguments, format).await,
        Verb::Export(arguments) => backup::export(arguments, format).await,
        Verb::Import(arguments) => backup::import(arguments, format).await,
    }
}

async fn list(arguments: &AskArgs, format: Format) -> Result<(), Failure> {
    let regions = statuses(&arguments.target, &arguments.token).await?;
    match format {
        Format::Json => output::json(&RegionList { regions }),
        Format::Table => output::text(&list_table(&regions)),
    }
}

async fn statuses(target: &TargetArgs, token: &TokenArgs) -> Result<Vec<RegionView>, Failure> {
    let caller = gateway::operator(target, token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request = caller.request(ListRegionStatusesRequest::default(), token.for_question());
    let answer = client
        .list_region_statuses(request)
        .await
        .map_err(|e| Failure::from_status(format_args!("list the regions at {}", caller.url()), &e))?;
    Ok(answer.into_inner().regions.into_iter().map(RegionView::from).collect())
}

async fn status(arguments: &StatusArgs, format: Format) -> Result<(), Failure> {
    let Some(name) = &arguments.region else {
        let regions = statuses(&arguments.target, &arguments.token).await?;
        return match format {
            Format::Json => output::json(&RegionList { regions }),
            Format::Table => output::text(&regions.iter().map(status_text).collect::<Vec<_>>().join("\n")),
        };
    };
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let request =
        caller.request(GetRegionStatusRequest { name: name.clone() }, arguments.token.for_question());
    let answer = client
        .get_region_status(request)
        .await
        .map_err(|e| Failure::from_status(format_args!("get the status of {name}"), &e))?;
    let region = answer.into_inner().region.ok_or_else(|| {
        Failure::new(Exit::Refused, format!("the gateway at {} sent no status of {name}", caller.url()))
    })?;
    let region = RegionView::from(region);
    match format {
        Format::Json => output::json(&region),
        Format::Table => output::text(&status_text(&region)),
    }
}

async fn transfer(arguments: &TransferArgs, format: Format) -> Result<(), Failure> {
    let name = &arguments.region;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let mut client = OperatorServiceClient::new(caller.channel());
    let order = TransferLeaderRequest { name: name.clone(), to_node: arguments.to };
    let answer = client.transfer_leader(caller.request(order, arguments.token.for_question())).await;
    let done = answer
        .map_err(|e| Failure::from_status(format_args!("hand {name} to node {}", arguments.to), &e))?
        .into_inner();
    let (leader_node, took_ms) = (done.leader_node, duration::millis(done.elapsed));
    match format {
        Format::Json => output::json(&Transferred { region: name, leader_node, took_ms }),
        Format::Table => {
            output::text(&format!("node {leader_node} leads {name} now; it took {took_ms} ms\n"))
        }
    }
}

/// The name of a region from `north` or `regions/north`.
pub fn region_name(text: &str) -> Result<String, String> {
    let id = text.strip_prefix("regions/").unwrap_or(text);
    if valid_region_id(id) {
        Ok(format!("regions/{id}"))
    } else {
        Err("a region's id is 1 to 32 of [a-z0-9-], starting with a letter".into())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn regions_are_named_in_both_ways() {
        assert_eq!(region_name("north").unwrap(), "regions/north");
        assert_eq!(region_name("regions/north").unwrap(), "regions/north");
        for bad in ["", "North", "regions/", "regions/a/b", "../x"] {
            assert!(region_name(bad).is_err(), "{bad:?}");
        }
    }
}
