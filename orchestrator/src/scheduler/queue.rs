//! Pods that wait for a node: the urgent and old first, refused ones later.
//!
//! One entry per waiting pod, so the bound is that of the pods. A pod that was
//! refused rests until an event that may help it, and for a second that
//! doubles up to ten each time.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use jiff::Timestamp;

use super::pod::PodInfo;
use crate::controller::runtime::later;

const BACKOFF_FIRST: Duration = Duration::from_secs(1);
const BACKOFF_MAX: Duration = Duration::from_secs(10);

/// Order of attempts: priority, then age, then name.
type Rank = (std::cmp::Reverse<i32>, Timestamp, Arc<str>);

/// The queue.
#[derive(Debug, Default)]
pub struct Queue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BTreeSet<Rank>,
    resting: BTreeSet<(Timestamp, Arc<str>)>,
    /// Those that wait for an event.
    refused: HashSet<Arc<str>>,
}

#[derive(Debug)]
struct Waiting {
    pod: Arc<PodInfo>,
    attempts: u32,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Active,
    /// Until then, although something has changed that may help.
    Backoff(Timestamp),
    /// Until one of these events; not before the time.
    Refused(u8, Timestamp),
    /// Taken out, being decided on or bound.
    Taken,
}

fn rank(pod: &PodInfo) -> Rank {
    (
        std::cmp::Reverse(pod.priority),
        pod.born(),
        Arc::clone(&pod.key),
    )
}

impl Queue {
    /// A pod waits, or has changed while it waits: worth an attempt at once.
    pub fn add(&mut self, pod: Arc<PodInfo>) {
        let key = Arc::clone(&pod.key);
        let before = self.pods.remove(&key);
        let taken = before.as_ref().is_some_and(|w| w.place == Place::Taken);
        let attempts = before.as_ref().map_or(0, |waiting| waiting.attempts);
        if let Some(before) = before {
            self.unplace(&before);
        }
        let place = if taken { Place::Taken } else { Place::Active };
        if !taken {
            self.active.insert(rank(&pod));
        }
        self.pods.insert(
            key,
            Waiting {
                pod,
                attempts,
                place,
            },
        );
    }

    /// Whether the pod waits already and nothing of it has changed but its
    /// status: no reason for another attempt.
    pub fn is_same(&self, pod: &PodInfo) -> bool {
        self.pods.get(&pod.key).is_some_and(|waiting| {
            waiting.pod.meta.uid == pod.meta.uid
                && waiting.pod.meta.generation == pod.meta.generation
                && waiting.pod.meta.labels == pod.meta.labels
        })
    }

    /// The pod waits no more.
    pub fn remove(&mut self, key: &str) {
        if let Some(waiting) = self.pods.remove(key) {
            self.unplace(&waiting);
        }
    }

    fn unplace(&mut self, waiting: &Waiting) {
        match waiting.place {
            Place::Active => drop(self.active.remove(&rank(&waiting.pod))),
            Place::Backoff(at) => {
                self.resting.remove(&(at, Arc::clone(&waiting.pod.key)));
            }
            Place::Refused(..) => {
                self.refused.remove(&waiting.pod.key);
            }
            Place::Taken => {}
        }
    }

    /// The next pod to decide on.
    pub fn next(&mut self, now: Timestamp) -> Option<Arc<PodInfo>> {
        self.ripen(now);
        let (_, _, key) = self.active.pop_first()?;
        let waiting = self.pods.get_mut(&key)?;
        waiting.place = Place::Taken;
        waiting.attempts = waiting.attempts.saturating_add(1);
        Some(Arc::clone(&waiting.pod))
    }

