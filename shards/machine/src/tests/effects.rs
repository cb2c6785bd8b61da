//! What is to be done outside: each change reaches each webhook that may be told of it, once, in order, under a name that stays, however
//! often an attempt fails, whoever makes it, and whatever became of the rows meanwhile; and what does not reach it is told.

use std::collections::{BTreeMap, BTreeSet};

use tidewall_domain::feed::HEARS_CHANGES;
use tidewall_domain::webhooks::DELIVERED_WITHIN_MS;
use tidewall_domain::webhooks::model::{JOINED_BYTES_MAX, QUEUE_BYTES_MAX, WEBHOOKS_MAX};
use tidewall_messages::{Change, webhooks};

use super::*;
use crate::effects::{EffectKey, EffectRow};

/// Who organises the event, and two who buy.
const SUBJECTS: [&str; 3] = ["alice", "bob", "carol"];
const HOUR_MS: u64 = 3_600_000;

fn asked(now: u64, n: u64, who: &str, op: &impl tidewall_messages::ModuleCommand) -> Command {
    Command::asking(who, id(now, n), now + 5_000, op)
}

fn create_webhook(kinds: Vec<u32>, row: &str) -> webhooks::Command {
    let module = if row.is_empty() { 0 } else { tickets::MODULE.into() };
    let url = "https://shop.example/".into();
    let settings = Some(webhooks::Settings { url, kinds, module, row: row.into() });
    webhooks::Command::from(webhooks::CreateWebhook { settings })
}

/// A log of a group in which everybody has a webhook.
fn hooked() -> Log {
    let mut log = Log { machine: Machine::new(), entries: Vec::new() };
    log.one(T0, Command::system(SystemCommand::RaiseVersion(APPLY_VERSION)));
    log.one(T0, command(0, create()));
    for (n, who) in SUBJECTS.iter().enumerate() {
        let decision = log.one(T0, asked(T0, 1_000_000 + n as u64, who, &create_webhook(Vec::new(), "")));
        assert_eq!(reason(&decision), "done");
    }
    log
}

fn end(key: EffectKey, attempts: u32, failure: Option<Failure>) -> Command {
    Command::system(SystemCommand::EndEffects(vec![EffectEnd { key, attempts, failure }]))
}

fn failed(why: &str, after_ms: u64) -> Option<Failure> {
    Some(Failure { why: why.into(), after_ms })
}

fn due(machine: &Machine, now: u64) -> Vec<DueEffect> {
    machine.effects_due(Stamp::confirmed(now), &mut |_, _, _| Some(true))
}

/// Where a change is, and what it is.
type Said = ((u64, u64, u32), Change);

/// The servers that are called: they remember what they were told under which name.
#[derive(Debug, Default)]
struct Outside {
    seen: BTreeMap<EffectKey, Vec<u8>>,
    said: BTreeMap<String, Vec<Said>>,
    missed: BTreeMap<String, u64>,
}

impl Outside {
    /// Takes a call in; what was taken in before changes nothing.
    fn take(&mut self, effect: &DueEffect) {
        let call = webhooks::Call::decode(effect.call.as_slice()).unwrap();
        let (delivery, webhook) = (call.delivery.unwrap(), call.webhook.unwrap());
        let bytes = delivery.encode_to_vec();
        if let Some(before) = self.seen.get(&effect.key) {
            assert_eq!(before, &bytes, "a name means one thing");
            return;
        }
        self.seen.insert(effect.key, bytes);
        *self.missed.entry(webhook.owner.clone()).or_default() +=
            delivery.missed.map_or(0, |missed| missed.count);
        let said = self.said.entry(webhook.owner).or_default();
        for told in delivery.changes {
            let place = told.place.unwrap();
            let change = Change::decode(told.change.as_slice()).unwrap();
            said.push(((place.incarnation, place.index, place.changes), change));
        }
    }
}

/// Everything that the feed tells, in order.
struct Auditor {
    heard: crate::feed::Place,
    all: Vec<Said>,
}

