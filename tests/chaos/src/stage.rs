//! One episode: a cluster of its own, the load on it, and what a scenario needs to hit it and to see it recover.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidewall_proto::v1;
use tokio::time::Instant;
use tonic::Status;

use crate::ChaosError;
use crate::check::{Evidence, Verdict};
use crate::driver::{Driver, Member};
use crate::history::{Injection, Micros, Planned, Traffic};
use crate::load::{Load, Recorder};
use crate::prepare::{self, People};
use crate::readback;
use crate::register::Register;
use crate::stories;

/// How long members may take to serve.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long a node may take to come back, and leaders to spread. Generous: a bound, not a measure.
const HEALED_WITHIN: Duration = Duration::from_secs(90);
/// How often a state that is waited for is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Entries that a replica may lack and still count as caught up: the load never stands still.
const LAG_MAX: u64 = 300;
/// Regions with small stocks.
const REGISTERS: usize = 3;
/// Places of a hot event's tiers: one that lasts, one that sells out under fire.
const AMPLE: i64 = 5_000_000;
const SCARCE: i64 = 30;
/// Load before the first fault, as a baseline.
const WARM_UP: Duration = Duration::from_secs(4);
/// Load after the last.
const COOL_DOWN: Duration = Duration::from_secs(2);

/// Tells people where a run stands.
pub type Progress = Arc<dyn Fn(&str) + Send + Sync>;

/// How an episode is run.
#[derive(Clone)]
pub struct Setting {
    /// Calls a second.
    pub rate: f64,
    /// Decides what is left to chance.
    pub seed: u64,
    /// Told where the run stands.
    pub progress: Progress,
    /// No new fault after this moment.
    pub until: Option<Instant>,
}

/// What an episode yields.
#[derive(Debug, Default)]
pub struct Outcome {
    /// All calls, events and what was read back.
    pub evidence: Evidence,
    /// What was done to the cluster.
    pub injections: Vec<Injection>,
    /// Times in milliseconds, by what they are.
    pub samples: BTreeMap<&'static str, Vec<f64>>,
    /// How often something happened.
    pub counts: BTreeMap<String, u64>,
    /// What the scenario itself expected.
    pub expectations: Vec<Verdict>,
}

/// A running episode.
pub struct Stage {
    /// Where the cluster runs.
    pub driver: Box<dyn Driver>,
    /// Where calls are recorded.
    pub recorder: Arc<Recorder>,
    /// Everybody who calls.
    pub people: People,
    /// Events of the run.
    pub planned: Vec<Planned>,
    /// Chance, from the seed.
    pub rng: StdRng,
    /// What the episode yields.
    pub outcome: Outcome,
    setting: Setting,
    load: Option<Load>,
    register: Option<Register>,
    stories: Option<tidewall_load::stories::Stories>,
}

impl Stage {
    /// Starts all members, makes events, and waits until the load flows.
    ///
    /// # Errors
    /// When the cluster does not come up.
    pub async fn open(mut driver: Box<dyn Driver>, setting: Setting) -> Result<Self, ChaosError> {
        (setting.progress)("starting the cluster");
        let people = People::new(&driver.target())?;
        let nodes = driver.nodes();
        for node in &nodes {
            driver.start(Member::Node(*node)).await?;
        }
        driver.start(Member::Gateway(1)).await?;
        for node in nodes {
            if driver.companion(node).is_some() {
                driver.start(Member::Gateway(1 + node)).await?;
            }
        }
        let mut stage = Self {
            driver,
            recorder: Arc::new(Recorder::default()),
            people,
            planned: Vec::new(),
            rng: StdRng::seed_from_u64(setting.seed),
            outcome: Outcome::default(),
            setting,
            load: None,
            register: None,
            stories: None,
        };
        stage.wait_healed(READY_WITHIN).await?;
        let regions = stage.driver.regions();
        for region in &regions {
            let tiers = vec![("ga".to_owned(), AMPLE), ("scarce".to_owned(), SCARCE)];
            let organiser = &stage.people.organiser;
            stage.planned.push(prepare::create_event(organiser, region, Traffic::Sale, tiers).await?);
            let tiers = vec![("ga".to_owned(), AMPLE)];
            stage.planned.push(prepare::create_event(organiser, region, Traffic::Mix, tiers).await?);
        }
        stage.recorder = Arc::new(Recorder::default());
        let seed = stage.rng.random();
        let buyers = stage.people.buyers.clone();
        stage.load =
            Some(Load::start(&stage.recorder, buyers.clone(), &stage.planned, stage.setting.rate, seed));
        let some = &regions[..regions.len().min(REGISTERS)];
        stage.register = Some(Register::start(&stage.recorder, &stage.people.organiser, &buyers, some, seed));
        stage.stories = Some(stories::start(&stage.driver.target(), seed).await?);
        stage.say("the load flows");
        tokio::time::sleep(WARM_UP).await;
        Ok(stage)
    }

