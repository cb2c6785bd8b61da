//! Rules of the core: repeated requests, log time, digests, poison commands, snapshots, imports, versions.
#![allow(clippy::unwrap_used)]

mod effects;
mod emails;
mod feed;
mod forgetting;
mod groups;
mod ids;
mod import;
mod modules;
mod snapshots;
mod streams;
mod time;
mod version;

use proptest::prelude::*;
use prost::Message as _;
use tidewall_domain::codec::{Reader, Writer};
use tidewall_domain::module::Reason as _;
use tidewall_domain::table::Row as _;
use tidewall_domain::tickets::model::StockRow;
use tidewall_domain::tickets::{Rejection, State};
use tidewall_messages::tickets;

use crate::*;

const T0: u64 = 1_700_000_000_000;

fn id(ms: u64, n: u64) -> u128 {
    (u128::from(ms) << 80) | (7 << 76) | (1 << 63) | u128::from(n)
}

fn command(n: u64, op: tickets::Command) -> Command {
    Command::asking("alice", id(T0, n), T0 + 5_000, &op)
}

impl Machine {
    /// The rows of the ticket module.
    fn tickets(&self) -> &State {
        self.rows_of().unwrap()
    }

    /// Their digest, which knows nothing of time and remembered outcomes.
    fn tickets_digest(&self) -> u128 {
        self.module(tickets::MODULE).unwrap().digest()
    }
}

fn create() -> tickets::Command {
    let tier = tickets::TierSpec {
        tier_id: "ga".into(),
        display_name: String::new(),
        capacity: 5,
        currency_code: "EUR".into(),
        price_minor_units: 1,
        seat_rows: vec![],
    };
    tickets::Command::from(tickets::CreateEvent {
        event_id: "gala".into(),
        display_name: "Gala".into(),
        quota_per_buyer: 100,
        tiers: vec![tier],
        ..Default::default()
    })
}

fn buy(quantity: u32) -> tickets::Command {
    let seats = vec![];
    tickets::Command::from(tickets::Buy {
        event_id: "gala".into(),
        tier_id: "ga".into(),
        quantity,
        seats,
        buyer: String::new(),
    })
}

fn hold(quantity: u32, ttl_ms: u32) -> tickets::Command {
    tickets::Command::from(tickets::Hold {
        event_id: "gala".into(),
        tier_id: "ga".into(),
        quantity,
        seats: vec![],
        ttl_ms,
    })
}

fn tick() -> Command {
    Command::system(SystemCommand::Tick)
}

struct Log {
    machine: Machine,
    entries: Vec<Vec<u8>>,
}

impl Log {
    fn new() -> Self {
        let mut log = Self { machine: Machine::new(), entries: Vec::new() };
        log.entry(T0, vec![command(0, create())]);
        log
    }

    fn entry(&mut self, stamp_ms: u64, commands: Vec<Command>) -> Vec<Decision> {
        let payload = Entry { stamp: Stamp::confirmed(stamp_ms), commands }.encode();
        let position = Position { term: 1, node: 1, index: self.entries.len() as u64 };
        self.entries.push(payload.clone());
        self.machine.apply(position, &payload).unwrap()
    }

    fn one(&mut self, stamp_ms: u64, command: Command) -> Decision {
        self.entry(stamp_ms, vec![command]).remove(0)
    }
}

fn reason(decision: &Decision) -> String {
    match &decision.answer {
        Answer::Done { .. } | Answer::System => "done".into(),
        Answer::Rejected(RejectReason::Module(rejection)) => rejection.reason.clone(),
        Answer::Rejected(other) => format!("{other:?}").split('(').next().unwrap().into(),
    }
}

fn snapshot_of(machine: &Machine) -> Vec<u8> {
    let frozen = machine.freeze_all();
    snapshot::encode(&frozen).flatten().collect()
}

#[test]
fn a_repeated_request_gets_its_first_answer_and_executes_nothing() {
    let mut log = Log::new();
    let first = log.one(T0, command(1, buy(2)));
    let digest_without_time = log.machine.tickets_digest();
    let mut again = command(1, buy(2));
    again.expires_ms += 60_000;
    let second = log.one(T0, again);
    assert_eq!((second.receipt, &second.answer), (first.receipt, &first.answer));
    assert!(second.replayed && !first.replayed);
    assert_eq!(log.machine.tickets_digest(), digest_without_time);
    assert_eq!(log.machine.outcome("alice", id(T0, 1)).unwrap().receipt, first.receipt);
    assert_eq!(log.machine.outcome("bob", id(T0, 1)), None);
}