impl Auditor {
    fn hear(&mut self, machine: &Machine) {
        let Heard::Changes { told, place } = machine.changes_after(self.heard, usize::MAX) else {
            panic!("it is kept")
        };
        self.heard = place;
        for entry in told {
            let (mut bytes, mut number) = (entry.changes.as_slice(), entry.first);
            while !bytes.is_empty() {
                number += 1;
                let change = Change::decode_length_delimited(&mut bytes).unwrap();
                self.all.push(((place.incarnation, entry.index, number), change));
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// Somebody asks for something, a while later.
    Entry(Vec<(u8, u8, u64)>, u64),
    /// Whoever drives makes what is due: the calls arrive or do not, and their ends are told or are not.
    Drive(Vec<(bool, bool)>, u64),
    Reload,
}

fn step() -> impl Strategy<Value = Step> {
    let asked = proptest::collection::vec((0..3u8, 0..5u8, 1..6u64), 0..6);
    let drive = proptest::collection::vec((any::<bool>(), any::<bool>()), 1..4);
    prop_oneof![
        4 => (asked, 0..300u64).prop_map(|(asked, ms)| Step::Entry(asked, ms)),
        4 => (drive, 0..3_000u64).prop_map(|(drive, ms)| Step::Drive(drive, ms)),
        1 => Just(Step::Reload),
    ]
}

proptest! {
    #[test]
    fn each_change_reaches_whoever_may_be_told_once_and_in_order(steps in proptest::collection::vec(step(), 1..50)) {
        let mut log = hooked();
        let (mut outside, mut now, mut n) = (Outside::default(), T0, 1_000);
        let mut auditor = Auditor { heard: log.machine.place(), all: Vec::new() };
        for step in steps {
            match step {
                Step::Entry(wanted, ms) => {
                    now += ms;
                    let commands = wanted.into_iter().map(|(who, kind, number)| {
                        n += 1;
                        let hold_id = format!("ga-h{number}");
                        let event_id = "gala".to_owned();
                        let op = match kind {
                            0 => buy(1),
                            1 => hold(1, 200),
                            2 => tickets::Command::from(tickets::ReleaseHold { event_id, hold_id }),
                            3 => tickets::Command::from(tickets::ConfirmHold { event_id, hold_id }),
                            _ => tickets::Command::from(tickets::CancelTicket { event_id, ticket_id: format!("ga-{number}") }),
                        };
                        asked(now, n, SUBJECTS[usize::from(who)], &op)
                    }).collect();
                    log.entry(now, commands);
                }
                Step::Drive(ends, ms) => {
                    now += ms;
                    let due = due(&log.machine, now);
                    let queues: BTreeSet<u128> = due.iter().map(|effect| effect.key.queue).collect();
                    prop_assert_eq!(queues.len(), due.len(), "one at a time of each queue");
                    for (effect, (arrives, is_told)) in due.iter().zip(ends) {
                        if arrives {
                            outside.take(effect);
                        }
                        if is_told {
                            let failure = if arrives { None } else { failed("no route", 0) };
                            log.one(now, end(effect.key, effect.attempts, failure.clone()));
                            // A copy changes nothing.
                            log.one(now, end(effect.key, effect.attempts, failure));
                        }
                    }
                }
                Step::Reload => {
                    log.machine = snapshot::read(&mut snapshot_of(&log.machine).as_slice()).unwrap().machine;
                }
            }
            auditor.hear(&log.machine);
        }
        for _ in 0..2_000 {
            now += 5_000;
            let all = due(&log.machine, now);
            if log.machine.effects_count() == 0 {
                break;
            }
            for effect in all {
                outside.take(&effect);
                log.one(now, end(effect.key, effect.attempts, None));
            }
            auditor.hear(&log.machine);
        }
        prop_assert_eq!(log.machine.effects_count(), 0);
        prop_assert_eq!(log.machine.dead_letters_count(), 0);
        for who in SUBJECTS {
            let may = |change: &Change| who == "alice" || change.owner == who;
            let wanted: Vec<Said> = auditor.all.iter().filter(|(_, change)| may(change)).cloned().collect();
            prop_assert_eq!(outside.said.get(who).cloned().unwrap_or_default(), wanted, "{}", who);
        }
    }
}

#[test]
fn a_webhook_is_told_of_the_kinds_and_the_event_that_it_is_for() {
    let mut log = hooked();
    let of = |log: &mut Log, n, kinds: Vec<u32>, row: &str| {
        let decision = log.one(T0, asked(T0, n, "dan", &create_webhook(kinds, row)));
        assert_eq!(reason(&decision), "done");
    };
    of(&mut log, 1, vec![6], "");
    of(&mut log, 2, vec![3, 7], "gala");
    of(&mut log, 3, vec![], "other");
    log.entry(T0, vec![asked(T0, 4, "dan", &buy(1)), asked(T0, 5, "dan", &hold(1, 60_000))]);
    let kinds = |machine: &Machine, owner: &str| -> Vec<(String, usize)> {
        let calls = due(machine, T0)
            .into_iter()
            .map(|effect| webhooks::Call::decode(effect.call.as_slice()).unwrap());
        let own = calls.filter(|call| call.webhook.as_ref().unwrap().owner == owner);
        own.map(|call| (call.webhook.unwrap().webhook_id, call.delivery.unwrap().changes.len())).collect()
    };
    assert_eq!(kinds(&log.machine, "dan"), [("w4".to_owned(), 1), ("w5".to_owned(), 1)]);
    assert_eq!(kinds(&log.machine, "alice"), [("w1".to_owned(), 2)], "the organiser");
    assert_eq!(kinds(&log.machine, "bob"), []);
}

#[test]
fn what_fails_is_tried_again_later_and_later_and_then_waits_for_somebody() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    let queue = due(&log.machine, T0).into_iter().find(|effect| effect.key.queue == 2).unwrap().key;
    log.entry(T0, vec![asked(T0, 2, "bob", &buy(1))]);
    let mine = |machine: &Machine, now| due(machine, now).into_iter().find(|effect| effect.key.queue == 2);
    let (mut now, mut pauses, mut attempts) = (T0, Vec::new(), 0);
    while let Some(effect) = mine(&log.machine, now) {
        assert_eq!((effect.key, effect.attempts), (queue, attempts), "the second waits behind the first");
        // The end of another attempt is no end of this one.
        log.one(now, end(queue, attempts + 1, None));
        log.one(now, end(queue, attempts, failed("no route", 0)));
        attempts += 1;
        let Some(pause) = log.machine.next_effect_in_ms(Stamp::confirmed(now), &|key, _| *key == queue)
        else {
            break;
        };
        assert!(mine(&log.machine, now + pause - 1).is_none());
        pauses.push(pause);
        now += pause;
        // Ids of what was asked long ago are forgotten: nothing is asked meanwhile.
        log.one(now, tick());
    }
    assert!(pauses.windows(2).take(11).all(|pair| pair[1] > pair[0] / 2), "{pauses:?}");
    assert!((500..1_500).contains(&pauses[0]), "{pauses:?}");
    assert!(pauses.iter().all(|pause| *pause <= HOUR_MS + HOUR_MS / 2), "{pauses:?}");
    assert!(now - T0 < DELIVERED_WITHIN_MS && now - T0 > DELIVERED_WITHIN_MS - 2 * HOUR_MS, "{}", now - T0);
    let state = log.machine.queue(webhooks::MODULE, 2, Stamp::confirmed(now));
    assert_eq!((state.waiting, state.dead, state.attempts), (1, 1, 0));
    let letter = |machine: &Machine| {
        let mut letters = machine.dead_letters(&(0, 0, 0));
        letters.find(|(_, row)| row.is_effect()).map(|(key, row)| (*key, row.clone()))
    };
    let (key, row) = letter(&log.machine).unwrap();
    assert!(row.reason.contains("attempts have failed, the last one: no route"), "{}", row.reason);
    assert!(row.reason.len() < 400 && !row.is_notice());
    // Nobody has tried the second for a day: it is given up without having been tried.
    let later = T0 + DELIVERED_WITHIN_MS + 1_000;
    log.one(later, tick());
    assert_eq!(log.machine.queue(webhooks::MODULE, 2, Stamp::confirmed(later)).dead, 2);
    // Somebody has it made again, under its name, exactly once.
    let resolve = |drop| Command::system(SystemCommand::Resolve { key, drop });
    assert_eq!(reason(&log.one(later, resolve(false))), "done");
    assert_eq!(reason(&log.one(later, resolve(false))), "System");
    let effect = mine(&log.machine, later).unwrap();
    assert_eq!((effect.key, effect.attempts), (queue, 0));
    log.one(later, end(queue, 0, None));
    assert!(mine(&log.machine, later).is_none());
    let (key, _) = letter(&log.machine).filter(|(key, _)| key.2 < 100).unwrap();
    assert_eq!(reason(&log.one(later, Command::system(SystemCommand::Resolve { key, drop: true }))), "done");
}

#[test]
fn whoever_is_asked_to_come_back_later_does() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    let key = due(&log.machine, T0).into_iter().find(|effect| effect.key.queue == 2).unwrap().key;
    log.one(T0, end(key, 0, failed("answered with status 503", 60_000)));
    let pause = log.machine.next_effect_in_ms(Stamp::confirmed(T0), &|known, _| *known == key);
    assert_eq!(pause, Some(60_000));
    let state = log.machine.queue(webhooks::MODULE, 2, Stamp::confirmed(T0));
    assert_eq!((state.next_in_ms, state.failure.as_str()), (60_000, "answered with status 503"));
    let row = log.machine.effects().find(|(known, _)| **known == key).unwrap().1;
    assert!(row.pause_ms(&key, u64::MAX) <= HOUR_MS, "not for ever");
}

#[test]
fn a_dead_letter_that_is_replayed_goes_before_what_is_younger() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    let first = due(&log.machine, T0).into_iter().find(|effect| effect.key.queue == 2).unwrap().key;
    let later = T0 + DELIVERED_WITHIN_MS + 1;
    log.one(later, tick());
    log.entry(later, vec![asked(later, 2, "bob", &buy(1))]);
    let mine = |machine: &Machine| due(machine, later).into_iter().find(|effect| effect.key.queue == 2);
    let second = mine(&log.machine).unwrap();
    let letters: Vec<_> =
        log.machine.dead_letters(&(0, 0, 0)).map(|(key, row)| (*key, row.clone())).collect();
    let (key, _) = letters.iter().find(|(_, row)| row.message.saga == 2).unwrap();
    log.one(later, Command::system(SystemCommand::Resolve { key: *key, drop: false }));
    assert_eq!(mine(&log.machine).unwrap().key, first);
    // The attempt at the second one was under way: its failure does not put it in front.
    log.one(later, end(second.key, 0, failed("no route", 0)));
    assert_eq!(mine(&log.machine).unwrap().key, first);
    log.one(later, end(first, 0, None));
    assert_eq!(mine(&log.machine).unwrap().key, second.key);
}

