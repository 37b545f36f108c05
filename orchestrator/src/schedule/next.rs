//! From a schedule to the instants it means.
//!
//! An instant is meant if the clock on the wall of the time zone then shows a
//! minute of the schedule. So a time that the wall clock leaps over does not
//! come that day, and one that it shows twice comes twice, as upstream has it.

use jiff::{SignedDuration, Timestamp, ToSpan as _, Zoned, tz::TimeZone};

use super::Schedule;

/// A schedule without a time for so long has none: `0 0 30 2 *`.
const HORIZON: SignedDuration = SignedDuration::from_hours(5 * 366 * 24);

impl Schedule {
    /// The first time after `after`; `None` if there is none in five years.
    pub fn next(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Self::Every(seconds) = self {
            let seconds = i64::try_from(*seconds).ok()?;
            return Timestamp::from_second(after.as_second().checked_add(seconds)?).ok();
        }
        let end = after.checked_add(HORIZON).ok()?;
        let mut time = minute(after.as_second().div_euclid(60) + 1)?;
        while time <= end {
            let local = time.to_zoned(zone.clone());
            let Some(unit) = self.mismatch(&local) else {
                return Some(time);
            };
            let skip = unit.next(&local)?;
            // The wall clock may be turned back on the way.
            let turned = zone.following(time).next().map(|turn| turn.timestamp());
            let next = turned.map_or(skip, |turned| turned.min(skip));
            time = next.max(minute(time.as_second().div_euclid(60) + 1)?);
        }
        None
    }

    /// The largest unit in which the wall clock does not show a time of the
    /// schedule; `None` if it shows one.
    fn mismatch(&self, local: &Zoned) -> Option<Unit> {
        let Self::At {
            minutes,
            hours,
            days,
            months,
            weekdays,
            any_day,
            any_weekday,
        } = self
        else {
            return None;
        };
        let has = |set: &u64, value: i8| set >> value & 1 == 1;
        let weekday = has(weekdays, local.weekday().to_sunday_zero_offset());
        let day = has(days, local.day());
        let day = if *any_day || *any_weekday {
            day && weekday
        } else {
            day || weekday
        };
        if !has(months, local.month()) {
            Some(Unit::Month)
        } else if !day {
            Some(Unit::Day)
        } else if !has(hours, local.hour()) {
            Some(Unit::Hour)
        } else if !has(minutes, local.minute()) {
            Some(Unit::Minute)
        } else {
            None
        }
    }

    /// The last time after `since` and not after `until`.
    pub fn latest(&self, since: Timestamp, until: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if let Self::Every(seconds) = self {
            let seconds = i64::try_from(*seconds).ok()?;
            let times = (until.as_second() - since.as_second()).div_euclid(seconds);
            let last = since.as_second() + times * seconds;
            return (times > 0).then(|| Timestamp::from_second(last).ok())?;
        }
        let within = |time: &Timestamp| *time <= until;
        let mut latest = self.next(since, zone).filter(within)?;
        // The next time after some instant only grows with the instant.
        let (mut low, mut high) = (latest.as_second(), until.as_second());
        while low < high {
            let middle = low + (high - low + 1) / 2;
            let next = self.next(Timestamp::from_second(middle).ok()?, zone);
            match next.filter(within) {
                Some(next) => {
                    latest = next;
                    low = next.as_second();
                }
                None => high = middle - 1,
            }
        }
        Some(latest)
    }
}

/// A unit of the wall clock.
#[derive(Clone, Copy)]
enum Unit {
    Month,
    Day,
    Hour,
    Minute,
}

impl Unit {
    /// When the next one begins; `None` at the end of time.
    fn next(self, local: &Zoned) -> Option<Timestamp> {
        let this = local.timestamp().as_second().div_euclid(60);
        match self {
            Self::Month => {
                let month = local.first_of_month().ok()?.checked_add(1.month()).ok()?;
                Some(month.start_of_day().ok()?.timestamp())
            }
            Self::Day => Some(local.tomorrow().ok()?.start_of_day().ok()?.timestamp()),
            Self::Hour => minute(this + 60 - i64::from(local.minute())),
            Self::Minute => minute(this + 1),
        }
    }
}

