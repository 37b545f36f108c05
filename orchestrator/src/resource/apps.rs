//! apps/v1: pods kept running.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Causes, PLAIN, Resource, Rules, Subresource, pod,
    table::{AGE_COLUMN, Column, count},
    template::{self, at_least, one_of},
};
use crate::{cache::Selector, defaults, status::Cause};

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
        validate: |o, causes| {
            workload(o, causes);
            let strategy = &o["spec"]["updateStrategy"];
            one_of(
                strategy,
                "spec.updateStrategy",
                "type",
                &["OnDelete", "RollingUpdate"],
                causes,
            );
            rolling_update(
                &strategy["rollingUpdate"],
                "spec.updateStrategy.rollingUpdate",
                causes,
            );
        },
        validate_update: selector_stays,
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
        validate: |o, causes| {
            workload(o, causes);
            let spec = &o["spec"];
            for field in [
                "replicas",
                "minReadySeconds",
                "revisionHistoryLimit",
                "progressDeadlineSeconds",
            ] {
                at_least(spec, "spec", field, 0, causes);
            }
            let deadline = spec["progressDeadlineSeconds"].as_i64();
            if deadline.is_some_and(|d| d <= spec["minReadySeconds"].as_i64().unwrap_or(0)) {
                let field = "spec.progressDeadlineSeconds";
                let why = "must be greater than minReadySeconds";
                causes.push(Cause::invalid(field, &spec["progressDeadlineSeconds"], why));
            }
            let strategy = &spec["strategy"];
            one_of(
                strategy,
                "spec.strategy",
                "type",
                &["Recreate", "RollingUpdate"],
                causes,
            );
            if strategy["type"] == "Recreate" && strategy["rollingUpdate"].is_object() {
                let why = "may not be specified when strategy `type` is 'Recreate'";
                causes.push(Cause::forbidden("spec.strategy.rollingUpdate", why));
            }
            rolling_update(
                &strategy["rollingUpdate"],
                "spec.strategy.rollingUpdate",
                causes,
            );
        },
        validate_update: selector_stays,
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
        validate: |o, causes| {
            workload(o, causes);
            at_least(&o["spec"], "spec", "replicas", 0, causes);
            at_least(&o["spec"], "spec", "minReadySeconds", 0, causes);
        },
        validate_update: selector_stays,
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
        validate: |o, causes| {
            workload(o, causes);
            at_least(&o["spec"], "spec", "replicas", 0, causes);
            at_least(&o["spec"], "spec", "minReadySeconds", 0, causes);
            let policies = &["OrderedReady", "Parallel"];
            one_of(&o["spec"], "spec", "podManagementPolicy", policies, causes);
            let strategy = &o["spec"]["updateStrategy"];
            one_of(
                strategy,
                "spec.updateStrategy",
                "type",
                &["RollingUpdate", "OnDelete"],
                causes,
            );
        },
        validate_update: |new, old, causes| {
            let mut masked = new["spec"].clone();
            for field in STATEFUL_SET_MUTABLE {
                match old["spec"].get(field) {
                    Some(value) => masked[field] = value.clone(),
                    None => drop(masked.as_object_mut().and_then(|map| map.remove(*field))),
                }
            }
            if masked != old["spec"] {
                causes.push(Cause::forbidden(
                    "spec",
                    "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden",
                ));
            }
        },
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

const STATEFUL_SET_MUTABLE: &[&str] = &[
    "replicas",
    "ordinals",
    "template",
    "updateStrategy",
    "revisionHistoryLimit",
    "persistentVolumeClaimRetentionPolicy",
    "minReadySeconds",
];

fn ready_of(object: &Value, _now: Timestamp) -> Value {
    let wanted = count(object, "/spec/replicas");
    format!("{}/{wanted}", count(object, "/status/readyReplicas")).into()
}

/// Rules of everything with a selector and a pod template.
pub(super) fn workload(object: &Value, causes: &mut Causes) {
    let spec = &object["spec"];
    if !spec["selector"].is_object() {
        causes.push(Cause::required("spec.selector", ""));
    } else if spec["selector"]
        .as_object()
        .is_some_and(serde_json::Map::is_empty)
    {
        let why = "empty selector is invalid for this kind";
        causes.push(Cause::invalid("spec.selector", &spec["selector"], why));
    } else {
        label_selector(&spec["selector"], "spec.selector", causes);
        let labels = &spec["template"]["metadata"]["labels"];
        let selector = Selector::from_object(&spec["selector"]);
        if !selector.matches_labels(|key| labels[key].as_str()) {
            let why = "`selector` does not match template `labels`";
            causes.push(Cause::invalid("spec.template.metadata.labels", labels, why));
        }
    }
    template::validate_spec(&spec["template"]["spec"], "spec.template.spec", causes);
    let policy = spec["template"]["spec"]["restartPolicy"]
        .as_str()
        .unwrap_or("Always");
    if policy != "Always" {
        let field = "spec.template.spec.restartPolicy";
        causes.push(Cause::not_supported(field, &policy.into(), &["Always"]));
    }
}

/// Checks the expressions of a label selector.
pub(super) fn label_selector(selector: &Value, path: &str, causes: &mut Causes) {
    for (index, term) in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("{path}.matchExpressions[{index}]");
        let values = term["values"].as_array().map_or(0, Vec::len);
        match term["operator"].as_str().unwrap_or_default() {
            "In" | "NotIn" if values == 0 => causes.push(Cause::required(
                format!("{path}.values"),
                "must be specified when `operator` is 'In' or 'NotIn'",
            )),
            "Exists" | "DoesNotExist" if values > 0 => causes.push(Cause::forbidden(
                format!("{path}.values"),
                "may not be specified when `operator` is 'Exists' or 'DoesNotExist'",
            )),
            "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
            _ => causes.push(Cause::invalid(
                format!("{path}.operator"),
                &term["operator"],
                "not a valid selector operator",
            )),
        }
    }
}

fn selector_stays(new: &Value, old: &Value, causes: &mut Causes) {
    if new["spec"]["selector"] != old["spec"]["selector"] {
        let selector = &new["spec"]["selector"];
        causes.push(Cause::invalid(
            "spec.selector",
            selector,
            "field is immutable",
        ));
    }
}

/// Surge and unavailability: whole numbers or percentages, not both zero.
fn rolling_update(update: &Value, path: &str, causes: &mut Causes) {
    if !update.is_object() {
        return;
    }
    let mut zero = 0;
    for field in ["maxSurge", "maxUnavailable"] {
        let value = &update[field];
        let number = match value {
            Value::String(text) => text.strip_suffix('%').and_then(|n| n.parse::<i64>().ok()),
            other => other.as_i64(),
        };
        match number {
            Some(0) => zero += 1,
            Some(1..) => {}
            Some(_) => {
                let why = "must be greater than or equal to 0";
                causes.push(Cause::invalid(format!("{path}.{field}"), value, why));
            }
            None if value.is_null() => zero += 1,
            None => {
                let why = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%', regex used for validation is '[0-9]+%')";
                causes.push(Cause::invalid(format!("{path}.{field}"), value, why));
            }
        }
    }
    if zero == 2 {
        causes.push(Cause::invalid(
            format!("{path}.maxUnavailable"),
            &update["maxUnavailable"],
            "may not be 0 when `maxSurge` is 0",
        ));
    }
}
