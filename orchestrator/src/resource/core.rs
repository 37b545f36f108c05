//! The core group: what everything else stands on.

use serde_json::{Value, json};

use super::{
    Causes, NameRule, PLAIN, Resource, Rules, SelectableField, Subresource,
    table::{self, AGE_COLUMN, Column},
};
use crate::status::Cause;

/// `v1`.
pub const ALL: &[&Resource] = &[&NAMESPACE, &CONFIG_MAP];

/// A room for names.
pub static NAMESPACE: Resource = Resource {
    short_names: &["ns"],
    subresources: &[
        Subresource {
            name: "finalize",
            kind: "Namespace",
            group: "",
            version: "v1",
            verbs: &["update"],
        },
        Subresource::status("", "Namespace"),
    ],
    fields: &[SelectableField::text("status.phase")],
    columns: &[
        Column::text("Status", |o, _| table::text_or(o, "/status/phase", "")),
        AGE_COLUMN,
    ],
    // Upstream deletes namespaces one by one only.
    verbs: &[
        "create", "delete", "get", "list", "patch", "update", "watch",
    ],
    rules: Rules {
        name: NameRule::Label,
        create: |new| {
            new["spec"] = json!({"finalizers": ["kubernetes"]});
            new["status"] = json!({"phase": "Active"});
            let name = new["metadata"]["name"].clone();
            new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        },
        held: |o| {
            o["spec"]["finalizers"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        },
        terminate: |new| new["status"]["phase"] = json!("Terminating"),
        update: |new, old| {
            new["spec"] = old["spec"].clone();
            let name = old["metadata"]["name"].clone();
            new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
        },
        ..PLAIN
    },
    ..Resource::cluster("namespaces", "", "Namespace", "namespaces", "namespace")
};

/// Plain settings.
pub static CONFIG_MAP: Resource = Resource {
    short_names: &["cm"],
    columns: &[
        Column::integer("Data", |o, _| {
            let size = |field: &str| o[field].as_object().map_or(0, serde_json::Map::len);
            Value::from(size("data") + size("binaryData"))
        }),
        AGE_COLUMN,
    ],
    rules: Rules {
        validate: validate_config_map,
        validate_update: immutable_data,
        ..PLAIN
    },
    ..Resource::namespaced("configmaps", "", "ConfigMap", "configmaps", "configmap")
};

/// Most bytes in the values of one ConfigMap or Secret.
const DATA_BYTES_MAX: usize = 1 << 20;

fn validate_config_map(object: &Value, causes: &mut Causes) {
    let mut total = 0;
    for field in ["data", "binaryData"] {
        for (key, value) in object[field].as_object().into_iter().flatten() {
            if let Some(why) = config_key_problem(key) {
                causes.push(Cause::invalid(format!("{field}[{key}]"), &json!(key), why));
            }
            if field == "data" && object["binaryData"].get(key).is_some() {
                causes.push(Cause::invalid(
                    format!("data[{key}]"),
                    &json!(key),
                    "duplicate of key present in binaryData",
                ));
            }
            total += value.as_str().map_or(0, str::len);
        }
    }
    if total > DATA_BYTES_MAX {
        causes.push(Cause::too_long("", DATA_BYTES_MAX));
    }
}

/// A key must be a file name.
fn config_key_problem(key: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.is_empty() || !key.bytes().all(plain) {
        return Some(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')",
        );
    }
    if key.len() > 253 {
        return Some("must be no more than 253 characters");
    }
    match key {
        "." => Some("must not be '.'"),
        _ if key.starts_with("..") => Some("must not start with '..'"),
        _ => None,
    }
}

fn immutable_data(new: &Value, old: &Value, causes: &mut Causes) {
    if old["immutable"] != json!(true) {
        return;
    }
    if new["immutable"] != old["immutable"] {
        causes.push(Cause::forbidden(
            "immutable",
            "field is immutable when `immutable` is set",
        ));
    }
    for field in ["data", "binaryData"] {
        if new[field] != old[field] {
            causes.push(Cause::forbidden(
                field,
                "field is immutable when `immutable` is set",
            ));
        }
    }
}
