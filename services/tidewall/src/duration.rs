//! Durations on the command line: `500ms`, `10s`, `15m`, `12h`, `7d`.
//!
//! A bare number is refused, because nobody remembers whether it means seconds.

use std::time::Duration;

/// Parses a duration for clap; the error says which forms are understood.
pub fn parse(text: &str) -> Result<Duration, String> {
    let explain = || {
        format!("{text:?} is not a duration: write a number and a unit, such as 500ms, 10s, 15m, 12h or 7d")
    };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| explain())?;
    let unit_ms: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return Err(explain()),
    };
    match number.checked_mul(unit_ms) {
        Some(0) => Err(format!("{text:?} is no time at all: give more than 0")),
        Some(ms) => Ok(Duration::from_millis(ms)),
        None => Err(format!("{text:?} is too long")),
    }
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
        assert_eq!(parse("7d").unwrap(), Duration::from_secs(604_800));
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "10", "s", "-1s", "1.5h", "10 s", "0s", "99999999999999999999s", "18446744073709551615d"]
        {
            assert!(parse(text).is_err(), "{text:?} was accepted");
        }
        assert!(parse("10").unwrap_err().contains("10s"));
    }
}
