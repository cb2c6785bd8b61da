//! `tidewall man`: manual pages of this program and its commands.

use std::path::{Path, PathBuf};

use clap::{Args, Command};
use clap_mangen::Man;

use crate::exit::{Exit, Failure};
use crate::output;

/// Arguments of `tidewall man`.
#[derive(Debug, Args)]
pub struct ManCommand {
    /// Directory that gets a page for each command, created when missing; without it the page of `tidewall` is printed
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
}

/// Runs the command.
pub fn run(command: &ManCommand, cli: Command) -> Result<(), Failure> {
    let failed =
        |why: std::io::Error| Failure::new(Exit::Environment, format!("cannot write manual pages: {why}"));
    match &command.dir {
        None => {
            let mut page = Vec::new();
            Man::new(cli).render(&mut page).map_err(failed)?;
            output::text(&String::from_utf8_lossy(&page))
        }
        Some(dir) => write_all(dir, cli).map_err(failed),
    }
}

fn write_all(dir: &Path, cli: Command) -> std::io::Result<()> {
    std::fs::create_dir_all(dir)?;
    clap_mangen::generate_to(cli, dir)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_command_has_a_page() {
        let dir = tempfile::tempdir().unwrap();
        write_all(dir.path(), crate::Cli::command()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        assert!(read("tidewall.1").contains("region"));
        assert!(read("tidewall-region-failover.1").contains(".TH tidewall-region-failover 1"));
        assert!(read("tidewall-up.1").contains("Examples"), "{}", read("tidewall-up.1"));
    }
}
