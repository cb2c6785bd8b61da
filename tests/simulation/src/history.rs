//! What clients asked and were told, and when: the material of the oracle.
//!
//! Times are microseconds of virtual time. A call that never returned may have been decided. **Never here:** how the
//! material is gathered, or judged.

use std::borrow::Cow;
use std::collections::BTreeMap;

/// Where in the log a command was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Receipt {
    /// Index of the entry.
    pub index: u64,
    /// Position in the entry.
    pub position: u32,
    /// Incarnation of the group.
    pub incarnation: u64,
    /// Raft term of the entry.
    pub term: u64,
    /// First bytes of the chain hash.
    pub chain: u64,
    /// Log time, ms since 1970.
    pub decided_ms: u64,
}

/// What a client asks a group to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Make an event: quota per buyer, and tiers with capacity and whether places are numbered.
    Create {
        /// The event.
        event: String,
        /// Most places of one buyer.
        quota: u32,
        /// Tiers: id, places, whether they have seats.
        tiers: Vec<(String, u64, bool)>,
    },
    /// Buy places.
    Buy {
        /// The event.
        event: String,
        /// The tier.
        tier: String,
        /// Places; the number of seats if any are named.
        quantity: u32,
        /// Seats by name; empty: any.
        seats: Vec<String>,
    },
    /// Hold places.
    Hold {
        /// The event.
        event: String,
        /// The tier.
        tier: String,
        /// Places.
        quantity: u32,
        /// How long, ms.
        ttl_ms: u32,
    },
    /// Turn a hold into tickets.
    Confirm {
        /// The event.
        event: String,
        /// The hold.
        hold: String,
    },
    /// Give a hold back.
    Release {
        /// The event.
        event: String,
        /// The hold.
        hold: String,
    },
    /// Give a ticket back.
    Cancel {
        /// The event.
        event: String,
        /// The ticket.
        ticket: String,
    },
    /// Sell places to somebody else: an item of a batch.
    Sell {
        /// The event.
        event: String,
        /// The tier.
        tier: String,
        /// Places.
        quantity: u32,
        /// Who is to have them.
        buyer: String,
    },
    /// Let nothing be decided under a request id that was used for something else before.
    Seal,
}

/// What an id that was sealed is refused for.
pub const SEALED: &str = "REQUEST_ID_SEALED";

/// What an id is refused for that may have been used before the group went back to an earlier state.
pub const FORGOTTEN: &str = "REQUEST_ID_EXPIRED";

/// The answer to a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// The event was made.
    Created,
    /// Places are held.
    Held {
        /// Id of the hold.
        hold: String,
        /// Places.
        quantity: u32,
        /// Seats, in a numbered tier.
        seats: Vec<String>,
        /// Void from this log time on, ms.
        expires_ms: u64,
    },
    /// Places were sold.
    Sold {
        /// The tier.
        tier: String,
        /// Number of the first ticket.
        first: u64,
        /// Tickets.
        count: u32,
        /// Seats, in a numbered tier.
        seats: Vec<String>,
    },
    /// The hold was given back.
    Released,
    /// The ticket was given back.
    Cancelled,
    /// No, by its reason.
    Rejected(String),
}

/// An answer with its receipt; a quick no, and what is not remembered, has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// Where it was decided.
    pub receipt: Option<Receipt>,
    /// What.
    pub said: Said,
}

/// How a call ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// The group answered.
    Told(Told),
    /// It may or may not have been decided.
    Unknown,
    /// It was not decided: so the client was told.
    NotDecided,
}

/// Names a request within its group: principal and request id.
pub type RequestKey = (String, u128);

/// A command of a client.
#[derive(Debug, Clone)]
pub struct Call {
    /// The group.
    pub group: u32,
    /// Who asked.
    pub principal: String,
    /// Its request id.
    pub request_id: u128,
    /// What was asked.
    pub ask: Ask,
    /// When.
    pub invoked_us: u64,
    /// It is executed at no later log time than this, ms: its deadline, or a bound of it.
    pub expires_ms: u64,
    /// When and how it ended, if it did.
    pub returned: Option<(u64, End)>,
}

