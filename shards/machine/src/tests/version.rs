//! Apply versions: what version 1 was stays; what is too new stops a replica; what version 2 adds.

use super::import::{chunk, commit, pages};
use super::*;
use crate::meta::{ImportRow, MetaRow, StagedRow};

const MINUTE: u64 = 60_000;

fn raise(version: u32) -> Command {
    Command::system(SystemCommand::RaiseVersion(version))
}

/// Numbers of the staged parts of an import.
fn parts(machine: &Machine, import: u128) -> Vec<u32> {
    let staged = pages(machine).into_iter().filter(|(table, _)| *table == StagedRow::TABLE);
    let keys = staged.map(|(_, page)| StagedRow::decode_key(&mut Reader::new(&page[1..])).unwrap());
    keys.filter(|key| key.0 == import).map(|key| key.1).collect()
}

/// A log under apply version 2, with `count` parts of import 9, the last of which came at `T0`.
fn with_parts(count: u32) -> Log {
    let mut log = Log::new();
    log.one(T0, raise(2));
    for number in 0..count {
        log.one(T0, chunk(9, number, b"part"));
    }
    log
}

/// Figures of the first build of data format 3: whoever changes them parts the replicas of every cluster there is.
#[test]
fn rows_of_version_1_have_the_digest_that_they_always_had() {
    let stands = |log: &Log, digest: u128, file: u64| {
        let found = (log.machine.digest(), hash_64(&snapshot_of(&log.machine)));
        assert_eq!(found, (digest, file), "digest and file form, {:#034x}", found.0);
    };
    let empty = Log { machine: Machine::new(), entries: vec![] };
    stands(&empty, 0x0da0_ca51_d765_5b3b_13f2_204d_d6ff_2f6f, 16_278_048_725_663_527_919);
    let mut log = Log::new();
    log.entry(T0 + 1, vec![command(1, buy(2)), command(2, hold(1, 1_000)), command(3, buy(9))]);
    stands(&log, 0xc252_0fec_58b8_f844_14a0_c1a2_59fd_e399, 5_185_998_273_777_494_185);
    let file = snapshot_of(&log.machine);
    let (first, second) = file.split_at(file.len() / 3);
    for (number, bytes) in [(1, second), (0, first), (7, first)] {
        log.one(T0 + 2, chunk(9, number, bytes));
    }
    stands(&log, 0x6cf1_d200_6e33_30b4_17db_e74f_cd01_f63d, 3_625_007_320_570_096_398);
    log.one(T0 + 3_600_000, tick());
    stands(&log, 0xf290_5ed8_4aab_6c7e_de17_f64d_da76_d5fe, 4_842_303_428_772_026_536);
    assert_eq!(reason(&log.one(T0 + 3_600_001, commit(9, 2, true))), "done");
    stands(&log, 0xe326_e97c_be1b_829f_79d6_2707_6aa6_1b2c, 3_260_306_256_684_898_839);
    assert_eq!((log.machine.apply_version(), log.machine.incarnation()), (1, 2));
}

#[test]
fn a_version_that_is_too_new_halts_and_changes_nothing() {
    for supported in [1, APPLY_VERSION] {
        let mut machine = Machine::with_supported(supported);
        let payload = |commands| Entry { stamp: Stamp::confirmed(T0), commands }.encode();
        let at = |index| Position { term: 1, node: 1, index };
        machine.apply(at(1), &payload(vec![command(1, create())])).unwrap();
        let before = (machine.digest(), machine.head().clone(), machine.settled());
        let entry = payload(vec![command(2, buy(1)), raise(supported), raise(supported + 1)]);
        let error = machine.apply(at(2), &entry).unwrap_err();
        assert_eq!(error, ApplyError::TooNew { index: 2, version: supported + 1, supported });
        assert_eq!((machine.digest(), machine.head().clone(), machine.settled()), before);
        assert_eq!(machine.outcome("alice", id(T0, 2)), None, "not even the commands before it were decided");
        // A newer build goes on from the same rows with the same entry.
        if supported < APPLY_VERSION {
            let mut newer = machine.supporting(APPLY_VERSION).unwrap();
            assert_eq!(reason(&newer.apply(at(2), &entry).unwrap()[2]), "done");
            assert_eq!(newer.apply_version(), supported + 1);
        }
    }
}

#[test]
fn the_version_never_falls() {
    let mut log = Log::new();
    assert_eq!(log.machine.apply_version(), 1, "new rows begin at the first version");
    assert_eq!(reason(&log.one(T0, raise(0))), "System");
    assert_eq!(reason(&log.one(T0, raise(1))), "done");
    assert_eq!(reason(&log.one(T0, raise(2))), "done");
    assert_eq!(reason(&log.one(T0, raise(1))), "System");
    assert_eq!(log.machine.apply_version(), 2);
}

