//! Runs numbered pods with names and volumes of their own.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    deployment::hash,
    revision::{self, HASH, Revisions, is_of},
};
use crate::{
    cache::{Entry, Selector},
    controller::{
        pods::{self, Claimer},
        runtime::{
            Again, Clock, Context, Controller, Recorder, Source,
            object::{Meta, Pod, decode, is_ending, served},
        },
    },
    registry::{Target, client::Client},
    resource::Resource,
    status::Status,
};

mod act;
mod claims;

const NAME: &str = "statefulset-controller";
const POD_NAME: &str = "statefulset.kubernetes.io/pod-name";
const POD_INDEX: &str = "apps.kubernetes.io/pod-index";

/// The controller.
#[derive(Debug)]
pub struct StatefulSetController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
}

#[derive(Clone, Debug, Deserialize)]
struct StatefulSet {
    metadata: Meta,
    spec: Spec,
    #[serde(default)]
    status: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    replicas: Option<i64>,
    selector: Value,
    template: Value,
    service_name: String,
    volume_claim_templates: Option<Vec<Value>>,
    pod_management_policy: String,
    update_strategy: Value,
    min_ready_seconds: i64,
    revision_history_limit: Option<i64>,
    ordinals: Value,
    persistent_volume_claim_retention_policy: Value,
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("apps", "statefulsets")
}

/// What the ordering needs to know. Pure input.
#[derive(Clone, Copy, Debug)]
struct Order {
    start: i64,
    replicas: i64,
    parallel: bool,
    /// Pods from this ordinal on are updated; `None` updates nothing by itself.
    partition: Option<i64>,
}

/// One pod as the ordering sees it.
#[expect(clippy::struct_excessive_bools, reason = "four independent facts")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seat {
    /// Running, ready for long enough, not on its way out.
    healthy: bool,
    leaving: bool,
    over: bool,
    updated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Act {
    Create(i64),
    Delete(i64),
}

/// The next acts: one at a time in order, or all at once if parallel. Pure.
fn acts(order: Order, seats: &BTreeMap<i64, Seat>) -> Vec<Act> {
    let mut acts = Vec::new();
    let wanted = order.start..order.start + order.replicas;
    for ordinal in wanted.clone() {
        match seats.get(&ordinal) {
            None => acts.push(Act::Create(ordinal)),
            // What has ended is made anew under its name.
            Some(seat) if seat.over && !seat.leaving => acts.push(Act::Delete(ordinal)),
            Some(seat) if seat.healthy || order.parallel => continue,
            Some(_) => {}
        }
        if !order.parallel {
            // A pod that is not well holds up those behind it, but may itself be replaced.
            let replaceable = acts.is_empty();
            return if replaceable {
                broken(order, seats, ordinal)
            } else {
                acts
            };
        }
    }
    let surplus = seats
        .keys()
        .rev()
        .filter(|ordinal| !wanted.contains(ordinal));
    for ordinal in surplus {
        let seat = seats[ordinal];
        if !seat.leaving {
            acts.push(Act::Delete(*ordinal));
        }
        if !order.parallel {
            return acts;
        }
    }
    if !acts.is_empty() {
        return acts;
    }
    let Some(partition) = order.partition else {
        return acts;
    };
    for ordinal in wanted
        .rev()
        .filter(|ordinal| *ordinal >= partition.max(order.start))
    {
        let Some(seat) = seats.get(&ordinal) else {
            return acts;
        };
        if !seat.updated && !seat.leaving {
            return vec![Act::Delete(ordinal)];
        }
        if !seat.healthy {
            return acts;
        }
    }
    acts
}

/// An old pod that is not well need not be waited for in an update.
fn broken(order: Order, seats: &BTreeMap<i64, Seat>, ordinal: i64) -> Vec<Act> {
    let seat = seats.get(&ordinal);
    let replace = seat.is_some_and(|seat| !seat.updated && !seat.leaving && !seat.healthy)
        && order
            .partition
            .is_some_and(|partition| ordinal >= partition);
    if replace {
        vec![Act::Delete(ordinal)]
    } else {
        Vec::new()
    }
}

