//! What it takes to bind a pod: its volumes first, then the pod itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};
use serde_json::{Value, json};

use super::{
    SELECTED_NODE,
    node::Nodes,
    pod::PodInfo,
    volume::{Claim, Room, Volumes},
};
use crate::{
    cache::Selector,
    controller::{
        runtime::{
            Clock, later,
            object::{Head, decode, served},
        },
        storage::{
            matching::{self, Volume, choices},
            volumes_for,
        },
    },
    registry::{Target, WriteOptions, client::Client},
    status::{Status, Subject},
};

/// Access by one pod at a time.
const ONE_POD: &str = "ReadWriteOncePod";
/// How long a volume may take to be bound.
const VOLUME_WAIT: Duration = Duration::from_mins(10);
/// Provisioner of classes whose volumes are made by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";

/// What a pod's claims demand of its node.
///
/// # Errors
/// The reason why the pod cannot be placed anywhere yet.
pub(super) fn volumes(client: &Client, pod: &PodInfo, nodes: &Nodes) -> Result<Volumes, String> {
    let mut volumes = Volumes::default();
    for name in &pod.claims {
        let key = format!("{}/{name}", pod.meta.namespace);
        let claims = client.cache_of(served("", "persistentvolumeclaims"));
        let missing = || format!("persistentvolumeclaim {name:?} not found");
        let entry = claims.get(&key).ok_or_else(missing)?;
        let claim: matching::Claim = decode(&entry).map_err(|status| status.message)?;
        if claim.metadata.deleting() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        let alone = claim.spec.access_modes.iter().any(|mode| mode == ONE_POD);
        volumes.taken |= alone && nodes.uses_claim(&key);
        volumes.claims.insert(name.clone(), demand(client, &claim)?);
    }
    Ok(volumes)
}

fn demand(client: &Client, claim: &matching::Claim) -> Result<Claim, String> {
    let bound = &claim.spec.volume_name;
    if claim.is_bound() {
        let missing = || format!("persistentvolume {bound:?} not found");
        let volumes = client.cache_of(served("", "persistentvolumes"));
        let entry = volumes.get(bound).ok_or_else(missing)?;
        let volume: Volume = decode(&entry).map_err(|status| status.message)?;
        return Ok(Claim::Bound(volume.spec.node_affinity.required));
    }
    let classes = client.cache_of(served("storage.k8s.io", "storageclasses"));
    let class = classes.get(claim.class()).map(|entry| entry.value());
    let waits = class
        .as_ref()
        .filter(|class| class["volumeBindingMode"] == "WaitForFirstConsumer");
    let Some(class) = waits.filter(|_| bound.is_empty()) else {
        return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
    };
    let volumes = volumes_for(client, claim).map_err(|status| status.message)?;
    let candidates = choices(claim, &volumes, false)
        .into_iter()
        .map(|volume| {
            let place = volume.spec.node_affinity.required.clone();
            (volume.metadata.name.clone(), place)
        })
        .collect();
    let room = room(class);
    Ok(Claim::Waiting { candidates, room })
}

/// Where volumes of a class can be made.
fn room(class: &Value) -> Room {
    if class["provisioner"] == BY_HAND {
        return Room::Nowhere;
    }
    let terms = class["allowedTopologies"].as_array().into_iter().flatten();
    let terms: Vec<NodeSelectorTerm> = terms
        .map(|term| NodeSelectorTerm {
            match_expressions: Some(labels_in(&term["matchLabelExpressions"])),
            match_fields: None,
        })
        .collect();
    if terms.is_empty() {
        return Room::Anywhere;
    }
    Room::Within(NodeSelector {
        node_selector_terms: terms,
    })
}

fn labels_in(expressions: &Value) -> Vec<NodeSelectorRequirement> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let one = |expression: &Value| NodeSelectorRequirement {
        key: text(&expression["key"]),
        operator: "In".to_owned(),
        values: expression["values"]
            .as_array()
            .map(|values| values.iter().map(text).collect()),
    };
    expressions
        .as_array()
        .into_iter()
        .flatten()
        .map(one)
        .collect()
}

