//! The file that says which nodes there are, and the operator who changes it, as `tidewall node add|remove|replace` does:
//! the new node is put into the file and started, the groups take it in and let the old one go, one after the other, and
//! then the old one is retired in the file and put away.
//!
//! The groups are changed by the product's own code, through its client and its nodes. **Never here:** starting and stopping
//! processes; that is the harness's.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tidewall_client::{ClientError, ShardClient, ShardClientOptions, Topology};
use tokio::time::sleep;

use crate::clerk::Clerk;
use crate::history::Cut;
use crate::node::Ground;
use crate::oracle::Violation;
use crate::world::now_us;

/// Processes look at the file this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a node may take to answer before it is asked again, and a group to change.
const NODE_PATIENCE: Duration = Duration::from_secs(1);
const GROUP_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attempts.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// The topology file; clones are the same.
#[derive(Clone)]
pub struct TopologyFile(Rc<RefCell<Topology>>);

impl TopologyFile {
    /// A file of this content.
    pub fn new(topology: Topology) -> Self {
        Self(Rc::new(RefCell::new(topology)))
    }

    /// What it says now.
    pub fn read(&self) -> Topology {
        self.0.borrow().clone()
    }

    /// Writes a later state.
    pub fn change(&self, change: impl FnOnce(&mut Topology)) {
        let mut topology = self.0.borrow_mut();
        change(&mut topology);
        topology.generation += 1;
    }

    /// Calls `adopt` with every later state of `current`, as a process does. Never returns.
    pub async fn follow(self, mut current: Topology, mut adopt: impl FnMut(&Topology)) {
        loop {
            let found = self.read();
            if current.is_followed_by(&found) {
                adopt(&found);
                current = found;
            }
            sleep(LOOK_EVERY).await;
        }
    }
}

/// A change of the members of all groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Nodes that get replicas: they are in the file already.
    pub add: Vec<u64>,
    /// Nodes that lose theirs.
    pub remove: Vec<u64>,
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Task {
    /// Change members.
    Change(Change),
    /// Bring a group back to a state that it was exported in.
    Restore {
        /// The group.
        group: u32,
        /// How long ago, at least, ms.
        older_ms: u64,
    },
}

/// Who changes members and restores groups, one thing at a time.
pub struct Operator {
    ground: Ground,
    /// What is to be done, or is being done.
    wanted: RefCell<Option<Task>>,
    done: Cell<bool>,
    /// Looks after dead letters meanwhile.
    pub clerk: Clerk,
}

impl Operator {
    /// Somebody with nothing to do.
    pub fn new(ground: Ground) -> Self {
        let clerk = Clerk::new(ground.clone());
        Self { ground, wanted: RefCell::default(), done: Cell::new(false), clerk }
    }

    /// Whether something is under way.
    pub fn is_busy(&self) -> bool {
        self.wanted.borrow().is_some()
    }

    /// Gives the operator something to do.
    pub fn order(&self, task: Task) {
        *self.wanted.borrow_mut() = Some(task);
    }

    /// What was done, once.
    pub fn take_done(&self) -> Option<Task> {
        if self.done.replace(false) { self.wanted.take() } else { None }
    }

    fn note(&self, what: std::fmt::Arguments<'_>) {
        self.ground.trace.note(now_us(), "operator", what);
    }

    async fn carry_out(&self, shards: &ShardClient, task: &Task) {
        match task {
            Task::Change(change) => self.change(shards, change).await,
            Task::Restore { group, older_ms } => {
                self.restore(shards, *group, Duration::from_millis(*older_ms)).await;
            }
        }
    }

    /// Exports a group, and imports the file some time later.
    async fn restore(&self, shards: &ShardClient, group: u32, older: Duration) {
        let mut began_us = now_us();
        let file = loop {
            if let Some(file) = exported(shards, group).await {
                break file;
            }
            sleep(AGAIN_AFTER).await;
            began_us = now_us();
        };
        let exported = tidewall_machine::snapshot::read(&mut file.as_slice());
        let index = match exported {
            Ok(loaded) => loaded.machine.applied_index(),
            Err(error) => return self.object(format!("what group {group} exports cannot be read: {error}")),
        };
        self.note(format_args!("group {group} was exported at index {index}"));
        sleep(older).await;
        loop {
            match self.import(shards, group, file.clone()).await {
                Ok(incarnation) => {
                    let kept = (u64::MAX, index);
                    let (seen_until_us, taken_us) = (now_us(), began_us);
                    let cut = Cut { incarnation, kept, seen_until_us, forgets_ids: true, taken_us };
                    self.note(format_args!("group {group} was restored: {cut:?}"));
                    self.ground.cuts.borrow_mut().entry(group).or_default().push(cut);
                    break;
                }
                Err(why) => {
                    self.note(format_args!("group {group} was not restored: {why}"));
                    sleep(AGAIN_AFTER).await;
                }
            }
        }
        self.done.set(true);
    }

