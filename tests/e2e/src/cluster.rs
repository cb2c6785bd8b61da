//! A Tidewall of its own for a test: `tidewall up` on a temporary directory, and what a test does to its
//! processes.
//!
//! Nothing outlives the test: [`Cluster`] stops its processes when it is dropped, also in a panic, and a guard
//! process does the same when the test process itself dies. Processes are only ever named by the ids of our
//! own children and theirs.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Signal, kill_process, kill_process_group};
use serde::Deserialize;

use crate::client::Session;
use crate::process::{Guard, alive, pid, process_table, wait};
pub use crate::process::{binary, run};

/// How long a cluster may take to become ready. Generous: the machine may be busy; what is normal is
/// measured by the benchmarks, not here.
pub const READY_WITHIN: Duration = Duration::from_secs(90);

/// Lines of each log that a failed test shows.
const LOG_LINES: usize = 30;

/// How to start a cluster.
#[derive(Debug, Clone)]
pub struct Options {
    /// Gateway processes.
    pub gateways: usize,
    /// Data directory; `None` makes a temporary one that is removed with the cluster.
    pub data: Option<PathBuf>,
    /// Words in front of the command, which they must `exec`.
    pub under: Vec<String>,
    /// Added to the environment.
    pub environment: Vec<(String, String)>,
    /// Where standard output and error of the supervisor go; `None`: into a log that failed tests show.
    pub output: Option<Arc<OwnedFd>>,
}

impl Default for Options {
    fn default() -> Self {
        Self { gateways: 1, data: None, under: Vec::new(), environment: Vec::new(), output: None }
    }
}

/// What `up` writes into `endpoints.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct Endpoints {
    /// Gateways.
    pub gateways: Vec<GatewayEndpoint>,
    /// Shard nodes.
    pub nodes: Vec<NodeEndpoint>,
    /// Process id of the supervisor.
    pub supervisor_pid: u32,
}

/// A gateway in `endpoints.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct GatewayEndpoint {
    /// Base address such as `http://127.0.0.1:7000`.
    pub url: String,
}

/// A shard node in `endpoints.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct NodeEndpoint {
    /// Node id.
    pub id: u64,
    /// Client port, `127.0.0.1:port`.
    pub address: String,
    /// Peer port, `127.0.0.1:port`.
    pub peer_address: String,
}

/// What a process below the supervisor does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A shard node.
    Shard,
    /// A gateway.
    Gateway,
}

/// A running cluster.
pub struct Cluster {
    data: PathBuf,
    options: Options,
    temporary: Option<tempfile::TempDir>,
    running: Option<Running>,
    /// Minted once: the signing key of a data directory stays.
    operator: Option<String>,
}

/// The supervisor and its guard.
struct Running {
    supervisor: Child,
    guard: Guard,
    endpoints: Endpoints,
}

