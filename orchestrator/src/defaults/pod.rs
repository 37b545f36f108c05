//! Defaults of pods and pod templates.

use serde_json::{Map, Value, json};

use super::{Object, each, existing, object, set, text};

/// Pod.
pub fn pod(object_: &mut Value) {
    let Some(spec) = super::spec(object_) else {
        return;
    };
    pod_spec(spec);
    set(spec, "enableServiceLinks", true);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            request_what_is_limited(container);
        }
    }
    if spec.contains_key("resources") {
        request_what_is_limited(spec);
    }
}

/// The template in `spec.template` of a workload, or in `template` of a PodTemplate.
pub fn pod_template(of: &mut Object) {
    if let Some(spec) = object(of, "template").and_then(|template| object(template, "spec")) {
        pod_spec(spec);
    }
}

/// A limit without a request is the request too.
fn request_what_is_limited(of: &mut Object) {
    let Some(resources) = existing(of, "resources") else {
        return;
    };
    let Some(Value::Object(limits)) = resources.get("limits").cloned() else {
        return;
    };
    if let Some(requests) = object(resources, "requests") {
        for (name, quantity) in limits {
            set(requests, &name, quantity);
        }
    }
}

fn pod_spec(spec: &mut Object) {
    set(spec, "dnsPolicy", "ClusterFirst");
    set(spec, "restartPolicy", "Always");
    set(spec, "terminationGracePeriodSeconds", 30);
    set(spec, "schedulerName", "default-scheduler");
    set(spec, "securityContext", json!({}));
    // The old name of the field is kept in step.
    for (from, to) in [
        ("serviceAccountName", "serviceAccount"),
        ("serviceAccount", "serviceAccountName"),
    ] {
        if let Some(name) = spec.get(from).cloned() {
            set(spec, to, name);
        }
    }
    let host_network = spec.get("hostNetwork") == Some(&Value::Bool(true));
    for list in ["initContainers", "containers", "ephemeralContainers"] {
        for container in each(spec, list) {
            self::container(container, host_network);
        }
    }
    each(spec, "volumes").for_each(volume);
}

fn container(container: &mut Object, host_network: bool) {
    let policy = if is_latest(text(container, "image")) {
        "Always"
    } else {
        "IfNotPresent"
    };
    set(container, "imagePullPolicy", policy);
    set(container, "terminationMessagePath", "/dev/termination-log");
    set(container, "terminationMessagePolicy", "File");
    set(container, "resources", json!({}));
    for port in each(container, "ports") {
        set(port, "protocol", "TCP");
        if host_network && let Some(number) = port.get("containerPort").cloned() {
            set(port, "hostPort", number);
        }
    }
    for variable in each(container, "env") {
        if let Some(field) =
            existing(variable, "valueFrom").and_then(|from| existing(from, "fieldRef"))
        {
            set(field, "apiVersion", "v1");
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = existing(container, probe) {
            set(probe, "timeoutSeconds", 1);
            set(probe, "periodSeconds", 10);
            set(probe, "successThreshold", 1);
            set(probe, "failureThreshold", 3);
            handler(probe);
            if let Some(grpc) = existing(probe, "grpc") {
                set(grpc, "service", "");
            }
        }
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = existing(lifecycle, hook) {
                handler(hook);
            }
        }
    }
}

fn handler(of: &mut Object) {
    if let Some(get) = existing(of, "httpGet") {
        set(get, "path", "/");
        set(get, "scheme", "HTTP");
    }
}

/// Whether an image reference names the tag `latest`, or no tag and no digest.
fn is_latest(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

fn volume(volume: &mut Object) {
    if volume.keys().all(|key| key == "name") {
        volume.insert("emptyDir".to_owned(), Value::Object(Map::new()));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = existing(volume, source) {
            set(source, "defaultMode", 0o644);
            each(source, "items").for_each(field_reference);
        }
    }
    if let Some(path) = existing(volume, "hostPath") {
        set(path, "type", "");
    }
    if let Some(image) = existing(volume, "image") {
        let latest = is_latest(text(image, "reference"));
        set(
            image,
            "pullPolicy",
            if latest { "Always" } else { "IfNotPresent" },
        );
    }
    if let Some(projected) = existing(volume, "projected") {
        for source in each(projected, "sources") {
            if let Some(token) = existing(source, "serviceAccountToken") {
                set(token, "expirationSeconds", 3600);
            }
            if let Some(downward) = existing(source, "downwardAPI") {
                each(downward, "items").for_each(field_reference);
            }
        }
    }
    let claim = existing(volume, "ephemeral")
        .and_then(|ephemeral| existing(ephemeral, "volumeClaimTemplate"))
        .and_then(|template| object(template, "spec"));
    if let Some(claim) = claim {
        super::claim_spec(claim);
    }
}

fn field_reference(item: &mut Object) {
    if let Some(field) = existing(item, "fieldRef") {
        set(field, "apiVersion", "v1");
    }
}
