//! After the load: seals what nobody knows the outcome of, and reads everything back.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::StreamExt as _;
use tidewall_load::audit::SeenEvent;
use tidewall_load::reading::{Reader, seen_tiers};
use tidewall_proto::v1;
use tokio::time::Instant;
use tonic::Status;
use uuid::Uuid;

use crate::check::{Resolved, SeenReplica};
use crate::client::Client;
use crate::history::{Answer, Ask, Op, Planned, Yes};
use crate::prepare::{PATIENCE, People};

/// Questions under way at the same time.
const QUESTIONS: usize = 32;
/// Acknowledged requests whose outcome is asked for again, at most.
const SAMPLE: usize = 3_000;
/// How long replicas may take to come together once nothing is written any more.
const TOGETHER_WITHIN: Duration = Duration::from_secs(60);
/// Pause between two looks at replicas.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Seals all requests that nobody knows about: that alone is final, whatever is still on its way. Asks for the outcomes of a
/// sample of the others.
pub async fn resolve(ops: &[Op], people: &People, unread: &mut Vec<String>) -> BTreeMap<Uuid, Resolved> {
    let open = |op: &&Op| is_open(op);
    let writes = || ops.iter().filter(|op| op.request_id.is_some() && !op.again);
    let known: Vec<&Op> = writes().filter(|op| matches!(op.answer, Answer::Yes { .. })).collect();
    let step = known.len().div_ceil(SAMPLE).max(1);
    let asked: Vec<&Op> = writes().filter(open).chain(known.iter().step_by(step).copied()).collect();
    let mut answers = futures_util::stream::iter(asked)
        .map(|op| async move { (op, outcome(op, people).await) })
        .buffer_unordered(QUESTIONS);
    let mut resolved = BTreeMap::new();
    while let Some((op, outcome)) = answers.next().await {
        match (op.request_id, outcome) {
            (Some(id), Ok(outcome)) => {
                resolved.insert(id, outcome);
            }
            (id, Err(why)) => unread.push(format!("the outcome of request {id:?} in {}: {why}", op.region)),
            (None, Ok(_)) => {}
        }
    }
    resolved
}

fn is_open(op: &Op) -> bool {
    matches!(op.answer, Answer::Unknown(_) | Answer::Nonsense(_))
}

async fn outcome(op: &Op, people: &People) -> Result<Resolved, String> {
    let of = op.request_id.ok_or("it has no request id")?;
    let caller = people.buyers.iter().find(|buyer| buyer.subject() == op.subject);
    let caller = caller.ok_or_else(|| format!("nobody is called {}", op.subject))?;
    let ask = if is_open(op) { Ask::Seal { of } } else { Ask::Outcome { of } };
    let until = Instant::now() + PATIENCE;
    loop {
        match caller.call(&ask, None, &op.region, 0).await {
            Answer::Yes { what: Yes::Outcome(Some(what)), receipt } => {
                return Ok(Resolved::Done(*what, receipt));
            }
            Answer::Yes { .. } => return Ok(Resolved::Never),
            other if Instant::now() > until => return Err(format!("{other:?}")),
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Reads events with all their tickets.
pub async fn events(planned: &[Planned], people: &People, unread: &mut Vec<String>) -> Vec<SeenEvent> {
    let mut reads = futures_util::stream::iter(planned)
        .map(|event| async move { (event, read_event(event, &people.organiser).await) })
        .buffered(QUESTIONS);
    let mut seen = Vec::new();
    while let Some((event, read)) = reads.next().await {
        match read {
            Ok(event) => seen.push(event),
            Err(status) => unread.push(format!("{}: {:?} {}", event.name, status.code(), status.message())),
        }
    }
    seen
}

async fn read_event(planned: &Planned, organiser: &Client) -> Result<SeenEvent, Status> {
    let reader = Reader::new(organiser.pool(), organiser.token(), PATIENCE);
    let tickets = reader.tickets(&planned.name, |_| ()).await?;
    let event = reader.event(&planned.name).await?;
    let capacity =
        |id: &str| planned.tiers.iter().find(|(tier, _)| tier == id).map_or(0, |(_, capacity)| *capacity);
    Ok(SeenEvent {
        name: planned.name.clone(),
        region: planned.region.clone(),
        quota: i64::from(event.quota_per_buyer),
        tiers: seen_tiers(&event, capacity),
        tickets,
    })
}

/// States of all regions.
///
/// # Errors
/// What the gateway answered.
pub async fn statuses(people: &People) -> Result<Vec<v1::RegionStatus>, Status> {
    let operator = &people.operator;
    let mut client = operator.pool().operators(0);
    let request = operator.pool().request(operator.token(), v1::ListRegionStatusesRequest::default());
    operator.pool().bounded(client.list_region_statuses(request)).await.map(|answer| answer.regions)
}

/// States of all nodes.
///
/// # Errors
/// What the gateway answered.
pub async fn nodes(people: &People) -> Result<Vec<v1::NodeStatus>, Status> {
    let operator = &people.operator;
    let mut client = operator.pool().operators(0);
    let request = operator.pool().request(operator.token(), v1::ListNodesRequest::default());
    operator.pool().bounded(client.list_nodes(request)).await.map(|answer| answer.nodes)
}

/// Looks at replicas until those of each region agree; the last look shows what was left when the time was up. Replicas in
/// `lost` are not waited for.
pub async fn replicas(
    people: &People,
    lost: &BTreeSet<(String, u64)>,
) -> BTreeMap<String, Vec<Vec<SeenReplica>>> {
    let until = Instant::now() + TOGETHER_WITHIN;
    let mut looks: BTreeMap<String, Vec<Vec<SeenReplica>>> = BTreeMap::new();
    loop {
        let mut together = false;
        if let Ok(regions) = statuses(people).await {
            together = !regions.is_empty();
            for region in regions {
                let replicas: Vec<SeenReplica> = region
                    .replicas
                    .iter()
                    .map(|replica| SeenReplica {
                        node: replica.node,
                        applied: replica.applied_index,
                        digest: replica.digest.clone(),
                        fault: replica.fault.clone(),
                    })
                    .collect();
                let mut sound =
                    replicas.iter().filter(|replica| !lost.contains(&(region.name.clone(), replica.node)));
                if let Some(first) = sound.next() {
                    together &= first.fault.is_empty()
                        && sound.all(|other| {
                            other.fault.is_empty()
                                && (other.applied, &other.digest) == (first.applied, &first.digest)
                        });
                }
                looks.entry(region.name).or_default().push(replicas);
            }
        }
        if together || Instant::now() > until {
            return looks;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
