//! End-to-end tests of the real binary. See `src/` for the harness; each module here is one theme.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod accounts;
mod backup;
mod chaos;
mod environment;
mod identity;
mod kills;
mod operators;
mod purchase;
mod python;
mod refusals;
mod restart;

use std::io::Write as _;
use std::sync::atomic::{AtomicUsize, Ordering};

use tidewall_e2e::client::Session;
use tidewall_e2e::cluster::{Cluster, Options};
use tokio::sync::{Mutex, MutexGuard, OnceCell};

/// The cluster that tests share which leave it as they found it (each makes events of its own).
async fn shared() -> &'static Cluster {
    // The guard process of the cluster ends it: a static is never dropped.
    static SHARED: OnceCell<Option<Cluster>> = OnceCell::const_new();
    let start = async || match Cluster::start(Options::default()).await {
        Ok(cluster) => Some(cluster),
        Err(error) => {
            // Told once, not by every test that wants it.
            eprintln!("{error:#}");
            None
        }
    };
    SHARED
        .get_or_init(start)
        .await
        .as_ref()
        .expect("the shared cluster did not start: one failed test says why")
}

/// Tests with a cluster of their own run one at a time: the machine that tests them may be small.
async fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::const_new(());
    ALONE.lock().await
}

/// A user name that no other test has.
fn someone(role: &str) -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("{role}-{}-{}", NEXT.fetch_add(1, Ordering::Relaxed), std::process::id())
}

/// An organiser of the shared cluster.
async fn organiser() -> Session {
    shared().await.session(&someone("organiser"), &["organiser"]).unwrap()
}

/// A buyer of the shared cluster, with the name under which it buys.
async fn buyer() -> (String, Session) {
    let name = someone("buyer");
    let session = shared().await.session(&name, &[]).unwrap();
    (name, session)
}

/// The first regions are for sales; the last two belong to the backup tests.
async fn first_region(session: &Session) -> String {
    session.region_names().await.unwrap().swap_remove(0)
}

/// Says on the real standard error, which the test runner does not capture, that something was not tested.
fn skipped(what: &str, why: &str) {
    let line = format!("\n*** NOT TESTED: {what}: {why}\n");
    std::io::stderr().write_all(line.as_bytes()).ok();
}