/// Numbers of a tier, as a reader saw them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierSeen {
    /// The tier.
    pub tier: String,
    /// All places.
    pub capacity: u64,
    /// Places that nobody has.
    pub free: u64,
    /// Places in holds.
    pub held: u64,
    /// Places of valid tickets.
    pub sold: u64,
}

/// What a reader saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// An event with its tiers; empty when there is no such event.
    Event {
        /// The event.
        event: String,
        /// Its tiers.
        tiers: Vec<TierSeen>,
    },
    /// What was decided for a request.
    Outcome {
        /// The request.
        key: RequestKey,
        /// `None`: nothing yet.
        told: Option<Told>,
    },
}

/// A read that was answered.
#[derive(Debug, Clone)]
pub struct Read {
    /// The group.
    pub group: u32,
    /// When it was asked.
    pub invoked_us: u64,
    /// When it was answered.
    pub returned_us: u64,
    /// How fresh the answer was to be.
    pub freshness: Freshness,
    /// Who brought along what was seen, if anybody did.
    pub session: Option<u64>,
    /// The answer.
    pub saw: Saw,
}

/// How fresh an answer must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Freshness {
    /// It shows everything that was acknowledged before.
    Latest,
    /// It shows everything that was acknowledged so long before, µs, and that whoever asks had seen.
    Session {
        /// How old the answer may be.
        age_us: u64,
    },
    /// It shows everything that was acknowledged so long before, µs.
    Stale {
        /// How old the answer may be.
        age_us: u64,
    },
}

impl Freshness {
    /// How old the answer may be, µs.
    pub fn age_us(self) -> u64 {
        match self {
            Self::Latest => 0,
            Self::Session { age_us } | Self::Stale { age_us } => age_us,
        }
    }
}

/// A ticket at the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketSeen {
    /// Its id.
    pub ticket: String,
    /// Who has it.
    pub owner: String,
    /// Its seat; empty without.
    pub seat: String,
    /// Its place was given back.
    pub cancelled: bool,
}

/// What everything looked like at the end, when nothing was under way any more.
#[derive(Debug, Clone, Default)]
pub struct Final {
    /// What was decided for every request ever made, by group and request.
    pub outcomes: BTreeMap<(u32, RequestKey), Option<Told>>,
    /// Tiers of all events, by group and event.
    pub events: BTreeMap<(u32, String), Vec<TierSeen>>,
    /// Tickets of all events, by group and event.
    pub tickets: BTreeMap<(u32, String), Vec<TicketSeen>>,
}

/// A group has begun a new incarnation in an earlier state: by force, because its majority was lost, or from a file.
#[derive(Debug, Clone)]
pub struct Cut {
    /// The incarnation that began.
    pub incarnation: u64,
    /// Highest term, and index, of the entries of earlier incarnations that are kept.
    pub kept: (u64, u64),
    /// Somebody may have seen until then, µs, what was not kept.
    pub seen_until_us: u64,
    /// What was not kept must not be decided again either: old request ids are refused.
    pub forgets_ids: bool,
    /// What was known by then, µs, must be kept: the state was taken later.
    pub taken_us: u64,
}

/// All that clients know of one run.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// Commands, in the order in which they were asked.
    pub calls: Vec<Call>,
    /// Reads, in the order in which they were answered.
    pub reads: Vec<Read>,
    /// The end.
    pub at_end: Final,
    /// When it began by right clocks, Unix ms.
    pub began_ms: u64,
    /// By group, how far log time is ahead of steady time behind each index at which it was corrected, ms.
    pub rebases: BTreeMap<u32, BTreeMap<u64, i64>>,
    /// By group, the states that it went back to.
    pub cuts: BTreeMap<u32, Vec<Cut>>,
}

impl Cut {
    /// Whether a decision is none any more.
    pub fn undoes(&self, receipt: &Receipt) -> bool {
        let (term, index) = self.kept;
        receipt.incarnation < self.incarnation && (receipt.index > index || receipt.term > term)
    }
}

