//! A region in JSON and in tables. It shows what a gateway said, and never asks for anything.

use serde::Serialize;
use tidewall_proto::v1::{RegionStatus, ReplicaRole};

use crate::{duration, output};

/// A region as it is printed.
#[derive(Debug, Serialize)]
pub(super) struct RegionView {
    name: String,
    display_name: String,
    leader_node: u64,
    term: u64,
    applied_index: u64,
    /// Of the replica that is furthest behind.
    lag_entries_max: u64,
    digest: String,
    incarnation: u64,
    rows: u64,
    log_time_ahead_ms: u64,
    log_time_rebases: u64,
    leap_unconfirmed: bool,
    dead_letters: u64,
    outbox_messages: u64,
    replicas: Vec<ReplicaView>,
    hot_rows: Vec<HotRowView>,
}

/// A replica as it is printed.
#[derive(Debug, Serialize)]
struct ReplicaView {
    node: u64,
    role: &'static str,
    term: u64,
    last_log_index: u64,
    committed_index: u64,
    applied_index: u64,
    lag_entries: u64,
    digest: String,
    checkpoint_index: u64,
    checkpoint_backlog_pages: u64,
    fault: String,
}

/// A hot row as it is printed.
#[derive(Debug, Serialize)]
struct HotRowView {
    name: String,
    commands_per_second: f64,
    queued: u64,
}

/// Regions as they are printed.
#[derive(Debug, Serialize)]
pub(super) struct RegionList {
    pub(super) regions: Vec<RegionView>,
}

impl From<RegionStatus> for RegionView {
    fn from(region: RegionStatus) -> Self {
        let replicas: Vec<ReplicaView> = region
            .replicas
            .into_iter()
            .map(|replica| ReplicaView {
                node: replica.node,
                role: role_word(ReplicaRole::try_from(replica.role).unwrap_or(ReplicaRole::Unspecified)),
                term: replica.term,
                last_log_index: replica.last_log_index,
                committed_index: replica.committed_index,
                applied_index: replica.applied_index,
                lag_entries: replica.lag_entries,
                digest: replica.digest,
                checkpoint_index: replica.checkpoint_index,
                checkpoint_backlog_pages: replica.checkpoint_backlog_pages,
                fault: replica.fault,
            })
            .collect();
        Self {
            name: region.name,
            display_name: region.display_name,
            leader_node: region.leader_node,
            term: region.term,
            applied_index: region.applied_index,
            lag_entries_max: replicas.iter().map(|replica| replica.lag_entries).max().unwrap_or(0),
            digest: region.digest,
            incarnation: region.incarnation,
            rows: region.rows,
            log_time_ahead_ms: duration::millis(region.log_time_ahead).max(0) as u64,
            log_time_rebases: region.log_time_rebases,
            leap_unconfirmed: region.leap_unconfirmed,
            dead_letters: region.dead_letters,
            outbox_messages: region.outbox_messages,
            replicas,
            hot_rows: region
                .hot_rows
                .into_iter()
                .map(|row| HotRowView {
                    name: row.name,
                    commands_per_second: row.commands_per_second,
                    queued: row.queued,
                })
                .collect(),
        }
    }
}

/// A role as people read it.
fn role_word(role: ReplicaRole) -> &'static str {
    match role {
        ReplicaRole::Unspecified => "unknown",
        ReplicaRole::Leader => "leader",
        ReplicaRole::Follower => "follower",
        ReplicaRole::Candidate => "candidate",
        ReplicaRole::Learner => "learner",
        ReplicaRole::Halted => "HALTED",
        ReplicaRole::Unreachable => "UNREACHABLE",
    }
}

/// A node id, or a dash for none.
fn node_or_dash(node: u64) -> String {
    if node == 0 { "-".into() } else { node.to_string() }
}

/// A line for each region.
pub(super) fn list_table(regions: &[RegionView]) -> String {
    let rows = regions
        .iter()
        .map(|region| {
            let well = region.replicas.iter().filter(|replica| replica.fault.is_empty()).count();
            let hottest = region
                .hot_rows
                .first()
                .map_or_else(|| "-".into(), |row| format!("{} {:.0}/s", row.name, row.commands_per_second));
            vec![
                region.name.trim_start_matches("regions/").to_owned(),
                node_or_dash(region.leader_node),
                region.term.to_string(),
                region.applied_index.to_string(),
                region.lag_entries_max.to_string(),
                format!("{well}/{}", region.replicas.len()),
                region.rows.to_string(),
                region.digest.chars().take(12).collect(),
                hottest,
            ]
        })
        .collect();
    output::table(
        &["REGION", "LEADER", "TERM", "APPLIED", "LAG", "REPLICAS OK", "ROWS", "DIGEST", "HOTTEST ROW"],
        rows,
    )
}

/// Below this log time is as good as the clock, ms.
const AHEAD_MS_MIN: u64 = 1_000;

