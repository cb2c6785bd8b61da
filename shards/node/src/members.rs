//! Changes the members of a group: a new replica first receives everything and only then votes; who is removed leaves in
//! the same step.
//!
//! Nothing is begun that cannot be finished: the voters that are asked for must have a majority that was heard lately. Every
//! step may be repeated: what is asked for is a state of the group, not a change of it. A node that is to be removed
//! and leads hands the lead over first.

use std::collections::BTreeSet;
use std::time::Duration;

use tidewall_consensus::{ChangeError, Group};
use tokio::time::{Instant, sleep, timeout_at};

use crate::lead::{self, TransferError};
use crate::standing::Standing;

/// A replica that lacks no more than this may vote: the rest arrives while it does.
const LAG_MAX: u64 = 64;
/// How long it may take until this node has seen a node that was just added to the topology.
const TOPOLOGY_PATIENCE: Duration = Duration::from_secs(5);
/// How often the progress of a new replica is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Why the members of a group are not as asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MembersError {
    /// This node does not lead the group, or does not any more.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<u64>,
    },
    /// It cannot be done as asked.
    #[error("{0}")]
    Refused(String),
    /// It is not done yet, or nobody knows: ask again.
    #[error("{0}")]
    Unfinished(String),
}

impl From<ChangeError> for MembersError {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::NotLeader { leader } => Self::NotLeader { leader },
            ChangeError::Refused(why) => Self::Refused(why),
            error @ ChangeError::Pending => Self::Unfinished(error.to_string()),
            ChangeError::Unknown(why) => Self::Unfinished(why),
        }
    }
}

/// Makes `add` vote in the group and `remove` leave it, within `patience`.
///
/// # Errors
/// See [`MembersError`]; what was done until then stays done.
pub async fn change(
    group: &Group,
    standing: &Standing,
    add: &BTreeSet<u64>,
    remove: &BTreeSet<u64>,
    patience: Duration,
) -> Result<(), MembersError> {
    let deadline = Instant::now() + patience;
    let Ok(_alone) = timeout_at(deadline, group.changing()).await else {
        return Err(MembersError::Unfinished("another change of this group's replicas is under way".into()));
    };
    if !group.believes_to_lead() {
        return Err(MembersError::NotLeader { leader: group.believed_leader() });
    }
    if let Some(both) = add.intersection(remove).next() {
        return Err(MembersError::Refused(format!("node {both} is both to be added and to be removed")));
    }
    let (voters, learners) = group.members();
    let wanted: BTreeSet<u64> = voters.union(add).filter(|node| !remove.contains(node)).copied().collect();
    if wanted.is_empty() {
        return Err(MembersError::Refused("the group would have no replica left".into()));
    }
    // A node that was just added may not have been heard yet.
    let heard_by = Instant::now() + TOPOLOGY_PATIENCE;
    // A change that is under way has to be finished, whoever is down.
    while let Some(why) =
        lacks_majority(&wanted, |node| standing.is_heard(node)).filter(|_| !group.is_changing())
    {
        let may_come = add.iter().any(|node| !standing.is_heard(*node));
        if !may_come || Instant::now() >= deadline.min(heard_by) {
            return Err(MembersError::Refused(format!("{why}; nothing was changed")));
        }
        sleep(LOOK_EVERY).await;
    }
    for node in add.iter().filter(|node| !voters.contains(node) && !learners.contains(node)) {
        let known = Instant::now() + TOPOLOGY_PATIENCE;
        let address = loop {
            if let Some(address) = standing.peer_address(*node) {
                break address;
            }
            if Instant::now() >= deadline.min(known) {
                return Err(MembersError::Refused(format!(
                    "the topology that this node follows has no node {node}: add it there first"
                )));
            }
            sleep(LOOK_EVERY).await;
        };
        bounded(deadline, || group.add_learner(*node, address.to_string())).await?;
    }
    for node in add.iter().filter(|node| !voters.contains(node)) {
        while group.lag(*node).is_none_or(|lag| lag > LAG_MAX) {
            if !group.believes_to_lead() {
                return Err(MembersError::NotLeader { leader: group.believed_leader() });
            }
            if Instant::now() >= deadline {
                return Err(MembersError::Unfinished(format!(
                    "node {node} has not received everything yet: it goes on receiving; ask again"
                )));
            }
            sleep(LOOK_EVERY).await;
        }
    }
    if remove.contains(&standing.node()) {
        return Err(leave_lead(group, standing, &wanted, deadline).await);
    }
    // As the members are now: the waiting above took its time.
    let (voters, _) = group.members();
    let wanted: BTreeSet<u64> = voters.union(add).filter(|node| !remove.contains(node)).copied().collect();
    if voters != wanted || group.is_changing() {
        // One may have gone down since.
        if let Some(why) =
            lacks_majority(&wanted, |node| standing.is_heard(node)).filter(|_| !group.is_changing())
        {
            return Err(MembersError::Refused(why));
        }
        bounded(deadline, || group.set_voters(wanted.clone())).await?;
    }
    let (_, learners) = group.members();
    let leaving: BTreeSet<u64> = learners.intersection(remove).copied().collect();
    if !leaving.is_empty() {
        bounded(deadline, || group.remove_learners(leaving.clone())).await?;
    }
    Ok(())
}

