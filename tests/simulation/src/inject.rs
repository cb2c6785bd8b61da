//! Carries out what a plan says: breaks things, and mends them again.
//!
//! What cannot happen at the moment, because a node is down already, say, does not happen later either. **Never here:** what
//! must hold meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::rc::Rc;
use std::time::Duration;

use tidewall_consensus::StorageFault;
use turmoil::Sim;

use crate::clients::Orphan;
use crate::fault::{Cut, Fault, Host, Loss, Slot};
use crate::history::End;
use crate::node::{LastOne, Order, SimNode, live};
use crate::operator::{Change, Task};
use crate::plan::{GATEWAYS, NODES};
use crate::run::{Cluster, entry};

/// Where the operator works.
pub const OPERATOR_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 1));

/// Where a node is in the network.
pub fn node_ip(id: u64) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 0, id as u8))
}

/// Where a gateway is in the network.
pub fn gateway_ip(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 1, number as u8))
}

/// How long disks are slow before all nodes die, ms.
const BEFORE_THE_END_MS: u64 = 160;

/// Something to be done later. Nodes are named by their ids: who is in a slot may have changed by then.
#[derive(Debug, Clone)]
pub enum Then {
    /// A node comes back.
    Start(u64),
    /// A gateway comes back.
    StartGateway(usize),
    /// Messages arrive again.
    Heal,
    /// Messages are as fast as usual.
    Calm,
    /// A disk is as fast as usual.
    Fast(u64),
    /// A cut that flaps begins again.
    FlapOn(Vec<Host>),
    /// A cut that flaps pauses.
    FlapOff(Vec<Host>),
    /// A node dies and loses a part of a checkpoint.
    Damage(u64, u32),
    /// A node dies.
    Die(u64, Loss, u64),
    /// A node dies and comes back with an older state of its disk.
    GoBack(u64),
    /// The last node is ordered to go on alone.
    Recover(u64, BTreeMap<u32, (u64, u64)>),
}

impl Cluster {
    fn later(&mut self, in_ms: u64, then: Then) {
        let at_ms = self.now_ms() + in_ms;
        self.agenda.entry(at_ms).or_default().push(then);
    }

    fn sim_node(&self, node: u64) -> Rc<SimNode> {
        Rc::clone(&self.sim_nodes[node as usize - 1])
    }

    /// The node in a slot; the old one while it is being replaced.
    fn at(&self, slot: Slot) -> Option<Rc<SimNode>> {
        self.sim_nodes.iter().find(|sim_node| sim_node.slot == slot && !sim_node.gone.get()).cloned()
    }

    /// The node in a slot, if it is up.
    fn up(&self, slot: Slot) -> Option<Rc<SimNode>> {
        self.at(slot).filter(|sim_node| sim_node.life.borrow().is_some())
    }

    /// A node dies. One that is down, or not up again yet, is spared: it cannot die twice.
    pub(crate) fn kill(&mut self, node: u64, loss: Loss, down_ms: u64) -> bool {
        let sim_node = self.sim_node(node);
        if sim_node.life.borrow().is_none() {
            return false;
        }
        self.end_twin();
        sim_node.lose_power(loss);
        self.sim.crash(node_ip(node));
        self.later(down_ms, Then::Start(node));
        true
    }

    /// A node dies and comes back with a copy of its disk that was made before, if all others can know that it is one.
    fn go_back(&mut self, node: u64) {
        let sim_node = self.sim_node(node);
        let others = || self.sim_nodes.iter().filter(|other| other.id != node && !other.gone.get());
        let known = others().count() > 0 && others().all(|other| other.would_recognise(&sim_node));
        if known && self.kill(node, Loss::Everything, 200) {
            self.note(format_args!("n{node} goes back to an older state of its disk"));
            sim_node.go_back();
        }
    }

