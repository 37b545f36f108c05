//! Keys waiting for work: each at most once, failed ones ever later.
//!
//! A key that is added while it is worked on is worked on again afterwards,
//! and never by two workers at once. Bound: `capacity` ready keys. When full,
//! [`Queue::admit`] waits, and the events behind it wait in the watch cache's
//! ring, which is bounded too. Delayed keys are one per object.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use jiff::Timestamp;
use tokio::sync::Notify;

use super::{
    clock::{Clock, later},
    measure::Measure,
};

/// What is worked on: `namespace/name`, or `name`.
pub type Key = Arc<str>;

/// Ready keys held at most.
const CAPACITY: usize = 16 << 10;
/// Wait after the first failure.
const BACKOFF_FIRST: Duration = Duration::from_millis(5);
/// Longest wait between attempts.
const BACKOFF_MAX: Duration = Duration::from_mins(5);

/// The queue of one controller.
#[derive(Debug)]
pub struct Queue {
    clock: Clock,
    state: Mutex<State>,
    /// A key became ready, or an earlier deadline appeared.
    work: Notify,
    /// A ready key was taken.
    room: Notify,
    capacity: usize,
    measure: Measure,
}

#[derive(Debug, Default)]
struct State {
    ready: VecDeque<Key>,
    /// Ready keys, and since when they are.
    queued: HashMap<Key, Timestamp>,
    /// Keys that are worked on, and since when.
    working: HashMap<Key, Timestamp>,
    /// Added again while they are worked on.
    dirty: HashSet<Key>,
    delayed: BTreeSet<(Timestamp, Key)>,
    due: HashMap<Key, Timestamp>,
    failures: HashMap<Key, u32>,
}

/// Work that has not ended, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct UnderWay {
    /// Of all keys together.
    pub total: f64,
    /// Of the longest.
    pub longest: f64,
}

impl Queue {
    /// An empty queue that nobody measures.
    pub fn new(clock: Clock) -> Self {
        Self::measured(clock, Measure::default())
    }

    /// An empty queue.
    pub fn measured(clock: Clock, measure: Measure) -> Self {
        Self {
            clock,
            state: Mutex::default(),
            work: Notify::new(),
            room: Notify::new(),
            capacity: CAPACITY,
            measure,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Adds a key now; never waits.
    pub fn add(&self, key: Key) {
        let mut state = self.lock();
        state.cancel_delay(&key);
        if state.enqueue(key, self.clock.now(), &self.measure) {
            drop(state);
            self.work.notify_one();
        }
    }

    /// Adds a key as soon as there is room.
    pub async fn admit(&self, key: Key) {
        loop {
            let room = self.room.notified();
            if self.lock().ready.len() < self.capacity {
                break;
            }
            room.await;
        }
        self.add(key);
    }

    /// Adds a key after a while; the earliest wish counts.
    pub fn add_after(&self, key: &Key, wait: Duration) {
        if wait.is_zero() {
            return self.add(Arc::clone(key));
        }
        let at = later(self.clock.now(), wait);
        let mut state = self.lock();
        if state.due.get(key).is_some_and(|due| *due <= at) {
            return;
        }
        state.cancel_delay(key);
        state.due.insert(Arc::clone(key), at);
        state.delayed.insert((at, Arc::clone(key)));
        drop(state);
        self.work.notify_one();
    }

    /// The next key, when there is one. The worker ends with [`Self::done`].
    pub async fn next(&self) -> Key {
        loop {
            let work = self.work.notified();
            let deadline = {
                let mut state = self.lock();
                let now = self.clock.now();
                state.ripen(now, &self.measure);
                if let Some(key) = state.ready.pop_front() {
                    let since = state.queued.remove(&key).unwrap_or(now);
                    self.measure.waited.observe(seconds(since, now));
                    self.measure.depth.dec();
                    state.working.insert(Arc::clone(&key), now);
                    let more = !state.ready.is_empty() || !state.delayed.is_empty();
                    drop(state);
                    self.room.notify_waiters();
                    if more {
                        self.work.notify_one();
                    }
                    return key;
                }
                state.delayed.first().map(|(at, _)| *at)
            };
            match deadline {
                Some(at) => tokio::select! {
                    () = work => {}
                    () = self.clock.sleep_until(at) => {}
                },
                None => work.await,
            }
        }
    }

    /// The work on a key has ended well; `again` asks for another look.
    pub fn done(&self, key: &Key, again: Option<Duration>) {
        self.lock().failures.remove(key);
        self.release(key);
        if let Some(wait) = again {
            self.add_after(key, wait);
        }
    }

    /// The work on a key has failed: again after 5 ms, 10 ms, .. 5 min.
    pub fn failed(&self, key: &Key) {
        let wait = {
            self.measure.retries.inc();
            let mut state = self.lock();
            let failures = state.failures.entry(Arc::clone(key)).or_default();
            *failures = failures.saturating_add(1);
            backoff(*failures)
        };
        self.release(key);
        self.add_after(key, wait);
    }

    fn release(&self, key: &Key) {
        let mut state = self.lock();
        if let Some(since) = state.working.remove(key) {
            let taken = seconds(since, self.clock.now());
            self.measure.worked.observe(taken);
        }
        if state.dirty.remove(key) {
            drop(state);
            self.add(Arc::clone(key));
        }
    }

    /// Keys ready.
    pub fn ready(&self) -> usize {
        self.lock().ready.len()
    }

    /// For the metrics.
    pub fn under_way(&self) -> UnderWay {
        let now = self.clock.now();
        let state = self.lock();
        let times = state.working.values().map(|since| seconds(*since, now));
        let none = UnderWay {
            total: 0.0,
            longest: 0.0,
        };
        times.fold(none, |all, time| UnderWay {
            total: all.total + time,
            longest: all.longest.max(time),
        })
    }
}

impl Drop for Queue {
    /// What was still waiting waits no more.
    fn drop(&mut self) {
        let left = i64::try_from(self.ready()).unwrap_or(i64::MAX);
        self.measure.depth.dec_by(left);
    }
}

impl State {
    fn cancel_delay(&mut self, key: &Key) {
        if let Some(at) = self.due.remove(key) {
            self.delayed.remove(&(at, Arc::clone(key)));
        }
    }

    /// Makes a key ready; whether there is something new to take.
    fn enqueue(&mut self, key: Key, now: Timestamp, measure: &Measure) -> bool {
        if self.working.contains_key(&key) {
            if self.dirty.insert(key) {
                measure.adds.inc();
            }
            return false;
        }
        let Entry::Vacant(place) = self.queued.entry(Arc::clone(&key)) else {
            return false;
        };
        place.insert(now);
        self.ready.push_back(key);
        measure.adds.inc();
        measure.depth.inc();
        true
    }

    /// Makes the keys ready whose time has come.
    fn ripen(&mut self, now: Timestamp, measure: &Measure) {
        while self.delayed.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, key)) = self.delayed.pop_first() else {
                return;
            };
            self.due.remove(&key);
            self.enqueue(key, now, measure);
        }
    }
}

