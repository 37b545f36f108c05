//! Services: how they print, default and validate.

use serde_json::Value;

use super::{
    NameRule, PLAIN, Resource, Rules, SelectableField, Subresource, pod,
    table::{AGE_COLUMN, Column, text_or},
};
use crate::{defaults, validation};

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
        validate: validation::service,
        validate_update: validation::service_update,
        // What the client leaves out of an update stays as it was allocated.
        update: |new, old| {
            defaults::service_type_change(new, old);
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
