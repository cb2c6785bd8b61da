//! What a seed means: size, pace and load of the cluster, and what goes wrong when.
//!
//! Each seed uses some kinds of faults and leaves others out, so that each kind also meets a cluster that is otherwise
//! well. A plan never takes a majority away for good. **Never here:** how a fault is carried out.

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

use crate::fault::{Cut, Fault, Host, Loss, Slot};

/// A clock that is off by no more is near, ms.
const CLOCK_NEAR_MS: u64 = 300;
/// How far a clock jumps whose node is then left alone with it, ms.
const FAST_MS: i64 = 600_000;
/// Nodes of the cluster when it begins.
pub const NODES: u64 = 3;
/// Gateways of the cluster.
pub const GATEWAYS: usize = 2;

/// What a seed means.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// Regions, each with a group.
    pub regions: u32,
    /// Clients at each gateway.
    pub clients: usize,
    /// Longest pause of a client between two calls, ms.
    pub pause_ms: u64,
    /// Longest way of a message, ms.
    pub latency_ms: u64,
    /// Longest sync of a log, µs.
    pub sync_us: u64,
    /// How long the faults go on, ms.
    pub lasts_ms: u64,
    /// Gateways let in so few calls at once that some wait and some are refused.
    pub narrow: bool,
    /// Faults by their time after the beginning, ms; in order.
    pub faults: Vec<(u64, Fault)>,
    /// Whose node is gone for good when everything else is healed.
    pub gone: Option<Slot>,
}

/// A kind of faults that a seed uses or leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Crash,
    CrashAll,
    CrashGateway,
    Stall,
    Lose,
    OddCut,
    Pause,
    Connections,
    Slow,
    Clock,
    FastClock,
    Disk,
    OldState,
    Transfer,
    Checkpoint,
    Actors,
    Members,
    Disaster,
    Restore,
    Poison,
}

impl Kind {
    const ALL: [Self; 20] = [
        Self::Crash,
        Self::CrashAll,
        Self::CrashGateway,
        Self::Stall,
        Self::Lose,
        Self::OddCut,
        Self::Pause,
        Self::Connections,
        Self::Slow,
        Self::Clock,
        Self::FastClock,
        Self::Disk,
        Self::OldState,
        Self::Transfer,
        Self::Checkpoint,
        Self::Actors,
        Self::Members,
        Self::Disaster,
        Self::Restore,
        Self::Poison,
    ];

    /// How many seeds use it.
    fn share(self) -> f64 {
        match self {
            // Ends one of two or three groups: most seeds need them all.
            Self::Poison | Self::Disaster | Self::Restore | Self::FastClock => 0.15,
            Self::Members | Self::CrashGateway | Self::Connections | Self::OldState => 0.3,
            _ => 0.45,
        }
    }
}

