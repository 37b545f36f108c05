//! Pods whose Job is gone: nobody counts them any more, so nothing may hold them.
//!
//! Their keys are [`PREFIX`] and the pod's own key; no namespace has such a name.

use super::{Change, Head, JobController, Key, Status, TRACKING, decode, resource, served};
use crate::{
    cache::Entry,
    controller::runtime::object::{Meta, controller_key},
    registry::client::Client,
};

/// Begins the keys of pods.
pub(super) const PREFIX: &str = "pod|";

fn key(entry: &Entry) -> Key {
    format!("{PREFIX}{}", entry.key).into()
}

/// Whether a Job controls the pod that is there to count it.
fn is_counted(client: &Client, entry: &Entry) -> bool {
    let job = controller_key(entry, resource());
    let job = job.and_then(|key| client.cache_of(resource()).get(&key));
    job.is_some_and(|job| entry.controller_uid() == Some(&*job.uid))
}

fn is_held(entry: &Entry) -> Result<Option<Meta>, Status> {
    // Most pods are of no Job, which a look at their text tells.
    let text = std::str::from_utf8(&entry.bytes);
    if !text.is_ok_and(|text| text.contains(TRACKING)) {
        return Ok(None);
    }
    let meta = decode::<Head>(entry)?.metadata;
    Ok(meta.has_finalizer(TRACKING).then_some(meta))
}

/// The key of a changed pod that no Job counts.
pub(super) fn key_of(client: &Client, change: &Change<'_>) -> Option<Key> {
    let entry = change.entry;
    let held = !change.deleted && is_held(entry).is_ok_and(|held| held.is_some());
    (held && !is_counted(client, entry)).then(|| key(entry))
}

/// The key of a Job; of one that is gone, those of its pods as well.
pub(super) fn left_by(client: &Client, change: &Change<'_>) -> Vec<Key> {
    let mut keys = vec![Key::clone(&change.entry.key)];
    if change.deleted {
        let pods = client.cache_of(served("", "pods"));
        keys.extend(pods.owned_by(&change.entry.uid).iter().map(|pod| key(pod)));
    }
    keys
}

impl JobController {
    /// Takes the finalizer off a pod that no Job counts.
    pub(super) async fn let_orphan_go(&self, key: &str) -> Result<(), Status> {
        let Some(entry) = self.client.cache_of(served("", "pods")).get(key) else {
            return Ok(());
        };
        match is_held(&entry)? {
            Some(meta) if !is_counted(&self.client, &entry) => self.let_go(&meta).await,
            _ => Ok(()),
        }
    }
}
