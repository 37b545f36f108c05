//! Cron schedules: five fields, or one of the `@` names, as upstream reads
//! them, and the times they mean. Pure.

use jiff::tz::TimeZone;
use thiserror::Error;

mod next;

/// A schedule that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ScheduleError {
    #[error("expected exactly 5 fields, found {found}: [{text}]")]
    Fields { found: usize, text: String },
    #[error("failed to parse int from {0}")]
    Number(String),
    #[error("too many slashes: {0}")]
    Slashes(String),
    #[error("too many hyphens: {0}")]
    Hyphens(String),
    #[error("end of range ({end}) above maximum ({max}): {text}")]
    AboveMaximum { end: u32, max: u32, text: String },
    #[error("beginning of range ({start}) below minimum ({min}): {text}")]
    BelowMinimum { start: u32, min: u32, text: String },
    #[error("beginning of range ({start}) beyond end of range ({end}): {text}")]
    Backwards { start: u32, end: u32, text: String },
    #[error("step of range should be a positive number: {0}")]
    Step(String),
    #[error("unrecognized descriptor: {0}")]
    Descriptor(String),
    #[error("failed to parse duration {0}")]
    Duration(String),
}

/// When something happens. Each set has bit N for the value N; a week starts on Sunday, 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    At {
        minutes: u64,
        hours: u64,
        days: u64,
        months: u64,
        weekdays: u64,
        /// Days of the month are all of them: only the weekday decides.
        any_day: bool,
        /// Weekdays are all of them: only the day of the month decides.
        any_weekday: bool,
    },
    /// Every so many seconds, at least one.
    Every(u64),
}

const MONTHS: [&str; 12] = [
    "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"];

/// The values a field may have, and their names from the first value on.
struct Range {
    min: u32,
    max: u32,
    names: &'static [&'static str],
}

impl Schedule {
    /// Reads a schedule.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        if let Some(name) = text.strip_prefix('@') {
            return descriptor(name);
        }
        let fields: Vec<&str> = text.split_whitespace().collect();
        let &[minutes, hours, days, months, weekdays] = fields.as_slice() else {
            return Err(ScheduleError::Fields {
                found: fields.len(),
                text: text.to_owned(),
            });
        };
        let plain = |min, max| Range {
            min,
            max,
            names: &[],
        };
        let any = |field: &str| {
            field
                .split(',')
                .any(|part| matches!(part, "*" | "?" | "*/1" | "?/1"))
        };
        Ok(Self::At {
            minutes: set(minutes, &plain(0, 59))?,
            hours: set(hours, &plain(0, 23))?,
            days: set(days, &plain(1, 31))?,
            months: set(
                months,
                &Range {
                    min: 1,
                    max: 12,
                    names: &MONTHS,
                },
            )?,
            weekdays: set(
                weekdays,
                &Range {
                    min: 0,
                    max: 6,
                    names: &WEEKDAYS,
                },
            )?,
            any_day: any(days),
            any_weekday: any(weekdays),
        })
    }
}

/// The time zone of this IANA name, in its exact spelling. The zones are built
/// in, so that every machine judges a name alike.
pub fn zone(name: &str) -> Option<TimeZone> {
    let zone = TimeZone::get(name).ok()?;
    (zone.iana_name() == Some(name)).then_some(zone)
}

fn descriptor(name: &str) -> Result<Schedule, ScheduleError> {
    let fields = match name {
        "yearly" | "annually" => "0 0 1 1 *",
        "monthly" => "0 0 1 * *",
        "weekly" => "0 0 * * 0",
        "daily" | "midnight" => "0 0 * * *",
        "hourly" => "0 * * * *",
        _ => {
            let Some(duration) = name.strip_prefix("every ") else {
                return Err(ScheduleError::Descriptor(format!("@{name}")));
            };
            let wrong = || ScheduleError::Duration(format!("@{name}"));
            let seconds = seconds(duration).ok_or_else(wrong)?;
            return Ok(Schedule::Every(seconds.max(1)));
        }
    };
    Schedule::parse(fields)
}

