//! Keeps child processes running: starts them, restarts them with backoff, stops them in order.
//!
//! It knows processes, logs and exit codes, and nothing of regions, nodes or gateways. It never opens a
//! data directory and never talks to its children except by signals and by one pipe: each child has as its
//! standard input a pipe whose other end only this process holds, so a child that reads end-of-file knows
//! that its supervisor is gone, however that happened, and ends itself.

pub mod backoff;
pub mod logs;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::exit::Exit;
use crate::service_manager;
use backoff::Backoff;

/// How often a child's log is looked at, whether it has grown too long.
const LOG_CHECK_EVERY: Duration = Duration::from_secs(10);
/// How often a restarted child is asked whether it accepts connections again.
const PROBE_EVERY: Duration = Duration::from_millis(50);
/// How many of a child's last lines are shown when it dies.
const TAIL_LINES: usize = 12;

/// A process to keep running.
#[derive(Debug, Clone)]
pub struct ChildSpec {
    /// Name in messages, such as `node-1`.
    pub name: String,
    /// What to run.
    pub program: PathBuf,
    /// The name that it sees as its own, and that `ps` shows.
    pub title: OsString,
    /// With which arguments.
    pub arguments: Vec<OsString>,
    /// Where its output goes.
    pub log: PathBuf,
    /// Where it accepts connections once it is well, to say when it is back.
    pub probe: Option<SocketAddr>,
    /// How long it may take to end after SIGINT, before SIGKILL.
    pub grace: Duration,
}

/// What happened to a child.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It runs under this process id.
    Started {
        /// The child.
        name: String,
        /// Its process id.
        pid: u32,
    },
    /// It does not run any more.
    Ended {
        /// The child.
        name: String,
    },
    /// It ended in a way that a restart would not mend, and will not be started again.
    GaveUp {
        /// The child.
        name: String,
        /// The exit code that says why.
        code: u8,
        /// How it ended and what to do.
        message: String,
    },
}

/// Receives what happens to children; called from the runtime's threads, so it must be quick.
pub type Report = Arc<dyn Fn(Change) + Send + Sync>;

/// What the children of a crew are to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Order {
    Run,
    Stop,
    Kill,
}

/// Children that are stopped together. Dropping it kills them.
#[derive(Debug, Default)]
pub struct Crew {
    orders: Mutex<BTreeMap<String, watch::Sender<Order>>>,
    keepers: Mutex<JoinSet<()>>,
}

impl Crew {
    /// Starts children and keeps them running. Must be called in a tokio runtime.
    pub fn start(specs: Vec<ChildSpec>, report: &Report) -> Self {
        let crew = Self::default();
        for spec in specs {
            crew.add(spec, report);
        }
        crew
    }

    /// Starts one more child. Must be called in a tokio runtime.
    pub fn add(&self, spec: ChildSpec, report: &Report) {
        expect_ends();
        let (order, orders) = watch::channel(Order::Run);
        self.orders.lock().insert(spec.name.clone(), order);
        self.keepers.lock().spawn(keep(spec, orders, Arc::clone(report)));
    }

    /// Asks one child to end, for good.
    pub fn remove(&self, name: &str) {
        // Its keeper lives on until the child has ended; a dropped order means stop as well.
        self.orders.lock().remove(name);
    }

    /// Asks all children to end (SIGINT: at once, because all of them end), and returns when they have. Who has not
    /// ended within its grace is killed.
    pub async fn stop(&mut self) {
        for order in self.orders.lock().values() {
            order.send_if_modified(|order| {
                let run = *order == Order::Run;
                if run {
                    *order = Order::Stop;
                }
                run
            });
        }
        while let Some(ended) = self.keepers.get_mut().join_next().await {
            if let Err(error) = ended {
                tracing::error!("a keeper of a process ended abnormally: {error}");
            }
        }
    }

    /// Kills all children (SIGKILL); [`Crew::stop`] then returns soon.
    pub fn kill(&self) {
        for order in self.orders.lock().values() {
            order.send_replace(Order::Kill);
        }
    }
}

/// Takes the end of a child as news, also where this process was started with SIGCHLD ignored: the system would forget how
/// a child ended before anybody could ask.
fn expect_ends() {
    use tokio::signal::unix::{SignalKind, signal};
    if let Err(error) = signal(SignalKind::child()) {
        tracing::warn!("cannot listen for the ends of processes: {error}");
    }
}

/// How one life of a child ended.
enum End {
    /// It was told to.
    Ordered,
    /// By itself.
    Died(ExitStatus),
    /// It could not even be started, or not be waited for.
    Failed(io::Error),
}

