//! Stories of workloads: each is told in order, by somebody who repeats what was not answered, and judges every answer by what came
//! before. Load and chaos tell them alike.
//!
//! They run on a thread of their own, so that other calls of this process are not behind them. Latency counts from the first time that
//! something was asked, repetitions included.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use serde::Serialize;
pub use tidewall_workloads::NAMES;
use tidewall_workloads::server::{Arrived, Conduct, Server};
use tidewall_workloads::{Book, Site, tell};
use tonic::transport::Channel;
use uuid::Uuid;

use crate::pool::{Pool, bearer};
use crate::{LoadError, Mint, Target};

/// Longest time that is told apart, microseconds: an hour.
const TIME_US_MAX: u64 = 3_600_000_000;
/// Of so many deliveries of webhooks one is refused, one is cut before it was taken in and one after.
const FAILS_EVERY: usize = 20;
/// Deadline of the only calls that do not belong to a story.
const LOOK_DEADLINE: Duration = Duration::from_secs(5);
/// How long the first answer of a cluster is waited for.
const CONNECT_PATIENCE: Duration = Duration::from_secs(30);

/// Which stories are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoriesPlan {
    /// Names of workloads.
    pub workloads: Vec<String>,
    /// How many tell at the same time.
    pub tellers: usize,
    /// Connections to the gateways.
    pub connections: usize,
    /// Longest pause of a teller between two stories.
    pub pause: Duration,
    /// Decides what is left to chance.
    pub seed: u64,
    /// The cluster is there for this alone: nobody minds who becomes an admin of it.
    pub own: bool,
}

impl Default for StoriesPlan {
    /// 16 tellers of all workloads, without a pause.
    fn default() -> Self {
        let workloads = NAMES.iter().map(|name| (*name).to_owned()).collect();
        Self { workloads, tellers: 16, connections: 4, pause: Duration::ZERO, seed: 1, own: false }
    }
}

impl StoriesPlan {
    /// The workloads of these names.
    ///
    /// # Errors
    /// [`LoadError::Plan`] when there is none of a name, or nobody to tell.
    pub fn check(&self) -> Result<Vec<&'static str>, LoadError> {
        if self.tellers == 0 || self.workloads.is_empty() {
            return Err(LoadError::Plan("it needs a workload and somebody to tell it".to_owned()));
        }
        let known = |name: &String| {
            let found = NAMES.iter().find(|known| *known == name);
            let why = || format!("there is no workload {name:?}; there are: {}", NAMES.join(", "));
            found.copied().ok_or_else(|| LoadError::Plan(why()))
        };
        self.workloads.iter().map(known).collect()
    }
}

/// What one method was answered.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MethodFigures {
    /// The method, as `snake_case`.
    pub method: String,
    /// Answers, a decided "no" among them.
    pub answers: u64,
    /// Median time until the answer, repetitions included, milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 were faster, milliseconds.
    pub p99_ms: f64,
    /// The slowest, milliseconds.
    pub max_ms: f64,
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Told {
    /// Stories that were told to their end.
    pub stories: u64,
    /// Answers in them.
    pub answers: u64,
    /// Webhooks at whose servers all has arrived that is known. None in a cluster that may not call servers here.
    pub webhooks: u64,
    /// How long it took, seconds.
    pub duration_s: f64,
    /// Answers a second.
    pub answers_per_second: f64,
    /// Each method.
    pub methods: Vec<MethodFigures>,
    /// What was wrong with answers.
    pub wrong: Vec<String>,
}

impl Told {
    /// Whether somebody has answered, and nothing was wrong.
    pub fn ok(&self) -> bool {
        self.answers > 0 && self.wrong.is_empty()
    }
}

/// Stories that are told until they are stopped.
#[derive(Debug)]
pub struct Stories {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    thread: std::thread::JoinHandle<Result<Told, String>>,
}

