//! What it takes to bind a pod: its volumes first, then the pod itself.

use std::time::Duration;

use k8s_openapi::api::core::v1::NodeSelector;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    SELECTED_NODE,
    pod::PodInfo,
    volume::{Claim, Volumes},
};
use crate::{
    cache::Selector,
    controller::runtime::{
        Clock, later,
        object::{Meta, decode, list, served},
    },
    registry::{Caller, Target, WriteOptions, client::Client},
    status::{Status, Subject},
};

/// How long a volume may take to be bound.
const VOLUME_WAIT: Duration = Duration::from_mins(10);
/// Provisioner of classes whose volumes are made by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";

#[derive(Debug, Deserialize)]
struct RawClaim {
    metadata: Meta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

#[derive(Debug, Deserialize)]
struct RawVolume {
    #[serde(default)]
    spec: RawVolumeSpec,
    #[serde(default)]
    status: Value,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct RawVolumeSpec {
    node_affinity: Option<Affinity>,
    claim_ref: Option<Value>,
    storage_class_name: String,
}

#[derive(Debug, Deserialize)]
struct Affinity {
    required: Option<NodeSelector>,
}

/// What a pod's claims demand of its node.
///
/// # Errors
/// The reason why the pod cannot be placed anywhere yet.
pub(super) fn volumes(client: &Client, pod: &PodInfo) -> Result<Volumes, String> {
    let mut volumes = Volumes::default();
    for name in &pod.claims {
        let key = format!("{}/{name}", pod.meta.namespace);
        let claims = client.cache_of(served("", "persistentvolumeclaims"));
        let missing = || format!("persistentvolumeclaim {name:?} not found");
        let entry = claims.get(&key).ok_or_else(missing)?;
        let claim: RawClaim = decode(&entry).map_err(|status| status.message)?;
        if claim.metadata.deleting() {
            return Err(format!("persistentvolumeclaim {name:?} is being deleted"));
        }
        volumes.claims.insert(name.clone(), demand(client, &claim)?);
    }
    Ok(volumes)
}

fn demand(client: &Client, claim: &RawClaim) -> Result<Claim, String> {
    let volumes = client.cache_of(served("", "persistentvolumes"));
    let bound = claim.spec["volumeName"].as_str().unwrap_or_default();
    if claim.status["phase"] == "Bound" {
        let missing = || format!("persistentvolume {bound:?} not found");
        let entry = volumes.get(bound).ok_or_else(missing)?;
        let volume: RawVolume = decode(&entry).map_err(|status| status.message)?;
        return Ok(Claim::Bound(
            volume.spec.node_affinity.and_then(|a| a.required),
        ));
    }
    let class = claim.spec["storageClassName"].as_str().unwrap_or_default();
    let classes = client.cache_of(served("storage.k8s.io", "storageclasses"));
    let class_entry = classes.get(class).map(|entry| entry.value());
    let waits = class_entry
        .as_ref()
        .is_some_and(|c| c["volumeBindingMode"] == "WaitForFirstConsumer");
    if !waits || !bound.is_empty() {
        return Err("pod has unbound immediate PersistentVolumeClaims".to_owned());
    }
    let free = |volume: &RawVolume| {
        volume.spec.claim_ref.is_none()
            && volume.status["phase"] == "Available"
            && volume.spec.storage_class_name == class
    };
    let entries = list(client, served("", "persistentvolumes"), "").map_err(|s| s.message)?;
    let candidates = entries
        .iter()
        .filter_map(|entry| entry.decode::<RawVolume>().ok())
        .filter(free)
        .map(|volume| volume.spec.node_affinity.and_then(|a| a.required))
        .collect();
    let provisioner = class_entry.as_ref().and_then(|c| c["provisioner"].as_str());
    let dynamic = provisioner.is_some_and(|name| name != BY_HAND);
    Ok(Claim::Waiting {
        candidates,
        dynamic,
    })
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
    pub(super) caller: Caller,
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
            self.wait_for_volumes(pod).await?;
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
        registry
            .bind(target, &self.caller, &binding, &options)
            .await
            .map(drop)
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

    /// Resolves when all claims are bound.
    async fn wait_for_volumes(&self, pod: &PodInfo) -> Result<(), Status> {
        let claims = served("", "persistentvolumeclaims");
        let cache = self.client.cache_of(claims);
        let namespace = Some(pod.meta.namespace.clone());
        let watch = cache.list_and_watch(namespace, Selector::default());
        let (_, mut watcher) = watch.map_err(|error| Status::expired(error.to_string()))?;
        let deadline = later(self.clock.now(), VOLUME_WAIT);
        let late = || {
            let subject = Subject {
                group: "",
                resource: "persistentvolumeclaims",
            };
            Status::conflict(
                subject,
                &pod.meta.name,
                "its volumes were not bound in time",
            )
        };
        loop {
            let is_bound = |name: &String| {
                let entry = cache.get(&format!("{}/{name}", pod.meta.namespace));
                entry.is_some_and(|entry| entry.value()["status"]["phase"] == "Bound")
            };
            if self.claims.iter().all(is_bound) {
                return Ok(());
            }
            tokio::select! {
                seen = watcher.next() => drop(seen.map_err(|error| Status::expired(error.to_string()))?),
                () = self.clock.sleep_until(deadline) => return Err(late()),
            }
        }
    }
}
