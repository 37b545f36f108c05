//! Services: how they print, default and validate.

use serde_json::{Value, json};
use std::{collections::HashSet, net::IpAddr};

use super::{
    Causes, NameRule, PLAIN, Resource, Rules, SelectableField, Subresource, pod,
    table::{AGE_COLUMN, Column, text_or},
    template::{one_of, port_name_problem, port_number},
};
use crate::{defaults, status::Cause};

/// A stable address before changing pods.
pub static SERVICE: Resource = Resource {
    short_names: &["svc"],
    categories: &["all"],
    subresources: &[Subresource::status("", "Service")],
    fields: &[
        SelectableField::text("spec.clusterIP"),
        SelectableField::text("spec.type"),
    ],
    columns: &[
        Column::text("Type", |o, _| text_or(o, "/spec/type", "")),
        Column::text("Cluster-IP", |o, _| text_or(o, "/spec/clusterIP", "<none>")),
        Column::text("External-IP", |o, _| external(o)),
        Column::text("Port(s)", |o, _| ports(o)),
        AGE_COLUMN,
        Column::text("Selector", |o, _| pod::labels(&o["spec"]["selector"])).wide(),
    ],
    rules: Rules {
        name: NameRule::Label1035,
        default: defaults::service,
        validate: validate_service,
        validate_update: |new, old, causes| {
            let external = |o: &Value| o["spec"]["type"] == "ExternalName";
            let (address, before) = (&new["spec"]["clusterIP"], &old["spec"]["clusterIP"]);
            let had = before.as_str().is_some_and(|text| !text.is_empty());
            if had && address != before && !external(new) && !external(old) {
                let why = "may not change once set";
                causes.push(Cause::invalid("spec.clusterIPs[0]", address, why));
            }
        },
        // What the client leaves out of an update stays as it was allocated.
        update: |new, old| {
            if new["spec"]["type"] == "ExternalName" {
                return;
            }
            for field in ["clusterIP", "clusterIPs"] {
                let absent = match &new["spec"][field] {
                    Value::Null => true,
                    Value::String(text) => text.is_empty(),
                    Value::Array(list) => list.is_empty(),
                    _ => false,
                };
                if absent && !old["spec"][field].is_null() {
                    new["spec"][field] = old["spec"][field].clone();
                }
            }
        },
        returns_deleted: true,
        ..PLAIN
    },
    ..Resource::namespaced("services", "", "Service", "services", "service")
};

fn validate_service(object: &Value, causes: &mut Causes) {
    let spec = &object["spec"];
    let kind = spec["type"].as_str().unwrap_or_default();
    let kinds = &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
    one_of(spec, "spec", "type", kinds, causes);
    one_of(
        spec,
        "spec",
        "sessionAffinity",
        &["ClientIP", "None"],
        causes,
    );
    one_of(
        spec,
        "spec",
        "externalTrafficPolicy",
        &["Cluster", "Local"],
        causes,
    );
    one_of(
        spec,
        "spec",
        "internalTrafficPolicy",
        &["Cluster", "Local"],
        causes,
    );
    let headless = spec["clusterIP"] == "None";
    let ports = spec["ports"].as_array().map_or(&[][..], Vec::as_slice);
    if kind == "ExternalName" {
        let name = spec["externalName"].as_str().unwrap_or_default();
        if !crate::cache::selector::is_dns_subdomain(name.trim_end_matches('.')) {
            let why = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.'";
            causes.push(Cause::invalid(
                "spec.externalName",
                &spec["externalName"],
                why,
            ));
        }
    } else if ports.is_empty() && !headless {
        causes.push(Cause::required("spec.ports", ""));
    }
    let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
    for (index, port) in ports.iter().enumerate() {
        let path = format!("spec.ports[{index}]");
        validate_port(port, &path, ports.len() > 1, &mut names, causes);
        let number = (
            port["port"].as_i64(),
            port["protocol"].as_str().unwrap_or_default(),
        );
        if !numbers.insert(number) {
            causes.push(Cause::duplicate(
                path,
                &json!({"port": number.0, "protocol": number.1}),
            ));
        }
    }
    validate_addresses(spec, causes);
}

