//! The proposer: whose turn it is, who rests, and what happens when nothing flows.

use std::collections::BTreeMap;

use super::*;
use crate::proposer::UNCONFIRMED_TICK;

#[test]
fn a_flood_on_one_row_leaves_room_for_the_others() {
    run(async {
        let fake = Fake::new(&["flooded", "quiet"], 100_000);
        fake.close();
        let limits = Limits { entry_commands_max: 64, portion_max: 16, entries_in_flight: 1, ..limits() };
        let rows = started(&fake, limits);
        let (asker, mut answers) = channel();
        let flood = (0..3_000).map(|n| request(n, buy(n, "flooded"), &asker)).collect();
        rows.submit("flooded", flood);
        tokio::time::sleep(Duration::from_millis(50)).await;
        rows.submit("quiet", vec![request(9_999, buy(9_999, "quiet"), &asker)]);
        tokio::time::sleep(Duration::from_millis(50)).await;
        fake.gate.add_permits(1_000);
        let mut before = 0;
        loop {
            let (n, _) = next(&mut answers).await;
            if n == 9_999 {
                break;
            }
            before += 1;
        }
        // Two entries at most were filled before it came: the one on its way and the one it rides in.
        assert!(before <= 2 * 64, "{before} requests of the flooded row went first");
    });
}

/// A rest of so long, whatever an entry took.
fn rest(max: Duration) -> Rest {
    Rest { times: u32::MAX, max }
}

#[test]
fn a_heavy_group_rests_while_its_neighbours_write() {
    let (long, short) = (Duration::from_millis(400), Duration::from_millis(100));
    // Commands of the first entry, who else writes, and how long the next entry then waits.
    let cases = [
        (10, Company::Light, long),
        (10, Company::Heavy, short),
        (10, Company::None, Duration::ZERO),
        (8, Company::Light, long),
        (7, Company::Light, Duration::ZERO),
    ];
    for (commands, company, rests) in cases {
        run(async {
            tokio::time::pause();
            let fake = Fake::new(&["gala"], 100);
            *fake.company.lock() = company;
            fake.close();
            let limits =
                Limits { rest_long: rest(long), rest_short: rest(short), heavy_commands_min: 8, ..limits() };
            let rows = started(&fake, limits);
            let (asker, mut answers) = channel();
            rows.submit("gala", (0..commands).map(|n| request(n, buy(n, "gala"), &asker)).collect());
            tokio::time::sleep(Duration::from_secs(1)).await;
            fake.gate.add_permits(2);
            for _ in 0..commands {
                assert_eq!(reason(&next(&mut answers).await.1), "done");
            }
            let settled = tokio::time::Instant::now();
            rows.submit("gala", vec![request(99, buy(99, "gala"), &asker)]);
            assert_eq!(reason(&next(&mut answers).await.1), "done");
            let waited = settled.elapsed();
            let expected = rests..rests + Duration::from_millis(50);
            assert!(expected.contains(&waited), "{commands} commands, company {company:?}: {waited:?}");
            assert_eq!(fake.entries().len(), 2);
        });
    }
}

/// Three commands are half of an entry of ten, and no flood.
#[test]
fn a_row_with_few_commands_rests_briefly_at_most() {
    run(async {
        tokio::time::pause();
        let (long, short) = (Duration::from_millis(400), Duration::from_millis(100));
        let names = ["gala", "opera", "choir", "circus"];
        let fake = Fake::new(&names, 100);
        *fake.company.lock() = Company::Light;
        fake.close();
        let rows = started(&fake, Limits { rest_long: rest(long), rest_short: rest(short), ..limits() });
        let (asker, mut answers) = channel();
        for (n, row) in (0..).zip(names) {
            rows.submit(row, (10 * n..10 * n + 3).map(|n| request(n, buy(n, row), &asker)).collect());
        }
        for (permits, decided) in [(1, 3), (10, 9)] {
            tokio::time::sleep(Duration::from_secs(1)).await;
            fake.gate.add_permits(permits);
            for _ in 0..decided {
                assert_eq!(reason(&next(&mut answers).await.1), "done");
            }
        }
        // The first entry has what came first, the second all the others.
        assert_eq!(fake.entries().iter().map(Vec::len).collect::<Vec<_>>(), [3, 9]);
        let settled = tokio::time::Instant::now();
        rows.submit("circus", vec![request(99, buy(99, "circus"), &asker)]);
        assert_eq!(next(&mut answers).await.0, 99);
        assert!((short..long).contains(&settled.elapsed()), "{:?}", settled.elapsed());
    });
}

