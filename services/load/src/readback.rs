//! After the sale: asks what became of unknown intents, and reads everything back for the audit. Only
//! queries; it must never change what it reads.

use std::time::Duration;

use futures_util::StreamExt as _;
use tidewall_proto::v1;
use tidewall_proto::v1::get_outcome_response::Result as Outcome;
use tokio::time::Instant;
use tonic::Status;

use crate::audit::{Answer, Asked, SeenEvent};
use crate::drive::PROGRESS_EVERY;
use crate::meaning::{self, Meaning};
use crate::pool::Token;
use crate::reading::{Reader, repeat, seen_tiers, stamp};
use crate::run::{End, Lot, Record, Run};
use crate::{Phase, Progress};

/// Questions under way at the same time.
const QUESTIONS: usize = 64;
/// How long one question is repeated, at most.
const QUESTION_PATIENCE_MAX: Duration = Duration::from_secs(10);
/// How long all questions may take together, after the last deadline has passed.
const RESOLVE_MAX: Duration = Duration::from_secs(60);
/// How long a page is asked for, at most.
const PAGE_PATIENCE_MAX: Duration = Duration::from_secs(30);
/// Who has hardly any patience while buying still waits this long for the audit.
const PATIENCE_MIN: Duration = Duration::from_secs(1);
/// How long the reading may take in all.
const READ_MAX: Duration = Duration::from_secs(600);
/// How often an event is read until its counters stand still.
const READS_MAX: u32 = 5;
/// Pause between two readings of an event that still changes.
const READ_PAUSE: Duration = Duration::from_millis(500);

/// Settles unknown intents with `GetOutcome`, as far as that is possible.
pub(crate) async fn resolve(run: &Run, records: &mut [Record], progress: &(impl Fn(Progress) + Sync)) {
    let began = Instant::now();
    let open: Vec<usize> =
        records.iter().enumerate().filter(|(_, record)| record.end == End::Unknown).map(|(n, _)| n).collect();
    let total = Some(open.len() as u64);
    // A copy that is still on its way can be decided until its deadline: "undecided" counts only after it.
    let settled_at =
        open.iter().map(|n| records[*n].last_call).max().map(|last| last + run.parts.pool.deadline());
    let Some(settled_at) = settled_at else { return };
    progress(run.progress(Phase::Resolve, began.elapsed(), 0, total));
    tokio::time::sleep_until(settled_at).await;
    let until = Instant::now() + RESOLVE_MAX;
    let questions: Vec<_> = open.iter().map(|n| (*n, records[*n].clone())).collect();
    let mut answers = futures_util::stream::iter(questions)
        .map(|(number, record)| async move { (number, ask(run, &record).await) })
        .buffer_unordered(QUESTIONS);
    let mut asked = 0;
    let mut told = Instant::now();
    while let Ok(Some((number, end))) = tokio::time::timeout_at(until, answers.next()).await {
        asked += 1;
        if let Some(end) = end {
            records[number].end = end;
            records[number].resolved = true;
        }
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            progress(run.progress(Phase::Resolve, began.elapsed(), asked, total));
        }
    }
}

/// What was decided for an intent, for good: an id under which nothing was decided is sealed, so that no copy that is still under
/// way changes the answer. `None` when nobody can say.
async fn ask(run: &Run, record: &Record) -> Option<End> {
    let lot = &run.parts.lots[record.intent.lot as usize];
    let message =
        v1::SealRequestIdRequest { parent: lot.region.clone(), request_id: record.request_id.to_string() };
    let answer = repeat(run.parts.patience.clamp(PATIENCE_MIN, QUESTION_PATIENCE_MAX), |slot| {
        let mut client = run.parts.pool.outcomes(slot);
        let request = run.parts.pool.request(run.token(record.intent), message.clone());
        async move { run.parts.pool.bounded(client.seal_request_id(request)).await }
    })
    .await
    .ok()?
    .outcome?;
    match (v1::OutcomeState::try_from(answer.state).ok()?, answer.result) {
        (v1::OutcomeState::Sealed, _) => Some(End::Undecided),
        (v1::OutcomeState::Decided, Some(Outcome::Purchase(purchase))) => Some(End::Sold {
            tickets: purchase.tickets.into_iter().map(String::into_boxed_str).collect(),
            receipt: answer.receipt.as_ref().map(stamp),
        }),
        (v1::OutcomeState::Decided, Some(Outcome::Rejection(no))) => {
            let read = meaning::of_item(no.code, &no.reason, true);
            Some(if read.meaning == Meaning::SoldOut { End::SoldOut } else { End::Refused(read.key.into()) })
        }
        _ => None,
    }
}