/// Replaces, or adds, the condition of the same type; its time of change
/// stays if its status does.
pub(super) fn set_condition(conditions: &mut Value, condition: &Value) {
    if !conditions.is_array() {
        *conditions = json!([]);
    }
    let Some(list) = conditions.as_array_mut() else {
        return;
    };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(old) => {
            let since = old["lastTransitionTime"].clone();
            let same = old["status"] == condition["status"];
            *old = condition.clone();
            if same {
                old["lastTransitionTime"] = since;
            }
        }
        None => list.push(condition.clone()),
    }
}

/// One binding.
pub(super) struct Bind {
    pub(super) client: Client,
    pub(super) clock: Clock,
    /// Claims that wait for the node.
    pub(super) claims: Vec<String>,
}

impl Bind {
    pub(super) async fn run(&self, pod: &PodInfo, node: &str) -> Result<(), Status> {
        for claim in &self.claims {
            self.select_node(&pod.meta.namespace, claim, node).await?;
        }
        if !self.claims.is_empty() {
            self.wait_for_volumes(pod, node).await?;
        }
        let target = Target {
            subresource: "binding",
            ..Target::object(served("", "pods"), &pod.meta.namespace, &pod.meta.name)
        };
        let binding = json!({
            "metadata": {"name": pod.meta.name, "namespace": pod.meta.namespace, "uid": pod.meta.uid},
            "target": {"kind": "Node", "name": node},
        });
        let options = WriteOptions::default();
        let registry = self.client.registry();
        registry.bind(target, &binding, &options).await.map(drop)
    }

    async fn select_node(&self, namespace: &str, claim: &str, node: &str) -> Result<(), Status> {
        let target = Target::object(served("", "persistentvolumeclaims"), namespace, claim);
        let change = |current: &Value| {
            let mut new = current.clone();
            new["metadata"]["annotations"][SELECTED_NODE] = node.into();
            Ok(new)
        };
        self.client.change(target, &change).await.map(drop)
    }

    /// Resolves when all claims are bound; fails when one will not be on this node.
    async fn wait_for_volumes(&self, pod: &PodInfo, node: &str) -> Result<(), Status> {
        let claims = served("", "persistentvolumeclaims");
        let cache = self.client.cache_of(claims);
        let namespace = Some(pod.meta.namespace.clone());
        let watch = cache.list_and_watch(namespace, Selector::default());
        let (_, mut watcher) = watch.map_err(|error| Status::expired(error.to_string()))?;
        let deadline = later(self.clock.now(), VOLUME_WAIT);
        let refused = |why: &str| {
            let subject = Subject {
                group: "",
                resource: "persistentvolumeclaims",
            };
            Status::conflict(subject, &pod.meta.name, why)
        };
        let claim = |name: &String| cache.get(&format!("{}/{name}", pod.meta.namespace));
        loop {
            let is_bound = |name: &String| {
                claim(name).is_some_and(|entry| entry.value()["status"]["phase"] == "Bound")
            };
            let is_given_up = |name: &String| {
                let head = claim(name).and_then(|entry| entry.decode::<Head>().ok());
                head.is_none_or(|head| {
                    head.metadata
                        .annotations
                        .get(SELECTED_NODE)
                        .map(String::as_str)
                        != Some(node)
                })
            };
            if self.claims.iter().all(is_bound) {
                return Ok(());
            }
            if self
                .claims
                .iter()
                .any(|name| !is_bound(name) && is_given_up(name))
            {
                return Err(refused("its volumes cannot be had on the chosen node"));
            }
            tokio::select! {
                seen = watcher.next() => drop(seen.map_err(|error| Status::expired(error.to_string()))?),
                () = self.clock.sleep_until(deadline) => return Err(refused("its volumes were not bound in time")),
            }
        }
    }
}
