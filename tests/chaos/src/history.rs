//! What clients did and what they were told: the one record that figures and checkers are made from.
//!
//! Plain data. It never interprets an answer beyond what the API promises, and never looks at a server.

use tidewall_load::audit::Stamp;
use uuid::Uuid;

/// Microseconds after the beginning of a run, by one steady clock of the client.
pub type Micros = u64;

/// What a call asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Buy `quantity` tickets of a tier.
    Buy {
        /// Resource name of the event.
        event: String,
        /// Tier.
        tier: String,
        /// Tickets.
        quantity: u32,
    },
    /// Take places of a tier out of the stock.
    Hold {
        /// Resource name of the event.
        event: String,
        /// Tier.
        tier: String,
        /// Places.
        quantity: u32,
    },
    /// Turn a hold (resource name) into tickets.
    Confirm {
        /// The hold.
        hold: String,
        /// Places that it has.
        quantity: u32,
    },
    /// Give a hold (resource name) back.
    Release {
        /// The hold.
        hold: String,
    },
    /// Cancel a ticket (resource name).
    Cancel {
        /// The ticket.
        ticket: String,
    },
    /// Read an event with its stock.
    Read {
        /// Resource name of the event.
        event: String,
        /// How old the answer may be; 0: it must be the latest.
        age: Micros,
    },
    /// Ask what was decided for an earlier request.
    Outcome {
        /// The request.
        of: Uuid,
    },
    /// Let nothing be decided under a request id any more, and say what was.
    Seal {
        /// The request id.
        of: Uuid,
    },
}

impl Ask {
    /// Whether the call changes something.
    pub fn is_write(&self) -> bool {
        !matches!(self, Self::Read { .. } | Self::Outcome { .. } | Self::Seal { .. })
    }
}

/// Stock of one tier, as a read showed it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stock {
    /// Tier.
    pub tier: String,
    /// Free places.
    pub free: i64,
    /// Held places.
    pub held: i64,
    /// Sold places.
    pub sold: i64,
}

/// What a "yes" carried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Yes {
    /// Names of tickets, in order.
    Tickets(Vec<String>),
    /// Name of a hold.
    Hold(String),
    /// A hold was given back, or a ticket cancelled.
    Undone,
    /// Stock of all tiers.
    Stock(Vec<Stock>),
    /// The outcome of an earlier request; `None` when the region has none.
    Outcome(Option<Box<Yes>>),
    /// A decided "no" as an outcome: its reason.
    Rejected(String),
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Answered.
    Yes {
        /// With what.
        what: Yes,
        /// Where it was decided; reads and quick refusals have none.
        receipt: Option<Stamp>,
    },
    /// The region said "no": the reason, such as `SOLD_OUT`.
    No(String),
    /// Refused for load, with a time to come back; surely not decided.
    Refused(String),
    /// Surely not decided, and the client saw an error all the same.
    Undecided(String),
    /// An error after which nobody knows.
    Unknown(String),
    /// An answer that no fault explains.
    Nonsense(String),
}

impl Answer {
    /// Whether a client would call this an error: neither a decision nor a refusal with a time to come back.
    pub fn is_error(&self) -> bool {
        matches!(self, Self::Undecided(_) | Self::Unknown(_) | Self::Nonsense(_))
    }

    /// The receipt, when there is one.
    pub fn receipt(&self) -> Option<&Stamp> {
        match self {
            Self::Yes { receipt, .. } => receipt.as_ref(),
            _ => None,
        }
    }
}

/// Which traffic a call belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Traffic {
    /// The running sale: purchases of hot events, and reads of them.
    Sale,
    /// Holds, confirmations, releases and cancellations on events of their own.
    Mix,
    /// A few clients on a small stock, for the search for linearizability; the number is the client's.
    Register(u32),
    /// A call of a scenario itself.
    Probe,
}

/// One call, from when it was due to its answer.
#[derive(Debug, Clone)]
pub struct Op {
    /// Resource name of the region.
    pub region: String,
    /// Which traffic.
    pub traffic: Traffic,
    /// What it asked.
    pub ask: Ask,
    /// Request id of a write.
    pub request_id: Option<Uuid>,
    /// Subject of the caller's token.
    pub subject: String,
    /// When it was due.
    pub due: Micros,
    /// When it was first sent.
    pub start: Micros,
    /// When it was answered.
    pub end: Micros,
    /// Whether it repeats a request id that was answered before.
    pub again: bool,
    /// How often it was sent again because its connection was closed.
    pub resent: u32,
    /// The answer.
    pub answer: Answer,
}

impl Op {
    /// From when it was due to its answer, microseconds.
    pub fn latency(&self) -> Micros {
        self.end.saturating_sub(self.due)
    }

    /// Whether it changed something for sure.
    pub fn is_acknowledged_write(&self) -> bool {
        self.ask.is_write() && matches!(self.answer, Answer::Yes { .. })
    }
}

/// An event as the run made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Resource name.
    pub name: String,
    /// Resource name of its region.
    pub region: String,
    /// Tiers with their capacity.
    pub tiers: Vec<(String, i64)>,
    /// Which traffic it is for.
    pub traffic: Traffic,
}

/// A thing that was done to the cluster, for figures and the timeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// When.
    pub at: Micros,
    /// What, in a few words.
    pub what: String,
    /// Regions that were led by what it hit: those whose next write is waited for.
    pub regions: Vec<String>,
    /// When the harm was undone, if it was.
    pub undone: Option<Micros>,
    /// When everything was as before: all replicas up, leaders spread.
    pub healed: Option<Micros>,
}
