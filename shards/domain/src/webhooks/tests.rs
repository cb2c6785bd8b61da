//! Webhooks: whoever asks whatever, nobody changes what belongs to somebody else, numbers only grow, and what is heard goes to those
//! alone who may be told.
#![allow(clippy::unwrap_used)]

use proptest::prelude::*;
use prost::Message as _;
use tidewall_messages::webhooks::outcome::Result as Done;
use tidewall_messages::webhooks::{self as messages, Settings, WebhookView, answer};
use tidewall_messages::{Change, tickets};

use super::model::*;
use super::*;
use crate::Roles;
use crate::feed::Told;
use crate::module::{AnyModule, Reason as _, apply};
use crate::outbox::Queued;

const SUBJECTS: [&str; 3] = ["alice", "bob", "carol"];

fn context(index: u64) -> Context {
    Context {
        now_ms: 1_000_000 + index,
        steady_ms: 1_000 + index,
        incarnation: 1,
        request_id: 1,
        index,
        position: 0,
        apply_version: HEARS_CHANGES,
    }
}

fn caller(principal: &str) -> Caller<'_> {
    Caller { principal, roles: Roles::NONE, on_behalf_of: None }
}

fn settings(url: &str, kinds: Vec<u32>, row: &str) -> Settings {
    let module = if row.is_empty() { 0 } else { tickets::MODULE.into() };
    Settings { url: url.into(), kinds, module, row: row.into() }
}

fn create(settings: Settings) -> Command {
    Command::from(messages::CreateWebhook { settings: Some(settings) })
}

fn ask(state: &mut State, index: u64, who: &str, command: &Command) -> Result<WebhookView, Rejection> {
    let outcome = apply(state, &context(index), caller(who), command).expect("no fault")?;
    match outcome.result.unwrap() {
        Done::Webhook(view) => Ok(view),
        Done::DeletedId(webhook_id) => Ok(WebhookView { webhook_id, ..Default::default() }),
    }
}

/// As much is queued as this says.
struct Held(Queued);

impl Queues for Held {
    fn queued(&self, _: u128) -> Queued {
        self.0
    }

    fn all(&self) -> Queued {
        self.0
    }
}

fn heard(number: u32, owner: &str, answerable: &str, kind: u32, row: &str) -> HeardChange {
    let module = tickets::MODULE.into();
    let change = Change { module, row: row.into(), owner: owner.into(), payload: vec![7; 40] };
    HeardChange { told: Told { change, answerable: answerable.into(), kind }, number }
}

#[test]
fn who_asks_for_nonsense_is_told_which_field_is_wrong() {
    let mut state = State::default();
    let url = "https://shop.example/";
    for (wrong, field) in [
        (settings("", vec![], ""), "url"),
        (settings(&"x".repeat(URL_MAX + 1), vec![], ""), "url"),
        (settings(url, vec![0], ""), "kinds"),
        (settings(url, vec![KINDS_MAX], ""), "kinds"),
        (Settings { module: 1, ..settings(url, vec![], "") }, "row"),
        (Settings { module: 256, row: "gala".into(), ..settings(url, vec![], "") }, "module"),
    ] {
        let told = ask(&mut state, 1, "alice", &create(wrong)).unwrap_err();
        assert_eq!((told.field(), told.reason()), (field, "INVALID_FIELD"), "{told}");
    }
    assert!(state.webhooks.is_empty() && state.counters.is_empty());
    let none = Command::from(messages::CreateWebhook { settings: None });
    assert_eq!(ask(&mut state, 1, "alice", &none).unwrap_err().field(), "webhook");
}

