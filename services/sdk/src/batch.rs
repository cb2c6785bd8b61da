//! Many purchases in one call. Each has an id of its own, which it keeps; what is decided is not sent again, what is
//! not decided is sent again with the same ids until the deadline ends it.

use std::collections::BTreeSet;
use std::time::Duration;

use parking_lot::Mutex;
use tidewall_proto::v1;
use tidewall_proto::v1::batch_buy_tickets_result::Result as ItemResult;
use tokio::time::Instant;
use tonic::Code;

use crate::RequestId;
use crate::client::{Client, ended, take_id};
use crate::error::{Error, NotDecided, Stop};
use crate::failure::Failure;
use crate::pursuit::{Again, Certainty, Doubt, Ended, Ending, Failed, Final, Wire, pursue};
use crate::rpc::Rpc as _;
use crate::wire::{Carrier, Course, again, ending};

/// A purchase of a batch that was made.
#[derive(Debug, Clone, PartialEq)]
pub struct Bought {
    /// Its tickets.
    pub purchase: v1::Purchase,
    /// Where it was decided.
    pub receipt: Option<v1::Receipt>,
}

/// What became of one purchase of a batch.
#[derive(Debug)]
pub struct BatchItem {
    /// Its id.
    pub request_id: RequestId,
    /// What was decided, or in which of the three ways it ended without.
    pub result: Result<Bought, Error>,
}

impl Client {
    /// Buys on behalf of many buyers; needs the role `seller`. Yields one item for each purchase, in their order.
    ///
    /// # Errors
    /// Only when nothing was sent: an id that is none or that two purchases share, or a journal that failed.
    pub async fn batch_buy_tickets(
        &self,
        mut request: v1::BatchBuyTicketsRequest,
    ) -> Result<Vec<BatchItem>, Error> {
        let deadline = self.deadline();
        let method = v1::BatchBuyTicketsRequest::METHOD;
        let mut ids = BTreeSet::new();
        let mut sent = Vec::with_capacity(request.purchases.len());
        let mut items = Vec::with_capacity(request.purchases.len());
        for (position, mut purchase) in std::mem::take(&mut request.purchases).into_iter().enumerate() {
            let doubt = Doubt::of_a_request_with(&purchase.request_id);
            let id = take_id(&mut purchase.request_id)?;
            if !ids.insert(id) {
                let why =
                    format!("purchases[{position}] has the request id of an earlier one: each needs its own");
                return Err(Error::NotDecided { request_id: Some(id), why: NotDecided::Invalid(why) });
            }
            sent.push(self.sent(id, method, &request.parent));
            items.push(Item { id, purchase, doubt, last: None, end: None });
        }
        let begun = self.journal.begin(&sent).await;
        begun.map_err(|error| Error::NotDecided { request_id: None, why: error.into() })?;
        let wire = Batch {
            carrier: &self.carrier,
            event: request.parent,
            items: Mutex::new(items),
            course: Mutex::default(),
        };
        let failed = pursue(&wire, &self.carrier.policy, deadline, true, Doubt::default()).await.err();
        let items: Vec<BatchItem> =
            wire.items.into_inner().into_iter().map(|item| item.finish(failed.as_ref())).collect();
        let known = items.iter().filter(|item| !matches!(item.result, Err(Error::Unknown { .. })));
        self.journal.end(&known.map(|item| item.request_id).collect::<Vec<_>>());
        Ok(items)
    }
}

/// A purchase on its way.
struct Item {
    id: RequestId,
    purchase: v1::BatchPurchase,
    doubt: Doubt,
    last: Option<Failure>,
    end: Option<Result<Bought, Failed>>,
}

