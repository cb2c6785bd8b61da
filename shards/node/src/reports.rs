//! What nodes tell each other once a second: clocks, who takes leads, apply versions, and the digests of their rows.
//!
//! From that a node judges itself: a replica whose rows differ from those of a majority is quarantined; without a
//! majority the group stops writing; a clock that is far from the others' takes no leads; and a leader raises
//! the apply version once every member supports the next. Nothing here is on a request's path, and a peer that
//! does not answer delays nobody.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tidewall_consensus::agreement::Verdict;
use tidewall_consensus::{Group, Peers};
use tidewall_machine::{Answer, Command, Machine, SystemCommand};
use tidewall_proto::internal::v1 as pb;
use tokio::time::Instant;

use crate::files;
use crate::lives::LifeOfNode;
use crate::shard;
use crate::standing::Standing;

/// Between two rounds.
const ROUND: Duration = Duration::from_secs(1);
/// While the first clocks are being compared.
const FIRST_ROUND: Duration = Duration::from_millis(50);
/// An answer that takes longer says nothing about the other clock.
const ANSWER_MAX: Duration = Duration::from_millis(400);

/// Remembers over restarts which replicas must not serve.
#[derive(Debug, Clone)]
pub struct Quarantine {
    marks: Marks,
}

#[derive(Debug, Clone)]
enum Marks {
    Directory(PathBuf),
    Memory(Arc<Mutex<BTreeMap<u32, String>>>),
}

impl Quarantine {
    /// Marks lie in the node's data directory.
    pub fn new(data_dir: &Path) -> Self {
        Self { marks: Marks::Directory(data_dir.join("quarantine")) }
    }

    /// Marks lie in memory and are shared by clones: for simulation, which keeps one over restarts of the node.
    pub fn in_memory() -> Self {
        Self { marks: Marks::Memory(Arc::default()) }
    }

    /// Why a replica must not serve, if it must not. A mark that cannot be read counts.
    pub fn why(&self, group: u32) -> Option<String> {
        let directory = match &self.marks {
            Marks::Directory(directory) => directory,
            Marks::Memory(marks) => return marks.lock().get(&group).cloned(),
        };
        match std::fs::read_to_string(directory.join(mark_name(group))) {
            Ok(why) => Some(why),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => Some(format!("the quarantine mark of group {group} cannot be read: {error}")),
        }
    }

    /// Marks a replica; the mark survives a power cut.
    pub fn mark(&self, group: u32, why: &str) -> std::io::Result<()> {
        let directory = match &self.marks {
            Marks::Directory(directory) => directory,
            Marks::Memory(marks) => {
                marks.lock().insert(group, why.to_owned());
                return Ok(());
            }
        };
        files::replace_below(directory, &mark_name(group), why.as_bytes())
    }
}

fn mark_name(group: u32) -> String {
    format!("group-{group}")
}

/// Tells and hears reports for one node.
pub struct Reports {
    standing: Arc<Standing>,
    groups: BTreeMap<u32, Group>,
    quarantine: Quarantine,
    life: LifeOfNode,
}

impl Reports {
    /// For these replicas.
    pub fn new(
        standing: Arc<Standing>,
        groups: BTreeMap<u32, Group>,
        quarantine: Quarantine,
        life: LifeOfNode,
    ) -> Self {
        Self { standing, groups, quarantine, life }
    }

    /// What this node tells now.
    pub fn own(&self) -> pb::NodeReport {
        let replica = |(number, group): (&u32, &Group)| {
            let ledger = group.state().ledger();
            let note = |(index, digest): (u64, u128)| pb::DigestNote {
                index,
                digest: digest.to_be_bytes().to_vec(),
            };
            let notes = ledger.tell().into_iter().map(note).collect();
            pb::ReplicaReport { group: *number, incarnation: ledger.incarnation(), notes }
        };
        let placement = |(group, node, made_ms)| pb::Placement { group, node, made_ms };
        pb::NodeReport {
            node: self.standing.node(),
            unix_ms: self.standing.now_ms(),
            apply_version: self.standing.apply_version(),
            accepts_lead: self.standing.accepts_lead(),
            // A replica that has halted speaks for nobody.
            replicas: self
                .groups
                .iter()
                .filter(|(_, group)| group.state().halted().is_none())
                .map(replica)
                .collect(),
            placements: self.standing.placements().into_iter().map(placement).collect(),
        }
    }

