//! A checkpoint is the state at one index, or an error: never something in between.
#![allow(clippy::unwrap_used)]

use tidewall_machine::{Command, Entry, Machine, Position};
use tidewall_messages::tickets;

use super::memory::{Faults, MemoryCheckpoints};
use super::sled_store::SledCheckpoints;
use super::*;

const T0: u64 = 1_700_000_000_000;

fn tickets_command(n: u64, op: tickets::Command) -> Command {
    let request_id = (u128::from(T0) << 80) | u128::from(n);
    Command::asking(&format!("buyer-{}", n % 50), request_id, T0 + 1_000, &op)
}

struct World {
    machine: Machine,
    next: u64,
}

impl World {
    fn new() -> Self {
        let mut world = Self { machine: Machine::new(), next: 0 };
        let tier = tickets::TierSpec {
            tier_id: "ga".into(),
            display_name: String::new(),
            capacity: 1_000_000,
            currency_code: "EUR".into(),
            price_minor_units: 1,
            seat_rows: vec![],
        };
        world.apply(vec![tickets_command(
            0,
            tickets::Command::from(tickets::CreateEvent {
                event_id: "gala".into(),
                display_name: "Gala".into(),
                quota_per_buyer: 100_000,
                tiers: vec![tier],
                ..Default::default()
            }),
        )]);
        world
    }

    fn apply(&mut self, commands: Vec<Command>) {
        let position = Position { term: 1, node: 1, index: self.next };
        self.next += 1;
        self.machine
            .apply(position, &Entry { stamp: tidewall_machine::Stamp::confirmed(T0), commands }.encode())
            .unwrap();
    }

    fn buy(&mut self, count: u64) {
        let commands = (0..count).map(|n| {
            let op = tickets::Command::from(tickets::Buy {
                event_id: "gala".into(),
                tier_id: "ga".into(),
                quantity: 1,
                seats: vec![],
                buyer: String::new(),
            });
            tickets_command(self.next * 10_000 + n, op)
        });
        let commands = commands.collect();
        self.apply(commands);
    }
}

fn opened(directory: &std::path::Path) -> SledCheckpoints {
    SledCheckpoints::open(directory, [7; 16], 1).unwrap()
}

#[test]
fn generations_build_on_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new();
    let mut store = opened(directory.path());
    assert!(store.load(3).unwrap().is_none());
    for round in 1..6 {
        world.buy(100);
        let generation = store.write(3, &world.machine.freeze()).unwrap();
        assert_eq!((generation.number, generation.digest), (round, world.machine.digest()));
        if round == 3 {
            store.verify().unwrap();
        }
        if round == 4 {
            drop(store);
            store = opened(directory.path());
            let (generation, machine) = store.load(3).unwrap().unwrap();
            assert_eq!(generation.number, 4);
            assert_eq!((machine.digest(), machine.head()), (world.machine.digest(), world.machine.head()));
        }
    }
    // Other groups are not touched; old versions are gone.
    assert!(store.load(4).unwrap().is_none());
    let tree = store.tree(3).unwrap();
    let versions = tree.range([PAGE_PREFIX]..).keys().map(|key| key.unwrap().to_vec()).collect::<Vec<_>>();
    let mut pages: Vec<&[u8]> = versions.iter().map(|key| &key[..key.len() - 8]).collect();
    pages.dedup();
    assert_eq!(pages.len(), versions.len());
}
const PAGE_PREFIX: u8 = 1;