/// A duration such as `1h30m`, in seconds.
fn seconds(mut text: &str) -> Option<u64> {
    let mut total: u64 = 0;
    if text.is_empty() {
        return None;
    }
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let number: u64 = number.parse().ok()?;
        let (unit, rest) = rest.split_at(
            rest.find(|c: char| c.is_ascii_digit())
                .unwrap_or(rest.len()),
        );
        let worth = match unit {
            "h" => 3600,
            "m" => 60,
            "s" => 1,
            "ms" | "us" | "ns" => 0,
            _ => return None,
        };
        total = total.checked_add(number.checked_mul(worth)?)?;
        text = rest;
    }
    Some(total)
}

fn set(field: &str, range: &Range) -> Result<u64, ScheduleError> {
    field
        .split(',')
        .filter(|part| !part.is_empty())
        .try_fold(0, |set, part| Ok(set | part_set(part, range)?))
}

fn part_set(part: &str, range: &Range) -> Result<u64, ScheduleError> {
    let text = || part.to_owned();
    let (span, step) = match part.split('/').collect::<Vec<_>>().as_slice() {
        [span] => (*span, None),
        [span, step] => (*span, Some(*step)),
        _ => return Err(ScheduleError::Slashes(text())),
    };
    let (start, end) = match span.split('-').collect::<Vec<_>>().as_slice() {
        ["*" | "?"] => (range.min, range.max),
        [single] => {
            let value = value(single, range)?;
            // "3/15" means from 3 to the end.
            (value, if step.is_some() { range.max } else { value })
        }
        [start, end] => (value(start, range)?, value(end, range)?),
        _ => return Err(ScheduleError::Hyphens(text())),
    };
    let step = match step {
        None => 1,
        Some(step) => step
            .parse::<u32>()
            .map_err(|_error| ScheduleError::Number(step.to_owned()))?,
    };
    if start < range.min {
        return Err(ScheduleError::BelowMinimum {
            start,
            min: range.min,
            text: text(),
        });
    }
    if end > range.max {
        return Err(ScheduleError::AboveMaximum {
            end,
            max: range.max,
            text: text(),
        });
    }
    if start > end {
        return Err(ScheduleError::Backwards {
            start,
            end,
            text: text(),
        });
    }
    let step = usize::try_from(step).ok().filter(|step| *step > 0);
    let step = step.ok_or_else(|| ScheduleError::Step(text()))?;
    Ok((start..=end)
        .step_by(step)
        .fold(0, |set, value| set | 1 << value))
}

fn value(text: &str, range: &Range) -> Result<u32, ScheduleError> {
    let lower = text.to_ascii_lowercase();
    if let Some(at) = range.names.iter().position(|name| *name == lower) {
        return u32::try_from(at)
            .map(|at| at + range.min)
            .map_err(|_error| ScheduleError::Number(lower));
    }
    text.parse()
        .map_err(|_error| ScheduleError::Number(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn schedules_are_read_field_by_field() {
        assert_eq!(
            Schedule::parse("*/15 9-17 1,15 jan-mar MON"),
            Ok(Schedule::At {
                minutes: 1 | 1 << 15 | 1 << 30 | 1 << 45,
                hours: (9..=17).fold(0, |set, hour| set | 1 << hour),
                days: 1 << 1 | 1 << 15,
                months: 0b1110,
                weekdays: 0b10,
                any_day: false,
                any_weekday: false,
            })
        );
        assert_eq!(Schedule::parse("@hourly"), Schedule::parse("0 * * * *"));
        assert_eq!(Schedule::parse("@every 1h30m"), Ok(Schedule::Every(5400)));
    }

    #[test]
    fn nonsense_is_refused_in_upstreams_words() {
        for (text, why) in [
            ("* * * *", "expected exactly 5 fields, found 4: [* * * *]"),
            ("60 * * * *", "end of range (60) above maximum (59): 60"),
            ("* * 0 * *", "beginning of range (0) below minimum (1): 0"),
            (
                "5-3 * * * *",
                "beginning of range (5) beyond end of range (3): 5-3",
            ),
            (
                "*/0 * * * *",
                "step of range should be a positive number: */0",
            ),
            ("a * * * *", "failed to parse int from a"),
            ("@fortnightly", "unrecognized descriptor: @fortnightly"),
        ] {
            let error = Schedule::parse(text).expect_err("refused");
            assert_eq!(error.to_string(), why);
        }
    }

    proptest! {
        #[test]
        fn reading_never_panics(text in "[0-9*/,@a-z -]{0,40}") {
            drop(Schedule::parse(&text));
        }
    }
}