#[test]
fn who_is_behind_for_too_long_misses_what_comes_is_told_so_and_somebody_as_well() {
    let mut log = hooked();
    let (mut n, mut holds) = (1, 0);
    // Eighty changes.
    let mut bought = |log: &mut Log| {
        let commands = (0..80).map(|at| {
            n += 1;
            let op = match at % 2 {
                0 => hold(1, 60_000),
                _ => {
                    holds += 1;
                    let hold_id = format!("ga-h{holds}");
                    tickets::Command::from(tickets::ReleaseHold { event_id: "gala".into(), hold_id })
                }
            };
            asked(T0, n, "bob", &op)
        });
        let commands = commands.collect();
        let decisions = log.entry(T0, commands);
        assert!(decisions.iter().all(|decision| reason(decision) == "done"), "{decisions:?}");
    };
    let webhook = |log: &Log| {
        log.machine.rows_of::<tidewall_domain::webhooks::State>().unwrap().webhook("w2").unwrap().1.clone()
    };
    let bytes = |log: &Log| -> u64 {
        log.machine.effects().filter(|(key, _)| key.queue == 2).map(|(_, row)| row.payload.len() as u64).sum()
    };
    let mut told = 0;
    while webhook(&log).missed.is_none() {
        bought(&mut log);
        told += 80;
    }
    // The last of these was missed.
    told -= 80;
    bought(&mut log);
    assert!(bytes(&log) > QUEUE_BYTES_MAX * 9 / 10 && bytes(&log) <= QUEUE_BYTES_MAX, "{}", bytes(&log));
    assert_eq!(webhook(&log).missed.unwrap().count, 160);
    let mut outside = Outside::default();
    let mut end_one = |log: &mut Log| {
        let effect = due(&log.machine, T0).into_iter().find(|effect| effect.key.queue == 2).unwrap();
        outside.take(&effect);
        log.one(T0, end(effect.key, 0, None));
    };
    end_one(&mut log);
    // A little room is none: or each delivery would let another one in, with a notice each.
    bought(&mut log);
    let missed = webhook(&log).missed.unwrap();
    assert_eq!(missed.count, 240);
    assert!(missed.first < missed.last);
    while bytes(&log) > QUEUE_BYTES_MAX / 2 - (64 << 10) {
        end_one(&mut log);
    }
    // There is room again: what was missed stands before what comes.
    bought(&mut log);
    told += 80;
    assert_eq!(webhook(&log).missed, None);
    let notices = log.machine.dead_letters(&(0, 0, 0)).filter(|(_, row)| row.is_notice());
    let notices: Vec<String> =
        notices.map(|(_, row)| row.reason.clone()).filter(|why| why.contains("w2:")).collect();
    assert_eq!(notices.len(), 1, "{notices:?}");
    let place = |place: crate::feed::Place| format!("1-{}-{}", place.index, place.changes);
    let range = format!("240 changes from {} to {}", place(missed.first), place(missed.last));
    assert!(notices[0].contains(&range), "{notices:?}: {range}");
    while bytes(&log) > 0 {
        end_one(&mut log);
    }
    assert_eq!(outside.missed["bob"], 240);
    assert_eq!(outside.said["bob"].len(), told);
}