#[test]
fn marks_of_pages_that_are_gone_go_too() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut world = World::new();
    let hold = |n: u64| {
        let op = tickets::Command::from(tickets::Hold {
            event_id: "gala".into(),
            tier_id: "ga".into(),
            quantity: 1,
            seats: vec![],
            ttl_ms: 1,
        });
        tickets_command(n, op)
    };
    world.apply(vec![hold(1)]);
    store.write(1, &world.machine.freeze()).unwrap();
    let release = |n: u64| {
        tickets_command(
            n,
            tickets::Command::from(tickets::ReleaseHold { event_id: "gala".into(), hold_id: "ga-h1".into() }),
        )
    };
    // The hold's page is gone; its mark stays with this generation and goes with the next, also over a restart.
    world.apply(vec![release(51)]);
    store.write(1, &world.machine.freeze()).unwrap();
    drop(store);
    let mut store = opened(directory.path());
    assert_eq!(store.load(1).unwrap().unwrap().1.digest(), world.machine.digest());
    let tree = store.tree(1).unwrap();
    let marks = |tree: &sled::Tree| tree.iter().values().filter(|v| v.as_ref().unwrap()[4] == 0).count();
    assert_eq!(marks(&tree), 1);
    world.buy(1);
    store.write(1, &world.machine.freeze()).unwrap();
    assert_eq!(marks(&tree), 0);
    drop((tree, store));
    assert_eq!(opened(directory.path()).load(1).unwrap().unwrap().1.digest(), world.machine.digest());
}

#[test]
fn changes_older_than_what_is_stored_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut old = World::new();
    old.buy(10);
    let late = old.machine.freeze();
    let mut new = World::new();
    for _ in 0..5 {
        new.buy(10);
    }
    store.write(1, &new.machine.freeze_all()).unwrap();
    assert!(matches!(store.write(1, &late), Err(CheckpointError::Failed { .. })));
    assert_eq!(store.load(1).unwrap().unwrap().1.digest(), new.machine.digest());
}

#[test]
fn a_full_generation_leaves_nothing_of_the_earlier_ones() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut large = World::new();
    large.buy(1_000);
    store.write(1, &large.machine.freeze()).unwrap();
    let small = World::new();
    store.write(1, &small.machine.freeze_all()).unwrap();
    drop(store);
    let (_, machine) = opened(directory.path()).load(1).unwrap().unwrap();
    assert_eq!(machine.digest(), small.machine.digest());
}

#[test]
fn a_generation_cut_short_is_discarded() {
    let mut store = MemoryCheckpoints::new();
    let mut world = World::new();
    world.buy(200);
    let whole = store.write(1, &world.machine.freeze()).unwrap();
    world.buy(200);
    store.set_faults(Faults { tear_next_write: true, ..Faults::default() });
    store.write(1, &world.machine.freeze()).unwrap();
    let (found, machine) = store.load(1).unwrap().unwrap();
    assert_eq!((found.number, machine.digest()), (whole.number, whole.digest));
}

#[test]
fn in_sled_too_a_generation_cut_short_is_discarded() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut world = World::new();
    world.buy(200);
    let whole = store.write(1, &world.machine.freeze()).unwrap();
    // What a power cut leaves of the next one: its record and one of its pages, beside all of the last.
    world.buy(200);
    let torn = world.machine.freeze();
    let tree = store.tree(1).unwrap();
    let page = &torn.pages[0];
    let key = sled_store::tests_support::page_key(page.table(), page.page(), 2);
    tree.insert(key, sled_store::tests_support::seal(&page.encode().unwrap())).unwrap();
    let record =
        Generation { number: 2, base: 1, head: torn.head.clone(), digest: torn.digest, rows: torn.rows };
    tree.insert(sled_store::tests_support::record_key(2), sled_store::tests_support::seal(&record.encode()))
        .unwrap();
    drop((tree, store));
    let mut store = opened(directory.path());
    let (found, machine) = store.load(1).unwrap().unwrap();
    assert_eq!((found.number, machine.digest()), (1, whole.digest));
    // And the next write starts from there.
    world.machine.freeze_lost();
    let next = store.write(1, &world.machine.freeze()).unwrap();
    assert_eq!(next.number, 2);
    drop(store);
    assert_eq!(opened(directory.path()).load(1).unwrap().unwrap().1.digest(), world.machine.digest());
}