#[test]
fn an_update_changes_what_it_names_and_only_for_its_owner_and_its_revision() {
    let mut state = State::default();
    let made = ask(&mut state, 1, "alice", &create(settings("https://a.example/", vec![6], "gala"))).unwrap();
    assert_eq!((made.webhook_id.as_str(), made.revision, made.generation), ("w1", 1, 1));
    let update = |revision| {
        Command::from(messages::UpdateWebhook {
            webhook_id: "w1".into(),
            settings: Some(settings("https://b.example/", vec![], "")),
            revision,
            set_url: true,
            ..Default::default()
        })
    };
    assert_eq!(ask(&mut state, 2, "bob", &update(0)).unwrap_err().reason(), "NOT_OWNER");
    assert_eq!(ask(&mut state, 2, "alice", &update(7)).unwrap_err().reason(), "REVISION_MISMATCH");
    let changed = ask(&mut state, 2, "alice", &update(1)).unwrap();
    assert_eq!(changed.settings.unwrap(), settings("https://b.example/", vec![6], "gala"));
    assert_eq!((changed.revision, changed.generation), (2, 1));
    let all = messages::UpdateWebhook {
        webhook_id: "w1".into(),
        settings: Some(Settings::default()),
        set_kinds: true,
        set_row: true,
        ..Default::default()
    };
    let changed = ask(&mut state, 3, "alice", &Command::from(all)).unwrap();
    assert_eq!(changed.settings.unwrap(), settings("https://b.example/", vec![], ""));
    // What no list has given is no reason to panic.
    let list = messages::ListWebhooks { after: format!("w{}", u64::MAX), limit: 2, ..Default::default() };
    let found = Module::query(&state, Now { log_ms: 1, steady_ms: 1 }, &Query::from(list)).unwrap();
    assert_eq!(found.result, Some(answer::Result::Webhooks(messages::WebhookList::default())));
    let gone = messages::RotateSecret { webhook_id: "w2".into() };
    assert_eq!(ask(&mut state, 4, "alice", &Command::from(gone)).unwrap_err().reason(), "WEBHOOK_NOT_FOUND");
    let rotate = Command::from(messages::RotateSecret { webhook_id: "w1".into() });
    let rotated = ask(&mut state, 4, "alice", &rotate).unwrap();
    assert_eq!((rotated.generation, rotated.rotating_until_ms), (2, 1_000_004 + ROTATING_MS));
    assert_eq!(rotated.previous_generation, 1);
    // In another life it is another one, whatever was shown in the one before.
    let later = Context { incarnation: 2, ..context(5) };
    let outcome = apply(&mut state, &later, caller("alice"), &rotate).unwrap().unwrap();
    let Some(Done::Webhook(view)) = outcome.result else { panic!("{outcome:?}") };
    assert_eq!((view.generation, view.previous_generation), (crate::incarnation::first_number(2), 2));
}

#[test]
fn a_webhook_without_room_misses_what_comes_and_tells_it_with_the_next() {
    let mut state = State::default();
    ask(&mut state, 1, "alice", &create(settings("https://a.example/", vec![], ""))).unwrap();
    let change = [heard(1, "alice", "", 6, "gala"), heard(2, "alice", "alice", 7, "gala")];
    for full in [
        Queued { count: QUEUE_MAX, bytes: 0 },
        Queued { count: 0, bytes: QUEUE_BYTES_MAX },
        Queued { count: 0, bytes: QUEUES_BYTES_MAX },
    ] {
        let output = AnyModule::hear(&mut state, &context(9), &change, &Held(full)).unwrap();
        assert!(output.outbox.is_empty());
    }
    let missed = state.webhook("w1").unwrap().1.missed.unwrap();
    assert_eq!((missed.count, missed.first.changes, missed.last.changes), (6, 1, 2));
    let output = AnyModule::hear(&mut state, &context(10), &change, &Held(Queued::default())).unwrap();
    assert_eq!((output.outbox.effects.len(), output.outbox.notices.len()), (1, 1));
    let delivery = Delivery::decode(output.outbox.effects[0].payload.as_slice()).unwrap();
    assert_eq!((delivery.changes.len(), delivery.missed.unwrap().count), (2, 6));
    assert_eq!(state.webhook("w1").unwrap().1.missed, None);
}

