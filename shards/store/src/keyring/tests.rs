//! What is put is there, what is erased is gone from the file, and nothing that a crash or a full disk does changes that.
#![allow(clippy::unwrap_used)]

use tidewall_env::disk::{CrashMode, MemoryDisk};

use super::*;

const CLUSTER: [u8; 16] = [7; 16];

fn key(id: u8) -> Entry {
    Entry { id: [id; 16], group: 1, wrapped: Some(vec![id; 60]) }
}

fn erased(id: u8) -> Entry {
    Entry { wrapped: None, ..key(id) }
}

#[test]
fn keys_are_kept_over_restarts_and_erased_ones_stay_erased() {
    let disk = MemoryDisk::new();
    let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    assert!(keyring.is_complete() && keyring.is_empty());
    (1..=5).for_each(|id| keyring.put(key(id)).unwrap());
    keyring.put(key(1)).unwrap();
    assert!(matches!(keyring.put(Entry { wrapped: Some(vec![9; 60]), ..key(1) }), Err(KeyringError::Taken)));
    keyring.erase(1, [2; 16]).unwrap();
    keyring.erase(1, [9; 16]).unwrap();
    assert!(matches!(keyring.put(key(9)), Err(KeyringError::Erased)), "also one that was never there");
    for size in [0, WRAPPED_MAX + 1] {
        let odd = Entry { wrapped: Some(vec![1; size]), ..key(7) };
        assert!(matches!(keyring.put(odd), Err(KeyringError::Size(_))));
    }
    let before = keyring.sums().unwrap();
    disk.crash(CrashMode::LoseUnsynced);
    let again = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    assert_eq!(again.get(&[1; 16]).unwrap(), Some(key(1)));
    assert_eq!(again.get(&[2; 16]).unwrap(), Some(erased(2)));
    assert_eq!(again.get(&[9; 16]).unwrap(), Some(erased(9)));
    assert_eq!(again.get(&[8; 16]).unwrap(), None);
    assert_eq!(again.sums().unwrap(), before);
    // The bytes are gone, not only the way to them.
    let file = disk.open(FILE).unwrap();
    let mut bytes = vec![0; file.len().unwrap() as usize];
    file.read_exact_at(0, &mut bytes).unwrap();
    assert!(!bytes.windows(20).any(|window| window == [2; 20]), "the erased key is still in the file");
    assert!(bytes.windows(20).any(|window| window == [3; 20]));
}

#[test]
fn keyrings_that_take_over_from_each_other_become_the_same_and_tombstones_win() {
    let (one, two) = (MemoryDisk::new(), MemoryDisk::new());
    let (one, two) =
        (Keyring::open(&one, CLUSTER, 1, true).unwrap(), Keyring::open(&two, CLUSTER, 2, true).unwrap());
    (1..=4).for_each(|id| one.put(key(id)).unwrap());
    (3..=6).for_each(|id| two.put(key(id)).unwrap());
    one.erase(1, [3; 16]).unwrap();
    two.erase(1, [1; 16]).unwrap();
    for (from, to) in [(&one, &two), (&two, &one)] {
        let (have, want) = (to.sums().unwrap(), from.sums().unwrap());
        for part in (0..=u8::MAX).filter(|part| have[usize::from(*part)] != want[usize::from(*part)]) {
            to.merge(from.part(part).unwrap()).unwrap();
        }
    }
    assert_eq!(one.sums().unwrap(), two.sums().unwrap());
    for keyring in [&one, &two] {
        let live: Vec<u8> = (0..10)
            .filter(|id| keyring.get(&[*id; 16]).unwrap().is_some_and(|entry| entry.wrapped.is_some()))
            .collect();
        assert_eq!(live, [2, 4, 5, 6]);
    }
    assert_eq!(one.merge(two.part(4).unwrap()).unwrap(), 0);
    let before = one.len();
    assert_eq!(one.merge(vec![key(40), erased(40), key(40), key(41), key(41)]).unwrap(), 2);
    assert_eq!(one.len(), before + 2);
    assert_eq!(one.get(&[40; 16]).unwrap(), Some(erased(40)));
}

#[test]
fn what_a_power_cut_has_torn_is_used_again_and_what_was_acknowledged_is_there() {
    for cut in 0..SLOT as u64 {
        let disk = MemoryDisk::new();
        let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        keyring.put(key(1)).unwrap();
        let file = disk.open(FILE).unwrap();
        file.write_at(2 * SLOT as u64, &key(2).to_slot()[..cut as usize]).unwrap();
        let again = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        assert_eq!(again.get(&[1; 16]).unwrap(), Some(key(1)));
        assert_eq!(again.get(&[2; 16]).unwrap(), None, "{cut}");
        again.put(key(3)).unwrap();
        again.put(key(4)).unwrap();
        let third = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        assert_eq!(third.len(), 3);
    }
}

#[test]
fn after_a_failed_sync_nothing_is_said_any_more() {
    let disk = MemoryDisk::new();
    let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    keyring.put(key(1)).unwrap();
    disk.fail_syncs_after(0);
    assert!(matches!(keyring.put(key(2)), Err(KeyringError::Io { .. })));
    assert!(matches!(keyring.get(&[1; 16]), Err(KeyringError::Failed)));
    assert!(keyring.sums().is_err() && keyring.part(1).is_err() && keyring.erase(1, [1; 16]).is_err());
}

