//! How an event is, for all who want to see it: read once, and kept up to date by what happens to it.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use tidewall_client::ShardClient;
use tidewall_messages::ModuleQuery;
use tidewall_messages::tickets::{self, answer};
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::Code;

use super::{Feed, LINGER, PAUSE, Place, Silence, Watching};
use crate::convert;
use crate::errors::ApiError;

/// How long a region may take to tell how an event is.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// What is known of an event.
#[derive(Debug, Clone)]
pub(super) enum Standing {
    /// Nothing yet, or not any more.
    Unknown,
    /// How it is.
    Shown(Arc<Shown>),
    /// There is no such event.
    Gone,
}

/// How an event is.
#[derive(Debug, Clone)]
pub(super) struct Shown {
    /// With everything up to here.
    pub(super) place: Place,
    event: v1::Event,
    /// Raised whenever more than numbers has changed.
    saved: u64,
}

impl Shown {
    /// What somebody is told who knows how it was.
    pub(super) fn since(&self, known: Option<&Self>) -> v1::WatchResponse {
        let place = Some(self.place.into());
        let known = match known {
            Some(known) if known.saved == self.saved => known,
            _ => {
                return v1::WatchResponse { event: Some(self.event.clone()), place, ..Default::default() };
            }
        };
        let tiers = self.event.tiers.iter().zip(&known.event.tiers);
        let stocks = tiers.filter(|(tier, known)| tier != known).map(|(tier, _)| v1::TierStock {
            tier_id: tier.tier_id.clone(),
            free: tier.free,
            held: tier.held,
            sold: tier.sold,
        });
        v1::WatchResponse { stocks: stocks.collect(), place, ..Default::default() }
    }

    /// Takes a change in. Says whether the event is still there.
    fn take(&mut self, change: &v1::Change) -> bool {
        match (change.kind(), &change.what) {
            (v1::ChangeKind::EventDeleted, _) => return false,
            (_, Some(v1::change::What::SavedEvent(event))) => {
                self.event = event.clone();
                self.saved += 1;
            }
            _ => {}
        }
        if let Some(stock) = &change.stock
            && let Some(tier) = self.event.tiers.iter_mut().find(|tier| tier.tier_id == stock.tier_id)
        {
            (tier.free, tier.held, tier.sold) = (stock.free, stock.held, stock.sold);
        }
        true
    }
}

/// What is known of an event, as it changes.
#[derive(Debug)]
pub(super) struct Board {
    standing: watch::Sender<Standing>,
}

impl Watching {
    /// How an event is, as it changes: known when this returns.
    ///
    /// # Errors
    /// There is no such event, or the region does not answer.
    pub(super) async fn board(
        &self,
        event: &str,
        deadline: Instant,
    ) -> Result<watch::Receiver<Standing>, ApiError> {
        let mut standing = self.subscribe(event);
        let known = async {
            let known = standing.wait_for(|standing| !matches!(standing, Standing::Unknown)).await;
            known.is_ok_and(|standing| matches!(*standing, Standing::Shown(_)))
        };
        match timeout_at(deadline, known).await {
            Ok(true) => Ok(standing),
            Ok(false) => Err(ApiError::event_gone()),
            Err(_) => Err(ApiError::region_silent()),
        }
    }

    fn subscribe(&self, event: &str) -> watch::Receiver<Standing> {
        let mut boards = self.feed.boards.lock();
        if let Some(board) = boards.get(event) {
            return board.standing.subscribe();
        }
        let board = Arc::new(Board { standing: watch::Sender::new(Standing::Unknown) });
        boards.insert(event.to_owned(), Arc::clone(&board));
        let receiver = board.standing.subscribe();
        // It hears what happens as everybody who watches does; those whom it serves are counted by themselves.
        let watching = self.another();
        tokio::spawn(keep(watching, board, event.to_owned()));
        receiver
    }
}

