//! What a run found: text for people, JSON for programs, a drawing of each episode.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::ChaosError;
use crate::check::Verdict;
use crate::figures::{Figure, Measured, Spread, spread};
use crate::scenario::Scenario;

/// When the load itself stood still for longer than this, milliseconds, the report says so.
const STALL_MS_MAX: f64 = 1_000.0;

/// What one scenario found.
#[derive(Debug, Clone, Serialize)]
pub struct ScenarioReport {
    /// The scenario.
    pub scenario: &'static str,
    /// The driver.
    pub driver: &'static str,
    /// Faults that were done.
    pub faults: u64,
    /// Faults that were asked for.
    pub wanted: u64,
    /// Clusters that were used.
    pub episodes: u64,
    /// How long it took, seconds.
    pub seconds: f64,
    /// Calls a second of the open loop.
    pub rate: f64,
    /// The seed.
    pub seed: u64,
    /// One-minute load average of the machine at the end; it shows what else was running.
    pub machine_load: f64,
    /// Cores of the machine.
    pub cores: usize,
    /// Calls, acknowledged writes, errors.
    pub calls: u64,
    /// Acknowledged writes.
    pub acknowledged: u64,
    /// The longest that the load itself stood still, milliseconds. Beyond a second, the machine was too busy, or somebody
    /// stopped the run: its times say little about the cluster.
    pub client_stall_ms: f64,
    /// Calls that were sent again, with the same request id, because their connection was closed.
    pub resent: u64,
    /// The errors that clients saw, by their words.
    pub errors_by_kind: Vec<(String, u64)>,
    /// When and where the first of them were.
    pub first_errors: Vec<String>,
    /// Figures with their targets.
    pub figures: Vec<Figure>,
    /// From each injection to the next acknowledged write of each region that it hit.
    pub next_write: Option<Spread>,
    /// The slowest of these, with what had been done.
    pub slowest: Vec<(f64, String)>,
    /// What the checkers and the scenario's own expectations say.
    pub verdicts: Vec<Verdict>,
    /// Why it was cut short, if it was: that is no success.
    pub cut_short: Option<String>,
    /// Drawings.
    pub plots: Vec<PathBuf>,
}

impl ScenarioReport {
    /// A report from what was measured.
    #[allow(clippy::too_many_arguments)]
    pub fn new(
        scenario: Scenario,
        driver: &'static str,
        (faults, wanted, episodes): (u64, u64, u64),
        (rate, seed): (f64, u64),
        seconds: f64,
        measured: &Measured,
        verdicts: Vec<Verdict>,
        cut_short: Option<String>,
    ) -> Self {
        Self {
            scenario: scenario.name(),
            driver,
            faults,
            wanted,
            episodes,
            seconds,
            rate,
            seed,
            machine_load: machine_load(),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            calls: measured.calls,
            acknowledged: measured.acknowledged,
            client_stall_ms: measured.client_stall_ms,
            resent: measured.resent,
            errors_by_kind: measured.errors_by_kind.clone(),
            first_errors: measured.first_errors.clone(),
            figures: scenario.figures(measured),
            next_write: spread(&measured.next_write_ms),
            slowest: measured.slowest.clone(),
            verdicts,
            cut_short,
            plots: Vec::new(),
        }
    }

    /// Whether every checker and expectation is satisfied, and the scenario came to its end.
    pub fn correct(&self) -> bool {
        self.cut_short.is_none() && self.verdicts.iter().all(Verdict::ok)
    }

    /// Whether every target was met.
    pub fn on_target(&self) -> bool {
        self.figures.iter().all(Figure::met)
    }
}

