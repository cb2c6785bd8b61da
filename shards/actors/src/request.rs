//! A command on its way through the actors, and how its caller is answered.

use tidewall_machine::{Command, Decision};

/// Why there is no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not decided here: ask the leader.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<u64>,
    },
    /// Not decided: a bound was reached.
    #[error("{what}: come back in {retry_after_ms} ms")]
    Overloaded {
        /// Which bound.
        what: &'static str,
        /// When to come back.
        retry_after_ms: u32,
    },
    /// May or may not have been decided.
    #[error("the outcome is unknown: {0}")]
    Unknown(String),
    /// This replica has stopped.
    #[error("this replica has halted: {0}")]
    Halted(String),
}

/// What a caller gets.
pub type Reply = Result<Decision, Refusal>;

/// A command with the way back to its caller.
///
/// The caller is answered exactly once, whatever happens: a request that is dropped unanswered, with an actor that died
/// or a mailbox that was lost, answers *unknown*, never success.
pub struct Request {
    /// What is asked.
    pub command: Command,
    /// Finishes or undoes what was started: goes before what starts.
    pub(crate) finishes: bool,
    /// Also a "no" is to be decided in the log and remembered.
    logged: bool,
    reply: Option<Box<dyn FnOnce(Reply) + Send>>,
}

impl Request {
    /// A command and what to do with its answer.
    pub fn new(command: Command, reply: impl FnOnce(Reply) + Send + 'static) -> Self {
        Self { command, finishes: false, logged: false, reply: Some(Box::new(reply)) }
    }

    /// The same request, to go before those that start something, or not.
    #[must_use]
    pub fn finishing(mut self, finishes: bool) -> Self {
        self.finishes = finishes;
        self
    }

    /// The same request, to be decided in the log whatever the answer is: there is no quick no for it.
    #[must_use]
    pub fn logged(mut self) -> Self {
        self.logged = true;
        self
    }

    /// Whether also a "no" is to be decided in the log.
    pub(crate) fn is_logged(&self) -> bool {
        self.logged && !tidewall_mutant::active(tidewall_mutant::Mutant::BatchGetsQuickNo)
    }

    /// Answers the caller.
    pub fn answer(mut self, reply: Reply) {
        if let Some(answer) = self.reply.take() {
            answer(reply);
        }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        if let Some(answer) = self.reply.take() {
            #[cfg(tidewall_mutants)]
            if tidewall_mutant::active(tidewall_mutant::Mutant::LostMailboxIsSuccess) {
                return answer(Ok(mutants::success(&self.command)));
            }
            answer(Err(Refusal::Unknown("the request was lost inside the node".into())));
        }
    }
}

#[cfg(tidewall_mutants)]
mod mutants {
    use tidewall_machine::{Answer, Command, Decision, Op};

    /// What somebody would answer who takes a lost request for a decided one.
    pub fn success(command: &Command) -> Decision {
        let answer = match &command.op {
            Op::Module { module, .. } => Answer::Done { module: *module, outcome: Vec::new() },
            Op::Seal | Op::System(_) => Answer::System,
        };
        Decision { receipt: None, answer, replayed: false }
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Request").field("command", &self.command).finish_non_exhaustive()
    }
}
