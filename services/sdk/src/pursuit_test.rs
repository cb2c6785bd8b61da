//! Tests of the retry rules with scripted attempts and a clock that stands still until everybody waits.
#![allow(clippy::unwrap_used)]

use std::collections::VecDeque;

use parking_lot::Mutex;
use tonic::Code;

use super::*;
use crate::budget::RetryBudget;

/// What one attempt does: takes this long, then ends so.
type Step = (Duration, Result<&'static str, Ending>);

#[derive(Default)]
struct Script {
    steps: Mutex<VecDeque<Step>>,
    /// (since the start, timeout) of each attempt.
    attempts: Mutex<Vec<(Duration, Duration)>>,
    sealed: Option<Final>,
    asked: Mutex<u32>,
    start: Option<Instant>,
}

impl Script {
    fn new(steps: impl IntoIterator<Item = Step>) -> Self {
        let steps = Mutex::new(steps.into_iter().collect());
        Self { steps, start: Some(Instant::now()), ..Self::default() }
    }

    fn starts(&self) -> Vec<Duration> {
        self.attempts.lock().iter().map(|(start, _)| *start).collect()
    }
}

fn failure(message: &str) -> Failure {
    Failure::local(Code::Unavailable, message, "")
}

impl Wire for Script {
    type Answer = &'static str;

    async fn attempt(&self, timeout: Duration) -> Result<&'static str, Ended> {
        self.attempts.lock().push((self.start.unwrap().elapsed(), timeout));
        let (takes, end) = self.steps.lock().pop_front().expect("an attempt more than the script has");
        sleep(takes.min(timeout)).await;
        end.map_err(|ending| Ended { ending, failure: failure("scripted") })
    }

    async fn seal(&self, _timeout: Duration) -> Option<Final> {
        *self.asked.lock() += 1;
        self.sealed.clone()
    }
}

const MS: Duration = Duration::from_millis(1);
const BACKOFF: Backoff = Backoff { first: Duration::from_millis(50), max: Duration::from_secs(1) };

fn policy() -> Policy {
    Policy { attempt_timeout: 4000 * MS, backoff: BACKOFF, bucket: Bucket::new(RetryBudget::default()) }
}

async fn run(script: &Script, policy: &Policy) -> Result<Reached<&'static str>, Failed> {
    pursue(script, policy, Instant::now() + 10_000 * MS, true, Doubt::default()).await
}

#[track_caller]
fn end(result: Result<Reached<&'static str>, Failed>) -> (Certainty, Stop) {
    let failed = result.unwrap_err();
    (failed.certainty, failed.stop)
}

#[tokio::test(start_paused = true)]
async fn a_doubtful_attempt_is_repeated_until_there_is_an_answer() {
    let script = Script::new([
        (MS, Err(Ending::Doubt(Again::Backoff))),
        (MS, Err(Ending::Unsent(Again::Now))),
        (MS, Err(Ending::Refused(Again::Backoff))),
        (MS, Ok("bought")),
    ]);
    let reached = run(&script, &policy()).await.unwrap();
    assert_eq!((reached.answer, reached.attempts), ("bought", 4));
}

#[tokio::test(start_paused = true)]
async fn the_delay_of_the_service_is_kept_exactly_and_our_own_stays_within_its_bounds() {
    let script = Script::new([
        (Duration::ZERO, Err(Ending::Refused(Again::After(1234 * MS)))),
        (Duration::ZERO, Err(Ending::Doubt(Again::Backoff))),
        (Duration::ZERO, Err(Ending::Doubt(Again::Backoff))),
        (Duration::ZERO, Ok("bought")),
    ]);
    run(&script, &policy()).await.unwrap();
    let starts = script.starts();
    assert_eq!(starts[1], 1234 * MS);
    // The clock of tokio counts in whole milliseconds, rounded up.
    assert!(starts[2] - starts[1] <= 51 * MS, "{starts:?}");
    assert!(starts[3] - starts[2] <= 101 * MS, "{starts:?}");
}

