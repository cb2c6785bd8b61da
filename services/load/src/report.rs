//! What a run has to say, for programs (JSON), for people (text) and for exit codes.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::LoadError;

/// Result of a run.
///
/// Each intent ends as exactly one of `sold`, `sold_out`, `overloaded`, `unknown` and `errors`; their sum is
/// `offered`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `flash-sale` or `trace`.
    pub kind: String,
    /// How intents arrived, in words.
    pub mode: String,
    /// Intents of buyers that were begun.
    pub offered: u64,
    /// Intents that bought.
    pub sold: u64,
    /// Intents that were told "sold out".
    pub sold_out: u64,
    /// Intents that gave up and of which nothing was decided: every call was refused for overload, or
    /// `GetOutcome` said so.
    pub overloaded: u64,
    /// Intents of which nobody knows what was decided, even after `GetOutcome`.
    pub unknown: u64,
    /// Intents that ended with any other error; see `errors_by_reason`.
    pub errors: u64,
    /// Tickets beyond capacity, as the audit found.
    pub oversold: u64,
    /// Tickets, seats or sales that exist twice, as the audit found.
    pub duplicates: u64,
    /// Acknowledged tickets that are gone, as the audit found.
    pub lost: u64,
    /// Purchases per second, from the first arrival to the last sale.
    pub purchases_per_second: f64,
    /// Business answers of any kind per second, from the first arrival to the last of them.
    pub decided_per_second: f64,
    /// Mean latency of business answers, milliseconds; see `latency_basis`.
    pub mean_ms: f64,
    /// Median latency of business answers, milliseconds.
    pub p50_ms: f64,
    /// 90th percentile, milliseconds.
    pub p90_ms: f64,
    /// 99th percentile, milliseconds.
    pub p99_ms: f64,
    /// 99.9th percentile, milliseconds.
    pub p999_ms: f64,
    /// Highest latency, milliseconds.
    pub max_ms: f64,
    /// What latency means in this run, and whether coordinated omission is corrected.
    pub latency_basis: String,
    /// `ok`, or what is wrong.
    pub audit: String,
    /// Why the run was stopped early; absent when it was not.
    pub aborted: Option<String>,
    /// Intents that the plan had and that were not begun because the run was stopped.
    pub not_offered: u64,
    /// From the first arrival to the end of the last intent, seconds.
    pub duration_s: f64,
    /// Tickets of the intents that bought.
    pub tickets_sold: u64,
    /// Repeated calls.
    pub retries: u64,
    /// Intents that stayed unknown at first and were settled by `GetOutcome`.
    pub resolved: u64,
    /// Those of `overloaded` of which `GetOutcome` said that nothing was decided.
    pub undecided: u64,
    /// Calls that broke without an answer of a gateway.
    pub transport_errors: u64,
    /// Overload answers without RetryInfo; the API promises that there are none.
    pub overloads_without_retry_info: u64,
    /// Share of `offered` that had a business answer within 10 s, percent.
    pub business_answers_within_10s_percent: f64,
    /// Ends in `errors` by `CODE/REASON`.
    pub errors_by_reason: BTreeMap<String, u64>,
    /// Every answer other than success, repeated calls included, by `CODE/REASON`.
    pub answers_by_reason: BTreeMap<String, u64>,
    /// Whether every tier ended with nothing free and nothing held.
    pub sold_out_exactly: bool,
    /// Valid tickets that were read back.
    pub tickets_read_back: u64,
    /// Different ticket names among them.
    pub distinct_tickets: u64,
    /// Different owners among them.
    pub owners: u64,
    /// Receipts of purchases: all of different places in their region's log, in an order that agrees with
    /// terms and log time, when `audit` is `ok`.
    pub receipts: u64,
    /// The events that were sold.
    pub events: Vec<EventReport>,
    /// Latency by percentile.
    pub percentiles: Vec<PercentilePoint>,
    /// Throughput over time.
    pub timeline: Vec<TimelinePoint>,
}

/// One event as it was read back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventReport {
    /// Resource name.
    pub event: String,
    /// Name for people.
    pub display_name: String,
    /// Resource name of the region.
    pub region: String,
    /// Tickets there were, all tiers.
    pub capacity: i64,
    /// Free, all tiers.
    pub free: i64,
    /// Held, all tiers.
    pub held: i64,
    /// Sold, all tiers.
    pub sold: i64,
}

/// Latency at a percentile.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct PercentilePoint {
    /// 0 to 100.
    pub percentile: f64,
    /// Latency, milliseconds.
    pub ms: f64,
}

/// Throughput in one step of time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct TimelinePoint {
    /// Beginning of the step, seconds after the start.
    pub at_s: f64,
    /// Business answers per second.
    pub decided_per_second: f64,
    /// Purchases per second.
    pub sold_per_second: f64,
    /// Intents that ended without a business answer, per second.
    pub undecided_per_second: f64,
}

impl Report {
    /// Whether the run may count as a success (exit code 0): it was not stopped early, the audit was done
    /// and found nothing, and every intent is accounted for.
    pub fn ok(&self) -> bool {
        let ends = self.sold + self.sold_out + self.overloaded + self.unknown + self.errors;
        self.audit == "ok"
            && self.aborted.is_none()
            && self.oversold == 0
            && self.duplicates == 0
            && self.lost == 0
            && ends == self.offered
    }

