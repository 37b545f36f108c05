//! Services.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::network_policy::parse_cidr;
use super::pod::ip_address;
use super::{At, port_number_or_name};
use crate::resource::{Causes, NameRule};
use crate::status::Cause;

/// Service.
pub fn service(object: &Value, causes: &mut Causes) {
    let spec = At::root(object).field("spec");
    let of_type = spec.field("type");
    of_type.choose(
        &["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"],
        causes,
    );
    let headless = spec.field("clusterIP").text() == "None";
    match of_type.text() {
        "LoadBalancer" | "NodePort" if headless => {
            let at = spec
                .field("clusterIPs")
                .items()
                .next()
                .unwrap_or_else(|| spec.field("clusterIP"));
            at.invalid(
                format!("may not be set to 'None' for {} services", of_type.text()),
                causes,
            );
        }
        "ExternalName" => external_name(&spec, causes),
        _ => {}
    }
    if of_type.text() != "ExternalName" && !headless && !spec.field("ports").is_set() {
        causes.push(Cause::required("spec.ports", ""));
    }
    ports(&spec, causes);
    spec.field("selector").labels(causes);
    affinity(&spec, causes);
    addresses(&spec, causes);
    traffic(&spec, causes);
    load_balancer(&spec, causes);
}

fn external_name(spec: &At<'_>, causes: &mut Causes) {
    for field in ["clusterIP", "clusterIPs"] {
        let at = spec.field(field);
        if at.is_set() {
            at.forbid("may not be set for ExternalName services", causes);
        }
    }
    let name = spec.field("externalName");
    let bare = name.text().strip_suffix('.').unwrap_or(name.text());
    if bare.is_empty() {
        causes.push(Cause::required(&name.path, ""));
    } else if let Some(why) = super::name_problem(NameRule::Subdomain, bare) {
        name.invalid(why, causes);
    }
}

fn ports(spec: &At<'_>, causes: &mut Causes) {
    let list = spec.field("ports");
    let several = list.value.as_array().is_some_and(|ports| ports.len() > 1);
    let (mut names, mut numbers, mut node_ports) =
        (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    for port in list.items() {
        let (name, number) = (port.field("name"), port.field("port"));
        let protocol = port.field("protocol");
        if several && !name.is_set() {
            causes.push(Cause::required(&name.path, ""));
        } else if name.is_set() {
            name.name(NameRule::Label, causes);
            if !names.insert(name.text()) {
                name.duplicate(causes);
            }
        }
        if !(1..=65535).contains(&number.int().unwrap_or(0)) {
            number.invalid(super::PORT, causes);
        }
        protocol.choose(&["SCTP", "TCP", "UDP"], causes);
        let target = port.field("targetPort");
        port_number_or_name(&target, causes);
        if !numbers.insert((protocol.text(), number.int())) {
            let value = json!({"protocol": protocol.text(), "port": number.value});
            causes.push(Cause::duplicate(&port.path, &value));
        }
        let node_port = port.field("nodePort");
        if node_port.int().unwrap_or(0) == 0 {
            continue;
        }
        if !matches!(spec.field("type").text(), "NodePort" | "LoadBalancer") {
            let why = format!(
                "may not be used when `type` is '{}'",
                spec.field("type").text()
            );
            node_port.forbid(&why, causes);
        } else if !node_ports.insert((protocol.text(), node_port.int())) {
            node_port.duplicate(causes);
        }
    }
}

fn affinity(spec: &At<'_>, causes: &mut Causes) {
    let affinity = spec.field("sessionAffinity");
    affinity.choose(&["ClientIP", "None"], causes);
    let config = spec.field("sessionAffinityConfig");
    if affinity.text() == "ClientIP" {
        let seconds = config.field("clientIP").field("timeoutSeconds");
        if seconds
            .int()
            .is_some_and(|seconds| !(1..=86_400).contains(&seconds))
        {
            seconds.invalid("must be greater than 0 and less than 86400", causes);
        }
    } else if config.value.is_object() {
        let why = "must not be set when session affinity is None";
        config.forbid(why, causes);
    }
}

fn addresses(spec: &At<'_>, causes: &mut Causes) {
    let (first, all) = (spec.field("clusterIP"), spec.field("clusterIPs"));
    let in_list = all.items().next();
    match &in_list {
        Some(_) if !first.is_set() => {
            all.invalid("must be empty when `clusterIP` is not specified", causes);
        }
        Some(primary) if primary.text() != first.text() => {
            all.invalid("first value must match `clusterIP`", causes);
        }
        _ => {}
    }
    if all.value.as_array().is_some_and(|list| list.len() > 2) {
        all.invalid("may only hold up to 2 values", causes);
    }
    let list: Vec<At<'_>> = if in_list.is_some() {
        all.items().collect()
    } else {
        vec![first.clone()]
    };
    let mut families = BTreeSet::new();
    for address in list
        .iter()
        .filter(|address| address.is_set() && address.text() != "None")
    {
        match address.text().parse::<std::net::IpAddr>() {
            Ok(parsed) if !families.insert(parsed.is_ipv4()) => {
                let why = "may specify no more than one IP for each IP family";
                all.invalid(why, causes);
            }
            Ok(_) => {}
            Err(_) => address.invalid("must be empty, 'None', or a valid IP address", causes),
        }
    }
    ip_families(spec, causes);
    for address in spec.field("externalIPs").items() {
        ip_address(&address, causes);
        let parsed = address.text().parse::<std::net::IpAddr>();
        if parsed.is_ok_and(|address| address.is_loopback() || address.is_unspecified()) {
            let why = "may not be unspecified (0.0.0.0 or ::) or in the loopback range (127.0.0.0/8, ::1/128)";
            address.invalid(why, causes);
        }
    }
}