#[tokio::test(start_paused = true)]
async fn a_delay_beyond_the_deadline_ends_the_call_at_once() {
    let script = Script::new([(MS, Err(Ending::Refused(Again::After(20_000 * MS))))]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::NotDecided, Stop::Deadline));
    assert!(script.start.unwrap().elapsed() < 100 * MS);
}

#[tokio::test(start_paused = true)]
async fn attempts_end_with_the_callers_deadline_and_doubt_remains_doubt() {
    let doubtful = || (4000 * MS, Err(Ending::Doubt(Again::Now)));
    let script = Script::new([doubtful(), doubtful(), doubtful()]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::Unknown, Stop::Deadline));
    let timeouts: Vec<_> = script.attempts.lock().iter().map(|(_, timeout)| *timeout).collect();
    assert_eq!(timeouts, [4000 * MS, 4000 * MS, 2000 * MS]);
    assert_eq!(script.start.unwrap().elapsed(), 10_000 * MS);
}

#[tokio::test(start_paused = true)]
async fn refusals_after_doubt_do_not_make_it_certain() {
    for again in [Again::Never, Again::After(60_000 * MS)] {
        let script = Script::new([(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::Refused(again)))]);
        assert_eq!(end(run(&script, &policy()).await).0, Certainty::Unknown, "{again:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn without_doubt_a_refusal_is_certain_and_asks_nobody() {
    let script =
        Script::new([(MS, Err(Ending::Unsent(Again::Now))), (MS, Err(Ending::Refused(Again::Never)))]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::NotDecided, Stop::Refused));
    let script = Script::new([(MS, Err(Ending::No))]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::Decided, Stop::Refused));
    assert_eq!(*script.asked.lock(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_no_after_doubt_is_believed_when_the_region_remembers_it() {
    let mut script = Script::new([(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::No))]);
    script.sealed = Some(Final::No(failure("remembered")));
    let failed = run(&script, &policy()).await.unwrap_err();
    assert_eq!((failed.certainty, failed.stop), (Certainty::Decided, Stop::Refused));
    assert_eq!(failed.last.unwrap().message, "remembered");
}

#[tokio::test(start_paused = true)]
async fn a_seal_ends_the_doubt_at_once() {
    let steps = || [(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::No))];
    // Nothing was decided before and nothing will be: the "no" stands.
    let mut script = Script::new(steps());
    script.sealed = Some(Final::Never);
    let failed = run(&script, &policy()).await.unwrap_err();
    assert_eq!((failed.certainty, failed.last.unwrap().message.as_str()), (Certainty::Decided, "scripted"));
    assert!(script.start.unwrap().elapsed() < 100 * MS);
    // The first copy was executed: asked again, the region says what it answered.
    let mut script = Script::new(steps().into_iter().chain([(MS, Ok("bought"))]));
    script.sealed = Some(Final::Executed);
    assert_eq!(run(&script, &policy()).await.unwrap().answer, "bought");
    // What no repetition changes, after doubt: it is certain that nothing was executed.
    let mut script =
        Script::new([(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::Refused(Again::Never)))]);
    script.sealed = Some(Final::Never);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::NotDecided, Stop::Refused));
}

#[tokio::test(start_paused = true)]
async fn a_no_that_nobody_remembers_counts_only_when_earlier_copies_are_void() {
    let script =
        Script::new([(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::No)), (MS, Err(Ending::No))]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::Decided, Stop::Refused));
    // The first copy could be executed for its 4 s, and the margin.
    assert!(script.starts()[2] >= 4000 * MS + LATE_COPY_MARGIN);

    // It may also turn out that the first copy was executed.
    let script =
        Script::new([(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::No)), (MS, Ok("bought"))]);
    assert_eq!(run(&script, &policy()).await.unwrap().answer, "bought");

    // Without the time for that, it stays unknown.
    let script = Script::new([
        (4000 * MS, Err(Ending::Doubt(Again::Now))),
        (4000 * MS, Err(Ending::Doubt(Again::Now))),
        (MS, Err(Ending::No)),
    ]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::Unknown, Stop::Deadline));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_nobody_understands_is_doubt_and_the_region_is_asked() {
    let script = Script::new([(MS, Err(Ending::Doubt(Again::Never)))]);
    assert_eq!(end(run(&script, &policy()).await), (Certainty::Unknown, Stop::Refused));
    let mut script = Script::new([(MS, Err(Ending::Doubt(Again::Never)))]);
    script.sealed = Some(Final::No(failure("remembered")));
    assert_eq!(end(run(&script, &policy()).await).0, Certainty::Decided);
}

