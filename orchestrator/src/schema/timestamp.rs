//! RFC 3339 times as the API writes them: whole seconds or microseconds, always in UTC.

use std::fmt::Write as _;
use std::ops::Range;

use thiserror::Error;

/// Text that is no RFC 3339 time. The wording follows upstream's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error(
    "parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\""
)]
pub struct TimestampError {
    text: String,
}

/// A point in time: seconds since 1970 (may be negative) and nanoseconds below one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanos: u32,
}

impl Timestamp {
    /// The years 0 to 9999, all that RFC 3339 can write.
    pub const SECONDS: Range<i64> = -62_167_219_200..253_402_300_800;

    /// Reads RFC 3339 with any offset and any number of fractional digits.
    pub fn parse(text: &str) -> Result<Self, TimestampError> {
        parse(text).ok_or_else(|| TimestampError {
            text: text.chars().take(64).collect(),
        })
    }

    /// As `2006-01-02T15:04:05Z`; a fraction is cut off.
    pub fn to_seconds(self) -> String {
        let mut text = self.clock();
        text.push('Z');
        text
    }

    /// As `2006-01-02T15:04:05.000000Z`.
    pub fn to_micros(self) -> String {
        let mut text = self.clock();
        write!(text, ".{:06}Z", self.nanos / 1000).expect("writing to a string cannot fail");
        text
    }

    fn clock(self) -> String {
        let days = self.seconds.div_euclid(86_400);
        let second = self.seconds.rem_euclid(86_400);
        let (year, month, day) = date(days);
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
    }
}

fn number(text: &str) -> Option<i64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())
        .flatten()
}

fn parse(text: &str) -> Option<Timestamp> {
    let (head, rest) = text.split_at_checked(19)?;
    let bytes = head.as_bytes();
    let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
    if !marks.iter().all(|(at, mark)| bytes.get(*at) == Some(mark)) {
        return None;
    }
    let part = |from: usize, to: usize| number(head.get(from..to)?);
    let (year, month, day) = (part(0, 4)?, part(5, 7)?, part(8, 10)?);
    let (hour, minute, second) = (part(11, 13)?, part(14, 16)?, part(17, 19)?);
    let in_range = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60;
    if !in_range {
        return None;
    }
    let (nanos, zone) = match rest.strip_prefix('.') {
        Some(fraction) => {
            let end = fraction.find(|c: char| !c.is_ascii_digit())?;
            let (digits, zone) = fraction.split_at(end);
            let digits = digits
                .get(..digits.len().min(9))
                .filter(|digits| !digits.is_empty())?;
            let scale = 10_u32.pow(9 - u32::try_from(digits.len()).ok()?);
            (digits.parse::<u32>().ok()? * scale, zone)
        }
        None => (0, rest),
    };
    let seconds = days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second;
    let seconds = seconds - offset(zone)?;
    // An offset may lead out of what can be written.
    Timestamp::SECONDS
        .contains(&seconds)
        .then_some(Timestamp { seconds, nanos })
}

/// Seconds east of UTC.
fn offset(zone: &str) -> Option<i64> {
    if zone == "Z" {
        return Some(0);
    }
    let (sign, rest) = zone.split_at_checked(1)?;
    let (hour, minute) = rest
        .split_once(':')
        .filter(|(h, m)| h.len() == 2 && m.len() == 2)?;
    let (hour, minute) = (number(hour)?, number(minute)?);
    let seconds = (hour < 24 && minute < 60).then_some(hour * 3600 + minute * 60)?;
    match sign {
        "+" => Some(seconds),
        "-" => Some(-seconds),
        _ => None,
    }
}

fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if year % 4 == 0 && (year % 100 != 0 || year % 400 == 0) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days since 1970-01-01 of a date in the proleptic Gregorian calendar. Years are counted from
/// March so that the leap day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let leap_days = year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400);
    year * 365 + leap_days + (153 * month + 2) / 5 + day - 1 - 719_468
}

/// The inverse of [`days`].
fn date(days: i64) -> (i64, i64, i64) {
    let since = days + 719_468;
    let era = since.div_euclid(146_097);
    let of_era = since.rem_euclid(146_097);
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (
        year + era * 400,
        if month < 10 { month + 3 } else { month - 9 },
    );
    (if month <= 2 { year + 1 } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_come_back_in_utc() {
        for (given, seconds, expected) in [
            ("1970-01-01T00:00:00Z", 0, "1970-01-01T00:00:00Z"),
            (
                "2024-02-29T12:00:00+02:00",
                1_709_200_800,
                "2024-02-29T10:00:00Z",
            ),
            (
                "2026-11-23T08:16:45.123456789Z",
                1_795_421_805,
                "2026-11-23T08:16:45Z",
            ),
            ("1969-12-31T23:59:59-00:30", 1799, "1970-01-01T00:29:59Z"),
        ] {
            let time = Timestamp::parse(given).expect("valid");
            assert_eq!(
                (time.seconds, &*time.to_seconds()),
                (seconds, expected),
                "{given}"
            );
        }
        let time = Timestamp::parse("2026-11-23T08:16:45.12Z").expect("valid");
        assert_eq!(time.to_micros(), "2026-11-23T08:16:45.120000Z");
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "foo",
            "2026-13-01T00:00:00Z",
            "2023-02-29T00:00:00Z",
            "2026-11-23",
            "0000-01-01T00:00:00+00:01",
            "9999-12-31T23:59:59-00:01",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
        for text in [
            "2026-11-23T08:16:45",
            "2026-11-23T08:16:45.Z",
            "2026-11-23T08:16:45+1:00",
        ] {
            assert!(Timestamp::parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_second_survives_writing_and_reading(seconds in -60_000_000_000_i64..250_000_000_000) {
            let time = Timestamp { seconds, nanos: 0 };
            prop_assert_eq!(Timestamp::parse(&time.to_seconds()), Ok(time));
        }

        #[test]
        fn reading_never_panics(text in "\\PC{0,40}") {
            drop(Timestamp::parse(&text));
        }
    }
}
