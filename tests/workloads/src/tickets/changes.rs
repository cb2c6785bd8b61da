//! One who watches the event of a story: with what it was told before, what it is told is what has happened, each of it once.

use std::collections::BTreeMap;
use std::time::Duration;

use tidewall_proto::v1;
use tidewall_proto::v1::change::What;
use tokio::time::timeout;
use tonic::Streaming;

use super::{Over, Sale, Site, ask};
use crate::final_reason;

/// What has happened is told within this time, however long a region stands still.
const TOLD_WITHIN: Duration = Duration::from_secs(90);
/// Who hears nothing for so long asks anew.
const SILENCE_MAX: Duration = Duration::from_secs(2);

/// What somebody knows of an event who is told what happens to it.
#[derive(Default)]
pub(super) struct Books {
    /// A buyer, who is told what is its own; none: the organiser, who is told all.
    pub(super) buyer: Option<usize>,
    /// Owners of tickets, and whether they were cancelled.
    tickets: BTreeMap<String, (String, bool)>,
    /// Places of holds.
    holds: BTreeMap<String, i64>,
}

/// One who watches.
#[derive(Default)]
pub(super) struct Watcher {
    books: Books,
    /// Up to where it was told everything; none: nothing can be told any more.
    place: Option<v1::Place>,
}

impl Watcher {
    /// A buyer, or the organiser, who was told nothing yet.
    pub(super) fn new(buyer: Option<usize>) -> Self {
        Self { books: Books::new(buyer), place: None }
    }
}

impl Books {
    /// Of a buyer, or of the organiser, who was told nothing yet.
    pub(super) fn new(buyer: Option<usize>) -> Self {
        Self { buyer, ..Self::default() }
    }

    /// Takes a change in.
    ///
    /// # Errors
    /// It cannot have happened, or was told before.
    pub(super) fn take(&mut self, change: v1::Change) -> Result<(), String> {
        let ends = |holds: &mut BTreeMap<String, i64>, name: &str| {
            holds.remove(name).map(drop).ok_or_else(|| format!("hold {name} has ended, and there was none"))
        };
        match change.what {
            Some(What::Hold(hold)) => {
                if self.holds.insert(hold.name.clone(), i64::from(hold.quantity)).is_some() {
                    return Err(format!("hold {} is told twice", hold.name));
                }
            }
            Some(What::EndedHold(hold)) => ends(&mut self.holds, &hold.name)?,
            Some(What::Purchase(purchase)) => {
                if !change.from_hold.is_empty() {
                    ends(&mut self.holds, &change.from_hold)?;
                }
                for name in purchase.tickets {
                    if self.tickets.insert(name.clone(), (change.owner.clone(), false)).is_some() {
                        return Err(format!("ticket {name} is told twice"));
                    }
                }
            }
            Some(What::CancelledTicket(name)) => match self.tickets.get_mut(&name) {
                Some((_, cancelled @ false)) => *cancelled = true,
                _ => return Err(format!("ticket {name} is cancelled, and there was none")),
            },
            Some(What::SavedEvent(_)) => {}
            other => return Err(format!("{other:?} has not happened")),
        }
        Ok(())
    }
}

impl<S: Site> Sale<'_, S> {
    /// A stream of what happens to the event behind the place that was told last.
    async fn watched(&self) -> Result<Streaming<v1::WatchResponse>, Over> {
        let watcher = match self.watcher.books.buyer {
            Some(buyer) => &self.buyers[buyer],
            None => &self.organiser,
        };
        let watch = v1::WatchRequest {
            parent: self.event.clone(),
            after: self.watcher.place,
            ..v1::WatchRequest::default()
        };
        let told = ask!(self.story, self.changes, watch, watch, &watcher.token);
        self.story.yes("a watch", told)
    }

    /// From now on everything is told.
    pub(super) async fn begin_to_watch(&mut self) -> Result<(), Over> {
        while self.watcher.place.is_none() {
            let mut stream = self.watched().await?;
            if let Ok(Ok(Some(answer))) = timeout(SILENCE_MAX, stream.message()).await {
                self.watcher.place = answer.place;
            }
        }
        Ok(())
    }

    /// What is told must be what is known, and nothing else.
    pub(super) async fn check_changes(&mut self) -> Result<(), Over> {
        let began = self.story.site.now();
        while self.watcher.place.is_some() && !self.all_was_told(&self.watcher.books) {
            if self.story.site.now().saturating_sub(began) > TOLD_WITHIN {
                return self.not_told();
            }
            let mut stream = self.watched().await?;
            while !self.all_was_told(&self.watcher.books) {
                match timeout(SILENCE_MAX, stream.message()).await {
                    Ok(Ok(Some(answer))) => self.told(answer)?,
                    Ok(Err(status)) => match final_reason(&status).as_deref() {
                        // What was told is kept for a while only.
                        Some("PLACE_GONE") => {
                            self.watcher.place = None;
                            break;
                        }
                        Some(reason) => return self.story.object(format_args!("a watch ends: {reason}")),
                        None => break,
                    },
                    Ok(Ok(None)) | Err(_) => break,
                }
            }
        }
        Ok(())
    }

    fn told(&mut self, answer: v1::WatchResponse) -> Result<(), Over> {
        for change in answer.changes {
            if let Err(wrong) = self.watcher.books.take(change) {
                return self.story.object(format_args!("behind {:?}: {wrong}", self.watcher.place));
            }
        }
        self.watcher.place = answer.place;
        // Everything up to here was told, and all that is known was decided before.
        let heard = answer.place.map(|place| (place.incarnation, place.index, place.changes));
        let decided = self.decided.get();
        if heard >= Some((decided.0, decided.1, u32::MAX)) && !self.all_was_told(&self.watcher.books) {
            return self.not_told();
        }
        Ok(())
    }

    fn not_told(&self) -> Result<(), Over> {
        let (place, not_told) = (self.watcher.place, self.difference(&self.watcher.books));
        self.story.object(format_args!("up to {place:?}, {not_told}"))
    }

    /// In which way somebody was told something else than is known.
    pub(super) fn difference(&self, books: &Books) -> String {
        let (Books { tickets, holds, .. }, known) = (books, self.known_to(books.buyer));
        format!("{tickets:?} and {holds:?} were told, not {known:?}")
    }

    /// Notes where something was decided that is known from its answer.
    pub(super) fn note(&self, receipt: Option<&v1::Receipt>) {
        let at = receipt.map_or((0, 0), |receipt| (receipt.incarnation, receipt.index));
        self.decided.set(self.decided.get().max(at));
    }

    /// Whether somebody was told what is known.
    pub(super) fn all_was_told(&self, books: &Books) -> bool {
        self.known_to(books.buyer) == (books.tickets.clone(), books.holds.clone())
    }

    /// Tickets and holds that this buyer must have been told of, or the organiser.
    fn known_to(&self, buyer: Option<usize>) -> (BTreeMap<String, (String, bool)>, BTreeMap<String, i64>) {
        let concerns = |owner: usize| buyer.is_none_or(|buyer| buyer == owner);
        let tickets = self.owned.iter().filter(|(_, ticket)| concerns(ticket.owner)).map(|(name, ticket)| {
            (name.clone(), (self.buyers[ticket.owner].subject.clone(), ticket.cancelled))
        });
        let holds = self.holds.iter().filter(|hold| concerns(hold.owner));
        (tickets.collect(), holds.map(|hold| (hold.name.clone(), hold.quantity)).collect())
    }
}
