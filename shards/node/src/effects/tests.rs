//! The driver of effects on a real group, with webhooks: who is given what, and for how long.
#![allow(clippy::unwrap_used)]
use std::sync::Arc;

use prost::Message as _;
use tidewall_machine::Op;
use tidewall_messages::{ModuleCommand, tickets, webhooks};

use super::*;
use crate::fake::{Replica, replicas, standing};

const PATIENCE: Duration = Duration::from_secs(20);

struct Leader {
    running: Vec<Replica>,
    group: Group,
    standing: Arc<Standing>,
    under_way: UnderWay,
    asked: u64,
}

impl Leader {
    /// The leader of a group in which ann has a webhook.
    async fn new() -> Self {
        let running = replicas(&[1, 2]).await;
        let leads = async {
            loop {
                for (replica, node) in running.iter().zip(1..) {
                    if shard::confirm(&replica.group).await.is_ok() {
                        return (replica.group.clone(), node);
                    }
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (group, node) = tokio::time::timeout(PATIENCE, leads).await.expect("one of them leads");
        let (standing, under_way) = (standing(node), UnderWay::default());
        let mut leader = Self { running, group, standing, under_way, asked: 0 };
        leader.told(Command::system(SystemCommand::RaiseVersion(HEARS_CHANGES))).await;
        let settings = webhooks::Settings { url: "https://a.example/".into(), ..Default::default() };
        leader.ask(&webhooks::Command::from(webhooks::CreateWebhook { settings: Some(settings) })).await;
        leader
    }

    async fn told(&self, command: Command) {
        shard::propose(&self.group, &self.standing, vec![command]).await.unwrap();
    }

    async fn ask<C: ModuleCommand>(&mut self, command: &C) {
        self.asked += 1;
        let now_ms = self.standing.now_ms();
        let id = u128::from(now_ms) << 80 | 7 << 76 | 1 << 63 | u128::from(self.asked);
        let mut asked = Command::asking("ann", id, now_ms + 5_000, command);
        asked.op = Op::Module { module: C::MODULE, payload: command.encode_to_vec() };
        self.told(asked).await;
    }

    /// Something happens that ann's webhook is told.
    async fn happens(&mut self) {
        let tier = tickets::TierSpec {
            tier_id: "ga".into(),
            capacity: 5,
            currency_code: "EUR".into(),
            ..Default::default()
        };
        let create = tickets::CreateEvent {
            event_id: format!("gala-{}", self.asked),
            display_name: "Gala".into(),
            quota_per_buyer: 1,
            tiers: vec![tier],
            ..Default::default()
        };
        self.ask(&tickets::Command::from(create)).await;
    }

    async fn take(&self, first_attempts: u32, wait_ms: u32, came: Instant) -> pb::Effects {
        let asked = pb::TakeEffects { first_attempts, further_attempts: first_attempts, wait_ms };
        take(&self.group, &self.standing, &self.under_way, asked, came).await.unwrap()
    }

    async fn end(&self, effect: &pb::Effect, failed: bool) {
        let (key, attempts, why) = (effect.key.clone(), effect.attempts, "x".repeat(5_000));
        let ends = vec![pb::EffectEnd { key, attempts, failed, why, after_ms: 0 }];
        let ended = end(&self.group, &self.standing, &self.under_way, pb::EndEffects { ends }).await;
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_taken_is_given_to_one_until_it_has_ended() {
    let mut leader = Leader::new().await;
    let nothing = leader.take(9, 0, Instant::now()).await;
    assert!(nothing.effects.is_empty() && !nothing.none, "there is a webhook");
    leader.happens().await;
    assert!(leader.take(0, 0, Instant::now()).await.effects.is_empty(), "who has no place gets none");
    let late = Instant::now() - ANSWERED_WITHIN;
    assert!(leader.take(9, 0, late).await.effects.is_empty(), "who has gone gets none");
    let taken = leader.take(9, 0, Instant::now()).await.effects;
    assert_eq!((taken.len(), taken[0].attempts), (1, 0));
    assert!(leader.take(9, 0, Instant::now()).await.effects.is_empty(), "somebody else has it");
    // The end of another attempt ends nothing, and nobody gets it meanwhile.
    let other = pb::Effect { attempts: 7, ..taken[0].clone() };
    leader.end(&other, false).await;
    assert!(leader.take(9, 0, Instant::now()).await.effects.is_empty());
    leader.end(&taken[0], true).await;
    let failure = leader
        .group
        .state()
        .read(|machine| machine.effects().map(|(_, row)| (row.attempts, row.failure.len())).next());
    assert_eq!(failure, Some((1, WHY_MAX)), "the log has no more of it than somebody reads");
    // It is due again after a pause of a second at most.
    let again = async {
        loop {
            let taken = leader.take(9, 400, Instant::now()).await.effects;
            if let [effect] = taken.as_slice() {
                break effect.clone();
            }
        }
    };
    let again = tokio::time::timeout(PATIENCE, again).await.expect("it is due again");
    assert_eq!((again.attempts, &again.key), (1, &taken[0].key));
    leader.end(&again, false).await;
    assert_eq!(leader.group.state().read(Machine::effects_count), 0);
    leader.running.iter().for_each(|replica| replica.writer.stop());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_is_given_what_comes() {
    let mut leader = Leader::new().await;
    let (group, standing) = (leader.group.clone(), Arc::clone(&leader.standing));
    let waiting = tokio::spawn(async move {
        let asked = pb::TakeEffects { first_attempts: 9, further_attempts: 9, wait_ms: 500 };
        let under_way = UnderWay::default();
        loop {
            let taken = take(&group, &standing, &under_way, asked, Instant::now()).await.unwrap();
            if !taken.effects.is_empty() {
                return taken.effects;
            }
        }
    });
    leader.happens().await;
    let taken = tokio::time::timeout(PATIENCE, waiting).await.expect("it is told").unwrap();
    let call = webhooks::Call::decode(taken[0].call.clone()).unwrap();
    assert_eq!(call.delivery.unwrap().changes.len(), 1);
    let end = pb::EndEffects { ends: vec![pb::EffectEnd::default()] };
    let refused = super::end(&leader.group, &leader.standing, &leader.under_way, end).await;
    assert!(refused.unwrap_err().message.contains("names no effect"));
    leader.running.iter().for_each(|replica| replica.writer.stop());
}
