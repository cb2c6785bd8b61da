//! Recorded arrivals of a real sale, as CSV. The parser is strict: a line that is not exactly what is
//! expected stops it, because a replay of half a sale would look like a result.
//!
//! ```text
//! offset_ms,buyer,event,tier,quantity
//! 0,b17,aurora,front,2
//! 3,b4711,aurora,stand,1
//! ```
//!
//! One line is one request: when it arrived (milliseconds after the start, never smaller than on the line
//! before), who asked, for which event and tier, and how many tickets. There is no quoting: no field may
//! contain a comma. Lines end with LF or CRLF.

use std::collections::BTreeMap;
use std::time::Duration;

/// The first line of every trace.
pub const HEADER: &str = "offset_ms,buyer,event,tier,quantity";
/// Names of the fields, in order.
const FIELDS: [&str; 5] = ["offset_ms", "buyer", "event", "tier", "quantity"];
/// Latest arrival: a day.
const OFFSET_MS_MAX: u64 = 86_400_000;
/// Most requests of a trace.
const REQUESTS_MAX: usize = 5_000_000;
/// Most events of a trace.
const EVENTS_MAX: usize = 10_000;
/// Most tiers of an event, a limit of the API.
const TIERS_MAX: usize = 32;
/// Longest piece of a bad value that is shown.
const SHOWN_MAX: usize = 40;

/// What is wrong with a trace, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// A field is not what it should be.
    #[error("line {line}, field {field}: expected {expected}, found {found}")]
    Field {
        /// Line, from 1; the header is line 1.
        line: usize,
        /// Name of the field.
        field: &'static str,
        /// What it should be.
        expected: String,
        /// What it is, shortened.
        found: String,
    },
    /// A whole line is not what it should be.
    #[error("line {line}: expected {expected}, found {found}")]
    Line {
        /// Line, from 1.
        line: usize,
        /// What it should be.
        expected: String,
        /// What it is, shortened.
        found: String,
    },
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// When, after the start.
    pub offset: Duration,
    /// Number of the buyer in [`Trace::buyers`].
    pub buyer: u32,
    /// Number of the event in [`Trace::events`].
    pub event: u32,
    /// Number of the tier in [`TraceEvent::tiers`].
    pub tier: u32,
    /// Tickets asked for, 1 to 100.
    pub quantity: u32,
}

/// An event as far as a trace knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceEvent {
    /// Its name in the trace.
    pub name: String,
    /// Tiers, in order of appearance, with the tickets that the trace asks of each.
    pub tiers: Vec<(String, u64)>,
}

/// A parsed trace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Trace {
    /// Buyers, in order of appearance.
    pub buyers: Vec<String>,
    /// Events, in order of appearance.
    pub events: Vec<TraceEvent>,
    /// Requests, in order of arrival.
    pub arrivals: Vec<Arrival>,
}

impl Trace {
    /// The most tickets of one event that one buyer asks for in all; at least 1.
    pub fn highest_demand(&self) -> u64 {
        let mut demand: BTreeMap<(u32, u32), u64> = BTreeMap::new();
        for arrival in &self.arrivals {
            *demand.entry((arrival.event, arrival.buyer)).or_insert(0) += u64::from(arrival.quantity);
        }
        demand.into_values().max().unwrap_or(1)
    }
}

/// Shows a bad value, shortened, with control characters visible.
fn shown(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    if text.is_empty() {
        return "nothing".to_owned();
    }
    let mut short: String = text.chars().take(SHOWN_MAX).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    format!("{short:?}")
}

struct Names {
    numbers: BTreeMap<String, u32>,
}

impl Names {
    /// The number of a name, and whether it is new.
    fn number(&mut self, name: &str) -> (u32, bool) {
        if let Some(number) = self.numbers.get(name) {
            return (*number, false);
        }
        // Far below u32::MAX: the number of lines is bounded.
        let number = self.numbers.len() as u32;
        self.numbers.insert(name.to_owned(), number);
        (number, true)
    }
}

