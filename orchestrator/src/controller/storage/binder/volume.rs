//! One volume: whom it belongs to, and what happens when nobody wants it any more.

use serde_json::json;

use super::{
    BY_BINDER, PERSISTENT_VOLUME, PROVISIONED_BY, REPORTER, Status, Value, Volume, VolumeBinder,
};

impl VolumeBinder {
    pub(super) async fn sync_volume(&self, volume: &Volume) -> Result<(), Status> {
        let Some(kept) = volume
            .spec
            .claim_ref
            .as_ref()
            .filter(|kept| !kept.uid.is_empty())
        else {
            return self.volume_phase(volume, "Available").await;
        };
        let claim = self.claim(&format!("{}/{}", kept.namespace, kept.name))?;
        let Some(claim) = claim.filter(|claim| claim.metadata.uid == kept.uid) else {
            return self.release(volume).await;
        };
        if claim.spec.volume_name.is_empty() {
            // Its claim has been told; it is the one to go on.
            return Ok(());
        }
        if claim.spec.volume_name == volume.metadata.name {
            return self.volume_phase(volume, "Bound").await;
        }
        // The claim has found another volume.
        let made = volume.metadata.annotations.contains_key(PROVISIONED_BY);
        if made && volume.spec.persistent_volume_reclaim_policy == "Delete" {
            return self.release(volume).await;
        }
        self.free(volume).await
    }

    /// Its claim is gone. A volume that a provisioner made is that one's to delete.
    async fn release(&self, volume: &Volume) -> Result<(), Status> {
        if !matches!(volume.status.phase.as_str(), "Released" | "Failed") {
            self.volume_phase(volume, "Released").await?;
        }
        let policy = volume.spec.persistent_volume_reclaim_policy.as_str();
        let made = volume.metadata.annotations.contains_key(PROVISIONED_BY);
        let reason = match policy {
            "Delete" if !made => "VolumeFailedDelete",
            "Recycle" => "VolumeFailedRecycle",
            _ => return Ok(()),
        };
        if volume.status.phase == "Failed" || volume.metadata.deleting() {
            return Ok(());
        }
        let text = format!(
            "nobody can {} volume {:?}: no provisioner made it; delete the PersistentVolume by hand",
            policy.to_ascii_lowercase(),
            volume.metadata.name
        );
        self.change(&PERSISTENT_VOLUME, &volume.metadata, "status", |new| {
            new["status"] = json!({"phase": "Failed", "message": text, "reason": reason});
        })
        .await?;
        self.recorder
            .warning(REPORTER, &PERSISTENT_VOLUME, &volume.metadata, reason, text);
        Ok(())
    }

    /// Takes a binding back, but not the wish of a person who wrote it.
    async fn free(&self, volume: &Volume) -> Result<(), Status> {
        self.change(&PERSISTENT_VOLUME, &volume.metadata, "", |new| {
            let annotations = new["metadata"]["annotations"].as_object_mut();
            let chosen = annotations.is_some_and(|all| all.remove(BY_BINDER).is_some());
            let Some(spec) = new["spec"].as_object_mut() else {
                return;
            };
            if chosen {
                spec.remove("claimRef");
            } else if let Some(kept) = spec.get_mut("claimRef").and_then(Value::as_object_mut) {
                kept.remove("uid");
                kept.remove("resourceVersion");
            }
        })
        .await?;
        self.volume_phase(volume, "Available").await
    }

    async fn volume_phase(&self, volume: &Volume, phase: &'static str) -> Result<(), Status> {
        if volume.status.phase == phase {
            return Ok(());
        }
        self.change(&PERSISTENT_VOLUME, &volume.metadata, "status", |new| {
            new["status"] = json!({"phase": phase});
        })
        .await
    }
}
