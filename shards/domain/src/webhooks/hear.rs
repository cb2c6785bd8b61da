//! From what was told in an entry to what goes out. A webhook whose deliveries wait in too large a number misses what comes, until
//! there is room again: then it is told what it has missed, and somebody is told as well.

use std::collections::BTreeMap;

use prost::Message as _;
use tidewall_messages::webhooks as messages;
use tidewall_messages::webhooks::Delivery;
use tidewall_mutant::{Mutant, active};

use crate::Context;
use crate::feed::{HeardChange, Place};
use crate::outbox::{Outbox, Queued, Queues};

use super::DELIVERED_WITHIN_MS;
use super::commands::Event;
use super::model::*;

/// What of an entry each webhook is told, or misses. Each webhook is looked up once, and each change written once.
pub(super) fn hear(
    state: &State,
    context: &Context,
    heard: &[HeardChange],
    queues: &dyn Queues,
) -> Vec<Event> {
    let mut hooks: BTreeMap<&str, Vec<(WebhookNo, &WebhookRow)>> = BTreeMap::new();
    let mut wanted: BTreeMap<WebhookNo, (&WebhookRow, Vec<usize>)> = BTreeMap::new();
    for (at, change) in heard.iter().enumerate() {
        let told = &change.told;
        let (owner, answerable) = (told.change.owner.as_str(), told.answerable.as_str());
        let also = (answerable != owner).then_some(answerable);
        let others = state.webhooks.derived().0.keys().map(String::as_str);
        let others = others
            .filter(|other| active(Mutant::WebhookHearsOthers) && *other != owner && *other != answerable);
        for subject in [Some(owner), also].into_iter().flatten().chain(others) {
            let own = hooks.entry(subject).or_insert_with(|| {
                state.of(subject).filter_map(|number| Some((number, state.webhooks.get(&number)?))).collect()
            });
            for (number, row) in own.iter() {
                if row.wants(told.kind, told.change.module, &told.change.row) {
                    wanted.entry(*number).or_insert_with(|| (row, Vec::new())).1.push(at);
                }
            }
        }
    }
    let mut written: BTreeMap<usize, messages::Told> = BTreeMap::new();
    let mut all = queues.all().bytes;
    let mut owners: BTreeMap<&str, u64> = BTreeMap::new();
    let mut events = Vec::new();
    for (webhook, (row, changes)) in wanted {
        let owned = owners
            .entry(&row.owner)
            .or_insert_with(|| state.of(&row.owner).map(|number| queues.queued(number.into()).bytes).sum());
        let mut telling = Telling {
            webhook,
            missed: row.missed,
            queued: queues.queued(webhook.into()),
            owned,
            all: &mut all,
        };
        let changes: Vec<messages::Told> = changes
            .into_iter()
            .map(|at| written.entry(at).or_insert_with(|| told(context, &heard[at])).clone())
            .collect();
        telling.tell(&changes, &mut events);
    }
    events
}

/// What one webhook is told of an entry.
struct Telling<'a> {
    webhook: WebhookNo,
    missed: Option<MissedRow>,
    queued: Queued,
    /// Bytes that wait for all webhooks of its owner.
    owned: &'a mut u64,
    /// And for those of all.
    all: &'a mut u64,
}