/// What is wrong with a region, and the way out of it; nothing when all is well.
fn alarms(region: &RegionView) -> String {
    let mut text = String::new();
    if region.log_time_ahead_ms >= AHEAD_MS_MIN {
        text += &format!(
            "LOG TIME is {:.1} s ahead of the leader's clock: writes expire. The leader corrects it by itself when the clocks \
             of a majority agree: look at `tidewall node list`, and set the clocks that are off\n\n",
            region.log_time_ahead_ms as f64 / 1_000.0
        );
    }
    if region.leap_unconfirmed {
        text += "LOG TIME waits: the leader's clock leapt ahead, and no majority of clocks agrees. No hold ends and nothing is \
                 expired meanwhile: look at `tidewall node list`, and set the clocks that are off\n\n";
    }
    if region.dead_letters > 0 {
        text += &format!(
            "{} DEAD LETTERS wait for somebody: look at `tidewall dlq list`\n\n",
            region.dead_letters
        );
    }
    text
}

/// A region with its replicas and hot rows.
pub(super) fn status_text(region: &RegionView) -> String {
    let leader = if region.leader_node == 0 {
        "no leader".to_owned()
    } else {
        format!("led by node {}", region.leader_node)
    };
    let mut text = format!(
        "{} ({}): {leader}, term {}, incarnation {}, {} rows at index {}, digest {}\n\n",
        region.name,
        region.display_name,
        region.term,
        region.incarnation,
        region.rows,
        region.applied_index,
        region.digest
    );
    text += &alarms(region);
    let replicas = region
        .replicas
        .iter()
        .map(|replica| {
            vec![
                replica.node.to_string(),
                replica.role.to_owned(),
                replica.term.to_string(),
                replica.last_log_index.to_string(),
                replica.committed_index.to_string(),
                replica.applied_index.to_string(),
                replica.lag_entries.to_string(),
                replica.checkpoint_index.to_string(),
                replica.checkpoint_backlog_pages.to_string(),
                replica.digest.clone(),
                replica.fault.clone(),
            ]
        })
        .collect();
    text += &output::table(
        &[
            "NODE",
            "ROLE",
            "TERM",
            "LAST",
            "COMMITTED",
            "APPLIED",
            "LAG",
            "CHECKPOINT",
            "BACKLOG",
            "DIGEST",
            "FAULT",
        ],
        replicas,
    );
    if !region.hot_rows.is_empty() {
        let rows = region
            .hot_rows
            .iter()
            .map(|row| {
                vec![row.name.clone(), format!("{:.1}", row.commands_per_second), row.queued.to_string()]
            })
            .collect();
        text.push('\n');
        text += &output::table(&["HOT ROW", "COMMANDS/S", "QUEUED"], rows);
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tidewall_proto::v1::{HotRow, ReplicaStatus};

    use super::*;

    fn sample() -> RegionView {
        RegionView::from(RegionStatus {
            name: "regions/north".into(),
            display_name: "North".into(),
            leader_node: 0,
            term: 4,
            applied_index: 99,
            digest: "0123456789abcdef0123456789abcdef".into(),
            rows: 7,
            replicas: vec![
                ReplicaStatus {
                    node: 1,
                    role: ReplicaRole::Follower as i32,
                    lag_entries: 2,
                    ..Default::default()
                },
                ReplicaStatus {
                    node: 2,
                    role: ReplicaRole::Unreachable as i32,
                    lag_entries: 5,
                    fault: "refused".into(),
                    ..Default::default()
                },
                ReplicaStatus { node: 3, role: 99, ..Default::default() },
            ],
            hot_rows: vec![HotRow {
                name: "regions/north/events/gala".into(),
                commands_per_second: 1234.5,
                queued: 3,
            }],
            ..Default::default()
        })
    }

    #[test]
    fn tables_show_leader_lag_health_and_hot_rows() {
        let text = list_table(&[sample()]);
        let row: Vec<_> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            ["north", "-", "4", "99", "5", "2/3", "7", "0123456789ab", "regions/north/events/gala", "1234/s"]
        );
        let text = status_text(&sample());
        assert!(
            text.contains("no leader") && text.contains("UNREACHABLE") && text.contains("unknown"),
            "{text}"
        );
        assert!(text.contains("refused") && text.contains("1234.5"), "{text}");
    }

    #[test]
    fn json_has_the_documented_fields() {
        let json = serde_json::to_value(RegionList { regions: vec![sample()] }).unwrap();
        let region = &json["regions"][0];
        assert_eq!(region["lag_entries_max"], 5);
        assert_eq!(region["replicas"][1]["role"], "UNREACHABLE");
        assert_eq!(region["hot_rows"][0]["queued"], 3);
    }

    #[test]
    fn a_time_that_is_wrong_is_shown_with_the_way_out() {
        let mut region = sample();
        assert!(!status_text(&region).contains("LOG TIME"));
        region.log_time_ahead_ms = 600_000;
        let text = status_text(&region);
        assert!(text.contains("600.0 s ahead") && text.contains("set the clocks"), "{text}");
        region.log_time_ahead_ms = 0;
        region.leap_unconfirmed = true;
        assert!(status_text(&region).contains("LOG TIME waits"));
    }
}
