//! The log against a simple model, on a disk that crashes, lies and decays.
//!
//! The checker ([`Model::check`]) answers with a `Result`, so that tests can show that it fails when it must.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bytes::Bytes;
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidewall_env::disk::{CrashMode, Disk, MemoryDisk, RealDisk};

use super::*;

const CLUSTER: [u8; 16] = *b"a test's cluster";

fn options() -> LogOptions {
    LogOptions { segment_bytes: 2_048, cache_bytes: 300, inline: true, ..LogOptions::new(CLUSTER, 1) }
}

fn open(disk: &MemoryDisk) -> Result<(NodeLog, RecoveryReport), LogError> {
    NodeLog::open(Arc::new(disk.clone()), options())
}

fn threaded(disk: impl Disk, segment_bytes: u64) -> NodeLog {
    let options = LogOptions { inline: false, segment_bytes, ..options() };
    NodeLog::open(Arc::new(disk), options).unwrap().0
}

fn position(index: u64) -> LogPosition {
    LogPosition { term: 1, node: 1, index }
}

fn entry(index: u64, payload: &str) -> LogEntry {
    LogEntry { position: position(index), payload: Bytes::copy_from_slice(payload.as_bytes()) }
}

fn entries(indices: std::ops::Range<u64>) -> Vec<LogEntry> {
    indices.map(|index| entry(index, &format!("entry {index}"))).collect()
}

/// A `done` that must be called with `Ok`, and by the time the test looks.
fn ok() -> Done {
    Box::new(|outcome| outcome.unwrap())
}

/// A `done` and where its outcome arrives.
fn outcome() -> (Done, mpsc::Receiver<Result<(), LogError>>) {
    let (sender, receiver) = mpsc::channel();
    (Box::new(move |outcome| sender.send(outcome).unwrap()), receiver)
}

fn all(group: &GroupLog) -> Vec<LogEntry> {
    group.read(0, u64::MAX, usize::MAX).unwrap()
}

fn segment_files(disk: &dyn Disk) -> Vec<String> {
    disk.list().unwrap().into_iter().filter(|name| segment::number(name).is_some()).collect()
}

fn file_bytes(disk: &dyn Disk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

/// Where each record of a segment starts, and where the last one ends, found without the sequence numbers.
fn record_offsets(bytes: &[u8], number: u64) -> Vec<usize> {
    let seed = options().identity().seed(number);
    let mut offsets = vec![usize::try_from(segment::RECORDS_AT).unwrap()];
    while let Ok(record) =
        record::decode(&bytes[*offsets.last().unwrap()..], seed, *offsets.last().unwrap() as u64)
    {
        offsets.push(offsets.last().unwrap() + record.bytes);
    }
    offsets
}

// ---- the plain contract ---------------------------------------------------------------------------------------

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

// ---- who owns the files ---------------------------------------------------------------------------------------

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
    newer[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let checksum = crc32c::crc32c_append(crc32c::crc32c(&newer[..12]), &newer[16..64]);
    newer[12..16].copy_from_slice(&checksum.to_le_bytes());
    disk.open("log-0000000001.seg").unwrap().write_at(0, &newer).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, LogError::UnsupportedFormat { found: 2, supported: 1 }), "{error}");
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

// ---- damage ---------------------------------------------------------------------------------------------------

/// A log of several segments, all of it vouched for.
fn small_log(disk: &MemoryDisk) -> Vec<LogEntry> {
    let (log, _) = open(disk).unwrap();
    let group = log.group(1);
    for index in 0..45 {
        group.append(entries(index..index + 1), ok());
    }
    group.save_vote(Vote { term: 2, node: 1, committed: true }, ok());
    group.append(entries(45..48), ok());
    log.close().unwrap();
    assert!(segment_files(disk).len() >= 3);
    entries(0..48)
}

