//! Pods: how they print, begin, change and end.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    PLAIN, Resource, Rules, SelectableField, Subresource,
    table::{self, AGE_COLUMN, Column},
    template,
};
use crate::{defaults, validation};

/// Containers that run together.
pub static POD: Resource = Resource {
    short_names: &["po"],
    categories: &["all"],
    subresources: &[
        Subresource::posted("binding", "", "v1", "Binding"),
        Subresource {
            name: "ephemeralcontainers",
            kind: "Pod",
            group: "",
            version: "v1",
            verbs: &["get", "patch", "update"],
        },
        Subresource::posted("eviction", "policy", "v1", "Eviction"),
        Subresource::status("", "Pod"),
    ],
    fields: &[
        SelectableField::text("spec.nodeName"),
        SelectableField::text("spec.restartPolicy"),
        SelectableField::text("spec.schedulerName"),
        SelectableField::text("spec.serviceAccountName"),
        SelectableField {
            name: "spec.hostNetwork",
            pointer: "spec.hostNetwork",
            default: "false",
        },
        SelectableField::text("status.phase"),
        SelectableField::text("status.podIP"),
        SelectableField::text("status.nominatedNodeName"),
    ],
    columns: &[
        Column::text("Ready", |o, _| summary(o).ready.into()),
        Column::text("Status", |o, _| summary(o).reason.into()),
        Column::text("Restarts", restarts),
        AGE_COLUMN,
        Column::text("IP", |o, _| table::text_or(o, "/status/podIP", "<none>")).wide(),
        Column::text("Node", |o, _| table::text_or(o, "/spec/nodeName", "<none>")).wide(),
        Column::text("Nominated Node", |o, _| {
            table::text_or(o, "/status/nominatedNodeName", "<none>")
        })
        .wide(),
        Column::text("Readiness Gates", |o, _| readiness_gates(o)).wide(),
    ],
    generation: true,
    rules: Rules {
        default: defaults::pod,
        create: |o| {
            let class = template::qos_class(&o["spec"]);
            o["status"] = json!({"phase": "Pending", "qosClass": class});
        },
        validate: validation::pod,
        validate_update: validation::pod_update,
        validate_create: validation::pod_create,
        grace: |o, asked| {
            let spec = &o["spec"];
            let placed = spec["nodeName"]
                .as_str()
                .is_some_and(|node| !node.is_empty());
            let over = matches!(o["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
            if !placed || over {
                return 0;
            }
            asked.unwrap_or_else(|| spec["terminationGracePeriodSeconds"].as_i64().unwrap_or(30))
        },
        returns_deleted: true,
        status_writes_labels: true,
        ..PLAIN
    },
    ..Resource::namespaced("pods", "", "Pod", "pods", "pod")
};

/// A pod to be, kept as an object of its own.
pub static POD_TEMPLATE: Resource = Resource {
    columns: &[
        Column::text("Containers", |o, _| template::names(&o["template"]["spec"])),
        Column::text("Images", |o, _| template::images(&o["template"]["spec"])),
        Column::text("Pod Labels", |o, _| {
            labels(&o["template"]["metadata"]["labels"])
        }),
    ],
    rules: Rules {
        default: |o| {
            if let Some(object) = o.as_object_mut() {
                defaults::pod_template(object);
            }
        },
        validate: |o, causes| {
            validation::pod_template(&o["template"], "template", causes);
        },
        returns_deleted: true,
        ..PLAIN
    },
    ..Resource::namespaced(
        "podtemplates",
        "",
        "PodTemplate",
        "podtemplates",
        "podtemplate",
    )
};

/// `a=b,c=d`, or `<none>`.
pub(super) fn labels(labels: &Value) -> Value {
    let all: Vec<String> = labels
        .as_object()
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    if all.is_empty() {
        "<none>".into()
    } else {
        all.join(",").into()
    }
}

struct Summary {
    ready: String,
    reason: String,
    restarts: i64,
    last_restart: Option<String>,
}

/// What `kubectl get pods` says about a pod.
fn summary(pod: &Value) -> Summary {
    let status = &pod["status"];
    let total = pod["spec"]["containers"].as_array().map_or(0, Vec::len);
    let mut reason = status["phase"].as_str().unwrap_or("Unknown").to_owned();
    if let Some(text) = status["reason"].as_str().filter(|text| !text.is_empty()) {
        text.clone_into(&mut reason);
    }
    let gated = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .any(|c| c["type"] == "PodScheduled" && c["reason"] == "SchedulingGated");
    if gated {
        "SchedulingGated".clone_into(&mut reason);
    }
    let (mut restarts, mut last_restart) = (0, None);
    let initialising = initialising(pod, &mut reason);
    let mut ready = 0;
    let mut running = false;
    for container in status["containerStatuses"].as_array().into_iter().flatten() {
        restarts += container["restartCount"].as_i64().unwrap_or(0);
        let ended = container["lastState"]["terminated"]["finishedAt"].as_str();
        last_restart = last_restart.max(ended.map(str::to_owned));
        let is_ready = container["ready"] == json!(true);
        ready += usize::from(is_ready);
        if initialising {
            continue;
        }
        let state = &container["state"];
        if let Some(text) = state["waiting"]["reason"]
            .as_str()
            .filter(|t| !t.is_empty())
        {
            text.clone_into(&mut reason);
        } else if state["terminated"].is_object() {
            reason = ended_reason(&state["terminated"]);
        } else if is_ready && state["running"].is_object() {
            running = true;
        }
    }
    if reason == "Completed" && running {
        let is_ready = status["conditions"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|c| c["type"] == "Ready" && c["status"] == "True");
        if is_ready { "Running" } else { "NotReady" }.clone_into(&mut reason);
    }
    if pod["metadata"]["deletionTimestamp"].is_string() {
        let lost = status["reason"] == "NodeLost";
        let over = matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"));
        if lost {
            "Unknown".clone_into(&mut reason);
        } else if !over {
            "Terminating".clone_into(&mut reason);
        }
    }
    Summary {
        ready: format!("{ready}/{total}"),
        reason,
        restarts,
        last_restart,
    }
}

/// Whether init containers are not done; says so in `reason`.
fn initialising(pod: &Value, reason: &mut String) -> bool {
    let total = pod["spec"]["initContainers"].as_array().map_or(0, Vec::len);
    let statuses = pod["status"]["initContainerStatuses"]
        .as_array()
        .into_iter()
        .flatten();
    for (index, container) in statuses.enumerate() {
        let state = &container["state"];
        let always = pod["spec"]["initContainers"][index]["restartPolicy"] == "Always";
        if state["terminated"]["exitCode"] == json!(0)
            || (always && container["started"] == json!(true))
        {
            continue;
        }
        *reason = if state["terminated"].is_object() {
            format!("Init:{}", ended_reason(&state["terminated"]))
        } else {
            match state["waiting"]["reason"].as_str() {
                Some(text) if !text.is_empty() && text != "PodInitializing" => {
                    format!("Init:{text}")
                }
                _ => format!("Init:{index}/{total}"),
            }
        };
        return true;
    }
    false
}

fn ended_reason(terminated: &Value) -> String {
    if let Some(text) = terminated["reason"]
        .as_str()
        .filter(|text| !text.is_empty())
    {
        return text.to_owned();
    }
    match terminated["signal"].as_i64() {
        Some(signal) if signal != 0 => format!("Signal:{signal}"),
        _ => format!("ExitCode:{}", terminated["exitCode"].as_i64().unwrap_or(0)),
    }
}

fn restarts(pod: &Value, now: Timestamp) -> Value {
    let summary = summary(pod);
    let Some(last) = summary.last_restart.filter(|_| summary.restarts > 0) else {
        return summary.restarts.to_string().into();
    };
    let ago = table::since(&last.into(), now);
    format!(
        "{} ({} ago)",
        summary.restarts,
        ago.as_str().unwrap_or_default()
    )
    .into()
}

fn readiness_gates(pod: &Value) -> Value {
    let gates = pod["spec"]["readinessGates"].as_array();
    let Some(gates) = gates.filter(|gates| !gates.is_empty()) else {
        return "<none>".into();
    };
    let met = gates.iter().filter(|gate| {
        let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
        conditions
            .filter(|c| c["type"] == gate["conditionType"])
            .any(|c| c["status"] == "True")
    });
    format!("{}/{}", met.count(), gates.len()).into()
}
