//! `tidewall completions`: scripts that complete this program's commands in a shell.

use clap::{Args, Command, ValueEnum};
use clap_complete::generate;
use clap_complete::shells;

use crate::exit::Failure;
use crate::output;

/// Arguments of `tidewall completions`.
#[derive(Debug, Args)]
pub struct CompletionsCommand {
    /// The shell
    #[arg(value_enum)]
    pub shell: Shell,
}

/// Shells that are supported.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Shell {
    /// GNU bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly interactive shell.
    Fish,
    /// PowerShell.
    #[value(name = "powershell")]
    Power,
    /// Elvish.
    Elvish,
}

/// Runs the command.
pub fn run(command: &CompletionsCommand, cli: Command) -> Result<(), Failure> {
    output::text(&String::from_utf8_lossy(&script(command.shell, cli)))
}

fn script(shell: Shell, mut cli: Command) -> Vec<u8> {
    let mut script = Vec::new();
    match shell {
        Shell::Bash => generate(shells::Bash, &mut cli, "tidewall", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut cli, "tidewall", &mut script),
        Shell::Fish => generate(shells::Fish, &mut cli, "tidewall", &mut script),
        Shell::Power => generate(shells::PowerShell, &mut cli, "tidewall", &mut script),
        Shell::Elvish => generate(shells::Elvish, &mut cli, "tidewall", &mut script),
    }
    script
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn scripts_know_the_commands() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Power, Shell::Elvish] {
            let script = String::from_utf8_lossy(&script(shell, crate::Cli::command())).into_owned();
            assert!(script.contains("flash-sale") && script.contains("region"), "{shell:?}");
        }
    }
}
