//! The text form of metrics, by what a scraper accepts: OpenMetrics, or the older Prometheus text format 0.0.4, which is what it gets
//! that says nothing.
//!
//! Sources: the OpenMetrics specification 1.0, and *Exposition formats* of the Prometheus documentation.

use std::collections::BTreeMap;

use http::header::{CONTENT_TYPE, VARY};
use http::{HeaderName, HeaderValue};

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Headers of an answer with metrics.
pub type Headers = [(HeaderName, HeaderValue); 2];

/// The answer to a scraper that accepts this, from metrics in the form of OpenMetrics.
pub fn answer(accepted: Option<&str>, open_metrics: String) -> (Headers, String) {
    let (kind, text) = match accepted.is_some_and(prefers_open_metrics) {
        true => (OPEN_METRICS, open_metrics),
        false => (PROMETHEUS, prometheus(&open_metrics)),
    };
    let headers =
        [(CONTENT_TYPE, HeaderValue::from_static(kind)), (VARY, HeaderValue::from_static("accept"))];
    (headers, text)
}

/// Whether OpenMetrics is named, and no other form with a higher weight (RFC 9110, 12.5.1).
fn prefers_open_metrics(accept: &str) -> bool {
    let (mut open, mut other) = (0, 0);
    for part in accept.split(',') {
        let mut words = part.split(';').map(str::trim);
        let kind = words.next().unwrap_or_default();
        let weight = words.find_map(|word| word.strip_prefix("q=")).map_or(Some(1_000), thousandths);
        let best = match kind.to_ascii_lowercase().as_str() {
            "application/openmetrics-text" => &mut open,
            "text/plain" | "text/*" | "*/*" => &mut other,
            // What is not offered here.
            _ => continue,
        };
        *best = weight.unwrap_or(0).max(*best);
    }
    open > 0 && open >= other
}

/// A weight, `0` to `1` with at most three digits.
fn thousandths(weight: &str) -> Option<u32> {
    let (whole, rest) = weight.split_once('.').unwrap_or((weight, ""));
    let digits = format!("{rest:0<3}");
    let rest: u32 = digits.get(..3)?.parse().ok()?;
    Some((whole.parse::<u32>().ok()? * 1_000 + rest).min(1_000))
}

/// What the older form calls a type, and what it puts behind the names of its metrics in what is said about them.
fn older(kind: &str) -> (&str, &'static str) {
    match kind {
        "counter" => ("counter", "_total"),
        "info" => ("gauge", "_info"),
        "unknown" => ("untyped", ""),
        kind => (kind, ""),
    }
}

/// The same metrics in the older form: names of counters end with `_total` in what is said about them as well, there is no type for
/// information, and there are neither units nor an end.
fn prometheus(open_metrics: &str) -> String {
    let kinds: BTreeMap<&str, &str> =
        open_metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut text = String::with_capacity(open_metrics.len());
    for line in open_metrics.lines() {
        let about = line.strip_prefix("# ").and_then(|about| about.split_once(' '));
        match about {
            Some(("UNIT", _)) => continue,
            None if line == "# EOF" => continue,
            Some((what @ ("TYPE" | "HELP"), rest)) => {
                let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
                let (kind, suffix) = older(kinds.get(name).copied().unwrap_or_default());
                let rest = if what == "TYPE" { kind } else { rest };
                text.push_str(&format!("# {what} {name}{suffix} {rest}"));
            }
            _ => text.push_str(line),
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPEN: &str = "# HELP calls Calls.\n# TYPE calls counter\ncalls_total{code=\"OK\"} 1\n# HELP took_seconds Time.\n\
                        # TYPE took_seconds histogram\n# UNIT took_seconds seconds\ntook_seconds_sum 0.5\n\
                        # HELP build Build.\n# TYPE build info\nbuild_info{version=\"1\"} 1\n# EOF\n";

    #[test]
    fn a_scraper_gets_what_it_prefers() {
        let kind = |accept| answer(accept, OPEN.to_owned()).0[0].1.clone();
        for accept in [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0",
            "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.4,*/*;q=0.1",
            "text/plain, application/openmetrics-text",
            "application/vnd.google.protobuf;q=0.7,application/openmetrics-text;q=0.6,text/plain;q=0.5",
        ] {
            assert_eq!(kind(Some(accept)), OPEN_METRICS, "{accept}");
        }
        for accept in [
            "text/plain",
            "*/*",
            "",
            "application/openmetrics-text;q=0",
            "*/*,application/openmetrics-text;q=0.3",
        ] {
            assert_eq!(kind(Some(accept)), PROMETHEUS, "{accept}");
        }
        assert_eq!(kind(None), PROMETHEUS);
    }

    #[test]
    fn the_older_form_names_counters_in_full_and_has_no_units_and_no_end() {
        let (_, text) = answer(None, OPEN.to_owned());
        assert_eq!(
            text,
            "# HELP calls_total Calls.\n# TYPE calls_total counter\ncalls_total{code=\"OK\"} 1\n# HELP took_seconds Time.\n\
             # TYPE took_seconds histogram\ntook_seconds_sum 0.5\n# HELP build_info Build.\n# TYPE build_info gauge\n\
             build_info{version=\"1\"} 1\n"
        );
        assert_eq!(answer(Some("application/openmetrics-text"), OPEN.to_owned()).1, OPEN);
    }
}