/// Keeps one child running until it is ordered to stop or ends for good.
async fn keep(spec: ChildSpec, mut order: watch::Receiver<Order>, report: Report) {
    let mut backoff = Backoff::default();
    let mut died_at: Option<Instant> = None;
    loop {
        let log_start = std::fs::metadata(&spec.log).map_or(0, |found| found.len());
        let begun = Instant::now();
        let mut pid = 0;
        let end = match spawn(&spec) {
            Ok((mut child, pipe)) => {
                pid = child.id().unwrap_or(0);
                report(Change::Started { name: spec.name.clone(), pid });
                let end = tokio::select! {
                    end = tend(&spec, &mut child, &mut order) => end,
                    never = say_when_back(&spec, pid, died_at) => match never {},
                };
                // Only now: a child that reads end-of-file ends itself.
                drop(pipe);
                report(Change::Ended { name: spec.name.clone() });
                end
            }
            Err(error) => End::Failed(error),
        };
        died_at = Some(Instant::now());
        let lived = begun.elapsed();
        let (how, status) = match end {
            End::Ordered => return,
            End::Died(status) => (describe(status), Some(status)),
            End::Failed(error) => (format!("could not be started: {error}"), None),
        };
        let last_words = last_words(&spec.log, log_start, status);
        let code = status.and_then(|status| status.code());
        if let Some((exit, advice)) = code.and_then(beyond_restart) {
            let message = format!(
                "{} (process {pid}) {how} and is NOT restarted: {advice}. Its log: {}{last_words}",
                spec.name,
                spec.log.display()
            );
            tracing::error!("{message}");
            report(Change::GaveUp { name: spec.name.clone(), code: exit.code(), message });
            return;
        }
        let wait = backoff.after(lived);
        tracing::warn!(
            "{} (process {pid}) {how} after {:.1} s; it is started again in {} ms. Its log: {}{last_words}",
            spec.name,
            lived.as_secs_f64(),
            wait.as_millis(),
            spec.log.display()
        );
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = order.wait_for(|order| *order != Order::Run) => return,
        }
    }
}

/// Starts a child, with the pipe that it watches.
fn spawn(spec: &ChildSpec) -> io::Result<(Child, ChildStdin)> {
    let log = logs::open(&spec.log)?;
    let mut child = Command::new(&spec.program)
        .arg0(&spec.title)
        .args(&spec.arguments)
        // The allocator would touch its arenas at once: three times the memory of an idle node.
        .env("MIMALLOC_ARENA_EAGER_COMMIT", "0")
        .env_remove(service_manager::SOCKET)
        .stdin(Stdio::piped())
        .stdout(log.try_clone()?)
        .stderr(log)
        // A Ctrl-C of the terminal must reach the supervisor only, which stops its children in order.
        .process_group(0)
        .kill_on_drop(true)
        .spawn()?;
    // Taken out, because waiting for a child closes the pipe that is still in it.
    let pipe = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to the child"))?;
    Ok((child, pipe))
}

/// Waits until a child ends, by itself or on order.
async fn tend(spec: &ChildSpec, child: &mut Child, order: &mut watch::Receiver<Order>) -> End {
    let mut check = tokio::time::interval(LOG_CHECK_EVERY);
    loop {
        tokio::select! {
            ended = child.wait() => return ended.map_or_else(End::Failed, End::Died),
            // An error means that the crew was dropped, which is an order to stop, too.
            _ = order.wait_for(|order| *order != Order::Run) => break,
            _ = check.tick() => {
                if let Err(error) = logs::rotate(&spec.log, logs::LOG_BYTES_MAX) {
                    tracing::warn!("cannot shorten the log {}: {error}", spec.log.display());
                }
            }
        }
    }
    // A sender that was dropped leaves the last order, which was to run.
    if *order.borrow() != Order::Kill {
        interrupt(child);
        tokio::select! {
            ended = child.wait() => return ended.map_or_else(End::Failed, |_| End::Ordered),
            () = tokio::time::sleep(spec.grace) => {
                tracing::warn!("{} did not end within {:?} of SIGINT and is killed", spec.name, spec.grace);
            }
            () = killed(order) => {}
        }
    }
    match child.kill().await {
        Ok(()) => End::Ordered,
        Err(error) => {
            tracing::error!("{} could not be killed: {error}", spec.name);
            End::Ordered
        }
    }
}

