//! Runs the small programs of the system that drivers need: `ip`, `nft`, `mount`, `strace`.

use std::ffi::OsStr;
use std::path::PathBuf;

use tokio::process::Command;

use crate::ChaosError;

/// How much of what a failed command said is shown, characters.
const SAID_MAX: usize = 400;

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// When it cannot be started or fails.
pub async fn run<A: AsRef<OsStr>>(program: &str, arguments: &[A]) -> Result<String, ChaosError> {
    let text = || {
        let words: Vec<String> =
            arguments.iter().map(|argument| argument.as_ref().to_string_lossy().into_owned()).collect();
        format!("{program} {}", words.join(" "))
    };
    let output = Command::new(program)
        .args(arguments)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(ChaosError::system(format!("run `{}`", text())))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(ChaosError::Command {
        command: text(),
        status: output.status.to_string(),
        said: said.trim().chars().take(SAID_MAX).collect(),
    })
}

/// Where a program is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|path| path.is_file())
}

/// Whether this process may do everything.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_failure_says_what_was_run_and_what_it_said() {
        assert_eq!(run("sh", &["-c", "echo yes"]).await.unwrap(), "yes\n");
        let error = run("sh", &["-c", "echo no >&2; exit 3"]).await.unwrap_err().to_string();
        assert!(error.contains("sh -c") && error.contains("no") && error.contains('3'), "{error}");
        assert!(find("sh").is_some());
        assert!(find("no-such-program-anywhere").is_none());
    }
}
