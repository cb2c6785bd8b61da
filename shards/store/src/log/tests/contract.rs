//! The plain contract: what is written comes back, what is removed is gone, and foreign files are refused or left alone.

use tidewall_env::disk::CrashMode;

use super::*;

#[test]
fn an_empty_log_is_begun_and_found_again() {
    let disk = MemoryDisk::new();
    let (log, report) = open(&disk).unwrap();
    assert!(report.fresh);
    assert_eq!(log.group(3).state(), GroupLogState::default());
    assert!(all(&log.group(3)).is_empty());
    log.close().unwrap();
    let (_, report) = open(&disk).unwrap();
    assert!(!report.fresh);
    assert_eq!(report.torn, None);
}

#[test]
fn what_was_written_comes_back_after_a_close_and_after_a_crash() {
    for crash in [false, true] {
        let disk = MemoryDisk::new();
        let (log, _) = open(&disk).unwrap();
        let group = log.group(7);
        group.append(entries(0..5), ok());
        let vote = Vote { term: 4, node: 2, committed: true };
        group.save_vote(vote, ok());
        group.save_committed(Some(position(3)));
        group.append(entries(5..6), ok());
        let state = group.state();
        assert_eq!(
            (state.last, state.vote, state.committed),
            (Some(position(5)), Some(vote), Some(position(3)))
        );
        if crash {
            disk.crash(CrashMode::LoseUnsynced);
        } else {
            drop(group);
            log.close().unwrap();
        }
        let (log, report) = open(&disk).unwrap();
        assert_eq!((report.entries, report.groups), (6, 1));
        assert_eq!(log.group(7).state(), state);
        assert_eq!(all(&log.group(7)), entries(0..6));
        assert_eq!(log.group(8).state(), GroupLogState::default());
    }
}

#[test]
fn each_opening_begins_where_the_last_one_had_come_and_leaves_a_record_of_its_own() {
    for mode in
        [CrashMode::LoseUnsynced, CrashMode::TornPrefix { seed: 3 }, CrashMode::ScatteredSectors { seed: 4 }]
    {
        let disk = MemoryDisk::new();
        let mut reached = 0;
        for round in 0..4 {
            let (log, _) = open(&disk).unwrap();
            assert!(log.opened_at() >= reached, "{mode:?} {round}");
            assert!(log.reached() > log.opened_at(), "{mode:?} {round}");
            let copy = disk.copy();
            log.group(1).append(entries(round..round + 1), ok());
            reached = log.reached();
            assert!(open(&copy).unwrap().0.opened_at() < reached, "a copy begins before what came later");
            disk.crash(mode);
        }
    }
}

#[test]
fn a_committed_position_costs_no_barrier_but_a_close_keeps_it() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let group = log.group(1);
    group.append(entries(0..2), ok());
    let before = disk.counts();
    group.save_committed(Some(position(1)));
    assert_eq!(disk.counts(), before);
    let crashed = disk.copy();
    log.close().unwrap();
    assert_eq!(open(&crashed).unwrap().0.group(1).state().committed, None);
    assert_eq!(open(&disk).unwrap().0.group(1).state().committed, Some(position(1)));
}

#[test]
fn reads_are_bounded_consecutive_and_come_from_cache_or_disk() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let group = log.group(1);
    let big: Vec<LogEntry> = (0..40).map(|index| entry(index, &"x".repeat(50))).collect();
    for one in &big {
        group.append(vec![one.clone()], ok());
    }
    assert!(segment_files(&disk).len() > 1, "the read must span segments");
    assert_eq!(all(&group), big, "300 bytes of cache hold six of them, the rest is read back");
    assert_eq!(group.read(3, 9, usize::MAX).unwrap(), big[3..9]);
    assert_eq!(group.read(3, 9, 149).unwrap(), big[3..5]);
    assert_eq!(group.read(3, 9, 0).unwrap(), big[3..4], "at least one");
    assert!(group.read(40, 50, 1_000).unwrap().is_empty());
    assert!(group.read(9, 9, 1_000).unwrap().is_empty());
    group.purge(position(9), ok());
    assert_eq!(group.read(5, 12, usize::MAX).unwrap(), big[10..12], "what is purged is left out");
}

