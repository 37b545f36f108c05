//! What every controller of pods does: claims them, makes and removes them.

use std::{cmp::Ordering, collections::HashMap, future::Future, sync::Arc};

use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::runtime::{
    Recorder,
    object::{Head, Meta, Pod, controlled_by, decode, is_ending, served},
};
use crate::{
    cache::{Entry, Selector},
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    status::Status,
};

/// Most objects made or removed in one look.
pub const BURST: usize = 500;
/// Most writes under way at a time.
const WIDTH: usize = 64;

/// Who claims objects, by which selector.
#[derive(Debug)]
pub struct Claimer<'a> {
    /// In whose name.
    pub client: &'a Client,
    /// The owner's resource.
    pub resource: &'static Resource,
    /// The owner.
    pub owner: &'a Meta,
    /// Its selector.
    pub selector: &'a Selector,
}

impl Claimer<'_> {
    /// The objects of `what` that the owner controls: those it has, less
    /// those that fit no more (released), plus those that fit and have no
    /// controller (adopted).
    ///
    /// # Errors
    /// A refused write.
    pub async fn claim(&self, what: &'static Resource) -> Result<Vec<Arc<Entry>>, Status> {
        self.claim_those(what, |_| true).await
    }

    /// As [`Self::claim`]; what `member` does not take does not fit.
    ///
    /// # Errors
    /// A refused write.
    pub async fn claim_those(
        &self,
        what: &'static Resource,
        member: impl Fn(&Entry) -> bool + Send + Sync,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let mut claimed = Vec::new();
        for entry in self.client.cache_of(what).owned_by(&self.owner.uid) {
            if entry.controller_uid() != Some(&*self.owner.uid) {
                continue;
            }
            if self.fits(&entry) && member(&entry) {
                claimed.push(entry);
            } else if !self.owner.deleting() {
                self.release(what, &entry).await?;
            }
        }
        claimed.extend(self.adopt_those(what, member).await?);
        Ok(claimed)
    }

    /// Takes what fits, what `member` takes and what nobody controls; the
    /// objects taken.
    ///
    /// # Errors
    /// A refused write.
    pub async fn adopt_those(
        &self,
        what: &'static Resource,
        member: impl Fn(&Entry) -> bool + Send + Sync,
    ) -> Result<Vec<Arc<Entry>>, Status> {
        let cache = self.client.cache_of(what);
        let mut adopted = Vec::new();
        if self.owner.deleting() {
            return Ok(adopted);
        }
        for entry in cache.uncontrolled(&self.owner.namespace) {
            if self.fits(&entry)
                && member(&entry)
                && !decode::<Head>(&entry)?.metadata.deleting()
                && self.adopt(what, &entry).await?
            {
                adopted.extend(cache.get(&entry.key));
            }
        }
        Ok(adopted)
    }

    fn fits(&self, entry: &Entry) -> bool {
        self.selector.matches_labels(|key| entry.label(key))
    }

    /// Whether the owner is still there, and is to stay.
    fn is_alive(&self) -> bool {
        let key = self
            .resource
            .object_key(&self.owner.namespace, &self.owner.name);
        let entry = self.client.cache_of(self.resource).get(&key);
        entry.is_some_and(|entry| {
            *entry.uid == *self.owner.uid
                && decode::<Head>(&entry).is_ok_and(|head| !head.metadata.deleting())
        })
    }

    async fn release(&self, what: &'static Resource, entry: &Entry) -> Result<(), Status> {
        let target = Target::object(what, entry.namespace(), entry.name());
        let edit = |new: &mut Value| {
            if let Some(owners) = new["metadata"]["ownerReferences"].as_array_mut() {
                owners.retain(|owner| owner["uid"] != self.owner.uid.as_str());
            }
        };
        self.client.amend(target, &entry.uid, edit).await
    }

    /// False if somebody else was quicker, or the owner is gone by now: the
    /// object would go with it.
    async fn adopt(&self, what: &'static Resource, entry: &Entry) -> Result<bool, Status> {
        let target = Target::object(what, entry.namespace(), entry.name());
        let taken = || Status::modified(what.subject(), entry.name());
        let change = |current: &Value| {
            let metadata = &current["metadata"];
            let owners = metadata["ownerReferences"]
                .as_array()
                .cloned()
                .unwrap_or_default();
            let fresh = metadata["uid"].as_str() == Some(&entry.uid)
                && metadata["deletionTimestamp"].is_null();
            if !fresh
                || !self.is_alive()
                || owners
                    .iter()
                    .any(|owner| owner["controller"] == json!(true))
            {
                return Err(taken());
            }
            let mut new = current.clone();
            let mut owners = owners;
            owners.push(controlled_by(self.resource, self.owner));
            new["metadata"]["ownerReferences"] = owners.into();
            Ok(new)
        };
        match self.client.change(target, &change).await {
            Ok(_) => Ok(true),
            Err(status) if status.is("NotFound") || status.is("Conflict") => Ok(false),
            Err(status) => Err(status),
        }
    }
}

