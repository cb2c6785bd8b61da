//! Asks a person at the terminal to type a name before something that cannot be undone.

use std::io::{self, BufRead as _, IsTerminal as _};

use crate::exit::{Exit, Failure};
use crate::output;

/// Waits until somebody has typed one of `names` after `question`. Without a terminal nobody can: `unattended` then says
/// what is at stake and how to confirm it otherwise.
///
/// # Errors
/// [`Exit::Usage`] without a terminal, [`Exit::Failed`] when something else was typed.
pub fn typed(names: &[&str], question: &str, unattended: &str) -> Result<(), Failure> {
    if !io::stdin().is_terminal() {
        return Err(Failure::new(Exit::Usage, unattended));
    }
    output::note(question);
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .map_err(|e| Failure::new(Exit::Environment, format!("cannot read the answer: {e}")))?;
    if names.contains(&answer.trim()) {
        Ok(())
    } else {
        Err(Failure::new(Exit::Failed, "not confirmed; nothing was changed"))
    }
}