    fn ripen(&mut self, now: Timestamp) {
        while self.resting.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.resting.pop_first() else {
                return;
            };
            if let Some(waiting) = self.pods.get_mut(&key) {
                waiting.place = Place::Active;
                self.active.insert(rank(&waiting.pod));
            }
        }
    }

    /// A taken pod was refused; it rests until one of the events in `wakes`.
    pub fn refused(&mut self, key: &str, wakes: u8, now: Timestamp) {
        if let Some(waiting) = self.pods.get_mut(key) {
            waiting.place = Place::Refused(wakes, later(now, backoff(waiting.attempts)));
            self.refused.insert(Arc::clone(&waiting.pod.key));
        }
    }

    /// A taken pod could not be bound; again after its backoff.
    pub fn failed(&mut self, key: &str, now: Timestamp) {
        if let Some(waiting) = self.pods.get_mut(key) {
            let at = later(now, backoff(waiting.attempts));
            waiting.place = Place::Backoff(at);
            self.resting.insert((at, Arc::clone(&waiting.pod.key)));
        }
    }

    /// Something happened that may help.
    pub fn wake(&mut self, events: u8, now: Timestamp) {
        self.refused.retain(|key| {
            let Some(waiting) = self.pods.get_mut(key) else {
                return false;
            };
            let Place::Refused(wakes, at) = waiting.place else {
                return false;
            };
            if wakes & events == 0 {
                return true;
            }
            if at <= now {
                waiting.place = Place::Active;
                self.active.insert(rank(&waiting.pod));
            } else {
                waiting.place = Place::Backoff(at);
                self.resting.insert((at, Arc::clone(key)));
            }
            false
        });
    }

    /// Whether a pod waits for an event.
    pub fn has_refused(&self) -> bool {
        !self.refused.is_empty()
    }

    /// Whether a pod can be decided on now.
    pub fn is_idle(&self) -> bool {
        self.active.is_empty()
    }

    /// When the next resting pod is due.
    pub fn next_due(&self) -> Option<Timestamp> {
        self.resting.first().map(|(at, _)| *at)
    }

    /// Pods by state: active, resting, refused.
    pub fn depths(&self) -> (usize, usize, usize) {
        (self.active.len(), self.resting.len(), self.refused.len())
    }
}

fn backoff(attempts: u32) -> Duration {
    let doubled = attempts.saturating_sub(1).min(10);
    (BACKOFF_FIRST * 2_u32.pow(doubled)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, priority: i32) -> Arc<PodInfo> {
        Arc::new(PodInfo {
            key: name.into(),
            priority,
            ..PodInfo::default()
        })
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(seconds).unwrap()
    }

    #[test]
    fn urgent_pods_come_first_and_a_pod_comes_once() {
        let mut queue = Queue::default();
        for (name, priority) in [("b", 0), ("a", 0), ("c", 9), ("a", 0)] {
            queue.add(pod(name, priority));
        }
        let order: Vec<String> = std::iter::from_fn(|| queue.next(at(0)))
            .map(|p| p.key.to_string())
            .collect();
        assert_eq!(order, ["c", "a", "b"]);
    }

    #[test]
    fn a_refused_pod_waits_for_an_event_that_may_help_and_for_its_backoff() {
        let mut queue = Queue::default();
        queue.add(pod("a", 0));
        queue.next(at(0)).unwrap();
        queue.refused("a", super::super::filter::wake::NODE, at(0));
        queue.wake(super::super::filter::wake::POD, at(100));
        assert!(queue.next(at(100)).is_none());
        queue.wake(super::super::filter::wake::NODE, at(0));
        assert!(queue.next(at(0)).is_none());
        assert_eq!(queue.next_due(), Some(at(1)));
        assert_eq!(&*queue.next(at(1)).unwrap().key, "a");
        queue.refused("a", super::super::filter::wake::NODE, at(1));
        queue.wake(super::super::filter::wake::NODE, at(200));
        assert!(queue.next(at(200)).is_some());
    }

    #[test]
    fn a_pod_that_is_gone_never_comes() {
        let mut queue = Queue::default();
        queue.add(pod("a", 0));
        queue.remove("a");
        queue.add(pod("b", 0));
        queue.next(at(0)).unwrap();
        queue.failed("b", at(0));
        queue.remove("b");
        assert!(queue.next(at(1000)).is_none());
        assert_eq!(queue.depths(), (0, 0, 0));
    }
}
