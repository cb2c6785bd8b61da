//! Says which commit is built, for `--version`: that of the checkout, or none where there is no git.

use std::process::Command;

fn main() {
    for file in ["../../.git/HEAD", "../../.git/refs/heads"] {
        println!("cargo:rerun-if-changed={file}");
    }
    let commit = Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).output();
    let commit = commit.ok().filter(|output| output.status.success());
    let commit = commit.and_then(|output| String::from_utf8(output.stdout).ok());
    let commit = commit.as_deref().map(str::trim).filter(|text| !text.is_empty()).unwrap_or("unknown");
    let profile = std::env::var("PROFILE").unwrap_or_default();
    println!("cargo:rustc-env=TIDEWALL_VERSION={} (commit {commit}, {profile})", env!("CARGO_PKG_VERSION"));
}