    /// Takes in what another node tells.
    pub fn hear(&self, report: &pb::NodeReport) {
        self.standing.hear(report.node, report.accepts_lead, report.apply_version);
        for placement in &report.placements {
            self.standing.placed(placement.group, placement.node, placement.made_ms);
        }
        for replica in &report.replicas {
            let Some(group) = self.groups.get(&replica.group) else { continue };
            let notes = replica.notes.iter().filter_map(|note| {
                let digest = <[u8; 16]>::try_from(note.digest.as_slice()).ok()?;
                Some((note.index, u128::from_be_bytes(digest)))
            });
            group.state().ledger().hear(report.node, replica.incarnation, notes);
        }
    }

    /// Asks all other nodes once, and judges. Returns whether every one of them has answered.
    pub async fn round(&self, peers: &Peers) -> bool {
        for group in self.groups.values() {
            group.state().note_settled();
        }
        let asked = self.standing.others().into_iter().map(|node| async move {
            let began = Instant::now();
            let answer = peers.report(node, self.own(), ANSWER_MAX).await;
            if let Ok(report) = &answer
                && report.node == node
            {
                let half_ms = began.elapsed().as_millis() as u64 / 2;
                self.standing.measured(node, report.unix_ms.saturating_add(half_ms));
            }
            (node, answer)
        });
        let mut all = true;
        for (node, answer) in join_all(asked).await {
            match answer {
                Ok(report) if report.node == node => {
                    self.hear(&report);
                }
                Ok(_) => all = false,
                Err(error) => {
                    tracing::debug!(node, %error, "no report");
                    all = false;
                }
            }
        }
        self.standing.judge_clock();
        for group in self.groups.values() {
            self.judge(group).await;
        }
        all
    }

    /// Rounds until the node stops.
    pub async fn keep(&self, peers: &Peers) {
        loop {
            tokio::select! {
                biased;
                () = self.standing.announcement_wanted() => {}
                () = tokio::time::sleep(ROUND) => {}
            }
            self.round(peers).await;
            self.life.save_if_due().await;
            self.standing.announced();
            for group in self.groups.values() {
                self.raise_version(group).await;
                self.correct_log_time(group).await;
            }
        }
    }

    /// Compares clocks before anything is stamped, for as long as `patience` lasts: a node whose clock is wrong must
    /// not lead after a restart either.
    pub async fn compare_clocks(&self, peers: &Peers, patience: Duration) {
        let deadline = Instant::now() + patience;
        while !self.standing.clocks_compared() && Instant::now() < deadline {
            if !self.round(peers).await {
                tokio::time::sleep(FIRST_ROUND).await;
            }
        }
    }

    async fn judge(&self, group: &Group) {
        let state = group.state();
        if state.halted().is_some() {
            return;
        }
        state.raise_fence(self.standing.fence(group.number()));
        let left_behind = state.read(Machine::incarnation) < state.fence();
        // Said anew in every round: a replica that was left behind catches up when it is new, and clocks are set right.
        group.allow_election(!left_behind && !self.standing.clock_is_far());
        if left_behind {
            // Not halted: this may be the replica that is just about to be recovered.
            state.suspend(Some(format!(
                "a forced recovery of group {} leaves this replica behind: replace this node",
                group.number()
            )));
            return;
        }
        let (voters, _) = group.members();
        let number = group.number();
        let verdict = state.ledger().judge(self.standing.node(), &voters);
        match verdict {
            Verdict::Sound => state.suspend(None),
            Verdict::Split { index } => state.suspend(Some(format!(
                "replicas of group {number} have different rows at log index {index} and no majority agrees: nothing \
                 is decided before one does; compare `tidewall region status`, and restore the region if none can be trusted"
            ))),
            Verdict::Diverged { index } => {
                let why = format!(
                    "the rows of this replica of group {number} differ from those of a majority at log index {index}: it is \
                     quarantined; replace this node"
                );
                if let Err(error) = self.quarantine.mark(number, &why) {
                    tracing::error!(group = number, %error, "the quarantine cannot be remembered over a restart");
                }
                state.quarantine(why);
                group.stop().await;
            }
        }
    }

