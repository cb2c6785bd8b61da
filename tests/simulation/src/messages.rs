//! What groups have told each other: in the end all of it has arrived, once and as it was said, and an e-mail has one account in all
//! regions. Looks at rows of replicas, and changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidewall_consensus::StateHandle;
use tidewall_machine::Machine;
use tidewall_machine::domain::accounts::State;
use tidewall_machine::domain::accounts::model::Kept;
use tidewall_machine::streams::DeadRow;

use crate::clerk::NOBODY;
use crate::node::SimNode;

/// The furthest replica of each group that has not halted.
fn furthest(sim_nodes: &[Rc<SimNode>]) -> BTreeMap<u32, StateHandle> {
    let mut found: BTreeMap<u32, (u64, StateHandle)> = BTreeMap::new();
    for sim_node in sim_nodes {
        let life = sim_node.life.borrow();
        for (group, rows) in life.iter().flat_map(|life| &life.rows) {
            let index = rows.read(Machine::applied_index);
            if rows.halted().is_none() && found.get(group).is_none_or(|(known, _)| *known < index) {
                found.insert(*group, (index, rows.clone()));
            }
        }
    }
    found.into_iter().map(|(group, (_, rows))| (group, rows)).collect()
}

/// What is on its way between groups, or has gone astray. Nobody tells anything to those that have halted.
pub fn on_their_way(sim_nodes: &[Rc<SimNode>], halted: &BTreeSet<u32>) -> Vec<String> {
    let rows = furthest(sim_nodes);
    let mut found = Vec::new();
    for (from, sender) in rows.iter().filter(|(group, _)| !halted.contains(group)) {
        let streams: Vec<_> = sender.read(|machine| {
            let told =
                |(to, row)| (to, row, machine.delivery(*from, to, u64::MAX).chain, machine.incarnation());
            machine.streams().map(|(to, row)| told((to, row.clone()))).collect()
        });
        for (to, row, chain, incarnation) in streams {
            let Some(receiver) = rows.get(&to).filter(|_| !halted.contains(&to)) else { continue };
            let (theirs, their_incarnation) =
                receiver.read(|machine| (machine.stream(*from), machine.incarnation()));
            if row.reconcile.is_some() || row.queued() > 0 || row.open > 0 || !row.met {
                found.push(format!("group {from} has not done with group {to}: {row:?}"));
            }
            if (row.own, row.peer, theirs.own, theirs.peer)
                != (incarnation, their_incarnation, their_incarnation, incarnation)
            {
                found.push(format!("groups {from} and {to} do not know each other: {row:?}, {theirs:?}"));
            } else if (theirs.received, theirs.received_chain) != (row.next, chain)
                && (theirs.received, row.next) != (0, row.origin)
            {
                found.push(format!("group {to} has not what group {from} has told it: {row:?}, {theirs:?}"));
            }
        }
    }
    found
}

/// How much was set aside because an invariant would have been broken.
pub fn faulted(machine: &Machine) -> u64 {
    let counts = |row: &DeadRow| !row.waits && row.from != NOBODY && !row.reason.starts_with("A5");
    let letters = machine.dead_letters(&(0, 0, 0)).filter(|(_, row)| counts(row));
    letters.count() as u64
}

/// Why messages were set aside that nothing explains.
pub fn dead_letters(machine: &Machine, went_back: bool) -> Option<String> {
    let letters = machine.dead_letters(&(0, 0, 0)).filter(|(_, row)| !row.waits && row.from != NOBODY);
    let reasons: Vec<&str> = letters.map(|(_, row)| row.reason.as_str()).collect();
    // A keeper that went back may have given an e-mail away twice: then somebody must be told.
    let explained = |reason: &&&str| went_back && reason.starts_with("A5");
    reasons.iter().find(|reason| !explained(reason)).map(|reason| (*reason).to_owned())
}

/// Claims of e-mails that are kept for nobody.
pub fn stray_claims(sim_nodes: &[Rc<SimNode>], halted: &BTreeSet<u32>) -> Vec<String> {
    let groups = furthest(sim_nodes);
    let mut found = Vec::new();
    for (keeper, rows) in groups.iter().filter(|(group, _)| !halted.contains(group)) {
        let kept: Vec<_> = rows.read(|machine| {
            let kept = machine.rows_of::<State>().into_iter().flat_map(State::kept);
            kept.map(|(email, row)| (*email, *row)).collect()
        });
        for (email, row) in kept {
            let Some(home) = groups.get(&row.owner).filter(|_| !halted.contains(&row.owner)) else {
                continue;
            };
            let owner = home.read(|machine| {
                machine.rows_of::<State>().and_then(|state| state.account_by_claim(&email, *keeper, row.id))
            });
            if owner.is_none() || row.kept != Kept::Confirmed {
                found.push(format!(
                    "group {keeper} keeps an e-mail for nobody in group {}: {row:?}",
                    row.owner
                ));
            }
        }
    }
    for (home, rows) in groups.iter().filter(|(group, _)| !halted.contains(group)) {
        let claimed: Vec<_> = rows.read(|machine| {
            let all = machine.rows_of::<State>().into_iter().flat_map(State::all);
            all.filter_map(|(account, row, claimed)| Some((account, row.email, *claimed?))).collect()
        });
        for (account, email, claimed) in claimed {
            let Some(keeper) = groups.get(&claimed.keeper).filter(|_| !halted.contains(&claimed.keeper))
            else {
                continue;
            };
            let keeps = keeper.read(|machine| {
                let mut kept = machine.rows_of::<State>().into_iter().flat_map(State::kept);
                kept.any(|(of, row)| (*of, row.owner, row.id) == (email, *home, claimed.id))
            });
            if !keeps {
                found.push(format!(
                    "group {} has lost the claim of account {account} of group {home}",
                    claimed.keeper
                ));
            }
        }
    }
    found
}

/// E-mails that have several accounts.
pub fn shared_emails(sim_nodes: &[Rc<SimNode>]) -> Vec<String> {
    let mut owners: BTreeMap<[u8; 32], Vec<String>> = BTreeMap::new();
    for (group, rows) in furthest(sim_nodes) {
        rows.read(|machine| {
            for (account, row, _) in machine.rows_of::<State>().into_iter().flat_map(State::all) {
                owners.entry(row.email).or_default().push(format!("account {account} of group {group}"));
            }
        });
    }
    owners.into_values().filter(|of| of.len() > 1).map(|of| of.join(" and ")).collect()
}