#[test]
fn rows_of_a_newer_apply_version_are_refused() {
    let load = |rows, supported| {
        let mut w = Writer::new();
        w.u64(1);
        MetaRow { apply_version: rows, ..MetaRow::default() }.encode(&mut w);
        let page = w.into_bytes();
        let load = |digest| {
            let mut loader = Machine::loader().with_supported(supported);
            loader.page(MetaRow::TABLE, &page).unwrap();
            loader.finish(Head::default(), digest)
        };
        let LoadError::Digest { found, .. } = load(0).unwrap_err() else { panic!("an empty digest fits") };
        load(found)
    };
    let (rows, supported) = (APPLY_VERSION + 1, APPLY_VERSION);
    assert_eq!(load(rows, supported).unwrap_err(), LoadError::TooNew { rows, supported });
    assert_eq!(load(2, 1).unwrap_err(), LoadError::TooNew { rows: 2, supported: 1 });
    let machine = load(2, 2).unwrap();
    assert_eq!(machine.supporting(1).unwrap_err(), LoadError::TooNew { rows: 2, supported: 1 });
    let machine = load(1, u32::MAX).unwrap();
    assert_eq!(machine.supported(), APPLY_VERSION, "nobody supports more than the build has");
    assert_eq!(machine.supporting(1).unwrap().supported(), 1);
}

#[test]
fn rows_that_their_version_does_not_have_are_refused() {
    let log = with_parts(1);
    let load = |version, digest| {
        let mut loader = Machine::loader();
        for (table, mut page) in pages(&log.machine) {
            if table == MetaRow::TABLE {
                let row = MetaRow::decode(&mut Reader::new(&page[1..])).unwrap();
                let mut w = Writer::new();
                w.u64(1);
                MetaRow { apply_version: version, ..row }.encode(&mut w);
                page = w.into_bytes();
            }
            loader.page(table, &page).unwrap();
        }
        loader.finish(log.machine.head().clone(), digest)
    };
    assert!(load(2, log.machine.digest()).is_ok());
    let LoadError::Digest { found, .. } = load(1, 0).unwrap_err() else { panic!("an empty digest fits") };
    assert_eq!(load(1, found).unwrap_err(), LoadError::Table(ImportRow::TABLE));
}

/// Whether a file is taken depends on the group, not on the build: a replica that is a build ahead decides alike.
#[test]
fn a_file_of_a_later_version_is_rejected_and_one_of_an_earlier_does_not_lower_it() {
    let mut later = Log::new();
    later.one(T0, raise(2));
    let later = snapshot_of(&later.machine);
    let earlier = snapshot_of(&Log::new().machine);
    let import = |machine, file: &[u8]| {
        let mut log = Log { machine, entries: vec![] };
        log.one(T0, chunk(9, 0, file));
        (reason(&log.one(T0, commit(9, 1, true))), log)
    };
    let outcomes = [1, 2].map(|supported| import(Machine::with_supported(supported), &later));
    for (answer, log) in &outcomes {
        assert_eq!(answer, "System");
        assert_eq!((log.machine.module(tickets::MODULE).unwrap().rows(), log.machine.incarnation()), (0, 1));
    }
    assert_eq!(outcomes[0].1.machine.digest(), outcomes[1].1.machine.digest());
    let (answer, log) = import(Machine::with_supported(1), &earlier);
    assert_eq!((answer.as_str(), log.machine.supported()), ("done", 1), "new rows do not make a new build");
    for file in [&earlier, &later] {
        let mut log = Log::new();
        log.one(T0, raise(2));
        log.one(T0, chunk(9, 0, file));
        assert_eq!(reason(&log.one(T0, commit(9, 1, true))), "done");
        assert_eq!((log.machine.apply_version(), log.machine.incarnation()), (2, 2));
    }
}

#[test]
fn an_import_that_nobody_goes_on_with_is_given_up_under_version_2() {
    let mut log = with_parts(3);
    assert_eq!(log.machine.next_due_ms(), Some(T0 + IMPORT_IDLE_MS));
    log.one(T0 + IMPORT_IDLE_MS - 1, tick());
    assert_eq!(parts(&log.machine, 9), [0, 1, 2]);
    log.one(T0 + IMPORT_IDLE_MS, tick());
    assert!(pages(&log.machine).iter().all(|(table, _)| ![12, 13].contains(table)), "nothing is left of it");
    assert_eq!(log.machine.next_due_ms(), None);
    assert!(log.machine.take_replaced().is_some(), "freeing the parts is left to the caller");
}

