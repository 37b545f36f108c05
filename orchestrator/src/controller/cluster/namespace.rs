//! Ends namespaces: deletes what is in them, pods first, then lets go.

use std::{collections::BTreeMap, sync::Arc};

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

    /// Deletes what is left; tells what stays, because a finalizer or a grace
    /// period holds it.
    async fn empty(&self, namespace: &str) -> Result<Left, Status> {
        let mut left = Left::default();
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
            let staying = object::list(&self.client, resource, namespace)?;
            for entry in &staying {
                for finalizer in decode::<Head>(entry)?.metadata.finalizers {
                    *left.held.entry(finalizer).or_default() += 1;
                }
            }
            if !staying.is_empty() {
                left.objects.push((resource, staying.len()));
                if resource.key == "pods" {
                    // They may need their Secrets and volumes until their end.
                    return Ok(left);
                }
            }
        }
        Ok(left)
    }

    async fn tell(&self, namespace: &Entry, left: &Left) -> Result<(), Status> {
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

/// What stays in a namespace.
#[derive(Debug, Default)]
struct Left {
    /// How many objects, by resource.
    objects: Vec<(&'static Resource, usize)>,
    /// How many of them, by finalizer.
    held: BTreeMap<String, usize>,
}

/// What upstream's conditions say of a namespace that is ending. Pure.
fn conditions(left: &Left, now: &str) -> Value {
    let objects = left.objects.iter().map(|(resource, count)| {
        let Resource { plural, group, .. } = resource;
        format!("{plural}.{group} has {count} resource instances")
    });
    let held = left.held.iter();
    let held = held.map(|(finalizer, count)| format!("{finalizer} in {count} resource instances"));
    let whether = |list: Vec<String>, (some, text): (_, &str), (none, fine): (_, &str)| {
        if list.is_empty() {
            ("False", none, fine.to_owned())
        } else {
            ("True", some, format!("{text}: {}", list.join(", ")))
        }
    };
    let fine = |reason, message: &str| ("False", reason, message.to_owned());
    let all = [
        (
            "NamespaceDeletionDiscoveryFailure",
            fine(
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            fine(
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            fine(
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            whether(
                objects.collect(),
                ("SomeResourcesRemain", "Some resources are remaining"),
                ("ContentRemoved", "All content successfully removed"),
            ),
        ),
        (
            "NamespaceFinalizersRemaining",
            whether(
                held.collect(),
                (
                    "SomeFinalizersRemain",
                    "Some content in the namespace has finalizers remaining",
                ),
                (
                    "ContentHasNoFinalizers",
                    "All content-preserving finalizers finished",
                ),
            ),
        ),
    ];
    let list = all.map(|(r#type, (status, reason, message))| {
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
        if left.objects.is_empty() {
            self.let_go(&entry).await?;
        } else {
            // The deletion of the last of them brings the key back.
            self.tell(&entry, &left).await?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::runtime::object::served;

    #[test]
    fn what_stays_and_what_holds_it_is_told_as_upstream_tells_it() {
        let left = Left {
            objects: vec![(served("", "pods"), 2), (served("apps", "deployments"), 1)],
            held: [("example.com/hold".to_owned(), 2)].into(),
        };
        let told = |left: &Left, r#type: &str| {
            let all = conditions(left, "now");
            let one = all.as_array().unwrap().iter().find(|c| c["type"] == r#type);
            let text = |field: &str| one.unwrap()[field].as_str().unwrap().to_owned();
            (text("status"), text("reason"), text("message"))
        };
        let is = |what: (String, String, String), status, reason, message| {
            assert_eq!((&*what.0, &*what.1, &*what.2), (status, reason, message));
        };
        is(
            told(&left, "NamespaceContentRemaining"),
            "True",
            "SomeResourcesRemain",
            "Some resources are remaining: pods. has 2 resource instances, deployments.apps has 1 resource instances",
        );
        is(
            told(&left, "NamespaceFinalizersRemaining"),
            "True",
            "SomeFinalizersRemain",
            "Some content in the namespace has finalizers remaining: example.com/hold in 2 resource instances",
        );
        is(
            told(&Left::default(), "NamespaceFinalizersRemaining"),
            "False",
            "ContentHasNoFinalizers",
            "All content-preserving finalizers finished",
        );
    }
}