#[test]
fn one_owner_cannot_take_all_room() {
    let mut log = hooked();
    for n in 0..WEBHOOKS_MAX as u64 - 1 {
        log.one(T0, asked(T0, 500_000 + n, "carol", &create_webhook(Vec::new(), "")));
    }
    let mut n = 1;
    for round in 0..100 {
        let commands = (0..80).map(|at| {
            n += 1;
            let hold_id = format!("ga-h{}", round * 40 + at / 2 + 1);
            let op = match at % 2 {
                0 => hold(1, 60_000),
                _ => tickets::Command::from(tickets::ReleaseHold { event_id: "gala".into(), hold_id }),
            };
            asked(T0, n, "carol", &op)
        });
        let commands = commands.collect();
        log.entry(T0, commands);
    }
    let of = |queues: &dyn Fn(u128) -> bool| -> u64 {
        log.machine
            .effects()
            .filter(|(key, _)| queues(key.queue))
            .map(|(_, row)| row.payload.len() as u64)
            .sum()
    };
    let (carol, others) = (of(&|queue| queue > 2), of(&|queue| queue == 1));
    assert!(carol <= QUEUE_BYTES_MAX && carol > QUEUE_BYTES_MAX * 9 / 10, "{carol}");
    let rows = log.machine.rows_of::<tidewall_domain::webhooks::State>().unwrap();
    assert!(rows.webhook("w3").unwrap().1.missed.is_some());
    assert!(rows.webhook("w1").unwrap().1.missed.is_none() && others > carol / 30, "{others}");
}

