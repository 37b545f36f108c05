//! Binds claims to volumes, and says what has become of both.
//!
//! Keys are those of claims (`namespace/name`) and of volumes (`name`). There
//! is one worker, so no two claims take the same volume. A binding is written
//! in four steps (volume, its phase, claim, its phase); each look finishes
//! what an earlier one left.

use serde_json::{Value, json};

use super::{
    matching::{self, Claim, Volume, choices, satisfies},
    unselect_node, volumes_for,
};
use crate::{
    admission::storage::default_class,
    controller::runtime::{
        Again, Context, Controller, Key, Recorder, Source,
        object::{decode, list, served},
    },
    registry::{Target, client::Client},
    resource::{
        Resource,
        storage::{PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM, STORAGE_CLASS},
    },
    scheduler::{SELECTED_NODE, node::NodeInfo},
    status::Status,
};

mod claim;
mod volume;

const NAME: &str = "persistent-volume-binder";
/// Who reports about volumes, as upstream's Events say it.
const REPORTER: &str = "persistentvolume-controller";
/// On a claim: its binding was completed once.
const COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// On a claim or volume: the binder chose the partner, no person did.
const BY_BINDER: &str = "pv.kubernetes.io/bound-by-controller";
/// On a volume: who made it.
pub(super) const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// On a claim: who shall make its volume.
pub(super) const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// The same under its former name.
const PROVISIONER_BETA: &str = "volume.beta.kubernetes.io/storage-provisioner";
/// Provisioner of classes whose volumes are made by hand.
const BY_HAND: &str = "kubernetes.io/no-provisioner";

/// The controller.
#[derive(Debug)]
pub struct VolumeBinder {
    client: Client,
    recorder: Recorder,
}

impl VolumeBinder {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            recorder: context.recorder.clone(),
        }
    }

    fn claim(&self, key: &str) -> Result<Option<Claim>, Status> {
        let entry = self.client.cache_of(&PERSISTENT_VOLUME_CLAIM).get(key);
        entry.map(|entry| decode(&entry)).transpose()
    }

    fn volume(&self, name: &str) -> Result<Option<Volume>, Status> {
        let entry = self.client.cache_of(&PERSISTENT_VOLUME).get(name);
        entry.map(|entry| decode(&entry)).transpose()
    }

    fn class(&self, name: &str) -> Option<Value> {
        let entry = self.client.cache_of(&STORAGE_CLASS).get(name)?;
        Some(entry.value())
    }

    fn tell(&self, claim: &Claim, reason: &'static str, message: String) {
        let about = &claim.metadata;
        self.recorder
            .normal(REPORTER, &PERSISTENT_VOLUME_CLAIM, about, reason, message);
    }

    fn warn(&self, claim: &Claim, reason: &'static str, message: String) {
        let about = &claim.metadata;
        self.recorder
            .warning(REPORTER, &PERSISTENT_VOLUME_CLAIM, about, reason, message);
    }

    /// Changes the object that was looked at, not one that has taken its name.
    async fn change(
        &self,
        what: &'static Resource,
        about: &crate::controller::runtime::object::Meta,
        subresource: &'static str,
        edit: impl Fn(&mut Value) + Send + Sync,
    ) -> Result<(), Status> {
        let target = Target {
            subresource,
            ..Target::object(what, &about.namespace, &about.name)
        };
        let change = |current: &Value| {
            if current["metadata"]["uid"] != about.uid.as_str() {
                return Err(Status::modified(what.subject(), &about.name));
            }
            let mut new = current.clone();
            edit(&mut new);
            Ok(new)
        };
        self.client.change(target, &change).await.map(drop)
    }

    /// Binds the two, as far as they are not.
    async fn bind(&self, claim: &Claim, volume: &Volume) -> Result<(), Status> {
        let (owner, held) = (&claim.metadata, &volume.metadata);
        let chosen = volume.spec.claim_ref.is_none();
        let version = self.version(owner);
        self.change(&PERSISTENT_VOLUME, held, "", |new| {
            let before = &new["spec"]["claimRef"]["uid"];
            if *before == owner.uid.as_str() {
                return;
            }
            new["spec"]["claimRef"] = json!({
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": owner.namespace,
                "name": owner.name,
                "uid": owner.uid,
                "resourceVersion": version,
            });
            if chosen {
                new["metadata"]["annotations"][BY_BINDER] = "yes".into();
            }
        })
        .await?;
        self.change(&PERSISTENT_VOLUME, held, "status", |new| {
            new["status"]["phase"] = "Bound".into();
        })
        .await?;
        self.change(&PERSISTENT_VOLUME_CLAIM, owner, "", |new| {
            if new["spec"]["volumeName"]
                .as_str()
                .unwrap_or_default()
                .is_empty()
            {
                new["spec"]["volumeName"] = held.name.clone().into();
                new["metadata"]["annotations"][BY_BINDER] = "yes".into();
            }
            new["metadata"]["annotations"][COMPLETED] = "yes".into();
        })
        .await?;
        self.change(&PERSISTENT_VOLUME_CLAIM, owner, "status", |new| {
            new["status"]["phase"] = "Bound".into();
            new["status"]["accessModes"] = volume.spec.access_modes.clone().into();
            new["status"]["capacity"] = json!(volume.spec.capacity);
        })
        .await
    }

    /// The claim's version, for its volume's reference.
    fn version(&self, claim: &crate::controller::runtime::object::Meta) -> String {
        let key = PERSISTENT_VOLUME_CLAIM.object_key(&claim.namespace, &claim.name);
        let entry = self.client.cache_of(&PERSISTENT_VOLUME_CLAIM).get(&key);
        entry.map_or_else(String::new, |entry| entry.revision.to_string())
    }

    async fn claim_phase(&self, claim: &Claim, phase: &'static str) -> Result<(), Status> {
        if claim.status.phase == phase {
            return Ok(());
        }
        self.change(&PERSISTENT_VOLUME_CLAIM, &claim.metadata, "status", |new| {
            new["status"]["phase"] = phase.into();
        })
        .await
    }
}

