//! What the process says with its exit code, and the error that carries one.
//!
//! Scripts and the supervisor act on these numbers: a number, once documented, never changes its meaning.
//! This module never prints.

use std::fmt;

use tonic::{Code, Status};

/// Documented exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// Everything went well.
    Ok,
    /// The command ran, and what it checked is not so.
    Failed,
    /// The command line or an input file makes no sense.
    Usage,
    /// Nobody answered, or not in time.
    Unavailable,
    /// The service answered with a no.
    Refused,
    /// Something about this machine: a port, a directory, a disk.
    Environment,
    /// A node could not write or sync its storage.
    StorageFailed,
    /// A node's data are damaged, foreign or of another version.
    DataUnusable,
    /// A node was given an order that it carries out when it starts.
    StartAgain,
}

impl Exit {
    /// All codes, in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::Failed,
        Self::Usage,
        Self::Unavailable,
        Self::Refused,
        Self::Environment,
        Self::StorageFailed,
        Self::DataUnusable,
        Self::StartAgain,
    ];

    /// The number that the process ends with.
    pub const fn code(self) -> u8 {
        match self {
            Self::Ok => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::Unavailable => 3,
            Self::Refused => 4,
            Self::Environment => 5,
            Self::StorageFailed => 70,
            Self::DataUnusable => 71,
            Self::StartAgain => 75,
        }
    }

    /// What a gRPC status becomes: what may go well the next time is `Unavailable`, the rest is a refusal.
    pub const fn of_status(code: Code) -> Self {
        match code {
            Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::ResourceExhausted => {
                Self::Unavailable
            }
            _ => Self::Refused,
        }
    }

    /// What the number means, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Ok => "done",
            Self::Failed => "the command ran, but a check or an audit failed, or it was interrupted",
            Self::Usage => "the command line or an input file is wrong; nothing was changed",
            Self::Unavailable => "no cluster or gateway answered in time; try again",
            Self::Refused => "the service refused: not found, not allowed, or not possible now",
            Self::Environment => "this machine does not allow it: port in use, directory, disk",
            Self::StorageFailed => "a node could not write or sync its disk; it is not restarted by itself",
            Self::DataUnusable => {
                "a node's data are damaged, older than the others have seen them, foreign or of another version; it is not restarted"
            }
            Self::StartAgain => "a node carries out an order when it is started again, which must happen now",
        }
    }
}

/// The table of exit codes as the help shows it.
pub fn table() -> String {
    let mut text = String::from("Exit codes:\n");
    for exit in Exit::ALL {
        text.push_str(&format!("  {:>2}  {}\n", exit.code(), exit.meaning()));
    }
    text
}

/// Why a command did not do its work, with the code to end with.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// A failure with a documented code. The message says what happened, to what, and what to do.
    pub fn new(exit: Exit, message: impl fmt::Display) -> Self {
        Self { code: exit.code(), message: message.to_string() }
    }

    /// A failure of a part that chose its own code; what no process can end with becomes 1.
    pub fn with_code(code: i32, message: impl fmt::Display) -> Self {
        let code = u8::try_from(code).ok().filter(|code| *code != 0).unwrap_or(Exit::Failed.code());
        Self { code, message: message.to_string() }
    }

    /// What a gateway answered to `what`.
    pub fn from_status(what: impl fmt::Display, status: &Status) -> Self {
        let reason = match status.code() {
            Code::Unavailable => "nobody answered",
            // The client library says so when its own timer has run out.
            Code::DeadlineExceeded | Code::Cancelled => "no answer in time",
            Code::ResourceExhausted => "overloaded, try again",
            Code::Unauthenticated => "the caller is not known",
            Code::PermissionDenied => "not allowed",
            Code::NotFound => "not found",
            Code::Unimplemented => "this gateway cannot do that (another version, or not a Tidewall gateway)",
            _ => "refused",
        };
        Self::new(Exit::of_status(status.code()), {
            let separator = if status.message().is_empty() { "" } else { ": " };
            format!("cannot {what}: {reason}{separator}{}", status.message())
        })
    }

    /// The number to end the process with; never 0.
    pub fn code(&self) -> u8 {
        self.code
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_documented() {
        let table = table();
        for (position, exit) in Exit::ALL.iter().enumerate() {
            assert!(Exit::ALL[..position].iter().all(|other| other.code() < exit.code()));
            assert!(table.contains(&format!("{:>2}  {}", exit.code(), exit.meaning())));
        }
    }

    #[test]
    fn a_failure_never_ends_with_success() {
        assert_eq!(Failure::with_code(0, "x").code(), 1);
        assert_eq!(Failure::with_code(-1, "x").code(), 1);
        assert_eq!(Failure::with_code(256, "x").code(), 1);
        assert_eq!(Failure::with_code(70, "x").code(), 70);
    }

    #[test]
    fn statuses_that_may_pass_are_unavailable_and_the_rest_are_refusals() {
        let code = |code| Failure::from_status("list regions", &Status::new(code, "because")).code();
        assert_eq!(code(Code::Unavailable), 3);
        assert_eq!(code(Code::DeadlineExceeded), 3);
        assert_eq!(code(Code::ResourceExhausted), 3);
        assert_eq!(code(Code::NotFound), 4);
        assert_eq!(code(Code::FailedPrecondition), 4);
        let text = Failure::from_status("list regions", &Status::not_found("no such region")).to_string();
        assert_eq!(text, "cannot list regions: not found: no such region");
        let text = Failure::from_status("list regions", &Status::not_found("")).to_string();
        assert_eq!(text, "cannot list regions: not found");
    }
}
