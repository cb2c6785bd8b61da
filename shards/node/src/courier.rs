//! Carries messages of the groups that this node leads to the groups for which they are, and takes in what others bring.
//!
//! What is to be done says the machine ([`tidewall_machine::courier`]); here are calls, proposals and pauses. A courier holds nothing that
//! matters: it forgets all when the lead is lost, and what is delivered twice does no harm. **Never here:** what a message says, and a
//! wait that one group would have for another.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{BoxFuture, join_all};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tidewall_actors::Refusal;
use tidewall_consensus::{Group, Peers};
use tidewall_domain::module::{AnyModule, NotUnderstood};
use tidewall_domain::registry;
use tidewall_machine::courier::{Heard, Memory, Todo, heard, is_news};
use tidewall_machine::streams::StreamRow;
use tidewall_machine::{Command, Delivery, Machine, SENDS_MESSAGES, SystemCommand};
use tidewall_proto::internal::v1 as pb;
use tokio::time::Instant;

use crate::shard;
use crate::standing::Standing;

/// How often a group is looked at when nothing is said.
const ROUND: Duration = Duration::from_secs(1);
/// How often a group is asked who it is to which nothing was to be said.
const ASKED_EVERY: Duration = Duration::from_secs(5);
/// How long something waits for being noted with something else.
const LATER: Duration = Duration::from_millis(200);
/// How long an answer to a delivery is waited for: longer than a proposal takes.
const ANSWER_MAX: Duration = Duration::from_secs(4);
/// Pauses before what brought nothing on is tried again: the first, and the longest.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// After so many pauses it is told that messages are not taken in.
const TOLD_AT: u32 = 10;

/// What carries messages between the groups of this node and those of all nodes.
pub(crate) struct Couriers {
    groups: BTreeMap<u32, Group>,
    standing: Arc<Standing>,
    peers: Peers,
    /// Without rows: they know what they understand.
    modules: Vec<Box<dyn AnyModule>>,
}

/// What is known of a group to which something is to be brought.
struct Other {
    memory: Memory,
    /// Something is under way.
    busy: bool,
    /// When it has said something.
    heard: Instant,
    /// Not before.
    again_at: Option<Instant>,
    pauses: u32,
    /// Since when something waits that may be noted with something else.
    since: Option<Instant>,
    /// The node that was asked last, when nobody knows who leads the group.
    asked: usize,
    /// Who leads the group, as its members have said.
    leader: Option<u64>,
}

impl Other {
    fn new(memory: Memory) -> Self {
        Self {
            memory,
            busy: false,
            heard: Instant::now(),
            again_at: None,
            pauses: 0,
            since: None,
            asked: 0,
            leader: None,
        }
    }

    /// Nothing came of it: it is tried again, later each time.
    fn pause(&mut self) {
        let full = PAUSE_MIN.saturating_mul(1 << self.pauses.min(10)).min(PAUSE_MAX);
        self.pauses += 1;
        self.again_at = Some(Instant::now() + full);
    }

    fn go_on(&mut self) {
        (self.again_at, self.pauses) = (None, 0);
    }
}

/// What something that was under way has come to.
enum Came {
    Delivered(Result<pb::Delivered, String>),
    Proposed(Result<(), Refusal>),
}

impl Couriers {
    pub(crate) fn new(groups: BTreeMap<u32, Group>, standing: Arc<Standing>, peers: Peers) -> Self {
        Self { groups, standing, peers, modules: registry::modules() }
    }

    /// Takes in messages for a group of this node, if it leads it, and says what the group has.
    pub(crate) async fn receive(&self, deliver: pb::Deliver) -> pb::Delivered {
        let taken = match Delivery::from_bytes(&deliver.delivery) {
            Ok(delivery) if delivery.from == deliver.from => self.take_in(deliver.to, delivery).await,
            Ok(_) => Err((None, "the delivery is of another group than it says".to_owned())),
            Err(error) => Err((None, format!("the delivery does not decode: {error}"))),
        };
        match taken {
            Ok(heard) => pb::Delivered {
                incarnation: heard.incarnation,
                pair_other: heard.pair.0,
                pair_own: heard.pair.1,
                received: heard.received,
                leader_node: self.standing.node(),
                ..Default::default()
            },
            Err((leader, refusal)) => {
                pb::Delivered { refusal, leader_node: leader.unwrap_or(0), ..Default::default() }
            }
        }
    }