impl Plan {
    /// The plan of a seed.
    pub fn new(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed ^ 0x7469_6465_7761_6c6c);
        let regions = random.random_range(2..=3);
        let lasts_ms = random.random_range(5_000..=9_000);
        let mut plan = Self {
            seed,
            regions,
            clients: random.random_range(2..=6),
            pause_ms: *[15, 40, 120].choose(&mut random).unwrap_or(&40),
            latency_ms: *[2, 5, 15].choose(&mut random).unwrap_or(&5),
            sync_us: *[300, 2_000, 12_000].choose(&mut random).unwrap_or(&2_000),
            lasts_ms,
            narrow: random.random_bool(0.25),
            faults: Vec::new(),
            gone: None,
        };
        // Every twentieth seed shows how all is well.
        if seed % 20 == 19 {
            return plan;
        }
        let mut enabled = Kind::ALL.to_vec();
        enabled.retain(|kind| random.random_bool(kind.share()));
        let poisoned = enabled.contains(&Kind::Poison);
        let fast = enabled.contains(&Kind::FastClock);
        // A group that has halted for good takes in no new members, so that no change would ever be done, and no files.
        enabled.retain(|kind| !(poisoned && matches!(kind, Kind::Members | Kind::Disaster | Kind::Restore)));
        let Some(kind) = enabled.choose(&mut random).copied() else { return plan };
        let count = random.random_range(3..=14);
        for number in 0..count {
            let at_ms = random.random_range(0..lasts_ms);
            let kind = match number {
                // What is rare happens for certain where it is enabled, and early enough to matter.
                0 if poisoned => Kind::Poison,
                1 if fast => Kind::FastClock,
                0 => kind,
                _ => *enabled.choose(&mut random).unwrap_or(&kind),
            };
            let fault = plan.fault(kind, &mut random);
            plan.faults.push((at_ms, fault));
        }
        plan.faults.sort_by_key(|(at_ms, _)| *at_ms);
        plan.keep_majorities();
        plan.go_back_once();
        plan.keep_most_clocks();
        plan.leave_alone(&mut random);
        plan.one_cut_at_a_time();
        plan.send_garbage();
        let damaged = plan.faults.iter().any(|(_, fault)| matches!(fault, Fault::DamagedCheckpoint { .. }));
        if !damaged && random.random_bool(0.25) {
            plan.gone = Some(random.random_range(1..=NODES));
        }
        plan
    }

    /// In one seed of four a group gets messages that it cannot carry out, where none is halted or goes back: what an operator does
    /// about them must stay done.
    fn send_garbage(&mut self) {
        let ends = |fault: &Fault| {
            matches!(fault, Fault::Poison { .. } | Fault::Disaster { .. } | Fault::Restore { .. })
        };
        if self.seed.is_multiple_of(4) && !self.faults.iter().any(|(_, fault)| ends(fault)) {
            let group = 1 + (self.seed / 4) as u32 % self.regions;
            self.faults.push((self.lasts_ms / 3, Fault::Garbage { group }));
            self.faults.sort_by_key(|(at_ms, _)| *at_ms);
        }
    }

    /// Leaves out what would end a replica for good where another one may have ended already.
    fn keep_majorities(&mut self) {
        let (mut damaged, mut poisoned) = (false, false);
        self.faults.retain_mut(|(_, fault)| match fault {
            Fault::DamagedCheckpoint { .. } => !std::mem::replace(&mut damaged, true),
            Fault::Poison { .. } => !std::mem::replace(&mut poisoned, true),
            _ => true,
        });
        for (_, fault) in &mut self.faults {
            if let Fault::ReplaceNode { dead, .. } = fault {
                *dead &= !damaged;
            }
        }
    }

    /// Lets a cluster be brought back to an earlier state once, and keeps away what would leave nobody who knows the last one, or
    /// correct its time meanwhile.
    fn go_back_once(&mut self) {
        let goes_back = |fault: &Fault| matches!(fault, Fault::Disaster { .. } | Fault::Restore { .. });
        if !self.faults.iter().any(|(_, fault)| goes_back(fault)) {
            return;
        }
        let mut back = false;
        self.faults.retain(|(_, fault)| match fault {
            fault if goes_back(fault) => !std::mem::replace(&mut back, true),
            Fault::Clock { by_ms, .. } => by_ms.unsigned_abs() <= CLOCK_NEAR_MS,
            Fault::DamagedCheckpoint { .. } | Fault::OldState { .. } | Fault::Twin { .. } => false,
            _ => true,
        });
    }

    /// Lets a node whose clock has jumped ahead start again with leads, while nobody can compare clocks with it but one that
    /// starts as well.
    fn leave_alone(&mut self, random: &mut StdRng) {
        let fast = self.faults.iter().filter_map(|(at_ms, fault)| match fault {
            Fault::Clock { node, by_ms: FAST_MS } => Some((*at_ms, *node)),
            _ => None,
        });
        for (at_ms, node) in fast.collect::<Vec<_>>() {
            let others: Vec<Slot> = (1..=NODES).filter(|other| *other != node).collect();
            let crash = |node, down_ms| Fault::Crash { node, down_ms, loss: Loss::Everything };
            self.faults.extend([
                (at_ms + 20, crash(others[0], 2_500)),
                (at_ms + 20, crash(others[1], 500)),
                (at_ms + 20, crash(node, 50)),
            ]);
            for group in 1..=self.regions {
                let at_ms = at_ms + random.random_range(1_600..=2_000);
                self.faults.push((at_ms, Fault::Transfer { group, to: node }));
            }
        }
        self.faults.sort_by_key(|(at_ms, _)| *at_ms);
    }

    /// Lets only one node's clock be far off: what most clocks say is the time.
    fn keep_most_clocks(&mut self) {
        let mut far = None;
        for (_, fault) in &mut self.faults {
            if let Fault::Clock { node, by_ms } = fault
                && by_ms.unsigned_abs() > CLOCK_NEAR_MS
            {
                *node = *far.get_or_insert(*node);
            }
        }
    }

    /// Leaves cuts out that overlap with others: the network knows one state per link.
    fn one_cut_at_a_time(&mut self) {
        let mut free_ms = 0;
        self.faults.retain(|(at_ms, fault)| match fault {
            Fault::Cut { lasts_ms, .. }
            | Fault::Slow { lasts_ms, .. }
            | Fault::LoseMessages { lasts_ms, .. } => {
                let free = *at_ms >= free_ms;
                if free {
                    free_ms = *at_ms + *lasts_ms + 10;
                }
                free
            }
            _ => true,
        });
    }

    fn fault(&self, kind: Kind, random: &mut StdRng) -> Fault {
        let node = random.random_range(1..=NODES);
        let group = random.random_range(1..=self.regions);
        let loss = match random.random_range(0..3) {
            0 => Loss::Everything,
            1 => Loss::Torn(random.random()),
            _ => Loss::Scattered(random.random()),
        };
        let lasts_ms = random.random_range(300..=3_000);
        match kind {
            Kind::Crash => Fault::Crash { node, down_ms: random.random_range(50..=2_500), loss },
            Kind::CrashAll => Fault::CrashAll { down_ms: random.random_range(50..=800), loss },
            Kind::CrashGateway => Fault::CrashGateway {
                gateway: random.random_range(1..=GATEWAYS),
                down_ms: random.random_range(50..=2_000),
            },
            Kind::Stall => Fault::Cut { cut: Cut::Stall(side(random)), lasts_ms },
            Kind::Lose => Fault::Cut { cut: Cut::Lose(side(random)), lasts_ms },
            Kind::OddCut => {
                let (one, other) = two(random);
                let cut = match random.random_bool(0.5) {
                    true => Cut::OneWay(one, other),
                    false => Cut::Flap(side(random)),
                };
                Fault::Cut { cut, lasts_ms }
            }
            // Nothing reaches the node and nothing leaves it for a while.
            Kind::Pause => Fault::Cut { cut: Cut::Stall(vec![Host::Node(node)]), lasts_ms },
            Kind::Connections => {
                let (one, other) = two(random);
                match random.random_range(0..4) {
                    0 => Fault::LoseMessages { from: one, to: other, lasts_ms: random.random_range(1..=8) },
                    1 => {
                        let gateway = Host::Gateway(random.random_range(1..=GATEWAYS));
                        Fault::Reset { one: gateway, other: gateway }
                    }
                    _ => Fault::Reset { one, other },
                }
            }
            Kind::Slow => Fault::Slow { latency_ms: random.random_range(20..=120), lasts_ms },
            Kind::Clock => {
                let near = CLOCK_NEAR_MS as i64;
                let far = *[near, 5_000, 3_600_000].choose(random).unwrap_or(&near);
                let by_ms = if random.random_bool(0.5) { far } else { -far };
                Fault::Clock { node, by_ms }
            }
            Kind::FastClock => Fault::Clock { node, by_ms: FAST_MS },
            Kind::Disk if random.random_bool(0.7) => {
                Fault::SlowDisk { node, sync_ms: random.random_range(20..=250), lasts_ms }
            }
            Kind::Disk => Fault::FailingDisk { node },
            Kind::OldState if random.random_bool(0.4) => Fault::Twin { node },
            Kind::OldState => Fault::OldState { node, older_ms: random.random_range(1_500..=4_000) },
            Kind::Transfer => Fault::Transfer { group, to: node },
            Kind::Checkpoint => match random.random_range(0..6) {
                0 | 1 => Fault::DamagedCheckpoint { node, group },
                2 => Fault::TornCheckpoint { node, group },
                _ => Fault::Checkpoint { node, group },
            },
            Kind::Actors if random.random_bool(0.3) => Fault::Proposer { group },
            Kind::Actors => Fault::Actors { group },
            Kind::Members => match random.random_range(0..4) {
                0 => Fault::AddNode,
                1 => Fault::RemoveNode { node },
                _ => Fault::ReplaceNode { node, dead: random.random_bool(0.5) },
            },
            Kind::Disaster => Fault::Disaster { survivor: node, after_ms: random.random_range(200..=2_500) },
            Kind::Restore => Fault::Restore { group, older_ms: random.random_range(100..=3_000) },
            Kind::Poison => Fault::Poison { group },
        }
    }
}

