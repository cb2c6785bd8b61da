//! What carries messages from one group to another: pure, so that it can be tried in every order. Whoever runs it calls the other group
//! and proposes to the own one.
//!
//! The rows say everything; what is kept here beside them only saves work, and may be lost at any moment: then what was delivered is
//! delivered again, and the receiver passes over it.

use tidewall_domain::outbox::GroupNo;
use tidewall_mutant::{Mutant, active};

use crate::entry::{Delivery, SystemCommand};
use crate::machine::{DEAD_LETTERS_MAX, Machine};

/// Messages that may be acknowledged later, with something else.
const ACKNOWLEDGED_LATER_MAX: u64 = 1_024;

/// What a group says of itself to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Heard {
    /// Its incarnation.
    pub incarnation: u64,
    /// The pair of which the next one is: the other one's incarnation as it knows it, and its own.
    pub pair: (u64, u64),
    /// The first message that it has not; 0 when it has none of the pair.
    pub received: u64,
}

/// What is remembered of another group, as long as the lead lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// What it said last.
    heard: Option<Heard>,
    /// That was long ago: it may have gone back to an earlier state, and remember nobody whom it could tell.
    is_old: bool,
    /// Messages before this one are passed over, by a defect.
    skipped: u64,
}

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Todo {
    /// The other group is to be asked who it is, or told something; what it says is for [`Memory::hear`].
    Deliver(Delivery),
    /// The own group is to note something, now.
    Propose(SystemCommand),
    /// The own group is to note something, some time: what is delivered meanwhile may tell it as well.
    ProposeLater(SystemCommand),
    /// Nothing.
    Nothing,
}

impl Memory {
    /// A courier that has just begun.
    pub fn begin(rows: &Machine, to: GroupNo) -> Self {
        let skipped = if active(Mutant::MessageLostAtLeadChange) { rows.stream(to).next } else { 0 };
        Self { heard: None, is_old: false, skipped }
    }

    /// What is to be done next about group `to`, by the rows of group `own`.
    pub fn next(&self, rows: &Machine, own: GroupNo, to: GroupNo) -> Todo {
        let (row, incarnation) = (rows.stream(to), rows.incarnation());
        let heard = self.heard.unwrap_or_default();
        if row.own != incarnation || row.peer == 0 || heard.incarnation > row.peer {
            return match heard.incarnation {
                0 => Todo::Deliver(question(rows, own, to)),
                peer => Todo::Propose(SystemCommand::Meet { group: to, incarnation: peer }),
            };
        }
        // What was heard of another pair says nothing about this one.
        let agrees = heard.pair == (incarnation, row.peer);
        let received = if agrees { heard.received } else { row.first }.max(row.first);
        let acknowledge =
            SystemCommand::Acknowledge { group: to, pair: (row.peer, incarnation), next: received };
        if received - row.first > ACKNOWLEDGED_LATER_MAX {
            // Finding the place behind what is not let go takes longer the more there is.
            return Todo::Propose(acknowledge);
        }
        let position = received.max(self.skipped);
        if position < row.next || (!row.met && !agrees) {
            return Todo::Deliver(rows.delivery(own, to, position));
        }
        if agrees && (received > row.first || !row.met) {
            return Todo::ProposeLater(acknowledge);
        }
        if self.is_old { Todo::Deliver(question(rows, own, to)) } else { Todo::Nothing }
    }

    /// The other group has said nothing for long: it is asked when there is nothing else to do.
    pub fn doubt(&mut self) {
        self.is_old = true;
    }

    /// Takes in what the other group has said to the last delivery. Whether that brings anything on.
    pub fn hear(&mut self, heard: Heard) -> bool {
        self.is_old = false;
        self.heard.replace(heard) != Some(heard)
    }
}

/// Asks another group who it is.
fn question(rows: &Machine, own: GroupNo, to: GroupNo) -> Delivery {
    Delivery { messages: Vec::new(), ..rows.delivery(own, to, 0) }
}

/// What a group says of itself to group `from`.
pub fn heard(rows: &Machine, from: GroupNo) -> Heard {
    let row = rows.stream(from);
    Heard { incarnation: rows.incarnation(), pair: (row.peer, row.own), received: row.received }
}

/// Whether a delivery has anything that the rows do not know, and can take.
///
/// # Errors
/// Why it can take none of it: that must not get into the log again and again.
pub fn is_news(rows: &Machine, delivery: &Delivery) -> Result<bool, String> {
    let (row, own) = (rows.stream(delivery.from), rows.incarnation());
    if delivery.to_incarnation != own || (row.own == own && delivery.from_incarnation < row.peer) {
        return Ok(false);
    }
    if (row.peer, row.own) != (delivery.from_incarnation, own) || !row.met || row.received == 0 {
        return Ok(true);
    }
    let end = delivery.first + delivery.messages.len() as u64;
    if end <= row.received || delivery.first > row.received {
        return Ok(false);
    }
    if rows.dead_letters_count() >= DEAD_LETTERS_MAX {
        return Err(format!(
            "the group has {DEAD_LETTERS_MAX} dead letters and takes in no messages until some are resolved"
        ));
    }
    if !delivery.follows(row.received, row.received_chain) {
        return Err(format!(
            "message {} of group {} is not what came before: the streams of the two have parted, report this",
            row.received, delivery.from
        ));
    }
    Ok(true)
}