    async fn take_in(&self, to: u32, delivery: Delivery) -> Result<Heard, (Option<u64>, String)> {
        let group =
            self.groups.get(&to).ok_or_else(|| (None, format!("this node does not serve group {to}")))?;
        if !group.believes_to_lead() {
            // Whoever has stopped leading may not have heard of another leader.
            let leader = group.believed_leader().filter(|node| *node != self.standing.node());
            return Err((leader, format!("this node does not lead group {to}")));
        }
        if let Some(why) = group.state().suspended() {
            return Err((None, format!("group {to} writes nothing here: {why}")));
        }
        let state = group.state();
        let (version, news) = state.read(|machine| (machine.apply_version(), is_news(machine, &delivery)));
        let news = news.map_err(|why| (Some(self.standing.node()), why))?;
        if version < SENDS_MESSAGES || !self.are_known(version, &delivery) {
            return Err((None, format!("not all members of group {to} have a build that knows this")));
        }
        let from = delivery.from;
        if news {
            let command = Command::system(SystemCommand::Deliver(delivery));
            shard::propose(group, &self.standing, vec![command]).await.map_err(|refusal| {
                let leader = if let Refusal::NotLeader { leader } = refusal { leader } else { None };
                (leader, refusal.to_string())
            })?;
        }
        Ok(group.state().read(|machine| heard(machine, from)))
    }

    /// Whether all members of a group with this apply version know what is said. What nobody ever understands is for the group to set
    /// aside.
    fn are_known(&self, version: u32, delivery: &Delivery) -> bool {
        delivery.messages.iter().all(|message| {
            let module = self.modules.iter().find(|module| module.number() == message.module);
            match module.map(|module| module.understands_message(&message.payload)) {
                Some(Ok(since)) => since <= version,
                Some(Err(NotUnderstood::Malformed(_))) => true,
                Some(Err(NotUnderstood::Later)) | None => false,
            }
        })
    }

    /// Brings a delivery to a node: to this one without a way.
    async fn deliver(
        self: Arc<Self>,
        node: u64,
        to: u32,
        delivery: Delivery,
    ) -> Result<pb::Delivered, String> {
        let deliver = pb::Deliver { to, from: delivery.from, delivery: delivery.to_bytes().into() };
        if node == self.standing.node() {
            return Ok(self.receive(deliver).await);
        }
        self.peers.deliver(node, deliver, ANSWER_MAX).await
    }

    /// The node to ask about a group.
    fn node_for(&self, to: u32, other: &mut Other) -> u64 {
        // Who was told to lead is asked, though not for ever either; what the replica here believes is not trusted for ever.
        let believed = || self.groups.get(&to)?.believed_leader().filter(|_| other.pauses < 2);
        let told = other.leader.take().filter(|_| other.pauses % 3 != 2);
        let known = told.or_else(believed);
        known.unwrap_or_else(|| {
            let mut nodes = self.standing.others();
            nodes.push(self.standing.node());
            nodes.sort_unstable();
            other.asked += 1;
            nodes[other.asked % nodes.len()]
        })
    }
}

/// Runs until the node stops.
pub(crate) async fn keep(couriers: Arc<Couriers>) {
    let carried =
        couriers.groups.iter().map(|(number, group)| carry(Arc::clone(&couriers), *number, group.clone()));
    join_all(carried).await;
}

/// Something under way: in which lead, about which groups.
type UnderWay = BoxFuture<'static, (u64, Vec<u32>, Came)>;

