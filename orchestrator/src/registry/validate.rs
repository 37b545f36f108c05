//! Rules that hold for the metadata of every object.

use serde_json::Value;

use crate::{
    cache::selector::{is_dns_label, is_dns_subdomain, label_key_problem, label_value_problem},
    resource::{Causes, NameRule, Resource},
    status::Cause,
};

/// Most bytes of all annotations of an object.
const ANNOTATION_BYTES_MAX: usize = 256 << 10;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";

/// What is wrong with a name under a rule, if anything.
pub fn name_problem(rule: NameRule, name: &str) -> Option<&'static str> {
    match rule {
        NameRule::Subdomain if name.len() > 253 => Some("must be no more than 253 bytes"),
        NameRule::Subdomain if !is_dns_subdomain(name) => Some(SUBDOMAIN),
        NameRule::Label | NameRule::Label1035 if name.len() > 63 => {
            Some("must be no more than 63 bytes")
        }
        NameRule::Label if !is_dns_label(name) => Some(LABEL),
        NameRule::Label1035
            if !is_dns_label(name) || !name.starts_with(|c: char| c.is_ascii_lowercase()) =>
        {
            Some(LABEL_1035)
        }
        NameRule::PathSegment if matches!(name, "." | "..") => Some("may not be '.' or '..'"),
        NameRule::PathSegment if name.contains(['/', '%']) => Some("may not contain '/' or '%'"),
        _ => None,
    }
}

/// Checks an object's metadata.
pub fn object_meta(resource: &Resource, object: &Value, causes: &mut Causes) {
    let metadata = &object["metadata"];
    match metadata["name"].as_str().unwrap_or_default() {
        "" => causes.push(Cause::required(
            "metadata.name",
            "name or generateName is required",
        )),
        name => {
            if let Some(why) = name_problem(resource.rules.name, name) {
                causes.push(Cause::invalid("metadata.name", &metadata["name"], why));
            }
        }
    }
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if let Some(why) = label_key_problem(key) {
            causes.push(Cause::invalid(
                "metadata.labels",
                &Value::from(key.as_str()),
                why,
            ));
        }
        if let Some(why) = label_value_problem(value.as_str().unwrap_or_default()) {
            causes.push(Cause::invalid("metadata.labels", value, why));
        }
    }
    annotations(metadata, causes);
    owner_references(metadata, causes);
    finalizers(metadata, causes);
}

fn annotations(metadata: &Value, causes: &mut Causes) {
    let mut bytes = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        if let Some(why) = label_key_problem(&key.to_ascii_lowercase()) {
            causes.push(Cause::invalid(
                "metadata.annotations",
                &Value::from(key.as_str()),
                why,
            ));
        }
        bytes += key.len() + value.as_str().map_or(0, str::len);
    }
    if bytes > ANNOTATION_BYTES_MAX {
        causes.push(Cause::too_long(
            "metadata.annotations",
            ANNOTATION_BYTES_MAX,
        ));
    }
}

fn owner_references(metadata: &Value, causes: &mut Causes) {
    let mut controllers = Vec::new();
    for (index, owner) in metadata["ownerReferences"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("metadata.ownerReferences[{index}]");
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                let field = format!("{path}.{field}");
                causes.push(Cause::invalid(field, &Value::from(""), "must not be empty"));
            }
        }
        if owner["controller"] == Value::Bool(true) {
            controllers.push(owner["kind"].as_str().unwrap_or_default());
        }
    }
    if controllers.len() > 1 {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {}",
            controllers.join(" and ")
        );
        causes.push(Cause::invalid(
            "metadata.ownerReferences",
            &metadata["ownerReferences"],
            why,
        ));
    }
}

fn finalizers(metadata: &Value, causes: &mut Causes) {
    let names = metadata["finalizers"].as_array().into_iter().flatten();
    let mut deleting = Vec::new();
    for name in names {
        let text = name.as_str().unwrap_or_default();
        if let Some(why) = label_key_problem(text) {
            causes.push(Cause::invalid("metadata.finalizers", name, why));
        } else if matches!(text, "orphan" | "foregroundDeletion") {
            deleting.push(text);
        } else if !text.contains('/') && text != "kubernetes" {
            causes.push(Cause::invalid(
                "metadata.finalizers",
                name,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    if deleting.len() > 1 {
        causes.push(Cause::invalid(
            "metadata.finalizers",
            &metadata["finalizers"],
            "finalizer orphan and foregroundDeletion cannot be both set",
        ));
    }
}

/// Checks what may not change: `(new, old)`.
pub(super) fn update_meta(new: &Value, old: &Value, causes: &mut Causes) {
    let (new, old) = (&new["metadata"], &old["metadata"]);
    for field in ["name", "namespace"] {
        if new[field] != old[field] {
            causes.push(Cause::invalid(
                format!("metadata.{field}"),
                &new[field],
                "field is immutable",
            ));
        }
    }
    if !old["deletionTimestamp"].is_null() {
        let empty = Vec::new();
        let held = old["finalizers"].as_array().unwrap_or(&empty);
        let added: Vec<&Value> = new["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|name| !held.contains(name))
            .collect();
        if !added.is_empty() {
            causes.push(Cause::forbidden(
                "metadata.finalizers",
                &format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers {added:?}"
                ),
            ));
        }
    }
}