#[test]
fn a_part_keeps_its_import_and_no_other_alive() {
    let mut log = with_parts(2);
    log.one(T0 + MINUTE, chunk(8, 0, b"other"));
    log.one(T0 + 9 * MINUTE, chunk(9, 2, b"part"));
    // Import 8 is due at minute 11, import 9 at minute 19; what is due first counts, a hold as well.
    assert_eq!(log.machine.next_due_ms(), Some(T0 + 11 * MINUTE));
    let mut held = command(1, hold(1, 1_000));
    held.expires_ms = T0 + 10 * MINUTE;
    assert_eq!(reason(&log.one(T0 + 9 * MINUTE, held)), "done");
    assert_eq!(log.machine.next_due_ms(), log.machine.module(tickets::MODULE).unwrap().due_ms());
    assert!(log.machine.next_due_ms() < Some(T0 + 11 * MINUTE));
    log.one(T0 + 12 * MINUTE, tick());
    assert_eq!((parts(&log.machine, 8), parts(&log.machine, 9)), (vec![], vec![0, 1, 2]));
    assert_eq!(log.machine.next_due_ms(), Some(T0 + 19 * MINUTE));
}

#[test]
fn an_entry_gives_up_a_bounded_number_of_parts() {
    let mut log = with_parts(40);
    let late = T0 + IMPORT_IDLE_MS;
    log.one(late, tick());
    assert_eq!(parts(&log.machine, 9), (16..40).collect::<Vec<_>>());
    assert_eq!(log.machine.next_due_ms(), Some(late), "the rest is still due");
    // It comes back too late: what is gone is gone.
    log.one(late, chunk(9, 40, b"part"));
    assert_eq!(reason(&log.one(late, commit(9, 41, true))), "System");
    assert_eq!(parts(&log.machine, 9), [] as [u32; 0]);
    assert_eq!(log.machine.next_due_ms(), None);
}

/// The same number again, after its first part was given up: it begins anew.
#[test]
fn an_import_that_was_given_up_can_begin_again() {
    let mut source = Log::new();
    let given_up = snapshot_of(&source.machine);
    source.one(T0, command(1, buy(1)));
    let file = snapshot_of(&source.machine);
    let mut log = Log::new();
    log.one(T0, raise(2));
    log.one(T0, chunk(9, 0, &given_up));
    log.one(T0 + IMPORT_IDLE_MS, tick());
    assert_eq!(log.machine.parts_read(9), 0);
    log.one(T0 + IMPORT_IDLE_MS, chunk(9, 0, &file));
    assert_eq!(reason(&log.one(T0 + IMPORT_IDLE_MS, commit(9, 1, true))), "done");
    assert_eq!(log.machine.tickets_digest(), source.machine.tickets_digest());
}

#[test]
fn under_version_1_parts_stay_until_the_rows_are_raised_and_then_their_time_begins() {
    let mut log = Log::new();
    for (import, number) in [(8, 0), (8, 1), (u128::MAX, u32::MAX)] {
        log.one(T0, chunk(import, number, b"part"));
    }
    let late = T0 + 10 * IMPORT_IDLE_MS;
    log.one(late, tick());
    assert_eq!((parts(&log.machine, 8), log.machine.next_due_ms()), (vec![0, 1], None));
    log.one(late + 5, raise(2));
    assert_eq!(log.machine.next_due_ms(), Some(late + 5 + IMPORT_IDLE_MS));
    log.one(late + 4 + IMPORT_IDLE_MS, tick());
    assert_eq!((parts(&log.machine, 8), parts(&log.machine, u128::MAX)), (vec![0, 1], vec![u32::MAX]));
    log.one(late + 5 + IMPORT_IDLE_MS, tick());
    assert_eq!((parts(&log.machine, 8), parts(&log.machine, u128::MAX)), (vec![], vec![u32::MAX]));
    log.one(late + 5 + IMPORT_IDLE_MS, tick());
    assert_eq!((parts(&log.machine, u128::MAX), log.machine.next_due_ms()), (vec![], None));
}

#[test]
fn an_abort_ends_every_import() {
    let mut log = with_parts(2);
    log.one(T0, chunk(8, 0, b"other"));
    assert_eq!((log.machine.parts_read(8), log.machine.parts_read(9)), (1, 2));
    log.one(T0, Command::system(SystemCommand::ImportAbort));
    assert_eq!((log.machine.parts_read(8), log.machine.parts_read(9)), (0, 0));
    assert!(log.machine.take_replaced().is_some());
    assert!(pages(&log.machine).iter().all(|(table, _)| ![12, 13].contains(table)));
    assert_eq!(log.machine.next_due_ms(), None);
}
