//! Lost packets. A gateway beside each node shares its fate, and shows what the cut-off side still answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rand::Rng as _;
use tidewall_load::pool::Pool;
use uuid::Uuid;

use super::kill::breathe;
use crate::ChaosError;
use crate::client::Client;
use crate::driver::{Cut, Member};
use crate::history::{Answer, Ask, Micros, Traffic};
use crate::load::{Recorder, call};
use crate::stage::Stage;

/// From the cut to the beginning of the last call that the cut-off side answered.
pub(super) const LAST_OF_MINORITY: &str = "cut to the last answer of the cut-off side";
/// One lease, milliseconds: the longest election timeout of a group.
pub(super) const LEASE_MS: f64 = 440.0;
/// Deadline of a call to the cut-off side.
const PROBE_DEADLINE: Duration = Duration::from_millis(400);
/// Pause between two such calls.
const PROBE_EVERY: Duration = Duration::from_millis(5);
/// How long packets are lost, milliseconds.
const CUT_MS: std::ops::Range<u64> = 2_500..6_000;
/// Each phase of a flapping network, milliseconds.
const FLAP_MS: std::ops::Range<u64> = 100..600;

/// Which packets are lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// The node is alone, with the gateway beside it.
    Alone,
    /// It is cut off from the other nodes only; gateways reach it.
    WithoutPeers,
    /// What it sends to the other nodes is lost.
    OneWayOut,
    /// What the other nodes send to it is lost.
    OneWayIn,
    /// Alone and not alone, in turn.
    Flapping,
}

const SHAPES: [Shape; 5] =
    [Shape::Alone, Shape::WithoutPeers, Shape::OneWayOut, Shape::OneWayIn, Shape::Flapping];

impl Shape {
    fn words(self) -> &'static str {
        match self {
            Self::Alone | Self::Flapping => "alone",
            Self::WithoutPeers => "without its peers",
            Self::OneWayOut => "is not heard",
            Self::OneWayIn => "hears nothing",
        }
    }

    fn cuts(self, node: u64, nodes: &[u64]) -> Vec<Cut> {
        let me = vec![Member::Node(node)];
        let mut others: Vec<Member> =
            nodes.iter().filter(|other| **other != node).map(|other| Member::Node(*other)).collect();
        if matches!(self, Self::Alone | Self::Flapping) {
            // The gateways beside the other nodes live where those live.
            others.push(Member::Gateway(1));
        }
        let out = Cut { from: me.clone(), to: others.clone() };
        let into = Cut { from: others, to: me };
        match self {
            Self::OneWayOut => vec![out],
            Self::OneWayIn => vec![into],
            _ => vec![out, into],
        }
    }
}

pub(super) async fn partition(stage: &mut Stage, count: u64) -> Result<u64, ChaosError> {
    let nodes = stage.driver.nodes();
    for number in 1..=count {
        if !stage.has_time() {
            return Ok(number - 1);
        }
        // The remainder fits: it comes from a length.
        let shape = SHAPES[(number % SHAPES.len() as u64) as usize];
        let (node, led) = stage.some_leader().await?;
        let probe = Probe::start(stage, node, &led)?;
        let cut_for = Duration::from_millis(stage.rng.random_range(CUT_MS));
        let begun = tokio::time::Instant::now();
        let before_cut = stage.recorder.now();
        stage.driver.cut(&shape.cuts(node, &nodes)).await?;
        // Rules are made one after the other, each by a process of its own: only now the cut is complete.
        let cut_at = stage.recorder.now();
        let injection = stage.injection(format!("node {node} {}: {shape:?}", shape.words()), led);
        while begun.elapsed() < cut_for {
            if shape == Shape::Flapping {
                let flap = Duration::from_millis(stage.rng.random_range(FLAP_MS));
                tokio::time::sleep(flap).await;
                stage.driver.heal().await?;
                let flap = Duration::from_millis(stage.rng.random_range(FLAP_MS));
                tokio::time::sleep(flap).await;
                stage.driver.cut(&shape.cuts(node, &nodes)).await?;
            } else {
                tokio::time::sleep(cut_for.saturating_sub(begun.elapsed())).await;
            }
        }
        let before_heal = stage.recorder.now();
        stage.driver.heal().await?;
        stage.undone(injection);
        let last = probe.stop().await;
        if shape == Shape::Alone
            && let Some(last) = last.iter().copied().filter(|at| (before_cut..before_heal).contains(at)).max()
        {
            stage.sample(LAST_OF_MINORITY, last.saturating_sub(cut_at) as f64 / 1_000.0);
        }
        let undone = stage.recorder.now();
        stage.wait_writes(undone).await?;
        stage.healed_again().await?;
        stage.healed(injection);
        stage.count(format!("partitions: {shape:?}"));
        stage.say(&format!("partition {number} of {count}: node {node} {}", shape.words()));
        breathe(stage).await;
    }
    Ok(count)
}

