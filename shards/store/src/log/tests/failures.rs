//! Writes and syncs that fail: everybody is told, and nothing is tried again.

use super::*;

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
    let (done, result) = outcome();
    group.barrier(done);
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