#[test]
fn a_page_that_is_lost_without_a_word_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut world = World::new();
    world.buy(500);
    store.write(1, &world.machine.freeze()).unwrap();
    let tree = store.tree(1).unwrap();
    let victim = tree.range([PAGE_PREFIX]..).keys().nth(3).unwrap().unwrap();
    tree.remove(&victim).unwrap();
    drop(tree);
    assert!(matches!(store.verify(), Err(CheckpointError::Damaged { group: 1, .. })));
    assert!(matches!(store.load(1), Err(CheckpointError::Damaged { group: 1, .. })));

    let mut memory = MemoryCheckpoints::new();
    memory.write(1, &world.machine.freeze_all()).unwrap();
    assert!(memory.lose_a_page(1));
    assert!(matches!(memory.load(1), Err(CheckpointError::Damaged { group: 1, .. })));
}

#[test]
fn what_is_discarded_leaves_nothing_behind() {
    let directory = tempfile::tempdir().unwrap();
    let stores: [Box<dyn CheckpointStore>; 2] =
        [Box::new(MemoryCheckpoints::new()), Box::new(opened(directory.path()))];
    for mut store in stores {
        let mut world = World::new();
        world.buy(500);
        store.write(1, &world.machine.freeze()).unwrap();
        store.discard(1).unwrap();
        assert!(store.load(1).unwrap().is_none());
        // A smaller state under the same numbers: nothing of the old one may show.
        let mut world = World::new();
        world.buy(3);
        store.write(1, &world.machine.freeze()).unwrap();
        store.verify().unwrap();
        assert_eq!(store.load(1).unwrap().unwrap().1.digest(), world.machine.digest());
    }
}

#[test]
fn a_changed_byte_is_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut world = World::new();
    world.buy(10);
    store.write(1, &world.machine.freeze()).unwrap();
    let tree = store.tree(1).unwrap();
    let keys: Vec<_> = tree.iter().keys().map(Result::unwrap).collect();
    for key in keys {
        let value = tree.get(&key).unwrap().unwrap();
        let mut broken = value.to_vec();
        let middle = broken.len() / 2;
        broken[middle] ^= 4;
        tree.insert(&key, broken).unwrap();
        assert!(matches!(store.load(1), Err(CheckpointError::Damaged { .. })), "{key:?}");
        tree.insert(&key, value).unwrap();
    }
    assert!(store.load(1).unwrap().is_some());
}

#[test]
fn a_flipped_bit_in_the_files_is_found_and_called_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut store = opened(directory.path());
    let mut world = World::new();
    world.buy(40);
    store.write(1, &world.machine.freeze()).unwrap();
    store.verify().unwrap();
    drop(store);
    let file = directory.path().join("db");
    let whole = std::fs::read(&file).unwrap();
    let used: Vec<_> = (0..whole.len()).filter(|at| whole[*at] != 0).collect();
    let mut found = 0;
    for at in used.iter().step_by(used.len() / 48) {
        let mut broken = whole.clone();
        broken[*at] ^= 0x10;
        std::fs::write(&file, broken).unwrap();
        let loaded = SledCheckpoints::open(directory.path(), [7; 16], 1).and_then(|mut store| store.load(1));
        match loaded {
            // Free space, or an older version of something.
            Ok(Some((_, machine))) => assert_eq!(machine.digest(), world.machine.digest(), "byte {at}"),
            // sled cuts its file where it stops making sense: the node compares with what its log was purged to.
            Ok(None) => {}
            Err(CheckpointError::Failed { doing, what }) => panic!("byte {at}: {doing}: {what}"),
            Err(_) => found += 1,
        }
    }
    assert!(found > 0, "the flips met nothing alive");
}

#[test]
fn a_store_of_another_cluster_or_node_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    drop(opened(directory.path()));
    for (cluster, node) in [([8; 16], 1), ([7; 16], 2)] {
        let error = SledCheckpoints::open(directory.path(), cluster, node).map(drop).unwrap_err();
        assert!(matches!(error, CheckpointError::Foreign(_)), "{error}");
    }
}

