//! Turns the records of a run into figures. Pure: the same records always give the same figures.
//!
//! Latency always counts from the moment an intent was *due*. In open loop that is its place in the
//! schedule, so that a stall of the service (or of this generator) is charged to every intent that it made
//! wait: this is the correction for coordinated omission, made by construction instead of by estimate. In
//! closed loop an intent is due when its worker is free, and no such correction is possible.

use std::collections::BTreeMap;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::report::{PercentilePoint, TimelinePoint};
use crate::run::{End, Record};

/// Highest latency that is told apart, in microseconds: a day.
const LATENCY_US_MAX: u64 = 86_400_000_000;
/// Percentiles of the plot.
const PERCENTILES: [f64; 13] =
    [0.0, 10.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 99.95, 99.99, 100.0];
/// Points of the timeline, at most.
const TIMELINE_POINTS_MAX: u64 = 240;
/// Shortest step of the timeline, milliseconds.
const TIMELINE_STEP_MS_MIN: u64 = 100;
/// A business answer within this time counts as timely.
const TIMELY: Duration = Duration::from_secs(10);

/// Figures of a run.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Figures {
    pub(crate) offered: u64,
    pub(crate) sold: u64,
    pub(crate) tickets_sold: u64,
    pub(crate) sold_out: u64,
    pub(crate) overloaded: u64,
    pub(crate) undecided: u64,
    pub(crate) unknown: u64,
    pub(crate) errors: u64,
    pub(crate) resolved: u64,
    pub(crate) retries: u64,
    pub(crate) errors_by_reason: BTreeMap<String, u64>,
    pub(crate) duration_s: f64,
    pub(crate) decided_per_second: f64,
    pub(crate) purchases_per_second: f64,
    pub(crate) timely_percent: f64,
    pub(crate) mean_ms: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p90_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) p999_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) percentiles: Vec<PercentilePoint>,
    pub(crate) timeline: Vec<TimelinePoint>,
}

/// Whether a region has decided, and its answer came within the measured part.
fn decided(record: &Record) -> bool {
    !record.resolved && matches!(record.end, End::Sold { .. } | End::SoldOut | End::Refused(_))
}

/// Computes the figures.
pub(crate) fn figures(records: &[Record]) -> Figures {
    let mut figures = Figures { offered: records.len() as u64, ..Figures::default() };
    // The bounds are constants that the histogram accepts.
    let mut latency =
        Histogram::<u64>::new_with_bounds(1, LATENCY_US_MAX, 3).expect("constant bounds are valid");
    let mut answers = 0_u64;
    let mut sales = 0_u64;
    let mut timely = 0_u64;
    let mut last_end = Duration::ZERO;
    let mut last_decision = Duration::ZERO;
    let mut last_sale = Duration::ZERO;
    for record in records {
        match &record.end {
            End::Sold { tickets, .. } => {
                figures.sold += 1;
                figures.tickets_sold += tickets.len() as u64;
            }
            End::SoldOut => figures.sold_out += 1,
            End::Refused(key) | End::Failed(key) => {
                figures.errors += 1;
                *figures.errors_by_reason.entry(key.to_string()).or_insert(0) += 1;
            }
            End::Overloaded => figures.overloaded += 1,
            End::Undecided => {
                figures.overloaded += 1;
                figures.undecided += 1;
            }
            End::Unknown => figures.unknown += 1,
        }
        figures.resolved += u64::from(record.resolved);
        figures.retries += u64::from(record.attempts.saturating_sub(1));
        last_end = last_end.max(record.ended);
        if decided(record) {
            let taken = record.ended.saturating_sub(record.due);
            latency.saturating_record(u64::try_from(taken.as_micros()).unwrap_or(u64::MAX).max(1));
            answers += 1;
            timely += u64::from(taken <= TIMELY);
            last_decision = last_decision.max(record.ended);
            if matches!(record.end, End::Sold { .. }) {
                sales += 1;
                last_sale = last_sale.max(record.ended);
            }
        }
    }
    let first_due = records.iter().map(|record| record.due).min().unwrap_or_default();
    let rate = |number: u64, until: Duration| {
        let window = until.saturating_sub(first_due).as_secs_f64();
        if number == 0 || window <= 0.0 { 0.0 } else { number as f64 / window }
    };
    figures.duration_s = last_end.saturating_sub(first_due).as_secs_f64();
    figures.decided_per_second = rate(answers, last_decision);
    figures.purchases_per_second = rate(sales, last_sale);
    if figures.offered > 0 {
        figures.timely_percent = 100.0 * timely as f64 / figures.offered as f64;
    }
    let ms = |us: u64| us as f64 / 1_000.0;
    if !latency.is_empty() {
        figures.mean_ms = latency.mean() / 1_000.0;
        figures.p50_ms = ms(latency.value_at_quantile(0.5));
        figures.p90_ms = ms(latency.value_at_quantile(0.9));
        figures.p99_ms = ms(latency.value_at_quantile(0.99));
        figures.p999_ms = ms(latency.value_at_quantile(0.999));
        figures.max_ms = ms(latency.max());
        figures.percentiles = PERCENTILES
            .iter()
            .map(|percentile| PercentilePoint {
                percentile: *percentile,
                ms: ms(latency.value_at_quantile(percentile / 100.0)),
            })
            .collect();
    }
    figures.timeline = timeline(records, last_end);
    figures
}

