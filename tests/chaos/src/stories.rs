//! Stories of workloads beside the sale: each is told in order, by somebody who repeats what was not answered, and judges every
//! answer by what came before.
//!
//! They run on a thread of their own, so that the sale's calls are not behind them.

use std::cell::RefCell;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidewall_load::Target;
use tidewall_workloads::accounts::Accounts;
use tidewall_workloads::{Book, Site, tell};
use tonic::transport::{Channel, Endpoint};
use uuid::Uuid;

use crate::ChaosError;
use crate::check::Verdict;

/// Longest pause between two stories, ms.
const PAUSE_MS: u64 = 300;
/// How many are told at the same time.
const TELLERS: u64 = 2;

/// Stories that are told until they are stopped.
#[derive(Debug)]
pub struct Stories {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<Verdict>,
}

impl Stories {
    /// Starts to tell stories in these regions, through the first gateway.
    ///
    /// # Errors
    /// When that is no URL, or there is no thread.
    pub fn start(target: &Target, regions: &[String], seed: u64) -> Result<Self, ChaosError> {
        let gateway =
            target.endpoints.first().ok_or_else(|| ChaosError::Site("there is no gateway".into()))?;
        let admin = (target.mint)("admin", &["admin"]);
        let endpoint = Endpoint::from_shared(gateway.clone())
            .map_err(|error| ChaosError::Site(error.to_string()))?
            .connect_timeout(Duration::from_secs(1))
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(3));
        let (stop, regions) = (Arc::new(AtomicBool::new(false)), regions.to_vec());
        let stopped = Arc::clone(&stop);
        let tellers = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(all(endpoint, admin, regions, seed, stopped)),
                Err(error) => {
                    let mut verdict = Verdict::new(CHECKER);
                    verdict.add(|| format!("no story was told: {error}"));
                    verdict
                }
            }
        };
        let thread = std::thread::Builder::new().name("stories".into()).spawn(tellers);
        Ok(Self { stop, thread: thread.map_err(ChaosError::system("start a thread".to_owned()))? })
    }

    /// Lets the stories end where they are, and says whether anything was wrong.
    pub async fn stop(self) -> Verdict {
        self.stop.store(true, Ordering::Relaxed);
        let joined = tokio::task::spawn_blocking(move || self.thread.join()).await;
        joined.ok().and_then(Result::ok).unwrap_or_else(|| {
            let mut verdict = Verdict::new(CHECKER);
            verdict.add(|| "who told them has panicked".to_owned());
            verdict
        })
    }
}

/// What the verdict is called.
const CHECKER: &str = "accounts";

async fn all(
    endpoint: Endpoint,
    admin: String,
    regions: Vec<String>,
    seed: u64,
    stop: Arc<AtomicBool>,
) -> Verdict {
    let book: Rc<RefCell<Book>> = Rc::default();
    let gateway = endpoint.connect_lazy();
    let tellers = (0..TELLERS).map(|number| Teller {
        gateway: gateway.clone(),
        admin: admin.clone(),
        regions: regions.clone(),
        // Other runs on the same cluster have other names.
        name: format!("t{number}-{}", Uuid::now_v7().simple()),
        random: RefCell::new(StdRng::seed_from_u64(seed.wrapping_add(number))),
        began: Instant::now(),
        stop: Arc::clone(&stop),
        book: Rc::clone(&book),
    });
    let tellers: Vec<Teller> = tellers.collect();
    let told = tellers
        .iter()
        .map(|teller| tell::<Accounts, _>(teller, PAUSE_MS, || teller.stop.load(Ordering::Relaxed)));
    futures_util::future::join_all(told).await;
    let (mut verdict, book) = (Verdict::new(CHECKER), book.borrow());
    if book.answers == 0 {
        verdict.add(|| "nobody has answered: nothing was shown".to_owned());
    }
    verdict.looked_at = book.answers;
    // No scenario brings a region back to an earlier state.
    for wrong in book.wrong(|_| 0) {
        verdict.add(|| wrong);
    }
    verdict
}

struct Teller {
    gateway: Channel,
    admin: String,
    regions: Vec<String>,
    name: String,
    random: RefCell<StdRng>,
    began: Instant,
    stop: Arc<AtomicBool>,
    book: Rc<RefCell<Book>>,
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

    fn admin(&self) -> String {
        self.admin.clone()
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

    fn begin(&self) {}

    fn note(&self, what: fmt::Arguments<'_>) {
        tracing::debug!("{what}");
    }

    fn book(&self) -> &RefCell<Book> {
        &self.book
    }
}
