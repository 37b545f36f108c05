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
    /// Indexes that may be lost, where each has a limit of its own.
    pub lost_max: Option<i64>,
    /// Whether every success has a number of its own.
    pub indexed: bool,
    /// Whether nothing may run.
    pub suspended: bool,
    /// Whether a pod on its way out is replaced only when it has ended.
    pub patient: bool,
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
    /// Indexes that failed for good.
    pub lost: BTreeSet<i64>,
    /// Indexes that have an active pod.
    pub running: BTreeSet<i64>,
    /// Indexes that have a pod on its way out.
    pub going: BTreeSet<i64>,
    /// Indexes that wait after a failure.
    pub resting: BTreeSet<i64>,
}

/// Why a Job has failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// More failures than it bears.
    BackoffLimit,
    /// More lost indexes than it bears.
    LostMax,
    /// All indexes have ended, some of them lost.
    Lost,
}

impl Why {
    /// Reason and message as conditions have them.
    pub fn told(self) -> (&'static str, &'static str) {
        match self {
            Self::BackoffLimit => (
                "BackoffLimitExceeded",
                "Job has reached the specified backoff limit",
            ),
            Self::LostMax => (
                "MaxFailedIndexesExceeded",
                "Job has exceeded the specified maximal number of failed indexes",
            ),
            Self::Lost => ("FailedIndexes", "Job has failed indexes"),
        }
    }
}

/// The next thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// The Job has succeeded; active pods are surplus.
    Complete,
    /// It has failed; active pods go.
    Fail(Why),
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
    let size = |set: &BTreeSet<i64>| i64::try_from(set.len()).unwrap_or(i64::MAX);
    let successes = if wanted.indexed {
        size(&progress.done)
    } else {
        progress.succeeded
    };
    if let Some(why) = failure(wanted, progress, successes) {
        return Step::Fail(why);
    }
    match wanted.completions {
        Some(needed) if successes >= needed => return Step::Complete,
        None if successes > 0 && progress.active == 0 => return Step::Complete,
        _ => {}
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
    let leaving = if wanted.patient { progress.leaving } else { 0 };
    let missing = target - progress.active - leaving;
    if missing <= 0 {
        return Step::Wait;
    }
    if !wanted.indexed {
        return Step::Start(count(missing), Vec::new());
    }
    let free = |index: &i64| {
        let taken = [
            &progress.done,
            &progress.lost,
            &progress.running,
            &progress.resting,
        ];
        let going = wanted.patient && progress.going.contains(index);
        !going && taken.iter().all(|set| !set.contains(index))
    };
    let indexes: Vec<i64> = (0..wanted.completions.unwrap_or(0))
        .filter(free)
        .take(count(missing))
        .collect();
    if indexes.is_empty() {
        Step::Wait
    } else {
        Step::Start(indexes.len(), indexes)
    }
}

fn failure(wanted: Wanted, progress: &Progress, successes: i64) -> Option<Why> {
    let lost = i64::try_from(progress.lost.len()).unwrap_or(i64::MAX);
    if progress.failed > wanted.backoff_limit {
        Some(Why::BackoffLimit)
    } else if wanted.lost_max.is_some_and(|max| lost > max) {
        Some(Why::LostMax)
    } else if lost > 0
        && wanted
            .completions
            .is_some_and(|all| lost + successes >= all)
    {
        Some(Why::Lost)
    } else {
        None
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
        lost_max: None,
        indexed: false,
        suspended: false,
        patient: false,
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
        assert_eq!(next(WANTED, &at(2, 0, 2)), Step::Fail(Why::BackoffLimit));
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
    fn a_pod_on_its_way_out_is_replaced_at_once_or_when_it_has_ended() {
        let leaving = Progress {
            leaving: 2,
            ..at(0, 0, 0)
        };
        assert_eq!(next(WANTED, &leaving), Step::Start(2, Vec::new()));
        let patient = Wanted {
            patient: true,
            ..WANTED
        };
        assert_eq!(next(patient, &leaving), Step::Wait);
    }

    #[test]
    fn lost_indexes_fail_the_job_at_its_end_or_beyond_their_limit() {
        let wanted = Wanted {
            indexed: true,
            backoff_limit: i64::MAX,
            lost_max: Some(1),
            ..WANTED
        };
        let so_far = |done: &[i64], lost: &[i64]| Progress {
            done: done.iter().copied().collect(),
            lost: lost.iter().copied().collect(),
            ..Progress::default()
        };
        assert_eq!(next(wanted, &so_far(&[0], &[1])), Step::Start(1, vec![2]));
        assert_eq!(next(wanted, &so_far(&[0, 2], &[1])), Step::Fail(Why::Lost));
        assert_eq!(
            next(wanted, &so_far(&[], &[1, 2])),
            Step::Fail(Why::LostMax)
        );
    }

    #[test]
    fn a_resting_index_lets_others_pass() {
        let wanted = Wanted {
            indexed: true,
            ..WANTED
        };
        let resting = Progress {
            resting: [0].into(),
            ..Progress::default()
        };
        assert_eq!(next(wanted, &resting), Step::Start(2, vec![1, 2]));
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

        /// With a limit for each index, every index is tried as often as it may
        /// be, and the Job fails just if one of them is lost.
        #[test]
        fn every_index_has_its_own_limit(
            parallelism in 1..4_i64, completions in 1..8_i64, limit in 0..3_i64,
            ends in prop::collection::vec(any::<bool>(), 64),
        ) {
            let wanted = Wanted {
                parallelism, completions: Some(completions), backoff_limit: i64::MAX, indexed: true, ..WANTED
            };
            let (mut progress, mut ends) = (Progress::default(), ends.into_iter());
            let mut failures = std::collections::BTreeMap::<i64, i64>::new();
            loop {
                match next(wanted, &progress) {
                    Step::Start(_, indexes) => {
                        for index in indexes {
                            prop_assert!(progress.running.insert(index));
                            progress.active += 1;
                        }
                        prop_assert!(progress.active <= parallelism);
                    }
                    Step::Wait => {
                        let index = progress.running.pop_first().unwrap();
                        progress.active -= 1;
                        if ends.next().unwrap_or(true) {
                            progress.done.insert(index);
                        } else {
                            let failures = failures.entry(index).or_default();
                            *failures += 1;
                            if *failures > limit {
                                progress.lost.insert(index);
                            }
                        }
                    }
                    Step::Complete => {
                        prop_assert!(progress.lost.is_empty());
                        break;
                    }
                    Step::Fail(why) => {
                        prop_assert_eq!(why, Why::Lost);
                        prop_assert!(!progress.lost.is_empty() && progress.active == 0);
                        break;
                    }
                    Step::Stop(_) => prop_assert!(false, "nothing is surplus"),
                }
            }
            prop_assert!(failures.values().all(|n| *n <= limit + 1));
        }

        /// However pods end, a Job ends, and never runs more than it may.
        #[test]
        fn every_job_comes_to_an_end(
            parallelism in 1..6_i64, completions in 1..12_i64, backoff_limit in 0..5_i64,
            indexed: bool, ends in prop::collection::vec(any::<bool>(), 64),
        ) {
            let wanted = Wanted { parallelism, completions: Some(completions), backoff_limit, indexed, ..WANTED };
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
                    Step::Fail(_) => {
                        prop_assert_eq!(progress.failed, backoff_limit + 1);
                        break;
                    }
                }
            }
        }
    }
}