#[test]
fn twice_in_one_entry_is_once() {
    let mut log = Log::new();
    let answers = log.entry(T0, vec![command(1, buy(1)), command(1, buy(1)), command(2, buy(5))]);
    assert_eq!(answers[0].receipt, answers[1].receipt);
    assert_eq!(reason(&answers[2]), "SOLD_OUT");
}

#[test]
fn an_id_with_other_content_is_refused_and_a_rejection_is_remembered_too() {
    let mut log = Log::new();
    assert_eq!(reason(&log.one(T0, command(1, buy(9)))), "SOLD_OUT");
    assert_eq!(reason(&log.one(T0, command(1, buy(1)))), "IdReused");
    let again = log.one(T0, command(1, buy(9)));
    assert!(again.replayed);
    let expected = Rejection::SoldOut { asked: 9, free: 5 };
    assert_eq!(again.answer, Answer::Rejected(RejectReason::Module(expected.rejection())));
    let reused = log.machine.remembered(&command(1, buy(1))).unwrap();
    assert_eq!(reason(&reused), "IdReused");
    assert!(log.machine.remembered(&command(1, buy(9))).unwrap().replayed);
    assert_eq!(log.machine.remembered(&command(7, buy(9))), None);
}

#[test]
fn log_time_never_goes_back() {
    let mut log = Log::new();
    log.one(T0 + 100, command(1, hold(5, 50)));
    // A later active with a slow clock: its stamp is clamped, so the hold (due at T0 + 150) is not due yet.
    let decision = log.one(T0 + 10, command(2, buy(1)));
    assert_eq!(reason(&decision), "SOLD_OUT");
    assert_eq!(log.machine.log_time_ms(), T0 + 100);
    assert_eq!(reason(&log.one(T0 + 150, command(3, buy(1)))), "done");
}

#[test]
fn a_tick_ends_due_holds() {
    let mut log = Log::new();
    log.one(T0, command(1, hold(5, 50)));
    let due = log.machine.next_due_ms().unwrap();
    assert_eq!(due, T0 + 50);
    log.entry(due - 1, vec![tick()]);
    assert_eq!(log.machine.next_due_ms(), Some(due));
    log.entry(due, vec![tick()]);
    let forgotten = log.machine.next_due_ms().unwrap();
    assert!(forgotten > due, "the row is kept for a while");
    log.entry(forgotten, vec![tick()]);
    assert_eq!(log.machine.next_due_ms(), None);
}

#[test]
fn what_comes_after_its_expiry_is_not_executed_and_not_remembered() {
    let mut log = Log::new();
    let late = log.one(T0 + 5_001, command(1, buy(1)));
    assert_eq!((reason(&late).as_str(), late.receipt), ("Expired", None));
    assert_eq!(log.machine.outcome("alice", id(T0, 1)), None);
    let mut again = command(1, buy(1));
    again.expires_ms = T0 + 10_000;
    assert_eq!(reason(&log.one(T0 + 5_001, again)), "done");
}

/// The quick no's danger: sold out was answered without the log, a refund frees a place, and a delayed copy of the
/// refused request arrives. Its expiry keeps it from buying.
#[test]
fn a_delayed_copy_cannot_buy_after_a_refund() {
    let mut log = Log::new();
    log.one(T0, command(1, buy(5)));
    let refused = command(2, buy(1));
    assert!(log.machine.quick_no(&refused, Stamp::confirmed(T0)).is_some());
    let mut cancel = command(
        3,
        tickets::Command::from(tickets::CancelTicket { event_id: "gala".into(), ticket_id: "ga-1".into() }),
    );
    cancel.expires_ms = T0 + 60_000;
    assert_eq!(reason(&log.one(T0 + 6_000, cancel)), "done");
    assert_eq!(reason(&log.one(T0 + 6_000, refused)), "Expired");
}

#[test]
fn old_ids_are_forgotten_and_then_refused() {
    let mut log = Log::new();
    log.one(T0, command(1, buy(1)));
    let later = T0 + REMEMBERED_MS + 6_000;
    log.entry(later, vec![tick()]);
    assert_eq!(log.machine.outcome("alice", id(T0, 1)), None);
    assert!(log.machine.forgotten("alice", id(T0, 1)));
    let mut copy = command(1, buy(1));
    copy.expires_ms = later + 5_000;
    assert_eq!(reason(&log.one(later, copy)), "IdForgotten");
    let mut fresh = command(2, buy(1));
    fresh.expires_ms = later + 5_000;
    fresh.request_id = id(later, 2);
    assert_eq!(reason(&log.one(later, fresh.clone())), "done");
    fresh.request_id = id(later + ID_AHEAD_MS_MAX + 1, 3);
    assert_eq!(reason(&log.one(later, fresh)), "IdFromFuture");
}

