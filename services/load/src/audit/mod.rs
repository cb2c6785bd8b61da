//! The audit: compares what was asked and answered with what was read back. Pure: it gets plain data and
//! returns findings; it must never call anybody, so that every violation can be shown to it in a test.
//!
//! It assumes that nobody but this run sold, held or cancelled anything in the events it is shown.

mod checks;
mod findings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use checks::{check_acknowledged, check_lists, check_receipts, check_refusals, check_stock};
pub use findings::{Findings, Kind};

/// Where a purchase was decided: a receipt, reduced to what the audit compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Incarnation of the region's group.
    pub incarnation: u64,
    /// Log index of the entry.
    pub index: u64,
    /// Position in the entry.
    pub position: u32,
    /// Raft term of the entry.
    pub term: u64,
    /// Chain hash up to the entry, as a number.
    pub chain_hash: u64,
    /// Log time of the decision, milliseconds since 1970.
    pub decided_at_ms: i64,
}

/// How an intent ended, as far as the audit cares.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged: these tickets (resource names) were sold.
    Sold {
        /// Names of the tickets.
        tickets: Vec<Box<str>>,
        /// Where it was decided; must not be missing.
        receipt: Option<Stamp>,
    },
    /// Told "sold out".
    SoldOut,
    /// Told "no" for another reason, or surely not decided.
    Not,
    /// Nobody knows.
    Unknown,
}

/// One intent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Asked {
    /// Its request id, the same for all repetitions.
    pub request_id: Uuid,
    /// Subject who was to own the tickets.
    pub owner: String,
    /// Resource name of the event.
    pub event: String,
    /// Tier.
    pub tier_id: String,
    /// Tickets asked for.
    pub quantity: u32,
    /// How it ended.
    pub answer: Answer,
}

/// A tier as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTier {
    /// Tier.
    pub tier_id: String,
    /// Tickets there are, as read back.
    pub capacity: i64,
    /// Tickets there are, as the event was created; 0 when it does not matter.
    pub planned: i64,
    /// Free.
    pub free: i64,
    /// Held.
    pub held: i64,
    /// Sold.
    pub sold: i64,
}

/// A ticket as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenTicket {
    /// Resource name.
    pub name: String,
    /// Owner.
    pub owner: String,
    /// Tier.
    pub tier_id: String,
    /// Seat, empty without numbers.
    pub seat: String,
    /// Request id that made it.
    pub request_id: String,
    /// Whether it is valid (not cancelled).
    pub valid: bool,
}

/// An event as it was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenEvent {
    /// Resource name.
    pub name: String,
    /// Resource name of its region.
    pub region: String,
    /// Quota per buyer.
    pub quota: i64,
    /// Tiers.
    pub tiers: Vec<SeenTier>,
    /// Every ticket that was listed, in the order of the list.
    pub tickets: Vec<SeenTicket>,
}

/// Checks everything that was asked against everything that was read back.
pub fn audit(asked: &[Asked], events: &[SeenEvent]) -> Findings {
    let mut findings = Findings::default();
    let by_request: BTreeMap<Uuid, &Asked> = asked.iter().map(|intent| (intent.request_id, intent)).collect();
    let mut tickets: BTreeMap<&str, &SeenTicket> = BTreeMap::new();
    let mut sold_by_request: BTreeMap<Uuid, u64> = BTreeMap::new();
    let mut owners = BTreeSet::new();

    for event in events {
        check_stock(event, &mut findings);
        check_lists(event, &mut findings);
        for ticket in &event.tickets {
            let first = tickets.insert(&ticket.name, ticket).is_none();
            findings.add(Kind::DuplicateTicket, u64::from(!first), || ticket.name.clone());
            if !ticket.valid {
                continue;
            }
            findings.tickets += 1;
            if !first {
                // The same number again is no second sale by its request; it has just been reported.
                continue;
            }
            owners.insert(ticket.owner.as_str());
            let intent = ticket.request_id.parse().ok().and_then(|id: Uuid| by_request.get(&id).copied());
            let Some(intent) = intent.filter(|intent| intent.event == event.name) else {
                findings
                    .add(Kind::Phantom, 1, || format!("{} by request {:?}", ticket.name, ticket.request_id));
                continue;
            };
            *sold_by_request.entry(intent.request_id).or_insert(0) += 1;
            if ticket.owner != intent.owner || ticket.tier_id != intent.tier_id {
                let kind = if ticket.owner == intent.owner { Kind::Phantom } else { Kind::WrongOwner };
                findings.add(kind, 1, || {
                    format!(
                        "{} is {}'s in tier {}, asked for was {}'s in tier {}",
                        ticket.name, ticket.owner, ticket.tier_id, intent.owner, intent.tier_id
                    )
                });
            }
            if matches!(intent.answer, Answer::SoldOut | Answer::Not) {
                findings.add(Kind::SoldAfterNo, 1, || {
                    format!("{} by request {}", ticket.name, intent.request_id)
                });
            }
        }
    }
    findings.distinct_tickets = tickets.values().filter(|ticket| ticket.valid).count() as u64;
    findings.owners = owners.len() as u64;
    for (id, number) in &sold_by_request {
        let intent = by_request[id];
        let surplus = number.saturating_sub(u64::from(intent.quantity));
        findings.add(Kind::DuplicateSale, surplus, || {
            format!("request {id} asked for {} and made {number} tickets", intent.quantity)
        });
        findings.unknown_sold += u64::from(intent.answer == Answer::Unknown);
    }
    check_acknowledged(asked, &tickets, &mut findings);
    check_refusals(asked, events, &mut findings);
    check_receipts(asked, events, &mut findings);
    findings
}
