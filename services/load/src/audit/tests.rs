//! Every kind of violation, shown to the audit one by one; and an honest sale.
#![allow(clippy::unwrap_used)]

use super::findings::EXAMPLES_MAX;
use super::*;

const EVENT: &str = "regions/north/events/gala";

fn id(n: u64) -> Uuid {
    Uuid::from_u128(0x0190_0000_0000_7000_8000_0000_0000_0000 + u128::from(n))
}

fn stamp(n: u64) -> Stamp {
    Stamp { incarnation: 1, index: 10 + n, position: 0, term: 3, chain_hash: 900 + n, decided_at_ms: 5_000 }
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
