//! The hot events: nothing acknowledged is lost, nothing is oversold, each ticket has one owner. The load generator's audit
//! does it; this only words the history for it.

use tidewall_load::audit::{self, Asked};

use super::{Evidence, Fate, Verdict};
use crate::history::{Answer, Ask, Traffic, Yes};

/// Checks.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::new("sale: nothing lost, nothing oversold, one owner per ticket");
    let on_sale = |name: &str| {
        evidence.planned.iter().any(|event| event.name == name && event.traffic == Traffic::Sale)
    };
    let asked: Vec<Asked> = evidence
        .ops
        .iter()
        .filter(|op| !op.again)
        .filter_map(|op| {
            let Ask::Buy { event, tier, quantity } = &op.ask else { return None };
            if !on_sale(event) {
                return None;
            }
            let answer = match (&op.answer, evidence.fate(op)) {
                (Answer::No(reason), _) if reason == "SOLD_OUT" => audit::Answer::SoldOut,
                (_, Fate::Done(Yes::Tickets(tickets), receipt)) => audit::Answer::Sold {
                    tickets: tickets.iter().map(|name| name.as_str().into()).collect(),
                    receipt: receipt.copied(),
                },
                (_, Fate::Done(..) | Fate::Open) => audit::Answer::Unknown,
                (_, Fate::Not) => audit::Answer::Not,
            };
            Some(Asked {
                request_id: op.request_id?,
                owner: op.subject.clone(),
                event: event.clone(),
                tier_id: tier.clone(),
                quantity: *quantity,
                answer,
            })
        })
        .collect();
    verdict.looked_at = asked.len() as u64;
    let of_sale: Vec<_> = evidence.seen.iter().filter(|seen| on_sale(&seen.name)).cloned().collect();
    let findings = audit::audit(&asked, &of_sale);
    verdict.violations = findings.counts.values().sum();
    verdict.examples = findings.examples;
    verdict
}

#[cfg(test)]
mod tests {
    use tidewall_load::audit::{SeenEvent, SeenTicket, SeenTier};

    use super::*;
    use crate::check::example::{buy, op, ticket, yes};
    use crate::history::Planned;

    /// Ann bought t1; Bob's answer was lost.
    fn sound() -> Evidence {
        let bought = op(buy("e"), (0, 5), yes(ticket("t1"), 3));
        let seen = SeenTicket {
            name: "t1".into(),
            owner: "ann".into(),
            tier_id: "ga".into(),
            seat: String::new(),
            request_id: bought.request_id.unwrap_or_default().to_string(),
            valid: true,
        };
        let tier = SeenTier { tier_id: "ga".into(), capacity: 2, planned: 2, free: 1, held: 0, sold: 1 };
        Evidence {
            ops: vec![bought, op(buy("e"), (1, 9), Answer::Unknown("late".into()))],
            planned: vec![Planned {
                name: "e".into(),
                region: "regions/r".into(),
                tiers: vec![("ga".into(), 2)],
                traffic: Traffic::Sale,
            }],
            seen: vec![SeenEvent {
                name: "e".into(),
                region: "regions/r".into(),
                quota: 10,
                tiers: vec![tier],
                tickets: vec![seen],
            }],
            ..Evidence::default()
        }
    }

    #[test]
    fn a_sound_sale_passes() {
        let verdict = check(&sound());
        assert!(verdict.ok(), "{verdict:?}");
        assert_eq!(verdict.looked_at, 2);
    }

    #[test]
    fn a_lost_ticket_is_found() {
        let mut evidence = sound();
        evidence.seen[0].tickets.clear();
        assert!(check(&evidence).examples.iter().any(|words| words.contains("lost")));
    }

    #[test]
    fn a_sale_after_a_sure_no_is_found() {
        let mut evidence = sound();
        evidence.ops[0].answer = Answer::Undecided("REGION_UNAVAILABLE".into());
        assert!(check(&evidence).examples.iter().any(|words| words.contains("although the answer was no")));
    }

    #[test]
    fn an_oversell_is_found() {
        let mut evidence = sound();
        evidence.seen[0].tiers[0].planned = 0;
        evidence.seen[0].tiers[0].capacity = 0;
        assert!(check(&evidence).examples.iter().any(|words| words.contains("oversold")));
    }
}
