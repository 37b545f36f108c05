//! Leader election by a Lease: of several servers on one store, one works.
//!
//! A holder renews every [`Timing::retry`]; one that has not managed for
//! [`Timing::renew`] stops its work. Others take the Lease when they have seen
//! it unchanged for as long as it says, by their own clock, or when it has no
//! holder. A clean stop gives it up, and one's own is taken again at once, so a
//! server alone never waits.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::runtime::{Clock, Runtime, later};
use crate::{
    registry::{Target, client::Client},
    resource::cluster::LEASE,
    status::Status,
};

const NAMESPACE: &str = "kube-system";

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// What a Lease says: how long others leave it alone.
    pub lease: Duration,
    /// How long a holder works without having renewed; less than that.
    pub renew: Duration,
    /// Between two attempts.
    pub retry: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// One candidate for one Lease.
#[derive(Debug)]
pub struct Election {
    client: Client,
    clock: Clock,
    lease: &'static str,
    identity: Arc<str>,
    timing: Timing,
    /// The Lease as it was last seen, and since when it is so.
    seen: Option<(Value, Timestamp)>,
}

impl Election {
    /// A candidate of this name for a Lease in kube-system.
    pub fn new(
        client: Client,
        clock: Clock,
        lease: &'static str,
        identity: Arc<str>,
        timing: Timing,
    ) -> Self {
        Self {
            client,
            clock,
            lease,
            identity,
            timing,
            seen: None,
        }
    }

    /// Takes or renews the Lease if that is possible now.
    ///
    /// # Errors
    /// The refusal of a read or write; a lost race is none.
    pub async fn attempt(&mut self) -> Result<bool, Status> {
        let key = LEASE.object_key(NAMESPACE, self.lease);
        let now = self.clock.now();
        let Some(entry) = self.client.cache_of(&LEASE).get(&key) else {
            let object = json!({
                "metadata": {"name": self.lease},
                "spec": self.held(None, now),
            });
            let made = self.client.create_value(&LEASE, NAMESPACE, object);
            return match made.await {
                Err(status) if status.is("AlreadyExists") => Ok(false),
                other => other.map(|_| true),
            };
        };
        let spec = entry.value()["spec"].take();
        let since = match &self.seen {
            Some((seen, since)) if *seen == spec => *since,
            _ => now,
        };
        self.seen = Some((spec.clone(), since));
        if !self.is_free(&spec, since, now) {
            return Ok(false);
        }
        let new = self.held(Some(&spec), now);
        self.write(&spec, new).await
    }

    /// Gives the Lease up, if it is held.
    ///
    /// # Errors
    /// The refusal of the write.
    pub async fn release(&self) -> Result<(), Status> {
        let key = LEASE.object_key(NAMESPACE, self.lease);
        let Some(entry) = self.client.cache_of(&LEASE).get(&key) else {
            return Ok(());
        };
        let spec = entry.value()["spec"].take();
        if spec["holderIdentity"] != *self.identity {
            return Ok(());
        }
        let mut new = spec.clone();
        new["holderIdentity"] = "".into();
        new["leaseDurationSeconds"] = 1.into();
        new["renewTime"] = micros(self.clock.now()).into();
        self.write(&spec, new).await.map(drop)
    }

    fn is_free(&self, spec: &Value, since: Timestamp, now: Timestamp) -> bool {
        let holder = spec["holderIdentity"].as_str().unwrap_or_default();
        let seconds = spec["leaseDurationSeconds"].as_u64().unwrap_or(0);
        holder.is_empty()
            || holder == &*self.identity
            || later(since, Duration::from_secs(seconds)) <= now
    }

    /// The Lease in our hands.
    fn held(&self, old: Option<&Value>, now: Timestamp) -> Value {
        let now = micros(now);
        let mut spec = json!({
            "holderIdentity": *self.identity,
            "leaseDurationSeconds": self.timing.lease.as_secs(),
            "acquireTime": now,
            "renewTime": now,
            "leaseTransitions": 0,
        });
        if let Some(old) = old {
            let transitions = old["leaseTransitions"].as_i64().unwrap_or(0);
            let ours = old["holderIdentity"] == *self.identity;
            spec["leaseTransitions"] = (transitions + i64::from(!ours)).into();
            if ours && !old["acquireTime"].is_null() {
                spec["acquireTime"] = old["acquireTime"].clone();
            }
        }
        spec
    }

    /// Writes over exactly this state; says whether it was still so.
    async fn write(&self, old: &Value, new: Value) -> Result<bool, Status> {
        let target = Target::object(&LEASE, NAMESPACE, self.lease);
        let change = |current: &Value| {
            if current["spec"] != *old {
                return Err(Status::modified(LEASE.subject(), self.lease));
            }
            let mut object = current.clone();
            object["spec"] = new.clone();
            Ok(object)
        };
        match self.client.change(target, &change).await {
            Err(status) if status.is("Conflict") || status.is("NotFound") => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// Works whenever it leads, until `stop` is true or gone.
    ///
    /// `start` begins the work, which has ended before the Lease is given up.
    /// With `led`, the Lease has been taken already.
    pub async fn run(
        mut self,
        mut led: bool,
        start: impl Fn() -> Runtime + Send,
        mut stop: watch::Receiver<bool>,
    ) {
        loop {
            if !led {
                tracing::info!(lease = self.lease, "waiting for the lease");
            }
            while !led {
                tokio::select! {
                    () = self.pause() => {}
                    _ = stop.wait_for(|stop| *stop) => return,
                }
                led = self.try_once().await.unwrap_or(false);
            }
            tracing::info!(lease = self.lease, identity = &*self.identity, "leading");
            let work = start();
            let stopped = tokio::select! {
                () = self.hold() => false,
                _ = stop.wait_for(|stop| *stop) => true,
            };
            work.stop().await;
            if stopped {
                if let Err(status) = self.release().await {
                    tracing::debug!(lease = self.lease, %status, "not given up");
                }
                return;
            }
            tracing::warn!(
                lease = self.lease,
                "the lease is lost, its work has stopped"
            );
            led = false;
        }
    }

    /// Renews until that has failed for too long or somebody else leads.
    async fn hold(&mut self) {
        let mut renewed = self.clock.now();
        loop {
            self.pause().await;
            match self.try_once().await {
                Some(true) => renewed = self.clock.now(),
                Some(false) => return,
                None if later(renewed, self.timing.renew) <= self.clock.now() => return,
                None => {}
            }
        }
    }

    /// `None` if the attempt failed or took too long.
    async fn try_once(&mut self) -> Option<bool> {
        let (lease, patience) = (self.lease, self.timing.renew);
        match tokio::time::timeout(patience, self.attempt()).await {
            Ok(Ok(led)) => Some(led),
            Ok(Err(status)) => {
                tracing::warn!(lease, %status, "the lease could not be written");
                None
            }
            Err(_elapsed) => {
                tracing::warn!(lease, "the lease could not be written in time");
                None
            }
        }
    }

    async fn pause(&self) {
        let until = later(self.clock.now(), self.timing.retry);
        self.clock.sleep_until(until).await;
    }
}

/// `2026-01-02T03:04:05.000006Z`.
fn micros(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}
