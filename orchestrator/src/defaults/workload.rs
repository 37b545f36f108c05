//! Defaults of the kinds that make pods.

use serde_json::{Value, json};

use super::{Object, claim_spec, each, existing, object, pod_template, set, spec, text};

/// Deployment.
pub fn deployment(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "progressDeadlineSeconds", 600);
    if let Some(strategy) = object(spec, "strategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", "25%");
            set(rolling, "maxSurge", "25%");
        }
    }
    pod_template(spec);
}

/// ReplicaSet.
pub fn replica_set(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "replicas", 1);
    pod_template(spec);
}

/// ReplicationController: it selects what it makes, unless it says otherwise.
pub fn replication_controller(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "replicas", 1);
    pod_template(spec);
    let labels = labels_of_pods(spec);
    if let Some(labels) = labels {
        set(spec, "selector", labels.clone());
        inherit_labels(object_, labels);
    }
}

/// StatefulSet.
pub fn stateful_set(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "replicas", 1);
    set(spec, "revisionHistoryLimit", 10);
    set(spec, "podManagementPolicy", "OrderedReady");
    if let Some(strategy) = object(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object(strategy, "rollingUpdate")
        {
            set(rolling, "partition", 0);
        }
    }
    if let Some(retention) = object(spec, "persistentVolumeClaimRetentionPolicy") {
        set(retention, "whenDeleted", "Retain");
        set(retention, "whenScaled", "Retain");
    }
    for claim in each(spec, "volumeClaimTemplates") {
        set(claim, "apiVersion", "v1");
        set(claim, "kind", "PersistentVolumeClaim");
        if let Some(spec) = object(claim, "spec") {
            claim_spec(spec);
        }
        set(claim, "status", json!({"phase": "Pending"}));
    }
    pod_template(spec);
}

/// DaemonSet.
pub fn daemon_set(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "revisionHistoryLimit", 10);
    if let Some(strategy) = object(spec, "updateStrategy") {
        set(strategy, "type", "RollingUpdate");
        if text(strategy, "type") == "RollingUpdate"
            && let Some(rolling) = object(strategy, "rollingUpdate")
        {
            set(rolling, "maxUnavailable", 1);
            set(rolling, "maxSurge", 0);
        }
    }
    pod_template(spec);
}

/// Job.
pub fn job(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    if spec.get("parallelism").is_none() {
        set(spec, "completions", 1);
    }
    set(spec, "parallelism", 1);
    let per_index = spec.contains_key("backoffLimitPerIndex");
    set(spec, "backoffLimit", if per_index { i32::MAX } else { 6 });
    set(spec, "completionMode", "NonIndexed");
    set(spec, "suspend", false);
    set(spec, "manualSelector", false);
    let policy = existing(spec, "podFailurePolicy");
    let replacement = if policy.is_some() {
        "Failed"
    } else {
        "TerminatingOrFailed"
    };
    for rule in policy.into_iter().flat_map(|policy| each(policy, "rules")) {
        for pattern in each(rule, "onPodConditions") {
            set(pattern, "status", "True");
        }
    }
    set(spec, "podReplacementPolicy", replacement);
    pod_template(spec);
    if let Some(labels) = labels_of_pods(spec) {
        inherit_labels(object_, labels);
    }
}

fn labels_of_pods(spec: &Object) -> Option<Value> {
    spec.get("template")?.pointer("/metadata/labels").cloned()
}

/// An object without labels takes those of its pods.
fn inherit_labels(object_: &mut Value, labels: Value) {
    if let Some(metadata) = object_
        .as_object_mut()
        .and_then(|of| object(of, "metadata"))
    {
        set(metadata, "labels", labels);
    }
}

/// CronJob.
pub fn cron_job(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "concurrencyPolicy", "Allow");
    set(spec, "suspend", false);
    set(spec, "successfulJobsHistoryLimit", 3);
    set(spec, "failedJobsHistoryLimit", 1);
    let job: Option<&mut Object> =
        object(spec, "jobTemplate").and_then(|template| object(template, "spec"));
    if let Some(job) = job {
        pod_template(job);
    }
}

/// HorizontalPodAutoscaler, version 1.
pub fn horizontal_pod_autoscaler(object_: &mut Value) {
    if let Some(spec) = spec(object_) {
        set(spec, "minReplicas", 1);
    }
}