#[test]
fn every_flipped_bit_in_what_was_durable_is_found() {
    let pristine = MemoryDisk::new();
    let written = small_log(&pristine);
    let files = segment_files(&pristine);
    let (mut refused, mut harmless) = (0, 0);
    for (position, name) in files.iter().enumerate() {
        let bytes = file_bytes(&pristine, name);
        let number = segment::number(name).unwrap();
        let offsets = record_offsets(&bytes, number);
        // Behind the records is unused room. At the very end of the log stands the last mark, which nothing
        // vouches for and which holds nothing but what it vouches for itself.
        let is_last = position + 1 == files.len();
        let live = if is_last { offsets[offsets.len() - 2] } else { offsets[offsets.len() - 1] };
        for offset in 0..bytes.len() {
            let disk = pristine.copy();
            let bit = u8::try_from((offset * 5 + position) % 8).unwrap();
            disk.flip_bit(name, offset as u64, bit).unwrap();
            let damaged = file_bytes(&disk, name);
            match open(&disk) {
                Ok((log, _)) => {
                    assert!(offset >= live, "{name}: a flipped bit at {offset} was not found");
                    assert_eq!(all(&log.group(1)), written, "{name}: {offset}");
                    assert!(log.group(1).state().vote.is_some());
                    harmless += 1;
                }
                Err(LogError::Corrupt { .. }) => {
                    assert!(offset < live, "{name}: a flipped bit at {offset} in unused room was refused");
                    assert_eq!(file_bytes(&disk, name), damaged, "what is refused stays as it was found");
                    refused += 1;
                }
                Err(other) => panic!("{name}: {offset}: {other}"),
            }
        }
    }
    assert!(refused > 1_000 && harmless > 0, "{refused} {harmless}");
}

#[test]
fn the_error_of_a_damaged_log_says_where_what_and_what_to_do() {
    let disk = MemoryDisk::new();
    small_log(&disk);
    disk.flip_bit("log-0000000001.seg", 300, 3).unwrap();
    let error = open(&disk).unwrap_err();
    let LogError::Corrupt { segment: 1, offset, what, advice } = &error else { panic!("{error}") };
    assert!((96..=300).contains(offset), "{offset}");
    assert!(what.contains("durable"), "{what}");
    assert!(advice.contains("new node id"), "{advice}");
    assert!(error.to_string().contains("log-0000000001.seg"), "{error}");
}

#[test]
fn damage_below_a_watermark_is_corruption_also_at_the_very_end_of_the_log() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    log.group(1).append(entries(0..1), ok());
    let bytes = file_bytes(&disk, "log-0000000001.seg");
    let offsets = record_offsets(&bytes, 1);
    // State, mark of the opening, mark, entry, idle mark.
    assert_eq!(offsets.len() - 1, 5);
    let entry_at = offsets[3];
    let rotten = disk.copy();
    rotten.flip_bit("log-0000000001.seg", entry_at as u64 + 40, 0).unwrap();
    assert!(matches!(open(&rotten), Err(LogError::Corrupt { .. })));
    // Without the idle mark the same damage is what a crash before the barrier looks like.
    let torn = disk.copy();
    torn.open("log-0000000001.seg").unwrap().set_len(offsets[4] as u64).unwrap();
    torn.flip_bit("log-0000000001.seg", entry_at as u64 + 40, 0).unwrap();
    let (log, report) = open(&torn).unwrap();
    assert_eq!(report.torn.unwrap().offset, entry_at as u64);
    assert!(all(&log.group(1)).is_empty());
}

#[test]
fn a_missing_segment_is_corruption_wherever_it_was() {
    let pristine = MemoryDisk::new();
    small_log(&pristine);
    for name in segment_files(&pristine) {
        let disk = pristine.copy();
        disk.remove(&name).unwrap();
        let result = open(&disk);
        assert!(matches!(result, Err(LogError::Corrupt { .. })), "{name}: {result:?}");
    }
}

