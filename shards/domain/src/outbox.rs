//! What a change of rows sends to other groups, and the room that it reserves for that.
//!
//! Messages leave with the rows that they follow from: in the same transaction, or not at all. Answers and undos cannot be refused, so
//! whoever begins a saga reserves room for all that it may cause ([`Outbox::begin`]), and is refused where there is none.

use prost::Message;

/// Number of a shard group.
pub type GroupNo = u32;

/// The most messages of a saga that may be on their way to one group at a time.
pub const SAGA_MESSAGES_MAX: u64 = 4;

/// A message to another group, or to the own one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// To which group.
    pub to: GroupNo,
    /// The saga that it belongs to: when one of its messages is set aside, those behind it wait.
    pub saga: u128,
    /// The module's message.
    pub payload: Vec<u8>,
}

/// What a change of rows sends.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Outbox {
    /// Groups with which a saga begins.
    pub begun: Vec<GroupNo>,
    /// Groups with which a saga has ended.
    pub ended: Vec<GroupNo>,
    /// Messages, in order.
    pub messages: Vec<Outgoing>,
    /// What somebody should know.
    pub notices: Vec<String>,
}

impl Outbox {
    /// A saga begins that may send messages to this group, and get answers: at most [`SAGA_MESSAGES_MAX`] at a time.
    pub fn begin(&mut self, peer: GroupNo) {
        self.begun.push(peer);
    }

    /// A saga that was begun with this group has ended.
    pub fn end(&mut self, peer: GroupNo) {
        self.ended.push(peer);
    }

    /// Sends a message.
    pub fn send(&mut self, to: GroupNo, saga: u128, message: &impl Message) {
        self.messages.push(Outgoing { to, saga, payload: message.encode_to_vec() });
    }

    /// Has somebody look at something that no rule can mend. It stands among the dead letters, unless there are very many.
    pub fn notice(&mut self, what: String) {
        self.notices.push(what);
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.begun.is_empty() && self.ended.is_empty() && self.messages.is_empty() && self.notices.is_empty()
    }
}

/// Who knows whether one more saga may begin.
pub trait Room {
    /// Whether there is room for a saga with this group.
    fn admits(&self, peer: GroupNo) -> bool;
}

/// Room for everything: for tests of a module alone.
#[derive(Debug, Clone, Copy)]
pub struct Unlimited;

impl Room for Unlimited {
    fn admits(&self, _: GroupNo) -> bool {
        true
    }
}
