//! Runs one pod of a template on every node that fits.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Taint;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    deployment::hash,
    revision::{self, HASH, Revisions, is_of},
};
use crate::{
    cache::Selector,
    controller::{
        pods::{self, Claimer, Keeper},
        runtime::{
            Again, Change, Clock, Context, Controller, Recorder, Source,
            object::{self, Meta, Pod, decode, served},
            sooner,
        },
    },
    registry::{Target, client::Client},
    resource::Resource,
    scheduler::{affinity::untolerated, filter::node_fits, node::NodeInfo, pod::PodInfo},
    status::Status,
};

mod failing;
mod plan;

use failing::Failing;
use plan::{Ended, Place, Plan, Update, plan};

const NAME: &str = "daemonset-controller";

/// The controller.
#[derive(Debug)]
pub struct DaemonSetController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
    failing: Mutex<Failing>,
}

#[derive(Clone, Debug, Deserialize)]
struct DaemonSet {
    metadata: Meta,
    spec: Spec,
    #[serde(default)]
    status: Value,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Spec {
    selector: Value,
    template: Value,
    update_strategy: Value,
    min_ready_seconds: i64,
    revision_history_limit: Option<i64>,
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("apps", "daemonsets")
}

/// What every daemon's pod tolerates, so that it stays where others go.
const TOLERATED: [(&str, &str); 7] = [
    ("node.kubernetes.io/not-ready", "NoExecute"),
    ("node.kubernetes.io/unreachable", "NoExecute"),
    ("node.kubernetes.io/disk-pressure", "NoSchedule"),
    ("node.kubernetes.io/memory-pressure", "NoSchedule"),
    ("node.kubernetes.io/pid-pressure", "NoSchedule"),
    ("node.kubernetes.io/unschedulable", "NoSchedule"),
    ("node.kubernetes.io/network-unavailable", "NoSchedule"),
];

/// The pod for a node.
fn pod_for(set: &DaemonSet, hash: &str, node: &str) -> Value {
    let mut pod = pods::from_template(&set.spec.template, resource(), &set.metadata);
    pod["metadata"]["generateName"] = pods::name_prefix(&set.metadata.name).into();
    pod["metadata"]["labels"][HASH] = hash.into();
    let spec = &mut pod["spec"];
    let host_network = spec["hostNetwork"] == true;
    let mut tolerations = spec["tolerations"].as_array().cloned().unwrap_or_default();
    for (key, effect) in TOLERATED {
        if key.ends_with("network-unavailable") && !host_network {
            continue;
        }
        let toleration = json!({"key": key, "operator": "Exists", "effect": effect});
        if !tolerations.contains(&toleration) {
            tolerations.push(toleration);
        }
    }
    spec["tolerations"] = tolerations.into();
    let field = json!([{"key": "metadata.name", "operator": "In", "values": [node]}]);
    let required =
        &mut spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    let mut terms = required["nodeSelectorTerms"]
        .as_array()
        .cloned()
        .unwrap_or_default();
    if terms.is_empty() {
        terms.push(json!({}));
    }
    for term in &mut terms {
        term["matchFields"] = field.clone();
    }
    required["nodeSelectorTerms"] = terms.into();
    pod
}

/// Whether a daemon should be started on a node, and whether one may stay.
fn fits(pod: &PodInfo, node: &NodeInfo) -> (bool, bool) {
    if !node_fits(pod, node) {
        return (false, false);
    }
    let intolerable = |effects: &[&str]| untolerated(&node.taints, &pod.tolerations, effects);
    let start: Option<&Taint> = intolerable(&["NoSchedule", "NoExecute"]);
    (start.is_none(), intolerable(&["NoExecute"]).is_none())
}

impl DaemonSetController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
            failing: Mutex::default(),
        }
    }

    fn places(&self, set: &DaemonSet, hash: &str) -> Result<BTreeMap<String, Place>, Status> {
        let mut places = BTreeMap::new();
        for entry in object::list(&self.client, served("", "nodes"), "")? {
            let node = NodeInfo::of(&entry).map_err(|error| Status::internal(error.to_string()))?;
            let mut pod = pod_for(set, hash, &node.name);
            pod["metadata"]["name"] = "daemon".into();
            let pod =
                PodInfo::from_value(&pod).map_err(|error| Status::internal(error.to_string()))?;
            let (start, stay) = fits(&pod, &node);
            places.insert(node.name, Place { start, stay });
        }
        Ok(places)
    }

    async fn claim(&self, set: &DaemonSet) -> Result<Vec<Pod>, Status> {
        let selector = Selector::from_object(&set.spec.selector);
        let claimer = Claimer {
            client: &self.client,
            resource: resource(),
            owner: &set.metadata,
            selector: &selector,
        };
        pods::decode_all(&claimer.claim(served("", "pods")).await?)
    }

    /// The pods that have ended and may be replaced now, and when the next
    /// may: one that fails again and again waits ever longer.
    fn ended<'p>(
        &self,
        set: &DaemonSet,
        ended: &'p [Ended],
        now: Timestamp,
    ) -> (Vec<&'p str>, Again) {
        let (mut going, mut again) = (Vec::new(), None);
        let mut failing = self.failing.lock().expect("no holder panics");
        for Ended { node, pod, failed } in ended {
            if *failed && let Some(wait) = failing.wait(&set.metadata.uid, node, now) {
                again = sooner(again, Some(wait));
                continue;
            }
            let (about, place) = (&set.metadata, &set.metadata.namespace);
            if *failed {
                let text = format!(
                    "Found failed daemon pod {place}/{pod} on node {node}, will try to kill it"
                );
                self.recorder
                    .warning(NAME, resource(), about, "FailedDaemonPod", text);
            } else {
                let text = format!(
                    "Found succeeded daemon pod {place}/{pod} on node {node}, will try to delete it"
                );
                self.recorder
                    .normal(NAME, resource(), about, "SucceededDaemonPod", text);
            }
            going.push(pod.as_str());
        }
        (going, again)
    }

    async fn apply(
        &self,
        set: &DaemonSet,
        plan: &Plan,
        all: &[Pod],
        hash: &str,
    ) -> Result<Again, Status> {
        let keeper = Keeper {
            client: &self.client,
            recorder: &self.recorder,
            reporter: NAME,
            resource: resource(),
            owner: &set.metadata,
        };
        let (ended, again) = self.ended(set, &plan.ended, self.clock.now());
        let going: BTreeSet<&str> = plan.stop.iter().map(String::as_str).chain(ended).collect();
        let going = all.iter().filter(|pod| going.contains(&*pod.metadata.name));
        let removed = keeper.remove(going).await;
        let count = plan.start.len().min(pods::BURST);
        let node = |turn: usize| plan.start.get(turn).map_or("", |node| node);
        let made = keeper
            .make(count, |turn| pod_for(set, hash, node(turn)))
            .await;
        removed.and(made).map(|()| again)
    }

    async fn report(
        &self,
        set: &DaemonSet,
        places: &BTreeMap<String, Place>,
        pods: &[Pod],
        hash: &str,
    ) -> Result<(), Status> {
        let now = self.clock.now();
        let number = |count: usize| Value::from(count);
        let on = |pod: &&Pod, start: bool| {
            let place = places.get(node_of(pod).unwrap_or_default());
            place.is_some_and(|place| place.start == start) && pod.is_active()
        };
        let placed: Vec<&Pod> = pods.iter().filter(|pod| on(pod, true)).collect();
        let nodes = |test: &dyn Fn(&&&Pod) -> bool| -> usize {
            let nodes = placed.iter().filter(|p| test(p));
            nodes
                .filter_map(|p| node_of(p))
                .collect::<BTreeSet<_>>()
                .len()
        };
        let misplaced = pods.iter().filter(|pod| on(pod, false));
        let misplaced: BTreeSet<_> = misplaced.filter_map(node_of).collect();
        let desired = places.values().filter(|place| place.start).count();
        let available = nodes(&|pod| pod.is_available(set.spec.min_ready_seconds, now));
        let mut status = json!({
            "desiredNumberScheduled": desired,
            "currentNumberScheduled": nodes(&|_| true),
            "numberMisscheduled": misplaced.len(),
            "numberReady": nodes(&|pod| pod.is_ready()),
            "observedGeneration": set.metadata.generation,
        });
        for (field, count) in [
            ("updatedNumberScheduled", nodes(&|pod| is_of(pod, hash))),
            ("numberAvailable", available),
            ("numberUnavailable", desired.saturating_sub(available)),
        ] {
            if count > 0 {
                status[field] = number(count);
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

/// The node that a pod is on, or is meant for.
fn node_of(pod: &Pod) -> Option<&str> {
    if !pod.spec.node_name.is_empty() {
        return Some(&pod.spec.node_name);
    }
    let required =
        &pod.spec.affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"];
    required["nodeSelectorTerms"][0]["matchFields"][0]["values"][0].as_str()
}

impl Controller for DaemonSetController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let (pods, nodes) = (self.client.clone(), self.client.clone());
        vec![
            Source::own(resource()),
            Source::new(served("", "pods"), move |change| {
                super::replicaset::owners_of_pod(&pods, resource(), change)
            }),
            Source::new(served("", "nodes"), move |change| {
                if !node_matters(change) {
                    return Vec::new();
                }
                let all = object::list(&nodes, resource(), "").unwrap_or_default();
                all.iter()
                    .map(|set| std::sync::Arc::clone(&set.key))
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let set: DaemonSet = decode(&entry)?;
        if Selector::from_object(&set.spec.selector).is_everything() || set.metadata.deleting() {
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
        let places = self.places(&set, &hash)?;
        let all = self.claim(&set).await?;
        let mut by_node: BTreeMap<String, Vec<&Pod>> = BTreeMap::new();
        for pod in &all {
            by_node
                .entry(node_of(pod).unwrap_or_default().to_owned())
                .or_default()
                .push(pod);
        }
        let wanted = places.values().filter(|place| place.start).count();
        let ready = set.spec.min_ready_seconds;
        let update = Update::new(
            &set.spec.update_strategy,
            wanted,
            &hash,
            ready,
            self.clock.now(),
        );
        let plan = plan(&places, &by_node, &update);
        let applied = self.apply(&set, &plan, &all, &hash).await;
        let all = self.claim(&set).await?;
        // What there is is reported even if something was refused.
        self.report(&set, &places, &all, &hash).await?;
        let again = applied?;
        revisions
            .clean(set.spec.revision_history_limit.unwrap_or(10), &hash, &all)
            .await?;
        let next = super::replicaset::next_available(&all, ready, self.clock.now());
        Ok(sooner(again, next))
    }
}

/// Whether a node's change may bring or end daemons; heartbeats do not.
fn node_matters(change: &Change<'_>) -> bool {
    let Some(previous) = change.previous.filter(|_| !change.deleted) else {
        return true;
    };
    let read = |entry| {
        NodeInfo::of(entry)
            .ok()
            .map(|n| (n.labels, n.taints, n.unschedulable))
    };
    read(previous) != read(change.entry)
}