/// Keys of the claims that may want a volume or class that has come or changed.
fn waiting_claims(client: &Client) -> Vec<Key> {
    let entries = list(client, &PERSISTENT_VOLUME_CLAIM, "").unwrap_or_default();
    let waits = |claim: Claim| claim.status.phase != "Bound" && claim.status.phase != "Lost";
    entries
        .into_iter()
        .filter(|entry| entry.decode().is_ok_and(waits))
        .map(|entry| Key::clone(&entry.key))
        .collect()
}

impl Controller for VolumeBinder {
    fn name(&self) -> &'static str {
        NAME
    }

    fn workers(&self) -> usize {
        1
    }

    fn sources(&self) -> Vec<Source> {
        let (claims, volumes, classes) = (
            self.client.clone(),
            self.client.clone(),
            self.client.clone(),
        );
        vec![
            Source::new(&PERSISTENT_VOLUME_CLAIM, move |change| {
                let mut keys = vec![Key::clone(&change.entry.key)];
                if let Ok(claim) = change.entry.decode::<Claim>() {
                    keys.extend(claim::volumes_of(&claims, &claim, change.deleted));
                }
                keys
            }),
            Source::new(&PERSISTENT_VOLUME, move |change| {
                let mut keys = vec![Key::clone(&change.entry.key)];
                match change.entry.decode::<Volume>().map(|v| v.spec.claim_ref) {
                    Ok(Some(kept)) => keys.push(format!("{}/{}", kept.namespace, kept.name).into()),
                    Ok(None) if !change.deleted => keys.extend(waiting_claims(&volumes)),
                    _ => {}
                }
                keys
            }),
            Source::new(&STORAGE_CLASS, move |change| {
                if change.deleted {
                    return Vec::new();
                }
                waiting_claims(&classes)
            }),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        if key.contains('/') {
            if let Some(claim) = self.claim(key)? {
                self.sync_claim(&claim).await?;
            }
        } else if let Some(volume) = self.volume(key)? {
            self.sync_volume(&volume).await?;
        }
        Ok(None)
    }
}
