//! Which run of a node's data is the last one, as the other nodes have seen it.
//!
//! A data directory that was copied, or put back from an older state, has everything that its original has: name, votes,
//! certificates. What it cannot have is what the original did afterwards. So each start of a node is a *life* of its data: a
//! number of its own and the position of the log where it began. Each node remembers of each other one which life it met
//! last and how far that one's log had come. A new life follows an earlier one only if it begins where that one was last
//! seen, or later; whoever begins before it is a copy or an older state, and is refused for good. It also waits until the
//! earlier life is gone: a copy that was made a moment ago, and its original, are the same node twice.
//!
//! No group can commit this: who may not vote has to be refused before anything is committed with its vote. So each node
//! keeps it for itself, and no majority with a stale copy can form around a node that has met the original's later life.
//!
//! **Never here:** files, sockets. A life is not secret and proves nothing against somebody who lies: certificates do.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_mutant::{Mutant, active};
use tokio::time::Instant;

/// A start of a node on its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Life {
    /// Its number, chosen at random.
    pub id: u64,
    /// How far the log of the data had come when it began.
    pub began_at: u64,
}

impl fmt::Display for Life {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:016x}.{}", self.id, self.began_at)
    }
}

/// What a node says of itself with each stream that it opens or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Its life.
    pub life: Life,
    /// How far its log has come durably.
    pub reached: u64,
}

impl fmt::Display for Claim {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.life, self.reached)
    }
}

impl Claim {
    /// What [`Display`](fmt::Display) writes.
    pub fn parse(text: &str) -> Option<Self> {
        let (life, reached) = text.rsplit_once('.')?;
        let (id, began_at) = life.split_once('.')?;
        let life = Life { id: u64::from_str_radix(id, 16).ok()?, began_at: began_at.parse().ok()? };
        Some(Self { life, reached: reached.parse().ok()? })
    }
}

/// The last life of a node that another one has met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Met {
    /// [`Life::id`].
    pub life: u64,
    /// How far its log has come at least.
    pub reached: u64,
}

/// Why a life is not let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Its data are older than what was seen of them: for good.
    Stale(String),
    /// An earlier life of the same data is connected: until that one is gone.
    TooEarly(String),
    /// An earlier life was connected a moment ago, or may have been: as after every quick restart.
    NotYet(String),
    /// It is where it has been before, as a process that was put back from a copy of its memory. Or its word has been on its
    /// way for long: then its next one will do.
    WentBack(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stale(why) | Self::TooEarly(why) | Self::NotYet(why) | Self::WentBack(why) => {
                formatter.write_str(why)
            }
        }
    }
}

/// How long a life counts as connected after its last stream has ended, and after this node's own start: a copy shall not
/// slip in while connections are made anew. A node that starts waits for it to pass.
const LINGER: Duration = Duration::from_millis(700);

/// How far this node's log has come durably.
type Reached = Box<dyn Fn() -> u64 + Send + Sync>;

/// Called, once, when this node's own data turn out to be stale.
type OnStale = Box<dyn Fn(&str) + Send + Sync>;

/// This node's life, and those of the others that it has met.
pub struct Lives {
    node: u64,
    own: Life,
    began: Instant,
    linger: Duration,
    reached: Reached,
    known: Mutex<Known>,
    on_stale: Mutex<Option<OnStale>>,
}

#[derive(Default)]
struct Known {
    met: BTreeMap<u64, Met>,
    /// By node and life, the streams that are open, in either direction, and when the last one ended.
    streams: BTreeMap<(u64, u64), Streams>,
    /// Nodes that an earlier life of this node's own data is connected to, and when they said so last.
    waiting_for: BTreeMap<u64, Instant>,
}

#[derive(Default)]
struct Streams {
    open: usize,
    ended: Option<Instant>,
}

/// A stream of a life that is open.
#[derive(Debug)]
pub struct OpenStream {
    lives: Arc<Lives>,
    of: (u64, u64),
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut known = self.lives.known.lock();
        if let Some(streams) = known.streams.get_mut(&self.of) {
            streams.open -= 1;
            streams.ended = Some(Instant::now());
        }
    }
}

impl fmt::Debug for Lives {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lives")
            .field("node", &self.node)
            .field("own", &self.own)
            .finish_non_exhaustive()
    }
}

impl Lives {
    /// Of `node`, which begins `own` now and has met these before. `reached` tells how far its log has come durably.
    /// `on_stale` is called at most once, with the reason, when another node proves that this node's data have lived on
    /// elsewhere: the node must stop at once.
    pub fn new(
        node: u64,
        own: Life,
        met: BTreeMap<u64, Met>,
        reached: impl Fn() -> u64 + Send + Sync + 'static,
        on_stale: impl Fn(&str) + Send + Sync + 'static,
    ) -> Self {
        let (reached, on_stale) = (Box::new(reached), Mutex::new(Some(Box::new(on_stale) as OnStale)));
        let known = Mutex::new(Known { met, ..Known::default() });
        Self { node, own, began: Instant::now(), linger: LINGER, reached, known, on_stale }
    }

