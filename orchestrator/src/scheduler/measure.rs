//! What is measured of the scheduler, under upstream's names.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

/// How often the waiting pods are counted.
pub(super) const LOOK: Duration = Duration::from_secs(1);

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Attempt {
    profile: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Attempts {
    attempts: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Place {
    queue: &'static str,
}

/// The scheduler's measures.
#[derive(Clone, Debug)]
pub struct Measures {
    attempts: Family<Attempt, Counter>,
    taken: Family<Attempt, Histogram>,
    latency: Family<Attempts, Histogram>,
    pending: Family<Place, Gauge>,
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            attempts: Family::default(),
            taken: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.001, 2.0, 15))
            }),
            latency: Family::new_with_constructor(|| {
                Histogram::new(exponential_buckets(0.01, 2.0, 20))
            }),
            pending: Family::default(),
        }
    }
}

impl Measures {
    /// Shows them.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "scheduler_schedule_attempts",
            "Attempts to place a pod, by result",
            self.attempts.clone(),
        );
        registry.register(
            "scheduler_scheduling_attempt_duration_seconds",
            "Time of one attempt, binding included",
            self.taken.clone(),
        );
        registry.register(
            "scheduler_pod_scheduling_sli_duration_seconds",
            "Time between a pod's first being seen and its being bound",
            self.latency.clone(),
        );
        registry.register(
            "scheduler_pending_pods",
            "Waiting pods, by queue",
            self.pending.clone(),
        );
    }
}

/// How an attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Scheduled,
    Unschedulable,
    Error,
}

/// What the scheduler itself keeps: since when each waiting pod waits.
#[derive(Debug)]
pub(super) struct Watch {
    measures: Measures,
    /// One per waiting pod: first seen, attempts, beginning of the last one.
    waiting: HashMap<Arc<str>, (Instant, u32, Instant)>,
    looked: Instant,
    /// Whether the last count may be wrong by now.
    stale: bool,
}

impl Watch {
    pub(super) fn new(measures: Measures) -> Self {
        Self {
            measures,
            waiting: HashMap::new(),
            looked: Instant::now(),
            stale: true,
        }
    }

    /// An attempt begins.
    pub(super) fn attempt(&mut self, key: &Arc<str>) {
        let now = Instant::now();
        let entry = self.waiting.entry(Arc::clone(key)).or_insert((now, 0, now));
        entry.1 = entry.1.saturating_add(1);
        entry.2 = now;
    }

    /// A pod begins to wait, unless it does already.
    pub(super) fn enter(&mut self, key: &Arc<str>) {
        let now = Instant::now();
        self.waiting.entry(Arc::clone(key)).or_insert((now, 0, now));
    }

    /// A pod waits no more.
    pub(super) fn leave(&mut self, key: &str) {
        self.waiting.remove(key);
    }

    /// An attempt has ended.
    pub(super) fn ended(&mut self, key: &str, how: Ended) {
        let Some((first, attempts, begun)) = self.waiting.get(key).copied() else {
            return;
        };
        let result = match how {
            Ended::Scheduled => "scheduled",
            Ended::Unschedulable => "unschedulable",
            Ended::Error => "error",
        };
        let labels = Attempt {
            profile: super::NAME,
            result,
        };
        self.measures.attempts.get_or_create(&labels).inc();
        let taken = begun.elapsed().as_secs_f64();
        self.measures.taken.get_or_create(&labels).observe(taken);
        if how == Ended::Scheduled {
            // As many labels as upstream tells apart.
            let labels = Attempts {
                attempts: attempts.min(16),
            };
            let latency = first.elapsed().as_secs_f64();
            self.measures
                .latency
                .get_or_create(&labels)
                .observe(latency);
            self.leave(key);
        }
    }

    /// Whether the waiting pods are to be counted when it gets quiet.
    pub(super) fn is_stale(&self) -> bool {
        self.stale
    }

    /// Counts the waiting pods, once in a while.
    pub(super) fn look(&mut self, depths: impl Fn() -> (usize, usize, usize)) {
        self.stale = self.looked.elapsed() < LOOK;
        if self.stale {
            return;
        }
        self.looked = Instant::now();
        let (active, backoff, unschedulable) = depths();
        for (queue, count) in [
            ("active", active),
            ("backoff", backoff),
            ("unschedulable", unschedulable),
        ] {
            let gauge = self.measures.pending.get_or_create_owned(&Place { queue });
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }
}