/// The hosts that a plan knows of.
fn hosts() -> Vec<Host> {
    (1..=NODES).map(Host::Node).chain((1..=GATEWAYS).map(Host::Gateway)).collect()
}

/// Two different hosts.
fn two(random: &mut StdRng) -> (Host, Host) {
    let mut hosts = hosts();
    hosts.shuffle(random);
    (hosts[0], hosts[1])
}

/// One side of a cut: some hosts, not all, so that gateways find themselves on either side.
fn side(random: &mut StdRng) -> Vec<Host> {
    let node = |random: &mut StdRng| Host::Node(random.random_range(1..=NODES));
    if random.random_bool(0.4) {
        // A node that leads something, and a gateway that believes in it.
        return vec![node(random), Host::Gateway(random.random_range(1..=GATEWAYS))];
    }
    let all = hosts();
    let side: Vec<Host> = all.iter().copied().filter(|_| random.random_bool(0.4)).collect();
    if side.is_empty() || side.len() == all.len() { vec![node(random)] } else { side }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_plan_ends_a_majority_and_every_kind_is_planned() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..500 {
            let plan = Plan::new(seed);
            let count =
                |wanted: fn(&Fault) -> bool| plan.faults.iter().filter(|(_, fault)| wanted(fault)).count();
            let damaged = count(|fault| matches!(fault, Fault::DamagedCheckpoint { .. }));
            let poisoned = count(|fault| matches!(fault, Fault::Poison { .. }));
            let dead = count(|fault| matches!(fault, Fault::ReplaceNode { dead: true, .. }));
            assert!(damaged <= 1 && poisoned <= 1, "seed {seed}");
            let back = count(|fault| matches!(fault, Fault::Disaster { .. } | Fault::Restore { .. }));
            assert!(back == 0 || (back == 1 && damaged == 0 && poisoned == 0), "seed {seed}");
            assert!(damaged == 0 || (dead == 0 && plan.gone.is_none()), "seed {seed}");
            assert!(poisoned == 0 || count(Fault::changes_members) == 0, "seed {seed}");
            kinds.extend(plan.faults.iter().map(|(_, fault)| fault.kind()));
        }
        assert_eq!(kinds.len(), 25, "{kinds:?}");
    }
}