#[test]
fn in_another_life_nothing_is_added_to_what_may_have_been_told_in_the_one_before() {
    let mut log = hooked();
    let mut outside = Outside::default();
    log.entry(T0, vec![asked(T0, 1, "bob", &hold(1, 60_000))]);
    log.entry(T0, vec![asked(T0, 2, "bob", &hold(1, 60_000))]);
    let file = snapshot_of(&log.machine);
    let mine = |log: &Log| due(&log.machine, T0).into_iter().find(|effect| effect.key.queue == 2);
    // What is lost: the second one grows, and is told.
    log.entry(T0, vec![asked(T0, 3, "bob", &hold(1, 60_000))]);
    while let Some(effect) = mine(&log) {
        outside.take(&effect);
        log.one(T0, end(effect.key, 0, None));
    }
    assert_eq!(outside.said["bob"].len(), 3);
    log.one(T0, import::chunk(9, 0, &file));
    assert_eq!(reason(&log.one(T0, import::commit(9, 1, true))), "done");
    log.entry(T0, vec![asked(T0 + 1, 4, "bob", &hold(1, 60_000))]);
    let mut after = Vec::new();
    while let Some(effect) = mine(&log) {
        after.push(effect.key);
        let known = outside.seen.contains_key(&effect.key);
        if !known {
            outside.take(&effect);
        }
        log.one(T0, end(effect.key, 0, None));
    }
    assert_eq!(after.len(), 3);
    let last = outside.said["bob"].last().unwrap();
    assert_eq!((last.0.0, outside.said["bob"].len()), (2, 4), "what has happened in this life arrives");
}

#[test]
fn who_has_waited_for_a_day_behind_another_one_is_tried_for_some_minutes() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    log.entry(T0, vec![asked(T0, 2, "bob", &buy(1))]);
    let mine = |log: &Log, now| due(&log.machine, now).into_iter().find(|effect| effect.key.queue == 2);
    let first = mine(&log, T0).unwrap().key;
    let later = T0 + DELIVERED_WITHIN_MS;
    log.one(later, tick());
    assert!(mine(&log, later).is_some_and(|second| second.key > first));
    log.one(later + 5 * 60_000, tick());
    assert!(mine(&log, later + 5 * 60_000).is_none());
}

