//! Ownership: objects go with their owners, before them, or are let go.
//!
//! Who owns whom is an index of the watch cache; this controller keeps no
//! graph of its own. Its keys are `resource|namespace/name`.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::Value;

use crate::{
    cache::Entry,
    controller::runtime::{
        Again, Change, Context, Controller, Key, Source,
        object::{Head, Meta, decode, split},
    },
    registry::{DeleteOptions, Propagation, Target, client::Client},
    resource::{self, Resource},
    status::Status,
};

const ORPHAN: &str = "orphan";
const FOREGROUND: &str = "foregroundDeletion";

/// The controller.
#[derive(Debug)]
pub struct GarbageCollector {
    client: Client,
}

/// What an owner reference points at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// An object that stays, or one this server cannot know.
    Solid,
    /// Nothing, or another incarnation.
    Absent,
    /// An object that waits for its dependents to go.
    Waiting,
}

/// What to do about an object, given its owners.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Keep,
    /// Drop the references to owners with these UIDs; others stay.
    Release(Vec<String>),
    /// Delete it, by its own finalizers' policy.
    Collect,
    /// Delete it after its own dependents: its owner waits for all of them.
    CollectForeground,
}

/// Judges an object by its owners. Pure.
pub fn judge(owners: &[(String, Owner)], has_dependents: bool) -> Verdict {
    let any = |wanted| owners.iter().any(|(_, owner)| *owner == wanted);
    if owners.is_empty() {
        return Verdict::Keep;
    }
    if any(Owner::Solid) {
        let gone: Vec<String> = owners
            .iter()
            .filter(|(_, owner)| *owner != Owner::Solid)
            .map(|(uid, _)| uid.clone())
            .collect();
        return if gone.is_empty() {
            Verdict::Keep
        } else {
            Verdict::Release(gone)
        };
    }
    if any(Owner::Waiting) && has_dependents {
        return Verdict::CollectForeground;
    }
    Verdict::Collect
}

impl GarbageCollector {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
        }
    }

    fn owner(&self, namespace: &str, owner: &OwnerReference) -> Owner {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let Some(resource) =
            resource::find_kind(group, "v1", &owner.kind).filter(|r| r.is_stored())
        else {
            return Owner::Solid;
        };
        if resource.namespaced && namespace.is_empty() {
            return Owner::Solid;
        }
        let key = resource.object_key(namespace, &owner.name);
        let Some(entry) = self.client.cache_of(resource).get(&key) else {
            return Owner::Absent;
        };
        if *entry.uid != *owner.uid {
            return Owner::Absent;
        }
        match entry.decode::<Head>() {
            Ok(head) if head.metadata.deleting() && head.metadata.has_finalizer(FOREGROUND) => {
                Owner::Waiting
            }
            _ => Owner::Solid,
        }
    }

    fn dependents(&self, uid: &str) -> Vec<(&'static Resource, Arc<Entry>)> {
        dependents(&self.client, uid)
    }

    /// Takes owners off an object.
    async fn release(
        &self,
        resource: &'static Resource,
        entry: &Entry,
        owners: &[String],
    ) -> Result<(), Status> {
        let target = Target::object(resource, entry.namespace(), entry.name());
        let edit = |new: &mut Value| {
            if let Some(list) = new["metadata"]["ownerReferences"].as_array_mut() {
                list.retain(|owner| !owners.iter().any(|uid| owner["uid"] == uid.as_str()));
            }
        };
        self.client.amend(target, &entry.uid, edit).await
    }

    async fn unfinalize(
        &self,
        resource: &'static Resource,
        entry: &Entry,
        name: &str,
    ) -> Result<(), Status> {
        let target = Target::object(resource, entry.namespace(), entry.name());
        self.client.remove_finalizer(target, &entry.uid, name).await
    }

    /// An owner that is being deleted with a policy other than background.
    async fn end_owner(
        &self,
        resource: &'static Resource,
        entry: &Entry,
        meta: &Meta,
    ) -> Result<(), Status> {
        let dependents = self.dependents(&entry.uid);
        if meta.has_finalizer(ORPHAN) {
            for (of, dependent) in &dependents {
                self.release(of, dependent, std::slice::from_ref(&meta.uid))
                    .await?;
            }
            return self.unfinalize(resource, entry, ORPHAN).await;
        }
        if !meta.has_finalizer(FOREGROUND) {
            return Ok(());
        }
        let (mut blocked, mut refused) = (false, Ok(()));
        for (of, dependent) in &dependents {
            let head: Head = decode(dependent)?;
            let mut references = head.metadata.owner_references.iter();
            blocked |=
                references.any(|o| o.uid == meta.uid && o.block_owner_deletion == Some(true));
            if !head.metadata.deleting() {
                let collected = self.collect(of, dependent, &head.metadata).await;
                refused = refused.and(collected);
            }
        }
        refused?;
        // Deletions above may have ended some of them already.
        let gone = self.dependents(&entry.uid).is_empty();
        if gone || !blocked {
            self.unfinalize(resource, entry, FOREGROUND).await?;
        }
        Ok(())
    }

    /// Judges one object by its owners and does so.
    async fn collect(
        &self,
        resource: &'static Resource,
        entry: &Entry,
        meta: &Meta,
    ) -> Result<(), Status> {
        let owners: Vec<(String, Owner)> = meta
            .owner_references
            .iter()
            .map(|o| (o.uid.clone(), self.owner(entry.namespace(), o)))
            .collect();
        let propagation = match judge(&owners, !self.dependents(&entry.uid).is_empty()) {
            Verdict::Keep => return Ok(()),
            Verdict::Release(gone) => return self.release(resource, entry, &gone).await,
            Verdict::CollectForeground => Propagation::Foreground,
            Verdict::Collect if meta.has_finalizer(ORPHAN) => Propagation::Orphan,
            Verdict::Collect if meta.has_finalizer(FOREGROUND) => Propagation::Foreground,
            Verdict::Collect => Propagation::Background,
        };
        // Its owners may have changed since: only what was judged goes.
        let options = DeleteOptions {
            resource_version: Some(entry.revision.to_string()),
            ..DeleteOptions::propagating(propagation).only(&entry.uid)
        };
        let deleted = self
            .client
            .delete_of(resource, entry.namespace(), entry.name(), &options)
            .await;
        absent_is_fine(deleted.map(drop))
    }
}

