//! Events: who may change what, what names are given, and what a receipt keeps of them.

use tidewall_messages::tickets as messages;

use super::*;

/// What was decided is what is told for ever, and what was sold keeps its price, whatever becomes of the tier.
#[test]
fn what_was_decided_says_everything_and_keeps_its_price_and_currency() {
    let mut world = World::new(9);
    let Done::Purchase(PurchaseView { tier_id: sold_in, first_number: 1, count: 1, seats }) =
        world.buy("alice", "vip", 1).unwrap()
    else {
        panic!()
    };
    assert_eq!((sold_in.as_str(), seats), ("vip", vec!["A-1".to_owned()]));
    world.ask("alice", &hold("ga", 1, &[], 1_000)).unwrap();
    let yen = |id: &str, capacity, seat_rows: &[(&str, u32)]| TierSpec {
        currency: "JPY".into(),
        price: 7,
        ..tier(id, capacity, seat_rows)
    };
    let dearer = change(Change {
        tiers: Some(vec![yen("ga", 10, &[]), yen("vip", 6, &[("A", 4), ("B", 2)])]),
        ..Change::default()
    });
    let Done::Event(event) = world.ask("organiser", &dearer).unwrap() else { panic!() };
    let spec = |at: usize| event.tiers[at].spec.as_ref().unwrap();
    assert_eq!((event.revision, spec(1).currency_code.as_str()), (2, "JPY"));
    assert_eq!(
        [0, 1].map(|at| (
            spec(at).capacity,
            event.tiers[at].free,
            event.tiers[at].held,
            event.tiers[at].sold
        )),
        [(10, 9, 1, 0), (6, 5, 0, 1)]
    );
    let confirm = confirm("ga-h1");
    world.ask("alice", &confirm).unwrap();
    for id in ["vip-1", "ga-1"] {
        let cancel = cancel(id);
        let Done::Cancelled(ticket) = world.ask("alice", &cancel).unwrap() else { panic!() };
        assert_eq!((ticket.price_minor_units, ticket.currency_code.as_str()), (4_200, "EUR"), "{id}");
        assert!(ticket.cancelled && ticket.owner == "alice" && ticket.organiser == "organiser");
        assert_eq!((ticket.ticket_id.as_str(), ticket.seat.is_empty()), (id, id == "ga-1"));
    }
}

/// An import begins a new incarnation with older rows: what comes afterwards must not be named like what was lost.
#[test]
fn ids_and_numbers_of_a_new_incarnation_were_never_given_before() {
    let mut world = World::new(9);
    let given = |world: &mut World| {
        let Done::Event(event) = world.ask("organiser", &create_as("")).unwrap() else { panic!() };
        event.event_id
    };
    assert_eq!(given(&mut world), "e1-2");
    world.buy("alice", "ga", 1).unwrap();
    world.context.incarnation = 2;
    // The log begins anew: its places say nothing about what is taken.
    world.context.index = 0;
    assert_eq!(given(&mut world), "e2-3");
    let Done::Purchase(PurchaseView { first_number: first, .. }) = world.buy("alice", "ga", 2).unwrap()
    else {
        panic!()
    };
    assert_eq!(first, crate::incarnation::NUMBERS_PER_INCARNATION + 1);
    let one_place = hold("ga", 1, &[], 50);
    let Done::Hold(HoldView { hold_id: hold, .. }) = world.ask("alice", &one_place).unwrap() else {
        panic!()
    };
    assert_eq!(hold_number(&hold), crate::incarnation::NUMBERS_PER_INCARNATION + 1);
    let confirm = confirm(hold);
    let Done::Purchase(PurchaseView { first_number: first, .. }) = world.ask("alice", &confirm).unwrap()
    else {
        panic!()
    };
    assert_eq!(first, crate::incarnation::NUMBERS_PER_INCARNATION + 3);
    // A forced recovery counts further up; imports follow it.
    let recovered = 1 << 32;
    for (incarnation, before) in [(recovered, 1_000), (recovered + 3, 1_003), (recovered * 2, 2_000)] {
        let mut world = World::new(9);
        world.context.incarnation = incarnation;
        for next in [1, 2] {
            let Done::Purchase(PurchaseView { first_number: first, .. }) = world.buy("bob", "ga", 1).unwrap()
            else {
                panic!()
            };
            assert_eq!(first, before * crate::incarnation::NUMBERS_PER_INCARNATION + next, "{incarnation:x}");
        }
        let Done::Hold(HoldView { hold_id: number, .. }) = world.ask("bob", &one_place).unwrap() else {
            panic!()
        };
        assert_eq!(hold_number(&number), before * crate::incarnation::NUMBERS_PER_INCARNATION + 1);
    }
    for taken in ["e1-2", "e77-1"] {
        assert_eq!(world.ask("organiser", &create_as(taken)).unwrap_err().field(), "event_id", "{taken}");
    }
}

