//! The ReplicaSets of a Deployment: made, numbered, cleaned up.

use super::{
    BTreeMap, DeleteOptions, Deployment, DeploymentController, HASH, Meta, NAME, NOT_COPIED,
    REVISION, REVISION_HISTORY, ReplicaSet, Status, Target, Value, View, controlled_by, hash,
    is_ending, json, note_size, replicaset, resource, rollout, status::REFUSED,
};

impl DeploymentController {
    pub(super) async fn make(&self, view: &mut View) -> Result<(), Status> {
        let deployment = &view.deployment;
        let collisions = deployment.status["collisionCount"].as_i64().unwrap_or(0);
        let hash = hash(&deployment.spec.template, collisions);
        let name = format!("{}-{hash}", deployment.metadata.name);
        let replicas = rollout::new_replicas(deployment.bounds(), 0, view.occupied());
        let set = Self::set_to_be(view, &name, &hash, replicas);
        let namespace = &deployment.metadata.namespace;
        let made = self
            .client
            .create_value(replicaset::resource(), namespace, set)
            .await;
        match made {
            Ok(written) => {
                let set: ReplicaSet = serde_json::from_slice(&written.object)
                    .map_err(|error| Status::internal(error.to_string()))?;
                if replicas > 0 {
                    self.tell_scaled(deployment, &name, 0, replicas);
                }
                view.sets.push(set);
                view.new = Some(view.sets.len() - 1);
                Ok(())
            }
            Err(status) if status.is("AlreadyExists") => {
                // Somebody else's, or another template with the same hash.
                self.count_collision(deployment).await?;
                Err(status)
            }
            Err(status) if is_ending(&status) => Err(status),
            Err(status) => {
                let text = format!("Failed to create new replica set {name:?}: {status}");
                let about = &deployment.metadata;
                self.recorder
                    .warning(NAME, resource(), about, REFUSED, text.clone());
                view.refused = Some(text);
                Err(status)
            }
        }
    }

    pub(super) fn set_to_be(view: &View, name: &str, hash: &str, replicas: i64) -> Value {
        let deployment = &view.deployment;
        let mut template = deployment.spec.template.clone();
        template["metadata"]["labels"][HASH] = hash.into();
        let mut selector = deployment.spec.selector.clone();
        selector["matchLabels"][HASH] = hash.into();
        let mut annotations = copied(&deployment.metadata);
        annotations[REVISION] = (last_revision(view) + 1).to_string().into();
        note_size(&mut annotations, deployment.bounds());
        json!({
            "metadata": {
                "name": name,
                "labels": template["metadata"]["labels"],
                "annotations": annotations,
                "ownerReferences": [controlled_by(resource(), &deployment.metadata)],
            },
            "spec": {
                "replicas": replicas,
                "minReadySeconds": deployment.spec.min_ready_seconds,
                "selector": selector,
                "template": template,
            },
        })
    }

    pub(super) async fn count_collision(&self, deployment: &Deployment) -> Result<(), Status> {
        let meta = &deployment.metadata;
        let target = Target::status(resource(), &meta.namespace, &meta.name);
        let edit = |new: &mut Value| {
            let count = new["status"]["collisionCount"].as_i64().unwrap_or(0);
            new["status"]["collisionCount"] = (count + 1).into();
        };
        self.client.amend(target, &meta.uid, edit).await
    }

    /// Gives the new ReplicaSet the highest revision (after a rollback it is
    /// an old one) and the Deployment's annotations, and notes the revision on
    /// the Deployment.
    pub(super) async fn revise(&self, view: &mut View) -> Result<(), Status> {
        let Some(index) = view.new else {
            return Ok(());
        };
        let last = last_revision(view);
        let deployment = &view.deployment;
        let Some(set) = view.sets.get_mut(index) else {
            return Ok(());
        };
        let before = set.metadata.number(REVISION).unwrap_or(0);
        let revision = if before > last { before } else { last + 1 };
        let mut wanted = copied(&deployment.metadata);
        wanted[REVISION] = revision.to_string().into();
        if revision != before && before > 0 {
            let history = set.metadata.annotations.get(REVISION_HISTORY);
            let history = history.map_or_else(|| before.to_string(), |h| format!("{h},{before}"));
            wanted[REVISION_HISTORY] = history.into();
        }
        let ready = deployment.spec.min_ready_seconds;
        let noted = wanted
            .as_object()
            .into_iter()
            .flatten()
            .all(|(key, value)| {
                set.metadata.annotations.get(key).map(String::as_str) == value.as_str()
            });
        if !noted || set.spec.min_ready_seconds != ready {
            let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
            let target = Target::object(replicaset::resource(), namespace, name);
            let change = |current: &Value| {
                let mut new = current.clone();
                for (key, value) in wanted.as_object().into_iter().flatten() {
                    new["metadata"]["annotations"][key] = value.clone();
                }
                new["spec"]["minReadySeconds"] = ready.into();
                Ok(new)
            };
            let written = self.client.change(target, &change).await?.value();
            *set = serde_json::from_value(written).map_err(|e| Status::internal(e.to_string()))?;
        }
        if deployment.metadata.number(REVISION) != Some(revision) {
            let (namespace, name) = (&deployment.metadata.namespace, &deployment.metadata.name);
            let target = Target::object(resource(), namespace, name);
            let change = |current: &Value| {
                let mut new = current.clone();
                new["metadata"]["annotations"][REVISION] = revision.to_string().into();
                Ok(new)
            };
            self.client.change(target, &change).await?;
        }
        Ok(())
    }

    /// Deletes the oldest ReplicaSets beyond the history that is kept.
    pub(super) async fn clean(&self, view: &View) -> Result<(), Status> {
        let Some(limit) = view.deployment.spec.revision_history_limit else {
            return Ok(());
        };
        let mut idle: Vec<&ReplicaSet> = view
            .old()
            .filter(|set| {
                set.spec.replicas == 0
                    && set.status.replicas == 0
                    && set.status.observed_generation >= set.metadata.generation
                    && !set.metadata.deleting()
            })
            .collect();
        idle.sort_by_key(|set| set.metadata.number(REVISION).unwrap_or(0));
        let surplus = view
            .old()
            .count()
            .saturating_sub(usize::try_from(limit).unwrap_or(0));
        for set in idle.into_iter().take(surplus) {
            let options = DeleteOptions::default().only(&set.metadata.uid);
            let (namespace, name) = (&set.metadata.namespace, &set.metadata.name);
            let gone = self
                .client
                .delete_of(replicaset::resource(), namespace, name, &options)
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

/// The highest revision among the old ReplicaSets.
fn last_revision(view: &View) -> i64 {
    let revisions = view.old().filter_map(|set| set.metadata.number(REVISION));
    revisions.max().unwrap_or(0)
}

/// The Deployment's annotations that its ReplicaSets carry as well.
fn copied(meta: &Meta) -> Value {
    let kept: BTreeMap<&String, &String> = meta
        .annotations
        .iter()
        .filter(|(key, _)| !NOT_COPIED.contains(&key.as_str()))
        .collect();
    json!(kept)
}
