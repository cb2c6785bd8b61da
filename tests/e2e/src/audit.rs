//! Compares what buyers were told with what the region holds afterwards.
//!
//! Pure: it takes a recorded history and the rows that were read back, and says what is wrong. It must never
//! talk to a cluster, so that its own tests can feed it doctored histories.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_proto::v1::{Event, Ticket, TicketState};

/// What one buyer knows about one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Acknowledged with these ticket names.
    Bought(Vec<String>),
    /// Refused, and therefore never executed.
    Refused,
    /// No answer: executed or not, but at most once.
    Unknown,
}

/// One request of a recorded history.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who asked.
    pub buyer: String,
    /// Under which id.
    pub request_id: String,
    /// In which tier.
    pub tier: String,
    /// For how many tickets.
    pub quantity: usize,
    /// What came back.
    pub answer: Answer,
}

/// Says what is wrong, one string each; empty means that the history and the rows agree.
///
/// `event` and `tickets` were read after the last request was answered or given up; the history holds every
/// request that was ever sent for this event, and nothing was cancelled.
pub fn audit(history: &[Attempt], event: &Event, tickets: &[Ticket]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut by_name: BTreeMap<&str, &Ticket> = BTreeMap::new();
    let mut by_request: BTreeMap<&str, Vec<&Ticket>> = BTreeMap::new();
    let mut seats = BTreeSet::new();
    let mut sold: BTreeMap<&str, i64> = BTreeMap::new();
    for ticket in tickets {
        if let Some(other) = by_name.insert(&ticket.name, ticket) {
            wrong.push(format!("{} is there twice: of {} and of {}", ticket.name, other.owner, ticket.owner));
        }
        by_request.entry(&ticket.request_id).or_default().push(ticket);
        if !ticket.seat.is_empty() && !seats.insert((&ticket.tier_id, &ticket.seat)) {
            wrong.push(format!("seat {} of tier {} was sold twice", ticket.seat, ticket.tier_id));
        }
        if ticket.state == TicketState::Valid as i32 {
            *sold.entry(&ticket.tier_id).or_default() += 1;
        } else {
            wrong.push(format!("{} is not valid though nothing was cancelled", ticket.name));
        }
    }

    let mut known = BTreeSet::new();
    let mut told: BTreeMap<&str, &str> = BTreeMap::new();
    for attempt in history {
        let id = attempt.request_id.as_str();
        if !known.insert(id) {
            wrong.push(format!("the history has request {id} twice: the test itself is wrong"));
        }
        let made = by_request.get(id).map_or(&[][..], Vec::as_slice);
        for ticket in made {
            if ticket.owner != attempt.buyer || ticket.tier_id != attempt.tier {
                wrong.push(format!(
                    "{} belongs to {} in tier {}, but request {id} was of {} for tier {}",
                    ticket.name, ticket.owner, ticket.tier_id, attempt.buyer, attempt.tier
                ));
            }
        }
        match &attempt.answer {
            Answer::Bought(names) => {
                if names.len() != attempt.quantity {
                    wrong.push(format!("request {id} asked for {} and was told {names:?}", attempt.quantity));
                }
                for name in names {
                    if let Some(other) = told.insert(name, id) {
                        wrong.push(format!("{name} was promised to requests {other} and {id}"));
                    }
                    match by_name.get(name.as_str()) {
                        None => wrong
                            .push(format!("lost: {} was told to own {name}, which is gone", attempt.buyer)),
                        Some(ticket) if ticket.request_id != id => {
                            wrong.push(format!("{name} was made by {}, not by {id}", ticket.request_id));
                        }
                        Some(_) => {}
                    }
                }
                if made.len() > names.len() {
                    wrong.push(format!("request {id} was executed twice: it made {} tickets", made.len()));
                }
            }
            Answer::Refused if !made.is_empty() => {
                wrong.push(format!("request {id} was refused and made {} tickets all the same", made.len()));
            }
            Answer::Refused => {}
            Answer::Unknown => {
                if !made.is_empty() && made.len() != attempt.quantity {
                    wrong.push(format!(
                        "request {id}, unanswered, made {} tickets instead of 0 or {}",
                        made.len(),
                        attempt.quantity
                    ));
                }
            }
        }
    }
    for (id, made) in &by_request {
        if !known.contains(id) {
            wrong.push(format!("{} tickets stem from request {id:?}, which nobody sent", made.len()));
        }
    }

    for tier in &event.tiers {
        let counted = sold.remove(tier.tier_id.as_str()).unwrap_or(0);
        if tier.free + tier.held + tier.sold != tier.capacity
            || tier.free < 0
            || tier.held < 0
            || tier.sold < 0
        {
            wrong.push(format!(
                "tier {}: capacity {} is not free {} + held {} + sold {}",
                tier.tier_id, tier.capacity, tier.free, tier.held, tier.sold
            ));
        }
        if counted != tier.sold {
            wrong.push(format!("tier {} says {} sold, {counted} tickets exist", tier.tier_id, tier.sold));
        }
        if counted > tier.capacity {
            wrong.push(format!("oversold: tier {} has {counted} of {} tickets", tier.tier_id, tier.capacity));
        }
    }
    for (tier, count) in sold {
        wrong.push(format!("{count} tickets are of tier {tier}, which the event does not have"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidewall_proto::v1::Tier;

    fn attempt(id: &str, buyer: &str, quantity: usize, answer: Answer) -> Attempt {
        Attempt { buyer: buyer.into(), request_id: id.into(), tier: "ga".into(), quantity, answer }
    }

    fn ticket(name: &str, owner: &str, request_id: &str) -> Ticket {
        Ticket {
            name: name.into(),
            owner: owner.into(),
            tier_id: "ga".into(),
            request_id: request_id.into(),
            state: TicketState::Valid as i32,
            ..Ticket::default()
        }
    }

    fn event(capacity: i64, sold: i64) -> Event {
        let tier = Tier { tier_id: "ga".into(), capacity, free: capacity - sold, sold, ..Tier::default() };
        Event { tiers: vec![tier], ..Event::default() }
    }

    /// Alice bought two, Bob was refused, Carol never learned that she bought one.
    fn sound() -> (Vec<Attempt>, Event, Vec<Ticket>) {
        let history = vec![
            attempt("r1", "alice", 2, Answer::Bought(vec!["ga-1".into(), "ga-2".into()])),
            attempt("r2", "bob", 1, Answer::Refused),
            attempt("r3", "carol", 1, Answer::Unknown),
            attempt("r4", "carol", 1, Answer::Unknown),
        ];
        let tickets =
            vec![ticket("ga-1", "alice", "r1"), ticket("ga-2", "alice", "r1"), ticket("ga-3", "carol", "r3")];
        (history, event(3, 3), tickets)
    }

    #[track_caller]
    fn finds(history: &[Attempt], event: &Event, tickets: &[Ticket], what: &str) {
        let wrong = audit(history, event, tickets);
        assert!(wrong.iter().any(|line| line.contains(what)), "no {what:?} in {wrong:?}");
    }

    #[test]
    fn a_sound_history_passes() {
        let (history, event, tickets) = sound();
        assert_eq!(audit(&history, &event, &tickets), Vec::<String>::new());
    }

    #[test]
    fn a_lost_acknowledgement_is_found() {
        let (history, _, mut tickets) = sound();
        tickets.remove(0);
        finds(&history, &event(3, 2), &tickets, "lost: alice");
    }

    #[test]
    fn an_oversell_is_found_though_the_counters_agree() {
        let (mut history, _, mut tickets) = sound();
        history.push(attempt("r5", "dave", 1, Answer::Bought(vec!["ga-4".into()])));
        tickets.push(ticket("ga-4", "dave", "r5"));
        finds(&history, &event(3, 4), &tickets, "oversold");
        // And when the tier hides it behind counters that add up.
        finds(&history, &event(3, 3), &tickets, "4 tickets exist");
    }

    #[test]
    fn a_ticket_with_two_owners_is_found() {
        let (mut history, event, mut tickets) = sound();
        history.push(attempt("r5", "dave", 1, Answer::Bought(vec!["ga-2".into()])));
        finds(&history, &event, &tickets, "ga-2 was promised to requests r1 and r5");
        tickets.push(ticket("ga-2", "dave", "r5"));
        finds(&history, &event, &tickets, "ga-2 is there twice");
    }

    #[test]
    fn a_request_executed_twice_is_found() {
        let (history, _, mut tickets) = sound();
        tickets.push(ticket("ga-4", "alice", "r1"));
        finds(&history, &event(9, 4), &tickets, "r1 was executed twice");
        let (history, _, mut tickets) = sound();
        tickets.push(ticket("ga-4", "carol", "r3"));
        finds(&history, &event(9, 4), &tickets, "r3, unanswered, made 2");
    }

    #[test]
    fn a_wrong_owner_is_found() {
        let (history, event, mut tickets) = sound();
        tickets[0].owner = "mallory".into();
        finds(&history, &event, &tickets, "belongs to mallory");
    }

    #[test]
    fn a_refused_request_that_was_executed_is_found() {
        let (history, _, mut tickets) = sound();
        tickets.push(ticket("ga-4", "bob", "r2"));
        finds(&history, &event(9, 4), &tickets, "r2 was refused and made 1");
    }

    #[test]
    fn a_ticket_from_nowhere_is_found() {
        let (history, _, mut tickets) = sound();
        tickets.push(ticket("ga-4", "ghost", "r9"));
        finds(&history, &event(9, 4), &tickets, "which nobody sent");
    }

    #[test]
    fn counters_that_do_not_add_up_and_seats_sold_twice_are_found() {
        let (history, mut broken, mut tickets) = sound();
        broken.tiers[0].held = 1;
        finds(&history, &broken, &tickets, "is not free");
        tickets[0].seat = "A-1".into();
        tickets[1].seat = "A-1".into();
        finds(&history, &event(3, 3), &tickets, "seat A-1 of tier ga was sold twice");
    }
}
