//! Pursues an intent from its first call to its end.
//!
//! An intent keeps its request id over all repetitions; it must never be given a second one, or a lost
//! answer could buy twice. An intent that may have been decided must never be reported as undecided.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tidewall_proto::v1;
use tokio::time::Instant;
use uuid::Uuid;

use crate::arrivals::Intent;
use crate::chance::jitter;
use crate::meaning::{self, Meaning};
use crate::reading::stamp;
use crate::run::{End, Record, Run};

/// First pause after an unknown answer; doubled each time up to the longest.
const BACKOFF_FIRST: Duration = Duration::from_millis(25);
const BACKOFF_MAX: Duration = Duration::from_millis(500);
/// Pause after an overload answer that names no delay.
const RETRY_DEFAULT: Duration = Duration::from_millis(100);

/// One intent on its way.
struct Pursuit {
    index: u64,
    intent: Intent,
    request_id: Uuid,
    due: Duration,
    attempts: u32,
    /// Some call may have been decided without our knowing.
    maybe: bool,
    gives_up: Instant,
    last_call: Instant,
    end: Option<(End, Duration)>,
}

impl Pursuit {
    fn begin(run: &Run, index: u64, intent: Intent, due: Duration) -> Self {
        let now = Instant::now();
        Self {
            index,
            intent,
            // Before the first call, kept to the end.
            request_id: Uuid::now_v7(),
            due,
            attempts: 0,
            maybe: false,
            gives_up: now + run.parts.patience,
            last_call: now,
            end: None,
        }
    }

    fn note_call(&mut self, run: &Run) {
        if self.attempts > 0 {
            run.live.retries.fetch_add(1, Ordering::Relaxed);
        }
        self.attempts += 1;
    }

    fn finish(&mut self, run: &Run, end: End) {
        if matches!(end, End::Sold { .. } | End::SoldOut | End::Refused(_)) {
            run.note_heard();
        }
        self.end = Some((end, run.start.elapsed()));
    }

    fn bought(&mut self, run: &Run, purchase: Option<v1::Purchase>, receipt: Option<v1::Receipt>) {
        // An answer without a purchase acknowledges nothing; the audit reports the wrong quantity.
        let tickets = purchase.map(|p| p.tickets.into_iter().map(String::into_boxed_str).collect());
        let end = End::Sold { tickets: tickets.unwrap_or_default(), receipt: receipt.as_ref().map(stamp) };
        self.finish(run, end);
    }

    /// Takes an answer that is no success. Returns how long to wait before the next call, or `None` when
    /// the intent has ended.
    fn answered(&mut self, run: &Run, answer: &meaning::Answer) -> Option<Duration> {
        run.note_answer(&answer.key, answer.transport);
        self.last_call = Instant::now();
        let wait = match answer.meaning {
            Meaning::SoldOut => {
                self.finish(run, End::SoldOut);
                return None;
            }
            Meaning::Refused => {
                self.finish(run, End::Refused(answer.key.as_str().into()));
                return None;
            }
            Meaning::Failed => {
                // An earlier call may have been decided: then this refusal says nothing about it.
                let end = if self.maybe { End::Unknown } else { End::Failed(answer.key.as_str().into()) };
                self.finish(run, end);
                return None;
            }
            Meaning::Overloaded { after } => {
                if after.is_none() {
                    run.missing_retry_info.fetch_add(1, Ordering::Relaxed);
                }
                if run.parts.honour_retry {
                    Some(after.unwrap_or(RETRY_DEFAULT))
                } else {
                    run.note_heard();
                    None
                }
            }
            Meaning::Unknown => {
                self.maybe = true;
                let doubled = BACKOFF_FIRST * 2_u32.saturating_pow(self.attempts.saturating_sub(1).min(16));
                Some(doubled.min(BACKOFF_MAX))
            }
        };
        // Never earlier than asked; up to a fifth later, so that a crowd does not come back as one.
        let wait = wait.map(|wait| wait + jitter(run.parts.seed, self.index, self.attempts, wait / 5));
        match wait {
            Some(wait) if !run.stopped() && Instant::now() + wait <= self.gives_up => Some(wait),
            _ => {
                self.finish(run, if self.maybe { End::Unknown } else { End::Overloaded });
                None
            }
        }
    }

    fn into_record(self, run: &Run) -> Record {
        let (end, ended) = self.end.unwrap_or_else(|| (End::Unknown, run.start.elapsed()));
        let record = Record {
            intent: self.intent,
            request_id: self.request_id,
            end,
            attempts: self.attempts,
            due: self.due,
            ended,
            last_call: self.last_call,
            resolved: false,
        };
        run.note_end(&record);
        record
    }
}

