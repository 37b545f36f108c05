//! A Job as one look sees it: its pods, their failures, and the status to be.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use super::{FAILURES, IGNORED, INDEX, Job, TRACKING, condition, policy::Failure};
use crate::controller::{
    batch::plan::{self, Progress, Wanted},
    runtime::object::Pod,
};

pub(super) struct View {
    pub(super) job: Job,
    pub(super) pods: Vec<Pod>,
    pub(super) status: Value,
    pub(super) now: Timestamp,
    /// What the policy says of failed pods, by UID; those not here count.
    pub(super) failures: BTreeMap<String, Failure>,
}

/// The last failed attempt at an index that has a limit of its own.
#[derive(Clone, Debug)]
pub(super) struct Attempt {
    uid: String,
    /// Failures of the index, this one included.
    pub(super) failures: i64,
    /// Failures that do not count.
    pub(super) ignored: i64,
    ended: Timestamp,
    /// Whether there is to be no further attempt.
    last: bool,
}

pub(super) fn index_of(pod: &Pod) -> Option<i64> {
    pod.metadata.number(INDEX)
}

/// When a pod ended, as well as one can tell.
pub(super) fn ended_at(pod: &Pod) -> Timestamp {
    let ready = pod.condition("Ready");
    let ready = ready.and_then(|c| c.last_transition_time.as_ref());
    ready.map_or(pod.metadata.born(), |time| time.0)
}

impl View {
    pub(super) fn wanted(&self) -> Wanted {
        let spec = &self.job.spec;
        Wanted {
            parallelism: spec.parallelism.unwrap_or(1),
            completions: spec.completions,
            backoff_limit: spec.backoff_limit.unwrap_or(6),
            lost_max: spec.max_failed_indexes,
            indexed: spec.completion_mode == "Indexed",
            suspended: spec.suspend,
            patient: spec.pod_replacement_policy == "Failed",
        }
    }

    fn count(&self, field: &str) -> i64 {
        self.status[field].as_i64().unwrap_or(0)
    }

    fn indexes(&self, field: &str) -> BTreeSet<i64> {
        let text = self.status[field].as_str().unwrap_or_default();
        plan::parse_ranges(text, self.job.spec.completions.unwrap_or(0))
    }

    /// Indexes that ended well.
    pub(super) fn done(&self) -> BTreeSet<i64> {
        self.indexes("completedIndexes")
    }

    /// Indexes that failed for good.
    pub(super) fn lost(&self) -> BTreeSet<i64> {
        let mut lost = self.indexes("failedIndexes");
        let attempts = self.attempts();
        lost.extend(
            attempts
                .iter()
                .filter(|(_, attempt)| attempt.last)
                .map(|(index, _)| *index),
        );
        lost
    }

    /// Whether it is decided how the Job ends.
    pub(super) fn is_ending(&self) -> bool {
        ["SuccessCriteriaMet", "FailureTarget"]
            .iter()
            .any(|kind| condition(&self.status, kind).is_some())
    }

    /// Whether a pod counts as failed: at once when it is on its way out, or,
    /// if the Job is patient, when it has ended.
    pub(super) fn has_failed(&self, pod: &Pod) -> bool {
        let leaving = pod.metadata.deleting() && !pod.is_over();
        let at_once = !self.wanted().patient || pod.spec.node_name.is_empty() || self.is_ending();
        pod.status.phase == "Failed" || (leaving && at_once)
    }

    /// What the failure of a pod means.
    pub(super) fn failure(&self, pod: &Pod) -> &Failure {
        self.failures
            .get(&pod.metadata.uid)
            .unwrap_or(&Failure::Counts)
    }

    /// Whether the index of an indexed Job's pod is one of the Job's.
    pub(super) fn has_place(&self, pod: &Pod) -> bool {
        let all = self.job.spec.completions.unwrap_or(0);
        !self.wanted().indexed || index_of(pod).is_some_and(|index| (0..all).contains(&index))
    }

    /// Ended pods that are to be counted now. The last failed pod of an index
    /// with a limit of its own remembers the failures until it is replaced.
    pub(super) fn uncounted(&self) -> Vec<&Pod> {
        let kept: BTreeSet<String> = self.kept().into_values().map(|kept| kept.uid).collect();
        self.pods
            .iter()
            .filter(|pod| pod.metadata.has_finalizer(TRACKING))
            .filter(|pod| pod.status.phase == "Succeeded" || self.has_failed(pod))
            .filter(|pod| !kept.contains(&pod.metadata.uid))
            .collect()
    }

