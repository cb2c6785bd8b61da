//! The scenarios: what is done to a cluster, in what order, and what is expected of it meanwhile. A scenario decides when
//! and whom; how harm is done is the driver's business, and whether promises were kept is the checkers'.

mod clock;
mod damage;
mod disk;
mod kill;
mod network;
mod planned;

use crate::ChaosError;
use crate::driver::Driver;
use crate::driver::local::Features;
use crate::figures::{Figure, Measured, quantile};
use crate::stage::Stage;

/// What can be done to a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    /// SIGKILL of a node that leads.
    LeaderKill,
    /// Planned transfer of a region's lead.
    Transfer,
    /// SIGTERM and restart of each node in turn.
    DrainRestart,
    /// SIGSTOP of a node that leads, for 0.2 to 30 s.
    LeaderPause,
    /// Lost packets: several shapes in turn.
    Partition,
    /// SIGKILL of everything.
    ClusterKill,
    /// Flipped bits and torn tails in the files of one node.
    Damage,
    /// All disks full alike.
    DiskFull,
    /// Writes or syncs of one node fail.
    StorageError,
    /// An older build and this one mixed.
    Upgrade,
    /// A wrong clock on one node.
    ClockSkew,
}

/// So many calls may be sent again in a run in which nobody kills gateways.
const RESENT_MAX: f64 = 8.0;

