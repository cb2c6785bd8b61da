//! Flipped bits, missing and swapped files, crashes at bad moments: found, and told from what is merely torn.

use std::sync::atomic::{AtomicUsize, Ordering};

use tidewall_env::disk::CrashMode;

use super::*;

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