    /// Starts a copy of a node beside it, while all nodes are up and hear each other.
    fn start_twin(&mut self, node: Slot) -> bool {
        let present = || self.sim_nodes.iter().filter(|sim_node| !sim_node.gone.get());
        let calm = present().all(|sim_node| sim_node.life.borrow().is_some())
            && !self.operator.is_busy()
            && !self
                .agenda
                .values()
                .flatten()
                .any(|then| !matches!(then, Then::StartGateway(_) | Then::Fast(_)));
        let Some(sim_node) = self.up(node).filter(|sim_node| calm && !sim_node.is_stale()) else {
            return false;
        };
        self.twins += 1;
        let ip = IpAddr::V4(Ipv4Addr::new(10, 0, 3, self.twins));
        let twin = Rc::new(sim_node.twin());
        self.twin = Some((ip, Rc::clone(&twin)));
        self.sim.host(ip, move || live(Rc::clone(&twin)));
        true
    }

    /// Ends the copy, if there is one.
    fn end_twin(&mut self) {
        if let Some((ip, twin)) = self.twin.take() {
            twin.lose_power(Loss::Everything);
            self.sim.crash(ip);
        }
    }

    /// A copy that runs beside its original must never come up, and may be refused.
    pub(crate) fn look_at_twin(&mut self) {
        let Some((_, twin)) = &self.twin else { return };
        let (up, failed) = (twin.life.borrow().is_some(), twin.failed.lock().clone());
        if up {
            self.object("twin", format!("n{} runs twice", twin.id));
        }
        if let Some(fault) = failed {
            self.note(format_args!("the twin was refused: {fault:?}"));
            *self.tally.entry("twin-refused").or_default() += 1;
            self.end_twin();
        }
    }

    /// A node was told that its disk is stale: it stops, and gets its real one back.
    pub(crate) fn come_forward(&mut self, sim_node: &SimNode, fault: &StorageFault) {
        self.note(format_args!("n{} was refused: {fault:?}", sim_node.id));
        *self.tally.entry("old-state-refused").or_default() += 1;
        sim_node.lose_power(Loss::Everything);
        self.sim.crash(node_ip(sim_node.id));
        sim_node.come_forward();
        self.later(200, Then::Start(sim_node.id));
    }

    /// A node goes for good, and its disk with it.
    fn put_away(&mut self, node: u64) {
        self.note(format_args!("n{node} is gone for good"));
        let sim_node = self.sim_node(node);
        sim_node.gone.set(true);
        sim_node.lose_power(Loss::Everything);
        self.sim.crash(node_ip(node));
    }

    pub(crate) fn carry_out(&mut self, then: Then) {
        self.note(format_args!("{then:?}"));
        match then {
            Then::Start(node) => {
                if !self.sim_node(node).gone.get() {
                    self.sim.bounce(node_ip(node));
                }
            }
            Then::StartGateway(number) => {
                self.dark.remove(&number);
                self.sim.bounce(gateway_ip(number));
            }
            Then::Heal => self.heal_network(),
            Then::Calm => self.sim.set_max_message_latency(Duration::from_millis(self.plan.latency_ms)),
            Then::Fast(node) => self.sim_node(node).set_pace(None),
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
            Then::Die(node, loss, down_ms) => {
                self.kill(node, loss, down_ms);
            }
            Then::GoBack(node) => self.go_back(node),
            Then::Recover(node, furthest) => self.recover(node, furthest),
            Then::Damage(node, group) => {
                if self.kill(node, Loss::Everything, 300) {
                    let lost = self.sim_node(node).damage_checkpoint(group);
                    self.note(format_args!("n{node} lost a page of group {group}: {lost}"));
                }
            }
        }
    }

    /// Carries out a fault, and counts it if it could happen.
    pub(crate) fn inject(&mut self, fault: &Fault) {
        // It is told from its original as long as nothing else goes wrong.
        self.end_twin();
        self.note(format_args!("{fault}"));
        if self.happens(fault) {
            *self.tally.entry(fault.kind()).or_default() += 1;
        } else {
            self.note(format_args!("which cannot happen now"));
        }
    }

