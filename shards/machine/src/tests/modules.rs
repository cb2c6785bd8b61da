//! A domain that this crate has never heard of: all that it is stands in this file, and the machine carries it as any other.

use std::collections::BTreeSet;

use tidewall_domain::codec::DecodeError;
use tidewall_domain::module::{Code, Decision as Decided, Fault, Module, Reason};
use tidewall_domain::table::{AnyTable, Row, Table, TableId, table_id};
use tidewall_domain::{Caller, Context, Now, registry};
use tidewall_messages::{ModuleCommand, ModuleQuery};

use super::*;

const MODULE: u8 = 200;

/// Adds to the counter of this name, which is forgotten after a while.
#[derive(Clone, PartialEq, prost::Message)]
struct Add {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(uint64, tag = "2")]
    by: u64,
    #[prost(uint64, tag = "3")]
    kept_ms: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Total {
    #[prost(uint64, tag = "1")]
    value: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Get {
    #[prost(string, tag = "1")]
    name: String,
}

impl ModuleCommand for Add {
    const MODULE: u8 = MODULE;

    fn is_known(&self) -> bool {
        !self.name.is_empty()
    }
}

impl ModuleQuery for Get {
    const MODULE: u8 = MODULE;
    type Answer = Total;

    fn is_known(&self) -> bool {
        true
    }
}

#[derive(Debug, Clone, PartialEq)]
struct Counter {
    value: u64,
    until_ms: u64,
}

impl Row for Counter {
    const TABLE: TableId = table_id(MODULE, 1);
    type Key = String;
    type Page = String;
    type Index = BTreeSet<(u64, String)>;

    fn page(key: &String) -> String {
        key.clone()
    }
    fn encode_page(page: &String, w: &mut Writer) {
        w.raw(page.as_bytes());
    }
    fn encode_key(key: &String, w: &mut Writer) {
        w.str(key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<String, DecodeError> {
        r.str().map(str::to_owned)
    }
    fn encode(&self, w: &mut Writer) {
        w.u64(self.value);
        w.u64(self.until_ms);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { value: r.u64()?, until_ms: r.u64()? })
    }
    fn index(index: &mut Self::Index, key: &String, row: &Self) {
        index.insert((row.until_ms, key.clone()));
    }
    fn unindex(index: &mut Self::Index, key: &String, row: &Self) {
        index.remove(&(row.until_ms, key.clone()));
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{0} is more than a counter takes at once")]
struct TooMuch(u64);

impl Reason for TooMuch {
    fn reason(&self) -> &'static str {
        "TOO_MUCH"
    }
    fn code(&self) -> Code {
        Code::InvalidArgument
    }
    fn field(&self) -> &str {
        "by"
    }
}

enum Event {
    Set(String, Counter),
    Forgotten(String),
}

#[derive(Debug, Default)]
struct Counters {
    rows: Table<Counter>,
}

/// A due counter of this name cannot be forgotten.
const CURSED: &str = "cursed";

impl Counters {
    fn value(&self, name: &str) -> u64 {
        self.rows.get(&name.to_owned()).map_or(0, |counter| counter.value)
    }
}

impl Module for Counters {
    const NAME: &'static str = "counters";
    type Command = Add;
    type Outcome = Total;
    type Rejection = TooMuch;
    type Event = Event;
    type Timer = u64;
    type Query = Get;
    type Message = tidewall_messages::NoMessage;
    const TIMER_ROWS_MAX: u64 = 8;

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        show(&self.rows);
    }
    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        show(&mut self.rows);
    }
    fn has_row(&self, name: &str) -> bool {
        self.rows.get(&name.to_owned()).is_some()
    }
    fn is_remembered(add: &Add) -> bool {
        add.by > 0
    }
    fn rows_max(_: &Add) -> u64 {
        8
    }
    fn decide(&self, context: &Context, _: Caller<'_>, add: &Add) -> Decided<Self> {
        if add.by > 100 {
            return Err(TooMuch(add.by));
        }
        let value = self.value(&add.name) + add.by;
        let counter = Counter { value, until_ms: context.steady_ms + add.kept_ms };
        Ok((vec![Event::Set(add.name.clone(), counter)], Total { value }))
    }
    fn evolve(&mut self, _: &Context, event: &Event) -> Result<(), Fault> {
        match event {
            Event::Set(name, counter) => self.rows.set(name.clone(), Some(counter.clone())),
            Event::Forgotten(name) => self.rows.set(name.clone(), None),
        }
        Ok(())
    }
    fn check(&self, _: &Context, _: &[Event]) -> Result<(), Fault> {
        let broken = self.rows.touched().find(|name| self.value(name) == 13);
        broken.map_or(Ok(()), |name| Err(Fault(format!("{name} is 13"))))
    }
    fn due_ms(&self) -> Option<u64> {
        self.rows.derived().first().map(|(until_ms, _)| *until_ms)
    }
    fn next_timer(&self, context: &Context) -> Option<u64> {
        Module::due_ms(self).filter(|due_ms| *due_ms <= context.steady_ms)
    }
    fn fire(&self, _: &Context, _: u64) -> Result<Vec<Event>, Fault> {
        let (_, name) = self.rows.derived().first().ok_or_else(|| Fault("nothing is due".into()))?;
        if name == CURSED { Err(Fault("cursed".into())) } else { Ok(vec![Event::Forgotten(name.clone())]) }
    }
    fn shelve(&mut self, _: u64) {
        let shelved = Counter { value: self.value(CURSED), until_ms: u64::MAX };
        self.rows.set(CURSED.into(), Some(shelved));
    }
    fn quick_no(&self, _: Now, add: &Add) -> Option<TooMuch> {
        (add.by > 100).then_some(TooMuch(add.by))
    }
    fn query(&self, now: Now, get: &Get) -> Result<Total, TooMuch> {
        let counter = self.rows.get(&get.name).filter(|counter| counter.until_ms > now.steady_ms);
        Ok(Total { value: counter.map_or(0, |counter| counter.value) })
    }
}

fn log() -> Log {
    let mut modules = registry::modules();
    modules.push(Box::<Counters>::default());
    let mut log = Log { machine: Machine::with_modules(modules), entries: Vec::new() };
    log.entry(T0, vec![command(0, create())]);
    log
}

fn add(n: u64, name: &str, by: u64, kept_ms: u64) -> Command {
    Command::asking("alice", id(T0, n), T0 + 5_000, &Add { name: name.into(), by, kept_ms })
}

fn total(decision: &Decision) -> u64 {
    let Answer::Done { module: MODULE, outcome } = &decision.answer else { panic!("{decision:?}") };
    Total::decode(&outcome[..]).unwrap().value
}

fn read(log: &Log, name: &str, now_ms: u64) -> u64 {
    let get = Get { name: name.into() }.encode_to_vec();
    let answer = log.machine.query(MODULE, &get, Stamp::confirmed(now_ms).into()).unwrap().unwrap();
    Total::decode(&answer[..]).unwrap().value
}

#[test]
fn a_module_decides_refuses_and_is_remembered_beside_the_others() {
    let mut log = log();
    let decisions = log.entry(
        T0,
        vec![add(1, "a", 5, 1_000), command(2, buy(1)), add(3, "a", 7, 1_000), add(4, "a", 101, 1)],
    );
    assert_eq!((total(&decisions[0]), reason(&decisions[1]), total(&decisions[2])), (5, "done".into(), 12));
    assert_eq!(reason(&decisions[3]), "TOO_MUCH");
    // A repeated request gets its first answer, though the counter has changed since.
    let again = log.one(T0, add(1, "a", 5, 1_000));
    assert_eq!((total(&again), again.replayed), (5, true));
    assert_eq!((read(&log, "a", T0), read(&log, "a", T0 + 1_000)), (12, 0), "what is due counts for nothing");
    assert!(log.machine.quick_no(&add(5, "b", 101, 1), Stamp::confirmed(T0)).is_some());
    let no = log.machine.quick_no(&add(5, "b", 100, 1), Stamp::confirmed(T0));
    assert_eq!(no, None);
    assert!(
        log.machine.module(MODULE).unwrap().has_row("a") && !log.machine.module(MODULE).unwrap().has_row("b")
    );
}

#[test]
fn what_is_idempotent_by_its_rows_is_not_remembered_and_answered_by_the_present_ones() {
    let since = crate::REMEMBERS_WHAT_IT_MUST;
    for (version, first_for_ever) in [(since - 1, true), (since, false)] {
        let mut log = log();
        log.one(T0, Command::system(SystemCommand::RaiseVersion(version)));
        log.one(T0, add(1, "a", 5, 1_000));
        let rows = log.machine.rows();
        let look = add(2, "a", 0, 1_000);
        let first = log.one(T0, look.clone());
        assert_eq!((total(&first), first.receipt.is_some(), first.replayed), (5, true, false));
        assert_eq!(log.machine.outcome("alice", look.request_id).is_some(), first_for_ever);
        assert_eq!(log.machine.rows() - rows, u64::from(first_for_ever), "a row of it");
        log.one(T0, add(3, "a", 7, 1_000));
        let again = log.one(T0, look);
        assert_eq!((total(&again), again.replayed), (if first_for_ever { 5 } else { 12 }, first_for_ever));
    }
}

/// Its copies do no harm, so that its id need not keep them apart.
#[test]
fn the_id_of_what_is_not_remembered_may_be_of_any_time() {
    let mut log = log();
    log.one(T0, Command::system(SystemCommand::RaiseVersion(APPLY_VERSION)));
    let ahead = |by| Command { request_id: id(T0 + crate::ID_AHEAD_MS_MAX + 1, 1), ..add(1, "a", by, 1_000) };
    assert_eq!(reason(&log.one(T0, ahead(5))), "IdFromFuture");
    assert_eq!(total(&log.one(T0, ahead(0))), 0);
}

#[test]
fn what_breaks_an_invariant_of_a_module_is_taken_back_and_the_others_go_on() {
    let mut log = log();
    log.one(T0, add(1, "a", 6, 1_000));
    let digest = log.machine.module(MODULE).unwrap().digest();
    let decisions = log.entry(T0, vec![add(2, "a", 7, 1_000), add(3, "b", 13, 1_000), command(4, buy(1))]);
    let reasons: Vec<_> = decisions.iter().map(reason).collect();
    assert_eq!(reasons, ["InternalInvariant", "InternalInvariant", "done"]);
    assert_eq!((log.machine.module(MODULE).unwrap().digest(), log.machine.faults()), (digest, 2));
}

#[test]
fn timers_of_all_modules_fire_and_one_that_cannot_delays_no_other() {
    let mut log = log();
    log.entry(T0, vec![add(1, CURSED, 1, 50), add(2, "a", 1, 60), command(3, hold(2, 70))]);
    assert_eq!(log.machine.next_due_ms(), Some(T0 + 50));
    log.one(T0 + 70, tick());
    assert_eq!((read(&log, "a", T0), log.machine.faults()), (0, 1));
    let stock = log.machine.tickets().stock_of(log.machine.tickets().event("gala").unwrap()).next().unwrap();
    assert_eq!((stock.held, read(&log, CURSED, T0)), (0, 1));
}

#[test]
fn a_command_that_no_build_knows_halts_and_is_never_passed_over() {
    let unknown = [
        Command { op: Op::Module { module: 99, payload: vec![] }, ..add(1, "a", 1, 1) },
        Command { op: Op::Module { module: MODULE, payload: vec![0xff] }, ..add(1, "a", 1, 1) },
        // An operation of a later build decodes to none.
        add(1, "", 1, 1),
        Command { op: Op::Module { module: tickets::MODULE, payload: vec![] }, ..add(1, "a", 1, 1) },
    ];
    for command in unknown {
        let mut log = log();
        let Op::Module { module, payload } = &command.op else { panic!() };
        let known = log.machine.module(*module);
        assert!(known.is_none_or(|known| known.understands(payload).is_err()), "{command:?}");
        let payload = Entry { stamp: Stamp::confirmed(T0), commands: vec![command.clone()] }.encode();
        let error = log.machine.apply(Position { term: 1, node: 1, index: 1 }, &payload).unwrap_err();
        assert!(matches!(error, ApplyError::UnknownCommand { index: 1, position: 0, .. }), "{error}");
    }
}

#[test]
fn pages_of_a_module_come_back_and_a_build_without_it_refuses_them() {
    let mut log = log();
    log.entry(T0, vec![add(1, "a", 5, 1_000), add(2, "b", 6, 2_000)]);
    let frozen = log.machine.freeze_all();
    let load = |machine: Machine| {
        let mut loader = machine.into_loader();
        for page in &frozen.pages {
            loader.page(page.table(), &page.encode().unwrap())?;
        }
        loader.finish(frozen.head.clone(), frozen.digest)
    };
    let mut modules = registry::modules();
    modules.push(Box::<Counters>::default());
    let loaded = load(Machine::with_modules(modules)).unwrap();
    assert_eq!((loaded.digest(), loaded.next_due_ms()), (log.machine.digest(), log.machine.next_due_ms()));
    assert_eq!(load(Machine::new()).unwrap_err(), LoadError::Table(Counter::TABLE));
}
