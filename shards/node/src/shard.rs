//! A shard group as its actors see it: proposing, confirming, looking.

use std::sync::Arc;
use std::time::Duration;

use tidewall_actors::{BoxFuture, Refusal, Shard};
use tidewall_consensus::{Group, Payload, ProposeError, ReadError};
use tidewall_env::clock::Clock;
use tidewall_machine::{Command, Decision, Entry, Machine};

/// After this the outcome of a proposal counts as unknown; the caller sends it again, to whoever leads by then.
const PROPOSE_TIMEOUT: Duration = Duration::from_secs(3);
/// After this leadership counts as not confirmed.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(1);

/// The group behind the actors.
pub struct GroupShard {
    group: Group,
    clock: Arc<dyn Clock>,
}

impl GroupShard {
    /// A group and the clock that stamps its entries.
    pub fn new(group: Group, clock: Arc<dyn Clock>) -> Self {
        Self { group, clock }
    }
}

/// Proposes commands as one entry, stamped now.
pub async fn propose(
    group: &Group,
    clock: &dyn Clock,
    commands: Vec<Command>,
) -> Result<Vec<Decision>, Refusal> {
    let payload = Payload::new(&Entry { stamp_ms: clock.unix_ms(), commands });
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
        let (group, clock) = (self.group.clone(), Arc::clone(&self.clock));
        Box::pin(async move { propose(&group, &*clock, commands).await })
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

    fn now_ms(&self) -> u64 {
        self.clock.unix_ms()
    }
}
