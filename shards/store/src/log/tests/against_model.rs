//! The log against a simple model, through random steps and crashes. The checker ([`Model::check`]) answers with a `Result`,
//! so that tests can show that it fails when it must.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tidewall_env::disk::CrashMode;

use super::*;

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
    /// Groups below this number are stuck: what they have in the oldest segment is moved.
    Relocate {
        below: u32,
        bytes: usize,
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
        6 => (1..=GROUPS, 0..3_000_usize).prop_map(|(below, bytes)| Step::Relocate { below, bytes }),
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
            Step::Relocate { below, bytes } => {
                let moved = log.relocate(&(0..*below).collect(), *bytes, done);
                if !moved.map_err(|error| error.to_string())? {
                    continue;
                }
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