    fn happens(&mut self, fault: &Fault) -> bool {
        match fault.clone() {
            Fault::Crash { node, down_ms, loss } => match self.up(node) {
                Some(sim_node) => self.kill(sim_node.id, loss, down_ms),
                None => false,
            },
            Fault::CrashAll { down_ms, loss } => {
                let all: Vec<Rc<SimNode>> = self
                    .sim_nodes
                    .iter()
                    .filter(|sim_node| sim_node.life.borrow().is_some())
                    .cloned()
                    .collect();
                for sim_node in &all {
                    // Whatever failed the power made the disks slow before: what was said too early is lost.
                    sim_node.set_pace(Some(BEFORE_THE_END_MS * 1_000 / 4));
                    self.later(BEFORE_THE_END_MS, Then::Die(sim_node.id, loss, down_ms + sim_node.id * 20));
                    self.later(BEFORE_THE_END_MS + 1, Then::Fast(sim_node.id));
                }
                !all.is_empty()
            }
            Fault::CrashGateway { gateway, down_ms } => self.kill_gateway(gateway, down_ms),
            Fault::Cut { cut, lasts_ms } => {
                match cut {
                    Cut::Stall(side) => self.between(&side, |sim, a, b| sim.hold(a, b)),
                    Cut::Lose(side) => self.between(&side, |sim, a, b| sim.partition(a, b)),
                    Cut::OneWay(from, to) => self.one_way(from, to),
                    Cut::Flap(side) => {
                        self.flapping_until_ms = self.now_ms() + lasts_ms;
                        self.carry_out(Then::FlapOn(side));
                    }
                }
                self.later(lasts_ms, Then::Heal);
                true
            }
            Fault::LoseMessages { from, to, lasts_ms } => {
                self.one_way(from, to);
                self.later(lasts_ms, Then::Heal);
                true
            }
            Fault::Reset { one, other } => {
                let (here, there) = (self.ips(one), self.ips(other));
                let pairs = here.iter().flat_map(|a| there.iter().map(|b| (*a, *b)));
                pairs.map(|(a, b)| self.ground.lines.reset(a, b)).sum::<usize>() > 0
            }
            Fault::Slow { latency_ms, lasts_ms } => {
                self.sim.set_max_message_latency(Duration::from_millis(latency_ms));
                self.later(lasts_ms, Then::Calm);
                true
            }
            Fault::SlowDisk { node, sync_ms, lasts_ms } => self.at(node).is_some_and(|sim_node| {
                sim_node.set_pace(Some(sync_ms * 1_000));
                self.later(lasts_ms, Then::Fast(sim_node.id));
                true
            }),
            Fault::TornCheckpoint { node, group } => self.up(node).is_some_and(|sim_node| {
                sim_node.order(Order::Checkpoint(group));
                self.later(8, Then::Die(sim_node.id, Loss::Torn(7), 300));
                true
            }),
            Fault::DamagedCheckpoint { node, group } => self.up(node).is_some_and(|sim_node| {
                sim_node.order(Order::Checkpoint(group));
                self.later(300, Then::Damage(sim_node.id, group));
                true
            }),
            Fault::Clock { node, by_ms } => {
                self.at(node).map(|sim_node| sim_node.shift_clock(by_ms)).is_some()
            }
            Fault::FailingDisk { node } => self.up(node).map(|sim_node| sim_node.fail_disk()).is_some(),
            Fault::OldState { node, older_ms } => {
                self.up(node).filter(|sim_node| !sim_node.is_stale()).is_some_and(|sim_node| {
                    sim_node.copy_media();
                    self.later(older_ms, Then::GoBack(sim_node.id));
                    true
                })
            }
            Fault::Twin { node } => self.start_twin(node),
            Fault::Transfer { group, to } => {
                self.at(to).is_some_and(|to| self.order(&Order::Transfer(group, to.id)))
            }
            Fault::Checkpoint { node, group } => {
                self.up(node).map(|sim_node| sim_node.order(Order::Checkpoint(group))).is_some()
            }
            Fault::Actors { group } => self.order(&Order::Actors(group)),
            Fault::Proposer { group } => self.order(&Order::Proposer(group)),
            Fault::Disaster { survivor, after_ms } => self.lose_all_but(survivor, after_ms),
            Fault::Restore { group, older_ms } => {
                let free = !self.operator.is_busy() && self.bereft.is_none();
                if free {
                    self.operator.order(Task::Restore { group, older_ms });
                }
                free
            }
            Fault::Garbage { group } => {
                self.ground.garbage.borrow_mut().insert(group);
                self.order(&Order::Garbage(group))
            }
            Fault::Poison { group } => {
                self.ground.poisoned.borrow_mut().insert(group);
                self.order(&Order::Poison(group))
            }
            Fault::AddNode | Fault::RemoveNode { .. } | Fault::ReplaceNode { .. } => {
                self.change_members(fault)
            }
        }
    }

