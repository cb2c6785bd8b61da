//! Rows of the webhooks module, their keys, and what is derived from them.

mod webhook;

use crate::counter::{Counter, number_of};
use crate::table::{Table, table_id};

pub use tidewall_messages::webhooks::MODULE;

pub use webhook::{ByOwner, MissedRow, WebhookNo, WebhookRow};

/// Webhooks that somebody may have in a group.
pub const WEBHOOKS_MAX: usize = 20;
/// Webhooks of a group.
pub const WEBHOOKS_OF_ALL_MAX: u64 = 10_000;
/// Bytes of an address.
pub const URL_MAX: usize = 2_048;
/// Kinds of changes have numbers below this.
pub const KINDS_MAX: u32 = 64;
/// A secret goes on so long after the next one was made, milliseconds of steady time: a day.
pub const ROTATING_MS: u64 = 86_400_000;
/// Deliveries of a webhook that may wait.
pub const QUEUE_MAX: u64 = 1_000;
/// Bytes of deliveries that may wait for the webhooks of one owner.
pub const QUEUE_BYTES_MAX: u64 = 8 << 20;
/// A webhook whose deliveries have fewer bytes has room, whatever waits for others.
pub const QUEUE_BYTES_MIN: u64 = 64 << 10;
/// Bytes of deliveries that may wait in a group.
pub const QUEUES_BYTES_MAX: u64 = 64 << 20;
/// Changes of a delivery.
pub const DELIVERY_CHANGES_MAX: usize = 100;
/// Bytes of the changes of a delivery, beyond its last one.
pub const DELIVERY_BYTES_MAX: usize = 64 << 10;
/// Deliveries that nobody knows of yet are joined up to so many bytes: who is a little behind catches up.
pub const JOINED_BYTES_MAX: u64 = 64 << 10;

/// Key of the counter of webhooks: the highest number that was given.
pub const COUNTER_WEBHOOKS: u64 = 1;

/// A counter of the module.
pub type CounterRow = Counter<{ table_id(MODULE, 2) }>;

/// All rows of the module.
#[derive(Debug, Default)]
pub struct State {
    pub(super) webhooks: Table<WebhookRow>,
    pub(super) counters: Table<CounterRow>,
}

impl State {
    /// The webhook with this id, and its number.
    pub fn webhook(&self, id: &str) -> Option<(WebhookNo, &WebhookRow)> {
        let number = parse_id(id)?;
        Some((number, self.webhooks.get(&number)?))
    }

    /// Numbers of somebody's webhooks, in order.
    pub fn of(&self, owner: &str) -> impl Iterator<Item = WebhookNo> + '_ {
        self.webhooks.derived().0.get(owner).into_iter().flatten().copied()
    }
}

/// Id of a webhook by its number.
pub fn webhook_id(number: WebhookNo) -> String {
    format!("w{number}")
}

/// Number of a webhook by its id: "w12".
pub fn parse_id(id: &str) -> Option<WebhookNo> {
    number_of('w', id)
}
