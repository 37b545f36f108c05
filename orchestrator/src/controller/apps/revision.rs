//! `ControllerRevisions`: the past templates of DaemonSets and StatefulSets.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    cache::{Entry, Selector},
    controller::{
        pods::Claimer,
        runtime::object::{Meta, Pod, controlled_by, served},
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    status::Status,
};

/// Label with the hash of the template, on revisions and pods.
pub const HASH: &str = "controller-revision-hash";

/// The revisions of one workload.
#[derive(Debug)]
pub struct Revisions<'a> {
    /// The API.
    pub client: &'a Client,
    /// The workload's resource.
    pub resource: &'static Resource,
    /// The workload.
    pub owner: &'a Meta,
    /// Its selector.
    pub selector: &'a Value,
}

/// Whether a pod was made of the revision with this hash.
pub fn is_of(pod: &Pod, hash: &str) -> bool {
    pod.metadata.labels.get(HASH).is_some_and(|own| own == hash)
}

/// What a revision keeps, in the form that `kubectl rollout undo` patches with.
pub fn data(template: &Value) -> Value {
    let mut template = template.clone();
    template["$patch"] = "replace".into();
    json!({"spec": {"template": template}})
}

fn resource() -> &'static Resource {
    served("apps", "controllerrevisions")
}

fn number(entry: &Entry) -> i64 {
    entry.value()["revision"].as_i64().unwrap_or(0)
}

impl Revisions<'_> {
    fn all(&self) -> Vec<Arc<Entry>> {
        let mut all = self.client.cache_of(resource()).owned_by(&self.owner.uid);
        all.sort_by_key(|entry| number(entry));
        all
    }

    /// Makes the revision of this hash the newest; its name. Revisions that a
    /// workload of this name has left behind are taken over first: pods may
    /// have been left with them.
    ///
    /// # Errors
    /// A refused write.
    pub async fn ensure(&self, data: &Value, hash: &str) -> Result<String, Status> {
        let claimer = Claimer {
            client: self.client,
            resource: self.resource,
            owner: self.owner,
            selector: &Selector::from_object(self.selector),
        };
        let prefix = format!("{}-", self.owner.name);
        let ours = |entry: &Entry| {
            let rest = entry.name().strip_prefix(&prefix);
            rest.is_some_and(|rest| entry.label(HASH) == Some(rest))
        };
        let mut all = self.all();
        all.extend(claimer.adopt_those(resource(), ours).await?);
        all.sort_by_key(|entry| number(entry));
        let newest = all.last().map_or(0, |entry| number(entry));
        if let Some(entry) = all.iter().find(|entry| entry.label(HASH) == Some(hash)) {
            if number(entry) < newest {
                let change = |current: &Value| {
                    let mut new = current.clone();
                    new["revision"] = (newest + 1).into();
                    Ok(new)
                };
                let target = Target::object(resource(), &self.owner.namespace, entry.name());
                self.client.change(target, &change).await?;
            }
            return Ok(entry.name().to_owned());
        }
        let name = format!("{}-{hash}", self.owner.name);
        let mut labels = data["spec"]["template"]["metadata"]["labels"].clone();
        labels[HASH] = hash.into();
        let revision = json!({
            "metadata": {
                "name": name,
                "labels": labels,
                "ownerReferences": [controlled_by(self.resource, self.owner)],
            },
            "data": data,
            "revision": newest + 1,
        });
        self.client
            .create_value(resource(), &self.owner.namespace, revision)
            .await?;
        Ok(name)
    }

    /// Deletes the oldest revisions that no pod is of, beyond `limit`.
    ///
    /// # Errors
    /// A refused write.
    pub async fn clean(&self, limit: i64, hash: &str, pods: &[Pod]) -> Result<(), Status> {
        let used = |entry: &Entry| {
            let label = entry.label(HASH).unwrap_or_default();
            label == hash || pods.iter().any(|pod| is_of(pod, label))
        };
        let idle: Vec<_> = self
            .all()
            .into_iter()
            .filter(|entry| !used(entry))
            .collect();
        let surplus = idle
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        for entry in idle.iter().take(surplus) {
            let options = DeleteOptions::default().only(&entry.uid);
            let gone = self
                .client
                .delete_of(resource(), &self.owner.namespace, entry.name(), &options)
                .await;
            if let Err(status) = gone
                && !status.is("NotFound")
            {
                return Err(status);
            }
        }
        Ok(())
    }
}