#[test]
fn an_id_ahead_of_time_shuts_nobody_out() {
    let mut log = Log::new();
    let mut ahead = command(1, buy(1));
    ahead.request_id = id(T0 + ID_AHEAD_MS_MAX, 1);
    assert_eq!(reason(&log.one(T0, ahead)), "done");
    // However old it gets by log time, it is not forgotten before its own time has come.
    log.entry(T0 + 10_000, vec![tick()]);
    assert!(!log.machine.forgotten("alice", id(T0 + 10_000, 2)));
}

#[test]
fn the_settled_digest_is_that_of_whole_entries() {
    let mut log = Log::new();
    let before = log.machine.settled();
    let payload = Entry { stamp: Stamp::confirmed(T0 + 1), commands: vec![command(1, buy(1))] }.encode();
    let entry = log.machine.begin(Position { term: 1, node: 1, index: 1 }, &payload).unwrap();
    assert_eq!(log.machine.settled(), before);
    log.machine.command(&entry, 0).unwrap();
    log.machine.end();
    assert_eq!(log.machine.settled(), (1, log.machine.digest()));
}

#[test]
fn an_entry_that_does_not_decode_or_follow_is_an_error() {
    let mut log = Log::new();
    let before = log.machine.digest();
    let at = |index| Position { term: 1, node: 1, index };
    let error = log.machine.apply(at(1), &[ENTRY_OF_TOMORROW, 0, 0]).unwrap_err();
    assert!(matches!(error, ApplyError::Undecodable { index: 1, .. }), "{error}");
    let error = log
        .machine
        .apply(at(5), &Entry { stamp: Stamp::confirmed(0), commands: vec![] }.encode())
        .unwrap_err();
    assert_eq!(error, ApplyError::Gap { index: 5, applied: 0 });
    assert_eq!((log.machine.digest(), log.machine.applied_index()), (before, 0));
}
const ENTRY_OF_TOMORROW: u8 = 200;

/// The rows of a log, but with a stock row that lies.
fn lying(log: &Log, lie: &StockRow) -> Machine {
    let doctored = |digest| {
        let mut loader = Machine::loader();
        for page in &log.machine.freeze_all().pages {
            let mut bytes = page.encode().unwrap();
            if page.table() == StockRow::TABLE {
                let mut w = Writer::new();
                w.u64(1);
                StockRow::encode_key(&(1, 0), &mut w);
                lie.encode(&mut w);
                bytes = w.into_bytes();
            }
            loader.page(page.table(), &bytes).unwrap();
        }
        loader.finish(log.machine.head().clone(), digest)
    };
    // The digest tells the doctored rows from the real ones.
    let LoadError::Digest { found, .. } = doctored(log.machine.digest()).unwrap_err() else {
        panic!("same digest")
    };
    doctored(found).unwrap()
}

/// Purchases pass the decision and break T1.
fn poisoned() -> Machine {
    let lie = StockRow { capacity: 5, free: 6, next_ticket: 1, next_hold: 1, ..StockRow::default() };
    lying(&Log::new(), &lie)
}

#[test]
fn timers_that_would_break_an_invariant_are_counted_and_set_aside() {
    let mut log = Log::new();
    log.entry(T0, vec![command(1, hold(1, 1_000)), command(2, hold(2, 1_000))]);
    let lie = StockRow { capacity: 5, free: 5, next_ticket: 1, next_hold: 3, ..StockRow::default() };
    log.machine = lying(&log, &lie);
    assert!(log.machine.next_due_ms().is_some());
    log.one(T0 + 1_000, tick());
    assert_eq!((log.machine.faults(), log.machine.next_due_ms()), (2, None));
}

#[test]
fn a_poison_command_is_taken_back_and_the_others_go_on() {
    let mut machine = poisoned();
    let rows_before = machine.tickets_digest();
    let update = tickets::Command::from(tickets::UpdateEvent {
        event_id: "gala".into(),
        display_name: Some("Still serving".into()),
        ..Default::default()
    });
    let commands = vec![command(1, buy(1)), command(2, update)];
    let payload = Entry { stamp: Stamp::confirmed(T0), commands }.encode();
    let position = Position { term: 1, node: 1, index: 1 };
    let entry = machine.begin(position, &payload).unwrap();
    let poison = machine.command(&entry, 0).unwrap();
    assert_eq!(reason(&poison), "InternalInvariant");
    assert!(poison.receipt.is_some(), "the answer is remembered");
    assert_eq!((machine.tickets_digest(), machine.faults()), (rows_before, 1));
    assert_eq!(reason(&machine.command(&entry, 1).unwrap()), "done");
    assert!(machine.outcome("alice", id(T0, 1)).is_some());
}