    /// Tells where the episode stands.
    pub fn say(&self, what: &str) {
        let line = format!(
            "{what}; {} writes acknowledged, {} errors",
            self.recorder.acknowledged(),
            self.recorder.errors()
        );
        (self.setting.progress)(&line);
    }

    /// Whether there is time for another fault.
    pub fn has_time(&self) -> bool {
        self.setting.until.is_none_or(|until| Instant::now() < until)
    }

    /// Ends the load, reads everything back, and takes the cluster down.
    pub async fn close(mut self) -> Outcome {
        tokio::time::sleep(COOL_DOWN).await;
        if let Err(error) = self.restore().await {
            tracing::error!("{error}");
        }
        self.say("waiting for the last answers");
        if let Some(load) = self.load.take() {
            load.stop().await;
        }
        if let Some(stories) = self.stories.take() {
            self.outcome.expectations.push(stories::stop(stories).await);
        }
        if let Some(register) = self.register.take() {
            self.planned.extend(register.stop().await);
        }
        let evidence = &mut self.outcome.evidence;
        evidence.ops = self.recorder.take();
        evidence.planned = std::mem::take(&mut self.planned);
        // A copy of an unanswered call may still be on its way; after its deadline it changes nothing any more.
        let unanswered = evidence.ops.iter().filter(|op| op.answer.is_error()).map(|op| op.start).max();
        if let Some(start) = unanswered {
            let settled = start + Micros::try_from(prepare::DEADLINE.as_micros()).unwrap_or(Micros::MAX);
            tokio::time::sleep(Duration::from_micros(settled.saturating_sub(self.recorder.now()))).await;
        }
        (self.setting.progress)("reading everything back");
        let mut unread = Vec::new();
        evidence.resolved = readback::resolve(&evidence.ops, &self.people, &mut unread).await;
        evidence.seen = readback::events(&evidence.planned, &self.people, &mut unread).await;
        evidence.replicas = readback::replicas(&self.people, &evidence.lost_replicas).await;
        evidence.unread = unread;
        self.driver.tear_down().await;
        self.outcome
    }

    /// Undoes what a scenario that was cut short may have left, and starts who is down, so that everything can be read.
    async fn restore(&mut self) -> Result<(), ChaosError> {
        self.driver.heal().await?;
        let nodes = self.driver.nodes().into_iter().map(Member::Node);
        for member in nodes.chain([Member::Gateway(1)]) {
            if self.driver.pid(member).is_none() {
                self.driver.start(member).await?;
                continue;
            }
            self.driver.resume(member).await?;
            let ended = self.driver.ended(member, Duration::ZERO).await?;
            self.expect("no process ends by itself", ended.is_none(), || format!("{member}: {ended:?}"));
            if ended.is_some() {
                self.driver.start(member).await?;
            }
        }
        Ok(())
    }

    /// Notes a injection that begins now. `regions` are those whose next write is waited for.
    pub fn injection(&mut self, what: impl Into<String>, regions: Vec<String>) -> usize {
        let at = self.recorder.now();
        self.outcome.injections.push(Injection {
            at,
            what: what.into(),
            regions,
            undone: None,
            healed: None,
        });
        self.outcome.injections.len() - 1
    }

