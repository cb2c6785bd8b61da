//! What apply says to a command: the answer, why it may be no, and where in the log it was decided.
//!
//! Answers are remembered in their byte form, so that form never changes; a new kind of answer gets a new tag.

use prost::Message as _;
use tidewall_domain::codec::{DecodeError, Reader, Writer};
use tidewall_messages::Rejection;

use crate::EXPIRY_AHEAD_MS_MAX;

/// Tag of [`RejectReason::Sealed`].
pub(crate) const SEALED: u8 = 9;

/// Where in the log a command was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receipt {
    /// Incarnation of the group.
    pub incarnation: u64,
    /// Raft term of the entry.
    pub term: u64,
    /// Log index of the entry.
    pub index: u64,
    /// Position in the entry.
    pub position: u32,
    /// First 8 bytes of the chain hash up to and including the entry.
    pub chain: u64,
    /// Log time of the decision.
    pub decided_ms: u64,
}

impl Receipt {
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u64(self.incarnation);
        w.u64(self.term);
        w.u64(self.index);
        w.u32(self.position);
        w.key_u64(self.chain);
        w.u64(self.decided_ms);
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self {
            incarnation: r.u64()?,
            term: r.u64()?,
            index: r.u64()?,
            position: r.u32()?,
            chain: r.key_u64()?,
            decided_ms: r.u64()?,
        })
    }
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RejectReason {
    /// By a module.
    #[error("{}", .0.message)]
    Module(Rejection),
    /// The command came after its `expires_ms`; nothing is remembered.
    #[error("the request reached its decision after its deadline and was not executed: send it again")]
    Expired,
    /// The request id was used for something else; nothing is remembered.
    #[error("this request id was used before with other content: make a new id for a new request")]
    IdReused,
    /// The request id is older than what is remembered; nothing is remembered.
    #[error(
        "this request id is older than the outcomes that the region remembers: make a new id for a new request"
    )]
    IdForgotten,
    /// The request id is from the future; nothing is remembered.
    #[error("this request id carries a time in the future: set the clock of the machine that made it")]
    IdFromFuture,
    /// The request id was sealed before anything was decided under it.
    #[error("this request id was sealed: nothing was decided under it and nothing will be; make a new id")]
    Sealed,
    /// The command would be valid for longer than any deadline; nothing is remembered.
    #[error(
        "the request would be valid for {ahead_ms} ms by the region's time, at most {EXPIRY_AHEAD_MS_MAX} ms are          possible, and was not executed: the gateway's clock is ahead; set it"
    )]
    ExpiresTooLate {
        /// How long, milliseconds.
        ahead_ms: u64,
    },
    /// An invariant broke; the changes were taken back.
    #[error("the command would have broken an invariant and was not executed ({0}): report this")]
    InternalInvariant(String),
    /// Too much is under way with another group for one more saga; nothing is remembered.
    #[error("too much is under way with shard group {0}: send the request again, later")]
    Full(u32),
    /// A system command cannot be carried out.
    #[error("{0}")]
    System(String),
}

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Yes.
    Done {
        /// Number of the module.
        module: u8,
        /// The encoded outcome of the module: what it achieved, with all that an answer says.
        outcome: Vec<u8>,
    },
    /// A system command was carried out.
    System,
    /// No.
    Rejected(RejectReason),
}

impl Answer {
    pub(crate) fn encode(&self, w: &mut Writer) {
        match self {
            Self::System => w.u8(0),
            Self::Done { module, outcome } => {
                w.u8(1);
                w.u8(*module);
                w.bytes(outcome);
            }
            Self::Rejected(RejectReason::Module(rejection)) => {
                w.u8(2);
                w.bytes(&rejection.encode_to_vec());
            }
            Self::Rejected(RejectReason::Expired) => w.u8(3),
            Self::Rejected(RejectReason::IdReused) => w.u8(4),
            Self::Rejected(RejectReason::IdForgotten) => w.u8(5),
            Self::Rejected(RejectReason::IdFromFuture) => w.u8(6),
            Self::Rejected(RejectReason::InternalInvariant(what)) => {
                w.u8(7);
                w.str(what);
            }
            Self::Rejected(RejectReason::System(what)) => {
                w.u8(8);
                w.str(what);
            }
            Self::Rejected(RejectReason::Sealed) => w.u8(SEALED),
            Self::Rejected(RejectReason::ExpiresTooLate { ahead_ms }) => {
                w.u8(10);
                w.u64(*ahead_ms);
            }
            Self::Rejected(RejectReason::Full(group)) => {
                w.u8(11);
                w.u32(*group);
            }
        }
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(match r.u8()? {
            0 => Self::System,
            1 => Self::Done { module: r.u8()?, outcome: r.bytes()?.to_vec() },
            2 => {
                let rejection =
                    Rejection::decode(r.bytes()?).map_err(|_| DecodeError::Message("rejection"))?;
                Self::Rejected(RejectReason::Module(rejection))
            }
            3 => Self::Rejected(RejectReason::Expired),
            4 => Self::Rejected(RejectReason::IdReused),
            5 => Self::Rejected(RejectReason::IdForgotten),
            6 => Self::Rejected(RejectReason::IdFromFuture),
            7 => Self::Rejected(RejectReason::InternalInvariant(r.str()?.into())),
            8 => Self::Rejected(RejectReason::System(r.str()?.into())),
            SEALED => Self::Rejected(RejectReason::Sealed),
            10 => Self::Rejected(RejectReason::ExpiresTooLate { ahead_ms: r.u64()? }),
            11 => Self::Rejected(RejectReason::Full(r.u32()?)),
            tag => return Err(DecodeError::Tag { what: "answer", tag: tag.into() }),
        })
    }
}

/// What apply says to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Where it was decided; absent when nothing is remembered.
    pub receipt: Option<Receipt>,
    /// Yes or no.
    pub answer: Answer,
    /// Decided by an earlier copy of the same request.
    pub replayed: bool,
}

impl Decision {
    /// A no that is not remembered.
    pub(crate) fn passing(reject: RejectReason) -> Self {
        Self { receipt: None, answer: Answer::Rejected(reject), replayed: false }
    }
}