#[test]
fn what_was_done_although_it_was_given_up_is_no_dead_letter() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    let effect = due(&log.machine, T0).into_iter().find(|effect| effect.key.queue == 2).unwrap();
    log.one(T0 + DELIVERED_WITHIN_MS, tick());
    let dead = |log: &Log| log.machine.queue(webhooks::MODULE, 2, Stamp::confirmed(T0)).dead;
    assert_eq!(dead(&log), 1);
    log.one(T0 + DELIVERED_WITHIN_MS, end(effect.key, 0, failed("no route", 0)));
    assert_eq!(dead(&log), 1);
    log.one(T0 + DELIVERED_WITHIN_MS, end(effect.key, 0, None));
    assert_eq!(dead(&log), 0);
}

#[test]
fn what_nobody_knows_of_yet_is_joined_and_what_somebody_knows_of_stays_as_it_is() {
    let mut log = hooked();
    let buys = |log: &mut Log, n| log.entry(T0, vec![asked(T0, n, "bob", &hold(1, 60_000))]);
    buys(&mut log, 1);
    let of_bob = |log: &Log| -> Vec<(EffectKey, EffectRow)> {
        log.machine
            .effects()
            .filter(|(key, _)| key.queue == 2)
            .map(|(key, row)| (*key, row.clone()))
            .collect()
    };
    let first = of_bob(&log)[0].clone();
    buys(&mut log, 2);
    buys(&mut log, 3);
    let now = of_bob(&log);
    assert_eq!((now.len(), &now[0]), (2, &first), "the first is due: somebody may know of it");
    let second = now[1].0;
    log.one(T0, end(first.0, 0, None));
    let taken = of_bob(&log)[0].clone();
    assert_eq!(taken.0, second);
    buys(&mut log, 4);
    let now = of_bob(&log);
    assert_eq!((now.len(), &now[0]), (2, &taken), "and now the second is");
    let changes = webhooks::Delivery::decode(taken.1.payload.as_slice()).unwrap();
    assert_eq!((changes.webhook_id.as_str(), changes.changes.len()), ("w2", 2));
    // Up to a size.
    let (mut n, mut released) = (5, 0);
    while of_bob(&log).len() < 4 {
        released += 1;
        let hold_id = format!("ga-h{released}");
        let release = tickets::Command::from(tickets::ReleaseHold { event_id: "gala".into(), hold_id });
        log.entry(T0, vec![asked(T0, n, "bob", &release), asked(T0, n + 1, "bob", &hold(1, 60_000))]);
        n += 2;
    }
    assert!(of_bob(&log).iter().all(|(_, row)| row.payload.len() as u64 <= JOINED_BYTES_MAX));
    assert!(of_bob(&log)[1].1.payload.len() as u64 > JOINED_BYTES_MAX / 2);
}

#[test]
fn of_very_many_that_are_given_up_some_are_kept_and_the_others_are_missed() {
    let mut log = hooked();
    for n in 0..80 {
        let hold_id = format!("ga-h{}", n + 1);
        let release = tickets::Command::from(tickets::ReleaseHold { event_id: "gala".into(), hold_id });
        let at = T0 + 2 * n * DELIVERED_WITHIN_MS;
        log.entry(
            at,
            vec![asked(at, 2 * n + 1, "bob", &hold(1, 60_000)), asked(at, 2 * n + 2, "bob", &release)],
        );
        for _ in 0..2 {
            log.one(at + DELIVERED_WITHIN_MS, tick());
        }
    }
    assert_eq!(log.machine.effects_count(), 0);
    for queue in [1, 2] {
        let state = log.machine.queue(webhooks::MODULE, queue, Stamp::confirmed(T0));
        assert_eq!(state.dead as usize, DEAD_OF_QUEUE_MAX);
    }
    // What is missed is told with the next delivery, and missed again with that.
    let rows = log.machine.rows_of::<tidewall_domain::webhooks::State>().unwrap();
    assert_eq!(rows.webhook("w2").unwrap().1.missed.unwrap().count, 2 * (80 - DEAD_OF_QUEUE_MAX as u64));
}