#[test]
fn segments_that_were_swapped_or_cut_short_are_corruption() {
    let pristine = MemoryDisk::new();
    small_log(&pristine);
    let disk = pristine.copy();
    disk.rename("log-0000000001.seg", "other").unwrap();
    disk.rename("log-0000000002.seg", "log-0000000001.seg").unwrap();
    disk.rename("other", "log-0000000002.seg").unwrap();
    assert!(matches!(open(&disk), Err(LogError::Corrupt { .. })));
    for name in segment_files(&pristine) {
        for keep in [0, 40, 80, 96, 200] {
            let disk = pristine.copy();
            disk.open(&name).unwrap().set_len(keep).unwrap();
            let result = open(&disk);
            let is_last = Some(&name) == segment_files(&pristine).last();
            // Cutting the last segment takes the marks along: nothing is left that could prove the loss, except
            // for its head, which its sealed predecessor vouches for.
            let must_be_found = !is_last || keep <= 96;
            assert!(
                !must_be_found || matches!(result, Err(LogError::Corrupt { .. })),
                "{name} {keep}: {result:?}"
            );
        }
    }
}

#[test]
fn an_entry_that_rots_while_the_log_is_open_is_found_when_it_is_read() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    let group = log.group(1);
    group.append(vec![entry(0, &"a".repeat(200)), entry(1, &"b".repeat(290))], ok());
    let bytes = file_bytes(&disk, "log-0000000001.seg");
    let at = bytes.windows(20).position(|window| window == [b'a'; 20]).unwrap();
    disk.flip_bit("log-0000000001.seg", at as u64 + 3, 1).unwrap();
    assert!(matches!(group.read(0, 1, 1_000), Err(LogError::Corrupt { segment: 1, .. })));
    assert_eq!(group.read(1, 2, 1_000).unwrap().len(), 1, "the other one is in the cache");
}

#[test]
fn a_crash_while_a_segment_is_made_leaves_a_log_that_opens() {
    // The process is stopped by a failing write or sync at every possible moment of a roll, then power is cut in
    // every way; what was acknowledged must be there.
    let mut unfinished = 0;
    for steps in 0..60 {
        for syncs in [false, true] {
            for seed in 0..8 {
                let disk = MemoryDisk::new();
                let (log, _) = open(&disk).unwrap();
                if syncs {
                    disk.fail_syncs_after(steps);
                } else {
                    disk.fail_writes_after(steps);
                }
                let acknowledged = Arc::new(AtomicUsize::new(0));
                for index in 0..40 {
                    let counter = Arc::clone(&acknowledged);
                    log.group(1).append(
                        entries(index..index + 1),
                        Box::new(move |outcome| {
                            counter.fetch_add(usize::from(outcome.is_ok()), Ordering::SeqCst);
                        }),
                    );
                }
                drop(log);
                disk.crash(match seed {
                    0 => CrashMode::LoseUnsynced,
                    1..4 => CrashMode::TornPrefix { seed },
                    _ => CrashMode::ScatteredSectors { seed },
                });
                let (log, report) = open(&disk).unwrap();
                let found = all(&log.group(1));
                assert!(found.len() >= acknowledged.load(Ordering::SeqCst));
                assert_eq!(found, entries(0..found.len() as u64));
                unfinished += usize::from(report.unfinished_segment.is_some());
            }
        }
    }
    assert!(unfinished > 0, "the case must have come up");
}

#[test]
fn what_a_failed_process_left_in_the_page_cache_is_made_durable_before_it_is_used() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    disk.fail_syncs_after(0);
    let (done, result) = outcome();
    log.group(1).append(entries(0..3), done);
    assert!(result.try_recv().unwrap().is_err());
    drop(log);
    disk.heal();
    // The entries read back, but no later sync of the old pages would write them.
    let (log, _) = open(&disk).unwrap();
    let seen = all(&log.group(1));
    assert_eq!(seen, entries(0..3));
    disk.crash(CrashMode::LoseUnsynced);
    assert_eq!(all(&open(&disk).unwrap().0.group(1)), seen);
}

