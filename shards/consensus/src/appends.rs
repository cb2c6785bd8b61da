//! Sends one group's appends to one follower, one after the other, so that news of a commit ride with the next entries.
//!
//! openraft tells each follower of each commit in a request of its own when nothing else is to be sent at that moment. Where
//! entries follow each other in a few milliseconds, that is half of all messages between nodes, and nobody waits for them: a
//! follower that learns of a commit later applies it later. Such a request is held back until the next entries carry the
//! same news, or [`HELD_MAX`] has passed. **Never here:** an answer that the follower has not given. It counts for the
//! leader's lease, so that what is held back is answered when a later request was, and not before.

use std::collections::VecDeque;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use openraft::base::{BoxFuture, BoxStream};
use openraft::error::RPCError;
use openraft::network::{NetAppend, RPCOption};
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, StreamAppendResult};
use tokio::time::{Instant, timeout_at};

use crate::types::{LogId, Types};

/// A follower that is told nothing else learns of a commit this late at most.
const HELD_MAX: Duration = Duration::from_millis(20);

type Answer = Result<StreamAppendResult<Types>, RPCError<Types>>;

/// A request without entries that is held back.
struct Held {
    request: AppendEntriesRequest<Types>,
    until: Instant,
}

struct Session<'s, N, S> {
    network: &'s mut N,
    requests: S,
    option: RPCOption,
    held: Option<Held>,
    /// Where the log ends for requests that later ones have made superfluous: they are answered with those.
    superseded: Vec<Option<LogId>>,
    answers: VecDeque<Answer>,
    ended: bool,
}

/// Like openraft's own sequential form, but for what this module is for.
pub(crate) fn send<'s, N, S>(
    network: &'s mut N,
    requests: S,
    option: RPCOption,
) -> BoxFuture<'s, Result<BoxStream<'s, Answer>, RPCError<Types>>>
where
    N: NetAppend<Types>,
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let session = Session {
        network,
        requests,
        option,
        held: None,
        superseded: Vec::new(),
        answers: VecDeque::new(),
        ended: false,
    };
    let answers = futures_util::stream::unfold(session, |mut session| async move {
        let answer = session.next().await?;
        Some((answer, session))
    });
    let answers: BoxStream<'s, Answer> = Box::pin(answers);
    Box::pin(std::future::ready(Ok(answers)))
}

fn last(request: &AppendEntriesRequest<Types>) -> Option<LogId> {
    request.entries.last().map(|entry| entry.log_id).or(request.prev_log_id)
}

