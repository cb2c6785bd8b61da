//! The writer: shared barriers, order, and many threads on a real disk.

use tidewall_env::disk::{CrashMode, RealDisk};

use super::*;

#[test]
fn appends_of_many_groups_share_a_barrier_and_are_answered_in_order() {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 1 << 20);
    let (sender, receiver) = mpsc::channel();
    disk.hold_syncs_after(0);
    let before = disk.counts();
    // The first one occupies the writer; all others gather behind its barrier.
    let first = sender.clone();
    log.group(0).append(entries(0..1), Box::new(move |outcome| first.send((outcome.is_ok(), 0)).unwrap()));
    while disk.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    let mut number = 0;
    for round in 0..50 {
        for group in 1..=12 {
            number += 1;
            let sender = sender.clone();
            log.group(group).append(
                entries(round..round + 1),
                Box::new(move |outcome| sender.send((outcome.is_ok(), number)).unwrap()),
            );
        }
    }
    let last = sender.clone();
    log.group(3).barrier(Box::new(move |outcome| last.send((outcome.is_ok(), 601)).unwrap()));
    assert_eq!(all(&log.group(12)), entries(0..50), "readable before it is durable");
    assert!(receiver.try_recv().is_err(), "nothing is done before its barrier");
    disk.release_syncs();
    for expected in 0..=601 {
        assert_eq!(receiver.recv().unwrap(), (true, expected));
    }
    assert_eq!(disk.counts().syncs - before.syncs, 2, "601 appends, two barriers");
    log.close().unwrap();
}

#[test]
fn an_entry_that_is_replaced_while_its_write_is_under_way_is_not_confused_with_its_successor() {
    let disk = MemoryDisk::new();
    // Without a cache, so that what is read is what was noted of where it stands.
    let options = LogOptions { inline: false, segment_bytes: 1 << 20, cache_bytes: 0, ..options() };
    let log = NodeLog::open(Arc::new(disk.clone()), options).unwrap().0;
    let group = log.group(1);
    disk.hold_syncs_after(0);
    group.append(vec![entry(0, "kept"), entry(1, "first")], ok());
    while disk.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    group.truncate_after(Some(0), ok());
    let (done, result) = outcome();
    group.append(vec![entry(1, "other")], done);
    disk.release_syncs();
    result.recv().unwrap().unwrap();
    let expected = [entry(0, "kept"), entry(1, "other")];
    assert_eq!(all(&group), expected);
    drop(group);
    log.close().unwrap();
    let (log, _) = open(&disk).unwrap();
    assert_eq!(all(&log.group(1)), expected, "and from the disk");
}

#[test]
fn a_committed_position_does_not_overtake_the_entry_that_it_names() {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 64 << 20);
    let group = log.group(1);
    let (done, first) = outcome();
    disk.hold_syncs_after(0);
    group.append(entries(0..1), done);
    while disk.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    // More than one batch holds: the queue is worked off in several.
    let big = "z".repeat(2 << 20);
    let mut answers = Vec::new();
    for index in 1..6 {
        let (done, answer) = outcome();
        group.append(vec![entry(index, &big)], done);
        answers.push(answer);
    }
    group.save_committed(Some(position(5)));
    disk.hold_syncs_after(2);
    first.recv().unwrap().unwrap();
    answers[0].recv().unwrap().unwrap();
    while disk.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    disk.crash(CrashMode::LoseUnsynced);
    drop((log, group));
    let (log, _) = open(&disk).unwrap();
    let state = log.group(1).state();
    let last = state.last.unwrap().index;
    assert!((1..5).contains(&last), "power was cut between two batches: {last}");
    assert_eq!(state.committed, None);
}

#[test]
fn twelve_groups_on_threads_on_a_real_disk() {
    let directory = tempfile::tempdir().unwrap();
    let log = threaded(RealDisk::open(directory.path()).unwrap(), 64 << 10);
    std::thread::scope(|scope| {
        for id in 0..12 {
            let group = log.group(id);
            scope.spawn(move || {
                let (sender, receiver) = mpsc::channel();
                for round in 0..60 {
                    let from = round * 5;
                    let sender = sender.clone();
                    group.append(
                        entries(from..from + 5),
                        Box::new(move |outcome| sender.send(outcome).unwrap()),
                    );
                    receiver.recv().unwrap().unwrap();
                    if round % 20 == 10 {
                        group.truncate_after(Some(from + 2), ok());
                        group.append(entries(from + 3..from + 5), ok());
                    }
                    if round % 20 == 15 {
                        group.purge(position(from), ok());
                    }
                    let first = group.state().first_index();
                    let read = group.read(first, u64::MAX, usize::MAX).unwrap();
                    assert_eq!(read, entries(first..from + 5));
                }
            });
        }
    });
    let states: Vec<GroupLogState> = (0..12).map(|id| log.group(id).state()).collect();
    log.close().unwrap();
    let log = threaded(RealDisk::open(directory.path()).unwrap(), 64 << 10);
    for (id, state) in (0..12).zip(states) {
        assert_eq!(log.group(id).state(), state);
        assert_eq!(state.last_purged, Some(position(275)));
        assert_eq!(all(&log.group(id)), entries(276..300));
    }
}