/// Parses a trace.
///
/// # Errors
/// The first thing that is wrong: line, field, what was expected and what was found.
pub fn parse(bytes: &[u8]) -> Result<Trace, TraceError> {
    let mut lines = bytes.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let header = lines.next().unwrap_or_default();
    if header != HEADER.as_bytes() {
        return Err(TraceError::Line {
            line: 1,
            expected: format!("the header {HEADER:?}"),
            found: shown(header),
        });
    }
    let mut trace = Trace::default();
    let mut buyers = Names { numbers: BTreeMap::new() };
    let mut events = Names { numbers: BTreeMap::new() };
    let mut tiers: Vec<Names> = Vec::new();
    let mut previous_ms = 0_u64;
    let mut lines = lines.enumerate().peekable();
    while let Some((number, line)) = lines.next() {
        let line_number = number + 2;
        if line.is_empty() && lines.peek().is_none() {
            break;
        }
        let fields = split(line, line_number)?;
        let bad = |field: usize, expected: String| TraceError::Field {
            line: line_number,
            field: FIELDS[field],
            expected,
            found: shown(fields[field].as_bytes()),
        };
        if trace.arrivals.len() == REQUESTS_MAX {
            return Err(TraceError::Line {
                line: line_number,
                expected: format!("the end, because a trace has at most {REQUESTS_MAX} requests"),
                found: shown(line),
            });
        }
        let offset_ms = number_in(fields[0], previous_ms, OFFSET_MS_MAX).ok_or_else(|| {
            bad(
                0,
                format!(
                    "a whole number of milliseconds from {previous_ms} (the line before) to {OFFSET_MS_MAX}"
                ),
            )
        })?;
        if !(1..=128).contains(&fields[1].len()) || fields[1].chars().any(char::is_control) {
            return Err(bad(1, "a buyer's name of 1 to 128 bytes without control characters".to_owned()));
        }
        let event_ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, ' ' | '-' | '_' | '.');
        if !(1..=64).contains(&fields[2].len()) || !fields[2].chars().all(event_ok) {
            return Err(bad(
                2,
                "an event's name of 1 to 64 of A-Z, a-z, 0-9, space, '-', '_' and '.'".to_owned(),
            ));
        }
        let tier_ok = fields[3].starts_with(|c: char| c.is_ascii_lowercase())
            && fields[3].len() <= 32
            && fields[3].chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        if !tier_ok {
            return Err(bad(3, "a tier id of 1 to 32 of a-z and 0-9 that starts with a letter".to_owned()));
        }
        let quantity =
            number_in(fields[4], 1, 100).ok_or_else(|| bad(4, "a whole number from 1 to 100".to_owned()))?;

        let (buyer, new) = buyers.number(fields[1]);
        if new {
            trace.buyers.push(fields[1].to_owned());
        }
        let (event, new) = events.number(fields[2]);
        if new {
            if trace.events.len() == EVENTS_MAX {
                return Err(bad(
                    2,
                    format!("one of the events named before; a trace has at most {EVENTS_MAX}"),
                ));
            }
            trace.events.push(TraceEvent { name: fields[2].to_owned(), tiers: Vec::new() });
            tiers.push(Names { numbers: BTreeMap::new() });
        }
        let known = &mut trace.events[event as usize].tiers;
        let (tier, new) = tiers[event as usize].number(fields[3]);
        if new {
            if known.len() == TIERS_MAX {
                return Err(bad(
                    3,
                    format!("one of the event's earlier tiers; an event has at most {TIERS_MAX}"),
                ));
            }
            known.push((fields[3].to_owned(), 0));
        }
        known[tier as usize].1 += quantity;
        // At most 100, as was checked.
        let quantity = quantity as u32;
        trace.arrivals.push(Arrival {
            offset: Duration::from_millis(offset_ms),
            buyer,
            event,
            tier,
            quantity,
        });
        previous_ms = offset_ms;
    }
    if trace.arrivals.is_empty() {
        return Err(TraceError::Line {
            line: 2,
            expected: "at least one request after the header".to_owned(),
            found: "the end of the file".to_owned(),
        });
    }
    Ok(trace)
}

fn split(line: &[u8], line_number: usize) -> Result<[&str; 5], TraceError> {
    let whole = |expected: String| TraceError::Line { line: line_number, expected, found: shown(line) };
    let text = std::str::from_utf8(line).map_err(|_| whole("UTF-8 text".to_owned()))?;
    let fields: Vec<&str> = text.split(',').collect();
    let count = fields.len();
    fields.try_into().map_err(|_| {
        if text.is_empty() {
            whole(format!("a request ({HEADER}); only the end of the file may be empty"))
        } else if count < FIELDS.len() {
            whole(format!("5 fields ({HEADER}); field {} is missing", FIELDS[count]))
        } else {
            whole(format!("5 fields ({HEADER}), not {count}; fields cannot contain commas"))
        }
    })
}