#[test]
#[should_panic(expected = "entry 6 was appended where 5 must follow")]
fn a_gap_is_a_broken_invariant() {
    let (log, _) = open(&MemoryDisk::new()).unwrap();
    log.group(1).append(entries(0..5), ok());
    log.group(1).append(entries(6..7), ok());
}

#[test]
fn truncation_takes_the_end_and_survives() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let group = log.group(1);
    group.append(entries(0..10), ok());
    group.truncate_after(Some(6), ok());
    assert_eq!(group.state().last, Some(position(6)));
    group.append(vec![entry(7, "another seven")], ok());
    group.truncate_after(Some(50), ok());
    disk.crash(CrashMode::LoseUnsynced);
    let (log, _) = open(&disk).unwrap();
    let group = log.group(1);
    let mut expected = entries(0..7);
    expected.push(entry(7, "another seven"));
    assert_eq!(all(&group), expected);
    group.purge(position(2), ok());
    group.truncate_after(Some(0), ok());
    assert_eq!((group.state().last, group.state().last_purged), (Some(position(2)), Some(position(2))));
    group.append(entries(3..4), ok());
    group.truncate_after(None, ok());
    disk.crash(CrashMode::LoseUnsynced);
    let (log, _) = open(&disk).unwrap();
    assert!(all(&log.group(1)).is_empty());
    assert_eq!(log.group(1).state().last, Some(position(2)));
    log.group(2).append(entries(0..1), ok());
    log.group(2).truncate_after(None, ok());
    assert_eq!(log.group(2).state(), GroupLogState::default());
}

#[test]
fn purging_deletes_segments_and_survives() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let (busy, idle) = (log.group(1), log.group(2));
    idle.save_vote(Vote { term: 9, node: 1, committed: false }, ok());
    for index in 0..200 {
        busy.append(entries(index..index + 1), ok());
    }
    let before = (segment_files(&disk).len(), log.disk_bytes());
    assert!(before.0 > 5);
    busy.purge(position(190), ok());
    let after = (segment_files(&disk).len(), log.disk_bytes());
    assert!(after.0 <= 2 && after.1 < before.1 / 2, "{before:?} {after:?}");
    busy.purge(position(100), ok());
    assert_eq!(busy.state().last_purged, Some(position(190)), "a purge never goes back");
    disk.crash(CrashMode::LoseUnsynced);
    let (log, report) = open(&disk).unwrap();
    assert_eq!(report.segments, after.0 as u64);
    assert_eq!(all(&log.group(1)), entries(191..200));
    assert_eq!(log.group(1).state().last_purged, Some(position(190)));
    assert_eq!(
        log.group(2).state().vote,
        Some(Vote { term: 9, node: 1, committed: false }),
        "a vote outlives the segment it was written to"
    );
    // Beyond the end, as after a snapshot that is ahead of the log.
    log.group(1).purge(position(500), ok());
    log.group(1).append(entries(501..502), ok());
    assert_eq!(all(&log.group(1)), entries(501..502));
}

#[test]
fn a_reset_empties_the_log_and_continues_behind_the_snapshot() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let group = log.group(1);
    group.append(entries(0..90), ok());
    group.reset_to(LogPosition { term: 5, node: 2, index: 40 }, ok());
    assert!(all(&group).is_empty(), "entries behind the snapshot go too: they may contradict it");
    group.append(entries(41..43), ok());
    disk.crash(CrashMode::LoseUnsynced);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(all(&log.group(1)), entries(41..43));
    assert_eq!(log.group(1).state().last_purged, Some(LogPosition { term: 5, node: 2, index: 40 }));
}

