//! Keeps as many pods of a template as are wanted.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    cache::Selector,
    controller::{
        pods::{self, BURST, Claimer, Keeper},
        runtime::{
            Again, Change, Clock, Context, Controller, Key, Recorder, Source,
            object::{Meta, Pod, adopters, controller_key, decode, served, split},
            stamp,
        },
    },
    registry::{Target, client::Client},
    resource::Resource,
    status::Status,
};

const NAME: &str = "replicaset-controller";

/// The controller.
#[derive(Debug)]
pub struct ReplicaSetController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
}

/// A ReplicaSet.
#[derive(Clone, Debug, Deserialize)]
pub struct ReplicaSet {
    /// Metadata.
    pub metadata: Meta,
    /// Desired state.
    pub spec: Spec,
    /// Reported state.
    #[serde(default)]
    pub status: Reported,
}

/// Its desired state.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// Pods wanted.
    #[serde(default = "one")]
    pub replicas: i64,
    /// Seconds of readiness that make a pod available.
    #[serde(default)]
    pub min_ready_seconds: i64,
    /// Which pods are its own.
    #[serde(default)]
    pub selector: Value,
    /// What a pod is made of.
    #[serde(default)]
    pub template: Value,
}

fn one() -> i64 {
    1
}

/// Its reported state.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct Reported {
    /// Pods that exist.
    pub replicas: i64,
    /// Pods with all the template's labels.
    pub fully_labeled_replicas: i64,
    /// Pods that are ready.
    pub ready_replicas: i64,
    /// Pods that have been ready for long enough.
    pub available_replicas: i64,
    /// Generation that this is about.
    pub observed_generation: i64,
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("apps", "replicasets")
}

/// What the state of its pods means for a ReplicaSet. Pure.
pub fn observe(set: &ReplicaSet, active: &[Pod], now: Timestamp) -> Reported {
    let wanted = set.spec.template["metadata"]["labels"].as_object();
    let labeled = |pod: &&Pod| {
        let mut labels = wanted.into_iter().flatten();
        labels
            .all(|(key, value)| pod.metadata.labels.get(key).map(String::as_str) == value.as_str())
    };
    let count = |test: &dyn Fn(&&Pod) -> bool| {
        i64::try_from(active.iter().filter(test).count()).unwrap_or(i64::MAX)
    };
    Reported {
        replicas: count(&|_| true),
        fully_labeled_replicas: count(&labeled),
        ready_replicas: count(&|pod| pod.is_ready()),
        available_replicas: count(&|pod| pod.is_available(set.spec.min_ready_seconds, now)),
        observed_generation: set.metadata.generation,
    }
}

/// When the next ready pod becomes available, if one will. Pure.
pub fn next_available(pods: &[Pod], min_ready_seconds: i64, now: Timestamp) -> Again {
    let waiting = pods
        .iter()
        .filter(|pod| !pod.is_available(min_ready_seconds, now))
        .filter_map(Pod::ready_since);
    let first = waiting.min()?;
    let left = first.as_second() + min_ready_seconds - now.as_second();
    Some(Duration::from_secs(u64::try_from(left).unwrap_or(0).max(1)))
}