    /// Notes that the harm of a injection was undone.
    pub fn undone(&mut self, injection: usize) {
        let now = self.recorder.now();
        if let Some(injection) = self.outcome.injections.get_mut(injection) {
            injection.undone = Some(now);
        }
    }

    /// Notes that everything is as before.
    pub fn healed(&mut self, injection: usize) {
        let now = self.recorder.now();
        if let Some(injection) = self.outcome.injections.get_mut(injection) {
            injection.healed = Some(now);
        }
    }

    /// Notes a time.
    pub fn sample(&mut self, what: &'static str, ms: f64) {
        self.outcome.samples.entry(what).or_default().push(ms);
    }

    /// Counts something.
    pub fn count(&mut self, what: impl Into<String>) {
        *self.outcome.counts.entry(what.into()).or_insert(0) += 1;
    }

    /// Notes whether something was as the scenario expected.
    pub fn expect(&mut self, what: &'static str, as_expected: bool, words: impl FnOnce() -> String) {
        let verdicts = &mut self.outcome.expectations;
        let position = verdicts.iter().position(|verdict| verdict.checker == what).unwrap_or_else(|| {
            verdicts.push(Verdict::new(what));
            verdicts.len() - 1
        });
        verdicts[position].looked_at += 1;
        if !as_expected {
            verdicts[position].add(words);
        }
    }

    /// States of all regions.
    ///
    /// # Errors
    /// When the gateway does not say within a minute.
    pub async fn statuses(&self) -> Result<Vec<v1::RegionStatus>, ChaosError> {
        let regions = prepare::repeat(READY_WITHIN, |_| readback::statuses(&self.people)).await;
        regions.map_err(|status| call("asking for the states of regions", &status))
    }

    /// Which node leads each region, as far as the gateway knows.
    ///
    /// # Errors
    /// As [`Stage::statuses`].
    pub async fn leaders(&self) -> Result<BTreeMap<String, u64>, ChaosError> {
        let regions = self.statuses().await?;
        Ok(regions.into_iter().map(|region| (region.name, region.leader_node)).collect())
    }