#[tokio::test(start_paused = true)]
async fn a_read_is_never_in_doubt() {
    let script =
        Script::new([(MS, Err(Ending::Doubt(Again::Now))), (MS, Err(Ending::Refused(Again::Never)))]);
    let deadline = Instant::now() + 10_000 * MS;
    assert_eq!(
        end(pursue(&script, &policy(), deadline, false, Doubt::default()).await).0,
        Certainty::NotDecided
    );
}

#[tokio::test(start_paused = true)]
async fn a_spent_budget_stops_retries_and_nothing_else() {
    let budget = RetryBudget { max_tokens: 4, token_ratio_thousandths: 1000 };
    let policy = Policy { bucket: Bucket::new(budget), ..policy() };
    let doubtful = || (MS, Err(Ending::Doubt(Again::Backoff)));
    let script = Script::new([doubtful(), doubtful()]);
    assert_eq!(end(run(&script, &policy).await), (Certainty::Unknown, Stop::Budget));
    // A first attempt is always allowed; only its repetition is not.
    let script = Script::new([doubtful()]);
    assert_eq!(end(run(&script, &policy).await), (Certainty::Unknown, Stop::Budget));
    // What the service paces, and what never left, costs nothing and is not held back.
    let script = Script::new([
        (MS, Err(Ending::Refused(Again::After(100 * MS)))),
        (MS, Err(Ending::Unsent(Again::Backoff))),
        (MS, Ok("bought")),
    ]);
    assert_eq!(run(&script, &policy).await.unwrap().attempts, 3);
    // Successes fill it again: one is back, two more are more than half.
    for _ in 0..2 {
        run(&Script::new([(MS, Ok("bought"))]), &policy).await.unwrap();
    }
    let script = Script::new([doubtful(), (MS, Ok("bought"))]);
    assert_eq!(run(&script, &policy).await.unwrap().attempts, 2);
}

#[tokio::test(start_paused = true)]
async fn a_deadline_that_has_passed_sends_nothing() {
    let script = Script::new([]);
    let result = pursue(&script, &policy(), Instant::now(), true, Doubt::default()).await;
    assert_eq!(end(result), (Certainty::NotDecided, Stop::Deadline));
}

/// A call that ended in doubt is sent again under its id: what is refused now says nothing about the copy of before.
#[tokio::test(start_paused = true)]
async fn a_request_whose_id_its_caller_gives_begins_in_doubt() {
    let deadline = || Instant::now() + 1_000 * MS;
    let given = Doubt::of_a_request_with("01a21f6b-8ee6-7bbd-95fd-97533050849b");
    let paced = || Script::new([(MS, Err(Ending::Refused(Again::After(10_000 * MS))))]);
    let result = pursue(&paced(), &policy(), deadline(), true, given).await;
    assert_eq!(end(result).0, Certainty::Unknown);
    let result = pursue(&paced(), &policy(), deadline(), true, Doubt::of_a_request_with("")).await;
    assert_eq!(end(result).0, Certainty::NotDecided);
    // A "no" is made certain first.
    let mut script = Script::new([(MS, Err(Ending::No))]);
    script.sealed = Some(Final::Never);
    let result = pursue(&script, &policy(), deadline(), true, given).await;
    assert_eq!((end(result).0, *script.asked.lock()), (Certainty::Decided, 1));
}