/// Pursues one intent with `BuyTickets`.
pub(crate) async fn pursue_one(run: &Run, index: u64, intent: Intent, due: Duration) -> Record {
    let mut pursuit = Pursuit::begin(run, index, intent, due);
    let lot = &run.parts.lots[intent.lot as usize];
    let request_id = pursuit.request_id.to_string();
    loop {
        let message = v1::BuyTicketsRequest {
            parent: lot.name.clone(),
            tier_id: lot.tiers[intent.tier as usize].tier_id.clone(),
            // At most 100: the plan and the trace were checked.
            quantity: intent.quantity as i32,
            seats: Vec::new(),
            request_id: request_id.clone(),
        };
        let mut client = run.parts.pool.tickets(index.wrapping_add(u64::from(pursuit.attempts)));
        let request = run.parts.pool.request(run.token(intent), message);
        pursuit.note_call(run);
        match run.parts.pool.bounded(client.buy_tickets(request)).await {
            Ok(response) => {
                pursuit.bought(run, response.purchase, response.receipt);
                break;
            }
            Err(status) => match pursuit.answered(run, &meaning::of_status(&status)) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => break,
            },
        }
    }
    pursuit.into_record(run)
}

/// Pursues several intents of one event with `BatchBuyTickets`; what stays undecided is sent again.
async fn pursue_batch(run: &Run, items: Vec<(u64, Intent, Duration)>) -> Vec<Record> {
    let Some((first, lot)) =
        items.first().map(|(index, intent, _)| (*index, &run.parts.lots[intent.lot as usize]))
    else {
        return Vec::new();
    };
    let mut pursuits: Vec<Pursuit> =
        items.into_iter().map(|(index, intent, due)| Pursuit::begin(run, index, intent, due)).collect();
    for round in 0_u64.. {
        let mut open: Vec<&mut Pursuit> =
            pursuits.iter_mut().filter(|pursuit| pursuit.end.is_none()).collect();
        let Some(intent) = open.first().map(|pursuit| pursuit.intent) else {
            break;
        };
        for pursuit in &mut open {
            pursuit.note_call(run);
        }
        let purchases = open
            .iter()
            .map(|pursuit| v1::BatchPurchase {
                buyer: run.parts.subjects[pursuit.intent.subject as usize].clone(),
                tier_id: lot.tiers[pursuit.intent.tier as usize].tier_id.clone(),
                quantity: pursuit.intent.quantity as i32,
                request_id: pursuit.request_id.to_string(),
            })
            .collect();
        let message = v1::BatchBuyTicketsRequest { parent: lot.name.clone(), purchases };
        let mut client = run.parts.pool.tickets((first / run.parts.batch.max(1) as u64).wrapping_add(round));
        let answer = run
            .parts
            .pool
            .bounded(client.batch_buy_tickets(run.parts.pool.request(run.token(intent), message)))
            .await;
        let mut wait: Option<Duration> = None;
        match answer {
            Ok(response) => {
                let mut results = response.results.into_iter();
                for pursuit in open {
                    let result = results.next();
                    let receipt = result.as_ref().and_then(|result| result.receipt.clone());
                    let answer = match result.and_then(|result| result.result) {
                        Some(v1::batch_buy_tickets_result::Result::Purchase(purchase)) => {
                            pursuit.bought(run, Some(purchase), receipt);
                            continue;
                        }
                        Some(v1::batch_buy_tickets_result::Result::Rejection(no)) => {
                            meaning::of_item(no.code, &no.reason, true)
                        }
                        Some(v1::batch_buy_tickets_result::Result::Undecided(no)) => {
                            meaning::of_item(no.code, &no.reason, false)
                        }
                        // A result that is missing says nothing about its purchase.
                        None => meaning::of_item(tonic::Code::Unknown as i32, "MISSING_RESULT", false),
                    };
                    wait = wait.max(pursuit.answered(run, &answer));
                }
            }
            Err(status) => {
                let answer = meaning::of_status(&status);
                for pursuit in open {
                    wait = wait.max(pursuit.answered(run, &answer));
                }
            }
        }
        if let Some(wait) = wait {
            tokio::time::sleep(wait).await;
        }
    }
    pursuits.into_iter().map(|pursuit| pursuit.into_record(run)).collect()
}

/// Pursues the intents of one call.
pub(crate) async fn pursue(run: &Run, items: Vec<(u64, Intent, Duration)>) -> Vec<Record> {
    run.note_begun(items.len() as u64);
    if run.parts.seller.is_some() {
        return pursue_batch(run, items).await;
    }
    let mut records = Vec::with_capacity(items.len());
    for (index, intent, due) in items {
        records.push(pursue_one(run, index, intent, due).await);
    }
    records
}
