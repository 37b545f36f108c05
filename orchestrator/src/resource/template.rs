//! Pod specs, wherever they stand: what tables and status say of them.

use serde_json::Value;

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