    /// Gives all nodes that are up an order; whether there is one.
    fn order(&self, order: &Order) -> bool {
        let up: Vec<_> = self.sim_nodes.iter().filter(|sim_node| sim_node.life.borrow().is_some()).collect();
        up.iter().for_each(|sim_node| sim_node.order(*order));
        !up.is_empty()
    }

    /// A gateway dies: what its clients had asked is unknown to them, and they ask elsewhere.
    fn kill_gateway(&mut self, number: usize, down_ms: u64) -> bool {
        if !self.dark.insert(number) {
            return false;
        }
        self.sim.crash(gateway_ip(number));
        let at_us = self.sim.elapsed().as_micros() as u64;
        let (control, history) = (Rc::clone(&self.control), Rc::clone(&self.history));
        let (mut under_way, mut history) = (control.under_way.borrow_mut(), history.borrow_mut());
        let lost = under_way.extract_if(.., |_, (gateway, _)| *gateway == number);
        let lost: Vec<(usize, bool)> = lost.map(|(at, (_, through))| (at, through)).collect();
        self.note(format_args!("{} calls are under way", lost.len()));
        for (at, through) in lost {
            let call = &mut history.calls[at];
            call.returned = Some((at_us, End::Unknown));
            control.orphans.borrow_mut().push_back(Orphan {
                gateway: number,
                through,
                group: call.group,
                principal: call.principal.clone(),
                request_id: call.request_id,
                ask: call.ask.clone(),
            });
        }
        self.later(down_ms, Then::StartGateway(number));
        true
    }

    /// All nodes but one die for good.
    fn lose_all_but(&mut self, survivor: Slot, after_ms: u64) -> bool {
        let Some(sim_node) = self.up(survivor) else { return false };
        if self.operator.is_busy() || self.bereft.is_some() || sim_node.is_stale() {
            return false;
        }
        let others: Vec<_> =
            self.sim_nodes.iter().filter(|other| !other.gone.get() && other.id != sim_node.id).collect();
        let lost: Vec<(u64, Slot)> = others.iter().map(|other| (other.id, other.slot)).collect();
        lost.iter().for_each(|(node, _)| self.put_away(*node));
        self.bereft = Some(lost);
        self.later(after_ms, Then::Recover(sim_node.id, self.watch.furthest.clone()));
        true
    }

    /// The last node goes on alone, and gets new companions.
    fn recover(&mut self, node: u64, furthest: BTreeMap<u32, (u64, u64)>) {
        // As the first one ordered by hand is numbered: incarnations that files begin count in the lower half.
        let incarnation = 1 << 32;
        self.ground.file.change(|topology| {
            topology.fences = furthest.keys().map(|group| (*group, incarnation)).collect();
        });
        self.sim_node(node).goes_on_alone(LastOne { incarnation, furthest });
        let comes_back = |then: &Then| matches!(then, Then::Start(id) if *id == node);
        if !self.kill(node, Loss::Everything, 300) && !self.agenda.values().flatten().any(comes_back) {
            // It is starting, and has begun without the order.
            self.sim.crash(node_ip(node));
            self.later(300, Then::Start(node));
        }
        let lost = self.bereft.take().unwrap_or_default();
        let add = lost.iter().map(|(_, slot)| self.add_node(*slot)).collect();
        let change = Change { add, remove: lost.iter().map(|(node, _)| *node).collect() };
        self.note(format_args!("the operator is to {change:?}"));
        self.operator.order(Task::Change(change));
    }

    /// Starts a node that is new, and is in the topology.
    fn add_node(&mut self, slot: Slot) -> u64 {
        let file = self.ground.file.clone();
        let id = file.read().next_node_id();
        file.change(|topology| topology.nodes.push(entry(id)));
        self.start_new(id, slot);
        id
    }