impl<N, S> Session<'_, N, S>
where
    N: NetAppend<Types>,
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    async fn next(&mut self) -> Option<Answer> {
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return Some(answer);
            }
            if self.ended {
                return None;
            }
            let request = self.due().await?;
            self.send(request).await;
        }
    }

    /// The next request that is to be sent now; `None` when there is none any more.
    async fn due(&mut self) -> Option<AppendEntriesRequest<Types>> {
        loop {
            let Some(held) = self.held.take() else {
                let request = self.requests.next().await?;
                if !request.entries.is_empty() {
                    return Some(request);
                }
                self.held = Some(Held { request, until: Instant::now() + HELD_MAX });
                continue;
            };
            match timeout_at(held.until, self.requests.next()).await {
                Ok(Some(next)) => {
                    self.superseded.push(last(&held.request));
                    if !next.entries.is_empty() {
                        return Some(next);
                    }
                    // Later news; it is not told later than the first would have been.
                    self.held = Some(Held { request: next, until: held.until });
                }
                Ok(None) => {
                    self.ended = true;
                    return Some(held.request);
                }
                Err(_) => return Some(held.request),
            }
        }
    }

    async fn send(&mut self, request: AppendEntriesRequest<Types>) {
        let (prev, last) = (request.prev_log_id, last(&request));
        match self.network.append_entries(request, self.option.clone()).await {
            Ok(response) => {
                let whole = match &response {
                    AppendEntriesResponse::Success => true,
                    AppendEntriesResponse::PartialSuccess(upto) => *upto == last,
                    _ => false,
                };
                // What is behind this request's own beginning is the follower's whatever else it says.
                let superseded = self.superseded.drain(..);
                if whole {
                    self.answers.extend(superseded.map(|last| Ok(Ok(last))));
                }
                // Nothing more is sent behind what was not taken: openraft begins anew.
                self.ended |= !whole;
                self.answers.push_back(Ok(response.into_stream_result(prev, last)));
            }
            Err(error) => {
                self.ended = true;
                self.answers.push_back(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use openraft::EntryPayload;
    use openraft::error::Unreachable;
    use tokio::sync::mpsc;

    type Reply = Result<AppendEntriesResponse<Types>, RPCError<Types>>;
    type Replies = fn() -> Reply;

    /// A follower that takes 1 ms, and what it was sent: where each request ends, what is committed, and when.
    struct Follower {
        sent: mpsc::UnboundedSender<(Option<u64>, Option<u64>, Instant)>,
        /// The request of this number is answered in another way.
        exception: Option<(usize, Replies)>,
        count: usize,
    }

    impl NetAppend<Types> for Follower {
        async fn append_entries(
            &mut self,
            rpc: AppendEntriesRequest<Types>,
            _: RPCOption,
        ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
            let index = |log_id: Option<LogId>| log_id.map(|log_id| log_id.index);
            let sent = (index(last(&rpc)), index(rpc.leader_commit), Instant::now());
            self.sent.send(sent).expect("the test listens");
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.count += 1;
            match self.exception {
                Some((number, answer)) if number == self.count => answer(),
                _ => Ok(AppendEntriesResponse::Success),
            }
        }
    }

    fn log_id(index: u64) -> LogId {
        LogId::new(crate::types::LeaderId { term: 1, node_id: 1 }, index)
    }

    /// Entries up to `last` behind `prev`, with the news that `committed` is.
    fn request(prev: u64, last: u64, committed: u64) -> AppendEntriesRequest<Types> {
        let entry = |index| openraft::Entry { log_id: log_id(index), payload: EntryPayload::Blank };
        AppendEntriesRequest {
            vote: crate::types::Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(prev)),
            entries: (prev + 1..=last).map(entry).collect(),
            leader_commit: Some(log_id(committed)),
        }
    }

    /// What a follower is sent of these requests, which come so many ms after each other, and what is answered: where each
    /// answer says that the follower's log ends. Times are ms from the beginning.
    async fn run(
        requests: Vec<(u64, AppendEntriesRequest<Types>)>,
        exception: Option<(usize, Replies)>,
    ) -> (Vec<(u64, u64, u64)>, Vec<Result<u64, &'static str>>) {
        let (sent, mut seen) = mpsc::unbounded_channel();
        let mut follower = Follower { sent, exception, count: 0 };
        let began = Instant::now();
        let requests = futures_util::stream::iter(requests).then(|(pause, request)| async move {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            request
        });
        let option = RPCOption::new(Duration::from_secs(1));
        let answers = send(&mut follower, Box::pin(requests), option).await.expect("it begins at once");
        let answers = answers.map(|answer| match answer {
            Ok(Ok(log_id)) => Ok(log_id.map_or(0, |log_id| log_id.index)),
            Ok(Err(_)) => Err("not taken"),
            Err(_) => Err("not reached"),
        });
        let answers = answers.collect().await;
        seen.close();
        let mut all = Vec::new();
        while let Some((last, committed, at)) = seen.recv().await {
            let ms = at.duration_since(began).as_millis() as u64;
            all.push((last.unwrap_or(0), committed.unwrap_or(0), ms));
        }
        (all, answers)
    }

    #[tokio::test(start_paused = true)]
    async fn news_of_a_commit_ride_with_the_next_entries() {
        let requests =
            vec![(0, request(1, 2, 1)), (0, request(2, 2, 2)), (5, request(2, 3, 2)), (0, request(3, 3, 3))];
        let (sent, answers) = run(requests, None).await;
        // The last one is told when nothing can follow any more.
        assert_eq!(sent, [(2, 1, 0), (3, 2, 6), (3, 3, 7)]);
        assert_eq!(answers, [Ok(2), Ok(2), Ok(3), Ok(3)], "each request has its answer, in order");
    }

    #[tokio::test(start_paused = true)]
    async fn news_that_nothing_follows_are_told_soon_however_much_more_news_come() {
        let requests = vec![
            (0, request(4, 4, 2)),
            (15, request(4, 4, 3)),
            (15, request(4, 4, 4)),
            (60, request(4, 5, 4)),
        ];
        let (sent, answers) = run(requests, None).await;
        assert_eq!(sent, [(4, 3, 20), (4, 4, 50), (5, 4, 90)]);
        assert_eq!(answers, [Ok(4), Ok(4), Ok(4), Ok(5)]);
    }

    /// What was held back counts for the leader's lease as soon as it is answered: only what the follower took says so.
    #[tokio::test(start_paused = true)]
    async fn nothing_is_answered_that_the_follower_has_not_taken() {
        let failures: [(Replies, &str); 2] = [
            (|| Ok(AppendEntriesResponse::Conflict), "not taken"),
            (|| Err(RPCError::Unreachable(Unreachable::from_string("cut off"))), "not reached"),
        ];
        for (failure, what) in failures {
            let requests = vec![
                (0, request(1, 2, 1)),
                (0, request(2, 2, 2)),
                (0, request(2, 3, 2)),
                (0, request(3, 4, 2)),
            ];
            let (sent, answers) = run(requests, Some((2, failure))).await;
            assert_eq!(sent.len(), 2, "nothing goes behind it: {sent:?}");
            assert_eq!(answers, [Ok(2), Err(what)]);
        }
    }
}
