//! Leases, slices of endpoints, network policies.

use serde_json::Value;

use super::{
    Causes, PLAIN, Resource, Rules,
    apps::label_selector,
    pod,
    table::{self, AGE_COLUMN, Column},
    template::{one_of, port_number},
};
use crate::{defaults, status::Cause};

/// coordination, discovery, networking, storage.
pub const ALL: &[&Resource] = &[
    &LEASE,
    &ENDPOINT_SLICE,
    &NETWORK_POLICY,
    &super::storage::STORAGE_CLASS,
];

/// Where the Leases of nodes live: in memory, since they are renewed all the time.
pub const NODE_LEASES: &str = "kube-node-lease";

/// A sign of life, or of leadership.
pub static LEASE: Resource = Resource {
    volatile: Some(NODE_LEASES),
    columns: &[
        Column::text("Holder", |o, _| {
            table::text_or(o, "/spec/holderIdentity", "")
        }),
        AGE_COLUMN,
    ],
    rules: Rules {
        validate: |o, causes| {
            if o["spec"]["leaseDurationSeconds"]
                .as_i64()
                .is_some_and(|s| s <= 0)
            {
                let value = &o["spec"]["leaseDurationSeconds"];
                let field = "spec.leaseDurationSeconds";
                causes.push(Cause::invalid(field, value, "must be greater than 0"));
            }
        },
        ..PLAIN
    },
    ..Resource::namespaced(
        "leases.coordination.k8s.io",
        "coordination.k8s.io",
        "Lease",
        "leases",
        "lease",
    )
};

/// Addresses behind a Service.
pub static ENDPOINT_SLICE: Resource = Resource {
    columns: &[
        Column::text("AddressType", |o, _| table::text_or(o, "/addressType", "")),
        Column::text("Ports", |o, _| {
            let ports = o["ports"].as_array().into_iter().flatten();
            first_few(ports.map(|p| table::text_or(p, "/port", "*")), "<unset>")
        }),
        Column::text("Endpoints", |o, _| {
            let endpoints = o["endpoints"].as_array().into_iter().flatten();
            let addresses =
                endpoints.flat_map(|e| e["addresses"].as_array().into_iter().flatten().cloned());
            first_few(addresses, "<unset>")
        }),
        AGE_COLUMN,
    ],
    generation: true,
    rules: Rules {
        default: defaults::endpoint_slice,
        validate: validate_slice,
        validate_update: |new, old, causes| {
            if new["addressType"] != old["addressType"] {
                let value = &new["addressType"];
                causes.push(Cause::invalid("addressType", value, "field is immutable"));
            }
        },
        ..PLAIN
    },
    ..Resource::namespaced(
        "endpointslices.discovery.k8s.io",
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        "endpointslice",
    )
};

fn first_few(values: impl Iterator<Item = Value>, none: &str) -> Value {
    let all: Vec<String> = values
        .map(|value| {
            value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned)
        })
        .collect();
    match all.len() {
        0 => none.into(),
        1..=3 => all.join(",").into(),
        n => format!(
            "{} + {} more...",
            all.iter().take(3).cloned().collect::<Vec<_>>().join(","),
            n - 3
        )
        .into(),
    }
}

fn validate_slice(slice: &Value, causes: &mut Causes) {
    let family = slice["addressType"].as_str().unwrap_or_default();
    if family.is_empty() {
        causes.push(Cause::required("addressType", ""));
    }
    one_of(slice, "", "addressType", &["FQDN", "IPv4", "IPv6"], causes);
    let endpoints = slice["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    if endpoints.len() > 1000 {
        causes.push(Cause::new(
            "FieldValueTooMany",
            "endpoints",
            "Too many: must have at most 1000 items",
        ));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        let addresses = endpoint["addresses"]
            .as_array()
            .map_or(&[][..], Vec::as_slice);
        if addresses.is_empty() {
            let field = format!("endpoints[{index}].addresses");
            causes.push(Cause::required(field, "must contain at least 1 item"));
        }
        for (at, address) in addresses.iter().enumerate() {
            let text = address.as_str().unwrap_or_default();
            let good = match family {
                "IPv4" => text.parse::<std::net::Ipv4Addr>().is_ok(),
                "IPv6" => text.parse::<std::net::Ipv6Addr>().is_ok(),
                _ => true,
            };
            if !good {
                let field = format!("endpoints[{index}].addresses[{at}]");
                causes.push(Cause::invalid(
                    field,
                    address,
                    format!("must be a valid {family} address"),
                ));
            }
        }
    }
}

/// Who may talk to whom.
pub static NETWORK_POLICY: Resource = Resource {
    short_names: &["netpol"],
    columns: &[
        Column::text("Pod-Selector", |o, _| {
            pod::labels(&o["spec"]["podSelector"]["matchLabels"])
        }),
        AGE_COLUMN,
    ],
    generation: true,
    rules: Rules {
        default: defaults::network_policy,
        validate: validate_policy,
        ..PLAIN
    },
    ..Resource::namespaced(
        "networkpolicies.networking.k8s.io",
        "networking.k8s.io",
        "NetworkPolicy",
        "networkpolicies",
        "networkpolicy",
    )
};

