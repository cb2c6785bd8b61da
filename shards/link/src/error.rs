//! Why a call over a link has no reply, and whether it may have arrived. Nothing else is decided here.

use tidewall_mutant::Mutant;

/// Why a call over a [`Link`](crate::Link) has no reply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// As many calls as the link may carry wait for their replies. Nothing was sent.
    #[error("the link already carries as many calls as it may: wait and call again")]
    Full,
    /// The call was written to a connection that broke before the reply came: the outcome is unknown.
    #[error("the connection broke before the reply came: the outcome is unknown")]
    Broken,
    /// The call was written to the connection and no reply came in time: the outcome is unknown.
    #[error("no reply came before the deadline: the outcome is unknown")]
    Deadline,
    /// The connection broke, or the deadline passed, before the call was written. Nothing was sent.
    #[error("the call was not sent")]
    NotSent,
    /// There is no connection, and the last attempt to make one failed. Nothing was sent.
    #[error("the other side cannot be reached: nothing was sent")]
    Unreachable,
}

impl LinkError {
    /// Whether the call may have reached the other side, so that its outcome is unknown.
    pub fn may_have_arrived(self) -> bool {
        if tidewall_mutant::active(Mutant::UnknownReportedAsFailed) {
            return false;
        }
        match self {
            Self::Broken | Self::Deadline => true,
            Self::Full | Self::NotSent | Self::Unreachable => false,
        }
    }
}