#[test]
fn what_is_much_goes_out_in_parts_and_keeps_its_order() {
    let mut state = State::default();
    ask(&mut state, 1, "alice", &create(settings("https://a.example/", vec![], ""))).unwrap();
    let changes: Vec<HeardChange> = (1..=250).map(|number| heard(number, "alice", "", 6, "gala")).collect();
    let output = AnyModule::hear(&mut state, &context(9), &changes, &Held(Queued::default())).unwrap();
    let parts =
        output.outbox.effects.iter().map(|effect| Delivery::decode(effect.payload.as_slice()).unwrap());
    let numbers: Vec<Vec<u32>> = parts
        .map(|delivery| delivery.changes.iter().map(|told| told.place.unwrap().changes).collect())
        .collect();
    assert_eq!(numbers.iter().map(Vec::len).collect::<Vec<_>>(), [100, 100, 50]);
    assert_eq!(numbers.concat(), (1..=250).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn what_is_heard_goes_to_those_who_may_be_told_of_what_they_want(
        hooks in proptest::collection::vec((0..3usize, proptest::collection::vec(1..10u32, 0..3), any::<bool>()), 0..8),
        changes in proptest::collection::vec((0..4usize, 0..4usize, 1..10u32, any::<bool>()), 1..20),
    ) {
        let mut state = State::default();
        for (who, kinds, one) in &hooks {
            let row = if *one { "gala" } else { "" };
            ask(&mut state, 1, SUBJECTS[*who], &create(settings("https://a.example/", kinds.clone(), row))).unwrap();
        }
        let subject = |at: usize| SUBJECTS.get(at).copied().unwrap_or_default();
        let rows = |gala: bool| if gala { "gala" } else { "ball" };
        let heard: Vec<HeardChange> = changes.iter().zip(1..).map(|((owner, answerable, kind, gala), number)| {
            heard(number, subject(*owner), subject(*answerable), *kind, rows(*gala))
        }).collect();
        let output = AnyModule::hear(&mut state, &context(9), &heard, &Held(Queued::default())).unwrap();
        let mut told: Vec<Vec<u32>> = vec![Vec::new(); hooks.len()];
        for effect in &output.outbox.effects {
            let delivery = Delivery::decode(effect.payload.as_slice()).unwrap();
            let number = parse_id(&delivery.webhook_id).unwrap();
            prop_assert_eq!(u128::from(number), effect.queue);
            told[number as usize - 1].extend(delivery.changes.iter().map(|told| told.place.unwrap().changes));
        }
        for ((who, kinds, one), told) in hooks.iter().zip(told) {
            let wanted = changes.iter().zip(1..).filter(|((owner, answerable, kind, gala), _)| {
                (owner == who || answerable == who) && (kinds.is_empty() || kinds.contains(kind)) && (!one || *gala)
            });
            prop_assert_eq!(told, wanted.map(|(_, number)| number).collect::<Vec<u32>>());
        }
    }

    #[test]
    fn numbers_and_revisions_only_grow_and_lists_show_what_there_is(
        asked in proptest::collection::vec((0..3usize, 0..4u8, 1..8u64), 1..60),
    ) {
        let mut state = State::default();
        let (mut known, mut last) = (std::collections::BTreeMap::new(), 0);
        for (index, (who, kind, number)) in (1..).zip(asked) {
            let (who, webhook_id) = (SUBJECTS[who], format!("w{number}"));
            let command = match kind {
                0 => create(settings("https://a.example/", vec![], "")),
                1 => Command::from(messages::RotateSecret { webhook_id: webhook_id.clone() }),
                2 => Command::from(messages::UpdateWebhook {
                    webhook_id: webhook_id.clone(), set_url: true,
                    settings: Some(settings("https://b.example/", vec![], "")), ..Default::default()
                }),
                _ => Command::from(messages::DeleteWebhook { webhook_id: webhook_id.clone() }),
            };
            let said = ask(&mut state, index, who, &command);
            match (kind, said) {
                (0, Ok(view)) => {
                    let number = parse_id(&view.webhook_id).unwrap();
                    prop_assert!(number > last, "no number is given twice");
                    last = number;
                    known.insert(number, (who, view.revision, view.generation));
                }
                (3, Ok(_)) => prop_assert_eq!(known.remove(&number).map(|(owner, ..)| owner), Some(who)),
                (_, Ok(view)) => {
                    let (owner, revision, generation) = known[&number];
                    prop_assert_eq!((owner, revision + 1), (who, view.revision));
                    prop_assert_eq!(view.generation, generation + u64::from(kind == 1));
                    known.insert(number, (who, view.revision, view.generation));
                }
                (_, Err(no)) => {
                    let found = known.get(&number);
                    let right = match no {
                        Rejection::WebhookNotFound(_) => found.is_none(),
                        Rejection::NotOwner(_) => found.is_some_and(|(owner, ..)| *owner != who),
                        Rejection::TooManyWebhooks(_) => {
                            known.values().filter(|(owner, ..)| *owner == who).count() == WEBHOOKS_MAX
                        }
                        _ => false,
                    };
                    prop_assert!(right, "{}", no);
                }
            }
        }
        for who in SUBJECTS {
            let (mut seen, mut after) = (Vec::new(), String::new());
            loop {
                let list = messages::ListWebhooks { owner: who.into(), after, limit: 2 };
                let now = Now { log_ms: 1, steady_ms: 1 };
                let found = Module::query(&state, now, &Query::from(list)).unwrap().result;
                let Some(answer::Result::Webhooks(page)) = found else { panic!("{found:?}") };
                after = page.webhooks.last().map(|view| view.webhook_id.clone()).unwrap_or_default();
                seen.extend(page.webhooks.iter().map(|view| parse_id(&view.webhook_id).unwrap()));
                if !page.more {
                    break;
                }
            }
            let own: Vec<u64> = known.iter().filter(|(_, (owner, ..))| *owner == who).map(|(number, _)| *number).collect();
            prop_assert_eq!(seen, own);
        }
    }
}