/// Decisions, sales and losses over time, in steps that keep the number of points small.
fn timeline(records: &[Record], last_end: Duration) -> Vec<TimelinePoint> {
    if records.is_empty() {
        return Vec::new();
    }
    let total_ms = u64::try_from(last_end.as_millis()).unwrap_or(u64::MAX).max(1);
    let step_ms = total_ms.div_ceil(TIMELINE_POINTS_MAX).max(TIMELINE_STEP_MS_MIN);
    let mut points: BTreeMap<u64, (u64, u64, u64)> = BTreeMap::new();
    for record in records.iter().filter(|record| !record.resolved) {
        let bucket = u64::try_from(record.ended.as_millis()).unwrap_or(u64::MAX).min(total_ms - 1) / step_ms;
        let (answers, sales, losses) = points.entry(bucket).or_default();
        if decided(record) {
            *answers += 1;
            *sales += u64::from(matches!(record.end, End::Sold { .. }));
        } else {
            *losses += 1;
        }
    }
    let step_s = step_ms as f64 / 1_000.0;
    // The last step is usually a part of one; as a whole one it would look like a dip.
    (0..total_ms.div_ceil(step_ms))
        .map(|bucket| {
            let (answers, sales, losses) = points.get(&bucket).copied().unwrap_or_default();
            let covered_ms = (total_ms - bucket * step_ms).min(step_ms);
            let per_second = 1_000.0 / covered_ms as f64;
            TimelinePoint {
                at_s: bucket as f64 * step_s,
                decided_per_second: answers as f64 * per_second,
                sold_per_second: sales as f64 * per_second,
                undecided_per_second: losses as f64 * per_second,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::time::Instant;
    use uuid::Uuid;

    use super::*;
    use crate::arrivals::Intent;

    fn record(due_ms: u64, ended_ms: u64, end: End) -> Record {
        Record {
            intent: Intent { subject: 0, lot: 0, tier: 0, quantity: 1, offset: Duration::ZERO },
            request_id: Uuid::nil(),
            end,
            attempts: 1,
            due: Duration::from_millis(due_ms),
            ended: Duration::from_millis(ended_ms),
            last_call: Instant::now(),
            resolved: false,
        }
    }

    fn sold() -> End {
        End::Sold { tickets: vec!["t".into()], receipt: None }
    }

    #[test]
    fn a_stall_is_charged_to_everybody_whom_it_made_wait() {
        // 100 intents a second for 2 s; the service stands still from 1.0 s to 2.0 s and then answers all
        // at once. A generator that omits what it could not send would see one slow call in a hundred.
        let records: Vec<_> = (0..200_u64)
            .map(|n| {
                let due = n * 10;
                record(due, if due < 1_000 { due + 1 } else { 2_001 }, sold())
            })
            .collect();
        let figures = figures(&records);
        assert!((figures.p90_ms - 801.0).abs() < 15.0, "p90 {}", figures.p90_ms);
        assert!((figures.p99_ms - 981.0).abs() < 15.0, "p99 {}", figures.p99_ms);
        assert!((figures.max_ms - 1_001.0).abs() < 2.0, "max {}", figures.max_ms);
        assert!((figures.p50_ms - 1.0).abs() < 0.1, "p50 {}", figures.p50_ms);
        assert!((figures.purchases_per_second - 200.0 / 2.001).abs() < 0.5);
    }

    #[test]
    fn each_intent_is_counted_once_and_only_decisions_have_a_latency() {
        let mut lost = record(0, 9_000, End::Unknown);
        lost.attempts = 4;
        let mut resolved = record(0, 60_000, sold());
        resolved.resolved = true;
        let records = [
            record(0, 10, sold()),
            record(0, 20, End::SoldOut),
            record(0, 30, End::Refused("FAILED_PRECONDITION/QUOTA_EXCEEDED".into())),
            record(0, 40, End::Failed("UNAUTHENTICATED".into())),
            record(0, 5_000, End::Overloaded),
            record(0, 5_000, End::Undecided),
            lost,
            resolved,
        ];
        let figures = figures(&records);
        let parts = (figures.sold, figures.sold_out, figures.overloaded, figures.unknown, figures.errors);
        assert_eq!(parts, (2, 1, 2, 1, 2));
        assert_eq!(parts.0 + parts.1 + parts.2 + parts.3 + parts.4, figures.offered);
        assert_eq!((figures.undecided, figures.resolved, figures.retries), (1, 1, 3));
        assert_eq!(figures.max_ms.round(), 30.0, "what was not decided in time has no latency");
        assert_eq!(figures.timely_percent, 37.5);
        assert_eq!(figures.errors_by_reason["UNAUTHENTICATED"], 1);
        assert!((figures.decided_per_second - 100.0).abs() < 0.1);
    }

    #[test]
    fn the_timeline_has_few_points_and_loses_nothing() {
        let records: Vec<_> = (0..60_000_u64).map(|n| record(n, n + 1, sold())).collect();
        let points = figures(&records).timeline;
        assert!(points.len() as u64 <= TIMELINE_POINTS_MAX);
        let step = points[1].at_s - points[0].at_s;
        let sum: f64 = points.iter().map(|point| point.sold_per_second * step).sum();
        assert!((sum - 60_000.0).abs() < 500.0, "{sum}");
        assert!(points.iter().all(|point| (point.sold_per_second - 1_000.0).abs() < 20.0));
    }

    #[test]
    fn nothing_offered_gives_no_figures_and_no_division_by_zero() {
        let figures = figures(&[]);
        assert_eq!(figures, Figures::default());
    }
}
