//! Where a bound lies, to the last one, and what is counted.

use super::*;

#[test]
fn a_hold_lasts_from_one_moment_to_its_longest() {
    let mut world = World::new(100);
    for (ttl_ms, holds) in
        [(0, false), (1, true), (HOLD_MS_MAX, true), (HOLD_MS_MAX + 1, false), (u32::MAX, false)]
    {
        assert_eq!(world.ask("ann", &hold("ga", 1, &[], ttl_ms)).is_ok(), holds, "{ttl_ms}");
    }
}

#[test]
fn only_ids_of_the_form_that_the_region_gives_cannot_be_chosen() {
    let mut world = World::new(100);
    for taken in ["e1-1", "e10-999"] {
        assert!(world.ask("organiser", &create_as(taken)).is_err(), "{taken}");
    }
    for free in ["e1-x", "ex-1", "e123", "e1-1-1", "f1-1"] {
        assert!(world.ask("organiser", &create_as(free)).is_ok(), "{free}");
    }
}

#[test]
fn a_quick_no_is_given_only_while_sales_are_open() {
    let mut world = World::new(100);
    let mut windowed = created("short", "Short", 100, vec![tier("ga", 1, &[])]);
    (windowed.sale_opens_at_ms, windowed.sale_closes_at_ms) = (2_000, 3_000);
    world.ask("organiser", &windowed.into()).unwrap();
    let mut certain = |event: &str, quantity: u32, now_ms: u64| {
        (world.context.now_ms, world.context.steady_ms) = (now_ms, now_ms + STEADY_AHEAD_MS);
        let (event_id, seats) = (event.to_owned(), Vec::new());
        let asked = Buy { event_id, tier_id: "ga".into(), quantity, seats, buyer: String::new() };
        world.quick_no(&asked.into())
    };
    for (now_ms, is) in [(1_999, false), (2_000, true), (2_999, true), (3_000, false)] {
        assert_eq!(certain("short", 2, now_ms), is, "{now_ms}");
    }
    // Without a window; by what is free.
    for (quantity, is) in [(0, false), (12, false), (13, true)] {
        assert_eq!(certain("gala", quantity, 1_000), is, "{quantity}");
    }
    assert!(!certain("none", 1, 1_000));
}

#[test]
fn rows_and_changed_pages_are_counted_over_all_tables() {
    let mut world = World::new(100);
    let rows = all(&world.state).rows();
    let mut dropped = Vec::new();
    (&mut world.state as &mut dyn AnyModule).freeze(&mut dropped);
    assert_eq!(all(&world.state).changed_pages(), 0);
    world.ask("ann", &buy("vip", 2, &["A-1", "A-2"])).unwrap();
    world.ask("ann", &hold("vip", 1, &["A-3"], 1_000)).unwrap();
    // Two tickets, a hold, three seats.
    assert_eq!(all(&world.state).rows(), rows + 6);
    // Stock, tickets, holds, seats; events and counters are as they were.
    let mut pages = Vec::new();
    let changed = all(&world.state).changed_pages();
    (&mut world.state as &mut dyn AnyModule).freeze(&mut pages);
    assert_eq!((changed, pages.len()), (4, 4));
    let counted: usize = pages.iter().map(crate::table::FrozenPage::rows).sum();
    // The stock of both tiers is in one page.
    assert_eq!(counted, 2 + 2 + 1 + 3);
}

#[test]
fn tickets_are_listed_by_owner_and_from_a_place_on() {
    let mut world = World::new(100);
    for (who, tier, quantity) in [("ann", "ga", 2), ("bob", "ga", 1), ("ann", "vip", 2)] {
        world.buy(who, tier, quantity).unwrap();
    }
    let list = |owner: Option<&str>, after: (TierNo, u64), limit: usize| {
        let found = world.state.tickets_after(1, owner, after, limit);
        found
            .into_iter()
            .map(|((_, tier, number), row)| (tier, number, row.owner.to_string()))
            .collect::<Vec<_>>()
    };
    let row = |tier, number, owner: &str| (tier, number, owner.to_owned());
    let all = [row(0, 1, "ann"), row(0, 2, "ann"), row(0, 3, "bob"), row(1, 1, "ann"), row(1, 2, "ann")];
    assert_eq!(list(None, (0, 0), 10), all);
    assert_eq!(list(None, (0, 2), 2), all[2..4]);
    assert_eq!(list(Some("ann"), (0, 0), 10), [&all[..2], &all[3..]].concat());
    assert_eq!(
        list(Some("ann"), (0, 1), 2),
        all[1..4].iter().filter(|row| row.2 == "ann").cloned().collect::<Vec<_>>()
    );
    assert_eq!(list(Some("eve"), (0, 0), 10), []);
}

/// Who decides keeps the quota as well, so that only a defect there would ever need this.
#[test]
fn a_quota_that_is_exceeded_is_a_broken_invariant() {
    let mut world = World::new(5);
    world.buy("ann", "ga", 4).unwrap();
    world.buy("bob", "ga", 2).unwrap();
    let lower = change(Change { quota: Some(3), ..Change::default() });
    // Without the checks of the world, which counts by the quota that there was.
    let caller = caller("organiser");
    apply(&mut world.state, &world.context, caller, &lower).unwrap().unwrap();
    let check = |owner: &str| evolve::check_quota(&world.state, &world.context, 1, owner);
    assert!(check("ann").is_err());
    check("bob").unwrap();
    check("eve").unwrap();
}