// ---- failures -------------------------------------------------------------------------------------------------

#[test]
fn after_a_failed_sync_everybody_gets_the_error_and_nothing_is_retried() {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 1 << 20);
    let group = log.group(1);
    let (done, result) = outcome();
    group.append(entries(0..1), done);
    result.recv().unwrap().unwrap();
    disk.fail_syncs_after(0);
    disk.hold_syncs_after(0);
    let mut results = Vec::new();
    for index in 1..5 {
        let (done, result) = outcome();
        group.append(entries(index..index + 1), done);
        results.push(result);
    }
    let (done, result) = outcome();
    log.group(2).save_vote(Vote { term: 1, node: 1, committed: false }, done);
    results.push(result);
    disk.release_syncs();
    for result in results {
        assert!(matches!(result.recv().unwrap(), Err(LogError::Failed { .. })));
    }
    disk.heal();
    let counts = disk.counts();
    let (done, result) = outcome();
    group.append(entries(77..78), done);
    assert!(matches!(result.recv().unwrap(), Err(LogError::Failed { .. })));
    assert!(matches!(group.read(0, 1, 100), Err(LogError::Failed { .. })));
    assert!(matches!(log.close(), Err(LogError::Failed { .. })));
    assert_eq!(disk.counts(), counts, "a failed log never touches the disk again");
}

#[test]
fn a_failed_write_is_a_failure_and_a_full_disk_has_its_own_name() {
    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    disk.fail_writes_after(0);
    let (done, result) = outcome();
    log.group(1).append(entries(0..1), done);
    assert!(matches!(result.try_recv().unwrap(), Err(LogError::Failed { .. })));

    let disk = MemoryDisk::new();
    let (log, _) = open(&disk).unwrap();
    log.group(1).append(entries(0..3), ok());
    disk.set_capacity_bytes(Some(log.disk_bytes() + 100));
    let (done, result) = outcome();
    log.group(1).append(entries(3..9), done);
    let error = result.try_recv().unwrap().unwrap_err();
    assert!(matches!(error, LogError::DiskFull { .. }), "{error}");
    assert!(error.to_string().contains("free space"), "{error}");
    drop(log);
    // Half a batch is on the disk, and no power was cut.
    disk.set_capacity_bytes(None);
    let (log, report) = open(&disk).unwrap();
    assert!(report.torn.is_some());
    let found = all(&log.group(1));
    assert!((3..9).contains(&found.len()));
    assert_eq!(found, entries(0..found.len() as u64));
}

#[test]
fn a_full_disk_at_the_beginning_is_named_too() {
    let disk = MemoryDisk::new();
    disk.set_capacity_bytes(Some(50));
    assert!(matches!(open(&disk), Err(LogError::DiskFull { .. })));
    disk.set_capacity_bytes(None);
    assert!(open(&disk).unwrap().1.fresh, "a first segment that was never finished holds nothing");
}

