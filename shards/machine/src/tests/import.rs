//! Imports: the same rows however the file is cut and wherever a replica restarts, and what each step costs.

use proptest::sample::Index;

use super::*;
use crate::meta::{ImportRow, MetaRow, StagedRow};
use crate::snapshot::{Parser, SnapshotError};
use crate::time::GroupTime;

pub(super) fn chunk(import: u128, number: u32, bytes: &[u8]) -> Command {
    Command::system(SystemCommand::ImportChunk { import, number, bytes: bytes.to_vec() })
}

pub(super) fn commit(import: u128, chunks: u32, replace: bool) -> Command {
    Command::system(SystemCommand::ImportCommit { import, chunks, replace })
}

/// All pages as they would be stored, with their tables.
pub(super) fn pages(machine: &Machine) -> Vec<(u16, Vec<u8>)> {
    machine.freeze_all().pages.iter().map(|page| (page.table(), page.encode().unwrap())).collect()
}

/// Reads a file in the simplest way there is, from memory: what [`Parser`] must agree with.
fn plain_read(file: &[u8]) -> Result<Machine, SnapshotError> {
    use SnapshotError::*;
    const CUT: SnapshotError = Damaged("it is cut short");
    fn part<'a>(r: &mut Reader<'a>) -> Result<&'a [u8], SnapshotError> {
        let mut number = || r.raw(4).map(|b| u32::from_le_bytes(b.try_into().unwrap())).map_err(|_| CUT);
        let (length, checksum) = (number()?, number()?);
        if length > 64 << 20 {
            return Err(Damaged("a part is impossibly long"));
        }
        let bytes = r.raw(length as usize).map_err(|_| CUT)?;
        if crc32c::crc32c(bytes) == checksum { Ok(bytes) } else { Err(Damaged("a checksum does not match")) }
    }
    let mut r = Reader::new(file);
    if r.raw(8).ok() != Some(b"TIDESNAP") {
        return Err(Foreign);
    }
    match r.raw(4).map_err(|_| CUT)? {
        [3, 0, 0, 0] => {}
        other => return Err(Format(u32::from_le_bytes(other.try_into().unwrap()))),
    }
    let mut h = Reader::new(part(&mut r)?);
    let applied = h.option(|h| Ok(Position { term: h.u64()?, node: h.u64()?, index: h.u64()? }))?;
    let chain = h.raw(32)?.try_into().unwrap();
    let head = Head { applied, chain, membership: h.bytes()?.to_vec() };
    let (digest, ..) = (h.u128()?, h.u64()?, h.u32()?, h.u64()?);
    h.finish()?;
    let mut loader = Machine::loader();
    loop {
        match r.u8().map_err(|_| CUT)? {
            1 => {
                let (table, page) = part(&mut r)?.split_first_chunk().ok_or(Damaged("a page is empty"))?;
                loader.page(u16::from_be_bytes(*table), page)?;
            }
            2 => break,
            _ => return Err(Damaged("a part is of no known kind")),
        }
    }
    let hash = blake3::hash(&file[..file.len() - r.rest().len()]);
    if r.raw(32).map_err(|_| CUT)? != hash.as_bytes() {
        return Err(Damaged("its hash does not match"));
    }
    if !r.is_empty() {
        return Err(Damaged("something follows its end"));
    }
    Ok(loader.finish(head, digest)?)
}

fn meta(machine: &Machine) -> MetaRow {
    let page = pages(machine).into_iter().find(|(table, _)| *table == MetaRow::TABLE).unwrap().1;
    MetaRow::decode(&mut Reader::new(&page[1..])).unwrap()
}

fn without_parts(machine: &Machine) -> Vec<(u16, Vec<u8>)> {
    let staged = [StagedRow::TABLE, ImportRow::TABLE];
    pages(machine).into_iter().filter(|(table, _)| !staged.contains(table)).collect()
}

