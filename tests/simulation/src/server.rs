//! The servers outside that webhooks call: one for each address, which outlive every gateway. They are slow, fail, and lose answers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use tidewall_gateway::{Answered, Outside, Post};
use tidewall_workloads::server::Arrived;
use tokio::time::sleep;

/// Longer than anybody waits.
const STALLED: Duration = Duration::from_secs(60);

/// All servers that there are.
#[derive(Debug, Clone)]
pub struct Servers(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    random: StdRng,
    /// By address.
    arrived: BTreeMap<String, Vec<Arrived>>,
}

/// What becomes of a call.
enum Fate {
    /// It arrives, and is answered.
    Good,
    /// It arrives, and its answer is lost.
    Unanswered,
    /// It does not arrive.
    Lost,
    /// It is refused with a status.
    Refused(u16),
    /// It arrives, and nobody is told.
    Stalls,
}

impl Servers {
    /// Those of a seed.
    pub fn new(seed: u64) -> Self {
        let random = StdRng::seed_from_u64(seed ^ 0x73_6572_7665_7273);
        Self(Arc::new(Mutex::new(State { random, arrived: BTreeMap::new() })))
    }

    /// What has arrived at an address.
    pub fn arrived(&self, url: &str) -> Vec<Arrived> {
        self.0.lock().arrived.get(url).cloned().unwrap_or_default()
    }

    fn fate(&self) -> (Duration, Fate) {
        let random = &mut self.0.lock().random;
        let fate = match random.random_range(0..20) {
            0 => Fate::Unanswered,
            1 => Fate::Lost,
            2 => Fate::Refused(503),
            3 => Fate::Refused(302),
            4 => Fate::Stalls,
            _ => Fate::Good,
        };
        (Duration::from_millis(random.random_range(0..40)), fate)
    }

    fn arrive(&self, post: Post) {
        let header = |name: &str| {
            let header = post.headers.iter().find(|(known, _)| *known == name);
            header.map(|(_, value)| value.clone()).unwrap_or_default()
        };
        let arrived = Arrived {
            id: header("webhook-id"),
            timestamp: header("webhook-timestamp"),
            signature: header("webhook-signature"),
            body: post.body.clone(),
        };
        self.0.lock().arrived.entry(post.url).or_default().push(arrived);
    }
}

impl Outside for Servers {
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Answered> + Send + '_>> {
        let (delay, fate) = self.fate();
        Box::pin(async move {
            sleep(delay).await;
            match fate {
                Fate::Lost => return Answered::Failed("the call was lost".into()),
                Fate::Refused(code) => return Answered::Status { code, retry_after: None },
                Fate::Good | Fate::Unanswered | Fate::Stalls => self.arrive(post),
            }
            sleep(delay).await;
            match fate {
                Fate::Unanswered => Answered::Failed("the answer was lost".into()),
                Fate::Stalls => {
                    sleep(STALLED).await;
                    Answered::Failed("it stalls".into())
                }
                _ => Answered::Status { code: 204, retry_after: None },
            }
        })
    }
}
