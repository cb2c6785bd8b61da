//! Holds: when they end, and what a due one is in the way of.

use super::*;

#[test]
fn a_due_hold_gives_way_to_a_purchase_before_its_timer_fires() {
    let mut world = World::new(100);
    let sold_out = |world: &World| world.quick_no(&buy("ga", 1, &[]));
    world.ask("alice", &hold("ga", 12, &[], 50)).unwrap();
    assert_eq!(world.buy("bob", "ga", 1).unwrap_err().reason(), "SOLD_OUT");
    assert!(sold_out(&world));
    world.wait(50);
    assert!(!sold_out(&world));
    world.buy("bob", "ga", 1).unwrap();
    assert_eq!((world.stock("ga").sold, world.stock("ga").free), (1, 11));
    let late = world.ask("alice", &confirm("ga-h1"));
    assert_eq!(late.unwrap_err().reason(), "HOLD_EXPIRED");
}

#[test]
fn a_hold_is_confirmed_only_in_time_and_by_its_owner() {
    let mut world = World::new(100);
    world.ask("alice", &hold("vip", 0, &["A-2", "B-1"], 50)).unwrap();
    let confirm = confirm("vip-h1");
    assert_eq!(world.ask("bob", &confirm).unwrap_err().reason(), "NOT_OWNER");
    assert_eq!(world.ask("bob", &buy("vip", 0, &["A-2"])).unwrap_err().reason(), "SEAT_TAKEN");
    world.wait(49);
    let Done::Purchase(PurchaseView { seats, .. }) = world.ask("alice", &confirm).unwrap() else { panic!() };
    assert_eq!(seats, ["A-2", "B-1"]);
    assert_eq!(world.ask("alice", &confirm).unwrap_err().reason(), "HOLD_NOT_FOUND");
}

/// At its due time a hold is over: its places are free, its owner is told why for a while, and then nobody knows of it.
#[test]
fn a_hold_ends_when_it_falls_due_and_is_remembered_for_a_while() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 12, &[], 50)).unwrap();
    let late = confirm("ga-h1");
    let release = release("ga-h1");
    world.wait(49);
    assert_eq!(world.fire(9), 0);
    world.wait(1);
    for command in [&late, &release] {
        assert_eq!(world.ask("alice", command).unwrap_err().reason(), "HOLD_EXPIRED", "fired or not");
    }
    assert_eq!((world.fire(9), world.hold_state(1)), (1, Some(HoldState::Expired)));
    assert_eq!((world.stock("ga").held, world.stock("ga").free), (0, 12));
    world.wait(EXPIRED_KEPT_MS - 1);
    for command in [&late, &release] {
        assert_eq!(world.ask("alice", command).unwrap_err().reason(), "HOLD_EXPIRED");
    }
    assert_eq!(world.fire(9), 0);
    world.wait(1);
    assert_eq!((world.fire(9), world.hold_state(1)), (1, None));
    assert_eq!(world.ask("alice", &late).unwrap_err().reason(), "HOLD_NOT_FOUND");
    assert_eq!(Module::due_ms(&world.state), None);
}

#[test]
fn what_is_due_is_in_the_way_of_no_smaller_capacity_and_is_shown_as_free() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 5, &[], 50)).unwrap();
    world.ask("bob", &hold("ga", 5, &[], 60)).unwrap();
    let smaller = |capacity| {
        change(Change {
            tiers: Some(vec![tier("ga", capacity, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])]),
            ..Change::default()
        })
    };
    world.wait(50);
    let event = world.state.event("gala").unwrap();
    let shown = world.state.tiers(event, world.context.steady_ms).next().unwrap().stock;
    assert_eq!((shown.held, shown.free), (5, 7));
    let refused = world.ask("organiser", &smaller(4)).unwrap_err();
    assert_eq!(refused, Rejection::CapacityTooSmall { tier: "ga".into(), taken: 5 });
    assert_eq!(world.hold_state(1), Some(HoldState::Live), "a refusal changes nothing");
    world.ask("organiser", &smaller(5)).unwrap();
    assert_eq!((world.stock("ga").held, world.stock("ga").free), (5, 0));
    assert_eq!(world.hold_state(1), Some(HoldState::Expired));
}

