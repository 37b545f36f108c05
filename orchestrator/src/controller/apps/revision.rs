//! `ControllerRevisions`: the past templates of DaemonSets and StatefulSets.

use serde_json::{Value, json};

use crate::{
    cache::Entry,
    controller::runtime::object::{Meta, Pod, controlled_by, served},
    registry::{DeleteOptions, Target, client::Client},
    resource::Resource,
    status::Status,
};

/// Label with the hash of the template.
const HASH: &str = "controller-revision-hash";

/// The revisions of one workload.
#[derive(Debug)]
pub struct Revisions<'a> {
    /// The API.
    pub client: &'a Client,
    /// The workload's resource.
    pub resource: &'static Resource,
    /// The workload.
    pub owner: &'a Meta,
    /// Its selector, whose labels the revisions carry.
    pub selector: &'a Value,
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
    fn all(&self) -> Vec<std::sync::Arc<Entry>> {
        let mut all = self.client.cache_of(resource()).owned_by(&self.owner.uid);
        all.sort_by_key(|entry| number(entry));
        all
    }

    /// Makes the revision of this hash the newest; its name.
    ///
    /// # Errors
    /// A refused write.
    pub async fn ensure(&self, data: &Value, hash: &str) -> Result<String, Status> {
        let all = self.all();
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
        let mut labels = self.selector["matchLabels"].clone();
        if !labels.is_object() {
            labels = json!({});
        }
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
            label == hash
                || pods
                    .iter()
                    .any(|pod| pod.metadata.labels.get(HASH).is_some_and(|h| h == label))
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
