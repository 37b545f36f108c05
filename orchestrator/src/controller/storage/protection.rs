//! Holds claims that pods use, and volumes that claims use, until nobody does.

use serde::Deserialize;
use serde_json::Value;

use super::matching::{Claim, Volume};
use crate::{
    admission::storage::{CLAIM_PROTECTION, VOLUME_PROTECTION},
    controller::runtime::{
        Again, Change, Context, Controller, Key, Source,
        object::{Meta, decode, list, served},
    },
    registry::{Target, client::Client},
    resource::{
        Resource,
        storage::{PERSISTENT_VOLUME, PERSISTENT_VOLUME_CLAIM},
    },
    status::Status,
};

/// Protects claims.
#[derive(Debug)]
pub struct ClaimProtection(Client);

/// Protects volumes.
#[derive(Debug)]
pub struct VolumeProtection(Client);

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct User {
    metadata: Meta,
    spec: UserSpec,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct UserSpec {
    node_name: String,
    volumes: Vec<Mount>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Mount {
    name: String,
    persistent_volume_claim: Option<Named>,
    ephemeral: Option<Value>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Named {
    claim_name: String,
}

impl User {
    /// Names of the claims that it uses.
    fn claims(&self) -> impl Iterator<Item = String> {
        self.spec.volumes.iter().filter_map(|volume| {
            if volume.ephemeral.is_some() {
                return Some(format!("{}-{}", self.metadata.name, volume.name));
            }
            let named = volume.persistent_volume_claim.as_ref()?;
            Some(named.claim_name.clone())
        })
    }
}

async fn let_go(
    client: &Client,
    what: &'static Resource,
    meta: &Meta,
    finalizer: &str,
) -> Result<(), Status> {
    let target = Target::object(what, &meta.namespace, &meta.name);
    client.remove_finalizer(target, &meta.uid, finalizer).await
}

impl ClaimProtection {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self(context.client.clone())
    }

    /// A pod that nobody has placed will not start with a claim that is going.
    fn is_used(&self, claim: &Claim) -> Result<bool, Status> {
        let meta = &claim.metadata;
        for entry in list(&self.0, served("", "pods"), &meta.namespace)? {
            let pod: User = decode(&entry)?;
            if !pod.spec.node_name.is_empty() && pod.claims().any(|name| name == meta.name) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Keys of the claims that a pod which has gone has used.
fn claims_of(change: &Change<'_>) -> Vec<Key> {
    if !change.deleted {
        return Vec::new();
    }
    let pod: User = change.entry.decode().unwrap_or_default();
    let namespace = change.entry.namespace();
    pod.claims()
        .map(|name| format!("{namespace}/{name}").into())
        .collect()
}

impl Controller for ClaimProtection {
    fn name(&self) -> &'static str {
        "pvc-protection-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![
            Source::own(&PERSISTENT_VOLUME_CLAIM),
            Source::new(served("", "pods"), claims_of),
        ]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.0.cache_of(&PERSISTENT_VOLUME_CLAIM).get(key) else {
            return Ok(None);
        };
        let claim: Claim = decode(&entry)?;
        let held = claim.metadata.deleting() && claim.metadata.has_finalizer(CLAIM_PROTECTION);
        if held && !self.is_used(&claim)? {
            let meta = &claim.metadata;
            let_go(&self.0, &PERSISTENT_VOLUME_CLAIM, meta, CLAIM_PROTECTION).await?;
        }
        Ok(None)
    }
}

impl VolumeProtection {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self(context.client.clone())
    }
}

impl Controller for VolumeProtection {
    fn name(&self) -> &'static str {
        "pv-protection-controller"
    }

    fn sources(&self) -> Vec<Source> {
        vec![Source::own(&PERSISTENT_VOLUME)]
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some(entry) = self.0.cache_of(&PERSISTENT_VOLUME).get(key) else {
            return Ok(None);
        };
        let volume: Volume = decode(&entry)?;
        let meta = &volume.metadata;
        if meta.deleting()
            && meta.has_finalizer(VOLUME_PROTECTION)
            && volume.status.phase != "Bound"
        {
            let_go(&self.0, &PERSISTENT_VOLUME, meta, VOLUME_PROTECTION).await?;
        }
        Ok(None)
    }
}
