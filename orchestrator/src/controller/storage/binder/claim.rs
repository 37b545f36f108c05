//! One claim: finds its volume, or has one made, or says why not.

use super::{
    BY_HAND, COMPLETED, Claim, Client, Key, NodeInfo, PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM,
    PROVISIONER, PROVISIONER_BETA, SELECTED_NODE, Status, Volume, VolumeBinder, choices,
    default_class, list, matching, satisfies, served, unselect_node, volumes_for,
};

/// Keys of the volumes that a change of the claim concerns.
pub(super) fn volumes_of(client: &Client, claim: &Claim, deleted: bool) -> Vec<Key> {
    if !claim.spec.volume_name.is_empty() {
        return vec![claim.spec.volume_name.as_str().into()];
    }
    if !deleted {
        return Vec::new();
    }
    // A volume may be kept for a claim that never learned of it.
    let entries = list(client, &PERSISTENT_VOLUME, "").unwrap_or_default();
    let kept = |volume: Volume| volume.is_kept_for(claim);
    entries
        .into_iter()
        .filter(|entry| entry.decode().is_ok_and(kept))
        .map(|entry| Key::clone(&entry.key))
        .collect()
}

/// When and by whom a class's volumes are made.
struct Class {
    waits: bool,
    provisioner: String,
}

impl VolumeBinder {
    pub(super) async fn sync_claim(&self, claim: &Claim) -> Result<(), Status> {
        if claim.metadata.annotations.contains_key(COMPLETED) {
            self.sync_bound(claim).await
        } else if claim.spec.volume_name.is_empty() {
            self.find(claim).await
        } else {
            self.take_named(claim).await
        }
    }

    /// A claim that was bound once: its volume must still be there and its own.
    async fn sync_bound(&self, claim: &Claim) -> Result<(), Status> {
        let name = &claim.spec.volume_name;
        if name.is_empty() {
            let text =
                "Bound claim has lost reference to PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", text).await;
        }
        let Some(volume) = self.volume(name)? else {
            let text = "Bound claim has lost its PersistentVolume. Data on the volume is lost!";
            return self.lose(claim, "ClaimLost", text).await;
        };
        let owner = volume.spec.claim_ref.as_ref().map(|kept| kept.uid.as_str());
        match owner {
            Some(uid) if uid != claim.metadata.uid => {
                let text = "Two claims are bound to the same volume, this one is bound incorrectly";
                self.lose(claim, "ClaimMisbound", text).await
            }
            Some(_) if claim.is_bound() && volume.status.phase == "Bound" => Ok(()),
            _ => self.bind(claim, &volume).await,
        }
    }

    async fn lose(&self, claim: &Claim, reason: &'static str, text: &str) -> Result<(), Status> {
        if claim.status.phase == "Lost" {
            return Ok(());
        }
        self.change(&PERSISTENT_VOLUME_CLAIM, &claim.metadata, "status", |new| {
            new["status"] = serde_json::json!({"phase": "Lost"});
        })
        .await?;
        self.warn(claim, reason, text.to_owned());
        Ok(())
    }

    /// A claim that names its volume.
    async fn take_named(&self, claim: &Claim) -> Result<(), Status> {
        let name = &claim.spec.volume_name;
        let Some(volume) = self.volume(name)? else {
            return self.claim_phase(claim, "Pending").await;
        };
        if volume.is_kept_for(claim) {
            return self.bind(claim, &volume).await;
        }
        if volume.spec.claim_ref.is_some() {
            let text = format!("volume {name:?} already bound to a different claim.");
            self.warn(claim, "FailedBinding", text);
            return self.claim_phase(claim, "Pending").await;
        }
        match satisfies(claim, &volume) {
            Ok(()) => self.bind(claim, &volume).await,
            Err(why) => {
                let text = format!("Cannot bind to requested volume {name:?}: {why}");
                self.warn(claim, "VolumeMismatch", text);
                self.claim_phase(claim, "Pending").await
            }
        }
    }

    /// A claim that wants any volume that suits.
    async fn find(&self, claim: &Claim) -> Result<(), Status> {
        if claim.metadata.deleting() {
            return Ok(());
        }
        if self.give_class(claim).await? {
            // The write brings the next look.
            return Ok(());
        }
        let selected = claim.metadata.annotations.get(SELECTED_NODE);
        let class = self.class(claim.class()).map(|class| Class {
            waits: class["volumeBindingMode"] == "WaitForFirstConsumer",
            provisioner: class["provisioner"].as_str().unwrap_or_default().to_owned(),
        });
        let waits = class.as_ref().is_some_and(|class| class.waits) && selected.is_none();
        let node = selected.and_then(|name| self.node(name));
        let volumes = volumes_for(&self.client, claim)?;
        let reachable = |volume: &&Volume| {
            volume.is_kept_for(claim) || node.as_ref().is_none_or(|node| volume.is_reachable(node))
        };
        let found = choices(claim, &volumes, waits).into_iter().find(reachable);
        if let Some(volume) = found {
            return self.bind(claim, volume).await;
        }
        self.claim_phase(claim, "Pending").await?;
        match class {
            _ if waits => {
                let text = "waiting for first consumer to be created before binding";
                self.tell(claim, "WaitForFirstConsumer", text.to_owned());
                Ok(())
            }
            Some(class) if class.provisioner != BY_HAND => {
                self.order(claim, &class.provisioner).await
            }
            // The chosen node has no volume any more.
            Some(_) if selected.is_some() => unselect_node(&self.client, &claim.metadata).await,
            None if !claim.class().is_empty() => {
                let text = format!("storageclass.storage.k8s.io {:?} not found", claim.class());
                self.warn(claim, "ProvisioningFailed", text);
                Ok(())
            }
            _ => {
                let text =
                    "no persistent volumes available for this claim and no storage class is set";
                self.tell(claim, "FailedBinding", text.to_owned());
                Ok(())
            }
        }
    }

    fn node(&self, name: &str) -> Option<NodeInfo> {
        let entry = self.client.cache_of(served("", "nodes")).get(name)?;
        NodeInfo::of(&entry).ok()
    }

    /// A claim that was made before there was a default class gets it late.
    async fn give_class(&self, claim: &Claim) -> Result<bool, Status> {
        let says = claim.spec.storage_class_name.is_some()
            || claim
                .metadata
                .annotations
                .contains_key(matching::BETA_CLASS);
        let Some(class) = default_class(self.client.registry().cache()).filter(|_| !says) else {
            return Ok(false);
        };
        self.change(&PERSISTENT_VOLUME_CLAIM, &claim.metadata, "", |new| {
            if new["spec"]["storageClassName"].is_null() {
                new["spec"]["storageClassName"] = class.clone().into();
            }
        })
        .await?;
        Ok(true)
    }

    /// Asks a provisioner for a volume.
    async fn order(&self, claim: &Claim, provisioner: &str) -> Result<(), Status> {
        let asked = claim.metadata.annotations.get(PROVISIONER);
        if asked.is_none_or(|asked| asked != provisioner) {
            self.change(&PERSISTENT_VOLUME_CLAIM, &claim.metadata, "", |new| {
                for annotation in [PROVISIONER, PROVISIONER_BETA] {
                    new["metadata"]["annotations"][annotation] = provisioner.into();
                }
            })
            .await?;
        }
        let text = format!(
            "Waiting for a volume to be created either by the external provisioner '{provisioner}' or \
             manually by the system administrator. If volume creation is delayed, please verify that \
             the provisioner is running and correctly registered."
        );
        self.tell(claim, "ExternalProvisioning", text);
        Ok(())
    }
}