    /// The report as indented JSON.
    pub fn to_json(&self) -> String {
        // Fails for maps with keys that are no strings and for writers that fail; there is neither.
        serde_json::to_string_pretty(self).expect("a report is plain data")
    }

    /// Draws latency percentiles and throughput over time.
    ///
    /// # Errors
    /// [`LoadError::Plot`] or [`LoadError::File`] when the file cannot be drawn or written.
    pub fn write_svg(&self, path: &Path) -> Result<(), LoadError> {
        crate::plot::write(self, path)
    }
}

/// A whole number with separators: 12,345.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn rounded(number: f64) -> String {
    grouped(number.max(0.0).round() as u64)
}

fn listed(map: &BTreeMap<String, u64>) -> String {
    let parts: Vec<String> = map.iter().map(|(key, number)| format!("{key} {}", grouped(*number))).collect();
    parts.join(", ")
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: String| writeln!(f, "  {name:<16}{value}");
        writeln!(f, "{} ({})", self.kind, self.mode)?;
        for event in self.events.iter().take(20) {
            let words = format!(
                "{}: {} of {} sold, {} free",
                event.event,
                grouped(event.sold.max(0).unsigned_abs()),
                grouped(event.capacity.max(0).unsigned_abs()),
                grouped(event.free.max(0).unsigned_abs())
            );
            line(f, "event", words)?;
        }
        if self.events.len() > 20 {
            line(f, "", format!("and {} more events", self.events.len() - 20))?;
        }
        line(f, "offered", format!("{} intents in {:.2} s", grouped(self.offered), self.duration_s))?;
        line(f, "sold", format!("{} ({} tickets)", grouped(self.sold), grouped(self.tickets_sold)))?;
        line(f, "sold out", format!("{} were told so", grouped(self.sold_out)))?;
        line(f, "overloaded", format!("{} gave up, nothing decided", grouped(self.overloaded)))?;
        let unknown = if self.resolved > 0 {
            format!("{} ({} more were settled by GetOutcome)", grouped(self.unknown), grouped(self.resolved))
        } else {
            grouped(self.unknown)
        };
        line(f, "unknown", unknown)?;
        let errors = if self.errors_by_reason.is_empty() {
            grouped(self.errors)
        } else {
            format!("{} ({})", grouped(self.errors), listed(&self.errors_by_reason))
        };
        line(f, "errors", errors)?;
        line(
            f,
            "calls repeated",
            format!("{} ({} broken connections)", grouped(self.retries), grouped(self.transport_errors)),
        )?;
        if self.overloads_without_retry_info > 0 {
            line(
                f,
                "no RetryInfo",
                format!("{} overload answers", grouped(self.overloads_without_retry_info)),
            )?;
        }
        line(
            f,
            "throughput",
            format!(
                "{} purchases/s, {} decisions/s",
                rounded(self.purchases_per_second),
                rounded(self.decided_per_second)
            ),
        )?;
        line(
            f,
            "latency",
            format!(
                "p50 {:.2} ms, p90 {:.2}, p99 {:.2}, p99.9 {:.2}, max {:.2}",
                self.p50_ms, self.p90_ms, self.p99_ms, self.p999_ms, self.max_ms
            ),
        )?;
        line(f, "", self.latency_basis.clone())?;
        line(
            f,
            "within 10 s",
            format!("{:.2} % had a business answer", self.business_answers_within_10s_percent),
        )?;
        line(f, "oversold", grouped(self.oversold))?;
        line(f, "duplicates", grouped(self.duplicates))?;
        line(f, "lost", grouped(self.lost))?;
        if let Some(why) = &self.aborted {
            line(f, "stopped", format!("{why}; {} intents were not begun", grouped(self.not_offered)))?;
        }
        line(f, "audit", self.audit.clone())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn fine() -> Report {
        Report {
            kind: "flash-sale".to_owned(),
            offered: 12_345,
            sold: 2_345,
            sold_out: 10_000,
            audit: "ok".to_owned(),
            ..Report::default()
        }
    }

    #[test]
    fn only_a_complete_and_clean_run_is_ok() {
        assert!(fine().ok());
        let spoilt: [fn(&mut Report); 6] = [
            |r| r.audit = "oversold (1)".to_owned(),
            |r| r.aborted = Some("stopped early".to_owned()),
            |r| r.oversold = 1,
            |r| r.duplicates = 1,
            |r| r.lost = 1,
            |r| r.offered += 1,
        ];
        for (number, spoil) in spoilt.into_iter().enumerate() {
            let mut report = fine();
            spoil(&mut report);
            assert!(!report.ok(), "case {number}");
        }
    }

    #[test]
    fn json_carries_the_promised_fields_and_reads_back() {
        let json: serde_json::Value = serde_json::from_str(&fine().to_json()).unwrap();
        for field in [
            "offered",
            "sold",
            "sold_out",
            "overloaded",
            "unknown",
            "errors",
            "oversold",
            "duplicates",
            "purchases_per_second",
            "p50_ms",
            "p99_ms",
            "audit",
        ] {
            assert!(json.get(field).is_some(), "{field}");
        }
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), fine());
    }

    #[test]
    fn text_groups_digits() {
        assert_eq!([0, 999, 1_000, 1_234_567].map(grouped), ["0", "999", "1,000", "1,234,567"]);
        assert!(fine().to_string().contains("12,345 intents"));
    }
}