/// The ordinal in a pod's name.
fn ordinal(set: &str, pod: &str) -> Option<i64> {
    pod.strip_prefix(set)?.strip_prefix('-')?.parse().ok()
}

impl StatefulSet {
    fn order(&self) -> Order {
        let rolling = self.spec.update_strategy["type"] != "OnDelete";
        let partition = &self.spec.update_strategy["rollingUpdate"]["partition"];
        let start = self.spec.ordinals["start"].as_i64().unwrap_or(0);
        Order {
            start,
            replicas: self.spec.replicas.unwrap_or(1),
            parallel: self.spec.pod_management_policy == "Parallel",
            // A partition counts pods, wherever their numbers begin.
            partition: rolling.then(|| start + partition.as_i64().unwrap_or(0)),
        }
    }

    fn claims(&self) -> impl Iterator<Item = &Value> {
        self.spec.volume_claim_templates.iter().flatten()
    }

    fn claim_name(&self, template: &Value, ordinal: i64) -> String {
        let name = template["metadata"]["name"].as_str().unwrap_or_default();
        format!("{name}-{}-{ordinal}", self.metadata.name)
    }

    fn pod(&self, ordinal: i64, template: &Value, hash: &str) -> Value {
        let mut pod = pods::from_template(template, resource(), &self.metadata);
        let name = format!("{}-{ordinal}", self.metadata.name);
        pod["metadata"]["name"] = name.clone().into();
        for (label, value) in [
            (HASH, hash),
            (POD_NAME, &name),
            (POD_INDEX, &ordinal.to_string()),
        ] {
            pod["metadata"]["labels"][label] = value.into();
        }
        pod["spec"]["hostname"] = name.into();
        pod["spec"]["subdomain"] = self.spec.service_name.clone().into();
        let mut volumes = pod["spec"]["volumes"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        for claim in self.claims() {
            let name = &claim["metadata"]["name"];
            volumes.retain(|volume| volume["name"] != *name);
            volumes.push(json!({
                "name": name,
                "persistentVolumeClaim": {"claimName": self.claim_name(claim, ordinal)},
            }));
        }
        if !volumes.is_empty() {
            pod["spec"]["volumes"] = volumes.into();
        }
        pod
    }
}

impl StatefulSetController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
        }
    }

    async fn pods(&self, set: &StatefulSet) -> Result<BTreeMap<i64, Pod>, Status> {
        let selector = Selector::from_object(&set.spec.selector);
        let claimer = Claimer {
            client: &self.client,
            resource: resource(),
            owner: &set.metadata,
            selector: &selector,
        };
        let numbered = |entry: &Entry| ordinal(&set.metadata.name, entry.name()).is_some();
        let claimed = claimer.claim_those(served("", "pods"), numbered).await?;
        let pods = pods::decode_all(&claimed)?;
        let numbered = pods
            .into_iter()
            .filter_map(|pod| Some((ordinal(&set.metadata.name, &pod.metadata.name)?, pod)));
        Ok(numbered.collect())
    }

    /// Makes and removes pods, as far as that goes now.
    async fn advance(&self, set: &StatefulSet, hash: &str, now: Timestamp) -> Result<(), Status> {
        let ready = set.spec.min_ready_seconds;
        let mut pods = self.pods(set).await?;
        // Whose a claim is must be right before its pod goes.
        self.settle_claims(set, &pods).await?;
        let waiting = pods.iter().filter(|(_, pod)| {
            pod.is_active() && matches!(pod.status.phase.as_str(), "Pending" | "")
        });
        for (ordinal, _) in waiting {
            // Its claims may have gone before they were in use.
            self.ensure_claims(set, *ordinal).await?;
        }
        let mut acted = BTreeSet::new();
        loop {
            let mut acts = acts(set.order(), &seats(&pods, hash, ready, now));
            // Each pod is touched once in a look; the next event brings the next look.
            acts.retain(|act| {
                let (Act::Create(ordinal) | Act::Delete(ordinal)) = act;
                acted.insert(*ordinal)
            });
            if acts.is_empty() {
                return Ok(());
            }
            self.act(set, &pods, &acts, hash).await?;
            pods = self.pods(set).await?;
        }
    }

    async fn report(
        &self,
        set: &StatefulSet,
        pods: &BTreeMap<i64, Pod>,
        hash: &str,
        now: Timestamp,
    ) -> Result<(), Status> {
        let revision = format!("{}-{hash}", set.metadata.name);
        let all = || pods.values().filter(|pod| !pod.metadata.deleting());
        let updated = all().filter(|pod| is_of(pod, hash)).count();
        let replicas = pods.len();
        let before = set.status["currentRevision"]
            .as_str()
            .unwrap_or(&revision)
            .to_owned();
        let done = i64::try_from(updated).ok() == set.spec.replicas.or(Some(1))
            && updated == replicas
            && all().all(Pod::is_ready);
        let current = if done { revision.clone() } else { before };
        let of_current = all()
            .filter(|pod| current.ends_with(pod.metadata.labels.get(HASH).map_or("?", |h| h)))
            .count();
        let mut status = json!({
            "observedGeneration": set.metadata.generation,
            "replicas": replicas,
            "availableReplicas": all().filter(|pod| pod.is_available(set.spec.min_ready_seconds, now)).count(),
            "currentRevision": current,
            "updateRevision": revision,
            "collisionCount": 0,
        });
        for (field, count) in [
            ("readyReplicas", all().filter(|pod| pod.is_ready()).count()),
            ("updatedReplicas", updated),
            ("currentReplicas", of_current),
        ] {
            if count > 0 {
                status[field] = count.into();
            }
        }
        if status == set.status {
            return Ok(());
        }
        let meta = &set.metadata;
        let target = Target::status(resource(), &meta.namespace, &meta.name);
        self.client.replace_status(target, &meta.uid, &status).await
    }
}

