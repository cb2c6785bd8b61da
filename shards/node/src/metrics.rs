//! Counters of a node, for Prometheus. Reading them costs the hot path nothing; writing, one atomic addition.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use tidewall_actors::{Refusal, Reply};
use tidewall_client::topology::Topology;
use tidewall_machine::Answer;
use tidewall_store::log::NodeLog;

use crate::exchange::Serving;

/// Before the name of everything that a node counts.
const PREFIX: &str = "tidewall_node";

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CommandLabels {
    region: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RegionLabels {
    region: String,
}

const OUTCOMES: [&str; 6] = ["done", "rejected", "not_leader", "overloaded", "unknown", "halted"];

/// Counters that the hot path touches, resolved once.
struct GroupCounters {
    commands: [Counter; OUTCOMES.len()],
    queries: Counter,
    queries_refused: Counter,
    reads: Counter,
    reads_refused: Counter,
}

/// The counters of a node.
pub struct Metrics {
    registry: Registry,
    groups: BTreeMap<u32, GroupCounters>,
    leads: Family<RegionLabels, Gauge>,
    applied: Family<RegionLabels, Gauge>,
    lag: Family<RegionLabels, Gauge>,
    backlog: Family<RegionLabels, Gauge>,
    faults: Family<RegionLabels, Counter>,
    dead_letters: Family<RegionLabels, Gauge>,
    outbox: Family<RegionLabels, Gauge>,
    sagas: Family<RegionLabels, Gauge>,
    log_bytes: Gauge,
    checkpoint_bytes: Gauge,
    low_space: Gauge<i64, std::sync::atomic::AtomicI64>,
    regions: BTreeMap<u32, String>,
}

impl Metrics {
    /// Counters for all regions of a topology.
    pub fn new(topology: &Topology) -> Self {
        let mut root = tidewall_metrics::registry(PREFIX, env!("CARGO_PKG_VERSION"));
        let registry = root.sub_registry_with_prefix(PREFIX);
        let commands = Family::<CommandLabels, Counter<u64, AtomicU64>>::default();
        let queries = Family::<CommandLabels, Counter<u64, AtomicU64>>::default();
        registry.register("commands", "Commands by region and outcome", commands.clone());
        registry.register("queries", "Linearizable queries by region and outcome", queries.clone());
        let reads = Family::<CommandLabels, Counter<u64, AtomicU64>>::default();
        let help = "Queries that any replica may answer, by region and outcome";
        registry.register("reads", help, reads.clone());
        let faults = Family::<RegionLabels, Counter>::default();
        let help = "Commands and timers taken back because of a broken invariant: an alarm";
        registry.register("broken_invariants", help, faults.clone());
        let mut gauge = |name: &str, help: &str| {
            let family = Family::<RegionLabels, Gauge>::default();
            registry.register(name, help, family.clone());
            family
        };
        let leads = gauge("leads", "1 when this node leads the region");
        let applied = gauge("applied_index", "Last applied log index");
        let lag = gauge("lag_entries", "Entries that are committed and not applied");
        let backlog = gauge("checkpoint_backlog_pages", "Pages changed since the last checkpoint");
        let help = "What could not be carried out and waits for somebody: an alarm (at the leader)";
        let dead_letters = gauge("dead_letters", help);
        let outbox =
            gauge("outbox_messages", "Messages to other regions that are not acknowledged (at the leader)");
        let sagas = gauge("open_sagas", "Sagas with other regions that have not ended (at the leader)");
        let mut single = |name: &str, help: &str| {
            let gauge = Gauge::default();
            registry.register(name, help, gauge.clone());
            gauge
        };
        let log_bytes = single("log_bytes", "Bytes of the Raft log on disk");
        let checkpoint_bytes = single("checkpoint_bytes", "Bytes of the checkpoint store on disk");
        let low_space = single("disk_low", "1 while new work is refused for lack of space");
        let regions: BTreeMap<u32, String> =
            topology.regions.iter().map(|region| (region.group, region.id.clone())).collect();
        // Each look-up holds a lock while its value lives: none may be alive at the next one.
        let counter = |family: &Family<CommandLabels, Counter<u64, AtomicU64>>, region: &String, outcome| {
            Counter::clone(&family.get_or_create(&CommandLabels { region: region.clone(), outcome }))
        };
        let counters = |region: &String| GroupCounters {
            commands: OUTCOMES.map(|outcome| counter(&commands, region, outcome)),
            queries: counter(&queries, region, "done"),
            queries_refused: counter(&queries, region, "refused"),
            reads: counter(&reads, region, "done"),
            reads_refused: counter(&reads, region, "refused"),
        };
        let groups = regions.iter().map(|(group, region)| (*group, counters(region))).collect();
        Self {
            registry: root,
            groups,
            leads,
            applied,
            lag,
            backlog,
            faults,
            dead_letters,
            outbox,
            sagas,
            log_bytes,
            checkpoint_bytes,
            low_space,
            regions,
        }
    }

    /// Counts a command by what became of it.
    pub fn command(&self, group: u32, reply: &Reply) {
        let at = match reply {
            Ok(decision) if matches!(decision.answer, Answer::Done { .. }) => 0,
            Ok(_) => 1,
            Err(Refusal::NotLeader { .. }) => 2,
            Err(Refusal::Overloaded { .. }) => 3,
            Err(Refusal::Unknown(_)) => 4,
            Err(Refusal::Halted(_)) => 5,
        };
        if let Some(counters) = self.groups.get(&group) {
            counters.commands[at].inc();
        }
    }

    /// Counts queries.
    pub fn queries(&self, group: u32, count: u64, answered: bool) {
        if let Some(counters) = self.groups.get(&group) {
            let counter = if answered { &counters.queries } else { &counters.queries_refused };
            counter.inc_by(count);
        }
    }

    /// Counts a query that any replica may answer.
    pub fn read(&self, group: u32, answered: bool) {
        if let Some(counters) = self.groups.get(&group) {
            let counter = if answered { &counters.reads } else { &counters.reads_refused };
            counter.inc();
        }
    }

    /// Everything as text.
    pub fn text(&self, serving: &Serving, log: &NodeLog, checkpoint_bytes: u64) -> String {
        for (group, region) in &self.regions {
            let labels = RegionLabels { region: region.clone() };
            let Some(served) = serving.groups.get(group) else { continue };
            let status = served.group.status();
            let checkpoint = served.group.checkpoint_state();
            let (broken, dead, outbox, sagas) = served.group.state().read(|machine| {
                let (messages, sagas) = machine.under_way();
                (machine.faults(), machine.dead_letters_count(), messages, sagas)
            });
            // What counts is the leader's: the others would count it three times.
            let leads = i64::from(served.group.believes_to_lead());
            self.dead_letters.get_or_create(&labels).set(leads * dead as i64);
            self.outbox.get_or_create(&labels).set(leads * outbox as i64);
            self.sagas.get_or_create(&labels).set(leads * sagas as i64);
            self.leads.get_or_create(&labels).set(i64::from(served.group.believes_to_lead()));
            self.applied.get_or_create(&labels).set(status.applied as i64);
            self.lag.get_or_create(&labels).set(status.committed.saturating_sub(status.applied) as i64);
            self.backlog.get_or_create(&labels).set(checkpoint.pages as i64);
            tidewall_metrics::set_counter(&self.faults.get_or_create(&labels), broken);
        }
        self.log_bytes.set(log.disk_bytes() as i64);
        self.checkpoint_bytes.set(checkpoint_bytes as i64);
        self.low_space.set(i64::from(serving.space.is_low()));
        tidewall_metrics::text(&self.registry)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;

    use tidewall_env::disk::MemoryDisk;
    use tidewall_machine::{Decision, RejectReason};
    use tidewall_store::log::LogOptions;

    use super::*;
    use crate::fake::{serving, topology};
    use crate::space::Space;

    #[test]
    fn what_becomes_of_commands_and_queries_is_counted_each_by_its_name() {
        let metrics = Metrics::new(&topology());
        let decided = |answer| Ok(Decision { receipt: None, answer, replayed: false });
        let replies: [(u64, Reply); OUTCOMES.len()] = [
            (1, decided(Answer::Done { module: 1, outcome: Vec::new() })),
            (2, decided(Answer::Rejected(RejectReason::Expired))),
            (3, Err(Refusal::NotLeader { leader: None })),
            (4, Err(Refusal::Overloaded { what: "it is full", retry_after_ms: 1 })),
            (5, Err(Refusal::Unknown("lost".into()))),
            (6, Err(Refusal::Halted("stopped".into()))),
        ];
        for (times, reply) in &replies {
            (0..*times).for_each(|_| metrics.command(1, reply));
            metrics.command(99, reply);
        }
        metrics.queries(1, 7, true);
        metrics.queries(1, 8, false);
        metrics.queries(99, 9, true);
        [true, true, true, false, false].into_iter().for_each(|answered| metrics.read(1, answered));
        metrics.read(99, true);
        let (log, _) = NodeLog::open(Arc::new(MemoryDisk::new()), LogOptions::new([7; 16], 1)).unwrap();
        let space = Space::unlimited();
        space.judge(0);
        let text = metrics.text(&serving(BTreeMap::new(), space), &log, 4_321);
        let has = |line: String| assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        for (name, (times, _)) in OUTCOMES.iter().zip(&replies) {
            has(format!("tidewall_node_commands_total{{region=\"north\",outcome=\"{name}\"}} {times}"));
        }
        has("tidewall_node_queries_total{region=\"north\",outcome=\"done\"} 7".into());
        has("tidewall_node_queries_total{region=\"north\",outcome=\"refused\"} 8".into());
        has("tidewall_node_reads_total{region=\"north\",outcome=\"done\"} 3".into());
        has("tidewall_node_reads_total{region=\"north\",outcome=\"refused\"} 2".into());
        has(format!("tidewall_node_log_bytes {}", log.disk_bytes()));
        has("tidewall_node_checkpoint_bytes 4321".into());
        has("tidewall_node_disk_low 1".into());
        log.close().unwrap();
    }
}