fn validate_addresses(spec: &Value, causes: &mut Causes) {
    for (index, address) in spec["clusterIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        let text = address.as_str().unwrap_or_default();
        if text != "None" && text.parse::<IpAddr>().is_err() {
            let field = format!("spec.clusterIPs[{index}]");
            causes.push(Cause::invalid(field, address, "must be a valid IP address"));
        }
    }
    for (index, address) in spec["externalIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if address
            .as_str()
            .is_none_or(|text| text.parse::<IpAddr>().is_err())
        {
            let field = format!("spec.externalIPs[{index}]");
            causes.push(Cause::invalid(field, address, "must be a valid IP address"));
        }
    }
    let timeout = &spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"];
    if !timeout.is_null() && !timeout.as_i64().is_some_and(|t| (1..=86400).contains(&t)) {
        let field = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
        causes.push(Cause::invalid(
            field,
            timeout,
            "must be greater than 0 and less than 86400",
        ));
    }
}

fn validate_port<'a>(
    port: &'a Value,
    path: &str,
    named: bool,
    names: &mut HashSet<&'a str>,
    causes: &mut Causes,
) {
    let name = port["name"].as_str().unwrap_or_default();
    if name.is_empty() {
        if named {
            causes.push(Cause::required(format!("{path}.name"), ""));
        }
    } else if name.len() > 63 || !crate::cache::selector::is_dns_label(name) {
        let why = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character";
        causes.push(Cause::invalid(format!("{path}.name"), &port["name"], why));
    } else if !names.insert(name) {
        causes.push(Cause::duplicate(format!("{path}.name"), &port["name"]));
    }
    port_number(&port["port"], &format!("{path}.port"), causes);
    one_of(port, path, "protocol", &["SCTP", "TCP", "UDP"], causes);
    match &port["targetPort"] {
        Value::String(name) => {
            if let Some(why) = port_name_problem(name) {
                causes.push(Cause::invalid(
                    format!("{path}.targetPort"),
                    &port["targetPort"],
                    why,
                ));
            }
        }
        Value::Null => {}
        number => port_number(number, &format!("{path}.targetPort"), causes),
    }
}

fn external(service: &Value) -> Value {
    let spec = &service["spec"];
    let join = |list: &Value, field: Option<&str>| -> String {
        let items = list.as_array().into_iter().flatten();
        let text = |item: &Value| match field {
            None => item.as_str().map(str::to_owned),
            Some(field) => item[field]
                .as_str()
                .or(item["hostname"].as_str())
                .map(str::to_owned),
        };
        items.filter_map(text).collect::<Vec<_>>().join(",")
    };
    let mut addresses = join(&spec["externalIPs"], None);
    match spec["type"].as_str().unwrap_or_default() {
        "ExternalName" => return text_or(service, "/spec/externalName", ""),
        "LoadBalancer" => {
            let given = join(&service["status"]["loadBalancer"]["ingress"], Some("ip"));
            if !given.is_empty() && !addresses.is_empty() {
                addresses.push(',');
            }
            addresses.push_str(&given);
            if addresses.is_empty() {
                return "<pending>".into();
            }
        }
        _ => {}
    }
    if addresses.is_empty() {
        "<none>".into()
    } else {
        addresses.into()
    }
}

fn ports(service: &Value) -> Value {
    let ports = service["spec"]["ports"].as_array().into_iter().flatten();
    let each: Vec<String> = ports
        .map(|port| {
            let (number, protocol) = (&port["port"], port["protocol"].as_str().unwrap_or("TCP"));
            match port["nodePort"].as_i64() {
                Some(node @ 1..) => format!("{number}:{node}/{protocol}"),
                _ => format!("{number}/{protocol}"),
            }
        })
        .collect();
    if each.is_empty() {
        "<none>".into()
    } else {
        each.join(",").into()
    }
}

/// Addresses and ports of Endpoints: the first three, then how many more.
pub(super) fn endpoints_cell(object: &Value) -> Value {
    let mut all = Vec::new();
    for subset in object["subsets"].as_array().into_iter().flatten() {
        for address in subset["addresses"].as_array().into_iter().flatten() {
            let ip = address["ip"].as_str().unwrap_or_default();
            let shown = if ip.contains(':') {
                format!("[{ip}]")
            } else {
                ip.to_owned()
            };
            let ports = subset["ports"].as_array().map_or(&[][..], Vec::as_slice);
            if ports.is_empty() {
                all.push(ip.to_owned());
            }
            all.extend(ports.iter().map(|port| format!("{shown}:{}", port["port"])));
        }
    }
    match all.len() {
        0 => "<none>".into(),
        1..=3 => all.join(",").into(),
        n => format!(
            "{} + {} more...",
            all.iter().take(3).cloned().collect::<Vec<_>>().join(","),
            n - 3
        )
        .into(),
    }
}