impl Telling<'_> {
    fn tell(&mut self, changes: &[messages::Told], events: &mut Vec<Event>) {
        let mut rest = changes;
        while !rest.is_empty() {
            let (mut now, mut bytes) = (Vec::new(), 0);
            while let [first, behind @ ..] = rest
                && now.len() < DELIVERY_CHANGES_MAX
                && bytes < DELIVERY_BYTES_MAX as u64
            {
                bytes += first.encoded_len() as u64;
                now.push(first.clone());
                rest = behind;
            }
            if self.has_room(bytes) {
                self.queued.count += 1;
                for queued in [&mut self.queued.bytes, &mut *self.owned, &mut *self.all] {
                    *queued += bytes;
                }
                let missed = self.missed.take().map(Into::into);
                let delivery = Delivery { webhook_id: webhook_id(self.webhook), changes: now, missed };
                events.push(Event::Told { webhook: self.webhook, delivery });
            } else {
                let places = now.iter().filter_map(|told| told.place).map(Place::from);
                self.missed = places.fold(self.missed, |missed, place| Some(with(missed, place, 1)));
                let missed = self.missed.map(|missed| Event::Missed { webhook: self.webhook, missed });
                events.extend(missed);
            }
        }
    }

    /// Whether a delivery of so many bytes may wait. Who has missed something goes on missing until half of what waited is gone: or each
    /// delivery that is made would let another one in, with a notice of what was missed.
    fn has_room(&self, bytes: u64) -> bool {
        let share = |most: u64| if self.missed.is_some() { most / 2 } else { most };
        self.queued.count < share(QUEUE_MAX)
            && *self.owned + bytes <= share(QUEUE_BYTES_MAX)
            && (*self.all + bytes <= QUEUES_BYTES_MAX || self.queued.bytes < QUEUE_BYTES_MIN)
    }
}

fn told(context: &Context, heard: &HeardChange) -> messages::Told {
    let place = Place { incarnation: context.incarnation, index: context.index, changes: heard.number };
    messages::Told {
        place: Some(place.into()),
        log_ms: context.now_ms,
        change: heard.told.change.encode_to_vec(),
    }
}

/// What was missed so far, and this.
fn with(missed: Option<MissedRow>, place: Place, count: u64) -> MissedRow {
    let before = missed.unwrap_or(MissedRow { first: place, last: place, count: 0 });
    MissedRow {
        first: before.first.min(place),
        last: before.last.max(place),
        count: before.count.saturating_add(count),
    }
}

/// What follows from a delivery that nobody will carry out: its webhook has missed its changes.
pub(super) fn dropped(state: &State, effect: &[u8]) -> Vec<Event> {
    let Ok(delivery) = Delivery::decode(effect) else { return Vec::new() };
    let Some((webhook, row)) = state.webhook(&delivery.webhook_id) else { return Vec::new() };
    let mut missed = row.missed;
    if let Some(before) = &delivery.missed {
        let places = [before.first, before.last].into_iter().flatten().map(Place::from);
        missed = places.fold(missed, |missed, place| Some(with(missed, place, 0)));
        missed =
            missed.map(|missed| MissedRow { count: missed.count.saturating_add(before.count), ..missed });
    }
    let places = delivery.changes.iter().filter_map(|told| told.place).map(Place::from);
    missed = places.fold(missed, |missed, place| Some(with(missed, place, 1)));
    missed.map(|missed| vec![Event::Missed { webhook, missed }]).unwrap_or_default()
}

/// What goes out.
pub(super) fn send(event: &Event, outbox: &mut Outbox) {
    match event {
        Event::Told { webhook, delivery } => {
            if let Some(missed) = &delivery.missed {
                outbox.notice(notice(*webhook, missed));
            }
            // What was missed stands before the changes of its delivery.
            let joined_max = if delivery.missed.is_none() { JOINED_BYTES_MAX } else { 0 };
            outbox.effect((*webhook).into(), DELIVERED_WITHIN_MS, joined_max, delivery);
        }
        Event::Deleted { webhook } => outbox.end_queue((*webhook).into()),
        Event::Saved { .. } | Event::Missed { .. } => {}
    }
}

fn notice(webhook: WebhookNo, missed: &messages::Missed) -> String {
    let place = |place: Option<tidewall_messages::Place>| {
        let tidewall_messages::Place { incarnation, index, changes } = place.unwrap_or_default();
        format!("{incarnation}-{index}-{changes}")
    };
    format!(
        "webhook {}: too much waited to be delivered or was given up, and {} changes from {} to {} were missed; its owner is told \
         with the next delivery",
        webhook_id(webhook),
        missed.count,
        place(missed.first),
        place(missed.last),
    )
}
