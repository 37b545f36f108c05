//! The arithmetic of a Job: what has ended well, what to start. Pure.

use std::{collections::BTreeSet, time::Duration};

use jiff::Timestamp;

/// First wait after a failure; doubles each time.
const BACKOFF_FIRST: i64 = 10;
/// Longest wait after failures.
const BACKOFF_MAX: i64 = 360;

/// What a Job asks for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// Pods at a time.
    pub parallelism: i64,
    /// Successes needed; `None` is one success of any, then no new pods.
    pub completions: Option<i64>,
    /// Failures that are borne.
    pub backoff_limit: i64,
    /// Whether every success has a number of its own.
    pub indexed: bool,
    /// Whether nothing may run.
    pub suspended: bool,
}

/// How far it is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Pods that neither ended nor are on their way out.
    pub active: i64,
    /// Pods on their way out.
    pub leaving: i64,
    /// Pods that ended well.
    pub succeeded: i64,
    /// Pods that did not.
    pub failed: i64,
    /// Indexes that ended well.
    pub done: BTreeSet<i64>,
    /// Indexes that have an active pod.
    pub running: BTreeSet<i64>,
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The Job has succeeded; active pods are surplus.
    Complete,
    /// Too many failures; active pods go.
    TooManyFailures,
    /// This many pods more, for indexed Jobs with these indexes.
    Start(usize, Vec<i64>),
    /// This many pods fewer.
    Stop(usize),
    /// Nothing.
    Wait,
}

fn count(n: i64) -> usize {
    usize::try_from(n).unwrap_or(0)
}

/// Decides.
pub fn next(wanted: Wanted, progress: &Progress) -> Step {
    let successes = if wanted.indexed {
        i64::try_from(progress.done.len()).unwrap_or(i64::MAX)
    } else {
        progress.succeeded
    };
    match wanted.completions {
        Some(needed) if successes >= needed => return Step::Complete,
        None if successes > 0 && progress.active == 0 => return Step::Complete,
        _ => {}
    }
    if progress.failed > wanted.backoff_limit {
        return Step::TooManyFailures;
    }
    if wanted.suspended {
        return if progress.active > 0 {
            Step::Stop(count(progress.active))
        } else {
            Step::Wait
        };
    }
    let target = match wanted.completions {
        Some(needed) => wanted.parallelism.min(needed - successes),
        // After the first success of a queue of work nothing new is started.
        None if successes > 0 => progress.active.min(wanted.parallelism),
        None => wanted.parallelism,
    };
    if progress.active > target {
        return Step::Stop(count(progress.active - target));
    }
    // A pod on its way out still counts: its work may still be done.
    let missing = target - progress.active - progress.leaving;
    if missing <= 0 {
        return Step::Wait;
    }
    let indexes: Vec<i64> = if wanted.indexed {
        (0..wanted.completions.unwrap_or(0))
            .filter(|index| !progress.done.contains(index) && !progress.running.contains(index))
            .take(count(missing))
            .collect()
    } else {
        Vec::new()
    };
    let number = if wanted.indexed {
        indexes.len()
    } else {
        count(missing)
    };
    if number == 0 {
        Step::Wait
    } else {
        Step::Start(number, indexes)
    }
}

/// How long to wait after `failures` in a row, the last at `last`.
pub fn backoff(failures: i64, last: Timestamp, now: Timestamp) -> Option<Duration> {
    if failures <= 0 {
        return None;
    }
    let doubled = u32::try_from(failures - 1).unwrap_or(u32::MAX).min(16);
    let wait = (BACKOFF_FIRST << doubled).min(BACKOFF_MAX);
    let left = last.as_second() + wait - now.as_second();
    u64::try_from(left)
        .ok()
        .filter(|left| *left > 0)
        .map(Duration::from_secs)
}

/// `0,2-4,7`: indexes as a status holds them.
pub fn ranges(indexes: &BTreeSet<i64>) -> String {
    let mut parts: Vec<(i64, i64)> = Vec::new();
    for &index in indexes {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == index => *last = index,
            _ => parts.push((index, index)),
        }
    }
    let text = parts.into_iter().map(|(first, last)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    });
    text.collect::<Vec<_>>().join(",")
}