fn validate_policy(policy: &Value, causes: &mut Causes) {
    let spec = &policy["spec"];
    label_selector(&spec["podSelector"], "spec.podSelector", causes);
    for (index, kind) in spec["policyTypes"]
        .as_array()
        .into_iter()
        .flatten()
        .enumerate()
    {
        if !matches!(kind.as_str(), Some("Ingress" | "Egress")) {
            let field = format!("spec.policyTypes[{index}]");
            causes.push(Cause::not_supported(field, kind, &["Egress", "Ingress"]));
        }
    }
    for (direction, side) in [("ingress", "from"), ("egress", "to")] {
        for (index, rule) in spec[direction].as_array().into_iter().flatten().enumerate() {
            let path = format!("spec.{direction}[{index}]");
            for (at, port) in rule["ports"].as_array().into_iter().flatten().enumerate() {
                validate_policy_port(port, &format!("{path}.ports[{at}]"), causes);
            }
            for (at, peer) in rule[side].as_array().into_iter().flatten().enumerate() {
                validate_peer(peer, &format!("{path}.{side}[{at}]"), causes);
            }
        }
    }
}

fn validate_policy_port(port: &Value, path: &str, causes: &mut Causes) {
    one_of(port, path, "protocol", &["SCTP", "TCP", "UDP"], causes);
    let end = &port["endPort"];
    match &port["port"] {
        Value::Null if !end.is_null() => {
            causes.push(Cause::required(
                format!("{path}.port"),
                "must be specified when `endPort` is set",
            ));
        }
        Value::Null => {}
        Value::String(name) => {
            if let Some(why) = super::template::port_name_problem(name) {
                causes.push(Cause::invalid(format!("{path}.port"), &port["port"], why));
            }
            if !end.is_null() {
                let why = "may not be specified when `port` is non-numeric";
                causes.push(Cause::invalid(format!("{path}.endPort"), end, why));
            }
        }
        number => {
            port_number(number, &format!("{path}.port"), causes);
            if !end.is_null() {
                port_number(end, &format!("{path}.endPort"), causes);
                if end.as_i64() < number.as_i64() {
                    let why = "must be greater than or equal to `port`";
                    causes.push(Cause::invalid(format!("{path}.endPort"), end, why));
                }
            }
        }
    }
}

fn validate_peer(peer: &Value, path: &str, causes: &mut Causes) {
    let selects = peer["podSelector"].is_object() || peer["namespaceSelector"].is_object();
    for field in ["podSelector", "namespaceSelector"] {
        label_selector(&peer[field], &format!("{path}.{field}"), causes);
    }
    let block = &peer["ipBlock"];
    if !block.is_object() {
        if !selects {
            causes.push(Cause::required(path, "must specify a peer"));
        }
        return;
    }
    if selects {
        causes.push(Cause::forbidden(
            path,
            "may not specify both ipBlock and another peer",
        ));
    }
    let path = format!("{path}.ipBlock");
    let Some(outer) = Prefix::parse(&block["cidr"]) else {
        causes.push(Cause::invalid(
            format!("{path}.cidr"),
            &block["cidr"],
            "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ));
        return;
    };
    for (index, except) in block["except"].as_array().into_iter().flatten().enumerate() {
        let field = format!("{path}.except[{index}]");
        match Prefix::parse(except) {
            None => causes.push(Cause::invalid(
                field,
                except,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            )),
            Some(inner) if !outer.strictly_contains(&inner) => causes.push(Cause::invalid(
                field,
                except,
                format!(
                    "must be a strict subset of `cidr` {}",
                    block["cidr"].as_str().unwrap_or_default()
                ),
            )),
            Some(_) => {}
        }
    }
}

/// An address prefix, left-aligned in 128 bits per family.
struct Prefix {
    six: bool,
    bits: u128,
    length: u32,
}

impl Prefix {
    fn parse(value: &Value) -> Option<Self> {
        let (address, length) = value.as_str()?.split_once('/')?;
        let length: u32 = length.parse().ok()?;
        match address.parse().ok()? {
            std::net::IpAddr::V4(four) if length <= 32 => Some(Self {
                six: false,
                bits: u128::from(u32::from(four)) << 96,
                length,
            }),
            std::net::IpAddr::V6(six) if length <= 128 => Some(Self {
                six: true,
                bits: u128::from(six),
                length,
            }),
            _ => None,
        }
    }

    fn strictly_contains(&self, other: &Self) -> bool {
        let mask = u128::MAX.checked_shl(128 - self.length).unwrap_or(0);
        self.six == other.six && other.length > self.length && (self.bits ^ other.bits) & mask == 0
    }
}