fn seats(pods: &BTreeMap<i64, Pod>, hash: &str, ready: i64, now: Timestamp) -> BTreeMap<i64, Seat> {
    let seat = |pod: &Pod| Seat {
        healthy: pod.is_active() && pod.status.phase == "Running" && pod.is_available(ready, now),
        leaving: pod.metadata.deleting(),
        over: pod.is_over(),
        updated: is_of(pod, hash),
    };
    pods.iter()
        .map(|(ordinal, pod)| (*ordinal, seat(pod)))
        .collect()
}

impl Controller for StatefulSetController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::own(resource()),
            Source::new(served("", "pods"), move |change| {
                super::replicaset::owners_of_pod(&client, resource(), change)
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let set: StatefulSet = decode(&entry)?;
        if set.metadata.deleting() {
            return Ok(None);
        }
        let revisions = Revisions {
            client: &self.client,
            resource: resource(),
            owner: &set.metadata,
            selector: &set.spec.selector,
        };
        let hash = hash(&set.spec.template, 0);
        revisions
            .ensure(&revision::data(&set.spec.template), &hash)
            .await?;
        let now = self.clock.now();
        let ready = set.spec.min_ready_seconds;
        let advanced = self.advance(&set, &hash, now).await;
        let pods = self.pods(&set).await?;
        // What there is is reported even if something was refused.
        self.report(&set, &pods, &hash, now).await?;
        match advanced {
            Err(status) if !is_ending(&status) => return Err(status),
            _ => {}
        }
        let all: Vec<Pod> = pods.into_values().collect();
        revisions
            .clean(set.spec.revision_history_limit.unwrap_or(10), &hash, &all)
            .await?;
        Ok(super::replicaset::next_available(&all, ready, now))
    }
}

#[cfg(test)]
mod tests;
