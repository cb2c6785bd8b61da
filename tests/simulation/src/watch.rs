//! Looks at all replicas after every step: what must hold at any moment, whatever clients notice.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use tidewall_consensus::Role;

use crate::clerk;
use crate::messages;
use crate::node::SimNode;
use crate::oracle::Violation;

/// Remembers what was seen.
#[derive(Default)]
pub struct Watch {
    /// Digest by group, incarnation and index.
    digests: BTreeMap<(u32, u64, u64), (u128, u64)>,
    /// Group, term and node of every lead so far.
    leads: BTreeSet<(u32, u64, u64)>,
    /// Group and node that was objected to: once is enough.
    told: BTreeSet<(u32, u64)>,
    /// Highest term and index that a replica of each group has reached.
    pub furthest: BTreeMap<u32, (u64, u64)>,
    /// By group and index, the corrections of log time and what it was ahead of steady time afterwards.
    pub rebases: BTreeMap<u32, BTreeMap<u64, i64>>,
}

impl Watch {
    /// Looks at everything once.
    pub fn look(&mut self, at_us: u64, sim_nodes: &[Rc<SimNode>]) -> Vec<Violation> {
        let mut found = Vec::new();
        for sim_node in sim_nodes {
            let life = sim_node.life.borrow();
            let Some(life) = &*life else { continue };
            for (number, group) in &life.groups {
                let mut object = |check, what: String| {
                    if self.told.insert((*number, sim_node.id)) {
                        found.push(Violation {
                            check,
                            what: format!("n{} group {number}: {what}", sim_node.id),
                        });
                    }
                };
                let status = group.status();
                if let Some(why) = &status.fault {
                    // What follows a failed disk is that failure's.
                    if sim_node.failed.lock().is_none() && !sim_node.ground.explains(*number, why) {
                        object("halted", format!("the replica has halted: {why}"));
                    }
                    continue;
                }
                let ((index, digest), incarnation, faults, time, applied) = group.state().read(|machine| {
                    let applied = machine.head().applied;
                    (machine.settled(), machine.incarnation(), machine.faults(), machine.time(), applied)
                });
                // Who has applied nothing has nothing to compare: index 0 is that of a group's first entry.
                let Some(at) = applied else { continue };
                let (term, reached) = self.furthest.entry(*number).or_default();
                (*term, *reached) = ((*term).max(at.term), (*reached).max(at.index));
                if time.rebases > 0 {
                    self.rebases.entry(*number).or_default().insert(time.rebased_at, time.offset_ms);
                }
                let went_back = !sim_node.ground.cuts.borrow().is_empty();
                let (letters, unexplained) = group
                    .state()
                    .read(|machine| (messages::faulted(machine), messages::dead_letters(machine, went_back)));
                let garbage = sim_node.ground.garbage.borrow().contains(number);
                if faults > letters + if garbage { clerk::FAULTS } else { 0 } {
                    object("invariant", format!("{faults} commands would have broken an invariant"));
                }
                if let Some(why) = unexplained {
                    object("dead-letter", format!("a message was set aside: {why}"));
                }
                let (known, by) =
                    *self.digests.entry((*number, incarnation, index)).or_insert((digest, sim_node.id));
                if known != digest {
                    object("digest", format!("at index {index} the rows differ from those of n{by}"));
                }
                // A term may have several leaders one after the other: openraft orders them by (term, node).
                if status.role == Role::Leader && self.leads.insert((*number, status.term, sim_node.id)) {
                    let who = format!("n{}", sim_node.id);
                    sim_node.ground.trace.note(
                        at_us,
                        &who,
                        format_args!("leads group {number} in term {}", status.term),
                    );
                }
            }
        }
        found
    }
}

/// A replica as it is at the moment.
#[derive(Debug)]
pub struct Replica {
    /// Applied index.
    pub index: u64,
    /// A hash over all rows.
    pub rows: u64,
    /// Who votes, as far as it knows.
    pub voters: BTreeSet<u64>,
    /// It has halted.
    pub halted: bool,
}

/// Each replica that runs, or did until it halted, by group and node.
pub fn contents(sim_nodes: &[Rc<SimNode>]) -> BTreeMap<u32, BTreeMap<u64, Replica>> {
    let mut seen: BTreeMap<u32, BTreeMap<u64, Replica>> = BTreeMap::new();
    for sim_node in sim_nodes {
        if let Some(life) = &*sim_node.life.borrow() {
            for (number, state) in &life.rows {
                let (index, rows) = state.read(|machine| {
                    let mut hasher = xxhash_rust::xxh3::Xxh3::new();
                    for page in &machine.freeze_all().pages {
                        hasher.update(&page.table().to_be_bytes());
                        hasher.update(page.page());
                        hasher.update(&page.encode().unwrap_or_default());
                    }
                    (machine.applied_index(), hasher.digest())
                });
                let voters = life.groups.get(number).map(|group| group.members().0).unwrap_or_default();
                let replica = Replica { index, rows, voters, halted: state.halted().is_some() };
                seen.entry(*number).or_default().insert(sim_node.id, replica);
            }
        }
    }
    seen
}
