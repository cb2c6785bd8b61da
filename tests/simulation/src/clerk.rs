//! Messages that nobody can carry out, and the operator who looks after them: lists dead letters, replays and drops them, as
//! `tidewall dlq` does, through the product's client. It objects to whatever is told otherwise than it must be.
//!
//! The messages come from a group that there is not, so that nobody else says anything in their stream.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use tidewall_client::{ClientError, ShardClient};
use tidewall_consensus::{Group, Payload};
use tidewall_machine::streams::Message;
use tidewall_machine::{Command, Delivery, Entry, SENDS_MESSAGES, Stamp, SystemCommand};
use tidewall_messages::accounts;
use tidewall_proto::internal::v1 as pb;
use tokio::time::{Instant, sleep};

use crate::node::Ground;
use crate::oracle::Violation;
use crate::world::now_us;

/// A group that there is not.
pub const NOBODY: u32 = 999;
/// What one delivery of it makes commands break: the first letter, and, when that is dropped, the second.
pub const FAULTS: u64 = 2;

const PATIENCE: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// Has the leader of a group take in two messages of one saga that nobody can carry out, and one of another that changes nothing.
pub async fn deliver_garbage(group: Group) {
    loop {
        let (version, ends, incarnation, log_ms) = group.state().read(|machine| {
            let received = machine.stream(NOBODY).received;
            (machine.apply_version(), received > 1, machine.incarnation(), machine.log_time_ms())
        });
        if ends {
            return;
        }
        if version >= SENDS_MESSAGES && group.believes_to_lead() {
            let message = |saga, payload: Vec<u8>| Message { module: accounts::MODULE, saga, payload };
            let nothing =
                accounts::Message::from(accounts::Release { email_hash: vec![0; 32], claim_id: vec![0; 16] });
            let delivery = Delivery {
                from: NOBODY,
                from_incarnation: 1,
                to_incarnation: incarnation,
                origin: 1,
                origin_chain: 0,
                first: 1,
                chain: 0,
                received: 0,
                messages: vec![
                    message(1, vec![0xff]),
                    message(1, vec![0xff]),
                    message(2, prost::Message::encode_to_vec(&nothing)),
                ],
            };
            let commands = vec![Command::system(SystemCommand::Deliver(delivery))];
            // Nobody is told what comes of it; it is seen in the rows.
            let stamp = Stamp::unconfirmed(log_ms);
            let _ = group.propose(Payload::new(&Entry { stamp, commands })).await;
        }
        sleep(AGAIN_AFTER).await;
    }
}

/// Who looks after the dead letters of groups, one after the other.
pub struct Clerk {
    ground: Ground,
    done: RefCell<BTreeSet<u32>>,
}

impl Clerk {
    /// Somebody with nothing to do.
    pub fn new(ground: Ground) -> Self {
        Self { ground, done: RefCell::default() }
    }

    /// Whether something is left to be done.
    pub fn is_busy(&self) -> bool {
        *self.done.borrow() != *self.ground.garbage.borrow()
    }

    /// Works until the simulation ends.
    pub async fn work(&self, shards: Rc<ShardClient>) {
        loop {
            let next = self.ground.garbage.borrow().difference(&self.done.borrow()).next().copied();
            if let Some(group) = next {
                if let Err(what) = self.look_after(&shards, group).await {
                    let what = format!("group {group}: {what}");
                    self.ground.trace.note(now_us(), "clerk", format_args!("VIOLATION dead-letter: {what}"));
                    self.ground.violations.borrow_mut().push(Violation { check: "dead-letter", what });
                }
                self.done.borrow_mut().insert(group);
            }
            sleep(AGAIN_AFTER).await;
        }
    }

    async fn look_after(&self, shards: &ShardClient, group: u32) -> Result<(), String> {
        let letters = loop {
            let letters = list(shards, group).await;
            if !letters.is_empty() {
                break letters;
            }
            sleep(AGAIN_AFTER).await;
        };
        let [first, second] = letters.as_slice() else { return Err(format!("not two letters: {letters:?}")) };
        if (first.waits, first.reason.as_str()) != (false, "the message does not decode")
            || !second.waits
            || (first.from, second.from) != (NOBODY, NOBODY)
        {
            return Err(format!("the letters say something else: {letters:?}"));
        }
        self.refused(shards, group, &second.id, "cannot go first").await?;
        self.refused(shards, group, &first.id, "cannot be carried out").await?;
        self.dropped(shards, group, &first.id).await?;
        let [last] = &list(shards, group).await[..] else {
            return Err("what waited is not left alone".into());
        };
        if last.id != second.id || last.waits {
            return Err(format!("what waited has not been tried: {last:?}"));
        }
        self.dropped(shards, group, &last.id).await?;
        match list(shards, group).await.as_slice() {
            [] => Ok(()),
            letters => Err(format!("what was dropped is there again: {letters:?}")),
        }
    }

    /// A replay that must be refused, with these words.
    async fn refused(&self, shards: &ShardClient, group: u32, id: &str, why: &str) -> Result<(), String> {
        loop {
            match shards.resolve_dead_letter(group, id, false, "clerk", PATIENCE).await {
                Err(ClientError::Invalid(said)) if said.contains(why) => return Ok(()),
                Err(ClientError::Unknown { .. } | ClientError::Unavailable { .. }) => {
                    sleep(AGAIN_AFTER).await
                }
                other => return Err(format!("the replay of {id} is answered {other:?}, not refused: {why}")),
            }
        }
    }

    /// Drops a letter. Who does not hear the answer asks again, and may be told that there is none any more.
    async fn dropped(&self, shards: &ShardClient, group: u32, id: &str) -> Result<(), String> {
        let mut in_doubt = false;
        loop {
            match shards.resolve_dead_letter(group, id, true, "clerk", PATIENCE).await {
                Ok(_) => return Ok(()),
                Err(ClientError::Invalid(said)) if in_doubt && said.contains("no dead letter") => {
                    return Ok(());
                }
                Err(ClientError::Unknown { .. }) => in_doubt = true,
                Err(ClientError::Unavailable { .. }) => {}
                other => return Err(format!("{id} is not dropped: {other:?}")),
            }
            sleep(AGAIN_AFTER).await;
        }
    }
}

/// All dead letters of a group, a page each.
async fn list(shards: &ShardClient, group: u32) -> Vec<pb::DeadLetter> {
    let mut found: Vec<pb::DeadLetter> = Vec::new();
    loop {
        let after = found.last().map(|letter| letter.id.clone()).unwrap_or_default();
        let asked = pb::ListDeadLetters { after, limit: 1, ..Default::default() };
        let query = pb::Query { op: Some(pb::query::Op::DeadLetters(asked)) };
        match shards.query(group, query, Instant::now() + PATIENCE).await.map(|answer| answer.result) {
            Ok(Some(pb::query_result::Result::DeadLetters(page))) => {
                found.extend(page.letters);
                if !page.more {
                    return found;
                }
            }
            _ => sleep(AGAIN_AFTER).await,
        }
    }
}
