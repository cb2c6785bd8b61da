//! Messages between groups, of a domain that this crate has never heard of: what one gives the other gets, once, whatever is lost,
//! repeated, late, or started anew meanwhile.

use tidewall_domain::codec::DecodeError;
use tidewall_domain::counter;
use tidewall_domain::module::{Code, Decision as Decided, Fault, Module, Reason};
use tidewall_domain::outbox::{GroupNo, Outbox, SAGA_MESSAGES_MAX};
use tidewall_domain::table::{AnyTable, Row, Table, TableId, table_id};
use tidewall_domain::{Caller, Context, Now};
use tidewall_messages::{ModuleCommand, ModuleMessage, ModuleQuery};

use super::groups::Groups;
use super::*;
use crate::courier::is_news;
use crate::streams::StreamRow;

const MODULE: u8 = 201;

/// Gives something to another group.
#[derive(Clone, PartialEq, prost::Message)]
struct Give {
    #[prost(uint32, tag = "1")]
    to: u32,
    #[prost(uint64, tag = "2")]
    amount: u64,
}

/// What is said of a gift: 1 it is there, 2 that was all, 3 thanks.
#[derive(Clone, PartialEq, prost::Message)]
struct Said {
    #[prost(uint64, tag = "1")]
    gift: u64,
    #[prost(uint32, tag = "2")]
    part: u32,
    #[prost(uint64, tag = "3")]
    amount: u64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Nothing {}

impl ModuleCommand for Give {
    const MODULE: u8 = MODULE;

    fn is_known(&self) -> bool {
        self.to > 0
    }
}

impl ModuleMessage for Said {
    fn is_known(&self) -> bool {
        self.part > 0
    }
}

impl ModuleQuery for Nothing {
    const MODULE: u8 = MODULE;
    type Answer = Self;

    fn is_known(&self) -> bool {
        true
    }
}

/// A gift whose receiver has not thanked for it.
#[derive(Debug, Clone, PartialEq)]
struct Gift(GroupNo);

impl Row for Gift {
    const TABLE: TableId = table_id(MODULE, 1);
    type Key = u64;
    type Page = u64;
    type Index = ();

    fn page(key: &u64) -> u64 {
        *key
    }
    fn encode_page(page: &u64, w: &mut Writer) {
        w.key_u64(*page);
    }
    fn encode_key(key: &u64, w: &mut Writer) {
        w.key_u64(*key);
    }
    fn decode_key(r: &mut Reader<'_>) -> Result<u64, DecodeError> {
        r.key_u64()
    }
    fn encode(&self, w: &mut Writer) {
        w.u32(self.0);
    }
    fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        r.u32().map(Gift)
    }
}

type Counter = counter::Counter<{ table_id(MODULE, 2) }>;

const GIVEN: u64 = 1;
const GOT: u64 = 2;
/// The part of a gift that came last: `SEEN`, its number, and its group in the last byte.
const SEEN: u64 = 1 << 60;

#[derive(Debug, thiserror::Error)]
#[error("never")]
struct Never;

impl Reason for Never {
    fn reason(&self) -> &'static str {
        "NEVER"
    }
    fn code(&self) -> Code {
        Code::NotFound
    }
    fn field(&self) -> &str {
        ""
    }
}

enum Event {
    Gave { gift: u64, to: GroupNo, amount: u64 },
    Got { from: GroupNo, said: Said },
    Thanked { from: GroupNo, gift: u64 },
}

#[derive(Debug, Default)]
struct Gifts {
    open: Table<Gift>,
    counters: Table<Counter>,
}

/// Nobody takes this who has not got as much before.
const CURSED: u64 = 13;

impl Gifts {
    fn count(&self, key: u64) -> u64 {
        self.counters.get(&key).map_or(0, |counter| counter.0)
    }
    fn add(&mut self, key: u64, by: u64) {
        let sum = self.count(key) + by;
        self.counters.set(key, Some(counter::Counter(sum)));
    }
}

impl Module for Gifts {
    const NAME: &'static str = "gifts";
    type Command = Give;
    type Outcome = Nothing;
    type Rejection = Never;
    type Event = Event;
    type Timer = ();
    type Query = Nothing;
    type Message = Said;
    const TIMER_ROWS_MAX: u64 = 0;
    const MESSAGE_ROWS_MAX: u64 = 16;