#[test]
fn with_a_webhook_ends_what_waits_for_it_and_what_of_it_was_given_up() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    let later = T0 + DELIVERED_WITHIN_MS;
    log.one(later, tick());
    log.entry(later, vec![asked(later, 2, "bob", &buy(1))]);
    let delete = webhooks::Command::from(webhooks::DeleteWebhook { webhook_id: "w2".into() });
    assert_eq!(reason(&log.one(later, asked(later, 3, "carol", &delete))), "NOT_OWNER");
    assert_eq!(reason(&log.one(later, asked(later, 4, "bob", &delete))), "done");
    assert!(log.machine.effects().all(|(key, _)| key.queue != 2));
    let dead: Vec<u128> = log.machine.dead_letters(&(0, 0, 0)).map(|(_, row)| row.message.saga).collect();
    assert_eq!(dead, [1], "what of it was given up needs nobody any more");
    // A later one has another name.
    let decision = log.one(later, asked(later, 5, "bob", &create_webhook(Vec::new(), "")));
    let Answer::Done { outcome, .. } = &decision.answer else { panic!("{decision:?}") };
    let Some(webhooks::outcome::Result::Webhook(view)) =
        webhooks::Outcome::decode(outcome.as_slice()).unwrap().result
    else {
        panic!("{decision:?}")
    };
    assert_eq!(view.webhook_id, "w4");
}

#[test]
fn nobody_has_more_webhooks_than_may_be() {
    let mut log = hooked();
    for n in 0..WEBHOOKS_MAX as u64 {
        let decision = log.one(T0, asked(T0, n + 1, "dan", &create_webhook(Vec::new(), "")));
        assert_eq!(reason(&decision), "done");
    }
    let decision = log.one(T0, asked(T0, 50, "dan", &create_webhook(Vec::new(), "")));
    assert_eq!(reason(&decision), "TOO_MANY_WEBHOOKS");
}

#[test]
fn before_all_members_know_it_there_are_no_effects_and_no_rows_of_them_are_taken() {
    let mut log = Log::new();
    log.one(T0, Command::system(SystemCommand::RaiseVersion(HEARS_CHANGES - 1)));
    log.one(T0, command(1, buy(1)));
    let table =
        |machine: &Machine| machine.freeze_all().pages.iter().any(|page| page.table() == EffectRow::TABLE);
    assert!(!table(&log.machine));
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    assert!(table(&log.machine));
    let mut loader = Machine::loader().with_supported(APPLY_VERSION);
    for page in log.machine.freeze_all().pages {
        let bytes = page.encode().unwrap();
        loader.page(page.table(), &bytes).unwrap();
    }
    let head = Head::default();
    assert!(loader.finish(head, log.machine.digest()).is_ok());
}

#[test]
fn after_a_restore_what_was_not_delivered_is_and_nothing_new_has_an_old_name() {
    let mut log = hooked();
    log.entry(T0, vec![asked(T0, 1, "bob", &buy(1))]);
    let before = due(&log.machine, T0);
    let file = snapshot_of(&log.machine);
    for effect in &before {
        log.one(T0, end(effect.key, 0, None));
    }
    log.entry(T0, vec![asked(T0, 2, "bob", &buy(1))]);
    let lost = due(&log.machine, T0);
    log.one(T0, import::chunk(9, 0, &file));
    assert_eq!(reason(&log.one(T0, import::commit(9, 1, true))), "done");
    // Those before once more, under their names, and for a day: who has seen them takes nothing in.
    assert_eq!(due(&log.machine, T0), before);
    let until: Vec<u64> = log.machine.effects().map(|(_, row)| row.until_ms).collect();
    let steady_ms = log.machine.time().steady_ms;
    assert!(until.iter().all(|until| *until >= steady_ms + DELIVERED_WITHIN_MS), "{until:?} at {steady_ms}");
    log.entry(T0, vec![asked(T0 + 1, 3, "bob", &buy(1))]);
    for effect in &before {
        log.one(T0, end(effect.key, 0, None));
    }
    let now: BTreeSet<EffectKey> = due(&log.machine, T0).iter().map(|effect| effect.key).collect();
    assert_eq!(now.len(), 2);
    assert!(lost.iter().all(|effect| !now.contains(&effect.key)));
    assert!(now.iter().all(|key| key.incarnation == 2));
}
