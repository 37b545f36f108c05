//! How long a node waits for another daemon after one has failed. Pure.
//!
//! Bound: one line for each DaemonSet and node with a failure within
//! [`FORGOTTEN`]; older ones go when a new one comes.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;

use crate::controller::runtime::later;

/// Wait after the first failure; doubles each time.
const FIRST: Duration = Duration::from_secs(1);
/// Longest wait.
const LONGEST: Duration = Duration::from_mins(15);
/// After this long a failure counts as the first again.
const FORGOTTEN: Duration = Duration::from_mins(30);

/// The last failure of each DaemonSet (by UID) on each node, and the wait after it.
#[derive(Debug, Default)]
pub(super) struct Failing(HashMap<(String, String), (Duration, Timestamp)>);

impl Failing {
    /// How long a failed daemon still has to wait for its end; `None` counts
    /// the failure and says that it may end now.
    pub(super) fn wait(&mut self, set: &str, node: &str, now: Timestamp) -> Option<Duration> {
        let key = (set.to_owned(), node.to_owned());
        let last = self.0.get(&key).copied();
        let over = |(wait, since)| Duration::try_from(later(since, wait).duration_since(now));
        if let Some(left) = last.and_then(|last| over(last).ok())
            && !left.is_zero()
        {
            return Some(left);
        }
        self.0
            .retain(|_, (_, since)| later(*since, FORGOTTEN) > now);
        let before = self.0.get(&key).map(|(wait, _)| *wait);
        let wait = before.map_or(FIRST, |wait| (wait * 2).min(LONGEST));
        self.0.insert(key, (wait, now));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_wait_twice_as_long_each_time_on_their_node_alone() {
        let mut failing = Failing::default();
        let mut now = Timestamp::UNIX_EPOCH;
        assert_eq!(failing.wait("set", "n", now), None);
        for wait in [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900] {
            let wait = Duration::from_secs(wait);
            assert_eq!(failing.wait("set", "n", now), Some(wait));
            assert_eq!(failing.wait("set", &format!("{wait:?}"), now), None);
            now = later(now, wait);
            assert_eq!(failing.wait("set", "n", now), None);
        }
        now = later(now, FORGOTTEN);
        assert_eq!(failing.wait("set", "n", now), None);
        assert_eq!(failing.wait("set", "n", now), Some(FIRST));
        assert_eq!(failing.0.len(), 1);
    }
}
