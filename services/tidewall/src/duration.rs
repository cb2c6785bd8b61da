//! Durations on the command line: `500ms`, `10s`, `15m`, `12h`, `7d`, `1h30m`.
//!
//! A bare number is refused, because nobody remembers whether it means seconds.

use std::time::Duration;

/// Parses a duration for clap; the error says which forms are understood.
pub fn parse(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err(format!("{text:?} is no time at all: give more than 0")),
        Ok(duration) => Ok(duration),
        Err(why) => Err(format!(
            "{text:?} is not a duration ({why}): write a number and a unit, such as 500ms, 10s, 15m, 12h or 7d"
        )),
    }
}

/// Milliseconds of a duration in an answer; 0 when it is absent.
pub fn millis(duration: Option<prost_types::Duration>) -> i64 {
    duration.map_or(0, |duration| duration.seconds * 1_000 + i64::from(duration.nanos / 1_000_000))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn units_are_understood() {
        assert_eq!(parse("500ms").unwrap(), Duration::from_millis(500));
        assert_eq!(parse("10s").unwrap(), Duration::from_secs(10));
        assert_eq!(parse("15m").unwrap(), Duration::from_secs(900));
        assert_eq!(parse("12h").unwrap(), Duration::from_secs(43_200));
        assert_eq!(parse("1h30m").unwrap(), Duration::from_secs(5_400));
        assert_eq!(parse("7d").unwrap(), Duration::from_secs(604_800));
    }

    #[test]
    fn what_a_gateway_says_is_read_in_milliseconds() {
        let of = |seconds, nanos| millis(Some(prost_types::Duration { seconds, nanos }));
        assert_eq!((millis(None), of(2, 500_000_000), of(-3, -250_000_000)), (0, 2_500, -3_250));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "10", "s", "-1s", "ten", "0s", "0", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
        assert!(parse("10").unwrap_err().contains("10s"));
    }
}
