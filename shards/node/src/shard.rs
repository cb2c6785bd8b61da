//! A shard group as its actors see it: proposing, confirming, looking.

use std::sync::Arc;
use std::time::Duration;

use tidewall_actors::{BoxFuture, Refusal, Shard};
use tidewall_consensus::{Group, Payload, ProposeError, ReadError};
use tidewall_machine::{Command, Decision, Entry, Machine, Stamp};

use crate::standing::Standing;

/// After this the outcome of a proposal counts as unknown; the caller sends it again, to whoever leads by then.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// After this leadership counts as not confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// The group behind the actors.
pub struct GroupShard {
    group: Group,
    standing: Arc<Standing>,
}

impl GroupShard {
    /// A group, and the node whose clock stamps its entries.
    pub(crate) fn new(group: Group, standing: Arc<Standing>) -> Self {
        Self { group, standing }
    }
}

/// Proposes commands as one entry, stamped now.
pub async fn propose(
    group: &Group,
    standing: &Standing,
    commands: Vec<Command>,
) -> Result<Vec<Decision>, Refusal> {
    if standing.clock_is_far() {
        // Log time never goes back: a wrong clock must not stamp anything. Somebody else will lead soon.
        return Err(Refusal::NotLeader { leader: None });
    }
    let payload = Payload::new(&Entry { stamp: standing.stamp(), commands });
    match tokio::time::timeout(PROPOSE_TIMEOUT, group.propose(payload)).await {
        Ok(Ok(decisions)) => Ok(decisions),
        Ok(Err(ProposeError::NotLeader { leader })) => Err(Refusal::NotLeader { leader }),
        Ok(Err(ProposeError::Unknown(what))) => Err(Refusal::Unknown(what)),
        Ok(Err(ProposeError::Halted(why))) => Err(Refusal::Halted(why)),
        Err(_) => Err(Refusal::Unknown("the group did not decide in time".into())),
    }
}

/// Confirms leadership, in bounded time.
pub async fn confirm(group: &Group) -> Result<(), Refusal> {
    match tokio::time::timeout(CONFIRM_TIMEOUT, group.confirm_leadership()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(ReadError::NotLeader { leader })) => Err(Refusal::NotLeader { leader }),
        Ok(Err(ReadError::Halted(why))) => Err(Refusal::Halted(why)),
        Err(_) => Err(Refusal::NotLeader { leader: None }),
    }
}

impl Shard for GroupShard {
    fn propose(&self, commands: Vec<Command>) -> BoxFuture<Result<Vec<Decision>, Refusal>> {
        let (group, standing) = (self.group.clone(), Arc::clone(&self.standing));
        Box::pin(async move { propose(&group, &standing, commands).await })
    }

    fn confirm(&self) -> BoxFuture<Result<(), Refusal>> {
        let group = self.group.clone();
        Box::pin(async move { confirm(&group).await })
    }

    fn look(&self, look: &mut dyn FnMut(&Machine)) {
        self.group.state().read(look);
    }

    fn leads(&self) -> bool {
        self.group.believes_to_lead()
    }

    fn leader(&self) -> Option<u64> {
        self.group.believed_leader()
    }

    fn stamp(&self) -> Stamp {
        self.standing.stamp()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fake::{replicas, standing};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn actors_see_who_leads_and_a_replica_alone_confirms_nothing() {
        let running = replicas(&[1, 2]).await;
        let shards: Vec<GroupShard> = running
            .iter()
            .zip(1..)
            .map(|(replica, node)| GroupShard::new(replica.group.clone(), standing(node)))
            .collect();
        // On a busy machine the first leader may not stay it.
        let settled = async {
            loop {
                let leader = if shards[0].leads() { 0 } else { 1 };
                let confirmed = shards[leader].confirm().await.is_ok();
                let other = shards[1 - leader].confirm().await;
                if confirmed && other == Err(Refusal::NotLeader { leader: Some(leader as u64 + 1) }) {
                    assert_eq!(shards[1 - leader].leader(), Some(leader as u64 + 1));
                    return leader;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let leader = tokio::time::timeout(Duration::from_secs(20), settled).await.unwrap();
        let mut rows = 0;
        shards[leader].look(&mut |machine| rows = machine.rows());
        assert!(rows > 0);
        running.iter().for_each(|replica| replica.writer.stop());
        let alone = replicas(&[3]).await;
        let alone = GroupShard::new(alone[0].group.clone(), standing(3));
        assert!(!alone.leads() && alone.confirm().await.is_err());
    }
}