    /// Of a node that never writes anything and is never in doubt about what has just ended, for tests of what is around it.
    pub fn idle(node: u64) -> Self {
        let own = Life { id: node, began_at: 0 };
        Self { linger: Duration::ZERO, ..Self::new(node, own, BTreeMap::new(), || 1, |_| ()) }
    }

    /// How far this node's log has come durably. It goes along with every call and answer on the streams between nodes: whoever
    /// counts what this node has stored knows from then on that its data have come at least so far.
    pub fn reached(&self) -> u64 {
        (self.reached)()
    }

    /// This node.
    pub fn node(&self) -> u64 {
        self.node
    }

    /// This node's life.
    pub fn own(&self) -> Life {
        self.own
    }

    /// What this node says of itself now.
    pub fn claim(&self) -> Claim {
        Claim { life: self.own, reached: self.reached() }
    }

    /// What is known of the others.
    pub fn met(&self) -> BTreeMap<u64, Met> {
        self.known.lock().met.clone()
    }

    /// Takes in that `node` shows up with this claim, on a stream that is open for as long as the result lives.
    ///
    /// # Errors
    /// Why it must be refused.
    pub fn meet(self: &Arc<Self>, node: u64, claim: Claim) -> Result<OpenStream, Refusal> {
        let mut known = self.known.lock();
        let Known { met, streams, .. } = &mut *known;
        let Claim { life, reached } = claim;
        // A life leaves a record of its own at once, so that of two that begin at the same position only one can follow.
        let began = Met { life: life.id, reached: reached.max(life.began_at.saturating_add(1)) };
        match met.get_mut(&node) {
            None => {
                met.insert(node, began);
            }
            Some(known) if known.life == life.id => {
                let open = streams.get(&(node, life.id)).is_some_and(|streams| streams.open > 0);
                // What is said on several streams may overtake each other.
                if reached < known.reached && !open && !active(Mutant::StaleDataBelieved) {
                    return Err(Refusal::WentBack(format!(
                        "the log of node {node} is at position {reached} and was at {} before: if this does not pass at once, its \
                         process was put back from a copy of its memory; replace the node",
                        known.reached
                    )));
                }
                known.reached = known.reached.max(reached);
            }
            Some(known) if life.began_at >= known.reached || active(Mutant::StaleDataBelieved) => {
                let earlier = streams.get(&(node, known.life));
                if earlier.is_some_and(|streams| streams.open > 0) {
                    return Err(Refusal::TooEarly(format!(
                        "another process runs as node {node} on the same data, and is connected to node {}: stop one of the two",
                        self.node
                    )));
                }
                let lingers = |since: Instant| since.elapsed() < self.linger;
                if lingers(self.began) || earlier.and_then(|streams| streams.ended).is_some_and(lingers) {
                    return Err(Refusal::NotYet(format!(
                        "an earlier process of node {node} may still be there"
                    )));
                }
                streams.remove(&(node, known.life));
                *known = began;
            }
            Some(known) => {
                return Err(Refusal::Stale(format!(
                    "the data of node {node} are a copy or an older state: node {} has seen its log at position {}, and this one \
                     begins at {}. Stop whoever uses it, remove its directory, and let the node rejoin under a new id",
                    self.node, known.reached, life.began_at
                )));
            }
        }
        let of = (node, life.id);
        streams.entry(of).or_default().open += 1;
        Ok(OpenStream { lives: Arc::clone(self), of })
    }

    /// Takes in how far the log of a node that was met has come. Only one life of a node is connected at a time, and what an
    /// earlier one said late cannot be too far.
    pub fn hear(&self, node: u64, reached: u64) {
        if let Some(known) = self.known.lock().met.get_mut(&node) {
            known.reached = known.reached.max(reached);
        }
    }

    /// Whether another node still has to do with an earlier life of this node's data, by its last answer, which is not old.
    pub fn is_awaited_by(&self, node: u64) -> bool {
        const OLD: Duration = Duration::from_secs(1);
        self.known.lock().waiting_for.get(&node).is_some_and(|said| said.elapsed() < OLD)
    }

    pub(crate) fn awaited_by(&self, node: u64, awaited: bool) {
        let mut known = self.known.lock();
        match awaited {
            true => known.waiting_for.insert(node, Instant::now()),
            false => known.waiting_for.remove(&node),
        };
    }