impl Stories {
    /// Starts to tell stories in all regions of the target.
    ///
    /// # Errors
    /// [`LoadError`] when the plan or an endpoint cannot be used, or nobody answers.
    pub async fn start(target: &Target, plan: &StoriesPlan) -> Result<Self, LoadError> {
        let workloads = plan.check()?;
        let pool = Pool::new(target, plan.connections, LOOK_DEADLINE)?;
        let token = bearer("stories", &(target.mint)("stories", &[]))?;
        let regions = pool.connect(&token, CONNECT_PATIENCE).await?;
        let regions: Vec<String> = regions.into_iter().map(|region| region.name).collect();
        if regions.is_empty() {
            return Err(LoadError::NoRegion { wanted: "any".to_owned(), known: "none".to_owned() });
        }
        let (stop, answers) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let stage = Stage {
            workloads,
            plan: plan.clone(),
            regions,
            target: target.clone(),
            stop: Arc::clone(&stop),
            answers: Arc::clone(&answers),
        };
        let tellers = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime
                .map_err(|error| error.to_string())?
                .block_on(stage.all())
                .map_err(|error| error.to_string())
        };
        let thread = std::thread::Builder::new().name("stories".into()).spawn(tellers);
        let thread = thread.map_err(|error| LoadError::Task(format!("no thread for stories: {error}")))?;
        Ok(Self { stop, answers, thread })
    }

    /// Answers so far.
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Lets the stories end where they are, and says what came of them.
    ///
    /// # Errors
    /// [`LoadError::Task`] when who told them has panicked.
    pub async fn stop(self) -> Result<Told, LoadError> {
        self.stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        let told = joined.map_err(|error| LoadError::Task(error.to_string()))?;
        told.unwrap_or_else(|_| Err("who tells stories has panicked".to_owned())).map_err(LoadError::Task)
    }
}

/// Where stories are told.
struct Stage {
    workloads: Vec<&'static str>,
    plan: StoriesPlan,
    regions: Vec<String>,
    target: Target,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
}

impl Stage {
    async fn all(self) -> Result<Told, LoadError> {
        let began = Instant::now();
        let (book, times): (Rc<RefCell<Book>>, Rc<RefCell<Times>>) = (Rc::default(), Rc::default());
        // Its own: a connection belongs to the runtime that makes it.
        let pool = Pool::new(&self.target, self.plan.connections, LOOK_DEADLINE)?;
        // Whoever is reached over the loopback interface reaches servers there, if it may.
        let is_here = self.target.endpoints.iter().all(|endpoint| endpoint.starts_with("http://127."));
        let server = if is_here {
            let conduct = Conduct { fails_every: FAILS_EVERY, ..Conduct::default() };
            let server = Server::start(Ipv4Addr::LOCALHOST.into(), conduct).await;
            let failed = |error| LoadError::Task(format!("no server for webhooks: {error}"));
            Some(Rc::new(server.map_err(failed)?))
        } else {
            None
        };
        let tellers = (0..self.plan.tellers as u64).map(|number| Teller {
            gateway: pool.channel(number),
            mint: Arc::clone(&self.target.mint),
            regions: self.regions.clone(),
            // Other runs on the same cluster have other names.
            name: format!("t{number}-{}", Uuid::now_v7().simple()),
            random: RefCell::new(StdRng::seed_from_u64(self.plan.seed.wrapping_add(number))),
            began,
            own: self.plan.own,
            server: server.clone(),
            stop: Arc::clone(&self.stop),
            answers: Arc::clone(&self.answers),
            book: Rc::clone(&book),
            times: Rc::clone(&times),
        });
        let tellers: Vec<Teller> = tellers.collect();
        let pause_ms = u64::try_from(self.plan.pause.as_millis()).unwrap_or(u64::MAX);
        let told = tellers
            .iter()
            .map(|teller| tell(teller, &self.workloads, pause_ms, || teller.stop.load(Ordering::Relaxed)));
        futures_util::future::join_all(told).await;
        let duration_s = began.elapsed().as_secs_f64();
        let (book, times) = (book.borrow(), times.borrow());
        Ok(Told {
            stories: book.done,
            answers: book.answers,
            webhooks: book.webhooks,
            duration_s,
            answers_per_second: book.answers as f64 / duration_s,
            methods: times.iter().map(|(method, times)| figures(method, times)).collect(),
            // Nobody brings a region back to an earlier state here.
            wrong: book.wrong(|_| 0),
        })
    }
}