    /// Orders a change of members, unless one is under way.
    fn change_members(&mut self, fault: &Fault) -> bool {
        if self.operator.is_busy() || self.bereft.is_some() {
            return false;
        }
        let file = self.ground.file.clone();
        let change = match fault {
            Fault::ReplaceNode { node, dead } => {
                let Some(old) = self.at(*node) else { return false };
                if *dead {
                    self.put_away(old.id);
                }
                Change { add: vec![self.add_node(*node)], remove: vec![old.id] }
            }
            Fault::RemoveNode { node } => {
                let Some(old) = self.at(*node).filter(|_| file.read().nodes.len() as u64 > NODES) else {
                    return false;
                };
                Change { add: Vec::new(), remove: vec![old.id] }
            }
            _ => {
                let taken: BTreeSet<Slot> = self
                    .sim_nodes
                    .iter()
                    .filter(|sim_node| !sim_node.gone.get())
                    .map(|sim_node| sim_node.slot)
                    .collect();
                let Some(free) = (1..).find(|slot| !taken.contains(slot)) else { return false };
                Change { add: vec![self.add_node(free)], remove: Vec::new() }
            }
        };
        self.note(format_args!("the operator is to {change:?}"));
        self.operator.order(Task::Change(change));
        true
    }

    /// All groups have made a change: who was removed is retired, so that its id is never used again, and put away.
    pub(crate) fn conclude(&mut self, change: &Change) {
        self.note(format_args!("done: {change:?}"));
        if !change.remove.is_empty() {
            self.ground.file.change(|topology| {
                topology.nodes.retain(|node| !change.remove.contains(&node.id));
                topology.retired.extend(&change.remove);
            });
        }
        for node in &change.remove {
            if !self.sim_node(*node).gone.get() {
                self.put_away(*node);
            }
        }
    }

    /// Where the machines of a host are.
    fn ips(&self, host: Host) -> Vec<IpAddr> {
        match host {
            Host::Gateway(number) => vec![gateway_ip(number)],
            Host::Node(slot) => self
                .sim_nodes
                .iter()
                .filter(|sim_node| sim_node.slot == slot)
                .map(|sim_node| node_ip(sim_node.id))
                .collect(),
        }
    }

    fn all_ips(&self) -> Vec<IpAddr> {
        let nodes = self.sim_nodes.iter().map(|sim_node| node_ip(sim_node.id));
        nodes.chain((1..=GATEWAYS).map(gateway_ip)).chain([OPERATOR_IP]).collect()
    }

    fn one_way(&mut self, from: Host, to: Host) {
        for from in self.ips(from) {
            for to in self.ips(to) {
                self.sim.partition_oneway(from, to);
            }
        }
    }

    /// Does something to all links between a side and the rest.
    fn between(&mut self, side: &[Host], act: impl Fn(&Sim<'static>, IpAddr, IpAddr)) {
        let side: Vec<IpAddr> = side.iter().flat_map(|host| self.ips(*host)).collect();
        for other in self.all_ips().into_iter().filter(|ip| !side.contains(ip)) {
            for one in &side {
                act(&self.sim, *one, other);
            }
        }
    }

    fn heal_network(&mut self) {
        self.flapping_until_ms = 0;
        let all = self.all_ips();
        for (at, one) in all.iter().enumerate() {
            for other in &all[at + 1..] {
                self.sim.release(*one, *other);
            }
        }
    }

    /// Ends all faults.
    pub(crate) fn heal(&mut self) {
        self.end_twin();
        self.note(format_args!("all is healed"));
        self.heal_network();
        self.carry_out(Then::Calm);
        for sim_node in self.sim_nodes.clone() {
            sim_node.set_clock_right();
            sim_node.set_pace(None);
        }
        // What is down comes back now; nobody dies any more.
        let agenda = std::mem::take(&mut self.agenda);
        for then in agenda.into_values().flatten() {
            if matches!(then, Then::Start(_) | Then::StartGateway(_) | Then::Recover(..)) {
                self.carry_out(then);
            }
        }
    }

    /// The node goes that the plan takes away for good.
    pub(crate) fn leave_for_good(&mut self) {
        if let Some(sim_node) = self.plan.gone.and_then(|slot| self.at(slot)) {
            self.put_away(sim_node.id);
        }
    }
}
