//! A container's environment, and references to what a pod is and has.

use super::{At, config_key_problem};
use crate::cache::selector::label_key_problem;
use crate::resource::Causes;
use crate::status::Cause;

/// The environment of a container.
pub(super) fn environment(at: &At<'_>, causes: &mut Causes) {
    const SOURCES: [&str; 5] = [
        "fieldRef",
        "resourceFieldRef",
        "configMapKeyRef",
        "secretKeyRef",
        "fileKeyRef",
    ];
    for variable in at.field("env").items() {
        let name = variable.field("name");
        let printable = |b: u8| (b' '..=b'~').contains(&b) && b != b'=';
        if name.require(causes) && !name.text().bytes().all(printable) {
            name.invalid(
                "a valid environment variable name must consist only of printable ASCII \
                 characters other than '='",
                causes,
            );
        }
        let from = variable.field("valueFrom");
        if !from.value.is_object() {
            continue;
        }
        let given = SOURCES
            .iter()
            .filter(|source| from.field(source).value.is_object())
            .count();
        let wrong = |why: &str, causes: &mut Causes| {
            causes.push(Cause::invalid(&from.path, &"".into(), why));
        };
        if given == 0 {
            wrong(
                "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, \
                 `secretKeyRef` or `fileKeyRef`",
                causes,
            );
        } else if variable.field("value").is_set() {
            wrong("may not be specified when `value` is not empty", causes);
        } else if given > 1 {
            wrong(
                "may not have more than one field specified at a time",
                causes,
            );
        }
        for source in ["configMapKeyRef", "secretKeyRef"].map(|source| from.field(source)) {
            if source.value.is_object() {
                source.field("name").require(causes);
                key(&source.field("key"), causes);
            }
        }
        field_reference(&from.field("fieldRef"), true, causes);
        resource_reference(&from.field("resourceFieldRef"), false, causes);
    }
    for source in at.field("envFrom").items() {
        let given: Vec<_> = ["configMapRef", "secretRef"]
            .map(|field| source.field(field))
            .into_iter()
            .filter(|source| source.value.is_object())
            .collect();
        match given.as_slice() {
            [] => source
                .field("")
                .invalid("must specify one of: `configMapRef` or `secretRef`", causes),
            [one] => drop(one.field("name").require(causes)),
            _ => {
                let why = "may not have more than one field specified at a time";
                causes.push(Cause::invalid(&source.path, &"".into(), why));
            }
        }
    }
}

/// A key of a ConfigMap or Secret.
pub(super) fn key(at: &At<'_>, causes: &mut Causes) {
    if at.require(causes)
        && let Some(why) = config_key_problem(at.text())
    {
        at.invalid(why, causes);
    }
}

/// A reference to a field of the pod itself.
pub(super) fn field_reference(at: &At<'_>, in_environment: bool, causes: &mut Causes) {
    const EVERYWHERE: [&str; 3] = ["metadata.name", "metadata.namespace", "metadata.uid"];
    const ENVIRONMENT: [&str; 6] = [
        "spec.nodeName",
        "spec.serviceAccountName",
        "status.hostIP",
        "status.hostIPs",
        "status.podIP",
        "status.podIPs",
    ];
    if !at.value.is_object() {
        return;
    }
    let path = at.field("fieldPath");
    if !path.require(causes) {
        return;
    }
    let text = path.text();
    let subscript = ["metadata.labels", "metadata.annotations"]
        .iter()
        .find_map(|map| text.strip_prefix(map))
        .map(|rest| {
            rest.strip_prefix("['")
                .and_then(|rest| rest.strip_suffix("']"))
                .ok_or(rest)
        });
    match subscript {
        Some(Ok(key)) => {
            if let Some(why) = label_key_problem(&key.to_ascii_lowercase()) {
                path.invalid(why, causes);
            }
            return;
        }
        Some(Err("")) if !in_environment => return,
        _ => {}
    }
    if EVERYWHERE.contains(&text) || (in_environment && ENVIRONMENT.contains(&text)) {
        return;
    }
    let mut supported: Vec<&str> = vec!["metadata.annotations", "metadata.labels"];
    supported.extend(EVERYWHERE);
    if in_environment {
        supported.drain(..2);
        supported.extend(ENVIRONMENT);
    }
    causes.push(Cause::not_supported(&path.path, path.value, &supported));
}

/// A reference to a container's resources.
pub(super) fn resource_reference(at: &At<'_>, in_volume: bool, causes: &mut Causes) {
    const RESOURCES: [&str; 6] = [
        "limits.cpu",
        "limits.ephemeral-storage",
        "limits.memory",
        "requests.cpu",
        "requests.ephemeral-storage",
        "requests.memory",
    ];
    if !at.value.is_object() {
        return;
    }
    if in_volume {
        at.field("containerName").require(causes);
    }
    let resource = at.field("resource");
    if resource.require(causes) && !resource.text().contains("hugepages-") {
        resource.choose_if_set(&RESOURCES, causes);
    }
}
