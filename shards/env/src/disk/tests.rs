//! Both disks keep the same contract; the double also breaks in the ways it is told to.
#![allow(clippy::unwrap_used)]

use super::*;

fn content(disk: &dyn Disk, name: &str) -> Vec<u8> {
    let file = disk.open(name).unwrap();
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    file.read_exact_at(0, &mut bytes).unwrap();
    bytes
}

fn keeps_the_contract(disk: &dyn Disk) {
    assert!(disk.list().unwrap().is_empty());
    let file = disk.create("b").unwrap();
    assert_eq!(disk.create("b").err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    assert!(file.is_empty().unwrap());
    assert_eq!(file.append(b"hello").unwrap(), 0);
    assert_eq!(file.append(b" world").unwrap(), 5);
    file.write_at(0, b"J").unwrap();
    file.write_at(13, b"!").unwrap();
    assert_eq!(file.len().unwrap(), 14);
    assert_eq!(content(disk, "b"), b"Jello world\0\0!");
    let mut buffer = [0; 8];
    assert_eq!(file.read_at(10, &mut buffer).unwrap(), 4);
    assert_eq!(file.read_at(99, &mut buffer).unwrap(), 0);
    assert_eq!(file.read_exact_at(10, &mut buffer).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    file.set_len(3).unwrap();
    file.set_len(5).unwrap();
    assert_eq!(content(disk, "b"), b"Jel\0\0");
    file.sync_data().unwrap();

    disk.create("a").unwrap().append(b"old").unwrap();
    assert_eq!(disk.list().unwrap(), ["a", "b"]);
    disk.rename("b", "a").unwrap();
    assert_eq!(disk.list().unwrap(), ["a"]);
    assert_eq!(content(disk, "a"), b"Jel\0\0");
    disk.sync_directory().unwrap();
    disk.remove("a").unwrap();
    assert_eq!(disk.remove("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.open("a").err().unwrap().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.rename("a", "c").unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(file.len().unwrap(), 5, "an open file outlives its name");
    assert!(disk.free_bytes().unwrap() > 0);
    for bad in ["", ".", "..", "a/b", "/etc/passwd"] {
        assert_eq!(disk.create(bad).err().unwrap().kind(), io::ErrorKind::InvalidInput, "{bad:?}");
    }
}

#[test]
fn the_real_disk_keeps_the_contract() {
    let directory = tempfile::tempdir().unwrap();
    let disk = RealDisk::open(directory.path().join("new/nested")).unwrap();
    keeps_the_contract(&disk);
    std::fs::create_dir(disk.path().join("folder")).unwrap();
    assert!(disk.list().unwrap().is_empty(), "folders are not files");
}

#[test]
fn a_file_where_the_directory_should_be_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    assert!(RealDisk::open(file.path()).is_err());
}

#[test]
fn the_memory_disk_keeps_the_contract() {
    keeps_the_contract(&MemoryDisk::new());
}

#[test]
fn a_crash_loses_what_was_not_synced_and_kills_handles() {
    let disk = MemoryDisk::new();
    let file = disk.create("kept").unwrap();
    file.append(b"durable").unwrap();
    file.sync_data().unwrap();
    disk.sync_directory().unwrap();
    file.append(b" lost").unwrap();
    disk.create("nameless").unwrap().sync_data().unwrap();
    disk.crash(CrashMode::LoseUnsynced);
    assert_eq!(disk.list().unwrap(), ["kept"], "a name is durable only after the directory was synced");
    assert_eq!(content(&disk, "kept"), b"durable");
    assert!(file.append(b"x").is_err());
    assert!(file.sync_data().is_err());

    disk.remove("kept").unwrap();
    disk.crash(CrashMode::LoseUnsynced);
    assert_eq!(disk.list().unwrap(), ["kept"], "an unsynced removal comes back");
}

#[test]
fn a_torn_crash_leaves_a_prefix_and_depends_only_on_the_seed() {
    let after = |seed| {
        let disk = MemoryDisk::new();
        let file = disk.create("f").unwrap();
        disk.sync_directory().unwrap();
        file.append(&[1; 100]).unwrap();
        file.append(&[2; 100]).unwrap();
        disk.crash(CrashMode::TornPrefix { seed });
        content(&disk, "f")
    };
    let whole: Vec<u8> = [[1; 100], [2; 100]].concat();
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..50 {
        let left = after(seed);
        assert_eq!(left, whole[..left.len()]);
        assert_eq!(left, after(seed));
        lengths.insert(left.len());
    }
    assert!(lengths.len() > 10, "the seeds must make a difference: {lengths:?}");
    assert!(lengths.iter().any(|length| length % 100 != 0), "some write must be torn");
}

#[test]
fn a_scattered_crash_keeps_later_sectors_without_earlier_ones() {
    let mut late_without_early = false;
    for seed in 0..50 {
        let disk = MemoryDisk::new();
        let file = disk.create("f").unwrap();
        disk.sync_directory().unwrap();
        file.set_len(2_048).unwrap();
        file.sync_data().unwrap();
        file.write_at(100, &[7; 1_500]).unwrap();
        disk.crash(CrashMode::ScatteredSectors { seed });
        let left = content(&disk, "f");
        for sector in [100..512, 512..1_024, 1_024..1_536, 1_536..1_600] {
            let first = left[sector.start];
            assert!(left[sector].iter().all(|byte| *byte == first), "a sector is kept or lost as a whole");
        }
        late_without_early |= left[100] == 0 && left[1_599] == 7;
    }
    assert!(late_without_early);
}

#[test]
fn after_a_failed_sync_the_bytes_read_back_but_never_become_durable() {
    let disk = MemoryDisk::new();
    let file = disk.create("f").unwrap();
    disk.sync_directory().unwrap();
    disk.fail_syncs_after(1);
    file.append(b"one").unwrap();
    file.sync_data().unwrap();
    file.append(b"two").unwrap();
    assert!(file.sync_data().is_err());
    assert!(file.sync_data().is_err(), "failing goes on until healed");
    disk.heal();
    file.sync_data().unwrap();
    assert_eq!(content(&disk, "f"), b"onetwo");
    disk.crash(CrashMode::LoseUnsynced);
    assert_eq!(content(&disk, "f"), b"one");
}

#[test]
fn faults_come_when_ordered() {
    let disk = MemoryDisk::new();
    let file = disk.create("f").unwrap();
    disk.sync_directory().unwrap();
    disk.fail_writes_after(1);
    file.append(b"12345678").unwrap();
    assert!(file.append(b"x").is_err());
    disk.heal();

    disk.set_capacity_bytes(Some(10));
    assert_eq!(disk.free_bytes().unwrap(), 2);
    file.write_at(0, b"overwriting needs no room"[..8].as_ref()).unwrap();
    assert_eq!(file.append(b"abc").unwrap_err().kind(), io::ErrorKind::StorageFull);
    assert_eq!(content(&disk, "f"), b"overwritab", "what fits is written, as the kernel does");
    disk.set_capacity_bytes(None);

    file.sync_data().unwrap();
    disk.flip_bit("f", 0, 0).unwrap();
    assert!(disk.flip_bit("f", 10, 0).is_err());
    let copy = disk.copy();
    disk.crash(CrashMode::LoseUnsynced);
    assert_eq!(content(&disk, "f"), b"nverwritab");
    assert_eq!(content(&copy, "f"), b"nverwritab");

    disk.lie_about_sync(true);
    let file = disk.open("f").unwrap();
    file.write_at(0, b"gone").unwrap();
    file.sync_data().unwrap();
    disk.crash(CrashMode::LoseUnsynced);
    assert_eq!(content(&disk, "f"), b"nverwritab");
    assert_eq!(disk.counts().directory_syncs, 1);
}

#[test]
fn held_syncs_wait_until_let_through() {
    let disk = MemoryDisk::new();
    let file = disk.create("f").unwrap();
    disk.hold_syncs_after(1);
    file.sync_data().unwrap();
    let syncing = std::thread::spawn(move || {
        for _ in 0..3 {
            file.sync_data().unwrap();
        }
    });
    let await_sync = |number| {
        while disk.syncs_waiting() == 0 || disk.counts().syncs < number {
            std::thread::yield_now();
        }
    };
    await_sync(2);
    disk.hold_syncs_after(1);
    await_sync(3);
    assert!(!syncing.is_finished());
    disk.release_syncs();
    syncing.join().unwrap();
    assert_eq!(disk.counts().syncs, 4);
}

#[test]
fn what_was_being_synced_when_power_went_may_arrive_in_part() {
    let mut outcomes = std::collections::BTreeSet::new();
    for seed in 0..40 {
        let disk = MemoryDisk::new();
        let file = disk.create("f").unwrap();
        disk.sync_directory().unwrap();
        disk.lose_power_at_syncs();
        file.write_at(0, b"abc").unwrap();
        assert!(file.sync_data().is_err());
        disk.crash(CrashMode::TornPrefix { seed });
        outcomes.insert(content(&disk, "f"));
        let file = disk.open("f").unwrap();
        file.sync_data().unwrap();
    }
    assert!(outcomes.contains(&b"abc"[..]) && outcomes.contains(&b""[..]) && outcomes.len() > 2);
}
