//! Makes volumes that are directories of the node a pod was placed on.
//!
//! A volume names `ROOT/pvc-UID_NAMESPACE_NAME` on its node, of the type
//! `DirectoryOrCreate`: whoever mounts it there makes it. Deleting a volume
//! deletes the object; the directory is the node's to remove once no volume
//! names it. ROOT is the class's parameter `path`.

use std::path::{Component, Path};

use serde_json::{Value, json};

use super::{
    binder::{PROVISIONED_BY, PROVISIONER},
    matching::{Claim, Volume},
    unselect_node,
};
use crate::{
    controller::runtime::{
        Again, Context, Controller, Key, Recorder, Source,
        object::{Head, decode, list, served},
    },
    registry::{DeleteOptions, client::Client},
    resource::storage::{PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, STORAGE_CLASS},
    scheduler::SELECTED_NODE,
    status::Status,
};

/// What a StorageClass calls it.
pub const PROVISIONER_NAME: &str = "fairlead.dev/local-path";
/// Where directories are made unless the class says otherwise.
const ROOT: &str = "/var/lib/fairlead/volumes";
const NAME: &str = "local-path-provisioner";
const HOSTNAME: &str = "kubernetes.io/hostname";

/// The controller.
#[derive(Debug)]
pub struct LocalPathProvisioner {
    client: Client,
    recorder: Recorder,
}

/// Why no volume can be made; the text says what to change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum Refusal {
    #[error(
        "a directory belongs to a node: the class needs volumeBindingMode WaitForFirstConsumer"
    )]
    NoNode,
    #[error("node {0:?} not found")]
    NodeGone(String),
    #[error("access mode {0} is not supported, only ReadWriteOnce and ReadWriteOncePod are")]
    AccessMode(String),
    #[error("volumeMode Block is not supported, only Filesystem is")]
    Block,
    #[error("a selector is not supported: a new volume has no labels")]
    Selector,
    #[error("StorageClass parameter {0:?} is not known, only \"path\" is")]
    Parameter(String),
    #[error("StorageClass parameter \"path\" is {0:?}; it must be an absolute path without \"..\"")]
    Path(String),
}

impl Refusal {
    /// Whether another node may do.
    fn is_of_the_node(&self) -> bool {
        matches!(self, Self::NodeGone(_))
    }
}

/// The class's directory. Pure.
fn root(class: &Value) -> Result<String, Refusal> {
    let mut root = ROOT;
    for (name, value) in class["parameters"].as_object().into_iter().flatten() {
        if name != "path" {
            return Err(Refusal::Parameter(name.clone()));
        }
        root = value.as_str().unwrap_or_default();
    }
    let plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    let path = Path::new(root);
    if path.is_absolute() && path.components().all(plain) {
        Ok(root.trim_end_matches('/').to_owned())
    } else {
        Err(Refusal::Path(root.to_owned()))
    }
}

/// The volume for a claim on the node of this hostname. Pure.
fn volume(claim: &Claim, class: &Value, hostname: &str) -> Result<Value, Refusal> {
    let modes = &claim.spec.access_modes;
    let single = |mode: &&String| !matches!(mode.as_str(), "ReadWriteOnce" | "ReadWriteOncePod");
    if let Some(mode) = modes.iter().find(single) {
        return Err(Refusal::AccessMode(mode.clone()));
    }
    if claim.spec.volume_mode.as_deref() == Some("Block") {
        return Err(Refusal::Block);
    }
    if !claim.spec.selector.is_null() {
        return Err(Refusal::Selector);
    }
    let meta = &claim.metadata;
    let name = format!("pvc-{}", meta.uid);
    let path = format!("{}/{name}_{}_{}", root(class)?, meta.namespace, meta.name);
    let place = json!({"key": HOSTNAME, "operator": "In", "values": [hostname]});
    let mut spec = json!({
        "accessModes": modes,
        "capacity": {"storage": claim.spec.resources.requests.get("storage")},
        "claimRef": {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": meta.namespace,
            "name": meta.name,
            "uid": meta.uid,
        },
        "hostPath": {"path": path, "type": "DirectoryOrCreate"},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [place]}]}},
        "persistentVolumeReclaimPolicy": class["reclaimPolicy"].as_str().unwrap_or("Delete"),
        "storageClassName": claim.class(),
        "volumeMode": "Filesystem",
    });
    if class["mountOptions"].is_array() {
        spec["mountOptions"] = class["mountOptions"].clone();
    }
    let annotations = json!({PROVISIONED_BY: PROVISIONER_NAME});
    Ok(json!({"metadata": {"name": name, "annotations": annotations}, "spec": spec}))
}