#[test]
fn receipts_are_ordered_and_chained() {
    let mut log = Log::new();
    let first = log.entry(T0, vec![command(1, buy(1)), command(2, buy(1))]);
    let second = log.one(T0, command(3, buy(1)));
    let receipts: Vec<Receipt> = first.iter().chain([&second]).map(|d| d.receipt.unwrap()).collect();
    assert!(receipts.windows(2).all(|w| (w[0].index, w[0].position) < (w[1].index, w[1].position)));
    assert_eq!(receipts[0].chain, receipts[1].chain);
    assert_ne!(receipts[1].chain, receipts[2].chain);
    let mut other = Log::new();
    other.entry(T0 + 1, vec![command(1, buy(1)), command(2, buy(1))]);
    assert_ne!(other.machine.head().chain, log.machine.head().chain);
}

#[test]
fn a_snapshot_brings_back_the_state_and_every_flipped_byte_is_noticed() {
    let mut log = Log::new();
    log.entry(T0, vec![command(1, buy(2)), command(2, hold(1, 1_000))]);
    let file = snapshot_of(&log.machine);
    let loaded = snapshot::read(&mut file.as_slice()).unwrap();
    assert_eq!(loaded.machine.digest(), log.machine.digest());
    assert_eq!(loaded.machine.head(), log.machine.head());
    assert_eq!(loaded.header.rows, log.machine.rows());
    let mut machine = loaded.machine;
    let payload = Entry { stamp: Stamp::confirmed(T0), commands: vec![command(1, buy(2))] }.encode();
    let again = machine.apply(Position { term: 1, node: 1, index: 2 }, &payload).unwrap();
    assert!(again[0].replayed, "the remembered outcomes are part of the snapshot");
    for at in 0..file.len() {
        for bit in [0, 7] {
            let mut broken = file.clone();
            broken[at] ^= 1 << bit;
            assert!(snapshot::read(&mut broken.as_slice()).is_err(), "bit {bit} of byte {at}");
        }
        assert!(snapshot::read(&mut &file[..at]).is_err(), "cut at {at}");
    }
    let mut longer = file;
    longer.push(0);
    assert!(snapshot::read(&mut longer.as_slice()).is_err());
}

#[test]
fn a_snapshot_of_a_newer_format_is_refused_by_name() {
    let mut file = snapshot_of(&Log::new().machine);
    file[8] = 9;
    let error = snapshot::read(&mut file.as_slice()).unwrap_err().to_string();
    assert!(error.contains("format 9") && error.contains("format 3"), "{error}");
}

#[derive(Debug, Clone)]
enum Step {
    Entry(u64, Vec<Command>),
    Freeze,
    Restart,
}

fn any_step() -> impl Strategy<Value = Step> {
    let ticket = |n: u64| format!("ga-{n}");
    let op = prop_oneof![
        4 => (0..4u32).prop_map(buy),
        2 => (0..4u32, 1..100u32).prop_map(|(q, ttl)| hold(q, ttl)),
        1 => (1..8u64).prop_map(move |n| tickets::Command::from(tickets::CancelTicket { event_id: "gala".into(), ticket_id: ticket(n) })),
        1 => (1..8u64).prop_map(|n| tickets::Command::from(tickets::ConfirmHold { event_id: "gala".into(), hold_id: format!("ga-h{n}") })),
    ];
    let commands = proptest::collection::vec((1..30u64, op).prop_map(|(n, op)| command(n, op)), 0..5);
    prop_oneof![
        6 => (T0..T0 + 300, commands).prop_map(|(stamp, commands)| Step::Entry(stamp, commands)),
        2 => Just(Step::Freeze),
        1 => Just(Step::Restart),
    ]
}

/// The group's own business: a small import in two parts, versions, time that passes.
fn any_system_step() -> impl Strategy<Value = Step> {
    let file = snapshot_of(&Log::new().machine);
    let parts: Vec<Vec<u8>> = file.chunks(file.len().div_ceil(2)).map(<[u8]>::to_vec).collect();
    let op = prop_oneof![
        6 => (8..10u128, 0..2u32).prop_map(move |(import, number)| SystemCommand::ImportChunk {
            import, number, bytes: parts[number as usize].clone() }),
        3 => (8..10u128, any::<bool>()).prop_map(|(import, replace)| SystemCommand::ImportCommit {
            import, chunks: 2, replace }),
        1 => Just(SystemCommand::ImportAbort),
        1 => (1..3u32).prop_map(SystemCommand::RaiseVersion),
    ];
    let stamp = prop_oneof![9 => Just(T0), 1 => (1..4u64).prop_map(|n| T0 + n * IMPORT_IDLE_MS)];
    (stamp, op).prop_map(|(stamp, op)| Step::Entry(stamp, vec![Command::system(op)]))
}

