//! Deployments, ReplicaSets, StatefulSets, DaemonSets and scales.

use serde_json::Value;

use super::{At, NOT_NEGATIVE, pod_template, storage};
use crate::cache::selector::Selector;
use crate::resource::{Causes, NameRule};
use crate::status::Cause;

/// Deployment.
pub fn deployment(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    spec.field("replicas").not_negative(causes);
    selected_template(&spec, "deployment", "Deployment", causes);
    let strategy = spec.field("strategy");
    strategy
        .field("type")
        .choose(&["Recreate", "RollingUpdate"], causes);
    let rolling = strategy.field("rollingUpdate");
    if strategy.field("type").text() == "Recreate" && rolling.value.is_object() {
        rolling.forbid(
            "may not be specified when strategy `type` is 'Recreate'",
            causes,
        );
    } else if strategy.field("type").text() == "RollingUpdate" {
        rolling_update(&rolling, "may not be 0 when `maxSurge` is 0", causes);
    }
    for number in [
        "minReadySeconds",
        "revisionHistoryLimit",
        "progressDeadlineSeconds",
    ] {
        spec.field(number).not_negative(causes);
    }
    let deadline = spec.field("progressDeadlineSeconds");
    let ready = spec.field("minReadySeconds").int().unwrap_or(0);
    if deadline.int().is_some_and(|seconds| seconds <= ready) {
        deadline.invalid("must be greater than minReadySeconds", causes);
    }
}

/// A change of a Deployment.
pub fn deployment_update(new: &Value, old: &Value, causes: &mut Causes) {
    selector_unchanged(new, old, causes);
}

/// ReplicaSet.
pub fn replica_set(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    spec.field("replicas").not_negative(causes);
    spec.field("minReadySeconds").not_negative(causes);
    selected_template(&spec, "replicaset", "ReplicaSet", causes);
}

/// A change of a ReplicaSet.
pub fn replica_set_update(new: &Value, old: &Value, causes: &mut Causes) {
    selector_unchanged(new, old, causes);
}

/// ReplicationController.
pub fn replication_controller(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    spec.field("replicas").not_negative(causes);
    spec.field("minReadySeconds").not_negative(causes);
    let (selector, template) = (spec.field("selector"), spec.field("template"));
    if selector
        .value
        .as_object()
        .is_none_or(serde_json::Map::is_empty)
    {
        causes.push(Cause::required(&selector.path, ""));
    }
    let labels = template.field("metadata").field("labels");
    let matches = selector
        .entries()
        .all(|(key, value)| labels.field(key).text() == value.text());
    if !matches {
        labels.invalid("`selector` does not match template `labels`", causes);
    }
    pod_template(template.value, &template.path, causes);
    restart_always(&template, causes);
}

/// DaemonSet.
pub fn daemon_set(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    selected_template(&spec, "daemonset", "DaemonSet", causes);
    spec.field("minReadySeconds").not_negative(causes);
    spec.field("revisionHistoryLimit").not_negative(causes);
    let strategy = spec.field("updateStrategy");
    strategy
        .field("type")
        .choose(&["RollingUpdate", "OnDelete"], causes);
    if strategy.field("type").text() == "RollingUpdate" {
        let rolling = strategy.field("rollingUpdate");
        rolling_update(&rolling, "cannot be 0 when maxSurge is 0", causes);
        let (unavailable, surge) = (rolling.field("maxUnavailable"), rolling.field("maxSurge"));
        if !is_zero(&unavailable) && !is_zero(&surge) {
            surge.invalid("may not be set when maxUnavailable is non-zero", causes);
        }
    }
}

/// A change of a DaemonSet.
pub fn daemon_set_update(new: &Value, old: &Value, causes: &mut Causes) {
    selector_unchanged(new, old, causes);
}

/// StatefulSet.
pub fn stateful_set(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    spec.field("podManagementPolicy")
        .choose(&["OrderedReady", "Parallel"], causes);
    let strategy = spec.field("updateStrategy");
    strategy
        .field("type")
        .choose(&["RollingUpdate", "OnDelete"], causes);
    let rolling = strategy.field("rollingUpdate");
    if strategy.field("type").text() == "OnDelete" && rolling.value.is_object() {
        rolling.invalid("only allowed for updateStrategy 'RollingUpdate'", causes);
    }
    rolling.field("partition").not_negative(causes);
    let unavailable = rolling.field("maxUnavailable");
    if unavailable.is_set() {
        int_or_percent(&unavailable, causes);
        if is_zero(&unavailable) {
            unavailable.invalid("cannot be 0", causes);
        }
    }
    let retention = spec.field("persistentVolumeClaimRetentionPolicy");
    for when in ["whenDeleted", "whenScaled"] {
        retention
            .field(when)
            .choose_if_set(&["Retain", "Delete"], causes);
    }
    for number in ["replicas", "minReadySeconds", "revisionHistoryLimit"] {
        spec.field(number).not_negative(causes);
    }
    spec.field("ordinals").field("start").not_negative(causes);
    spec.field("serviceName")
        .name_if_set(NameRule::Label1035, causes);
    for claim in spec.field("volumeClaimTemplates").items() {
        storage::claim_spec(&claim.field("spec"), causes);
    }
    stateful_template(&spec, causes);
}