#[test]
fn a_quota_lowered_later_breaks_nothing() {
    let mut world = World::new(5);
    world.ask("alice", &hold("ga", 5, &[], 50)).unwrap();
    let lower = change(Change { quota: Some(2), expected_revision: 1, ..Change::default() });
    apply(&mut world.state, &world.context, caller("organiser"), &lower).unwrap().unwrap();
    let caller = caller("alice");
    let confirm = confirm("ga-h1");
    apply(&mut world.state, &world.context, caller, &confirm).expect("no fault").unwrap();
    let more = apply(&mut world.state, &world.context, caller, &buy("ga", 1, &[])).unwrap();
    assert_eq!(more.unwrap_err().reason(), "QUOTA_EXCEEDED");
}

#[test]
fn sales_happen_inside_their_window() {
    let mut world = World::new(9);
    let window = change(Change { opens_ms: Some(2_000), closes_ms: Some(3_000), ..Change::default() });
    world.ask("organiser", &window).unwrap();
    for (now, reason) in
        [(1_999, Some("SALE_NOT_OPEN")), (2_000, None), (2_999, None), (3_000, Some("SALE_CLOSED"))]
    {
        world.context.now_ms = now;
        assert_eq!(world.buy("alice", "ga", 1).err().map(|r| r.reason()), reason, "at {now}");
    }
}

#[test]
fn an_event_can_only_be_changed_by_its_organiser_and_within_reason() {
    let mut world = World::new(9);
    world.buy("alice", "ga", 5).unwrap();
    let update = |tiers: Option<Vec<TierSpec>>, expected_revision| {
        change(Change { tiers, expected_revision, ..Change::default() })
    };
    let vip = || tier("vip", 6, &[("A", 4), ("B", 2)]);
    let mut reason = |who: &str, command: Command| world.ask(who, &command).err().map(|r| r.reason());
    assert_eq!(reason("alice", update(None, 0)), Some("NOT_OWNER"));
    assert_eq!(reason("organiser", update(None, 9)), Some("REVISION_MISMATCH"));
    assert_eq!(reason("organiser", update(Some(vec![tier("ga", 12, &[])]), 0)), Some("TIER_FIXED"));
    assert_eq!(
        reason("organiser", update(Some(vec![tier("ga", 4, &[]), vip()]), 0)),
        Some("CAPACITY_TOO_SMALL")
    );
    assert_eq!(
        reason("organiser", update(Some(vec![tier("ga", 5, &[]), vip(), tier("late", 3, &[])]), 1)),
        None
    );
    assert_eq!(world.buy("bob", "ga", 1).unwrap_err().reason(), "SOLD_OUT");
    world.buy("bob", "late", 3).unwrap();
}

#[test]
fn bad_fields_are_named() {
    let mut world = World::new(9);
    let mut field = |change: &dyn Fn(&mut CreateEvent)| {
        let mut create = CreateEvent { event_id: "other".into(), ..gala(3) };
        change(&mut create);
        let Err(Rejection::Invalid { field, .. }) = world.ask("organiser", &create.into()) else {
            panic!("accepted")
        };
        field
    };
    assert_eq!(field(&|c| c.event_id = "Gala".into()), "event_id");
    assert_eq!(field(&|c| c.display_name.clear()), "event.display_name");
    assert_eq!(field(&|c| c.quota_per_buyer = 0), "event.quota_per_buyer");
    assert_eq!(field(&|c| c.tiers.clear()), "event.tiers");
    assert_eq!(field(&|c| c.tiers[1].tier_id = "ga".into()), "event.tiers[1].tier_id");
    assert_eq!(field(&|c| c.tiers[0].capacity = 0), "event.tiers[0].capacity");
    assert_eq!(field(&|c| c.tiers[1].capacity = 7), "event.tiers[1].seat_rows");
    assert_eq!(field(&|c| c.tiers[0].currency_code = "euro".into()), "event.tiers[0].price.currency_code");
    assert_eq!(field(&|c| c.tiers[0].currency_code.clear()), "event.tiers[0].price.currency_code");
    let row = |n| messages::SeatRowSpec { label: format!("R{n}"), seats: 1 };
    let rows = |count: usize| (0..count).map(row).collect::<Vec<_>>();
    assert_eq!(field(&|c| c.tiers[1].seat_rows = rows(SEAT_ROWS_MAX + 1)), "event.tiers");
    assert_eq!(field(&|c| c.tiers[1].seat_rows[1].label = "A".into()), "event.tiers[1].seat_rows");
}

