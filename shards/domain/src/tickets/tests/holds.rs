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
    assert!(fired.faulted);
    assert_eq!((world.stock("ga"), world.hold_state(1)), (stock, Some(HoldState::Stuck)));
    let fired = fire_next(&mut world.state, &world.context).unwrap();
    assert!(!fired.faulted);
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