/// The template may mount the claims as if they were volumes of its own.
fn stateful_template(spec: &At<'_>, causes: &mut Causes) {
    let mut with_claims = spec.value.clone();
    let claims = spec.field("volumeClaimTemplates");
    let names: Vec<Value> = claims
        .items()
        .map(|claim| claim.field("metadata").field("name").value.clone())
        .collect();
    if let Some(pod) = with_claims
        .pointer_mut("/template/spec")
        .and_then(Value::as_object_mut)
    {
        let volumes = pod
            .entry("volumes")
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Some(volumes) = volumes.as_array_mut() {
            volumes.retain(|volume| !names.contains(&volume["name"]));
            volumes.extend(
                names
                    .iter()
                    .map(|name| serde_json::json!({"name": name, "emptyDir": {}})),
            );
        }
    }
    let spec = At {
        value: &with_claims,
        path: spec.path.clone(),
    };
    selected_template(&spec, "statefulset", "StatefulSet", causes);
}

/// A change of a StatefulSet.
pub fn stateful_set_update(new: &Value, old: &Value, causes: &mut Causes) {
    const MAY_CHANGE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let rest = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(spec) = spec.as_object_mut() {
            spec.retain(|field, _| !MAY_CHANGE.contains(&&**field));
        }
        spec
    };
    if rest(new) != rest(old) {
        causes.push(Cause::forbidden(
            "spec",
            "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
             'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and \
             'minReadySeconds' are forbidden",
        ));
    }
}

/// Scale.
pub fn scale(object: &Value, causes: &mut Causes) {
    At::root(object)
        .field("spec")
        .field("replicas")
        .not_negative(causes);
}

/// HorizontalPodAutoscaler, version 1.
pub fn horizontal_pod_autoscaler(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    let (min, max) = (spec.field("minReplicas"), spec.field("maxReplicas"));
    if min.int().is_some_and(|replicas| replicas < 1) {
        min.invalid("must be greater than or equal to 1", causes);
    }
    if max.int().unwrap_or(0) < 1 {
        max.invalid("must be greater than 0", causes);
    } else if max.int() < min.int() {
        max.invalid("must be greater than or equal to `minReplicas`", causes);
    }
    for field in ["kind", "name"] {
        spec.field("scaleTargetRef").field(field).require(causes);
    }
}

/// Selector and template: the one must match the other.
fn selected_template(spec: &At<'_>, kind: &str, name: &str, causes: &mut Causes) {
    let (selector, template) = (spec.field("selector"), spec.field("template"));
    if selector.value.is_object() {
        selector.selector(causes);
        let is_empty = ["matchLabels", "matchExpressions"].iter().all(|part| {
            let part = selector.field(part);
            part.value.as_object().is_none_or(serde_json::Map::is_empty)
                && part.value.as_array().is_none_or(Vec::is_empty)
        });
        if is_empty {
            selector.invalid(format!("empty selector is invalid for {kind}"), causes);
        }
    } else {
        causes.push(Cause::required(&selector.path, ""));
    }
    let labels = template.field("metadata").field("labels");
    if selector.value.is_object() {
        let matches = Selector::from_object(selector.value)
            .matches_labels(|key| labels.value.get(key).and_then(Value::as_str));
        if !matches {
            labels.invalid("`selector` does not match template `labels`", causes);
        }
    }
    pod_template(template.value, &template.path, causes);
    restart_always(&template, causes);
    let deadline = template.field("spec").field("activeDeadlineSeconds");
    if deadline.is_set() {
        deadline.forbid(
            &format!("activeDeadlineSeconds in {name} is not Supported"),
            causes,
        );
    }
}

fn restart_always(template: &At<'_>, causes: &mut Causes) {
    let policy = template.field("spec").field("restartPolicy");
    policy.choose_if_set(&["Always"], causes);
}

fn selector_unchanged(new: &Value, old: &Value, causes: &mut Causes) {
    let selector = At::root(new).field("spec").field("selector");
    selector.unchanged(&old["spec"]["selector"], causes);
}

fn rolling_update(at: &At<'_>, both_zero: &str, causes: &mut Causes) {
    let (unavailable, surge) = (at.field("maxUnavailable"), at.field("maxSurge"));
    int_or_percent(&unavailable, causes);
    int_or_percent(&surge, causes);
    if is_zero(&unavailable) && is_zero(&surge) {
        unavailable.invalid(both_zero, causes);
    }
    if percent(&unavailable).is_some_and(|percent| percent > 100) {
        unavailable.invalid("must not be greater than 100%", causes);
    }
}

fn percent(at: &At<'_>) -> Option<u64> {
    let digits = at.text().strip_suffix('%')?;
    digits
        .bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| digits.parse().ok())
        .flatten()
}

fn is_zero(at: &At<'_>) -> bool {
    at.int()
        .or_else(|| percent(at).and_then(|percent| i64::try_from(percent).ok()))
        == Some(0)
}

fn int_or_percent(at: &At<'_>, causes: &mut Causes) {
    match at.value {
        Value::Number(_) if at.int().is_none_or(|number| number < 0) => {
            at.invalid(NOT_NEGATIVE, causes);
        }
        Value::String(_) if percent(at).is_none() => at.invalid(
            "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  \
             or '93%', regex used for validation is '[0-9]+%')",
            causes,
        ),
        _ => {}
    }
}
