//! Reads that any replica may answer which has come far enough, whoever leads. A replica never answers one that has halted, was
//! left behind, or does not know what time it is. Where it lacks the last few entries it waits for them, for a moment.
//!
//! How far is far enough says the caller: no replica can know alone how much it lacks.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidewall_actors::Refusal;
use tidewall_consensus::Group;
use tidewall_machine::AsOf;
use tidewall_messages::Seen;
use tidewall_proto::internal::v1 as pb;

use crate::standing::Standing;
use crate::views;

/// What a replica lacks of a read must come within this time: under load a standby is a few ms behind.
const PATIENCE: Duration = Duration::from_millis(100);
/// What lacks more entries is not waited for.
const LACKS_MAX: u64 = 10_000;
/// Reads that may wait for it in a group; more are told to come back.
const WAITING_MAX: usize = 1_024;
/// And when, ms.
const RETRY_MS: u32 = 100;

/// How many reads of a group wait on this node.
#[derive(Debug, Default)]
pub struct Waiting(AtomicUsize);

/// A place among them.
struct Place<'a>(&'a AtomicUsize);

impl Waiting {
    fn place(&self) -> Option<Place<'_>> {
        let place = Place(&self.0);
        (self.0.fetch_add(1, Ordering::AcqRel) < WAITING_MAX).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// What is asked of this replica.
pub struct Asked<'a> {
    /// Its group.
    pub group: &'a Group,
    /// What the node knows of its clock.
    pub standing: &'a Standing,
    /// The question.
    pub query: &'a pb::Query,
    /// How far the replica must have come.
    pub seen: Seen,
}

impl Asked<'_> {
    /// Whether this replica has come far enough to be asked now.
    pub fn is_ready(&self) -> bool {
        self.group.state().come().has(self.seen)
    }

    /// Answers.
    ///
    /// # Errors
    /// The refusal that sends the caller elsewhere.
    pub fn answer(&self) -> Result<pb::QueryResult, pb::Refusal> {
        let state = self.group.state();
        if let Some(why) = state.halted().or_else(|| state.suspended()) {
            return Err(views::refusal(&Refusal::Halted(why)));
        }
        let come = state.come().whole();
        if self.standing.clock_is_far() {
            return Err(views::behind(come, "the clock of this node is far from the others'"));
        }
        if !matches!(self.query.op, Some(pb::query::Op::Module(_) | pb::query::Op::GetQueue(_))) {
            return Err(views::invalid("this can be asked of the leader alone"));
        }
        if !self.is_ready() {
            return Err(views::behind(come, "this replica has not come as far as what was seen elsewhere"));
        }
        let as_of = AsOf { stamp: self.standing.stamp(), seen: self.seen };
        state.read(|machine| match machine.knows_time(as_of) {
            true => views::query(machine, as_of, self.query).map_err(views::invalid),
            false => Err(views::behind(come, "this node does not know what time it is")),
        })
    }

    /// Waits until this replica has come far enough, for a moment and in a bounded number of places, and answers then.
    ///
    /// # Errors
    /// As [`Asked::answer`].
    pub async fn answer_soon(&self, waiting: &Waiting) -> Result<pb::QueryResult, pb::Refusal> {
        let come = self.group.state().come().whole();
        let lacks = self.seen.index.saturating_sub(come.index);
        if self.seen.incarnation == come.incarnation && lacks <= LACKS_MAX {
            let Some(_place) = waiting.place() else {
                let what = "as many reads wait at a standby of the region as may";
                return Err(views::refusal(&Refusal::Overloaded { what, retry_after_ms: RETRY_MS }));
            };
            // Whether it was in vain is looked at below.
            let _ = tokio::time::timeout(PATIENCE, self.group.state().come().wait_for(self.seen)).await;
        }
        self.answer()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::fake::{replicas, standing};

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_standby_answers_what_it_has_waits_for_a_little_and_never_answers_when_it_has_halted() {
        let running = replicas(&[1, 2]).await;
        let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
        let leader = loop {
            let leads = |at: &usize| running[*at].group.believes_to_lead();
            if let Some(leader) = (0..2).find(leads)
                && running[leader].group.confirm_leadership().await.is_ok()
            {
                break leader;
            }
            assert!(tokio::time::Instant::now() < deadline, "nobody leads");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        let (group, standing) = (&running[1 - leader].group, standing(2));
        let shown = running[leader].group.state().come().whole();
        let queue = pb::GetQueue { module: 1, queue: vec![0; 16] };
        let query = pb::Query { op: Some(pb::query::Op::GetQueue(queue)) };
        let waiting = Waiting::default();
        let asked = |seen| Asked { group, standing: &standing, query: &query, seen };
        // On a busy machine it may lack the first entries for longer than it waits.
        let answer = async |seen| {
            while group.state().come().whole().index < shown.index {
                assert!(tokio::time::Instant::now() < deadline, "the standby gets nothing");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            asked(seen).answer_soon(&waiting).await
        };
        let kind = |refused: Result<_, pb::Refusal>| refused.map(|_: pb::QueryResult| ()).unwrap_err().kind();
        let here = answer(shown).await.unwrap();
        assert!(shown.is_within(here.seen.unwrap()));
        let later = Seen { index: shown.index + 1_000, ..shown };
        let refused = answer(later).await.unwrap_err();
        assert_eq!((refused.kind(), refused.come.unwrap().is_within(later)), (pb::RefusalKind::Behind, true));
        for never in [
            Seen { incarnation: shown.incarnation + 1, ..shown },
            Seen { index: u64::MAX, ..shown },
            Seen { steady_ms: u64::MAX, ..shown },
        ] {
            assert_eq!(kind(answer(never).await), pb::RefusalKind::Behind, "{never:?}");
        }
        let changes = pb::Query { op: Some(pb::query::Op::Changes(pb::ListChanges::default())) };
        let wrong = Asked { query: &changes, ..asked(shown) };
        assert_eq!(kind(wrong.answer()), pb::RefusalKind::Invalid);
        group.state().quarantine("its digest is in a minority".into());
        assert_eq!(kind(answer(shown).await), pb::RefusalKind::Halted);
        running.iter().for_each(|replica| replica.writer.stop());
    }

    #[test]
    fn places_are_bounded_and_given_back() {
        let waiting = Waiting::default();
        let places: Vec<Place<'_>> = (0..WAITING_MAX).map(|_| waiting.place().unwrap()).collect();
        assert!(waiting.place().is_none());
        assert!(waiting.place().is_none(), "a refusal takes no place");
        drop(places);
        assert!(waiting.place().is_some());
        assert_eq!(waiting.0.load(Ordering::Acquire), 0);
    }
}
