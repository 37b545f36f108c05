//! The core group: what everything else stands on.

use serde_json::{Value, json};

use super::{
    NameRule, PLAIN, REVIEW_VERBS, Resource, Rules, SelectableField, Subresource, event, node, pod,
    service, storage,
    table::{self, AGE_COLUMN, Column},
};
use crate::{defaults, validation};

/// `v1`.
pub const ALL: &[&Resource] = &[
    &BINDING,
    &CONFIG_MAP,
    &ENDPOINTS,
    &event::EVENT,
    &LIMIT_RANGE,
    &NAMESPACE,
    &node::NODE,
    &storage::PERSISTENT_VOLUME_CLAIM,
    &storage::PERSISTENT_VOLUME,
    &pod::POD,
    &pod::POD_TEMPLATE,
    &REPLICATION_CONTROLLER,
    &RESOURCE_QUOTA,
    &SECRET,
    &SERVICE_ACCOUNT,
    &service::SERVICE,
];

/// Assigns pods to nodes; posted, never stored.
pub static BINDING: Resource = Resource {
    verbs: REVIEW_VERBS,
    ..Resource::namespaced("bindings", "", "Binding", "bindings", "binding")
};

/// Addresses behind a Service, the old form.
pub static ENDPOINTS: Resource = Resource {
    short_names: &["ep"],
    deprecated: Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice"),
    columns: &[
        Column::text("Endpoints", |o, _| service::endpoints_cell(o)),
        AGE_COLUMN,
    ],
    rules: Rules {
        default: defaults::endpoints,
        validate: validation::endpoints,
        ..PLAIN
    },
    ..Resource::namespaced("endpoints", "", "Endpoints", "endpoints", "endpoints")
};

/// Limits and defaults of a namespace's containers; kept, not enforced.
pub static LIMIT_RANGE: Resource = Resource {
    short_names: &["limits"],
    columns: &[Column::text("Created At", |o, _| {
        o["metadata"]["creationTimestamp"].clone()
    })],
    ..Resource::namespaced("limitranges", "", "LimitRange", "limitranges", "limitrange")
};

/// Bounds of what a namespace may hold; kept, not enforced.
pub static RESOURCE_QUOTA: Resource = Resource {
    short_names: &["quota"],
    subresources: &[Subresource::status("", "ResourceQuota")],
    ..Resource::namespaced(
        "resourcequotas",
        "",
        "ResourceQuota",
        "resourcequotas",
        "resourcequota",
    )
};

/// The oldest way to keep pods running; kept, and scaled by clients.
pub static REPLICATION_CONTROLLER: Resource = Resource {
    short_names: &["rc"],
    categories: &["all"],
    subresources: &[
        Subresource::scale(),
        Subresource::status("", "ReplicationController"),
    ],
    fields: &[SelectableField {
        name: "status.replicas",
        pointer: "status.replicas",
        default: "0",
    }],
    columns: super::apps::REPLICA_COLUMNS,
    generation: true,
    rules: Rules {
        default: defaults::replication_controller,
        validate: validation::replication_controller,
        orphans: true,
        ..PLAIN
    },
    ..Resource::namespaced(
        "replicationcontrollers",
        "",
        "ReplicationController",
        "replicationcontrollers",
        "replicationcontroller",
    )
};

/// Settings that are not shown around.
pub static SECRET: Resource = Resource {
    fields: &[SelectableField::text("type")],
    columns: &[
        Column::text("Type", |o, _| table::text_or(o, "/type", "")),
        Column::integer("Data", |o, _| {
            o["data"].as_object().map_or(0, serde_json::Map::len).into()
        }),
        AGE_COLUMN,
    ],
    rules: Rules {
        default: defaults::secret,
        validate: validation::secret,
        validate_update: validation::secret_update,
        ..PLAIN
    },
    ..Resource::namespaced("secrets", "", "Secret", "secrets", "secret")
};

/// Who a pod is.
pub static SERVICE_ACCOUNT: Resource = Resource {
    short_names: &["sa"],
    subresources: &[Subresource::posted(
        "token",
        "authentication.k8s.io",
        "v1",
        "TokenRequest",
    )],
    columns: &[
        Column::integer("Secrets", |o, _| {
            o["secrets"].as_array().map_or(0, Vec::len).into()
        }),
        AGE_COLUMN,
    ],
    rules: Rules {
        validate: validation::service_account,
        returns_deleted: true,
        ..PLAIN
    },
    ..Resource::namespaced(
        "serviceaccounts",
        "",
        "ServiceAccount",
        "serviceaccounts",
        "serviceaccount",
    )
};

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
        validate: validation::namespace,
        name: NameRule::Label,
        default: label_with_name,
        create: |new| {
            new["spec"] = json!({"finalizers": ["kubernetes"]});
            new["status"] = json!({"phase": "Active"});
            // A generated name has come only now.
            label_with_name(new);
        },
        held: |o| {
            o["spec"]["finalizers"]
                .as_array()
                .is_some_and(|list| !list.is_empty())
        },
        terminate: |new| new["status"]["phase"] = json!("Terminating"),
        update: |new, old| {
            new["spec"] = old["spec"].clone();
        },
        ..PLAIN
    },
    ..Resource::cluster("namespaces", "", "Namespace", "namespaces", "namespace")
};

/// Labels a namespace with its name, so that selectors can name it.
fn label_with_name(namespace: &mut Value) {
    let name = namespace["metadata"]["name"].clone();
    if name.as_str().is_some_and(|name| !name.is_empty()) {
        namespace["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
    }
}

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
        validate: validation::config_map,
        validate_update: validation::config_map_update,
        ..PLAIN
    },
    ..Resource::namespaced("configmaps", "", "ConfigMap", "configmaps", "configmap")
};
