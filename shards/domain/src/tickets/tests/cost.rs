//! What a command costs goes by its own size, never by how many rows there are or how they came to be: apply runs on the
//! thread that all regions share.

use super::*;
use crate::module::looked_at;

/// A tier of `rows` rows of 50 seats, sold in hundreds by turns, every second ticket of which was cancelled: as scattered
/// as its free seats can be. A second event has holds without number that are all due.
fn scattered(rows: u32) -> World {
    let labels: Vec<String> = (0..rows).map(|row| format!("R{row}")).collect();
    let seat_rows: Vec<(&str, u32)> = labels.iter().map(|label| (label.as_str(), 50)).collect();
    let seats = u64::from(rows) * 50;
    let mut state = World { state: State::default(), context: context(1_000) };
    let tiers = vec![tier("vip", seats, &seat_rows), tier("ga", 10 * seats, &[])];
    let event = Command::from(created("gala", "Gala", 100_000, tiers));
    quietly(&mut state, "organiser", &event);
    for turn in 0..rows / 4 {
        let who = format!("buyer{}", turn % 50);
        let Done::Purchase(PurchaseView { first_number: first, .. }) =
            quietly(&mut state, &who, &buy("vip", 100, &[]))
        else {
            panic!("nothing was bought");
        };
        for number in (first..first + 100).step_by(2) {
            let ticket = format!("vip-{number}");
            quietly(&mut state, &who, &cancel(ticket));
        }
        for _ in 0..8 {
            quietly(&mut state, &who, &hold("ga", 1, &[], 1));
        }
    }
    state
}

/// Without the checks over all rows, which take long in a large world.
fn quietly(world: &mut World, who: &str, command: &Command) -> Done {
    world.context.index += 1;
    world.context.request_id += 1;
    let caller = caller(who);
    let answer = apply(&mut world.state, &world.context, caller, command).unwrap();
    answer.unwrap_or_else(|why| panic!("{command:?}: {why:?}")).result.unwrap()
}

/// Rows that each kind of command looks at, by its name.
fn costs(rows: u32) -> BTreeMap<String, u64> {
    let mut world = scattered(rows);
    let mut found = BTreeMap::new();
    let mut cost = |world: &mut World, name: &str, who: &str, command: &Command| {
        let before = looked_at(&world.state);
        let outcome = quietly(world, who, command);
        found.insert(name.to_owned(), looked_at(&world.state) - before);
        outcome
    };
    cost(&mut world, "buy 1", "ann", &buy("vip", 1, &[]));
    cost(&mut world, "buy 100", "ann", &buy("vip", 100, &[]));
    cost(&mut world, "buy 100 unnumbered", "ann", &buy("ga", 100, &[]));
    let last = format!("R{}-50", rows - 1);
    cost(&mut world, "buy a named seat", "ann", &buy("vip", 1, &[&last]));
    let Done::Hold(HoldView { hold_id: hold, .. }) =
        cost(&mut world, "hold 100", "ann", &self::hold("vip", 100, &[], 60_000))
    else {
        panic!("nothing was held");
    };
    let confirmed = cost(&mut world, "confirm 100", "ann", &confirm(hold));
    let Done::Hold(HoldView { hold_id: hold, .. }) =
        quietly(&mut world, "ann", &self::hold("vip", 100, &[], 60_000))
    else {
        panic!("nothing was held");
    };
    cost(&mut world, "release 100", "ann", &release(hold));
    let Done::Purchase(PurchaseView { first_number: first, .. }) = confirmed else {
        panic!("nothing was confirmed")
    };
    let ticket = format!("vip-{first}");
    cost(&mut world, "cancel", "ann", &cancel(ticket));
    let rename = change(Change { display_name: Some("Ball".into()), ..Change::default() });
    cost(&mut world, "update", "organiser", &rename);
    let create = Command::from(created("other", "Other", 4, vec![tier("ga", 10, &[])]));
    cost(&mut world, "create", "organiser", &create);
    // All holds of the crowd are due.
    world.wait(10_000);
    let before = looked_at(&world.state);
    assert!(!world.quick_no(&buy("ga", 1, &[])));
    found.insert("quick no".into(), looked_at(&world.state) - before);
    let before = looked_at(&world.state);
    fire_next(&mut world.state, &world.context).expect("holds are due");
    found.insert("timer".into(), looked_at(&world.state) - before);
    found
}

#[test]
fn what_a_command_costs_does_not_grow_with_the_rows_that_are_there() {
    let (small, large) = (costs(40), costs(800));
    for (command, few) in &small {
        let many = large[command];
        assert!(
            many <= few + 8,
            "{command}: {few} rows in a small event, {many} in one twenty times as large"
        );
    }
}

#[test]
fn what_a_command_costs_goes_by_the_places_that_it_asks_for() {
    for (command, rows) in costs(200) {
        let places = if command.contains("100") { 100 } else { 1 };
        assert!(rows <= 32 + 8 * places, "{command} looks at {rows} rows");
    }
}