/// The pages that a commit must leave, or why it is refused: by its rules, from the staged parts alone.
fn plain_import(
    before: &Machine,
    import: u128,
    chunks: u32,
    replace: bool,
) -> Result<Vec<(u16, Vec<u8>)>, String> {
    let mut parts = std::collections::BTreeMap::new();
    for (_, page) in pages(before).iter().filter(|(table, _)| *table == StagedRow::TABLE) {
        let mut r = Reader::new(&page[1..]);
        parts.insert(StagedRow::decode_key(&mut r).unwrap(), StagedRow::decode(&mut r).unwrap().0);
    }
    let mut file = Vec::new();
    for number in 0..chunks {
        let part = parts.get(&(import, number));
        file.extend_from_slice(
            part.ok_or(format!("part {number} of the import is missing: start it again"))?,
        );
    }
    if !replace && before.tickets().events_after("").next().is_some() {
        let why = "the region holds data: importing would replace it, which must be asked for";
        return Err(why.into());
    }
    let read = plain_read(&file).map_err(|error| error.to_string())?;
    let (old, mut row) = (meta(before), meta(&read));
    if row.apply_version > old.apply_version {
        let (rows, supported) = (row.apply_version, old.apply_version);
        return Err(SnapshotError::Load(LoadError::TooNew { rows, supported }).to_string());
    }
    row.apply_version = old.apply_version;
    row.incarnation = row.incarnation.max(old.incarnation) + 1;
    // Log time goes on as it was; what lasts has lasted as long as log time says.
    let passed_ms = old.time.log_ms().saturating_sub(row.time.log_ms());
    let leap = GroupTime { steady_ms: row.time.steady_ms + passed_ms, ..old.time };
    row.time = GroupTime { offset_ms: old.time.log_ms() as i64 - leap.steady_ms as i64, ..leap };
    // No id of the old rows may be decided again: see `nothing_that_was_decided_before_an_import_is_decided_again`.
    row.forgotten_before_ms = row.forgotten_before_ms.max(old.forgotten_before_ms).max(old.latest_id_ms + 1);
    row.latest_id_ms = row.latest_id_ms.max(old.latest_id_ms);
    let mut w = Writer::new();
    w.u64(1);
    row.encode(&mut w);
    let mut expected = without_parts(&read);
    expected.iter_mut().find(|(table, _)| *table == MetaRow::TABLE).unwrap().1 = w.into_bytes();
    Ok(expected)
}

/// What happens to the parts of a file on their way through the log.
#[derive(Debug, Clone)]
enum Mishap {
    Swapped(Index, Index),
    /// Sent again, at another place.
    Again(Index, Index),
    Lost(Index),
    /// Other bytes under the same number.
    Changed(Index, Index),
    /// A part of another import.
    Foreign(Index),
    Abort(Index),
    Business(Index, Vec<Command>),
}

fn any_mishap() -> impl Strategy<Value = Mishap> {
    let at = any::<Index>;
    let business = any_step().prop_map(|step| match step {
        Step::Entry(_, commands) => commands,
        Step::Freeze | Step::Restart => vec![],
    });
    prop_oneof![
        3 => (at(), at()).prop_map(|(a, b)| Mishap::Swapped(a, b)),
        2 => (at(), at()).prop_map(|(a, b)| Mishap::Again(a, b)),
        1 => at().prop_map(Mishap::Lost),
        1 => (at(), at()).prop_map(|(a, b)| Mishap::Changed(a, b)),
        2 => at().prop_map(Mishap::Foreign),
        1 => at().prop_map(Mishap::Abort),
        3 => (at(), business).prop_map(|(at, commands)| Mishap::Business(at, commands)),
    ]
}

