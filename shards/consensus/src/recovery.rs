//! Forced recovery: one surviving replica of a group that has lost its majority goes on alone, as a new incarnation.
//!
//! Everything in the survivor's log is kept, also what it does not know to be committed: the lost leader may have
//! acknowledged it. What only the others had is lost. The order of the writes makes a crash at any moment
//! harmless: the new state is a checkpoint first, and only then the log is emptied up to it. This runs before
//! the group is started, never beside it.

use std::collections::BTreeMap;

use openraft::EntryPayload;
use openraft::impls::BasicNode;
use tidewall_machine::{Machine, Position};
use tidewall_mutant::{Mutant, active};
use tidewall_store::checkpoint::{CheckpointError, CheckpointStore};
use tidewall_store::log::{GroupLog, LogError, Vote};

use crate::convert::*;
use crate::types::Membership;

/// Bytes of the log that are applied at a time.
const BYTES_AT_A_TIME: usize = 4 << 20;

/// Why a recovery was not carried out. Nothing but the checkpoint may have changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoveryError {
    /// The log cannot be read or written.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The checkpoint cannot be written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The survivor's log or rows cannot be used.
    #[error("{0}")]
    Unusable(String),
}

/// What is to be recovered, and to what.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// The group.
    pub group: u32,
    /// The survivor: this node.
    pub node: u64,
    /// Its peer address.
    pub address: String,
    /// The incarnation that begins; a machine that has it was recovered before a crash.
    pub incarnation: u64,
}

/// Lets this replica go on alone: applies its whole log, begins the new incarnation with itself as the only voter, stores
/// that, and empties the log. May be repeated after a crash.
///
/// # Errors
/// See [`RecoveryError`].
pub fn recover(
    recovery: &Recovery,
    log: &GroupLog,
    store: &mut dyn CheckpointStore,
    mut machine: Machine,
) -> Result<Machine, RecoveryError> {
    if machine.incarnation() < recovery.incarnation {
        if !active(Mutant::RecoveryDropsLog) {
            apply_log(log, &mut machine)?;
        }
        let last = machine.head().applied.ok_or_else(|| {
            RecoveryError::Unusable(format!(
                "the replica of group {} on node {} has never received anything: it cannot be the survivor",
                recovery.group, recovery.node
            ))
        })?;
        let voted = log.state().vote.map_or(0, |vote| vote.term);
        // A term of its own: nothing that the lost members still have can look like its continuation.
        let position =
            Position { term: last.term.max(voted) + 1, node: recovery.node, index: last.index + 1 };
        let nodes = BTreeMap::from([(recovery.node, BasicNode::new(&recovery.address))]);
        let alone = Membership::new(vec![[recovery.node].into()], nodes)
            .map_err(|error| RecoveryError::Unusable(error.to_string()))?;
        let stored = encode_stored_membership(&from_position(position), &alone);
        machine.begin_incarnation(position, stored, recovery.incarnation);
        store.write(recovery.group, &machine.freeze_all())?;
        store.verify()?;
    }
    let Some(at) = machine.head().applied else {
        return Err(RecoveryError::Unusable(format!("the rows of group {} have no place", recovery.group)));
    };
    let position = log_position(&from_position(at));
    // A log that reaches this place was emptied before, and may have grown since.
    let first = log.state().last.is_none_or(|last| last.index < position.index);
    if first {
        // The vote before the log: a log that ends in a term above the vote would be one that nobody led.
        let term = at.term.max(log.state().vote.map_or(0, |vote| vote.term));
        durable(|done| log.save_vote(Vote { term, node: at.node, committed: false }, done))?;
        durable(|done| log.reset_to(position, done))?;
    }
    tracing::warn!(
        group = recovery.group,
        incarnation = machine.incarnation(),
        index = at.index,
        "forced recovery: this replica goes on alone"
    );
    Ok(machine)
}

fn durable(change: impl FnOnce(tidewall_store::log::Done)) -> Result<(), LogError> {
    let (sender, receiver) = std::sync::mpsc::channel();
    change(Box::new(move |result| {
        // The receiver waits below, whatever happens.
        let _ = sender.send(result);
    }));
    receiver.recv().unwrap_or(Err(LogError::Closed))
}

/// Applies what the log has beyond the rows.
fn apply_log(log: &GroupLog, machine: &mut Machine) -> Result<(), RecoveryError> {
    loop {
        let next = machine.head().applied.map_or(0, |at| at.index + 1);
        let entries = log.read(next, u64::MAX, BYTES_AT_A_TIME)?;
        if entries.is_empty() {
            return Ok(());
        }
        for entry in entries {
            let id = from_log_position(entry.position);
            let unusable = |what: String| RecoveryError::Unusable(what);
            let entry = decode_entry(id, entry.payload)
                .map_err(|error| unusable(undecodable(&id, &error).to_string()))?;
            let at = position(&id);
            let applied = match &entry.payload {
                EntryPayload::Normal(payload) => machine.apply(at, &payload.0[1..]).map(drop),
                EntryPayload::Blank => machine.apply_other(at, None),
                EntryPayload::Membership(membership) => {
                    machine.apply_other(at, Some(encode_stored_membership(&id, membership)))
                }
            };
            applied.map_err(|error| unusable(error.to_string()))?;
        }
    }
}
