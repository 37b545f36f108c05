//! The time and waiting for it, real or made by a test.

use std::{sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use tokio::sync::watch;

/// Tells the time and sleeps.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    Manual(Arc<watch::Sender<Timestamp>>),
}

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands still until [`Self::advance`].
    pub fn manual(start: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(watch::channel(start).0)))
    }

    /// The time.
    pub fn now(&self) -> Timestamp {
        match &self.0 {
            Source::System => Timestamp::now(),
            Source::Manual(now) => *now.borrow(),
        }
    }

    /// Moves a manual clock on and wakes its sleepers; the machine's clock
    /// moves by itself.
    pub fn advance(&self, by: Duration) {
        if let Source::Manual(now) = &self.0 {
            now.send_modify(|now| *now = later(*now, by));
        }
    }

    /// Resolves at `deadline`, or at once if that has passed.
    pub async fn sleep_until(&self, deadline: Timestamp) {
        match &self.0 {
            Source::System => {
                let left = deadline.duration_since(Timestamp::now());
                tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
            }
            Source::Manual(now) => {
                // The sender lives in self, so waiting cannot fail.
                drop(now.subscribe().wait_for(|now| *now >= deadline).await);
            }
        }
    }

    /// As [`crate::registry::Clock`], for the registry to share.
    pub fn reader(&self) -> crate::registry::Clock {
        let clock = self.clone();
        Arc::new(move || clock.now())
    }
}

/// `from + by`, or the end of time.
pub fn later(from: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by)
        .ok()
        .and_then(|by| from.checked_add(by).ok())
        .unwrap_or(Timestamp::MAX)
}

/// `2026-01-02T03:04:05Z`, as objects hold times.
pub fn stamp(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
