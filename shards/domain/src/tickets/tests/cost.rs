//! What a command costs goes by its own size, never by how many rows there are or how they came to be: apply runs on the
//! thread that all regions share.

use super::*;

/// A tier of `rows` rows of 50 seats, sold in hundreds by turns, every second ticket of which was cancelled: as scattered
/// as its free seats can be. A second event has holds without number that are all due.
fn scattered(rows: u32) -> World {
    let labels: Vec<String> = (0..rows).map(|row| format!("R{row}")).collect();
    let seat_rows: Vec<(&str, u32)> = labels.iter().map(|label| (label.as_str(), 50)).collect();
    let seats = u64::from(rows) * 50;
    let mut state = World { state: State::default(), context: context(1_000) };
    let tiers = vec![tier("vip", seats, &seat_rows), tier("ga", 10 * seats, &[])];
    let event = Command::CreateEvent {
        event: "gala".into(),
        display_name: "Gala".into(),
        quota: 100_000,
        opens_ms: 0,
        closes_ms: 0,
        tiers,
    };
    quietly(&mut state, "organiser", &event);
    for turn in 0..rows / 4 {
        let who = format!("buyer{}", turn % 50);
        let Outcome::Purchased { first, .. } = quietly(&mut state, &who, &buy("vip", 100, &[])) else {
            panic!("nothing was bought");
        };
        for number in (first..first + 100).step_by(2) {
            let ticket = format!("vip-{number}");
            quietly(&mut state, &who, &Command::CancelTicket { event: "gala".into(), ticket });
        }
        for _ in 0..8 {
            quietly(&mut state, &who, &hold("ga", 1, &[], 1));
        }
    }
    state
}

/// Without the checks over all rows, which take long in a large world.
fn quietly(world: &mut World, who: &str, command: &Command) -> Outcome {
    world.context.index += 1;
    world.context.request_id += 1;
    let caller = Caller { principal: who, privileged: false };
    let answer = apply(&mut world.state, &world.context, caller, command).unwrap();
    world.state.commit();
    answer.unwrap_or_else(|why| panic!("{command:?}: {why:?}"))
}

fn looked_at(state: &State) -> u64 {
    state.events.looked_at()
        + state.stock.looked_at()
        + state.tickets.looked_at()
        + state.holds.looked_at()
        + state.seats.looked_at()
        + state.counters.looked_at()
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
    let gala = || "gala".to_owned();
    cost(&mut world, "buy 1", "ann", &buy("vip", 1, &[]));
    cost(&mut world, "buy 100", "ann", &buy("vip", 100, &[]));
    cost(&mut world, "buy 100 unnumbered", "ann", &buy("ga", 100, &[]));
    let last = format!("R{}-50", rows - 1);
    cost(&mut world, "buy a named seat", "ann", &buy("vip", 1, &[&last]));
    let Outcome::Held { hold, .. } =
        cost(&mut world, "hold 100", "ann", &self::hold("vip", 100, &[], 60_000))
    else {
        panic!("nothing was held");
    };
    let hold = format!("vip-h{hold}");
    let confirmed = cost(&mut world, "confirm 100", "ann", &Command::ConfirmHold { event: gala(), hold });
    let Outcome::Held { hold, .. } = quietly(&mut world, "ann", &self::hold("vip", 100, &[], 60_000)) else {
        panic!("nothing was held");
    };
    let hold = format!("vip-h{hold}");
    cost(&mut world, "release 100", "ann", &Command::ReleaseHold { event: gala(), hold });
    let Outcome::Purchased { first, .. } = confirmed else { panic!("nothing was confirmed") };
    let ticket = format!("vip-{first}");
    cost(&mut world, "cancel", "ann", &Command::CancelTicket { event: gala(), ticket });
    let rename = Command::UpdateEvent {
        event: gala(),
        display_name: Some("Ball".into()),
        quota: None,
        opens_ms: None,
        closes_ms: None,
        tiers: None,
        expected_revision: 0,
    };
    cost(&mut world, "update", "organiser", &rename);
    let create = Command::CreateEvent {
        event: "other".into(),
        display_name: "Other".into(),
        quota: 4,
        opens_ms: 0,
        closes_ms: 0,
        tiers: vec![tier("ga", 10, &[])],
    };
    cost(&mut world, "create", "organiser", &create);
    // All holds of the crowd are due.
    world.wait(10_000);
    let before = looked_at(&world.state);
    assert_eq!(
        world.state.sold_out("gala", "ga", 1, world.context.now_ms, world.context.steady_ms),
        QuickNo::AskTheLog
    );
    found.insert("quick no".into(), looked_at(&world.state) - before);
    let before = looked_at(&world.state);
    let timer = next_timer(&world.state, &world.context).expect("holds are due");
    fire(&mut world.state, &world.context, timer).unwrap();
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