    /// Raises the apply version of a group that this node leads, once every member supports the next.
    async fn raise_version(&self, group: &Group) {
        if !group.believes_to_lead() {
            return;
        }
        let rows = group.state().read(Machine::apply_version);
        let (voters, learners) = group.members();
        let Some(supported) = self.standing.supported_by(voters.iter().chain(&learners)) else { return };
        if supported <= rows {
            return;
        }
        let number = group.number();
        let command = Command::system(SystemCommand::RaiseVersion(supported));
        let decided = shard::propose(group, &self.standing, vec![command]).await;
        match decided.as_deref().map(|decisions| decisions.first().map(|decision| &decision.answer)) {
            Ok(Some(Answer::System)) => {
                tracing::info!(group = number, from = rows, to = supported, "apply version raised")
            }
            other => {
                tracing::warn!(group = number, ?other, "the apply version was not raised; it is tried again")
            }
        }
    }
}

/// Log time that is ahead of the time by a majority's clocks by more than this is corrected, ms. Less passes by itself, and
/// clocks of nodes differ as well.
const REBASE_MS_MIN: u64 = 1_000;

impl Reports {
    /// Corrects the log time of a group that this node leads, when it is ahead of the clocks of a majority: every write would
    /// be expired until they have caught up.
    async fn correct_log_time(&self, group: &Group) {
        let stamp = self.standing.stamp();
        let log_ms = group.state().read(Machine::log_time_ms);
        if !group.believes_to_lead() || !stamp.confirmed || log_ms <= stamp.ms.saturating_add(REBASE_MS_MIN) {
            return;
        }
        let (number, ahead_ms) = (group.number(), log_ms - stamp.ms);
        let command = Command::system(SystemCommand::Rebase { log_ms: stamp.ms });
        let decided = shard::propose(group, &self.standing, vec![command]).await;
        match decided.as_deref().map(|decisions| decisions.first().map(|decision| &decision.answer)) {
            Ok(Some(Answer::System)) => tracing::warn!(
                group = number,
                ahead_ms,
                "log time was ahead of the clocks of a majority and was corrected: writes go on, holds last as long as they \
                 should"
            ),
            other => tracing::error!(
                group = number,
                ahead_ms,
                ?other,
                "log time is ahead of the clocks of a majority and was not corrected: writes expire; it is tried again"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fake::{Replica, replicas, standing};

    #[test]
    fn a_quarantine_outlives_the_process() {
        let directory = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(directory.path());
        assert_eq!(quarantine.why(3), None);
        quarantine.mark(3, "odd rows").unwrap();
        let again = Quarantine::new(directory.path());
        assert_eq!((again.why(3).as_deref(), again.why(4)), (Some("odd rows"), None));
        // What cannot be read counts as a mark.
        let mark = directory.path().join("quarantine").join(mark_name(3));
        std::fs::remove_file(&mark).unwrap();
        std::fs::create_dir(&mark).unwrap();
        assert!(again.why(3).unwrap().contains("cannot be read"));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_differs_from_a_majority_is_quarantined_and_without_one_nobody_decides() {
        let Replica { group, peers, log, writer, life, .. } = replicas(&[1]).await.remove(0);
        let directory = tempfile::tempdir().unwrap();
        let quarantine = Quarantine::new(directory.path());
        let groups = BTreeMap::from([(1, group.clone())]);
        let reports = Reports::new(standing(1), groups, quarantine.clone(), life);
        let incarnation = group.state().read(Machine::incarnation);
        let note = |index, digest| group.state().ledger().note(incarnation, (index, digest));
        let hear = |node, index, digest: u128| {
            let notes = vec![pb::DigestNote { index, digest: digest.to_be_bytes().to_vec() }];
            let replicas = vec![pb::ReplicaReport { group: 1, incarnation, notes }];
            reports.hear(&pb::NodeReport { node, replicas, ..Default::default() });
        };
        let state = group.state();

        note(64, 7);
        hear(2, 64, 7);
        reports.round(&peers).await;
        assert_eq!((state.suspended(), state.halted()), (None, None));

        // Two replicas differ and the third is silent: nobody knows who is right.
        note(128, 1);
        hear(2, 128, 2);
        reports.round(&peers).await;
        assert!(state.suspended().unwrap().contains("no majority"), "{:?}", state.suspended());
        assert_eq!(state.halted(), None);

        // The third agrees with this one: it was the other.
        hear(3, 128, 1);
        reports.round(&peers).await;
        assert_eq!((state.suspended(), state.halted(), quarantine.why(1)), (None, None, None));

        // This one is alone with its rows: it stops for good, and is known to over a restart.
        note(192, 1);
        hear(2, 192, 2);
        hear(3, 192, 2);
        reports.round(&peers).await;
        assert!(state.halted().unwrap().contains("log index 192"), "{:?}", state.halted());
        assert!(Quarantine::new(directory.path()).why(1).unwrap().contains("quarantined"));
        assert!(group.confirm_leadership().await.is_err());
        assert!(reports.own().replicas.is_empty(), "a quarantined replica speaks for nobody");
        writer.stop();
        log.close().unwrap();
    }

    const LONG: Duration = Duration::from_secs(20);

    /// Node 1 of three with its reports, beside node 2. Node 3 cannot be reached.
    async fn two(directory: &std::path::Path) -> (Reports, Vec<Replica>) {
        let running = replicas(&[1, 2]).await;
        let leads = async {
            while !running[0].group.believes_to_lead() || !running[0].group.caught_up(2) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(LONG, leads).await.unwrap();
        let groups = BTreeMap::from([(1, running[0].group.clone())]);
        let life = running[0].life.clone();
        (Reports::new(standing(1), groups, Quarantine::new(directory), life), running)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_round_hears_who_answers_for_itself() {
        let directory = tempfile::tempdir().unwrap();
        let (reports, running) = two(directory.path()).await;
        let who = Arc::new(std::sync::atomic::AtomicU64::new(9));
        let said = Arc::clone(&who);
        running[1].server.on_report(move |asked| {
            assert_eq!(asked.node, 1);
            let node = said.load(std::sync::atomic::Ordering::SeqCst);
            let (unix_ms, accepts_lead) = (asked.unix_ms, true);
            pb::NodeReport { node, unix_ms, accepts_lead, apply_version: 2, ..Default::default() }
        });
        let peers = &running[0].peers;
        assert!(!reports.round(peers).await);
        assert!(!reports.standing.is_heard(2), "that was somebody else's report");
        who.store(2, std::sync::atomic::Ordering::SeqCst);
        assert!(!reports.round(peers).await, "node 3 does not answer");
        assert!(reports.standing.is_heard(2) && reports.standing.takes_lead(2));
        assert!(reports.standing.stamp().confirmed, "its clock was measured");
        running.iter().for_each(|replica| replica.writer.stop());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn clocks_are_compared_until_enough_are_known_or_patience_ends() {
        let directory = tempfile::tempdir().unwrap();
        let (reports, running) = two(directory.path()).await;
        let peers = &running[0].peers;
        let patience = Duration::from_millis(300);
        let began = Instant::now();
        tokio::time::timeout(LONG, reports.compare_clocks(peers, patience)).await.unwrap();
        assert!(began.elapsed() >= patience, "nobody was heard");
        for node in [2, 3] {
            reports.standing.measured(node, reports.standing.now_ms());
        }
        tokio::time::timeout(LONG, reports.compare_clocks(peers, 10 * LONG)).await.unwrap();
        running.iter().for_each(|replica| replica.writer.stop());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn the_apply_version_is_raised_once_when_every_member_supports_it() {
        let directory = tempfile::tempdir().unwrap();
        let (reports, running) = two(directory.path()).await;
        let group = &running[0].group;
        let version = || group.state().read(Machine::apply_version);
        reports.raise_version(group).await;
        assert_eq!(version(), 1, "nobody was heard");
        for (third, raised) in [(1, 1), (2, 2), (2, 2)] {
            reports.standing.hear(2, true, 2);
            reports.standing.hear(3, true, third);
            let applied = group.state().read(Machine::applied_index);
            reports.raise_version(group).await;
            assert_eq!(version(), raised, "node 3 supports {third}");
            let entries = group.state().read(Machine::applied_index) - applied;
            assert!(raised > 1 || entries == 0, "it was proposed though node 3 does not support it");
        }
        running.iter().for_each(|replica| replica.writer.stop());
    }
}
