//! One run: a cluster comes up, sells, suffers what its plan says, is healed, must work again, and is judged.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tidewall_client::Topology;
use tidewall_client::topology::{Node, Region, TOPOLOGY_FORMAT};
use turmoil::Sim;

use crate::bed::{self, Bed, CLIENT_PORT, Order, PEER_PORT};
use crate::history::History;
use crate::oracle::{self, Violation};
use crate::plan::{Cut, Fault, GATEWAYS, HOSTS, Host, Loss, NODES, Plan};
use crate::trace::Trace;
use crate::traffic::{self, Control, Desk};
use crate::watch::{Watch, contents};
use crate::world::{self, EPOCH_SECONDS};

/// A cluster must be up within this, ms.
const UP_MS: u64 = 20_000;
/// A healed cluster must decide again within this, ms. A connection that has lost messages is noticed after 8 s.
const HEALED_MS: u64 = 25_000;
/// What was asked must have ended, and the end must be gathered, within this, ms.
const END_MS: u64 = 40_000;
/// Replicas of a quiet cluster must be at the same index within this, ms.
const EQUAL_MS: u64 = 20_000;
/// How often the trace notes how much chance was used: what no client sees shows there, ms.
const DRAWS_EVERY_MS: u64 = 100;
/// One step of the simulation, ms.
const STEP_MS: u64 = 1;

/// What came of a run.
#[derive(Debug, Clone)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What must not have happened.
    pub violations: Vec<Violation>,
    /// Lines of the trace and the hash over them.
    pub trace: (u64, String),
    /// Commands that were asked.
    pub calls: usize,
    /// Reads that were answered.
    pub reads: usize,
    /// Faults that were injected.
    pub faults: usize,
    /// Virtual time, ms.
    pub virtual_ms: u64,
}

/// Runs a seed.
pub fn run(seed: u64, print: bool) -> Report {
    align_task_ids();
    let plan = Rc::new(Plan::new(seed));
    let _simulated = tidewall_env::simulation::enter(seed, world::world());
    #[cfg(tidewall_mutants)]
    tidewall_mutant::set_wall_clock(world::now_ms);
    let trace = Trace::new(print);
    trace.note(0, "plan", format_args!("{plan:?}"));
    let mut cluster = Cluster::new(Rc::clone(&plan), trace.clone());
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.play())).is_err() {
        cluster.object("panic", "something panicked outside of a step".to_owned());
    }
    let mut violations = std::mem::take(&mut *cluster.violations.borrow_mut());
    let history = Rc::clone(&cluster.history);
    let history = history.borrow();
    if violations.is_empty() {
        violations = oracle::judge(&history);
    }
    let virtual_ms = cluster.now_ms();
    if violations.iter().any(|violation| violation.check == "panic") {
        // What has panicked is not taken apart: that could panic once more, which ends the process.
        std::mem::forget(cluster);
    }
    Report {
        seed,
        violations,
        trace: trace.digest(),
        calls: history.calls.len(),
        reads: history.reads.len(),
        faults: plan.faults.len(),
        virtual_ms,
    }
}

/// A runtime that ends drops its tasks in an order that depends on their ids modulo a power of two, and ids are given out
/// by the process: each run begins at the same remainder. So there is one run at a time in a process.
fn align_task_ids() {
    const ALIGNMENT: u64 = 64;
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime without drivers asks the system for nothing");
    let next = || runtime.spawn(async {}).id().to_string().parse::<u64>();
    while next().is_ok_and(|id| id % ALIGNMENT != 0) {}
}

/// Something to be done later.
#[derive(Debug, Clone)]
enum Then {
    Start(u64),
    Heal,
    Calm,
    Fast(u64),
    FlapOn(Vec<Host>),
    FlapOff(Vec<Host>),
    Damage(u64, u32),
    Die(u64, Loss, u64),
}

struct Cluster {
    plan: Rc<Plan>,
    sim: Sim<'static>,
    beds: Vec<Rc<Bed>>,
    control: Rc<Control>,
    history: Rc<RefCell<History>>,
    violations: Rc<RefCell<Vec<Violation>>>,
    watch: Watch,
    trace: Trace,
    /// What is to be done later, by time in ms; in the order in which it was planned.
    agenda: BTreeMap<u64, Vec<Then>>,
    flapping_until_ms: u64,
}

