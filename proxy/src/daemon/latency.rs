//! How long it takes from the change that an EndpointSlice tells of to the maps.
//! Pure but for the clock, which is the caller's.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::model::{Change, EndpointSlice, Object, ObjectName};

/// Changes that wait to be measured; more are not.
const WAITING: usize = 4096;

/// The changes on their way.
#[derive(Debug)]
pub(super) struct Latency {
    /// Older changes came to be while nobody was here to program them.
    since: Duration,
    /// When each became so, since 1970.
    waiting: Vec<Duration>,
}

impl Latency {
    /// Of changes after `start`.
    pub(super) fn since(start: SystemTime) -> Self {
        Self {
            since: since_1970(start),
            waiting: Vec::new(),
        }
    }

    /// Takes up `changes` that the compilers, who know `slices`, are about to see.
    pub(super) fn note<'a>(
        &mut self,
        changes: impl Iterator<Item = &'a Change>,
        slices: &BTreeMap<ObjectName, Arc<EndpointSlice>>,
    ) {
        for change in changes {
            let Change::Upsert(Object::EndpointSlice(slice)) = change else {
                continue;
            };
            let known = slices.get(&slice.name).and_then(|slice| slice.triggered);
            let news = slice.triggered.filter(|time| {
                // The controller leaves it on changes that nothing triggered.
                known.is_none_or(|known| known < *time) && *time > self.since
            });
            let room = WAITING.saturating_sub(self.waiting.len());
            self.waiting.extend(news.filter(|_| room > 0));
        }
    }

    /// What has been under way until `now`, when all is in the maps.
    pub(super) fn take(&mut self, now: SystemTime) -> Vec<Duration> {
        let now = since_1970(now);
        let waiting = std::mem::take(&mut self.waiting).into_iter();
        waiting.map(|time| now.saturating_sub(time)).collect()
    }
}

fn since_1970(time: SystemTime) -> Duration {
    let since = time.duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn change(triggered: Option<u64>) -> Change {
        let slice = EndpointSlice {
            triggered: triggered.map(Duration::from_secs),
            ..EndpointSlice::default()
        };
        Change::Upsert(Object::EndpointSlice(slice.into()))
    }

    #[test]
    fn only_news_since_the_start_is_measured_and_once() {
        let mut latency = Latency::since(second(100));
        let mut slices = BTreeMap::new();
        for triggered in [Some(90), None, Some(105), Some(107)] {
            latency.note([&change(triggered)].into_iter(), &slices);
        }
        assert_eq!(latency.take(second(110)), [5, 3].map(Duration::from_secs));
        assert!(latency.take(second(111)).is_empty());
        let Change::Upsert(Object::EndpointSlice(known)) = change(Some(107)) else {
            panic!("not a slice");
        };
        slices.insert(known.name.clone(), known);
        for triggered in [107, 106, 130] {
            latency.note([&change(Some(triggered))].into_iter(), &slices);
        }
        // The clocks of two machines differ.
        assert_eq!(latency.take(second(120)), [Duration::ZERO]);
    }
}