/// What was asked, in the audit's words.
pub(crate) fn asked(run: &Run, records: &[Record]) -> Vec<Asked> {
    records
        .iter()
        .map(|record| {
            let lot = &run.parts.lots[record.intent.lot as usize];
            Asked {
                request_id: record.request_id,
                owner: run.parts.subjects[record.intent.subject as usize].clone(),
                event: lot.name.clone(),
                tier_id: lot.tiers[record.intent.tier as usize].tier_id.clone(),
                quantity: record.intent.quantity,
                answer: match &record.end {
                    End::Sold { tickets, receipt } => {
                        Answer::Sold { tickets: tickets.clone(), receipt: *receipt }
                    }
                    End::SoldOut => Answer::SoldOut,
                    End::Refused(_) | End::Failed(_) | End::Overloaded | End::Undecided => Answer::Not,
                    End::Unknown => Answer::Unknown,
                },
            }
        })
        .collect()
}

/// Reads all events with all their tickets; the error says in words what could not be read.
pub(crate) async fn read_all(
    run: &Run,
    organiser: &Token,
    progress: &(impl Fn(Progress) + Sync),
) -> Result<Vec<SeenEvent>, String> {
    let began = Instant::now();
    let mut events = Vec::with_capacity(run.parts.lots.len());
    let mut read = 0_u64;
    let mut tell = |tickets: u64| {
        read += tickets;
        progress(run.progress(Phase::Audit, began.elapsed(), read, None));
    };
    let reading = async {
        for lot in &run.parts.lots {
            events.push(read_event(run, organiser, lot, &mut tell).await?);
        }
        Ok(())
    };
    match tokio::time::timeout(READ_MAX, reading).await {
        Ok(done) => done.map(|()| events),
        Err(_) => Err(format!("reading back took longer than {} s", READ_MAX.as_secs())),
    }
}

/// Reads an event before and after its tickets, until both readings agree.
async fn read_event(
    run: &Run,
    organiser: &Token,
    lot: &Lot,
    tell: &mut impl FnMut(u64),
) -> Result<SeenEvent, String> {
    let failed = |doing: &str, status: Status| {
        format!("{doing} {} failed: {:?}: {}", lot.name, status.code(), status.message())
    };
    let reader =
        Reader::new(&run.parts.pool, organiser, run.parts.patience.clamp(PATIENCE_MIN, PAGE_PATIENCE_MAX));
    let mut reads = 1;
    loop {
        let before = reader.event(&lot.name).await.map_err(|status| failed("reading", status))?;
        let tickets = reader.tickets(&lot.name, &mut *tell).await;
        let tickets = tickets.map_err(|status| failed("listing the tickets of", status))?;
        let after = reader.event(&lot.name).await.map_err(|status| failed("reading", status))?;
        if before.tiers != after.tiers && reads < READS_MAX {
            // A copy of a call whose answer was lost was decided just now.
            reads += 1;
            tokio::time::sleep(READ_PAUSE).await;
            continue;
        }
        let planned = |tier_id: &str| {
            let tier = lot.tiers.iter().find(|tier| tier.tier_id == tier_id);
            tier.map_or(0, |tier| i64::try_from(tier.capacity).unwrap_or(i64::MAX))
        };
        return Ok(SeenEvent {
            name: lot.name.clone(),
            region: lot.region.clone(),
            quota: i64::from(lot.quota),
            tiers: seen_tiers(&after, planned),
            tickets,
        });
    }
}
