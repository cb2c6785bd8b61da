//! Processes of a test: the binary under test, and a guard that ends what a test has started, however the test ends.
//! Processes are only ever named by the ids of our own children and theirs.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use rustix::process::{Pid, Signal, kill_process_group};

/// Path of the binary under test: `TIDEWALL_BIN`, or as [`built`] says.
///
/// # Errors
/// When there is no such file; says how to make it.
pub fn binary() -> anyhow::Result<PathBuf> {
    match std::env::var_os("TIDEWALL_BIN") {
        Some(path) => there_is(&PathBuf::from(path)),
        None => built("tidewall"),
    }
}

/// Path of another program: below `TIDEWALL_PROGRAMS`, which `./test` sets to what it has built, or beside the one that runs. Never
/// what happens to be left of an earlier build.
///
/// # Errors
/// When there is no such file; says how to make it.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    let beside = || Some(std::env::current_exe().ok()?.parent()?.to_owned());
    let programs = std::env::var_os("TIDEWALL_PROGRAMS").map(PathBuf::from).or_else(beside);
    there_is(&programs.unwrap_or_default().join(name))
}

fn there_is(path: &Path) -> anyhow::Result<PathBuf> {
    ensure!(
        path.is_file(),
        "there is no program {}: `./test` builds all of them, and TIDEWALL_BIN may name another `tidewall`",
        path.display()
    );
    path.canonicalize().with_context(|| format!("cannot resolve {}", path.display()))
}

/// Runs the binary to its end and returns what it said.
///
/// # Errors
/// When it cannot be started or is not done within `limit`; it is killed then.
pub fn run(arguments: &[&str], limit: Duration) -> anyhow::Result<Output> {
    run_program(&binary()?, arguments, limit)
}

/// Runs a program to its end and returns what it said.
///
/// # Errors
/// When it cannot be started or is not done within `limit`; it is killed then.
pub fn run_program(program: &Path, arguments: &[&str], limit: Duration) -> anyhow::Result<Output> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()?;
    let group = pid(child.id());
    let (done, wait) = std::sync::mpsc::channel();
    let waiter = std::thread::spawn(move || {
        let output = child.wait_with_output();
        // The receiver may have given up; then there is nobody to tell.
        let _ = done.send(());
        output
    });
    let in_time = wait.recv_timeout(limit).is_ok();
    if !in_time {
        kill_process_group(group, Signal::KILL).ok();
    }
    let output = waiter.join().expect("waiting for a child does not panic")?;
    ensure!(
        in_time,
        "`{} {}` was not done after {limit:?}; it had said: {}{}",
        program.display(),
        arguments.join(" "),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(output)
}

/// The system's form of a process id.
pub(crate) fn pid(id: u32) -> Pid {
    i32::try_from(id).ok().and_then(Pid::from_raw).expect("the system gives positive process ids")
}

/// A shell that waits for the end of this process (its standard input closes), then ends the group of the
/// supervisor and removes the temporary directory. It covers what `Drop` cannot: statics, aborts, SIGKILL.
pub(crate) struct Guard {
    shell: Child,
    /// Closed by the system when this process ends, however it ends.
    pipe: ChildStdin,
}

impl Guard {
    /// Guards the group of `supervisor`, and a directory that is to go with it.
    pub(crate) fn new(supervisor: u32, directory: Option<&Path>) -> anyhow::Result<Self> {
        let script = r#"cat >/dev/null
            children=$(cat /proc/"$1"/task/"$1"/children 2>/dev/null)
            kill -s KILL -- -"$1" $children 2>/dev/null
            [ -z "$2" ] || { sleep 1; rm -rf -- "$2"; }"#;
        let mut shell = Command::new("sh")
            .args(["-c", script, "guard"])
            .arg(supervisor.to_string())
            .arg(directory.unwrap_or(Path::new("")))
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        let pipe = shell.stdin.take().context("the guard's input was to be a pipe")?;
        Ok(Self { shell, pipe })
    }

    /// There is nothing to guard any more.
    pub(crate) fn dismiss(mut self) {
        // Its `cat` is a process of its own: only together do they end without doing anything.
        kill_process_group(pid(self.shell.id()), Signal::KILL).ok();
        self.shell.wait().ok();
        drop(self.pipe);
    }
}

/// Waits for a child to end.
pub(crate) fn wait(child: &mut Child, limit: Duration) -> anyhow::Result<ExitStatus> {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(Instant::now() < deadline, "process {} still runs after {limit:?}", child.id());
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Every process of the machine with its parent; zombies are left out.
pub(crate) fn process_table() -> Vec<(u32, u32)> {
    let Ok(entries) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    entries
        .filter_map(Result::ok)
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter_map(|id| {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
            // The name in parentheses may contain anything; the fields start behind the last one.
            let mut fields = stat.rsplit_once(") ")?.1.split(' ');
            let state = fields.next()?;
            let parent = fields.next()?.parse().ok()?;
            (state != "Z").then_some((id, parent))
        })
        .collect()
}

/// Whether there is such a process.
pub(crate) fn alive(id: u32) -> bool {
    process_table().iter().any(|(other, _)| *other == id)
}

#[cfg(test)]
pub(crate) mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use std::os::unix::process::ExitStatusExt as _;

    /// A process with two children, in a group of its own.
    pub(crate) fn family() -> Child {
        Command::new("sh").args(["-c", "sleep 300 & sleep 300"]).process_group(0).spawn().unwrap()
    }

    /// Processes of such a family that run.
    pub(crate) fn members(group: u32) -> usize {
        process_table().iter().filter(|(id, parent)| *parent == group || *id == group).count()
    }

    #[test]
    fn the_guard_ends_the_group_and_removes_the_directory_when_its_pipe_closes() {
        let directory = tempfile::tempdir().unwrap();
        let mut supervisor = family();
        let guard = Guard::new(supervisor.id(), Some(directory.path())).unwrap();
        assert!(supervisor.try_wait().unwrap().is_none());
        drop(guard.pipe);
        let status = wait(&mut supervisor, Duration::from_secs(60)).unwrap();
        assert_eq!(status.signal(), Some(9));
        let mut shell = guard.shell;
        assert!(wait(&mut shell, Duration::from_secs(60)).is_ok());
        assert!(!directory.path().exists());
    }
}