/// Keeps a board up to date for as long as somebody looks at it.
async fn keep(mut watching: Watching, board: Arc<Board>, event: String) {
    let feed = Arc::clone(&watching.feed);
    loop {
        match follow(&mut watching, &board, &event).await {
            Ok(()) => {
                let mut boards = feed.boards.lock();
                // Whoever comes now finds none, or is seen here.
                if board.standing.receiver_count() == 0 {
                    boards.remove(&event);
                    return;
                }
            }
            // It is read anew, and nobody is told meanwhile.
            Err(Silence::Gone(_)) => {}
            Err(Silence::Region(error)) if error.code() == Code::NotFound => {
                let mut boards = feed.boards.lock();
                board.standing.send_replace(Standing::Gone);
                boards.remove(&event);
                return;
            }
            Err(Silence::Region(_)) => {
                let mut boards = feed.boards.lock();
                if board.standing.receiver_count() == 0 {
                    boards.remove(&event);
                    return;
                }
                drop(boards);
                sleep(PAUSE).await;
            }
        }
    }
}

/// Reads how the event is, and then takes in what happens to it; returns when nobody has looked for a while.
async fn follow(watching: &mut Watching, board: &Board, event: &str) -> Result<(), Silence> {
    let deadline = Instant::now() + READ_TIMEOUT;
    let (feed, client) = (Arc::clone(&watching.feed), Arc::clone(&watching.client));
    let before = feed.ask(&client, None, Duration::ZERO, deadline).await?.to;
    let now = read(&feed, &client, event, deadline).await.map_err(Silence::Region)?;
    // What happened while it was read is in it or not: with all that has happened up to then taken in, in order, it is.
    let read = feed.ask(&client, None, Duration::ZERO, deadline).await?.to;
    let saved = match &*board.standing.borrow() {
        Standing::Shown(shown) => shown.saved + 1,
        Standing::Unknown | Standing::Gone => 0,
    };
    let mut shown = Shown { place: before, event: now, saved };
    let (mut untold, mut alone_since) = (true, None);
    loop {
        if untold && shown.place >= read {
            board.standing.send_replace(Standing::Shown(Arc::new(shown.clone())));
            untold = false;
        }
        if board.standing.receiver_count() > 0 {
            alone_since = None;
        } else if alone_since.get_or_insert_with(Instant::now).elapsed() > LINGER {
            return Ok(());
        }
        let Some((batches, end)) = watching.next(shown.place).await? else {
            tokio::select! {
                () = watching.news() => {}
                () = sleep(LINGER) => {}
            }
            continue;
        };
        let heard = shown.place;
        for told in batches.iter().flat_map(|batch| batch.behind(heard, Some(event))) {
            untold = true;
            // What was deleted before it was read was another one.
            if !shown.take(&told.change) && told.place > read {
                return Err(Silence::Region(ApiError::event_gone()));
            }
        }
        shown.place = end.max(shown.place);
    }
}

/// How an event is.
async fn read(
    feed: &Feed,
    client: &ShardClient,
    event: &str,
    deadline: Instant,
) -> Result<v1::Event, ApiError> {
    let query = tickets::Query::from(tickets::GetEvent { event_id: event.to_owned() });
    let query = pb::ModuleQuery { module: tickets::Query::MODULE.into(), payload: query.encode_to_vec() };
    let query = pb::Query { op: Some(pb::query::Op::Module(query)) };
    let result = client.query(feed.group, query, deadline).await;
    let result = result.map_err(|error| ApiError::Client { error, request_id: None })?.result;
    match result {
        Some(pb::query_result::Result::Module(bytes)) => {
            let answer = tickets::Answer::decode(bytes).map_err(|_| convert::mismatch())?;
            match answer.result {
                Some(answer::Result::Event(mut view)) => {
                    // As changes tell it.
                    view.tiers
                        .iter_mut()
                        .filter_map(|tier| tier.spec.as_mut())
                        .for_each(|spec| spec.seat_rows.clear());
                    Ok(convert::event(&feed.region, view))
                }
                _ => Err(convert::mismatch()),
            }
        }
        Some(pb::query_result::Result::Rejection(rejection)) => {
            Err(ApiError::Rejected { rejection, receipt: None })
        }
        _ => Err(convert::mismatch()),
    }
}
