//! What an audit has found: violations by kind, with examples in words. It judges nothing itself.

use std::collections::BTreeMap;
use std::fmt;

/// Examples that are spelled out for each kind of violation; the rest is only counted.
pub(super) const EXAMPLES_MAX: u64 = 5;

/// What can be wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// More tickets than capacity.
    Oversold,
    /// capacity ≠ free + held + sold, or a negative number.
    Conservation,
    /// The capacity is not the one that the event was created with.
    Capacity,
    /// The sold counter is not the number of valid tickets.
    Counter,
    /// A ticket number twice.
    DuplicateTicket,
    /// A seat twice.
    DuplicateSeat,
    /// A request id made more tickets than it asked for.
    DuplicateSale,
    /// Two purchases were given the same ticket.
    SharedTicket,
    /// An acknowledged ticket does not exist, or is cancelled.
    Lost,
    /// An acknowledged ticket belongs to somebody else.
    WrongOwner,
    /// An acknowledged purchase has fewer or more tickets than it asked for.
    WrongQuantity,
    /// A ticket that nobody asked for, or that differs from what was asked.
    Phantom,
    /// A ticket of an intent that was told "no" or "not decided".
    SoldAfterNo,
    /// A buyer has more than the quota.
    Quota,
    /// "Sold out" was said although enough was free to the end.
    RefusedWithStock,
    /// A purchase without receipt, or receipts that contradict each other.
    Receipt,
}

impl Kind {
    /// The violation as a phrase.
    pub fn phrase(self) -> &'static str {
        match self {
            Kind::Oversold => "oversold",
            Kind::Conservation => "stock not conserved",
            Kind::Capacity => "capacity changed",
            Kind::Counter => "sold counter differs from the tickets",
            Kind::DuplicateTicket => "ticket number listed twice",
            Kind::DuplicateSeat => "seat sold twice",
            Kind::DuplicateSale => "request decided twice",
            Kind::SharedTicket => "ticket given to two purchases",
            Kind::Lost => "acknowledged ticket lost",
            Kind::WrongOwner => "ticket of the wrong owner",
            Kind::WrongQuantity => "purchase of the wrong quantity",
            Kind::Phantom => "ticket that nobody asked for",
            Kind::SoldAfterNo => "sold although the answer was no",
            Kind::Quota => "quota exceeded",
            Kind::RefusedWithStock => "told sold out while there was stock",
            Kind::Receipt => "receipt missing or contradictory",
        }
    }
}

/// Result of an audit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Violations by kind; the number is of tickets, purchases or tiers, whichever the kind is about.
    pub counts: BTreeMap<Kind, u64>,
    /// The first few of each kind, in words.
    pub examples: Vec<String>,
    /// Tickets that are valid.
    pub tickets: u64,
    /// Different names among them.
    pub distinct_tickets: u64,
    /// Different owners among them.
    pub owners: u64,
    /// Receipts of acknowledged purchases.
    pub receipts: u64,
    /// Purchases whose answer stayed unknown and whose tickets exist.
    pub unknown_sold: u64,
}

impl Findings {
    /// Whether nothing is wrong.
    pub fn ok(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many violations of this kind there are.
    pub fn count(&self, kind: Kind) -> u64 {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Tickets beyond capacity.
    pub fn oversold(&self) -> u64 {
        self.count(Kind::Oversold)
    }

    /// Tickets, seats or sales that exist twice.
    pub fn duplicates(&self) -> u64 {
        [Kind::DuplicateTicket, Kind::DuplicateSeat, Kind::DuplicateSale, Kind::SharedTicket]
            .into_iter()
            .map(|kind| self.count(kind))
            .sum()
    }

    /// Acknowledged tickets that are gone.
    pub fn lost(&self) -> u64 {
        self.count(Kind::Lost)
    }

    /// Counts violations, and remembers the first few in words.
    pub(super) fn add(&mut self, kind: Kind, number: u64, words: impl FnOnce() -> String) {
        if number == 0 {
            return;
        }
        let seen = self.counts.entry(kind).or_insert(0);
        if *seen < EXAMPLES_MAX {
            self.examples.push(format!("{}: {}", kind.phrase(), words()));
        }
        *seen += number;
    }
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ok() {
            return f.write_str("ok");
        }
        let counts: Vec<String> =
            self.counts.iter().map(|(kind, number)| format!("{} ({number})", kind.phrase())).collect();
        write!(f, "{}. For example: {}", counts.join(", "), self.examples.join("; "))
    }
}