/// Microseconds until an answer, by method.
type Times = BTreeMap<&'static str, Histogram<u64>>;

fn figures(method: &str, times: &Histogram<u64>) -> MethodFigures {
    let ms = |us: u64| us as f64 / 1_000.0;
    MethodFigures {
        method: method.to_owned(),
        answers: times.len(),
        p50_ms: ms(times.value_at_quantile(0.5)),
        p99_ms: ms(times.value_at_quantile(0.99)),
        max_ms: ms(times.max()),
    }
}

struct Teller {
    gateway: Channel,
    mint: Mint,
    regions: Vec<String>,
    name: String,
    random: RefCell<StdRng>,
    began: Instant,
    own: bool,
    server: Option<Rc<Server>>,
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicU64>,
    book: Rc<RefCell<Book>>,
    times: Rc<RefCell<Times>>,
}

impl Site for Teller {
    type Call = ();

    fn gateway(&self) -> Channel {
        self.gateway.clone()
    }

    fn regions(&self) -> &[String] {
        &self.regions
    }

    fn name(&self) -> String {
        self.name.clone()
    }

    fn below(&self, count: u64) -> u64 {
        self.random.borrow_mut().random_range(0..count.max(1))
    }

    fn token(&self, subject: &str, roles: &[&str]) -> String {
        (self.mint)(subject, roles)
    }

    fn request_id(&self) -> String {
        Uuid::now_v7().to_string()
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    fn is_over(&self, _: &str) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn returns(&self, _: &str) -> usize {
        0
    }

    fn is_own(&self) -> bool {
        self.own
    }

    fn begin(&self) {}

    fn note(&self, _: fmt::Arguments<'_>) {}

    fn answered(&self, method: &'static str, took: Duration) {
        self.answers.fetch_add(1, Ordering::Relaxed);
        let mut times = self.times.borrow_mut();
        let times = times.entry(method).or_insert_with(|| {
            Histogram::new_with_bounds(1, TIME_US_MAX, 3).expect("constant bounds are valid")
        });
        times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX).max(1));
    }

    fn server(&self, name: &str) -> Option<String> {
        let server = self.server.as_ref().filter(|_| self.below(3) == 0)?;
        Some(server.url(name))
    }

    fn arrived(&self, url: &str) -> Vec<Arrived> {
        self.server.as_ref().map(|server| server.arrived(url)).unwrap_or_default()
    }

    fn book(&self) -> &RefCell<Book> {
        &self.book
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn workloads_are_known_by_name() {
        let plan = |names: &[&str]| StoriesPlan {
            workloads: names.iter().map(|name| (*name).to_owned()).collect(),
            ..StoriesPlan::default()
        };
        assert_eq!(StoriesPlan::default().check().unwrap(), NAMES);
        assert_eq!(plan(&["tickets"]).check().unwrap(), ["tickets"]);
        for bad in
            [plan(&[]), plan(&["tickets", "quizzes"]), StoriesPlan { tellers: 0, ..plan(&["tickets"]) }]
        {
            assert!(matches!(bad.check(), Err(LoadError::Plan(_))), "{bad:?}");
        }
    }

    #[test]
    fn silence_is_no_success_and_neither_is_a_wrong_answer() {
        let told = Told { answers: 5, ..Told::default() };
        assert!(told.ok());
        assert!(!Told::default().ok());
        assert!(!Told { wrong: vec!["sold twice".into()], ..told }.ok());
    }
}