/// Waits for the order to kill, which never comes once the sender is gone.
async fn killed(order: &mut watch::Receiver<Order>) {
    if order.wait_for(|order| *order == Order::Kill).await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// Sends SIGINT to a child that was not waited for yet, so that its id cannot be somebody else's.
fn interrupt(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(Err(error)) = pid.map(|pid| kill_process(pid, Signal::INT)) {
        tracing::warn!("cannot send SIGINT to process {pid:?}: {error}");
    }
}

/// Logs when a restarted child accepts connections again; never returns.
async fn say_when_back(spec: &ChildSpec, pid: u32, died_at: Option<Instant>) -> std::convert::Infallible {
    if let (Some(died_at), Some(probe)) = (died_at, spec.probe) {
        while tokio::net::TcpStream::connect(probe).await.is_err() {
            tokio::time::sleep(PROBE_EVERY).await;
        }
        tracing::info!(
            "{} is back (process {pid}), {:.1} s after it ended",
            spec.name,
            died_at.elapsed().as_secs_f64()
        );
    }
    std::future::pending().await
}

/// Whether a restart would not mend what this exit code says, and what to do then.
fn beyond_restart(code: i32) -> Option<(Exit, &'static str)> {
    [
        (
            Exit::StorageFailed,
            "it could not write or sync its disk, so what is on that disk is uncertain. Look at the disk (free \
             space, kernel messages), then stop and start the cluster. The others go on serving while they are \
             a majority",
        ),
        (
            Exit::DataUnusable,
            "its data are damaged, older than what the other nodes have seen of them, of another cluster, or of another \
             version: its last lines say which. Keep its directory as it is; with the version that wrote it it can be \
             started again; otherwise replace the node under a new id. The others go on serving while they are a majority",
        ),
        (Exit::Usage, "it did not understand its command line, which would be the same again"),
    ]
    .into_iter()
    .find(|(exit, _)| i32::from(exit.code()) == code)
}

/// How a process ended, in words.
fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => match Signal::from_named_raw(signal) {
            Some(name) => format!("was ended by signal {signal} ({})", signal_name(name)),
            None => format!("was ended by signal {signal}"),
        },
        (None, None) => "ended in an unknown way".into(),
    }
}

fn signal_name(signal: Signal) -> &'static str {
    match signal {
        Signal::HUP => "SIGHUP",
        Signal::INT => "SIGINT",
        Signal::QUIT => "SIGQUIT",
        Signal::ILL => "SIGILL",
        Signal::ABORT => "SIGABRT",
        Signal::BUS => "SIGBUS",
        Signal::FPE => "SIGFPE",
        Signal::KILL => "SIGKILL",
        Signal::SEGV => "SIGSEGV",
        Signal::PIPE => "SIGPIPE",
        Signal::TERM => "SIGTERM",
        _ => "another signal",
    }
}

