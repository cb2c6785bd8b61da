//! A cluster of processes on this machine: on the loopback interface (`process`), or each in a network namespace of its
//! own (`netns`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use rustix::process::Signal;
use tidewall_load::Target;
use tokio::process::{Child, Command};

use super::damage::{self, Wound};
use super::disks::Disks;
use super::network::Network;
use super::process::{Process, Spec};
use super::{Ability, Blueprint, Cut, Damage, Driver, Ended, Hosts, Member, Site, StorageFault, tools};
use crate::ChaosError;

/// Nodes of a cluster.
const NODES: u8 = 3;
/// How long a member may take to end in order when everything is taken down.
const END_WITHIN: Duration = Duration::from_secs(5);
/// Where Debian's faketime puts the library for programs with threads.
const FAKETIME: &str = "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1";

/// What the cluster shall have that costs something.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    /// Namespaces, so that members can be cut off.
    pub network: bool,
    /// A small disk for each node.
    pub disks: bool,
    /// Clocks that can be set.
    pub clocks: bool,
}

/// A cluster on this machine.
pub struct LocalDriver {
    // The order of the fields is the order of dropping: processes before what they use.
    processes: BTreeMap<Member, Process>,
    tracers: Vec<Child>,
    disks: Option<Disks>,
    network: Option<Network>,
    clocks: bool,
    blueprint: Blueprint,
    older: BTreeSet<u64>,
    wounds: BTreeMap<u64, Wound>,
}

impl LocalDriver {
    /// Says what is missing for these features.
    ///
    /// # Errors
    /// What, and what to do.
    pub fn possible(features: Features) -> Result<(), String> {
        if features.network {
            Network::possible()?;
        }
        if features.disks && !tools::is_root() {
            return Err("small disks are mounted, which needs root: run it as root".into());
        }
        if features.clocks && !Path::new(FAKETIME).exists() {
            return Err(format!("{FAKETIME} is missing: `apt-get install faketime`"));
        }
        Ok(())
    }

    /// Lays a cluster out in a new directory. Nothing runs yet.
    ///
    /// # Errors
    /// When the machine does not allow it.
    pub async fn new(site: &Site, root: &Path, features: Features) -> Result<Self, ChaosError> {
        let network = if features.network { Some(Network::new(NODES).await?) } else { None };
        let mut hosts = Hosts::default();
        if let Some(network) = &network {
            hosts.nodes =
                (1..=u64::from(NODES)).filter_map(|id| network.address_of(Member::Node(id))).collect();
            hosts.gateways =
                (1..=u64::from(NODES) + 1).filter_map(|id| network.address_of(Member::Gateway(id))).collect();
        }
        let mut blueprint = site.prepare(root, &hosts)?;
        let disks = if features.disks {
            let mut disks = Disks::default();
            for node in &mut blueprint.nodes {
                let at = blueprint.root.join(format!("disk-{}", node.id));
                disks.mount(node.id, &at).await?;
                node.directory = at.join(format!("node-{}", node.id));
            }
            Some(disks)
        } else {
            None
        };
        let driver = Self {
            processes: BTreeMap::new(),
            tracers: Vec::new(),
            disks,
            network,
            clocks: features.clocks,
            blueprint,
            older: BTreeSet::new(),
            wounds: BTreeMap::new(),
        };
        let logs = driver.logs();
        std::fs::create_dir_all(&logs).map_err(ChaosError::system(format!("create {}", logs.display())))?;
        for id in driver.nodes() {
            driver.write_clock(id, 0)?;
        }
        Ok(driver)
    }

    fn clock_file(&self, node: u64) -> PathBuf {
        self.blueprint.root.join(format!("clock-{node}"))
    }

    fn write_clock(&self, node: u64, by_ms: i64) -> Result<(), ChaosError> {
        if !self.clocks {
            return Ok(());
        }
        let path = self.clock_file(node);
        let sign = if by_ms < 0 { '-' } else { '+' };
        let by = by_ms.unsigned_abs();
        let text = format!("{sign}{}.{:03}\n", by / 1_000, by % 1_000);
        // Renamed into place: the node may read it at any moment.
        let new = path.with_extension("new");
        std::fs::write(&new, text)
            .and_then(|()| std::fs::rename(&new, &path))
            .map_err(ChaosError::system(format!("write {}", path.display())))
    }

    fn process(&mut self, member: Member) -> Result<&mut Process, ChaosError> {
        self.processes.get_mut(&member).ok_or_else(|| ChaosError::System {
            doing: format!("do anything to {member}"),
            source: std::io::Error::other("it does not run"),
        })
    }

