//! One process of the cluster: started, signalled, waited for. It never restarts by itself: scenarios decide about that.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, ChildStdin, Command};

use super::Ended;
use crate::ChaosError;

/// How many bytes of a log are shown when its process ends.
const LAST_WORDS_BYTES: usize = 1_200;

/// How to start a process.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Name in messages, such as `node 1`.
    pub name: String,
    /// What to run.
    pub program: PathBuf,
    /// With which arguments.
    pub arguments: Vec<OsString>,
    /// Variables on top of one's own.
    pub environment: Vec<(OsString, OsString)>,
    /// Where its output goes; appended to.
    pub log: PathBuf,
}

/// A process that was started. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    // Whoever reads end-of-file from it knows that this process is gone, however that happened.
    _pipe: Option<ChildStdin>,
    name: String,
    log: PathBuf,
    log_start: u64,
}

impl Process {
    /// Starts a process.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn start(spec: &Spec) -> Result<Self, ChaosError> {
        let failed = |source: io::Error| ChaosError::System { doing: format!("start {}", spec.name), source };
        let log = std::fs::File::options().create(true).append(true).open(&spec.log).map_err(failed)?;
        let log_start = log.metadata().map_err(failed)?.len();
        let mut child = Command::new(&spec.program)
            .args(&spec.arguments)
            .envs(spec.environment.iter().cloned())
            .stdin(Stdio::piped())
            .stdout(log.try_clone().map_err(failed)?)
            .stderr(log)
            // A Ctrl-C of the terminal reaches the run only, which ends its processes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        // Taken out, because waiting for a child closes the pipe that is still in it.
        let pipe = child.stdin.take();
        Ok(Self { child, _pipe: pipe, name: spec.name.clone(), log: spec.log.clone(), log_start })
    }

    /// Its id, unless it has ended.
    pub fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn signal(&self, signal: Signal) -> Result<(), ChaosError> {
        let doing = || format!("signal {}", self.name);
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let Some(pid) = pid else {
            return Err(ChaosError::System { doing: doing(), source: io::Error::other("it has ended") });
        };
        kill_process(pid, signal).map_err(|e| ChaosError::System { doing: doing(), source: e.into() })
    }

    /// Kills it and waits until it is gone.
    ///
    /// # Errors
    /// When the system refuses.
    pub async fn kill(&mut self) -> Result<(), ChaosError> {
        self.child.kill().await.map_err(ChaosError::system(format!("kill {}", self.name)))
    }

    /// Waits until it has ended; `None` when it has not after `limit`. Cancelling this loses nothing.
    ///
    /// # Errors
    /// When it cannot be waited for.
    pub async fn wait(&mut self, limit: Duration) -> Result<Option<Ended>, ChaosError> {
        match tokio::time::timeout(limit, self.child.wait()).await {
            Err(_) => Ok(None),
            Ok(status) => {
                let status = status.map_err(ChaosError::system(format!("wait for {}", self.name)))?;
                Ok(Some(self.last(status)))
            }
        }
    }

    fn last(&self, status: ExitStatus) -> Ended {
        Ended { code: status.code(), last_words: tail(&self.log, self.log_start) }
    }
}

/// The end of what a log says from an offset on.
fn tail(log: &Path, from: u64) -> String {
    let bytes = std::fs::read(log).unwrap_or_default();
    let start = usize::try_from(from).unwrap_or(0).max(bytes.len().saturating_sub(LAST_WORDS_BYTES));
    String::from_utf8_lossy(bytes.get(start..).unwrap_or_default()).trim().to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn spec(directory: &Path, script: &str) -> Spec {
        Spec {
            name: "child".into(),
            program: "/bin/sh".into(),
            arguments: vec!["-c".into(), script.into()],
            environment: vec![("WORD".into(), "hello".into())],
            log: directory.join("child.log"),
        }
    }

    #[tokio::test]
    async fn an_end_has_its_code_and_its_own_last_words() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("child.log"), "of an earlier life\n").unwrap();
        let mut child = Process::start(&spec(directory.path(), "echo $WORD; exit 7")).unwrap();
        let ended = child.wait(LONG).await.unwrap().unwrap();
        assert_eq!((ended.code, ended.last_words.as_str()), (Some(7), "hello"));
    }

    #[tokio::test]
    async fn a_paused_process_is_killed_all_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let mut child = Process::start(&spec(directory.path(), "while :; do sleep 1; done")).unwrap();
        child.signal(Signal::STOP).unwrap();
        assert!(child.wait(Duration::from_millis(50)).await.unwrap().is_none());
        child.kill().await.unwrap();
        assert!(child.id().is_none());
        assert!(child.signal(Signal::KILL).is_err());
    }
}