impl History {
    /// What is left to be judged when groups have gone back to earlier states: a decision that was not kept may or may not be
    /// made again, and what was seen until then is of another past.
    pub fn since_cuts(&self) -> Cow<'_, Self> {
        if self.cuts.is_empty() {
            return Cow::Borrowed(self);
        }
        let mut left = self.clone();
        let cuts = |group: u32| self.cuts.get(&group).into_iter().flatten();
        for call in &mut left.calls {
            let invoked_us = call.invoked_us;
            let Some((returned_us, end)) = &mut call.returned else { continue };
            for cut in cuts(call.group) {
                match end {
                    End::Told(Told { receipt: Some(receipt), .. })
                        if cut.undoes(receipt) && *returned_us >= cut.taken_us =>
                    {
                        *end = End::Unknown;
                    }
                    End::Told(Told { receipt: None, said: Said::Rejected(_) })
                        if invoked_us <= cut.seen_until_us =>
                    {
                        *end = End::NotDecided;
                    }
                    _ => {}
                }
            }
        }
        let began_us = |read: &Read| read.invoked_us.saturating_sub(read.freshness.age_us());
        left.reads.retain(|read| cuts(read.group).all(|cut| began_us(read) > cut.seen_until_us));
        Cow::Owned(left)
    }

    /// Requests that were decided, undone by a return to a file, and decided once more.
    pub fn decided_again(&self) -> Vec<(u32, RequestKey)> {
        let again = |call: &&Call| {
            let Some((_, End::Told(Told { receipt: Some(receipt), .. }))) = &call.returned else {
                return false;
            };
            let key = (call.group, (call.principal.clone(), call.request_id));
            let now = self.at_end.outcomes.get(&key).and_then(|told| told.as_ref()?.receipt);
            let cuts = self.cuts.get(&call.group).into_iter().flatten();
            let mut undone = cuts.filter(|cut| cut.forgets_ids && cut.undoes(receipt));
            undone.any(|cut| now.is_some_and(|now| now.incarnation >= cut.incarnation))
        };
        let key = |call: &Call| (call.group, (call.principal.clone(), call.request_id));
        self.calls.iter().filter(again).map(key).collect()
    }

    /// Answers that say what was decided and was not kept.
    pub fn undone(&self) -> usize {
        let undone = |call: &&Call| {
            let Some((_, End::Told(Told { receipt: Some(receipt), .. }))) = &call.returned else {
                return false;
            };
            self.cuts.get(&call.group).into_iter().flatten().any(|cut| cut.undoes(receipt))
        };
        self.calls.iter().filter(undone).count()
    }

    /// Whether a request id may be refused as too old to be known, Unix ms by the id.
    pub fn may_be_forgotten(&self, group: u32, id: u128) -> bool {
        let made_ms = (id >> 80) as u64;
        let forgets = |cut: &Cut| cut.forgets_ids && made_ms <= self.began_ms + cut.seen_until_us / 1_000;
        self.cuts.get(&group).into_iter().flatten().any(forgets)
    }

    /// Steady time of a decision: its log time without what was corrected. What lasts, lasts in it.
    pub fn steady_ms(&self, group: u32, receipt: &Receipt) -> u64 {
        receipt.decided_ms.saturating_add_signed(-self.offset_ms(group, receipt.index))
    }

    /// How often log time was corrected before an index.
    pub fn rebases_before(&self, group: u32, index: u64) -> usize {
        self.rebases.get(&group).map_or(0, |rebases| rebases.range(..index).count())
    }

    /// How far log time is ahead of steady time at an index, ms.
    pub fn offset_ms(&self, group: u32, index: u64) -> i64 {
        let before = self.rebases.get(&group).and_then(|rebases| rebases.range(..index).next_back());
        before.map_or(0, |(_, offset_ms)| *offset_ms)
    }

    /// Group, principal and id of every request ever made, each once.
    pub fn keys(&self) -> Vec<(u32, String, u128)> {
        let key = |call: &Call| (call.group, call.principal.clone(), call.request_id);
        let mut keys: Vec<_> = self.calls.iter().map(key).collect();
        keys.sort();
        keys.dedup();
        keys
    }
}
