//! A run: scenario after scenario, each on as many fresh clusters as it needs, from the first start to the report.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

use crate::ChaosError;
use crate::check::{self, Verdict};
use crate::driver::local::{Features, LocalDriver};
use crate::driver::{Driver, Site};
use crate::figures::Measured;
use crate::plot;
use crate::report::{Report, ScenarioReport};
use crate::scenario::Scenario;
use crate::stage::{Progress, Setting, Stage};

/// Where clusters run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Processes on the loopback interface; a scenario that loses packets gets namespaces all the same.
    #[default]
    Process,
    /// Each process in a network namespace of its own.
    Netns,
}

/// What to run.
#[derive(Clone)]
pub struct Options {
    /// Scenarios, in order.
    pub scenarios: Vec<Scenario>,
    /// Faults of each; `None` for as many as docs/CHAOS.md asks for.
    pub count: Option<u64>,
    /// Where.
    pub kind: Kind,
    /// Directory for the clusters' data; must be empty or missing.
    pub data: PathBuf,
    /// No new fault after this long, for each scenario.
    pub duration: Option<Duration>,
    /// Calls a second.
    pub rate: f64,
    /// Decides what is left to chance.
    pub seed: u64,
    /// Directory for the report; `None` writes none.
    pub report: Option<PathBuf>,
    /// Told where the run stands.
    pub progress: Progress,
}

/// Runs all scenarios. Dropping the future ends every process and takes away everything that was made but files.
///
/// # Errors
/// When a run cannot take place. What goes wrong with the cluster is in the report.
pub async fn run(site: &Site, options: &Options) -> Result<Report, ChaosError> {
    if let Some(directory) = &options.report {
        std::fs::create_dir_all(directory)
            .map_err(ChaosError::system(format!("create {}", directory.display())))?;
    }
    // What cannot be done here is said before anything takes its time.
    for scenario in &options.scenarios {
        LocalDriver::possible(features(*scenario, options.kind)).map_err(|why| ChaosError::Unsupported {
            scenario: scenario.name(),
            driver: if options.kind == Kind::Netns { "netns" } else { "process" },
            why,
        })?;
    }
    let mut report = Report::default();
    for scenario in &options.scenarios {
        let one = run_one(site, options, *scenario).await?;
        (options.progress)(&format!(
            "{}: {}",
            scenario.name(),
            if one.correct() { "every promise was kept" } else { "PROMISES WERE BROKEN" }
        ));
        report.scenarios.push(one);
        if let Some(directory) = &options.report {
            report.write(directory)?;
        }
    }
    Ok(report)
}

fn features(scenario: Scenario, kind: Kind) -> Features {
    let needed = scenario.features();
    Features { network: needed.network || kind == Kind::Netns, ..needed }
}

async fn run_one(site: &Site, options: &Options, scenario: Scenario) -> Result<ScenarioReport, ChaosError> {
    let begun = Instant::now();
    let wanted = options.count.unwrap_or_else(|| scenario.full_count());
    let (mut done, mut episodes, mut driver_name) = (0, 0, "");
    let mut measured = Measured::default();
    let mut verdicts: Vec<Verdict> = Vec::new();
    let mut plots = Vec::new();
    let mut cut_short = None;
    let until = options.duration.map(|duration| begun + duration);
    while done < wanted && cut_short.is_none() && until.is_none_or(|until| Instant::now() < until) {
        episodes += 1;
        let root = options.data.join(format!("{}-{episodes}", scenario.name()));
        let mut driver: Box<dyn Driver> =
            Box::new(LocalDriver::new(site, &root, features(scenario, options.kind)).await?);
        driver_name = driver.name();
        scenario.set_up(driver.as_mut())?;
        let progress = options.progress.clone();
        let setting = Setting {
            rate: options.rate,
            seed: options.seed.wrapping_mul(1_000_003).wrapping_add(episodes),
            progress: std::sync::Arc::new(move |line| progress(&format!("{}: {line}", scenario.name()))),
            until,
        };
        let mut stage = Stage::open(driver, setting).await?;
        match scenario.run(&mut stage, wanted - done).await {
            Ok(more) => done += more,
            // The machine's fault would be one before the first injection; from then on it is the cluster's.
            Err(error) => cut_short = Some(error.to_string()),
        }
        let outcome = stage.close().await;
        measured.add(&outcome);
        for verdict in check::all(&outcome.evidence).into_iter().chain(outcome.expectations.iter().cloned()) {
            match verdicts.iter_mut().find(|known| known.checker == verdict.checker) {
                Some(known) => known.merge(verdict),
                None => verdicts.push(verdict),
            }
        }
        if let Some(directory) = &options.report {
            let path = directory.join(format!("{}-{episodes}.svg", scenario.name()));
            let title = format!("Tidewall chaos: {}, cluster {episodes}", scenario.name());
            plot::write(&title, &outcome.evidence.ops, &outcome.injections, &path)?;
            plots.push(path);
        }
        if cut_short.is_none() && verdicts.iter().all(Verdict::ok) {
            remove(&root);
        }
        if done == 0 {
            break;
        }
    }
    let mut one = ScenarioReport::new(
        scenario,
        driver_name,
        (done, wanted, episodes),
        (options.rate, options.seed),
        begun.elapsed().as_secs_f64(),
        &measured,
        verdicts,
        cut_short,
    );
    one.plots = plots;
    Ok(one)
}

/// Data of a cluster that kept its promises are of no more use.
fn remove(root: &Path) {
    if let Err(error) = std::fs::remove_dir_all(root) {
        tracing::warn!("cannot remove {}: {error}", root.display());
    }
}