impl Cluster {
    /// Starts a cluster and waits until a client can use it.
    ///
    /// # Errors
    /// When the binary is missing, ends early or is not ready within [`READY_WITHIN`]; the error carries the
    /// end of what the processes logged.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        let (data, temporary) = match &options.data {
            Some(data) => (data.clone(), None),
            None => {
                let directory = tempfile::Builder::new().prefix("tidewall-e2e-").tempdir()?;
                (directory.path().join("data"), Some(directory))
            }
        };
        let mut cluster = Self { data, options, temporary, running: None, operator: None };
        cluster.boot().await?;
        Ok(cluster)
    }

    /// The data directory.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// What the running supervisor wrote into `endpoints.json`.
    ///
    /// # Panics
    /// When the cluster is stopped.
    pub fn endpoints(&self) -> &Endpoints {
        &self.running.as_ref().expect("the test uses the endpoints of a running cluster").endpoints
    }

    /// A session of `user` with these roles, through the first gateway.
    ///
    /// # Errors
    /// When no token can be minted.
    pub fn session(&self, user: &str, roles: &[&str]) -> anyhow::Result<Session> {
        Session::new(&self.endpoints().gateways[0].url, &self.token(user, roles)?)
    }

    /// Mints a token with the development key of this cluster.
    ///
    /// # Errors
    /// When the command fails.
    pub fn token(&self, user: &str, roles: &[&str]) -> anyhow::Result<String> {
        self.token_with(user, roles, &[])
    }

    /// Like [`token`](Self::token), with more arguments for `tidewall token`.
    ///
    /// # Errors
    /// When the command fails.
    pub fn token_with(&self, user: &str, roles: &[&str], more: &[&str]) -> anyhow::Result<String> {
        let data = self.data.display().to_string();
        let mut arguments = vec!["token", "--data", &data, "--user", user];
        for role in roles {
            arguments.extend(["--role", role]);
        }
        arguments.extend(more);
        let output = run(&arguments, Duration::from_secs(20))?;
        ensure!(
            output.status.success(),
            "`tidewall {}` failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        let token = String::from_utf8(output.stdout)?.trim().to_owned();
        ensure!(token.split('.').count() == 3, "`tidewall token` printed no token but {token:?}");
        Ok(token)
    }

    /// Process id of the supervisor.
    ///
    /// # Panics
    /// When the cluster is stopped.
    pub fn supervisor(&self) -> u32 {
        self.running.as_ref().expect("the test asks for the supervisor of a running cluster").supervisor.id()
    }

    /// Processes that the supervisor runs now.
    pub fn processes(&self) -> Vec<(Kind, u32)> {
        let Some(running) = &self.running else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (id, parent) in process_table() {
            if parent != running.supervisor.id() {
                continue;
            }
            let Ok(command) = std::fs::read(format!("/proc/{id}/cmdline")) else {
                continue;
            };
            let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
            if words.contains(&b"shard".as_slice()) {
                found.push((Kind::Shard, id));
            } else if words.contains(&b"gateway".as_slice()) {
                found.push((Kind::Gateway, id));
            }
        }
        found.sort_unstable();
        found
    }

    /// Sends SIGKILL to one process of this cluster.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn kill(&self, id: u32) -> anyhow::Result<()> {
        kill_process(pid(id), Signal::KILL).with_context(|| format!("cannot kill process {id}"))
    }

    /// Stops one process of this cluster with SIGSTOP; `resume` lets it go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn pause(&self, id: u32) -> anyhow::Result<()> {
        kill_process(pid(id), Signal::STOP).with_context(|| format!("cannot stop process {id}"))
    }

    /// Lets a paused process go on.
    ///
    /// # Errors
    /// When it is gone.
    pub fn resume(&self, id: u32) -> anyhow::Result<()> {
        kill_process(pid(id), Signal::CONT).with_context(|| format!("cannot resume process {id}"))
    }

    /// Sends SIGHUP to the supervisor, as a terminal that is closed does.
    ///
    /// # Errors
    /// When it is gone already.
    pub fn hang_up(&self) -> anyhow::Result<()> {
        let supervisor = self.supervisor();
        kill_process(pid(supervisor), Signal::HUP).with_context(|| format!("cannot signal {supervisor}"))
    }

    /// Stops the cluster as Ctrl-C or an init system would and returns how the supervisor ended.
    ///
    /// # Errors
    /// When it has not ended after 60 s.
    pub fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        let Some(mut running) = self.running.take() else { bail!("the cluster is stopped already") };
        kill_process(pid(running.supervisor.id()), Signal::TERM).ok();
        let status = wait(&mut running.supervisor, Duration::from_secs(60));
        running.end();
        status.with_context(|| format!("the supervisor ignored SIGTERM\n{}", self.log_tail()))
    }

    /// SIGKILL to the supervisor and to every process below it, all at once, like a power cut of the machine.
    pub fn kill_all(&mut self) {
        if let Some(running) = self.running.take() {
            running.end();
        }
    }

    /// Starts a stopped cluster again on the same data.
    ///
    /// # Errors
    /// As [`start`](Self::start).
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "the cluster is running");
        self.boot().await
    }

    /// Like [`restart`](Self::restart), but only until the supervisor has started its processes: for tests in
    /// which one of them must not come up.
    ///
    /// # Errors
    /// When the supervisor ends early or writes no endpoints within [`READY_WITHIN`].
    pub async fn restart_unsettled(&mut self) -> anyhow::Result<()> {
        ensure!(self.running.is_none(), "the cluster is running");
        self.launch().await
    }

    /// The end of what supervisor and processes wrote.
    pub fn log_tail(&self) -> String {
        let logs = std::fs::read_dir(self.data.join("logs")).into_iter().flatten();
        let mut files: Vec<PathBuf> = logs.filter_map(Result::ok).map(|entry| entry.path()).collect();
        files.sort();
        files.push(self.log_path());
        let mut all = String::new();
        for file in files {
            let bytes = std::fs::read(&file).unwrap_or_default();
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
            all += &format!("--- end of {} ---\n{}\n", file.display(), tail.join("\n"));
        }
        all
    }

    fn log_path(&self) -> PathBuf {
        self.data.with_extension("log")
    }

    async fn boot(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + READY_WITHIN;
        self.launch().await?;
        if let Err(error) = self.wait_ready(deadline).await {
            let tail = self.log_tail();
            self.kill_all();
            bail!("the cluster did not become ready: {error:#}\n{tail}");
        }
        Ok(())
    }

    /// Starts the supervisor and waits for the endpoints that it writes.
    async fn launch(&mut self) -> anyhow::Result<()> {
        let binary = binary()?;
        let file = self.data.join("endpoints.json");
        match std::fs::remove_file(&file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let log: OwnedFd = match &self.options.output {
            Some(output) => output.try_clone()?,
            None => File::options().create(true).append(true).open(self.log_path())?.into(),
        };
        let mut words = self.options.under.iter().map(std::ffi::OsString::from).chain([binary.into()]);
        let program = words.next().context("there is always the binary")?;
        let mut supervisor = Command::new(program)
            .args(words)
            .envs(self.options.environment.iter().cloned())
            .arg("up")
            .arg("--data")
            .arg(&self.data)
            .args(["--listen", "127.0.0.1:0", "--gateways", &self.options.gateways.to_string()])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let guard = Guard::new(supervisor.id(), self.temporary.as_ref().map(|directory| directory.path()))?;
        let endpoints =
            Endpoints { gateways: Vec::new(), nodes: Vec::new(), supervisor_pid: supervisor.id() };
        let deadline = Instant::now() + READY_WITHIN;
        let early = loop {
            if let Some(found) = read_endpoints(&file) {
                self.running = Some(Running { supervisor, guard, endpoints: found });
                break None;
            }
            let status = supervisor.try_wait()?;
            if status.is_some() || Instant::now() > deadline {
                self.running = Some(Running { supervisor, guard, endpoints });
                break Some(status);
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        if let Some(status) = early {
            self.kill_all();
            let how = status.map_or("still runs".to_owned(), |status| format!("ended with {status}"));
            bail!("`tidewall up` {how} and wrote no endpoints\n{}", self.log_tail());
        }
        Ok(())
    }

    async fn wait_ready(&mut self, deadline: Instant) -> anyhow::Result<()> {
        loop {
            match self.settled().await {
                Ok(()) => return Ok(()),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }

    /// Whether every process runs, every region has a leader and every replica is reachable and sound: the
    /// state in which one more failure must do no harm.
    ///
    /// # Errors
    /// Says what is missing.
    pub async fn settled(&mut self) -> anyhow::Result<()> {
        // Ports may have changed when a process came back.
        if let Some(found) = read_endpoints(&self.data.join("endpoints.json"))
            && let Some(running) = &mut self.running
        {
            running.endpoints = found;
        }
        let mut count: BTreeMap<Kind, usize> = BTreeMap::new();
        for (kind, _) in self.processes() {
            *count.entry(kind).or_default() += 1;
        }
        let (shards, gateways) = (self.endpoints().nodes.len(), self.endpoints().gateways.len());
        ensure!(gateways == self.options.gateways, "endpoints.json lists {gateways} gateways");
        ensure!(
            count.get(&Kind::Shard) == Some(&shards) && count.get(&Kind::Gateway) == Some(&gateways),
            "running processes: {count:?}, expected {shards} nodes and {gateways} gateways"
        );
        if self.operator.is_none() {
            self.operator = Some(self.token("e2e-operator", &["operator"])?);
        }
        let operator = Session::new(
            &self.endpoints().gateways[0].url,
            self.operator.as_ref().expect("it was minted above"),
        )?;
        let regions = operator.region_statuses().await?;
        ensure!(!regions.is_empty(), "the cluster has no regions");
        for region in regions {
            ensure!(region.leader_node != 0, "{} has no leader", region.name);
            ensure!(
                region.replicas.len() == shards,
                "{} has {} replicas",
                region.name,
                region.replicas.len()
            );
            for replica in &region.replicas {
                ensure!(
                    replica.fault.is_empty(),
                    "{} on node {}: {}",
                    region.name,
                    replica.node,
                    replica.fault
                );
            }
        }
        Ok(())
    }

    /// Waits until the cluster has [`settled`](Self::settled).
    ///
    /// # Errors
    /// After `limit`, with what was still missing and the end of the log.
    pub async fn wait_settled(&mut self, limit: Duration) -> anyhow::Result<()> {
        let result = self.wait_ready(Instant::now() + limit).await;
        result.with_context(|| format!("not settled after {limit:?}\n{}", self.log_tail()))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.log_tail());
        }
        self.kill_all();
        if self.temporary.is_none() {
            std::fs::remove_file(self.log_path()).ok();
        }
    }
}

impl Running {
    /// Ends all processes of the supervisor's group, then the guard.
    fn end(mut self) {
        // Children that had not joined the group are found by their parent.
        let children: Vec<u32> = process_table()
            .into_iter()
            .filter(|(_, parent)| *parent == self.supervisor.id())
            .map(|(id, _)| id)
            .collect();
        // Once it was waited for, its id may be somebody else's.
        if matches!(self.supervisor.try_wait(), Ok(None)) {
            kill_process_group(pid(self.supervisor.id()), Signal::KILL).ok();
        }
        for child in &children {
            kill_process(pid(*child), Signal::KILL).ok();
        }
        self.supervisor.wait().ok();
        // A lock or a port is free only once its holder is really gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline && children.iter().any(|id| alive(*id)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        self.guard.dismiss();
    }
}

fn read_endpoints(file: &Path) -> Option<Endpoints> {
    serde_json::from_slice(&std::fs::read(file).ok()?).ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::process::tests::{family, members};

    #[test]
    fn a_dismissed_guard_does_nothing_and_the_end_of_a_cluster_spares_nobody() {
        let directory = tempfile::tempdir().unwrap();
        let supervisor = family();
        let id = supervisor.id();
        let deadline = Instant::now() + Duration::from_secs(60);
        while members(id) < 3 {
            assert!(Instant::now() < deadline, "the shell has not started its children");
            std::thread::sleep(Duration::from_millis(10));
        }
        let guard = Guard::new(id, Some(directory.path())).unwrap();
        let endpoints = Endpoints { gateways: Vec::new(), nodes: Vec::new(), supervisor_pid: id };
        Running { supervisor, guard, endpoints }.end();
        assert_eq!(members(id), 0);
        assert!(directory.path().exists());
    }
}
