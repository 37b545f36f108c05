//! What is wrong with a pod spec.

use std::collections::HashSet;

use serde_json::{Value, json};

use crate::{
    cache::selector::{is_dns_label, is_dns_subdomain},
    resource::Causes,
    status::Cause,
};

/// Checks a pod spec at `path`.
pub(in crate::resource) fn validate_spec(spec: &Value, path: &str, causes: &mut Causes) {
    let volumes = validate_volumes(spec, path, causes);
    if spec["containers"].as_array().is_none_or(Vec::is_empty) {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    let mut names = HashSet::new();
    for list in ["initContainers", "containers"] {
        for (index, container) in spec[list].as_array().into_iter().flatten().enumerate() {
            let path = format!("{path}.{list}[{index}]");
            validate_container(container, &path, &volumes, causes);
            let name = container["name"].as_str().unwrap_or_default();
            if !name.is_empty() && !names.insert(name.to_owned()) {
                causes.push(Cause::duplicate(format!("{path}.name"), &container["name"]));
            }
        }
    }
    one_of(
        spec,
        path,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
        causes,
    );
    let dns = &["ClusterFirstWithHostNet", "ClusterFirst", "Default", "None"];
    one_of(spec, path, "dnsPolicy", dns, causes);
    at_least(spec, path, "terminationGracePeriodSeconds", 0, causes);
    at_least(spec, path, "activeDeadlineSeconds", 1, causes);
    if let Some(node) = spec["nodeName"].as_str().filter(|node| !node.is_empty())
        && !is_dns_subdomain(node)
    {
        let why = "must be a lowercase RFC 1123 subdomain";
        causes.push(Cause::invalid(
            format!("{path}.nodeName"),
            &spec["nodeName"],
            why,
        ));
    }
    for (index, toleration) in spec["tolerations"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        validate_toleration(toleration, &format!("{path}.tolerations[{index}]"), causes);
    }
}

fn validate_toleration(toleration: &Value, path: &str, causes: &mut Causes) {
    let operator = toleration["operator"].as_str().unwrap_or_default();
    let key = toleration["key"].as_str().unwrap_or_default();
    let effect = toleration["effect"].as_str().unwrap_or_default();
    one_of(toleration, path, "operator", &["Equal", "Exists"], causes);
    one_of(
        toleration,
        path,
        "effect",
        &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        causes,
    );
    if key.is_empty() && operator != "Exists" {
        let why = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
        causes.push(Cause::invalid(
            format!("{path}.operator"),
            &operator.into(),
            why,
        ));
    }
    let value = toleration["value"].as_str().unwrap_or_default();
    if operator == "Exists" && !value.is_empty() {
        let why = "value must be empty when `operator` is 'Exists'";
        causes.push(Cause::invalid(
            format!("{path}.operator"),
            &toleration["value"],
            why,
        ));
    }
    if !toleration["tolerationSeconds"].is_null() && effect != "NoExecute" {
        let why = "effect must be 'NoExecute' when `tolerationSeconds` is set";
        causes.push(Cause::invalid(
            format!("{path}.effect"),
            &effect.into(),
            why,
        ));
    }
}

fn validate_volumes(spec: &Value, path: &str, causes: &mut Causes) -> HashSet<String> {
    let mut names = HashSet::new();
    for (index, volume) in spec["volumes"].as_array().into_iter().flatten().enumerate() {
        let path = format!("{path}.volumes[{index}]");
        label_name(volume, &path, causes);
        let name = volume["name"].as_str().unwrap_or_default();
        if !names.insert(name.to_owned()) {
            causes.push(Cause::duplicate(format!("{path}.name"), &volume["name"]));
        }
        let sources = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null());
        let sources: Vec<&String> = sources.map(|(key, _)| key).collect();
        if let [_, second, ..] = sources.as_slice() {
            causes.push(Cause::forbidden(
                format!("{path}.{second}"),
                "may not specify more than 1 volume type",
            ));
        }
        for (source, field) in [
            ("hostPath", "path"),
            ("secret", "secretName"),
            ("configMap", "name"),
            ("persistentVolumeClaim", "claimName"),
        ] {
            let given = &volume[source];
            if given.is_object() && given[field].as_str().unwrap_or_default().is_empty() {
                causes.push(Cause::required(format!("{path}.{source}.{field}"), ""));
            }
        }
    }
    names
}

