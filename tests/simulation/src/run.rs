//! One run: a cluster comes up, sells, suffers what its plan says, is healed, must work again, and is judged.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use tidewall_client::Topology;
use tidewall_client::topology::{Node, Region};
use tidewall_node::assembly::look;
use tidewall_workloads::Book;
use turmoil::Sim;

use crate::api;
use crate::clients::{Clients, Control};
use crate::convert;
use crate::fault::{Loss, Slot};
use crate::history::History;
use crate::inject::{OPERATOR_IP, Then, gateway_ip, node_ip};
use crate::lines::Lines;
use crate::listener::{self, Listener};
use crate::messages;
use crate::node::{CLIENT_PORT, Ground, PEER_PORT, SimNode};
use crate::operator::{self, Operator, Task, TopologyFile};
use crate::oracle::{self, Violation};
use crate::plan::{GATEWAYS, NODES, Plan};
use crate::server::Servers;
use crate::trace::Trace;
use crate::traffic::{self, EVENTS};
use crate::watch::{Watch, contents};
use crate::world::{self, EPOCH_SECONDS};

/// A cluster must be up within this, ms.
const UP_MS: u64 = 20_000;
/// A healed cluster must decide again within this, ms. A connection that has lost messages is noticed after 8 s.
const HEALED_MS: u64 = 25_000;
/// A change of members that is under way must be done on a healed cluster within this, ms.
const CHANGED_MS: u64 = 60_000;
/// What was asked must have ended, and the end must be gathered, within this, ms. Some gateways let in few calls at a time.
const END_MS: u64 = 150_000;
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
    /// Stories of workloads that were told to their end.
    pub stories: u64,
    /// Reads that were answered.
    pub reads: usize,
    /// What went wrong on purpose, by kind.
    pub tally: BTreeMap<&'static str, u64>,
    /// Groups that a poison entry has halted.
    pub halted: usize,
    /// Virtual time, ms.
    pub virtual_ms: u64,
}

