//! What a buyer does when all goes well, and the answers that the rules of a sale give.

use std::time::{Duration, SystemTime};

use tidewall_e2e::client::{buy_request, event_of, expect_refusal, region_of, request_id, retried, tier};
use tidewall_proto::v1::get_outcome_response::Result as Decided;
use tidewall_proto::v1::*;
use tonic::{Code, Response};
use tonic_types::StatusExt as _;

use crate::{buyer, first_region, organiser};

async fn sale(tiers: Vec<Tier>, quota: i32) -> String {
    let organiser = organiser().await;
    let region = first_region(&organiser).await;
    let event = Event { quota_per_buyer: quota, ..event_of(tiers) };
    organiser.create_event(&region, event).await.unwrap().name
}

fn seated(id: &str) -> Tier {
    let row = |label: &str| SeatRow { label: label.into(), seats: 3 };
    Tier { capacity: 0, seat_rows: vec![row("A"), row("B")], ..tier(id, 0) }
}

fn stock(event: &Event) -> (i64, i64, i64) {
    let tier = &event.tiers[0];
    assert_eq!(tier.capacity, tier.free + tier.held + tier.sold, "{tier:?}");
    (tier.free, tier.held, tier.sold)
}

#[tokio::test(flavor = "multi_thread")]
async fn regions_and_events_are_listed_page_by_page() {
    let organiser = organiser().await;
    let all = organiser.region_names().await.unwrap();
    assert_eq!(all.len(), 12, "the default topology has twelve regions: {all:?}");
    let mut paged = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListRegionsRequest { page_size: 5, page_token };
        let page = organiser.regions().list_regions(organiser.request(request)).await.unwrap().into_inner();
        assert!(page.regions.len() <= 5);
        paged.extend(page.regions.into_iter().map(|region| region.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, all);

    // The second region belongs to this test alone.
    let mut created = Vec::new();
    for _ in 0..5 {
        created.push(organiser.create_event(&all[1], event_of(vec![tier("ga", 1)])).await.unwrap().name);
    }
    created.sort();
    let mut listed = Vec::new();
    let mut page_token = String::new();
    loop {
        let request =
            ListEventsRequest { parent: all[1].clone(), page_size: 2, page_token, ..Default::default() };
        let page = organiser.events().list_events(organiser.request(request)).await.unwrap().into_inner();
        assert!(page.events.len() <= 2);
        listed.extend(page.events.into_iter().map(|event| event.name));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed, created);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_purchase_is_decided_once_and_remembered() {
    let event = sale(vec![tier("ga", 10)], 10).await;
    let (name, alice) = buyer().await;
    let id = request_id();
    let first = alice.buy(&event, "ga", 2, &id).await.unwrap();
    let purchase = first.purchase.clone().unwrap();
    assert_eq!(purchase.tickets.len(), 2, "{purchase:?}");
    let receipt = first.receipt.clone().unwrap();
    assert_eq!(receipt.region, region_of(&event));
    assert!(receipt.index > 0 && receipt.term > 0, "{receipt:?}");
    assert!(receipt.decide_time.is_some(), "{receipt:?}");
    assert_eq!(receipt.chain_hash.len(), 16, "{receipt:?}");

    // The same request again: the stored answer, and nothing more is sold.
    assert_eq!(alice.buy(&event, "ga", 2, &id).await.unwrap(), first);
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (8, 0, 2));

    // The same id for something else is a mistake of the caller.
    let other = alice.buy(&event, "ga", 3, &id).await;
    expect_refusal("same id, other quantity", other, Code::InvalidArgument, "REQUEST_ID_REUSED").unwrap();
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (8, 0, 2));

    // Who lost the answer can ask for it.
    let outcome = alice.outcome(region_of(&event), &id).await.unwrap();
    assert_eq!(outcome.state, OutcomeState::Decided as i32);
    assert_eq!(outcome.receipt, Some(receipt));
    assert_eq!(outcome.result, Some(Decided::Purchase(purchase.clone())));
    let never = alice.outcome(region_of(&event), &request_id()).await.unwrap();
    assert_eq!((never.state, never.result), (OutcomeState::Undecided as i32, None));

    // Ids are scoped to their principal: nobody else sees it, and may use the same one.
    let (_, bob) = buyer().await;
    let foreign = bob.outcome(region_of(&event), &id).await.unwrap();
    assert_eq!(foreign.state, OutcomeState::Undecided as i32);
    assert_ne!(bob.buy(&event, "ga", 2, &id).await.unwrap().purchase, first.purchase);

    // The tickets are there, and hers.
    let tickets = alice.tickets_of(&event, "").await.unwrap();
    let names: Vec<&String> = tickets.iter().map(|ticket| &ticket.name).collect();
    assert_eq!(names, purchase.tickets.iter().collect::<Vec<_>>());
    for ticket in &tickets {
        assert_eq!((ticket.owner.as_str(), ticket.request_id.as_str()), (name.as_str(), id.as_str()));
        assert_eq!(ticket.state, TicketState::Valid as i32);
        assert_eq!(ticket.price.as_ref().unwrap().minor_units, 4_500);
        let request = GetTicketRequest { name: ticket.name.clone(), ..Default::default() };
        let got = retried(async || alice.tickets().get_ticket(alice.request(request.clone())).await).await;
        assert_eq!(got.unwrap().into_inner().ticket.as_ref(), Some(ticket));
        let foreign = bob.tickets().get_ticket(bob.request(request.clone())).await;
        assert!(
            matches!(
                foreign.as_ref().map_err(|status| status.code()),
                Err(Code::PermissionDenied | Code::NotFound)
            ),
            "somebody else read {}: {foreign:?}",
            ticket.name
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_ticket_is_sold_to_one_of_many() {
    let event = sale(vec![tier("ga", 1)], 10).await;
    let mut crowd = Vec::new();
    for _ in 0..8 {
        let (_, session) = buyer().await;
        let event = &event;
        crowd.push(async move { session.buy(event, "ga", 1, &request_id()).await });
    }
    let mut winners = 0;
    for answer in futures_util::future::join_all(crowd).await {
        match answer {
            Ok(_) => winners += 1,
            refused => expect_refusal("a late buyer", refused, Code::FailedPrecondition, "SOLD_OUT").unwrap(),
        }
    }
    assert_eq!(winners, 1);
    let (_, watcher) = buyer().await;
    assert_eq!(stock(&watcher.event(&event).await.unwrap()), (0, 0, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hold_is_confirmed_released_or_expires() {
    let event = sale(vec![tier("ga", 10)], 10).await;
    let (name, alice) = buyer().await;
    let (_, bob) = buyer().await;

    let hold = alice.hold(&event, "ga", 3).await.unwrap();
    assert_eq!((hold.owner.as_str(), hold.quantity), (name.as_str(), 3));
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (7, 3, 0));

    // Somebody else's hold is not his to confirm or to release.
    let confirm = |hold: &Hold| ConfirmHoldRequest { name: hold.name.clone(), request_id: request_id() };
    let release = |hold: &Hold| ReleaseHoldRequest { name: hold.name.clone(), request_id: request_id() };
    let foreign = bob.tickets().confirm_hold(bob.request(confirm(&hold))).await;
    expect_refusal("confirm a foreign hold", foreign, Code::PermissionDenied, "NOT_OWNER").unwrap();
    let foreign = bob.tickets().release_hold(bob.request(release(&hold))).await;
    expect_refusal("release a foreign hold", foreign, Code::PermissionDenied, "NOT_OWNER").unwrap();
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (7, 3, 0));

    let confirmation = confirm(&hold);
    let call = async || alice.tickets().confirm_hold(alice.request(confirmation.clone())).await;
    let first = retried(call).await.map(Response::into_inner).unwrap();
    assert_eq!(first.purchase.as_ref().unwrap().tickets.len(), 3);
    let again =
        retried(async || alice.tickets().confirm_hold(alice.request(confirmation.clone())).await).await;
    assert_eq!(again.unwrap().into_inner(), first);
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (7, 0, 3));
    // Once confirmed it is no hold any more.
    let twice = alice.tickets().confirm_hold(alice.request(confirm(&hold))).await;
    assert!(twice.is_err(), "a hold was confirmed twice: {twice:?}");
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (7, 0, 3));

    let hold = alice.hold(&event, "ga", 2).await.unwrap();
    let request = release(&hold);
    retried(async || alice.tickets().release_hold(alice.request(request.clone())).await).await.unwrap();
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (7, 0, 3));

    // A hold of one second: its places come back by themselves, and it cannot be confirmed any more.
    let short = HoldTicketsRequest {
        parent: event.clone(),
        tier_id: "ga".into(),
        quantity: 7,
        seats: Vec::new(),
        ttl: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
        request_id: request_id(),
    };
    let held = retried(async || alice.tickets().hold_tickets(alice.request(short.clone())).await).await;
    let hold = held.unwrap().into_inner().hold.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let late = retried(async || alice.tickets().confirm_hold(alice.request(confirm(&hold))).await).await;
    // A hold that was swept meanwhile is not remembered; its message says that it may have expired.
    let status = late.unwrap_err();
    let said = (status.code(), status.get_details_error_info().map(|info| info.reason));
    let expired = (Code::FailedPrecondition, Some("HOLD_EXPIRED".to_owned()));
    let swept = (Code::NotFound, Some("HOLD_NOT_FOUND".to_owned()));
    assert!(said == expired || said == swept, "{status:?}");
    assert!(status.message().contains("expired"), "{status:?}");
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while stock(&alice.event(&event).await.unwrap()) != (7, 0, 3) {
        assert!(tokio::time::Instant::now() < deadline, "an expired hold keeps its places");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_has_in_any_region_is_found_by_its_owner_alone() {
    let organiser = organiser().await;
    let (name, alice) = buyer().await;
    let (_, bob) = buyer().await;
    let mut bought = Vec::new();
    for region in organiser.region_names().await.unwrap().iter().step_by(4).take(3) {
        let event = organiser.create_event(region, event_of(vec![tier("ga", 5)])).await.unwrap().name;
        let purchase = alice.buy(&event, "ga", 2, &request_id()).await.unwrap().purchase.unwrap();
        bob.buy(&event, "ga", 1, &request_id()).await.unwrap();
        bought.extend(purchase.tickets);
    }
    assert_eq!(bought.len(), 6);
    for page_size in [0, 1, 4] {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let search = SearchTicketsRequest { page_size, page_token, ..Default::default() };
            let call = async || alice.tickets().search_tickets(alice.request(search.clone())).await;
            let page = retried(call).await.unwrap().into_inner();
            assert!(page.unreachable.is_empty(), "{page:?}");
            found.extend(page.tickets.into_iter().map(|ticket| ticket.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(found, bought, "{page_size} a page");
    }
    let search = SearchTicketsRequest { owner: name, ..Default::default() };
    let foreign = bob.tickets().search_tickets(bob.request(search)).await;
    expect_refusal("a foreign search", foreign, Code::PermissionDenied, "NOT_YOUR_TICKETS").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_is_deleted_while_nothing_of_it_was_held_or_sold() {
    let organiser = organiser().await;
    let region = first_region(&organiser).await;
    let delete = |name: &str| DeleteEventRequest { name: name.into(), revision: 0, request_id: request_id() };
    let call = async |request: DeleteEventRequest| {
        retried(async || organiser.events().delete_event(organiser.request(request.clone())).await).await
    };
    let held = organiser.create_event(&region, event_of(vec![tier("ga", 1)])).await.unwrap().name;
    let (_, alice) = buyer().await;
    let (_, bob) = buyer().await;
    let hold = alice.hold(&held, "ga", 1).await.unwrap();
    expect_refusal("in use", call(delete(&held)).await, Code::FailedPrecondition, "EVENT_IN_USE").unwrap();
    let get = GetHoldRequest { name: hold.name.clone(), ..Default::default() };
    let seen = alice.tickets().get_hold(alice.request(get.clone())).await.unwrap().into_inner().hold.unwrap();
    assert_eq!((&seen.name, &seen.owner, seen.quantity), (&hold.name, &hold.owner, 1));
    let foreign = bob.tickets().get_hold(bob.request(get)).await;
    expect_refusal("a foreign hold", foreign, Code::PermissionDenied, "NOT_YOUR_HOLD").unwrap();
    let list = ListHoldsRequest { parent: held, owner: "*".into(), ..Default::default() };
    let all = organiser.tickets().list_holds(organiser.request(list)).await.unwrap().into_inner();
    assert_eq!(all.holds.len(), 1, "{all:?}");

    let unused = organiser.create_event(&region, event_of(vec![tier("ga", 1)])).await.unwrap().name;
    let request = delete(&unused);
    let done = call(request.clone()).await.unwrap().into_inner();
    assert_eq!(call(request.clone()).await.unwrap().into_inner(), done, "a copy gets the same answer");
    let outcome = organiser.outcome(&region, &request.request_id).await.unwrap();
    assert_eq!(outcome.result, Some(Decided::DeletedEvent(unused.clone())));
    let gone = organiser.event(&unused).await;
    expect_refusal("gone", gone.map(Response::new), Code::NotFound, "EVENT_NOT_FOUND").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_ticket_is_on_sale_again() {
    let event = sale(vec![tier("ga", 2)], 10).await;
    let (_, alice) = buyer().await;
    let (_, bob) = buyer().await;
    let tickets = alice.buy(&event, "ga", 2, &request_id()).await.unwrap().purchase.unwrap().tickets;
    let refused = bob.buy(&event, "ga", 1, &request_id()).await;
    expect_refusal("sold out", refused, Code::FailedPrecondition, "SOLD_OUT").unwrap();

    let cancel = CancelTicketRequest { name: tickets[0].clone(), request_id: request_id() };
    let foreign = bob.tickets().cancel_ticket(bob.request(cancel.clone())).await;
    expect_refusal("cancel a foreign ticket", foreign, Code::PermissionDenied, "NOT_OWNER").unwrap();
    let call = async || alice.tickets().cancel_ticket(alice.request(cancel.clone())).await;
    let cancelled = retried(call).await.unwrap().into_inner();
    assert_eq!(cancelled.ticket.as_ref().unwrap().state, TicketState::Cancelled as i32);
    let call = async || alice.tickets().cancel_ticket(alice.request(cancel.clone())).await;
    assert_eq!(retried(call).await.unwrap().into_inner(), cancelled);
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (1, 0, 1));

    let resold = bob.buy(&event, "ga", 1, &request_id()).await.unwrap().purchase.unwrap();
    assert_eq!(resold.tickets.len(), 1);
    assert_ne!(resold.tickets[0], tickets[0], "the number of a cancelled ticket was given away again");
    assert_eq!(stock(&alice.event(&event).await.unwrap()), (0, 0, 2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seat_has_one_owner() {
    let event = sale(vec![seated("stalls")], 10).await;
    let (_, alice) = buyer().await;
    let (_, bob) = buyer().await;
    let named = |seats: &[&str]| BuyTicketsRequest {
        seats: seats.iter().map(|seat| (*seat).to_owned()).collect(),
        ..buy_request(&event, "stalls", 0, &request_id())
    };
    let request = named(&["A-1", "A-2"]);
    let bought = retried(async || alice.tickets().buy_tickets(alice.request(request.clone())).await).await;
    assert_eq!(bought.unwrap().into_inner().purchase.unwrap().seats, ["A-1", "A-2"]);

    // All or nothing: B-1 stays free when A-2 is gone.
    let taken = bob.tickets().buy_tickets(bob.request(named(&["B-1", "A-2"]))).await;
    expect_refusal("a taken seat", taken, Code::FailedPrecondition, "SEAT_TAKEN").unwrap();
    let request = named(&["B-1"]);
    retried(async || bob.tickets().buy_tickets(bob.request(request.clone())).await).await.unwrap();

    // "Any" takes what is left, each seat once.
    let rest = bob.buy(&event, "stalls", 3, &request_id()).await.unwrap().purchase.unwrap();
    let mut seats = rest.seats.clone();
    seats.sort();
    assert_eq!(seats, ["A-3", "B-2", "B-3"]);
    let out = bob.buy(&event, "stalls", 1, &request_id()).await;
    expect_refusal("no seat left", out, Code::FailedPrecondition, "SOLD_OUT").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_quota_counts_held_and_bought_together() {
    let event = sale(vec![tier("ga", 100), tier("vip", 100)], 4).await;
    let (_, alice) = buyer().await;
    let bought = alice.buy(&event, "ga", 2, &request_id()).await.unwrap().purchase.unwrap();
    alice.hold(&event, "vip", 1).await.unwrap();
    let over = alice.buy(&event, "ga", 2, &request_id()).await;
    expect_refusal("over the quota", over, Code::FailedPrecondition, "QUOTA_EXCEEDED").unwrap();
    alice.buy(&event, "ga", 1, &request_id()).await.unwrap();
    let over = alice.hold(&event, "ga", 1).await;
    expect_refusal("hold over the quota", over, Code::FailedPrecondition, "QUOTA_EXCEEDED").unwrap();
    // A cancelled ticket does not count.
    let cancel = CancelTicketRequest { name: bought.tickets[0].clone(), request_id: request_id() };
    retried(async || alice.tickets().cancel_ticket(alice.request(cancel.clone())).await).await.unwrap();
    alice.buy(&event, "ga", 1, &request_id()).await.unwrap();
    // Others have a quota of their own.
    let (_, bob) = buyer().await;
    bob.buy(&event, "ga", 4, &request_id()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_sold_outside_the_sale_window() {
    let organiser = organiser().await;
    let region = first_region(&organiser).await;
    let hour = Duration::from_secs(3600);
    let now = SystemTime::now();
    let early = Event { sale_open_time: Some((now + hour).into()), ..event_of(vec![tier("ga", 10)]) };
    let late = Event {
        sale_open_time: Some((now - hour * 2).into()),
        sale_close_time: Some((now - hour).into()),
        ..event_of(vec![tier("ga", 10)])
    };
    let (_, alice) = buyer().await;
    let early = organiser.create_event(&region, early).await.unwrap();
    let refused = alice.buy(&early.name, "ga", 1, &request_id()).await;
    expect_refusal("before the sale", refused, Code::FailedPrecondition, "SALE_NOT_OPEN").unwrap();
    let late = organiser.create_event(&region, late).await.unwrap();
    let refused = alice.hold(&late.name, "ga", 1).await;
    expect_refusal("after the sale", refused, Code::FailedPrecondition, "SALE_CLOSED").unwrap();

    // The organiser opens it now; nobody else can.
    let open = UpdateEventRequest {
        event: Some(Event { sale_open_time: Some((now - hour).into()), ..early.clone() }),
        update_mask: Some(prost_types::FieldMask { paths: vec!["sale_open_time".into()] }),
        request_id: request_id(),
    };
    let refused = alice.events().update_event(alice.request(open.clone())).await;
    assert_eq!(refused.unwrap_err().code(), Code::PermissionDenied);
    let call = async || organiser.events().update_event(organiser.request(open.clone())).await;
    let updated = retried(call).await.unwrap().into_inner().event.unwrap();
    assert_eq!(updated.revision, early.revision + 1);
    alice.buy(&early.name, "ga", 1, &request_id()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_decides_each_purchase_on_its_own() {
    let event = sale(vec![tier("ga", 5)], 3).await;
    let name = crate::someone("seller");
    let seller = crate::shared().await.session(&name, &["seller"]).unwrap();
    let one = |buyer: &str, quantity| BatchPurchase {
        buyer: buyer.into(),
        tier_id: "ga".into(),
        quantity,
        request_id: request_id(),
    };
    let request = BatchBuyTicketsRequest {
        parent: event.clone(),
        purchases: vec![one("ann", 2), one("ben", 4), one("ann", 2), one("cleo", 3), one("dora", 1)],
    };
    let call = async || seller.tickets().batch_buy_tickets(seller.request(request.clone())).await;
    let results = retried(call).await.unwrap().into_inner().results;
    let said: Vec<String> = results
        .iter()
        .map(|result| match result.result.as_ref().unwrap() {
            batch_buy_tickets_result::Result::Purchase(purchase) => format!("{}", purchase.tickets.len()),
            batch_buy_tickets_result::Result::Rejection(no) => no.reason.clone(),
            batch_buy_tickets_result::Result::Undecided(why) => format!("undecided: {}", why.message),
        })
        .collect();
    assert_eq!(said, ["2", "QUOTA_EXCEEDED", "QUOTA_EXCEEDED", "3", "SOLD_OUT"]);
    assert_eq!(stock(&seller.event(&event).await.unwrap()), (0, 0, 5));
    let call = async || seller.tickets().batch_buy_tickets(seller.request(request.clone())).await;
    let again = retried(call).await.unwrap().into_inner().results;
    for (position, (first, second)) in results.iter().zip(&again).enumerate() {
        assert_eq!(
            first.result, second.result,
            "purchase {position} was answered differently the second time"
        );
    }
    let (_, buyer) = buyer().await;
    let refused = buyer.tickets().batch_buy_tickets(buyer.request(request)).await;
    expect_refusal("a batch without the role", refused, Code::PermissionDenied, "ROLE_REQUIRED").unwrap();
}