#[test]
fn a_timer_that_breaks_an_invariant_delays_no_other() {
    let mut world = World::new(100);
    world.ask("alice", &hold("ga", 2, &[], 50)).unwrap();
    world.ask("bob", &hold("ga", 3, &[], 60)).unwrap();
    // A hold that says more than the stock has in holds.
    let lie = HoldRow { quantity: 9, ..world.state.holds.get(&(1, 0, 1)).unwrap().clone() };
    world.state.holds.set((1, 0, 1), Some(lie));
    world.state.holds.commit();
    world.wait(60);
    let stock = world.stock("ga");
    let fired = fire_next(&mut world.state, &world.context).unwrap();
    assert!(fired.fault.is_some());
    assert_eq!((world.stock("ga"), world.hold_state(1)), (stock, Some(HoldState::Stuck)));
    let fired = fire_next(&mut world.state, &world.context).unwrap();
    assert_eq!(fired.fault, None);
    assert_eq!(world.hold_state(2), Some(HoldState::Expired));
    assert_eq!(fire_next(&mut world.state, &world.context), None, "the stuck one has none any more");
}

#[test]
fn nobody_collects_holds_without_end_and_a_due_one_gives_way() {
    let mut world = World::new(QUOTA_MAX);
    let roomy = change(Change {
        tiers: Some(vec![tier("ga", 5_000, &[]), tier("vip", 6, &[("A", 4), ("B", 2)])]),
        ..Change::default()
    });
    world.ask("organiser", &roomy).unwrap();
    let caller = caller("alice");
    for n in 0..HOLDS_MAX {
        let hold = hold("ga", 1, &[], if n == 0 { 50 } else { 60 });
        apply(&mut world.state, &world.context, caller, &hold).unwrap().unwrap();
    }
    let refused = world.ask("alice", &hold("ga", 1, &[], 50)).unwrap_err();
    assert_eq!(refused, Rejection::TooManyHolds { holds: HOLDS_MAX as u32 });
    world.ask("bob", &hold("ga", 1, &[], 50)).unwrap();
    world.wait(50);
    world.ask("alice", &hold("ga", 1, &[], 50)).unwrap();
    assert_eq!(world.hold_state(1), Some(HoldState::Expired));
    assert_eq!(world.ask("alice", &hold("ga", 1, &[], 50)).unwrap_err().reason(), "TOO_MANY_HOLDS");
}

#[test]
fn holds_are_shown_as_long_as_they_live() {
    let mut world = World::new(9);
    let now = |world: &World| Now { log_ms: world.context.now_ms, steady_ms: world.context.steady_ms };
    let list = |world: &World, owner: &str, after: &str, limit: u32| {
        let asked = ListHolds {
            event_id: "gala".into(),
            owner: owner.into(),
            after_hold_id: after.into(),
            limit,
            caller: "organiser".into(),
            sees_all: false,
        };
        let found = queries::query(&world.state, now(world), &asked.into()).unwrap();
        let Some(answer::Result::Holds(list)) = found.result else { panic!("{found:?}") };
        assert_eq!(list.organiser, "organiser");
        (
            list.holds.into_iter().map(|hold| hold.hold_id).collect::<Vec<_>>(),
            !list.next_after_hold_id.is_empty(),
        )
    };
    let get = |world: &World, id: &str| {
        let asked = GetHold { event_id: "gala".into(), hold_id: id.into() };
        match queries::query(&world.state, now(world), &asked.into()).map(|found| found.result) {
            Ok(Some(answer::Result::Hold(hold))) => Ok(hold),
            Err(why) => Err(why.reason()),
            other => panic!("{other:?}"),
        }
    };
    for (who, tier, ttl_ms) in
        [("ann", "vip", 500), ("bob", "ga", 900), ("ann", "ga", 2_000), ("ann", "ga", 800)]
    {
        world.ask(who, &hold(tier, 2, &[], ttl_ms)).unwrap();
    }
    let all = ["ga-h1", "ga-h2", "ga-h3", "vip-h1"];
    assert_eq!(list(&world, "", "", 9).0, all);
    assert_eq!(list(&world, "ann", "", 9).0, ["ga-h2", "ga-h3", "vip-h1"]);
    for owner in ["", "ann"] {
        let (first, more) = list(&world, owner, "", 2);
        let (rest, end) = list(&world, owner, first.last().unwrap(), 9);
        assert!(more && !end);
        assert_eq!([first, rest].concat(), list(&world, owner, "", 9).0);
    }
    let shown = get(&world, "ga-h2").unwrap();
    assert_eq!((shown.owner.as_str(), shown.quantity, shown.organiser.as_str()), ("ann", 2, "organiser"));
    assert_eq!(shown.expires_at_ms, world.context.now_ms + 2_000, "in log time");
    assert_eq!(get(&world, "vip-h1").unwrap().seats.len(), 2);
    assert_eq!(get(&world, "ga-h9").unwrap_err(), "HOLD_NOT_FOUND");
    // What is due is gone, whether its timer has fired or not.
    world.wait(800);
    assert_eq!(list(&world, "", "", 9).0, ["ga-h1", "ga-h2"]);
    assert_eq!(list(&world, "ann", "", 9).0, ["ga-h2"]);
    assert_eq!(get(&world, "ga-h3").unwrap_err(), "HOLD_NOT_FOUND");
    world.fire(9);
    assert_eq!(list(&world, "", "", 9).0, ["ga-h1", "ga-h2"]);
    world.ask("bob", &confirm("ga-h1")).unwrap();
    assert_eq!(list(&world, "bob", "", 9).0, Vec::<String>::new());
}