/// Why a group of these voters could decide nothing now, and who is down.
fn lacks_majority(wanted: &BTreeSet<u64>, is_heard: impl Fn(u64) -> bool) -> Option<String> {
    let list = |nodes: &[u64]| nodes.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let voters: Vec<u64> = wanted.iter().copied().collect();
    let down: Vec<u64> = voters.iter().copied().filter(|node| !is_heard(*node)).collect();
    if (voters.len() - down.len()) * 2 > voters.len() {
        return None;
    }
    Some(format!(
        "the group would have its replicas on {} {}, and {} {} down: without a majority it could sell nothing. Start {}, \
         or replace it, and ask again",
        if voters.len() == 1 { "node" } else { "nodes" },
        list(&voters),
        list(&down),
        if down.len() == 1 { "is" } else { "are" },
        if down.len() == 1 { "it" } else { "one of them" },
    ))
}

/// The leader itself is to go: who takes over goes on with the change.
async fn leave_lead(
    group: &Group,
    standing: &Standing,
    wanted: &BTreeSet<u64>,
    deadline: Instant,
) -> MembersError {
    let (voters, _) = group.members();
    let fit = |node: &&u64| wanted.contains(node) && standing.takes_lead(**node) && group.caught_up(**node);
    let Some(successor) = voters.iter().find(fit).copied() else {
        return MembersError::Unfinished(
            "the leader is to be removed, and no other voter that stays can take the lead now".into(),
        );
    };
    let left = deadline.saturating_duration_since(Instant::now());
    match lead::hand_over(group, standing, successor, left).await {
        Ok(()) => MembersError::NotLeader { leader: Some(successor) },
        Err(TransferError::NotLeader { leader }) => MembersError::NotLeader { leader },
        Err(TransferError::Unfit(why)) => MembersError::Unfinished(why),
        Err(error @ TransferError::NotSeen { .. }) => MembersError::Unfinished(error.to_string()),
    }
}

/// A change needs a majority; without one it must not be waited for for ever. One that meets an earlier change that is not
/// decided yet, as right after an election, is made again.
async fn bounded<F: Future<Output = Result<(), ChangeError>>>(
    deadline: Instant,
    change: impl Fn() -> F,
) -> Result<(), MembersError> {
    let made = async {
        loop {
            match change().await {
                Err(ChangeError::Pending) => sleep(LOOK_EVERY).await,
                result => return result,
            }
        }
    };
    match timeout_at(deadline, made).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(MembersError::Unfinished(
            "the change was not decided in time: a majority of the replicas must be up".into(),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{replicas, standing};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    fn refused(result: Result<(), MembersError>) -> String {
        match result {
            Err(MembersError::Refused(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn members_change_as_asked_and_not_at_all_where_that_cannot_be() {
        let running = replicas(&[1, 2]).await;
        let group = &running[0].group;
        let leads = async {
            while !group.believes_to_lead() || !group.caught_up(2) {
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(LONG, leads).await.expect("node 1 leads");
        let standing = standing(1);
        let set = |nodes: &[u64]| nodes.iter().copied().collect::<BTreeSet<u64>>();
        let all = set(&[1, 2, 3]);
        let ask = async |add: &[u64], remove: &[u64], patience| {
            change(group, &standing, &set(add), &set(remove), patience).await
        };
        let follower = change(&running[1].group, &standing, &set(&[]), &set(&[3]), SHORT).await;
        assert_eq!(follower, Err(MembersError::NotLeader { leader: Some(1) }));
        assert!(refused(ask(&[2], &[2], SHORT).await).contains("node 2 is both"));
        assert!(refused(ask(&[], &[1, 2, 3], SHORT).await).contains("no replica left"));
        assert!(refused(ask(&[], &[3], SHORT).await).contains("2 is down"), "it was never heard");
        standing.hear(2, true, 2);
        let why = refused(ask(&[4], &[], SHORT).await);
        assert!(why.contains("down"), "two of four: {why}");
        standing.hear(3, true, 2);
        assert!(refused(ask(&[4], &[], SHORT).await).contains("has no node 4"));
        assert_eq!(group.members(), (all.clone(), set(&[])), "nothing has changed");
        // What is so already is no change.
        assert_eq!(ask(&[2], &[9], LONG).await, Ok(()));
        assert_eq!(group.members(), (all, set(&[])));
        // The leader goes last, and hands over what is left to be done.
        assert_eq!(ask(&[], &[1], LONG).await, Err(MembersError::NotLeader { leader: Some(2) }));
        let back = crate::lead::hand_over(&running[1].group, &crate::fake::standing(2), 1, SHORT).await;
        assert!(matches!(back, Err(TransferError::Unfit(_))), "node 2 has not heard of node 1: {back:?}");
        let (group, standing) = (&running[1].group, crate::fake::standing(2));
        standing.hear(1, true, 2);
        assert_eq!(change(group, &standing, &set(&[]), &set(&[3]), LONG).await, Ok(()));
        assert_eq!(group.members(), (set(&[1, 2]), set(&[])));
        for replica in running {
            replica.writer.stop();
            replica.log.close().expect("a disk in memory");
        }
    }

    #[test]
    fn a_change_needs_a_majority_of_what_it_asks_for_and_names_who_is_down() {
        let lacks = |wanted: &[u64], down: &[u64]| {
            lacks_majority(&wanted.iter().copied().collect(), |node| !down.contains(&node))
        };
        // Node 2 is to be removed while node 3 is down: one of two is no majority.
        let why = lacks(&[1, 3], &[3]);
        assert!(why.as_ref().is_some_and(|why| why.contains("nodes 1, 3, and 3 is down")), "{why:?}");
        let why = lacks(&[1, 2, 3, 4], &[3, 4]);
        assert!(why.as_ref().is_some_and(|why| why.contains("3, 4 are down")), "{why:?}");
        // Replacing the one that is down is what mends it.
        assert_eq!(lacks(&[1, 2, 4], &[]), None);
        assert_eq!(lacks(&[1, 3, 4], &[3]), None);
        assert_eq!(lacks(&[1], &[]), None);
    }
}