proptest! {
    /// Whatever is asked, and wherever a replica stops and starts again from its last checkpoint and the log behind
    /// it, it reaches the same digest and chain as one that never stopped.
    #[test]
    fn a_restart_changes_nothing(
        steps in proptest::collection::vec(prop_oneof![2 => any_step(), 1 => any_system_step()], 0..60),
    ) {
        let mut log = Log::new();
        let mut other = Log::new();
        let mut stored: std::collections::BTreeMap<(u16, Vec<u8>), Vec<u8>> = Default::default();
        let mut generation: Option<(Head, u128)> = None;
        for step in steps {
            match step {
                Step::Entry(stamp, commands) => {
                    let answers = log.entry(stamp, commands.clone());
                    prop_assert_eq!(answers, other.entry(stamp, commands));
                }
                Step::Freeze => {
                    let frozen = other.machine.freeze();
                    if frozen.full { stored.clear(); }
                    for page in &frozen.pages {
                        let key = (page.table(), page.page().to_vec());
                        match page.encode() {
                            Some(bytes) => stored.insert(key, bytes),
                            None => stored.remove(&key),
                        };
                    }
                    generation = Some((frozen.head, frozen.digest));
                }
                Step::Restart => {
                    let mut machine = Machine::new();
                    if let Some((head, digest)) = &generation {
                        let mut loader = Machine::loader();
                        for ((table, _), bytes) in &stored { loader.page(*table, bytes).unwrap(); }
                        machine = loader.finish(head.clone(), *digest).unwrap();
                    }
                    let from = machine.head().applied.map_or(0, |at| at.index as usize + 1);
                    for (index, payload) in other.entries.iter().enumerate().skip(from) {
                        let position = Position { term: 1, node: 1, index: index as u64 };
                        machine.apply(position, payload).unwrap();
                    }
                    other.machine = machine;
                    // Everything counts as changed against what is stored: freeze all of it next time.
                    other.machine.freeze_lost();
                }
            }
            prop_assert_eq!(log.machine.digest(), other.machine.digest());
            prop_assert_eq!(log.machine.head(), other.machine.head());
            prop_assert_eq!(log.machine.faults(), 0);
        }
    }

    #[test]
    fn entries_have_one_byte_form(
        steps in proptest::collection::vec(prop_oneof![any_step(), any_system_step()], 1..10),
    ) {
        for step in steps {
            let Step::Entry(stamp_ms, commands) = step else { continue };
            let entry = Entry { stamp: Stamp::confirmed(stamp_ms), commands };
            prop_assert_eq!(Entry::decode(&entry.encode()).unwrap(), entry);
        }
    }

    #[test]
    fn garbage_is_no_entry_and_never_panics(bytes: Vec<u8>) {
        let _ = Entry::decode(&bytes);
        prop_assert!(snapshot::read(&mut bytes.as_slice()).is_err());
    }
}

#[test]
fn a_freeze_that_is_lost_makes_the_next_one_carry_everything() {
    let mut log = Log::new();
    let everything = log.machine.freeze().pages.len();
    log.one(T0, command(1, buy(1)));
    let changed = log.machine.changed_pages();
    let part = log.machine.freeze();
    assert!(!part.full && part.pages.len() == changed && changed < everything + 2, "{changed}");
    assert_eq!(log.machine.changed_pages(), 0);
    log.machine.freeze_lost();
    let whole = log.machine.freeze();
    assert!(whole.full);
    assert_eq!(whole.pages.len(), log.machine.freeze_all().pages.len());
    assert!(!log.machine.freeze().full, "only once");
}

#[test]
fn a_commands_bytes_are_its_envelope_its_principal_and_its_operation() {
    let envelope = tick().bytes();
    assert_eq!(envelope, 64);
    let asked = command(1, buy(1));
    let Op::Module { payload, .. } = &asked.op else { panic!("it buys") };
    assert_eq!(asked.bytes(), envelope + "alice".len() + payload.len());
    let for_somebody = Command { on_behalf_of: "bob".into(), ..asked.clone() };
    assert_eq!(for_somebody.bytes(), asked.bytes() + 3);
    let part = SystemCommand::ImportChunk { import: 1, number: 0, bytes: vec![0; 1_000] };
    assert_eq!(Command::system(part).bytes(), envelope + 1_000);
}