    /// Takes in that another node has refused this one's data.
    pub fn refused(&self, why: &str) {
        let told = self.on_stale.lock().take();
        if let Some(tell) = told {
            tell(why);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    fn claim(id: u64, began_at: u64) -> Claim {
        Claim { life: Life { id, began_at }, reached: began_at + 1 }
    }

    fn kind(met: Result<OpenStream, Refusal>) -> &'static str {
        match met {
            Ok(_) => "let in",
            Err(Refusal::Stale(_)) => "stale",
            Err(Refusal::TooEarly(_)) => "too early",
            Err(Refusal::NotYet(_)) => "not yet",
            Err(Refusal::WentBack(_)) => "went back",
        }
    }

    #[test]
    fn a_life_follows_where_the_last_one_was_seen_and_no_earlier() {
        let lives = Arc::new(Lives::idle(1));
        let original = lives.meet(2, claim(1, 0)).unwrap();
        lives.hear(2, 70);
        lives.hear(2, 60);
        lives.hear(9, 900);
        assert_eq!(lives.met(), BTreeMap::from([(2, Met { life: 1, reached: 70 })]));
        // A copy, or an older state: whether it began before the life that was seen or was taken from its middle.
        assert_eq!(kind(lives.meet(2, claim(2, 0))), "stale");
        let Err(Refusal::Stale(why)) = lives.meet(2, claim(2, 69)) else { panic!("let in") };
        assert!(why.contains("node 2") && why.contains("70") && why.contains("69"), "{why}");
        assert_eq!(kind(lives.meet(2, claim(1, 0))), "let in", "the original goes on");
        drop(original);
        // A restart.
        assert_eq!(kind(lives.meet(2, claim(3, 70))), "let in");
        assert_eq!(kind(lives.meet(2, claim(1, 0))), "stale", "its time is over");
    }

    #[test]
    fn of_two_that_begin_with_the_same_data_only_one_is_believed() {
        let lives = Arc::new(Lives::idle(1));
        drop(lives.meet(2, claim(1, 0)).unwrap());
        lives.hear(2, 30);
        assert_eq!(kind(lives.meet(2, claim(2, 30))), "let in");
        assert_eq!(kind(lives.meet(2, claim(3, 30))), "stale");
        assert_eq!(kind(lives.meet(3, claim(3, 30))), "let in", "another node");
    }

    #[test]
    fn a_life_waits_for_the_end_of_all_streams_of_the_one_before_it() {
        let lives = Arc::new(Lives::idle(1));
        let first = [(); 2].map(|()| lives.meet(2, claim(1, 0)).unwrap());
        let other = lives.meet(3, claim(2, 30)).unwrap();
        lives.hear(2, 30);
        for stream in first {
            assert_eq!(kind(lives.meet(2, claim(2, 30))), "too early");
            drop(stream);
        }
        assert_eq!(kind(lives.meet(2, claim(2, 30))), "let in");
        drop(other);
    }

    #[tokio::test]
    async fn what_has_just_ended_and_what_began_before_this_node_may_still_be_there() {
        tokio::time::pause();
        let met = BTreeMap::from([(2, Met { life: 1, reached: 30 })]);
        let lives = Arc::new(Lives::new(1, Life { id: 1, began_at: 0 }, met, || 1, |_| ()));
        // Connections are being made anew: the one that was known may come first.
        assert_eq!(kind(lives.meet(2, claim(2, 30))), "not yet");
        assert_eq!(kind(lives.meet(3, claim(5, 0))), "let in", "nobody has known it");
        let known = lives.meet(2, Claim { reached: 31, ..claim(1, 0) }).unwrap();
        tokio::time::advance(LINGER).await;
        drop(known);
        assert_eq!(kind(lives.meet(2, claim(2, 31))), "not yet");
        tokio::time::advance(LINGER).await;
        assert_eq!(kind(lives.meet(2, claim(2, 31))), "let in");
    }

    #[test]
    fn a_process_that_is_put_back_is_where_it_has_been_before() {
        let lives = Arc::new(Lives::idle(1));
        let at = |reached| Claim { reached, ..claim(1, 0) };
        let stream = lives.meet(2, at(50)).unwrap();
        assert_eq!(kind(lives.meet(2, at(49))), "let in", "another stream may have been faster");
        drop(stream);
        assert_eq!(kind(lives.meet(2, at(49))), "went back");
        assert_eq!(kind(lives.meet(2, at(50))), "let in");
        assert_eq!(kind(lives.meet(2, at(51))), "let in");
        assert_eq!(lives.met()[&2].reached, 51);
    }

    #[test]
    fn a_claim_is_read_as_it_was_written() {
        for (id, began_at, reached) in [(0, 0, 0), (u64::MAX, u64::MAX, u64::MAX), (7, 8, 9)] {
            let claim = Claim { life: Life { id, began_at }, reached };
            assert_eq!(Claim::parse(&claim.to_string()), Some(claim));
        }
        for text in ["", "1", ".", "1.2", "..", "1.2.", "1..3", ".2.3", "x.1.1", "1.x.1", "1.1.x", "1.2.3.4"]
        {
            assert_eq!(Claim::parse(text), None, "{text}");
        }
    }

    #[test]
    fn stale_data_are_told_once() {
        let told = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&told);
        let count = move |_: &str| {
            counted.fetch_add(1, Ordering::Relaxed);
        };
        let lives = Lives::new(1, Life { id: 1, began_at: 0 }, BTreeMap::new(), || 0, count);
        lives.refused("x");
        lives.refused("x");
        assert_eq!(told.load(Ordering::Relaxed), 1);
    }
}
