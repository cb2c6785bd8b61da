//! The streams of those who watch. A stream holds what its client has not read yet of one answer, and nothing else: who reads slowly
//! is behind, and who does not read at all is let go.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tidewall_mutant::{Mutant, active};
use tidewall_proto::v1;
use tokio::sync::mpsc;
use tokio::time::{Instant, interval_at, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::board::{Shown, Standing};
use super::{PAUSE, Place, Silence, Watching};
use crate::errors::ApiError;

/// Changes of an answer, at most.
const CHANGES_MAX: usize = 500;
/// About the bytes of an answer, beyond its last change: clients take 4 MiB unless they are told otherwise.
const ANSWER_BYTES_MAX: usize = 256 << 10;
/// Who has nothing to be told is told so now and then: that the stream lives, and where it is.
const IDLE: Duration = Duration::from_secs(10);
/// Who has not read the last answers for so long is let go.
const UNREAD_MAX: Duration = Duration::from_secs(30);
/// Answers that may wait to be read.
const UNREAD_ANSWERS: usize = 2;
/// A region that does not answer for so long ends the stream: its client decides what to do.
const SILENT_MAX: Duration = Duration::from_secs(30);
/// How an event is, is told so often at most.
const STATE_PERIOD: Duration = Duration::from_millis(100);

/// What somebody is told.
pub(crate) type Responses = ReceiverStream<Result<v1::WatchResponse, Status>>;

/// Which changes somebody wants to be told, and may be.
#[derive(Debug)]
pub(crate) struct Filter {
    /// Id of the only event that counts.
    pub(crate) event: Option<String>,
    /// Kinds that count; none means all.
    pub(crate) kinds: Vec<v1::ChangeKind>,
    /// The only owner that counts.
    pub(crate) owner: Option<String>,
    /// Of what concerns somebody, only what concerns this one may be told; none means all.
    pub(crate) only_of: Option<String>,
}

impl Filter {
    fn admits(&self, change: &v1::Change) -> bool {
        let kind = self.kinds.is_empty() || self.kinds.contains(&change.kind());
        let owner = self.owner.as_ref().is_none_or(|owner| *owner == change.owner);
        let allowed = change.owner.is_empty()
            || self.only_of.as_ref().is_none_or(|only| *only == change.owner)
            || active(Mutant::WatchShowsOthers);
        kind && owner && allowed
    }
}

/// When a stream ends.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Its time is over: the client comes again.
    pub(crate) until: Instant,
    /// Its token is void.
    pub(crate) token_until: Instant,
}

/// Why a stream ends, with an error or without.
type End = Option<ApiError>;

/// A stream that is being told.
struct Stream {
    answers: mpsc::Sender<Result<v1::WatchResponse, Status>>,
}

impl Stream {
    /// Tells the client something.
    ///
    /// # Errors
    /// The client is gone, or does not read.
    async fn tell(&self, answer: v1::WatchResponse) -> Result<(), End> {
        match timeout(UNREAD_MAX, self.answers.send(Ok(answer))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(None),
            Err(_) => Err(Some(ApiError::not_read())),
        }
    }
}

/// Runs a stream until it ends, and tells its client why.
fn run<F: Future<Output = End> + Send + 'static>(
    limits: Limits,
    mut stopping: tokio::sync::watch::Receiver<bool>,
    told: impl FnOnce(Stream) -> F,
) -> Responses {
    let (answers, receiver) = mpsc::channel(UNREAD_ANSWERS);
    let telling = told(Stream { answers: answers.clone() });
    tokio::spawn(async move {
        let end = tokio::select! {
            end = telling => end,
            () = answers.closed() => return,
            () = sleep_until(limits.until) => None,
            () = sleep_until(limits.token_until) => Some(ApiError::token_expired()),
            // Its client finds another gateway.
            () = Watching::stopped(&mut stopping) => None,
        };
        if let Some(error) = end {
            // Whoever does not read is not waited for.
            let _ = timeout(UNREAD_MAX, answers.send(Err(error.into()))).await;
        }
    });
    ReceiverStream::new(receiver)
}

/// Tells each change behind a place, or from now on.
///
/// # Errors
/// The region does not answer.
pub(crate) async fn watch_changes(
    mut watching: Watching,
    filter: Filter,
    after: Option<Place>,
    limits: Limits,
    deadline: Instant,
) -> Result<Responses, ApiError> {
    let place = match after {
        Some(place) if watching.has_been_at(place, deadline).await? => place,
        Some(_) => return Err(ApiError::field("after", "is a place where this region has not been yet")),
        None => watching.place(deadline).await?,
    };
    let stopping = watching.stopping.clone();
    Ok(run(limits, stopping, move |stream| async move {
        tell_changes(&mut watching, &filter, place, &stream).await.err().flatten()
    }))
}