    fn tables<'a>(&'a self, show: &mut dyn FnMut(&'a dyn AnyTable)) {
        show(&self.open);
        show(&self.counters);
    }
    fn tables_mut(&mut self, show: &mut dyn FnMut(&mut dyn AnyTable)) {
        show(&mut self.open);
        show(&mut self.counters);
    }
    fn has_row(&self, _: &str) -> bool {
        false
    }
    fn rows_max(_: &Give) -> u64 {
        16
    }
    fn decide(&self, context: &Context, _: Caller<'_>, give: &Give) -> Decided<Self> {
        let gift = context.index << 16 | u64::from(context.position);
        Ok((vec![Event::Gave { gift, to: give.to, amount: give.amount }], Nothing {}))
    }
    fn evolve(&mut self, _: &Context, event: &Event) -> Result<(), Fault> {
        match event {
            Event::Gave { gift, to, amount } => {
                self.open.set(*gift, Some(Gift(*to)));
                self.add(GIVEN, *amount);
            }
            // It adds: a repetition would show.
            Event::Got { from, said } => {
                let seen = SEEN + (said.gift << 8) + u64::from(*from);
                let last = self.count(seen);
                if last + 1 != u64::from(said.part) {
                    return Err(Fault(format!(
                        "part {} of gift {} comes behind part {last}",
                        said.part, said.gift
                    )));
                }
                self.add(seen, 1);
                if said.part == 1 {
                    self.add(GOT, said.amount);
                }
            }
            Event::Thanked { from, gift } => {
                if self.open.get(gift) != Some(&Gift(*from)) {
                    return Err(Fault(format!("nobody is to thank for gift {gift}")));
                }
                self.open.set(*gift, None);
            }
        }
        Ok(())
    }
    fn check(&self, _: &Context, _: &[Event]) -> Result<(), Fault> {
        Ok(())
    }
    fn due_ms(&self) -> Option<u64> {
        None
    }
    fn next_timer(&self, _: &Context) -> Option<()> {
        None
    }
    fn fire(&self, _: &Context, (): ()) -> Result<Vec<Event>, Fault> {
        Ok(Vec::new())
    }
    fn shelve(&mut self, (): ()) {}
    fn send(&self, events: &[Event], outbox: &mut Outbox) {
        for event in events {
            match event {
                Event::Gave { gift, to, amount } => {
                    outbox.begin(*to);
                    for part in [1, 2] {
                        outbox.send(*to, (*gift).into(), &Said { gift: *gift, part, amount: *amount });
                    }
                }
                Event::Got { from, said } if said.part == 2 => {
                    outbox.send(*from, said.gift.into(), &Said { part: 3, ..said.clone() });
                }
                Event::Got { .. } => {}
                Event::Thanked { from, .. } => outbox.end(*from),
            }
        }
    }
    fn receive(&self, _: &Context, from: GroupNo, said: &Said) -> Result<Vec<Event>, Fault> {
        match said.part {
            3 => Ok(vec![Event::Thanked { from, gift: said.gift }]),
            1 if said.amount == CURSED && self.count(GOT) < CURSED => Err(Fault("cursed".into())),
            _ => Ok(vec![Event::Got { from, said: said.clone() }]),
        }
    }
    fn quick_no(&self, _: Now, _: &Give) -> Option<Never> {
        None
    }
    fn query(&self, _: Now, _: &Nothing) -> Result<Nothing, Never> {
        Ok(Nothing {})
    }
}

fn groups(count: GroupNo) -> Groups {
    Groups::new(count, || vec![Box::<Gifts>::default()])
}

fn gifts(groups: &Groups, group: GroupNo) -> &Gifts {
    groups.rows(group).rows_of().unwrap()
}

fn give(groups: &mut Groups, from: GroupNo, to: GroupNo, amount: u64) {
    let decision = groups.ask(from, "alice", &Give { to, amount });
    assert!(matches!(decision.answer, Answer::Done { .. }), "{decision:?}");
}