#[test]
fn a_rest_grows_with_the_entry_up_to_its_bound() {
    let rest = Rest { times: 8, max: Duration::from_millis(32) };
    for (took, expected) in [(0, 0), (1, 8), (4, 32), (5, 32), (u64::MAX, 32)] {
        assert_eq!(rest.after(Duration::from_millis(took)), Duration::from_millis(expected), "{took}");
    }
}

#[test]
fn light_rows_do_not_rest_with_a_heavy_one() {
    run(async {
        tokio::time::pause();
        let rest_max = Duration::from_millis(400);
        let fake = Fake::new(&["flooded", "quiet"], 100);
        *fake.company.lock() = Company::Light;
        fake.close();
        let rows = started(&fake, Limits { rest_long: rest(rest_max), ..limits() });
        let (asker, mut answers) = channel();
        rows.submit("flooded", (0..20).map(|n| request(n, buy(n, "flooded"), &asker)).collect());
        tokio::time::sleep(Duration::from_secs(1)).await;
        fake.gate.add_permits(10);
        for _ in 0..20 {
            assert_eq!(reason(&next(&mut answers).await.1), "done");
        }
        let settled = tokio::time::Instant::now();
        rows.submit("flooded", vec![request(20, buy(20, "flooded"), &asker)]);
        rows.submit("quiet", vec![request(21, buy(21, "quiet"), &asker)]);
        assert_eq!(next(&mut answers).await.0, 21);
        assert!(settled.elapsed() < rest_max);
        assert_eq!(next(&mut answers).await.0, 20);
        assert!(settled.elapsed() >= rest_max);
    });
}

/// Not only the rows of the last entry: the next one may have others, and would follow at once.
#[test]
fn a_group_of_many_light_rows_rests_as_a_whole() {
    run(async {
        tokio::time::pause();
        let rest_max = Duration::from_millis(400);
        let names: Vec<String> = (0..12).map(|n| format!("row-{n}")).collect();
        let fake = Fake::new(&names.iter().map(String::as_str).collect::<Vec<_>>(), 100);
        *fake.company.lock() = Company::Light;
        fake.close();
        let rows = started(&fake, Limits { rest_short: rest(rest_max), heavy_commands_min: 8, ..limits() });
        let (asker, mut answers) = channel();
        let ask = |n: u64| {
            let row = &names[n as usize];
            rows.submit(row, vec![request(n, buy(n, row), &asker)]);
        };
        // The first entry has one command, the second one all that came meanwhile.
        (0..10).for_each(ask);
        tokio::time::sleep(Duration::from_secs(1)).await;
        fake.gate.add_permits(1);
        assert_eq!(next(&mut answers).await.0, 0);
        tokio::time::sleep(Duration::from_secs(1)).await;
        fake.gate.add_permits(10);
        for _ in 1..10 {
            assert_eq!(reason(&next(&mut answers).await.1), "done");
        }
        assert_eq!(fake.entries().iter().map(Vec::len).collect::<Vec<_>>(), [1, 9]);
        let settled = tokio::time::Instant::now();
        ask(10);
        assert_eq!(next(&mut answers).await.0, 10);
        assert!(settled.elapsed() >= rest_max);
        // Awake again, and alone.
        let woken = tokio::time::Instant::now();
        ask(11);
        assert_eq!(next(&mut answers).await.0, 11);
        assert!(woken.elapsed() < rest_max);
    });
}