#[test]
fn what_is_complete_is_so_over_restarts_and_what_is_not_is_not() {
    let disk = MemoryDisk::new();
    for _ in 0..2 {
        let keyring = Keyring::open(&disk, CLUSTER, 1, false).unwrap();
        keyring.put(key(1)).unwrap();
        assert!(!keyring.is_complete(), "also after a restart");
    }
    let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    assert!(!keyring.is_complete(), "whatever is thought of one that is there");
    keyring.set_complete().unwrap();
    disk.crash(CrashMode::LoseUnsynced);
    let again = Keyring::open(&disk, CLUSTER, 1, false).unwrap();
    assert!(again.is_complete());
    assert_eq!(again.len(), 1);
}

#[test]
fn a_slot_that_was_damaged_in_the_middle_is_to_be_had_from_others_first() {
    for (slot, complete) in [(1, false), (2, false), (3, true)] {
        let disk = MemoryDisk::new();
        let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        (1..=3).for_each(|id| keyring.put(key(id)).unwrap());
        disk.open(FILE).unwrap().write_at(slot * SLOT as u64 + 30, b"damage").unwrap();
        let again = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        assert_eq!((again.len(), again.is_complete()), (2, complete), "slot {slot}");
        again.merge((1..=3).map(key).collect()).unwrap();
        again.set_complete().unwrap();
        let mended = Keyring::open(&disk, CLUSTER, 1, false).unwrap();
        assert_eq!((mended.len(), mended.is_complete()), (3, true));
    }
}

#[test]
fn a_full_disk_loses_nothing_and_ends_nothing() {
    let disk = MemoryDisk::new();
    let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    keyring.put(key(1)).unwrap();
    disk.set_capacity_bytes(Some(2 * SLOT as u64 + 10));
    assert!(keyring.put(key(2)).is_err());
    assert_eq!(keyring.get(&[2; 16]).unwrap(), None);
    assert_eq!(keyring.get(&[1; 16]).unwrap(), Some(key(1)));
    keyring.erase(1, [1; 16]).unwrap();
    disk.set_capacity_bytes(None);
    (2..6).for_each(|id| keyring.put(key(id)).unwrap());
    let again = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    assert_eq!((again.len(), again.sums().unwrap()), (5, keyring.sums().unwrap()));
}

#[test]
fn what_of_many_was_written_before_the_disk_was_full_is_known_and_can_be_erased() {
    for room in 0..4_u64 {
        let disk = MemoryDisk::new();
        let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        disk.set_capacity_bytes(Some((1 + room) * SLOT as u64 + 60));
        assert!(keyring.merge((1..=4).map(key).collect()).is_err());
        disk.set_capacity_bytes(None);
        (1..=4).for_each(|id| keyring.erase(1, [id; 16]).unwrap());
        keyring.put(key(5)).unwrap();
        let again = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        assert_eq!((again.len(), again.sums().unwrap()), (5, keyring.sums().unwrap()), "room for {room}");
        let file = disk.open(FILE).unwrap();
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        for id in 1..=4 {
            assert!(!bytes.windows(20).any(|window| window == [id; 20]), "key {id} is still in the file");
        }
    }
}

#[test]
fn of_an_id_that_is_there_twice_the_tombstone_counts_and_the_key_goes() {
    for order in [[erased(1), key(1)], [key(1), erased(1)]] {
        let disk = MemoryDisk::new();
        let keyring = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
        keyring.put(key(9)).unwrap();
        let file = disk.open(FILE).unwrap();
        for (entry, slot) in order.iter().zip(2..) {
            file.write_at(slot * SLOT as u64, &entry.to_slot()).unwrap();
        }
        for _ in 0..2 {
            let again = Keyring::open(&disk, CLUSTER, 1, true).unwrap();
            assert_eq!(again.get(&[1; 16]).unwrap(), Some(erased(1)));
            assert_eq!(again.len(), 2);
        }
        let mut bytes = vec![0; file.len().unwrap() as usize];
        file.read_exact_at(0, &mut bytes).unwrap();
        assert!(!bytes.windows(20).any(|window| window == [1; 20]));
    }
}

#[test]
fn a_foreign_file_is_refused_and_left_as_it_is() {
    let disk = MemoryDisk::new();
    Keyring::open(&disk, CLUSTER, 1, true).unwrap();
    assert!(matches!(Keyring::open(&disk, CLUSTER, 2, true), Err(KeyringError::Foreign(_))));
    assert!(matches!(Keyring::open(&disk, [8; 16], 1, true), Err(KeyringError::Foreign(_))));
    let file = disk.open(FILE).unwrap();
    file.write_at(8, &9u32.to_le_bytes()).unwrap();
    let error = Keyring::open(&disk, CLUSTER, 1, true).unwrap_err().to_string();
    assert!(error.contains("format 9"), "{error}");
    file.write_at(0, b"something").unwrap();
    assert!(Keyring::open(&disk, CLUSTER, 1, true).unwrap_err().to_string().contains("no keyring"));
}