/// A number written with digits only, within bounds.
fn number_in(text: &str, min: u64, max: u64) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|number| digits && (min..=max).contains(number))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn with(lines: &str) -> Result<Trace, TraceError> {
        parse(format!("{HEADER}\n{lines}").as_bytes())
    }

    #[test]
    fn a_trace_is_read_in_order_and_its_demand_is_added_up() {
        let trace =
            with("0,ann,gala,front,2\r\n0,bob,gala,stand,1\n7,ann,jazz night,front,3\n9,ann,gala,front,1")
                .unwrap();
        assert_eq!(trace.buyers, ["ann", "bob"]);
        let tiers = |n: usize| trace.events[n].tiers.clone();
        assert_eq!(tiers(0), [("front".to_owned(), 3), ("stand".to_owned(), 1)]);
        assert_eq!(tiers(1), [("front".to_owned(), 3)]);
        assert_eq!(
            trace.arrivals[2],
            Arrival { offset: Duration::from_millis(7), buyer: 0, event: 1, tier: 0, quantity: 3 }
        );
        assert_eq!(trace.highest_demand(), 3);
    }

    #[test]
    fn each_bad_field_is_named_with_its_line_and_what_was_expected() {
        let long_buyer = format!("0,{},gala,ga,1", "x".repeat(129));
        let cases: [(&str, &str, &str); 17] = [
            ("x,ann,gala,ga,1", "offset_ms", "whole number of milliseconds"),
            ("-1,ann,gala,ga,1", "offset_ms", "found \"-1\""),
            ("+1,ann,gala,ga,1", "offset_ms", "found \"+1\""),
            ("1.5,ann,gala,ga,1", "offset_ms", "found \"1.5\""),
            (" 1,ann,gala,ga,1", "offset_ms", "found \" 1\""),
            ("99999999999999999999,ann,gala,ga,1", "offset_ms", "86400000"),
            (",ann,gala,ga,1", "offset_ms", "found nothing"),
            ("0,,gala,ga,1", "buyer", "1 to 128 bytes"),
            ("0,a\tb,gala,ga,1", "buyer", "control characters"),
            (&long_buyer, "buyer", "1 to 128 bytes"),
            ("0,ann,,ga,1", "event", "1 to 64"),
            ("0,ann,ga/la,ga,1", "event", "found \"ga/la\""),
            ("0,ann,gala,GA,1", "tier", "tier id"),
            ("0,ann,gala,1st,1", "tier", "starts with a letter"),
            ("0,ann,gala,ga,0", "quantity", "from 1 to 100"),
            ("0,ann,gala,ga,101", "quantity", "found \"101\""),
            ("0,ann,gala,ga,one", "quantity", "found \"one\""),
        ];
        for (line, field, words) in cases {
            let error = with(&format!("0,eve,gala,ga,1\n{line}\n")).unwrap_err();
            let text = error.to_string();
            assert!(text.starts_with(&format!("line 3, field {field}: expected ")), "{text}");
            assert!(text.contains(words), "{text}");
        }
    }

    #[test]
    fn arrivals_may_not_go_back_in_time() {
        let error = with("5,ann,gala,ga,1\n4,bob,gala,ga,1\n").unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("line 3, field offset_ms: expected a whole number of milliseconds from 5")
        );
    }

    #[test]
    fn lines_of_another_shape_are_refused() {
        let text = |lines: &str| with(lines).unwrap_err().to_string();
        assert!(text("0,ann,gala,ga").contains("line 2: expected 5 fields"));
        assert!(text("0,ann,gala,ga").contains("field quantity is missing"));
        assert!(text("0,ann,gala,ga,1,x").contains("not 6"));
        assert!(text("0,ann,gala,ga,1\n\n1,bob,gala,ga,1").contains("line 3: expected a request"));
        assert!(text("0,ann,gala,ga,1\n\n\n").contains("line 3"));
        let mut bytes = format!("{HEADER}\n0,").into_bytes();
        bytes.extend([0xff, 0xfe]);
        bytes.extend(b",gala,ga,1\n");
        assert!(parse(&bytes).unwrap_err().to_string().contains("line 2: expected UTF-8"));
    }

    #[test]
    fn a_file_without_header_or_requests_is_refused() {
        for bytes in
            ["", "0,ann,gala,ga,1\n", "offset,buyer,event,tier,quantity\n", "\u{feff}offset_ms,buyer"]
        {
            let text = parse(bytes.as_bytes()).unwrap_err().to_string();
            assert!(text.starts_with("line 1: expected the header \"offset_ms,"), "{text}");
        }
        for lines in ["", "\n"] {
            let text = with(lines).unwrap_err().to_string();
            assert!(text.contains("line 2: expected"), "{text}");
        }
    }

    #[test]
    fn too_many_tiers_are_refused_by_name() {
        let lines: String = (0..33).map(|n| format!("{n},ann,gala,t{n},1\n")).collect();
        let text = with(&lines).unwrap_err().to_string();
        assert!(text.starts_with("line 34, field tier") && text.contains("at most 32"), "{text}");
    }
}
