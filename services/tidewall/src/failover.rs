//! `tidewall region failover`: one surviving replica goes on alone, after the majority of a region was lost for good.
//!
//! It looks first, says what can be known of the loss and what nobody can, asks for the region's name, raises the fence in
//! the topology that all processes follow, and only then gives the order. Without the fence the lost members could
//! come back and go on by themselves.

use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tidewall_proto::v1::operator_service_client::OperatorServiceClient;
use tidewall_proto::v1::{FailoverRegionRequest, FailoverRegionResponse, GetRegionStatusRequest};

use crate::confirm;
use crate::datadir::DataDir;
use crate::duration;
use crate::exit::{Exit, Failure};
use crate::gateway::{self, Caller, TargetArgs, TokenArgs};
use crate::output::{self, Format, ProgressLine};
use crate::region::region_name;

/// Help of the command.
pub const HELP: &str = "Examples:\n  tidewall region failover north --dry-run\n  tidewall region failover north\n  \
    tidewall region failover north --node 1 --yes\n\nOnly for a region that has lost the majority of its replicas for \
    good: what only they had is lost. The surviving node restarts, and the region goes on as a new incarnation with one \
    replica. Replace the lost nodes afterwards: tidewall node replace N.";

/// How long the survivor may take to see the fence.
const FENCE_PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take until it leads.
const LEAD_PATIENCE: Duration = Duration::from_secs(30);
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Arguments of `region failover`.
#[derive(Debug, Args)]
pub struct FailoverArgs {
    /// Region, such as north or regions/north
    #[arg(value_name = "REGION", value_parser = region_name)]
    pub region: String,
    /// The node whose replica goes on [default: the one that answers with the longest log]
    #[arg(long, value_name = "NODE", default_value_t = 0, hide_default_value = true)]
    pub node: u64,
    /// Only look
    #[arg(long)]
    pub dry_run: bool,
    /// Do not ask for the region's name
    #[arg(long)]
    pub yes: bool,
    /// Which cluster
    #[command(flatten)]
    pub target: TargetArgs,
    /// Who asks
    #[command(flatten)]
    pub token: TokenArgs,
}

/// What was found, and what was done.
#[derive(Debug, Serialize)]
struct Failover<'a> {
    region: &'a str,
    node: u64,
    term: u64,
    last_log_index: u64,
    committed_index: u64,
    /// Entries that the survivor has and does not know to be committed: they are kept.
    uncommitted_entries: u64,
    applied_index: u64,
    digest: &'a str,
    incarnation: u64,
    voters: &'a [u64],
    silent_replicas: Vec<Silent>,
    /// False for a dry run.
    done: bool,
    /// The incarnation that has begun; 0 for a dry run.
    new_incarnation: u64,
}

#[derive(Debug, Serialize)]
struct Silent {
    node: u64,
    silent_ms: u64,
    never_heard: bool,
}

