//! Moves the leads of this node's groups to other nodes: on an operator's order, before a stop, and when this node must not
//! lead.
//!
//! A lead goes to a voter only that has all but the last entries and says that it takes leads. openraft reports no result of
//! a transfer, so the result is watched for.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::future::join_all;
use tidewall_consensus::Group;
use tokio::time::{Instant, sleep};

use crate::standing::Standing;

/// How often the result of a transfer is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(3);
/// How long a target is waited for that does not say that it takes leads: nodes hear of each other once a second.
const HEARD_PATIENCE: Duration = Duration::from_millis(1_200);
/// How long one transfer is waited for before another candidate is tried.
const TRANSFER_PATIENCE: Duration = Duration::from_millis(1_500);
/// How often a candidate is looked for that could take a lead.
const CANDIDATE_EVERY: Duration = Duration::from_millis(20);

/// Why a lead was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node does not lead the group.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, as far as is known.
        leader: Option<u64>,
    },
    /// The target cannot lead.
    #[error("{0}")]
    Unfit(String),
    /// The transfer was begun and its end was not seen in time.
    #[error("the lead was offered to node {to}, and who leads now is not known: look at the region's status")]
    NotSeen {
        /// The target.
        to: u64,
    },
}

/// Hands the lead of a group to a node and waits until that one leads.
///
/// # Errors
/// See [`TransferError`]; with [`TransferError::NotSeen`] the transfer may still happen.
pub async fn hand_over(
    group: &Group,
    standing: &Standing,
    to: u64,
    patience: Duration,
) -> Result<(), TransferError> {
    let deadline = Instant::now() + patience;
    let me = standing.node();
    if !group.believes_to_lead() {
        return Err(TransferError::NotLeader { leader: group.believed_leader() });
    }
    if to == me {
        return Ok(());
    }
    let (voters, _) = group.members();
    if !voters.contains(&to) {
        let voters: Vec<String> = voters.iter().map(u64::to_string).collect();
        return Err(TransferError::Unfit(format!(
            "node {to} does not vote in this group: its voters are {}",
            voters.join(", ")
        )));
    }
    // A target that lags is given until the deadline; one that has just come up, until it was heard.
    let heard = deadline.min(Instant::now() + HEARD_PATIENCE);
    loop {
        let takes = standing.takes_lead(to);
        if takes && group.caught_up(to) {
            break;
        }
        if Instant::now() >= if takes { deadline } else { heard } {
            return Err(TransferError::Unfit(if takes {
                format!("node {to} is too far behind in this group's log: wait until it has caught up")
            } else {
                format!("node {to} takes no leads at the moment: it is down, drained, or its clock is wrong")
            }));
        }
        sleep(CANDIDATE_EVERY).await;
    }
    group.transfer_leadership(to).await;
    loop {
        match group.believed_leader() {
            Some(leader) if leader == to => return Ok(()),
            // Somebody else won: this node has no more say.
            Some(leader) if leader != me => return Err(TransferError::NotLeader { leader: Some(leader) }),
            _ if Instant::now() >= deadline => return Err(TransferError::NotSeen { to }),
            _ => sleep(LOOK_EVERY).await,
        }
    }
}

/// Groups whose lead was moved, and those that this node still leads.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moved {
    /// Led by others now.
    pub moved: Vec<u32>,
    /// Still led by this node: nobody could take them over in time.
    pub kept: Vec<u32>,
}

/// Moves all leads away from this node, to whoever can take them, evenly.
pub async fn leave_all(groups: &BTreeMap<u32, Group>, standing: &Standing, patience: Duration) -> Moved {
    let deadline = Instant::now() + patience;
    let led: Vec<&Group> = groups.values().filter(|group| group.believes_to_lead()).collect();
    // How many groups each node leads, so that what moves is spread.
    let mut load: BTreeMap<u64, usize> = standing.others().into_iter().map(|node| (node, 0)).collect();
    for leader in groups.values().filter_map(Group::believed_leader) {
        load.entry(leader).and_modify(|count| *count += 1);
    }
    let load = parking_lot::Mutex::new(load);
    let leaving = led.iter().map(|group| async {
        while group.believes_to_lead() && Instant::now() < deadline {
            let (voters, _) = group.members();
            let fit =
                |node: &u64| voters.contains(node) && standing.takes_lead(*node) && group.caught_up(*node);
            let target = {
                let mut load = load.lock();
                let lightest = load.iter_mut().filter(|(node, _)| fit(node)).min_by_key(|(_, count)| **count);
                lightest.map(|(node, count)| {
                    *count += 1;
                    *node
                })
            };
            let Some(target) = target else {
                sleep(CANDIDATE_EVERY).await;
                continue;
            };
            let patience = TRANSFER_PATIENCE.min(deadline.saturating_duration_since(Instant::now()));
            if let Err(error) = hand_over(group, standing, target, patience).await {
                tracing::warn!(group = group.number(), to = target, %error, "the lead was not handed over");
            }
        }
    });
    join_all(leaving).await;
    let (kept, moved) = led
        .iter()
        .map(|group| group.number())
        .partition(|number| groups.get(number).is_some_and(Group::believes_to_lead));
    Moved { moved, kept }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fake::{replicas, standing};

    const LONG: Duration = Duration::from_secs(20);
    const SHORT: Duration = Duration::from_millis(200);

    fn why(result: Result<(), TransferError>) -> String {
        match result {
            Err(TransferError::Unfit(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_lead_goes_to_who_takes_it_and_has_everything_and_to_nobody_else() {
        let running = replicas(&[1, 2]).await;
        let group = &running[0].group;
        let leads = async {
            while !group.believes_to_lead() || !group.caught_up(2) {
                sleep(LOOK_EVERY).await;
            }
        };
        tokio::time::timeout(LONG, leads).await.unwrap();
        let standing = standing(1);
        let groups = BTreeMap::from([(1, group.clone())]);
        assert_eq!(hand_over(group, &standing, 1, SHORT).await, Ok(()));
        assert!(why(hand_over(group, &standing, 4, SHORT).await).contains("does not vote"));
        assert!(why(hand_over(group, &standing, 2, SHORT).await).contains("takes no leads"), "never heard");
        standing.hear(2, false, 2);
        assert!(why(hand_over(group, &standing, 2, SHORT).await).contains("takes no leads"));
        // Node 3 would take it, and has nothing.
        standing.hear(3, true, 2);
        assert!(why(hand_over(group, &standing, 3, SHORT).await).contains("too far behind"));
        let nobody = leave_all(&groups, &standing, SHORT).await;
        assert_eq!(nobody, Moved { moved: Vec::new(), kept: vec![1] });
        assert!(group.believes_to_lead());
        standing.hear(2, true, 2);
        assert_eq!(leave_all(&groups, &standing, LONG).await, Moved { moved: vec![1], kept: Vec::new() });
        assert_eq!(group.believed_leader(), Some(2));
        let late = hand_over(group, &standing, 3, SHORT).await;
        assert_eq!(late, Err(TransferError::NotLeader { leader: Some(2) }));
        assert_eq!(leave_all(&groups, &standing, SHORT).await, Moved::default());
        for replica in running {
            replica.writer.stop();
            replica.log.close().unwrap();
        }
    }
}