/// Calls through the gateway beside a node, for a region that it leads, until it is stopped.
struct Probe {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<Vec<Micros>>,
}

impl Probe {
    fn start(stage: &Stage, node: u64, led: &[String]) -> Result<Self, ChaosError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (Some(target), Some(region)) = (stage.driver.companion(node), led.first().cloned()) else {
            return Err(ChaosError::Usage(
                "this driver has no gateway that shares the fate of a node".into(),
            ));
        };
        let pool = Pool::new(&target, 1, PROBE_DEADLINE)?;
        // One of the buyers, so that what became of its calls can be asked for at the end.
        let subject = stage.people.buyers.first().map(|buyer| buyer.subject().to_owned()).unwrap_or_default();
        let client = Client::new(&pool, &target, &subject, &[])?;
        let event = stage.event(&region, Traffic::Sale);
        let recorder = Arc::clone(&stage.recorder);
        let task = tokio::spawn(probe(recorder, client, region, event, Arc::clone(&stop)));
        Ok(Self { stop, task })
    }

    /// When calls were answered with "yes": one that begins just before the healing may well be answered after it.
    async fn stop(self) -> Vec<Micros> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap_or_default()
    }
}

async fn probe(
    recorder: Arc<Recorder>,
    client: Client,
    region: String,
    event: String,
    stop: Arc<AtomicBool>,
) -> Vec<Micros> {
    let mut answered = Vec::new();
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let ask = if number.is_multiple_of(4) {
            Ask::Buy { event: event.clone(), tier: "ga".into(), quantity: 1 }
        } else {
            Ask::Read { event: event.clone(), age: 0 }
        };
        let request_id = ask.is_write().then(Uuid::now_v7);
        let began = recorder.now();
        let answer =
            call(&recorder, &client, &region, Traffic::Probe, &ask, request_id, began, false, number).await;
        if matches!(answer, Answer::Yes { .. }) {
            answered.push(recorder.now());
        }
        tokio::time::sleep(PROBE_EVERY).await;
    }
    answered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_lose_what_they_say() {
        let nodes = [1, 2, 3];
        let (me, others) = (vec![Member::Node(2)], vec![Member::Node(1), Member::Node(3)]);
        let out = Cut { from: me.clone(), to: others.clone() };
        let into = Cut { from: others.clone(), to: me.clone() };
        assert_eq!(Shape::OneWayOut.cuts(2, &nodes), vec![out.clone()]);
        assert_eq!(Shape::OneWayIn.cuts(2, &nodes), vec![into.clone()]);
        assert_eq!(Shape::WithoutPeers.cuts(2, &nodes), [out, into]);
        let alone = Shape::Alone.cuts(2, &nodes);
        assert!(alone[0].to.contains(&Member::Gateway(1)) && alone[1].from.contains(&Member::Gateway(1)));
    }
}
