//! Pod specs, wherever they stand: defaults and validation.

use serde_json::{Value, json};

mod validate;

pub(super) use validate::{at_least, one_of, port_name_problem, port_number, validate_spec};

/// Sets `value` where the field is absent or empty.
pub(super) fn fill(object: &mut Value, field: &str, value: impl FnOnce() -> Value) {
    let absent = match object.get(field) {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(_) => false,
    };
    if absent && (object.is_object() || object.is_null()) {
        object[field] = value();
    }
}

/// Upstream's defaults of a pod spec.
pub(super) fn default_spec(spec: &mut Value) {
    if !spec.is_object() {
        return;
    }
    fill(spec, "restartPolicy", || json!("Always"));
    fill(spec, "dnsPolicy", || json!("ClusterFirst"));
    fill(spec, "schedulerName", || json!("default-scheduler"));
    fill(spec, "terminationGracePeriodSeconds", || json!(30));
    fill(spec, "securityContext", || json!({}));
    fill(spec, "enableServiceLinks", || json!(true));
    let account = spec["serviceAccountName"].clone();
    if account.is_string() {
        spec["serviceAccount"] = account;
    } else if spec["serviceAccount"].is_string() {
        spec["serviceAccountName"] = spec["serviceAccount"].clone();
    }
    let host_network = spec["hostNetwork"] == json!(true);
    for list in ["containers", "initContainers", "ephemeralContainers"] {
        for container in spec
            .get_mut(list)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
        {
            default_container(container, host_network);
        }
    }
    for volume in spec
        .get_mut("volumes")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        default_volume(volume);
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    fill(container, "terminationMessagePath", || {
        json!("/dev/termination-log")
    });
    fill(container, "terminationMessagePolicy", || json!("File"));
    let latest = {
        let image = container["image"].as_str().unwrap_or_default();
        let name = image.rsplit('/').next().unwrap_or_default();
        let tag = name.split_once(':').map(|(_, tag)| tag);
        !image.contains('@') && matches!(tag, None | Some("latest"))
    };
    fill(container, "imagePullPolicy", || {
        json!(if latest { "Always" } else { "IfNotPresent" })
    });
    fill(container, "resources", || json!({}));
    for resource in container["resources"]["limits"]
        .as_object()
        .cloned()
        .into_iter()
        .flatten()
    {
        // A limit without a request is a request too.
        let (name, limit) = resource;
        fill(&mut container["resources"]["requests"], &name, || limit);
    }
    for port in container
        .get_mut("ports")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        fill(port, "protocol", || json!("TCP"));
        if host_network {
            let number = port["containerPort"].clone();
            fill(port, "hostPort", || number);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).filter(|probe| probe.is_object()) else {
            continue;
        };
        fill(probe, "timeoutSeconds", || json!(1));
        fill(probe, "periodSeconds", || json!(10));
        fill(probe, "successThreshold", || json!(1));
        fill(probe, "failureThreshold", || json!(3));
        default_http(probe.get_mut("httpGet"));
        if let Some(grpc) = probe.get_mut("grpc").filter(|grpc| grpc.is_object()) {
            grpc["service"] = grpc["service"].as_str().unwrap_or_default().into();
        }
    }
    for hook in ["postStart", "preStop"] {
        let handler = container.get_mut("lifecycle").and_then(|l| l.get_mut(hook));
        default_http(handler.and_then(|h| h.get_mut("httpGet")));
    }
    for env in container
        .get_mut("env")
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
    {
        if let Some(field) = env
            .get_mut("valueFrom")
            .and_then(|from| from.get_mut("fieldRef"))
        {
            fill(field, "apiVersion", || json!("v1"));
        }
    }
}

fn default_http(get: Option<&mut Value>) {
    if let Some(get) = get.filter(|get| get.is_object()) {
        fill(get, "path", || json!("/"));
        fill(get, "scheme", || json!("HTTP"));
    }
}

/// File modes of volumes made of objects; a volume without a source is empty.
fn default_volume(volume: &mut Value) {
    let has_source = volume
        .as_object()
        .is_some_and(|map| map.keys().any(|key| key != "name"));
    if !has_source {
        volume["emptyDir"] = json!({});
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = volume.get_mut(source).filter(|source| source.is_object()) {
            fill(source, "defaultMode", || json!(420));
            let list = source.get_mut("sources").and_then(Value::as_array_mut);
            for part in list.into_iter().flatten() {
                if let Some(token) = part.get_mut("serviceAccountToken") {
                    fill(token, "expirationSeconds", || json!(3600));
                }
                downward_items(part.get_mut("downwardAPI"));
            }
        }
    }
    downward_items(volume.get_mut("downwardAPI"));
    if let Some(path) = volume.get_mut("hostPath").filter(|path| path.is_object()) {
        path["type"] = path["type"].as_str().unwrap_or_default().into();
    }
}

fn downward_items(source: Option<&mut Value>) {
    let items = source
        .and_then(|source| source.get_mut("items"))
        .and_then(Value::as_array_mut);
    for item in items.into_iter().flatten() {
        if let Some(field) = item.get_mut("fieldRef").filter(|field| field.is_object()) {
            fill(field, "apiVersion", || json!("v1"));
        }
    }
}

/// The quality-of-service class, by requests and limits.
pub(super) fn qos_class(spec: &Value) -> &'static str {
    let (mut any, mut guaranteed) = (false, true);
    for list in ["containers", "initContainers"] {
        for container in spec[list].as_array().into_iter().flatten() {
            let resources = &container["resources"];
            for name in ["cpu", "memory"] {
                let (request, limit) = (&resources["requests"][name], &resources["limits"][name]);
                any |= !request.is_null() || !limit.is_null();
                guaranteed &= !limit.is_null() && (request.is_null() || request == limit);
            }
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// `a,b`: container names.
pub(super) fn names(spec: &Value) -> Value {
    each(spec, "name")
}

/// `nginx:1,sidecar:2`: container images.
pub(super) fn images(spec: &Value) -> Value {
    each(spec, "image")
}

fn each(spec: &Value, field: &str) -> Value {
    let containers = spec["containers"].as_array().into_iter().flatten();
    let texts: Vec<&str> = containers.filter_map(|c| c[field].as_str()).collect();
    texts.join(",").into()
}