fn validate_container(
    container: &Value,
    path: &str,
    volumes: &HashSet<String>,
    causes: &mut Causes,
) {
    label_name(container, path, causes);
    let image = container["image"].as_str().unwrap_or_default();
    if image.is_empty() {
        causes.push(Cause::required(format!("{path}.image"), ""));
    } else if image.trim() != image {
        let why = "must not have leading or trailing whitespace";
        causes.push(Cause::invalid(
            format!("{path}.image"),
            &container["image"],
            why,
        ));
    }
    one_of(
        container,
        path,
        "imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
        causes,
    );
    let policies = &["FallbackToLogsOnError", "File"];
    one_of(
        container,
        path,
        "terminationMessagePolicy",
        policies,
        causes,
    );
    validate_ports(container, path, causes);
    validate_env(container, path, causes);
    validate_mounts(container, path, volumes, causes);
    validate_resources(
        &container["resources"],
        &format!("{path}.resources"),
        causes,
    );
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        validate_probe(&container[probe], &format!("{path}.{probe}"), causes);
    }
}

fn validate_env(container: &Value, path: &str, causes: &mut Causes) {
    for (index, env) in container["env"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("{path}.env[{index}]");
        let name = env["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if name.contains('=') || !name.is_ascii() {
            let why = "a valid environment variable name must consist only of printable ASCII characters other than '='";
            causes.push(Cause::invalid(format!("{path}.name"), &env["name"], why));
        }
        let value = env["value"].as_str().unwrap_or_default();
        if !value.is_empty() && env["valueFrom"].is_object() {
            let why = "may not be specified when `value` is not empty";
            causes.push(Cause::invalid(format!("{path}.valueFrom"), &json!(""), why));
        }
    }
}

fn validate_mounts(container: &Value, path: &str, volumes: &HashSet<String>, causes: &mut Causes) {
    for (index, mount) in container["volumeMounts"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("{path}.volumeMounts[{index}]");
        let name = mount["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            causes.push(Cause::required(format!("{path}.name"), ""));
        } else if !volumes.contains(name) {
            causes.push(Cause::not_found(format!("{path}.name"), &mount["name"]));
        }
        if mount["mountPath"].as_str().unwrap_or_default().is_empty() {
            causes.push(Cause::required(format!("{path}.mountPath"), ""));
        }
    }
}

fn validate_ports(container: &Value, path: &str, causes: &mut Causes) {
    let mut names = HashSet::new();
    for (index, port) in container["ports"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let path = format!("{path}.ports[{index}]");
        let name = port["name"].as_str().unwrap_or_default();
        if !name.is_empty() {
            if let Some(why) = port_name_problem(name) {
                causes.push(Cause::invalid(format!("{path}.name"), &port["name"], why));
            } else if !names.insert(name) {
                causes.push(Cause::duplicate(format!("{path}.name"), &port["name"]));
            }
        }
        match port["containerPort"].as_i64() {
            None | Some(0) => causes.push(Cause::required(format!("{path}.containerPort"), "")),
            Some(_) => port_number(
                &port["containerPort"],
                &format!("{path}.containerPort"),
                causes,
            ),
        }
        if port["hostPort"].as_i64().is_some_and(|number| number != 0) {
            port_number(&port["hostPort"], &format!("{path}.hostPort"), causes);
        }
        one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"], causes);
    }
}

