//! Ends pods that nobody ends: those of nodes that are gone, and ended ones
//! beyond a bound.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;

use crate::{
    cache::Entry,
    controller::{
        pods,
        runtime::{
            Again, Clock, Context, Controller, Source, later,
            object::{self, Pod, decode, served},
            stamp,
        },
    },
    registry::{DeleteOptions, Target, client::Client},
    status::Status,
};

/// How long a node may be gone before its pods go.
const QUARANTINE: Duration = Duration::from_secs(40);
/// Ended pods that are kept, as upstream's default.
const ENDED_MAX: usize = 12_500;
/// Key of the look at ended pods; no node has such a name.
const ENDED: &str = "/ended";

/// The controller.
#[derive(Debug)]
pub struct PodGarbageCollector {
    client: Client,
    clock: Clock,
    /// Since when nodes have been gone. One per name that pods mention.
    gone: Mutex<HashMap<String, Timestamp>>,
}

impl PodGarbageCollector {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
            gone: Mutex::default(),
        }
    }

    async fn end(&self, entry: &Entry) -> Result<(), Status> {
        let pod: Pod = decode(entry)?;
        let what = served("", "pods");
        let now = stamp(self.clock.now());
        if !pod.is_over() {
            let edit = |new: &mut Value| {
                new["status"]["phase"] = "Failed".into();
                let text = "PodGC: node no longer exists";
                pods::disrupt(new, "DeletionByPodGC", text, &now);
            };
            let target = Target::status(what, entry.namespace(), entry.name());
            self.client.amend(target, &entry.uid, edit).await?;
        }
        let options = DeleteOptions::now().only(&entry.uid);
        let deleted = self
            .client
            .delete_of(what, entry.namespace(), entry.name(), &options)
            .await;
        match deleted {
            // Another pod may have taken its name.
            Err(status) if !status.is("NotFound") && !status.is("Conflict") => Err(status),
            _ => Ok(()),
        }
    }

    /// Ends what has ended beyond the bound, oldest first.
    async fn end_surplus(&self) -> Result<(), Status> {
        let mut ended = object::list(&self.client, served("", "pods"), "")?;
        ended.retain(|entry| has_ended(entry));
        let surplus = ended.len().saturating_sub(ENDED_MAX);
        if surplus == 0 {
            return Ok(());
        }
        let mut by_age = Vec::with_capacity(ended.len());
        for entry in ended {
            by_age.push((decode::<Pod>(&entry)?.metadata.born(), entry));
        }
        by_age.sort_by_key(|(born, _)| *born);
        for (_, entry) in by_age.iter().take(surplus) {
            self.end(entry).await?;
        }
        Ok(())
    }
}

/// Whether a pod has ended, by what the cache knows of it.
fn has_ended(pod: &Entry) -> bool {
    let mut fields = pod.fields.iter();
    fields.any(|field| matches!(&**field, "Succeeded" | "Failed"))
}

impl Controller for PodGarbageCollector {
    fn name(&self) -> &'static str {
        "pod-garbage-collector"
    }

    fn workers(&self) -> usize {
        1
    }

    fn sources(&self) -> Vec<Source> {
        let client = self.client.clone();
        vec![
            Source::new(served("", "nodes"), |change| {
                change
                    .deleted
                    .then(|| Arc::clone(&change.entry.key))
                    .into_iter()
                    .collect()
            }),
            Source::new(served("", "pods"), move |change| {
                let node = change.entry.fields.first().map_or("", |node| node);
                let lost = !change.deleted
                    && !node.is_empty()
                    && client.cache_of(served("", "nodes")).get(node).is_none();
                let newly = !change.deleted
                    && has_ended(change.entry)
                    && !change.previous.is_some_and(has_ended);
                lost.then(|| node.into())
                    .into_iter()
                    .chain(newly.then(|| ENDED.into()))
                    .collect()
            }),
        ]
    }

    async fn reconcile(&self, node: &str) -> Result<Again, Status> {
        if node == ENDED {
            self.end_surplus().await?;
            return Ok(None);
        }
        if self
            .client
            .cache_of(served("", "nodes"))
            .get(node)
            .is_some()
        {
            self.gone.lock().expect("no holder panics").remove(node);
            return Ok(None);
        }
        let now = self.clock.now();
        let since = *self
            .gone
            .lock()
            .expect("no holder panics")
            .entry(node.to_owned())
            .or_insert(now);
        let left = later(since, QUARANTINE).duration_since(now);
        if let Ok(left) = Duration::try_from(left)
            && !left.is_zero()
        {
            return Ok(Some(left));
        }
        for entry in object::list(&self.client, served("", "pods"), "")? {
            if entry.fields.first().is_some_and(|field| &**field == node) {
                self.end(&entry).await?;
            }
        }
        self.gone.lock().expect("no holder panics").remove(node);
        Ok(None)
    }
}
