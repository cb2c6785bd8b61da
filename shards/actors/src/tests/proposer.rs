//! The proposer: whose turn it is, what waits, and what happens when nothing flows.

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
        rows.submit(tickets::MODULE, "flooded", flood);
        tokio::time::sleep(Duration::from_millis(50)).await;
        rows.submit(tickets::MODULE, "quiet", vec![request(9_999, buy(9_999, "quiet"), &asker)]);
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
            rows.submit(
                tickets::MODULE,
                row,
                (first..first + 20).map(|n| request(n, buy(n, row), &asker)).collect(),
            );
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
    rows.submit(tickets::MODULE, names[0], vec![request(0, buy(0, names[0]), &asker)]);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let all = rows_of.iter().map(|(_, count)| count).sum::<u64>();
    for (row, first) in names.iter().zip((1..).map(|n| n * 1_000)) {
        let count = rows_of.iter().find(|(name, _)| name == row).map_or(0, |(_, count)| *count);
        rows.submit(
            tickets::MODULE,
            row,
            (first..first + count).map(|n| request(n, buy(n, row), &asker)).collect(),
        );
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
            rows.submit(tickets::MODULE, "gala", vec![request(0, buy(0, "gala"), &asker)]);
            tokio::time::sleep(Duration::from_secs(1)).await;
            rows.submit(
                tickets::MODULE,
                "gala",
                (1..=waiting).map(|n| request(n, buy(n, "gala"), &asker)).collect(),
            );
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
        let hold = tickets::Command::from(tickets::Hold {
            event_id: "gala".into(),
            tier_id: "ga".into(),
            quantity: 1,
            seats: vec![],
            ttl_ms: 1_000,
        });
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
