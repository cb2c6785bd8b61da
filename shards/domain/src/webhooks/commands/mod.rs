//! How what is asked of the module is decided, and what it changes.

mod decide;
mod evolve;
mod rejection;

use tidewall_messages::webhooks::Delivery;

use super::model::{MissedRow, WebhookNo, WebhookRow};

pub(super) use decide::decide;
pub(super) use evolve::{check, evolve};
pub use rejection::Rejection;

/// What a decision changes, past tense; rows follow from it and from nothing else.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// A webhook was made or changed.
    Saved {
        /// Its number.
        webhook: WebhookNo,
        /// As it is now.
        row: WebhookRow,
    },
    /// A webhook has ended.
    Deleted {
        /// Its number.
        webhook: WebhookNo,
    },
    /// A webhook is told something.
    Told {
        /// Its number.
        webhook: WebhookNo,
        /// What.
        delivery: Delivery,
    },
    /// A webhook is not told something.
    Missed {
        /// Its number.
        webhook: WebhookNo,
        /// All that it does not know of by now.
        missed: MissedRow,
    },
}
