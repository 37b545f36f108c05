//! Rolls a template out over ReplicaSets, and back.

use std::{collections::BTreeMap, time::Duration};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    replicaset::{self, ReplicaSet},
    rollout::{self, Bounds, Size},
};
use crate::{
    cache::Selector,
    controller::{
        pods::Claimer,
        runtime::{
            Again, Clock, Context, Controller, Recorder, Source,
            object::{
                Meta, Pod, adopters, controlled_by, controller_key, decode, is_ending, served,
            },
        },
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    status::Status,
};

mod sets;
mod status;
mod template;

pub use template::{hash, same_template};

const NAME: &str = "deployment-controller";
const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MOST: &str = "deployment.kubernetes.io/max-replicas";
/// Label that tells the ReplicaSets of one Deployment apart.
const HASH: &str = "pod-template-hash";
/// Annotations of a Deployment that its ReplicaSets do not take over.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MOST,
    "deprecated.deployment.rollback.to",
];

/// The controller.
#[derive(Debug)]
pub struct DeploymentController {
    client: Client,
    clock: Clock,
    recorder: Recorder,
}

/// A Deployment.
#[derive(Clone, Debug, Deserialize)]
pub struct Deployment {
    /// Metadata.
    pub metadata: Meta,
    /// Desired state.
    pub spec: Spec,
    /// Reported state.
    #[serde(default)]
    pub status: Value,
}

/// Its desired state.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    #[serde(default = "one")]
    replicas: i64,
    #[serde(default)]
    min_ready_seconds: i64,
    #[serde(default)]
    selector: Value,
    #[serde(default)]
    template: Value,
    #[serde(default)]
    strategy: Value,
    #[serde(default)]
    paused: bool,
    revision_history_limit: Option<i64>,
    progress_deadline_seconds: Option<i64>,
}

fn one() -> i64 {
    1
}

/// The resource.
pub fn resource() -> &'static Resource {
    served("apps", "deployments")
}

impl Deployment {
    fn recreates(&self) -> bool {
        self.spec.strategy["type"] == "Recreate"
    }

    fn bounds(&self) -> Bounds {
        if self.recreates() {
            Bounds::recreate(self.spec.replicas)
        } else {
            Bounds::rolling(self.spec.replicas, &self.spec.strategy["rollingUpdate"])
        }
    }
}

/// A Deployment and its ReplicaSets, oldest first.
struct View {
    deployment: Deployment,
    sets: Vec<ReplicaSet>,
    /// Index of the one with the present template.
    new: Option<usize>,
    /// Why that one could not be made.
    refused: Option<String>,
}

impl View {
    fn new_set(&self) -> Option<&ReplicaSet> {
        self.new.and_then(|index| self.sets.get(index))
    }

    fn old(&self) -> impl Iterator<Item = &ReplicaSet> {
        let new = self.new;
        let sets = self.sets.iter().enumerate();
        sets.filter(move |(index, _)| Some(*index) != new)
            .map(|(_, set)| set)
    }

    /// Pods that there are or will be: what was told to go may still be there.
    fn occupied(&self) -> i64 {
        let sets = self.sets.iter();
        sets.map(|set| set.spec.replicas.max(set.status.replicas))
            .sum()
    }

    fn total(&self) -> i64 {
        self.sets.iter().map(|set| set.spec.replicas).sum()
    }
}

fn size(set: &ReplicaSet) -> Size {
    Size {
        replicas: set.spec.replicas,
        available: set.status.available_replicas,
        born: set.metadata.born(),
        allowed_before: set.metadata.number(MOST),
    }
}