#[test]
fn purge_hints_name_who_pins_the_oldest_segments_and_purging_them_frees_room() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    log.group(1).append(entries(0..3), ok());
    log.group(2).append(entries(0..1), ok());
    for index in 0..200 {
        log.group(3).append(entries(index..index + 1), ok());
    }
    assert!(log.purge_hints(u64::MAX).is_empty());
    log.group(3).purge(position(198), ok());
    let pinned = log.disk_bytes();
    let hints = log.purge_hints(4_096);
    assert_eq!(hints, [(1, 2), (2, 0)]);
    for (group, last) in hints {
        log.group(group).purge(position(last), ok());
    }
    assert!(log.disk_bytes() <= 4_096 && log.disk_bytes() < pinned);
    assert!(log.purge_hints(0).is_empty() || segment_files(&disk).len() > 1);
}

#[test]
fn a_group_that_purges_nothing_any_more_pins_no_segment_for_ever() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let stuck = BTreeSet::from([1]);
    log.group(1).append(entries(0..20), ok());
    let mut moves = 0;
    for index in 0..2_000 {
        log.group(2).append(entries(index..index + 1), ok());
        if index > 10 {
            log.group(2).purge(position(index - 10), ok());
        }
        if log.disk_bytes() > 12_000 {
            while log.disk_bytes() > 6_000 && log.relocate(&stuck, 300, ok()).unwrap() {
                moves += 1;
            }
        }
        assert!(log.disk_bytes() < 20_000, "{} bytes", log.disk_bytes());
    }
    assert!(moves > 20, "{moves}");
    assert!(!log.relocate(&BTreeSet::new(), 300, ok()).unwrap(), "a sound group purges by itself");
    assert_eq!(all(&log.group(1)), entries(0..20));
    let live: u64 = entries(0..20).iter().map(|entry| record::entry_bytes(entry.payload.len()) as u64).sum();
    assert_eq!(log.live_bytes(&stuck), live);
    disk.crash(CrashMode::LoseUnsynced);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(all(&log.group(1)), entries(0..20));
    assert_eq!(all(&log.group(2)).len(), 10);
    // It is an ordinary part of the log still.
    log.group(1).truncate_after(Some(14), ok());
    log.group(1).purge(position(4), ok());
    disk.crash(CrashMode::LoseUnsynced);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(all(&log.group(1)), entries(5..15));
}

/// Whoever does not wait moves the same entries twice; the second copy must not make the segment of the first one look as if
/// nothing of it were alive.
#[test]
fn entries_that_are_moved_twice_stay_alive() {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 2_048);
    let stuck = BTreeSet::from([1]);
    let wait = |receiver: mpsc::Receiver<Result<(), LogError>>| receiver.recv().unwrap().unwrap();
    let append = |group: u32, indices: std::ops::Range<u64>, bytes: usize| {
        let (done, receiver) = outcome();
        let payload = "x".repeat(bytes);
        let added = indices.map(|index| entry(index, &payload)).collect();
        log.group(group).append(added, done);
        receiver
    };
    let relocate = || {
        let (done, receiver) = outcome();
        assert!(log.relocate(&stuck, 50, done).unwrap());
        receiver
    };
    wait(append(1, 0..20, 10));
    wait(append(2, 0..1, 1_500));
    log.group(2).purge(position(0), ok());
    // Five entries to the second segment, and five more, which stay unpublished.
    wait(relocate());
    disk.hold_syncs_after(0);
    let first = relocate();
    while disk.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    // The same five again, in a segment of their own.
    let filler = append(2, 1..2, 1_500);
    let second = relocate();
    disk.hold_syncs_after(1_000);
    for receiver in [first, filler, second] {
        wait(receiver);
    }
    log.close().unwrap();
    let (log, report) = open(&disk).unwrap();
    assert!(report.segments >= 3, "{report:?}: this tests nothing");
    log.group(2).purge(position(1), ok());
    // As far as it goes: each segment in turn is the oldest.
    for index in 2..60 {
        log.group(2).append(vec![entry(index, &"y".repeat(200))], ok());
        log.group(2).purge(position(index), ok());
        let _ = log.relocate(&stuck, 1, ok()).unwrap();
        assert_eq!(all(&log.group(1)).len(), 20);
    }
    drop(log);
    let (log, _) = open(&disk).unwrap();
    assert_eq!(all(&log.group(1)).len(), 20);
}