// ---- the writer -----------------------------------------------------------------------------------------------

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
    assert_eq!(all(&log.group(12)), entries(0..50), "readable before it is durable");
    assert!(receiver.try_recv().is_err(), "nothing is done before its barrier");
    disk.release_syncs();
    for expected in 0..=600 {
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

// ---- against a model ------------------------------------------------------------------------------------------

/// One group as a plain list.
#[derive(Clone, Debug, Default, PartialEq)]
struct ModelGroup {
    purged: Option<LogPosition>,
    entries: BTreeMap<u64, LogEntry>,
    vote: Option<Vote>,
}

impl ModelGroup {
    fn next(&self) -> u64 {
        let purged = self.purged.map_or(0, |purged| purged.index + 1);
        self.entries.last_key_value().map_or(purged, |(index, _)| index + 1)
    }
}

type ModelState = BTreeMap<u32, ModelGroup>;

/// What a log may show after a crash: the state at the last acknowledged change, or after any of the later ones.
struct Model {
    /// States that are possible, oldest first; the first is the one that was acknowledged.
    possible: Vec<ModelState>,
    /// Committed positions that were ever saved, per group.
    committed: BTreeMap<u32, Vec<Option<LogPosition>>>,
}

impl Model {
    fn new() -> Self {
        Self { possible: vec![ModelState::new()], committed: BTreeMap::new() }
    }

    fn latest(&self) -> ModelState {
        self.possible.last().unwrap().clone()
    }

    /// Checks all the groups of a reopened log, and continues from what it shows.
    fn check(&mut self, log: &NodeLog) -> Result<(), String> {
        let mut seen = ModelState::new();
        for id in 0..GROUPS {
            let group = log.group(id);
            let state = group.state();
            let read = group.read(0, u64::MAX, usize::MAX).map_err(|error| error.to_string())?;
            let mut next = state.first_index();
            for entry in &read {
                if entry.position.index != next {
                    return Err(format!("group {id} has a hole at {next}"));
                }
                next += 1;
            }
            if next != state.next_index() {
                return Err(format!("group {id} claims {:?} but reads up to {next}", state.last));
            }
            let saved = self.committed.entry(id).or_insert_with(|| vec![None]);
            if !saved.contains(&state.committed) {
                return Err(format!("group {id} invented the committed position {:?}", state.committed));
            }
            let entries = read.into_iter().map(|entry| (entry.position.index, entry)).collect();
            let group = ModelGroup { purged: state.last_purged, entries, vote: state.vote };
            if group != ModelGroup::default() {
                seen.insert(id, group);
            }
        }
        // The whole log is one order of changes: all groups must stand at the same moment.
        let plain = |state: &ModelState| -> ModelState {
            let touched = state.iter().filter(|(_, group)| **group != ModelGroup::default());
            touched.map(|(id, group)| (*id, group.clone())).collect()
        };
        if !self.possible.iter().any(|state| plain(state) == seen) {
            return Err(format!("the log shows {seen:?}, possible were {:?}", self.possible));
        }
        self.possible = vec![seen];
        Ok(())
    }
}

const GROUPS: u32 = 3;

#[derive(Clone, Debug)]
enum Step {
    Append {
        group: u32,
        count: u64,
        bytes: usize,
    },
    Truncate {
        group: u32,
        back: u64,
    },
    Purge {
        group: u32,
        ahead: u64,
    },
    Reset {
        group: u32,
        ahead: u64,
    },
    Vote {
        group: u32,
    },
    Committed {
        group: u32,
    },
    /// The process is killed, the machine lives: the page cache survives.
    Kill,
    /// Stops at the `writes`-th write (or sync) from here on; the power is cut when it has failed.
    Break {
        after: u64,
        syncs: bool,
        seed: u64,
    },
    Crash {
        seed: u64,
    },
    Close,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let group = 0..GROUPS;
    let step = prop_oneof![
        12 => (group.clone(), 1..6_u64, 0..400_usize)
            .prop_map(|(group, count, bytes)| Step::Append { group, count, bytes }),
        3 => (group.clone(), 0..8_u64).prop_map(|(group, back)| Step::Truncate { group, back }),
        4 => (group.clone(), 0..12_u64).prop_map(|(group, ahead)| Step::Purge { group, ahead }),
        1 => (group.clone(), 0..20_u64).prop_map(|(group, ahead)| Step::Reset { group, ahead }),
        3 => group.clone().prop_map(|group| Step::Vote { group }),
        2 => group.prop_map(|group| Step::Committed { group }),
        1 => Just(Step::Kill),
        3 => (0..12_u64, any::<bool>(), any::<u64>())
            .prop_map(|(after, syncs, seed)| Step::Break { after, syncs, seed }),
        2 => any::<u64>().prop_map(|seed| Step::Crash { seed }),
        1 => Just(Step::Close),
    ];
    proptest::collection::vec(step, 1..80)
}

fn crash_mode(seed: u64) -> CrashMode {
    match seed % 3 {
        0 => CrashMode::LoseUnsynced,
        1 => CrashMode::TornPrefix { seed },
        _ => CrashMode::ScatteredSectors { seed },
    }
}

/// Runs the steps and checks after every restart.
fn run(steps: &[Step], sync_lies: bool) -> Result<(), String> {
    let disk = MemoryDisk::new();
    let mut model = Model::new();
    let mut log = open(&disk).map_err(|error| error.to_string())?.0;
    let mut pending_crash = None;
    let mut serial = 0;
    disk.lie_about_sync(sync_lies);
    let reopen = |log: NodeLog, model: &mut Model| -> Result<NodeLog, String> {
        drop(log);
        disk.heal();
        disk.lie_about_sync(sync_lies);
        let log = open(&disk).map_err(|error| error.to_string())?.0;
        model.check(&log)?;
        Ok(log)
    };
    for step in steps {
        serial += 1;
        let mut state = model.latest();
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let done: Done = {
            let acknowledged = Arc::clone(&acknowledged);
            Box::new(move |outcome| acknowledged.store(if outcome.is_ok() { 1 } else { 2 }, Ordering::SeqCst))
        };
        let position = |index| LogPosition { term: serial, node: serial % 3, index };
        match step {
            Step::Append { group, count, bytes } => {
                let target = state.entry(*group).or_default();
                let added: Vec<LogEntry> = (target.next()..target.next() + count)
                    .map(|index| LogEntry {
                        position: position(index),
                        payload: Bytes::from(vec![u8::try_from(serial % 251).unwrap(); *bytes]),
                    })
                    .collect();
                target.entries.extend(added.iter().map(|entry| (entry.position.index, entry.clone())));
                log.group(*group).append(added, done);
            }
            Step::Truncate { group, back } => {
                let target = state.entry(*group).or_default();
                let keep = target.next().checked_sub(back + 1);
                target.entries.retain(|index, _| keep.is_some_and(|keep| *index <= keep));
                log.group(*group).truncate_after(keep, done);
            }
            Step::Purge { group, ahead } => {
                let target = state.entry(*group).or_default();
                let upto = target.purged.map_or(0, |purged| purged.index + 1) + ahead;
                let upto = target.entries.get(&upto).map_or(position(upto), |entry| entry.position);
                target.entries.retain(|index, _| *index > upto.index);
                target.purged = Some(upto);
                log.group(*group).purge(upto, done);
            }
            Step::Reset { group, ahead } => {
                let target = state.entry(*group).or_default();
                let upto = position(target.purged.map_or(0, |purged| purged.index) + ahead);
                *target = ModelGroup { purged: Some(upto), vote: target.vote, ..ModelGroup::default() };
                log.group(*group).reset_to(upto, done);
            }
            Step::Vote { group } => {
                let vote = Vote { term: serial, node: serial % 3, committed: serial % 2 == 0 };
                state.entry(*group).or_default().vote = Some(vote);
                log.group(*group).save_vote(vote, done);
            }
            Step::Committed { group } => {
                let committed = log.group(*group).state().last;
                model.committed.entry(*group).or_insert_with(|| vec![None]).push(committed);
                log.group(*group).save_committed(committed);
                acknowledged.store(1, Ordering::SeqCst);
            }
            Step::Break { after, syncs, seed } => {
                if *syncs {
                    disk.fail_syncs_after(*after);
                } else {
                    disk.fail_writes_after(*after);
                }
                pending_crash = Some(*seed);
                continue;
            }
            Step::Kill => {
                // Handles of the killed process stay usable in this process, but nothing uses them any more.
                disk.fail_writes_after(0);
                disk.fail_syncs_after(0);
                pending_crash = None;
                log = reopen(log, &mut model)?;
                continue;
            }
            Step::Crash { seed } => {
                disk.crash(crash_mode(*seed));
                pending_crash = None;
                log = reopen(log, &mut model)?;
                continue;
            }
            Step::Close => {
                disk.heal();
                pending_crash = None;
                log = reopen(log, &mut model)?;
                continue;
            }
        }
        match acknowledged.load(Ordering::SeqCst) {
            0 => return Err("an inline call returned before it was answered".to_owned()),
            1 => model.possible = vec![state],
            _ => {
                // Half a batch may be on the disk: entries of an append may be there up to any of them.
                let before = model.latest();
                let mut possible = vec![before.clone()];
                if let Step::Append { group, count, .. } = step {
                    let full = state[group].clone();
                    for missing in (1..*count).rev() {
                        let mut part = full.clone();
                        part.entries.retain(|index, _| index + missing < full.next());
                        let mut state = before.clone();
                        state.insert(*group, part);
                        possible.push(state);
                    }
                }
                possible.push(state);
                model.possible = possible;
                disk.heal();
                if let Some(seed) = pending_crash.take() {
                    disk.crash(crash_mode(seed));
                }
                log = reopen(log, &mut model)?;
            }
        }
    }
    disk.crash(CrashMode::LoseUnsynced);
    reopen(log, &mut model)?;
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn after_any_crash_the_log_is_what_the_model_allows(steps in steps()) {
        if let Err(what) = run(&steps, false) {
            return Err(TestCaseError::fail(what));
        }
    }

    #[test]
    fn any_batch_of_many_groups_may_be_torn_anywhere(
        seed in any::<u64>(), acknowledged in 1..30_u64, queued in 1..40_u64, bytes in 0..600_usize,
    ) {
        torn_batch(seed, acknowledged, queued, bytes);
    }
}

/// The checker must be able to fail: a disk whose syncs lie loses what was acknowledged.
#[test]
fn the_model_catches_a_disk_that_lies_about_syncs() {
    let append = |group| Step::Append { group, count: 2, bytes: 30 };
    let steps = [append(0), append(1), Step::Vote { group: 2 }, Step::Crash { seed: 0 }];
    run(&steps, false).unwrap();
    let caught = run(&steps, true).unwrap_err();
    assert!(caught.contains("possible were"), "{caught}");
}

/// The checker must see holes, resurrected entries and votes that go back.
#[test]
fn the_model_catches_wrong_logs() {
    let (log, _) = open(&MemoryDisk::new()).unwrap();
    log.group(0).append(entries(0..3), ok());
    log.group(0).save_vote(Vote { term: 5, node: 1, committed: false }, ok());
    let right = ModelGroup {
        purged: None,
        entries: entries(0..3).into_iter().map(|entry| (entry.position.index, entry)).collect(),
        vote: Some(Vote { term: 5, node: 1, committed: false }),
    };
    let check = |group: ModelGroup| {
        Model { possible: vec![ModelState::from([(0, group)])], committed: BTreeMap::new() }.check(&log)
    };
    check(right.clone()).unwrap();
    let mut truncated = right.clone();
    truncated.entries.remove(&2);
    check(truncated).unwrap_err();
    let mut lost = right.clone();
    lost.entries.insert(3, entry(3, "acknowledged"));
    check(lost).unwrap_err();
    check(ModelGroup { vote: Some(Vote { term: 6, node: 1, committed: false }), ..right.clone() })
        .unwrap_err();
    log.group(0).save_committed(Some(position(1)));
    check(right).unwrap_err();
}

/// A batch of many groups is under way when power is cut: whichever of its sectors arrive, the log opens, what
/// was acknowledged is there, and of the batch there is a prefix.
fn torn_batch(seed: u64, acknowledged: u64, queued: u64, bytes: usize) {
    let disk = MemoryDisk::new();
    let log = threaded(disk.clone(), 16 << 10);
    let mut random = StdRng::seed_from_u64(seed);
    let payload = Bytes::from((0..bytes).map(|_| random.random()).collect::<Vec<u8>>());
    // A roll has several barriers: power may go at each.
    let passing = random.random_range(1..5);
    let answered = Arc::new(AtomicUsize::new(0));
    let mut order: Vec<u32> = Vec::new();
    let mut next: BTreeMap<u32, u64> = BTreeMap::new();
    let mut append = || {
        let group = random.random_range(0..4);
        let index = next.entry(group).or_default();
        let entry = LogEntry { position: position(*index), payload: payload.clone() };
        let answered = Arc::clone(&answered);
        let done = move |outcome: Result<(), LogError>| {
            answered.fetch_add(usize::from(outcome.is_ok()), Ordering::SeqCst);
        };
        log.group(group).append(vec![entry], Box::new(done));
        *index += 1;
        order.push(group);
        order.len()
    };
    for _ in 0..acknowledged {
        let appended = append();
        while answered.load(Ordering::SeqCst) < appended {
            std::thread::yield_now();
        }
    }
    // One append occupies the writer while the others gather behind it: they are one batch.
    disk.hold_syncs_after(0);
    append();
    while disk.syncs_waiting() == 0 {
        std::thread::yield_now();
    }
    for _ in 0..queued {
        append();
    }
    disk.hold_syncs_after(passing);
    while disk.syncs_waiting() == 0 && answered.load(Ordering::SeqCst) < order.len() {
        std::thread::yield_now();
    }
    let durable = answered.load(Ordering::SeqCst);
    disk.crash(if seed.is_multiple_of(2) {
        CrashMode::TornPrefix { seed }
    } else {
        CrashMode::ScatteredSectors { seed }
    });
    drop(log);
    let (log, _) = open(&disk).unwrap();
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for group in 0..4 {
        let found = all(&log.group(group));
        assert!(found.iter().all(|entry| entry.payload == payload));
        counts.insert(group, found.len());
    }
    let total = counts.values().sum();
    assert!(total >= durable, "{total} of {durable} acknowledged entries are left");
    for group in 0..4 {
        let expected = order[..total].iter().filter(|other| **other == group).count();
        assert_eq!(counts[&group], expected, "what is left is a prefix of what was written");
    }
}

/// The distinction at the heart of the policy, by hand: the later half of an unsynced batch arrives without the
/// earlier half. That is a torn batch, not corruption, and its remains never come back.
#[test]
fn later_sectors_of_a_torn_batch_are_neither_corruption_nor_resurrected() {
    let mut late_remains = 0;
    let mut totals = BTreeSet::new();
    for seed in 0..40 {
        let disk = MemoryDisk::new();
        let (log, _) = open(&disk).unwrap();
        log.group(1).append(entries(0..2), ok());
        // The batch is written, its barrier never ends.
        disk.hold_syncs_after(0);
        let batch: Vec<LogEntry> = (2..14).map(|index| entry(index, &"y".repeat(60))).collect();
        let writer = std::thread::spawn({
            let group = log.group(1);
            move || group.append(batch, Box::new(|outcome| assert!(outcome.is_err())))
        });
        while disk.syncs_waiting() == 0 {
            std::thread::yield_now();
        }
        disk.crash(CrashMode::ScatteredSectors { seed });
        writer.join().unwrap();
        drop(log);
        let (log, report) = open(&disk).unwrap();
        let found = all(&log.group(1)).len() as u64;
        assert!(found >= 2);
        late_remains += usize::from(report.torn.is_some_and(|torn| torn.bytes > 512));
        totals.insert(found);
        // The sequence numbers of what was cut off are used again: nothing of it may match.
        log.group(1).append(vec![entry(found, "new")], ok());
        disk.crash(CrashMode::LoseUnsynced);
        let (log, report) = open(&disk).unwrap();
        assert_eq!(report.torn, None, "the torn tail was cut off for good");
        assert_eq!(log.group(1).state().last, Some(position(found)));
        assert_eq!(all(&log.group(1)).last().unwrap().payload, "new");
    }
    assert!(late_remains > 5 && totals.len() > 2, "the case must have come up: {late_remains} {totals:?}");
}
