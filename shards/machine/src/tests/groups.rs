//! Several groups and what carries messages between them, step by step, in whatever order a test wants.

use std::collections::BTreeMap;

use tidewall_domain::module::AnyModule;
use tidewall_domain::outbox::GroupNo;

use super::*;
use crate::courier::{Memory, Todo, heard, is_news};

/// More steps than any test needs to come to rest.
const STEPS_MAX: usize = 200_000;

pub(super) struct Groups {
    groups: BTreeMap<GroupNo, Member>,
    modules: fn() -> Vec<Box<dyn AnyModule>>,
    pub now_ms: u64,
    /// Deliveries that were made: copies of them may come once more.
    pub delivered: Vec<(GroupNo, Delivery)>,
    ids: u64,
}

struct Member {
    machine: Machine,
    index: u64,
    couriers: BTreeMap<GroupNo, Memory>,
    saved: Option<Frozen>,
    /// The highest incarnation that there was.
    incarnation: u64,
}

impl Groups {
    pub fn new(count: GroupNo, modules: fn() -> Vec<Box<dyn AnyModule>>) -> Self {
        let member = || Member {
            machine: Machine::with_modules(modules()),
            index: 0,
            couriers: BTreeMap::new(),
            saved: None,
            incarnation: 1,
        };
        let groups = (1..=count).map(|group| (group, member())).collect();
        let mut groups = Self { groups, modules, now_ms: T0, delivered: Vec::new(), ids: 0 };
        for group in groups.numbers() {
            groups.system(group, SystemCommand::RaiseVersion(APPLY_VERSION));
        }
        groups
    }

    pub fn numbers(&self) -> Vec<GroupNo> {
        self.groups.keys().copied().collect()
    }

    pub fn rows(&self, group: GroupNo) -> &Machine {
        &self.groups[&group].machine
    }

    /// Applies an entry.
    pub fn entry(&mut self, group: GroupNo, commands: Vec<Command>) -> Vec<Decision> {
        let stamp = Stamp::confirmed(self.now_ms);
        let member = self.groups.get_mut(&group).unwrap();
        let payload = Entry { stamp, commands }.encode();
        let position = Position { term: 1, node: 1, index: member.index };
        member.index += 1;
        member.machine.apply(position, &payload).unwrap()
    }

    pub fn system(&mut self, group: GroupNo, command: SystemCommand) -> Decision {
        self.entry(group, vec![Command::system(command)]).remove(0)
    }

    /// Has a module of a group decide a command.
    pub fn ask(
        &mut self,
        group: GroupNo,
        principal: &str,
        command: &impl tidewall_messages::ModuleCommand,
    ) -> Decision {
        self.ids += 1;
        let command = Command::asking(principal, id(self.now_ms, self.ids), self.now_ms + 5_000, command);
        self.entry(group, vec![command]).remove(0)
    }

    /// One step of a courier; what is said to it may be lost. Whether anything was done.
    pub fn step(&mut self, from: GroupNo, to: GroupNo, lost: bool) -> bool {
        let member = self.groups.get_mut(&from).unwrap();
        let memory = *member.couriers.entry(to).or_insert_with(|| Memory::begin(&member.machine, to));
        match memory.next(&member.machine, from, to) {
            Todo::Nothing => false,
            Todo::Propose(command) | Todo::ProposeLater(command) => {
                self.system(from, command);
                true
            }
            Todo::Deliver(delivery) => {
                self.arrive(to, delivery.clone());
                self.delivered.push((to, delivery));
                let heard = heard(self.rows(to), from);
                let memory = self.groups.get_mut(&from).unwrap().couriers.get_mut(&to).unwrap();
                !lost && memory.hear(heard)
            }
        }
    }

    /// A delivery, or a copy of one, comes.
    pub fn arrive(&mut self, to: GroupNo, delivery: Delivery) {
        if is_news(self.rows(to), &delivery).unwrap_or(false) {
            self.system(to, SystemCommand::Deliver(delivery));
        }
    }

    /// Until no courier has anything to do, and nothing is due.
    pub fn settle(&mut self) {
        let numbers = self.numbers();
        self.groups.values_mut().flat_map(|member| member.couriers.values_mut()).for_each(Memory::doubt);
        for _ in 0..STEPS_MAX {
            let mut busy = false;
            for &from in &numbers {
                if self.rows(from).next_due_ms().is_some_and(|due_ms| due_ms <= self.now_ms) {
                    self.entry(from, vec![tick()]);
                    busy = true;
                }
                for &to in &numbers {
                    busy |= self.step(from, to, false);
                }
            }
            if !busy {
                return;
            }
        }
        panic!("it never comes to rest");
    }

    /// Another replica leads.
    pub fn change_lead(&mut self, group: GroupNo) {
        self.groups.get_mut(&group).unwrap().couriers.clear();
    }

    /// A replica starts again from its checkpoint.
    pub fn reload(&mut self, group: GroupNo) {
        let frozen = self.rows(group).freeze_all();
        let machine = load(self.modules, &frozen);
        assert_eq!(machine.digest(), self.rows(group).digest());
        self.groups.get_mut(&group).unwrap().machine = machine;
        self.change_lead(group);
    }

    /// Keeps the state of now.
    pub fn save(&mut self, group: GroupNo) {
        let member = self.groups.get_mut(&group).unwrap();
        member.saved = Some(member.machine.freeze_all());
    }

    /// Goes on with the state that a group of the same number has kept elsewhere.
    pub fn restore_from(&mut self, group: GroupNo, elsewhere: &mut Self) {
        let saved = elsewhere.groups.get_mut(&group).unwrap().saved.take();
        self.groups.get_mut(&group).unwrap().saved = saved;
        self.restore(group);
    }

    /// Goes back to the state that was kept, if any: a new incarnation.
    pub fn restore(&mut self, group: GroupNo) {
        let modules = self.modules;
        let member = self.groups.get_mut(&group).unwrap();
        let Some(frozen) = &member.saved else { return };
        let mut machine = load(modules, frozen);
        member.incarnation = ((member.incarnation >> 32) + 1) << 32;
        member.index += 1;
        let position = Position { term: 2, node: 1, index: member.index };
        machine.begin_incarnation(position, Vec::new(), member.incarnation);
        member.index += 1;
        member.machine = machine;
        self.change_lead(group);
    }
}

fn load(modules: fn() -> Vec<Box<dyn AnyModule>>, frozen: &Frozen) -> Machine {
    let mut loader = Machine::with_modules(modules()).into_loader();
    for page in &frozen.pages {
        if let Some(bytes) = page.encode() {
            loader.page(page.table(), &bytes).unwrap();
        }
    }
    loader.finish(frozen.head.clone(), frozen.digest).unwrap()
}
