//! The audit: compares what was asked and answered with what was read back. Pure: it gets plain data and
//! returns findings; it must never call anybody, so that every violation can be shown to it in a test.
//!
//! It assumes that nobody but this run sold, held or cancelled anything in the events it is shown.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use uuid::Uuid;

/// Examples that are spelled out for each kind of violation; the rest is only counted.
const EXAMPLES_MAX: u64 = 5;

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

    fn add(&mut self, kind: Kind, number: u64, words: impl FnOnce() -> String) {
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

/// Counters of each tier.
fn check_stock(event: &SeenEvent, findings: &mut Findings) {
    for tier in &event.tiers {
        let SeenTier { tier_id, capacity, planned, free, held, sold } = tier;
        let listed = event.tickets.iter().filter(|t| t.valid && t.tier_id == *tier_id).count() as i64;
        let limit = if *planned > 0 { *planned } else { *capacity };
        let excess = (*sold).max(listed).saturating_sub(limit).max(0);
        findings.add(Kind::Oversold, excess.unsigned_abs(), || {
            format!("{} tier {tier_id}: {} of {limit}", event.name, (*sold).max(listed))
        });
        let sum = i128::from(*free) + i128::from(*held) + i128::from(*sold);
        let broken = sum != i128::from(*capacity) || [*free, *held, *sold].iter().any(|n| *n < 0);
        findings.add(Kind::Conservation, u64::from(broken), || {
            format!(
                "{} tier {tier_id}: capacity {capacity}, free {free}, held {held}, sold {sold}",
                event.name
            )
        });
        findings.add(Kind::Capacity, u64::from(*planned > 0 && planned != capacity), || {
            format!("{} tier {tier_id}: created with {planned}, now {capacity}", event.name)
        });
        findings.add(Kind::Counter, sold.abs_diff(listed), || {
            format!("{} tier {tier_id}: counter {sold}, valid tickets {listed}", event.name)
        });
    }
}

/// Seats, tiers and quotas of one event.
fn check_lists(event: &SeenEvent, findings: &mut Findings) {
    let known: BTreeSet<&str> = event.tiers.iter().map(|tier| tier.tier_id.as_str()).collect();
    let mut seats: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut per_owner: BTreeMap<&str, i64> = BTreeMap::new();
    for ticket in event.tickets.iter().filter(|ticket| ticket.valid) {
        findings.add(Kind::Phantom, u64::from(!known.contains(ticket.tier_id.as_str())), || {
            format!("{} in tier {:?}, which the event has not", ticket.name, ticket.tier_id)
        });
        if !ticket.seat.is_empty() {
            let first = seats.insert((&ticket.tier_id, &ticket.seat));
            findings.add(Kind::DuplicateSeat, u64::from(!first), || {
                format!("{} tier {} seat {}", event.name, ticket.tier_id, ticket.seat)
            });
        }
        *per_owner.entry(&ticket.owner).or_insert(0) += 1;
    }
    for (owner, number) in per_owner {
        findings.add(Kind::Quota, u64::from(number > event.quota), || {
            format!("{owner} has {number} of {}, the quota is {}", event.name, event.quota)
        });
    }
}

/// Every acknowledged ticket exists, is of the right owner, and was given once.
fn check_acknowledged(asked: &[Asked], tickets: &BTreeMap<&str, &SeenTicket>, findings: &mut Findings) {
    let mut given: BTreeMap<&str, Uuid> = BTreeMap::new();
    for intent in asked {
        let Answer::Sold { tickets: names, .. } = &intent.answer else {
            continue;
        };
        let differs = names.len() as u64 != u64::from(intent.quantity);
        findings.add(Kind::WrongQuantity, u64::from(differs), || {
            format!("request {} asked for {} and got {}", intent.request_id, intent.quantity, names.len())
        });
        for name in names {
            let name: &str = name;
            if let Some(other) = given.insert(name, intent.request_id) {
                findings
                    .add(Kind::SharedTicket, 1, || format!("{name} to {other} and {}", intent.request_id));
            }
            match tickets.get(name) {
                Some(ticket) if ticket.valid => {
                    // A ticket that its own request gave to a stranger was reported with the list; here it
                    // counts when the ticket came from another request.
                    let same_request = ticket.request_id.parse().ok() == Some(intent.request_id);
                    findings.add(Kind::WrongOwner, u64::from(!same_request), || {
                        format!(
                            "{name} was acknowledged to {} (request {}) and is {}'s (request {})",
                            intent.owner, intent.request_id, ticket.owner, ticket.request_id
                        )
                    });
                }
                found => findings.add(Kind::Lost, 1, || {
                    let how = if found.is_some() { "is cancelled" } else { "does not exist" };
                    format!("{name} of {} (request {}) {how}", intent.owner, intent.request_id)
                }),
            }
        }
    }
}

/// Stock only shrinks in a run, so what is free at the end was free when "sold out" was said.
fn check_refusals(asked: &[Asked], events: &[SeenEvent], findings: &mut Findings) {
    let free: BTreeMap<(&str, &str), i64> = events
        .iter()
        .flat_map(|event| {
            event.tiers.iter().map(|tier| ((event.name.as_str(), tier.tier_id.as_str()), tier.free))
        })
        .collect();
    for intent in asked.iter().filter(|intent| intent.answer == Answer::SoldOut) {
        let left = free.get(&(intent.event.as_str(), intent.tier_id.as_str())).copied().unwrap_or(0);
        findings.add(Kind::RefusedWithStock, u64::from(left >= i64::from(intent.quantity)), || {
            format!(
                "request {} for {} of {} tier {}; {left} are free",
                intent.request_id, intent.quantity, intent.event, intent.tier_id
            )
        });
    }
}

/// Receipts of a region: one for each purchase, no place in the log used twice, and term, chain hash and
/// log time never contradict the order of the log.
fn check_receipts(asked: &[Asked], events: &[SeenEvent], findings: &mut Findings) {
    let region_of: BTreeMap<&str, &str> =
        events.iter().map(|event| (event.name.as_str(), event.region.as_str())).collect();
    let mut by_region: BTreeMap<&str, Vec<(Stamp, Uuid)>> = BTreeMap::new();
    for intent in asked {
        let Answer::Sold { receipt, .. } = &intent.answer else {
            continue;
        };
        match receipt {
            Some(stamp) => {
                findings.receipts += 1;
                let region = region_of.get(intent.event.as_str()).copied().unwrap_or_default();
                by_region.entry(region).or_default().push((*stamp, intent.request_id));
            }
            None => findings.add(Kind::Receipt, 1, || format!("request {} has none", intent.request_id)),
        }
    }
    for (region, mut stamps) in by_region {
        stamps.sort_unstable();
        for pair in stamps.windows(2) {
            let [(a, first), (b, second)] = pair else { continue };
            if a.incarnation != b.incarnation {
                continue;
            }
            let wrong = if a.index == b.index && a.position == b.position {
                Some("the same place in the log")
            } else if a.index == b.index && (a.term != b.term || a.chain_hash != b.chain_hash) {
                Some("the same entry with different terms or chain hashes: the log forked")
            } else if a.term > b.term {
                Some("a later entry of an earlier term")
            } else if a.decided_at_ms > b.decided_at_ms {
                Some("log time that runs backwards")
            } else {
                None
            };
            if let Some(wrong) = wrong {
                findings.add(Kind::Receipt, 1, || {
                    format!(
                        "requests {first} and {second} in {region}, indices {} and {}: {wrong}",
                        a.index, b.index
                    )
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const EVENT: &str = "regions/north/events/gala";

    fn id(n: u64) -> Uuid {
        Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(n))
    }

    fn stamp(n: u64) -> Stamp {
        Stamp {
            incarnation: 1,
            index: 10 + n,
            position: 0,
            term: 3,
            chain_hash: 900 + n,
            decided_at_ms: 5_000,
        }
    }

    fn name(n: u64) -> String {
        format!("{EVENT}/tickets/ga-{n}")
    }

    /// Three buyers for two tickets: two get one, the third is told that it is sold out.
    fn honest() -> (Vec<Asked>, Vec<SeenEvent>) {
        let asked = (1..=3)
            .map(|n| Asked {
                request_id: id(n),
                owner: format!("buyer-{n}"),
                event: EVENT.to_owned(),
                tier_id: "ga".to_owned(),
                quantity: 1,
                answer: if n < 3 {
                    Answer::Sold { tickets: vec![name(n).into()], receipt: Some(stamp(n)) }
                } else {
                    Answer::SoldOut
                },
            })
            .collect();
        let tickets = (1..=2)
            .map(|n| SeenTicket {
                name: name(n),
                owner: format!("buyer-{n}"),
                tier_id: "ga".to_owned(),
                seat: format!("A-{n}"),
                request_id: id(n).to_string(),
                valid: true,
            })
            .collect();
        let tier = SeenTier { tier_id: "ga".to_owned(), capacity: 2, planned: 2, free: 0, held: 0, sold: 2 };
        let event = SeenEvent {
            name: EVENT.to_owned(),
            region: "regions/north".to_owned(),
            quota: 1,
            tiers: vec![tier],
            tickets,
        };
        (asked, vec![event])
    }

    /// Doctors the honest sale and returns what the audit finds.
    fn doctored(doctor: impl FnOnce(&mut Vec<Asked>, &mut SeenEvent)) -> Findings {
        let (mut asked, mut events) = honest();
        doctor(&mut asked, &mut events[0]);
        audit(&asked, &events)
    }

    fn kinds(findings: &Findings) -> Vec<(Kind, u64)> {
        findings.counts.iter().map(|(kind, number)| (*kind, *number)).collect()
    }

    #[test]
    fn an_honest_sale_passes() {
        let (asked, events) = honest();
        let findings = audit(&asked, &events);
        assert_eq!(findings.to_string(), "ok");
        assert_eq!(
            (findings.tickets, findings.distinct_tickets, findings.owners, findings.receipts),
            (2, 2, 2, 2)
        );
    }

    #[test]
    fn a_ticket_beyond_capacity_is_oversold() {
        let findings = doctored(|asked, event| {
            asked[2].answer = Answer::Sold { tickets: vec![name(3).into()], receipt: Some(stamp(3)) };
            let extra = SeenTicket {
                name: name(3),
                owner: "buyer-3".to_owned(),
                seat: "A-3".to_owned(),
                request_id: id(3).to_string(),
                ..event.tickets[0].clone()
            };
            event.tickets.push(extra);
            event.tiers[0].sold = 3;
            event.tiers[0].free = -1;
        });
        assert_eq!(findings.oversold(), 1);
        // The counters still add up, but a negative number of free places is no stock.
        assert_eq!(kinds(&findings), [(Kind::Oversold, 1), (Kind::Conservation, 1)]);
    }

    #[test]
    fn raising_the_capacity_does_not_hide_an_oversale() {
        let findings = doctored(|_, event| {
            event.tiers[0].planned = 1;
        });
        assert_eq!(kinds(&findings), [(Kind::Oversold, 1), (Kind::Capacity, 1)]);
    }

    #[test]
    fn counters_that_do_not_add_up_are_found() {
        let findings = doctored(|_, event| event.tiers[0].held = 1);
        assert_eq!(kinds(&findings), [(Kind::Conservation, 1)]);
    }

    #[test]
    fn a_sold_counter_beside_the_tickets_is_found() {
        let findings = doctored(|_, event| {
            event.tiers[0].sold = 1;
            event.tiers[0].held = 1;
        });
        assert_eq!(kinds(&findings), [(Kind::Counter, 1)]);
    }

    #[test]
    fn a_ticket_number_listed_twice_is_a_duplicate() {
        let findings = doctored(|_, event| {
            event.quota = 2;
            let again = SeenTicket { seat: "A-9".to_owned(), ..event.tickets[0].clone() };
            event.tickets.push(again);
        });
        assert_eq!(findings.count(Kind::DuplicateTicket), 1);
        assert_eq!(findings.distinct_tickets, 2);
        assert_eq!(findings.duplicates(), 1);
    }

    #[test]
    fn a_seat_of_two_tickets_is_a_duplicate() {
        let findings = doctored(|_, event| event.tickets[1].seat = "A-1".to_owned());
        assert_eq!(kinds(&findings), [(Kind::DuplicateSeat, 1)]);
        assert_eq!(findings.duplicates(), 1);
    }

    #[test]
    fn a_request_decided_twice_is_a_duplicate() {
        let findings = doctored(|_, event| {
            event.quota = 2;
            event.tiers[0].capacity = 3;
            event.tiers[0].planned = 3;
            event.tiers[0].sold = 3;
            let again = SeenTicket { name: name(7), seat: "A-7".to_owned(), ..event.tickets[0].clone() };
            event.tickets.push(again);
        });
        assert_eq!(kinds(&findings), [(Kind::DuplicateSale, 1)]);
    }

    #[test]
    fn a_ticket_given_to_two_purchases_is_a_duplicate() {
        let findings = doctored(|asked, _| {
            asked[1].answer = Answer::Sold { tickets: vec![name(1).into()], receipt: Some(stamp(2)) };
        });
        assert_eq!(findings.count(Kind::SharedTicket), 1);
        assert_eq!(findings.count(Kind::WrongOwner), 1);
    }

    #[test]
    fn an_acknowledged_ticket_that_is_gone_or_cancelled_is_lost() {
        let gone = doctored(|_, event| {
            event.tickets.pop();
            event.tiers[0].sold = 1;
            event.tiers[0].held = 1;
        });
        assert_eq!(kinds(&gone), [(Kind::Lost, 1)]);
        let cancelled = doctored(|_, event| {
            event.tickets[1].valid = false;
            event.tiers[0].sold = 1;
            event.tiers[0].held = 1;
        });
        assert_eq!(kinds(&cancelled), [(Kind::Lost, 1)]);
    }

    #[test]
    fn a_ticket_of_somebody_else_is_found() {
        let findings = doctored(|_, event| event.tickets[1].owner = "mallory".to_owned());
        assert_eq!(kinds(&findings), [(Kind::WrongOwner, 1)]);
    }

    #[test]
    fn a_purchase_of_the_wrong_quantity_is_found() {
        let findings = doctored(|asked, _| asked[1].quantity = 2);
        assert_eq!(kinds(&findings), [(Kind::WrongQuantity, 1)]);
    }

    #[test]
    fn a_ticket_that_nobody_asked_for_is_found() {
        let stranger = doctored(|asked, _| {
            asked.remove(1);
        });
        assert_eq!(kinds(&stranger), [(Kind::Phantom, 1)]);
        let other_event = doctored(|asked, _| {
            asked[1].event = "regions/north/events/other".to_owned();
        });
        assert_eq!(other_event.count(Kind::Phantom), 1);
        let garbage = doctored(|asked, event| {
            asked[1].answer = Answer::Unknown;
            event.tickets[1].request_id = "not-an-id".to_owned();
        });
        assert_eq!(kinds(&garbage), [(Kind::Phantom, 1)]);
        let tier = doctored(|_, event| {
            event.tickets[1].tier_id = "vip".to_owned();
            event.tiers[0].sold = 1;
            event.tiers[0].held = 1;
        });
        assert_eq!(kinds(&tier), [(Kind::Phantom, 2)], "an unknown tier, and not the one asked for");
    }

    #[test]
    fn an_unknown_answer_may_have_bought_but_a_no_may_not() {
        let unknown = doctored(|asked, _| asked[1].answer = Answer::Unknown);
        assert!(unknown.ok());
        assert_eq!(unknown.unknown_sold, 1);
        let no = doctored(|asked, _| asked[1].answer = Answer::Not);
        assert_eq!(kinds(&no), [(Kind::SoldAfterNo, 1)]);
        let sold_out = doctored(|asked, _| asked[1].answer = Answer::SoldOut);
        assert_eq!(kinds(&sold_out), [(Kind::SoldAfterNo, 1)]);
    }

    #[test]
    fn a_buyer_beyond_the_quota_is_found() {
        let findings = doctored(|asked, event| {
            asked[1].owner = "buyer-1".to_owned();
            event.tickets[1].owner = "buyer-1".to_owned();
        });
        assert_eq!(kinds(&findings), [(Kind::Quota, 1)]);
    }

    #[test]
    fn sold_out_with_stock_left_is_found() {
        let findings = doctored(|_, event| {
            event.tiers[0].capacity = 3;
            event.tiers[0].planned = 3;
            event.tiers[0].free = 1;
        });
        assert_eq!(kinds(&findings), [(Kind::RefusedWithStock, 1)]);
        let not_enough = doctored(|asked, event| {
            asked[2].quantity = 2;
            event.tiers[0].capacity = 3;
            event.tiers[0].planned = 3;
            event.tiers[0].free = 1;
        });
        assert!(not_enough.ok(), "one free place is no stock for two");
    }

    #[test]
    fn receipts_must_exist_and_agree() {
        let change = |edit: fn(&mut Stamp)| {
            doctored(|asked, _| {
                let mut second = stamp(2);
                edit(&mut second);
                asked[1].answer = Answer::Sold { tickets: vec![name(2).into()], receipt: Some(second) };
            })
        };
        let missing = doctored(|asked, _| {
            asked[1].answer = Answer::Sold { tickets: vec![name(2).into()], receipt: None };
        });
        let broken = [
            missing,
            change(|s| s.index = 11),
            change(|s| {
                s.index = 11;
                s.position = 1;
            }),
            change(|s| s.term = 2),
            change(|s| s.decided_at_ms = 4_999),
        ];
        for findings in broken {
            assert_eq!(kinds(&findings), [(Kind::Receipt, 1)], "{findings}");
        }
        let fine = change(|s| {
            s.index = 11;
            s.position = 1;
            s.chain_hash = 901;
        });
        assert!(fine.ok(), "two purchases of one entry: {fine}");
        assert!(change(|s| s.incarnation = 2).ok(), "incarnations are not compared");
    }

    #[test]
    fn findings_name_examples_and_count_the_rest() {
        let findings = doctored(|asked, event| {
            asked.clear();
            event.tiers[0].capacity = 40;
            event.tiers[0].planned = 40;
            event.tiers[0].sold = 40;
            let model = event.tickets[0].clone();
            event.tickets = (0..40)
                .map(|n| SeenTicket {
                    name: name(n),
                    seat: String::new(),
                    owner: format!("b{n}"),
                    ..model.clone()
                })
                .collect();
        });
        assert_eq!(kinds(&findings), [(Kind::Phantom, 40)]);
        assert_eq!(findings.examples.len() as u64, EXAMPLES_MAX);
        assert!(findings.to_string().starts_with("ticket that nobody asked for (40). For example: "));
    }
}