fn absent_is_fine(result: Result<(), Status>) -> Result<(), Status> {
    match result {
        Err(status) if status.is("NotFound") => Ok(()),
        other => other,
    }
}

fn key_of(resource: &Resource, entry: &Entry) -> Key {
    format!("{}|{}", resource.key, entry.key).into()
}

/// All objects that name `uid` as an owner.
fn dependents(client: &Client, uid: &str) -> Vec<(&'static Resource, Arc<Entry>)> {
    resource::stored()
        .flat_map(|r| {
            let owned = client.cache_of(r).owned_by(uid);
            owned.into_iter().map(move |entry| (r, entry))
        })
        .collect()
}

/// The owners of an entry that are being deleted, as keys.
fn ending_owners(client: &Client, entry: &Entry) -> Vec<Key> {
    if entry.owners.is_empty() {
        return Vec::new();
    }
    let Ok(head) = entry.decode::<Head>() else {
        return Vec::new();
    };
    let keys = head.metadata.owner_references.iter().filter_map(|owner| {
        let group = owner.api_version.split_once('/').map_or("", |(g, _)| g);
        let resource = resource::find_kind(group, "v1", &owner.kind).filter(|r| r.is_stored())?;
        let found = client
            .cache_of(resource)
            .get(&resource.object_key(entry.namespace(), &owner.name))?;
        is_ending(&found).then(|| key_of(resource, &found))
    });
    keys.collect()
}

/// Whether deletion finalizers that are this controller's may be on it.
fn is_ending(entry: &Entry) -> bool {
    entry.decode::<Ending>().is_ok_and(|ending| {
        ending.metadata.deletion_timestamp.is_some()
            && ending
                .metadata
                .finalizers
                .iter()
                .any(|f| f == ORPHAN || f == FOREGROUND)
    })
}

#[derive(serde::Deserialize)]
struct Ending {
    metadata: EndingMeta,
}

#[derive(serde::Deserialize)]
#[serde(rename_all = "camelCase", default)]
#[derive(Default)]
struct EndingMeta {
    deletion_timestamp: Option<serde::de::IgnoredAny>,
    finalizers: Vec<String>,
}

/// Which keys a change concerns.
fn concerned(client: &Client, resource: &'static Resource, change: &Change<'_>) -> Vec<Key> {
    let entry = change.entry;
    if change.deleted {
        let mut keys: Vec<Key> = dependents(client, &entry.uid)
            .into_iter()
            .map(|(of, dependent)| key_of(of, &dependent))
            .collect();
        keys.extend(ending_owners(client, entry));
        return keys;
    }
    let mut keys = Vec::new();
    let owners_changed = change.previous.is_none_or(|p| p.owners != entry.owners);
    if owners_changed || is_ending(entry) {
        if !entry.owners.is_empty() || is_ending(entry) {
            keys.push(key_of(resource, entry));
        }
        // A former owner may have waited for this.
        if let Some(previous) = change.previous {
            keys.extend(ending_owners(client, previous));
        }
    }
    keys
}

impl Controller for GarbageCollector {
    fn name(&self) -> &'static str {
        "generic-garbage-collector"
    }

    fn workers(&self) -> usize {
        16
    }

    fn sources(&self) -> Vec<Source> {
        resource::stored()
            .filter(|r| r.key != "events")
            .map(|r| {
                let client = self.client.clone();
                Source::new(r, move |change| concerned(&client, r, change))
            })
            .collect()
    }

    async fn reconcile(&self, key: &str) -> Result<Again, Status> {
        let Some((prefix, key)) = key.split_once('|') else {
            return Ok(None);
        };
        let Some(resource) = resource::stored().find(|r| r.key == prefix) else {
            return Ok(None);
        };
        debug_assert!(!resource.namespaced || !split(key).0.is_empty());
        let Some(entry) = self.client.cache_of(resource).get(key) else {
            return Ok(None);
        };
        let head: Head = decode(&entry)?;
        if head.metadata.deleting() {
            self.end_owner(resource, &entry, &head.metadata).await?;
        } else {
            self.collect(resource, &entry, &head.metadata).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::{Owner::*, *};

    fn check(owners: &[Owner], has_dependents: bool, wanted: &Verdict) {
        let owners: Vec<(String, Owner)> = owners
            .iter()
            .enumerate()
            .map(|(index, owner)| (index.to_string(), *owner))
            .collect();
        assert_eq!(judge(&owners, has_dependents), *wanted);
    }

    #[test]
    fn an_object_stays_while_one_owner_stays() {
        check(&[], true, &Verdict::Keep);
        check(&[Solid], false, &Verdict::Keep);
        check(
            &[Absent, Solid, Waiting],
            true,
            &Verdict::Release(vec!["0".into(), "2".into()]),
        );
    }

    #[test]
    fn an_object_without_any_owner_left_goes() {
        check(&[Absent], true, &Verdict::Collect);
        check(&[Waiting], false, &Verdict::Collect);
        check(&[Waiting, Absent], true, &Verdict::CollectForeground);
    }
}
