//! The checks of an audit, each over plain data. A check only adds findings; it must never take one back.

use std::collections::{BTreeMap, BTreeSet};

use uuid::Uuid;

use super::{Answer, Asked, Findings, Kind, SeenEvent, SeenTicket, SeenTier, Stamp};

/// Counters of each tier.
pub(super) fn check_stock(event: &SeenEvent, findings: &mut Findings) {
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
pub(super) fn check_lists(event: &SeenEvent, findings: &mut Findings) {
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
pub(super) fn check_acknowledged(
    asked: &[Asked],
    tickets: &BTreeMap<&str, &SeenTicket>,
    findings: &mut Findings,
) {
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
pub(super) fn check_refusals(asked: &[Asked], events: &[SeenEvent], findings: &mut Findings) {
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
pub(super) fn check_receipts(asked: &[Asked], events: &[SeenEvent], findings: &mut Findings) {
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
