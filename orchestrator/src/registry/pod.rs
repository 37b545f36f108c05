//! The pod subresources that are posted: binding and eviction.

use serde_json::{Value, json};

use super::{Caller, DeleteOptions, Deleted, Registry, Target, WriteOptions, Written};
use crate::status::{Cause, Status};

impl Registry {
    /// Assigns a pod to a node; 409 if it has one.
    ///
    /// # Errors
    /// 404, 409, 422 without a target node.
    pub async fn bind(
        &self,
        target: Target<'_>,
        binding: &Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let node = binding["target"]["name"].as_str().unwrap_or_default();
        let kind = binding["target"]["kind"].as_str().unwrap_or_default();
        let mut causes = Vec::new();
        if node.is_empty() {
            causes.push(Cause::required("target.name", ""));
        }
        if !matches!(kind, "" | "Node") {
            let supported = &["Node", "<empty>"];
            causes.push(Cause::not_supported("target.kind", &kind.into(), supported));
        }
        if !causes.is_empty() {
            return Err(Status::invalid("", "Binding", target.name, causes));
        }
        let now = super::metadata::stamp(self.now());
        let put = |pod: &mut Value| place(pod, binding, target.name, &now);
        self.assign(target, binding, &put, options).await
    }

    /// Deletes a pod on behalf of a drain.
    ///
    /// # Errors
    /// As for [`Registry::delete`].
    pub async fn evict(
        &self,
        target: Target<'_>,
        caller: &Caller,
        eviction: &Value,
        options: &WriteOptions,
    ) -> Result<Deleted, Status> {
        let named = eviction["metadata"]["name"].as_str().unwrap_or_default();
        if !named.is_empty() && named != target.name {
            return Err(Status::bad_request(format!(
                "name in URL ({}) does not match name in Eviction object ({named})",
                target.name
            )));
        }
        let given = &eviction["deleteOptions"];
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let options = DeleteOptions {
            grace_seconds: given["gracePeriodSeconds"].as_i64(),
            propagation: None,
            uid: text(&given["preconditions"]["uid"]),
            resource_version: text(&given["preconditions"]["resourceVersion"]),
            dry_run: options.dry_run || given["dryRun"].as_array().is_some_and(|d| !d.is_empty()),
        };
        self.delete(
            Target {
                subresource: "",
                ..target
            },
            caller,
            &options,
        )
        .await
    }
}

/// Puts a pod on the node that a binding names.
fn place(pod: &mut Value, binding: &Value, name: &str, now: &str) -> Result<(), Status> {
    let conflict = |why: String| {
        let subject = crate::status::Subject {
            group: "",
            resource: "pods/binding",
        };
        Err(Status::conflict(subject, name, why))
    };
    if !pod["metadata"]["deletionTimestamp"].is_null() {
        return conflict(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let host = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    if !host.is_empty() {
        return conflict(format!("pod {name} is already assigned to node {host:?}"));
    }
    let gates = pod["spec"]["schedulingGates"].as_array();
    if gates.is_some_and(|gates| !gates.is_empty()) {
        return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
    }
    pod["spec"]["nodeName"] = binding["target"]["name"].clone();
    let annotations = binding["metadata"]["annotations"].as_object();
    for (key, value) in annotations.into_iter().flatten() {
        pod["metadata"]["annotations"][key] = value.clone();
    }
    scheduled(pod, now);
    Ok(())
}

/// Sets the condition `PodScheduled` to true.
fn scheduled(pod: &mut Value, now: &str) {
    let condition = json!({
        "type": "PodScheduled",
        "status": "True",
        "lastProbeTime": null,
        "lastTransitionTime": now,
    });
    if !pod["status"]["conditions"].is_array() {
        pod["status"]["conditions"] = json!([]);
    }
    let Some(conditions) = pod["status"]["conditions"].as_array_mut() else {
        return;
    };
    match conditions.iter_mut().find(|c| c["type"] == "PodScheduled") {
        Some(found) if found["status"] == "True" => {}
        Some(found) => *found = condition,
        None => conditions.push(condition),
    }
}