/// Runs a seed.
pub fn run(seed: u64, print: bool) -> Report {
    align_task_ids();
    let plan = Rc::new(Plan::new(seed));
    let lines = Lines::default();
    let _simulated = tidewall_env::simulation::enter(seed, world::world(lines.clone()));
    #[cfg(tidewall_mutants)]
    tidewall_mutant::set_wall_clock(world::now_ms);
    let trace = Trace::new(print);
    trace.note(0, "plan", format_args!("{plan:?}"));
    let mut cluster = Cluster::new(Rc::clone(&plan), lines, trace.clone());
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| cluster.play())).is_err() {
        cluster.object("panic", "something panicked outside of a step".to_owned());
    }
    let mut violations = std::mem::take(&mut *cluster.ground.violations.borrow_mut());
    let mut tally = std::mem::take(&mut cluster.tally);
    let halted = cluster.control.halted.borrow().len();
    let history = Rc::clone(&cluster.history);
    history.borrow_mut().rebases = std::mem::take(&mut cluster.watch.rebases);
    history.borrow_mut().cuts = cluster.ground.cuts.take();
    history.borrow_mut().began_ms = world::EPOCH_SECONDS * 1_000;
    let history = history.borrow();
    if !history.cuts.is_empty() {
        tally.insert("undone-answer", history.undone() as u64);
    }
    if violations.is_empty() {
        violations = oracle::judge(&history);
        let returns = |region: &str| {
            let cuts = history.cuts.iter().find(|(group, _)| api::region(**group) == region);
            cuts.map_or(0, |(_, cuts)| cuts.len())
        };
        let wrong = cluster.book.borrow().wrong(returns);
        violations.extend(wrong.into_iter().map(|what| Violation { check: "story", what }));
    }
    let stories = cluster.book.borrow().done;
    let calls = history.calls.len() + cluster.book.borrow().answers as usize;
    let virtual_ms = cluster.now_ms();
    if violations.iter().any(|violation| violation.check == "panic") {
        // What has panicked is not taken apart: that could panic once more, which ends the process.
        std::mem::forget(cluster);
    }
    Report {
        seed,
        violations,
        trace: trace.digest(),
        calls,
        stories,
        reads: history.reads.len(),
        tally,
        halted,
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

pub(crate) struct Cluster {
    pub(crate) plan: Rc<Plan>,
    pub(crate) sim: Sim<'static>,
    pub(crate) ground: Ground,
    /// All nodes that there ever were, by id from 1.
    pub(crate) sim_nodes: Vec<Rc<SimNode>>,
    /// A copy of a node that runs beside it, and where.
    pub(crate) twin: Option<(IpAddr, Rc<SimNode>)>,
    /// How many there were.
    pub(crate) twins: u8,
    pub(crate) control: Rc<Control>,
    pub(crate) history: Rc<RefCell<History>>,
    pub(crate) book: Rc<RefCell<Book>>,
    pub(crate) operator: Rc<Operator>,
    /// Those who listen, by gateway.
    pub(crate) listeners: Vec<Rc<Vec<RefCell<Listener>>>>,
    pub(crate) watch: Watch,
    /// Nodes that died for good, and all but one with them, until something is done about it.
    pub(crate) bereft: Option<Vec<(u64, Slot)>>,
    /// What is to be done later, by time in ms; in the order in which it was planned.
    pub(crate) agenda: BTreeMap<u64, Vec<Then>>,
    pub(crate) flapping_until_ms: u64,
    /// Gateways that are down.
    pub(crate) dark: BTreeSet<usize>,
    /// What went wrong on purpose, by kind.
    pub(crate) tally: BTreeMap<&'static str, u64>,
}

fn topology(regions: u32) -> Topology {
    let region = |group: u32| Region { id: format!("r{group}"), display_name: format!("R{group}"), group };
    Topology::new(
        0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.to_be_bytes(),
        (1..=regions).map(region).collect(),
        (1..=NODES).map(entry).collect(),
    )
}

/// What a topology says of a node.
pub(crate) fn entry(id: u64) -> Node {
    let ip = node_ip(id);
    Node { id, address: SocketAddr::new(ip, CLIENT_PORT), peer_address: SocketAddr::new(ip, PEER_PORT) }
}

impl Cluster {
    fn new(plan: Rc<Plan>, lines: Lines, trace: Trace) -> Self {
        let mut sim = turmoil::Builder::new()
            .rng_seed(plan.seed)
            .epoch(SystemTime::UNIX_EPOCH + Duration::from_secs(EPOCH_SECONDS))
            .simulation_duration(Duration::from_secs(3_600))
            .tick_duration(Duration::from_millis(STEP_MS))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(plan.latency_ms))
            .tcp_capacity(65_536)
            .build();
        let ground = Ground {
            file: TopologyFile::new(topology(plan.regions)),
            lines,
            sync_us: plan.sync_us,
            poisoned: Rc::default(),
            garbage: Rc::default(),
            cuts: Rc::default(),
            violations: Rc::default(),
            trace,
        };
        let (control, history) = (Rc::new(Control::default()), Rc::new(RefCell::new(History::default())));
        let book: Rc<RefCell<Book>> = Rc::default();
        let operator = Rc::new(Operator::new(ground.clone()));
        let listening = |number| listener::listeners(number, plan.regions).into_iter().map(RefCell::new);
        let (servers, sessions) = (Servers::new(plan.seed), Rc::default());
        let listeners: Vec<Rc<Vec<RefCell<Listener>>>> =
            (1..=GATEWAYS).map(|number| Rc::new(listening(number).collect())).collect();
        for number in 1..=GATEWAYS {
            let clients = Clients {
                number,
                file: ground.file.clone(),
                lines: ground.lines.clone(),
                plan: Rc::clone(&plan),
                control: Rc::clone(&control),
                history: Rc::clone(&history),
                memories: Rc::new((0..plan.clients).map(|_| RefCell::default()).collect()),
                cuts: Rc::clone(&ground.cuts),
                book: Rc::clone(&book),
                listeners: Rc::clone(&listeners[number - 1]),
                sessions: Rc::clone(&sessions),
                servers: servers.clone(),
                violations: Rc::clone(&ground.violations),
                lives: Rc::new(Cell::new(0)),
                trace: ground.trace.clone(),
            };
            sim.host(gateway_ip(number), move || traffic::live(clients.clone()));
        }
        let working = Rc::clone(&operator);
        sim.host(OPERATOR_IP, move || operator::live(Rc::clone(&working)));
        let mut cluster = Self {
            plan,
            sim,
            ground,
            sim_nodes: Vec::new(),
            twin: None,
            twins: 0,
            control,
            history,
            book,
            operator,
            listeners,
            watch: Watch::default(),
            bereft: None,
            agenda: BTreeMap::new(),
            flapping_until_ms: 0,
            dark: BTreeSet::new(),
            tally: BTreeMap::new(),
        };
        for id in 1..=NODES {
            cluster.start_new(id, id);
        }
        cluster
    }

    /// Starts a node that was never there.
    pub(crate) fn start_new(&mut self, id: u64, slot: Slot) {
        let sim_node = Rc::new(SimNode::new(id, slot, self.ground.clone()));
        self.sim_nodes.push(Rc::clone(&sim_node));
        self.sim.host(node_ip(id), move || crate::node::live(Rc::clone(&sim_node)));
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    pub(crate) fn note(&self, what: std::fmt::Arguments<'_>) {
        self.ground.trace.note(self.sim.elapsed().as_micros() as u64, "harness", what);
    }

    pub(crate) fn object(&self, check: &'static str, what: String) {
        self.note(format_args!("VIOLATION {check}: {what}"));
        self.ground.violations.borrow_mut().push(Violation { check, what });
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
            self.inject(&fault);
        }
        if !self.until_time(began_ms + self.plan.lasts_ms) {
            return;
        }
        self.heal();
        if !self.until(CHANGED_MS, |cluster| !cluster.operator.is_busy()) {
            return self.stuck("the healed cluster does not change its members");
        }
        if !self.until(CHANGED_MS, |cluster| !cluster.operator.clerk.is_busy()) {
            return self.stuck("nobody is told of dead letters, or they cannot be resolved");
        }
        self.leave_for_good();
        control.probe.set(true);
        if !self.until(HEALED_MS, |cluster| {
            let halted = cluster.halted();
            let probed = control.probed.borrow();
            let regions = 1..=cluster.plan.regions;
            regions.into_iter().all(|group| {
                halted.contains(&group) || (1..=GATEWAYS).all(|gateway| probed.contains(&(gateway, group)))
            })
        }) {
            return self.stuck("the healed cluster does not decide");
        }
        self.note(format_args!("the sale ends"));
        control.stop.set(true);
        if !self.until(END_MS, |_| control.open.get() == 0) {
            return self.stuck("calls never end");
        }
        *control.halted.borrow_mut() = self.halted();
        control.finish.set(true);
        if !self.until(END_MS, |_| control.finished.get()) {
            return self.stuck("the end cannot be read");
        }
        if !self.until(EQUAL_MS, Self::all_at_one_index) {
            return self.stuck("replicas do not catch up");
        }
        let halted = self.control.halted.borrow().clone();
        if !self.until(EQUAL_MS, |cluster| messages::on_their_way(&cluster.sim_nodes, &halted).is_empty()) {
            for what in messages::on_their_way(&self.sim_nodes, &halted) {
                self.object("messages", what);
            }
        }
        if !self.until(EQUAL_MS, |cluster| cluster.misheard().is_empty()) {
            for what in self.misheard() {
                self.object("feed", what);
            }
        }
        if self.ground.cuts.borrow().is_empty() {
            for who in messages::shared_emails(&self.sim_nodes) {
                self.object("e-mail", format!("{who} have the same e-mail"));
            }
            for what in messages::stray_claims(&self.sim_nodes, &halted) {
                self.object("e-mail", what);
            }
        }
        if !self.until(EQUAL_MS, Self::all_at_one_index) {
            return self.stuck("replicas do not catch up with what was told");
        }
        self.compare_the_end();
    }

    /// What those who listen have heard otherwise than it is.
    fn misheard(&self) -> Vec<String> {
        let halted = self.control.halted.borrow();
        let mut wrong = Vec::new();
        for listener in self.listeners.iter().flat_map(|listeners| listeners.iter()) {
            let listener = listener.borrow();
            if halted.contains(&listener.group) {
                continue;
            }
            let lives = self.sim_nodes.iter().map(|sim_node| sim_node.life.borrow());
            let rows = lives.filter_map(|life| life.as_ref()?.rows.get(&listener.group).cloned()).next();
            wrong.extend(rows.and_then(|rows| rows.read(|machine| listener.agrees_with(machine))));
        }
        wrong
    }

    /// Groups that a poison entry has stopped.
    fn halted(&self) -> BTreeSet<u32> {
        let poisoned = self.ground.poisoned.borrow();
        let lives = self.sim_nodes.iter().map(|sim_node| sim_node.life.borrow());
        let halted = lives.flat_map(|life| {
            let rows = life.iter().flat_map(|life| &life.rows);
            rows.filter(|(_, rows)| rows.halted().is_some()).map(|(group, _)| *group).collect::<Vec<_>>()
        });
        halted.filter(|group| poisoned.contains(group)).collect()
    }

    fn all_at_one_index(&self) -> bool {
        let halted = self.control.halted.borrow();
        contents(&self.sim_nodes).iter().filter(|(group, _)| !halted.contains(group)).all(|(_, replicas)| {
            let mut indices = replicas.values().map(|replica| replica.index);
            let first = indices.next();
            indices.all(|index| Some(index) == first)
        })
    }

    /// Replicas at the same index have the same rows, and all agree about the members. Of a group that has halted the
    /// rows before the poison entry are gathered: they are its end.
    fn compare_the_end(&mut self) {
        let believed = self
            .sim_nodes
            .iter()
            .filter(|sim_node| sim_node.is_stale() && !sim_node.gone.get())
            .map(|sim_node| sim_node.id);
        for node in believed.collect::<Vec<_>>() {
            self.object(
                "stale",
                format!("n{node} runs on an older state of its disk, and nobody has refused it"),
            );
        }
        let halted = self.control.halted.borrow().clone();
        let members: BTreeSet<u64> = self.ground.file.read().nodes.iter().map(|node| node.id).collect();
        for (group, mut replicas) in contents(&self.sim_nodes) {
            self.note(format_args!("group {group} ends as {replicas:?}"));
            if halted.contains(&group) {
                let last = replicas.values().map(|replica| replica.index).max();
                // The entries before the poison entry are all that can ever be decided; who has not halted may lack some.
                if replicas.values().any(|replica| replica.halted && Some(replica.index) != last) {
                    self.object(
                        "poison",
                        format!("group {group}: somebody went past the poison entry: {replicas:?}"),
                    );
                }
                replicas.retain(|_, replica| replica.halted);
                self.gather_halted(group);
            } else if replicas.values().any(|replica| replica.voters != members) {
                self.object(
                    "members",
                    format!("group {group} is to have {members:?} and ends as {replicas:?}"),
                );
            }
            let mut rows = replicas.values().map(|replica| replica.rows);
            let first = rows.next();
            if rows.any(|one| Some(one) != first) {
                self.object("content", format!("group {group}: rows differ at the same index: {replicas:?}"));
            }
        }
    }

    /// Reads the end of a group that answers nobody any more from the rows of a replica that has halted.
    fn gather_halted(&self, group: u32) {
        let lives = self.sim_nodes.iter().map(|sim_node| sim_node.life.borrow());
        let rows = lives.filter_map(|life| life.as_ref()?.rows.get(&group).cloned());
        let Some(rows) = rows.into_iter().find(|rows| rows.halted().is_some()) else { return };
        let ask = |query| rows.read(|machine| look(machine, &query)).ok().and_then(|answer| answer.result);
        let mut history = self.history.borrow_mut();
        for (_, principal, id) in history.keys().into_iter().filter(|(of, ..)| *of == group) {
            let told = ask(convert::outcome_query(&principal, id)).as_ref().and_then(convert::remembered);
            history.at_end.outcomes.insert((group, (principal, id)), told);
        }
        for event in EVENTS {
            let place = (group, event.to_owned());
            if let Some(found) = ask(convert::event_query(event)) {
                history.at_end.events.insert(place.clone(), convert::tiers(&found));
            }
            if let Some(found) = ask(convert::tickets_query(event)) {
                history.at_end.tickets.insert(place, convert::tickets(&found));
            }
        }
    }

    fn stuck(&self, what: &str) {
        if !self.ground.violations.borrow().is_empty() {
            return;
        }
        let mut states = Vec::new();
        for sim_node in &self.sim_nodes {
            match &*sim_node.life.borrow() {
                None => states.push(format!("n{} is down", sim_node.id)),
                Some(life) => {
                    for (number, group) in &life.groups {
                        let status = group.status();
                        states.push(format!(
                            "n{} group {number}: {:?} term {} leader {:?} last {} applied {}",
                            sim_node.id,
                            status.role,
                            status.term,
                            status.leader,
                            status.last_log,
                            status.applied
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
            if self.now_ms().is_multiple_of(10) && holds(self) {
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
        if now_ms.is_multiple_of(DRAWS_EVERY_MS) {
            self.note(format_args!("{} draws", tidewall_env::simulation::draws()));
        }
        let found = self.watch.look(now_ms * 1_000, &self.sim_nodes);
        for violation in found {
            self.object(violation.check, violation.what);
        }
        if !self.ground.violations.borrow().is_empty() {
            return false;
        }
        self.look_at_twin();
        for sim_node in self.sim_nodes.clone() {
            let failed = sim_node.failed.lock().clone();
            if let Some(fault) = failed {
                if sim_node.is_stale() {
                    self.come_forward(&sim_node, &fault);
                    continue;
                }
                if !sim_node.disk_was_made_to_fail() {
                    self.object("fail-stop", format!("n{} stopped: {fault:?}", sim_node.id));
                    return false;
                }
                self.note(format_args!("n{} stops because of its disk", sim_node.id));
                self.kill(sim_node.id, Loss::Everything, 500);
            }
        }
        match self.operator.take_done() {
            Some(Task::Change(change)) => self.conclude(&change),
            Some(restored @ Task::Restore { .. }) => self.note(format_args!("done: {restored:?}")),
            None => {}
        }
        while let Some(entry) = self.agenda.first_entry().filter(|entry| *entry.key() <= now_ms) {
            for then in entry.remove() {
                self.carry_out(then);
            }
        }
        true
    }
}