/// Between two times.
fn seconds(from: Timestamp, to: Timestamp) -> f64 {
    to.duration_since(from).as_secs_f64().max(0.0)
}

/// Wait before attempt `failures + 1`.
fn backoff(failures: u32) -> Duration {
    let doubled = failures.saturating_sub(1).min(20);
    (BACKOFF_FIRST * 2_u32.pow(doubled)).min(BACKOFF_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> (Queue, Clock) {
        let clock = Clock::manual(Timestamp::UNIX_EPOCH);
        (Queue::new(clock.clone()), clock)
    }

    async fn idle(queue: &Queue) -> bool {
        let soon = Duration::from_millis(20);
        tokio::time::timeout(soon, queue.next()).await.is_err()
    }

    #[tokio::test]
    async fn a_key_waits_once_and_is_never_worked_on_twice_at_a_time() {
        let (queue, _) = queue();
        queue.add("a".into());
        queue.add("a".into());
        let key = queue.next().await;
        queue.add("a".into());
        assert!(idle(&queue).await);
        queue.done(&key, None);
        assert_eq!(&*queue.next().await, "a");
    }

    #[tokio::test]
    async fn failures_wait_twice_as_long_each_time_and_success_forgets_them() {
        let (queue, clock) = queue();
        queue.add("a".into());
        for wait in [5, 10, 20] {
            let key = queue.next().await;
            queue.failed(&key);
            clock.advance(Duration::from_millis(wait - 1));
            assert!(idle(&queue).await);
            clock.advance(Duration::from_millis(1));
        }
        let key = queue.next().await;
        queue.done(&key, None);
        queue.add("a".into());
        let key = queue.next().await;
        queue.failed(&key);
        clock.advance(Duration::from_millis(5));
        assert_eq!(&*queue.next().await, "a");
        assert_eq!(backoff(1000), BACKOFF_MAX);
    }

    #[tokio::test]
    async fn the_earliest_of_several_delays_counts() {
        let (queue, clock) = queue();
        queue.add_after(&"a".into(), Duration::from_secs(9));
        queue.add_after(&"a".into(), Duration::from_secs(3));
        queue.add_after(&"a".into(), Duration::from_secs(6));
        clock.advance(Duration::from_secs(3));
        let key = queue.next().await;
        queue.done(&key, None);
        clock.advance(Duration::from_mins(1));
        assert!(idle(&queue).await);
    }

    #[tokio::test]
    async fn a_full_queue_makes_the_informer_wait() {
        let (mut queue, _) = queue();
        queue.capacity = 1;
        queue.admit("a".into()).await;
        let soon = Duration::from_millis(20);
        let more = tokio::time::timeout(soon, queue.admit("b".into())).await;
        assert!(more.is_err());
        let key = queue.next().await;
        queue.done(&key, None);
        queue.admit("b".into()).await;
        assert_eq!(queue.ready(), 1);
    }
}
