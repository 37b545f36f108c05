//! Defaults of Services, endpoints and policies.

use serde_json::{Value, json};

use super::{each, existing, object, set, spec, text};

/// Service. Addresses, families and node ports are allocated elsewhere.
pub fn service(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    set(spec, "sessionAffinity", "None");
    match text(spec, "sessionAffinity") {
        "None" => {
            spec.remove("sessionAffinityConfig");
        }
        "ClientIP" => {
            let client =
                object(spec, "sessionAffinityConfig").and_then(|of| object(of, "clientIP"));
            if let Some(client) = client {
                set(client, "timeoutSeconds", 10_800);
            }
        }
        _ => {}
    }
    set(spec, "type", "ClusterIP");
    for port in each(spec, "ports") {
        set(port, "protocol", "TCP");
        let target = port.get("targetPort");
        let unset = target.is_none_or(|target| *target == json!(0) || *target == json!(""));
        if unset && let Some(number) = port.get("port").cloned() {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let of_type = text(spec, "type").to_owned();
    let external_ips = spec
        .get("externalIPs")
        .and_then(Value::as_array)
        .is_some_and(|l| !l.is_empty());
    let has_address = matches!(&*of_type, "ClusterIP" | "NodePort" | "LoadBalancer");
    if matches!(&*of_type, "NodePort" | "LoadBalancer") || (has_address && external_ips) {
        set(spec, "externalTrafficPolicy", "Cluster");
    }
    if has_address {
        set(spec, "internalTrafficPolicy", "Cluster");
    }
    if of_type == "LoadBalancer" {
        set(spec, "allocateLoadBalancerNodePorts", true);
    }
    let balancer = object_
        .as_object_mut()
        .and_then(|of| existing(of, "status"))
        .and_then(|status| existing(status, "loadBalancer"));
    for ingress in balancer
        .into_iter()
        .flat_map(|balancer| each(balancer, "ingress"))
    {
        if !text(ingress, "ip").is_empty() {
            set(ingress, "ipMode", "VIP");
        }
    }
}

/// A Service that takes another type drops what the old type gave it, unless the client changed
/// that too.
pub fn service_type_change(new: &mut Value, old: &Value) {
    let Some(spec) = spec(new) else { return };
    let before = &old["spec"];
    let of_type = text(spec, "type").to_owned();
    if before["type"] == *of_type {
        return;
    }
    let has_address = of_type != "ExternalName";
    let has_node_port = matches!(&*of_type, "NodePort" | "LoadBalancer");
    let balances = of_type == "LoadBalancer";
    let mut drop_unchanged = |fields: &[&str]| {
        for field in fields {
            if spec.get(*field) == before.get(field) {
                spec.remove(*field);
            }
        }
    };
    if !has_address {
        drop_unchanged(&[
            "clusterIP",
            "clusterIPs",
            "ipFamilies",
            "ipFamilyPolicy",
            "internalTrafficPolicy",
        ]);
    }
    if !has_node_port && before["externalIPs"].is_null() {
        drop_unchanged(&["externalTrafficPolicy"]);
    }
    if !balances {
        drop_unchanged(&[
            "allocateLoadBalancerNodePorts",
            "healthCheckNodePort",
            "loadBalancerClass",
            "loadBalancerSourceRanges",
        ]);
    }
    if !has_node_port {
        let ports = |spec: &Value| -> Vec<Value> {
            let ports = spec["ports"].as_array().into_iter().flatten();
            ports.map(|port| port["nodePort"].clone()).collect()
        };
        let kept = ports(&Value::Object(spec.clone())) == ports(before);
        for port in each(spec, "ports").filter(|_| kept) {
            port.remove("nodePort");
        }
    }
}

/// Endpoints.
pub fn endpoints(object_: &mut Value) {
    for subset in object_
        .as_object_mut()
        .into_iter()
        .flat_map(|of| each(of, "subsets"))
    {
        for port in each(subset, "ports") {
            set(port, "protocol", "TCP");
        }
    }
}

/// EndpointSlice.
pub fn endpoint_slice(object_: &mut Value) {
    for port in object_
        .as_object_mut()
        .into_iter()
        .flat_map(|of| each(of, "ports"))
    {
        set(port, "name", "");
        set(port, "protocol", "TCP");
    }
}

/// NetworkPolicy: it is about ingress, and about egress if it has egress rules.
pub fn network_policy(object_: &mut Value) {
    let Some(spec) = spec(object_) else { return };
    for rules in ["ingress", "egress"] {
        for rule in each(spec, rules) {
            for port in each(rule, "ports") {
                set(port, "protocol", "TCP");
            }
        }
    }
    let has_egress = spec
        .get("egress")
        .and_then(Value::as_array)
        .is_some_and(|l| !l.is_empty());
    set(
        spec,
        "policyTypes",
        if has_egress {
            json!(["Ingress", "Egress"])
        } else {
            json!(["Ingress"])
        },
    );
}