impl LocalPathProvisioner {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
        }
    }

    async fn provision(&self, claim: &Claim) -> Result<(), Status> {
        let ours = claim.metadata.annotations.get(PROVISIONER);
        let asked = ours.is_some_and(|name| name == PROVISIONER_NAME);
        if !asked || !claim.spec.volume_name.is_empty() || claim.metadata.deleting() {
            return Ok(());
        }
        let volumes = self.client.cache_of(&PERSISTENT_VOLUME);
        if volumes
            .get(&format!("pvc-{}", claim.metadata.uid))
            .is_some()
        {
            return Ok(());
        }
        let Some(class) = self.client.cache_of(&STORAGE_CLASS).get(claim.class()) else {
            return Ok(());
        };
        let made = match self.hostname(claim) {
            Ok(hostname) => volume(claim, &class.value(), &hostname),
            Err(refusal) => Err(refusal),
        };
        let about = &claim.metadata;
        match made {
            Ok(volume) => {
                let name = volume["metadata"]["name"]
                    .as_str()
                    .unwrap_or_default()
                    .to_owned();
                match self
                    .client
                    .create_value(&PERSISTENT_VOLUME, "", volume)
                    .await
                {
                    Err(status) if !status.is("AlreadyExists") => return Err(status),
                    _ => {}
                }
                let text = format!("Successfully provisioned volume {name}");
                let reason = "ProvisioningSucceeded";
                self.recorder.normal(
                    PROVISIONER_NAME,
                    &PERSISTENT_VOLUME_CLAIM,
                    about,
                    reason,
                    text,
                );
                Ok(())
            }
            Err(refusal) => {
                let class = claim.class();
                let text =
                    format!("failed to provision volume with StorageClass {class:?}: {refusal}");
                let reason = "ProvisioningFailed";
                self.recorder.warning(
                    PROVISIONER_NAME,
                    &PERSISTENT_VOLUME_CLAIM,
                    about,
                    reason,
                    text,
                );
                if refusal.is_of_the_node() {
                    unselect_node(&self.client, about).await?;
                }
                Ok(())
            }
        }
    }

    /// The hostname label of the node that the scheduler chose.
    fn hostname(&self, claim: &Claim) -> Result<String, Refusal> {
        let name = claim.metadata.annotations.get(SELECTED_NODE);
        let name = name.ok_or(Refusal::NoNode)?;
        let gone = || Refusal::NodeGone(name.clone());
        let entry = self.client.cache_of(served("", "nodes")).get(name);
        let entry = entry.ok_or_else(gone)?;
        let node: Head = decode(&entry).map_err(|_unreadable| gone())?;
        let hostname = node.metadata.labels.get(HOSTNAME);
        Ok(hostname.unwrap_or(name).clone())
    }

    /// Deletes a volume whose claim is gone, if it was made here.
    async fn delete(&self, volume: &Volume) -> Result<(), Status> {
        let maker = volume.metadata.annotations.get(PROVISIONED_BY);
        let ours = maker.is_some_and(|name| name == PROVISIONER_NAME);
        let unwanted = volume.status.phase == "Released"
            && volume.spec.persistent_volume_reclaim_policy == "Delete";
        if !ours || !unwanted || volume.metadata.deleting() {
            return Ok(());
        }
        let options = DeleteOptions::default().only(&volume.metadata.uid);
        let name = &volume.metadata.name;
        match self
            .client
            .delete_of(&PERSISTENT_VOLUME, "", name, &options)
            .await
        {
            Err(status) if !status.is("NotFound") => Err(status),
            _ => Ok(()),
        }
    }
}

impl Controller for LocalPathProvisioner {
    fn name(&self) -> &'static str {
        NAME
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::own(&PERSISTENT_VOLUME_CLAIM),
            Source::own(&PERSISTENT_VOLUME),
            Source::new(&STORAGE_CLASS, move |_| {
                let claims = list(&client, &PERSISTENT_VOLUME_CLAIM, "").unwrap_or_default();
                claims
                    .into_iter()
                    .map(|entry| Key::clone(&entry.key))
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        if key.contains('/') {
            if let Some(entry) = self.client.cache_of(&PERSISTENT_VOLUME_CLAIM).get(key) {
                self.provision(&decode(&entry)?).await?;
            }
        } else if let Some(entry) = self.client.cache_of(&PERSISTENT_VOLUME).get(key) {
            self.delete(&decode(&entry)?).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claim(change: &Value) -> Claim {
        let mut claim = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "u1"},
            "spec": {
                "accessModes": ["ReadWriteOnce"],
                "resources": {"requests": {"storage": "1Gi"}},
                "storageClassName": "local-path",
            },
        });
        json_patch::merge(&mut claim, change);
        serde_json::from_value(claim).unwrap()
    }

    #[test]
    fn a_volume_is_a_directory_of_its_node_and_kept_for_its_claim() {
        let class = json!({"parameters": {"path": "/srv/data/"}, "reclaimPolicy": "Retain"});
        let volume = volume(&claim(&json!({})), &class, "host-1").unwrap();
        let spec = &volume["spec"];
        assert_eq!(spec["hostPath"]["path"], "/srv/data/pvc-u1_shop_data");
        assert_eq!(spec["claimRef"]["uid"], "u1");
        assert_eq!(spec["persistentVolumeReclaimPolicy"], "Retain");
        let terms = &spec["nodeAffinity"]["required"]["nodeSelectorTerms"];
        assert_eq!(terms[0]["matchExpressions"][0]["values"], json!(["host-1"]));
    }

    #[test]
    fn what_a_directory_cannot_be_is_refused() {
        let refusal =
            |change: &Value, class: &Value| volume(&claim(change), class, "n").unwrap_err();
        let shared = json!({"spec": {"accessModes": ["ReadWriteMany"]}});
        assert_eq!(
            refusal(&shared, &json!({})),
            Refusal::AccessMode("ReadWriteMany".to_owned())
        );
        let device = json!({"spec": {"volumeMode": "Block"}});
        assert_eq!(refusal(&device, &json!({})), Refusal::Block);
        for path in ["relative", "/srv/../etc", ""] {
            let class = json!({"parameters": {"path": path}});
            assert_eq!(refusal(&json!({}), &class), Refusal::Path(path.to_owned()));
        }
        let class = json!({"parameters": {"size": "1"}});
        assert_eq!(
            refusal(&json!({}), &class),
            Refusal::Parameter("size".to_owned())
        );
    }
}