    /// The last failed attempt at each index, where indexes have limits.
    pub(super) fn attempts(&self) -> BTreeMap<i64, Attempt> {
        let mut attempts = BTreeMap::<i64, Attempt>::new();
        let Some(limit) = self.job.spec.backoff_limit_per_index else {
            return attempts;
        };
        let failed = self.pods.iter().filter(|pod| {
            pod.metadata.has_finalizer(TRACKING) && self.has_failed(pod) && self.has_place(pod)
        });
        for pod in failed {
            let Some(index) = index_of(pod) else { continue };
            let before = |annotation| pod.metadata.number(annotation).unwrap_or(0);
            let failure = self.failure(pod);
            let counts = i64::from(*failure != Failure::Ignored);
            let attempt = Attempt {
                uid: pod.metadata.uid.clone(),
                failures: before(FAILURES) + counts,
                ignored: before(IGNORED) + 1 - counts,
                ended: ended_at(pod),
                last: *failure == Failure::FailsIndex || (counts == 1 && before(FAILURES) >= limit),
            };
            let age = |attempt: &Attempt| attempt.failures + attempt.ignored;
            match attempts.get(&index) {
                Some(known) if age(known) >= age(&attempt) => {}
                _ => drop(attempts.insert(index, attempt)),
            }
        }
        attempts
    }

    /// The attempts that are still to be repeated.
    pub(super) fn kept(&self) -> BTreeMap<i64, Attempt> {
        if self.is_ending() {
            return BTreeMap::new();
        }
        let (done, lost) = (self.done(), self.indexes("failedIndexes"));
        let running: BTreeSet<i64> = self.active().filter_map(index_of).collect();
        let over = |index: &i64| {
            [&done, &lost, &running]
                .iter()
                .any(|set| set.contains(index))
        };
        let mut attempts = self.attempts();
        attempts.retain(|index, attempt| !attempt.last && !over(index));
        attempts
    }

    /// How long each index still waits after a failure.
    pub(super) fn rests(&self) -> BTreeMap<i64, Duration> {
        let rest = |(index, attempt): (i64, Attempt)| {
            let wait = plan::backoff(attempt.failures, attempt.ended, self.now)?;
            Some((index, wait))
        };
        self.kept().into_iter().filter_map(rest).collect()
    }

    pub(super) fn active(&self) -> impl Iterator<Item = &Pod> {
        self.pods.iter().filter(|pod| pod.is_active())
    }

    pub(super) fn leaving(&self) -> impl Iterator<Item = &Pod> {
        let leaving = |pod: &&Pod| pod.metadata.deleting() && !pod.is_over();
        self.pods.iter().filter(leaving)
    }

    /// Active pods of an indexed Job that share an index with another, or
    /// whose index the Job has not, or has had already.
    pub(super) fn misplaced(&self) -> Vec<Pod> {
        if !self.wanted().indexed {
            return Vec::new();
        }
        let mut taken = self.done();
        let fresh = |pod: &&Pod| {
            let index = index_of(pod).filter(|_| self.has_place(pod));
            !index.is_some_and(|index| taken.insert(index))
        };
        self.active().filter(fresh).cloned().collect()
    }

    pub(super) fn progress(&self) -> Progress {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let restarts: i64 = self.active().map(Pod::restarts).sum();
        let restarting = self.job.spec.template["spec"]["restartPolicy"] == "OnFailure";
        Progress {
            active: number(self.active().count()),
            leaving: number(self.leaving().count()),
            succeeded: self.count("succeeded"),
            failed: self.count("failed") + if restarting { restarts } else { 0 },
            done: self.done(),
            lost: self.lost(),
            running: self.active().filter_map(index_of).collect(),
            going: self.leaving().filter_map(index_of).collect(),
            resting: self.rests().into_keys().collect(),
        }
    }

    /// How long new pods wait after failures, where indexes have no limits of
    /// their own.
    pub(super) fn rest(&self) -> Option<Duration> {
        if self.job.spec.backoff_limit_per_index.is_some() {
            return None;
        }
        let ended = |phase: &'static str| {
            let pods = self
                .pods
                .iter()
                .filter(move |pod| pod.status.phase == phase);
            pods.map(ended_at)
        };
        let good = ended("Succeeded").max();
        let bad: Vec<Timestamp> = ended("Failed")
            .filter(|t| good.is_none_or(|g| *t > g))
            .collect();
        let last = bad.iter().max().copied()?;
        plan::backoff(i64::try_from(bad.len()).unwrap_or(i64::MAX), last, self.now)
    }

    /// Seconds until the Job's deadline, if it has one that runs.
    pub(super) fn deadline_left(&self) -> Option<i64> {
        let seconds = self.job.spec.active_deadline_seconds?;
        let started: Timestamp = self.status["startTime"].as_str()?.parse().ok()?;
        let left = started.as_second() + seconds - self.now.as_second();
        (!self.job.spec.suspend).then_some(left)
    }
}