    fn spec(&self, member: Member) -> Result<Spec, ChaosError> {
        let unknown = || ChaosError::Site(format!("this cluster has no {member}"));
        let blueprint = &self.blueprint;
        let mut arguments: Vec<OsString> = vec!["serve".into()];
        let mut environment: Vec<(OsString, OsString)> =
            vec![("MIMALLOC_ARENA_EAGER_COMMIT".into(), "0".into())];
        match member {
            Member::Node(id) => {
                let node = blueprint.nodes.iter().find(|node| node.id == id).ok_or_else(unknown)?;
                arguments.extend(["shard".into(), "--node".into(), id.to_string().into()]);
                arguments.extend(["--data".into(), node.directory.clone().into()]);
                if self.older.contains(&id) {
                    environment.push(("TIDEWALL_APPLY_VERSION".into(), "1".into()));
                }
                if self.clocks {
                    environment.push(("LD_PRELOAD".into(), FAKETIME.into()));
                    environment.push(("FAKETIME_TIMESTAMP_FILE".into(), self.clock_file(id).into()));
                    environment.push(("FAKETIME_DONT_FAKE_MONOTONIC".into(), "1".into()));
                    environment.push(("FAKETIME_NO_CACHE".into(), "1".into()));
                }
            }
            Member::Gateway(id) => {
                let listen = gateway(blueprint, id).ok_or_else(unknown)?;
                arguments.extend(["gateway".into(), "--listen".into(), listen.to_string().into()]);
                arguments.extend(["--keys".into(), blueprint.public_key.clone().into()]);
                arguments.extend(["--account-key".into(), blueprint.account_key.clone().into()]);
                arguments.extend(["--signing-key".into(), blueprint.signing_key.clone().into()]);
                arguments.extend(["--threads".into(), "1".into()]);
                // Stories have servers.
                arguments.extend(["--webhook-allow".into(), "127.0.0.0/8".into()]);
            }
        }
        arguments.extend(["--topology".into(), blueprint.topology.clone().into(), "--parent-pipe".into()]);
        let mut program = blueprint.program.clone();
        if let Some(network) = &self.network {
            let mut all = network.enter(member);
            all.push(program.into());
            all.extend(arguments);
            program = PathBuf::from(all.remove(0));
            arguments = all;
        }
        let name = member.to_string();
        let log = self.logs().join(format!("{}.log", name.replace(' ', "-")));
        Ok(Spec { name, program, arguments, environment, log })
    }

    fn late(&self, what: String, waited: Duration) -> ChaosError {
        ChaosError::Late { what, waited, logs: self.logs() }
    }

    fn node_directory(&self, node: u64) -> PathBuf {
        let plan = self.blueprint.nodes.iter().find(|plan| plan.id == node);
        plan.map(|plan| plan.directory.clone()).unwrap_or_default()
    }

    fn target_of(&self, gateway_id: u64) -> Option<Target> {
        let address = gateway(&self.blueprint, gateway_id)?;
        let mint = self.blueprint.mint.clone();
        Some(Target { endpoints: vec![format!("http://{address}")], mint })
    }
}

fn gateway(blueprint: &Blueprint, id: u64) -> Option<SocketAddr> {
    let position = usize::try_from(id.checked_sub(1)?).ok()?;
    blueprint.gateways.get(position).copied()
}