/// A file cut in parts, as the commands of the entries that carry it.
fn entries_of(file: &[u8], cuts: &[Index], mishaps: &[Mishap]) -> (u32, Vec<Vec<Command>>) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
    ends.push(file.len());
    ends.sort_unstable();
    let starts = [0].into_iter().chain(ends.iter().copied());
    let parts: Vec<&[u8]> = starts.zip(&ends).map(|(start, end)| &file[start..*end]).collect();
    let mut entries: Vec<Vec<Command>> =
        parts.iter().enumerate().map(|(n, bytes)| vec![chunk(9, n as u32, bytes)]).collect();
    for mishap in mishaps {
        let length = entries.len();
        match mishap {
            Mishap::Swapped(a, b) => entries.swap(a.index(length), b.index(length)),
            Mishap::Again(which, at) => {
                let again = entries[which.index(length)].clone();
                entries.insert(at.index(length), again);
            }
            Mishap::Lost(at) if length > 1 => drop(entries.remove(at.index(length))),
            Mishap::Lost(_) => {}
            Mishap::Changed(which, at) => {
                let number = which.index(parts.len()) as u32;
                entries.insert(at.index(length), vec![chunk(9, number, b"TIDESNAP, but other bytes")]);
            }
            Mishap::Foreign(at) => {
                let at = at.index(length);
                entries.insert(at, vec![chunk(8, at as u32 % 3, parts[at % parts.len()])]);
            }
            Mishap::Abort(at) => {
                entries.insert(at.index(length), vec![Command::system(SystemCommand::ImportAbort)]);
            }
            Mishap::Business(at, commands) => entries.insert(at.index(length), commands.clone()),
        }
    }
    (parts.len() as u32, entries)
}

/// The same replica after it was stopped: from its checkpoint, or as a new one from a snapshot.
fn restarted(machine: &Machine, supported: u32, by_snapshot: bool) -> Machine {
    if by_snapshot {
        let file = snapshot_of(machine);
        return snapshot::read(&mut file.as_slice()).unwrap().machine.supporting(supported).unwrap();
    }
    let mut loader = Machine::loader().with_supported(supported);
    for (table, page) in pages(machine) {
        loader.page(table, &page).unwrap();
    }
    loader.finish(machine.head().clone(), machine.digest()).unwrap()
}

/// Breaks a file, or leaves it whole.
fn any_damage() -> impl Strategy<Value = Option<(Index, u8)>> {
    prop_oneof![3 => Just(None), 1 => (any::<Index>(), 0..10u8).prop_map(Some)]
}

fn damaged(mut file: Vec<u8>, damage: Option<(Index, u8)>) -> Vec<u8> {
    match damage {
        Some((at, 8)) => file.truncate(at.index(file.len())),
        Some((at, 9)) => file.push(at.index(256) as u8),
        Some((at, bit)) => {
            let at = at.index(file.len());
            file[at] ^= 1 << bit;
        }
        None => {}
    }
    file
}

/// Rows of a group with some history, perhaps with an import under way.
fn any_source() -> impl Strategy<Value = Machine> {
    let parts = proptest::collection::vec((1..3u32, 0..4u32), 0..3);
    (proptest::collection::vec(any_step(), 0..12), parts, any::<bool>()).prop_map(|(steps, parts, raised)| {
        let mut log = Log::new();
        if raised {
            log.one(T0, Command::system(SystemCommand::RaiseVersion(2)));
        }
        for step in steps {
            if let Step::Entry(stamp, commands) = step {
                log.entry(stamp, commands);
            }
        }
        for (import, number) in parts {
            log.one(T0, chunk(import.into(), number, b"TIDESNAP"));
        }
        log.machine
    })
}

