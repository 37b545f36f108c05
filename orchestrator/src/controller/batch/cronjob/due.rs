//! When a CronJob is due and what its policy then says. Pure.

use std::time::Duration;

use jiff::{Timestamp, tz::TimeZone};

use crate::schedule::Schedule;

/// More missed times than this are told as a warning.
const MISSED_MAX: i64 = 100;
/// Waking a little late is better than a little early.
const LATE: Duration = Duration::from_millis(100);

/// What a CronJob asks for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// When.
    pub schedule: Schedule,
    /// On the clocks of this zone.
    pub zone: TimeZone,
    /// How long after its time a job may still start.
    pub deadline: Option<i64>,
    /// What to do if others still run.
    pub policy: Policy,
}

/// What happens if a job is due while others run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    /// It runs as well.
    Allow,
    /// It does not run.
    Forbid,
    /// It takes their place.
    Replace,
}

impl Policy {
    /// From `spec.concurrencyPolicy`.
    pub fn of(text: &str) -> Self {
        match text {
            "Forbid" => Self::Forbid,
            "Replace" => Self::Replace,
            _ => Self::Allow,
        }
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug)]
pub struct Past {
    /// Birth of the CronJob.
    pub born: Timestamp,
    /// The last time for which a job was made.
    pub last: Option<Timestamp>,
    /// Jobs that run.
    pub active: usize,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing is due.
    Wait,
    /// The job of this time was made already.
    Made,
    /// It is too late for this time.
    Missed(Timestamp),
    /// Another one runs.
    Forbidden,
    /// Make the job of this time; if `replace`, after deleting those that run.
    Start {
        /// The scheduled time.
        time: Timestamp,
        /// Whether the running ones go.
        replace: bool,
    },
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// What to do.
    pub step: Step,
    /// Whether so many times were missed that something must be wrong.
    pub many_missed: bool,
    /// When to look again; `None` if the schedule has no further time.
    pub again: Option<Duration>,
}

/// Decides. Of several missed times only the last is made up for.
pub fn decide(wanted: &Wanted, past: Past, now: Timestamp) -> Decision {
    let (schedule, zone) = (&wanted.schedule, &wanted.zone);
    let since = past.last.unwrap_or(past.born);
    let next = schedule.next(schedule.latest(since, now, zone).unwrap_or(since), zone);
    let mut decision = Decision {
        step: Step::Wait,
        many_missed: false,
        again: next
            .map(|next| Duration::try_from(next.duration_since(now)).unwrap_or_default() + LATE),
    };
    let Some(time) = schedule.latest(since, now, zone) else {
        return decision;
    };
    // A deadline looks back no further than it reaches.
    let earliest = wanted
        .deadline
        .and_then(|seconds| Timestamp::from_second(now.as_second().checked_sub(seconds)?).ok())
        .map_or(since, |earliest| earliest.max(since));
    decision.many_missed = missed(wanted, earliest, now) > MISSED_MAX;
    let over = |seconds: i64| now.as_second() - time.as_second() > seconds;
    decision.step = if wanted.deadline.is_some_and(over) {
        Step::Missed(time)
    } else if past.last == Some(time) {
        Step::Made
    } else if wanted.policy == Policy::Forbid && past.active > 0 {
        Step::Forbidden
    } else {
        let replace = wanted.policy == Policy::Replace;
        Step::Start { time, replace }
    };
    decision
}

/// About how many times lie between, by the distance of the first two.
fn missed(wanted: &Wanted, since: Timestamp, now: Timestamp) -> i64 {
    let first = wanted.schedule.next(since, &wanted.zone);
    let second = first.and_then(|first| wanted.schedule.next(first, &wanted.zone));
    let (Some(first), Some(second)) = (first, second) else {
        return i64::from(first.is_some());
    };
    let gap = (second.as_second() - first.as_second()).max(1);
    (now.as_second() - first.as_second()).div_euclid(gap) + 1
}

/// Name of the job of a time: a second attempt makes no second job.
pub fn job_name(cron_job: &str, time: Timestamp) -> String {
    format!("{cron_job}-{}", time.as_second().div_euclid(60))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn wanted(policy: Policy, deadline: Option<i64>) -> Wanted {
        Wanted {
            schedule: Schedule::parse("*/5 * * * *").unwrap(),
            zone: TimeZone::UTC,
            deadline,
            policy,
        }
    }

    const PAST: Past = Past {
        born: Timestamp::UNIX_EPOCH,
        last: None,
        active: 0,
    };

    fn start(time: i64, replace: bool) -> Step {
        Step::Start {
            time: at(time),
            replace,
        }
    }

    #[test]
    fn nothing_is_due_before_the_first_time_and_the_next_look_is_just_after_it() {
        let decision = decide(&wanted(Policy::Allow, None), PAST, at(100));
        assert_eq!(decision.step, Step::Wait);
        assert_eq!(decision.again, Some(Duration::from_secs(200) + LATE));
    }

    #[test]
    fn of_many_missed_times_the_last_is_made_up_for_and_too_many_are_told() {
        let few = decide(&wanted(Policy::Allow, None), PAST, at(1000));
        assert_eq!((few.step, few.many_missed), (start(900, false), false));
        let many = decide(&wanted(Policy::Allow, None), PAST, at(300 * 102));
        assert_eq!(
            (many.step, many.many_missed),
            (start(300 * 102, false), true)
        );
        let bound = decide(&wanted(Policy::Allow, Some(400)), PAST, at(300 * 102));
        assert!(!bound.many_missed);
    }

    #[test]
    fn a_time_beyond_its_deadline_is_left_out() {
        let late = decide(&wanted(Policy::Allow, Some(10)), PAST, at(311));
        assert_eq!(late.step, Step::Missed(at(300)));
        let on_time = decide(&wanted(Policy::Allow, Some(10)), PAST, at(309));
        assert_eq!(on_time.step, start(300, false));
    }

    #[test]
    fn running_jobs_forbid_or_are_replaced() {
        let past = Past { active: 1, ..PAST };
        let step = |policy| decide(&wanted(policy, None), past, at(300)).step;
        assert_eq!(step(Policy::Allow), start(300, false));
        assert_eq!(step(Policy::Forbid), Step::Forbidden);
        assert_eq!(step(Policy::Replace), start(300, true));
    }

    proptest! {
        /// Looked at whenever it asks, and at random besides, a CronJob makes
        /// every job once and in order.
        #[test]
        fn every_time_gets_one_job(looks in prop::collection::vec(1..200_i64, 1..60)) {
            let wanted = wanted(Policy::Allow, Some(60));
            let (mut past, mut now, mut made) = (PAST, 0, Vec::new());
            let mut due = i64::MAX;
            for wait in looks {
                now = (now + wait).min(due);
                let decision = decide(&wanted, past, at(now));
                if let Step::Start { time, .. } = decision.step {
                    made.push(time.as_second());
                    past.last = Some(time);
                }
                let again = decision.again.unwrap();
                prop_assert!(again > LATE); let wait = again.checked_sub(LATE).unwrap();
                due = now + i64::try_from(wait.as_secs()).unwrap();
            }
            let expected: Vec<i64> = (1..=now / 300).map(|turn| turn * 300).collect();
            prop_assert_eq!(made, expected);
        }
    }
}