#[test]
fn a_rows_commands_are_decided_in_the_order_in_which_they_came() {
    run(async {
        let fake = Fake::new(&["gala", "opera"], 100);
        fake.close();
        let limits = Limits {
            offer_commands_max: 4,
            portion_max: 2,
            entry_commands_max: 6,
            entries_in_flight: 1,
            ..limits()
        };
        let rows = started(&fake, limits);
        let (asker, mut answers) = channel();
        for (first, row) in [(0, "gala"), (100, "opera")] {
            rows.submit(row, (first..first + 20).map(|n| request(n, buy(n, row), &asker)).collect());
        }
        fake.gate.add_permits(100);
        for _ in 0..40 {
            assert_eq!(reason(&next(&mut answers).await.1), "done");
        }
        let decided: Vec<u64> =
            fake.entries().iter().flatten().map(|command| command.request_id as u64).collect();
        for first in [0, 100] {
            let row: Vec<u64> = decided.iter().copied().filter(|n| n / 100 * 100 == first).collect();
            assert_eq!(row, (first..first + 20).collect::<Vec<_>>(), "of {decided:?}");
        }
        // They take turns all the same.
        assert!(
            decided[..8].iter().any(|n| *n < 100) && decided[..8].iter().any(|n| *n >= 100),
            "{decided:?}"
        );
    });
}