    /// A node that leads something, chosen by chance, with the regions that it leads.
    ///
    /// # Errors
    /// As [`Stage::leaders`]; when no node leads anything in time.
    pub async fn some_leader(&mut self) -> Result<(u64, Vec<String>), ChaosError> {
        let begun = Instant::now();
        let (leaders, leading) = loop {
            let leaders = self.leaders().await?;
            let leading: BTreeSet<u64> = leaders.values().copied().filter(|node| *node != 0).collect();
            if !leading.is_empty() {
                break (leaders, Vec::from_iter(leading));
            }
            if begun.elapsed() > HEALED_WITHIN {
                return Err(self.late("no node leads anything", begun.elapsed()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        let node = leading[self.rng.random_range(0..leading.len())];
        Ok((
            node,
            leaders.into_iter().filter(|(_, leader)| *leader == node).map(|(region, _)| region).collect(),
        ))
    }

    /// The terms that receipts of these regions show.
    pub fn terms(&self, regions: &[String]) -> BTreeMap<String, u64> {
        regions.iter().map(|region| (region.clone(), self.recorder.newest(region).1)).collect()
    }

    /// Waits until each region has acknowledged a write in a later term than these.
    ///
    /// # Errors
    /// When one has not in time.
    pub async fn wait_new_terms(&self, before: &BTreeMap<String, u64>) -> Result<(), ChaosError> {
        let begun = Instant::now();
        loop {
            let missing = before.iter().find(|(region, term)| self.recorder.newest(region).1 <= **term);
            let Some((region, _)) = missing else { return Ok(()) };
            if begun.elapsed() > HEALED_WITHIN {
                return Err(self.late(&format!("{region} acknowledges nothing"), begun.elapsed()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Waits until every region has acknowledged a write that ended after this moment.
    ///
    /// # Errors
    /// When one has not in time.
    pub async fn wait_writes(&self, after: Micros) -> Result<(), ChaosError> {
        let begun = Instant::now();
        for region in self.driver.regions() {
            while self.recorder.newest(&region).0 <= after {
                if begun.elapsed() > HEALED_WITHIN {
                    return Err(self.late(&format!("{region} acknowledges nothing"), begun.elapsed()));
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        }
        Ok(())
    }

    /// Waits until all replicas are up and have caught up, and no node leads more than one region more than another.
    ///
    /// # Errors
    /// When that is not so in time; says what is missing.
    pub async fn wait_healed(&self, limit: Duration) -> Result<(), ChaosError> {
        self.wait_up(limit, true).await
    }

    /// Waits until all replicas are up and have caught up, wherever leaders are.
    ///
    /// # Errors
    /// When that is not so within the usual patience; says what is missing.
    pub async fn up_again(&self) -> Result<(), ChaosError> {
        self.wait_up(HEALED_WITHIN, false).await
    }

    async fn wait_up(&self, limit: Duration, spread: bool) -> Result<(), ChaosError> {
        let begun = Instant::now();
        loop {
            let missing = match readback::statuses(&self.people).await {
                Ok(regions) => self.missing(&regions, spread),
                Err(status) => Some(format!("the gateway says {:?}: {}", status.code(), status.message())),
            };
            let Some(missing) = missing else { return Ok(()) };
            if begun.elapsed() > limit {
                return Err(self.late(&missing, begun.elapsed()));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// As [`Stage::wait_healed`], with the usual patience.
    ///
    /// # Errors
    /// As there.
    pub async fn healed_again(&self) -> Result<(), ChaosError> {
        self.wait_healed(HEALED_WITHIN).await
    }

    /// What is not as it should be.
    fn missing(&self, regions: &[v1::RegionStatus], spread: bool) -> Option<String> {
        let lost = &self.outcome.evidence.lost_replicas;
        let mut leads: BTreeMap<u64, usize> = self.driver.nodes().into_iter().map(|node| (node, 0)).collect();
        for region in regions {
            if region.leader_node == 0 {
                return Some(format!("{} has no leader", region.name));
            }
            *leads.entry(region.leader_node).or_insert(0) += 1;
            for replica in &region.replicas {
                if lost.contains(&(region.name.clone(), replica.node)) {
                    continue;
                }
                if !replica.fault.is_empty() {
                    return Some(format!("{} at node {}: {}", region.name, replica.node, replica.fault));
                }
                if replica.applied_index == 0 || replica.lag_entries > LAG_MAX {
                    return Some(format!("{} at node {} lags", region.name, replica.node));
                }
            }
        }
        let (least, most) = (leads.values().min().copied()?, leads.values().max().copied()?);
        // A node whose replicas are broken beyond repair leads less for good.
        let apart = if spread && lost.is_empty() { 1 } else { regions.len() };
        (most > least + apart).then(|| format!("leaders are not spread: {leads:?}"))
    }

    /// Gives an order to an operator's client.
    ///
    /// # Errors
    /// What the gateway answered.
    pub async fn transfer(&self, region: &str, to_node: u64) -> Result<v1::TransferLeaderResponse, Status> {
        let operator = &self.people.operator;
        let mut client = operator.pool().operators(0);
        let order = v1::TransferLeaderRequest { name: region.to_owned(), to_node };
        operator
            .pool()
            .bounded(client.transfer_leader(operator.pool().request(operator.token(), order)))
            .await
    }

    /// The event of a region for this traffic.
    pub fn event(&self, region: &str, traffic: Traffic) -> String {
        let found = self.planned.iter().find(|event| event.region == region && event.traffic == traffic);
        found.map(|event| event.name.clone()).unwrap_or_default()
    }

    /// Something did not happen in time.
    pub fn late(&self, what: &str, waited: Duration) -> ChaosError {
        ChaosError::Late { what: what.to_owned(), waited, logs: self.driver.logs() }
    }
}

/// A call of the scenario itself that failed.
pub fn call(doing: &str, status: &Status) -> ChaosError {
    ChaosError::Call {
        doing: doing.to_owned(),
        message: format!("{:?}: {}", status.code(), status.message()),
    }
}