async fn tell_changes(
    watching: &mut Watching,
    filter: &Filter,
    mut heard: Place,
    stream: &Stream,
) -> Result<(), End> {
    // At once: the place from which on nothing is missed. One that is too old is told instead.
    let mut teller = Teller { stream, answer: v1::WatchResponse::default(), bytes: 0, told_at: None };
    let mut silent_since = None;
    loop {
        match watching.next(heard).await {
            Ok(Some((batches, end))) => {
                silent_since = None;
                // By value: what was told is let go before the client has read the rest.
                for batch in batches {
                    for told in batch.behind(heard, filter.event.as_deref()) {
                        if filter.admits(&told.change) {
                            teller.take(&told.change, told.place).await?;
                        }
                        // Another event of this id may be somebody else's.
                        if filter.event.is_some() && told.change.kind() == v1::ChangeKind::EventDeleted {
                            teller.tell(told.place).await?;
                            return Err(Some(ApiError::event_gone()));
                        }
                    }
                    heard = batch.to.max(heard);
                }
                heard = end.max(heard);
                teller.tell_if_due(heard).await?;
            }
            Ok(None) => {
                silent_since = None;
                if watching.silent_for() > SILENT_MAX {
                    return Err(Some(ApiError::region_silent()));
                }
                teller.tell_if_due(heard).await?;
                tokio::select! {
                    () = watching.news() => {}
                    () = sleep(IDLE) => {}
                }
            }
            Err(Silence::Gone(oldest)) => return Err(Some(ApiError::place_gone(oldest))),
            Err(Silence::Region(error)) => {
                if silent_since.get_or_insert_with(Instant::now).elapsed() > SILENT_MAX {
                    return Err(Some(error));
                }
                if teller.told_at.is_some() {
                    teller.tell_if_due(heard).await?;
                }
                sleep(PAUSE).await;
            }
        }
    }
}

/// An answer that is being filled.
struct Teller<'a> {
    stream: &'a Stream,
    answer: v1::WatchResponse,
    /// About the bytes of its changes.
    bytes: usize,
    /// When the client was told something last.
    told_at: Option<Instant>,
}

impl Teller<'_> {
    /// Takes a change in; tells what there is when that is enough.
    async fn take(&mut self, change: &v1::Change, place: Place) -> Result<(), End> {
        self.bytes += change.encoded_len();
        self.answer.changes.push(change.clone());
        if self.answer.changes.len() >= CHANGES_MAX || self.bytes >= ANSWER_BYTES_MAX {
            self.tell(place).await?;
        }
        Ok(())
    }

    /// Tells what there is, and how far that goes.
    async fn tell(&mut self, place: Place) -> Result<(), End> {
        self.answer.place = Some(place.into());
        self.bytes = 0;
        self.stream.tell(std::mem::take(&mut self.answer)).await?;
        self.told_at = Some(Instant::now());
        Ok(())
    }

    /// The same, if there is something, or nothing was told for a while.
    async fn tell_if_due(&mut self, place: Place) -> Result<(), End> {
        let due = self.told_at.is_none_or(|at| at.elapsed() >= IDLE);
        if due || !self.answer.changes.is_empty() {
            self.tell(place).await?;
        }
        Ok(())
    }
}

/// Tells how an event is, as it changes.
///
/// # Errors
/// There is no such event, or the region does not answer.
pub(crate) async fn watch_state(
    watching: Watching,
    event: &str,
    limits: Limits,
    deadline: Instant,
) -> Result<Responses, ApiError> {
    let mut standing = watching.board(event, deadline).await?;
    let stopping = watching.stopping.clone();
    Ok(run(limits, stopping, move |stream| async move {
        tell_state(&watching, &mut standing, &stream).await.err().flatten()
    }))
}

async fn tell_state(
    watching: &Watching,
    standing: &mut tokio::sync::watch::Receiver<Standing>,
    stream: &Stream,
) -> Result<(), End> {
    let mut known: Option<Arc<Shown>> = None;
    let mut idle = interval_at(Instant::now() + IDLE, IDLE);
    loop {
        let now = standing.borrow_and_update().clone();
        match now {
            Standing::Unknown => {}
            Standing::Gone => return Err(Some(ApiError::event_gone())),
            Standing::Shown(shown) => {
                let answer = shown.since(known.as_deref());
                known = Some(shown);
                if answer.event.is_some() || !answer.stocks.is_empty() {
                    stream.tell(answer).await?;
                    idle.reset();
                    // What comes meanwhile is told together.
                    sleep(STATE_PERIOD).await;
                }
            }
        }
        tokio::select! {
            changed = standing.changed() => changed.map_err(|_| None)?,
            _ = idle.tick() => {
                if watching.silent_for() > SILENT_MAX {
                    return Err(Some(ApiError::region_silent()));
                }
                let place = known.as_ref().map(|shown| shown.place.into());
                stream.tell(v1::WatchResponse { place, ..v1::WatchResponse::default() }).await?;
            }
        }
    }
}
