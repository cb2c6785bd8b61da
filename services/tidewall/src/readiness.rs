//! Whether a cluster that was just started serves: every region has a leader, and every gateway answers.
//!
//! It asks from outside, as anybody could; it never looks into data or logs.

use std::collections::BTreeSet;
use std::time::Duration;

use futures_util::future::join_all;
use tidewall_client::topology::Topology;
use tidewall_client::{Credentials, NodeChannel, node_channel};
use tidewall_proto::internal::v1::GetNodeStateRequest;
use tidewall_proto::internal::v1::shard_service_client::ShardServiceClient;
use tidewall_proto::v1::ListRegionsRequest;
use tidewall_proto::v1::region_service_client::RegionServiceClient;
use tonic::Request;

use crate::gateway::Caller;

/// Pause between two rounds of questions.
const ROUND_EVERY: Duration = Duration::from_millis(40);
/// How long one question may take.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);

/// How far the cluster has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Nodes that answer.
    pub nodes_up: usize,
    /// All nodes.
    pub nodes: usize,
    /// Regions that have a leader.
    pub regions_led: usize,
    /// All regions.
    pub regions: usize,
    /// Gateways that answer calls.
    pub gateways_up: usize,
    /// All gateways.
    pub gateways: usize,
}

impl Progress {
    /// Whether nothing is missing. A node may be down as long as every region has a leader.
    pub fn ready(&self) -> bool {
        self.regions_led == self.regions && self.gateways_up == self.gateways
    }

    /// What is still waited for, in words.
    pub fn line(&self) -> String {
        if self.nodes_up == 0 {
            return format!("none of {} nodes answers yet", self.nodes);
        }
        if self.regions_led < self.regions {
            return format!("{} of {} regions have a leader", self.regions_led, self.regions);
        }
        format!("{} of {} gateways answer", self.gateways_up, self.gateways)
    }
}

/// Asks nodes and gateways until the cluster serves, and tells how far it is. Never returns before; the
/// caller bounds it. `callers` are one for each gateway.
pub async fn wait(
    topology: &Topology,
    credentials: &Credentials,
    callers: &[Caller],
    mut told: impl FnMut(Progress),
) {
    let channel = |node| node_channel(topology, node, ANSWER_WITHIN, Some(credentials));
    let node = |node| ShardServiceClient::new(channel(node));
    let nodes: Vec<ShardServiceClient<NodeChannel>> = topology.nodes.iter().map(node).collect();
    let mut progress = Progress {
        nodes: nodes.len(),
        regions: topology.regions.len(),
        gateways: callers.len(),
        ..Progress::default()
    };
    loop {
        let led: Vec<Option<BTreeSet<u32>>> = join_all(nodes.iter().map(|node| led_by(node.clone()))).await;
        progress.nodes_up = led.iter().flatten().count();
        progress.regions_led = led.into_iter().flatten().flatten().collect::<BTreeSet<u32>>().len();
        if progress.regions_led == progress.regions {
            let answers = join_all(callers.iter().map(answers)).await;
            progress.gateways_up = answers.into_iter().filter(|yes| *yes).count();
        }
        told(progress);
        if progress.ready() {
            return;
        }
        tokio::time::sleep(ROUND_EVERY).await;
    }
}

/// The groups that a node says it leads; `None` when it does not answer.
async fn led_by(mut node: ShardServiceClient<NodeChannel>) -> Option<BTreeSet<u32>> {
    let mut request = Request::new(GetNodeStateRequest {});
    request.set_timeout(ANSWER_WITHIN);
    let asked = tokio::time::timeout(ANSWER_WITHIN, node.get_node_state(request));
    let state = asked.await.ok()?.ok()?.into_inner();
    Some(state.groups.iter().filter(|group| group.role == "leader").map(|group| group.group).collect())
}

/// Whether a gateway answers a call of an authenticated caller.
async fn answers(caller: &Caller) -> bool {
    let mut client = RegionServiceClient::new(caller.channel());
    let request = caller.request(ListRegionsRequest { page_size: 1, ..Default::default() }, ANSWER_WITHIN);
    matches!(tokio::time::timeout(ANSWER_WITHIN, client.list_regions(request)).await, Ok(Ok(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_needs_every_region_and_every_gateway_but_not_every_node() {
        let all =
            Progress { nodes_up: 2, nodes: 3, regions_led: 12, regions: 12, gateways_up: 2, gateways: 2 };
        assert!(all.ready());
        assert!(!Progress { regions_led: 11, ..all }.ready());
        assert!(!Progress { gateways_up: 1, ..all }.ready());
        assert_eq!(Progress { regions_led: 9, ..all }.line(), "9 of 12 regions have a leader");
        assert_eq!(Progress { gateways_up: 1, ..all }.line(), "1 of 2 gateways answer");
        assert_eq!(Progress { nodes_up: 0, ..all }.line(), "none of 3 nodes answers yet");
    }
}