proptest! {
    /// In whatever pieces a file comes, and whatever is wrong with it, it reads as it does in one.
    #[test]
    fn a_file_reads_the_same_in_any_pieces(
        source in any_source(),
        damage in any_damage(),
        cuts in proptest::collection::vec(any::<Index>(), 0..20),
    ) {
        let file = damaged(snapshot_of(&source), damage);
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(file.len() + 1)).collect();
        ends.extend([0, file.len()]);
        ends.sort_unstable();
        let mut parser = Parser::new();
        let pushed = ends.windows(2).try_for_each(|piece| parser.push(&file[piece[0]..piece[1]]));
        let found = pushed.and_then(|()| parser.finish()).map(|loaded| loaded.machine);
        match (found, plain_read(&file)) {
            (Ok(found), Ok(plain)) => {
                prop_assert_eq!(snapshot_of(&found), file);
                prop_assert_eq!(found.digest(), plain.digest());
            }
            (Err(found), Err(plain)) => prop_assert_eq!(found.to_string(), plain.to_string()),
            (found, plain) => prop_assert!(false, "{:?} but {:?}", found.is_ok(), plain.is_ok()),
        }
    }

    /// However the file is cut, whatever happens to its parts, and wherever a replica restarts, it answers and ends
    /// up like one that never stopped; and the commit does what its rules say about the parts alone.
    #[test]
    fn an_import_is_what_its_parts_are_and_a_restart_changes_nothing(
        (source, target) in (any_source(), any_source()),
        (empty, replace) in (any::<bool>(), any::<bool>()),
        damage in any_damage(),
        cuts in proptest::collection::vec(any::<Index>(), 0..25),
        mishaps in proptest::collection::vec(any_mishap(), 0..4),
        off_by in prop_oneof![6 => Just(0i64), 1 => -1..=1i64],
        waits in proptest::collection::vec(prop_oneof![9 => 0..50u64, 1 => Just(IMPORT_IDLE_MS)], 40),
        stops in proptest::collection::vec(proptest::option::weighted(0.3, any::<bool>()), 40),
    ) {
        let file = damaged(snapshot_of(&source), damage);
        let (parts, mut entries) = entries_of(&file, &cuts, &mishaps);
        entries.push(vec![commit(9, (i64::from(parts) + off_by).max(0) as u32, replace)]);
        entries.push(vec![command(77, buy(1))]);
        let mut steady = if empty { Machine::new() } else { target };
        let version = steady.apply_version();
        // The other replica is a build that knows no more than it has to.
        let mut other = restarted(&steady, version, false);
        let (first, mut chain) = (steady.applied_index() + 1, steady.head().chain);
        let mut stamp_ms = steady.log_time_ms();
        for (n, commands) in entries.into_iter().enumerate() {
            stamp_ms += waits[n % waits.len()];
            let payload = Entry { stamp: Stamp::confirmed(stamp_ms), commands: commands.clone() }.encode();
            let position = Position { term: 3, node: 2, index: first + n as u64 };
            let settled = steady.settled();
            let begun = steady.begin(position, &payload).unwrap();
            let mut decisions = Vec::new();
            for (at, command) in commands.iter().enumerate() {
                let Op::System(SystemCommand::ImportCommit { import, chunks, replace }) = command.op else {
                    decisions.push(steady.command(&begun, at).unwrap());
                    continue;
                };
                let unchanged = without_parts(&steady);
                let expected = plain_import(&steady, import, chunks, replace);
                let decision = steady.command(&begun, at).unwrap();
                match expected {
                    Ok(expected) => {
                        prop_assert_eq!(reason(&decision), "done");
                        prop_assert_eq!(pages(&steady), expected);
                    }
                    Err(why) => {
                        prop_assert_eq!(&decision.answer, &Answer::Rejected(RejectReason::System(why)));
                        prop_assert_eq!(pages(&steady), unchanged);
                    }
                }
                prop_assert_eq!(steady.settled(), settled, "nothing is settled before the entry ends");
                decisions.push(decision);
            }
            steady.end();
            prop_assert_eq!(other.apply(position, &payload).unwrap(), decisions);
            let mut hasher = blake3::Hasher::new();
            hasher.update(&chain);
            for number in [position.term, position.node, position.index] {
                hasher.update(&number.to_be_bytes());
            }
            chain = *hasher.update(&payload).finalize().as_bytes();
            prop_assert_eq!((steady.head().applied, steady.head().chain), (Some(position), chain));
            prop_assert_eq!(steady.settled(), (position.index, steady.digest()));
            prop_assert_eq!(snapshot_of(&other), snapshot_of(&steady));
            // The digest is that of the rows, not of how they came about.
            prop_assert_eq!(restarted(&steady, 2, true).digest(), other.digest());
            if let Some(by_snapshot) = stops[n % stops.len()] {
                other = restarted(&other, version, by_snapshot);
            }
        }
    }
}
#[test]
fn after_an_import_older_ids_are_refused_not_executed() {
    let mut source = Log::new();
    let file = snapshot_of(&source.machine);
    source.one(T0 + 5, command(1, buy(1)));
    let parts = vec![
        Command::system(SystemCommand::ImportChunk { import: 1, number: 0, bytes: file }),
        Command::system(SystemCommand::ImportCommit { import: 1, chunks: 1, replace: true }),
    ];
    source.entry(T0 + 10, parts);
    // It was decided after the backup was made: a retry must not buy again.
    assert_eq!(reason(&source.one(T0 + 11, command(1, buy(1)))), "IdForgotten");
}

