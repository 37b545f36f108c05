//! Ends namespaces: deletes what is in them, pods first, then lets go.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    cache::Entry,
    controller::runtime::{
        Again, Change, Clock, Context, Controller, Source,
        object::{self, Head, decode},
        stamp,
    },
    registry::{DeleteOptions, Target, client::Client},
    resource::{self, Resource, core::NAMESPACE},
    status::Status,
};

const FINALIZER: &str = "kubernetes";

/// The controller.
#[derive(Debug)]
pub struct NamespaceController {
    client: Client,
    clock: Clock,
}

impl NamespaceController {
    /// Over its context.
    pub fn new(context: &Context) -> Self {
        Self {
            client: context.client.clone(),
            clock: context.clock.clone(),
        }
    }

    /// Deletes what is left; tells how many objects of which resources stay,
    /// because a finalizer or a grace period holds them.
    async fn empty(&self, namespace: &str) -> Result<Vec<(&'static Resource, usize)>, Status> {
        let mut left = Vec::new();
        for resource in in_order() {
            let entries = object::list(&self.client, resource, namespace)?;
            for entry in &entries {
                if decode::<Head>(entry)?.metadata.deleting() {
                    continue;
                }
                let options = DeleteOptions::default().only(&entry.uid);
                let deleted = self
                    .client
                    .delete_of(resource, namespace, entry.name(), &options)
                    .await;
                match deleted {
                    Ok(_) => {}
                    Err(status) if status.is("NotFound") || status.is("Conflict") => {}
                    Err(status) => return Err(status),
                }
            }
            let staying = object::list(&self.client, resource, namespace)?.len();
            if staying > 0 {
                left.push((resource, staying));
                if resource.key == "pods" {
                    // They may need their Secrets and volumes until their end.
                    return Ok(left);
                }
            }
        }
        Ok(left)
    }

    async fn tell(
        &self,
        namespace: &Entry,
        left: &[(&'static Resource, usize)],
    ) -> Result<(), Status> {
        let conditions = conditions(left, &stamp(self.clock.now()));
        let target = Target::status(&NAMESPACE, "", namespace.name());
        let edit = |new: &mut Value| {
            let old = new["status"]["conditions"].take();
            new["status"]["conditions"] = keep_times(conditions.clone(), &old);
        };
        self.client.amend(target, &namespace.uid, edit).await
    }

    async fn let_go(&self, namespace: &Entry) -> Result<(), Status> {
        let target = Target {
            subresource: "finalize",
            ..Target::object(&NAMESPACE, "", namespace.name())
        };
        let edit = |new: &mut Value| {
            if let Some(finalizers) = new["spec"]["finalizers"].as_array_mut() {
                finalizers.retain(|f| f != FINALIZER);
            }
        };
        self.client.amend(target, &namespace.uid, edit).await
    }
}

/// What namespaces hold, pods first.
fn in_order() -> impl Iterator<Item = &'static Resource> {
    let content = || resource::stored().filter(|r| r.namespaced);
    let pods = content().filter(|r| r.key == "pods");
    pods.chain(content().filter(|r| r.key != "pods"))
}

fn conditions(left: &[(&'static Resource, usize)], now: &str) -> Value {
    let told: Vec<String> = left
        .iter()
        .map(|(r, count)| {
            let dot = if r.group.is_empty() { "" } else { "." };
            format!(
                "{}{dot}{} has {count} resource instances",
                r.plural, r.group
            )
        })
        .collect();
    let remaining = if left.is_empty() {
        (
            "False",
            "ContentRemoved",
            "All content successfully removed".to_owned(),
        )
    } else {
        let text = format!("Some resources are remaining: {}", told.join(", "));
        ("True", "SomeResourcesRemain", text)
    };
    let fine = |r#type, reason, message: &str| (r#type, "False", reason, message.to_owned());
    let all = [
        fine(
            "NamespaceDeletionDiscoveryFailure",
            "ResourcesDiscovered",
            "All resources successfully discovered",
        ),
        fine(
            "NamespaceDeletionGroupVersionParsingFailure",
            "ParsedGroupVersions",
            "All legacy kube types successfully parsed",
        ),
        fine(
            "NamespaceDeletionContentFailure",
            "ContentDeleted",
            "All content successfully deleted, may be waiting on finalization",
        ),
        (
            "NamespaceContentRemaining",
            remaining.0,
            remaining.1,
            remaining.2,
        ),
    ];
    let list = all.map(|(r#type, status, reason, message)| {
        json!({
            "type": r#type,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": now,
        })
    });
    Value::from(list.to_vec())
}

/// Conditions whose status is as it was keep the time of the last change.
fn keep_times(mut new: Value, old: &Value) -> Value {
    for condition in new.as_array_mut().into_iter().flatten() {
        let before = old.as_array().into_iter().flatten();
        let same =
            |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
        if let Some(before) = before.clone().find(same) {
            condition["lastTransitionTime"] = before["lastTransitionTime"].clone();
        }
    }
    new
}

impl Controller for NamespaceController {
    fn name(&self) -> &'static str {
        "namespace-controller"
    }

    fn sources(&self) -> Vec<Source> {
        let leaving = |client: Client| {
            move |change: &Change<'_>| {
                if !change.deleted {
                    return Vec::new();
                }
                let namespace = change.entry.namespace();
                let room = client.cache_of(&NAMESPACE).get(namespace);
                let going =
                    room.filter(|room| room.fields.first().is_some_and(|p| &**p == "Terminating"));
                going
                    .map(|room| Arc::clone(&room.key))
                    .into_iter()
                    .collect()
            }
        };
        let content = in_order().map(|r| Source::new(r, leaving(self.client.clone())));
        std::iter::once(Source::own(&NAMESPACE))
            .chain(content)
            .collect()
    }

    async fn reconcile(&self, name: &str) -> Result<Again, Status> {
        let Some(entry) = self.client.cache_of(&NAMESPACE).get(name) else {
            return Ok(None);
        };
        let namespace = entry.value();
        let held = namespace["spec"]["finalizers"]
            .as_array()
            .is_some_and(|list| list.iter().any(|f| f == FINALIZER));
        if namespace["metadata"]["deletionTimestamp"].is_null() || !held {
            return Ok(None);
        }
        let left = self.empty(name).await?;
        if left.is_empty() {
            self.let_go(&entry).await?;
        } else {
            // The deletion of the last of them brings the key back.
            self.tell(&entry, &left).await?;
        }
        Ok(None)
    }
}