/// A pod made of a template, controlled by `owner`; the name is still missing.
pub fn from_template(template: &Value, resource: &Resource, owner: &Meta) -> Value {
    let given = &template["metadata"];
    let mut metadata = json!({"ownerReferences": [controlled_by(resource, owner)]});
    for field in ["labels", "annotations", "finalizers"] {
        if !given[field].is_null() {
            metadata[field] = given[field].clone();
        }
    }
    json!({"metadata": metadata, "spec": template["spec"]})
}

/// Prefix of the generated names of an owner's pods.
pub fn name_prefix(owner: &str) -> String {
    format!("{owner}-")
}

/// Runs `count` attempts in batches of 1, 2, 4, .. so that a mistake that
/// concerns all of them fails once and not `count` times. Returns the
/// successes and the first failure.
///
/// # Panics
/// If an attempt does.
pub async fn slow_start<F>(count: usize, attempt: impl Fn(usize) -> F) -> (usize, Option<Status>)
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let (mut done, mut batch) = (0, 1);
    while done < count {
        let size = batch.min(count - done);
        let results = at_once((done..done + size).map(&attempt)).await;
        let failure = results
            .iter()
            .find_map(|result| result.as_ref().err().cloned());
        let fine = results.iter().filter(|result| result.is_ok()).count();
        done += fine;
        if failure.is_some() {
            return (done, failure);
        }
        batch = (batch * 2).min(WIDTH);
    }
    (done, None)
}

/// Runs all attempts, at most [`WIDTH`] at a time.
///
/// # Panics
/// If an attempt does.
pub async fn at_once<F>(attempts: impl Iterator<Item = F>) -> Vec<Result<(), Status>>
where
    F: Future<Output = Result<(), Status>> + Send + 'static,
{
    let mut results = Vec::new();
    let mut running = JoinSet::new();
    for attempt in attempts {
        if running.len() == WIDTH
            && let Some(ended) = running.join_next().await
        {
            results.push(ended.expect("a write does not panic"));
        }
        running.spawn(attempt);
    }
    while let Some(ended) = running.join_next().await {
        results.push(ended.expect("a write does not panic"));
    }
    results
}

/// Deletes pods, those already gone included; the first refusal, if any.
///
/// # Errors
/// The first refusal.
pub async fn delete(client: &Client, pods: impl Iterator<Item = &Pod>) -> Result<(), Status> {
    let attempts = pods.map(|pod| {
        let (client, meta) = (client.clone(), pod.metadata.clone());
        async move { delete_one(&client, &meta).await.map(drop) }
    });
    at_once(attempts).await.into_iter().collect()
}

/// Whether the pod was there to be deleted.
async fn delete_one(client: &Client, pod: &Meta) -> Result<bool, Status> {
    let options = DeleteOptions::default().only(&pod.uid);
    let gone = client.delete_of(served("", "pods"), &pod.namespace, &pod.name, &options);
    match gone.await {
        Ok(_) => Ok(true),
        Err(status) if status.is("NotFound") || status.is("Conflict") => Ok(false),
        Err(status) => Err(status),
    }
}

/// Makes and removes the pods of one owner, and tells of each.
#[derive(Debug)]
pub struct Keeper<'a> {
    /// In whose name.
    pub client: &'a Client,
    /// Who is told.
    pub recorder: &'a Recorder,
    /// Who tells.
    pub reporter: &'static str,
    /// The owner's resource.
    pub resource: &'static Resource,
    /// The owner.
    pub owner: &'a Meta,
}