/// The instant at which this minute since 1970 begins.
fn minute(number: i64) -> Option<Timestamp> {
    Timestamp::from_second(number.checked_mul(60)?).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn check(schedule: &str, zone: &str, after: &str, expected: &[&str]) {
        let (schedule, zone) = (
            Schedule::parse(schedule).unwrap(),
            super::super::zone(zone).unwrap(),
        );
        let mut time = at(after);
        for expected in expected {
            time = schedule.next(time, &zone).unwrap();
            assert_eq!(time, at(expected));
        }
    }

    #[test]
    fn times_are_found_across_hours_months_and_leap_years() {
        let from = "2026-02-27T23:50:30Z";
        check(
            "*/7 * * * *",
            "UTC",
            from,
            &["2026-02-27T23:56:00Z", "2026-02-28T00:00:00Z"],
        );
        check("0 0 29 2 *", "UTC", from, &["2028-02-29T00:00:00Z"]);
        check("@monthly", "UTC", from, &["2026-03-01T00:00:00Z"]);
        check("@every 90m", "UTC", from, &["2026-02-28T01:20:30Z"]);
        let never = Schedule::parse("0 0 30 2 *").unwrap();
        assert_eq!(never.next(at(from), &TimeZone::UTC), None);
    }

    #[test]
    fn a_day_of_the_month_and_a_weekday_are_alternatives() {
        let from = "2026-11-01T12:00:00Z";
        let either = [
            "2026-11-02T00:00:00Z",
            "2026-11-09T00:00:00Z",
            "2026-11-13T00:00:00Z",
        ];
        check("0 0 13 * MON", "UTC", from, &either);
        check(
            "0 0 */1 * MON",
            "UTC",
            from,
            &["2026-11-02T00:00:00Z", "2026-11-09T00:00:00Z"],
        );
    }

    #[test]
    fn a_leaping_clock_leaves_out_or_repeats() {
        // 2026-03-29 has no 02:30 in Berlin, 2026-10-25 has two.
        let berlin = "Europe/Berlin";
        let spring = ["2026-03-28T01:30:00Z", "2026-03-30T00:30:00Z"];
        check("30 2 * * *", berlin, "2026-03-27T12:00:00Z", &spring);
        let autumn = [
            "2026-10-25T00:30:00Z",
            "2026-10-25T01:30:00Z",
            "2026-10-26T01:30:00Z",
        ];
        check("30 2 * * *", berlin, "2026-10-24T12:00:00Z", &autumn);
        // Lord Howe turns back by half an hour.
        let howe = [
            "2026-04-04T14:45:00Z",
            "2026-04-04T15:15:00Z",
            "2026-04-05T15:15:00Z",
        ];
        check(
            "45 1 * * *",
            "Australia/Lord_Howe",
            "2026-04-04T12:00:00Z",
            &howe,
        );
    }

    fn schedules() -> impl Strategy<Value = Schedule> {
        let minutes = prop::sample::select(vec!["*", "*/7", "0", "30,59", "15-20"]);
        let hours = prop::sample::select(vec!["*", "0", "1-3", "*/5", "23"]);
        let days = prop::sample::select(vec!["*", "1", "28-31", "*/10"]);
        let weekdays = prop::sample::select(vec!["*", "SUN", "1-5"]);
        (minutes, hours, days, weekdays).prop_map(|(minutes, hours, days, weekdays)| {
            Schedule::parse(&format!("{minutes} {hours} {days} * {weekdays}")).unwrap()
        })
    }

    /// Goes minute by minute.
    fn naive(
        schedule: &Schedule,
        after: Timestamp,
        until: Timestamp,
        zone: &TimeZone,
    ) -> Vec<Timestamp> {
        let first = after.as_second().div_euclid(60) + 1;
        (first..=until.as_second().div_euclid(60))
            .filter_map(minute)
            .filter(|time| schedule.mismatch(&time.to_zoned(zone.clone())).is_none())
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn going_minute_by_minute_finds_the_same_times(
            schedule in schedules(),
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/Havana", "Australia/Lord_Howe", "Asia/Kathmandu"]),
            // Around a change of clocks in most of them.
            start in 1_774_000_000..1_776_000_000_i64, length in 0..600_000_i64,
        ) {
            let zone = super::super::zone(zone).unwrap();
            let (start, end) = (Timestamp::from_second(start).unwrap(), Timestamp::from_second(start + length).unwrap());
            let expected = naive(&schedule, start, end, &zone);
            let mut found = Vec::new();
            let mut time = start;
            while let Some(next) = schedule.next(time, &zone).filter(|next| *next <= end) {
                found.push(next);
                time = next;
            }
            prop_assert_eq!(&found, &expected);
            prop_assert_eq!(schedule.latest(start, end, &zone), expected.last().copied());
        }
    }
}