impl Scenario {
    /// All of them, in the order of the documentation.
    pub const ALL: [Self; 11] = [
        Self::LeaderKill,
        Self::Transfer,
        Self::DrainRestart,
        Self::LeaderPause,
        Self::Partition,
        Self::ClusterKill,
        Self::Damage,
        Self::DiskFull,
        Self::StorageError,
        Self::Upgrade,
        Self::ClockSkew,
    ];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::LeaderKill => "leader-kill",
            Self::Transfer => "transfer",
            Self::DrainRestart => "drain-restart",
            Self::LeaderPause => "leader-pause",
            Self::Partition => "partition",
            Self::ClusterKill => "cluster-kill",
            Self::Damage => "damage",
            Self::DiskFull => "disk-full",
            Self::StorageError => "storage-error",
            Self::Upgrade => "upgrade",
            Self::ClockSkew => "clock-skew",
        }
    }

    /// What it does, in a line.
    pub fn about(self) -> &'static str {
        match self {
            Self::LeaderKill => "SIGKILL of a node that leads, mid-sale",
            Self::Transfer => "planned transfer of a region's lead",
            Self::DrainRestart => {
                "SIGTERM and restart of each node in turn; a count is a round over all nodes"
            }
            Self::LeaderPause => "SIGSTOP of a node that leads, for 0.2 to 30 s",
            Self::Partition => {
                "lost packets: leader alone, leader without peers, one way out, one way in, flapping"
            }
            Self::ClusterKill => "SIGKILL of all nodes and the gateway, then a start",
            Self::Damage => "a flipped bit in log or checkpoint, or a torn tail, of a node that is down",
            Self::DiskFull => "all disks nearly full, then free again",
            Self::StorageError => "writes or syncs of one node fail, in turn",
            Self::Upgrade => {
                "nodes of an older build replaced one by one; then one of the older build comes back"
            }
            Self::ClockSkew => "the clock of one node goes wrong",
        }
    }

    /// How many faults the table of docs/CHAOS.md asks for.
    pub fn full_count(self) -> u64 {
        match self {
            Self::LeaderKill | Self::LeaderPause => 50,
            Self::Transfer => 500,
            Self::DrainRestart | Self::ClusterKill => 20,
            Self::Partition => 250,
            Self::Damage => 200,
            Self::DiskFull | Self::Upgrade => 5,
            Self::StorageError => 40,
            Self::ClockSkew => 20,
        }
    }

    /// What the cluster must have for it.
    pub fn features(self) -> Features {
        Features {
            network: self == Self::Partition,
            disks: self == Self::DiskFull,
            clocks: self == Self::ClockSkew,
        }
    }

    /// Makes a driver ready for it, before anything runs.
    ///
    /// # Errors
    /// When the driver cannot do what the scenario needs.
    pub fn set_up(self, driver: &mut dyn Driver) -> Result<(), ChaosError> {
        use crate::driver::Ability;
        let needs = match self {
            Self::Partition => Some(Ability::Partition),
            Self::DiskFull => Some(Ability::FillDisk),
            Self::StorageError => Some(Ability::FailStorage),
            Self::ClockSkew => Some(Ability::SkewClock),
            _ => None,
        };
        if let Some(Err(why)) = needs.map(|ability| driver.supports(ability)) {
            return Err(ChaosError::Unsupported { scenario: self.name(), driver: driver.name(), why });
        }
        if self == Self::Upgrade {
            for node in driver.nodes() {
                driver.set_older_build(node, true);
            }
        }
        Ok(())
    }

    /// Does up to `count` faults and returns how many were done: fewer when the cluster is used up and the rest needs a
    /// fresh one.
    ///
    /// # Errors
    /// When the cluster does not recover, or the machine fails.
    pub async fn run(self, stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
        match self {
            Self::LeaderKill => kill::leader(stage, count).await,
            Self::Transfer => planned::transfer(stage, count).await,
            Self::DrainRestart => planned::drain_restart(stage, count).await,
            Self::LeaderPause => kill::pause(stage, count).await,
            Self::Partition => network::partition(stage, count).await,
            Self::ClusterKill => kill::cluster(stage, count).await,
            Self::Damage => damage::damage(stage, count).await,
            Self::DiskFull => disk::full(stage, count).await,
            Self::StorageError => disk::storage_error(stage, count).await,
            Self::Upgrade => planned::upgrade(stage).await,
            Self::ClockSkew => clock::skew(stage, count).await,
        }
    }

    /// The figures of a run, with the targets that this scenario has.
    pub fn figures(self, measured: &Measured) -> Vec<Figure> {
        let mut figures = Vec::new();
        let mut add = |name: &str, value: f64, unit, at_most| {
            figures.push(Figure { name: name.to_owned(), value, unit, at_most });
        };
        let errors_target = match self {
            Self::LeaderKill | Self::Transfer | Self::DrainRestart | Self::Upgrade => Some(0.0),
            _ => None,
        };
        add("client-visible errors at a 10 s deadline", measured.errors as f64, "", errors_target);
        // A gateway renews its connections every 5 to 10 minutes, and a handful of calls may meet that.
        let resent_target = errors_target.map(|_| RESENT_MAX);
        add(
            "calls sent again because their connection was closed",
            measured.resent as f64,
            "",
            resent_target,
        );
        if !measured.next_write_ms.is_empty() {
            let kill = self == Self::LeaderKill;
            add(
                "injection to next acknowledged write, p50",
                quantile(&measured.next_write_ms, 0.5),
                "ms",
                kill.then_some(1_000.0),
            );
            add(
                "injection to next acknowledged write, p99",
                quantile(&measured.next_write_ms, 0.99),
                "ms",
                kill.then_some(2_500.0),
            );
            add(
                "injection to next acknowledged write, max",
                quantile(&measured.next_write_ms, 1.0),
                "ms",
                None,
            );
        }
        if !measured.others_before_ms.is_empty() && !measured.others_after_ms.is_empty() {
            let before = quantile(&measured.others_before_ms, 0.99);
            let after = quantile(&measured.others_after_ms, 0.99);
            add("p99 of regions that were not hit, before", before, "ms", None);
            add("p99 of regions that were not hit, after the first second", after, "ms", None);
            let kill = self == Self::LeaderKill;
            add("ratio of the two", after / before.max(0.001), "x", kill.then_some(1.5));
        }
        if !measured.healed_ms.is_empty() {
            let healed = match self {
                Self::DrainRestart => "restart to all replicas caught up",
                _ => "harm undone to all replicas up and leaders spread",
            };
            add(&format!("{healed}, p50"), quantile(&measured.healed_ms, 0.5), "ms", None);
            add(&format!("{healed}, max"), quantile(&measured.healed_ms, 1.0), "ms", None);
        }
        for (name, values) in &measured.samples {
            let at_most = match (self, name.as_str()) {
                (Self::Transfer, planned::ORDER) => Some(300.0),
                (Self::ClusterKill, kill::ALL_WRITABLE) => Some(10_000.0),
                (Self::Partition, network::LAST_OF_MINORITY) => Some(network::LEASE_MS),
                _ => None,
            };
            add(&format!("{name}, p50"), quantile(values, 0.5), "ms", None);
            add(&format!("{name}, p99"), quantile(values, 0.99), "ms", at_most);
            add(&format!("{name}, max"), quantile(values, 1.0), "ms", None);
        }
        for (name, count) in &measured.counts {
            add(name, *count as f64, "", None);
        }
        figures
    }
}

impl std::str::FromStr for Scenario {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|scenario| scenario.name() == text).ok_or_else(|| {
            let names = Self::ALL.map(Self::name);
            format!("there is no scenario {text:?}: choose from {}", names.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn every_scenario_is_found_by_its_name() {
        for scenario in Scenario::ALL {
            assert_eq!(scenario.name().parse::<Scenario>().unwrap(), scenario);
        }
        assert!("leader".parse::<Scenario>().unwrap_err().contains("leader-kill"));
    }

    #[test]
    fn targets_are_judged() {
        let measured = Measured {
            errors: 1,
            next_write_ms: vec![900.0, 3_000.0],
            others_before_ms: vec![10.0],
            others_after_ms: vec![14.0],
            ..Measured::default()
        };
        let missed: Vec<String> = Scenario::LeaderKill
            .figures(&measured)
            .into_iter()
            .filter(|figure| !figure.met())
            .map(|figure| figure.name)
            .collect();
        assert_eq!(
            missed,
            ["client-visible errors at a 10 s deadline", "injection to next acknowledged write, p99"]
        );
        assert!(Scenario::ClusterKill.figures(&measured).iter().all(Figure::met));
    }
}
