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
    let named = |id: &str| {
        let mut command = create(1);
        if let Command::CreateEvent { event, .. } = &mut command {
            *event = id.into();
        }
        command
    };
    for taken in ["e1-1", "e10-999"] {
        assert!(world.ask("organiser", &named(taken)).is_err(), "{taken}");
    }
    for free in ["e1-x", "ex-1", "e123", "e1-1-1", "f1-1"] {
        assert!(world.ask("organiser", &named(free)).is_ok(), "{free}");
    }
}

#[test]
fn a_quick_no_is_given_only_while_sales_are_open() {
    let mut world = World::new(100);
    let mut windowed = create(100);
    if let Command::CreateEvent { event, opens_ms, closes_ms, tiers, .. } = &mut windowed {
        (*event, *opens_ms, *closes_ms, tiers[0].capacity) = ("short".into(), 2_000, 3_000, 1);
    }
    world.ask("organiser", &windowed).unwrap();
    let certain = |event: &str, quantity: u32, now_ms: u64| {
        let steady_ms = now_ms + STEADY_AHEAD_MS;
        matches!(world.state.sold_out(event, "ga", quantity, now_ms, steady_ms), QuickNo::Certain(_))
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
fn a_commands_bytes_are_those_of_all_its_parts() {
    let seats: Vec<String> = ["A-1", "B-22"].map(String::from).to_vec();
    let at = |seats: &[String], buyer: &str| Command::Buy {
        event: "gala".into(),
        tier: "ga".into(),
        quantity: 1,
        seats: seats.to_vec(),
        buyer: buyer.into(),
    };
    assert_eq!(at(&[], "").bytes(), 6);
    assert_eq!(at(&[], "ann").bytes(), 9);
    assert_eq!(at(&seats, "ann").bytes(), 18);
    assert_eq!(hold("ga", 1, &["A-1", "B-22"], 1).bytes(), 15);
    let spec = [tier("ga", 1, &[])];
    let renamed = |display_name: Option<&str>, tiers: Option<&[TierSpec]>| Command::UpdateEvent {
        event: "gala".into(),
        display_name: display_name.map(String::from),
        quota: None,
        opens_ms: None,
        closes_ms: None,
        tiers: tiers.map(<[TierSpec]>::to_vec),
        expected_revision: 0,
    };
    let tiers = TierSpec::bytes(&spec);
    assert!(tiers > 0);
    assert_eq!(renamed(None, None).bytes(), 4);
    assert_eq!(renamed(Some("Gala!"), None).bytes(), 9);
    assert_eq!(renamed(Some("Gala!"), Some(&spec)).bytes(), 9 + tiers);
    let Command::CreateEvent { tiers, .. } = create(1) else { panic!("it creates") };
    assert_eq!(create(1).bytes(), 8 + TierSpec::bytes(&tiers));
}

#[test]
fn what_finishes_is_told_from_what_starts_and_each_names_its_event() {
    let named = |id: &str| (String::from("gala"), String::from(id));
    let (event, hold_id) = named("ga-h1");
    let confirm = Command::ConfirmHold { event: event.clone(), hold: hold_id.clone() };
    let release = Command::ReleaseHold { event: event.clone(), hold: hold_id };
    let cancel = Command::CancelTicket { event, ticket: "ga-1".into() };
    for command in [&confirm, &release, &cancel] {
        assert!(command.finishes(), "{command:?}");
        assert_eq!(command.event(), "gala");
    }
    for command in [&buy("ga", 1, &[]), &hold("ga", 1, &[], 1), &create(1)] {
        assert!(!command.finishes(), "{command:?}");
        assert_eq!(command.event(), "gala");
    }
}

#[test]
fn rows_and_changed_pages_are_counted_over_all_tables() {
    let mut world = World::new(100);
    let rows = world.state.rows();
    let mut dropped = Vec::new();
    world.state.freeze(&mut dropped);
    assert_eq!(world.state.changed_pages(), 0);
    world.ask("ann", &buy("vip", 2, &["A-1", "A-2"])).unwrap();
    world.ask("ann", &hold("vip", 1, &["A-3"], 1_000)).unwrap();
    // Two tickets, a hold, three seats.
    assert_eq!(world.state.rows(), rows + 6);
    // Stock, tickets, holds, seats; events and counters are as they were.
    let mut pages = Vec::new();
    let changed = world.state.changed_pages();
    world.state.freeze(&mut pages);
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
    let lower = Command::UpdateEvent {
        event: "gala".into(),
        display_name: None,
        quota: Some(3),
        opens_ms: None,
        closes_ms: None,
        tiers: None,
        expected_revision: 0,
    };
    // Without the checks of the world, which counts by the quota that there was.
    let caller = Caller { principal: "organiser", privileged: false };
    apply(&mut world.state, &world.context, caller, &lower).unwrap().unwrap();
    let check = |owner: &str| evolve::check_quota(&world.state, &world.context, 1, owner);
    assert!(check("ann").is_err());
    check("bob").unwrap();
    check("eve").unwrap();
}