    /// The incarnation that an import has begun.
    async fn import(&self, shards: &ShardClient, group: u32, file: Vec<u8>) -> Result<u64, String> {
        use tidewall_proto::internal::v1::import_response::Result as R;
        let importer = shards.importer(group, NODE_PATIENCE).await.map_err(|error| error.to_string())?;
        let chunks = file.chunks(4 << 10).map(Bytes::copy_from_slice).collect::<Vec<_>>();
        let chunks = Box::pin(futures_util::stream::iter(chunks));
        let answer = importer.run(true, "operator".to_owned(), chunks).await;
        match answer.map_err(|error| error.to_string())?.result {
            Some(R::Done(done)) => Ok(done.incarnation),
            other => Err(format!("{other:?}")),
        }
    }

    async fn change(&self, shards: &ShardClient, change: &Change) {
        for node in &change.add {
            while !shards
                .node_states(NODE_PATIENCE)
                .await
                .iter()
                .any(|(id, state)| id == node && state.is_ok())
            {
                sleep(AGAIN_AFTER).await;
            }
            self.note(format_args!("n{node} answers"));
        }
        let Change { add, remove } = change;
        for region in self.ground.file.read().regions {
            let group = region.group;
            loop {
                match shards.change_replicas(group, add, remove, "operator", GROUP_PATIENCE).await {
                    Ok(response) => {
                        self.note(format_args!("group {group} has the voters {:?}", response.voters));
                        let voters: BTreeSet<u64> = response.voters.into_iter().collect();
                        if !add.iter().all(|node| voters.contains(node))
                            || remove.iter().any(|node| voters.contains(node))
                        {
                            self.object(format!("group {group} was to {change:?} and has {voters:?}"));
                        }
                        break;
                    }
                    // True while it is cut off; once all is healed it must not be any more.
                    Err(ClientError::Invalid(why)) if why.contains("down: without a majority") => {
                        self.note(format_args!("group {group}: {why}"));
                        sleep(AGAIN_AFTER).await;
                    }
                    Err(ClientError::Invalid(why)) => {
                        return self.object(format!("group {group} was to {change:?} and refuses it: {why}"));
                    }
                    Err(error) => {
                        self.note(format_args!("group {group}: {error}"));
                        sleep(AGAIN_AFTER).await;
                    }
                }
            }
        }
        self.done.set(true);
    }

    fn object(&self, what: String) {
        self.note(format_args!("VIOLATION members: {what}"));
        self.ground.violations.borrow_mut().push(Violation { check: "members", what });
    }
}

/// A group's snapshot file, if it can be had.
async fn exported(shards: &ShardClient, group: u32) -> Option<Vec<u8>> {
    let mut parts = shards.export(group, NODE_PATIENCE).await.ok()?;
    let mut file = Vec::new();
    loop {
        match tokio::time::timeout(NODE_PATIENCE, parts.message()).await {
            Ok(Ok(Some(part))) => file.extend_from_slice(&part.chunk),
            Ok(Ok(None)) => return Some(file),
            _ => return None,
        }
    }
}

/// The software of the operator's machine.
pub async fn live(operator: Rc<Operator>) -> turmoil::Result {
    // The host's clock runs only within a step of the simulation.
    sleep(Duration::from_millis(1)).await;
    let file = operator.ground.file.clone();
    let topology = file.read();
    let shards = Rc::new(ShardClient::new(Arc::new(topology.clone()), ShardClientOptions::default()));
    let adopting = Rc::clone(&shards);
    tokio::task::spawn_local(file.follow(topology, move |topology| adopting.adopt(topology)));
    let (clerk, shared) = (Rc::clone(&operator), Rc::clone(&shards));
    tokio::task::spawn_local(async move { clerk.clerk.work(shared).await });
    loop {
        let wanted = operator.wanted.borrow().clone();
        match wanted {
            Some(task) if !operator.done.get() => operator.carry_out(&shards, &task).await,
            _ => sleep(Duration::from_millis(20)).await,
        }
    }
}