/// What was given was got, nobody waits for thanks, and nothing is left on the way.
fn check(groups: &Groups) {
    let sum = |key| groups.numbers().iter().map(|group| gifts(groups, *group).count(key)).sum::<u64>();
    assert_eq!(sum(GIVEN), sum(GOT));
    for group in groups.numbers() {
        assert!(gifts(groups, group).open.is_empty());
        assert_eq!((groups.rows(group).dead_letters_count(), groups.rows(group).faults()), (0, 0));
        for (_, StreamRow { first, next, open, met, .. }) in groups.rows(group).streams() {
            assert_eq!((first, *open, *met), (next, 0, true));
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Give(GroupNo, GroupNo, u64),
    Courier { from: GroupNo, to: GroupNo, lost: bool },
    Copy(usize),
    ChangeLead(GroupNo),
    Reload(GroupNo),
}

fn step() -> impl Strategy<Value = Step> {
    let group = || 1..=3_u32;
    prop_oneof![
        4 => (group(), group(), 14..100_u64).prop_map(|(from, to, amount)| Step::Give(from, to, amount)),
        12 => (group(), group(), any::<bool>()).prop_map(|(from, to, lost)| Step::Courier { from, to, lost }),
        2 => any::<usize>().prop_map(Step::Copy),
        1 => group().prop_map(Step::ChangeLead),
        1 => group().prop_map(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn every_message_is_applied_once_and_in_order(steps in proptest::collection::vec(step(), 1..120)) {
        let mut groups = groups(3);
        for step in steps {
            match step {
                Step::Give(from, to, amount) => give(&mut groups, from, to, amount),
                Step::Courier { from, to, lost } => { groups.step(from, to, lost); }
                Step::Copy(at) => {
                    let count = groups.delivered.len().max(1);
                    if let Some((to, delivery)) = groups.delivered.get(at % count).cloned() {
                        groups.arrive(to, delivery);
                    }
                }
                Step::ChangeLead(group) => groups.change_lead(group),
                Step::Reload(group) => groups.reload(group),
            }
        }
        groups.settle();
        check(&groups);
    }
}

#[test]
fn a_copy_and_a_gap_change_nothing() {
    let mut groups = groups(2);
    give(&mut groups, 1, 2, 20);
    groups.settle();
    give(&mut groups, 1, 2, 30);
    let row = groups.rows(1).stream(2);
    let delivery = groups.rows(1).delivery(1, 2, row.first);
    assert_eq!(delivery.messages.len(), 2);
    let late =
        Delivery { first: delivery.first + 1, messages: delivery.messages[1..].to_vec(), ..delivery.clone() };
    groups.system(2, SystemCommand::Deliver(late));
    assert_eq!(gifts(&groups, 2).count(GOT), 20, "a message before it is missing");
    for _ in 0..2 {
        groups.system(2, SystemCommand::Deliver(delivery.clone()));
        assert_eq!(gifts(&groups, 2).count(GOT), 50);
    }
    groups.settle();
    check(&groups);
}

/// The stream stands still, rather than go on with something else than what was said.
#[test]
fn other_messages_under_the_same_numbers_are_refused() {
    let mut groups = groups(2);
    give(&mut groups, 1, 2, 20);
    groups.settle();
    give(&mut groups, 1, 2, 30);
    let delivery = groups.rows(1).delivery(1, 2, 0);
    groups.system(2, SystemCommand::Deliver(Delivery { chain: delivery.chain ^ 1, ..delivery }));
    assert_eq!((gifts(&groups, 2).count(GOT), groups.rows(2).faults()), (20, 1));
    // Whoever leads does not even propose it, again and again.
    let delivery = groups.rows(1).delivery(1, 2, 0);
    let parted = Delivery { chain: delivery.chain ^ 1, ..delivery.clone() };
    assert!(is_news(groups.rows(2), &parted).unwrap_err().contains("parted"));
    assert_eq!(is_news(groups.rows(2), &delivery), Ok(true));
}

/// Groups of one cluster, and one whose rows come from another one, where its counterparts had later incarnations.
#[test]
fn rows_of_another_cluster_find_their_way() {
    let mut elsewhere = groups(2);
    give(&mut elsewhere, 1, 2, 20);
    elsewhere.settle();
    for _ in 0..3 {
        elsewhere.save(2);
        elsewhere.restore(2);
        elsewhere.settle();
    }
    elsewhere.save(1);
    let mut groups = groups(2);
    give(&mut groups, 2, 1, 30);
    groups.settle();
    groups.restore_from(1, &mut elsewhere);
    groups.settle();
    let before = gifts(&groups, 2).count(GOT);
    give(&mut groups, 1, 2, 40);
    give(&mut groups, 2, 1, 50);
    groups.settle();
    assert_eq!((gifts(&groups, 2).count(GOT) - before, gifts(&groups, 1).count(GOT)), (40, 50));
}

#[test]
fn with_too_many_dead_letters_nothing_is_taken_in_and_nothing_begun() {
    let mut groups = groups(2);
    while groups.rows(2).dead_letters_count() < DEAD_LETTERS_MAX {
        give(&mut groups, 1, 2, CURSED);
        if groups.rows(1).stream(2).queued() > 500 {
            groups.settle();
        }
    }
    let delivery = groups.rows(1).delivery(1, 2, 0);
    let question = Delivery { messages: Vec::new(), ..delivery };
    assert_eq!(is_news(groups.rows(2), &question), Ok(false), "who only asks is answered");
    give(&mut groups, 1, 2, 20);
    let delivery = groups.rows(1).delivery(1, 2, groups.rows(2).stream(1).received);
    assert!(is_news(groups.rows(2), &delivery).unwrap_err().contains("dead letters"));
    let full = groups.ask(2, "alice", &Give { to: 1, amount: 20 });
    assert_eq!(full.answer, Answer::Rejected(RejectReason::Full(1)));
}

#[test]
fn what_cannot_be_carried_out_waits_for_somebody_and_with_it_its_saga_alone() {
    for drop in [false, true] {
        let mut groups = groups(2);
        give(&mut groups, 1, 2, CURSED);
        groups.settle();
        let letters: Vec<_> =
            groups.rows(2).dead_letters(&(0, 0, 0)).map(|(key, row)| (*key, row.clone())).collect();
        let [(first, fault), (second, waiting)] = &letters[..] else { panic!("{letters:?}") };
        assert_eq!((fault.reason.as_str(), fault.waits, fault.from), ("cursed", false, 1));
        assert!(waiting.waits && waiting.reason.ends_with(&dead_letter_id(first)), "{waiting:?}");
        assert_eq!(parse_dead_letter_id(&dead_letter_id(second)), Some(*second));
        // Nobody else waits for it, and it survives a restart.
        give(&mut groups, 1, 2, 10);
        groups.settle();
        groups.reload(2);
        assert_eq!((gifts(&groups, 2).count(GOT), groups.rows(2).dead_letters_count()), (10, 2));
        let refused = |decision: Decision| match decision.answer {
            Answer::Rejected(RejectReason::System(why)) => why,
            other => panic!("{other:?}"),
        };
        let resolve = |key, drop| SystemCommand::Resolve { key, drop };
        assert!(refused(groups.system(2, resolve(*second, drop))).contains("cannot go first"));
        assert!(refused(groups.system(2, resolve((9, 9, 9), drop))).contains("no dead letter 9-9-9"));
        if drop {
            groups.system(2, resolve(*first, true));
            // Its second part cannot be carried out without the first one, and says so.
            let (_, row) = groups.rows(2).dead_letters(&(0, 0, 0)).next().unwrap();
            assert!(!row.waits && row.reason.contains("part 2"), "{row:?}");
            groups.system(2, resolve(*second, true));
            groups.settle();
            assert_eq!((gifts(&groups, 2).count(GOT), gifts(&groups, 1).open.len()), (10, 1));
        } else {
            assert!(refused(groups.system(2, resolve(*first, false))).contains("cursed"));
            give(&mut groups, 2, 2, 3);
            groups.settle();
            // What was wrong is mended: it is carried out, and then what waited for it.
            assert_eq!(reason(&groups.system(2, resolve(*first, false))), "done");
            assert!(refused(groups.system(2, resolve(*first, false))).contains("no dead letter"), "once");
            groups.settle();
            assert_eq!((gifts(&groups, 2).count(GOT), groups.rows(2).dead_letters_count()), (26, 0));
            assert!(gifts(&groups, 1).open.is_empty());
        }
    }
}

#[test]
fn a_saga_that_there_is_no_room_for_does_not_begin_and_others_do() {
    let mut groups = groups(3);
    let sagas = (OUTBOX_MAX / (SAGA_MESSAGES_MAX + 2)) as usize;
    for _ in 0..sagas {
        give(&mut groups, 1, 2, 20);
    }
    let full = (0..20)
        .map(|_| groups.ask(1, "alice", &Give { to: 2, amount: 20 }))
        .find(|decision| decision.answer == Answer::Rejected(RejectReason::Full(2)));
    let full = full.expect("at last there is no room");
    assert_eq!((full.receipt, full.replayed), (None, false), "it is not remembered");
    give(&mut groups, 1, 3, 20);
    groups.settle();
    give(&mut groups, 1, 2, 20);
    groups.settle();
    check(&groups);
}