/// Carries the messages of one group, while this node leads it.
async fn carry(couriers: Arc<Couriers>, own: u32, group: Group) {
    let mut others: BTreeMap<u32, Other> = BTreeMap::new();
    let mut under_way: FuturesUnordered<UnderWay> = FuturesUnordered::new();
    // Counts leads: what was begun in an earlier one counts for nothing.
    let mut lead = 0;
    let mut leads = false;
    loop {
        let wait = wait(&others).min(ROUND);
        tokio::select! {
            biased;
            Some((of, about, came)) = under_way.next(), if !under_way.is_empty() => {
                for to in about.into_iter().filter(|_| of == lead) {
                    if let Some(other) = others.get_mut(&to) {
                        take(other, to, &came, &group);
                    }
                }
            }
            () = group.state().sends() => {}
            () = tokio::time::sleep(wait) => {}
        }
        if leads != group.believes_to_lead() {
            (leads, lead) = (!leads, lead + 1);
            others.clear();
        }
        if !leads || group.state().read(Machine::apply_version) < SENDS_MESSAGES {
            continue;
        }
        let (todos, later) = group.state().read(|machine| look(machine, own, &mut others));
        for (to, todo) in todos {
            let Some(other) = others.get_mut(&to) else { continue };
            let doing: BoxFuture<'static, Came> = match todo {
                Todo::Deliver(delivery) => {
                    let node = couriers.node_for(to, other);
                    Arc::clone(&couriers).deliver(node, to, delivery).map(Came::Delivered).boxed()
                }
                Todo::Propose(command) => propose(&couriers, &group, vec![command]),
                Todo::ProposeLater(_) | Todo::Nothing => continue,
            };
            other.busy = true;
            under_way.push(doing.map(move |came| (lead, vec![to], came)).boxed());
        }
        if !later.is_empty() {
            // All in one entry: whoever is named in it waits for it.
            let about: Vec<u32> = later.iter().map(|(to, _)| *to).collect();
            for to in &about {
                if let Some(other) = others.get_mut(to) {
                    (other.busy, other.since) = (true, None);
                }
            }
            let doing = propose(&couriers, &group, later.into_iter().map(|(_, command)| command).collect());
            under_way.push(doing.map(move |came| (lead, about, came)).boxed());
        }
    }
}

fn propose(
    couriers: &Arc<Couriers>,
    group: &Group,
    commands: Vec<SystemCommand>,
) -> BoxFuture<'static, Came> {
    let (couriers, group) = (Arc::clone(couriers), group.clone());
    async move {
        let commands = commands.into_iter().map(Command::system).collect();
        Came::Proposed(shard::propose(&group, &couriers.standing, commands).await.map(drop))
    }
    .boxed()
}

/// How long nothing need be done, if nothing is said.
fn wait(others: &BTreeMap<u32, Other>) -> Duration {
    let now = Instant::now();
    let until = |other: &Other| {
        let later = other.since.map(|since| since + LATER);
        let at = if other.busy { None } else { other.again_at.or(later) };
        at.map(|at| at.saturating_duration_since(now).max(Duration::from_millis(1)))
    };
    others.values().filter_map(until).min().unwrap_or(ROUND)
}

/// What is to be done now, and what may be noted together.
type Todos = (Vec<(u32, Todo)>, Vec<(u32, SystemCommand)>);

/// Looks what is to be done about all groups that this one has to do with.
fn look(machine: &Machine, own: u32, others: &mut BTreeMap<u32, Other>) -> Todos {
    let now = Instant::now();
    let (mut todos, mut later) = (Vec::new(), Vec::new());
    let mut due = false;
    others.retain(|to, other| other.busy || machine.stream(*to) != StreamRow::default());
    for (to, _) in machine.streams() {
        let other = others.entry(to).or_insert_with(|| Other::new(Memory::begin(machine, to)));
        if other.busy || other.again_at.is_some_and(|at| now < at) {
            continue;
        }
        if now >= other.heard + ASKED_EVERY {
            other.memory.doubt();
        }
        match other.memory.next(machine, own, to) {
            Todo::Nothing => (other.since, other.again_at) = (None, None),
            Todo::ProposeLater(command) => {
                other.again_at = None;
                let since = *other.since.get_or_insert(now);
                due |= now >= since + LATER;
                later.push((to, command));
            }
            todo => todos.push((to, todo)),
        }
    }
    if !due {
        later.clear();
    }
    (todos, later)
}