/// Each named seat is in another due hold of a hundred, all of which end.
#[test]
fn named_seats_may_end_a_hold_each_and_cost_what_is_promised() {
    let labels: Vec<String> = (0..100).map(|row| format!("R{row}")).collect();
    let rows: Vec<(&str, u32)> = labels.iter().map(|label| (label.as_str(), 100)).collect();
    let mut world = World { state: State::default(), context: context(1_000) };
    quietly(
        &mut world,
        "organiser",
        &created("gala", "Gala", 100_000, vec![tier("vip", 10_000, &rows)]).into(),
    );
    for row in 0..100 {
        let names: Vec<String> = (1..=100).map(|seat| format!("R{row}-{seat}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        quietly(&mut world, &format!("buyer{row}"), &hold("vip", 100, &names, 1));
    }
    world.wait(10);
    let wanted: Vec<String> = (0..100).map(|row| format!("R{row}-50")).collect();
    let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    let before = looked_at(&world.state);
    // Panics where it looks at more than `rows_max` rows.
    quietly(&mut world, "ann", &buy("vip", 100, &wanted));
    let rows = looked_at(&world.state) - before;
    assert!(rows > 15_000, "{rows} rows: it is no longer the worst case");
}

/// A sale of random shape, in which a crowd does whatever it may.
#[derive(Debug, Clone)]
struct Rush {
    rows: u32,
    asks: Vec<Rushed>,
}

/// What somebody does; numbers are taken modulo what there is.
#[derive(Debug, Clone)]
enum Rushed {
    Buy { who: u8, numbered: bool, quantity: u32 },
    Named { who: u8, seats: Vec<u32> },
    Hold { who: u8, numbered: bool, quantity: u32, ttl_ms: u32 },
    Confirm { who: u8, hold: u64 },
    Release { who: u8, hold: u64 },
    Cancel { who: u8, ticket: u64 },
    Resize { capacity: u64 },
    Wait(u64),
}

fn rushed() -> impl Strategy<Value = Rushed> {
    let (who, quantity) = (any::<u8>(), 1..=100u32);
    prop_oneof![
        6 => (who, any::<bool>(), quantity.clone())
            .prop_map(|(who, numbered, quantity)| Rushed::Buy { who, numbered, quantity }),
        2 => (who, proptest::collection::vec(any::<u32>(), 1..8)).prop_map(|(who, seats)| Rushed::Named { who, seats }),
        8 => (who, any::<bool>(), quantity, 1..3_000u32)
            .prop_map(|(who, numbered, quantity, ttl_ms)| Rushed::Hold { who, numbered, quantity, ttl_ms }),
        3 => (who, any::<u64>()).prop_map(|(who, hold)| Rushed::Confirm { who, hold }),
        2 => (who, any::<u64>()).prop_map(|(who, hold)| Rushed::Release { who, hold }),
        6 => (who, any::<u64>()).prop_map(|(who, ticket)| Rushed::Cancel { who, ticket }),
        1 => any::<u64>().prop_map(|capacity| Rushed::Resize { capacity }),
        2 => (1..2_000u64).prop_map(Rushed::Wait),
    ]
}

fn rush() -> impl Strategy<Value = Rush> {
    (1..=60u32, proptest::collection::vec(rushed(), 1..300)).prop_map(|(rows, asks)| Rush { rows, asks })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Looks for the command that costs most for its size, in states that nobody has thought of.
    #[test]
    fn no_command_of_any_crowd_costs_more_than_its_size_and_what_it_may_end(rush in rush()) {
        let seats = u64::from(rush.rows) * 50;
        let mut world = scattered(rush.rows);
            let who = |who: u8| format!("buyer{}", who % 50);
        let tier_of = |numbered: bool| if numbered { "vip" } else { "ga" };
        let labels: Vec<String> = (0..rush.rows).map(|row| format!("R{row}")).collect();
        let seat_rows: Vec<(&str, u32)> = labels.iter().map(|label| (label.as_str(), 50)).collect();
        for ask in &rush.asks {
            let (who, command) = match ask {
                Rushed::Wait(ms) => {
                    world.wait(*ms);
                    continue;
                }
                Rushed::Buy { who: of, numbered, quantity } => (who(*of), buy(tier_of(*numbered), *quantity, &[])),
                Rushed::Named { who: of, seats: named } => {
                    let name = |at: &u32| format!("R{}-{}", at / 50 % rush.rows, at % 50 + 1);
                    let names: BTreeSet<String> = named.iter().map(name).collect();
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    (who(*of), buy("vip", names.len() as u32, &names))
                }
                Rushed::Hold { who: of, numbered, quantity, ttl_ms } => {
                    (who(*of), hold(tier_of(*numbered), *quantity, &[], *ttl_ms))
                }
                Rushed::Confirm { who: of, hold } => {
                    (who(*of), confirm(format!("ga-h{}", hold % 200 + 1)))
                }
                Rushed::Release { who: of, hold } => {
                    (who(*of), release(format!("vip-h{}", hold % 200 + 1)))
                }
                Rushed::Cancel { who: of, ticket } => {
                    (who(*of), cancel(format!("vip-{}", ticket % seats + 1)))
                }
                Rushed::Resize { capacity } => {
                    let tiers = vec![tier("vip", seats, &seat_rows), tier("ga", capacity % (10 * seats) + 1, &[])];
                    let command = change(Change { tiers: Some(tiers), ..Change::default() });
                    ("organiser".to_owned(), command)
                }
            };
            world.context.index += 1;
            world.context.request_id += 1;
            // Panics where it looks at more than `rows_max` rows.
            let answer = apply(&mut world.state, &world.context, caller(&who), &command);
            prop_assert!(answer.is_ok(), "{command:?}: {answer:?}");
        }
    }
}
