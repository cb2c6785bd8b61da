//! Holds, confirmations, releases and cancellations: every acknowledged step shows in what was read back, every ticket has
//! one owner and one request, and places add up.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_load::audit::{SeenEvent, SeenTicket};
use uuid::Uuid;

use super::{Evidence, Fate, Verdict};
use crate::history::{Ask, Op, Traffic, Yes};

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("holds and tickets: nothing lost, one owner, places add up");
    let seen: BTreeMap<&str, &SeenTicket> = evidence
        .seen
        .iter()
        .flat_map(|event| event.tickets.iter().map(|ticket| (ticket.name.as_str(), ticket)))
        .collect();
    let story = Story::of(evidence, &mut verdict);
    for (name, op) in &story.given {
        match seen.get(name.as_str()) {
            None => verdict.add(|| format!("acknowledged ticket {name} is lost")),
            Some(ticket) => {
                if ticket.owner != op.subject {
                    verdict.add(|| format!("{name} was {}'s and is {}'s", op.subject, ticket.owner));
                }
                if !ticket.valid && !story.cancelled.contains(name) && !story.maybe_cancelled.contains(name) {
                    verdict.add(|| format!("{name} is cancelled, and nobody asked for that"));
                }
            }
        }
    }
    for name in &story.cancelled {
        if seen.get(name.as_str()).is_none_or(|ticket| ticket.valid) {
            verdict.add(|| format!("the cancellation of {name} was acknowledged and is lost"));
        }
    }
    for event in evidence.seen.iter().filter(|seen| of_ledger(evidence, seen)) {
        check_event(evidence, event, &story, &mut verdict);
    }
    verdict
}

/// Hot events have an audit of their own.
fn of_ledger(evidence: &Evidence, seen: &SeenEvent) -> bool {
    evidence.planned.iter().any(|event| event.name == seen.name && event.traffic != Traffic::Sale)
}

/// What calls say about holds and tickets.
#[derive(Default)]
struct Story<'a> {
    /// Tickets that were acknowledged, with the call that made them.
    given: BTreeMap<String, &'a Op>,
    /// Tickets whose cancellation was acknowledged, and those where nobody knows.
    cancelled: BTreeSet<String>,
    maybe_cancelled: BTreeSet<String>,
    /// Requests that made tickets, or may have.
    makers: BTreeSet<Uuid>,
    /// Places held by event: at least and at most.
    held: BTreeMap<String, (i64, i64)>,
}

impl<'a> Story<'a> {
    fn of(evidence: &'a Evidence, verdict: &mut Verdict) -> Self {
        let mut story = Self::default();
        // Who ended a hold, for sure or perhaps.
        let (mut ended, mut maybe_ended) = (BTreeSet::new(), BTreeSet::new());
        let mut holds: Vec<(&str, Option<&str>, i64)> = Vec::new();
        let writes =
            evidence.ops.iter().filter(|op| op.ask.is_write() && !op.again && op.traffic != Traffic::Sale);
        for op in writes {
            verdict.looked_at += 1;
            let fate = evidence.fate(op);
            if fate == Fate::Not {
                continue;
            }
            match &op.ask {
                Ask::Buy { quantity, .. } | Ask::Confirm { quantity, .. } => {
                    story.makers.extend(op.request_id);
                    if let Fate::Done(Yes::Tickets(tickets), _) = &fate {
                        if tickets.len() as u64 != u64::from(*quantity) {
                            verdict.add(|| format!("{:?} was asked for and {tickets:?} given", op.ask));
                        }
                        for name in tickets {
                            if let Some(other) = story.given.insert(name.clone(), op) {
                                verdict.add(|| {
                                    format!(
                                        "{name} was given to {:?} and {:?}",
                                        other.request_id, op.request_id
                                    )
                                });
                            }
                        }
                    }
                }
                Ask::Cancel { ticket } => {
                    let set = match fate {
                        Fate::Done(..) => &mut story.cancelled,
                        _ => &mut story.maybe_cancelled,
                    };
                    set.insert(ticket.clone());
                }
                Ask::Hold { event, quantity, .. } => {
                    let name = match &fate {
                        Fate::Done(Yes::Hold(name), _) => Some(name.as_str()),
                        _ => None,
                    };
                    holds.push((event, name, i64::from(*quantity)));
                }
                _ => {}
            }
            if let Ask::Confirm { hold, .. } | Ask::Release { hold } = &op.ask {
                let set = if matches!(fate, Fate::Done(..)) { &mut ended } else { &mut maybe_ended };
                set.insert(hold.as_str());
            }
        }
        for (event, name, quantity) in holds {
            let (least, most) = story.held.entry(event.to_owned()).or_default();
            match name {
                Some(name) if ended.contains(name) => {}
                Some(name) => {
                    *most += quantity;
                    *least += if maybe_ended.contains(name) { 0 } else { quantity };
                }
                None => *most += quantity,
            }
        }
        story
    }
}