#[test]
fn an_import_replaces_everything_or_nothing() {
    let mut source = Log::new();
    source.one(T0, command(1, buy(2)));
    let file = snapshot_of(&source.machine);
    let import = |log: &mut Log, file: &[u8], replace| {
        let parts: Vec<&[u8]> = file.chunks(100).collect();
        for (number, bytes) in parts.iter().enumerate() {
            let op = SystemCommand::ImportChunk { import: 9, number: number as u32, bytes: bytes.to_vec() };
            log.one(T0, Command::system(op));
        }
        let chunks = parts.len() as u32;
        log.one(T0, Command::system(SystemCommand::ImportCommit { import: 9, chunks, replace }))
    };
    // An empty region takes it.
    let mut empty = Log { machine: Machine::new(), entries: Vec::new() };
    assert_eq!(reason(&import(&mut empty, &file, false)), "done");
    assert_eq!(empty.machine.tickets_digest(), source.machine.tickets_digest());
    assert_eq!(empty.machine.incarnation(), 2);
    assert!(empty.machine.outcome("alice", id(T0, 1)).is_some());
    let frozen = empty.machine.freeze();
    assert!(frozen.full, "a checkpoint after an import must not keep older pages");
    // One that holds events does not, unless told so.
    let mut taken = Log::new();
    taken.one(T0, command(5, buy(1)));
    let before = taken.machine.tickets_digest();
    assert_eq!(reason(&import(&mut taken, &file, false)), "System");
    // A damaged file changes nothing, even when told so.
    let mut broken = file.clone();
    broken[file.len() / 2] ^= 1;
    assert_eq!(reason(&import(&mut taken, &broken, true)), "System");
    assert_eq!(taken.machine.tickets_digest(), before);
    assert_eq!(reason(&import(&mut taken, &file, true)), "done");
    assert_eq!(taken.machine.tickets_digest(), source.machine.tickets_digest());
    // What was staged is gone.
    assert!(!taken.machine.freeze_all().pages.iter().any(|page| page.table() == 12));
}

/// A group with events enough for a file of some size, and the file in parts.
fn large(parts: usize) -> Vec<Vec<u8>> {
    let mut log = Log::new();
    for n in 1..300 {
        log.one(T0, command(n, buy(1)));
    }
    let file = snapshot_of(&log.machine);
    file.chunks(file.len().div_ceil(parts)).map(<[u8]>::to_vec).collect()
}

