//! Nodes: how they print.

use serde_json::{Value, json};

use super::{
    PLAIN, Resource, Rules, SelectableField, Subresource,
    table::{self, AGE_COLUMN, Column},
};

use crate::{defaults, validation};

/// A machine that runs pods.
pub static NODE: Resource = Resource {
    short_names: &["no"],
    subresources: &[Subresource::status("", "Node")],
    fields: &[SelectableField {
        name: "spec.unschedulable",
        pointer: "spec.unschedulable",
        default: "false",
    }],
    columns: &[
        Column::text("Status", |o, _| node_status(o)),
        Column::text("Roles", |o, _| node_roles(o)),
        AGE_COLUMN,
        Column::text("Version", |o, _| {
            table::text_or(o, "/status/nodeInfo/kubeletVersion", "")
        }),
        Column::text("Internal-IP", |o, _| node_address(o, "InternalIP")).wide(),
        Column::text("External-IP", |o, _| node_address(o, "ExternalIP")).wide(),
        Column::text("OS-Image", |o, _| {
            table::text_or(o, "/status/nodeInfo/osImage", "<unknown>")
        })
        .wide(),
        Column::text("Kernel-Version", |o, _| {
            table::text_or(o, "/status/nodeInfo/kernelVersion", "<unknown>")
        })
        .wide(),
        Column::text("Container-Runtime", |o, _| {
            table::text_or(o, "/status/nodeInfo/containerRuntimeVersion", "<unknown>")
        })
        .wide(),
    ],
    rules: Rules {
        default: defaults::node,
        validate: validation::node,
        validate_update: validation::node_update,
        status_writes_labels: true,
        // Upstream lets a node register with its status.
        keeps_status: true,
        ..PLAIN
    },
    ..Resource::cluster("nodes", "", "Node", "nodes", "node")
};

fn node_status(node: &Value) -> Value {
    let conditions = node["status"]["conditions"]
        .as_array()
        .into_iter()
        .flatten();
    let ready = conditions
        .filter(|c| c["type"] == "Ready")
        .map(|c| c["status"] == "True")
        .next();
    let mut text = match ready {
        Some(true) => "Ready".to_owned(),
        Some(false) => "NotReady".to_owned(),
        None => "Unknown".to_owned(),
    };
    if node["spec"]["unschedulable"] == json!(true) {
        text.push_str(",SchedulingDisabled");
    }
    text.into()
}

fn node_roles(node: &Value) -> Value {
    let labels = node["metadata"]["labels"].as_object().into_iter().flatten();
    let mut roles: Vec<&str> = labels
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) if !role.is_empty() => Some(role),
                _ if key == "kubernetes.io/role" => value.as_str(),
                _ => None,
            },
        )
        .collect();
    roles.sort_unstable();
    if roles.is_empty() {
        "<none>".into()
    } else {
        roles.join(",").into()
    }
}

fn node_address(node: &Value, kind: &str) -> Value {
    let addresses = node["status"]["addresses"].as_array().into_iter().flatten();
    let mut found = addresses.filter(|a| a["type"] == kind);
    found
        .next()
        .map_or_else(|| "<none>".into(), |address| address["address"].clone())
}
