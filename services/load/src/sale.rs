//! The two runs, from plan to report: a flash sale, and the replay of a trace.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use crate::arrivals::{Arrivals, Intent, Intents};
use crate::audit::{Findings, SeenEvent, audit};
use crate::drive::{Driven, drive};
use crate::measure::{Figures, figures};
use crate::plan::{CAPACITY_MAX, QUOTA_MAX, SHARED_SUBJECTS};
use crate::pool::{Pool, Token};
use crate::run::{LotTier, Run, RunParts};
use crate::setup::{self, NewEvent, PREPARE_PATIENCE, choose_region, create_event, mint_all};
use crate::{
    EventReport, FlashSale, LoadError, Mode, Phase, Progress, ReplayOptions, Report, Target, readback, trace,
};

/// What latency means when arrivals follow a schedule.
const SCHEDULED: &str = "from the moment an intent was due to its business answer, repetitions included \
                         (corrected for coordinated omission)";
/// What latency means in closed loop.
const UNSCHEDULED: &str = "from an intent's first call to its business answer, repetitions included (closed loop: \
                           there is no schedule, so coordinated omission is not corrected)";

/// Sells one hot event and audits the result.
///
/// # Errors
/// [`LoadError`] when the run cannot begin: a plan that makes no sense, no gateway, an event that cannot be
/// created. What goes wrong after that is in the report.
pub async fn flash_sale(
    target: &Target,
    plan: &FlashSale,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<Report, LoadError> {
    plan.check()?;
    let began = Instant::now();
    progress(setup::plain(Phase::Prepare, Duration::ZERO, 0, None));
    let pool = Pool::new(target, plan.connections, plan.deadline)?;
    let organiser = setup::organiser(target)?;
    let regions = pool.connect(&organiser, plan.patience.min(PREPARE_PATIENCE)).await?;
    let region = choose_region(&regions, plan.region.as_deref(), plan.seed)?;

    let subjects = if plan.distinct_tokens { plan.buyers } else { plan.buyers.min(SHARED_SUBJECTS) };
    let quota = match (plan.quota, plan.duration) {
        (Some(quota), _) => quota,
        (None, Some(_)) => QUOTA_MAX as u32,
        (None, None) => {
            let most = plan.buyers.div_ceil(subjects) * u64::from(plan.quantity);
            most.clamp(1, QUOTA_MAX) as u32
        }
    };
    let event = NewEvent {
        region,
        event_id: setup::event_id("flash-sale", 0),
        display_name: "Flash sale".to_owned(),
        quota,
        tiers: vec![LotTier { tier_id: "ga".to_owned(), capacity: plan.stock }],
    };
    let lot = create_event(&pool, &organiser, event).await?;
    progress(setup::plain(Phase::Prepare, began.elapsed(), 1, Some(1)));

    let subjects: Vec<String> = (1..=subjects).map(|n| format!("buyer-{n:06}")).collect();
    let (tokens, seller) = match plan.batch {
        Some(_) => (Vec::new(), Some(setup::seller(target)?)),
        None => (mint_all(&target.mint, &subjects, &progress).await?, None),
    };
    // At most 5,000,000: the plan was checked.
    let count = subjects.len() as u32;
    let run = Run::begin(RunParts {
        pool,
        lots: vec![lot],
        subjects,
        tokens,
        seller,
        batch: plan.batch.unwrap_or(1),
        intents: Intents::Uniform {
            subjects: count,
            quantity: plan.quantity,
            count: plan.duration.is_none().then_some(plan.buyers),
        },
        honour_retry: plan.honour_retry,
        patience: plan.patience,
        seed: plan.seed,
    });
    let driven = drive(&run, Arrivals::of(plan.mode, plan.duration), &progress).await?;
    let (mode, basis) = match plan.mode {
        Mode::Closed { concurrency } => (format!("closed loop, {concurrency} calls in flight"), UNSCHEDULED),
        Mode::Open { rate_per_second } => (format!("open loop, {rate_per_second} intents/s"), SCHEDULED),
        Mode::AllAtOnce => (format!("{} buyers at once", plan.buyers), SCHEDULED),
    };
    let mode = match plan.batch {
        Some(batch) => format!("{mode}, {batch} purchases in a call"),
        None => mode,
    };
    Ok(finish(&run, driven, &organiser, "flash-sale", mode, basis, &progress).await)
}

/// Replays a recorded sale across events and regions, and audits the result.
///
/// # Errors
/// As [`flash_sale`]; [`LoadError::Trace`] names line and field of what is wrong with the file.
pub async fn replay_trace(
    target: &Target,
    path: &Path,
    options: &ReplayOptions,
    progress: impl Fn(Progress) + Send + Sync,
) -> Result<Report, LoadError> {
    options.check()?;
    let began = Instant::now();
    progress(setup::plain(Phase::Prepare, Duration::ZERO, 0, None));
    let bytes = std::fs::read(path).map_err(|source| LoadError::File {
        doing: "read",
        path: path.to_owned(),
        source,
    })?;
    let trace = trace::parse(&bytes).map_err(|source| LoadError::Trace { path: path.to_owned(), source })?;
    drop(bytes);
    let pool = Pool::new(target, options.connections, options.deadline)?;
    let organiser = setup::organiser(target)?;
    let regions = pool.connect(&organiser, options.patience.min(PREPARE_PATIENCE)).await?;
    if regions.is_empty() {
        choose_region(&regions, None, options.seed)?;
    }
    let quota = match options.quota {
        Some(quota) => quota,
        None => trace.highest_demand().clamp(1, QUOTA_MAX) as u32,
    };
    let mut lots = Vec::with_capacity(trace.events.len());
    for (number, event) in trace.events.iter().enumerate() {
        let tiers = event
            .tiers
            .iter()
            .map(|(tier_id, demand)| LotTier {
                tier_id: tier_id.clone(),
                capacity: ((*demand as f64 * options.capacity_fraction).ceil() as u64).clamp(1, CAPACITY_MAX),
            })
            .collect();
        let event = NewEvent {
            region: regions[number % regions.len()].name.clone(),
            event_id: setup::event_id(&event.name, number),
            display_name: event.name.clone(),
            quota,
            tiers,
        };
        lots.push(create_event(&pool, &organiser, event).await?);
        let total = Some(trace.events.len() as u64);
        progress(setup::plain(Phase::Prepare, began.elapsed(), lots.len() as u64, total));
    }
    let tokens = mint_all(&target.mint, &trace.buyers, &progress).await?;
    let intents = trace
        .arrivals
        .iter()
        .map(|arrival| Intent {
            subject: arrival.buyer,
            lot: arrival.event,
            tier: arrival.tier,
            quantity: arrival.quantity,
            offset: arrival.offset.div_f64(options.speed),
        })
        .collect();
    let run = Run::begin(RunParts {
        pool,
        lots,
        subjects: trace.buyers,
        tokens,
        seller: None,
        batch: 1,
        intents: Intents::Listed(intents),
        honour_retry: options.honour_retry,
        patience: options.patience,
        seed: options.seed,
    });
    let driven = drive(&run, Arrivals::Recorded, &progress).await?;
    let file = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
    let mode = format!("{file} at speed {}", options.speed);
    Ok(finish(&run, driven, &organiser, "trace", mode, SCHEDULED, &progress).await)
}

/// Resolves, reads back, audits and reports.
async fn finish(
    run: &Arc<Run>,
    driven: Driven,
    organiser: &Token,
    kind: &str,
    mode: String,
    basis: &str,
    progress: &(impl Fn(Progress) + Send + Sync),
) -> Report {
    let Driven { mut records, aborted } = driven;
    readback::resolve(run, &mut records, progress).await;
    let figures = figures(&records);
    progress(run.progress(Phase::Audit, Duration::ZERO, 0, None));
    let (events, findings) = match readback::read_all(run, organiser, progress).await {
        Ok(events) => {
            let findings = audit(&readback::asked(run, &records), &events);
            (events, Ok(findings))
        }
        Err(why) => (Vec::new(), Err(why)),
    };
    report(run, kind, mode, basis, figures, &events, findings, aborted)
}

#[allow(clippy::too_many_arguments, reason = "each is one part of the report, and there is one caller")]
fn report(
    run: &Run,
    kind: &str,
    mode: String,
    basis: &str,
    figures: Figures,
    seen: &[SeenEvent],
    findings: Result<Findings, String>,
    aborted: Option<String>,
) -> Report {
    let audit = match &findings {
        Ok(findings) => findings.to_string(),
        Err(why) => format!("not done: {why}"),
    };
    let findings = findings.unwrap_or_default();
    let events: Vec<EventReport> = run
        .parts
        .lots
        .iter()
        .map(|lot| {
            let tiers =
                seen.iter().find(|event| event.name == lot.name).map_or(&[][..], |event| &event.tiers);
            EventReport {
                event: lot.name.clone(),
                display_name: lot.display_name.clone(),
                region: lot.region.clone(),
                capacity: tiers.iter().map(|tier| tier.capacity).sum(),
                free: tiers.iter().map(|tier| tier.free).sum(),
                held: tiers.iter().map(|tier| tier.held).sum(),
                sold: tiers.iter().map(|tier| tier.sold).sum(),
            }
        })
        .collect();
    let tiers = || seen.iter().flat_map(|event| &event.tiers);
    Report {
        kind: kind.to_owned(),
        mode,
        offered: figures.offered,
        sold: figures.sold,
        sold_out: figures.sold_out,
        overloaded: figures.overloaded,
        unknown: figures.unknown,
        errors: figures.errors,
        oversold: findings.oversold(),
        duplicates: findings.duplicates(),
        lost: findings.lost(),
        purchases_per_second: figures.purchases_per_second,
        decided_per_second: figures.decided_per_second,
        mean_ms: figures.mean_ms,
        p50_ms: figures.p50_ms,
        p90_ms: figures.p90_ms,
        p99_ms: figures.p99_ms,
        p999_ms: figures.p999_ms,
        max_ms: figures.max_ms,
        latency_basis: basis.to_owned(),
        audit,
        aborted,
        not_offered: run.parts.intents.count().map_or(0, |count| count.saturating_sub(figures.offered)),
        duration_s: figures.duration_s,
        tickets_sold: figures.tickets_sold,
        retries: figures.retries,
        resolved: figures.resolved,
        undecided: figures.undecided,
        transport_errors: run.transport_errors.load(Ordering::Relaxed),
        overloads_without_retry_info: run.missing_retry_info.load(Ordering::Relaxed),
        business_answers_within_10s_percent: figures.timely_percent,
        errors_by_reason: figures.errors_by_reason,
        answers_by_reason: run.answers.lock().clone(),
        sold_out_exactly: tiers().next().is_some()
            && tiers().all(|t| t.free == 0 && t.held == 0 && t.sold == t.capacity),
        tickets_read_back: findings.tickets,
        distinct_tickets: findings.distinct_tickets,
        owners: findings.owners,
        receipts: findings.receipts,
        events,
        percentiles: figures.percentiles,
        timeline: figures.timeline,
    }
}