#[test]
fn an_event_is_deleted_only_while_nothing_of_it_has_a_name() {
    let mut world = World::new(9);
    let delete =
        |expected_revision| -> Command { DeleteEvent { event_id: "gala".into(), expected_revision }.into() };
    assert_eq!(State::since(&delete(0)), 5, "a build before that would halt on it");
    let mut reason = |who: &str, command: Command| world.ask(who, &command).err().map(|r| r.reason());
    assert_eq!(reason("alice", delete(0)), Some("NOT_OWNER"));
    assert_eq!(reason("organiser", delete(7)), Some("REVISION_MISMATCH"));
    assert_eq!(reason("organiser", delete(1)), None);
    assert_eq!(reason("organiser", delete(0)), Some("EVENT_NOT_FOUND"));
    assert_eq!(all(&world.state).rows(), 2, "counters alone");
    // Its number and its revision are not given again: the new one is another event.
    world.ask("organiser", &create(9)).unwrap();
    let row = world.state.event("gala").unwrap();
    assert_eq!((row.no, row.revision), (2, 2));
    assert_eq!(world.ask("organiser", &delete(1)).unwrap_err().reason(), "REVISION_MISMATCH");
    // A hold that was released has left its number behind.
    world.ask("alice", &hold("ga", 1, &[], 1_000)).unwrap();
    world.ask("alice", &release("ga-h1")).unwrap();
    assert_eq!(world.ask("organiser", &delete(0)).unwrap_err().reason(), "EVENT_IN_USE");
    let event = Event::EventDeleted { id: "gala".into(), organiser: "org".into() };
    let context = world.context;
    evolve(&mut world.state, &context, &event).expect_err("T4 is kept, whatever was decided");
}

#[test]
fn fields_are_named_as_the_api_names_them_once_all_members_have_the_build() {
    let mut world = World::new(9);
    let window = change(Change { opens_ms: Some(3_000), closes_ms: Some(2_000), ..Change::default() });
    for (version, name) in [(4, "event.sale_closes_at"), (5, "event.sale_close_time")] {
        world.context.apply_version = version;
        let Err(Rejection::Invalid { field, .. }) = world.ask("organiser", &window) else {
            panic!("accepted")
        };
        assert_eq!(field, name);
    }
}

fn search(state: &State, owner: &str, limit: u32) -> (Vec<(String, String)>, usize) {
    let (mut found, mut pages) = (Vec::new(), 0);
    let mut asked = SearchTickets { owner: owner.into(), limit, ..SearchTickets::default() };
    loop {
        let page = queries::query(state, Now { log_ms: 0, steady_ms: 0 }, &asked.clone().into()).unwrap();
        let Some(answer::Result::Found(page)) = page.result else { panic!("{page:?}") };
        assert!(page.tickets.len() <= limit as usize);
        found.extend(page.tickets.into_iter().map(|found| (found.event_id, found.ticket.unwrap().ticket_id)));
        pages += 1;
        if page.next_event_id.is_empty() {
            return (found, pages);
        }
        (asked.from_event_id, asked.after_ticket_id) = (page.next_event_id, page.after_ticket_id);
    }
}

#[test]
fn what_somebody_has_anywhere_is_found_page_by_page() {
    let mut world = World { state: State::default(), context: context(1_000) };
    let mut expected = Vec::new();
    for number in 0..7 {
        let event = format!("event-{number}");
        world.ask("organiser", &created(&event, "E", 100, vec![tier("ga", 10, &[])]).into()).unwrap();
        let quantity = number % 4;
        for who in ["ann", "bob"] {
            if quantity > 0 {
                let buy = Buy { event_id: event.clone(), tier_id: "ga".into(), quantity, ..Buy::default() };
                world.ask(who, &buy.into()).unwrap();
            }
        }
        expected.extend((1..=quantity).map(|ticket| (event.clone(), format!("ga-{ticket}"))));
    }
    for limit in 1..=12 {
        let (found, pages) = search(&world.state, "ann", limit);
        assert_eq!(found, expected, "{limit} a page");
        assert!(pages <= expected.len().div_ceil(limit as usize) + 1, "{pages} pages of {limit}");
    }
    assert_eq!(search(&world.state, "carla", 5), (Vec::new(), 1));
}

#[test]
fn a_search_goes_on_where_it_has_looked_at_enough_events() {
    let mut world = World { state: State::default(), context: context(1_000) };
    for number in 0..2_500 {
        let event = format!("e-{number:04}");
        quietly(&mut world, &created(&event, "E", 9, vec![tier("ga", 9, &[])]).into());
    }
    let buy = Buy { event_id: "e-2499".into(), tier_id: "ga".into(), quantity: 1, ..Buy::default() };
    quietly(&mut world, &buy.into());
    assert_eq!(search(&world.state, "organiser", 9), (vec![("e-2499".into(), "ga-1".into())], 3));
}

/// Without the checks over all rows.
fn quietly(world: &mut World, command: &Command) {
    world.context.request_id += 1;
    apply(&mut world.state, &world.context, caller("organiser"), command).unwrap().unwrap();
}

#[test]
fn seats_have_one_name_however_many_are_named() {
    let spec = tier("vip", 9, &[("A", 2), ("B", 1), ("C", 6)]);
    let seats: Vec<u32> = (0..12).collect();
    let one_by_one: Vec<String> = seats.iter().map(|seat| spec.seat_name(*seat)).collect();
    assert_eq!(spec.seat_names(&seats)[..4], ["A-1", "A-2", "B-1", "C-1"]);
    for (seat, (many, one)) in spec.seat_names(&seats).iter().zip(&one_by_one).enumerate() {
        assert!(
            many == one || (seat >= 9 && many.starts_with("?-") && one.starts_with("?-")),
            "{many} {one}"
        );
    }
}
