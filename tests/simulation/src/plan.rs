//! What a seed means: size, pace and load of the cluster, and what goes wrong when.
//!
//! Each seed uses some kinds of faults and leaves others out, so that each kind also meets a cluster that is otherwise
//! well.

use std::fmt;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom as _, SliceRandom as _};
use rand::{Rng as _, SeedableRng as _};

/// Nodes of the cluster.
pub const NODES: u64 = 3;
/// Gateways of the cluster.
pub const GATEWAYS: usize = 2;

/// A host: nodes first, then gateways.
pub type Host = usize;
/// All hosts.
pub const HOSTS: usize = NODES as usize + GATEWAYS;

/// What a crash leaves of what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Nothing.
    Everything,
    /// Some writes, the last one torn.
    Torn(u64),
    /// Some sectors of some writes.
    Scattered(u64),
}

/// How messages do not arrive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cut {
    /// Between these hosts and all others; messages arrive after it, as TCP would bring them.
    Stall(Vec<Host>),
    /// Between these hosts and all others; messages are lost, and with them the connections.
    Lose(Vec<Host>),
    /// From one host to another only; messages are lost.
    OneWay(Host, Host),
    /// On and off, between these hosts and all others.
    Flap(Vec<Host>),
}

/// Something that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// A node dies and comes back.
    Crash {
        /// The node.
        node: u64,
        /// How long it stays away, ms.
        down_ms: u64,
        /// What its disk loses.
        loss: Loss,
    },
    /// All nodes die at once and come back.
    CrashAll {
        /// How long they stay away, ms.
        down_ms: u64,
        /// What their disks lose.
        loss: Loss,
    },
    /// Messages do not arrive.
    Cut {
        /// Which.
        cut: Cut,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// All messages are slow.
    Slow {
        /// At most so long, ms.
        latency_ms: u64,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// A node's clock jumps.
    Clock {
        /// The node.
        node: u64,
        /// By how much, ms.
        by_ms: i64,
    },
    /// A node's log takes long to sync.
    SlowDisk {
        /// The node.
        node: u64,
        /// At most so long, ms.
        sync_ms: u64,
        /// For how long, ms.
        lasts_ms: u64,
    },
    /// A node's next sync fails.
    FailingDisk {
        /// The node.
        node: u64,
    },
    /// A lead is handed over.
    Transfer {
        /// The group.
        group: u32,
        /// To this node.
        to: u64,
    },
    /// A node stores a checkpoint and purges its log.
    Checkpoint {
        /// The node.
        node: u64,
        /// The group.
        group: u32,
    },
    /// A node dies while it stores a checkpoint, which is left unfinished.
    TornCheckpoint {
        /// The node.
        node: u64,
        /// The group.
        group: u32,
    },
    /// A node dies, and a part of a checkpoint is gone when it comes back.
    DamagedCheckpoint {
        /// The node.
        node: u64,
        /// The group.
        group: u32,
    },
    /// All row actors of a group die on one node.
    Actors {
        /// The node.
        node: u64,
        /// The group.
        group: u32,
    },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

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
    /// Faults by their time after the beginning, ms; in order.
    pub faults: Vec<(u64, Fault)>,
    /// A node that is gone for good when everything else is healed.
    pub gone: Option<u64>,
}

const KINDS: usize = 12;

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
            faults: Vec::new(),
            gone: None,
        };
        // Every twentieth seed shows how all is well.
        if seed % 20 == 19 {
            return plan;
        }
        let enabled: Vec<usize> = (0..KINDS).filter(|_| random.random_bool(0.45)).collect();
        if enabled.is_empty() {
            return plan;
        }
        let count = random.random_range(3..=14);
        let mut damaged = false;
        let mut network_free_ms = 0;
        for _ in 0..count {
            let at_ms = random.random_range(0..lasts_ms);
            let kind = *enabled.choose(&mut random).unwrap_or(&0);
            let fault = plan.fault(kind, &mut random);
            damaged |= matches!(fault, Fault::DamagedCheckpoint { .. });
            if matches!(fault, Fault::DamagedCheckpoint { .. })
                && plan.faults.iter().any(|(_, other)| matches!(other, Fault::DamagedCheckpoint { .. }))
            {
                // A second damaged replica could leave no majority.
                continue;
            }
            plan.faults.push((at_ms, fault));
        }
        plan.faults.sort_by_key(|(at_ms, _)| *at_ms);
        // One cut at a time: turmoil knows one state per link.
        plan.faults.retain_mut(|(at_ms, fault)| match fault {
            Fault::Cut { lasts_ms, .. } | Fault::Slow { lasts_ms, .. } => {
                let free = *at_ms >= network_free_ms;
                if free {
                    network_free_ms = *at_ms + *lasts_ms + 10;
                }
                free
            }
            _ => true,
        });
        if !damaged && random.random_bool(0.25) {
            plan.gone = Some(random.random_range(1..=NODES));
        }
        plan
    }

    fn fault(&self, kind: usize, random: &mut StdRng) -> Fault {
        let node = random.random_range(1..=NODES);
        let group = random.random_range(1..=self.regions);
        let loss = match random.random_range(0..3) {
            0 => Loss::Everything,
            1 => Loss::Torn(random.random()),
            _ => Loss::Scattered(random.random()),
        };
        let lasts_ms = random.random_range(300..=3_000);
        match kind {
            0 => Fault::Crash { node, down_ms: random.random_range(50..=2_500), loss },
            1 => Fault::CrashAll { down_ms: random.random_range(50..=800), loss },
            2 => Fault::Cut { cut: Cut::Stall(side(random)), lasts_ms },
            3 => Fault::Cut { cut: Cut::Lose(side(random)), lasts_ms },
            4 => {
                let mut hosts: Vec<Host> = (0..HOSTS).collect();
                hosts.shuffle(random);
                let cut = match random.random_bool(0.5) {
                    true => Cut::OneWay(hosts[0], hosts[1]),
                    false => Cut::Flap(side(random)),
                };
                Fault::Cut { cut, lasts_ms }
            }
            // A pause: nothing reaches the node and nothing leaves it for a while.
            5 => Fault::Cut { cut: Cut::Stall(vec![node as usize - 1]), lasts_ms },
            6 => {
                let far = *[300, 5_000, 3_600_000].choose(random).unwrap_or(&300);
                let by_ms = if random.random_bool(0.5) { far } else { -far };
                Fault::Clock { node, by_ms }
            }
            7 if random.random_bool(0.7) => {
                Fault::SlowDisk { node, sync_ms: random.random_range(20..=250), lasts_ms }
            }
            7 => Fault::FailingDisk { node },
            8 => Fault::Transfer { group, to: node },
            9 => match random.random_range(0..6) {
                0 => Fault::DamagedCheckpoint { node, group },
                1 => Fault::TornCheckpoint { node, group },
                _ => Fault::Checkpoint { node, group },
            },
            10 => Fault::Actors { node, group },
            _ => Fault::Slow { latency_ms: random.random_range(20..=120), lasts_ms },
        }
    }
}

/// One side of a cut: some hosts, not all, so that gateways find themselves on either side.
fn side(random: &mut StdRng) -> Vec<Host> {
    if random.random_bool(0.4) {
        // A node that leads something, and a gateway that believes in it.
        let gateway = NODES as usize + random.random_range(0..GATEWAYS);
        return vec![random.random_range(0..NODES as usize), gateway];
    }
    let mut hosts: Vec<Host> = (0..HOSTS).filter(|_| random.random_bool(0.4)).collect();
    if hosts.is_empty() || hosts.len() == HOSTS {
        hosts = vec![random.random_range(0..NODES as usize)];
    }
    hosts
}