fn address(host: Host) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, host as u8 + 1))
}

fn topology(regions: u32) -> Topology {
    let node = |id: u64| Node {
        id,
        address: SocketAddr::new(address(id as usize - 1), CLIENT_PORT),
        peer_address: SocketAddr::new(address(id as usize - 1), PEER_PORT),
    };
    let region = |group: u32| Region { id: format!("r{group}"), display_name: format!("R{group}"), group };
    Topology {
        format: TOPOLOGY_FORMAT,
        cluster: "00112233445566778899aabbccddeeff".to_owned(),
        generation: 0,
        retired: BTreeSet::new(),
        fences: BTreeMap::new(),
        regions: (1..=regions).map(region).collect(),
        nodes: (1..=NODES).map(node).collect(),
    }
}

impl Cluster {
    fn new(plan: Rc<Plan>, trace: Trace) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(Duration::from_secs(3_600))
            .tick_duration(Duration::from_millis(STEP_MS))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(plan.latency_ms))
            .tcp_capacity(65_536)
            .build();
        let topology = Arc::new(topology(plan.regions));
        let violations = Rc::new(RefCell::new(Vec::new()));
        let mut beds = Vec::new();
        for id in 1..=NODES {
            let bed =
                Bed::new(id, Arc::clone(&topology), plan.sync_us, Rc::clone(&violations), trace.clone());
            let bed = Rc::new(bed);
            beds.push(Rc::clone(&bed));
            sim.host(address(id as usize - 1), move || bed::live(Rc::clone(&bed)));
        }
        let (control, history) = (Rc::new(Control::default()), Rc::new(RefCell::new(History::default())));
        for number in 1..=GATEWAYS {
            let desk = Desk {
                number,
                topology: Arc::clone(&topology),
                plan: Rc::clone(&plan),
                control: Rc::clone(&control),
                history: Rc::clone(&history),
                trace: trace.clone(),
            };
            sim.host(address(NODES as usize + number - 1), move || traffic::live(desk.clone()));
        }
        Self {
            plan,
            sim,
            beds,
            control,
            history,
            violations,
            watch: Watch::default(),
            trace,
            agenda: BTreeMap::new(),
            flapping_until_ms: 0,
        }
    }

    fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.trace.note(self.sim.elapsed().as_micros() as u64, "harness", what);
    }

    fn object(&self, check: &'static str, what: String) {
        self.note(format_args!("VIOLATION {check}: {what}"));
        self.violations.borrow_mut().push(Violation { check, what });
    }

    fn play(&mut self) {
        let control = Rc::clone(&self.control);
        if !self.until(UP_MS, |_| control.ready.get()) {
            return self.stuck("the cluster did not come up");
        }
        self.note(format_args!("the sale begins"));
        let began_ms = self.now_ms();
        for (at_ms, fault) in self.plan.faults.clone() {
            if !self.until_time(began_ms + at_ms) {
                return;
            }
            self.inject(fault);
        }
        if !self.until_time(began_ms + self.plan.lasts_ms) {
            return;
        }
        self.heal();
        control.probe.set(true);
        let wanted = GATEWAYS * self.plan.regions as usize;
        if !self.until(HEALED_MS, |_| control.probes.get() == wanted) {
            return self.stuck("the healed cluster does not decide");
        }
        self.note(format_args!("the sale ends"));
        control.stop.set(true);
        if !self.until(END_MS, |_| control.open.get() == 0) {
            return self.stuck("calls never end");
        }
        control.finish.set(true);
        if !self.until(END_MS, |_| control.finished.get()) {
            return self.stuck("the end cannot be read");
        }
        if !self.until(EQUAL_MS, |cluster| {
            contents(&cluster.beds).values().all(|replicas| {
                let mut indices = replicas.values().map(|(index, _)| *index);
                let first = indices.next();
                indices.all(|index| Some(index) == first)
            })
        }) {
            return self.stuck("replicas do not catch up");
        }
        for (group, replicas) in contents(&self.beds) {
            let mut all = replicas.values();
            let first = all.next();
            if all.any(|one| Some(one) != first) {
                self.object("content", format!("group {group}: rows differ at the same index: {replicas:?}"));
            }
            self.note(format_args!("group {group} ends as {replicas:?}"));
        }
    }

    fn stuck(&self, what: &str) {
        if !self.violations.borrow().is_empty() {
            return;
        }
        let mut states = Vec::new();
        for bed in &self.beds {
            match &*bed.life.borrow() {
                None => states.push(format!("n{} is down", bed.id)),
                Some(life) => {
                    for (number, group) in &life.groups {
                        let status = group.status();
                        states.push(format!(
                            "n{} group {number}: {:?} term {} leader {:?} last {} applied {}",
                            bed.id, status.role, status.term, status.leader, status.last_log, status.applied
                        ));
                    }
                }
            }
        }
        self.object("progress", format!("{what}: {}", states.join("; ")));
    }

    /// Steps until something holds; false when it did not in time, or something is wrong already.
    fn until(&mut self, within_ms: u64, holds: impl Fn(&Self) -> bool) -> bool {
        let deadline_ms = self.now_ms() + within_ms;
        while self.now_ms() < deadline_ms {
            if !self.step() {
                return false;
            }
            // Looking is not free, and nothing depends on the millisecond.
            if self.now_ms() % 10 == 0 && holds(self) {
                return true;
            }
        }
        false
    }

    fn until_time(&mut self, at_ms: u64) -> bool {
        while self.now_ms() < at_ms {
            if !self.step() {
                return false;
            }
        }
        true
    }

    /// One step; false when something is wrong.
    fn step(&mut self) -> bool {
        let stepped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            self.sim.step().map_err(|e| e.to_string())
        }));
        match stepped {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => self.object("panic", error),
            Err(_) => self.object("panic", "something panicked: see above".to_owned()),
        }
        let now_ms = self.now_ms();
        if now_ms % DRAWS_EVERY_MS == 0 {
            self.note(format_args!("{} draws", tidewall_env::simulation::draws()));
        }
        let found = self.watch.look(now_ms * 1_000, &self.beds, &self.trace);
        for violation in found {
            self.object(violation.check, violation.what);
        }
        if !self.violations.borrow().is_empty() {
            return false;
        }
        for bed in self.beds.clone() {
            let failed = bed.failed.lock().clone();
            if let Some(what) = failed {
                if !bed.disk_was_made_to_fail() {
                    self.object("fail-stop", format!("n{} stopped: {what}", bed.id));
                    return false;
                }
                self.note(format_args!("n{} stops because of its disk", bed.id));
                self.kill(bed.id, Loss::Everything, 500);
            }
        }
        while let Some(entry) = self.agenda.first_entry().filter(|entry| *entry.key() <= now_ms) {
            for then in entry.remove() {
                self.carry_out(then);
            }
        }
        true
    }

    fn later(&mut self, in_ms: u64, then: Then) {
        let at_ms = self.now_ms() + in_ms;
        self.agenda.entry(at_ms).or_default().push(then);
    }

    fn bed(&self, node: u64) -> Rc<Bed> {
        Rc::clone(&self.beds[node as usize - 1])
    }

    fn is_up(&self, node: u64) -> bool {
        self.bed(node).life.borrow().is_some()
    }

    fn kill(&mut self, node: u64, loss: Loss, down_ms: u64) {
        // A node that is down, or not up again yet, is spared: it cannot die twice.
        if !self.is_up(node) {
            return;
        }
        self.bed(node).lose_power(loss);
        self.sim.crash(address(node as usize - 1));
        self.later(down_ms, Then::Start(node));
    }

    fn carry_out(&mut self, then: Then) {
        self.note(format_args!("{then:?}"));
        match then {
            Then::Start(node) => self.sim.bounce(address(node as usize - 1)),
            Then::Heal => self.heal_network(),
            Then::Calm => self.sim.set_max_message_latency(Duration::from_millis(self.plan.latency_ms)),
            Then::Fast(node) => self.bed(node).set_pace(None),
            Then::FlapOn(side) => {
                if self.now_ms() < self.flapping_until_ms {
                    self.between(&side, |sim, a, b| sim.hold(a, b));
                    self.later(120, Then::FlapOff(side));
                }
            }
            Then::FlapOff(side) => {
                self.between(&side, |sim, a, b| sim.release(a, b));
                if self.now_ms() < self.flapping_until_ms {
                    self.later(80, Then::FlapOn(side));
                }
            }
            Then::Die(node, loss, down_ms) => self.kill(node, loss, down_ms),
            Then::Damage(node, group) => {
                if self.is_up(node) {
                    self.kill(node, Loss::Everything, 300);
                    let lost = self.bed(node).damage_checkpoint(group);
                    self.note(format_args!("n{node} lost a page of group {group}: {lost}"));
                }
            }
        }
    }

    fn inject(&mut self, fault: Fault) {
        self.note(format_args!("{fault}"));
        match fault {
            Fault::Crash { node, down_ms, loss } => self.kill(node, loss, down_ms),
            Fault::CrashAll { down_ms, loss } => {
                for node in 1..=NODES {
                    self.kill(node, loss, down_ms + node * 20);
                }
            }
            Fault::Cut { cut, lasts_ms } => {
                match cut {
                    Cut::Stall(side) => self.between(&side, |sim, a, b| sim.hold(a, b)),
                    Cut::Lose(side) => self.between(&side, |sim, a, b| sim.partition(a, b)),
                    Cut::OneWay(from, to) => self.sim.partition_oneway(address(from), address(to)),
                    Cut::Flap(side) => {
                        self.flapping_until_ms = self.now_ms() + lasts_ms;
                        self.carry_out(Then::FlapOn(side));
                    }
                }
                self.later(lasts_ms, Then::Heal);
            }
            Fault::Slow { latency_ms, lasts_ms } => {
                self.sim.set_max_message_latency(Duration::from_millis(latency_ms));
                self.later(lasts_ms, Then::Calm);
            }
            Fault::Clock { node, by_ms } => self.bed(node).shift_clock(by_ms),
            Fault::SlowDisk { node, sync_ms, lasts_ms } => {
                self.bed(node).set_pace(Some(sync_ms * 1_000));
                self.later(lasts_ms, Then::Fast(node));
            }
            Fault::FailingDisk { node } => {
                if self.is_up(node) {
                    self.bed(node).fail_disk();
                }
            }
            Fault::Transfer { group, to } => {
                for bed in &self.beds {
                    bed.order(Order::Transfer(group, to));
                }
            }
            Fault::Checkpoint { node, group } => self.bed(node).order(Order::Checkpoint(group)),
            Fault::TornCheckpoint { node, group } => {
                if self.is_up(node) {
                    self.bed(node).order(Order::Checkpoint(group));
                    self.later(8, Then::Die(node, Loss::Torn(7), 300));
                }
            }
            Fault::DamagedCheckpoint { node, group } => {
                self.bed(node).order(Order::Checkpoint(group));
                self.later(300, Then::Damage(node, group));
            }
            Fault::Actors { node, group } => self.bed(node).order(Order::Actors(group)),
        }
    }

    /// Does something to all links between a side and the rest.
    fn between(&mut self, side: &[Host], act: impl Fn(&Sim<'static>, IpAddr, IpAddr)) {
        for one in side {
            for other in (0..HOSTS).filter(|host| !side.contains(host)) {
                act(&self.sim, address(*one), address(other));
            }
        }
    }

    fn heal_network(&mut self) {
        self.flapping_until_ms = 0;
        for one in 0..HOSTS {
            for other in one + 1..HOSTS {
                self.sim.release(address(one), address(other));
            }
        }
    }

    /// Ends all faults; a node that is to be gone for good goes.
    fn heal(&mut self) {
        self.note(format_args!("all is healed"));
        self.heal_network();
        self.carry_out(Then::Calm);
        for bed in self.beds.clone() {
            bed.set_clock_right();
            bed.set_pace(None);
        }
        // What is down comes back now; nobody dies any more.
        let agenda = std::mem::take(&mut self.agenda);
        for then in agenda.into_values().flatten() {
            if let Then::Start(node) = then
                && self.plan.gone != Some(node)
            {
                self.carry_out(Then::Start(node));
            }
        }
        if let Some(node) = self.plan.gone
            && self.is_up(node)
        {
            self.note(format_args!("n{node} is gone for good"));
            self.bed(node).lose_power(Loss::Everything);
            self.sim.crash(address(node as usize - 1));
        }
    }
}