/// Submits so many purchases of each row while an entry is on its way; returns the entries after that one, by row.
async fn filled(limits: Limits, rows_of: &[(&'static str, u64)]) -> Vec<BTreeMap<&'static str, usize>> {
    let names: Vec<&str> = rows_of.iter().map(|(name, _)| *name).collect();
    let fake = Fake::new(&names, 1_000);
    fake.close();
    let rows = started(&fake, limits);
    let (asker, mut answers) = channel();
    rows.submit(names[0], vec![request(0, buy(0, names[0]), &asker)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = rows_of.iter().map(|(_, count)| count).sum::<u64>();
    for (row, first) in names.iter().zip((1..).map(|n| n * 1_000)) {
        let count = rows_of.iter().find(|(name, _)| name == row).map_or(0, |(_, count)| *count);
        rows.submit(row, (first..first + count).map(|n| request(n, buy(n, row), &asker)).collect());
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    fake.gate.add_permits(1_000);
    for _ in 0..=all {
        assert_eq!(reason(&next(&mut answers).await.1), "done");
    }
    let row_of = |command: &Command| names[(command.request_id as u64 / 1_000) as usize - 1];
    let by_row = |entry: &Vec<Command>| {
        let mut counts = BTreeMap::new();
        for command in entry {
            *counts.entry(row_of(command)).or_default() += 1;
        }
        counts
    };
    fake.entries()[1..].iter().map(by_row).collect()
}

#[test]
fn rows_share_an_entry_by_portions_and_what_is_left_goes_to_who_has_more() {
    run(async {
        tokio::time::pause();
        let limits = Limits {
            entry_commands_max: 10,
            portion_max: 100,
            entries_in_flight: 1,
            offer_commands_max: 3,
            ..limits()
        };
        let entries = filled(limits, &[("gala", 12), ("opera", 12)]).await;
        let expected =
            [[("gala", 5), ("opera", 5)], [("gala", 5), ("opera", 5)], [("gala", 2), ("opera", 2)]];
        assert_eq!(entries, expected.map(BTreeMap::from));
        // A portion is no more than its bound, and a second turn comes when there is room.
        let narrow = Limits { portion_max: 2, ..limits };
        let entries = filled(narrow, &[("gala", 12), ("opera", 3)]).await;
        let expected = [BTreeMap::from([("gala", 7), ("opera", 3)]), BTreeMap::from([("gala", 5)])];
        assert_eq!(entries, expected);
        // More rows than room: as many as there is room for, and the others next.
        let entries =
            filled(Limits { entry_commands_max: 2, ..limits }, &[("gala", 1), ("opera", 1), ("choir", 1)])
                .await;
        let expected = [BTreeMap::from([("gala", 1), ("opera", 1)]), BTreeMap::from([("choir", 1)])];
        assert_eq!(entries, expected);
    });
}

#[test]
fn an_entry_ends_with_the_command_that_reaches_its_bytes() {
    run(async {
        tokio::time::pause();
        let one = buy(1_000, "gala").bytes();
        for (bytes, commands) in [(1, 1), (one, 1), (one + 1, 2), (2 * one, 2), (3 * one - 1, 3)] {
            let limits = Limits { entry_bytes_max: bytes, entries_in_flight: 1, ..limits() };
            let entries = filled(limits, &[("gala", 6)]).await;
            let expected = vec![BTreeMap::from([("gala", commands)]); 6 / commands];
            assert_eq!(entries, expected, "{bytes} bytes");
        }
    });
}

#[test]
fn only_large_entries_overlap_and_only_so_many() {
    for (waiting, in_flight) in [(7, 1), (8, 2), (16, 3), (60, 3)] {
        run(async {
            tokio::time::pause();
            let fake = Fake::new(&["gala"], 1_000);
            fake.close();
            let limits = Limits {
                entries_in_flight: 3,
                overlap_commands_min: 8,
                entry_commands_max: 8,
                portion_max: 8,
                ..limits()
            };
            let rows = started(&fake, limits);
            let (asker, mut answers) = channel();
            rows.submit("gala", vec![request(0, buy(0, "gala"), &asker)]);
            tokio::time::sleep(Duration::from_secs(1)).await;
            rows.submit("gala", (1..=waiting).map(|n| request(n, buy(n, "gala"), &asker)).collect());
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(fake.proposals.load(Ordering::SeqCst), in_flight, "{waiting} commands wait");
            fake.gate.add_permits(1_000);
            for _ in 0..=waiting {
                assert_eq!(reason(&next(&mut answers).await.1), "done");
            }
        });
    }
}

#[test]
fn ticks_come_only_when_there_is_reason() {
    // Whether it leads, whether its clock is confirmed, and whether time is let pass while nothing is due.
    for (leads, trusted, ticks) in [(true, true, false), (true, false, true), (false, false, false)] {
        run(async {
            tokio::time::pause();
            let fake = Fake::new(&["gala"], 1);
            fake.leads.store(leads, Ordering::SeqCst);
            fake.trusted.store(trusted, Ordering::SeqCst);
            let _rows = started(&fake, limits());
            let proposals = || fake.proposals.load(Ordering::SeqCst);
            tokio::time::sleep(UNCONFIRMED_TICK - Duration::from_millis(300)).await;
            assert_eq!(proposals(), 0, "too early");
            tokio::time::sleep(Duration::from_millis(900)).await;
            assert_eq!(proposals(), u64::from(ticks), "leads: {leads}, confirmed: {trusted}");
            tokio::time::sleep(10 * UNCONFIRMED_TICK).await;
            let expected = if ticks { 9..=11 } else { 0..=0 };
            assert!(expected.contains(&proposals()), "{}", proposals());
        });
    }
}

#[test]
fn a_due_hold_is_ended_by_a_tick_when_nothing_flows() {
    run(async {
        let fake = Fake::new(&["gala"], 1);
        let hold = tickets::Command::Hold {
            event: "gala".into(),
            tier: "ga".into(),
            quantity: 1,
            seats: vec![],
            ttl_ms: 1_000,
        };
        fake.apply(&[command(1, hold)]);
        let _rows = started(&fake, limits());
        tokio::time::sleep(Duration::from_millis(600)).await;
        let sweep = fake.machine.lock().next_due_ms().expect("ended before its time");
        fake.now_ms.store(sweep, Ordering::SeqCst);
        timeout(PATIENCE, async {
            while fake.machine.lock().next_due_ms() == Some(sweep) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the tick came");
    });
}
