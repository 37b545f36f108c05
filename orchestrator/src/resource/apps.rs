//! apps/v1: pods kept running.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    PLAIN, Resource, Rules, Subresource, pod,
    table::{AGE_COLUMN, Column, count},
    template,
};
use crate::{defaults, validation};

/// `apps/v1`.
pub const ALL: &[&Resource] = &[
    &CONTROLLER_REVISION,
    &DAEMON_SET,
    &DEPLOYMENT,
    &REPLICA_SET,
    &STATEFUL_SET,
];

/// The past of a DaemonSet or StatefulSet.
pub static CONTROLLER_REVISION: Resource = Resource {
    columns: &[
        Column::text("Controller", |o, _| {
            let owners = o["metadata"]["ownerReferences"]
                .as_array()
                .into_iter()
                .flatten();
            let mut controllers = owners.filter(|owner| owner["controller"] == json!(true));
            controllers.next().map_or_else(
                || "<none>".into(),
                |owner| {
                    let text = |field: &str| owner[field].as_str().unwrap_or_default();
                    let group = text("apiVersion")
                        .split_once('/')
                        .map_or("", |(group, _)| group);
                    format!("{}.{group}/{}", text("kind").to_lowercase(), text("name")).into()
                },
            )
        }),
        Column::integer("Revision", |o, _| count(o, "/revision").into()),
        AGE_COLUMN,
    ],
    ..Resource::namespaced(
        "controllerrevisions.apps",
        "apps",
        "ControllerRevision",
        "controllerrevisions",
        "controllerrevision",
    )
};

const TEMPLATE_COLUMNS: [Column; 3] = [
    Column::text("Containers", |o, _| {
        template::names(&o["spec"]["template"]["spec"])
    })
    .wide(),
    Column::text("Images", |o, _| {
        template::images(&o["spec"]["template"]["spec"])
    })
    .wide(),
    Column::text("Selector", |o, _| selector_text(o)).wide(),
];

fn selector_text(object: &Value) -> Value {
    let scale = crate::registry::scale::of(object);
    match scale["status"]["selector"].as_str() {
        Some(text) if !text.is_empty() => text.into(),
        _ => "<none>".into(),
    }
}

/// One pod of the set on every node.
pub static DAEMON_SET: Resource = Resource {
    short_names: &["ds"],
    categories: &["all"],
    subresources: &[Subresource::status("apps", "DaemonSet")],
    columns: &[
        Column::integer("Desired", |o, _| {
            count(o, "/status/desiredNumberScheduled").into()
        }),
        Column::integer("Current", |o, _| {
            count(o, "/status/currentNumberScheduled").into()
        }),
        Column::integer("Ready", |o, _| count(o, "/status/numberReady").into()),
        Column::integer("Up-to-date", |o, _| {
            count(o, "/status/updatedNumberScheduled").into()
        }),
        Column::integer("Available", |o, _| {
            count(o, "/status/numberAvailable").into()
        }),
        Column::text("Node Selector", |o, _| {
            pod::labels(&o["spec"]["template"]["spec"]["nodeSelector"])
        }),
        AGE_COLUMN,
        TEMPLATE_COLUMNS[0],
        TEMPLATE_COLUMNS[1],
        TEMPLATE_COLUMNS[2],
    ],
    generation: true,
    rules: Rules {
        default: defaults::daemon_set,
        validate: validation::daemon_set,
        validate_update: validation::daemon_set_update,
        ..PLAIN
    },
    ..Resource::namespaced(
        "daemonsets.apps",
        "apps",
        "DaemonSet",
        "daemonsets",
        "daemonset",
    )
};

/// Pods that are replaced step by step.
pub static DEPLOYMENT: Resource = Resource {
    short_names: &["deploy"],
    categories: &["all"],
    subresources: &[
        Subresource::scale(),
        Subresource::status("apps", "Deployment"),
    ],
    columns: &[
        Column::text("Ready", |o, _| {
            let wanted = count(o, "/spec/replicas");
            format!("{}/{wanted}", count(o, "/status/readyReplicas")).into()
        }),
        Column::integer("Up-to-date", |o, _| {
            count(o, "/status/updatedReplicas").into()
        }),
        Column::integer("Available", |o, _| {
            count(o, "/status/availableReplicas").into()
        }),
        AGE_COLUMN,
        TEMPLATE_COLUMNS[0],
        TEMPLATE_COLUMNS[1],
        TEMPLATE_COLUMNS[2],
    ],
    generation: true,
    rules: Rules {
        default: defaults::deployment,
        validate: validation::deployment,
        validate_update: validation::deployment_update,
        ..PLAIN
    },
    ..Resource::namespaced(
        "deployments.apps",
        "apps",
        "Deployment",
        "deployments",
        "deployment",
    )
};

/// How replicas print; of `ReplicaSet` and `ReplicationController`.
pub(super) const REPLICA_COLUMNS: &[Column] = &[
    Column::integer("Desired", |o, _| count(o, "/spec/replicas").into()),
    Column::integer("Current", |o, _| count(o, "/status/replicas").into()),
    Column::integer("Ready", |o, _| count(o, "/status/readyReplicas").into()),
    AGE_COLUMN,
    TEMPLATE_COLUMNS[0],
    TEMPLATE_COLUMNS[1],
    TEMPLATE_COLUMNS[2],
];

/// A number of equal pods.
pub static REPLICA_SET: Resource = Resource {
    short_names: &["rs"],
    categories: &["all"],
    subresources: &[
        Subresource::scale(),
        Subresource::status("apps", "ReplicaSet"),
    ],
    fields: &[super::SelectableField {
        name: "status.replicas",
        pointer: "status.replicas",
        default: "0",
    }],
    columns: REPLICA_COLUMNS,
    generation: true,
    rules: Rules {
        default: defaults::replica_set,
        validate: validation::replica_set,
        validate_update: validation::replica_set_update,
        ..PLAIN
    },
    ..Resource::namespaced(
        "replicasets.apps",
        "apps",
        "ReplicaSet",
        "replicasets",
        "replicaset",
    )
};

/// Pods with names and storage that stay.
pub static STATEFUL_SET: Resource = Resource {
    short_names: &["sts"],
    categories: &["all"],
    subresources: &[
        Subresource::scale(),
        Subresource::status("apps", "StatefulSet"),
    ],
    columns: &[
        Column::text("Ready", ready_of),
        AGE_COLUMN,
        TEMPLATE_COLUMNS[0],
        TEMPLATE_COLUMNS[1],
    ],
    generation: true,
    rules: Rules {
        default: defaults::stateful_set,
        validate: validation::stateful_set,
        validate_update: validation::stateful_set_update,
        ..PLAIN
    },
    ..Resource::namespaced(
        "statefulsets.apps",
        "apps",
        "StatefulSet",
        "statefulsets",
        "statefulset",
    )
};

fn ready_of(object: &Value, _now: Timestamp) -> Value {
    let wanted = count(object, "/spec/replicas");
    format!("{}/{wanted}", count(object, "/status/readyReplicas")).into()
}
