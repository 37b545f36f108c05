//! Default values, as upstream fills them in on every write: one function per kind, each over a
//! converted object, each leaving alone what is set. Applying one twice changes nothing.
//!
//! Pure. What depends on the cluster (cluster IPs, node ports, service accounts) is filled in by
//! admission and allocation, not here.

mod pod;
mod service;
mod workload;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

pub use pod::{pod, pod_template};
pub use service::{endpoint_slice, endpoints, network_policy, service, service_type_change};
pub use workload::{
    cron_job, daemon_set, deployment, horizontal_pod_autoscaler, job, replica_set,
    replication_controller, stateful_set,
};

type Object = Map<String, Value>;

/// The object in a field, made if it is not there.
fn object<'a>(of: &'a mut Object, field: &str) -> Option<&'a mut Object> {
    of.entry(field)
        .or_insert_with(|| Value::Object(Map::new()))
        .as_object_mut()
}

/// The object in a field, if there is one.
fn existing<'a>(of: &'a mut Object, field: &str) -> Option<&'a mut Object> {
    of.get_mut(field).and_then(Value::as_object_mut)
}

/// The objects of a list, none if it is not there.
fn each<'a>(of: &'a mut Object, list: &str) -> impl Iterator<Item = &'a mut Object> {
    let items = of.get_mut(list).and_then(Value::as_array_mut);
    items.into_iter().flatten().filter_map(Value::as_object_mut)
}

/// Sets a field that is not set.
fn set(of: &mut Object, field: &str, value: impl Into<Value>) {
    if of.get(field).is_none_or(Value::is_null) {
        of.insert(field.to_owned(), value.into());
    }
}

fn text<'a>(of: &'a Object, field: &str) -> &'a str {
    of.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// A kind's spec, made if it is not there.
fn spec(object_: &mut Value) -> Option<&mut Object> {
    object(object_.as_object_mut()?, "spec")
}

/// Secret: `type`, and `stringData` written into `data`.
pub fn secret(object_: &mut Value) {
    let Some(secret) = object_.as_object_mut() else {
        return;
    };
    set(secret, "type", "Opaque");
    let Some(Value::Object(plain)) = secret.remove("stringData") else {
        return;
    };
    if let Some(data) = object(secret, "data") {
        for (key, value) in plain {
            data.insert(
                key,
                STANDARD.encode(value.as_str().unwrap_or_default()).into(),
            );
        }
    }
}

/// PersistentVolume: reclaim policy, mode and phase.
pub fn persistent_volume(object_: &mut Value) {
    if let Some(spec) = spec(object_) {
        set(spec, "persistentVolumeReclaimPolicy", "Retain");
        set(spec, "volumeMode", "Filesystem");
        if let Some(path) = existing(spec, "hostPath") {
            set(path, "type", "");
        }
    }
    phase(object_, "Pending");
}

/// PersistentVolumeClaim: mode and phase.
pub fn persistent_volume_claim(object_: &mut Value) {
    if let Some(spec) = spec(object_) {
        claim_spec(spec);
    }
    phase(object_, "Pending");
}

fn claim_spec(spec: &mut Object) {
    set(spec, "volumeMode", "Filesystem");
    // The old field and the new one say the same where the old one can say it.
    if let Some(source) = spec.get("dataSource").cloned() {
        set(spec, "dataSourceRef", source);
    }
}

fn phase(object_: &mut Value, phase: &str) {
    if let Some(status) = object_.as_object_mut().and_then(|of| object(of, "status")) {
        set(status, "phase", phase);
    }
}

/// StorageClass: reclaim policy and binding mode.
pub fn storage_class(object_: &mut Value) {
    if let Some(class) = object_.as_object_mut() {
        set(class, "reclaimPolicy", "Delete");
        set(class, "volumeBindingMode", "Immediate");
    }
}

/// Node: what can be allocated is all there is, unless it says otherwise.
pub fn node(object_: &mut Value) {
    let Some(status) = object_
        .as_object_mut()
        .and_then(|of| existing(of, "status"))
    else {
        return;
    };
    if let Some(Value::Object(capacity)) = status.get("capacity").cloned()
        && let Some(allocatable) = object(status, "allocatable")
    {
        for (name, quantity) in capacity {
            set(allocatable, &name, quantity);
        }
    }
}

/// RoleBinding and ClusterRoleBinding: the API groups of the role and the subjects.
pub fn role_binding(object_: &mut Value) {
    const GROUP: &str = "rbac.authorization.k8s.io";
    let Some(binding) = object_.as_object_mut() else {
        return;
    };
    if let Some(role) = existing(binding, "roleRef")
        && text(role, "apiGroup").is_empty()
    {
        role.insert("apiGroup".to_owned(), GROUP.into());
    }
    for subject in each(binding, "subjects") {
        if matches!(text(subject, "kind"), "User" | "Group") {
            set(subject, "apiGroup", GROUP);
        }
    }
}

/// Role and ClusterRole: a list of rules, if only an empty one.
pub fn role(object_: &mut Value) {
    if let Some(role) = object_.as_object_mut() {
        set(role, "rules", json!([]));
    }
}

#[cfg(test)]
mod tests;