#[async_trait]
impl Driver for LocalDriver {
    fn name(&self) -> &'static str {
        if self.network.is_some() { "netns" } else { "process" }
    }

    fn supports(&self, ability: Ability) -> Result<(), String> {
        let needs = |there: bool, what: &str| if there { Ok(()) } else { Err(what.to_owned()) };
        match ability {
            Ability::Partition => needs(self.network.is_some(), "use --driver netns"),
            Ability::FillDisk => needs(self.disks.is_some(), "its nodes have no disks of their own"),
            Ability::SkewClock => needs(self.clocks, "its nodes have no clocks of their own"),
            Ability::FailStorage => {
                needs(tools::find("strace").is_some(), "`strace` is not installed: `apt-get install strace`")
            }
        }
    }

    fn nodes(&self) -> Vec<u64> {
        self.blueprint.nodes.iter().map(|node| node.id).collect()
    }

    fn regions(&self) -> Vec<String> {
        self.blueprint.regions.clone()
    }

    fn target(&self) -> Target {
        let endpoints = Vec::new();
        self.target_of(1).unwrap_or(Target { endpoints, mint: self.blueprint.mint.clone() })
    }

    fn companion(&self, node: u64) -> Option<Target> {
        self.network.as_ref()?;
        self.target_of(1 + node)
    }

    fn pid(&self, member: Member) -> Option<u32> {
        self.processes.get(&member).and_then(Process::id)
    }

    fn logs(&self) -> PathBuf {
        self.blueprint.root.join("logs")
    }

    async fn start(&mut self, member: Member) -> Result<(), ChaosError> {
        let process = Process::start(&self.spec(member)?)?;
        self.processes.insert(member, process);
        Ok(())
    }

    async fn kill(&mut self, member: Member) -> Result<(), ChaosError> {
        self.process(member)?.kill().await
    }

    async fn stop(&mut self, member: Member, limit: Duration) -> Result<Ended, ChaosError> {
        let process = self.process(member)?;
        process.signal(Signal::TERM)?;
        let ended = process.wait(limit).await?;
        ended.ok_or_else(|| self.late(format!("{member} has not stopped"), limit))
    }

    async fn ended(&mut self, member: Member, limit: Duration) -> Result<Option<Ended>, ChaosError> {
        self.process(member)?.wait(limit).await
    }

    async fn pause(&mut self, member: Member) -> Result<(), ChaosError> {
        self.process(member)?.signal(Signal::STOP)
    }

    async fn resume(&mut self, member: Member) -> Result<(), ChaosError> {
        self.process(member)?.signal(Signal::CONT)
    }

    async fn cut(&mut self, cuts: &[Cut]) -> Result<(), ChaosError> {
        match &self.network {
            Some(network) => network.cut(cuts).await,
            None => {
                Err(ChaosError::Usage("the process driver has no network to cut: use --driver netns".into()))
            }
        }
    }

    async fn heal(&mut self) -> Result<(), ChaosError> {
        match &self.network {
            Some(network) => network.heal().await,
            None => Ok(()),
        }
    }

    async fn fill_disk(&mut self, node: u64, free_bytes: u64) -> Result<(), ChaosError> {
        self.disks.get_or_insert_default().fill(node, free_bytes)
    }

    async fn free_disk(&mut self, node: u64) -> Result<(), ChaosError> {
        self.disks.get_or_insert_default().free(node)
    }

    async fn fail_storage(&mut self, node: u64, fault: StorageFault) -> Result<(), ChaosError> {
        let pid = self.process(Member::Node(node))?.id().unwrap_or(0).to_string();
        // The kernel answers the calls of this one process with an error: nothing of ours pretends.
        let calls = match fault {
            StorageFault::Write => "pwrite64",
            StorageFault::Sync => "fdatasync,fsync,sync_file_range",
        };
        let (trace, inject) = (format!("trace={calls}"), format!("inject={calls}:error=EIO"));
        let tracer = Command::new("strace")
            .args(["-f", "-qq", "-p", &pid, "-e", &trace, "-e", &inject, "-o", "/dev/null"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(ChaosError::system("run `strace`"))?;
        // It ends with the node.
        self.tracers.push(tracer);
        Ok(())
    }

    async fn damage(&mut self, node: u64, damage: Damage, seed: u64) -> Result<Option<String>, ChaosError> {
        let done = damage::inflict(&self.node_directory(node), damage, seed)
            .map_err(ChaosError::system(format!("damage the files of node {node}")))?;
        Ok(done.map(|(what, wound)| {
            self.wounds.insert(node, wound);
            what
        }))
    }

    async fn repair(&mut self, node: u64) -> Result<(), ChaosError> {
        let undone = self.wounds.remove(&node).map_or(Ok(()), |wound| wound.undo());
        undone.map_err(ChaosError::system(format!("repair the files of node {node}")))
    }

    async fn skew_clock(&mut self, node: u64, by_ms: i64) -> Result<(), ChaosError> {
        self.write_clock(node, by_ms)
    }

    fn set_older_build(&mut self, node: u64, older: bool) {
        if older {
            self.older.insert(node);
        } else {
            self.older.remove(&node);
        }
    }

    async fn tear_down(&mut self) {
        self.tracers.clear();
        for process in self.processes.values() {
            // What has ended already has nothing to be told; what is paused would not hear it.
            let _ = process.signal(Signal::CONT).and_then(|()| process.signal(Signal::INT));
        }
        for (member, process) in &mut self.processes {
            if !matches!(process.wait(END_WITHIN).await, Ok(Some(_)))
                && let Err(error) = process.kill().await
            {
                tracing::error!("{member} could not be ended: {error}");
            }
        }
        self.processes.clear();
        self.network = None;
        self.disks = None;
    }
}