impl ReplicaSetController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
        }
    }

    /// Makes or removes pods; the failure that stopped it.
    async fn manage(&self, set: &ReplicaSet, active: &[Pod]) -> Option<(&'static str, Status)> {
        let keeper = Keeper {
            client: &self.client,
            recorder: &self.recorder,
            reporter: NAME,
            resource: resource(),
            owner: &set.metadata,
        };
        let wanted = usize::try_from(set.spec.replicas).unwrap_or(0);
        if active.len() < wanted {
            let mut pod = pods::from_template(&set.spec.template, resource(), &set.metadata);
            pod["metadata"]["generateName"] = pods::name_prefix(&set.metadata.name).into();
            let missing = (wanted - active.len()).min(BURST);
            let made = keeper.make(missing, |_| pod.clone()).await;
            return made.err().map(|status| ("FailedCreate", status));
        }
        let surplus = (active.len() - wanted).min(BURST);
        if surplus == 0 {
            return None;
        }
        let mut ranked = active.to_vec();
        pods::sort_for_deletion(&mut ranked, &self.crowd(set, active));
        let removed = keeper.remove(ranked.iter().take(surplus)).await;
        removed.err().map(|status| ("FailedDelete", status))
    }

    /// Pods per node of all ReplicaSets with the same owner.
    fn crowd(&self, set: &ReplicaSet, active: &[Pod]) -> HashMap<String, usize> {
        let mut crowd = HashMap::new();
        let mut count = |pod: &Pod| *crowd.entry(pod.spec.node_name.clone()).or_default() += 1;
        let Some(owner) = set.metadata.controller() else {
            active.iter().for_each(count);
            return crowd;
        };
        for sibling in self.client.cache_of(resource()).owned_by(&owner.uid) {
            for entry in self
                .client
                .cache_of(served("", "pods"))
                .owned_by(&sibling.uid)
            {
                if let Ok(pod) = entry.decode::<Pod>()
                    && pod.is_active()
                {
                    count(&pod);
                }
            }
        }
        crowd
    }

    async fn report(
        &self,
        set: &ReplicaSet,
        reported: &Reported,
        failure: Option<&(&'static str, Status)>,
    ) -> Result<(), Status> {
        let now = stamp(self.clock.now());
        let meta = &set.metadata;
        let target = Target::status(resource(), &meta.namespace, &meta.name);
        let edit = |new: &mut Value| {
            let mut status = json!({
                "replicas": reported.replicas,
                "observedGeneration": reported.observed_generation,
            });
            for (field, count) in [
                ("fullyLabeledReplicas", reported.fully_labeled_replicas),
                ("readyReplicas", reported.ready_replicas),
                ("availableReplicas", reported.available_replicas),
            ] {
                if count > 0 {
                    status[field] = count.into();
                }
            }
            if let Some((reason, why)) = failure {
                // The first message stands: each attempt has another pod's
                // name in it, and every write brings the next attempt.
                let before = &new["status"]["conditions"][0];
                status["conditions"] = if before["reason"] == *reason {
                    json!([before])
                } else {
                    json!([{
                        "type": "ReplicaFailure",
                        "status": "True",
                        "reason": reason,
                        "message": why.message,
                        "lastTransitionTime": now,
                    }])
                };
            }
            new["status"] = status;
        };
        self.client.amend(target, &meta.uid, edit).await
    }
}

/// Keys of the owners, or would-be owners, of a changed pod.
pub fn owners_of_pod(client: &Client, owner: &'static Resource, change: &Change<'_>) -> Vec<Key> {
    let mut keys: Vec<Key> = controller_key(change.entry, owner).into_iter().collect();
    if let Some(previous) = change.previous
        && previous.controller_uid() != change.entry.controller_uid()
    {
        keys.extend(controller_key(previous, owner));
    }
    if !change.deleted {
        keys.extend(adopters(client, owner, change.entry));
    }
    keys
}

impl Controller for ReplicaSetController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::own(resource()),
            Source::new(served("", "pods"), move |change| {
                owners_of_pod(&client, resource(), change)
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        debug_assert!(!split(key).0.is_empty());
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let set: ReplicaSet = decode(&entry)?;
        let selector = Selector::from_object(&set.spec.selector);
        let claimer = Claimer {
            client: &self.client,
            resource: resource(),
            owner: &set.metadata,
            selector: &selector,
        };
        let active =
            |pods: Vec<Pod>| -> Vec<Pod> { pods.into_iter().filter(Pod::is_active).collect() };
        let mut pods = active(pods::decode_all(&claimer.claim(served("", "pods")).await?)?);
        let mut failure = None;
        let wanted = usize::try_from(set.spec.replicas).unwrap_or(0);
        let more = pods.len().abs_diff(wanted) > BURST && !set.metadata.deleting();
        if !set.metadata.deleting() && pods.len() != wanted {
            failure = self.manage(&set, &pods).await;
            // The cache already shows what was written.
            let owned = self
                .client
                .cache_of(served("", "pods"))
                .owned_by(&set.metadata.uid);
            let owned: Vec<_> = owned
                .into_iter()
                .filter(|pod| selector.matches_labels(|key| pod.label(key)))
                .collect();
            pods = active(pods::decode_all(&owned)?);
        }
        let now = self.clock.now();
        let reported = observe(&set, &pods, now);
        if reported != set.status || failure.is_some() || has_failed(&entry) {
            self.report(&set, &reported, failure.as_ref()).await?;
        }
        if let Some((_, status)) = failure {
            return Err(status);
        }
        let again = next_available(&pods, set.spec.min_ready_seconds, now);
        Ok(if more { Some(Duration::ZERO) } else { again })
    }
}

fn has_failed(entry: &crate::cache::Entry) -> bool {
    decode::<Conditioned>(entry).is_ok_and(|o| !o.status.conditions.is_empty())
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Conditioned {
    status: Conditions,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Conditions {
    conditions: Vec<serde::de::IgnoredAny>,
}