impl fmt::Display for ScenarioReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} ({} driver): {} of {} faults on {} cluster(s) in {:.0} s; {} calls, {} writes acknowledged; {:.0} calls/s, \
             seed {}, {} cores, load average {:.1}",
            self.scenario,
            self.driver,
            self.faults,
            self.wanted,
            self.episodes,
            self.seconds,
            self.calls,
            self.acknowledged,
            self.rate,
            self.seed,
            self.cores,
            self.machine_load
        )?;
        for figure in &self.figures {
            let value = format!("{:.1} {}", figure.value, figure.unit);
            let target = match figure.at_most {
                Some(limit) if figure.met() => format!("   target ≤ {limit} {}: met", figure.unit),
                Some(limit) => format!("   target ≤ {limit} {}: MISSED", figure.unit),
                None => String::new(),
            };
            writeln!(f, "  {:<62} {value:>12}{target}", figure.name)?;
        }
        for (wait_ms, after) in &self.slowest {
            writeln!(f, "  slowest next write: {wait_ms:.0} ms {after}")?;
        }
        if self.client_stall_ms > STALL_MS_MAX {
            writeln!(
                f,
                "  NOTE: the load itself stood still for {:.0} ms: do not trust the times of this run",
                self.client_stall_ms
            )?;
        }
        if self.resent > 0 {
            let count = self.resent;
            writeln!(
                f,
                "  NOTE: connections were closed under {count} calls, which were sent again with their request ids"
            )?;
        }
        for (words, count) in &self.errors_by_kind {
            writeln!(f, "  error, {count} x: {words}")?;
        }
        for place in &self.first_errors {
            writeln!(f, "  error: {place}")?;
        }
        for verdict in &self.verdicts {
            let word = if verdict.ok() { "ok" } else { "VIOLATED" };
            writeln!(
                f,
                "  {word:<9} {} ({} looked at, {} violations)",
                verdict.checker, verdict.looked_at, verdict.violations
            )?;
            for example in &verdict.examples {
                writeln!(f, "            {example}")?;
            }
        }
        if let Some(why) = &self.cut_short {
            writeln!(f, "  CUT SHORT: {why}")?;
        }
        for plot in &self.plots {
            writeln!(f, "  timeline: {}", plot.display())?;
        }
        Ok(())
    }
}

/// All scenarios of a run.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// One for each.
    pub scenarios: Vec<ScenarioReport>,
}

impl Report {
    /// Whether every scenario kept every promise.
    pub fn correct(&self) -> bool {
        self.scenarios.iter().all(ScenarioReport::correct)
    }

    /// Whether every target was met.
    pub fn on_target(&self) -> bool {
        self.scenarios.iter().all(ScenarioReport::on_target)
    }

    /// Writes `chaos.json` and `chaos.txt` into a directory.
    ///
    /// # Errors
    /// When the directory cannot be written.
    pub fn write(&self, directory: &Path) -> Result<(), ChaosError> {
        let json = serde_json::to_string_pretty(self)
            .map_err(|e| ChaosError::system("word the report as JSON")(std::io::Error::other(e)))?;
        for (name, text) in [("chaos.json", json), ("chaos.txt", self.to_string())] {
            let path = directory.join(name);
            std::fs::write(&path, text).map_err(ChaosError::system(format!("write {}", path.display())))?;
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for scenario in &self.scenarios {
            writeln!(f, "{scenario}")?;
        }
        Ok(())
    }
}

/// The one-minute load average; 0 where the system does not say.
fn machine_load() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|first| first.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report(verdict: Verdict, errors: u64, cut_short: Option<String>) -> Report {
        let measured = Measured { errors, ..Measured::default() };
        let one = ScenarioReport::new(
            Scenario::LeaderKill,
            "process",
            (1, 1, 1),
            (300.0, 1),
            10.0,
            &measured,
            vec![verdict],
            cut_short,
        );
        Report { scenarios: vec![one] }
    }

    #[test]
    fn a_violation_or_a_cut_is_no_success_and_a_missed_target_is_told_apart() {
        let fine = report(Verdict::new("x"), 0, None);
        assert!(fine.correct() && fine.on_target());
        let mut wrong = Verdict::new("x");
        wrong.add(|| "a ticket was lost".into());
        let text = report(wrong.clone(), 0, None).to_string();
        assert!(!report(wrong, 0, None).correct());
        assert!(text.contains("VIOLATED") && text.contains("a ticket was lost"), "{text}");
        assert!(!report(Verdict::new("x"), 0, Some("no leader".into())).correct());
        let slow = report(Verdict::new("x"), 2, None);
        assert!(slow.correct() && !slow.on_target());
        assert!(slow.to_string().contains("MISSED"));
    }

    #[test]
    fn a_report_is_written_as_text_and_json() {
        let directory = tempfile::tempdir().unwrap();
        report(Verdict::new("x"), 0, None).write(directory.path()).unwrap();
        let json = std::fs::read_to_string(directory.path().join("chaos.json")).unwrap();
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["scenarios"][0]["scenario"], "leader-kill");
        assert!(std::fs::read_to_string(directory.path().join("chaos.txt")).unwrap().contains("leader-kill"));
    }
}