/// The cost of an entry: each part is read when it comes, so that the commit has none to read.
#[test]
fn each_part_is_read_when_it_comes_and_at_a_start_those_that_are_there() {
    let parts = large(20);
    let mut log = Log::new();
    for (n, part) in parts.iter().enumerate() {
        let n = n as u32;
        log.one(T0, chunk(9, n, part));
        assert_eq!(log.machine.parts_read(9), n + 1);
        assert_eq!(restarted(&log.machine, 2, n.is_multiple_of(2)).parts_read(9), n + 1);
    }
    // A second import beside it, and the same part again, disturb nothing.
    log.one(T0, chunk(8, 0, &parts[0]));
    log.one(T0, chunk(9, 3, &parts[3]));
    assert_eq!((log.machine.parts_read(8), log.machine.parts_read(9)), (1, 20));
    assert_eq!(reason(&log.one(T0, commit(9, 20, true))), "done");
    assert_eq!((log.machine.parts_read(8), log.machine.parts_read(9)), (0, 0));
}

#[test]
fn what_was_read_of_a_part_that_changes_is_forgotten_and_read_again_a_few_parts_at_a_time() {
    let parts = large(20);
    let mut log = Log::new();
    for (n, part) in parts.iter().enumerate().skip(1) {
        log.one(T0, chunk(9, n as u32, part));
        assert_eq!(log.machine.parts_read(9), 0, "nothing can be read without the first part");
    }
    log.one(T0, chunk(9, 0, b"not this"));
    assert_eq!(log.machine.parts_read(9), 4, "an entry reads a bounded number");
    log.one(T0, chunk(9, 0, &parts[0]));
    assert_eq!(log.machine.parts_read(9), 4, "from the beginning");
    log.one(T0, chunk(9, 19, b"not this"));
    assert_eq!(log.machine.parts_read(9), 8, "what was not read yet may change");
    log.one(T0, chunk(9, 19, &parts[19]));
    assert_eq!(reason(&log.one(T0, commit(9, 20, true))), "done");
}

#[test]
fn what_an_import_replaces_is_handed_out_once() {
    let parts = large(3);
    let mut log = Log::new();
    let import = |log: &mut Log| {
        for (n, part) in parts.iter().enumerate() {
            log.one(T0, chunk(9, n as u32, part));
            assert!(log.machine.take_replaced().is_none(), "nothing was replaced yet");
        }
        assert_eq!(reason(&log.one(T0, commit(9, 3, true))), "done");
    };
    import(&mut log);
    let replaced = log.machine.take_replaced().unwrap();
    assert!(format!("{replaced:?}").contains("display_name: \"Gala\""), "the old rows");
    assert!(log.machine.take_replaced().is_none());
    // Who does not ask for it does not keep it.
    import(&mut log);
    log.one(T0, Command::system(SystemCommand::Tick));
    assert!(log.machine.take_replaced().is_none());
    // What was read of an import that fails is handed out as well.
    log.one(T0, chunk(9, 0, &parts[0]));
    assert_eq!(reason(&log.one(T0, commit(9, 1, true))), "System");
    assert!(log.machine.take_replaced().is_some());
}

/// What is sold after an import is numbered by it: two imports that share a number would sell the same tickets twice.
#[test]
fn an_import_that_could_not_be_told_from_another_is_refused() {
    let mut log = Log::new();
    let file = snapshot_of(&log.machine);
    let begin = |log: &mut Log, incarnation| {
        let position = Position { term: 1, node: 1, index: log.entries.len() as u64 };
        log.entries.push(Vec::new());
        log.machine.begin_incarnation(position, Vec::new(), incarnation);
    };
    let import = |log: &mut Log| {
        log.one(T0, chunk(1, 0, &file));
        reason(&log.one(T0, commit(1, 1, true)))
    };
    begin(&mut log, 998);
    assert_eq!((import(&mut log).as_str(), log.machine.incarnation()), ("done", 999));
    assert_ne!(import(&mut log), "done");
    assert_eq!(log.machine.incarnation(), 999, "and nothing has changed");
    // A recovery by force begins to count anew.
    begin(&mut log, 1 << 32);
    assert_eq!((import(&mut log).as_str(), log.machine.incarnation()), ("done", (1 << 32) + 1));
}