#[test]
fn who_may_not_see_holds_is_shown_none_and_costs_nothing() {
    let mut world = World::new(100);
    for _ in 0..5 {
        world.ask("ann", &hold("ga", 1, &[], 60_000)).unwrap();
    }
    let now = Now { log_ms: world.context.now_ms, steady_ms: world.context.steady_ms };
    let list = |owner: &str, caller: &str, sees_all: bool| {
        let before = crate::module::looked_at(&world.state);
        let (owner, caller) = (owner.into(), caller.into());
        let asked =
            ListHolds { event_id: "gala".into(), owner, limit: 9, caller, sees_all, ..ListHolds::default() };
        let found = queries::query(&world.state, now, &asked.into()).unwrap();
        let Some(answer::Result::Holds(list)) = found.result else { panic!("{found:?}") };
        (list.holds.len(), crate::module::looked_at(&world.state) - before)
    };
    assert_eq!((list("", "bob", false).0, list("ann", "bob", false).0), (0, 0));
    assert!(list("", "bob", false).1 <= 1, "the event alone is looked at");
    assert_eq!(
        (list("ann", "ann", false).0, list("", "organiser", false).0, list("ann", "bob", true).0),
        (5, 5, 5)
    );
}

#[test]
fn a_list_of_holds_goes_on_behind_those_that_are_over() {
    let mut world = World { state: State::default(), context: context(1_000) };
    world.ask("organiser", &created("gala", "Gala", 100_000, vec![tier("ga", 100_000, &[])]).into()).unwrap();
    let quietly = |world: &mut World, who: &str, ttl_ms| {
        world.context.request_id += 1;
        apply(&mut world.state, &world.context, caller(who), &hold("ga", 1, &[], ttl_ms)).unwrap().unwrap();
    };
    for number in 0..5_000 {
        quietly(&mut world, &format!("buyer{}", number % 100), 1);
    }
    quietly(&mut world, "ann", 3_600_000);
    world.wait(10);
    let now = Now { log_ms: world.context.now_ms, steady_ms: world.context.steady_ms };
    let (mut found, mut pages, mut after) = (Vec::new(), 0, String::new());
    loop {
        let asked = ListHolds {
            event_id: "gala".into(),
            after_hold_id: after,
            limit: 10,
            caller: "organiser".into(),
            ..ListHolds::default()
        };
        let page = queries::query(&world.state, now, &asked.into()).unwrap();
        let Some(answer::Result::Holds(page)) = page.result else { panic!("{page:?}") };
        found.extend(page.holds.into_iter().map(|hold| hold.owner));
        (after, pages) = (page.next_after_hold_id, pages + 1);
        if after.is_empty() {
            break;
        }
    }
    assert_eq!((found, pages), (vec!["ann".to_owned()], 2));
}
