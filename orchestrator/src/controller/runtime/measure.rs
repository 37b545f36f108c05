//! What is measured of the queues, under upstream's `workqueue_*` names.

use std::sync::{Arc, Mutex, Weak};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::{ConstGauge, Gauge},
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use super::Queue;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Name {
    name: &'static str,
}

/// The measures of all queues. They outlive the queues, so that a controller
/// that starts again counts on.
#[derive(Debug)]
pub struct Measures {
    adds: Family<Name, Counter>,
    retries: Family<Name, Counter>,
    depth: Family<Name, Gauge>,
    waited: Family<Name, Histogram>,
    worked: Family<Name, Histogram>,
    /// Queues in use; those that are gone are thrown out when one is added.
    live: Mutex<Vec<(&'static str, Weak<Queue>)>>,
}

/// The measures of one queue.
#[derive(Clone, Debug)]
pub struct Measure {
    /// Keys that became ready.
    pub(super) adds: Counter,
    /// Attempts after failures.
    pub(super) retries: Counter,
    /// Keys ready.
    pub(super) depth: Gauge,
    /// Seconds between being ready and being worked on.
    pub(super) waited: Histogram,
    /// Seconds of work.
    pub(super) worked: Histogram,
}

fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(10e-9, 10.0, 12))
}

impl Default for Measure {
    fn default() -> Self {
        Self {
            adds: Counter::default(),
            retries: Counter::default(),
            depth: Gauge::default(),
            waited: seconds(),
            worked: seconds(),
        }
    }
}

impl Default for Measures {
    fn default() -> Self {
        Self {
            adds: Family::default(),
            retries: Family::default(),
            depth: Family::default(),
            waited: Family::new_with_constructor(seconds),
            worked: Family::new_with_constructor(seconds),
            live: Mutex::default(),
        }
    }
}

impl Measures {
    /// Those of a queue of this name.
    pub fn of(&self, name: &'static str) -> Measure {
        let name = Name { name };
        Measure {
            adds: self.adds.get_or_create_owned(&name),
            retries: self.retries.get_or_create_owned(&name),
            depth: self.depth.get_or_create_owned(&name),
            waited: self.waited.get_or_create_owned(&name),
            worked: self.worked.get_or_create_owned(&name),
        }
    }

    /// Looks at a queue's unfinished work from now on.
    pub fn follow(&self, name: &'static str, queue: &Arc<Queue>) {
        let mut live = self.live.lock().expect("no holder panics");
        live.retain(|(_, queue)| queue.strong_count() > 0);
        live.push((name, Arc::downgrade(queue)));
    }

    /// Shows them.
    pub fn register(self: &Arc<Self>, registry: &mut Registry) {
        registry.register("workqueue_adds", "Keys added", self.adds.clone());
        registry.register(
            "workqueue_retries",
            "Attempts after failures",
            self.retries.clone(),
        );
        registry.register("workqueue_depth", "Keys waiting", self.depth.clone());
        registry.register(
            "workqueue_queue_duration_seconds",
            "Time between being added and being worked on",
            self.waited.clone(),
        );
        registry.register(
            "workqueue_work_duration_seconds",
            "Time that the work on a key takes",
            self.worked.clone(),
        );
        registry.register_collector(Box::new(Arc::clone(self)));
    }
}

/// What is only known at the moment of looking.
impl Collector for Measures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let live = self.live.lock().expect("no holder panics");
        let live = live.iter();
        let live = live.filter_map(|(name, queue)| Some((Name { name }, queue.upgrade()?)));
        let under_way: Vec<_> = live
            .map(|(name, queue)| (name, queue.under_way()))
            .collect();
        encode(
            &mut encoder,
            "workqueue_unfinished_work_seconds",
            "Seconds of work that is under way, all together",
            under_way.iter().map(|(name, work)| (name, work.total)),
        )?;
        encode(
            &mut encoder,
            "workqueue_longest_running_processor_seconds",
            "Seconds of the longest work that is under way",
            under_way.iter().map(|(name, work)| (name, work.longest)),
        )
    }
}

fn encode<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    metric: &str,
    help: &str,
    values: impl Iterator<Item = (&'a Name, f64)>,
) -> Result<(), std::fmt::Error> {
    let kind = ConstGauge::new(0.0).metric_type();
    let mut family = encoder.encode_descriptor(metric, help, None, kind)?;
    for (name, value) in values {
        ConstGauge::new(value).encode(family.encode_family(name)?)?;
    }
    Ok(())
}