/// Reads what [`ranges`] writes; indexes from `end` on, and what is no range,
/// are left out.
pub fn parse_ranges(text: &str, end: i64) -> BTreeSet<i64> {
    let part = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: i64 = first.parse().ok()?;
        let last: i64 = last.parse().ok()?;
        (first >= 0).then(|| first..=last.min(end - 1))
    };
    text.split(',').filter_map(part).flatten().collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WANTED: Wanted = Wanted {
        parallelism: 2,
        completions: Some(3),
        backoff_limit: 1,
        indexed: false,
        suspended: false,
    };

    fn at(active: i64, succeeded: i64, failed: i64) -> Progress {
        Progress {
            active,
            succeeded,
            failed,
            ..Progress::default()
        }
    }

    #[test]
    fn a_job_starts_no_more_than_it_needs() {
        assert_eq!(next(WANTED, &at(0, 0, 0)), Step::Start(2, Vec::new()));
        assert_eq!(next(WANTED, &at(1, 2, 0)), Step::Wait);
        assert_eq!(next(WANTED, &at(0, 2, 1)), Step::Start(1, Vec::new()));
        assert_eq!(next(WANTED, &at(0, 3, 0)), Step::Complete);
        assert_eq!(next(WANTED, &at(2, 0, 2)), Step::TooManyFailures);
        let suspended = Wanted {
            suspended: true,
            ..WANTED
        };
        assert_eq!(next(suspended, &at(2, 0, 0)), Step::Stop(2));
    }

    #[test]
    fn a_queue_of_work_starts_nothing_after_the_first_success() {
        let queue = Wanted {
            completions: None,
            ..WANTED
        };
        assert_eq!(next(queue, &at(1, 0, 0)), Step::Start(1, Vec::new()));
        assert_eq!(next(queue, &at(1, 1, 0)), Step::Wait);
        assert_eq!(next(queue, &at(0, 1, 0)), Step::Complete);
    }

    #[test]
    fn failures_wait_longer_up_to_six_minutes() {
        let now = Timestamp::from_second(1000).unwrap();
        assert_eq!(backoff(0, now, now), None);
        for (failures, wait) in [(1, 10), (2, 20), (5, 160), (6, 320), (7, 360), (99, 360)] {
            assert_eq!(backoff(failures, now, now), Some(Duration::from_secs(wait)));
        }
        assert_eq!(backoff(1, Timestamp::from_second(980).unwrap(), now), None);
    }

    proptest! {
        #[test]
        fn ranges_say_what_they_mean(indexes in prop::collection::btree_set(0..60_i64, 0..40)) {
            prop_assert_eq!(parse_ranges(&ranges(&indexes), 60), indexes);
        }

        /// However pods end, a Job ends, and never runs more than it may.
        #[test]
        fn every_job_comes_to_an_end(
            parallelism in 1..6_i64, completions in 1..12_i64, backoff_limit in 0..5_i64,
            indexed: bool, ends in prop::collection::vec(any::<bool>(), 64),
        ) {
            let wanted = Wanted { parallelism, completions: Some(completions), backoff_limit, indexed, suspended: false };
            let mut progress = Progress::default();
            let mut ends = ends.into_iter();
            loop {
                match next(wanted, &progress) {
                    Step::Start(count, indexes) => {
                        progress.active += i64::try_from(count).unwrap();
                        prop_assert!(!indexed || indexes.len() == count);
                        progress.running.extend(indexes);
                        prop_assert!(progress.active <= parallelism);
                        prop_assert!(progress.active + progress.succeeded <= completions);
                    }
                    Step::Wait => {
                        prop_assert!(progress.active > 0);
                        let index = progress.running.pop_first();
                        progress.active -= 1;
                        if ends.next().unwrap_or(true) {
                            progress.succeeded += 1;
                            progress.done.extend(index);
                        } else {
                            progress.failed += 1;
                        }
                    }
                    Step::Stop(_) => prop_assert!(false, "nothing is surplus"),
                    Step::Complete => {
                        prop_assert_eq!(progress.succeeded, completions);
                        break;
                    }
                    Step::TooManyFailures => {
                        prop_assert_eq!(progress.failed, backoff_limit + 1);
                        break;
                    }
                }
            }
        }
    }
}