/// Runs the command.
pub async fn run(arguments: &FailoverArgs, format: Format) -> Result<(), Failure> {
    let name = &arguments.region;
    let caller = gateway::operator(&arguments.target, &arguments.token).await?;
    let ask = |request| ask(&caller, arguments, request);
    let look = FailoverRegionRequest {
        name: name.clone(),
        node: arguments.node,
        dry_run: true,
        ..FailoverRegionRequest::default()
    };
    let found = ask(look).await.map_err(|e| Failure::from_status(format_args!("fail {name} over"), &e))?;
    if arguments.dry_run {
        return match format {
            Format::Json => output::json(&view(name, &found, 0)),
            Format::Table => output::text(&preflight(name, &found)),
        };
    }
    if !arguments.yes {
        output::note(&preflight(name, &found));
        let id = name.trim_start_matches("regions/");
        let question = format!("Type {id} to go on:");
        confirm::typed(
            &[id, name],
            &question,
            "a forced failover may lose what was sold: confirm with --yes",
        )?;
    }
    if arguments.target.target.is_empty() {
        raise_fence(&DataDir::new(&arguments.target.data), name, found.incarnation)?;
    }
    let order = FailoverRegionRequest {
        name: name.clone(),
        node: found.node,
        dry_run: false,
        seen_last_log_index: found.last_log_index,
        seen_incarnation: found.incarnation,
    };
    let mut line = ProgressLine::default();
    let until = Instant::now() + FENCE_PATIENCE;
    let new_incarnation = loop {
        line.show("waiting until the node has seen the fence");
        match ask(order.clone()).await {
            Ok(ordered) => break ordered.new_incarnation,
            Err(status) if status.message().contains("fence") && Instant::now() < until => {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Err(status) => {
                line.clear();
                return Err(Failure::from_status(format_args!("fail {name} over"), &status));
            }
        }
    };
    line.show(&format!("node {} starts again as the only replica", found.node));
    wait_for_lead(&caller, name, found.node, new_incarnation).await?;
    line.clear();
    match format {
        Format::Json => output::json(&view(name, &found, new_incarnation)),
        Format::Table => output::text(&format!(
            "{name} goes on at node {} alone, as incarnation {}, from log index {}.\nReplace the lost nodes now: \
             tidewall node replace N\n",
            found.node, new_incarnation, found.last_log_index
        )),
    }
}

async fn ask(
    caller: &Caller,
    arguments: &FailoverArgs,
    request: FailoverRegionRequest,
) -> Result<FailoverRegionResponse, tonic::Status> {
    let request = caller.request(request, arguments.token.for_question());
    let answer = OperatorServiceClient::new(caller.channel()).failover_region(request).await;
    answer.map(tonic::Response::into_inner)
}

/// Makes every replica of an older incarnation refuse to serve, wherever the topology is followed.
///
/// Each recovery gets a number of its own, that no other one had, and beyond what imports count to: two survivors must
/// never look like one.
fn raise_fence(data: &DataDir, name: &str, incarnation: u64) -> Result<(), Failure> {
    /// Imports count in the lower half of an incarnation's bits.
    const IMPORTS: u64 = u32::MAX as u64;
    let id = name.trim_start_matches("regions/");
    let raised = data.change_topology(|topology| {
        let group = topology.region(id).map(|region| region.group);
        let group = group.ok_or_else(|| format!("it has no region {id}"))?;
        let fence = topology.fences.entry(group).or_insert(0);
        *fence = ((*fence).max(incarnation) | IMPORTS) + 1;
        Ok(())
    });
    raised.map(drop).map_err(|e| Failure::new(Exit::Environment, e))
}

async fn wait_for_lead(caller: &Caller, name: &str, node: u64, incarnation: u64) -> Result<(), Failure> {
    let until = Instant::now() + LEAD_PATIENCE;
    loop {
        let request =
            caller.request(GetRegionStatusRequest { name: name.to_owned() }, Duration::from_secs(5));
        let status = OperatorServiceClient::new(caller.channel()).get_region_status(request).await;
        let leads = status.is_ok_and(|answer| {
            answer
                .into_inner()
                .region
                .is_some_and(|region| region.leader_node == node && region.incarnation >= incarnation)
        });
        if leads {
            return Ok(());
        }
        if Instant::now() >= until {
            let text = format!(
                "the order was given, and node {} does not lead {name} yet: it must be started again by its supervisor; \
                 look at its log and at `tidewall region status {name}`",
                node
            );
            return Err(Failure::new(Exit::Unavailable, text));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn view<'a>(region: &'a str, found: &'a FailoverRegionResponse, new_incarnation: u64) -> Failover<'a> {
    let silent = found.silent_replicas.iter().map(|silent| Silent {
        node: silent.node,
        silent_ms: duration::millis(silent.silence).max(0) as u64,
        never_heard: silent.never_heard,
    });
    Failover {
        region,
        node: found.node,
        term: found.term,
        last_log_index: found.last_log_index,
        committed_index: found.committed_index,
        uncommitted_entries: found.last_log_index.saturating_sub(found.committed_index),
        applied_index: found.applied_index,
        digest: &found.digest,
        incarnation: found.incarnation,
        voters: &found.voters,
        silent_replicas: silent.collect(),
        done: new_incarnation > 0,
        new_incarnation,
    }
}

/// What is known, and what nobody can know.
fn preflight(name: &str, found: &FailoverRegionResponse) -> String {
    let mut text = format!(
        "{name} would go on at node {} alone.\n  kept     everything up to log index {} (term {}), applied up to {}\n",
        found.node, found.last_log_index, found.term, found.applied_index
    );
    text += &format!(
        "  suffix   {} entries of that are not known to be committed; they are kept, acknowledged or not\n",
        found.last_log_index.saturating_sub(found.committed_index)
    );
    for silent in &found.silent_replicas {
        let since = Duration::from_millis(duration::millis(silent.silence).max(0) as u64);
        text += &match silent.never_heard {
            true => format!(
                "  silent   node {}: not heard since node {} started, {since:.1?} ago\n",
                silent.node, found.node
            ),
            false => format!("  silent   node {}: for {since:.1?}\n", silent.node),
        };
    }
    text += "  lost     whatever the silent replicas acknowledged and this one never received: nobody can say what that is\n";
    text + &format!(
        "  then     a new incarnation begins; replicas of incarnation {} refuse to serve for good\n",
        found.incarnation
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use tidewall_proto::v1::SilentReplica;

    fn seconds(seconds: i64) -> Option<prost_types::Duration> {
        Some(prost_types::Duration { seconds, nanos: 0 })
    }

    #[test]
    fn the_preflight_says_what_is_kept_and_what_nobody_knows() {
        let found = FailoverRegionResponse {
            node: 1,
            term: 4,
            last_log_index: 120,
            committed_index: 117,
            applied_index: 117,
            incarnation: 1,
            voters: vec![1, 2, 3],
            silent_replicas: vec![
                SilentReplica { node: 2, silence: seconds(61), never_heard: false },
                SilentReplica { node: 3, silence: seconds(90), never_heard: true },
            ],
            digest: String::new(),
            new_incarnation: 0,
        };
        let text = preflight("regions/north", &found);
        for part in [
            "index 120",
            "3 entries",
            "node 2: for 61",
            "node 3: not heard",
            "nobody can say",
            "incarnation 1 refuse",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(view("regions/north", &found, 9).new_incarnation, 9);
    }

    #[test]
    fn a_fence_is_raised_for_the_right_group() {
        let directory = tempfile::tempdir().unwrap();
        let data = DataDir::new(directory.path());
        drop(data.prepare(&crate::datadir::Wanted::default(), Duration::ZERO).unwrap());
        raise_fence(&data, "regions/north", 1).unwrap();
        let topology = tidewall_client::Topology::load(&data.topology()).unwrap();
        let group = topology.region("north").unwrap().group;
        assert_eq!((topology.fences[&group], topology.fences.len(), topology.generation), (1 << 32, 1, 1));
        // A second recovery of the same state is another one: its number differs, and the fence never falls.
        raise_fence(&data, "regions/north", 1).unwrap();
        let again = tidewall_client::Topology::load(&data.topology()).unwrap();
        assert_eq!(again.fences[&group], 2 << 32);
        assert!(
            raise_fence(&data, "regions/nowhere", 2).unwrap_err().to_string().contains("no region nowhere")
        );
    }
}