impl Item {
    /// Takes in what one attempt said about it.
    fn take(&mut self, result: v1::BatchBuyTicketsResult, sent_at: Instant, timeout: Duration) {
        let rejection = match result.result {
            Some(ItemResult::Purchase(purchase)) => {
                self.end = Some(Ok(Bought { purchase, receipt: result.receipt }));
                return;
            }
            Some(ItemResult::Rejection(no)) => {
                let no = Failure::of_rejection(&no, "");
                if self.doubt.is_cleared_by(sent_at) || result.receipt.is_some() {
                    // A receipt shows that it stands in the log, and thus is remembered.
                    self.stop(Certainty::Decided, Stop::Refused, Some(no));
                } else {
                    self.last = Some(no);
                }
                return;
            }
            Some(ItemResult::Undecided(why)) => why,
            None => v1::Rejection {
                code: Code::Unknown.into(),
                reason: String::new(),
                message: "the answer says nothing about this purchase".to_owned(),
            },
        };
        let failure = Failure::of_rejection(&rejection, "");
        let ending = ending(&failure, again(&failure));
        if matches!(ending, Ending::Doubt(_)) {
            self.doubt.note(sent_at, timeout);
        }
        let never = matches!(ending, Ending::Refused(Again::Never) | Ending::Doubt(Again::Never));
        // `undecided` stands above its reason: whatever that is, the region has not decided.
        if never || ending == Ending::No {
            self.stop(self.certainty(), Stop::Refused, Some(failure));
        } else {
            self.last = Some(failure);
        }
    }

    fn certainty(&self) -> Certainty {
        if self.doubt.exists() { Certainty::Unknown } else { Certainty::NotDecided }
    }

    fn stop(&mut self, certainty: Certainty, stop: Stop, last: Option<Failure>) {
        self.end = Some(Err(Failed { certainty, stop, last: last.map(Box::new) }));
    }

    /// What it is when the batch ends as it did.
    fn finish(mut self, failed: Option<&Failed>) -> BatchItem {
        let end = self.end.take().unwrap_or_else(|| {
            let (certainty, stop, last) = match failed {
                // The call as a whole was refused by the region.
                Some(failed) if failed.certainty == Certainty::Decided => {
                    (Certainty::Decided, failed.stop, failed.last.clone())
                }
                Some(failed) => {
                    (self.certainty(), failed.stop, self.last.take().map(Box::new).or(failed.last.clone()))
                }
                None => (self.certainty(), Stop::Refused, self.last.take().map(Box::new)),
            };
            Err(Failed { certainty, stop, last })
        });
        BatchItem { request_id: self.id, result: end.map_err(|failed| ended(failed, Some(self.id))) }
    }
}

/// The attempts of a batch: each sends what is still open.
struct Batch<'a> {
    carrier: &'a Carrier,
    event: String,
    items: Mutex<Vec<Item>>,
    course: Mutex<Course>,
}

impl Wire for Batch<'_> {
    type Answer = ();

    async fn attempt(&self, timeout: Duration) -> Result<(), Ended> {
        let sent_at = Instant::now();
        let (open, purchases): (Vec<usize>, Vec<_>) = {
            let items = self.items.lock();
            let open = items.iter().enumerate().filter(|(_, item)| item.end.is_none());
            open.map(|(position, item)| (position, item.purchase.clone())).unzip()
        };
        let request = v1::BatchBuyTicketsRequest { parent: self.event.clone(), purchases };
        let answer = match self.carrier.send(request, timeout, &self.course).await {
            Ok(answer) if answer.results.len() == open.len() => answer,
            Ok(answer) => {
                let why = format!("{} results for {} purchases", answer.results.len(), open.len());
                return Err(self.doubted(&open, sent_at, timeout, Failure::local(Code::Internal, why, "")));
            }
            Err(Ended { ending: Ending::Doubt(again), failure }) => {
                let ended = self.doubted(&open, sent_at, timeout, failure);
                return Err(Ended { ending: Ending::Doubt(again), ..ended });
            }
            Err(ended) => return Err(ended),
        };
        let mut items = self.items.lock();
        for (position, result) in open.into_iter().zip(answer.results) {
            items[position].take(result, sent_at, timeout);
        }
        let last = items.iter().filter(|item| item.end.is_none()).find_map(|item| item.last.clone());
        match last {
            None => Ok(()),
            // Doubts are kept per purchase here, so for the call it is a refusal that may be repeated.
            Some(failure) => Err(Ended { ending: Ending::Refused(Again::Backoff), failure }),
        }
    }

    /// Items are told apart by their receipts instead.
    async fn seal(&self, _timeout: Duration) -> Option<Final> {
        None
    }
}

impl Batch<'_> {
    /// An attempt after which every purchase that it carried is in doubt.
    fn doubted(&self, open: &[usize], sent_at: Instant, timeout: Duration, failure: Failure) -> Ended {
        let mut items = self.items.lock();
        for position in open {
            let item = &mut items[*position];
            item.doubt.note(sent_at, timeout);
            item.last = Some(failure.clone());
        }
        Ended { ending: Ending::Doubt(Again::Backoff), failure }
    }
}
