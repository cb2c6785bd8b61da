//! Deliveries of webhooks: taken from the regions, made, and their ends told to the regions.
//!
//! Any gateway makes the deliveries of any region; the region gives each to one at a time. What a gateway has under way when it dies is
//! given to another one, so that a delivery may be made twice, under one id, and is never left out. A server that fails holds up its
//! own webhook: further attempts have places of their own.
//!
//! * [`call`] — what is sent, and how it is signed
//! * [`outside`] — who sends it
//! * [`guard`] — where it may go
//!
//! **Never here:** what is owed to whom: that is in the rows of the regions.

pub(crate) mod call;
mod guard;
mod http;
pub(crate) mod outside;

use std::sync::Arc;
use std::time::Duration;

use tidewall_proto::internal::v1 as pb;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::edge::Edge;
use crate::metrics::Delivered;
use call::Signer;

pub(crate) use guard::check_url;
pub use guard::{Network, NotANetwork};
pub use http::Http;
pub use outside::{Answered, Outside, Post};

/// Deliveries of a region under way that were not tried before.
const FIRST_ATTEMPTS: usize = 128;
/// And those that were.
const FURTHER_ATTEMPTS: usize = 64;
/// How long the first attempt may take: who is slower makes way for others.
const FIRST_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a further one may take.
const FURTHER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a region may let the question wait.
const WAIT: Duration = Duration::from_millis(450);
/// The same while there is no place for some of it.
const WAIT_FULL: Duration = Duration::from_millis(30);
/// Pause before a region is asked again in which nothing makes any deliveries.
const PAUSE_NONE: Duration = Duration::from_secs(2);
/// How long a region may take to answer, failovers included, before it is asked anew.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long a region is told how attempts have ended. After that it gives them out anew.
const ENDS_TIMEOUT: Duration = Duration::from_secs(15);
/// Pause before a region is asked again that did not answer.
const PAUSE: Duration = Duration::from_millis(500);
/// Ends that a region is told at a time.
const ENDS_MAX: usize = 256;

/// Makes deliveries of all regions until it is told to stop. Then what is under way may end, and the regions are told how it did.
pub(crate) async fn deliver(
    edge: Arc<Edge>,
    outside: Arc<dyn Outside>,
    signer: Arc<Signer>,
    stopping: watch::Receiver<bool>,
) {
    let regions = edge.topology.regions.iter().enumerate().map(|(position, region)| {
        let (edge, outside, signer) = (Arc::clone(&edge), Arc::clone(&outside), Arc::clone(&signer));
        let deliveries =
            Region { edge, outside, signer, position, id: region.id.clone(), group: region.group };
        Arc::new(deliveries).deliver(stopping.clone())
    });
    futures_util::future::join_all(regions).await;
}

/// Deliveries of one region.
struct Region {
    edge: Arc<Edge>,
    outside: Arc<dyn Outside>,
    signer: Arc<Signer>,
    position: usize,
    id: String,
    group: u32,
}

impl Region {
    async fn deliver(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        let (ended, ends) = mpsc::channel(ENDS_MAX);
        let telling = Arc::clone(&self).tell(ends);
        let taking = async {
            // They end with whoever takes them.
            let mut attempts = JoinSet::new();
            tokio::select! {
                () = Arc::clone(&self).take(&mut attempts, ended) => {}
                _ = stopping.wait_for(|stopping| *stopping) => {}
            }
            while attempts.join_next().await.is_some() {}
        };
        // The last sender is gone when all is told.
        tokio::join!(taking, telling);
    }

    /// Takes what is due, and has it made.
    async fn take(self: Arc<Self>, attempts: &mut JoinSet<()>, ended: mpsc::Sender<pb::EffectEnd>) {
        let first = Arc::new(Semaphore::new(FIRST_ATTEMPTS));
        let further = Arc::new(Semaphore::new(FURTHER_ATTEMPTS));
        loop {
            while attempts.try_join_next().is_some() {}
            let free = |places: &Semaphore| u32::try_from(places.available_permits()).unwrap_or(0);
            let (first_attempts, further_attempts) = (free(&first), free(&further));
            // Who has no place of a kind has one soon, and asks for it then.
            let wait = if first_attempts == 0 || further_attempts == 0 { WAIT_FULL } else { WAIT };
            let asked =
                pb::TakeEffects { first_attempts, further_attempts, wait_ms: wait.as_millis() as u32 };
            if (first_attempts, further_attempts) == (0, 0) {
                let _ = attempts.join_next().await;
                continue;
            }
            match self.edge.client.take_effects(self.group, asked, Instant::now() + TIMEOUT).await {
                Ok(taken) => {
                    for effect in taken.effects {
                        let places = if effect.attempts == 0 { &first } else { &further };
                        let Ok(place) = Arc::clone(places).acquire_owned().await else { return };
                        let (region, ended) = (Arc::clone(&self), ended.clone());
                        attempts.spawn(async move {
                            let end = region.attempt(effect).await;
                            let _ = ended.send(end).await;
                            drop(place);
                        });
                    }
                    if taken.none {
                        sleep(PAUSE_NONE).await;
                    }
                }
                Err(error) => {
                    tracing::debug!(region = self.id, %error, "deliveries cannot be taken");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Makes a delivery, once.
    async fn attempt(&self, effect: pb::Effect) -> pb::EffectEnd {
        let attempts = effect.attempts;
        let limit = if attempts == 0 { FIRST_TIMEOUT } else { FURTHER_TIMEOUT };
        let now_s = self.edge.client.clock().unix_ms() / 1_000;
        let end = |failed: bool, why: String, after_ms| pb::EffectEnd {
            key: effect.key.clone(),
            attempts,
            failed,
            why,
            after_ms,
        };
        let post = match call::post(&self.id, &effect, &self.signer, now_s) {
            Ok(Some(post)) => post,
            Ok(None) => return end(false, String::new(), 0),
            Err(why) => return end(true, why, 0),
        };
        let answered = match timeout(limit, self.outside.post(post)).await {
            Ok(answered) => answered,
            Err(_) => Answered::Failed(format!("no answer within {} s", limit.as_secs())),
        };
        let (delivered, end) = match answered {
            Answered::Status { code, .. } if (200..300).contains(&code) => {
                (Delivered::Done, end(false, String::new(), 0))
            }
            Answered::Status { code, retry_after } => {
                let after_ms = retry_after.map_or(0, |after| after.as_millis().min(u64::MAX.into()) as u64);
                (Delivered::Failed, end(true, format!("answered with status {code}"), after_ms))
            }
            Answered::Failed(why) => (Delivered::Failed, end(true, why, 0)),
        };
        self.edge.metrics.delivered(self.position, delivered);
        end
    }

    /// Tells the region how attempts have ended.
    async fn tell(self: Arc<Self>, mut ends: mpsc::Receiver<pb::EffectEnd>) {
        let mut now = Vec::new();
        while ends.recv_many(&mut now, ENDS_MAX).await > 0 {
            let ends = std::mem::take(&mut now);
            let until = Instant::now() + ENDS_TIMEOUT;
            while let Err(error) = self.edge.client.end_effects(self.group, ends.clone(), until).await {
                tracing::debug!(region = self.id, %error, "the ends of deliveries cannot be told");
                // After that the region gives them out again, under the same names.
                if Instant::now() + PAUSE > until {
                    break;
                }
                sleep(PAUSE).await;
            }
        }
    }
}