impl Keeper<'_> {
    /// Makes pods, `pod` being the one of each turn, few at first. That the
    /// namespace is ending is no failure.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn make(&self, count: usize, pod: impl Fn(usize) -> Value) -> Result<(), Status> {
        let owner = Arc::new(self.owner.clone());
        let (_, failure) = slow_start(count, |turn| {
            let (client, recorder) = (self.client.clone(), self.recorder.clone());
            let (reporter, resource) = (self.reporter, self.resource);
            let (owner, pod) = (Arc::clone(&owner), pod(turn));
            async move {
                let made = client.create_value(served("", "pods"), &owner.namespace, pod);
                let made = made.await?.value();
                let name = made["metadata"]["name"].as_str().unwrap_or_default();
                let text = format!("Created pod: {name}");
                recorder.normal(reporter, resource, &owner, "SuccessfulCreate", text);
                Ok(())
            }
        })
        .await;
        let Some(failure) = failure.filter(|status| !is_ending(status)) else {
            return Ok(());
        };
        let text = format!("Error creating: {failure}");
        self.recorder.warning(
            self.reporter,
            self.resource,
            self.owner,
            "FailedCreate",
            text,
        );
        Err(failure)
    }

    /// Deletes pods, those already gone included.
    ///
    /// # Errors
    /// The first refusal.
    pub async fn remove(&self, pods: impl Iterator<Item = &Pod>) -> Result<(), Status> {
        let owner = Arc::new(self.owner.clone());
        let attempts = pods.map(|pod| {
            let (client, recorder) = (self.client.clone(), self.recorder.clone());
            let (reporter, resource) = (self.reporter, self.resource);
            let (owner, pod) = (Arc::clone(&owner), pod.metadata.clone());
            async move {
                match delete_one(&client, &pod).await {
                    Ok(false) => Ok(()),
                    Ok(true) => {
                        let text = format!("Deleted pod: {}", pod.name);
                        recorder.normal(reporter, resource, &owner, "SuccessfulDelete", text);
                        Ok(())
                    }
                    Err(status) => {
                        let text = format!("Error deleting: {status}");
                        recorder.warning(reporter, resource, &owner, "FailedDelete", text);
                        Err(status)
                    }
                }
            }
        });
        at_once(attempts).await.into_iter().collect()
    }
}

/// Says on a pod that the cluster ends it, whatever it was doing.
pub fn disrupt(pod: &mut Value, reason: &str, message: &str, now: &str) {
    let conditions = pod["status"]["conditions"].as_array();
    let mut conditions = conditions.cloned().unwrap_or_default();
    conditions.retain(|condition| condition["type"] != "DisruptionTarget");
    conditions.push(json!({
        "type": "DisruptionTarget",
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": now,
    }));
    pod["status"]["conditions"] = conditions.into();
}

/// Sorts pods so that those to give up come first: unscheduled, pending, not
/// ready, cheap to delete, on crowded nodes, ready for a short time, often
/// restarted, young. `crowd` counts the related pods on each node.
pub fn sort_for_deletion(pods: &mut [Pod], crowd: &Crowd) {
    pods.sort_by(|a, b| deletion_order(a, b, crowd));
}

/// Pods per node.
pub type Crowd = HashMap<String, usize>;

/// Annotation with a pod's deletion cost.
const COST: &str = "controller.kubernetes.io/pod-deletion-cost";

fn deletion_order(a: &Pod, b: &Pod, crowd: &Crowd) -> Ordering {
    let phase = |pod: &Pod| match pod.status.phase.as_str() {
        "Pending" | "" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let cost = |pod: &Pod| pod.metadata.number(COST).unwrap_or(0);
    let crowded = |pod: &Pod| crowd.get(&pod.spec.node_name).copied().unwrap_or(0);
    let since = |pod: &Pod| pod.ready_since().unwrap_or(Timestamp::MAX);
    let placed = |pod: &Pod| !pod.spec.node_name.is_empty();
    placed(a)
        .cmp(&placed(b))
        .then_with(|| phase(a).cmp(&phase(b)))
        .then_with(|| a.is_ready().cmp(&b.is_ready()))
        .then_with(|| cost(a).cmp(&cost(b)))
        .then_with(|| crowded(b).cmp(&crowded(a)))
        .then_with(|| since(b).cmp(&since(a)))
        .then_with(|| b.restarts().cmp(&a.restarts()))
        .then_with(|| b.metadata.born().cmp(&a.metadata.born()))
        .then_with(|| b.metadata.name.cmp(&a.metadata.name))
}

/// The pods among entries.
///
/// # Errors
/// 500 if one does not fit its type.
pub fn decode_all(entries: &[Arc<Entry>]) -> Result<Vec<Pod>, Status> {
    entries.iter().map(|entry| decode(entry)).collect()
}

#[cfg(test)]
mod tests;