/// Takes in what something has come to.
fn take(other: &mut Other, to: u32, came: &Came, group: &Group) {
    other.busy = false;
    match came {
        Came::Delivered(Ok(delivered)) if delivered.refusal.is_empty() => {
            let heard = Heard {
                incarnation: delivered.incarnation,
                pair: (delivered.pair_other, delivered.pair_own),
                received: delivered.received,
            };
            other.leader = Some(delivered.leader_node);
            other.heard = Instant::now();
            let went_on = other.memory.hear(heard);
            let todo = group.state().read(|machine| other.memory.next(machine, group.number(), to));
            // Who has heard the same as before and has the same to do would do it for ever.
            let idle = matches!(todo, Todo::Nothing | Todo::ProposeLater(_));
            if went_on || idle { other.go_on() } else { other.pause() }
        }
        Came::Delivered(Ok(delivered)) => {
            let why = delivered.refusal.as_str();
            match other.pauses {
                // It lasts: some seconds.
                TOLD_AT => tracing::warn!(group = group.number(), to, why, "messages are not taken in"),
                _ => tracing::debug!(group = group.number(), to, why, "messages are not taken in"),
            }
            other.leader = (delivered.leader_node > 0).then_some(delivered.leader_node);
            other.pause();
        }
        Came::Delivered(Err(why)) => {
            tracing::debug!(group = group.number(), to, why, "messages cannot be delivered");
            other.pause();
        }
        Came::Proposed(Ok(())) => other.go_on(),
        Came::Proposed(Err(why)) => {
            tracing::debug!(group = group.number(), to, %why, "what is known of another group is not noted");
            other.pause();
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message as _;
    use tidewall_machine::Op;
    use tidewall_machine::domain::accounts::State;
    use tidewall_machine::streams::Message;
    use tidewall_messages::accounts as messages;

    use super::*;
    use crate::fake::{Replica, replicas, standing};

    const PATIENCE: Duration = Duration::from_secs(20);

    /// The couriers of two replicas of group 1: of its leader, and of the other one.
    async fn pair() -> (Vec<Replica>, Arc<Couriers>, Arc<Couriers>) {
        let running = replicas(&[1, 2]).await;
        let couriers: Vec<_> = running
            .iter()
            .zip(1..)
            .map(|(replica, node)| {
                let groups = BTreeMap::from([(1, replica.group.clone())]);
                Arc::new(Couriers::new(groups, standing(node), replica.peers.clone()))
            })
            .collect();
        let settled = async {
            loop {
                for (at, replica) in running.iter().enumerate() {
                    if shard::confirm(&replica.group).await.is_ok() {
                        return at;
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let leader = tokio::time::timeout(PATIENCE, settled).await.expect("one of them leads");
        let (one, other) = (Arc::clone(&couriers[leader]), Arc::clone(&couriers[1 - leader]));
        (running, one, other)
    }

    async fn told(couriers: &Couriers, command: Command) {
        let group = &couriers.groups[&1];
        shard::propose(group, &couriers.standing, vec![command]).await.unwrap();
    }

    async fn receive(couriers: &Couriers, to: u32, delivery: &[u8]) -> pb::Delivered {
        couriers.receive(pb::Deliver { to, from: 7, delivery: delivery.to_vec().into() }).await
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn who_leads_takes_messages_in_and_everybody_else_says_why_not() {
        let (running, leader, follower) = pair().await;
        let message =
            |payload: &[u8]| Message { module: messages::MODULE, saga: 1, payload: payload.to_vec() };
        let question = Delivery {
            from: 7,
            from_incarnation: 1,
            to_incarnation: 0,
            origin: 1,
            origin_chain: 0,
            first: 1,
            chain: 0,
            received: 0,
            messages: Vec::new(),
        };
        let bytes = question.to_bytes();
        let refused = |delivered: pb::Delivered, why: &str| {
            assert!(delivered.refusal.contains(why), "{why}: {delivered:?}");
            delivered.leader_node
        };
        refused(receive(&leader, 1, &[1, 2, 3]).await, "does not decode");
        refused(receive(&leader, 9, &bytes).await, "does not serve group 9");
        let foreign = Delivery { from: 8, ..question.clone() };
        refused(receive(&leader, 1, &foreign.to_bytes()).await, "of another group");
        let node = refused(receive(&follower, 1, &bytes).await, "does not lead");
        assert_ne!(node, follower.standing.node(), "nobody is sent to who does not lead");
        refused(receive(&leader, 1, &bytes).await, "not all members");
        told(&leader, Command::system(SystemCommand::RaiseVersion(SENDS_MESSAGES))).await;
        let asked = receive(&leader, 1, &bytes).await;
        assert_eq!((asked.refusal.as_str(), asked.incarnation, asked.received), ("", 1, 0));
        // What nobody understands is set aside, and what a later build understands waits for it.
        let garbage = Delivery { to_incarnation: 1, messages: vec![message(&[0xff])], ..question.clone() };
        assert_eq!(receive(&leader, 1, &garbage.to_bytes()).await.received, 2);
        assert_eq!(receive(&leader, 1, &garbage.to_bytes()).await.received, 2, "a copy");
        let rows = leader.groups[&1].state();
        assert_eq!(rows.read(Machine::dead_letters_count), 1);
        let later = Delivery { to_incarnation: 1, messages: vec![message(&[])], ..question.clone() };
        refused(receive(&leader, 1, &later.to_bytes()).await, "not all members");
        let parted =
            Delivery { to_incarnation: 1, messages: vec![message(&[0xfe]), message(&[0xff])], ..question };
        refused(receive(&leader, 1, &parted.to_bytes()).await, "have parted");
        rows.suspend(Some("for this test".into()));
        refused(receive(&leader, 1, &bytes).await, "for this test");
        running.iter().for_each(|replica| replica.writer.stop());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_a_group_sends_arrives_and_is_let_go() {
        let (running, leader, follower) = pair().await;
        told(&leader, Command::system(SystemCommand::RaiseVersion(SENDS_MESSAGES))).await;
        let carrying = [tokio::spawn(keep(Arc::clone(&leader))), tokio::spawn(keep(Arc::clone(&follower)))];
        let register = messages::Command::from(messages::Register {
            email_hash: vec![3; 32],
            key_id: vec![1; 16],
            credential: Some(messages::Credential {
                salt: vec![7; 16],
                hash: vec![7; 16],
                ..Default::default()
            }),
            region: "regions/north".into(),
            claim_group: 1,
            ..Default::default()
        });
        let now_ms = leader.standing.now_ms();
        let id = u128::from(now_ms) << 80 | 7 << 76 | 1 << 63;
        let mut command = Command::asking("ann", id, now_ms + 5_000, &register);
        command.op = Op::Module { module: messages::MODULE, payload: register.encode_to_vec() };
        told(&leader, command).await;
        let settled = async {
            // Whoever leads by now.
            while !running.iter().any(|replica| {
                replica.group.state().read(|machine| {
                    let stream = machine.stream(1);
                    let accounts = machine.rows_of::<State>().unwrap().all().count();
                    (accounts, stream.queued(), stream.open, stream.met) == (1, 0, 0, true)
                })
            }) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, settled).await.expect("claimed, made, confirmed, acknowledged");
        carrying.iter().for_each(tokio::task::JoinHandle::abort);
        running.iter().for_each(|replica| replica.writer.stop());
    }

    #[test]
    fn a_courier_sleeps_when_there_is_nothing_to_do() {
        let mut others = BTreeMap::from([(2, Other::new(Memory::default()))]);
        assert_eq!(wait(&others), ROUND);
        let other = others.get_mut(&2).unwrap();
        // It waits for the later of the two: what may be noted some time is noted when anything is done again.
        other.since = Some(Instant::now() - LATER);
        other.again_at = Some(Instant::now() + PAUSE_MAX);
        assert!(wait(&others) > PAUSE_MAX / 2);
        // A stream that is in no rows any more.
        let (todos, later) = look(&Machine::new(), 1, &mut others);
        assert!(todos.is_empty() && later.is_empty() && others.is_empty());
    }
}
