//! `/scale`: the replicas of a workload as an object of its own. Pure.

use serde_json::{Map, Value, json};

use super::Target;
use crate::status::{Cause, Status};

/// The `Scale` of a workload.
pub fn of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for field in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = object["metadata"].get(field) {
            metadata.insert(field.to_owned(), value.clone());
        }
    }
    let replicas = object["spec"]["replicas"].as_i64().unwrap_or(0);
    let mut status = json!({"replicas": object["status"]["replicas"].as_i64().unwrap_or(0)});
    let selector = selector_text(&object["spec"]["selector"]);
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut spec = json!({});
    if replicas != 0 {
        spec["replicas"] = replicas.into();
    }
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": spec,
        "status": status,
    })
}

/// The workload with the replicas of a changed `Scale`.
///
/// # Errors
/// 422 for replicas that are no count.
pub fn onto(current: &Value, scale: &Value, target: Target<'_>) -> Result<Value, Status> {
    let replicas = match &scale["spec"]["replicas"] {
        Value::Null => 0,
        given => given
            .as_i64()
            .filter(|n| (0..=i64::from(i32::MAX)).contains(n))
            .ok_or_else(|| {
                let why = "must be greater than or equal to 0";
                let cause = Cause::invalid("spec.replicas", given, why);
                Status::invalid("autoscaling", "Scale", target.name, vec![cause])
            })?,
    };
    let mut new = current.clone();
    for field in ["resourceVersion", "uid"] {
        if let Some(value) = scale["metadata"].get(field) {
            new["metadata"][field] = value.clone();
        }
    }
    new["spec"]["replicas"] = replicas.into();
    Ok(new)
}

/// What applying a `Scale` means for the workload: its replicas and no more.
///
/// # Errors
/// 400 for what is no `Scale`.
pub fn applied(scale: &Value, target: Target<'_>) -> Result<Value, Status> {
    if scale["apiVersion"] != "autoscaling/v1" || scale["kind"] != "Scale" {
        return Err(Status::bad_request(format!(
            "expected a Scale of autoscaling/v1 in the apply patch, got {} {}",
            scale["apiVersion"], scale["kind"]
        )));
    }
    let mut workload = json!({
        "apiVersion": target.resource.api_version(),
        "kind": target.resource.kind,
        "metadata": {},
    });
    for field in ["name", "namespace", "uid", "resourceVersion"] {
        if let Some(value) = scale["metadata"].get(field) {
            workload["metadata"][field] = value.clone();
        }
    }
    if let Some(replicas) = scale["spec"].get("replicas") {
        workload["spec"] = json!({"replicas": replicas});
    }
    Ok(workload)
}

/// A selector as text; the plain map of a `ReplicationController` too.
fn selector_text(selector: &Value) -> String {
    let Some(map) = selector.as_object() else {
        return String::new();
    };
    let structured = map.contains_key("matchLabels") || map.contains_key("matchExpressions");
    let labels = if structured {
        selector["matchLabels"].as_object()
    } else {
        Some(map)
    };
    let mut terms: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    for expression in selector["matchExpressions"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let key = expression["key"].as_str().unwrap_or_default();
        let values: Vec<&str> = expression["values"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        let values = values.join(",");
        terms.push(match expression["operator"].as_str().unwrap_or_default() {
            "In" => format!("{key} in ({values})"),
            "NotIn" => format!("{key} notin ({values})"),
            "DoesNotExist" => format!("!{key}"),
            _ => key.to_owned(),
        });
    }
    terms.join(",")
}