fn validate_resources(resources: &Value, path: &str, causes: &mut Causes) {
    for part in ["limits", "requests"] {
        for (name, value) in resources[part].as_object().into_iter().flatten() {
            if value.as_str().is_some_and(|text| text.starts_with('-')) {
                let why = "must be greater than or equal to 0";
                causes.push(Cause::invalid(format!("{path}.{part}[{name}]"), value, why));
            }
        }
    }
    for (name, request) in resources["requests"].as_object().into_iter().flatten() {
        let limit = &resources["limits"][name];
        let amount = |value: &Value| value.as_str()?.parse::<crate::schema::Quantity>().ok();
        if let (Some(asked), Some(most)) = (amount(request), amount(limit))
            && asked.nanos() > most.nanos()
        {
            let why = format!(
                "must be less than or equal to {name} limit of {}",
                limit.as_str().unwrap_or_default()
            );
            causes.push(Cause::invalid(format!("{path}.requests"), request, why));
        }
    }
}

fn validate_probe(probe: &Value, path: &str, causes: &mut Causes) {
    if !probe.is_object() {
        return;
    }
    let handlers = ["exec", "httpGet", "tcpSocket", "grpc"];
    match handlers
        .iter()
        .filter(|kind| probe[**kind].is_object())
        .count()
    {
        0 => causes.push(Cause::required(
            path.to_owned(),
            "must specify a handler type",
        )),
        1 => {}
        _ => causes.push(Cause::forbidden(
            path,
            "may not specify more than 1 handler type",
        )),
    }
    for field in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        at_least(probe, path, field, 0, causes);
    }
}

/// The field's text must be one of these, if it has any.
pub(in crate::resource) fn one_of(
    object: &Value,
    path: &str,
    field: &str,
    supported: &[&str],
    causes: &mut Causes,
) {
    let value = object[field].as_str().unwrap_or_default();
    if !value.is_empty() && !supported.contains(&value) {
        causes.push(Cause::not_supported(
            format!("{path}.{field}"),
            &object[field],
            supported,
        ));
    }
}

/// The field's number must be at least this, if it has one.
pub(in crate::resource) fn at_least(
    object: &Value,
    path: &str,
    field: &str,
    least: i64,
    causes: &mut Causes,
) {
    if object[field].as_i64().is_some_and(|number| number < least) {
        let why = format!("must be greater than or equal to {least}");
        causes.push(Cause::invalid(
            format!("{path}.{field}"),
            &object[field],
            why,
        ));
    }
}

/// 1 to 65535.
pub(in crate::resource) fn port_number(value: &Value, path: &str, causes: &mut Causes) {
    if !value
        .as_i64()
        .is_some_and(|number| (1..=65535).contains(&number))
    {
        causes.push(Cause::invalid(
            path,
            value,
            "must be between 1 and 65535, inclusive",
        ));
    }
}

fn label_name(object: &Value, path: &str, causes: &mut Causes) {
    match object["name"].as_str().unwrap_or_default() {
        "" => causes.push(Cause::required(format!("{path}.name"), "")),
        name if name.len() > 63 || !is_dns_label(name) => {
            let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
            causes.push(Cause::invalid(format!("{path}.name"), &object["name"], why));
        }
        _ => {}
    }
}

/// What is wrong with the name of a port.
pub(in crate::resource) fn port_name_problem(name: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    match () {
        () if name.len() > 15 => Some("must be no more than 15 characters"),
        () if !name.bytes().all(plain) => {
            Some("must contain only alpha-numeric characters (a-z, 0-9), and hyphens (-)")
        }
        () if !name.bytes().any(|b| b.is_ascii_lowercase()) => {
            Some("must contain at least one letter (a-z)")
        }
        () if name.contains("--") => Some("must not contain consecutive hyphens"),
        () if name.starts_with('-') || name.ends_with('-') => {
            Some("must not begin or end with a hyphen")
        }
        () => None,
    }
}