/// The end of the log of a child that died, unless somebody killed it: then its log has no reason.
fn last_words(log: &Path, from: u64, status: Option<ExitStatus>) -> String {
    let killed = [Signal::KILL.as_raw(), Signal::TERM.as_raw(), Signal::INT.as_raw()];
    if status.and_then(|status| status.signal()).is_some_and(|signal| killed.contains(&signal)) {
        return String::new();
    }
    logs::tail(log, from, TAIL_LINES).iter().map(|line| format!("\n    | {line}")).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use parking_lot::Mutex;

    use super::*;

    struct Fixture {
        directory: tempfile::TempDir,
        changes: Arc<Mutex<Vec<Change>>>,
        report: Report,
    }

    impl Fixture {
        fn new() -> Self {
            let changes: Arc<Mutex<Vec<Change>>> = Arc::default();
            let seen = Arc::clone(&changes);
            let report: Report = Arc::new(move |change| seen.lock().push(change));
            Self { directory: tempfile::tempdir().unwrap(), changes, report }
        }

        fn spec(&self, script: &str) -> ChildSpec {
            ChildSpec {
                name: "child".into(),
                program: "/bin/sh".into(),
                title: "sh".into(),
                arguments: vec!["-c".into(), script.into()],
                log: self.directory.path().join("child.log"),
                probe: None,
                grace: Duration::from_secs(60),
            }
        }

        /// Waits until the changes are as wanted; bounded, so that a fault fails instead of hanging.
        async fn until(&self, wanted: impl Fn(&[Change]) -> bool) -> Vec<Change> {
            for _ in 0..6_000 {
                let seen = self.changes.lock().clone();
                if wanted(&seen) {
                    return seen;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("it never came to that: {:?}", self.changes.lock());
        }

        fn pids(changes: &[Change]) -> Vec<u32> {
            let pid = |change: &Change| match change {
                Change::Started { pid, .. } => Some(*pid),
                _ => None,
            };
            changes.iter().filter_map(pid).collect()
        }
    }

    #[tokio::test]
    async fn a_child_that_dies_is_started_again() {
        let fixture = Fixture::new();
        let mut crew = Crew::start(vec![fixture.spec("exit 1")], &fixture.report);
        let changes = fixture.until(|changes| Fixture::pids(changes).len() >= 3).await;
        let pids = Fixture::pids(&changes);
        assert!(pids[0] != pids[1] && pids[1] != pids[2]);
        crew.stop().await;
        assert!(!fixture.changes.lock().iter().any(|change| matches!(change, Change::GaveUp { .. })));
    }

    #[tokio::test]
    async fn a_killed_child_is_started_again() {
        let fixture = Fixture::new();
        let mut crew = Crew::start(vec![fixture.spec("exec sleep 1000")], &fixture.report);
        let changes = fixture.until(|changes| Fixture::pids(changes).len() == 1).await;
        let first = Fixture::pids(&changes)[0];
        kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
        fixture.until(|changes| Fixture::pids(changes).len() == 2).await;
        crew.stop().await;
        assert_eq!(fixture.changes.lock().last(), Some(&Change::Ended { name: "child".into() }));
    }

    #[tokio::test]
    async fn storage_exit_codes_are_final_and_show_the_last_words() {
        for (code, hint) in [(70, "sync its disk"), (71, "damaged")] {
            let fixture = Fixture::new();
            let script = format!("echo fsync failed >&2; exit {code}");
            let mut crew = Crew::start(vec![fixture.spec(&script)], &fixture.report);
            let changes =
                fixture.until(|c| c.iter().any(|change| matches!(change, Change::GaveUp { .. }))).await;
            let Some(Change::GaveUp { code: said, message, .. }) = changes.last() else {
                panic!("giving up comes last: {changes:?}")
            };
            assert_eq!(*said, code);
            assert!(message.contains("NOT restarted") && message.contains(hint), "{message}");
            assert!(message.contains("| fsync failed"), "{message}");
            crew.stop().await;
            assert_eq!(Fixture::pids(&fixture.changes.lock()).len(), 1);
        }
    }

    #[tokio::test]
    async fn a_child_that_ignores_sigterm_is_killed_after_its_grace() {
        let fixture = Fixture::new();
        let ready = fixture.directory.path().join("ready");
        let script = format!("trap '' TERM; : > {}; while :; do sleep 0.05; done", ready.display());
        let spec = ChildSpec { grace: Duration::from_millis(50), ..fixture.spec(&script) };
        let mut crew = Crew::start(vec![spec], &fixture.report);
        fixture.until(|_| ready.exists()).await;
        let pid = Fixture::pids(&fixture.changes.lock())[0];
        crew.stop().await;
        assert!(!crate::endpoints::alive(pid));
    }

    #[tokio::test]
    async fn kill_does_not_wait_for_the_grace() {
        let fixture = Fixture::new();
        let ready = fixture.directory.path().join("ready");
        let script = format!("trap '' TERM; : > {}; while :; do sleep 0.05; done", ready.display());
        let spec = ChildSpec { grace: Duration::from_secs(86_400), ..fixture.spec(&script) };
        let mut crew = Crew::start(vec![spec], &fixture.report);
        fixture.until(|_| ready.exists()).await;
        crew.kill();
        crew.stop().await;
        assert!(!crate::endpoints::alive(Fixture::pids(&fixture.changes.lock())[0]));
    }

    #[tokio::test]
    async fn a_child_sees_end_of_file_when_the_crew_is_gone() {
        let fixture = Fixture::new();
        let done = fixture.directory.path().join("done");
        let (mut child, pipe) =
            spawn(&fixture.spec(&format!("cat > /dev/null; : > {}", done.display()))).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        drop(pipe);
        assert!(child.wait().await.unwrap().success());
        assert!(done.exists());
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_tried_again_until_the_stop() {
        let fixture = Fixture::new();
        let spec = ChildSpec { program: "/nonexistent/tidewall".into(), ..fixture.spec("") };
        let mut crew = Crew::start(vec![spec], &fixture.report);
        tokio::task::yield_now().await;
        crew.stop().await;
        assert!(fixture.changes.lock().is_empty());
    }

    #[test]
    fn ends_are_described() {
        assert_eq!(describe(ExitStatus::from_raw(9)), "was ended by signal 9 (SIGKILL)");
        assert_eq!(describe(ExitStatus::from_raw(70 << 8)), "ended with exit code 70");
        assert!(beyond_restart(0).is_none() && beyond_restart(1).is_none() && beyond_restart(5).is_none());
    }
}