#[test]
fn a_closed_log_says_so_and_dropping_all_handles_closes() {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 2_048);
    let group = log.group(1);
    let (done, result) = outcome();
    group.append(entries(0..1), done);
    log.close().unwrap();
    result.try_recv().unwrap().unwrap();
    let (done, result) = outcome();
    group.append(entries(1..2), done);
    assert!(matches!(result.try_recv().unwrap(), Err(LogError::Closed)));
    drop(group);

    let log = threaded(disk.clone(), 2_048);
    let (done, result) = outcome();
    log.group(1).append(entries(1..2), done);
    drop(log);
    result.try_recv().unwrap().unwrap();
    assert_eq!(all(&open(&disk).unwrap().0.group(1)), entries(0..2));
}

#[test]
fn a_callback_may_use_the_log_and_hold_its_last_handle() {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 2_048);
    let group = log.group(1);
    let (done, result) = outcome();
    let inner = group.clone();
    group.append(
        entries(0..1),
        Box::new(move |first| {
            first.unwrap();
            assert_eq!(all(&inner), entries(0..1));
            inner.append(entries(1..2), done);
        }),
    );
    drop((log, group));
    // Appended while closing: either done or refused, but answered.
    let answer = result.recv().unwrap();
    assert!(matches!(answer, Ok(()) | Err(LogError::Closed)), "{answer:?}");
}

#[test]
fn a_panicking_callback_does_not_stop_the_log() {
    let log = threaded(MemoryDisk::new(), 2_048);
    log.group(1).append(entries(0..1), Box::new(|_| panic!("a defect of the caller")));
    let (done, result) = outcome();
    log.group(1).append(entries(1..2), done);
    result.recv().unwrap().unwrap();
}

#[test]
fn the_log_of_another_cluster_node_or_format_is_refused_and_unchanged() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    log.group(1).append(entries(0..3), ok());
    log.close().unwrap();
    let before = file_bytes(&disk, "log-0000000001.seg");

    let other = LogOptions { cluster: [9; 16], ..options() };
    let error = NodeLog::open(Arc::new(disk.clone()), other).unwrap_err();
    assert!(matches!(error, LogError::WrongCluster { expected, .. } if expected == [9; 16]), "{error}");
    let other = LogOptions { node: 2, ..options() };
    let error = NodeLog::open(Arc::new(disk.clone()), other).unwrap_err();
    assert!(matches!(error, LogError::WrongNode { found: 1, expected: 2 }), "{error}");
    assert!(error.to_string().contains("its own data directory"), "{error}");
    assert_eq!(file_bytes(&disk, "log-0000000001.seg"), before);

    // A later build's header: same first 64 bytes, other number, valid checksum.
    let mut newer = before.clone();
    newer[8..12].copy_from_slice(&3_u32.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&newer[..12]), &newer[16..64]);
    newer[12..16].copy_from_slice(&checksum.to_le_bytes());
    disk.open("log-0000000001.seg").unwrap().write_at(0, &newer).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, LogError::UnsupportedFormat { found: 3, supported: 2 }), "{error}");
    assert_eq!(file_bytes(&disk, "log-0000000001.seg"), newer);
}

#[test]
fn other_files_in_the_directory_are_left_alone() {
    let disk = MemoryDisk::new();
    disk.create("CLUSTER").unwrap().append(b"not ours").unwrap();
    drop(open(&disk).unwrap());
    drop(open(&disk).unwrap());
    assert_eq!(file_bytes(&disk, "CLUSTER"), b"not ours");
}