impl DeploymentController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            recorder: context.recorder.clone(),
        }
    }

    async fn view(&self, deployment: Deployment) -> Result<View, Status> {
        let selector = Selector::from_object(&deployment.spec.selector);
        let claimer = Claimer {
            client: &self.client,
            resource: resource(),
            owner: &deployment.metadata,
            selector: &selector,
        };
        let entries = claimer.claim(replicaset::resource()).await?;
        let mut sets = Vec::new();
        for entry in entries {
            sets.push(decode::<ReplicaSet>(&entry)?);
        }
        sets.sort_by_key(|set| (set.metadata.born(), set.metadata.name.clone()));
        let new = sets
            .iter()
            .position(|set| same_template(&set.spec.template, &deployment.spec.template));
        Ok(View {
            deployment,
            sets,
            new,
            refused: None,
        })
    }

    /// One step of the rollout.
    async fn step(&self, view: &mut View) -> Result<(), Status> {
        let scaling = view.sets.iter().any(|set| {
            set.spec.replicas > 0
                && set.metadata.number(DESIRED) != Some(view.deployment.spec.replicas)
        });
        if view.deployment.spec.paused || scaling {
            self.revise(view).await?;
            return self.rescale(view).await;
        }
        if view.deployment.recreates() {
            return self.recreate(view).await;
        }
        self.ensure_new(view).await?;
        let bounds = view.deployment.bounds();
        if let Some(new) = view.new_set() {
            let wanted = rollout::new_replicas(bounds, new.spec.replicas, view.occupied());
            if wanted != new.spec.replicas {
                return self
                    .scale(view, &[(new.metadata.name.clone(), wanted)])
                    .await;
            }
            let old: Vec<Size> = view.old().map(size).collect();
            let sizes = rollout::old_replicas(bounds, size(new), &old);
            let names = view.old().map(|set| set.metadata.name.clone());
            let wanted: Vec<(String, i64)> = names.zip(sizes).collect();
            self.scale(view, &wanted).await?;
        }
        Ok(())
    }

    /// Old pods first to zero, then the new ReplicaSet.
    async fn recreate(&self, view: &mut View) -> Result<(), Status> {
        let down: Vec<(String, i64)> = view
            .old()
            .map(|set| (set.metadata.name.clone(), 0))
            .collect();
        if view.old().any(|set| set.spec.replicas > 0) {
            return self.scale(view, &down).await;
        }
        for set in view.old() {
            let pods = self
                .client
                .cache_of(served("", "pods"))
                .owned_by(&set.metadata.uid);
            for entry in pods {
                if !decode::<Pod>(&entry)?.is_over() {
                    return Ok(());
                }
            }
        }
        self.ensure_new(view).await?;
        if let Some(new) = view.new_set() {
            let wanted = [(new.metadata.name.clone(), view.deployment.spec.replicas)];
            self.scale(view, &wanted).await?;
        }
        Ok(())
    }

    /// A changed size while paused or in mid-rollout.
    async fn rescale(&self, view: &mut View) -> Result<(), Status> {
        let replicas = view.deployment.spec.replicas;
        let active: Vec<&ReplicaSet> = view
            .sets
            .iter()
            .filter(|set| set.spec.replicas > 0)
            .collect();
        let only = match active.as_slice() {
            [] => view.new_set().or(view.sets.last()),
            [one] => Some(*one),
            _ => None,
        };
        if let Some(only) = only {
            let wanted = [(only.metadata.name.clone(), replicas)];
            return self.scale(view, &wanted).await;
        }
        let saturated = view.new_set().is_some_and(|new| {
            new.spec.replicas == replicas
                && new.metadata.number(DESIRED) == Some(replicas)
                && new.status.available_replicas == replicas
        });
        let wanted: Vec<(String, i64)> = if saturated {
            view.old()
                .map(|set| (set.metadata.name.clone(), 0))
                .collect()
        } else if view.deployment.recreates() || active.is_empty() {
            return Ok(());
        } else {
            let sizes: Vec<Size> = active.iter().map(|set| size(set)).collect();
            let reported = view.deployment.status["replicas"].as_i64().unwrap_or(0);
            let shared = rollout::proportional(view.deployment.bounds(), &sizes, reported);
            let names = active.iter().map(|set| set.metadata.name.clone());
            names.zip(shared).collect()
        };
        self.scale(view, &wanted).await
    }

    /// Tells ReplicaSets their sizes, and how large the whole was then.
    async fn scale(&self, view: &mut View, wanted: &[(String, i64)]) -> Result<(), Status> {
        let bounds = view.deployment.bounds();
        for (name, replicas) in wanted {
            let Some(set) = view.sets.iter_mut().find(|set| set.metadata.name == *name) else {
                continue;
            };
            let before = set.spec.replicas;
            let noted = set.metadata.number(DESIRED) == Some(bounds.replicas)
                && set.metadata.number(MOST) == Some(bounds.most());
            if before == *replicas && (noted || before == 0) {
                continue;
            }
            let target = Target::object(replicaset::resource(), &set.metadata.namespace, name);
            let change = |current: &Value| {
                let mut new = current.clone();
                new["spec"]["replicas"] = (*replicas).into();
                note_size(&mut new["metadata"]["annotations"], bounds);
                Ok(new)
            };
            let written = self.client.change(target, &change).await?.value();
            *set = serde_json::from_value(written).map_err(|e| Status::internal(e.to_string()))?;
            if before != *replicas {
                self.tell_scaled(&view.deployment, name, before, *replicas);
            }
        }
        Ok(())
    }

    fn tell_scaled(&self, deployment: &Deployment, set: &str, from: i64, to: i64) {
        let way = if to > from { "up" } else { "down" };
        let text = format!("Scaled {way} replica set {set} from {from} to {to}");
        let about = &deployment.metadata;
        self.recorder
            .normal(NAME, resource(), about, "ScalingReplicaSet", text);
    }

    /// Makes the ReplicaSet of the present template if there is none yet.
    async fn ensure_new(&self, view: &mut View) -> Result<(), Status> {
        if view.new.is_none() {
            self.make(view).await?;
        }
        self.revise(view).await
    }
}

fn note_size(annotations: &mut Value, bounds: Bounds) {
    annotations[DESIRED] = bounds.replicas.to_string().into();
    annotations[MOST] = bounds.most().to_string().into();
}

impl Controller for DeploymentController {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        let pods = self.client.clone();
        vec![
            Source::own(resource()),
            Source::new(replicaset::resource(), move |change| {
                let mut keys: Vec<_> = controller_key(change.entry, resource())
                    .into_iter()
                    .collect();
                if let Some(previous) = change.previous {
                    keys.extend(controller_key(previous, resource()));
                }
                keys.extend(adopters(&client, resource(), change.entry));
                keys.dedup();
                keys
            }),
            // Recreate waits for the last old pod to go.
            Source::new(served("", "pods"), move |change| {
                if !change.deleted {
                    return Vec::new();
                }
                let set = controller_key(change.entry, replicaset::resource());
                let set = set.and_then(|key| pods.cache_of(replicaset::resource()).get(&key));
                set.and_then(|set| controller_key(&set, resource()))
                    .into_iter()
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(resource()).get(key) else {
            return Ok(None);
        };
        let deployment: Deployment = decode(&entry)?;
        if Selector::from_object(&deployment.spec.selector).is_everything() {
            return Ok(None);
        }
        let mut view = self.view(deployment).await?;
        let mut failure = None;
        if !view.deployment.metadata.deleting() {
            failure = self.step(&mut view).await.err();
        }
        let again = self.report(&view).await?;
        if let Some(failure) = failure.filter(|failure| !is_ending(failure)) {
            return Err(failure);
        }
        if status::is_complete(&view) && !view.deployment.metadata.deleting() {
            self.clean(&view).await?;
        }
        Ok(again.map(Duration::from_secs))
    }
}