fn ip_families(spec: &At<'_>, causes: &mut Causes) {
    let policy = spec.field("ipFamilyPolicy");
    policy.choose_if_set(
        &["PreferDualStack", "RequireDualStack", "SingleStack"],
        causes,
    );
    let list = spec.field("ipFamilies");
    let count = list.value.as_array().map_or(0, Vec::len);
    if count > 2 {
        list.invalid("may only hold up to 2 values", causes);
    }
    if count == 2 && policy.text() == "SingleStack" {
        list.invalid(
            "when `ipFamilyPolicy` is 'SingleStack', only one family may be given",
            causes,
        );
    }
    let mut seen = BTreeSet::new();
    for family in list.items() {
        family.choose(&["IPv4", "IPv6"], causes);
        if !seen.insert(family.text()) {
            family.duplicate(causes);
        }
    }
    let addresses = spec.field("clusterIPs").items();
    for (family, address) in list.items().zip(addresses) {
        let parsed = address.text().parse::<std::net::IpAddr>();
        if parsed.is_ok_and(|address| address.is_ipv4() != (family.text() == "IPv4")) {
            let why = format!(
                "expected an {} value as indicated by `ipFamilies[0]`",
                family.text()
            );
            address.invalid(why, causes);
        }
    }
}

fn traffic(spec: &At<'_>, causes: &mut Causes) {
    let of_type = spec.field("type").text();
    let external = spec.field("externalTrafficPolicy");
    let reachable = matches!(of_type, "NodePort" | "LoadBalancer")
        || (of_type == "ClusterIP" && spec.field("externalIPs").is_set());
    if external.is_set() && !reachable {
        external.invalid("may only be set for externally-accessible services", causes);
    } else {
        external.choose_if_set(&["Cluster", "Local"], causes);
    }
    spec.field("internalTrafficPolicy")
        .choose_if_set(&["Cluster", "Local"], causes);
    spec.field("trafficDistribution")
        .choose_if_set(&["PreferClose", "PreferSameNode", "PreferSameZone"], causes);
    let health = spec.field("healthCheckNodePort");
    let local = of_type == "LoadBalancer" && external.text() == "Local";
    if health.int().unwrap_or(0) != 0 && !local {
        let why =
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'";
        health.invalid(why, causes);
    } else if health.int().unwrap_or(0) != 0 {
        health.in_range(1, 65535, causes);
    }
}

fn load_balancer(spec: &At<'_>, causes: &mut Causes) {
    let is_balancer = spec.field("type").text() == "LoadBalancer";
    let ranges = spec.field("loadBalancerSourceRanges");
    if ranges.is_set() && !is_balancer {
        ranges.forbid("may only be used when `type` is 'LoadBalancer'", causes);
    }
    for range in ranges.items() {
        if parse_cidr(range.text().trim()).is_none() {
            range.invalid(
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
                causes,
            );
        }
    }
    for field in ["loadBalancerClass", "allocateLoadBalancerNodePorts"] {
        let at = spec.field(field);
        if !at.value.is_null() && !is_balancer {
            at.forbid("may only be used when `type` is 'LoadBalancer'", causes);
        }
    }
    if spec.field("loadBalancerClass").is_set() {
        spec.field("loadBalancerClass").qualified_name(causes);
    }
}

/// A change of a Service.
pub fn service_update(new: &Value, old: &Value, causes: &mut Causes) {
    let (spec, before) = (At::root(new).field("spec"), &old["spec"]);
    let has_address = |of_type: &Value| of_type != "ExternalName";
    if has_address(&before["type"]) && has_address(spec.field("type").value) {
        let was = before["clusterIP"].as_str().unwrap_or_default();
        if !was.is_empty() && spec.field("clusterIP").text() != was {
            let all = spec.field("clusterIPs");
            let path = format!("{}[0]", all.path);
            causes.push(Cause::invalid(path, all.value, "may not change once set"));
        }
    }
    let health = spec.field("healthCheckNodePort");
    let was = before["healthCheckNodePort"].as_i64().unwrap_or(0);
    if was != 0 && health.int().unwrap_or(0) != 0 && health.int() != Some(was) {
        health.forbid(super::IMMUTABLE, causes);
    }
    let class = spec.field("loadBalancerClass");
    let both = before["type"] == "LoadBalancer" && spec.field("type").text() == "LoadBalancer";
    if both && class.value != before.get("loadBalancerClass").unwrap_or(&Value::Null) {
        class.invalid("may not change once set", causes);
    }
}