#[test]
fn the_writer_reports_what_the_store_said() {
    let memory = MemoryCheckpoints::new();
    let writer = CheckpointWriter::start(Box::new(memory.clone())).unwrap();
    let mut world = World::new();
    let write = |frozen| {
        let (tx, rx) = std::sync::mpsc::channel();
        writer.write(1, frozen, true, Box::new(move |result| tx.send(result).unwrap()));
        rx.recv().unwrap()
    };
    assert_eq!(write(world.machine.freeze()).unwrap().number, 1);
    memory.set_faults(Faults { fail_next_write: true, ..Faults::default() });
    assert!(write(world.machine.freeze()).is_err());
    writer.stop();
    assert!(write(world.machine.freeze()).is_err());
}

/// A process that is killed at the wrong moment leaves this behind: seen once in some hundred kills.
#[test]
fn an_index_that_sled_did_not_finish_is_no_damage() {
    let directory = tempfile::tempdir().unwrap();
    let mut world = World::new();
    world.buy(100);
    let mut store = opened(directory.path());
    let generation = store.write(3, &world.machine.freeze()).unwrap();
    store.verify().unwrap();
    drop(store);
    let newest = std::fs::read_dir(directory.path()).unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name().into_string().unwrap();
        name.starts_with("snap.").then_some(name)
    });
    let left_behind = directory.path().join(format!("{}.generating", newest.max().unwrap()));
    std::fs::write(&left_behind, b"cut short").unwrap();
    let (loaded, machine) = opened(directory.path()).load(3).unwrap().unwrap();
    assert_eq!((loaded, machine.digest()), (generation, world.machine.digest()));
    assert!(!left_behind.exists());
}

/// Where the process below keeps its checkpoints: it is this test binary, run once more.
const KILLED_IN: &str = "TIDEWALL_TEST_CHECKPOINTS";

/// Not a test by itself: writes one checkpoint after the other until it is killed, and says which one is done.
#[test]
fn checkpoints_until_killed() {
    let Some(directory) = std::env::var_os(KILLED_IN) else { return };
    let mut store = opened(std::path::Path::new(&directory));
    let mut world = World::new();
    if let Some((_, machine)) = store.load(3).unwrap() {
        world.next = machine.head().applied.unwrap().index + 1;
        world.machine = machine;
    }
    loop {
        world.buy(40);
        // Now and then everything, as after a snapshot.
        let frozen =
            if world.next.is_multiple_of(7) { world.machine.freeze_all() } else { world.machine.freeze() };
        let generation = store.write(3, &frozen).unwrap();
        if world.next.is_multiple_of(3) {
            store.verify().unwrap();
        }
        println!("DONE {} {:032x}", generation.number, generation.digest);
    }
}

#[test]
fn killed_at_any_moment_it_has_what_it_said_was_done_or_the_next_one() {
    use std::io::{BufRead as _, BufReader};
    let directory = tempfile::tempdir().unwrap();
    let mut last = 0;
    let mut later = 0;
    for round in 0..24_u64 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "checkpoint::tests::checkpoints_until_killed", "--nocapture"])
            .env(KILLED_IN, directory.path())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let done = lines.map_while(Result::ok).filter_map(|line| {
            let (number, digest) = line.rsplit_once("DONE ")?.1.split_once(' ')?;
            Some((number.parse::<u64>().ok()?, digest.to_owned()))
        });
        let mut said = None;
        for seen in done {
            let first = said.replace(seen).is_none();
            if first {
                // At another moment of what it does next, each time.
                std::thread::sleep(std::time::Duration::from_micros(round * 1_700));
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let (number, digest) = said.expect("it writes something before it is killed");
        assert!(number > last, "it went on from generation {last} and says {number}");
        // Whoever loads checks the digest over all rows.
        let mut store = opened(directory.path());
        let (generation, machine) = store.load(3).unwrap().expect("something was done");
        assert!(
            generation.number == number || generation.number == number + 1,
            "{generation:?} after {number}"
        );
        if generation.number == number {
            assert_eq!(format!("{:032x}", machine.digest()), digest);
        } else {
            later += 1;
        }
        last = generation.number;
    }
    assert!(last >= 24, "{last} generations, {later} of them done and not told");
}