fn check_event(evidence: &Evidence, event: &SeenEvent, story: &Story<'_>, verdict: &mut Verdict) {
    let name = &event.name;
    let mut names = BTreeSet::new();
    for ticket in &event.tickets {
        if !names.insert(&ticket.name) {
            verdict.add(|| format!("{} is listed twice", ticket.name));
        }
        if !ticket.request_id.parse().is_ok_and(|id: Uuid| story.makers.contains(&id)) {
            verdict.add(|| format!("{} was made by {:?}, which nobody sent", ticket.name, ticket.request_id));
        }
    }
    for tier in &event.tiers {
        let planned = evidence.planned.iter().find(|planned| planned.name == *name);
        let capacity = planned.and_then(|planned| planned.tiers.iter().find(|(id, _)| *id == tier.tier_id));
        let capacity = capacity.map_or(tier.capacity, |(_, capacity)| *capacity);
        let valid =
            event.tickets.iter().filter(|ticket| ticket.valid && ticket.tier_id == tier.tier_id).count();
        let valid = i64::try_from(valid).unwrap_or(i64::MAX);
        if valid > capacity || tier.sold > capacity {
            verdict.add(|| format!("{name}: oversold: {valid} of {capacity}"));
        }
        if tier.free + tier.held + tier.sold != capacity
            || tier.free < 0
            || tier.held < 0
            || valid != tier.sold
        {
            verdict.add(|| format!("{name}: places do not add up: {tier:?}, {valid} valid tickets"));
        }
    }
    let held: i64 = event.tiers.iter().map(|tier| tier.held).sum();
    let (least, most) = story.held.get(name).copied().unwrap_or_default();
    if held < least || held > most {
        verdict.add(|| format!("{name}: {held} places are held, the calls explain {least} to {most}"));
    }
}

#[cfg(test)]
mod tests {
    use tidewall_load::audit::SeenTier;

    use super::*;
    use crate::check::example::{op, yes};
    use crate::history::{Answer, Planned};

    fn mix(ask: Ask, answer: Answer) -> Op {
        Op { traffic: Traffic::Mix, ..op(ask, (0, 5), answer) }
    }

    fn hold() -> Ask {
        Ask::Hold { event: "e".into(), tier: "ga".into(), quantity: 2 }
    }

    fn tickets(names: [&str; 2]) -> Yes {
        Yes::Tickets(names.map(String::from).to_vec())
    }

    /// Two holds of two; one was confirmed, and one of its tickets cancelled.
    fn sound() -> Evidence {
        let confirm = mix(Ask::Confirm { hold: "h1".into(), quantity: 2 }, yes(tickets(["t1", "t2"]), 3));
        let maker = confirm.request_id.unwrap_or_default().to_string();
        let ticket = |name: &str, valid| SeenTicket {
            name: name.into(),
            owner: "ann".into(),
            tier_id: "ga".into(),
            seat: String::new(),
            request_id: maker.clone(),
            valid,
        };
        let tier = SeenTier { tier_id: "ga".into(), capacity: 10, planned: 10, free: 7, held: 2, sold: 1 };
        Evidence {
            seen: vec![SeenEvent {
                name: "e".into(),
                region: "regions/r".into(),
                quota: 10,
                tiers: vec![tier],
                tickets: vec![ticket("t1", true), ticket("t2", false)],
            }],
            ops: vec![
                mix(hold(), yes(Yes::Hold("h1".into()), 1)),
                mix(hold(), yes(Yes::Hold("h2".into()), 2)),
                confirm,
                mix(Ask::Cancel { ticket: "t2".into() }, yes(Yes::Undone, 4)),
            ],
            planned: vec![Planned {
                name: "e".into(),
                region: "regions/r".into(),
                tiers: vec![("ga".into(), 10)],
                traffic: Traffic::Mix,
            }],
            ..Evidence::default()
        }
    }

    #[track_caller]
    fn finds(evidence: &Evidence, what: &str) {
        let verdict = check(evidence);
        assert!(verdict.examples.iter().any(|words| words.contains(what)), "no {what:?} in {verdict:?}");
    }

    #[test]
    fn a_sound_story_passes() {
        let verdict = check(&sound());
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 4);
    }

    #[test]
    fn a_lost_ticket_and_a_lost_cancellation_are_found() {
        let mut evidence = sound();
        evidence.seen[0].tickets.remove(0);
        finds(&evidence, "t1 is lost");
        let mut evidence = sound();
        evidence.seen[0].tickets[1].valid = true;
        finds(&evidence, "cancellation of t2");
    }

    #[test]
    fn a_wrong_owner_and_a_ticket_given_twice_are_found() {
        let mut evidence = sound();
        evidence.seen[0].tickets[0].owner = "eve".into();
        finds(&evidence, "is eve's");
        let mut evidence = sound();
        let twice = Ask::Confirm { hold: "h2".into(), quantity: 2 };
        evidence.ops.push(mix(twice, yes(tickets(["t1", "t3"]), 9)));
        finds(&evidence, "t1 was given to");
    }

    #[test]
    fn a_cancellation_that_nobody_asked_for_is_found() {
        let mut evidence = sound();
        evidence.ops.pop();
        finds(&evidence, "nobody asked for that");
        evidence.ops.push(mix(Ask::Cancel { ticket: "t2".into() }, Answer::Unknown("late".into())));
        assert!(check(&evidence).ok(), "an unanswered one explains it");
    }

    #[test]
    fn phantoms_oversells_and_sums_are_found() {
        let mut evidence = sound();
        evidence.seen[0].tickets[0].request_id = Uuid::nil().to_string();
        finds(&evidence, "nobody sent");
        let mut evidence = sound();
        evidence.planned[0].tiers[0].1 = 0;
        finds(&evidence, "oversold");
        let mut evidence = sound();
        evidence.seen[0].tiers[0].free = 8;
        finds(&evidence, "do not add up");
    }

    #[test]
    fn a_hold_that_vanished_is_found_and_one_that_may_be_is_not() {
        let mut evidence = sound();
        evidence.seen[0].tiers[0].held = 0;
        evidence.seen[0].tiers[0].free = 9;
        finds(&evidence, "0 places are held");
        evidence.ops.push(mix(Ask::Release { hold: "h2".into() }, Answer::Unknown("late".into())));
        assert!(check(&evidence).ok());
        let mut evidence = sound();
        evidence.ops.push(mix(hold(), Answer::Unknown("late".into())));
        assert!(check(&evidence).ok(), "a hold whose answer was lost may not be there");
    }
}
