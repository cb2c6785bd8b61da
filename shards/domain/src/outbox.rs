//! What a change of rows sends to other groups, and has done outside of all groups; and the room that it reserves for that.
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

/// Something that is to be done outside of all groups: once at least, under one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Effect {
    /// What belongs to one queue is done one after the other, in order.
    pub queue: u128,
    /// What is to be done, in the module's own words.
    pub payload: Vec<u8>,
    /// It is tried for so long, milliseconds of steady time.
    pub lasts_ms: u64,
    /// It may become a part of the last one of its queue, of which nobody knows yet, if both have no more than so many bytes: as
    /// protobuf joins messages, by writing one behind the other. 0: it stands alone.
    pub joined_max: u64,
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
    /// What is to be done outside, in order.
    pub effects: Vec<Effect>,
    /// Queues of which nothing need be done any more.
    pub ended_queues: Vec<u128>,
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

    /// Has something done outside; see [`Effect`].
    pub fn effect(&mut self, queue: u128, lasts_ms: u64, joined_max: u64, effect: &impl Message) {
        self.effects.push(Effect { queue, payload: effect.encode_to_vec(), lasts_ms, joined_max });
    }

    /// Nothing of a queue need be done any more.
    pub fn end_queue(&mut self, queue: u128) {
        self.ended_queues.push(queue);
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        let Self { begun, ended, messages, notices, effects, ended_queues } = self;
        begun.is_empty()
            && ended.is_empty()
            && messages.is_empty()
            && notices.is_empty()
            && effects.is_empty()
            && ended_queues.is_empty()
    }
}

/// Who knows whether one more saga may begin.
pub trait Room {
    /// Whether there is room for a saga with this group.
    fn admits(&self, peer: GroupNo) -> bool;
}

/// How much of something there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Queued {
    /// How many.
    pub count: u64,
    /// About their bytes.
    pub bytes: u64,
}

/// Who knows how much of a module is to be done outside.
pub trait Queues {
    /// In one queue.
    fn queued(&self, queue: u128) -> Queued;
    /// In all of them.
    fn all(&self) -> Queued;
}

/// Room for everything: for tests of a module alone.
#[derive(Debug, Clone, Copy)]
pub struct Unlimited;

impl Room for Unlimited {
    fn admits(&self, _: GroupNo) -> bool {
        true
    }
}
